"""A table in delimited text, as shops write it: CSV or TSV, any usual delimiter and encoding, gzip or not.

    sniff      the first megabyte → encoding and delimiter
    rows_of    line number and cells of every row, or what is wrong with it; blank rows are skipped

A quote that nothing closes would swallow all that follows: a row over several lines has to be well formed,
else its first line is a bad row and reading goes on at the second.
"""

import codecs
import csv
import gzip
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from features.errors import ShelfmarkError

SNIFFED = 2**20  # bytes
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BLOCK = 2**18  # letters read at a time
MAX_TEXT = 64 * 2**20  # letters of one row; more is a quote that nothing closes
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
csv.field_size_limit(2 * MAX_TEXT)


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    encoding: str  # a codec of Python
    delimiter: str
    newline: str  # as `open` takes it

    def __str__(self) -> str:
        return f"{DELIMITERS.get(self.delimiter, repr(self.delimiter))}-separated {self.encoding}"


class TableRow(NamedTuple):
    """A row of the table."""

    line: int  # of the file, from 1
    cells: list[str]
    problem: str = ""  # why it cannot be used


def is_delimited(name: str) -> bool:
    """Whether a file of that name is a delimited table."""
    return name.lower().endswith(SUFFIXES)


def header_name(cell: str) -> str:
    """Returns a header's cell as it is compared: without case, without blanks around it, other blanks as `_`.

    >>> header_name(" Product ID "), header_name("\\ufeffImage")
    ('product_id', 'image')
    """
    return "_".join(cell.replace("\ufeff", " ").split()).lower()


def sniff(file: Path, needed: frozenset[str], delimiter: str | None, encoding: str | None) -> Dialect:
    """Detects how the file is written, from its first megabyte.

    Args:
        file: on the disk.
        needed: columns, as `header_name` gives them; a delimiter with which all are found is the correct one.
        delimiter: where it is known.
        encoding: where it is known.

    Raises:
        OSError, EOFError: it cannot be read, or is not the gzip that its name says.
    """
    with _opened(file) as opened:
        sample = opened.read(SNIFFED)
    encoding = encoding or _encoding_of(sample)
    text = sample.decode(encoding, errors="replace")
    lines = [line for line in re.split(r"\r\n|\n|\r", text[:65536]) if line.strip()]
    head = lines[0] if lines else ""
    if hint := re.fullmatch(r"(?i)sep=(.)", head):  # Excel's own, a line above the header
        delimiter = delimiter or hint[1]
    newline = "\n" if "\n" in text else ""  # "": the ends of lines are \r alone, as on old Macs
    return Dialect(encoding, delimiter or _delimiter_of(head, needed, file), newline)


def _encoding_of(sample: bytes) -> str:
    for bom, encoding in BOMS.items():
        if sample.startswith(bom):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the last letter may be cut
        return "utf-8"
    except UnicodeDecodeError:
        return "cp1252"


def _delimiter_of(head: str, needed: frozenset[str], file: Path) -> str:
    first = "\t" if ".tsv" in file.name.lower() else ","
    cells = {mark: next(csv.reader([head], delimiter=mark), []) for mark in (first, *DELIMITERS)}
    return max(cells, key=lambda mark: (len(needed & set(map(header_name, cells[mark]))), len(cells[mark])))


def _opened(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file) if file.name.lower().endswith(".gz") else open(file, "rb"))


def rows_of(file: Path, dialect: Dialect) -> Iterator[TableRow]:
    """Yields the rows, the header among them, without blank ones.

    Raises:
        ShelfmarkError: it is not in the dialect's encoding, or not the gzip that its name says.
    """
    try:
        opened = _opened(file)
        with io.TextIOWrapper(opened, dialect.encoding, newline=dialect.newline) as text:
            yield from _rows(text, dialect)
    except UnicodeDecodeError as error:
        raise ShelfmarkError(
            f"{file}: not {dialect.encoding}: {error.reason} at the bytes "
            f"{error.object[error.start : error.start + 4]!r}; expected a table that is {dialect}, as its "
            "first megabyte is; give ingest.csv_encoding, or save the file as UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise ShelfmarkError(
            f"{file}: damaged gzip: {error}; expected a whole file; fetch it again"
        ) from error


def _rows(text: TextIO, dialect: Dialect) -> Iterator[TableRow]:
    lines = _Lines(text)
    while block := lines.block():
        rows = _plain(block, dialect)
        if rows is None:
            yield from _carefully(lines, dialect)
            continue
        for line, cells in enumerate(rows, start=lines.number - len(block) + 1):
            if cells and not _is_blank(cells) and not (line == 1 and _is_hint(cells, dialect)):
                yield TableRow(line, cells)


def _plain(block: list[str], dialect: Dialect) -> list[list[str]] | None:
    """Returns the rows of a block where each is one line, in a third of the time of row by row; else None."""
    try:
        rows = list(csv.reader(block, delimiter=dialect.delimiter))
        return rows if len(rows) == len(block) and _well_formed(block[-1:], dialect) else None
    except csv.Error:
        return None


def _carefully(lines: "_Lines", dialect: Dialect) -> Iterator[TableRow]:
    """Yields the rows of the current block one by one, reading on until the last of them ends."""
    lines.back()
    reader = csv.reader(lines, delimiter=dialect.delimiter)
    while lines.waiting():
        lines.taken.clear()
        line = lines.number + 1
        try:
            cells = next(reader)
        except csv.Error as error:
            lines.back(keep=1)
            yield TableRow(line, [], f"line {line}: {error}")
            continue
        if lines.cut or (len(lines.taken) > 1 and not _well_formed(lines.taken, dialect)):
            lines.back(keep=1)
            yield TableRow(line, [], f"line {line}: a quote that opens here is not closed")
        elif not _is_blank(cells) and not (line == 1 and _is_hint(cells, dialect)):
            yield TableRow(line, cells)


def _is_blank(cells: list[str]) -> bool:
    text = "".join(cells)
    return not text or text.isspace()


def _is_hint(cells: list[str], dialect: Dialect) -> bool:
    return dialect.delimiter.join(cells).lower().startswith("sep=")


def _well_formed(lines: list[str], dialect: Dialect) -> bool:
    """Whether the quotes of one row are well-formed."""
    try:
        return len(list(csv.reader(lines, delimiter=dialect.delimiter, strict=True))) == 1
    except csv.Error:
        return False


class _Lines:
    """The lines of a file; those of the current block or row can be put back and read again."""

    def __init__(self, text: TextIO) -> None:
        self.taken: list[str] = []  # of the current block or row
        self.number = 0  # of the last line taken
        self.cut = False  # the file ended within a row, or the row is longer than MAX_TEXT
        self._text, self._again, self._length = text, deque[str](), 0

    def block(self) -> list[str]:
        """Returns the next lines, BLOCK letters or a line more; none at the end."""
        self.taken = list(self._again)
        self._again.clear()
        length = sum(map(len, self.taken))
        while length < BLOCK and (line := self._text.readline(MAX_TEXT)):
            self.taken.append(line)
            length += len(line)
        self.number += len(self.taken)
        return self.taken

    def waiting(self) -> bool:
        """Whether lines that were put back are left."""
        return bool(self._again)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self.taken:
            self._length, self.cut = 0, False
        line = self._again.popleft() if self._again else self._text.readline(MAX_TEXT)
        if not line or self._length > MAX_TEXT:
            self.cut = bool(self.taken)
            if line:
                self._again.appendleft(line)
            raise StopIteration
        self._length += len(line)
        self.taken.append(line)
        self.number += 1
        return line

    def back(self, keep: int = 0) -> None:
        """Puts back the current lines, except the first `keep`."""
        self._again.extendleft(reversed(self.taken[keep:]))
        self.number -= len(self.taken) - keep
        self.taken.clear()
        self.cut = False
