"""The demo: draws a small catalogue, runs the weekly job and the batch job on it, and says what came out."""

import datetime
import json
from pathlib import Path
from typing import Any

import pandas as pd

from features.engines.backbones import load_backbone
from features.errors import ShelfmarkError
from pipeline.demo.drawn_catalogue import DrawnCatalogue, draw_catalogue
from pipeline.job.config import Config
from pipeline.job.load_config import load_config
from pipeline.job.lock import only_job
from pipeline.job.progress import log
from pipeline.job.run import begin_run, default_name
from pipeline.release.categorize import categorize
from pipeline.release.release import require_release
from pipeline.retrain import retrain

IMAGE_SIZE = 96  # px; a tenth of the work of 299, and enough for drawn shapes
SHORT = {"batch": 32, "epochs": 30, "patience": 12}  # 2,800 images: batches of 256 would make too few steps


def demo(workspace: Path) -> None:
    """Runs the whole main job on drawn photos.

    Args:
        workspace: made when it is not there; run again, it is reused.
    """
    drawn = draw_catalogue(workspace / "catalogue")
    config = _config()
    name = default_name(datetime.date.today())
    with only_job(workspace / "runs" / name):
        run = begin_run(workspace, name, config)
        retrain(run, [str(drawn.catalogue)], drawn.taxonomy)
    output = workspace / "decisions.parquet"
    categorize([str(drawn.catalogue)], require_release(workspace), run.store, output, config)
    path = workspace / "runs" / name
    print(_told(path, drawn, pd.read_parquet(output), output, config.backbone.weights == "random"))


def _config() -> Config:
    """ImageNet weights when they can be had, else seeded random ones, which every output then tells."""
    options: dict[str, Any] = {f"train.{name}": value for name, value in SHORT.items()}
    options |= {"backbone.weights": "imagenet", "backbone.image_size": IMAGE_SIZE}
    try:
        load_backbone("inception_v3", "imagenet", IMAGE_SIZE)
    except ShelfmarkError:
        log.warning("demo: ImageNet weights cannot be had; going on with seeded random weights")
        options["backbone.weights"] = "random"
    return load_config(options=options)


def _told(run: Path, drawn: DrawnCatalogue, decisions: pd.DataFrame, output: Path, random: bool) -> str:
    """The headline numbers."""
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    test, levels = metrics["test"], metrics["test"]["levels"]
    certificate = json.loads((run / "thresholds" / "thresholds.json").read_text())["certificate"]
    lines = [
        "",
        f"test products     {test['products']:,}: {test['precision']:.1%} right when everything is accepted",
        *(
            f"  {level:<16}{told['top1']:.1%} top-1, {told['top5']:.1%} top-5"
            for level, told in levels.items()
        ),
        _promise(certificate, test),
        _shelved(drawn, decisions),
        f"decisions         {output}",
        f"report            {run / 'report' / 'index.html'}",
    ]
    warning = "weights           random: these numbers show that the pipeline works, not how good it is"
    return "\n".join([*lines, warning] if random else lines)


def _promise(certificate: dict[str, Any], test: dict[str, Any]) -> str:
    threshold, target = certificate["threshold"], certificate["target"]
    if threshold is None:
        return f"threshold         not certifiable: {certificate['reason']}"
    share, right = test["accepted"] / test["products"], test["accepted_precision"] or 0.0
    return (
        f"threshold         {threshold:.3f}, certified for precision {target:.0%}: "
        f"accepts {share:.1%} of the test products, {right:.1%} of them right"
    )


def _shelved(drawn: DrawnCatalogue, decisions: pd.DataFrame) -> str:
    """What became of the products without a category, whose truth the drawing knows."""
    new = decisions[decisions["product_id"].isin(drawn.truth)]
    accepted = new[new["status"] == "accepted"]
    right = (accepted["category"] == accepted["product_id"].map(drawn.truth)).sum()
    counts = ", ".join(
        f"{(new['status'] == status).sum():,} {status}" for status in ("accepted", "review", "unreadable")
    )
    return f"uncategorized     {len(new):,} products: {counts}; {right:,} of the accepted are right"
