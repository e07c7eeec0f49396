"""What changed between two sets of decisions about the same products.

Products before, Products after ── compare ─► Changes: paired differences, became correct, became wrong
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from models.decisions.paired import (
    Difference,
    changes_by_group,
    difference_of_precisions,
    difference_of_shares,
    mcnemar,
)
from pipeline.report.data import Coded, Products


@dataclass(frozen=True)
class DepartmentChange:
    """How the products of a department changed."""

    name: str
    products: int
    share: Difference  # of products whose most likely category is correct
    gained: int
    lost: int
    p_value: float
    real: bool  # by Holm's correction over all departments, at 5 %


@dataclass(frozen=True, eq=False)
class Changes:
    """The differences; rows are rows of the side after."""

    products: int  # that both sides decided about
    acceptance: Difference
    precision: Difference | None  # of the accepted; None where one side accepts nothing
    everything: Difference  # correct, if everything were accepted
    became_correct: np.ndarray  # rows, the most confident first
    became_wrong: np.ndarray
    row_before: np.ndarray  # (n,) int64, of each row the row on the side before, -1 without one
    departments: tuple[DepartmentChange, ...]
    gained_categories: tuple[str, ...]  # paths, of these products, learnt after and not before
    lost_categories: tuple[str, ...]

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar(len(self.became_correct), len(self.became_wrong))


def compare(before: Products, after: Products, department: Mapping[str, str]) -> Changes | None:
    """Compares the products that both sides decided about.

    Args:
        before: one side.
        after: the other side.
        department: name by category.

    Returns:
        None where there is no such product.
    """
    row_before = _rows_in(before, after)
    rows = np.flatnonzero(row_before >= 0)
    if not len(rows):
        return None
    there = row_before[rows]
    correct_before, correct_after = before.correct[there], after.correct[rows]
    accepted_before, accepted_after = before.accepted[there], after.accepted[rows]
    learnt_before, learnt_after = before.learnt[there], after.learnt[rows]
    return Changes(
        products=len(rows),
        acceptance=difference_of_shares(accepted_before, accepted_after),
        precision=difference_of_precisions(accepted_before, correct_before, accepted_after, correct_after),
        everything=difference_of_shares(correct_before, correct_after),
        became_correct=_confident(after, rows[~correct_before & correct_after]),
        became_wrong=_confident(after, rows[correct_before & ~correct_after]),
        row_before=row_before,
        departments=_departments(after.true, rows, correct_before, correct_after, department),
        gained_categories=_names(after.true_path, rows[~learnt_before & learnt_after]),
        lost_categories=_names(after.true_path, rows[learnt_before & ~learnt_after]),
    )


def _rows_in(before: Products, after: Products) -> np.ndarray:
    """Of each product of `after` its row in `before`, -1 without one."""
    if before.product_id.equals(after.product_id):
        return np.arange(len(after))
    found = pc.index_in(after.product_id, value_set=before.product_id.combine_chunks())
    rows: np.ndarray = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return rows


def _confident(products: Products, rows: np.ndarray) -> np.ndarray:
    ordered: np.ndarray = rows[np.argsort(-products.confidence[rows], kind="stable")]
    return ordered


def _names(path: Coded, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(sorted(str(path.values[code]) for code in np.unique(path.code[rows]) if code >= 0))


def _departments(
    true: Coded, rows: np.ndarray, before: np.ndarray, after: np.ndarray, department: Mapping[str, str]
) -> tuple[DepartmentChange, ...]:
    """Changes by true department, in the order of their names."""
    names = sorted({department.get(str(value), "") for value in true.values})
    position = {name: index for index, name in enumerate(names)}
    of_category = np.array([position[department.get(str(value), "")] for value in true.values])
    code = of_category[true.code[rows]]
    changes = changes_by_group(code, before, after, len(names), 0.05)
    return tuple(
        DepartmentChange(
            name=name,
            products=int(changes.products[at]),
            share=difference_of_shares(before[code == at], after[code == at]),
            gained=int(changes.gained[at]),
            lost=int(changes.lost[at]),
            p_value=float(changes.p_value[at]),
            real=bool(changes.real[at]),
        )
        for at, name in enumerate(names)
        if changes.products[at]
    )
