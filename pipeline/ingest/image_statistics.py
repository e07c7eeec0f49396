"""Image statistics: what the photos of a catalogue, or of a batch, are like; one photo of each product.

    image_statistics.json   {"images": [...], "size": [...], "kind": {"jpeg": n, …}, "placeholder": [n, rest]}

`images` counts products by their readable images, `size` by the side of a square of as many pixels (SIDES);
`placeholder` is the count of products whose first photo is a placeholder, then of the others. Only the first
photo of a product counts: the photos of one product are alike, and together no more evidence than one.
"""

from collections import Counter
from typing import TypedDict

import numpy as np
import pyarrow.compute as pc

from pipeline.ingest.check_images import CheckedImages
from pipeline.ingest.index import Index

IMAGE_STATISTICS = "image_statistics.json"
IMAGES = (2, 3, 4, 5)  # bins begin here: 1, 2, 3, 4, and 5 or more readable images
SIDES = (64, 96, 128, 180, 256, 360, 512, 720, 1024, 1440, 2048, 2880)  # pixels; bins begin here


class ImageStatistics(TypedDict):
    """The keys of image_statistics.json."""

    images: list[int]
    size: list[int]
    kind: dict[str, int]
    placeholder: list[int]


def image_statistics(
    checked: CheckedImages, index: Index, placeholder: np.ndarray, *, categorized: bool
) -> ImageStatistics:
    """Counts the products of checked images.

    Args:
        checked: all images.
        index: of their n rows.
        placeholder: (n,) bool, as `find_shared` finds them.
        categorized: only products with a category.
    """
    chosen = index.good & (index.product >= 0)
    if categorized:
        chosen &= index.category.code > 0
    images = np.bincount(index.product[chosen], minlength=1)
    first = chosen & (index.image_index == 0)
    side = np.zeros(len(first), np.int32)
    kinds, start = Counter[str](), 0
    for table in checked.tables(["width", "height", "kind"]):
        here = slice(start, start + len(table))
        start += len(table)
        pixels = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
        side[here] = np.sqrt(pixels).astype(np.int32)
        for pair in pc.value_counts(table["kind"].filter(first[here])).to_pylist():
            kinds[pair["values"]] += pair["counts"]
    hidden = int((placeholder & first).sum())
    return ImageStatistics(
        images=_counts(images[images > 0], IMAGES),
        size=_counts(side[first], SIDES),
        kind=dict(sorted(kinds.items())),
        placeholder=[hidden, int(first.sum()) - hidden],
    )


def _counts(values: np.ndarray, edges: tuple[int, ...]) -> list[int]:
    counts: list[int] = np.bincount(
        np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1
    ).tolist()
    return counts
