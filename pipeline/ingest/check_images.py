"""The check: every image of the sources is fully checked, once; its row says where its bytes are.

    _look/unit-00000.parquet   CHECKED: one row an image (or product without any), in the source's order
    _look/unit-00000.pictures  its images, one after the other, where the source holds them within a table
    _look/listing-0.parquet    what a folder or a manifest lists, a row group a segment

Segments are checked by Beam's workers, a unit of work each; what comes back are these files.
"""

import functools
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.images.normalise import kind_of, normalise
from features.images.refusal import Limits, Refused
from features.product import order_key, tidy_name
from features.storage.paths import AnyPath, absolute, any_path, remove, sizes, writing
from pipeline.beam.run_units import rows_in, run_units, unit_file, write_rows, write_table
from pipeline.ingest.index import COLUMNS, Index, build_index
from pipeline.job.progress import log
from pipeline.sources.image import ImageKey, Segment, SourceImage, path_text
from pipeline.sources.names import AS_NAMED, Renamed
from pipeline.sources.source import Source, read_segment
from pipeline.sources.urls import Fetching

if TYPE_CHECKING:
    from pipeline.job.config import IngestSettings

# The name that earlier versions gave it: a job of theirs that was killed may have written shards that agree
# with its rows, and checked anew under another name, images may have changed meanwhile.
FOLDER = "_look"
CHECKED = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "split", "seller", "file")]
    + [("order_key", pa.int64()), ("offset", pa.int64()), ("length", pa.int32()), ("checksum", pa.uint32())]
    + [("image_digest", pa.binary(32)), ("kept", pa.bool_()), ("flat", pa.bool_())]
    + [("width", pa.int32()), ("height", pa.int32()), ("kind", pa.string())]
    + [("reason", pa.string()), ("detail", pa.string()), ("weight", pa.float64())]
)
LOCATION = ("file", "offset", "length", "checksum")  # what `read_images` needs
NO_DIGEST = bytes(32)
UNREACHABLE = "unreachable"
CODED = ["category", "split", "seller", "kind", "reason"]  # read as dictionaries: few distinct texts


class CheckedRow(NamedTuple):
    """A row of CHECKED, with its columns in their order."""

    product_id: str
    category: str
    split: str
    seller: str
    file: str
    order_key: int
    offset: int
    length: int
    checksum: int
    image_digest: bytes
    kept: bool
    flat: bool
    width: int
    height: int
    kind: str
    reason: str
    detail: str
    weight: float | None


@dataclass(frozen=True)
class CheckedImages:
    """The rows of all checked images, in the files of the finished units."""

    files: list[AnyPath]
    roots: list[str]  # what is above the sources

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows, file by file, with the columns of CHECKED or some of them."""
        for path in self.files:
            with path.open("rb") as file:
                yield pq.read_table(file, columns=columns, read_dictionary=CODED)

    def index(self) -> Index:
        """What the plan keeps of the rows."""
        return build_index(self.tables(COLUMNS), sum(map(rows_in, self.files)))

    def names(self, file: pa.ChunkedArray) -> pa.ChunkedArray:
        """Files as people call them, without the path above the source: the source may be moved next week."""
        return without_roots(file, self.roots)

    def reject(self, images: Collection[ImageKey]) -> None:
        """Turns readable images into rejects with the reason `changed`."""
        files = pa.array(sorted({file for file, _ in images}), pa.string())
        for path in self.files:
            with path.open("rb") as opened:
                table = pq.read_table(opened)
            if pc.any(pc.is_in(table["file"], files)).as_py():
                write_table(_rejected(table, images), path)


def without_roots(file: pa.ChunkedArray, roots: list[str]) -> pa.ChunkedArray:
    """Paths of files without these beginnings."""
    for root in roots:
        file = pc.replace_substring_regex(file, "^" + re.escape(root), "")
    return file


def _rejected(table: pa.Table, images: Collection[ImageKey]) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        if (row["file"], row["offset"]) in images and not row["reason"]:
            row |= {"reason": "changed", "detail": "gone, or not the same, when it was read again"}
    return pa.Table.from_pylist(rows, CHECKED)


def check_images(
    sources: list[Source],
    settings: "IngestSettings",
    work: AnyPath,
    beam: tuple[str, ...],
    fetched: AnyPath,
    categories: frozenset[str] | None = None,
    renamed: Renamed = AS_NAMED,
) -> CheckedImages:
    """Checks every image of the sources.

    Args:
        sources: opened.
        settings: the section [ingest].
        work: directory in which the folder of the finished units is.
        beam: Beam's own options.
        fetched: directory of the photos fetched from the web; see pipeline/sources/urls.py.
        categories: those that the taxonomy knows; images of others are rejected. None: all are known.
        renamed: see Source.segments.
    """
    folder = work / FOLDER
    fetching = fetching_of(settings, fetched)
    segments = segments_of(sources, settings, folder, fetching, renamed)
    do = functools.partial(
        check_unit, limits=image_limits(settings), categories=categories, fetching=fetching
    )
    run_units("check images", segments, do, folder, beam)
    return CheckedImages([unit_file(folder, number) for number in range(len(segments))], roots_of(sources))


def segments_of(
    sources: list[Source],
    settings: "IngestSettings",
    folder: AnyPath,
    fetching: Fetching,
    renamed: Renamed = AS_NAMED,
) -> list[Segment]:
    """The segments of the sources; listings, and the units that are made of the segments, are in `folder`.

    Units with photos that could not be reached are removed, so that they are tried again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for listing in folder.glob("listing-*"):
        listing.unlink()
    segments = [
        segment
        for source in sources
        for segment in source.segments(folder, settings.unit_bytes, settings.unit_images, renamed)
    ]
    if any(segment.root for segment in segments):  # of listings, which may hold web addresses
        _forget_unfetched(folder, fetching.cache)
    return segments


def roots_of(sources: list[Source]) -> list[str]:
    """How the paths of the sources' files begin."""
    return list({f"{root}/": None for source in sources for root in _spellings(source.path.parent)})


def _spellings(root: AnyPath) -> list[str]:
    """How the paths begin of the files below `root`."""
    return [path_text(root), root.as_uri()] if isinstance(root, Path) else [str(root)]


def image_limits(settings: "IngestSettings") -> Limits:
    """The limits that the settings put on an image."""
    return Limits(max_pixels=settings.max_pixels)


def fetching_of(settings: "IngestSettings", fetched: AnyPath) -> Fetching:
    """How the settings want photos to be fetched."""
    cache = absolute(fetched)
    return Fetching(
        path_text(cache), settings.urls, settings.url_concurrency, settings.url_timeout, settings.url_retries
    )


def _forget_unfetched(folder: AnyPath, cache: str) -> None:
    """Removes the units with photos that could not be reached or have gone from the cache."""
    kept = {path_text(any_path(cache) / name) for name in sizes(any_path(cache))}
    for path in folder.glob("unit-*.parquet"):
        with path.open("rb") as file:
            rows = pq.read_table(file, columns=["file", "reason"])
        good = rows["file"].filter(pc.equal(rows["reason"], ""))
        fetched = pc.unique(good.filter(pc.starts_with(good, f"{cache}/"))).to_pylist()
        if pc.any(pc.equal(rows["reason"], UNREACHABLE)).as_py() or not kept.issuperset(fetched):
            path.unlink()


def forget_fetched(fetched: AnyPath, rejects: Mapping[str, int]) -> None:
    """Removes the fetched photos, unless some could not be reached and may be tried again."""
    if not rejects.get(UNREACHABLE):
        remove(fetched)
    else:
        log.warning(
            "%s photos could not be reached; the same command tries them again, and %s keeps the others",
            f"{rejects[UNREACHABLE]:,}", fetched,
        )  # fmt: skip


def check_unit(
    segment: Segment, done: AnyPath, limits: Limits, categories: frozenset[str] | None, fetching: Fetching
) -> None:
    """Checks the images of a segment and writes their rows to `done`."""
    if segment.pictures:
        copies = done.with_suffix(".pictures")
        with writing(copies) as working, open(working, "wb") as file:
            images = (copied(image, file, path_text(copies)) for image in read_segment(segment, fetching))
            rows = list(_rows(images, limits, categories))
    else:
        rows = list(_rows(read_segment(segment, fetching), limits, categories))
    write_rows(rows, CHECKED, done)


def copied(image: SourceImage, file: BinaryIO, name: str) -> SourceImage:
    """The image; its bytes are added to `file`, called `name`, where no range of the source holds them."""
    if image.offset >= 0 or not image.data:
        return image
    offset = file.tell()
    file.write(image.data)
    return image._replace(file=name, offset=offset, origin=image.file)


def _rows(
    images: Iterator[SourceImage], limits: Limits, categories: frozenset[str] | None
) -> Iterator[CheckedRow]:
    """A row for every image."""
    product_id, key = None, 0
    for image in images:
        if image.product_id != product_id:
            product_id, key = image.product_id, order_key(image.product_id)
        checked = _check(image, limits)
        reason, detail = checked.reason, checked.detail
        if not reason and categories is not None and not categories >= {tidy_name(image.category)} - {""}:
            reason, detail = "unknown_category", f"category {image.category} is not in the taxonomy"
        file = image.origin if reason and image.origin else image.file
        yield CheckedRow(
            image.product_id, image.category, image.split, image.seller, file, key, image.offset,
            length=len(image.data),
            checksum=google_crc32c.value(image.data),  # for the second reading: a fifth of the digest's time
            image_digest=checked.digest, kept=checked.kept, flat=checked.flat,
            width=checked.width, height=checked.height, kind=kind_of(image.data),
            reason=reason, detail=detail, weight=image.weight,
        )  # fmt: skip


class _Check(NamedTuple):
    """What the check of an image finds."""

    digest: bytes  # sha256
    kept: bool = False  # its bytes are kept as they are
    flat: bool = False
    width: int = 0  # pixels
    height: int = 0  # pixels
    reason: str = ""  # of a refusal
    detail: str = ""


def _check(image: SourceImage, limits: Limits) -> _Check:
    """Decodes an image."""
    if image.reason:
        return _Check(NO_DIGEST, reason=image.reason, detail=image.detail)
    digest = hashlib.sha256(image.data).digest()
    try:
        normalised = normalise(image.data, limits)
    except Refused as refused:
        return _Check(digest, reason=refused.reason, detail=refused.detail)
    return _Check(digest, normalised.kept, normalised.flat, normalised.width, normalised.height)
