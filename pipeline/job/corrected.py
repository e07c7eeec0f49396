"""Where the corrections of a workspace are: WORKSPACE/corrections.sqlite, or a database.

The store itself: models/corrections/store.py. Nothing slow is imported before there are any.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from features.storage.paths import AnyPath
from models.decisions.releases import in_service, settings_of_run
from pipeline.job.config import SellersSettings

if TYPE_CHECKING:
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second

DATABASE = "SHELFMARK_CORRECTIONS"  # in the environment: a URL that comes before sellers.database
LOCAL = "corrections.sqlite"  # in a workspace


def database_of(settings: SellersSettings) -> str:
    """The URL of the database that the environment or the settings name; "" for the file in the workspace."""
    return os.environ.get(DATABASE, "").strip() or settings.database


def open_corrections(workspace: AnyPath, settings: SellersSettings) -> "Corrections":
    """Opens the corrections of a workspace; makes them where there are none.

    Raises:
        ShelfmarkError: they cannot be opened.
    """
    from models.corrections.database import corrections_url, warn_of_unused_file
    from models.corrections.store import Corrections

    url = corrections_url(workspace, database_of(settings))
    warn_of_unused_file(workspace, url)
    return Corrections.open(url)


def has_corrections(workspace: AnyPath, settings: SellersSettings) -> bool:
    """Whether there may be corrections of a workspace: a database is named, or the file is there."""
    file = workspace / LOCAL
    return bool(database_of(settings)) or (isinstance(file, Path) and file.exists())


def find_corrections(workspace: AnyPath, settings: SellersSettings) -> "Corrections | None":
    """Opens the corrections of a workspace; None where nobody has made any.

    Raises:
        ShelfmarkError: they cannot be opened.
    """
    return open_corrections(workspace, settings) if has_corrections(workspace, settings) else None


def sellers_in_service(workspace: AnyPath) -> dict[str, object]:
    """The settings [sellers] of the run whose release is in service, by name; {} where there is none.

    Commands that belong to no run begin with them, so that they find the database that `retrain` uses.
    """
    release = in_service(workspace / "releases")
    return settings_of_run(workspace, release, "sellers") if release else {}
