"""A table of the report: what the page, its CSV and the Excel file all show.

kind of a column   value                        shown as
name               text, from the catalogue     the first column of most tables
text               text in the page's language
code               text, an id or a setting     the same in every language
count number tenth number                       1,234  0.7312  5.4
percent target     share, 0 to 1                51.5%  90%
points             difference of shares         −1.2
signed             number                       +0.412
interval           [lower, upper] shares        88.1–93.0%
points_interval    [lower, upper] differences   −1.2 to +0.3
status             key of a text
flag               bool                         yes, no
figure             text, at the right           51.5%, yes
curve              shares in per cent           a small line
photo              number of a photo            the photo
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.language import Words

NUMBERS = (
    "count",
    "number",
    "percent",
    "target",
    "points",
    "signed",
    "interval",
    "points_interval",
    "p",
    "tenth",
    "figure",
)
PICTURES = ("curve", "photo")


@dataclass(frozen=True)
class Column:
    """A column: its title and the kind of its values."""

    title: str
    kind: str

    @property
    def numeric(self) -> bool:
        """Whether its cells stand at the right."""
        return self.kind in NUMBERS


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of values, one for each column, None where there is none."""

    name: str  # of the CSV file, the Excel sheet and the part of the page
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    shown: int = 25  # rows at first
    sort: tuple[int, bool] | None = None  # column, descending: the order of the rows
    tree: int | None = None  # column whose paths are offered as a filter
    filter: int | None = None  # column whose values are offered as a filter
    details: bool = False  # rows open
    marked: frozenset[int] = field(default_factory=frozenset)  # rows that stand out

    def statuses(self) -> list[str]:
        """The keys of the texts in it, in an order that is the same in every process."""
        columns = [index for index, column in enumerate(self.columns) if column.kind == "status"]
        return sorted({row[index] for row in self.rows for index in columns})

    def script(self) -> dict[str, Any]:
        """What the page's script gets."""
        return {
            "title": self.title,
            "columns": [{"title": column.title, "kind": column.kind} for column in self.columns],
            "rows": self.rows,
            "shown": self.shown,
            "sort": self.sort,
            "tree": self.tree,
            "filter": self.filter,
            "details": self.details,
        }


def cell_text(words: Words, kind: str, value: Any) -> str:
    """A value as text; the page's script does the same.

    >>> cell_text(Words("en"), "interval", [0.881, 0.93]), cell_text(Words("fr"), "percent", None)
    ('88.1–93.0%', '–')
    """
    if value is None:
        return "–"
    if kind == "interval":
        low, high = (words.decimal(100 * end, 1) for end in value)
        return f"{low}–{high}{words.marks['percent']}"
    if kind == "points_interval":
        return "{} … {}".format(*(words.points(end) for end in value))
    if kind == "p":
        return "<" + words.decimal(0.0001, 4) if value < 0.0001 else words.decimal(value, 4)
    if kind == "tenth":
        return words.decimal(value, 1)
    if kind == "status":
        return words(value)
    if kind == "flag":
        return words("yes" if value else "no")
    if kind in ("count", "number", "percent", "target", "points", "signed"):
        text: str = getattr(words, kind)(value)
        return text
    return str(value)
