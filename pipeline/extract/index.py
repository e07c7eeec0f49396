"""The index of a run into the store: where each image's bottleneck is, and the shards it refers to.

index.parquet   image_digest (32 bytes), product_id, image_index, split, shard, row
                of another view than the whole photo its name is before shard and row, as in flip_shard,
                256-center_row; sorted by product_id, image_index
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath, writing
from features.storage.store import Locations, digest_array, digests_of
from features.views import View
from pipeline.job.summaries import column_of

INDEX_ROWS = 2**18  # rows of the index made at a time
READ_ROWS = 2**16  # hex digests decoded at a time; 2**20 of them took 0.5 GB
INDEX = pa.schema(
    [
        ("image_digest", pa.binary(32)),
        ("product_id", pa.string()),
        ("image_index", pa.int32()),
        ("split", pa.string()),
    ]
)


def read_digests(images: Path) -> np.ndarray:
    """(n, 32) uint8: the column image_digest of a Parquet file, hex or binary."""
    with pq.ParquetFile(images) as file:
        digests, done = np.empty((file.metadata.num_rows, 32), np.uint8), 0
        for batch in file.iter_batches(READ_ROWS, columns=["image_digest"]):
            digests[done : done + len(batch)] = digests_of(pa.chunked_array([batch.column(0)]))
            done += len(batch)
    return digests


def write_index(
    images: Path, digests: np.ndarray, locations: Mapping[View, Locations], file: AnyPath
) -> None:
    """Writes the index a piece at a time: as one table 20 million rows would take 3 GB."""
    rows = pq.read_table(images, columns=["product_id", "image_index", "split"], read_dictionary=["split"])
    rows = rows.combine_chunks()
    order = pc.sort_indices(rows, sort_keys=[("product_id", "ascending"), ("image_index", "ascending")])
    schema = INDEX
    for view in locations:
        schema = schema.append(pa.field(column_of(view, "shard"), pa.string()))
        schema = schema.append(pa.field(column_of(view, "row"), pa.int32()))
    with writing(file) as working, pq.ParquetWriter(working, schema) as writer:
        for start in range(0, len(order), INDEX_ROWS):
            chosen = order.slice(start, INDEX_ROWS)
            numbers = chosen.to_numpy()
            columns = {name: rows[name].take(chosen) for name in rows.column_names}
            columns["image_digest"] = digest_array(digests[numbers])
            for view, found in locations.items():
                names = pa.array(found.names, pa.string())
                columns[column_of(view, "shard")] = names.take(pa.array(found.shard[numbers]))
                columns[column_of(view, "row")] = pa.array(found.row[numbers])
            writer.write_table(pa.table({name: columns[name] for name in schema.names}).cast(schema))


def shards_of(bottlenecks: Artifact, view: View) -> set[str]:
    """Names of the shards of a view that the index refers to."""
    file, column, names = bottlenecks.file("index.parquet"), column_of(view, "shard"), set[str]()
    if column in pq.read_schema(file).names:
        with pq.ParquetFile(file, read_dictionary=[column]) as index:
            for batch in index.iter_batches(INDEX_ROWS, columns=[column]):
                names.update(batch.column(0).unique().to_pylist())
    return names
