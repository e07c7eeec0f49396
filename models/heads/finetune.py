"""Fine-tuning: the last layers of a backbone are trained together with the head on top, on augmented photos.

    pixels (n, size, size, 3) uint8 → augment → trunk: frozen layers → tuned layers → (n, d) → head → losses

Batch normalizations of frozen layers run in inference mode and do not change; those of tuned layers use the
batch's statistics and update their moving averages. A moving average of all weights is what is evaluated and
kept. Reasons and figures: docs/finetuning.md.

A checkpoint has everything that an epoch starts from, and an epoch's random numbers depend on (seed, epoch)
only: a fine-tuning that was killed continues to the same backbone, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import keras
import numpy as np
from keras import ops

from features.engines.backbones import KerasBackbone
from features.engines.tensorflow import in_precision
from features.errors import ShelfmarkError
from models.heads.architectures import Head
from models.heads.checkpoints import CHECKPOINT, Epochs
from models.heads.losses import Loss
from models.heads.tensors import Tensor
from models.heads.training import Recipe, mixes, objective_of, optimizer_of, order_of
from models.heads.training_steps import Evaluator, Trainer, evaluator, trainer

# Momentum of the batch normalizations' statistics: they follow within ten steps. At Keras' 0.99 a third of
# them is still the old network's after a tuning of 100 steps.
STATISTICS = 0.9
STRETCH = 4 / 3  # between the longest and the shortest side of a crop, at most (Szegedy et al., CVPR 2015)


@dataclass(frozen=True)
class Photos:
    """Photos to train on or to select on, read again in every epoch."""

    # Numbers of photos (m,) int, photos in a batch → (batch, size, size, 3) uint8 in that order; a last batch
    # of fewer is padded.
    read: Callable[[np.ndarray, int], Iterator[np.ndarray]]
    labels: np.ndarray  # (n,) int; (n, levels) for level heads

    def batches(self, photos: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels (k, size, size, 3) uint8 and labels of these photos, in order; k up to `batch`."""
        for number, pixels in enumerate(self.read(photos, batch)):
            chosen = photos[number * batch : (number + 1) * batch]
            yield pixels[: len(chosen)], self.labels[chosen].astype(np.int32)


class MovingAverage:
    """The moving average of a model's weights over its steps (Polyak, Juditsky, SIAM J. Control Optim. 1992).

    w̄ ← momentum · w̄ + (1 - momentum) · w, of every weight and statistic; frozen ones keep their bits.
    """

    def __init__(self, model: keras.Model, momentum: float) -> None:
        self.weights, self.momentum = model.weights, momentum
        self.others = [
            keras.Variable(ops.convert_to_numpy(weight), trainable=False) for weight in self.weights
        ]

    def follow(self) -> None:
        """Updates the average after a step."""
        for weight, average in zip(self.weights, self.others, strict=True):
            average.assign(weight + self.momentum * (average - weight))

    def swap(self) -> None:
        """Exchanges the model's weights and their averages."""
        for weight, other in zip(self.weights, self.others, strict=True):
            own = ops.convert_to_numpy(weight).copy()
            weight.assign(ops.convert_to_numpy(other))
            other.assign(own)


@dataclass(frozen=True)
class Augmentation:
    """How a training photo is changed, differently in every epoch."""

    area: float = 1.0  # least share of it that a crop keeps; the crop is zoomed to the full size; 1: no crops
    flip: bool = False  # half of them are mirrored, left to right
    colour: float = 0.0  # contrast and the three colours are changed independently by up to this share


@dataclass(frozen=True)
class Tuning:
    """What fine-tuning needs beside the recipe of its steps."""

    frozen_share: float  # of the backbone's layers, 0 to 1; 0 tunes all of them
    augmentation: Augmentation  # of the training photos
    # Momentum of the moving average of the weights; 0: no average. With an average, the latest epoch within a
    # standard error of the best on FIT is kept, else the best.
    average: float = 0.0


def frozen_count(share: float, layers: int) -> int:
    """floor(share · layers): how many of a backbone's first Keras layers are frozen (S1).

    Computed with the share as it is written: 0.29 · 100 is 28.999999999999996 in floats.

    >>> frozen_count(0.4, 312), frozen_count(0.29, 100), frozen_count(0.0, 312)
    (124, 29, 0)
    """
    return math.floor(Fraction(repr(share)) * layers)


def tune_backbone(
    backbone: KerasBackbone,
    head: Head,
    train: Photos,
    fit: Photos | None,
    recipe: Recipe,
    tuning: Tuning,
    loss: Loss | None = None,
    work: Path | None = None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Tunes a backbone.

    Args:
        backbone: to start from. Its own layers are trained, so it is changed.
        head: trained on the frozen bottlenecks, and changed, too: the gradients of one with random weights
            would destroy the trunk before the head is trained.
        train: trained on.
        fit: selects the epoch as in `fit_head`; None: the last one is kept.
        recipe: rates and limits.
        tuning: which layers, augmentation and averaging.
        loss: as for `fit_head`.
        work: directory of the checkpoint, from which an interrupted tuning continues; None: no checkpoints.

    Returns:
        The tuned network, without preprocessing, and its history: name → one number per epoch.

    Raises:
        ShelfmarkError: nothing is left to tune, or the tuning diverges.
    """
    keras.utils.set_random_seed(recipe.seed)
    network = _partly_frozen(backbone, tuning.frozen_share)
    trunk = in_precision(backbone.model, "bf16" if recipe.bfloat16 else "fp32")
    model = on_top(head, trunk)
    optimizer = optimizer_of(recipe, len(train.labels))
    optimizer.build(model.trainable_variables)
    averaged = MovingAverage(model, tuning.average)
    file = work / CHECKPOINT if work else None
    epochs = Epochs(model, optimizer, file, annealed=tuning.average > 0, others=averaged.others)
    train_on = trainer(model, optimizer, objective_of(recipe, train.labels, model, loss), recipe.mixup > 0)
    evaluate = evaluator(model)
    while not epochs.finished(recipe.epochs, recipe.patience if fit else None):
        totals = _tune_an_epoch(train_on, train, averaged, recipe, tuning.augmentation, epochs.done)
        epochs.end_epoch(totals, _evaluation(evaluate, fit, recipe.batch) if fit else None)
    epochs.save()
    if epochs.best:
        model.set_weights(epochs.best)
    # Into the backbone's own layers: Keras numbers the input of the clone, and a file of its weights has that
    # number in it.
    backbone.model.set_weights(trunk.get_weights())
    return network, epochs.history


def _partly_frozen(backbone: KerasBackbone, share: float) -> keras.Model:
    """The backbone's network, its first layers frozen.

    Raises:
        ShelfmarkError: nothing is left to tune.
    """
    network = backbone.network
    frozen = freeze(network, share)
    if not network.trainable_weights:
        raise ShelfmarkError(
            f"finetune.frozen_share = {share}: the first {frozen} of {len(network.layers)} layers are "
            "frozen, and the others have no weights; expected some to tune; lower it"
        )
    return network


def _tune_an_epoch(
    train_on: Trainer,
    photos: Photos,
    averaged: MovingAverage,
    recipe: Recipe,
    augmentation: Augmentation,
    epoch: int,
) -> list[Tensor]:
    """Trains one epoch, numbered from 0, and returns the totals of its steps.

    Before and after it, and so in a checkpoint, the model has the averages of its weights.
    """
    averaged.swap()
    rng, totals = np.random.default_rng([recipe.seed, epoch]), []
    order = rng.permutation(order_of(rng, photos.labels, recipe))
    for pixels, labels in photos.batches(order, recipe.batch):
        mix = mixes(rng, 1, recipe.mixup)
        rows = augment(pixels, rng, augmentation)
        totals.append(train_on(*_tensors(rows, labels), _one_batch(rows), mix))
        train_on.write_back()
        averaged.follow()
    averaged.swap()
    return totals


def on_top(head: Head, trunk: keras.Model) -> keras.Model:
    """The model that is tuned: (n, size, size, 3) pixels → trunk → the head's outputs."""
    model = keras.Model(trunk.input, head.model(trunk.output))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = STATISTICS
    return model


def freeze(network: keras.Model, share: float) -> int:
    """Freezes a network's first layers, makes the others trainable, and returns how many are frozen."""
    count = frozen_count(share, len(network.layers))
    network.trainable = True
    for number, layer in enumerate(network.layers):
        layer.trainable = number >= count
    return count


def augment(pixels: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Crops, zooms and mirrors each photo in one bilinear sampling, then changes its colours.

    Args:
        pixels: (n, size, size, 3) uint8.
        rng: draws every random number.
        how: ranges.

    Returns:
        (n, size, size, 3) uint8.
    """
    import tensorflow as tf

    count, stretch = len(pixels), np.log(STRETCH) / 2 if how.area < 1 else 0.0
    side = np.sqrt(rng.uniform(how.area, 1, count))
    tall = np.exp(rng.uniform(-stretch, stretch, count))
    height, width = np.minimum(side * tall, 1), np.minimum(side / tall, 1)
    top, left = rng.random(count) * (1 - height), rng.random(count) * (1 - width)
    boxes = np.stack([top, left, top + height, left + width], axis=1)
    mirrored = (rng.random(count) < 0.5) & how.flip
    boxes[mirrored] = boxes[mirrored][:, [0, 3, 2, 1]]
    contrast, gain = (
        rng.uniform(1 - how.colour, 1 + how.colour, (count, 1, 1, colours)).astype(np.float32)
        for colours in (1, 3)
    )
    with tf.device("cpu"):
        photos = tf.image.crop_and_resize(
            pixels, boxes.astype(np.float32), np.arange(count, dtype=np.int32), pixels.shape[1:3]
        )
        if how.colour:
            mean = tf.reduce_mean(photos, axis=(1, 2, 3), keepdims=True)
            photos = ((photos - mean) * contrast + mean) * gain
        changed: np.ndarray = tf.cast(tf.round(tf.clip_by_value(photos, 0, 255)), tf.uint8).numpy()
    return changed


def _tensors(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return ops.convert_to_tensor(pixels), ops.convert_to_tensor(labels)


def _one_batch(rows: np.ndarray) -> np.ndarray:
    """(1, n) int32: one batch of all the rows."""
    return np.arange(len(rows), dtype=np.int32)[None]


def _evaluation(evaluate: Evaluator, fit: Photos, batch: int) -> np.ndarray:
    """(2, n) float64: loss of each photo, and 1 where it is correct."""
    parts = [
        np.asarray(evaluate(*_tensors(pixels, labels), _one_batch(pixels)[0]), np.float64)
        for pixels, labels in fit.batches(np.arange(len(fit.labels)), batch)
    ]
    return np.concatenate(parts, axis=1)
