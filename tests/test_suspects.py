"""Labels in doubt of a run: planted wrong labels, contradictory images, and the warning."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from catalogues import drawn_image, encoded, write_manifest
from PIL import Image

from features.storage.artifact import open_artifact
from pipeline.audit.suspects import SUSPECTS, outvoted, suspects
from pipeline.cli import main
from pipeline.job.load_config import load_config
from pipeline.job.run import Run, begin_run, saved_settings
from pipeline.job.summaries import SuspectsSummary
from pipeline.train.calibrate import calibrate

SETTINGS = """
[ingest]
min_products = 10
[backbone]
name = "mobilenet"
weights = "{weights}"
image_size = 32
[extract]
precision = "fp32"
[head]
hidden = [64, 64]
[train]
epochs = 30
batch = 16
second_dropout = 0
"""
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40), "yellow": (220, 200, 50)}
PRODUCTS = 320


def picture(colour: str, seed: int) -> bytes:
    """A photo that leans to a colour."""
    noise = np.asarray(drawn_image(seed, 40, 40), float)
    mixed = 0.35 * noise + 0.65 * np.array(COLOURS[colour], float)
    return encoded(Image.fromarray(mixed.astype(np.uint8)), "JPEG", quality=90)


@pytest.fixture(scope="module")
def shop(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A calibrated run over products of four colours; every thirteenth has the next colour's label."""
    folder = tmp_path_factory.mktemp("suspects")
    (folder / "photos").mkdir()
    names, rows, truth = list(COLOURS), [], {}
    for number in range(PRODUCTS):
        colour = names[number % 4]
        label = names[(number + 1) % 4] if number % 13 == 5 else colour
        (folder / f"photos/{number}.jpg").write_bytes(picture(colour, number))
        rows.append({"product_id": f"p{number}", "image": f"photos/{number}.jpg", "category": label})
        truth[f"p{number}"] = colour
    # the same photo in three red products and a yellow one; and in one blue and one green product
    for name, photo, label in (
        *[("same1", "s", "red"), ("same2", "s", "red"), ("same3", "s", "red"), ("odd", "s", "yellow")],
        *[("tie1", "t", "blue"), ("tie2", "t", "green")],
    ):
        (folder / f"photos/{photo}.jpg").write_bytes(
            picture("red" if photo == "s" else "blue", ord(photo) * 99)
        )
        rows.append({"product_id": name, "image": f"photos/{photo}.jpg", "category": label})
    write_manifest(folder / "shop.csv", rows)
    (folder / "weekly.toml").write_text(SETTINGS.format(weights=drawn_weights))
    common = ["--workspace", str(folder / "W"), "--run", "week"]
    done(main, "ingest", str(folder / "shop.csv"), *common, "--config", str(folder / "weekly.toml"))
    for stage in ("extract", "train", "calibrate"):
        done(main, stage, *common)
    return SimpleNamespace(
        workspace=folder / "W", truth=truth, labels={r["product_id"]: r["category"] for r in rows}
    )


def done(command: Callable[[list[str]], None], *arguments: str) -> None:
    try:
        command([*arguments])
    except SystemExit as stop:
        assert not stop.code, arguments


def opened(shop: SimpleNamespace, *sets: str) -> Run:
    base = saved_settings(shop.workspace, "week")
    return begin_run(shop.workspace, "week", load_config(None, sets, {}, base))


def listed(run: Run) -> pd.DataFrame:
    return pd.read_parquet(suspects(run).path / "suspects.parquet")


def parts_of(shop: SimpleNamespace) -> pd.Series:
    products = pd.read_parquet(shop.workspace / "runs/week/records/products.parquet")
    return products.set_index("product_id")["split"]


def test_planted_labels_of_validation_and_test_are_listed_first(shop: SimpleNamespace) -> None:
    run = opened(shop)
    table, part = listed(run), parts_of(shop)
    assert pq.read_schema(run.path / "suspects/suspects.parquet").names == SUSPECTS.names
    planted = {name for name, colour in shop.truth.items() if shop.labels[name] != colour}
    measured = {name for name in planted if part[name] in ("val", "test")}
    predicted = table[table["reason"] == "prediction"]
    found = set(predicted["product_id"])
    assert len(measured) >= 4
    assert len(found & measured) >= 0.75 * len(measured)
    assert len(found) <= 2 * len(measured)
    assert set(predicted["part"]) <= {"val", "test"}
    right = predicted[predicted["product_id"].isin(planted)]
    assert (right["proposed"] == right["product_id"].map(shop.truth)).mean() > 0.7
    assert (right["category"] == right["product_id"].map(shop.labels)).all()
    assert table["label_wrong"].is_monotonic_decreasing
    assert table["confidence"].between(0, 1).all()


def test_every_suspect_has_the_photo_that_is_in_the_records(shop: SimpleNamespace) -> None:
    table = listed(opened(shop))
    images = pd.read_parquet(shop.workspace / "runs/week/records/images.parquet")
    both = table.merge(images, on=["product_id", "image_digest"])
    assert len(both) == len(table) > 0
    assert table["category_path"].tolist() == table["category"].tolist(), "this tree has one level"


def test_contradictory_images_are_listed_whatever_their_part(shop: SimpleNamespace) -> None:
    """One product of four, and two of two; the head may agree with the label of one that it examined."""
    table = listed(opened(shop)).set_index("product_id")
    part = parts_of(shop)
    same = table[table["reason"] != "prediction"]
    assert set(same.index) <= {"odd", "tie1", "tie2"}, "the three red ones have three votes of four"
    assert {name for name in ("odd", "tie1", "tie2") if part[name] == "train"} <= set(same.index)
    for name, row in same.iterrows():
        votes = 0.75 if name == "odd" else 0.5
        assert (row["confidence"], row["label_wrong"]) == (votes, votes)
        assert row["proposed"] == {"odd": "red", "tie1": "green", "tie2": "blue"}[str(name)]


def test_training_products_are_examined_by_heads_of_folds(shop: SimpleNamespace) -> None:
    run, part = opened(shop, "suspects.folds=2"), parts_of(shop)
    table = listed(run)
    summary = SuspectsSummary.of(open_artifact(run.path / "suspects", "suspects"))
    assert summary.examined == len(part) == PRODUCTS + 6
    predicted = table[table["reason"] == "prediction"]
    planted = {name for name, colour in shop.truth.items() if shop.labels[name] != colour}
    found = set(predicted[predicted["part"] == "train"]["product_id"])
    assert len(found) > 8
    assert len(found & planted) >= 0.8 * len(found)
    assert sorted(file.name for file in (run.path / "suspects").iterdir()) == [
        "manifest.json",
        "suspects.parquet",
    ]


def test_an_unchanged_list_is_opened(shop: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shelfmark")
    first = suspects(opened(shop))
    caplog.clear()
    assert suspects(opened(shop)).digest == first.digest
    assert "suspects: unchanged" in caplog.text
    assert not SuspectsSummary.of(first).target_above_ceiling, "0.9, and one label in thirteen is wrong"


def test_the_command_prints_where_the_list_is(shop: SimpleNamespace, capsys: Any) -> None:
    done(main, "audit", "suspects", "--workspace", str(shop.workspace), "--run", "week")
    assert capsys.readouterr().out.strip().endswith("runs/week/suspects/suspects.parquet")


def test_a_target_above_the_ceiling_is_warned_about(
    shop: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    run = opened(shop, "calibration.precision=0.99")
    calibrate(run)
    summary = SuspectsSummary.of(suspects(run))
    assert summary.target == 0.99
    assert 0.02 < summary.noise < 0.2, "one label in thirteen is wrong"
    assert summary.target_above_ceiling
    assert (
        "no threshold can reach the promised 99% as measured on these labels; correct labels" in caplog.text
    )


# Votes


def votes(*images: dict[str, str]) -> dict[str, tuple[str, float, float]]:
    """Product → (proposed, confidence, label_wrong), from {product: category} of each image."""
    rows = [
        (f"d{n}", product, category) for n, image in enumerate(images) for product, category in image.items()
    ]
    found = outvoted(pd.DataFrame(rows, columns=["image_digest", "product_id", "category"], dtype=object))
    return {
        row.product_id: (row.proposed, round(row.confidence, 3), round(row.label_wrong, 3))
        for row in found.itertuples()
    }


def test_each_product_of_an_image_has_one_vote() -> None:
    assert votes({"a": "x", "b": "x", "c": "y", "d": "z"}) == {
        "a": ("y", 0.25, 0.5), "b": ("y", 0.25, 0.5), "c": ("x", 0.5, 0.75), "d": ("x", 0.5, 0.75),
    }  # fmt: skip


def test_an_image_of_one_category_is_no_contradiction() -> None:
    assert votes({"a": "x", "b": "x"}) == {}
    assert votes() == {}


@pytest.mark.parametrize("seed", range(5))
def test_votes_agree_with_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = {f"p{n}": str(rng.choice(list("wxyz"), p=[0.4, 0.3, 0.2, 0.1])) for n in range(12)}
    counts = Counter(image.values())
    expected = {}
    for product, category in image.items():
        others = {name: count for name, count in counts.items() if name != category}
        if others:
            best = min(others, key=lambda name: (-others[name], name))
            expected[product] = (best, round(others[best] / 12, 3), round(1 - counts[category] / 12, 3))
    assert votes(image) == expected
