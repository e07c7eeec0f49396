"""What the report shows about a run, read from the run's files.

runs/<run>/config.json                  run, code_version, settings
           records/manifest.json        summary: where every image went
           head/history.csv             epoch, loss, accuracy, and of FIT val_loss, val_accuracy
           thresholds/thresholds.json   target, delta, temperature, confidence, certificate
           evaluation/metrics.json      train, val, cert, test; graded_on, independent, weights, backbone
           evaluation/*.parquet         curve, categories, confusions
    └─ load ─► ReportData
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from features.errors import ShelfmarkError
from features.storage.paths import Place, local

PARTS = ("train", "val", "cert", "test")

COLUMNS = {
    "evaluation/curve.parquet": ("threshold", "acceptance_rate", "precision", "precision_lower"),
    "evaluation/categories.parquet": (
        *("category", "name", "train_products", "products", "right"),
        *("predicted", "predicted_right", "accepted", "accepted_right"),
    ),
    "evaluation/confusions.parquet": ("category", "category_name", "predicted", "predicted_name", "products"),
    "head/history.csv": ("epoch", "loss", "accuracy"),  # and val_loss, val_accuracy where FIT has products
}
STAGES = {"evaluation": "evaluate", "thresholds": "calibrate", "head": "train"}


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the report shows about a run; the columns of the tables are in COLUMNS."""

    run: str
    code_version: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    thresholds: Mapping[str, Any]
    summary: Mapping[str, Any]  # of the records
    history: pd.DataFrame  # one row an epoch
    curve: pd.DataFrame  # of the graded part, by descending threshold
    categories: pd.DataFrame  # counts on the graded part
    confusions: pd.DataFrame  # the worst first

    @property
    def graded(self) -> Mapping[str, Any] | None:
        """The figures of the part that grades: test, else cert; None where neither has products."""
        graded: Mapping[str, Any] | None = self.metrics[self.metrics["graded_on"]]
        return graded


def load(run: Place) -> ReportData:
    """Reads what the report needs of a run's directory.

    Raises:
        ShelfmarkError: a file is missing, damaged or of another version; the stage that makes it is named.
    """
    figures = ("graded_on", "independent", "weights", "backbone", *PARTS)
    metrics = _read_json(run, "evaluation/metrics.json", figures)
    curve, categories, confusions, history = (_read_table(run, name) for name in COLUMNS)
    rules = ("target", "delta", "temperature", "confidence", "certificate")
    thresholds = _read_json(run, "thresholds/thresholds.json", rules)
    records = _read_json(run, "records/manifest.json", ("summary",))
    config = _read_json(run, "config.json", ("run", "code_version", "settings"))
    return ReportData(
        run=config["run"],
        code_version=config["code_version"],
        settings=config["settings"],
        metrics=metrics,
        thresholds=thresholds,
        summary=records["summary"],
        history=history,
        curve=curve,
        categories=categories,
        confusions=confusions,
    )


def _read_json(run: Place, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((run / name).read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error
    missing = [key for key in keys if key not in values]
    if missing:
        raise _unusable(run, name, f"no {', '.join(missing)} in it")
    return values


def _read_table(run: Place, name: str) -> pd.DataFrame:
    try:
        file = local(run / name)
        table = pd.read_csv(file) if name.endswith(".csv") else pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error
    missing = [column for column in COLUMNS[name] if column not in table]
    if missing:
        raise _unusable(run, name, f"no column {', '.join(missing)}")
    return table


def _unusable(run: Place, name: str, why: Exception | str) -> ShelfmarkError:
    state = "missing" if isinstance(why, FileNotFoundError) else f"not usable ({str(why).splitlines()[0]})"
    command = STAGES.get(Path(name).parts[0], "ingest")
    expected = "expected what the report shows"
    return ShelfmarkError(f"{run / name}: {state}; {expected}; run `shelfmark {command}` first")
