"""What is known before a batch: the store's digests, and the products that the release has decided about.

_known/view0.*.npy       digests of the store, with their places and checksums; see digest_index.py
_known/view1.*.npy …     the same of the next view, where the head predicts from several
_known/decided.*.npy     products of --only-new
_known/corrected.*.npy   sellers whose corrections are in use: their products are decided again
"""

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow.compute as pc

from features.storage.paths import AnyPath
from features.storage.store import Store
from models.decisions.categorizer import UNREADABLE
from pipeline.categorize.digest_index import build_index, text_digests
from pipeline.categorize.read_units import CORRECTED, DECIDED, view_name
from pipeline.job.decisions_file import read_decisions
from pipeline.job.decisions_output import decisions_source

LOCATION = {"place": np.uint64, "sum": np.uint64}  # columns of a store's index, see `_place`


def index_store(store: Store, folder: AnyPath, view: int) -> list[str]:
    """Writes the index of a store's digests into `folder`; returns the names of the shards."""
    names: list[str] = []

    def rows() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for name, digests, sums in store.each_shard():
            names.append(name)
            place = _place(len(names) - 1, len(digests), sums is not None)
            yield (
                digests,
                {"place": place, "sum": np.zeros(len(digests), np.uint64) if sums is None else sums},
            )

    build_index(folder, view_name(view), rows(), LOCATION)
    return names


def _place(shard: int, rows: int, summed: bool) -> np.ndarray:
    """(n,) uint64: number of the shard | 31 bits of the row | whether there is a checksum."""
    return (
        (np.uint64(shard) << np.uint64(32))
        | (np.arange(rows, dtype=np.uint64) << np.uint64(1))
        | np.uint64(summed)
    )


def unpacked(place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of the shard, row in it, and whether there is a checksum, of (n,) uint64 places.

    >>> [one.tolist() for one in unpacked(_place(7, 2, True))]
    [[7, 7], [0, 1], [True, True]]
    """
    low = place & np.uint64(0xFFFF_FFFF)
    return (place >> np.uint64(32)).astype(np.int64), (low >> np.uint64(1)).astype(np.int64), low % 2 == 1


def index_decided(
    decisions: str | None, release: str | None, sellers: Collection[str], folder: AnyPath
) -> tuple[int, int]:
    """Writes the index of the products that this release has decided about; returns how many they are.

    Products that it found unreadable are not among them: their photos may have come meanwhile. Nor are those
    whose decisions corrections stand behind, because these may have changed: they are the second number.

    Args:
        decisions: earlier ones; None: there are none yet.
        release: in service.
        sellers: whose corrections are in use; they get an index, too.
        folder: of the indices.
    """
    adapted = 0

    def rows() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        nonlocal adapted
        columns = ["product_id", "status", "release", "corrections"]
        earlier = () if decisions is None else read_decisions(decisions_source(decisions), columns)
        for table in earlier:
            own = pc.and_(pc.equal(table["release"], release), pc.not_equal(table["status"], UNREADABLE))
            there = pc.sum(own, min_count=0).as_py()
            own = pc.and_(own, pc.equal(pc.fill_null(table["corrections"], 0), 0))
            adapted += there - pc.sum(own, min_count=0).as_py()
            yield text_digests(table.filter(own)["product_id"].to_pylist()), {}

    build_index(folder, CORRECTED, iter([(text_digests(sorted(sellers)), {})]), {})
    return len(build_index(folder, DECIDED, rows(), {})), adapted
