"""Adapted decisions: what a seller's corrections make of the base's prediction, and when it is accepted.

    bundle/  sellers.json  (styles.centroids.npy  styles.bounds.npy)     these of the method "paper" alone

    product ──► base prediction ──┐
    seller's corrections ─────────┴──► method ──► category, share ──► adapted confidence

For a product whose seller has corrections in use:

    1  the category stays, and the base confidence is `base_threshold` or more   the base decision
    2  else, the adapted confidence reaches the certified threshold, the seller
       is not flagged and the category not withheld                              accepted, adapted
    3  else, the category differs                                                review, adapted
    4  else                                                                      the base decision

The certificate is about the decisions of rule 2 alone (seller_rules.py). A decision never depends on the other
products of the batch, nor on another seller's corrections.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from scipy.special import expit

from features.errors import ShelfmarkError
from models.decisions.categorizer import ACCEPTED, COLUMNS, REVIEW, Categorizer
from models.decisions.confidence import DECIMALS, EDGE, product_ranges
from models.decisions.predictions import Predictions
from models.decisions.suspicion import Suspicion, ranks
from models.decisions.thresholds import Certificate
from models.heads.architectures import SET, ProductRows
from models.rows import Rows
from models.sellers.interface import SellerMethod, SellerModel
from models.sellers.paper import PaperMethod
from models.sellers.styles import Styles
from models.sellers.votes import Votes, VotesMethod

ADAPTED_COLUMNS = ("adapted", "base_category", "corrections")  # bool, str or None, int; after COLUMNS
SELLERS_FILE = "sellers.json"
STYLES_FILES = ("centroids.npy", "bounds.npy")  # of the styles; in a bundle with STYLES before the name
STYLES = "styles."
PIECE = 256  # images whose probabilities of all categories are in memory at once
LEAST = 1e-30  # a probability in a logarithm is at least this
LARGEST = 65504.0  # of float16

Method = Literal["votes", "paper"]
Vectors = Literal["hidden", "bottlenecks"]


@dataclass(frozen=True)
class AdaptedConfidence:
    """Share of a seller's choice → probability that the adapted category is correct, fitted on FIT sellers.

    `logistic`: expit(intercept + sum of coefficient · (term - mean) / scale), the terms of `_terms`.
    `share`: the share as it is; `reason` says why.
    """

    kind: Literal["logistic", "share"]
    products: int  # that it was fitted on
    reason: str | None = None
    intercept: float = 0.0
    coefficient: Mapping[str, float] = field(default_factory=dict)  # term → log odds per standard deviation
    mean: Mapping[str, float] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    most_corrections: int = 0  # behind a product that it was fitted on; more count as these

    def confidence(
        self, share: np.ndarray, base_confidence: np.ndarray, stays: np.ndarray, corrections: np.ndarray
    ) -> np.ndarray:
        """Returns (n,) float64, 0 to 1, six decimals; a row's value does not depend on the other rows.

        Args:
            share: (n,) float, 0 to 1, of the method's choice.
            base_confidence: (n,) float, 0 to 1, of the base in its own category.
            stays: (n,) bool, whether the adapted category is the base's.
            corrections: (n,) int, that the method learnt before.
        """
        if self.kind == "share":
            return np.clip(np.asarray(share, float), 0, 1).round(DECIMALS)
        terms = adapted_terms(
            share, base_confidence, stays, np.minimum(corrections, self.most_corrections)
        )
        log_odds = np.full(len(share), self.intercept)
        for name, coefficient in self.coefficient.items():
            log_odds += coefficient * ((terms[name] - self.mean[name]) / self.scale[name])
        confidence: np.ndarray = expit(log_odds).round(DECIMALS)
        return confidence


def adapted_terms(
    share: np.ndarray, base_confidence: np.ndarray, stays: np.ndarray, corrections: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the terms of the logistic model, each (n,) float64; arguments as of `confidence`."""
    return {
        "logit_share": _logit(share),
        "logit_base_confidence": _logit(base_confidence),
        "stays": np.asarray(stays, float),
        "log_corrections": np.log1p(corrections),
    }


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(probability, float), EDGE, 1 - EDGE)
    logit: np.ndarray = np.log(clipped / (1 - clipped))
    return logit


@dataclass(frozen=True, kw_only=True)
class SellerRules:
    """How a seller's corrections change decisions: sellers.json."""

    model: str  # digest of the head's files
    method: Method
    vectors: Vectors  # of a product: the head's last hidden layer, or the bottlenecks
    votes: Votes  # the numbers of the method "votes"
    base_threshold: float  # a base decision so confident, whose category stays, is not adapted
    confidence: AdaptedConfidence
    certificate: Certificate  # of adapted decisions alone
    suspicion: Suspicion
    sellers: dict[str, int]  # fit_sellers, cert_sellers, fit_products, cert_products

    def to_dict(self) -> dict[str, object]:
        """Returns what sellers.json holds."""
        values: dict[str, object] = _RULES.dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "SellerRules":
        """Reads what `to_dict` returned.

        Raises:
            ValueError: a key is missing, or its value has another type.
        """
        return _RULES.validate_python(values)


_RULES = TypeAdapter(SellerRules)


@dataclass(frozen=True)
class SellerState:
    """What a decision needs of a seller."""

    model: SellerModel  # what was learnt of the corrections
    corrections: int  # in use, with or without a vector
    flagged: bool  # they look wrong: nothing is accepted because of them


@dataclass(frozen=True)
class Encoded:
    """A correction as a head sees it."""

    head: str  # digest of the head's files
    base: str  # the base's category
    vector: np.ndarray  # (v,) float16
    evidence: float  # that it is wrong, see suspicion.py; 0 where it says nothing


@dataclass(frozen=True)
class Seen:
    """What a method sees of n products."""

    vectors: np.ndarray  # (n, v) float16
    log_probability: np.ndarray  # (n, C) float64


class Adapter:
    """Decides about products of sellers who have made corrections."""

    def __init__(self, categorizer: Categorizer, rules: SellerRules, method: SellerMethod) -> None:
        """Raises ShelfmarkError where the rules were fitted for another head."""
        if rules.model != categorizer.predictor.model:
            raise ShelfmarkError(
                f"{SELLERS_FILE}: rules of another head; expected those fitted for this one; "
                "run calibrate again"
            )
        self.categorizer, self.rules, self.method = categorizer, rules, method

    def encode(
        self, bottlenecks: np.ndarray, bounds: np.ndarray, claimed: Sequence[str]
    ) -> list[Encoded]:
        """Returns corrections as this head sees them, one for each of n products.

        Args:
            bottlenecks: (rows, d) float16, products together; all views.
            bounds: (n + 1,) of the rows.
            claimed: n categories, as the seller says; one that the head does not know has no evidence.
        """
        raise NotImplementedError

    def state(
        self,
        vectors: np.ndarray,
        base: Sequence[str],
        true: Sequence[str],
        corrections: int,
        flagged: bool,
    ) -> SellerState:
        """Returns what decisions need of a seller, from his history, the oldest correction first.

        Rows with a category that the head does not know are left out.

        Args:
            vectors: (n, v) float16, as `encode` returned them for this head.
            base: n categories of the base.
            true: n categories, as the seller says.
            corrections: in use, at least n.
            flagged: whether they look wrong.
        """
        raise NotImplementedError

    def decide(
        self,
        product_id: np.ndarray,
        bottlenecks: Rows,
        bounds: np.ndarray,
        sellers: Sequence[SellerState | None],
    ) -> pd.DataFrame:
        """Decisions about n products, one row each, columns COLUMNS and ADAPTED_COLUMNS.

        Args:
            product_id: (n,) str.
            bottlenecks: (rows, d) float16, products together; all views.
            bounds: (n + 1,) of the rows.
            sellers: the state of each product's seller; None: the base decision, without base_category.
        """
        raise NotImplementedError


def load_adapter(folder: Path, categorizer: Categorizer) -> Adapter | None:
    """Reads the adapter of a bundle/; None where it has no sellers.json.

    Raises:
        ShelfmarkError: a file cannot be read, or belongs to another head.
    """
    raise NotImplementedError
