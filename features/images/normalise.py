"""A source's image bytes made into a JPEG that every later stage can read: `normalise`.

    JPEG: strict decoding takes it, RGB or grey, upright, within max_side   its own bytes, unchanged
    JPEG (MPO too), PNG, WebP, GIF, BMP, TIFF, AVIF that Pillow reads       first frame, 8-bit sRGB on white,
                                                                            scaled down, upright, JPEG at 95
    anything else                                                           Refused, with one of REASONS

The backbone's side decodes with TensorFlow; nothing here imports it, so ingest's workers do without.
"""

import math
import re
import struct
import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL import features as pillow

from features.images import run_length
from features.images.av1 import TooManyPlaces, coded_sizes
from features.images.colour import changes_colours, to_srgb
from features.images.declared_sizes import declared_sizes
from features.images.tiff import directory_of, entries_of, layout_of

REASONS = ("missing", "empty", "not_an_image", "format_not_allowed", "too_large", "truncated", "undecodable")

# An allow-list: Pillow's EPS reader starts Ghostscript, and its TGA reader takes nearly anything.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if pillow.check("avif") else []))
ALLOWED_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|BM....\0{4}|II[*+]\0|MM\0[*+]"
    + (rb"|....ftypavi[fs]" if "AVIF" in FORMATS else b""),
    re.DOTALL,
)
OTHER_MAGIC = re.compile(
    rb"%!PS|\xc5\xd0\xd3\xc6|8BPS|\0\0[\x01\x02]\0|%PDF-|....ftyp(?:avi|hei|hev|mif1|msf1)"
    rb"|\0\0\0\x0c(?:jP  |JXL )|\xff\x0a|\xff\x4f\xff\x51|II\xbc|P[1-7]\s|DDS |v/1\x01|gimp xcf|qoif"
    rb"|(?:\xef\xbb\xbf)?\s*(?:<[?!][^<]*)*<svg\b",
    re.DOTALL,
)

QUALITY = 95
# As simplejpeg and Pillow name them; CMYK and YCCK go through a profile.
KEPT_COLOURS = {"RGB": "RGB", "YCbCr": "RGB", "Gray": "L"}
PROGRESSIVE = 0xC2
FRAMES = (0xC0, 0xC1, PROGRESSIVE)  # not 0xC3, lossless: simplejpeg takes it, TensorFlow refuses it
PROGRESSIVE_FRAME = b"\xff\xc2\0"  # with the first byte of its length
TABLES = (0xC4, 0xC8, 0xCC)  # markers between SOF0 and SOF15 that are none
MARKER = re.compile(rb"\xff[^\xff\0]")
SCAN = b"\xff\xda\0"  # how a scan begins: a marker and the first byte of a length of 8 to 14
END = b"\xff\xd9"
MAX_SCANS = 100  # ten are usual; one fits in 12 bytes, and a file of them alone takes 40 s a megabyte
MAX_SCANNED = 1_500_000_000  # scans × pixels, 0.8 ns each

# Limits of what a hostile file makes Pillow do in Python, or in C with the square of it, before any pixel.
MAX_PARTS = 50_000  # segments, chunks, blocks or strips: up to 8 µs each; 64 MiB of PNG in 2 KiB chunks pass
MAX_JUNK = 64 << 10  # bytes between the segments of a JPEG: looking for the next takes 20 ns a byte
MAX_FRAMES = 1000  # a turntable has 36 to 72, a minute of film at 15 a second 900
MAX_BOXES = 256 << 10  # bytes of AVIF's directory: in 1 MB, 100,000 items take 20 s; a photo's has under 5 kB

# Bytes for decoding one picture: 50 MP of JPEG, 18 of WebP and AVIF, 25 of TIFF in colour, 75 of the others.
# What comes after takes at most 100 MB more: fresh processes came to 411 MB at the most.
MAX_MEMORY = 300_000_000
# How often Pillow and the decoder have the pixels at once: measured 3.9, 2.8 (but 10 bits take more) and 1.8
# (with strips of 16-bit RGBA 3).
COPIES = {"WEBP": 4, "AVIF": 4, "TIFF": 3}
COUNTED = ("PNG", "WEBP", "AVIF")  # opened, these know their number of frames; the others walk through all

# Of a TIFF's tags: what its pixels are made of, and their profile.
PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 34675),
}
KIND_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # of one value
BLOBS = (347, 34675)  # JPEG's tables and the profile: their values are bytes
GIF_FRAME, GIF_EXTENSION, GIF_CONTROL, GIF_END = 0x2C, 0x21, b"!\xf9", 0x3B
GIF_DISPOSAL = 0x1C  # bits: what becomes of a frame before the next, which nobody looks at
PROFILE = b"ICC_PROFILE\0"  # how its segments begin
FLAT = 2.0  # levels of 255: plain colours stay under 1 in any format, 2,936 photos of groceries are over 36

TILE = 1024  # pixels a side, converted at a time: 50 MP of RGBA are in memory once, not three times
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Both once for the process, because threads share them. Pillow's own limit is a second wall behind ours: it
# raises above twice this, which at a byte a pixel is MAX_MEMORY, whatever ingest.max_pixels allows. And what
# Pillow has to say about damaged metadata would be a line a photo.
Image.MAX_IMAGE_PIXELS = MAX_MEMORY // 2
warnings.filterwarnings("ignore", module=r"PIL\.")


class Refused(Exception):
    """An image that cannot be used.

    Attributes:
        reason: one of REASONS.
        detail: one printable line.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # as given, so that it can be pickled
        self.reason = reason
        line = " ".join(detail.split())[:200]
        self.detail = "".join(letter if letter.isprintable() else "?" for letter in line)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Limits:
    """How large an image may be."""

    max_side: int = 1024  # pixels; larger pictures are scaled down
    max_pixels: int = 50_000_000  # declared width × height, refused above, or sooner by MAX_MEMORY
    max_bytes: int = 64 << 20  # bytes of the source


@dataclass(frozen=True)
class Normalised:
    """A JPEG that strict decoding takes: RGB or grey, upright, within the limits."""

    jpeg: bytes
    kept: bool  # these are the source's own bytes
    width: int  # pixels
    height: int  # pixels
    flat: bool  # a plain colour ("no photo"): the standard deviation of every channel is below FLAT


LIMITS = Limits()


def normalise(data: bytes, limits: Limits = LIMITS) -> Normalised:
    """A JPEG of the image in `data`: its own bytes where they will do, else a new one. Safe in threads.

    Raises:
        Refused: there is no image in `data`, or none that may be read.
        MemoryError: the machine is out of memory, never for what a file says of itself: decoders are kept
            within MAX_MEMORY. Not a Refused, because the same file is accepted where there is memory.
    """
    if not data:
        raise Refused("empty", "no bytes")
    if len(data) > limits.max_bytes:
        raise Refused("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    try:
        return _normalised(data, limits)
    except Refused as refused:
        if refused.reason == "truncated" and (ended := _ended(data)):
            return replace(_normalised(ended, limits), kept=False)
        raise


def _normalised(data: bytes, limits: Limits) -> Normalised:
    try:
        return _keep(data, limits) or _transcode(data, limits)
    except (Refused, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused("too_large", str(error)) from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, KeyError, …
        raise Refused(_reason(data, str(error)), f"{type(error).__name__}: {error}") from error


def _ended(data: bytes) -> bytes | None:
    """A JPEG that lacks its end marker alone, with it; None where more is missing, or it is no JPEG."""
    # A lossless one decoded smaller writes past the end of its pixels.
    if data.endswith(END) or _header(data)[0] not in FRAMES:
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
    """Whether every component has its 64 coefficients to the last bit; libjpeg takes fewer scans."""
    segments = _segments(jpeg)
    frames = [start for marker, start, _ in segments if marker in FRAMES]
    if not frames:
        return False
    missing = {(component, number) for component in _every(jpeg, frames[0] + 9, 3) for number in range(64)}
    for scan in re.finditer(SCAN, jpeg[segments[-1][1] :]):
        at = segments[-1][1] + scan.start() + 4
        components = _every(jpeg, at, 2)
        first, last, bits = jpeg[at + 1 + 2 * len(components) :][:3].ljust(3, b"\xff")
        if bits & 15 == 0:  # the place of the last bit that it brings
            missing -= {(component, number) for component in components for number in range(first, last + 1)}
    return not missing


def _every(jpeg: bytes, at: int, size: int) -> bytes:
    """The first byte, a component's name, of each of the things of `size` bytes that are counted at `at`."""
    return jpeg[at + 1 : at + 1 + size * jpeg[at] : size]


def _keep(data: bytes, limits: Limits) -> Normalised | None:
    """The source's own bytes, or None where they will not do."""
    try:
        frame, exif, profile = _header(data)
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        plain = frame in FRAMES and colour in KEPT_COLOURS and _orientation(exif) == 1
        plain = plain and not (profile and changes_colours(profile, KEPT_COLOURS[colour]))
        scans = data.count(SCAN) if frame == PROGRESSIVE else 1  # counting takes 1 ns a byte
        if plain and scans <= MAX_SCANS and max(width, height) <= limits.max_side:
            # At an eighth, which halves the time and reads every bit all the same: of 560,000 mutated JPEGs
            # it took the 86,000 that decoding at full size takes. To RGB: to grey it looks less closely.
            small = simplejpeg.decode_jpeg(data, min_height=1, min_width=1)
            flat = _is_flat(small) and _is_flat(simplejpeg.decode_jpeg(data))
            return Normalised(data, kept=True, width=width, height=height, flat=flat)
    except (ValueError, KeyError):  # KeyError: a sampling that simplejpeg has no name for
        pass
    return None


def _is_flat(rgb: np.ndarray) -> bool:
    """Whether no channel of (height, width, 3) uint8 varies; two pixels show it of most pictures."""
    height, width, _ = rgb.shape
    apart = int(rgb[0, 0, 0]) - int(rgb[height // 2, width // 2, 0])
    if apart * apart > 2 * FLAT * FLAT * height * width:  # two levels that far apart are variance enough
        return False
    return all(_deviation(rgb[..., channel]) < FLAT for channel in range(3))


def _deviation(levels: np.ndarray) -> float:
    """Standard deviation of uint8; in a third of the time that `std` takes for 23 × 23."""
    values = levels.ravel().astype(np.float32)
    mean = float(values.sum()) / len(values)
    return math.sqrt(max(0.0, float(values @ values) / len(values) - mean * mean))


def _header(jpeg: bytes) -> tuple[int, bytes, bytes]:
    """Frame marker of a JPEG (SOFn: 0xC0 to 0xCF; 0 unless it is a plain one), its Exif and ICC profile."""
    frame, exif, pieces, marker = 0, b"", [], 0
    for marker, start, end in _segments(jpeg):
        if marker == 0xE1 and not exif and jpeg.startswith(b"Exif\0\0", start + 4):
            exif = jpeg[start + 4 : end]
        elif marker == 0xE2 and jpeg.startswith(PROFILE, start + 4):
            pieces.append(jpeg[start + 4 + len(PROFILE) : end])
        elif 0xC0 <= marker <= 0xCF and marker not in TABLES:
            frame = marker
    return (frame if marker == SCAN[1] else 0), exif, _joined(pieces) if pieces else b""


def _joined(pieces: list[bytes]) -> bytes:
    """A profile of its pieces of 64 kB, each with its number and how many there are; b"" where some lack."""
    pieces.sort()
    return b"".join(piece[2:] for piece in pieces) if pieces[0][1:2] == bytes([len(pieces) & 255]) else b""


def _segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """Marker, start and end of each segment; the last is the first scan, and goes to the end of the file.

    Without a scan at the end it is no JPEG, or none that goes on. A little junk in between is passed over.
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
        _check_parts(len(segments))
    return segments


def _check_parts(parts: int) -> None:
    if parts > MAX_PARTS:
        raise Refused("too_large", f"over {MAX_PARTS} segments, chunks, blocks or strips")


def _orientation(exif: bytes) -> int:
    """Exif orientation, 1 to 8; 1 where there is none or it cannot be read.

    Read here, not with Pillow, for three reasons: 2 µs against 13; Pillow raises struct.error on some
    ordinary photos; and it falls back to XMP, whose orientation is left behind, and wrong, when a tool turns
    the pixels and drops Exif. Browsers look at Exif alone.
    """
    for tag, kind, count, value, _ in entries_of(exif.removeprefix(b"Exif\0\0")):
        if (tag, kind, count) == (0x112, 3, 1):  # one SHORT
            return value if value in TURNS else 1
    return 1


def _transcode(data: bytes, limits: Limits) -> Normalised:
    """The first frame of any allowed format as a new JPEG."""
    for width, height in declared_sizes(data):
        _check_pixels(width, height, limits)
        if data.startswith(b"RIFF"):  # libwebp has its canvases from the moment it opens
            _check_memory(width, height, "WEBP", 4 * COPIES["WEBP"])
        if run_length.is_run_length_coded(data):  # decoded before Pillow opens
            _check_memory(width + 3, height, "BMP in run-length code", run_length.COPIES)
    image = _open(data, limits)
    frame, exif, profile = _header(data)
    drafted = frame in FRAMES  # in a lossless one, a draft makes Pillow 12.3 write past the end of its pixels
    _check_size(image, limits, drafted)
    _check_frames(image, data)
    if drafted:
        zoom = 2 * limits.max_side / max(image.size)
        image.draft(None, (max(1, int(image.width * zoom)), max(1, int(image.height * zoom))))
    image.load()  # once: a second load after a failed one can give a black picture
    mode = "CMYK" if image.mode == "CMYK" else Image.getmodebase(image.mode)
    small = to_srgb(_scaled(image, limits.max_side), profile or image.info.get("icc_profile"), mode)
    exif = data if image.format == "TIFF" else exif or image.info.get("exif", b"")
    turn = TURNS.get(_orientation(exif))
    upright = np.asarray(small if turn is None else small.transpose(turn))
    # 4:2:0: seen at 299 px, photos have 36 to 43 dB; the usual kept JPEG, of quality 85, has 34 to 40. 4:4:4
    # has 42 to 49 dB, but 29 to 43 % more bytes, and decoding takes half as long again, every time.
    jpeg = simplejpeg.encode_jpeg(upright, QUALITY, colorspace="RGB", colorsubsampling="420")
    flat = _is_flat(upright[::8, ::8]) and _is_flat(upright)
    return Normalised(jpeg, kept=False, width=upright.shape[1], height=upright.shape[0], flat=flat)


def _check_size(image: Image.Image, limits: Limits, drafted: bool) -> None:
    """Refuses what is declared larger than the limits, in pixels and in bytes; nothing is decoded yet."""
    _check_pixels(image.width, image.height, limits)
    each = (1 if image.mode in ("1", "L", "P") else 4) * COPIES.get(str(image.format), 1)
    if image.format == "JPEG":  # in several scans it has all its coefficients in memory; a draft few pixels
        each = 2 * len(image.getbands()) + (0 if drafted else each)
    _check_memory(image.width, image.height, str(image.format), each)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise Refused("too_large", f"{width} × {height} pixels; the limit is {limits.max_pixels}")


def _check_memory(width: int, height: int, format: str, each: int) -> None:
    """Refuses what takes over MAX_MEMORY at `each` bytes a pixel."""
    if (memory := width * height * each) > MAX_MEMORY:
        size = f"{width} × {height} pixels of {format} take {memory} bytes"
        raise Refused("too_large", f"{size}; the limit is {MAX_MEMORY}")


def _check_frames(image: Image.Image, data: bytes) -> None:
    """Refuses too many frames, and too many scans of a JPEG, or of one within a TIFF."""
    frames = getattr(image, "n_frames", 1) if image.format in COUNTED else 1
    if frames > MAX_FRAMES:
        raise Refused("too_large", f"{frames} frames; the limit is {MAX_FRAMES}")
    scans, limit = data.count(SCAN), min(MAX_SCANS, MAX_SCANNED // (image.width * image.height))
    jpeg = image.format == "JPEG" or (image.format == "TIFF" and PROGRESSIVE_FRAME in data)
    if jpeg and scans > limit:
        raise Refused("too_large", f"{scans} scans; the limit is {limit}")


def _open(data: bytes, limits: Limits) -> Image.Image:
    """The image in `data`, not decoded yet."""
    try:
        return Image.open(BytesIO(_bare(data, limits)), formats=FORMATS)
    except (run_length.TooManyRuns, TooManyPlaces) as error:
        raise Refused("too_large", str(error)) from error
    except UnidentifiedImageError:
        # Pillow's message holds an address in memory: it would make rejects differ from run to run.
        if ALLOWED_MAGIC.match(data):
            raise Refused(_reason(data), "begins like an allowed format; its header cannot be read") from None
        if OTHER_MAGIC.match(data[:4096]):
            raise Refused("format_not_allowed", f"expected one of {', '.join(FORMATS)}") from None
        raise Refused("not_an_image", f"begins with {data[:16]!r}") from None


def _bare(data: bytes, limits: Limits) -> bytes:
    """The image without what its first picture does not need; refused where it has too many parts.

    Pillow walks through all of them in Python and keeps the values: 8 MB of empty comments in a JPEG took
    7 s, 20 MB of comment in a GIF minutes, 16 MB of TIFF whose values overlap 20 s and 0.9 GB. And it does
    not open a JPEG whose Exif or index of further pictures (MPO) is damaged.
    """
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(b"GIF8"):
        return _bare_gif(data, limits)
    if data[:2] in (b"II", b"MM"):
        return _bare_tiff(data, limits)
    if data[4:8] == b"ftyp":
        return _bare_avif(data, limits)
    if data.startswith(b"\x89PNG"):
        _check_chunks(data)
    if run_length.is_run_length_coded(data):
        return run_length.decoded(data)
    return data


def _bare_jpeg(jpeg: bytes) -> bytes:
    """Tables, frame, scans, and of the metadata JFIF and Adobe's colour transform."""
    kept = [
        jpeg[start:end] for marker, start, end in _segments(jpeg) if marker < 0xE0 or marker in (0xE0, 0xEE)
    ]
    return b"\xff\xd8" + b"".join(kept)


def _bare_gif(gif: bytes, limits: Limits) -> bytes:
    """The first frame with its control block, which says what is transparent; the others are counted."""
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
            _check_parts(parts)
        at += 1  # past the empty block at the end, or past junk, as Pillow goes
        parts += 1
        _check_parts(parts)
        if kind == GIF_FRAME:
            frames += 1
            if not picture:  # Pillow makes the screen as large as the frame
                left, top, width, height = struct.unpack_from("<HHHH", gif, start + 1)
                _check_pixels(left + width, top + height, limits)
            picture = picture or gif[start:at]
        elif not picture and gif.startswith(GIF_CONTROL, start):
            control = bytearray(gif[start:at])
            control[3:4] = bytes([control[3] & ~GIF_DISPOSAL] if len(control) > 3 else [])
    if frames > MAX_FRAMES:
        raise Refused("too_large", f"{frames} frames; the limit is {MAX_FRAMES}")
    return gif[:head] + control + picture + bytes([GIF_END])


def _palette(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _bare_tiff(tiff: bytes, limits: Limits) -> bytes:
    """A new directory with PIXEL_TAGS, and no second page; nothing where it is no TIFF."""
    layout = layout_of(tiff)
    if layout is None:
        return b""
    kept, number = {}, {}
    for tag, kind, count, _, entry in entries_of(tiff):
        each = KIND_BYTES[kind] if kind < len(KIND_BYTES) else 0
        if tag not in PIXEL_TAGS or not each or (tag in BLOBS and kind not in (1, 7)):
            continue
        _check_parts(0 if tag in BLOBS else count)
        value = entry[-layout.held :]
        (place,) = layout.offset.unpack(value)
        if count * each > layout.held and place + count * each > len(tiff):  # read out of the new directory
            raise Refused("truncated", f"the value of tag {tag} is past the end")
        kept[tag] = entry
        if count == 1 and each <= layout.held:
            number[tag] = int.from_bytes(value[:each], "little" if layout.order == "<" else "big")
    _check_pixels(number.get(256, 0), number.get(257, 0), limits)
    _check_memory(number.get(322, 0), number.get(323, 0), "TIFF, its tiles,", 4 * COPIES["TIFF"])
    directory = layout.count.pack(len(kept)) + b"".join(kept.values()) + bytes(layout.held)
    start = layout.offset.pack(len(tiff))
    return tiff[: layout.head] + start + tiff[layout.head + len(start) :] + directory


def _bare_avif(avif: bytes, limits: Limits) -> bytes:
    """Without Exif, all of whose values Pillow would load; the orientation is in AVIF's own directory."""
    bare, at, parts, directories = bytearray(avif), 0, 0, 0
    while at + 8 <= len(avif):
        parts += 1
        _check_parts(parts)
        size, name = struct.unpack_from(">I4s", avif, at)
        size = {0: len(avif) - at, 1: int.from_bytes(avif[at + 8 : at + 16])}.get(size, size)
        if name in (b"meta", b"moov"):
            directories += size
            if directories > MAX_BOXES:
                raise Refused("too_large", f"a directory of {directories} bytes; the limit is {MAX_BOXES}")
            for width, height in coded_sizes(avif, at, at + size):
                _check_pixels(width, height, limits)
                _check_memory(width, height, "AVIF", 4 * COPIES["AVIF"])
            bare[at : at + size] = avif[at : at + size].replace(b"Exif", b"none")
        at += max(8, size)
    return bytes(bare)


def _check_chunks(png: bytes) -> None:
    """Refuses a PNG in too many pieces."""
    at, parts = 8, 0
    while at < len(png) and not png.startswith(b"IEND", at + 4):
        parts += 1
        _check_parts(parts)
        at += 12 + int.from_bytes(png[at : at + 4])


def _reason(data: bytes, error: str = "") -> str:
    """Truncated or undecodable; where Pillow does not say, by what the format says about its own end."""
    head, size, layout = data[:4], len(data), layout_of(data)
    cut = (
        "truncated" in error.lower()
        or (head[:2] == b"\xff\xd8" and SCAN not in data)
        or (head == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > size)
        or (layout is not None and directory_of(data, layout) >= size)
    )
    return "truncated" if cut else "undecodable"


def _scaled(image: Image.Image, max_side: int) -> Image.Image:
    """RGB (CMYK stays: it waits for its profile), the longer side at most `max_side`, antialiased.

    A whole factor first, tile by tile, down to about twice the size wanted; then a bicubic filter.
    """
    factor = max(1, max(image.size) // (2 * max_side))
    side = factor * max(1, TILE // factor)
    white = _white(image)
    mode = "CMYK" if image.mode == "CMYK" else "RGB"
    small = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, side):
        for left in range(0, image.width, side):
            tile = image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))
            small.paste(_flat(tile, white).reduce(factor), (left // factor, top // factor))
    small.thumbnail((max_side, max_side), reducing_gap=None)
    return small


def _white(image: Image.Image) -> float:
    """The value that is white: 65535 in 16 bits; in wider numbers, without such a custom, the brightest."""
    if image.mode not in ("I", "F"):
        return 65535.0
    brightest = float(cast(tuple[float, float], image.getextrema())[1])
    if not math.isfinite(brightest):
        raise Refused("undecodable", f"its brightest pixel is {brightest}")
    return max(1.0, brightest)


def _flat(image: Image.Image, white: float) -> Image.Image:
    """RGB without alpha, or CMYK."""
    if image.mode[0] in "IF":
        return _eight_bit(image, white)
    if image.has_transparency_data:
        # Cut-outs: their hidden pixels are mostly black, and on black they grow false edges.
        paper = Image.new("RGB", image.size, "white")
        image = image.convert("RGBA")
        paper.paste(image, mask=image)
        return paper
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB")


def _eight_bit(image: Image.Image, white: float) -> Image.Image:
    """Grey of 16 bits, 32 bits or float as RGB, 0 to `white` as 0 to 255; Pillow's convert clips at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    grey = np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")
