"""PNG's chunks and AVIF's boxes, counted; AVIF without its Exif."""

import struct

from features.images.av1 import coded_sizes
from features.images.refusal import COPIES, Limits, Refused, check_memory, check_parts, check_pixels

MAX_BOXES = 256 << 10  # bytes of AVIF's directory: in 1 MB, 100,000 items take 20 s; a photo's has under 5 kB


def check_chunks(png: bytes) -> None:
    """Refuses a PNG of too many chunks."""
    at, parts = 8, 0
    while at < len(png) and not png.startswith(b"IEND", at + 4):
        parts += 1
        check_parts(parts)
        at += 12 + int.from_bytes(png[at : at + 4])


def bare_avif(avif: bytes, limits: Limits) -> bytes:
    """Returns an AVIF without Exif, which Pillow would load whole; AVIF has its own orientation."""
    bare, at, parts, directories = bytearray(avif), 0, 0, 0
    while at + 8 <= len(avif):
        parts += 1
        check_parts(parts)
        size, name = struct.unpack_from(">I4s", avif, at)
        size = {0: len(avif) - at, 1: int.from_bytes(avif[at + 8 : at + 16])}.get(size, size)
        if name in (b"meta", b"moov"):
            directories += size
            if directories > MAX_BOXES:
                raise Refused("too_large", f"a directory of {directories} bytes; the limit is {MAX_BOXES}")
            for width, height in coded_sizes(avif, at, at + size):
                check_pixels(width, height, limits)
                check_memory(width, height, "AVIF", 4 * COPIES["AVIF"])
            bare[at : at + size] = avif[at : at + size].replace(b"Exif", b"none")
        at += max(8, size)
    return bytes(bare)
