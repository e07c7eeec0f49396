"""Predictions are those of every product computed on its own, whatever the size of the pieces."""

import itertools
from collections import Counter

import numpy as np
import pytest

import models.decisions.predictions
from models.decisions.confidence import product_probabilities, product_ranges
from models.decisions.predictions import Predictions, predict, product_bounds
from models.taxonomy import Taxonomy, build_taxonomy


class Echo:
    """A head whose logits are its bottlenecks."""

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        return [bottlenecks]


def draw_tree(categories: int, levels: int = 3) -> Taxonomy:
    """Categories c00, c01, …, about three to a parent and three parents to a grandparent."""
    paths = [(f"c{n:02}", (f"g{n // 9}", f"p{n // 3}", f"c{n:02}")[-levels:]) for n in range(categories)]
    return build_taxonomy(Counter(paths), {category for category, _ in paths})[0]


def draw(seed: int, products: int, categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (images, C) and the bounds of products with one to four images."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, products)
    return rng.normal(0, 3, (images.sum(), categories)).astype(np.float32), np.concatenate(
        [[0], np.cumsum(images)]
    )


def by_hand(logits: np.ndarray, bounds: np.ndarray, tree: Taxonomy, temperature: float) -> Predictions:
    """Every product on its own, with loops."""
    rows = []
    for start, stop in itertools.pairwise(bounds):
        exponents = np.exp(logits[start:stop].astype(np.float64) / temperature)
        probability = (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=0)
        top = np.argsort(-probability)[:5].tolist()
        levels, own, rival = [], [], []
        for level in range(tree.levels):
            mass = [
                sum(p for p, node in zip(probability, tree.nodes[level], strict=True) if node == wanted)
                for wanted in range(tree.nodes[level].max() + 1)
            ]
            levels.append(filled(np.argsort(-np.array(mass))[:5].tolist(), -1))
            node = tree.nodes[level][top[0]]
            own.append(mass[node])
            rival.append(max([*mass[:node], *mass[node + 1 :]], default=0))
        rows.append(
            (
                filled(top, -1),
                [probability[category] for category in top],
                levels,
                np.zeros((0, 5)),
                -sum(p * np.log(p) for p in probability if p > 0),
                own,
                rival,
                pnorm_by_hand(probability),
                stop - start,
                True,
            )
        )
    columns = list(zip(*rows, strict=True))
    probabilities = [filled(row, np.nan) for row in columns[1]]
    return Predictions(*(np.array(column) for column in (columns[0], probabilities, *columns[2:])))


def pnorm_by_hand(probability: np.ndarray) -> float:
    """The largest centred logit divided by the 3-norm of the centred logits."""
    logits = np.log(probability)
    centred = logits - np.mean(logits)
    return float(max(centred) / np.linalg.norm(centred, ord=3)) if len(logits) > 1 else 1.0


def filled(values: list, nothing: float) -> list:
    """Five of them."""
    return [*values, *[nothing] * (5 - len(values))]


def assert_equal(found: Predictions, expected: Predictions) -> None:
    np.testing.assert_array_equal(found.top, expected.top)
    np.testing.assert_array_equal(found.level_top, expected.level_top)
    np.testing.assert_array_equal(found.images, expected.images)
    there = found.top >= 0
    np.testing.assert_allclose(found.top_probability[there], expected.top_probability[there], rtol=1e-6)
    np.testing.assert_allclose(found.entropy, expected.entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.level_mass, expected.level_mass, rtol=1e-6)
    np.testing.assert_allclose(found.level_rival, expected.level_rival, rtol=1e-6)
    np.testing.assert_allclose(found.max_logit_pnorm, expected.max_logit_pnorm, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize(
    ("categories", "levels"), [(30, 3), (30, 2), (30, 1), (7, 3), (5, 2), (3, 2), (2, 1), (1, 1)]
)
def test_predictions_agree_with_every_product_computed_on_its_own(
    categories: int, levels: int, temperature: float
) -> None:
    tree = draw_tree(categories, levels)
    assert tree.levels == levels
    logits, bounds = draw(categories, 25, categories)
    assert_equal(
        predict(Echo(), logits, bounds, tree, temperature), by_hand(logits, bounds, tree, temperature)
    )


def test_types_are_the_documented_ones() -> None:
    tree = draw_tree(30)
    logits, bounds = draw(1, 25, 30)
    found = predict(Echo(), logits, bounds, tree, 1.0)
    types = {name: (column.shape, column.dtype) for name, column in vars(found).items()}
    assert types == {
        "top": ((25, 5), np.int32),
        "top_probability": ((25, 5), np.float32),
        "level_top": ((25, 3, 5), np.int32),
        "own_top": ((25, 0, 5), np.int32),
        "entropy": ((25,), np.float32),
        "level_mass": ((25, 3), np.float32),
        "level_rival": ((25, 3), np.float32),
        "max_logit_pnorm": ((25,), np.float32),
        "images": ((25,), np.int64),
        "again": ((25,), bool),
    }


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 10**9])
def test_predictions_do_not_depend_on_the_size_of_a_piece(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    tree = draw_tree(30)
    logits, bounds = draw(2, 40, 30)
    whole = predict(Echo(), logits, bounds, tree, 1.3)
    monkeypatch.setattr(models.decisions.predictions, "PIECE", piece)
    cut = predict(Echo(), logits, bounds, tree, 1.3)
    for name, column in vars(whole).items():
        np.testing.assert_array_equal(getattr(cut, name), column, err_msg=name)


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 100])
def test_ranges_have_every_product_once_and_at_most_so_many_images(piece: int) -> None:
    bounds = np.array([0, 1, 3, 4, 8, 9, 9 + 6, 16])
    cut = list(product_ranges(bounds, piece))
    assert [product for start, stop in cut for product in range(start, stop)] == list(range(7))
    for start, stop in cut:
        assert stop - start == 1 or bounds[stop] - bounds[start] <= piece
        assert stop == 7 or bounds[stop + 1] - bounds[start] > piece


def test_head_never_gets_more_images_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes_of_calls = []

    class Counting(Echo):
        def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
            sizes_of_calls.append(len(bottlenecks))
            return [bottlenecks]

    monkeypatch.setattr(models.decisions.predictions, "PIECE", 10)
    logits, bounds = draw(3, 40, 9)
    predict(Counting(), logits, bounds, draw_tree(9), 1.0)
    assert max(sizes_of_calls) <= 10
    assert sum(sizes_of_calls) == len(logits)


def test_of_equal_probabilities_the_lowest_category_comes_first() -> None:
    logits = np.zeros((2, 30), np.float32)
    logits[1, [4, 17]] = 1000.0  # all others underflow to zero
    found = predict(Echo(), logits, np.array([0, 1, 2]), draw_tree(30), 1.0)
    assert found.top.tolist() == [[0, 1, 2, 3, 4], [4, 17, 0, 1, 2]]
    assert found.top_probability[1].tolist() == [0.5, 0.5, 0, 0, 0]
    assert found.level_top[0, 0].tolist() == [0, 1, 2, 3, -1]


def test_no_products_give_no_predictions() -> None:
    found = predict(Echo(), np.zeros((0, 9), np.float32), product_bounds(np.array([])), draw_tree(9), 1.0)
    assert found.top.shape == (0, 5)
    assert found.level_top.shape == (0, 3, 5)
    assert len(found.evidence(draw_tree(9), np.zeros(9, int)).p1) == 0
    tree = draw_tree(9)
    of_levels = predict(OfLevels(tree), np.zeros((0, 1 + 3 + 9), np.float32), np.zeros(1, int), tree, 1.0)
    assert (of_levels.own_top.shape, of_levels.level_top.shape) == ((0, 3, 5), (0, 3, 5))


def test_evidence_takes_the_first_two_probabilities_and_the_size_of_the_first_category() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], np.float32))
    found = predict(Echo(), logits, np.array([0, 1, 3]), draw_tree(3, 2), 1.0)
    evidence = found.evidence(draw_tree(3, 2), np.array([20, 30, 40]))
    np.testing.assert_allclose(evidence.p1, [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(evidence.p2, [0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(evidence.entropy, -np.sum([p * np.log(p) for p in (0.5, 0.3, 0.2)]), rtol=1e-6)
    np.testing.assert_allclose(evidence.parent_mass, 1, rtol=1e-6)
    assert evidence.category.tolist() == [0, 2]
    assert evidence.category_size.tolist() == [20, 40]
    assert evidence.images.tolist() == [1, 2]


class OfLevels:
    """A head of three levels whose bottlenecks are the logits of all of them, side by side."""

    def __init__(self, tree: Taxonomy) -> None:
        self.edges = np.cumsum([len(level) for level in tree.parents])[:-1]

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        return np.split(bottlenecks, self.edges, axis=1)


@pytest.mark.parametrize("aggregation", ["mean", "geometric", "max"])
def test_head_of_levels_predicts_every_level_and_the_finest_decides(aggregation: str) -> None:
    tree = draw_tree(30)
    sizes = [len(level) for level in tree.parents]
    assert sizes == [4, 10, 30]
    logits, bounds = draw(5, 40, sum(sizes))
    found = predict(OfLevels(tree), logits, bounds, tree, 1.4, aggregation)
    flat = predict(Echo(), logits[:, 14:], bounds, tree, 1.4, aggregation)
    for name, column in vars(flat).items():
        if name != "own_top":
            np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)
    for level, columns in enumerate((slice(0, 4), slice(4, 14), slice(14, 44))):
        of_level = product_probabilities(logits[:, columns], np.diff(bounds), 1.4, aggregation)
        expected = [filled(np.argsort(-row, kind="stable")[:5].tolist(), -1) for row in of_level]
        assert found.own_top[:, level].tolist() == expected
    assert (found.own_top[:, 0, 4] == -1).all()  # four nodes only


def test_aggregation_decides_between_one_confident_image_and_several_uncertain_ones() -> None:
    """Of three images one is confident of the first category, two slightly prefer the second."""
    logits = np.log(np.array([[0.98, 0.01, 0.01], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3]], np.float32))
    tops = {
        name: predict(Echo(), logits, np.array([0, 3]), draw_tree(3, 2), 1.0, name).top[0, 0]
        for name in ("mean", "geometric", "max")
    }
    assert tops == {"mean": 0, "geometric": 0, "max": 0}
    sure_of_none = np.log(np.array([[0.001, 0.9, 0.099], [0.89, 0.011, 0.099], [0.5, 0.2, 0.3]], np.float32))
    tops = {
        name: predict(Echo(), sure_of_none, np.array([0, 3]), draw_tree(3, 2), 1.0, name).top[0, 0]
        for name in ("mean", "geometric", "max")
    }
    # the third is nobody's first choice, and nobody rules it out; the second has the surest image
    assert tops == {"mean": 0, "geometric": 2, "max": 1}


def test_the_second_probability_of_a_tree_of_one_category_is_0() -> None:
    found = predict(Echo(), np.zeros((1, 1), np.float32), np.array([0, 1]), draw_tree(1, 1), 1.0)
    evidence = found.evidence(draw_tree(1, 1), np.array([20]))
    assert (evidence.p1[0], evidence.p2[0], evidence.parent_mass[0]) == (1.0, 0.0, 1.0)


def test_bounds_are_the_first_images_of_the_products() -> None:
    assert product_bounds(np.array(["a", "b", "b", "b", "a"], dtype=object)).tolist() == [0, 1, 4, 5]
    assert product_bounds(np.array(["a"])).tolist() == [0, 1]
    assert product_bounds(np.array([])).tolist() == [0]
