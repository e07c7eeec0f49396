"""The reference of a release: what its own measured products look like, in a few histograms.

    measured products (predicted, true, confidence)
      ──► cells     (B, K)       by branch of the prediction and bin of confidence
      ──► right     (B, K)       of these, the category is correct
      ──► confusion (B, 2, B)    by branch of the prediction, accepted or not, and true branch
      ──► categories, images     histograms

A branch is a node of one level of the tree, the deepest at which the branches are large enough and can be
distinguished. Products of categories that the head never learnt count as wrong in the branch that they are
put into. As a branch of their own they look like a mixture of all others, and in simulations estimates of the
precision were then off by up to 40 points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator, TypeAdapter

from models.decisions.drift.label_shift import condition_of

# Measured products expected in a branch or category by itself, from its training products; smaller ones are
# counted together. By their measured products themselves, those with many by chance would be chosen: with
# 20,000 products a week, one drawn reference had the mix of categories beyond a limit of 5 % in 82 % of the
# weeks, not 16.
LEAST = 20
MOST_BRANCHES, MOST_CATEGORIES = 50, 200
ENOUGH = 0.8  # share of the measured products in large branches that a level needs
TINY = 10  # measured products; a branch with fewer, such as OTHERS, decides nothing about the others
BINS = 40  # of confidence
OTHERS = "all others"
# Above this condition number the mix is not estimated. On drawn shops with pairs of branches that are more
# and more alike, the mix is then wrong by 10 to 12 % of the products, not 5 to 7: docs/experiments/drift.md.
MAX_CONDITION = 10.0


def _plain(value: Any) -> Any:
    """Dataclasses as objects, arrays and tuples as lists."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


Counts = Annotated[np.ndarray, PlainValidator(lambda values: np.array(values, np.int64))]
Numbers = Annotated[np.ndarray, PlainValidator(lambda values: np.array(values, float))]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of products in bins that have names, or an order."""

    counts: Counts  # (k,) int
    names: tuple[str, ...] | None = None  # of the bins; None where they have an order
    edges: Numbers | None = None  # (k - 1,) float, between the bins: bin i holds edges[i-1] <= x < edges[i]

    @classmethod
    def of(cls, values: np.ndarray, edges: np.ndarray) -> "Histogram":
        """Counts (n,) float values between edges."""
        bins = np.searchsorted(edges, values, side="right")
        return cls(np.bincount(bins, minlength=len(edges) + 1), edges=edges)


@dataclass(frozen=True, eq=False)
class Measured:
    """The measured products of a release: test, or CERT where there is no test."""

    predicted: np.ndarray  # (n,) int, most likely category
    truth: np.ndarray  # (n,) int, category; -1 where the head never learnt it
    confidence: np.ndarray  # (n,) float

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool."""
        correct: np.ndarray = self.predicted == self.truth
        return correct


@dataclass(frozen=True, eq=False)
class Reference:
    """Counts of the measured products by B branches and K bins of confidence."""

    target: float  # precision promised
    threshold: float | None  # accepted where confidence >= threshold; None: nothing is
    level: int  # of the branches, 1 = coarsest
    branches: tuple[str, ...]  # names; the last, OTHERS, holds all that are too small
    edges: Numbers  # (K - 1,) float, between the bins of confidence; the threshold is one
    cells: Counts  # (B, K) int
    right: Counts  # (B, K) int
    confidence_sum: Numbers  # (K,) float
    confusion: Counts  # (B, 2, B) int, by true branch last; [:, 1] are accepted
    categories: Histogram  # predicted, by name
    atc: float | None  # least confidence such that the share of the accepted above it is their precision
    unreadable: tuple[int, int]  # products without a readable image, and all products, of the catalogue
    images: Mapping[str, Histogram] = field(default_factory=dict)  # see pipeline/monitor

    @property
    def products(self) -> int:
        """Measured products."""
        return int(self.cells.sum())

    @property
    def first_accepted(self) -> int:
        """The first bin of accepted products; K where nothing is accepted."""
        if self.threshold is None:
            return len(self.edges) + 1
        return int(np.searchsorted(self.edges, self.threshold, side="right"))

    @property
    def accepted(self) -> int:
        """Accepted measured products."""
        return int(self.cells[:, self.first_accepted :].sum())

    @property
    def precision(self) -> float | None:
        """Share of the accepted measured products that are right; None where there are none."""
        return float(self.right[:, self.first_accepted :].sum() / self.accepted) if self.accepted else None

    @property
    def mean_confidence(self) -> float | None:
        """Mean confidence of the accepted measured products."""
        return (
            float(self.confidence_sum[self.first_accepted :].sum() / self.accepted) if self.accepted else None
        )

    @property
    def bin_means(self) -> np.ndarray:
        """(K,) float, mean confidence of each bin; 0 of an empty one."""
        means: np.ndarray = self.confidence_sum / np.maximum(self.cells.sum(axis=0), 1)
        return means

    @property
    def classes(self) -> np.ndarray:
        """(B,) int, measured products of each true branch."""
        classes: np.ndarray = self.confusion.sum(axis=(0, 1))
        return classes

    @property
    def condition(self) -> float:
        """Condition number of the confusion, see `condition_of`, of the branches that are not tiny."""
        return _condition(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        """Returns what reference.json holds: the fields, arrays as lists."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Reference":
        """Reads what `to_dict` returned.

        Raises:
            ValueError: a key is missing, or its value has another type.
        """
        return TypeAdapter(cls).validate_python(values)

    def branch_of(self, labels: np.ndarray) -> np.ndarray:
        """(C,) int, the branch of each category.

        Args:
            labels: (N, C) str, for each level the path of each category down to it.
        """
        return _branch_of(labels[self.level - 1], self.branches)


def make_reference(
    measured: Measured,
    labels: np.ndarray,
    categories: np.ndarray,
    sizes: np.ndarray,
    *,
    target: float,
    threshold: float | None,
    unreadable: tuple[int, int] = (0, 0),
    images: Mapping[str, Histogram] | None = None,
) -> Reference:
    """Counts the measured products of a release.

    Args:
        measured: with predictions and truth.
        labels: (N, C) str, for each level, coarse to fine, the path of each of C categories down to it.
        categories: (C,) str.
        sizes: (C,) int, training products.
        target: precision promised.
        threshold: products with at least this confidence are accepted; None: nothing is.
        unreadable: products of the catalogue without a readable image, and all of its products.
        images: histograms of images.
    """
    edges = _edges(measured.confidence, threshold)
    bins = np.searchsorted(edges, measured.confidence, side="right")
    accepted = measured.confidence >= (np.inf if threshold is None else threshold)
    level, branches = _branches(measured, labels, sizes, accepted)
    branch_of = _branch_of(labels[level - 1], branches)
    shape = (len(branches), len(edges) + 1)
    cell = branch_of[measured.predicted] * shape[1] + bins
    cells = np.bincount(cell, minlength=shape[0] * shape[1])
    right = np.bincount(cell[measured.correct], minlength=len(cells))
    category = np.bincount(measured.predicted, minlength=len(categories))
    order = np.argsort(-sizes, kind="stable")[:MOST_CATEGORIES]
    named = order[_expected(sizes, measured)[order] >= LEAST]
    counts = np.append(category[named], category.sum() - category[named].sum())
    return Reference(
        target=target,
        threshold=threshold,
        level=level,
        branches=branches,
        edges=edges,
        cells=cells.reshape(shape),
        right=right.reshape(shape),
        confidence_sum=np.bincount(bins, measured.confidence, minlength=shape[1]),
        confusion=_confusion(measured, branch_of, accepted, len(branches)),
        categories=Histogram(counts, names=(*categories[named].tolist(), OTHERS)),
        atc=_atc(measured.confidence[accepted], measured.correct[accepted]),
        unreadable=unreadable,
        images=images or {},
    )


def _edges(confidence: np.ndarray, threshold: float | None) -> np.ndarray:
    """Between bins of equally many products, and at the threshold."""
    edges = np.unique(np.quantile(confidence, np.arange(1, BINS) / BINS)) if len(confidence) else np.empty(0)
    return edges if threshold is None else np.union1d(edges, [threshold])


def _expected(sizes: np.ndarray, measured: Measured) -> np.ndarray:
    """(C,) float, measured products of each category if they were divided as the training products."""
    expected: np.ndarray = sizes / max(sizes.sum(), 1) * len(measured.truth)
    return expected


def _branches(
    measured: Measured, labels: np.ndarray, sizes: np.ndarray, accepted: np.ndarray
) -> tuple[int, tuple[str, ...]]:
    """The deepest level whose branches are large enough and can be distinguished; else the coarsest."""
    expected = _expected(sizes, measured)
    for level in range(len(labels), 0, -1):
        names, node = np.unique(labels[level - 1].astype(str), return_inverse=True)
        products = np.bincount(node, expected)
        large = np.flatnonzero(products >= LEAST)
        most = np.sort(large[np.argsort(-products[large], kind="stable")][:MOST_BRANCHES])
        branches = (*names[most].tolist(), OTHERS)
        if level > 1 and (len(large) > MOST_BRANCHES or products[large].sum() < ENOUGH * products.sum()):
            continue
        confusion = _confusion(measured, _branch_of(labels[level - 1], branches), accepted, len(branches))
        if level == 1 or _condition(confusion) <= MAX_CONDITION:
            return level, branches
    raise ValueError("labels of no level; expected at least one")


def _branch_of(labels: np.ndarray, branches: tuple[str, ...]) -> np.ndarray:
    position = {name: at for at, name in enumerate(branches[:-1])}
    return np.array([position.get(str(label), len(branches) - 1) for label in labels], dtype=np.int64)


def _confusion(measured: Measured, branch_of: np.ndarray, accepted: np.ndarray, branches: int) -> np.ndarray:
    """(B, 2, B) int; a product that is not learnt counts in the branch that it is taken for."""
    predicted = branch_of[measured.predicted]
    true = np.where(measured.truth >= 0, branch_of[measured.truth], predicted)
    confusion = np.zeros((branches, 2, branches), np.int64)
    np.add.at(confusion, (predicted, accepted.astype(int), true), 1)
    return confusion


def _condition(confusion: np.ndarray) -> float:
    cells = confusion.reshape(-1, confusion.shape[2])
    return condition_of(cells[:, cells.sum(axis=0) >= TINY])


def _atc(confidence: np.ndarray, correct: np.ndarray) -> float | None:
    """The confidence above which, of the accepted, as many lie as are right."""
    if not len(confidence):
        return None
    wrong = int((~correct).sum())
    return float(np.sort(confidence)[min(wrong, len(confidence) - 1)])
