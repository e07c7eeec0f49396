"""Audits: numbers of the plan, and verdicts, against SciPy and against counting everything."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest, hypergeom

from models.decisions.audits import allowed_errors, audits_for, judge_audit

REFERENCE = {0.92: 932, 0.93: 390, 0.94: 210, 0.95: 128, 0.97: 65}  # calibration at 0.9, power 0.8


def power_of(checked: int, precision: float, target: float = 0.9, certainty: float = 0.9) -> float:
    """By trying every number of errors with SciPy's binomial."""
    errors = np.arange(checked + 1)
    proven = binom.cdf(errors, checked, 1 - target) <= 1 - certainty + 1e-12
    return float(binom.pmf(errors, checked, 1 - precision) @ proven)


# Plan


@pytest.mark.parametrize(("precision", "audits"), REFERENCE.items())
def test_the_plan_has_the_reference_numbers(precision: float, audits: int) -> None:
    assert audits_for(precision, 0.9) == audits
    assert power_of(audits, precision) >= 0.8
    assert all(power_of(fewer, precision) < 0.8 for fewer in range(1, audits))


def test_a_hundredth_above_the_target_takes_four_thousand_audits() -> None:
    """3,980, the number in use before, was found on a coarse grid: 3,905 reach the power, too."""
    assert audits_for(0.91, 0.9) == 3905
    assert min(power_of(3905, 0.91), power_of(3980, 0.91)) >= 0.8
    assert all(power_of(fewer, 0.91) < 0.8 for fewer in range(3880, 3905))


def test_without_any_error_the_fewest_audits_suffice() -> None:
    assert audits_for(1.0, 0.9) == 22  # 0.9 ** 22 < 0.1 < 0.9 ** 21
    assert audits_for(1.0, 0.9, certainty=0.95) == 29
    assert audits_for(1.0, 0.9, certainty=0.99) == 44


def test_more_power_and_more_certainty_cost_audits() -> None:
    plain = audits_for(0.95, 0.9)
    assert plain
    assert audits_for(0.95, 0.9, power=0.95) > plain
    assert audits_for(0.95, 0.9, certainty=0.99) > plain


@pytest.mark.parametrize("precision", [0.9, 0.85])
def test_a_precision_that_is_not_above_the_target_cannot_be_proven(precision: float) -> None:
    assert audits_for(precision, 0.9) is None


@pytest.mark.parametrize("wrong", [{"target": 1.0}, {"certainty": 0.0}, {"power": 1.0}, {"precision": 1.1}])
def test_numbers_that_are_no_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        audits_for(**({"precision": 0.95, "target": 0.9} | wrong))


def test_allowed_errors_are_the_most_that_scipy_allows() -> None:
    checked = np.arange(1, 400)
    for target, certainty in ((0.9, 0.9), (0.95, 0.8), (0.5, 0.99)):
        wanted = [
            int(np.sum(binom.cdf(np.arange(n + 1), n, 1 - target) <= 1 - certainty + 1e-12)) - 1
            for n in checked.tolist()
        ]
        assert allowed_errors(checked, target, certainty).tolist() == wanted


# Judge


@pytest.mark.parametrize(("checked", "wrong"), [(22, 0), (200, 12), (128, 7), (50, 50), (1, 0), (1, 1)])
def test_bounds_are_scipys_clopper_pearson(checked: int, wrong: int) -> None:
    found, correct = judge_audit(checked, wrong, 0.9), checked - wrong
    one_sided = binomtest(correct, checked, alternative="greater").proportion_ci(0.9, "exact")
    other_side = binomtest(correct, checked, alternative="less").proportion_ci(0.9, "exact")
    both = binomtest(correct, checked).proportion_ci(0.9, "exact")
    assert found.at_least == pytest.approx(one_sided.low, abs=1e-9)
    assert found.at_most == pytest.approx(other_side.high, abs=1e-9)
    assert (found.interval.lower, found.interval.upper) == pytest.approx((both.low, both.high), abs=1e-9)


def test_verdicts_agree_with_the_allowed_errors() -> None:
    allowed = int(allowed_errors(np.array([128]), 0.9, 0.9)[0])
    assert judge_audit(128, allowed, 0.9).verdict == "proven"
    assert judge_audit(128, allowed + 1, 0.9).verdict == "not proven"
    assert judge_audit(128, 30, 0.9).verdict == "broken"


def test_not_proven_says_how_many_audits_would_be_needed() -> None:
    short = judge_audit(50, 2, 0.9)  # 96 % of 50
    assert (short.verdict, short.needed) == ("not proven", audits_for(0.96, 0.9))
    assert judge_audit(21, 0, 0.9).needed == 22, "one more without error"
    assert judge_audit(100, 10, 0.9).needed is None, "exactly at the target: no number of audits proves more"
    assert judge_audit(8, 0, 0.9, stream=20).needed == 20, "there are no more"


def test_of_a_small_stream_the_bounds_are_those_of_counting_every_stream() -> None:
    stream, checked, miss = 40, 12, 0.1
    for wrong in range(checked + 1):
        possible = [
            bad
            for bad in range(stream + 1)
            if hypergeom.cdf(wrong, stream, bad, checked) > miss and stream - bad >= checked - wrong
        ]
        found = judge_audit(checked, wrong, 0.9, stream=stream)
        assert found.at_least == pytest.approx(1 - max(possible) / stream)
        possible = [
            bad
            for bad in range(stream + 1)
            if hypergeom.sf(wrong - 1, stream, bad, checked) > miss and bad >= wrong
        ]
        assert found.at_most == pytest.approx(1 - min(possible) / stream)


def test_bounds_of_a_small_stream_hold_as_often_as_they_say() -> None:
    """For every stream of 30 and every sample of 10: missed in at most a tenth of the samples."""
    stream, checked = 30, 10
    bounds = {wrong: judge_audit(checked, wrong, 0.9, stream=stream) for wrong in range(checked + 1)}
    for bad in range(stream + 1):
        chance = hypergeom.pmf(np.arange(checked + 1), stream, bad, checked)
        precision = 1 - bad / stream
        too_high = sum(chance[wrong] for wrong in bounds if bounds[wrong].at_least > precision + 1e-9)
        too_low = sum(chance[wrong] for wrong in bounds if bounds[wrong].at_most < precision - 1e-9)
        assert max(too_high, too_low) <= 0.1 + 1e-9


def test_a_sample_that_is_the_whole_stream_says_exactly_what_it_is() -> None:
    found = judge_audit(20, 3, 0.8, stream=20)
    assert (found.at_least, found.at_most, found.verdict) == (0.85, 0.85, "proven")
    assert (found.interval.lower, found.interval.upper, found.sampled_share) == (0.85, 0.85, 1.0)


def test_of_a_huge_stream_the_bounds_are_the_binomial_ones_and_never_wider() -> None:
    for checked, wrong in itertools.product((22, 200), (0, 5)):
        free, known = judge_audit(checked, wrong, 0.9), judge_audit(checked, wrong, 0.9, stream=2_000_000)
        assert known.at_least == pytest.approx(free.at_least, abs=1e-4)
        assert known.at_most == pytest.approx(free.at_most, abs=1e-4)
        some = judge_audit(checked, wrong, 0.9, stream=400)
        assert some.at_least >= free.at_least - 1 / 400
        assert some.at_least > free.at_least or checked < 200


@pytest.mark.parametrize("counts", [(0, 0, None), (10, 11, None), (10, -1, None), (10, 1, 9)])
def test_contradicting_counts_are_refused(counts: tuple[int, int, int | None]) -> None:
    checked, wrong, stream = counts
    with pytest.raises(ValueError, match="checked"):
        judge_audit(checked, wrong, 0.9, stream=stream)
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        judge_audit(10, 1, 1.0)
