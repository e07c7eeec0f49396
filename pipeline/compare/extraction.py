"""One backbone in a process of its own: extracts what the store lacks, then measures speed and memory.

    parent → stdin    sys.path, S3 settings, Extraction; open until the parent ends
    stdout → parent   (level, line) of the log …, then an ExtractionResult or the error that it ended with

A network's memory is given back to the system only when its process ends: in one process the peak of a large
network would hide those of all that follow.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.engines.backbones import Backbone, KerasBackbone
from features.errors import ShelfmarkError
from features.storage.artifact import open_artifact
from features.storage.object_stores import s3_settings, use_s3_settings
from features.storage.paths import AnyPath, absolute
from features.storage.store import Digests, Store
from pipeline.compare.candidates import Candidate
from pipeline.job.memory import high_water
from pipeline.job.progress import log
from pipeline.job.run import Run

MEASURED = 256  # photos whose extraction is timed, after WARM_UP batches
WARM_UP = 2
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from pipeline.compare.extraction import serve; serve()"
)


@dataclass(frozen=True)
class Extraction:
    """What the process does."""

    run: Run  # whose records are extracted, into its store
    candidate: Candidate | None  # None: the run's own backbone
    fingerprint: str | None  # of the run's own


@dataclass(frozen=True)
class ExtractionResult:
    """A backbone, and what its extraction takes here."""

    name: str
    weights: str  # what they are called
    fingerprint: str
    image_size: int  # px
    width: int  # d, numbers in a bottleneck
    parameters: int  # of the network as far as it runs
    engine: str
    images_per_second: float  # photos read, decoded and extracted
    measured_images: int
    peak_memory: int  # bytes that the process had in memory at most, all of it counted


# In the parent


def extract_apart(work: Extraction) -> ExtractionResult:
    """Extracts and measures in a process of its own, whose log lines are shown here.

    Raises:
        ShelfmarkError: the backbone cannot be loaded or extracted, or the process was killed.
    """
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        for message in (sys.path, s3_settings(), work):
            pickle.dump(message, process.stdin)
        process.stdin.flush()
        while True:
            message = pickle.load(process.stdout)
            if isinstance(message, ExtractionResult):
                return message
            if isinstance(message, Exception):
                raise message
            log.log(*message)
    except (EOFError, BrokenPipeError):
        process.kill()
        raise ShelfmarkError(
            f"its process was killed, probably for lack of memory (exit status {process.wait()}); expected "
            "it to finish its work; rerun to continue, or lower extract.batch"
        ) from None
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# In the process


class _ToParent(logging.Handler):
    """Sends the lines of the log to the parent."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a line."""
        _send(self._stream, (record.levelno, record.getMessage().replace("%", "%%")))


def _send(stream: Any, message: object) -> None:
    pickle.dump(message, stream)
    stream.flush()


def serve() -> None:
    """Does the one piece of work that the parent sends; ends at once when the parent is gone."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is for the log file
    use_s3_settings(pickle.load(sys.stdin.buffer))
    work: Extraction = pickle.load(sys.stdin.buffer)

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()
    log.setLevel(logging.INFO)
    log.addHandler(_ToParent(results))
    try:
        _send(results, extract_and_measure(work))
    except ShelfmarkError as error:
        _send(results, ShelfmarkError(str(error)))
    except Exception as error:  # of Keras, of an engine: the parent tells it from its own errors by the type
        logging.getLogger().exception("extraction")
        _send(results, ShelfmarkError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def extract_and_measure(work: Extraction) -> ExtractionResult:
    """Fills the run's store, and measures.

    Raises:
        ShelfmarkError: the backbone cannot be loaded or extracted.
    """
    from features.engines.backbones import start_tensorflow
    from features.engines.choose import use_engine
    from pipeline.extract.fill_store import RecordReader, engine_of, fill_store, spread
    from pipeline.extract.index import read_digests

    settings = work.run.config.extract
    use_engine(settings.engine)
    start_tensorflow()
    backbone = _loaded(work)
    records = open_artifact(work.run.path / "records", "records")
    store, read = Store(work.run.store / backbone.fingerprint), RecordReader(records)
    digests = Digests(read_digests(records.file("images.parquet")))
    fill_store([store], digests, read, lambda: backbone, settings)
    numbers = np.arange(len(digests))
    engine = engine_of(backbone, store, settings, lambda most: read(spread(numbers, most)))
    from features.engines.engine import extract

    warm, timed = (spread(numbers, most) for most in (WARM_UP * engine.batch, MEASURED))
    extract(engine, read(warm), len(warm))
    started = time.monotonic()
    extract(engine, read(timed), len(timed))
    seconds = time.monotonic() - started
    return ExtractionResult(
        name=backbone.name,
        weights=backbone.weights,
        fingerprint=backbone.fingerprint,
        image_size=backbone.image_size,
        width=backbone.width,
        parameters=_parameters(backbone),
        engine=engine.name,
        images_per_second=len(timed) / seconds,
        measured_images=len(timed),
        peak_memory=high_water(),
    )


def _loaded(work: Extraction) -> Backbone:
    run, candidate = work.run, work.candidate
    if candidate is not None:
        return candidate.load(run)
    backbone = run.backbone
    if backbone.fingerprint != work.fingerprint:
        raise ShelfmarkError(
            f"the run's bottlenecks are of {work.fingerprint}; expected {backbone.fingerprint}, the backbone "
            "of its settings; run `shelfmark extract` first"
        )
    return backbone


def _parameters(backbone: Backbone) -> int:
    if isinstance(backbone, KerasBackbone):
        return int(backbone.network.count_params())
    return backbone.stored_bytes // 4  # of an ONNX file in float32, about


def whole(run: Run) -> Run:
    """The run with an absolute path: the process may be elsewhere."""
    workspace: AnyPath = absolute(run.workspace)
    return Run(workspace, run.name, run.config, run.based_on)
