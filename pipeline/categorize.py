"""Categorize: a decision for every product of a source, by the bundle in service.

    FILE.parquet            one row a product, see pipeline/decisions.py
    FILE.rejects.parquet    the images that were refused, as in rejects.parquet; only where there are any
    FILE.parquet.partial/   while at work

A category given in the source is ignored.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from features.artifact import begin, digest_of
from features.bottlenecks import Store
from features.errors import ShelfmarkError
from features.images import Limits, normalise
from models.answers import product_bounds
from models.bundle import Bundle
from models.categorizer import unreadable
from pipeline import plan
from pipeline.config import Config
from pipeline.decisions import write_decisions
from pipeline.extract import fill_store
from pipeline.ingest import look, write_rejects
from pipeline.sources import open_sources, read_unchanged
from pipeline.stage import counts_of, log, only_job


def categorize(
    sources: list[str], bundle: Bundle, store: Path, output: Path, config: Config, beam: tuple[str, ...] = ()
) -> Mapping[str, int]:
    """Decides about every product of the sources.

    Args:
        sources: paths of BSON files, folders, manifests.
        bundle: in service.
        store: directory of all stores; new images are added to the bundle's.
        output: `.parquet`.
        config: sections [ingest] and [extract].
        beam: Beam's own options.

    Returns:
        Products by status. accepted + review + unreadable = products that came in.
    """
    if output.suffix != ".parquet":
        raise ShelfmarkError(f"{output}: not a .parquet; expected --output FILE.parquet; mend the name")
    if output.is_dir():
        raise ShelfmarkError(f"{output}: a directory; expected --output FILE.parquet; mend the name")
    with only_job(output.with_name(output.name + ".lock")):
        counts = _categorize(sources, bundle, store, output, config, beam)
    shutil.rmtree(output.with_name(output.name + ".lock"), ignore_errors=True)
    return counts


def _categorize(
    sources: list[str], bundle: Bundle, store: Path, output: Path, config: Config, beam: tuple[str, ...]
) -> dict[str, int]:
    opened = open_sources(sources)
    told = digest_of([[[source.name, source.told()] for source in opened], config.ingest.that_matter()])
    work = begin(output, {"sources": told, "bundle": bundle.digest})
    rows = look(opened, config.ingest, work, beam)
    plan.refuse_flood(rows, config.ingest.max_rejected)
    decisions = _decide(rows, bundle, Store(store / bundle.fingerprint), config)
    rejects = _write_both(decisions, rows, output)
    shutil.rmtree(work)
    counts = {
        str(status): int(count) for status, count in decisions["status"].value_counts().sort_index().items()
    }
    for caveat in bundle.caveats:
        log.warning("decisions: of %s: %s", bundle.path.name, caveat)
    log.info("decisions: %s", counts_of({"products": len(decisions)} | counts | {"rejected_images": rejects}))
    return counts


def _decide(rows: pd.DataFrame, bundle: Bundle, store: Store, config: Config) -> pd.DataFrame:
    """Decisions sorted by product."""
    named = rows[rows["product_id"] != ""]
    images = named[named["reason"] == ""].sort_values(["product_id", "image_index"])
    digests = images["image_digest"].to_numpy(dtype=object)

    def read(chosen: np.ndarray) -> Iterator[bytes]:
        limits, rows = Limits(max_pixels=config.ingest.max_pixels), images.iloc[chosen]
        columns = [rows[name] for name in ("file", "offset", "length", "image_digest")]
        for file, offset, length, digest in zip(*columns, strict=True):
            yield normalise(read_unchanged(file, offset, length, digest), limits).jpeg

    if len(images) and (store.find(digests).row < 0).any():
        fill_store(store, digests, read, bundle.backbone(), config.extract)
    places = store.find(digests)
    bounds = product_bounds(images["product_id"].to_numpy(dtype=object))
    product_id = images["product_id"].to_numpy(dtype=object)[bounds[:-1]]
    categorizer = bundle.categorizer
    decided = categorizer.decide(product_id, categorizer.answer(store.rows(places.shard, places.row), bounds))
    silent = sorted(set(named["product_id"]) - set(product_id))
    return pd.concat([decided, unreadable(silent)]).sort_values("product_id", ignore_index=True)


def _write_both(decisions: pd.DataFrame, rows: pd.DataFrame, output: Path) -> int:
    """Writes the rejects, if there are any, then the decisions; returns the number of rejects."""
    told = output.with_suffix(".rejects.parquet")
    rejects = write_rejects(rows, told)
    if not rejects:
        told.unlink()
    write_decisions(decisions, output)
    return rejects
