"""A BMP in run-length code, decoded into a plain one, with a limit on the work.

    n v        n pixels of colour v; in RLE4 v holds two colours, in turn
    0 0        end of a row            0 1   end of the picture
    0 2 x y    skip x pixels and go y rows up; skipped pixels have colour 0
    0 n …      n pixels as they stand, padded to 2 bytes

https://learn.microsoft.com/windows/win32/gdi/bitmap-compression. Rows stand from the bottom up. Pillow's
reader takes 1 µs a run and creates all the pixels that a skip passes, however many.
"""

import struct

import numpy as np

from features.images.refusal import Refused

HEADER = struct.Struct("<IiiHHIIiiII")  # 40 bytes, at byte 14
RLE8, RLE4 = 1, 2
BITS = {RLE8: 8, RLE4: 4}  # of a pixel
MAX_RUNS = 800_000  # 1.2 µs each; a photo of a megapixel has 0.7 million
COPIES = 4  # of the pixels that are in memory at once, with Pillow's
HEX = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))


def _colours(packed: bytes) -> bytes:
    """Two colours a byte, the high one first; by hexadecimal digits: 0.7 µs for 128 bytes."""
    return packed.hex().encode().translate(HEX)


# By a run's value: two pixels of it.
PAIRS = {
    8: [bytes((value, value)) for value in range(256)],
    4: [_colours(bytes([value])) for value in range(256)],
}


class Damaged(ValueError):
    """The code is not a picture of the size that its header names."""


def is_run_length_coded(bmp: bytes) -> bool:
    """Whether it is a BMP whose pixels are in run-length code."""
    return bmp.startswith(b"BM") and bmp[14:15] >= b"\x28" and bmp[30:34] in (b"\1\0\0\0", b"\2\0\0\0")


def decoded(bmp: bytes) -> bytes:
    """Returns the same picture as a BMP of 8 bits a pixel, uncompressed.

    Args:
        bmp: whose size the caller has checked.

    Raises:
        Damaged: see there.
        Refused: over MAX_RUNS runs.
        struct.error: its header is cut short.
    """
    size, width, height, planes, bits, compression, _, *density, colours, _ = HEADER.unpack_from(bmp, 14)
    (start,) = struct.unpack_from("<I", bmp, 10)
    if width < 1 or height < 1 or bits != BITS[compression]:
        raise Damaged(f"{width} × {height} pixels of {bits} bits in run-length code")
    colours = min(colours or 256, 16 if compression == RLE4 else 256)
    palette = bmp[14 + size : 14 + size + 4 * colours].ljust(4 * colours, b"\0")
    rows = np.frombuffer(_rows(bmp, start, width, height, bits), np.uint8).reshape(height, width)
    pixels = np.pad(rows, [(0, 0), (0, -width % 4)]).tobytes()
    header = HEADER.pack(40, width, height, planes, 8, 0, len(pixels), *density, colours, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def _rows(bmp: bytes, at: int, width: int, height: int, bits: int) -> bytearray:
    """Returns (height · width) colours, from the bottom row up."""
    rows = bytearray(width * height)
    pairs = PAIRS[bits]
    x = y = row = 0  # row: where the row begins
    for _ in range(MAX_RUNS):
        if at + 1 >= len(bmp):
            if y >= height or (y == height - 1 and x >= width):
                return rows  # some writers leave the end of the picture out
            break
        count, value = bmp[at], bmp[at + 1]
        at += 2
        if count:
            run = (pairs[value] * (count + 1 >> 1))[:count]
        elif value == 0:
            x, y, row = 0, y + 1, row + width
            continue
        elif value == 1:
            return rows
        elif value == 2:
            skipped, up = bmp[at : at + 2].ljust(2, b"\0")
            x, y, row, at = x + skipped, y + up, row + up * width, at + 2
            continue
        else:
            size = -(-value * bits // 8)
            run = _colours(bmp[at : at + size])[:value] if bits == 4 else bmp[at : at + size]
            if len(run) < value:
                break
            at += size + size % 2
        if y >= height:
            raise Damaged(f"more than {height} rows in its run-length code")
        if x < width:  # what goes over the edge is cut off, as Windows does
            rows[row + x : row + min(x + len(run), width)] = run[: width - x]
        x += len(run)
    else:
        raise Refused("too_large", f"over {MAX_RUNS} runs")
    raise Damaged("truncated: the run-length code ends before the picture")
