"""The report of a run: one self-contained page, index.html, for the people who answer for the shelves.

    runs/<run>/config.json                  run, code_version, settings
               records/manifest.json        summary: where every image went
               head/history.csv             epoch, loss, accuracy, and of FIT val_loss, val_accuracy
               thresholds/thresholds.json   target, delta, temperature, confidence, certificate
               evaluation/metrics.json      train, val, cert, test; graded_on, independent, weights, backbone
               evaluation/*.parquet         curve, categories, confusions
        └─ load ─► ReportData ─ write_report ─► report/index.html

The page opens without a network: styles, plots (SVG) and the script that sorts tables stand in it. It holds
no date, duration or absolute path, so the same run gives the same bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, open_artifact
from features.storage.paths import Place, local
from pipeline.job.stage import stage
from pipeline.report.plots import acceptance_plot, learning_plots, levels_plot, plain_style
from pipeline.report.text import (
    PARTS,
    account,
    below_promise,
    best_epoch,
    category_rows,
    coefficients,
    concentration,
    count,
    flat_settings,
    headline,
    level_names,
    percent,
    products_needed,
    share,
    signed,
)

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
    """What the report tells about a run; the columns of the tables are in COLUMNS."""

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


VERSION = 4


def report(run: Place) -> Artifact:
    """Writes the report of a run's directory.

    Raises:
        ShelfmarkError: a stage before has not run; it is named.
    """
    data = load(run)
    made_from: dict[str, Any] = {
        name: open_artifact(run / name, name).digest for name in (*STAGES, "records")
    }
    made_from["shown"] = [data.run, data.code_version, data.settings]

    def make(work: Path) -> Mapping[str, Any]:
        write_report(data, work)
        return {"page": "index.html"}

    return stage(run / "report", kind="report", version=VERSION, made_from=made_from, make=make)


# Reading a run


def load(run: Place) -> ReportData:
    """Reads what the report needs of a run's directory.

    Raises:
        ShelfmarkError: a file is missing, damaged or of another version; the stage that makes it is named.
    """
    told = ("graded_on", "independent", "weights", "backbone", *PARTS)
    metrics = _read_json(run, "evaluation/metrics.json", told)
    curve, categories, confusions, history = (_read_table(run, name) for name in COLUMNS)
    told = ("target", "delta", "temperature", "confidence", "certificate")
    thresholds = _read_json(run, "thresholds/thresholds.json", told)
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
    told = "missing" if isinstance(why, FileNotFoundError) else f"not usable ({str(why).splitlines()[0]})"
    command = STAGES.get(Path(name).parts[0], "ingest")
    expected = "expected what the report tells of"
    return ShelfmarkError(f"{run / name}: {told}; {expected}; run `shelfmark {command}` first")


# Writing the page


def write_report(data: ReportData, out: Path) -> None:
    """Writes `out`/index.html; the same data give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(render(data), encoding="utf-8", newline="\n")


def environment() -> Environment:
    """The templates of our pages. Names from the catalogue are escaped: they may hold anything."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "count": count, "signed": signed}
    return templates


def render(data: ReportData) -> str:
    """The page as HTML."""
    with plain_style():
        plots = {
            "acceptance_plot": acceptance_plot(data) if data.graded else None,
            "levels_plot": levels_plot(data.metrics) if data.graded else None,
            "learning_plots": learning_plots(data.history),
        }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            graded=data.graded,
            graded_name=PARTS[data.metrics["graded_on"]][0].lower(),
            certificate=data.thresholds["certificate"],
            headline=headline(data),
            products_needed=products_needed(data.thresholds["certificate"]),
            below_promise=data.graded is not None and below_promise(data.graded),
            parts=[(*PARTS[name], data.metrics[name]) for name in PARTS],
            levels=level_names(data.graded["levels"]) if data.graded else {},
            account=account(data.summary),
            categories=category_rows(data.categories),
            concentration=concentration(data.categories),
            confusions=data.confusions.to_dict("records"),
            coefficients=coefficients(data.thresholds["confidence"]),
            settings=list(flat_settings(data.settings)),
            best=best_epoch(data.history),
            **plots,
            share=share,
        )
    )
