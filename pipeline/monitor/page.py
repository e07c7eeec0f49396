"""The page of `shelfmark monitor`: what changed, whether it matters, and how far to trust the estimates.

One HTML file that opens without a network. Bars are HTML and SVG; every number stands beside them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.decisions.drift.eprocess import ALARM
from pipeline.monitor.history import AUDITS, BATCH

if TYPE_CHECKING:
    from models.decisions.drift.batch import Change
    from pipeline.monitor.monitor import MonitoredBatch, Monitoring

# Mean error of each estimate of the accepted precision, in points, on streams that were built: by
# benchmarks/drift.py, of docs/experiments/drift.md. A test compares them with its results.
SHIFTS = ("no change", "other mix of branches", "other mix of categories", "blurred photos", "new seller")
ERRORS = {
    "mean_confidence": (2.7, 2.8, 9.3, 2.2, 17.9),
    "difference": (0.8, 1.4, 6.8, 2.2, 20.4),
    "label_shift": (1.0, 2.2, 3.1, 8.4, 21.6),
    "above_threshold": (0.8, 2.0, 12.2, 4.3, 19.6),
}
NAMES = {
    "acceptance": ("Acceptance rate", "share of the products that are decided automatically"),
    "confidence": ("Confidence of all products", "mean; the difference is of the whole distribution"),
    "accepted_confidence": ("Confidence of the accepted", "mean"),
    "branches": ("Mix of predicted branches", "share of the products that moved to another branch"),
    "categories": ("Mix of predicted categories", "share of the products that moved to another category"),
    "unreadable": ("Products without a readable photo", "share"),
    "images": ("Photos of a product", "number; the difference is of the whole distribution"),
    "size": ("Size of the photos", "pixels a side; the difference is of the whole distribution"),
    "kind": ("Format of the photos", "share of the products that moved to another format"),
    "placeholder": ("Placeholder photos", "share of the products whose first photo is one"),
    "distance": (
        "Distance from the training photos",
        "0 is the same; the difference is of the whole distribution",
    ),
}
PLAIN = ("images", "size", "distance")  # their values are no shares
ESTIMATES = {
    "mean_confidence": ("Mean confidence", "of the accepted products, as it is"),
    "difference": ("Change of the mean confidence", "added to the measured precision (DoC)"),
    "label_shift": ("Corrected for the mix of branches", "as if only the mix had changed (EM)"),
    "above_threshold": ("Share above a fixed confidence", "as many lay above it as were right (ATC)"),
}


@dataclass(frozen=True)
class Row:
    """A row of the table of changes."""

    name: str
    what: str
    before: str
    after: str
    difference: str
    limit: str
    share: float  # of the limit, at most 2, for the bar
    significant: bool
    measured: bool


def page(found: "Monitoring") -> str:
    """The page as HTML."""
    return (
        _environment()
        .get_template("monitor.html.j2")
        .render(
            found=found,
            headline=headline(found),
            batches=[_batch(batch) for batch in found.batches],
            estimates=ESTIMATES,
            shifts=SHIFTS,
            errors=ERRORS,
            history=_history(found),
            audits=_audits(found),
            alarm_at=ALARM,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "count": "{:,}".format}
    return environment


def percent(value: float | None) -> str:
    """A share for people.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A change of a share for people.

    >>> points(-0.0312)
    '−3.1 points'
    """
    return f"{'−' if value < 0 else '+'}{abs(100 * value):.1f} points"


def headline(found: "Monitoring") -> str:
    """The first sentence: what happened."""
    alarms = [batch for batch in found.batches if batch.alarm]
    if found.audit_alarm:
        return (
            f"Checked decisions show: the accepted ones are less precise than {found.reference.target:.0%}."
        )
    if alarms:
        names = ", ".join(batch.read.name for batch in alarms)
        return f"{names}: the products differ from those that the release was measured on, and it matters."
    return "No alarm: nothing that matters has changed beyond chance."


def _batch(batch: "MonitoredBatch") -> dict[str, Any]:
    changes = {change.name: change for change in batch.changes}
    branches = changes.get("branches")
    moved = list(branches.moved) if branches else []
    most = max((abs(share) for _, share in moved), default=1.0)
    return {
        "found": batch,
        "products": batch.read.batch.readable + batch.read.batch.unreadable,
        "rows": [_row(name, changes.get(name)) for name in NAMES],
        "moved": [(name, share, 100 * abs(share) / most) for name, share in moved],
        "categories": list(changes["categories"].moved) if "categories" in changes else [],
        "significant": [NAMES[change.name][0] for change in batch.changes if change.significant],
    }


def _row(name: str, change: "Change | None") -> Row:
    title, what = NAMES[name]
    if change is None:
        return Row(title, what, "–", "–", "–", "–", 0.0, significant=False, measured=False)
    before, after = (_value(name, value) for value in (change.before, change.after))
    return Row(
        title, what, before, after, percent(change.difference), percent(change.limit),
        min(change.difference / change.limit if change.limit else 2.0, 2.0),
        change.significant, measured=True,
    )  # fmt: skip


def _value(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "distance":
        return f"{value:.3f}"
    return f"{value:,.0f}" if name in PLAIN else percent(value)


def _history(found: "Monitoring") -> dict[str, Any]:
    """The batches of the history, oldest first, and the points of their lines in a drawing of 600 × 160."""
    batches = [entry for entry in found.history if entry["kind"] == BATCH]
    width = 600 / max(len(batches) - 1, 1)
    lines = {
        name: " ".join(
            f"{at * width:.1f},{160 - 160 * entry['effect'][name]:.1f}"
            for at, entry in enumerate(batches)
            if entry["effect"][name] is not None
        )
        for name in ("acceptance_after", "precision_after")
    }
    return {"batches": batches, "lines": lines}


def _audits(found: "Monitoring") -> list[dict[str, Any]]:
    entries = [entry for entry in found.history if entry["kind"] == AUDITS]
    return [entry | {"evidence": value} for entry, value in zip(entries, found.evidence, strict=True)]
