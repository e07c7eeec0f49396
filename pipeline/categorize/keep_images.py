"""Which images a product of the batch had: by them a correction finds its bottlenecks in the store.

    _done/part-00000.images.parquet                       IMAGES of a part
    WORKSPACE/categorize/<of the output>/images.parquet   IMAGES of the batch, a row group a part or so

Sorted by product; the images that were decided on, in the sources' order, each once. A table of a database
also holds products of earlier batches, and so does its images.parquet; that of a file or folder holds the
batch.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.storage.paths import AnyPath, writing
from features.storage.store import digest_array

NAME = "images.parquet"
IMAGES = pa.schema([("product_id", pa.string()), ("image_digest", pa.binary(32))])
ROWS = 2**15  # of earlier images, in memory at a time


def write_images(product_id: np.ndarray, digests: np.ndarray, file: AnyPath) -> None:
    """Writes the images of a part: (n,) str, sorted, and (n, 32) uint8."""
    with writing(file) as working, _writer(working) as writer:
        writer.write_table(
            pa.table([pa.array(product_id, pa.string()), digest_array(digests)], schema=IMAGES)
        )


def join_images(parts: list[AnyPath], file: AnyPath, *, keep: bool) -> None:
    """Joins the images of all parts; one part at a time is in memory.

    Args:
        parts: files of `write_images`, in the order of the products.
        file: of the result; it is there whole or not at all.
        keep: the products of the file that is there stay, unless a part has them, too.
    """
    earlier = _Earlier(file) if keep and file.is_file() else None
    with writing(file) as working, _writer(working) as writer:
        for part in parts:
            with part.open("rb") as opened:
                table = pq.read_table(opened)
            for piece in earlier.merged(table) if earlier and len(table) else [table]:
                writer.write_table(piece)
        for piece in earlier.rest() if earlier else ():
            writer.write_table(piece)


def _writer(file: object) -> pq.ParquetWriter:
    """Ids in order share their beginnings; digests cannot be compressed."""
    return pq.ParquetWriter(
        file, IMAGES, use_dictionary=False, column_encoding={"product_id": "DELTA_BYTE_ARRAY"},
        compression={"product_id": "zstd", "image_digest": "none"}, write_statistics=["product_id"],
    )  # fmt: skip


class _Earlier:
    """Images of earlier batches, read on as far as a part needs them."""

    def __init__(self, file: AnyPath) -> None:
        self._pieces = self._read(file)
        self._waiting = next(self._pieces, IMAGES.empty_table())

    @staticmethod
    def _read(file: AnyPath) -> Iterator[pa.Table]:
        with file.open("rb") as opened:
            for batch in pq.ParquetFile(opened).iter_batches(ROWS):
                yield pa.Table.from_batches([batch], IMAGES)

    def merged(self, part: pa.Table) -> Iterator[pa.Table]:
        """Yields the earlier images before a part's last product, and the part's; these come instead."""
        last, ids = part["product_id"][-1], part["product_id"].combine_chunks()
        while len(self._waiting):
            count = _up_to(self._waiting, last)
            here, self._waiting = self._waiting.slice(0, count), self._waiting.slice(count)
            if count:
                new = _up_to(part, here["product_id"][-1])
                others = here.filter(pc.invert(pc.is_in(here["product_id"], value_set=ids)))
                both = pa.concat_tables([others, part.slice(0, new)]).combine_chunks()
                yield both.take(pc.sort_indices(both["product_id"]))  # which keeps the order of equal ones
                part = part.slice(new)
            if len(self._waiting):
                break
            self._waiting = next(self._pieces, self._waiting)
        yield part

    def rest(self) -> Iterator[pa.Table]:
        """Yields the images of all later products."""
        yield self._waiting
        yield from self._pieces


def _up_to(rows: pa.Table, product_id: pa.Scalar) -> int:
    """How many of the rows, in the order of their products, come before or at this one."""
    return pc.sum(pc.less_equal(rows["product_id"], product_id)).as_py() or 0
