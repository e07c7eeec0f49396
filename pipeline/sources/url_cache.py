"""The photos that a unit has fetched: they are kept in files, so that nobody fetches them again.

<folder>/<chunk>.bin    photos, one after the other
         <chunk>.json   [[URL, offset, length], …], in bytes; written last, so the chunk is whole
"""

import json
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from features.storage.paths import Place, read_range, write_whole, writing
from pipeline.sources.image import path_text

CHUNK_IMAGES, CHUNK_BYTES = 64, 2**24  # of a file


@dataclass(frozen=True)
class Fetched:
    """A photo and where the cache holds it, or why there is none."""

    url: str
    data: bytes = b""
    file: str = ""  # of the cache
    offset: int = 0  # in the file, bytes
    reason: str = ""  # missing, unreachable, too_large; "": there is a photo
    detail: str = ""


class Cache:
    """The photos of one unit, by URL; a thread writes a chunk while the next one is filled."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._where: dict[str, tuple[Place, int, int]] = {}  # file, offset, length
        for index in folder.glob("*.json"):
            photos = index.with_suffix(".bin")
            rows = json.loads(index.read_bytes())
            self._where |= {url: (photos, offset, length) for url, offset, length in rows}
        self._writer = ThreadPoolExecutor(1)  # here, the disk's answer would cost a fifth of the time
        self._writes: list[tuple[Place, Future[None]]] = []  # under way: one, or none
        self._unwritten: dict[Place, bytearray] = {}
        self._begin()

    def _begin(self) -> None:
        # a name of its own: two workers may be at the same unit, where a runner takes one for dead
        self._file = self._folder / f"{uuid.uuid4().hex}.bin"
        self._bytes = self._unwritten[self._file] = bytearray()
        self._rows: list[tuple[str, int, int]] = []

    def __contains__(self, url: str) -> bool:
        return url in self._where

    def add(self, url: str, data: bytes) -> Fetched:
        """Keeps a photo; a full chunk is written."""
        fetched = Fetched(url, data, path_text(self._file), len(self._bytes))
        self._bytes += data
        self._rows.append((url, fetched.offset, len(data)))
        self._where[url] = self._file, fetched.offset, len(data)
        if len(self._rows) >= CHUNK_IMAGES or len(self._bytes) >= CHUNK_BYTES:
            self._write()
        return fetched

    def read(self, url: str) -> Fetched:
        """A photo that is kept."""
        file, offset, length = self._where[url]
        unwritten = self._unwritten.get(file)
        data = read_range(file, offset, length) if unwritten is None else unwritten[offset : offset + length]
        return Fetched(url, bytes(data), path_text(file), offset)

    def _write(self) -> None:
        """Begins to write a chunk, when the one before is written: no more than two are lost with the job."""
        self._wait()
        write = self._writer.submit(_write_chunk, self._file, self._bytes, self._rows)
        self._writes.append((self._file, write))
        self._begin()

    def _wait(self) -> None:
        """Waits for what is being written."""
        while self._writes:
            file, write = self._writes.pop()
            write.result()
            del self._unwritten[file]

    def close(self) -> None:
        """Writes what is not written yet."""
        try:
            if self._rows:
                self._write()
            self._wait()
        finally:
            self._writer.shutdown()


def _write_chunk(file: Place, photos: bytearray, rows: list[tuple[str, int, int]]) -> None:
    with writing(file) as working:
        working.write_bytes(photos)
    # not Parquet, which takes 4 ms a chunk, as much as fetching ten photos
    write_whole(file.with_suffix(".json"), json.dumps(rows).encode())
