"""The corrections of a workspace, and the labels that a run takes from them.

    WORKSPACE/corrections.sqlite, or a database: see models/corrections/database.py
    runs/<run>/corrections.parquet   LABELS: those in use when the run's records were begun; no file for none

While a service takes corrections, a run that was killed goes on with the labels that it began with.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.artifact import INPUTS, find_artifact, partial_of
from features.storage.paths import AnyPath, local, writing
from models.decisions.releases import in_service, runs_named
from pipeline.job.config import SellersSettings
from pipeline.job.progress import log

if TYPE_CHECKING:
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second
    from pipeline.job.run import Run

DATABASE = "SHELFMARK_CORRECTIONS"  # in the environment: a URL that comes before sellers.database
LOCAL = "corrections.sqlite"  # in a workspace
TAKEN = "corrections.parquet"  # in a run
LABELS = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "seller")]
    + [("when", pa.timestamp("us", "UTC")), ("id", pa.int64())]
)


def database_of(settings: SellersSettings) -> str:
    """The URL of the database that the environment or the settings name; "" for the file in the workspace."""
    return os.environ.get(DATABASE, "").strip() or settings.database


def open_corrections(workspace: AnyPath, settings: SellersSettings) -> "Corrections":
    """Opens the corrections of a workspace; makes them where there are none.

    Raises:
        ShelfmarkError: they cannot be opened.
    """
    from models.corrections.database import corrections_url
    from models.corrections.store import Corrections

    return Corrections.open(corrections_url(workspace, database_of(settings)))


def has_corrections(workspace: AnyPath, settings: SellersSettings) -> bool:
    """Whether there may be corrections of a workspace: a database is named, or the file is there."""
    file = workspace / LOCAL
    return bool(database_of(settings)) or (isinstance(file, Path) and file.is_file())


def find_corrections(workspace: AnyPath, settings: SellersSettings) -> "Corrections | None":
    """Opens the corrections of a workspace; None where nobody has made any.

    Raises:
        ShelfmarkError: they cannot be opened.
    """
    return open_corrections(workspace, settings) if has_corrections(workspace, settings) else None


def labels_of_run(run: "Run", goes_on: bool = False) -> Path | None:
    """The file of corrections that are labels of a run's records, LABELS; None for none.

    They are those in use now. Records that an interrupted job has begun keep those that they were begun with,
    and with `goes_on` so do finished ones.
    """
    if not run.config.sellers.labels:
        return None
    file, begun = run.path / TAKEN, _begun_with(run.path / "records", goes_on)
    if begun is not None and "corrections" not in begun:
        return None
    if begun is not None and file.is_file():
        log.info("corrections: those with which the run's records were begun, in %s", file)
        return local(file)
    labels = _labels_now(run)
    if not len(labels):
        file.unlink(missing_ok=True)
        return None
    if not (file.is_file() and pq.read_table(local(file)).equals(labels)):
        with writing(file) as working:
            pq.write_table(labels, working)
    return local(file)


def _begun_with(records: AnyPath, finished: bool) -> Mapping[str, object] | None:
    """What records in the making are made from, or `finished` ones; None where there are none."""
    inputs = partial_of(records) / INPUTS
    if inputs.is_file():
        begun: Mapping[str, object] = json.loads(inputs.read_bytes())
        return begun
    found = find_artifact(records) if finished else None
    return found.made_from if found else None


def _labels_now(run: "Run") -> pa.Table:
    """LABELS of the corrections that are in use."""
    corrections = find_corrections(run.workspace, run.config.sellers)
    if corrections is None:
        return LABELS.empty_table()
    try:
        labels = corrections.labels()
    finally:
        corrections.close()
    return pa.table([pa.array(labels[field.name].tolist(), field.type) for field in LABELS], schema=LABELS)


def sellers_in_service(workspace: AnyPath) -> dict[str, object]:
    """The settings [sellers] of the run whose release is in service, by name; {} where there is none.

    Commands that belong to no run begin with them, so that they find the database that `retrain` uses.
    """
    from pipeline.job.run import saved_settings

    try:
        release = in_service(workspace / "releases")
        for name in runs_named(release) if release else ():
            settings = saved_settings(workspace, name).get("sellers")
            if isinstance(settings, dict):
                return settings
    except ShelfmarkError:
        log.warning("corrections: the settings of the release in service cannot be read")
    return {}
