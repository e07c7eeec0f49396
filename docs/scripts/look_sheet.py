"""Puts photos with their maps on one sheet, for docs/look.md.

python docs/scripts/look_sheet.py --workspace W --output docs/images/look.jpg PHOTO...
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from features.engines.backbones import start_tensorflow
from pipeline.look import look as looking
from pipeline.look.find import find_bundle

SIDE, COLUMNS, QUALITY = 190, 2, 82  # px of a photo's longer side; pictures side by side; of JPEG


def main() -> None:
    """Draws the sheet of the photos in the order of the arguments, row by row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    start_tensorflow()
    draw = looking.draw_picture
    looking.draw_picture = lambda photo, heat, title: draw(photo, heat, title, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        found = looking.look(find_bundle(given.workspace, None), given.photos, 1, Path(folder))
        pictures = [Image.open(str(one.picture)).convert("RGB") for one in found.photos]
    width, height = (max(size) for size in zip(*(one.size for one in pictures), strict=True))
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * width, number // COLUMNS * height))
    sheet.save(given.output, "JPEG", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
