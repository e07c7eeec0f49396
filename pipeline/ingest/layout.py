"""The layout: which shard each image goes to, as the writers and people read it.

products.parquet  duplicates.parquet
_plan/piece-0000.arrow   what the writers need, a batch for SHARDS_A_BATCH shards
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.product import SPLITS
from features.storage.paths import AnyPath, writing
from pipeline.ingest.check_images import CHECKED, CheckedImages
from pipeline.ingest.duplicates import (
    SharedDigests,
    SharedImages,
    duplicates_schema,
    duplicates_table,
    find_shared,
)
from pipeline.ingest.index import Index
from pipeline.ingest.split_plan import Products, assign_shards
from pipeline.ingest.write_records import PIECE, SHARDS_A_BATCH
from pipeline.job.config import IngestSettings

PIECE_ROWS = 100_000  # rows of the plan in memory at a time, about 150 bytes each
TABLE_ROWS = 2**20  # rows of a table built at a time


@dataclass(frozen=True)
class RecordsLayout:
    """What becomes of every checked row (n,), as far as the writers need it."""

    shard: np.ndarray  # (n,) int32, number of its shard; -1 where the row is not taken
    shards: int  # of each part
    product: np.ndarray  # (n,) int32, position among the products
    image_index: np.ndarray  # (n,) int32
    placeholder: np.ndarray  # (n,) bool
    shared: SharedImages


def lay_out(index: Index, products: Products, settings: IngestSettings, seed: int) -> RecordsLayout:
    """The shard of every row, and the images that several products share."""
    shard, shards = assign_shards(index, products, seed, settings.unit_bytes)
    shared, placeholder = find_shared(index, settings.placeholder_products)
    return RecordsLayout(shard, shards, index.product, index.image_index, placeholder, shared)


def write_plan(checked: CheckedImages, products: Products, layout: RecordsLayout, work: AnyPath) -> int:
    """Writes products, duplicates, and the planned rows in pieces for the writers.

    Returns:
        Bytes that the records will take at least: of the images that are kept as they are.
    """
    _write_tables(products.table, len(products.split), products.schema, work / "products.parquet")
    digests, kept = _write_pieces(checked, products, layout, work / "_plan")

    def duplicates(start: int, stop: int) -> pa.Table:
        return duplicates_table(layout.shared, digests, layout.placeholder, products, slice(start, stop))

    schema = duplicates_schema(products)
    _write_tables(duplicates, len(layout.shared.row), schema, work / "duplicates.parquet")
    return kept


def _write_tables(build: Callable[[int, int], pa.Table], rows: int, schema: pa.Schema, file: AnyPath) -> None:
    """Writes a table that `build` gives piece by piece, from rows `start` to `stop`."""
    with writing(file) as working, pq.ParquetWriter(working, schema) as writer:
        for start in range(0, rows, TABLE_ROWS):
            writer.write_table(build(start, min(start + TABLE_ROWS, rows)).cast(schema))


def _write_pieces(
    checked: CheckedImages, products: Products, layout: RecordsLayout, folder: AnyPath
) -> tuple[SharedDigests, int]:
    """Writes the planned rows as Arrow files; returns digests of shared images, and bytes of kept ones."""
    digests, kept = SharedDigests(layout.shared), 0
    names = [
        name for name in PIECE.names if name in CHECKED.names and name not in ("category", "split", "seller")
    ]
    folder.mkdir(exist_ok=True)
    for piece in folder.glob("piece-*"):
        piece.unlink()
    start, written, waiting = 0, 0, list[pa.Table]()
    for table in checked.tables(names):
        digests.see(start, table["image_digest"])
        waiting.append(_planned(table, start, products, layout))
        kept += pc.sum(waiting[-1].filter(waiting[-1]["kept"])["length"]).as_py() or 0
        start += len(table)
        if start == len(layout.shard) or sum(map(len, waiting)) > PIECE_ROWS:
            _write_piece(pa.concat_tables(waiting), layout.shards, folder / f"piece-{written:04d}.arrow")
            written += 1
            waiting.clear()
    return digests, kept


def _planned(table: pa.Table, start: int, products: Products, layout: RecordsLayout) -> pa.Table:
    """The taken rows of a table of checked rows that begins at row `start`, with what was decided of them."""
    taken = start + np.flatnonzero(layout.shard[start : start + len(table)] >= 0)
    product = layout.product[taken]
    columns = {name: table[name].take(pa.array(taken - start)) for name in table.column_names} | {
        "category": products.category.only(product).texts(),
        "split": pa.array(SPLITS).take(pa.array(products.split[product])),
        "seller": products.seller.only(product).texts(),
        "image_index": layout.image_index[taken],
        "placeholder": layout.placeholder[taken],
        "shard": layout.shard[taken],
    }
    return pa.table(columns)


def _write_piece(rows: pa.Table, shards: int, piece: AnyPath) -> None:
    """Writes planned rows as an Arrow file, sorted by shard, a batch for every SHARDS_A_BATCH shards."""
    shard = rows["shard"].to_numpy()
    order = np.argsort(shard, kind="stable")
    rows = rows.select(PIECE.names).take(pa.array(order)).combine_chunks()
    ends = np.arange(SHARDS_A_BATCH, shards + SHARDS_A_BATCH, SHARDS_A_BATCH)
    bounds = [0, *np.searchsorted(shard[order], ends).tolist()]
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with writing(piece) as working, pa.ipc.new_file(working, PIECE, options=options) as writer:
        for first, last in itertools.pairwise(bounds):
            batches = rows.slice(first, last - first).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], PIECE))
