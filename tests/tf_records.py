"""Records as any program with TensorFlow reads them, past the code under test."""

from pathlib import Path
from typing import TYPE_CHECKING

from features.records import feature_spec

if TYPE_CHECKING:
    import tensorflow as tf


def dataset(files: list[Path], batch: int) -> "tf.data.Dataset":
    """Batches of parsed records: a dict of (batch,) tensors, images still as JPEG bytes."""
    import tensorflow as tf

    examples = tf.data.TFRecordDataset([str(file) for file in files]).batch(batch)
    return examples.map(lambda serialised: tf.io.parse_example(serialised, feature_spec()))
