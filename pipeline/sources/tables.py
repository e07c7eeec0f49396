"""Tables that a manifest can be: their columns as `header_name` gives them, and their cells as text."""

import itertools
import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from features.delimited import Dialect, TableRow, header_name, rows_of, sniff
from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, local
from pipeline.sources.cells import column_texts
from pipeline.sources.listing import picture_column

if TYPE_CHECKING:
    from pipeline.job.config import IngestSettings

BATCH = 10_000  # rows at a time
OF_MANIFESTS = frozenset({"product_id", "image"})  # columns by which the delimiter is found
Columns = dict[str, list[str]]  # column as `header_name` gives it → cells; "problem" among them


@dataclass(frozen=True)
class CsvOptions:
    """How delimited text is read; None: detected."""

    delimiter: str | None = None
    encoding: str | None = None


DETECTED = CsvOptions()


def csv_options(settings: "IngestSettings") -> CsvOptions:
    """How the settings want delimited text to be read."""
    return CsvOptions(settings.csv_delimiter, settings.csv_encoding)


class DelimitedTable:
    """A CSV or TSV file."""

    pictures = None

    def __init__(self, path: AnyPath, options: CsvOptions, needed: frozenset[str] = OF_MANIFESTS) -> None:
        self.path = path
        self._file = local(path)
        self.dialect: Dialect = sniff(self._file, needed, options.delimiter, options.encoding)
        header = next(rows_of(self._file, self.dialect), None)
        self.columns = list(map(header_name, header.cells)) if header else []
        self.format = f"read as {self.dialect}"
        guessed = [
            name
            for name, given in (("csv_delimiter", options.delimiter), ("csv_encoding", options.encoding))
            if not given
        ]
        self.advice = f" (ingest.{' and ingest.'.join(guessed)} override that)" if guessed else ""

    def rows(self, columns: list[str]) -> Iterator[Columns]:
        """Cells of these columns, BATCH rows at a time."""
        width = len(self.columns)
        least = max(column for column, name in enumerate(self.columns) if name) + 1
        rows = itertools.islice(rows_of(self._file, self.dialect), 1, None)
        chosen = [operator.itemgetter(self.columns.index(name)) for name in columns]
        while batch := list(itertools.islice(rows, BATCH)):
            problems = [row.problem or self._problem(row, width, least) for row in batch]
            cells = [
                row.cells if not problem else [""] * width
                for row, problem in zip(batch, problems, strict=True)
            ]
            yield {name: list(map(cell, cells)) for name, cell in zip(columns, chosen, strict=True)} | {
                "problem": problems
            }

    @staticmethod
    def _problem(row: TableRow, width: int, least: int) -> str:
        """Why a row cannot be used: a wrong number of cells, blank ones at its end not counted; else ""."""
        cells = len(row.cells)
        if cells == width or (cells >= least and not any(map(str.strip, row.cells[width:]))):
            return ""
        return f"line {row.line}: {cells} cells; expected {width}"


class ParquetTable:
    """A Parquet file; its metadata may hold the names that whole numbers of a column stand for."""

    format, advice = "Parquet", ""

    def __init__(self, path: AnyPath, name: str, part: str) -> None:
        self.path = path
        self.part = part  # of the split, "" where the columns may say
        self._file = local(path)
        self._name = re.sub(r"(?i)\.parquet$", "", name)  # of products that have no id
        with pq.ParquetFile(self._file) as file:
            schema = file.schema_arrow
            self.groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.pictures = picture_column(schema)
        kind = schema.field(self.pictures).type if self.pictures else None
        own_path = kind is not None and pa.types.is_struct(kind) and any(part.name == "path" for part in kind)
        self._paths_of_pictures = [f"{self.pictures}.path"] if own_path else []
        self._names = _label_names(schema)
        self._real = {header_name(name): name for name in schema.names}
        self.columns = [header_name(name) for name in schema.names]
        if "category" not in self.columns:  # as data sets of pictures call it
            for label in ("label", "labels"):
                if label in self.columns:
                    self.columns[self.columns.index(label)] = "category"
                    self._real["category"] = self._real[label]
                    break
        self.without_ids = bool(self.pictures) and "product_id" not in self.columns
        self.columns += ["product_id"] if self.without_ids else []
        self.columns += ["split"] if part and "split" not in self.columns else []

    def rows(self, columns: list[str]) -> Iterator[Columns]:
        """Cells of these columns, BATCH rows at a time and never of two row groups."""
        real = {name: self._real[name] for name in columns if name in self._real}
        if self.pictures:
            real.pop("image", None)
        read = [*real.values(), *self._paths_of_pictures]
        first = 0
        with pq.ParquetFile(self._file) as file:
            for group, count in enumerate(self.groups):
                for batch, rows in _batches(file, group, count, read):
                    yield self._rows(batch, columns, real, first, rows)
                    first += rows

    def _rows(
        self, batch: pa.RecordBatch, columns: list[str], real: dict[str, str], first: int, count: int
    ) -> Columns:
        rows: Columns = {name: [""] * count for name in [*columns, "problem"]}
        for name, own in real.items():
            rows[name] = self._texts(batch.column(batch.schema.names.index(own)), own)
        if self._paths_of_pictures:
            column = batch.column(batch.schema.names.index(self.pictures))
            rows["image"] = column_texts(column.field("path"))
        if self.without_ids:
            rows["product_id"] = [f"{self._name}/{first + row}" for row in range(count)]
        if self.part:
            rows["split"] = [self.part] * count
        return rows

    def _texts(self, column: pa.Array, name: str) -> list[str]:
        try:
            return column_texts(column, self._names.get(name))
        except pa.ArrowException as error:
            raise ShelfmarkError(
                f"{self.path}: column {name} is of type {column.type}; expected text or numbers; convert it"
            ) from error


def _batches(
    file: pq.ParquetFile, group: int, count: int, columns: list[str]
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The batches of a row group of `count` rows, with their numbers of rows."""
    if not columns:  # Arrow gives no batches of no columns
        yield pa.RecordBatch.from_pylist([{}] * count), count
        return
    for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns):
        yield batch, len(batch)


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """What the numbers in columns of ClassLabel stand for, as Hugging Face keeps it in the metadata."""
    try:
        columns = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in columns.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
