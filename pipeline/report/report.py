"""The report of a run: one self-contained page, index.html, for the people who answer for the shelves.

    data.ReportData ─ write_report ─► report/index.html

The page opens without a network: styles, plots (SVG) and the script that sorts tables stand in it. It holds
no date, duration or absolute path, so the same run gives the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from features.storage.artifact import Artifact
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.report.data import ReportData, load
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

VERSION = 4


def report(run: Run) -> Artifact:
    """Writes the report of a run.

    Raises:
        ShelfmarkError: a stage before has not run, or has run with other settings; it is named.
    """
    records = run.records()
    thresholds = run.artifact("thresholds", "calibrate", records=records)
    evaluation = run.artifact("evaluation", "evaluate", thresholds=thresholds)
    head = run.require_settings("head", "train", run.config.of_the_head())
    run.require_settings("thresholds", "calibrate", run.config.of_the_thresholds())
    data = load(run.path)
    made_from: dict[str, Any] = {
        "evaluation": evaluation.digest,
        "thresholds": thresholds.digest,
        "head": head.digest,
        "records": records.digest,
        "shown": [data.run, data.code_version, data.settings],
    }

    def make(work: Path) -> Mapping[str, Any]:
        write_report(data, work)
        return {"page": "index.html"}

    return stage(run.path / "report", kind="report", version=VERSION, made_from=made_from, make=make)


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
