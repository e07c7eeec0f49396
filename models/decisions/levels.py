"""Which level of the tree a product is decided at, and what is promised there (NumPy only)."""

from dataclasses import dataclass

import numpy as np

from models.decisions.thresholds import Certificate, Outcomes, certify


@dataclass(frozen=True, eq=False)
class LevelOutcomes:
    """Products with the confidence in a node of each level, and whether it is correct."""

    product_id: np.ndarray  # (n,) str
    group: np.ndarray  # (n,) str or int; near-duplicates share one
    confidence: np.ndarray  # (n, N) float, coarse to fine; the last is the category's
    correct: np.ndarray  # (n, N) bool
    depth: np.ndarray  # (n,) int, of the predicted leaf; level k < N is open to products deeper than k


def certify_levels(
    fit: LevelOutcomes, cert: LevelOutcomes, *, target: float = 0.9, delta: float = 0.1, grid: int = 1000
) -> tuple[Certificate, ...]:
    """The certificates of all levels, coarse to fine; above the categories nothing is certified yet."""
    leaf = [
        Outcomes(one.product_id, one.group, one.confidence[:, -1], one.correct[:, -1]) for one in (fit, cert)
    ]
    found = certify(*leaf, target=target, delta=delta, grid=grid)
    none = Certificate(target, delta, 0, found.products, reason="nothing is certified above the categories")
    return (*[none] * (fit.confidence.shape[1] - 1), found)


def stop_level(confidence: np.ndarray, depth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(n,) int: the finest level whose threshold a product reaches; 0 where it reaches none.

    Args:
        confidence: (n, N) float.
        depth: (n,) int, of the predicted leaf; level k < N is open to products deeper than k.
        thresholds: (N,) float, infinite where nothing is accepted.
    """
    levels = confidence.shape[1]
    reached = confidence >= thresholds
    reached[:, :-1] &= depth[:, None] > np.arange(1, levels)
    return np.where(reached.any(axis=1), levels - np.argmax(reached[:, ::-1], axis=1), 0)
