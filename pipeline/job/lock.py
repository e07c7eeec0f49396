"""The lock that keeps a second job off a run.

    .lock   {"process", "host", "since"} of the job that holds it, or held it last

The kernel holds the lock (flock) for the open file: it ends with its process, however that ends, and depends
on no clock. What is in the file is for people only.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import Busy
from features.storage.paths import AnyPath, Remote

LOCK = ".lock"


@contextmanager
def only_job(run: AnyPath, wait: float = 0.0, other: str = "--run") -> Iterator[None]:
    """Keeps a second job off the run; the lock ends with the process, however it ends.

    A directory that holds nothing but the lock afterwards is removed, with the empty ones above it that were
    made for it. An object store has no locks: there, a second job on this computer is kept off, one on
    another is not.

    Args:
        run: directory.
        wait: seconds for which to wait for the other job's end.
        other: the option that gives a job another place.

    Raises:
        Busy: another job holds the lock.
    """
    file, made = _lock_file(run), list[Path]()
    if isinstance(run, Path):
        made = [run, *(above for above in run.parents if not above.exists())]
    until = time.monotonic() + wait
    while (descriptor := _locked(file)) is None and time.monotonic() < until:
        time.sleep(0.02)
    if descriptor is None:
        raise Busy(
            f"{run}: another job is running here{_holder(file)}; expected one job at a time; wait, or use "
            f"another {other}"
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # of a directory that is not empty, or gone
            if made and os.listdir(made[0]) == [LOCK]:
                file.unlink()
                for folder in made:
                    folder.rmdir()
        os.close(descriptor)


def _locked(file: Path) -> int | None:
    """Opens and locks the file, which is made where it is not there; None: another process holds the lock."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, FileExistsError):
            if file.parent.is_file():
                raise
            continue  # a job that ended has just removed the directory
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(file, descriptor):
                _write_holder(descriptor)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_there(file: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name: a job that ended may have removed it."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(descriptor, 0)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its text, and `clean` has to run
        os.write(descriptor, json.dumps(holder).encode())


def _holder(file: Path) -> str:
    """Who holds the lock, in parentheses; empty where that cannot be read."""
    try:
        holder = json.loads(file.read_bytes())
        return f" (process {holder['process']} on {holder['host']} since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def at_work(run: AnyPath) -> bool:
    """Whether a job holds the lock now; leaves no lock where there is none."""
    try:
        file = os.open(_lock_file(run), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _lock_file(run: AnyPath) -> Path:
    if isinstance(run, Remote):
        name = f"shelfmark-{hashlib.sha256(str(run).encode()).hexdigest()[:16]}.lock"
        return Path(tempfile.gettempdir()) / name
    return run / LOCK
