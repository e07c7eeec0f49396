"""The demo's catalogue: drawn photos of products in Cdiscount's shape, with the ills of a real catalogue.

    FOLDER/catalogue.bson       documents {_id: int, category_id: int, imgs: [{picture: bytes}]}; no category_id
                                where the product is uncategorized
    FOLDER/category_names.csv   category_id, category_level1, category_level2, category_level3

A product's form tells its family, its colour and pattern tell the leaf. Three pairs of leaves are nearly alike, and
most wrong labels stand there, as sellers' do: a head can be sure of the rest, and should ask about these.
"""

import csv
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

PRODUCTS = 2600
SIDE = 180  # px of a photo, as Cdiscount's
IMAGES = (0.72, 0.18, 0.07, 0.03)  # share of the products with 1, 2, 3, 4 photos; 1.41 on average
UNCATEGORIZED = 0.08  # share of the products
MIXED_UP = 0.08  # share of the labels in a pair of look-alikes that name the other one
MISTAKEN = 0.005  # share of all labels that name some other leaf; with those mixed up 4 to 5 % are wrong
BROKEN = 0.02  # share of the images
UNREADABLE = 3  # uncategorized products with broken images only; others become so by chance
SHARED = 0.01  # share of the products whose first photo is an earlier one's of the same leaf
SPREAD = 10
TILT = 0.1
SIZES = (0.7, 0.88)
SHIFT = 0.04
TINT = 0.008
SLOPE = 0.015
GAIN = (0.96, 1.01)
CUT_OUT = 0.004  # share of the products whose first photo is a PNG with a transparent background

Colour = tuple[int, int, int]
Polygon = tuple[tuple[float, float], ...]  # x, y from -1 to 1, y downwards
PAPER, BODY, TRIM, SECOND = 0, 1, 2, 3  # what a polygon is filled with


class Leaf(NamedTuple):
    """A category and how its products look."""

    department: str
    family: str
    name: str
    weight: int  # products, relative to the other leaves
    ink: Colour  # of the body
    pattern: str = ""
    twin: str = ""  # the leaf of the family that looks nearly alike


LEAVES = (
    Leaf("Kitchen", "Cups", "Blue mug", 80, (48, 84, 176), twin="Cobalt mug"),
    Leaf("Kitchen", "Cups", "Cobalt mug", 60, (45, 88, 172), twin="Blue mug"),
    Leaf("Kitchen", "Cups", "Striped mug", 35, (190, 60, 60), "striped"),
    Leaf("Kitchen", "Cups", "Enamel mug", 3, (90, 150, 90)),
    Leaf("Kitchen", "Plates", "Green plate", 50, (96, 150, 84)),
    Leaf("Kitchen", "Plates", "Terracotta plate", 30, (188, 98, 62)),
    Leaf("Kitchen", "Plates", "Dotted plate", 15, (70, 110, 170), "dotted"),
    Leaf("Home", "Lamps", "Yellow table lamp", 40, (226, 186, 60)),
    Leaf("Home", "Lamps", "Grey table lamp", 15, (140, 140, 146)),
    Leaf("Home", "Cushions", "Red cushion", 60, (178, 44, 52)),
    Leaf("Home", "Cushions", "Checked cushion", 25, (70, 120, 90), "checked"),
    Leaf("Home", "Cushions", "Pink cushion", 12, (224, 142, 168)),
    Leaf("Clothing", "T-shirts", "Black T-shirt", 40, (40, 40, 44), twin="Charcoal T-shirt"),
    Leaf("Clothing", "T-shirts", "Charcoal T-shirt", 30, (44, 44, 48), twin="Black T-shirt"),
    Leaf("Clothing", "T-shirts", "Striped T-shirt", 30, (40, 60, 120), "striped"),
    Leaf("Clothing", "Bags", "Brown handbag", 20, (112, 72, 46), twin="Chestnut handbag"),
    Leaf("Clothing", "Bags", "Chestnut handbag", 16, (117, 71, 44), twin="Brown handbag"),
    Leaf("Sports", "Balls", "Basketball", 25, (216, 112, 40)),
    Leaf("Sports", "Balls", "Tennis ball", 16, (196, 216, 66)),
    Leaf("Sports", "Balls", "Football", 10, (44, 44, 48), "dotted"),
    Leaf("Sports", "Balls", "Rugby ball", 2, (150, 84, 60)),
)


def _ellipse(x: float, y: float, width: float, height: float) -> Polygon:
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return tuple(zip((x + width * np.cos(turn)).tolist(), (y + height * np.sin(turn)).tolist(), strict=True))


FORMS: dict[str, tuple[tuple[Polygon, int], ...]] = {
    "Cups": (
        (_ellipse(0.6, 0.0, 0.42, 0.46), TRIM),
        (_ellipse(0.6, 0.0, 0.25, 0.28), PAPER),
        (((-0.75, -0.8), (0.6, -0.8), (0.5, 0.85), (-0.65, 0.85)), BODY),
        (_ellipse(-0.075, -0.8, 0.675, 0.12), TRIM),
    ),
    "Plates": ((_ellipse(0, 0, 1, 0.9), BODY), (_ellipse(0, 0, 0.66, 0.58), TRIM), (_ellipse(0, 0, 0.6, 0.53), BODY)),
    "Lamps": (
        (((-0.06, 0), (0.06, 0), (0.06, 0.85), (-0.06, 0.85)), TRIM),
        (_ellipse(0, 0.88, 0.42, 0.1), TRIM),
        (((-0.35, -0.95), (0.35, -0.95), (0.75, 0.15), (-0.75, 0.15)), BODY),
    ),
    "Cushions": (
        (((-0.9, -0.9), (0, -0.76), (0.9, -0.9), (0.8, 0), (0.9, 0.9), (0, 0.76), (-0.9, 0.9), (-0.8, 0)), BODY),
    ),
    "T-shirts": (
        (
            (
                (-0.3, -0.85), (0.3, -0.85), (0.98, -0.45), (0.8, -0.05), (0.52, -0.22),
                (0.55, 0.9), (-0.55, 0.9), (-0.52, -0.22), (-0.8, -0.05), (-0.98, -0.45),
            ),
            BODY,
        ),
        (_ellipse(0, -0.85, 0.26, 0.17), PAPER),
    ),
    "Bags": (
        (_ellipse(0, -0.3, 0.5, 0.62), TRIM),
        (_ellipse(0, -0.3, 0.4, 0.52), PAPER),
        (((-0.7, -0.3), (0.7, -0.3), (0.95, 0.8), (-0.95, 0.8)), BODY),
        (((-0.74, -0.1), (0.74, -0.1), (0.77, 0.0), (-0.77, 0.0)), TRIM),
    ),
    "Balls": (
        (_ellipse(0, 0, 0.82, 0.82), BODY),
        (((-0.82, -0.04), (0.82, -0.04), (0.82, 0.04), (-0.82, 0.04)), TRIM),
        (((-0.04, -0.82), (0.04, -0.82), (0.04, 0.82), (-0.04, 0.82)), TRIM),
    ),
}  # fmt: skip


def _bands(count: int) -> tuple[tuple[Polygon, int], ...]:
    edge = np.linspace(-1, 1, 2 * count + 1).tolist()
    return tuple((((-1, a), (1, a), (1, b), (-1, b)), SECOND) for a, b in zip(edge[::2], edge[1::2], strict=False))


def _squares(count: int) -> tuple[tuple[Polygon, int], ...]:
    edge = np.linspace(-1, 1, count + 1).tolist()
    cells = [(i, j) for i in range(count) for j in range(count) if (i + j) % 2]
    return tuple((((edge[i], edge[j]), (edge[i + 1], edge[j]), (edge[i + 1], edge[j + 1]), (edge[i], edge[j + 1])), SECOND) for i, j in cells)


def _dots(count: int) -> tuple[tuple[Polygon, int], ...]:
    at = np.linspace(-1, 1, count + 1).tolist()
    return tuple((_ellipse(x, y, 0.7 / count, 0.7 / count), SECOND) for x in at for y in at)


PATTERNS = {"striped": _bands, "checked": _squares, "dotted": _dots}


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    catalogue: Path  # BSON
    taxonomy: Path  # CSV
    products: int
    images: int  # broken ones included
    uncategorized: int  # products
    wrong_labels: int  # products whose category_id is not their true one
    broken: int  # images
    truth: dict[str, str]  # product_id → true category, of the uncategorized products


def draw_catalogue(folder: Path, seed: int = 0, products: int = PRODUCTS) -> Drawn:
    """Draws a catalogue; the same seed gives the same bytes.

    Args:
        folder: for the two files; made when it is not there.
        seed: of everything.
        products: 4 at least; under some 1,000 most categories are too small to be learnt.
    """
    import bson

    rng = np.random.default_rng(seed)
    leaf = rng.permutation(_apportion(products))
    label = _mislabel(leaf, rng)
    label[rng.permutation(products)[: round(UNCATEGORIZED * products)]] = -1
    photos = [_draw_product(LEAVES[kind], np.random.default_rng([seed, number])) for number, kind in enumerate(leaf)]
    _share(photos, leaf, rng)
    broken = _break(photos, np.flatnonzero(label < 0)[:UNREADABLE], rng)

    folder.mkdir(parents=True, exist_ok=True)
    ids = category_ids()
    with open(folder / "catalogue.bson", "wb") as file:
        for number, pictures in enumerate(photos):
            category = {"category_id": ids[label[number]]} if label[number] >= 0 else {}
            file.write(bson.encode({"_id": number, **category, "imgs": [{"picture": picture} for picture in pictures]}))
    _write_names(folder / "category_names.csv")
    return Drawn(
        catalogue=folder / "catalogue.bson",
        taxonomy=folder / "category_names.csv",
        products=products,
        images=sum(map(len, photos)),
        uncategorized=int((label < 0).sum()),
        wrong_labels=int(((label >= 0) & (label != leaf)).sum()),
        broken=broken,
        truth={str(number): str(ids[leaf[number]]) for number in np.flatnonzero(label < 0).tolist()},
    )


def category_ids() -> list[int]:
    """The leaves' category_id: a million and department, family, leaf in two digits each."""
    return [1_000_000 + number for number in range(len(LEAVES))]


def _apportion(products: int) -> np.ndarray:
    """(products,) int, leaf of each product: every leaf has its exact share."""
    weight = np.cumsum([leaf.weight for leaf in LEAVES])
    ends = np.round(weight / weight[-1] * products).astype(int)
    return np.repeat(np.arange(len(LEAVES)), np.diff(ends, prepend=0))


def _mislabel(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) int, the leaves that the labels name."""
    names = [kind.name for kind in LEAVES]
    twin = np.array([names.index(kind.twin) if kind.twin else place for place, kind in enumerate(LEAVES)])
    label = np.where(rng.random(len(leaf)) < MIXED_UP, twin[leaf], leaf)
    return np.where(rng.random(len(leaf)) < MISTAKEN, rng.integers(len(LEAVES), size=len(leaf)), label)


def _draw_product(leaf: Leaf, rng: np.random.Generator) -> list[bytes]:
    """The photos of one product: one colour and one pattern, seen several times."""
    ink = np.clip(np.array(leaf.ink) + rng.normal(0, SPREAD, 3), 0, 255).astype(np.float32)
    pitch = int(rng.integers(5, 8))
    return [_jpeg(_photo(leaf, ink, pitch, rng), rng) for _ in range(1 + rng.choice(len(IMAGES), p=IMAGES))]


def _photo(leaf: Leaf, ink: np.ndarray, pitch: int, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    angle, size = rng.normal(0, TILT), rng.uniform(*SIZES) * SIDE
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * size
    centre = SIDE + rng.uniform(-SHIFT, SHIFT, 2) * 2 * SIDE
    fills = _draw(FORMS[leaf.family], turn, centre)
    if leaf.pattern:
        body = fills.point([255 * (fill == BODY) for fill in range(256)])
        pattern = _draw(PATTERNS[leaf.pattern](pitch), turn, centre).point([255 * (fill == SECOND) for fill in range(256)])
        fills.paste(SECOND, mask=ImageChops.multiply(body, pattern))
    tint = rng.normal(1, TINT, 3)
    colours = np.clip(np.stack([np.full(3, rng.uniform(238, 252)), ink, 0.6 * ink, [236, 234, 228]]) * tint, 0, 255)
    fills.putpalette(colours.astype(np.uint8).tobytes())
    return _light(np.asarray(fills.convert("RGB").reduce(2)), rng)


def _draw(polygons: tuple[tuple[Polygon, int], ...], turn: np.ndarray, centre: np.ndarray) -> Image.Image:
    """What each pixel is filled with, twice as wide and high as the photo."""
    image = Image.new("L", (2 * SIDE, 2 * SIDE), PAPER)
    pen = ImageDraw.Draw(image)
    for polygon, fill in polygons:
        pen.polygon((np.array(polygon) @ turn.T + centre).ravel().tolist(), fill=fill)
    return image


def _light(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    slope = (np.linspace(-1, 1, SIDE) * rng.normal(0, SLOPE, (2, 1))).astype(np.float32)
    gain = np.float32(rng.uniform(*GAIN)) + slope[0][:, None] + slope[1][None]
    noise = rng.standard_normal((SIDE, SIDE, 1), np.float32) * np.float32(rng.uniform(2, 6))
    return np.clip(picture * gain[..., None] + noise, 0, 255).astype(np.uint8)


def _jpeg(picture: np.ndarray, rng: np.random.Generator) -> bytes:
    out = BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=int(rng.integers(75, 92)))
    return out.getvalue()


def _share(photos: list[list[bytes]], leaf: np.ndarray, rng: np.random.Generator) -> None:
    pass


def _break(photos: list[list[bytes]], whole: np.ndarray, rng: np.random.Generator) -> int:
    broken = 0
    for number, pictures in enumerate(photos):
        for place, picture in enumerate(pictures):
            if number in whole or rng.random() < BROKEN:
                pictures[place] = (picture[: len(picture) // 2], b"<html>404 Not Found</html>", b"")[broken % 3]
                broken += 1
    return broken


def _write_names(file: Path) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["category_id", "category_level1", "category_level2", "category_level3"])
        for number, leaf in zip(category_ids(), LEAVES, strict=True):
            writer.writerow([number, leaf.department, leaf.family, leaf.name])
