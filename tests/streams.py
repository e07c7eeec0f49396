"""Drawn streams of products with known truth: a release's own, and the same shop after a change.

200 categories of Zipf frequency under 20 parents; a product's logit of its own category is raised by the
category's strength, N(4, 1.8), and by its own, N(0, 1); siblings are a little alike; 5 % of the labels are
wrong. Some products are in categories that the head never learnt: they look like learnt ones of their parent.
"""

from dataclasses import dataclass

import generators as draw
import numpy as np
from scipy.special import softmax

from models.decisions.confidence import ConfidenceModel, fit_confidence
from models.decisions.drift.batch import Batch
from models.decisions.drift.reference import Measured, Reference, make_reference
from models.decisions.thresholds import certify

CATEGORIES, PARENTS, NOISE = 200, 20, 0.05


@dataclass(frozen=True)
class Stream:
    """What a shop sends: the default is the shop of the release."""

    mix: np.ndarray | None = None  # (200,) float weights of categories; None: Zipf
    blur: float = 0.0  # taken from every product's strength
    unlearnt: float = 0.03  # share of products in categories that were not learnt


@dataclass(frozen=True)
class Shop:
    """A drawn shop: categories and their strengths."""

    frequency: np.ndarray  # (200,) float
    parent: np.ndarray  # (200,) int
    strength: np.ndarray  # (200,) float
    twins: float = 0.0  # 0 to 1: how alike the products of two branches each are; 1: they are the same

    @property
    def labels(self) -> np.ndarray:
        """(2, 200) str, paths of both levels."""
        parents = np.array([f"p{at:02d}" for at in self.parent], dtype=object)
        return np.array([parents, [f"{p} / c{c:03d}" for c, p in enumerate(parents)]], dtype=object)

    @property
    def sizes(self) -> np.ndarray:
        """(200,) int, training products."""
        sizes: np.ndarray = np.round(20 + 20_000 * self.frequency / self.frequency.sum()).astype(int)
        return sizes

    @property
    def categories(self) -> np.ndarray:
        """(200,) str."""
        return np.array([f"c{at:03d}" for at in range(CATEGORIES)], dtype=object)

    def _twin(self) -> np.ndarray:
        """(200,) int, for each category one of the other branch of its pair."""
        rng, twin = np.random.default_rng(3), np.empty(CATEGORIES, int)
        for own in range(CATEGORIES):
            others = np.flatnonzero(self.parent == self.parent[own] ^ 1)
            twin[own] = rng.choice(others) if len(others) else own
        return twin

    def draw(self, rng: np.random.Generator, products: int, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (n, 200) float of the categories, and (n,) int labels, -1 of those not learnt."""
        mix = self.frequency if stream.mix is None else stream.mix
        own = rng.choice(CATEGORIES, products, p=mix / mix.sum())
        unlearnt = rng.random(products) < stream.unlearnt
        seen = np.where(rng.random(products) < self.twins / 2, self._twin()[own], own)
        logits = rng.normal(size=(products, CATEGORIES))
        logits += 0.8 * (self.parent[seen][:, None] == self.parent)
        raised = self.strength[seen] + rng.normal(size=products) - stream.blur - 1.0 * unlearnt
        logits[np.arange(products), seen] += raised
        label = np.where(rng.random(products) < NOISE, rng.integers(0, CATEGORIES, products), own)
        return softmax(logits, axis=1), np.where(unlearnt, -1, label)


def drawn_shop(seed: int, twins: float = 0.0) -> Shop:
    """A shop; another seed is another one."""
    rng = np.random.default_rng([seed, 1])
    frequency = rng.permutation(1 / (np.arange(CATEGORIES) + 1.0))
    return Shop(frequency, rng.integers(0, PARENTS, CATEGORIES), rng.normal(4, 1.8, CATEGORIES), twins)


@dataclass(frozen=True)
class Release:
    """A release of a shop: its confidence model, its threshold and its reference."""

    shop: Shop
    model: ConfidenceModel
    reference: Reference

    def measured(self, rng: np.random.Generator, products: int, stream: Stream) -> Measured:
        """Fresh products as the release predicts them, with their truth."""
        return _measured(self.shop, self.model, rng, products, stream)

    def batch(self, measured: Measured) -> Batch:
        """The batch of these products; their truth is not used."""
        branch_of = self.reference.branch_of(self.shop.labels)
        names = list(self.reference.categories.names or ())
        position = np.array(
            [names.index(name) if name in names else len(names) - 1 for name in self.shop.categories]
        )
        predicted = measured.predicted
        return Batch.count(self.reference, branch_of[predicted], position[predicted], measured.confidence)

    def accepted_precision(self, measured: Measured) -> float:
        """The truth: share right of the accepted."""
        accepted = measured.confidence >= (self.reference.threshold or np.inf)
        return float(measured.correct[accepted].mean())


def _measured(
    shop: Shop, model: ConfidenceModel, rng: np.random.Generator, products: int, stream: Stream
) -> Measured:
    probability, truth = shop.draw(rng, products, stream)
    evidence = draw.evidence_of(probability, np.ones(products, int), shop.parent, shop.sizes)
    return Measured(probability.argmax(axis=1), truth, model.confidence(evidence))


def drawn_release(
    seed: int, validation: int = 3_000, test: int = 3_000, twins: float = 0.0, target: float = 0.85
) -> Release:
    """A release that was fitted, certified and measured on fresh products of its shop."""
    shop, rng = drawn_shop(seed, twins), np.random.default_rng([seed, 2])
    probability, truth = shop.draw(rng, validation // 3, Stream())
    evidence = draw.evidence_of(probability, np.ones(len(truth), int), shop.parent, shop.sizes)
    model = fit_confidence(evidence, probability.argmax(axis=1) == truth)
    fit, cert = (
        _measured(shop, model, rng, count, Stream()) for count in (validation // 3, 2 * validation // 3)
    )
    certificate = certify(
        draw.outcomes(fit.confidence, fit.correct, "fit"), draw.outcomes(cert.confidence, cert.correct),
        target=target, delta=0.1, grid=1000,
    )  # fmt: skip
    measured = _measured(shop, model, rng, test, Stream())
    reference = make_reference(
        measured, shop.labels, shop.categories, shop.sizes,
        target=target, threshold=certificate.threshold,
    )  # fmt: skip
    return Release(shop, model, reference)
