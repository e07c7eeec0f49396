"""The size that an image declares, read from its bytes before any decoder opens it.

Decoders allocate while they open: libwebp two canvases, Pillow's GIF reader what a frame is disposed of to.

    PNG    IHDR at byte 16                        width, height: 4 bytes each
    GIF    screen at byte 6; the first frame      width, height: 2 bytes each
    BMP    byte 18                                width, height: 4 bytes each, signed; 2 in OS/2's
    WebP   VP8X, VP8L or VP8 at byte 12           24, 14 and 14 bits each
    AVIF   every ispe in its directory            4 bytes each
    TIFF   tags 256, 257; tiles: 322, 323         see features/images/tiff.py, which reads its directory
    JPEG   simplejpeg and Pillow read its header alone
"""

import re
import struct

ISPE = re.compile(rb"ispe.{4}(.{4})(.{4})", re.DOTALL)


def declared_sizes(data: bytes) -> list[tuple[int, int]]:
    """Returns the widths and heights (pixels) that the header of an image names; [] for other formats.

    >>> declared_sizes(b"GIF89a" + struct.pack("<HH", 640, 480) + bytes(9))
    [(640, 480)]
    """
    try:
        if data.startswith(b"\x89PNG"):
            return [struct.unpack_from(">II", data, 16)]
        if data.startswith(b"GIF8"):
            return [struct.unpack_from("<HH", data, 6)]
        if data.startswith(b"BM"):
            return [_bmp(data)]
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if data[4:8] == b"ftyp":
            return [(int.from_bytes(width), int.from_bytes(height)) for width, height in ISPE.findall(data)]
    except struct.error:
        pass  # the file ends within: opening it reports that
    return []


def _bmp(bmp: bytes) -> tuple[int, int]:
    if bmp[14:18] == b"\x0c\0\0\0":
        width, height = struct.unpack_from("<HH", bmp, 18)
    else:
        width, height = struct.unpack_from("<ii", bmp, 18)
    return abs(width), abs(height)  # negative: the rows stand from top to bottom


def _webp(webp: bytes) -> list[tuple[int, int]]:
    kind, at = webp[12:16], 20
    if kind == b"VP8X":
        return [(_number(webp, at + 4, 3) + 1, _number(webp, at + 7, 3) + 1)]
    if kind == b"VP8L":
        bits = _number(webp, at + 1, 4)
        return [((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)]
    if kind == b"VP8 ":
        return [(_number(webp, at + 6, 2) & 0x3FFF, _number(webp, at + 8, 2) & 0x3FFF)]
    return []


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
