"""The command line: help, examples, exit statuses, and what bad input comes to."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from conftest import drawn_backbone
from PIL import Image

from features.errors import ShelfmarkError
from pipeline.beam import run_units as units
from pipeline.cli import main, shelfmark
from pipeline.cli_audit import audit
from pipeline.demo import drawn_catalogue as drawing
from serving.__main__ import serve

COMMANDS = {
    **{f"shelfmark {name}": command for name, command in shelfmark.commands.items()},
    **{f"shelfmark audit {name}": command for name, command in audit.commands.items()},
    "shelfmark-serve": serve,
}


def run(*arguments: str) -> int:
    """Exit status of `shelfmark` with these arguments."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


def error_line(capsys) -> str:
    """The one `error:` line, and nothing of a traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert not any(line.startswith("Traceback") for line in lines)
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def example(command: click.Command) -> str:
    found = re.search(r"Example:\n\s+(shelfmark\S* .*|shelfmark\S*)\s*$", command.help or "")
    assert found, command.name
    return found[1].strip()


@pytest.fixture
def photos(tmp_path):
    """A folder of two categories with 30 small photos each."""
    for number in range(60):
        folder = tmp_path / "photos" / ("Red" if number % 2 else "Blue")
        folder.mkdir(parents=True, exist_ok=True)
        colour = (200 - number, number, 30) if number % 2 else (30, number, 200 - number)
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


# Help


def test_help_imports_none_of_the_slow_packages():
    code = "import sys, pipeline.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    slow = {
        "tensorflow",
        "keras",
        "apache_beam",
        "pandas",
        "numpy",
        "pydantic",
        "sklearn",
        "scipy",
        "pyarrow",
    }
    assert "retrain" in output
    assert slow & set(output.split()) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_ends_with_an_example_of_itself(name):
    assert example(COMMANDS[name]).startswith(name)


@pytest.mark.slow
def test_the_examples_of_the_stages_run_one_after_the_other(tmp_path, monkeypatch):
    drawing.draw_catalogue(tmp_path, products=300)
    (tmp_path / "weekly.toml").write_text(
        'backbone = {weights = "random", image_size = 75}\ningest = {min_products = 10}\n'
        "head = {hidden = [64, 64]}\ntrain = {epochs = 20}\n"
    )
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    done = []
    for name in (
        "ingest",
        "extract",
        "train",
        "calibrate",
        "evaluate",
        "report",
        "retrain",
        "categorize",
        "export",
        "look",
        "clean",
    ):
        arguments = example(shelfmark.commands[name]).split()[1:]
        done.append((name, run(*arguments)))
    assert done == [(name, 0) for name, _ in done]
    assert len(pd.read_parquet("decisions.parquet")) == 300
    assert run(*example(shelfmark.commands["monitor"]).split()[1:]) in (0, 3)  # 3: an alarm


def test_the_example_of_the_demo_runs(tmp_path, monkeypatch, capsys):
    from pipeline.demo import demo

    monkeypatch.chdir(tmp_path)
    draw = drawing.draw_catalogue
    monkeypatch.setattr(demo, "draw_catalogue", lambda folder: draw(folder, products=400))  # a quarter of it
    monkeypatch.setattr(demo, "IMAGE_SIZE", 75)
    monkeypatch.setattr(demo, "SHORT", demo.SHORT | {"epochs": 3})
    assert run(*example(shelfmark.commands["demo"]).split()[1:]) == 0
    output = capsys.readouterr().out
    assert (
        "weights           random: these numbers show that the pipeline works, not how good it is" in output
    )
    assert Path(re.search(r"report +(.*)", output)[1]).is_file()


# Exit statuses


@pytest.mark.parametrize(
    "arguments",
    [
        ["sort"],
        ["ingest"],
        ["train"],
        ["retrain", "x", "--workspace", "W", "--colour"],
        ["train", "--workspace", "W", "--", "--runner=X"],
        ["demo", "--", "--runner=X"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    assert run(*arguments) == 2
    assert "Error:" in capsys.readouterr().err


def test_a_stage_before_its_time_names_the_command_to_run_first(tmp_path, capsys):
    assert run("train", "--workspace", str(tmp_path)) == 1
    message = "records: missing; expected the run's finished records; run `shelfmark ingest` first"
    assert message in error_line(capsys)


def test_categorize_before_the_first_release_says_so(tmp_path, photos, capsys):
    assert (
        run("categorize", str(photos), "--workspace", str(tmp_path), "--output", str(tmp_path / "d.parquet"))
        == 1
    )
    assert "nothing is in service" in error_line(capsys)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x.partial", "current"])
def test_a_run_is_named_like_a_directory(tmp_path, name, capsys):
    assert run("train", "--workspace", str(tmp_path), "--run", name) == 1
    assert f"--run {name}: not a name for a run" in error_line(capsys)


# What Keras runs on is chosen before it is imported, which reads it once


@pytest.fixture
def started(monkeypatch):
    """What is done, in order, when TensorFlow is to be started."""
    done = []
    monkeypatch.setattr("features.engines.choose.use_engine", lambda engine: done.append(f"use {engine}"))
    monkeypatch.setattr("features.engines.backbones.start_tensorflow", lambda: done.append("start"))
    return done


@pytest.mark.parametrize("how", ["--engine", "--set", "--config", "config.json"])
def test_the_engine_is_chosen_before_tensorflow_is_started(tmp_path, started, how):
    (tmp_path / "weekly.toml").write_text('[extract]\nengine = "jax"\n')
    (tmp_path / "W" / "runs" / "r" / "records").mkdir(parents=True)
    (tmp_path / "W" / "runs" / "r" / "records" / "manifest.json").touch()
    if how == "config.json":
        settings = '{"settings": {"extract": {"engine": "jax"}}}'
        (tmp_path / "W" / "runs" / "r" / "config.json").write_text(settings)
    values = {"--engine": "jax", "--set": "extract.engine=jax", "--config": str(tmp_path / "weekly.toml")}
    more = [how, values[how]] if how in values else []
    assert run("extract", "--workspace", str(tmp_path / "W"), "--run", "r", *more) == 1
    assert started == ["use jax", "start"]


@pytest.mark.parametrize("command", ["retrain", "categorize"])
def test_other_commands_choose_it_then_too(tmp_path, photos, workspace, started, command, monkeypatch):
    import pipeline.categorize.categorize
    import pipeline.retrain

    def work(*arguments, **options):
        raise ShelfmarkError(f"begun after {started}")

    monkeypatch.setattr(pipeline.retrain, "retrain", work)
    monkeypatch.setattr(pipeline.categorize.categorize, "categorize", work)
    more = ["--output", str(tmp_path / "d.parquet")] if command == "categorize" else []
    assert run(command, str(photos), "--engine", "jax", "--workspace", str(workspace), *more) == 1
    # categorize starts TensorFlow when a photo is new
    assert started == (["use jax", "start"] if command == "retrain" else ["use jax"])


@pytest.fixture
def on_jax(quiet_tensorflow, tmp_path):
    """Runs `shelfmark COMMAND … --engine jax` in a process of its own, and gives its log."""
    pytest.importorskip("jax", reason="the engine is not installed")
    drawn_backbone(0).save_weights(tmp_path / "drawn.weights.h5")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("KERAS_BACKEND", None)

    def call(*arguments):
        command = [sys.executable, "-m", "pipeline.cli", *arguments, "--workspace", str(tmp_path / "W")]
        command += ["--engine", "jax"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr

    return call


TINY = ["--backbone", "mobilenet", "--image-size", "32", "--weights"]


@pytest.mark.slow
def test_extract_runs_on_jax_when_requested(tmp_path, photos, on_jax):
    assert ingest(photos, tmp_path / "W") == 0
    log = on_jax("extract", "--run", "r", *TINY, str(tmp_path / "drawn.weights.h5"))
    assert "engine: jax fp32: as requested" in log
    assert "engines (jax fp32 60)" in log


@pytest.mark.slow
def test_a_whole_week_runs_on_jax_when_requested(tmp_path, on_jax):
    drawn = drawing.draw_catalogue(tmp_path, products=300)
    settings = ["head.hidden=[64, 64]", "train.epochs=20", "ingest.min_products=10"]
    sets = [text for setting in settings for text in ("--set", setting)]
    source = [str(drawn.catalogue), "--taxonomy", str(drawn.taxonomy)]
    on_jax("retrain", *source, *sets, *TINY, str(tmp_path / "drawn.weights.h5"))
    shutil.rmtree(tmp_path / "W" / "store")
    log = on_jax("categorize", str(drawn.catalogue), "--output", str(tmp_path / "decisions.parquet"))
    assert "engine: jax fp32: as requested" in log
    assert len(pd.read_parquet(tmp_path / "decisions.parquet")) == 300


# Bad input: each a clear error line or counted rejects, and nothing half-finished that looks finished


def ingest(source: Path, workspace: Path, *more: str) -> int:
    return run("ingest", str(source), "--workspace", str(workspace), "--run", "r", *more)


def finished(workspace: Path) -> list[Path]:
    return list(workspace.rglob("manifest.json"))


def test_a_missing_source(tmp_path, capsys):
    assert ingest(tmp_path / "none.bson", tmp_path / "W") == 1
    assert "none.bson: no such file or folder" in error_line(capsys)
    assert finished(tmp_path / "W") == []


def test_an_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert ingest(tmp_path / "empty", tmp_path / "W") == 1
    assert "an empty folder" in error_line(capsys)


def test_a_truncated_bson(tmp_path, capsys):
    drawn = drawing.draw_catalogue(tmp_path, products=60)
    whole = drawn.catalogue.read_bytes()
    drawn.catalogue.write_bytes(whole[:-1000])
    assert ingest(drawn.catalogue, tmp_path / "W") == 1
    assert "catalogue.bson: truncated: the document at byte" in error_line(capsys)
    assert finished(tmp_path / "W") == []


def test_a_csv_without_the_needed_columns(tmp_path, capsys):
    (tmp_path / "shop.csv").write_text("id,photo\n1,a.jpg\n")
    assert ingest(tmp_path / "shop.csv", tmp_path / "W") == 1
    line = error_line(capsys)
    assert "no column product_id" in line
    assert "found: id, photo" in line


def test_a_manifest_whose_photos_are_not_there_is_a_flood_of_rejects(tmp_path, capsys):
    (tmp_path / "shop.csv").write_text(
        "product_id,image,category\n" + "".join(f"{n},{n}.jpg,c\n" for n in range(50))
    )
    assert ingest(tmp_path / "shop.csv", tmp_path / "W") == 4
    assert "50 of 50 images rejected (missing 50)" in error_line(capsys)
    assert finished(tmp_path / "W") == []


def test_a_few_photos_that_are_not_there_are_counted_rejects(tmp_path, photos):
    rows = [f"{file.stem},{file},{file.parent.name}" for file in sorted(photos.rglob("*.jpg"))]
    (tmp_path / "shop.csv").write_text("\n".join(["product_id,image,category", *rows, "gone,gone.jpg,Red"]))
    assert ingest(tmp_path / "shop.csv", tmp_path / "W") == 0
    rejects = pd.read_parquet(tmp_path / "W" / "runs" / "r" / "records" / "rejects.parquet")
    assert rejects[["product_id", "reason"]].to_numpy().tolist() == [["gone", "missing"]]


def test_a_category_that_the_taxonomy_does_not_know_is_a_counted_reject(tmp_path, photos):
    shutil.copytree(photos / "Red", photos / "Green")
    (tmp_path / "names.csv").write_text("category_id,category_level1\nRed,Colours\nGreen,Colours\n")
    taxonomy = ["--taxonomy", str(tmp_path / "names.csv"), "--set", "ingest.max_rejected=0.6"]
    assert ingest(photos, tmp_path / "W", *taxonomy) == 0
    rejects = pd.read_parquet(tmp_path / "W" / "runs" / "r" / "records" / "rejects.parquet")
    assert rejects["reason"].value_counts().to_dict() == {"unknown_category": 30}


def test_a_full_disk(tmp_path, photos, capsys, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(units.os, "replace", full)
    assert ingest(photos, tmp_path / "W") == 1
    assert "No space left on device" in error_line(capsys)
    monkeypatch.undo()
    assert finished(tmp_path / "W") == []
    assert ingest(photos, tmp_path / "W") == 0  # once there is room, the same command goes on


def test_a_workspace_that_cannot_be_written(tmp_path, photos, capsys, monkeypatch):
    def read_only(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)  # root writes everywhere, so the error is made
    assert ingest(photos, tmp_path / "W") == 1
    assert "Read-only file system" in error_line(capsys)


def test_a_setting_misspelt(tmp_path, photos, capsys):
    (tmp_path / "weekly.toml").write_text("[calibration]\nprecison = 0.9\n")
    assert ingest(photos, tmp_path / "W", "--config", str(tmp_path / "weekly.toml")) == 1
    assert "[calibration]: unknown setting 'precison'. Did you mean 'precision'?" in error_line(capsys)


@pytest.mark.parametrize("before", [[], ["--seed", "5"]], ids=["a new run", "another run"])
def test_a_refused_command_leaves_its_settings_nowhere(tmp_path, photos, before, capsys):
    config = tmp_path / "W" / "runs" / "r" / "config.json"
    if before:
        assert ingest(photos, tmp_path / "W", *before) == 0
    kept = config.read_bytes() if before else None
    command = ["extract"] if before else ["ingest", str(tmp_path / "none.bson")]
    assert run(*command, "--workspace", str(tmp_path / "W"), "--run", "r", "--backbone", "inception_v5") == 1
    assert ("inception_v5" in error_line(capsys)) == bool(before)
    assert (config.read_bytes() if config.exists() else None) == kept


def test_settings_of_what_was_finished_stay_when_the_rest_is_refused(tmp_path, photos):
    workspace = ["--workspace", str(tmp_path / "W"), "--run", "r", "--weights", "random"]
    zeros = ["--backbone", "mobilenet", "--image-size", "40"]  # all it gives with random weights
    assert run("retrain", str(photos), *workspace, *zeros) == 1
    assert '"image_size": 40' in (tmp_path / "W" / "runs" / "r" / "config.json").read_text()
    assert [file.parent.name for file in finished(tmp_path / "W")] == ["records", "tree"]


def test_a_backbone_that_cannot_be_loaded_is_refused_before_anything_is_read(tmp_path, photos, capsys):
    options = ["--workspace", str(tmp_path / "W"), "--run", "r", "--weights", "random", "--image-size", "40"]
    assert run("retrain", str(photos), *options) == 1
    assert "do not fit inceptionv3 at 40 px" in error_line(capsys)
    assert finished(tmp_path / "W") == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('extract.views=["40-center"]', "a crop of 40 px, the backbone's own size, out of 40 px"),
        ('extract.asked=["flip"]', "extract.asked: flip: not among the views; expected some of whole"),
        ("extract.cascade=0.4", "predictions are made from one view, whole; expected two or more"),
    ],
)
def test_views_that_cannot_be_had_are_refused_before_anything_is_read(
    tmp_path, photos, setting, message, capsys
):
    options = ["--workspace", str(tmp_path / "W"), "--run", "r", "--weights", "random", "--set", setting]
    assert run("retrain", str(photos), "--backbone", "mobilenet", "--image-size", "40", *options) == 1
    assert message in error_line(capsys)
    assert finished(tmp_path / "W") == []


def test_an_internal_fault_is_one_line_and_a_traceback_only_with_debug(tmp_path, photos, capsys, monkeypatch):
    import pipeline.ingest.ingest

    def broken(*arguments, **options):
        raise RuntimeError("wheels came off")

    monkeypatch.setattr(pipeline.ingest.ingest, "check_images", broken)
    assert ingest(photos, tmp_path / "W") == 1
    assert "RuntimeError: wheels came off; this is a fault of shelfmark" in error_line(capsys)
    ingest(photos, tmp_path / "W", "--debug")
    assert "Traceback" in capsys.readouterr().err


def test_the_log_of_a_stage_is_one_line_with_counts_and_seconds(tmp_path, photos, caplog):
    with caplog.at_level(logging.INFO, logger="shelfmark"):
        ingest(photos, tmp_path / "W")
    lines = [record.getMessage() for record in caplog.records if record.name == "shelfmark"]
    assert len(lines) == 1
    assert re.fullmatch(r"records: products 60, images 60, .* in \d+\.\d s", lines[0])


def test_a_stage_on_what_other_records_gave_names_the_command_to_run_first(tmp_path, photos, capsys):
    import json

    assert ingest(photos, tmp_path / "W") == 0
    bottlenecks = tmp_path / "W" / "runs" / "r" / "bottlenecks"
    bottlenecks.mkdir()
    values = {
        "kind": "bottlenecks",
        "version": 1,
        "made_from": {"records": "others"},
        "summary": {},
        "files": {},
    }
    (bottlenecks / "manifest.json").write_text(json.dumps(values))
    assert run("train", "--workspace", str(tmp_path / "W"), "--run", "r") == 1
    assert "made from other records; expected the run's records; run `shelfmark extract` first" in error_line(
        capsys
    )


def test_sources_whose_products_would_be_mixed_up_are_refused(tmp_path, photos, capsys):
    assert run("ingest", str(photos), str(photos), "--workspace", str(tmp_path / "W"), "--run", "r") == 1
    assert "a source is given twice" in error_line(capsys)
    (tmp_path / "more").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "more" / "1.jpg")
    assert run("ingest", str(photos), str(tmp_path / "more"), "--workspace", str(tmp_path / "W")) == 1
    assert "several folders" in error_line(capsys)


def test_options_that_beam_refuses_are_reported(tmp_path, photos, capsys):
    assert ingest(photos, tmp_path / "W", "--", "--direct_running_mode=nonsense") == 1
    assert "Beam refused --direct_running_mode=nonsense" in error_line(capsys)
