"""The tables of an evaluation; evaluate.py says what they hold."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from models.decisions.categories import estimate_precision, status
from models.decisions.categorizer import Categorizer, DecisionRules
from models.decisions.metrics import AcceptanceCurve, acceptance_curve, confusions, per_category
from models.decisions.thresholds import Certificate, lower_bound
from pipeline.beam.run_units import write_table
from pipeline.job.catalogue import TrueCategories
from pipeline.job.decisions_file import write_decisions
from pipeline.train.evaluated import Evaluated

PIECE = 2**15  # products whose decisions are in memory at a time
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


def write_tables(
    evaluated: Evaluated, fit: Evaluated, categorizer: Categorizer, true: TrueCategories, work: Path
) -> None:
    """Writes all tables.

    Args:
        evaluated: the measured products.
        fit: those of FIT, which the best categories were chosen by.
        categorizer: of both.
        true: the categories.
        work: directory.
    """
    write_decided(evaluated, categorizer, true, work)
    _write_curves(evaluated, categorizer.rules, work)
    _write_categories(evaluated, fit, categorizer, work)
    _write_confusions(evaluated, categorizer, true, work)
    _write_unlearnt(evaluated, categorizer, true, work)


def write_decided(evaluated: Evaluated, categorizer: Categorizer, true: TrueCategories, work: Path) -> None:
    """Writes decisions.parquet, and measured.parquet, the truth beside them."""

    def decisions() -> Iterator[pd.DataFrame]:
        for start in range(0, len(evaluated.product_id) or 1, PIECE):
            here = slice(start, start + PIECE)
            yield categorizer.decide(evaluated.product_id[here], evaluated.predictions.only(here))

    write_decisions(decisions(), work / "decisions.parquet")
    columns = {
        "product_id": evaluated.product_id,
        "true_category": true.category.reindex(evaluated.product_id).to_numpy(),
        "true_path": true.paths(evaluated.product_id),
        "learnt": evaluated.learnt,
        "unseen": evaluated.unseen,
        "weight": np.ones(len(evaluated.truth)) if evaluated.weight is None else evaluated.weight,
        "images": evaluated.predictions.images,
        "correct": evaluated.correct,
        "node_correct": pa.array(evaluated.node_correct, mask=evaluated.stop == 0),
    }
    write_table(pa.table(columns), work / "measured.parquet")


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


def _write_categories(evaluated: Evaluated, fit: Evaluated, categorizer: Categorizer, work: Path) -> None:
    predictor = categorizer.predictor
    fit_category, predicted = fit.predictions.top[:, 0], evaluated.predictions.top[:, 0]
    counts = per_category(evaluated.truth, predicted, evaluated.accepted, len(predictor.paths))
    estimates = estimate_precision(counts.predicted, counts.predicted_right, categorizer.rules.target)
    restriction = categorizer.rules.restriction
    kept = restriction.kept if restriction else ()
    columns = {
        "category": predictor.taxonomy.categories,
        "name": predictor.paths,
        "department": predictor.taxonomy.names[:, 0],
        "train_products": predictor.sizes,
        **vars(counts),
        "fit_predicted": np.bincount(fit_category, minlength=len(predictor.paths)),
        "fit_right": np.bincount(fit_category[fit.correct], minlength=len(predictor.paths)),
        **{name: getattr(estimates, name) for name in ("estimate", "lower", "upper")},
        "status": status(counts, categorizer.rules.target),
        "kept": np.isin(predictor.taxonomy.categories, kept),
    }
    write_table(pa.table(columns), work / "categories.parquet")


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


def _write_unlearnt(evaluated: Evaluated, categorizer: Categorizer, true: TrueCategories, work: Path) -> None:
    """The categories that the head does not know, and what became of their measured products."""
    known = categorizer.predictor.taxonomy.index(true.category.to_numpy()) >= 0
    products = true.category[~known].value_counts().sort_index()
    its = evaluated.only(~evaluated.learnt)
    rows = pd.DataFrame(
        {
            "category": true.category.reindex(its.product_id).to_numpy(),
            "measured": 1,
            "accepted": its.accepted,
            "parent_right": ~its.accepted & its.node_correct,
        }
    )
    counts = rows.groupby("category").sum().reindex(products.index, fill_value=0)
    categories = products.index.to_numpy(dtype=object)
    columns = {"category": categories, "name": true.labels(categories), "products": products.to_numpy()}
    counted = {name: counts[name].to_numpy(np.int64) for name in ("measured", "accepted", "parent_right")}
    write_table(pa.table(columns | counted, UNLEARNT_TABLE), work / "unlearnt.parquet")
