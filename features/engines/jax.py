"""The engine JAX: the backbone compiled, for GPUs."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from features.engines.backbones import KerasBackbone
from features.engines.engine import round_into
from features.engines.tensorflow import in_precision

if TYPE_CHECKING:
    import jax
    import keras


class Jax:
    """The backbone compiled by JAX; one batch is computed while the one before is copied back."""

    def __init__(self, backbone: KerasBackbone, batch: int, precision: str) -> None:
        import jax

        if importlib.util.find_spec("tensorflow"):
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")  # it decodes on the CPU, and would take the GPU's memory
        on_gpu = jax.default_backend() == "gpu"
        precision = precision if precision != "auto" else "bf16" if on_gpu else "fp32"
        self.name = f"jax {precision}"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._step = jitted(in_precision(backbone.model, precision))

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        ahead: list[tuple[int, jax.Array]] = []
        for number, pixels in enumerate(batches):
            ahead.append((number * self.batch, self._step(pixels)))
            if len(ahead) > 1:
                self._write(rows, *ahead.pop(0))
        for at, bottlenecks in ahead:
            self._write(rows, at, bottlenecks)

    def _write(self, rows: np.ndarray, at: int, bottlenecks: "jax.Array") -> None:
        round_into(rows[at : at + self.batch], np.asarray(bottlenecks))


def jitted(model: "keras.Model") -> "Callable[[np.ndarray], jax.Array]":
    """Compiles a Keras model: (n, size, size, 3) uint8 → (n, d) float32, computed asynchronously."""
    import jax

    variables = [
        [variable.value for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]

    def step(variables: list[list[jax.Array]], pixels: jax.Array) -> jax.Array:
        bottlenecks: jax.Array
        bottlenecks, _ = model.stateless_call(*variables, pixels.astype("float32"), training=False)
        return bottlenecks

    compiled = jax.jit(step)
    return lambda pixels: compiled(variables, pixels)
