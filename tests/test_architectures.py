"""The head has the paper's layers and computes what NumPy computes from its weights."""

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from models.heads.architectures import Head, HeadShape, build_head, load_head

SMALL = HeadShape(
    width=12, categories=7, hidden=(9, 5), dropout=0.5, scale=3.5, fingerprint="mobilenet-32-abc"
)


@pytest.fixture(scope="module")
def head(quiet_tensorflow: None) -> Head:
    """A head with random weights and random statistics of the batch normalization."""
    model = build_head(SMALL)
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.uniform(0.2, 1, weight.shape) * rng.choice([-1, 1]) for weight in model.get_weights()]
    )
    normalization = model.get_layer("normalization")
    gamma, beta, mean, variance = normalization.get_weights()
    normalization.set_weights([gamma, beta, mean, np.abs(variance)])
    return Head.of(SMALL, model)


def draw(rows: int, dtype: type = np.float16) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (rows, SMALL.width)).astype(dtype)


def by_hand(head: Head, bottlenecks: np.ndarray) -> np.ndarray:
    """The forward pass in float64."""
    weights = {name: head.model.get_layer(name).get_weights() for name in ("hidden1", "hidden2", "logits")}
    (kernel1, bias1), (kernel2, bias2), (kernel3, bias3) = weights.values()
    gamma, beta, mean, variance = head.model.get_layer("normalization").get_weights()
    x = bottlenecks.astype(np.float64) * head.shape.scale @ kernel1 + bias1
    x = gamma * (x - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) + beta
    x = np.maximum(np.maximum(x, 0) @ kernel2 + bias2, 0)
    return x @ kernel3 + bias3


def test_layers_follow_each_other_as_in_the_paper(quiet_tensorflow: None) -> None:
    model = build_head(SMALL)
    layers = keras.layers
    assert [type(layer) for layer in model.layers] == [
        layers.InputLayer,
        layers.Rescaling,
        layers.Dense,
        layers.BatchNormalization,
        layers.ReLU,
        layers.Dropout,
        layers.Dense,
        layers.Dense,
    ]
    for before, after in zip(model.layers, model.layers[1:], strict=False):
        assert after.input is before.output, after.name
    assert model.output is model.layers[-1].output
    activations = [layer.activation.__name__ for layer in model.layers if isinstance(layer, layers.Dense)]
    assert activations == ["linear", "relu", "linear"]
    assert [layer.units for layer in model.layers if isinstance(layer, layers.Dense)] == [9, 5, 7]
    assert model.get_layer("dropout").rate == 0.5


def test_papers_head_has_its_number_of_parameters(quiet_tensorflow: None) -> None:
    """2,048 → 1,024 → 1,024 → 1,000; the normalization has four numbers a neuron, two of them trained."""
    model = build_head(HeadShape(2048, 1000, (1024, 1024), 0.5, 1.0, ""))
    dense = (2048 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 1000
    assert model.count_params() == dense + 4 * 1024 == 4_176_872
    assert sum(weight.shape.num_elements() for weight in model.trainable_weights) == dense + 2 * 1024


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [1, 47, 48, 49, 600])
def test_logits_agree_with_numpy(head: Head, rows: int, dtype: type) -> None:
    bottlenecks = draw(rows, dtype)
    found = head.logits(bottlenecks)
    assert (found.shape, found.dtype) == ((rows, 7), np.float32)
    np.testing.assert_allclose(found, by_hand(head, bottlenecks), rtol=1e-4, atol=1e-4)


def test_logits_of_an_image_do_not_depend_on_the_others() -> None:
    """To the bit: a head of usual widths, so that the BLAS divides its sums, and odd numbers of rows."""
    rng = np.random.default_rng(0)
    large = HeadShape(1280, 1003, (1024, 520), 0.5, 1.0, "")
    weights = {
        "hidden1": [rng.normal(0, 0.03, (1280, 1024)), np.zeros(1024)],
        "normalization": [np.ones(1024), np.zeros(1024), np.zeros(1024), np.ones(1024)],
        "hidden2": [rng.normal(0, 0.03, (1024, 520)), np.zeros(520)],
        "logits": [rng.normal(0, 0.05, (520, 1003)), np.zeros(1003)],
    }
    as_float = {name: [array.astype(np.float32) for array in arrays] for name, arrays in weights.items()}
    bottlenecks = rng.normal(0, 1, (150, 1280)).astype(np.float16)
    head = Head(large, as_float)
    together = head.logits(bottlenecks)
    for row in (*range(48), 127, 128, 149):
        np.testing.assert_array_equal(head.logits(bottlenecks[row : row + 1])[0], together[row])
    np.testing.assert_array_equal(head.logits(bottlenecks[7:100]), together[7:100])


def test_same_bottlenecks_give_the_same_logits_to_the_bit(head: Head) -> None:
    np.testing.assert_array_equal(head.logits(draw(600)), head.logits(draw(600)))


def test_logits_of_nothing_are_nothing(head: Head) -> None:
    assert head.logits(draw(0)).shape == (0, 7)


def test_the_last_dense_layer_of_what_is_hidden_gives_the_logits(head: Head) -> None:
    kernel, bias = head.model.get_layer("logits").get_weights()
    hidden = head.hidden(draw(300))
    assert hidden.shape == (300, 5)
    np.testing.assert_allclose(hidden @ kernel + bias, head.logits(draw(300)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "width"), [("flat", 5), ("separate", 5), ("multitask", 5), ("taxonnet", 5), ("set", 9)]
)
def test_every_architecture_has_a_last_hidden_layer(kind: str, width: int) -> None:
    tree = ((0, 0), (0, 0, 0, 1, 1, 1, 1))
    shape = replace(SMALL, kind=kind, parents=tree, selector=3, images=2 if kind == "set" else 1)
    rows = np.ones((3, shape.images * shape.width), np.float16)
    assert Head.of(shape, build_head(shape)).hidden(rows).shape == (3, width)


def test_dropout_is_for_training_only(head: Head) -> None:
    bottlenecks = draw(4, np.float32)
    model = Head(head.shape, head.weights).model  # one of its own: training changes the statistics
    outputs = np.asarray(model(bottlenecks, training=False))
    np.testing.assert_allclose(outputs, head.logits(bottlenecks), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(model(bottlenecks, training=True)) - outputs).max() > 0.01


def test_a_model_that_is_first_built_within_a_graph_of_tensorflow_has_its_weights(head: Head) -> None:
    import tensorflow as tf

    bottlenecks, fresh = draw(4, np.float32), Head(head.shape, head.weights)
    found = tf.function(lambda rows: fresh.model(rows, training=False))(tf.constant(bottlenecks))
    np.testing.assert_allclose(found.numpy(), head.logits(bottlenecks), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(fresh.model.get_weights(), head.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_saved_head_is_read_back_to_the_bit(head: Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["head.json", "head.weights.h5"]
    again = load_head(tmp_path)
    assert again.shape == SMALL
    np.testing.assert_array_equal(again.logits(draw(20)), head.logits(draw(20)))


def test_structure_is_written_in_plain_json(head: Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    assert json.loads((tmp_path / "head.json").read_text()) == {
        "width": 12,
        "categories": 7,
        "hidden": [9, 5],
        "dropout": 0.5,
        "scale": 3.5,
        "fingerprint": "mobilenet-32-abc",
        "kind": "flat",
        "parents": [],
        "selector": 0,
        "images": 1,
        "standardized": False,
        "hierarchical": False,
        "second_dropout": 0.0,
        "views": ["whole"],
        "averaged": False,
        "trained": [],
    }


def test_same_head_is_saved_in_the_same_bytes(head: Head, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    head.save(tmp_path / "one")
    load_head(tmp_path / "one").save(tmp_path / "two")
    for file in ("head.json", "head.weights.h5"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.mark.parametrize(("mirrored", "views"), [(True, ("whole", "flip")), (False, ("whole",))])
def test_a_head_of_an_older_release_reads_its_images_mirrored_or_not_as_it_did(
    mirrored: bool, views: tuple[str, ...]
) -> None:
    shape = HeadShape(4, 3, (2, 2), 0.5, 1.0, "mobilenet-32-abc")
    values = json.loads(shape.to_json())
    del values["views"], values["averaged"]
    old = HeadShape.from_json(json.dumps(values | {"flip": mirrored}))
    assert old == replace(shape, views=views)
    assert (old.rows_of_image, replace(old, averaged=True).rows_of_image) == (len(views), 1)
    assert HeadShape.from_json(old.to_json()) == old
