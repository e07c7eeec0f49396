"""What is exported, whatever the format: from pixels, or from bottlenecks, to named decisions.

    pixels (n, size, size, 3) uint8, of each size ──► views, cut and mirrored ──► networks ──► bottlenecks
    bottlenecks, images_per_product (p,) int32 ──► models/decisions/decision_graph.py ──► OUTPUTS

Where a format has texts, categories, statuses and nodes are texts; else numbers, rows of names.json:

    names.json   {"categories": [{"category", "path"}, …],  "statuses": ["review", "parent", "accepted"],
                  "nodes": [{"node", "node_path", "node_level"}, …]}          node 0 is the one of review
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from features.engines.backbones import Backbone, require_keras
from features.engines.pixels import decode_jpegs
from features.storage.paths import write_whole
from features.views import View, by_network, sizes_of
from models.decisions.bundle import Bundle
from models.decisions.decision_graph import STATUSES, DecisionNames, decide

NAMES = "names.json"
PIXELS, COUNTS = "pixels", "images_per_product"  # inputs
COUNTED = "(p,) int32, how many of the images each product has, at least 1; their sum is n"
OUTPUTS = {
    "top_categories": "(p, k) the most likely categories, most likely first; k is 5, or fewer categories",
    "top_probabilities": "(p, k) float32, their probabilities",
    "confidence": "(p,) float32, calibrated probability that the first one is correct, six decimals",
    "status": "(p,) accepted, parent or review",
    "node": "(p,) what was decided: the category, or its ancestor where the status is parent",
    "node_level": "(p,) int32, 1 (coarsest) and so on; 0 where the status is review",
}
TEXTS = ("top_categories", "status", "node")  # of OUTPUTS, where a format has texts


@dataclass(frozen=True)
class ExportedGraph:
    """A bundle with its backbone.

    Raises:
        ShelfmarkError: the backbone cannot have a view that the head asks for.
    """

    bundle: Bundle
    backbone: Backbone

    def __post_init__(self) -> None:
        for view in self.views:
            self.backbone.require_view(view)

    @cached_property
    def names(self) -> DecisionNames:
        """The decisions that there can be."""
        return DecisionNames.of(self.bundle.categorizer.predictor.taxonomy)

    @cached_property
    def texts(self) -> Mapping[str, list[str]]:
        """The texts of each output of TEXTS, by its numbers."""
        categories = self.bundle.categorizer.predictor.taxonomy.categories
        texts = (categories.tolist(), list(STATUSES), self.names.node.tolist())
        return dict(zip(TEXTS, texts, strict=True))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """That the head asks for."""
        return self.bundle.categorizer.views

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The px to which a photo is resized for the views, each once."""
        return sizes_of(self.views, self.backbone.image_size)

    @cached_property
    def models(self) -> dict[View, keras.Model]:
        """The networks of Keras that the views need, by View.network."""
        with tf.init_scope():  # their weights are set while a graph is traced
            return {
                network: require_keras(self.backbone.for_view(network), "within this graph").model
                for network in by_network(self.views)
            }

    @cached_property
    def pixel_inputs(self) -> dict[str, str]:
        """The inputs of `from_pixels`, and what they are: one of pixels for each of `sizes`."""
        meaning = "({0}) uint8, RGB, the images of all products, one product after the other"
        inputs = {PIXELS if len(self.sizes) == 1 else f"{PIXELS}_{size}": size for size in self.sizes}
        described = {name: meaning.format(f"n, {size}, {size}, 3") for name, size in inputs.items()}
        return described | {COUNTS: COUNTED}

    def signature(self) -> list[tf.TensorSpec]:
        """The inputs of `from_pixels`."""
        *names, counts = self.pixel_inputs
        pixels = [
            tf.TensorSpec((None, size, size, 3), tf.uint8, name=name)
            for name, size in zip(names, self.sizes, strict=True)
        ]
        return [*pixels, tf.TensorSpec((None,), tf.int32, name=counts)]

    def from_pixels(self, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adds networks of Keras and the decision to a graph; returns OUTPUTS in numbers.

        Args:
            inputs: pixels of each of `sizes`, then how many images each product has.
        """
        *pixels, counts = inputs
        numbers = by_network(self.views)
        rows = {
            network: model(tf.cast(self.images(pixels, numbers[network]), tf.float32), training=False)
            for network, model in self.models.items()
        }
        if len(rows) == 1:
            [bottlenecks] = rows.values()
            return self.from_bottlenecks(bottlenecks, counts)
        views: list[tf.Tensor] = [None] * len(self.views)
        for network, found in rows.items():
            own = tf.reshape(found, (-1, len(numbers[network]), self.backbone.width))
            for place, number in enumerate(numbers[network]):
                views[number] = own[:, place]
        bottlenecks = tf.reshape(tf.stack(views, axis=1), (-1, self.backbone.width))
        return self.from_bottlenecks(bottlenecks, counts)

    def images(self, pixels: Sequence[tf.Tensor], numbers: Sequence[int]) -> tf.Tensor:
        """(n · views, input, input, 3) uint8: what a network reads, image after image.

        Args:
            pixels: of each of `sizes`.
            numbers: which of the views, all of one network.
        """
        size = self.backbone.image_size
        views = [self.views[number] for number in numbers]
        cut = [view.of_pixels(pixels[self.sizes.index(view.resized(size))], size) for view in views]
        side = views[0].input(size)
        return cut[0] if len(cut) == 1 else tf.reshape(tf.stack(cut, axis=1), (-1, side, side, 3))

    def from_bottlenecks(self, bottlenecks: tf.Tensor, counts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adds the decision to a graph, from all views of each image; returns OUTPUTS in numbers."""
        found = decide(self.bundle.categorizer, self.names, bottlenecks, counts)
        node = found.pop("decision")
        found["status"] = tf.gather(tf.constant(self.names.status), node)
        found["node"] = node
        found["node_level"] = tf.gather(tf.constant(self.names.node_level), node)
        return {name: tf.identity(found[name], name=name) for name in OUTPUTS}

    def write_names(self, folder: Path) -> None:
        """Writes names.json."""
        names, predictor = self.names, self.bundle.categorizer.predictor
        content = {
            "categories": _rows(category=predictor.taxonomy.categories, path=predictor.paths),
            "statuses": list(STATUSES),
            "nodes": _rows(node=names.node, node_path=names.node_path, node_level=names.node_level),
        }
        write_whole(folder / NAMES, json.dumps(content, ensure_ascii=False, indent=1).encode())


def decoded_inputs(jpegs: Sequence[bytes], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Returns the pixels of JPEGs by the input that takes them; `sizes`: of each input, px."""
    decoded = decode_jpegs(tf.constant(list(jpegs)), list(sizes.values()))
    return {name: one.numpy() for name, one in zip(sizes, decoded, strict=True)}


def _rows(**columns: np.ndarray) -> list[dict[str, object]]:
    """A table as rows."""
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
