"""The promise of the threshold: kept on synthetic products, exact, and the same for any order of rows."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import generators as draw
import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController
from scipy.stats import binom, binomtest, norm

from features.product import order_key
from models.decisions.confidence import fit_confidence
from models.decisions.out_of_fold import out_of_fold
from models.decisions.thresholds import (
    Certificate,
    Outcomes,
    certify,
    certify_ladder,
    counts_at,
    lower_bound,
    p_values,
    products_for,
    threshold_grid,
    walk,
)
from pipeline.job.config import CalibrationSettings

SHAPES = (draw.plateau, draw.contaminated, draw.dip)
DRAWS: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "g1": draw.g1,
    "g5": draw.g5,
    "g6": draw.g6,
    **{shape.__name__: draw.g2(shape) for shape in SHAPES},
}
TRUTH: dict[str, Callable[[float], float]] = {
    "g1": draw.g1_precision,
    "g5": draw.g1_precision,
    "g6": draw.g6_precision,
    **{shape.__name__: draw.g2_precision(shape) for shape in SHAPES},
}

SHARE = CalibrationSettings().fit_share
RUNS = {500: 60, 5000: 20}  # products: calibrations; the long form is `make test-statistics`
LONG = {500: 1000, 5000: 1000, 50_000: 300}


@cache
def calibrations(name: str, products: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """(runs,) bool, whether the certified threshold breaks its promise; (runs,) float, acceptance rates."""
    rng = np.random.default_rng(20)
    broken, rates = [], []
    for _ in range(runs):
        (a, b, *fit_group), (c, d, *cert_group) = DRAWS[name](rng, products // 4), DRAWS[name](rng, products)
        found = certify(draw.outcomes(a, b, "fit", *fit_group), draw.outcomes(c, d, "cert", *cert_group))
        broken.append(found.threshold is not None and TRUTH[name](found.threshold) < 0.9)
        rates.append(found.acceptance_rate)
    return np.array(broken), np.array(rates)


def allowed(runs: int) -> float:
    """Share of broken promises that delta = 0.1 allows among so many runs."""
    return 0.1 + 3 * (0.1 * 0.9 / runs) ** 0.5


@pytest.mark.parametrize(("products", "runs"), RUNS.items())
@pytest.mark.parametrize("name", DRAWS)
def test_promise_is_broken_in_one_of_ten_calibrations_at_most(name: str, products: int, runs: int) -> None:
    broken, _ = calibrations(name, products, runs)
    assert broken.mean() <= allowed(runs)


@pytest.mark.statistics
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("products", "runs"), LONG.items())
@pytest.mark.parametrize("name", DRAWS)
def test_promise_is_kept_in_more_calibrations_and_with_more_products(
    name: str, products: int, runs: int
) -> None:
    broken, rates = calibrations(name, products, runs)
    assert broken.mean() <= allowed(runs)
    if name == "g1":
        assert rates.mean() >= {500: 0.41, 5000: 0.49, 50_000: 0.505}[products]
    if (name, products) == ("contaminated", 5000):
        assert rates.mean() >= 0.38
        assert (rates == 0).mean() <= 0.01


@pytest.mark.parametrize(("products", "least"), [(500, 0.38), (5000, 0.48)])
def test_promise_costs_little_acceptance(products: int, least: float) -> None:
    _, rates = calibrations("g1", products, RUNS[products])
    assert rates.mean() >= least  # of 0.515, which is what the true curve allows


def test_errors_at_the_highest_confidences_do_not_stop_certification() -> None:
    _, rates = calibrations("contaminated", 5000, RUNS[5000])
    assert rates.mean() >= 0.38
    assert (rates > 0).all()


def shop_calibrations(
    shop: draw.Shop, products: int, catalogues: int, repetitions: int
) -> tuple[np.ndarray, ...]:
    """(runs,) bool, whether the promise is broken; acceptance rates, and those of the best threshold.

    Validation products are drawn, with replacement, from catalogues whose precision at every threshold is
    therefore known.
    """
    found = []
    for number in range(catalogues):
        evidence, correct = draw.shop_products(np.random.default_rng([40, number]), shop, 10_000)
        for repetition in range(repetitions):
            rng = np.random.default_rng([41, number, repetition])
            rows, in_fit = rng.integers(0, len(correct), products), rng.random(products) < SHARE
            of_fit, z = evidence.only(rows[in_fit]), correct[rows[in_fit]]
            model = fit_confidence(of_fit, z)
            ids = np.array([f"{products}-{number}-{repetition}-{row}" for row in range(len(z))], dtype=object)
            confidence = model.confidence(evidence)
            fit = draw.outcomes(out_of_fold(of_fit, z, ids, model), z, "fit")
            cert_rows = rows[~in_fit]
            threshold = certify(fit, draw.outcomes(confidence[cert_rows], correct[cert_rows])).threshold
            taken = confidence >= (2 if threshold is None else threshold)
            order = np.argsort(-confidence)
            precision = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
            broken = bool(taken.any()) and correct[taken].mean() < 0.9
            found.append((broken, taken.mean(), (np.flatnonzero(precision >= 0.9)[-1] + 1) / len(order)))
    return tuple(np.array(found).T)


def test_small_shops_are_promised_more_than_nothing() -> None:
    broken, rates, best = shop_calibrations(draw.SHOPS["shop"], 1500, 3, 4)
    assert broken.mean() <= allowed(12)
    assert rates.mean() >= best.mean() - 0.05
    broken, rates, _ = shop_calibrations(draw.SHOPS["shop"], 300, 3, 8)
    assert broken.mean() <= allowed(24)
    assert rates.mean() >= 0.4


@pytest.mark.statistics
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "products", "least"),
    [
        ("shop", 300, 0.45), ("shop", 1500, 0.8), ("shop", 6000, 0.8),
        ("noisy labels", 1500, 0.35), ("few strong", 1500, 0.5),
    ],
)  # fmt: skip
def test_promise_of_small_shops_is_kept_and_worth_something(name: str, products: int, least: float) -> None:
    broken, rates, best = shop_calibrations(draw.SHOPS[name], products, 40, 8)
    print(name, products, broken.mean(), rates.mean(), best.mean())
    assert broken.mean() <= allowed(320)
    assert rates.mean() >= least
    assert products < 6000 or rates.mean() >= best.mean() - 0.012


def test_near_duplicates_counted_one_by_one_would_break_the_promise() -> None:
    rng = np.random.default_rng(21)
    broken = 0
    for _ in range(300):
        (a, b, _), (c, d, _) = draw.g5(rng, 500), draw.g5(rng, 2000)
        found = certify(draw.outcomes(a, b, "fit"), draw.outcomes(c, d))
        broken += found.threshold is not None and draw.g1_precision(found.threshold) < 0.9
    assert broken / 300 > 0.15


def test_p_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(22)
    accepted = np.unique(np.geomspace(1, 2_000_000, 400).astype(int))
    for alpha in (0.02, 0.1, 0.4):
        errors = rng.binomial(accepted, alpha)
        oracle = binom.cdf(errors, accepted, alpha)
        np.testing.assert_allclose(p_values(accepted, errors, alpha), oracle, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(p_values(np.array([0, 3]), np.array([0, 3]), 0.1), [1, 1])


def test_lower_bound_is_that_of_scipy() -> None:
    for accepted, errors in ((1, 0), (22, 0), (57, 4), (900, 61), (5, 5)):
        test = binomtest(accepted - errors, accepted, alternative="greater")
        oracle = test.proportion_ci(0.95, "exact").low
        assert lower_bound(accepted, errors, 0.05) == pytest.approx(oracle, abs=1e-12)
    np.testing.assert_array_equal(lower_bound(np.array([0, 4]), np.array([0, 4]), 0.1), [0, 0])


def alike(products: int, name: str, correct: bool = True) -> Outcomes:
    return draw.outcomes(np.full(products, 0.8), np.full(products, correct), name)


def test_22_products_without_error_certify_and_21_do_not() -> None:
    missed, certified = (certify(alike(10, "fit"), alike(products, "cert")) for products in (21, 22))
    assert (missed.threshold, missed.accepted, missed.acceptance_rate) == (None, 0, 0.0)
    assert (certified.threshold, certified.accepted, certified.errors) == (0.8, 22, 0)
    assert certified.p_value == pytest.approx(0.9**22)
    assert certified.precision_lower == pytest.approx(0.1 ** (1 / 22))


def by_hand(fit: Outcomes, cert: Outcomes, target: float, delta: float) -> float | None:
    """Section by section in plain Python: a grid of all confidences, chains as loops, scipy's binomial."""
    grid = sorted(set(fit.confidence.tolist()), reverse=True)
    alpha, ratio = 1 - target, len(cert.correct) / len(fit.correct)

    def counts(of: Outcomes, t: float) -> tuple[int, int]:
        taken = [z for s, z in zip(of.confidence.tolist(), of.correct.tolist(), strict=True) if s >= t]
        return len(taken), len(taken) - sum(taken)

    chains: dict[int, float] = {}
    for share in (20, 40):
        start = next(j for j, t in enumerate(grid) if 100 * counts(fit, t)[0] >= share * len(fit.correct))
        if ratio * counts(fit, grid[start])[0] >= 100:
            chains[start] = chains.get(start, 0) + 0.05 * delta
    level = delta - sum(chains.values())

    def merit(t: float) -> float:
        m, k = counts(fit, t)
        if k >= alpha * m or m < 5:
            return -1
        there = round(ratio * m)
        most = int(np.count_nonzero(binom.cdf(np.arange(there + 1), there, alpha) <= level)) - 1
        mean, rate = ratio * m * (k + 0.5) / (m + 1), (k + 0.5) / (m + 1)
        power = norm.cdf(most + 0.5, mean, (ratio * m * rate * (1 - rate) * (1 + 2 * ratio)) ** 0.5)
        return float(power * m**0.25)

    merits = [merit(t) for t in grid]
    best = merits.index(max(merits))
    if merits[best] >= 0:
        chains[best] = chains.get(best, 0) + level
    certified = []
    for start, of_chain in chains.items():
        for t in grid[start:]:
            m, k = counts(cert, t)
            if binom.cdf(k, m, alpha) > of_chain:
                break
            certified.append(t)
    return min(certified, default=None)


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9])
def test_threshold_agrees_with_walking_every_chain_by_hand(target: float) -> None:
    rng = np.random.default_rng(23)
    found = []
    for products in (150, 600) * 10:  # with 600 there are backups, too
        fit = draw.outcomes(*draw.g6(rng, products // 4), "fit")
        cert = draw.outcomes(*draw.g6(rng, products))
        certificate = certify(fit, cert, target=target, delta=0.2)
        assert certificate.threshold == by_hand(fit, cert, target, 0.2)
        found.append(certificate.threshold)
    assert sum(threshold is not None for threshold in found) > 10


def test_no_threshold_is_higher_than_mapies() -> None:
    rng = np.random.default_rng(24)
    compared = 0
    for _ in range(10):
        grid = threshold_grid(draw.g1(rng, 500)[0], 50)[10:]
        confidence, correct = draw.g1(rng, 1500)
        mapie = BinaryClassificationController(
            predict_function=lambda s: np.column_stack([1 - s, s]),
            risk="precision",
            target_level=0.9,
            confidence_level=0.9,
            list_predict_params=grid,
            fwer_method="fixed_sequence",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # precision is not monotone, as MAPIE remarks
            mapie.calibrate(confidence, correct.astype(int))
        levels = np.zeros(len(grid))
        levels[0] = 0.1
        ours = walk(p_values(*counts_at(grid, confidence, correct), 0.1), levels)
        if mapie.best_predict_param is not None:
            assert ours is not None
            assert grid[ours[1]] <= mapie.best_predict_param
            compared += 1
    assert compared >= 5


def shuffled(products: Outcomes, rng: np.random.Generator) -> Outcomes:
    order = rng.permutation(len(products.correct))
    return Outcomes(
        products.product_id[order], products.group[order], products.confidence[order], products.correct[order]
    )


def test_ladder_is_the_certificate_of_each_target() -> None:
    rng = np.random.default_rng(26)
    confidence, correct, group = draw.g5(rng, 1500)
    fit, cert = draw.outcomes(*draw.g6(rng, 400), "fit"), draw.outcomes(confidence, correct, group=group)
    targets = (0.7, 0.8, 0.9, 0.99)
    found = certify_ladder(fit, cert, targets, delta=0.2, grid=100)
    assert found == tuple(certify(fit, cert, target=target, delta=0.2, grid=100) for target in targets)
    with pytest.raises(ValueError, match="target 1"):
        certify_ladder(fit, cert, (0.9, 1.0))
    with pytest.raises(ValueError, match="products are in FIT and CERT"):
        certify_ladder(fit, fit, targets)


def test_row_order_changes_nothing() -> None:
    rng = np.random.default_rng(25)
    (a, b), (c, d) = draw.g6(rng, 300), draw.g6(rng, 1200)
    group = rng.integers(0, 700, 1200)  # products of a group differ, so that it matters which one counts
    fit, cert = draw.outcomes(a, b, "fit"), draw.outcomes(c, d, "cert", group)
    once = certify(fit, cert)
    assert once.threshold is not None
    assert once.products == len(set(group.tolist()))
    for _ in range(5):
        assert certify(shuffled(fit, rng), shuffled(cert, rng)) == once


def test_a_group_is_represented_by_the_smallest_hash_of_its_ids() -> None:
    ids = np.array(["a", "b", "c", "d", "e"])
    group = np.array([1, 2, 1, 1, 2])
    products = Outcomes(ids, group, np.full(5, 0.5), np.ones(5, bool))
    chosen = {ids[row] for row in products.one_per_group}
    assert chosen == {min("acd", key=order_key), min("be", key=order_key)}


def test_a_product_or_group_in_both_fit_and_cert_is_refused() -> None:
    fit, cert = alike(50, "fit"), alike(50, "cert")
    with pytest.raises(ValueError, match="50 products are in FIT and CERT"):
        certify(fit, fit)
    group = cert.group.copy()
    group[7] = fit.group[3]
    with pytest.raises(ValueError, match="1 groups are in FIT and CERT, as 'fit3'"):
        certify(fit, replace(cert, group=group))
    with pytest.raises(ValueError, match="groups are int and str"):
        certify(fit, replace(cert, group=np.arange(50)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": np.array([0.5, np.nan])}, "not a number"),
        ({"confidence": np.array([0.5, 1.1])}, "not a number from 0 to 1"),
        ({"confidence": np.array([0.5])}, "one length"),
        ({"correct": np.array([1, 0])}, "expected bool"),
        ({"product_id": np.array(["a", "a"])}, "a row per product"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    columns = {
        "product_id": np.array(["a", "b"]),
        "group": np.array([1, 2]),
        "confidence": np.array([0.5, 0.6]),
        "correct": np.array([True, False]),
    }
    with pytest.raises(ValueError, match=message):
        Outcomes(**(columns | change))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"target 1\.0"):
        certify(alike(10, "fit"), alike(30, "cert"), target=1.0)
    with pytest.raises(ValueError, match="grid 0"):
        certify(alike(10, "fit"), alike(30, "cert"), grid=0)


def test_nothing_is_accepted_without_fit_or_without_cert() -> None:
    no_fit, no_cert = certify(alike(0, "fit"), alike(90, "cert")), certify(alike(90, "fit"), alike(0, "cert"))
    assert no_fit.threshold is no_cert.threshold is None
    assert (no_fit.grid, no_fit.more_products_needed) == (0, None)
    assert "FIT has none" in (no_fit.reason or "")
    assert 22 <= (no_cert.more_products_needed or 0) <= 60


def test_products_that_are_all_wrong_are_not_certified_and_more_would_not_help() -> None:
    found = certify(alike(90, "fit", correct=False), alike(900, "cert", correct=False))
    assert (found.threshold, found.more_products_needed) == (None, None)
    assert "more products alone will not help" in (found.reason or "")


@pytest.mark.parametrize("products", [2, 4, 8])
def test_for_a_few_that_are_all_correct_the_number_of_further_correct_ones_is_reported(products: int) -> None:
    found = certify(alike(10, "fit"), alike(products, "cert"))
    assert found.threshold is None
    assert found.more_products_needed == 22 - products
    assert certify(alike(10, "fit"), alike(22, "cert")).threshold is not None
    assert found.at_best
    assert f"at least {22 - products} more are needed" in (found.reason or "")


def test_a_few_with_one_wrong_do_not_show_that_more_would_not_help() -> None:
    fit = alike(10, "fit")
    cert = draw.outcomes(np.full(4, 0.8), np.array([True, True, True, False]), "cert")
    found = certify(fit, cert)
    assert found.at_best
    assert (found.more_products_needed or 0) > 22 - 4  # if all were correct
    many = draw.outcomes(np.full(400, 0.8), np.tile([True, True, True, False], 100), "cert")
    assert "more products alone will not help" in (certify(fit, many).reason or "")


def test_products_below_every_start_do_not_show_that_more_would_not_help() -> None:
    fit = draw.outcomes(np.linspace(0.5, 0.9, 40), np.full(40, True), "fit")
    found = certify(fit, draw.outcomes(np.full(3, 0.4), np.full(3, True), "cert"))
    assert found.threshold is None
    assert (found.more_products_needed or 0) > 0


def test_products_that_are_all_correct_are_all_accepted() -> None:
    rng = np.random.default_rng(27)
    fit = draw.outcomes(rng.random(40), np.full(40, True), "fit")
    found = certify(fit, draw.outcomes(rng.random(400), np.full(400, True)))
    assert found.threshold == fit.confidence.min()
    assert (found.grid, found.errors, found.precision) == (40, 0, 1.0)


def test_grid_has_attained_confidences_at_even_steps() -> None:
    confidence = draw.g6(np.random.default_rng(28), 5000)[0]
    grid = threshold_grid(confidence, 20)
    assert set(grid.tolist()) <= set(confidence.tolist())
    assert (np.diff(grid) < 0).all()
    accepted = counts_at(grid, confidence, np.full(5000, True))[0]
    assert accepted[-1] == 5000
    assert set(threshold_grid(confidence, 10**6).tolist()) == set(confidence.tolist())


def test_certificate_has_the_figures_of_the_accepted_products() -> None:
    rng = np.random.default_rng(29)
    cert = draw.outcomes(*draw.g6(rng, 3000))
    found = certify(draw.outcomes(*draw.g6(rng, 1000), "fit"), cert)
    taken = cert.confidence >= found.threshold
    assert found.accepted == taken.sum()
    assert found.errors == (taken & ~cert.correct).sum()
    assert found.acceptance_rate == taken.mean()
    assert found.precision == pytest.approx(cert.correct[taken].mean())
    assert found.precision_lower is not None and 0.9 <= found.precision_lower < (found.precision or 0)
    assert found.margin == pytest.approx((found.precision or 0) - 0.9)
    lowest = np.sort(cert.confidence[taken])[: -(-found.accepted // 10)].max()
    tail = taken & (cert.confidence <= lowest)
    assert found.margin_products == tail.sum()
    assert found.margin_precision == cert.correct[tail].mean()
    assert (found.chain, found.reason) == ("main", None)
    assert found.level == pytest.approx(0.09)  # two backups have the rest
    assert found.p_value == pytest.approx(binom.cdf(found.errors, found.accepted, 0.1))


def test_certificate_is_read_back_from_json() -> None:
    rng = np.random.default_rng(30)
    fit = draw.outcomes(*draw.g1(rng, 300), "fit")
    for cert in (draw.outcomes(*draw.g1(rng, 1000)), draw.outcomes(*draw.g1(rng, 15))):
        found = certify(fit, cert)
        assert Certificate.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(("precision", "audits"), [(0.91, 3980), (0.92, 932), (0.94, 210), (0.97, 65)])
def test_products_for_a_promise_are_about_those_of_the_exact_plan(precision: float, audits: int) -> None:
    assert products_for(precision, 0.9, 0.1) == pytest.approx(audits, rel=0.15)
    assert products_for(0.9, 0.9, 0.1) == np.inf


def test_as_many_more_products_as_reported_mostly_suffice() -> None:
    rng = np.random.default_rng(31)
    enough = []
    for _ in range(60):
        fit = draw.outcomes(*draw.g1(rng, 200), "fit")
        found = certify(fit, draw.outcomes(*draw.g1(rng, 60)))
        if found.more_products_needed is not None:
            more = certify(fit, draw.outcomes(*draw.g1(rng, 60 + found.more_products_needed)))
            enough.append(more.threshold is not None)
    assert len(enough) > 20
    assert np.mean(enough) > 0.6
