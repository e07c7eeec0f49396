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
from dataclasses import dataclass
from io import BytesIO
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL import features as pillow

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
KEPT_COLOURS = ("RGB", "YCbCr", "Gray")  # as simplejpeg names them; CMYK and YCCK go through a profile
PROGRESSIVE = 0xC2
FRAMES = (0xC0, 0xC1, PROGRESSIVE)  # not 0xC3, lossless: simplejpeg takes it, TensorFlow refuses it
# Exif, and the index of an MPO: made comments, because Pillow does not open a JPEG in which they are damaged.
METADATA = re.compile(rb"\xff[\xe1\xe2](..(?:Exif|MPF)\0)", re.DOTALL)
SCAN = b"\xff\xda\0"  # how a scan begins: a marker and the first byte of a length of 8 to 14
MAX_SCANS = 100  # ten are usual; 0.5 ms a scan at 1 MP, and one fits in 12 bytes: 1 MB would take 40 s
TILE = 2048  # pixels a side, converted at a time: 50 MP of RGBA are in memory once, not three times
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Both once for the process, because threads share them: our own limit replaces Pillow's, which only warns up
# to 179 MP; and what Pillow has to say about damaged metadata would be a line a photo.
Image.MAX_IMAGE_PIXELS = None
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
    max_pixels: int = 50_000_000  # declared width × height, refused above; at worst (WebP) they take 0.8 GB
    max_bytes: int = 64 << 20  # bytes of the source


@dataclass(frozen=True)
class Normalised:
    """A JPEG that strict decoding takes: RGB or grey, upright, within the limits."""

    jpeg: bytes
    kept: bool  # these are the source's own bytes
    width: int  # pixels
    height: int  # pixels


LIMITS = Limits()


def normalise(data: bytes, limits: Limits = LIMITS) -> Normalised:
    """A JPEG of the image in `data`: its own bytes where they will do, else a new one. Safe in threads.

    Raises:
        Refused: there is no image in `data`, or none that may be read, and nothing else (but MemoryError).
    """
    if not data:
        raise Refused("empty", "no bytes")
    if len(data) > limits.max_bytes:
        raise Refused("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    try:
        return _keep(data, limits) or _transcode(data, limits)
    except (Refused, MemoryError):
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, KeyError, …
        raise Refused(_reason(data, str(error)), f"{type(error).__name__}: {error}") from error


def _keep(data: bytes, limits: Limits) -> Normalised | None:
    """The source's own bytes, or None where they will not do."""
    try:
        frame, exif = _header(data)
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        plain = frame in FRAMES and colour in KEPT_COLOURS and _orientation(exif) == 1
        scans = data.count(SCAN) if frame == PROGRESSIVE else 1  # counting takes 1 ns a byte
        if plain and scans <= MAX_SCANS and max(width, height) <= limits.max_side:
            # The whole of it, and to RGB: decoding to grey is a third faster but looks less closely.
            simplejpeg.decode_jpeg(data)
            return Normalised(data, kept=True, width=width, height=height)
    except ValueError:
        pass
    return None


def _header(jpeg: bytes) -> tuple[int, bytes]:
    """Frame marker (SOFn: 0xC0 to 0xCF; 0 unless a plain JPEG) and Exif (b"" without) of a JPEG."""
    at, frame, exif = 2 if jpeg.startswith(b"\xff\xd8") else len(jpeg), 0, b""
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == SCAN[1]:
            return frame, exif
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:  # these have no length
            break
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if marker == 0xE1 and not exif and jpeg.startswith(b"Exif\0\0", at + 4):
            exif = jpeg[at + 4 : end]
        elif marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # these three hold tables
            frame = marker
        at = end
    return 0, exif


def _orientation(exif: bytes) -> int:
    """Exif orientation, 1 to 8; 1 where there is none or it cannot be read.

    Read here, not with Pillow, for three reasons: 2 µs against 13; Pillow raises struct.error on some
    ordinary photos; and it falls back to XMP, whose orientation is left behind, and wrong, when a tool turns
    the pixels and drops Exif. Browsers look at Exif alone.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if (tag, kind, count) == (0x112, 3, 1):  # one SHORT
                return value if value in TURNS else 1
    except struct.error:
        pass
    return 1


def _transcode(data: bytes, limits: Limits) -> Normalised:
    """The first frame of any allowed format as a new JPEG."""
    image = _open(data)
    if image.width * image.height > limits.max_pixels:
        raise Refused("too_large", f"{image.width} × {image.height} pixels; the limit is {limits.max_pixels}")
    if image.format == "JPEG" and data.count(SCAN) > MAX_SCANS:
        raise Refused("too_large", f"{data.count(SCAN)} scans; the limit is {MAX_SCANS}")
    frame, exif = _header(data)
    if frame in FRAMES:  # in a lossless one, a draft makes Pillow 12.3 write past the end of its pixels
        zoom = 2 * limits.max_side / max(image.size)
        image.draft(None, (max(1, int(image.width * zoom)), max(1, int(image.height * zoom))))
    image.load()  # once: a second load after a failed one can give a black picture
    small = _to_srgb(_scaled(image, limits.max_side), image.info.get("icc_profile"))
    turn = TURNS.get(_orientation(exif or image.info.get("exif", b"")))
    upright = small if turn is None else small.transpose(turn)
    # 4:2:0: seen at 299 px, photos have 36 to 43 dB; the usual kept JPEG, of quality 85, has 34 to 40. 4:4:4
    # has 42 to 49 dB, but 29 to 43 % more bytes, and decoding takes half as long again, every time.
    jpeg = simplejpeg.encode_jpeg(np.asarray(upright), QUALITY, colorspace="RGB", colorsubsampling="420")
    return Normalised(jpeg, kept=False, width=upright.width, height=upright.height)


def _open(data: bytes) -> Image.Image:
    """The image in `data`, not decoded yet."""
    if data.startswith(b"\xff\xd8"):
        data = METADATA.sub(b"\xff\xfe\\1", data)
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        # Pillow's message holds an address in memory: it would make rejects differ from run to run.
        if ALLOWED_MAGIC.match(data):
            raise Refused(_reason(data), "begins like an allowed format; its header cannot be read") from None
        if OTHER_MAGIC.match(data[:4096]):
            raise Refused("format_not_allowed", f"expected one of {', '.join(FORMATS)}") from None
        raise Refused("not_an_image", f"begins with {data[:16]!r}") from None


def _reason(data: bytes, error: str = "") -> str:
    """Truncated or undecodable; where Pillow does not tell, by what the format says about its own end."""
    head, size = data[:4], len(data)
    cut = (
        "truncated" in error.lower()
        or (head[:2] == b"\xff\xd8" and SCAN not in data)
        or (head == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > size)
        or (head == b"II*\0" and int.from_bytes(data[4:8], "little") >= size)  # TIFF's directory
        or (head == b"MM\0*" and int.from_bytes(data[4:8], "big") >= size)
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


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the embedded ICC profile; as it is without one, with sRGB's own, or with one that is damaged."""
    if profile and b"sRGB" not in profile.replace(b"\0", b""):  # names are ASCII or UTF-16
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            return cast(Image.Image, ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"))
        except (OSError, ImageCms.PyCMSError):
            pass  # a photo with a damaged profile is still a photo
    return image.convert("RGB")
