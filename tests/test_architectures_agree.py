"""Each architecture has the layers, the parameters and the flow of gradients of docs/heads.md."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from trees import uneven_tree

from features.errors import ShelfmarkError
from models.heads.architectures import (
    SET_FILES,
    STANDARD,
    Head,
    HeadShape,
    ProductRows,
    build_head,
    head_layers,
    load_head,
    set_logits,
)
from models.heads.hierarchy import leaf_log_probabilities
from models.heads.losses import soft_tree, weighted_levels
from models.heads.training import Examples, Recipe, fit_head

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
TREE = uneven_tree()
N1, N2, C = NODES = tuple(len(level) for level in TREE.parents)  # 3, 6, 8
D, H1, H2, S = 5, 7, 6, 4
PLAIN = HeadShape(D, C, (H1, H2), 0.0, 2.0, "mobilenet-32-abc")
SHAPES = {
    "flat": PLAIN,
    "hierarchical": dataclasses.replace(PLAIN, hierarchical=True, parents=TREE.parents),
    "separate": dataclasses.replace(PLAIN, kind="separate", parents=TREE.parents),
    "multitask": dataclasses.replace(PLAIN, kind="multitask", parents=TREE.parents),
    "taxonnet": dataclasses.replace(PLAIN, kind="taxonnet", parents=TREE.parents, selector=S),
    "set": dataclasses.replace(PLAIN, kind="set", images=3),
}
HIDDEN = (D + 1) * H1 + 4 * H1 + (H1 + 1) * H2
PARAMETERS = {
    "flat": HIDDEN + (H2 + 1) * C,
    "hierarchical": HIDDEN + (H2 + 1) * (N1 + N2 + C),
    "separate": 3 * HIDDEN + (H2 + 1) * (N1 + N2 + C),
    "multitask": HIDDEN + (H2 + 1) * (N1 + N2 + C),
    "taxonnet": HIDDEN
    + (H2 + 1) * S + (S + 1) * N1
    + (N1 + H2 + 1) * S + (S + 1) * N2
    + (N2 + H2 + 1) * S + (S + 1) * C,
    "set": (D + 1) * H1 + 4 * H1 + (H1 + 1) * C,
}  # fmt: skip
SHARED = ("hidden1", "normalization", "hidden2")
TOWER = (*SHARED, "logits")
# For each layer, the levels whose outputs depend on it, by the formulas.
REACHES = {
    "separate": {f"{layer}_{level}": {level} for layer in TOWER for level in (1, 2, 3)},
    "multitask": {layer: {1, 2, 3} for layer in SHARED} | {f"logits_{level}": {level} for level in (1, 2, 3)},
    "taxonnet": {layer: {1, 2, 3} for layer in SHARED}
    | {f"{layer}_{level}": set(range(level, 4)) for layer in ("selector", "logits") for level in (1, 2, 3)},
}


def drawn(kind: str, seed: int = 0) -> Head:
    """A head with random weights, all hidden neurons active."""
    model = build_head(SHAPES[kind])
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
    return Head.of(SHAPES[kind], model)


def rows(seed: int = 1, count: int = 9) -> np.ndarray:
    shape = (count, D)
    return np.random.default_rng(seed).uniform(0.1, 1, shape).astype(np.float16)


def labels_of(kind: str, categories: np.ndarray) -> np.ndarray:
    return TREE.nodes.T[categories] if kind in REACHES else categories


def step(model: keras.Model, x: np.ndarray, labels: np.ndarray, loss: Callable[[Any, Any], Any]) -> list[Any]:
    """The gradient of the mean loss by every trainable weight; None where it does not depend on it."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs = model(x.astype(np.float32), training=True)
        value = tf.reduce_mean(loss(outputs if isinstance(outputs, list) else [outputs], labels))
    return tape.gradient(value, [weight.value for weight in model.trainable_weights])


A_LITTLE = Recipe(
    batch=8, learning_rate=0.1, decay=0.0, epochs=3, patience=9, seed=1, momentum=0.9, mixup=1.0,
    weight_decay=0.1, label_smoothing=0.1,
)  # fmt: skip


# Numbers of parameters, and what is computed


@pytest.mark.parametrize("kind", SHAPES)
def test_head_has_as_many_parameters_as_by_its_formula(kind: str) -> None:
    assert build_head(SHAPES[kind]).count_params() == PARAMETERS[kind]
    standardized = dataclasses.replace(SHAPES[kind], standardized=True)
    assert build_head(standardized).count_params() == PARAMETERS[kind] + 2 * D


def test_parameters_of_the_catalogue_are_those_of_the_documentation() -> None:
    """docs/heads.md gives them for 2,048 numbers, 1,024 · 1,024 neurons and 49, 486 and 5,270 nodes."""
    page = (Path(__file__).parents[1] / "docs" / "heads.md").read_text()
    parents = ((0,) * 49, tuple(n % 49 for n in range(486)), tuple(n % 486 for n in range(5270)))
    for kind, shape in SHAPES.items():
        sizes = {"width": 2048, "categories": 5270, "hidden": (1024, 1024), "selector": 1024}
        tree = parents if shape.parents else ()
        model = build_head(dataclasses.replace(shape, **sizes, parents=tree))
        assert f"{model.count_params():,}" in page, (kind, f"{model.count_params():,}")


def by_hand(head: Head, bottlenecks: np.ndarray) -> list[np.ndarray]:
    """The formulas of docs/heads.md in float64."""

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = head.model.get_layer(name).get_weights()
        return x @ kernel.astype(np.float64) + bias

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def hidden(of: str = "") -> np.ndarray:
        gamma, beta, mean, variance = head.model.get_layer(f"normalization{of}").get_weights()
        first = gamma * (dense(x, f"hidden1{of}") - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) + beta
        return relu(dense(relu(first), f"hidden2{of}"))

    x, kind = bottlenecks.astype(np.float64) * head.shape.scale, head.shape.kind
    if kind == "separate":
        return [dense(hidden(f"_{level}"), f"logits_{level}") for level in (1, 2, 3)]
    trunk = hidden()
    if kind == "multitask":
        return [dense(trunk, f"logits_{level}") for level in (1, 2, 3)]
    first = dense(relu(dense(trunk, "selector_1")), "logits_1")
    second = dense(relu(dense(np.hstack([first, trunk]), "selector_2")), "logits_2")
    return [first, second, dense(relu(dense(np.hstack([second, trunk]), "selector_3")), "logits_3")]


@pytest.mark.parametrize("kind", REACHES)
def test_outputs_of_every_level_agree_with_numpy(kind: str) -> None:
    head = drawn(kind)
    outputs, expected = head.outputs(rows()), by_hand(head, rows())
    assert [(out.shape, out.dtype) for out in outputs] == [((9, nodes), np.float32) for nodes in NODES]
    for out, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(out, wanted, rtol=1e-4)
    np.testing.assert_array_equal(head.logits(rows()), outputs[-1])


def test_hierarchical_head_gives_log_probabilities_from_its_scores() -> None:
    head = drawn("hierarchical")
    layers = [head.model.get_layer(f"scores_{level}") for level in (1, 2, 3)]
    scores = keras.Model(head.model.input, [layer.output for layer in layers])(rows().astype(np.float32))
    found = head.logits(rows())
    np.testing.assert_allclose(found, np.asarray(leaf_log_probabilities(scores, TREE.parents)), atol=5e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)


def test_set_head_takes_the_maximum_over_any_number_of_images_of_a_product() -> None:
    head = drawn("set")
    bounds = np.array([0, 1, 3, 6, 9])
    (kernel1, bias1), (gamma, beta, mean, variance), (kernel2, bias2) = (
        head.model.get_layer(name).get_weights() for name in ("hidden1", "normalization", "logits")
    )
    each = 2.0 * rows().astype(np.float64) @ kernel1 + bias1
    each = np.maximum(gamma * (each - mean) / np.sqrt(variance + 1e-3) + beta, 0)
    expected = [each[start:stop].max(axis=0) @ kernel2 + bias2 for start, stop in itertools.pairwise(bounds)]
    np.testing.assert_allclose(set_logits(head, rows(), bounds), expected, rtol=1e-4)


def test_images_of_a_product_are_side_by_side_and_the_first_is_repeated_where_there_are_fewer() -> None:
    each = np.arange(14, dtype=np.float16).reshape(7, 2)
    products = ProductRows(each, np.array([0, 1, 3, 7]), 3)
    assert len(products) == 3
    assert products[:].tolist() == [[0, 1, 0, 1, 0, 1], [2, 3, 4, 5, 2, 3], [6, 7, 8, 9, 10, 11]]
    assert products[np.array([2, 0])].tolist() == [products[:][2].tolist(), products[:][0].tolist()]


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_numpy_computes_what_the_keras_model_computes(kind: str, standardized: bool) -> None:
    shape = dataclasses.replace(SHAPES[kind], standardized=standardized, second_dropout=0.3)
    model, rng = build_head(shape), np.random.default_rng(4)
    model.set_weights([rng.uniform(0.1, 0.6, weight.shape) for weight in model.get_weights()])
    head = Head.of(shape, model)
    x = rng.normal(0, 0.5, (100, D * shape.images)).astype(np.float32)
    found = model.predict_on_batch(x)
    wanted = found if isinstance(found, list) else [found]
    for ours, keras_output in zip(head.outputs(x), wanted, strict=True):
        np.testing.assert_allclose(ours, keras_output, rtol=1e-5, atol=1e-5)
    last = {"set": "largest", "separate": "hidden2_3"}.get(kind, "hidden2")
    hidden = keras.Model(model.input, model.get_layer(last).output).predict_on_batch(x)
    np.testing.assert_allclose(head.hidden(x), hidden, rtol=1e-5, atol=1e-5)


# Which layer feeds which


@pytest.mark.parametrize(("kind", "layer"), [(kind, layer) for kind in REACHES for layer in REACHES[kind]])
def test_changing_a_layer_changes_exactly_the_outputs_that_depend_on_it(kind: str, layer: str) -> None:
    head = drawn(kind)
    before = head.outputs(rows())
    kernel, *rest = head.model.get_layer(layer).get_weights()
    changed_head = Head(head.shape, {**head.weights, layer: [kernel * 1.1, *rest]})
    after = changed_head.outputs(rows())
    changed = {level for level in (1, 2, 3) if not np.array_equal(before[level - 1], after[level - 1])}
    assert changed == REACHES[kind][layer]


@pytest.mark.parametrize("kind", REACHES)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_gradients_of_a_levels_loss_reach_exactly_the_layers_it_depends_on(kind: str, level: int) -> None:
    """All reach what is shared; TaxonNet's fine levels the coarse logits; separate heads nothing else."""
    head = drawn(kind)
    alone = weighted_levels([float(other == level) for other in (1, 2, 3)])
    gradients = step(head.model, rows(), labels_of(kind, np.arange(9) % C), alone)
    reached = {
        weight.path.split("/")[-2]
        for weight, gradient in zip(head.model.trainable_weights, gradients, strict=True)
        if gradient is not None and np.abs(np.asarray(gradient)).max() > 0
    }
    assert reached == {layer for layer, levels in REACHES[kind].items() if level in levels}


@pytest.mark.parametrize("kind", REACHES)
def test_any_architecture_works_on_a_trunk_and_every_levels_loss_reaches_it(kind: str) -> None:
    photos = keras.Input((4,))
    trunk = keras.layers.Dense(D, activation="relu", name="trunk")
    model = keras.Model(photos, head_layers(trunk(photos), SHAPES[kind]))
    rng = np.random.default_rng(3)
    model.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
    for level in (1, 2, 3):
        alone = weighted_levels([float(other == level) for other in (1, 2, 3)])
        photo = rng.uniform(0.1, 1, (9, 4))
        gradient, *_ = step(model, photo, labels_of(kind, np.arange(9) % C), alone)
        assert np.abs(np.asarray(gradient)).max() > 0
    assert model.trainable_weights[0].path.startswith("trunk")


def test_soft_targets_move_every_layer_of_a_flat_head() -> None:
    gradients = step(drawn("flat").model, rows(), np.arange(9) % C, soft_tree(TREE, 5.0))
    moved = [np.abs(np.asarray(gradient)).max() > 0 for gradient in gradients]
    assert all(moved)


# Saved and read back


@pytest.mark.parametrize("kind", SHAPES)
def test_saved_head_of_any_architecture_is_read_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    head = drawn(kind)
    head.save(tmp_path)
    again = load_head(tmp_path, SET_FILES) if kind == "set" else load_head(tmp_path)
    assert again.shape == head.shape
    x = np.tile(rows(), (1, head.shape.images))
    for before, after in zip(head.outputs(x), again.outputs(x), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_standardized_head_gives_for_a_bottleneck_what_a_plain_one_gives_for_its_standard(
    kind: str,
) -> None:
    plain, rng = drawn(kind), np.random.default_rng(3)
    shape = dataclasses.replace(SHAPES[kind], standardized=True)
    mean, variance = rng.normal(0, 1, D).astype(np.float32), rng.uniform(0.5, 2, D).astype(np.float32)
    assert [w.shape for w in build_head(shape).get_layer(STANDARD).get_weights()] == [(D,), (D,)]
    head = Head(shape, {**plain.weights, STANDARD: [mean, variance]})
    x = np.tile(rows(), (1, shape.images)).astype(np.float32)
    standard = (2.0 * x.reshape(-1, D) - mean) / np.sqrt(variance + 1e-3) / 2.0
    wanted = plain.outputs(standard.reshape(x.shape).astype(np.float32))
    for found, expected in zip(head.outputs(x), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_second_dropout_is_behind_every_second_hidden_layer_and_adds_no_parameters(kind: str) -> None:
    shape = dataclasses.replace(SHAPES[kind], second_dropout=0.3)
    model = build_head(shape)
    assert model.count_params() == PARAMETERS[kind]
    behind = {layer.name: layer.rate for layer in model.layers if layer.name.startswith("dropout2")}
    towers = [layer.name for layer in model.layers if layer.name.startswith("hidden2")]
    assert behind == {name.replace("hidden", "dropout"): 0.3 for name in towers}
    for name in towers:
        (node,) = model.get_layer(name)._outbound_nodes
        assert node.operation.name == name.replace("hidden", "dropout")


@pytest.mark.parametrize("standardized", [False, True])
def test_a_set_head_does_not_depend_on_the_order_of_the_images_nor_on_repeated_ones(
    standardized: bool,
) -> None:
    shape = dataclasses.replace(SHAPES["set"], standardized=standardized, hidden=(32, 6))
    products = np.repeat(np.arange(40), 3)
    trained = ProductRows(rows(count=120), np.arange(0, 121, 3), 3)
    head, _ = fit_head(shape, Examples(trained, products[::3] % C), None, A_LITTLE)
    images = rows(seed=4, count=3)
    expected = set_logits(head, images, np.array([0, 3]))
    np.testing.assert_allclose(set_logits(head, images[[2, 0, 1]], np.array([0, 3])), expected, atol=1e-5)
    two, padded = (
        set_logits(head, images[:2], np.array([0, 2])),
        head.logits(images[[0, 1, 1]].reshape(1, -1)),
    )
    np.testing.assert_allclose(two, padded, atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("flat", "taxonnet", "set") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in SHAPES
    ],
)
def test_same_seed_gives_the_same_head_of_any_architecture(kind: str) -> None:
    shape = dataclasses.replace(SHAPES[kind], dropout=0.3, standardized=True)
    x = np.tile(rows(count=24), (1, shape.images))
    examples = Examples(x, labels_of(kind, np.arange(24) % C))
    one, same = (fit_head(shape, examples, None, A_LITTLE)[0].model.get_weights() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))


def test_head_json_of_an_older_release_is_a_flat_head(tmp_path: Path) -> None:
    head = drawn("flat")
    head.save(tmp_path)
    (tmp_path / "head.json").write_text(
        '{"width": 5, "categories": 8, "hidden": [7, 6], "dropout": 0.0, "scale": 2.0, '
        '"fingerprint": "mobilenet-32-abc"}'
    )
    assert load_head(tmp_path).shape == PLAIN
    np.testing.assert_array_equal(load_head(tmp_path).logits(rows()), head.logits(rows()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "fcm"}, "a head of kind 'fcm'; expected flat, separate"),
        ({"kind": "multitask"}, "without their tree"),
        ({"hierarchical": True}, "without their tree"),
        ({"kind": "taxonnet", "parents": ((0, 0),)}, "without their tree"),
        ({"kind": "multitask", "parents": TREE.parents, "hierarchical": True}, "set head.kind = flat"),
    ],
)
def test_shape_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message):
        dataclasses.replace(PLAIN, **changes)
