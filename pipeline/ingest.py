"""Ingest: sources → records, by a plan that never shuffles images.

    look   a unit of the source  → _look/unit-00000.parquet   every image fully checked; where its bytes stand
    plan   all rows of the look  → _plan/unit-00000.parquet   products, parts, output units (pipeline/plan.py)
    write  an output unit        → train/val/test-00000-of-00008.tfrecord and its rows of images.parquet

    records/  <part>-<i>-of-<n>.tfrecord
              images.parquet  products.parquet  rejects.parquet  taxonomy.csv  manifest.json

Every image that came in is in exactly one of: records, rejects, products whose split is none or dropped.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifact import Artifact, file_digest, write_whole
from features.errors import ShelfmarkError
from features.images import Limits, Refused, normalise
from features.product import DROPPED, NONE, PARTS, ProductImage
from features.records import frame, serialise
from models.taxonomy import Paths, build_taxonomy, read_paths, write_taxonomy
from pipeline import plan
from pipeline.config import Ingest
from pipeline.sources import Source, SourceImage, Unit, open_sources, read_unchanged, read_unit
from pipeline.stage import log, stage
from pipeline.units import run_units, unit_file, write_table

VERSION = 1
LOOK = pa.schema(
    [
        (name, pa.string())
        for name in ("product_id", "category", "split", "seller", "file", "image_digest", "reason", "detail")
    ]
    + [("offset", pa.int64()), ("length", pa.int64()), ("kept", pa.bool_())]
)
IMAGES = pa.schema(
    [(name, pa.string()) for name in ("product_id", "split", "image_digest", "file")]
    + [("image_index", pa.int32()), ("offset", pa.int64()), ("length", pa.int64())]
)
PRODUCTS = pa.schema(
    [
        ("product_id", pa.string()),
        ("category", pa.string()),
        ("split", pa.string()),
        ("images", pa.int32()),
        ("seller", pa.string()),
    ]
)
REJECTS = pa.schema(
    [("product_id", pa.string()), ("image_index", pa.int32())]
    + [(name, pa.string()) for name in ("source", "reason", "detail")]
)


def ingest(
    sources: list[str],
    out: Path,
    settings: Ingest,
    *,
    seed: int = 0,
    taxonomy: Path | None = None,
    known: Path | None = None,
    beam: tuple[str, ...] = (),
) -> Artifact:
    """Converts sources to records.

    Args:
        sources: paths of BSON files, folders, manifests.
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
    opened = open_sources(sources)
    if taxonomy and not taxonomy.is_file():
        raise ShelfmarkError(
            f"{taxonomy}: no such file; expected a CSV of category_id, category_level1, …; check --taxonomy"
        )
    made_from = {
        "sources": [[source.name, source.told()] for source in opened],
        "settings": settings.that_matter() | {"seed": seed},
        "taxonomy": file_digest(taxonomy) if taxonomy else "none",
        "known": file_digest(known) if known else "none",
    }

    def make(work: Path) -> Mapping[str, Any]:
        paths = (
            read_paths(taxonomy) if taxonomy else sum((source.paths() for source in opened), start=Paths())
        )
        rows = look(opened, settings, work, beam)
        if taxonomy:
            plan.refuse_unknown_categories(rows, {category for category, _ in paths})
        plan.refuse_flood(rows, settings.max_rejected)
        products = plan.plan_products(rows, _known(known), settings.min_products)
        plan.require_learnable(products, settings.min_products)
        _write(rows, products, settings, seed, work, beam)
        tree_conflicts = _write_tables(rows, products, paths, work)
        return _summary(rows, products) | {"categories_in_two_places": tree_conflicts}

    return stage(out, kind="records", version=VERSION, made_from=made_from, make=make)


# Look


def look(sources: list[Source], settings: Ingest, work: Path, beam: tuple[str, ...]) -> pd.DataFrame:
    """Checks every image of the sources; one row an image (or product without any), in the sources' order.

    Args:
        sources: opened.
        settings: the section [ingest].
        work: directory for the finished units, `_look/`.
        beam: Beam's own options.

    Returns:
        The columns of LOOK, image_index (position among the product's images) and source (for people).
    """
    folder = work / "_look"
    folder.mkdir(parents=True, exist_ok=True)
    for listing in folder.glob("listing-*"):
        listing.unlink()
    units = [
        unit for source in sources for unit in source.units(folder, settings.unit_bytes, settings.unit_images)
    ]
    run_units("check images", units, functools.partial(_look_unit, limits=_limits(settings)), folder, beam)
    rows = pa.concat_tables(
        pq.read_table(unit_file(folder, number)) for number in range(len(units))
    ).to_pandas()
    rows["source"] = rows[
        "file"
    ]  # for people, without what is above the source: it may stand elsewhere next week
    for source in sources:
        rows["source"] = rows["source"].str.removeprefix(f"{source.path.parent}/")
    rows["image_index"] = rows.groupby("product_id", sort=False).cumcount().astype(np.int32)
    return rows


def _limits(settings: Ingest) -> Limits:
    return Limits(max_pixels=settings.max_pixels)


def _look_unit(unit: Unit, done: Path, limits: Limits) -> None:
    rows = [_look_image(image, limits) for image in read_unit(unit)]
    write_table(pa.Table.from_pylist(rows, LOOK), done)


def _look_image(image: SourceImage, limits: Limits) -> dict[str, Any]:
    row = {
        name: getattr(image, name) for name in LOOK.names if name not in ("image_digest", "length", "kept")
    }
    row |= {"image_digest": "", "length": len(image.data), "kept": False}
    if not image.reason:
        row["image_digest"] = hashlib.sha256(image.data).hexdigest()
        try:
            row["kept"] = normalise(image.data, limits).kept
        except Refused as refused:
            row |= {"reason": refused.reason, "detail": refused.detail}
    return row


# Write


def _known(splits: Path | None) -> "pd.Series[str]":
    if splits is None:
        return pd.Series(dtype=object)
    return pd.read_parquet(splits).set_index("product_id")["split"]


def _write(
    rows: pd.DataFrame, products: pd.DataFrame, settings: Ingest, seed: int, work: Path, beam: tuple[str, ...]
) -> None:
    """Writes the shards: the plan's units as tables for the workers, then the workers."""
    taken = plan.plan_units(rows, products, seed, settings.unit_bytes)
    told = products.set_index("product_id")
    folder = work / "_plan"
    folder.mkdir(exist_ok=True)
    for number, positions in enumerate(taken):
        unit = rows.iloc[positions].copy()
        for name in ("category", "split", "seller"):
            unit[name] = unit["product_id"].map(told[name])
        write_table(pa.Table.from_pandas(unit, preserve_index=False), unit_file(folder, number))
    parts = [part for part in PARTS if (products["split"] == part).any()]
    write = functools.partial(
        _write_unit, work=work, parts=parts, count=len(taken), seed=seed, limits=_limits(settings)
    )
    run_units("write records", list(range(len(taken))), write, work / "_images", beam)


def _write_unit(
    number: int, done: Path, *, work: Path, parts: list[str], count: int, seed: int, limits: Limits
) -> None:
    """Writes one shard of every part, in an order of its own, and the rows of its images."""
    unit = pd.read_parquet(unit_file(work / "_plan", number))
    records = [frame(serialise(image)) for image in _read_images(unit, limits)]
    order = np.random.default_rng([seed, number]).permutation(len(unit))
    written = []
    for part in parts:
        name = f"{part}-{number:05d}-of-{count:05d}.tfrecord"
        chosen = [row for row in order if unit["split"].iat[row] == part]
        write_whole(work / name, b"".join(records[row] for row in chosen))
        table = unit.iloc[chosen][["product_id", "split", "image_digest", "image_index"]].assign(file=name)
        lengths = np.array([len(records[row]) for row in chosen], dtype=np.int64)
        written.append(table.assign(length=lengths, offset=np.cumsum(lengths) - lengths))
    write_table(pa.Table.from_pandas(pd.concat(written), IMAGES, preserve_index=False), done)


def _read_images(unit: pd.DataFrame, limits: Limits) -> Iterator[ProductImage]:
    """Reads a unit's images in the source's order and makes them strict JPEGs."""
    row: Any
    for row in unit.itertuples(index=False):
        data = read_unchanged(row.file, row.offset, row.length, row.image_digest)
        jpeg = data if row.kept else normalise(data, limits).jpeg
        yield ProductImage(
            row.product_id, row.image_index, row.category, row.split, row.seller, row.image_digest, jpeg
        )


# Tables


def _write_tables(rows: pd.DataFrame, products: pd.DataFrame, paths: Paths, work: Path) -> int:
    """Writes images, products, rejects and the taxonomy; returns how many categories stand in two places."""
    units = len(list((work / "_images").glob("unit-*.parquet")))
    images = pa.concat_tables(pq.read_table(unit_file(work / "_images", number)) for number in range(units))
    write_table(images, work / "images.parquet")
    known = products.assign(
        **{name: products[name].where(products[name] != "", None) for name in ("category", "seller")}
    )
    write_table(pa.Table.from_pandas(known, PRODUCTS, preserve_index=False), work / "products.parquet")
    write_rejects(rows, work / "rejects.parquet")
    learnt = set(products.loc[products["split"].isin(PARTS), "category"])
    tree, conflicts = build_taxonomy(paths, learnt)
    write_taxonomy(tree, work / "taxonomy.csv")
    return conflicts


def write_rejects(rows: pd.DataFrame, file: Path) -> int:
    """Writes the refused images, if any or none; returns how many they are."""
    rejects = rows[(rows["reason"] != "") & (rows["reason"] != plan.NO_IMAGE)]
    write_table(pa.Table.from_pandas(rejects, REJECTS, preserve_index=False), file)
    return len(rejects)


def _summary(rows: pd.DataFrame, products: pd.DataFrame) -> dict[str, Any]:
    """Counts of the closed account."""
    images = products.groupby("split")["images"].sum()
    rejects = rows.loc[(rows["reason"] != "") & (rows["reason"] != plan.NO_IMAGE), "reason"]
    dropped = products["split"] == DROPPED
    if dropped.any():
        smallest = products.loc[dropped, "category"].nunique()
        log.info(
            "records: %s products dropped in %s categories that are too small",
            f"{dropped.sum():,}",
            f"{smallest:,}",
        )
    return {
        "products": len(products),
        "images": int((rows["reason"] != plan.NO_IMAGE).sum()),
        "records": {part: int(images.get(part, 0)) for part in PARTS},
        "rejects": {reason: int(count) for reason, count in sorted(rejects.value_counts().items())},
        "uncategorized_products": int((products["category"] == "").sum()),
        "uncategorized_images": int(images.get(NONE, 0)),
        "dropped_products": int(dropped.sum()),
        "dropped_images": int(images.get(DROPPED, 0)),
        "dropped_categories": int(products.loc[dropped, "category"].nunique()),
        "unreadable_products": int((products["images"] == 0).sum()),
        "products_in_two_categories": plan.conflicts(rows),
    }
