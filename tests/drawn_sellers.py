"""Drawn sellers with their own habits, and a base classifier that knows only what sellers have in common.

    product of category c at seller s   x = centre(c) + habit(s, c) + noise
    base                                the posterior of c for the variance of habit and noise together

So the base is calibrated over sellers, and wrong in the same way again and again at one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from models.decisions.confidence import EDGE
from models.decisions.seller_rules import (
    FittedSellers,
    Replayed,
    SellerProducts,
    choose_base_threshold,
    fit_sellers,
    replay,
)
from models.decisions.suspicion import LIMIT, Suspicion, add_evidence, fit_suspicion, rank_masses, ranks
from models.sellers.votes import VotesMethod

TARGET = 0.9
SIZE, SPREAD = 15, 0.8  # products of a seller: median, and deviation of the logarithm


@dataclass(frozen=True)
class Drawn:
    """A catalogue of drawn categories."""

    centres: np.ndarray  # (C, d)
    habit: float = 0.45  # deviation of habits
    noise: float = 0.45  # deviation of products

    @classmethod
    def of(cls, categories: int, seed: int = 0, width: int = 8, **numbers: float) -> "Drawn":
        """Draws the centres."""
        return cls(np.random.default_rng(seed).normal(size=(categories, width)), **numbers)

    def log_probability(self, x: np.ndarray) -> np.ndarray:
        """(n, C) float, of the base."""
        variance = self.habit**2 + self.noise**2
        logits = (x @ self.centres.T - (self.centres**2).sum(axis=1) / 2) / variance
        return log_softmax(logits, axis=1)

    def seller(
        self, name: str, rng: np.random.Generator, products: int, categories: int = 6, fit_share: float = 0.25
    ) -> SellerProducts:
        """Draws a seller of a few categories with products of them, in a random order."""
        own = rng.choice(len(self.centres), min(categories, len(self.centres)), replace=False)
        places = self.centres[own] + rng.normal(0, self.habit, (len(own), self.centres.shape[1]))
        which = rng.integers(0, len(own), products)
        x = places[which] + rng.normal(0, self.noise, (products, self.centres.shape[1]))
        logs = self.log_probability(x)
        return SellerProducts(
            seller=name,
            product_id=np.array([f"{name}-{number}" for number in range(products)], dtype=object),
            own=np.ones(products, bool),
            fit=rng.random(products) < fit_share,
            vectors=x.astype(np.float16),
            log_probability=logs,
            base=logs.argmax(axis=1),
            base_confidence=np.clip(np.exp(logs.max(axis=1)), EDGE, 1 - EDGE),
            true=own[which],
        )

    def poisoned(self, products: SellerProducts, kind: str, rng: np.random.Generator) -> SellerProducts:
        """The products with wrong categories: any ones ("random"), or always the next one ("swap")."""
        count = len(self.centres)
        shift = rng.integers(1, count, len(products.true)) if kind == "random" else 1
        return replace(products, true=(products.true + shift) % count)

    def sellers(
        self, prefix: str, count: int, rng: np.random.Generator, poisoned: float = 0.0
    ) -> tuple[list[SellerProducts], list[SellerProducts]]:
        """Draws sellers of different sizes: as they label their products, and with the true categories."""
        labelled, honest = [], []
        for number in range(count):
            size = int(np.clip(rng.lognormal(np.log(SIZE), SPREAD), 2, 200))
            one = self.seller(f"{prefix}{number}", rng, size)
            honest.append(one)
            kind = "random" if rng.random() < 0.5 else "swap"
            labelled.append(self.poisoned(one, kind, rng) if rng.random() < poisoned else one)
        return labelled, honest


def suspicion_of(sellers: Sequence[SellerProducts], categories: int) -> Suspicion:
    """The table of evidence, from these sellers' products."""
    logs = np.concatenate([one.log_probability for one in sellers])
    rank = ranks(logs, np.concatenate([one.true for one in sellers]))
    confidence = np.concatenate([one.base_confidence for one in sellers])
    return fit_suspicion(confidence, rank, rank_masses(logs), categories)


def evidence_of(products: SellerProducts, table: Suspicion) -> np.ndarray:
    """(n,) float, of a correction of each product to its label."""
    return table.evidence(products.base_confidence, ranks(products.log_probability, products.true))


def flagged_at(evidence: np.ndarray) -> int | None:
    """How many corrections were made when the seller was flagged; None: never."""
    total = 0.0
    for number, value in enumerate(evidence.tolist(), start=1):
        total = add_evidence(total, value)
        if total >= LIMIT:
            return number
    return None


@dataclass(frozen=True)
class Repetition:
    """What rules promise, and what they do with fresh sellers."""

    fitted: FittedSellers
    precision: float  # of accepted adapted decisions of fresh sellers, each seller counting the same
    pooled: float  # likewise, each decision counting the same
    base_acceptance: float  # share of all products of fresh sellers that the base accepts
    acceptance: float  # likewise, with adaptation

    @property
    def broken(self) -> bool:
        """Whether the promise is broken."""
        return self.fitted.certificate.threshold is not None and self.precision < TARGET


def repetition(
    drawn: Drawn, seed: int, sellers: int, *, fresh: int = 300, poisoned: float = 0.0, votes: bool = True
) -> Repetition:
    """Fits rules on drawn sellers, and decides about the products of fresh ones.

    Args:
        drawn: the catalogue.
        seed: of this repetition.
        sellers: with validation products.
        fresh: sellers to decide about.
        poisoned: share of the sellers, of both kinds, with wrong corrections.
        votes: whether votes are fitted.
    """
    rng = np.random.default_rng((seed, sellers))
    val, _ = drawn.sellers(f"v{seed}-", sellers, rng, poisoned)
    labelled, honest = drawn.sellers(f"f{seed}-", fresh, rng, poisoned)
    confidence = np.concatenate([one.base_confidence[one.fit] for one in val])
    correct = np.concatenate([(one.base == one.true)[one.fit] for one in val])
    base_threshold = choose_base_threshold(confidence, correct, TARGET)
    by_name = {one.seller: one for one in val}
    fitted = fit_sellers(
        list(by_name), by_name.__getitem__, VotesMethod, base_threshold,
        votes=votes, target=TARGET, delta=0.1, grid=1000, fit_share=0.25,
    )  # fmt: skip
    table, method = suspicion_of(val, len(drawn.centres)), VotesMethod(fitted.votes)
    weighted, kept, good, by_base, accepted_all, products = [], 0, 0, 0, 0, 0
    for one, truth in zip(labelled, honest, strict=True):
        replayed = replay(one, method, base_threshold)
        accepted = accepted_of(replayed, fitted) & ~flagged_before(one, replayed, table, base_threshold)
        right = accepted & (replayed.category == truth.true)
        if replayed.adaptable.any():
            weighted.append(
                (right.sum() / replayed.adaptable.sum(), accepted.sum() / replayed.adaptable.sum())
            )
        kept, good, products = kept + accepted.sum(), good + right.sum(), products + len(accepted)
        confident = one.base_confidence >= base_threshold
        by_base += confident.sum()
        accepted_all += (accepted | (confident & replayed.stays)).sum()
    correct_share, accepted_share = np.sum(weighted, axis=0)
    return Repetition(
        fitted,
        precision=correct_share / accepted_share if kept else 1.0,
        pooled=good / kept if kept else 1.0,
        base_acceptance=by_base / products,
        acceptance=accepted_all / products,
    )


def accepted_of(replayed: Replayed, fitted: FittedSellers) -> np.ndarray:
    """(n,) bool, the decisions that are accepted as adapted ones of a seller who is not flagged."""
    threshold = fitted.certificate.threshold
    confidence = fitted.confidence.confidence(
        replayed.share, replayed.base_confidence, replayed.stays, replayed.corrections
    )
    return replayed.adaptable & (confidence >= (np.inf if threshold is None else threshold))


def flagged_before(
    products: SellerProducts, replayed: Replayed, table: Suspicion, base_threshold: float
) -> np.ndarray:
    """(n,) bool, whether the corrections before a product flag the seller."""
    seen = (products.base_confidence < base_threshold) | ~replayed.base_correct
    at = flagged_at(evidence_of(products, table)[seen])
    if at is None:
        return np.zeros(len(seen), bool)
    flagged: np.ndarray = np.cumsum(seen) - seen >= at
    return flagged
