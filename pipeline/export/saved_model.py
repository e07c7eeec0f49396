"""The format saved_model: JPEGs in, decisions with names out; for TensorFlow, and for TensorFlow Serving.

    images (n,) string, JPEGs    images_per_product (p,) int32    ──► serving_default ──► OUTPUTS

It holds operations of TensorFlow alone, no class of Keras or of ours. Decoding is part of it, as
features/engines/pixels.py decodes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from features.engines.backbones import KerasBackbone
from features.engines.pixels import decode_jpegs
from features.errors import ShelfmarkError
from pipeline.export.graph import COUNTED, COUNTS, TEXTS, ExportedGraph

IMAGES = "images"
SIGNATURE = "serving_default"
PACKAGES = ("tensorflow", "keras")


def inputs(graph: ExportedGraph) -> dict[str, str]:
    """Returns the inputs of the written files, and what they are."""
    return {IMAGES: "(n,) string, JPEGs of all products, one product after the other", COUNTS: COUNTED}


def write(graph: ExportedGraph, folder: Path) -> None:
    """Writes saved_model.pb and variables/ into a directory.

    Raises:
        ShelfmarkError: the backbone is no network of Keras.
    """
    backbone = graph.backbone
    if not isinstance(backbone, KerasBackbone):
        raise ShelfmarkError(
            f"backbone {backbone.name}: cannot be written as a SavedModel, because it is an ONNX file; "
            "expected a network of Keras; give --format onnx or openvino"
        )

    def serve(images: tf.Tensor, images_per_product: tf.Tensor) -> dict[str, tf.Tensor]:
        check = [
            tf.debugging.assert_positive(
                images_per_product,
                "images_per_product: a product without an image; expected 1 or more of each; leave it out",
            ),
            tf.debugging.assert_equal(
                tf.reduce_sum(images_per_product),
                tf.shape(images)[0],
                "images_per_product: its sum is not the number of images; expected all images counted; "
                "correct the counts",
            ),
        ]
        with tf.control_dependencies(check):
            pixels = decode_jpegs(images, graph.sizes)
        found = graph.from_pixels(*pixels, images_per_product)
        texts = {name: tf.gather(tf.constant(graph.texts[name]), found[name]) for name in TEXTS}
        return found | texts

    module = tf.Module()
    categorizer = graph.bundle.categorizer
    # A cascade asks the plain head how certain the first view is, also where a set head decides
    models = [*graph.models.values(), categorizer.head.model, categorizer.predictor.head.model]
    module.weights = [variable.value for model in models for variable in model.variables]
    signature = [
        tf.TensorSpec((None,), tf.string, name=IMAGES),
        tf.TensorSpec((None,), tf.int32, name=COUNTS),
    ]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})


class Runner:
    """Runs the written files."""

    def __init__(self, folder: Path) -> None:
        self._module = tf.saved_model.load(str(folder))
        self._serve = self._module.signatures[SIGNATURE]

    def decide(self, jpegs: Sequence[bytes], counts: np.ndarray) -> dict[str, np.ndarray]:
        """OUTPUTS, with names: of (p,) products, from all their JPEGs and how many each has."""
        images = tf.constant(list(jpegs), tf.string)
        found = self._serve(images=images, images_per_product=tf.constant(counts, tf.int32))
        return {name: _decoded(value.numpy()) for name, value in found.items()}


def _decoded(values: np.ndarray) -> np.ndarray:
    """Texts instead of bytes."""
    if values.dtype != object:
        return values
    return np.array([text.decode() for text in values.ravel()], object).reshape(values.shape)
