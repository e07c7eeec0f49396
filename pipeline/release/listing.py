"""Listing: the releases, when each was in service, and what each promised: `shelfmark releases`.

releases/<name>/manifest.json, trace.json ─┐
releases/log.jsonl ─────────────────────────► list_releases ─► ListedRelease ─► a table, or JSON
"""

from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, find_artifact
from features.storage.paths import MARK, AnyPath
from pipeline.job.progress import log
from pipeline.job.release_log import Switch, history, newest_first
from pipeline.release.trace import Trace, read_trace


@dataclass(frozen=True)
class Period:
    """A time in service."""

    since: str  # ISO 8601, UTC
    until: str | None  # null: it still is


@dataclass(frozen=True)
class ListedRelease:
    """A release; what only trace.json says is None for one of an earlier version."""

    name: str
    state: str  # whole, damaged, missing
    in_service: bool
    periods: tuple[Period, ...]  # times in service, in the order of the log
    run: str | None  # that made it
    digest: str | None  # of its bundle
    promise: float | None  # precision
    certainty: float | None  # of the promise, 1 - delta
    threshold: float | None  # certified; null also where nothing could be certified
    measured_on: str | None  # test, or cert where there was no test part
    products: int | None  # measured
    acceptance: float | None  # share of the measured products that is accepted
    precision: float | None  # of the accepted ones
    categories: int | None
    backbone: str | None
    size: int | None  # bytes


def list_releases(releases: AnyPath) -> list[ListedRelease]:
    """All releases that are there or in the log: the last one put into service first, those gone last."""
    switches = history(releases)
    there = newest_first(releases, switches)
    gone = dict.fromkeys(one.to for one in reversed(switches) if one.to is not None and one.to not in there)
    now = switches[-1].to if switches else None
    return [_listed(releases, name, name == now, switches) for name in (*there, *gone)]


def _listed(releases: AnyPath, name: str, in_service: bool, switches: Sequence[Switch]) -> ListedRelease:
    bundle = find_artifact(releases / name)
    trace = _trace(bundle)
    of_it = [one for one in switches if one.to == name]
    evaluation = trace.evaluation if trace else None
    return ListedRelease(
        name=name,
        state="whole" if bundle else "damaged" if (releases / name / MARK).is_file() else "missing",
        in_service=in_service,
        periods=_periods(name, switches),
        run=next((one.run for one in of_it if one.run), None),
        digest=bundle.digest if bundle else of_it[-1].digest if of_it else None,
        promise=trace.target if trace else None,
        certainty=1 - trace.delta if trace else None,
        threshold=trace.thresholds.threshold if trace else None,
        measured_on=evaluation.graded_on if evaluation else None,
        products=evaluation.products if evaluation else None,
        acceptance=evaluation.accepted / evaluation.products if evaluation and evaluation.products else None,
        precision=evaluation.accepted_precision if evaluation else None,
        categories=trace.head.categories if trace else None,
        backbone=str(bundle.summary["backbone"]) if bundle and "backbone" in bundle.summary else None,
        size=sum(entry["size"] for entry in bundle.files.values()) if bundle else None,
    )


def _trace(bundle: Artifact | None) -> Trace | None:
    """The trace; one that cannot be read is a warning here, as the other releases are to be listed."""
    try:
        return read_trace(bundle) if bundle else None
    except ShelfmarkError as error:
        log.warning("%s", error)
        return None


def _periods(name: str, switches: Sequence[Switch]) -> tuple[Period, ...]:
    ends = [one.when for one in switches[1:]] + [None]
    return tuple(
        Period(one.when, end) for one, end in zip(switches, ends, strict=True) if one.to == name
    ) if switches else ()  # fmt: skip


COLUMNS = (
    "release", "in service since", "until", "promise", "threshold", "acceptance", "precision", "categories",
    "backbone", "size",
)  # fmt: skip


def table_rows(listed: Sequence[ListedRelease]) -> list[tuple[str, ...]]:
    """A row for each release, as texts under COLUMNS; those that are gone are left out, unless in service."""
    rows: list[tuple[str, ...]] = []
    for one in listed:
        if one.state == "missing" and not one.in_service:
            continue
        last = one.periods[-1] if one.periods else None
        rows.append((
            one.name,
            _date(last.since) if last else "never",
            "" if last is None else "now" if last.until is None else _date(last.until),
            f"{one.promise:.1%}" if one.promise is not None else "–",
            f"{one.threshold:.3f}" if one.threshold is not None else "–",
            f"{one.acceptance:.1%}" if one.acceptance is not None else "–",
            f"{one.precision:.1%}" if one.precision is not None else "–",
            f"{one.categories:,}" if one.categories is not None else "–",
            one.backbone or "–",
            f"{one.size / 1e6:,.1f} MB" if one.size is not None else one.state,
        ))  # fmt: skip
    return rows


def _date(when: str) -> str:
    """The date and the time to the minute.

    >>> _date("2026-11-28T18:12:43+00:00")
    '2026-11-28 18:12'
    """
    return when[:16].replace("T", " ")
