"""The report of a run: one self-contained page, index.html, for those who are responsible for the categories.

    data.ReportData ─ write_report ─► report/index.html

The page opens without a network: it contains styles, plots (SVG) and the script that sorts tables. It has
no date, duration or absolute path, so the same run gives the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from features.storage.artifact import Artifact
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.report.data import ReportData, load
from pipeline.report.plots import acceptance_plot, learning_plots, levels_plot, plain_style
from pipeline.report.text import (
    account,
    below_promise,
    best_epoch,
    category_rows,
    coefficients,
    concentration,
    confusion_rows,
    count,
    flat_settings,
    headline,
    importances,
    level_names,
    named_parts,
    percent,
    products_needed,
    share,
    signed,
)

VERSION = 5


def report(run: Run) -> Artifact:
    """Writes the report of a run.

    Raises:
        ShelfmarkError: an earlier stage has not run, or has run with other settings; the message names it.
    """
    records = run.records()
    thresholds = run.artifact("thresholds", "calibrate", records=records)
    evaluation = run.artifact("evaluation", "evaluate", thresholds=thresholds)
    head = run.require_settings("head", "train", run.config.of_the_head())
    run.require_settings("thresholds", "calibrate", run.config.of_the_thresholds())
    data = load(run.path)
    made_from = {
        "evaluation": evaluation.digest,
        "thresholds": thresholds.digest,
        "head": head.digest,
        "records": records.digest,
        "shown": [data.run, data.code_version, data.settings],
    }

    def make(work: Path) -> Mapping[str, object]:
        write_report(data, work)
        return {"page": "index.html"}

    return stage(run.path / "report", kind="report", version=VERSION, made_from=made_from, make=make)


# Writing the page


def write_report(data: ReportData, out: Path) -> None:
    """Writes `out`/index.html; the same data give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(render(data), encoding="utf-8", newline="\n")


def environment() -> Environment:
    """The templates of our pages. Names from the catalogue are escaped, since they may contain HTML."""
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
    measured, certificate, parts = data.measured, data.rules.certificate, named_parts(data.metrics)
    with plain_style():
        plots = {
            "acceptance_plot": acceptance_plot(data, measured) if measured else None,
            "levels_plot": levels_plot(data.metrics, measured) if measured else None,
            "learning_plots": learning_plots(data.history),
        }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            measured=measured,
            measured_name=next(part.title.lower() for part in parts if part.name == data.metrics.graded_on),
            certificate=certificate,
            certainty=1 - data.rules.delta,
            headline=headline(data),
            products_needed=products_needed(certificate),
            below_promise=measured is not None and below_promise(measured),
            parts=parts,
            levels=level_names(measured.levels) if measured else {},
            account=account(data.records),
            categories=category_rows(data.categories),
            concentration=concentration(data.categories),
            confusions=confusion_rows(data.confusions),
            coefficients=coefficients(data.rules.confidence),
            importances=importances(data.rules.confidence),
            settings=list(flat_settings(data.settings)),
            best=best_epoch(data.history),
            **plots,
            share=share,
        )
    )
