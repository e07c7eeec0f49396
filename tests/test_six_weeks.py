"""Six weeks of a drawn shop that nobody attends to: weeks.py says what happens in which week.

Each week one `retrain` and one `categorize` of fresh products, through the command line.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom
from test_retrain import run_here
from weeks import draw_week

from features.storage.artifact import find_artifact
from models.decisions.releases import in_service

PRECISION = 0.8
SETTINGS = """
[ingest]
min_products = 10
least_test = 5
val_share = 0.2
test_share = 0.15
[backbone]
name = "mobilenet"
weights = "{weights}"
image_size = 32
[extract]
shard_images = 500
[head]
hidden = [128, 128]
[train]
epochs = 40
batch = 32
[calibration]
precision = {precision}
"""
OPTIONS = {3: ("--force",), 5: ("--set", "train.epochs=1", "--set", "train.learning_rate=1e-9")}
KEPT, STOPPED = 3, 4  # exit statuses


class Weeks:
    """The shop, its workspace, and what came of each week."""

    def __init__(self, folder: Path, weights: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.workspace = folder, folder / "W"
        self.settings = folder / "weekly.toml"
        self.settings.write_text(SETTINGS.format(weights=weights, precision=PRECISION))
        self.truth = {week: draw_week(folder, week) for week in range(1, 7)}

    def retrain(self, week: int, *more: str, run: str = "") -> tuple[int, dict[str, object]]:
        """Exit status and run.json of a week's job."""
        name = run or f"week{week}"
        status, _ = run_here(*self.retrain_command(week, name, *more))
        return status, json.loads((self.workspace / "runs" / name / "run.json").read_bytes())

    def retrain_command(self, week: int, name: str, *more: str) -> list[str]:
        mapping = ["--mapping", str(self.folder / "mapping.csv")] if week >= 3 else []
        source = str(self.folder / f"week{week}" / "catalogue.csv")
        return ["retrain", source, *self.common(), "--run", name, *mapping, *more]

    def categorize_command(self, week: int) -> list[str]:
        source, output = (
            self.folder / f"week{week}" / "new.csv",
            self.folder / f"week{week}" / "decisions.parquet",
        )
        return ["categorize", str(source), "--workspace", str(self.workspace), "--output", str(output)]

    def common(self) -> list[str]:
        return ["--workspace", str(self.workspace), "--config", str(self.settings)]

    def categorize(self, week: int) -> pd.DataFrame:
        """Decisions about the week's fresh products."""
        assert run_here(*self.categorize_command(week))[0] == 0
        return pd.read_parquet(self.folder / f"week{week}" / "decisions.parquet")

    def in_service(self) -> str:
        return os.readlink(self.workspace / "releases" / "current")

    def splits(self, run: str) -> "pd.Series[str]":
        products = pd.read_parquet(self.workspace / "runs" / run / "records" / "products.parquet")
        parts = products.set_index("product_id")["split"]
        return parts[parts.isin(["train", "val", "test"])]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_six_weeks_that_nobody_attends_to(drawn_weights, tmp_path):
    weeks = Weeks(tmp_path, drawn_weights)

    first, found = weeks.retrain(1)
    assert (first, found["outcome"], weeks.in_service()) == (0, "released", "week1")
    again, found = weeks.retrain(1)
    assert (again, found["outcome"]) == (0, "unchanged")
    require_promise(weeks, 1)

    status, found = weeks.retrain(2)  # a category is new, another one has a new name
    assert (status, weeks.in_service()) == (0, "week2")
    assert changes(weeks, "week2") == {"add": ["c14"], "rename": ["c05"]}
    assert_withheld(weeks, "week2", {"c14"})
    require_promise(weeks, 2)

    # one is merged into another, one is divided: nobody knows the halves yet, and a person wants the new tree
    status, found = weeks.retrain(3, *OPTIONS[3])
    assert (status, weeks.in_service()) == (0, "week3")
    assert {kind: names for kind, names in changes(weeks, "week3").items() if kind in ("merge", "split")} == {
        "merge": ["c03"],
        "split": ["c08"],
    }
    labels = pd.read_parquet(weeks.workspace / "runs" / "week3" / "records" / "products.parquet")["category"]
    assert not {"c03", "c08"} & set(labels.dropna())  # carried over, or without a category
    require_promise(weeks, 3)

    status, found = weeks.retrain(4)  # half of the feed is missing
    assert (status, found["outcome"], weeks.in_service()) == (STOPPED, "stopped", "week3")
    assert "categories are gone" in str(found["sentence"])
    status, found = weeks.retrain(4, "--accept-feed", run="week4-accepted")
    assert (status, found["outcome"], weeks.in_service()) == (KEPT, "kept", "week3")
    require_promise(weeks, 4)

    status, found = weeks.retrain(5, *OPTIONS[5])
    assert (status, found["outcome"], weeks.in_service()) == (KEPT, "kept", "week3")

    status, found = weeks.retrain(6)
    assert found["outcome"] in ("released", "kept") and status == (
        0 if found["outcome"] == "released" else KEPT
    )
    last = weeks.in_service()
    assert run_here("rollback", "--workspace", str(weeks.workspace))[0] == 0
    assert weeks.in_service() != last
    assert run_here("release", last, "--workspace", str(weeks.workspace))[0] == 0
    assert weeks.in_service() == last
    require_promise(weeks, 6)

    assert run_here("rollback", "--workspace", str(weeks.workspace), "--why", "confuses mugs")[0] == 0
    status, found = weeks.retrain(6)  # what a person took out stays out
    assert (status, found["outcome"]) == (KEPT, "kept") and weeks.in_service() != last
    assert "has taken this bundle out of service" in found["sentence"]
    assert "(confuses mugs); --force puts it back" in found["sentence"]
    assert run_here("release", last, "--workspace", str(weeks.workspace))[0] == 0

    require_kept_parts(weeks)
    require_one_extraction(weeks)
    require_log(weeks, last)


def changes(weeks: Weeks, run: str) -> dict[str, list[str]]:
    """Categories by what happened to them, without those of which nothing has changed."""
    table = pd.read_csv(weeks.workspace / "runs" / run / "tree" / "changes.csv", dtype=str)
    table = table[table["kind"] != "unchanged"]
    return {str(kind): sorted(group) for kind, group in table["category"].groupby(table["kind"])}


def assert_withheld(weeks: Weeks, release: str, among: set[str]) -> None:
    """Nothing is put into the withheld categories, which are some of these."""
    rules = json.loads((weeks.workspace / "releases" / release / "thresholds.json").read_bytes())
    assert set(rules["withheld"]) <= among
    decided = weeks.categorize(2)
    assert not set(decided[decided["status"] == "accepted"]["category"]) & set(rules["withheld"])


def require_promise(weeks: Weeks, week: int) -> None:
    """Accepted fresh products are right as often as promised, and traceable to what decided."""
    decided, truth = weeks.categorize(week), weeks.truth[week]
    accepted = decided[decided["status"] == "accepted"]
    right = int((accepted["category"] == accepted["product_id"].map(truth)).sum())
    # the promise is about the labels, of which one in 25 is wrong; these are the true categories
    assert len(accepted) > 50 and binom.cdf(right, len(accepted), PRECISION) > 0.01
    (release,) = set(decided["release"])
    assert release == weeks.in_service()
    require_trace(weeks, release)


def require_trace(weeks: Weeks, release: str) -> None:
    """The release says by which settings, code and data it was made: the same that its run still holds."""
    bundle, run = weeks.workspace / "releases" / release, weeks.workspace / "runs" / release
    trace = json.loads((bundle / "trace.json").read_bytes())
    assert trace["settings"]["calibration"]["precision"] == PRECISION
    assert trace["code_version"] and trace["packages"]["tensorflow"]
    for kind in ("records", "bottlenecks", "head", "thresholds", "evaluation"):
        assert trace["digests"][kind] == sha256(run / kind / "manifest.json")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def require_kept_parts(weeks: Weeks) -> None:
    """A product keeps the part in which a release has had it, in all runs to come, released or not."""
    known = pd.Series(dtype=object)
    for run in ("week1", "week2", "week3", "week4", "week4-accepted", "week5", "week6"):
        parts = weeks.splits(run)
        both = parts.index.intersection(known.index)
        assert len(both) > 500 or run == "week1"
        assert (parts[both] == known[both]).all()
        if (weeks.workspace / "releases" / run).exists():
            known = parts.combine_first(known)


def require_one_extraction(weeks: Weeks) -> None:
    """No image is twice in the store."""
    shards = list(weeks.workspace.glob("store/*/*.parquet"))
    digests = Counter(digest for shard in shards for digest in pq.read_table(shard).column(0).to_pylist())
    assert len(digests) > 2000 and set(digests.values()) == {1}


def require_log(weeks: Weeks, last: str) -> None:
    """The log of the releases leads from the first to the one in service, without a gap."""
    lines = (weeks.workspace / "releases" / "log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [one["to"] for one in log][:3] == ["week1", "week2", "week3"]
    assert [one["from"] for one in log] == [None, *(one["to"] for one in log[:-1])]
    assert [one["action"] for one in log][-2:] == ["rollback", "switch"] and log[-1]["to"] == last
    assert all(one["who"] and one["when"] and one["why"] for one in log)
    assert np.all(np.diff([pd.Timestamp(one["when"]).value for one in log]) >= 0)


# Killed


def six_weeks_of(weeks: Weeks) -> list[list[str]]:
    """The commands of six weeks."""
    return [
        command
        for week in range(1, 7)
        for command in (
            weeks.retrain_command(week, f"week{week}", *OPTIONS.get(week, ())),
            weeks.categorize_command(week),
        )
    ]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_forty_moments_of_six_weeks_the_results_are_the_same(drawn_weights, tmp_path):
    undisturbed = Weeks(tmp_path / "undisturbed", drawn_weights)
    seconds = []
    for command in six_weeks_of(undisturbed):
        began = time.monotonic()
        assert subprocess.run(job(command), capture_output=True).returncode in ENDS
        seconds.append(time.monotonic() - began)
    moments, signals = random.Random(40), [signal.SIGKILL] * 30 + [signal.SIGTERM] * 10
    moments.shuffle(signals)
    for attempt in range(4):  # a command often comes to its end first: then once more from week 1
        killed = Weeks(tmp_path / f"killed{attempt}", drawn_weights)
        copy_feeds(undisturbed, killed)
        for number, command in enumerate(six_weeks_of(killed)):
            most = 0.9 * seconds[number]  # less for what is left of the work after each signal
            for _ in range(MOST_A_COMMAND):
                if not signals:
                    break
                ended = ended_by(signals[-1], job(command), moments.uniform(1, most))
                require_whole(killed)
                if ended in ENDS:
                    break
                signals.pop()
                most = max(4, 0.7 * most)
            assert subprocess.run(job(command), capture_output=True).returncode in ENDS
        assert results(killed) == results(undisturbed)
        assert not list(killed.workspace.rglob("*.partial"))
        if not signals:
            return
    raise AssertionError(f"{len(signals)} signals were not sent")


ENDS = (0, KEPT, STOPPED)
MOST_A_COMMAND = 5  # signals


def job(command: list[str]) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *command]


def ended_by(kind: int, command: list[str], after: float) -> int:
    """Exit status of a command that gets a signal after so many seconds, if it is still at work then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(kind)
    status = process.wait(5)  # TimeoutExpired: it did not end within 5 s
    assert status in ((-signal.SIGKILL,) if kind == signal.SIGKILL else (143, *ENDS))
    return status


def copy_feeds(one: Weeks, other: Weeks) -> None:
    """The same files, with the same times: a source is identified by its modification time, too."""
    for week in ("photos", *(f"week{number}" for number in range(1, 7))):
        shutil.rmtree(other.folder / week)
        ignored = shutil.ignore_patterns("decisions*")
        shutil.copytree(one.folder / week, other.folder / week, ignore=ignored)
    shutil.copy2(one.folder / "mapping.csv", other.folder)


def require_whole(weeks: Weeks) -> None:
    """What is in service can be opened at every moment."""
    name = in_service(weeks.workspace / "releases")
    assert name is None or find_artifact(weeks.workspace / "releases" / name) is not None


def results(weeks: Weeks) -> dict[str, str]:
    """Digests of all that is finished, by name; what is in service; the decisions."""
    root = weeks.workspace
    files = [*root.glob("runs/*/*/manifest.json"), *root.glob("releases/*/manifest.json")]
    files += [*root.glob("store/**/*.npy"), *root.glob("runs/*/verdict.json")]
    files += weeks.folder.glob("week*/decisions.*")
    found = {str(file.relative_to(weeks.folder)): sha256(file) for file in files}
    return found | {"current": weeks.in_service()}
