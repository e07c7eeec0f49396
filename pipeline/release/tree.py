"""Tree: what became of the categories of the release in service → tree/.

    tree/  changes.csv  manifest.json

    changes.csv   category, kind, targets, reason, products_before, products_now, withheld
                  a row for each category that is not unchanged: kinds in models/taxonomy_changes.py; several
                  targets stand between " | "; products_before: trained on by the release; products_now: with
                  this category this week (of an `add`), or with its targets; withheld: waits for evidence

Before the first release nothing has changed.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from features.storage.artifact import Artifact, find_artifact
from models.decisions.releases import in_service
from models.taxonomy import read_taxonomy
from models.taxonomy_changes import (
    ADD,
    CYCLIC,
    DEAD,
    DELETE,
    KINDS,
    MERGE,
    MOVE,
    RENAME,
    SPLIT,
    UNCHANGED,
    TreeChanges,
)
from pipeline.job.catalogue import categories_of
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import TreeSummary
from pipeline.job.tree import changes_since_release, is_explained, learnt_places, mapping_of, unproven

VERSION = 1
CHANGES = "changes.csv"
BETWEEN = " | "  # targets
COLUMNS = ("category", "kind", "targets", "reason", "products_before", "products_now", "withheld")
COUNTED = {
    UNCHANGED: "unchanged", RENAME: "renamed", MOVE: "moved", MERGE: "merged", SPLIT: "split",
    DELETE: "deleted", DEAD: "dead", CYCLIC: "cyclic", ADD: "added",
}  # fmt: skip


def tree_changes(run: Run) -> Artifact:
    """Compares the tree of the run's records with that of the release that the run is based on.

    What mapping files say is in the records already.
    """
    records = run.records()
    found = changes_since_release(run, records)
    bundle = find_artifact(run.releases / run.based_on) if run.based_on else None

    def make(work: Path) -> Mapping[str, object]:
        if found is None or bundle is None:
            pd.DataFrame(columns=list(COLUMNS)).to_csv(work / CHANGES, index=False)
            none: dict[str, object] = {"release": None, **dict.fromkeys(COUNTED.values(), 0)}
            return TreeSummary.model_validate(none).to_dict()
        waiting = unproven(run, records)
        changes_table(found, categories_of(records), _sizes_of(bundle), waiting).to_csv(
            work / CHANGES, index=False
        )
        counts = {COUNTED[kind]: count for kind, count in found.counts().items()}
        changed = learnt_places(bundle) != learnt_places(records)
        values = {"release": run.based_on, **counts, "unproven": len(waiting), "changed": changed}
        return TreeSummary.model_validate(values).to_dict()

    made_from = {"records": records.digest, "release": bundle.digest if bundle else "none"}
    artifact = stage(run.path / "tree", kind="tree", version=VERSION, made_from=made_from, make=make)
    _log_changes(found)
    return artifact


def _sizes_of(bundle: Artifact) -> pd.Series:
    """Training products of the release by category."""
    categories = read_taxonomy(bundle.file("taxonomy.csv")).categories
    return pd.Series(np.load(bundle.file("sizes.npy")), index=categories)


def changes_table(
    found: TreeChanges, category: pd.Series, before: pd.Series, waiting: tuple[str, ...]
) -> pd.DataFrame:
    """The changed categories, columns COLUMNS, by kind in the order of KINDS, then by name.

    Args:
        found: the ledger.
        category: this week's, by product_id.
        before: training products of the release by category.
        waiting: categories of this week that wait for evidence.
    """
    now = category.value_counts()
    rows = []
    for change in sorted(found.changes, key=lambda one: (KINDS.index(one.kind), one.category)):
        if change.kind == UNCHANGED:
            continue
        targets = (change.category,) if change.kind == ADD else change.targets
        rows.append((
            change.category, change.kind, BETWEEN.join(change.targets), change.reason,
            int(before.get(change.category, 0)), sum(int(now.get(one, 0)) for one in targets),
            "yes" if set(targets) & set(waiting) else "no",
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def differs_from_service(run: Run) -> bool:
    """Whether the categories that a head learns, or their places, are others than in the release in service.

    A run that goes on after its own release is based on the one before.
    """
    name = in_service(run.releases)
    bundle = find_artifact(run.releases / name) if name else None
    return bundle is not None and learnt_places(bundle) != learnt_places(run.records())


def moved_categories(run: Run) -> frozenset[str]:
    """Categories of the release whose absence the tree explains: another name or place, or a mapping says so.

    To the guard on the feed they are not missing.
    """
    records = run.records()
    found, step = changes_since_release(run, records), mapping_of(records)
    return frozenset(
        change.category for change in (found.changes if found else ()) if is_explained(change, step)
    )


def _log_changes(found: TreeChanges | None) -> None:
    """Logs what needs a person: an example of each kind."""
    for kind in (SPLIT, DEAD, CYCLIC, DELETE):
        changes = [change for change in (found.changes if found else ()) if change.kind == kind]
        if changes:
            log.warning(
                "tree: %s: %s, for example %s (%s)",
                COUNTED[kind], f"{len(changes):,}", changes[0].category, changes[0].reason,
            )  # fmt: skip
