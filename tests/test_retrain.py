"""The weekly run as a whole: on a drawn catalogue, through the command line, killed and run again."""

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.storage.artifact import open_artifact
from features.storage.paths import remove
from models.decisions.bundle import open_bundle
from pipeline.cli import main
from pipeline.demo.drawn_catalogue import draw_catalogue
from pipeline.job.load_config import load_config
from pipeline.train.train import train_head

KILLS = 10
SETTINGS = """
[ingest]
min_products = 10
unit_bytes = 300_000
[backbone]
name = "mobilenet"
weights = "{weights}"
image_size = 32
[extract]
shard_images = 100
[head]
hidden = [64, 64]
[train]
epochs = 40
batch = 16
"""


@pytest.fixture(scope="module")
def shop(drawn_weights, tmp_path_factory):
    """A drawn catalogue with its settings, a workspace that `retrain` has filled, and its digests."""
    folder = tmp_path_factory.mktemp("shop")
    drawn = draw_catalogue(folder, products=400)
    (folder / "weekly.toml").write_text(SETTINGS.format(weights=drawn_weights))
    status, _ = run_here(*retrain_arguments(folder, folder / "W"))
    assert status == 0
    return folder, drawn, digests(folder / "W")


def retrain_arguments(folder: Path, workspace: Path, *more: str) -> list[str]:
    names = {
        "taxonomy": folder / "category_names.csv",
        "workspace": workspace,
        "config": folder / "weekly.toml",
    }
    options = [text for name, value in names.items() for text in (f"--{name}", str(value))]
    return ["retrain", str(folder / "catalogue.bson"), *options, "--run", "week", *more]


def run_here(*arguments: str) -> tuple[int, str]:
    """Exit status and log of a command, run in this process."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("shelfmark").addHandler(handler)
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0), "\n".join(lines)
    finally:
        logging.getLogger("shelfmark").removeHandler(handler)
    return 0, "\n".join(lines)


def digests(workspace: Path) -> dict[str, str]:
    """Digests of every finished thing in a workspace: manifests, shards of the store, verdicts."""
    files = [
        *workspace.rglob("manifest.json"),
        *workspace.glob("store/*/*"),
        *workspace.glob("runs/*/verdict.json"),
    ]
    return {str(file.relative_to(workspace)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_run_again_does_nothing_again(shop):
    folder, _, _ = shop
    before = {
        file: file.stat().st_mtime_ns for file in (folder / "W").rglob("*") if file.name != "config.json"
    }
    status, log = run_here(*retrain_arguments(folder, folder / "W"))
    after = {file: file.stat().st_mtime_ns for file in before}
    changed = [
        file
        for file in before
        if before[file] != after[file]
        and file.is_file()
        and file.name not in (".lock", "run.log", "run.json")
    ]
    assert status == 0
    assert [str(file) for file in changed if file.name not in ("verdict.json", "run.json")] == []
    kinds = ("records", "bottlenecks", "head", "thresholds", "evaluation", "report", "bundle")
    assert all(f"{kind}: unchanged" in log for kind in kinds)
    assert "already in service" in log


def test_a_release_says_what_it_was_made_from_and_takes_no_space_of_its_own(shop):
    folder, _, _ = shop
    release, run = folder / "W" / "releases" / "week", folder / "W" / "runs" / "week"
    trace = json.loads((release / "trace.json").read_text())
    for kind in ("records", "bottlenecks", "head", "thresholds", "evaluation"):
        assert (
            trace["digests"][kind] == hashlib.sha256((run / kind / "manifest.json").read_bytes()).hexdigest()
        )
    assert trace["settings"]["ingest"]["min_products"] == 10
    assert str(folder) not in (release / "trace.json").read_text()
    (line,) = map(json.loads, (folder / "W" / "releases" / "log.jsonl").read_text().splitlines())
    assert (line["action"], line["from"], line["to"], line["run"]) == ("release", None, "week", "week")
    assert line["digest"] == hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()
    for file in release.iterdir():
        assert file.samefile(run / "bundle" / file.name)


def test_the_account_says_what_came_in_and_what_it_took(shop, tmp_path, capsys, monkeypatch):
    folder, _, _ = shop
    workspace = tmp_path / "W"
    shutil.copytree(folder / "W", workspace, symlinks=True)
    monkeypatch.setattr("pipeline.job.notify.PAUSES", (0.0, 0.0))
    shutil.rmtree(workspace / "runs" / "week" / "evaluation")  # remade, to the same digest
    status, _ = run_here(
        *retrain_arguments(folder, workspace, "--set", "notify.url=http://127.0.0.1:9/secret")
    )
    account = json.loads((workspace / "runs" / "week" / "run.json").read_text())
    assert status == account["exit_status"] == 0
    assert account["outcome"] == "unchanged" and "it is already in service" in account["sentence"]
    assert account["feed"]["products"] == account["records"]["products"] == 400
    assert account["feed"]["against"] is None and account["feed"]["changes"] == []
    assert account["new_images"] == 0 and account["release_now"] == "week"
    assert account["evaluation"]["products"] > 0 and account["verdict"]["release"] is False
    assert [one["name"] for one in account["stages"] if one["made"]] == ["evaluation"]
    made = {one["name"]: one for one in account["stages"]}["evaluation"]
    assert made["seconds"] > 0 and made["peak_memory_bytes"] > 10**8
    assert "secret" not in (workspace / "runs" / "week" / "config.json").read_text()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("week: nothing new, week stays in service; ") and last.endswith(
        "report/index.html"
    )
    assert "582 images, 0 new" in last


def test_a_batch_is_compared_with_the_reference_in_the_bundle(shop, tmp_path):
    folder, _, _ = shop
    workspace = tmp_path / "W"
    shutil.copytree(folder / "W", workspace, symlinks=True)
    file = tmp_path / "d.jsonl"
    arguments = ("--workspace", str(workspace))
    assert run_here("categorize", str(folder / "catalogue.bson"), *arguments, "--output", str(file))[0] == 0
    assert run_here("monitor", *arguments, "--decisions", str(file))[0] in (0, 3)  # 3: an alarm
    found = json.loads((workspace / "monitor" / "week" / "monitor.json").read_text())
    decided = pd.read_json(file, lines=True)
    measured = pd.read_parquet(workspace / "runs" / "week" / "evaluation" / "decisions.parquet")
    accepted = int((measured["status"] == "accepted").sum())
    (batch,) = found["batches"]
    assert batch["products"] == len(decided) == 400
    assert batch["unreadable"] == (decided["status"] == "unreadable").sum() > 0
    assert found["reference"]["products"] == len(measured)
    assert found["reference"]["acceptance_rate"] == pytest.approx(accepted / len(measured))
    names = {change["name"] for change in batch["changes"]}
    assert {"images", "size", "kind", "placeholder", "distance", "unreadable", "categories"} <= names
    unreadable = next(change for change in batch["changes"] if change["name"] == "unreadable")
    assert unreadable["before"] == unreadable["after"]  # the batch is the catalogue itself
    kinds = json.loads((workspace / "runs" / "week" / "records" / "image_statistics.json").read_text())[
        "kind"
    ]
    assert set(kinds) >= {"jpeg"}


def test_a_changed_setting_remakes_only_what_depends_on_it(shop, tmp_path):
    folder, _, _ = shop
    shutil.copytree(folder / "W", tmp_path / "W", symlinks=True)  # what it releases is not for other tests
    status, log = run_here(*retrain_arguments(folder, tmp_path / "W", "--set", "calibration.precision=0.6"))
    unchanged = {line.partition(":")[0] for line in log.splitlines() if ": unchanged" in line}
    assert status in (0, 3)  # released or not
    assert unchanged == {"records", "tree", "bottlenecks", "head"}


@pytest.mark.slow
def test_the_same_work_has_the_same_digests_in_another_workspace(shop, tmp_path):
    folder, _, _ = shop
    again = draw_catalogue(tmp_path, products=400)
    assert again.catalogue.read_bytes() == (folder / "catalogue.bson").read_bytes()
    assert run_here(*retrain_arguments(folder, tmp_path / "W"))[0] == 0
    run = "runs/week/"
    ours, theirs = digests(tmp_path / "W"), digests(folder / "W")
    parts = ["records", "bottlenecks", "head", "thresholds", "evaluation", "bundle"]
    assert {part: ours[f"{run}{part}/manifest.json"] for part in parts} == {
        part: theirs[f"{run}{part}/manifest.json"] for part in parts
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_ten_random_moments_it_ends_with_the_same_digests(shop, tmp_path):
    folder, _, undisturbed = shop
    whole, moments, killed = files_in(folder / "W"), random.Random(KILLS), 0
    for workspace in (tmp_path / str(number) for number in range(2 * KILLS)):
        command = [sys.executable, "-m", "pipeline.cli", *retrain_arguments(folder, workspace)]
        while killed < KILLS:
            job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for_files(workspace, random_moment(moments, workspace, whole), job)
            if job.poll() is not None:
                break  # it came to its end first: the next one is killed in a workspace of its own
            os.kill(job.pid, signal.SIGKILL)
            killed += job.wait() == -signal.SIGKILL
        subprocess.run(command, check=True, capture_output=True)
        assert digests(workspace) == undisturbed
        assert not list(workspace.rglob("*.partial"))
        if killed == KILLS:
            return
    raise AssertionError(f"killed {killed} times only")


def random_moment(moments: random.Random, workspace: Path, whole: int) -> int:
    """A number of files that the workspace does not hold yet; unfinished work can be more than the result."""
    there = files_in(workspace)
    return moments.randint(there + 1, max(whole, there + 1))


def files_in(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))  # unlike rglob, it bears renames under its feet


def wait_for_files(folder: Path, count: int, job: subprocess.Popen[bytes]) -> None:
    """Until the folder has held so many files, finished or not, or nothing new has come for a while."""
    most, since = 0, time.monotonic()
    while most < count and job.poll() is None and time.monotonic() - since < 60:
        now = files_in(folder)
        if now > most:
            most, since = now, time.monotonic()
        time.sleep(0.01)


def test_placeholder_images_are_kept_out_of_training_when_requested(shop, tmp_path):
    folder, _, _ = shop
    run = folder / "W" / "runs" / "week"
    records, bottlenecks = (open_artifact(run / kind, kind) for kind in ("records", "bottlenecks"))
    shutil.copytree(records.path, tmp_path / "records")
    images = pd.read_parquet(records.file("images.parquet"))
    marked = images[images["split"] == "train"]["image_digest"].unique()[:50]
    images = images.assign(placeholder=images["image_digest"].isin(marked))
    images.to_parquet(tmp_path / "records" / "images.parquet", index=False)
    marked_records = replace(records, path=tmp_path / "records")
    learnt = {}
    for keep in (True, False):
        flag = f"train.placeholders={keep}".lower()
        settings = (flag, "train.epochs=1", "head.hidden=[8, 8]", "head.aggregation=mean")
        config = load_config(folder / "weekly.toml", settings)
        head = train_head(marked_records, bottlenecks, folder / "W" / "store", tmp_path / f"{keep}", config)
        learnt[keep] = head.summary["images"]
    assert learnt[True] == (images["split"] == "train").sum()
    assert learnt[False] == ((images["split"] == "train") & ~images["placeholder"]).sum() < learnt[True]


def test_the_account_of_the_catalogue_is_closed(shop):
    folder, drawn, _ = shop
    records = folder / "W" / "runs" / "week" / "records"
    products = pd.read_parquet(records / "products.parquet")
    kept = products[products["split"].isin(["train", "val", "test"])]["images"].sum()
    aside = products[products["split"].isin(["none", "dropped"])]["images"].sum()
    rejects = len(pd.read_parquet(records / "rejects.parquet"))
    assert len(products) == drawn.products
    assert kept == len(pd.read_parquet(records / "images.parquet"))
    assert kept + aside + rejects == drawn.images
    assert rejects == drawn.broken


def decisions_of(folder: Path, workspace: Path, output: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those of categorize about the whole catalogue, of which the test products', and the evaluation's."""
    arguments = (str(folder / "catalogue.bson"), "--workspace", str(workspace), "--output", str(output))
    assert run_here("categorize", *arguments, "--config", str(folder / "weekly.toml"))[0] == 0
    decisions = pd.read_parquet(output)
    in_service = (workspace / "releases" / "current").resolve().name
    evaluated = pd.read_parquet(workspace / "runs" / in_service / "evaluation" / "decisions.parquet")
    assert set(decisions["release"]) == {in_service} and evaluated["release"].isna().all()
    same = decisions[decisions["product_id"].isin(evaluated["product_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same.drop(columns="release"), evaluated.drop(columns="release"))
    return decisions, evaluated


SEVERAL = 'extract.views=["whole","48","64-center-flip"]'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "views", "seen"),
    [
        (("extract.flip=true",), "whole flip", "whole flip"),
        ((SEVERAL, 'extract.asked=["48","whole"]'), "48 whole", "whole 48 64-center-flip, asked 48 whole"),
        ((SEVERAL, "extract.cascade=0.4"), "whole 48 64-center-flip", "whole 48 64-center-flip"),
        (
            (SEVERAL, "extract.combine=averaged"),
            "whole 48 64-center-flip",
            "whole 48 64-center-flip, averaged",
        ),
    ],
)
def test_views_are_trained_on_and_predicted_from_in_batch_as_in_evaluation(shop, tmp_path, sets, views, seen):
    folder, _, _ = shop
    shutil.copytree(folder / "W", tmp_path / "W", symlinks=True)
    remove(tmp_path / "W" / "releases")
    before = json.loads((tmp_path / "W" / "runs" / "week" / "head" / "manifest.json").read_text())["summary"]
    plain = tmp_path / "W" / "runs" / "week" / "evaluation" / "decisions.parquet"
    plain = pd.read_parquet(plain)["confidence"]
    options = [text for one in sets for text in ("--set", one)]
    assert run_here(*retrain_arguments(folder, tmp_path / "W", *options))[0] == 0
    values = json.loads((tmp_path / "W" / "runs" / "week" / "head" / "manifest.json").read_text())
    assert values["made_from"]["views"] == seen
    assert values["summary"]["images"] == before["images"]
    _, evaluated = decisions_of(folder, tmp_path / "W", tmp_path / "decisions.parquet")
    assert not np.allclose(evaluated["confidence"], plain)
    bundle = open_bundle((tmp_path / "W" / "releases" / "current").resolve())
    assert " ".join(view.name for view in bundle.categorizer.views) == views
    again = evaluated["views"] == views.replace(" ", ",")
    assert again.all() if not bundle.categorizer.rules.cascade else 0.1 < again.mean() < 0.8


def test_batch_gives_the_test_products_the_decisions_of_the_evaluation(shop, tmp_path):
    folder, drawn, _ = shop
    decisions, _ = decisions_of(folder, folder / "W", tmp_path / "decisions.parquet")
    assert len(decisions) == drawn.products == decisions["product_id"].nunique()
    assert set(decisions["status"]) <= {"accepted", "parent", "review", "unreadable"}
    assert (decisions["status"] == "unreadable").any()
    assert not list(tmp_path.glob("*.partial"))


def test_a_worse_bundle_is_kept_out_of_service(shop):
    folder, _, _ = shop
    in_service = os.readlink(folder / "W" / "releases" / "current")
    arguments = retrain_arguments(
        folder, folder / "W", "--set", "train.epochs=1", "--set", "train.learning_rate=1e-9"
    )
    arguments[arguments.index("week")] = "worse"
    status, log = run_here(*arguments)
    verdict = json.loads((folder / "W" / "runs" / "worse" / "verdict.json").read_text())
    assert status == 3
    assert not verdict["release"]
    assert "kept the one in service" in log
    assert os.readlink(folder / "W" / "releases" / "current") == in_service


@pytest.mark.slow
def test_a_release_of_the_same_run_never_takes_the_place_of_the_one_in_service(shop, tmp_path):
    folder, _, _ = shop
    bad = ["--set", "train.epochs=1", "--set", "train.learning_rate=1e-9"]
    run_here(*retrain_arguments(folder, tmp_path, *bad))
    first = open_bundle((tmp_path / "releases" / "current").resolve()).digest
    run_here(*retrain_arguments(folder, tmp_path))
    assert os.readlink(tmp_path / "releases" / "current") == "week.2"
    assert open_bundle(tmp_path / "releases" / "week").digest == first


def test_next_week_no_product_changes_its_part(shop, tmp_path):
    folder, _, _ = shop
    draw_catalogue(tmp_path, seed=1, products=440)
    arguments = retrain_arguments(
        tmp_path, folder / "W", "--config", str(folder / "weekly.toml"), "--set", "train.epochs=1"
    )
    arguments[arguments.index("week")] = "next"
    assert run_here(*arguments)[0] in (0, 3)  # released or not
    weeks = [
        pd.read_parquet(folder / "W" / "runs" / week / "records" / "products.parquet").set_index(
            "product_id"
        )["split"]
        for week in ("week", "next")
    ]
    parts = [week[week.isin(["train", "val", "test"])] for week in weeks]
    both = parts[0].index.intersection(parts[1].index)
    assert len(both) > 100
    assert (parts[0][both] == parts[1][both]).all()


def test_two_jobs_cannot_meet_on_one_run(shop, capsys):
    from pipeline.job.lock import only_job

    folder, _, _ = shop
    with only_job(folder / "W" / "runs" / "week"):
        status, _ = run_here(*retrain_arguments(folder, folder / "W"))
    assert status == 75
    assert "another job is running here" in capsys.readouterr().err


def test_a_damaged_release_in_service_is_noticed_before_any_work(shop, tmp_path, capsys):
    folder, _, _ = shop
    workspace = tmp_path / "W"
    shutil.copytree(folder / "W", workspace, symlinks=True)
    file = workspace / "releases" / "week" / "head.weights.h5"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)
    arguments = retrain_arguments(folder, workspace)
    arguments[arguments.index("week")] = "next"
    status, log = run_here(*arguments)
    assert status == 1 and "records" not in log
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        f"error: {file}: damaged; expected the digest that the manifest gives; put the file back"
    )
