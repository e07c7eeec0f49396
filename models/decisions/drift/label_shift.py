"""Label shift: the category mix of a batch without labels, where only the mix has changed.

    confusion (c, t) counts      measured products by cell (what was predicted) and true class
      ──► condition_of           can the true classes be distinguished by their cells at all?
      ──► posterior (c, t)       P(true class | cell) in the reference
      ──► mix_by_em              the batch's own mix, from how often it fell into each cell

The assumption is that products of a true class fall into the cells as they did before. It holds when a shop
lists more shoes and fewer hats; not when the photos of shoes are different.
"""

import numpy as np

STEPS = 1000  # at most
LEAST_STEPS = 10
TOLERANCE = 1e-10  # mean change of a class in one step


def mix_by_em(
    posterior: np.ndarray,
    prior: np.ndarray,
    weight: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """The mix of true classes in a batch, by expectation and maximization.

    q_t ← mean over products of  P(t | x) q_t / p_t  divided by its sum over t  (Saerens, Latinne and
    Decaestecker 2002, equation 2.9), from q = p, until the mean change of q is below the tolerance.

    Args:
        posterior: (n, t) float, P(true class | product) under the prior; rows sum to 1.
        prior: (t,) float, p, the mix that the posteriors belong to; every class above 0.
        weight: (n,) float, products that a row stands for; None: one each.
        tolerance: where to stop; after 1,000 steps in any case.

    Returns:
        (t,) float64, q, summing to 1.

    Raises:
        ValueError: no product, or a class that the prior leaves out.

    >>> even = np.array([0.5, 0.5])
    >>> mix_by_em(np.array([[0.9, 0.1], [0.1, 0.9]]), even, np.array([7.0, 3.0])).round(4).tolist()
    [0.75, 0.25]
    """
    weight = np.ones(len(posterior)) if weight is None else np.asarray(weight, float)
    if not weight.sum() > 0 or not (prior > 0).all():
        raise ValueError("expected at least one product, and a prior above 0 for every class")
    share, mix = weight / weight.sum(), np.array(prior, float)
    for step in range(STEPS):
        ratio = posterior * (mix / prior)
        after = share @ (ratio / np.maximum(ratio.sum(axis=1, keepdims=True), np.finfo(float).tiny))
        moved, mix = np.abs(after - mix).mean(), after
        if step > LEAST_STEPS and moved < tolerance:
            break
    mix /= mix.sum()
    return mix


def posterior_of(confusion: np.ndarray) -> np.ndarray:
    """(c, t) float, P(true class | cell); a cell without products has the mix of all.

    Args:
        confusion: (c, t) int, products by cell and true class.
    """
    confusion = confusion.astype(float)
    mix, total = confusion.sum(axis=0), confusion.sum(axis=1, keepdims=True)
    posterior: np.ndarray = np.where(total > 0, confusion / np.maximum(total, 1), mix / mix.sum())
    return posterior


def condition_of(confusion: np.ndarray) -> float:
    """Condition number of P(cell | true class): how much an error in the cells grows in the mix.

    1: every class has a cell of its own. Infinite where a class has fewer than two products, or where classes
    differ by no more than chance: with few products even equal classes seem to differ, by (1 - |p|^2) / n in
    the square of each column p of n products, and that is subtracted first. Without it, two branches whose
    products were the same had a condition number of only 10.

    Args:
        confusion: (c, t) int, products by cell and true class.

    >>> condition_of(np.array([[8, 0], [0, 5]]))
    1.0
    >>> condition_of(np.array([[3, 6], [4, 5]]))
    inf
    """
    total = confusion.sum(axis=0)
    if not total.size or total.min() < 2:
        return float("inf")
    share = confusion / total
    gram = share.T @ share
    by_chance = (1 - np.diagonal(gram)) / (total - 1)
    values = np.linalg.eigvalsh(gram - np.diag(by_chance))
    return float(np.sqrt(values[-1] / values[0]).round(6)) if values[0] > 1e-9 else float("inf")
