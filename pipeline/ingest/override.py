"""Labels that people corrected: they come before the categories that the sources give.

    records/  corrected.parquet   product_id, from (null: the sources give none), to, seller, when, id

A correction is a category of the tree of its time: a mapping carries it over to the new tree, as it does the
labels of the sources. It is left out where the new tree does not know its category, where the sources lack
the product, and where they name another seller of it. Of a product without a seller, the newest one counts.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.product import tidy_name
from models.taxonomy_changes import key
from pipeline.ingest.index import Coded, Index, most_common
from pipeline.ingest.relabel import Relabelling
from pipeline.job.progress import log

CORRECTED = pa.schema(
    [(name, pa.string()) for name in ("product_id", "from", "to", "seller")]
    + [("when", pa.timestamp("us", "UTC")), ("id", pa.int64())]
)
NEW, CHANGED, CONFIRMED = "new", "changed", "confirmed"
UNKNOWN, REMOVED, ABSENT = "unknown_category", "category_gone", "not_in_the_sources"
ANOTHERS, OLDER = "of_another_seller", "older_than_another"
VERSION = 2  # of what corrections do; raise it when the same ones give other labels


@dataclass(frozen=True)
class Overridden:
    """What corrections did to the labels."""

    index: Index
    table: pa.Table  # CORRECTED, a row a product whose label is a correction now
    product: np.ndarray  # (p,) bool, these products
    corrected: dict[str, int]  # products: new, changed or confirmed
    left_out: dict[str, int]  # corrections, by reason


def override(index: Index, labels: pa.Table, how: Relabelling | None, known: Collection[str]) -> Overridden:
    """Puts the corrected categories into an index; of the others the sources' ones stay.

    Images that were refused because the tree lacks the category of the source are taken.

    Args:
        index: of all rows, with the categories of the new tree.
        labels: product_id, category, seller, when, id; of a product the newest is the last.
        how: what the mapping says; None: there is none.
        known: categories of the new tree.
    """
    at, left_out = _label_of_products(index, labels)
    target, reason = _targets(labels["category"].to_pylist(), how, known)
    is_known = np.array([name is not None for name in target], bool)
    left_out.update(reason[one] for one in at[at >= 0].tolist() if reason[one])
    chosen = at >= 0
    chosen[chosen] = is_known[at[chosen]]
    product = np.flatnonzero(chosen)
    mine = chosen[index.product] & (index.product >= 0)  # (n,) rows of these products
    before = most_common(np.where(mine, index.product, -1), index.category, len(index.product_id))[0]
    codes = {name: code for code, name in enumerate(index.category.values)}
    of_label = np.array(
        [-1 if name is None else codes.setdefault(name, len(codes)) for name in target], np.int32
    )
    code = index.category.code.astype(np.int32)
    code[mine] = of_label[at[index.product[mine]]]
    old, new = before[product], of_label[at[product]]
    kinds = np.select([old == 0, old != new], [NEW, CHANGED], CONFIRMED)
    rows, names = labels.take(pa.array(at[product])), pa.array(list(codes), pa.string())
    table = pa.table(
        [
            rows["product_id"],
            names.take(pa.array(old, mask=old == 0)),
            names.take(pa.array(new)),
            *(rows[name] for name in ("seller", "when", "id")),
        ],
        schema=CORRECTED,
    )
    return Overridden(
        replace(index, category=Coded(list(codes), code), reason=_taken(index.reason, mine)),
        table,
        chosen,
        dict(sorted(Counter(kinds.tolist()).items())),
        {why: count for why, count in sorted(left_out.items()) if count},
    )


def _label_of_products(index: Index, labels: pa.Table) -> tuple[np.ndarray, Counter[str]]:
    """(p,) int, which label a product has, -1 for none; and the labels that no product has, by reason."""
    product = pc.index_in(labels["product_id"].cast(pa.large_string()), value_set=index.product_id)
    product = product.fill_null(-1).to_numpy()  # (m,) the product of a label
    numbers = {name: number for number, name in enumerate(index.seller.values)}
    said_by = np.array([numbers.get(name, -1) for name in labels["seller"].to_pylist()], np.int64)
    sellers = most_common(index.product, index.seller, len(index.product_id))[0]
    is_there = product >= 0
    seller = np.where(is_there, sellers[product], 0) if len(sellers) else np.zeros(len(product), np.int32)
    usable = is_there & ((seller == 0) | (seller == said_by))
    at = np.full(len(index.product_id), -1)
    at[product[usable]] = np.flatnonzero(usable)  # the last of a product's
    counts = {
        ABSENT: np.count_nonzero(~is_there),
        ANOTHERS: np.count_nonzero(is_there & ~usable),
        OLDER: np.count_nonzero(usable) - np.count_nonzero(at >= 0),
    }
    return at, Counter({why: int(count) for why, count in counts.items()})


def _targets(
    categories: list[str], how: Relabelling | None, known: Collection[str]
) -> tuple[list[str | None], list[str]]:
    """The categories in the new tree; None for one that it lacks, and the reason."""
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(key(name), tidy_name(name))
    distinct = {category: tidy_name(category) for category in categories}
    changes = how.changes_of(set(distinct.values())) if how else {}
    found: dict[str, tuple[str | None, str]] = {}
    for category, tidy in distinct.items():
        moved = changes.get(tidy)
        to = moved.target if moved else tidy
        there = names.get(key(to)) if to else None
        found[category] = there, "" if there else REMOVED if moved else UNKNOWN
    return [found[category][0] for category in categories], [found[category][1] for category in categories]


def _taken(reason: Coded, mine: np.ndarray) -> Coded:
    """The reasons, without that of an unknown category in the rows whose product is corrected."""
    if UNKNOWN not in reason.values:
        return reason
    freed = mine & (reason.code == reason.values.index(UNKNOWN))
    return Coded(reason.values, np.where(freed, 0, reason.code).astype(reason.code.dtype))


def log_overridden(found: Overridden) -> None:
    """Logs how many labels are corrections, and how many corrections are left out."""
    left = ", ".join(f"{why.replace('_', ' ')} {count:,}" for why, count in found.left_out.items())
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in found.corrected.items())
    log.info(
        "corrections: %s labels are corrections%s: corrected.parquet%s",
        f"{len(found.table):,}", f" ({kinds})" if kinds else "", f"; left out: {left}" if left else "",
    )  # fmt: skip
