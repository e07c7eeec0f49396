"""Keeps the photos of a batch as TFRecords, for those who want to see or use them later.

    DIR/  part-00000.tfrecord …   records (features/records.py) without category, by product
          images.parquet          product_id, image_index, image_digest, file, offset, length
          manifest.json

A unit of work is a part. Photos are read and decoded once more: what decisions need is not their JPEGs.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.images.normalise import normalise
from features.images.refusal import Limits, Refused
from features.product import NONE, ProductImage
from features.records import frame, serialise
from features.storage.artifact import begin, find_artifact, partial_of, seal
from features.storage.paths import AnyPath, absolute, any_path, writing
from pipeline.beam.run_units import run_units, unit_file, write_table
from pipeline.categorize.sort_rows import SortedRows, read_part
from pipeline.categorize.targets import PHOTOS
from pipeline.ingest.check_images import image_limits
from pipeline.ingest.index import image_indices
from pipeline.job.config import IngestSettings
from pipeline.job.progress import log
from pipeline.sources.image import read_images, refuse_changed_container

VERSION, ROWS = 1, "_rows"
KEPT = pa.schema(
    [
        ("product_id", pa.string()),
        ("image_index", pa.int32()),
        ("image_digest", pa.binary(32)),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


@dataclass(frozen=True)
class _Job:
    """What workers have to know."""

    pieces: list[str]
    refused: str | None  # as in SortedRows
    out: str
    limits: Limits


def keep_records(
    rows: SortedRows, settings: IngestSettings, out: AnyPath, job: str, beam: tuple[str, ...]
) -> None:
    """Writes the readable photos of a batch into the directory `out`, unless the same are there.

    Args:
        rows: sorted; those of known images have a location, too.
        settings: the section [ingest].
        out: of the TFRecords.
        job: digest of what they are made from.
        beam: Beam's own options.
    """
    made_from = {"job": job}
    found = find_artifact(out)
    if found and found.kind == PHOTOS and found.made_from == made_from:
        return
    work = begin(partial_of(out), made_from)
    pieces = [str(absolute(piece)) for piece in rows.pieces]
    refused = None if rows.refused is None else str(absolute(rows.refused))
    do = functools.partial(write_part, job=_Job(pieces, refused, str(absolute(work)), image_limits(settings)))
    run_units("keep records", list(range(rows.parts)), do, work / ROWS, beam)
    images = 0
    with writing(work / "images.parquet") as working, pq.ParquetWriter(working, KEPT) as writer:
        for number in range(rows.parts):
            with unit_file(work / ROWS, number).open("rb") as file:
                table = pq.read_table(file)
            images += len(table)
            writer.write_table(table)
    seal(out, kind=PHOTOS, version=VERSION, made_from=made_from, summary={"images": images})
    log.info("records: %s images in %s", f"{images:,}", out)


def write_part(number: int, done: AnyPath, *, job: _Job) -> None:
    """Writes the photos of a part and their rows; one that has changed meanwhile is left out."""
    refused = None if job.refused is None else any_path(job.refused)
    rows = read_part([any_path(piece) for piece in job.pieces], number, refused)
    codes = rows["product_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    rows = rows.append_column("image_index", pa.array(image_indices(codes)))
    rows = rows.filter(pc.and_(pc.equal(rows["reason"], ""), pc.not_equal(rows["product_id"], "")))
    location = [rows[name].to_pylist() for name in ("file", "offset", "length", "checksum")]
    kept: list[int] = []
    lengths: list[int] = []
    name = f"part-{number:05d}.tfrecord"
    with writing(any_path(job.out) / name) as working, open(working, "wb") as file:
        columns = [rows[column].to_pylist() for column in ("product_id", "image_index", "image_digest")]
        photos = read_images(*location)
        for at, (photo, *values) in enumerate(zip(photos, *columns, strict=True)):
            if photo is None:
                refuse_changed_container(location[0][at])
                continue
            try:
                jpeg = normalise(photo, job.limits).jpeg
            except Refused:  # the limits were wider when the store took it
                continue
            product_id, index, digest = values
            record = ProductImage(product_id, index, "", NONE, "", digest.hex(), jpeg)
            kept.append(at)
            lengths.append(file.write(frame(serialise(record))))
    offsets = np.array([0, *itertools.accumulate(lengths)], np.int64)[:-1]
    table = rows.take(pa.array(kept, pa.int64())).select(KEPT.names[:3])
    for column, value in (("file", [name] * len(kept)), ("offset", offsets), ("length", lengths)):
        table = table.append_column(column, pa.array(value, KEPT.field(column).type))
    write_table(table.cast(KEPT), done)
