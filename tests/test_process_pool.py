"""Workers: light processes that do as this one does, say what went wrong, and never outlive their parent."""

import errno
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from features.errors import ShelfmarkError
from features.storage import object_stores as objects
from features.storage.object_stores import s3_settings
from pipeline.beam.process_pool import WorkerDied, local_workers


@pytest.fixture(autouse=True)
def three_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)


def note_process(folder, number):
    time.sleep(0.2)  # so that everybody gets something to do
    (folder / str(number)).write_text(f"{os.getpid()} {'pandas' in sys.modules}")


def fail(error):
    time.sleep(0.2)
    raise error


def wait_or_kill(folder, times):
    """Kills the worker it runs in, the first `times` times; in the parent it waits."""
    if os.getpid() == int(os.environ["PARENT"]):
        time.sleep(2)  # so that the other worker gets the other call
        return
    (folder / str(len(list(folder.iterdir())))).touch()
    if len(list(folder.iterdir())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)


def test_every_core_works_and_this_process_is_one_of_them(tmp_path):
    with local_workers() as workers:
        workers.run(note_process, [(tmp_path, number) for number in range(15)])
    noted = [file.read_text().split() for file in tmp_path.iterdir()]
    assert len(noted) == 15
    processes = {int(process) for process, _ in noted}
    assert len(processes) == 3 and os.getpid() in processes
    assert {pandas for process, pandas in noted if int(process) != os.getpid()} == {"False"}
    for process in processes - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_single_call_starts_no_process(tmp_path):
    before = set(psutil.Process().children())
    with local_workers() as workers:
        workers.run(note_process, [(tmp_path, 0)])
        assert set(psutil.Process().children()) <= before
    assert (tmp_path / "0").read_text().split()[0] == str(os.getpid())


def note_settings(folder, number):
    time.sleep(0.2)
    (folder / str(number)).write_text(f"{s3_settings()['region_name']} {'apache_beam' in sys.modules}")


def test_workers_reach_object_stores_as_their_parent_does_and_without_beam(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_settings", {"region_name": "here"})
    with local_workers() as workers:
        workers.run(note_settings, [(tmp_path, number) for number in range(9)])
    noted = {file.read_text() for file in tmp_path.iterdir()}
    assert "here False" in noted and {line.split()[0] for line in noted} == {"here"}


def test_what_is_open_is_used_again():
    with local_workers() as outer, local_workers() as inner:
        assert inner is outer


@pytest.mark.parametrize(
    "error",
    [ShelfmarkError("shop.bson: empty"), OSError(errno.ENOSPC, "No space left", "shard"), KeyError("x")],
)
def test_an_error_of_a_worker_comes_back_as_it_was_with_its_traceback(error):
    with local_workers() as workers, pytest.raises(type(error)) as caught:
        in_a_process(workers, fail, error)
    assert (type(caught.value), str(caught.value)) == (type(error), str(error))
    assert "in fail" in caught.value.__notes__[0]


def in_a_process(workers, do, *arguments):
    """Runs the call in one of the processes."""
    workers._processes[0].run(do, *arguments)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail_with_unpicklable():
    raise Unpicklable("bread", "butter")


def test_an_error_that_cannot_be_pickled_comes_back_as_text():
    with local_workers() as workers, pytest.raises(RuntimeError) as caught:
        in_a_process(workers, fail_with_unpicklable)
    assert (
        str(caught.value) == "Unpicklable: bread and butter" and "in fail_with" in caught.value.__notes__[0]
    )


def note_or_fail(folder, number):
    if number == 0:
        raise ShelfmarkError("shop.bson: empty")
    note_process(folder, number)


def test_after_an_error_nothing_is_begun_and_the_workers_are_of_use(tmp_path):
    with local_workers() as workers:
        with pytest.raises(ShelfmarkError, match=r"shop\.bson: empty"):
            workers.run(note_or_fail, [(tmp_path, number) for number in range(50)])
        assert len(list(tmp_path.iterdir())) < 10
        workers.run(note_process, [(tmp_path, number) for number in range(50, 53)])
    assert {"50", "51", "52"} <= {file.name for file in tmp_path.iterdir()}


def test_what_a_killed_worker_was_doing_is_done_once_more(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="shelfmark")
    monkeypatch.setenv("PARENT", str(os.getpid()))
    once, ever = tmp_path / "once", tmp_path / "ever"
    once.mkdir(), ever.mkdir()
    with local_workers() as workers:
        monkeypatch.setattr(workers, "_processes", workers._processes[:1])
        workers.run(wait_or_kill, [(once, 1)] * 2)
        with pytest.raises(WorkerDied, match=r"killed, .*\(exit status -9\).*; rerun to continue"):
            workers.run(wait_or_kill, [(ever, 9)] * 2)
        workers.run(note_process, [(tmp_path, number) for number in range(2)])
    assert (len(list(once.iterdir())), len(list(ever.iterdir()))) == (2, 2)
    assert (tmp_path / "1").exists()
    assert caplog.messages[0] == (
        "a worker process was killed, probably for lack of memory (exit status -9); its work is done again"
    )


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
os.cpu_count = lambda: 3
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from test_process_pool import sleep_and_write
from pipeline.beam.process_pool import local_workers
try:
    with local_workers() as workers:
        workers.run(sleep_and_write, [(Path({folder!r}), 20)] * 9)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupted_parent_ends_at_once_and_its_workers_with_it(tmp_path):
    program = INTERRUPTED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(tmp_path / "began", parent)
    time.sleep(0.5)
    children = psutil.Process(parent.pid).children(recursive=True)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does, to all of them
    assert (parent.communicate(timeout=15)[1], parent.returncode) == ("", 130)
    assert not psutil.wait_procs(children, timeout=2)[1]


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_process_pool import sleep_and_write
from pipeline.beam.process_pool import _Process
_Process().run(sleep_and_write, Path({folder!r}))
"""


def sleep_and_write(folder, seconds=1.0):
    (folder / "began").touch()
    time.sleep(seconds)
    (folder / "wrote").write_text("too late")


def wait_for(file, parent):
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)


def test_a_worker_ends_at_once_when_its_parent_is_killed(tmp_path):
    program = PARENT.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_for(tmp_path / "began", parent)
    parent.kill()
    parent.wait()
    time.sleep(1.5)
    assert not (tmp_path / "wrote").exists()
