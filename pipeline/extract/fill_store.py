"""Fill the store: the bottlenecks that it lacks, shard after shard, in this process.

What a view lacks is cut into shards in the order of the images. Shard boundaries do not depend on finished
shards: a killed job continues with the same shards, of the same names and bytes, as an undisturbed one.
Views that one network computes and that lack the same shard are extracted together: each photo is decoded
once for them. Beam's workers extract the same shards, see beam_worker.py.
"""

import errno
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from features.views import View, by_network
from pipeline.job.account import count_new_images
from pipeline.job.config import ExtractSettings
from pipeline.job.progress import Progress, log
from pipeline.job.room import EXTRACT, EXTRACT_VIEW, require_disk, warn_of_memory
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
    views: Sequence[Store],
    digests: Digests,
    read: Read,
    load: Callable[[], Backbone],
    settings: ExtractSettings,
) -> dict[View, Locations]:
    """Extracts what the stores of views lack in this process; an identical image once.

    Args:
        views: their stores, of the backbone.
        digests: of the images.
        read: numbers of images → pieces of their strict JPEGs, in order; called again when a shard is
            tried again.
        load: loads the backbone; called when an image is missing.
        settings: the section [extract].

    Returns:
        Of each view where its images are in the store.

    Raises:
        ShelfmarkError: shards could not be made; the others are kept.
        OSError: the disk is full, not writable, …
    """

    def extract_shards(stores: Sequence[Store], shards: list[np.ndarray]) -> None:
        failed: dict[str, str] = {}
        backbone, images = load(), sum(map(len, shards))
        require_room(stores, images, backbone)
        sample = lambda most: read(spread(np.concatenate(shards), most))  # noqa: E731
        engine = engine_of(backbone, stores[0], settings, sample)
        with Progress("extract", images) as progress:
            for number, shard in enumerate(shards):
                done = number * settings.shard_images
                pieces = functools.partial(_with_progress, read, shard, done, progress)
                own = digests.values[shard]
                extract_it = functools.partial(make_shard, stores, own, pieces, engine, backbone.weights)
                if reason := try_twice(extract_it):
                    failed[shard_name(own)] = reason
                if len(failed) == MOST_FAILED:
                    break
        require_all(stores, failed)

    return fill(views, digests, settings, extract_shards)


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
    found = fill_store(stores, digests, read, load, settings)
    rows = [
        store.rows(one.names, one.shard, one.row) for store, one in zip(stores, found.values(), strict=True)
    ]
    return joined(rows, averaged)


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
    views: Sequence[Store],
    digests: Digests,
    settings: ExtractSettings,
    extract_shards: Callable[[Sequence[Store], list[np.ndarray]], None],
) -> dict[View, Locations]:
    """Cuts the images that the stores of views lack into shards, and has them extracted.

    A new image counts once.

    Args:
        views: their stores, of the backbone.
        digests: of the images.
        settings: the section [extract].
        extract_shards: appends shards, each given as the numbers of its images, to the stores that all lack
            them, of views that one network computes.

    Returns:
        Of each view, in their order, where its images are in the store.
    """
    found, new = {store.of: store.find(digests) for store in views}, 0
    for stores in stores_by_network(views):
        missing = {store: np.flatnonzero(digests.first & (found[store.of].row < 0)) for store in stores}
        for lacking, shards in _together(missing, digests, settings.shard_images):
            extract_shards(lacking, shards)
        for store, numbers in missing.items():
            if len(numbers):
                found[store.of] = _find_all(store, digests, len(numbers))
        if (more := max(map(len, missing.values())) - new) > 0:
            count_new_images(more)
            new += more
    return found


def stores_by_network(views: Sequence[Store]) -> list[list[Store]]:
    """The stores of views, those together that one network computes."""
    numbers = by_network([store.of for store in views]).values()
    return [[views[number] for number in its] for its in numbers]


def _together(
    missing: Mapping[Store, np.ndarray], digests: Digests, size: int
) -> list[tuple[Sequence[Store], list[np.ndarray]]]:
    """Cuts what stores lack, numbers of images, into shards; those together that the same stores lack."""
    shards, lacking = dict[str, np.ndarray](), dict[str, list[Store]]()
    for store, numbers in missing.items():
        for start in range(0, len(numbers), size):
            shard = numbers[start : start + size]
            name = shard_name(digests.values[shard])
            shards[name] = shard
            lacking.setdefault(name, []).append(store)
    found: dict[tuple[Store, ...], list[np.ndarray]] = {}
    for name, stores in lacking.items():
        found.setdefault(tuple(stores), []).append(shards[name])
    return list(found.items())


def _find_all(store: Store, digests: Digests, new: int) -> Locations:
    """Where all images are in the store, of which so many were just extracted."""
    locations = store.find(digests)
    if (locations.row < 0).any():
        raise ShelfmarkError(
            f"{store.path}: lacks images that were just extracted; expected no other job to remove shards; "
            "run the command again"
        )
    return replace(locations, new=new)


def require_room(views: Sequence[Store], images: int, backbone: Backbone) -> None:
    """Refuses an extraction whose bottlenecks do not fit on the disk; warns where memory is short.

    Raises:
        ShelfmarkError: less is free than the bottlenecks of these images in these views take.
    """
    require_disk("extract", views[0].path, len(views) * images * backbone.width * np.float16().nbytes)
    needed = EXTRACT + (len(views) - 1) * EXTRACT_VIEW
    warn_of_memory("extract", needed, "end other programs, or lower extract.batch")


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
    stores: Sequence[Store],
    settings: ExtractSettings,
    sample: Callable[[int], Iterator[Piece]],
) -> dict[View, Engine]:
    """The engines of the settings for these stores' views, by `View.network`: one for views that share it."""
    first = [its[0] for its in stores_by_network(stores)]
    return {store.of.network: engine_of(backbone, store, settings, sample) for store in first}


def spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the numbers, evenly spread."""
    return numbers[:: -(-len(numbers) // most)]


# One shard


class _Useless(ShelfmarkError):
    """Bottlenecks that nothing can be trained on; tried again, they are the same."""


def make_shard(
    stores: Sequence[Store],
    digests: np.ndarray,
    read: Callable[[], Iterator[Piece]],
    engine: Engine,
    weights: str,
) -> None:
    """Extracts the images of a shard, whose digests are (n, 32) uint8, and appends it to each view's store.

    Ingest has decoded every image: here nothing is rejected, and `extract` refuses more or fewer images.
    """
    found = extract(engine, read(), len(digests), [store.of for store in stores])
    append(stores, digests, found, engine, weights)


def append(
    stores: Sequence[Store],
    digests: np.ndarray,
    bottlenecks: Sequence[np.ndarray],
    engine: Engine,
    weights: str,
) -> str:
    """Appends a shard to each store, if its bottlenecks are of use; returns its name.

    Args:
        stores: of the views.
        digests: (n, 32) uint8.
        bottlenecks: of each view (n, d) float16.
        engine: which computed them.
        weights: what the network's weights are called.
    """
    name = ""
    for store, its in zip(stores, bottlenecks, strict=True):
        _require_use(its, weights, store)
        name = store.append(digests, its, engine=engine.name)
    return name


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
    stores: Sequence[Store], failed: Mapping[str, str], expected: str = "every image of the records"
) -> None:
    """Raises a ShelfmarkError about the first of the failed shards, name → reason."""
    for name in sorted(failed)[:1]:
        others = f"; {len(failed) - 1} others failed, too" if len(failed) > 1 else ""
        raise ShelfmarkError(
            f"{stores[0].path}: shard {name} failed twice ({failed[name]}){others}; expected {expected}; "
            "correct the cause and run the command again, which makes what is missing"
        )
