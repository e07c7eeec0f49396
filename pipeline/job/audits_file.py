"""Audited decisions: a CSV of drawn decisions whose column `correct` a person fills in.

    product_id, node_path,   the decision that is checked: is node_path correct?
    correct                  empty; to be filled with yes or no (1 / 0, true / false, oui / non, vrai / faux)
    true_category            empty; what would have been correct, where the person knows it
    node, node_level, category, confidence, status, release    as in the decisions
    drawn_from               how many decisions the sample was drawn from, the same in every row

UTF-8 with a byte order mark, without which spreadsheets show accents wrongly. What a spreadsheet saves is
read with any delimiter and encoding; only product_id and correct are needed.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from features.delimited import header_name, rows_of, sniff
from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, local, write_whole

COLUMNS = (
    *("product_id", "node_path", "correct", "true_category"),
    *("node", "node_level", "category", "confidence", "status", "release", "drawn_from"),
)
NEEDED = frozenset({"product_id", "correct"})
ANSWERS = {
    **dict.fromkeys(("yes", "y", "1", "1.0", "true", "oui", "o", "vrai"), True),
    **dict.fromkeys(("no", "n", "0", "0.0", "false", "non", "faux"), False),
}


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used."""

    line: int  # of the file, from 1
    text: str  # what is wrong


@dataclass(frozen=True)
class Audits:
    """What a person has filled in."""

    answers: Mapping[str, bool]  # correct or not, by product_id
    unchecked: int  # rows without an answer
    drawn_from: int | None  # decisions that the sample was drawn from; None where the file does not say it
    problems: list[Problem] = field(default_factory=list)
    products: frozenset[str] = frozenset()  # product_id of all rows, answered or not: the sample

    @property
    def wrong(self) -> int:
        """How many were found wrong."""
        return sum(not correct for correct in self.answers.values())


def write_audits(decisions: pa.Table, drawn_from: int, file: AnyPath) -> None:
    """Writes drawn decisions to be filled in.

    Args:
        decisions: with the columns of a decisions file that are among COLUMNS.
        drawn_from: how many decisions they were drawn from.
        file: a CSV.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore")
    writer.writeheader()
    for row in decisions.to_pylist():
        known = {name: "" if value is None else value for name, value in row.items()}
        writer.writerow(known | {"drawn_from": drawn_from})
    write_whole(file, text.getvalue().encode("utf-8-sig"))


def read_audits(file: AnyPath) -> Audits:
    """Reads what a person has filled in; a row that cannot be used is a problem with its line.

    Raises:
        ShelfmarkError: it has no column product_id or correct, or is no text.
    """
    path = local(file)
    dialect = sniff(path, NEEDED, None, None)
    rows = rows_of(path, dialect)
    header = next(rows, None)
    names = [header_name(cell) for cell in header.cells] if header else []
    if missing := sorted(NEEDED - set(names)):
        raise ShelfmarkError(
            f"{file}: no column {' and no column '.join(missing)} ({dialect}); expected the file of "
            "`shelfmark audit draw` with its column correct filled in; correct the first line"
        )
    answers: dict[str, list[tuple[int, bool]]] = {}
    unchecked, problems, populations, products = 0, list[Problem](), set[str](), set[str]()
    for row in rows:
        cells = dict(zip(names, (cell.strip() for cell in row.cells), strict=False))
        product_id, text = cells.get("product_id", ""), cells.get("correct", "")
        answer = ANSWERS.get(text.lower())
        populations.add(cells.get("drawn_from", ""))
        products |= {product_id} - {""}
        if row.problem or not product_id:
            problems.append(Problem(row.line, row.problem or "no product_id"))
        elif not text:
            unchecked += 1
        elif answer is None:
            problems.append(Problem(row.line, f"correct is {text[:40]!r}; expected yes, no or nothing"))
        else:
            answers.setdefault(product_id, []).append((row.line, answer))
    kept, repeated = _once(answers)
    drawn_from, contradiction = _population(populations)
    problems = sorted([*problems, *repeated, *contradiction], key=lambda problem: problem.line)
    return Audits(kept, unchecked, drawn_from, problems, frozenset(products))


def _once(answers: Mapping[str, list[tuple[int, bool]]]) -> tuple[dict[str, bool], list[Problem]]:
    """One answer of each product; none of a product with two different ones."""
    kept, problems = {}, []
    for product_id, given in answers.items():
        (_, first), *others = given
        if any(answer != first for _, answer in others):
            text = f"{product_id} is here both as correct and as wrong; expected one answer"
            problems += [Problem(line, text) for line, _ in given]
        else:
            kept[product_id] = first
            problems += [Problem(line, f"{product_id} is here again; counted once") for line, _ in others]
    return kept, problems


def _population(found: set[str]) -> tuple[int | None, list[Problem]]:
    """The number in the column drawn_from; a problem of the first line where it is not one number."""
    named = found - {""}
    if not named:
        return None, []
    if len(named) == 1 and (text := next(iter(named))).isdecimal():
        return int(text), []
    some = ", ".join(sorted(named)[:3])
    return None, [Problem(1, f"drawn_from is {some}; expected one number in all rows; taken as unknown")]
