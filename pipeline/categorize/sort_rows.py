"""From units to parts: the rows of all units sorted by product, so that a part holds whole products.

    _read/unit-*.parquet ─► _sorted/piece-0000.arrow   SORTED: PIECE_ROWS rows, by product; a batch a part
                                        │
                                        ▼
    part 0, 1, 2, …    its batch of every piece: about PART_ROWS rows, of products between two ids

An external sort: products whose images are spread over the sources come together, parts follow each other in
the order of the ids, and memory does not grow with the batch. Nothing of it depends on how often the job was
killed.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.storage.paths import AnyPath, local, remove, writing
from features.storage.store import digests_of
from pipeline.beam.run_units import rows_in, unit_file
from pipeline.categorize.digest_index import KEY, SortedRuns, halves
from pipeline.categorize.extract_new import Found
from pipeline.categorize.read_units import READ
from pipeline.ingest.index import NO_IMAGE
from pipeline.sources.listing import LEFT_OUT

FOLDER = "_sorted"
PIECE_ROWS = 2**18  # rows sorted in memory
PART_ROWS = 2**15  # rows of a part, whose bottlenecks are in memory: 128 MB for Inception v3
SAMPLE = 128  # ids drawn for each part, to find where to cut
SORTED = pa.schema(
    [
        *(("row", pa.int64()), ("seller", pa.dictionary(pa.int32(), pa.string()))),  # a dictionary a piece
        *(READ.field(name) for name in READ.names if name not in ("seller", "order_key", "new")),
    ]
)
REFUSED = pa.schema([SORTED.field(name) for name in ("row", "reason", "detail")])


@dataclass
class Account:
    """Where the images of a batch went."""

    rows: int = 0
    images: int = 0
    left_out: int = 0  # images of products that were decided before
    rejects: Counter[str] = field(default_factory=Counter)  # by reason

    def add(self, reason: pa.ChunkedArray) -> None:
        """Counts rows by their reasons."""
        counts = _counts(reason)
        self.rows += sum(counts.values())
        self.images += sum(counts.values()) - counts.pop(NO_IMAGE, 0)
        self.left_out += counts.pop(LEFT_OUT, 0)
        counts.pop("", None)
        self.rejects.update(counts)

    def refuse(self, reason: pa.ChunkedArray) -> None:
        """Counts rows as refused that were counted as readable before."""
        self.rejects.update(_counts(reason))


def _counts(reason: pa.ChunkedArray) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(reason).to_pylist()}


@dataclass(frozen=True)
class SortedRows:
    """The rows of a batch by parts."""

    pieces: list[AnyPath]
    parts: int
    account: Account
    placeholders: np.ndarray  # (k,) uint64, ascending: first 64 bits of digests that many products share
    refused: AnyPath | None = None  # folder of REFUSED, a file a part: rows that are refused later

    def part(self, number: int) -> pa.Table:
        """The rows of a part, sorted by product; the images of a product in the sources' order."""
        return read_part(self.pieces, number, self.refused)


def read_part(pieces: list[AnyPath], number: int, refused: AnyPath | None) -> pa.Table:
    """The rows of a part, SORTED, sorted by product and row; arguments as in `SortedRows`."""
    batches = []
    for piece in pieces:
        with pa.memory_map(str(local(piece))) as file:
            batches.append(pa.ipc.open_file(file).get_batch(number))
    rows = pa.Table.from_batches(batches, SORTED).combine_chunks()
    # pieces are in the order of the rows, and the sort is stable
    rows = rows.take(pc.sort_indices(rows["product_id"]))
    return rows if refused is None else _refused(rows, unit_file(refused, number))


def _refused(rows: pa.Table, file: AnyPath) -> pa.Table:
    """The rows, with the reasons and details of those that the file, REFUSED, holds."""
    with file.open("rb") as opened:
        refused = pq.read_table(opened)
    at = pc.index_in(rows["row"], refused["row"].combine_chunks())
    for name in ("reason", "detail"):
        column = pc.coalesce(refused[name].take(at), rows[name])
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def sort_rows(units: list[AnyPath], found: Found, work: AnyPath, placeholder_products: int) -> SortedRows:
    """Sorts the rows of the units.

    Args:
        units: files of the first pass.
        found: about new images.
        work: working directory.
        placeholder_products: an image that so many products share is a placeholder.
    """
    folder = work / FOLDER
    remove(folder)
    cuts = _cuts(units)
    account, pieces = Account(), list[AnyPath]()
    shared = _SharedImages(work, placeholder_products)
    waiting: list[pa.Table] = []

    def write() -> None:
        pieces.append(folder / f"piece-{len(pieces):04d}.arrow")
        _write_piece(pa.concat_tables(waiting), cuts, pieces[-1])
        waiting.clear()

    for unit in units:
        with unit.open("rb") as file:
            rows = found.complete(pq.read_table(file, read_dictionary=["seller"]))
        numbers = np.arange(account.rows, account.rows + len(rows))
        account.add(rows["reason"])
        shared.add(rows)
        waiting.append(rows.append_column("row", pa.array(numbers)).select(SORTED.names).cast(SORTED))
        if sum(map(len, waiting)) >= PIECE_ROWS:
            write()
    if any(map(len, waiting)):
        write()
    return SortedRows(pieces, len(cuts) + 1 if account.rows else 0, account, shared.placeholders())


def _cuts(units: list[AnyPath]) -> np.ndarray:
    """(parts - 1,) object, ids at which the parts begin; from a sample spread over all rows."""
    total = sum(map(rows_in, units))
    parts = -(-total // PART_ROWS)
    step, start = max(1, total // max(1, parts * SAMPLE)), 0
    sample: list[str] = []
    for unit in units if parts > 1 else []:
        with unit.open("rb") as file:
            ids = pq.read_table(file, columns=["product_id"])["product_id"]
        sample += ids.take(pa.array(np.arange(-start % step, len(ids), step))).to_pylist()
        start += len(ids)
    ordered = np.array(sorted(sample), dtype=object)
    places = [len(ordered) * at // parts for at in range(1, parts)]
    return np.unique(ordered[places]) if places else ordered[:0]


def _write_piece(rows: pa.Table, cuts: np.ndarray, piece: AnyPath) -> None:
    """Writes rows sorted by product, a batch for each part."""
    rows = rows.combine_chunks()
    [whole] = rows.take(pc.sort_indices(rows["product_id"])).combine_chunks().to_batches()
    ids = whole["product_id"].to_numpy(zero_copy_only=False)
    bounds = [0, *np.searchsorted(ids, cuts, side="left").tolist(), len(whole)]
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with writing(piece) as working, pa.ipc.new_file(working, SORTED, options=options) as writer:
        for first, last in itertools.pairwise(bounds):
            writer.write_batch(whole.slice(first, last - first))  # all with one dictionary of sellers


class _SharedImages(SortedRuns):
    """Counts the products of each readable image; of an image, pairs beyond the limit are not kept."""

    def __init__(self, work: AnyPath, limit: int) -> None:
        super().__init__(work)
        self._limit = limit

    def add(self, rows: pa.Table) -> None:
        """Adds the readable images of rows of READ."""
        good = rows.filter(pc.and_(pc.equal(rows["reason"], ""), pc.not_equal(rows["product_id"], "")))
        if len(good):
            key, _ = halves(digests_of(good["image_digest"]))
            super().add({KEY: key, "product": good["order_key"].to_numpy()})

    def reduced(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first `limit` distinct products of each image."""
        order = np.lexsort((rows["product"], rows[KEY]))
        key, product = rows[KEY][order], rows["product"][order]
        kept = np.ones(len(key), bool)
        kept[1:] = (key[1:] != key[:-1]) | (product[1:] != product[:-1])
        key, product = key[kept], product[kept]
        place = np.arange(len(key))
        first = np.maximum.accumulate(np.where(np.diff(key, prepend=~key[:1]) != 0, place, 0))
        few = place - first < self._limit
        return {KEY: key[few], "product": product[few]}

    def placeholders(self) -> np.ndarray:
        """Keys of images with at least `limit` products; removes the runs."""
        found = [np.empty(0, np.uint64)]
        for rows in self.ranges():
            key, count = np.unique(rows[KEY], return_counts=True)
            found.append(key[count >= self._limit])
        self.close()
        return np.concatenate(found)
