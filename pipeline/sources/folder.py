"""A folder of photos: each file is a product with one image; the category is the path below the root.

photos/Fruit/Apple/1.jpg         product Fruit/Apple/1.jpg, category Fruit/Apple, levels Fruit, Apple
photos/train/Fruit/Apple/1.jpg   beside photos/test/Fruit/Apple/…: the same, with the part given
"""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa

from features.errors import ShelfmarkError
from features.product import CategoryPaths, part_named, tidy_name
from features.spellings import log_merged
from features.storage.object_stores import Stat
from features.storage.paths import AnyPath, Remote, stats
from pipeline.job.progress import log
from pipeline.sources.image import Segment, digest_of_stats, is_text, path_text, stat_of
from pipeline.sources.listing import listing, write_listing

LISTED = 50_000  # files of a folder in memory at a time
# What operating systems and network disks leave behind, in lower case.
IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".ds_store", ".localized", ".apdisk"}
IGNORED_FOLDERS = {
    *("__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems"),
    *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
}


class _FolderScan(NamedTuple):
    """What one walk through a folder finds."""

    digest: str
    categories: Counter[str]  # as the folders are named → images
    ignored: int  # files
    undecodable: int  # files whose names are not UTF-8


@dataclass
class Folder:
    """A folder of photos; see Source."""

    path: AnyPath
    may_be_empty: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = readable(self.path.name)
        if not self.may_be_empty and not any(True for _ in self._files()):
            raise ShelfmarkError(
                f"{readable(str(self.path))}: an empty folder; expected photos in folders that name their "
                "categories; check the path"
            )

    def _files(
        self, ignored: list[str] | None = None, listed: Mapping[str, Stat] | None = None
    ) -> Iterator[str]:
        """Names of the files below the folder, with slashes, in order; without hidden and ignored ones.

        Args:
            ignored: the ignored names are appended to it.
            listed: the object store's listing, where it has been fetched.
        """
        if isinstance(self.path, Remote):
            names = iter(stats(self.path) if listed is None else listed)
        else:
            names = _walk(str(self.path), "", ())
        for name in names:
            if _is_ignored(name):
                if ignored is not None:
                    ignored.append(name)
            elif not re.search(r"(^|/)\.", name):
                yield name

    @cached_property
    def _scan(self) -> _FolderScan:
        """What one walk through the folder finds."""
        ignored: list[str] = []
        remote = stats(self.path) if isinstance(self.path, Remote) else None
        categories: Counter[str] = Counter()
        undecodable = 0

        def seen() -> Iterator[tuple[str, int, int]]:
            nonlocal undecodable
            for name in self._files(ignored, remote):
                categories[readable(name).rpartition("/")[0]] += 1
                undecodable += not is_text(name)
                if remote is None:
                    yield stat_of(self.path / name, name)
                else:
                    yield name, remote[name].st_size, remote[name].st_mtime_ns

        return _FolderScan(digest_of_stats(seen()), categories, len(ignored), undecodable)

    def digest(self) -> str:
        """See Source."""
        return self._scan.digest

    def ignored(self) -> int:
        """See Source."""
        return self._scan.ignored

    @cached_property
    def _parts(self) -> bool:
        """Whether the folders at the top are the parts of a split."""
        return are_parts(self._scan.categories)

    def paths(self) -> CategoryPaths:
        """See Source."""
        paths = CategoryPaths()
        for folder, images in self._scan.categories.items():
            if category := self._category(folder):
                paths[(category, tuple(category.split("/")))] += images
        return paths

    def _category(self, folder: str) -> str:
        """The category of the files in a folder, its names tidied one by one."""
        below = folder.partition("/")[2] if self._parts else folder
        return "/".join(map(tidy_name, below.split("/")))

    def segments(
        self, work: AnyPath, segment_bytes: int, segment_images: int, renamed: object = None
    ) -> list[Segment]:
        """See Source."""
        self._log()
        return write_listing(work, self._rows(), self.path, segment_images)

    def _log(self) -> None:
        tops = sorted({folder.partition("/")[0] for folder in self._scan.categories} - {""})
        if self._parts:
            log.info("%s: the folders %s are the parts of the split", self.name, ", ".join(tops))
        elif named := [top for top in tops if part_named(top)]:
            log.warning(
                "%s: folders %s have names of parts of a split, but are taken for categories; expected train "
                "and another part with the same names below, and no other folder beside them",
                self.name, ", ".join(named),
            )  # fmt: skip
        log_merged(f"{self.name}: folders", self._scan.categories)
        if self._scan.undecodable:
            log.warning(
                "%s: the names of %s files are not UTF-8; they are read as Windows-1252 where that works, "
                "else with escapes as in \\xe9", self.name, f"{self._scan.undecodable:,}",
            )  # fmt: skip

    def _rows(self) -> Iterator[pa.Table]:
        files = self._files()
        while names := list(itertools.islice(files, LISTED)):
            texts = [readable(name) for name in names]
            folders = [text.rpartition("/")[0] for text in texts]
            yield listing(
                {
                    "product_id": texts,
                    "image": [name if is_text(name) else path_text(self.path / name) for name in names],
                    "category": [self._category(folder) for folder in folders],
                    "split": [
                        (part_named(folder.partition("/")[0]) or "") if self._parts else ""
                        for folder in folders
                    ],
                }
            )


def _walk(folder: str, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """Names of the files in a folder, then of those in the folders below; links are followed.

    Hidden folders are left out, except those that are counted as ignored.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise ShelfmarkError(f"{folder}: a link to a folder above it; expected a tree; remove the link")
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    yield from (below + entry.name for entry in entries if not entry.is_dir())
    for entry in folders:
        if entry.name[0] != "." or entry.name.lower() in IGNORED_FOLDERS:
            yield from _walk(entry.path, f"{below}{entry.name}/", (*above, real))


def _is_ignored(name: str) -> bool:
    *folders, file = name.lower().split("/")
    return file in IGNORED or file.startswith("._") or not IGNORED_FOLDERS.isdisjoint(folders)


def readable(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8 as Windows-1252 where that works, else escaped.

    >>> readable("Caf\udce9/1.jpg"), readable("a\udc81.jpg")
    ('Café/1.jpg', 'a\\x81.jpg')
    """
    if is_text(name):
        return name
    return "/".join(_decoded(os.fsencode(part)) for part in name.split("/"))


def _decoded(name: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return name.decode(encoding)
        except UnicodeDecodeError:
            pass
    return name.decode(errors="backslashreplace")


def are_parts(folders: Mapping[str, int]) -> bool:
    """Whether the top folders are the parts of a split: two or more of them, with the same names below.

    >>> are_parts({"Train/Apple": 9, "train/Pear": 9, "test/Apple": 3, "": 1})
    True
    >>> are_parts({"train/Wagon": 9, "test/Tube": 3}), are_parts({"train/Apple": 9, "Apple": 3})
    (False, False)
    >>> are_parts({"train": 9, "test": 3})
    False
    """
    below: dict[str, set[str]] = defaultdict(set)
    for folder in filter(None, folders):  # files beside the parts, such as a LICENSE, do not matter
        top, _, rest = folder.partition("/")
        part = part_named(top)
        if not part:
            return False
        below[part] |= {tidy_name(rest)} - {""}
    trained = below.pop("train", set())
    return bool(below) and all(names & trained for names in below.values())


def shards_in(path: AnyPath) -> list[str]:
    """The names of a folder's Parquet files if it holds nothing else but notes, otherwise []."""
    tables = []
    for name in Folder(path, may_be_empty=True)._files():
        if name.lower().endswith(".parquet"):
            tables.append(name)
        elif not re.search(r"(?i)\.(md|json|txt|crc)$|(^|/)_[^/]*$", name):
            return []  # at once: of photos there may be millions
    return tables
