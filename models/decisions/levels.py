"""The level of the tree at which a product is decided, with a promise for each level (NumPy and SciPy only).

    category       c3 >= t3 ──► stops here                       level 0.8 delta, as `certify`
                   │ no
    parent         c2 >= t2, depth > 2 ──► stops here            level 0.1 delta · w(t3)
                   │ no
    grandparent    c1 >= t1, depth > 1 ──► stops here            level 0.1 delta · w(t3) · w(t2)
                   │ no
    review

A product whose most likely category is withheld, because there is too little evidence about it yet, never
stops at the category. Which categories are, no product of CERT may decide.

Of the products that stop at a level, at least a share `target` has the correct node there; all levels
together hold with probability 1 - delta over the draw of CERT. Which products reach the parent depends on t3,
and that on CERT. The promise holds nevertheless:

1. The thresholds t that the leaf may get are fixed on FIT. Let F(t) be all that CERT tells about the products
   with c3 >= t. Given F(t), the other products of CERT are independent draws from those of the population
   with c3 < t. So chains among them, at a level a(t) that FIT and F(t) determine, certify a wrong threshold
   with probability a(t) at most.
2. The levels are a(t) = share · w(t). Whatever CERT is, the weights w of all t, and of "no threshold", sum to
   1 at most. So the probability that under any t a wrong threshold is certified is E[sum a(t)] <= share at
   most (union bound); this includes t3, however CERT chose it.
3. For the grandparent the same holds with F(t3, t2), all that CERT tells about the products that stop at the
   category or at the parent, and the level share · w(t3) · w(t2). More levels follow in the same way.

The weights are spent along the finer level's walk: at each threshold, the part of what is left that is the
probability that the walk ends there, predicted from what it has seen so far. A poor prediction costs
acceptance, never the promise. Weights fixed on FIT, spread over all thresholds where the walk may end, accept
less (docs/experiments/levels.md).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import gammainc, ndtr

from models.decisions.thresholds import (
    Certificate,
    Outcomes,
    certify_products,
    chains,
    counts_at,
    lower_bound,
    most_errors,
    p_values,
    refuse_settings,
    refuse_shared,
    steps,
    uncertified,
)

# Of delta; the coarser levels have equal parts of the rest. With 6,000 validation products the leaf accepts
# 0.2 to 0.3 points less than with all of delta, with a share of 0.6 it would be 0.5 to 0.7; with one of 0.9
# the coarser levels accept 2 to 5 points less with 300 products.
LEAF_SHARE = 0.8
WINDOW = 30  # products on each side of a threshold that predict the errors just below it


@dataclass(frozen=True, eq=False)
class LevelOutcomes:
    """Products, never images: for a node of each level its confidence, and whether it is correct."""

    product_id: np.ndarray  # (n,) str, distinct
    group: np.ndarray  # (n,) str or int; near-duplicates share one
    confidence: np.ndarray  # (n, N) float, 0 to 1, coarse to fine; the last column is the category's
    correct: np.ndarray  # (n, N) bool
    depth: (
        np.ndarray
    )  # (n,) int, 1 to N, of the predicted category; level k < N is open to products deeper than k
    withheld: np.ndarray | None = None  # (n,) bool, never accepted at the category; None: no product is

    def __post_init__(self) -> None:
        """Raises ValueError where the arrays do not hold exactly one row of each product."""
        if self.confidence.ndim != 2 or self.confidence.shape[1] == 0:
            raise ValueError(f"confidence of shape {self.confidence.shape}; expected (products, levels)")
        if self.correct.shape != self.confidence.shape or self.depth.shape != self.confidence.shape[:1]:
            raise ValueError(
                f"correct {self.correct.shape}, depth {self.depth.shape}; expected those of "
                f"{self.confidence.shape[0]} products and {self.confidence.shape[1]} levels"
            )
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():  # false for nan too
            raise ValueError("a confidence is not a number from 0 to 1; expected such numbers")
        if ((self.depth < 1) | (self.depth > self.confidence.shape[1])).any():
            raise ValueError(
                f"a depth is not in 1 to {self.confidence.shape[1]}; expected a level of the tree"
            )
        if self.withheld is not None and (
            self.withheld.shape != self.depth.shape or self.withheld.dtype != bool
        ):
            raise ValueError(
                f"withheld is {self.withheld.dtype} of shape {self.withheld.shape}; expected a bool of each "
                "product"
            )
        self.leaf()

    def open_at(self, level: int) -> np.ndarray:
        """(n,) bool: the products that may stop at a level."""
        if level < self.confidence.shape[1]:
            is_open: np.ndarray = self.depth > level
            return is_open
        return np.ones(len(self.depth), bool) if self.withheld is None else ~self.withheld

    def leaf(self) -> Outcomes:
        """The outcomes of the category. Raises ValueError where they do not hold one of each product."""
        return self._leaf

    @cached_property
    def _leaf(self) -> Outcomes:
        return Outcomes(self.product_id, self.group, self.confidence[:, -1], self.correct[:, -1])


def certify_levels(
    fit: LevelOutcomes, cert: LevelOutcomes, *, target: float = 0.9, delta: float = 0.1, grid: int = 1000
) -> tuple[Certificate, ...]:
    """Returns a certificate of each level, coarse to fine; all together hold with probability 1 - delta.

    Args:
        fit: products that selected the confidence model, and now the order in which thresholds are tried.
        cert: products that selected nothing so far; one of each group counts.
        target: precision promised for the products that stop at a level.
        delta: probability that any of these promises fails.
        grid: thresholds tried on a level, at most.

    Returns:
        N certificates, the last that of the categories. `delta` of each is its share; `products` counts all
        products of CERT, one of each group; `accepted` and `errors` are of those that stop at the level, and
        their threshold is None where nothing can be promised. The same for any order of rows.

    Raises:
        ValueError: a product or group is in both, the numbers of levels differ, or a setting is out of range.
    """
    refuse_settings(target, delta, grid)
    refuse_shared(fit.leaf(), cert.leaf())
    levels = cert.confidence.shape[1]
    if fit.confidence.shape[1] != levels:
        raise ValueError(f"{fit.confidence.shape[1]} levels in FIT, {levels} in CERT; expected the same")
    chosen = cert.leaf().one_per_group
    confidence, correct = cert.confidence[chosen], cert.correct[chosen]

    left_fit, left = np.ones(len(fit.depth), dtype=bool), np.ones(len(chosen), dtype=bool)
    part, found = 1.0, []  # part: product of the finer levels' weights
    for level in range(levels, 0, -1):
        column = level - 1
        share = delta * delta_share(level, levels)
        of_fit, of_cert = left_fit & fit.open_at(level), left & cert.open_at(level)[chosen]
        products = (
            fit.confidence[of_fit, column], fit.correct[of_fit, column],
            confidence[of_cert, column], correct[of_cert, column],
        )  # fmt: skip
        # how many are left is known when the finer level stops; how many of these are open here is not
        ratio = float(left.sum() / max(int(left_fit.sum()), 1))
        one = certify_products(*products, ratio, target=target, delta=share * part, grid=grid)
        found.append(_of_all(one, share, products, len(fit.depth), len(chosen)))
        if level > 1:
            weights = weights_along(*products, ratio, target=target, delta=share * part, grid=grid)
            part *= weights.of(one.threshold)
        if one.threshold is not None:
            left_fit &= ~(of_fit & (fit.confidence[:, column] >= one.threshold))
            left &= ~(of_cert & (confidence[:, column] >= one.threshold))
    return tuple(reversed(found))


def delta_share(level: int, levels: int) -> float:
    """Part of delta for the promise of a level: LEAF_SHARE for the categories, the rest in equal parts.

    >>> [round(delta_share(level, 3), 3) for level in (1, 2, 3)]
    [0.1, 0.1, 0.8]
    """
    if levels == 1:
        return 1.0
    return LEAF_SHARE if level == levels else (1 - LEAF_SHARE) / (levels - 1)


def stop_level(confidence: np.ndarray, depth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(n,) int: the finest level whose threshold a product reaches; N is the category, 0 is review.

    Args:
        confidence: (n, N) float, coarse to fine.
        depth: (n,) int, of the predicted category; level k < N is open to products deeper than k.
        thresholds: (N,) float, nan or None where nothing is accepted.

    >>> confidence = np.array([[0.99, 0.8], [0.99, 0.4], [0.7, 0.4]])
    >>> stop_level(confidence, np.array([2, 2, 2]), np.array([0.9, 0.6]))
    array([2, 1, 0])
    """
    levels = confidence.shape[1]
    reached = confidence >= np.asarray(thresholds, dtype=np.float64)
    reached[:, :-1] &= depth[:, None] > np.arange(1, levels)
    return np.where(reached.any(axis=1), levels - np.argmax(reached[:, ::-1], axis=1), 0)


@dataclass(frozen=True, eq=False)
class Weights:
    """How the promise of the coarser levels is spread over the thresholds at which a level's walk may end."""

    thresholds: np.ndarray  # (G,) float, the grid of `certify_products`
    weight: np.ndarray  # (G,) float, 0 to 1
    none: float  # of "nothing is certified"; with the others it sums to 1 at most

    def of(self, threshold: float | None) -> float:
        """The weight of a threshold of the grid, or of None."""
        return self.none if threshold is None else float(self.weight[self.thresholds == threshold].sum())


def weights_along(
    fit_confidence: np.ndarray,
    fit_correct: np.ndarray,
    confidence: np.ndarray,
    correct: np.ndarray,
    ratio: float,
    *,
    target: float,
    delta: float,
    grid: int,
) -> Weights:
    """Returns the weights w along the walk of `certify_products` with the same arguments.

    w(t) depends on FIT, on `ratio`, and of CERT only on the products with confidence >= t. At a threshold
    that a chain has reached, a part h of what is left is spent: the Poisson probability that the next step of
    the grid has more errors than the chain allows.

    Args:
        fit_confidence: (n,) float, of FIT's products that are open at this level.
        fit_correct: (n,) bool.
        confidence: (m,) float, of CERT's.
        correct: (m,) bool, of CERT's.
        ratio: about m / n, but not from the number m: this tells about products under the threshold.
        target: precision promised.
        delta: the level's share of delta, as in `certify_products`.
        grid: thresholds tried, at most.
    """
    alpha = round(1 - target, 12)
    thresholds, starts, levels = chains(fit_confidence, fit_correct, ratio, alpha, delta, grid)
    if len(thresholds) == 0:
        return Weights(thresholds, np.zeros(0), 1.0)
    fit_accepted, fit_errors = counts_at(thresholds, fit_confidence, fit_correct)
    accepted, errors = counts_at(thresholds, confidence, correct)

    alive = np.zeros(len(thresholds))  # largest level of a chain that has reached the threshold
    p = p_values(accepted, errors, alpha)
    for start, stop in steps(p, levels):
        alive[start:stop] = np.maximum(alive[start:stop], levels[start])

    none = 0.9  # without a main start; else the probability that its p-value is over its level
    if "main" in starts:
        main = starts["main"]
        products, rate = fit_accepted[main], (fit_errors[main] + 0.5) / (fit_accepted[main] + 1)
        mean, deviation = ratio * products * rate, (ratio * products * rate * (1 - rate) * (1 + ratio)) ** 0.5
        most = most_errors(ratio * products, levels[main], alpha)
        none = float(np.clip(ndtr((mean - most - 0.5) / max(deviation, 1e-9)), 0.05, 0.9))

    here = np.flatnonzero(alive)
    below = np.minimum(here + 1, len(p) - 1)
    step = ratio * (fit_accepted[below] - fit_accepted[here])
    # error rate just below: of FIT's next products and of the last ones of CERT that were passed
    last = np.minimum(np.searchsorted(fit_accepted, fit_accepted[here] + WINDOW), len(p) - 1)
    first = np.maximum(np.searchsorted(accepted, accepted[here] - WINDOW) - 1, 0)
    wrong = fit_errors[last] - fit_errors[here] + errors[here] - errors[first]
    around = fit_accepted[last] - fit_accepted[here] + accepted[here] - accepted[first]
    spare = np.maximum(most_errors(accepted[here] + step, alive[here], alpha) - errors[here], 0)
    h = np.zeros(len(p))
    h[here] = gammainc(spare + 1, step * (wrong + 2) / (around + 10))
    h[-1] = 1.0  # no threshold is left
    before = np.concatenate([[1.0], np.cumprod(1 - h)[:-1]])
    return Weights(thresholds, (1 - none) * before * h, none)


def _of_all(
    one: Certificate, delta: float, products: tuple[np.ndarray, ...], fit_products: int, cert_products: int
) -> Certificate:
    """The certificate among the products left at a level, as one about all products of CERT."""
    fit_left, cert_left = len(products[0]), len(products[2])
    if one.threshold is not None:
        return replace(
            one,
            delta=delta,
            products=cert_products,
            acceptance_rate=one.accepted / cert_products,
            precision_lower=float(lower_bound(one.accepted, one.errors, delta)),
        )
    if fit_left == 0 and fit_products > 0:
        reason = "no product of FIT is left at this level, so that no threshold can be tried"
        return replace(one, delta=delta, products=cert_products, reason=reason)
    needed = np.inf
    if one.more_products_needed is not None:
        times = cert_products / cert_left if cert_left else fit_products / fit_left
        needed = (cert_left + one.more_products_needed) * times
    return uncertified(one.target, delta, one.grid, cert_products, needed, one.at_best)
