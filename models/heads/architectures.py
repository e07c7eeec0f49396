"""The head: hidden layers over bottlenecks, softmax over the categories, or over the nodes of every level.

    hidden     x (d) → scale → (standard) → Dense(h1) → batch normalization → ReLU → dropout
                     → Dense(h2) → ReLU (→ dropout)

    flat       hidden(x) → Dense(C) logits                      Li et al., APIA 2018, "2NN"
    separate   every level: its own hidden(x) → Dense(nodes)    Carranza-Rojas et al. 2018, "FCM"
    multitask  one hidden(x) → every level: Dense(nodes)        there, "MCM"
    taxonnet   f = hidden(x); from coarse to fine:              there, "TaxonNet"
                 z1 = Dense(nodes)(ReLU(Dense(s)(f)))
                 zl = Dense(nodes)(ReLU(Dense(s)([z(l-1), f])))

    set        every image of a product: x → scale → (standard) → Dense(h1) → batch normalization → ReLU;
               maximum over the images → dropout → Dense(C)          reads all images of a product together

    head/  head.json  head.weights.h5  taxonomy.csv  history.csv  manifest.json

Formulas and numbers of parameters: docs/heads.md. There is one batch normalization, on the first hidden
layer's linear output: more of them do not help (S1). The scale is one number, 1 / RMS of the training
bottlenecks: without it, outputs as small as those of a backbone with random weights (1e-3) vanish in the
epsilon of the batch normalization and nothing is learnt. Parts in brackets depend on the recipe; standard is
(x - mean) / sqrt(variance + 0.001), number by number.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.engines.backbones import save_weights
from features.errors import ShelfmarkError
from models.heads import hierarchy
from models.heads.predicting import (
    Layers,
    Weights,
    dense,
    leaf_log_probabilities,
    normalized,
    relu,
    run,
    scaled,
)
from models.heads.tensors import Tensor
from models.rows import Rows

if TYPE_CHECKING:
    import keras

WEIGHTS, STRUCTURE = "head.weights.h5", "head.json"
SET_FILES = ("set.json", "set.weights.h5")  # structure and weights of the set head, where there is one
STANDARD = "standard"  # the layer that standardizes
FLAT, SEPARATE, MULTITASK, TAXONNET, SET = ARCHITECTURES = (
    "flat", "separate", "multitask", "taxonnet", "set",
)  # fmt: skip
ONE_OUTPUT = (FLAT, SET)  # architectures without a tree


@dataclass(frozen=True)
class HeadShape:
    """head.json: what is needed to build a head. An older file lacks fields: it means the defaults."""

    width: int  # d, numbers in a bottleneck
    categories: int  # C
    hidden: tuple[int, int]  # neurons
    dropout: float  # share of the first hidden layer
    scale: float  # bottlenecks are multiplied by it
    fingerprint: str  # of the backbone whose bottlenecks it reads
    kind: str = FLAT  # the architecture, one of ARCHITECTURES
    parents: tuple[tuple[int, ...], ...] = ()  # Taxonomy.parents, where the tree is part of the head
    selector: int = 0  # s, neurons of each of TaxonNet's feature selectors
    images: int = 1  # of a set head: images of a product, side by side in one row of `images` · d numbers
    standardized: bool = False  # each number of a bottleneck by its own mean and deviation in training
    hierarchical: bool = False  # flat: the categories' softmax is a product of softmaxes over siblings
    second_dropout: float = 0.0  # share of the second hidden layer
    views: tuple[str, ...] = ("whole",)  # of each image, from which it predicts; see features/views.py
    averaged: bool = False  # their mean is one row; else each view is a row of its image
    trained: tuple[str, ...] = ()  # views of each image on which it was trained; (): `views`

    def __post_init__(self) -> None:
        if self.kind not in ARCHITECTURES:
            raise ShelfmarkError(
                f"a head of kind {self.kind!r}; expected {', '.join(ARCHITECTURES)}; correct head.kind"
            )
        if self.hierarchical and self.kind != FLAT:
            raise ShelfmarkError(
                f"hierarchical softmax in a {self.kind} head; expected a flat one; set head.kind = flat"
            )
        tree = self.hierarchical or self.kind not in ONE_OUTPUT
        if tree and (not self.parents or len(self.parents[-1]) != self.categories):
            raise ShelfmarkError(
                f"a {self.kind} head of {self.categories} categories without their tree; "
                "expected the parents of every level's nodes; train again"
            )

    def to_json(self) -> str:
        """Returns the text of head.json."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "HeadShape":
        """Reads what `to_json` returned; a field that an older release lacks has its default."""
        values = json.loads(text)
        mirrored = values.pop("flip", False)  # of older releases
        views = values.get("views", ("whole", "flip") if mirrored else ("whole",))
        parents = tuple(map(tuple, values.get("parents", ())))
        names = {"views": tuple(views), "trained": tuple(values.get("trained", ()))}
        return cls(**values | names | {"hidden": tuple(values["hidden"]), "parents": parents})

    @property
    def trained_views(self) -> tuple[str, ...]:
        """The views of each image on which it was trained."""
        return self.trained or self.views

    @property
    def rows_of_image(self) -> int:
        """Bottlenecks of each image that it predicts from."""
        return 1 if self.averaged else len(self.views)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Nodes of each level that the head has an output for, from coarse to fine."""
        return (self.categories,) if self.kind in ONE_OUTPUT else tuple(len(level) for level in self.parents)


def build_head(shape: HeadShape) -> "keras.Model":
    """Builds a head, (n, d) bottlenecks → what `head_layers` returns, with new weights from Keras' seed."""
    import keras

    bottlenecks = keras.Input((shape.images * shape.width,), dtype="float32", name="bottlenecks")
    return keras.Model(bottlenecks, head_layers(bottlenecks, shape), name="head")


def head_layers(x: Tensor, shape: HeadShape) -> Tensor | list[Tensor]:
    """The layers of a head on top of a trunk.

    Args:
        x: (n, d) Keras tensor: bottlenecks, or the pooled output of a backbone that is tuned.
        shape: of the head.

    Returns:
        Flat and set: (n, C) logits. Other architectures, a list: (n, nodes) logits of each level, coarse to
        fine; the nodes of the finest are the categories. Logits of a hierarchical softmax are
        log-probabilities.
    """
    from keras import layers

    if shape.kind == SET:
        x = layers.Reshape((shape.images, shape.width), name="images")(x)
    x = layers.Rescaling(shape.scale, name="scale")(x)
    if shape.standardized:  # a frozen normalization with the statistics of the training bottlenecks
        x = layers.BatchNormalization(center=False, scale=False, trainable=False, name=STANDARD)(x)
    if shape.kind == SET:
        return _set_layers(x, shape)
    levels = list(enumerate(shape.level_sizes, start=1))
    if shape.kind == SEPARATE:
        return [_logits(_hidden(x, shape, f"_{level}"), nodes, level) for level, nodes in levels]
    x = _hidden(x, shape)
    if shape.kind == MULTITASK:
        return [_logits(x, nodes, level) for level, nodes in levels]
    if shape.kind == TAXONNET:
        return _top_down(x, shape)
    if shape.hierarchical:
        scores = [
            layers.Dense(len(nodes), name=f"scores_{level}")(x)
            for level, nodes in enumerate(shape.parents, start=1)
        ]
        return hierarchy.leaf_log_probabilities(scores, shape.parents)
    return layers.Dense(shape.categories, name="logits")(x)


def _hidden(x: Tensor, shape: HeadShape, suffix: str = "") -> Tensor:
    """The two hidden layers; `suffix` ends their names."""
    from keras import layers

    x = layers.Dense(shape.hidden[0], name=f"hidden1{suffix}")(x)
    x = layers.BatchNormalization(name=f"normalization{suffix}")(x)
    x = layers.ReLU(name=f"relu1{suffix}")(x)
    x = layers.Dropout(shape.dropout, name=f"dropout{suffix}")(x)
    x = layers.Dense(shape.hidden[1], activation="relu", name=f"hidden2{suffix}")(x)
    return layers.Dropout(shape.second_dropout, name=f"dropout2{suffix}")(x) if shape.second_dropout else x


def _logits(x: Tensor, nodes: int, level: int) -> Tensor:
    from keras import layers

    return layers.Dense(nodes, name=f"logits_{level}")(x)


def _top_down(x: Tensor, shape: HeadShape) -> list[Tensor]:
    """(n, nodes) logits of each level, which reads the hidden features and the logits of the level above."""
    from keras import layers

    outputs: list[Tensor] = []
    for level, nodes in enumerate(shape.level_sizes, start=1):
        read = layers.Concatenate(name=f"above_{level}")([outputs[-1], x]) if outputs else x
        selected = layers.Dense(shape.selector, activation="relu", name=f"selector_{level}")(read)
        outputs.append(_logits(selected, nodes, level))
    return outputs


def _set_layers(x: Tensor, shape: HeadShape) -> Tensor:
    """(n, C) logits from (n, images, d)."""
    from keras import layers

    x = layers.Dense(shape.hidden[0], name="hidden1")(x)
    x = layers.BatchNormalization(name="normalization")(x)  # without it training diverges on some backbones
    x = layers.ReLU(name="relu1")(x)
    x = layers.GlobalMaxPooling1D(name="largest")(x)
    x = layers.Dropout(shape.dropout, name="dropout")(x)
    return layers.Dense(shape.categories, name="logits")(x)


class Head:
    """A head with its weights; a `Classifier` of models/decisions/predictions.py, computed with NumPy."""

    def __init__(self, shape: HeadShape, weights: Weights) -> None:
        self.shape, self.weights = shape, weights

    @classmethod
    def of(cls, shape: HeadShape, model: "keras.Model") -> "Head":
        """Returns the head with the weights that a model of `build_head` has now."""
        head = cls(shape, {layer.name: layer.get_weights() for layer in model.layers})
        head.__dict__["model"] = model
        return head

    @cached_property
    def model(self) -> "keras.Model":
        """The head as a Keras model, for what trains it or builds on it, also within a tf.function."""
        with _outside_graphs():
            model = build_head(self.shape)
            for layer in model.layers:
                layer.set_weights(self.weights.get(layer.name, []))
        return model

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        """(n, d) float16 or float32 → (n, nodes) float32 logits of each level of the head, coarse to fine."""
        return self._run(self._outputs, bottlenecks, self.shape.level_sizes)

    def hidden(self, bottlenecks: np.ndarray) -> np.ndarray:
        """(n, d) float16 or float32 → (n, h) float32, what the last hidden layer gives.

        Of the categories where every level has its own; of a set head what the largest over the images is.
        """
        width = self.shape.hidden[0 if self.shape.kind == SET else 1]
        return self._run(lambda x: [self._last_hidden(self._scaled(x))], bottlenecks, [width])[0]

    def logits(self, bottlenecks: np.ndarray) -> np.ndarray:
        """(n, d) float16 or float32 → (n, C) float32, of the categories."""
        return self.outputs(bottlenecks)[-1]

    def save(self, folder: Path) -> None:
        """Writes head.json and head.weights.h5, or set.json and set.weights.h5 of a set head."""
        structure, weights = SET_FILES if self.shape.kind == SET else (STRUCTURE, WEIGHTS)
        (folder / structure).write_text(self.shape.to_json())
        save_weights(self.model, folder / weights)

    def _run(self, layers: Layers, bottlenecks: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
        return run(layers, bottlenecks, widths)

    @cached_property
    def _exact(self) -> Weights:
        """The weights in float64."""
        return {name: [one.astype(np.float64) for one in own] for name, own in self.weights.items()}

    def _outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """`head_layers` of one piece, (n, images · d) float64, which is changed."""
        shape, x = self.shape, self._scaled(x)
        levels = list(enumerate(shape.level_sizes, start=1))
        if shape.kind == SEPARATE:
            return [self._dense(self._hidden(x, f"_{level}"), f"logits_{level}") for level, _ in levels]
        x = self._last_hidden(x)
        if shape.kind == MULTITASK:
            return [self._dense(x, f"logits_{level}") for level, _ in levels]
        if shape.kind == TAXONNET:
            return self._top_down(x)
        if shape.hierarchical:
            scores = [self._dense(x, f"scores_{level}") for level in range(1, len(shape.parents) + 1)]
            return [leaf_log_probabilities(scores, shape.parents)]
        return [self._dense(x, "logits")]

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        if self.shape.kind == SET:
            x = x.reshape(-1, self.shape.images, self.shape.width)
        return scaled(x, self.shape.scale, self._exact[STANDARD] if self.shape.standardized else None)

    def _last_hidden(self, x: np.ndarray) -> np.ndarray:
        """What the last hidden layer gives for scaled bottlenecks."""
        if self.shape.kind == SET:
            images = relu(normalized(self._dense(x, "hidden1"), self._exact["normalization"]))
            largest: np.ndarray = images.max(axis=1)
            return largest
        return self._hidden(x, f"_{len(self.shape.level_sizes)}" if self.shape.kind == SEPARATE else "")

    def _hidden(self, x: np.ndarray, suffix: str) -> np.ndarray:
        first = normalized(self._dense(x, f"hidden1{suffix}"), self._exact[f"normalization{suffix}"])
        return relu(self._dense(relu(first), f"hidden2{suffix}"))

    def _top_down(self, x: np.ndarray) -> list[np.ndarray]:
        outputs: list[np.ndarray] = []
        for level in range(1, len(self.shape.level_sizes) + 1):
            read = np.concatenate([outputs[-1], x], axis=1) if outputs else x
            selected = relu(self._dense(read, f"selector_{level}"))
            outputs.append(self._dense(selected, f"logits_{level}"))
        return outputs

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return dense(x, self._exact[name])


def _outside_graphs() -> AbstractContextManager[None]:
    """Within a graph of TensorFlow `set_weights` adds an operation to it and sets nothing."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    found: AbstractContextManager[None] = tf.init_scope()
    return found


class ProductRows:
    """Rows of products: the bottlenecks of a product's images side by side, as a set head reads them.

    For a product with fewer images than the head reads, the first one is repeated, which does not change the
    maximum over its images; of a product with more images, the first ones are read.
    """

    def __init__(self, rows: Rows, bounds: np.ndarray, images: int) -> None:
        """Takes (n, d) bottlenecks, products together, their (p + 1,) bounds, and images per product."""
        position = np.arange(images)
        self._bottlenecks = rows
        self._rows = bounds[:-1, None] + np.where(position < np.diff(bounds)[:, None], position, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, products: np.ndarray | slice) -> np.ndarray:
        """(m, images · d) float16."""
        rows = self._rows[products]
        taken = self._bottlenecks[rows.ravel()]
        return taken.reshape(len(rows), rows.shape[1] * taken.shape[1])


def set_logits(head: Head, bottlenecks: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(n, d) bottlenecks of products, (p + 1,) bounds → (p, C) float32 logits of a set head."""
    return head.logits(ProductRows(bottlenecks, bounds, head.shape.images)[:])


def load_head(folder: Path, files: tuple[str, str] = (STRUCTURE, WEIGHTS)) -> Head:
    """Reads a head.

    Args:
        folder: with its files.
        files: structure and weights; SET_FILES for the set head.

    Raises:
        ShelfmarkError: a file cannot be read.
    """
    structure, weights = files
    try:
        shape = HeadShape.from_json((folder / structure).read_text())
    except (ValueError, TypeError, KeyError) as error:
        raise ShelfmarkError(
            f"{folder / structure}: cannot be read ({error}); expected the structure of a head; "
            f"remove {folder.name}/ and run again"
        ) from error
    try:
        head = Head(shape, _read_weights(folder / weights))
        head.outputs(np.zeros((1, shape.images * shape.width), np.float32))  # fails if weights do not fit
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ShelfmarkError(
            f"{folder / weights}: cannot be read ({reason}); expected a head's weights; "
            f"remove {folder.name}/ and run again"
        ) from error
    return head


def _read_weights(file: Path) -> Weights:
    """Reads a file of Keras' `save_weights`: layers/<number of its class>/vars, with the layer's name."""
    import h5py

    with h5py.File(file) as content:
        layers = [layer["vars"] for layer in content["layers"].values()]
        return {
            layer.attrs["name"]: [layer[str(number)][()] for number in range(len(layer))] for layer in layers
        }
