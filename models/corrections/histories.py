"""Sellers' histories in memory: the newest used ones, within a number of bytes, checked at each use.

Skeleton: signatures and what they promise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.corrections.store import Added, Correction, Corrections

if TYPE_CHECKING:
    from models.decisions.adapted import Adapter, SellerState

BUDGET = 256 * 2**20  # bytes


class Histories:
    """What an adapter needs of each seller; of use to many threads at once."""

    def __init__(self, adapter: "Adapter", corrections: Corrections, budget_bytes: int = BUDGET) -> None:
        self.adapter, self.corrections, self.budget_bytes = adapter, corrections, budget_bytes

    def state(self, seller: str) -> "SellerState | None":
        """Returns a seller's state; None without corrections in use, or where they are set aside.

        Changes by other processes are seen at once.
        """
        raise NotImplementedError

    def learn(self, corrections: Sequence[Correction]) -> list[Added]:
        """Encodes the corrections with bottlenecks of the adapter's backbone, and adds all."""
        raise NotImplementedError

    def carry(self) -> int:
        """Encodes for the adapter's head all corrections that lack its vector; returns how many."""
        raise NotImplementedError
