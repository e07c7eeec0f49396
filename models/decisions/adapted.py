"""Adapted decisions: what a seller's corrections make of the base's prediction, and when it is accepted.

    bundle/  sellers.json  (styles.centroids.npy  styles.bounds.npy)     these of the method "paper" alone

    product ──► base prediction ──┐
    seller's corrections ─────────┴──► method ──► category, share ──► adapted confidence

For a product whose seller has corrections in use:

    1  the category stays, and the base confidence is `base_threshold` or more   the base decision
    2  else, the adapted confidence reaches the certified threshold, the seller
       is not flagged and the category not withheld                              accepted, adapted
    3  else, the category differs                                                review, adapted
       but where the base decided on a node above both categories                its node, adapted
    4  else                                                                      the base decision

The certificate is about the decisions of rule 2 alone (seller_rules.py). A decision never depends on the
other products of the batch, nor on another seller's corrections. Where all that a seller has corrected are
categories that the head does not know, nothing was learnt, and the base decides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from scipy.special import expit

from features.errors import ShelfmarkError
from models.decisions.categorizer import ACCEPTED, COLUMNS, REVIEW, Categorizer, decisions_table
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
from models.taxonomy import Taxonomy

# Columns after COLUMNS (bool, str or None, int), as they are where the seller has no corrections
UNADAPTED: dict[str, Any] = {"adapted": False, "base_category": None, "corrections": 0}
ADAPTED_COLUMNS = tuple(UNADAPTED)
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
            shares: np.ndarray = np.clip(np.asarray(share, float), 0, 1).round(DECIMALS)
            return shares
        terms = adapted_terms(share, base_confidence, stays, np.minimum(corrections, self.most_corrections))
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


class _Index(dict[str, int]):
    """Names → what `Taxonomy.index` says of them, which takes longer than all else for a few names."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._taxonomy = taxonomy

    def __missing__(self, name: str) -> int:
        index = int(self._taxonomy.index(np.array([name], dtype=object))[0])
        if index >= 0:
            self[name] = index
        return index


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
        self._index = _Index(categorizer.predictor.taxonomy)

    def encode(self, bottlenecks: np.ndarray, bounds: np.ndarray, claimed: Sequence[str]) -> list[Encoded]:
        """Returns corrections as this head sees them, one for each of n products.

        Args:
            bottlenecks: (rows, d) float16, products together; the rows that decide.
            bounds: (n + 1,) of the rows.
            claimed: n categories, as the seller says; one that the head does not know has no evidence.

        Raises:
            ValueError: not one category for each product.
        """
        if len(claimed) != len(bounds) - 1:
            raise ValueError(f"{len(claimed)} categories of {len(bounds) - 1} products; expected one each")
        taxonomy, found = self.categorizer.predictor.taxonomy, list[Encoded]()
        wanted = taxonomy.index(np.array(claimed, dtype=object))
        for start, stop in product_ranges(bounds, PIECE):
            rows = bottlenecks[bounds[start] : bounds[stop]]
            own = bounds[start : stop + 1] - bounds[start]
            predictions, probability = self.categorizer.predict_few(rows, own)
            rank = ranks(logs_of(probability), wanted[start:stop])
            confidence = confidence_of_all(self.categorizer, predictions)
            evidence = self.rules.suspicion.evidence(confidence, rank).tolist()
            names = taxonomy.categories[predictions.top[:, 0]].tolist()
            vectors = product_vectors(self.categorizer, self.rules.vectors, rows, own)
            found += [
                Encoded(self.rules.model, name, vector, value)
                for name, vector, value in zip(names, vectors, evidence, strict=True)
            ]
        return found

    def state(
        self, vectors: np.ndarray, base: Sequence[str], true: Sequence[str], corrections: int, flagged: bool
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
        model = self.method.seller(*self._known(vectors, base, true))
        return SellerState(model, corrections, flagged)

    def state_with(
        self,
        before: SellerState,
        vectors: np.ndarray,
        base: Sequence[str],
        true: Sequence[str],
        corrections: int,
        flagged: bool,
    ) -> SellerState:
        """Returns the state of a seller who has made more corrections since; `before` stays as it is.

        It is what `state` makes of the whole history, in a fraction of the time.

        Args:
            before: what an Adapter of the same head and rules made of the corrections before.
            vectors: (n, v) float16, of the newer ones alone.
            base: n categories of the base.
            true: n categories, as the seller says.
            corrections: in use, the earlier ones too.
            flagged: whether they look wrong.
        """
        model = before.model.copy()
        for vector, said, category in zip(*self._known(vectors, base, true), strict=True):
            model.learn(vector, int(said), int(category))
        return SellerState(model, corrections, flagged)

    def _known(
        self, vectors: np.ndarray, base: Sequence[str], true: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors, base and true categories of the rows whose categories the head knows."""
        predicted, category = (
            np.fromiter(map(self._index.__getitem__, names), np.int64, len(names)) for names in (base, true)
        )
        known = (predicted >= 0) & (category >= 0)
        rows = slice(None) if known.all() else known  # a copy of all vectors takes a sixth of the time
        return vectors[rows], predicted[rows], category[rows]

    def decide(
        self,
        product_id: np.ndarray,
        bottlenecks: Rows,
        bounds: np.ndarray,
        sellers: Sequence[SellerState | None],
        again: np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Decisions about n products, one row each, columns COLUMNS and ADAPTED_COLUMNS.

        Args:
            product_id: (n,) str.
            bottlenecks: (rows, d) float16, products together; the rows that decide.
            bounds: (n + 1,) of the rows.
            sellers: the state of each product's seller; None: the base decision, without base_category.
            again: (n,) bool, as `Categorizer.looks_again`; None: all, without a cascade.

        Raises:
            ValueError: not one state, or None, for each product.
        """
        if len(sellers) != len(product_id):
            raise ValueError(f"{len(sellers)} sellers of {len(product_id)} products; expected one each")
        parts, changed = list[Predictions](), dict[int, tuple[int, float, str]]()
        used = any(state is not None for state in sellers)
        for start, stop in product_ranges(bounds, PIECE) if used else ():
            rows = bottlenecks[slice(bounds[start], bounds[stop])]
            own = bounds[start : stop + 1] - bounds[start]
            predictions, probability = self.categorizer.predict_few(rows, own)
            parts.append(predictions)
            decisions = self._adapted(rows, own, predictions, probability, sellers[start:stop])
            changed |= {start + number: decision for number, decision in decisions.items()}
        if not parts:
            predictions = self.categorizer.predict(bottlenecks, bounds, again)
        else:
            predictions = Predictions.joined(parts)
            predictions = predictions if again is None else replace(predictions, again=again)
        table = _with_columns(self.categorizer, self.categorizer.decide(product_id, predictions), changed)
        base = self.categorizer.predictor.taxonomy.categories[predictions.top[:, 0]].tolist()
        return table.assign(
            adapted=np.isin(np.arange(len(table)), list(changed)),
            base_category=pd.Series(
                [name if state else None for name, state in zip(base, sellers, strict=True)], dtype=object
            ),
            corrections=np.array([state.corrections if state else 0 for state in sellers], np.int64),
        )

    def _adapted(
        self,
        rows: np.ndarray,
        bounds: np.ndarray,
        predictions: Predictions,
        probability: np.ndarray,
        sellers: Sequence[SellerState | None],
    ) -> dict[int, tuple[int, float, str]]:
        """The adapted decisions about a few products: number → category, confidence, status."""
        used = np.array([state is not None for state in sellers])
        if not used.any():
            return {}
        images = np.diff(bounds)
        vectors = product_vectors(
            self.categorizer,
            self.rules.vectors,
            rows[np.repeat(used, images)],
            np.concatenate([[0], np.cumsum(images[used])]),
        )
        logs, confidence = logs_of(probability[used]), self.categorizer.confidence(predictions)
        found = {}
        for vector, log_probability, number in zip(vectors, logs, np.flatnonzero(used).tolist(), strict=True):
            state, base = sellers[number], int(predictions.top[number, 0])
            assert state is not None
            decision = self._adapt(state, vector, log_probability, base, confidence[number])
            if decision:
                found[number] = decision
        return found

    def _adapt(
        self, state: SellerState, vector: np.ndarray, log_probability: np.ndarray, base: int, confident: float
    ) -> tuple[int, float, str] | None:
        """Category, confidence and status of an adapted decision; None: the base decision.

        Args:
            state: of the product's seller.
            vector: (v,) float16.
            log_probability: (C,) float64.
            base: the base's category.
            confident: the base's confidence in it.
        """
        choice, certificate = state.model.predict(vector, log_probability), self.rules.certificate
        stays, withheld = choice.category == base, self.categorizer.withheld[choice.category]
        if not choice.corrections or (stays and confident >= self.rules.base_threshold):
            return None
        confidence = self.rules.confidence.confidence(
            np.array([choice.share]),
            np.array([confident]),
            np.array([stays]),
            np.array([choice.corrections]),
        )[0]
        value = 0.0 if withheld else float(confidence)  # 0 as the base's confidence in such a category
        certified = certificate.threshold is not None and value >= certificate.threshold
        if certified and not (state.flagged or withheld):
            return choice.category, value, ACCEPTED
        return None if stays else (choice.category, value, REVIEW)


def _with_columns(
    categorizer: Categorizer, table: pd.DataFrame, changed: Mapping[int, tuple[int, float, str]]
) -> pd.DataFrame:
    """The decisions, those of some rows replaced by a category with its confidence and status."""
    if not changed:
        return table
    taxonomy, paths = categorizer.predictor.taxonomy, categorizer.predictor.paths
    columns = {name: table[name].tolist() for name in COLUMNS}
    for row, (category, confidence, status) in changed.items():
        name, path = taxonomy.categories[category], paths[category]
        values = {"category": name, "category_path": path, "confidence": confidence}
        if status == ACCEPTED:
            level = int(taxonomy.depth[category])
            values |= {"status": status, "node": name, "node_path": path, "node_level": level}
        elif not _is_below(taxonomy, category, columns["node_level"][row], columns["category"][row]):
            values |= {"status": status, "node": None, "node_path": None, "node_level": None}
        for column, value in values.items():
            columns[column][row] = value
    return decisions_table(**columns)


def _is_below(taxonomy: Taxonomy, category: int, level: object, base: str) -> bool:
    """Whether the base's decision is a node of a level above its own category that is above `category`, too.

    Args:
        taxonomy: of both categories.
        category: the adapted one.
        level: of the node that the base decided on; missing where it decided on none.
        base: the base's category.
    """
    at = taxonomy.index(np.array([base], dtype=object))[0]
    if not isinstance(level, int) or level >= taxonomy.depth[at]:
        return False
    return bool(taxonomy.nodes[level - 1][category] == taxonomy.nodes[level - 1][at])


def confidence_of_all(categorizer: Categorizer, predictions: Predictions) -> np.ndarray:
    """Returns (n,) float64, confidence in the most likely category, even where that is withheld."""
    return categorizer.rules.confidence.confidence(categorizer.predictor.evidence(predictions))


def log_probabilities(categorizer: Categorizer, bottlenecks: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns (n, C) float64, calibrated, of a few products; at least log(LEAST).

    Args:
        categorizer: the base.
        bottlenecks: (rows, d), products together; all in memory.
        bounds: (n + 1,), from 0.
    """
    return logs_of(categorizer.probabilities(bottlenecks, bounds))


def logs_of(probability: np.ndarray) -> np.ndarray:
    """Returns the logarithms of probabilities, at least log(LEAST)."""
    logs: np.ndarray = np.log(np.maximum(probability, LEAST))
    return logs


def product_vectors(
    categorizer: Categorizer, vectors: Vectors, bottlenecks: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Returns (n, v) float16: of each product the mean of its rows' bottlenecks, or last hidden layer.

    A set head reads the images together: its hidden layer is that of the product. Numbers that float16 cannot
    hold become its largest.

    Args:
        categorizer: its `head` has the hidden layer.
        vectors: kind of the vectors.
        bottlenecks: (rows, d), products together; all in memory.
        bounds: (n + 1,), from 0; each product has rows.
    """
    head, rows = categorizer.head, bottlenecks
    if vectors == "hidden":
        if head.shape.kind == SET:
            together = head.hidden(ProductRows(bottlenecks, bounds, head.shape.images)[:])
            return _halves(together)
        rows = head.hidden(bottlenecks)
    if len(bounds) == 1:
        return np.empty((0, rows.shape[1]), np.float16)
    sums = np.add.reduceat(rows.astype(np.float64), bounds[:-1], axis=0)
    return _halves(sums / np.diff(bounds)[:, None])


def _halves(rows: np.ndarray) -> np.ndarray:
    halves: np.ndarray = np.clip(rows, -LARGEST, LARGEST).astype(np.float16)
    return halves


def vector_width(categorizer: Categorizer, vectors: Vectors) -> int:
    """Returns v, numbers in a vector."""
    shape = categorizer.head.shape
    if vectors == "bottlenecks":
        return shape.width
    return shape.hidden[0] if shape.kind == SET else shape.hidden[1]


def unadapted(decisions: pd.DataFrame) -> pd.DataFrame:
    """Returns decisions with the columns ADAPTED_COLUMNS, of products whose sellers have no corrections.

    Args:
        decisions: n rows, columns COLUMNS.
    """
    nothing = pd.Series([None] * len(decisions), index=decisions.index, dtype=object)
    return decisions.assign(**UNADAPTED | {"base_category": nothing})


def load_adapter(folder: Path, categorizer: Categorizer, styles_folder: Path | None = None) -> Adapter | None:
    """Reads the adapter of a bundle/ or of a run's sellers/; None where it has no sellers.json.

    Args:
        folder: with sellers.json.
        categorizer: the base.
        styles_folder: a run's styles/, where there are any; None: the styles are in `folder`, as in a bundle.

    Raises:
        ShelfmarkError: a file cannot be read, or belongs to another head.
    """
    file = folder / SELLERS_FILE
    if not file.is_file():
        return None
    try:
        rules = SellerRules.from_dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ShelfmarkError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); expected rules of adapted decisions; "
            f"remove {folder.name}/ and run again"
        ) from error
    if rules.method == "votes":
        return Adapter(categorizer, rules, VotesMethod(rules.votes))
    styles = read_styles(styles_folder) if styles_folder else read_styles(folder, STYLES)
    expected = len(categorizer.predictor.taxonomy.categories), vector_width(categorizer, rules.vectors)
    require_styles(styles, *expected, folder)
    return Adapter(categorizer, rules, PaperMethod(styles))


def read_styles(folder: Path, prefix: str = "") -> Styles:
    """Reads the styles of a styles/ directory, memory-mapped; with STYLES as prefix those of a bundle.

    Raises:
        ShelfmarkError: a file is missing, or is not what the stage styles writes.
    """
    try:
        centroids, bounds = (np.load(folder / f"{prefix}{name}", mmap_mode="r") for name in STYLES_FILES)
        return Styles(centroids, np.asarray(bounds))
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise ShelfmarkError(
            f"{folder}: styles cannot be read ({str(error).splitlines()[0]}); expected "
            f"{' and '.join(prefix + name for name in STYLES_FILES)}; remove {folder.name}/ and run again"
        ) from error


def require_styles(styles: Styles, categories: int, width: int, folder: Path) -> None:
    """Raises ShelfmarkError where the styles are of another number of categories, or of other vectors."""
    if (styles.categories, styles.centroids.shape[1]) != (categories, width):
        raise ShelfmarkError(
            f"{folder}: styles of {styles.categories} categories and {styles.centroids.shape[1]} numbers; "
            f"expected {categories} and {width}, as the head has; run `shelfmark calibrate` again"
        )
