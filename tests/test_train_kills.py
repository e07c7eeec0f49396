"""Train killed by SIGKILL: run again it goes on at the last epoch's checkpoint and gives the same head."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from catalogues import documents, draw_products, write_bson

OPTIONS = "--run week --backbone inception_v3 --weights random --image-size 75"
SETTINGS = (
    "--set head.hidden=[512,512] --set train.epochs=40 --set train.batch=32 "
    "--set train.leave_out_suspects=0.05"  # two heads more, of the folds
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workspace with the bottlenecks of 700 products, and the digests of an undisturbed head."""
    folder = tmp_path_factory.mktemp("shop")
    write_bson(folder / "catalogue.bson", documents(draw_products({"1": 400, "2": 300})))
    subprocess.run(command("ingest", folder / "W", str(folder / "catalogue.bson")), check=True)
    subprocess.run(command("extract", folder / "W"), check=True)
    shutil.copytree(folder / "W", folder / "undisturbed")
    subprocess.run(command("train", folder / "undisturbed"), check=True)
    return folder, files(folder / "undisturbed")


def command(name, workspace, *sources):
    common = ["--workspace", str(workspace), *OPTIONS.split(), *SETTINGS.split()]
    return [sys.executable, "-m", "pipeline.cli", name, *sources, *common]


def files(workspace):
    return json.loads((workspace / "runs" / "week" / "head" / "manifest.json").read_text())["files"]


def checkpoints(workspace):
    """The checkpoints and when they were written."""
    there = (workspace / "runs" / "week" / "head.partial").rglob("_checkpoint.npz")
    return {file: file.stat().st_mtime_ns for file in there}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_in_six_epochs_it_gives_the_same_head(shop):
    folder, undisturbed = shop
    moments, killed = random.Random(6), 0
    while killed < 6:
        job = subprocess.Popen(command("train", folder / "W"))
        before, epochs = checkpoints(folder / "W"), moments.randrange(1, 15)
        while epochs and job.poll() is None:  # so many checkpoints more, and a little
            time.sleep(0.001)
            now = checkpoints(folder / "W")
            epochs, before = epochs - (now != before), now
        time.sleep(moments.uniform(0, 0.05))
        assert job.poll() is None, "it came to its end first"
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        killed += 1
    subprocess.run(command("train", folder / "W"), check=True)
    assert files(folder / "W") == undisturbed
    assert not any(file.name.startswith("_") for file in (folder / "W/runs/week/head").iterdir())
