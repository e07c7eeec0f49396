"""The commands that say what is there: status and runs."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from features.printable import escaped
from features.storage.paths import AnyPath
from pipeline.cli_options import PATH

if TYPE_CHECKING:
    from pipeline.status import CorrectionsState, RunState, Service

_workspace = click.option(
    "--workspace", type=PATH, required=True, help="Directory of all runs, releases and the store."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
COLUMNS = ("run", "when (UTC)", "outcome", "products", "acceptance", "precision", "seconds", "")
LONGEST = 100  # characters of a list


@click.command()
@_workspace
@_json
def status(workspace: AnyPath, as_json: bool) -> None:
    """Shows what is in service, the last runs, the disk.

    Since when the release serves, what the last runs came to, how large the workspace is, and what `clean`
    would free. It waits for no job and disturbs none.

    \b
    Example:
      shelfmark status --workspace shop
    """
    from pipeline.job.room import in_words
    from pipeline.status import status_of

    found = status_of(workspace)
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    sizes = ", ".join(f"{part} {in_words(size)}" for part, size in found.size.items())
    free = "" if found.free is None else f"; {in_words(found.free)} free"
    print(f"in service  {_service(found.service)}")
    for number, run in enumerate(found.runs):
        print(f"{'last runs' if not number else '':10}  {_run(run)}")
    print(f"size        {in_words(sum(found.size.values()))}: {sizes}{free}")
    if found.clean is not None:
        what = f": {', '.join(found.clean.removals)}" if found.clean.removals else ""
        print(f"clean       would free {in_words(found.clean.bytes)}{_short(what)}")
    if found.corrections is not None:
        print(f"corrections {escaped(_corrections(found.corrections))}")
    for note in found.notes:
        print(f"note        {escaped(note)}")


@click.command()
@_workspace
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the N newest runs; default: all.")
@_json
def runs(workspace: AnyPath, last: int | None, as_json: bool) -> None:
    """Lists the runs: when, outcome, main figures.

    The newest is first; * marks the one whose release is in service.

    \b
    Example:
      shelfmark runs --workspace shop --last 10
    """
    import json

    from pipeline.status import runs_of

    found = runs_of(workspace, last)
    if as_json:
        print(json.dumps([run.model_dump() for run in found], indent=1, ensure_ascii=False))
        return
    rows = [COLUMNS, *(_row(run) for run in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        cells = [
            cell.rjust(width) if COLUMNS[column] in ("products", "acceptance", "precision", "seconds")
            else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]  # fmt: skip
        print("  ".join(cells).rstrip())


def _service(service: "Service") -> str:
    """What is in service, in a line."""
    if service.release is None:
        return service.problem or "nothing yet"
    parts = [f"{service.release} since {_when(service.since)}{_age(service.since)}"]
    if service.target is not None:
        parts.append(
            f"precision {service.target:g} certified" if service.certified
            else f"not certified for precision {service.target:g}"
        )  # fmt: skip
    why = (service.why or "").partition("; ")[0]  # the rest is figures, in releases/log.jsonl
    parts += [text for text in (why, service.problem) if text]
    return "; ".join(parts)


def _corrections(state: "CorrectionsState") -> str:
    """What sellers have corrected, in a line."""
    parts = [f"{state.corrections:,} of {state.sellers:,} sellers, the last {_when(state.last)} UTC"]
    for name, sellers in (("flagged", state.flagged), ("set aside", state.set_aside)):
        if sellers:
            parts.append(f"{name} {len(sellers):,}: {_short(', '.join(sellers))}")
    return "; ".join(parts)


def _run(run: "RunState") -> str:
    """A run, in a line of `status`."""
    parts = [f"{run.run}  {_when(run.when)}  {run.outcome}"]
    if run.acceptance is not None:
        parts.append(f"accepts {run.acceptance:.1%}")
    if run.precision is not None:
        parts.append(f"precision {run.precision:.1%}")
    reason = run.sentence.partition("; ")[0]  # the rest is figures, in run.json
    return ", ".join(parts) + (f": {reason}" if reason else "")


def _row(run: "RunState") -> Sequence[str]:
    """A run, as a row of `runs`."""
    shares = ("" if share is None else f"{share:.1%}" for share in (run.acceptance, run.precision))
    return (
        run.run,
        _when(run.when),
        run.outcome,
        "" if run.products is None else f"{run.products:,}",
        *shares,
        "" if run.seconds is None else f"{run.seconds:,.0f}",
        "*" if run.in_service else "",
    )


def _when(time: str | None) -> str:
    """An ISO time to the minute.

    >>> _when("2026-11-28T02:31:05+00:00")
    '2026-11-28 02:31'
    """
    return "unknown" if time is None else time[:16].replace("T", " ")


def _age(time: str | None) -> str:
    """How long ago, in days from two on."""
    try:
        days = (datetime.now(UTC) - datetime.fromisoformat(time or "")).days
    except (ValueError, TypeError):
        return ""
    return f" UTC, {days} days" if days > 1 else " UTC"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
