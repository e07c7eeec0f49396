"""Monitor: are the batches still like what the release was measured on, and the accepted ones precise?

    decisions ─► counts ─► changes beyond their limits, estimates of precision ─┐
    audits    ─► e-process ─────────────────────────────────────────────────────┴► alarm, or none

    WORKSPACE/monitor/<release>/  history.jsonl  monitor.json  index.html

The last two are of the last call; --output puts them elsewhere.
"""

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from features.errors import ShelfmarkError
from features.storage.paths import MARK, AnyPath, write_whole
from models.decisions.drift.batch import (
    Batch,
    Change,
    Effect,
    Estimates,
    compare,
    effect_of,
    estimate,
    is_alarm,
    limits_of,
)
from models.decisions.drift.eprocess import ALARM, Audited, evidence_of
from models.decisions.drift.reference import Reference
from models.decisions.releases import in_service
from pipeline.job.config import MonitorSettings
from pipeline.job.decisions_file import StoredDecisions
from pipeline.job.lock import only_job
from pipeline.job.progress import log
from pipeline.monitor.history import (
    AUDITS,
    BATCH,
    HISTORY,
    Entry,
    read_history,
    with_entry,
    write_history,
)
from pipeline.monitor.read_batch import ReadAudits, ReadBatch, read_audits, read_batch, release_of
from pipeline.monitor.reference_files import read_release


@dataclass(frozen=True, eq=False)
class MonitoredBatch:
    """A batch with all that was found."""

    read: ReadBatch
    estimates: Estimates
    effect: Effect
    changes: list[Change]
    alarm: bool


@dataclass(frozen=True, eq=False)
class Monitoring:
    """What a call found."""

    release: str
    reference: Reference
    batches: list[MonitoredBatch]
    audits: list[ReadAudits]
    history: list[Entry]
    evidence: list[float]  # after each file of audits in the history
    settings: MonitorSettings

    @property
    def audit_alarm(self) -> bool:
        """Whether audited decisions show that the precision is below the promise."""
        return bool(self.evidence) and self.evidence[-1] >= ALARM

    @property
    def alarm(self) -> bool:
        """Whether there is any alarm."""
        return self.audit_alarm or any(batch.alarm for batch in self.batches)


def monitor(
    workspace: AnyPath,
    decisions: Sequence[AnyPath | StoredDecisions],
    audits: list[AnyPath],
    output: AnyPath | None,
    settings: MonitorSettings,
) -> tuple[Monitoring, AnyPath]:
    """Compares batches with the release that decided them, and keeps all numbers.

    Args:
        workspace: with the release.
        decisions: of batches, each one batch, in the order of time; at least one.
        audits: CSV files of checked decisions of these batches.
        output: directory of page and JSON; None: beside the history.
        settings: the section [monitor].

    Returns:
        What was found, and the directory of page and JSON.

    Raises:
        ShelfmarkError: a file cannot be read, or is not of the release.
    """
    release = read_release(workspace / "releases", _release_of(workspace, decisions))
    folder = workspace / "monitor" / release.name
    batches = [_monitored(read_batch(file, release), release.reference, settings) for file in decisions]
    read = [read_audits(file, [batch.read for batch in batches]) for file in audits]
    with only_job(folder):
        entries = read_history(folder / HISTORY)
        for batch in batches:
            entries = with_entry(entries, _batch_entry(batch, settings))
        for one in read:
            if one.audited.products:
                entries = with_entry(entries, _audits_entry(one))
            else:
                log.warning("monitor: %s: nothing is filled in yet", one.name)
        write_history(folder / HISTORY, entries)
    weeks = [Audited(entry["products"], entry["errors"]) for entry in entries if entry["kind"] == AUDITS]
    evidence = evidence_of(weeks, release.reference.target)
    found = Monitoring(release.name, release.reference, batches, read, entries, evidence, settings)
    target = folder if output is None else output
    _write(found, target)
    return found, target


def _release_of(workspace: AnyPath, decisions: Sequence[AnyPath | StoredDecisions]) -> str:
    """The release that decided all files; the one in service where they name none."""
    named = {release_of(file) for file in decisions}
    if len(named) > 1:
        names = ", ".join(sorted(name or "none" for name in named))
        raise ShelfmarkError(
            f"decisions of several releases ({names}); expected those of one; monitor them one by one"
        )
    name, current = named.pop(), in_service(workspace / "releases")
    if name is None:
        log.warning("monitor: the decisions do not name their release; taken for those of %s", current)
        name = current
    if name is None:
        raise ShelfmarkError(
            f"{workspace}: nothing is in service; expected releases/current; run `shelfmark retrain` first"
        )
    lost = not re.fullmatch(r"\w[\w.-]*", name) or not (workspace / "releases" / name / MARK).is_file()
    if lost and name != current:  # `read_release` says what to do when the one in service is lost
        raise ShelfmarkError(
            f"{decisions[0]}: decided by release {name}, which this workspace does not have; expected "
            f"decisions of {current or 'one of its own'}; check --workspace, or categorize again"
        )
    return name


def _monitored(read: ReadBatch, reference: Reference, settings: MonitorSettings) -> MonitoredBatch:
    estimates = estimate(reference, read.batch)
    effect = effect_of(reference, read.batch, estimates)
    limits = limits_of(reference, read.batch, settings.false_alarms, settings.batches_per_year)
    changes = compare(reference, read.batch, limits)
    alarm = is_alarm(changes, effect, precision=settings.precision, acceptance=settings.acceptance)
    return MonitoredBatch(read, estimates, effect, changes, alarm)


# What is kept


def _batch_entry(found: MonitoredBatch, settings: MonitorSettings) -> Entry:
    batch: Batch = found.read.batch
    return {
        "kind": BATCH,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "file": found.read.name,
        "digest": found.read.digest,
        "products": batch.readable + batch.unreadable,
        "unreadable": batch.unreadable,
        "alarm": found.alarm,
        "effect": asdict(found.effect),
        "estimates": asdict(found.estimates),
        "changes": [asdict(change) | {"significant": change.significant} for change in found.changes],
        "settings": settings.model_dump(),
    }


def _audits_entry(read: ReadAudits) -> Entry:
    return {
        "kind": AUDITS,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "file": read.name,
        "digest": read.digest,
        "products": read.audited.products,
        "errors": read.audited.errors,
        "unchecked": read.unchecked,
    }


def to_dict(found: Monitoring) -> dict[str, Any]:
    """What monitor.json holds."""
    return {
        "release": found.release,
        "alarm": found.alarm,
        "line": alarm_line(found),
        "reference": {
            "products": found.reference.products,
            "acceptance_rate": found.reference.accepted / max(found.reference.products, 1),
            "precision": found.reference.precision,
            "target_precision": found.reference.target,
            "branches": list(found.reference.branches),
        },
        "batches": [_batch_entry(batch, found.settings) for batch in found.batches],
        "audits": {
            "alarm": found.audit_alarm,
            "evidence": found.evidence,
            "alarm_at": ALARM,
            "files": [_audits_entry(one) for one in found.audits],
        },
    }


def alarm_line(found: Monitoring) -> str:
    """What happened, in one line."""
    alarms = [batch for batch in found.batches if batch.alarm]
    parts = [f"{batch.read.name}: {effect_text(batch)}" for batch in alarms]
    if found.audit_alarm:
        weeks = [entry for entry in found.history if entry["kind"] == AUDITS]
        audited, errors = (sum(entry[name] for entry in weeks) for name in ("products", "errors"))
        parts.append(
            f"audits: {errors:,} of {audited:,} decisions checked so far are wrong; the precision is below "
            f"{found.reference.target:.0%}"
        )
    if parts:
        return "alarm: " + "; ".join(parts)
    count = len(found.batches)
    return f"no alarm: {count} batch{'es' if count > 1 else ''} compared with release {found.release}"


def effect_text(batch: MonitoredBatch) -> str:
    """The effect of a batch, in words."""
    effect = batch.effect
    parts = [f"acceptance rate {effect.acceptance_before:.1%} → {effect.acceptance_after:.1%}"]
    if effect.precision_before is not None and effect.precision_after is not None:
        parts.append(f"estimated precision {effect.precision_before:.1%} → {effect.precision_after:.1%}")
    return ", ".join(parts)


def _write(found: Monitoring, folder: AnyPath) -> None:
    from pipeline.monitor.page import page

    write_whole(folder / "monitor.json", json.dumps(to_dict(found), indent=1, ensure_ascii=False).encode())
    write_whole(folder / "index.html", page(found).encode())
