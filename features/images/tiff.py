"""A TIFF's first directory, which says what its pixels are and where; Exif is written in the same way.

II or MM   byte order: little or big endian
classic    42, the directory's offset in 4 bytes; its entries: 2 + 2 + 4 bytes and a value of 4
BigTIFF    43, 8, 0, the offset in 8 bytes;       its entries: 2 + 2 + 8 bytes and a value of 8
entry      tag, kind of number, count, the values where they fit, else their offset
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MOST_ENTRIES = 50_000  # more are not read; a photo has under 100, and 1 µs each is what reading takes


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
    """None where it is no TIFF."""
    return CLASSIC.get(tiff[:4]) or BIG.get(tiff[:8])


def directory_of(tiff: bytes, layout: Layout) -> int:
    """Where the first directory begins; past the end where the file ends before that is said."""
    head = tiff[layout.head : layout.head + layout.offset.size]
    return int(layout.offset.unpack(head)[0]) if len(head) == layout.offset.size else len(tiff)


def entries_of(tiff: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Tag, kind, count, value (as one SHORT) and the bytes of each entry in a TIFF's first directory."""
    layout = layout_of(tiff)
    if layout is None:
        return
    first = directory_of(tiff, layout) + layout.count.size
    if first > len(tiff):
        return
    (entries,) = layout.count.unpack_from(tiff, first - layout.count.size)
    whole = (len(tiff) - first) // layout.size  # the file may end within
    for at in range(first, first + layout.size * min(entries, whole, MOST_ENTRIES), layout.size):
        yield *layout.entry.unpack_from(tiff, at), tiff[at : at + layout.size]
