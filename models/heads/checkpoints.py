"""Epochs of a training: history, the one that is kept, the checkpoint that a killed training goes on from."""

import json
import logging
import math
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from features.errors import ShelfmarkError
from features.storage.paths import writing

log = logging.getLogger("shelfmark")

CHECKPOINT = "_checkpoint.npz"  # "_": no part of the artifact
REST = 10  # times as long as a checkpoint took, until the next one


class Epochs:
    """What an epoch starts from: variables, the kept epoch's weights, the history; in a checkpoint, too.

    The best epoch on FIT is kept. Where the rate falls to nothing the last ones are the best ones in truth,
    and a small FIT tells them apart by chance: then the latest is kept that is within a standard error of the
    best (the one-standard-error rule of Breiman et al., Classification and Regression Trees, 1984). `others`
    are variables that a checkpoint keeps beside the model's and the optimizer's.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        file: Path | None,
        annealed: bool = False,
        others: Sequence[keras.Variable] = (),
    ) -> None:
        self.annealed = annealed
        self.model, self.file = model, file
        self.variables = [*model.variables, *optimizer.variables, *others]
        self.history: dict[str, list[float]] = {}
        self.best: list[np.ndarray] = []
        self.written, self.rest = 0.0, 0.0  # when the checkpoint was, and seconds to the next one
        self.behind = False
        if file and file.is_file():
            self._read(file)

    @property
    def done(self) -> int:
        """Epochs done."""
        return len(self.history.get("loss", []))

    @property
    def waited(self) -> int:
        """Epochs since the best one."""
        scores = self._scores()
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def tell(self, told: list[Any], grades: np.ndarray | None) -> None:
        """Ends an epoch: what its calls told, and FIT's losses and right ones, (2, n).

        By accuracy rather than loss: on the grocery photos (three seeds, all validation photos) the loss
        stops after 35-60 epochs at 0.55, the accuracy goes on to 0.57.

        Raises:
            ShelfmarkError: the loss is no number any more.
        """
        loss, right, images = np.sum([np.asarray(one, np.float64) for one in told], axis=0)
        figures = {"accuracy": right / images, "loss": loss / images}
        if not math.isfinite(loss):
            raise ShelfmarkError(
                f"the loss of epoch {self.done + 1} is {loss}: training has diverged; expected a number; "
                "lower learning_rate in [train] or, when fine-tuning, in [finetune]"
            )
        if grades is not None:
            figures |= {"val_accuracy": grades[1].mean(), "val_loss": grades[0].mean()}
        for name, figure in figures.items():
            self.history.setdefault(name, []).append(float(figure))
        if grades is not None and (self.waited == 0 or (self.annealed and self._as_good(grades.shape[1]))):
            self.best = self.model.get_weights()
        self.behind = True
        if time.monotonic() >= self.written + self.rest:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint, if an epoch has been told since the last one."""
        if self.file and self.behind:
            began = time.monotonic()
            self._write(self.file)
            self.written = time.monotonic()
            self.rest, self.behind = REST * (self.written - began), False

    def _as_good(self, images: int) -> bool:
        """Whether the last epoch is within a standard error of the best, on so many images."""
        accuracies = self.history["val_accuracy"]
        best = max(accuracies)
        return best - accuracies[-1] <= math.sqrt(best * (1 - best) / images)

    def _scores(self) -> list[tuple[float, float]]:
        accuracies, losses = (self.history.get(f"val_{name}", []) for name in ("accuracy", "loss"))
        return [(accuracy, -loss) for accuracy, loss in zip(accuracies, losses, strict=True)]

    def _write(self, file: Path) -> None:
        arrays = {f"variable{n}": np.asarray(variable) for n, variable in enumerate(self.variables)}
        arrays |= {f"best{n}": array for n, array in enumerate(self.best)}
        arrays["history"] = np.frombuffer(json.dumps(self.history).encode(), np.uint8)
        with writing(file) as working, open(working, "wb") as out:
            np.savez(out, allow_pickle=False, **arrays)

    def _read(self, file: Path) -> None:
        try:
            with np.load(file) as arrays:
                told = {name: arrays[name] for name in arrays}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            log.warning("%s: cannot be read (%s): training begins anew", file, error)
            return
        self.history = json.loads(told["history"].tobytes())
        for number, variable in enumerate(self.variables):
            variable.assign(told[f"variable{number}"])
        count = sum(name.startswith("best") for name in told)
        self.best = [told[f"best{number}"] for number in range(count)]
