"""The size that the AV1 inside an AVIF declares, which the decoder allocates: not what its container says.

    iloc    where each item's bytes are, in the file or in the box idat
    stco    where each chunk of a film is (co64: offsets of 8 bytes)
    OBU     a piece of AV1: a byte with its kind, its size, its content; the sequence header has the size

https://aomediacodec.github.io/av1-spec (5.3 to 5.5), ISO/IEC 14496-12 (iloc, stco). A frame of 16,384 ×
16,384 pixels takes 3 kB, and the decoder 1 GB and a second, though the container says 64 × 64.
"""

import re
from collections.abc import Callable, Iterator

from features.images.refusal import Refused

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # kinds of OBU
LISTS = re.compile(b"iloc|stco|co64")
MAX_ITEMS = 2000  # 130 µs each at the most; a grid of a phone's photo has under 100
MAX_OBUS = 4  # read before the first frame: two are usual
HEADER_BYTES = 64  # of a sequence header; 10 are usual


def coded_sizes(avif: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields width and height (pixels) in the sequence header of each picture.

    Args:
        avif: the whole file.
        start: where one of its directories (meta or moov) begins.
        end: and where it ends.

    Raises:
        Refused: over MAX_ITEMS items or chunks.
    """
    for number, at in enumerate(_offsets(avif, start, end)):
        if number == MAX_ITEMS:
            raise Refused("too_large", f"over {MAX_ITEMS} items or chunks")
        for _ in range(MAX_OBUS):
            if at >= len(avif):
                break
            kind, extended, sized = avif[at] >> 3 & 15, avif[at] >> 2 & 1, avif[at] >> 1 & 1
            at += 1 + extended
            size, at = _leb128(avif, at) if sized else (len(avif), at)
            if kind == SEQUENCE_HEADER:
                yield _frame_size(avif[at : at + min(size, HEADER_BYTES)])
            if kind in (FRAME_HEADER, FRAME):
                break
            at += size


def _offsets(avif: bytes, start: int, end: int) -> Iterator[int]:
    """Yields the offsets of the items' bytes, and of a film's chunks."""
    idat = avif.find(b"idat", start, end) + 4
    for box in LISTS.finditer(avif, start, end):
        at = box.end()
        if box[0] == b"iloc":
            yield from _items(avif, at, end, idat)
        else:
            size = 4 if box[0] == b"stco" else 8
            count = int.from_bytes(avif[at + 4 : at + 8])
            for entry in range(at + 8, min(at + 8 + size * count, end), size):
                yield int.from_bytes(avif[entry : entry + size])


def _items(avif: bytes, at: int, end: int, idat: int) -> Iterator[int]:
    version, sizes = int.from_bytes(avif[at : at + 1]), int.from_bytes(avif[at + 4 : at + 6])
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    count, at = int.from_bytes(avif[at + 6 : at + 6 + wide]), at + 6 + wide
    for _ in range(count):
        if at >= end:
            break
        in_idat = version > 0 and avif[at + wide + 1 : at + wide + 2] == b"\1"
        at += wide + (2 if version else 0) + 2
        base, at = int.from_bytes(avif[at : at + base_size]), at + base_size
        extents, at = int.from_bytes(avif[at : at + 2]), at + 2
        first = int.from_bytes(avif[at + index_size : at + index_size + offset_size])
        at += extents * (index_size + offset_size + length_size)
        yield base + first + (idat if in_idat else 0)


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of 7 bits a byte, the low ones first, and where it ends."""
    value = 0
    for index in range(8):
        byte = data[at + index] if at + index < len(data) else 0
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            break
    return value, at + index + 1


def _frame_size(header: bytes) -> tuple[int, int]:
    """Returns width and height in a sequence header; (0, 0) where it is too short."""
    bits = "".join(f"{byte:08b}" for byte in header)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at] or "0", 2)

    read(4)  # profile, still picture
    if read(1):  # reduced
        read(5)
    else:
        delay = _timing(read)
        display_delay = read(1)
        for _ in range(read(5) + 1):  # operating points
            read(12)
            if read(5) > 7:
                read(1)
            if delay and read(1):
                read(2 * delay + 1)
            if display_delay and read(1):
                read(4)
    width_bits, height_bits = read(4) + 1, read(4) + 1
    width, height = read(width_bits) + 1, read(height_bits) + 1
    return (width, height) if at <= len(bits) else (0, 0)


def _timing(read: Callable[[int], int]) -> int:
    """Reads past the timing; returns the bits of each delay of the decoder's model, 0 without one."""
    if not read(1):
        return 0
    read(64)
    if read(1):  # a number with as many zeros before it as it has bits after its first
        zeros = 0
        while zeros < 32 and not read(1):
            zeros += 1
        read(zeros)
    if not read(1):
        return 0
    delay = read(5) + 1
    read(42)
    return delay
