"""A BSON file as Kaggle gives Cdiscount's catalogue: {_id, category_id, imgs: [{picture}]}.

A document without category_id is an uncategorized product. A segment is a range of bytes.
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from features.errors import ShelfmarkError
from features.product import CategoryPaths, part_named
from features.storage.paths import AnyPath, any_path
from pipeline.sources.cells import cell_text
from pipeline.sources.image import Segment, SourceImage, changed, digest_of_stats, path_text, stat_of

if TYPE_CHECKING:
    from bson.codec_options import CodecOptions

Document = dict[str, Any]  # as bson decodes it

BSON_MAX = 256 * 2**20  # bytes; a larger length is taken for damage
USED = ("_id", "category_id", "split", "seller", "imgs")
# Bytes of a value by its type, https://bsonspec.org/spec.html; the others begin with their length.
FIXED = {
    0x01: 8,
    0x06: 0,
    0x07: 12,
    0x08: 1,
    0x09: 8,
    0x0A: 0,
    0x10: 4,
    0x11: 8,
    0x12: 8,
    0x13: 16,
    0x7F: 0,
    0xFF: 0,
}
STRINGS, SUBTYPED, DOCUMENTS, REGEX = (0x02, 0x0D, 0x0E), 0x05, (0x03, 0x04, 0x0F), 0x0B


@dataclass
class BsonFile:
    """A BSON file; see Source."""

    path: AnyPath
    may_be_empty: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name

    def digest(self) -> str:
        """See Source."""
        return digest_of_stats([stat_of(self.path, self.name)])

    def paths(self) -> CategoryPaths:
        """See Source."""
        return CategoryPaths()

    def ignored(self) -> int:
        """See Source."""
        return 0

    def segments(
        self, work: AnyPath, segment_bytes: int, segment_images: int, renamed: object = None
    ) -> list[Segment]:
        """See Source."""
        segments, start, end = [], 0, 0
        for end in _document_ends(self.path):
            if end - start >= segment_bytes:
                segments.append(Segment(path_text(self.path), start, end))
                start = end
        if start < end:
            segments.append(Segment(path_text(self.path), start, end))
        if not segments and not self.may_be_empty:
            raise ShelfmarkError(f"{self.path}: empty; expected BSON documents; download the file again")
        return segments


def _document_ends(path: AnyPath) -> Iterator[int]:
    """Where the documents end; only their length prefixes are read."""
    with path.open("rb") as file:
        position, size = 0, path.stat().st_size
        while position < size:
            file.seek(position)
            prefix = file.read(4)
            length = struct.unpack("<i", prefix)[0] if len(prefix) == 4 else BSON_MAX
            if not 5 <= length <= BSON_MAX:
                raise ShelfmarkError(
                    f"{path}: no BSON document at byte {position}; expected one document after the other; "
                    "the file is damaged, download it again"
                )
            if position + length > size:
                raise ShelfmarkError(
                    f"{path}: truncated: the document at byte {position} needs {length} bytes, "
                    f"but {size - position} are left; expected a whole file; download it again"
                )
            position += length
            yield position


def read_bson(segment: Segment) -> Iterator[SourceImage]:
    """The images of a segment; a document that cannot be read becomes one reject, `bad_document`."""
    from bson.errors import BSONError

    with any_path(segment.file).open("rb") as file:
        for position, raw in _documents(file, segment):
            try:
                yield from _images_of(_decoded(raw), raw, segment.file, position)
            except (BSONError, KeyError, TypeError, ValueError, IndexError, struct.error) as error:
                detail = f"document at byte {position}: {type(error).__name__}: {error}"[:200]
                yield SourceImage(
                    "", file=segment.file, offset=position, reason="bad_document", detail=detail
                )


def _decoded(raw: bytes) -> Document:
    """A document's fields; where one of them cannot be decoded, only those in use."""
    import bson
    from bson.errors import BSONError

    try:
        return bson.decode(raw, _options("strict"))
    except (BSONError, ValueError):
        document = bson.decode(_only(raw, USED), _options("replace"))
        if any("\ufffd" in cell_text(document.get(name)) for name in USED[:4]):
            raise
        return document


@functools.cache
def _options(letters: str) -> "CodecOptions[Document]":
    """How bson decodes: dates past the year 9999 as numbers; letters that are no UTF-8 as `letters` says.

    Args:
        letters: "strict" or "replace", by U+FFFD.
    """
    from bson.codec_options import CodecOptions, DatetimeConversion

    return CodecOptions(
        datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler=letters
    )


def _only(raw: bytes, names: tuple[str, ...]) -> bytes:
    """The document with only these of its fields; ValueError, struct.error, … where it is damaged."""
    kept, at = [], 4
    while raw[at]:
        end = raw.index(b"\0", at + 1)
        stop = end + 1 + _value_bytes(raw, raw[at], end + 1)
        if raw[at + 1 : end].decode(errors="replace") in names:
            kept.append(raw[at:stop])
        at = stop
    body = b"".join(kept) + b"\0"
    return struct.pack("<i", 4 + len(body)) + body


def _value_bytes(raw: bytes, kind: int, at: int) -> int:
    """Length (bytes) of the value of that type which begins at `at`."""
    if kind in FIXED:
        return FIXED[kind]
    if kind == REGEX:
        return raw.index(b"\0", raw.index(b"\0", at) + 1) + 1 - at
    (length,) = struct.unpack_from("<i", raw, at)
    extra = {SUBTYPED: 5, **dict.fromkeys(STRINGS, 4), **dict.fromkeys(DOCUMENTS, 0), 0x0C: 16}.get(kind)
    if extra is None or length < 0:
        raise ValueError(f"a value of type {kind:#04x}, {length} bytes")
    return int(length) + extra


def _documents(file: BinaryIO, segment: Segment) -> Iterator[tuple[int, bytes]]:
    """Position (byte) and bytes of the documents of a segment."""
    position = segment.start
    file.seek(position)
    while position < segment.stop:
        prefix = file.read(4)
        length = int.from_bytes(prefix, "little")
        raw = prefix + file.read(length - 4) if 5 <= length <= BSON_MAX else b""
        if len(raw) != length:
            raise changed(segment.file)
        yield position, raw
        position += length


def _images_of(document: Document, raw: bytes, file: str, position: int) -> list[SourceImage]:
    product_id, category, split, seller = (cell_text(document.get(name)) for name in USED[:4])
    part = part_named(split)
    if not product_id or part is None:
        raise ValueError(f"_id {product_id!r}, split {split!r}; expected an id, and a part or nothing")
    product = (product_id, category, part, seller, file)
    images, cursor = [], 0
    for entry in document.get("imgs") or []:
        picture = entry.get("picture") if isinstance(entry, dict) else None
        if not isinstance(picture, bytes):
            images.append(SourceImage(*product, reason="missing", detail="no picture in the document"))
            continue
        # The decoder does not say where a value begins; equal pictures are found one after the other.
        # To search for the whole picture takes 10 µs, for its beginning 1 µs.
        cursor = raw.index(picture[:64], cursor)
        if not raw.startswith(picture, cursor):
            cursor = raw.index(picture, cursor)
        images.append(SourceImage(*product, position + cursor, picture))
        cursor += len(picture)
    return images or [SourceImage(*product, reason="no_image")]
