"""The demo's catalogue: drawn photos of products in Cdiscount's format, with the faults of a real catalogue.

    FOLDER/catalogue.bson       documents {_id: int, category_id: int, imgs: [{picture: bytes}]}; an
                                uncategorized product has no category_id
    FOLDER/category_names.csv   category_id, category_level1, category_level2, category_level3

A product's form shows its family, colour and pattern show its leaf. Some leaves are nearly alike, and most of
the wrong labels are among them, as with real sellers: a head can be certain of the other leaves, and should
leave these to people.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from features.storage.paths import write_whole

PRODUCTS = 3000
SIDE = 180  # px of a photo, as Cdiscount's
IMAGES = (0.72, 0.18, 0.07, 0.03)  # share of the products with 1, 2, 3, 4 photos; 1.41 on average
UNCATEGORIZED = 0.08  # share of the products
MIXED_UP = 0.11  # share of the labels of similar leaves that name another one of them
MISTAKEN = 0.006  # share of all labels that name a random leaf; in all, about 4 % are wrong
BROKEN = 0.02  # share of the images
UNREADABLE = 3  # uncategorized products that have only broken images, besides those by chance
SHARED = 0.01  # share of the products whose first photo is also another product's
CUT_OUT = 0.004  # share of the products whose photos are PNGs with a transparent background
COLOUR_SPREAD = 10  # of 255: standard deviation of a product's colour from its leaf's, each channel

Polygon = tuple[tuple[float, float], ...]  # x, y from -1 to 1, y downwards
Shape = tuple[tuple[Polygon, int], ...]  # drawn in this order, filled with one of:
PAPER, BODY, TRIM, SECOND = 0, 1, 2, 3


class Leaf(NamedTuple):
    """A category and the appearance of its products."""

    department: str
    family: str
    name: str
    weight: int  # products, relative to the other leaves
    colour: tuple[int, int, int]  # of the body
    pattern: str = ""  # one of PATTERNS, drawn over the body
    alike: bool = False  # nearly the same as the other such leaves of its family


LEAVES = (
    Leaf("Kitchen", "Cups", "Blue mug", 28, (48, 84, 176), alike=True),
    Leaf("Kitchen", "Cups", "Cobalt mug", 26, (44, 86, 173), alike=True),
    Leaf("Kitchen", "Cups", "Royal blue mug", 24, (50, 80, 179), alike=True),
    Leaf("Kitchen", "Cups", "Sapphire mug", 22, (46, 81, 172), alike=True),
    Leaf("Kitchen", "Cups", "Striped mug", 40, (190, 60, 60), "striped"),
    Leaf("Kitchen", "Cups", "Enamel mug", 3, (90, 150, 90)),
    Leaf("Kitchen", "Plates", "Green plate", 60, (96, 150, 84)),
    Leaf("Kitchen", "Plates", "Terracotta plate", 35, (188, 98, 62)),
    Leaf("Kitchen", "Plates", "Dotted plate", 18, (70, 110, 170), "dotted"),
    Leaf("Home", "Lamps", "Yellow table lamp", 45, (226, 186, 60)),
    Leaf("Home", "Lamps", "Grey table lamp", 18, (140, 140, 146)),
    Leaf("Home", "Cushions", "Red cushion", 80, (178, 44, 52)),
    Leaf("Home", "Cushions", "Checked cushion", 28, (70, 120, 90), "checked"),
    Leaf("Home", "Cushions", "Pink cushion", 14, (224, 142, 168)),
    Leaf("Clothing", "T-shirts", "Black T-shirt", 20, (40, 40, 44), alike=True),
    Leaf("Clothing", "T-shirts", "Charcoal T-shirt", 18, (44, 44, 48), alike=True),
    Leaf("Clothing", "T-shirts", "Anthracite T-shirt", 16, (42, 45, 46), alike=True),
    Leaf("Clothing", "T-shirts", "Striped T-shirt", 35, (40, 60, 120), "striped"),
    Leaf("Clothing", "Bags", "Brown handbag", 14, (112, 72, 46), alike=True),
    Leaf("Clothing", "Bags", "Chestnut handbag", 13, (116, 71, 44), alike=True),
    Leaf("Clothing", "Bags", "Mocha handbag", 12, (110, 75, 50), alike=True),
    Leaf("Sports", "Balls", "Basketball", 28, (216, 112, 40)),
    Leaf("Sports", "Balls", "Tennis ball", 18, (196, 216, 66)),
    Leaf("Sports", "Balls", "Football", 10, (44, 44, 48), "dotted"),
    Leaf("Sports", "Balls", "Rugby ball", 2, (150, 84, 60)),
)


def _ellipse(x: float, y: float, width: float, height: float) -> Polygon:
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return tuple(zip((x + width * np.cos(turn)).tolist(), (y + height * np.sin(turn)).tolist(), strict=True))


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return (left, top), (right, top), (right, bottom), (left, bottom)


FORMS: dict[str, Shape] = {
    "Cups": (
        (_ellipse(0.6, 0, 0.42, 0.46), TRIM),
        (_ellipse(0.6, 0, 0.25, 0.28), PAPER),
        (((-0.75, -0.8), (0.6, -0.8), (0.5, 0.85), (-0.65, 0.85)), BODY),
        (_ellipse(-0.075, -0.8, 0.675, 0.12), TRIM),
    ),
    "Plates": (
        (_ellipse(0, 0, 1, 0.9), BODY),
        (_ellipse(0, 0, 0.66, 0.58), TRIM),
        (_ellipse(0, 0, 0.6, 0.53), BODY),
    ),
    "Lamps": (
        (_box(-0.06, 0, 0.06, 0.85), TRIM),
        (_ellipse(0, 0.88, 0.42, 0.1), TRIM),
        (((-0.35, -0.95), (0.35, -0.95), (0.75, 0.15), (-0.75, 0.15)), BODY),
    ),
    "Cushions": (
        (
            ((-0.9, -0.9), (0, -0.76), (0.9, -0.9), (0.8, 0), (0.9, 0.9), (0, 0.76), (-0.9, 0.9), (-0.8, 0)),
            BODY,
        ),
    ),
    "T-shirts": (
        (((-0.3, -0.85), (0.3, -0.85), (0.98, -0.45), (0.8, -0.05), (-0.8, -0.05), (-0.98, -0.45)), BODY),
        (_box(-0.54, -0.3, 0.54, 0.9), BODY),
        (_ellipse(0, -0.85, 0.26, 0.17), PAPER),
    ),
    "Bags": (
        (_ellipse(0, -0.3, 0.5, 0.62), TRIM),
        (_ellipse(0, -0.3, 0.4, 0.52), PAPER),
        (((-0.7, -0.3), (0.7, -0.3), (0.95, 0.8), (-0.95, 0.8)), BODY),
        (_box(-0.75, -0.1, 0.75, 0), TRIM),
    ),
    "Balls": (
        (_ellipse(0, 0, 0.82, 0.82), BODY),
        (_box(-0.82, -0.04, 0.82, 0.04), TRIM),
        (_box(-0.04, -0.82, 0.04, 0.82), TRIM),
    ),
}  # fmt: skip


def _stripes(count: int) -> Shape:
    height = 2 / (2 * count + 1)
    return tuple((_box(-1, top, 1, top + height), SECOND) for top in -1 + height * np.arange(1, 2 * count, 2))


def _checks(count: int) -> Shape:
    edge, side = np.linspace(-1, 1, count, endpoint=False), 2 / count
    cells = [(x, y) for i, x in enumerate(edge) for j, y in enumerate(edge) if (i + j) % 2]
    return tuple((_box(x, y, x + side, y + side), SECOND) for x, y in cells)


def _dots(count: int) -> Shape:
    middle = np.linspace(-1, 1, count + 1)
    return tuple((_ellipse(x, y, 0.7 / count, 0.7 / count), SECOND) for x in middle for y in middle)


PATTERNS: dict[str, Callable[[int], Shape]] = {"striped": _stripes, "checked": _checks, "dotted": _dots}


@dataclass(frozen=True)
class DrawnCatalogue:
    """The files that were drawn, and what is in them."""

    catalogue: Path  # BSON
    taxonomy: Path  # CSV
    products: int
    images: int  # broken ones included
    uncategorized: int  # products
    wrong_labels: int  # products whose category_id is not their true one
    broken: int  # images
    truth: dict[str, str]  # product_id → true category, of the uncategorized products


def draw_catalogue(folder: Path, seed: int = 0, products: int = PRODUCTS) -> DrawnCatalogue:
    """Draws a catalogue; the same seed and number of products give the same bytes.

    Args:
        folder: for the two files; created if it does not exist.
        seed: of all random numbers.
        products: to draw; with fewer than about a thousand, few categories are large enough to train on.
    """
    rng = np.random.default_rng(seed)
    leaf = rng.permutation(_apportion(products))
    label = _mislabel(leaf, rng)
    label[rng.permutation(products)[: round(UNCATEGORIZED * products)]] = -1
    formats = dict(zip(rng.permutation(products).tolist(), _odd_formats(products), strict=False))
    photos = [
        _draw_product(LEAVES[index], formats.get(number, ""), np.random.default_rng([seed, number]))
        for number, index in enumerate(leaf.tolist())
    ]
    _share(photos, leaf, rng)
    broken = _break(photos, set(np.flatnonzero(label < 0)[:UNREADABLE].tolist()), rng)
    folder.mkdir(parents=True, exist_ok=True)
    catalogue, taxonomy = folder / "catalogue.bson", folder / "category_names.csv"
    _write_catalogue(catalogue, label, photos)
    _write_names(taxonomy)
    return DrawnCatalogue(
        catalogue=catalogue,
        taxonomy=taxonomy,
        products=products,
        images=sum(map(len, photos)),
        uncategorized=int((label < 0).sum()),
        wrong_labels=int(((label >= 0) & (label != leaf)).sum()),
        broken=broken,
        truth={str(number): str(category_id(leaf[number])) for number in np.flatnonzero(label < 0)},
    )


def category_id(index: int) -> int:
    """The category_id of a leaf; `index` in LEAVES."""
    return 1_000_010_000 + int(index)


# Labels


def _apportion(products: int) -> np.ndarray:
    """(products,) int, index of each product's leaf; every leaf has its share to within one product."""
    weight = np.cumsum([leaf.weight for leaf in LEAVES])
    ends = np.round(weight / weight[-1] * products).astype(int)
    return np.repeat(np.arange(len(LEAVES)), np.diff(ends, prepend=0))


def _mislabel(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) int, index of the leaf that each product's label names."""
    label = np.where(rng.random(len(leaf)) < MISTAKEN, rng.integers(len(LEAVES), size=len(leaf)), leaf)
    for number in np.flatnonzero(rng.random(len(leaf)) < MIXED_UP):
        true = LEAVES[leaf[number]]
        similar = [index for index, other in enumerate(LEAVES) if other.alike and other.family == true.family]
        if true.alike:
            label[number] = rng.choice([index for index in similar if index != leaf[number]])
    return label


# Photos


def _draw_product(leaf: Leaf, photo_format: str, rng: np.random.Generator) -> list[bytes]:
    """The photos of one product: the same colour and pattern in each."""
    colour = np.clip(rng.normal(leaf.colour, COLOUR_SPREAD), 0, 255)
    pattern = PATTERNS[leaf.pattern](int(rng.integers(5, 8))) if leaf.pattern else ()
    count = 1 + int(rng.choice(len(IMAGES), p=IMAGES))
    return [
        _encode(*_photo(FORMS[leaf.family], pattern, colour, rng), photo_format, rng) for _ in range(count)
    ]


def _photo(
    form: Shape, pattern: Shape, colour: np.ndarray, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """A photo, RGB, and its product's silhouette, L."""
    angle, size = rng.normal(0, 0.1), rng.uniform(0.7, 0.88) * SIDE
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = SIDE * rng.uniform(0.92, 1.08, 2)
    fills = _fill(form, turn, centre)
    body = fills.point(lambda fill: 255 * (fill == BODY))
    second = _fill(pattern, turn, centre).point(lambda fill: 255 * (fill == SECOND))
    fills.paste(SECOND, mask=ImageChops.multiply(body, second))
    silhouette = fills.point(lambda fill: 255 * (fill != PAPER))
    paper = np.full(3, rng.uniform(238, 252))
    palette = np.stack([paper, colour, 0.6 * colour, (236, 234, 228)]) * rng.normal(1, 0.008, 3)
    fills.putpalette(np.clip(palette, 0, 255).astype(np.uint8).tobytes())
    return _light(fills.convert("RGB").reduce(2), rng), silhouette.reduce(2)


def _fill(shape: Shape, turn: np.ndarray, centre: np.ndarray) -> Image.Image:
    """What each pixel is filled with, L; twice as wide and high as the photo, to give it smooth edges."""
    image = Image.new("L", (2 * SIDE, 2 * SIDE), PAPER)
    pen = ImageDraw.Draw(image)
    for polygon, fill in shape:
        pen.polygon((polygon @ turn.T + centre).ravel().tolist(), fill=fill)
    return image


def _light(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with random light from a random side, and a sensor's noise."""
    across, down = np.linspace(-1, 1, SIDE, dtype=np.float32) * rng.normal(0, 0.015, (2, 1)).astype(
        np.float32
    )
    gain = np.float32(rng.uniform(0.96, 1.01)) + across[None, :, None] + down[:, None, None]
    noise = rng.standard_normal((SIDE, SIDE, 1), np.float32) * np.float32(rng.uniform(2, 6))
    return Image.fromarray(np.clip(np.asarray(picture) * gain + noise, 0, 255).astype(np.uint8))


# Faults


def _odd_formats(products: int) -> list[str]:
    """Photo formats of the products whose photos are no plain JPEGs: cut-outs, one in CMYK, one sideways."""
    return ["cut-out"] * round(CUT_OUT * products) + ["cmyk", "sideways"]


def _encode(
    photo: Image.Image, silhouette: Image.Image, photo_format: str, rng: np.random.Generator
) -> bytes:
    file = BytesIO()
    quality = int(rng.integers(75, 92))
    if photo_format == "cut-out":
        photo.putalpha(silhouette)
        photo.save(file, "PNG")
    elif photo_format == "cmyk":
        photo.convert("CMYK").save(file, "JPEG", quality=quality)
    elif photo_format == "sideways":
        exif = Image.Exif()
        exif[0x112] = 6  # orientation: a quarter turn clockwise shows it upright
        photo.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=quality, exif=exif)
    else:
        photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _share(photos: list[list[bytes]], leaf: np.ndarray, rng: np.random.Generator) -> None:
    """Gives some products the first photo of another one of their leaf."""
    neighbours = [
        (one, other) for one, other in pairwise(np.argsort(leaf, kind="stable")) if leaf[one] == leaf[other]
    ]
    for index in rng.permutation(len(neighbours))[: round(SHARED * len(photos))]:
        one, other = neighbours[index]
        photos[other][0] = photos[one][0]


def _break(photos: list[list[bytes]], unreadable: set[int], rng: np.random.Generator) -> int:
    """Breaks random images, and all images of the unreadable products; returns how many."""
    broken = 0
    for number, pictures in enumerate(photos):
        for index, picture in enumerate(pictures):
            if number in unreadable or rng.random() < BROKEN:
                ways = picture[: len(picture) // 2], b"<html><title>404 Not Found</title></html>", b""
                pictures[index] = ways[broken % len(ways)]
                broken += 1
    return broken


# Files


def _write_catalogue(file: Path, label: np.ndarray, photos: list[list[bytes]]) -> None:
    import bson

    documents = []
    for number, pictures in enumerate(photos):
        category = {"category_id": category_id(label[number])} if label[number] >= 0 else {}
        documents.append(bson.encode({"_id": number, **category, "imgs": [{"picture": p} for p in pictures]}))
    _write_new(file, b"".join(documents))


def _write_names(file: Path) -> None:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["category_id", "category_level1", "category_level2", "category_level3"])
    for index, leaf in enumerate(LEAVES):
        writer.writerow([category_id(index), leaf.department, leaf.family, leaf.name])
    _write_new(file, out.getvalue().encode())


def _write_new(file: Path, data: bytes) -> None:
    """Writes a file, unless it has these bytes: a source is identified by its modification time, too."""
    if not file.is_file() or file.read_bytes() != data:
        write_whole(file, data)
