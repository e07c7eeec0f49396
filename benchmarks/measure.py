"""What the benchmarks share: a command's seconds and peak memory, conditions, tables, verdicts.

Peak memory is the largest sum of resident sizes (RSS) over the command's process tree, sampled every 50 ms.
Pages that processes share count once for each of them, so with several it is an upper bound; proportional
sizes (PSS) would depend on who else on the machine maps the same libraries.
"""

import importlib.metadata
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

INTERVAL = 0.05  # s between samples
MB = 10**6


@dataclass(frozen=True)
class MeasuredCommand:
    """A command that has run, with what it took."""

    seconds: float  # from its start to its end, on the wall
    cpu_seconds: float  # of all its processes
    peak: int  # bytes, see above
    processes: int  # at most, at the same time
    output: str  # stdout


def run(command: Sequence[str]) -> MeasuredCommand:
    """Runs a command to its end.

    Raises:
        RuntimeError: it does not end with 0; the message has the end of its output.
    """
    os.sync()  # so that nothing of the command before is still being written
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, cpu = time.monotonic(), _cpu()
        process = psutil.Popen(command, stdout=out, stderr=err)
        peak = processes = 0
        try:
            while process.poll() is None:
                resident = _resident(process)
                peak, processes = max(peak, sum(resident)), max(processes, len(resident))
                try:
                    process.wait(INTERVAL)
                except psutil.TimeoutExpired:
                    continue
        finally:
            _end(process)
        seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        if process.returncode:
            output = (out.read() + err.read())[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {output}")
        return MeasuredCommand(seconds, _cpu() - cpu, peak, processes, out.read())


def _cpu() -> float:
    """Seconds of processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident(process: psutil.Process) -> list[int]:
    """Resident bytes of every process of the tree."""
    sizes = []
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for member in tree:
        try:
            sizes.append(member.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return sizes


def _end(process: psutil.Process) -> None:
    """Ends the process and its children, also when the benchmark is interrupted."""
    if process.is_running():
        for member in [*process.children(recursive=True), process]:
            member.kill()
        process.wait()


def median(values: Iterable[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def conditions(*packages: str) -> dict[str, Any]:
    """Where it was measured: machine, cores, Python, versions of packages."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]


def verdict(what: str, value: float, target: float, unit: str, *, at_least: bool = False) -> dict[str, Any]:
    """A figure against its target: {"what", "value", "target", "passed"}; printed as one line."""
    value = float(value)  # NumPy's numbers and truths are not those of JSON
    passed = value >= target if at_least else value <= target
    sign = ">=" if at_least else "<="
    print(f"{'pass' if passed else 'FAIL'}: {what}: {value:.2f}{unit} (target {sign} {target:g}{unit})")
    return {"what": what, "value": round(value, 3), "target": f"{sign} {target:g}{unit}", "passed": passed}
