"""A run of shelfmark 0.1.0, of 42 drawn photos and before the rooms were moved, is read by this version.

data/run-of-0.1.0.tar.xz    photos/ as they were, W/runs/week up to evaluation/, W/store
"""

import logging
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.storage.artifact import open_artifact
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from models.decisions.predictions import product_bounds
from pipeline.extract.extract import extract
from pipeline.ingest.ingest import ingest
from pipeline.job.catalogue import open_part
from pipeline.job.load_config import load_config
from pipeline.job.run import Run, begin_run, saved_settings
from pipeline.train.calibrate import calibrate
from pipeline.train.evaluate import evaluate
from pipeline.train.train import train

KINDS = ("records", "bottlenecks", "head", "thresholds", "evaluation")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with tarfile.open(Path(__file__).parent / "data" / "run-of-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    workspace = tmp_path / "W"
    return begin_run(workspace, "week", load_config(base=saved_settings(workspace, "week")))


def test_a_run_made_before_is_made_again_from_its_own_settings_without_extracting_anything(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Records count unlearnt categories now: what comes after is made again, and nothing is extracted."""
    before = {kind: (run.path / kind / "manifest.json").read_bytes() for kind in KINDS}
    shards = sorted((run.workspace / "store").rglob("*.npy"))
    with caplog.at_level(logging.INFO, "shelfmark"):
        ingest(run, [str(run.workspace.parent / "photos")])
        extract(run)
        for stage in (train, calibrate, evaluate):
            stage(run)
    after = {kind: (run.path / kind / "manifest.json").read_bytes() for kind in KINDS}
    assert [kind for kind in KINDS if after[kind] != before[kind]] == list(KINDS)
    assert sorted((run.workspace / "store").rglob("*.npy")) == shards


def test_a_head_and_thresholds_made_before_decide_as_they_did(run: Run) -> None:
    head, bottlenecks, evaluation = (
        open_artifact(run.path / kind, kind) for kind in ("head", "bottlenecks", "evaluation")
    )
    rules = read_rules(run.path / "thresholds" / THRESHOLDS)
    categorizer = Categorizer(load_predictor(head.folder()), rules)
    part = open_part(bottlenecks, run.store, "test")
    bounds = product_bounds(part.product_id)
    predictions = categorizer.predict(part.rows, bounds)
    decisions = categorizer.decide(part.product_id[bounds[:-1]], predictions)
    before = pd.read_parquet(evaluation.file("decisions.parquet"))
    assert decisions["category"].tolist() == before["category"].tolist()
    assert decisions["status"].tolist() == before["status"].tolist()
    np.testing.assert_allclose(decisions["confidence"], before["confidence"], atol=1e-4)
