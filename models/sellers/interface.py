"""What every method of learning from a seller's corrections does: predict and learn.

    vector (d,), logits (C,) ──► predict ──► Choice: category, share, base category
                                 learn (with the true category) ──► the next prediction differs

One object is one seller: nothing that it learns reaches another seller. The vector is the output of the last
hidden layer; logits are the base classifier's, before or after softmax as the method says.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One prediction for one product of a seller."""

    category: int
    share: float  # estimated probability that it is correct, 0 to 1
    base: int  # the category of the base classifier
    corrections: int  # of this seller, behind the prediction

    @property
    def adapted(self) -> bool:
        """True where the seller's corrections changed the category."""
        return self.category != self.base


class SellerModel(Protocol):
    """The state of one seller."""

    def predict(self, vector: np.ndarray, logits: np.ndarray) -> Choice:
        """Returns the choice for a product; changes nothing.

        Args:
            vector: (d,) float.
            logits: (C,) float, of the base classifier; log probabilities are logits, too.
        """
        ...

    def learn(self, vector: np.ndarray, base: int, true: int) -> None:
        """Takes in a product whose category is known now.

        Args:
            vector: (d,) float.
            base: the category of the base classifier.
            true: the known one.
        """
        ...

    def copy(self) -> "SellerModel":
        """Returns one that has learnt the same; what it learns from now on does not change this one."""
        ...


class SellerMethod(Protocol):
    """A way to learn from corrections, with all that sellers share."""

    def seller(self, vectors: np.ndarray, base: np.ndarray, true: np.ndarray) -> SellerModel:
        """Makes the seller who has learnt n products, in this order.

        Args:
            vectors: (n, d) float.
            base: (n,) int, categories of the base classifier.
            true: (n,) int, the known ones.
        """
        ...
