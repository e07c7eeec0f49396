"""The gate: two releases on the same test products, and which of them is better (NumPy and SciPy only).

    before, after   what each decides about n products: Decided
    group           products that share a photo are resampled together
    required        target and certainty of today's settings

    before, after, group ──► compare ─► Comparison: paired intervals, levels, departments, categories
    promises, required, Comparison ──► outcome_of ─► better | worse | not told apart, and why

`before` is the release in service, `after` the candidate. Nothing here depends on the order of the products.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.decisions.metrics import acceptance_curve, acceptance_rate_at, precision
from models.decisions.paired import Difference, changes_by_group, mcnemar

BETTER, WORSE, NOT_TOLD_APART = "better", "worse", "not told apart"
CATEGORY = "category"  # the finest level; those above are level1 (coarsest), level2, …
CURVE_POINTS = 2000  # thresholds of a curve that is drawn again and again


# What each decides


@dataclass(frozen=True, eq=False)
class Decided:
    """What a release decides about n products."""

    confidence: np.ndarray  # (n,) float, 0 to 1, in the most likely category
    correct: np.ndarray  # (n,) bool, whether this is the true one
    accepted: np.ndarray  # (n,) bool, whether it is decided without a person
    level: np.ndarray  # (n,) int, where only a node above is decided its level, 1 the coarsest; else 0
    node_correct: np.ndarray  # (n,) bool, whether the category or node that was decided is the true one

    def only(self, chosen: np.ndarray) -> "Decided":
        """The chosen products, (n,) bool or (m,) int."""
        columns = (self.confidence, self.correct, self.accepted, self.level, self.node_correct)
        return Decided(*(column[chosen] for column in columns))


@dataclass(frozen=True)
class Promise:
    """What a release promises about the categories that it accepts."""

    target: float  # precision
    delta: float  # probability that the promise fails
    certified: bool  # False: nothing is accepted

    def covers(self, other: "Promise") -> bool:
        """Whether this is certified, and promises at least as much.

        >>> Promise(0.9, 0.1, True).covers(Promise(0.85, 0.1, True))
        True
        >>> Promise(0.9, 0.1, True).covers(Promise(0.9, 0.05, True))
        False
        """
        return (
            self.certified and self.target >= other.target - 1e-9 and self.delta <= other.delta + 1e-9
        )  # 1e-9: settings are decimal numbers


# Figures


@dataclass(frozen=True)
class Figures:
    """What a release does with some products."""

    products: int
    accepted: int
    acceptance_rate: float
    precision: float | None  # of the accepted; None where none is
    correct: float  # share whose most likely category is correct, accepted or not


@dataclass(frozen=True)
class BeforeAfter:
    """The release in service, and the candidate."""

    before: Figures
    after: Figures


@dataclass(frozen=True)
class LevelFigures:
    """The products that are decided at a level, and at no finer one, before and after."""

    level: str  # "category", or "level1" (coarsest) …
    products_before: int
    precision_before: float | None  # None without products
    products_after: int
    precision_after: float | None


@dataclass(frozen=True)
class NodeChange:
    """How the products of a true category or department changed."""

    name: str
    products: int
    before: float  # share whose most likely category is correct
    after: float
    gained: int  # of one product of each group: became correct
    lost: int
    p_value: float  # of McNemar's exact test
    real: bool  # by Holm's correction over all categories, or all departments


@dataclass(frozen=True)
class Comparison:
    """Two releases on the same products."""

    products: int
    groups: int  # of products that share photos
    target: float  # precision that is required now
    acceptance: Difference  # with the threshold of each
    acceptance_p_value: float  # of McNemar's exact test, one product of each group
    achievable: Difference  # acceptance rate where the measured precision is the target, thresholds set aside
    precision: Difference | None  # of the accepted; None where one side accepts nothing
    correct: Difference  # share whose most likely category is correct
    correct_p_value: float
    below_target_before: bool  # the accepted are less precise than required, beyond chance
    below_target_after: bool
    all: BeforeAfter
    weighted: BeforeAfter | None  # shares counted by weight; None where products have no weights
    weeks: Mapping[str, BeforeAfter]  # products in both weeks ("both"), "new" ones, those "gone"
    levels: tuple[LevelFigures, ...]
    departments: tuple[NodeChange, ...]
    categories: tuple[NodeChange, ...]  # those that became worse beyond chance

    @property
    def worse_departments(self) -> tuple[NodeChange, ...]:
        """Those that became worse beyond chance."""
        return tuple(one for one in self.departments if one.real and one.lost > one.gained)


def compare(
    before: Decided,
    after: Decided,
    *,
    group: np.ndarray,
    week: np.ndarray,
    category: np.ndarray,
    department: np.ndarray,
    target: float,
    certainty: float,
    repetitions: int,
    weight: np.ndarray | None = None,
) -> Comparison:
    """Compares two releases on the same n products.

    Args:
        before: what the release in service decides.
        after: what the candidate decides.
        group: (n,) str or int, the same for products that share a photo; they are resampled together.
        week: (n,) str, "both", "new" or "gone".
        category: (n,) str, names of the true categories.
        department: (n,) str, names of their departments.
        target: precision that is required.
        certainty: of intervals and tests, 0 to 1.
        repetitions: of the bootstrap.
        weight: (n,) float, at least 0; None: every product counts as one.

    Raises:
        ValueError: there is no product.
    """
    code, groups = pd.factorize(group, sort=True)
    if not len(code):
        raise ValueError("no products; expected at least one")
    one = first_of_group(code)
    drawn = _bootstrap(before, after, code, target, repetitions)
    curves = [acceptance_curve(side.confidence, side.correct) for side in (before, after)]
    achievable = [acceptance_rate_at(curve, target)[0] for curve in curves]
    sides = [_figures(side) for side in (before, after)]

    def interval(name: str, one: float | None, other: float | None) -> Difference | None:
        if one is None or other is None:
            return None
        lower, upper = _interval(drawn[name], certainty)
        return Difference(one, other, lower, upper)

    acceptance = interval("acceptance", *(side.acceptance_rate for side in sides))
    reachable, correct = interval("achievable", *achievable), interval("correct", *(s.correct for s in sides))
    assert acceptance and reachable and correct
    single = before.only(one), after.only(one)
    names = {}
    for what, values in (("department", department), ("category", category)):
        names[what] = _node_changes(values[one], single[0].correct, single[1].correct, 1 - certainty)
    worse = tuple(node for node in names["category"] if node.real and node.lost > node.gained)
    return Comparison(
        products=len(code),
        groups=len(groups),
        target=target,
        acceptance=acceptance,
        acceptance_p_value=_mcnemar(single[0].accepted, single[1].accepted),
        achievable=reachable,
        precision=interval("precision", *(side.precision for side in sides)),
        correct=correct,
        correct_p_value=_mcnemar(single[0].correct, single[1].correct),
        below_target_before=is_below(single[0], target, certainty),
        below_target_after=is_below(single[1], target, certainty),
        all=BeforeAfter(*sides),
        weighted=None if weight is None else BeforeAfter(*(_figures(s, weight) for s in (before, after))),
        weeks={
            str(name): BeforeAfter(*(_figures(side.only(week == name)) for side in (before, after)))
            for name in np.unique(week)
        },
        levels=_levels(before, after),
        departments=names["department"],
        categories=worse,
    )


def first_of_group(code: np.ndarray) -> np.ndarray:
    """(groups,) int: a row of each group, the first one; near-duplicates are no independent evidence."""
    first: np.ndarray = np.unique(code, return_index=True)[1]
    return first


def is_below(side: Decided, target: float, certainty: float) -> bool:
    """Whether the accepted are less precise than the target, beyond chance.

    By the exact binomial test with half of 1 - certainty, as the intervals have on each side.

    Args:
        side: one product of each group.
        target: precision.
        certainty: 0 to 1.
    """
    from scipy.stats import binom

    accepted = int(np.count_nonzero(side.accepted))
    correct = int(np.count_nonzero(side.accepted & side.correct))
    return accepted > 0 and float(binom.cdf(correct, accepted, target)) <= (1 - certainty) / 2


def _mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    return mcnemar(int(np.count_nonzero(~before & after)), int(np.count_nonzero(before & ~after)))


def _figures(side: Decided, weight: np.ndarray | None = None) -> Figures:
    products, accepted = len(side.correct), int(np.count_nonzero(side.accepted))
    counted = np.ones(products) if weight is None else weight
    taken = counted[side.accepted]
    return Figures(
        products=products,
        accepted=accepted,
        acceptance_rate=float(taken.sum() / counted.sum()) if counted.any() else 0.0,
        precision=precision(side.correct[side.accepted], taken) if taken.any() else None,
        correct=precision(side.correct, counted) if counted.any() else 0.0,
    )


def _levels(before: Decided, after: Decided) -> tuple[LevelFigures, ...]:
    """Precision at each level, coarse to fine, of the products that stop there."""

    def at(side: Decided, level: int | None) -> tuple[int, float | None]:
        here = side.accepted if level is None else side.level == level
        return int(np.count_nonzero(here)), precision(side.node_correct[here]) if here.any() else None

    deepest = max(int(before.level.max(initial=0)), int(after.level.max(initial=0)))
    return tuple(
        LevelFigures(CATEGORY if level is None else f"level{level}", *at(before, level), *at(after, level))
        for level in (*range(1, deepest + 1), None)
    )


def _node_changes(
    name: np.ndarray, before: np.ndarray, after: np.ndarray, level: float
) -> tuple[NodeChange, ...]:
    """Changes by name, in the order of the names."""
    code, names = pd.factorize(name, sort=True)
    found = changes_by_group(code, before, after, len(names), level)
    columns = found.products, found.before, found.after, found.gained, found.lost, found.p_value, found.real
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    return tuple(NodeChange(str(label), *row) for label, *row in rows)


# The bootstrap


def _bootstrap(
    before: Decided, after: Decided, group: np.ndarray, target: float, repetitions: int
) -> dict[str, np.ndarray]:
    """Differences, after minus before, in samples of the groups with replacement (Efron 1979).

    Args:
        before: what one side decides about n products.
        after: the other side.
        group: (n,) int, from 0.
        target: precision of `achievable`.
        repetitions: samples.

    Returns:
        acceptance, achievable, precision, correct: each (repetitions,) float; precision is nan in a sample in
        which one side accepts nothing.
    """
    # in one order, whatever that of the rows: sums of whole numbers do not depend on it, `group` is sorted
    sides = before, after
    counted = np.stack(
        [np.ones(len(group)), *(c for s in sides for c in (s.accepted, s.accepted & s.correct, s.correct))]
    )
    groups = int(group.max()) + 1
    sums = np.stack([np.bincount(group, weights=row, minlength=groups) for row in counted])
    curves = [_GroupCurve(side, group) for side in sides]
    generator, drawn = np.random.default_rng(0), np.empty((repetitions, 4))
    with np.errstate(invalid="ignore"):  # 0 / 0 where a side accepts nothing
        for at in range(repetitions):
            times = np.bincount(generator.integers(groups, size=groups), minlength=groups)
            products, *rest = sums @ times
            accepted, right, correct = (np.array(rest[start::3]) for start in range(3))
            achieved = [curve.achievable(times, target) for curve in curves]
            drawn[at] = (
                np.diff(accepted)[0] / products, np.diff(achieved)[0] / products,
                np.diff(right / accepted)[0], np.diff(correct)[0] / products,
            )  # fmt: skip
    return dict(zip(("acceptance", "achievable", "precision", "correct"), drawn.T, strict=True))


class _GroupCurve:
    """A side's products by falling confidence, in at most CURVE_POINTS pieces of distinct confidences."""

    def __init__(self, side: Decided, group: np.ndarray) -> None:
        order = np.argsort(-side.confidence, kind="stable")
        confidence = side.confidence[order]
        starts = np.flatnonzero(np.diff(confidence, prepend=np.inf))  # of equal confidences
        if len(starts) > CURVE_POINTS:
            starts = starts[np.arange(CURVE_POINTS) * len(starts) // CURVE_POINTS]
        self._starts = starts
        self._group, self._correct = group[order], side.correct[order].astype(np.int64)

    def achievable(self, times: np.ndarray, target: float) -> int:
        """The most products that a threshold accepts at this measured precision.

        Args:
            times: (groups,) int, how often each group was drawn.
            target: precision.
        """
        weight = times[self._group]
        accepted = np.cumsum(np.add.reduceat(weight, self._starts))
        correct = np.cumsum(np.add.reduceat(weight * self._correct, self._starts))
        reached = np.flatnonzero(correct >= accepted * (target - 1e-9))
        return int(accepted[reached[-1]]) if len(reached) else 0


def _interval(drawn: np.ndarray, certainty: float) -> tuple[float, float]:
    """The percentile interval; a sample without a value says nothing."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return -1.0, 1.0
    lower, upper = np.quantile(known, [(1 - certainty) / 2, (1 + certainty) / 2])
    return float(lower), float(upper)


# Which is better


@dataclass(frozen=True)
class Outcome:
    """Which of two releases is better, and by which rule."""

    outcome: str  # BETTER, WORSE, NOT_TOLD_APART
    because: str  # a clause of the verdict's sentence


def outcome_of(
    required: Promise, before: Promise, after: Promise, comparison: Comparison | None, certainty: float
) -> Outcome:
    """Whether the candidate is better than the release in service, by the first rule that applies.

    1. One of them is certified for what is required now, the other is not: the certified one is better.
       The candidate only if its accepted products are not below the target on the products of both, beyond
       chance; else it is worse where the release in service keeps to the target. In the same way one that is
       certified for less is better than one that is not certified at all, and accepts nothing.
    2. Both are certified for it, and the accepted products of one of them alone are below the target, beyond
       chance: the other one is better.
    3. Both are certified for it: the one that accepts more, beyond chance. The candidate is better only if
       its precision is kept, too: measured, it is at least the target, or that of the release in service.
    4. None is certified for it, or both are below the target: the one that could accept more at the target,
       beyond chance, thresholds set aside; else the one whose categories are correct more often.

    Beyond chance: the paired interval does not contain 0, and where it is of a share of products, McNemar's
    exact test has a p-value of at most 1 - certainty, too, as intervals of few products are too short.

    Args:
        required: target and certainty of today's settings.
        before: promise of the release in service.
        after: promise of the candidate.
        comparison: on the same products; None where there is none.
        certainty: of the tests.
    """
    kept_before, kept_after = before.covers(required), after.covers(required)
    if kept_before and not kept_after:
        return Outcome(WORSE, "the release in service is certified for what is required, and it is not")
    if before.certified and not after.certified:
        return Outcome(WORSE, "it is not certified and would accept nothing")
    if comparison is None:
        if kept_after and not kept_before:
            return Outcome(BETTER, "it alone is certified for what is required")
        return Outcome(NOT_TOLD_APART, "there is no product to compare them on")
    below_before, below_after = comparison.below_target_before, comparison.below_target_after
    if kept_after and not kept_before and not below_after:
        return Outcome(BETTER, "it alone is certified for what is required")
    if kept_after and below_after and not below_before:
        return Outcome(WORSE, "what it accepts is less precise than the target, beyond chance")
    if kept_before and kept_after and below_before and not below_after:
        return Outcome(BETTER, "what the release in service accepts is below the target, beyond chance")
    if kept_before and kept_after and not below_after:
        return _by_acceptance(comparison, certainty)
    return _by_predictions(comparison, certainty)


def _by_acceptance(comparison: Comparison, certainty: float) -> Outcome:
    """Rule 3."""
    acceptance, sides = comparison.acceptance, comparison.all
    chance = comparison.acceptance_p_value > 1 - certainty
    if acceptance.upper < 0 and not chance:
        return Outcome(WORSE, "it accepts less")
    if acceptance.lower <= 0 or chance:
        return Outcome(NOT_TOLD_APART, "the difference in what they accept may be chance")
    least = min(comparison.target, 1.0 if sides.before.precision is None else sides.before.precision)
    if sides.after.precision is None or sides.after.precision < least:
        return Outcome(NOT_TOLD_APART, "it accepts more, but is less precise")
    return Outcome(BETTER, "it accepts more")


def _by_predictions(comparison: Comparison, certainty: float) -> Outcome:
    """Rule 4."""
    achievable, correct = comparison.achievable, comparison.correct
    if achievable.lower > 0 or achievable.upper < 0:
        more = achievable.lower > 0
        return Outcome(
            BETTER if more else WORSE, f"it could accept {'more' if more else 'less'} at the target"
        )
    if comparison.correct_p_value <= 1 - certainty and (correct.lower > 0 or correct.upper < 0):
        more = correct.lower > 0
        return Outcome(BETTER if more else WORSE, f"it is correct {'more' if more else 'less'} often")
    return Outcome(NOT_TOLD_APART, "the differences may be chance")
