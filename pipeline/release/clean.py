"""Clean: removes from a workspace what no kept run needs, as the settings [retention] say.

    runs/<run>/                          but the newest; those of which only the lock is left
    releases/<name>/                     but the newest
    decisions/NAME.*, decisions/NAME/    but the newest
    store/<fingerprint>/<shard>.*        shards that no kept run refers to, those of categorize among them
    logs/*.log                           of commands that belong to no run
    categorize/<output>/, *.lock/        of jobs that are not running: working files, or nothing but a lock
    *.tmp, runs/<run>/<kind>.partial …   likewise; so are photos by URL,
    runs/<run>/records.fetched …         kept while others could not be reached

A run refers to the shards of its index; while its extraction is not finished, to those with images of its
records. Shards and leftovers younger than store_days stay: a job may be about to refer to them, and a later
categorize saves what an earlier one extracted.

Never touched: the release in service, its predecessor by releases/log.jsonl, the one that was rolled back
last, and those that kept runs are based on; the runs of the first two, and of the release that the run in
service was based on: the gate measures on their records.
"""

import contextlib
import datetime
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.errors import Busy, ShelfmarkError
from features.storage.artifact import INPUTS, find_artifact, partial_of
from features.storage.paths import MARK, AnyPath, Remote, remove
from features.storage.store import Digests, Store
from models.decisions.releases import runs_named
from pipeline.extract.index import read_digests, shards_of
from pipeline.job.config import RetentionSettings
from pipeline.job.listing import Files, Found, walk
from pipeline.job.lock import LOCK, at_work, only_job
from pipeline.job.progress import log
from pipeline.job.release_log import Switch, history, newest_first, predecessor
from pipeline.job.run import Run, saved_run
from pipeline.job.summaries import BottlenecksSummary

DAY = 86_400 * 10**9  # ns
# a working directory on a disk, or photos fetched from the web
AT_WORK = re.compile(r"((?:runs/[^/]+/|releases/|decisions/|)[^/]+\.(?:partial|fetched)|categorize/[^/]+)/")
UNFINISHED_OUTPUT = re.compile(r".+\.(partial|fetched|lock|tmp)(/.+)?")
CONFIG = re.compile("runs/[^/]+/config.json")  # written by every command
UNFINISHED = re.compile(
    r"(runs/[^/]+/[^/]+|releases/[^/]+)/"
)  # on an object store, where its mark is missing
# what `categorize` writes for one output below decisions/
DECISIONS = re.compile(
    r"decisions/([^/]+?)(?:/.+|\.rejects\.parquet|\.statistics\.json|\.parquet|\.csv|\.csv\.gz|\.jsonl)"
)


@dataclass(frozen=True)
class Removal:
    """Files that are removed together."""

    what: str  # for people
    names: list[str]  # below the workspace
    size: int = 0  # bytes that are free afterwards; a file with two names counts where the last one goes
    folder: str = ""  # below the workspace; it goes with all that is in it


def clean_after(run: Run) -> list[Removal]:
    """Cleans at the end of `retrain`, where retention.clean says so; what fails is a warning.

    The run itself stays: its job holds its lock.
    """
    settings = run.config.retention
    if not settings.clean:
        return []
    try:
        removals = clean(run.workspace, settings)
    except (ShelfmarkError, OSError) as error:
        log.warning("clean: %s", error)
        return []
    size = sum(one.size for one in removals)
    log.info("clean: %s removed, %.1f MB", ", ".join(one.what for one in removals) or "nothing", size / 1e6)
    return removals


def clean(
    workspace: AnyPath,
    settings: RetentionSettings,
    *,
    dry_run: bool = False,
    found: Iterable[Found] | None = None,
) -> list[Removal]:
    """Removes runs, releases, decisions, logs, leftovers and shards.

    Args:
        workspace: of runs, releases and the store.
        settings: what stays.
        dry_run: remove nothing.
        found: every file, where the caller has walked the workspace already.

    Returns:
        What was removed, or would be.

    Raises:
        ShelfmarkError: there is no workspace.
    """
    found = sorted(walk(workspace) if found is None else found, key=lambda file: file[0])
    files = {name: stat for name, stat, _ in found}
    runs = sorted({name.split("/")[1] for name in files if re.match("runs/[^/]+/.", name)})
    if not runs:
        raise ShelfmarkError(f"{workspace}: has no runs; expected a workspace; check --workspace")
    before = time.time_ns() - int(settings.store_days * DAY)
    with contextlib.ExitStack() as held:  # a job that began now would find half of its files
        locks = None if dry_run else held
        idle = {run for run in runs if _free(workspace / "runs" / run, locks)}
        surplus = sorted(_surplus_runs(workspace, files, runs, settings) & idle)
        kept = [run for run in runs if run not in surplus]
        removals = [_folder(files, f"runs/{run}") for run in surplus]
        left = {name: stat for name, stat in files.items() if not name.startswith(tuple(_roots(surplus)))}
        removals += _old_outputs(left, settings) + _old_logs(left, settings)
        removals += _leftovers(workspace, left, _roots(set(runs) - idle), before, locks)
        removals += _shards(workspace, left, kept, before)
        with contextlib.ExitStack() as switching:  # for a moment only: a release may be waiting
            releases = _releases(workspace, files, kept, settings, None if dry_run else switching)
            removals = _sized([*releases, *removals], files, {name: inode for name, _, inode in found})
            for one in removals[: len(releases)] if not dry_run else []:
                _remove(workspace, one)
        for one in removals[len(releases) :] if not dry_run else []:
            _remove(workspace, one)
    return removals


def _roots(runs: Iterable[str]) -> list[str]:
    return [f"runs/{run}/" for run in runs]


def _free(job: AnyPath, locks: contextlib.ExitStack | None) -> bool:
    """Whether no job is at work there; then none begins until `locks`, where given, are released."""
    if locks is None:
        return not at_work(job)
    try:
        locks.enter_context(only_job(job))
    except Busy:
        return False
    return True


# What is old


def _surplus(
    newest: Sequence[str], number: int | None, days: float | None, time_of: Callable[[str], float]
) -> set[str]:
    """Those that are not among the newest, and not young; none where neither is limited.

    >>> sorted(_surplus(["c", "b", "a"], 1, None, {"a": 0, "b": 0, "c": 0}.__getitem__))
    ['a', 'b']

    Args:
        newest: names, the newest first.
        number: that stay; None: none because of their number.
        days: for which they stay; None: none because of their age.
        time_of: ns since 1970.
    """
    if number is None and days is None:
        return set()
    young = time.time_ns() - (days or 0) * DAY
    return {name for name in newest[number or 0 :] if days is None or time_of(name) < young}


def _surplus_runs(workspace: AnyPath, files: Files, runs: list[str], settings: RetentionSettings) -> set[str]:
    """Runs that are old, and those of which only the lock is left: a command was refused before it began."""
    held = {
        name.split("/")[1] for name in files if name.startswith("runs/") and name.split("/")[2:] != [LOCK]
    }
    used = {name.split("/")[1]: stat.st_mtime_ns for name, stat in files.items() if CONFIG.fullmatch(name)}
    newest = sorted(held, key=lambda run: (used.get(run, 0), run), reverse=True)
    old = _surplus(newest, settings.runs, settings.runs_days, lambda run: used.get(run, 0))
    return set(runs) - held | old - _needed_runs(workspace, runs)


def _needed_runs(workspace: AnyPath, runs: list[str]) -> set[str]:
    """The runs of the release in service and its predecessor, and of the one that the first was based on."""
    switches = history(workspace / "releases")
    now = switches[-1].to if switches else None
    serving = _sources(now, runs)
    needed = serving | _sources(predecessor(switches), runs)
    for run in serving:
        saved = saved_run(workspace / "runs" / run)
        needed |= _sources(saved.based_on if saved else None, runs)
    return needed


def _sources(release: str | None, runs: list[str]) -> set[str]:
    """The runs that a release can be of."""
    return set(runs_named(release) if release else ()).intersection(runs)


def _releases(
    workspace: AnyPath,
    files: Files,
    runs: list[str],
    settings: RetentionSettings,
    locks: contextlib.ExitStack | None,
) -> list[Removal]:
    """Releases that are old, and that neither rollbacks nor the runs need; locked against switches."""
    releases = workspace / "releases"
    if settings.releases is None and settings.releases_days is None:
        return []
    if not _free(releases, locks):
        log.warning("clean: releases are being switched; all of them stay this time")
        return []
    switches = history(releases)
    newest = newest_first(releases, switches)
    ended = _ends_of_service(switches)

    def time_of(name: str) -> float:
        own = (stat.st_mtime_ns for file, stat in files.items() if file.startswith(f"releases/{name}/"))
        return ended.get(name) or max(own, default=0)

    saved = [saved_run(workspace / "runs" / run) for run in runs]
    needed = {one.based_on for one in saved if one} | {predecessor(switches)}
    needed |= {switches[-1].to, switches[-1].before} if switches else set()
    old = _surplus(newest, settings.releases, settings.releases_days, time_of)
    return [_folder(files, f"releases/{name}") for name in newest if name in old - needed]


def _ends_of_service(switches: Sequence[Switch]) -> dict[str, float]:
    """Release → when it was last replaced, ns since 1970."""
    return {
        one.before: datetime.datetime.fromisoformat(one.when).timestamp() * 1e9
        for one in switches
        if one.before
    }


def _old_outputs(files: Files, settings: RetentionSettings) -> list[Removal]:
    """Decisions below decisions/, each with its rejects and statistics."""
    outputs = defaultdict[str, list[str]](list)
    for name in files:
        found = DECISIONS.fullmatch(name)
        if found and not UNFINISHED_OUTPUT.fullmatch(name):
            outputs[found[1]].append(name)
    times = {output: max(files[name].st_mtime_ns for name in names) for output, names in outputs.items()}
    newest = sorted(outputs, key=lambda output: (times[output], output), reverse=True)
    old = _surplus(newest, settings.decisions, settings.decisions_days, times.__getitem__)
    return [Removal(f"decisions/{output}", outputs[output]) for output in sorted(old)]


def _old_logs(files: Files, settings: RetentionSettings) -> list[Removal]:
    """Logs of commands that belong to no run; a run's goes with it."""
    logs = [name for name in files if re.fullmatch(r"logs/.+\.log", name)]
    old = _surplus(logs, None, settings.logs_days, lambda name: files[name].st_mtime_ns)
    return [Removal(f"logs: {len(old):,} of {len(logs):,}", sorted(old))] if old else []


# Leftovers


def _leftovers(
    workspace: AnyPath, files: Files, busy: list[str], before: int, locks: contextlib.ExitStack | None
) -> list[Removal]:
    """Working files and directories, all of whose files are older than `before`."""
    working = defaultdict[str, list[str]](list)
    for name in files:
        found = _working(name, files, isinstance(workspace, Remote))
        if found and not name.startswith(tuple(busy)):
            working[found].append(name)
    free: dict[str, bool] = {}  # by the lock
    removals = []
    for where, names in working.items():
        ages = [files[name].st_mtime_ns for name in names if not name.endswith(f"/{LOCK}")]
        if ages and max(ages) >= before:
            continue
        lock = _lock_of(where)
        if lock and lock not in free:
            free[lock] = _free(workspace / lock, locks)
        if not lock or free[lock]:
            removals.append(Removal(where, names, folder="" if where in files else where))
    return removals


def _lock_of(where: str) -> str:
    """The directory that a job of `categorize` holds while it works there; "" where its run's lock counts."""
    if where.startswith("categorize/") or where.endswith(".lock"):
        return where
    if where.startswith(("runs/", "releases/")) or not where.endswith((".partial", ".fetched")):
        return ""
    return where.rpartition(".")[0] + ".lock"


def _working(name: str, files: Files, remote: bool) -> str:
    """The working directory that a file is in, or the working file that it is, or ""."""
    if found := AT_WORK.match(name):
        return found[1]
    if remote and (found := UNFINISHED.match(name)) and f"{found[1]}/{MARK}" not in files:
        begun = found[1].startswith("releases/") or f"{found[1]}/{INPUTS}" in files
        return found[1] if begun else ""
    if name.endswith(f".lock/{LOCK}"):
        return name.removesuffix(f"/{LOCK}")
    return name if name.endswith((".tmp", ".partial")) else ""


# Shards


def _shards(workspace: AnyPath, files: Files, runs: list[str], before: int) -> list[Removal]:
    """Shards older than `before` that none of the runs refers to, by store."""
    stores = defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for name in files:
        folder, _, last = name.rpartition("/")
        if folder.startswith("store/") and last.endswith((".npy", ".parquet")):
            stores[folder][last.rpartition(".")[0]].append(name)
    referred = defaultdict[str, set[str]](set)
    for run in runs:
        for folder, shards in _referred(workspace, run, list(stores)).items():
            referred[folder] |= shards
    removals = []
    for folder, there in stores.items():
        unused = [
            names
            for shard, names in there.items()
            if shard not in referred[folder] and max(files[name].st_mtime_ns for name in names) < before
        ]
        if unused:
            names = [name for both in unused for name in both]
            removals.append(Removal(f"{folder}: {len(unused):,} of {len(there):,} shards", names))
    return removals


def _referred(workspace: AnyPath, run: str, stores: list[str]) -> dict[str, set[str]]:
    """The shards that a run refers to, by store."""
    path = workspace / "runs" / run / "bottlenecks"
    referred = defaultdict[str, set[str]](set)
    bottlenecks = find_artifact(path)
    if bottlenecks:
        summary = BottlenecksSummary.of(bottlenecks)
        main = Store(workspace / "store" / summary.fingerprint)
        for view in summary.extracted:
            referred[f"store/{main.view(view).owner}"] = shards_of(bottlenecks, view)
    records = find_artifact(workspace / "runs" / run / "records")
    if records and (not bottlenecks or (partial_of(path) != path and partial_of(path).exists())):
        digests = Digests(read_digests(records.file("images.parquet")))
        for folder in stores:
            found = Store(workspace / folder).find(digests)
            referred[folder] |= {found.names[code] for code in np.unique(found.shard[found.shard >= 0])}
    return referred


def _folder(files: Files, where: str) -> Removal:
    return Removal(where, [name for name in files if name.startswith(f"{where}/")], folder=where)


def _sized(removals: list[Removal], files: Files, inodes: Mapping[str, object]) -> list[Removal]:
    """The removals with their sizes: a file is free when the last of its names in the workspace goes."""
    names_left = Counter(inodes.values())
    sized = []
    for one in removals:
        size = 0
        for name in one.names:
            names_left[inodes[name]] -= 1
            size += files[name].st_size if inodes[name] is None or not names_left[inodes[name]] else 0
        sized.append(replace(one, size=size))
    return sized


def _remove(workspace: AnyPath, one: Removal) -> None:
    """Removes files, a shard's mark before its array."""
    if one.folder:
        return remove(workspace / one.folder)
    for name in sorted(one.names, key=lambda name: name.endswith(".npy")):
        (workspace / name).unlink(missing_ok=True)
    if isinstance(workspace, Path):
        for folder in sorted({(workspace / name).parent for name in one.names}):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
