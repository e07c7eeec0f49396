"""The tables of the report as an Excel file: a sheet for each, with numbers as numbers."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.language import Words
from pipeline.report.table import PICTURES, Column, Table, cell_text

if TYPE_CHECKING:
    from xlsxwriter.worksheet import Worksheet

SHEET_NAME = 31  # letters, at most, of a sheet's name in Excel
CREATED = datetime.datetime(2000, 1, 1)  # in the file: with today's date its bytes would differ
FORMATS = {
    "count": "#,##0",
    "tenth": "0.0",
    "number": "0.0000",
    "percent": "0.0%",
    "target": "0.##%",
    "signed": "+0.000;-0.000",
    "points": "+0.0%;-0.0%",
    "p": "0.0000",
}
INTERVALS = {"interval": "percent", "points_interval": "points"}


def write_xlsx(tables: Sequence[Table], words: Words, file: Path) -> None:
    """Writes the tables, a sheet for each; the same tables give the same bytes."""
    import xlsxwriter  # 0.1 s, for --xlsx alone

    # without formulas and links: a product's id may begin with = or http
    options = {"strings_to_formulas": False, "strings_to_urls": False, "in_memory": True}
    with xlsxwriter.Workbook(str(file), options) as workbook:
        workbook.set_properties({"created": CREATED})
        bold = workbook.add_format({"bold": True, "text_wrap": True, "valign": "top"})
        formats = {kind: workbook.add_format({"num_format": code}) for kind, code in FORMATS.items()}
        for table in tables:
            sheet = workbook.add_worksheet(table.name[:SHEET_NAME])
            titles, kinds, rows = cells(table, words)
            for column, (title, kind) in enumerate(zip(titles, kinds, strict=True)):
                sheet.write_string(0, column, title, bold)
                sheet.set_column(column, column, 40 if kind in ("name", "text") else 16, formats.get(kind))
            _write_rows(sheet, rows)
            sheet.freeze_panes(1, 0)
            sheet.autofilter(0, 0, max(len(rows), 1), len(titles) - 1)


def _write_rows(sheet: "Worksheet", rows: Sequence[Sequence[Any]]) -> None:
    for number, row in enumerate(rows, 1):
        for column, value in enumerate(row):
            if isinstance(value, str):
                sheet.write_string(number, column, value)
            elif value is not None:
                sheet.write_number(number, column, value)


def cells(table: Table, words: Words) -> tuple[list[str], list[str], list[list[Any]]]:
    """Titles, kinds and rows of a sheet: pictures are left out, an interval has two columns."""
    titles: list[str] = []
    kinds: list[str] = []
    for column in table.columns:
        if column.kind in INTERVALS:
            titles += [f"{column.title}, {words(f'js.{end}')}" for end in ("lower", "upper")]
            kinds += [INTERVALS[column.kind]] * 2
        elif column.kind not in PICTURES:
            titles.append(column.title)
            kinds.append(column.kind)
    return titles, kinds, [_row(table.columns, row, words) for row in table.rows]


def _row(columns: Sequence[Column], row: Sequence[Any], words: Words) -> list[Any]:
    found: list[Any] = []
    for column, value in zip(columns, row, strict=True):
        if column.kind in INTERVALS:
            found += value or [None, None]
        elif column.kind in ("status", "flag"):
            found.append(None if value is None else cell_text(words, column.kind, value))
        elif column.kind not in PICTURES:
            found.append(value)
    return found
