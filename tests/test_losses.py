"""Losses against NumPy over small trees."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax
from trees import tree_of, uneven_tree

from models.heads.losses import soft_tree, summed_levels, weighted_levels
from models.taxonomy import Taxonomy

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


def targets_by_hand(tree: Taxonomy, beta: float) -> np.ndarray:
    """(C, C): row t is the target of category t, from the height of the lowest common ancestor."""
    count, levels = len(tree.categories), tree.levels
    weight = np.empty((count, count))
    for a in range(count):
        for b in range(count):
            shared = 0
            while shared < levels and tuple(tree.names[a][: shared + 1]) == tuple(
                tree.names[b][: shared + 1]
            ):
                shared += 1
            weight[a, b] = np.exp(-beta * (levels - shared) / levels)
    return weight / weight.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("beta", [0.0, 1.0, 10.0, 30.0])
@pytest.mark.parametrize("tree", [uneven_tree(), tree_of({"a": "a", "b": "b"})], ids=["uneven", "one level"])
def test_soft_targets_are_those_of_a_brute_force(tree: Taxonomy, beta: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(tree.categories), 20)
    logits = rng.normal(0, 3, (20, len(tree.categories))).astype(np.float32)
    found = np.asarray(soft_tree(tree, beta)([logits], labels))
    expected = -(targets_by_hand(tree, beta)[labels] * log_softmax(logits.astype(np.float64), axis=1)).sum(
        axis=1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_steep_soft_targets_are_plain_cross_entropy_and_flat_ones_ignore_the_label() -> None:
    tree = uneven_tree()
    logits = np.random.default_rng(1).normal(0, 2, (8, 8)).astype(np.float32)
    labels = np.arange(8)
    plain = -log_softmax(logits, axis=1)
    np.testing.assert_allclose(
        np.asarray(soft_tree(tree, 200.0)([logits], labels)), plain[labels, labels], rtol=1e-5
    )
    np.testing.assert_allclose(
        np.asarray(soft_tree(tree, 0.0)([logits], labels)), plain.mean(axis=1), rtol=1e-5
    )


def test_losses_of_levels_are_added_with_their_weights() -> None:
    rng = np.random.default_rng(2)
    outputs = [rng.normal(0, 2, (6, nodes)).astype(np.float32) for nodes in (2, 4, 5)]
    labels = np.stack([rng.integers(0, nodes, 6) for nodes in (2, 4, 5)], axis=1).astype(np.int32)
    expected = sum(
        weight * -log_softmax(logits, axis=1)[np.arange(6), labels[:, level]]
        for level, (weight, logits) in enumerate(zip((0.5, 0.0, 2.0), outputs, strict=True))
    )
    np.testing.assert_allclose(
        np.asarray(weighted_levels((0.5, 0.0, 2.0))(outputs, labels)), expected, rtol=1e-5
    )


def test_summed_levels_are_the_loss_of_the_category_and_on_average_of_its_ancestors() -> None:
    tree = uneven_tree()
    count = len(tree.categories)
    logits = np.random.default_rng(3).normal(0, 2, (count, count)).astype(np.float32)
    labels = np.arange(count, dtype=np.int32)
    p = softmax(logits.astype(np.float64), axis=1)
    of_levels = []
    for node in tree.nodes:  # by hand: over the categories under the same node
        under = [[p[row, node == node[row]].sum()] for row in labels]
        of_levels.append(-np.log(np.ravel(under)))
    expected = of_levels[-1] + np.mean(of_levels[:-1], axis=0)
    np.testing.assert_allclose(np.asarray(summed_levels(tree)([logits], labels)), expected, atol=1e-5)


def test_summed_levels_are_exact_and_have_gradients_where_a_branch_has_no_probability_left() -> None:
    tree = uneven_tree()
    logits = np.full((1, len(tree.categories)), -500, np.float32)
    logits[0, 0] = 500
    last = np.array([len(tree.categories) - 1], np.int32)
    variable = keras.Variable(logits)
    with tf.GradientTape() as tape:
        loss = summed_levels(tree)([variable.value], last)
    together = np.array([np.sum(node == node[-1]) for node in tree.nodes[:-1]])  # with so many, all alike
    np.testing.assert_allclose(np.asarray(loss), 1000 + np.mean(1000 - np.log(together)), rtol=1e-6)
    gradient = np.asarray(tape.gradient(loss, variable.value))[0]
    np.testing.assert_allclose(gradient[[0, -1]], [2, -1 - np.mean(1 / together)], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_spreads_a_part_of_the_target_at_every_level(smoothing: float) -> None:
    rng = np.random.default_rng(2)
    outputs = [rng.normal(0, 2, (6, nodes)).astype(np.float32) for nodes in (2, 4, 5)]
    labels = np.stack([rng.integers(0, nodes, 6) for nodes in (2, 4, 5)], axis=1).astype(np.int32)
    expected: np.ndarray = np.zeros(6)
    for level, (weight, logits) in enumerate(zip((0.5, 0.0, 2.0), outputs, strict=True)):
        nodes = logits.shape[1]
        target = (1 - smoothing) * np.eye(nodes)[labels[:, level]] + smoothing / nodes
        expected -= weight * (target * log_softmax(logits, axis=1)).sum(axis=1)
    found = weighted_levels((0.5, 0.0, 2.0))(outputs, labels, smoothing)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)


def test_smoothing_is_added_to_targets_that_are_soft_along_the_tree() -> None:
    tree = uneven_tree()
    count = len(tree.categories)
    logits = np.random.default_rng(2).normal(0, 2, (4, count)).astype(np.float32)
    labels, loss = np.array([0, 1, 2, 3], np.int32), soft_tree(tree, 3.0)
    uniform = -log_softmax(logits, axis=1).mean(axis=1)
    expected = 0.8 * np.asarray(loss([logits], labels, 0.0)) + 0.2 * uniform
    np.testing.assert_allclose(np.asarray(loss([logits], labels, 0.2)), expected, rtol=1e-5)


def test_weights_for_another_number_of_levels_are_refused() -> None:
    with pytest.raises(ValueError):
        weighted_levels((1.0, 1.0))([np.zeros((1, 2), np.float32)], np.zeros((1, 1), np.int32))
