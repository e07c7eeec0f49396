"""The first pass: every image is read and hashed, once; those that the store knows are not decoded.

    _read/unit-00000.parquet    READ: one row an image (or product without any), in the source's order
    _read/unit-00000.pictures   new images, one after the other, where the source holds them within a table
    _read/listing-0.parquet     what a folder or a manifest lists, a row group a segment
    _known/                     digests of the store, see digest_index.py; workers look them up there; with
                                --only-new also products, and sellers whose products are never left out

A unit of work reads a segment. A digest that is in the store belongs to an image that was readable once.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.images.normalise import Normalised, describe, kind_of
from features.images.refusal import Limits, Refused
from features.product import order_key
from features.storage.paths import AnyPath, any_path, remove, writing
from features.storage.store import digests_of
from pipeline.beam.run_units import run_units, unit_file, write_rows
from pipeline.categorize.digest_index import DigestIndex, text_digests
from pipeline.ingest.check_images import NO_DIGEST, copied, fetching_of, image_limits, segments_of
from pipeline.job.config import IngestSettings
from pipeline.sources.image import Segment, SourceImage, path_text
from pipeline.sources.listing import LEFT_OUT
from pipeline.sources.source import Source, read_segment
from pipeline.sources.urls import Fetching

FOLDER, KNOWN, DECIDED, CORRECTED = "_read", "_known", "decided", "corrected"
READ = pa.schema(
    [
        ("product_id", pa.string()),
        ("seller", pa.string()),
        ("order_key", pa.int64()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("checksum", pa.uint32()),
        ("image_digest", pa.binary(32)),
        ("new", pa.bool_()),
        ("flat", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("kind", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
IMAGES, BYTES = 512, 2**24  # looked up together, at most


class ReadRow(NamedTuple):
    """A row of READ, with its columns in their order."""

    product_id: str
    seller: str
    order_key: int
    file: str
    offset: int
    length: int
    checksum: int
    image_digest: bytes
    new: bool  # not in the store; its reason, its size and whether it is flat come with extraction
    flat: bool
    width: int
    height: int
    kind: str
    reason: str
    detail: str


def view_name(view: int) -> str:
    """What the index of a view of the store is called: by its number among the views."""
    return f"view{view}"


# The pass


def read_sources(
    sources: list[Source],
    settings: IngestSettings,
    work: AnyPath,
    fetched: AnyPath,
    views: int,
    needed: int,
    only_new: bool,
    keep_all: bool,
    beam: tuple[str, ...],
) -> list[AnyPath]:
    """Reads all images; returns the files of the units.

    Args:
        sources: opened.
        settings: the section [ingest].
        work: working directory; the indices are in its folder KNOWN.
        fetched: directory of the photos fetched from the web.
        views: of the store, each with its index.
        needed: of these the first ones, which every image needs; for the others an image that a view lacks
            is read again as a new one is, but is not new.
        only_new: products that are in the index DECIDED are left out.
        keep_all: known images are copied from tables, too.
        beam: Beam's own options.
    """
    folder, known = work / FOLDER, work / KNOWN
    fetching = fetching_of(settings, fetched)
    segments = segments_of(sources, settings, folder, fetching)
    job = _Job(path_text(known), views, needed, only_new, keep_all, image_limits(settings), fetching)
    _forget_lost(folder, job)
    run_units("read images", segments, functools.partial(read_unit, job=job), folder, beam)
    return [unit_file(folder, number) for number in range(len(segments))]


def _forget_lost(folder: AnyPath, job: "_Job") -> None:
    """Removes units with images that were in the store when they were read, and are not any more.

    Of one that has a checksum the source is known; it lacks only views that not every image needs.
    """
    indices = job.indices()
    for unit in folder.glob("unit-*.parquet"):
        with unit.open("rb") as file:
            rows = pq.read_table(file, columns=["image_digest", "new", "reason", "checksum"])
        old = rows.filter(pc.and_(pc.equal(rows["reason"], ""), pc.invert(rows["new"])))
        unlocated = old.filter(pc.equal(old["checksum"], 0))
        digests, others = (digests_of(rows["image_digest"]) for rows in (old, unlocated))
        lost = [(index.find(digests) < 0).any() for index in indices[: job.needed]]
        if any(lost) or any((index.find(others) < 0).any() for index in indices[job.needed :]):
            remove(unit.with_suffix(".pictures"))
            unit.unlink()


@dataclass(frozen=True)
class _Job:
    """What workers have to know."""

    known: str  # directory of the indices
    views: int
    needed: int  # of these, by every image
    only_new: bool
    keep_all: bool
    limits: Limits
    fetching: Fetching

    def indices(self) -> list[DigestIndex]:
        """The indices of the views."""
        return [DigestIndex(any_path(self.known), view_name(view)) for view in range(self.views)]


def read_unit(segment: Segment, done: AnyPath, *, job: _Job) -> None:
    """Reads the images of a segment and writes their rows to `done`."""
    if segment.pictures:
        copies = done.with_suffix(".pictures")
        with writing(copies) as working, open(working, "wb") as file:
            rows = list(_rows(segment, job, file, path_text(copies)))
    else:
        rows = list(_rows(segment, job))
    write_rows(rows, READ, done)


def _rows(segment: Segment, job: _Job, copies: BinaryIO | None = None, name: str = "") -> Iterator[ReadRow]:
    """A row for every image; new ones that no range of the source holds are copied into `copies`."""
    indices = job.indices()
    left_out = _Decided(job.known) if job.only_new else None
    product_id, key = None, 0
    for images in _groups(read_segment(segment, job.fetching, left_out)):
        digests = [NO_DIGEST if image.reason else hashlib.sha256(image.data).digest() for image in images]
        there = _found(indices, digests)
        known: list[bool] = np.all(there[: job.needed], axis=0).tolist()
        whole: list[bool] = np.all(there, axis=0).tolist()
        left = frozenset[str]()
        if left_out:
            left = left_out([image.product_id for image in images], [image.seller for image in images])
        for image, digest, is_known, is_whole in zip(images, digests, known, whole, strict=True):
            if image.product_id != product_id:
                product_id, key = image.product_id, order_key(image.product_id)
            if image.product_id in left:
                image = SourceImage(image.product_id, seller=image.seller, reason=LEFT_OUT)
            found, reason, detail = _described(image, is_known, job.limits)
            new = not reason and not is_known
            again = not reason and (not is_whole or job.keep_all)  # its bytes are read once more
            file, offset = image.file, image.offset
            if copies and again:
                image = copied(image, copies, name)
                file, offset = image.file, image.offset
            elif reason and image.origin:
                file = image.origin
            yield ReadRow(
                image.product_id, image.seller, key, file, offset, len(image.data),
                google_crc32c.value(image.data) if again else 0, digest, new,
                found.flat, found.width, found.height, kind_of(image.data), reason, detail,
            )  # fmt: skip


def _groups(images: Iterator[SourceImage]) -> Iterator[list[SourceImage]]:
    """The images, so many together that looking them up costs little and they fit into memory."""
    held: list[SourceImage] = []
    size = 0
    for image in images:
        held.append(image)
        size += len(image.data)
        if len(held) >= IMAGES or size >= BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _found(indices: Sequence[DigestIndex], digests: list[bytes]) -> np.ndarray:
    """(indices, digests) bool: which index has which digest."""
    values = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    return np.array([index.find(values) >= 0 for index in indices])


UNDESCRIBED = Normalised(b"", kept=False, width=0, height=0, flat=False)


def _described(image: SourceImage, is_known: bool, limits: Limits) -> tuple[Normalised, str, str]:
    """What is said of an image without decoding it; the reason and detail of a refusal, or ""."""
    if image.reason or not is_known:
        return UNDESCRIBED, image.reason, image.detail
    try:
        return describe(image.data, limits), "", ""
    except Refused as refused:
        return UNDESCRIBED, refused.reason, refused.detail


class _Decided:
    """Which of some products were decided about before, and have no seller whose corrections count."""

    def __init__(self, folder: str) -> None:
        self._decided = DigestIndex(any_path(folder), DECIDED)
        self._corrected = DigestIndex(any_path(folder), CORRECTED)

    def __call__(self, product_ids: list[str], sellers: list[str]) -> frozenset[str]:
        corrected = self._those_in(self._corrected, sellers)
        again = {one for one, seller in zip(product_ids, sellers, strict=True) if seller in corrected}
        return self._those_in(self._decided, product_ids) - again

    @staticmethod
    def _those_in(index: DigestIndex, texts: list[str]) -> frozenset[str]:
        distinct = [text for text in dict.fromkeys(texts) if text]
        at = index.find(text_digests(distinct))
        return frozenset(itertools.compress(distinct, (at >= 0).tolist()))
