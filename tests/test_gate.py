"""The gate's numbers: two releases on the same products, against formulas, against counting, by trying."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from models.decisions.gate import (
    BETTER,
    NOT_TOLD_APART,
    WORSE,
    Comparison,
    Decided,
    Promise,
    compare,
    outcome_of,
)
from models.decisions.metrics import acceptance_curve, acceptance_rate_at
from models.decisions.paired import changes_by_group, difference_of_shares

REQUIRED = Promise(0.9, 0.1, True)
NOTHING = Promise(0.9, 0.1, False)
FOR_LESS = Promise(0.85, 0.1, True)


def drawn(products: int, seed: int, gain: float = 0.0, threshold: float = 0.72) -> tuple[Decided, Decided]:
    """Two sides that see the same products; the second one is correct more often by about `gain`."""
    random = np.random.default_rng(seed)
    probability, common = random.beta(0.67, 0.42, products), random.random(products)
    sides = []
    for better in (0.0, gain):
        own = np.clip(probability + better * 4 * probability * (1 - probability), 0, 1)
        correct = np.where(random.random(products) < 0.85, common, random.random(products)) < own
        confidence = np.clip(own + random.normal(0, 0.05, products), 0, 1)
        sides.append(decided(confidence, correct, confidence >= threshold))
    return sides[0], sides[1]


def decided(confidence: np.ndarray, correct: np.ndarray, accepted: np.ndarray) -> Decided:
    """Without levels above the category."""
    return Decided(confidence, correct, accepted, np.zeros(len(correct), int), correct & accepted)


def compared(before: Decided, after: Decided, **given) -> Comparison:
    products = len(before.correct)
    columns = {
        "group": np.arange(products),
        "week": np.full(products, "both", object),
        "category": np.full(products, "a", object),
        "department": np.full(products, "d", object),
    }
    settings = {"target": 0.9, "certainty": 0.95, "repetitions": 1000}
    return compare(before, after, **(columns | settings | given))


def verdict(comparison: Comparison, before: Promise = REQUIRED, after: Promise = REQUIRED) -> str:
    return outcome_of(REQUIRED, before, after, comparison, 0.95).outcome


# Figures


def test_shares_are_counted_and_their_interval_is_about_that_of_the_formula() -> None:
    before, after = drawn(2000, seed=1, gain=0.1)
    found = compared(before, after)
    assert (found.products, found.groups) == (2000, 2000)
    assert found.acceptance.before == before.accepted.mean()
    assert found.acceptance.after == after.accepted.mean()
    assert found.correct.value == pytest.approx(after.correct.mean() - before.correct.mean())
    formula = difference_of_shares(before.correct, after.correct)
    assert (found.correct.lower, found.correct.upper) == pytest.approx(
        (formula.lower, formula.upper), abs=0.003
    )
    gained = int((~before.correct & after.correct).sum())
    lost = int((before.correct & ~after.correct).sum())
    assert found.correct_p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert found.all.after.precision == after.correct[after.accepted].mean()


def test_achievable_rate_is_that_of_the_curve_and_its_interval_surrounds_it() -> None:
    before, after = drawn(1500, seed=2, gain=0.1)
    found = compared(before, after)
    expected = [
        acceptance_rate_at(acceptance_curve(side.confidence, side.correct), 0.9)[0]
        for side in (before, after)
    ]
    assert (found.achievable.before, found.achievable.after) == tuple(expected)
    assert found.achievable.lower < found.achievable.value < found.achievable.upper


def test_products_that_share_a_photo_are_resampled_together() -> None:
    """Five copies of each product say as much as one: the interval is as wide as without them."""
    before, after = drawn(300, seed=3, gain=0.05)
    five = np.repeat(np.arange(300), 5)
    alone = compared(before, after)
    together = compared(before.only(five), after.only(five), group=five)
    apart = compared(before.only(five), after.only(five))
    widths = [one.acceptance.upper - one.acceptance.lower for one in (alone, together, apart)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.6 * widths[0]
    assert together.acceptance_p_value == alone.acceptance_p_value


def test_nothing_depends_on_the_order_of_the_products() -> None:
    before, after = drawn(400, seed=4)
    order = np.random.default_rng(0).permutation(400)
    names = {
        "group": np.array([f"g{at // 2}" for at in range(400)], object),
        "week": np.array(["both", "new", "gone", "both"] * 100, object),
        "category": np.array([f"c{at % 7}" for at in range(400)], object),
    }
    found = compared(before, after, **names)
    shuffled = {name: column[order] for name, column in names.items()}
    again = compared(before.only(order), after.only(order), **shuffled)
    for name in ("acceptance", "achievable", "precision", "correct", "all", "weeks", "levels"):
        assert getattr(found, name) == getattr(again, name), name


def test_weeks_levels_and_weights_are_reported_apart() -> None:
    correct = np.array([True, True, False, True, False, True])
    accepted = np.array([True, True, True, False, False, False])
    level = np.array([0, 0, 0, 1, 2, 0])
    side = Decided(np.linspace(0.9, 0.4, 6), correct, accepted, level, np.array([1, 1, 0, 1, 0, 0], bool))
    week = np.array(["both", "both", "new", "new", "gone", "gone"], object)
    weight = np.array([1.0, 0.0, 3.0, 0.0, 0.0, 0.0])
    found = compared(side, side, week=week, weight=weight)
    assert {name: both.after.products for name, both in found.weeks.items()} == {
        "both": 2, "new": 2, "gone": 2,
    }  # fmt: skip
    assert found.weeks["both"].after.precision == 1.0
    assert [(one.level, one.products_after, one.precision_after) for one in found.levels] == [
        ("level1", 1, 1.0), ("level2", 1, 0.0), ("category", 3, 2 / 3),
    ]  # fmt: skip
    assert found.weighted is not None
    assert (found.weighted.after.acceptance_rate, found.weighted.after.precision) == (1.0, 0.25)


def test_categories_that_became_worse_beyond_chance_are_named_and_others_are_not() -> None:
    correct = np.ones(400, bool)
    category = np.array(["shoes"] * 40 + ["hats"] * 40 + ["bags"] * 320, object)
    after = correct.copy()
    after[:12], after[40:43] = False, False  # 12 shoes are lost, and 3 hats, which can be chance
    sides = [decided(np.full(400, 0.9), one, one) for one in (correct, after)]
    found = compared(*sides, category=category, department=category)
    assert [(one.name, one.lost, one.gained) for one in found.categories] == [("shoes", 12, 0)]
    assert [one.name for one in found.worse_departments] == ["shoes"]
    assert [(one.name, one.products) for one in found.departments] == [
        ("bags", 320), ("hats", 40), ("shoes", 40),
    ]  # fmt: skip
    assert found.departments[2].p_value == pytest.approx(2 * 0.5**12)


def test_changes_by_group_are_those_of_each_group_by_itself() -> None:
    random = np.random.default_rng(5)
    code, (before, after) = random.integers(0, 6, 500), random.random((2, 500)) < 0.7
    code[code == 3] = 4
    found = changes_by_group(code, before, after, 6, 0.05)
    for at in (0, 1, 2, 4, 5):
        here = code == at
        gained, lost = (int((one & ~other & here).sum()) for one, other in ((after, before), (before, after)))
        assert (found.gained[at], found.lost[at]) == (gained, lost)
        assert found.p_value[at] == pytest.approx(binomtest(gained, gained + lost).pvalue)
        assert found.after[at] == after[here].mean()
    assert found.products[3] == 0 and not found.real[3]


def test_no_products_are_refused() -> None:
    nothing = decided(np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))
    with pytest.raises(ValueError, match="no products"):
        compared(nothing, nothing)


# Which is better


@pytest.mark.parametrize(("gain", "expected"), [(0.2, BETTER), (-0.2, WORSE), (0.0, NOT_TOLD_APART)])
@pytest.mark.parametrize("promise", [REQUIRED, NOTHING])
def test_better_and_worse_models_are_found_and_equal_ones_are_not(
    gain: float, expected: str, promise: Promise
) -> None:
    found = compared(*drawn(2000, seed=6, gain=gain))
    assert verdict(found, promise, promise) == expected


def test_equal_models_are_called_better_or_worse_as_rarely_as_chance_allows() -> None:
    certified, uncertified = [], []
    for seed in range(150):
        found = compared(*drawn(300, seed=seed), repetitions=200)
        certified.append(verdict(found))
        uncertified.append(verdict(found, NOTHING, NOTHING))
    assert 150 - certified.count(NOT_TOLD_APART) <= 15  # 5 % and three standard deviations
    assert 150 - uncertified.count(NOT_TOLD_APART) <= 28  # two chances of 5 %, and three deviations


def test_one_that_is_certified_is_better_than_one_that_is_not_whatever_they_accept() -> None:
    before, after = drawn(1000, seed=7)
    fewer = replace(after, accepted=after.confidence >= 0.95)
    assert verdict(compared(before, fewer), NOTHING, REQUIRED) == BETTER
    assert verdict(compared(before, fewer), FOR_LESS, REQUIRED) == BETTER
    assert verdict(compared(fewer, before), REQUIRED, NOTHING) == WORSE
    assert verdict(compared(fewer, before), REQUIRED, FOR_LESS) == WORSE
    assert verdict(compared(fewer, before), FOR_LESS, NOTHING) == WORSE


def test_accepting_more_is_not_better_where_the_accepted_are_below_the_target() -> None:
    before, after = drawn(2000, seed=8)
    loose = replace(after, accepted=after.confidence >= 0.4)
    found = compared(before, loose)
    assert found.acceptance.lower > 0.1 and found.below_target_after
    assert verdict(found) == WORSE
    assert verdict(found, NOTHING, REQUIRED) == WORSE  # its certificate does not hold on these products
    assert verdict(compared(loose, before)) == BETTER


def test_accepting_more_with_less_precision_is_not_better_even_if_that_may_be_chance() -> None:
    accepted = np.arange(300) < 100
    more = np.arange(300) < 130
    correct = np.arange(300) % 10 > 0  # 90 of the first 100
    fewer_correct = correct & (np.arange(300) != 125)
    before = decided(np.linspace(1, 0, 300), correct, accepted)
    after = decided(np.linspace(1, 0, 300), fewer_correct, more)
    found = compared(before, after)
    assert found.acceptance.lower > 0 and not found.below_target_after
    assert found.all.after.precision is not None and found.all.after.precision < 0.9
    assert verdict(found) == NOT_TOLD_APART
    assert verdict(compared(before, replace(after, correct=correct))) == BETTER


def test_a_half_empty_catalogue_loses_by_the_products_that_are_gone() -> None:
    """The candidate is good at what it knows; of the gone half it is sure of the wrong category."""
    before, after = drawn(1000, seed=9, gain=0.05)
    gone = np.arange(1000) < 500
    after = replace(after, correct=after.correct & ~gone)
    week = np.where(gone, "gone", "both").astype(object)
    found = compared(before, after, week=week)
    alone = compared(before.only(~gone), after.only(~gone))
    assert verdict(alone) in (BETTER, NOT_TOLD_APART)
    assert verdict(found) == WORSE
    assert found.weeks["gone"].after.precision == 0.0
    assert verdict(found, NOTHING, NOTHING) == WORSE
    cautious = replace(after, accepted=after.accepted & ~gone)  # it knows that it does not know them
    assert verdict(compared(before, cautious, week=week)) == WORSE


def test_four_products_are_not_enough_for_a_difference() -> None:
    """Where 4 of 20 differ, all in one direction, the percentile interval alone would exclude 0."""
    before = decided(np.full(20, 0.9), np.ones(20, bool), np.arange(20) < 10)
    after = replace(before, accepted=np.arange(20) < 14)
    found = compared(before, after)
    assert found.acceptance.lower > 0
    assert verdict(found) == NOT_TOLD_APART


def test_without_products_only_the_certificates_count() -> None:
    def outcome(before: Promise, after: Promise) -> str:
        return outcome_of(REQUIRED, before, after, None, 0.95).outcome

    assert outcome(NOTHING, REQUIRED) == BETTER
    assert outcome(REQUIRED, NOTHING) == WORSE
    assert outcome(REQUIRED, REQUIRED) == outcome(NOTHING, NOTHING) == NOT_TOLD_APART


def test_a_promise_covers_what_requires_no_more() -> None:
    assert Promise(0.9, 0.1, True).covers(Promise(0.9, 0.1, True))
    assert not Promise(0.9, 0.1, True).covers(Promise(0.95, 0.1, True))
    assert not Promise(0.9, 0.1, False).covers(Promise(0.8, 0.2, True))
