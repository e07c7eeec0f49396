"""The cores of this machine as workers: this process itself, and a light process for each of the others.

Threads would wait for each other's Python (two took 3.3 s where two processes take 2.5 s), and Beam's own
worker processes import Beam: 8 s to start and 250 MB each, against 0.6 s and 90 MB.

    parent → stdin of a worker    sys.path, (how S3 is reached, do), then (do, arguments) one after the other
    stdout of a worker → parent   for each of them None, or the error that it ended with

multiprocessing would do the same, but imports the caller's `__main__` once more, which may be none.
"""

import contextlib
import ctypes
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import abc
from typing import Any

from features.errors import ShelfmarkError
from features.storage.object_stores import s3_settings, use_s3_settings
from pipeline.job.progress import log

PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from pipeline.beam.process_pool import _serve; _serve()"
)


class WorkerDied(ShelfmarkError):
    """A worker process of this machine is gone."""

    @classmethod
    def of(cls, status: int) -> "WorkerDied":
        """The error of a process that ended with this exit status."""
        return cls(
            f"a worker process died (exit status {status}); expected it to live (is memory short?); "
            "the same command continues"
        )


class _Process:
    """A process that does one thing at a time; started by the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, do: Callable[..., None]) -> None:
        """Starts it, and what `do` needs is imported there."""
        if not self._process:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._send(sys.path)
            self._send((s3_settings(), do))

    def do(self, do: Callable[..., None], *arguments: Any) -> None:
        """Does it there, waits, and raises what was raised there, or WorkerDied."""
        try:
            self.start(do)
            assert self._process and self._process.stdout
            self._send((do, arguments))
            error = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise WorkerDied.of(self.end()) from None
        if error:
            raise error

    def end(self) -> int:
        """Ends it; the next to be done starts another. Returns the exit status."""
        process, self._process = self._process, None
        if not process:
            return 0
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.returncode

    def _send(self, message: Any) -> None:
        assert self._process and self._process.stdin
        pickle.dump(message, self._process.stdin)
        self._process.stdin.flush()


def _serve() -> None:
    """Runs in the process, until its parent closes its stdin or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for its parent
    sys.meta_path.insert(0, _WithoutPandas())
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is for people
    wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            use_s3_settings(pickle.load(sys.stdin.buffer)[0])
            while True:
                wanted.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(0)  # at once: whoever continues the work writes the same files

    threading.Thread(target=read, daemon=True).start()
    while True:
        do, arguments = wanted.get()
        error = None
        try:
            do(*arguments)
        except Exception as raised:
            raised.add_note(traceback.format_exc())  # the place itself stays behind
            error = raised
        pickle.dump(error, answers)
        answers.flush()


def give_back() -> None:
    """Gives freed memory back to the system, which glibc else keeps."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class _WithoutPandas(abc.MetaPathFinder):
    """No pandas here: pyarrow imports it, 0.7 s and 50 MB, to see whether a list is one of its kinds."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("a worker does without pandas", name=name)


class _Workers:
    """As many as there are cores."""

    def __init__(self) -> None:
        self._processes = [_Process() for _ in range((os.cpu_count() or 1) - 1)]
        # one thread for all that is done here: glibc keeps freed memory for each thread apart, 50 MB and more
        self._here = ThreadPoolExecutor(1)
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()  # None: this process, taken first
        for worker in (*self._processes, None):
            self._free.put(worker)

    def prepare(self, do: Callable[..., None]) -> None:
        """Starts the processes, for what will be done."""
        for process in self._processes:
            process.start(do)

    def run(self, do: Callable[..., None], *arguments: Any) -> None:
        """Does it on the next free worker, and waits; once more when the worker dies.

        Raises:
            WorkerDied, or what `do` raises.
        """
        worker = self._free.get()
        try:
            if not worker:
                return self._here.submit(do, *arguments).result()
            try:
                worker.do(do, *arguments)
            except WorkerDied as died:
                log.info("%s; what it was doing is done again", str(died).partition(";")[0])
                worker.do(do, *arguments)
        finally:
            self._free.put(worker)

    def end(self) -> None:
        """Ends the processes."""
        self._here.shutdown()
        for process in self._processes:
            process.end()


_open: _Workers | None = None


@contextlib.contextmanager
def local_workers(beam: tuple[str, ...]) -> Iterator[_Workers | None]:
    """The workers, kept while the outermost of these contexts lasts; none where Beam has its own."""
    global _open
    if _open or beam:
        yield _open
        return
    _open = _Workers()
    try:
        yield _open
    finally:
        workers, _open = _open, None
        workers.end()


def run_here(do: Callable[..., None], *arguments: Any) -> None:
    """Does it on a free worker where they are, else in this process."""
    if _open:
        _open.run(do, *arguments)
    else:
        do(*arguments)
