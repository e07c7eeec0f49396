"""Release: pack the bundle, and put it into service if it was judged to be better than the one there.

runs/<run>/bundle/  what categorizing needs; trace.json: what it was made from; feed.json: what came in
releases/<run>/     the same files, by hard links (<run>.2, … when the same run is released again)
releases/current    a link to the one in service, switched in one step, under a lock (switch.py)
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from features.errors import Busy
from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from models.decisions.adapted import SELLERS_FILE, STYLES, STYLES_FILES
from models.decisions.bundle import HEAD_FILES, THRESHOLDS, VERSION
from models.decisions.releases import SPLITS, in_service, release_digest
from models.heads.architectures import SET_FILES
from pipeline.job.catalogue import UNLEARNT
from pipeline.job.known_splits import write_splits
from pipeline.job.progress import log
from pipeline.job.release_log import switch
from pipeline.job.room import require_disk
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BundleSummary, RecordsSummary
from pipeline.monitor.reference_files import write_reference
from pipeline.release.feed import feed_of, write_feed
from pipeline.release.gate_products import write_measured
from pipeline.release.judge import Verdict
from pipeline.release.switch import link_bundle, releases_locked
from pipeline.release.trace import trace_of, write_trace


def pack(run: Run) -> Artifact:
    """Puts together what categorizing needs: the run's bundle."""
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds, backbone = run.thresholds(head), run.backbone
    evaluation = run.artifact("evaluation", "evaluate", thresholds=thresholds)
    styles, sellers = run.styles(), run.sellers()

    def make(work: Path) -> Mapping[str, object]:
        copied = [name for name in (*HEAD_FILES, *SET_FILES) if name in head.files]
        size = sum(head.files[name]["size"] for name in copied)
        size += sum(file["size"] for file in styles.files.values()) if styles else 0
        require_disk("pack", work, size + backbone.stored_bytes)
        for name in (*HEAD_FILES, *SET_FILES):
            if name in HEAD_FILES or name in head.files:
                shutil.copyfile(head.file(name), work / name)
        shutil.copyfile(thresholds.file(THRESHOLDS), work / THRESHOLDS)
        if sellers:
            shutil.copyfile(sellers.file(SELLERS_FILE), work / SELLERS_FILE)
        for name in STYLES_FILES if styles else ():
            assert styles is not None
            shutil.copyfile(styles.file(name), work / f"{STYLES}{name}")
        if UNLEARNT in records.files:  # next week's tree is compared with all categories
            shutil.copyfile(records.file(UNLEARNT), work / UNLEARNT)
        backbone.save(work)
        write_splits(records, run.known_splits(), work / SPLITS)
        write_measured(records, run.config.calibration.fit_share, work)
        write_feed(feed_of(records), work)
        write_trace(
            trace_of(run.config, records, bottlenecks, head, thresholds, evaluation, styles, sellers), work
        )
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
        "styles": styles.digest if styles else "none",
        "sellers": sellers.digest if sellers else "none",
    }
    return stage(run.path / "bundle", kind="bundle", version=VERSION, made_from=made_from, make=make)


def release(run: Run, candidate: Artifact, verdict: Verdict) -> AnyPath | None:
    """Does what the verdict says: puts the bundle into service, or leaves the one there.

    Returns:
        The new release's directory, or None where the candidate is kept out.

    Raises:
        Busy: meanwhile another release was put into service than the one that the verdict is about.
    """
    if not verdict.release:
        log.info("release: kept the one in service: %s", verdict.sentence)
        return None
    with releases_locked(run.releases):
        now = in_service(run.releases)
        if now != verdict.current_name or release_digest(run.releases, now) not in (verdict.current, None):
            raise Busy(
                f"release: {now or 'nothing'} is in service now, and the verdict of run {run.name} is about "
                f"{verdict.current_name or 'nothing'}; expected no other switch meanwhile; run the same "
                "command again"
            )
        target = link_bundle(candidate, run.name, run.releases)
        switch(run.releases, target.name, "release", verdict.sentence, run=run.name)
    log.info("release: %s is in service: %s", target.name, verdict.sentence)
    return target
