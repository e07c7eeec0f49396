"""The ledger of a change of the tree, in lines for people and as a CSV."""

from collections.abc import Iterable, Sequence

from features.storage.paths import AnyPath, local
from models.mappings import read_mappings
from models.taxonomy_changes import ADD, UNCHANGED, Change, Places, Step, TreeChanges, tree_changes


def read_steps(mappings: Sequence[AnyPath]) -> Step:
    """What mapping files say, composed; nothing where there are none."""
    return read_mappings([local(file) for file in mappings]) if mappings else Step()


def compare(before: Places, after: Places | None, step: Step) -> TreeChanges:
    """The ledger; without `before` of the categories that the mapping says something about.

    Args:
        before: the old tree; empty where it is not known.
        after: the new one; None where it is not known.
        step: of the mapping files.
    """
    return tree_changes(before or dict.fromkeys(sorted(step.inputs), ()), after, step)


def lines_of(found: TreeChanges) -> list[str]:
    """The changed categories in the order of kinds, a line each, then how many of each kind there are."""
    changed = [change for kind in _kinds(found.changes) for change in found.changes if change.kind == kind]
    counts = ", ".join(f"{kind} {count:,}" for kind, count in found.counts().items() if count)
    return [*map(_line, changed), counts or "no category"]


def _kinds(changes: Iterable[Change]) -> list[str]:
    there = {change.kind for change in changes}
    return [kind for kind in ("rename", "move", "merge", "split", "delete", "dead", "cyclic", ADD)
            if kind in there]  # fmt: skip


def _line(change: Change) -> str:
    to = f" → {', '.join(change.targets)}" if change.kind not in (ADD, UNCHANGED) and change.targets else ""
    return f"{change.kind:8}{change.category}{to}" + (f"   ({change.reason})" if change.reason else "")
