"""What a head computes, in NumPy: the formulas of architectures.py, from the weights of its layers.

    (n, images · d) float16 ─► pieces of 128 rows, several at once ─► float64, layer by layer
                                                                 └─► (n, nodes) float32

Deciding needs no Keras and no TensorFlow, which take five seconds to start. In float32 a matrix product
rounds differently for other numbers of rows, other places of a row among them, and other processors, and a
product that lies at the threshold would be decided by that. In float64 these differences are too small to
survive the rounding at the end, so a product has the same decision alone, in any batch, and over HTTP; it
takes about twice the time.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

Weights = Mapping[str, Sequence[np.ndarray]]  # by the layer's name, in Keras' order
Layers = Callable[[np.ndarray], list[np.ndarray]]  # (n, images · d) float64 → (n, nodes) of each output

PIECE = 128  # rows of bottlenecks: for more, a matrix product takes as long a row
EPSILON = 1e-3  # of Keras' BatchNormalization

_one_at_a_time = threading.Lock()  # the number of threads of a BLAS is one for the whole process


def run(layers: Layers, bottlenecks: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """Computes the outputs of all rows, on all cores.

    Args:
        layers: of one piece.
        bottlenecks: (n, images · d) float16 or float32.
        widths: of the outputs.

    Returns:
        (n, width) float32 of each output.
    """
    outs = [np.empty((len(bottlenecks), nodes), np.float32) for nodes in widths]

    def compute(start: int) -> None:
        piece = bottlenecks[start : start + PIECE].astype(np.float64)
        for out, found in zip(outs, layers(piece), strict=True):
            out[start : start + PIECE] = found

    starts = range(0, len(bottlenecks), PIECE)
    with _one_at_a_time, _blas().limit(limits=1, user_api="blas"):
        if len(starts) <= 1:
            for start in starts:
                compute(start)
        else:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, len(starts))) as pool:
                list(pool.map(compute, starts))
    return outs


@cache
def _blas() -> ThreadpoolController:
    """Finding NumPy's BLAS takes some milliseconds."""
    return ThreadpoolController()


def scaled(x: np.ndarray, scale: float, standard: Sequence[np.ndarray] | None) -> np.ndarray:
    """Returns x · scale, of which (x - mean) / sqrt(variance + 0.001) with a standard; x is changed."""
    x *= np.float32(scale)  # as Keras holds it
    if standard is not None:
        mean, variance = standard
        x -= mean
        x /= np.sqrt(variance + EPSILON)
    return x


def dense(x: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """(…, d) → (…, u), x · kernel + bias."""
    kernel, bias = weights
    found: np.ndarray = x @ kernel
    found += bias
    return found


def normalized(x: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Returns (x - mean) / sqrt(variance + 0.001) · gamma + beta; x is changed."""
    gamma, beta, mean, variance = weights
    factor = gamma / np.sqrt(variance + EPSILON)
    x *= factor
    x += beta - mean * factor
    return x


def relu(x: np.ndarray) -> np.ndarray:
    """Returns max(x, 0); x is changed."""
    np.maximum(x, 0, out=x)
    return x


def leaf_log_probabilities(scores: Sequence[np.ndarray], parents: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Hierarchical softmax, as `hierarchy.leaf_log_probabilities` computes it with Keras.

    Args:
        scores: (n, nodes) of each level, from coarse to fine.
        parents: Taxonomy.parents.

    Returns:
        (n, C).
    """
    total: np.ndarray | None = None
    for nodes, parents_of_nodes in zip(scores, parents, strict=True):
        parent = np.array(parents_of_nodes)
        siblings = np.argsort(parent, kind="stable")
        # of each family: every node has children
        first = np.flatnonzero(np.diff(parent[siblings], prepend=-1))
        grouped = nodes[:, siblings]
        shifted = nodes - np.maximum.reduceat(grouped, first, axis=1)[:, parent]
        family = np.add.reduceat(np.exp(shifted)[:, siblings], first, axis=1)
        given = shifted - np.log(family)[:, parent]  # log p(node | its parent)
        total = given if total is None else given + total[:, parent]
    assert total is not None
    return total
