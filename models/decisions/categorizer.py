"""The categorizer: head, confidence model and threshold together, from bottlenecks (or photos) to decisions.

Batch and HTTP, evaluation and release all decide through it, so their decisions are the same.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from features.engines.engine import Engine, extract
from features.errors import ShelfmarkError
from features.images.normalise import normalise
from features.images.refusal import Limits, Refused
from features.records import pieces_of
from models.decisions.confidence import ConfidenceModel
from models.decisions.predictions import Predictions, predict
from models.decisions.thresholds import Certificate
from models.heads.architectures import SET, Head
from models.rows import Rows
from models.taxonomy import Taxonomy

ACCEPTED, REVIEW, UNREADABLE = "accepted", "review", "unreadable"
COLUMNS = (
    *("product_id", "category", "category_path", "confidence", "status"),
    *("node", "node_path", "node_level", "top_categories", "top_probabilities"),
)


@dataclass(frozen=True)
class ThresholdsFile:
    """The keys of thresholds.json."""

    model: str  # digest of the head's files
    labels: str  # digest of taxonomy.csv
    temperature: float
    confidence: ConfidenceModel
    certificate: Certificate
    target: float  # precision promised
    delta: float  # probability that the promise fails
    fit: dict[Literal["products"], int]
    aggregation: str = "mean"  # of a product's images; the default is for older files, which lack it


@dataclass(frozen=True)
class DecisionRules:
    """How the predictions of one head become decisions."""

    model: str  # digest of the head's files
    labels: str  # digest of taxonomy.csv
    temperature: float
    confidence: ConfidenceModel
    certificate: Certificate
    fit_products: int
    aggregation: str = "mean"  # of a product's images

    def to_dict(self) -> dict[str, object]:
        """Returns what thresholds.json holds, see `ThresholdsFile`."""
        file = ThresholdsFile(
            model=self.model,
            labels=self.labels,
            temperature=self.temperature,
            confidence=self.confidence,
            certificate=self.certificate,
            target=self.certificate.target,
            delta=self.certificate.delta,
            fit={"products": self.fit_products},
            aggregation=self.aggregation,
        )
        return asdict(file) | {"confidence": self.confidence.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DecisionRules":
        """Reads what `to_dict` returned.

        Raises:
            ValueError: a key is missing, or its value has another type.
        """
        file = TypeAdapter(ThresholdsFile).validate_python(values)
        return cls(
            file.model, file.labels, file.temperature, file.confidence, file.certificate,
            file.fit["products"], file.aggregation,
        )  # fmt: skip


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

    def __post_init__(self) -> None:
        if self.rules.aggregation == SET and self.predictor.set_head is None:
            raise ShelfmarkError(
                "set.json is missing; the thresholds were calibrated for a set head; run train again"
            )
        if (self.rules.model, self.rules.labels) != (self.predictor.model, self.predictor.labels):
            raise ShelfmarkError(
                "thresholds of another head; expected those calibrated for this one; run calibrate again"
            )

    @property
    def flip(self) -> bool:
        """Whether it predicts from two bottlenecks of each image: of the image, then of the mirrored one."""
        return self.predictor.head.shape.flip

    def predict(self, bottlenecks: Rows, bounds: np.ndarray) -> Predictions:
        """Predictions about products, with the calibrated temperature and aggregation.

        Args:
            bottlenecks: (images, d), products together; with `flip` two rows of each image.
            bounds: (n + 1,) of the rows.
        """
        return self.predictor.predict(bottlenecks, bounds, self.rules.temperature, self.rules.aggregation)

    def confidence(self, predictions: Predictions) -> np.ndarray:
        """(n,) float64, calibrated probability that the most likely category is correct."""
        return self.rules.confidence.confidence(predictions.evidence(self.predictor.sizes))

    def decide(self, product_id: np.ndarray, predictions: Predictions) -> pd.DataFrame:
        """Decisions about n products, one row each, columns COLUMNS.

        Args:
            product_id: (n,) str.
            predictions: about them.
        """
        confidence = self.confidence(predictions)
        threshold = self.rules.certificate.threshold
        accepted = confidence >= threshold if threshold is not None else np.zeros(len(confidence), bool)
        names, most_likely = self.predictor.taxonomy.categories, predictions.top[:, 0]
        category, path = names[most_likely], self.predictor.paths[most_likely]
        return decisions_table(
            product_id=product_id,
            category=category,
            category_path=path,
            confidence=confidence,
            status=np.where(accepted, ACCEPTED, REVIEW),
            node=np.where(accepted, category, None),
            node_path=np.where(accepted, path, None),
            node_level=[self.predictor.taxonomy.levels if yes else None for yes in accepted],
            top_categories=[names[top[top >= 0]].tolist() for top in predictions.top],
            top_probabilities=[
                [round(float(p), 6) for p in probability[top >= 0]]
                for top, probability in zip(predictions.top, predictions.top_probability, strict=True)
            ],
        )


def decisions_table(**columns: Iterable[object]) -> pd.DataFrame:
    """A table of decisions, columns COLUMNS in their fixed types."""
    table = pd.DataFrame({name: pd.Series(list(columns[name]), dtype=object) for name in COLUMNS})
    return table.astype({"confidence": "float64", "node_level": "Int32"})


def unreadable(product_id: Sequence[str]) -> pd.DataFrame:
    """Decisions about products without any readable image."""
    nothing = [None] * len(product_id)
    empty: list[list[object]] = [[] for _ in product_id]
    return decisions_table(
        product_id=product_id,
        category=nothing,
        category_path=nothing,
        confidence=[0.0] * len(product_id),
        status=[UNREADABLE] * len(product_id),
        node=nothing,
        node_path=nothing,
        node_level=nothing,
        top_categories=empty,
        top_probabilities=empty,
    )


def categorize_photos(
    categorizer: Categorizer,
    engine: Engine,
    product_id: str,
    photos: Sequence[bytes],
    limits: Limits,
) -> tuple[pd.DataFrame, list[Refused | None]]:
    """The decision about one product from its photos' bytes.

    Args:
        categorizer: decides.
        engine: runs the categorizer's own backbone.
        product_id: of the decision.
        photos: contents of their files; one that is given twice counts once.
        limits: of image sizes.

    Returns:
        A decision, one row, and for each photo why it was refused, or None.
    """
    jpegs: list[bytes] = []
    refusal: dict[bytes, Refused | None] = {}
    digests = [hashlib.sha256(photo).digest() for photo in photos]
    for digest, photo in zip(digests, photos, strict=True):
        if digest in refusal:
            continue
        refusal[digest] = None
        try:
            jpegs.append(normalise(photo, limits).jpeg)
        except Refused as refused:
            refusal[digest] = refused
    refusals = [refusal[digest] for digest in digests]
    if not jpegs:
        return unreadable([product_id]), refusals
    views = [
        extract(engine, pieces_of(jpegs, source=f"product {product_id}"), len(jpegs), flip)
        for flip in ((False, True) if categorizer.flip else (False,))
    ]
    bottlenecks = np.stack(views, axis=1).reshape(-1, engine.width)
    predictions = categorizer.predict(bottlenecks, np.array([0, len(bottlenecks)]))
    return categorizer.decide(np.array([product_id], dtype=object), predictions), refusals
