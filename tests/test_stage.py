"""Stages: what is finished is opened, what is interrupted goes on, what has changed is remade; one job."""

import errno
import io
import logging
import multiprocessing
import os
import sys

import pytest

from features.errors import Busy, ShelfmarkError
from features.storage.artifact import open_artifact
from pipeline.job.lock import at_work, only_job
from pipeline.job.progress import Progress
from pipeline.job.stage import stage


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, logger="shelfmark")
    return lambda: [record.getMessage() for record in caplog.records]


def make_two(work):
    (work / "a.txt").write_text("a")
    (work / "b.txt").write_text("b")
    return {"files": 2}


def never(work):
    raise AssertionError("made again")


def test_a_finished_stage_is_opened_when_its_inputs_are_the_same(tmp_path, messages):
    inputs = {"records": "digest", "settings": {"b": 1, "a": [2, 3]}}
    made = stage(tmp_path / "x", kind="things", version=1, made_from=inputs, make=make_two)
    same = {"settings": {"a": [2, 3], "b": 1}, "records": "digest"}
    again = stage(tmp_path / "x", kind="things", version=1, made_from=same, make=never)
    assert again == made == open_artifact(tmp_path / "x", "things")
    assert messages()[0].startswith("things: files 2 in ") and messages()[1] == "things: unchanged (files 2)"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kind": "others"},
        {"made_from": {"records": "another"}},
        {"made_from": {"records": "digest", "taxonomy": "new"}},
        {"usable": lambda artifact: False},
    ],
)
def test_a_finished_stage_is_remade_when_something_has_changed(tmp_path, change):
    common = {"kind": "things", "version": 1, "made_from": {"records": "digest"}}
    stage(tmp_path / "x", **common, make=make_two)

    def make_one(work):
        (work / "c.txt").write_text("c")
        return {"files": 1}

    remade = stage(tmp_path / "x", **common | change, make=make_one)
    assert set(remade.files) == {"c.txt"} and not (tmp_path / "x" / "a.txt").exists()


def test_a_finished_stage_is_remade_when_a_file_of_it_has_gone(tmp_path):
    common = {"kind": "things", "version": 1, "made_from": {"records": "digest"}, "make": make_two}
    made = stage(tmp_path / "x", **common)
    (tmp_path / "x" / "b.txt").unlink()
    assert stage(tmp_path / "x", **common) == made and (tmp_path / "x" / "b.txt").exists()


def interrupted(path, made_from):
    def make(work):
        (work / "a.txt").write_text("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(path, kind="things", version=1, made_from=made_from, make=make)
    assert not path.exists()


def test_an_interrupted_stage_goes_on_where_it_was(tmp_path):
    undisturbed = stage(tmp_path / "y", kind="things", version=1, made_from={"records": "d"}, make=make_two)
    interrupted(tmp_path / "x", {"records": "d"})

    def make_the_rest(work):
        assert (work / "a.txt").read_text() == "a"
        (work / "b.txt").write_text("b")
        return {"files": 2}

    made = stage(tmp_path / "x", kind="things", version=1, made_from={"records": "d"}, make=make_the_rest)
    assert made.digest == undisturbed.digest
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_what_an_interrupted_stage_made_from_other_inputs_is_thrown_away(tmp_path):
    interrupted(tmp_path / "x", {"records": "d"})

    def make(work):
        assert not (work / "a.txt").exists()
        return {}

    assert stage(tmp_path / "x", kind="things", version=1, made_from={"records": "e"}, make=make).files == {}


def test_a_failed_remake_leaves_the_finished_stage_as_it_was(tmp_path):
    made = stage(tmp_path / "x", kind="things", version=1, made_from={"records": "d"}, make=make_two)

    def fail(work):
        raise ShelfmarkError("no")

    with pytest.raises(ShelfmarkError):
        stage(tmp_path / "x", kind="things", version=1, made_from={"records": "e"}, make=fail)
    assert open_artifact(tmp_path / "x", "things") == made


def _try_to_work(run, answers):
    try:
        with only_job(run):
            answers.put("at work")
    except ShelfmarkError as error:
        answers.put(str(error))


def test_a_second_job_is_kept_off_the_run_until_the_first_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()

    def second():
        job = context.Process(target=_try_to_work, args=(tmp_path / "run", answers))
        job.start()
        job.join()
        return answers.get(timeout=10)

    with only_job(tmp_path / "run"):
        assert second().startswith(
            f"{tmp_path / 'run'}: another job is running here (process {os.getpid()} on "
        )
    assert second() == "at work"


def test_the_run_is_free_again_after_a_job_that_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), only_job(tmp_path):
        raise ZeroDivisionError
    with only_job(tmp_path):
        pass


def test_progress_is_a_line_every_half_minute_where_no_terminal_is(monkeypatch, messages):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Progress("extract", 5000) as progress:
        for done in range(0, 5001, 100):
            clock[0] += 2
            progress.to(done)
    assert messages() == ["extract: 1,500 of 5,000", "extract: 3,100 of 5,000", "extract: 4,700 of 5,000"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_and_stays_there_when_stderr_is_taken_away(monkeypatch, messages):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("extract", 5000) as progress:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        progress.to(2500)
        progress._bar.refresh()
        monkeypatch.setattr(sys, "stderr", terminal)
    assert "extract" in terminal.getvalue() and "2500/5000" in terminal.getvalue() and messages() == []


def test_a_lock_holds_on_a_full_disk_without_its_text(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.job.lock.os.write", full)
    (tmp_path / "run" / "files").mkdir(parents=True)
    with only_job(tmp_path / "run"):
        assert at_work(tmp_path / "run")
        with pytest.raises(Busy, match="another job is running here; expected"), only_job(tmp_path / "run"):
            pass
    assert not at_work(tmp_path / "run")
