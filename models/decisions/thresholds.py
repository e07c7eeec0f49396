"""The confidence from which on we decide alone, with a guarantee (NumPy and SciPy only).

    FIT    outcomes                 ──► grid t1 > … > tG of attained confidences; where chains start
    CERT   outcomes, one per group  ──► at each t: accepted M, errors K, p = P(Bin(M, alpha) <= K)

    t      .99   .98   .97   .96   .95   .93   .90   .86   .80
    p      .30   .04   .003  .002  .004  .02   .07   .15   .60     delta = .1
    20 %         ✗                                                 level .005: not even its start
    40 %               ────────────►                               level .005
    main                     ────────────────────►                 level .09: walks while p <= level
                                               ▲
                                               threshold: the lowest certified

With probability 1 - delta over the draw of CERT, at least a share `target` of the products accepted at the
certified threshold is correct. Learn then test (Angelopoulos et al. 2021), with the exact binomial tail:
given how many are accepted, their errors are binomial. FIT may be used as often as one likes, CERT only here.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, ndtri

from features.product import order_key
from models.decisions.names import Names

# FIT may mislead. Further starts where its acceptance reaches so many per cent have this share of delta each,
# if about so many products of CERT are there; with fewer they hardly ever certify, and main has it all.
BACKUPS, BACKUP_SHARE, BACKUP_PRODUCTS = (20, 40), 0.05, 100
LEAST_ACCEPTED = 5  # products of FIT at the main start


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Products, never images: their confidence, and whether the predicted category is correct."""

    product_id: np.ndarray  # (n,) str, distinct
    group: np.ndarray  # (n,) str or int; near-duplicates share one
    confidence: np.ndarray  # (n,) float, 0 to 1
    correct: np.ndarray  # (n,) bool

    def __post_init__(self) -> None:
        """Raises ValueError where the arrays do not hold exactly one outcome of each product."""
        lengths = {len(self.product_id), len(self.group), len(self.confidence), len(self.correct)}
        if len(lengths) > 1:
            raise ValueError(f"arrays of {sorted(lengths)} products; expected one length")
        if self.correct.dtype != bool:
            raise ValueError(f"correct is {self.correct.dtype}; expected bool")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():  # false for nan too
            raise ValueError("a confidence is not a number from 0 to 1; expected such numbers")
        if self.ids.repeated:
            raise ValueError("a product_id occurs twice; expected a row per product, not per image")

    def only(self, chosen: np.ndarray) -> "Outcomes":
        """The chosen products, (n,) bool."""
        return Outcomes(
            *(column[chosen] for column in (self.product_id, self.group, self.confidence, self.correct))
        )

    @cached_property
    def ids(self) -> Names:
        """The product ids."""
        return Names(self.product_id)

    @cached_property
    def groups(self) -> Names:
        """The groups."""
        return Names(self.group)

    @cached_property
    def one_per_group(self) -> np.ndarray:
        """(groups,) int, a row for each group: that of the product with the smallest hash of its id.

        Near-duplicates are correct or wrong together; counted one by one, clusters of five broke the promise
        in 21 to 30 of 100 calibrations. The hash depends neither on confidences nor on the order of rows.
        """
        shared, ids = self.groups.repeated.values(), self.product_id.tolist()
        chosen = np.ones(len(ids), bool)
        chosen[list(itertools.chain.from_iterable(shared))] = False
        chosen[[min(rows, key=lambda row: (order_key(ids[row]), ids[row])) for rows in shared]] = True
        return np.flatnonzero(chosen)


@dataclass(frozen=True)
class Certificate:
    """What CERT proves of a threshold; where that is None nothing may be accepted, and `reason` says why."""

    target: float  # precision promised for the accepted products
    delta: float  # probability that the promise fails
    grid: int  # distinct thresholds tried
    products: int  # n, of CERT, one per group
    accepted: int = 0  # M, of these
    errors: int = 0  # K, of the accepted
    threshold: float | None = None  # accept where confidence >= threshold
    acceptance_rate: float = 0.0  # M / n
    precision: float | None = None  # (M - K) / M
    precision_lower: float | None = None  # one-sided Clopper-Pearson bound, certainty 1 - delta
    chain: str | None = None  # the start whose chain reached the threshold; several where they coincide
    level: float | None = None  # its share of delta: p_value is at most this
    p_value: float | None = None  # P(Bin(M, 1 - target) <= K)
    margin: float | None = None  # precision - target: the price of certainty
    margin_products: int | None = None  # the least confident tenth of the accepted, ties included
    margin_precision: float | None = None  # their precision: about that of what a lower threshold would add
    more_products_needed: int | None = None  # in CERT, about; None when certified, or when more will not help
    at_best: bool = False  # CERT is so small that more_products_needed is a lower limit, not an estimate
    reason: str | None = None  # None when certified

    def to_dict(self) -> dict[str, object]:
        """Returns what thresholds.json holds of it: `certificate`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Certificate":
        """Reads what `to_dict` returned; a field that an older release lacks has its default."""
        return cls(**values)


def certify(
    fit: Outcomes, cert: Outcomes, *, target: float = 0.9, delta: float = 0.1, grid: int = 1000
) -> Certificate:
    """The lowest threshold at which precision is at least `target`, with probability 1 - delta.

    Args:
        fit: products that selected the confidence model, and now the order in which thresholds are tried;
            best with out-of-fold confidences (out_of_fold.py), as the fitted model is too sure of them.
        cert: products that selected nothing so far; one of each group counts.
        target: precision promised.
        delta: probability that the promise fails.
        grid: thresholds tried, at most.

    Returns:
        The certificate; its threshold is None where nothing can be promised. The same for any order of rows.

    Raises:
        ValueError: a product or group is in both, or a setting is out of range.
    """
    refuse_settings(target, delta, grid)
    refuse_shared(fit, cert)
    chosen = cert.one_per_group
    return certify_products(
        fit.confidence, fit.correct, cert.confidence[chosen], cert.correct[chosen],
        len(chosen) / max(len(fit.correct), 1), target=target, delta=delta, grid=grid,
    )  # fmt: skip


def certify_ladder(
    fit: Outcomes, cert: Outcomes, targets: Sequence[float], *, delta: float = 0.1, grid: int = 1000
) -> tuple[Certificate, ...]:
    """The certificate of `certify` at each of several targets, each by itself with probability 1 - delta.

    Raises:
        ValueError: as `certify`.
    """
    for target in targets:
        refuse_settings(target, delta, grid)
    refuse_shared(fit, cert)
    chosen = cert.one_per_group
    products = fit.confidence, fit.correct, cert.confidence[chosen], cert.correct[chosen]
    ratio = len(chosen) / max(len(fit.correct), 1)
    return tuple(
        certify_products(*products, ratio, target=target, delta=delta, grid=grid) for target in targets
    )


def certify_products(
    fit_confidence: np.ndarray,
    fit_correct: np.ndarray,
    confidence: np.ndarray,
    correct: np.ndarray,
    ratio: float,
    *,
    target: float,
    delta: float,
    grid: int,
) -> Certificate:
    """Certifies as `certify` does, given disjoint FIT and CERT, and of CERT one product of each group.

    Args:
        fit_confidence: (n,) float, 0 to 1.
        fit_correct: (n,) bool.
        confidence: (m,) float, of CERT.
        correct: (m,) bool, of CERT.
        ratio: products of CERT for each of FIT, m / n or about that.
        target: precision promised.
        delta: probability that the promise fails.
        grid: thresholds tried, at most.
    """
    alpha = round(1 - target, 12)  # 1 - 0.9 is a little under 0.1 in floats
    thresholds, starts, levels = chains(fit_confidence, fit_correct, ratio, alpha, delta, grid)
    p = p_values(*counts_at(thresholds, confidence, correct), alpha)
    walked = walk(p, levels)
    if walked is None:
        at = list(starts.values())
        reached = len(at) > 0 and np.any(
            confidence >= thresholds[at].min()
        )  # else only FIT has products there
        sample, outcome = (confidence, correct) if reached else (fit_confidence, fit_correct)
        needed = _products_needed(sample, outcome, thresholds[at], levels[at], target, delta)
        return uncertified(target, delta, len(thresholds), len(correct), *needed)
    first, last = walked
    chain = ", ".join(name for name, start in starts.items() if start == first)
    return _certified(
        target, delta, len(thresholds), float(thresholds[last]), chain, float(levels[first]), float(p[last]),
        confidence, correct,
    )  # fmt: skip


def chains(
    confidence: np.ndarray, correct: np.ndarray, ratio: float, alpha: float, delta: float, grid: int
) -> tuple[np.ndarray, dict[str, int], np.ndarray]:
    """Thresholds (G,) and starts of the chains, from FIT, and levels (G,): of a start its level, else 0.

    Args:
        confidence: (n,) float, of FIT.
        correct: (n,) bool, of FIT.
        ratio: about how many products of CERT there are for each of FIT.
        alpha: error rate that the target allows.
        delta: the sum of the levels, at most.
        grid: thresholds, at most.
    """
    thresholds = threshold_grid(confidence, grid)
    counts = counts_at(thresholds, confidence, correct)
    starts = chain_starts(*counts, len(correct), ratio, alpha, delta)
    levels = np.zeros(len(thresholds))
    for name, start in starts.items():
        backups = len(starts) - ("main" in starts)
        levels[start] += delta * (1 - backups * BACKUP_SHARE if name == "main" else BACKUP_SHARE)
    return thresholds, starts, levels


def threshold_grid(confidence: np.ndarray, grid: int) -> np.ndarray:
    """At most `grid` distinct attained confidences, descending, at even steps of acceptance.

    >>> threshold_grid(np.array([0.2, 0.5, 0.5, 0.9]), 2)
    array([0.5, 0.2])
    >>> threshold_grid(np.array([0.2, 0.5, 0.5, 0.9]), 1000)
    array([0.9, 0.5, 0.2])
    """
    if len(confidence) == 0:
        return confidence
    step = -(-np.arange(1, grid + 1) * len(confidence) // grid)  # products accepted, rounded up
    return np.unique(np.sort(confidence)[::-1][step - 1])[::-1]


def counts_at(
    thresholds: np.ndarray, confidence: np.ndarray, correct: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accepted products and errors among them at each threshold, both (G,) int64."""
    wrong = confidence[~correct]
    accepted = len(confidence) - np.searchsorted(np.sort(confidence), thresholds)
    return accepted, len(wrong) - np.searchsorted(np.sort(wrong), thresholds)


def chain_starts(
    accepted: np.ndarray,
    errors: np.ndarray,
    products: int,
    ratio: float,
    alpha: float,
    delta: float,
    *,
    backups: tuple[int, ...] = BACKUPS,
    exponent: float = 0.25,
) -> dict[str, int]:
    """Thresholds at which the chains start, from FIT's counts: name → index in the grid.

    Main: where `power * acceptance ** exponent` of FIT is largest, among the thresholds with at least 5
    products and an error rate under alpha; absent where there is none. Power is the probability that CERT
    certifies the threshold if FIT measures about the truth. It is near 1 on a long stretch where CERT is
    large; the second factor then starts the walk near its end. Backups: where the acceptance first reaches 20
    and 40 per cent, each only where about 100 products of CERT are accepted.
    """
    if products == 0:
        return {}
    starts = {}
    for share in backups:
        first = int(np.argmax(100 * accepted >= share * products))
        if ratio * accepted[first] >= BACKUP_PRODUCTS:
            starts[f"backup {share}%"] = first
    able = (errors < alpha * accepted) & (accepted >= LEAST_ACCEPTED)
    if not able.any():
        return starts
    level = delta * (1 - len(starts) * BACKUP_SHARE)
    rate, expected = (errors + 0.5) / (accepted + 1), ratio * accepted
    # Normal approximation of CERT's errors. That FIT's rate is uncertain, too, gives the factor 1 + ratio;
    # that the start with the luckiest rate is chosen makes it more.
    spread = np.sqrt(expected * rate * (1 - rate) * (1 + 2 * ratio)) + 1e-9
    power = ndtr((most_errors(expected, level, alpha) + 0.5 - expected * rate) / spread)
    return {"main": int(np.argmax(np.where(able, power * accepted**exponent, -1.0)))} | starts


def most_errors(accepted: np.ndarray | float, level: np.ndarray | float, alpha: float) -> np.ndarray:
    """The most errors among so many products with a p-value up to the level; -1 where none is allowed.

    >>> most_errors(np.array([21, 22, 100]), 0.1, 0.1)
    array([-1.,  0.,  5.])
    """
    from scipy.stats import binom

    whole = np.round(accepted)
    reached = binom.ppf(level, whole, alpha)  # the fewest errors with p >= level
    most: np.ndarray = np.where(binom.cdf(reached, whole, alpha) > level, reached - 1, reached)
    return most


def p_values(accepted: np.ndarray, errors: np.ndarray, alpha: float) -> np.ndarray:
    """P(Bin(accepted, alpha) <= errors) for each count; 1 where nothing is accepted.

    >>> p_values(np.array([0, 21, 22]), np.array([0, 0, 0]), 0.1).round(4)  # 0.9 ** 21 and 0.9 ** 22
    array([1.    , 0.1094, 0.0985])
    """
    # scipy.special.bdtr is off by 7e-12 at M = 5,000 and 9e-9 at 2 million; betainc by 1e-13 at most
    some = np.maximum(accepted - errors, 1)
    return np.where(accepted > errors, betainc(some, errors + 1, 1 - alpha), 1.0)


def walk(p: np.ndarray, levels: np.ndarray) -> tuple[int, int] | None:
    """Walks from every start down the grid while p <= the start's level.

    The starts' levels add up to delta at most, and a chain certifies a wrong threshold only if it passes the
    first wrong one that it meets: with probability 1 - delta at least, none does (fixed-sequence testing).

    Args:
        p: (G,) p-values, from the strictest threshold to the loosest.
        levels: (G,) level of the chain that starts at a threshold, 0 where none does.

    Returns:
        Start and end, as indices, of the chain that gets furthest, of several the one with the largest level;
        None where no start is certified.

    >>> walk(np.array([0.001, 0.07, 0.06, 0.02]), np.array([0.005, 0.08, 0, 0.005]))
    (1, 3)
    """
    # Passing levels on where chains meet (Wiens 2003) keeps the guarantee too. On 5,000 products it accepted
    # 0.2 points more and broke the promise 8 times in 100 instead of 6: not worth another rule.
    found = [(stop - 1, levels[start], start) for start, stop in steps(p, levels) if stop > start]
    return (max(found)[2], max(found)[0]) if found else None


def steps(p: np.ndarray, levels: np.ndarray) -> Iterator[tuple[int, int]]:
    """The start of each chain and the first threshold that it does not certify; arguments as for `walk`.

    >>> list(steps(np.array([0.001, 0.07, 0.06, 0.02]), np.array([0.005, 0.08, 0, 0.005])))
    [(0, 1), (1, 4), (3, 3)]
    """
    for start in np.flatnonzero(levels).tolist():
        stops = np.flatnonzero(p[start:] > levels[start])
        yield start, start + int(stops[0]) if len(stops) else len(p)


def lower_bound(accepted: np.ndarray | int, errors: np.ndarray | int, delta: float) -> np.ndarray:
    """One-sided Clopper-Pearson lower bound of the precision at certainty 1 - delta; 0 where none is correct.

    For each count by itself: along a curve it is an illustration, and only `certify` promises a threshold.

    >>> float(lower_bound(22, 0, 0.1).round(4))  # 0.1 ** (1 / 22)
    0.9006
    """
    correct = np.asarray(accepted) - np.asarray(errors)
    return np.where(correct > 0, betaincinv(np.maximum(correct, 1), np.asarray(errors) + 1, delta), 0.0)


def products_for(precision: float, target: float, level: float, power: float = 0.8) -> float:
    """About how many accepted products prove, with that power, that a true precision is over the target.

    Normal approximation of the binomial test, `((z_level s(target) + z_power s(precision)) / difference)²`
    with s(p) = sqrt(p (1 - p)), and at least as many as prove it without any error, `target ** n <= level`,
    which is exact where all are correct; infinite for a precision up to the target.

    >>> round(products_for(1.0, 0.9, 0.1), 2)  # 22 products without error certify, 21 do not
    21.85
    """
    if precision <= target:
        return np.inf
    least = float(np.log(level) / np.log(target))
    if precision == 1:
        return least
    deviation = np.sqrt([target * (1 - target), precision * (1 - precision)])
    return max(float((ndtri([1 - level, power]) @ deviation / (precision - target)) ** 2), least)


def in_catalogue_products(more: int, certified_on: int, categorized: int) -> int | None:
    """About how many more products of the catalogue bring so many more products to CERT.

    Of the catalogue's products with a category and a photo, the split leaves CERT a fixed share; about the
    same share of further ones will get there.

    Args:
        more: `Certificate.more_products_needed`.
        certified_on: `Certificate.products`, of CERT, one of each duplicate group.
        categorized: products of the catalogue with a category and a photo.

    Returns:
        Rounded up; None where CERT is empty, which tells nothing about its share.

    >>> in_catalogue_products(18, 97, 1684)
    313
    """
    return -(-more * categorized // certified_on) if certified_on else None


def _products_needed(
    confidence: np.ndarray,
    correct: np.ndarray,
    thresholds: np.ndarray,
    levels: np.ndarray,
    target: float,
    delta: float,
) -> tuple[float, bool]:
    """About how many products in all certify a chain's start, or infinity; and whether that is a lower limit.

    The estimate takes the measured precision of the start as the true one. Where no error was measured, or no
    start measures over the target, the upper bound of the precision (Clopper-Pearson, certainty 1 - delta) is
    taken instead, which gives a lower limit.
    """
    accepted, errors = counts_at(thresholds, confidence, correct)
    # half a correct and half a wrong product more: 10 of 10 does not mean all
    measured = (accepted - errors + 0.5) / (accepted + 1)
    bound = 1 - lower_bound(accepted, accepted - errors, delta)  # 1 without error, when all may be correct
    assumed = ((measured, False), (bound, True)) if errors.any() else ((bound, True),)
    for precision, at_best in assumed:
        needed = [
            products_for(float(here), target, float(level)) * len(correct) / products
            for here, level, products in zip(precision, levels, accepted, strict=True)
            if products
        ]
        if (least := min(needed, default=np.inf)) < np.inf:
            return least, at_best
    return np.inf, False


def uncertified(
    target: float, delta: float, grid: int, products: int, needed: float, at_best: bool
) -> Certificate:
    """The certificate that promises nothing; its reason is part of thresholds.json, word for word."""
    more = None if np.isinf(needed) else max(1, int(np.ceil(needed)) - products)
    tried = f"precision {target:g} cannot be promised with certainty {1 - delta:g} on {products} products"
    if grid == 0:
        reason = f"{tried}: FIT has none, so that no threshold can be tried"
    elif more is None:
        reason = f"{tried}: it is lower wherever a chain starts, and more products alone will not help"
    elif at_best:
        reason = f"{tried}: these are too few to tell much, and at least {more} more are needed"
    else:
        reason = f"{tried}: about {more} more are needed"
    return Certificate(
        target, delta, grid, products, more_products_needed=more, at_best=at_best, reason=reason
    )


def _certified(
    target: float,
    delta: float,
    grid: int,
    threshold: float,
    chain: str,
    level: float,
    p_value: float,
    confidence: np.ndarray,
    correct: np.ndarray,
) -> Certificate:
    """The certificate of a threshold, with figures of the products of CERT that it accepts."""
    taken = confidence >= threshold
    accepted = int(np.count_nonzero(taken))
    errors = accepted - int(np.count_nonzero(correct & taken))
    tenth = np.sort(confidence[taken])[-(-accepted // 10) - 1]
    near = taken & (confidence <= tenth)
    return Certificate(
        target=target,
        delta=delta,
        grid=grid,
        products=len(correct),
        accepted=accepted,
        errors=errors,
        threshold=threshold,
        acceptance_rate=accepted / len(correct),
        precision=(accepted - errors) / accepted,
        precision_lower=float(lower_bound(accepted, errors, delta)),
        chain=chain,
        level=level,
        p_value=p_value,
        margin=(accepted - errors) / accepted - target,
        margin_products=int(np.count_nonzero(near)),
        margin_precision=float(np.mean(correct[near])),
    )


def refuse_settings(target: float, delta: float, grid: int) -> None:
    """Raises ValueError where a setting is out of range."""
    if not (0 < target < 1 and 0 < delta < 1 and grid >= 1):
        raise ValueError(f"target {target}, delta {delta}, grid {grid}; expected 0 to 1, 0 to 1, at least 1")


def refuse_shared(fit: Outcomes, cert: Outcomes) -> None:
    """Certifying on what was fitted always breaks the promise: in 100 of 100 simulated calibrations."""
    types = {type(name).__name__ for name in fit.group[:1].tolist() + cert.group[:1].tolist()}
    if len(types) > 1:
        raise ValueError(f"groups are {' and '.join(sorted(types))}; expected the same type in FIT and CERT")
    for what, one, other in (("product", fit.ids, cert.ids), ("group", fit.groups, cert.groups)):
        shared = one.shared_with(other)
        if shared:
            raise ValueError(f"{len(shared)} {what}s are in FIT and CERT, as {min(shared)!r}; expected none")
