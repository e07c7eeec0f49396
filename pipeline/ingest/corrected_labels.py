"""The labels that a run takes from the corrections of its workspace.

    runs/<run>/corrections.parquet   LABELS: those in use when the run's records were begun; no file for none

While a service takes corrections, a run that was killed goes on with the labels that it began with.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.storage.artifact import INPUTS, find_artifact, partial_of
from features.storage.paths import AnyPath, local, writing
from pipeline.job.corrected import find_corrections
from pipeline.job.progress import log
from pipeline.job.run import Run

TAKEN = "corrections.parquet"  # in a run
LABELS = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "seller")]
    + [("when", pa.timestamp("us", "UTC")), ("id", pa.int64())]
)


def labels_of_run(run: Run, goes_on: bool = False) -> Path | None:
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


def _labels_now(run: Run) -> pa.Table:
    """LABELS of the corrections that are in use."""
    corrections = find_corrections(run.workspace, run.config.sellers)
    if corrections is None:
        return LABELS.empty_table()
    try:
        labels = corrections.labels()
    finally:
        corrections.close()
    return pa.table([pa.array(labels[field.name].tolist(), field.type) for field in LABELS], schema=LABELS)
