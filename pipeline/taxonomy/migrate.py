"""Decisions that point to categories which are gone: carried over to the new tree, or to a person.

    DECISIONS ── every row ─► OUTPUT               the same products, the same columns
                         └──► NAME.migrated.csv    product_id, status_before, status, from, to, kind, reason:
                                                   a row for each decision that is another one now

A category with one target becomes it. The decision about a category that was split, or of which nothing is
left, goes to a person: its status is review. A decision about a node above stays where a node of that path is
in the new tree; where all categories of the node went below one other node, it becomes that one; else it goes
to a person. What the head predicted (top_categories, confidence) stays as it was.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from features.errors import ShelfmarkError
from features.storage.artifact import digest_of
from features.storage.databases import is_database
from features.storage.paths import AnyPath, any_path, writing
from models.decisions.categorizer import ACCEPTED, PARENT, REVIEW
from models.taxonomy_changes import FOR_PEOPLE, UNCHANGED, Change, Places, Step, key, tree_changes
from pipeline.job.decisions_file import (
    SCHEMA,
    WITH_ADAPTED,
    StoredDecisions,
    decisions_digest,
    read_decisions,
)
from pipeline.job.decisions_output import open_output, require_output
from pipeline.job.tree import mapping_bytes

PART_ROWS = 2**18  # of the output, in memory at a time
BETWEEN = " / "  # names in a path
LEDGER = ("product_id", "status_before", "status", "from", "to", "kind", "reason")
CHANGEABLE = ("category", "status", "node_path", "node_level")  # what a change depends on
UNDECIDED = {"status": REVIEW, "node": None, "node_path": None, "node_level": None}
NODE_GONE, NODE_RENAMED = "node gone", "node renamed"  # kinds, beside those of categories

Counts = Mapping[str, int]


def migrate(
    decisions: AnyPath | StoredDecisions,
    output: str,
    ledger: AnyPath,
    step: Step,
    before: Places | None = None,
    after: Places | None = None,
) -> Counts:
    """Carries decisions over to the new tree.

    Args:
        decisions: of `categorize`: a file, a folder or a table.
        output: where all of them go, likewise, see `open_output`.
        ledger: a CSV for what was changed.
        step: what the mapping files say.
        before: the tree that was decided in; None: not known, and nothing is found by its path.
        after: the new tree; None: what the mapping names, and all that it says nothing about, is in it.

    Returns:
        How many decisions each kind of change has, `unchanged` first.

    Raises:
        ShelfmarkError: the decisions cannot be read, or the output cannot be written or is what is read.
    """
    if output.rstrip("/") == str(decisions):
        raise ShelfmarkError(
            f"{output}: is what is read; expected another one for the result; give another --output"
        )
    require_output(output)
    paths: dict[str, str] = {}
    schema = SCHEMA
    for piece in read_decisions(decisions, ["category", "category_path", "adapted"]):
        schema = schema if piece["adapted"].null_count == len(piece) else WITH_ADAPTED
        distinct = piece.group_by(["category", "category_path"]).aggregate([]).to_pydict()
        pairs = zip(distinct["category"], distinct["category_path"], strict=True)
        paths |= {category: path or "" for category, path in pairs if category is not None}
    migration = _Migration.of(paths, step, before, after)
    counts: Counter[str] = Counter({UNCHANGED: 0})
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as work, writing(ledger) as working:
        pd.DataFrame(columns=list(LEDGER)).to_csv(working, index=False)
        rules = [mapping_bytes(step).decode(), before, after]
        job = digest_of(["migrate", decisions_digest(decisions), *rules])
        out, parts = open_output(output, job, Path(work), schema), 0
        for table in _large(read_decisions(decisions, schema.names)):
            carried, changed = migration.migrated(table, schema)
            counts.update(str(kind) for *_, kind, _ in changed)
            counts[UNCHANGED] += len(carried) - len(changed)
            pd.DataFrame(changed).to_csv(working, mode="a", header=False, index=False)
            out.write(parts, carried)
            parts += 1
        out.finish(parts)
    return counts


def _large(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The pieces, joined to tables of about PART_ROWS rows."""
    waiting: list[pa.Table] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= PART_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def ledger_beside(output: str) -> AnyPath | None:
    """The ledger beside a file or folder, `a.migrated.csv` beside `a.parquet`; None of a table's URL."""
    if is_database(output):
        return None
    path = any_path(output.rstrip("/"))
    return path.with_name(re.sub(r"\.(parquet|csv|csv\.gz|jsonl)$", "", path.name) + ".migrated.csv")


@dataclass(frozen=True)
class _Target:
    """What is written in the place of a category or node."""

    kind: str
    reason: str = ""
    category: str | None = None
    path: str | None = None
    level: int | None = None


class _Migration:
    """What becomes of each category and each node of the decisions."""

    def __init__(self, changes: Mapping[str, Change], paths: Mapping[str, str], step: Step,
                 before: Places | None, after: Places | None) -> None:  # fmt: skip
        self.changes, self.paths, self.step, self.before, self.after = changes, paths, step, before, after
        self.nodes: dict[tuple[str, int], _Target | None] = {}
        self.there = {
            BETWEEN.join(place[:level])
            for place in (after or {}).values()
            for level in range(1, len(place) + 1)
        }

    @classmethod
    def of(
        cls, paths: Mapping[str, str], step: Step, before: Places | None, after: Places | None
    ) -> "_Migration":
        """Those of the categories of decisions, given with their paths."""
        places = {category: (before or {}).get(category, ()) for category in paths} | dict(before or {})
        changes = {change.category: change for change in tree_changes(places, after, step).changes}
        return cls({name: changes[name] for name in places}, paths, step, before, after)

    def migrated(self, piece: pa.Table, schema: pa.Schema) -> tuple[pa.Table, list[tuple[object, ...]]]:
        """A piece of decisions carried over, columns of `schema`; and the rows of the ledger, columns LEDGER.

        What the head said stays as it said it: top_categories, and base_category.
        """
        columns = {name: piece[name].to_pylist() for name in schema.names}
        noted = []
        for row, category in enumerate(columns["category"]):
            status = columns["status"][row]
            if category is None or (self.changes[category].target == category and status != PARENT):
                continue
            decision = {name: columns[name][row] for name in CHANGEABLE}
            new, note = self._decided(decision)
            if note:
                product = columns["product_id"][row]
                noted.append((product, status, new.get("status", status), *note))
            for name, value in new.items():
                columns[name][row] = value
        return pa.table(columns, schema=schema), noted

    def _decided(self, decision: Mapping[str, Any]) -> tuple[dict[str, object], tuple[object, ...] | None]:
        """The values of a decision that are other ones now; and from, to, kind and reason of the ledger."""
        category, status = decision["category"], decision["status"]
        change, new = self.changes[category], dict[str, object]()
        note: tuple[object, ...] | None = None
        if change.target is not None and change.target != category:
            target = self._category(change)
            new |= {"category": target.category, "category_path": target.path}
            if status == ACCEPTED:
                new |= {"node": target.category, "node_path": target.path, "node_level": target.level}
            note = (category, target.category, change.kind, change.reason)
        elif change.kind in FOR_PEOPLE:
            note = (category, " | ".join(change.targets), change.kind, change.reason)
            if status == ACCEPTED:
                new |= UNDECIDED
        if status == PARENT:
            node = self._node(decision["node_path"], decision["node_level"])
            if node:
                decided = {"node": node.category, "node_path": node.path, "node_level": node.level}
                new |= UNDECIDED if node.path is None else decided
                note = (decision["node_path"], node.path, node.kind, node.reason)
        return new, note

    def _category(self, change: Change) -> _Target:
        """The one target of a category; its path is null where nobody says it."""
        target = str(change.target)
        if self.after is not None:
            place = self.after[target]
            return _Target(change.kind, change.reason, target, BETWEEN.join(place), len(place))
        if label := self.step.labels.get(key(target)):
            names = [" ".join(name.split()) for name in label.split(">")]
            return _Target(change.kind, change.reason, target, BETWEEN.join(names), len(names))
        return _Target(change.kind, change.reason, target, self.paths.get(target) or None)

    def _node(self, path: str, level: int) -> _Target | None:
        """What becomes of a node above the categories; None where it stays."""
        if (path, level) not in self.nodes:
            self.nodes[path, level] = self._node_now(path, level)
        return self.nodes[path, level]

    def _node_now(self, path: str, level: int) -> _Target | None:
        if path in self.there:
            return None
        if self.after is None:
            below = [one for one, names in self.paths.items() if names.startswith(path + BETWEEN)]
            if any(self.changes[one].kind == UNCHANGED for one in below):
                return None
            return _Target(NODE_GONE, "no category that was below it is there any more")
        below = [one for one, place in (self.before or {}).items() if BETWEEN.join(place[:level]) == path]
        targets = [self.changes[one].target for one in below]
        places = {self.after[target][:level] for target in targets if target is not None}
        if below and None not in targets and len(places) == 1:
            place = next(iter(places))
            if len(place) == level and all(len(self.after[str(one)]) > level for one in targets):
                return _Target(NODE_RENAMED, "all its categories are below this one", place[-1],
                               BETWEEN.join(place), level)  # fmt: skip
        return _Target(NODE_GONE, "no node of this path is in the new tree")
