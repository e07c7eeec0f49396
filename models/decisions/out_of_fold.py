"""Confidences of the products that a confidence model is fitted on, each from a model fitted without it.

    FIT  ──► five folds by a hash of the duplicate group ──► fitted on four, applied to the fifth ──► joined

A model is too sure of the products that it was fitted on: with 100 of them and effects of categories, FIT
seems far better than CERT, and chains start where CERT certifies nothing. CERT is not used here.
"""

from collections.abc import Callable

import numpy as np

from features.product import order_key
from models.decisions.confidence import ConfidenceModel, Evidence, Kind, fit_confidence

FOLDS = 5
MANY, FEWER_FOLDS = 50_000, 2  # from so many products on, half of them are as good as four fifths


def out_of_fold(
    evidence: Evidence,
    correct: np.ndarray,
    group: np.ndarray,
    model: ConfidenceModel,
    kind: Kind = "logistic",
    fit: Callable[[Evidence, np.ndarray, Kind], ConfidenceModel] = fit_confidence,
) -> np.ndarray:
    """(n,) float, 0 to 1: the out-of-fold confidence of each product; the same for any order of rows.

    Where a fold leaves too few products to fit a model, its products would have p1, which is on another
    scale. Then all have the confidence of `model` itself.

    Args:
        evidence: of FIT's n products.
        correct: (n,) bool, whether the predicted category is correct.
        group: (n,) str or int; the products of a duplicate group are in one fold.
        model: fitted on all of them.
        kind: the wanted one.
        fit: how it was fitted.
    """
    fold = folds(group)
    confidence = model.confidence(evidence)
    if model.kind == "probability":  # nothing was fitted
        return confidence
    joined = np.empty_like(confidence)
    for number in np.unique(fold).tolist():
        left_out = fold == number
        one = fit(evidence.only(~left_out), correct[~left_out], kind)
        if one.kind == "probability":
            return confidence
        joined[left_out] = one.confidence(evidence.only(left_out))
    return joined


def folds(group: np.ndarray) -> np.ndarray:
    """(n,) int, 0 to 4: the fold of each group; 0 or 1 for 50,000 products and more, to save time.

    FIT and CERT are divided by the largest bits of the same hash, so that the smallest ones are taken here.

    >>> folds(np.array(["a", "b", "a", "c"], dtype=object)).tolist()
    [1, 1, 1, 2]
    """
    count = FEWER_FOLDS if len(group) >= MANY else FOLDS
    return np.array([order_key(str(name)) % count for name in group.tolist()], dtype=np.int64)
