"""Promises at every level are about the products that stop there, and are kept together."""

from dataclasses import fields, replace
from functools import cache
from itertools import pairwise

import generators as draw
import numpy as np
import pytest

from models.decisions.levels import LevelOutcomes, certify_levels, delta_share, stop_level, weights_along
from models.decisions.thresholds import Certificate, Outcomes, certify

STRENGTHS = {"deep": (4.5, 2.5, 0.6), "even": (3.0, 2.2, 1.3), "parent": (3.0, 3.5, 0.3)}


@cache
def world(name: str) -> tuple[np.ndarray, ...]:
    """All products of a world; calibrations draw from them with replacement, so that the truth is known."""
    return draw.tree_products(np.random.default_rng(30), 200_000, STRENGTHS[name])


def drawn(products: tuple[np.ndarray, ...], rng: np.random.Generator, count: int, name: str) -> LevelOutcomes:
    rows = rng.integers(0, len(products[0]), count)
    return draw.level_outcomes(*(column[rows] for column in products), name)


def thresholds_of(found: tuple[Certificate, ...]) -> np.ndarray:
    return np.array([one.threshold for one in found], dtype=np.float64)


def judged(found: tuple[Certificate, ...], products: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, whether a level breaks its promise; (N,) float, share of the world that stops there."""
    confidence, correct, depth = products
    stop = stop_level(confidence, depth, thresholds_of(found))
    at = [stop == level for level in range(1, len(found) + 1)]
    broken = [bool(here.any()) and correct[here, level].mean() < 0.9 for level, here in enumerate(at)]
    return np.array(broken), np.array([here.mean() for here in at])


def allowed(share: float, runs: int) -> float:
    return share + 3 * (share * (1 - share) / runs) ** 0.5


def promises_hold(products: tuple[np.ndarray, ...], count: int, runs: int) -> np.ndarray:
    """Asserts the promises over calibrations of so many validation products; returns mean acceptance (N,)."""
    rng = np.random.default_rng(31)
    broken, rates = [], []
    for _ in range(runs):
        fit, cert = drawn(products, rng, count // 4, "fit"), drawn(products, rng, count - count // 4, "cert")
        one = judged(certify_levels(fit, cert), products)
        broken.append(one[0])
        rates.append(one[1])
    levels = len(broken[0])
    by_level = np.mean(broken, axis=0)
    print(count, "products: broken", by_level.round(3), "acceptance", np.mean(rates, axis=0).round(3))
    for level in range(1, levels + 1):
        assert by_level[level - 1] <= allowed(0.1 * delta_share(level, levels), runs)
    assert np.any(broken, axis=1).mean() <= allowed(0.1, runs)
    return np.mean(rates, axis=0)


@pytest.mark.parametrize("count", [300, 1500])
@pytest.mark.parametrize("name", STRENGTHS)
def test_promises_hold_on_trees_of_three_levels(name: str, count: int) -> None:
    promises_hold(world(name), count, 25)


@pytest.mark.statistics
@pytest.mark.parametrize("count", [300, 1500, 6000])
@pytest.mark.parametrize("name", STRENGTHS)
def test_promises_hold_in_300_calibrations(name: str, count: int) -> None:
    promises_hold(world(name), count, 300)


@pytest.mark.parametrize("runs", [10, pytest.param(100, marks=pytest.mark.statistics)])
@pytest.mark.parametrize("name", STRENGTHS)
def test_coarser_levels_cost_the_leaf_half_a_point_at_most(name: str, runs: int) -> None:
    """From 6,000 validation products on, against a leaf that has all of delta."""
    lost, coarser = [], []
    rng = np.random.default_rng(32)
    for _ in range(runs):
        fit, cert = drawn(world(name), rng, 1500, "fit"), drawn(world(name), rng, 4500, "cert")
        _, rates = judged(certify_levels(fit, cert), world(name))
        alone = certify(fit.leaf(), cert.leaf()).threshold
        lost.append(float(np.mean(world(name)[0][:, -1] >= alone)) - rates[-1])
        coarser.append(rates[:-1].sum())
    print(
        name, "lost by the leaf", np.mean(lost).round(4), "coarser levels accept", np.mean(coarser).round(3)
    )
    assert np.mean(lost) <= 0.005
    assert np.mean(coarser) > 0.2


def lending(rng: np.random.Generator, products: int) -> tuple[np.ndarray, ...]:
    """95 % have the correct parent, but the 5 % that the leaf leaves have a wrong one, as confident."""
    left = rng.random(products) < 0.05
    leaf = np.where(left, 0.3, 0.9)
    correct = np.stack([~left, ~left & (rng.random(products) < 0.95)], axis=1)
    return np.stack([np.full(products, 0.99), leaf], axis=1), correct, np.full(products, 2)


def test_leaf_lends_no_precision_to_the_parent() -> None:
    rng = np.random.default_rng(33)
    fit, cert = (draw.level_outcomes(*lending(rng, 3000), name) for name in ("fit", "cert"))
    assert cert.correct[:, 0].mean() > 0.94
    parent, leaf = certify_levels(fit, cert)
    assert leaf.threshold == 0.9 and leaf.acceptance_rate > 0.9
    assert parent.threshold is None
    assert parent.products == 3000 and "not help" in (parent.reason or "")


def just_under(rng: np.random.Generator, products: int, digits: int) -> tuple[np.ndarray, ...]:
    """Below any threshold that the leaf may get, 0.8999 of the parents are correct, at any confidence."""
    leaf, parent = rng.random((2, products)).round(digits)
    leaf_rate = 0.6 + 0.4 * leaf
    leaf_correct = rng.random(products) < leaf_rate
    given_wrong = np.maximum(0.8999 - leaf_rate, 0) / (1 - leaf_rate + 1e-9)
    parent_correct = leaf_correct | (rng.random(products) < given_wrong)
    return (
        np.stack([parent, leaf], axis=1),
        np.stack([parent_correct, leaf_correct], axis=1),
        np.full(products, 2),
    )


@pytest.mark.parametrize(
    ("digits", "runs"),
    [(6, 100), (1, 100), *(pytest.param(d, 1000, marks=pytest.mark.statistics) for d in (6, 1))],
)  # 1: eleven values, each with many ties
def test_parents_a_hair_under_the_target_are_seldom_certified(digits: int, runs: int) -> None:
    rng = np.random.default_rng(34)
    certified, ends = 0, set()
    for _ in range(runs):
        of = [
            draw.level_outcomes(*just_under(rng, n, digits), name)
            for n, name in ((200, "fit"), (800, "cert"))
        ]
        parent, leaf = certify_levels(*of, delta=0.5)
        certified += parent.threshold is not None
        ends.add(leaf.threshold)
    print(digits, "digits: parents certified", certified / runs)
    assert certified / runs <= allowed(0.5 * delta_share(1, 2), runs)
    assert len(ends) > 3  # the leaf chose among many


def test_parents_on_a_plateau_at_the_target_are_seldom_certified_where_no_leaf_is() -> None:
    rng = np.random.default_rng(35)
    certified = 0
    for _ in range(200):
        pair = []
        for name, count in (("fit", 300), ("cert", 900)):
            parent = rng.random(count) < 0.89999
            confidence = np.stack([rng.random(count), np.full(count, 0.1)], axis=1)
            correct = np.stack([parent, np.zeros(count, dtype=bool)], axis=1)
            pair.append(draw.level_outcomes(confidence, correct, np.full(count, 2), name))
        parent_found, leaf = certify_levels(*pair, delta=0.5)
        assert leaf.threshold is None
        certified += parent_found.threshold is not None
    assert certified / 200 <= allowed(0.5 * delta_share(1, 2), 200)


def test_level_is_certified_where_no_leaf_is() -> None:
    confidence = np.tile([0.8, 0.3], (400, 1))
    correct = np.tile([True, False], (400, 1))
    fit, cert = (draw.level_outcomes(confidence, correct, np.full(400, 2), name) for name in ("fit", "cert"))
    parent, leaf = certify_levels(fit, cert)
    assert leaf.threshold is None and leaf.accepted == 0
    assert (parent.threshold, parent.accepted, parent.errors, parent.acceptance_rate) == (0.8, 400, 0, 1.0)
    assert parent.delta == pytest.approx(0.1 * delta_share(1, 2))
    assert parent.precision_lower == pytest.approx(parent.delta ** (1 / 400))
    assert (parent.level or 1) <= parent.delta


def test_figures_are_those_of_the_products_that_stop() -> None:
    rng = np.random.default_rng(36)
    fit, cert = drawn(world("parent"), rng, 1500, "fit"), drawn(world("parent"), rng, 4500, "cert")
    found = certify_levels(fit, cert)
    stop = stop_level(cert.confidence, cert.depth, thresholds_of(found))
    assert found[1].threshold is not None
    for level, one in enumerate(found, start=1):
        here = stop == level
        assert one.products == 4500
        if one.threshold is not None:
            wrong = np.count_nonzero(~cert.correct[here, level - 1])
            assert (one.accepted, one.errors) == (np.count_nonzero(here), wrong)
            assert one.acceptance_rate == one.accepted / 4500


def test_one_level_is_certified_as_ever() -> None:
    rng = np.random.default_rng(37)
    fit, cert = (
        draw.level_outcomes(s[:, None], z[:, None], np.ones(len(s), dtype=int), name)
        for name, (s, z) in (("fit", draw.g1(rng, 500)), ("cert", draw.g1(rng, 1500)))
    )
    assert certify_levels(fit, cert) == (certify(fit.leaf(), cert.leaf()),)


def shuffled(products: LevelOutcomes, rng: np.random.Generator) -> LevelOutcomes:
    order = rng.permutation(len(products.depth))
    columns = [getattr(products, column.name) for column in fields(products)]
    return LevelOutcomes(*(None if column is None else column[order] for column in columns))


def test_products_of_withheld_categories_are_no_part_of_what_the_leaf_certifies() -> None:
    """Certified as if they were not there; but they are counted, and may stop at the parent."""
    rng = np.random.default_rng(11)
    fit, cert = two_levels(rng, 600, "fit"), two_levels(rng, 2400, "cert")
    held = [rng.random(len(side.depth)) < 0.3 for side in (fit, cert)]
    with_held = [replace(side, withheld=rows) for side, rows in zip((fit, cert), held, strict=True)]
    parent, leaf = certify_levels(*with_held)
    alone = certify(*(
        Outcomes(
            side.product_id[~rows], side.group[~rows], side.confidence[~rows, -1], side.correct[~rows, -1]
        )
        for side, rows in zip((fit, cert), held, strict=True)
    ), delta=0.1 * 0.8)  # fmt: skip
    assert leaf.threshold is not None
    assert (leaf.threshold, leaf.accepted, leaf.errors) == (alone.threshold, alone.accepted, alone.errors)
    assert leaf.products == len(cert.depth) and leaf.acceptance_rate == leaf.accepted / len(cert.depth)
    assert parent.threshold is not None
    stopped = (cert.confidence[:, 0] >= parent.threshold) & (
        held[1] | (cert.confidence[:, 1] < leaf.threshold)
    )
    assert parent.accepted == np.count_nonzero(stopped) and (stopped & held[1]).any()


@pytest.mark.parametrize("runs", [25, pytest.param(300, marks=pytest.mark.statistics)])
@pytest.mark.parametrize("count", [300, 1500])
def test_promises_hold_where_categories_that_are_often_wrong_are_withheld(count: int, runs: int) -> None:
    """A fifth of the wrong products is withheld, and a twentieth of the correct ones."""
    confidence, correct, depth = world("even")
    held = np.random.default_rng(40).random(len(depth)) < np.where(correct[:, -1], 0.05, 0.2)
    rng, broken = np.random.default_rng(41), []
    decided = np.column_stack([confidence[:, :-1], np.where(held, 0.0, confidence[:, -1])])
    for _ in range(runs):
        sides = []
        for name, size in (("fit", count // 4), ("cert", count - count // 4)):
            rows = rng.integers(0, len(depth), size)
            side = draw.level_outcomes(confidence[rows], correct[rows], depth[rows], name)
            sides.append(replace(side, withheld=held[rows]))
        found = certify_levels(*sides)
        assert found[-1].threshold is None or found[-1].threshold > 0
        broken.append(judged(found, (decided, correct, depth))[0])
    print(count, "products: broken", np.mean(broken, axis=0).round(3))
    for level in range(1, len(broken[0]) + 1):
        share = delta_share(level, len(broken[0]))
        assert np.mean(broken, axis=0)[level - 1] <= allowed(0.1 * share, runs)


def two_levels(rng: np.random.Generator, products: int, name: str) -> LevelOutcomes:
    """Products whose confidences are true; the parent is correct more often than the category."""
    leaf = rng.beta(4, 1, products)
    parent = leaf + (1 - leaf) * rng.beta(4, 1, products)
    drawn = rng.random(products)
    return LevelOutcomes(
        np.array([f"{name}{number}" for number in range(products)], dtype=object),
        np.array([f"{name}{number}" for number in range(products)], dtype=object),
        np.stack([parent, leaf], axis=1).round(3), np.stack([drawn < parent, drawn < leaf], axis=1),
        np.full(products, 2),
    )  # fmt: skip


@pytest.mark.parametrize("digits", [6, 1])
def test_row_order_changes_nothing(digits: int) -> None:
    rng = np.random.default_rng(38)
    pair = [drawn(world("deep"), rng, count, name) for count, name in ((400, "fit"), (1200, "cert"))]
    pair = [replace(one, confidence=one.confidence.round(digits), group=one.group[::-1]) for one in pair]
    once = certify_levels(*pair)
    for _ in range(3):
        assert certify_levels(*(shuffled(one, rng) for one in pair)) == once


def test_one_product_of_a_group_certifies() -> None:
    confidence = np.tile([0.8, 0.3], (400, 1))
    correct = np.tile([True, False], (400, 1))
    fit, cert = (draw.level_outcomes(confidence, correct, np.full(400, 2), name) for name in ("fit", "cert"))
    few = replace(cert, group=np.array([f"g{i % 20}" for i in range(400)], dtype=object))
    parent, leaf = certify_levels(fit, few)
    assert parent.threshold is None and parent.products == leaf.products == 20
    assert (parent.more_products_needed or 0) > 5


def test_more_products_needed_counts_all_products_of_cert() -> None:
    """One product in ten is open at the parent and without error: ten times as many are needed in all."""

    def pair(deep: int) -> tuple[Certificate, ...]:
        depth = np.where(np.arange(300) % deep == 0, 2, 1)
        correct = np.stack([np.ones(300, dtype=bool), np.zeros(300, dtype=bool)], axis=1)
        confidence = np.tile([0.8, 0.3], (300, 1))
        return certify_levels(
            *(draw.level_outcomes(confidence, correct, depth, name) for name in ("fit", "cert"))
        )

    some, fewer = pair(10)[0], pair(20)[0]
    assert some.threshold is None and fewer.threshold is None
    total = [300 + (one.more_products_needed or 0) for one in (some, fewer)]
    assert total[1] == pytest.approx(2 * total[0], rel=0.1)


def test_level_without_open_products_says_so() -> None:
    confidence, correct = np.full((100, 2), 0.9), np.ones((100, 2), dtype=bool)
    shallow = [
        draw.level_outcomes(confidence, correct, np.ones(100, dtype=int), name) for name in ("fit", "cert")
    ]
    parent, leaf = certify_levels(*shallow)
    assert leaf.threshold == 0.9
    assert (parent.threshold, parent.products, parent.more_products_needed) == (None, 100, None)
    assert "no product of FIT is left" in (parent.reason or "")
    nothing = [
        draw.level_outcomes(confidence[:0], correct[:0], np.ones(0, dtype=int), n) for n in ("fit", "cert")
    ]
    assert [one.threshold for one in certify_levels(*nothing)] == [None, None]
    assert certify_levels(nothing[0], shallow[1])[1].threshold is None
    assert certify_levels(shallow[0], nothing[1])[1].threshold is None


def test_weights_sum_to_one_and_know_nothing_of_the_products_below() -> None:
    """The two premises of the promise, see the head of the module."""
    rng = np.random.default_rng(39)
    settings = {"target": 0.9, "delta": 0.08, "grid": 1000}
    ended = 0
    for digits in (6, 2, 1):
        for _ in range(30):
            count = int(rng.integers(5, 400))
            fit, cert = drawn(world("deep"), rng, count, "fit"), drawn(world("deep"), rng, 3 * count, "cert")
            of = [(one.confidence[:, -1].round(digits), one.correct[:, -1]) for one in (fit, cert)]
            (a, b), (c, d) = of
            once = weights_along(a, b, c, d, 3.0, **settings)
            assert once.none + once.weight.sum() <= 1 + 1e-9
            assert (once.weight >= 0).all() and once.none > 0
            t = rng.choice(once.thresholds)
            below = c < t
            other_c, other_d = c.copy(), d.copy()
            other_c[below] = rng.random(np.count_nonzero(below)) * np.nextafter(t, 0)
            other_d[below] = rng.random(np.count_nonzero(below)) < rng.random()
            again = weights_along(a, b, other_c, other_d, 3.0, **settings)
            known = once.thresholds >= t
            np.testing.assert_array_equal(again.weight[known], once.weight[known])
            assert again.none == once.none
            ended += not np.array_equal(again.weight, once.weight)
    assert ended > 20


def test_stop_level_is_the_finest_open_level_that_is_reached() -> None:
    confidence = np.array(
        [[0.9, 0.8, 0.7], [0.9, 0.8, 0.6], [0.9, 0.7, 0.6], [0.9, 0.8, 0.6], [0.5, 0.4, 0.3]]
    )
    depth = np.array([3, 3, 3, 2, 3])
    thresholds = np.array([0.9, 0.8, 0.7])
    np.testing.assert_array_equal(stop_level(confidence, depth, thresholds), [3, 2, 1, 1, 0])
    without = np.array([0.9, None, np.nan], dtype=object)
    np.testing.assert_array_equal(stop_level(confidence, depth, without), [1, 1, 1, 1, 0])
    shallow = stop_level(np.array([[0.9, 0.9]]), np.array([1]), np.array([0.5, 0.95]))
    assert shallow.tolist() == [0]  # its parent would be its category


def test_shares_of_delta_sum_to_one() -> None:
    for levels in range(1, 7):
        shares = [delta_share(level, levels) for level in range(1, levels + 1)]
        assert sum(shares) == pytest.approx(1)
        assert all(one <= other for one, other in pairwise(shares))


def test_mistaken_input_is_refused() -> None:
    rng = np.random.default_rng(40)
    fit, cert = drawn(world("deep"), rng, 30, "fit"), drawn(world("deep"), rng, 30, "cert")
    with pytest.raises(ValueError, match="30 products are in FIT and CERT"):
        certify_levels(fit, fit)
    with pytest.raises(ValueError, match="30 groups are in FIT and CERT"):
        certify_levels(fit, replace(cert, group=fit.group))
    with pytest.raises(ValueError, match=r"target 1\.5"):
        certify_levels(fit, cert, target=1.5)
    with pytest.raises(ValueError, match="2 levels in FIT, 3 in CERT"):
        certify_levels(
            replace(
                fit, confidence=fit.confidence[:, 1:], correct=fit.correct[:, 1:], depth=fit.depth.clip(max=2)
            ),
            cert,
        )
    with pytest.raises(ValueError, match="not a number from 0 to 1"):
        replace(fit, confidence=fit.confidence + 1)
    with pytest.raises(ValueError, match="depth is not in 1 to 3"):
        replace(fit, depth=fit.depth + 3)
    with pytest.raises(ValueError, match=r"expected \(products, levels\)"):
        replace(fit, confidence=fit.confidence[:, 0])
    with pytest.raises(ValueError, match="expected those of 30 products and 3 levels"):
        replace(fit, depth=fit.depth[1:])
    with pytest.raises(ValueError, match="occurs twice"):
        replace(fit, product_id=np.full(30, "a", dtype=object))
