"""The third pass, of a cascade: the other views of the products about which the first view is not certain.

    part of SORTED ─► first view of photos ─► head ─► products to look at again ─► photos that a view lacks

    _again/unit-00000.parquet    of each part these photos, as plan_new takes them
    _again/…                     plan and shards, as in extract_new.py

What is planned is computed anew in each try: what an earlier one has extracted is in the store by then.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.engines.backbones import Backbone
from features.errors import ShelfmarkError
from features.images.refusal import Limits
from features.storage.paths import AnyPath
from features.storage.store import Store
from pipeline.beam.run_units import unit_file, write_table
from pipeline.categorize.decide import Bottlenecks, SortedPart
from pipeline.categorize.extract_new import PLANNED, extract_new, plan_new
from pipeline.categorize.sort_rows import SortedRows
from pipeline.job.config import ExtractSettings
from pipeline.job.progress import Progress, log

FOLDER = "_again"


def look_again(
    rows: SortedRows,
    bottlenecks: Bottlenecks,
    views: list[Store],
    work: AnyPath,
    load: Callable[[], Backbone],
    settings: ExtractSettings,
    limits: Limits,
    beam: tuple[str, ...],
) -> None:
    """Extracts the other views of all photos of products that the first view is not certain about.

    Args:
        rows: sorted; those of photos that a view of the store lacks have a location.
        bottlenecks: of the first view of all readable photos, and of other views what is there.
        views: the stores of the other views.
        work: working directory of the job.
        load: loads the backbone; called when a photo lacks a view.
        settings: the section [extract].
        limits: of images.
        beam: Beam's own options; with any of them, its workers extract.

    Raises:
        ShelfmarkError: shards could not be made, or photos have changed meanwhile.
    """
    folder = work / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    again = photos = lacking = 0
    units = [unit_file(folder, number) for number in range(rows.parts)]
    with Progress("look again", rows.account.rows) as progress:
        for number, unit in enumerate(units):
            part = SortedPart.of(rows.part(number))
            product, digests, at = part.photos()
            looks = bottlenecks.looks_again(digests, product)
            table = part.rows.take(pa.array(at[looks][bottlenecks.lacks_others(digests[looks])]))
            new = pa.array(np.ones(len(table), bool))
            write_table(table.select(PLANNED.names).append_column("new", new), unit)
            again, photos = again + len(np.unique(product[looks])), photos + int(looks.sum())
            lacking += len(table)
            progress.to(min((number + 1) * len(part.rows), rows.account.rows))
    log.info(
        "cascade: %s products are looked at again, in %s more views; of their %s photos %s lack one of these",
        f"{again:,}", len(views), f"{photos:,}", f"{lacking:,}",
    )  # fmt: skip
    shards = plan_new(units, folder, settings.shard_images)
    _require_unchanged(extract_new(shards, folder, views, load, settings, limits, beam))


def _require_unchanged(marks: list[AnyPath]) -> None:
    """Raises a ShelfmarkError where photos that were read in the second pass could not be read again."""
    changed = 0
    for mark in marks:
        with mark.open("rb") as file:
            reasons = pq.read_table(file, columns=["reason"])["reason"].to_pylist()
        if any(reasons):
            mark.unlink()
            changed += sum(map(bool, reasons))
    if changed:
        raise ShelfmarkError(
            f"{changed:,} photos could not be read again for their other views; expected the same photos "
            "until the job ends; run the command again"
        )
