"""The second pass: images that the store lacks are decoded, once, and go straight to the backbone.

    _plan.arrow             a batch a shard of the store: digests of distinct new images, and their locations
    _new/<shard>.parquet    FOUND: what was found about the images of a planned shard; written last
    _failed/<shard>         why a shard could not be made
    _backbone.weights.h5    for Beam's workers

A unit of work makes a shard: it reads, checks and decodes its images again, whose bytes must be those of the
first pass. Images that are refused have no bottleneck. Without Beam's options this process makes one shard
after the other, because the backbone uses all cores by itself.
"""

import functools
import os
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.engines.backbones import Backbone
from features.engines.engine import Engine, extract, extract_readable
from features.images.normalise import normalise
from features.images.refusal import Limits, Refused
from features.records import Piece, pieces_of
from features.storage.paths import AnyPath, absolute, any_path, local, remove, writing
from features.storage.store import Store, digests_of, shard_name
from features.views import View
from pipeline.beam.run_units import run_units, write_table
from pipeline.categorize.digest_index import DigestIndex, build_index
from pipeline.extract.beam_worker import FAILED, LoadedNetwork, SharedNetwork, failures, share_network
from pipeline.extract.fill_store import (
    MOST_FAILED,
    append,
    engines_of,
    require_all,
    require_room,
    spread,
    stores_by_network,
    try_twice,
)
from pipeline.job.config import ExtractSettings
from pipeline.job.progress import Progress
from pipeline.sources.image import read_images, refuse_changed_container

if TYPE_CHECKING:
    from apache_beam.utils.shared import Shared

PLAN, NEW = "_plan.arrow", "_new"
LENGTH = struct.Struct("<Q")  # before each JPEG that is kept for other networks
PHOTOS = "the source's photos"
PLANNED = pa.schema(
    [
        ("image_digest", pa.binary(32)),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("checksum", pa.uint32()),
    ]
)
FOUND = pa.schema(
    [
        ("image_digest", pa.binary(32)),
        ("flat", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
SHARD = b"shard"  # in the metadata: name of the shard in the store, "" where all its images were refused
AHEAD = 4  # images being decoded, times the cores


# The plan


def plan_new(units: list[AnyPath], work: AnyPath, shard_images: int) -> list[str]:
    """Writes the plan of the distinct new images, in the sources' order; returns the names of its shards.

    Args:
        units: files of the first pass.
        work: working directory.
        shard_images: images in a shard.
    """
    first = _first_rows(units, work)
    names: list[str] = []
    with writing(work / PLAN) as working, pa.ipc.new_file(working, PLANNED) as writer:

        def write(table: pa.Table) -> None:
            writer.write_table(table.combine_chunks(), max_chunksize=shard_images)
            names.append(shard_name(digests_of(table["image_digest"])))

        waiting = PLANNED.empty_table()
        for start, rows in _new_rows(units) if first else ():
            assert first
            digests = digests_of(rows["image_digest"])
            chosen = first.take("row", first.find(digests)) == start
            waiting = pa.concat_tables([waiting, rows.filter(pa.array(chosen)).select(PLANNED.names)])
            while len(waiting) >= shard_images:
                write(waiting.slice(0, shard_images))
                waiting = waiting.slice(shard_images)
        if len(waiting):
            write(waiting)
    return names


def _new_rows(units: list[AnyPath]) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """The new images of each unit, with their numbers among all rows, (n,) int64."""
    start = 0
    for unit in units:
        with unit.open("rb") as file:
            rows = pq.read_table(file, columns=[*PLANNED.names, "new"])
        numbers = start + np.flatnonzero(rows["new"].to_numpy())
        start += len(rows)
        if len(numbers):
            yield numbers, rows.filter(rows["new"]).cast(pa.schema([*PLANNED, ("new", pa.bool_())]))


def _first_rows(units: list[AnyPath], work: AnyPath) -> DigestIndex | None:
    """The index of the new digests with the first row of each; None where nothing is new."""
    pieces = ((digests_of(rows["image_digest"]), {"row": numbers}) for numbers, rows in _new_rows(units))
    index = build_index(work / "_firsts", "first", pieces, {"row": np.int64})
    return index if len(index) else None


# Extraction


def extract_new(
    shards: list[str],
    work: AnyPath,
    views: Sequence[Store],
    load: Callable[[], Backbone],
    settings: ExtractSettings,
    limits: Limits,
    beam: tuple[str, ...],
) -> list[AnyPath]:
    """Makes the planned shards that are not there yet; returns the files of what was found.

    Args:
        shards: of `plan_new`.
        work: working directory, which Beam's workers see.
        views: their stores, of the backbone.
        load: loads the backbone; called when an image is new.
        settings: the section [extract].
        limits: of images.
        beam: Beam's own options; with any of them, its workers extract.

    Raises:
        ShelfmarkError: shards could not be made; the others are kept.
        OSError: the disk is full, not writable, …
    """
    marks = [work / NEW / f"{name}.parquet" for name in shards]
    (work / NEW).mkdir(parents=True, exist_ok=True)
    _forget_lost(marks, views)
    if all(mark.is_file() for mark in marks):
        return marks
    remove(work / FAILED)
    backbone = load()
    with pa.memory_map(str(local(work / PLAN))) as plan:
        images = pa.ipc.open_file(plan).read_all().num_rows
    require_room(views, images, backbone)
    stores = tuple(str(absolute(view.path)) for view in views)
    job = _Job(str(absolute(work)), stores, backbone.weights, limits)
    if beam:
        failed = _on_beam(job, backbone, settings, marks, beam)
    else:
        failed = _here(job, engines_of(backbone, views, settings, functools.partial(_sample, job)), marks)
    require_all(views, failed, "the bottlenecks of all new images")
    return marks


def _forget_lost(marks: list[AnyPath], views: Sequence[Store]) -> None:
    """Removes the marks of shards that a view's store does not have any more."""
    there = set.intersection(*(set(view.shards()) for view in views))
    for mark in marks:
        if mark.is_file():
            with mark.open("rb") as file:
                shard = pq.read_schema(file).metadata[SHARD].decode()
            if shard and shard not in there:
                mark.unlink()


@dataclass(frozen=True)
class _Job:
    """What workers have to know."""

    work: str  # working directory
    stores: tuple[str, ...]  # of the views
    weights: str  # what the network's weights are called
    limits: Limits

    @property
    def views(self) -> list[Store]:
        """The stores of the views."""
        return [Store(any_path(path)) for path in self.stores]


def _here(job: _Job, engines: Mapping[View, Engine], marks: list[AnyPath]) -> dict[str, str]:
    """Makes the shards in this process; returns why some could not be made."""
    failed: dict[str, str] = {}
    images = [len(_planned(job, number)) for number in range(len(marks))]
    with Progress("extract", sum(images)) as progress:
        for number, mark in enumerate(marks):
            progress.to(sum(images[:number]))
            if mark.is_file():
                continue
            if reason := try_twice(functools.partial(make_shard, number, mark, job, engines)):
                failed[mark.stem] = reason
            if len(failed) == MOST_FAILED:
                break
    return failed


def _on_beam(
    job: _Job,
    backbone: Backbone,
    settings: ExtractSettings,
    marks: list[AnyPath],
    beam: tuple[str, ...],
) -> dict[str, str]:
    """Makes the shards by Beam's workers; returns why some could not be made."""
    from apache_beam.utils.shared import Shared

    work = any_path(job.work)
    network = share_network(backbone, work, job.views, settings, functools.partial(_sample, job))
    do = functools.partial(_make_unit, job=job, network=network, loaded=Shared())
    names = [mark.name for mark in marks]
    run_units("extract", list(range(len(marks))), do, work / NEW, beam, names)
    return failures(work)


def _make_unit(number: int, mark: AnyPath, *, job: _Job, network: SharedNetwork, loaded: "Shared") -> None:
    """Makes a shard in a worker."""
    sample = functools.partial(_sample, job)
    here: LoadedNetwork = loaded.acquire(functools.partial(LoadedNetwork, network, job.views, sample))
    here.make(mark.stem, functools.partial(make_shard, number, mark, job, here.engines))


# One shard


class Outcome(NamedTuple):
    """What decoding an image found, as in FOUND."""

    flat: bool = False
    width: int = 0  # pixels
    height: int = 0  # pixels
    reason: str = ""
    detail: str = ""


def make_shard(number: int, mark: AnyPath, job: _Job, engines: Mapping[View, Engine]) -> None:
    """Makes the shard of planned images, appends it to the stores, and writes what was found about them.

    The images are read and decoded strictly for the views of the first network, together; those of the others
    take the JPEGs that this has kept.
    """
    rows, networks = _planned(job, number), stores_by_network(job.views)
    outcomes: list[Outcome] = []
    name = ""
    with tempfile.TemporaryFile() as kept:
        for stores in networks:
            engine, views = engines[stores[0].of.network], [store.of for store in stores]
            if stores is networks[0]:
                pieces = _pieces(rows, job.limits, outcomes, kept if len(networks) > 1 else None)
                found = extract_readable(engine, pieces, len(rows), views)
                good = np.array([not one.reason for one in outcomes], bool)
                digests = digests_of(rows["image_digest"])[good]
            else:
                found = extract(engine, _kept_pieces(kept), len(digests), views)
            if not len(digests):
                break
            name = append(stores, digests, found, engine, job.weights)
    columns = [rows["image_digest"].combine_chunks(), *map(list, zip(*outcomes, strict=True))]
    table = pa.table(dict(zip(FOUND.names, columns, strict=True)), schema=FOUND)
    write_table(table.replace_schema_metadata({SHARD: name}), mark)


def _planned(job: _Job, number: int) -> pa.Table:
    """The planned images of a shard."""
    with pa.memory_map(str(local(any_path(job.work) / PLAN))) as file:
        return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(number)])


def _pieces(
    rows: pa.Table, limits: Limits, outcomes: list[Outcome], kept: IO[bytes] | None = None
) -> Iterator[Piece]:
    """The strict JPEGs of those images that are not refused; adds an outcome for each image.

    With `kept` they are also written there, each behind its length, for `_kept_pieces`.
    """

    def jpegs() -> Iterator[bytes]:
        for jpeg, outcome in _decoded(rows, limits):
            outcomes.append(outcome)
            if outcome.reason:
                continue
            if kept:
                kept.write(LENGTH.pack(len(jpeg)) + jpeg)
            yield jpeg

    return pieces_of(jpegs(), source=PHOTOS)


def _kept_pieces(kept: IO[bytes]) -> Iterator[Piece]:
    """The JPEGs that `_pieces` has written."""

    def jpegs() -> Iterator[bytes]:
        kept.seek(0)
        while length := kept.read(LENGTH.size):
            yield kept.read(*LENGTH.unpack(length))

    return pieces_of(jpegs(), source=PHOTOS)


def _decoded(rows: pa.Table, limits: Limits) -> Iterator[tuple[bytes, Outcome]]:
    """The strict JPEG and the outcome of each image, in order; decoders run in threads."""
    columns = [rows[name].to_pylist() for name in ("file", "offset", "length", "checksum")]
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[tuple[bytes, Outcome]]] = deque()
        for file, photo in zip(columns[0], read_images(*columns), strict=True):
            if photo is None:
                refuse_changed_container(file)
            ahead.append(pool.submit(_checked, photo, limits))
            if len(ahead) >= AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _checked(photo: bytes | None, limits: Limits) -> tuple[bytes, Outcome]:
    if photo is None:
        return b"", Outcome(reason="changed", detail="gone, or not the same, when it was read again")
    try:
        found = normalise(photo, limits)
    except Refused as refused:
        return b"", Outcome(reason=refused.reason, detail=refused.detail)
    return found.jpeg, Outcome(found.flat, found.width, found.height)


def _sample(job: _Job, most: int) -> Iterator[Piece]:
    """Pieces of at most `most` of the planned images, evenly spread; refused ones are left out."""
    with pa.memory_map(str(local(any_path(job.work) / PLAN))) as file:
        rows = pa.ipc.open_file(file).read_all()
        chosen = rows.take(pa.array(spread(np.arange(len(rows)), most)))
    return _pieces(chosen, job.limits, [])


# What was found


class Found:
    """What extraction found about the new images, by their digests."""

    def __init__(self, marks: list[AnyPath], work: AnyPath) -> None:
        """Indexes the files of what was found; refusals are kept in a file that is mapped."""
        kinds = {"flat": np.bool_, "width": np.int32, "height": np.int32, "refusal": np.int32}
        self._folder = tempfile.TemporaryDirectory(dir=work if isinstance(work, Path) else None)
        refusals = Path(self._folder.name, "refusals.arrow")
        schema = pa.schema([FOUND.field("reason"), FOUND.field("detail")])
        with pa.ipc.new_file(refusals, schema) as writer:

            def rows() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
                count = 0
                for mark in marks:
                    with mark.open("rb") as file:
                        table = pq.read_table(file)
                    refused = pc.not_equal(table["reason"], "").to_numpy()
                    values = {name: table[name].to_numpy() for name in ("flat", "width", "height")}
                    refusal = np.where(refused, count + np.cumsum(refused) - 1, -1)
                    count += int(refused.sum())
                    writer.write_table(table.filter(pa.array(refused)).select(schema.names).cast(schema))
                    yield digests_of(table["image_digest"]), values | {"refusal": refusal}

            self._index = build_index(work / "_found", "found", rows(), kinds)
        self._refusals = pa.ipc.open_file(pa.memory_map(str(refusals))).read_all()

    @property
    def refused(self) -> int:
        """The number of images that were refused."""
        return len(self._refusals)

    def complete(self, rows: pa.Table) -> pa.Table:
        """Returns rows of READ with the columns of new images filled in."""
        new = rows["new"].to_numpy()
        if not new.any():
            return rows
        at = self._index.find(digests_of(rows["image_digest"].filter(rows["new"])))
        for name in ("flat", "width", "height"):
            column = rows[name].to_numpy(zero_copy_only=False).copy()
            column[new] = self._index.take(name, at)
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(column))
        refusal = np.full(len(rows), -1, np.int64)
        refusal[new] = self._index.take("refusal", at)
        chosen = self._refusals.take(pa.array(refusal, mask=refusal < 0))
        for name in ("reason", "detail"):
            column = pc.coalesce(chosen[name], rows[name])
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        return rows
