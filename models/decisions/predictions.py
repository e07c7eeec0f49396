"""What a head says about products: the top five, and the few numbers that a confidence is made of.

Bottlenecks go in by pieces and are forgotten: there is never a products × categories matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from models.decisions.confidence import Evidence, product_probabilities
from models.heads.architectures import SET, Head, set_logits
from models.taxonomy import Taxonomy

TOP = 5
PIECE = 8192  # images looked at together


class Classifier(Protocol):
    """A head, or anything else that gives logits."""

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        """(n, d) float16 → (n, nodes) float32 of each level it has; last the categories."""
        ...


class Rows(Protocol):
    """Bottlenecks, in memory or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice) -> np.ndarray:
        """(m, d) float16."""
        ...


@dataclass(frozen=True)
class Predictions:
    """What a head says about n products."""

    top: np.ndarray  # (n, 5) int32 categories, most likely first; -1 where the tree has fewer
    top_probability: np.ndarray  # (n, 5) float32
    level_top: np.ndarray  # (n, N, 5) int32 nodes of each level by summed leaf probabilities, likewise
    own_top: (
        np.ndarray
    )  # (n, N, 5) int32, by the level's own output; (n, 0, 5) of a flat head, which has none
    entropy: np.ndarray  # (n,) float32, nats
    parent_mass: np.ndarray  # (n,) float32, probability under the parent of the most likely category
    images: np.ndarray  # (n,) int, images the answer is made of

    def only(self, chosen: np.ndarray | slice) -> "Predictions":
        """Those about the chosen products: (m,) numbers, (n,) bool, or a slice."""
        return Predictions(*(getattr(self, column.name)[chosen] for column in fields(self)))

    def evidence(self, sizes: np.ndarray) -> Evidence:
        """The numbers that a confidence is made of.

        Args:
            sizes: (C,) int, training products of each category.
        """
        second = np.where(self.top[:, 1] >= 0, self.top_probability[:, 1], 0.0)
        return Evidence(
            p1=self.top_probability[:, 0],
            p2=second,
            entropy=self.entropy,
            parent_mass=self.parent_mass,
            category=self.top[:, 0],
            category_size=sizes[self.top[:, 0]],
            images=self.images,
        )


def product_bounds(product_id: np.ndarray) -> np.ndarray:
    """(n + 1,) where each product's images begin; the images of a product stand together.

    >>> product_bounds(np.array(["a", "a", "b"])).tolist()
    [0, 2, 3]
    """
    if not len(product_id):
        return np.zeros(1, np.int64)
    return np.concatenate([[0], np.flatnonzero(product_id[1:] != product_id[:-1]) + 1, [len(product_id)]])


def pieces(bounds: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of products with about PIECE images each."""
    start = 0
    while start < len(bounds) - 1:
        stop = max(start + 1, int(np.searchsorted(bounds, bounds[start] + PIECE, side="right")) - 1)
        yield start, stop
        start = stop


def predict(
    head: Classifier,
    bottlenecks: Rows,
    bounds: np.ndarray,
    taxonomy: Taxonomy,
    temperature: float,
    aggregation: str = "mean",
    set_head: Head | None = None,
) -> Predictions:
    """Asks a head about products; a category's probability decides, those of the levels are told beside it.

    Args:
        head: gives logits.
        bottlenecks: (images, d), products together.
        bounds: (n + 1,) of `product_bounds`.
        taxonomy: of the head's C categories.
        temperature: the logits of every level are divided by it.
        aggregation: of a product's images, see confidence.py; or "set": `set_head` speaks about the
            categories, and the mean about the levels above.
        set_head: reads the images of a product together.
    """
    image_wise = "mean" if aggregation == SET else aggregation
    parts = []
    for start, stop in list(pieces(bounds)) or [(0, 0)]:  # of no products, too, the head tells its levels
        rows = bottlenecks[slice(bounds[start], bounds[stop])]
        images = np.diff(bounds[start : stop + 1])
        own = [product_probabilities(told, images, temperature, image_wise) for told in head.outputs(rows)]
        if aggregation == SET:
            assert set_head is not None
            logits = set_logits(set_head, rows, bounds[start : stop + 1] - bounds[start])
            own[-1] = product_probabilities(logits, np.ones_like(images), temperature)
        parts.append(_predict(own, images, taxonomy))
    columns = zip(*parts, strict=True)
    return Predictions(*(np.concatenate(column) for column in columns))


def _predict(own: list[np.ndarray], images: np.ndarray, taxonomy: Taxonomy) -> tuple[np.ndarray, ...]:
    probability = own[-1]
    by_level = [probability @ sums for sums in taxonomy.sums]
    top = _top(probability)
    level_top = np.stack([_top(level) for level in by_level], axis=1)
    own_top = (
        np.stack([_top(level) for level in own], axis=1)
        if len(own) > 1
        else np.zeros((len(top), 0, TOP), np.int32)
    )
    filled = np.take_along_axis(probability, np.maximum(top, 0), axis=1)
    entropy = -np.sum(probability * np.log(np.maximum(probability, 1e-30)), axis=1)
    parent = by_level[-2] if taxonomy.levels > 1 else np.ones((len(top), 1), np.float32)
    node = taxonomy.nodes[-2][top[:, 0]] if taxonomy.levels > 1 else np.zeros(len(top), int)
    mass = parent[np.arange(len(top)), node]
    entropy, mass = entropy.astype(np.float32), mass.astype(np.float32)
    return top, filled.astype(np.float32), level_top, own_top, entropy, mass, images


def _top(probability: np.ndarray) -> np.ndarray:
    """(n, 5) int32 columns of the largest values, ties to the lower column; -1 where there are fewer."""
    top = np.full((len(probability), TOP), -1, np.int32)
    left, rows = probability.copy(), np.arange(len(probability))
    for place in range(min(TOP, probability.shape[1])):  # five passes: an eighth of argpartition's time
        top[:, place] = left.argmax(axis=1)  # the lowest column among equals
        left[rows, top[:, place]] = -1
    return top
