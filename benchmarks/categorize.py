"""Batch categorization beside the bare engine and the bare store, all new and all known, and its memory.

    .venv/bin/python benchmarks/categorize.py [--images 1024] [--known 40000] [--rows 200000 2000000]

    new      photos of 180 px in a BSON file that no store knows → decisions; beside the engine alone on as
             many photos that are decoded and in memory
    known    photos that the store has, drawn bottlenecks of 2,048 numbers, 1,000 categories → decisions;
             beside plain loops of one process: `read` reads the BSON, hashes the photos, finds them in the
             store and reads their bottlenecks; `whole` does the same and decides; `store` is the
             reading of the bottlenecks alone
    memory   peak memory of known batches of small photos, one a product

Random weights: they cost the same. Categorize and its peers take turns in one process, which has loaded the
network and started its workers; ratios are of the same turn, of seconds on the wall and of processor time,
which other programs disturb less; the figures are medians. A child process is started for each row. Writes
results/categorize.json. Takes 2 GB of disk.
"""

import argparse
import functools
import hashlib
import json
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from measure import MB, conditions, median, run, table, verdict

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "categorize.json"
PACKAGES = ("tensorflow", "keras", "openvino", "numpy", "pyarrow", "simplejpeg")
PER_PRODUCT = (1, 2, 4)
CATEGORIES, WIDTH, SHARD = 1000, 2048, 4096


def main() -> None:
    """Runs the subjects, prints tables and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1024, help="new ones, at least 64")
    parser.add_argument("--known", type=int, default=40_000)
    parser.add_argument("--rows", type=int, nargs=2, default=(200_000, 2_000_000), help="of the memory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="inception_v3")
    parser.add_argument("--scratch", type=Path, help="a directory with room for 2 GB")
    parser.add_argument("--only", choices=["new", "known", "memory"], action="append")
    parser.add_argument("--subject", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        name, number = options.subject
        print(json.dumps(SUBJECTS[name](options, int(number), Path(options.scratch))))
        return
    subjects = options.only or ["new", "known", "memory"]
    results: dict[str, Any] = {}
    if options.only and RESULTS.is_file():  # the others stay
        measured = json.loads(RESULTS.read_text())
        results = {name: measured[name] for name in SUBJECTS if name in measured}
    if "new" in subjects:
        results["new"] = [_child(options, "new", each) for each in PER_PRODUCT]
    if "known" in subjects:
        results["known"] = [_child(options, "known", each) for each in PER_PRODUCT]
    if "memory" in subjects:
        results["memory"] = [_child(options, "memory", rows) for rows in options.rows]
    for name, rows in results.items():
        print(table([name, *rows[0]], [["", *row.values()] for row in rows]), flush=True)
    results["verdicts"] = _verdicts(results)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def _child(options: argparse.Namespace, name: str, number: int) -> dict[str, Any]:
    """Runs a subject in a process of its own."""
    given = ["images", "known", "repeats", "backbone"]
    arguments = [f"--{one}={getattr(options, one)}" for one in given]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        if name == "memory":
            draw_known(number, 1, Path(folder), width=64, pictures=small_pictures())
        command = [sys.executable, __file__, *arguments, "--scratch", folder]
        done = run([*command, "--subject", name, str(number)])
    row: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    if name == "memory":
        row["peak_mb"] = round(done.peak / MB)
    print(row, flush=True)
    return row


def _verdicts(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found = []
    if "new" in results:
        least = min(row["ratio"] for row in results["new"])
        found.append(verdict("all new: share of the bare engine's rate", least, 0.9, "", at_least=True))
    if "known" in results:
        least = min(row["of_read_ratio"] for row in results["known"])
        found.append(verdict("all known: share of reading and hashing", least, 0.95, "", at_least=True))
        least = min(row["of_whole_ratio"] for row in results["known"])
        found.append(verdict("all known: share of a loop that decides", least, 0.95, "", at_least=True))
    if "memory" in results:
        small, large = (row["peak_mb"] for row in results["memory"])
        found.append(verdict("peak memory, ten times the products", large / small, 1.3, " times"))
    return found


# What is categorized


def small_pictures() -> list[bytes]:
    """JPEGs of 16 px."""
    import simplejpeg

    drawn = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    return [simplejpeg.encode_jpeg(one, 60) for one in drawn]


def photos(pictures: list[bytes], count: int) -> Iterator[bytes]:
    """Different files: pictures with a number in a comment."""
    for number in range(count):
        picture = pictures[number % len(pictures)]
        yield picture[:2] + b"\xff\xfe\x00\x0a" + struct.pack("<Q", number) + picture[2:]


def write_catalogue(file: Path, pictures: list[bytes], images: int, each: int) -> None:
    """A BSON file of products with so many photos each."""
    import bson

    drawn = photos(pictures, images)
    with open(file, "wb") as out:
        for product in range(images // each):
            out.write(bson.encode({"_id": product, "imgs": [{"picture": next(drawn)} for _ in range(each)]}))


class DrawnBackbone:
    """What packing a bundle needs of a network that is never run."""

    name, image_size, weights = "drawn", WIDTH, "random"

    def __init__(self, width: int) -> None:
        self.width, self.fingerprint = width, f"drawn-{width}"

    def save_weights(self, file: Path) -> None:
        """Writes none."""
        file.write_bytes(b"")


def make_bundle(path: Path, backbone: Any) -> Any:
    """A bundle with a drawn head of CATEGORIES categories."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import make_bundle as make

    from models.decisions.bundle import open_bundle

    tree = {f"category {at:04d}": f"branch {at // 20:02d}" for at in range(CATEGORIES)}
    make(path, backbone, threshold=0.3, tree=tree, hidden=(512, 512))
    return open_bundle(path)


def draw_known(images: int, each: int, folder: Path, width: int, pictures: list[bytes]) -> None:
    """A catalogue, and a store that has all of its photos."""
    from features.storage.store import Store

    write_catalogue(folder / "shop.bson", pictures, images, each)
    store, drawn = Store(folder / "W" / "store" / f"drawn-{width}"), photos(pictures, images)
    random = np.random.default_rng(0)
    for start in range(0, images, SHARD):
        count = min(SHARD, images - start)
        data = b"".join(hashlib.sha256(next(drawn)).digest() for _ in range(count))
        rows = random.random((count, width), np.float32).astype(np.float16)
        store.append(np.frombuffer(data, np.uint8).reshape(-1, 32), rows, "drawn")


class Clock:
    """Seconds on the wall, and of processor time of this process and its workers, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), _cpu()

    def read(self) -> np.ndarray:
        """(2,) float: both."""
        return np.array([time.monotonic() - self._wall, _cpu() - self._cpu])


def _cpu() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def _categorize(bundle: Any, folder: Path, output: str = "d.parquet") -> np.ndarray:
    """Seconds, as of a Clock, of categorizing the catalogue in the folder."""
    from pipeline.categorize.categorize import categorize
    from pipeline.job.config import Config

    clock = Clock()
    categorize([str(folder / "shop.bson")], bundle, folder / "W" / "store", str(folder / output), Config())
    return clock.read()


# The subjects


def new(options: argparse.Namespace, each: int, folder: Path) -> dict[str, Any]:
    """All photos are new."""
    from features.engines.backbones import load_backbone, start_tensorflow

    start_tensorflow()
    from ingest import draw_pictures

    from features.engines.choose import choose_engine
    from features.engines.pixels import read_pixels
    from features.records import pieces_of
    from features.views import WHOLE
    from pipeline.beam.process_pool import local_workers
    from pipeline.categorize import extract_new

    images = options.images // each * each
    pictures = draw_pictures(200, seed=0)
    backbone = load_backbone(options.backbone, "random")
    engine = choose_engine(backbone, batch=32)
    bundle = make_bundle(folder / "bundle", backbone)
    batches = list(read_pixels(pieces_of(pictures[:128], "drawn"), engine.size, engine.batch))
    rows = np.empty((len(batches) * engine.batch, engine.width), np.float16)
    engine.fill(batches, rows)

    def bare() -> np.ndarray:
        rounds = -(-images // len(rows))
        out = np.empty((rounds * len(rows), engine.width), np.float16)
        clock = Clock()
        engine.fill((batch for _ in range(rounds) for batch in batches), out)
        return clock.read() / len(out)

    held = mock.Mock(wraps=bundle, categorizer=bundle.categorizer, path=bundle.path, digest=bundle.digest,
                     fingerprint=bundle.fingerprint, caveats=(), backbone=lambda: backbone)  # fmt: skip
    ratios, rates, peers = [], [], []
    with local_workers(), mock.patch.object(extract_new, "engines_of", lambda *_: {WHOLE: engine}):
        for turn in range(options.repeats + 1):
            size = images if turn else 64  # the first one starts the workers
            write_catalogue(folder / "shop.bson", pictures, size // each * each, each)
            shutil.rmtree(folder / "W", ignore_errors=True)
            before = bare() if turn else np.zeros(2)
            seconds = _categorize(held, folder) / images
            if turn:
                peer = (before + bare()) / 2
                ratios.append(peer / seconds)
                rates.append(1 / seconds[0])
                peers.append(1 / peer[0])
    return {
        "images_a_product": each, "images": images, "engine": engine.name,
        "categorize_images_s": round(median(rates), 1), "engine_images_s": round(median(peers), 1),
        **_ratios("", ratios),
    }  # fmt: skip


def known(options: argparse.Namespace, each: int, folder: Path) -> dict[str, Any]:
    """The store has all photos."""
    from ingest import draw_pictures

    from features.engines.backbones import start_tensorflow

    start_tensorflow()
    from pipeline.beam.process_pool import local_workers

    images = options.known // each * each
    draw_known(images, each, folder, WIDTH, draw_pictures(200, seed=0))
    bundle = make_bundle(folder / "bundle", DrawnBackbone(WIDTH))
    loops = {
        "store": functools.partial(_store_alone, bundle, folder),
        "read": functools.partial(_plain_loop, bundle, folder, decides=False),
        "whole": functools.partial(_plain_loop, bundle, folder, decides=True),
    }
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in ("categorize", *loops)}
    with local_workers():
        for turn in range(options.repeats + 1):
            took = {"categorize": _categorize(bundle, folder)}
            took |= {name: loop() for name, loop in loops.items()}
            for name, one in took.items() if turn else ():  # the first one starts the workers
                seconds[name].append(one)
    ratios: dict[str, float] = {}
    for name in ("read", "whole"):
        pairs = zip(seconds[name], seconds["categorize"], strict=True)
        ratios |= _ratios(f"of_{name}_", [peer / own for peer, own in pairs])
    rates = {
        f"{name}_images_s": round(images / median(v[0] for v in values)) for name, values in seconds.items()
    }
    return {
        "images_a_product": each, "images": images, **rates, **ratios,
    }  # fmt: skip


def _ratios(name: str, ratios: list[np.ndarray]) -> dict[str, float]:
    """Medians of ratios of the wall and of processor time."""
    wall, cpu = (round(median(ratio[at] for ratio in ratios), 3) for at in (0, 1))
    return {f"{name}ratio": wall, f"{name}cpu_ratio": cpu}


def _store_alone(bundle: Any, folder: Path) -> np.ndarray:
    """Seconds of reading all bottlenecks in the store's order."""
    from features.storage.store import Store

    store = Store(folder / "W" / "store" / bundle.fingerprint)
    names = store.shards()
    counts = [len(digests) for _, digests, _ in store.each_shard()]
    clock = Clock()
    shard = np.repeat(np.arange(len(names)), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    rows = store.rows(names, shard, row)
    for start in range(0, len(rows), 8192):
        rows[slice(start, start + 8192)]
    return clock.read()


def _plain_loop(bundle: Any, folder: Path, *, decides: bool) -> np.ndarray:
    """Seconds of a loop without units, files, checks or account; in memory."""
    import pandas as pd

    from features.storage.store import Digests, Store
    from models.decisions.predictions import product_bounds
    from pipeline.sources.image import Segment
    from pipeline.sources.source import read_segment

    source = folder / "shop.bson"
    clock = Clock()
    ids, digests = [], []
    for image in read_segment(Segment(str(source), 0, source.stat().st_size)):
        ids.append(image.product_id)
        digests.append(hashlib.sha256(image.data).digest())
    store = Store(folder / "W" / "store" / bundle.fingerprint)
    found = store.find(Digests(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)))
    rows = store.rows(found.names, found.shard, found.row)
    if decides:
        product_id = np.array(ids, dtype=object)
        bounds = product_bounds(product_id)
        decided = bundle.categorizer.decide(product_id[bounds[:-1]], bundle.categorizer.predict(rows, bounds))
        pd.DataFrame(decided).to_parquet(folder / "plain.parquet")
    else:
        for start in range(0, len(rows), 8192):
            rows[slice(start, start + 8192)]
    return clock.read()


def memory(options: argparse.Namespace, rows: int, folder: Path) -> dict[str, Any]:
    """A known batch of so many products; its peak is measured from outside."""
    from features.engines.backbones import start_tensorflow

    start_tensorflow()
    bundle = make_bundle(folder / "bundle", DrawnBackbone(64))
    seconds = float(_categorize(bundle, folder)[0])
    return {"products": rows, "seconds": round(seconds, 1), "products_s": round(rows / seconds)}


SUBJECTS = {"new": new, "known": known, "memory": memory}

if __name__ == "__main__":
    main()
