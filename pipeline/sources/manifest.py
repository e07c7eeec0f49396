"""A manifest, CSV or Parquet: product_id, image, category, optionally level1…levelN, split, seller."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.files import Place, local
from features.product import PARTS, Paths
from pipeline.sources.image import Unit, digest_of_stats, stat_of
from pipeline.sources.listing import LISTING, cell_text, listing, write_listing


@dataclass
class Manifest:
    """A CSV or Parquet manifest; see Source."""

    path: Place
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        columns = next(self._tables(), pa.table({})).column_names
        if not columns:
            raise ShelfmarkError(f"{self.path}: no rows; expected product_id, image, …; mend the file")
        lacking = [name for name in ("product_id", "image") if name not in columns]
        if lacking:
            raise ShelfmarkError(
                f"{self.path}: no column {' and no column '.join(lacking)}; found: {', '.join(columns)}; "
                "expected product_id, image and, to learn from, category, between commas; mend the header"
            )

    def _tables(self) -> Iterator[pa.Table]:
        """The manifest in pieces, every cell a text without blanks around it, "" where empty."""
        kind, file = self.path.suffix, local(self.path)
        try:
            for batch in _csv_batches(file) if kind == ".csv" else pq.ParquetFile(file).iter_batches():
                names = batch.schema.names
                if len(set(names)) < len(names):
                    twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
                    raise ShelfmarkError(
                        f"{self.path}: two columns {twice}; expected each once; mend the header"
                    )
                # not by pandas: it makes 5.0 of an integer 5 where another cell of the column is empty
                cells = {name: list(map(cell_text, column)) for name, column in batch.to_pydict().items()}
                yield pa.table(cells, schema=pa.schema([(name, pa.string()) for name in cells]))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            utf8 = " in UTF-8" if kind == ".csv" else ""
            raise ShelfmarkError(
                f"{self.path}: cannot be read: {reason}; expected a {kind} table{utf8}; mend the file"
            ) from error

    def digest(self) -> str:
        """See Source."""
        return digest_of_stats(itertools.chain([stat_of(self.path, self.name)], self._stats()))

    def _stats(self) -> Iterator[tuple[str, int, int]]:
        """Of its images on a disk; those on an object store are told by the manifest: a stat is a request."""
        if isinstance(self.path, Path):
            for table in self._tables():
                images = (image for image in table["image"].to_pylist() if image and "://" not in image)
                yield from (stat_of(self.path.parent / image, image) for image in images)

    def paths(self) -> Paths:
        """See Source."""
        paths = Paths()
        for table in self._tables():
            if "category" not in table.column_names:
                return paths
            levels = sorted(
                (c for c in table.column_names if re.fullmatch(r"level\d+", c)), key=lambda c: int(c[5:])
            )
            for category, *names in zip(
                *(table[name].to_pylist() for name in ("category", *levels)), strict=True
            ):
                if category:
                    paths[(category, tuple(name for name in names if name))] += 1
        return paths

    def units(self, work: Place, unit_bytes: int, unit_images: int) -> list[Unit]:
        """See Source."""
        return write_listing(work, self._rows(), str(self.path.parent), unit_images)

    def _rows(self) -> Iterator[pa.Table]:
        for table in self._tables():
            rows = listing({name: table[name] for name in LISTING if name in table.column_names})
            wrong = sorted(set(rows["split"].to_pylist()) - {"", *PARTS})
            if wrong:
                raise ShelfmarkError(
                    f"{self.path}: split {wrong[0]!r}; expected {', '.join(PARTS)} or nothing; mend the file"
                )
            yield rows


def _csv_batches(path: Path) -> Iterable[pa.RecordBatch]:
    """A CSV's batches with every column as text (numbers and dates as ids must not be re-written)."""
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with open(path, "rb") as file:
        header = pa.csv.open_csv(file, parse_options=parse).schema.names
    texts = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in header}, strings_can_be_null=False
    )
    return pa.csv.open_csv(path, parse_options=parse, convert_options=texts)
