"""Reading decisions: a table at a time, from every format that decisions_file.py writes."""

import gzip
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath
from pipeline.job.decisions_file import SCHEMA

ROWS = 2**16  # of a table, about


def decision_tables(
    file: AnyPath, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Reads columns of a file of decisions, a table at a time.

    Args:
        file: .parquet, .csv, .csv.gz or .jsonl, as `shelfmark categorize` writes them.
        columns: of SCHEMA, none of them a list.
        optional: columns of SCHEMA that an older file may lack; their values are null there.

    Yields:
        Tables with the columns, then the optional ones, in the types of SCHEMA.

    Raises:
        ShelfmarkError: the file is missing, damaged, of another format, or lacks a column.
    """
    if not file.is_file():
        raise ShelfmarkError(
            f"{file}: no such file; expected decisions of `shelfmark categorize`; check the path"
        )
    name = file.name.lower()
    readers = {".parquet": _parquet, ".csv": _csv, ".csv.gz": _csv_gz, ".jsonl": _jsonl}
    found = [reader for ending, reader in readers.items() if name.endswith(ending)]
    if not found:
        *most, last = readers
        raise ShelfmarkError(
            f"{file}: its suffix is no format; expected {', '.join(most)} or {last}; give the file that "
            "`shelfmark categorize` wrote"
        )
    wanted = [*columns, *optional]
    try:
        with file.open("rb") as opened:
            for table in found[0](cast(IO[bytes], opened), wanted):
                yield _complete(table, columns, optional, file)
    except (
        pa.ArrowException,
        gzip.BadGzipFile,
        EOFError,
        UnicodeDecodeError,
        ValueError,
        AttributeError,
    ) as error:
        problem = " ".join(str(error).split())[:200]
        raise ShelfmarkError(
            f"{file}: cannot be read: {problem}; expected decisions; categorize again"
        ) from error


def _complete(table: pa.Table, columns: Sequence[str], optional: Sequence[str], file: AnyPath) -> pa.Table:
    """The columns in their order and types; null for optional ones that are missing."""
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ShelfmarkError(
            f"{file}: lacks the columns {', '.join(missing)}; expected those of decisions; give the file "
            "that `shelfmark categorize` wrote"
        )
    return pa.table(
        {
            name: table[name].cast(SCHEMA.field(name).type if name in SCHEMA.names else pa.string())
            if name in table.column_names
            else pa.nulls(len(table), pa.string())
            for name in (*columns, *optional)
        }
    )


def _parquet(opened: IO[bytes], wanted: list[str]) -> Iterator[pa.Table]:
    file = pq.ParquetFile(opened)
    there = [name for name in wanted if name in file.schema_arrow.names]
    yield file.schema_arrow.empty_table().select(there)  # of no rows: the columns are checked even so
    for batch in file.iter_batches(ROWS, columns=there):
        yield pa.Table.from_batches([batch])


def _csv(opened: IO[bytes], wanted: list[str]) -> Iterator[pa.Table]:
    types = {name: SCHEMA.field(name).type if name in SCHEMA.names else pa.string() for name in wanted}
    convert = pacsv.ConvertOptions(
        column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
    )
    parse = pacsv.ParseOptions(newlines_in_values=True)
    reader = pacsv.open_csv(opened, parse_options=parse, convert_options=convert)
    yield reader.schema.empty_table()
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _csv_gz(opened: IO[bytes], wanted: list[str]) -> Iterator[pa.Table]:
    with gzip.open(opened) as unpacked:
        yield from _csv(cast(IO[bytes], unpacked), wanted)


def _jsonl(opened: IO[bytes], wanted: list[str]) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    for line in opened:
        rows.append(json.loads(line))
        if len(rows) == ROWS:
            yield _from_objects(rows, wanted)
            rows = []
    if rows:
        yield _from_objects(rows, wanted)


def _from_objects(rows: list[dict[str, Any]], wanted: list[str]) -> pa.Table:
    there = [name for name in wanted if name in rows[0]]
    return pa.table({name: pa.array([row[name] for row in rows]) for name in there})
