"""Categorize: a decision for every product of a source, by the bundle in service.

    NAME.parquet            one row a product; .csv, .csv.gz and .jsonl, too: see job/decisions_file.py
    NAME.rejects.parquet    the images that were refused, as in rejects.parquet; only where there are any
    NAME.statistics.json    what the photos are like, for `shelfmark monitor`: monitor/batch_statistics.py
    NAME.parquet.partial/   while at work
    NAME.parquet.fetched/   photos fetched from the web, while some could not be reached

A category given in the source is ignored.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.images.normalise import normalise
from features.records import Piece, pieces_of
from features.storage.artifact import begin, digest_of
from features.storage.paths import AnyPath, remove
from features.storage.store import Digests, Store, digests_of
from models.decisions.bundle import Bundle
from models.decisions.categorizer import unreadable
from models.decisions.predictions import product_bounds
from models.decisions.validation_split import first_of_product
from pipeline.extract.fill_store import rows_of
from pipeline.ingest.check_images import (
    CHECKED,
    LOCATION,
    CheckedImages,
    check_images,
    forget_fetched,
    image_limits,
)
from pipeline.ingest.index import Index
from pipeline.ingest.rejects import refuse_flood, write_rejects
from pipeline.job.config import Config
from pipeline.job.decisions_file import rejects_beside, require_format, write_decisions
from pipeline.job.lock import only_job
from pipeline.job.progress import log
from pipeline.job.stage import counts_of
from pipeline.monitor.batch_statistics import write_statistics
from pipeline.sources.image import Changed, read_images, refuse_changed_container
from pipeline.sources.outside import require_outside
from pipeline.sources.source import Source, open_sources
from pipeline.sources.tables import csv_options

PIECE = 2**15  # products decided about and written at a time


def categorize(
    sources: list[str],
    bundle: Bundle,
    store: AnyPath,
    output: AnyPath,
    config: Config,
    beam: tuple[str, ...] = (),
) -> Mapping[str, int]:
    """Decides about every product of the sources.

    Args:
        sources: paths or URLs of BSON files, folders, manifests; they may be empty.
        bundle: in service.
        store: directory of all stores; new images are added to the bundle's.
        output: the decisions; its suffix gives the format, see job/decisions_file.py.
        config: sections [ingest] and [extract].
        beam: Beam's own options.

    Returns:
        Products by status. accepted + parent + review + unreadable = products that came in.

    Raises:
        ShelfmarkError: the output's suffix is no format, or the output or the workspace is inside a source.
    """
    require_format(output)
    opened = open_sources(sources, csv_options(config.ingest), may_be_empty=True)
    for path in (output, rejects_beside(output), store.parent):
        require_outside(path, opened)
    lock = output.with_name(output.name + ".lock")
    with only_job(lock):
        counts = _categorize(opened, bundle, store, output, config, beam)
    remove(lock)
    return counts


def _categorize(
    sources: list[Source],
    bundle: Bundle,
    store: AnyPath,
    output: AnyPath,
    config: Config,
    beam: tuple[str, ...],
) -> dict[str, int]:
    made_from = [[[source.name, source.digest()] for source in sources], config.ingest.that_matter()]
    work = begin(
        output.with_name(output.name + ".partial"),
        {"sources": digest_of(made_from), "bundle": bundle.digest, "version": "4"},
    )
    fetched = output.with_name(output.name + ".fetched")
    checked = check_images(sources, config.ingest, work, beam, fetched)
    while True:
        index = checked.index()
        rejects = _write_rejects(checked, index, config.ingest.max_rejected, output)
        try:
            statuses = _write_decisions(
                checked, index, bundle, Store(store / bundle.fingerprint), config, output
            )
            break
        except Changed as changed:
            log.warning("decisions: %s; they are rejects now", changed)
            checked.reject(changed.images)
    remove(work)
    forget_fetched(fetched, index.reasons())
    counts = dict(sorted(statuses.items()))
    for caveat in bundle.caveats:
        log.warning("decisions: of %s: %s", bundle.path.name, caveat)
    ignored = sum(source.ignored() for source in sources)
    summary = {"products": statuses.total()} | counts | {"rejected_images": rejects, "ignored": ignored}
    log.info("decisions: %s", counts_of(summary))
    return counts


def _write_decisions(
    checked: CheckedImages, index: Index, bundle: Bundle, store: Store, config: Config, output: AnyPath
) -> Counter[str]:
    """Decides and writes; products by status. Changed where an image is not what it was."""
    statuses = Counter[str]()

    def pieces() -> Iterator[pd.DataFrame]:
        for piece in _decide(checked, index, bundle, store, config, output):
            statuses.update(piece["status"])
            yield piece

    write_decisions(pieces(), output)
    return statuses


def _write_rejects(checked: CheckedImages, index: Index, max_rejected: float, output: AnyPath) -> int:
    """Writes the rejects, if there are any, and stops at a flood of them; returns how many they are."""
    file = rejects_beside(output)
    rejects = write_rejects(checked, index, file)
    if not rejects:
        file.unlink()
    else:
        refuse_flood(index, max_rejected, file)
    return rejects


def _decide(
    checked: CheckedImages, index: Index, bundle: Bundle, store: Store, config: Config, output: AnyPath
) -> Iterator[pd.DataFrame]:
    """Decisions sorted by product, PIECE products at a time; first writes the statistics of the photos."""
    images, product, digests = _readable(checked, index)

    def read(chosen: np.ndarray) -> Iterator[Piece]:
        limits, photos = image_limits(config.ingest), _photos(images.iloc[chosen])
        return pieces_of((normalise(data, limits).jpeg for data in photos), source="the source's photos")

    categorizer = bundle.categorizer
    flip = categorizer.flip
    rows = rows_of(store, flip, digests, read, bundle.backbone, config.extract)
    bounds = product_bounds(product)
    row_bounds = bounds * (2 if flip else 1)
    least = config.ingest.placeholder_products
    write_statistics(output, bundle, checked, index, rows, row_bounds[:-1], least)
    answers = categorizer.predict(rows, row_bounds)
    readable = product[bounds[:-1]]  # products, ascending
    for start in range(0, len(index.product_id), PIECE):
        product_id = index.product_id.slice(start, PIECE).to_numpy(zero_copy_only=False)
        here = slice(*np.searchsorted(readable, [start, start + PIECE]))
        silent = np.ones(len(product_id), bool)
        silent[readable[here] - start] = False
        decided = categorizer.decide(product_id[~silent], answers.only(here))
        both = pd.concat([decided, unreadable(product_id[silent], categorizer.release)])
        yield both.sort_values("product_id", ignore_index=True)


def _photos(images: pd.DataFrame) -> Iterator[bytes]:
    """The bytes of the images; Changed, about all that are lost, where one is not what it was."""
    keys = list(zip(images["file"], images["offset"], strict=True))
    columns = [images[name].to_list() for name in LOCATION]
    for key, photo in zip(keys, read_images(*columns), strict=True):
        if photo is None:
            refuse_changed_container(key[0])
            again = zip(keys, read_images(*columns), strict=True)
            raise Changed({key} | {other for other, left in again if left is None})
        yield photo


def _readable(checked: CheckedImages, index: Index) -> tuple[pd.DataFrame, np.ndarray, Digests]:
    """The readable images sorted by product, each once in its product.

    Returns:
        LOCATION of each; (n,) int32, position of its product in the index; its digest.
    """
    names = ["image_digest", *LOCATION, "reason"]
    tables = [table.filter(pc.equal(table["reason"], "")).drop("reason") for table in checked.tables(names)]
    tables = tables or [CHECKED.empty_table().select(names).drop("reason")]
    rows = np.argsort(index.product[index.good], kind="stable")
    product, whole = index.product[index.good][rows], pa.concat_tables(tables)
    digests = digests_of(whole["image_digest"])[rows]
    first = first_of_product(product, digests)
    images = whole.drop("image_digest").take(pa.array(rows[first]))
    return images.to_pandas(), product[first], Digests(digests[first])
