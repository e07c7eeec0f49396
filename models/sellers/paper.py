"""Čugurović, Nikolić, Novaković, "Learn the way we write": a classifier follows one seller's corrections.

With x a product's vector, l the base classifier's category for it, t the true one:

    style       s(x, t) = the style of t nearest to x                                      styles.py
    history     h(l, t) = mean of s(x, t) over the seller's products that were predicted l and are t
    candidates  base: l;   k in 2, 4, 6, 8, 10: the kNN vote for x among the products predicted l,
                each of them at h(l, t) and labelled t
    share       of candidate a and the category c that it says, mean of a Beta distribution:
                m(a, c) = (correct + PRIOR[0]) / (all + PRIOR[0] + PRIOR[1])
                over the seller's products for which a said c
    prediction  the category of the candidate with the highest m(a, own category)
    learning    all candidates of the product are counted first, then its style enters the history

What the paper leaves open, as decided here:

- *Votes.* The history has one vector for each pair (l, t), so that among vectors each label would have one
  vote at most, and all five kNN would say the same. As the history is made of every product, each product
  votes, from the mean of its pair: the k nearest of them, or all of them where they are fewer.
- *Ties* of votes go to the nearer pair, ties of distances to the smaller category. Where the k-th place falls
  within one pair, that pair gives as many votes as are left.
- *An empty history* for l: there are no alternatives, so the base classifier's category it is.
- *Ties of shares* go to the base classifier, then to the smaller k.
- *The prior* is Beta(1, 1), the uniform one.
- *A category without styles*: the product's own vector is its style.
- The base classifier's category is the first of those with the largest logit.

The history is kept as counts of styles, which are integers: it does not depend on the order of the
corrections. The Beta distributions do: whether a candidate was correct depends on what it had learnt before
(online).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.sellers.interface import Choice
from models.sellers.styles import Styles

NEIGHBOURS = (2, 4, 6, 8, 10)
PRIOR = (1.0, 1.0)  # correct, wrong


class PaperSeller:
    """One seller by the paper's method; a SellerModel."""

    def __init__(self, styles: Styles, prior: tuple[float, float] = PRIOR) -> None:
        self.styles, self.prior = styles, prior
        self._history: dict[int, dict[int, dict[int, int]]] = {}  # predicted → true → style → count
        self._own: list[np.ndarray] = []
        self._trials: dict[tuple[int, int], tuple[int, int]] = {}  # candidate, category → correct, all
        self._corrections = 0

    def predict(self, vector: np.ndarray, logits: np.ndarray) -> Choice:
        """Returns the choice; see SellerModel."""
        said = self.candidates(vector, int(np.argmax(logits)))
        shares = [self.share(candidate, category) for candidate, category in enumerate(said)]
        best = int(np.argmax(shares))
        return Choice(said[best], shares[best], said[0], self._corrections)

    def learn(self, vector: np.ndarray, base: int, true: int) -> None:
        """Takes in a product; see SellerModel."""
        said = self.candidates(vector, base)
        for candidate, category in enumerate(said):
            correct, count = self._trials.get((candidate, category), (0, 0))
            self._trials[candidate, category] = correct + (category == true), count + 1
        style = self.styles.nearest(true, vector)
        if style is None:
            self._own.append(np.array(vector, np.float32))
            style = -len(self._own)
        counts = self._history.setdefault(base, {}).setdefault(true, {})
        counts[style] = counts.get(style, 0) + 1
        self._corrections += 1

    def copy(self) -> "PaperSeller":
        """Returns a copy; see SellerModel."""
        made = PaperSeller(self.styles, self.prior)
        made._history = {
            base: {true: dict(counts) for true, counts in pairs.items()}
            for base, pairs in self._history.items()
        }
        made._own, made._trials, made._corrections = self._own[:], dict(self._trials), self._corrections
        return made

    def candidates(self, vector: np.ndarray, base: int) -> list[int]:
        """Returns the categories of base, 2NN, 4NN, …, 10NN; the base's alone without a history for it."""
        pairs = self._history.get(base)
        if not pairs:
            return [base]
        labels = sorted(pairs)
        means = np.stack([self._mean(pairs[label]) for label in labels])
        differences = means - np.asarray(vector, float)
        order = np.argsort(np.einsum("pd,pd->p", differences, differences), kind="stable")
        near = [labels[index] for index in order]
        counts = np.array([sum(pairs[label].values()) for label in near])
        before = np.cumsum(counts) - counts
        votes = np.clip(np.array(NEIGHBOURS)[:, None] - before, 0, counts)  # (5, pairs)
        return [base, *(near[index] for index in votes.argmax(1))]

    def share(self, candidate: int, category: int) -> float:
        """Returns m(a, c), the mean of the Beta distribution of a candidate, 0 to 5, and a category."""
        correct, count = self._trials.get((candidate, category), (0, 0))
        return (correct + self.prior[0]) / (count + sum(self.prior))

    def _mean(self, counts: Mapping[int, int]) -> np.ndarray:
        """(d,) float64, of styles with their counts, in the order of the styles."""
        styles = sorted(counts)
        vectors = [self.styles.centroids[style] if style >= 0 else self._own[-1 - style] for style in styles]
        weights = np.array([counts[style] for style in styles], float)
        mean: np.ndarray = weights @ np.stack(vectors).astype(float) / weights.sum()
        return mean


@dataclass(frozen=True)
class PaperMethod:
    """Makes sellers by the paper's method; a SellerMethod."""

    styles: Styles
    prior: tuple[float, float] = PRIOR

    def seller(self, vectors: np.ndarray, base: np.ndarray, true: np.ndarray) -> PaperSeller:
        """Makes the seller who has learnt these products, in this order; see SellerMethod."""
        made = PaperSeller(self.styles, self.prior)
        for vector, said, category in zip(vectors, base.tolist(), true.tolist(), strict=True):
            made.learn(vector, said, category)
        return made
