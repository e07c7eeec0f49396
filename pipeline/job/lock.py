"""The lock that keeps a second job off a run."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import Busy
from features.storage.paths import AnyPath, Remote


@contextmanager
def only_job(run: AnyPath, wait: float = 0.0) -> Iterator[None]:
    """Keeps a second job off the run; the lock ends with the process, however it ends.

    An object store has no locks: there, a second job on this computer is kept off, one on another is not.

    Args:
        run: directory.
        wait: seconds for which to wait for the other job's end.

    Raises:
        Busy: another job holds the lock.
    """
    import filelock

    if isinstance(run, Remote):
        name = f"shelfmark-{hashlib.sha256(str(run).encode()).hexdigest()[:16]}.lock"
        lock = filelock.FileLock(Path(tempfile.gettempdir()) / name)
    else:
        run.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run / ".lock")
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        raise Busy(
            f"{run}: another job is running here; expected one job at a time; wait, or use another --run"
        ) from None
    try:
        yield
    finally:
        lock.release()
