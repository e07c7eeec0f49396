"""Calibrate: the confidence of predictions, and the threshold from which they are accepted.

    thresholds/  thresholds.json  manifest.json

FIT gives the limit of the cascade (models/decisions/cascade.py), aggregation, temperature, confidence models
and, by out-of-fold confidences, grids and starts of the chains; CERT certifies and nothing else
(models/decisions/thresholds.py, levels.py). Both hold products of categories that the head never learnt, as
the products to come do: wrong at the category, and correct above it where their branch is in the tree.

A category that is new since the release in service, or a part of a split one, is withheld until training and
FIT together have calibration.new_category_products products of it. CERT has no part in these counts, so that
what it certifies under this rule holds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import THRESHOLDS, load_predictor
from models.decisions.cascade import Cascade, certainty, fit_cascade, rows_that_decide
from models.decisions.categorizer import DecisionRules, LevelRule, Predictor
from models.decisions.confidence import (
    AGGREGATIONS,
    ConfidenceModel,
    Kind,
    accuracy_and_log_loss,
    fit_confidence,
    fit_temperature,
)
from models.decisions.levels import LevelOutcomes, certify_levels
from models.decisions.out_of_fold import out_of_fold
from models.decisions.predictions import Predictions, product_bounds
from models.heads.architectures import SET, set_logits
from models.rows import Rows
from models.taxonomy import Taxonomy
from pipeline.extract.chosen_views import require_cascade
from pipeline.job.catalogue import Division, Part, TrueCategories, divide, open_part
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, ThresholdsSummary
from pipeline.job.tree import unproven
from pipeline.train.planning import departments, ladder, restriction

VERSION = 6
MOST_LOGITS = 2**27  # numbers of FIT logits that the temperature is fitted on (half a gigabyte)


def calibrate(run: Run) -> Artifact:
    """Calibrates the run's head on the validation products."""
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head, out = run.head(records, bottlenecks), run.path / "thresholds"
    waiting = unproven(run, records)
    return calibrate_head(records, bottlenecks, head, run.store, out, run.config, waiting)


def calibrate_head(
    records: Artifact,
    bottlenecks: Artifact,
    head: Artifact,
    store: AnyPath,
    out: AnyPath,
    config: Config,
    waiting: Sequence[str] = (),
) -> Artifact:
    """Calibrates a head on the validation products.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        head: of train.
        store: directory of all stores.
        out: the artifact's directory.
        config: section [calibration], and head.aggregation.
        waiting: categories that are withheld unless there is evidence enough, see `withheld_categories`.
    """

    def make(work: Path) -> Mapping[str, object]:
        predictor, extracted = load_predictor(head.folder()), BottlenecksSummary.of(bottlenecks)
        require_cascade(config.extract.cascade, extracted.predicted_from, extracted.averaged)
        val = open_part(bottlenecks, store, "val")
        division = divide(val.product_id, val.image_digest, config.calibration.fit_share)
        rules = decision_rules(predictor, val, TrueCategories.of(records), division, config, waiting)
        write_whole(work / THRESHOLDS, json.dumps(rules.to_dict(), indent=1, sort_keys=True).encode())
        certificate = rules.certificate
        _log_levels(rules)
        return ThresholdsSummary(
            aggregation=rules.aggregation,
            certified=certificate.threshold is not None,
            threshold=certificate.threshold,
            certified_products=certificate.products,
            acceptance_rate=certificate.acceptance_rate,
            reason=certificate.reason,
            levels_certified=sum(one.certificate.threshold is not None for one in rules.levels.values()),
            withheld_categories=len(rules.withheld),
        ).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "settings": config.of_the_thresholds(),
        "waiting": sorted(waiting),
    }
    return stage(out, kind="thresholds", version=VERSION, made_from=made_from, make=make)


def decision_rules(
    predictor: Predictor,
    val: Part,
    true: TrueCategories,
    division: Division,
    config: Config,
    waiting: Sequence[str] = (),
) -> DecisionRules:
    """How predictions become decisions, from the validation images.

    Args:
        predictor: with the head.
        val: the images of the validation products, whether the head learnt their categories or not.
        true: the categories.
        division: of the images into FIT and CERT.
        config: section [calibration], and head.aggregation.
        waiting: see `withheld_categories`.
    """
    taxonomy, settings = predictor.taxonomy, config.calibration
    cascade, val, division = _looked_at(predictor, val, division, config.extract.cascade)
    fit, cert = (
        _Products(val, true, taxonomy, division.group, side) for side in (division.fit, division.cert)
    )
    learnt = fit.learnt()  # a category that the head does not know has no likelihood
    aggregation, temperature = choose_aggregation(
        predictor, learnt.rows, learnt.bounds, learnt.nodes[:, -1], config.head.aggregation
    )
    fit_predictions, cert_predictions = (
        predictor.predict(side.rows, side.bounds, temperature, aggregation) for side in (fit, cert)
    )
    fitted = [
        _confidence_model(predictor, fit_predictions, fit, level, settings.model)
        for level in range(1, taxonomy.levels + 1)
    ]
    models = [model for model, _ in fitted]
    if models[-1].kind != settings.model and models[-1].reason:
        log.warning(
            "thresholds: confidence by %s instead of %s: %s",
            models[-1].kind,
            settings.model,
            models[-1].reason,
        )
    of_cert_levels = [
        model.confidence(predictor.evidence(cert_predictions, level))
        for level, model in enumerate(models, start=1)
    ]
    withheld = withheld_categories(predictor, fit.nodes[:, -1], waiting, settings.new_category_products)
    outcomes = [
        _level_outcomes(fit, fit_predictions, [left_out for _, left_out in fitted], taxonomy, withheld),
        _level_outcomes(cert, cert_predictions, of_cert_levels, taxonomy, withheld),
    ]
    certificates = certify_levels(
        *outcomes, target=settings.precision, delta=settings.delta, grid=settings.grid
    )
    of_fit, of_cert = (one.leaf() for one in outcomes)
    fit_category, cert_category = fit_predictions.top[:, 0], cert_predictions.top[:, 0]
    fit_open, cert_open = ~withheld[fit_category], ~withheld[cert_category]
    return DecisionRules(
        model=predictor.model,
        labels=predictor.labels,
        temperature=temperature,
        confidence=models[-1],
        certificate=certificates[-1],
        target=settings.precision,
        delta=settings.delta,
        fit={"products": len(fit.nodes)},
        aggregation=aggregation,
        cascade=cascade,
        levels={
            f"level{level}": LevelRule(model, certificate)
            for level, (model, certificate) in enumerate(zip(models, certificates, strict=True), start=1)
            if level < taxonomy.levels
        },
        withheld=tuple(taxonomy.categories[withheld].tolist()),
        ladder=ladder(of_fit, of_cert, fit_open, cert_open, certificates[-1].delta, settings),
        departments=departments(
            of_cert, cert_open, cert_category, taxonomy, certificates[-1].threshold, settings
        ),
        restriction=restriction(of_fit, of_cert, fit_category, cert_category, taxonomy, settings, withheld),
    )


def _looked_at(
    predictor: Predictor, val: Part, division: Division, share: float
) -> tuple[Cascade | None, Part, Division]:
    """The cascade, which FIT chooses, and the rows that decide; without a cascade all of them."""
    if not share:
        return None, val, division
    bounds, photos = product_bounds(val.product_id), np.arange(0, len(val.product_id), val.views)
    certain = certainty(predictor.head, val.rows.only(photos), bounds // val.views)
    cascade = fit_cascade(certain[division.fit[bounds[:-1]]], share)
    again = certain < cascade.limit
    log.info(
        "cascade: the first view decides where its largest probability is %.6f or more; %.1f %% of FIT's and "
        "%.1f %% of all validation products are looked at again",
        cascade.limit, 100 * cascade.share, 100 * float(again.mean()) if len(again) else 0.0,
    )  # fmt: skip
    rows, _ = rows_that_decide(bounds, again, val.views)
    return cascade, val.only(rows), Division(division.group[rows], division.fit[rows])


def withheld_categories(
    predictor: Predictor, fit_truth: np.ndarray, waiting: Sequence[str], least: int
) -> np.ndarray:
    """(C,) bool: the categories that wait for evidence and have too little of it.

    Args:
        predictor: with the numbers of training products.
        fit_truth: (n,) int, true category of each product of FIT; -1 of one that the head does not know.
        waiting: new categories, and parts of split ones.
        least: products in training and FIT together that are evidence enough.
    """
    categories = predictor.taxonomy.categories
    counts = predictor.sizes + np.bincount(fit_truth[fit_truth >= 0], minlength=len(categories))
    withheld: np.ndarray = np.isin(categories, list(waiting)) & (counts < least)
    return withheld


def _log_levels(rules: DecisionRules) -> None:
    if rules.withheld:
        log.info(
            "thresholds: %s new or split categories wait for evidence, their products for a person: %s",
            f"{len(rules.withheld):,}",
            ", ".join(rules.withheld[:3]) + (" …" if len(rules.withheld) > 3 else ""),
        )  # fmt: skip
    for level, rule in rules.levels.items():
        certificate = rule.certificate
        if certificate.threshold is None:
            log.info("thresholds: %s: %s", level, certificate.reason)
        else:
            log.info(
                "thresholds: %s: %.1f %% of the products stop there", level, 100 * certificate.acceptance_rate
            )


class _Products:
    """The products of FIT or of CERT."""

    def __init__(
        self, val: Part, true: TrueCategories, taxonomy: Taxonomy, group: np.ndarray, chosen: np.ndarray
    ) -> None:
        product_id = val.product_id[chosen]
        self.bounds = product_bounds(product_id)
        first = self.bounds[:-1]
        self.rows = val.rows.only(chosen)
        self.product_id, self.group = product_id[first], group[chosen][first]
        self.nodes = true.nodes(self.product_id, taxonomy)  # (n, N) int, -1 where the head knows none

    def learnt(self) -> "_Learnt":
        """The products of categories that the head knows."""
        known = self.nodes[:, -1] >= 0
        images = np.diff(self.bounds)
        bounds = np.concatenate([[0], np.cumsum(images[known])])
        return _Learnt(self.rows.only(np.repeat(known, images)), bounds, self.nodes[known])


@dataclass(frozen=True)
class _Learnt:
    rows: Rows  # (images, d)
    bounds: np.ndarray  # (p + 1,)
    nodes: np.ndarray  # (p, N) int


def choose_aggregation(
    predictor: Predictor, rows: Rows, bounds: np.ndarray, truth: np.ndarray, aggregation: str
) -> tuple[str, float]:
    """Chooses how a product's images are aggregated, by accuracy on FIT, then log loss; and the temperature.

    Args:
        predictor: with the head.
        rows: (n, d) bottlenecks of FIT, products together; the first 2^27 / C of them are read.
        bounds: (p + 1,) where each product begins.
        truth: (p,) int.
        aggregation: "auto", or a fixed one.
    """
    most = MOST_LOGITS // len(predictor.taxonomy.categories)  # images
    products = max(1, int(np.searchsorted(bounds, most, side="right")) - 1)
    bounds, truth = bounds[: products + 1], truth[:products]
    if len(truth) == 0:
        return ("mean" if aggregation == "auto" else aggregation), 1.0
    sample, images = rows[slice(0, bounds[-1])], np.diff(bounds)
    of_images, measured = predictor.head.logits(sample), []
    for name in _candidates(aggregation, images, predictor):
        if name == SET:
            assert predictor.set_head is not None  # train makes one
            logits, counts, how = set_logits(predictor.set_head, sample, bounds), np.ones_like(images), "mean"
        else:
            logits, counts, how = of_images, images, name
        temperature = fit_temperature(logits, counts, truth, how)
        accuracy, loss = accuracy_and_log_loss(logits, counts, truth, temperature, how)
        log.info("aggregation: %s of images: FIT accuracy %.4f, log loss %.4f", name, accuracy, loss)
        measured.append((accuracy, -loss, name, temperature))
    _, _, name, temperature = max(measured, key=lambda one: one[:2])  # the first among equals
    return name, temperature


def _candidates(aggregation: str, images: np.ndarray, predictor: Predictor) -> list[str]:
    if aggregation != "auto":
        return [aggregation]
    several = list(AGGREGATIONS if (images > 1).any() else AGGREGATIONS[:1])  # of one image all are the same
    return [*several, SET] if predictor.set_head else several


def _confidence_model(
    predictor: Predictor, predictions: Predictions, fit: _Products, level: int, kind: Kind
) -> tuple[ConfidenceModel, np.ndarray]:
    """The confidence in the nodes of a level, fitted on the products of FIT that it is open to.

    Returns:
        The model, and (n,) float, the confidence of each product of FIT, out of fold where it was fitted on.
    """
    taxonomy = predictor.taxonomy
    category = predictions.top[:, 0]
    is_open = (taxonomy.depth[category] > level) | (level == taxonomy.levels)
    correct = taxonomy.nodes[level - 1][category] == fit.nodes[:, level - 1]
    evidence = predictor.evidence(predictions.only(is_open), level)
    model = fit_confidence(evidence, correct[is_open], kind)
    confidence = model.confidence(predictor.evidence(predictions, level))
    confidence[is_open] = out_of_fold(evidence, correct[is_open], fit.group[is_open], model, kind)
    return model, confidence


def _level_outcomes(
    side: _Products,
    predictions: Predictions,
    confidence: list[np.ndarray],
    taxonomy: Taxonomy,
    withheld: np.ndarray,
) -> LevelOutcomes:
    most_likely = predictions.top[:, 0]
    return LevelOutcomes(
        product_id=side.product_id,
        group=side.group,
        confidence=np.stack(confidence, axis=1),
        correct=side.nodes == taxonomy.nodes[:, most_likely].T,
        depth=taxonomy.depth[most_likely],
        withheld=withheld[most_likely],
    )
