"""Better than the paper: the base classifier is a prior, each corrected product a vote of its neighbourhood.

With q the product's vector and K the seller's corrected vectors, all of length one, t their true categories,
p the base classifier's probabilities:

    w(i)  = exp(−β · (1 − q·K(i)))                         the weight of correction i: 1 where it is the same
    P(c)  = (n0 · p(c) + Σ w(i)·[t(i) = c]) / (n0 + Σ w(i))
    p     = softmax(logits / T)

This is the posterior mean of a Dirichlet distribution whose prior is worth n0 corrections of equal products:
where nothing near was corrected, it is the base classifier's p, so that a seller with three corrections has
nearly the base classifier. The weights are those of Tip-Adapter (Zhang et al., ECCV 2022, "Tip-Adapter:
Training-free Adaption of CLIP"), which adds α · Σ w(i)·[t(i) = c] to the logits; interpolation of
probabilities is as in kNN-LM (Khandelwal et al., ICLR 2020), there with a fixed share. n0, β and T are those
most likely for sellers that are kept apart for that (`fit_mixture`): empirical Bayes.

What was tried besides, with figures: docs/experiments/sellers.md.

    arrays   keys   (n, d) float16   vectors of length one, the oldest first; at most MOST
             true   (n,) int32       their categories
             count  (1,) int64       corrections taken in, those that were dropped, too
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from models.sellers.interface import Choice

MOST = 4_000  # corrections of a seller that are kept: 8 MB of 1,024 numbers
EVALUATIONS = 80  # of the likelihood, at most


@dataclass(frozen=True)
class Mixture:
    """The three numbers that all sellers share."""

    prior: float = 1.0  # n0, in corrections
    sharpness: float = 20.0  # β, of 1 − cosine
    temperature: float = 1.0  # T


@dataclass(frozen=True)
class Stream:
    """Products of one seller in the order in which their categories became known."""

    vectors: np.ndarray  # (n, d) float
    logits: np.ndarray  # (n, C) float
    true: np.ndarray  # (n,) int


class BetterSeller:
    """One seller by the mixture above; a SellerModel."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self._keys = np.empty((0, 0), np.float32)  # rows of length one, rounded to float16; grows by doubling
        self._true = np.empty(0, np.int32)
        self._kept = self._count = 0

    def predict(self, vector: np.ndarray, logits: np.ndarray) -> Choice:
        """Returns the choice; of equally probable categories the first. See SellerModel."""
        base = int(np.argmax(logits))
        scaled = np.asarray(logits, float) / self.mixture.temperature
        shares = np.exp(scaled - scaled[base])
        shares *= self.mixture.prior / shares.sum()
        total = self.mixture.prior
        if self._kept:
            cosine = self._keys[: self._kept] @ unit(vector)
            weights = np.exp(-self.mixture.sharpness * (1 - cosine.astype(float)))
            np.add.at(shares, self._true[: self._kept], weights)
            total += weights.sum()
        best = int(np.argmax(shares))
        return Choice(best, float(shares[best] / total), base, self._count)

    def learn(self, vector: np.ndarray, logits: np.ndarray, true: int) -> None:
        """Takes in a product; see SellerModel. The logits are not needed."""
        key = unit(vector).astype(np.float16)
        if self._kept == len(self._true):
            self._grow(len(key))
        if self._kept == MOST:
            self._keys[:-1], self._true[:-1] = self._keys[1:].copy(), self._true[1:].copy()
            self._kept -= 1
        self._keys[self._kept], self._true[self._kept] = key, true
        self._kept += 1
        self._count += 1

    def _grow(self, width: int) -> None:
        room = min(max(2 * self._kept, 16), MOST)
        keys, true = np.empty((room, width), np.float32), np.empty(room, np.int32)
        if self._kept:
            keys[: self._kept], true[: self._kept] = self._keys[: self._kept], self._true[: self._kept]
        self._keys, self._true = keys, true

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Returns the state; see the head of this file."""
        return {
            "keys": self._keys[: self._kept].astype(np.float16),
            "true": self._true[: self._kept].copy(),
            "count": np.array([self._count], np.int64),
        }

    @classmethod
    def from_arrays(cls, mixture: Mixture, arrays: Mapping[str, np.ndarray]) -> "BetterSeller":
        """Makes the seller whose `arrays` these are."""
        seller = cls(mixture)
        seller._keys = arrays["keys"].astype(np.float32)
        seller._true = arrays["true"].astype(np.int32)
        seller._kept, seller._count = len(seller._true), int(arrays["count"][0])
        return seller


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns (…, d) float32: the vectors at length one; zeros stay zeros.

    >>> unit(np.array([3.0, 4.0])).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    rows = np.asarray(vectors, np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def fit_mixture(sellers: Sequence[Stream], start: Mixture | None = None) -> Mixture:
    """Returns the most likely n0, β and T for these sellers, each predicted before each of its products.

    Every seller counts the same, whatever its number of products. The likelihood of a product's true
    category is P(c) as above, from the seller's products before it. Nelder-Mead in the logarithms.

    Args:
        sellers: none that the base network was trained on: it is too good on those; none that is evaluated.
        start: where the search starts; default `Mixture()`.

    Raises:
        ValueError: no products.
    """
    known = [_prepared(seller) for seller in sellers if len(seller.true)]
    if not known:
        raise ValueError("no products of sellers to fit the mixture on; expected at least one")
    begin = start or Mixture()
    centre = np.log([begin.prior, begin.sharpness, begin.temperature])

    def loss(logs: np.ndarray) -> float:
        return float(np.mean([_loss(one, *np.exp(np.clip(logs, -7, 7))) for one in known]))

    result = minimize(
        loss,
        centre,
        method="Nelder-Mead",
        options={
            "initial_simplex": np.vstack([centre, centre + np.diag([1.0, 0.7, 0.5])]),
            "maxfev": EVALUATIONS,
            "xatol": 0.02,
            "fatol": 1e-5,
        },
    )
    return Mixture(*np.exp(np.clip(result.x, -7, 7)).tolist())


def _prepared(seller: Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distances (n, n), logits minus their largest, true, whether the same category (n, n)."""
    keys = unit(seller.vectors)
    logits = np.asarray(seller.logits, float)
    same = seller.true[:, None] == seller.true[None, :]
    earlier = np.tri(len(keys), k=-1)
    distance = np.where(earlier > 0, 1 - (keys @ keys.T).astype(float), np.inf)
    return distance, logits - logits.max(1, keepdims=True), seller.true, same


def _loss(
    one: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    prior: float,
    sharpness: float,
    temperature: float,
) -> float:
    """Mean of −log P(true)."""
    distance, logits, true, same = one
    scaled = logits / temperature
    log_p = scaled[np.arange(len(true)), true] - np.log(np.exp(scaled).sum(1))
    weights = np.exp(-sharpness * distance)
    share = (prior * np.exp(log_p) + (weights * same).sum(1)) / (prior + weights.sum(1))
    return float(-np.log(np.maximum(share, 1e-12)).mean())
