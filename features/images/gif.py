"""A GIF's blocks: its first frame alone."""

import struct

from features.images.refusal import Limits, check_frames, check_parts, check_pixels

GIF_FRAME, GIF_EXTENSION, GIF_CONTROL, GIF_END = 0x2C, 0x21, b"!\xf9", 0x3B
GIF_DISPOSAL = 0x1C  # bits: what happens to a frame before the next, which is not shown here


def bare_gif(gif: bytes, limits: Limits) -> bytes:
    """Returns the first frame with its control block, which has the transparent colour; counts the others."""
    at = head = 13 + _palette(gif[10])
    parts, frames, control, picture = -(len(gif) // 255), 0, bytearray(), b""  # so that full blocks go free
    while at < len(gif) and gif[at] != GIF_END:
        start, kind = at, gif[at]
        if kind == GIF_FRAME:
            at += 11 + _palette(gif[at + 9])
        elif kind == GIF_EXTENSION:
            at += 2
        while kind in (GIF_FRAME, GIF_EXTENSION) and at < len(gif) and gif[at]:
            at += 1 + gif[at]
            parts += 1
            check_parts(parts)
        at += 1  # past the empty block at the end, or past junk, as Pillow goes
        parts += 1
        check_parts(parts)
        if kind == GIF_FRAME:
            frames += 1
            if not picture:  # Pillow enlarges the screen to hold the frame
                left, top, width, height = struct.unpack_from("<HHHH", gif, start + 1)
                check_pixels(left + width, top + height, limits)
            picture = picture or gif[start:at]
        elif not picture and gif.startswith(GIF_CONTROL, start):
            control = bytearray(gif[start:at])
            control[3:4] = bytes([control[3] & ~GIF_DISPOSAL] if len(control) > 3 else [])
    check_frames(frames)
    return gif[:head] + control + picture + bytes([GIF_END])


def _palette(flags: int) -> int:
    """Returns the size (bytes) of the colour table that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
