"""Clean: removes from a workspace what no kept run needs.

    store/<fingerprint>/<shard>.*        shards that no kept run refers to, those of categorize among them
    runs/<run>/                          with --keep: all but the newest runs
    *.tmp, runs/<run>/<kind>.partial …   what jobs that are not running left behind; so are
    runs/<run>/records.fetched …         photos by URL, kept while others could not be reached

A run refers to the shards of its index; while its extraction is not finished, to those with images of its
records. Shards and leftovers younger than --older days stay: a job may be about to refer
to them, and a later categorize saves what an earlier one extracted. The runs of the release in service, and
of the one that it was based on, are always kept.
"""

import contextlib
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.errors import ShelfmarkError
from features.storage.artifact import INPUTS, find_artifact, partial_of
from features.storage.paths import MARK, AnyPath, Remote, remove
from features.storage.store import Digests, Store
from models.decisions.releases import in_service
from pipeline.extract.index import read_digests, shards_of
from pipeline.job.listing import Files, files_of
from pipeline.job.lock import at_work, only_job
from pipeline.job.run import saved_run
from pipeline.job.summaries import FLIP, BottlenecksSummary

DAY = 86_400 * 10**9  # ns
# a working directory on a disk, or photos fetched from the web
AT_WORK = re.compile(r"((?:runs/[^/]+/|releases/|)[^/]+\.(?:partial|fetched))/")
CONFIG = re.compile("runs/[^/]+/config.json")  # written by every command
UNFINISHED = re.compile(
    r"(runs/[^/]+/[^/]+|releases/[^/]+)/"
)  # on an object store, where its mark is missing


@dataclass(frozen=True)
class Removal:
    """Files that are removed together."""

    what: str  # for people
    names: list[str]  # below the workspace
    size: int  # bytes
    folder: str = ""  # below the workspace; it goes with all that is in it


def clean(workspace: AnyPath, *, keep: int | None, older: float, dry_run: bool) -> list[Removal]:
    """Removes runs, leftovers and shards; returns what was removed, or would be.

    Args:
        workspace: of runs, releases and the store.
        keep: runs to keep, the newest by their last command; None: all.
        older: days; younger shards and leftovers stay.
        dry_run: remove nothing.

    Raises:
        ShelfmarkError: there is no workspace.
    """
    files = files_of(workspace)
    runs = sorted({name.split("/")[1] for name in files if re.match("runs/[^/]+/.", name)})
    if not runs:
        raise ShelfmarkError(f"{workspace}: has no runs; expected a workspace; check --workspace")
    before = time.time_ns() - int(older * DAY)
    with contextlib.ExitStack() as locks:  # held: a job that began now would find half of its files
        idle = {run for run in runs if _free(workspace / "runs" / run, None if dry_run else locks)}
        kept = _kept(workspace, files, runs, keep)
        surplus = [run for run in runs if run in idle and run not in kept]
        removals = [_folder(files, f"runs/{run}") for run in surplus]
        left = {name: stat for name, stat in files.items() if not name.startswith(tuple(_roots(surplus)))}
        removals += _leftovers(workspace, left, _roots(set(runs) - idle), before, None if dry_run else locks)
        removals += _shards(workspace, left, [run for run in runs if run not in surplus], before)
        for one in removals if not dry_run else []:
            _remove(workspace, one)
    return removals


def _roots(runs: "set[str] | list[str]") -> list[str]:
    return [f"runs/{run}/" for run in runs]


def _free(job: AnyPath, locks: contextlib.ExitStack | None) -> bool:
    """Whether no job is at work there; then none begins until `locks`, where given, are released."""
    if locks is None:
        return not at_work(job)
    try:
        locks.enter_context(only_job(job))
    except ShelfmarkError:
        return False
    return True


# Runs


def _kept(workspace: AnyPath, files: Files, runs: list[str], keep: int | None) -> set[str]:
    """The newest runs, and those that the release in service came from and was based on."""
    if keep is None:
        return set(runs)
    used = {name.split("/")[1]: stat.st_mtime_ns for name, stat in files.items() if CONFIG.fullmatch(name)}
    newest = sorted(runs, key=lambda run: (used.get(run, 0), run), reverse=True)[:keep]
    sources = _sources(in_service(workspace / "releases"), runs)
    for run in list(sources):
        saved = saved_run(workspace / "runs" / run)
        sources |= _sources(saved.based_on if saved else None, runs)
    return sources.union(newest)


def _sources(release: str | None, runs: list[str]) -> set[str]:
    """The runs that a release can be of: released again, a run's has a number, as in 2026-W47.2."""
    return {run for run in runs if release and re.fullmatch(re.escape(run) + r"(\.\d+)?", release)}


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
    removals = []
    free: dict[str, bool] = {}
    for where, names in working.items():
        if max(files[name].st_mtime_ns for name in names) >= before:
            continue
        output, dot, kind = where.rpartition(".")
        if "/" not in where and dot and kind in ("partial", "fetched"):  # of categorize, its lock beside it
            if output not in free:
                lock = workspace / f"{output}.lock"
                free[output] = _free(lock, locks)
                if free[output] and locks:
                    locks.callback(remove, lock)
            if not free[output]:
                continue
        size = sum(files[name].st_size for name in names)
        removals.append(Removal(where, names, size, folder="" if where in files else where))
    return removals


def _working(name: str, files: Files, remote: bool) -> str:
    """The working directory that a file is in, or the working file that it is, or ""."""
    if found := AT_WORK.match(name):
        return found[1]
    if remote and (found := UNFINISHED.match(name)) and f"{found[1]}/{MARK}" not in files:
        begun = found[1].startswith("releases/") or f"{found[1]}/{INPUTS}" in files
        return found[1] if begun else ""
    return name if name.endswith(".tmp") else ""


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
            size = sum(files[name].st_size for name in names)
            removals.append(Removal(f"{folder}: {len(unused):,} of {len(there):,} shards", names, size))
    return removals


def _referred(workspace: AnyPath, run: str, stores: list[str]) -> dict[str, set[str]]:
    """The shards that a run refers to, by store."""
    path = workspace / "runs" / run / "bottlenecks"
    referred = defaultdict[str, set[str]](set)
    bottlenecks = find_artifact(path)
    if bottlenecks:
        folder = f"store/{BottlenecksSummary.of(bottlenecks).fingerprint}"
        referred[folder] = shards_of(bottlenecks)
        referred[f"{folder}/flip"] = shards_of(bottlenecks, FLIP)
    records = find_artifact(workspace / "runs" / run / "records")
    if records and (not bottlenecks or (partial_of(path) != path and partial_of(path).exists())):
        digests = Digests(read_digests(records.file("images.parquet")))
        for folder in stores:
            found = Store(workspace / folder).find(digests)
            referred[folder] |= {found.names[code] for code in np.unique(found.shard[found.shard >= 0])}
    return referred


def _folder(files: Files, where: str) -> Removal:
    names = [name for name in files if name.startswith(f"{where}/")]
    return Removal(where, names, sum(files[name].st_size for name in names), folder=where)


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
