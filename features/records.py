"""The record: one ProductImage as a `tf.train.Example`, framed as TFRecord.

    product_id, category, split, seller, image_digest   bytes (UTF-8)
    image                                               bytes, a JPEG that strict decoding takes
    image_index                                         int64

    frame   uint64 length | uint32 masked crc32c of the length | Example | uint32 masked crc32c of the Example

Writing needs no TensorFlow (workers start in a second instead of seven); reading is TensorFlow's own.
"""

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from features.errors import ShelfmarkError
from features.files import Place
from features.product import ProductImage

if TYPE_CHECKING:
    import pandas as pd
    import tensorflow as tf

BYTES_LIST, INT64_LIST = b"\x0a", b"\x1a"  # tags of a Feature's kinds


def serialise(image: ProductImage) -> bytes:
    """A `tf.train.Example` as bytes; the same image always gives the same bytes (names in order)."""
    features = (
        (BYTES_LIST, b"category", image.category.encode()),
        (BYTES_LIST, b"image", image.jpeg),
        (BYTES_LIST, b"image_digest", image.image_digest.encode()),
        (INT64_LIST, b"image_index", _varint(image.image_index)),
        (BYTES_LIST, b"product_id", image.product_id.encode()),
        (BYTES_LIST, b"seller", image.seller.encode()),
        (BYTES_LIST, b"split", image.split.encode()),
    )
    parts = []
    for kind, name, value in features:
        parts += [_head(kind, name, len(value)), value]
    body = b"".join(parts)
    return b"\x0a" + _varint(len(body)) + body  # Example.features


def frame(example: bytes) -> bytes:
    """The Example in TFRecord framing."""
    length = struct.pack("<Q", len(example))
    return length + _masked_crc(length) + example + _masked_crc(example)


@functools.lru_cache(2**16)  # 4 µs a record instead of 17: the lengths of a catalogue repeat
def _head(kind: bytes, name: bytes, size: int) -> bytes:
    """What stands before a value of `size` bytes in an entry of Features.feature."""
    value = b"\x0a" + _varint(size)
    values = kind + _varint(len(value) + size) + value
    feature = b"\x12" + _varint(len(values) + size) + values
    key = b"\x0a" + _varint(len(name)) + name
    return b"\x0a" + _varint(len(key) + len(feature) + size) + key + feature


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def spec() -> dict[str, Any]:
    """What `tf.io.parse_example` needs to read records."""
    import tensorflow as tf

    names = ("product_id", "category", "split", "seller", "image_digest", "image")
    return {name: tf.io.FixedLenFeature([], tf.string) for name in names} | {
        "image_index": tf.io.FixedLenFeature([], tf.int64)
    }


def dataset(files: list[Path], batch: int) -> "tf.data.Dataset":
    """Batches of parsed records: a dict of (batch,) tensors, images still as JPEG bytes."""
    import tensorflow as tf

    examples = tf.data.TFRecordDataset([str(file) for file in files]).batch(batch)
    return examples.map(lambda serialised: tf.io.parse_example(serialised, spec()))


def read_images(folder: Place, rows: "pd.DataFrame") -> Iterator[bytes]:
    """JPEGs of single records, in the order of the rows.

    Args:
        folder: of the shards.
        rows: file, offset, length (bytes of the frame), as in images.parquet.
    """
    changes = (rows["file"] != rows["file"].shift()).cumsum()
    for _, run in rows.groupby(changes, sort=False):
        with (folder / str(run["file"].iat[0])).open("rb") as shard:
            for offset, length in zip(run["offset"], run["length"], strict=True):
                shard.seek(offset)
                yield image_of(unframe(shard.read(length)))


def unframe(framed: bytes) -> bytes:
    """The Example in a TFRecord frame.

    Raises:
        ShelfmarkError: length and checksums do not fit.
    """
    example = framed[12:-4]
    if frame(example) != framed:
        raise ShelfmarkError(
            "a record does not fit its checksum; expected an intact shard; "
            "remove the records directory and run again"
        )
    return example


def image_of(example: bytes) -> bytes:
    """The JPEG of a serialised Example."""
    import tensorflow as tf

    return tf.train.Example.FromString(example).features.feature["image"].bytes_list.value[0]
