"""metrics.json: the figures of an evaluation, one definition for evaluate and for everybody who reads them.

    {"train": {…}, "val": {…}, "cert": {…}, "test": {…}, "graded_on", "independent", "backbone", "weights"}

A part without products is null.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TopShares(_Figures):
    """Shares of products whose true node is the most likely one of a level, or one of the first five."""

    top1: float
    top5: float


class PrecisionFigures(_Figures):
    """Precision when every product is accepted, and how many could be accepted at the promised precision."""

    products: int
    precision: float
    acceptance_rate_at_target: float


class HierarchyFigures(_Figures):
    """How the predictions of the levels agree, and how far wrong categories are from the correct ones."""

    own_outputs: bool  # the head has an output for each level
    summed: dict[str, TopShares]  # by level: from leaf probabilities, summed up the tree
    consistency: dict[str, float]  # by level: share of products whose category is under its first node
    precision: float  # hierarchical
    recall: float
    f1: float


class DecidedFigures(_Figures):
    """The products that are decided at a level, and no finer one."""

    products: int
    precision: float | None  # of the level's node; None without products


class PartFigures(PrecisionFigures):
    """The figures of one part of the catalogue; products of unlearnt categories count as wrong.

    The fields with a default are missing in evaluations of older versions.
    """

    target_precision: float
    threshold: float | None
    accepted: int
    accepted_precision: float | None
    levels: dict[str, TopShares]  # by level: by the level's own output, of a flat head as `summed`
    hierarchy: HierarchyFigures
    unseen: PrecisionFigures | None  # of the products without an image that was trained on
    learnt: PrecisionFigures | None = None  # of the products of categories that the head knows
    decided: dict[str, DecidedFigures] = {}  # by level; level1 is the coarsest, the last the category
    review: int | None = None  # products that a person decides
    unlearnt_products: int | None = None  # of categories that the head does not know
    weighted: PrecisionFigures | None = None  # counted by the source's weights; None where it has none


class Metrics(_Figures):
    """metrics.json."""

    train: PartFigures | None
    val: PartFigures | None
    cert: PartFigures | None
    test: PartFigures | None
    graded_on: Literal["test", "cert"]
    independent: bool  # measured on test
    backbone: str
    weights: str

    @property
    def measured(self) -> PartFigures | None:
        """The figures of the part that measures: test, else CERT."""
        return self.test if self.graded_on == "test" else self.cert

    def to_json(self) -> bytes:
        """As in metrics.json."""
        return json.dumps(self.model_dump(), indent=1, sort_keys=True).encode()
