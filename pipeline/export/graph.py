"""What is exported, whatever the format: from pixels, or from bottlenecks, to named decisions.

    pixels (n, size, size, 3) uint8 ──► (each also mirrored) ──► backbone ──► bottlenecks
    bottlenecks, images_per_product (p,) int32 ──► models/decisions/decision_graph.py ──► OUTPUTS

Where a format has texts, categories, statuses and nodes are texts; else numbers, rows of names.json:

    names.json   {"categories": [{"category", "path"}, …],  "statuses": ["review", "parent", "accepted"],
                  "nodes": [{"node", "node_path", "node_level"}, …]}          node 0 is the one of review
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from features.engines.backbones import Backbone, require_keras
from features.storage.paths import write_whole
from features.views import FLIP, WHOLE
from models.decisions.bundle import Bundle
from models.decisions.decision_graph import STATUSES, DecisionNames, decide

NAMES = "names.json"
PIXELS, COUNTS = "pixels", "images_per_product"  # inputs
PIXEL_INPUTS = {
    PIXELS: "(n, size, size, 3) uint8, RGB, the images of all products, one product after the other",
    COUNTS: "(p,) int32, how many of the images each product has, at least 1; their sum is n",
}
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
    """A bundle with its backbone."""

    bundle: Bundle
    backbone: Backbone

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

    def signature(self) -> list[tf.TensorSpec]:
        """The inputs of `from_pixels`."""
        size = self.backbone.image_size
        pixels = tf.TensorSpec((None, size, size, 3), tf.uint8, name=PIXELS)
        return [pixels, tf.TensorSpec((None,), tf.int32, name=COUNTS)]

    def from_pixels(self, pixels: tf.Tensor, counts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adds a network of Keras and the decision to a graph; returns OUTPUTS in numbers."""
        model = require_keras(self.backbone, "within this graph").model
        bottlenecks = model(tf.cast(self.views(pixels), tf.float32), training=False)
        return self.from_bottlenecks(bottlenecks, counts)

    def views(self, pixels: tf.Tensor) -> tf.Tensor:
        """(rows, size, size, 3): the images, or with `flip` each image and then the mirrored one."""
        if self.bundle.categorizer.views != (WHOLE, FLIP):
            return pixels
        size = self.backbone.image_size
        return tf.reshape(tf.stack([pixels, tf.reverse(pixels, [2])], axis=1), (-1, size, size, 3))

    def from_bottlenecks(self, bottlenecks: tf.Tensor, counts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adds the decision to a graph; returns OUTPUTS in numbers."""
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


def _rows(**columns: np.ndarray) -> list[dict[str, object]]:
    """A table as rows."""
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
