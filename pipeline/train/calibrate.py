"""Calibrate: how sure the head may be, and from where it decides alone.

    thresholds/  thresholds.json  manifest.json

FIT gives aggregation, temperature, confidence model and grid; CERT certifies and nothing else
(models/decisions/thresholds.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from features.storage.artifact import Artifact
from features.storage.paths import Place, write_whole
from models.decisions.bundle import THRESHOLDS, load_predictor
from models.decisions.categorizer import DecisionRules, Predictor
from models.decisions.confidence import (
    AGGREGATIONS,
    ConfidenceModel,
    accuracy_and_log_loss,
    fit_confidence,
    fit_temperature,
)
from models.decisions.predictions import Predictions, Rows, product_bounds
from models.decisions.thresholds import Outcomes, certify
from models.heads.architectures import SET, set_logits
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
    out = run.path / "thresholds"
    return calibrate_head(run.records(), run.bottlenecks(), run.head(), run.store, out, run.config)


def calibrate_head(
    records: Artifact, bottlenecks: Artifact, head: Artifact, store: Place, out: Place, config: Config
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
        asked = load_predictor(head.folder())
        val = open_part(bottlenecks, store, "val")
        truth = asked.taxonomy.index(categories_of(records).reindex(val.product_id).to_numpy())
        division = divide(val.product_id, val.image_digest, config.calibration.fit_share)
        rules = _rules(asked, val, truth, division, config)
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
    asked: Predictor, val: Part, truth: np.ndarray, division: Division, config: Config
) -> DecisionRules:
    """The rules from the validation images, divided into FIT and CERT."""
    fit, cert = (_Products(val, truth, division.group, chosen) for chosen in (division.fit, division.cert))
    aggregation, temperature = choose_aggregation(
        asked, fit.rows, fit.bounds, fit.truth, config.head.aggregation
    )
    fit_answers, cert_answers = (
        asked.predict(side.rows, side.bounds, temperature, aggregation) for side in (fit, cert)
    )
    confidence = fit_confidence(fit_answers.evidence(asked.sizes), fit_answers.top[:, 0] == fit.truth)
    certificate = certify(
        _graded(fit, fit_answers, confidence, asked),
        _graded(cert, cert_answers, confidence, asked),
        target=config.calibration.precision,
        delta=config.calibration.delta,
        grid=config.calibration.grid,
    )
    return DecisionRules(
        asked.model, asked.labels, temperature, confidence, certificate, len(fit.truth), aggregation
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
    asked: Predictor, rows: Rows, bounds: np.ndarray, truth: np.ndarray, wish: str
) -> tuple[str, float]:
    """How FIT wants a product's images made one, by accuracy, then log loss; and the temperature with it.

    Args:
        asked: the head.
        rows: (n, d) bottlenecks of FIT, products together; the first 2^27 / C of them are looked at.
        bounds: (p + 1,) where each product begins.
        truth: (p,) int.
        wish: "auto", or the one that it shall be.
    """
    most = MOST_LOGITS // len(asked.taxonomy.categories)  # images
    products = max(1, int(np.searchsorted(bounds, most, side="right")) - 1)
    bounds, truth = bounds[: products + 1], truth[:products]
    if len(truth) == 0:
        return ("mean" if wish == "auto" else wish), 1.0
    sample, images = rows[slice(0, bounds[-1])], np.diff(bounds)
    of_images, graded = asked.head.logits(sample), []
    for name in _wished(wish, images, asked):
        if name == SET:
            assert asked.set_head is not None  # train sees to it
            logits, counts, how = set_logits(asked.set_head, sample, bounds), np.ones_like(images), "mean"
        else:
            logits, counts, how = of_images, images, name
        temperature = fit_temperature(logits, counts, truth, how)
        accuracy, loss = accuracy_and_log_loss(logits, counts, truth, temperature, how)
        log.info("aggregation: %s of images: FIT accuracy %.4f, log loss %.4f", name, accuracy, loss)
        graded.append((accuracy, -loss, name, temperature))
    _, _, name, temperature = max(graded, key=lambda told: told[:2])  # the first among equals
    return name, temperature


def _wished(wish: str, images: np.ndarray, asked: Predictor) -> list[str]:
    if wish != "auto":
        return [wish]
    several = list(AGGREGATIONS if (images > 1).any() else AGGREGATIONS[:1])  # of one image all are the same
    return [*several, SET] if asked.set_head else several


def _graded(side: _Products, answers: Predictions, model: ConfidenceModel, asked: Predictor) -> Outcomes:
    confidence = model.confidence(answers.evidence(asked.sizes))
    return Outcomes(side.product_id, side.group, confidence, answers.top[:, 0] == side.truth)
