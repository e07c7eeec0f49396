"""A map of where a network looked, over the photo: drawn with Pillow and NumPy.

    heat (h, w) 0..1 ─► bicubic, to the photo's size ─► colours of viridis ─┐
    photo ─► grey, light ──────────────────────────────────────────────────────────────────────┴─► overlay

Viridis gets lighter from end to end, so it is read alike with any colour vision and printed in grey.
"""

import numpy as np
from PIL import Image

# Eleven of the 256 colours of matplotlib's viridis (Smith, van der Walt and Firing, CC0), evenly spaced.
VIRIDIS = np.array(
    [
        *((68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140)),
        *((34, 168, 132), (66, 190, 113), (122, 209, 81), (187, 223, 39), (253, 231, 37)),
    ],
    np.float64,
)
OPACITY = 0.6  # of the colours over the photo


def colours(heat: np.ndarray) -> np.ndarray:
    """Any shape, 0..1 → the same shape, 3: uint8 colours.

    >>> colours(np.array([0.0, 1.0])).tolist()
    [[68, 1, 84], [253, 231, 37]]
    """
    at = np.linspace(0, 1, len(VIRIDIS))
    channels = [np.interp(heat, at, VIRIDIS[:, channel]) for channel in range(3)]
    shades: np.ndarray = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return shades


def overlay(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photo in grey under the colours of its map.

    Args:
        photo: RGB.
        heat: (h, w) 0..1, of the whole photo.
    """
    cells = Image.fromarray(heat.astype(np.float32))
    smooth = np.asarray(cells.resize(photo.size, Image.Resampling.BICUBIC))
    coloured = Image.fromarray(colours(np.clip(smooth, 0, 1)))
    return Image.blend(photo.convert("L").convert("RGB"), coloured, OPACITY)
