"""An index of digests on the disk: found by binary search, built by an external sort, at constant memory use.

    <name>.key.npy    (n,) uint64, the first 64 bits of each digest, ascending
    <name>.rest.npy   (n,) uint64, the next 64 bits: that two of 20 million digests agree in all 128 by chance
                      is 1 in 10**24
    <name>.<column>.npy   what belongs to each

A table in memory (`Digests` of features/storage/store.py) takes 44 bytes a digest; here the files are mapped,
and their pages are given back after each search.
"""

import hashlib
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.storage.paths import AnyPath, local, writing

RUN = 2**20  # rows sorted in memory at a time
KEY, REST = "key", "rest"

Columns = Mapping[str, np.ndarray]


def halves(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two (n,) uint64, the first and the next 64 bits of (n, 32) uint8, in their order."""
    words = np.ascontiguousarray(digests[:, :16]).view(">u8").astype(np.uint64)
    return words[:, 0], words[:, 1]


def text_digests(texts: Sequence[str]) -> np.ndarray:
    """Returns (n, 32) uint8, the sha256 of texts such as ids of products."""
    data = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


class SortedRuns:
    """Rows sorted by their column `key` on the disk: added in any order, read back in ranges of it."""

    def __init__(self, scratch: AnyPath) -> None:
        """Keeps its runs in `scratch`, where that is on a disk."""
        parent = scratch if isinstance(scratch, Path) else None
        self._folder = tempfile.TemporaryDirectory(prefix="runs-", dir=parent)
        self._waiting: list[Columns] = []
        self._rows = 0  # waiting
        self._runs: list[dict[str, np.ndarray]] = []

    def add(self, rows: Columns) -> None:
        """Adds rows: equally long arrays by name, `key` (n,) uint64 among them."""
        self._waiting.append(rows)
        self._rows += len(rows[KEY])
        if self._rows >= RUN:
            self._write()

    def _write(self) -> None:
        whole = self.reduced(_sorted(self._waiting))
        self._waiting, self._rows = [], 0
        run = {}
        for name, column in whole.items():
            file = Path(self._folder.name, f"{len(self._runs)}.{name}.npy")
            np.save(file, column)
            run[name] = np.load(file, mmap_mode="r") if len(column) else column
        self._runs.append(run)

    def reduced(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns those of the sorted rows that are needed; all of them, unless a subclass knows better."""
        return rows

    def ranges(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields all rows sorted by key, about RUN of them at a time, and equal keys in the order added."""
        if self._waiting:
            self._write()
        total = sum(len(run[KEY]) for run in self._runs)
        edges = _edges(-(-total // RUN))
        cuts = [[0, *np.searchsorted(run[KEY], edges).tolist(), len(run[KEY])] for run in self._runs]
        for at in range(len(edges) + 1 if total else 0):
            pieces = [
                {name: np.asarray(column[cut[at] : cut[at + 1]]) for name, column in run.items()}
                for run, cut in zip(self._runs, cuts, strict=True)
            ]
            yield self.reduced(_sorted(pieces))
            for run in self._runs:
                _give_back(run)

    def close(self) -> None:
        """Removes the runs."""
        self._runs = []
        self._folder.cleanup()


def _edges(ranges: int) -> np.ndarray:
    """(ranges - 1,) uint64 that cut the keys, evenly spread as those of digests are, into so many ranges."""
    return np.array([(at << 64) // ranges for at in range(1, ranges)], np.uint64)


def _sorted(pieces: Sequence[Columns]) -> dict[str, np.ndarray]:
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    order = np.argsort(whole[KEY], kind="stable")
    return {name: column[order] for name, column in whole.items()}


def _give_back(columns: Columns) -> None:
    """Gives the mapped pages of the columns back."""
    for column in columns.values():
        if isinstance(column, np.memmap):
            column._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class _FirstOfEach(SortedRuns):
    """Keeps of equal digests the one that was added first."""

    def reduced(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        same = (rows[KEY][1:] == rows[KEY][:-1]) & (rows[REST][1:] == rows[REST][:-1])
        kept = np.concatenate([np.ones(len(rows[KEY][:1]), bool), ~same])
        return {name: column[kept] for name, column in rows.items()}


class DigestIndex:
    """n distinct digests with columns, in files; opened by its folder and its name."""

    def __init__(self, folder: AnyPath, name: str, columns: Sequence[str] = ()) -> None:
        def opened(column: str) -> np.ndarray:
            array: np.ndarray = np.load(local(folder / f"{name}.{column}.npy"), mmap_mode="r")
            return array

        self._columns = {column: opened(column) for column in (KEY, REST, *columns)}

    def __len__(self) -> int:
        return len(self._columns[KEY])

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Returns (m,) int64, the positions of (m, 32) uint8 digests here; -1 for those that are not."""
        key, rest = halves(digests)
        order = np.argsort(key)  # in order, the search goes through the file one way
        keys, rests = self._columns[KEY], self._columns[REST]
        found = np.full(len(key), -1, np.int64)
        left, at = order, np.searchsorted(keys, key[order])
        while len(left):  # once, unless two digests agree in 64 bits and not in the next
            inside = at < len(keys)
            left, at = left[inside], at[inside]
            same = keys[at] == key[left]
            left, at = left[same], at[same]
            hit = rests[at] == rest[left]
            found[left[hit]] = at[hit]
            left, at = left[~hit], at[~hit] + 1
        _give_back(self._columns)
        return found

    def take(self, column: str, positions: np.ndarray) -> np.ndarray:
        """Returns a column's values at these positions, of `find`."""
        values: np.ndarray = self._columns[column][positions]
        _give_back({column: self._columns[column]})
        return values


def build_index(
    folder: AnyPath, name: str, rows: Iterator[tuple[np.ndarray, Columns]], columns: Mapping[str, Any]
) -> DigestIndex:
    """Builds the index of digests; of equal ones, the columns of the one that came first.

    Args:
        folder: of the files.
        name: what their names begin with.
        rows: (n, 32) uint8 digests with their columns, piece by piece.
        columns: dtype of each column, by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = _FirstOfEach(folder)
    try:
        for digests, values in rows:
            key, rest = halves(digests)
            runs.add({KEY: key, REST: rest, **{one: values[one].astype(columns[one]) for one in columns}})
        kinds = {KEY: np.uint64, REST: np.uint64, **columns}
        with tempfile.TemporaryDirectory(dir=folder if isinstance(folder, Path) else None) as scratch:
            raw = {column: Path(scratch, column) for column in kinds}
            opened = {column: open(file, "wb") for column, file in raw.items()}  # noqa: SIM115
            for piece in runs.ranges():
                for column, file in opened.items():
                    piece[column].tofile(file)
            for file in opened.values():
                file.close()
            for column, kind in kinds.items():
                _write_array(raw[column], np.dtype(kind), folder / f"{name}.{column}.npy")
    finally:
        runs.close()
    return DigestIndex(folder, name, list(columns))


def _write_array(raw: Path, kind: "np.dtype[Any]", file: AnyPath) -> None:
    """Writes raw numbers as a .npy, piece by piece."""
    count = raw.stat().st_size // kind.itemsize
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    with writing(file) as working, open(working, "wb") as out, open(raw, "rb") as data:
        np.lib.format.write_array_header_1_0(out, header)
        while block := data.read(2**24):
            out.write(block)
