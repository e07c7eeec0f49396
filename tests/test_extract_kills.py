"""Extract killed by SIGKILL: run again it goes on, loses no finished shard, and gives the same bytes."""

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
SETTINGS = "--set ingest.unit_bytes=200000 --set extract.shard_images=64 --set extract.batch=16"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workspace with the records of 1,400 images, what extract makes of them, and in how many seconds."""
    folder = tmp_path_factory.mktemp("shop")
    write_bson(folder / "catalogue.bson", documents(draw_products({"1": 400, "2": 300})))
    subprocess.run(command("ingest", folder / "W", str(folder / "catalogue.bson")), check=True)
    shutil.copytree(folder / "W", folder / "undisturbed")
    began = time.monotonic()
    subprocess.run(command("extract", folder / "undisturbed"), check=True)
    assert len(finished(folder / "undisturbed")) == 22
    return folder, result(folder / "undisturbed"), time.monotonic() - began


def command(name, workspace, *sources):
    common = ["--workspace", str(workspace), *OPTIONS.split(), *SETTINGS.split()]
    return [sys.executable, "-m", "pipeline.cli", name, *sources, *common]


def finished(workspace):
    """The finished shards and when they were; one made again has another time."""
    arrays = {file.stem: file for file in workspace.glob("store/*/*.npy")}
    marks = (file.stem for file in workspace.glob("store/*/*.parquet"))
    return {name: arrays[name].stat().st_mtime_ns for name in marks}


def result(workspace):
    """All bytes of the store, and the digests of the index."""
    files = [*workspace.glob("store/*/*"), workspace / "runs/week/bottlenecks/manifest.json"]
    return {str(file.relative_to(workspace)): file.read_bytes() for file in files}


def kill(job, workspace, seconds, moments):
    """Kills the job within its start, or while it makes one of the next shards; whether it still ran."""
    limit = time.monotonic() + (moments.uniform(0, seconds) if moments.random() < 0.3 else 10 * seconds)
    wanted = len(finished(workspace)) + moments.randrange(4)
    while time.monotonic() < limit and len(finished(workspace)) <= wanted and job.poll() is None:
        time.sleep(0.01)
    time.sleep(moments.uniform(0, seconds / 22))
    there = job.poll() is None
    if there:
        os.kill(job.pid, signal.SIGKILL)
    job.wait()
    return there


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_moments_it_loses_no_finished_shard(shop, tmp_path):
    folder, undisturbed, seconds = shop
    moments, killed, in_the_middle = random.Random(20), 0, 0
    workspaces = (tmp_path / str(number) for number in range(20))
    while killed < 20:
        workspace = next(workspaces)
        shutil.copytree(folder / "W", workspace)
        done, there = {}, True
        while there and killed < 20:
            job = subprocess.Popen(
                command("extract", workspace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            there = kill(job, workspace, seconds, moments)
            killed += there
            now = finished(workspace)
            assert {name: now.get(name) for name in done} == done, "a finished shard was made again"
            in_the_middle += len(done) < len(now) < 22
            done = now
        subprocess.run(command("extract", workspace), check=True, capture_output=True)
        now = finished(workspace)
        assert {name: now[name] for name in done} == done
        assert result(workspace) == undisturbed, "the same shards, of the same names and bytes, and no other"
        values = json.loads((workspace / "runs/week/bottlenecks/manifest.json").read_text())["summary"]
        assert values["images"] == 1399 and sum(values["engines"].values()) == 1399
    assert in_the_middle >= 5
