"""Evaluate: what the released thing would have done, on products it has not learnt from.

    evaluation/  metrics.json  {curve,decisions,categories,confusions}.parquet  manifest.json

    metrics.json        train, val, cert, test: each graded, or null where there is none; see `measure`
    curve.parquet       threshold, acceptance_rate, precision, precision_lower   of the graded products
    decisions.parquet   as `shelfmark categorize` gives them, of the graded products
    categories.parquet  category, name, train_products, and counts: products, right, predicted,
                        predicted_right, accepted, accepted_right
    confusions.parquet  category, category_name, predicted, predicted_name, products

The graded products are those of test. Where there is no test part they are CERT, which has certified the
threshold: then precision was not independently measured, and every output says so.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from features.storage.artifact import Artifact
from features.storage.paths import Place, write_whole
from models.decisions import metrics
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from models.decisions.predictions import Predictions, product_bounds
from models.decisions.thresholds import lower_bound
from models.heads.hierarchy import consistency, hierarchical_scores
from models.taxonomy import Taxonomy
from pipeline.beam.run_units import write_table
from pipeline.job.catalogue import Part, categories_of, divide, open_part
from pipeline.job.config import Calibration
from pipeline.job.decisions_file import write_decisions
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage

VERSION = 3
CURVE_POINTS = 10_000
CONFUSIONS = 200


@dataclass(frozen=True)
class Graded:
    """Products with their answers and the truth."""

    product_id: np.ndarray  # (n,) str
    truth: np.ndarray  # (n,) int
    answers: Predictions
    confidence: np.ndarray  # (n,) float
    unseen: np.ndarray  # (n,) bool, no image of it was trained on

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool."""
        return self.answers.top[:, 0] == self.truth

    def only(self, chosen: np.ndarray) -> "Graded":
        """The chosen products, (n,) bool."""
        return Graded(
            self.product_id[chosen], self.truth[chosen], self.answers.only(chosen), self.confidence[chosen],
            self.unseen[chosen],
        )  # fmt: skip


def evaluate(run: Run) -> Artifact:
    """Evaluates the run's head and thresholds on every part of the catalogue."""
    out, settings = run.path / "evaluation", run.config.calibration
    records, bottlenecks, head, thresholds = run.records(), run.bottlenecks(), run.head(), run.thresholds()
    return evaluate_head(records, bottlenecks, head, thresholds, run.store, out, settings)


def evaluate_head(
    records: Artifact,
    bottlenecks: Artifact,
    head: Artifact,
    thresholds: Artifact,
    store: Place,
    out: Place,
    settings: Calibration,
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

    def make(work: Path) -> Mapping[str, Any]:
        categorizer = Categorizer(load_predictor(head.folder()), read_rules(thresholds.file(THRESHOLDS)))
        category = categories_of(records)
        parts = {name: open_part(bottlenecks, store, name) for name in ("train", "val", "test")}
        trained = set(parts["train"].image_digest)
        graded = {name: grade(categorizer, part, category, trained) for name, part in parts.items()}
        division = divide(parts["val"].product_id, parts["val"].image_digest, settings.fit_share)
        first = product_bounds(parts["val"].product_id)[:-1]
        graded["cert"] = graded["val"].only(division.cert[first])
        on = "test" if len(graded["test"].truth) else "cert"
        told: dict[str, Any] = {name: measure(part, categorizer) for name, part in graded.items()}
        told |= {"graded_on": on, "independent": on == "test"}
        told |= {name: bottlenecks.summary[name] for name in ("backbone", "weights")}
        write_whole(work / "metrics.json", json.dumps(told, indent=1, sort_keys=True).encode())
        _write_tables(graded[on], categorizer, work)
        return _headline(told)

    made_from = {
        "records": records.digest,
        "fingerprint": bottlenecks.summary["fingerprint"],
        "head": head.digest,
        "thresholds": thresholds.digest,
        "fit_share": settings.fit_share,
    }
    artifact = stage(out, kind="evaluation", version=VERSION, made_from=made_from, make=make)
    if not artifact.summary["independent"]:
        log.warning("evaluation: there is no test part; precision was not independently measured")
    return artifact


def grade(categorizer: Categorizer, part: Part, category: pd.Series, trained: set[str]) -> Graded:
    """Asks about a part's products.

    Args:
        categorizer: answers.
        part: images of products.
        category: the true one by product_id.
        trained: digests of the images trained on.
    """
    bounds = product_bounds(part.product_id)
    product_id = part.product_id[bounds[:-1]]
    truth = categorizer.predictor.taxonomy.index(category.reindex(product_id).to_numpy())
    answers = categorizer.predict(part.rows, bounds)
    seen = np.array([digest in trained for digest in part.image_digest], dtype=int)
    unseen = np.add.reduceat(seen, bounds[:-1]) == 0 if len(seen) else np.zeros(0, bool)
    return Graded(product_id, truth, answers, categorizer.confidence(answers), unseen)


def measure(graded: Graded, categorizer: Categorizer) -> dict[str, Any] | None:
    """A part's entry in metrics.json; None where it has no products.

    `levels` grades each level's own output; of a flat head, which has none, leaf probabilities summed up the
    tree. `hierarchy` tells `own_outputs` (bool), the `summed` ones in any case, `consistency` (share of
    products whose category lies under the level's most likely node) and hierarchical precision, recall, f1.
    """
    if not len(graded.truth):
        return None
    certificate = categorizer.rules.certificate
    accepted = graded.confidence >= (certificate.threshold if certificate.threshold is not None else np.inf)
    return {
        **_precisions(graded, certificate.target),
        "target_precision": certificate.target,
        "threshold": certificate.threshold,
        "accepted": int(accepted.sum()),
        "accepted_precision": metrics.precision(graded.correct[accepted]) if accepted.any() else None,
        **_levels(graded, categorizer.predictor.taxonomy),
        "unseen": _precisions(graded.only(graded.unseen), certificate.target)
        if graded.unseen.any()
        else None,
    }


def _precisions(graded: Graded, target: float) -> dict[str, Any]:
    curve = metrics.acceptance_curve(graded.confidence, graded.correct)
    return {
        "products": len(graded.truth),
        "precision": metrics.precision(graded.correct),
        "acceptance_rate_at_target": metrics.acceptance_rate_at(curve, target)[0],
    }


def _levels(graded: Graded, taxonomy: Taxonomy) -> dict[str, Any]:
    answers = graded.answers
    own = answers.own_top.shape[1] > 0
    chosen = answers.own_top if own else answers.level_top
    consistent = consistency(chosen[:, :, 0], answers.top[:, 0], taxonomy)
    scores = hierarchical_scores(graded.truth, answers.top[:, 0], taxonomy)
    return {
        "levels": _top_shares(chosen, graded.truth, taxonomy),
        "hierarchy": {
            "own_outputs": own,
            "summed": _top_shares(answers.level_top, graded.truth, taxonomy),
            "consistency": {f"level{level}": share for level, share in enumerate(consistent, start=1)},
            **asdict(scores),
        },
    }


def _top_shares(ranked: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """Top-1 and top-5 of each level from (n, N, 5) nodes."""
    known = (
        truth >= 0
    )  # another week's category is not in the head's tree and has no nodes: wrong at all levels
    levels = {}
    for level in range(taxonomy.levels):
        node = np.where(known, taxonomy.nodes[level][truth], -2)
        levels[f"level{level + 1}"] = {
            f"top{k}": metrics.top_k_share(ranked[:, level], node, k) for k in (1, 5)
        }
    return levels


def _write_tables(graded: Graded, categorizer: Categorizer, work: Path) -> None:
    rules, asked = categorizer.rules, categorizer.predictor
    curve = metrics.acceptance_curve(graded.confidence, graded.correct).thinned(CURVE_POINTS)
    lower = lower_bound(curve.accepted, curve.accepted - curve.correct, rules.certificate.delta)
    columns = {
        "threshold": curve.threshold,
        "acceptance_rate": curve.acceptance_rate,
        "precision": curve.precision,
    }
    write_table(pa.table(columns | {"precision_lower": lower}), work / "curve.parquet")
    decisions = categorizer.decide(graded.product_id, graded.answers)
    write_decisions([decisions], work / "decisions.parquet")

    names = asked.paths
    accepted = (decisions["status"] == "accepted").to_numpy()
    counts = metrics.per_category(graded.truth, graded.answers.top[:, 0], accepted, len(names))
    table = {"category": asked.taxonomy.categories, "name": names, "train_products": asked.sizes}
    write_table(pa.table(table | vars(counts)), work / "categories.parquet")

    wrong = metrics.confusions(graded.truth, graded.answers.top[:, 0], CONFUSIONS)
    write_table(
        pa.table(
            {
                "category": asked.taxonomy.categories[wrong.truth],
                "category_name": names[wrong.truth],
                "predicted": asked.taxonomy.categories[wrong.predicted],
                "predicted_name": names[wrong.predicted],
                "products": wrong.products,
            }
        ),
        work / "confusions.parquet",
    )


def _headline(told: Mapping[str, Any]) -> dict[str, Any]:
    part = told[told["graded_on"]]
    return {
        "graded_on": told["graded_on"],
        "independent": told["independent"],
        "products": part["products"] if part else 0,
        "precision": part["precision"] if part else None,
        "accepted": part["accepted"] if part else 0,
        "accepted_precision": part["accepted_precision"] if part else None,
    }
