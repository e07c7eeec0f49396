"""Sellers' histories in memory: those used last, within a number of bytes, checked with the store each time.

    seller ──► revision in the store ──► the same: the state in memory
                                         another:  history ──► adapter ──► state, kept in memory

A state in memory is never changed: after a correction, the next use makes another one. Where the seller has
added corrections and changed nothing else, it is made of the state before and of these alone. While one
thread makes a seller's state, others that need the same one wait for it, and nobody else does.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from models.corrections.correction import Added, Correction
from models.corrections.store import Corrections
from models.sellers.votes import room_of

if TYPE_CHECKING:
    from models.decisions.adapted import Adapter, Encoded, SellerState

    Encode = Callable[[np.ndarray, np.ndarray, Sequence[str]], list[Encoded]]

BUDGET = 256 * 2**20  # bytes
EACH = 1_100  # bytes of a seller beside his corrections
# bytes of a correction, measured: "votes" keeps its vector in float32 and 4 to 8 more, "paper" 260 to 750;
# and its id
NUMBER, BESIDE, LEAST = 4, 16, 750


@dataclass
class _Seller:
    """A seller in memory."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the state is made
    revision: int = 0
    state: "SellerState | None" = None
    ids: np.ndarray | None = None  # of the corrections in it
    bytes: int = 0


class Histories:
    """What an adapter needs of each seller; many threads may use it at once."""

    def __init__(self, adapter: "Adapter", corrections: Corrections, budget_bytes: int = BUDGET) -> None:
        """Reads nothing yet.

        Args:
            adapter: of the release that decides.
            corrections: the store.
            budget_bytes: of all states together; more is in memory only while it is used.
        """
        self.adapter, self.corrections, self.budget_bytes = adapter, corrections, budget_bytes
        self._lock = threading.Lock()  # of what follows; never held during work
        self._sellers: OrderedDict[str, _Seller] = OrderedDict()  # the one used last is the last
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of the states in memory, as they are counted."""
        return self._bytes

    def state(self, seller: str) -> "SellerState | None":
        """Returns a seller's state; None without corrections in use, or where they are set aside.

        Changes by other processes are seen at once.

        Raises:
            ShelfmarkError: the store cannot be read.
        """
        with self._lock:
            one = self._sellers.setdefault(seller, _Seller())
            self._sellers.move_to_end(seller)
            revision, state = one.revision, one.state
        if revision and revision == self.corrections.revision(seller):
            return state
        try:
            with one.lock:
                # what another thread has made meanwhile may be older than a correction that was there before
                if not one.revision or one.revision != self.corrections.revision(seller):
                    self._make(seller, one)
        finally:
            if not one.revision:  # one without corrections, or an error
                self._drop(seller)
        return one.state

    def _make(self, seller: str, one: _Seller) -> None:
        head, newer = self.adapter.rules.model, None
        if one.state is not None and one.ids is not None:
            newer = self.corrections.newer(seller, head, one.ids)
        history = newer or self.corrections.history(seller, head)
        state, ids, size = None, None, EACH
        if history.corrections and history.set_aside is None:
            vectors, base, true = history.vectors, history.base, history.true
            counts = history.corrections, history.flagged is not None
            if newer is None or one.state is None or one.ids is None:
                state, ids = self.adapter.state(vectors, base, true, *counts), history.ids
                size += _bytes_of(len(ids), vectors)
            else:
                state = self.adapter.state_with(one.state, vectors, base, true, *counts)
                ids = np.concatenate([one.ids, newer.ids])
                size += max(one.bytes - EACH, _bytes_of(room_of(len(ids)), vectors))
        with self._lock:
            one.revision, one.state, one.ids = history.revision, state, ids
            if self._sellers.get(seller) is not one:  # dropped meanwhile
                return
            self._bytes += size - one.bytes
            one.bytes = size
            while self._bytes > self.budget_bytes and self._sellers:
                self._bytes -= self._sellers.popitem(last=False)[1].bytes

    def _drop(self, seller: str) -> None:
        with self._lock:
            if one := self._sellers.pop(seller, None):
                self._bytes -= one.bytes

    def learn(self, corrections: Sequence[Correction]) -> list[Added]:
        """Adds corrections; those with bottlenecks of the adapter's backbone with what its head sees.

        Raises:
            ShelfmarkError: as `Corrections.add`.
        """
        fingerprint = self._fingerprint
        seen: list[Encoded | None] = [None] * len(corrections)
        at = [
            index
            for index, one in enumerate(corrections)
            if one.bottlenecks is not None and one.fingerprint == fingerprint
        ]
        for index, encoded in zip(at, self._encode([corrections[index] for index in at]), strict=True):
            seen[index] = encoded
        return self.corrections.add(list(zip(corrections, seen, strict=True)))

    def carry(self, sellers: Collection[str] | None = None, encode: "Encode | None" = None) -> int:
        """Encodes for the adapter's head all corrections that lack its vector; returns how many.

        Those without bottlenecks, or with those of another backbone, stay without. Where none lacks it, it is
        a look into the counts of the database.

        Args:
            sellers: of these alone; None: of all.
            encode: in place of the adapter's, for instance where one thread alone may use the head.

        Raises:
            ShelfmarkError: the store cannot be read or written.
        """
        count = 0
        encode = encode or self.adapter.encode
        for piece in self.corrections.missing(self.adapter.rules.model, self._fingerprint, sellers):
            bounds = np.cumsum([0, *(len(one.bottlenecks) for one in piece)])
            rows = np.concatenate([one.bottlenecks for one in piece])
            encoded = encode(rows, bounds, [one.category for one in piece])
            self.corrections.put_vectors([(one.id, seen) for one, seen in zip(piece, encoded, strict=True)])
            count += len(piece)
        return count

    def _encode(self, corrections: Sequence[Correction]) -> "list[Encoded]":
        rows = [one.bottlenecks for one in corrections if one.bottlenecks is not None]
        if not rows:
            return []
        bounds = np.cumsum([0, *map(len, rows)])
        return self.adapter.encode(np.concatenate(rows), bounds, [one.category for one in corrections])

    @property
    def _fingerprint(self) -> str:
        """Of the adapter's backbone."""
        return self.adapter.categorizer.predictor.head.shape.fingerprint


def _bytes_of(corrections: int, vectors: np.ndarray) -> int:
    """Of what a method keeps of so many corrections with vectors like these, at most."""
    width = int(vectors.shape[1])
    return corrections * max(width * NUMBER + BESIDE, LEAST)
