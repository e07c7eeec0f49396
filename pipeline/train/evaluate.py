"""Evaluate: what the bundle would have done, on products that were not trained on.

    evaluation/  metrics.json  *.parquet  manifest.json

    metrics.json        train, val, cert, test, each with its figures, or null where there is none: figures.py
    curve               threshold, acceptance_rate, precision, precision_lower   of the categories
    level_curves        level, and the same columns: every level by itself
    ladder              each target: what CERT certified for it, and what the measured products say of it
    decisions           as `shelfmark categorize` writes them
    measured            the same rows: product_id, true_category, true_path, learnt, unseen, images, correct,
                        node_correct
    categories          category, name, department, train_products, and counts: products, right, predicted,
                        predicted_right, accepted, accepted_right
    unlearnt            category, name, products, measured, accepted, parent_right
    confusions          category, category_name, predicted, predicted_name, products

The measured products are those of test. Where there is no test part they are CERT, which has certified the
threshold: then precision was not independently measured, and every output says so. Products of categories
that the head never learnt are among them, as they are among those to come: they count as wrong.
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
from models.decisions.categorizer import ACCEPTED, PARENT, Categorizer, DecisionRules
from models.decisions.metrics import (
    AcceptanceCurve,
    acceptance_curve,
    acceptance_rate_at,
    confusions,
    per_category,
    precision,
    top_k_share,
)
from models.decisions.predictions import Predictions, product_bounds
from models.decisions.thresholds import Certificate, lower_bound
from models.heads.hierarchy import consistency, hierarchical_scores
from models.taxonomy import Taxonomy
from pipeline.beam.run_units import write_table
from pipeline.job.catalogue import Part, TrueCategories, divide, open_part
from pipeline.job.config import CalibrationSettings
from pipeline.job.decisions_file import write_decisions
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, EvaluationSummary
from pipeline.train.figures import (
    DecidedFigures,
    HierarchyFigures,
    Metrics,
    PartFigures,
    PrecisionFigures,
    TopShares,
)

VERSION = 4
CURVE_POINTS = 10_000
CONFUSIONS = 200
LADDER = pa.schema(
    [
        ("target", pa.float64()),
        ("certified", pa.bool_()),
        ("threshold", pa.float64()),
        ("cert_acceptance", pa.float64()),
        ("accepted", pa.int64()),  # of the measured products
        ("precision", pa.float64()),  # of these
        ("precision_lower", pa.float64()),
        ("more_products_needed", pa.int64()),  # in CERT
        ("at_best", pa.bool_()),
    ]
)
UNLEARNT_TABLE = pa.schema(
    [
        ("category", pa.string()),
        ("name", pa.string()),
        ("products", pa.int64()),  # in the catalogue
        ("measured", pa.int64()),  # among the measured ones
        ("accepted", pa.int64()),  # of these, into another category
        ("parent_right", pa.int64()),  # of these, put under a correct node above
    ]
)


@dataclass(frozen=True)
class Evaluated:
    """Products with their predictions and their true categories."""

    product_id: np.ndarray  # (n,) str
    nodes: np.ndarray  # (n, N) int, of the true category; -1 where the head's tree has none
    predictions: Predictions
    confidences: np.ndarray  # (n, N) float, in the nodes of each level; the last in the category
    correct_nodes: np.ndarray  # (n, N) bool, likewise
    unseen: np.ndarray  # (n,) bool, no image of it was trained on

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
    def learnt(self) -> np.ndarray:
        """(n,) bool, whether the head knows the true category."""
        learnt: np.ndarray = self.truth >= 0
        return learnt

    def only(self, chosen: np.ndarray) -> "Evaluated":
        """The chosen products, (n,) bool."""
        return Evaluated(
            self.product_id[chosen], self.nodes[chosen], self.predictions.only(chosen),
            self.confidences[chosen], self.correct_nodes[chosen], self.unseen[chosen],
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
        true = TrueCategories.of(records)
        evaluated = _evaluate_parts(parts, categorizer, true, settings.fit_share)
        figures = {name: measure(part, categorizer) for name, part in evaluated.items()}
        on: Literal["test", "cert"] = "test" if figures["test"] else "cert"
        extracted = BottlenecksSummary.of(bottlenecks)
        metrics = Metrics(
            **figures, graded_on=on, independent=on == "test",
            backbone=extracted.backbone, weights=extracted.weights,
        )  # fmt: skip
        write_whole(work / "metrics.json", metrics.to_json())
        decisions = write_tables(evaluated[on], categorizer, true, work)
        _write_unlearnt(evaluated[on], decisions, categorizer, true, work)
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
    """Train, val and test, and CERT, which is what FIT leaves of val."""
    trained = set(parts["train"].image_digest)
    evaluated = {name: evaluate_part(categorizer, part, true, trained) for name, part in parts.items()}
    division = divide(parts["val"].product_id, parts["val"].image_digest, fit_share)
    first = product_bounds(parts["val"].product_id)[:-1]
    return evaluated | {"cert": evaluated["val"].only(division.cert[first])}


def evaluate_part(categorizer: Categorizer, part: Part, true: TrueCategories, trained: set[str]) -> Evaluated:
    """Predicts the categories of a part's products.

    Args:
        categorizer: predicts.
        part: images of products.
        true: their categories.
        trained: digests of the images trained on.
    """
    bounds, taxonomy = product_bounds(part.product_id), categorizer.predictor.taxonomy
    product_id = part.product_id[bounds[:-1]]
    nodes = true.nodes(product_id, taxonomy)
    predictions = categorizer.predict(part.rows, bounds)
    seen = np.array([digest in trained for digest in part.image_digest], dtype=int)
    return Evaluated(
        product_id=product_id,
        nodes=nodes,
        predictions=predictions,
        confidences=categorizer.level_confidences(predictions),
        correct_nodes=taxonomy.nodes.T[predictions.top[:, 0]] == nodes,
        unseen=np.add.reduceat(seen, bounds[:-1]) == 0 if len(seen) else np.zeros(0, bool),
    )


def measure(evaluated: Evaluated, categorizer: Categorizer) -> PartFigures | None:
    """The figures of a part; None where it has no products."""
    if not len(evaluated.truth):
        return None
    certificate, taxonomy = categorizer.rules.certificate, categorizer.predictor.taxonomy
    stop = categorizer.stops(evaluated.predictions, evaluated.confidences)
    target, accepted = categorizer.rules.target, stop == taxonomy.levels
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
    )


def _decided(correct: np.ndarray) -> DecidedFigures:
    return DecidedFigures(products=len(correct), precision=precision(correct) if len(correct) else None)


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


# The tables


def write_tables(
    evaluated: Evaluated, categorizer: Categorizer, true: TrueCategories, work: Path
) -> pd.DataFrame:
    """Writes all tables but unlearnt.parquet; returns the decisions."""
    decisions = write_decided(evaluated, categorizer, true, work)
    _write_curves(evaluated, categorizer.rules, work)
    _write_categories(evaluated, decisions, categorizer, work)
    _write_confusions(evaluated, categorizer, true, work)
    return decisions


def write_decided(
    evaluated: Evaluated, categorizer: Categorizer, true: TrueCategories, work: Path
) -> pd.DataFrame:
    """Writes decisions.parquet, and measured.parquet, the truth beside them; returns the decisions."""
    decisions = categorizer.decide(evaluated.product_id, evaluated.predictions)
    write_decisions([decisions], work / "decisions.parquet")
    taxonomy_levels = evaluated.nodes.shape[1]
    status, level = decisions["status"].to_numpy(), decisions["node_level"].fillna(0).to_numpy(int)
    level = np.where(status == ACCEPTED, taxonomy_levels, level)  # of a shallow leaf: its depth
    node_correct = np.take_along_axis(evaluated.correct_nodes, np.maximum(level - 1, 0)[:, None], axis=1)[
        :, 0
    ]
    columns = {
        "product_id": evaluated.product_id,
        "true_category": true.category.reindex(evaluated.product_id).to_numpy(),
        "true_path": true.paths(evaluated.product_id),
        "learnt": evaluated.learnt,
        "unseen": evaluated.unseen,
        "images": evaluated.predictions.images,
        "correct": evaluated.correct,
        "node_correct": pa.array(node_correct, mask=level == 0),
    }
    write_table(pa.table(columns), work / "measured.parquet")
    return decisions


def _write_curves(evaluated: Evaluated, rules: DecisionRules, work: Path) -> None:
    """The curves of all levels, and what the products say of each target of the ladder."""
    levels = []
    for at in range(evaluated.nodes.shape[1]):
        curve = acceptance_curve(evaluated.confidences[:, at], evaluated.correct_nodes[:, at])
        table = _curve_table(curve.thinned(CURVE_POINTS), rules.delta)
        levels.append(table.add_column(0, "level", pa.array(np.full(len(table), at + 1, np.int32))))
    write_table(pa.concat_tables(levels), work / "level_curves.parquet")
    write_table(table, work / "curve.parquet")  # of the last level: the categories

    def row(certificate: Certificate) -> dict[str, object]:
        least = np.inf if certificate.threshold is None else certificate.threshold
        at = max(int(np.searchsorted(-curve.threshold, -least, side="right")) - 1, -1)
        accepted, correct = (int(curve.accepted[at]), int(curve.correct[at])) if at >= 0 else (0, 0)
        return {
            "target": certificate.target,
            "certified": certificate.threshold is not None,
            "threshold": certificate.threshold,
            "cert_acceptance": certificate.acceptance_rate,
            "accepted": accepted,
            "precision": correct / accepted if accepted else None,
            "precision_lower": float(lower_bound(accepted, accepted - correct, certificate.delta)),
            "more_products_needed": certificate.more_products_needed,
            "at_best": certificate.at_best,
        }

    rows = [row(certificate) for certificate in rules.ladder]
    write_table(pa.Table.from_pylist(rows, LADDER), work / "ladder.parquet")


def _curve_table(curve: AcceptanceCurve, delta: float) -> pa.Table:
    return pa.table(
        {
            "threshold": curve.threshold,
            "acceptance_rate": curve.acceptance_rate,
            "precision": curve.precision,
            "precision_lower": lower_bound(curve.accepted, curve.accepted - curve.correct, delta),
        }
    )


def _write_categories(
    evaluated: Evaluated, decisions: pd.DataFrame, categorizer: Categorizer, work: Path
) -> None:
    predictor = categorizer.predictor
    accepted = (decisions["status"] == ACCEPTED).to_numpy()
    counts = per_category(evaluated.truth, evaluated.predictions.top[:, 0], accepted, len(predictor.paths))
    table = {
        "category": predictor.taxonomy.categories,
        "name": predictor.paths,
        "department": predictor.taxonomy.names[:, 0],
        "train_products": predictor.sizes,
    }
    write_table(pa.table(table | vars(counts)), work / "categories.parquet")


def _write_confusions(
    evaluated: Evaluated, categorizer: Categorizer, true: TrueCategories, work: Path
) -> None:
    """The most frequent wrong pairs; a true category may be one that the head does not know."""
    predictor = categorizer.predictor
    unknown = true.category.reindex(evaluated.product_id[~evaluated.learnt]).to_numpy()
    code, others = pd.factorize(pd.Index(unknown, dtype=object))
    truth = evaluated.truth.copy()
    truth[~evaluated.learnt] = len(predictor.paths) + code
    wrong = confusions(truth, evaluated.predictions.top[:, 0], CONFUSIONS)
    others = np.asarray(others, dtype=object)
    categories = np.concatenate([predictor.taxonomy.categories, others])
    names = np.concatenate([predictor.paths, true.labels(others)])
    columns = {
        "category": categories[wrong.truth],
        "category_name": names[wrong.truth],
        "predicted": categories[wrong.predicted],
        "predicted_name": names[wrong.predicted],
        "products": wrong.products,
    }
    write_table(pa.table(columns), work / "confusions.parquet")


def _write_unlearnt(
    evaluated: Evaluated, decisions: pd.DataFrame, categorizer: Categorizer, true: TrueCategories, work: Path
) -> None:
    """The categories that the head does not know, and what became of their measured products."""
    known = categorizer.predictor.taxonomy.index(true.category.to_numpy()) >= 0
    products = true.category[~known].value_counts().sort_index()
    chosen = ~evaluated.learnt
    status, level = decisions["status"].to_numpy(), decisions["node_level"].fillna(1).to_numpy(int)
    node = np.take_along_axis(evaluated.correct_nodes, level[:, None] - 1, axis=1)[:, 0]
    counts = (
        pd.DataFrame(
            {
                "category": true.category.reindex(evaluated.product_id[chosen]).to_numpy(),
                "measured": 1,
                "accepted": (status == ACCEPTED)[chosen],
                "parent_right": ((status == PARENT) & node)[chosen],
            }
        )
        .groupby("category")
        .sum()
        .reindex(products.index, fill_value=0)
    )
    categories = products.index.to_numpy(dtype=object)
    columns = {"category": categories, "name": true.labels(categories), "products": products.to_numpy()}
    counted = {name: counts[name].to_numpy(np.int64) for name in ("measured", "accepted", "parent_right")}
    write_table(pa.table(columns | counted, UNLEARNT_TABLE), work / "unlearnt.parquet")


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
