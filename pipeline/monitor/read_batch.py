"""Reading what is monitored: the decisions of a batch, and decisions that people have checked.

decisions (a table at a time) ──► counts of each table ──► Batch
audits.csv                     product_id, correct (yes/no, true/false, 1/0; empty: not checked yet)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ShelfmarkError
from features.storage.artifact import digest_of
from features.storage.paths import AnyPath, Remote
from models.decisions.categorizer import ACCEPTED, UNREADABLE
from models.decisions.drift.batch import Batch
from models.decisions.drift.eprocess import Audited
from pipeline.job.audits_file import read_audits as read_filled_in
from pipeline.job.decisions_file import StoredDecisions, decisions_digest, read_decisions
from pipeline.job.progress import log
from pipeline.monitor.batch_statistics import read_statistics
from pipeline.monitor.reference_files import ReleaseReference, labels_of

COLUMNS = ("product_id", "category", "confidence", "status")
AGAIN = "give the file that `shelfmark categorize` wrote"


@dataclass(frozen=True, eq=False)
class ReadBatch:
    """A batch that was read."""

    name: str  # of its file
    digest: str  # of its file
    batch: Batch
    accepted: pa.ChunkedArray  # ids of its accepted products


def release_of(file: AnyPath | StoredDecisions) -> str | None:
    """The release that decided: the one that the file names; None where it names none.

    Raises:
        ShelfmarkError: the file cannot be read, has no product, or is of several releases.
    """
    found: set[str | None] = set()
    for table in read_decisions(file, ["product_id", "release"]):
        found |= set(pc.unique(table["release"]).to_pylist())
    if not found:
        raise ShelfmarkError(f"{file}: has no product; expected decisions about some; {AGAIN}")
    if len(found) > 1:
        names = ", ".join(sorted(name or "none" for name in found))
        raise ShelfmarkError(
            f"{file}: decisions of several releases ({names}); expected one; give those of one release"
        )
    return found.pop()


def read_batch(file: AnyPath | StoredDecisions, release: ReleaseReference) -> ReadBatch:
    """Counts the decisions of a file, folder or table, and the statistics of photos beside it.

    Raises:
        ShelfmarkError: a product is there twice, or the decisions are not the release's.
    """
    ids: list[pa.ChunkedArray] = []
    accepted: list[pa.ChunkedArray] = []
    parts: list[Batch] = []
    for part, table in _counted(file, release):
        parts.append(part)
        ids.append(table["product_id"])
        accepted.append(table["product_id"].filter(pc.equal(table["status"], ACCEPTED)))
    _require_once(file, [chunk for column in ids for chunk in column.chunks])
    whole = Batch.together(parts, {})
    products = whole.readable + whole.unreadable
    images = {}
    if isinstance(file, Path | Remote):  # nothing stands beside a table
        images = read_statistics(file, release, products, whole.unreadable)
    accepted_ids = pa.chunked_array([chunk for column in accepted for chunk in column.chunks], pa.string())
    return ReadBatch(file.name, decisions_digest(file), Batch.together([whole], images), accepted_ids)


def _counted(file: AnyPath | StoredDecisions, release: ReleaseReference) -> Iterator[tuple[Batch, pa.Table]]:
    """The counts of each table of the file, and the table."""
    reference, taxonomy = release.reference, release.taxonomy
    branch_of = reference.branch_of(labels_of(taxonomy))
    names = reference.categories.names or ()
    position = {name: at for at, name in enumerate(names)}
    category_of = np.array([position.get(name, len(names) - 1) for name in taxonomy.categories], np.int64)
    for table in read_decisions(file, COLUMNS):
        unreadable = int(pc.sum(pc.equal(table["status"], UNREADABLE)).as_py() or 0)
        readable = table.filter(pc.not_equal(table["status"], UNREADABLE))
        if readable["product_id"].null_count or readable["confidence"].null_count:
            raise ShelfmarkError(f"{file}: a product without id or confidence; expected decisions; {AGAIN}")
        category = taxonomy.index(readable["category"].to_numpy())
        confidence = readable["confidence"].to_numpy()
        _require_own(file, readable, category, confidence, release)
        yield (
            Batch.count(reference, branch_of[category], category_of[category], confidence, unreadable),
            table.select(["product_id", "status"]),
        )


def _require_own(
    file: AnyPath | StoredDecisions,
    readable: pa.Table,
    category: np.ndarray,
    confidence: np.ndarray,
    release: ReleaseReference,
) -> None:
    """Raises a ShelfmarkError where categories or thresholds are not the release's."""
    advice = (
        f"expected decisions of {release.name}; categorize again with it, or monitor those of another file"
    )
    if (category < 0).any():
        unknown = readable["category"][int(np.flatnonzero(category < 0)[0])].as_py()
        raise ShelfmarkError(f"{file}: category {unknown!r} is not one of release {release.name}; {advice}")
    threshold = release.reference.threshold
    accepted = confidence >= (np.inf if threshold is None else threshold)
    differs = accepted != pc.equal(readable["status"], ACCEPTED).to_numpy()
    if differs.any():
        least = "accepts nothing" if threshold is None else f"accepts from confidence {threshold:.6g} on"
        one = readable["product_id"][int(np.flatnonzero(differs)[0])].as_py()
        raise ShelfmarkError(
            f"{file}: product {one!r} was decided by another threshold; release {release.name} {least}; "
            f"{advice}"
        )


def _require_once(file: AnyPath | StoredDecisions, chunks: list[pa.Array]) -> None:
    counts = pc.value_counts(pa.chunked_array(chunks, pa.string()))
    if not len(counts):
        raise ShelfmarkError(f"{file}: has no product; expected decisions about some; {AGAIN}")
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise ShelfmarkError(
            f"{file}: {len(twice):,} products are there twice, for example {twice[0]['values'].as_py()!r}; "
            f"expected one row each; {AGAIN}"
        )


# Audits


@dataclass(frozen=True)
class ReadAudits:
    """Decisions that people have checked, of one file."""

    name: str
    digest: str  # of the products in it: the same sample filled in further is no further evidence
    audited: Audited
    unchecked: int  # rows without a result


def read_audits(file: AnyPath, batches: list[ReadBatch]) -> ReadAudits:
    """Reads checked decisions.

    Args:
        file: as job/audits_file.py describes it; rows that cannot be used are left out, and logged.
        batches: that hold the decisions.

    Raises:
        ShelfmarkError: the file cannot be read, or has a product that is not among the accepted ones.
    """
    found = read_filled_in(file)
    if found.problems:
        first = found.problems[0]
        log.warning(
            "monitor: %s: %s rows are not used, the first one in line %s: %s",
            file.name, f"{len(found.problems):,}", first.line, first.text,
        )  # fmt: skip
    audited = list(found.answers)
    ids = pa.chunked_array([chunk for one in batches for chunk in one.accepted.chunks], pa.string())
    known = pc.is_in(pa.array(audited, pa.string()), ids).to_numpy(zero_copy_only=False)
    if not known.all():
        one = audited[int(np.flatnonzero(~known)[0])]
        raise ShelfmarkError(
            f"{file}: {int((~known).sum()):,} products, for example {one!r}, are not among the accepted "
            "ones; expected a sample of the accepted decisions of --decisions; give those that it was "
            "drawn from"
        )
    sample = digest_of(sorted(found.products))  # whatever is filled in, and however it was saved
    return ReadAudits(file.name, sample, Audited(len(audited), found.wrong), found.unchecked)
