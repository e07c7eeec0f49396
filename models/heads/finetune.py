"""Fine-tuning: the last layers of a backbone are trained together with the head on top, on augmented photos.

    photos (n, px, px, 3) uint8 → augment → mix → (n, size, size, 3) uint8      in a thread, a batch ahead
    → trunk: frozen layers → tuned layers → (n, d) → head → losses

Photos may be tuned on at another size than the backbone's own, at which FIT is evaluated. Batch
normalizations of frozen layers run in inference mode and do not change; those of tuned layers use the batch's
statistics and update their moving averages. Reasons and figures: docs/finetuning.md.

A checkpoint has everything that an epoch starts from, and an epoch's random numbers depend on (seed, epoch)
only: a fine-tuning that was killed continues to the same backbone, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
from keras import ops

from features.engines.backbones import KerasBackbone, with_preprocessing
from features.engines.tensorflow import in_precision
from features.errors import ShelfmarkError
from models.heads.architectures import Head
from models.heads.checkpoints import CHECKPOINT, Epochs
from models.heads.losses import Loss
from models.heads.tensors import Tensor
from models.heads.training import Recipe, objective_of, optimizer_of, order_of
from models.heads.training_steps import Evaluator, Trainer, evaluator, trainer

# Momentum of the batch normalizations' statistics: they follow within ten steps. At Keras' 0.99 a third of
# them is still the old network's after a tuning of 100 steps.
STATISTICS = 0.9
SMALLER = 5 / 7  # px of the photos that a backbone is tuned on, for each px of its own
STRETCH = 4 / 3  # between the longest and the shortest side of a crop, at most (Szegedy et al., CVPR 2015)


@dataclass(frozen=True)
class Photos:
    """Photos to train on or to select on, read again in every epoch."""

    # Numbers of photos (m,) int, photos in a batch → (batch, px, px, 3) uint8 in that order; a last batch
    # of fewer is padded.
    read: Callable[[np.ndarray, int], Iterator[np.ndarray]]
    labels: np.ndarray  # (n,) int; (n, levels) for level heads

    def batches(self, photos: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels (k, px, px, 3) uint8 and labels of these photos, in order; k up to `batch`."""
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
    mixup: float = 0.0  # alpha of the Beta distribution of mixup's weight; 0: none
    cutmix: float = 0.0  # likewise of CutMix's; with both, each batch has one of them


@dataclass(frozen=True)
class Tuning:
    """What fine-tuning needs beside the recipe of its steps."""

    frozen_share: float  # of the backbone's layers, 0 to 1; 0 tunes all of them
    augmentation: Augmentation  # of the training photos
    size: int  # px of the training photos
    # Momentum of the moving average of the weights; 0: no average. With an average, or a rate that falls to
    # 0, the latest epoch within a standard error of the best on FIT is kept, else the best.
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
    progress: Callable[[int], None] | None = None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Tunes a backbone.

    Args:
        backbone: to start from. Its own layers are trained, so it is changed.
        head: trained on the frozen bottlenecks, and changed, too: the gradients of one with random weights
            would destroy the trunk before the head is trained.
        train: trained on; of any size.
        fit: of the backbone's own size; selects the epoch as in `fit_head`; None: the last one is kept.
        recipe: rates and limits.
        tuning: which layers, augmentation, size and averaging.
        loss: as for `fit_head`.
        work: directory of the checkpoint, from which an interrupted tuning continues; None: no checkpoints.
        progress: called with the photos trained on so far, summed over the epochs.

    Returns:
        The tuned network, without preprocessing, and its history: name → one number per epoch.

    Raises:
        ShelfmarkError: nothing is left to tune, or the tuning diverges.
    """
    keras.utils.set_random_seed(recipe.seed)
    network = _partly_frozen(backbone, tuning.frozen_share)
    trunk = trunk_of(backbone, tuning.size, recipe.bfloat16)
    model = on_top(head, trunk)
    optimizer = optimizer_of(recipe, len(train.labels))
    optimizer.build(model.trainable_variables)
    averaged = MovingAverage(model, tuning.average)
    file = work / CHECKPOINT if work else None
    annealed = tuning.average > 0 or recipe.schedule == "cosine"
    epochs = Epochs(model, optimizer, file, annealed=annealed, others=averaged.others)
    objective = objective_of(recipe, train.labels, model, loss)
    mixing = tuning.augmentation.mixup or tuning.augmentation.cutmix
    train_on = trainer(model, optimizer, objective, "labels" if mixing else "none")
    evaluate = evaluator(model)
    while not epochs.finished(recipe.epochs, recipe.patience if fit else None):
        batches = _ahead(_augmented(train, recipe, tuning, epochs.done))
        totals = _tune_an_epoch(train_on, batches, averaged, progress, epochs.done * len(train.labels))
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


def trunk_of(backbone: KerasBackbone, size: int, bfloat16: bool = False) -> keras.Model:
    """The network that is tuned: (n, size, size, 3) pixels 0..255 → (n, d), also of the backbone's own size.

    The backbone's model itself, where it can be; else a copy with the same weights, frozen like it.

    Raises:
        ShelfmarkError: the network takes photos of its own size alone.
    """
    model = backbone.model
    if size != backbone.image_size:
        model = with_preprocessing(_of_any_size(backbone, size), backbone.name, None)
    return in_precision(model, "bf16" if bfloat16 else "fp32")


def smaller_size(backbone: KerasBackbone) -> int:
    """The px on which a backbone is tuned by default: SMALLER of its own, if the network takes such photos.

    >>> [_smaller(size) for size in (224, 299, 128, 32, 20)]
    [160, 224, 96, 32, 20]
    """
    smaller = _smaller(backbone.image_size)
    try:
        trunk_of(backbone, smaller)
    except ShelfmarkError:
        return backbone.image_size
    return smaller


def _smaller(size: int) -> int:
    """Networks halve their maps five times: a multiple of 32 px."""
    return min(max(round(SMALLER * size / 32), 1) * 32, size)


def _of_any_size(backbone: KerasBackbone, size: int) -> keras.Model:
    refused = ShelfmarkError(
        f"finetune.image_size = {size}: the network {backbone.name} takes photos of {backbone.image_size} px "
        "alone; expected that size; leave the setting out"
    )
    if backbone.model is backbone.network:  # of KerasHub
        raise refused
    try:
        network = keras.models.clone_model(backbone.network, input_tensors=keras.Input((None, None, 3)))
        network.compute_output_shape((None, size, size, 3))
        network.set_weights(backbone.network.get_weights())
    except (ValueError, TypeError) as error:
        raise refused from error
    return network


Batch: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # pixels, labels, (1,) float32 weight of a mix


def _augmented(photos: Photos, recipe: Recipe, tuning: Tuning, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, numbered from 0."""
    rng, how = np.random.default_rng([recipe.seed, epoch]), tuning.augmentation
    order = rng.permutation(order_of(rng, photos.labels, recipe))
    for pixels, labels in photos.batches(order, recipe.batch):
        yield mix(augment(pixels, rng, how, tuning.size), labels, rng, how)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; a thread makes the next one while one is used."""
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = maker.submit(next, batches, None)
            yield batch


def _tune_an_epoch(
    train_on: Trainer,
    batches: Iterator[Batch],
    averaged: MovingAverage,
    progress: Callable[[int], None] | None,
    done: int,
) -> list[Tensor]:
    """Trains one epoch and returns the totals of its steps; `done`: photos before it.

    Before and after it, and so in a checkpoint, the model has the averages of its weights.
    """
    averaged.swap()
    totals = []
    for pixels, labels, weight in batches:
        totals.append(train_on(*_tensors(pixels, labels), _one_batch(pixels), weight))
        train_on.write_back()
        averaged.follow()
        done += len(pixels)
        if progress:
            progress(done)
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


def augment(
    pixels: np.ndarray, rng: np.random.Generator, how: Augmentation, size: int | None = None
) -> np.ndarray:
    """Crops, zooms and mirrors each photo in one bilinear sampling, then changes its colours.

    Args:
        pixels: (n, px, px, 3) uint8.
        rng: draws every random number.
        how: ranges.
        size: px of the result; None: as it was.

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
    sides = (size, size) if size else pixels.shape[1:3]
    with tf.device("cpu"):
        photos = tf.image.crop_and_resize(
            pixels, boxes.astype(np.float32), np.arange(count, dtype=np.int32), sides
        )
        if how.colour:
            mean = tf.reduce_mean(photos, axis=(1, 2, 3), keepdims=True)
            photos = ((photos - mean) * contrast + mean) * gain
        changed: np.ndarray = tf.cast(tf.round(tf.clip_by_value(photos, 0, 255)), tf.uint8).numpy()
    return changed


def mix(pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator, how: Augmentation) -> Batch:
    """Mixes each photo with the one opposite in the batch: mixup blends them, CutMix pastes a box of it.

    Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018; Yun et al., "CutMix: regularization
    strategy to train strong classifiers with localizable features", ICCV 2019, algorithm 1.

    Args:
        pixels: (n, size, size, 3) uint8.
        labels: (n,) or (n, levels) int.
        rng: draws every random number.
        how: parameters.

    Returns:
        Pixels; the same labels; (1,) float32, the weight of a photo itself: its share of the pixels.
    """
    if not how.mixup and not how.cutmix:
        return pixels, labels, np.ones(1, np.float32)
    cut = bool(how.cutmix) and (not how.mixup or rng.random() < 0.5)
    alpha = how.cutmix if cut else how.mixup
    weight = rng.beta(alpha, alpha)
    if not cut:
        blended = weight * pixels.astype(np.float32) + (1 - weight) * pixels[::-1]
        return np.rint(blended).astype(np.uint8), labels, np.full(1, weight, np.float32)
    size = pixels.shape[1]
    middle, half = rng.integers(0, size, 2), round(size * math.sqrt(1 - weight)) / 2
    (top, left), (bottom, right) = (
        np.clip(middle + sign * half, 0, size).astype(int).tolist() for sign in (-1, 1)
    )
    pasted = pixels.copy()
    pasted[:, top:bottom, left:right] = pixels[::-1, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / size**2
    return pasted, labels, np.full(1, share, np.float32)


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
