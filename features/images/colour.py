"""ICC profiles: whether following one changes colours, and a picture in sRGB.

Whether a profile is sRGB's own is found by applying it, not by its name: there are a dozen names for it, and
Android calls Display P3 "Display P3 Gamut with sRGB Transfer".
"""

from functools import lru_cache
from io import BytesIO
from typing import cast

import numpy as np
from PIL import Image, ImageCms

MAX_BYTES = 4 << 20  # of a profile; a camera's has a few kB, a press's up to a few MB
SAME = 3  # levels of 255: copies of sRGB's profile differ by 1 or 2, Display P3 by up to 40
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # the colours that a profile is for, as Pillow names them
UNOPTIMISED = ImageCms.Flags.NOOPTIMIZE  # ready in 2 ms, not 7
LEVELS = np.arange(0, 256, 15, dtype=np.uint8)  # (18,)


def to_srgb(image: Image.Image, profile: bytes | None, mode: str) -> Image.Image:
    """Returns RGB by the ICC profile; unchanged without one, or with sRGB's, a damaged or a huge one.

    Args:
        image: RGB (grey ones too) or CMYK.
        profile: the bytes in the file; None without.
        mode: what the file has: "L", "RGB" or "CMYK".
    """
    follow = profile is not None and changes_colours(profile, mode)
    followed = _followed(image, profile, mode) if profile and follow else None
    return image.convert("RGB") if followed is None else followed


@lru_cache(maxsize=8)  # a source's photos have few profiles, and testing one takes 2 ms; at most 32 MB
def changes_colours(profile: bytes, mode: str) -> bool:
    """Whether an ICC profile fits pictures of `mode` ("L", "RGB" or "CMYK"), and is other than sRGB's own."""
    if not profile or len(profile) > MAX_BYTES:
        return False
    axes = np.meshgrid(LEVELS, LEVELS, LEVELS) if mode == "RGB" else [LEVELS[None]] * 3
    colours = np.stack(axes, axis=-1).reshape(1, -1, 3)
    image = Image.fromarray(colours) if mode != "CMYK" else Image.new("CMYK", (1, 1))
    followed = _followed(image, profile, mode, UNOPTIMISED)
    if followed is None or mode == "CMYK":
        return followed is not None
    return bool(np.abs(np.asarray(followed, dtype=int) - colours).max() > SAME)


def _followed(
    image: Image.Image, profile: bytes, mode: str, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> Image.Image | None:
    """Returns the picture in sRGB; None where the profile cannot be read, or is for other colours."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        kind = MODES.get(source.profile.xcolor_space.strip())
        if kind == mode == "L":
            image = image.convert("L")
        elif kind != image.mode:
            return None
        srgb = ImageCms.createProfile("sRGB")
        followed = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB", flags=flags)
        return cast(Image.Image, followed)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None
