"""Convolutional networks and heads give the dense answer at the training size, beyond it one a location."""

from typing import Any

import keras
import numpy as np
import pytest
from conftest import drawn_backbone
from keras import layers

from features.errors import ShelfmarkError
from features.networks.family import NETWORKS, build_network
from models.heads.architectures import ARCHITECTURES, Head, HeadShape, build_head
from models.heads.class_maps import ClassMaps
from models.heads.convolutional import convolutional_head, convolutionize

PARENTS = ((0, 0), (0, 0, 1), (0, 1, 2, 2))  # 2, 3 and 4 nodes
SHAPES: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in ARCHITECTURES},
    "hierarchical": {"kind": "flat", "hierarchical": True},
    "standardized": {"kind": "flat", "standardized": True, "second_dropout": 0.3},
    "set of three": {"kind": "set", "images": 3, "standardized": True},
}


def drawn(model: keras.Model, seed: int = 0) -> keras.Model:
    """The model with weights of the size that keeps activations about 1, statistics and biases included."""
    rng = np.random.default_rng(seed)
    for weight in model.variables:
        kernel = weight.name.startswith(("kernel", "depthwise"))
        if kernel:
            fan = np.prod(weight.shape[:2] if "depthwise" in weight.path else weight.shape[:-1])
            weight.assign(rng.normal(0, np.sqrt(2 / fan), weight.shape))
        elif "seed" not in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def drawn_head(width: int, **fields: Any) -> Head:
    values = {"hidden": (8, 9), "dropout": 0.5, "scale": 0.7, "fingerprint": "x", "selector": 7}
    shape = HeadShape(width=width, categories=4, parents=PARENTS, **values | fields)
    return Head.of(shape, drawn(build_head(shape)))


def photos(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 255, (count, height, width, 3)).astype(np.float32)


def answer(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict_on_batch(images))


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether float32 numbers agree to 1e-5, of the largest one where that is over 1."""
    assert found.shape == expected.shape
    return bool(np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max()))


def valid_network(size: int) -> keras.Model:
    """Without padding, at stride 4: a location of a larger image sees the crop at 4 times its index."""
    scaled = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 5, strides=2, activation="relu")(scaled)
    x = layers.MaxPooling2D(2)(layers.BatchNormalization()(x))
    return keras.Model(scaled, layers.Conv2D(12, 3, activation="relu")(x))


def with_top(network: keras.Model, *top: layers.Layer) -> keras.Model:
    x = network.output
    for layer in top:
        x = layer(x)
    return keras.Model(network.input, x)


# The same answer at the training size


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_head_gives_each_cell_its_dense_logits(kind: str, quiet_tensorflow: None) -> None:
    head = drawn_head(16, **SHAPES[kind])
    maps = np.random.default_rng(1).normal(size=(2, 3, 5, 16)).astype(np.float32)
    found = convolutional_head(head).predict_on_batch(maps)
    expected = head.outputs(np.tile(maps.reshape(-1, 16), head.shape.images))
    found = found if isinstance(found, list) else [found]
    assert len(found) == len(expected) == len(head.shape.level_sizes)
    for level, dense in zip(found, expected, strict=True):
        assert close(np.asarray(level), dense.reshape(2, 3, 5, -1))
        assert np.ptp(dense) > 0.1


def test_a_convolutional_head_has_no_dense_layer(quiet_tensorflow: None) -> None:
    for kind in SHAPES:
        flat = [
            type(layer)
            for layer in convolutional_head(drawn_head(16, **SHAPES[kind]))._flatten_layers(recursive=True)
        ]
        assert layers.Conv2D in flat and layers.Dense not in flat, kind


@pytest.mark.parametrize(("name", "one_cell", "size"), [("mobilenet", 32, 96), ("inceptionv3", 75, 139)])
def test_a_head_on_a_backbone_gives_the_dense_answer(
    name: str, one_cell: int, size: int, quiet_tensorflow: None
) -> None:
    single, larger = drawn_backbone(3, one_cell, name), drawn_backbone(3, size, name)
    head = drawn_head(single.width, kind="multitask")
    cell = single.maps().predict_on_batch(photos(2, one_cell, one_cell))
    assert cell.shape[1:3] == (1, 1)
    dense = head.outputs(single.bottlenecks(photos(2, one_cell, one_cell)))
    for found, expected in zip(convolutional_head(head).predict_on_batch(cell), dense, strict=True):
        assert close(np.asarray(found)[:, 0, 0], expected)
    whole = keras.Model(larger.model.input, head.model(larger.model.output)[-1])
    convolutional = convolutionize(whole)
    images = photos(2, size, size)
    assert close(answer(convolutional, images)[:, 0, 0], answer(whole, images))
    assert np.ptp(answer(whole, images)) > 0.01
    assert answer(convolutional, photos(1, size + 64, size + 32)).shape[1:3] == (3, 2)


@pytest.mark.parametrize("key", ["lenet5", "alexnet"])
def test_dense_layers_over_a_map_of_the_family_give_the_dense_answer(
    key: str, quiet_tensorflow: None
) -> None:
    size = NETWORKS[key].image_size
    keras.utils.set_random_seed(1)
    dense = build_network(key, size, classes=7)
    images = photos(2, size, size) / 64 - 2
    convolutional = convolutionize(dense)
    found = answer(convolutional, images)
    assert close(found[:, 0, 0], answer(dense, images)) and np.ptp(found) > 0.01
    step = {"lenet5": 4, "alexnet": 32}[key]  # px from one cell of the last map to the next
    assert answer(convolutional, photos(1, size + step, size + 2 * step)).shape == (1, 2, 3, 7)
    cells = [layer.kernel_size for layer in convolutional.layers if layer.name.startswith("classifier")]
    assert cells == [{"lenet5": (5, 5), "alexnet": (6, 6)}[key], (1, 1), (1, 1)]


def test_the_dense_layers_of_vgg19_over_one_cell_give_the_dense_answer(quiet_tensorflow: None) -> None:
    dense = drawn(keras.applications.VGG19(weights=None, input_shape=(32, 32, 3), classes=7))
    images = photos(2, 32, 32) / 255
    found = answer(convolutionize(dense), images)
    assert close(found[:, 0, 0], answer(dense, images)) and np.ptp(found) > 0.01
    assert answer(convolutionize(dense), photos(1, 64, 96)).shape == (1, 2, 3, 7)


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["keras", "family"])
def test_the_whole_vgg19_gives_the_dense_answer(origin: str, quiet_tensorflow: None) -> None:
    keras.utils.set_random_seed(1)
    dense = (
        build_network("torchvisionvgg19", 224)
        if origin == "family"
        else drawn(keras.applications.VGG19(weights=None, classifier_activation=None))
    )
    images = photos(1, 224, 224) / 64 - 2
    convolutional = convolutionize(dense)
    first = convolutional.get_layer("fc1" if origin == "keras" else "classifier.0")
    assert first.kernel.shape == (7, 7, 512, 4096)
    found = answer(convolutional, images)
    assert close(found[:, 0, 0], answer(dense, images)) and np.ptp(found) > 0.01


def test_cells_that_are_averaged_from_a_larger_map_are_refused(quiet_tensorflow: None) -> None:
    message = refused(build_network("lenet5", 40, classes=3))
    assert message.startswith("einsum") and "it is for maps of one size" in message


def test_squeeze_and_excitation_stays_inside(quiet_tensorflow: None) -> None:
    body = valid_network(32)
    squeezed = layers.Reshape((1, 1, 12))(layers.GlobalAveragePooling2D(name="squeeze")(body.output))
    gates = layers.Conv2D(12, 1, activation="sigmoid")(layers.Conv2D(3, 1, activation="relu")(squeezed))
    end = layers.GlobalAveragePooling2D(name="end")(layers.Multiply()([body.output, gates]))
    dense = drawn(keras.Model(body.input, layers.Dense(5)(end)))
    images = photos(2, 32, 32) / 255
    convolutional = convolutionize(dense)
    assert close(answer(convolutional, images)[:, 0, 0], answer(dense, images))
    assert type(convolutional.get_layer("squeeze")) is layers.GlobalAveragePooling2D
    assert type(convolutional.get_layer("end")) is layers.AveragePooling2D
    assert answer(convolutional, photos(1, 48, 40)).shape == (1, 5, 3, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "MobileNetV3Small", "ConvNeXtTiny", "DenseNet121"])
def test_networks_of_keras_give_the_dense_answer(name: str, quiet_tensorflow: None) -> None:
    network = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
    images = photos(2, 64, 64)
    assert close(answer(convolutionize(network), images)[:, 0, 0], answer(network, images))


def test_a_reshape_of_one_cell_is_passed(quiet_tensorflow: None) -> None:
    small = keras.applications.MobileNet(weights=None, input_shape=(64, 64, 3), alpha=0.25, classes=5)
    dense = drawn(small)  # its head is a pooling that keeps its axes, a 1 × 1 convolution and a reshape
    images = photos(2, 64, 64) / 255
    assert close(answer(convolutionize(dense), images)[:, 0, 0], answer(dense, images))


def test_models_inside_a_model_are_converted(quiet_tensorflow: None) -> None:
    images = keras.Input((32, 32, 3))
    scaling = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
    flat = keras.Sequential([keras.Input((5, 5, 12)), layers.Flatten(), layers.Dropout(0.2)])
    top = keras.Sequential(
        [keras.Input((300,)), layers.Dense(6), layers.BatchNormalization(), layers.PReLU()]
    )
    dense = drawn(keras.Model(images, layers.Softmax()(top(flat(valid_network(32)(scaling(images)))))))
    assert close(answer(convolutionize(dense), photos(2, 32, 32))[:, 0, 0], answer(dense, photos(2, 32, 32)))
    assert answer(convolutionize(dense), photos(1, 40, 36)).shape == (1, 3, 2, 6)


# One answer a location at larger sizes


@pytest.mark.parametrize(
    "top",
    [
        (layers.Flatten(), layers.Dense(9, activation="relu"), layers.Dense(4)),
        (layers.GlobalAveragePooling2D(), layers.Dense(9, activation="relu"), layers.Dense(4)),
        (layers.GlobalMaxPooling2D(), layers.Dense(4, activation="softmax")),
    ],
    ids=["flatten", "mean", "maximum"],
)
def test_each_location_is_the_network_on_its_crop(
    top: tuple[layers.Layer, ...], quiet_tensorflow: None
) -> None:
    fresh = [type(layer).from_config(layer.get_config()) for layer in top]
    dense = drawn(with_top(valid_network(28), *fresh))
    image = photos(1, 44, 36) / 255
    found = answer(convolutionize(dense), image)
    assert found.shape == (1, 5, 3, 4)
    for row in range(5):
        for column in range(3):
            crop = image[:, 4 * row : 4 * row + 28, 4 * column : 4 * column + 28]
            assert close(found[:, row, column], answer(dense, crop)), (row, column)
    assert np.ptp(found, axis=(1, 2)).max() > 1e-3


# Pooling before and after the head


def test_mean_of_logits_is_logits_of_the_mean_only_for_a_linear_head(quiet_tensorflow: None) -> None:
    image = photos(2, 28, 28) / 255
    linear = drawn(with_top(valid_network(28), layers.GlobalAveragePooling2D(), layers.Dense(4)))
    found = answer(convolutionize(linear, pool="after"), image)
    assert found.shape == (2, 4, 4, 4)
    assert close(found.mean((1, 2)), answer(linear, image))
    hidden = layers.Dense(16, activation="relu")
    curved = drawn(with_top(valid_network(28), layers.GlobalAveragePooling2D(), hidden, layers.Dense(4)))
    for kernel in (curved.layers[-2].kernel, curved.layers[-1].kernel):
        kernel.assign(np.random.default_rng(2).normal(size=kernel.shape))
    gap = np.abs(answer(convolutionize(curved, pool="after"), image).mean((1, 2)) - answer(curved, image))
    assert gap.max() > 1e-3


# Maps of a backbone


def test_maps_are_the_logits_of_the_cells_whose_mean_is_the_bottleneck(quiet_tensorflow: None) -> None:
    backbone = drawn_backbone(3, 96)
    head = drawn_head(backbone.width)
    pixels = photos(2, 96, 96).astype(np.uint8)
    maps = ClassMaps(backbone, head).logits(pixels)
    assert maps.shape == (2, 3, 3, 4)
    cells = backbone.maps().predict_on_batch(pixels.astype(np.float32)).reshape(-1, backbone.width)
    assert close(maps.reshape(-1, 4), head.logits(cells))
    assert close(backbone.bottlenecks(pixels), cells.reshape(2, 9, -1).mean(axis=1))


def test_maps_of_a_head_that_reads_mirrored_images_are_the_mean_of_both(quiet_tensorflow: None) -> None:
    backbone = drawn_backbone(3, 96)
    plain, mirrored = (drawn_head(backbone.width, views=views) for views in (("whole",), ("whole", "flip")))
    pixels = photos(1, 96, 96).astype(np.uint8)
    one, other = (ClassMaps(backbone, plain).logits(view) for view in (pixels, pixels[:, :, ::-1]))
    assert close(ClassMaps(backbone, mirrored).logits(pixels), (one + other[:, :, ::-1]) / 2)


# What cannot be converted


def refused(model: keras.Model) -> str:
    with pytest.raises(ShelfmarkError) as caught:
        convolutionize(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layers.BatchNormalization(name="culprit"), "over a vector of a map"),
        (layers.Reshape((5, 60), name="culprit"), "turns"),
    ],
)
def test_a_layer_between_map_and_dense_is_named(
    layer: layers.Layer, why: str, quiet_tensorflow: None
) -> None:
    again = type(layer).from_config(layer.get_config())
    message = refused(with_top(valid_network(32), layers.Flatten(), again))
    assert message.startswith("culprit: ") and why in message


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layers.PReLU(name="culprit"), "a weight for each location"),
        (layers.Resizing(8, 8, name="culprit"), "one size"),
        (layers.Reshape((25, 12), name="culprit"), "turns"),
        (layers.AdaptiveAveragePooling2D(3, name="culprit"), "turns"),
        (layers.LayerNormalization(axis=[1, 2, 3], name="culprit"), "a weight for each location"),
    ],
)
def test_a_layer_for_maps_of_one_size_is_named(layer: layers.Layer, why: str, quiet_tensorflow: None) -> None:
    again = type(layer).from_config(layer.get_config())
    message = refused(with_top(valid_network(32), again))
    assert message.startswith("culprit: ") and why in message


def test_a_pooling_of_maps_of_unknown_size_is_named(quiet_tensorflow: None) -> None:
    images = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3)(images))
    dense = keras.Model(images, layers.Dense(2)(x))
    assert "pool: " in refused(dense) and "not fixed" in refused(dense)
    assert convolutionize(dense, pool="after").output_shape == (None, None, None, 2)


def test_a_flattened_map_that_gates_a_map_is_named(quiet_tensorflow: None) -> None:
    body = valid_network(32)
    x = layers.Dense(12)(layers.Flatten(name="flat")(body.output))
    gated = layers.Multiply()([body.output, layers.Reshape((1, 1, 12))(x)])
    message = refused(keras.Model(body.input, layers.GlobalAveragePooling2D()(gated)))
    assert message.startswith("flat: ") and "goes back into a map" in message


def test_two_inputs_and_a_class_of_its_own_are_refused(quiet_tensorflow: None) -> None:
    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    one, two = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    assert "2 inputs" in refused(keras.Model([one, two], layers.Add()([one, two])))
    assert "its layers are not known" in refused(keras.Model(one, Own()(one)))
    vector = keras.Input((8,))
    assert "1 inputs, the first (None, 8)" in refused(keras.Model(vector, layers.Dense(2)(vector)))
