"""The lock that keeps a second job off a run."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import Busy
from features.storage.paths import AnyPath, Remote


@contextmanager
def only_job(run: AnyPath) -> Iterator[None]:
    """Keeps a second job off the run; the lock ends with the process, however it ends.

    An object store has no locks: there, a second job on this computer is kept off, one on another is not.

    Raises:
        Busy: another job holds the lock.
    """
    import filelock

    if isinstance(run, Path):
        run.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(_lock_file(run))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Busy(
            f"{run}: another job is running here; expected one job at a time; wait, or use another --run"
        ) from None
    try:
        yield
    finally:
        lock.release()


def at_work(run: AnyPath) -> bool:
    """Whether a job holds the lock now; leaves no lock where there is none."""
    import fcntl

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
    return run / ".lock"
