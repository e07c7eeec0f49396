"""Two classifiers on the same products: what differs between them, and how certain that is (NumPy and SciPy).

    correct before   T T F F T …
    correct after    T F T F T …     became wrong: 1, became correct: 1

Products that both decide alike tell nothing about the difference. So paired intervals are much narrower than
those of two samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from models.decisions.categories import holm


@dataclass(frozen=True)
class Difference:
    """A share before and after, on the same products."""

    before: float
    after: float
    lower: float  # of the interval of after - before
    upper: float

    @property
    def value(self) -> float:
        """After - before."""
        return self.after - self.before


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact test of McNemar (1947).

    Args:
        gained: products that became correct.
        lost: products that became wrong.

    >>> mcnemar(1, 9), mcnemar(5, 5), mcnemar(0, 0)
    (0.021484375, 1.0, 1.0)
    """
    from scipy.stats import binom

    fewer, both = min(gained, lost), gained + lost
    return min(1.0, 2 * float(binom.cdf(fewer, both, 0.5)))


@dataclass(frozen=True, eq=False)
class GroupChanges:
    """How the products of each of several groups changed, each (groups,)."""

    products: np.ndarray  # int
    before: np.ndarray  # float, share that was correct; nan without products
    after: np.ndarray  # float
    gained: np.ndarray  # int, products that became correct
    lost: np.ndarray  # int
    p_value: np.ndarray  # float, of the exact test of McNemar
    real: np.ndarray  # bool, by Holm's procedure over all groups with products


def changes_by_group(
    code: np.ndarray, before: np.ndarray, after: np.ndarray, groups: int, level: float
) -> GroupChanges:
    """Whether products became correct or wrong, group by group.

    Args:
        code: (n,) int, the group of each product, 0 to groups - 1.
        before: (n,) bool, correct before.
        after: (n,) bool.
        groups: how many.
        level: probability, at most, that any group is called really changed that is not.
    """
    from scipy.stats import binom

    def count(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(code[chosen], minlength=groups)

    products = np.bincount(code, minlength=groups)
    gained, lost = count(~before & after), count(before & ~after)
    p_value = np.minimum(1.0, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))
    real = holm(p_value, level, int(np.count_nonzero(products)))
    with np.errstate(invalid="ignore"):
        shares = count(before) / products, count(after) / products
    return GroupChanges(products, *shares, gained, lost, p_value, real)


def difference_of_shares(before: np.ndarray, after: np.ndarray, certainty: float = 0.95) -> Difference:
    """The difference of two shares of the same products, with an interval.

    Wald's interval after half a product is added to each of the four cells (Agresti and Min, Statistics in
    Medicine 2005, section 4): without, two classifiers that always agree had an interval of width 0.

    Args:
        before: (n,) bool.
        after: (n,) bool, of the same products.
        certainty: of the interval.

    Raises:
        ValueError: there is no product, or the arrays differ in length.
    """
    _require_same(before, after)
    products = len(before)
    gained = np.count_nonzero(~before & after) + 0.5
    lost = np.count_nonzero(before & ~after) + 0.5
    enlarged = products + 2
    middle = (gained - lost) / enlarged
    half = _z(certainty) * np.sqrt(gained + lost - (gained - lost) ** 2 / enlarged) / enlarged
    return Difference(
        float(before.mean()), float(after.mean()),
        max(-1.0, float(middle - half)), min(1.0, float(middle + half)),
    )  # fmt: skip


def difference_of_precisions(
    accepted_before: np.ndarray,
    correct_before: np.ndarray,
    accepted_after: np.ndarray,
    correct_after: np.ndarray,
    certainty: float = 0.95,
) -> Difference | None:
    """The difference of the precisions of the accepted, where each side accepts its own of the same products.

    Both precisions are ratios of means over the same n products; the variance of their difference is that of
    the mean of `accepted · (correct - precision) / acceptance rate`, after minus before (delta method).

    Args:
        accepted_before: (n,) bool.
        correct_before: (n,) bool.
        accepted_after: (n,) bool.
        correct_after: (n,) bool.
        certainty: of the interval.

    Returns:
        None where one side accepts nothing.

    Raises:
        ValueError: there is no product, or the arrays differ in length.
    """
    _require_same(accepted_before, accepted_after)
    if not accepted_before.any() or not accepted_after.any():
        return None
    before, part_before = _precision(accepted_before, correct_before)
    after, part_after = _precision(accepted_after, correct_after)
    half = _z(certainty) * float(np.std(part_after - part_before)) / np.sqrt(len(part_after))
    return Difference(before, after, max(-1.0, after - before - half), min(1.0, after - before + half))


def resampled_acceptance_rates(
    outcomes: Sequence[tuple[np.ndarray, np.ndarray]], target: float, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Acceptance rates of classifiers at a precision, on the same products drawn again with replacement.

    Quantiles of a column are an interval of an acceptance rate, those of the difference of two columns one of
    the difference (percentile bootstrap; Efron and Tibshirani 1993, chapter 13): each draw sets every
    threshold again, as `acceptance_rate_at` sets it.

    Args:
        outcomes: for each of k classifiers confidence (n,) float and correct (n,) bool of the same products.
        target: precision of the accepted products.
        resamples: draws.
        seed: of the draws.

    Returns:
        (resamples, k) float.
    """
    ranked = [_Ranked.of(confidence, correct) for confidence, correct in outcomes]
    rng, products = np.random.default_rng(seed), len(outcomes[0][1])
    rates = np.zeros((resamples, len(ranked)))
    for number in range(resamples):
        times = np.bincount(rng.integers(0, products, products), minlength=products)
        rates[number] = [one.acceptance_rate(times, target) for one in ranked]
    return rates


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Products from the most to the least confident."""

    order: np.ndarray  # (n,) int
    correct: np.ndarray  # (n,) bool, in that order
    last: np.ndarray  # (m,) int, positions of the last of equal confidences

    @classmethod
    def of(cls, confidence: np.ndarray, correct: np.ndarray) -> "_Ranked":
        order = np.argsort(-confidence, kind="stable")
        return cls(order, correct[order], np.flatnonzero(np.diff(confidence[order], append=-np.inf)))

    def acceptance_rate(self, times: np.ndarray, target: float) -> float:
        """The largest share with this precision, each product being there so many times, (n,) int."""
        count = times[self.order]
        accepted = np.cumsum(count)[self.last]
        reached = np.flatnonzero(
            np.cumsum(count * self.correct)[self.last] >= target * accepted * (1 - 1e-12)
        )
        return float(accepted[reached[-1]] / len(times)) if len(reached) else 0.0


def _precision(accepted: np.ndarray, correct: np.ndarray) -> tuple[float, np.ndarray]:
    """The precision, and each product's part of its error, (n,) float."""
    precision = float(correct[accepted].mean())
    return precision, accepted * (correct - precision) / accepted.mean()


def _z(certainty: float) -> float:
    return float(ndtri(0.5 + certainty / 2))


def _require_same(before: np.ndarray, after: np.ndarray) -> None:
    if len(before) != len(after) or len(before) == 0:
        raise ValueError(f"{len(before)} and {len(after)} products; expected the same ones, at least one")
