"""What the backend computes: many steps of SGD in one call, and the evaluation of a batch.

    rows (n, d) float16, labels (n,) or (n, levels) int32, on the device
    batches (k, b) int32, numbers of rows; mixes (k,) float32, in mixup the weight of the image itself
    totals (3,) float32: summed loss, images correct on the last output, images
    evaluation (2, b) float32: cross-entropy of the last output, 1 where it is correct

TensorFlow runs them as one graph. On CPUs XLA compiles only the loss and its gradients, which it fuses (of
256 · 5,270 logits, in mixup, on three levels: 5.6 ms instead of 20); a whole step compiled by it takes twice
as long as with oneDNN (2048-1024-1024-5270 at batch 256 in float32: 108 ms instead of 55). JAX runs them as
one `scan`.
"""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import keras
import numpy as np
from keras import ops

from models.heads.tensors import Tensor

DECAY_STEPS = 16  # between two decays of the weights, see _OnePassSGD

Outputs: TypeAlias = Tensor | list[Tensor]  # of a head: one output, or one of each level
Losses = Callable[[list[Tensor], Tensor], Tensor]  # (outputs, labels) → (n,) losses
Evaluator = Callable[[Tensor, Tensor, np.ndarray], Tensor]  # (rows, labels, batch (b,)) → evaluation
# Mixup: none; of rows and of their losses; of losses alone, where the rows are mixed already.
Mixing: TypeAlias = Literal["none", "rows", "labels"]


class Trainer(Protocol):
    """Trains a model on batches of rows."""

    def __call__(self, rows: Tensor, labels: Tensor, batches: np.ndarray, mixes: np.ndarray) -> Tensor:
        """Takes a step for each batch and returns the totals."""
        ...

    def write_back(self) -> None:
        """Writes what was trained into the model's variables; called before they are read."""
        ...


def trainer(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, losses: Losses, mixing: Mixing
) -> Trainer:
    """Returns what trains the model with these losses on the current backend."""
    return _BACKENDS[keras.backend.backend()][0](model, optimizer, losses, mixing)


def evaluator(model: keras.Model) -> Evaluator:
    """Returns what evaluates the model on the current backend."""
    return _BACKENDS[keras.backend.backend()][1](model)


def sgd(
    rate: float | keras.optimizers.schedules.LearningRateSchedule, momentum: float, weight_decay: float = 0.0
) -> keras.optimizers.Optimizer:
    """Stochastic gradient descent: v ← momentum·v - rate·g, w ← w + v - rate·weight_decay·w.

    The decay is applied beside the gradient, not in it (Loshchilov, Hutter, ICLR 2019).
    """
    one_pass = momentum and keras.backend.backend() == "tensorflow"
    optimizer = _OnePassSGD if one_pass else keras.optimizers.SGD
    return optimizer(rate, momentum=momentum, weight_decay=weight_decay or None)


class _OnePassSGD(keras.optimizers.SGD):  # type: ignore[misc]  # Keras has no types
    """Keras' SGD by TensorFlow's own operation: one pass over the weights instead of five.

    Measured on 8.5 M weights: 17 ms a step instead of 40. Weights decay once in DECAY_STEPS steps, by as much
    as in all of them: with a decay in every step it takes 20 ms.
    """

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        import tensorflow as tf

        if self.weight_decay is None:
            return

        def decay() -> bool:
            by = -ops.expm1(-DECAY_STEPS * self.weight_decay * ops.cast(self.learning_rate, "float32"))
            for variable in variables:
                variable.value.assign_sub(by * variable.value)
            return True

        tf.cond((self.iterations.value + 1) % DECAY_STEPS == 0, decay, lambda: False)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        import tensorflow as tf

        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=ops.cast(learning_rate, "float32"),
            grad=gradient,
            momentum=self.momentum,
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, C) logits, (n,) labels → (n,)."""
    return ops.logsumexp(logits, axis=-1) - own(logits, labels)


def own(values: Tensor, labels: Tensor) -> Tensor:
    """(n, C) values, (n,) labels → (n,), the value of each label.

    By a mask, which XLA fuses with the operations around it. The gradient of a gather would be a scatter.
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
    """Aligned rows on the device; on a CPU TensorFlow's tensor shares their memory.

    TensorFlow's usual way takes three times their bytes: with 2 GB of bottlenecks a training took 6.8 GB.
    """
    if keras.backend.backend() == "tensorflow" and len(rows):
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            return tf.experimental.dlpack.from_dlpack(rows.__dlpack__())
    return ops.convert_to_tensor(rows)


def as_list(outputs: Outputs) -> list[Tensor]:
    """A head's outputs as a list, from the coarsest to the finest."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def finest(labels: Tensor) -> Tensor:
    """(n,) or (n, levels) → (n,), the category."""
    return labels[:, -1] if len(labels.shape) == 2 else labels


def _take(rows: Tensor, labels: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    return ops.cast(ops.take(rows, batch, axis=0), "float32"), ops.take(labels, batch, axis=0)


def _mixed(x: Tensor, mix: Tensor | None) -> Tensor:
    """With mixup each image is mixed with the one opposite in the batch; None: no mixup."""
    return x if mix is None else mix * x + (1 - mix) * ops.flip(x, axis=0)


def _mean_loss(outputs: Outputs, losses: Losses, y: Tensor, mix: Tensor | None) -> tuple[Tensor, Tensor]:
    """The batch's mean loss, and its totals."""
    outputs = [ops.cast(output, "float32") for output in as_list(outputs)]
    loss = losses(outputs, y)
    if mix is not None:
        loss = mix * loss + (1 - mix) * losses(outputs, ops.flip(y, axis=0))
    return ops.mean(loss), _totals(outputs[-1], finest(y), loss)


def _totals(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    # The label's logit is the largest: an argmax over 5,270 takes five times as long as a maximum.
    correct = ops.cast(own(logits, labels) >= ops.max(logits, axis=1), "float32")
    return ops.stack([ops.sum(losses), ops.sum(correct), ops.sum(ops.ones_like(correct))])


def _evaluation(outputs: Outputs, labels: Tensor) -> Tensor:
    logits, categories = as_list(outputs)[-1], finest(labels)
    predicted = ops.cast(ops.argmax(logits, axis=-1), categories.dtype)
    correct = ops.cast(ops.equal(predicted, categories), "float32")
    return ops.stack([cross_entropy(logits, categories), correct])


class _TensorFlowTrainer:
    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, losses: Losses, mixing: Mixing
    ) -> None:
        import tensorflow as tf

        self.model, self.optimizer, self.losses, self.mixing = model, optimizer, losses, mixing
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        self.steps = _traced_once(self._steps, jit_compile=on_gpu)
        self.gradients = tf.function(self._gradients, jit_compile=True)

    def __call__(self, rows: Tensor, labels: Tensor, batches: np.ndarray, mixes: np.ndarray) -> Tensor:
        return self.steps(rows, labels, batches, mixes)

    def _steps(self, rows: Tensor, labels: Tensor, batches: Tensor, mixes: Tensor) -> Tensor:
        import tensorflow as tf

        totals = tf.zeros(3)
        for number in tf.range(tf.shape(batches)[0]):
            x, y = _take(rows, labels, batches[number])
            mix = mixes[number] if self.mixing != "none" else None
            with tf.GradientTape() as tape:
                x = _mixed(x, mix if self.mixing == "rows" else None)
                outputs = as_list(self.model(x, training=True))
            variables = self.model.trainable_variables
            gradients, of_batch = self.gradients(outputs, y, mix)
            self.optimizer.apply(tape.gradient(outputs, variables, gradients), variables)
            totals += of_batch
        return totals

    def _gradients(self, outputs: list[Tensor], y: Tensor, mix: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The gradients of the mean loss by each output, and the batch's totals."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss, totals = _mean_loss(outputs, self.losses, y, mix)
        zero = tf.UnconnectedGradients.ZERO  # of an output that has no loss; None would later count as 1
        return tape.gradient(loss, outputs, unconnected_gradients=zero), totals

    def write_back(self) -> None:
        """Does nothing: the variables themselves are trained."""


def _tensorflow_evaluator(model: keras.Model) -> Evaluator:
    def evaluate(rows: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        x, y = _take(rows, labels, batch)
        return _evaluation(model(x, training=False), y)

    return _traced_once(evaluate)


def _traced_once(function: Callable[..., Tensor], jit_compile: bool = False) -> Callable[..., Tensor]:
    """Makes a graph for any number of rows and batches: tracing another one takes a second or two."""
    import tensorflow as tf

    graphs: list[Callable[..., Tensor]] = []

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


State: TypeAlias = list[list[Tensor]]  # values of the trainable, the other and the optimizer's variables


class _JaxTrainer:
    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, losses: Losses, mixing: Mixing
    ) -> None:
        import jax

        self.variables = (
            model.trainable_variables, model.non_trainable_variables, optimizer.variables
        )  # fmt: skip
        self.state: State = [[variable.value for variable in group] for group in self.variables]

        def steps(
            state: State, rows: Tensor, labels: Tensor, batches: Tensor, mixes: Tensor
        ) -> tuple[State, Tensor]:
            def step(state: State, given: tuple[Tensor, Tensor]) -> tuple[State, Tensor]:
                x, y = _take(rows, labels, given[0])
                trained, others, optimizing = state

                def loss(trained: list[Tensor]) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
                    mix = given[1] if mixing != "none" else None
                    mixed = _mixed(x, mix if mixing == "rows" else None)
                    outputs, after = model.stateless_call(trained, others, mixed, training=True)
                    mean, totals = _mean_loss(outputs, losses, y, mix)
                    return mean, (totals, after)

                (_, (totals, others)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
                trained, optimizing = optimizer.stateless_apply(optimizing, gradients, trained)
                return [trained, others, optimizing], totals

            state, totals = jax.lax.scan(step, state, (batches, mixes))
            return state, totals.sum(axis=0)

        self.steps = jax.jit(steps, donate_argnums=0)

    def __call__(self, rows: Tensor, labels: Tensor, batches: np.ndarray, mixes: np.ndarray) -> Tensor:
        self.state, totals = self.steps(self.state, rows, labels, batches, mixes)
        return totals

    def write_back(self) -> None:
        """Copies what was trained into the variables: the next call overwrites the state's own memory."""
        for group, values in zip(self.variables, self.state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value.copy())


def _jax_evaluator(model: keras.Model) -> Evaluator:
    import jax

    @jax.jit
    def evaluate(state: State, rows: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        x, y = _take(rows, labels, batch)
        return _evaluation(model.stateless_call(*state, x, training=False)[0], y)

    def with_weights(rows: Tensor, labels: Tensor, batch: np.ndarray) -> Tensor:
        groups = (model.trainable_variables, model.non_trainable_variables)
        return evaluate([[variable.value for variable in group] for group in groups], rows, labels, batch)

    return with_weights


_TrainerOf: TypeAlias = Callable[[keras.Model, keras.optimizers.Optimizer, Losses, Mixing], Trainer]
_EvaluatorOf: TypeAlias = Callable[[keras.Model], Evaluator]
_BACKENDS: dict[str, tuple[_TrainerOf, _EvaluatorOf]] = {
    "tensorflow": (_TensorFlowTrainer, _tensorflow_evaluator),
    "jax": (_JaxTrainer, _jax_evaluator),
}
