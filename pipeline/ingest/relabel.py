"""Labels of an old tree, carried over to the new one by what `--mapping` says.

    records/  relabelled.parquet   product_id, from, to (null: without category now), kind, reason
              mapping.json         what the mapping says, all files composed (pipeline/job/tree.py)

A product whose old category was split, deleted, or leads nowhere has no category any more: nobody knows which
one it is. It gets a decision like any other.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from features.product import CategoryPaths
from models.taxonomy_changes import DELETE, PREFIX, Change, Places, Step, key, places_in, tree_changes
from pipeline.ingest.index import Coded, Index
from pipeline.job.progress import log

RELABELLED = pa.schema(
    [
        ("product_id", pa.string()),
        ("from", pa.string()),
        ("to", pa.string()),
        ("kind", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Relabelling:
    """How categories of the sources become categories of the new tree."""

    step: Step
    before: Places  # of the categories whose places the sources know
    after: Places | None  # of the tree of --taxonomy; None: the tree is that of the sources

    def known(self) -> frozenset[str] | None:
        """The categories that products may have; None where the sources say which."""
        if self.after is None:
            return None
        found = [change.category for change in self._changes(self.before) if not self._is_unknown(change)]
        keys = {key(category) for category in (*self.after, *found, *self.step.inputs)}
        return frozenset((*self.after, *found, *keys, *(PREFIX + one for one in keys)))

    def changes_of(self, categories: Collection[str]) -> dict[str, Change]:
        """What becomes of categories of the sources: of those alone that become another one, or none."""
        places = {category: self.before.get(category, ()) for category in categories}
        return {
            change.category: change
            for change in self._changes(places)
            if change.target != change.category and not self._is_unknown(change)
        }

    def paths(self, paths: CategoryPaths) -> CategoryPaths:
        """The paths of the new tree, for those that the sources give.

        A new category that the sources do not know stands where the mapping says, or else where the old one
        stood.
        """
        if self.after is not None:
            return paths
        changes = self.changes_of({category for category, _ in paths})
        there = {category for category, _ in paths if category not in changes}
        found = CategoryPaths()
        for (category, names), times in paths.items():
            change = changes.get(category)
            if change is None:
                found[(category, names)] += times
            elif change.target and change.target not in there:
                found[(change.target, self._names_of(change.target, category, names))] += times
        return found

    def _names_of(self, target: str, category: str, names: tuple[str, ...]) -> tuple[str, ...]:
        if label := self.step.labels.get(key(target)):
            return tuple(" ".join(name.split()) for name in label.split(">"))
        if category == "/".join(names):
            return tuple(target.split("/"))
        return (*names[:-1], target) if names and names[-1] == category else names

    def _changes(self, places: Places) -> tuple[Change, ...]:
        return tree_changes(places, self.after, self.step).changes

    def _is_unknown(self, change: Change) -> bool:
        """Whether neither the mapping nor the new tree knows the category."""
        return change.kind == DELETE and key(change.category) not in self.step.inputs


def relabelling(step: Step, given: CategoryPaths, tree: CategoryPaths | None) -> Relabelling:
    """Makes a relabelling.

    Args:
        step: what the mapping files say.
        given: the paths of the sources.
        tree: of --taxonomy.
    """
    return Relabelling(step, places_in(given), None if tree is None else places_in(tree))


def relabel(index: Index, how: Relabelling) -> tuple[Index, pa.Table]:
    """The index with the categories of the new tree; and RELABELLED, a row a product and old category."""
    values = index.category.values
    changes = how.changes_of(values[1:])
    codes = {"": 0}
    target = [""] + [changes[name].target or "" if name in changes else name for name in values[1:]]
    to = np.array([codes.setdefault(name, len(codes)) for name in target], np.int32)
    category = Coded(list(codes), to[index.category.code])
    changed = np.array([name in changes for name in values])
    rows = np.flatnonzero(changed[index.category.code] & (index.product >= 0))
    pairs = np.unique(index.product[rows] * np.int64(len(values)) + index.category.code[rows])
    product, old = np.divmod(pairs, len(values))
    of_code = [changes.get(name, Change("", "")) for name in values]
    columns = [
        pa.array([getattr(change, name) for change in of_code], pa.string()).take(pa.array(old))
        for name in ("category", "target", "kind", "reason")
    ]
    table = pa.table(
        [index.product_id.take(pa.array(product)).cast(pa.string()), *columns], schema=RELABELLED
    )
    return replace(index, category=category), table


def counts_of(table: pa.Table) -> tuple[dict[str, int], dict[str, int]]:
    """Products by kind: those that have another category now, and those that have none any more."""
    counted = [
        table.filter(chosen)["kind"].value_counts().to_pylist()
        for chosen in (table["to"].is_valid(), table["to"].is_null())
    ]
    relabelled, unlabelled = (
        dict(sorted((str(one["values"]), int(one["counts"])) for one in counts)) for counts in counted
    )
    return relabelled, unlabelled


def log_relabelled(relabelled: dict[str, int], unlabelled: dict[str, int]) -> None:
    """Logs how many products have another category by the mapping, and how many none."""
    moved, gone = (
        f"{sum(counts.values()):,} products"
        + (f" ({', '.join(f'{kind} {count:,}' for kind, count in counts.items())})" if counts else "")
        for counts in (relabelled, unlabelled)
    )
    log.info("mapping: %s have another category; %s have none any more: relabelled.parquet", moved, gone)
