"""Shards: the bottlenecks that a store lacks, made here one after the other, or by Beam's workers.

What is missing is cut in the order of the images. A finished shard leaves the other cuts as they were, so a
killed job goes on to the same shards, of the same names and bytes, as an undisturbed one.

On Beam a process holds one network, and the graph carries numbers of shards and counts alone:

    bottlenecks.partial/  _missing.arrow         a batch a shard: digests and places of its records
                          _backbone.weights.h5   for the workers, who check its fingerprint
                          _failed/<shard>        why a shard could not be made
"""

import errno
import functools
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.engines.backbones import Backbone, load_backbone, start_tensorflow
from features.engines.choose import Calibration, Engine, choose_engine, extract, use_engine
from features.errors import ShelfmarkError
from features.records import Piece, read_pieces
from features.storage.artifact import Artifact, open_artifact
from features.storage.paths import Place, local, place, remove, write_whole, writing
from features.storage.store import Digests, Places, Store, StoredRows, digest_array, digests_of, shard_name
from pipeline.beam.run_units import run_units
from pipeline.job.config import Extract
from pipeline.job.stage import Progress, log
from pipeline.sources.image import Changed

if TYPE_CHECKING:
    from apache_beam.utils.shared import Shared

RECORD = ("file", "offset", "length")  # columns of images.parquet: where a record stands
MISSING, WEIGHTS, FAILED = "_missing.arrow", "_backbone.weights.h5", "_failed"
MOST_FAILED = 10  # shards; after so many the others will not do better
ALL_ZERO = (
    "the bottlenecks are all zero; expected a backbone that tells images apart; give other --weights "
    "(random ones are for networks such as inception_v3)"
)
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # for every shard alike


def fill_store(
    store: Store,
    digests: Digests,
    read: Callable[[np.ndarray], Iterator[Piece]],
    load: Callable[[], Backbone],
    settings: Extract,
) -> Places:
    """Extracts what the store lacks in this process; an identical image once.

    Args:
        store: of the backbone.
        digests: of the images.
        read: numbers of images → pieces of their strict JPEGs, in order; called again when a shard is
            tried again.
        load: loads the backbone; called when an image is missing.
        settings: the section [extract].

    Returns:
        Where the images stand.

    Raises:
        ShelfmarkError: shards could not be made; the others are kept.
        OSError: the disk is full, not writable, …
    """

    def make(shards: list[np.ndarray]) -> None:
        failed: dict[str, str] = {}
        backbone = load()
        engine = _engine(backbone, store, settings, lambda most: read(_spread(np.concatenate(shards), most)))
        with Progress("extract", sum(map(len, shards))) as progress:
            for number, shard in enumerate(shards):
                told = functools.partial(_told, read, shard, number * settings.shard_images, progress)
                own = digests.values[shard]
                make_it = functools.partial(_make_shard, store, own, told, engine, backbone.weights)
                if reason := _twice(make_it):
                    failed[shard_name(own)] = reason
                if len(failed) == MOST_FAILED:
                    break
        _require_all(store, failed)

    return _fill(store, digests, settings, make)


def rows_of(
    store: Store,
    flip: bool,
    digests: Digests,
    read: Callable[[np.ndarray], Iterator[Piece]],
    load: Callable[[], Backbone],
    settings: Extract,
) -> StoredRows:
    """The bottlenecks of images, made where the store lacks them.

    Args:
        store: of the backbone.
        flip: each image's is followed by that of the mirrored image.
        digests: of n images.
        read: as for `fill_store`.
        load: as for `fill_store`.
        settings: the section [extract].

    Returns:
        (n, d), with flip (2n, d).
    """
    views = []
    for view in (store, store.mirrored()) if flip else (store,):
        places = fill_store(view, digests, read, load, settings)
        views.append(view.rows(places.names, places.shard, places.row))
    return views[0].beside(views[1]) if flip else views[0]


def fill_store_on_beam(
    store: Store,
    digests: Digests,
    records: Artifact,
    backbone: Backbone,
    settings: Extract,
    beam: tuple[str, ...],
    work: Place,
) -> Places:
    """As `fill_store`, on Beam's workers.

    Args:
        store: of the backbone; workers write there.
        digests: of the images of the records.
        records: workers read them.
        backbone: frozen; workers load its weights from `work`.
        settings: the section [extract].
        beam: Beam's own options.
        work: the working directory, which workers see.
    """

    def make(shards: list[np.ndarray]) -> None:
        from apache_beam.utils.shared import Shared

        remove(work / FAILED)
        _write_missing(shards, digests.values, records.file("images.parquet"), work / MISSING)
        _save_weights(backbone, work / WEIGHTS)
        if settings.precision == "int8":  # fitted once, for all workers
            _engine(backbone, store, settings, functools.partial(_sample, records))
        job = _Job(
            str(_absolute(records.path)), str(_absolute(work)),
            backbone.name, backbone.weights, backbone.image_size, backbone.fingerprint, settings,
        )  # fmt: skip
        do = functools.partial(_make_unit, job=job, loaded=Shared())
        marks = [f"{shard_name(digests.values[shard])}.parquet" for shard in shards]
        run_units("extract", list(range(len(shards))), do, _absolute(store.path), beam, marks)
        _require_all(store, {file.name: file.read_text() for file in (work / FAILED).glob("*")})

    return _fill(store, digests, settings, make)


def _fill(
    store: Store, digests: Digests, settings: Extract, make: Callable[[list[np.ndarray]], None]
) -> Places:
    """Cuts what the store lacks into shards for `make`, each the numbers of its images."""
    places = store.find(digests)
    missing = np.flatnonzero(digests.first & (places.row < 0))
    if not len(missing):
        return places
    size = settings.shard_images
    make([missing[start : start + size] for start in range(0, len(missing), size)])
    places = store.find(digests)
    if (places.row < 0).any():
        raise ShelfmarkError(
            f"{store.path}: lacks images that were just extracted; expected a store at rest; run again"
        )
    return places


def _told(
    read: Callable[[np.ndarray], Iterator[Piece]], shard: np.ndarray, done: int, progress: Progress
) -> Iterator[Piece]:
    for piece in read(shard):
        progress.to(done)
        done += len(piece.starts)
        yield piece


def _engine(
    backbone: Backbone, store: Store, settings: Extract, sample: Callable[[int], Iterator[Piece]]
) -> Engine:
    """The engine of the settings; int8 is fitted to a sample of the images, for both views together."""
    kept = store.path.parent if store.flip else store.path
    return choose_engine(
        backbone, settings.batch, settings.engine, settings.precision, Calibration(kept, sample)
    )


def _spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly spread."""
    return numbers[:: -(-len(numbers) // most)]


# One shard


class _Useless(ShelfmarkError):
    """Bottlenecks that nothing can be learnt from; tried again, they are the same."""


def _make_shard(
    store: Store, digests: np.ndarray, read: Callable[[], Iterator[Piece]], engine: Engine, weights: str
) -> None:
    """Extracts the images of a shard, whose digests are (n, 32) uint8, and appends it.

    Ingest has decoded every image: here nothing is rejected, and `extract` refuses more or fewer images.
    """
    bottlenecks = extract(engine, read(), len(digests), flip=store.flip)
    _require_use(bottlenecks, weights, store)
    store.append(digests, bottlenecks, engine=engine.told)


def _require_use(bottlenecks: np.ndarray, weights: str, store: Store) -> None:
    """Raises _Useless about numbers that are not finite, and about a store that would begin with zeros.

    Later a shard may be all zero: it can be the one of a single image.
    """
    if lost := np.count_nonzero(~np.isfinite(bottlenecks).all(axis=1)):
        raise _Useless(
            f"weights {weights}: {lost:,} of {len(bottlenecks):,} bottlenecks are infinite or no numbers; "
            "expected numbers up to 65,504, the largest of float16; give other --weights"
        )
    if not bottlenecks.any() and not store.shards():
        raise _Useless(ALL_ZERO)


def _twice(make: Callable[[], object]) -> str:
    """Tries twice; the reason when it fails twice, "" when not.

    What would fail every shard alike, as a full disk or useless weights, is raised at once: hours of work
    could not be kept.
    """
    reason = ""
    for again in (True, False):
        try:
            make()
            return ""
        except Exception as error:
            if isinstance(error, _Useless | Changed) or (
                isinstance(error, OSError) and error.errno in HOPELESS
            ):
                raise
            told = " ".join(str(error).split())[:300]
            reason = told if isinstance(error, ShelfmarkError) else f"{type(error).__name__}: {told}"
            if again:
                log.info("extract: a shard failed (%s); trying it again", reason)
    return reason


def _require_all(store: Store, failed: Mapping[str, str]) -> None:
    """Raises a ShelfmarkError about the first of the failed shards, name → reason."""
    for name in sorted(failed)[:1]:
        others = f", {len(failed) - 1} others neither" if len(failed) > 1 else ""
        raise ShelfmarkError(
            f"{store.path}: shard {name} could not be made in two tries ({failed[name]}){others}; expected "
            "every image of the records; mend that, and the same command makes what is missing"
        )


# By workers


@dataclass(frozen=True)
class _Job:
    """What workers have to know."""

    records: str  # their place
    work: str  # place of the working directory
    backbone: str  # as in keras.applications
    weights: str  # what its weights are called; they stand in `work`
    image_size: int  # px
    fingerprint: str
    settings: Extract


class _Loaded:
    """The network of a worker process; a shard at a time, for it uses all cores by itself."""

    def __init__(self, job: _Job, store: Store) -> None:
        use_engine(job.settings.engine)
        start_tensorflow()
        self.turn = threading.Lock()
        weights = place(job.work) / WEIGHTS
        backbone = load_backbone(job.backbone, str(local(weights)), job.image_size)
        if backbone.fingerprint != job.fingerprint:
            raise ShelfmarkError(
                f"{weights}: has fingerprint {backbone.fingerprint} in a worker; expected "
                f"{job.fingerprint}; install the command's versions of shelfmark and Keras there"
            )
        sample = functools.partial(_sample, open_artifact(place(job.records), "records"))
        self.engine = _engine(backbone, store, job.settings, sample)


def _absolute(path: Place) -> Place:
    return path.absolute() if isinstance(path, Path) else path  # a worker may stand elsewhere


def _write_missing(shards: list[np.ndarray], digests: np.ndarray, images: Path, file: Place) -> None:
    rows = pq.read_table(images, columns=list(RECORD))
    schema = pa.schema([("image_digest", pa.binary(32)), *rows.schema.remove_metadata()])
    with writing(file) as working, pa.ipc.new_file(working, schema) as writer:
        for shard in shards:
            chosen = rows.take(pa.array(shard)).combine_chunks()
            columns = [digest_array(digests[shard]), *(column.chunk(0) for column in chosen.columns)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _sample(records: Artifact, most: int) -> Iterator[Piece]:
    """Pieces of at most so many images of the records, evenly spread."""
    rows = pq.read_table(records.file("images.parquet"), columns=list(RECORD))
    return read_pieces(records.path, rows.take(pa.array(_spread(np.arange(len(rows)), most))).to_pandas())


def _save_weights(backbone: Backbone, file: Place) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, file.name)
        backbone.save_weights(weights)
        write_whole(file, weights.read_bytes())


def _make_unit(number: int, mark: Place, *, job: _Job, loaded: "Shared") -> None:
    """Makes a shard in a worker; why it cannot be made goes into a file, and the job goes on."""
    work = place(job.work)
    store = Store(mark.parent)
    here: _Loaded = loaded.acquire(functools.partial(_Loaded, job, store))
    with (work / MISSING).open("rb") as file:
        rows = pa.Table.from_batches([pa.ipc.open_file(file).get_batch(number)])
    digests = digests_of(rows["image_digest"])
    records = rows.select(RECORD).to_pandas()

    def read() -> Iterator[Piece]:
        return read_pieces(place(job.records), records)

    with here.turn:
        reason = _twice(lambda: _make_shard(store, digests, read, here.engine, job.weights))
    if reason:
        write_whole(work / FAILED / mark.stem, reason.encode())
