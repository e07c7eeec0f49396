"""Categorize: a decision for every product of a source, by the bundle in service.

    FILE.parquet            one row a product, in a format by the name, see pipeline/decisions.py
    FILE.rejects.parquet    the images that were refused, as in rejects.parquet; only where there are any
    FILE.parquet.partial/   while at work
    FILE.parquet.fetched/   photos fetched from the web, while some could not be reached

A category given in the source is ignored.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.artifact import begin, digest_of
from features.bottlenecks import Digests, Store, digests_of, first_of_each
from features.errors import ShelfmarkError
from features.files import Place, remove
from features.images import normalise
from features.records import Piece, pieces_of
from models.answers import product_bounds
from models.bundle import Bundle
from models.categorizer import unreadable
from pipeline import plan
from pipeline.config import Config
from pipeline.decisions import format_of, rejects_of, write_decisions
from pipeline.ingest import refuse_flood, write_rejects
from pipeline.look import LOOK, PLACE, Look, forget_fetched, limits_of, look
from pipeline.shards import rows_of
from pipeline.sources.image import Changed, read_images, refuse_changed_container
from pipeline.sources.source import Source, open_sources, require_outside
from pipeline.sources.tables import Reading
from pipeline.stage import counts_of, log, only_job

VERSION = "3"


def categorize(
    sources: list[str],
    bundle: Bundle,
    store: Place,
    output: Place,
    config: Config,
    beam: tuple[str, ...] = (),
) -> Mapping[str, int]:
    """Decides about every product of the sources.

    Args:
        sources: paths or URLs of BSON files, folders, manifests; they may be empty.
        bundle: in service.
        store: directory of all stores; new images are added to the bundle's.
        output: its name says the format, see pipeline/decisions.py.
        config: sections [ingest] and [extract].
        beam: Beam's own options.

    Returns:
        Products by status. accepted + review + unreadable = products that came in.
    """
    format_of(output)
    if output.is_dir():
        raise ShelfmarkError(f"{output}: a directory; expected a file; change --output")
    reading = Reading(config.ingest.csv_delimiter, config.ingest.csv_encoding)
    opened = open_sources(sources, reading, may_be_empty=True)
    for written in (output, store):
        require_outside(written, opened)
    lock = output.with_name(output.name + ".lock")
    with only_job(lock):
        counts = _categorize(opened, bundle, store, output, config, beam)
    remove(lock)
    return counts


def _categorize(
    opened: list[Source], bundle: Bundle, store: Place, output: Place, config: Config, beam: tuple[str, ...]
) -> dict[str, int]:
    inputs = digest_of([[[source.name, source.digest()] for source in opened], config.ingest.that_matter()])
    work = begin(
        output.with_name(output.name + ".partial"),
        {"sources": inputs, "bundle": bundle.digest, "version": VERSION},
    )
    fetched = output.with_name(output.name + ".fetched")
    looked = look(opened, config.ingest, work, beam, fetched)
    while True:
        index = looked.index()
        rejects = _write_rejects(looked, index, config.ingest.max_rejected, output)
        try:
            decisions = _decide(looked, index, bundle, Store(store / bundle.fingerprint), config)
            break
        except Changed as changed:
            log.warning("decisions: %s; they are rejects now", changed)
            looked.reject(changed.images)
    write_decisions(decisions, output)
    remove(work)
    forget_fetched(fetched, index.reasons())
    counts = {
        str(status): int(count) for status, count in decisions["status"].value_counts().sort_index().items()
    }
    for caveat in bundle.caveats:
        log.warning("decisions: of %s: %s", bundle.path.name, caveat)
    ignored = sum(source.ignored() for source in opened)
    told = {"products": len(decisions)} | counts | {"rejected_images": rejects, "ignored_files": ignored}
    log.info("decisions: %s", counts_of(told))
    return counts


def _write_rejects(looked: Look, index: plan.Index, max_rejected: float, output: Place) -> int:
    """Writes the rejects, if there are any, and stops at a flood of them; returns how many they are."""
    file = rejects_of(output)
    rejects = write_rejects(looked, index, file)
    if not rejects:
        file.unlink()
    else:
        refuse_flood(index, max_rejected, file)
    return rejects


def _decide(looked: Look, index: plan.Index, bundle: Bundle, store: Store, config: Config) -> pd.DataFrame:
    """Decisions sorted by product."""
    images, digests = _readable(looked, index)

    def read(chosen: np.ndarray) -> Iterator[Piece]:
        limits, photos = limits_of(config.ingest), _photos(images.iloc[chosen])
        return pieces_of((normalise(data, limits).jpeg for data in photos), source="the source's photos")

    categorizer = bundle.categorizer
    flip = categorizer.flip
    rows = rows_of(store, flip, digests, read, bundle.backbone, config.extract)
    bounds = product_bounds(images["product_id"].to_numpy(dtype=object))
    product_id = images["product_id"].to_numpy(dtype=object)[bounds[:-1]]
    decided = categorizer.decide(product_id, categorizer.answer(rows, bounds * (2 if flip else 1)))
    silent = np.bincount(index.product[index.good], minlength=len(index.product_id)) == 0
    unread = unreadable(index.product_id.filter(pa.array(silent)).to_pylist())
    return pd.concat([decided, unread]).sort_values("product_id", ignore_index=True)


def _photos(images: pd.DataFrame) -> Iterator[bytes]:
    """The bytes of the images; Changed, about all that are lost, where one is not what it was."""
    data = read_images(*(images[name].to_list() for name in PLACE))
    places = list(zip(images["file"], images["offset"], strict=True))
    for place, photo in zip(places, data, strict=True):
        if photo is None:
            refuse_changed_container(place[0])
            read_again = read_images(*(images[name].to_list() for name in PLACE))
            raise Changed(
                {lost for lost, left in zip(places, read_again, strict=True) if left is None} | {place}
            )
        yield photo


def _readable(looked: Look, index: plan.Index) -> tuple[pd.DataFrame, Digests]:
    """The readable images, sorted by product, each once: product_id and PLACE, and their digests."""
    names = ["product_id", "image_digest", *PLACE, "reason"]
    tables = [table.filter(pc.equal(table["reason"], "")).drop("reason") for table in looked.tables(names)]
    if not tables:
        tables = [LOOK.empty_table().select(names).drop("reason")]
    product = index.product[index.good]
    rows = np.argsort(product, kind="stable")
    images = pa.concat_tables(tables).take(pa.array(rows))
    digests = digests_of(images["image_digest"])
    once = first_of_each(product[rows], digests)
    return images.drop("image_digest").filter(pa.array(once)).to_pandas(), Digests(digests[once])
