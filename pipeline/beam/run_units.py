"""Units of work on Beam: Create → Reshuffle → ParDo(unit) → one CombineGlobally, on any runner.

A result is a file (`unit-00000.parquet`, or a name of its own) in a folder that all workers see, written
last and whole; the graph carries counts alone. So a second run, after whatever end of the first, does what is
not there.
"""

import contextlib
import io
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.paths import Place, Remote, beam_options, place, sizes, writing
from pipeline.beam.process_pool import WorkerDied, give_back, local_workers, run_here
from pipeline.job.progress import Progress, log

# named, because DirectRunner would first try to download another one
LOCAL = [
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_threading",
    f"--direct_num_workers={os.cpu_count()}",
]


# exit statuses of a process that Ctrl-C ended: as the system tells it, and as a shell does
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)


def unit_file(folder: Place, number: int) -> Place:
    """Where the result of a unit stands."""
    return folder / _name(number)


def _name(number: int) -> str:
    return f"unit-{number:05d}.parquet"


def run_units(
    what: str,
    units: list[Any],
    do: Callable[[Any, Place], None],
    folder: Place,
    beam: tuple[str, ...],
    names: list[str] | None = None,
) -> None:
    """Runs `do(unit, file)` for every unit whose file is not there yet.

    Args:
        what: said by the progress bar.
        units: picklable.
        do: picklable; makes the file, whole or not at all.
        folder: of the files.
        beam: Beam's options, over the local ones.
        names: of the units' files, in a folder that others write to, too; None: `unit_file`'s.

    Raises:
        ShelfmarkError: `do` met bad input. OSError: the disk is full, not writable, …
    """
    folder.mkdir(parents=True, exist_ok=True)
    if names is None:  # else a leftover may be a living job's
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
    names = names or [_name(number) for number in range(len(units))]
    missing = _missing(list(zip(names, units, strict=True)), folder)
    if not missing:
        return
    with (
        Progress(what, len(units)) as progress,
        _watch(folder, frozenset(names), progress),
        local_workers(beam) as workers,
    ):
        if workers and len(missing) > 1:
            workers.prepare(do)  # while Beam is imported
        give_back()  # of what was done before
        _run_pipeline(missing, do, str(folder), beam)


def _missing(named: list[tuple[str, Any]], folder: Place) -> list[tuple[str, Any]]:
    """The units whose file is not there."""
    there = sizes(folder)
    return [unit for unit in named if unit[0] not in there]


def _run_pipeline(
    named: list[tuple[str, Any]], do: Callable[[Any, Place], None], folder: str, beam: tuple[str, ...]
) -> None:
    """Runs the units; after the death of a worker process again, as long as each run finishes some."""
    while named:
        try:
            return _run_once(named, do, folder, beam)
        except WorkerDied as died:
            left = _missing(named, place(folder))
            if len(left) == len(named):
                raise
            log.info("%s: %s; going on", place(folder).name, str(died).partition(";")[0])
            named = left


def _run_once(
    named: list[tuple[str, Any]], do: Callable[[Any, Place], None], folder: str, beam: tuple[str, ...]
) -> None:
    import apache_beam as beam_sdk
    from apache_beam.options.pipeline_options import PipelineOptions

    def work(named_unit: tuple[str, Any]) -> int:
        name, unit = named_unit
        try:
            run_here(do, unit, place(folder) / name)
        except Exception as error:
            raise RuntimeError(_in_words(error)) from error
        return 1

    # a pipeline's options take the place of those that the object stores were reached with so far
    options = PipelineOptions([*LOCAL, *(beam or beam_options())])
    # Beam logs and prints an error in a worker in 500 lines; they are all in the error that it raises, too.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    for by_flink_or_prism in (None, "PrismJobServer"):  # None: the root logger, not those below it
        logging.getLogger(by_flink_or_prism).disabled = True
    said = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(said),
            _end_with_workers(),
            beam_sdk.Pipeline(options=options) as pipeline,
        ):
            units = pipeline | beam_sdk.Create(named) | beam_sdk.Reshuffle()
            _ = units | beam_sdk.Map(work) | beam_sdk.CombineGlobally(sum)
    except SystemExit as stop:  # of the parser of Beam's options
        told = (said.getvalue().strip().splitlines() or ["no reason told"])[-1]
        raise ShelfmarkError(
            f"Beam refused {' '.join(beam)} ({told}); expected Beam's options after --"
        ) from stop
    except WorkerDied:
        raise
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, ValueError) and beam:  # an unknown runner, …
            told = " ".join(str(cause).split())[:200]
            raise ShelfmarkError(
                f"Beam refused {' '.join(beam)} ({told}); expected Beam's options after --"
            ) from error
        raise cause from error


@contextlib.contextmanager
def _end_with_workers() -> Iterator[None]:
    """Ends the pipeline when one of its worker processes has died, and the processes when it is interrupted.

    FnApiRunner waits for the answer of a dead worker (--direct_running_mode=multi_processing) for ever, and
    when interrupted for the living ones. So all are ended, and then the wait, which only a signal ends.
    """
    died: list[int] = []
    over = threading.Event()

    def look(ended: threading.ExceptHookArgs) -> None:
        # of the thread that waits for a worker process, in Beam's SubprocessSdkWorker
        if not str(ended.exc_value).startswith("Worker subprocess exited"):
            usual(ended)
        elif not over.is_set():
            died.append(int(str(ended.exc_value).split()[-1]))
            signal.pthread_kill(main, signal.SIGINT)

    def interrupt(*_: object) -> None:
        if over.is_set():
            return
        over.set()
        for process in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        raise KeyboardInterrupt

    main = threading.main_thread().ident or 0
    usual, threading.excepthook = threading.excepthook, look
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not died or died[0] in INTERRUPTED:
            raise
        raise WorkerDied.of(died[0]) from None
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
        threading.excepthook = usual


def _descendants(process: int) -> Iterator[int]:
    """The children of a process and theirs; none where the system has no /proc."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # gone by itself
            for child in map(int, children.read_text().split()):
                yield from _descendants(child)
                yield child


# Of an error in a worker most runners hand back the text alone, somewhere in a traceback.
IN_A_WORKER = "error in a worker: "


def _in_words(error: Exception) -> str:
    """An error as text, from which `_cause` makes it again."""
    told: list[Any]
    if isinstance(error, ShelfmarkError):
        told = ["WorkerDied" if isinstance(error, WorkerDied) else "ShelfmarkError", str(error)]
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
    name, *told = json.JSONDecoder().raw_decode(text)[0]
    kinds = {kind.__name__: kind for kind in (ShelfmarkError, WorkerDied, OSError, RuntimeError)}
    return kinds[name](*told)


class _watch:
    """Tells the progress from the files that are there: it works alike on every runner."""

    def __init__(self, folder: Place, names: frozenset[str], progress: Progress) -> None:
        self._folder, self._names, self._progress = folder, names, progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(30 if isinstance(self._folder, Remote) else 0.5):  # a listing is dear
            with contextlib.suppress(OSError, ShelfmarkError):  # the workers will tell
                self._progress.to(sum(file.name in self._names for file in self._folder.glob("*.parquet")))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def write_table(table: pa.Table, file: Place) -> None:
    """Writes a Parquet file whole or not at all."""
    with writing(file) as working:
        pq.write_table(table, working)
