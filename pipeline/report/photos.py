"""The photos in the page: which ones, and their thumbnails from the records.

Products, confusions, categories, suspects ── choose ─► Choice: rows of products, digests of suspects
records/images.parquet, *.tfrecord ── thumbnails ─► WebP, 128 px, about 3 kB each; at most 300 and 6 MB
thumbnails, maps ── map_overlays ─► WebP of the same size: where the network looked
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from features.errors import ShelfmarkError
from features.records import image_of, unframe
from features.storage.paths import AnyPath, local, read_range
from pipeline.job.heat_map import overlay
from pipeline.report.data import Products, ReportData, worst_first

SIDE = 128  # px of the longer side
QUALITY = 60  # of WebP
MOST_BYTES = 6_000_000  # of all thumbnails, in base64
OF_A_CATEGORY = 5  # correct, wrong and doubtful ones each
KEYS = ["product_id", "image_digest"]  # columns of images.parquet
PLACE = ["file", "offset", "length"]  # columns of images.parquet: where a record is


@dataclass(frozen=True)
class Choice:
    """Rows of the measured products whose photos the page shows, and digests of suspects' photos."""

    confusions: dict[tuple[str, str], tuple[int, int | None]] = field(
        default_factory=dict
    )  # confused, typical
    wrong: list[int] = field(default_factory=list)
    categories: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # correct, wrong, doubtful
    changed: list[int] = field(default_factory=list)  # that became correct or wrong
    suspects: list[str] = field(default_factory=list)

    def rows(self) -> list[int]:
        """All rows, each once, in the order in which photos are kept when there are too many bytes."""
        chosen: list[int] = [*self.wrong, *self.changed]
        for confused, typical in self.confusions.values():
            chosen += [confused] if typical is None else [confused, typical]
        for kinds in self.categories.values():
            chosen += [row for rows in kinds.values() for row in rows]
        return list(dict.fromkeys(chosen))

    def mapped(self, most: int) -> list[int]:
        """Rows whose photos have a map of where the network looked: two wrong products, a doubtful one, ….

        Args:
            most: rows, at most.
        """
        doubtful = [row for kinds in self.categories.values() for row in kinds["doubtful"]]
        pairs = itertools.zip_longest(self.wrong[::2], self.wrong[1::2], doubtful)
        rows = [row for pair in pairs for row in pair if row is not None]
        return list(dict.fromkeys(rows))[:most]


def choose(data: ReportData, most: int, wrong: np.ndarray, changed: Sequence[np.ndarray]) -> Choice:
    """Chooses the photos: of 300 40 wrong products, 20 confusions, 40 suspects, 20 changed, 10 categories.

    Args:
        data: of the run.
        most: photos, at most.
        wrong: rows of the wrong products, the most confident first.
        changed: rows of those that became correct, and of those that became wrong.
    """
    share = most * 2 // 15
    suspects = [] if data.suspects is None else data.suspects["image_digest"].head(share).tolist()
    return Choice(
        confusions=_confused(data, share // 2),
        wrong=wrong[:share].tolist(),
        categories=_of_categories(data, (most - 7 * share // 2) // (3 * OF_A_CATEGORY)),
        changed=[row for rows in changed for row in rows[: share // 4].tolist()],
        suspects=suspects,
    )


def _confused(data: ReportData, most: int) -> dict[tuple[str, str], tuple[int, int | None]]:
    """For the first confusions: the most confident confused product, and one that is rightly there."""
    products, found = data.products, {}
    truth, predicted = _positions(products.true.values), _positions(products.predicted.values)
    for true, other in (
        data.confusions[["category", "predicted"]].head(most).itertuples(index=False, name=None)
    ):
        here = products.predicted.code == predicted.get(other, -2)
        confused = _confident(products, here & (products.true.code == truth.get(true, -2)), 1)
        typical = _confident(products, here & products.correct, 1)
        if confused:
            found[true, other] = (confused[0], typical[0] if typical else None)
    return found


def _of_categories(data: ReportData, most: int) -> dict[str, dict[str, list[int]]]:
    """Photos of the categories with the most errors, of those that anything is predicted as."""
    products, position = data.products, _positions(data.products.predicted.values)
    worst = worst_first(data.categories[data.categories["predicted"] > 0])["category"].head(most)
    found = {}
    for category in worst:
        here = products.predicted.code == position.get(category, -2)
        found[str(category)] = {
            "correct": _confident(products, here & products.correct, OF_A_CATEGORY),
            "wrong": _confident(products, here & ~products.correct, OF_A_CATEGORY),
            "doubtful": _confident(products, here, OF_A_CATEGORY, least=True),
        }
    return found


def _positions(values: np.ndarray) -> dict[str, int]:
    return {str(value): position for position, value in enumerate(values)}


def _confident(products: Products, chosen: np.ndarray, most: int, least: bool = False) -> list[int]:
    """Rows of the most confident of the chosen products, or of the least confident ones."""
    rows = np.flatnonzero(chosen)
    confidence = products.confidence[rows]
    order = np.argsort(confidence if least else -confidence, kind="stable")[:most]
    return rows[order].tolist()  # type: ignore[no-any-return]


# Reading


def thumbnails(records: AnyPath, product_ids: Iterable[str], digests: Iterable[str]) -> dict[str, bytes]:
    """WebP thumbnails by product_id (of the product's first image) and by image digest.

    A product whose images the records do not hold has none. When all are larger than MOST_BYTES, the last
    ones are left out.

    Args:
        records: the directory of ingest.
        product_ids: wanted, the most important first.
        digests: of wanted images.

    Raises:
        ShelfmarkError: a file is missing, or a record is damaged.
    """
    ids, images = list(product_ids), list(digests)
    places = _places(records, ids, images)
    found: dict[str, bytes] = {}
    size = 0
    for name in (*images, *ids):
        if name in places and name not in found:
            found[name] = _thumbnail(_jpeg(records, *places[name]))
            size += len(found[name]) * 4 // 3
            if size > MOST_BYTES:
                del found[name]
                break
    return found


def first_jpegs(records: AnyPath, product_ids: Iterable[str]) -> dict[str, bytes]:
    """The JPEG of each product's first image, by product_id, of the products that the records hold.

    Args:
        records: the directory of ingest.
        product_ids: wanted, a few.

    Raises:
        ShelfmarkError: a file is missing, or a record is damaged.
    """
    ids = list(product_ids)
    places = _places(records, ids, [])
    return {name: _jpeg(records, *places[name]) for name in ids if name in places}


def _places(records: AnyPath, ids: list[str], digests: list[str]) -> dict[str, tuple[str, int, int]]:
    """File, offset and length of a record for each product_id and digest that images.parquet has."""
    places: dict[str, tuple[str, int, int]] = {}
    for found in _matching_rows(records / "images.parquet", ids, digests):
        columns = [found.sort_values("image_index", kind="stable")[name].tolist() for name in (*KEYS, *PLACE)]
        for product_id, digest, *place in zip(*columns, strict=True):
            places.setdefault(product_id, (place[0], place[1], place[2]))
            places.setdefault(digest, (place[0], place[1], place[2]))
    return places


def _matching_rows(file: AnyPath, ids: list[str], digests: list[str]) -> Iterator[pd.DataFrame]:
    """Rows of the wanted products and images, a row group of the file in memory at a time."""
    wanted_ids, wanted_digests = pa.array(ids, pa.string()), pa.array(digests, pa.string())
    try:
        with pq.ParquetFile(local(file)) as images:
            for group in range(images.num_row_groups):
                keys = images.read_row_group(group, KEYS)
                match = pc.or_(
                    pc.is_in(keys["product_id"], wanted_ids), pc.is_in(keys["image_digest"], wanted_digests)
                )
                if pc.any(match).as_py():
                    columns = [*KEYS, "image_index", *PLACE]
                    yield images.read_row_group(group, columns).filter(match).to_pandas()
    except FileNotFoundError as error:
        raise ShelfmarkError(
            f"{file}: missing; expected the images of the records; run `shelfmark ingest` first"
        ) from error


def _jpeg(records: AnyPath, file: str, offset: int, length: int) -> bytes:
    """The JPEG in a record."""
    return image_of(unframe(read_range(records / file, offset, length)))


def _thumbnail(jpeg: bytes) -> bytes:
    """A small WebP of a JPEG."""
    with Image.open(io.BytesIO(jpeg)) as photo:
        photo.draft("RGB", (2 * SIDE, 2 * SIDE))
        small = photo.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return _webp(small)


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def map_overlays(photos: Mapping[str, bytes], maps: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """WebP of the thumbnails under their maps, for those that have one.

    Args:
        photos: of `thumbnails`.
        maps: (h, w) 0..1, by product_id.
    """
    found = {}
    for name, photo in photos.items():
        if name in maps:
            with Image.open(io.BytesIO(photo)) as opened:
                found[name] = _webp(overlay(opened.convert("RGB"), maps[name]))
    return found
