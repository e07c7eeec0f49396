"""Better than the paper: each corrected product speaks for its category in its own neighbourhood.

With q the product's vector and K the seller's corrected vectors, all of length one, t their true categories,
and the logits z of the base classifier:

    w(i)  = exp(−β · (1 − q·K(i)))                        the weight of correction i: 1 where it is the same
    P(c)  ∝ exp(z(c) / T) · (1 + γ · Σ w(i)·[t(i) = c])^α

It is Bayes' rule with the base classifier's probability before, and how densely the seller's own products of
the category lie around q after: 1 stands for the products that are not there yet. So a seller with three
corrections has nearly the base classifier, except close to these three; and where the base classifier is
nearly certain, one wrong correction is not enough. The weights are those of Tip-Adapter (Zhang et al., ECCV
2022, "Tip-Adapter: Training-free Adaption of CLIP"), which adds α · Σ w(i)·[t(i) = c] to the logits; the
logarithm of the sum, in its place, came out better. T, α, β and γ are the most likely ones for sellers that
are kept apart for that (`fit_votes`): empirical Bayes. What else was tried: docs/experiments/sellers.md.
"""

import copy
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from scipy.special import logsumexp

from models.sellers.interface import Choice

MOST = 2_000  # corrections of a seller that are in use, the newest ones: 8 MB of 1,024 numbers
TOGETHER = 64  # vectors that are made ready at once, so that they stay in the cache
EVALUATIONS = 140  # of the likelihood, at most
LIMITS = np.log([(0.1, 10), (0.01, 10), (0.5, 400), (0.01, 1e6)]).T  # of T, α, β, γ
WRONG = 0.1  # share of corrections that the fit takes to be wrong


@dataclass(frozen=True)
class Votes:
    """The four numbers that all sellers share."""

    temperature: float = 1.0  # T
    power: float = 0.8  # α
    sharpness: float = 20.0  # β, of 1 − cosine
    weight: float = 100.0  # γ


@dataclass(frozen=True)
class Stream:
    """Products of one seller in the order in which their categories became known."""

    vectors: np.ndarray  # (n, d) float
    logits: np.ndarray  # (n, C) float
    true: np.ndarray  # (n,) int


class VotesSeller:
    """One seller by the formula above; a SellerModel."""

    def __init__(self, votes: Votes) -> None:
        self.votes = votes
        self._keys = np.empty((0, 0), np.float32)  # rows of length one; room_of says how many
        self._true = np.empty(0, np.int32)
        self._kept = self._count = 0

    def predict(self, vector: np.ndarray, logits: np.ndarray) -> Choice:
        """Returns the choice; of equally probable categories the first. See SellerModel."""
        base = int(np.argmax(logits))
        scores = np.asarray(logits, float) / self.votes.temperature
        if self._kept:
            cosine = self._keys[: self._kept] @ unit(vector)
            weights = np.exp(-self.votes.sharpness * (1 - cosine.astype(float)))
            near = np.bincount(self._true[: self._kept], weights, len(scores))
            scores += self.votes.power * np.log1p(self.votes.weight * near)
        best = int(np.argmax(scores))
        return Choice(best, float(1 / np.exp(scores - scores[best]).sum()), base, self._count)

    def learn_all(self, vectors: np.ndarray, true: np.ndarray) -> None:
        """Takes in the first products of a seller, (n, d) float and (n,) int, the oldest first."""
        self._keys = unit(vectors[-MOST:])
        self._true = np.array(true[-MOST:], np.int32)
        self._kept, self._count = len(self._true), len(true)

    def learn(self, vector: np.ndarray, base: int, true: int) -> None:
        """Takes in a product; see SellerModel. The base classifier's category is not needed."""
        (key,) = unit(vector[None])
        if self._kept == len(self._true):
            self._grow(len(key))
        if self._kept == MOST:
            self._keys[:-1], self._true[:-1] = self._keys[1:].copy(), self._true[1:].copy()
            self._kept -= 1
        self._keys[self._kept], self._true[self._kept] = key, true
        self._kept += 1
        self._count += 1

    def copy(self) -> "VotesSeller":
        """Returns a copy; see SellerModel. It shares the vectors, and takes over the room behind them."""
        made = copy.copy(self)
        self._keys, self._true = self._keys[: self._kept], self._true[: self._kept]
        return made

    def _grow(self, width: int) -> None:
        room = min(room_of(self._kept), MOST)
        keys, true = np.empty((room, width), np.float32), np.empty(room, np.int32)
        if self._kept:
            keys[: self._kept], true[: self._kept] = self._keys[: self._kept], self._true[: self._kept]
        self._keys, self._true = keys, true


def room_of(kept: int) -> int:
    """Returns how many vectors there is room for, when the room for `kept` of them is full."""
    return kept + max(kept // 4, 16)


@dataclass(frozen=True)
class VotesMethod:
    """Makes sellers by these four numbers; a SellerMethod."""

    votes: Votes

    def seller(self, vectors: np.ndarray, base: np.ndarray, true: np.ndarray) -> VotesSeller:
        """Makes the seller who has learnt these products, in this order; see SellerMethod."""
        made = VotesSeller(self.votes)
        made.learn_all(vectors, true)
        return made


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns (…, d) float32: the vectors at length one; zeros stay zeros.

    >>> unit(np.array([3.0, 4.0])).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    rows = np.asarray(vectors)
    if rows.dtype != np.float16 or rows.ndim != 2:
        wide = rows.astype(np.float32)
        _to_length_one(wide)
        return wide
    wide = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), TOGETHER):
        some = wide[start : start + TOGETHER]
        _widen(rows[start : start + TOGETHER], some)
        _to_length_one(some)
    return wide


def _to_length_one(rows: np.ndarray) -> None:
    length = np.sqrt(np.einsum("...d,...d->...", rows, rows))[..., None]
    rows /= np.where(length > 0, length, 1)


def _widen(rows: np.ndarray, wide: np.ndarray) -> None:
    """Puts (n, d) finite float16 into float32, exactly; three times as fast as NumPy's own conversion.

    The 15 bits beside the sign move to where float32 has its exponent and fraction; that is the number times
    2^-112, as the exponents of the two count from 15 and 127.

    >>> wide = np.empty((1, 4), np.float32)
    >>> _widen(np.array([[1.5, -65504, 6e-8, -0.0]], np.float16), wide)
    >>> wide.tolist()
    [[1.5, -65504.0, 5.960464477539063e-08, -0.0]]
    """
    bits = wide.view(np.int32)
    bits[...] = rows.view(np.int16)  # the sign fills what is before it
    bits <<= 13
    bits &= np.int32(-0x70000001)  # all but the three bits after the sign
    wide *= np.float32(2.0**112)


def fit_votes(
    sellers: Sequence[Stream], wrong: float = WRONG, seed: int = 0, start: Votes | None = None
) -> Votes:
    """Returns the most likely T, α, β and γ for these sellers, each predicted before each of its products.

    Every seller counts the same, whatever its number of products. The likelihood of a product's true
    category is P(c) as above, from the seller's products before it, of which a share is learnt with another
    category by chance. Nelder-Mead in the logarithms.

    Args:
        sellers: none that the base network was trained on: it is too good on those; none that is evaluated.
        wrong: share of corrections that are wrong, 0 to 1; with more of them, one correction counts less.
        seed: of which corrections are wrong, and how.
        start: where the search starts; default `Votes()`.

    Raises:
        ValueError: no products.
    """
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    known = [_Prepared.of(seller, wrong, rng) for seller in sellers if len(seller.true)]
    if not known:
        raise ValueError("no products of sellers to fit the votes on; expected at least one")
    centre = np.log(astuple(start or Votes()))

    def loss(logs: np.ndarray) -> float:
        votes = Votes(*np.exp(np.clip(logs, *LIMITS)).tolist())
        return float(np.mean([one.loss(votes) for one in known]))

    result = minimize(
        loss,
        centre,
        method="Nelder-Mead",
        options={
            "initial_simplex": np.vstack([centre, centre + np.diag([-0.5, -0.5, -0.7, 1.0])]),
            "maxfev": EVALUATIONS,
            "xatol": 0.02,
            "fatol": 1e-5,
        },
    )
    return Votes(*np.exp(np.clip(result.x, *LIMITS)).tolist())


@dataclass(frozen=True)
class _Prepared:
    """A stream for the fit; u categories are those that occur in it."""

    distance: np.ndarray  # (n, n) 1 − cosine to the products before, infinite to the others
    said: np.ndarray  # (n, u) float, 1 where a product was learnt with the category
    logits: np.ndarray  # (n, u) of these categories
    rest: np.ndarray  # (n, C - u) of all others
    true: np.ndarray  # (n,) int, among the u

    @classmethod
    def of(cls, seller: Stream, wrong: float, rng: np.random.Generator) -> "_Prepared":
        keys, count, categories = unit(seller.vectors), len(seller.true), seller.logits.shape[1]
        other = (seller.true + rng.integers(1, max(categories, 2), count)) % categories
        learnt = np.where(rng.random(count) < wrong, other, seller.true)
        occur, places = np.unique(np.concatenate([seller.true, learnt]), return_inverse=True)
        earlier = np.tri(count, k=-1, dtype=bool)
        logits = np.asarray(seller.logits, float)
        return cls(
            np.where(earlier, 1 - (keys @ keys.T).astype(float), np.inf),
            np.eye(len(occur))[places[count:]],
            logits[:, occur],
            np.delete(logits, occur, axis=1),
            places[:count],
        )

    def loss(self, votes: Votes) -> float:
        """Mean of −log P(true)."""
        near = np.exp(-votes.sharpness * self.distance) @ self.said
        scores = self.logits / votes.temperature + votes.power * np.log1p(votes.weight * near)
        every = np.hstack([scores, self.rest / votes.temperature])
        return float((logsumexp(every, axis=1) - scores[np.arange(len(scores)), self.true]).mean())
