"""Labels in doubt: how probably a product's given category is wrong, from predictions about it (NumPy only).

    predictions, given category ──► LabelEvidence ──► estimate_noise   share of wrong labels
                                                  └─► doubts           probability of each label to be wrong

The predictions have to be of a head that was not trained on the product. The order is that of confident
learning, by the probability of the given category ("self-confidence"; Northcutt, Jiang, Chuang, JAIR 2021;
Kuan, Mueller, DataPerf 2022). Of a product only its five most likely categories and the given one are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from models.decisions.categorizer import Predictor
from models.decisions.confidence import product_probabilities, product_ranges
from models.decisions.predictions import PIECE, Predictions
from models.heads.architectures import SET, set_logits
from models.rows import Rows

SURE = 50  # products, at least, whose labels tell how many are wrong; else a tenth of all


@dataclass(frozen=True)
class LabelEvidence:
    """What predictions say about the labels of n products."""

    given: np.ndarray  # (n,) int, category of the label
    probability: np.ndarray  # (n,) float32, of the given category
    top: np.ndarray  # (n, 5) int32 categories, most likely first; -1 where the tree has fewer
    top_probability: np.ndarray  # (n, 5) float32

    @classmethod
    def joined(cls, parts: Sequence["LabelEvidence"]) -> "LabelEvidence":
        """The evidence of several parts, one after the other; at least one part."""
        columns = ([getattr(part, column.name) for part in parts] for column in fields(cls))
        return cls(*map(np.concatenate, columns))

    @property
    def disagrees(self) -> np.ndarray:
        """(n,) bool: another category than the given one is the most likely."""
        disagrees: np.ndarray = self.top[:, 0] != self.given
        return disagrees


@dataclass(frozen=True)
class NoiseEstimate:
    """The share of wrong labels, estimated in two ways; both count too many rather than too few."""

    confident_joint: float  # counts categories that overlap as wrong labels
    most_confident: float  # of the products with the most confident predictions, those that disagree

    @property
    def share(self) -> float:
        """The smaller one."""
        return min(self.confident_joint, self.most_confident)


def label_evidence(
    predictor: Predictor,
    bottlenecks: Rows,
    bounds: np.ndarray,
    given: np.ndarray,
    predictions: Predictions,
    temperature: float,
    aggregation: str = "mean",
) -> LabelEvidence:
    """What predictions say about labels.

    The head is called again only for the products whose given category is none of their five most likely.

    Args:
        predictor: that predicted.
        bottlenecks: (images, d), products together.
        bounds: (n + 1,) of `product_bounds`.
        given: (n,) int, category of the label.
        predictions: about these products.
        temperature: of the predictions.
        aggregation: of the predictions.
    """
    among = predictions.top == given[:, None]
    probability = np.where(among, predictions.top_probability, 0).sum(axis=1).astype(np.float32)
    others = ~among.any(axis=1)
    images = np.diff(bounds)
    rows, few = np.flatnonzero(np.repeat(others, images)), np.append(0, np.cumsum(images[others]))
    found = [np.empty(0, np.float32)]
    for start, stop in product_ranges(few, PIECE):
        piece = bottlenecks[rows[few[start] : few[stop]]]
        whole = _category_probabilities(predictor, piece, few[start : stop + 1], temperature, aggregation)
        its = given[others][start:stop]
        found.append(whole[np.arange(len(its)), its].astype(np.float32))
    probability[others] = np.concatenate(found)
    return LabelEvidence(given, probability, predictions.top, predictions.top_probability)


def _category_probabilities(
    predictor: Predictor, rows: np.ndarray, bounds: np.ndarray, temperature: float, aggregation: str
) -> np.ndarray:
    """(p, C) float64 of a few products; `bounds` begin anywhere."""
    images = np.diff(bounds)
    if aggregation != SET:
        return product_probabilities(predictor.head.outputs(rows)[-1], images, temperature, aggregation)
    assert predictor.set_head is not None
    logits = set_logits(predictor.set_head, rows, bounds - bounds[0])
    return product_probabilities(logits, np.ones_like(images), temperature)


# How many labels are wrong


def estimate_noise(evidence: LabelEvidence, counted: np.ndarray | None = None) -> NoiseEstimate:
    """The share of wrong labels among products.

    Confident joint: a product counts for its most likely category among those whose probability reaches the
    mean that products with that label have (Northcutt et al. 2021, section 3.1); wrong are those that count
    for another category than the given one, weighted so that every given category has its own size. On drawn
    catalogues with categories that overlap it found 21 % wrong where 10 % were, and 7 % where none was; the
    most confident tenth found 10 % and 0.3 %.

    Args:
        evidence: about the products.
        counted: (n,) bool, for which of them the confident joint is counted; None: all. The means are always
            of all.
    """
    if not len(evidence.given):
        return NoiseEstimate(0.0, 0.0)
    chosen = np.ones(len(evidence.given), bool) if counted is None or not counted.any() else counted
    confident, given = confident_categories(evidence)[chosen], evidence.given[chosen]
    size = np.bincount(given)
    sure = np.bincount(given[confident >= 0], minlength=len(size))
    wrong = np.bincount(given[(confident >= 0) & (confident != given)], minlength=len(size))
    joint = float(size[sure > 0] @ (wrong[sure > 0] / sure[sure > 0]) / max(size[sure > 0].sum(), 1))

    most = min(len(evidence.given), max(SURE, len(evidence.given) // 10))
    first = np.argsort(-evidence.top_probability[:, 0], kind="stable")[:most]
    # half a wrong label more: none of 50 does not mean that there are none
    return NoiseEstimate(joint, float((evidence.disagrees[first].sum() + 0.5) / (most + 1)))


def confident_categories(evidence: LabelEvidence) -> np.ndarray:
    """(n,) int32: the category that each product counts for in the confident joint; -1: none.

    Only the five most likely categories and the given one are compared, instead of all: the sixth most likely
    one has a probability under 1/6, and seldom reaches the mean of its own products.
    """
    size = np.bincount(evidence.given, minlength=int(evidence.top.max(initial=0)) + 1)
    total = np.bincount(evidence.given, weights=evidence.probability, minlength=len(size))
    mean = np.divide(total, size, out=np.full(len(size), np.inf), where=size > 0)
    reached = (evidence.top >= 0) & (evidence.top_probability >= mean[evidence.top])
    first = evidence.top[np.arange(len(reached)), reached.argmax(axis=1)]
    own = np.where(evidence.probability >= mean[evidence.given], evidence.given, -1)
    return np.where(reached.any(axis=1), first, own).astype(np.int32)


# Which labels are wrong


def doubts(evidence: LabelEvidence, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The probability that each label is wrong, and that its most likely other category is correct instead.

    A head that was trained on labels of which some are wrong gives a category the probability p = (1 - share)
    q + k: q that it is the true one, and k that a wrong label falls onto it. So by Bayes' rule a label is
    wrong with k / p. k is taken as the same for all, and such that the mean is the share of wrong labels; the
    order is that of p. Of what p leaves, the other category has its own part.

    On drawn catalogues with calibrated probabilities these confidences were too low rather than too high: of
    the proposals between 0.3 and 0.5, 39 to 97 % were correct, of those above 0.5, 72 to 100 %. Of a head
    that was correct for 65 % of the products and not calibrated they were up to 25 points too high.

    Args:
        evidence: about n products.
        share: of wrong labels, 0 to 1.

    Returns:
        Both (n,) float64; 0 where the given category is the most likely one.
    """
    p = evidence.probability.astype(np.float64)
    wrong = _wrong(p, share)
    proposed = evidence.top_probability[:, 0].astype(np.float64)
    confidence = wrong * np.minimum(proposed / np.maximum(1 - p, 1e-12), 1)
    return np.where(evidence.disagrees, wrong, 0.0), np.where(evidence.disagrees, confidence, 0.0)


def _wrong(p: np.ndarray, share: float) -> np.ndarray:
    """(n,) float64, k / p, at most 1, with the mean `share`; by bisection over powers of ten."""
    if not len(p) or share <= 0:
        return np.zeros(len(p))
    low, high = -30.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.mean(np.minimum(10**middle / np.maximum(p, 1e-30), 1)) < share:
            low = middle
        else:
            high = middle
    wrong: np.ndarray = np.minimum(10**high / np.maximum(p, 1e-30), 1)
    return wrong
