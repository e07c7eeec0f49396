"""Whether a seller's corrections look wrong: a sum of evidence that rises where they are, falls where not.

Honest corrections contradict the base mostly where it is unsure, with a category that it ranks high. Wrong
ones contradict it at its usual confidence, with any category. With b the bin of the base confidence and r the
class of the claimed category's rank among the base's probabilities (2, 3, 4, 5, or beyond):

    wrong     Q(b, r) = share of FIT's products in b · share of the ranks 2 … C in r
    honest    H(b, r) = (1 - e) · (count(b, r) + w · prior(b, r)) / (n + w) + e · Q(b, r)
              count     FIT's n wrong products, by the rank of the true category
              prior     the same as the base itself expects it of all products: a sum of (1 - confidence) ·
                        probability of the ranks / that of all ranks from 2 on; divided by its total
    evidence  log(Q / H), of a correction; 0 where it confirms the base, or names a category unknown to it
    sum       s ← max(0, s + evidence)                                             CUSUM, Page 1954
    flagged   from s >= LIMIT on

with w = WEIGHT and e = ERRORS. People err, too: e is the share of an honest person's corrections that may be
as good as drawn, so that one correction counts at most log(1 / e). Where the base is good, or FIT small,
there are few wrong products, and the prior decides.

What holds: for corrections that are independent draws from H, exp(sum of evidence) from any one of them on
has a mean of 1, so that it ever reaches exp(LIMIT) = 100,000 with a probability of 1 in 100,000 at most
(Ville's inequality). The CUSUM starts anew at each correction: n honest ones that contradict the base are
flagged with a probability of n / 100,000 at most, and on average only after 100,000 or more (Lorden 1971). It
does not hold for an honest seller whose products the base gets wrong in another way than FIT's, most of all
with certainty; what was measured on drawn sellers of this kind: docs/experiments/sellers.md.
"""

import math
from dataclasses import dataclass

import numpy as np

LIMIT = math.log(100_000)  # from here on a seller is flagged
EDGES = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)  # between the bins of the base confidence
RANKS = (2, 3, 4, 5, 6)  # first rank of each class
ERRORS = 0.1  # share of an honest seller's corrections that may be wrong
WEIGHT = 10.0  # of the prior: so many wrong products of FIT count as much


def add_evidence(total: float, evidence: float) -> float:
    """Returns the sum s after one more correction; the seller is flagged where it is LIMIT or more.

    >>> add_evidence(0.5, -2.0), add_evidence(0.5, 1.0)
    (0.0, 1.5)
    """
    return max(0.0, total + evidence)


@dataclass(frozen=True)
class Suspicion:
    """The evidence of every kind of correction, fitted on FIT."""

    edges: tuple[float, ...]  # (B - 1,) between the bins of confidence, rising
    table: tuple[tuple[float, ...], ...]  # (B, 5) evidence: bin of confidence × class of rank
    products: int  # of FIT, of known categories
    wrong: int  # of these, that the base got wrong

    def evidence(self, confidence: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Returns (n,) float64, the evidence of n corrections.

        Args:
            confidence: (n,) float, 0 to 1, of the base in its category; that of a withheld category as the
                confidence model gives it.
            rank: (n,) int, of the claimed category among the base's probabilities; 1 is the base's own
                category, 0 stands for one that the head does not know. Both have the evidence 0.
        """
        table = np.array(self.table)
        cells = table[_bins(confidence, self.edges), _classes(rank)]
        return np.where(rank > 1, cells, 0.0)


def fit_suspicion(confidence: np.ndarray, rank: np.ndarray, masses: np.ndarray, categories: int) -> Suspicion:
    """Fits the table on FIT.

    Args:
        confidence: (n,) float, 0 to 1, of the base in its category.
        rank: (n,) int, of the true category; 1 where the base is correct, 0 where the head does not know it:
            these products are left out.
        masses: (n, 5) float, of `rank_masses`.
        categories: C.
    """
    known = rank > 0
    confidence, rank, masses = confidence[known], rank[known], masses[known]
    bins, shape = _bins(confidence, EDGES), (len(EDGES) + 1, len(RANKS))
    usual = (np.bincount(bins, minlength=shape[0]) + 1 / shape[0]) / (len(bins) + 1)  # no bin at 0
    drawn = np.outer(usual, rank_shares(categories))
    wrong, counts, expected = rank > 1, np.zeros(shape), np.zeros(shape)
    np.add.at(counts, (bins[wrong], _classes(rank[wrong])), 1)
    rest = masses.sum(axis=1, keepdims=True)
    np.add.at(expected, bins, (1 - confidence)[:, None] * masses / np.where(rest > 0, rest, 1))
    total = expected.sum()
    prior = expected / total if total > 0 else drawn
    number = int(wrong.sum())
    honest = (1 - ERRORS) * (counts + WEIGHT * prior) / (number + WEIGHT) + ERRORS * drawn
    # classes of ranks that no category has: 0 of both
    table = np.log(np.divide(drawn, honest, out=np.ones(shape), where=drawn > 0))
    return Suspicion(EDGES, tuple(map(tuple, table.round(6).tolist())), len(rank), number)


def rank_masses(log_probability: np.ndarray) -> np.ndarray:
    """Returns (n, 5) float, the probability of the categories of each class of ranks, of n products.

    Args:
        log_probability: (n, C) float.

    >>> rank_masses(np.log([[0.1, 0.6, 0.3]])).round(6).tolist()
    [[0.3, 0.1, 0.0, 0.0, 0.0]]
    """
    falling = np.sort(np.exp(log_probability), axis=1)[:, ::-1]
    masses = np.zeros((len(falling), len(RANKS)))
    last = len(RANKS) - 1
    some = falling[:, 1 : len(RANKS)]
    masses[:, : some.shape[1]] = some
    masses[:, last] = falling[:, len(RANKS) :].sum(axis=1)
    return masses


def rank_shares(categories: int) -> np.ndarray:
    """Returns (5,) float, the share of each class of rank among the ranks 2 … C; zeros where C is 1.

    >>> rank_shares(3).tolist(), rank_shares(11).tolist()
    ([0.5, 0.5, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1, 0.6])
    """
    classes = _classes(np.arange(2, categories + 1))
    return np.bincount(classes, minlength=len(RANKS)) / max(categories - 1, 1)


def ranks(log_probability: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Returns (n,) int, the rank of a category among the probabilities of each product, from 1 on.

    Of equally probable categories the first has the smaller rank, as where the base decides.

    Args:
        log_probability: (n, C) float.
        category: (n,) int; -1 where the head does not know it: rank 0.

    >>> ranks(np.array([[0.2, 0.4, 0.4]] * 3), np.array([1, 2, -1])).tolist()
    [1, 2, 0]
    """
    own = np.take_along_axis(log_probability, np.maximum(category, 0)[:, None], axis=1)
    before = np.arange(log_probability.shape[1]) < category[:, None]
    rank = 1 + ((log_probability > own) | ((log_probability == own) & before)).sum(axis=1)
    return np.where(category >= 0, rank, 0)


def _bins(confidence: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """(n,) int, a bin holds its lower edge."""
    bins: np.ndarray = np.searchsorted(np.array(edges), confidence, side="right")
    return bins


def _classes(rank: np.ndarray) -> np.ndarray:
    """(n,) int, the class of each rank; that of 0 and 1 means nothing."""
    classes: np.ndarray = np.clip(rank, RANKS[0], RANKS[-1]) - RANKS[0]
    return classes
