"""From JPEGs to pixels: pieces are cut, decoded and resized in TensorFlow's threads, beside the backbone.

    Piece ─► cut ─► batch ─► parse the Examples ─► decode, resize, round ─► (batch, size, size, 3) uint8
                             `────── batches side by side, on the CPU ──────´

Python sees a piece of some megabytes and a batch of pixels, no image alone: 0.8 ms of a core for an image of
180 px at 299 instead of 1.1 with a generator of JPEGs.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from features.errors import ShelfmarkError
from features.records import Piece, feature_spec

if TYPE_CHECKING:
    import tensorflow as tf

# Plain bilinear: bicubic and antialiased resizing cost a fifth more and gave a linear classifier on grocery
# photos no better validation accuracy (0.618 plain, 0.605 antialiased, 0.611 bicubic; squashed, cropped,
# padded: within 0.01).
RESIZE = "bilinear"


def read_pixels(pieces: Iterable[Piece], size: int, batch: int, flip: bool = False) -> Iterator[np.ndarray]:
    """Decodes and resizes images, in order.

    Args:
        pieces: of strict JPEGs.
        size: px.
        batch: images; a short last batch is filled up with black, so that every batch runs the same kernels.
        flip: mirror them, left to right.

    Yields:
        (batch, size, size, 3) uint8.

    Raises:
        ShelfmarkError: an image cannot be decoded, which ingest had decoded.
        Exception: whatever `pieces` raises.
    """
    import tensorflow as tf

    failures: list[Exception] = []
    sources: list[tuple[int, int, str]] = []  # first image, the one after the last, source

    def told() -> Iterator[tuple[bytes, np.ndarray, np.ndarray, bool]]:
        images = 0
        try:
            for piece in pieces:
                sources.append((images, images + len(piece.starts), piece.source))
                images += len(piece.starts)
                yield piece.data, piece.starts, piece.lengths, piece.examples
        except Exception as error:  # TensorFlow would make an UnknownError of twenty lines of it
            failures.append(error)

    numbers = tf.TensorSpec([None], tf.int64)
    signature = (tf.TensorSpec([], tf.string), numbers, numbers, tf.TensorSpec([], tf.bool))
    done = 0
    with tf.device("cpu"):
        texts = tf.data.Dataset.from_generator(told, output_signature=signature).flat_map(_cut)
        pixels = texts.batch(batch).map(
            lambda texts, examples: _pixels(_jpegs(texts, examples), size, batch, flip),
            num_parallel_calls=os.cpu_count(),
            deterministic=True,
        )
        batches = pixels.prefetch(2).with_options(_untuned()).as_numpy_iterator()
    try:
        for images in batches:
            yield images
            done += batch
    except tf.errors.InvalidArgumentError as error:
        within = dict.fromkeys(
            source for first, end, source in sources if first < done + batch and end > done
        )
        raise ShelfmarkError(
            f"{', '.join(within)}: an image cannot be decoded; expected JPEGs that ingest has decoded; "
            "remove the records directory and run again"
        ) from error
    if failures:
        raise failures[0]


def _untuned() -> "tf.data.Options":
    """Without tf.data's own tuning, whose thread is waited for at the end of every shard, for up to 1.4 s."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _cut(
    data: "tf.Tensor", starts: "tf.Tensor", lengths: "tf.Tensor", examples: "tf.Tensor"
) -> "tf.data.Dataset":
    """A piece → its texts, one by one: with vectors `substr` would copy the whole piece for each of them."""
    import tensorflow as tf

    places = tf.data.Dataset.from_tensor_slices((starts, lengths))
    return places.map(lambda start, length: (tf.strings.substr(data, start, length), examples))


def _jpegs(texts: "tf.Tensor", examples: "tf.Tensor") -> "tf.Tensor":
    """(n,) Examples or JPEGs, all of one kind → (n,) JPEGs."""
    import tensorflow as tf

    parsed = {"image": feature_spec()["image"]}
    return tf.cond(examples[0], lambda: tf.io.parse_example(texts, parsed)["image"], lambda: texts)


def _pixels(jpegs: "tf.Tensor", size: int, batch: int, flip: bool) -> "tf.Tensor":
    """(n,) JPEGs, n up to `batch` → (batch, size, size, 3) uint8, black at the end.

    Each is resized alone: to resize a batch of one size together was no quicker (0.86 ms instead of 0.78).
    """
    import tensorflow as tf

    def decode(jpeg: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
        resized = tf.image.resize(pixels, (size, size), method=RESIZE)
        return tf.cast(tf.round(resized), tf.uint8)

    images = tf.map_fn(decode, jpegs, fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8))
    images = tf.reverse(images, [2]) if flip else images
    images = tf.pad(images, [[0, batch - tf.shape(images)[0]], [0, 0], [0, 0], [0, 0]])
    return tf.ensure_shape(images, (batch, size, size, 3))
