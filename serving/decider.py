"""From bottlenecks to decisions, for many products at once: head, confidence, thresholds, sellers.

products' bottlenecks ─┬─► head ─► confidence ─► Decision
                       ├─► with a seller: his corrections in use ─► Decision with three more fields
                       └─► RecentProducts: a correction may follow
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_scalar

from features.errors import ShelfmarkError
from models.decisions.adapted import ADAPTED_COLUMNS, UNADAPTED, Encoded, SellerState
from models.decisions.bundle import Bundle
from models.decisions.categorizer import unreadable_columns
from serving.problems import STORE, without_places
from serving.schemas import Decision

if TYPE_CHECKING:
    from models.corrections.histories import Histories
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second

RECENT_BYTES = 64 * 2**20  # of bottlenecks


@dataclass(frozen=True)
class SeenProduct:
    """The readable photos of a product, as the backbone sees them."""

    digests: tuple[str, ...]  # sha256 (hex)
    bottlenecks: np.ndarray  # (rows, d) float16, those that decide: of all views, or with a cascade the first


class RecentProducts:
    """The products that were decided about lately, by their ids, within a number of bytes; thread-safe."""

    def __init__(self, budget_bytes: int = RECENT_BYTES) -> None:
        self._budget, self._bytes = budget_bytes, 0
        self._lock = threading.Lock()
        self._products: OrderedDict[str, SeenProduct] = OrderedDict()

    def put(self, product_id: str, seen: SeenProduct) -> None:
        """Keeps a product in place of what was known of it; the oldest ones go."""
        with self._lock:
            self._take(product_id)
            self._products[product_id] = seen
            self._bytes += seen.bottlenecks.nbytes
            while self._bytes > self._budget:
                self._take(next(iter(self._products)))

    def get(self, product_id: str) -> SeenProduct | None:
        """Returns a product; None where it is not among them."""
        with self._lock:
            return self._products.get(product_id)

    def _take(self, product_id: str) -> None:
        if known := self._products.pop(product_id, None):
            self._bytes -= known.bottlenecks.nbytes


class StoreUnavailable(ShelfmarkError):
    """A seller's corrections cannot be read now; the message does not say where the store is."""


@dataclass(frozen=True)
class ReadProduct:
    """A product whose photos have been read."""

    product_id: str | None  # as given in the request
    seller: str | None  # whose corrections count; None: nobody's
    seen: SeenProduct | None  # None: no photo is readable


class Decider:
    """Decides with one bundle; threads may use it side by side."""

    def __init__(self, bundle: Bundle, corrections: "Corrections | None") -> None:
        """Reads nothing of the corrections yet; None: none count."""
        self._categorizer, self._adapter = bundle.categorizer, bundle.adapter
        self._histories = None
        self.recent = RecentProducts()
        if corrections and bundle.adapter:
            from models.corrections.histories import Histories

            self._histories = Histories(bundle.adapter, corrections)

    @property
    def histories(self) -> "Histories | None":
        """Of the sellers; None where no corrections count."""
        return self._histories

    def decide(self, products: Sequence[ReadProduct]) -> list[Decision | StoreUnavailable]:
        """Decides about products, in their order; an error is about its product alone."""
        found: list[Decision | StoreUnavailable | None] = [None] * len(products)
        states: dict[int, SellerState | None] = {}
        for number, product in enumerate(products):
            try:
                states[number] = self._state(product)
            except ShelfmarkError as error:
                found[number] = self._unavailable(error)
        groups = (
            ([number for number in states if products[number].seen], self._columns),
            ([number for number in states if not products[number].seen], self._unreadable),
        )
        for numbers, columns in groups:
            chosen = [products[number] for number in numbers]
            values = columns(chosen, [states[number] for number in numbers]) if numbers else {}
            for number, decision in zip(numbers, _decisions(values, chosen), strict=True):
                found[number] = decision
        return [one for one in found if one is not None]

    def looks_again(self, products: Sequence[SeenProduct]) -> list[bool]:
        """Returns about which products all views decide, from the first view of their photos."""
        rows = [product.bottlenecks for product in products]
        bounds = np.cumsum([0, *map(len, rows)])
        again: list[bool] = self._categorizer.looks_again(np.concatenate(rows), bounds).tolist()
        return again

    def _again(self, products: Sequence[ReadProduct]) -> np.ndarray | None:
        """(n,) bool: products of which there are all views; None without a cascade."""
        if self._categorizer.rules.cascade is None:
            return None
        seen = [product.seen for product in products if product.seen]
        return np.array([len(one.bottlenecks) > len(one.digests) for one in seen])

    def encode(self, seen: SeenProduct, category: str) -> Encoded:
        """Returns a correction as the adapter's head sees it."""
        assert self._adapter is not None
        [encoded] = self._adapter.encode(seen.bottlenecks, np.array([0, len(seen.bottlenecks)]), [category])
        return encoded

    def _state(self, product: ReadProduct) -> SellerState | None:
        """What the corrections of a product's seller say; what its photos show is kept for one to come."""
        if self._histories is None or product.seen is None:
            return None
        if product.product_id:
            self.recent.put(product.product_id, product.seen)
        return self._histories.state(product.seller) if product.seller else None

    def _unavailable(self, error: ShelfmarkError) -> StoreUnavailable:
        assert self._histories is not None
        return StoreUnavailable(without_places(error, {self._histories.corrections.shown: STORE}))

    def _columns(
        self, products: Sequence[ReadProduct], states: Sequence[SellerState | None]
    ) -> dict[str, list[Any]]:
        """Decisions about products with readable photos: COLUMNS and ADAPTED_COLUMNS → values."""
        rows = [product.seen.bottlenecks for product in products if product.seen]
        bounds = np.concatenate([[0], np.cumsum([len(own) for own in rows])])
        bottlenecks = np.concatenate(rows)
        names, again = _names(products), self._again(products)
        if self._adapter is not None and any(state is not None for state in states):
            table = self._adapter.decide(np.array(names, dtype=object), bottlenecks, bounds, states, again)
            return {str(name): [_plain(value) for value in column.tolist()] for name, column in table.items()}
        predictions = self._categorizer.predict(bottlenecks, bounds, again)
        return self._categorizer.decide_columns(np.array(names, dtype=object), predictions) | _unadapted(
            names
        )

    def _unreadable(
        self, products: Sequence[ReadProduct], _: Sequence[SellerState | None]
    ) -> dict[str, list[Any]]:
        """As `_columns`, of products without."""
        names = _names(products)
        return unreadable_columns(names, self._categorizer.release) | _unadapted(names)


def _names(products: Sequence[ReadProduct]) -> list[str]:
    return [product.product_id or "" for product in products]


def _unadapted(names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [value] * len(names) for name, value in UNADAPTED.items()}


def _decisions(columns: Mapping[str, Sequence[Any]], products: Sequence[ReadProduct]) -> list[Decision]:
    """One decision for each product; without a seller, the fields about corrections are not set."""
    return [
        Decision.model_validate(
            {
                name: values[row]
                for name, values in columns.items()
                if product.seller or name not in ADAPTED_COLUMNS
            }
            | {"product_id": product.product_id}
        )
        for row, product in enumerate(products)
    ]


def _plain(value: Any) -> Any:
    """A value of a table; missing numbers are None, whatever NumPy and pandas call them."""
    return None if is_scalar(value) and pd.isna(value) else value
