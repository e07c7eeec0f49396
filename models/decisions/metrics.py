"""Precision, acceptance rate and their curve, counted over arrays of products (NumPy only).

    confidence   0.97  0.91  0.91  0.60  0.42
    is correct   yes   yes   no    yes   no

    threshold    0.97  0.91  0.60  0.42
    accepted     1     3     4     5            acceptance rate = accepted / products
    correct      1     2     3     3            precision       = correct / accepted

Accepted are the products with confidence >= threshold; those of equal confidence are accepted together.

With weights (views, or the value of a product), products are counted by their weight instead of each as one:
a precision of 0.9 then says that nine tenths of the views go to products in their correct category.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


def precision(correct: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Share of the products that are correct.

    Args:
        correct: (n,) bool.
        weight: (n,) float, at least 0; None: each product counts as one.

    >>> precision(np.array([True, True, False, True]))
    0.75
    >>> precision(np.array([True, True, False, True]), np.array([1.0, 1.0, 6.0, 0.0]))
    0.25

    Raises:
        ValueError: there is no product, or no weight: the share of nothing is undefined.
    """
    if weight is not None:
        _refuse_weights(weight, len(correct))
        total = math.fsum(weight)  # exact, so that the order of rows changes nothing
        if total == 0:
            raise ValueError("precision of products without weight; expected at least one above 0")
        return math.fsum(weight[correct]) / total
    if len(correct) == 0:
        raise ValueError("precision of no products; expected at least one")
    return int(np.count_nonzero(correct)) / len(correct)


def _refuse_weights(weight: np.ndarray, products: int) -> None:
    if len(weight) != products:
        raise ValueError(f"{len(weight)} weights for {products} products; expected one each")
    if not ((weight >= 0) & np.isfinite(weight)).all():
        raise ValueError("a weight is not a number from 0 on; expected such numbers")


@dataclass(frozen=True, eq=False)
class AcceptanceCurve:
    """Counts at every confidence that some product has, from the strictest threshold to the loosest.

    With weights, a count is the sum of the weights, a float.
    """

    threshold: np.ndarray  # (m,) float, distinct, descending
    accepted: np.ndarray  # (m,) int64, products with confidence >= threshold, at least 1; weights: above 0
    correct: np.ndarray  # (m,) int64, the correct ones among them
    products: int | float  # all products, accepted or not

    @property
    def acceptance_rate(self) -> np.ndarray:
        """(m,) float, share of all products that is accepted."""
        rate: np.ndarray = self.accepted / (self.products or 1)
        return rate

    @property
    def precision(self) -> np.ndarray:
        """(m,) float, share of the accepted products that is correct."""
        precision: np.ndarray = self.correct / self.accepted
        return precision

    def thinned(self, most: int) -> "AcceptanceCurve":
        """At most `most` points of the curve, evenly spread over acceptance, the last one always among them.

        For plots and bounds: two million products have up to a million distinct confidences.
        """
        if not self.products:
            return self
        at = np.searchsorted(self.accepted, np.arange(1, most + 1) * self.products / most)
        at[-1] = len(self.accepted) - 1
        keep = np.unique(at)
        return AcceptanceCurve(self.threshold[keep], self.accepted[keep], self.correct[keep], self.products)


def acceptance_curve(
    confidence: np.ndarray, correct: np.ndarray, weight: np.ndarray | None = None
) -> AcceptanceCurve:
    """The curve of these products; the same for any order of the rows.

    Args:
        confidence: (n,) float, 0 to 1.
        correct: (n,) bool.
        weight: (n,) float, at least 0; None: each product counts as one.

    Raises:
        ValueError: different lengths, a confidence that is not a number, or a weight that is none from 0 on.
    """
    if len(confidence) != len(correct):
        raise ValueError(f"{len(confidence)} confidences for {len(correct)} outcomes; expected one each")
    if np.isnan(confidence).any():
        raise ValueError("a confidence is not a number; expected 0 to 1")
    if weight is not None:
        return _weighted_curve(confidence, correct, weight)
    # Two sorts and a look-up take a third of the time of one argsort and its rearranged columns.
    ordered = np.sort(confidence)
    first = np.flatnonzero(np.diff(ordered, prepend=-np.inf))  # of equal confidences
    threshold = ordered[first]
    accepted = len(ordered) - first
    right = np.sort(confidence[correct])
    correct_ones = len(right) - np.searchsorted(right, threshold)
    return AcceptanceCurve(threshold[::-1], accepted[::-1], correct_ones[::-1], len(ordered))


def _weighted_curve(confidence: np.ndarray, correct: np.ndarray, weight: np.ndarray) -> AcceptanceCurve:
    _refuse_weights(weight, len(confidence))
    some = weight > 0  # a product without weight is no product
    confidence, correct, weight = confidence[some], correct[some], weight[some]
    order = np.lexsort([weight, confidence])[::-1]  # by weight too: sums of floats depend on the order
    ordered = confidence[order]
    last = np.flatnonzero(np.diff(ordered, append=-np.inf))  # of equal confidences
    accepted = np.cumsum(weight[order], dtype=np.float64)[last]
    right = np.cumsum(np.where(correct[order], weight[order], 0.0))[last]
    return AcceptanceCurve(ordered[last], accepted, right, float(accepted[-1]) if len(accepted) else 0.0)


def acceptance_rate_at(curve: AcceptanceCurve, target: float) -> tuple[float, float | None]:
    """Largest share accepted by a threshold whose measured precision is at least `target`, and the threshold.

    Returns 0.0 and None where no threshold reaches it. It is the acceptance rate at n per cent precision of
    Li et al. (hal-01830894): measured, not promised. On new products such a threshold misses its target every
    second time, however many products it was measured on; models/decisions/thresholds.py gives a guarantee.
    """
    exact = Fraction(target).limit_denominator(10**6)  # 0.07 * 100 > 7 in floats: compare whole numbers
    less = 0 if curve.accepted.dtype == np.int64 else 1e-12  # sums of weights are not whole
    reached = np.flatnonzero(
        curve.correct * exact.denominator >= curve.accepted * (exact.numerator * (1 - less))
    )
    if len(reached) == 0:
        return 0.0, None
    return float(curve.acceptance_rate[reached[-1]]), float(curve.threshold[reached[-1]])


def top_k_share(ranked: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of products whose true category is among their k most likely.

    Args:
        ranked: (n, columns) int, categories from the most likely on.
        truth: (n,) int.
        k: 1 to columns.

    Raises:
        ValueError: no product, k out of range, or different lengths.
    """
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(f"top {k} of {ranked.shape[1]} ranked categories; expected 1 to {ranked.shape[1]}")
    if len(ranked) != len(truth):
        raise ValueError(f"{len(ranked)} rankings for {len(truth)} products; expected one each")
    return precision((ranked[:, :k] == truth[:, None]).any(axis=1))


@dataclass(frozen=True, eq=False)
class CategoryCounts:
    """Counts per category, each (categories,) int64; the names are columns of categories.parquet."""

    products: np.ndarray  # whose true category it is
    right: np.ndarray  # of these, predicted correctly
    predicted: np.ndarray  # predicted as the category
    predicted_right: np.ndarray  # of these, correctly: as many as `right`
    accepted: np.ndarray  # predicted as the category, and accepted
    accepted_right: np.ndarray  # of these, correctly


def per_category(
    truth: np.ndarray, predicted: np.ndarray, accepted: np.ndarray, categories: int
) -> CategoryCounts:
    """Counts per true and per predicted category.

    Args:
        truth: (n,) int, 0 to categories - 1; -1 for a category that is none of them.
        predicted: (n,) int, 0 to categories - 1.
        accepted: (n,) bool, whether the category was accepted without a person.
        categories: number of categories.
    """

    def count(category: np.ndarray) -> np.ndarray:
        return np.bincount(category, minlength=categories)

    correct = truth == predicted
    return CategoryCounts(
        products=count(truth[truth >= 0]),
        right=count(truth[correct]),
        predicted=count(predicted),
        predicted_right=count(predicted[correct]),
        accepted=count(predicted[accepted]),
        accepted_right=count(predicted[accepted & correct]),
    )


@dataclass(frozen=True, eq=False)
class Confusions:
    """Pairs of categories that are confused with each other, the most frequent first, each (m,) int64."""

    truth: np.ndarray
    predicted: np.ndarray
    products: np.ndarray


def confusions(truth: np.ndarray, predicted: np.ndarray, most: int) -> Confusions:
    """The `most` most frequent wrong pairs of truth (n,) int and predicted (n,) int, both from 0 on.

    Ties are ordered by truth, then predicted. Memory grows with the wrong products, not with all pairs.
    """
    wrong = truth != predicted
    base = int(predicted.max(initial=0)) + 1
    pair, products = np.unique(truth[wrong].astype(np.int64) * base + predicted[wrong], return_counts=True)
    first = np.argsort(-products, kind="stable")[:most]  # pairs come sorted from unique
    return Confusions(pair[first] // base, pair[first] % base, products[first].astype(np.int64))
