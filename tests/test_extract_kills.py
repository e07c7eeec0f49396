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
    """A workspace with the records of 1,400 images, what extract makes of them, and the seconds it works."""
    folder = tmp_path_factory.mktemp("shop")
    write_bson(folder / "catalogue.bson", documents(draw_products({"1": 400, "2": 300})))
    subprocess.run(command("ingest", folder / "W", str(folder / "catalogue.bson")), check=True)
    shutil.copytree(folder / "W", folder / "undisturbed")
    began, first = time.monotonic(), 0.0
    with subprocess.Popen(command("extract", folder / "undisturbed")) as job:
        while job.poll() is None:
            first = first or (time.monotonic() if finished(folder / "undisturbed") else 0.0)
            time.sleep(0.05)
    assert job.returncode == 0 and len(finished(folder / "undisturbed")) == 22
    return folder, result(folder / "undisturbed"), (first - began, time.monotonic() - began)


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_moments_it_loses_no_finished_shard(shop, tmp_path):
    folder, undisturbed, (first, whole) = shop
    moments, killed, in_the_middle, number = random.Random(20), 0, 0, 0
    while killed < 20:
        number += 1
        workspace = tmp_path / str(number)
        shutil.copytree(folder / "W", workspace)
        done = {}
        while killed < 20:
            job = subprocess.Popen(
                command("extract", workspace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                job.wait(timeout=moments.uniform(first / 2, first + (whole - first) / 3))
                break  # it came to its end first: the next one is killed in a workspace of its own
            except subprocess.TimeoutExpired:
                os.kill(job.pid, signal.SIGKILL)
                job.wait()
                killed += 1
            now = finished(workspace)
            assert {name: now.get(name) for name in done} == done, "a finished shard was made again"
            in_the_middle += len(done) < len(now) < 22
            done = now
        subprocess.run(command("extract", workspace), check=True, capture_output=True)
        now = finished(workspace)
        assert {name: now[name] for name in done} == done
        assert result(workspace) == undisturbed, "the same shards, of the same names and bytes, and no other"
        told = json.loads((workspace / "runs/week/bottlenecks/manifest.json").read_text())["summary"]
        assert told["images"] == 1399 and told["engines"] == {"tensorflow float32": 1399}
    assert in_the_middle >= 5
