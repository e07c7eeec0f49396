"""A head trained for a comparison, and what is measured of it or of a baseline."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from models.decisions.categorizer import Predictor
from models.decisions.confidence import fit_confidence
from models.decisions.metrics import acceptance_curve, acceptance_rate_at, precision
from models.decisions.predictions import Classifier, Predictions
from models.heads.architectures import Head
from models.heads.baselines import LinearSvm
from models.heads.training import Examples, fit_head
from pipeline.compare.classifiers import wanted_aggregation
from pipeline.compare.data import ComparisonData, draw_products
from pipeline.job.catalogue import Part, sizes_of
from pipeline.job.config import Config
from pipeline.job.progress import Progress
from pipeline.train.calibrate import choose_aggregation
from pipeline.train.from_settings import head_precision, labels_of, loss_of, recipe_of, shape_of

MOST_TRAIN_PRODUCTS = 50_000  # on which the training precision is measured


@dataclass(frozen=True)
class Trained:
    """A trained classifier."""

    classifier: Head | LinearSvm
    parameters: int
    chosen: dict[str, float]  # by FIT


def train_head(data: ComparisonData, config: Config) -> Trained:
    """Trains a head of these settings, as `shelfmark train` does."""
    shape = shape_of(data.train, data.taxonomy, data.fingerprint, config)
    labels = labels_of(data.category, data.taxonomy, shape)
    train, fit = (Examples(part.rows, labels(part.product_id)) for part in (data.train, data.fit))
    loss, recipe, selecting = (
        loss_of(data.taxonomy, config),
        recipe_of(config, head_precision(config, shape)),
        fit if len(fit.labels) else None,
    )
    with Progress("train", recipe.epochs * len(train.labels)) as progress:
        head, history = fit_head(shape, train, selecting, recipe, loss, progress=progress.to)
    return Trained(head, head.model.count_params(), {"epochs": len(history["loss"])})


@dataclass(frozen=True)
class Measures:
    """The measured fields of a RowResult."""

    train_precision: float
    val_precision: float
    val_products: int
    acceptance_rate_at_target: float
    fit_precision: float
    fit_products: int
    fit_acceptance_rate_at_target: float


@dataclass(frozen=True, eq=False)
class Measured:
    """What is measured of a classifier, and of the n products of CERT."""

    measures: Measures
    levels: dict[str, float]  # by level: share of CERT's products whose node is the most likely one
    confidence: np.ndarray  # (n,) float
    correct: np.ndarray  # (n,) bool


def measure(classifier: Classifier, data: ComparisonData, config: Config) -> Measured:
    """Precision on training products; on CERT and FIT also the acceptance rate at the promised precision.

    Confidence is fitted as `shelfmark calibrate` fits it. A baseline's decision values are used as logits.
    """
    sizes = sizes_of(data.train, data.category, data.taxonomy)
    # An SVM instead of a head: a Predictor calls nothing but `logits` and `outputs`, which it has, too.
    predictor = Predictor(cast(Head, classifier), data.taxonomy, sizes, model="", labels="")
    bounds, truth = data.products(data.fit)
    aggregation, temperature = choose_aggregation(
        predictor, data.fit.rows, bounds, truth, wanted_aggregation(config)
    )

    def predict(part: Part) -> tuple[Predictions, np.ndarray]:
        """Predictions about a part's n products; (n,) bool, whether they are correct."""
        bounds, truth = data.products(part)
        predictions = predictor.predict(part.rows, bounds, temperature, aggregation)
        return predictions, predictions.top[:, 0] == truth

    _, train = predict(draw_products(data.train, MOST_TRAIN_PRODUCTS, np.random.default_rng(config.seed)))
    of_fit, fit = predict(data.fit)
    of_cert, cert = predict(data.cert)
    model = fit_confidence(predictor.evidence(of_fit), fit, config.calibration.model)
    target = config.calibration.precision

    def acceptance_rate(confidence: np.ndarray, correct: np.ndarray) -> float:
        """The largest share of the products that can be accepted with precision `target`, as measured."""
        return acceptance_rate_at(acceptance_curve(confidence, correct), target)[0]

    confidence = model.confidence(predictor.evidence(of_cert))
    fit_confidences = model.confidence(predictor.evidence(of_fit))
    measures = Measures(
        train_precision=precision(train),
        val_precision=precision(cert),
        val_products=len(cert),
        acceptance_rate_at_target=acceptance_rate(confidence, cert),
        fit_precision=precision(fit) if len(fit) else 0.0,
        fit_products=len(fit),
        fit_acceptance_rate_at_target=acceptance_rate(fit_confidences, fit) if len(fit) else 0.0,
    )
    truth = data.taxonomy.nodes[:, data.products(data.cert)[1]]
    return Measured(measures, _level_shares(of_cert, truth), confidence, cert)


def _level_shares(predictions: Predictions, truth: np.ndarray) -> dict[str, float]:
    """By level the share of the products whose node is the most likely one; `truth` is (N, n) int nodes."""
    ranked = predictions.own_top if predictions.own_top.shape[1] else predictions.level_top
    return {f"level{at + 1}": precision(ranked[:, at, 0] == node) for at, node in enumerate(truth)}
