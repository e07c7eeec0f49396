"""Adapt: a file of corrections → the store of corrections, so that the next decision about a seller changes.

    FILE ─► given.py ─► corrections, rejects
    photos that are sent along, else those that runs and batches know ─► digests of each product
    store of bottlenecks ─► vectors ─► learnt, PIECE corrections at a time: what is learnt is durable

    FILE.rejects.csv    beside FILE.csv: row, product_id, seller, category, reason, detail; photos without row

A correction whose vector cannot be had is kept: it is a label of the next run. Killed at any time, the same
command goes on: what was learnt before is `same`. It works beside a service and other commands.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath
from features.storage.store import Digests, Locations, Store
from models.corrections.categories import KnownCategories
from models.corrections.correction import Correction
from models.corrections.hindsight import worse_sellers
from models.corrections.histories import Histories
from models.corrections.known_photos import known_photos
from models.corrections.store import Corrections
from models.decisions.bundle import Bundle
from models.decisions.cascade import joined_views
from models.decisions.categorizer import Categorizer
from models.decisions.confidence import product_ranges
from pipeline.adapt.given import (
    GivenCorrection,
    GivenCorrections,
    read_corrections,
    without_older,
    write_rejects,
)
from pipeline.adapt.photos import Photos, read_photos
from pipeline.job.config import Config
from pipeline.job.progress import Progress, log
from pipeline.job.stage import counts_of
from pipeline.sources.tables import csv_options

PIECE = 256  # corrections learnt together
IMAGES = 256  # bottlenecks read together: each may be in a shard of its own, which is an open file
NO_PHOTO, REFUSED, NOT_STORED = "no_photo_known", "photos_refused", "not_in_the_store"


class AdaptSummary(BaseModel):
    """Where every row of a file went, and what else happened."""

    model_config = ConfigDict(frozen=True)

    release: str | None
    rows: int
    new: int
    same: int  # known before, or said by another row
    replaced: int  # the seller had said something else about the product
    rejected: int
    reasons: dict[str, int]  # rejected rows
    rejects: str | None  # the file that lists them
    without_vector: dict[str, int]  # corrections that are labels only, by reason
    photos_extracted: int
    photos_refused: int
    flagged: dict[str, str]  # sellers of the file whose corrections look wrong, and why


def rejects_file(file: AnyPath) -> AnyPath:
    """The file of the rows that are not taken: `a.rejects.csv` beside `a.csv.gz`."""
    name = re.sub(r"(?i)(\.(csv|tsv)(\.gz)?|\.parquet)$", "", file.name)
    return file.with_name(f"{name}.rejects.csv")


def adapt(
    file: AnyPath,
    workspace: AnyPath,
    bundle: Bundle,
    corrections: Corrections,
    config: Config,
    photos: Sequence[str] = (),
    rejects: AnyPath | None = None,
) -> AdaptSummary:
    """Learns the corrections of a file.

    Args:
        file: CSV, TSV or Parquet, see given.py.
        workspace: of runs, batches and the store of bottlenecks.
        bundle: in service.
        corrections: are added to.
        config: sections [ingest] and [extract].
        photos: sources of the products' photos, as for `categorize`; one is the file itself where it has a
            column `image`.
        rejects: CSV of the rows that are not taken; None: beside the file.

    Raises:
        ShelfmarkError: the file, or a source of photos, cannot be read; no row can be used.
    """
    rejects = rejects_file(file) if rejects is None else rejects
    given = read_corrections(file, csv_options(config.ingest), KnownCategories.of_bundle(bundle.path))
    given = without_older(given, corrections)
    write_rejects(given.rejects, rejects)
    _require_some(given, file, rejects)
    sources = [*([str(file)] if given.has_images else []), *photos]
    vectors = _Vectors.of(given, sources, workspace, bundle, config)
    write_rejects(given.rejects, rejects, vectors.photos.refused)
    _encode_missing(bundle, corrections)
    counts, without = _learn(given, vectors, bundle, corrections)
    _flag_worse(given, bundle, corrections)
    summary = AdaptSummary(
        release=bundle.categorizer.release,
        rows=given.rows,
        new=counts["new"],
        same=counts["same"] + given.repeated,
        replaced=counts["replaced"],
        rejected=len(given.rejects),
        reasons=given.reasons(),
        rejects=str(rejects) if given.rejects or vectors.photos.refused else None,
        without_vector=dict(sorted(without.items())),
        photos_extracted=vectors.photos.extracted,
        photos_refused=len(vectors.photos.refused),
        flagged=_flagged(corrections, {one.seller for one in given.corrections}),
    )
    _require_closed(summary, file)
    counted = summary.model_dump(exclude={"flagged", "rejects"})
    log.info("corrections: %s", counts_of({name: value for name, value in counted.items() if value != {}}))
    return summary


def _require_some(given: GivenCorrections, file: AnyPath, rejects: AnyPath) -> None:
    if given.rows and not given.corrections:
        first, common = given.rejects[0], ", ".join(f"{why} {n:,}" for why, n in given.reasons().items())
        raise ShelfmarkError(
            f"{file}: none of {given.rows:,} rows can be used ({common}), for example row {first.row}: "
            f"{first.detail.partition('; expected')[0]}; expected one at least; {rejects} says what is wrong "
            "with each"
        )


def _require_closed(summary: AdaptSummary, file: AnyPath) -> None:
    accounted = summary.new + summary.same + summary.replaced + summary.rejected
    if accounted != summary.rows:
        raise ShelfmarkError(
            f"{file}: of {summary.rows:,} rows {accounted:,} are accounted for; expected all of them; "
            "please report this"
        )


# Vectors


@dataclass(frozen=True)
class _Vectors:
    """Where the bottlenecks of products are."""

    digests: dict[str, list[bytes]]  # of the photos of each product
    photos: Photos  # that were sent along
    refused: frozenset[str]  # products with a photo that was refused
    categorizer: Categorizer
    views: list[Store]  # that it predicts from
    distinct: list[bytes]  # digests of all photos
    position: dict[bytes, int]  # of a digest among them
    locations: list[Locations]  # of each view

    @classmethod
    def of(
        cls, given: GivenCorrections, sources: list[str], workspace: AnyPath, bundle: Bundle, config: Config
    ) -> "_Vectors":
        """Finds the photos of the corrected products; extracts those sent along that the store lacks."""
        main = Store(workspace / "store" / bundle.fingerprint)
        views = [main.view(one) for one in bundle.categorizer.views]
        wanted = {one.product_id for one in given.corrections}
        photos = read_photos(sources, wanted, bundle, views, config) if sources and wanted else Photos()
        known = known_photos(workspace, bundle.categorizer.release, wanted - photos.digests.keys())
        digests = photos.digests | known
        distinct = list(dict.fromkeys(digest for its in digests.values() for digest in its))
        values = Digests(np.frombuffer(b"".join(distinct), np.uint8).reshape(-1, 32))
        locations = [store.find(values) for store in views]
        position = {digest: at for at, digest in enumerate(distinct)}
        refused = frozenset(photo.product_id for photo in photos.refused)
        return cls(digests, photos, refused, bundle.categorizer, views, distinct, position, locations)

    def stored(self, product_id: str) -> list[int]:
        """Positions of those photos of a product that the store has, in all views that are always needed."""
        at = [self.position[digest] for digest in self.digests.get(product_id, ())]
        needed = self.locations[:1] if self.categorizer.rules.cascade else self.locations
        return [one for one in at if all(found.row[one] >= 0 for found in needed)]

    def reason(self, product_id: str) -> str:
        """Why a product without a stored photo has none."""
        if product_id in self.digests:
            return NOT_STORED
        return REFUSED if product_id in self.refused else NO_PHOTO

    def read(self, products: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Of each product (rows, d) float16 that decide about it; `products`: the photos of each, some."""
        found = list[np.ndarray]()
        for start, stop in product_ranges(np.cumsum([0, *map(len, products)]), IMAGES):
            found += self._read(products[start:stop])
        return found

    def _read(self, products: Sequence[Sequence[int]]) -> list[np.ndarray]:
        at, bounds = np.concatenate(products), np.cumsum([0, *map(len, products)])
        if self.categorizer.rules.cascade is None:
            every = [self._of_view(view, at) for view in range(len(self.views))]
            rows, ends = self.categorizer.rows(every), bounds * self.categorizer.rows_of_image
        else:
            first = self._of_view(0, at)
            again = np.repeat(self.categorizer.looks_again(first, bounds), np.diff(bounds))
            # of a photo that was decided about by its first view there may be no other
            again &= np.all([found.row[at] >= 0 for found in self.locations], axis=0)
            others = [self._of_view(view, at[again]) for view in range(1, len(self.views))]
            count = np.where(again, len(self.views), 1)
            rows, ends = joined_views(first, again, others), np.concatenate([[0], np.cumsum(count)])[bounds]
        return np.split(rows, ends[1:-1])

    def _of_view(self, view: int, at: np.ndarray) -> np.ndarray:
        opened, there = Store(self.views[view].path), self.locations[view]  # a new one: it holds shards open
        return opened.rows(there.names, there.shard[at], there.row[at])[:]


# Learning


def _encode_missing(bundle: Bundle, corrections: Corrections) -> None:
    """Encodes corrections that were made while another release was in service."""
    if bundle.adapter and (encoded := Histories(bundle.adapter, corrections).carry()):
        log.info("corrections: %s made under another release are encoded for this one", f"{encoded:,}")


def _learn(
    given: GivenCorrections, vectors: _Vectors, bundle: Bundle, corrections: Corrections
) -> tuple[Counter[str], Counter[str]]:
    """Adds the corrections, PIECE at a time; counts what became of them, and those without a vector."""
    histories = Histories(bundle.adapter, corrections) if bundle.adapter else None
    if histories is None:
        log.warning(
            "corrections: release %s was made without sellers (sellers.method, or an earlier version); "
            "corrections are labels of the next run", bundle.categorizer.release,
        )  # fmt: skip
    counts, without = Counter[str](), Counter[str]()
    with Progress("adapt", len(given.corrections)) as progress:
        for start in range(0, len(given.corrections), PIECE):
            piece = list(_made(given.corrections[start : start + PIECE], vectors, bundle, without))
            added = histories.learn(piece) if histories else corrections.add([(one, None) for one in piece])
            counts.update(one.state for one in added)
            progress.to(start + len(piece))
    return counts, without


def _made(
    piece: Sequence[GivenCorrection], vectors: _Vectors, bundle: Bundle, without: Counter[str]
) -> Iterator[Correction]:
    """The corrections of a piece, with the bottlenecks that can be had."""
    stored = [vectors.stored(one.product_id) for one in piece]
    rows = iter(vectors.read([its for its in stored if its]))
    for one, its in zip(piece, stored, strict=True):
        if not its:
            without[vectors.reason(one.product_id)] += 1
        yield Correction(
            seller=one.seller,
            product_id=one.product_id,
            category=one.category,
            who=one.who,
            when=one.when,
            comment=one.comment,
            release=bundle.categorizer.release,
            images=tuple(vectors.distinct[photo].hex() for photo in its),
            fingerprint=bundle.fingerprint if its else None,
            bottlenecks=next(rows) if its else None,
        )


def _flagged(corrections: Corrections, sellers: set[str]) -> dict[str, str]:
    return {one.seller: one.flagged for one in corrections.sellers() if one.flagged and one.seller in sellers}


def _flag_worse(given: GivenCorrections, bundle: Bundle, corrections: Corrections) -> None:
    """Flags the sellers of the file whose corrections hurt their own later decisions."""
    if bundle.adapter:
        names = {one.seller for one in given.corrections}
        accounts = [one for one in corrections.sellers() if one.seller in names]
        for seller, why in worse_sellers(bundle.adapter, corrections, accounts).items():
            corrections.flag(seller, why)
