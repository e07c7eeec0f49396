"""Limits: how far a number may differ between reference and batch by chance alone.

    limit = what chance does to the reference, at its size + what it does to a batch, at the batch's own size

Each part is a quantile of the differences of DRAWS samples drawn from the reference. There are two, because
the same reference is compared with every batch: an unlucky one would be exceeded week after week. (With the
differences of pairs, drawn together, limits were a sixth lower, and one reference of 300 products gave two
false alarms in 20 years.) The first part holds for nearly all references. The second is far in the tail (one
in 50,000), where no affordable number of draws reaches: from the largest hundredth of the differences on, the
tail is taken as exponential. Tails of counts fall faster, so that the limit is a little too high, never too
low: 4.13 instead of 3.9 standard deviations for a normal one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

DRAWS = 20_000
BLOCK = 2_000  # draws in memory at once
TAIL = 0.01  # share of the draws that the tail is fitted on

Difference = Callable[[np.ndarray, np.ndarray], np.ndarray]


def moved_share(reference: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """(...,) float, share of the products that are in another bin: half the sum of the shares' differences.

    Args:
        reference: (..., k) counts.
        batch: (..., k) counts.

    >>> float(moved_share(np.array([50, 50]), np.array([8, 2])))
    0.3
    """
    moved: np.ndarray = np.abs(_shares(batch) - _shares(reference)).sum(axis=-1) / 2
    return moved.round(12)


def moved_along(reference: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """(...,) float, largest difference of cumulative shares, of bins in order (Kolmogorov, Smirnov).

    >>> float(moved_along(np.array([50, 0, 50]), np.array([5, 5, 0])))
    0.5
    """
    moved: np.ndarray = np.abs(np.cumsum(_shares(batch) - _shares(reference), axis=-1)).max(axis=-1)
    return moved.round(12)


def moved_mean(values: np.ndarray, reference: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """(...,) float, difference of the means of `values`, (k,) float, one of each bin."""
    moved: np.ndarray = np.abs((_shares(batch) - _shares(reference)) @ values)
    return moved.round(12)


def _shares(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = counts / counts.sum(axis=-1, keepdims=True)
    return shares


@dataclass(frozen=True, eq=False)
class Watched:
    """A number that is watched: how the reference's counts differ from the batch's."""

    name: str
    reference: np.ndarray  # (k,) int
    difference: Difference

    @classmethod
    def mean(cls, name: str, reference: np.ndarray, values: np.ndarray) -> "Watched":
        """The mean of `values`, (k,) float."""
        return cls(name, reference, partial(moved_mean, values))


def limit_of(watched: Watched, products: int, reference_level: float, level: float, seed: int = 0) -> float:
    """The difference that a batch without change exceeds with probability `level`, at most.

    Args:
        watched: with the counts of the reference, at least one.
        products: in the batch, at least one.
        reference_level: probability that the reference is so unlucky that this does not hold; 0 to TAIL.
        level: 0 to TAIL.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    own = int(watched.reference.sum())
    # One product more in every bin: what none of 300 measured products shows may still be one in a hundred.
    share = (watched.reference + 1) / (own + len(watched.reference))
    return _quantile(rng, watched.difference, share, own, reference_level) + _quantile(
        rng, watched.difference, share, products, level
    )


def _quantile(
    rng: np.random.Generator, difference: Difference, share: np.ndarray, products: int, level: float
) -> float:
    """The difference between shares and a sample of them that is exceeded with probability `level`."""
    blocks = [difference(share, rng.multinomial(products, share, size=BLOCK)) for _ in range(DRAWS // BLOCK)]
    draws = np.sort(np.concatenate(blocks))
    begin = draws[-int(DRAWS * TAIL)]
    tail = draws[draws >= begin]
    return float(begin + (tail - begin).mean() * max(np.log(len(tail) / DRAWS / level), 0.0))
