"""What the report shows about a run, read from the run's files.

runs/<run>/config.json                  run, code_version, settings
           records/manifest.json        summary: where every image went
           head/history.csv             epoch, loss, accuracy, and of FIT val_loss, val_accuracy
           thresholds/thresholds.json   temperature, confidence model, certificate
           evaluation/metrics.json      train, val, cert, test; graded_on, independent, weights, backbone
           evaluation/*.parquet         curve, categories, confusions
    └─ load ─► ReportData
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, local
from models.decisions.categorizer import DecisionRules
from pipeline.job.run import SavedRun
from pipeline.job.summaries import RecordsSummary
from pipeline.train.figures import Metrics, PartFigures

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

Content = TypeVar("Content")


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the report shows about a run; the columns of the tables are in COLUMNS."""

    run: str
    code_version: str
    settings: Mapping[str, object]
    metrics: Metrics
    rules: DecisionRules
    records: RecordsSummary
    history: pd.DataFrame  # one row for each epoch
    curve: pd.DataFrame  # of the measured part, by descending threshold
    categories: pd.DataFrame  # counts on the measured part
    confusions: pd.DataFrame  # the most frequent first

    @property
    def measured(self) -> PartFigures | None:
        """The figures of the measured part: test, else CERT; None where neither has products."""
        return self.metrics.measured


class _RecordsManifest(BaseModel):
    """What the report shows of records/manifest.json."""

    model_config = ConfigDict(extra="ignore")

    summary: RecordsSummary


def load(run: AnyPath) -> ReportData:
    """Reads what the report needs of a run's directory.

    Raises:
        ShelfmarkError: a file is missing, damaged or of another version; the message names the stage that
            makes it.
    """
    metrics = _read(run, "evaluation/metrics.json", Metrics.model_validate_json)
    curve, categories, confusions, history = (_read_table(run, name) for name in COLUMNS)
    rules = _read(run, "thresholds/thresholds.json", lambda data: DecisionRules.from_dict(json.loads(data)))
    records = _read(run, "records/manifest.json", _RecordsManifest.model_validate_json)
    config = _read(run, "config.json", _parse_run)
    return ReportData(
        run=config.run,
        code_version=config.code_version,
        settings=config.settings,
        metrics=metrics,
        rules=rules,
        records=records.summary,
        history=history,
        curve=curve,
        categories=categories,
        confusions=confusions,
    )


def _parse_run(data: bytes) -> SavedRun:
    saved = SavedRun.model_validate_json(data)
    missing = {"run", "code_version", "settings"} - saved.model_fields_set
    if missing:
        raise ValueError(f"missing: {', '.join(sorted(missing))}")
    return saved


def _read(run: AnyPath, name: str, parse: Callable[[bytes], Content]) -> Content:
    try:
        return parse((run / name).read_bytes())
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        reason = f"missing or of another type: {keys}" if keys else error.errors()[0]["msg"]
        raise _unusable(run, name, reason) from error
    except KeyError as error:
        raise _unusable(run, name, f"missing: {error.args[0]}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable(run, name, error) from error


def _read_table(run: AnyPath, name: str) -> pd.DataFrame:
    try:
        file = local(run / name)
        table = pd.read_csv(file) if name.endswith(".csv") else pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error
    missing = [column for column in COLUMNS[name] if column not in table]
    if missing:
        raise _unusable(run, name, f"no column {', '.join(missing)}")
    return table


def _unusable(run: AnyPath, name: str, why: Exception | str) -> ShelfmarkError:
    folder = Path(name).parts[0]
    command = STAGES.get(folder, "ingest")
    if isinstance(why, FileNotFoundError):
        state, advice = "missing", f"run `shelfmark {command}` first"
    else:  # a stage opens what has its size; damage that keeps the size has to be removed
        state = f"not usable ({str(why).splitlines()[0]})"
        advice = f"remove {run / folder} and run `shelfmark {command}` again"
    return ShelfmarkError(f"{run / name}: {state}; expected a file that this version writes; {advice}")
