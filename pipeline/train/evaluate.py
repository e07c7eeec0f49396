"""Evaluate: what the bundle would have done, on products that were not trained on.

    evaluation/  metrics.json  *.parquet  manifest.json

    metrics.json        train, val, cert, test, each with its figures, or null where there is none: figures.py
    curve               threshold, acceptance_rate, precision, precision_lower   of the categories
    level_curves        level, and the same columns: every level by itself
    ladder              each target: what CERT certified for it, and what the measured products say of it
    decisions           as `shelfmark categorize` writes them
    measured            the same rows: product_id, true_category, true_path, learnt, unseen, weight, images,
                        correct, node_correct
    categories          category, name, department, train_products, and counts: products, right, predicted,
                        predicted_right, accepted, accepted_right, fit_predicted, fit_right; estimate, lower,
                        upper, status: precision of the predicted (models/decisions/categories.py); kept by
                        the restriction of thresholds.json
    unlearnt            category, name, products, measured, accepted, parent_right
    confusions          category, category_name, predicted, predicted_name, products

The measured products are those of test. Where there is no test part they are CERT, which has certified the
threshold: then precision was not independently measured, and every output says so. Products of categories
that the head never learnt are among them, as they are among those to come: they count as wrong.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from models.decisions.metrics import (
    acceptance_curve,
    acceptance_rate_at,
    precision,
    top_k_share,
)
from models.decisions.predictions import product_bounds
from models.heads.hierarchy import consistency, hierarchical_scores
from models.taxonomy import Taxonomy
from pipeline.job.catalogue import Part, TrueCategories, divide, open_part
from pipeline.job.config import CalibrationSettings
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, EvaluationSummary
from pipeline.train.evaluated import Evaluated, evaluate_part
from pipeline.train.figures import (
    DecidedFigures,
    HierarchyFigures,
    Metrics,
    PartFigures,
    PrecisionFigures,
    TopShares,
)
from pipeline.train.tables import write_tables

VERSION = 5


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
        true = TrueCategories.of(records)
        evaluated = _evaluate_parts(parts, categorizer, true, settings.fit_share)
        figures = {name: measure(evaluated[name], categorizer) for name in ("train", "val", "cert", "test")}
        on: Literal["test", "cert"] = "test" if figures["test"] else "cert"
        extracted = BottlenecksSummary.of(bottlenecks)
        metrics = Metrics(
            **figures, graded_on=on, independent=on == "test",
            backbone=extracted.backbone, weights=extracted.weights,
        )  # fmt: skip
        write_whole(work / "metrics.json", metrics.to_json())
        write_tables(evaluated[on], evaluated["fit"], categorizer, true, work)
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
    parts: Mapping[str, Part], categorizer: Categorizer, true: TrueCategories, fit_share: float
) -> dict[str, Evaluated]:
    """Train, val and test, and FIT and CERT, the two sides of val."""
    trained = set(parts["train"].image_digest)
    evaluated = {name: evaluate_part(categorizer, part, true, trained) for name, part in parts.items()}
    division = divide(parts["val"].product_id, parts["val"].image_digest, fit_share)
    first = product_bounds(parts["val"].product_id)[:-1]
    fit, cert = (evaluated["val"].only(side[first]) for side in (division.fit, division.cert))
    return evaluated | {"fit": fit, "cert": cert}


def measure(evaluated: Evaluated, categorizer: Categorizer) -> PartFigures | None:
    """The figures of a part; None where it has no products."""
    if not len(evaluated.truth):
        return None
    certificate, taxonomy = categorizer.rules.certificate, categorizer.predictor.taxonomy
    target, accepted, stop = categorizer.rules.target, evaluated.accepted, evaluated.stop
    learnt, unseen = evaluated.only(evaluated.learnt), evaluated.only(evaluated.unseen)
    levels, hierarchy = _levels(evaluated, taxonomy)
    return PartFigures(
        **_precisions(evaluated, target).model_dump(),
        target_precision=target,
        threshold=certificate.threshold,
        accepted=int(accepted.sum()),
        accepted_precision=precision(evaluated.correct[accepted]) if accepted.any() else None,
        decided={
            f"level{level}": _decided(evaluated.correct_nodes[stop == level, level - 1])
            for level in range(1, taxonomy.levels + 1)
        },
        review=int((stop == 0).sum()),
        levels=levels,
        hierarchy=hierarchy,
        learnt=_precisions(learnt, target) if len(learnt.truth) else None,
        unseen=_precisions(unseen, target) if len(unseen.truth) else None,
        unlearnt_products=int((~evaluated.learnt).sum()),
        weighted=_weighted(evaluated, target),
    )


def _decided(correct: np.ndarray) -> DecidedFigures:
    return DecidedFigures(products=len(correct), precision=precision(correct) if len(correct) else None)


def _weighted(evaluated: Evaluated, target: float) -> PrecisionFigures | None:
    """The figures of the products with a weight, counted by it; None where no weight is above 0."""
    weight = evaluated.weight
    if weight is None or not weight.any():
        return None
    curve = acceptance_curve(evaluated.confidence, evaluated.correct, weight)
    return PrecisionFigures(
        products=int((weight > 0).sum()),
        precision=precision(evaluated.correct, weight),
        acceptance_rate_at_target=acceptance_rate_at(curve, target)[0],
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
    return _top_shares(chosen, evaluated.nodes), HierarchyFigures(
        own_outputs=own,
        summed=_top_shares(predictions.level_top, evaluated.nodes),
        consistency={f"level{level}": share for level, share in enumerate(consistent, start=1)},
        **asdict(scores),
    )


def _top_shares(ranked: np.ndarray, nodes: np.ndarray) -> dict[str, TopShares]:
    """Top-1 and top-5 of each level from (n, N, 5) ranked and (n, N) true nodes."""
    levels = {}
    for at in range(nodes.shape[1]):
        node = np.where(nodes[:, at] >= 0, nodes[:, at], -2)  # -1 in `ranked`: the level has fewer than 5
        top1, top5 = (top_k_share(ranked[:, at], node, k) for k in (1, 5))
        levels[f"level{at + 1}"] = TopShares(top1=top1, top5=top5)
    return levels


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
