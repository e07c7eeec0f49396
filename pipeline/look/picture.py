"""The picture of `shelfmark look`: the photo, and beside it the map of the best category, with a scale.

┌───────────────────────────────┐
│ Fruit / Apple / Golden  62.1% │
│ ┌───────────┐   ┌───────────┐ │
│ │   photo   │   │  map over │ │
│ │           │   │   photo   │ │
│ └───────────┘   └───────────┘ │
│                less ▒▒▓▓ more │
└───────────────────────────────┘
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.job.heat_map import colours, overlay

SIDE, MARGIN, LINE = 360, 16, 26  # px: a photo's longer side, the space around it, a line of text
SCALE = (120, 12)  # px
PAPER, INK = (255, 255, 255), (32, 40, 48)
LESS, MORE = "little evidence", "much"
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf")  # where one is installed: more letters


def draw_picture(photo: Image.Image, heat: np.ndarray | None, title: str, side: int = SIDE) -> Image.Image:
    """Draws the picture; without a map the photo alone under its title.

    Args:
        photo: RGB.
        heat: (h, w) 0..1, of the whole photo.
        title: one line; its beginning is cut off where it is too long.
        side: px, the longer side of the photo.
    """
    scale = side / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    panels = [photo] if heat is None else [photo, overlay(photo, heat)]
    width = MARGIN + sum(panel.width + MARGIN for panel in panels)
    width = max(width, 2 * side // 3)  # a narrow photo leaves room for its title
    foot = 0 if heat is None else LINE
    paper = Image.new("RGB", (width, MARGIN // 2 + LINE + size[1] + foot + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(paper), _font()
    draw.text((MARGIN, MARGIN // 2), _fitting(draw, title, font, width - 2 * MARGIN), INK, font)
    top = MARGIN // 2 + LINE
    for number, panel in enumerate(panels):
        paper.paste(panel, (MARGIN + number * (size[0] + MARGIN), top))
    if heat is not None:
        _scale(paper, draw, top + size[1] + MARGIN // 2)
    return paper


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _scale(paper: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    """The colours from little evidence to much, at the right."""
    font = _font(13)
    bar = Image.fromarray(
        np.broadcast_to(colours(np.linspace(0, 1, SCALE[0])), (SCALE[1], SCALE[0], 3)).copy()
    )
    right = paper.width - MARGIN - round(draw.textlength(MORE, font))
    draw.text((right, top), MORE, INK, font)
    left = right - 6 - SCALE[0]
    paper.paste(bar, (left, top + 3))
    draw.text((left - 6 - draw.textlength(LESS, font), top), LESS, INK, font)


def _font(size: int = 16) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: object, width: int) -> str:
    """The text, without its beginning where it is too long: the end of a path says most."""
    if draw.textlength(text, font) <= width:  # type: ignore[arg-type]
        return text
    while text and draw.textlength(f"…{text}", font) > width:  # type: ignore[arg-type]
        text = text[1:]
    return f"…{text}"
