"""What a source gives: units that a worker reads on its own, and images with where their bytes stand."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import google_crc32c

from features.errors import ShelfmarkError
from features.files import Place, place, read_range

SPAN_BYTES = 2**20  # read at once, where images stand closer together than
GAP_BYTES = 2**14


@dataclass(frozen=True)
class Unit:
    """A piece of a source for one worker: bytes `start` to `stop` of a BSON, or a row group of a listing."""

    file: str
    start: int
    stop: int
    root: str = ""  # of a listing: what its image paths are relative to


class SourceImage(NamedTuple):
    """One image as a source gives it, or the reason why it gives none."""

    product_id: str
    category: str = ""  # "" = uncategorized
    split: str = ""  # "" = not given
    seller: str = ""
    file: str = ""
    offset: int = 0
    length: int = -1  # bytes; -1 = the whole file
    data: bytes = b""
    reason: str = ""
    detail: str = ""


def read_images(
    file: list[str], offset: list[int], length: list[int], checksum: list[int]
) -> Iterator[bytes]:
    """Bytes of images that were looked at before; neighbours by one read, which halves the time.

    Args:
        file: paths or URLs.
        offset: of the images in them, bytes.
        length: bytes.
        checksum: their crc32c then.

    Raises:
        ShelfmarkError: they are not the same any more.
    """
    first = 0
    while first < len(file):
        last, start, end = first, offset[first], offset[first] + length[first]
        while (
            last + 1 < len(file)
            and file[last + 1] == file[first]
            and 0 <= offset[last + 1] - end <= GAP_BYTES
            and end - start < SPAN_BYTES
        ):
            last += 1
            end = offset[last] + length[last]
        data = read_range(place(file[first]), start, end - start)
        for image in range(first, last + 1):
            piece = data[offset[image] - start : offset[image] - start + length[image]]
            if google_crc32c.value(piece) != checksum[image]:
                raise changed(file[image])
            yield piece
        first = last + 1


def changed(file: str) -> ShelfmarkError:
    """The error about a source that is not what it was a moment ago."""
    return ShelfmarkError(f"{file}: changed while it was read; expected a source at rest; run again")


def digest_of_stats(stats: Iterable[tuple[str, int, int]]) -> str:
    """Sha256 (hex) of names, sizes and times; -1 for what is missing: when it appears, that is a change."""
    digest = hashlib.sha256()
    for name, size, time in stats:
        digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def stat_of(path: Place, name: str) -> tuple[str, int, int]:
    """Name, size (bytes) and modification time (ns); -1 for what is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # no path has a NUL in it
        return name, -1, -1
    return name, found.st_size, found.st_mtime_ns
