"""Workers: light processes that do as this one does, tell what went wrong, and never outlive their parent."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from features.errors import ShelfmarkError
from features.storage import object_stores as objects
from features.storage.object_stores import s3_settings
from pipeline.beam.process_pool import WorkerDied, local_workers, run_here


@pytest.fixture(autouse=True)
def three_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)


def note_process(folder, number):
    time.sleep(0.1)  # so that everybody gets something to do
    (folder / str(number)).write_text(f"{os.getpid()} {'pandas' in sys.modules}")


def fail(error):
    raise error


def kill_process(folder, times):
    (folder / str(len(list(folder.iterdir())))).touch()
    if len(list(folder.iterdir())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)


def do_all(do, *arguments):
    """Three at a time, as Beam's threads do; every core has one of them."""
    with ThreadPoolExecutor(3) as threads:
        return [threads.submit(run_here, do, *each) for each in zip(*arguments, strict=True)]


def test_every_core_works_and_this_process_is_one_of_them(tmp_path):
    with local_workers(()) as workers:
        workers.prepare(note_process)
        for done in do_all(note_process, [tmp_path] * 12, range(12)):
            done.result()
    told = [file.read_text().split() for file in tmp_path.iterdir()]
    assert len(told) == 12
    processes = {int(process) for process, _ in told}
    assert len(processes) == 3 and os.getpid() in processes
    assert {pandas for process, pandas in told if int(process) != os.getpid()} == {"False"}
    for process in processes - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def note_settings(folder, number):
    time.sleep(0.1)
    (folder / str(number)).write_text(f"{s3_settings()['region_name']} {'apache_beam' in sys.modules}")


def test_workers_reach_object_stores_as_their_parent_does_and_without_beam(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_from_parent", {"region_name": "here"})
    with local_workers(()):
        for done in do_all(note_settings, [tmp_path] * 9, range(9)):
            done.result()
    told = {file.read_text() for file in tmp_path.iterdir()}
    assert "here False" in told and {line.split()[0] for line in told} == {"here"}


def test_what_is_open_is_used_again_and_beams_options_open_nothing():
    with local_workers(()) as outer, local_workers(()) as inner:
        assert inner is outer
    with local_workers(("--runner=FlinkRunner",)) as none:
        assert none is None


@pytest.mark.parametrize(
    "error",
    [ShelfmarkError("shop.bson: empty"), OSError(errno.ENOSPC, "No space left", "shard"), KeyError("x")],
)
def test_an_error_comes_back_as_it_was_and_tells_its_place(error):
    with local_workers(()):
        failed = [done.exception() for done in do_all(fail, [error] * 3)]
    assert {(type(each), str(each)) for each in failed} == {(type(error), str(error))}
    assert sum("in fail" in note for each in failed for note in getattr(each, "__notes__", [])) >= 1


def test_what_a_killed_worker_was_doing_is_done_once_more(tmp_path, caplog):
    caplog.set_level("INFO", logger="shelfmark")
    once, ever = tmp_path / "once", tmp_path / "ever"
    once.mkdir(), ever.mkdir()
    with local_workers(()) as workers:
        here = workers._free.get()
        assert here is None, "this process, which the test keeps"
        run_here(kill_process, once, 1)
        with pytest.raises(WorkerDied, match=r"exit status -9.*the same command continues"):
            run_here(kill_process, ever, 9)
        run_here(note_process, tmp_path, 1)
        workers._free.put(here)
    assert (len(list(once.iterdir())), len(list(ever.iterdir()))) == (2, 2)
    assert (tmp_path / "1").exists()
    assert caplog.messages[0] == "a worker process died (exit status -9); what it was doing is done again"


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_process_pool import sleep_and_write
from pipeline.beam.process_pool import _Process
_Process().do(sleep_and_write, Path({folder!r}))
"""


def sleep_and_write(folder):
    (folder / "began").write_text(str(os.getpid()))
    time.sleep(1)
    (folder / "wrote").write_text("too late")


def test_a_worker_ends_at_once_when_its_parent_is_killed(tmp_path):
    program = PARENT.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    time.sleep(1.5)
    assert not (tmp_path / "wrote").exists()
