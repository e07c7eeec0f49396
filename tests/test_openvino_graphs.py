"""Networks for OpenVINO: the same numbers by another order of steps, and weights for bfloat16."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import drawn_backbone

from features.engines.backbones import Backbone, load_backbone
from features.engines.openvino import as_converted, to_openvino
from features.engines.openvino_graphs import centre, sum_keeping, to_bfloat16, transpose_late

openvino = pytest.importorskip("openvino")
NUMBERS = np.random.default_rng(0).normal(size=(500, 9)).astype(np.float32)


def as_tensorflow_rounds(numbers: np.ndarray) -> np.ndarray:
    return tf.cast(tf.cast(numbers, tf.bfloat16), tf.float32).numpy()


def test_rounds_as_tensorflow_does() -> None:
    odd = np.array([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-9), 1e-30, 3e38], np.float32)
    for numbers in (NUMBERS, odd):
        np.testing.assert_array_equal(to_bfloat16(numbers), as_tensorflow_rounds(numbers))


def test_weights_of_a_channel_keep_their_sum() -> None:
    kept, plain = sum_keeping(NUMBERS), as_tensorflow_rounds(NUMBERS)
    np.testing.assert_array_equal(kept, as_tensorflow_rounds(kept))  # bfloat16 holds them

    def away(found: np.ndarray) -> float:
        return np.abs((found - NUMBERS).sum(axis=1, dtype=np.float64)).mean()

    assert away(kept) < away(plain) / 10


def test_no_weight_moves_further_than_the_largest_one_is_rounded() -> None:
    moved = np.abs(sum_keeping(NUMBERS) - NUMBERS)
    assert (moved <= np.abs(NUMBERS).max(axis=1, keepdims=True) * 2**-7).all()


# Late transposition


@pytest.fixture(params=["mobilenet", "inception_v3"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return drawn_backbone(0) if request.param == "mobilenet" else load_backbone("inception_v3", "random", 75)


def test_a_late_transposition_gives_the_same_bottlenecks_bit_for_bit(backbone: Backbone) -> None:
    shape = (2, backbone.image_size, backbone.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    network = as_converted(backbone, request=2)
    expected = bottlenecks(network, pixels)
    assert kinds_of(network)[:3] == ["Parameter", "Convert", "Transpose"]
    transpose_late(network)
    assert kinds_of(network)[:6] == ["Parameter", "Convert", "Multiply", "Add", "Transpose", "Convolution"]
    np.testing.assert_array_equal(bottlenecks(network, pixels), expected)
    assert expected.any()


# A centred depthwise convolution


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2"])
def test_a_centred_convolution_gives_the_same_bottlenecks_borders_included(name: str) -> None:
    backbone = drawn_backbone(0, name=name)
    shape = (2, backbone.image_size, backbone.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    network = to_openvino(backbone, request=2)
    expected = bottlenecks(network, pixels)
    centre(first_depthwise(network))
    assert "Pad" in kinds_of(network)[: kinds_of(network).index("GroupConvolution")]
    np.testing.assert_allclose(bottlenecks(network, pixels), expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert expected.any()


def test_a_network_without_relu6_stays_as_it_is() -> None:
    network = to_openvino(drawn_backbone(0, 32, name="efficientnet_b0"), request=1)
    before = kinds_of(network)
    centre(first_depthwise(network))
    assert kinds_of(network) == before


def first_depthwise(network: "openvino.Model") -> "openvino.Node":
    return next(one for one in network.get_ordered_ops() if one.get_type_name() == "GroupConvolution")


def kinds_of(network: "openvino.Model") -> list[str]:
    return [one.get_type_name() for one in network.get_ordered_ops() if one.get_type_name() != "Constant"]


def bottlenecks(network: "openvino.Model", pixels: np.ndarray) -> np.ndarray:
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(network, "CPU", exact)([pixels])[0]
