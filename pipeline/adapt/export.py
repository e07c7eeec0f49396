"""All corrections of a workspace as a file, ended ones too, for people and other programs.

.csv  .jsonl  .parquet    EXPORTED, in the order in which they were made; vectors are left out
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, writing
from models.corrections.store import Corrections

ROWS = 10_000  # at a time
EXPORTED = pa.schema(
    [("id", pa.int64())]
    + [(name, pa.string()) for name in ("seller", "product_id", "category", "who")]
    + [("when", pa.timestamp("us", "UTC"))]
    + [(name, pa.string()) for name in ("comment", "release")]
    + [("images", pa.list_(pa.string())), ("fingerprint", pa.string())]
    + [("base", pa.string()), ("evidence", pa.float64())]  # as the head of its release saw it
    + [("ended", pa.timestamp("us", "UTC")), ("because", pa.string())]  # null: in use; undone or replaced
)
Rows = Iterator[dict[str, object]]


def export_corrections(corrections: Corrections, file: AnyPath, seller: str | None = None) -> int:
    """Writes corrections to a file; returns how many.

    Args:
        corrections: the store.
        file: .csv, .jsonl or .parquet.
        seller: of him alone; None: of all.

    Raises:
        ShelfmarkError: the suffix is none of these.
    """
    write = WRITERS.get(file.suffix.lower())
    if write is None:
        raise ShelfmarkError(
            f"{file}: its suffix is no format; expected {', '.join(WRITERS)}; give another file"
        )
    count = itertools.count()
    rows = ({name: row[name] for name in EXPORTED.names} for row in corrections.export(seller))
    with writing(file) as working:
        write((row for row, _ in zip(rows, count, strict=False)), working)
    return next(count)


def _write_csv(rows: Rows, file: Path) -> None:
    with open(file, "w", encoding="utf-8-sig", newline="") as out:
        writer = csv.DictWriter(out, EXPORTED.names)
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)


def _write_jsonl(rows: Rows, file: Path) -> None:
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            _json_line(row, out)


def _json_line(row: dict[str, object], out: IO[str]) -> None:
    json.dump(row, out, ensure_ascii=False, default=_text)
    out.write("\n")


def _write_parquet(rows: Rows, file: Path) -> None:
    with pq.ParquetWriter(file, EXPORTED) as writer:
        while batch := list(itertools.islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, EXPORTED))


def _text(value: object) -> object:
    """A value as a cell: lists between blanks, times in ISO 8601."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value.isoformat() if hasattr(value, "isoformat") else value


WRITERS: dict[str, Callable[[Rows, Path], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
