"""The log that a command leaves in its workspace: see features/output.py for what is in it.

runs/<run>/run.log             of all commands on the run, one after the other
logs/categorize-<time>-<process>.log
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import ShelfmarkError
from features.output import log_to
from features.storage.paths import AnyPath, write_whole
from pipeline.job.progress import log

RUN_LOG = "run.log"


def log_of_job(workspace: AnyPath, command: str) -> AnyPath:
    """Where the log of a command that belongs to no run is kept."""
    name = f"{command}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.log"
    return workspace / "logs" / name


@contextmanager
def command_log(file: AnyPath) -> Iterator[None]:
    """Appends to a log what is said meanwhile; on an object store, which cannot append, at the end."""
    if isinstance(file, Path):
        with log_to(file):
            yield
        return
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as scratch:
        here = Path(scratch) / file.name
        try:
            with log_to(here):
                yield
        finally:
            try:
                before = file.read_bytes() if file.is_file() else b""
                write_whole(file, before + here.read_bytes())
            except (OSError, ShelfmarkError) as error:
                log.warning("%s: the log could not be kept: %s", file, error)


@contextmanager
def run_log(run: AnyPath) -> Iterator[None]:
    """The log of a run; a command that fails and leaves nothing else in a new run leaves no log, either."""
    file = run / RUN_LOG
    try:
        with command_log(file):
            yield
    except BaseException:
        with contextlib.suppress(OSError, ShelfmarkError):
            if not any(entry.name not in (RUN_LOG, ".lock") for entry in run.glob("*")):
                file.unlink(missing_ok=True)
        raise
