"""Decisions: one row a product, the same from batch and from evaluation, in the format of the file's suffix.

    .parquet       SCHEMA as it is
    .csv  .csv.gz  UTF-8, a line of names, then a line a product; texts in quotation marks (RFC 4180), null
                   is an empty cell; a list is a JSON text: "[""apple"",""pear""]"
    .jsonl         UTF-8, one JSON object a line, with real lists and nulls

Texts are written as they came, ids too: a spreadsheet may take one that begins with = for a formula.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, writing

SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("category", pa.string()),  # the most likely one; null when unreadable
        ("category_path", pa.string()),  # its names from coarse to fine, joined by " / "
        ("confidence", pa.float64()),  # calibrated probability that the category is correct
        ("status", pa.string()),  # accepted, parent, review, unreadable
        (
            "node",
            pa.string(),
        ),  # what was decided: the category, or with status parent a node above it; or null
        ("node_path", pa.string()),  # its names from coarse to fine, joined by " / "
        ("node_level", pa.int32()),  # its level, 1 = coarsest
        ("top_categories", pa.list_(pa.string())),  # up to five, most likely first
        ("top_probabilities", pa.list_(pa.float64())),  # the head's, of these categories
        ("release", pa.string()),  # name of the release that decided; null in an evaluation
    ]
)
REJECTS = ".rejects.parquet"  # what the name of the rejects beside the decisions ends with

JSON_ROWS = 2**12  # made Python objects at a time

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
Write = Callable[[pa.Table], None]


def write_decisions(pieces: Iterable[pd.DataFrame], file: AnyPath) -> None:
    """Writes decisions piece by piece; the file is there whole or not at all.

    Args:
        pieces: tables with the columns of SCHEMA, of which one at a time is in memory.
        file: its suffix gives the format.

    Raises:
        ShelfmarkError: the suffix is none of the formats.
    """
    with writing(file) as working, WRITERS[_ending(file)](working) as write:
        for piece in pieces:
            write(pa.Table.from_pandas(piece, SCHEMA, preserve_index=False))


def require_format(file: AnyPath) -> None:
    """Raises a ShelfmarkError when the suffix is none of the formats, or a directory has the name."""
    _ending(file)
    if file.is_dir():
        raise ShelfmarkError(f"{file}: a directory; expected the name of a file; give another --output")


def rejects_beside(file: AnyPath) -> AnyPath:
    """The file of the refused images: `a.rejects.parquet` beside `a.csv.gz`."""
    return file.with_name(file.name[: -len(_ending(file))] + REJECTS)


def _ending(file: AnyPath) -> str:
    """The key in WRITERS; capitals do not matter."""
    name = file.name.lower()
    for ending in WRITERS:
        if name.endswith(ending) and name != ending:
            return ending
    *most, last = WRITERS
    raise ShelfmarkError(
        f"{file}: its suffix is no format; expected {', '.join(most)} or {last}; give another --output"
    )


# The formats


@contextmanager
def _parquet(file: Path) -> Iterator[Write]:
    with pq.ParquetWriter(file, SCHEMA) as writer:
        yield writer.write_table


@contextmanager
def _csv(file: Path) -> Iterator[Write]:
    with open(file, "wb") as out, _csv_writer(out) as write:
        yield write


@contextmanager
def _csv_gz(file: Path) -> Iterator[Write]:
    with (
        open(file, "wb") as out,
        # without name and time in it, the same decisions give the same bytes
        gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
        _csv_writer(packed) as write,
    ):
        yield write


@contextmanager
def _csv_writer(out: IO[bytes] | gzip.GzipFile) -> Iterator[Write]:
    schema = pa.schema(
        [pa.field(one.name, pa.string() if pa.types.is_list(one.type) else one.type) for one in SCHEMA]
    )
    with CSVWriter(out, schema) as writer:

        def write(table: pa.Table) -> None:
            columns = [
                pa.array(map(_json, column.to_pylist()), pa.string())
                if pa.types.is_list(column.type)
                else column
                for column in table.columns
            ]
            writer.write_table(pa.table(columns, schema=schema))

        yield write


@contextmanager
def _jsonl(file: Path) -> Iterator[Write]:
    with open(file, "w", encoding="utf-8", newline="\n") as out:

        def write(table: pa.Table) -> None:
            for batch in table.to_batches(JSON_ROWS):
                out.writelines(_json(row) + "\n" for row in batch.to_pylist())

        yield write


WRITERS = {".parquet": _parquet, ".csv": _csv, ".csv.gz": _csv_gz, ".jsonl": _jsonl}
