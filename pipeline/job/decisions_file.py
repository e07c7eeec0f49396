"""Decisions: one row a product, the same from batch and from evaluation, in the format of the file's suffix.

    .parquet       SCHEMA as it is; where sellers' corrections count, ADAPTED after it: WITH_ADAPTED
    .csv  .csv.gz  UTF-8, a line of names, then a line a product; texts in quotation marks (RFC 4180), null
                   is an empty cell; a list is a JSON text: "[""apple"",""pear""]"
    .jsonl         UTF-8, one JSON object a line, with real lists and nulls

`read_decisions` reads each of them back, piece by piece, and also a folder of parts (decisions_output.py) and
a table of a database (decisions_table.py).

Texts are written as they came, ids too: a spreadsheet may take one that begins with = for a formula.
"""

import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import ConvertOptions, CSVWriter, ParseOptions, open_csv
from pyarrow.json import ParseOptions as JsonOptions
from pyarrow.json import read_json

from features.errors import ShelfmarkError
from features.storage.artifact import file_digest
from features.storage.paths import AnyPath, Remote, sizes, writing

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
        ("views", pa.string()),  # of its photos, that decided, joined by commas; null when unreadable
        ("release", pa.string()),  # name of the release that decided; null in an evaluation
    ]
)
ADAPTED = pa.schema(
    [
        ("adapted", pa.bool_()),  # whether the seller's corrections made the decision
        ("base_category", pa.string()),  # the head's; null where the seller has no corrections in use
        ("corrections", pa.int32()),  # of the seller, in use when it was decided
    ]
)
WITH_ADAPTED = pa.schema([*SCHEMA, *ADAPTED])
REJECTS = ".rejects.parquet"  # what the name of the rejects beside the decisions ends with
FOLDER_MARK = "_manifest.json"  # of a folder of parts, written last

LATER = (
    "views",
    "release",
    *ADAPTED.names,
)  # columns that files of earlier versions lack, or of other batches

JSON_ROWS = 2**12  # made Python objects at a time
READ_ROWS = 2**15  # of a Parquet file, in memory at a time

json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
Write = Callable[[pa.Table], None]
Read = Callable[[BinaryIO, Sequence[str]], Iterator[pa.Table]]  # of the columns at least


class StoredDecisions(Protocol):
    """Decisions that are no file, such as a table of a database."""

    @property
    def name(self) -> str:
        """What they are called where a file's name would stand."""
        ...

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yields the columns, of WITH_ADAPTED, piece by piece; null where a column of LATER is missing."""
        ...

    def digest(self) -> str:
        """Returns the sha256 (hex) of all that is in them."""
        ...


def write_decisions(pieces: Iterable[pd.DataFrame], file: AnyPath) -> None:
    """Writes decisions piece by piece; the file is there whole or not at all.

    Args:
        pieces: tables with the columns of SCHEMA, of which one at a time is in memory.
        file: its suffix gives the format.

    Raises:
        ShelfmarkError: the suffix is none of the formats.
    """
    with writing(file) as working, file_writer(file, working) as write:
        for piece in pieces:
            write(pa.Table.from_pandas(piece, SCHEMA, preserve_index=False))


def file_writer(file: AnyPath, working: Path, schema: pa.Schema = SCHEMA) -> AbstractContextManager[Write]:
    """Opens `working` for decisions of this schema, in the format that the suffix of `file` gives."""
    return WRITERS[_ending(file)](working, schema)


def read_decisions(source: AnyPath | StoredDecisions, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields decisions piece by piece, as `shelfmark categorize` has written them.

    Args:
        source: a file, whose suffix gives the format, a folder of parts, or a table.
        columns: of WITH_ADAPTED; one that the file lacks because it is older, or no seller had corrections,
            is null.

    Raises:
        ShelfmarkError: the decisions are missing or damaged, the suffix is none of the formats, or a column
            is missing.
    """
    if not isinstance(source, Path | Remote):
        with _reading(source):
            for piece in source.read(columns):
                yield _of_schema(piece, columns, source)
        return
    for file in parts_of(source) if source.is_dir() else [source]:
        read = READERS[_ending(file)]
        if not file.is_file():
            raise ShelfmarkError(
                f"{file}: no such file; expected decisions of `shelfmark categorize`; check the path"
            )
        with _reading(file), file.open("rb") as opened:
            for piece in read(opened, columns):
                yield _of_schema(piece, columns, file)


@contextmanager
def _reading(source: AnyPath | StoredDecisions) -> Iterator[None]:
    """What shows that something is damaged becomes a ShelfmarkError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ShelfmarkError(
            f"{source}: cannot be read ({' '.join(str(error).split())[:200]}); expected decisions as "
            "`shelfmark categorize` writes them; make them again"
        ) from error


def parts_of(folder: AnyPath) -> list[AnyPath]:
    """Returns the parts of a folder of decisions, in their order.

    Raises:
        ShelfmarkError: the folder is not finished, or a part is missing or has another size.
    """
    advice = "expected a folder that `shelfmark categorize` has finished; run its command again"
    try:
        files = json.loads((folder / FOLDER_MARK).read_bytes())["files"]
        expected = {name: int(entry["size"]) for name, entry in files.items()}
    except FileNotFoundError:
        raise ShelfmarkError(f"{folder}: no {FOLDER_MARK} in it; {advice}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShelfmarkError(f"{folder}: {FOLDER_MARK} cannot be read; {advice}") from error
    found = sizes(folder)
    for name, size in expected.items():
        if found.get(name) != size:
            there = f"{found[name]:,} bytes instead of {size:,}" if name in found else "missing"
            raise ShelfmarkError(f"{folder / name}: {there}; {advice}")
    return [folder / name for name in expected]


def decisions_digest(source: AnyPath | StoredDecisions) -> str:
    """Returns the sha256 (hex) of the file, of the folder's list of parts, or of the table's rows."""
    if not isinstance(source, Path | Remote):
        return source.digest()
    return file_digest(source / FOLDER_MARK if source.is_dir() else source)


def _of_schema(piece: pa.Table, columns: Sequence[str], file: AnyPath | StoredDecisions) -> pa.Table:
    """The columns in the types of WITH_ADAPTED; a list that is a JSON text is decoded."""
    if missing := [name for name in columns if name not in (*piece.column_names, *LATER)]:
        raise ShelfmarkError(
            f"{file}: no column {' and no column '.join(missing)}; found: {', '.join(piece.column_names)}; "
            "expected decisions as `shelfmark categorize` writes them; give that file"
        )
    arrays = []
    for name in columns:
        kind = WITH_ADAPTED.field(name).type
        if name not in piece.column_names:
            arrays.append(pa.nulls(len(piece), kind))
        elif pa.types.is_list(kind) and not pa.types.is_list(piece[name].type):
            texts = piece[name].to_pylist()
            arrays.append(pa.array([None if text is None else json.loads(text) for text in texts], kind))
        else:
            arrays.append(piece[name].cast(kind))
    return pa.table(dict(zip(columns, arrays, strict=True)))


def require_format(file: AnyPath) -> None:
    """Raises a ShelfmarkError when the suffix is none of the formats, or a directory has the name."""
    _ending(file)
    if file.is_dir():
        raise ShelfmarkError(f"{file}: a directory; expected the name of a file; give another --output")


def rejects_beside(file: AnyPath) -> AnyPath:
    """The file of the refused images: `a.rejects.parquet` beside `a.csv.gz`, and beside a folder `a/`."""
    ending = next((one for one in WRITERS if file.name.lower().endswith(one)), "")
    return file.with_name(file.name[: len(file.name) - len(ending)] + REJECTS)


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
def _parquet(file: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(file, schema) as writer:
        yield writer.write_table


@contextmanager
def _csv(file: Path, schema: pa.Schema) -> Iterator[Write]:
    with open(file, "wb") as out, _csv_writer(out, schema) as write:
        yield write


@contextmanager
def _csv_gz(file: Path, schema: pa.Schema) -> Iterator[Write]:
    with (
        open(file, "wb") as out,
        # without name and time in it, the same decisions give the same bytes
        gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
        _csv_writer(packed, schema) as write,
    ):
        yield write


@contextmanager
def _csv_writer(out: IO[bytes] | gzip.GzipFile, schema: pa.Schema) -> Iterator[Write]:
    cells = pa.schema(
        [pa.field(one.name, pa.string() if pa.types.is_list(one.type) else one.type) for one in schema]
    )
    with CSVWriter(out, cells) as writer:

        def write(table: pa.Table) -> None:
            columns = [
                pa.array(map(json_text, column.to_pylist()), pa.string())
                if pa.types.is_list(column.type)
                else column
                for column in table.columns
            ]
            writer.write_table(pa.table(columns, schema=cells))

        yield write


@contextmanager
def _jsonl(file: Path, schema: pa.Schema) -> Iterator[Write]:
    with open(file, "w", encoding="utf-8", newline="\n") as out:

        def write(table: pa.Table) -> None:
            for batch in table.to_batches(JSON_ROWS):
                out.writelines(json_text(row) + "\n" for row in batch.to_pylist())

        yield write


WRITERS = {".parquet": _parquet, ".csv": _csv, ".csv.gz": _csv_gz, ".jsonl": _jsonl}


# Reading them


def _read_parquet(file: BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    opened = pq.ParquetFile(file)
    yield opened.schema_arrow.empty_table()  # so that columns are checked where there are no rows
    there = [name for name in columns if name in opened.schema_arrow.names]
    for batch in opened.iter_batches(READ_ROWS, columns=there):
        yield pa.table(batch)


def _read_csv(file: BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    kinds = {one.name: pa.string() if pa.types.is_list(one.type) else one.type for one in WITH_ADAPTED}
    convert = ConvertOptions(column_types=kinds, null_values=[""], strings_can_be_null=True,
                             quoted_strings_can_be_null=False)  # fmt: skip
    reader = open_csv(file, parse_options=ParseOptions(newlines_in_values=True), convert_options=convert)
    yield reader.schema.empty_table()
    for batch in reader:
        yield pa.table(batch)


def _read_csv_gz(file: BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    with gzip.GzipFile(fileobj=file) as opened:
        yield from _read_csv(cast(BinaryIO, opened), columns)


def _read_jsonl(file: BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    while lines := list(itertools.islice(file, READ_ROWS)):
        first = json.loads(lines[0])
        if not isinstance(first, dict):
            raise pa.ArrowInvalid(f"the first line is {lines[0][:40]!r}; expected an object")
        yield pa.schema([(name, pa.string()) for name in first]).empty_table()
        known = pa.schema([WITH_ADAPTED.field(name) for name in columns if name in first])
        # a quarter of the time of Python's own json
        how = JsonOptions(explicit_schema=known, unexpected_field_behavior="ignore")
        table = read_json(io.BytesIO(b"".join(lines)), parse_options=how)
        table.validate(full=True)  # texts may hold bytes that are no UTF-8
        yield table


READERS: dict[str, Read] = {
    ".parquet": _read_parquet, ".csv": _read_csv, ".csv.gz": _read_csv_gz, ".jsonl": _read_jsonl,
}  # fmt: skip
