"""A file of corrections: which seller says that which product has which category.

product_id, seller, category      and optionally who, when (ISO 8601; UTC where it names no zone), comment,
                                  image; CSV, TSV or Parquet, read as a manifest is
image                             a photo of the product, several rows of one product are its photos

every row ─┬─► one correction of each seller and product: by its last row, or the one with the latest `when`
           ├─► repeated: rows that say the same
           └─► rejects: rows that say something else, are older than what was said or undone since, or
               cannot be used, with the reason
photos that are refused ─► rejects, without a row

Texts in the rejects are as they were written: a spreadsheet may take one that begins with = for a formula.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa

from features.delimited import SUFFIXES, is_delimited
from features.errors import ShelfmarkError, one_line
from features.storage.paths import AnyPath, write_whole
from models.corrections.categories import KnownCategories
from models.corrections.correction import Correction, require_texts
from models.corrections.store import Corrections
from pipeline.sources.manifest import ends_in_zero
from pipeline.sources.tables import Columns, CsvOptions, DelimitedTable, ParquetTable

NEEDED = ("product_id", "seller", "category")
OPTIONAL = ("who", "when", "comment")
REJECTS = ("row", "product_id", "seller", "category", "reason", "detail")
FIRST, AHEAD = datetime(1970, 1, 1, tzinfo=UTC), timedelta(days=1)  # a clock may be wrong, a zone missing
EXPECTED = f"expected {', '.join(NEEDED)} and, optionally, {', '.join(OPTIONAL)}, image"


class GivenCorrection(NamedTuple):
    """A usable row."""

    row: int  # of the table, from 1, without the header
    product_id: str
    seller: str
    category: str  # of the tree
    who: str | None
    when: datetime | None  # UTC
    comment: str | None


class Reject(NamedTuple):
    """A row that is not taken."""

    row: int
    product_id: str
    seller: str
    category: str  # as written
    reason: str
    detail: str


class RefusedPhoto(NamedTuple):
    """A photo that cannot be used."""

    product_id: str
    file: str  # path or URL
    reason: str
    detail: str


@dataclass
class GivenCorrections:
    """What a file says."""

    corrections: list[GivenCorrection]  # one of each seller and product, in the order of the rows
    rows: int
    repeated: int  # rows that say the same as a correction
    has_images: bool
    rejects: list[Reject] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason, the most common first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def read_corrections(file: AnyPath, options: CsvOptions, known: KnownCategories) -> GivenCorrections:
    """Reads a file of corrections.

    Args:
        file: CSV, TSV (compressed or not) or Parquet.
        options: how delimited text is read.
        known: the categories that there are.

    Raises:
        ShelfmarkError: it cannot be read, or lacks a column.
    """
    table = _opened(file, options)
    columns = [name for name in (*NEEDED, *OPTIONAL) if name in table.columns]
    try:
        batches = list(table.rows(columns))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error
    ids = [text for batch in batches for text in batch["product_id"] if text.strip()]
    whole_ids = bool(ids) and all(map(ends_in_zero, ids))
    usable, rejects, row = list[GivenCorrection](), list[Reject](), 0
    for batch in batches:
        for cells in _rows(batch, columns):
            row += 1
            found = _checked(row, cells, whole_ids, known)
            if isinstance(found, Reject):
                rejects.append(found)
            else:
                usable.append(found)
    kept, contradicted = _one_each(usable)
    given = GivenCorrections(
        sorted(kept),
        row,
        len(usable) - len(kept) - len(contradicted),
        "image" in table.columns or bool(table.pictures),
    )
    given.rejects = sorted([*rejects, *contradicted])
    return given


def check_given(file: AnyPath, options: CsvOptions) -> None:
    """Raises the errors of `read_corrections` that the beginning of the file shows."""
    _opened(file, options)


def _opened(file: AnyPath, options: CsvOptions) -> DelimitedTable | ParquetTable:
    if not file.is_file():
        raise ShelfmarkError(f"{file}: no such file; {EXPECTED}; check the path")
    is_table = file.name.lower().endswith(".parquet")
    if not is_table and not is_delimited(file.name):
        raise ShelfmarkError(
            f"{file}: its suffix is no format; expected {', '.join(SUFFIXES)} or .parquet; give another file"
        )
    try:
        table = (
            ParquetTable(file, file.name, "")
            if is_table
            else DelimitedTable(file, options, frozenset(NEEDED))
        )
    except (pa.ArrowException, OSError, EOFError, LookupError, UnicodeError) as error:
        raise _unreadable(file, error) from error
    if lacking := [name for name in NEEDED if name not in table.columns]:
        raise ShelfmarkError(
            f"{file}: no column {' and no column '.join(lacking)}; found: "
            f"{', '.join(filter(None, table.columns)) or 'none'}; {EXPECTED}; "
            f"{table.format}{table.advice}; correct the header"
        )
    if twice := sorted({name for name in (*NEEDED, *OPTIONAL) if table.columns.count(name) > 1}):
        raise ShelfmarkError(
            f"{file}: two columns {', '.join(twice)}; expected each once; correct the header"
        )
    return table


def _unreadable(file: AnyPath, error: Exception) -> ShelfmarkError:
    reason = str(error).partition("\n")[0]
    return ShelfmarkError(
        f"{file}: cannot be read: {reason}; expected a table in CSV, TSV or Parquet; check the file"
    )


def _rows(batch: Columns, columns: list[str]) -> Iterator[dict[str, str]]:
    """The rows of a batch: column → cell, and what is wrong with the row."""
    names = [*columns, "problem"]
    for cells in zip(*(batch[name] for name in names), strict=True):
        yield dict(zip(names, map(str.strip, cells), strict=True))


def _checked(
    row: int, cells: dict[str, str], whole_ids: bool, known: KnownCategories
) -> GivenCorrection | Reject:
    """The correction of a row, or why it is none."""
    product_id, seller, written = (cells[name] for name in NEEDED)
    product_id = product_id[:-2] if whole_ids and product_id else product_id

    def reject(reason: str, detail: str) -> Reject:
        return Reject(row, product_id, seller, written, reason, detail)

    if cells["problem"]:
        return reject("bad_row", cells["problem"])
    for name, cell in zip(NEEDED, (product_id, seller, written), strict=True):
        if not cell:
            return reject(f"no_{name}", f"{name} is empty")
    category = known.find(written)
    if category is None:
        nearest = known.nearest(written)
        hint = "" if nearest is None else f"; the nearest one is {nearest}"
        return reject("unknown_category", f"the release's tree does not have it{hint}")
    try:
        when = _time(cells.get("when", ""))
    except (ValueError, OverflowError):  # 0001-01-01T00:00+14:00 is in no year of UTC
        return reject(
            "bad_time",
            f"when is {cells['when'][:40]!r}; expected ISO 8601 from 1970 until now, as 2026-11-28T09:30:00Z",
        )
    who, comment = cells.get("who") or None, cells.get("comment") or None
    try:
        require_texts(Correction(seller, product_id, category, who=who, comment=comment))
    except ShelfmarkError as error:
        return reject("bad_text", one_line(error).partition(": ")[2])
    return GivenCorrection(row, product_id, seller, category, who, when, comment)


def _time(text: str) -> datetime | None:
    """A time in UTC; None where none is given.

    Raises:
        ValueError, OverflowError: it is none, or before FIRST, or after now by more than AHEAD.
    """
    if not text:
        return None
    when = datetime.fromisoformat(text)
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    if not FIRST <= when <= datetime.now(UTC) + AHEAD:
        raise ValueError("out of range")
    return when


def _one_each(usable: list[GivenCorrection]) -> tuple[list[GivenCorrection], list[Reject]]:
    """One correction of each seller and product; and the rows that another row contradicts."""
    rows = defaultdict[tuple[str, str], list[GivenCorrection]](list)
    for one in usable:
        rows[one.seller, one.product_id].append(one)
    kept, contradicted = list[GivenCorrection](), list[Reject]()
    for several in rows.values():
        times = [one.when for one in several if one.when is not None]
        newest = max(times) if len(times) == len(several) else None
        last = [one for one in several if newest is None or one.when == newest][-1]
        kept.append(last)
        contradicted += [
            Reject(
                one.row, one.product_id, one.seller, one.category, "corrected_again",
                f"row {last.row} says {last.category}",
            )
            for one in several
            if one.category != last.category
        ]  # fmt: skip
    return kept, contradicted


def without_older(given: GivenCorrections, corrections: Corrections) -> GivenCorrections:
    """The corrections without those that are older than what was said or undone since, which are rejects.

    So a file that is given again takes nothing back. A row without a time is as new as now.

    Args:
        given: of a file.
        corrections: what was said before.
    """
    dated = {one.seller for one in given.corrections if one.when is not None}
    last: dict[tuple[str, str], dict[str, Any]] = {}  # of a product; in use, or undone
    for seller in sorted(dated):
        for row in corrections.export(seller):
            last[seller, str(row["product_id"])] = row
    kept, older = list[GivenCorrection](), list[Reject]()
    for one in given.corrections:
        since = _said_since(one, last.get((one.seller, one.product_id)))
        if since is None:
            kept.append(one)
        else:
            older.append(Reject(one.row, one.product_id, one.seller, one.category, "older", since))
    return replace(given, corrections=kept, rejects=sorted([*given.rejects, *older]))


def _said_since(one: GivenCorrection, last: dict[str, Any] | None) -> str | None:
    """What was said or undone after a row; None for nothing.

    Args:
        one: the row.
        last: the product's last correction by the seller, as it is exported; None: he has made none.
    """
    if one.when is None or last is None:
        return None
    if one.category != last["category"]:
        if one.when < last["when"]:
            return f"the seller said {last['category']} on {last['when']:%Y-%m-%d %H:%M} UTC"
    elif last["ended"] is not None and one.when <= last["ended"]:
        return f"this was undone on {last['ended']:%Y-%m-%d %H:%M} UTC"
    return None


def write_rejects(rejects: list[Reject], file: AnyPath, photos: Sequence[RefusedPhoto] = ()) -> None:
    """Writes what is not taken as a CSV for people; for none, removes an earlier one.

    Args:
        rejects: rows.
        file: to write.
        photos: each becomes a line without row, seller and category.
    """
    if not rejects and not photos:
        file.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(REJECTS)
    writer.writerows(rejects)
    for photo in photos:
        detail = f"{photo.file}: {photo.detail or photo.reason}"
        writer.writerow(("", photo.product_id, "", "", f"photo_{photo.reason}", detail))
    write_whole(file, text.getvalue().encode("utf-8-sig"))
