"""Warm start: last week's head starts this week's; what is new in the tree starts as in a fresh head.

    hidden1      kernel and bias, so that it says of a bottleneck what it said: this week's standardization
                 is undone, last week's done
    hidden2, normalization, first selector     as they were
    logits, scores        a column for each node: by name; of an added node as in a fresh head
    selectors further down     the rows that read the level above likewise; the others as they were

A category is told by its name, wherever it stands in the tree; a coarser node by all the names down to it. A
removed one is dropped with its column. Nothing that a held-out product could have told is carried: products
keep their part from week to week, so last week's head has not learnt from them either.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.product import tidy_name
from models.heads.architectures import STANDARD, TAXONNET, Head, HeadShape
from models.taxonomy import Taxonomy

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class CarriedOver:
    """What became of the categories."""

    kept: int  # with last week's weights
    added: int  # fresh
    removed: int


def misfit(shape: HeadShape, old: HeadShape) -> str | None:
    """Why a head of the `old` shape cannot start one of this shape; None where it can."""
    wanted: dict[str, tuple[Any, Any]] = {
        "the backbone's fingerprint": (shape.fingerprint, old.fingerprint),
        "the bottleneck's width": (shape.width, old.width),
        "head.kind": (shape.kind, old.kind),
        "head.hidden": (list(shape.hidden), list(old.hidden)),
        "head.selector": (shape.selector, old.selector),
        "the hierarchical softmax": (shape.hierarchical, old.hierarchical),
    }
    if shape.kind == TAXONNET:  # each level reads the one above
        wanted["the number of levels"] = (len(shape.parents), len(old.parents))
    for what, (now, then) in wanted.items():
        if now != then:
            return f"{what} is {now}, last week's {then}"
    return None


def warm_start(
    model: "keras.Model", shape: HeadShape, taxonomy: Taxonomy, old: Head, old_taxonomy: Taxonomy
) -> CarriedOver:
    """Puts last week's weights into a fresh model; the bottlenecks' statistics are in it already.

    Args:
        model: of `build_head`.
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
        was = old.model.get_layer(f"{base}_{before}" if level else base).get_weights()
        if base in ("logits", "scores"):
            same = same_nodes(taxonomy, old_taxonomy, level or taxonomy.levels)
            told = [_columns(new, weights, same) for new, weights in zip(fresh, was, strict=True)]
        elif base == "selector" and level > 1:
            same = same_nodes(taxonomy, old_taxonomy, level - 1)
            told = [_selecting(fresh[0], was[0], same), was[1]]
        else:
            told = _reread(was, model, shape, old) if base == "hidden1" else was
        layer.set_weights(told)
    same = same_nodes(taxonomy, old_taxonomy, taxonomy.levels)
    kept = int(np.count_nonzero(same >= 0))
    return CarriedOver(kept, len(same) - kept, len(old_taxonomy.categories) - kept)


def old_level(level: int, taxonomy: Taxonomy, old: Taxonomy) -> int | None:
    """Last week's level that is this one: the finest is the categories' in any tree; None: there was none."""
    if level == taxonomy.levels:
        return old.levels
    return level if level < old.levels else None


def same_nodes(taxonomy: Taxonomy, old: Taxonomy, level: int) -> np.ndarray:
    """(nodes,) int: last week's node of each node of a level, 1 to N; -1 where it is new."""
    before = old_level(level, taxonomy, old)
    names = _names(taxonomy, level)
    places: dict[tuple[object, ...], int] = {}
    for place, name in enumerate(_names(old, before) if before else ()):
        places.setdefault(name, place)  # of two that were kept apart by blanks alone, the first
    return np.array([places.get(name, -1) for name in names], np.int64)


def _names(taxonomy: Taxonomy, level: int) -> list[tuple[object, ...]]:
    """Of each node of a level, tidied: the category, or all the names down to it and their number."""
    if level == taxonomy.levels:
        return [(tidy_name(category),) for category in taxonomy.categories]
    _, first = np.unique(taxonomy.nodes[level - 1], return_index=True)
    return [(*map(tidy_name, names), real) for *names, real in taxonomy.places(level)[first]]


def _base_and_level(name: str) -> tuple[str, int]:
    """Of a layer; level 0 where the name has none.

    >>> _base_and_level("hidden1_3"), _base_and_level("hidden1")
    (('hidden1', 3), ('hidden1', 0))
    """
    base, _, level = name.partition("_")
    return base, int(level or 0)


def _columns(fresh: np.ndarray, old: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Along the last axis: last week's where there is one, else fresh."""
    return np.where(same >= 0, old[..., np.maximum(same, 0)], fresh)


def _selecting(fresh: np.ndarray, old: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The kernel of a selector: a row for each logit of the level above, then those of the trunk features."""
    features = len(fresh) - len(same)
    above = _columns(fresh[: len(same)].T, old[:-features].T, same).T
    return np.concatenate([above, old[-features:]])


def _reread(source: list[np.ndarray], model: "keras.Model", shape: HeadShape, old: Head) -> list[np.ndarray]:
    """Kernel and bias of a first layer for bottlenecks that are standardized otherwise than last week's.

    Now it is given x' = x·a + b, then x·c + d = (x' - b)·c/a + d of a bottleneck x.
    """
    (now, shift), (then, offset) = _reading(model, shape), _reading(old.model, old.shape)
    kernel, bias = (weights.astype(np.float64) for weights in source)
    ratio = then / now
    return [
        (kernel * ratio[:, None]).astype(np.float32),
        (bias + (offset - shift * ratio) @ kernel).astype(np.float32),
    ]


def _reading(model: "keras.Model", shape: HeadShape) -> tuple[np.ndarray, np.ndarray]:
    """(d,) factor and (d,) offset of what stands before the first layer."""
    factor, offset = np.full(shape.width, shape.scale, np.float64), np.zeros(shape.width)
    if shape.standardized:
        layer = model.get_layer(STANDARD)
        mean, variance = (weights.astype(np.float64) for weights in layer.get_weights())
        deviation = np.sqrt(variance + layer.epsilon)
        factor, offset = factor / deviation, -mean / deviation
    return factor, offset
