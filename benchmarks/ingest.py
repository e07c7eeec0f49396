"""Ingest beside what one would write instead: images a second and peak memory, on files like Cdiscount's.

    .venv/bin/python benchmarks/ingest.py [--small-gb 0.3] [--large-gb 2] [--repeats 3] [--scratch DIR]

    shelfmark  the command `shelfmark ingest FILE`, all of it: two passes, digests, exact split, manifest
    loop       one process: bson, strict decoding, tf.train.Example, TFRecordWriter; what does not decode is
               skipped; the split is a hash of the product's id, so that one pass is enough (inexact)
    beam       FnApiRunner in memory, an image as element: decode, Example, WriteToTFRecord(num_shards=16);
               its memory grows with the input (6.8 bytes a byte), so it gets the small file only

Every subject is a process of its own, they take turns, and the records of all must be the same images, byte
by byte, except those that only shelfmark can repair. Start-up is measured with a tiny file: the rate "without
start-up" is of the difference between the whole file and the tiny one. shelfmark runs with
ingest.min_products=1, because the others drop no category. Writes results/ingest.json.
"""

import argparse
import json
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import MB, MeasuredCommand, conditions, median, run, table, verdict

RESULTS = Path(__file__).parent / "results" / "ingest.json"
SUBJECTS = ("shelfmark", "loop", "beam")
PACKAGES = ("apache-beam", "tensorflow", "simplejpeg", "pymongo", "numpy", "pyarrow")

SIDE = 180  # pixels
PICTURES = 2500  # distinct ones; a comment makes them as many images as are wanted
CATEGORIES = 5270
IMAGES = (0.5, 0.3, 0.15, 0.05)  # shares of products with 1 to 4 images: 1.75 on average
DUPLICATES = 0.3  # share of images that are exactly another one
DAMAGED = 100  # one image in so many
JFIF_END = 20  # bytes of SOI and JFIF header, after which a comment may stand


def main() -> None:
    """Draws the files, runs the subjects in turns, prints a table and verdicts, writes the results."""
    options = _options()
    if options.subject:
        SUBJECT[options.subject](*map(Path, options.arguments))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        results = compare(Path(folder), options.small_gb, options.large_gb, options.repeats)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small-gb", type=float, default=0.3)
    parser.add_argument("--large-gb", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="a directory with room for 2.5 × the large file")
    parser.add_argument("--subject", choices=sorted(SUBJECT), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


# The files


def draw(file: Path, size: float, pictures: list[bytes], seed: int) -> dict[str, int]:
    """Writes a BSON file of about `size` bytes; returns how many products and images, and damaged ones."""
    import bson

    random = np.random.default_rng(seed)
    keys: list[int] = []
    products = written = 0
    with open(file, "wb") as out:
        while written < size:
            count = int(random.choice(4, p=IMAGES)) + 1
            for copy, earlier in random.random((count, 2)):
                known = keys and copy < DUPLICATES
                keys.append(keys[int(earlier * len(keys))] if known else len(keys))
            images = [{"picture": _image(pictures, key)} for key in keys[-count:]]
            product = {"_id": products, "category_id": _category(random), "imgs": images}
            written += out.write(bson.encode(product))
            products += 1
    damaged = sum(key % DAMAGED == DAMAGED // 2 for key in keys)
    return {"bytes": written, "products": products, "images": len(keys), "damaged": damaged}


def _category(random: np.random.Generator) -> int:
    """80 % of the products in 20 % of the categories."""
    few = CATEGORIES // 5
    common = random.random() < 0.8
    return 1_000_000_000 + int(random.integers(few) if common else random.integers(few, CATEGORIES))


def _image(pictures: list[bytes], key: int) -> bytes:
    """The image of that key: a picture with a comment of its own, or damaged in one of three ways."""
    jpeg = pictures[key % len(pictures)]
    image = jpeg[:JFIF_END] + b"\xff\xfe\0\x0a" + struct.pack(">Q", key) + jpeg[JFIF_END:]
    if key % DAMAGED != DAMAGED // 2:
        return image
    damage, half = key // DAMAGED % 3, len(image) // 2
    if damage == 0:
        return image[:half]
    if damage == 1:
        return bytes(SIDE)
    return image[:half] + b"\xff\xd3" + image[half + 2 :]  # strict decoding refuses it, Pillow reads it


def draw_pictures(count: int, seed: int) -> list[bytes]:
    """JPEGs like photos of products: noise at every scale, as in nature, on a shape before a plain ground."""
    import simplejpeg

    random = np.random.default_rng(seed)
    return [
        simplejpeg.encode_jpeg(_pixels(random), 85, colorspace="RGB", colorsubsampling="420")
        for _ in range(count)
    ]


def _pixels(random: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    from PIL import Image, ImageDraw

    texture = np.zeros((SIDE, SIDE, 3), np.float32)
    for cells, contrast in ((3, 50), (8, 30), (20, 25), (50, 20), (SIDE, 12)):
        colours = 3 if cells < 10 else 1  # what is fine differs in brightness, little in colour
        noise = random.integers(256, size=(cells, cells, colours), dtype=np.uint8)
        coarse = Image.fromarray(noise.repeat(3 // colours, axis=2))
        smooth = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        texture += (np.asarray(smooth, np.float32) - 128) * (contrast * random.uniform(0.2, 1.6) / 128)
    mask = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(mask)
    pen.ellipse((*random.integers(5, 60, 2).tolist(), *random.integers(110, 175, 2).tolist()), fill=255)
    shade = Image.new("RGB", (SIDE, SIDE))
    pen_in_colour = ImageDraw.Draw(shade)
    for _ in range(6):
        corners = [tuple(corner) for corner in random.integers(0, SIDE, (4, 2)).tolist()]
        pen.polygon(corners, fill=255)
        pen_in_colour.polygon(corners, fill=tuple(random.integers(0, 120, 3).tolist()))
    pixels = np.where(np.asarray(mask)[..., None] > 0, texture + 90 + np.asarray(shade), 250)
    return np.clip(pixels, 0, 255).astype(np.uint8)


# The subjects


def loop(file: Path, out: Path) -> None:
    """A plain loop: one pass, one process, a writer a part."""
    import bson
    import tensorflow as tf

    out.mkdir()
    writers = {part: tf.io.TFRecordWriter(str(out / f"{part}.tfrecord")) for part in ("train", "val", "test")}
    with open(file, "rb") as stream:
        for document in bson.decode_file_iter(stream):
            for image in _images_of(document):
                if _decodes(image):
                    writers[image["split"]].write(_example(image))
    for writer in writers.values():
        writer.close()


def beam(file: Path, out: Path) -> None:
    """The pipeline that Beam's own examples suggest: an image as element."""
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with apache_beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        ranges = pipeline | apache_beam.Create(list(_ranges(file)))
        examples = ranges | apache_beam.FlatMap(_images_in) | apache_beam.Filter(_decodes)
        write = apache_beam.io.WriteToTFRecord(str(out / "all"), file_name_suffix=".tfrecord", num_shards=16)
        _ = examples | apache_beam.Map(_example) | write


def _ranges(file: Path, size: int = 16 * 2**20) -> Iterator[tuple[str, int, int]]:
    """Ranges of whole documents, by their length prefixes."""
    start = end = 0
    with open(file, "rb") as stream:
        while prefix := stream.read(4):
            end = stream.seek(end + struct.unpack("<i", prefix)[0])
            if end - start >= size:
                yield str(file), start, end
                start = end
    if end > start:
        yield str(file), start, end


def _images_in(part: tuple[str, int, int]) -> Iterator[dict[str, Any]]:
    import bson

    file, start, stop = part
    with open(file, "rb") as stream:
        stream.seek(start)
        documents = bson.decode_file_iter(stream)
        while stream.tell() < stop:
            yield from _images_of(next(documents))


def _images_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    product = str(document["_id"])
    draw = zlib.crc32(product.encode()) % 10
    split = "test" if draw == 0 else "val" if draw == 1 else "train"
    for index, image in enumerate(document["imgs"]):
        yield {
            "product_id": product, "category": str(document["category_id"]), "split": split,
            "image_index": index, "image": image["picture"],
        }  # fmt: skip


def _decodes(image: dict[str, Any]) -> bool:
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(image["image"])
    except ValueError:
        return False
    return True


def _example(image: dict[str, Any]) -> bytes:
    import tensorflow as tf

    def text(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {name: text(image[name].encode()) for name in ("product_id", "category", "split")}
    features["image"] = text(image["image"])
    features["image_index"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[image["image_index"]]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def accepted(out: Path, _: Path) -> None:
    """Prints a line a record: product, position and checksum of the image."""
    import tensorflow as tf

    spec = {
        "product_id": tf.io.FixedLenFeature([], tf.string), "image": tf.io.FixedLenFeature([], tf.string),
        "image_index": tf.io.FixedLenFeature([], tf.int64),
    }  # fmt: skip
    files = sorted(str(file) for file in out.rglob("*.tfrecord"))
    for batch in tf.data.TFRecordDataset(files).batch(256):
        read = tf.io.parse_example(batch, spec)
        columns = (read[name].numpy().tolist() for name in ("product_id", "image_index", "image"))
        for product, index, image in zip(*columns, strict=True):
            print(product.decode(), index, zlib.crc32(image))


SUBJECT = {"loop": loop, "beam": beam, "accepted": accepted}


def _command(subject: str, source: Path, out: Path) -> list[str]:
    if subject == "shelfmark":
        program = Path(sys.executable).with_name("shelfmark")
        ingest = [str(program), "ingest", str(source), "--workspace", str(out)]
        return [*ingest, "--set", "ingest.min_products=1"]
    return [sys.executable, __file__, "--subject", subject, str(source), str(out)]


# The comparison


def compare(folder: Path, small_gb: float, large_gb: float, repeats: int) -> dict[str, Any]:
    """Runs everything; returns what the results file holds."""
    drawn = {}
    pictures = draw_pictures(PICTURES, seed=0)
    for seed, (name, size) in enumerate({"tiny": 1e-3, "small": small_gb, "large": large_gb}.items()):
        drawn[name] = draw(folder / f"{name}.bson", size * 1e9, pictures, seed)
        print(f"{name}: " + ", ".join(f"{value:,} {what}" for what, value in drawn[name].items()), flush=True)
    runs: dict[tuple[str, str], list[MeasuredCommand]] = {}
    records: dict[tuple[str, str], set[str]] = {}
    for name, subject in _turns(repeats):
        out = folder / "out"
        done = run(_command(subject, folder / f"{name}.bson", out))
        spent = f"{done.seconds:.1f} s, {done.cpu_seconds:.1f} s of CPU, {done.peak / MB:.0f} MB"
        print(f"{name} {subject}: {spent}", flush=True)
        runs.setdefault((name, subject), []).append(done)
        if (name, subject) not in records:
            records[name, subject] = _records(out)
        shutil.rmtree(out)
    repaired = {name: _same_images(records, name, counts["damaged"]) for name, counts in drawn.items()}
    figures = _figures(runs, {name: counts["images"] for name, counts in drawn.items()})
    print(_table(figures))
    return {
        "files": drawn,
        "mended_by_shelfmark": repaired,
        "figures": figures,
        "verdicts": _verdicts(figures),
    }


def _turns(repeats: int) -> list[tuple[str, str]]:
    """Files and subjects, one after the other; another one begins every time."""
    turns = [
        (name, SUBJECTS[(repeat + turn) % len(SUBJECTS)])
        for repeat in range(repeats)
        for name in ("tiny", "small")
        for turn in range(len(SUBJECTS))
    ]
    return [*turns, ("large", "shelfmark"), ("large", "loop")]


def _records(out: Path) -> set[str]:
    lines = run(_command("accepted", out, out)).output.splitlines()
    if len(set(lines)) < len(lines):
        raise RuntimeError("a record is there twice")
    return set(lines)


def _same_images(records: dict[tuple[str, str], set[str]], name: str, damaged: int) -> int:
    """Checks that all subjects took the same images of a file; returns how many only shelfmark has.

    Raises:
        RuntimeError: they differ in more than the damaged ones.
    """
    ours, loop = records[name, "shelfmark"], records[name, "loop"]
    if records.get((name, "beam"), loop) != loop:
        raise RuntimeError(f"{name}: beam and loop took different images")
    if not loop <= ours or len(ours - loop) > damaged:
        raise RuntimeError(
            f"{name}: shelfmark lacks {len(loop - ours)} images of the loop's {len(loop)} and has "
            f"{len(ours - loop)} that it lacks; expected none, and at most the {damaged} damaged ones"
        )
    return len(ours - loop)


def _figures(
    runs: dict[tuple[str, str], list[MeasuredCommand]], images: dict[str, int]
) -> list[dict[str, Any]]:
    """A row for each file and subject."""
    rows = []
    for (name, subject), done in runs.items():
        if name == "tiny":
            continue
        tiny = [round(one.seconds, 2) for one in runs["tiny", subject]]
        seconds = median(one.seconds for one in done)
        between = (images[name] - images["tiny"]) / (seconds - median(tiny))
        rows.append(
            {
                "file": name, "subject": subject, "seconds": [round(one.seconds, 2) for one in done],
                "cpu_seconds": [round(one.cpu_seconds, 2) for one in done], "tiny_seconds": tiny,
                "images_per_second": round(images[name] / seconds, 1),
                "images_per_second_without_start_up": round(between, 1),
                "peak_mb": [round(one.peak / MB, 1) for one in done],
                "processes": max(one.processes for one in done),
            }
        )  # fmt: skip
    return rows


def _table(figures: list[dict[str, Any]]) -> str:
    header = ["file, subject", "seconds", "CPU s", "images/s", "without start-up", "peak MB", "processes"]
    return table(
        header,
        [
            [
                f"{row['file']}, {row['subject']}", f"{median(row['seconds']):.1f}",
                f"{median(row['cpu_seconds']):.1f}", f"{row['images_per_second']:,.0f}",
                f"{row['images_per_second_without_start_up']:,.0f}",
                f"{max(row['peak_mb']):,.0f}", row["processes"],
            ]
            for row in figures
        ],
    )  # fmt: skip


def _verdicts(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures against their targets; each is printed."""
    found = {(row["file"], row["subject"]): row for row in figures}
    ours = {name: found[name, "shelfmark"] for name in ("small", "large")}
    verdicts = []
    for name, other, target in (("small", "loop", 1.3), ("small", "beam", 2.5), ("large", "loop", 1.3)):
        for rate in ("images_per_second", "images_per_second_without_start_up"):
            what = f"{name} file, {rate.replace('_', ' ')}, shelfmark / {other}"
            if min(ours[name][rate], found[name, other][rate]) <= 0:
                raise RuntimeError(
                    f"{what}: start-up took longer than the work; give larger files, stop other jobs"
                )
            ratio = ours[name][rate] / found[name, other][rate]
            verdicts.append(verdict(what, ratio, target, " ×", at_least=True))
    small, large = (max(ours[name]["peak_mb"]) for name in ("small", "large"))
    verdicts.append(verdict("small file, peak memory of shelfmark", small, 600, " MB"))
    verdicts.append(verdict("large file, peak memory of shelfmark", large, 600, " MB"))
    verdicts.append(verdict("peak memory, large file / small file", large / small, 1.1, " ×"))
    return verdicts


if __name__ == "__main__":
    main()
