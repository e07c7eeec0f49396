"""Peak memory: the most that this process and its children hold at one time, while a stage is at work.

It is what the benchmarks measure: the largest sum of resident sizes (RSS) over the tree of processes. Pages
that processes share count once for each of them, so with several it is an upper bound.
"""

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.25  # s between samples: one takes 0.1 ms a process
PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes


@dataclass
class Peak:
    """A peak as far as it is known; final after the block that measures it."""

    bytes: int = 0


class PeakMemory:
    """Measures the peaks of blocks, which may be nested, with one thread that takes samples."""

    def __init__(self) -> None:
        self._measured: list[Peak] = []
        self._ended = threading.Event()

    def __enter__(self) -> "PeakMemory":
        threading.Thread(target=self._sample, name="peak memory", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def measured(self) -> Iterator[Peak]:
        """The peak while the block runs: of the samples, and of this process exactly where it grew to it."""
        peak, before = Peak(resident()), high_water()
        self._measured.append(peak)
        try:
            yield peak
        finally:
            self._measured.remove(peak)
            after = high_water()
            peak.bytes = max(peak.bytes, resident(), after if after > before else 0)

    def _sample(self) -> None:
        while not self._ended.wait(INTERVAL):
            if self._measured:
                now = resident()
                for peak in list(self._measured):
                    peak.bytes = max(peak.bytes, now)


def resident() -> int:
    """Resident bytes of this process and of all processes below it; 0 where there is no /proc."""
    total, processes = 0, [str(os.getpid())]
    while processes:
        process = Path("/proc", processes.pop())
        with contextlib.suppress(OSError, IndexError):  # it has ended
            total += int((process / "statm").read_text().split()[1]) * PAGE
            for thread in os.listdir(process / "task"):
                with contextlib.suppress(OSError):
                    processes += (process / "task" / thread / "children").read_text().split()
    return total


def high_water() -> int:
    """The most bytes that this process alone has had in memory since it began to run its program.

    On Linux by VmHWM: getrusage counts what the parent had when it started the process, too.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
