"""Baselines that a head has to beat: linear support vector machines (SVMs) on bottlenecks, and on HOG.

    JPEG → grey, 128 × 128 px → HOG (1,764)  ┐
    bottlenecks                     (d)      ┴→ standardized → one linear SVM a category → decision values

HOG: histograms of oriented gradients, Dalal and Triggs, CVPR 2005; scikit-image's, 9 directions in cells of
16 px, normalised over blocks of 2 × 2 cells. The SVMs: one against the rest, squared hinge loss, as
scikit-learn's LinearSVC; solved in linear_svm.py.

Decision values replace a head's logits: a softmax with a temperature makes them probabilities, so that a
baseline's acceptance is measured like a head's.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from features.errors import ShelfmarkError
from models.heads.linear_svm import solve_svms
from models.rows import Rows

SIDE = 128  # px
CELL = 16  # px
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
PENALTIES = (0.001, 0.01, 0.1)  # values of LinearSVC's C, for standardized numbers
MIDDLE = 0.01  # the one without FIT
PIECE = 8192  # rows standardized at a time


def require_hog() -> None:
    """Raises ShelfmarkError where scikit-image is not installed."""
    try:
        import skimage.feature  # noqa: F401
    except ImportError as error:
        raise ShelfmarkError(
            "scikit-image is not installed; expected it for HOG; pip install 'shelfmark[compare]', "
            "or leave the row hog-svm out with --only"
        ) from error


def hog_vectors(
    batches: Iterable[np.ndarray], count: int, done: Callable[[int], object] = lambda count: None
) -> np.ndarray:
    """(count, 1764) float16: HOG of the first `count` images of batches (b, SIDE, SIDE, 3) uint8.

    Values are 0 to 1: the vector of a block has length 1, by scikit-image's L2-Hys. `done` is called with the
    number of images done so far.
    """
    from skimage.feature import hog

    cells = {"pixels_per_cell": (CELL, CELL), "cells_per_block": (2, 2), "orientations": 9}
    vectors = np.zeros((count, 9 * 4 * (SIDE // CELL - 1) ** 2), np.float16)
    filled = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for batch in batches:
            images = batch[: count - filled]
            for vector in threads.map(lambda image: hog(image @ GREY, **cells), images):
                vectors[filled] = vector
                filled += 1
            done(filled)
            if filled == count:
                break
    return vectors[:filled]


@dataclass(frozen=True)
class LinearSvm:
    """A linear SVM for each category; a `Classifier` like a head."""

    mean: np.ndarray  # (d,) float32, of the training rows
    deviation: np.ndarray  # (d,) float32; 1 where all rows are equal
    kernel: np.ndarray  # (d, k) float32
    bias: np.ndarray  # (k,) float32
    trained: np.ndarray  # (k,) int, categories that had training rows
    categories: int  # C

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.kernel.size + self.bias.size

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """(n, d) float16 → (n, C) float32 decision values; for a category without training rows the least."""
        known = ((rows - self.mean) / self.deviation) @ self.kernel + self.bias
        values = np.repeat(known.min(axis=1, keepdims=True), self.categories, axis=1)
        values[:, self.trained] = known
        return values.astype(np.float32)

    def outputs(self, rows: np.ndarray) -> list[np.ndarray]:
        """(n, d) float16 → decision values as the only output, as of a flat head."""
        return [self.logits(rows)]


def fit_svms(
    rows: np.ndarray,
    labels: np.ndarray,
    categories: int,
    penalties: Sequence[float] = (MIDDLE,),
    solved: Callable[[int], object] = lambda count: None,
) -> list[LinearSvm]:
    """Trains an SVM for each category, for each penalty.

    Args:
        rows: (n, d) float16.
        labels: (n,) int, 0 to categories - 1.
        categories: C.
        penalties: values of LinearSVC's C, in rising order.
        solved: called with the number of SVMs trained so far.

    Raises:
        ShelfmarkError: the rows are of fewer than two categories.
    """
    trained, number = np.unique(labels, return_inverse=True)
    if len(trained) < 2:
        raise ShelfmarkError(
            f"{len(rows)} training images, all of one category; expected at least two categories; "
            "raise compare.svm_products or compare.hog_products, or leave the SVM rows out with --only"
        )
    mean, deviation = _statistics(rows)
    found = solve_svms((rows - mean) / deviation, number, penalties, solved)
    return [
        LinearSvm(
            mean,
            deviation,
            weights[:-1].astype(np.float32),
            weights[-1].astype(np.float32),
            trained,
            categories,
        )
        for weights in found
    ]


def choose_svm(
    rows: np.ndarray,
    labels: np.ndarray,
    fit: Rows,
    fit_labels: np.ndarray,
    categories: int,
    solved: Callable[[int], object] = lambda count: None,
) -> tuple[LinearSvm, float]:
    """The SVM that is correct on most images of FIT, and its C, one of PENALTIES; MIDDLE without FIT.

    Args:
        rows: (n, d) float16, of training images.
        labels: (n,) int, 0 to categories - 1.
        fit: rows of FIT's images.
        fit_labels: (m,) int.
        categories: C.
        solved: called with the number of SVMs trained so far, of `trained_svms`.

    Raises:
        ShelfmarkError: see `fit_svms`.
    """
    if not len(fit_labels):
        return fit_svms(rows, labels, categories, (MIDDLE,), solved)[0], MIDDLE
    tried = zip(fit_svms(rows, labels, categories, PENALTIES, solved), PENALTIES, strict=True)
    return max(tried, key=lambda one: _correct(one[0], fit, fit_labels))  # the first among equals


def trained_svms(labels: np.ndarray, fit_labels: np.ndarray) -> int:
    """How many SVMs `choose_svm` trains."""
    return len(np.unique(labels)) * (len(PENALTIES) if len(fit_labels) else 1)


def _correct(svm: LinearSvm, rows: Rows, labels: np.ndarray) -> int:
    """How many rows are predicted correctly."""
    pieces = (slice(start, start + PIECE) for start in range(0, len(labels), PIECE))
    return sum(int((svm.logits(rows[piece]).argmax(axis=1) == labels[piece]).sum()) for piece in pieces)


def _statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(d,) mean and (d,) deviation."""
    mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)
