"""Evaluate: what the bundle would have done, on products that were not trained on.

    evaluation/  metrics.json  {curve,decisions,categories,confusions}.parquet  manifest.json

    metrics.json        train, val, cert, test, each with its figures, or null where there is none: figures.py
    curve.parquet       threshold, acceptance_rate, precision, precision_lower   of the measured products
    decisions.parquet   as `shelfmark categorize` writes them, of the measured products
    categories.parquet  category, name, train_products, and counts: products, right, predicted,
                        predicted_right, accepted, accepted_right
    confusions.parquet  category, category_name, predicted, predicted_name, products

The measured products are those of test. Where there is no test part they are CERT, which has certified the
threshold: then precision was not independently measured, and every output says so.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from models.decisions.metrics import (
    acceptance_curve,
    acceptance_rate_at,
    confusions,
    per_category,
    precision,
    top_k_share,
)
from models.decisions.predictions import Predictions, product_bounds
from models.decisions.thresholds import lower_bound
from models.heads.hierarchy import consistency, hierarchical_scores
from models.taxonomy import Taxonomy
from pipeline.beam.run_units import write_table
from pipeline.job.catalogue import Part, categories_of, divide, open_part
from pipeline.job.config import CalibrationSettings
from pipeline.job.decisions_file import write_decisions
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, EvaluationSummary
from pipeline.train.figures import HierarchyFigures, Metrics, PartFigures, PrecisionFigures, TopShares

VERSION = 3
CURVE_POINTS = 10_000
CONFUSIONS = 200


@dataclass(frozen=True)
class Evaluated:
    """Products with their predictions and their true categories."""

    product_id: np.ndarray  # (n,) str
    truth: np.ndarray  # (n,) int
    predictions: Predictions
    confidence: np.ndarray  # (n,) float
    unseen: np.ndarray  # (n,) bool, no image of it was trained on

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool."""
        correct: np.ndarray = self.predictions.top[:, 0] == self.truth
        return correct

    def only(self, chosen: np.ndarray) -> "Evaluated":
        """The chosen products, (n,) bool."""
        return Evaluated(
            self.product_id[chosen], self.truth[chosen], self.predictions.only(chosen),
            self.confidence[chosen], self.unseen[chosen],
        )  # fmt: skip


def evaluate(run: Run) -> Artifact:
    """Evaluates the run's head and thresholds on every part of the catalogue."""
    out, settings = run.path / "evaluation", run.config.calibration
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds = run.thresholds(head)
    return evaluate_head(records, bottlenecks, head, thresholds, run.store, out, settings)


def evaluate_head(
    records: Artifact,
    bottlenecks: Artifact,
    head: Artifact,
    thresholds: Artifact,
    store: AnyPath,
    out: AnyPath,
    settings: CalibrationSettings,
) -> Artifact:
    """Evaluates a categorizer on every part of the catalogue.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        head: of train.
        thresholds: of calibrate.
        store: directory of all stores.
        out: the artifact's directory.
        settings: the section [calibration], for the division of validation.
    """

    def make(work: Path) -> Mapping[str, object]:
        categorizer = Categorizer(load_predictor(head.folder()), read_rules(thresholds.file(THRESHOLDS)))
        parts = {name: open_part(bottlenecks, store, name) for name in ("train", "val", "test")}
        evaluated = _evaluate_parts(parts, categorizer, categories_of(records), settings.fit_share)
        figures = {name: measure(part, categorizer) for name, part in evaluated.items()}
        on: Literal["test", "cert"] = "test" if figures["test"] else "cert"
        extracted = BottlenecksSummary.of(bottlenecks)
        metrics = Metrics(
            **figures, graded_on=on, independent=on == "test",
            backbone=extracted.backbone, weights=extracted.weights,
        )  # fmt: skip
        write_whole(work / "metrics.json", metrics.to_json())
        _write_tables(evaluated[on], categorizer, work)
        return _summary(metrics).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "thresholds": thresholds.digest,
        "fit_share": settings.fit_share,
    }
    artifact = stage(out, kind="evaluation", version=VERSION, made_from=made_from, make=make)
    if not EvaluationSummary.of(artifact).independent:
        log.warning("evaluation: there is no test part; precision was not independently measured")
    return artifact


def _evaluate_parts(
    parts: Mapping[str, Part], categorizer: Categorizer, category: pd.Series, fit_share: float
) -> dict[str, Evaluated]:
    """Train, val and test, and CERT, which is what FIT leaves of val."""
    trained = set(parts["train"].image_digest)
    evaluated = {name: evaluate_part(categorizer, part, category, trained) for name, part in parts.items()}
    division = divide(parts["val"].product_id, parts["val"].image_digest, fit_share)
    first = product_bounds(parts["val"].product_id)[:-1]
    return evaluated | {"cert": evaluated["val"].only(division.cert[first])}


def evaluate_part(categorizer: Categorizer, part: Part, category: pd.Series, trained: set[str]) -> Evaluated:
    """Predicts the categories of a part's products.

    Args:
        categorizer: predicts.
        part: images of products.
        category: the true one by product_id.
        trained: digests of the images trained on.
    """
    bounds = product_bounds(part.product_id)
    product_id = part.product_id[bounds[:-1]]
    truth = categorizer.predictor.taxonomy.index(category.reindex(product_id).to_numpy())
    predictions = categorizer.predict(part.rows, bounds)
    seen = np.array([digest in trained for digest in part.image_digest], dtype=int)
    unseen = np.add.reduceat(seen, bounds[:-1]) == 0 if len(seen) else np.zeros(0, bool)
    return Evaluated(product_id, truth, predictions, categorizer.confidence(predictions), unseen)


def measure(evaluated: Evaluated, categorizer: Categorizer) -> PartFigures | None:
    """The figures of a part; None where it has no products."""
    if not len(evaluated.truth):
        return None
    certificate = categorizer.rules.certificate
    least = certificate.threshold if certificate.threshold is not None else np.inf
    accepted = evaluated.confidence >= least
    target, unseen = certificate.target, evaluated.only(evaluated.unseen)
    levels, hierarchy = _levels(evaluated, categorizer.predictor.taxonomy)
    return PartFigures(
        **_precisions(evaluated, target).model_dump(),
        target_precision=target,
        threshold=certificate.threshold,
        accepted=int(accepted.sum()),
        accepted_precision=precision(evaluated.correct[accepted]) if accepted.any() else None,
        levels=levels,
        hierarchy=hierarchy,
        unseen=_precisions(unseen, target) if len(unseen.truth) else None,
    )


def _precisions(evaluated: Evaluated, target: float) -> PrecisionFigures:
    curve = acceptance_curve(evaluated.confidence, evaluated.correct)
    return PrecisionFigures(
        products=len(evaluated.truth),
        precision=precision(evaluated.correct),
        acceptance_rate_at_target=acceptance_rate_at(curve, target)[0],
    )


def _levels(evaluated: Evaluated, taxonomy: Taxonomy) -> tuple[dict[str, TopShares], HierarchyFigures]:
    predictions = evaluated.predictions
    own = predictions.own_top.shape[1] > 0
    chosen = predictions.own_top if own else predictions.level_top
    consistent = consistency(chosen[:, :, 0], predictions.top[:, 0], taxonomy)
    scores = hierarchical_scores(evaluated.truth, predictions.top[:, 0], taxonomy)
    return _top_shares(chosen, evaluated.truth, taxonomy), HierarchyFigures(
        own_outputs=own,
        summed=_top_shares(predictions.level_top, evaluated.truth, taxonomy),
        consistency={f"level{level}": share for level, share in enumerate(consistent, start=1)},
        **asdict(scores),
    )


def _top_shares(ranked: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> dict[str, TopShares]:
    """Top-1 and top-5 of each level from (n, N, 5) nodes."""
    # another week's category is not in the head's tree and has no nodes: wrong at all levels
    known = truth >= 0
    levels = {}
    for level in range(taxonomy.levels):
        node = np.where(known, taxonomy.nodes[level][truth], -2)
        top1, top5 = (top_k_share(ranked[:, level], node, k) for k in (1, 5))
        levels[f"level{level + 1}"] = TopShares(top1=top1, top5=top5)
    return levels


def _write_tables(evaluated: Evaluated, categorizer: Categorizer, work: Path) -> None:
    rules, predictor = categorizer.rules, categorizer.predictor
    curve = acceptance_curve(evaluated.confidence, evaluated.correct).thinned(CURVE_POINTS)
    lower = lower_bound(curve.accepted, curve.accepted - curve.correct, rules.certificate.delta)
    columns = {
        "threshold": curve.threshold,
        "acceptance_rate": curve.acceptance_rate,
        "precision": curve.precision,
    }
    write_table(pa.table(columns | {"precision_lower": lower}), work / "curve.parquet")
    decisions = categorizer.decide(evaluated.product_id, evaluated.predictions)
    write_decisions([decisions], work / "decisions.parquet")

    names = predictor.paths
    accepted = (decisions["status"] == "accepted").to_numpy()
    counts = per_category(evaluated.truth, evaluated.predictions.top[:, 0], accepted, len(names))
    table = {"category": predictor.taxonomy.categories, "name": names, "train_products": predictor.sizes}
    write_table(pa.table(table | vars(counts)), work / "categories.parquet")

    wrong = confusions(evaluated.truth, evaluated.predictions.top[:, 0], CONFUSIONS)
    write_table(
        pa.table(
            {
                "category": predictor.taxonomy.categories[wrong.truth],
                "category_name": names[wrong.truth],
                "predicted": predictor.taxonomy.categories[wrong.predicted],
                "predicted_name": names[wrong.predicted],
                "products": wrong.products,
            }
        ),
        work / "confusions.parquet",
    )


def _summary(metrics: Metrics) -> EvaluationSummary:
    part = metrics.measured
    return EvaluationSummary(
        graded_on=metrics.graded_on,
        independent=metrics.independent,
        products=part.products if part else 0,
        precision=part.precision if part else None,
        accepted=part.accepted if part else 0,
        accepted_precision=part.accepted_precision if part else None,
    )
