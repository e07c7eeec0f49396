"""Units of work: on the cores of this computer, or with Beam's options on any of its runners.

    without options    process_pool.py; Beam is not imported
    on Beam            Create → Reshuffle → ParDo(unit) → one CombineGlobally

A result is a file (`unit-00000.parquet`, or a name of its own) in a folder that all workers see, written
last and whole; the graph carries counts alone. So a second run, after whatever end of the first, does what is
not there.
"""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.memory import give_back
from features.output import log_is_open, others_output
from features.storage.object_stores import s3_settings, use_s3_settings
from features.storage.paths import AnyPath, Remote, any_path, sizes, writing
from pipeline.beam.process_pool import local_workers
from pipeline.beam.worker_errors import as_text, from_text
from pipeline.job.progress import Progress

# what Beam's options say otherwise holds; named, because DirectRunner would first try to download another one
LOCAL = [
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_threading",
    f"--direct_num_workers={os.cpu_count()}",
]


def unit_file(folder: AnyPath, number: int) -> AnyPath:
    """Where the result of a unit stands."""
    return folder / _name(number)


def _name(number: int) -> str:
    return f"unit-{number:05d}.parquet"


def run_units(
    what: str,
    units: list[Any],
    do: Callable[[Any, AnyPath], None],
    folder: AnyPath,
    beam: tuple[str, ...],
    names: list[str] | None = None,
) -> None:
    """Runs `do(unit, file)` for every unit whose file is not there yet.

    Args:
        what: shown by the progress bar.
        units: picklable.
        do: picklable; makes the file, whole or not at all.
        folder: of the files.
        beam: Beam's options; without them the cores of this computer work.
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
    with Progress(what, len(units)) as progress, _watched(folder, frozenset(names), progress):
        give_back()  # of what was done before
        if beam:
            return _run_on_beam(missing, do, str(folder), beam)
        with local_workers() as workers:
            workers.run(do, [(unit, folder / name) for name, unit in missing])


def _missing(named: list[tuple[str, Any]], folder: AnyPath) -> list[tuple[str, Any]]:
    """The units whose file is not there."""
    there = sizes(folder)
    return [unit for unit in named if unit[0] not in there]


def _run_on_beam(
    named: list[tuple[str, Any]], do: Callable[[Any, AnyPath], None], folder: str, beam: tuple[str, ...]
) -> None:
    import apache_beam as beam_sdk

    s3 = s3_settings()

    def work(named_unit: tuple[str, Any]) -> int:
        name, unit = named_unit
        use_s3_settings(s3)
        try:
            do(unit, any_path(folder) / name)
        except Exception as error:
            raise as_text(error) from error
        return 1

    options = _options(beam)
    try:
        with _quiet(), beam_sdk.Pipeline(options=options) as pipeline:
            units = pipeline | beam_sdk.Create(named) | beam_sdk.Reshuffle()
            _ = units | beam_sdk.Map(work) | beam_sdk.CombineGlobally(sum)
    except Exception as error:
        cause = from_text(error)
        if isinstance(cause, ValueError):  # an unknown runner, …
            raise _refusal(beam, str(cause)) from error
        raise cause from error


def _options(beam: tuple[str, ...]) -> Any:
    """Beam's options as Beam reads them."""
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions([*LOCAL, *beam])
            mode = options.view_as(DirectOptions).direct_running_mode
    except SystemExit as stop:  # of the parser, which prints its usage
        raise _refusal(beam, complaint.getvalue().strip().rpartition("error: ")[2]) from stop
    if mode == "multi_processing":
        raise ShelfmarkError(
            "--direct_running_mode=multi_processing: Beam waits for ever for a worker that was killed; "
            "expected multi_threading or in_memory; leave it out: without Beam's options all cores work"
        )
    return options


def _refusal(beam: tuple[str, ...], reason: str) -> ShelfmarkError:
    words = " ".join(reason.split())[:200]
    return ShelfmarkError(
        f"Beam refused {' '.join(beam)} ({words}); expected Beam's options after --; correct them"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Beam's lines off standard error: a worker's error is 500 of them, and is raised, too.

    With a log file they are there; without one nowhere.
    """
    if log_is_open():
        with others_output():
            yield
        return
    root = logging.getLogger()
    before = root.level
    for logger in (root, logging.getLogger("apache_beam"), logging.getLogger("PrismJobServer")):
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(before)  # not those of the two others, which may have last words


@contextlib.contextmanager
def _watched(folder: AnyPath, names: frozenset[str], progress: Progress) -> Iterator[None]:
    """Shows progress by the files that are there, which works alike on every runner."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(30 if isinstance(folder, Remote) else 0.5):  # a remote listing is expensive
            with contextlib.suppress(OSError, ShelfmarkError):  # workers meet the same, and raise it
                progress.to(sum(file.name in names for file in folder.glob("*.parquet")))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def write_table(table: pa.Table, file: AnyPath) -> None:
    """Writes a Parquet file whole or not at all."""
    with writing(file) as working:
        pq.write_table(table, working)


def write_rows(rows: list[Any], schema: pa.Schema, file: AnyPath) -> None:
    """Writes rows, tuples with a value for each column of the schema, as `write_table` does."""
    columns = zip(*rows, strict=True)
    write_table(pa.table(list(map(list, columns)) or [[]] * len(schema), schema=schema), file)


def rows_in(file: AnyPath) -> int:
    """The number of rows of a Parquet file."""
    with file.open("rb") as opened:
        return int(pq.read_metadata(opened).num_rows)
