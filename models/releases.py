"""Releases: which bundle is in service.

releases/<run>/    bundles that are or were in service (models/bundle.py)
    releases/current   the one that is: a link on a disk; on an object store a file that holds its name
"""

import os

from features.files import Place, Remote

SPLITS = "splits.parquet"  # in a bundle: product_id and split of every product it was made from


def in_service(releases: Place) -> str | None:
    """Name of the release that releases/current points to; None before the first one."""
    current = releases / "current"
    if isinstance(current, Remote):
        return current.read_text().strip() if current.is_file() else None
    return os.readlink(current) if current.is_symlink() else None
