"""Categories and departments: estimates, restriction to the best categories and Holm, against brute force."""

from fractions import Fraction

import generators as draw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brute, fmin
from scipy.special import betaln
from scipy.stats import beta, binom, binomtest

from models.decisions.categories import (
    ALWAYS_REVIEW,
    AUTOMATIC,
    STRONGEST,
    TOO_FEW,
    WEAKEST,
    WITH_CARE,
    acceptance_by_categories,
    certify_departments,
    certify_inside,
    cumulative,
    estimate_precision,
    holm,
    restrict,
    status,
)
from models.decisions.metrics import CategoryCounts, per_category
from models.decisions.thresholds import Outcomes, certify

counts = st.lists(
    st.integers(0, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=8
)


def drawn_categories(
    rng: np.random.Generator, categories: int, mean: float, strength: float, most: int = 400
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True precision (C,), products (C,) of very different number, and the correct ones (C,)."""
    precision = rng.beta(strength * mean, strength * (1 - mean), categories)
    products = rng.integers(0, np.maximum(most // (1 + np.arange(categories) % 40), 2))
    return precision, products, rng.binomial(products, precision)


def drawn_products(
    rng: np.random.Generator, products: int, categories: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, predicted (both (n,) int) and confidence with many ties."""
    truth = rng.integers(-1, categories, products)
    predicted = np.where(
        rng.random(products) < 0.6, np.maximum(truth, 0), rng.integers(0, categories, products)
    )
    return truth, predicted, rng.random(products).round(1)


# Estimates


def test_one_of_one_does_not_lead_ninety_nine_of_a_hundred() -> None:
    estimate = estimate_precision(np.array([1, 100, 100, 100]), np.array([1, 99, 50, 30])).estimate
    assert estimate[1] > estimate[0] > estimate[2]


@pytest.mark.parametrize(("mean", "strength"), [(0.6, 3.0), (0.9, 8.0), (0.93, 60.0)])
def test_mean_and_strength_that_categories_are_drawn_with_are_found(mean: float, strength: float) -> None:
    _, products, correct = drawn_categories(np.random.default_rng(1), 8000, mean, strength)
    found = estimate_precision(products, correct)
    assert found.mean == pytest.approx(mean, abs=0.01)
    assert found.strength == pytest.approx(strength, rel=0.15)


@settings(max_examples=30, deadline=None)
@given(counts)
def test_prior_is_the_mode_that_a_search_over_a_grid_finds(pairs: list[tuple[int, int]]) -> None:
    products, correct = (np.array(column) for column in zip(*pairs, strict=True))

    def minus_log_posterior(at: np.ndarray) -> float:
        m, s = 1 / (1 + np.exp(-at[0])), float(np.exp(np.clip(at[1], np.log(WEAKEST), np.log(STRONGEST))))
        a, b = m * s, (1 - m) * s
        likelihood = betaln(a + correct, b + products - correct) - betaln(a, b)
        return float(-(likelihood.sum() + np.log(m * (1 - m)) - np.log(s) / 2))

    best = brute(minus_log_posterior, ((-6, 6), (0, np.log(STRONGEST))), Ns=40, finish=fmin, full_output=True)
    found = estimate_precision(products, correct)
    own = minus_log_posterior(np.array([np.log(found.mean / (1 - found.mean)), np.log(found.strength)]))
    assert own <= best[1] + 1e-3
    assert WEAKEST <= found.strength <= STRONGEST


@settings(max_examples=30, deadline=None)
@given(counts, st.randoms(use_true_random=False))
def test_estimate_and_interval_are_those_of_the_posterior_in_any_order(
    pairs: list[tuple[int, int]], random: object
) -> None:
    products, correct = (np.array(column) for column in zip(*pairs, strict=True))
    found = estimate_precision(products, correct)
    for at, (n, x) in enumerate(pairs):
        posterior = beta(found.strength * found.mean + x, found.strength * (1 - found.mean) + n - x)
        assert found.estimate[at] == pytest.approx(posterior.mean())
        assert found.lower[at] == pytest.approx(posterior.ppf(0.05))
        assert found.upper[at] == pytest.approx(posterior.ppf(0.95))
    order = np.random.default_rng(len(pairs)).permutation(len(pairs))
    mixed = estimate_precision(products[order], correct[order])
    for name in ("estimate", "lower", "upper", "status"):
        np.testing.assert_array_equal(getattr(found, name)[order], getattr(mixed, name))


def test_interval_holds_nine_true_precisions_in_ten() -> None:
    rng = np.random.default_rng(2)
    precision, products, correct = drawn_categories(rng, 8000, 0.85, 6.0)
    found = estimate_precision(products, correct)
    held = (found.lower <= precision) & (precision <= found.upper)
    assert held.mean() == pytest.approx(0.9, abs=0.015)
    assert held[products < 5].mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("shape", ["beta", "two kinds", "logit-normal"])
def test_few_of_the_categories_called_automatic_are_below_the_target(shape: str) -> None:
    rng = np.random.default_rng(3)
    precision = {
        "beta": rng.beta(6.0, 1.0, 8000),
        "two kinds": np.where(rng.random(8000) < 0.5, 0.88, 0.97),
        "logit-normal": 1 / (1 + np.exp(-rng.normal(2, 1, 8000))),
    }[shape]
    products = rng.geometric(0.01, 8000)
    correct = rng.binomial(products, precision)
    status = estimate_precision(products, correct).status
    called = status == AUTOMATIC
    assert called.sum() > 400
    assert (precision[called] < 0.9).mean() <= 0.05
    assert (precision[status == ALWAYS_REVIEW] < 0.9).mean() >= 0.95


def test_status_follows_the_interval_and_needs_ten_products() -> None:
    products = np.array([0, 9, 9, 400, 400, 400, 400, 25])
    correct = np.array([0, 9, 0, 396, 360, 352, 260, 25])
    found = estimate_precision(products, correct)
    assert found.status[:3].tolist() == [TOO_FEW] * 3
    for at in range(3, 8):
        inside = found.lower[at] < 0.9 <= found.upper[at]
        expected = WITH_CARE if inside else (AUTOMATIC if found.lower[at] >= 0.9 else ALWAYS_REVIEW)
        assert found.status[at] == expected
    assert found.status[[3, 4, 6]].tolist() == [AUTOMATIC, WITH_CARE, ALWAYS_REVIEW]


def test_without_products_nothing_is_said() -> None:
    for categories in (0, 3):
        found = estimate_precision(np.zeros(categories, int), np.zeros(categories, int))
        assert found.status.tolist() == [TOO_FEW] * categories
        np.testing.assert_allclose(found.estimate, 0.5)


def test_one_category_alone_is_not_certain_of_itself() -> None:
    found = estimate_precision(np.array([30]), np.array([30]))
    assert found.lower[0] < 0.97


def test_impossible_counts_are_refused() -> None:
    for products, correct, message in (
        ([1, 2], [1], "one each"),
        ([1.0], [1.0], "integers"),
        ([1], [2], "more correct"),
        ([1], [-1], "fewer than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate_precision(np.array(products), np.array(correct))
    for target, certainty in ((0.0, 0.9), (0.9, 1.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            estimate_precision(np.array([1]), np.array([1]), target, certainty)


# Restriction


@settings(max_examples=100, deadline=None)
@given(counts, st.sampled_from([0.01, 0.3, 0.5, 0.8, 1.0]))
def test_kept_are_the_best_of_the_predicted_and_as_good_unpredicted_ones(
    pairs: list[tuple[int, int]], share: float
) -> None:
    products, correct = (np.array(column) for column in zip(*pairs, strict=True))
    found = restrict(products, correct, share)
    expected = sorted(range(len(pairs)), key=lambda c: (-found.estimate[c], -products[c], c))
    assert found.order.tolist() == expected
    seen = [c for c in expected if products[c] > 0]
    best = seen[: -int(-Fraction(str(share)) * len(seen) // 1)]
    last = found.estimate[best[-1]] if best else 0
    others = [c for c in expected if products[c] == 0 and found.estimate[c] >= last]
    assert np.flatnonzero(found.kept).tolist() == sorted(best + others)


def test_share_is_counted_exactly() -> None:
    products = np.full(35, 100)
    found = restrict(products, np.arange(35) + 60, 0.8)
    assert 0.8 * 35 > 28 - 1e-9
    assert found.kept.sum() == 28
    assert found.order[:3].tolist() == [34, 33, 32]


def test_restriction_refuses_shares_out_of_range() -> None:
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            restrict(np.array([1]), np.array([1]), share)


def test_cumulative_counts_agree_with_counting_the_first_categories() -> None:
    rng = np.random.default_rng(4)
    truth, predicted, confidence = drawn_products(rng, 200)
    truth = np.maximum(truth, 0)
    predicted[predicted == 2] = 3  # one category that nothing is predicted as
    accepted = confidence >= 0.5
    order = np.array([4, 2, 7, 0, 1, 6, 3, 5])
    found = cumulative(order, per_category(truth, predicted, accepted, 8))
    assert found.category.tolist() == [4, 0, 1, 3, 5]
    for at in range(len(found.category)):
        rows = np.isin(predicted, found.category[: at + 1])
        right = truth[rows] == predicted[rows]
        assert found.predicted[at] == rows.sum()
        assert found.precision[at] == right.mean()
        assert found.acceptance_inside[at] == accepted[rows].mean()
        assert found.acceptance_of_all[at] == (accepted & rows).mean()
        assert found.accepted_precision[at] == right[accepted[rows]].mean()
    mixed = rng.permutation(200)
    again = cumulative(order, per_category(truth[mixed], predicted[mixed], accepted[mixed], 8))
    np.testing.assert_array_equal(found.accepted_correct, again.accepted_correct)


def test_cumulative_precision_of_nothing_accepted_is_not_a_number() -> None:
    nothing = np.zeros(3, bool)
    found = cumulative(np.arange(3), per_category(np.arange(3), np.arange(3), nothing, 3))
    assert np.isnan(found.accepted_precision).all()
    assert found.acceptance_of_all.tolist() == [0, 0, 0]


def test_cumulative_refuses_an_order_that_lacks_a_category() -> None:
    found = per_category(np.arange(3), np.arange(3), np.ones(3, bool), 3)
    for order in ([0, 1], [0, 1, 1]):
        with pytest.raises(ValueError, match="once"):
            cumulative(np.array(order), found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.75, 0.9, 1.0]), st.sampled_from([1, 2, 3, 6, 100]))
def test_acceptance_by_categories_agrees_with_trying_every_threshold(
    seed: int, target: float, points: int
) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted, confidence = drawn_products(rng, int(rng.integers(1, 60)))
    correct, order = truth == predicted, rng.permutation(6)[: int(rng.integers(1, 7))]
    found = acceptance_by_categories(order, predicted, confidence, correct, target, points)
    assert found.categories.tolist() == sorted({-(-i * len(order) // points) for i in range(1, points + 1)})
    for k, inside, of_all in zip(found.categories, found.inside, found.of_all, strict=True):
        rows = np.isin(predicted, order[:k])
        best = max(
            (
                int((rows & (confidence >= t)).sum())
                for t in confidence
                if (rows & (confidence >= t)).any() and correct[rows & (confidence >= t)].mean() >= target
            ),
            default=0,
        )
        assert of_all == best / len(truth)
        assert inside == (best / rows.sum() if rows.any() else 0)
    mixed = rng.permutation(len(truth))
    again = acceptance_by_categories(
        order, predicted[mixed], confidence[mixed], correct[mixed], target, points
    )
    np.testing.assert_array_equal(found.accepted, again.accepted)


def test_acceptance_by_categories_is_close_on_many_confidences() -> None:
    rng = np.random.default_rng(5)
    confidence, correct = draw.g1(rng, 50_000)
    predicted = rng.integers(0, 10, len(confidence))
    found = acceptance_by_categories(np.arange(10), predicted, confidence, correct, 0.9, 5)
    for k, inside in zip(found.categories, found.inside, strict=True):
        rows = np.flatnonzero(predicted < k)
        order = rows[np.argsort(-confidence[rows])]
        precision = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
        exact = (np.flatnonzero(precision >= 0.9)[-1] + 1) / len(rows)
        assert exact - 0.004 <= inside <= exact


def test_acceptance_by_categories_refuses_bad_input() -> None:
    one = np.array([0])
    for arguments, message in (
        ((one, np.array([0, 1]), np.array([0.5]), np.array([True])), "one length"),
        ((one, one, np.array([np.nan]), np.array([True])), "not a number"),
        ((np.array([], int), one, np.array([0.5]), np.array([True])), "categories once"),
        ((np.array([0, 0]), one, np.array([0.5]), np.array([True])), "categories once"),
    ):
        with pytest.raises(ValueError, match=message):
            acceptance_by_categories(*arguments)


def test_certificate_inside_is_that_of_the_products_inside_alone() -> None:
    rng = np.random.default_rng(6)
    fit, cert = draw.outcomes(*draw.g1(rng, 500), "fit"), draw.outcomes(*draw.g1(rng, 2000), "cert")
    in_fit, in_cert = rng.random(500) < 0.7, rng.random(2000) < 0.7
    found = certify_inside(fit, cert, in_fit, in_cert, target=0.85)
    alone = [
        draw.outcomes(side.confidence[rows], side.correct[rows], name)
        for side, rows, name in ((fit, in_fit, "fit"), (cert, in_cert, "cert"))
    ]
    assert found == certify(*alone, target=0.85)
    assert found.products == in_cert.sum()
    with pytest.raises(ValueError, match="a bool each"):
        certify_inside(fit, cert, in_fit[:-1], in_cert)


# Departments


def departments_of(
    rng: np.random.Generator, products: int, names: int = 4
) -> tuple[Outcomes, np.ndarray, list[str]]:
    confidence, correct = draw.g6(rng, products)
    department = rng.integers(0, names, products)
    return draw.outcomes(confidence, correct), department, [f"Department {name}" for name in range(names)]


def test_departments_agree_with_counting_and_scipy() -> None:
    rng = np.random.default_rng(7)
    cert, department, names = departments_of(rng, 300)
    names.append("Empty")
    found = certify_departments(cert, department, names, 0.8)
    assert [row.node for row in found] == [0, 1, 2, 3, 4]
    for row in found[:4]:
        rows = (department == row.node) & (cert.confidence >= 0.8)
        errors = int((rows & ~cert.correct).sum())
        assert (row.accepted, row.errors) == (rows.sum(), errors)
        assert row.products == (department == row.node).sum()
        assert row.precision == cert.correct[rows].mean()
        assert row.p_value == pytest.approx(binom.cdf(errors, row.accepted, 0.1), rel=1e-10)
        test = binomtest(row.accepted - errors, row.accepted, 0.9, alternative="greater")
        assert row.lower == pytest.approx(test.proportion_ci(0.9, method="exact").low)
    empty = found[4]
    assert (empty.products, empty.accepted, empty.precision, empty.p_value) == (0, 0, None, 1.0)
    assert not empty.certified


def test_certified_departments_are_those_of_holm_by_hand() -> None:
    # 0.9 ** 40 = 0.0148, 0.9 ** 29 = 0.047, 0.9 ** 25 = 0.072; the fifth department has no products
    sizes = {0: 29, 1: 40, 2: 25, 4: 3}
    department = np.repeat(list(sizes), list(sizes.values()))
    cert = draw.outcomes(np.full(len(department), 0.9), np.ones(len(department), bool))
    names = [str(name) for name in range(5)]

    def certified(delta: float) -> list[bool]:
        return [row.certified for row in certify_departments(cert, department, names, 0.5, delta=delta)]

    assert certified(0.1) == [False, True, False, False, False]  # 0.0148 <= 0.1 / 4; 0.047 > 0.1 / 3
    assert certified(0.15) == [True, True, True, False, False]  # 0.047 <= 0.05; 0.072 <= 0.075; 0.729 > 0.15
    assert certified(0.05) == [False] * 5


def test_departments_do_not_depend_on_the_order_of_products_and_count_one_of_a_group() -> None:
    rng = np.random.default_rng(8)
    confidence, correct, group = draw.g5(rng, 400)
    department = np.repeat(rng.integers(0, 3, 80), 5)
    cert, names = draw.outcomes(confidence, correct, group=group), ["a", "b", "c"]
    found = certify_departments(cert, department, names, 0.7)
    assert sum(row.products for row in found) == 80
    order = rng.permutation(400)
    mixed = Outcomes(cert.product_id[order], cert.group[order], confidence[order], correct[order])
    assert certify_departments(mixed, department[order], names, 0.7) == found


def test_nothing_accepted_certifies_no_department() -> None:
    cert, department, names = departments_of(np.random.default_rng(9), 300)
    for row in certify_departments(cert, department, names, None):
        assert (row.accepted, row.precision, row.lower, row.p_value, row.certified) == (0, None, 0, 1, False)


def test_departments_refuse_bad_input() -> None:
    cert, department, names = departments_of(np.random.default_rng(10), 20)
    with pytest.raises(ValueError, match="one each"):
        certify_departments(cert, department[1:], names, 0.5)
    with pytest.raises(ValueError, match="expected 0 to 2"):
        certify_departments(cert, np.full(20, 3), names[:3], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        certify_departments(cert, department, names, 0.5, delta=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.001, 0.01, 0.02, 0.025, 0.04, 0.1, 0.5, 1.0]), max_size=6),
    st.sampled_from([0.05, 0.1, 0.2]),
)
def test_holm_rejects_what_closed_testing_rejects(p: list[float], delta: float) -> None:
    """A hypothesis falls when Bonferroni's test rejects every set of hypotheses that it is in."""
    sets = [[at for at in range(len(p)) if bits >> at & 1] for bits in range(1, 2 ** len(p))]
    expected = [
        all(any(p[one] <= delta / len(some) for one in some) for some in sets if at in some)
        for at in range(len(p))
    ]
    assert holm(np.array(p), delta, len(p)).tolist() == expected


@pytest.mark.parametrize("shape", ["alike", "large and poor", "one poor", "each at its edge"])
def test_no_department_below_the_target_is_certified_more_often_than_delta(shape: str) -> None:
    """The threshold is certified on the same products, for all of them together."""
    rng = np.random.default_rng(11)
    broken, certified, runs = 0, 0, 300
    # the odds of being correct, in a department, are those of G1 times this
    odds, share = {
        "alike": (np.ones(2), np.array([0.5, 0.5])),
        "large and poor": (np.array([0.8, 2.5, 2.5]), np.array([0.8, 0.1, 0.1])),
        "one poor": (np.array([0.5, 1.2, 1.2, 1.2, 1.2]), np.full(5, 0.2)),
        "each at its edge": (np.array([0.85, 0.95, 1.0, 1.05, 1.2]), np.full(5, 0.2)),
    }[shape]
    names = [str(name) for name in range(len(odds))]
    fine = rng.beta(draw.A, draw.B, 100_000)

    def products(count: int, name: str) -> tuple[Outcomes, np.ndarray]:
        confidence = rng.beta(draw.A, draw.B, count)
        department = rng.choice(len(odds), count, p=share)
        correct = rng.random(count) < true_precision(confidence, odds[department])
        return draw.outcomes(confidence, correct, name), department

    def true_precision(confidence: np.ndarray, factor: np.ndarray) -> np.ndarray:
        precision: np.ndarray = factor * confidence / (1 + (factor - 1) * confidence)
        return precision

    for _ in range(runs):
        (fit, _), (cert, department) = products(500, "fit"), products(2000, "cert")
        threshold = certify(fit, cert).threshold
        rows = [row for row in certify_departments(cert, department, names, threshold) if row.certified]
        taken = fine[fine >= (threshold or 1)]
        certified += len(rows)
        broken += any(true_precision(taken, odds[row.node]).mean() < 0.9 for row in rows)
    assert certified > 0
    assert broken / runs <= 0.1 + 3 * np.sqrt(0.09 / runs)


def test_a_category_is_always_reviewed_only_where_its_accepted_products_are_wrong_too() -> None:
    counts = CategoryCounts(
        products=np.zeros(6, int), right=np.zeros(6, int),
        predicted=np.array([200, 200, 200, 200, 5, 14]),
        predicted_right=np.array([198, 100, 100, 100, 5, 2]),
        accepted=np.array([150, 80, 80, 0, 5, 9]), accepted_right=np.array([149, 79, 40, 0, 5, 2]),
    )  # fmt: skip
    review = "always review"
    assert status(counts).tolist() == ["automatic", "with care", review, review, "too few", review]
