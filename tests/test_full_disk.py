"""A disk that is full at each stage: one clear line, nothing half-made looks whole, work goes on later."""

import os
import subprocess
from pathlib import Path

import pytest
from test_six_weeks import Weeks, job, results

from features.storage.artifact import find_artifact

START, STEP = 1.0, 1.5  # MB: of the disk at first, and more after each failure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def disk(tmp_path):
    """A directory on a small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={START * 1e6:.0f}", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_full_at_each_stage_stops_with_one_line_and_later_the_results_are_the_same(
    drawn_weights, tmp_path, disk
):
    weeks, failures = Weeks(tmp_path / "shop", drawn_weights), []
    command = weeks.retrain_command(1, "week1")
    assert subprocess.run(job(command), capture_output=True).returncode == 0
    undisturbed = results(weeks)

    weeks.workspace.rename(tmp_path / "undisturbed")
    weeks.workspace.symlink_to(disk / "W")
    (disk / "W").mkdir()
    size = START
    while (found := subprocess.run(job(command), capture_output=True, text=True)).returncode:
        line = found.stderr.strip().splitlines()[-1]
        assert found.returncode == 1 and "Traceback" not in found.stderr
        assert line.startswith("error: ") and ("No space left" in line or "free" in line), line
        require_no_half_made(disk / "W")
        failures.append(line)
        size += STEP
        assert size < 100
        subprocess.run(["mount", "-o", f"remount,size={size * 1e6:.0f}", str(disk)], check=True)
    assert results(weeks) == undisturbed
    assert len(failures) >= 5, failures


def require_no_half_made(workspace: Path) -> None:
    """Every directory with a manifest is whole, and nothing is in service that is not."""
    for mark in workspace.rglob("manifest.json"):
        if not any(part.endswith(".partial") for part in mark.parts):
            assert find_artifact(mark.parent) is not None, mark
    current = workspace / "releases" / "current"
    assert not os.path.lexists(current) or find_artifact(current.resolve()) is not None
