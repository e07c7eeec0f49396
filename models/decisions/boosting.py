"""Gradient boosting of a correctness: small trees whose log odds are added up, kept as plain numbers.

    terms (n,) each ──► baseline + tree 1 + tree 2 + … + tree 60  ──► log odds of being correct

    a tree   node 0: term 2 <= 0.31 ?        feature    2    0   -1   -1   -1     -1: a leaf
             ├─ yes: node 1: term 0 <= 1.7 ? threshold  0.31 1.7  0    0    0
             │       ├─ yes: leaf, node 2    left       1    2    0    0    0
             │       └─ no:  leaf, node 3    right      4    3    0    0    0
             └─ no:  leaf, node 4            value      0    0   -.2   .1   .4   log odds

scikit-learn fits the trees; NumPy evaluates them, so that a bundle holds JSON and no pickle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from threadpoolctl import threadpool_limits

TREES = 60
ALL = np.uint16(2**16 - 1)  # every leaf
LEAVES = 15  # of a tree, at most: a set of leaves is the bits of a uint16
TOGETHER = 4  # trees that are evaluated together: their sets of leaves fill a uint64
DECIMALS = 6  # of the importances


@dataclass(frozen=True)
class Tree:
    """A regression tree, an element of each tuple for a node; node 0 is the root."""

    feature: tuple[int, ...]  # number of the term that is compared; -1 at a leaf
    threshold: tuple[float, ...]  # a row goes left where its term is <= the threshold
    left: tuple[int, ...]  # node; 0 at a leaf
    right: tuple[int, ...]
    value: tuple[float, ...]  # log odds, at a leaf

    def __post_init__(self) -> None:
        """Raises ValueError for tuples of different lengths, or nodes that are no tree of 1 to 15 leaves."""
        nodes, leaves = len(self.feature), self.feature.count(-1)
        if len({nodes, len(self.threshold), len(self.left), len(self.right), len(self.value)}) > 1:
            raise ValueError("a tree's lists have different lengths; expected one number for each node")
        inner = [node for node, feature in enumerate(self.feature) if feature >= 0]
        children = [child for node in inner for child in (self.left[node], self.right[node])]
        if sorted(children) != list(range(1, nodes)) or not 1 <= leaves <= LEAVES:
            raise ValueError(f"{nodes} nodes, {leaves} leaves; expected a tree of 1 to {LEAVES} leaves")
        if any(min(self.left[node], self.right[node]) <= node for node in inner):
            raise ValueError("a node is before its parent; expected each parent before its two children")


@dataclass(frozen=True)
class Boosting:
    """Trees over named terms."""

    terms: tuple[str, ...]
    baseline: float  # log odds before the first tree
    trees: tuple[Tree, ...]
    # Share of the trees' gain (the fall of their loss) that comes from splits on each term; sums to 1
    importance: Mapping[str, float]

    def __post_init__(self) -> None:
        """Raises ValueError for a tree that compares a term that there is not."""
        last = max((max(tree.feature) for tree in self.trees), default=-1)
        if last >= len(self.terms):
            raise ValueError(f"a tree compares term {last} of {len(self.terms)} terms; expected fewer")

    def log_odds(self, terms: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) float64, from (n,) float64 of each term; a row's value does not depend on the other rows."""
        codes = [
            np.searchsorted(edges, terms[name])
            for name, edges in zip(self.terms, self._lookup.edges, strict=True)
        ]
        log_odds = np.full(len(codes[0]), self.baseline)
        for masks, values in self._lookup.groups:
            left = np.full(len(log_odds), 2**64 - 1, np.uint64)
            for feature, mask in masks:
                left &= mask.take(codes[feature])
            of_trees = left.view(np.uint16).reshape(-1, TOGETHER)
            leaf = np.bitwise_count((of_trees & -of_trees) - np.uint16(1))  # the first leaf left
            for tree, value in enumerate(values):
                log_odds += value.take(leaf[:, tree])
        return log_odds

    @cached_property
    def _lookup(self) -> "_Lookup":
        return _lookup(self.trees, len(self.terms))


@dataclass(frozen=True)
class _Lookup:
    """The trees, ready to be evaluated without walking through them.

    Number a tree's leaves from left to right. A comparison that sends a row to the right rules out the leaves
    to its left; the row's leaf is the first that none of them rules out (QuickScorer, Lucchese et al. 2015).
    Which leaves a term rules out depends only on the interval of thresholds that it lies in.
    """

    edges: list[np.ndarray]  # of each term: (e,) float64 distinct thresholds of all trees, ascending
    # Of each four trees: (term, (e + 1,) uint64, the leaves that the term leaves over, 16 bits a tree);
    # and of each tree (15,) float64, the values of its leaves
    groups: list[tuple[list[tuple[int, np.ndarray]], list[np.ndarray]]]


def _lookup(trees: Sequence[Tree], terms: int) -> _Lookup:
    compared: list[set[float]] = [set() for _ in range(terms)]
    for tree in trees:
        for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
            if feature >= 0:
                compared[feature].add(threshold)
    edges = [np.array(sorted(values)) for values in compared]
    groups = []
    for start in range(0, len(trees), TOGETHER):
        masks: dict[int, np.ndarray] = {}
        values = []
        for position, tree in enumerate(trees[start : start + TOGETHER]):
            leaves, value = _leaf_ranges(tree), np.zeros(LEAVES)
            for node, feature in enumerate(tree.feature):
                first = leaves[node][0]
                if feature < 0:
                    value[first] = tree.value[node]
                    continue
                mask = masks.setdefault(feature, np.full((len(edges[feature]) + 1, TOGETHER), ALL))
                # a term above the threshold has more edges below it than the threshold itself
                above = np.searchsorted(edges[feature], tree.threshold[node]) + 1
                ruled_out = 2 ** leaves[tree.left[node]][1] - 2**first
                mask[above:, position] &= ALL - np.uint16(ruled_out)
            values.append(value)
        groups.append(([(at, mask.view(np.uint64)[:, 0]) for at, mask in sorted(masks.items())], values))
    return _Lookup(edges, groups)


def _leaf_ranges(tree: Tree) -> list[tuple[int, int]]:
    """First and last + 1 of the leaves below each node, numbered from left to right."""
    below = [1] * len(tree.feature)
    for node in reversed(range(len(tree.feature))):  # children after their parents
        if tree.feature[node] >= 0:
            below[node] = below[tree.left[node]] + below[tree.right[node]]
    first = [0] * len(tree.feature)
    for node, feature in enumerate(tree.feature):
        if feature >= 0:
            first[tree.left[node]] = first[node]
            first[tree.right[node]] = first[node] + below[tree.left[node]]
    return [(start, start + leaves) for start, leaves in zip(first, below, strict=True)]


def fit_boosting(terms: Mapping[str, np.ndarray], correct: np.ndarray) -> Boosting:
    """Fits 60 trees of at most 15 leaves (scikit-learn's HistGradientBoostingClassifier), on one thread.

    Args:
        terms: (n,) float64 each; at least one.
        correct: (n,) bool, of both kinds.

    Returns:
        The same bits for the same order of rows, on any number of cores.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, early_stopping=False, random_state=0
    )
    with threadpool_limits(1):  # sums of gradients depend on the number of threads
        model.fit(np.stack(list(terms.values()), axis=1), correct)
    grown = [predictor.nodes for (predictor,) in model._predictors]
    gain = np.zeros(len(terms))
    for nodes in grown:
        inner = nodes[nodes["is_leaf"] == 0]
        gain += np.bincount(inner["feature_idx"], inner["gain"], minlength=len(terms))
    share = gain / gain.sum() if gain.any() else gain
    return Boosting(
        terms=tuple(terms),
        baseline=float(model._baseline_prediction[0, 0]),
        trees=tuple(_tree(nodes) for nodes in grown),
        importance={name: round(float(one), DECIMALS) for name, one in zip(terms, share, strict=True)},
    )


def _tree(nodes: np.ndarray) -> Tree:
    leaf = nodes["is_leaf"] == 1
    return Tree(
        feature=tuple(np.where(leaf, -1, nodes["feature_idx"]).tolist()),
        threshold=tuple(np.where(leaf, 0.0, nodes["num_threshold"]).tolist()),
        left=tuple(np.where(leaf, 0, nodes["left"]).tolist()),
        right=tuple(np.where(leaf, 0, nodes["right"]).tolist()),
        value=tuple(np.where(leaf, nodes["value"], 0.0).tolist()),
    )
