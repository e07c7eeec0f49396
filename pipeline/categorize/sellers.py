"""The corrections of a batch's sellers: read once, and kept with its work until its end.

_sellers.arrow   KEPT: a batch a seller whose corrections are in use, in the alphabet

They are read when deciding begins. What is corrected later counts in the next run; a job that was killed goes
on with what it has kept, so it gives the same bytes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError, one_line
from features.storage.paths import AnyPath, local, writing
from models.decisions.adapted import Adapter, SellerState, unadapted
from models.decisions.predictions import Predictions
from pipeline.ingest.index import Coded, most_common
from pipeline.job.progress import log

if TYPE_CHECKING:
    from models.corrections.correction import History
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second

FILE = "_sellers.arrow"
TEXTS = pa.list_(pa.string())
KEPT = pa.schema(
    [
        ("seller", pa.string()),
        ("corrections", pa.int32()),  # in use
        ("flagged", pa.bool_()),
        ("base", TEXTS),  # n categories that the head had given
        ("true", TEXTS),  # n categories of the corrections, the oldest first
        ("vectors", pa.large_binary()),  # (n, width) float16
        ("width", pa.int32()),
    ]
)
AT_ONCE = 2**15  # corrections whose sellers are in memory: 128 MB with vectors of 1,024 numbers


def sellers_in_use(corrections: "Corrections") -> frozenset[str]:
    """The sellers whose corrections count; those that are set aside are not among them."""
    return frozenset(one.seller for one in corrections.sellers() if one.corrections and one.set_aside is None)


def keep_sellers(
    corrections: "Corrections", adapter: Adapter, units: list[AnyPath], work: AnyPath
) -> "KeptSellers":
    """Keeps the corrections of the units' sellers in `work`, unless that was done; returns them.

    Args:
        corrections: of the workspace.
        adapter: of the bundle.
        units: files of the first pass.
        work: working directory.
    """
    file = work / FILE
    if not file.is_file():
        names = sorted(_named(units) & sellers_in_use(corrections))
        _encode_missing(corrections, adapter, names)
        kept = missing = 0
        with writing(file) as working, pa.ipc.new_file(working, KEPT) as writer:
            for name in names:
                history = corrections.history(name, adapter.rules.model)
                if history.corrections and history.set_aside is None:  # it may have changed a moment ago
                    writer.write_batch(pa.RecordBatch.from_pylist([_row(name, history)], KEPT))
                    kept, missing = kept + history.corrections, missing + history.missing
        log.info("sellers: %s corrections of %s sellers are in use", f"{kept:,}", f"{len(names):,}")
        if missing:
            log.warning(
                "sellers: %s of %s corrections have no vector of this release; expected one of each; those "
                "of which only the label is known, or whose bottlenecks are gone, count from the next "
                "training on", f"{missing:,}", f"{kept:,}",
            )  # fmt: skip
    return KeptSellers(adapter, file)


def _encode_missing(corrections: "Corrections", adapter: Adapter, names: list[str]) -> None:
    """Encodes corrections that were made while another release was in service."""
    from models.corrections.histories import Histories

    try:
        encoded = Histories(adapter, corrections).carry(names)
    except ShelfmarkError as error:  # a database that may only be read
        log.warning("sellers: corrections without a vector stay without: %s", one_line(error))
        return
    if encoded:
        log.info("sellers: %s corrections encoded that had no vector of this release", f"{encoded:,}")


def _named(units: list[AnyPath]) -> set[str]:
    """The sellers that the rows of the units name."""
    found: set[str] = set()
    for unit in units:
        with unit.open("rb") as file:
            column = pq.read_table(file, columns=["seller"], read_dictionary=["seller"])["seller"]
        found.update(column.unique().to_pylist())
    return found


def _row(seller: str, history: "History") -> dict[str, object]:
    vectors = np.ascontiguousarray(history.vectors, np.float16)
    return {
        "seller": seller, "corrections": history.corrections, "flagged": history.flagged is not None,
        "base": history.base, "true": history.true, "vectors": vectors.tobytes(), "width": vectors.shape[1],
    }  # fmt: skip


class KeptSellers:
    """The sellers of a batch whose corrections count; they decide about their products."""

    def __init__(self, adapter: Adapter, file: AnyPath) -> None:
        """Opens the file of `keep_sellers`, which is mapped."""
        self._adapter = adapter
        self._rows = pa.ipc.open_file(pa.memory_map(str(local(file))))
        batches = [self._rows.get_batch(number) for number in range(self._rows.num_record_batches)]
        self._number = {one["seller"][0].as_py(): number for number, one in enumerate(batches)}
        self._corrections = np.array([one["corrections"][0].as_py() for one in batches], np.int64)

    def of_products(self, rows: pa.Table, product: np.ndarray, products: int) -> np.ndarray:
        """(p,) int, numbers of the products' sellers here; -1 where no corrections count.

        Args:
            rows: of a part, SORTED.
            product: (n,) int, the product of each row; -1: none.
            products: p, number of products.

        A product whose rows disagree has the most common seller, the first in the alphabet among equals.
        """
        column = rows["seller"].combine_chunks()
        names = column.dictionary.to_pylist()
        code = np.array([0 if name == "" else at + 1 for at, name in enumerate(names)], np.int32)
        given = Coded(["", *names], code[column.indices.to_numpy()])
        number = np.array([self._number.get(name, -1) for name in given.values], np.int64)
        seller: np.ndarray = number[most_common(product, given, products)[0]]
        return seller

    def decide(
        self,
        product_id: np.ndarray,
        bottlenecks: np.ndarray,
        bounds: np.ndarray,
        predictions: Predictions,
        seller: np.ndarray,
    ) -> Iterator[pd.DataFrame]:
        """Decisions about n products, in pieces and in any order, with the columns of corrections.

        Args:
            product_id: (n,) str.
            bottlenecks: (rows, d) float16, products together.
            bounds: (n + 1,) of the rows.
            predictions: about the products.
            seller: (n,) int, of `of_products`.
        """
        others = seller < 0
        if others.any():
            decisions = self._adapter.categorizer.decide(product_id[others], predictions.only(others))
            yield unadapted(decisions)
        for chosen in self._groups(seller):
            numbers = seller[chosen].tolist()
            states = {number: self._state(number) for number in set(numbers)}
            images = np.diff(bounds)[chosen]
            own = np.concatenate([[0], np.cumsum(images)])
            at = np.arange(own[-1]) + np.repeat(bounds[:-1][chosen] - own[:-1], images)
            yield self._adapter.decide(
                product_id[chosen], bottlenecks[at], own, [states[number] for number in numbers],
                predictions.again[chosen],
            )  # fmt: skip

    def _groups(self, seller: np.ndarray) -> Iterator[np.ndarray]:
        """(m,) int, products of some sellers who have about AT_ONCE corrections together."""
        order = np.flatnonzero(seller >= 0)
        order = order[np.argsort(seller[order], kind="stable")]
        distinct, first = np.unique(seller[order], return_index=True)
        group = np.cumsum(self._corrections[distinct]) // AT_ONCE
        yield from np.split(order, first[1:][np.diff(group) > 0]) if len(order) else ()

    def _state(self, number: int) -> SellerState:
        row = {name: column[0] for name, column in self._rows.get_batch(number).to_pydict().items()}
        vectors = np.frombuffer(row["vectors"], np.float16).reshape(len(row["base"]), row["width"])
        return self._adapter.state(vectors, row["base"], row["true"], row["corrections"], row["flagged"])
