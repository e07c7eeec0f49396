"""Whether this machine trains faster in bfloat16 than in float32: it is tried, for about a second.

    a head      the products of one training step: of every dense layer y = x·w, and the gradients
                g·wᵀ of x and xᵀ·g of w, with the casts around them
    a network   a few random photos through it, and the gradients of what is trained

Names of processor features do not say it: TensorFlow's products are 2 to 3 times as fast in bfloat16 with
amx_bf16; with avx512_bf16 alone 0.6 to 1.8 times; with neither it computes them in float32, and casts.

Both precisions take turns. What counts is the processor time of this process: the time on the clock depends
on what else runs on the machine (docs/experiments/training.md).
"""

import functools
import logging
import math
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from features.engines.backbones import start_tensorflow
from features.engines.tensorflow import in_precision
from models.heads.architectures import HeadShape, build_head
from models.heads.tensors import Tensor

log = logging.getLogger("shelfmark")

FLOAT32, BFLOAT16 = PRECISIONS = ("float32", "bfloat16")
MARGIN = 1.2  # times as fast in bfloat16, to take it
ROUNDS = 3  # of both precisions, at least
SECONDS = 0.2  # of trial, at least: rounds of few milliseconds differ more
HOPELESS = 2  # times as slow in bfloat16 in one round: no more of them
ROWS = 256  # of a batch, at most; more of them take longer and show the same
LEAST = 2**26  # multiplications of a step forward; fewer of them are not worth a trial
PHOTOS = 2  # of a network's trial

Product = tuple[int, int, int]  # (n, i) · (i, o)
Step = Callable[[], object]  # computes, and returns when it is done


def faster_for_head(shape: HeadShape, batch: int) -> str:
    """The precision in which a head is trained faster on this machine.

    Args:
        shape: of the head.
        batch: images of a step.

    Returns:
        "float32" or "bfloat16". Of a GPU without a trial, see `_of_gpu`. Small heads: float32.
    """
    if gpu := _of_gpu():
        return gpu
    layers = products(shape, min(batch, ROWS))
    return _faster_products(layers) if sum(map(math.prod, layers)) >= LEAST else FLOAT32


def faster_for_network(network: keras.Model) -> str:
    """The precision in which what is trainable of a network is trained faster on this machine.

    It takes longer than the trial of a head, some seconds: a graph of the network is made in both precisions.

    Args:
        network: (n, h, w, 3) pixels → any output; it is not changed.

    Returns:
        "float32" or "bfloat16". Of a GPU without a trial, see `_of_gpu`. With JAX on a processor: float32.
    """
    if gpu := _of_gpu():
        return gpu
    if keras.backend.backend() != "tensorflow" or not network.trainable_weights:
        return FLOAT32
    photos = np.random.default_rng(0).integers(0, 256, (PHOTOS, *network.input_shape[1:]), np.uint8)
    return faster("the network is tuned", lambda precision: _network_step(network, photos, precision))


def faster(what: str, step_in: Callable[[str], Step]) -> str:
    """The precision in which a step takes less processor time; a log line says how much in either.

    Args:
        what: takes these steps, for the log.
        step_in: makes the step of a precision.

    Returns:
        "bfloat16" where it is faster by MARGIN, else "float32".
    """
    steps = {precision: step_in(precision) for precision in PRECISIONS}
    for step in steps.values():
        step()  # makes the graph
    took: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    began = time.perf_counter()
    while len(took[BFLOAT16]) < ROUNDS or time.perf_counter() < began + SECONDS:
        for precision, step in steps.items():
            before = time.process_time()
            step()
            took[precision].append(time.process_time() - before)
        if took[BFLOAT16][-1] > HOPELESS * took[FLOAT32][-1]:
            break
    float32, bfloat16 = (statistics.median(took[precision]) for precision in PRECISIONS)
    chosen = BFLOAT16 if bfloat16 * MARGIN <= float32 else FLOAT32
    log.info(
        "%s in %s: on trial a step takes %.1f ms of processor time in float32, %.1f ms in bfloat16",
        what, chosen, 1e3 * float32, 1e3 * bfloat16,
    )  # fmt: skip
    return chosen


def products(shape: HeadShape, batch: int) -> tuple[Product, ...]:
    """The products of a head's dense layers for a batch of rows: (n, i) · (i, o) each."""
    return tuple(
        (batch * math.prod(layer.input.shape[1:-1]), *layer.kernel.shape)
        for layer in build_head(shape).layers
        if isinstance(layer, keras.layers.Dense)
    )


@functools.cache
def _faster_products(layers: tuple[Product, ...]) -> str:
    """Tried once in a process, so that all heads of a shape are trained in the same precision."""
    rng = np.random.default_rng(0)
    values = [
        [ops.convert_to_tensor(rng.standard_normal(size, np.float32)) for size in ((n, i), (i, o), (n, o))]
        for n, i, o in layers
    ]
    return faster("the head is trained", lambda precision: _products_step(values, precision))


def _products_step(values: list[list[Tensor]], precision: str) -> Step:
    """Of each layer x, w and the gradient of x·w."""

    def step(values: list[list[Tensor]]) -> list[Tensor]:
        results = []
        for layer in values:
            x, w, gradient = (ops.cast(value, precision) for value in layer)
            of_w = ops.cast(ops.matmul(ops.transpose(x), gradient), FLOAT32)
            results += [ops.matmul(x, w), ops.matmul(gradient, ops.transpose(w)), of_w]
        return results

    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(step)
        return lambda: [result.block_until_ready() for result in compiled(values)]
    import tensorflow as tf

    return functools.partial(tf.function(step), values)


def _network_step(network: keras.Model, photos: np.ndarray, precision: str) -> Step:
    """Gradients of the sum of the outputs; statistics of batch normalizations stay as they are."""
    import tensorflow as tf

    tried = in_precision(network, {FLOAT32: "fp32", BFLOAT16: "bf16"}[precision])

    def step(photos: Tensor) -> list[Tensor]:
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.cast(tried(photos, training=False), tf.float32))
        gradients: list[Tensor] = tape.gradient(total, tried.trainable_variables)
        return gradients

    return functools.partial(tf.function(step), tf.convert_to_tensor(photos))


def _of_gpu() -> str | None:
    """What a GPU multiplies faster in: bfloat16 from Ampere on (compute capability 8.0); None without one.

    Not tried: a few products alone take less time there than their start.
    """
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        capability = float(device.compute_capability) if device.platform == "gpu" else None
    else:
        start_tensorflow()
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        capability = details.get("compute_capability", (0, 0))[0] if gpus else None
    if capability is None:
        return None
    return BFLOAT16 if capability >= 8 else FLOAT32
