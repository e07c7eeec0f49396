"""Products with what a categorizer predicts and decides about them, beside their true categories."""

from dataclasses import dataclass

import numpy as np

from models.decisions.categorizer import Categorizer
from models.decisions.predictions import Predictions, product_bounds
from pipeline.job.catalogue import Part, TrueCategories


@dataclass(frozen=True)
class Evaluated:
    """Products with their predictions and their true categories."""

    product_id: np.ndarray  # (n,) str
    nodes: np.ndarray  # (n, N) int, of the true category; -1 where the head's tree has none
    predictions: Predictions
    confidences: np.ndarray  # (n, N) float, in the nodes of each level; the last in the category
    correct_nodes: np.ndarray  # (n, N) bool, likewise
    unseen: np.ndarray  # (n,) bool, no image of it was trained on
    weight: np.ndarray | None  # (n,) float; None where the source has no weights
    stop: np.ndarray  # (n,) int, the level that each is decided at, 1 (coarsest) to N; 0: by a person

    @property
    def truth(self) -> np.ndarray:
        """(n,) int, the true category; -1 for one that the head does not know."""
        truth: np.ndarray = self.nodes[:, -1]
        return truth

    @property
    def confidence(self) -> np.ndarray:
        """(n,) float, in the category."""
        confidence: np.ndarray = self.confidences[:, -1]
        return confidence

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool, whether the category is correct."""
        correct: np.ndarray = self.correct_nodes[:, -1]
        return correct

    @property
    def accepted(self) -> np.ndarray:
        """(n,) bool, whether the category is decided without a person."""
        accepted: np.ndarray = self.stop == self.nodes.shape[1]
        return accepted

    @property
    def node_correct(self) -> np.ndarray:
        """(n,) bool, whether the node that was decided is correct; False where none was."""
        at = np.maximum(self.stop - 1, 0)[:, None]
        correct: np.ndarray = np.take_along_axis(self.correct_nodes, at, axis=1)[:, 0] & (self.stop > 0)
        return correct

    @property
    def learnt(self) -> np.ndarray:
        """(n,) bool, whether the head knows the true category."""
        learnt: np.ndarray = self.truth >= 0
        return learnt

    def only(self, chosen: np.ndarray) -> "Evaluated":
        """The chosen products, (n,) bool."""
        return Evaluated(
            self.product_id[chosen], self.nodes[chosen], self.predictions.only(chosen),
            self.confidences[chosen], self.correct_nodes[chosen], self.unseen[chosen],
            None if self.weight is None else self.weight[chosen], self.stop[chosen],
        )  # fmt: skip


def evaluate_part(categorizer: Categorizer, part: Part, true: TrueCategories, trained: set[str]) -> Evaluated:
    """Predicts the categories of a part's products.

    Args:
        categorizer: predicts.
        part: images of products.
        true: their categories.
        trained: digests of the images trained on.
    """
    part, again = deciding(categorizer, part)
    bounds, taxonomy = product_bounds(part.product_id), categorizer.predictor.taxonomy
    product_id = part.product_id[bounds[:-1]]
    nodes = true.nodes(product_id, taxonomy)
    predictions = categorizer.predict(part.rows, bounds, again)
    seen = np.array([digest in trained for digest in part.image_digest], dtype=int)
    confidences = categorizer.level_confidences(predictions)
    return Evaluated(
        product_id=product_id,
        nodes=nodes,
        predictions=predictions,
        confidences=confidences,
        correct_nodes=taxonomy.nodes.T[predictions.top[:, 0]] == nodes,
        unseen=np.add.reduceat(seen, bounds[:-1]) == 0 if len(seen) else np.zeros(0, bool),
        weight=true.weights(product_id),
        stop=categorizer.stops(predictions, confidences),
    )


def deciding(categorizer: Categorizer, part: Part) -> tuple[Part, np.ndarray]:
    """The rows of a part that decide about its p products, and (p,) bool, as `Categorizer.looks_again`."""
    if categorizer.rules.cascade is None:
        return part, np.ones(len(product_bounds(part.product_id)) - 1, bool)
    rows, _, again = categorizer.deciding(part.rows, product_bounds(part.product_id))
    return part.only(rows), again
