"""Ingest killed by SIGKILL: run again it goes on, does no finished unit again, and gives the same digest."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from catalogues import Drawn, documents, draw_products, photo, write_bson

SETTINGS = ("--set", "ingest.unit_bytes=20000", "--set", "ingest.max_rejected=0.5", "--run", "week")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalogue of 1,200 products in about 75 units, the digest of its records, and how long they took."""
    folder = tmp_path_factory.mktemp("shop")
    drawn = draw_products({"1": 700, "2": 400, "": 60})
    drawn += [Drawn(f"9{n:05}", "1", (photo(n), b"cut", photo(n, "PNG"))) for n in range(40)]
    write_bson(folder / "catalogue.bson", documents(drawn))
    began = time.monotonic()
    subprocess.run(command(folder, folder / "W"), check=True, capture_output=True)
    return folder, digest(folder / "W"), time.monotonic() - began


def command(folder, workspace):
    source = str(folder / "catalogue.bson")
    return [sys.executable, "-m", "pipeline.cli", "ingest", source, "--workspace", str(workspace), *SETTINGS]


def digest(workspace):
    return json.loads((workspace / "runs" / "week" / "records" / "manifest.json").read_text())["files"]


def finished_units(workspace):
    """The finished units and when they were; a unit done again has another time."""
    work = workspace / "runs" / "week" / "records.partial"
    units = [*work.glob("_look/unit-*.parquet"), *work.glob("_images/unit-*.parquet")]
    return {unit: unit.stat().st_mtime_ns for unit in units}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_thirty_random_moments_it_does_no_finished_unit_again(shop, tmp_path):
    folder, undisturbed, seconds = shop
    moments, killed, in_the_middle = random.Random(30), 0, 0
    workspaces = (tmp_path / str(number) for number in range(60))
    while killed < 30:
        workspace = next(workspaces)
        done = {}
        while killed < 30:
            job = subprocess.Popen(
                command(folder, workspace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                job.wait(timeout=moments.uniform(0, seconds))
                break  # it came to its end first: the next one is killed in a workspace of its own
            except subprocess.TimeoutExpired:
                os.kill(job.pid, signal.SIGKILL)
                job.wait()
                killed += 1
            now = finished_units(workspace)
            again = {unit for unit in done if now.get(unit, done[unit]) != done[unit]}
            assert not again, "finished units were done again"
            images = workspace / "runs" / "week" / "records.partial" / "images.parquet"
            # written after the last unit; then the units are removed one by one, and a kill may come between
            assert now.keys() >= done.keys() or not now or images.is_file(), "finished units were lost"
            in_the_middle += bool(now)
            done = now
        subprocess.run(command(folder, workspace), check=True, capture_output=True)
        assert digest(workspace) == undisturbed
        left = {file.name for file in (workspace / "runs" / "week" / "records").iterdir()}
        assert left == {*undisturbed, "manifest.json"}, "no stray file"
    assert in_the_middle >= 5


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.cpu_count() == 1, reason="a machine of one core has no worker but the command itself")
def test_a_killed_worker_costs_its_unit_alone(shop, tmp_path):
    folder, undisturbed, _ = shop
    job = psutil.Popen(command(folder, tmp_path / "W"), stderr=subprocess.PIPE, text=True)
    worker = None
    while not worker:
        assert job.poll() is None
        if any(finished_units(tmp_path / "W")):
            worker = next(
                one for one in job.children() if "pipeline.beam.process_pool" in " ".join(one.cmdline())
            )
    worker.kill()
    said = job.communicate()[1]
    assert job.returncode == 0 and "a worker process was killed" in said and "(exit status -9)" in said
    assert digest(tmp_path / "W") == undisturbed
