"""Warm start: this week's head starts from last week's weights; new nodes of the tree start from random ones.

    hidden1      kernel and bias, changed so that its output for a bottleneck stays the same: this week's
                 standardization is undone, last week's is applied
    hidden2, normalization, first selector     unchanged
    logits, scores        a column for each node, matched by name; of an added node the random one
    selectors further down     the rows that read the level above likewise; the others unchanged

A category is matched by its name, wherever it is in the tree; a coarser node by all the names down to it. The
column of a removed node is dropped. No knowledge of held-out products is carried over: products keep their
part from week to week, so last week's head was not trained on them either.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from features.product import tidy_name
from models.heads.architectures import STANDARD, TAXONNET, Head, HeadShape
from models.taxonomy import Taxonomy

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class CarriedOver:
    """How many categories a warm start kept, added and removed."""

    kept: int  # with last week's weights
    added: int  # with random weights
    removed: int


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
    model: "keras.Model", shape: HeadShape, taxonomy: Taxonomy, old: Head, old_taxonomy: Taxonomy
) -> CarriedOver:
    """Puts last week's weights into a new model, except for the layer that standardizes.

    Args:
        model: of `build_head`, standardized already.
        shape: of the model.
        taxonomy: this week's.
        old: last week's head.
        old_taxonomy: the tree of that head.

    Raises:
        ValueError: the shapes do not fit, see `misfit`.
    """
    if why := misfit(shape, old.shape):
        raise ValueError(f"{why}; expected a head that fits")
    for layer in model.layers:
        base, level = _base_and_level(layer.name)
        before = old_level(level, taxonomy, old_taxonomy) if level else 0
        fresh = layer.get_weights()
        if not fresh or layer.name == STANDARD or before is None:
            continue
        weights = old.model.get_layer(f"{base}_{before}" if level else base).get_weights()
        if base in ("logits", "scores"):
            same = same_nodes(taxonomy, old_taxonomy, level or taxonomy.levels)
            weights = [_columns(new, was, same) for new, was in zip(fresh, weights, strict=True)]
        elif base == "selector" and level > 1:
            same = same_nodes(taxonomy, old_taxonomy, level - 1)
            weights = [_selector_kernel(fresh[0], weights[0], same), weights[1]]
        elif base == "hidden1":
            weights = _restandardized(weights, model, shape, old)
        layer.set_weights(weights)
    same = same_nodes(taxonomy, old_taxonomy, taxonomy.levels)
    kept = int(np.count_nonzero(same >= 0))
    return CarriedOver(kept, len(same) - kept, len(old_taxonomy.categories) - kept)


def old_level(level: int, taxonomy: Taxonomy, old: Taxonomy) -> int | None:
    """Last week's level of this level, 1 to N: the finest corresponds to the finest; None: there was none."""
    if level == taxonomy.levels:
        return old.levels
    return level if level < old.levels else None


def same_nodes(taxonomy: Taxonomy, old: Taxonomy, level: int) -> np.ndarray:
    """(nodes,) int64: last week's node of each node of a level, 1 to N; -1 where it is new."""
    before = old_level(level, taxonomy, old)
    nodes: dict[tuple[object, ...], int] = {}
    for node, key in enumerate(_keys(old, before) if before else ()):
        nodes.setdefault(key, node)  # the first, of two old names that differ only in blanks
    return np.array([nodes.get(key, -1) for key in _keys(taxonomy, level)], np.int64)


def _keys(taxonomy: Taxonomy, level: int) -> list[tuple[object, ...]]:
    """What identifies each node of a level: the category, or the names down to the node and their number."""
    if level == taxonomy.levels:
        return [(tidy_name(category),) for category in taxonomy.categories]
    _, first = np.unique(taxonomy.nodes[level - 1], return_index=True)
    return [(*map(tidy_name, names), real) for *names, real in taxonomy.paths(level)[first]]


def _base_and_level(name: str) -> tuple[str, int]:
    """Splits a layer's name into base and level; level 0 where the name has none.

    >>> _base_and_level("hidden1_3"), _base_and_level("hidden1")
    (('hidden1', 3), ('hidden1', 0))
    """
    base, _, level = name.partition("_")
    return base, int(level or 0)


def _columns(fresh: np.ndarray, old: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Last week's values along the last axis, new ones where there was none."""
    return np.where(same >= 0, old[..., np.maximum(same, 0)], fresh)


def _selector_kernel(fresh: np.ndarray, old: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The kernel of a selector: a row for each logit of the level above, then one for each hidden feature."""
    features = len(fresh) - len(same)
    above = _columns(fresh[: len(same)].T, old[:-features].T, same).T
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
