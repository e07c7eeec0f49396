"""Status: what is in service, what the last runs came to, and what the workspace takes on the disk.

    runs/<run>/run.json ─┐
    releases/log.jsonl  ─┼─► status_of ─► `shelfmark status`
    every file's size   ─┘
    runs/<run>/run.json ───► runs_of   ─► `shelfmark runs`

Nothing is locked or written, so both may be called while jobs are at work, as often as wanted.
"""

import contextlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from features.errors import ShelfmarkError, one_line
from features.storage.artifact import find_artifact
from features.storage.object_stores import Stat
from features.storage.paths import MARK, AnyPath, Remote, stats
from models.decisions.releases import in_service, runs_named
from pipeline.job.account import ACCOUNT, VERDICT, RunAccount, read_account
from pipeline.job.config import SellersSettings
from pipeline.job.corrected import find_corrections, sellers_in_service
from pipeline.job.listing import Files, Found, walk
from pipeline.job.lock import at_work
from pipeline.job.release_log import history
from pipeline.job.times import utc

PARTS = ("store", "runs", "releases", "categorize", "monitor")  # of a workspace; the rest is "other"
THRESHOLDS = "thresholds.json"  # in a bundle, see models/decisions/bundle.py, which takes long to import
CONFIG = "config.json"  # in a run, written by every command
RUNNING, UNFINISHED, DAMAGED = "running", "unfinished", "damaged"  # instead of an account's outcome
READERS = 8  # requests to an object store at a time


class RunState(BaseModel):
    """A run in a line: what it came to, and its main figures."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    run: str
    when: str | None
    """ISO 8601, UTC: its end; where it has no account, its last command."""
    outcome: str
    """As in run.json; or running; unfinished: killed, or of single stages; damaged: run.json is."""
    in_service: bool
    products: int | None = None
    """Of the catalogue."""
    acceptance: float | None = None
    """Share of the measured products that were accepted."""
    precision: float | None = None
    """Measured precision of the accepted products."""
    seconds: float | None = None
    sentence: str
    """Why: the verdict's, or the error."""


class Service(BaseModel):
    """What is in service."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    release: str | None = None
    since: str | None = None
    """ISO 8601, UTC."""
    why: str | None = None
    """As in releases/log.jsonl."""
    who: str | None = None
    target: float | None = None
    """Precision that it promises."""
    certified: bool | None = None
    problem: str | None = None
    """What is wrong with it."""


class CleanEstimate(BaseModel):
    """What `shelfmark clean` would remove."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    removals: list[str]


class CorrectionsState(BaseModel):
    """What sellers have corrected."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    sellers: int
    corrections: int
    """In use; of sellers who are set aside, too."""
    last: str | None
    """ISO 8601, UTC: when the newest one was made."""
    flagged: list[str]
    """Sellers whose corrections look wrong."""
    set_aside: list[str]


class Status(BaseModel):
    """A workspace."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    workspace: str
    service: Service
    runs: list[RunState]
    """The last ones, the newest first."""
    size: dict[str, int]
    """Bytes by part; a file with several names (hard links) counts once."""
    free: int | None
    """Bytes free on the disk; null on an object store."""
    clean: CleanEstimate | None
    """Null where it cannot be said; see `notes`."""
    corrections: CorrectionsState | None = None
    """Null where nobody has made any."""
    notes: list[str]


def status_of(workspace: AnyPath, last: int = 5) -> Status:
    """The state of a workspace.

    Args:
        workspace: of runs, releases and the store.
        last: runs to tell about, the newest.

    Raises:
        ShelfmarkError: there is no workspace.
    """
    if isinstance(workspace, Path) and not workspace.is_dir():
        raise _no_workspace(workspace)
    found = list(walk(workspace))
    files = {name: stat for name, stat, _ in found}
    used = _used(files)
    service = _service(workspace)
    if not used and service.release is None and service.problem is None:
        raise _no_workspace(workspace)
    estimate, note = _would_free(workspace, found) if used else (None, "")
    corrections, problem = _corrections(workspace)
    return Status(
        workspace=str(workspace),
        service=service,
        runs=_states(workspace, files, used, list(used)[:last], service.release),
        size=_size_of(found),
        free=shutil.disk_usage(workspace).free if isinstance(workspace, Path) else None,
        clean=estimate,
        corrections=corrections,
        notes=[text for text in (note, problem) if text],
    )


def runs_of(workspace: AnyPath, last: int | None = None) -> list[RunState]:
    """The runs of a workspace, the newest first.

    Args:
        workspace: of runs and releases.
        last: as many of them; None for all.

    Raises:
        ShelfmarkError: there are no runs.
    """
    files = _run_files(workspace)
    used = _used(files)
    if not used:
        raise _no_workspace(workspace)
    try:
        release = in_service(workspace / "releases")
    except ShelfmarkError:
        release = None  # `status` says what is wrong with it
    return _states(workspace, files, used, list(used)[:last], release)


def _no_workspace(workspace: AnyPath) -> ShelfmarkError:
    return ShelfmarkError(f"{workspace}: has no runs; expected a workspace; check --workspace")


# Files


def _size_of(found: Iterable[Found]) -> dict[str, int]:
    """The bytes of each part of the workspace."""
    size, seen = defaultdict[str, int](int), set[tuple[int, int]]()
    for name, stat, inode in found:
        if inode not in seen:
            part = name.partition("/")[0]
            size[part if part in PARTS else "other"] += stat.st_size
        if inode is not None:
            seen.add(inode)
    return {part: size[part] for part in (*PARTS, "other") if size[part]}


def _run_files(workspace: AnyPath) -> Files:
    """The files directly in the runs' directories; on an object store, whose listing has them, all files."""
    if isinstance(workspace, Remote):
        return {f"runs/{name}": stat for name, stat in stats(workspace / "runs").items()}
    files: dict[str, Stat] = {}
    for file in (workspace / "runs").glob("*/*"):
        with contextlib.suppress(OSError):  # a running job's
            stat = file.lstat()
            files[file.relative_to(workspace).as_posix()] = Stat(stat.st_size, stat.st_mtime_ns)
    return files


def _used(files: Files) -> dict[str, int]:
    """Run → when it was last used (ns), the newest first."""
    used: dict[str, int] = {}
    for name, stat in files.items():
        top, _, rest = name.partition("/")
        run, _, file = rest.partition("/")
        if top == "runs" and file:
            used[run] = max(used.get(run, 0), stat.st_mtime_ns if file in (CONFIG, ACCOUNT) else 0)
    return dict(sorted(used.items(), key=lambda item: (item[1], item[0]), reverse=True))


def _would_free(workspace: AnyPath, found: list[Found]) -> tuple[CleanEstimate | None, str]:
    """What `clean` would remove, or why that cannot be said."""
    from pipeline.job.config import RetentionSettings
    from pipeline.release.clean import clean

    try:
        removals = clean(workspace, RetentionSettings(), dry_run=True, found=found)
    except Exception as error:  # of a damaged file, too: the rest is known
        return None, f"clean: {one_line(error)}"
    return CleanEstimate(bytes=sum(one.size for one in removals), removals=[one.what for one in removals]), ""


# What is in service


def _service(workspace: AnyPath) -> Service:
    releases = workspace / "releases"
    try:
        name = in_service(releases)
        switches = history(releases)
    except (ShelfmarkError, OSError) as error:
        return Service(problem=one_line(error))
    if name is None:
        return Service()
    switch = switches[-1]  # to this release: `history` adds what the log lacks
    whole = find_artifact(releases / name) is not None
    lost = f"{releases / name} is gone or damaged; put it back, or put another release into service"
    rules = _json(releases / name / THRESHOLDS)
    certificate = rules.get("certificate")
    return Service(
        release=name,
        since=switch.when,
        why=switch.why,
        who=switch.who,
        target=_number(rules.get("target")),
        certified=certificate.get("threshold") is not None
        if certificate and isinstance(certificate, dict)
        else None,
        problem=None if whole else lost,
    )


def _corrections(workspace: AnyPath) -> tuple[CorrectionsState | None, str]:
    """What sellers have corrected, or why that cannot be said."""
    try:
        settings = SellersSettings.model_validate(sellers_in_service(workspace))
        store = find_corrections(workspace, settings)
        if store is None:
            return None, ""
        try:
            accounts = store.sellers()
        finally:
            store.close()
    except (ShelfmarkError, ValueError) as error:
        return None, f"corrections: {one_line(error)}"
    if not accounts:
        return None, ""
    last = max((one.last for one in accounts if one.last), default=None)
    state = CorrectionsState(
        sellers=len(accounts),
        corrections=sum(one.corrections for one in accounts),
        last=None if last is None else utc(last.timestamp()),
        flagged=[one.seller for one in accounts if one.flagged],
        set_aside=[one.seller for one in accounts if one.set_aside],
    )
    return state, ""


# Runs


def _states(
    workspace: AnyPath, files: Files, used: Mapping[str, int], runs: list[str], release: str | None
) -> list[RunState]:
    """The states of these runs."""

    def state(run: str) -> RunState:
        verdict = files.get(f"runs/{run}/{VERDICT}")
        judged = verdict is not None and verdict.st_mtime_ns >= used[run]
        return _state(workspace / "runs" / run, used[run], judged, release)

    with ThreadPoolExecutor(READERS if isinstance(workspace, Remote) else 1) as readers:
        return list(readers.map(state, runs))


def _state(run: AnyPath, used: int, judged: bool, release: str | None) -> RunState:
    """The state of a run: by its account, else by what its stages have left.

    Args:
        run: its directory.
        used: when a command began to use it, in ns.
        judged: verdict.json is of that command, or of a later one.
        release: in service.
    """
    serves = release is not None and run.name in runs_named(release)
    known: dict[str, Any] = {"run": run.name, "when": utc(used / 1e9) if used else None, "in_service": serves}
    if at_work(run):
        return RunState(outcome=RUNNING, sentence="", **known)
    try:
        account = read_account(run)
    except (ShelfmarkError, OSError) as error:
        return RunState(outcome=DAMAGED, sentence=one_line(error), **known)
    if account is not None:
        if account.earlier:  # that command did the work, and the last one found nothing new
            account = RunAccount.model_validate(account.earlier)
        known["seconds"] = account.seconds
        figures = _figures(account.records or {}, account.evaluation or {})
        return RunState(outcome=account.outcome, sentence=account.sentence, **known | figures)
    figures = _figures(_json(run / "records" / MARK, "summary"), _json(run / "evaluation" / MARK, "summary"))
    outcome, sentence = _without_account(_json(run / VERDICT)) if judged else (UNFINISHED, "")
    return RunState(outcome=outcome, sentence=sentence, **known | figures)


def _figures(records: Mapping[str, object], evaluation: Mapping[str, object]) -> dict[str, Any]:
    """The figures of a run by the summaries of its manifests."""
    products, measured = _number(records.get("products")), _number(evaluation.get("products"))
    accepted = _number(evaluation.get("accepted"))
    return {
        "products": None if products is None else int(products),
        "acceptance": accepted / measured if measured and accepted is not None else None,
        "precision": _number(evaluation.get("accepted_precision")),
    }


def _without_account(verdict: Mapping[str, object]) -> tuple[str, str]:
    """Outcome and sentence of a run that an earlier version has made, by its verdict.json."""
    released = verdict.get("release", verdict.get("better"))  # `better` and `reason`: before run.json
    if not isinstance(released, bool):
        return UNFINISHED, ""
    return "released" if released else "kept", str(verdict.get("sentence", verdict.get("reason", "")))


def _json(file: AnyPath, key: str = "") -> dict[str, Any]:
    """The object of a JSON file, or the one under a key of it; {} where there is none, or another thing."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(file.read_bytes())
        value = value.get(key) if key and isinstance(value, dict) else value
        if isinstance(value, dict):
            return value
    return {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
