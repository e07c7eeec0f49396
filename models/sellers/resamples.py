"""How a seller's products are divided to measure what corrections bring: nine tenths correct, a tenth judges.

Čugurović, Nikolić and Novaković divide the characters of a writer 90/10, by character, ten times.
"""

import numpy as np


def stratified_split(category: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions to correct, in the order of the corrections, and positions to judge.

    A tenth of each category judges, rounded up or down by chance, so that it is a tenth on average of few
    products, too.

    Args:
        category: (n,) of any type that can be sorted.
        rng: of the draws.
    """
    judged = [np.empty(0, int)]
    for one in np.unique(category):
        those = rng.permutation(np.flatnonzero(category == one))
        judged.append(those[: int(len(those) / 10 + rng.random())])
    chosen = np.concatenate(judged)
    return rng.permutation(np.setdiff1d(np.arange(len(category)), chosen)), chosen
