"""A manifest: a table of products, images and, for training, categories.

    product_id, image, category      and optionally level1…levelN, split, seller, weight; CSV, TSV or Parquet
    image (bytes), label, …          Parquet with the pictures inside, as Hugging Face's datasets writes it;
                                     one file, or a folder of shards

Headers are compared without case and blanks; other columns are never read.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from features.delimited import is_delimited
from features.errors import ShelfmarkError
from features.product import CategoryPaths, level_columns, part_named, tidy_name
from features.spellings import log_merged
from features.storage.paths import AnyPath
from pipeline.job.progress import log
from pipeline.sources.image import Segment, digest_of_stats, path_text, stat_of
from pipeline.sources.listing import existing, write_listing
from pipeline.sources.manifest_rows import USED, ManifestRows, take
from pipeline.sources.names import AS_NAMED, Renamed, nonblank
from pipeline.sources.tables import DETECTED, Columns, CsvOptions, DelimitedTable, ParquetTable


@dataclass(frozen=True)
class _ManifestScan:
    """What one pass over a manifest finds."""

    digest: str
    paths: CategoryPaths
    whole_ids: bool  # every id ends in .0
    names: Counter[str]  # of levels, as written → rows


@dataclass
class Manifest:
    """A CSV or Parquet manifest, or a folder of Parquet shards; see Source."""

    path: AnyPath
    options: CsvOptions = DETECTED
    may_be_empty: bool = False
    shards: list[str] = field(default_factory=list)  # names of the files of a folder
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        if not any(self._columns):
            if not self.may_be_empty:
                raise self._empty()
            return
        self._check_header()
        if not self.may_be_empty and not any(True for _ in self._rows()):
            raise self._empty()

    @property
    def names_products(self) -> bool:
        """Whether products have no ids of their own, so that file and row name them."""
        return any(isinstance(table, ParquetTable) and table.without_ids for table in self._tables)

    def _empty(self) -> ShelfmarkError:
        first = self._tables[0]
        return ShelfmarkError(
            f"{self.path}: no rows; expected product_id, image, …; {first.format}{first.advice}; check it"
        )

    def _check_header(self) -> None:
        columns, first = self._columns, self._tables[0]
        if lacking := [name for name in ("product_id", "image") if name not in columns]:
            raise ShelfmarkError(
                f"{self.path}: no column {' and no column '.join(lacking)}; found: {', '.join(columns)}; "
                "expected product_id, image and, for training, category; "
                f"{first.format}{first.advice}; correct the header"
            )
        if twice := sorted({name for name in self._used if columns.count(name) > 1}):
            raise ShelfmarkError(
                f"{self.path}: two columns {', '.join(twice)}; expected each once; correct the header"
            )
        for table in self._tables[1:]:
            if set(self._used) - set(table.columns) or table.pictures != first.pictures:
                raise ShelfmarkError(
                    f"{table.path}: other columns than {first.path}; expected shards of one table; "
                    "put other tables elsewhere"
                )

    @cached_property
    def _tables(self) -> list[DelimitedTable | ParquetTable]:
        try:
            if is_delimited(self.path.name):
                return [DelimitedTable(self.path, self.options)]
            if not self.shards:
                return [ParquetTable(self.path, self.name, "")]
            parts = shard_parts(self.shards)
            return [ParquetTable(self.path / name, name, part) for name, part in parts.items()]
        except (pa.ArrowException, OSError, EOFError, LookupError, UnicodeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ShelfmarkError:
        reason = str(error).partition("\n")[0]
        return ShelfmarkError(
            f"{self.path}: cannot be read: {reason}; expected a table in CSV, TSV or Parquet; check the file"
        )

    @property
    def _columns(self) -> list[str]:
        return self._tables[0].columns

    @property
    def _levels(self) -> list[str]:
        return level_columns(self._columns)

    @property
    def _used(self) -> list[str]:
        return [name for name in USED if name in self._columns] + self._levels

    def _rows(self) -> Iterator[Columns]:
        """The used columns, batch by batch."""
        try:
            for table in self._tables:
                yield from table.rows(self._used)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    @cached_property
    def _scan(self) -> _ManifestScan:
        """What one pass over the manifest finds."""
        paths, names, whole_ids, known = CategoryPaths(), Counter[str](), True, False

        def stats() -> Iterator[tuple[str, int, int]]:
            nonlocal whole_ids, known
            for name in self.shards or [""]:
                yield stat_of(self.path / name if name else self.path, name or self.name)
            for rows in self._rows():
                if whole_ids:
                    ids = [product_id for product_id in rows["product_id"] if product_id.strip()]
                    known |= bool(ids)
                    whole_ids = all(map(ends_in_zero, ids))
                for path, times in self._paths(rows):
                    paths[path] += times
                for level in self._levels:
                    names.update(nonblank(rows[level]))
                yield from self._stats(rows)

        return _ManifestScan(digest_of_stats(stats()), paths, whole_ids and known, names)

    def _paths(self, rows: Columns) -> Iterator[tuple[tuple[str, tuple[str, ...]], int]]:
        """Category and path of the rows that have a category, and how many rows have both."""
        if "category" not in rows:
            return
        columns = (rows[name] for name in ("category", *self._levels))
        for cells, times in Counter(zip(*columns, strict=True)).items():  # few: tidied once each
            name, *path = map(tidy_name, cells)
            if name:
                yield (name, tuple(filter(None, path))), times

    def _stats(self, rows: Columns) -> Iterator[tuple[str, int, int]]:
        """Sizes and times of the images on a disk; not of remote ones: each would cost a request."""
        if not isinstance(self.path, Path):
            return
        for image in rows["image"]:
            if image.strip() and "://" not in image:
                yield stat_of(existing(self.path.parent / image.strip()), image)

    def digest(self) -> str:
        """See Source."""
        return self._scan.digest if any(self._columns) else digest_of_stats([stat_of(self.path, self.name)])

    def paths(self) -> CategoryPaths:
        """See Source."""
        return self._scan.paths.copy() if any(self._columns) else CategoryPaths()

    def ignored(self) -> int:
        """See Source."""
        return 0

    def segments(
        self, work: AnyPath, segment_bytes: int, segment_images: int, renamed: Renamed = AS_NAMED
    ) -> list[Segment]:
        """See Source."""
        if not any(self._columns):
            return []
        self._log()
        root = self.path if self.shards else self.path.parent
        converted = ManifestRows(self.path, self._levels, self._scan.whole_ids, renamed)
        if not self._tables[0].pictures:
            segments = write_listing(work, converted.tables(self._rows()), root, segment_images)
        else:
            segments = [
                segment
                for table in self._tables
                if isinstance(table, ParquetTable)
                for segment in self._segments_of_pictures(table, work, root, segment_images, converted)
            ]
        ignored = converted.ignored_weights
        if ignored.rows:
            log.warning(
                "%s: %s weights are no numbers from 0 on, for example %r; these rows count as without weight",
                self.name, f"{ignored.rows:,}", ignored.example,
            )  # fmt: skip
        return segments

    def _segments_of_pictures(
        self, table: ParquetTable, work: AnyPath, root: AnyPath, segment_images: int, converted: ManifestRows
    ) -> Iterator[Segment]:
        """Segments of about `segment_images` rows, of whole row groups."""
        tables = converted.tables(table.rows(self._used))
        for start, stop in _groups_together(table.groups, segment_images):
            count = sum(table.groups[start:stop])
            own = take(tables, count)
            for segment in write_listing(work, iter([own]), root, max(1, count)):
                yield replace(segment, pictures=path_text(table.path), groups=(start, stop))

    def _log(self) -> None:
        table = self._tables[0]
        if isinstance(table, DelimitedTable):
            log.info("%s: %s%s", self.name, table.format, table.advice)
        if self._scan.whole_ids:
            log.warning("%s: every product_id ends in .0; they are read as whole numbers", self.name)
        passed = [name for name in self._columns if "level" in name and name not in self._levels]
        if passed:
            log.info("%s: columns %s are no levels; expected level1, level2, …", self.name, ", ".join(passed))
        if "weight" in self._columns:
            log.info("%s: its column weight gives the weights of the weighted figures", self.name)
        log_merged(f"{self.name}: levels", self._scan.names)
        if isinstance(table, ParquetTable) and table.part:
            log.info("%s: the names of its files are the parts of the split", self.name)


def _groups_together(groups: list[int], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of row groups with at least `rows` rows each; the last has what is left.

    >>> list(_groups_together([100, 100, 100, 0, 50], 200))
    [(0, 2), (2, 5)]
    """
    start = 0
    for stop in range(1, len(groups) + 1):
        if sum(groups[start:stop]) >= rows or stop == len(groups):
            yield start, stop
            start = stop


def shard_parts(names: list[str]) -> dict[str, str]:
    """Part of the split by the name of each shard, "" where the names do not say.

    >>> shard_parts(["train-00000-of-00002.parquet", "data/validation-00000-of-00001.parquet"])
    {'train-00000-of-00002.parquet': 'train', 'data/validation-00000-of-00001.parquet': 'val'}
    >>> shard_parts(["train-0.parquet", "train-1.parquet"])
    {'train-0.parquet': '', 'train-1.parquet': ''}
    """
    parts = {name: part_named(re.split(r"[-_.]", name.rpartition("/")[2])[0]) or "" for name in names}
    found = set(parts.values())
    return parts if "train" in found and len(found) > 1 and "" not in found else dict.fromkeys(names, "")


def ends_in_zero(product_id: str) -> bool:
    """Whether an id is a whole number that was written as a broken one, as 17.0."""
    return product_id.strip().removesuffix(".0").isdecimal() and product_id.strip().endswith(".0")
