"""Weights for bfloat16: as TensorFlow rounds, and channels whose weights keep their sum."""

import numpy as np
import tensorflow as tf

from features.rounding import sum_keeping, to_bfloat16

NUMBERS = np.random.default_rng(0).normal(size=(500, 9)).astype(np.float32)


def as_tensorflow_rounds(numbers: np.ndarray) -> np.ndarray:
    return tf.cast(tf.cast(numbers, tf.bfloat16), tf.float32).numpy()


def test_rounds_as_tensorflow_does() -> None:
    odd = np.array([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-9), 1e-30, 3e38], np.float32)
    for numbers in (NUMBERS, odd):
        np.testing.assert_array_equal(to_bfloat16(numbers), as_tensorflow_rounds(numbers))


def test_weights_of_a_channel_keep_their_sum() -> None:
    kept, plain = sum_keeping(NUMBERS), as_tensorflow_rounds(NUMBERS)
    np.testing.assert_array_equal(kept, as_tensorflow_rounds(kept))  # bfloat16 holds them

    def away(found: np.ndarray) -> float:
        return np.abs((found - NUMBERS).sum(axis=1, dtype=np.float64)).mean()

    assert away(kept) < away(plain) / 10


def test_no_weight_moves_further_than_the_largest_one_is_rounded() -> None:
    moved = np.abs(sum_keeping(NUMBERS) - NUMBERS)
    assert (moved <= np.abs(NUMBERS).max(axis=1, keepdims=True) * 2**-7).all()
