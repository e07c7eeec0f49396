"""Fine-tuning: the last layers of a backbone learn together with the head on top, from augmented photos.

    pixels (n, size, size, 3) uint8 → augment → trunk: frozen layers → tuned layers → (n, d) → head → losses

Batch normalizations of frozen layers run in inference mode, and nothing of them changes; those of tuned
layers take the batch's statistics, and their moving averages follow. What is judged and kept is a moving
average of the weights. Why, with figures: docs/finetuning.md.

All that an epoch starts from is in a checkpoint, and its random numbers are told by (seed, epoch): a killed
fine-tuning goes on to the same backbone, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import keras
import numpy as np
from keras import ops

from features.engines.backbones import Backbone
from features.engines.choose import in_precision
from features.errors import ShelfmarkError
from models.heads.architectures import Head
from models.heads.checkpoints import CHECKPOINT, Epochs
from models.heads.losses import Loss
from models.heads.training import Recipe, mixes, objective_of, optimizer_of, order_of
from models.heads.training_steps import grader, learner

# Momentum of the moving statistics: they follow within ten steps. At Keras' 0.99 those of a tuning of 100
# steps are still a third the old network's.
STATISTICS = 0.9
STRETCH = 4 / 3  # between the longest and the shortest side of a crop, at most (Szegedy et al., CVPR 2015)


@dataclass(frozen=True)
class Photos:
    """Photos to learn from or to select on, read again in every epoch."""

    # Numbers of photos (m,) int, photos in a batch → (batch, size, size, 3) uint8 in that order; a short last
    # batch is filled up.
    read: Callable[[np.ndarray, int], Iterator[np.ndarray]]
    labels: np.ndarray  # (n,) int; (n, levels) for level heads

    def batches(self, photos: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels (k, size, size, 3) uint8 and labels of these photos, in order; k up to `batch`."""
        for number, pixels in enumerate(self.read(photos, batch)):
            chosen = photos[number * batch : (number + 1) * batch]
            yield pixels[: len(chosen)], self.labels[chosen].astype(np.int32)


class MovingAverage:
    """The moving average of a model's weights over its steps (Polyak, Juditsky, SIAM J. Control Optim. 1992).

    w̄ ← momentum · w̄ + (1 - momentum) · w, of every weight and statistic; frozen ones stay, bit for bit.
    """

    def __init__(self, model: keras.Model, momentum: float) -> None:
        self.weights, self.momentum = model.weights, momentum
        self.others = [
            keras.Variable(ops.convert_to_numpy(weight), trainable=False) for weight in self.weights
        ]

    def follow(self) -> None:
        """After a step."""
        for weight, average in zip(self.weights, self.others, strict=True):
            average.assign(weight + self.momentum * (average - weight))

    def swap(self) -> None:
        """The model takes the averages, its own weights stand aside; and back."""
        for weight, other in zip(self.weights, self.others, strict=True):
            own = ops.convert_to_numpy(weight).copy()
            weight.assign(ops.convert_to_numpy(other))
            other.assign(own)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training photo, another time in every epoch."""

    area: float = 1.0  # least share of it that a crop keeps; the crop is zoomed to the full size; 1: no crops
    flip: bool = False  # half of them are mirrored, left to right
    colour: float = 0.0  # contrast and each of the three colours, each by itself, are off by up to this share


def frozen_count(share: float, layers: int) -> int:
    """floor(share · layers): how many of a backbone's first Keras layers are frozen (S1).

    With the share as it is written: 0.29 · 100 is 28.999999999999996 in floats.

    >>> frozen_count(0.4, 312), frozen_count(0.29, 100), frozen_count(0.0, 312)
    (124, 29, 0)
    """
    return math.floor(Fraction(repr(share)) * layers)


def tune_backbone(
    backbone: Backbone,
    head: Head,
    train: Photos,
    fit: Photos | None,
    recipe: Recipe,
    frozen_share: float,
    augmentation: Augmentation,
    loss: Loss | None = None,
    work: Path | None = None,
    average: float = 0.0,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Tunes a backbone.

    Args:
        backbone: to start from. It is used up: its own layers learn.
        head: trained on the frozen bottlenecks, and used up, too: with fresh weights its gradients would
            wreck the trunk before it has learnt anything.
        train: learnt from.
        fit: selects the epoch as in `fit_head`; None: the last one is kept.
        recipe: rates and limits.
        frozen_share: of the backbone's layers, 0 to 1; 0 tunes all of them.
        augmentation: of the training photos.
        loss: as for `fit_head`.
        work: where each epoch's checkpoint stands, and is gone on from; None: no checkpoints.
        average: momentum of the moving average of the weights, which is what is judged and kept. With one the
            latest epoch within a standard error of the best on FIT is kept, else the best.

    Returns:
        The tuned network, without preprocessing, and by name its history, a number an epoch.

    Raises:
        ShelfmarkError: nothing is left to tune, or the tuning diverges.
    """
    keras.utils.set_random_seed(recipe.seed)
    network = backbone.model.get_layer(backbone.name)
    frozen = freeze(network, frozen_share)
    if not network.trainable_weights:
        raise ShelfmarkError(
            f"finetune.frozen_share = {frozen_share}: the first {frozen} of {len(network.layers)} layers are "
            "frozen, and the others have no weights; expected some to tune; lower it"
        )
    trunk = in_precision(backbone.model, "bf16" if recipe.bfloat16 else "fp32")
    model = on_top(head, trunk)
    optimizer = optimizer_of(recipe, len(train.labels))
    optimizer.build(model.trainable_variables)
    averaged = MovingAverage(model, average)
    file = work / CHECKPOINT if work else None
    epochs = Epochs(model, optimizer, file, annealed=average > 0, others=averaged.others)
    averaged.swap()  # between two epochs, and in a checkpoint, the model has the averages
    learn = learner(model, optimizer, objective_of(recipe, train.labels, model, loss), recipe.mixup > 0)
    grade = grader(model)
    while epochs.done < recipe.epochs and not (fit and epochs.waited >= recipe.patience):
        rng, told = np.random.default_rng([recipe.seed, epochs.done]), []
        order = rng.permutation(order_of(rng, train.labels, recipe))
        for pixels, labels in train.batches(order, recipe.batch):
            mix = mixes(rng, 1, recipe.mixup)
            rows = augment(pixels, rng, augmentation)
            told.append(learn(*_tensors(rows, labels), _all(rows), mix))
            learn.settle()
            averaged.follow()
        averaged.swap()
        epochs.tell(told, _grades(grade, fit, recipe.batch) if fit else None)
        averaged.swap()
    averaged.swap()
    epochs.save()
    if epochs.best:
        model.set_weights(epochs.best)
    # Not the clone: Keras names its input by a counter, and a file of its weights would tell that name.
    backbone.model.set_weights(trunk.get_weights())
    return network, epochs.history


def on_top(head: Head, trunk: keras.Model) -> keras.Model:
    """(n, size, size, 3) pixels → trunk → the head's outputs; what is trainable learns."""
    model = keras.Model(trunk.input, head.model(trunk.output))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = STATISTICS
    return model


def freeze(network: keras.Model, share: float) -> int:
    """Freezes a network's first layers, makes the later ones trainable, returns how many are frozen."""
    count = frozen_count(share, len(network.layers))
    network.trainable = True
    for number, layer in enumerate(network.layers):
        layer.trainable = number >= count
    return count


def augment(pixels: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Crops, zooms and mirrors each photo in one bilinear sampling, then changes its colours.

    Args:
        pixels: (n, size, size, 3) uint8.
        rng: tells every number that is random.
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
        return tf.cast(tf.round(tf.clip_by_value(photos, 0, 255)), tf.uint8).numpy()


def _tensors(*arrays: np.ndarray) -> list:
    return [ops.convert_to_tensor(array) for array in arrays]


def _all(rows: np.ndarray) -> np.ndarray:
    """(1, n) int32: one batch of all the rows."""
    return np.arange(len(rows), dtype=np.int32)[None]


def _grades(grade: Callable, fit: Photos, batch: int) -> np.ndarray:
    """(2, n) float64."""
    told = [
        np.asarray(grade(*_tensors(pixels, labels), _all(pixels)[0]), np.float64)
        for pixels, labels in fit.batches(np.arange(len(fit.labels)), batch)
    ]
    return np.concatenate(told, axis=1)
