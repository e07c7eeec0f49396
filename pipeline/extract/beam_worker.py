"""Fill the store by Beam's workers: a process holds one network, the graph carries numbers of shards alone.

bottlenecks.partial/  _missing.arrow         a batch a shard: digests of images, where their records are
                      _backbone/             for the workers, who check its fingerprint
                      _failed/<shard>        why a shard could not be made
"""

import functools
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.engines.backbones import Backbone, read_backbone, start_tensorflow
from features.engines.choose import use_engine
from features.records import Piece, read_pieces
from features.storage.artifact import Artifact, open_artifact
from features.storage.paths import AnyPath, absolute, any_path, remove, write_whole, writing
from features.storage.store import Digests, Locations, Store, digest_array, digests_of, shard_name
from features.views import View
from pipeline.beam.run_units import run_units
from pipeline.extract.fill_store import RECORD, engines_of, fill, make_shard, require_all, spread, try_twice
from pipeline.job.config import ExtractSettings
from pipeline.job.room import require_disk

if TYPE_CHECKING:
    from apache_beam.utils.shared import Shared

MISSING, NETWORK, FAILED = "_missing.arrow", "_backbone", "_failed"


def fill_store_on_beam(
    views: Sequence[Store],
    digests: Digests,
    records: Artifact,
    backbone: Backbone,
    settings: ExtractSettings,
    beam: tuple[str, ...],
    work: AnyPath,
) -> dict[View, Locations]:
    """As `fill_store`, on Beam's workers.

    Args:
        views: their stores, of the backbone; workers write there.
        digests: of the images of the records.
        records: workers read them.
        backbone: frozen; workers load its weights from `work`.
        settings: the section [extract].
        beam: Beam's own options.
        work: the working directory, which workers see.
    """

    def extract_shards(stores: Sequence[Store], shards: list[np.ndarray]) -> None:
        from apache_beam.utils.shared import Shared

        certain = len(stores) * sum(map(len, shards)) * backbone.width * np.float16().nbytes
        require_disk("extract", stores[0].path, certain)
        remove(work / FAILED)
        _write_missing(shards, digests.values, records.file("images.parquet"), work / MISSING)
        sample = functools.partial(_sample, records)
        network = share_network(backbone, work, stores, settings, sample)
        paths = tuple(str(absolute(store.path)) for store in stores)
        job = _Job(str(absolute(records.path)), paths, str(absolute(work)), network)
        do = functools.partial(_make_unit, job=job, loaded=Shared())
        marks = [f"{shard_name(digests.values[shard])}.parquet" for shard in shards]
        last = absolute(stores[-1].path)  # written last
        run_units("extract", list(range(len(shards))), do, last, beam, marks)
        require_all(stores, failures(work))

    return fill(views, digests, settings, extract_shards)


@dataclass(frozen=True)
class _Job:
    """What workers have to know."""

    records: str  # path of the records
    stores: tuple[str, ...]  # paths of the views' stores, which one network computes
    work: str  # path of the working directory
    network: "SharedNetwork"


def _write_missing(shards: list[np.ndarray], digests: np.ndarray, images: Path, file: AnyPath) -> None:
    rows = pq.read_table(images, columns=list(RECORD))
    schema = pa.schema([("image_digest", pa.binary(32)), *rows.schema.remove_metadata()])
    with writing(file) as working, pa.ipc.new_file(working, schema) as writer:
        for shard in shards:
            chosen = rows.take(pa.array(shard)).combine_chunks()
            columns = [digest_array(digests[shard]), *(column.chunk(0) for column in chosen.columns)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _sample(records: Artifact, most: int) -> Iterator[Piece]:
    """Pieces of at most `most` images of the records, evenly spread."""
    rows = pq.read_table(records.file("images.parquet"), columns=list(RECORD))
    return read_pieces(records.path, rows.take(pa.array(spread(np.arange(len(rows)), most))).to_pandas())


def _sample_of_records(records: str, most: int) -> Iterator[Piece]:
    return _sample(open_artifact(any_path(records), "records"), most)


def _make_unit(number: int, mark: AnyPath, *, job: _Job, loaded: "Shared") -> None:
    """Makes a shard in a worker; when that fails, the reason goes into a file and the job continues."""
    work, stores = any_path(job.work), [Store(any_path(path)) for path in job.stores]
    sample = functools.partial(_sample_of_records, job.records)
    here: LoadedNetwork = loaded.acquire(functools.partial(LoadedNetwork, job.network, stores, sample))
    with (work / MISSING).open("rb") as file:
        rows = pa.Table.from_batches([pa.ipc.open_file(file).get_batch(number)])
    digests = digests_of(rows["image_digest"])
    records = rows.select(RECORD).to_pandas()

    def read() -> Iterator[Piece]:
        return read_pieces(any_path(job.records), records)

    engine = here.engines[stores[0].of.network]
    here.make(mark.stem, lambda: make_shard(stores, digests, read, engine, job.network.weights))


# The network of a worker


@dataclass(frozen=True)
class SharedNetwork:
    """A network as workers get it: its weights are in a directory that they see."""

    work: str  # the directory
    weights: str  # what its weights are called
    fingerprint: str
    settings: ExtractSettings


def share_network(
    backbone: Backbone,
    work: AnyPath,
    stores: Sequence[Store],
    settings: ExtractSettings,
    sample: Callable[[int], Iterator[Piece]],
) -> SharedNetwork:
    """Saves a network for workers; int8 is fitted here once, for all of them.

    Args:
        backbone: the network.
        work: directory that workers see.
        stores: of the backbone's views.
        settings: the section [extract].
        sample: see `engine_of`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        backbone.save(Path(scratch))
        for file in Path(scratch).iterdir():
            write_whole(work / NETWORK / file.name, file.read_bytes())
    if settings.precision == "int8":
        engines_of(backbone, stores, settings, sample)
    return SharedNetwork(str(absolute(work)), backbone.weights, backbone.fingerprint, settings)


class LoadedNetwork:
    """The network of a worker process; a shard at a time, for it uses all cores by itself."""

    def __init__(
        self, network: SharedNetwork, stores: Sequence[Store], sample: Callable[[int], Iterator[Piece]]
    ) -> None:
        """Loads the network.

        Raises:
            ShelfmarkError: it is another one here.
        """
        use_engine(network.settings.engine)
        start_tensorflow()
        self._turn, self._work = threading.Lock(), any_path(network.work)
        backbone = read_backbone(self._work / NETWORK, network.fingerprint)
        self.engines = engines_of(backbone, stores, network.settings, sample)

    def make(self, shard: str, make: Callable[[], object]) -> None:
        """Makes a shard; when that fails twice, the reason goes into a file and the job continues."""
        with self._turn:
            reason = try_twice(make)
        if reason:
            write_whole(self._work / FAILED / shard, reason.encode())


def failures(work: AnyPath) -> dict[str, str]:
    """Why shards could not be made by workers, by their names."""
    return {file.name: file.read_text() for file in (work / FAILED).glob("*")}
