"""Calibrate: the confidence of predictions, and the threshold from which they are accepted.

    thresholds/  thresholds.json  manifest.json

FIT gives aggregation, temperature, confidence model and grid; CERT certifies and nothing else
(models/decisions/thresholds.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import THRESHOLDS, load_predictor
from models.decisions.categorizer import DecisionRules, Predictor
from models.decisions.confidence import (
    AGGREGATIONS,
    ConfidenceModel,
    accuracy_and_log_loss,
    fit_confidence,
    fit_temperature,
)
from models.decisions.predictions import Predictions, product_bounds
from models.decisions.thresholds import Outcomes, certify
from models.heads.architectures import SET, set_logits
from models.rows import Rows
from pipeline.job.catalogue import Division, Part, categories_of, divide, open_part
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, ThresholdsSummary

VERSION = 4
MOST_LOGITS = 2**27  # numbers of FIT logits that the temperature is fitted on (half a gigabyte)


def calibrate(run: Run) -> Artifact:
    """Calibrates the run's head on the validation products."""
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head, out = run.head(records, bottlenecks), run.path / "thresholds"
    return calibrate_head(records, bottlenecks, head, run.store, out, run.config)


def calibrate_head(
    records: Artifact, bottlenecks: Artifact, head: Artifact, store: AnyPath, out: AnyPath, config: Config
) -> Artifact:
    """Calibrates a head on the validation products.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        head: of train.
        store: directory of all stores.
        out: the artifact's directory.
        config: section [calibration], and head.aggregation.
    """

    def make(work: Path) -> Mapping[str, object]:
        predictor = load_predictor(head.folder())
        val = open_part(bottlenecks, store, "val")
        truth = predictor.taxonomy.index(categories_of(records).reindex(val.product_id).to_numpy())
        division = divide(val.product_id, val.image_digest, config.calibration.fit_share)
        rules = _rules(predictor, val, truth, division, config)
        write_whole(work / THRESHOLDS, json.dumps(rules.to_dict(), indent=1, sort_keys=True).encode())
        certificate = rules.certificate
        return ThresholdsSummary(
            aggregation=rules.aggregation,
            certified=certificate.threshold is not None,
            threshold=certificate.threshold,
            certified_products=certificate.products,
            acceptance_rate=certificate.acceptance_rate,
            reason=certificate.reason,
        ).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "settings": config.of_the_thresholds(),
    }
    return stage(out, kind="thresholds", version=VERSION, made_from=made_from, make=make)


def _rules(
    predictor: Predictor, val: Part, truth: np.ndarray, division: Division, config: Config
) -> DecisionRules:
    """The rules from the validation images, divided into FIT and CERT."""
    fit, cert = (_Products(val, truth, division.group, chosen) for chosen in (division.fit, division.cert))
    aggregation, temperature = choose_aggregation(
        predictor, fit.rows, fit.bounds, fit.truth, config.head.aggregation
    )
    fit_predictions, cert_predictions = (
        predictor.predict(side.rows, side.bounds, temperature, aggregation) for side in (fit, cert)
    )
    confidence = fit_confidence(
        fit_predictions.evidence(predictor.sizes),
        fit_predictions.top[:, 0] == fit.truth,
        config.calibration.model,
    )
    certificate = certify(
        _outcomes(fit, fit_predictions, confidence, predictor),
        _outcomes(cert, cert_predictions, confidence, predictor),
        target=config.calibration.precision,
        delta=config.calibration.delta,
        grid=config.calibration.grid,
    )
    return DecisionRules(
        predictor.model, predictor.labels, temperature, confidence, certificate, len(fit.truth), aggregation
    )


class _Products:
    """The products of FIT or of CERT."""

    def __init__(self, val: Part, truth: np.ndarray, group: np.ndarray, chosen: np.ndarray) -> None:
        product_id = val.product_id[chosen]
        self.bounds = product_bounds(product_id)
        first = self.bounds[:-1]
        self.rows = val.rows.only(chosen)
        self.product_id, self.truth, self.group = (
            product_id[first],
            truth[chosen][first],
            group[chosen][first],
        )


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


def _outcomes(
    side: _Products, predictions: Predictions, model: ConfidenceModel, predictor: Predictor
) -> Outcomes:
    confidence = model.confidence(predictions.evidence(predictor.sizes))
    return Outcomes(side.product_id, side.group, confidence, predictions.top[:, 0] == side.truth)
