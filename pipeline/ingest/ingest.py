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
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.product import DROPPED, NONE, PARTS, SPLITS, Paths
from features.storage.artifact import TOLD, Artifact, file_digest
from features.storage.paths import Place, local, remove, write_whole, writing
from models.taxonomy import build_taxonomy, homonyms, read_paths, write_taxonomy
from pipeline.beam.process_pool import local_workers
from pipeline.beam.run_units import run_units, unit_file
from pipeline.ingest import split_plan as plan
from pipeline.ingest.check_images import LOOK, UNREACHABLE, Look, forget_fetched, limits_of, look
from pipeline.ingest.duplicates import (
    DUPLICATES,
    Shared,
    SharedDigests,
    contradictions,
    duplicates_table,
    find_shared,
)
from pipeline.ingest.split_plan import PRODUCTS, Index, Products
from pipeline.ingest.write_records import DIGESTS, IMAGES, LOST, PIECE, UNITS_A_BATCH, write_unit
from pipeline.job.config import IngestSettings
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.sources.manifest import ambiguous
from pipeline.sources.names import log_case_pairs, log_merged
from pipeline.sources.outside import require_outside
from pipeline.sources.source import Source, open_sources
from pipeline.sources.tables import Reading

VERSION = 4
PIECE_ROWS = 100_000  # rows of the plan in memory at a time, about 150 bytes each
TABLE_ROWS = 2**20  # rows of a table made at a time
REJECTS = pa.schema(
    [("product_id", pa.string()), ("image_index", pa.int32())]
    + [(name, pa.string()) for name in ("source", "reason", "detail")]
)


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
    opened = open_sources(sources, Reading(settings.csv_delimiter, settings.csv_encoding))
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
        looked = look(opened, settings, work, beam, fetched, categories, renamed)
        while True:
            summary, lost = _make_records(looked, paths, renamed, known, settings, seed, work, beam)
            if not lost:
                return {"ignored": sum(source.ignored() for source in opened)} | summary
            log.warning("records: %s images changed meanwhile and are rejects now", f"{len(lost):,}")
            _remove_shards(work)  # first: a job killed in between finds the same images lost again
            looked.reject(lost)

    with local_workers():  # the same for both passes
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
    looked: Look,
    paths: Paths,
    renamed: dict[Any, str],
    known: Path | None,
    settings: IngestSettings,
    seed: int,
    work: Place,
    beam: tuple[str, ...],
) -> tuple[dict[str, Any], set[tuple[str, int]]]:
    """Plans and writes the records; the summary, and the images that have changed meanwhile."""
    index = _with_tidy_categories(looked.index(), {name for name, _ in renamed})
    write_rejects(looked, index, work / "rejects.parquet")
    refuse_flood(index, settings.max_rejected, work / "rejects.parquet")
    released = pq.read_table(known) if known else None
    if released is not None:
        plan.require_known(index.product_id, released, settings.min_known)
    products = plan.plan_products(index, released, settings.min_products)
    plan.require_learnable(products, settings.min_products)
    layout = lay_out(index, products, settings, seed)
    summary = _summary(index, products, layout)
    del index  # its memory is for the pieces now
    write_plan(looked, products, layout, work)
    conflicts = _write_taxonomy(paths, products, work)
    parts = [part for part in PARTS if SPLITS.index(part) in products.split]
    lost = _write_shards(parts, layout.units, settings, seed, work, beam)
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
    category = plan.tidied(index.category)
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


def write_rejects(looked: Look, index: Index, rejects: Place) -> int:
    """Writes the refused images and returns how many they are."""
    start = 0
    with writing(rejects) as working, pq.ParquetWriter(working, REJECTS) as writer:
        for table in looked.tables(["product_id", "file", "reason", "detail"]):
            number = pa.array(index.image_index[start : start + len(table)])
            start += len(table)
            refused = pc.and_(pc.not_equal(table["reason"], ""), pc.not_equal(table["reason"], plan.NO_IMAGE))
            told = table.append_column("image_index", number).filter(refused)
            if len(told):
                told = told.append_column("source", looked.names(told["file"]))
                writer.write_table(told.select(REJECTS.names).cast(REJECTS))
    return sum(index.reasons().values())


def refuse_flood(index: Index, max_rejected: float, rejects: Place) -> None:
    """Stops when more than `max_rejected` of the images are rejected; `rejects` is the table of them.

    Raises:
        ShelfmarkError: with the three most common reasons, and an example.
    """

    def example(reason: str) -> str:
        table = pq.read_table(local(rejects), filters=[("reason", "==", reason)])
        return f", for example {table['source'][0]}: {table['detail'][0]}"

    plan.refuse_flood(index, max_rejected, str(rejects), example)


def _summary(index: Index, products: Products, layout: "Layout") -> dict[str, Any]:
    """Counts of the closed account."""
    images = np.bincount(products.split, weights=products.images, minlength=len(SPLITS)).astype(int)
    of_split = dict(zip(SPLITS, images.tolist(), strict=True))
    dropped = products.split == SPLITS.index(DROPPED)
    small = len(np.unique(products.category.code[dropped]))
    if small:
        told = f"{dropped.sum():,} products dropped in {small:,} categories that are too small"
        log.info("records: %s", told)
    if untrained := plan.untrained_categories(products):
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


# The plan, as the writers and people read it


@dataclass(frozen=True)
class Layout:
    """What becomes of every row of the look (n,), as far as the writers need it."""

    unit: np.ndarray  # (n,) int32, output unit; -1 where the row is not taken
    units: int
    product: np.ndarray  # (n,) int32, place among the products
    image_index: np.ndarray  # (n,) int32
    placeholder: np.ndarray  # (n,) bool
    shared: Shared


def lay_out(index: Index, products: Products, settings: IngestSettings, seed: int) -> Layout:
    """Where every row goes."""
    unit, units = plan.plan_units(index, products, seed, settings.unit_bytes)
    shared, placeholder = find_shared(index, settings.placeholder_products)
    return Layout(unit, units, index.product, index.image_index, placeholder, shared)


def write_plan(looked: Look, products: Products, layout: Layout, work: Place) -> None:
    """Writes products, duplicates, and the planned rows in pieces for the writers."""
    _write_tables(products.table, len(products.split), PRODUCTS, work / "products.parquet")
    digests = SharedDigests(layout.shared)
    names = [
        name for name in PIECE.names if name in LOOK.names and name not in ("category", "split", "seller")
    ]
    (work / "_plan").mkdir(exist_ok=True)
    for piece in (work / "_plan").glob("piece-*"):
        piece.unlink()
    start, written, waiting = 0, 0, list[pa.Table]()
    for table in looked.tables(names):
        digests.see(start, table["image_digest"])
        waiting.append(_planned(table, start, products, layout))
        start += len(table)
        if start == len(layout.unit) or sum(map(len, waiting)) > PIECE_ROWS:
            _write_piece(
                pa.concat_tables(waiting), layout.units, work / "_plan" / f"piece-{written:04d}.arrow"
            )
            written += 1
            waiting.clear()

    def duplicates(start: int, stop: int) -> pa.Table:
        return duplicates_table(layout.shared, digests, layout.placeholder, products, slice(start, stop))

    _write_tables(duplicates, len(layout.shared.row), DUPLICATES, work / "duplicates.parquet")


def _write_tables(make: Callable[[int, int], pa.Table], rows: int, schema: pa.Schema, file: Place) -> None:
    """Writes a table that `make` makes piece by piece, from rows `start` to `stop`."""
    with writing(file) as working, pq.ParquetWriter(working, schema) as writer:
        for start in range(0, rows, TABLE_ROWS):
            writer.write_table(make(start, min(start + TABLE_ROWS, rows)).cast(schema))


def _planned(table: pa.Table, start: int, products: Products, layout: Layout) -> pa.Table:
    """The taken rows of a table of the look that begins at row `start`, with what was decided of them."""
    taken = start + np.flatnonzero(layout.unit[start : start + len(table)] >= 0)
    product = layout.product[taken]
    columns = {name: table[name].take(pa.array(taken - start)) for name in table.column_names} | {
        "category": products.category.only(product).texts(),
        "split": pa.array(SPLITS).take(pa.array(products.split[product])),
        "seller": products.seller.only(product).texts(),
        "image_index": layout.image_index[taken],
        "placeholder": layout.placeholder[taken],
        "unit": layout.unit[taken],
    }
    return pa.table(columns)


def _write_piece(rows: pa.Table, units: int, piece: Place) -> None:
    """Writes planned rows as an Arrow file, sorted by output unit, a batch for every UNITS_A_BATCH units."""
    unit = rows["unit"].to_numpy()
    order = np.argsort(unit, kind="stable")
    rows = rows.select(PIECE.names).take(pa.array(order)).combine_chunks()
    ends = np.arange(UNITS_A_BATCH, units + UNITS_A_BATCH, UNITS_A_BATCH)
    bounds = [0, *np.searchsorted(unit[order], ends).tolist()]
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with writing(piece) as working, pa.ipc.new_file(working, PIECE, options=options) as writer:
        for first, last in itertools.pairwise(bounds):
            batches = rows.slice(first, last - first).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], PIECE))


def _write_taxonomy(paths: Paths, products: Products, work: Place) -> int:
    """Writes the tree of what is learnt; returns how many categories stand in two places."""
    codes = np.unique(products.category.code[products.split < len(PARTS)])
    tree, conflicts = build_taxonomy(paths, {products.category.values[code] for code in codes})
    with writing(work / "taxonomy.csv") as working:
        write_taxonomy(tree, working)
    return conflicts


# Shards


def _write_shards(
    parts: list[str], units: int, settings: IngestSettings, seed: int, work: Place, beam: tuple[str, ...]
) -> set[tuple[str, int]]:
    """Writes the shards of all output units, then images.parquet from what the writers say of them.

    Returns:
        File and offset of the images that were not there any more.
    """
    pieces = [str(piece) for piece in (work / "_plan").glob("piece-*.arrow")]
    write = functools.partial(
        write_unit, pieces=sorted(pieces), work=str(work), parts=parts, count=units, seed=seed,
        limits=limits_of(settings),
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
