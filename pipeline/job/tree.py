"""The tree of a run's records, and what changed since the release that the run is based on.

records/  taxonomy.csv, unlearnt.csv   the categories that have products
          tree.csv                     the whole tree, where `--taxonomy` gave one
          mapping.json                 what `--mapping` says, all files composed
release   taxonomy.csv, thresholds.json
"""

import json
from dataclasses import replace

from pydantic import TypeAdapter

from features.storage.artifact import Artifact
from models.decisions.bundle import THRESHOLDS, read_rules
from models.taxonomy import read_taxonomy
from models.taxonomy_changes import (
    ADD,
    DELETE,
    UNCHANGED,
    Change,
    Places,
    Step,
    TreeChanges,
    key,
    places_of,
    tree_changes,
)
from pipeline.job.catalogue import UNLEARNT
from pipeline.job.run import Run

WHOLE, MAPPING = "tree.csv", "mapping.json"  # of the records


def mapping_of(records: Artifact) -> Step:
    """What the mapping files of the records say; nothing where none was given."""
    if MAPPING not in records.files:
        return Step()
    return TypeAdapter(Step).validate_json(records.file(MAPPING).read_bytes())


def mapping_bytes(step: Step) -> bytes:
    """The contents of mapping.json, without the files' names: the same rules give the same bytes."""
    values = TypeAdapter(Step).dump_python(replace(step, name=""), mode="json")
    values["splits"] = sorted(values["splits"])
    return json.dumps(values, ensure_ascii=False, indent=0, sort_keys=True).encode()


def places_with_products(artifact: Artifact) -> Places:
    """The categories of records or of a bundle that have products, learnt or not."""
    return {**learnt_places(artifact), **_unlearnt_places(artifact)}


def learnt_places(artifact: Artifact) -> Places:
    """The categories of records or of a bundle that a head learns."""
    return places_of(read_taxonomy(artifact.file("taxonomy.csv")))


def _unlearnt_places(artifact: Artifact) -> Places:
    """The other ones; nothing in a bundle of an earlier version."""
    return places_of(read_taxonomy(artifact.file(UNLEARNT))) if UNLEARNT in artifact.files else {}


def changes_since_release(run: Run, records: Artifact) -> TreeChanges | None:
    """What becomes of each category of the release that the run is based on; None where there is none.

    Raises:
        ShelfmarkError: the release is missing or damaged.
    """
    bundle = run.release_before()
    return changes_since(bundle, records) if bundle else None


def changes_since(bundle: Artifact, records: Artifact) -> TreeChanges:
    """What becomes of each category that a bundle knew, learnt or not.

    Those added are the ones with products. A category that the whole tree of `--taxonomy` has is not gone
    because no product has it this week.
    """
    old = places_with_products(bundle)
    there, step = places_with_products(records), mapping_of(records)
    whole = places_of(read_taxonomy(records.file(WHOLE))) if WHOLE in records.files else {}
    if not whole:  # what the mapping names is taken to be in the tree
        known = {key(category) for category in there}
        whole = {new: () for targets in step.rules.values() for new in targets if new not in known}
    found = tree_changes(old, {**whole, **there}, step)
    return replace(
        found,
        changes=tuple(one for one in found.changes if one.kind != ADD or one.category in there),
        new=tuple(category for category in found.new if category in there),
    )


def is_explained(change: Change, step: Step) -> bool:
    """Whether the tree explains why a category is not there: another name or place, or a mapping says so."""
    return change.kind not in (UNCHANGED, ADD, DELETE) or key(change.category) in step.inputs


def unproven(run: Run, records: Artifact) -> tuple[str, ...]:
    """The categories that wait for evidence before they may be accepted; none before the first release.

    Those are new since the release, parts of a split, or had no evidence in the release: they were waiting
    there already, or too small to be learnt.
    """
    changes, bundle = changes_since_release(run, records), run.release_before()
    if changes is None or bundle is None:
        return ()
    waiting = read_rules(bundle.file(THRESHOLDS)).withheld
    return changes.unproven([*waiting, *_unlearnt_places(bundle)])
