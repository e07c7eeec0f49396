"""The categorizer: head, confidence model and threshold together, from bottlenecks to decisions.

Batch and HTTP, evaluation and release all decide through it, so their decisions are the same.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from features.engines.engine import Engine, extract
from features.errors import ShelfmarkError
from features.records import pieces_of
from features.views import View, combined, parse_view
from models.decisions.cascade import Cascade, certainty, rows_that_decide
from models.decisions.categories import Department
from models.decisions.confidence import DECIMALS, ConfidenceModel, Evidence
from models.decisions.levels import stop_level
from models.decisions.predictions import Predictions, level_probabilities, predict, summarize
from models.decisions.thresholds import Certificate
from models.heads.architectures import SET, Head
from models.rows import ChosenRows, Rows
from models.taxonomy import Taxonomy

ACCEPTED, PARENT, REVIEW, UNREADABLE = "accepted", "parent", "review", "unreadable"
COLUMNS = (
    *("product_id", "category", "category_path", "confidence", "status"),
    *("node", "node_path", "node_level", "top_categories", "top_probabilities"),
    *("views", "release"),
)


@dataclass(frozen=True)
class LevelRule:
    """How nodes of a level above the categories are decided."""

    confidence: ConfidenceModel
    certificate: Certificate  # about the products that stop at the level


@dataclass(frozen=True)
class KeptCategories:
    """What could be certified if only the best categories were decided automatically."""

    share: float  # of the categories predicted on FIT
    kept: tuple[str, ...]
    dropped: int  # categories
    certificate: Certificate  # about the products predicted as a kept category


@dataclass(frozen=True, kw_only=True)
class DecisionRules:
    """How the predictions of one head become decisions: thresholds.json.

    Fields with a default are missing in older files.
    """

    model: str  # digest of the head's files
    labels: str  # digest of taxonomy.csv
    temperature: float
    confidence: ConfidenceModel  # in the category
    certificate: Certificate  # of the category
    target: float  # precision promised, at every level
    delta: float  # probability that the promise fails at any level
    fit: dict[Literal["products"], int]
    aggregation: str = "mean"  # of a product's images
    cascade: Cascade | None = None  # None: all views decide about every product
    levels: dict[str, LevelRule] = field(default_factory=dict)  # level1 (coarsest) …, without the categories
    # New or split categories with too little evidence: their confidence is 0, they are not accepted
    withheld: tuple[str, ...] = ()
    # For planning, and used by nothing. Each certificate holds by itself:
    ladder: tuple[Certificate, ...] = ()  # other targets
    departments: tuple[Department, ...] = ()  # nodes of level 1, at the threshold of the category
    restriction: KeptCategories | None = None  # only the best categories

    def to_dict(self) -> dict[str, object]:
        """Returns what thresholds.json holds."""
        values: dict[str, object] = TypeAdapter(DecisionRules).dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DecisionRules":
        """Reads what `to_dict` returned.

        Raises:
            ValueError: a key is missing, or its value has another type.
        """
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True)
class Predictor:
    """Predicts the categories of products by a head; what calibration works on."""

    head: Head
    taxonomy: Taxonomy
    sizes: np.ndarray  # (C,) int, training products
    model: str  # digest of the head's files
    labels: str  # digest of taxonomy.csv
    set_head: Head | None = None  # reads a product's images together; None where none was trained

    @cached_property
    def paths(self) -> np.ndarray:
        """(C,) str, each category for people: its names from coarse to fine."""
        paths = [self.taxonomy.label(index) for index in range(len(self.taxonomy.categories))]
        return np.array(paths, dtype=object)

    def evidence(self, predictions: Predictions, level: int | None = None) -> Evidence:
        """What the confidence in the nodes of a level is computed from; None: in the categories."""
        return predictions.evidence(self.taxonomy, self.sizes, level)

    def predict(
        self, bottlenecks: Rows, bounds: np.ndarray, temperature: float, aggregation: str = "mean"
    ) -> Predictions:
        """Predictions about products.

        Args:
            bottlenecks: (images, d), products together.
            bounds: (n + 1,) of `product_bounds`.
            temperature: the logits are divided by it.
            aggregation: of a product's images, as for `predictions.predict`.
        """
        return predict(self.head, bottlenecks, bounds, self.taxonomy, temperature, aggregation, self.set_head)


@dataclass(frozen=True)
class Categorizer:
    """Decides about products."""

    predictor: Predictor
    rules: DecisionRules
    release: str | None = None  # name of the bundle's directory; None outside a bundle

    def __post_init__(self) -> None:
        if self.rules.aggregation == SET and self.predictor.set_head is None:
            raise ShelfmarkError(
                "set.json is missing; the thresholds were calibrated for a set head; run train again"
            )
        if (self.rules.model, self.rules.labels) != (self.predictor.model, self.predictor.labels):
            raise ShelfmarkError(
                "thresholds of another head; expected those calibrated for this one; run calibrate again"
            )

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The views of each image that it predicts from, in their order."""
        return tuple(map(parse_view, self.predictor.head.shape.views))

    @property
    def rows_of_image(self) -> int:
        """Bottlenecks of each image that it predicts from: one for each view, or their mean."""
        return self.predictor.head.shape.rows_of_image

    def rows(self, views: Sequence[np.ndarray]) -> np.ndarray:
        """(n · rows_of_image, d) float16, what it predicts from, of n images; (n, d) float16 of each view."""
        return combined(views, self.predictor.head.shape.averaged)

    @property
    def head(self) -> Head:
        """The head that predicts the categories: the set head where it was chosen, else the other one."""
        set_head = self.predictor.set_head if self.rules.aggregation == SET else None
        return set_head or self.predictor.head

    def bottlenecks(self, engines: Mapping[View, Engine], jpegs: Sequence[bytes], source: str) -> np.ndarray:
        """(n · rows_of_image, d) float16 of n strict JPEGs.

        Args:
            engines: run the backbone, by `View.network`, as `engines_of_views` gives them.
            jpegs: of `normalise`.
            source: named by errors.
        """
        pieces = functools.partial(pieces_of, jpegs, source=source)
        count = len(jpegs)
        return self.rows([extract(engines[one.network], pieces(), count, [one])[0] for one in self.views])

    def looks_again(self, first: Rows, bounds: np.ndarray) -> np.ndarray:
        """(n,) bool: about which products all views decide; without a cascade about all of them.

        Args:
            first: (images, d), products together; the first view of each image, of which there is a row.
            bounds: (n + 1,) of the images.
        """
        cascade = self.rules.cascade
        if cascade is None:
            return np.ones(len(bounds) - 1, bool)
        again: np.ndarray = certainty(self.predictor.head, first, bounds) < cascade.limit
        return again

    def deciding(self, bottlenecks: Rows, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which rows decide, where all views of all products are there: without a cascade all of them.

        Args:
            bottlenecks: (rows, d), products together; `rows_of_image` of each image.
            bounds: (n + 1,) of the rows, from 0.

        Returns:
            Numbers of the rows (m,) int, their bounds (n + 1,), and (n,) bool, as `looks_again`.
        """
        if self.rules.cascade is None:
            return np.arange(len(bottlenecks)), bounds, np.ones(len(bounds) - 1, bool)
        first = ChosenRows(bottlenecks, np.arange(0, len(bottlenecks), self.rows_of_image))
        again = self.looks_again(first, bounds // self.rows_of_image)
        return *rows_that_decide(bounds, again, self.rows_of_image), again

    def predict(self, bottlenecks: Rows, bounds: np.ndarray, again: np.ndarray | None = None) -> Predictions:
        """Predictions about products, with the calibrated temperature and aggregation.

        Args:
            bottlenecks: (rows, d), products together; those that decide.
            bounds: (n + 1,) of the rows.
            again: (n,) bool, as `looks_again`; None: all, without a cascade.

        Raises:
            ValueError: there is a cascade, and `again` is not given.
        """
        rules = self.rules
        found = self.predictor.predict(bottlenecks, bounds, rules.temperature, rules.aggregation)
        if again is None and rules.cascade is not None:
            raise ValueError("no `again`; expected that of `deciding` or `looks_again`, for a cascade")
        return found if again is None else replace(found, again=again)

    def predict_all(self, bottlenecks: np.ndarray, bounds: np.ndarray) -> Predictions:
        """As `predict`, where all views of all products are there, in memory."""
        if self.rules.cascade is None:
            return self.predict(bottlenecks, bounds)
        rows, own, again = self.deciding(bottlenecks, bounds)
        return self.predict(bottlenecks[rows], own, again)

    def predict_few(self, bottlenecks: np.ndarray, bounds: np.ndarray) -> tuple[Predictions, np.ndarray]:
        """Predictions about a few products, and their (n, C) float64 probabilities, in one pass of the head.

        Args:
            bottlenecks: (rows, d), products together; all in memory.
            bounds: (n + 1,), from 0.
        """
        predictor, rules = self.predictor, self.rules
        levels = level_probabilities(
            predictor.head, bottlenecks, bounds, rules.temperature, rules.aggregation, predictor.set_head
        )
        return summarize(levels, np.diff(bounds), predictor.taxonomy), levels[-1]

    def probabilities(self, bottlenecks: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """(n, C) float64 probabilities of all categories, of a few products; arguments as of `predict`."""
        predictor, rules = self.predictor, self.rules
        levels = level_probabilities(
            predictor.head, bottlenecks, bounds, rules.temperature, rules.aggregation, predictor.set_head
        )
        return levels[-1]

    def confidence(self, predictions: Predictions) -> np.ndarray:
        """(n,) float64, calibrated probability that the most likely category is correct.

        It is 0 where that category is withheld: wherever a threshold is compared with it, in batch, HTTP,
        evaluation and monitor, the product is then not accepted.
        """
        confidence = self.rules.confidence.confidence(self.predictor.evidence(predictions))
        return np.where(self.withheld[predictions.top[:, 0]], 0.0, confidence)

    def level_confidences(self, predictions: Predictions) -> np.ndarray:
        """(n, N) float64: in the ancestor at each level, `confidence` last; 0 where there is no rule."""
        rules, columns = self.rules.levels, []
        for level in range(1, self.predictor.taxonomy.levels):
            rule = rules.get(f"level{level}")
            evidence = self.predictor.evidence(predictions, level)
            columns.append(rule.confidence.confidence(evidence) if rule else np.zeros(len(predictions.top)))
        return np.stack([*columns, self.confidence(predictions)], axis=1)

    @cached_property
    def thresholds(self) -> np.ndarray:
        """(N,) float, the threshold of each level, coarse to fine; infinite where nothing is accepted."""
        names = [f"level{level}" for level in range(1, self.predictor.taxonomy.levels)]
        rules = [self.rules.levels.get(name) for name in names]
        certificates = [rule.certificate if rule else None for rule in rules] + [self.rules.certificate]
        found = [one.threshold if one else None for one in certificates]
        return np.array([np.inf if threshold is None else threshold for threshold in found])

    def stops(self, predictions: Predictions, confidences: np.ndarray) -> np.ndarray:
        """(n,) int, the level at which each product is decided, 1 (coarsest) to N; 0: by a person.

        Args:
            predictions: about n products.
            confidences: (n, N) of `level_confidences`.
        """
        return stop_level(confidences, self.predictor.taxonomy.depth[predictions.top[:, 0]], self.thresholds)

    @cached_property
    def withheld(self) -> np.ndarray:
        """(C,) bool, categories that are not accepted: there is too little evidence about them yet."""
        return np.isin(self.predictor.taxonomy.categories, list(self.rules.withheld))

    def decide(self, product_id: np.ndarray, predictions: Predictions) -> pd.DataFrame:
        """Decisions about n products, one row each, columns COLUMNS.

        Args:
            product_id: (n,) str.
            predictions: about them.
        """
        return decisions_table(**self.decide_columns(product_id, predictions))

    def decide_columns(self, product_id: np.ndarray, predictions: Predictions) -> dict[str, list[Any]]:
        """As `decide`: COLUMNS → values; for a few products, pandas takes longer than all else."""
        taxonomy, most_likely = self.predictor.taxonomy, predictions.top[:, 0]
        confidences = self.level_confidences(predictions)
        names, stop = taxonomy.categories, self.stops(predictions, confidences)
        category, accepted = names[most_likely], stop == taxonomy.levels
        level = np.where(accepted, taxonomy.depth[most_likely], stop)
        above = taxonomy.names[most_likely, np.maximum(level - 1, 0)]
        return {
            "product_id": list(product_id),
            "category": list(category),
            "category_path": list(self.predictor.paths[most_likely]),
            "confidence": confidences[:, -1].tolist(),
            "status": list(np.select([accepted, level > 0], [ACCEPTED, PARENT], REVIEW)),
            "node": list(np.where(accepted, category, np.where(level > 0, above, None))),
            "node_path": list(self._node_paths(most_likely, stop)),
            "node_level": [at or None for at in level.tolist()],
            "top_categories": _trimmed(names[predictions.top].tolist(), predictions.top),
            "top_probabilities": _trimmed(
                predictions.top_probability.astype(np.float64).round(DECIMALS).tolist(), predictions.top
            ),
            "views": self._names_of_views(predictions.again),
            "release": [self.release] * len(product_id),
        }

    def _names_of_views(self, again: np.ndarray) -> list[str]:
        """Of n products the views that decided, joined by commas."""
        names = [view.name for view in self.views]
        found: list[str] = np.where(again, ",".join(names), names[0]).tolist()
        return found

    def _node_paths(self, category: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """(n,) object, what was decided, for people: its names from coarse to fine; None for a person.

        Args:
            category: (n,) int, the most likely ones.
            stop: (n,) int, of `stops`.
        """
        taxonomy = self.predictor.taxonomy
        paths = np.full(len(category), None, dtype=object)
        accepted = stop == taxonomy.levels
        paths[accepted] = self.predictor.paths[category[accepted]]
        for level in range(1, taxonomy.levels):
            rows = np.flatnonzero(stop == level)
            _, first, at = np.unique(
                taxonomy.nodes[level - 1][category[rows]], return_index=True, return_inverse=True
            )
            labels = [taxonomy.label(index, level) for index in category[rows[first]].tolist()]
            paths[rows] = np.array(labels, dtype=object)[at]
        return paths


def _trimmed(rows: list[list[Any]], top: np.ndarray) -> list[list[Any]]:
    """The rows (n, 5) without the places where `top` has no category, which are the last ones."""
    counts = np.count_nonzero(top >= 0, axis=1)
    for row in np.flatnonzero(counts < top.shape[1]).tolist():
        rows[row] = rows[row][: counts[row]]
    return rows


def decisions_table(**columns: Iterable[object]) -> pd.DataFrame:
    """A table of decisions, columns COLUMNS in their fixed types."""
    table = pd.DataFrame({name: pd.Series(list(columns[name]), dtype=object) for name in COLUMNS})
    return table.astype({"confidence": "float64", "node_level": "Int32"})


def unreadable(product_id: Sequence[str], release: str | None = None) -> pd.DataFrame:
    """Decisions about products without any readable image."""
    return decisions_table(**unreadable_columns(product_id, release))


def unreadable_columns(product_id: Sequence[str], release: str | None) -> dict[str, list[Any]]:
    """As `unreadable`, without pandas: COLUMNS → values."""
    count = len(product_id)
    same = dict.fromkeys(COLUMNS) | {"confidence": 0.0, "status": UNREADABLE, "release": release}
    empty: dict[str, list[Any]] = {
        name: [[] for _ in product_id] for name in ("top_categories", "top_probabilities")
    }
    return {name: [value] * count for name, value in same.items()} | {"product_id": list(product_id)} | empty
