"""Losses of a head, made of keras.ops: (outputs, labels, smoothing) → (n,) nats.

    flat     outputs [(n, C) logits]           labels (n,) int
    levels   outputs [(n, nodes) logits, …]    labels (n, N) int, a node of each level, coarse to fine

The outputs are a list, of one for a flat head. Label smoothing (Szegedy et al., CVPR 2016) shares that much
of the target out over all nodes of a level.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from models.heads.training_steps import cross_entropy
from models.taxonomy import Taxonomy

Loss = Callable[[Any, Any, float], Any]


def weighted_levels(weights: Sequence[float]) -> Loss:
    """Cross-entropy of each level times its weight, summed.

    Args:
        weights: (N,), from coarse to fine.
    """

    def loss(outputs: Any, labels: Any, smoothing: float = 0.0) -> Any:
        nodes = labels[:, None] if len(labels.shape) == 1 else labels
        total: Any = 0.0
        for level, (weight, logits) in enumerate(zip(weights, outputs, strict=True)):
            logits = ops.cast(logits, "float32")
            told = _smoothed(cross_entropy(logits, nodes[:, level]), logits, smoothing)
            total = total + weight * told
        return total

    return loss


def summed_levels(taxonomy: Taxonomy) -> Loss:
    """Cross-entropy of a flat head's category, plus the mean of those of its ancestors at the coarser levels.

    The probability of a node is the sum of those of its categories, as hierarchies are answered (models/
    predictions.py): what a head is asked for is what it learns. Smoothing is of the category alone.

    Args:
        taxonomy: of the C categories, of two levels or more.
    """
    ancestors = [np.asarray(level, np.int32) for level in taxonomy.nodes[:-1]]
    plain = weighted_levels([1.0])

    def loss(outputs: Any, labels: Any, smoothing: float = 0.0) -> Any:
        logits = ops.cast(outputs[0], "float32")
        everything, told = ops.logsumexp(logits, axis=-1), plain(outputs, labels, smoothing)
        for ancestor in ancestors:
            own = ops.take(ancestor, labels, axis=0)
            under = ops.equal(ops.expand_dims(ancestor, 0), ops.expand_dims(own, 1))  # (n, C)
            of_node = ops.logsumexp(ops.where(under, logits, -np.inf), axis=-1)
            told = told + (everything - of_node) / len(ancestors)
        return told

    return loss


def soft_tree(taxonomy: Taxonomy, beta: float) -> Loss:
    """Cross-entropy against targets softened along the tree, for a flat head.

        target(c | true category t) ∝ exp(-beta · d(c, t)),   d = height of their lowest common ancestor / N

    Bertinetto et al., "Making Better Mistakes", CVPR 2020 (soft labels): the larger beta, the nearer to one
    category alone. All leaves lie at depth N: a shallow one stands for itself at the deeper levels.

    Targets are made for the batch, from the ancestors of its labels: (n, C), 5 MB at 256 · 5,270. All of them
    would be 111 MB of constants for a gather of the same size.

    Args:
        taxonomy: of the C categories.
        beta: 0 or more.
    """
    levels = taxonomy.levels
    # What a category gains by sharing one level more with the true one; at level 0, the root, all share.
    height = np.exp(-beta * np.arange(levels, -1, -1) / levels)
    gain = np.diff(height, prepend=0.0).tolist()

    def loss(outputs: Any, labels: Any, smoothing: float = 0.0) -> Any:
        logits = ops.cast(outputs[0], "float32")
        log_p = ops.log_softmax(logits, axis=-1)
        target: Any = gain[0]
        for node, more in zip(taxonomy.nodes, gain[1:], strict=True):
            nodes = ops.convert_to_tensor(node)
            own = ops.take(nodes, labels, axis=0)
            same = ops.equal(ops.expand_dims(nodes, 0), ops.expand_dims(own, 1))
            target = target + more * ops.cast(same, "float32")
        losses = -ops.sum(target * log_p, axis=-1) / ops.sum(target, axis=-1)
        return _smoothed(losses, logits, smoothing)

    return loss


def _smoothed(losses: Any, logits: Any, smoothing: float) -> Any:
    """(n,) cross-entropies, mixed with those of these (n, C) logits against the uniform distribution."""
    if not smoothing:
        return losses
    uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform
