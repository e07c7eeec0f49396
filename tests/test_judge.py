"""The verdict: a drawn shop's runs against the release in service, from records to verdict.json."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from catalogues import encoded, write_manifest
from PIL import Image

from features.storage.artifact import Artifact, open_artifact
from models.decisions.releases import in_service
from pipeline.extract.extract import extract
from pipeline.ingest.ingest import ingest
from pipeline.job.config import Config
from pipeline.job.load_config import load_config
from pipeline.job.run import Run, begin_run
from pipeline.release.judge import Verdict, judge, read_verdict
from pipeline.release.release import pack, release
from pipeline.report.report import report
from pipeline.train.calibrate import calibrate
from pipeline.train.evaluate import evaluate
from pipeline.train.train import train

DEPARTMENTS = {"Food": ("apple", "leek", "milk", "oats"), "Home": ("lamp", "soap", "sofa", "vase")}
PRODUCTS = 60  # of each category
SETTINGS = (
    "ingest.min_products=5", "ingest.val_share=0.3", "ingest.test_share=0.2", "ingest.least_test=2",
    "backbone.name=mobilenet", "backbone.image_size=32", "extract.shard_images=200", "head.hidden=[64,64]",
    "head.aggregation=mean", "train.epochs=40", "train.batch=16", "train.second_dropout=0",
    "calibration.precision=0.8", "gate.repetitions=300", "sellers.method=none",
)  # fmt: skip
BAD = ("train.epochs=1", "train.learning_rate=1e-9")


def draw_shop(folder: Path, departments: tuple[str, ...] = ("Food", "Home")) -> Path:
    """A manifest of photos: each category has its own colours; every ninth product has any colours."""
    rows: list[dict[str, Any]] = []
    folder.mkdir(exist_ok=True)
    categories = [(one, name) for one, names in DEPARTMENTS.items() for name in names]
    for at, (department, name) in enumerate(categories):
        base = np.random.default_rng(at).integers(40, 216, (4, 4, 3))
        for number in range(PRODUCTS):
            random = np.random.default_rng(1000 * at + number)
            looks = random.integers(0, 256, (4, 4, 3)) if number % 9 == 8 else base
            pixels = np.clip(looks + random.normal(0, 12, looks.shape), 0, 255).astype(np.uint8)
            file = folder / f"{name}-{number}.jpg"
            if not file.exists():
                file.write_bytes(encoded(Image.fromarray(pixels).resize((32, 32)), "JPEG", quality=90))
            rows.append({
                "product_id": f"{name}-{number}", "image": file.name, "category": name,
                "level1": department, "level2": name,
            })  # fmt: skip
    kept = [row for row in rows if row["level1"] in departments]
    return write_manifest(folder / f"{'whole' if len(departments) > 1 else 'half'}.csv", kept)


def made(workspace: Path, name: str, source: Path, config: Config, *mappings: Path) -> tuple[Run, Artifact]:
    """A run up to its bundle."""
    run = begin_run(workspace, name, config)
    ingest(run, [str(source)], mappings=mappings)
    for stage in (extract, train, calibrate, evaluate):
        stage(run)
    return run, pack(run)


def config_of(weights: Path, *more: str) -> Config:
    return load_config(None, (*SETTINGS, f"backbone.weights={weights}", *more))


@pytest.fixture(scope="module")
def shop(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which `good` is in service; `bad` and `half`, of half the categories, have bundles."""
    folder = tmp_path_factory.mktemp("shop")
    whole, half = draw_shop(folder), draw_shop(folder, ("Food",))
    workspace, config = folder / "W", config_of(drawn_weights)
    run, candidate = made(workspace, "good", whole, config)
    verdict = judge(run, candidate)
    assert (verdict.outcome, verdict.release, verdict.current) == ("first", True, None)
    assert release(run, candidate, verdict)
    made(workspace, "bad", whole, config_of(drawn_weights, *BAD))
    made(workspace, "half", half, config)
    return workspace


@pytest.fixture
def copy(shop: Path, tmp_path: Path) -> Path:
    shutil.copytree(shop.parent, tmp_path / "shop", symlinks=True)
    return tmp_path / "shop" / "W"


def judged(workspace: Path, name: str, weights: Path, *more: str, **given: bool) -> Verdict:
    """The verdict about a run's bundle, and what is written of it."""
    run = begin_run(workspace, name, config_of(weights, *more))
    verdict = judge(run, open_artifact(run.path / "bundle", "bundle"), **given)
    assert read_verdict(run) == verdict or verdict.outcome == "same"
    return verdict


def test_a_half_empty_feed_loses_although_its_own_test_products_look_good(
    copy: Path, drawn_weights: Path
) -> None:
    verdict = judged(copy, "half", drawn_weights)
    assert verdict.outcome == "worse" and not verdict.release
    assert verdict.products and verdict.comparison and verdict.categories_gone
    weeks = verdict.comparison.weeks
    assert weeks["gone"].before.correct > 0.6 and weeks["gone"].after.correct == 0.0
    assert weeks["both"].after.correct > weeks["both"].before.correct - 0.1
    assert verdict.products.gone == weeks["gone"].after.products == 4 * PRODUCTS // 5
    assert verdict.categories_gone.names == ("Home / lamp", "Home / soap", "Home / sofa", "Home / vase")
    assert [one.name for one in verdict.comparison.worse_departments] == ["Home"]
    assert f"{verdict.products.gone} of them gone this week" in verdict.sentence
    run = begin_run(copy, "half", config_of(drawn_weights))
    page = report(run).file("index.html")
    assert verdict.sentence in page.read_text(encoding="utf-8")
    change = {"candidate": "another bundle"}
    (run.path / "verdict.json").write_text(json.dumps(asdict(verdict) | change))
    assert verdict.sentence not in report(run).file("index.html").read_text(encoding="utf-8")


def recalibrated(workspace: Path, weights: Path, name: str, *more: str) -> Run:
    """A run with the head of `good` and other settings of [calibration]."""
    shutil.copytree(workspace / "runs" / "good", workspace / "runs" / name)
    (workspace / "runs" / name / "config.json").unlink()
    run = begin_run(workspace, name, config_of(weights, *more))
    calibrate(run)
    evaluate(run)
    pack(run)
    return run


def test_a_worse_model_is_kept_out_unless_forced(copy: Path, drawn_weights: Path) -> None:
    verdict = judged(copy, "bad", drawn_weights)
    assert (verdict.outcome, verdict.release, verdict.forced) == ("worse", False, False)
    forced = judged(copy, "bad", drawn_weights, force=True)
    assert (forced.outcome, forced.release, forced.forced) == ("worse", True, True)
    assert forced.sentence == f"{verdict.sentence}; released by --force"
    run = begin_run(copy, "bad", config_of(drawn_weights, *BAD))
    assert release(run, open_artifact(run.path / "bundle", "bundle"), forced)
    assert in_service(copy / "releases") == "bad"
    better = judged(copy, "good", drawn_weights)
    assert (better.outcome, better.release, better.current_name) == ("better", True, "bad")


def test_the_same_bundle_is_the_same_and_its_first_verdict_stays(copy: Path, drawn_weights: Path) -> None:
    before = (copy / "runs" / "good" / "verdict.json").read_bytes()
    for force in (False, True):
        verdict = judged(copy, "good", drawn_weights, force=force)
        assert (verdict.outcome, verdict.release, verdict.forced) == ("same", False, False)
    assert (copy / "runs" / "good" / "verdict.json").read_bytes() == before
    (copy / "runs" / "good" / "verdict.json").unlink()
    judged(copy, "good", drawn_weights)
    assert json.loads((copy / "runs" / "good" / "verdict.json").read_bytes())["outcome"] == "same"


def test_an_equal_bundle_is_released_as_the_setting_says(copy: Path, drawn_weights: Path) -> None:
    recalibrated(copy, drawn_weights, "equal", "calibration.grid=997")
    released = {}
    for rule in ("keep", "tree_changed", "release"):
        for changed in (False, True):
            setting = f"gate.when_equal={rule}"
            verdict = judged(copy, "equal", drawn_weights, setting, tree_changed=changed)
            assert verdict.outcome == "not told apart"
            assert verdict.sentence.startswith("not told apart from release good: ")
            released[rule, changed] = verdict.release
            assert ("because the categories have changed" in verdict.sentence) == (
                rule == "tree_changed" and changed
            )
            assert verdict.sentence.endswith("(gate.when_equal)") == verdict.release
            forced = judged(copy, "equal", drawn_weights, setting, force=True, tree_changed=changed)
            assert forced.sentence == verdict.sentence + "; released by --force" * (not verdict.release)
    assert released == {
        ("keep", False): False, ("keep", True): False, ("tree_changed", False): False,
        ("tree_changed", True): True, ("release", False): True, ("release", True): True,
    }  # fmt: skip


STRICT = "calibration.precision=0.995"


def test_a_promise_that_cannot_be_kept_any_more_is_kept_or_withdrawn_as_the_setting_says(
    copy: Path, drawn_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recalibrated(copy, drawn_weights, "strict", STRICT)
    kept = judged(copy, "strict", drawn_weights, STRICT)
    assert not kept.promise.certified and kept.current_promise and kept.current_promise.target == 0.8
    assert (kept.outcome, kept.release, kept.withdraw) == ("worse", False, False)
    assert (
        "release good was certified for 0.8 with certainty 0.9 only, 0.995 with certainty 0.9 is required"
        in kept.sentence
    )
    assert kept.sentence.endswith("good serves with its old promise (gate.old_promise)")
    assert "good serves with its old promise" in caplog.text
    withdrawn = judged(copy, "strict", drawn_weights, STRICT, "gate.old_promise=withdraw")
    assert (withdrawn.release, withdrawn.withdraw, withdrawn.forced) == (True, True, False)
    assert "accepts nothing until a bundle is certified" in withdrawn.sentence


def test_a_bundle_certified_for_what_is_required_replaces_one_certified_for_less(
    copy: Path, drawn_weights: Path
) -> None:
    recalibrated(copy, drawn_weights, "more", "calibration.precision=0.85")
    verdict = judged(copy, "more", drawn_weights, "calibration.precision=0.85")
    assert verdict.promise.certified and (verdict.outcome, verdict.release) == ("better", True)
    assert "it alone is certified for what is required" in verdict.sentence


def damage(releases: Path, how: str) -> None:
    if how == "lost":
        shutil.rmtree(releases / "good")
    elif how == "a file is lost":
        (releases / "good" / "head.weights.h5").unlink()
    elif how == "a byte is flipped":
        file = releases / "good" / "head.weights.h5"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.unlink()  # it may be linked to the run's
        file.write_bytes(data)
    elif how == "an older version":
        manifest = json.loads((releases / "good" / "manifest.json").read_bytes())
        (releases / "good" / "thresholds.json").write_text('{"threshold": 0.9}')
        entry = manifest["files"]["thresholds.json"]
        entry["size"] = len('{"threshold": 0.9}')
        entry["sha256"] = hashlib.sha256(b'{"threshold": 0.9}').hexdigest()
        (releases / "good" / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("how", ["lost", "a file is lost", "a byte is flipped", "an older version"])
def test_a_release_that_cannot_decide_any_more_stays_until_force_replaces_it(
    copy: Path, drawn_weights: Path, how: str
) -> None:
    recalibrated(copy, drawn_weights, "next", "calibration.grid=997")
    damage(copy / "releases", how)
    verdict = judged(copy, "next", drawn_weights)
    assert (verdict.outcome, verdict.release, verdict.current_name) == ("not comparable", False, "good")
    assert "it stays; put it back, or release this one by --force" in verdict.sentence
    assert "\n" not in verdict.sentence
    forced = judged(copy, "next", drawn_weights, force=True)
    assert forced.release and forced.forced
    run = begin_run(copy, "next", config_of(drawn_weights))
    assert release(run, open_artifact(run.path / "bundle", "bundle"), forced)
    assert in_service(copy / "releases") == "next"


def test_where_the_old_records_are_gone_bundle_and_store_take_their_place(
    copy: Path, drawn_weights: Path
) -> None:
    whole = judged(copy, "half", drawn_weights)
    shutil.rmtree(copy / "runs" / "good")
    verdict = judged(copy, "half", drawn_weights)
    assert verdict == whole


def test_a_run_that_is_repeated_with_half_of_the_feed_loses_although_it_has_replaced_its_records(
    copy: Path, drawn_weights: Path
) -> None:
    """The default name of a run is the week: a job that runs every day goes on with the same one."""
    verdict = judge(*made(copy, "good", copy.parent / "half.csv", config_of(drawn_weights)))
    assert verdict.products and verdict.products.gone == 48
    assert (verdict.outcome, verdict.release, verdict.current_name) == ("worse", False, "good")


def test_another_backbone_extracts_the_gone_products_from_the_records_of_their_run(
    copy: Path, drawn_weights: Path
) -> None:
    config = config_of(drawn_weights, "backbone.image_size=40", "train.epochs=5")
    run, candidate = made(copy, "other", copy.parent / "half.csv", config)
    verdict = judge(run, candidate)
    assert verdict.products and verdict.products.gone == 48
    assert (verdict.outcome, verdict.release) == ("worse", False)
    shard = next((copy / "runs" / "good" / "records").glob("test-*.tfrecord"))
    shutil.rmtree(copy / "store" / run.backbone.fingerprint)
    shutil.rmtree(run.path / "gate")
    extract(run)
    shard.write_bytes(bytes(shard.stat().st_size))
    again = judge(run, candidate)
    assert again.products and (again.products.gone, again.products.unmeasured) == (0, 48)
    assert "only this week's products were compared: the records of its run cannot be read" in again.sentence
    shutil.rmtree(shard.parent)
    last = judge(run, candidate)
    assert (
        "only this week's products were compared: the records of its run are gone (48 products)"
        in last.sentence
    )
    assert last.comparison and "gone" not in last.comparison.weeks
    assert last.categories_gone and last.categories_gone.count == 4


def test_products_that_one_of_the_two_was_trained_on_are_left_out(
    copy: Path, drawn_weights: Path, tmp_path: Path
) -> None:
    """The source gives the parts: two test products of the release are trained on, one by its photo alone."""
    splits = pd.read_parquet(copy / "releases" / "good" / "splits.parquet").set_index("product_id")["split"]
    table = pd.read_csv(copy.parent / "whole.csv")
    table["split"] = table["product_id"].map(splits)
    food = table[table["level1"] == "Food"].copy()
    tests = food.index[food["split"] == "test"]
    trains = food.index[food["split"] == "train"]
    food.loc[tests[0], "split"] = "train"  # it is gone from this week's test, but trained on
    food.loc[trains[0], "split"] = "test"  # the release in service was trained on it
    again = food.loc[[tests[1]]].assign(product_id="twin", split="train")  # of a product of test
    pd.concat([food, again]).to_csv(copy.parent / "given.csv", index=False)
    config = config_of(drawn_weights, "train.epochs=2")
    verdict = judge(*made(copy, "given", copy.parent / "given.csv", config))
    assert verdict.products
    assert (verdict.products.left_out, verdict.products.photo_left_out) == (2, 1)
    table = pd.read_parquet(copy / "runs" / "given" / "gate" / "products.parquet")
    left = {food.loc[at, "product_id"] for at in (tests[0], trains[0], tests[1])}
    assert not left & set(table["product_id"])
    assert (verdict.products.both, verdict.products.new, verdict.products.gone) == (46, 0, 48)


def test_without_a_test_part_the_products_of_cert_count(copy: Path, drawn_weights: Path) -> None:
    table = pd.read_csv(copy.parent / "whole.csv")
    splits = pd.read_parquet(copy / "releases" / "good" / "splits.parquet").set_index("product_id")["split"]
    table["split"] = table["product_id"].map(splits).replace("test", "val")
    table.to_csv(copy.parent / "without.csv", index=False)
    config = config_of(drawn_weights, "train.epochs=2")
    verdict = judge(*made(copy, "without", copy.parent / "without.csv", config))
    assert verdict.products and verdict.products.measured_on == "cert"
    assert verdict.products.compared == verdict.products.both + verdict.products.new > 100
    assert verdict.products.left_out > 0  # test products of the release in service that are in FIT now
    compared = pd.read_parquet(copy / "runs" / "without" / "gate" / "products.parquet")
    assert set(splits[compared["product_id"]]) == {"val", "test"}


def test_categories_that_the_tree_has_changed_count_as_what_they_are_now(
    copy: Path, drawn_weights: Path
) -> None:
    """Lamp is lantern now, sofa is couch and has lost its test products, vase is removed by the mapping."""
    splits = pd.read_parquet(copy / "releases" / "good" / "splits.parquet").set_index("product_id")["split"]
    table = pd.read_csv(copy.parent / "whole.csv")
    tested = table["product_id"].map(splits) == "test"
    names = {"lamp": "lantern", "sofa": "couch"}
    table = table.assign(**{name: table[name].replace(names) for name in ("category", "level2")})
    table = table[~(tested & (table["category"] == "couch")) & (table["category"] != "vase")]
    table.to_csv(copy.parent / "renamed.csv", index=False)
    mapping = copy.parent / "mapping.csv"
    mapping.write_text("from,to\nlamp,lantern\nsofa,couch\nvase,\n")
    run, candidate = made(copy, "renamed", copy.parent / "renamed.csv", config_of(drawn_weights), mapping)
    verdict = judge(run, candidate, tree_changed=True)
    assert verdict.products and verdict.comparison and verdict.categories_gone
    assert (verdict.products.gone, verdict.products.unlabelled) == (12, 12)
    assert verdict.categories_gone.count == 0
    gone = verdict.comparison.weeks["gone"]
    assert gone.before.correct > 0.7 and gone.after.correct > 0.7
    table = pd.read_parquet(run.path / "gate" / "products.parquet").groupby("category")["before_correct"]
    assert table.mean()["lantern"] > 0.7 and table.mean()["couch"] > 0.7
    assert set(table.groups) == {"apple", "leek", "milk", "oats", "lantern", "soap", "couch"}


def test_floors_keep_a_bundle_out_and_are_measured_by_category_and_branch(
    copy: Path, drawn_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recalibrated(copy, drawn_weights, "floors", "calibration.grid=997")

    def with_floors(text: str, **given: bool) -> Verdict:
        settings = (f"gate.floors={text}", "gate.when_equal=release")
        return judged(copy, "floors", drawn_weights, *settings, **given)

    fine = with_floors('{"Food" = 0.5, "Home / lamp" = 0.5, "vase" = 0.5}')
    assert fine.release
    assert [(one.name, one.products) for one in fine.floors] == [
        ("Food", 48),
        ("Home / lamp", 12),
        ("vase", 12),
    ]
    low = with_floors('{"Home/lamp" = 0.999, "Food" = 0.999}')
    below = [one.name for one in low.floors if not one.kept]
    assert not low.release and below and f"{below[0]} is below its floor" in low.sentence
    assert with_floors('{"Home" = 0.999, "Food" = 0.999}', force=True).forced
    wrong = with_floors('{"Food/appel" = 0.5}')
    assert not wrong.release and "gate.floors names Food/appel, which is in no tree" in wrong.sentence


def test_floors_count_for_the_first_bundle_too(copy: Path, drawn_weights: Path) -> None:
    shutil.rmtree(copy / "releases")
    floor = 'gate.floors={"Home" = 0.999, "Food" = 0.999}'
    verdict = judged(copy, "bad", drawn_weights, floor)
    assert (verdict.outcome, verdict.release) == ("first", False)
    assert judged(copy, "bad", drawn_weights, floor, force=True).release


def test_the_same_inputs_give_the_same_bytes_and_the_speed_is_kept_apart(
    copy: Path, drawn_weights: Path
) -> None:
    files = [copy / "runs" / "half" / name for name in ("verdict.json", "gate/manifest.json")]
    found = []
    for _ in range(2):
        judged(copy, "half", drawn_weights)
        found.append([file.read_bytes() for file in files])
        speed = json.loads((copy / "runs" / "half" / "speed.json").read_bytes())
        assert speed["seconds_per_product"] > 0 and speed["ratio"] == pytest.approx(
            speed["seconds_per_product"] / speed["before"]
        )
        shutil.rmtree(copy / "runs" / "half" / "gate")
        shutil.rmtree(copy / "runs" / "half" / "in_service")
    assert found[0] == found[1]
    assert b"seconds" not in found[0][0]
