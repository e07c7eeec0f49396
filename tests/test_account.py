"""The account of a run: however it ends, run.json and one line say so."""

import errno
import io
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from features.errors import Busy, ShelfmarkError, Stopped
from features.storage.artifact import find_artifact
from models.decisions.releases import put_into_service
from pipeline.job import account as module
from pipeline.job.account import (
    MOST_WARNINGS,
    RunAccount,
    account_of,
    count_new_images,
    read_account,
    summary_line,
    without_secrets,
)
from pipeline.job.config import NotifySettings
from pipeline.job.memory import PeakMemory, resident
from pipeline.job.progress import log
from pipeline.job.stage import stage

BETTER = {"outcome": "better", "release": True, "sentence": "better by 3 points"}
WORSE = {"outcome": "worse", "release": False, "sentence": "worse by 3 points"}
SAME = {"outcome": "same", "release": False, "sentence": "it is already in service"}
MB = 2**20


class Terminated(BaseException):
    """As the handler of SIGTERM raises it."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory, with the release `2026-W47` in service."""
    (tmp_path / "W" / "releases" / "2026-W47").mkdir(parents=True)
    put_into_service(tmp_path / "W" / "releases", "2026-W47")
    path = tmp_path / "W" / "runs" / "2026-W48"
    path.mkdir(parents=True)
    return path


def make_stage(run: Path, name: str, summary: dict[str, object], seconds: float = 0.0) -> None:
    def make(work: Path) -> dict[str, object]:
        time.sleep(seconds)
        (work / "file").write_text(name)
        return summary

    stage(run / name, kind=name, version=1, made_from={"of": name}, make=make)


def account_file(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


# How it ends


@pytest.mark.parametrize(
    ("verdict", "outcome", "status"), [(BETTER, "released", 0), (WORSE, "kept", 3), (SAME, "unchanged", 0)]
)
def test_the_verdict_gives_outcome_and_exit_status(run, verdict, outcome, status, capsys):
    with account_of(run, ["shelfmark"]) as account:
        account.verdict = verdict
        if verdict["release"]:
            (run.parents[1] / "releases" / "2026-W48").mkdir()
            put_into_service(run.parents[1] / "releases", "2026-W48")
    found = account_file(run)
    assert (found["outcome"], found["exit_status"], found["sentence"]) == (
        outcome,
        status,
        verdict["sentence"],
    )
    assert found["verdict"] == verdict
    assert found["release_before"] == "2026-W47"
    assert found["release_now"] == ("2026-W48" if verdict["release"] else "2026-W47")
    said = {"released": "released", "kept": "not released, 2026-W47 stays in service"}
    printed = capsys.readouterr().out
    assert printed.startswith(f"2026-W48: {said.get(outcome, 'nothing new, 2026-W47 stays in service')}; ")
    assert printed.endswith("2026-W48/report/index.html\n") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "outcome", "status", "sentence"),
    [
        (ShelfmarkError("a.csv: gone; expected it; look"), "failed", 1, "a.csv: gone; expected it; look"),
        (Stopped("feed: half is gone"), "stopped", 4, "feed: half is gone"),
        (Busy("another job"), "failed", 75, "another job"),
        (
            ZeroDivisionError("by zero"),
            "failed",
            1,
            "ZeroDivisionError: by zero; this is a fault of shelfmark",
        ),
        (KeyboardInterrupt(), "failed", 130, "interrupted; the same command continues the work"),
        (Terminated(), "failed", 143, "terminated; the same command continues the work"),
        (SystemExit(7), "failed", 7, "ended with 7"),
    ],
)
def test_an_error_is_in_the_account_and_goes_on(run, error, outcome, status, sentence, capsys):
    with pytest.raises(type(error)) as raised, account_of(run, ["shelfmark"]):
        raise error
    assert raised.value is error
    found = account_file(run)
    assert (found["outcome"], found["exit_status"]) == (outcome, status)
    assert found["sentence"].startswith(sentence)
    service = "2026-W47 stays in service"
    said = f"stopped by a guard, {service}" if outcome == "stopped" else f"failed, {service}"
    printed = capsys.readouterr().out
    assert printed.startswith(f"2026-W48: {said}; ") and printed.endswith("2026-W48/run.json\n")


def test_a_signal_that_a_package_made_an_error_of_is_still_a_signal(run):
    with pytest.raises(RuntimeError), account_of(run, ["shelfmark"]):
        try:
            raise Terminated
        except Terminated as signal:
            raise RuntimeError("graph execution error") from signal
    assert account_file(run)["exit_status"] == 143


def test_the_stage_that_was_at_work_is_named(run, capsys):
    def fails(work: Path) -> dict[str, object]:
        raise ShelfmarkError("no; expected yes; wait")

    with pytest.raises(ShelfmarkError), account_of(run, ["shelfmark"]):
        make_stage(run, "records", {"images": 2274})
        stage(run / "bottlenecks", kind="bottlenecks", version=1, made_from={}, make=fails)
    assert "failed in bottlenecks, 2026-W47 stays in service; 2,274 images; " in capsys.readouterr().out
    stages = account_file(run)["stages"]
    assert [(one["name"], one["made"], one["finished"]) for one in stages] == [
        ("records", True, True),
        ("bottlenecks", False, False),
    ]
    assert account_file(run)["new_images"] is None


def test_a_full_disk_shows_its_own_error(run, monkeypatch, caplog, capsys):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "run.json"))

    monkeypatch.setattr(module, "write_whole", full)
    error = OSError(errno.ENOSPC, "No space left on device", "a shard")
    with pytest.raises(OSError, match="a shard"), account_of(run, ["shelfmark"]):
        raise error
    assert not (run / "run.json").exists()
    assert "run.json: not written" in caplog.text and "No space left" in caplog.text
    assert capsys.readouterr().out.startswith("2026-W48: failed")


def test_a_success_whose_account_cannot_be_written_stays_a_success(run, monkeypatch, caplog):
    monkeypatch.setattr(
        module, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with account_of(run, ["shelfmark"]) as account:
        account.verdict = SAME
    assert account.exit_status == 0 and "not written: full" in caplog.text


def test_a_closed_standard_output_hides_nothing(run, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(Stopped), account_of(run, ["shelfmark"]):
        raise Stopped("feed: half is gone")
    assert account_file(run)["exit_status"] == 4


def test_while_a_run_is_at_work_there_is_no_account_of_an_earlier_end(run):
    for _ in range(2):
        with account_of(run, ["shelfmark"]) as account:
            assert read_account(run) is None
            account.verdict = SAME
        assert read_account(run).outcome == "unchanged"


# What is in it


def test_summaries_and_stages_are_those_of_this_command(run):
    with account_of(run, ["shelfmark"]):
        make_stage(run, "records", {"images": 3})
        make_stage(run, "thresholds", {"certified": True})
        make_stage(run, "bundle", {})
    first = account_file(run)
    with account_of(run, ["shelfmark"]):
        make_stage(run, "records", {"images": 3})
    second = account_file(run)
    assert [one["made"] for one in first["stages"]] == [True] * 3
    assert [(one["name"], one["made"]) for one in second["stages"]] == [("records", False)]
    assert first["thresholds"] == {"certified": True} and first["head"] is None
    assert second["records"] == {"images": 3} and second["thresholds"] is None


def test_an_artifact_of_another_directory_is_not_the_runs(run, tmp_path):
    with account_of(run, ["shelfmark"]):
        make_stage(run, "in_service", {})
        make_stage(tmp_path / "elsewhere", "records", {"images": 99})
        make_stage(run / "in_service", "records", {"images": 98})
    assert account_file(run)["records"] is None
    names = [one["name"] for one in account_file(run)["stages"]]
    assert names == ["in_service", str(tmp_path / "elsewhere" / "records"), "in_service/records"]


def test_without_an_account_a_stage_runs_as_ever(run):
    make_stage(run, "records", {"images": 3})
    count_new_images(5)
    assert find_artifact(run / "records").summary == {"images": 3}


def test_new_images_are_counted(run):
    with account_of(run, ["shelfmark"]):
        count_new_images(300)
        count_new_images(10)
        make_stage(run, "bottlenecks", {})
    assert account_file(run)["new_images"] == 310
    with account_of(run, ["shelfmark"]):
        make_stage(run, "bottlenecks", {})
    assert account_file(run)["new_images"] == 0


def test_warnings_are_kept_once_each_and_not_without_end(run):
    with account_of(run, ["shelfmark"]):
        for _ in range(2):
            log.warning("feed: %s", "accepted as it is")
        log.info("not a warning")
        for number in range(2 * MOST_WARNINGS):
            log.warning("number %d", number)
    log.warning("after it")
    warnings = account_file(run)["warnings"]
    assert warnings[0] == "feed: accepted as it is" and warnings[1] == "number 0"
    assert len(warnings) == MOST_WARNINGS


def test_seconds_and_times_agree(run, monkeypatch):
    with account_of(run, ["shelfmark"]):
        make_stage(run, "records", {}, seconds=0.3)
    found = account_file(run)
    assert 0.3 <= found["stages"][0]["seconds"] <= found["seconds"] < 5
    assert found["started"] <= found["ended"] and found["ended"].endswith("+00:00")


def test_versions_are_those_that_are_installed(run):
    with account_of(run, ["shelfmark"]):
        pass
    versions = account_file(run)["versions"]
    assert versions["numpy"] == np.__version__
    assert {"shelfmark", "python", "tensorflow", "keras", "apache-beam", "pandas"} < set(versions)
    assert len(versions["packages"]) == 64


def test_secrets_are_not_in_the_command():
    given = [
        "retrain",
        "http://me:word@host/a.csv",
        "--set",
        "notify.url=https://h/secret",
        "--",
        "--s3_secret_key=k",
    ]
    assert without_secrets([*given, "--set", "train.epochs=3"]) == [
        "retrain", "http://…@host/a.csv", "--set", "notify.url=…", "--", "--s3_secret_key=…",
        "--set", "train.epochs=3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("certified", "comparison", "promise"),
    [
        (True, None, "certified 0.90, accepts 71.2% of the test products"),
        (False, None, "not certified for 0.90, accepts 71.2% of the test products"),
        (
            True,
            {"acceptance": {"before": 0.698, "after": 0.715}},
            "certified 0.90, accepts 71.5% of the test products (before 69.8%)",
        ),
    ],
)
def test_the_line_has_the_figures(certified, comparison, promise):
    account = RunAccount(
        run="2026-W48", outcome="released", exit_status=0, sentence="", started="", ended="", seconds=252.4,
        command=[], release_now="2026-W48.2", new_images=310, records={"images": 2274},
        evaluation={"graded_on": "test", "products": 1000, "accepted": 712},
        verdict={"promise": {"target": 0.9, "certified": certified}, "comparison": comparison},
    )  # fmt: skip
    assert summary_line(Path("shop/runs/2026-W48"), account) == (
        f"2026-W48: released as 2026-W48.2; {promise}; 2,274 images, 310 new; 4 min 12 s; "
        "shop/runs/2026-W48/report/index.html"
    )


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"run": "x"}', b"\xff"])
def test_a_damaged_account_is_one_clear_line(run, text):
    (run / "run.json").write_bytes(text)
    with pytest.raises(ShelfmarkError, match="not the account of a run; expected what `retrain`"):
        read_account(run)


# Who is notified


@pytest.mark.parametrize(("error", "attempts"), [(None, 3), (Stopped("x"), 3), (Terminated(), 1)])
def test_the_account_is_sent_however_the_run_ends(run, monkeypatch, error, attempts):
    sent = []
    monkeypatch.setattr(module, "notify", lambda *given, **more: sent.append((given, more)))
    settings = NotifySettings(url="http://host/x")
    try:
        with account_of(run, ["shelfmark"], settings):
            if error:
                raise error
    except (Stopped, Terminated):
        pass
    ((given, more),) = sent
    assert given == (settings, (run / "run.json").read_bytes())
    assert more["attempts"] == attempts, "a process that has to end tries once"


def test_nobody_is_notified_without_an_address(run, monkeypatch):
    monkeypatch.setattr(module, "notify", lambda *_, **__: pytest.fail("sent"))
    with account_of(run, ["shelfmark"], NotifySettings()):
        pass


# Peak memory


def test_a_peak_in_the_middle_of_a_block_is_seen():
    with PeakMemory() as memory:
        with memory.measured() as idle:
            time.sleep(0.1)
        with memory.measured() as busy:
            held = np.ones(150 * MB // 8)
            time.sleep(0.6)
            del held
    assert busy.bytes - idle.bytes > 100 * MB


def test_children_count():
    import subprocess
    import sys

    code = "held = b'x' * (150 * 2**20); print(flush=True); input()"
    with PeakMemory() as memory, memory.measured() as peak:
        before = resident()
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.6)
        child.communicate(b"\n")
    assert peak.bytes - before > 140 * MB


def test_the_outer_block_has_the_peak_of_the_inner_one():
    with PeakMemory() as memory, memory.measured() as outer, memory.measured() as inner:
        held = np.ones(50 * MB // 8)
        time.sleep(0.6)
        del held
    assert outer.bytes >= inner.bytes * 0.99


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shelfmark")


# Found again


def test_a_command_that_finds_nothing_new_keeps_the_account_of_the_one_that_did_the_work(run):
    for verdict, outcomes in ((BETTER, ("released", None)), (SAME, ("unchanged", "released")),
                              (SAME, ("unchanged", "released")), (WORSE, ("kept", None))):  # fmt: skip
        with account_of(run, ["shelfmark"]) as account:
            account.verdict = verdict
        found = account_file(run)
        earlier = found["earlier"] and found["earlier"]["outcome"]
        assert (found["outcome"], earlier) == outcomes
