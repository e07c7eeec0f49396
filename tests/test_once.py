"""The same photo twice is no more evidence than once: in training, calibration, evaluation and batch.

The same over HTTP: tests/test_serving.py.
"""

import functools
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from catalogues import write_manifest
from PIL import Image
from test_extract import Colours, Running
from test_ingest import in_a_loop

from features.storage.artifact import Artifact
from models.decisions.adapted import Adapter
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from pipeline.categorize.categorize import categorize
from pipeline.extract import fill_store as shards_module
from pipeline.extract.extract import extract_records
from pipeline.ingest import check_images as check_module
from pipeline.ingest import ingest as ingest_module
from pipeline.ingest.ingest import make_records
from pipeline.job.catalogue import categories_of, open_part
from pipeline.job.config import Config, ExtractSettings
from pipeline.train.calibrate import calibrate_head
from pipeline.train.evaluate import evaluate_head
from pipeline.train.finetune import draw_images
from pipeline.train.train import train_head

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
PRODUCTS = 300
SPLITS = ["train"] * 4 + ["val"] * 5 + ["test"]
CONFIG = Config.model_validate(
    {
        "head": {"hidden": [16, 16]},
        "train": {"epochs": 10, "patience": 10},
        "calibration": {"precision": 0.6, "delta": 0.3},
    }
)


@functools.cache
def red_photo(number: int, category: int) -> bytes:
    """A photo that no other number gives; red grows with the category, but not always."""
    rng = np.random.default_rng(number)
    colours = rng.integers(0, 256, (2, 2, 3))
    colours[..., 0] = np.clip(60 + 60 * category + rng.normal(0, 35), 0, 255)
    file = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).resize((16, 16)).save(file, "PNG")
    return file.getvalue()


def catalogue(folder: Path, times: int) -> str:
    """A manifest of products with one to three photos each, in which every row stands so many times."""
    rows = []
    for product in range(PRODUCTS):
        for place in range(1 + product % 3):
            image = f"{product}-{place}.png"
            (folder / image).write_bytes(red_photo(3 * product + place, product % 4))
            row = {"product_id": str(product), "image": image, "category": f"red-{product % 4}"}
            rows += [row | {"split": SPLITS[product // 4 % 10]}] * times
    return str(write_manifest(folder / "catalogue.csv", rows))


@contextmanager
def light() -> Iterator[None]:
    """Without Beam, and with a backbone of mean colours."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (check_module, ingest_module):
            patch.setattr(module, "run_units", in_a_loop)
        patch.setattr(shards_module, "choose_engine", lambda backbone, batch, *_: Running(backbone, batch))
        yield


def records_of(folder: Path, times: int) -> Artifact:
    with light():
        return make_records([catalogue(folder, times)], folder / "records", CONFIG.ingest)


def extracted(records: Artifact, folder: Path, flip: bool = False, asked: tuple[str, ...] = ()) -> Artifact:
    with light():
        settings = ExtractSettings(batch=16, flip=flip, asked=asked)
        return extract_records(records, Colours(), folder / "store", folder / "bottlenecks", settings)


@dataclass(frozen=True)
class Held:
    """What categorize needs of a bundle."""

    categorizer: Categorizer
    path: Path
    digest: str = "drawn"
    fingerprint: str = "colours-8"
    caveats: tuple[str, ...] = ()
    adapter: Adapter | None = None

    def backbone(self) -> Colours:
        return Colours()


@dataclass(frozen=True)
class Week:
    """A run on a catalogue, and a batch of the same products."""

    folder: Path
    records: Artifact
    bottlenecks: Artifact
    head: Artifact
    thresholds: Artifact
    evaluation: Artifact
    decisions: pd.DataFrame


def week_of(folder: Path, times: int) -> Week:
    store, records = folder / "store", records_of(folder, times)
    bottlenecks = extracted(records, folder)
    head = train_head(records, bottlenecks, store, folder / "head", CONFIG)
    thresholds = calibrate_head(records, bottlenecks, head, store, folder / "thresholds", CONFIG)
    evaluation = evaluate_head(
        records, bottlenecks, head, thresholds, store, folder / "evaluation", CONFIG.calibration
    )
    bundle = Held(Categorizer(load_predictor(head.path), read_rules(thresholds.file(THRESHOLDS))), folder)
    with light():
        categorize([str(folder / "catalogue.csv")], bundle, store, str(folder / "out" / "d.parquet"), CONFIG)
    decisions = pd.read_parquet(folder / "out" / "d.parquet")
    return Week(folder, records, bottlenecks, head, thresholds, evaluation, decisions)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Week:
    return week_of(tmp_path_factory.mktemp("once"), 1)


@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_rows_given_again_change_no_head_no_threshold_and_no_decision(
    once: Week, tmp_path: Path, times: int
) -> None:
    again = week_of(tmp_path, times)
    images, more = (pd.read_parquet(week.records.file("images.parquet")) for week in (once, again))
    assert len(more) == times * len(images), "the records keep them all"
    assert again.head.summary == once.head.summary
    assert again.head.files == once.head.files
    assert again.thresholds.files == once.thresholds.files
    assert again.evaluation.files == once.evaluation.files
    pd.testing.assert_frame_equal(again.decisions, once.decisions)
    assert once.thresholds.summary["certified"]
    assert 0 < (once.decisions["status"] == "accepted").sum() < len(once.decisions) == PRODUCTS


def test_fit_knows_how_many_images_its_products_have(once: Week) -> None:
    confidence = json.loads(once.thresholds.file(THRESHOLDS).read_text())["confidence"]
    assert confidence["kind"] == "logistic"
    assert (confidence["least_images"], confidence["most_images"]) == (1, 3)


def test_an_image_given_twice_keeps_both_of_its_views(once: Week, tmp_path: Path) -> None:
    both = extracted(records_of(tmp_path, 2), tmp_path, flip=True)
    for split in ("train", "val", "test"):
        alone = open_part(once.bottlenecks, once.folder / "store", split)
        part = open_part(both, tmp_path / "store", split)
        assert part.views == 2
        assert part.product_id.tolist() == alone.product_id.repeat(2).tolist()
        assert (part.digest == alone.digest.repeat(2, axis=0)).all()
        np.testing.assert_array_equal(part.first_view().rows[:], alone.rows[:])
        quarters = part.rows[:].reshape(-1, 2, 2, 2, 3)
        np.testing.assert_array_equal(quarters[:, 1], quarters[:, 0, :, ::-1])


def test_a_head_names_the_views_that_it_was_trained_on_and_those_that_it_predicts_from(
    once: Week, tmp_path: Path
) -> None:
    both = extracted(once.records, tmp_path, flip=True, asked=("whole",))
    head = train_head(once.records, both, tmp_path / "store", tmp_path / "head", CONFIG)
    shape = load_predictor(head.path).head.shape
    assert (shape.trained, shape.views) == (("whole", "flip"), ("whole",))
    assert load_predictor(once.head.path).head.shape.trained == ("whole",)


def test_fine_tuning_draws_each_image_of_a_product_once(once: Week, tmp_path: Path) -> None:
    drawn = [
        [
            sorted(zip(part["product_id"], part["image_digest"], strict=True))
            for part in draw_images(records, categories_of(records), CONFIG)
        ]
        for records in (once.records, records_of(tmp_path, 2))
    ]
    assert drawn[0] == drawn[1]
    assert all(drawn[0])


def test_trees_decide_the_same_in_calibration_evaluation_and_batch(
    once: Week, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrated(out: Path) -> Artifact:
        boosting = CONFIG.calibration.model_copy(update={"model": "boosting", "fit_share": 0.5})
        config = CONFIG.model_copy(update={"calibration": boosting})
        store = once.folder / "store"
        return calibrate_head(once.records, once.bottlenecks, once.head, store, out, config)

    few = read_rules(calibrated(tmp_path / "few").file(THRESHOLDS)).confidence
    assert few.kind == "logistic"
    assert "boosting expects 5000" in (few.reason or "")

    monkeypatch.setattr("models.decisions.confidence.LEAST_BOOSTED", 30)
    thresholds = calibrated(tmp_path / "thresholds")
    rules = read_rules(thresholds.file(THRESHOLDS))
    assert rules.confidence.kind == "boosting"
    evaluation = evaluate_head(
        once.records, once.bottlenecks, once.head, thresholds, once.folder / "store",
        tmp_path / "evaluation", CONFIG.calibration,
    )  # fmt: skip
    bundle = Held(Categorizer(load_predictor(once.head.path), rules), once.folder)
    with light():
        out = tmp_path / "d.parquet"
        categorize([str(once.folder / "catalogue.csv")], bundle, once.folder / "store", str(out), CONFIG)
    measured = pd.read_parquet(evaluation.file("decisions.parquet")).set_index("product_id")
    decided = pd.read_parquet(out).set_index("product_id").loc[measured.index]
    assert decided["confidence"].nunique() > 3
    pd.testing.assert_series_equal(decided["confidence"], measured["confidence"])
