"""What the backend computes: many steps of SGD in one call, and the grades of a batch.

    rows (n, d) float16, labels (n,) or (n, levels) int32, on the device
    batches (k, b) int32, numbers of rows; mixes (k,) float32, in mixup the weight of the image itself
    told (3,) float32: summed loss, images right on the last output, images
    grades (2, b) float32: cross-entropy of the last output, 1 where it is right

TensorFlow runs them as one graph. On CPUs XLA computes the loss and its slopes alone, which it fuses (of
256 · 5,270 logits, in mixup, on three levels: 5.6 ms instead of 20); a whole step in it takes twice as long
as with oneDNN (2048-1024-1024-5270 at batch 256 in float32: 108 ms instead of 55). JAX runs them as one
`scan`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

DECAY_STEPS = 16  # between two decays of the weights, see _OnePassSGD

Tensor = Any  # of the backend
Losses = Callable[[Any, Tensor], Tensor]  # (outputs, labels) → (n,) losses


def learner(model: keras.Model, optimizer: keras.optimizers.Optimizer, losses: Losses, mixing: bool) -> Any:
    """learn(rows, labels, batches, mixes) → told; `learn.settle()` before the variables are read."""
    return _BACKENDS[keras.backend.backend()][0](model, optimizer, losses, mixing)


def grader(model: keras.Model) -> Callable[[Tensor, Tensor, np.ndarray], Tensor]:
    """grade(rows, labels, batch (b,)) → grades."""
    return _BACKENDS[keras.backend.backend()][1](model)


def sgd(rate: Any, momentum: float, weight_decay: float = 0.0) -> keras.optimizers.Optimizer:
    """Stochastic gradient descent, rate a schedule: v ← momentum·v - rate·g, w ← w + v - rate·weight_decay·w.

    The decay stands beside the gradient, not in it (Loshchilov, Hutter, ICLR 2019).
    """
    kind = _OnePassSGD if momentum and keras.backend.backend() == "tensorflow" else keras.optimizers.SGD
    return kind(rate, momentum=momentum, weight_decay=weight_decay or None)


class _OnePassSGD(keras.optimizers.SGD):
    """Keras' own, by TensorFlow's operation for it: one pass over the weights instead of five.

    Measured on 8.5 M weights: 17 ms a step instead of 40. Weights decay once in DECAY_STEPS steps, as much as
    in all of them: every step it takes 20 ms.
    """

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        import tensorflow as tf

        if self.weight_decay is None:
            return

        def decay() -> bool:
            by = -ops.expm1(-DECAY_STEPS * self.weight_decay * ops.cast(self.learning_rate, "float32"))
            for variable in variables:
                variable.value.assign_sub(by * variable.value)
            return True

        tf.cond((self.iterations.value + 1) % DECAY_STEPS == 0, decay, lambda: False)

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        import tensorflow as tf

        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=ops.cast(learning_rate, "float32"),
            grad=gradient,
            momentum=self.momentum,
        )


def multiplies_bfloat16() -> bool:
    """Whether this machine is faster in bfloat16: GPUs from Ampere on, and processors with AMX.

    On two cores with AMX a step takes half the time (26 instead of 55 ms). XLA has no use for AMX (65 ms in
    either), so with JAX only GPUs count.
    """
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return device.platform == "gpu" and float(device.compute_capability) >= 8
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))[0] >= 8
    processor = Path("/proc/cpuinfo")
    return processor.is_file() and "amx_bf16" in processor.read_text()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, C) logits, (n,) labels → (n,)."""
    return ops.logsumexp(logits, axis=-1) - own(logits, labels)


def own(values: Tensor, labels: Tensor) -> Tensor:
    """(n, C) values, (n,) labels → (n,), the value of each label.

    By a mask, which XLA fuses with what is around it. The slope of a gather is a scatter.
    """
    columns = ops.arange(values.shape[-1], dtype=labels.dtype)
    return ops.sum(ops.where(ops.equal(columns, ops.expand_dims(labels, 1)), values, 0.0), axis=-1)


def aligned(count: int, width: int, dtype: np.dtype) -> np.ndarray:
    """(count, width), not filled, at a multiple of 64 bytes."""
    size = count * width * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(count, width)


def as_tensor(rows: np.ndarray) -> Tensor:
    """Aligned rows on the device; TensorFlow's tensor on a CPU is their own memory.

    Its usual way takes three times their bytes: with 2 GB of bottlenecks a training took 6.8 GB.
    """
    if keras.backend.backend() == "tensorflow" and len(rows):
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            return tf.experimental.dlpack.from_dlpack(rows.__dlpack__())
    return ops.convert_to_tensor(rows)


def as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    """A head's outputs, from the coarsest to the finest."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def finest(labels: Tensor) -> Tensor:
    """(n,) or (n, levels) → (n,), the category."""
    return labels[:, -1] if len(labels.shape) == 2 else labels


def _take(rows: Tensor, labels: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    return ops.cast(ops.take(rows, batch, axis=0), "float32"), ops.take(labels, batch, axis=0)


def _mixed(x: Tensor, mix: Tensor | None) -> Tensor:
    """With mixup each image is mixed with the one opposite in the batch; None: no mixup."""
    return x if mix is None else mix * x + (1 - mix) * ops.flip(x, axis=0)


def _mean(
    outputs: Tensor | list[Tensor], losses: Losses, y: Tensor, mix: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The batch's mean loss, and told."""
    outputs = [ops.cast(output, "float32") for output in as_list(outputs)]
    loss = losses(outputs, y)
    if mix is not None:
        loss = mix * loss + (1 - mix) * losses(outputs, ops.flip(y, axis=0))
    return ops.mean(loss), _told(outputs[-1], finest(y), loss)


def _told(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    # The label's logit is the largest: an argmax over 5,270 takes five times as long as a maximum.
    right = ops.cast(own(logits, labels) >= ops.max(logits, axis=1), "float32")
    return ops.stack([ops.sum(losses), ops.sum(right), ops.sum(ops.ones_like(right))])


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), labels.dtype), labels), "float32")


def _grades(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    logits = as_list(outputs)[-1]
    return ops.stack([cross_entropy(logits, finest(labels)), _right(logits, finest(labels))])


class _TensorFlowLearner:
    def __init__(self, model: Any, optimizer: Any, losses: Losses, mixing: bool) -> None:
        import tensorflow as tf

        self.model, self.optimizer, self.losses, self.mixing = model, optimizer, losses, mixing
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        self.steps = _traced_once(self._steps, jit_compile=on_gpu)
        self.slopes = tf.function(self._slopes, jit_compile=True)

    def __call__(self, rows: Tensor, labels: Tensor, batches: np.ndarray, mixes: np.ndarray) -> Tensor:
        return self.steps(rows, labels, batches, mixes)

    def _steps(self, rows: Tensor, labels: Tensor, batches: Tensor, mixes: Tensor) -> Tensor:
        import tensorflow as tf

        told = tf.zeros(3)
        for number in tf.range(tf.shape(batches)[0]):
            x, y = _take(rows, labels, batches[number])
            mix = mixes[number] if self.mixing else None
            with tf.GradientTape() as tape:
                outputs = as_list(self.model(_mixed(x, mix), training=True))
            variables = self.model.trainable_variables
            slopes, more = self.slopes(outputs, y, mix)
            self.optimizer.apply(tape.gradient(outputs, variables, slopes), variables)
            told += more
        return told

    def _slopes(self, outputs: list[Tensor], y: Tensor, mix: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Of the mean loss by each output, and told."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss, told = _mean(outputs, self.losses, y, mix)
        zero = tf.UnconnectedGradients.ZERO  # no slope would be taken for one
        return tape.gradient(loss, outputs, unconnected_gradients=zero), told

    def settle(self) -> None:
        """The variables are those learnt, always."""


def _tensorflow_grader(model: keras.Model) -> Callable:
    def grade(rows: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        x, y = _take(rows, labels, batch)
        return _grades(model(x, training=False), y)

    return _traced_once(grade)


def _traced_once(function: Callable, jit_compile: bool = False) -> Callable:
    """A graph for any number of rows and batches: each more takes a second or two to trace."""
    import tensorflow as tf

    graphs: list[Callable] = []

    def call(rows: Tensor, labels: Tensor, *arrays: np.ndarray) -> Tensor:
        given = [rows, labels, *map(tf.convert_to_tensor, arrays)]
        if not graphs:
            counts = [1, 1, *(array.ndim for array in arrays)]  # dimensions that may change
            signature = [
                tf.TensorSpec([None] * count + given.shape[count:], given.dtype)
                for given, count in zip(given, counts, strict=True)
            ]
            graphs.append(tf.function(function, input_signature=signature, jit_compile=jit_compile))
        return graphs[0](*given)

    return call


class _JaxLearner:
    def __init__(self, model: Any, optimizer: Any, losses: Losses, mixing: bool) -> None:
        import jax

        self.variables = (
            model.trainable_variables, model.non_trainable_variables, optimizer.variables
        )  # fmt: skip
        self.state = [[variable.value for variable in group] for group in self.variables]

        def steps(
            state: Any, rows: Tensor, labels: Tensor, batches: Tensor, mixes: Tensor
        ) -> tuple[Any, Tensor]:
            def step(state: Any, given: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
                x, y = _take(rows, labels, given[0])
                trained, others, optimizing = state

                def loss(trained: Any) -> tuple[Tensor, tuple[Tensor, Any]]:
                    after: list[Any] = []

                    def call(x: Tensor) -> Tensor:
                        outputs, kept = model.stateless_call(trained, others, x, training=True)
                        after.extend(kept)
                        return outputs

                    mix = given[1] if mixing else None
                    mean, told = _mean(call(_mixed(x, mix)), losses, y, mix)
                    return mean, (told, after)

                (_, (told, others)), slopes = jax.value_and_grad(loss, has_aux=True)(trained)
                trained, optimizing = optimizer.stateless_apply(optimizing, slopes, trained)
                return [trained, others, optimizing], told

            state, told = jax.lax.scan(step, state, (batches, mixes))
            return state, told.sum(axis=0)

        self.steps = jax.jit(steps, donate_argnums=0)

    def __call__(self, rows: Tensor, labels: Tensor, batches: np.ndarray, mixes: np.ndarray) -> Tensor:
        self.state, told = self.steps(self.state, rows, labels, batches, mixes)
        return told

    def settle(self) -> None:
        """Puts what is learnt into the variables, as copies: the next call takes the state's own place."""
        for group, values in zip(self.variables, self.state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value.copy())


def _jax_grader(model: keras.Model) -> Callable:
    import jax

    @jax.jit
    def grade(state: Any, rows: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        x, y = _take(rows, labels, batch)
        return _grades(model.stateless_call(*state, x, training=False)[0], y)

    def with_weights(rows: Tensor, labels: Tensor, batch: np.ndarray) -> Tensor:
        groups = (model.trainable_variables, model.non_trainable_variables)
        return grade([[variable.value for variable in group] for group in groups], rows, labels, batch)

    return with_weights


_BACKENDS: dict[str, tuple[Callable, Callable]] = {
    "tensorflow": (_TensorFlowLearner, _tensorflow_grader),
    "jax": (_JaxLearner, _jax_grader),
}
