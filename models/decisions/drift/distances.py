"""Distances: how far photos are from those of training, by their bottlenecks.

    training bottlenecks ──► a few hundred centroids (spherical k-means) ──► kept in the bundle
    a product's first photo ──► 1 - cosine to the nearest centroid

A new kind of photo (blurred, drawn, of something else) is far from all centroids, whatever the head says.
"""

import numpy as np

from models.rows import Rows

CENTROIDS = 256  # at most
SAMPLE = 8192  # training images that the centroids are fitted on, at most
LEAST_MEMBERS = 8  # images of the sample for one centroid
SWEEPS = 6
PIECE = 4096  # rows in memory at once


def centroids_of(rows: Rows, seed: int = 0) -> np.ndarray:
    """(k, d) float16, unit vectors: the centroids of a drawn sample of the rows.

    Args:
        rows: (n, d) bottlenecks of the training images.
        seed: of the sample, and of where the sweeps begin.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(rows), min(SAMPLE, len(rows)), replace=False))
    units = _units(rows[sample])
    count = max(1, min(CENTROIDS, len(units) // LEAST_MEMBERS))
    centroids = units[np.sort(rng.choice(len(units), min(count, len(units)), replace=False))]
    for _ in range(SWEEPS):
        nearest = (units @ centroids.T).argmax(axis=1)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, units)
        members = np.bincount(nearest, minlength=len(centroids)) > 0
        centroids = np.where(members[:, None], _units(sums), centroids)
    return centroids.astype(np.float16)


def distances(rows: Rows, chosen: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(m,) float32, 0 to 2: 1 - cosine of each chosen row to the nearest centroid.

    Args:
        rows: (n, d) bottlenecks.
        chosen: (m,) int row numbers.
        centroids: (k, d) of `centroids_of`.
    """
    wide = centroids.astype(np.float32).T
    pieces = [
        1 - (_units(rows[chosen[start : start + PIECE]]) @ wide).max(axis=1)
        for start in range(0, len(chosen), PIECE)
    ]
    return np.concatenate([np.empty(0, np.float32), *pieces])


def _units(rows: np.ndarray) -> np.ndarray:
    """(n, d) float32 of length 1; rows of zeros stay."""
    wide = rows.astype(np.float32)
    units: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return units
