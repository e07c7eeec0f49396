"""Stages of learning from corrections: styles of the categories, and the rules of adapted decisions.

    training products ──► styles     runs/<run>/styles/   centroids.npy  bounds.npy     sellers.method = paper
    validation products ──► sellers  runs/<run>/sellers/  sellers.json                  after the thresholds

Both are made for one head, and copied into the bundle. With sellers.method = none there is neither.

In memory at once, beside the index of the images: of styles, the vectors of one category's products, 50,000
at most; of sellers, the probabilities of all categories for one seller's products, 200 at most. Of more than
2,000 sellers, 2,000 are read, chosen by a hash of their names, and of FIT's products 50,000 likewise.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from features.product import order_key
from features.storage.artifact import Artifact
from features.storage.paths import write_whole
from models.decisions.adapted import (
    PIECE,
    SELLERS_FILE,
    STYLES_FILES,
    SellerRules,
    Vectors,
    confidence_of_all,
    logs_of,
    product_vectors,
    read_styles,
    require_styles,
    vector_width,
)
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from models.decisions.confidence import product_ranges
from models.decisions.predictions import product_bounds
from models.decisions.seller_rules import (
    SellerProducts,
    choose_base_threshold,
    fit_sellers,
    own_pictures,
)
from models.decisions.suspicion import RANKS, Suspicion, fit_suspicion, rank_masses, ranks
from models.rows import Rows
from models.sellers.interface import SellerMethod
from models.sellers.paper import PaperMethod
from models.sellers.styles import fit_styles
from models.sellers.votes import Votes, VotesMethod
from pipeline.job.catalogue import Part, TrueCategories, divide, learnt_categories_of, open_part, untrainable
from pipeline.job.progress import Progress, log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, SellersSummary, StylesSummary
from pipeline.train.evaluated import deciding

STYLES_VERSION = SELLERS_VERSION = 1
MOST_SELLERS = 2_000  # whose products are replayed
MOST_PRODUCTS = 200  # of a seller
MOST_FIT = 50_000  # products of FIT that evidence and base threshold are fitted on


def styles(run: Run) -> Artifact | None:
    """Finds the styles of every category, from the training products; None but for sellers.method = paper."""
    settings = run.config.sellers
    if settings.method != "paper":
        return None
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds = run.thresholds(head)

    def make(work: Path) -> Mapping[str, object]:
        categorizer = _categorizer(head, thresholds)
        taxonomy, category = learnt_categories_of(records)
        trained = open_part(bottlenecks, run.store, "train").without(untrainable(records, run.config))
        bounds = product_bounds(trained.product_id)
        codes = taxonomy.index(category.reindex(trained.product_id[bounds[:-1]]).to_numpy())
        width = vector_width(categorizer, settings.vectors)
        of_category = _VectorsOfCategory(categorizer, settings.vectors, trained.rows, bounds, codes, width)
        with Progress("styles", len(taxonomy.categories)) as progress:
            found = fit_styles(
                of_category.counted(progress.to), len(taxonomy.categories), width, run.config.seed
            )
        for name, array in zip(STYLES_FILES, (found.centroids, found.bounds), strict=True):
            np.save(work / name, array)
        return StylesSummary(
            styles=len(found.centroids),
            products=int(np.count_nonzero(codes >= 0)),
            categories=found.categories,
            without_styles=int(np.count_nonzero(np.diff(found.bounds) == 0)),
        ).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "aggregation": str(read_rules(thresholds.file(THRESHOLDS)).aggregation),  # which head has the vectors
        "settings": {
            "vectors": settings.vectors,
            "placeholders": run.config.train.placeholders,
            "seed": run.config.seed,
        },
    }
    return stage(run.path / "styles", kind="styles", version=STYLES_VERSION, made_from=made_from, make=make)


class _VectorsOfCategory:
    """The vectors of the training products, category by category."""

    def __init__(
        self,
        categorizer: Categorizer,
        vectors: Vectors,
        rows: Rows,
        bounds: np.ndarray,
        codes: np.ndarray,
        width: int,
    ) -> None:
        self._see = categorizer, vectors
        self._rows, self._bounds, self._width = rows, bounds, width
        self._order = np.argsort(codes, kind="stable").astype(np.int32)
        self._sorted = codes[self._order]

    def counted(self, progress: Callable[[int], None]) -> "Callable[[int], Rows]":
        """What `fit_styles` takes: category → its products' vectors."""

        def vectors_of(category: int) -> Rows:
            progress(category)
            first, stop = np.searchsorted(self._sorted, [category, category + 1])
            return _ProductVectors(*self._see, self._rows, self._bounds, self._order[first:stop], self._width)

        return vectors_of


class _ProductVectors:
    """The vectors of some products; indexing computes them."""

    def __init__(
        self,
        categorizer: Categorizer,
        vectors: Vectors,
        rows: Rows,
        bounds: np.ndarray,
        products: np.ndarray,
        width: int,
    ) -> None:
        self._see = categorizer, vectors
        self._rows, self._bounds, self._products, self._width = rows, bounds, products, width

    def __len__(self) -> int:
        return len(self._products)

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        """(m, v) float16."""
        products = self._products[chosen]
        out = np.empty((len(products), self._width), np.float16)
        for start, stop, rows, bounds in _pieces(self._rows, self._bounds, products):
            out[start:stop] = product_vectors(*self._see, rows, bounds)
        return out


def _pieces(
    rows: Rows, bounds: np.ndarray, products: np.ndarray
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yields ranges of the chosen products, with their rows in memory and the bounds of these.

    Args:
        rows: (images, d), products together.
        bounds: (n + 1,) of all products.
        products: (m,) int, the chosen ones.
    """
    first, images = bounds[products], bounds[products + 1] - bounds[products]
    own = np.concatenate([[0], np.cumsum(images)])
    for start, stop in product_ranges(own, PIECE):
        inside = own[start : stop + 1] - own[start]
        at = np.repeat(first[start:stop] - inside[:-1], images[start:stop]) + np.arange(inside[-1])
        yield start, stop, rows[at], inside


def seller_rules(run: Run) -> Artifact | None:
    """Fits and certifies the rules of adapted decisions on validation; None with sellers.method = none."""
    settings, calibration, method = run.config.sellers, run.config.calibration, run.config.sellers.method
    if method == "none":
        return None
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds = run.thresholds(head)
    with_styles = run.styles()

    def make(work: Path) -> Mapping[str, object]:
        categorizer = _categorizer(head, thresholds)
        makes = _method(categorizer, with_styles, settings.vectors)
        val = open_part(bottlenecks, run.store, "val")
        products = _ValProducts(run, val, records, categorizer)
        base_threshold, suspicion = products.base()
        fitted = fit_sellers(
            products.sellers, products.read, makes, base_threshold,
            votes=method == "votes",
            target=calibration.precision, delta=calibration.delta, grid=calibration.grid,
            fit_share=calibration.fit_share,
        )  # fmt: skip
        certificate = fitted.certificate
        if not products.sellers:
            few = "no seller has two validation products"
            what = few if products.some else "no validation product has a seller"
            certificate = replace(certificate, reason=what, more_products_needed=None)
        rules = SellerRules(
            model=categorizer.predictor.model,
            method=method,
            vectors=settings.vectors,
            votes=fitted.votes,
            base_threshold=base_threshold,
            confidence=fitted.confidence,
            certificate=certificate,
            suspicion=suspicion,
            sellers=fitted.counts,
        )
        write_whole(work / SELLERS_FILE, json.dumps(rules.to_dict(), indent=1, sort_keys=True).encode())
        if certificate.reason:
            log.info("sellers: no adapted decision is accepted: %s", certificate.reason)
        return SellersSummary(
            method=method,
            certified=certificate.threshold is not None,
            threshold=certificate.threshold,
            acceptance_rate=certificate.acceptance_rate,
            **fitted.counts,
            reason=certificate.reason,
        ).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "thresholds": thresholds.digest,
        "styles": with_styles.digest if with_styles else "none",
        "settings": {
            "method": method,
            "vectors": settings.vectors,
            "calibration": calibration.that_matter(),
        },
    }
    return stage(
        run.path / "sellers", kind="sellers", version=SELLERS_VERSION, made_from=made_from, make=make
    )


def _categorizer(head: Artifact, thresholds: Artifact) -> Categorizer:
    return Categorizer(load_predictor(head.folder()), read_rules(thresholds.file(THRESHOLDS)))


def _method(
    categorizer: Categorizer, with_styles: Artifact | None, vectors: Vectors
) -> Callable[[Votes], SellerMethod]:
    """Votes → the method; with styles the paper's."""
    if with_styles is None:
        return VotesMethod
    folder = with_styles.folder()
    found = read_styles(folder)
    require_styles(
        found, len(categorizer.predictor.taxonomy.categories), vector_width(categorizer, vectors), folder
    )
    paper = PaperMethod(found)
    return lambda votes: paper


class _ValProducts:
    """The validation products, those of each seller in the order in which they are replayed."""

    def __init__(self, run: Run, val: Part, records: Artifact, categorizer: Categorizer) -> None:
        val, _ = deciding(categorizer, val)
        division = divide(val.product_id, val.image_digest, run.config.calibration.fit_share)
        self._rows, self._bounds = val.rows, product_bounds(val.product_id)
        first = self._bounds[:-1]
        self._categorizer, self._vectors = categorizer, run.config.sellers.vectors
        self._product_id, self._fit = val.product_id[first], division.fit[first]
        self._true = TrueCategories.of(records).nodes(self._product_id, categorizer.predictor.taxonomy)[:, -1]
        self._key = np.array([order_key(str(name)) for name in self._product_id.tolist()], np.int64)
        seller = sellers_of(records).reindex(self._product_id).to_numpy(dtype=object)
        known = pd.notna(seller)
        self.some = bool(known.any())
        self._own = np.zeros(len(seller), bool)
        self._own[known] = own_pictures(division.group[first][known], seller[known], self._product_id[known])
        order = np.argsort(self._key, kind="stable")
        of_seller = pd.Series(order, index=seller[order]).groupby(level=0, sort=True)
        self._rows_of = {str(name): rows.to_numpy() for name, rows in of_seller if len(rows) > 1}
        # those with the smallest hashes, as a list in the alphabet
        self.sellers = sorted(sorted(self._rows_of, key=lambda name: (order_key(name), name))[:MOST_SELLERS])

    def read(self, seller: str) -> SellerProducts:
        """The products of one seller."""
        chosen = self._rows_of[seller][:MOST_PRODUCTS]
        vectors, logs, base, confidence = [], [], [], []
        for _, _, rows, bounds in _pieces(self._rows, self._bounds, chosen):
            predictions, probability = self._categorizer.predict_few(rows, bounds)
            vectors.append(product_vectors(self._categorizer, self._vectors, rows, bounds))
            logs.append(logs_of(probability))
            base.append(predictions.top[:, 0])
            confidence.append(self._categorizer.confidence(predictions))
        return SellerProducts(
            seller=seller,
            product_id=self._product_id[chosen],
            own=self._own[chosen],
            fit=self._fit[chosen],
            vectors=np.concatenate(vectors),
            log_probability=np.concatenate(logs),
            base=np.concatenate(base),
            base_confidence=np.concatenate(confidence),
            true=self._true[chosen],
        )

    def base(self) -> tuple[float, Suspicion]:
        """The base threshold and the table of evidence, from FIT's products, with a seller or not."""
        fit = np.flatnonzero(self._fit)
        fit = np.sort(fit[np.argsort(self._key[fit], kind="stable")][:MOST_FIT])
        confidence, rank = np.empty(len(fit)), np.empty(len(fit), np.int64)
        decided, masses = np.empty(len(fit)), np.empty((len(fit), len(RANKS)))
        for start, stop, rows, bounds in _pieces(self._rows, self._bounds, fit):
            predictions, probability = self._categorizer.predict_few(rows, bounds)
            piece = slice(start, stop)
            confidence[piece] = confidence_of_all(self._categorizer, predictions)
            decided[piece] = self._categorizer.confidence(predictions)
            logs = logs_of(probability)
            rank[piece], masses[piece] = ranks(logs, self._true[fit[piece]]), rank_masses(logs)
        target = self._categorizer.rules.target
        categories = len(self._categorizer.predictor.taxonomy.categories)
        return (
            choose_base_threshold(decided, rank == 1, target),
            fit_suspicion(confidence, rank, masses, categories),
        )


def sellers_of(records: Artifact) -> pd.Series:
    """Seller by product_id, of the products that have one."""
    products = pd.read_parquet(records.file("products.parquet"), columns=["product_id", "seller"]).dropna()
    return products[products["seller"] != ""].set_index("product_id")["seller"]
