"""Rows: what heads, baselines and predictions read bottlenecks through, in memory or not."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Rows(Protocol):
    """n rows of d numbers, read by indexing: an array, or a store's rows."""

    def __len__(self) -> int:
        """Returns n."""
        ...

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        """Returns (m, d) float16, the chosen rows: (m,) int row numbers, (n,) bool, or a slice."""
        ...


@dataclass(frozen=True)
class ChosenRows:
    """Some of other rows, unread."""

    rows: Rows
    chosen: np.ndarray  # (n,) int, their numbers

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        return self.rows[self.chosen[chosen]]
