"""The decision as a graph of TensorFlow: what `Categorizer` computes, for programs without our code.

    bottlenecks (rows, d) float32, images (p,) int32: how many each product has, in the order of the rows
      ──► the rows that decide, with a cascade            as in cascade.py
      ──► float16 and back, as they are stored ──► head ──► logits (rows, C)
      ──► product_probabilities   (p, C)                as in confidence.py
      ──► summarize               top five, entropy, …  as in predictions.py
      ──► confidence of each level, in whole millionths as in confidence.py; trees as matrices
      ──► stop level              (p,)                  as in levels.py
      ──► decision (p,) int32, a row of `DecisionNames`

Head, temperature, thresholds and tree are constants of the graph. It computes in float64, as the categorizer
does; what the categorizer rounds to float32 is rounded here, too. Every operation is one that ONNX has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from models.decisions.boosting import Boosting, Tree
from models.decisions.categorizer import ACCEPTED, PARENT, REVIEW, Categorizer
from models.decisions.confidence import CATEGORY_EFFECT, DECIMALS, EDGE, LOGISTIC, ConfidenceModel
from models.decisions.predictions import TOP
from models.heads.architectures import SET, Head
from models.taxonomy import Taxonomy

UNITS = 10**DECIMALS  # of a confidence: whole ones are compared, which are exact in float32, too
LEAST_SCORE = -1e30  # its exponential is 0; not infinite, so that differences are numbers
STATUSES = (REVIEW, PARENT, ACCEPTED)  # by number


@dataclass(frozen=True)
class DecisionNames:
    """All decisions that there can be: row 0 is for a person, then each node from coarse to fine."""

    status: np.ndarray  # (m,) int32 of STATUSES
    node: np.ndarray  # (m,) str; "" of row 0
    node_path: np.ndarray  # (m,) str, for people; "" of row 0
    node_level: np.ndarray  # (m,) int32, 1 (coarsest) to N; 0 of row 0
    row: np.ndarray  # (N + 1, C) int32: of a stop level (0: a person) and the most likely category

    @classmethod
    def of(cls, tree: Taxonomy) -> "DecisionNames":
        """The decisions in a tree."""
        rows: list[tuple[int, str, str, int]] = [(STATUSES.index(REVIEW), "", "", 0)]
        table = [np.zeros(len(tree.categories), np.int32)]
        for level, nodes in enumerate(tree.nodes, start=1):
            table.append(nodes + len(rows))
            for category in np.unique(nodes, return_index=True)[1].tolist():
                name = str(tree.names[category, level - 1])
                rows.append((STATUSES.index(PARENT), name, tree.label(category, level), level))
        for category, first in enumerate(table[-1].tolist()):  # the finest level: the categories themselves
            name, depth = str(tree.categories[category]), int(tree.depth[category])
            rows[first] = (STATUSES.index(ACCEPTED), name, tree.label(category), depth)
        status, node, path, level_of = zip(*rows, strict=True)
        return cls(
            status=np.array(status, np.int32),
            node=np.array(node, object),
            node_path=np.array(path, object),
            node_level=np.array(level_of, np.int32),
            row=np.stack(table).astype(np.int32),
        )


def decide(
    categorizer: Categorizer, names: DecisionNames, bottlenecks: tf.Tensor, images: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Adds the decisions about p products to the graph.

    Args:
        categorizer: whose head and rules become constants.
        names: of its tree.
        bottlenecks: (rows, d) float32, products together; of each image its views, one after the other.
        images: (p,) int32, images of each product, at least 1.

    Returns:
        top_categories (p, k) int32 and top_probabilities (p, k) float32, most likely first, k is five or the
        number of categories; confidence (p,) float32; decision (p,) int32, a row of `names`.
    """
    tree = categorizer.predictor.taxonomy
    bottlenecks, rows = _deciding(categorizer, _rows(categorizer, bottlenecks), images)
    probability = _probabilities(categorizer, bottlenecks, rows)
    values, top = tf.math.top_k(probability, min(TOP, len(tree.categories)))  # ties: the lower one first
    seen = _summarize(probability, values, top[:, 0], rows, tree)
    confidences = _confidences(categorizer, seen)
    stop = _stop_level(categorizer, seen.category, confidences)
    row = tf.gather(tf.constant(names.row.ravel()), stop * len(tree.categories) + seen.category)
    return {
        "top_categories": top,
        "top_probabilities": tf.cast(values, tf.float32),
        "confidence": tf.cast(confidences[-1] / UNITS, tf.float32),
        "decision": row,
    }


def _rows(categorizer: Categorizer, bottlenecks: tf.Tensor) -> tf.Tensor:
    """(rows, d): the bottlenecks, or of each image the mean of its views; see `views.combined`."""
    shape = categorizer.predictor.head.shape
    if not shape.averaged:
        return bottlenecks
    views = tf.reshape(as_float16(bottlenecks), (-1, len(shape.views), shape.width))
    return tf.reduce_mean(views, axis=1)


def _deciding(
    categorizer: Categorizer, bottlenecks: tf.Tensor, images: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The rows that decide, and (p,) int32, how many each product has; see `Categorizer.deciding`."""
    cascade, views = categorizer.rules.cascade, categorizer.rows_of_image
    if cascade is None:
        return bottlenecks, images * views
    head, first = categorizer.predictor.head, bottlenecks[::views]
    start = tf.cumsum(images, exclusive=True)
    probability = _means(tf.nn.softmax(_logits(head, as_float16(first))), start, images)
    # tf2onnx makes a pooling of a maximum over the last axis, which has no float64
    certain = tf.round(tf.math.top_k(probability, 1)[0][:, 0] * UNITS)
    again = certain < units_of(np.array([cascade.limit]))[0]
    photo = tf.range(tf.shape(first)[0])[None, :]
    own = tf.logical_and(photo >= start[:, None], photo < (start + images)[:, None])
    of_photo = tf.reduce_any(tf.logical_and(own, again[:, None]), axis=0)
    of_first = tf.constant(np.arange(views) == 0)[None, :]
    kept = tf.reshape(tf.logical_or(of_photo[:, None], of_first), (-1,))
    chosen = tf.cast(tf.where(kept)[:, 0], tf.int32)
    return tf.gather(bottlenecks, chosen), images * tf.where(again, views, 1)


# Probabilities


def _probabilities(categorizer: Categorizer, bottlenecks: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """(p, C) float64 from (n, d) bottlenecks and the (p,) int32 rows of each product."""
    rules = categorizer.rules
    bottlenecks = as_float16(bottlenecks)
    first = tf.cumsum(rows, exclusive=True)
    if rules.aggregation == SET:
        head = categorizer.head
        side_by_side = tf.gather(bottlenecks, _rows_of_products(first, rows, head.shape.images))
        logits = _logits(head, tf.reshape(side_by_side, (-1, head.shape.images * head.shape.width)))
        return tf.nn.softmax(logits / rules.temperature)
    scaled = _logits(categorizer.head, bottlenecks) / rules.temperature
    if rules.aggregation == "geometric":
        return tf.nn.softmax(_means(scaled, first, rows))
    probability = tf.nn.softmax(scaled)
    if rules.aggregation == "max":
        most = tf.reduce_max(rows)
        largest = tf.reduce_max(tf.gather(probability, _rows_of_products(first, rows, most)), axis=1)
        return largest / tf.reduce_sum(largest, axis=1, keepdims=True)
    return _means(probability, first, rows)


def as_float16(values: tf.Tensor) -> tf.Tensor:
    """Float32 rounded to the 11 bits of float16: Veltkamp's splitting (Dekker, Numerische Mathematik 1971).

    Converters drop a cast to float16 and back. The same numbers as that cast gives from 6.1e-5 to 65504;
    smaller ones keep more bits.
    """
    shifted = values * (2**13 + 1)
    return shifted - (shifted - values)


def _logits(head: Head, bottlenecks: tf.Tensor) -> tf.Tensor:
    """(n, C) float64, of the categories."""
    if head.shape.hierarchical:
        import keras

        levels = range(1, len(head.shape.parents) + 1)
        scores = [head.model.get_layer(f"scores_{level}").output for level in levels]
        found = keras.Model(head.model.input, scores)(bottlenecks, training=False)
        return _leaf_log_probabilities(found, head.shape.parents)
    found = head.model(bottlenecks, training=False)
    return tf.cast(found[-1] if isinstance(found, list | tuple) else found, tf.float64)


def _leaf_log_probabilities(scores: Sequence[tf.Tensor], parents: Sequence[Sequence[int]]) -> tf.Tensor:
    """(n, C) float64, as `hierarchy.leaf_log_probabilities`, whose segments not all converters know.

    The scores of each family are a column of a table, which shorter families fill up with LEAST_SCORE.
    """
    total: tf.Tensor = None
    for level, parents_of_nodes in zip(scores, parents, strict=True):
        parent = np.array(parents_of_nodes, np.int32)
        families = [np.flatnonzero(parent == family) for family in range(int(parent.max()) + 1)]
        most = max(map(len, families))
        missing = len(parent)  # the column behind the last one
        table = np.array([np.pad(one, (0, most - len(one)), constant_values=missing) for one in families])
        padded = tf.pad(tf.cast(level, tf.float64), [[0, 0], [0, 1]], constant_values=LEAST_SCORE)
        of_families = tf.gather(padded, tf.constant(table.T.astype(np.int32)), axis=1)
        given = padded[:, :-1] - tf.gather(_log_sum_exp(of_families), tf.constant(parent), axis=1)
        total = given if total is None else given + tf.gather(total, tf.constant(parent), axis=1)
    return total


def _log_sum_exp(values: tf.Tensor) -> tf.Tensor:
    """Over axis 1; of a maximum over the last axis tf2onnx makes a pooling, which has no float64."""
    largest = tf.reduce_max(values, axis=1)
    return tf.math.log(tf.reduce_sum(tf.exp(values - largest[:, None]), axis=1)) + largest


def _means(values: tf.Tensor, first: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """(p, C), over the rows of each product: a product of matrices, which needs no segments."""
    row = tf.range(tf.shape(values)[0])[None, :]
    own = tf.logical_and(row >= first[:, None], row < (first + rows)[:, None])
    return tf.matmul(tf.cast(own, values.dtype), values) / tf.cast(rows, values.dtype)[:, None]


def _rows_of_products(first: tf.Tensor, rows: tf.Tensor, most: int | tf.Tensor) -> tf.Tensor:
    """(p, most) int32, as `ProductRows` takes them: the first row is repeated where a product has fewer."""
    position = tf.range(most)[None, :]
    return first[:, None] + tf.where(position < rows[:, None], position, 0)


# Evidence


@dataclass(frozen=True)
class _Seen:
    """What is known of p products."""

    category: tf.Tensor  # (p,) int32, the most likely one
    mass: list[tf.Tensor]  # of each level (p,) float64, probability of its ancestor
    rival: list[tf.Tensor]  # of each level (p,) float64, largest probability of another node
    node: list[tf.Tensor]  # of each level (p,) int32, its ancestor
    entropy: tf.Tensor  # (p,) float64
    pnorm: tf.Tensor  # (p,) float64
    images: tf.Tensor  # (p,) int32, rows of bottlenecks


def _summarize(
    probability: tf.Tensor, values: tf.Tensor, category: tf.Tensor, images: tf.Tensor, tree: Taxonomy
) -> _Seen:
    """See `predictions.summarize`; values: (p, k) of the most likely categories."""
    second = values[:, 1] if len(tree.categories) > 1 else tf.zeros_like(values[:, 0])
    node, mass, rival = [], [], []
    for nodes in tree.nodes[:-1]:
        own = tf.gather(tf.constant(nodes), category)
        below = tf.one_hot(tf.constant(nodes), int(nodes.max()) + 1, dtype=probability.dtype)
        summed = tf.matmul(probability, below)
        is_own = tf.one_hot(own, int(nodes.max()) + 1, dtype=probability.dtype)
        node.append(own)
        mass.append(tf.reduce_sum(summed * is_own, axis=1))
        rival.append(tf.maximum(tf.reduce_max(summed - 2 * is_own, axis=1), 0))  # 0 with one node
    log_probability = tf.math.log(tf.maximum(probability, tf.constant(1e-30, probability.dtype)))
    entropy = -tf.reduce_sum(probability * log_probability, axis=1)
    return _Seen(
        category=category,
        mass=[_as_float32(one) for one in [*mass, values[:, 0]]],
        rival=[_as_float32(one) for one in [*rival, second]],
        node=[*node, category],
        entropy=_as_float32(entropy),
        pnorm=_as_float32(_max_logit_pnorm(log_probability)),
        images=images,
    )


def _as_float32(values: tf.Tensor) -> tf.Tensor:
    """Rounded as `Predictions` keeps them, in float64 again."""
    return tf.cast(tf.cast(values, tf.float32), tf.float64)


def _max_logit_pnorm(log_probability: tf.Tensor) -> tf.Tensor:
    """(p,) float64, see `predictions.max_logit_pnorm`."""
    centred = log_probability - tf.reduce_mean(log_probability, axis=1, keepdims=True)
    largest, sizes = tf.reduce_max(centred, axis=1), tf.abs(centred)
    cubes = tf.reduce_sum(sizes * sizes * sizes, axis=1)
    norm = tf.pow(tf.maximum(cubes, 1e-300), 1 / 3)
    equal = tf.cast(log_probability.shape[1] ** (-1 / 3), log_probability.dtype)
    return tf.where(largest > 1e-9, largest / norm, equal)


# Confidence


def _confidences(categorizer: Categorizer, seen: _Seen) -> list[tf.Tensor]:
    """Of each level (p,) float64, the confidence in whole millionths; see `Categorizer.level_confidences`."""
    tree, rules, found = categorizer.predictor.taxonomy, categorizer.rules, []
    for level in range(1, tree.levels):
        rule = rules.levels.get(f"level{level}")
        found.append(
            _confidence(rule.confidence, categorizer, seen, level - 1)
            if rule
            else tf.zeros_like(seen.entropy)
        )
    finest = _confidence(rules.confidence, categorizer, seen, tree.levels - 1)
    kept = tf.gather(tf.constant((~categorizer.withheld).astype(np.float64)), seen.category)
    return [*found, finest * kept]


def _confidence(model: ConfidenceModel, categorizer: Categorizer, seen: _Seen, at: int) -> tf.Tensor:
    """(p,) float64, whole millionths: the confidence in the nodes of one level; see `ConfidenceModel`."""
    if model.kind == "probability":
        return tf.round(tf.clip_by_value(seen.mass[at], 0, 1) * UNITS)
    predictor = categorizer.predictor
    sizes = np.bincount(predictor.taxonomy.nodes[at], weights=predictor.sizes).astype(np.int64)
    terms = _terms(model, seen, at, np.log1p(sizes))
    linear = tf.fill(tf.shape(seen.entropy), tf.constant(model.intercept, tf.float64))
    for name, coefficient in model.coefficient.items():
        linear += coefficient * ((terms[name] - model.mean[name]) / model.scale[name])
    effects = np.zeros(len(sizes))
    effects[list(model.effect)] = list(model.effect.values())
    effect = tf.gather(tf.constant(effects), seen.node[at])
    log_odds = linear + effect
    if model.boosting is not None:
        log_odds = _boosted(model.boosting, terms | {CATEGORY_EFFECT: effect, LOGISTIC: log_odds})
    return tf.round(tf.sigmoid(log_odds) * UNITS)


def _terms(model: ConfidenceModel, seen: _Seen, at: int, log_sizes: np.ndarray) -> dict[str, tf.Tensor]:
    """The terms of `confidence._terms`, each (p,) float64, for the nodes of one level."""
    images = tf.cast(seen.images, tf.float64)
    if model.most_images is not None and model.least_images is not None:
        images = tf.clip_by_value(images, model.least_images, model.most_images)
    p1, parent = seen.mass[at], seen.mass[at - 1] if at else tf.ones_like(seen.entropy)
    return {
        "logit_p1": _logit(p1),
        "log_p1_over_p2": tf.math.log(_inner(p1) / tf.maximum(seen.rival[at], EDGE)),
        "entropy": seen.entropy,
        "logit_parent_mass": _logit(parent),
        "max_logit_pnorm": seen.pnorm,
        "log_category_size": tf.gather(tf.constant(log_sizes), seen.node[at]),
        "log_images": tf.math.log(images),
    }


def _inner(probability: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(probability, EDGE, 1 - EDGE)


def _logit(probability: tf.Tensor) -> tf.Tensor:
    inner = _inner(probability)
    return tf.math.log(inner / (1 - inner))


def _boosted(boosting: Boosting, terms: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """(p,) float64 log odds: every comparison of every tree at once, then the leaves whose path they fulfil.

    GEMM of Nakandalla et al., OSDI 2020 ("Hummingbird").
    """
    columns = tf.stack([terms[name] for name in boosting.terms], axis=1)
    feature, threshold, path, needed, value = tree_matrices(boosting.trees)
    compared = tf.gather(columns, tf.constant(feature), axis=1) > tf.constant(threshold)
    fulfilled = tf.matmul(tf.cast(compared, tf.float64), tf.constant(path))
    reached = tf.cast(tf.equal(fulfilled, tf.constant(needed)), tf.float64)
    return boosting.baseline + tf.matmul(reached, tf.constant(value[:, None]))[:, 0]


def tree_matrices(
    trees: tuple[Tree, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Trees as matrices, over all comparisons (inner nodes) c and leaves l of all trees.

    Returns:
        feature (c,) int32 and threshold (c,) float64: a row goes right where its term is > threshold; path
        (c, l) float64: 1 where a leaf is right of a comparison, -1 where left; needed (l,) float64: how many
        of its comparisons go right; a leaf is reached where the path's sum over the comparisons that went
        right is as large; value (l,) float64.

    >>> stump = Tree((0, -1, -1), (0.5, 0, 0), (1, 0, 0), (2, 0, 0), (0, -1.5, 2.5))
    >>> [part.tolist() for part in tree_matrices((stump,))]
    [[0], [0.5], [[-1.0, 1.0]], [0.0, 1.0], [-1.5, 2.5]]
    """
    feature: list[int] = []
    threshold: list[float] = []
    leaves: list[tuple[dict[int, float], float]] = []  # comparison → side; value
    for tree in trees:
        sides: list[dict[int, float]] = [{} for _ in tree.feature]
        for node, compared in enumerate(tree.feature):  # parents before their children
            if compared < 0:
                leaves.append((sides[node], tree.value[node]))
                continue
            sides[tree.left[node]] = sides[node] | {len(feature): -1.0}
            sides[tree.right[node]] = sides[node] | {len(feature): 1.0}
            feature.append(compared)
            threshold.append(tree.threshold[node])
    path = np.zeros((len(feature), len(leaves)))
    for number, (sides_of_leaf, _) in enumerate(leaves):
        for comparison, side in sides_of_leaf.items():
            path[comparison, number] = side
    needed = np.array([sum(side > 0 for side in sides.values()) for sides, _ in leaves], np.float64)
    return (
        np.array(feature, np.int32),
        np.array(threshold, np.float64),
        path,
        needed,
        np.array([value for _, value in leaves]),
    )


# Thresholds


def _stop_level(categorizer: Categorizer, category: tf.Tensor, confidences: list[tf.Tensor]) -> tf.Tensor:
    """(p,) int32, see `levels.stop_level`."""
    tree = categorizer.predictor.taxonomy
    depth = tf.gather(tf.constant(tree.depth.astype(np.int32)), category)
    stop = tf.zeros_like(category)
    limits = units_of(categorizer.thresholds)
    for level, (confidence, limit) in enumerate(zip(confidences, limits, strict=True), start=1):
        reached = confidence >= limit
        if level < tree.levels:
            reached = tf.logical_and(reached, depth > level)
        stop = tf.where(reached, level, stop)
    return stop


def units_of(thresholds: np.ndarray) -> np.ndarray:
    """(N,) float64: the fewest millionths that reach each threshold; more than there are where none does.

    >>> units_of(np.array([0.912345, 0.9123451, np.inf])).tolist()
    [912345.0, 912346.0, 2000000.0]
    """
    units: np.ndarray = np.ceil(np.round(np.minimum(thresholds, 2) * UNITS, 3))
    return units
