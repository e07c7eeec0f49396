"""A folder of photos: each file is a product with one image; the category is the path below the root."""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from features.errors import ShelfmarkError
from features.files import Place, Remote, stats
from features.product import Paths
from pipeline.sources.image import Unit, digest_of_stats, stat_of
from pipeline.sources.listing import listing, write_listing

LISTED = 50_000  # files of a folder in memory at a time


@dataclass
class Folder:
    """A folder of photos; see Source."""

    path: Place
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        if not any(True for _ in self._files()):
            raise ShelfmarkError(
                f"{self.path}: an empty folder; expected photos in folders that name their categories; "
                "check the path"
            )

    def _files(self) -> Iterator[str]:
        """Names below the folder, with slashes, in order; hidden ones left out."""
        if isinstance(self.path, Remote):
            names = iter(stats(self.path))
            yield from (name for name in names if not re.search(r"(^|/)\.", name))
            return
        yield from _walk(str(self.path), "", ())

    def digest(self) -> str:
        """See Source."""
        if isinstance(self.path, Remote):
            return digest_of_stats(
                (name, it.st_size, it.st_mtime_ns) for name, it in stats(self.path).items()
            )
        return digest_of_stats(stat_of(self.path / name, name) for name in self._files())

    def paths(self) -> Paths:
        """See Source."""
        categories = (name.rpartition("/")[0] for name in self._files())
        return Paths((category, tuple(category.split("/"))) for category in categories if category)

    def units(self, work: Place, unit_bytes: int, unit_images: int) -> list[Unit]:
        """See Source."""
        return write_listing(work, self._rows(), str(self.path), unit_images)

    def _rows(self) -> Iterator[pa.Table]:
        # a name that is not UTF-8 stands in no table: escaped, it becomes a reject of its own, `missing`
        texts = (name.encode(errors="backslashreplace").decode() for name in self._files())
        while names := list(itertools.islice(texts, LISTED)):
            category = [name.rpartition("/")[0] for name in names]
            yield listing({"product_id": names, "image": names, "category": category})


def _walk(folder: str, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """Names of the files in a folder and, after them, of those further down; links are followed."""
    real = os.path.realpath(folder)
    if real in above:
        raise ShelfmarkError(f"{folder}: a link to a folder above it; expected a tree; remove the link")
    entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda e: e.name)
    folders = [entry for entry in entries if entry.is_dir()]
    yield from (below + entry.name for entry in entries if not entry.is_dir())
    for entry in folders:
        yield from _walk(entry.path, f"{below}{entry.name}/", (*above, real))
