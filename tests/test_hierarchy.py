"""Hierarchical softmax against a product taken by hand, measures along the tree against worked examples."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from trees import tree_of, uneven_tree

from models.heads.hierarchy import (
    consistency,
    hierarchical_scores,
    leaf_log_probabilities,
)
from models.taxonomy import Taxonomy

TREES = [uneven_tree(), tree_of({"a": "a", "b": "b", "c": "c"}), tree_of({"only": "x/y/only"})]


def index(tree: Taxonomy, *categories: str) -> np.ndarray:
    return tree.index(np.array(categories, dtype=object))


def paths(tree: Taxonomy) -> list[set[tuple[str, ...]]]:
    """Each category with its ancestors, by their names: a set, where a shallow leaf counts once."""
    sets = []
    for names in tree.names:
        kept = list(names)
        while len(kept) > 1 and kept[-1] == kept[-2]:
            kept.pop()
        sets.append({tuple(kept[: level + 1]) for level in range(len(kept))})
    return sets


def product_by_hand(scores: list[np.ndarray], tree: Taxonomy) -> np.ndarray:
    """(n, C): for each leaf, the softmaxes over siblings on its path multiplied, with loops."""
    out = np.ones((len(scores[0]), len(tree.categories)))
    for row, leaf in itertools.product(range(len(out)), range(len(tree.categories))):
        for level in range(tree.levels):
            siblings = sorted(
                {
                    int(tree.nodes[level, other])
                    for other in range(len(tree.categories))
                    if level == 0 or tree.nodes[level - 1, other] == tree.nodes[level - 1, leaf]
                }
            )
            share = softmax(scores[level][row, siblings].astype(np.float64))
            out[row, leaf] *= share[siblings.index(int(tree.nodes[level, leaf]))]
    return out


@pytest.mark.parametrize("tree", TREES, ids=["uneven", "one level", "one leaf"])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_hierarchical_softmax_is_the_product_over_the_path_and_sums_to_one(
    quiet_tensorflow: None, tree: Taxonomy, spread: float
) -> None:
    rng = np.random.default_rng(0)
    scores = [rng.normal(0, spread, (5, len(level))).astype(np.float32) for level in tree.parents]
    found = np.exp(np.asarray(leaf_log_probabilities(scores, tree.parents)).astype(np.float64))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, product_by_hand(scores, tree), rtol=2e-4, atol=1e-12)


def test_hierarchical_softmax_is_finite_for_families_whose_scores_are_all_low(quiet_tensorflow: None) -> None:
    """Against the largest of all nodes, not the family's, exp(-2000) would be 0 and its logarithm -inf."""
    tree = uneven_tree()
    scores = [np.zeros((1, len(level)), np.float32) for level in tree.parents]
    scores[1][0, tree.nodes[1, index(tree, "soap", "oats")]] = -2000
    found = np.asarray(leaf_log_probabilities(scores, tree.parents))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found[0, index(tree, "oats", "soap")]), [1 / 6, 1 / 12], rtol=1e-5)


def test_hierarchical_scores_of_a_worked_example() -> None:
    """Of three nodes each, pear for apple shares two, milk for apple one, soap for apple none.

    leek has two nodes: for apple it shares food alone; gift for gift shares its one.
    """
    tree = uneven_tree()
    truth = index(tree, "apple", "apple", "apple", "apple", "gift")
    predicted = index(tree, "pear", "milk", "soap", "leek", "gift")
    scores = hierarchical_scores(truth, predicted, tree)
    assert scores.precision == pytest.approx((2 + 1 + 0 + 1 + 1) / (3 + 3 + 3 + 2 + 1))
    assert scores.recall == pytest.approx(5 / (4 * 3 + 1))
    assert scores.f1 == pytest.approx(2 * 5 / (12 + 13))


@pytest.mark.parametrize("tree", TREES, ids=["uneven", "one level", "one leaf"])
def test_hierarchical_scores_agree_with_sets_of_ancestors(tree: Taxonomy) -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, len(tree.categories), (2, 50))
    sets = paths(tree)
    shared = sum(len(sets[t] & sets[p]) for t, p in zip(truth, predicted, strict=True))
    scores = hierarchical_scores(truth, predicted, tree)
    assert scores.precision == pytest.approx(shared / sum(len(sets[p]) for p in predicted))
    assert scores.recall == pytest.approx(shared / sum(len(sets[t]) for t in truth))


def test_category_that_is_not_in_the_tree_is_found_nowhere() -> None:
    tree = uneven_tree()
    truth, predicted = (
        np.array([-1, 2]),
        index(tree, "sponge", "leek"),
    )  # sponge is the last one, as -1 would be
    scores = hierarchical_scores(truth, predicted, tree)
    assert (scores.precision, scores.recall) == (2 / 5, 2 / 5)
    assert hierarchical_scores(np.array([-1]), predicted[:1], tree).f1 == 0


def test_scores_of_nothing_and_of_other_lengths_are_refused() -> None:
    for truth, predicted in ((np.zeros(0, int), np.zeros(0, int)), (np.zeros(2, int), np.zeros(1, int))):
        with pytest.raises(ValueError, match="one each"):
            hierarchical_scores(truth, predicted, uneven_tree())


def test_consistency_is_the_share_under_the_levels_node() -> None:
    tree = uneven_tree()
    predicted = index(tree, "apple", "soap", "gift", "leek")
    level_first = tree.nodes.T[index(tree, "apple", "apple", "gift", "milk")]
    assert consistency(level_first, predicted, tree) == [3 / 4, 2 / 4, 2 / 4]
