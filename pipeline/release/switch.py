"""Switch: puts a release that is there into service, by hand, or goes back to the one before.

    releases/<name>/ ─► switch_to ─┐
    runs/<run>/bundle/ ─► link_bundle ─► releases/<run>/ ─► switch_to
                                   └─► releases/current, a line of releases/log.jsonl (job/release_log.py)

Each switch is one step, under a lock: two commands never switch at the same moment. Nothing here imports
TensorFlow.
"""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from features.errors import Busy, ShelfmarkError
from features.storage.artifact import Artifact, damaged_file, find_artifact, partial_of
from features.storage.paths import MARK, AnyPath, link_tree, remove
from models.decisions.releases import in_service, release_names, require_whole
from pipeline.job.lock import only_job
from pipeline.job.progress import log
from pipeline.job.release_log import Action, Switch, history, newest_first, predecessors, switch

WAIT = 60.0  # seconds for the lock; a switch takes milliseconds, with a copied bundle seconds


@contextmanager
def releases_locked(releases: AnyPath) -> Iterator[None]:
    """Keeps other switches off, and waits for the one at work.

    Raises:
        Busy: it is still at work after WAIT.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(only_job(releases, WAIT))
        except Busy as error:
            raise Busy(
                f"{releases}: another command has been switching releases for {WAIT:g} s; expected an end; "
                "run the same command again"
            ) from error
        yield


def link_bundle(bundle: Artifact, run: str, releases: AnyPath) -> AnyPath:
    """The run's bundle under releases/, by links to its files; made whole by one rename, or by its manifest.

    Another bundle of a run that was released before has a number, as in 2026-W47.2. The caller holds the
    lock.
    """
    for name in (run if number == 1 else f"{run}.{number}" for number in range(1, 1000)):
        found = find_artifact(releases / name)
        if found and found.digest == bundle.digest:
            return releases / name
        if not (releases / name / MARK).exists():
            break
    else:
        raise ShelfmarkError(f"{releases}: {run} was released 999 times; expected fewer; give another --run")
    target = releases / name
    working = partial_of(target)
    remove(working)
    link_tree(bundle.path, working)
    if isinstance(target, Path):
        remove(target)
        os.rename(str(working), target)
    return target


def put_release(workspace: AnyPath, name: str, why: str | None, who: str | None) -> Switch | None:
    """Puts a release into service, or the bundle of a run: one that was kept out, or whose release is lost.

    Args:
        workspace: of runs and releases.
        name: of a release that is there, else of a run.
        why: for the log; needed for a run's bundle.
        who: for the log; None: user@host.

    Returns:
        The line of the log; None where the release is in service already.

    Raises:
        ShelfmarkError: there is no such release or run, or its bundle is damaged.
    """
    releases = _releases_of(workspace)
    with releases_locked(releases):
        there = name in release_names(releases)
        named = re.fullmatch(r"\w[\w.-]*", name)
        bundle = find_artifact(workspace / "runs" / name / "bundle") if named else None
        if there and (bundle is None or find_artifact(releases / name)):
            return _switch_to(releases, name, "switch", why or "put into service by hand", who)
        if named and bundle is None and (workspace / "runs" / name).is_dir():
            raise ShelfmarkError(
                f"{name}: a run without a bundle, because it was stopped, has failed or is at work; expected "
                "one that has come to its verdict; `shelfmark runs` lists them"
            )
        if bundle is None or bundle.kind != "bundle":
            raise _unknown(releases, name)
        if why is None:
            raise ShelfmarkError(
                f"{name}: a run whose bundle is no whole release; expected a reason to put it into service; "
                "give --why with a sentence for releases/log.jsonl"
            )
        _require_digests(bundle)
        target = link_bundle(bundle, name, releases)
        return _switch_to(releases, target.name, "release", f"forced by hand: {why}", who, run=name)


def roll_back(workspace: AnyPath, name: str | None, why: str | None, who: str | None) -> Switch | None:
    """Puts an earlier release into service.

    Args:
        workspace: of releases.
        name: of the release; None: the one that served before, by the log.
        why: for the log.
        who: for the log; None: user@host.

    Returns:
        The line of the log; None where the release is in service already.

    Raises:
        ShelfmarkError: there is none, or it is damaged.
    """
    releases = _releases_of(workspace)
    with releases_locked(releases):
        if name is None:
            name = _before(releases)
        elif name not in release_names(releases):
            raise _unknown(releases, name)
        return _switch_to(releases, name, "rollback", why or "rolled back by hand", who)


def withdraw(workspace: AnyPath, why: str, who: str | None) -> Switch | None:
    """Takes the release in service out of service: from then on nothing is decided automatically.

    Args:
        workspace: of releases.
        why: for the log.
        who: for the log; None: user@host.

    Returns:
        The line of the log; None where nothing is in service.
    """
    releases = _releases_of(workspace)
    with releases_locked(releases):
        if in_service(releases) is None:
            return None
        return switch(releases, None, "withdraw", why, who=who)


def require_undamaged(releases: AnyPath) -> None:
    """Raises ShelfmarkError where the release in service is gone or damaged: none can be compared with it."""
    name = in_service(releases)
    if name is not None:
        _require_digests(require_whole(releases, name))


def _releases_of(workspace: AnyPath) -> AnyPath:
    """The directory of releases; ShelfmarkError where nothing of a workspace is."""
    if not (workspace / "releases").is_dir() and not (workspace / "runs").is_dir():
        raise ShelfmarkError(
            f"{workspace}: has no releases and no runs; expected a workspace; check --workspace"
        )
    return workspace / "releases"


def _before(releases: AnyPath) -> str:
    """The last whole release that served before the one in service."""
    switches = history(releases)
    for name in predecessors(switches):
        if find_artifact(releases / name):
            return name
        log.warning(
            "rollback: release %s served before, but is missing or damaged; trying the one before it", name
        )
    there = ", ".join(newest_first(releases, switches)) or "none"
    raise ShelfmarkError(
        f"{releases}: no whole release served before the one in service; expected one in log.jsonl; name one "
        f"of those that are there ({there}), or a run by `shelfmark release RUN --why …`"
    )


def _switch_to(
    releases: AnyPath, name: str, action: Action, why: str, who: str | None, run: str | None = None
) -> Switch | None:
    """Switches, unless the release is in service already, after reading all of its bundle."""
    _require_digests(require_whole(releases, name))
    try:
        if in_service(releases) == name:
            return None
    except ShelfmarkError as error:
        log.warning("%s; it is replaced", error)
    return switch(releases, name, action, why, who=who, run=run)


def _require_digests(bundle: Artifact) -> None:
    """Raises ShelfmarkError where a file is not what the manifest says; on an object store sizes count."""
    if isinstance(bundle.path, Path) and (name := damaged_file(bundle, bundle.path)):
        raise ShelfmarkError(
            f"{bundle.path / name}: damaged; expected the digest that the manifest gives; put the file "
            "back, or put another release into service"
        )


def _unknown(releases: AnyPath, name: str) -> ShelfmarkError:
    there = newest_first(releases, history(releases))
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean {near[0]}?" if near else "`shelfmark releases` lists them"
    return ShelfmarkError(
        f"{releases / name}: no such release; expected one of those that are there "
        f"({', '.join(there) or 'none'}); {hint}"
    )
