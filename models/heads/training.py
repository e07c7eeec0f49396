"""Training a head on bottlenecks: shuffled blocks, many steps a call; the epoch that is best on FIT is kept.

    an epoch   blocks of 128 images in a random order → windows → batches of a window's images, shuffled
    a call     up to 16 batches: gathered, cast and trained on without returning to Python

Bottlenecks that fit into `memory` are one window, which stays on the device (a GPU's memory where there is
one). More of them are read window by window, the next one while the last is trained on, so that memory stays
constant. A block is read together, a window (512 blocks and more) is shuffled: see docs/training.md.

A checkpoint has everything that an epoch starts from, and an epoch's random numbers depend on (seed, epoch)
only: a training that was killed continues to the same head, bit for bit. Where epochs take less time than
checkpoints, several epochs pass between two checkpoints.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import keras
import numpy as np
from keras import ops

from features.engines.backbones import start_tensorflow
from features.storage.store import StoredRows
from models.heads.architectures import STANDARD, Head, HeadShape, build_head
from models.heads.checkpoints import CHECKPOINT, Epochs
from models.heads.losses import Loss, weighted_levels
from models.heads.tensors import Tensor
from models.heads.training_steps import (
    Evaluator,
    Losses,
    Trainer,
    aligned,
    as_list,
    as_tensor,
    evaluator,
    finest,
    sgd,
    trainer,
)
from models.rows import Rows

BLOCK = 128  # images
WINDOW = 256 * 2**20  # bytes; 0.5 GB with the next one
READ = 4096  # images read at a time
STEPS = 16  # batches a call
FIT_BATCH = 1024  # images

Imbalance = Literal["none", "class_weights", "logit_adjustment", "balanced"]


@dataclass(frozen=True)
class Examples:
    """Images to train on or to select on."""

    bottlenecks: Rows  # (n, d) float16, in the order of their labels
    # (n,) int, index of the category; (n, levels) for heads of several levels, the category is the last one
    labels: np.ndarray

    def only(self, chosen: np.ndarray) -> "Examples":
        """The chosen examples, (n,) bool."""
        rows = self.bottlenecks
        return Examples(
            rows.only(chosen) if isinstance(rows, StoredRows) else rows[chosen], self.labels[chosen]
        )


@dataclass(frozen=True)
class Recipe:
    """How a head is trained; pipeline/job/config.py has the defaults and their sources."""

    batch: int  # images
    learning_rate: float
    decay: float  # per step, of the inverse-time schedule
    epochs: int  # at most
    patience: int  # epochs without a better FIT accuracy
    seed: int
    schedule: Literal["inverse_time", "cosine"] = "inverse_time"
    momentum: float = 0.0
    weight_decay: float = 0.0  # an epoch at rate r shrinks the weights by exp(-r · weight_decay)
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    imbalance: Imbalance = "none"
    adjustment: float = 1.0  # tau of the logit adjustment
    bfloat16: bool = False  # multiply in bfloat16, add and keep the weights in float32
    memory: int = 2 * 2**30  # bytes of bottlenecks that stay in memory, a GPU's where there is one


def inverse_time_decay(learning_rate: float, decay: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """lr(t) = learning_rate / (1 + t·decay), t in steps (S1).

    >>> round(float(inverse_time_decay(0.1, 7e-5)(10_000)), 6)
    0.058824
    """
    return keras.optimizers.schedules.InverseTimeDecay(learning_rate, decay_steps=1, decay_rate=decay)


def fit_head(
    shape: HeadShape,
    train: Examples,
    fit: Examples | None,
    recipe: Recipe,
    loss: Loss | None = None,
    work: Path | None = None,
    start: Callable[[keras.Model], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Head, dict[str, list[float]]]:
    """Trains a head.

    Args:
        shape: of the head.
        train: trained on.
        fit: selects the epoch, by accuracy, then loss (cross-entropy), both of the last output; None: the
            last epoch is kept.
        recipe: rates and limits.
        loss: as in models/heads/losses.py; None: the cross-entropy of the logits, summed over the outputs.
        work: directory of the checkpoint, from which an interrupted training continues; None: no checkpoints.
        start: replaces the new model's weights, which are those of the seed; see models/heads/warm_start.py.
        progress: called with the images trained on so far, summed over the epochs.

    Returns:
        The head, and its history: name → one number per epoch.

    Raises:
        ShelfmarkError: the training diverges.
    """
    keras.utils.set_random_seed(recipe.seed)
    if keras.backend.backend() == "tensorflow":
        start_tensorflow()
    model = _initial_model(shape, train.bottlenecks, recipe, start)
    kept = build_head(shape)  # evaluated and returned: in float32, and without the optimizer's variables
    optimizer = optimizer_of(recipe, len(train.labels))
    optimizer.build(model.trainable_variables)
    file = work / CHECKPOINT if work else None
    epochs = Epochs(model, optimizer, file, annealed=recipe.schedule == "cosine")
    train_on = trainer(
        model, optimizer, objective_of(recipe, train.labels, model, loss), "rows" if recipe.mixup else "none"
    )
    evaluate = evaluator(kept)
    training = _DeviceExamples(train, recipe.memory)
    selecting = _DeviceExamples(fit, recipe.memory - training.held) if fit else None
    while not epochs.finished(recipe.epochs, recipe.patience if fit else None):
        totals = _train_an_epoch(train_on, training, recipe, epochs.done, progress)
        kept.set_weights(model.get_weights())
        epochs.end_epoch(totals, _evaluation(evaluate, selecting) if selecting else None)
    epochs.save()
    kept.set_weights(epochs.best or model.get_weights())
    return Head.of(shape, kept), epochs.history


def _initial_model(
    shape: HeadShape, rows: Rows, recipe: Recipe, start: Callable[[keras.Model], None] | None
) -> keras.Model:
    """The model that is trained, before the first step."""
    with _multiplying_in("mixed_bfloat16" if recipe.bfloat16 else "float32"):
        model = build_head(shape)
    if shape.standardized:
        _standardize(model, shape, rows)
    if start:
        start(model)
    return model


def _train_an_epoch(
    train_on: Trainer,
    examples: "_DeviceExamples",
    recipe: Recipe,
    epoch: int,
    progress: Callable[[int], None] | None,
) -> list[Tensor]:
    """Trains one epoch, numbered from 0, and returns the totals of its calls."""
    rng = np.random.default_rng([recipe.seed, epoch])
    order = order_of(rng, examples.labels, recipe)
    totals, done = [], epoch * len(order)
    for rows, labels, images in examples.windows(order, recipe.batch):
        for batches in _calls(rng.permutation(images), recipe.batch):
            totals.append(train_on(rows, labels, batches, mixes(rng, len(batches), recipe.mixup)))
            done += batches.size
            if progress:
                progress(done)
    train_on.write_back()
    return totals


def suspects(
    shape: HeadShape,
    train: Examples,
    fold: np.ndarray,
    recipe: Recipe,
    share: float,
    loss: Loss | None = None,
    work: Path | None = None,
    views: int = 1,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """(n,) bool: the images whose labels are least probable for a head that was not trained on them.

    Out-of-fold probabilities of the given label, as in confident learning (Northcutt, Jiang, Chuang, JAIR
    2021), used directly as the ranking ("self-confidence", Kuan, Mueller, "Model-agnostic label quality
    scoring to detect real-world label errors", DataPerf 2022). Images of a category that one half lacks are
    never suspects in the other half: all of them are improbable for a head that was not trained on it.

    Args:
        shape: of the head.
        train: n images.
        fold: (n,) bool; each half is evaluated by a head trained on the other. Views of an image are in one.
        recipe: of both heads.
        share: of the images, 0 to 1.
        loss: as for `fit_head`.
        work: as for `fit_head`.
        views: rows of each image, one after the other; their losses are averaged.
        progress: as for `fit_head`, for each head anew.
    """
    losses = np.zeros(len(train.labels), np.float32)
    for head, held_out in held_out_heads(shape, train, fold, recipe, loss, work, progress):
        examples = _DeviceExamples(train.only(held_out), recipe.memory)
        losses[held_out] = _evaluation(evaluator(head.model), examples)[0]
    of_image = losses.reshape(-1, views).mean(axis=1)
    chosen = np.zeros(len(of_image), bool)
    chosen[np.argsort(-of_image, kind="stable")[: round(share * len(of_image))]] = True
    return chosen.repeat(views)


def held_out_heads(
    shape: HeadShape,
    train: Examples,
    fold: np.ndarray,
    recipe: Recipe,
    loss: Loss | None = None,
    work: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Head, np.ndarray]]:
    """Yields for each fold a head that was trained on the other folds, and which images it may be tried on.

    Args:
        shape: of the heads.
        train: n images.
        fold: (n,) int or bool, the fold of each image.
        recipe: of every head.
        loss: as for `fit_head`.
        work: as for `fit_head`.
        progress: as for `fit_head`, for each head anew.

    Yields:
        A head; (n,) bool: the images of the fold whose category the other folds have, too.
    """
    category = finest(train.labels)
    for number, name in enumerate(np.unique(fold)):
        trained = fold != name
        held_out = ~trained & np.isin(category, category[trained])
        if held_out.any():
            folder = work / f"_fold{number}" if work else None
            others = train.only(trained)
            yield fit_head(shape, others, None, recipe, loss, folder, progress=progress)[0], held_out


@contextmanager
def _multiplying_in(policy: str) -> Iterator[None]:
    """Within it new layers compute under a Keras dtype policy; their weights are float32 in either one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _standardize(model: keras.Model, shape: HeadShape, rows: Rows) -> None:
    """Sets mean and variance of the scaled bottlenecks, measured on at most 20,000 images."""
    some = np.arange(0, len(rows), max(1, -(-len(rows) * shape.images // 20_000)))
    sample = rows[some].reshape(-1, shape.width)  # for a set head, too, over single images
    mean, variance = sample.mean(axis=0, dtype=np.float64), sample.var(axis=0, dtype=np.float64)
    model.get_layer(STANDARD).set_weights([mean * shape.scale, variance * shape.scale**2])


def optimizer_of(recipe: Recipe, images: int) -> keras.optimizers.Optimizer:
    """SGD by the recipe; a cosine schedule ends after all epochs over so many images."""
    steps = _steps(images, recipe)
    schedule = {
        "inverse_time": lambda: inverse_time_decay(recipe.learning_rate, recipe.decay),
        "cosine": lambda: keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps * recipe.epochs),
    }[recipe.schedule]()
    return sgd(schedule, recipe.momentum, recipe.weight_decay / steps)


def objective_of(recipe: Recipe, labels: np.ndarray, model: keras.Model, loss: Loss | None) -> Losses:
    """Returns (outputs, labels) → (n,): the loss, smoothed and adjusted to the imbalance as in the recipe.

    Class weights: 1 / images of the category, with mean one over the images. Logit adjustment: the loss of
    logits + tau · log(share of the category) (Menon et al., "Long-tail learning via logit adjustment", ICLR
    2021, eq. 10); a category without images counts as one with one image.

    Args:
        recipe: of the training.
        labels: of all training images, as in `Examples`.
        model: whose outputs it is given.
        loss: as for `fit_head`.
    """
    columns = labels.reshape(len(labels), -1).T  # (levels, n)
    widths = [output.shape[-1] for output in as_list(model.outputs)]
    counts = [np.bincount(column, minlength=width) for column, width in zip(columns, widths, strict=True)]
    shift = [np.log(np.maximum(count, 1) / len(labels)).astype(np.float32) for count in counts]
    weight = len(labels) / np.maximum(counts[-1], 1) / np.count_nonzero(counts[-1])

    loss = loss or weighted_levels([1.0] * len(widths))

    def objective(outputs: list[Tensor], labels: Tensor) -> Tensor:
        if recipe.imbalance == "logit_adjustment":
            outputs = [out + recipe.adjustment * by for out, by in zip(outputs, shift, strict=True)]
        losses = loss(outputs, labels, recipe.label_smoothing)
        if recipe.imbalance == "class_weights":
            losses = losses * ops.take(ops.cast(weight, "float32"), finest(labels))
        return losses

    return objective


def order_of(rng: np.random.Generator, labels: np.ndarray, recipe: Recipe) -> np.ndarray:
    """(m,) int: numbers of the images of an epoch, blocks of neighbours in a random order.

    The last ones, which do not fill a batch, are left out in this epoch: batch normalization would take its
    statistics from few images (257 images, the last batch a single one: 74 % correct instead of 89 %).
    Balanced: n images drawn so that all categories are equally probable ("class-aware sampling", Shen, Lin,
    Huang, "Relay backpropagation", ECCV 2016).
    """
    images = np.arange(len(labels))
    if recipe.imbalance == "balanced":
        category = finest(labels)
        share = 1 / np.bincount(category)[category]
        images = np.sort(rng.choice(len(labels), len(labels), p=share / share.sum()))
    blocks = np.append(images, np.full(-len(images) % BLOCK, -1)).reshape(-1, BLOCK)
    order = rng.permutation(blocks).ravel()
    return order[order >= 0][: _steps(len(labels), recipe) * recipe.batch]


def _steps(images: int, recipe: Recipe) -> int:
    """Batches of an epoch over so many images, at least one."""
    return max(images // recipe.batch, 1)


class _DeviceExamples:
    """Examples on the device: all at once, or window by window."""

    def __init__(self, examples: Examples, memory: int) -> None:
        self.examples, self.labels = examples, examples.labels
        some = examples.bottlenecks[np.arange(min(1, len(self)))]
        self.width, self.dtype, self.image_bytes = some.shape[1], some.dtype, some.nbytes
        self.window_bytes = min(WINDOW, memory)
        self.whole = self._window(np.arange(len(self))) if len(self) * self.image_bytes <= memory else None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def held(self) -> int:
        """Bytes in memory: all, or the current window and the next one."""
        return len(self) * self.image_bytes if self.whole else 2 * self.window_bytes

    def windows(self, order: np.ndarray, batch: int) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yields rows and labels on the device, and which of them to use: those of `order`, in pieces."""
        if self.whole:
            yield *self.whole, order
            return
        span = max(self.window_bytes // self.image_bytes // batch, 1) * batch
        pieces = [order[start : start + span] for start in range(0, len(order), span)]
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._window, pieces[0])
            for number, piece in enumerate(pieces):
                window = following.result()
                if number + 1 < len(pieces):
                    following = reader.submit(self._window, pieces[number + 1])
                yield *window, np.arange(len(piece))
                del window

    def _window(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = aligned(len(images), self.width, self.dtype)
        for start in range(0, len(images), READ):
            piece = slice(start, start + READ)
            rows[piece] = self.examples.bottlenecks[images[piece]]
        labels = self.labels[images].astype(np.int32)
        return as_tensor(rows), ops.convert_to_tensor(labels)


def _evaluation(evaluate: Evaluator, examples: _DeviceExamples) -> np.ndarray:
    """(2, n) float64: loss of each example, and 1 where it is correct."""
    return np.concatenate(
        [
            np.asarray(evaluate(rows, labels, images[start : start + FIT_BATCH].astype(np.int32)), np.float64)
            for rows, labels, images in examples.windows(np.arange(len(examples)), FIT_BATCH)
            for start in range(0, len(images), FIT_BATCH)
        ],
        axis=1,
    )


def _calls(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """(m,) images, a multiple of `batch`, as (k, batch) int32, k up to STEPS; fewer than a batch are one."""
    batch = min(batch, len(images))
    for start in range(0, len(images), batch * STEPS):
        yield images[start : start + batch * STEPS].reshape(-1, batch).astype(np.int32)


def mixes(rng: np.random.Generator, count: int, alpha: float) -> np.ndarray:
    """(count,) float32: weights of mixup, one a batch, from Beta(alpha, alpha) (Zhang et al., ICLR 2018)."""
    return (rng.beta(alpha, alpha, count) if alpha else np.ones(count)).astype(np.float32)
