"""Training a head on bottlenecks: SGD with inverse-time decay, the best epoch on FIT is kept."""

from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np

from features.backbones import start_tensorflow
from models.head import Head, HeadShape, build_head


class Rows(Protocol):
    """Bottlenecks in the order of their labels, in memory or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(n, d) float16."""
        ...


@dataclass(frozen=True)
class Examples:
    """Images to learn from or to select on."""

    bottlenecks: Rows  # (n, d) float16
    labels: np.ndarray  # (n,) int, index of the category


@dataclass(frozen=True)
class Recipe:
    """How a head is trained. Source of the defaults in the settings: S1 (hal-01830894)."""

    batch: int  # images
    learning_rate: float
    decay: float  # per step
    epochs: int  # at most
    patience: int  # epochs without a better FIT accuracy
    seed: int


def inverse_time_decay(learning_rate: float, decay: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """lr(t) = learning_rate / (1 + t·decay), t in steps (S1).

    >>> round(float(inverse_time_decay(0.1, 7e-5)(10_000)), 6)
    0.058824
    """
    return keras.optimizers.schedules.InverseTimeDecay(learning_rate, decay_steps=1, decay_rate=decay)


def fit_head(
    shape: HeadShape, train: Examples, fit: Examples | None, recipe: Recipe
) -> tuple[Head, dict[str, list[float]]]:
    """Trains a head.

    Args:
        shape: of the head.
        train: learnt from.
        fit: selects the epoch, by accuracy, then loss; None: the last epoch is kept.
        recipe: rates and limits.

    Returns:
        The head, and by name its history, a number an epoch.
    """
    keras.utils.set_random_seed(recipe.seed)
    if keras.backend.backend() == "tensorflow":
        start_tensorflow()
    model = build_head(shape)
    model.compile(
        keras.optimizers.SGD(inverse_time_decay(recipe.learning_rate, recipe.decay)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    best = _BestEpoch(recipe.patience) if fit else None
    history = model.fit(
        _Batches(train, recipe.batch, recipe.seed),
        validation_data=_Batches(fit, 1024, None) if fit else None,
        epochs=recipe.epochs,
        callbacks=[best] if best else [],
        shuffle=False,  # the batches shuffle themselves
        verbose=0,
    )
    told = {name: [float(value) for value in values] for name, values in history.history.items()}
    trained = build_head(shape)  # without the optimizer: nobody needs it, and Keras counts its name up
    trained.set_weights(model.get_weights())
    return Head(shape, trained), told


class _Batches(keras.utils.PyDataset):
    """Batches of examples, in an order of their own each epoch when a seed is given."""

    def __init__(self, examples: Examples, batch: int, seed: int | None) -> None:
        super().__init__()
        self.examples, self.batch, self.seed, self.epoch = examples, batch, seed, 0
        self._deal()

    def _deal(self) -> None:
        self.order = np.arange(len(self.examples.labels))
        if self.seed is not None:
            np.random.default_rng([self.seed, self.epoch]).shuffle(self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[number * self.batch : (number + 1) * self.batch]
        return self.examples.bottlenecks[rows].astype(np.float32), self.examples.labels[rows]

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self._deal()


class _BestEpoch(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best FIT accuracy (then loss), stops after `patience` worse.

    Accuracy rather than loss: on the grocery photos (three seeds, all validation photos) the loss stops after
    35-60 epochs at 0.55, the accuracy goes on to 0.57.
    """

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience, self.waited = patience, 0
        self.best: tuple[float, float] | None = None
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        score = (logs["val_accuracy"], -logs["val_loss"])
        self.waited += 1
        if self.best is None or score > self.best:
            self.best, self.weights, self.waited = score, self.model.get_weights(), 0
        self.model.stop_training = self.waited >= self.patience

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.model.set_weights(self.weights)
