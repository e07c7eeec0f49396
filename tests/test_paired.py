"""Differences between two classifiers on the same products."""

import numpy as np
import pytest
from scipy.stats import binomtest

from models.decisions.metrics import acceptance_curve, acceptance_rate_at
from models.decisions.paired import (
    difference_of_precisions,
    difference_of_shares,
    mcnemar,
    resampled_acceptance_rates,
)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 9), (9, 1), (30, 30), (412, 371), (0, 7)])
def test_mcnemar_is_the_binomial_test_of_the_products_that_differ(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_difference_of_shares_is_after_minus_before() -> None:
    before = np.array([True] * 60 + [False] * 40)
    after = np.array([True] * 55 + [False] * 5 + [True] * 15 + [False] * 25)
    difference = difference_of_shares(before, after)
    assert (difference.before, difference.after) == (0.6, 0.7)
    assert difference.value == pytest.approx(0.1)
    # by hand: 15.5 and 5.5 of 102, 10/102 ± 1.96 sqrt(21 - 100/102) / 102
    assert (difference.lower, difference.upper) == pytest.approx((0.01207, 0.18401), abs=1e-4)


def test_intervals_contain_the_true_difference_about_as_often_as_they_say() -> None:
    random, covered = np.random.default_rng(0), np.zeros(2)
    for _ in range(400):
        score = random.random(800)
        before, after = random.random((2, 800)) < 0.6 + 0.4 * score
        shares = difference_of_shares(before, after)
        # accepted above 0.5: true precisions are 0.9 on both sides
        precisions = difference_of_precisions(score > 0.5, before, score > 0.4, after)
        assert precisions
        covered += [shares.lower <= 0 <= shares.upper, precisions.lower <= -0.02 <= precisions.upper]
    assert (covered / 400 >= 0.92).all() and (covered / 400 <= 0.98).all()


def test_where_a_side_accepts_nothing_there_is_no_difference_of_precisions() -> None:
    some, none = np.array([True, False]), np.array([False, False])
    assert difference_of_precisions(none, some, some, some) is None
    assert difference_of_precisions(some, some, none, some) is None


def test_different_products_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 products"):
        difference_of_shares(np.zeros(2, bool), np.zeros(3, bool))


def test_resampled_acceptance_rates_are_those_of_the_products_drawn_again() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.integers(0, 30, (2, 120)) / 30  # many are equal
    correct = rng.random((2, 120)) < confidence**0.3
    rates = resampled_acceptance_rates(list(zip(confidence, correct, strict=True)), 0.8, 50, seed=4)
    draws = np.random.default_rng(4)
    for drawn in rates:
        chosen = draws.integers(0, 120, 120)
        expected = [
            acceptance_rate_at(acceptance_curve(one[chosen], of[chosen]), 0.8)[0]
            for one, of in zip(confidence, correct, strict=True)
        ]
        np.testing.assert_allclose(drawn, expected)
    assert (rates[:, 0] != rates[:, 1]).any()
    assert rates.max() <= 1


def test_a_precision_that_no_draw_reaches_accepts_nothing() -> None:
    none = (np.array([0.9, 0.8]), np.array([False, False]))
    assert resampled_acceptance_rates([none], 0.9, 5).tolist() == [[0.0]] * 5
