"""Warm start: this week's head starts from last week's weights; new nodes of the tree start from random ones.

    hidden1      kernel and bias, changed so that its output for a bottleneck stays the same: this week's
                 standardization is undone, last week's is applied
    hidden2, normalization, first selector     unchanged
    logits, scores        a column for each node, that of the node it was; of an added node the random one
    selectors further down     the rows that read the level above likewise; the others unchanged

Which node a node was, TreeChanges say (models/taxonomy_changes.py): a category that was renamed or moved
keeps its column. A merged one begins with the mean of its sources' columns, weighted by their shares p of the
training products, and the entropy of p on its bias: the largest linear function below the logarithm of its
sources' summed exponentials (Jensen), which is what their probabilities together need. In a simulation (two
of 30 categories merged, shares of 50, 75 and 95 %) log loss before any training was 0.342, 0.311 and 0.265;
with the column of the largest source alone 0.489, 0.348 and 0.267; with the mean alone 0.374, 0.324, 0.266.
Each part of a split one begins with the column of the whole, and minus the logarithm of the number of parts
on its bias, so that the parts together are as probable as the whole was. A coarser node is matched by all the
names down to it, or, where no node had these, by the one node from which all of its categories come. The
column of a removed node is dropped. No knowledge of held-out products is carried over: products keep their
part from week to week, so last week's head was not trained on them either.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from features.product import tidy_name
from models.heads.architectures import STANDARD, TAXONNET, Head, HeadShape
from models.taxonomy import Taxonomy
from models.taxonomy_changes import TreeChanges, places_of, tree_changes

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class CarriedOver:
    """How many categories a warm start kept, added and removed."""

    kept: int  # with last week's weights: their own, or those of the ones that they were merged or split from
    added: int  # with random weights
    removed: int  # last week's whose weights none of this week's has


@dataclass(frozen=True)
class Origins:
    """Where this week's nodes of a level come from, of last week's."""

    weights: sparse.csr_array  # (old nodes, nodes) float32; a column sums to 1, or to 0 for a new node
    shift: np.ndarray  # (nodes,) float32, added to biases of merged and split ones

    @property
    def known(self) -> np.ndarray:
        """(nodes,) bool: those that are not new."""
        known: np.ndarray = np.diff(self.weights.tocsc().indptr) > 0
        return known

    def columns(self, fresh: np.ndarray, old: np.ndarray) -> np.ndarray:
        """Last week's values along the last axis, `fresh` ones where there was none."""
        values = (self.weights.T @ old.reshape(-1, old.shape[-1]).T).T.reshape(fresh.shape)
        if fresh.ndim == 1:
            values = values + self.shift
        found: np.ndarray = np.where(self.known, values, fresh).astype(fresh.dtype)
        return found


def misfit(shape: HeadShape, old: HeadShape) -> str | None:
    """Why a head of this shape cannot start from one of the `old` shape; None where it can."""
    pairs: dict[str, tuple[object, object]] = {
        "the backbone's fingerprint": (shape.fingerprint, old.fingerprint),
        "the bottleneck's width": (shape.width, old.width),
        "head.kind": (shape.kind, old.kind),
        "head.hidden": (list(shape.hidden), list(old.hidden)),
        "head.selector": (shape.selector, old.selector),
        "the hierarchical softmax": (shape.hierarchical, old.hierarchical),
    }
    if shape.kind == TAXONNET:  # each level reads the one above
        pairs["the number of levels"] = (len(shape.parents), len(old.parents))
    for what, (now, then) in pairs.items():
        if now != then:
            return f"{what} is {now}, last week's {then}"
    return None


def warm_start(
    model: "keras.Model",
    shape: HeadShape,
    taxonomy: Taxonomy,
    old: Head,
    old_taxonomy: Taxonomy,
    changes: TreeChanges | None = None,
    sizes: np.ndarray | None = None,
) -> CarriedOver:
    """Puts last week's weights into a new model, except for the layer that standardizes.

    Args:
        model: of `build_head`, standardized already.
        shape: of the model.
        taxonomy: this week's.
        old: last week's head.
        old_taxonomy: the tree of that head.
        changes: from that tree to this week's; None: as ids and paths say.
        sizes: (C,) int, training products of last week's categories; None: all alike.

    Raises:
        ValueError: the shapes do not fit, see `misfit`.
    """
    if why := misfit(shape, old.shape):
        raise ValueError(f"{why}; expected a head that fits")
    changes = changes or tree_changes(places_of(old_taxonomy), places_of(taxonomy))
    sizes = np.ones(len(old_taxonomy.categories)) if sizes is None else np.maximum(sizes, 1)

    def origins(level: int) -> Origins:
        return origins_of(taxonomy, old_taxonomy, level, changes, sizes)

    for layer in model.layers:
        base, level = _base_and_level(layer.name)
        before = old_level(level, taxonomy, old_taxonomy) if level else 0
        fresh = layer.get_weights()
        if not fresh or layer.name == STANDARD or before is None:
            continue
        weights = old.model.get_layer(f"{base}_{before}" if level else base).get_weights()
        if base in ("logits", "scores"):
            of_level = origins(level or taxonomy.levels)
            weights = [of_level.columns(new, was) for new, was in zip(fresh, weights, strict=True)]
        elif base == "selector" and level > 1:
            weights = [_selector_kernel(fresh[0], weights[0], origins(level - 1)), weights[1]]
        elif base == "hidden1":
            weights = _restandardized(weights, model, shape, old)
        layer.set_weights(weights)
    finest = origins(taxonomy.levels)
    kept = int(np.count_nonzero(finest.known))
    used = int(np.count_nonzero(np.diff(finest.weights.indptr)))
    return CarriedOver(kept, len(finest.known) - kept, len(old_taxonomy.categories) - used)


def old_level(level: int, taxonomy: Taxonomy, old: Taxonomy) -> int | None:
    """Last week's level of this level, 1 to N: the finest corresponds to the finest; None: there was none."""
    if level == taxonomy.levels:
        return old.levels
    return level if level < old.levels else None


def origins_of(
    taxonomy: Taxonomy, old: Taxonomy, level: int, changes: TreeChanges, sizes: np.ndarray
) -> Origins:
    """Returns where the nodes of a level come from.

    Args:
        taxonomy: this week's.
        old: last week's.
        level: of this week's nodes, 1 to N.
        changes: from last week's tree to this week's.
        sizes: (C,) float, of last week's categories: how much each counts in a mean.
    """
    before = old_level(level, taxonomy, old)
    if before is None:
        return _origins([[]] * (int(taxonomy.nodes[level - 1].max()) + 1), 0, np.zeros(0))
    if level == taxonomy.levels:
        return _category_origins(taxonomy, old, changes, sizes)
    nodes: dict[tuple[object, ...], int] = {}
    for node, key in enumerate(_keys(old, before)):
        nodes.setdefault(key, node)  # the first, of two old names that differ only in blanks
    found = [nodes.get(key, -1) for key in _keys(taxonomy, level)]
    left = np.setdiff1d(np.arange(int(old.nodes[before - 1].max()) + 1), found)
    came = _category_origins(taxonomy, old, changes, sizes).weights
    # (old nodes, nodes): how many categories of each node were below each old node
    went = (old.sums[before - 1].T @ (came > 0) @ taxonomy.sums[level - 1]).tocsc()
    for node in [node for node, was in enumerate(found) if was < 0]:
        olds = went.indices[went.indptr[node] : went.indptr[node + 1]]
        if len(olds) == 1 and np.isin(olds[0], left):
            found[node] = int(olds[0])
    return _origins([[] if was < 0 else [was] for was in found], int(old.nodes[before - 1].max()) + 1)


def _category_origins(taxonomy: Taxonomy, old: Taxonomy, changes: TreeChanges, sizes: np.ndarray) -> Origins:
    """Those of the categories: their sources, or else the ones that were split into them."""
    position = {category: index for index, category in reversed(list(enumerate(old.categories)))}
    learnt = set(taxonomy.categories)
    parts = {
        change.category: sum(new in learnt and new not in changes.sources for new in change.targets)
        for change in changes.changes
    }
    sources, shift = [], np.zeros(len(taxonomy.categories), np.float32)
    for index, category in enumerate(taxonomy.categories):
        whole = changes.split_sources.get(category, ())
        of = changes.sources.get(category, ()) or whole[:1]
        if category not in changes.sources and whole:
            shift[index] = -np.log(parts[whole[0]])
        sources.append([position[one] for one in of if one in position])
    weights = _origins(sources, len(old.categories), sizes).weights
    entropy = weights.copy()
    entropy.data = -entropy.data * np.log(entropy.data)
    return Origins(weights, shift + entropy.sum(axis=0).astype(np.float32))


def _origins(sources: list[list[int]], count: int, sizes: np.ndarray | None = None) -> Origins:
    """Origins of nodes from the old nodes of each, which count as their sizes say."""
    rows = np.array([was for several in sources for was in several], np.int64)
    columns = np.repeat(np.arange(len(sources)), [len(several) for several in sources])
    weight = np.ones(len(rows)) if sizes is None else sizes[rows].astype(np.float64)
    weight /= np.maximum(np.bincount(columns, weights=weight, minlength=len(sources)), 1e-30)[columns]
    shape = (count, len(sources))
    weights = sparse.csr_array((weight.astype(np.float32), (rows, columns)), shape=shape)
    return Origins(weights, np.zeros(len(sources), np.float32))


def _keys(taxonomy: Taxonomy, level: int) -> list[tuple[object, ...]]:
    """What identifies each node of a level above the categories: the names down to it and their number."""
    _, first = np.unique(taxonomy.nodes[level - 1], return_index=True)
    return [(*map(tidy_name, names), real) for *names, real in taxonomy.paths(level)[first]]


def _base_and_level(name: str) -> tuple[str, int]:
    """Splits a layer's name into base and level; level 0 where the name has none.

    >>> _base_and_level("hidden1_3"), _base_and_level("hidden1")
    (('hidden1', 3), ('hidden1', 0))
    """
    base, _, level = name.partition("_")
    return base, int(level or 0)


def _selector_kernel(fresh: np.ndarray, old: np.ndarray, above_now: Origins) -> np.ndarray:
    """The kernel of a selector: a row for each logit of the level above, then one for each hidden feature."""
    nodes = len(above_now.shift)
    features = len(fresh) - nodes
    above = above_now.columns(fresh[:nodes].T, old[:-features].T).T
    return np.concatenate([above, old[-features:]])


def _restandardized(
    weights: list[np.ndarray], model: "keras.Model", shape: HeadShape, old: Head
) -> list[np.ndarray]:
    """Kernel and bias of the first layer for bottlenecks that are standardized differently than last week's.

    Of a bottleneck x it now reads x' = x·a + b; it read x·c + d = (x' - b)·c/a + d.
    """
    (now, shift), (then, offset) = _standardization(model, shape), _standardization(old.model, old.shape)
    kernel, bias = (array.astype(np.float64) for array in weights)
    ratio = then / now
    return [
        (kernel * ratio[:, None]).astype(np.float32),
        (bias + (offset - shift * ratio) @ kernel).astype(np.float32),
    ]


def _standardization(model: "keras.Model", shape: HeadShape) -> tuple[np.ndarray, np.ndarray]:
    """(d,) factor and (d,) offset that are applied to bottlenecks before the first layer."""
    factor, offset = np.full(shape.width, shape.scale, np.float64), np.zeros(shape.width)
    if shape.standardized:
        layer = model.get_layer(STANDARD)
        mean, variance = (weights.astype(np.float64) for weights in layer.get_weights())
        deviation = np.sqrt(variance + layer.epsilon)
        factor, offset = factor / deviation, -mean / deviation
    return factor, offset
