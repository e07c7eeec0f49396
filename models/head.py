"""The head: two hidden layers over bottlenecks, softmax over the categories (Li et al., APIA 2018, "2NN").

    bottleneck (d) → scale → Dense(h1) → batch normalization → ReLU → dropout
                   → Dense(h2) → ReLU → Dense(C) logits

    head/  head.json  head.weights.h5  taxonomy.csv  history.csv  manifest.json

One batch normalization only, on the first hidden layer's linear output: more of them does not help (S1). The
scale is one number, 1 / RMS of the training bottlenecks: without it a backbone with small outputs (random
weights: 1e-3) drowns in the epsilon of the batch normalization and nothing is learnt.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.backbones import save_weights
from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import keras

WEIGHTS, STRUCTURE = "head.weights.h5", "head.json"
PREDICT_BATCH = 256  # images; one fixed size, so that every image meets the same kernels


@dataclass(frozen=True)
class HeadShape:
    """What is needed to build a head."""

    width: int  # d, numbers in a bottleneck
    categories: int  # C
    hidden: tuple[int, int]  # neurons
    dropout: float  # share of the first hidden layer
    scale: float  # bottlenecks are multiplied by it
    fingerprint: str  # of the backbone whose bottlenecks it reads


def build_head(shape: HeadShape) -> "keras.Model":
    """(n, d) bottlenecks → (n, C) logits, with fresh weights from Keras' seed."""
    import keras

    layers = keras.layers
    bottlenecks = keras.Input((shape.width,), dtype="float32", name="bottlenecks")
    x = layers.Rescaling(shape.scale, name="scale")(bottlenecks)
    x = layers.Dense(shape.hidden[0], name="hidden1")(x)
    x = layers.BatchNormalization(name="normalization")(x)
    x = layers.ReLU(name="relu1")(x)
    x = layers.Dropout(shape.dropout, name="dropout")(x)
    x = layers.Dense(shape.hidden[1], activation="relu", name="hidden2")(x)
    return keras.Model(bottlenecks, layers.Dense(shape.categories, name="logits")(x), name="head")


class Head:
    """A trained head."""

    def __init__(self, shape: HeadShape, model: "keras.Model") -> None:
        self.shape, self.model = shape, model

    def logits(self, bottlenecks: np.ndarray) -> np.ndarray:
        """(n, d) float16 or float32 → (n, C) float32."""
        out = np.empty((len(bottlenecks), self.shape.categories), np.float32)
        for start in range(0, len(bottlenecks), PREDICT_BATCH):
            piece = np.zeros((PREDICT_BATCH, self.shape.width), np.float32)
            count = len(bottlenecks[start : start + PREDICT_BATCH])
            piece[:count] = bottlenecks[start : start + PREDICT_BATCH]
            out[start : start + count] = np.asarray(self.model.predict_on_batch(piece))[:count]
        return out

    def save(self, folder: Path) -> None:
        """Writes head.json and head.weights.h5."""
        (folder / STRUCTURE).write_text(json.dumps(asdict(self.shape), indent=1))
        save_weights(self.model, folder / WEIGHTS)


def load_head(folder: Path) -> Head:
    """Reads a head back."""
    told = json.loads((folder / STRUCTURE).read_text())
    shape = HeadShape(**told | {"hidden": tuple(told["hidden"])})
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
