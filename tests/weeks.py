"""A drawn shop over six weeks: it grows, its tree changes, its feed breaks.

folder/photos/p17.jpg            a product keeps its photo and its true leaf for ever
folder/week3/catalogue.csv       which products are there, and the category that the feed says
folder/week3/new.csv             fresh products without a category; `truth` says what is right

week 1   14 categories, 1,500 products, one in ten without a category
week 2   a category more (c14), and c05 has another name
week 3   c03 goes to c02; c08 is divided into c08a and c08b; half of the feed still says c03 and c08
week 4   the categories c00 to c06 are missing in the feed
week 5, week 6   as they should be
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.demo.drawn_catalogue import FORMS, LEAVES, PATTERNS, Leaf, _photo

SIDE = 48  # px of a photo
FIRST, GROWTH = 1500, 1.1  # products of week 1, and each week's as a multiple of those of the week before
FRESH = 300  # products without a category, each week
WRONG = 0.04  # share of the labels
NAMES = (
    "Striped mug", "Green plate", "Terracotta plate", "Dotted plate", "Yellow table lamp", "Grey table lamp",
    "Red cushion", "Checked cushion", "Pink cushion", "Striped T-shirt", "Basketball", "Tennis ball",
    "Black T-shirt", "Brown handbag", "Football",
)  # fmt: skip
ADDED = NAMES.index("Football")  # opens in week 2
MAPPING = "from,to\nc03,c02\nc08,c08a\nc08,c08b\n"  # of week 3
MERGED, DIVIDED, RENAMED = 3, 8, 5


def leaves() -> list[Leaf]:
    """The leaves of the shop."""
    by_name = {leaf.name: leaf for leaf in LEAVES}
    return [by_name[name] for name in NAMES]


def products(week: int) -> int:
    """How many products the shop has."""
    return round(FIRST * GROWTH ** (week - 1))


def draw_week(folder: Path, week: int) -> dict[str, str]:
    """Draws a week's feed and fresh products; returns the true category of these by product_id."""
    here = folder / f"week{week}"
    rows = []
    for number in range(products(week)):
        leaf = _draw(folder, number, opened=number >= products(1))
        if week != 4 or leaf > 6:
            rows.append(_row(number, _label(number, leaf) if number % 10 else None, week))
    _write(here / "catalogue.csv", rows)
    fresh = range(100_000 * week, 100_000 * week + FRESH)
    leaf_of = {number: _draw(folder, number, opened=week > 1) for number in fresh}
    _write(here / "new.csv", [_row(number, None, week) for number in fresh])
    (folder / "mapping.csv").write_text(MAPPING)
    return {f"p{number}": category(number, leaf, week, old=False) for number, leaf in leaf_of.items()}


def category(number: int, leaf: int, week: int, old: bool) -> str:
    """The category of a product in a week's tree; `old`: the feed is behind, where it may be."""
    if week >= 3 and not old:
        if leaf == MERGED:
            return "c02"
        if leaf == DIVIDED:
            return "c08a" if number % 2 else "c08b"
    return f"c{leaf:02d}"


def _row(number: int, leaf: int | None, week: int) -> dict[str, str]:
    row = {"product_id": f"p{number}", "image": f"../photos/p{number}.jpg"}
    if leaf is None:
        return row
    name = "Grey desk lamp" if leaf == RENAMED and week >= 2 else NAMES[leaf]
    said = category(number, leaf, week, old=week == 3 and number % 4 < 2)
    name = {"c02": NAMES[2], "c08a": "Rose cushion", "c08b": "Blush cushion"}.get(said, name)
    return row | {"category": said, "level1": leaves()[leaf].department, "level2": name}


def _label(number: int, leaf: int) -> int:
    """The leaf that the feed says: one label in 25 is another one."""
    rng = np.random.default_rng([6, number])
    return int(rng.integers(ADDED)) if rng.random() < WRONG else leaf


def _draw(folder: Path, number: int, opened: bool) -> int:
    """Draws a product's photo, if it is not there; returns its leaf."""
    rng = np.random.default_rng([5, number])
    weights = np.array([leaf.weight for leaf in leaves()], float)
    weights[ADDED] *= 12 * opened
    leaf = int(rng.choice(len(weights), p=weights / weights.sum()))
    file = folder / "photos" / f"p{number}.jpg"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_drawn(leaves()[leaf], rng))
    return leaf


def _drawn(leaf: Leaf, rng: np.random.Generator) -> bytes:
    colour = np.clip(rng.normal(leaf.colour, 10), 0, 255)
    pattern = PATTERNS[leaf.pattern](int(rng.integers(5, 8))) if leaf.pattern else ()
    picture, _ = _photo(FORMS[leaf.family], pattern, colour, rng)
    file = io.BytesIO()
    picture.resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "JPEG", quality=90)
    return file.getvalue()


def _write(file: Path, rows: Iterable[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, ["product_id", "image", "category", "level1", "level2"], restval="")
        writer.writeheader()
        writer.writerows(rows)
