"""The store at size: look-ups of 20 M digests, an index of 2 M images, and week two with 1 % new images.

    .venv/bin/python benchmarks/store.py [--stored 20000000] [--images 2000000] [--photos 40000]

    find    20 M drawn digests in shards of 4,096, looked up by 20 M of which half are there
    index   2 M drawn images that a filled store has: everything that extract does beside the network
    weeks   40,000 drawn photos through Inception v3 at 299 px (random weights), then 1 % new ones beside
            them, then all of them again into an empty store, whose bottlenecks have to be the same bits

Each is a process of its own. Writes results/store.json. Takes 3 GB of disk and fifteen minutes.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import MB, conditions, run, table, verdict

RESULTS = Path(__file__).parent / "results" / "store.json"
SHARD = 4096  # images
NEW = 0.01  # share of images that week two brings
SIZE = 299  # px
TARGETS = {"find_seconds": 60, "find_mb": 2000, "week_two": 0.03}


def main() -> None:
    """Runs the three subjects, prints tables and verdicts, writes the results."""
    options = _options()
    if options.subject:
        print(json.dumps(SUBJECTS[options.subject](options, Path(options.scratch))))
        return
    results: dict[str, Any] = {}
    for subject in SUBJECTS:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            sizes = [f"--{name}={getattr(options, name)}" for name in ("stored", "images", "photos")]
            DRAWINGS[subject](options, Path(folder))
            done = run([sys.executable, __file__, *sizes, "--subject", subject, "--scratch", folder])
        results[subject] = json.loads(done.output.splitlines()[-1]) | {"peak_mb": round(done.peak / MB)}
        print(table([subject, ""], results[subject].items()), flush=True)
    found, weeks = results["find"], results["weeks"]
    allowed = TARGETS["week_two"] * weeks["week_one_seconds"]
    results["verdicts"] = [
        verdict("looking up 20 M digests among 20 M", found["seconds"], TARGETS["find_seconds"], " s"),
        verdict("its peak memory", found["peak_mb"], TARGETS["find_mb"], " MB"),
        verdict("week two, beside reading the index", weeks["week_two_extra_seconds"], allowed, " s"),
        verdict("bottlenecks that differ from a full extraction", weeks["different_rows"], 0, ""),
    ]
    RESULTS.write_text(json.dumps(conditions("numpy", "pyarrow", "tensorflow") | results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stored", type=int, default=20_000_000, help="digests in the store")
    parser.add_argument("--images", type=int, default=2_000_000, help="in the index")
    parser.add_argument("--photos", type=int, default=40_000, help="of week one")
    parser.add_argument("--scratch", type=Path, help="a directory with room for 1.2 GB")
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    return parser.parse_args()


def drawn_digests(first: int, count: int) -> np.ndarray:
    """(count, 32) uint8, of the images numbered from `first` on: splitmix64, four words each."""
    words = np.arange(4 * first, 4 * (first + count), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    return (words ^ (words >> np.uint64(31))).view(np.uint8).reshape(-1, 32)


def draw_store(images: int, folder: Path) -> None:
    """Shards of one number a bottleneck."""
    from features.storage.store import Store

    for start in range(0, images, SHARD):
        digests = drawn_digests(start, min(SHARD, images - start))
        Store(folder).append(digests, np.zeros((len(digests), 1), np.float16), "drawn")


# Look-ups


def find(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Looks up digests, half of which are in the store."""
    from features.storage.store import Digests, Store

    wanted = np.empty((options.stored, 32), np.uint8)
    middle = options.stored // 2
    for start in range(0, options.stored, 2**20):  # at a time: numbers take as much as digests
        piece = wanted[start : start + 2**20]
        piece[:] = drawn_digests(middle + start, len(piece))
    np.random.default_rng(0).shuffle(wanted.view("V32").ravel())  # shuffles `wanted` itself
    began = time.monotonic()
    digests = Digests(wanted)
    sorted_after = time.monotonic() - began
    found = Store(folder / "store").find(digests)
    seconds = time.monotonic() - began
    assert (found.row >= 0).sum() == options.stored - middle
    return {
        "stored": options.stored, "asked": len(wanted), "shards": len(found.names),
        "sort_seconds": round(sorted_after, 1), "seconds": round(seconds, 1),
    }  # fmt: skip


# The index


def draw_records(options: argparse.Namespace, folder: Path) -> None:
    """records/ of images without pictures, two a product, and a store that has them all."""
    from features.storage.artifact import begin, partial_of, seal
    from pipeline.ingest.write_records import IMAGES

    work = begin(partial_of(folder / "records"), {})
    with pq.ParquetWriter(work / "images.parquet", IMAGES) as writer:
        for start in range(0, options.images, 2**16):
            rows = min(2**16, options.images - start)
            image = np.arange(start, start + rows)
            columns = {
                "product_id": [str(p) for p in (image // 2 * 7919) % 10_000_019],
                "split": np.array(["train", "val", "test"])[image // 2 % 10 // 8 + (image // 2 % 10 == 9)],
                "image_digest": [digest.tobytes().hex() for digest in drawn_digests(start, rows)],
                "file": [f"train-{start:05d}-of-00900.tfrecord"] * rows,
                "image_index": image % 2, "offset": image, "length": image, "placeholder": image < 0,
            }  # fmt: skip
            writer.write_table(pa.table(columns).cast(IMAGES))
    seal(folder / "records", kind="records", version=1, made_from={}, summary={})
    draw_store(options.images, folder / "store" / "drawn")


def index(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Extract when there is nothing to extract, and the training part opened."""
    from types import SimpleNamespace

    from features.storage.artifact import open_artifact
    from pipeline.extract.extract import extract_records
    from pipeline.job.catalogue import open_part
    from pipeline.job.config import ExtractSettings

    backbone: Any = SimpleNamespace(fingerprint="drawn", name="drawn", weights="none")
    records = open_artifact(folder / "records", "records")
    idle, began = _resident(), time.monotonic()
    made = extract_records(records, backbone, folder / "store", folder / "bottlenecks", ExtractSettings())
    written, wrote = _peak(), time.monotonic()
    part = open_part(made, folder / "store", "train")
    seconds = {"write_seconds": wrote - began, "open_seconds": time.monotonic() - wrote}
    megabytes = {"libraries_mb": idle, "peak_mb_written": written, "peak_mb_opened": _peak()}
    rounded = {name: round(value, 1) for name, value in (seconds | megabytes).items()}
    return {"images": options.images, "train": len(part.rows)} | rounded


def _resident() -> float:
    """MB."""
    import psutil

    return psutil.Process().memory_info().rss / MB


def _peak() -> float:
    """MB up to now."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


# Two weeks


def draw_photos(options: argparse.Namespace, folder: Path) -> None:
    """Two manifests: of week one, and of week two, which has 1 % more."""
    from PIL import Image

    random = np.random.default_rng(0)
    lines = ["product_id,image,category"]
    new = round(options.photos * NEW)
    for number in range(options.photos + new):
        colours = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        file = io.BytesIO()
        colours.resize((180, 180), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
        lines.append(f"{number},{number}.jpg,{number % 2}")
        if number == options.photos - 1:
            (folder / "one.csv").write_text("\n".join(lines))
    (folder / "two.csv").write_text("\n".join(lines))


def weeks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Week one, week two, and week two again from nothing."""
    from features.engines.backbones import load_backbone, start_tensorflow
    from features.storage.store import Digests, Store
    from pipeline.extract.extract import extract_records
    from pipeline.extract.index import read_digests
    from pipeline.ingest.ingest import make_records
    from pipeline.job.config import ExtractSettings, IngestSettings

    start_tensorflow()
    records = [
        make_records([str(folder / f"{week}.csv")], folder / week, IngestSettings())
        for week in ("one", "two")
    ]
    backbone = load_backbone("inception_v3", "random", SIZE)
    backbone.bottlenecks(np.zeros((ExtractSettings().batch, SIZE, SIZE, 3), np.uint8))  # not timed
    seconds = []
    for name, week, store in (("a", 0, "weekly"), ("b", 1, "weekly"), ("c", 1, "whole")):
        began = time.monotonic()
        extract_records(records[week], backbone, folder / store, folder / name, ExtractSettings())
        seconds.append(time.monotonic() - began)
    began = time.monotonic()
    extract_records(records[1], backbone, folder / "weekly", folder / "d", ExtractSettings())
    reading = time.monotonic() - began  # of the same week once more: nothing but looking up, and the index
    digests = Digests(read_digests(records[1].file("images.parquet")))
    rows = []
    for store in ("weekly", "whole"):
        shelf = Store(folder / store / backbone.fingerprint)
        found = shelf.find(digests)
        rows.append(shelf.rows(found.names, found.shard, found.row)[:])
    assert len(np.unique(rows[0], axis=0)) > len(digests) * 0.99, (
        "expected a different bottleneck for each photo"
    )
    timed = zip(("week_one_seconds", "week_two_seconds", "whole_seconds"), seconds, strict=True)
    return {
        "images": options.photos, "new_images": len(digests) - options.photos,
        **{name: round(value, 2) for name, value in timed},
        "index_seconds": round(reading, 2), "week_two_extra_seconds": round(seconds[1] - reading, 2),
        "week_two_share": round((seconds[1] - reading) / seconds[0], 4),
        "different_rows": int((rows[0].view(np.uint16) != rows[1].view(np.uint16)).any(axis=1).sum()),
    }  # fmt: skip


SUBJECTS = {"find": find, "index": index, "weeks": weeks}
DRAWINGS = {
    "find": lambda options, folder: draw_store(options.stored, folder / "store"),
    "index": draw_records,
    "weeks": draw_photos,
}


if __name__ == "__main__":
    main()
