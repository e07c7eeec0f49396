"""The engine TensorFlow: the backbone as Keras runs it; and networks in bfloat16."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.engines.backbones import KerasBackbone
from features.engines.engine import round_into
from features.engines.keras_networks import JOINED

if TYPE_CHECKING:
    import keras


class TensorFlow:
    """The backbone as Keras runs it."""

    def __init__(self, backbone: KerasBackbone, batch: int, precision: str) -> None:
        precision = precision if precision != "auto" else "bf16" if has_gpu() else "fp32"
        self.name = f"tensorflow {precision}"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._model = in_precision(backbone.model, precision)

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        for number, pixels in enumerate(batches):
            batch = rows[number * self.batch : (number + 1) * self.batch]
            round_into(batch, self._model.predict_on_batch(pixels))


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def may_have_gpu() -> bool:
    """Whether TensorFlow could see a GPU: on Linux only with a device file, of NVIDIA, AMD or WSL."""
    devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd"), *Path("/dev").glob("dxg")]
    return sys.platform != "linux" or bool(devices)


def in_precision(model: "keras.Model", precision: str) -> "keras.Model":
    """Returns the model itself for fp32; for bf16 one that multiplies in bfloat16, and pools in float32.

    In a network with depthwise convolutions the other convolutions alone, nearly all of its multiplications,
    use bfloat16 (see openvino_graphs.py). MobileNet's worst of 2,936 grocery photos is then off by 1.1 % of
    its bottleneck's length instead of 4.6 %, and on two cores with AMX it is 1.4 times as fast.
    """
    import keras

    if precision == "fp32":
        return model

    means = (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D)
    exact = (keras.layers.InputLayer, keras.layers.Rescaling, *means, keras.layers.GlobalMaxPooling2D)
    depthwise = any(isinstance(layer, keras.layers.DepthwiseConv2D) for layer in model._flatten_layers())
    lower = keras.layers.Conv2D if depthwise else keras.layers.Layer

    def lowered(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if isinstance(layer, lower) and not isinstance(layer, exact) and layer.name != JOINED:
            config["dtype"] = "mixed_bfloat16"
        return type(layer).from_config(config)

    # a network of KerasHub is a class of its own, and cloned as one layer
    own_class = any(
        isinstance(layer, keras.Model) and layer.__class__.__module__.startswith("keras_hub.")
        for layer in model.layers
    )
    clone = keras.models.clone_model(model, clone_function=lowered, recursive=not own_class)
    clone.set_weights(model.get_weights())
    return clone
