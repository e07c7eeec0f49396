"""The cores of this computer as workers: this process itself, and a light process for each other core.

Threads would wait for each other's Python (two took 3.3 s where two processes take 2.5 s). joblib's loky was
tried: of 0.3 GB it took 10.8 s and 313 MB where these take 9.7 s and 233 MB (its package alone, without
joblib: 11 % longer), a killed worker takes down all others with what they were doing, and its workers outlive
a killed parent. multiprocessing imports the caller's `__main__` once more, which may be none.

    parent → stdin of a worker    sys.path, (S3 settings, do), then (do, arguments) one after the other
    stdout of a worker → parent   for each of them None, or the error that it ended with
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from features.errors import ShelfmarkError
from features.storage.object_stores import s3_settings, use_s3_settings
from pipeline.job.progress import log

# Ctrl-C is for the parent, which ends its workers
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from pipeline.beam.process_pool import _serve; _serve()"
)


class WorkerDied(ShelfmarkError):
    """A worker process of this computer was killed."""

    @classmethod
    def of(cls, status: int) -> "WorkerDied":
        """The error of a process that ended with this exit status."""
        return cls(
            f"a worker process was killed, probably for lack of memory (exit status {status}); "
            "expected it to finish its work; rerun to continue"
        )


class _Process:
    """A process that runs one call at a time; the first call starts it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, do: Callable[..., None], *arguments: Any) -> None:
        """Runs `do(*arguments)` there and waits; raises what was raised there, or WorkerDied."""
        try:
            self._start(do)
            assert self._process and self._process.stdout
            self._send((do, arguments))
            error = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise WorkerDied.of(self.end()) from None
        if error:
            raise error

    def _start(self, do: Callable[..., None]) -> None:
        """Starts the process if there is none; it imports what `do` needs."""
        if not self._process:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._send(sys.path)
            self._send((s3_settings(), do))

    def _send(self, message: Any) -> None:
        assert self._process and self._process.stdin
        pickle.dump(message, self._process.stdin)
        self._process.stdin.flush()

    def kill(self) -> None:
        """Ends the process in the middle of its work; `run`, in another thread, raises WorkerDied."""
        if process := self._process:
            process.kill()

    def end(self) -> int:
        """Ends the process, and returns its exit status; the next call starts another one."""
        process, self._process = self._process, None
        if not process:
            return 0
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.returncode


# In a worker process


def _serve() -> None:
    """Runs one call after the other, until the parent closes stdin or is gone."""
    sys.meta_path.insert(0, _WithoutPandas())
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is for people
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            use_s3_settings(pickle.load(sys.stdin.buffer)[0])
            while True:
                calls.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(0)  # at once: whoever continues the work writes the same files

    threading.Thread(target=read, daemon=True).start()
    while True:
        do, arguments = calls.get()
        try:
            do(*arguments)
            result = pickle.dumps(None)
        except Exception as error:
            error.add_note(traceback.format_exc())  # a traceback cannot be pickled
            result = _pickled(error)
        results.write(result)
        results.flush()


def _pickled(error: Exception) -> bytes:
    """The error, pickled; of an error that cannot be unpickled, as of some libraries, its text."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        as_text = RuntimeError(f"{type(error).__name__}: {error}")
        as_text.__notes__ = error.__notes__
        return pickle.dumps(as_text)
    return pickled


class _WithoutPandas:
    """Refuses to import pandas, as pyarrow does to see whether a list is a column of it: 0.7 s and 50 MB.

    None in sys.modules would do for Python; Cython, in which pyarrow is written, takes it for a module.
    """

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("a worker does without pandas", name=name)


# In the parent


class Workers:
    """This process, and a process for each other core, started when there is something for it to do."""

    def __init__(self) -> None:
        self._processes = [_Process() for _ in range((os.cpu_count() or 1) - 1)]

    def run(self, do: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
        """Runs `do(*arguments)` for each of `calls`, each on the first worker that is free.

        A call whose process is killed is run once more. After an error no further call is begun.

        Args:
            do: picklable.
            calls: picklable arguments.

        Raises:
            WorkerDied: a call's process was killed twice. Else the first error that `do` raised.
        """
        left, errors, lock = deque(calls), list[BaseException](), threading.Lock()

        def following() -> tuple[Any, ...] | None:
            with lock:
                return left.popleft() if left and not errors else None

        def work(process: _Process | None) -> None:
            for arguments in iter(following, None):
                try:
                    _run(process, do, arguments, errors)
                except Exception as error:
                    errors.append(error)

        # A thread of its own for what runs here, too: Ctrl-C need not wait for it.
        workers = [None, *self._processes][: len(left)]
        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as interrupted:
            errors.append(interrupted)
            for process, thread in zip(self._processes, threads[1:], strict=False):
                while thread.is_alive():  # it may be about to start its process
                    process.kill()
                    thread.join(0.1)
            raise
        if errors:
            raise errors[0]

    def end(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.end()


def _run(
    process: _Process | None, do: Callable[..., None], arguments: tuple[Any, ...], errors: list[BaseException]
) -> None:
    """Runs a call in the process, or here; once more when the process is killed, unless there are errors."""
    if not process:
        return do(*arguments)
    try:
        process.run(do, *arguments)
    except WorkerDied as died:
        if errors:
            raise
        log.info("%s; its work is done again", str(died).partition(";")[0])
        process.run(do, *arguments)


_open: Workers | None = None


@contextlib.contextmanager
def local_workers() -> Iterator[Workers]:
    """Opens the workers, which are kept while the outermost of these contexts lasts."""
    global _open
    if _open:
        yield _open
        return
    _open = Workers()
    try:
        yield _open
    finally:
        workers, _open = _open, None
        workers.end()
