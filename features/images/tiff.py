"""A TIFF's first directory, which says what its pixels are and where; Exif is written in the same way.

II or MM   byte order: little or big endian
classic    42, the directory's offset in 4 bytes; its entries: 2 + 2 + 4 bytes and a value of 4
BigTIFF    43, 8, 0, the offset in 8 bytes;       its entries: 2 + 2 + 8 bytes and a value of 8
entry      tag, kind of number, count, the values where they fit, else their offset
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from features.images.refusal import COPIES, Limits, Refused, check_memory, check_parts, check_pixels

MAX_ENTRIES = 50_000  # more are not read; a photo has under 100, and 1 µs each is what reading takes

# Of a TIFF's tags: what its pixels are made of, and their profile.
PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 34675),
}
KIND_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # of one value
BLOBS = (347, 34675)  # JPEG's tables and the profile: their values are bytes


@dataclass(frozen=True)
class Layout:
    """How a TIFF writes its numbers."""

    order: str  # of bytes, as `struct` names it
    head: int  # bytes before the first directory's offset
    offset: struct.Struct
    count: struct.Struct  # of the entries in a directory
    entry: struct.Struct  # tag, kind, count, and the value as one SHORT
    held: int  # bytes of a value that stands in its entry
    size: int  # bytes of an entry


def _classic(order: str) -> Layout:
    offset, count, entry = (struct.Struct(order + kinds) for kinds in ("I", "H", "HHIH"))
    return Layout(order, 4, offset, count, entry, held=4, size=12)


def _big(order: str) -> Layout:
    offset, count, entry = (struct.Struct(order + kinds) for kinds in ("Q", "Q", "HHQH"))
    return Layout(order, 8, offset, count, entry, held=8, size=20)


CLASSIC = {b"II*\0": _classic("<"), b"MM\0*": _classic(">")}
BIG = {b"II+\0\x08\0\0\0": _big("<"), b"MM\0+\0\x08\0\0": _big(">")}


def layout_of(tiff: bytes) -> Layout | None:
    """Returns how a TIFF writes its numbers; None where it is no TIFF."""
    return CLASSIC.get(tiff[:4]) or BIG.get(tiff[:8])


def directory_of(tiff: bytes, layout: Layout) -> int:
    """Returns where the first directory begins; the end of the file where the file ends before its offset."""
    head = tiff[layout.head : layout.head + layout.offset.size]
    return int(layout.offset.unpack(head)[0]) if len(head) == layout.offset.size else len(tiff)


def entries_of(tiff: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yields tag, kind, count, value (as one SHORT) and bytes of each entry in the first directory."""
    layout = layout_of(tiff)
    if layout is None:
        return
    first = directory_of(tiff, layout) + layout.count.size
    if first > len(tiff):
        return
    (entries,) = layout.count.unpack_from(tiff, first - layout.count.size)
    whole = (len(tiff) - first) // layout.size  # the file may end within
    for at in range(first, first + layout.size * min(entries, whole, MAX_ENTRIES), layout.size):
        yield *layout.entry.unpack_from(tiff, at), tiff[at : at + layout.size]


def orientation_of(exif: bytes) -> int:
    """Returns the Exif orientation, 1 to 8; 1 where there is none or it cannot be read.

    Read here, not with Pillow, for three reasons: 2 µs against 13; Pillow raises struct.error on some
    ordinary photos; and it falls back to XMP, whose orientation stays, and is then wrong, when a tool turns
    the pixels and drops Exif. Browsers read Exif alone.
    """
    for tag, kind, count, value, _ in entries_of(exif.removeprefix(b"Exif\0\0")):
        if (tag, kind, count) == (0x112, 3, 1):  # one SHORT
            return value if 1 <= value <= 8 else 1
    return 1


def bare_tiff(tiff: bytes, limits: Limits) -> bytes:
    """Returns the TIFF with a directory of PIXEL_TAGS alone and no second page; b"" for other files."""
    layout = layout_of(tiff)
    if layout is None:
        return b""
    kept, number = {}, {}
    for tag, kind, count, _, entry in entries_of(tiff):
        each = KIND_BYTES[kind] if kind < len(KIND_BYTES) else 0
        if tag not in PIXEL_TAGS or not each or (tag in BLOBS and kind not in (1, 7)):
            continue
        check_parts(0 if tag in BLOBS else count)
        value = entry[-layout.held :]
        (offset,) = layout.offset.unpack(value)
        if count * each > layout.held and offset + count * each > len(
            tiff
        ):  # the decoder would read into the new directory
            raise Refused("truncated", f"the value of tag {tag} is past the end")
        kept[tag] = entry
        if count == 1 and each <= layout.held:
            number[tag] = int.from_bytes(value[:each], "little" if layout.order == "<" else "big")
    check_pixels(number.get(256, 0), number.get(257, 0), limits)
    check_memory(number.get(322, 0), number.get(323, 0), "TIFF, its tiles,", 4 * COPIES["TIFF"])
    directory = layout.count.pack(len(kept)) + b"".join(kept.values()) + bytes(layout.held)
    start = layout.offset.pack(len(tiff))
    return tiff[: layout.head] + start + tiff[layout.head + len(start) :] + directory
