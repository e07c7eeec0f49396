"""Inception v3 with real weights at 299 px on real photos: engines agree, and the weekly run is whole."""

import json
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest

from features.engines.backbones import BACKBONE, Backbone, load_backbone, start_tensorflow
from features.engines.choose import choose_engine
from features.engines.engine import extract
from features.engines.openvino import Int8Calibration
from features.records import pieces_of
from pipeline.cli import main

WEIGHTS = conftest.SHARED / "weights" / "inception_v3.weights.h5"
GROCERY = conftest.SHARED / "data" / "grocery"
LIMIT = {"fp32": 1e-4, "bf16": 2e-2, "int8": 0.1}  # of the length of an image's bottleneck
CATEGORIES = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not WEIGHTS.is_file() or not GROCERY.is_dir(), reason="no weights or photos in ../shared"
    ),
]


@pytest.fixture(scope="module", params=["inception_v3", "inception_v3@mixed5"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    start_tensorflow()
    return load_backbone(request.param, str(WEIGHTS))


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [file.read_bytes() for file in sorted((GROCERY / "val").rglob("*.jpg"))[::20]]


def computed(
    backbone: Backbone, photos: list[bytes], folder: Path, engine: str, precision: str
) -> np.ndarray:
    calibration = Int8Calibration(folder, lambda most: pieces_of(photos[:most], "photos"))
    made = choose_engine(backbone, 8, engine, precision, calibration)
    return extract(made, pieces_of(photos, "photos"), len(photos), dtype=np.float32)[0]


def test_every_engine_and_precision_gives_the_bottlenecks_of_keras(
    backbone: Backbone, photos: list[bytes], tmp_path: Path
) -> None:
    import openvino

    exact = computed(backbone, photos, tmp_path, "tensorflow", "fp32")
    runs = [("tensorflow", "bf16"), ("openvino", "fp32"), ("openvino", "int8")]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        runs.append(("openvino", "bf16"))
    for engine, precision in runs:
        found = computed(backbone, photos, tmp_path, engine, precision)
        error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
        worst = np.median(error) if precision == "int8" else error.max()  # single photos lie far outside
        assert worst < LIMIT[precision], (engine, precision)


def run(*arguments: object) -> None:
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        assert not ended.code


def test_weekly_run_and_batch_on_the_middle_of_the_network(tmp_path: Path) -> None:
    rows = pd.read_csv(GROCERY / "manifest.csv")
    chosen = rows[rows["category"].isin(rows["category"].value_counts().index[:CATEGORIES])].copy()
    chosen["image"] = [str(GROCERY / image) for image in chosen["image"]]
    chosen.drop(columns="split").to_csv(tmp_path / "shop.csv", index=False)
    workspace, output = tmp_path / "W", tmp_path / "decisions.parquet"
    run(
        "retrain", tmp_path / "shop.csv", "--workspace", workspace, "--run", "week",
        "--backbone", "inception_v3@mixed5", "--weights", WEIGHTS, "--set", "ingest.min_products=10",
    )  # fmt: skip
    bundle = workspace / "releases" / "current"
    assert json.loads((bundle / BACKBONE).read_text()) == {
        "name": "inceptionv3@mixed5", "image_size": 299, "weights": WEIGHTS.name,
    }  # fmt: skip
    assert (bundle / "backbone.weights.h5").stat().st_size < 30_000_000, "the second half is not in it"
    test = json.loads((workspace / "runs" / "week" / "evaluation" / "metrics.json").read_text())["test"]
    assert test["precision"] > 0.7, "one in six by chance"

    fresh = chosen.groupby("category").head(5).assign(product_id=lambda rows: "new-" + rows["product_id"])
    fresh.drop(columns=["split", "category"]).to_csv(tmp_path / "new.csv", index=False)
    run("categorize", tmp_path / "new.csv", "--workspace", workspace, "--output", output)
    decisions = pd.read_parquet(output)
    assert len(decisions) == 5 * CATEGORIES
    assert (decisions["category"].to_numpy() == fresh["category"].to_numpy()).mean() > 0.8
