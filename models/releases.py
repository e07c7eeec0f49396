"""Releases: which bundle is in service, and how another one is put into service.

    releases/<run>/    bundles that are or were in service (models/bundle.py)
    releases/current   the one that is: a link on a disk; on an object store a file that holds its name

Tools that copy a workspace may turn the link into a directory, which is known by its manifest.
"""

import os
from pathlib import Path

from features.errors import ShelfmarkError
from features.files import MARK, Place, remove, write_whole

SPLITS = "splits.parquet"  # in a bundle: product_id and split of every product it was made from
CURRENT, ASIDE = "current", "current.old"  # aside: a copied directory while the link takes its place


def in_service(releases: Place) -> str | None:
    """Name of the release that releases/current points to; None before the first one.

    Raises:
        ShelfmarkError: releases/current is a directory that is a copy of no release beside it.
    """
    current = releases / CURRENT
    if isinstance(current, Path):
        if current.is_symlink():
            return os.readlink(current)
        for copy in (current, current.with_name(ASIDE)):
            if copy.is_dir():
                return _release_of(copy)
    return current.read_text().strip() if current.is_file() else None


def _release_of(copy: Path) -> str:
    """The release that a directory is a copy of."""
    wanted = (copy / MARK).read_bytes() if (copy / MARK).is_file() else b""
    for mark in sorted(copy.parent.glob(f"*/{MARK}")):
        name = mark.parent.name
        if name not in (CURRENT, ASIDE) and not mark.parent.is_symlink() and mark.read_bytes() == wanted:
            return name
    raise ShelfmarkError(
        f"{copy}: a directory, and a copy of no release beside it; expected a link to one of them; "
        f"replace it, as by: rm -r {copy} && ln -s NAME {copy}"
    )


def put_into_service(releases: Place, name: str) -> None:
    """Makes releases/current point to a release: on a disk by one rename."""
    current = releases / CURRENT
    if not isinstance(current, Path):
        write_whole(current, name.encode())
        return
    link = current.with_name("current.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    aside = current.with_name(ASIDE)
    if current.is_dir() and not current.is_symlink():
        remove(aside)
        os.rename(current, aside)  # a link cannot replace a directory; until it is there, this one counts
    os.replace(link, current)
    remove(aside)
