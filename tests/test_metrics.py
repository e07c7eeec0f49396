"""Precision, acceptance rate and counts, against counting by hand and scikit-learn."""

from collections import Counter

import generators as draw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from models.decisions.metrics import (
    acceptance_curve,
    acceptance_rate_at,
    confusions,
    per_category,
    precision,
    top_k_share,
)

tied = st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.50001, 0.9, 1.0]), st.booleans()), max_size=12)


def test_precision_is_the_share_of_correct_products() -> None:
    assert precision(np.array([True, False, True, True])) == 0.75


def test_precision_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no products"):
        precision(np.array([], dtype=bool))


@settings(max_examples=200, deadline=None)
@given(tied, st.sampled_from([0.5, 2 / 3, 0.75, 0.9, 1.0]))
def test_curve_agrees_with_trying_every_confidence(products: list[tuple[float, bool]], target: float) -> None:
    confidence = np.array([c for c, _ in products], dtype=float)
    curve = acceptance_curve(confidence, np.array([z for _, z in products], dtype=bool))
    expected = []
    for t in sorted({c for c, _ in products}, reverse=True):
        taken = [z for c, z in products if c >= t]
        expected.append((t, len(taken), sum(taken)))
    assert list(zip(curve.threshold, curve.accepted, curve.correct, strict=True)) == expected
    np.testing.assert_allclose(curve.acceptance_rate, [m / len(products) for _, m, _ in expected])
    np.testing.assert_allclose(curve.precision, [k / m for _, m, k in expected])

    reached = [(m / len(products), t) for t, m, k in expected if k / m >= target - 1e-9]
    assert acceptance_rate_at(curve, target) == max(reached, default=(0.0, None))


def test_curve_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    confidence, correct = draw.g6(rng, 500)
    order = rng.permutation(500)
    one, other = acceptance_curve(confidence, correct), acceptance_curve(confidence[order], correct[order])
    for name in ("threshold", "accepted", "correct"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_curve_is_the_one_of_the_paper_on_products_drawn_from_it() -> None:
    curve = acceptance_curve(*draw.g1(np.random.default_rng(2), 400_000))
    assert curve.precision[-1] == pytest.approx(0.614, abs=0.003)
    rate, threshold = acceptance_rate_at(curve, 0.9)
    assert rate == pytest.approx(0.5150, abs=0.005)
    assert threshold == pytest.approx(0.675942, abs=0.01)


def test_whole_weights_are_products_that_occur_so_many_times() -> None:
    rng = np.random.default_rng(7)
    confidence, correct = draw.g6(rng, 300)
    weight = rng.integers(0, 4, 300)
    weighted = acceptance_curve(confidence, correct, weight.astype(float))
    repeated = acceptance_curve(confidence.repeat(weight), correct.repeat(weight))
    for name in ("threshold", "accepted", "correct", "products", "acceptance_rate", "precision"):
        np.testing.assert_array_equal(getattr(weighted, name), getattr(repeated, name))
    assert acceptance_rate_at(weighted, 0.9) == acceptance_rate_at(repeated, 0.9)
    np.testing.assert_array_equal(weighted.thinned(20).threshold, repeated.thinned(20).threshold)
    assert precision(correct, weight.astype(float)) == precision(correct.repeat(weight))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans(), st.floats(0, 1e6)), max_size=10))
def test_weighted_curve_adds_up_the_weights_at_every_threshold(
    products: list[tuple[float, bool, float]],
) -> None:
    confidence, correct, weight = (np.array([row[at] for row in products]) for at in range(3))
    curve = acceptance_curve(confidence.astype(float), correct.astype(bool), weight.astype(float))
    for t, accepted, right in zip(curve.threshold, curve.accepted, curve.correct, strict=True):
        assert accepted == pytest.approx(weight[confidence >= t].sum())
        assert right == pytest.approx(weight[(confidence >= t) & correct.astype(bool)].sum())
    some = set(confidence[weight > 0].tolist())
    assert curve.threshold.tolist() == sorted(some, reverse=True)
    if some:
        assert curve.acceptance_rate[-1] == 1
        assert curve.thinned(3).threshold[-1] == curve.threshold[-1]


def test_weights_do_not_make_the_order_of_rows_matter() -> None:
    rng = np.random.default_rng(8)
    confidence, correct = draw.g6(rng, 2000)
    weight = rng.lognormal(0, 3, 2000)
    order = rng.permutation(2000)
    one = acceptance_curve(confidence, correct, weight)
    other = acceptance_curve(confidence[order], correct[order], weight[order])
    for name in ("threshold", "accepted", "correct", "products"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert precision(correct, weight) == precision(correct[order], weight[order])


def test_all_correct_reaches_the_whole_weight_at_precision_one() -> None:
    weight = np.array([0.1] * 10)
    curve = acceptance_curve(np.linspace(0.1, 1, 10), np.ones(10, bool), weight)
    assert acceptance_rate_at(curve, 1.0) == (1.0, 0.1)
    nine = acceptance_curve(np.full(10, 0.5), np.arange(10) < 9, weight)  # 0.9 of 1, in sums of floats
    assert acceptance_rate_at(nine, 0.9) == (1.0, 0.5)


def test_weights_that_are_none_are_refused() -> None:
    one, yes = np.array([0.5]), np.array([True])
    for weight, message in (([1.0, 1.0], "one each"), ([-1.0], "from 0 on"), ([np.nan], "from 0 on")):
        for refused in (lambda w: acceptance_curve(one, yes, w), lambda w: precision(yes, w)):
            with pytest.raises(ValueError, match=message):
                refused(np.array(weight))
    with pytest.raises(ValueError, match="without weight"):
        precision(yes, np.array([0.0]))


def test_target_is_compared_in_whole_numbers() -> None:
    assert 7 < 0.07 * 100  # in floats
    correct = np.arange(100) < 7
    assert acceptance_rate_at(acceptance_curve(np.full(100, 0.5), correct), 0.07) == (1.0, 0.5)


def test_curve_refuses_confidences_that_are_not_numbers_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="not a number"):
        acceptance_curve(np.array([0.5, np.nan]), np.array([True, True]))
    with pytest.raises(ValueError, match="one each"):
        acceptance_curve(np.array([0.5]), np.array([True, True]))


@pytest.mark.parametrize("most", [1, 7, 50, 10_000])
def test_thinned_curve_keeps_points_of_the_curve_and_its_end(most: int) -> None:
    curve = acceptance_curve(*draw.g6(np.random.default_rng(3), 3000))
    thin = curve.thinned(most)
    assert len(thin.threshold) <= most
    assert thin.accepted[-1] == 3000
    points = set(zip(curve.threshold, curve.accepted, curve.correct, strict=True))
    assert set(zip(thin.threshold, thin.accepted, thin.correct, strict=True)) <= points
    assert most < 10_000 or len(thin.threshold) == len(curve.threshold)


def test_top_k_share_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    score = rng.random((200, 9))
    truth = rng.integers(0, 9, 200)
    ranked = np.argsort(-score, axis=1)[:, :5]
    for k in (1, 3, 5):
        assert top_k_share(ranked, truth, k) == pytest.approx(
            top_k_accuracy_score(truth, score, k=k, labels=np.arange(9))
        )


def test_top_k_share_refuses_more_than_is_ranked() -> None:
    with pytest.raises(ValueError, match="expected 1 to 2"):
        top_k_share(np.zeros((3, 2), dtype=int), np.zeros(3, dtype=int), 3)
    with pytest.raises(ValueError, match="one each"):
        top_k_share(np.zeros((3, 2), dtype=int), np.zeros(4, dtype=int), 1)


def test_counts_per_category_agree_with_counting_at_every_threshold() -> None:
    rng = np.random.default_rng(5)
    truth, predicted = rng.integers(0, 6, 300), rng.integers(0, 6, 300)
    predicted = np.where(rng.random(300) < 0.6, truth, predicted)
    confidence = rng.random(300).round(1)
    table = confusion_matrix(truth, predicted, labels=np.arange(8))
    for threshold in np.unique(confidence):
        counts = per_category(truth, predicted, confidence >= threshold, 8)
        np.testing.assert_array_equal(counts.products, table.sum(axis=1))
        np.testing.assert_array_equal(counts.predicted, table.sum(axis=0))
        np.testing.assert_array_equal(counts.right, np.diag(table))
        np.testing.assert_array_equal(counts.predicted_right, np.diag(table))
        rows = [(t, p) for t, p, s in zip(truth, predicted, confidence, strict=True) if s >= threshold]
        for category in range(8):
            assert counts.accepted[category] == sum(p == category for _, p in rows)
            assert counts.accepted_right[category] == sum(t == p == category for t, p in rows)


def test_confusions_are_the_most_frequent_wrong_pairs() -> None:
    rng = np.random.default_rng(6)
    truth, predicted = rng.integers(0, 5, 400), rng.integers(0, 7, 400)
    wrong = Counter((t, p) for t, p in zip(truth.tolist(), predicted.tolist(), strict=True) if t != p)
    expected = sorted(((-count, *pair) for pair, count in wrong.items()))[:10]
    found = confusions(truth, predicted, 10)
    assert list(zip(-found.products, found.truth, found.predicted, strict=True)) == expected


def test_no_confusions_where_all_is_correct_or_there_are_no_products() -> None:
    for truth in (np.array([1, 2, 2]), np.array([], dtype=int)):
        assert len(confusions(truth, truth, 10).truth) == 0


def test_categories_are_counted_without_a_square_table() -> None:
    truth = np.array([0, 3_000_000_000])
    assert confusions(truth, truth[::-1], 5).products.tolist() == [1, 1]
