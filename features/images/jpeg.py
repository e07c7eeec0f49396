"""A JPEG's segments: its frame, Exif, profile and scans, read from its bytes."""

import re

import simplejpeg

from features.images.refusal import check_parts

PROGRESSIVE = 0xC2
FRAMES = (0xC0, 0xC1, PROGRESSIVE)  # not 0xC3, lossless: simplejpeg takes it, TensorFlow refuses it
PROGRESSIVE_FRAME = b"\xff\xc2\0"  # with the first byte of its length
TABLES = (0xC4, 0xC8, 0xCC)  # markers between SOF0 and SOF15 that are not frames
MARKER = re.compile(rb"\xff[^\xff\0]")
SCAN = b"\xff\xda\0"  # how a scan begins: a marker and the first byte of a length of 8 to 14
END = b"\xff\xd9"
MAX_SCANS = 100  # ten are usual; one fits in 12 bytes, and a file of them alone takes 40 s a megabyte
MAX_SCANNED = 1_500_000_000  # scans × pixels, 0.8 ns each
MAX_JUNK = 64 << 10  # bytes between the segments of a JPEG: searching for the next takes 20 ns a byte
PROFILE = b"ICC_PROFILE\0"  # how its segments begin


def with_end(data: bytes) -> bytes | None:
    """Returns a JPEG with its end marker, where only that is missing; None for anything else."""
    # A lossless one decoded smaller writes past the end of its pixels.
    if data.endswith(END) or header_of(data)[0] not in FRAMES:
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        # Its scans are decoded three times in all: before, here and after.
        if data.count(SCAN) * width * height > MAX_SCANNED // 3 or not _has_every_scan(data):
            return None
        # Strict: where the scan ended before its pixels did, libjpeg warns, and simplejpeg refuses.
        simplejpeg.decode_jpeg(data + END, min_height=1, min_width=1)
    except (ValueError, KeyError, IndexError):  # IndexError: cut within the header of a scan
        return None
    return data + END


def _has_every_scan(jpeg: bytes) -> bool:
    """Whether every component has its 64 coefficients to the last bit; libjpeg accepts fewer."""
    segments = segments_of(jpeg)
    frames = [start for marker, start, _ in segments if marker in FRAMES]
    if not frames:
        return False
    missing = {(component, number) for component in _every(jpeg, frames[0] + 9, 3) for number in range(64)}
    for scan in re.finditer(SCAN, jpeg[segments[-1][1] :]):
        at = segments[-1][1] + scan.start() + 4
        components = _every(jpeg, at, 2)
        first, last, bits = jpeg[at + 1 + 2 * len(components) :][:3].ljust(3, b"\xff")
        if bits & 15 == 0:  # position of the lowest bit that it adds
            missing -= {(component, number) for component in components for number in range(first, last + 1)}
    return not missing


def _every(jpeg: bytes, at: int, size: int) -> bytes:
    """Returns the first byte, a component's name, of each entry of `size` bytes; `at`: their count."""
    return jpeg[at + 1 : at + 1 + size * jpeg[at] : size]


def header_of(jpeg: bytes) -> tuple[int, bytes, bytes]:
    """Returns frame marker (SOFn: 0xC0 to 0xCF; 0 where no scan follows), Exif and ICC profile."""
    frame, exif, pieces, marker = 0, b"", [], 0
    for marker, start, end in segments_of(jpeg):
        if marker == 0xE1 and not exif and jpeg.startswith(b"Exif\0\0", start + 4):
            exif = jpeg[start + 4 : end]
        elif marker == 0xE2 and jpeg.startswith(PROFILE, start + 4):
            pieces.append(jpeg[start + 4 + len(PROFILE) : end])
        elif 0xC0 <= marker <= 0xCF and marker not in TABLES:
            frame = marker
    return (frame if marker == SCAN[1] else 0), exif, _joined(pieces) if pieces else b""


def _joined(pieces: list[bytes]) -> bytes:
    """Returns a profile from its pieces of 64 kB, each with its number and the count; b"" where some lack."""
    pieces.sort()
    return b"".join(piece[2:] for piece in pieces) if pieces[0][1:2] == bytes([len(pieces) & 255]) else b""


def segments_of(jpeg: bytes) -> list[tuple[int, int, int]]:
    """Returns marker, start and end of each segment; the last is the first scan, up to the end of the file.

    Where the last one is no scan, it is no JPEG, or a broken one. Up to MAX_JUNK bytes between are skipped.
    """
    segments: list[tuple[int, int, int]] = []
    at = 2 if jpeg.startswith(b"\xff\xd8") else len(jpeg)
    junk = MAX_JUNK
    while True:
        marker = jpeg[at + 1] if jpeg.startswith(b"\xff", at, len(jpeg) - 1) else 0
        if marker in (0, 0xFF):
            found = MARKER.search(jpeg, at, at + junk)
            if not found:
                break
            junk -= found.start() - at
            at, marker = found.start(), found[0][1]
        start, at = at, at + 2
        if marker == SCAN[1]:
            return [*segments, (marker, start, len(jpeg))]
        if not (0xC0 <= marker < 0xD8 or marker > 0xD9):
            break
        if not 0xD0 <= marker <= 0xD7:  # these have no length
            at += int.from_bytes(jpeg[at : at + 2])
        segments.append((marker, start, at))
        check_parts(len(segments))
    return segments


def bare_jpeg(jpeg: bytes) -> bytes:
    """Returns tables, frame and scans, with no metadata but JFIF and Adobe's colour transform."""
    kept = [
        jpeg[start:end] for marker, start, end in segments_of(jpeg) if marker < 0xE0 or marker in (0xE0, 0xEE)
    ]
    return b"\xff\xd8" + b"".join(kept)
