"""The epochs of a training: their history, the one that is kept, and the checkpoint to continue from."""

import json
import logging
import math
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from features.errors import ShelfmarkError
from features.storage.paths import writing
from models.heads.tensors import Tensor

log = logging.getLogger("shelfmark")

CHECKPOINT = "_checkpoint.npz"  # "_": not part of the artifact
REST = 10  # times as long as a checkpoint took, until the next one


class Epochs:
    """What an epoch starts from: variables, the weights of the kept epoch, history; all in a checkpoint.

    The epoch that is best on FIT is kept. Where the learning rate falls to 0, the last epochs are in truth
    the best ones, and a small FIT distinguishes them only by chance: then the latest within a standard error
    of the best is kept (one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984).
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        file: Path | None,
        annealed: bool = False,
        others: Sequence[keras.Variable] = (),
    ) -> None:
        """Continues from the checkpoint, if there is one.

        Args:
            model: that is trained.
            optimizer: of the model.
            file: the checkpoint; None: none is written.
            annealed: whether the latest epoch within a standard error of the best is kept.
            others: variables in the checkpoint beside those of model and optimizer.
        """
        self.annealed = annealed
        self.model, self.file = model, file
        self.variables = [*model.variables, *optimizer.variables, *others]
        self.history: dict[str, list[float]] = {}
        self.best: list[np.ndarray] = []  # weights of the kept epoch
        self.written, self.rest = 0.0, 0.0  # time of the checkpoint, and seconds until the next one
        self.unsaved = False  # whether an epoch has ended since the checkpoint
        if file and file.is_file():
            self._read(file)

    @property
    def done(self) -> int:
        """Epochs done."""
        return len(self.history.get("loss", []))

    @property
    def waited(self) -> int:
        """Epochs since the best one on FIT; 0 without FIT."""
        scores = self._scores()
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def finished(self, most: int, patience: int | None) -> bool:
        """Whether training ends: after `most` epochs, or `patience` epochs after the best one, if given."""
        return self.done >= most or (patience is not None and self.waited >= patience)

    def end_epoch(self, totals: Sequence[Tensor], evaluation: np.ndarray | None) -> None:
        """Adds an epoch to the history, keeps its weights if it is best, writes a checkpoint if it is time.

        The best epoch is that of accuracy, not of loss: on the grocery photos (three seeds, all validation
        photos) the loss improves for 35-60 epochs, to an accuracy of 0.55, the accuracy longer, to 0.57.

        Args:
            totals: of each call, (3,): summed loss, correct images, images.
            evaluation: (2, n): loss of each image of FIT, and 1 where it is correct; None without FIT.

        Raises:
            ShelfmarkError: the loss is not a finite number.
        """
        loss, correct, images = np.sum([np.asarray(one, np.float64) for one in totals], axis=0)
        figures = {"accuracy": correct / images, "loss": loss / images}
        if not math.isfinite(loss):
            raise ShelfmarkError(
                f"the loss of epoch {self.done + 1} is {loss}: training has diverged; expected a number; "
                "lower learning_rate in [train] or, when fine-tuning, in [finetune]"
            )
        if evaluation is not None:
            figures |= {"val_accuracy": evaluation[1].mean(), "val_loss": evaluation[0].mean()}
        for name, figure in figures.items():
            self.history.setdefault(name, []).append(float(figure))
        if evaluation is not None and self._is_kept(evaluation.shape[1]):
            self.best = self.model.get_weights()
        self.unsaved = True
        if time.monotonic() >= self.written + self.rest:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint, if an epoch has ended since the last one."""
        if self.file and self.unsaved:
            began = time.monotonic()
            self._write(self.file)
            self.written = time.monotonic()
            self.rest, self.unsaved = REST * (self.written - began), False

    def _is_kept(self, images: int) -> bool:
        """Whether the last epoch is the best one, or with `annealed` as good, measured on so many images."""
        if self.waited == 0 or not self.annealed:
            return self.waited == 0
        accuracies = self.history["val_accuracy"]
        best = max(accuracies)
        return best - accuracies[-1] <= math.sqrt(best * (1 - best) / images)

    def _scores(self) -> list[tuple[float, float]]:
        """Accuracy, then negative loss, on FIT after each epoch."""
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
            with np.load(file) as opened:
                arrays = {name: opened[name] for name in opened}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            log.warning("%s: cannot be read (%s): training begins anew", file, error)
            return
        self.history = json.loads(arrays["history"].tobytes())
        for number, variable in enumerate(self.variables):
            variable.assign(arrays[f"variable{number}"])
        count = sum(name.startswith("best") for name in arrays)
        self.best = [arrays[f"best{number}"] for number in range(count)]
