"""Categorize: a decision for every product of a source, by the bundle in service, straight from the photos.

    read      a segment of a source → rows, hashed, not decoded where the store knows the image   read_units
    extract   distinct new images, decoded once → shards of the store, or refusals                extract_new
    sort      rows of all units → parts of whole products, in the order of their ids              sort_rows
    again     of a cascade: other views of products that the first is not certain about           look_again
    sellers   corrections of the batch's sellers → kept for all parts                             sellers
    decide    part by part: bottlenecks → decisions, images, rejects, counts                      decide

    NAME.parquet            one row a product, or a folder, or a table: pipeline/job/decisions_output.py
    NAME.rejects.parquet    the images that were refused, as in rejects.parquet
    NAME.statistics.json    what the photos are like, for `shelfmark monitor`: monitor/batch_statistics.py
    WORKSPACE/categorize/<of the output>/   while at work; rejects and statistics of a table stay there
      images.parquet        stays: the images of each product, see keep_images.py
      fetched/              photos fetched from the web, while some could not be reached

Memory does not grow with the batch. Killed at any time, the same command goes on and gives the same bytes. A
category given in the source is ignored. Where the bundle has an adapter, and corrections are in use when the
job starts, decisions have the columns of ADAPTED; otherwise nothing depends on the sellers.
"""

import functools
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from features.errors import ShelfmarkError
from features.storage.artifact import begin, digest_of
from features.storage.databases import is_database
from features.storage.paths import AnyPath, absolute, any_path, remove, write_whole
from features.storage.store import Store
from models.decisions.bundle import Bundle
from pipeline.categorize.decide import (
    Bottlenecks,
    Outcomes,
    decide_parts,
    images_of_parts,
    join_rejects,
    write_all_rejects,
)
from pipeline.categorize.extract_new import Found, extract_new, plan_new
from pipeline.categorize.keep_images import NAME, join_images
from pipeline.categorize.keep_records import keep_records
from pipeline.categorize.known import index_decided, index_store
from pipeline.categorize.look_again import look_again
from pipeline.categorize.read_units import DECIDED, KNOWN, read_sources
from pipeline.categorize.sellers import keep_sellers, sellers_in_use
from pipeline.categorize.sort_rows import PART_ROWS, SortedRows, sort_rows
from pipeline.categorize.targets import require_targets
from pipeline.ingest.check_images import forget_fetched, image_limits, roots_of
from pipeline.ingest.rejects import refuse_flood_of
from pipeline.job.config import Config
from pipeline.job.corrected import find_corrections
from pipeline.job.decisions_file import SCHEMA, WITH_ADAPTED, decisions_digest, rejects_beside
from pipeline.job.decisions_output import decisions_source, is_new_table, open_output, require_output
from pipeline.job.lock import only_job
from pipeline.job.progress import log
from pipeline.job.stage import counts_of
from pipeline.monitor.batch_statistics import BatchStatistics, PartImages, statistics_beside, statistics_json
from pipeline.sources.source import Source, open_sources
from pipeline.sources.tables import csv_options

if TYPE_CHECKING:
    from models.corrections.store import Corrections

VERSION = 8


def categorize(
    sources: list[str],
    bundle: Bundle,
    store: AnyPath,
    output: str,
    config: Config,
    beam: tuple[str, ...] = (),
    *,
    only_new: str | None = None,
    records: AnyPath | None = None,
) -> Mapping[str, int]:
    """Decides about every product of the sources.

    Args:
        sources: paths or URLs of BSON files, folders, manifests; they may be empty.
        bundle: in service.
        store: directory of all stores; new images are added to the bundle's.
        output: of the decisions, see pipeline/job/decisions_output.py.
        config: sections [ingest], [extract], and of [sellers] the database.
        beam: Beam's own options; with any of them, its workers read and extract.
        only_new: earlier decisions; products that the same release decided about are left out, unless
            corrections of their seller are in use, or were.
        records: directory for the photos as TFRecords; None: they are not kept.

    Returns:
        Products by status. Their sum, and the products left out, is the number of products that came in.

    Raises:
        ShelfmarkError: the output or another argument is refused, too many images are, …
        Busy: another job writes to this output.
    """
    opened = open_sources(sources, csv_options(config.ingest), may_be_empty=True)
    require_targets(opened, store.parent, output, only_new, records)
    name = output if is_database(output) else str(absolute(any_path(output)))
    home = store.parent / "categorize" / digest_of(name)[:16]
    with only_job(home, other="--output"), ExitStack() as closed:
        corrections = find_corrections(store.parent, config.sellers) if bundle.adapter else None
        if corrections:
            closed.enter_context(closing(corrections))
        job = _Job(opened, bundle, store, output, config, beam, only_new, records, home, corrections)
        return job.run()


class _Job:
    """A batch."""

    def __init__(
        self,
        sources: list[Source],
        bundle: Bundle,
        store: AnyPath,
        output: str,
        config: Config,
        beam: tuple[str, ...],
        only_new: str | None,
        records: AnyPath | None,
        home: AnyPath,
        corrections: "Corrections | None",
    ) -> None:
        self.sources, self.bundle, self.output, self.config = sources, bundle, output, config
        self.beam, self.only_new, self.records, self.home = beam, only_new, records, home
        main = Store(store / bundle.fingerprint)
        self.views = [main.view(one) for one in bundle.categorizer.views]
        self.needed = 1 if bundle.categorizer.rules.cascade else len(self.views)  # of them, by every image
        self.load = functools.cache(bundle.backbone)
        self.roots, self.fetched = roots_of(sources), home / "fetched"
        self.corrected = sellers_in_use(corrections) if corrections else frozenset[str]()
        self.corrections = corrections if self.corrected else None
        self.schema = WITH_ADAPTED if self.corrected else SCHEMA
        if self.corrected:
            require_output(output, self.schema)
        made_from = {
            "sources": digest_of([[source.name, source.digest()] for source in sources]),
            "settings": digest_of(config.ingest.that_matter()),
            "bundle": f"{bundle.digest} {bundle.categorizer.release}",
            "only_new": _digest_of_decisions(only_new),
            "records": str(records),
            "version": f"{VERSION} {PART_ROWS}",
        }
        if self.corrected:
            made_from["sellers"] = "decide"  # with which corrections: see sellers.py
        self.job = digest_of(made_from)
        self.work = begin(home / "work", made_from)

    def run(self) -> Mapping[str, int]:
        """Runs all passes; products by status."""
        units = read_sources(
            self.sources, self.config.ingest, self.work, self.fetched, views=self._index(),
            needed=self.needed, only_new=self.only_new is not None, keep_all=self.records is not None,
            beam=self.beam,
        )  # fmt: skip
        rows = self._extracted(units)
        self._refuse_flood(rows)
        if self.needed < len(self.views):
            rows = self._looked_again(rows)
            self._refuse_flood(rows)
        if self.records is not None:
            keep_records(rows, self.config.ingest, self.records, self.job, self.beam)
        sellers = None
        if self.corrections and self.bundle.adapter:
            sellers = keep_sellers(self.corrections, self.bundle.adapter, units, self.work)
        output = open_output(self.output, self.job, self.work, self.schema)
        statistics = PartImages.of(self.bundle)
        outcomes = decide_parts(
            rows, self._bottlenecks(), self.bundle, sellers, output, statistics, self.roots, self.work,
        )  # fmt: skip
        self._write_beside(rows, outcomes, statistics)
        output.finish(rows.parts)
        remove(self.work)
        forget_fetched(self.fetched, rows.account.rejects)
        return self._told(rows, outcomes)

    def _index(self) -> int:
        """Indexes what is known; returns the number of views."""
        known = self.work / KNOWN
        known.mkdir(parents=True, exist_ok=True)
        self._index_store()
        if self.only_new is not None and not (known / f"{DECIDED}.rest.npy").is_file():
            self._index_decided(self.only_new, known)
        return len(self.views)

    def _index_decided(self, earlier: str, known: AnyPath) -> None:
        """Indexes what earlier decisions hold; nothing where they are the output's table, not yet there."""
        release, first = self.bundle.categorizer.release, is_new_table(earlier, self.output)
        left, adapted = index_decided(None if first else earlier, release, self.corrected, known)
        if first:
            source = decisions_source(self.output)
            log.info("only new: %s does not exist yet: all products are new", source)
            return
        again = f"; {adapted:,} more with corrections, which are decided again" if adapted else ""
        sellers = f"; all of {len(self.corrected):,} sellers with corrections in use are decided again"
        log.info(
            "only new: %s products were decided by this release before%s%s",
            f"{left:,}", again, sellers if self.corrected else "",
        )  # fmt: skip

    def _index_store(self) -> None:
        known = self.work / KNOWN
        self._named = [(store, index_store(store, known, view)) for view, store in enumerate(self.views)]

    def _extracted(self, units: list[AnyPath]) -> SortedRows:
        """Extracts what is new; returns the rows by parts."""
        settings = self.config.extract
        shards = plan_new(units, self.work, settings.shard_images)
        limits = image_limits(self.config.ingest)
        views = self.views[: self.needed]
        marks = extract_new(shards, self.work, views, self.load, settings, limits, self.beam)
        if marks:
            self._index_store()
        found = Found(marks, self.work)
        return sort_rows(units, found, self.work, self.config.ingest.placeholder_products)

    def _looked_again(self, rows: SortedRows) -> SortedRows:
        """Extracts the other views of the products that the first view is not certain about; the rows."""
        rows = look_again(
            rows, self._bottlenecks(), self.views[self.needed :], self.work, self.load, self.config.extract,
            image_limits(self.config.ingest), self.beam,
        )  # fmt: skip
        self._index_store()
        return rows

    def _bottlenecks(self) -> Bottlenecks:
        return Bottlenecks(self.work / KNOWN, self._named, self.bundle.categorizer)

    def _refuse_flood(self, rows: SortedRows) -> None:
        """Stops when too many images are refused; the table of them is in the workspace then."""
        account, most = rows.account, self.config.ingest.max_rejected
        if account.rejects.total() > most * account.images:
            write_all_rejects(rows, self.roots, self.work)
            file = self.home / "rejects.parquet"
            join_rejects(rows.parts, self.work, file)
            refuse_flood_of(dict(account.rejects.most_common()), account.images, most, file)

    def _write_beside(self, rows: SortedRows, outcomes: Outcomes, statistics: PartImages | None) -> None:
        """Writes images, rejects and statistics; a table of a database has nothing beside it."""
        table = is_database(self.output)
        join_images(images_of_parts(rows.parts, self.work), self.home / NAME, keep=table)
        rejects = self.home / "rejects.parquet" if table else rejects_beside(any_path(self.output))
        beside = self.home / "statistics.json" if table else statistics_beside(any_path(self.output))
        (self.home / "rejects.parquet").unlink(missing_ok=True)  # of a batch that was stopped
        join_rejects(rows.parts, self.work, rejects)
        if table and outcomes.rejected:
            log.warning("decisions: %s lists the refused images", rejects)
        if statistics is None:
            beside.unlink(missing_ok=True)
            return
        statuses = outcomes.statuses
        counts: BatchStatistics = outcomes.statistics or statistics.nothing()
        write_whole(beside, statistics_json(self.bundle, statuses.total(), statuses["unreadable"], counts))

    def _told(self, rows: SortedRows, outcomes: Outcomes) -> Mapping[str, int]:
        """Logs the account, which closes; products by status."""
        account, counts = rows.account, dict(sorted(outcomes.statuses.items()))
        gone = outcomes.decided + outcomes.repeated + outcomes.passed + outcomes.rejected + account.left_out
        if gone != account.images:
            raise ShelfmarkError(
                f"{decisions_source(self.output)}: of {account.images:,} images {gone:,} are accounted for; "
                "expected all of them; please report this"
            )
        for caveat in self.bundle.caveats:
            log.warning("decisions: of %s: %s", self.bundle.path.name, caveat)
        summary = {"products": outcomes.statuses.total()} | counts | {
            "left_out": outcomes.left_out, "images": account.images, "repeated_images": outcomes.repeated,
            "rejected_images": outcomes.rejected, "ignored": sum(source.ignored() for source in self.sources),
        }  # fmt: skip
        if self.corrected:
            summary["adapted"] = outcomes.adapted
        log.info("decisions: %s", counts_of(summary))
        return counts


def _digest_of_decisions(only_new: str | None) -> str:
    """What is known of earlier decisions; a table may be the output itself, which changes it."""
    if only_new is None:
        return "none"
    earlier = decisions_source(only_new)
    return str(earlier) if is_database(only_new) else decisions_digest(earlier)  # without the password
