"""The cascade: only products about which the first view is not certain are looked at again, in all views.

    first view of all photos of a product ──► head ──► its largest probability
        the limit or more   ──► the rows of the first view decide
        less                ──► the rows of all views decide, those of the first among them

The probability is that of the categories at temperature 1, the mean of the photos, so it depends on nothing
that is fitted later; with six decimals, as confidences have, because the last bits of float32 change with the
batch. The limit is chosen on FIT. All that follows, from the temperature to the certificate, is fitted on the
rows that decide: so the threshold is certified for the cascade as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.decisions.confidence import DECIMALS, product_probabilities, product_ranges
from models.decisions.predictions import PIECE, Classifier
from models.rows import Rows


@dataclass(frozen=True)
class Cascade:
    """From which certainty on the first view decides."""

    limit: float  # of `certainty`; the first view decides where it is reached
    share: float  # of FIT's products that are looked at again


def certainty(head: Classifier, first: Rows, bounds: np.ndarray) -> np.ndarray:
    """Returns (p,) float64, six decimals: the largest probability of each product's first view.

    Args:
        head: gives logits.
        first: (n, d) the first view of n photos, products together.
        bounds: (p + 1,) from 0, the photos of each product.
    """
    found = np.empty(len(bounds) - 1)
    for start, stop in product_ranges(bounds, PIECE):
        logits = head.outputs(first[slice(bounds[start], bounds[stop])])[-1]
        probability = product_probabilities(logits, np.diff(bounds[start : stop + 1]), 1.0)
        found[start:stop] = probability.max(axis=1).round(DECIMALS)
    return found


def fit_cascade(certainties: np.ndarray, share: float) -> Cascade:
    """Returns the cascade that looks at this share of the products again, at most.

    Args:
        certainties: (p,) of FIT's products; where there are none, all products are looked at again.
        share: 0 to 1.

    >>> fit_cascade(np.array([0.9, 0.4, 0.7, 0.4]), 0.6)
    Cascade(limit=0.7, share=0.5)
    """
    if not len(certainties):
        return Cascade(2.0, 1.0)
    limit = float(np.sort(certainties)[min(int(share * len(certainties)), len(certainties) - 1)])
    return Cascade(limit, float((certainties < limit).mean()))


def rows_that_decide(bounds: np.ndarray, again: np.ndarray, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows of all views decide, (m,) int, and their bounds, (p + 1,).

    Args:
        bounds: (p + 1,) from 0, of the rows: of each photo its views, one after the other.
        again: (p,) bool, products that all views decide; the first view decides the others.
        views: rows of each photo.

    >>> rows_that_decide(np.array([0, 4, 6]), np.array([False, True]), 2)
    (array([0, 2, 4, 5]), array([0, 2, 4]))
    """
    count = np.diff(bounds)
    rows = np.flatnonzero(np.repeat(again, count) | (np.arange(bounds[-1]) % views == 0))
    return rows, np.concatenate([[0], np.cumsum(np.where(again, count, count // views))])


def joined_views(first: np.ndarray, again: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the rows that decide: of each photo that is looked at again its views, else its first alone.

    Args:
        first: (n, d) the first view of n photos.
        again: (n,) bool, of which there are the other views, too.
        others: of each of the other views (k, d), of the k photos.

    >>> rows = np.array([[1], [2], [3]])
    >>> joined_views(rows, np.array([False, True, False]), [np.array([[20]])]).ravel().tolist()
    [1, 2, 20, 3]
    """
    count = np.where(again, 1 + len(others), 1)
    start = np.cumsum(count) - count
    rows: np.ndarray = np.empty((int(count.sum()), first.shape[1]), first.dtype)
    rows[start] = first
    for place, view in enumerate(others if again.any() else (), start=1):
        rows[start[again] + place] = view
    return rows
