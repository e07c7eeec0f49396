"""Release: pack the bundle, and put it into service if it was judged to be better than the one there.

releases/<run>/    a copy of the run's bundle (<run>.2, … when the same run is released again)
releases/current   a link to the one in service, switched by one rename
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from features.engines.backbones import BACKBONE, BACKBONE_WEIGHTS
from features.errors import ShelfmarkError
from features.product import PARTS
from features.storage.artifact import Artifact, find_artifact, partial_of
from features.storage.paths import MARK, AnyPath, copy_tree, remove, write_whole
from models.decisions.bundle import HEAD_FILES, THRESHOLDS
from models.decisions.releases import SPLITS, put_into_service
from models.heads.architectures import SET_FILES
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BundleSummary, RecordsSummary
from pipeline.monitor.reference_files import write_reference
from pipeline.release.feed import feed_of, write_feed
from pipeline.release.judge import Verdict

VERSION = 3


def pack(run: Run) -> Artifact:
    """Puts together what categorizing needs: the run's bundle."""
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds, backbone = run.thresholds(head), run.backbone
    evaluation = run.artifact("evaluation", "evaluate", thresholds=thresholds)

    def make(work: Path) -> Mapping[str, object]:
        for name in (*HEAD_FILES, *SET_FILES):
            if name in HEAD_FILES or name in head.files:
                shutil.copyfile(head.file(name), work / name)
        shutil.copyfile(thresholds.file(THRESHOLDS), work / THRESHOLDS)
        backbone.description().write(work / BACKBONE)
        backbone.save_weights(work / BACKBONE_WEIGHTS)
        products = pd.read_parquet(records.file("products.parquet"), columns=["product_id", "split"])
        products[products["split"].isin(PARTS)].to_parquet(work / SPLITS, index=False)
        write_feed(feed_of(records), work)
        write_reference(records, bottlenecks, evaluation, run.store, run.config.calibration.fit_share, work)
        return BundleSummary(
            backbone=backbone.name,
            weights=backbone.weights,
            fingerprint=backbone.fingerprint,
            independent=RecordsSummary.of(records).records["test"] > 0,
        ).to_dict()

    made_from = {
        "records": records.digest,
        "head": head.digest,
        "thresholds": thresholds.digest,
        "evaluation": evaluation.digest,
        "fingerprint": backbone.fingerprint,
    }
    return stage(run.path / "bundle", kind="bundle", version=VERSION, made_from=made_from, make=make)


def release(run: Run, candidate: Artifact, verdict: Verdict) -> AnyPath | None:
    """Keeps the verdict with the run, and puts the bundle into service if it is better.

    Returns:
        The new release's directory, or None when the one in service stays.
    """
    if verdict.candidate != verdict.current:  # else it was judged, and released, before
        write_whole(run.path / "verdict.json", json.dumps(asdict(verdict), indent=1).encode())
    if not verdict.release:
        log.info("release: kept the one in service: %s", verdict.sentence)
        return None
    target = _copy(candidate, run.name, run.releases)
    put_into_service(run.releases, target.name)
    log.info("release: %s is in service: %s", target.name, verdict.sentence)
    return target


def _copy(candidate: Artifact, run: str, releases: AnyPath) -> AnyPath:
    """The candidate's copy under releases/, made whole by one rename or by its manifest, copied last."""
    releases.mkdir(parents=True, exist_ok=True)
    names = (run if number == 1 else f"{run}.{number}" for number in range(1, 1000))
    for name in names:
        found = find_artifact(releases / name)
        if found and found.digest == candidate.digest:
            return releases / name
        if not (releases / name / MARK).exists():
            break
    else:
        raise ShelfmarkError(f"{releases}: {run} was released 999 times; expected fewer; give another --run")
    target = releases / name
    working = partial_of(target)
    remove(working)
    copy_tree(candidate.path, working)
    if isinstance(target, Path):
        remove(target)
        os.rename(str(working), target)
    return target
