"""The record: one ProductImage as a `tf.train.Example`, framed as TFRecord.

    product_id, category, split, seller, image_digest   bytes (UTF-8)
    image                                               bytes, a JPEG that strict decoding takes
    image_index                                         int64

    frame   uint64 length | uint32 masked crc32c of the length | Example | uint32 masked crc32c of the Example

Writing needs no TensorFlow (workers start in a second instead of seven); reading is TensorFlow's own.
"""

import functools
import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from features.errors import ShelfmarkError
from features.product import ProductImage
from features.storage.paths import AnyPath, read_range

if TYPE_CHECKING:
    import pandas as pd
    import tensorflow as tf

HEAD, FOOT = 12, 4  # bytes of the frame before and after the Example
GAP = (
    2**16
)  # bytes between neighbours: up to so many are read and dropped, which is quicker than a second read
PIECE = 4 * 2**20  # bytes read at once
BYTES_LIST, INT64_LIST = b"\x0a", b"\x1a"  # tags of a Feature's kinds


def serialise(image: ProductImage) -> bytes:
    """Returns a `tf.train.Example` as bytes; the same image always gives the same bytes (names in order)."""
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
    """Returns the Example in TFRecord framing."""
    length = struct.pack("<Q", len(example))
    return length + _masked_crc(length) + example + _masked_crc(example)


@functools.lru_cache(2**16)  # 4 µs a record instead of 17: the lengths of a catalogue repeat
def _head(kind: bytes, name: bytes, size: int) -> bytes:
    """Returns the bytes before a value of `size` bytes in an entry of Features.feature."""
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


def feature_spec() -> dict[str, "tf.io.FixedLenFeature"]:
    """Returns the features of a record, as `tf.io.parse_example` takes them."""
    import tensorflow as tf

    names = ("product_id", "category", "split", "seller", "image_digest", "image")
    return {name: tf.io.FixedLenFeature([], tf.string) for name in names} | {
        "image_index": tf.io.FixedLenFeature([], tf.int64)
    }


@dataclass(frozen=True)
class Piece:
    """Neighbouring images in one bytes object, which TensorFlow cuts: no Python runs for each image."""

    data: bytes
    starts: np.ndarray  # (n,) int64, bytes from the beginning of `data`
    lengths: np.ndarray  # (n,) int64, bytes
    source: str  # for errors: where it was read
    examples: bool  # whether these are Examples; else JPEGs


def read_pieces(folder: AnyPath, rows: "pd.DataFrame") -> Iterator[Piece]:
    """Reads records in the order of the rows, neighbours in one read.

    Args:
        folder: of the shards.
        rows: file, offset, length (bytes of the frame), as in images.parquet.

    Raises:
        ShelfmarkError: a record does not match its checksum.
    """
    file, offset = rows["file"].to_numpy(dtype=object), rows["offset"].to_numpy(np.int64)
    length = rows["length"].to_numpy(np.int64)
    bounds = _bounds(file, offset, offset + length)
    for first, last in itertools.pairwise(bounds):
        its = slice(first, last)
        begin = int(offset[first])
        shard = folder / str(file[first])
        data = read_range(shard, begin, int(offset[last - 1] + length[last - 1]) - begin)
        starts = offset[its] - begin
        for start, end in zip(starts.tolist(), (starts + length[its]).tolist(), strict=True):
            unframe(data[start:end])  # 1.6 µs of the 12,000 µs that an image takes a core of the backbone
        yield Piece(data, starts + HEAD, length[its] - HEAD - FOOT, str(shard), examples=True)


def _bounds(file: np.ndarray, offset: np.ndarray, end: np.ndarray) -> list[int]:
    """Returns where pieces begin among n records, and n: at a new file, at a gap, at every PIECE bytes."""
    jumps = np.flatnonzero((file[1:] != file[:-1]) | (offset[1:] < end[:-1]) | (offset[1:] > end[:-1] + GAP))
    runs = np.concatenate([[0], jumps + 1, [len(file)]]) if len(file) else np.zeros(1, np.int64)
    begin = np.repeat(offset[runs[:-1]], np.diff(runs))
    part = (end - begin) // PIECE
    cuts = np.flatnonzero(part[1:] != part[:-1]) + 1
    bounds: list[int] = np.union1d(runs, cuts).tolist()
    return bounds


def pieces_of(jpegs: Iterable[bytes], source: str) -> Iterator[Piece]:
    """Yields JPEGs in pieces of PIECE bytes, or up to one image more.

    Args:
        jpegs: strict, as records hold them.
        source: for errors: where they come from.
    """
    held: list[bytes] = []
    size = 0
    for jpeg in jpegs:
        held.append(jpeg)
        size += len(jpeg)
        if size >= PIECE:
            yield _joined(held, source)
            held, size = [], 0
    if held:
        yield _joined(held, source)


def _joined(jpegs: list[bytes], source: str) -> Piece:
    lengths = np.array([len(jpeg) for jpeg in jpegs], np.int64)
    return Piece(b"".join(jpegs), np.cumsum(lengths) - lengths, lengths, source, examples=False)


def unframe(framed: bytes) -> bytes:
    """Returns the Example in a TFRecord frame.

    Raises:
        ShelfmarkError: length or checksums do not match.
    """
    example = framed[HEAD:-FOOT]
    if frame(example) != framed:
        raise ShelfmarkError(
            "a record does not match its checksum; expected an intact shard; "
            "remove the records directory and run again"
        )
    return example


def image_of(example: bytes) -> bytes:
    """Returns the JPEG in an Example that `serialise` wrote, without TensorFlow.

    Raises:
        ShelfmarkError: there is none.
    """
    (features,) = (content for _, content in _contents(example))
    for _, entry in _contents(features):
        key, feature = (content for _, content in _contents(entry))
        if key == b"image":
            (values,) = (content for _, content in _contents(feature))
            return next(content for _, content in _contents(values))
    raise ShelfmarkError(
        "a record has no image; expected one in each; remove the records directory and run again"
    )


def _contents(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields tag and content of each length-delimited field of a message, as `_head` writes them."""
    at = 0
    while at < len(message):
        tag, size, shift, more = message[at], 0, 0, True
        at += 1
        while more:
            size |= (message[at] & 0x7F) << shift
            more = message[at] > 0x7F
            at, shift = at + 1, shift + 7
        yield tag, message[at : at + size]
        at += size
