"""The store of bottlenecks: append-only shards, found by image digest.

    store/<fingerprint>/<shard>.npy       (n, d) float16, memory-mapped
    store/<fingerprint>/<shard>.parquet   (n,) image_digest, sha256 hex of the source's bytes; written last

A shard's name is told by the digests in it, so a killed job makes the same shard again, and two jobs never
clash. Without its parquet a shard is not there.
"""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.files import Place, local, writing


@dataclass(frozen=True)
class Places:
    """Where bottlenecks stand in a store."""

    shard: np.ndarray  # (n,) str, name of the shard
    row: np.ndarray  # (n,) int32, row in it; -1 where the store lacks the image


class Store:
    """The bottlenecks of one fingerprint."""

    def __init__(self, path: Place) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}

    def shards(self) -> list[str]:
        """Names of the finished shards, sorted."""
        there = {
            suffix: {file.stem for file in self.path.glob(f"*{suffix}")} for suffix in (".npy", ".parquet")
        }
        return sorted(there[".npy"] & there[".parquet"])

    def find(self, digests: np.ndarray) -> Places:
        """Places of images by their digests, (n,) str."""
        shards = self.shards()
        tables = [pd.read_parquet(local(self.path / f"{shard}.parquet")) for shard in shards]
        sizes = [len(table) for table in tables]
        known = pd.concat(tables)["image_digest"] if tables else pd.Series(dtype=str)
        of_shard = np.repeat(np.arange(len(shards)), sizes)
        places = pd.DataFrame({"shard": of_shard, "row": _ranges(sizes)}, index=known)
        places = places[~places.index.duplicated()].reindex(digests, fill_value=-1)
        names = np.array([*shards, ""], dtype=object)
        return Places(names[places["shard"].to_numpy()], places["row"].to_numpy(np.int32))

    def append(self, digests: np.ndarray, bottlenecks: np.ndarray, engine: str) -> str:
        """Adds a shard.

        Args:
            digests: (n,) str.
            bottlenecks: (n, d) float16.
            engine: what computed them and how precisely, kept with the shard.

        Returns:
            The shard's name.
        """
        if bottlenecks.dtype != np.float16 or len(digests) != len(bottlenecks):
            found = f"{bottlenecks.shape} {bottlenecks.dtype}"
            raise ValueError(f"expected ({len(digests)}, d) float16, found {found}")
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        with writing(self.path / f"{name}.npy") as working:
            _save(bottlenecks, working)
        table = pa.table({"image_digest": pa.array(digests, pa.string())})
        with writing(self.path / f"{name}.parquet") as working:
            pq.write_table(table.replace_schema_metadata({"engine": engine}), working)
        return name

    def rows(self, shard: np.ndarray, row: np.ndarray) -> "StoredRows":
        """The bottlenecks at these places, (n,) shard names and (n,) rows, as something to take rows from."""
        names, codes = np.unique(shard.astype(str), return_inverse=True)
        return StoredRows([self._array(name) for name in names], codes.astype(np.int32), row)

    def _array(self, shard: str) -> np.ndarray:
        if shard not in self._arrays:
            file = self.path / f"{shard}.npy"
            try:
                self._arrays[shard] = np.load(local(file), mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise ShelfmarkError(
                    f"{file}: cannot be read ({error}); expected a shard of bottlenecks; "
                    "remove it and run extract again"
                ) from error
        return self._arrays[shard]


class StoredRows:
    """n bottlenecks scattered over shards; indexing with row numbers reads them."""

    def __init__(self, arrays: list[np.ndarray], shard: np.ndarray, row: np.ndarray) -> None:
        self._arrays, self._shard, self._row = arrays, shard, row

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        """(m, d) float16."""
        shard, row = self._shard[chosen], self._row[chosen]
        out = np.empty((len(row), self._arrays[0].shape[1] if self._arrays else 0), np.float16)
        for code in np.unique(shard):
            here = shard == code
            out[here] = self._arrays[code][row[here]]
        return out

    def only(self, chosen: np.ndarray) -> "StoredRows":
        """The chosen ones alone: (n,) bool, or row numbers."""
        return StoredRows(self._arrays, self._shard[chosen], self._row[chosen])

    def load(self, most: int = 2 * 2**30) -> "StoredRows | np.ndarray":
        """The bottlenecks in memory when they take at most `most` bytes, else as they are."""
        size = len(self) * (self._arrays[0][0].nbytes if self._arrays else 0)
        return self[slice(None)] if size <= most else self

    def read(self, chosen: np.ndarray, piece: int = 8192) -> np.ndarray:
        """(m, d) float16, as by indexing, in flat memory: mapped pages are given back after each piece.

        They stay in the system's cache; as long as they are mapped they count as this process' own.
        """
        first = self[chosen[:1]]
        out = np.empty((len(chosen), first.shape[1]), np.float16)
        for start in range(0, len(chosen), piece):
            out[start : start + piece] = self[chosen[start : start + piece]]
            for code in np.unique(self._shard[chosen[start : start + piece]]):
                self._arrays[code]._mmap.madvise(mmap.MADV_DONTNEED)
        return out


def _save(bottlenecks: np.ndarray, file: Path) -> None:
    try:
        with open(file, "wb") as out:
            np.save(out, bottlenecks)
    except OSError as error:  # NumPy tells neither the file nor the reason
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def _ranges(sizes: list[int]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int32), *(np.arange(size, dtype=np.int32) for size in sizes)])
