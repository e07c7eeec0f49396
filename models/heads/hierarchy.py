"""What uses the tree: hierarchical softmax, hierarchical measures, ancestors of unknown categories.

       root                  nodes are numbered within each level, see models/taxonomy.py;
     ┌───┴────┐              a shallow leaf is its own node at the deeper levels, where it is
   food      home    1       an only child: its softmax over siblings is 1, and as an ancestor of
  ┌──┴──┐     │              itself it counts once
leek   pear  soap    2
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.heads.tensors import Tensor
from models.taxonomy import Taxonomy


def leaf_log_probabilities(scores: Sequence[Tensor], parents: tuple[tuple[int, ...], ...]) -> Tensor:
    """Hierarchical softmax: log p(leaf) = sum over its path of score - log sum exp over the siblings' scores.

    Morin and Bengio, AISTATS 2005, on a given tree. They serve as logits: their softmax is p(leaf) again.

    Args:
        scores: (n, nodes) or (n, h, w, nodes) tensor of each level, from coarse to fine.
        parents: Taxonomy.parents.

    Returns:
        (n, C) or (n, h, w, C) float32 tensor.
    """
    from keras import ops

    total: Tensor = None
    families = 1
    for nodes, parents_of_nodes in zip(scores, parents, strict=True):
        level = ops.moveaxis(ops.cast(nodes, "float32"), -1, 0)  # segments are rows
        parent = ops.convert_to_tensor(np.array(parents_of_nodes, np.int32))
        # Against underflow in families whose scores are all low. It changes no value: no gradient is needed.
        top = ops.stop_gradient(ops.segment_max(level, parent, num_segments=families))
        shifted = level - ops.take(top, parent, axis=0)
        family = ops.segment_sum(ops.exp(shifted), parent, num_segments=families)
        given = shifted - ops.take(ops.log(family), parent, axis=0)  # log p(node | its parent)
        total = given if total is None else given + ops.take(total, parent, axis=0)
        families = len(parents_of_nodes)
    return ops.moveaxis(total, 0, -1)


@dataclass(frozen=True)
class HierarchicalScores:
    """How much the true and the predicted paths have in common, over all products."""

    precision: float
    recall: float
    f1: float


def hierarchical_scores(truth: np.ndarray, predicted: np.ndarray, taxonomy: Taxonomy) -> HierarchicalScores:
    """Set-based precision, recall and F1: a category counts as the set of itself and its ancestors.

    precision = sum |P ∩ T| / sum |P|, recall = sum |P ∩ T| / sum |T| over the products, P the predicted path
    without the root, T the true one (Kiritchenko, Matwin, Nock and Famili 2006; hP and hR in Kosmopoulos et
    al., DMKD 2015).

    Args:
        truth: (n,) int categories; -1 for one that is not in the tree: nothing of its path is found, and its
            depth counts as that of the tree.
        predicted: (n,) int categories.
        taxonomy: their tree.

    Raises:
        ValueError: no product, or different lengths.
    """
    if len(truth) != len(predicted) or len(truth) == 0:
        raise ValueError(
            f"{len(truth)} categories for {len(predicted)} predictions; expected one each, and at least one"
        )
    shared = np.zeros(len(truth), np.int64)
    for level in taxonomy.nodes[:-1]:  # two different categories share coarse nodes only
        shared += level[truth] == level[predicted]
    shared = np.where(truth == predicted, taxonomy.depth[truth], shared)
    true_depth = np.where(truth >= 0, taxonomy.depth[truth], taxonomy.levels)
    common = int(shared[truth >= 0].sum())
    precision = common / int(taxonomy.depth[predicted].sum())
    recall = common / int(true_depth.sum())
    return HierarchicalScores(precision, recall, 2 * precision * recall / ((precision + recall) or 1))


def consistency(level_first: np.ndarray, predicted: np.ndarray, taxonomy: Taxonomy) -> list[float]:
    """For each level the share of products whose predicted category is below the level's predicted node.

    Args:
        level_first: (n, N) int, most likely node of each level, n at least 1.
        predicted: (n,) int categories.
        taxonomy: their tree.
    """
    under = taxonomy.nodes.T[predicted] == level_first
    return [float(share) for share in under.mean(axis=0)]
