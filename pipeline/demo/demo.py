"""The demo: draws a small catalogue, runs the weekly job and the batch job on it, prints the main figures."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from features.engines.backbones import load_backbone
from features.errors import ShelfmarkError
from models.decisions.categorizer import ACCEPTED, PARENT, REVIEW, UNREADABLE
from models.decisions.thresholds import Certificate
from pipeline.categorize.categorize import categorize
from pipeline.demo.drawn_catalogue import DrawnCatalogue, draw_catalogue
from pipeline.job.config import Config
from pipeline.job.load_config import load_config
from pipeline.job.lock import only_job
from pipeline.job.progress import log
from pipeline.job.run import begin_run, default_name
from pipeline.release.in_service import require_release
from pipeline.report.data import load
from pipeline.retrain import retrain
from pipeline.train.figures import PartFigures

IMAGE_SIZE = 96  # px; a tenth of the work of 299, and enough for drawn shapes
STATUSES = (ACCEPTED, PARENT, REVIEW, UNREADABLE)
SHORT = {"batch": 32, "epochs": 30, "patience": 12}  # 2,800 images: batches of 256 would make too few steps


def demo(workspace: Path) -> None:
    """Runs the weekly job and the batch job on drawn photos, and prints the main figures.

    Args:
        workspace: created if it does not exist; an existing one is reused.
    """
    drawn = draw_catalogue(workspace / "catalogue")
    config = _config()
    name = default_name(datetime.date.today())
    with only_job(workspace / "runs" / name):
        run = begin_run(workspace, name, config)
        retrain(run, [str(drawn.catalogue)], drawn.taxonomy)
    output = workspace / "decisions.parquet"
    categorize([str(drawn.catalogue)], require_release(workspace), run.store, str(output), config)
    data = load(workspace / "runs" / name)
    assert data.metrics.test, "a drawn catalogue has test products"
    print(
        "",
        *_measured(data.metrics.test),
        _promise(data.rules.certificate, data.metrics.test),
        *_stopping(data.metrics.test),
        _categorized(drawn, pd.read_parquet(output)),
        f"decisions         {output}",
        f"report            {workspace / 'runs' / name / 'report' / 'index.html'}",
        sep="\n",
    )
    if config.backbone.weights == "random":
        print("weights           random: these numbers show that the pipeline works, not how good it is")


def _config() -> Config:
    """ImageNet weights when they can be had, else seeded random ones, which every output then points out."""
    options: dict[str, object] = {f"train.{name}": value for name, value in SHORT.items()}
    options |= {"backbone.weights": "imagenet", "backbone.image_size": IMAGE_SIZE}
    try:
        load_backbone("inception_v3", "imagenet", IMAGE_SIZE)
    except ShelfmarkError:
        log.warning("demo: ImageNet weights are not available; it continues with seeded random weights")
        options["backbone.weights"] = "random"
    return load_config(options=options)


def _measured(test: PartFigures) -> Iterator[str]:
    yield f"test products     {test.products:,}: {test.precision:.1%} correct when everything is accepted"
    for level, shares in test.levels.items():
        yield f"  {level:<16}{shares.top1:.1%} top-1, {shares.top5:.1%} top-5"


def _promise(certificate: Certificate, test: PartFigures) -> str:
    if certificate.threshold is None:
        return f"threshold         not certifiable: {certificate.reason}"
    share, correct = test.accepted / test.products, test.accepted_precision or 0.0
    return (
        f"threshold         {certificate.threshold:.3f}, certified for precision {certificate.target:.0%}: "
        f"accepts {share:.1%} of the test products, {correct:.1%} of them correct"
    )


def _stopping(test: PartFigures) -> Iterator[str]:
    """The products that get a node above the category, and no category."""
    *above, _ = test.decided.items()
    for level, decided in reversed(above):
        share, correct = decided.products / test.products, decided.precision
        yield (
            f"  stop at {level}".ljust(18)
            + f"{share:.1%} of the test products"
            + (f", {correct:.1%} of them correct" if correct is not None else "")
        )


def _categorized(drawn: DrawnCatalogue, decisions: pd.DataFrame) -> str:
    """What was decided about the products without a category, whose true one is known from the drawing."""
    new = decisions[decisions["product_id"].isin(drawn.truth)]
    accepted = new[new["status"] == ACCEPTED]
    correct = (accepted["category"] == accepted["product_id"].map(drawn.truth)).sum()
    counts = ", ".join(f"{(new['status'] == status).sum():,} {status}" for status in STATUSES)
    return f"uncategorized     {len(new):,} products: {counts}; {correct:,} of the accepted are correct"
