"""Ingest: sources → records, by a plan that never shuffles images.

    look   a unit of the source  → _look/unit-00000.parquet   every image fully checked (check_images.py)
    plan   numbers of all rows   → products, parts, output units (split_plan.py), and with a second reading
                                   _plan/piece-0000.arrow      what the writers need, a batch for four units
    write  an output unit        → train/val/test-00000-of-00008.tfrecord and its rows of images.parquet
                                   (pipeline/ingest/write_records.py)

    records/  <part>-<i>-of-<n>.tfrecord
              images.parquet  products.parquet  rejects.parquet  duplicates.parquet
              taxonomy.csv  manifest.json

Every image that came in is in exactly one of: records, rejects, products whose split is none or dropped.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.product import DROPPED, NONE, PARTS, SPLITS, Paths
from features.storage.artifact import TOLD, Artifact, file_digest
from features.storage.paths import Place, local, remove, write_whole, writing
from models.taxonomy import build_taxonomy, homonyms, read_paths, write_taxonomy
from pipeline.beam.process_pool import local_workers
from pipeline.beam.run_units import run_units, unit_file
from pipeline.ingest.check_images import (
    UNREACHABLE,
    CheckedImages,
    check_images,
    forget_fetched,
    image_limits,
)
from pipeline.ingest.duplicates import contradictions
from pipeline.ingest.index import Index, tidied
from pipeline.ingest.layout import RecordsLayout, lay_out, write_plan
from pipeline.ingest.rejects import refuse_flood, write_rejects
from pipeline.ingest.split_plan import (
    Products,
    plan_products,
    require_known,
    require_learnable,
    untrained_categories,
)
from pipeline.ingest.write_records import DIGESTS, IMAGES, LOST, write_shards
from pipeline.job.config import IngestSettings
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.sources.manifest import ambiguous
from pipeline.sources.names import log_case_pairs, log_merged
from pipeline.sources.outside import require_outside
from pipeline.sources.source import Source, open_sources
from pipeline.sources.tables import csv_options

VERSION = 4


def ingest(
    run: Run, sources: list[str], taxonomy: Place | None = None, beam: tuple[str, ...] = ()
) -> Artifact:
    """Converts sources to the run's records; arguments and errors as for `make_records`."""
    config = run.config
    return make_records(
        sources, run.path / "records", config.ingest,
        seed=config.seed, taxonomy=taxonomy, known=run.known_splits(), beam=beam,
    )  # fmt: skip


def make_records(
    sources: list[str],
    out: Place,
    settings: IngestSettings,
    *,
    seed: int = 0,
    taxonomy: Place | None = None,
    known: Path | None = None,
    beam: tuple[str, ...] = (),
) -> Artifact:
    """Converts sources to records.

    Args:
        sources: paths or URLs of BSON files, folders, manifests.
        out: the artifact's directory.
        settings: the section [ingest].
        seed: order of the records.
        taxonomy: a CSV of category_id, category_level1, …; None: the tree is what the sources tell.
        known: splits.parquet of the release in service, whose products keep their part.
        beam: Beam's own options, over the local ones.

    Raises:
        ShelfmarkError: a source or the taxonomy cannot be read, too many images are rejected, or nothing can
            be learnt.
    """
    opened = open_sources(sources, csv_options(settings))
    require_outside(out, opened)
    if taxonomy and not taxonomy.is_file():
        raise ShelfmarkError(
            f"{taxonomy}: no such file; expected a CSV of category_id, category_level1, …; check --taxonomy"
        )
    fetched = out.with_name(out.name + ".fetched")
    made_from = {
        "sources": [[source.name, source.digest()] for source in opened],
        "settings": settings.that_matter() | {"seed": seed},
        "taxonomy": file_digest(taxonomy) if taxonomy else "none",
        "known": file_digest(known) if known else "none",
    }

    def make(work: Place) -> Mapping[str, Any]:
        paths, renamed = _paths(opened, taxonomy)
        categories = frozenset(category for category, _ in paths) if taxonomy else None
        checked = check_images(opened, settings, work, beam, fetched, categories, renamed)
        while True:
            summary, lost = _make_records(checked, paths, renamed, known, settings, seed, work, beam)
            if not lost:
                return {"ignored": sum(source.ignored() for source in opened)} | summary
            log.warning("records: %s images changed meanwhile and are rejects now", f"{len(lost):,}")
            _remove_shards(work)  # first: a job killed in between finds the same images lost again
            checked.reject(lost)

    with local_workers(beam):  # the same for both passes
        records = stage(
            out, kind="records", version=VERSION, made_from=made_from, make=make, shared=True,
            usable=lambda found: not found.summary["rejects"].get(UNREACHABLE),
        )  # fmt: skip
    forget_fetched(fetched, records.summary["rejects"])
    return records


def _paths(sources: list[Source], taxonomy: Place | None) -> tuple[Paths, dict[Any, str]]:
    """The categories' places in the tree, and what is renamed because one name has several parents."""
    if taxonomy:
        return read_paths(local(taxonomy)), {}
    paths = sum((source.paths() for source in sources), start=Paths())
    renamed = homonyms(paths)
    for place, name in renamed.items():
        paths[(name, place[1])] += paths.pop(place)
    if renamed:
        log.info(
            "categories: %s names stand under several parents; they are called by their paths, as %r",
            f"{len({name for name, _ in renamed}):,}", min(renamed.values()),
        )  # fmt: skip
    return paths, renamed


def _make_records(
    checked: CheckedImages,
    paths: Paths,
    renamed: dict[Any, str],
    known: Path | None,
    settings: IngestSettings,
    seed: int,
    work: Place,
    beam: tuple[str, ...],
) -> tuple[dict[str, Any], set[tuple[str, int]]]:
    """Plans and writes the records; the summary, and the images that have changed meanwhile."""
    index = _with_tidy_categories(checked.index(), {name for name, _ in renamed})
    write_rejects(checked, index, work / "rejects.parquet")
    refuse_flood(index, settings.max_rejected, work / "rejects.parquet")
    released = pq.read_table(known) if known else None
    if released is not None:
        require_known(index.product_id, released, settings.min_known)
    products = plan_products(index, released, settings.min_products)
    require_learnable(products, settings.min_products)
    layout = lay_out(index, products, settings, seed)
    summary = _summary(index, products, layout)
    del index  # its memory is for the pieces now
    write_plan(checked, products, layout, work)
    conflicts = _write_taxonomy(paths, products, work)
    parts = [part for part in PARTS if SPLITS.index(part) in products.split]
    lost = _write_records(parts, layout.shards, settings, seed, work, beam)
    return summary | {"categories_in_two_places": conflicts}, lost


def _with_tidy_categories(index: Index, several: set[str]) -> Index:
    """The index with categories merged that differ in blanks or accents alone.

    Args:
        index: of the look.
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


def _remove_shards(work: Place) -> None:
    """Removes what the writers wrote."""
    remove(work / "_images")
    for shard in work.glob("*.tfrecord"):
        shard.unlink(missing_ok=True)


# The account


def _summary(index: Index, products: Products, layout: RecordsLayout) -> dict[str, Any]:
    """Counts of the closed account."""
    images = np.bincount(products.split, weights=products.images, minlength=len(SPLITS)).astype(int)
    of_split = dict(zip(SPLITS, images.tolist(), strict=True))
    dropped = products.split == SPLITS.index(DROPPED)
    small = len(np.unique(products.category.code[dropped]))
    if small:
        told = f"{dropped.sum():,} products dropped in {small:,} categories that are too small"
        log.info("records: %s", told)
    if untrained := untrained_categories(products):
        log.warning(
            "records: %s categories without training products, as %r: nothing will be put into them; "
            "give some of their products the split train",
            f"{len(untrained):,}", untrained[0],
        )  # fmt: skip
    return {
        "products": len(products.split),
        "images": index.images(),
        "records": {part: of_split[part] for part in PARTS},
        "rejects": dict(sorted(index.reasons().items())),
        "uncategorized_products": int((products.category.code == 0).sum()),
        "uncategorized_images": of_split[NONE],
        "dropped_products": int(dropped.sum()),
        "dropped_images": of_split[DROPPED],
        "dropped_categories": small,
        "categories_without_training_products": len(untrained),
        "unreadable_products": int((products.images == 0).sum()),
        "products_in_two_categories": products.in_two_categories,
        "images_of_several_products": len(layout.shared.row),
        "images_in_several_categories": contradictions(layout.shared, products),
        "placeholder_images": int(layout.placeholder.sum()),
    }


def _write_taxonomy(paths: Paths, products: Products, work: Place) -> int:
    """Writes the tree of what is learnt; returns how many categories stand in two places."""
    codes = np.unique(products.category.code[products.split < len(PARTS)])
    tree, conflicts = build_taxonomy(paths, {products.category.values[code] for code in codes})
    with writing(work / "taxonomy.csv") as working:
        write_taxonomy(tree, working)
    return conflicts


# Shards


def _write_records(
    parts: list[str], units: int, settings: IngestSettings, seed: int, work: Place, beam: tuple[str, ...]
) -> set[tuple[str, int]]:
    """Writes the shards of all output units, then images.parquet from what the writers say of them.

    Returns:
        File and offset of the images that were not there any more.
    """
    pieces = [str(piece) for piece in (work / "_plan").glob("piece-*.arrow")]
    write = functools.partial(
        write_shards, pieces=sorted(pieces), work=str(work), parts=parts, count=units, seed=seed,
        limits=image_limits(settings),
    )  # fmt: skip
    run_units("write records", list(range(units)), write, work / "_images", beam)
    digests: dict[str, Any] = {}
    lost: set[tuple[str, int]] = set()
    with writing(work / "images.parquet") as working, pq.ParquetWriter(working, IMAGES) as writer:
        for number in range(units):
            with unit_file(work / "_images", number).open("rb") as file:
                table = pq.read_table(file)
            digests |= json.loads(table.schema.metadata[DIGESTS])
            lost |= {(row["file"], row["offset"]) for row in json.loads(table.schema.metadata[LOST])}
            writer.write_table(table.replace_schema_metadata())
    write_whole(work / TOLD, json.dumps(digests).encode())
    return lost
