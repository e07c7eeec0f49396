"""The head: hidden layers over bottlenecks, softmax over the categories, or over the nodes of every level.

    hidden     x (d) → scale → Dense(h1) → batch normalization → ReLU → dropout → Dense(h2) → ReLU

    flat       hidden(x) → Dense(C) logits                      Li et al., APIA 2018, "2NN"
    separate   every level: its own hidden(x) → Dense(nodes)    Carranza-Rojas et al. 2018, "FCM"
    multitask  one hidden(x) → every level: Dense(nodes)        there, "MCM"
    taxonnet   f = hidden(x); from coarse to fine:              there, "TaxonNet"
                 z1 = Dense(nodes)(ReLU(Dense(s)(f)))
                 zl = Dense(nodes)(ReLU(Dense(s)([z(l-1), f])))

    head/  head.json  head.weights.h5  taxonomy.csv  history.csv  manifest.json

Formulas and numbers of parameters: docs/heads.md. One batch normalization only, on the first hidden layer's
linear output: more of them does not help (S1). The scale is one number, 1 / RMS of the training bottlenecks:
without it a backbone with small outputs (random weights: 1e-3) drowns in the epsilon of the batch
normalization and nothing is learnt.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.backbones import save_weights
from features.errors import ShelfmarkError
from models.hierarchy import leaf_log_probabilities

if TYPE_CHECKING:
    import keras

WEIGHTS, STRUCTURE = "head.weights.h5", "head.json"
PREDICT_BATCH = 256  # images; one fixed size, so that every image meets the same kernels
FLAT, SEPARATE, MULTITASK, TAXONNET = KINDS = ("flat", "separate", "multitask", "taxonnet")


@dataclass(frozen=True)
class HeadShape:
    """What is needed to build a head. The defaults are what a head.json without these fields means."""

    width: int  # d, numbers in a bottleneck
    categories: int  # C
    hidden: tuple[int, int]  # neurons
    dropout: float  # share of the first hidden layer
    scale: float  # bottlenecks are multiplied by it
    fingerprint: str  # of the backbone whose bottlenecks it reads
    kind: str = FLAT  # one of KINDS
    parents: tuple[tuple[int, ...], ...] = ()  # Taxonomy.parents, for what is built after the tree
    selector: int = 0  # s, neurons of each of TaxonNet's feature selectors
    hierarchical: bool = False  # flat: the categories' softmax is a product of softmaxes over siblings

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ShelfmarkError(f"a head of kind {self.kind!r}; expected {', '.join(KINDS)}; mend head.kind")
        if self.hierarchical and self.kind != FLAT:
            raise ShelfmarkError(f"hierarchical softmax in a {self.kind} head; expected head.kind = flat")
        tree = self.hierarchical or self.kind != FLAT
        if tree and (not self.parents or len(self.parents[-1]) != self.categories):
            raise ShelfmarkError(
                f"a {self.kind} head of {self.categories} categories without their tree; "
                "expected the parents of every level's nodes; train again"
            )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Nodes of each level that the head has an output for, from coarse to fine."""
        return (self.categories,) if self.kind == FLAT else tuple(len(level) for level in self.parents)


def build_head(shape: HeadShape) -> "keras.Model":
    """(n, d) bottlenecks → what `head_layers` gives, with fresh weights from Keras' seed."""
    import keras

    bottlenecks = keras.Input((shape.width,), dtype="float32", name="bottlenecks")
    return keras.Model(bottlenecks, head_layers(bottlenecks, shape), name="head")


def head_layers(x: Any, shape: HeadShape) -> Any:
    """The head on top of a trunk.

    Args:
        x: (n, d) Keras tensor: bottlenecks, or the pooled output of a backbone that is tuned.
        shape: of the head.

    Returns:
        Kind flat: (n, C) logits. Else a list of logits, (n, nodes) for each level from coarse to fine; the
        nodes of the finest are the categories. Logits of a hierarchical softmax are log-probabilities.
    """
    from keras import layers

    x = layers.Rescaling(shape.scale, name="scale")(x)
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
        return leaf_log_probabilities(scores, shape.parents)
    return layers.Dense(shape.categories, name="logits")(x)


def _hidden(x: Any, shape: HeadShape, of: str = "") -> Any:
    """The two hidden layers; `of` ends their names."""
    from keras import layers

    x = layers.Dense(shape.hidden[0], name=f"hidden1{of}")(x)
    x = layers.BatchNormalization(name=f"normalization{of}")(x)
    x = layers.ReLU(name=f"relu1{of}")(x)
    x = layers.Dropout(shape.dropout, name=f"dropout{of}")(x)
    return layers.Dense(shape.hidden[1], activation="relu", name=f"hidden2{of}")(x)


def _logits(x: Any, nodes: int, level: int) -> Any:
    from keras import layers

    return layers.Dense(nodes, name=f"logits_{level}")(x)


def _top_down(x: Any, shape: HeadShape) -> list[Any]:
    """Each level selects from the trunk features and the logits of the level above."""
    from keras import layers

    outputs: list[Any] = []
    for level, nodes in enumerate(shape.level_sizes, start=1):
        read = layers.Concatenate(name=f"above_{level}")([outputs[-1], x]) if outputs else x
        selected = layers.Dense(shape.selector, activation="relu", name=f"selector_{level}")(read)
        outputs.append(_logits(selected, nodes, level))
    return outputs


class Head:
    """A trained head."""

    def __init__(self, shape: HeadShape, model: "keras.Model") -> None:
        self.shape, self.model = shape, model

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        """(n, d) float16 or float32 → (n, nodes) float32 logits of each level of the head, coarse to fine."""
        outs = [np.empty((len(bottlenecks), nodes), np.float32) for nodes in self.shape.level_sizes]
        for start in range(0, len(bottlenecks), PREDICT_BATCH):
            piece = np.zeros((PREDICT_BATCH, self.shape.width), np.float32)
            count = len(bottlenecks[start : start + PREDICT_BATCH])
            piece[:count] = bottlenecks[start : start + PREDICT_BATCH]
            told = self.model.predict_on_batch(piece)
            for out, level in zip(outs, told if isinstance(told, list) else [told], strict=True):
                out[start : start + count] = np.asarray(level)[:count]
        return outs

    def logits(self, bottlenecks: np.ndarray) -> np.ndarray:
        """(n, d) float16 or float32 → (n, C) float32, of the categories."""
        return self.outputs(bottlenecks)[-1]

    def save(self, folder: Path) -> None:
        """Writes head.json and head.weights.h5."""
        (folder / STRUCTURE).write_text(json.dumps(asdict(self.shape)))
        save_weights(self.model, folder / WEIGHTS)


def load_head(folder: Path) -> Head:
    """Reads a head back."""
    told = json.loads((folder / STRUCTURE).read_text())
    parents = tuple(map(tuple, told.get("parents", ())))
    shape = HeadShape(**told | {"hidden": tuple(told["hidden"]), "parents": parents})
    model = build_head(shape)
    try:
        model.load_weights(folder / WEIGHTS)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ShelfmarkError(
            f"{folder / WEIGHTS}: cannot be read ({reason}); expected a head's weights; "
            f"remove {folder.name}/ and run again"
        ) from error
    return Head(shape, model)
