"""Rejects: the table of the refused images, and the stop when they are too many."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import Stopped
from features.storage.paths import AnyPath, local, writing
from pipeline.ingest.check_images import CheckedImages
from pipeline.ingest.index import NO_IMAGE, Index

REJECTS = pa.schema(
    [("product_id", pa.string()), ("image_index", pa.int32())]
    + [(name, pa.string()) for name in ("source", "reason", "detail")]
)


def write_rejects(checked: CheckedImages, index: Index, rejects: AnyPath) -> int:
    """Writes the table of the refused images; returns how many they are."""
    start, refused = 0, ~index.good
    if NO_IMAGE in index.reason.values:
        refused &= index.reason.code != index.reason.values.index(NO_IMAGE)
    with writing(rejects) as working, pq.ParquetWriter(working, REJECTS) as writer:
        for table in checked.tables(["product_id", "file", "reason", "detail"]):
            here = slice(start, start + len(table))
            start += len(table)
            number = pa.array(index.image_index[here])
            rows = table.append_column("image_index", number).filter(pa.array(refused[here]))
            if len(rows):
                rows = rows.append_column("source", checked.names(rows["file"]))
                writer.write_table(rows.select(REJECTS.names).cast(REJECTS))
    return sum(index.reasons().values())


def refuse_flood(index: Index, max_rejected: float, rejects: AnyPath) -> None:
    """Stops when more than `max_rejected` of the images of an index are rejected; see `refuse_flood_of`."""
    refuse_flood_of(index.reasons(), index.images(), max_rejected, rejects)


def refuse_flood_of(reasons: Mapping[str, int], images: int, max_rejected: float, rejects: AnyPath) -> None:
    """Stops when more than `max_rejected` of the images are rejected.

    Args:
        reasons: rejected images by reason, the most common first.
        images: of all.
        max_rejected: share.
        rejects: the table of all rejected ones.

    Raises:
        Stopped: with the three most common reasons, and an example of the first.
    """
    rejected = sum(reasons.values())
    if rejected <= max_rejected * images:
        return
    common = ", ".join(f"{reason} {count:,}" for reason, count in list(reasons.items())[:3])
    table = pq.read_table(local(rejects), filters=[("reason", "==", next(iter(reasons)))])
    raise Stopped(
        f"{rejected:,} of {images:,} images rejected ({common}), for example {table['source'][0]}: "
        f"{table['detail'][0]}; expected at most {max_rejected:.0%}; {rejects} lists them: "
        "correct the source, or raise ingest.max_rejected"
    )
