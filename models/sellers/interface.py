"""What every method of learning from a seller's corrections does: predict, learn, give its state as arrays.

    vector (d,), logits (C,) ──► predict ──► Choice: category, share, base category
                                 learn (with the true category) ──► the next prediction differs

One object is one seller: nothing that it learns reaches another seller. The vector is the output of the last
hidden layer; logits are the base classifier's, before or after softmax as the method says.
"""

from collections.abc import Mapping
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

    def learn(self, vector: np.ndarray, logits: np.ndarray, true: int) -> None:
        """Takes in a product whose category is known now. Arguments as in `predict`."""
        ...

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Returns the state, from which the class's `from_arrays` makes an equal seller."""
        ...
