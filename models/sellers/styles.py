"""Styles: how products of a category differ from each other, as centres of groups of their vectors.

    vectors of a category (n, d) ──► k-means, k = min(30, 1 + max(floor(n / 1000), 4)) ──► k centroids

    Styles   centroids (s, d) float32    those of category 0, of category 1, …
             bounds    (C + 1,) int64    category c has centroids[bounds[c] : bounds[c + 1]]

Source: Čugurović, Nikolić, Novaković, "Learn the way we write", where a style is a way to write a character.
The paper gives n / 1000 without rounding: here it is rounded down. Decided here:

- a category with at most k different vectors: each of them is a style;
- a category without vectors has no style (`nearest` says None);
- of more than MOST vectors, MOST are drawn for k-means; k is that of all;
- with more than WHOLE vectors, MiniBatchKMeans; else KMeans. One start each, k-means++;
- each category has a seed of its own, so that its styles do not depend on the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from models.rows import Rows

MOST, WHOLE = 50_000, 10_000  # vectors of a category: for k-means at all, for k-means on all of them
BATCH = 2_048  # vectors of a step of MiniBatchKMeans


@dataclass(frozen=True)
class Styles:
    """The styles of all categories, see above."""

    centroids: np.ndarray
    bounds: np.ndarray

    def __post_init__(self) -> None:
        """Raises ValueError for bounds that do not divide the centroids."""
        if (
            self.centroids.ndim != 2
            or self.bounds[0] != 0
            or self.bounds[-1] != len(self.centroids)
            or (np.diff(self.bounds) < 0).any()
        ):
            raise ValueError(
                f"bounds from {self.bounds[0]} to {self.bounds[-1]} for {len(self.centroids)} styles; "
                "expected rising bounds from 0 to the number of styles"
            )

    @property
    def categories(self) -> int:
        """C."""
        return len(self.bounds) - 1

    def nearest(self, category: int, vector: np.ndarray) -> int | None:
        """Returns the number of the category's style nearest to (d,) vector; None where it has no style.

        Euclidean; of equally near ones the first.

        >>> styles = Styles(np.array([[0.0, 0], [4, 0], [9, 9]], np.float32), np.array([0, 2, 2, 3]))
        >>> styles.nearest(0, np.array([3.0, 1])), styles.nearest(1, np.array([3.0, 1]))
        (1, None)
        """
        first, end = self.bounds[category], self.bounds[category + 1]
        if first == end:
            return None
        differences = self.centroids[first:end] - np.asarray(vector, np.float32)
        return int(first + np.einsum("sd,sd->s", differences, differences).argmin())

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Returns what `from_arrays` reads."""
        return {"centroids": self.centroids, "bounds": self.bounds}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Styles":
        """Makes the styles whose `arrays` these are; memory-mapped ones stay so."""
        return cls(arrays["centroids"], arrays["bounds"])


def count_styles(vectors: int) -> int:
    """Returns k for a category with so many vectors.

    >>> [count_styles(n) for n in (1, 4_999, 5_000, 28_999, 29_000, 10**6)]
    [5, 5, 6, 29, 30, 30]
    """
    return min(30, 1 + max(vectors // 1000, 4))


def fit_styles(vectors_of: Callable[[int], Rows], categories: int, width: int, seed: int) -> Styles:
    """Finds the styles of every category, one category after the other.

    Args:
        vectors_of: category → its rows, (n, d); called once for each category, in order. In memory at once
            are the at most MOST rows that are drawn from them, in float32.
        categories: C.
        width: d.
        seed: from which all is drawn.
    """
    found = [np.empty((0, width), np.float32)]
    bounds = np.zeros(categories + 1, np.int64)
    for category in range(categories):
        rows = vectors_of(category)
        styles = _of_category(rows, np.random.default_rng((seed, category))) if len(rows) else found[0]
        found.append(styles)
        bounds[category + 1] = bounds[category] + len(styles)
    return Styles(np.concatenate(found), bounds)


def _of_category(rows: Rows, rng: np.random.Generator) -> np.ndarray:
    """(k or fewer, d) float32."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    n, k = len(rows), count_styles(len(rows))
    chosen = np.sort(rng.choice(n, MOST, replace=False)) if n > MOST else slice(None)
    vectors = np.asarray(rows[chosen], np.float32)
    if len(vectors) <= 10 * k:  # where vectors repeat, k-means warns that it finds fewer groups
        different = np.unique(vectors, axis=0)
        if len(different) <= k:
            return different
    kind = {"n_clusters": k, "n_init": 1, "random_state": int(rng.integers(2**31))}
    means = MiniBatchKMeans(batch_size=BATCH, **kind) if n > WHOLE else KMeans(**kind)
    with threadpool_limits(1):  # sums in another order would give other last digits
        centres = means.fit(vectors).cluster_centers_
    return np.ascontiguousarray(centres, np.float32)
