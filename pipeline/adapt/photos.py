"""Photos that are sent along with corrections: hashed, and extracted where the store lacks them.

    sources ──► first reading: digests ──► store knows them ─────────────────────────────► digests by product
                                     └───► second reading of the others: normalised, ──┘
                                           the backbone is loaded, shards of the store

Of folders and tables only the photos of corrected products are read. Killed, the same command finds in the
store what it has extracted.
"""

import functools
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.engines.engine import Engine
from features.images.normalise import normalise
from features.images.refusal import Refused
from features.records import pieces_of
from features.storage.store import Digests, Store
from features.views import View
from models.decisions.bundle import Bundle
from pipeline.adapt.given import RefusedPhoto
from pipeline.extract.fill_store import (
    engines_of,
    make_shard,
    require_all,
    require_room,
    stores_by_network,
    try_twice,
)
from pipeline.ingest.check_images import fetching_of, image_limits
from pipeline.ingest.index import NO_IMAGE
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.sources.image import SourceImage
from pipeline.sources.listing import only_products
from pipeline.sources.source import Source, open_sources, read_segment
from pipeline.sources.tables import csv_options

SHARD_IMAGES, SHARD_BYTES = 512, 2**27  # decoded together, at most; what a killed command loses


@dataclass
class Photos:
    """The photos of products: digests (sha256 of the source's bytes), and those that are refused."""

    digests: dict[str, list[bytes]] = field(default_factory=dict)  # product_id → its different photos
    refused: list[RefusedPhoto] = field(default_factory=list)
    files: dict[tuple[str, bytes], str] = field(default_factory=dict)  # product_id, digest → where it is
    extracted: int = 0  # photos that the store lacked


def read_photos(
    sources: list[str], wanted: set[str], bundle: Bundle, views: list[Store], config: Config
) -> Photos:
    """Reads the photos of products, and adds those that the store lacks to it.

    Args:
        sources: paths or URLs, as for `categorize`.
        wanted: product_id.
        bundle: in service.
        views: the stores of the views that it predicts from.
        config: sections [ingest] and [extract].

    Raises:
        ShelfmarkError: a source cannot be read, or photos cannot be extracted.
    """
    photos = Photos()
    opened = open_sources(sources, csv_options(config.ingest), may_be_empty=True)
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as scratch:
        reading = _Reading(opened, config, Path(scratch))
        for image in reading.images(wanted):
            if image.reason:
                if image.reason != NO_IMAGE:
                    name = image.origin or image.file
                    photos.refused.append(RefusedPhoto(image.product_id, name, image.reason, image.detail))
                continue
            digest, known = (
                hashlib.sha256(image.data).digest(),
                photos.digests.setdefault(image.product_id, []),
            )
            if digest not in known:
                known.append(digest)
                photos.files[image.product_id, digest] = image.origin or image.file
        lacking = _lacking(photos, views)
        if lacking:
            _extract(reading, lacking, photos, bundle, views, config)
    return photos


@dataclass
class _Reading:
    """Sources that are read more than once."""

    sources: list[Source]
    config: Config
    scratch: Path
    readings: int = 0

    def images(self, wanted: set[str]) -> Iterator[SourceImage]:
        """The images of these products, in the sources' order."""
        self.readings += 1
        work, settings = self.scratch / str(self.readings), self.config.ingest
        work.mkdir()
        fetching = fetching_of(settings, self.scratch / "fetched")
        for source in self.sources:
            for whole in source.segments(work, settings.unit_bytes, settings.unit_images):
                for segment in only_products(whole, wanted, work / "wanted"):
                    for image in read_segment(segment, fetching):
                        if image.product_id in wanted:
                            yield image


def _lacking(photos: Photos, views: list[Store]) -> set[bytes]:
    """Digests that a view of the store does not have."""
    distinct = list(dict.fromkeys(digest for its in photos.digests.values() for digest in its))
    if not distinct:
        return set()
    values = Digests(np.frombuffer(b"".join(distinct), np.uint8).reshape(-1, 32))
    there = np.all([store.find(values).row >= 0 for store in views], axis=0)
    return {digest for digest, is_there in zip(distinct, there.tolist(), strict=True) if not is_there}


def _extract(
    reading: _Reading, lacking: set[bytes], photos: Photos, bundle: Bundle, views: list[Store], config: Config
) -> None:
    """Adds the lacking photos to the store; those that are refused are no photos of their products."""
    products = {product for product, its in photos.digests.items() if lacking.intersection(its)}
    log.info("adapt: %s photos are new to the store", f"{len(lacking):,}")
    backbone, limits = bundle.backbone(), image_limits(config.ingest)
    require_room(views, len(lacking), backbone)
    engines: dict[View, Engine] = {}
    done, refused = set[bytes](), dict[bytes, Refused | None]()
    held: dict[bytes, bytes] = {}  # digest → strict JPEG

    def flush() -> None:
        if not held:
            return
        jpegs = list(held.values())
        if not engines:
            sample = lambda most: pieces_of(jpegs[:most], source="photos")  # noqa: E731
            engines.update(engines_of(backbone, views, config.extract, sample))
        digests = np.frombuffer(b"".join(held), np.uint8).reshape(-1, 32)
        pieces = functools.partial(pieces_of, jpegs, source="photos")
        for stores in stores_by_network(views):
            engine = engines[stores[0].of.network]
            reason = try_twice(
                functools.partial(make_shard, stores, digests, pieces, engine, backbone.weights)
            )
            require_all(stores, {"of photos": reason} if reason else {}, "photos that were sent along")
        photos.extracted += len(held)
        held.clear()

    for image in reading.images(products):
        digest = b"" if image.reason else hashlib.sha256(image.data).digest()
        if digest not in lacking or digest in done:
            continue
        done.add(digest)
        try:
            held[digest] = normalise(image.data, limits).jpeg
        except Refused as error:
            refused[digest] = error
        if len(held) >= SHARD_IMAGES or sum(map(len, held.values())) >= SHARD_BYTES:
            flush()
    flush()
    _forget_refused(photos, refused | dict.fromkeys(lacking - done))


def _forget_refused(photos: Photos, refused: dict[bytes, Refused | None]) -> None:
    """Takes photos away that were refused; None stands for one that was gone when it was read again."""
    for product, its in photos.digests.items():
        for digest in its:
            if digest in refused:
                error = refused[digest]
                reason, detail = (error.reason, error.detail) if error else ("changed", "while it was read")
                photos.refused.append(RefusedPhoto(product, photos.files[product, digest], reason, detail))
    photos.digests = {
        product: good
        for product, its in photos.digests.items()
        if (good := [digest for digest in its if digest not in refused])
    }
