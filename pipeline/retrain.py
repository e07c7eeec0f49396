"""The weekly run, on one page."""

from features.storage.artifact import Artifact
from features.storage.paths import Place
from pipeline.extract.extract import extract_records
from pipeline.ingest.ingest import ingest
from pipeline.job.run import Run
from pipeline.release.release import current_release, judge, pack, release, write_verdict
from pipeline.report.report import report
from pipeline.train.calibrate import calibrate
from pipeline.train.evaluate import evaluate
from pipeline.train.finetune import finetune
from pipeline.train.train import train


def retrain(
    run: Run,
    sources: list[str],
    taxonomy: Place | None = None,
    beam: tuple[str, ...] = (),
    tune: bool = False,
) -> Place | None:
    """Trains this week's bundle and releases it if it is better than the one in service.

    Args:
        run: opened.
        sources: paths of the catalogue.
        taxonomy: CSV of the tree, for sources that do not tell it.
        beam: Beam's own options.
        tune: fine-tune the backbone first.

    Returns:
        The new release, or None when the one in service stays.
    """
    config, path, store = run.config, run.path, run.store
    records = ingest(
        sources,
        path / "records",
        config.ingest,
        seed=config.seed,
        taxonomy=taxonomy,
        known=run.known_splits(),
        beam=beam,
    )
    if tune:
        finetune(records, run.untuned_backbone(), store, path / "backbone", config)
    backbone = run.backbone()
    bottlenecks = extract_records(records, backbone, store, path / "bottlenecks", config.extract, beam)
    head = train(records, bottlenecks, store, path / "head", config, run.bundle_before())
    thresholds = calibrate(records, bottlenecks, head, store, path / "thresholds", config)
    evaluate(records, bottlenecks, head, thresholds, store, path / "evaluation", config.calibration)
    report(path)
    candidate: Artifact = pack(records, head, thresholds, backbone, path / "bundle")
    verdict = judge(candidate, current_release(run.releases), records, bottlenecks, store, config)
    if verdict.candidate != verdict.current:  # else it was judged, and released, before
        write_verdict(verdict, path / "verdict.json")
    return release(candidate, verdict, run.name, run.releases)
