"""The report of a run: index.html for those responsible for the categories, and report.xlsx if wanted.

data.load ─► page.build ─► page.render ─► report/index.html
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, find_artifact, open_artifact
from features.storage.paths import AnyPath
from pipeline.job.account import VERDICT
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.report.data import ReportData, load
from pipeline.report.language import language_of
from pipeline.report.page import build, render
from pipeline.report.two_runs import render_two
from pipeline.report.xlsx import write_xlsx

VERSION = 9
PAGE, WORKBOOK = "index.html", "report.xlsx"


def report(run: Run, xlsx: bool = False) -> Artifact:
    """Writes the report of a run.

    Args:
        run: with its finished evaluation.
        xlsx: write the tables as an Excel file, too.

    Raises:
        ShelfmarkError: an earlier stage has not run, or has run with other settings; the message names it.
    """
    xlsx = xlsx or (run.path / "report" / WORKBOOK).is_file()  # one that is there is made again with the page
    made_from, data = _inputs(run) | {"xlsx": xlsx}, load(run.path)
    if not made_from["in_service"]:
        data = replace(data, in_service=None)
    if not made_from["verdict"]:
        data = replace(data, verdict=None)
    if not made_from["tree"]:
        data = replace(data, tree=None)
    if not made_from["suspects"]:
        data = replace(data, suspects=None, noise=None)
    if not made_from["maps"]:
        data = replace(data, maps={})
    if not made_from["by_seller"]:
        data = replace(data, by_seller=None)

    def make(work: Path) -> Mapping[str, object]:
        write_report(data, run.path / "records", work, xlsx)
        return {"page": PAGE}

    return stage(run.path / "report", kind="report", version=VERSION, made_from=made_from, make=make)


def compare_runs(run: Run, other: str) -> Artifact:
    """Writes a page with the run and another one of the workspace side by side.

    Args:
        run: with its finished evaluation.
        other: name of a run with a finished evaluation.

    Raises:
        ShelfmarkError: there is no such run, or it lacks a stage; the message names it.
    """
    there = run.workspace / "runs" / other
    if other == run.name or not (there / "config.json").is_file():
        raise ShelfmarkError(
            f"--compare {other}: not another run of {run.workspace}; expected the name of a directory in "
            f"{run.workspace / 'runs'} beside {run.name}; give such a name"
        )
    one, two = load(run.path), load(there)
    evaluation = open_artifact(there / "evaluation", "evaluation")
    made_from = _inputs(run) | {"other": evaluation.digest, "other_shown": [two.run, two.settings]}

    def make(work: Path) -> Mapping[str, object]:
        (work / PAGE).write_text(render_two(one, two), encoding="utf-8", newline="\n")
        return {"page": PAGE}

    out = run.path / f"report-{other}"
    return stage(out, kind="report", version=VERSION, made_from=made_from, make=make)


def _inputs(run: Run) -> dict[str, object]:
    """Digests of all that a report shows."""
    records = run.records()
    thresholds = run.artifact("thresholds", "calibrate", records=records)
    evaluation = run.artifact("evaluation", "evaluate", thresholds=thresholds)
    head = run.require_settings("head", "train", run.config.of_the_head())
    run.require_settings("thresholds", "calibrate", run.config.of_the_thresholds())
    suspects, in_service = find_artifact(run.path / "suspects"), find_artifact(run.path / "in_service")
    tree = find_artifact(run.path / "tree")
    if tree and tree.made_from.get("records") != records.digest:
        tree = None
    if suspects and suspects.made_from.get("head") != head.digest:
        suspects = None  # by an earlier head
    if in_service and in_service.made_from.get("records") != records.digest:
        in_service = None  # about products of an earlier catalogue
    maps = find_artifact(run.path / "maps")
    if maps and maps.made_from.get("evaluation") != evaluation.digest:
        maps = None
    by_seller = find_artifact(run.path / "by_seller")
    if by_seller and by_seller.made_from.get("thresholds") != thresholds.digest:
        by_seller = None
    verdict = json.loads((run.path / VERDICT).read_bytes()) if (run.path / VERDICT).is_file() else {}
    bundle = find_artifact(run.path / "bundle")
    judged = bundle and bundle.digest == verdict.get("candidate")
    return {
        "evaluation": evaluation.digest,
        "thresholds": thresholds.digest,
        "head": head.digest,
        "records": records.digest,
        "suspects": suspects.digest if suspects else "",
        "in_service": in_service.digest if in_service else "",
        "tree": tree.digest if tree else "",
        "maps": maps.digest if maps else "",
        "by_seller": by_seller.digest if by_seller else "",
        "verdict": verdict.get("sentence", "") if judged else "",  # else about an earlier bundle
        "language": language_of(run.config.report.language),
        "shown": [
            run.name,
            importlib.metadata.version("shelfmark"),
            run.based_on,
            run.config.model_dump(mode="json"),
        ],
    }


def write_report(data: ReportData, records: AnyPath, out: Path, xlsx: bool = False) -> None:
    """Writes `out`/index.html, and report.xlsx if wanted; the same data give the same bytes.

    Args:
        data: of the run.
        records: directory of its records, where the photos are.
        out: a directory, made if need be.
        xlsx: write the Excel file, too.
    """
    shown = build(data, records)
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(render(shown), encoding="utf-8", newline="\n")
    if xlsx:
        write_xlsx(list(shown.tables.values()), shown.words, out / WORKBOOK)
