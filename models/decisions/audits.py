"""Audits: how many decisions a person has to check, and what the checked ones prove (NumPy and SciPy only).

    plan     true precision, target, certainty, power ──► products to check
    judge    checked, wrong, stream                   ──► bounds of the stream's precision, verdict

The checked products are a simple random sample of the decisions. All bounds are exact: binomial (Clopper,
Pearson, Biometrika 1934), or hypergeometric where it is known how many decisions the sample was drawn from.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betaincinv

from models.decisions.thresholds import lower_bound, p_values

Verdict = Literal["proven", "not proven", "broken"]

MOST = 1_000_000  # audits; a plan that needs more is none
STEP = 10_000  # sample sizes tried at a time


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of the precision."""

    lower: float
    upper: float


@dataclass(frozen=True)
class Audit:
    """What an audited sample proves about the decisions it was drawn from."""

    checked: int
    wrong: int  # of the checked
    stream: int | None  # decisions that the sample was drawn from; None: unknown, taken as unlimited
    target: float  # precision promised
    certainty: float
    precision: float  # of the checked
    at_least: float  # one-sided lower bound of the stream's precision, with the certainty
    at_most: float  # one-sided upper bound, likewise
    interval: Interval  # two-sided, likewise
    verdict: Verdict
    needed: int | None  # checked products that would prove the promise, about; None where none can

    @property
    def sampled_share(self) -> float:
        """Share of the stream that was checked; 0 where the stream is unknown."""
        return self.checked / self.stream if self.stream else 0.0


# Plan


def audits_for(precision: float, target: float, certainty: float = 0.9, power: float = 0.8) -> int | None:
    """The smallest number of products to check that proves a precision of at least `target`.

    Of n checked products at most c may be wrong, c the largest with P(Bin(n, 1 - target) <= c) <= 1 -
    certainty. The plan is the smallest n for which P(Bin(n, 1 - precision) <= c) reaches the power. Exact; a
    few larger n reach less, because c is a whole number.

    Args:
        precision: the true one, as expected.
        target: the promised one.
        certainty: that a stream below the target is not called proven.
        power: probability that a stream of that precision is called proven.

    Returns:
        None where the precision is not above the target, or more than a million would be needed.

    Raises:
        ValueError: a number is not between 0 and 1; the precision may be 0 or 1.

    >>> [audits_for(p, 0.9) for p in (0.92, 0.93, 0.94, 0.95, 0.97)]
    [932, 390, 210, 128, 65]
    """
    if not (0 < target < 1 and 0 < certainty < 1 and 0 < power < 1 and 0 <= precision <= 1):
        raise ValueError(
            f"precision {precision:g}, target {target:g}, certainty {certainty:g}, power {power:g}; "
            "expected numbers between 0 and 1"
        )
    if precision <= target:
        return None
    for first in range(1, MOST + 1, STEP):
        checked = np.arange(first, first + STEP)
        wrong = allowed_errors(checked, target, certainty)
        reached = np.where(wrong >= 0, p_values(checked, np.maximum(wrong, 0), 1 - precision), 0.0) >= power
        if reached.any():
            return int(checked[np.argmax(reached)])
    return None


def allowed_errors(checked: np.ndarray, target: float, certainty: float) -> np.ndarray:
    """(n,) int64: how many of the checked may be wrong for the promise to be proven; -1 where none may.

    Args:
        checked: (n,) int.
        target: precision promised.
        certainty: of the proof.

    >>> allowed_errors(np.array([21, 22, 38]), 0.9, 0.9).tolist()  # 0.9 ** 22 < 0.1
    [-1, 0, 1]
    """
    alpha, level = round(1 - target, 12), round(1 - certainty, 12)  # 1 - 0.9 is under 0.1 in floats
    low, high = np.full(len(checked), -1), checked.astype(np.int64)  # allowed <= low < high: bisection
    while (high - low > 1).any():
        middle = (low + high) // 2
        proven = (middle >= 0) & (p_values(checked, np.maximum(middle, 0), alpha) <= level)
        low, high = np.where(proven, middle, low), np.where(proven, high, np.maximum(middle, low + 1))
    return low


# Judge


def judge_audit(
    checked: int,
    wrong: int,
    target: float,
    certainty: float = 0.9,
    stream: int | None = None,
    power: float = 0.8,
) -> Audit:
    """What a checked sample proves.

    Proven: with the certainty the precision is at least the target. Broken: with the certainty it is below.

    Args:
        checked: products of a simple random sample.
        wrong: of these.
        target: precision promised, 0 to 1.
        certainty: of each statement, 0 to 1.
        stream: decisions that the sample was drawn from; None: unknown. The bounds are then binomial, which
            for a sample that is a large part of the stream are wider than necessary.
        power: that `needed` is for.

    Raises:
        ValueError: counts that contradict each other, or a number out of its range.
    """
    if not 0 <= wrong <= checked or checked < 1 or (stream is not None and stream < checked):
        raise ValueError(
            f"{wrong} wrong of {checked} checked of {stream}; expected at most as many, one or more"
        )
    if not (0 < target < 1 and 0 < certainty < 1):
        raise ValueError(f"target {target:g}, certainty {certainty:g}; expected numbers between 0 and 1")
    miss = round(1 - certainty, 12)
    at_least, at_most = _bounds(checked, wrong, stream, miss)
    lower, upper = _bounds(checked, wrong, stream, miss / 2)
    verdict: Verdict = "not proven"
    if at_least >= target:
        verdict = "proven"
    elif at_most < target:
        verdict = "broken"
    precision = (checked - wrong) / checked
    needed = audits_for(precision, target, certainty, power) if verdict == "not proven" else None
    if needed is not None:
        needed = max(needed, checked + 1)  # as many were not enough
        needed = min(needed, stream) if stream is not None else needed
    return Audit(
        checked=checked, wrong=wrong, stream=stream, target=target, certainty=certainty, precision=precision,
        at_least=at_least, at_most=at_most, interval=Interval(lower, upper), verdict=verdict, needed=needed,
    )  # fmt: skip


def _bounds(checked: int, wrong: int, stream: int | None, miss: float) -> tuple[float, float]:
    """One-sided lower and upper bound of the precision, each missed with probability `miss` at most."""
    if stream is None:
        upper = betaincinv(checked - wrong + 1, wrong, 1 - miss) if wrong else 1.0
        return float(lower_bound(checked, wrong, miss)), float(upper)
    most = _most_wrong(stream, checked, wrong, miss)
    least = stream - _most_wrong(stream, checked, checked - wrong, miss)  # the same of the correct ones
    return 1 - most / stream, 1 - least / stream


def _most_wrong(stream: int, checked: int, wrong: int, miss: float) -> int:
    """The largest number of wrong decisions in the stream with P(at most `wrong` in the sample) > miss.

    Exact, from the hypergeometric distribution (Konijn, "Statistical theory of sample survey design and
    analysis", 1973): the probability falls as the number grows, so that it is found by bisection.
    """
    from scipy.stats import hypergeom

    low, high = wrong, stream - (checked - wrong) + 1  # low is possible, high is not
    while high - low > 1:
        middle = (low + high) // 2
        if hypergeom.cdf(wrong, stream, middle, checked) > miss:
            low = middle
        else:
            high = middle
    return low
