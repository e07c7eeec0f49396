"""Losses of a head, made of keras.ops: (outputs, labels, smoothing) → (n,) nats.

    flat     outputs [(n, C) logits]           labels (n,) int
    levels   outputs [(n, nodes) logits, …]    labels (n, N) int, a node of each level, coarse to fine

The outputs are a list, for a flat head of one. Label smoothing (Szegedy et al., CVPR 2016) spreads that share
of the target over all nodes of a level.
"""

from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from models.heads.tensors import Tensor
from models.heads.training_steps import cross_entropy
from models.taxonomy import Taxonomy

Loss = Callable[[list[Tensor], Tensor, float], Tensor]


def weighted_levels(weights: Sequence[float]) -> Loss:
    """Returns the loss that sums the cross-entropy of each level times its weight.

    Args:
        weights: (N,), from coarse to fine.
    """

    def loss(outputs: list[Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
        nodes = labels[:, None] if len(labels.shape) == 1 else labels
        total: Tensor = 0.0
        for level, (weight, logits) in enumerate(zip(weights, outputs, strict=True)):
            logits = ops.cast(logits, "float32")
            of_level = _smoothed(cross_entropy(logits, nodes[:, level]), logits, smoothing)
            total = total + weight * of_level
        return total

    return loss


def summed_levels(taxonomy: Taxonomy) -> Loss:
    """Returns the cross-entropy of a flat head's category plus the mean of those of its ancestors.

    The probability of a node is the sum of those of its categories, as in models/decisions/predictions.py: a
    head is trained on what it will predict. Only the category is smoothed.

    Args:
        taxonomy: of the C categories, of two levels or more.
    """
    ancestors = [np.asarray(level, np.int32) for level in taxonomy.nodes[:-1]]
    plain = weighted_levels([1.0])

    def loss(outputs: list[Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
        logits = ops.cast(outputs[0], "float32")
        everything, total = ops.logsumexp(logits, axis=-1), plain(outputs, labels, smoothing)
        for ancestor in ancestors:
            own = ops.take(ancestor, labels, axis=0)
            under = ops.equal(ops.expand_dims(ancestor, 0), ops.expand_dims(own, 1))  # (n, C)
            of_node = ops.logsumexp(ops.where(under, logits, -np.inf), axis=-1)
            total = total + (everything - of_node) / len(ancestors)
        return total

    return loss


def soft_tree(taxonomy: Taxonomy, beta: float) -> Loss:
    """Returns the cross-entropy against targets softened along the tree, for a flat head.

        target(c | true category t) ∝ exp(-beta · d(c, t)),   d = height of their lowest common ancestor / N

    Bertinetto et al., "Making Better Mistakes", CVPR 2020 (soft labels): the larger beta, the closer to the
    true category alone. All leaves are at depth N: a shallow one is its own node at the deeper levels.

    Targets are computed for each batch, from the ancestors of its labels: (n, C), 5 MB at 256 · 5,270. Those
    of all categories would be 111 MB of constants for a gather of the same size.

    Args:
        taxonomy: of the C categories.
        beta: 0 or more.
    """
    levels = taxonomy.levels
    # What a category gains by sharing one more level with the true one; at level 0, the root, all share.
    height = np.exp(-beta * np.arange(levels, -1, -1) / levels)
    gain = np.diff(height, prepend=0.0).tolist()

    def loss(outputs: list[Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
        logits = ops.cast(outputs[0], "float32")
        log_p = ops.log_softmax(logits, axis=-1)
        target: Tensor = gain[0]
        for node, more in zip(taxonomy.nodes, gain[1:], strict=True):
            nodes = ops.convert_to_tensor(node)
            own = ops.take(nodes, labels, axis=0)
            same = ops.equal(ops.expand_dims(nodes, 0), ops.expand_dims(own, 1))
            target = target + more * ops.cast(same, "float32")
        losses = -ops.sum(target * log_p, axis=-1) / ops.sum(target, axis=-1)
        return _smoothed(losses, logits, smoothing)

    return loss


def _smoothed(losses: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """(n,) cross-entropies, mixed with those of the (n, C) logits against the uniform distribution."""
    if not smoothing:
        return losses
    uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform
