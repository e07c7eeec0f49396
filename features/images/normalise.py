"""From a source's image bytes to a JPEG that every later stage can read: `normalise`.

    JPEG: strict decoding takes it, RGB or grey, upright, within max_side   its own bytes, unchanged
    JPEG (MPO too), PNG, WebP, GIF, BMP, TIFF, AVIF that Pillow reads       first frame, 8-bit sRGB on white,
                                                                            scaled down, upright, JPEG at 95
    anything else                                                           Refused, with one of REASONS

The backbone's side decodes with TensorFlow; nothing here imports it, so ingest's workers do without.
"""

import math
import re
import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL import features as pillow

from features.images import bmp
from features.images.colour import changes_colours, to_srgb
from features.images.declared_sizes import declared_sizes
from features.images.gif import bare_gif
from features.images.jpeg import (
    FRAMES,
    MAX_SCANNED,
    MAX_SCANS,
    PROGRESSIVE,
    PROGRESSIVE_FRAME,
    SCAN,
    bare_jpeg,
    header_of,
    with_end,
)
from features.images.png_avif import bare_avif, check_chunks
from features.images.refusal import (
    COPIES,
    LIMITS,
    MAX_MEMORY,
    Limits,
    Refused,
    check_frames,
    check_memory,
    check_pixels,
)
from features.images.tiff import bare_tiff, directory_of, layout_of, orientation_of

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
COUNTED = ("PNG", "WEBP", "AVIF")  # opened, these know their number of frames; others read all frames
FLAT = 2.0  # levels of 255: plain colours stay under 1 in any format, 2,936 photos of groceries are over 36

# Below these bytes, and a byte more for so many pixels, a file may be a plain colour: JPEGs of one take
# 600 bytes and a byte for 45 to 65 pixels, with noise of one level one for 20 in quality 90; photos, one
# for 4 to 10.
FEW_BYTES, FEW_PIXELS = 1000, 20

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
# raises above twice this, which at a byte a pixel is MAX_MEMORY, whatever ingest.max_pixels allows. And
# Pillow's warnings about damaged metadata would be a line a photo.
Image.MAX_IMAGE_PIXELS = MAX_MEMORY // 2
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Normalised:
    """A JPEG that strict decoding takes: RGB or grey, upright, within the limits."""

    jpeg: bytes
    kept: bool  # these are the source's own bytes
    width: int  # pixels
    height: int  # pixels
    flat: bool  # a plain colour ("no photo"): the standard deviation of every channel is below FLAT


def normalise(data: bytes, limits: Limits = LIMITS) -> Normalised:
    """Returns a JPEG of the image in `data`: its own bytes where possible, else a new one. Safe in threads.

    Raises:
        Refused: there is no image in `data`, or none that may be read.
        MemoryError: there is no memory left; never for what a file declares: decoders are kept within
            MAX_MEMORY. Not a Refused, because the same file is accepted where there is memory.
    """
    if not data:
        raise Refused("empty", "no bytes")
    if len(data) > limits.max_bytes:
        raise Refused("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    try:
        return _normalised(data, limits)
    except Refused as refused:
        if refused.reason == "truncated" and (ended := with_end(data)):
            return replace(_normalised(ended, limits), kept=False)
        raise


KINDS = (  # how files of each format begin
    ("jpeg", (b"\xff\xd8\xff",)),
    ("png", (b"\x89PNG",)),
    ("gif", (b"GIF8",)),
    ("bmp", (b"BM",)),
    ("tiff", (b"II*", b"II+", b"MM\0*", b"MM\0+")),
)


def kind_of(data: bytes) -> str:
    """Returns the format that the first bytes name: jpeg, png, webp, gif, bmp, tiff, avif; else other.

    >>> kind_of(b"GIF89a"), kind_of(b"")
    ('gif', 'other')
    """
    if data[8:12] == b"WEBP":
        return "webp"
    if data[4:11] == b"ftypavi":
        return "avif"
    return next((kind for kind, begins in KINDS if data.startswith(begins)), "other")


def _normalised(data: bytes, limits: Limits) -> Normalised:
    try:
        return _keep(data, limits) or _transcode(data, limits)
    except (Refused, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused("too_large", str(error)) from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, KeyError, …
        raise Refused(_reason(data, str(error)), f"{type(error).__name__}: {error}") from error


def _keep(data: bytes, limits: Limits) -> Normalised | None:
    """Returns the source's own bytes, or None where they have to be transcoded."""
    try:
        frame, exif, profile = header_of(data)
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        plain = frame in FRAMES and colour in KEPT_COLOURS and orientation_of(exif) == 1
        plain = plain and not (profile and changes_colours(profile, KEPT_COLOURS[colour]))
        scans = data.count(SCAN) if frame == PROGRESSIVE else 1  # counting takes 1 ns a byte
        if plain and scans <= MAX_SCANS and max(width, height) <= limits.max_side:
            # At an eighth, which halves the time and still reads every bit: of 560,000 mutated JPEGs
            # it accepted the same 86,000 as decoding at full size. To RGB: decoding to grey checks less.
            small = simplejpeg.decode_jpeg(data, min_height=1, min_width=1)
            flat = _is_flat(small) and _is_flat(simplejpeg.decode_jpeg(data))
            return Normalised(data, kept=True, width=width, height=height, flat=flat)
    except (ValueError, KeyError):  # KeyError: a sampling that simplejpeg has no name for
        pass
    return None


def describe(data: bytes, limits: Limits = LIMITS) -> Normalised:
    """Returns what `normalise` would, without its JPEG, of an image that it has accepted before.

    The size is read from the header. Only a file with so few bytes that it may be a plain colour is decoded;
    so is a BMP, and one whose header says nothing.

    Raises:
        Refused: the limits are narrower now. MemoryError: as `normalise`.
    """
    if len(data) > limits.max_bytes:
        raise Refused("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    width, height = _header_size(data)
    if not width * height or len(data) < FEW_BYTES + width * height // FEW_PIXELS:
        return replace(normalise(data, limits), jpeg=b"")
    if max(width, height) > limits.max_side:
        check_pixels(width, height, limits)
        scale = limits.max_side / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    return Normalised(b"", kept=False, width=width, height=height, flat=False)


def _header_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header declares them; zeros where it does not, or the format packs nothing."""
    if data.startswith(b"BM"):
        return 0, 0
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            return width, height
        except (ValueError, KeyError):
            return 0, 0
    return next(iter(declared_sizes(data)), (0, 0))


def _is_flat(rgb: np.ndarray) -> bool:
    """Whether no channel of (height, width, 3) uint8 varies; for most pictures, two pixels decide."""
    height, width, _ = rgb.shape
    apart = int(rgb[0, 0, 0]) - int(rgb[height // 2, width // 2, 0])
    if apart * apart > 2 * FLAT * FLAT * height * width:  # two levels that far apart are variance enough
        return False
    return all(_deviation(rgb[..., channel]) < FLAT for channel in range(3))


def _deviation(levels: np.ndarray) -> float:
    """Returns the standard deviation of uint8, in a third of the time that `std` takes for 23 × 23."""
    values = levels.ravel().astype(np.float32)
    mean = float(values.sum()) / len(values)
    return math.sqrt(max(0.0, float(values @ values) / len(values) - mean * mean))


def _transcode(data: bytes, limits: Limits) -> Normalised:
    """Returns the first frame of any allowed format as a new JPEG."""
    for width, height in declared_sizes(data):
        check_pixels(width, height, limits)
        if data.startswith(b"RIFF"):  # libwebp allocates its canvases when it opens
            check_memory(width, height, "WEBP", 4 * COPIES["WEBP"])
        if bmp.is_run_length_coded(data):  # decoded before Pillow opens it
            check_memory(width + 3, height, "BMP in run-length code", bmp.COPIES)
    image = _open(data, limits)
    frame, exif, profile = header_of(data)
    drafted = frame in FRAMES  # in a lossless one, a draft lets Pillow 12.3 write past the end of its pixels
    _check_size(image, limits, drafted)
    _check_frames(image, data)
    if drafted:
        zoom = 2 * limits.max_side / max(image.size)
        image.draft(None, (max(1, int(image.width * zoom)), max(1, int(image.height * zoom))))
    image.load()  # once: a second load after a failed one can give a black picture
    mode = "CMYK" if image.mode == "CMYK" else Image.getmodebase(image.mode)
    small = to_srgb(_scaled(image, limits.max_side), profile or image.info.get("icc_profile"), mode)
    exif = data if image.format == "TIFF" else exif or image.info.get("exif", b"")
    turn = TURNS.get(orientation_of(exif))
    upright = np.asarray(small if turn is None else small.transpose(turn))
    # 4:2:0: at 299 px, photos have 36 to 43 dB; the usual kept JPEG, of quality 85, has 34 to 40. 4:4:4
    # has 42 to 49 dB, but 29 to 43 % more bytes, and decoding takes half as long again, every time.
    jpeg = simplejpeg.encode_jpeg(upright, QUALITY, colorspace="RGB", colorsubsampling="420")
    flat = _is_flat(upright[::8, ::8]) and _is_flat(upright)
    return Normalised(jpeg, kept=False, width=upright.shape[1], height=upright.shape[0], flat=flat)


def _check_size(image: Image.Image, limits: Limits, drafted: bool) -> None:
    """Refuses what is declared larger than the limits, in pixels and in bytes, before decoding."""
    check_pixels(image.width, image.height, limits)
    each = (1 if image.mode in ("1", "L", "P") else 4) * COPIES.get(str(image.format), 1)
    if image.format == "JPEG":  # with several scans all coefficients are in memory; with a draft few pixels
        each = 2 * len(image.getbands()) + (0 if drafted else each)
    check_memory(image.width, image.height, str(image.format), each)


def _check_frames(image: Image.Image, data: bytes) -> None:
    """Refuses too many frames, and too many scans of a JPEG, or of one within a TIFF."""
    check_frames(getattr(image, "n_frames", 1) if image.format in COUNTED else 1)
    scans, limit = data.count(SCAN), min(MAX_SCANS, MAX_SCANNED // (image.width * image.height))
    jpeg = image.format == "JPEG" or (image.format == "TIFF" and PROGRESSIVE_FRAME in data)
    if jpeg and scans > limit:
        raise Refused("too_large", f"{scans} scans; the limit is {limit}")


def _open(data: bytes, limits: Limits) -> Image.Image:
    """Opens the image in `data`, without decoding it."""
    try:
        return Image.open(BytesIO(_bare(data, limits)), formats=FORMATS)
    except UnidentifiedImageError:
        # Pillow's message holds an address in memory: it would make rejects differ from run to run.
        if ALLOWED_MAGIC.match(data):
            raise Refused(_reason(data), "begins like an allowed format; its header cannot be read") from None
        if OTHER_MAGIC.match(data[:4096]):
            raise Refused("format_not_allowed", f"expected one of {', '.join(FORMATS)}") from None
        raise Refused("not_an_image", f"begins with {data[:16]!r}") from None


def _bare(data: bytes, limits: Limits) -> bytes:
    """Returns the image without what its first picture does not need; refuses too many parts.

    Pillow reads all parts in Python and keeps the values: 8 MB of empty comments in a JPEG took
    7 s, 20 MB of comment in a GIF minutes, 16 MB of TIFF whose values overlap 20 s and 0.9 GB. And it does
    not open a JPEG whose Exif or index of further pictures (MPO) is damaged.
    """
    if data.startswith(b"\xff\xd8"):
        return bare_jpeg(data)
    if data.startswith(b"GIF8"):
        return bare_gif(data, limits)
    if data[:2] in (b"II", b"MM"):
        return bare_tiff(data, limits)
    if data[4:8] == b"ftyp":
        return bare_avif(data, limits)
    if data.startswith(b"\x89PNG"):
        check_chunks(data)
    if bmp.is_run_length_coded(data):
        return bmp.decoded(data)
    return data


def _reason(data: bytes, error: str = "") -> str:
    """Returns truncated or undecodable; where Pillow does not say, by the end that the format declares."""
    head, size, layout = data[:4], len(data), layout_of(data)
    cut = (
        "truncated" in error.lower()
        or (head[:2] == b"\xff\xd8" and SCAN not in data)
        or (head == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > size)
        or (layout is not None and directory_of(data, layout) >= size)
    )
    return "truncated" if cut else "undecodable"


def _scaled(image: Image.Image, max_side: int) -> Image.Image:
    """Returns RGB (CMYK stays, for its profile), the longer side at most `max_side`, antialiased.

    First by a whole factor, tile by tile, to about twice the requested size; then with a bicubic filter.
    """
    factor = max(1, max(image.size) // (2 * max_side))
    side = factor * max(1, TILE // factor)
    white = _white(image)
    mode = "CMYK" if image.mode == "CMYK" else "RGB"
    small = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, side):
        for left in range(0, image.width, side):
            tile = image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))
            small.paste(_opaque(tile, white).reduce(factor), (left // factor, top // factor))
    small.thumbnail((max_side, max_side), reducing_gap=None)
    return small


def _white(image: Image.Image) -> float:
    """Returns the value of white: 65535 in 16 bits; in wider numbers, which have no norm, the brightest."""
    if image.mode not in ("I", "F"):
        return 65535.0
    brightest = float(cast(tuple[float, float], image.getextrema())[1])
    if not math.isfinite(brightest):
        raise Refused("undecodable", f"its brightest pixel is {brightest}")
    return max(1.0, brightest)


def _opaque(image: Image.Image, white: float) -> Image.Image:
    """Returns RGB without alpha, on white, or CMYK."""
    if image.mode[0] in "IF":
        return _eight_bit(image, white)
    if image.has_transparency_data:
        # Cut-outs: their hidden pixels are mostly black, and on black they get false edges.
        paper = Image.new("RGB", image.size, "white")
        image = image.convert("RGBA")
        paper.paste(image, mask=image)
        return paper
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB")


def _eight_bit(image: Image.Image, white: float) -> Image.Image:
    """Returns grey of 16, 32 bits or float as RGB, 0 to `white` as 0 to 255; Pillow's convert would clip."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    grey = np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")
