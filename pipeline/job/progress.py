"""What a person sees of a job at work: log lines, and a progress bar where there is a terminal."""

import logging
import time
from typing import Any

from features.output import console

log = logging.getLogger("shelfmark")
EVERY = 30.0  # s between two lines of progress


class Progress:
    """A bar where a terminal is there, a plain line every half minute where not."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if console().isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=console()), transient=True)
            self._bar.start()
            self._bar.add_task(self.what, total=self.total)
        return self

    def to(self, done: int) -> None:
        """Work done so far."""
        self.done = done
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            log.info("%s: %s of %s", self.what, f"{done:,}", f"{self.total:,}")

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
