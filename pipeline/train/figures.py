"""The figures of an evaluation, one definition for evaluate and for everybody who reads them.

metrics.json

    {"train": {…}, "val": {…}, "cert": {…}, "test": {…}, "graded_on", "independent", "backbone", "weights"}

A part without products is null.

by_seller.json: SellersFigures below
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


# by_seller.json

Reason = Literal["no sellers", "few products"]  # why nothing was measured


class Accepted(_Figures):
    """Decisions without a person, among all decisions about the tests."""

    rate: float
    precision: float | None  # None where none was accepted
    lower: float | None  # interval of the precision
    upper: float | None


class SellersFigures(_Figures):
    """by_seller.json. Shares of the tests, which are predictions: a product is judged once in a resample."""

    measured_on: Literal["test", "cert"]
    method: Literal["votes", "paper"]
    reason: Reason | None  # why nothing was measured
    sellers_there: int  # with products among the measured ones
    enough: int  # of these, with products enough to divide
    apart_enough: int  # of these, without products in training
    apart: bool  # the figures are about sellers without products in training
    sellers: int  # that the figures are about
    products: int
    resamples: int
    tests: int
    base: float | None = None  # precision
    adapted: float | None = None  # likewise, after all corrections
    oracle: float | None = None
    gain: float | None = None
    gain_lower: float | None = None
    gain_upper: float | None = None
    better: int = 0  # sellers
    same: int = 0
    worse: int = 0
    flagged: int = 0  # sellers whose corrections, all true, looked wrong in some resample
    target: float | None = None  # precision promised for adapted decisions
    certified: bool = False  # a threshold for adapted decisions is certified
    accepted_base: Accepted | None = None  # without corrections
    accepted: Accepted | None = None  # after all corrections
    accepted_adapted: Accepted | None = None  # of these, the adapted ones alone
