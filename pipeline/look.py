"""Look: every image of the sources fully checked, once, and where its bytes stand.

    _look/unit-00000.parquet   one row an image (or product without any), in the source's order
    _look/listing-0.parquet    what a folder or a manifest lists, cut into units

Units are looked at by Beam's workers, each on its own; what comes back are these files.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.files import Place
from features.images import Limits, Refused, normalise
from features.product import order_key
from pipeline.plan import COLUMNS, Index, build_index
from pipeline.sources.image import SourceImage, Unit
from pipeline.sources.source import Source, read_unit
from pipeline.units import run_units, unit_file, write_table

if TYPE_CHECKING:
    from pipeline.config import Ingest

LOOK = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "split", "seller", "file")]
    + [("order_key", pa.int64()), ("offset", pa.int64()), ("length", pa.int32()), ("checksum", pa.uint32())]
    + [("image_digest", pa.binary(32)), ("kept", pa.bool_()), ("flat", pa.bool_())]
    + [("reason", pa.string()), ("detail", pa.string())]
)
PLACE = ("file", "offset", "length", "checksum")  # what `read_images` needs
NO_DIGEST = bytes(32)
CODED = ["category", "split", "seller", "reason"]  # read as dictionaries: few distinct texts


@dataclass(frozen=True)
class Look:
    """The finished units."""

    files: list[Place]
    roots: list[str]  # what is above the sources

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows, unit by unit, with the columns of LOOK or some of them."""
        for path in self.files:
            with path.open("rb") as file:
                yield pq.read_table(file, columns=columns, read_dictionary=CODED)

    def index(self) -> Index:
        """What the plan keeps of the rows."""
        return build_index(self.tables(COLUMNS), sum(map(_rows_in, self.files)))

    def names(self, file: pa.ChunkedArray) -> pa.ChunkedArray:
        """Files as people call them, without what is above the source: it may stand elsewhere next week."""
        for root in self.roots:
            file = pc.replace_substring_regex(file, "^" + re.escape(root), "")
        return file


def _rows_in(path: Place) -> int:
    with path.open("rb") as file:
        return int(pq.read_metadata(file).num_rows)


def look(
    sources: list[Source],
    settings: "Ingest",
    work: Place,
    beam: tuple[str, ...],
    categories: frozenset[str] | None = None,
) -> Look:
    """Checks every image of the sources.

    Args:
        sources: opened.
        settings: the section [ingest].
        work: directory for the finished units, `_look/`.
        beam: Beam's own options.
        categories: those that the taxonomy knows; images of others are rejected. None: all are known.
    """
    folder = work / "_look"
    folder.mkdir(parents=True, exist_ok=True)
    for listing in folder.glob("listing-*"):
        listing.unlink()
    units = [
        unit for source in sources for unit in source.units(folder, settings.unit_bytes, settings.unit_images)
    ]
    do = functools.partial(look_unit, limits=limits_of(settings), categories=categories)
    run_units("check images", units, do, folder, beam)
    roots = [f"{source.path.parent}/" for source in sources]
    return Look([unit_file(folder, number) for number in range(len(units))], roots)


def limits_of(settings: "Ingest") -> Limits:
    """The limits of an image by the settings."""
    return Limits(max_pixels=settings.max_pixels)


def look_unit(unit: Unit, done: Place, limits: Limits, categories: frozenset[str] | None) -> None:
    """Checks the images of a unit and writes their rows."""
    rows = _rows(unit, limits, categories)
    columns = zip(*rows, strict=True)
    write_table(pa.table(list(map(list, columns)) or [[]] * len(LOOK), schema=LOOK), done)


def _rows(unit: Unit, limits: Limits, categories: frozenset[str] | None) -> Iterator[tuple[Any, ...]]:
    """A row of LOOK for every image."""
    product_id, key = None, 0
    for image in read_unit(unit):
        if image.product_id != product_id:
            product_id, key = image.product_id, order_key(image.product_id)
        digest, kept, flat, reason, detail = _check(image, limits)
        if not reason and categories is not None and image.category and image.category not in categories:
            reason, detail = "unknown_category", f"category {image.category} is not in the taxonomy"
        told = (image.product_id, image.category, image.split, image.seller, image.file)
        checksum = google_crc32c.value(image.data)  # a fifth of the time of the digest, to check it by
        yield (*told, key, image.offset, len(image.data), checksum, digest, kept, flat, reason, detail)


def _check(image: SourceImage, limits: Limits) -> tuple[bytes, bool, bool, str, str]:
    """Digest, whether its bytes are kept as they are, whether it is flat, reason and detail of a refusal."""
    if image.reason:
        return NO_DIGEST, False, False, image.reason, image.detail
    digest = hashlib.sha256(image.data).digest()
    try:
        normalised = normalise(image.data, limits)
    except Refused as refused:
        return digest, False, False, refused.reason, refused.detail
    return digest, normalised.kept, normalised.flat, "", ""
