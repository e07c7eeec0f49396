"""Units of work on Beam: Create → Reshuffle → ParDo(unit) → one CombineGlobally, on any runner.

A unit's result is the file `unit-00000.parquet` in a folder that all workers see, written last and whole; the
graph carries counts alone. So a second run, after whatever end of the first, does what is not there.
"""

import contextlib
import io
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from pipeline.stage import Progress

# named, because DirectRunner would first try to download another one
LOCAL = [
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_threading",
    f"--direct_num_workers={os.cpu_count()}",
]


def unit_file(folder: Path, number: int) -> Path:
    """Where the result of a unit stands."""
    return folder / f"unit-{number:05d}.parquet"


def run_units(
    what: str, units: list[Any], do: Callable[[Any, Path], None], folder: Path, beam: tuple[str, ...]
) -> None:
    """Runs `do(unit, file)` for every unit whose file is not there yet.

    Args:
        what: said by the progress bar.
        units: picklable.
        do: picklable; makes the file, whole or not at all.
        folder: of the files.
        beam: Beam's options, over the local ones.

    Raises:
        ShelfmarkError: `do` met bad input. OSError: the disk is full, not writable, …
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()
    missing = [(number, unit) for number, unit in enumerate(units) if not unit_file(folder, number).is_file()]
    if not missing:
        return
    with Progress(what, len(units)) as progress, _watch(folder, progress):
        _run_pipeline(missing, do, str(folder), beam)


def _run_pipeline(
    numbered: list[tuple[int, Any]], do: Callable[[Any, Path], None], folder: str, beam: tuple[str, ...]
) -> None:
    import apache_beam as beam_sdk
    from apache_beam.options.pipeline_options import PipelineOptions

    def work(numbered_unit: tuple[int, Any]) -> int:
        number, unit = numbered_unit
        try:
            do(unit, unit_file(Path(folder), number))
        except Exception as error:
            raise RuntimeError(_in_words(error)) from error
        return 1

    options = PipelineOptions([*LOCAL, *beam])
    # Beam logs and prints an error in a worker in 500 lines; they are all in the error that it raises, too.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), beam_sdk.Pipeline(options=options) as pipeline:
            units = pipeline | beam_sdk.Create(numbered) | beam_sdk.Reshuffle()
            _ = units | beam_sdk.Map(work) | beam_sdk.CombineGlobally(sum)
    except SystemExit as stop:  # of the parser of Beam's options
        told = (said.getvalue().strip().splitlines() or ["no reason told"])[-1]
        raise ShelfmarkError(
            f"Beam refused {' '.join(beam)} ({told}); expected Beam's options after --"
        ) from stop
    except Exception as error:
        raise _cause(error) from error


# Of an error in a worker most runners hand back the text alone, somewhere in a traceback.
IN_A_WORKER = "error in a worker: "


def _in_words(error: Exception) -> str:
    """An error as text, from which `_cause` makes it again."""
    told: list[Any]
    if isinstance(error, ShelfmarkError):
        told = ["ShelfmarkError", str(error)]
    elif isinstance(error, OSError) and error.strerror:
        told = ["OSError", error.errno, error.strerror, error.filename and str(error.filename)]
    else:
        told = ["RuntimeError", f"{type(error).__name__}: {error}"]
    return IN_A_WORKER + json.dumps(told)


def _cause(error: Exception) -> Exception:
    """What went wrong in a worker, or else the runner's own error."""
    _, found, text = str(error).partition(IN_A_WORKER)
    if not found:
        return error
    kind, *told = json.JSONDecoder().raw_decode(text)[0]
    return {"ShelfmarkError": ShelfmarkError, "OSError": OSError, "RuntimeError": RuntimeError}[kind](*told)


class _watch:
    """Tells the progress from the files that are there: it works alike on every runner."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress, self._over = folder, progress, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self._progress.to(sum(1 for _ in self._folder.glob("unit-*.parquet")))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def write_table(table: pa.Table, file: Path) -> None:
    """Writes a Parquet file whole or not at all."""
    working = file.with_name(file.name + ".tmp")
    pq.write_table(table, working)
    os.replace(working, file)
