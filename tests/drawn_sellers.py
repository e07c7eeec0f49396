"""Drawn sellers with their own habits, and a base classifier that knows only what sellers have in common.

    product of category c at seller s   x = centre(c) + habit(s, c) + noise
    base                                the posterior of c for the variance of habit and noise together

So the base is calibrated over sellers, and wrong in the same way again and again at one of them.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from models.decisions.confidence import EDGE
from models.decisions.seller_rules import SellerProducts


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
