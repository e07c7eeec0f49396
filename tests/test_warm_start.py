"""Warm start: where the weights of last week's head are in this week's."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from models.heads.architectures import STANDARD, Head, HeadShape, build_head
from models.heads.training import Examples, Recipe, fit_head
from models.heads.warm_start import CarriedOver, misfit, origins_of, warm_start
from models.taxonomy import Taxonomy
from models.taxonomy_changes import Step, TreeChanges, places_of, tree_changes

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


def tree(**parents: str) -> Taxonomy:
    """Two levels: category = its parent."""
    categories = np.array(sorted(parents), dtype=object)
    return Taxonomy(categories, np.array([[parents[name], name] for name in categories], dtype=object))


OLD = tree(apple="food", leek="food", soap="home", vase="home")
NEW = tree(apple="food", kiwi="food", leek="garden", vase="home")  # soap gone, kiwi new, leek moved
MOVED = {"apple": "apple", "leek": "leek", "vase": "vase"}  # kept, by name
KEPT = [(0, 0), (2, 1), (3, 3)]  # column now, column then, of apple, leek, vase
NODES = [(0, 0), (2, 1)]  # food, home; garden (1) is new


def changes(new: Taxonomy, old: Taxonomy, **rules: str) -> TreeChanges:
    """From one tree to another, by ids, paths and rules like soap="candle vase"."""
    step = Step(rules={category: tuple(targets.split()) for category, targets in rules.items()})
    return tree_changes(places_of(old), places_of(new), step)


def same_nodes(new: Taxonomy, old: Taxonomy, level: int) -> np.ndarray:
    """Of each node of a level the one that it was; -1 of a new one."""
    found = origins_of(new, old, level, changes(new, old), np.ones(len(old.categories)))
    if not len(found.weights.indices):
        return np.full(len(found.shift), -1)
    return np.where(found.known, found.weights.toarray().argmax(axis=0), -1)


def shape(taxonomy: Taxonomy, kind: str = "flat", **changes) -> HeadShape:
    tree = kind != "flat" or changes.get("hierarchical", False)
    of_tree = {"parents": taxonomy.parents if tree else (), "selector": 3 if kind == "taxonnet" else 0}
    return HeadShape(5, len(taxonomy.categories), (4, 4), 0.0, 1.0, "f", kind=kind, **of_tree | changes)


def weights(model: keras.Model, layer: str) -> list[np.ndarray]:
    return model.get_layer(layer).get_weights()


def started(kind: str = "flat", **changes) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Last week's model, a new one, and the new one after the warm start."""
    keras.utils.set_random_seed(1)
    old = Head.of(shape(OLD, kind, **changes), build_head(shape(OLD, kind, **changes)))
    for layer in old.model.layers:  # biases and statistics are alike in every fresh head
        layer.set_weights(
            [array + np.random.default_rng(3).random(array.shape) for array in layer.get_weights()]
        )
    keras.utils.set_random_seed(2)
    fresh = build_head(shape(NEW, kind, **changes))
    warm = keras.models.clone_model(fresh)
    warm.set_weights(fresh.get_weights())
    carried = warm_start(warm, shape(NEW, kind, **changes), NEW, old, OLD)
    assert carried == CarriedOver(kept=3, added=1, removed=1)
    return old.model, fresh, warm


def assert_columns(old, fresh, warm, layer: str, pairs: list[tuple[int, int]]) -> None:
    for was, new, now in zip(weights(old, layer), weights(fresh, layer), weights(warm, layer), strict=True):
        for column in range(now.shape[-1]):
            source = dict(pairs).get(column)
            expected = new[..., column] if source is None else was[..., source]
            np.testing.assert_array_equal(now[..., column], expected)


def test_output_columns_are_matched_by_the_names_of_their_categories() -> None:
    old, fresh, warm = started()
    assert_columns(old, fresh, warm, "logits", KEPT)
    for layer in ("hidden1", "normalization", "hidden2"):
        for was, now in zip(weights(old, layer), weights(warm, layer), strict=True):
            np.testing.assert_array_equal(now, was)


def test_a_head_that_starts_from_itself_is_the_same() -> None:
    keras.utils.set_random_seed(1)
    old = Head.of(shape(OLD), build_head(shape(OLD)))
    again = build_head(shape(OLD))
    assert warm_start(again, shape(OLD), OLD, old, OLD) == CarriedOver(4, 0, 0)
    rows = np.random.default_rng(0).normal(0, 1, (9, 5)).astype(np.float32)
    np.testing.assert_array_equal(Head.of(shape(OLD), again).logits(rows), old.logits(rows))


@pytest.mark.parametrize("kind", ["separate", "multitask", "taxonnet"])
def test_nodes_of_every_level_are_matched_by_their_path_of_names(kind: str) -> None:
    old, fresh, warm = started(kind)
    assert_columns(old, fresh, warm, "logits_1", NODES)
    assert_columns(old, fresh, warm, "logits_2", KEPT)
    for layer in ("hidden1_1", "hidden2_2") if kind == "separate" else ("hidden1", "normalization"):
        for was, now in zip(weights(old, layer), weights(warm, layer), strict=True):
            np.testing.assert_array_equal(now, was)


def test_rows_of_selectors_are_matched_by_the_names_of_the_level_above() -> None:
    old, fresh, warm = started("taxonnet")
    was, new, now = (weights(model, "selector_2")[0] for model in (old, fresh, warm))
    np.testing.assert_array_equal(now[[0, 2]], was[[0, 1]])  # food, home
    np.testing.assert_array_equal(now[1], new[1])  # garden
    np.testing.assert_array_equal(now[3:], was[2:])  # trunk features
    np.testing.assert_array_equal(weights(warm, "selector_1")[0], weights(old, "selector_1")[0])


def test_scores_of_a_hierarchical_softmax_are_matched_by_name() -> None:
    old, fresh, warm = started(hierarchical=True)
    assert_columns(old, fresh, warm, "scores_1", NODES)
    assert_columns(old, fresh, warm, "scores_2", KEPT)


def test_finest_level_has_the_categories_in_a_deeper_tree_too() -> None:
    names = np.array([["all", *row] for row in NEW.names], dtype=object)
    deeper = Taxonomy(NEW.categories, names)
    assert same_nodes(deeper, OLD, 3).tolist() == [0, -1, 1, 3]
    assert same_nodes(deeper, OLD, 2).tolist() == [-1, -1, -1]  # last week's finest is no coarse level
    assert same_nodes(deeper, OLD, 1).tolist() == [-1]


def test_outputs_do_not_depend_on_new_statistics_and_scale_of_the_bottlenecks() -> None:
    old_shape = shape(OLD, standardized=True)
    now_shape = replace(old_shape, scale=2.5)
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(1)
    last_weeks, model = build_head(old_shape), build_head(now_shape)
    for head in (last_weeks, model):
        head.get_layer(STANDARD).set_weights([rng.normal(0, 1, 5), rng.uniform(0.5, 2, 5)])
    old = Head.of(old_shape, last_weeks)
    before = weights(model, STANDARD)
    warm_start(model, now_shape, OLD, old, OLD)
    np.testing.assert_array_equal(weights(model, STANDARD), before)  # this week's own
    rows = rng.normal(0, 1, (20, 5)).astype(np.float32)
    np.testing.assert_allclose(Head.of(now_shape, model).logits(rows), old.logits(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": "g"}, "the backbone's fingerprint is g, last week's f"),
        ({"hidden": (4, 8)}, "head.hidden is [4, 8], last week's [4, 4]"),
        ({"width": 6}, "the bottleneck's width is 6, last week's 5"),
        ({"kind": "multitask", "parents": NEW.parents}, "head.kind is multitask, last week's flat"),
    ],
)
def test_the_reason_why_a_head_does_not_fit_is_given(changes: dict, why: str) -> None:
    now = replace(shape(NEW), **changes)
    assert misfit(now, shape(OLD)) == why
    assert misfit(shape(NEW), shape(OLD)) is None
    with pytest.raises(ValueError, match="expected a head that fits"):
        warm_start(build_head(now), now, NEW, Head.of(shape(OLD), build_head(shape(OLD))), OLD)


def test_training_begins_with_last_weeks_head() -> None:
    """At a rate of almost 0 the head stays as it starts."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(0, 1, (40, 5)).astype(np.float16), rng.integers(0, 4, 40)
    recipe = Recipe(batch=8, learning_rate=1e-9, decay=0.0, epochs=1, patience=1, seed=5)
    keras.utils.set_random_seed(1)
    old = Head.of(shape(OLD), build_head(shape(OLD)))
    head, _ = fit_head(
        shape(NEW), Examples(rows, labels), None, recipe,
        start=lambda model: warm_start(model, shape(NEW), NEW, old, OLD),
    )  # fmt: skip
    np.testing.assert_allclose(
        weights(head.model, "logits")[0][:, [0, 2, 3]],
        weights(old.model, "logits")[0][:, [0, 1, 3]],
        atol=1e-6,
    )


def test_nodes_of_a_tree_whose_names_were_not_tidied_are_the_same_nodes():
    untidy = Taxonomy(
        np.array(["Cafe\u0301", "Shoes", "Shoes "], object),
        np.array([["Food ", "Cafe\u0301"], ["Wear", "Shoes"], ["Wear", "Shoes "]], object),
    )
    now = tree(**{"Café": "Food", "Shoes": "Wear"})
    assert same_nodes(now, untidy, 1).tolist() == [0, 1]
    assert same_nodes(now, untidy, 2).tolist() == [0, 1]


def test_a_merged_category_starts_from_the_mean_of_its_sources_by_their_products() -> None:
    now = tree(fruit="food", soap="home", vase="home")
    merged = changes(now, OLD, apple="fruit", leek="fruit")
    found = origins_of(now, OLD, 2, merged, np.array([30, 10, 5, 5]))
    np.testing.assert_allclose(found.weights.toarray(), [[0.75, 0, 0], [0.25, 0, 0], [0, 1, 0], [0, 0, 1]])
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    np.testing.assert_allclose(found.shift, [entropy, 0, 0], rtol=1e-6)


def test_parts_of_a_split_category_are_together_as_probable_as_it_was() -> None:
    keras.utils.set_random_seed(1)
    old = Head.of(shape(OLD), build_head(shape(OLD)))
    now = tree(apple="food", bar="home", flakes="home", leek="food", vase="home")
    warm = build_head(shape(now))
    carried = warm_start(warm, shape(now), now, old, OLD, changes(now, OLD, soap="bar flakes"))
    assert carried == CarriedOver(kept=5, added=0, removed=0)
    rows = np.random.default_rng(0).normal(0, 1, (9, 5)).astype(np.float32)
    then, here = (softmax(head.logits(rows)) for head in (old, Head.of(shape(now), warm)))
    np.testing.assert_allclose(here[:, [0, 3, 4]], then[:, [0, 1, 3]], rtol=1e-4)
    np.testing.assert_allclose(here[:, 1] + here[:, 2], then[:, 2], rtol=1e-4)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_a_renamed_category_and_a_renamed_node_keep_their_weights() -> None:
    now = tree(apple="groceries", leek="groceries", candle="home", vase="home")  # food renamed, soap → candle
    of_nodes, of_categories = (
        origins_of(now, OLD, level, changes(now, OLD, soap="candle"), np.ones(4)).weights.toarray()
        for level in (1, 2)
    )
    assert of_nodes.tolist() == [[1, 0], [0, 1]]  # groceries was food
    assert of_categories.argmax(axis=0).tolist() == [0, 2, 1, 3]  # apple, candle, leek, vase
