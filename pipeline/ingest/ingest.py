"""Ingest: sources → records, by a plan that never shuffles images.

    check  a segment of a source → _look/unit-00000.parquet   every image fully checked (check_images.py)
    plan   numbers of all rows   → products, parts, shards (index.py, split_plan.py), and with a second
                                   reading of the rows
                                   _plan/piece-0000.arrow     what the writers need (layout.py)
    write  the plan              → train/val/test-00000-of-00008.tfrecord and their rows of images.parquet
                                   (write_records.py)

    records/  <part>-<i>-of-<n>.tfrecord
              images.parquet  products.parquet  rejects.parquet  duplicates.parquet
              taxonomy.csv  unlearnt.csv  tree.csv  mapping.json  relabelled.parquet
              corrected.parquet  manifest.json

    taxonomy.csv holds the categories with training products, unlearnt.csv the others, where there are any.
    tree.csv is the whole tree of --taxonomy; mapping.json and relabelled.parquet are what --mapping says, and
    the products whose category it changed (relabel.py). corrected.parquet has the products whose label is a
    correction (override.py).

Every image of the sources is in exactly one of: records, rejects, products whose split is none or dropped.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from features.product import DROPPED, NONE, PARTS, SPLITS, CategoryPaths, SplitShares
from features.spellings import log_merged
from features.storage.artifact import KNOWN_DIGESTS, Artifact, digest_of, file_digest
from features.storage.paths import AnyPath, local, remove, sizes, write_whole, writing
from models.mappings import read_mappings
from models.taxonomy import build_taxonomy, homonyms, read_paths, require_taxonomy, write_taxonomy
from models.taxonomy_changes import Step
from pipeline.beam.process_pool import local_workers
from pipeline.beam.run_units import run_units, unit_file
from pipeline.ingest.check_images import (
    UNREACHABLE,
    CheckedImages,
    check_images,
    forget_fetched,
    image_limits,
)
from pipeline.ingest.corrected_labels import labels_of_run
from pipeline.ingest.duplicates import contradictions
from pipeline.ingest.image_statistics import IMAGE_STATISTICS, image_statistics
from pipeline.ingest.index import Index, tidied
from pipeline.ingest.layout import RecordsLayout, lay_out, write_plan
from pipeline.ingest.override import Overridden, log_overridden, override
from pipeline.ingest.rejects import refuse_flood, write_rejects
from pipeline.ingest.relabel import Relabelling, counts_of, log_relabelled, relabel, relabelling
from pipeline.ingest.split_plan import (
    Products,
    learnt_categories,
    plan_products,
    require_known,
    require_trainable,
    unlearnt_categories,
)
from pipeline.ingest.write_records import IMAGES, ShardDigest, notes_of, write_shards
from pipeline.job.catalogue import UNLEARNT
from pipeline.job.config import IngestSettings
from pipeline.job.progress import log
from pipeline.job.room import INGEST, require_disk, warn_of_disk, warn_of_memory
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import RecordsSummary
from pipeline.job.tree import MAPPING, WHOLE, mapping_bytes
from pipeline.sources.image import ImageKey
from pipeline.sources.names import AS_NAMED, Renamed, ambiguous, log_case_pairs
from pipeline.sources.outside import require_outside
from pipeline.sources.source import Source, open_sources
from pipeline.sources.tables import csv_options

VERSION = 6


def ingest(
    run: Run,
    sources: list[str],
    taxonomy: AnyPath | None = None,
    beam: tuple[str, ...] = (),
    mappings: Sequence[AnyPath] = (),
    *,
    goes_on: bool = False,
) -> Artifact:
    """Converts sources to the run's records; other arguments and errors as for `make_records`.

    With `goes_on` the run was interrupted: finished records keep the corrections that they have.
    """
    config = run.config
    return make_records(
        sources, run.path / "records", config.ingest,
        seed=config.seed, taxonomy=taxonomy, known=run.known_splits(), beam=beam, mappings=mappings,
        corrections=labels_of_run(run, goes_on),
    )  # fmt: skip


def make_records(
    sources: list[str],
    out: AnyPath,
    settings: IngestSettings,
    *,
    seed: int = 0,
    taxonomy: AnyPath | None = None,
    known: Path | None = None,
    beam: tuple[str, ...] = (),
    mappings: Sequence[AnyPath] = (),
    corrections: Path | None = None,
) -> Artifact:
    """Converts sources to records.

    Args:
        sources: paths or URLs of BSON files, folders, manifests.
        out: the artifact's directory.
        settings: the section [ingest].
        seed: order of the records.
        taxonomy: a CSV of category_id, category_level1, …, or a text as Google's; None: the tree is that of
            the sources.
        known: splits.parquet of the release in service, whose products keep their part.
        beam: Beam's own options, over the local ones.
        mappings: files that say what became of categories of the sources' tree (models/mappings.py).
        corrections: corrections.parquet of the run, labels that come before those of the sources.

    Raises:
        ShelfmarkError: a source, the taxonomy or a mapping cannot be read, too many images are rejected, or
            there is nothing to train on.
    """
    require_taxonomy(taxonomy)
    step = read_mappings([local(file) for file in mappings]) if mappings else None
    opened = open_sources(sources, csv_options(settings))
    require_outside(out, opened)
    fetched = out.with_name(out.name + ".fetched")
    job = _IngestJob(opened, settings, seed, taxonomy, known, beam, step, corrections)
    with local_workers():  # the same for both passes
        records = stage(
            out, kind="records", version=VERSION, made_from=job.made_from(), shared=True,
            make=functools.partial(_make, job=job, fetched=fetched),
            usable=lambda found: not RecordsSummary.of(found).rejects.get(UNREACHABLE),
        )  # fmt: skip
    forget_fetched(fetched, RecordsSummary.of(records).rejects)
    return records


@dataclass(frozen=True)
class _IngestJob:
    """What the steps of an ingest share."""

    sources: list[Source]
    settings: IngestSettings
    seed: int
    taxonomy: AnyPath | None
    known: Path | None
    beam: tuple[str, ...]
    step: Step | None  # what the mapping files say
    corrections: Path | None

    def made_from(self) -> dict[str, object]:
        """The inputs, of which the digests are kept."""
        made_from: dict[str, object] = {
            "sources": [[source.name, source.digest()] for source in self.sources],
            "settings": self.settings.that_matter() | {"seed": self.seed},
            "taxonomy": file_digest(self.taxonomy) if self.taxonomy else "none",
            "known": file_digest(self.known) if self.known else "none",
            "mapping": digest_of(mapping_bytes(self.step).decode()) if self.step else "none",
        }
        # without corrections, records are those of a version that knew none
        return made_from | ({"corrections": file_digest(self.corrections)} if self.corrections else {})


def _make(work: AnyPath, job: _IngestJob, fetched: AnyPath) -> Mapping[str, object]:
    """Fills the working directory; returns the summary. Images that change meanwhile become rejects."""
    warn_of_disk("ingest", work, sum(_file_size(source.path) for source in job.sources))
    warn_of_memory("ingest", INGEST, "end other programs")
    paths, renamed = _paths(job.sources, job.taxonomy)
    categories = frozenset(category for category, _ in paths) if job.taxonomy else None
    how = None
    if job.step:
        given = (
            sum((source.paths() for source in job.sources), start=CategoryPaths()) if job.taxonomy else paths
        )
        how = relabelling(job.step, given, paths if job.taxonomy else None)
        paths, categories = how.paths(paths), how.known()
    checked = check_images(job.sources, job.settings, work, job.beam, fetched, categories, renamed)
    while True:
        summary, lost = _plan_and_write(checked, paths, renamed, how, job, work)
        if not lost:
            return summary.to_dict()
        log.warning("records: %s images changed meanwhile and are now rejects", f"{len(lost):,}")
        _remove_shards(work)  # first: a job killed in between finds the same images lost again
        checked.reject(lost)


def _file_size(source: AnyPath) -> int:
    """Bytes of a source that is one file, about those of its photos; 0 for a folder."""
    return source.stat().st_size if source.is_file() else 0


def _paths(sources: list[Source], taxonomy: AnyPath | None) -> tuple[CategoryPaths, Renamed]:
    """The categories' paths in the tree, and new names for those whose name has several parents."""
    if taxonomy:
        return read_paths(local(taxonomy)), AS_NAMED
    paths = sum((source.paths() for source in sources), start=CategoryPaths())
    renamed = homonyms(paths)
    for (category, path), name in renamed.items():
        paths[(name, path)] += paths.pop((category, path))
    if renamed:
        log.info(
            "categories: %s names occur under several parents; they are replaced by their paths, for example "
            "%r", f"{len({name for name, _ in renamed}):,}", min(renamed.values()),
        )  # fmt: skip
    return paths, renamed


def _plan_and_write(
    checked: CheckedImages,
    paths: CategoryPaths,
    renamed: Renamed,
    how: Relabelling | None,
    job: _IngestJob,
    work: AnyPath,
) -> tuple[RecordsSummary, set[ImageKey]]:
    """Plans and writes the records; returns the summary, and the images that have changed meanwhile."""
    settings = job.settings
    index = _with_tidy_categories(checked.index(), {name for name, _ in renamed})
    carried, overridden = None, None
    if how:
        index, carried = _relabelled(index, how, work)
    if job.corrections:
        overridden = _overridden(index, job, how, paths, work)
        index = overridden.index
    write_rejects(checked, index, work / "rejects.parquet")
    refuse_flood(index, settings.max_rejected, work / "rejects.parquet")
    products = _products(index, job)
    if overridden:
        products = replace(products, corrected=overridden.product)
    layout = lay_out(index, products, settings, job.seed)
    statistics = image_statistics(checked, index, layout.placeholder, categorized=True)
    write_whole(work / IMAGE_STATISTICS, json.dumps(statistics).encode())
    conflicts = _write_taxonomy(paths, products, work)
    if job.taxonomy:
        with writing(work / WHOLE) as working:
            write_taxonomy(build_taxonomy(paths, {category for category, _ in paths})[0], working)
    ignored = sum(source.ignored() for source in job.sources)
    summary = _summary(index, products, layout, ignored, conflicts)
    if carried:
        summary = summary.model_copy(update=dict(zip(("relabelled", "unlabelled"), carried, strict=True)))
    if overridden:
        counts = {"corrected": overridden.corrected, "corrections_left_out": overridden.left_out}
        summary = summary.model_copy(update=counts)
    del index, overridden  # its memory is for the pieces now
    kept = write_plan(checked, products, layout, work)
    there = sum(size for name, size in sizes(work).items() if name.endswith(".tfrecord"))
    require_disk("ingest", work, kept - there)
    parts = [part for part in PARTS if SPLITS.index(part) in products.split]
    return summary, _write_records(parts, layout.shards, job, work)


def _with_tidy_categories(index: Index, several: set[str]) -> Index:
    """The index with categories merged that differ in blanks or accents alone.

    Args:
        index: of all rows.
        several: names under several parents, which no product may have any more.
    """
    counts = np.bincount(index.category.code, minlength=len(index.category.values)).tolist()
    named = dict(zip(index.category.values, counts, strict=True))
    log_merged("categories", {name: count for name, count in named.items() if name.strip() and count})
    category = tidied(index.category)
    log_case_pairs("categories", category.values)
    for name in sorted(several & set(category.values)):
        raise ambiguous(name, "the sources")
    return replace(index, category=category)


def _relabelled(
    index: Index, how: Relabelling, work: AnyPath
) -> tuple[Index, tuple[dict[str, int], dict[str, int]]]:
    """The index with the categories of the new tree, and how many products have another one or none."""
    index, table = relabel(index, how)
    with writing(work / "relabelled.parquet") as working:
        pq.write_table(table, working)
    write_whole(work / MAPPING, mapping_bytes(how.step))
    carried = counts_of(table)
    log_relabelled(*carried)
    return index, carried


def _overridden(
    index: Index, job: _IngestJob, how: Relabelling | None, paths: CategoryPaths, work: AnyPath
) -> Overridden:
    """The index with the corrected labels, and what they did to it."""
    known = {category for category, _ in paths}
    if not job.taxonomy:
        known.update(filter(None, index.category.values))
    found = override(index, pq.read_table(job.corrections), how, known)
    with writing(work / "corrected.parquet") as working:
        pq.write_table(found.table, working)
    log_overridden(found)
    return found


def _products(index: Index, job: _IngestJob) -> Products:
    """The products with their parts; ShelfmarkError where there is nothing to train on."""
    released = pq.read_table(job.known) if job.known else None
    if released is not None:
        require_known(index.product_id, released, job.settings.min_known)
    settings = job.settings
    shares = SplitShares(settings.val_share, settings.test_share, settings.least_test)
    products = plan_products(index, released, settings.min_products, shares, settings.sellers_apart)
    require_trainable(products, settings.min_products)
    return products


def _write_taxonomy(paths: CategoryPaths, products: Products, work: AnyPath) -> int:
    """Writes the trees of the categories in the records, of those with training products and of the others.

    Returns:
        How many categories have two parents in the sources.
    """
    learnt, unlearnt = learnt_categories(products), unlearnt_categories(products)
    tree, conflicts = build_taxonomy(paths, learnt | unlearnt)
    is_learnt = np.isin(tree.categories, list(learnt))
    with writing(work / "taxonomy.csv") as working:
        write_taxonomy(tree.only(is_learnt).trimmed(), working)
    if unlearnt:
        with writing(work / UNLEARNT) as working:
            write_taxonomy(tree.only(~is_learnt), working)
    return conflicts


def _summary(
    index: Index, products: Products, layout: RecordsLayout, ignored: int, conflicts: int
) -> RecordsSummary:
    """Where every image and product went; `conflicts` is of categories with two parents in the sources."""
    images = np.bincount(products.split, weights=products.images, minlength=len(SPLITS)).astype(int)
    of_split = dict(zip(SPLITS, images.tolist(), strict=True))
    dropped = products.split == SPLITS.index(DROPPED)
    unlearnt = unlearnt_categories(products)
    codes = [code for code, name in enumerate(products.category.values) if name in unlearnt]
    counted = np.isin(products.category.code, codes) & (products.split < len(PARTS))
    _log_unlearnt(len(unlearnt), int(dropped.sum()), int(counted.sum()))
    return RecordsSummary(
        ignored=ignored,
        products=len(products.split),
        images=index.images(),
        records={part: of_split[part] for part in PARTS},
        rejects=dict(sorted(index.reasons().items())),
        uncategorized_products=int((products.category.code == 0).sum()),
        uncategorized_images=of_split[NONE],
        dropped_products=int(dropped.sum()),
        dropped_images=of_split[DROPPED],
        dropped_categories=len(unlearnt),
        unlearnt_products=int(counted.sum()),
        unlearnt_images=int(products.images[counted].sum()),
        unreadable_products=int((products.images == 0).sum()),
        products_in_two_categories=products.in_two_categories,
        images_of_several_products=len(layout.shared.row),
        images_in_several_categories=contradictions(layout.shared, products),
        placeholder_images=int(layout.placeholder.sum()),
        categories_in_two_places=conflicts,
    )


def _log_unlearnt(categories: int, dropped: int, counted: int) -> None:
    """Logs how many products are in categories that no head will learn."""
    if categories:
        log.info(
            "records: %s categories without training products, too small or held out: nothing will be put "
            "into them; %s of their products are dropped, %s count as wrong in val and test",
            f"{categories:,}", f"{dropped:,}", f"{counted:,}",
        )  # fmt: skip


# Shards


def _write_records(parts: list[str], shards: int, job: _IngestJob, work: AnyPath) -> set[ImageKey]:
    """Writes all shards, then images.parquet and the shards' digests from what the writers note.

    Returns:
        The images that were not there any more.
    """
    pieces = [str(piece) for piece in (work / "_plan").glob("piece-*.arrow")]
    write = functools.partial(
        write_shards, pieces=sorted(pieces), work=str(work), parts=parts, count=shards, seed=job.seed,
        limits=image_limits(job.settings),
    )  # fmt: skip
    run_units("write records", list(range(shards)), write, work / "_images", job.beam)
    digests: dict[str, ShardDigest] = {}
    lost: set[ImageKey] = set()
    with writing(work / "images.parquet") as working, pq.ParquetWriter(working, IMAGES) as writer:
        for number in range(shards):
            with unit_file(work / "_images", number).open("rb") as file:
                rows = pq.read_table(file)
            noted, missing = notes_of(rows)
            digests |= noted
            lost |= missing
            writer.write_table(rows.replace_schema_metadata())
    write_whole(work / KNOWN_DIGESTS, json.dumps(digests).encode())
    return lost


def _remove_shards(work: AnyPath) -> None:
    """Removes what the writers wrote."""
    remove(work / "_images")
    for shard in work.glob("*.tfrecord"):
        shard.unlink(missing_ok=True)
