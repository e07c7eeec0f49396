"""Release: pack the bundle, compare it with the one in service, put it into service if it is better.

releases/<run>/    a copy of the run's bundle (<run>.2, … when the same run is released again)
releases/current   a link to the one in service, switched by one rename
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from features.engines.backbones import BACKBONE, BACKBONE_WEIGHTS
from features.errors import ShelfmarkError
from features.product import PARTS
from features.storage.artifact import Artifact, find_artifact, partial_of
from features.storage.paths import MARK, AnyPath, copy_tree, remove, write_whole
from features.storage.store import Digests, Store
from models.decisions.bundle import HEAD_FILES, THRESHOLDS, Bundle, open_bundle
from models.decisions.metrics import acceptance_curve, acceptance_rate_at, precision
from models.decisions.releases import SPLITS, in_service, put_into_service
from models.heads.architectures import SET_FILES
from pipeline.extract.fill_store import RecordReader, rows_of
from pipeline.extract.index import read_digests
from pipeline.job.catalogue import Part, categories_of, divide, open_part
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, BundleSummary, RecordsSummary
from pipeline.train.evaluate import evaluate_part

VERSION = 1


def pack(run: Run) -> Artifact:
    """Puts together what categorizing needs: the run's bundle."""
    records = run.records()
    head = run.head(records, run.bottlenecks(records))
    thresholds, backbone = run.thresholds(head), run.backbone

    def make(work: Path) -> Mapping[str, object]:
        for name in (*HEAD_FILES, *SET_FILES):
            if name in HEAD_FILES or name in head.files:
                shutil.copyfile(head.file(name), work / name)
        shutil.copyfile(thresholds.file(THRESHOLDS), work / THRESHOLDS)
        backbone.description().write(work / BACKBONE)
        backbone.save_weights(work / BACKBONE_WEIGHTS)
        products = pd.read_parquet(records.file("products.parquet"), columns=["product_id", "split"])
        products[products["split"].isin(PARTS)].to_parquet(work / SPLITS, index=False)
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
        "fingerprint": backbone.fingerprint,
    }
    return stage(run.path / "bundle", kind="bundle", version=VERSION, made_from=made_from, make=make)


def current_release(releases: AnyPath) -> Bundle | None:
    """The bundle in service, or None before the first release."""
    name = in_service(releases)
    if name is None:
        return None
    if find_artifact(releases / name) is None:
        raise ShelfmarkError(
            f"{releases / 'current'}: points to {name}, which is gone or damaged; expected a bundle; "
            "point it to another release, or remove it to release anew"
        )
    return open_bundle(releases / name)


def require_release(workspace: AnyPath) -> Bundle:
    """The bundle in service; ShelfmarkError before the first release."""
    bundle = current_release(workspace / "releases")
    if bundle is None:
        raise ShelfmarkError(
            f"{workspace}: nothing is in service; expected releases/current; run `shelfmark retrain` first"
        )
    return bundle


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle goes into service, and why."""

    better: bool
    reason: str
    candidate: str  # digest
    current: str | None  # digest
    judged_on: str  # test, or cert where there is no test part


def judge(run: Run, candidate: Artifact) -> Verdict:
    """Compares the run's bundle with the one in service on this week's test products, each with its backbone.

    A certified one is better than one that is not; then the one of which more could be accepted at the
    candidate's promised precision, as measured there; then the more precise.
    No product of the test part was ever trained on by either (the split is sticky).
    """
    records, current = run.records(), current_release(run.releases)
    on = "test" if RecordsSummary.of(records).records["test"] else "cert"
    if current is None:
        return Verdict(True, "nothing is in service yet", candidate.digest, None, on)
    if current.digest == candidate.digest:
        return Verdict(False, "it is already in service", candidate.digest, current.digest, on)
    bottlenecks = run.bottlenecks(records)
    part = open_part(bottlenecks, run.store, "test" if on == "test" else "val")
    if on == "cert":
        part = part.only(divide(part.product_id, part.image_digest, run.config.calibration.fit_share).cert)
    category = categories_of(records)
    bundles = (open_bundle(candidate.path), current)
    target = bundles[0].categorizer.rules.certificate.target
    merits = []
    for bundle in bundles:
        own = _with_own_backbone(part, bundle, records, bottlenecks, run)
        evaluated = evaluate_part(bundle.categorizer, own, category, set())
        rate = acceptance_rate_at(acceptance_curve(evaluated.confidence, evaluated.correct), target)[0]
        certified = bundle.categorizer.rules.certificate.threshold is not None
        merits.append((certified, rate, precision(evaluated.correct) if len(evaluated.correct) else 0.0))
    new, old = (
        f"{'' if certified else 'not '}certified, {rate:.1%} acceptable at {target:.0%}, {correct:.1%} right"
        for certified, rate, correct in merits
    )
    reason = f"{new}; in service: {old}; measured on {on}"
    return Verdict(merits[0] > merits[1], reason, candidate.digest, current.digest, on)


def _with_own_backbone(
    part: Part, bundle: Bundle, records: Artifact, bottlenecks: Artifact, run: Run
) -> Part:
    """The part's images with the bottlenecks of the bundle's backbone, in the views that its head takes."""
    flip = bundle.categorizer.flip
    if bundle.fingerprint == BottlenecksSummary.of(bottlenecks).fingerprint and flip == (part.views == 2):
        return part
    part = part.first_view()
    bottleneck_store, digests = Store(run.store / bundle.fingerprint), Digests(part.digest)
    record = np.empty(len(digests), np.int64)
    number, row = digests.matches(read_digests(records.file("images.parquet")))
    record[number] = row
    reader = RecordReader(records)
    settings = run.config.extract
    rows = rows_of(
        bottleneck_store, flip, digests, lambda chosen: reader(record[chosen]), bundle.backbone, settings
    )
    views = 2 if flip else 1
    return Part(part.product_id.repeat(views), part.digest.repeat(views, axis=0), rows, views)


def release(run: Run, candidate: Artifact, verdict: Verdict) -> AnyPath | None:
    """Keeps the verdict with the run, and puts the bundle into service if it is better.

    Returns:
        The new release's directory, or None when the one in service stays.
    """
    if verdict.candidate != verdict.current:  # else it was judged, and released, before
        write_whole(run.path / "verdict.json", json.dumps(asdict(verdict), indent=1).encode())
    if not verdict.better:
        log.info("release: kept the one in service: %s", verdict.reason)
        return None
    target = _copy(candidate, run.name, run.releases)
    put_into_service(run.releases, target.name)
    log.info("release: %s is in service: %s", target.name, verdict.reason)
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
