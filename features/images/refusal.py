"""Why an image is refused, and how large it may be: `Refused`, `Limits`, and checks that formats share."""

from dataclasses import dataclass

REASONS = ("missing", "empty", "not_an_image", "format_not_allowed", "too_large", "truncated", "undecodable")

# Limits of the work that a hostile file causes before any pixel: loops in Python, quadratic ones in C.
MAX_PARTS = 50_000  # segments, chunks, blocks or strips: up to 8 µs each; 64 MiB of PNG in 2 KiB chunks pass
MAX_FRAMES = 1000  # a turntable has 36 to 72, a minute of film at 15 a second 900

# Bytes for decoding one picture: 50 MP of JPEG, 18 of WebP and AVIF, 25 of TIFF in colour, 75 of the others.
# The steps after decoding take at most 100 MB more: a fresh process reached 411 MB at most.
MAX_MEMORY = 300_000_000
# Copies of the pixels that Pillow and the decoder hold at once: measured 3.9, 2.8 (but 10 bits take more) and
# 1.8 (with strips of 16-bit RGBA 3).
COPIES = {"WEBP": 4, "AVIF": 4, "TIFF": 3}


class Refused(Exception):
    """An image that cannot be used.

    Attributes:
        reason: one of REASONS.
        detail: one printable line.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # unchanged, so that it can be pickled
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


LIMITS = Limits()


def check_parts(parts: int) -> None:
    """Refuses a file in over MAX_PARTS parts, which are walked through one by one."""
    if parts > MAX_PARTS:
        raise Refused("too_large", f"over {MAX_PARTS} segments, chunks, blocks or strips")


def check_frames(frames: int) -> None:
    """Refuses an animation of over MAX_FRAMES frames."""
    if frames > MAX_FRAMES:
        raise Refused("too_large", f"{frames} frames; the limit is {MAX_FRAMES}")


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Refuses a picture that is declared with more pixels than the limit."""
    if width * height > limits.max_pixels:
        raise Refused("too_large", f"{width} × {height} pixels; the limit is {limits.max_pixels}")


def check_memory(width: int, height: int, format: str, each: int) -> None:
    """Refuses what takes over MAX_MEMORY at `each` bytes a pixel."""
    if (memory := width * height * each) > MAX_MEMORY:
        size = f"{width} × {height} pixels of {format} take {memory} bytes"
        raise Refused("too_large", f"{size}; the limit is {MAX_MEMORY}")
