"""The cache of the photos of a segment, in files, so that none is fetched twice.

<folder>/<chunk>.bin    photos, one after the other
         <chunk>.json   [[URL, offset, length], …], in bytes; written last: then the chunk is whole
"""

import json
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from features.storage.paths import AnyPath, read_range, write_whole, writing
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
    """The photos of one segment, by URL; a thread writes a chunk while the next one is filled."""

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        self._found: dict[str, tuple[AnyPath, int, int]] = {}  # file, offset, length
        for index in folder.glob("*.json"):
            photos = index.with_suffix(".bin")
            rows = json.loads(index.read_bytes())
            self._found |= {url: (photos, offset, length) for url, offset, length in rows}
        self._writer = ThreadPoolExecutor(1)  # waiting for the disk would take a fifth of the time
        self._writes: list[tuple[AnyPath, Future[None]]] = []  # in progress: one, or none
        self._unwritten: dict[AnyPath, bytearray] = {}
        self._begin()

    def _begin(self) -> None:
        # a unique name: two workers may read the same segment, if a runner believes that one has died
        self._file = self._folder / f"{uuid.uuid4().hex}.bin"
        self._bytes = self._unwritten[self._file] = bytearray()
        self._rows: list[tuple[str, int, int]] = []

    def __contains__(self, url: str) -> bool:
        return url in self._found

    def add(self, url: str, data: bytes) -> Fetched:
        """Adds a photo; writes the chunk when it is full."""
        fetched = Fetched(url, data, path_text(self._file), len(self._bytes))
        self._bytes += data
        self._rows.append((url, fetched.offset, len(data)))
        self._found[url] = self._file, fetched.offset, len(data)
        if len(self._rows) >= CHUNK_IMAGES or len(self._bytes) >= CHUNK_BYTES:
            self._write()
        return fetched

    def read(self, url: str) -> Fetched:
        """A photo of the cache."""
        file, offset, length = self._found[url]
        unwritten = self._unwritten.get(file)
        data = read_range(file, offset, length) if unwritten is None else unwritten[offset : offset + length]
        return Fetched(url, bytes(data), path_text(file), offset)

    def _write(self) -> None:
        """Begins to write a chunk once the one before is written: a killed job loses at most two."""
        self._wait()
        write = self._writer.submit(_write_chunk, self._file, self._bytes, self._rows)
        self._writes.append((self._file, write))
        self._begin()

    def _wait(self) -> None:
        """Waits until nothing is being written."""
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


def _write_chunk(file: AnyPath, photos: bytearray, rows: list[tuple[str, int, int]]) -> None:
    with writing(file) as working:
        working.write_bytes(photos)
    # not Parquet, which takes 4 ms a chunk, as much as fetching ten photos
    write_whole(file.with_suffix(".json"), json.dumps(rows).encode())
