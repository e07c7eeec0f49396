"""What a source gives: segments that a worker reads on its own, and images with where their bytes are."""

import errno
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, any_path, read_range

SPAN_BYTES = 2**20  # read at once, where the gaps between images are at most GAP_BYTES
GAP_BYTES = 2**14

# A missing file is a reject; a store that does not answer, a disk that fails or a file without permission
# to read is an error: a reject would stay when the cause is gone.
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)

ImageKey = tuple[str, int]  # file and offset of an image


@dataclass(frozen=True)
class Segment:
    """What one worker reads of a source: bytes `start` to `stop` of a BSON, or a row group of a listing."""

    file: str
    start: int
    stop: int
    root: str = ""  # of a listing: the folder that its image paths are relative to
    pictures: str = ""  # of a listing: the Parquet file that holds the images themselves
    groups: tuple[int, int] = (0, 0)  # and its row groups, from and to


class SourceImage(NamedTuple):
    """One image as a source gives it, or the reason why it gives none."""

    product_id: str
    category: str = ""  # as written in the source; "" = uncategorized
    split: str = ""  # "" = not given
    seller: str = ""
    file: str = ""
    offset: int = 0  # bytes; -1: they cannot be read again as a range of the file
    data: bytes = b""
    reason: str = ""
    detail: str = ""
    origin: str = ""  # the name that people know, where its bytes were copied into `file`
    weight: float | None = None  # of the product: its views or its value; None = not given


def read_images(
    file: list[str], offset: list[int], length: list[int], checksum: list[int]
) -> Iterator[bytes | None]:
    """The bytes of images, read again; neighbours by one read, which halves the time.

    Args:
        file: paths or URLs.
        offset: of the images in them, bytes.
        length: bytes.
        checksum: their crc32c at the first reading.

    Yields:
        The bytes of each; None where they are gone or have changed.
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
        try:
            data = read_range(any_path(file[first]), start, end - start)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            data = b""
        for image in range(first, last + 1):
            piece = data[offset[image] - start : offset[image] - start + length[image]]
            yield piece if google_crc32c.value(piece) == checksum[image] else None
        first = last + 1


class Changed(ShelfmarkError):
    """Images that were readable are gone or have changed.

    Attributes:
        images: their files and offsets.
    """

    def __init__(self, images: set[ImageKey]) -> None:
        super().__init__(f"{len(images):,} images changed while they were read, for example {min(images)[0]}")
        self.images = images


def changed(file: str) -> ShelfmarkError:
    """The error about a container of images that has changed since it was opened."""
    return ShelfmarkError(
        f"{file}: changed while it was read; expected a file that no program writes to; run the command again"
    )


def refuse_changed_container(file: str) -> None:
    """Raises a ShelfmarkError for a BSON in which an image has changed: all that follow may have moved."""
    if file.lower().endswith(".bson"):
        raise changed(file)


def digest_of_stats(stats: Iterable[tuple[str, int, int]]) -> str:
    """Sha256 (hex) of names, sizes and times; a missing file has -1, so that its appearance is a change."""
    digest = hashlib.sha256()
    for name, size, time in stats:
        digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def stat_of(path: AnyPath, name: str) -> tuple[str, int, int]:
    """Name, size (bytes) and modification time (ns) of a file; -1 where it is missing."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # no path has a NUL in it
        return name, -1, -1
    return name, found.st_size, found.st_mtime_ns


def path_text(path: AnyPath) -> str:
    """A path as text that Parquet and JSON can hold; `any_path` reads it back.

    >>> from pathlib import Path
    >>> path_text(Path("/shop/1.jpg")), path_text(Path("/shop/Caf\\udce9/1.jpg"))
    ('/shop/1.jpg', 'file:///shop/Caf%E9/1.jpg')
    """
    if isinstance(path, Path) and not is_text(str(path)):
        return path.absolute().as_uri()
    return str(path)


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8: other bytes are in it as surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
