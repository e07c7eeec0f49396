"""A BSON file as Kaggle gives Cdiscount's catalogue: {_id, category_id, imgs: [{picture}]}.

A document without category_id is an uncategorized product. A unit is a range of bytes.
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from features.errors import ShelfmarkError
from features.product import Paths, part_named
from features.storage.paths import Place, place
from pipeline.sources.cells import cell_text
from pipeline.sources.image import Segment, SourceImage, changed, digest_of_stats, path_text, stat_of

BSON_MAX = 256 * 2**20  # bytes; a longer document is a sign that the walk is lost
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

    path: Place
    may_be_empty: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name

    def digest(self) -> str:
        """See Source."""
        return digest_of_stats([stat_of(self.path, self.name)])

    def paths(self) -> Paths:
        """See Source."""
        return Paths()

    def ignored(self) -> int:
        """See Source."""
        return 0

    def units(self, work: Place, unit_bytes: int, unit_images: int, renamed: object = None) -> list[Segment]:
        """See Source."""
        units, start, end = [], 0, 0
        for end in _document_ends(self.path):
            if end - start >= unit_bytes:
                units.append(Segment(path_text(self.path), start, end))
                start = end
        if start < end:
            units.append(Segment(path_text(self.path), start, end))
        if not units and not self.may_be_empty:
            raise ShelfmarkError(f"{self.path}: empty; expected BSON documents; fetch the file again")
        return units


def _document_ends(path: Place) -> Iterator[int]:
    """Ends of the documents, walked by their length prefixes alone."""
    with path.open("rb") as file:
        position, size = 0, path.stat().st_size
        while position < size:
            file.seek(position)
            prefix = file.read(4)
            length = struct.unpack("<i", prefix)[0] if len(prefix) == 4 else BSON_MAX
            if not 5 <= length <= BSON_MAX:
                raise ShelfmarkError(
                    f"{path}: no BSON document at byte {position}; the file is damaged; fetch it again"
                )
            if position + length > size:
                raise ShelfmarkError(
                    f"{path}: truncated: the document at byte {position} needs {length} bytes, "
                    f"{size - position} are there; fetch the file again"
                )
            position += length
            yield position


def read_bson(unit: Segment) -> Iterator[SourceImage]:
    """The images of a unit; a document that cannot be read comes as one reject, `bad_document`."""
    from bson.errors import BSONError

    with place(unit.file).open("rb") as file:
        for position, raw in _documents(file, unit):
            try:
                yield from _images_of(_decoded(raw), raw, unit.file, position)
            except (BSONError, KeyError, TypeError, ValueError, IndexError, struct.error) as error:
                detail = f"document at byte {position}: {type(error).__name__}: {error}"[:200]
                yield SourceImage("", file=unit.file, offset=position, reason="bad_document", detail=detail)


def _decoded(raw: bytes) -> dict[str, Any]:
    """A document's fields; where one cannot be decoded, only those in use, whatever stands in the others."""
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
def _options(letters: str) -> Any:
    """Dates past the year 9999 are numbers; letters that are no UTF-8 are an error, or replaced by U+FFFD."""
    from bson.codec_options import CodecOptions, DatetimeConversion

    return CodecOptions(
        datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler=letters
    )


def _only(raw: bytes, names: tuple[str, ...]) -> bytes:
    """The document with these of its fields alone; ValueError, struct.error, … where it is damaged."""
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
    """Length of the value of that type which begins at `at`."""
    if kind in FIXED:
        return FIXED[kind]
    if kind == REGEX:
        return raw.index(b"\0", raw.index(b"\0", at) + 1) + 1 - at
    (length,) = struct.unpack_from("<i", raw, at)
    extra = {SUBTYPED: 5, **dict.fromkeys(STRINGS, 4), **dict.fromkeys(DOCUMENTS, 0), 0x0C: 16}.get(kind)
    if extra is None or length < 0:
        raise ValueError(f"a value of type {kind:#04x}, {length} bytes")
    return int(length) + extra


def _documents(file: BinaryIO, unit: Segment) -> Iterator[tuple[int, bytes]]:
    """The documents of a unit and where they stand."""
    position = unit.start
    file.seek(position)
    while position < unit.stop:
        prefix = file.read(4)
        length = int.from_bytes(prefix, "little")
        raw = prefix + file.read(length - 4) if 5 <= length <= BSON_MAX else b""
        if len(raw) != length:
            raise changed(unit.file)
        yield position, raw
        position += length


def _images_of(document: dict[str, Any], raw: bytes, file: str, position: int) -> list[SourceImage]:
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
        # The decoder does not tell where a value stands; equal pictures are found one after the other.
        # Looking for the whole picture takes 10 µs, for its beginning 1 µs.
        cursor = raw.index(picture[:64], cursor)
        if not raw.startswith(picture, cursor):
            cursor = raw.index(picture, cursor)
        images.append(SourceImage(*product, position + cursor, picture))
        cursor += len(picture)
    return images or [SourceImage(*product, reason="no_image")]
