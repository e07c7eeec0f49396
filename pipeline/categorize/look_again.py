"""The third pass, of a cascade: the other views of the products about which the first view is not certain.

    part of SORTED ─► first view of photos ─► head ─► products to look at again ─► photos that a view lacks

    _again/unit-00000.parquet             of each part the rows of these photos, as plan_new takes them
    _again/…                              plan and shards, as in extract_new.py
    _again/_refused/unit-00000.parquet    REFUSED, where photos could not be read again

All of it is made anew in each try: what an earlier one has extracted is in the store by then. A photo that
cannot be read again is refused as one that could not be read at all: its product is decided from the others.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.engines.backbones import Backbone
from features.images.refusal import Limits
from features.storage.paths import AnyPath, remove
from features.storage.store import Store, digests_of
from pipeline.beam.run_units import unit_file, write_table
from pipeline.categorize.decide import Bottlenecks, SortedPart
from pipeline.categorize.extract_new import Found, extract_new, plan_new
from pipeline.categorize.sort_rows import REFUSED, SortedRows
from pipeline.job.config import ExtractSettings
from pipeline.job.progress import Progress, log

FOLDER, LATER = "_again", "_refused"


def look_again(
    rows: SortedRows,
    bottlenecks: Bottlenecks,
    views: list[Store],
    work: AnyPath,
    load: Callable[[], Backbone],
    settings: ExtractSettings,
    limits: Limits,
    beam: tuple[str, ...],
) -> SortedRows:
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

    Returns:
        The rows; those of photos that could not be read again are refused, and counted.

    Raises:
        ShelfmarkError: shards could not be made, or a BSON has changed meanwhile.
    """
    folder = work / FOLDER
    remove(folder)
    folder.mkdir(parents=True)
    again = photos = lacking = 0
    units = [unit_file(folder, number) for number in range(rows.parts)]
    with Progress("look again", rows.account.rows) as progress:
        for number, unit in enumerate(units):
            part = SortedPart.of(rows.part(number))
            product, digests, at = part.photos()
            looks = bottlenecks.looks_again(digests, product)
            lacks = part.good & np.isin(part.product, product[looks])
            lacks[lacks] = bottlenecks.lacks_others(digests_of(part.rows["image_digest"])[lacks])
            own = part.rows.filter(pa.array(lacks))
            write_table(own.append_column("new", pa.array(np.ones(len(own), bool))), unit)
            again, photos = again + len(np.unique(product[looks])), photos + int(looks.sum())
            lacking += int(lacks[at].sum())
            progress.to(min((number + 1) * len(part.rows), rows.account.rows))
    log.info(
        "cascade: %s products are looked at again (further views: %s); of their %s photos %s lack one",
        f"{again:,}", ", ".join(view.of.name for view in views), f"{photos:,}", f"{lacking:,}",
    )  # fmt: skip
    shards = plan_new(units, folder, settings.shard_images)
    marks = extract_new(shards, folder, views, load, settings, limits, beam)
    return _without_refused(rows, units, Found(marks, folder), folder / LATER)


def _without_refused(rows: SortedRows, units: list[AnyPath], found: Found, folder: AnyPath) -> SortedRows:
    """The rows without those of photos that could not be read again, which are written to `folder`."""
    if not found.refused:
        return rows
    folder.mkdir()
    refused = 0
    for number, unit in enumerate(units):
        with unit.open("rb") as file:
            own = found.complete(pq.read_table(file))
        own = own.filter(pc.not_equal(own["reason"], ""))
        write_table(own.select(REFUSED.names), unit_file(folder, number))
        rows.account.refuse(own["reason"])
        refused += len(own)
    log.warning(
        "cascade: %s photos have changed or gone before the second look, and are rejects (changed)",
        f"{refused:,}",
    )
    return replace(rows, refused=folder)
