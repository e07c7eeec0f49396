"""Drawn catalogues for the tests: small photos, and sources of every kind to put them into."""

import csv
import functools
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 40  # px
HTML = b"<html>404 Not Found</html>"


def drawn_image(
    seed: int, width: int, height: int, spots: tuple[int, int] = (3, 3), mode: str = "RGB"
) -> Image.Image:
    """A picture of smooth colours that no other seed gives; `spots` are drawn down and across."""
    shape = spots if mode == "L" else (*spots, 3)
    colours = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of an image, with Pillow's options of that format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def photo(seed: int, kind: str = "JPEG") -> bytes:
    """A file of a drawn picture, SIDE by SIDE."""
    return encoded(drawn_image(seed, SIDE, SIDE), kind)


@dataclass(frozen=True)
class Drawn:
    """A product: what a source of any kind can say about it."""

    id: str
    category: str  # "" = uncategorized
    pictures: tuple[bytes | None, ...]  # None where the source has an image without a picture


def draw_products(counts: Mapping[str, int], first: int = 0) -> list[Drawn]:
    """Products with one to three photos each, all different; ids and photos count up from `first`."""
    drawn = []
    for category, count in counts.items():
        for _ in range(count):
            number = first + len(drawn)
            pictures = tuple(photo(10 * number + place) for place in range(1 + number % 3))
            drawn.append(Drawn(str(number), category, pictures))
    return drawn


def write_bson(file: Path, documents: Iterable[Mapping[str, Any]]) -> Path:
    """A BSON file, document after document."""
    file.write_bytes(b"".join(map(bson.encode, documents)))
    return file


def documents(products: Iterable[Drawn]) -> list[dict[str, Any]]:
    """The products as Cdiscount's documents."""
    return [
        {
            "_id": int(product.id),
            **({"category_id": int(product.category)} if product.category else {}),
            "imgs": [{} if picture is None else {"picture": picture} for picture in product.pictures],
        }
        for product in products
    ]


def write_manifest(file: Path, rows: list[dict[str, Any]]) -> Path:
    """A manifest, CSV or Parquet by its name; the first row has all the columns."""
    if file.suffix == ".parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in rows[0]}), file)
        return file
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def manifest_rows(folder: Path, products: Iterable[Drawn]) -> list[dict[str, Any]]:
    """Writes the pictures into `folder`/photos; a row for each."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = []
    for product in products:
        for place, picture in enumerate(product.pictures):
            image = f"photos/{product.id}-{place}.jpg"
            if picture is not None:
                (folder / image).write_bytes(picture)
            rows.append({"product_id": product.id, "image": image, "category": product.category})
    return rows


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """A folder of files."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
