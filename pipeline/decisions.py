"""Decisions as files: one row a product, the same from batch and from evaluation.

.parquet          with the types of SCHEMA
.csv  .csv.gz     UTF-8, a header, lists as JSON, nothing where there is nothing
.jsonl            UTF-8, an object a line
"""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.files import Place, writing

SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("category", pa.string()),  # the most likely one; null when unreadable
        ("category_path", pa.string()),  # its names from coarse to fine, joined by " / "
        ("confidence", pa.float64()),  # calibrated probability that it is right
        ("status", pa.string()),  # accepted, review, unreadable
        ("node", pa.string()),  # what was decided; null unless accepted
        ("node_path", pa.string()),
        ("node_level", pa.int32()),  # its level, 1 = coarsest
        ("top_categories", pa.list_(pa.string())),  # five, most likely first
        ("top_probabilities", pa.list_(pa.float64())),  # theirs, not calibrated
    ]
)
FORMATS = (".parquet", ".csv", ".csv.gz", ".jsonl")
ROWS = 10_000  # made Python objects at a time


def format_of(output: Place) -> str:
    """One of FORMATS, by the name of the file.

    Raises:
        ShelfmarkError: it has another ending.
    """
    found = next((ending for ending in FORMATS if output.name.lower().endswith(ending)), None)
    if found is None:
        raise ShelfmarkError(
            f"{output}: not a format of decisions; expected a name in {', '.join(FORMATS)}; change --output"
        )
    return found


def rejects_of(output: Place) -> Place:
    """Where the refused images of a file of decisions are listed."""
    return output.with_name(output.name[: -len(format_of(output))] + ".rejects.parquet")


def write_decisions(decisions: pd.DataFrame, file: Place) -> None:
    """Writes decisions, whole or not at all, in the format that the name says."""
    table = pa.Table.from_pandas(decisions, SCHEMA, preserve_index=False)
    kind = format_of(file)
    with writing(file) as working:
        if kind == ".parquet":
            pq.write_table(table, working)
        elif kind == ".jsonl":
            with open(working, "w", encoding="utf-8", newline="\n") as text:
                text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(table))
        else:
            _write_csv(table, working, zipped=kind == ".csv.gz")


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    return itertools.chain.from_iterable(
        table.slice(start, ROWS).to_pylist() for start in range(0, len(table), ROWS)
    )


def _write_csv(table: pa.Table, working: Path, zipped: bool) -> None:
    with open(working, "wb") as file:
        if not zipped:
            _write_rows(table, file)
            return
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # no name, no date: the same bytes
            _write_rows(table, cast(BinaryIO, packed))


def _write_rows(table: pa.Table, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(cast(TextIO, text))
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow(map(_cell, row.values()))
    text.flush()
    text.detach()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
