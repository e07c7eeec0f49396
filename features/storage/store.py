"""The store of bottlenecks: append-only shards, found by image digest.

    store/<fingerprint>/<shard>.npy       (n, d) float16, memory-mapped
    store/<fingerprint>/<shard>.parquet   (n,) image_digest, binary(32), and checksum, uint64, of each row;
                                          written last; its metadata name the engine, and the store that it
                                          belongs to
    store/<fingerprint>/<view>/           the same of another view than the whole photo: flip/, 256-center/, …

A digest is the sha256 of the source's bytes. A shard's name is a hash of the digests in it, so a killed job
writes the same shard again, and two jobs never clash. Without its parquet a shard is not there. Shards
of earlier versions have no checksums; their rows are read unchecked.
"""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, local, read_range, writing
from features.views import WHOLE, View, combined, find_view

SHARD = pa.schema([("image_digest", pa.binary(32)), ("checksum", pa.uint64())])
UNCHECKED = pa.schema([("image_digest", pa.binary(32))])  # of earlier versions
COMPARED = 2**20  # digests at a time
SHARDS_AT_ONCE = (
    256  # shards at a time: one million digests in order take a quarter of the time of 4,096 each
)
PIECE = 512  # rows mapped at a time


def digests_of(column: pa.ChunkedArray) -> np.ndarray:
    """Returns (n, 32) uint8 of a column of digests, binary(32) or sha256 hex.

    >>> digests_of(pa.chunked_array([pa.array(["00" * 31 + "ff"])]))[0, 29:].tolist()
    [0, 0, 255]
    """
    pieces = [np.empty((0, 32), np.uint8), *map(_digests, column.chunks)]
    return np.concatenate(pieces)


def _digests(values: pa.Array) -> np.ndarray:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        data = bytes.fromhex("".join(values.to_pylist()))
        return np.frombuffer(data, np.uint8).reshape(-1, 32)
    held = np.frombuffer(values.buffers()[1], np.uint8).reshape(-1, 32)
    return held[values.offset : values.offset + len(values)]


def hex_of(digests: np.ndarray) -> np.ndarray:
    """Returns (n,) str, sha256 hex, of (n, 32) uint8: 120 bytes a digest.

    >>> hex_of(np.full((1, 32), 255, np.uint8))[0] == "ff" * 32
    True
    """
    text = digests.tobytes().hex()
    return np.array([text[at : at + 64] for at in range(0, len(text), 64)], dtype=object)


def digest_array(digests: np.ndarray) -> pa.Array:
    """Returns (n, 32) uint8 as binary(32)."""
    data = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [None, data])


class Digests:
    """n image digests, sorted once by their first 64 bits, to find them and identical ones.

    44 bytes a digest: 20 million take 0.9 GB, a Python dict of them 4 GB. `values` is (n, 32) uint8.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        key = _keys(values)
        self._order = np.argsort(key, kind="stable").astype(np.uint32)
        self._key = key[self._order]
        begins = self._begins()
        if begins.sum() > len(key[:1]) + (self._key[1:] != self._key[:-1]).sum():
            # two digests share a key, for 20 million once in 90,000 times: identical ones may stand apart
            self._order = np.lexsort([*values[:, :7:-1].T, key]).astype(np.uint32)
            begins = self._begins()
        self.first = np.zeros(len(values), bool)  # (n,) whether it is the first of its kind
        self.first[self._order[begins]] = True

    def __len__(self) -> int:
        return len(self.values)

    def _begins(self) -> np.ndarray:
        """(n,) bool, in sorted order: differs from the one before."""
        begins = np.ones(len(self._key), bool)
        for start in range(1, len(begins), COMPARED):
            key = self._key[start - 1 : start + COMPARED]
            twin = start + np.flatnonzero(key[1:] == key[:-1])
            one, other = self._order[twin], self._order[twin - 1]
            begins[twin] = (self.values[one] != self.values[other]).any(axis=1)
        return begins

    def matches(self, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of these digests are among m known ones.

        Args:
            known: (m, 32) uint8.

        Returns:
            Two arrays of the same length, one entry a match: positions among these digests, and in `known`.
        """
        key = _keys(known)
        row = np.argsort(key)  # in order, the searches go through memory one way: a third of the time
        start = np.searchsorted(self._key, key[row], "left")
        found = start < len(self)
        found[found] = self._key[start[found]] == key[row[found]]
        row, start = row[found], start[found]
        count = np.searchsorted(self._key, key[row], "right") - start
        row, skipped = np.repeat(row, count), np.repeat(start - np.cumsum(count) + count, count)
        number = self._order[skipped + np.arange(len(row))]
        same = (self.values[number] == known[row]).all(axis=1)
        return number[same], row[same]


def _keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()


@dataclass(frozen=True)
class Locations:
    """Where n bottlenecks are in a store."""

    names: list[str]  # of the shards
    engines: list[str]  # that computed each shard
    shard: np.ndarray  # (n,) int32, index into `names`; -1 where the store lacks the image
    row: np.ndarray  # (n,) int32, row in the shard; -1 where the store lacks the image
    new: int = 0  # different images that were extracted for this look-up

    def by_engine(self) -> dict[str, int]:
        """Returns the number of images that each engine computed."""
        counts = np.bincount(self.shard[self.shard >= 0], minlength=len(self.names)).tolist()
        images = dict.fromkeys(
            sorted({engine for engine, n in zip(self.engines, counts, strict=True) if n}), 0
        )
        for engine, count in zip(self.engines, counts, strict=True):
            if count:
                images[engine] += count
        return images


class Store:
    """The bottlenecks of one fingerprint, of one view of the images; the directory's name says of which."""

    def __init__(self, path: AnyPath) -> None:
        self.path, found = path, find_view(path.name)
        self.of = found or WHOLE  # the view
        self.home = path.parent if found else path  # of the fingerprint: the store of the whole photos
        self.owner = f"{self.home.name}/{path.name}" if found else path.name
        self._opened: dict[str, Shard] = {}

    def view(self, view: View) -> "Store":
        """Returns the store of a view of the same fingerprint."""
        return Store(self.home if view == WHOLE else self.home / view.name)

    def shards(self) -> list[str]:
        """Returns the names of the finished shards, sorted."""
        there = {
            suffix: {file.stem for file in self.path.glob(f"*{suffix}")} for suffix in (".npy", ".parquet")
        }
        return sorted(there[".npy"] & there[".parquet"])

    def find(self, digests: Digests) -> Locations:
        """Finds the locations of images by their digests.

        Raises:
            ShelfmarkError: a shard cannot be read, or belongs to another store.
        """
        names, engines = self.shards(), list[str]()
        shard = np.full(len(digests), -1, np.int32)
        row = np.full(len(digests), -1, np.int32)
        for first in range(0, len(names), SHARDS_AT_ONCE):
            read = [self._read(name) for name in names[first : first + SHARDS_AT_ONCE]]
            engines += [engine for _, engine in read]
            starts = np.cumsum([0, *(len(known) for known, _ in read)])
            number, position = digests.matches(np.concatenate([known for known, _ in read]))
            new = np.flatnonzero(shard[number] < 0)
            new = new[np.argsort(position[new])[::-1]]  # the first shard is written last: it stays
            code = np.searchsorted(starts, position[new], "right") - 1
            shard[number[new]], row[number[new]] = first + code, position[new] - starts[code]
        return Locations(names, engines, shard, row)

    def _read(self, shard: str) -> tuple[np.ndarray, str]:
        """Reads the digests and the engine of a shard."""
        file = self.path / f"{shard}.parquet"
        try:
            # of one column: a third of the time of read_table, which starts threads
            opened = pq.ParquetFile(pa.BufferReader(read_range(file)))
            table = opened.read(columns=["image_digest"], use_threads=False)
            metadata = opened.schema_arrow.metadata or {}
            whole = any(map(opened.schema_arrow.equals, (SHARD, UNCHECKED))) and b"engine" in metadata
        except pa.ArrowInvalid:
            whole = False
        if not whole:
            raise ShelfmarkError(
                f"{file}: not a shard of bottlenecks as this version writes them; expected digests and an "
                f"engine; remove {self.path} and run extract again"
            )
        if (owner := metadata[b"store"].decode()) != self.owner:
            raise ShelfmarkError(
                f"{file}: bottlenecks of {owner}; expected those of {self.owner}; "
                f"move the shard to the store {owner}"
            )
        return digests_of(table["image_digest"]), metadata[b"engine"].decode()

    def each_shard(self) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """Yields name, digests (n, 32) uint8 and checksums (n,) uint64 of each shard, None where it has none.

        Raises:
            ShelfmarkError: a shard cannot be read, or belongs to another store.
        """
        for name in self.shards():
            yield name, self._read(name)[0], self._sums(name)

    def gather(
        self, names: list[str], shard: np.ndarray, row: np.ndarray, sums: np.ndarray, summed: np.ndarray
    ) -> np.ndarray:
        """Returns (n, d) float16, bottlenecks in memory; of the shards one is open at a time.

        Args:
            names: of shards.
            shard: (n,) int, index into `names`.
            row: (n,) int, row in the shard.
            sums: (n,) uint64, checksums of the rows.
            summed: (n,) bool, whether there is one.

        Raises:
            ShelfmarkError: a shard is gone or damaged.
        """
        order = np.lexsort((row, shard))
        bounds = np.flatnonzero(np.diff(shard[order], prepend=-1))
        out = np.empty((0, 0), np.float16)
        for its in np.split(order, bounds[1:]) if len(order) else []:
            name = names[shard[its[0]]]
            file = self.path / f"{name}.npy"
            array = _mapped(file)
            known = sums[its] if summed[its[0]] else None
            if not out.size:
                out = np.empty((len(row), array.shape[1]), np.float16)
            for start in range(0, len(its), PIECE):
                piece = its[start : start + PIECE]
                rows = Shard(array, None, file).read(row[piece])
                _require_sums(rows, None if known is None else known[start : start + PIECE], file)
                out[piece] = rows
        return out

    def append(self, digests: np.ndarray, bottlenecks: np.ndarray, engine: str) -> str:
        """Adds a shard.

        Args:
            digests: (n, 32) uint8.
            bottlenecks: (n, d) float16.
            engine: what computed them and how precisely, kept with the shard.

        Returns:
            The shard's name.
        """
        if bottlenecks.dtype != np.float16 or len(digests) != len(bottlenecks):
            found = f"{bottlenecks.shape} {bottlenecks.dtype}"
            raise ValueError(f"expected ({len(digests)}, d) float16, found {found}")
        name = shard_name(digests)
        with writing(self.path / f"{name}.npy") as working:
            _save(bottlenecks, working)
        metadata = {"engine": engine, "store": self.owner}
        columns = [digest_array(digests), pa.array(row_sums(bottlenecks))]
        table = pa.table(columns, schema=SHARD).replace_schema_metadata(metadata)
        with writing(self.path / f"{name}.parquet") as working:  # digests cannot be compressed
            pq.write_table(table, working, compression="none", use_dictionary=False)
        return name

    def rows(self, names: list[str], shard: np.ndarray, row: np.ndarray) -> "StoredRows":
        """Returns the bottlenecks at these locations, to be indexed by row.

        Args:
            names: of shards.
            shard: (n,) int, index into `names`.
            row: (n,) int32, row in the shard.
        """
        if len(row) and (shard.min() < 0 or row.min() < 0):
            raise ShelfmarkError(
                f"{self.path}: an image has no bottleneck; expected one for each; run extract again"
            )
        used = np.unique(shard)
        index = np.zeros(len(names), np.int32)
        index[used] = np.arange(len(used))
        return StoredRows([self._open(names[code]) for code in used], index[shard], row)

    def _open(self, shard: str) -> "Shard":
        if shard not in self._opened:
            file = self.path / f"{shard}.npy"
            self._opened[shard] = Shard(_mapped(file), self._sums(shard), file)
        return self._opened[shard]

    def _sums(self, shard: str) -> np.ndarray | None:
        """The checksums of a shard's rows; None in a shard of an earlier version."""
        opened = pq.ParquetFile(pa.BufferReader(read_range(self.path / f"{shard}.parquet")))
        if "checksum" not in opened.schema_arrow.names:
            return None
        sums: np.ndarray = opened.read(columns=["checksum"], use_threads=False)["checksum"].to_numpy()
        return sums


@dataclass(frozen=True)
class Shard:
    """An opened shard: (n, d) float16, and (n,) uint64 checksums of its rows where there are any."""

    array: np.ndarray
    sums: np.ndarray | None = None
    file: AnyPath | None = None

    def read(self, row: np.ndarray) -> np.ndarray:
        """Returns (m, d) float16 of (m,) rows.

        Raises:
            ShelfmarkError: a row is not what was written.
        """
        rows: np.ndarray = self.array[row]
        _require_sums(rows, None if self.sums is None else self.sums[row], self.file)
        if isinstance(self.array, np.memmap):
            self.array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return rows


def _mapped(file: AnyPath) -> np.ndarray:
    """The (n, d) float16 of a shard, memory-mapped."""
    try:
        array: np.ndarray = np.load(local(file), mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        advice = "" if isinstance(error, FileNotFoundError) else "remove it and "
        raise ShelfmarkError(
            f"{file}: cannot be read ({error}); expected a shard of bottlenecks; {advice}run extract again"
        ) from error
    return array


def _require_sums(rows: np.ndarray, sums: np.ndarray | None, file: AnyPath | None) -> None:
    """Raises a ShelfmarkError where rows do not have these checksums; without any, they are not compared."""
    if sums is not None and (damaged := np.count_nonzero(row_sums(rows) != sums)):
        raise ShelfmarkError(
            f"{file}: {damaged:,} of {len(rows):,} bottlenecks are not what was written there; "
            "expected their checksums; remove the file and run the command again to extract them anew"
        )


def row_sums(bottlenecks: np.ndarray) -> np.ndarray:
    """Returns (n,) uint64, the sum of each row's words modulo 2**64: one changed byte always changes it.

    Args:
        bottlenecks: (n, d) float16.

    >>> row_sums(np.array([[1, 2, 3, 4]], np.float16)).tolist() == [0x4400_4200_4000_3C00]
    True
    """
    words = np.uint64 if bottlenecks.shape[1] % 4 == 0 else np.uint16  # 64 bits at a time where they fit
    sums: np.ndarray = np.ascontiguousarray(bottlenecks).view(words).sum(axis=1, dtype=np.uint64)
    return sums


def shard_name(digests: np.ndarray) -> str:
    """Returns the name of the shard of these images: (n, 32) uint8, in this order."""
    return hashlib.sha256(np.ascontiguousarray(digests).data).hexdigest()[:16]


class StoredRows:
    """n bottlenecks scattered over shards; indexing with row numbers reads them.

    Where `shard` and `row` are (n, k), each of the n is the mean of k.
    """

    def __init__(self, shards: list[Shard], shard: np.ndarray, row: np.ndarray) -> None:
        self._shards, self._shard, self._row = shards, shard, row

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        """Returns (m, d) float16, checked, at constant memory use: mapped pages are released piece by piece.

        They stay in the system's cache. While they are mapped they count as this process' memory, and reading
        a row maps the pages around it as well: 20,000 scattered rows had 3 GB mapped.
        """
        shard, row = self._shard[chosen], self._row[chosen]
        out = np.empty((len(row), self._shards[0].array.shape[1] if self._shards else 0), np.float16)
        for start in range(0, len(row), PIECE):
            piece = slice(start, start + PIECE)
            if row.ndim == 1:
                self._read(shard[piece], row[piece], out[piece])
                continue
            views = np.empty((row.shape[1], len(row[piece]), out.shape[1]), np.float16)
            for view, own in enumerate(views):
                self._read(shard[piece, view], row[piece, view], own)
            out[piece] = combined(list(views), averaged=True)
        return out

    def _read(self, shard: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
        """Reads (m,) rows of (m,) shards into `out`."""
        for code in np.unique(shard):
            here = shard == code
            out[here] = self._shards[code].read(row[here])

    def only(self, chosen: np.ndarray) -> "StoredRows":
        """Returns only the chosen rows: (n,) bool, or row numbers."""
        return StoredRows(self._shards, self._shard[chosen], self._row[chosen])

    def load(self, most: int = 2 * 2**30) -> "StoredRows | np.ndarray":
        """Returns the bottlenecks in memory when they take at most `most` bytes, else these rows."""
        size = len(self) * (self._shards[0].array[0].nbytes if self._shards else 0)
        return self[slice(None)] if size <= most else self


def joined(views: Sequence[StoredRows], averaged: bool) -> StoredRows:
    """Returns the rows of n images from k views of (n, d), as `views.combined`, unread.

    Args:
        views: at least one.
        averaged: the mean of an image's views is its one row; else each view is a row.

    Returns:
        (n, d) if averaged, else (n · k, d): of each image its views, one after the other.
    """
    first = np.cumsum([0, *(len(one._shards) for one in views)]).tolist()
    shard = np.stack([one._shard + start for one, start in zip(views, first, strict=False)], axis=1)
    row = np.stack([one._row for one in views], axis=1)
    shards = [shard for one in views for shard in one._shards]
    if averaged and len(views) > 1:
        return StoredRows(shards, shard, row)
    return StoredRows(shards, shard.reshape(-1), row.reshape(-1))


def _save(bottlenecks: np.ndarray, file: Path) -> None:
    try:
        with open(file, "wb") as out:
            np.save(out, bottlenecks)
    except OSError as error:  # NumPy names neither the file nor the reason
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error
