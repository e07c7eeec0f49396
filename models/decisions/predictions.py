"""Predictions about products: the five most likely categories, and the few numbers that a confidence needs.

Bottlenecks are read piece by piece and not kept: there is never a products × categories matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from models.decisions.confidence import Evidence, product_probabilities, product_ranges
from models.heads.architectures import SET, Head, set_logits
from models.rows import Rows
from models.taxonomy import Taxonomy

TOP = 5
PIECE = 8192  # images whose logits are in memory at once


class Classifier(Protocol):
    """A head, or anything else that gives logits."""

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        """(n, d) float16 → (n, nodes) float32 logits of each level it has; the last are the categories'."""
        ...


@dataclass(frozen=True)
class Predictions:
    """Predictions about n products."""

    top: np.ndarray  # (n, 5) int32 categories, most likely first; -1 where the tree has fewer
    top_probability: np.ndarray  # (n, 5) float32
    level_top: np.ndarray  # (n, N, 5) int32 nodes of each level by summed leaf probabilities, likewise
    # (n, N, 5) int32 nodes by each level's own output; (n, 0, 5) of a flat head, which has none
    own_top: np.ndarray
    entropy: np.ndarray  # (n,) float32, nats
    # (n, N) float32, probability of each ancestor of the most likely category; at the finest level its own
    level_mass: np.ndarray
    level_rival: np.ndarray  # (n, N) float32, largest probability of another node of each level
    max_logit_pnorm: np.ndarray  # (n,) float32, 0 to 1, see `max_logit_pnorm`
    images: np.ndarray  # (n,) int, images that the prediction is made from
    again: np.ndarray  # (n,) bool, made from all views; else from the first alone, see cascade.py

    def only(self, chosen: np.ndarray | slice) -> "Predictions":
        """Predictions about the chosen products: (m,) row numbers, (n,) bool, or a slice."""
        return Predictions(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Predictions about the products of several parts, at least one, in their order."""
        return cls(*(np.concatenate([getattr(one, column.name) for one in parts]) for column in fields(cls)))

    def evidence(self, taxonomy: Taxonomy, sizes: np.ndarray, level: int | None = None) -> Evidence:
        """The numbers that the confidence in a node of each product is computed from.

        Args:
            taxonomy: of the C categories.
            sizes: (C,) int, training products of each category.
            level: of the nodes, which are the ancestors of the most likely categories, 1 (coarsest) to N;
                None: N, the categories themselves.
        """
        at = (level or taxonomy.levels) - 1
        node = taxonomy.nodes[at][self.top[:, 0]]
        node_sizes = np.bincount(taxonomy.nodes[at], weights=sizes).astype(np.int64)
        return Evidence(
            p1=self.level_mass[:, at],
            p2=self.level_rival[:, at],
            entropy=self.entropy,
            parent_mass=self.level_mass[:, at - 1] if at else np.ones(len(node), np.float32),
            max_logit_pnorm=self.max_logit_pnorm,
            category=node,
            category_size=node_sizes[node],
            images=self.images,
        )


def product_bounds(product_id: np.ndarray) -> np.ndarray:
    """(n + 1,) int64: the first image of each of n products, and the number of images.

    Args:
        product_id: (images,) str; the images of a product stand together.

    >>> product_bounds(np.array(["a", "a", "b"])).tolist()
    [0, 2, 3]
    """
    if not len(product_id):
        return np.zeros(1, np.int64)
    return np.concatenate([[0], np.flatnonzero(product_id[1:] != product_id[:-1]) + 1, [len(product_id)]])


def predict(
    head: Classifier,
    bottlenecks: Rows,
    bounds: np.ndarray,
    taxonomy: Taxonomy,
    temperature: float,
    aggregation: str = "mean",
    set_head: Head | None = None,
) -> Predictions:
    """Predictions about products: categories by their own probability, nodes of each level beside them.

    Args:
        head: gives logits.
        bottlenecks: (images, d), products together.
        bounds: (n + 1,) of `product_bounds`.
        taxonomy: of the head's C categories.
        temperature: the logits of every level are divided by it.
        aggregation: of a product's images, see confidence.py; or "set": the categories are predicted by
            `set_head`, the levels above by the mean.
        set_head: reads the images of a product together.
    """
    parts = []
    for start, stop in list(product_ranges(bounds, PIECE)) or [(0, 0)]:  # no products: empty, of every level
        rows = bottlenecks[slice(bounds[start], bounds[stop])]
        own = bounds[start : stop + 1] - bounds[start]
        levels = level_probabilities(head, rows, own, temperature, aggregation, set_head)
        parts.append(summarize(levels, np.diff(own), taxonomy))
    return Predictions.joined(parts)


def level_probabilities(
    head: Classifier,
    bottlenecks: np.ndarray,
    bounds: np.ndarray,
    temperature: float,
    aggregation: str = "mean",
    set_head: Head | None = None,
) -> list[np.ndarray]:
    """(n, nodes) float64 probabilities of n products, for each level that the head has, coarse to fine.

    Args:
        head: as for `predict`, like all others.
        bottlenecks: (images, d), of a few products: all in memory.
        bounds: (n + 1,), from 0.
        temperature: see there.
        aggregation: see there.
        set_head: see there.
    """
    images = np.diff(bounds)
    image_wise = "mean" if aggregation == SET else aggregation
    levels = [
        product_probabilities(logits, images, temperature, image_wise) for logits in head.outputs(bottlenecks)
    ]
    if aggregation == SET:
        assert set_head is not None
        logits = set_logits(set_head, bottlenecks, bounds)
        levels[-1] = product_probabilities(logits, np.ones_like(images), temperature)
    return levels


def summarize(levels: Sequence[np.ndarray], images: np.ndarray, taxonomy: Taxonomy) -> Predictions:
    """Predictions about a few products from their probabilities.

    Args:
        levels: (n, nodes) float64 of each level that the head has, of `level_probabilities`.
        images: (n,) int, images of each product.
        taxonomy: of the head's categories.
    """
    probability = levels[-1]
    summed = [probability @ sums for sums in taxonomy.sums]
    top = _top(probability)
    level_top = np.stack([_top(level) for level in summed], axis=1)
    own_top = (
        np.stack([_top(level) for level in levels], axis=1)
        if len(levels) > 1
        else np.zeros((len(top), 0, TOP), np.int32)
    )
    top_probability = np.take_along_axis(probability, np.maximum(top, 0), axis=1)
    log_probability = np.log(np.maximum(probability, 1e-30))
    entropy = -np.sum(probability * log_probability, axis=1)
    pnorm = max_logit_pnorm(log_probability)
    mass, rival = _masses([*summed[:-1], probability], taxonomy.nodes[:, top[:, 0]], level_top)
    return Predictions(
        *(top, top_probability.astype(np.float32), level_top, own_top),
        *(entropy.astype(np.float32), mass, rival, pnorm.astype(np.float32), images),
        np.ones(len(top), bool),
    )


def _masses(
    levels: Sequence[np.ndarray], nodes: np.ndarray, level_top: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of a node of each level, and the largest one of the level's other nodes.

    Args:
        levels: (n, nodes) probabilities of each level.
        nodes: (N, n) int, the node of each level.
        level_top: (n, N, 5) the most likely nodes of each level.

    Returns:
        Both (n, N) float32; the second is 0 where a level has one node.
    """
    mass, rival, rows = [], [], np.arange(nodes.shape[1])
    for at, (probability, node) in enumerate(zip(levels, nodes, strict=True)):
        other = np.where(level_top[:, at, 0] == node, level_top[:, at, 1], level_top[:, at, 0])
        mass.append(probability[rows, node])
        rival.append(np.where(other >= 0, probability[rows, np.maximum(other, 0)], 0.0))
    return np.stack(mass, axis=1).astype(np.float32), np.stack(rival, axis=1).astype(np.float32)


def max_logit_pnorm(log_probability: np.ndarray) -> np.ndarray:
    """(n,) float64, the largest centred logit divided by the 3-norm of all of them, above 0, at most 1.

    MaxLogit-pNorm (Cattelan and Silva, UAI 2024), of the product: a softmax changes only the mean of the
    logits, which centring subtracts, so the logarithms of the aggregated probabilities serve as the logits of
    one image do. The temperature cancels out. It distinguishes a category that stands out from all the others
    from one that is only the best of many. Why p = 3, and other logits: docs/experiments/confidence.md.

    Args:
        log_probability: (n, C) float64, overwritten. All equal gives C^(-1/3).
    """
    centred = log_probability
    centred -= centred.mean(axis=1, keepdims=True)
    largest = centred.max(axis=1)
    sizes = np.abs(centred, out=centred)
    norm = np.cbrt(np.einsum("nc,nc->n", np.square(sizes), sizes))
    equal = np.full(len(norm), centred.shape[1] ** (-1 / 3))
    # where all are equal the norm is rounding alone
    pnorm: np.ndarray = np.divide(largest, norm, out=equal, where=largest > 1e-9)
    return pnorm


def _top(probability: np.ndarray) -> np.ndarray:
    """(n, 5) int32 columns of the largest values, ties to the lower column; -1 where there are fewer."""
    top = np.full((len(probability), TOP), -1, np.int32)
    remaining, rows = probability.copy(), np.arange(len(probability))
    for rank in range(min(TOP, probability.shape[1])):  # five passes: an eighth of argpartition's time
        top[:, rank] = remaining.argmax(axis=1)  # the lowest column among equals
        remaining[rows, top[:, rank]] = -1
    return top
