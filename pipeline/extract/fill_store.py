"""Fill the store: the bottlenecks that it lacks, shard after shard, in this process.

What is missing is cut into shards in the order of the images. Shard boundaries do not depend on finished
shards: a killed job continues with the same shards, of the same names and bytes, as an undisturbed one.
Beam's workers extract the same shards, see beam_worker.py.
"""

import errno
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.engines.backbones import Backbone
from features.engines.choose import choose_engine
from features.engines.engine import Engine, extract
from features.engines.openvino import Int8Calibration
from features.errors import ShelfmarkError
from features.records import Piece, read_pieces
from features.storage.artifact import Artifact
from features.storage.store import Digests, Locations, Store, StoredRows, joined, shard_name
from features.views import View
from pipeline.job.account import count_new_images
from pipeline.job.config import ExtractSettings
from pipeline.job.progress import Progress, log
from pipeline.job.room import EXTRACT, require_disk, warn_of_memory
from pipeline.sources.image import Changed

RECORD = ("file", "offset", "length")  # columns of images.parquet: where a record is
MOST_FAILED = 10  # shards; after so many the others will not do better
ALL_ZERO = (
    "the bottlenecks are all zero; expected bottlenecks that differ between images; give other --weights "
    "(random ones are for networks such as inception_v3)"
)
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # for every shard alike

Read = Callable[[np.ndarray], Iterator[Piece]]  # numbers of images → pieces of their strict JPEGs, in order


def fill_store(
    store: Store, digests: Digests, read: Read, load: Callable[[], Backbone], settings: ExtractSettings
) -> Locations:
    """Extracts what the store lacks in this process; an identical image once.

    Args:
        store: of the backbone.
        digests: of the images.
        read: numbers of images → pieces of their strict JPEGs, in order; called again when a shard is
            tried again.
        load: loads the backbone; called when an image is missing.
        settings: the section [extract].

    Returns:
        Where the images are in the store.

    Raises:
        ShelfmarkError: shards could not be made; the others are kept.
        OSError: the disk is full, not writable, …
    """

    def extract_shards(shards: list[np.ndarray]) -> None:
        failed: dict[str, str] = {}
        backbone = load()
        require_room(store, sum(map(len, shards)), backbone)
        engine = engine_of(backbone, store, settings, lambda most: read(spread(np.concatenate(shards), most)))
        with Progress("extract", sum(map(len, shards))) as progress:
            for number, shard in enumerate(shards):
                done = number * settings.shard_images
                pieces = functools.partial(_with_progress, read, shard, done, progress)
                own = digests.values[shard]
                extract_it = functools.partial(make_shard, store, own, pieces, engine, backbone.weights)
                if reason := try_twice(extract_it):
                    failed[shard_name(own)] = reason
                if len(failed) == MOST_FAILED:
                    break
        require_all(store, failed)

    return fill(store, digests, settings, extract_shards)


def rows_of(
    store: Store,
    views: Sequence[View],
    averaged: bool,
    digests: Digests,
    read: Read,
    load: Callable[[], Backbone],
    settings: ExtractSettings,
) -> StoredRows:
    """The bottlenecks of images, extracted where the store lacks them.

    Args:
        store: of the backbone.
        views: of each image.
        averaged: their mean is its one row; else each view is a row.
        digests: of n images.
        read: as for `fill_store`.
        load: as for `fill_store`.
        settings: the section [extract].

    Returns:
        (n, d) if averaged, else (n · views, d).
    """
    stores = [store.view(view) for view in views]
    found = fill_views(stores, lambda view: fill_store(view, digests, read, load, settings))
    rows = [
        store.rows(one.names, one.shard, one.row) for store, one in zip(stores, found.values(), strict=True)
    ]
    return joined(rows, averaged)


def fill_views(stores: Sequence[Store], fill_store: Callable[[Store], Locations]) -> dict[View, Locations]:
    """Fills the stores of several views, one after the other; a new image counts once."""
    found, new = dict[View, Locations](), 0
    for store in stores:
        found[store.of] = fill_store(store)
        if (more := found[store.of].new - new) > 0:
            count_new_images(more)
            new += more
    return found


class RecordReader:
    """Reads images by their row numbers in images.parquet, which is opened for the first of them."""

    def __init__(self, records: Artifact) -> None:
        self._records = records
        self._rows: pa.Table | None = None

    def __call__(self, numbers: np.ndarray) -> Iterator[Piece]:
        """Pieces of their records, in order."""
        if self._rows is None:
            images = self._records.file("images.parquet")
            self._rows = pq.read_table(images, columns=list(RECORD), read_dictionary=["file"])
        rows = self._rows.take(pa.array(numbers)).to_pandas()
        return read_pieces(self._records.path, rows.astype({"file": str}))


def fill(
    store: Store,
    digests: Digests,
    settings: ExtractSettings,
    extract_shards: Callable[[list[np.ndarray]], None],
) -> Locations:
    """Cuts the images that the store lacks into shards, and has them extracted.

    Args:
        store: of the backbone.
        digests: of the images.
        settings: the section [extract].
        extract_shards: appends shards to the store, each given as the numbers of its images.

    Returns:
        Where the images are in the store.
    """
    locations = store.find(digests)
    missing = np.flatnonzero(digests.first & (locations.row < 0))
    if not len(missing):
        return locations
    size = settings.shard_images
    extract_shards([missing[start : start + size] for start in range(0, len(missing), size)])
    locations = store.find(digests)
    if (locations.row < 0).any():
        raise ShelfmarkError(
            f"{store.path}: lacks images that were just extracted; expected no other job to remove shards; "
            "run the command again"
        )
    return replace(locations, new=len(missing))


def require_room(store: Store, images: int, backbone: Backbone) -> None:
    """Refuses an extraction whose bottlenecks do not fit on the disk; warns where memory is short.

    Raises:
        ShelfmarkError: less is free than the bottlenecks of these images take.
    """
    require_disk("extract", store.path, images * backbone.width * np.float16().nbytes)
    warn_of_memory("extract", EXTRACT, "end other programs, or lower extract.batch")


def _with_progress(read: Read, shard: np.ndarray, done: int, progress: Progress) -> Iterator[Piece]:
    for piece in read(shard):
        progress.to(done)
        done += len(piece.starts)
        yield piece


def engine_of(
    backbone: Backbone, store: Store, settings: ExtractSettings, sample: Callable[[int], Iterator[Piece]]
) -> Engine:
    """The engine of the settings for the store's view; int8 is fitted to a sample of the images.

    What is kept of it is in the store of the view `View.network`, for all views that it computes.
    """
    kept, network = store.view(store.of.network).path, backbone.for_view(store.of)
    return choose_engine(
        network, settings.batch, settings.engine, settings.precision, Int8Calibration(kept, sample), kept
    )


def engines_of(
    backbone: Backbone,
    stores: Iterable[Store],
    settings: ExtractSettings,
    sample: Callable[[int], Iterator[Piece]],
) -> dict[View, Engine]:
    """The engines of the settings for these stores' views, by `View.network`: one for views that share it."""
    networks = {store.of.network: store for store in stores}
    return {network: engine_of(backbone, store, settings, sample) for network, store in networks.items()}


def spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the numbers, evenly spread."""
    return numbers[:: -(-len(numbers) // most)]


# One shard


class _Useless(ShelfmarkError):
    """Bottlenecks that nothing can be trained on; tried again, they are the same."""


def make_shard(
    store: Store, digests: np.ndarray, read: Callable[[], Iterator[Piece]], engine: Engine, weights: str
) -> None:
    """Extracts the images of a shard, whose digests are (n, 32) uint8, and appends it.

    Ingest has decoded every image: here nothing is rejected, and `extract` refuses more or fewer images.
    """
    bottlenecks = extract(engine, read(), len(digests), store.of)
    require_use(bottlenecks, weights, store)
    store.append(digests, bottlenecks, engine=engine.name)


def require_use(bottlenecks: np.ndarray, weights: str, store: Store) -> None:
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


def try_twice(make: Callable[[], object]) -> str:
    """Tries a shard twice; returns the reason of the second failure, "" when one try succeeds.

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
            message = " ".join(str(error).split())[:300]
            reason = message if isinstance(error, ShelfmarkError) else f"{type(error).__name__}: {message}"
            if again:
                log.info("extract: a shard failed (%s); trying it again", reason)
    return reason


def require_all(
    store: Store, failed: Mapping[str, str], expected: str = "every image of the records"
) -> None:
    """Raises a ShelfmarkError about the first of the failed shards, name → reason."""
    for name in sorted(failed)[:1]:
        others = f"; {len(failed) - 1} others failed, too" if len(failed) > 1 else ""
        raise ShelfmarkError(
            f"{store.path}: shard {name} failed twice ({failed[name]}){others}; expected {expected}; correct "
            "the cause and run the command again, which makes what is missing"
        )
