"""The record: one ProductImage as a `tf.train.Example`, framed as TFRecord.

    product_id, category, split, seller, image_digest   bytes (UTF-8)
    image                                               bytes, a JPEG that strict decoding takes
    image_index                                         int64

    frame   uint64 length | uint32 masked crc32c of the length | Example | uint32 masked crc32c of the Example

Writing needs no TensorFlow (workers start in a second instead of seven); reading is TensorFlow's own.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import pandas as pd

from features.errors import ShelfmarkError
from features.product import ProductImage

if TYPE_CHECKING:
    import tensorflow as tf


def serialise(image: ProductImage) -> bytes:
    """A `tf.train.Example` as bytes; the same image always gives the same bytes (names in order)."""
    features = (
        (b"category", _text(image.category)),
        (b"image", _bytes(image.jpeg)),
        (b"image_digest", _text(image.image_digest)),
        (b"image_index", _field(3, _field(1, _varint(image.image_index)))),  # Feature.int64_list, packed
        (b"product_id", _text(image.product_id)),
        (b"seller", _text(image.seller)),
        (b"split", _text(image.split)),
    )
    return _field(1, b"".join(_field(1, _field(1, name) + _field(2, feature)) for name, feature in features))


def frame(example: bytes) -> bytes:
    """The Example in TFRecord framing."""
    length = struct.pack("<Q", len(example))
    return length + _masked_crc(length) + example + _masked_crc(example)


def _text(value: str) -> bytes:
    return _bytes(value.encode())


def _bytes(value: bytes) -> bytes:
    return _field(1, _field(1, value))  # Feature.bytes_list


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


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


def read_images(folder: Path, rows: pd.DataFrame) -> Iterator[bytes]:
    """JPEGs of single records, in the order of the rows.

    Args:
        folder: of the shards.
        rows: file, offset, length (bytes of the frame), as in images.parquet.
    """
    changes = (rows["file"] != rows["file"].shift()).cumsum()
    for _, run in rows.groupby(changes, sort=False):
        with open(folder / str(run["file"].iat[0]), "rb") as shard:
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
