"""Writing: the planned rows of one shard number → a TFRecord shard of every part, and their rows.

train-00000-of-00008.tfrecord  val-…  test-…   records in an order of their own
_images/unit-00000.parquet                     their rows of images.parquet, and the digests of the files
"""

import hashlib
import json
from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.images.normalise import normalise
from features.images.refusal import Limits
from features.product import ProductImage
from features.records import frame, serialise
from features.storage.paths import AnyPath, any_path, writing
from pipeline.beam.run_units import write_table
from pipeline.ingest.check_images import LOCATION
from pipeline.sources.image import ImageKey, read_images, refuse_changed_container

SHARDS_A_BATCH = 4  # a writer reads all four; with one, 14 M images would take 200,000 batches
DIGESTS = b"digests"  # in the metadata of a writer's rows: JSON, ShardDigest by name of the shard
LOST = b"lost"  # likewise: file and offset of images that are not what they were when they were checked
PIECE = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "split", "seller", "file")]
    + [("image_index", pa.int32()), ("offset", pa.int64()), ("length", pa.int32())]
    + [
        ("checksum", pa.uint32()),
        ("image_digest", pa.binary(32)),
        ("kept", pa.bool_()),
        ("placeholder", pa.bool_()),
        ("shard", pa.int32()),
    ]
)
IMAGES = pa.schema(
    [(name, pa.string()) for name in ("product_id", "split", "image_digest", "file")]
    + [
        ("image_index", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("placeholder", pa.bool_()),
    ]
)


class ShardDigest(TypedDict):
    """A file's entry in the manifest."""

    size: int  # bytes
    sha256: str


def write_shards(
    number: int,
    done: AnyPath,
    *,
    pieces: list[str],
    work: str,
    parts: list[str],
    count: int,
    seed: int,
    limits: Limits,
) -> None:
    """Writes one shard of every part, in an order of its own, and the rows of their images to `done`."""
    images = _read_plan(pieces, number)
    written = [image and frame(serialise(image)) for image in _product_images(images, limits)]
    there = pa.array([record is not None for record in written], pa.bool_())
    lost = images.filter(pc.invert(there)).select(["file", "offset"]).to_pylist()
    images, records = images.filter(there), [record for record in written if record is not None]
    split = images["split"].to_numpy()
    order = np.random.default_rng([seed, number]).permutation(len(records))
    digests, tables = dict[str, ShardDigest](), []
    for part in parts:
        name = f"{part}-{number:05d}-of-{count:05d}.tfrecord"
        chosen = order[split[order] == part]
        digests[name] = _write_shard([records[row] for row in chosen], any_path(work) / name)
        tables.append(_image_rows(images.take(pa.array(chosen)), [len(records[row]) for row in chosen], name))
    table = pa.concat_tables(tables).replace_schema_metadata(
        {DIGESTS: json.dumps(digests), LOST: json.dumps(lost)}
    )
    write_table(table, done)


def notes_of(rows: pa.Table) -> tuple[dict[str, ShardDigest], set[ImageKey]]:
    """What `write_shards` notes beside the rows: the digests of its shards, and the images that it lost."""
    digests: dict[str, ShardDigest] = json.loads(rows.schema.metadata[DIGESTS])
    lost = {(row["file"], row["offset"]) for row in json.loads(rows.schema.metadata[LOST])}
    return digests, lost


def _read_plan(pieces: list[str], number: int) -> pa.Table:
    """The planned rows of a shard."""
    batches = []
    for piece in pieces:
        with any_path(piece).open("rb") as file:
            batch = pa.ipc.open_file(file).get_batch(number // SHARDS_A_BATCH)
            batches.append(batch.filter(pc.equal(batch["shard"], number)))
    return pa.Table.from_batches(batches, PIECE)


def _product_images(images: pa.Table, limits: Limits) -> Iterator[ProductImage | None]:
    """The images of planned rows as strict JPEGs, in the source's order; None for one that has changed."""
    names = ("product_id", "image_index", "category", "split", "seller", "image_digest", "kept", "file")
    rows = zip(*(images[name].to_pylist() for name in names), strict=True)
    data = read_images(*(images[name].to_pylist() for name in LOCATION))
    for (product_id, number, category, split, seller, digest, kept, file), image in zip(
        rows, data, strict=True
    ):
        if image is None:
            refuse_changed_container(file)
            yield None
            continue
        jpeg = image if kept else normalise(image, limits).jpeg
        yield ProductImage(product_id, number, category, split, seller or "", digest.hex(), jpeg)


def _write_shard(records: list[bytes], shard: AnyPath) -> ShardDigest:
    """Writes a shard; returns its size and sha256, so that it need not be read again for them."""
    digest = hashlib.sha256()
    with writing(shard) as working, open(working, "wb") as file:
        for start in range(0, len(records), 256):  # at a time: a write for each record takes longer
            piece = b"".join(records[start : start + 256])
            digest.update(piece)
            file.write(piece)
    return {"size": sum(map(len, records)), "sha256": digest.hexdigest()}


def _image_rows(images: pa.Table, lengths: list[int], shard: str) -> pa.Table:
    """The rows of images.parquet of one shard."""
    length = np.array(lengths, dtype=np.int64)
    columns = {name: images[name] for name in ("product_id", "split", "image_index", "placeholder")} | {
        "image_digest": pa.array(
            [digest.hex() for digest in images["image_digest"].to_pylist()], pa.string()
        ),
        "file": pa.array([shard] * len(length), pa.string()),
        "offset": np.cumsum(length) - length,
        "length": length,
    }
    return pa.table(columns).select(IMAGES.names).cast(IMAGES)
