"""Releases: which bundle is in service, and how another one is put into service.

    releases/<run>/    bundles that are or were in service (models/decisions/bundle.py)
    releases/current   the one that is: a link on a disk; on an object store a file that holds its name

A tool that copies a workspace may turn the link into a directory: it is recognized by its manifest. A copy
from an object store has the file, which is read on a disk, too.
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, find_artifact
from features.storage.paths import MARK, AnyPath, read_range, remove, sizes, write_whole

SPLITS = "splits.parquet"  # in a bundle: product_id and split of every product that keeps its part
CURRENT, ASIDE = "current", "current.old"  # aside: a copied directory while the link replaces it
OUT = "current.out"  # a copied directory while it is taken out of service
NOT_RELEASES = (CURRENT, ASIDE, OUT)

log = logging.getLogger("shelfmark")


def in_service(releases: AnyPath) -> str | None:
    """Name of the release that releases/current points to; None before the first one.

    Raises:
        ShelfmarkError: releases/current is a directory that is not a copy of a release beside it, or a file
            without a name.
    """
    current = releases / CURRENT
    if isinstance(current, Path) and current.is_symlink():
        return os.readlink(current)
    if current.is_file():
        return _name_in(current)
    for copy in (current, releases / ASIDE):
        if copy.is_dir():
            return _release_of(copy)
    return None


def require_in_service(workspace: AnyPath) -> str:
    """Name of the release in service, whose files are there.

    Raises:
        ShelfmarkError: nothing is in service, or what is there is gone or damaged.
    """
    name = found_in_service(workspace / "releases")
    if name is None:
        raise ShelfmarkError(
            f"{workspace}: nothing is in service; expected releases/current; run `shelfmark retrain` first"
        )
    return name


def found_in_service(releases: AnyPath) -> str | None:
    """Name of the release in service, None before the first; ShelfmarkError when it is gone or damaged."""
    name = in_service(releases)
    if name is not None:
        require_whole(releases, name)
    return name


def _name_in(file: AnyPath) -> str:
    name = file.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ShelfmarkError(
            f"{file}: does not hold the name of a release; expected one like 2026-W47; write the name of a "
            "release into the file, or remove it to release again"
        )
    return name


def _release_of(copy: AnyPath) -> str:
    """The release that a directory is a copy of."""
    releases = copy.parent
    wanted = read_range(copy / MARK) if (copy / MARK).is_file() else None
    for name in sizes(releases) if wanted else ():
        folder, _, file = name.partition("/")
        if file == MARK and folder not in NOT_RELEASES and read_range(releases / name) == wanted:
            return folder
    raise ShelfmarkError(
        f"{copy}: a directory, but not a copy of a release beside it; expected a link to a release, or on an "
        "object store a file with its name; replace the directory by one, or remove it to release again"
    )


INSTEAD = "put its files back, or put another one into service by `shelfmark rollback` or `shelfmark release`"


def require_whole(releases: AnyPath, name: str, next_step: str = INSTEAD) -> Artifact:
    """The bundle of a release.

    Args:
        releases: their directory.
        name: of the release.
        next_step: what the error says to do.

    Raises:
        ShelfmarkError: it is gone, or a file of it is missing or resized.
    """
    found = find_artifact(releases / name)
    if found is None or found.kind != "bundle":
        state = "damaged" if (releases / name / MARK).is_file() else "missing"
        raise ShelfmarkError(
            f"{releases / name}: {state}; expected the bundle of release {name}; {next_step}"
        )
    return found


def release_digest(releases: AnyPath, name: str | None) -> str | None:
    """Digest of a release's bundle, as in `Artifact`; None where the release, or its manifest, is missing."""
    if name is None or not (releases / name / MARK).is_file():
        return None
    return hashlib.sha256(read_range(releases / name / MARK)).hexdigest()


def release_names(releases: AnyPath) -> list[str]:
    """Names of all releases that are there, whole or not, sorted."""
    names = {name.partition("/")[0] for name in sizes(releases) if "/" in name}
    return sorted(name for name in names if name not in NOT_RELEASES and not name.endswith(".partial"))


def runs_named(release: str) -> tuple[str, ...]:
    """Names that the run of a release can have: released again, a run's has a number.

    >>> runs_named("2026-W47"), runs_named("2026-W47.2")
    (('2026-W47',), ('2026-W47.2', '2026-W47'))
    """
    return tuple(dict.fromkeys((release, re.sub(r"\.\d+$", "", release))))


def settings_of_run(workspace: AnyPath, release: str, section: str) -> dict[str, object]:
    """A section of the settings of the run that a release is of; {} where they are gone or cannot be read."""
    for name in runs_named(release):
        try:
            saved = json.loads((workspace / "runs" / name / "config.json").read_bytes())
            return dict(saved["settings"][section])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: its settings [%s] cannot be read; the defaults are used", release, section)
            return {}
    return {}


def put_into_service(releases: AnyPath, name: str) -> None:
    """Makes releases/current point to a release, in one step: at any moment the old or the new one counts."""
    current, aside = releases / CURRENT, releases / ASIDE
    if isinstance(current, Path):
        link = current.with_name("current.tmp")
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        if current.is_dir() and not current.is_symlink():
            remove(aside)
            # A link cannot replace a directory: until the link is there, the directory counts from aside.
            os.rename(current, str(aside))
        os.replace(link, current)
        remove(aside)
    else:
        write_whole(current, name.encode())  # a file is read before a directory of this name
        remove(current)  # what stands below it


def take_out_of_service(releases: AnyPath) -> None:
    """Leaves nothing in service, in one step: `in_service` is then None."""
    current, aside, out = (releases / name for name in NOT_RELEASES)
    if isinstance(current, Path):
        remove(out)
        if os.path.lexists(current):
            remove(aside)  # it would count once `current` is gone
        counts = current if os.path.lexists(current) else Path(str(aside))
        if counts.is_dir() and not counts.is_symlink():
            os.rename(counts, str(out))
        else:
            counts.unlink(missing_ok=True)
        remove(out)
    elif current.exists():
        write_whole(current, str(in_service(releases)).encode())  # it counts while what is below it goes
        remove(current)
        current.unlink(missing_ok=True)
