"""From JPEGs to pixels: pieces are cut, decoded and resized in TensorFlow's threads, beside the backbone.

    Piece ─► cut ─► batch ─► parse the Examples ─► decode, resize, round ─► of each view: cut, mirror
                             `────────── batches side by side, on the CPU ──────────´

A photo is decoded once for all its views (views.py), and resized once to each size.

Python handles pieces of some megabytes and batches of pixels, no single image: 0.8 ms of a core for an image
of 180 px at 299 instead of 1.1 with a generator of JPEGs.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from features.errors import ShelfmarkError
from features.records import Piece, feature_spec
from features.views import WHOLE, View, sizes_of

if TYPE_CHECKING:
    import tensorflow as tf

# Plain bilinear: bicubic and antialiased resizing cost a fifth more and gave a linear classifier on grocery
# photos no better validation accuracy (0.618 plain, 0.605 antialiased, 0.611 bicubic; squashed, cropped,
# padded: within 0.01).
RESIZE = "bilinear"


def read_pixels(
    pieces: Iterable[Piece], size: int, batch: int, views: Sequence[View] = (WHOLE,)
) -> Iterator[np.ndarray]:
    """Decodes and resizes images, in order.

    Args:
        pieces: of strict JPEGs.
        size: px, of the network's input.
        batch: images; a short last batch is filled with black, so that every batch runs the same kernels.
        views: of the photos, which one network computes.

    Yields:
        (batch, size, size, 3) uint8: the first batch of photos in each of the views, then the second, …

    Raises:
        ShelfmarkError: an image that ingest had decoded cannot be decoded.
        ValueError: the network takes another size than a view has.
        Exception: whatever `pieces` raises.
    """
    import tensorflow as tf

    for view in views:
        if view.input(size) != size:
            raise ValueError(f"expected a network for view {view.name}, found one of {size} px")
    source = _Source(pieces)
    done = 0
    try:
        for images in _batches(source, size, batch, views):
            yield from images
            done += batch
    except tf.errors.InvalidArgumentError as error:
        raise ShelfmarkError(
            f"{', '.join(source.names(done, done + batch))}: an image cannot be decoded; expected JPEGs that "
            "ingest has decoded; remove the records directory and run again"
        ) from error
    if source.failure is not None:
        raise source.failure


class _Source:
    """Pieces as TensorFlow reads them, in its own thread; keeps the failure and the sources of the images."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.failure: Exception | None = None
        self._pieces = pieces
        self._read: list[tuple[int, int, str]] = []  # first image, the one after the last, source

    def __call__(self) -> Iterator[tuple[bytes, np.ndarray, np.ndarray, bool]]:
        """Yields data, starts, lengths and kind of each piece."""
        images = 0
        try:
            for piece in self._pieces:
                self._read.append((images, images + len(piece.starts), piece.source))
                images += len(piece.starts)
                yield piece.data, piece.starts, piece.lengths, piece.examples
        except Exception as error:  # TensorFlow would turn it into an UnknownError of twenty lines
            self.failure = error

    def names(self, first: int, end: int) -> list[str]:
        """Returns the sources of these images, each once."""
        return list(dict.fromkeys(name for begin, stop, name in self._read if begin < end and stop > first))


def _batches(
    source: _Source, size: int, batch: int, views: Sequence[View]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Starts TensorFlow's threads; returns for each view (batch, size, size, 3) uint8, in order.

    Two batches for the network, or one in all its views, always wait for it.
    """
    import tensorflow as tf

    numbers = tf.TensorSpec([None], tf.int64)
    signature = (tf.TensorSpec([], tf.string), numbers, numbers, tf.TensorSpec([], tf.bool))
    with tf.device("cpu"):
        texts = tf.data.Dataset.from_generator(source, output_signature=signature).flat_map(_cut)
        pixels = texts.batch(batch).map(
            lambda texts, examples: _pixels(_jpegs(texts, examples), size, batch, views),
            num_parallel_calls=os.cpu_count(),
            deterministic=True,
        )
        waiting = pixels.prefetch(2 if len(views) == 1 else 1).with_options(_untuned())
        batches: Iterator[tuple[np.ndarray, ...]] = waiting.as_numpy_iterator()
    return batches


def _untuned() -> "tf.data.Options":
    """Returns options without tf.data's tuning: ending its thread takes up to 1.4 s a shard."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _cut(
    data: "tf.Tensor", starts: "tf.Tensor", lengths: "tf.Tensor", examples: "tf.Tensor"
) -> "tf.data.Dataset":
    """Cuts a piece into its texts, one by one: on vectors, `substr` copies the whole piece for each text."""
    import tensorflow as tf

    spans = tf.data.Dataset.from_tensor_slices((starts, lengths))
    return spans.map(lambda start, length: (tf.strings.substr(data, start, length), examples))


def _jpegs(texts: "tf.Tensor", examples: "tf.Tensor") -> "tf.Tensor":
    """Parses (n,) Examples, or takes (n,) JPEGs, all of one kind → (n,) JPEGs."""
    import tensorflow as tf

    parsed = {"image": feature_spec()["image"]}
    return tf.cond(examples[0], lambda: tf.io.parse_example(texts, parsed)["image"], lambda: texts)


def _pixels(jpegs: "tf.Tensor", size: int, batch: int, views: Sequence[View]) -> "tuple[tf.Tensor, ...]":
    """Decodes (n,) JPEGs, n up to `batch` → for each view (batch, size, size, 3) uint8, black at the end."""
    import tensorflow as tf

    sizes, black = sizes_of(views, size), [[0, batch - tf.shape(jpegs)[0]], [0, 0], [0, 0], [0, 0]]
    photos = {px: tf.pad(its, black) for px, its in zip(sizes, decode_jpegs(jpegs, sizes), strict=True)}
    images = [view.of_pixels(photos[view.resized(size)], size) for view in views]
    return tuple(tf.ensure_shape(one, (batch, size, size, 3)) for one in images)


def decode_jpegs(jpegs: "tf.Tensor", sizes: Sequence[int]) -> "list[tf.Tensor]":
    """Adds to a graph: (n,) strict JPEGs, decoded once → for each size (n, size, size, 3) uint8.

    Each is resized alone: resizing a batch of equal sizes together was not quicker (0.86 ms instead of 0.78).
    """
    import tensorflow as tf

    def decode(jpeg: tf.Tensor) -> list[tf.Tensor]:
        pixels = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
        resized = [tf.image.resize(pixels, (size, size), method=RESIZE) for size in sizes]
        return [tf.cast(tf.round(one), tf.uint8) for one in resized]

    signature = [tf.TensorSpec((size, size, 3), tf.uint8) for size in sizes]
    found: list[tf.Tensor] = tf.map_fn(decode, jpegs, fn_output_signature=signature)
    return found
