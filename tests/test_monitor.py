"""Monitor, on files: a release's reference, batches of all formats, audits, history, page, exit status."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from streams import CATEGORIES, Measured, Release, Stream, drawn_release

from features.storage.artifact import begin, digest_of, file_digest, open_artifact, partial_of, seal
from models.decisions.categorizer import decisions_table, unreadable
from models.decisions.drift.reference import Histogram
from models.taxonomy import Taxonomy, write_taxonomy
from pipeline.cli import main
from pipeline.job.decisions_file import SCHEMA, WRITERS, write_decisions
from pipeline.job.decisions_output import open_output
from pipeline.monitor.page import ERRORS, ESTIMATES, NAMES, SHIFTS

WEEK = "2026-W48"


def weak(release: Release) -> Stream:
    """The categories that are hardest to tell."""
    return Stream(mix=release.shop.frequency * (release.shop.strength < 1.2))


@pytest.fixture(scope="module")
def release() -> Release:
    """A drawn release whose reference knows photos, too."""
    drawn = drawn_release(0, test=1_500)
    images = {
        "placeholder": Histogram(np.array([10, 990]), names=("placeholder", "photo")),
        "kind": Histogram(np.array([800, 200, 0]), names=("jpeg", "png", "all others")),
        "distance": Histogram(np.full(4, 375), edges=np.array([0.1, 0.2, 0.3])),
    }
    reference = type(drawn.reference)(**vars(drawn.reference) | {"images": images, "unreadable": (5, 2_000)})
    return Release(drawn.shop, drawn.model, reference)


@pytest.fixture
def workspace(release, tmp_path) -> Path:
    """A workspace in which the release is in service."""
    make_release(tmp_path / "W", release, WEEK)
    (tmp_path / "W" / "releases" / "current").symlink_to(WEEK)
    return tmp_path / "W"


def make_release(workspace: Path, release: Release, name: str, *, with_reference: bool = True) -> None:
    path = workspace / "releases" / name
    work = begin(partial_of(path), {"drawn": "here"})
    if with_reference:
        (work / "reference.json").write_text(json.dumps(release.reference.to_dict()))
    names = np.array(
        [
            [f"p{parent:02d}", name]
            for parent, name in zip(release.shop.parent, release.shop.categories, strict=True)
        ],
        dtype=object,
    )
    write_taxonomy(
        Taxonomy(release.shop.categories, names, np.full(CATEGORIES, 2, np.int32)), work / "taxonomy.csv"
    )
    seal(path, kind="bundle", version=1, made_from={"drawn": "here"}, summary={})


def decisions_of(
    release: Release, measured: Measured, silent: int = 3, name: str | None = WEEK
) -> pd.DataFrame:
    accepted = measured.confidence >= release.reference.threshold
    category = release.shop.categories[measured.predicted]
    count = len(category)
    ids = [f"{digest_of(measured.confidence.tolist())[:6]}-{number}" for number in range(count)]
    decided = decisions_table(
        product_id=ids, category=category, category_path=category, confidence=measured.confidence,
        status=np.where(accepted, "accepted", "review"), node=np.where(accepted, category, None),
        node_path=np.where(accepted, category, None), node_level=np.where(accepted, 2, None),
        top_categories=[[]] * count, top_probabilities=[[]] * count, views=["whole"] * count,
        release=[name] * count,
    )  # fmt: skip
    return pd.concat([decided, unreadable([f"{ids[0]}-u{one}" for one in range(silent)], name)])


def write(
    release: Release, file: Path, stream: Stream, products: int = 500, seed: int = 0, **more
) -> pd.DataFrame:
    measured = release.measured(np.random.default_rng([seed, 9]), products, stream)
    decisions = decisions_of(release, measured, **more)
    write_decisions([decisions], file)
    return decisions


def run(workspace: Path, *arguments: object) -> int:
    """Exit status of `shelfmark monitor`."""
    try:
        main(["monitor", "--workspace", str(workspace), *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def error_of(capsys, workspace: Path, *arguments: object) -> str:
    assert run(workspace, *arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    return lines[-1]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_batch_like_the_measured_products_gives_no_alarm(release, workspace, tmp_path, ending, capsys):
    write(release, tmp_path / f"d{ending}", Stream())
    assert run(workspace, "--decisions", tmp_path / f"d{ending}") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"no alarm: 1 batch compared with release {WEEK}",
        f"{workspace}/monitor/{WEEK}/index.html",
    ]
    found = json.loads((workspace / "monitor" / WEEK / "monitor.json").read_text())
    (batch,) = found["batches"]
    assert (batch["products"], batch["unreadable"], found["alarm"]) == (503, 3, False)
    measured = {change["name"] for change in batch["changes"]}
    assert measured == {
        "acceptance",
        "confidence",
        "accepted_confidence",
        "branches",
        "categories",
        "unreadable",
    }


@pytest.mark.parametrize("name", ["folder/", "sqlite:///{}/d.db#week"])
def test_a_folder_and_a_table_are_monitored_as_a_file_is(release, workspace, tmp_path, name, capsys):
    measured = release.measured(np.random.default_rng([0, 9]), 500, Stream())
    decisions = pa.Table.from_pandas(decisions_of(release, measured), SCHEMA, preserve_index=False)
    target = name.format(tmp_path) if "://" in name else f"{tmp_path}/{name}"
    output = open_output(target, "job", tmp_path / "work")
    output.write(0, decisions)
    output.finish(1)
    assert run(workspace, "--decisions", target) == 0
    assert f"no alarm: 1 batch compared with release {WEEK}" in capsys.readouterr().out
    of_target = json.loads((workspace / "monitor" / WEEK / "monitor.json").read_text())["batches"][0]
    write(release, tmp_path / "d.parquet", Stream())
    assert run(workspace, "--decisions", tmp_path / "d.parquet", "--output", tmp_path / "m") == 0
    of_file = json.loads((tmp_path / "m" / "monitor.json").read_text())["batches"][0]
    differ = {"file": "", "digest": ""}
    assert of_target | differ == of_file | differ
    assert of_target["file"] == ("week" if "://" in name else "folder")


def test_a_mix_that_halves_the_precision_is_an_alarm(release, workspace, tmp_path, capsys):
    write(release, tmp_path / "d.parquet", weak(release))
    out = tmp_path / "out"
    assert run(workspace, "--decisions", tmp_path / "d.parquet", "--output", out) == 3
    line = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(
        r"alarm: d\.parquet: acceptance rate [\d.]+% → [\d.]+%, estimated precision 8\d\.\d% → [3-6]\d\.\d%",
        line,
    )
    found = json.loads((out / "monitor.json").read_text())
    assert found["alarm"] and found["line"] == line and found["batches"][0]["effect"]["precision_after"] < 0.7
    page = (out / "index.html").read_text()
    assert "Alarm" in page and "d.parquet" in page and found["batches"][0]["changes"][0]["moved"] is not None
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page)  # nothing is fetched


def test_a_change_that_is_set_not_to_matter_is_no_alarm(release, workspace, tmp_path):
    write(release, tmp_path / "d.csv", weak(release))
    sets = ("--set", "monitor.precision=0.9", "--set", "monitor.acceptance=0.9")
    assert run(workspace, "--decisions", tmp_path / "d.csv", *sets) == 0


def test_the_history_keeps_every_batch_once(release, workspace, tmp_path):
    for number in range(3):
        write(release, tmp_path / f"{number}.csv", Stream(), products=100, seed=number)
    history = workspace / "monitor" / WEEK / "history.jsonl"
    assert run(workspace, "--decisions", tmp_path / "0.csv", "--decisions", tmp_path / "1.csv") == 0
    before = history.read_bytes()
    assert run(workspace, "--decisions", tmp_path / "1.csv") == 0
    assert history.read_bytes() == before
    assert run(workspace, "--decisions", tmp_path / "2.csv") == 0
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    assert [entry["file"] for entry in entries] == ["0.csv", "1.csv", "2.csv"]
    assert entries[0]["digest"] == file_digest(tmp_path / "0.csv")
    assert all(change["limit"] > 0 for entry in entries for change in entry["changes"])


def test_a_damaged_history_is_named(release, workspace, tmp_path, capsys):
    write(release, tmp_path / "d.csv", Stream(), products=50)
    (workspace / "monitor" / WEEK).mkdir(parents=True)
    (workspace / "monitor" / WEEK / "history.jsonl").write_text("{}\n")
    assert "history.jsonl: line 1 cannot be read" in error_of(
        capsys, workspace, "--decisions", tmp_path / "d.csv"
    )


# Photos


def statistics(workspace: Path, decisions: pd.DataFrame, **more: object) -> str:
    """A statistics file of the decisions."""
    counts = {"placeholder": [5, 495], "kind": {"jpeg": 400, "png": 100}, "distance": [125] * 4}
    unreadable_products = int((decisions["status"] == "unreadable").sum())
    known = {
        "bundle": open_artifact(workspace / "releases" / WEEK, "bundle").digest,
        "products": len(decisions), "unreadable": unreadable_products,
    }  # fmt: skip
    return json.dumps(known | counts | more)


@pytest.mark.parametrize(
    "name, values",
    [("placeholder", [200, 300]), ("kind", {"avif": 400, "jpeg": 100}), ("distance", [10, 10, 10, 470])],
)
def test_other_photos_are_seen_in_the_statistics_beside_the_decisions(
    release, workspace, tmp_path, name, values
):
    decisions = write(release, tmp_path / "d.csv.gz", Stream())
    (tmp_path / "d.statistics.json").write_text(statistics(workspace, decisions, **{name: values}))
    assert run(workspace, "--decisions", tmp_path / "d.csv.gz") == 0  # no effect on decisions: no alarm
    found = json.loads((workspace / "monitor" / WEEK / "monitor.json").read_text())["batches"][0]["changes"]
    photos = {
        change["name"]: change["significant"]
        for change in found
        if change["name"] in release.reference.images
    }
    assert photos == {one: one == name for one in release.reference.images}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"products": 7}, "of other decisions; expected 503 products, 3 of them unreadable"),
        ({"bundle": "x"}, "of other decisions"),
        ({"placeholder": [1, 2, 3]}, "cannot be read"),
        ({"distance": "far"}, "cannot be read"),
    ],
)
def test_statistics_of_other_decisions_are_refused(release, workspace, tmp_path, change, message, capsys):
    decisions = write(release, tmp_path / "d.csv", Stream())
    (tmp_path / "d.statistics.json").write_text(statistics(workspace, decisions, **change))
    assert message in error_of(capsys, workspace, "--decisions", tmp_path / "d.csv")


# Audits


def write_audits(file: Path, decisions: pd.DataFrame, results: list[str]) -> None:
    accepted = decisions["product_id"][decisions["status"] == "accepted"]
    table = pd.DataFrame({"product_id": accepted.iloc[: len(results)], "note": "", "correct": results})
    table.to_csv(file, index=False)


def test_audits_add_up_over_the_weeks(release, workspace, tmp_path, capsys):
    for week in range(2):
        decisions = write(release, tmp_path / f"{week}.parquet", Stream(), seed=week)
        write_audits(tmp_path / f"a{week}.csv", decisions, ["No"] * 55 + ["yes", "TRUE", "1"] * 65 + [""] * 9)
    first = ("--decisions", tmp_path / "0.parquet", "--audits", tmp_path / "a0.csv")
    second = ("--decisions", tmp_path / "1.parquet", "--audits", tmp_path / "a1.csv")
    status = [run(workspace, *first), run(workspace, *first), run(workspace, *second)]
    found = json.loads((workspace / "monitor" / WEEK / "monitor.json").read_text())["audits"]
    assert status == [0, 0, 3]
    assert len(found["evidence"]) == 2 and found["evidence"][0] < 1_000 < found["evidence"][1]
    assert (found["files"][0]["products"], found["files"][0]["errors"], found["files"][0]["unchecked"]) == (
        250,
        55,
        9,
    )
    line = "audits: 110 of 500 decisions checked so far are wrong; the precision is below 85%"
    assert line in capsys.readouterr().out
    assert run(workspace, *second[:2]) == 3, "what people have found stands"


def test_a_sample_that_is_filled_in_further_is_counted_once(release, workspace, tmp_path):
    decisions = write(release, tmp_path / "d.parquet", Stream(), seed=3)
    given = ("--decisions", tmp_path / "d.parquet", "--audits")
    empty, half, whole = [""] * 60, ["no"] * 12 + ["yes"] * 18 + [""] * 30, ["no"] * 24 + ["yes"] * 36
    for name, answers in (("empty", empty), ("half", half), ("whole", whole)):
        write_audits(tmp_path / f"{name}.csv", decisions, answers)
        run(workspace, *given, tmp_path / f"{name}.csv")
    history = (workspace / "monitor" / WEEK / "history.jsonl").read_text().splitlines()
    audits = [entry for entry in map(json.loads, history) if entry["kind"] == "audits"]
    assert [(entry["products"], entry["errors"]) for entry in audits] == [(60, 24)]


@pytest.mark.parametrize(
    "rows, message",
    [
        ("product_id,right\nx,yes\n", "no column correct"),
        ("product_id,correct\nx,yes\n", "1 products, for example 'x', are not among the accepted ones"),
        ("", "no column correct and no column product_id"),
    ],
)
def test_audits_that_are_none_are_refused(release, workspace, tmp_path, rows, message, capsys):
    write(release, tmp_path / "d.csv", Stream(), products=50)
    (tmp_path / "a.csv").write_text(rows)
    error = error_of(capsys, workspace, "--decisions", tmp_path / "d.csv", "--audits", tmp_path / "a.csv")
    assert message in error
    assert not (workspace / "monitor" / WEEK / "history.jsonl").exists()


def test_rows_that_are_no_answer_are_left_out_and_logged(release, workspace, tmp_path, caplog):
    decisions = write(release, tmp_path / "d.csv", Stream(), products=50)
    write_audits(tmp_path / "a.csv", decisions, ["yes", "perhaps", "no"])
    assert run(workspace, "--decisions", tmp_path / "d.csv", "--audits", tmp_path / "a.csv") == 0
    (file,) = json.loads((workspace / "monitor" / WEEK / "monitor.json").read_text())["audits"]["files"]
    assert (file["products"], file["errors"]) == (2, 1)
    assert "a.csv: 1 rows are not used, the first one in line 3: correct is 'perhaps'" in caplog.text


# Other decisions


def test_decisions_of_another_release_are_compared_with_that_one(release, workspace, tmp_path, capsys):
    make_release(workspace, release, "2026-W47")
    write(release, tmp_path / "d.csv", Stream(), products=100, name="2026-W47")
    assert run(workspace, "--decisions", tmp_path / "d.csv") == 0
    assert (workspace / "monitor" / "2026-W47" / "index.html").is_file()
    write(release, tmp_path / "e.csv", Stream(), products=100, name="2020-W01")
    error = error_of(capsys, workspace, "--decisions", tmp_path / "e.csv")
    assert (
        f"decided by release 2020-W01, which this workspace does not have; expected decisions of {WEEK}"
        in error
    )
    error = error_of(capsys, workspace, "--decisions", tmp_path / "d.csv", "--decisions", tmp_path / "e.csv")
    assert "decisions of several releases (2020-W01, 2026-W47)" in error


def test_decisions_that_name_no_release_are_taken_for_those_in_service(release, workspace, tmp_path, caplog):
    write(release, tmp_path / "d.csv", Stream(), products=100, name=None)
    assert run(workspace, "--decisions", tmp_path / "d.csv") == 0
    assert f"the decisions do not name their release; taken for those of {WEEK}" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.assign(category="hats"), "category 'hats' is not one of release"),
        (lambda table: table.assign(status="review"), "was decided by another threshold"),
        (lambda table: pd.concat([table, table.iloc[:2]]), "2 products are there twice, for example"),
        (lambda table: table.iloc[:0], "has no product"),
        (lambda table: table.drop(columns="status"), "no column status"),
        (
            lambda table: table.assign(release=["a"] + [WEEK] * (len(table) - 1)),
            "of several releases (2026-W48, a)",
        ),
        (lambda table: table.assign(confidence=np.nan), "without id or confidence"),
    ],
)
def test_what_are_no_decisions_of_the_release_is_refused(
    release, workspace, tmp_path, change, message, capsys
):
    decisions = write(release, tmp_path / "d.parquet", Stream(), products=50, silent=0)
    change(decisions).to_parquet(tmp_path / "d.parquet")
    assert message in error_of(capsys, workspace, "--decisions", tmp_path / "d.parquet")


def test_a_release_without_a_reference_says_so(release, tmp_path, capsys):
    make_release(tmp_path / "W", release, WEEK, with_reference=False)
    write(release, tmp_path / "d.csv", Stream(), products=50)
    error = error_of(capsys, tmp_path / "W", "--decisions", tmp_path / "d.csv")
    assert "has no reference.json" in error and "run `shelfmark retrain`" in error


def test_a_damaged_reference_is_named(release, workspace, tmp_path, capsys):
    write(release, tmp_path / "d.csv", Stream(), products=50)
    file = workspace / "releases" / WEEK / "reference.json"
    file.write_text(file.read_text().replace("0.85", "0.95", 1))
    assert "reference.json: damaged" in error_of(capsys, workspace, "--decisions", tmp_path / "d.csv")


def test_before_the_first_release_nothing_can_be_monitored(release, tmp_path, capsys):
    write(release, tmp_path / "d.csv", Stream(), products=50, name=None)
    assert "nothing is in service" in error_of(capsys, tmp_path / "W", "--decisions", tmp_path / "d.csv")


# The page


def test_names_from_the_catalogue_are_escaped(release, workspace, tmp_path):
    write(release, tmp_path / "<b>d.csv", Stream(), products=100)
    assert run(workspace, "--decisions", tmp_path / "<b>d.csv") == 0
    page = (workspace / "monitor" / WEEK / "index.html").read_text()
    assert "&lt;b&gt;d.csv" in page and "<b>d.csv" not in page


def test_every_number_that_is_watched_has_its_words(release):
    from models.decisions.drift.batch import watched_numbers

    assert set(watched_numbers(release.reference)) <= set(NAMES)


def test_the_page_says_the_errors_that_the_benchmark_measured():
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "drift.json"
    rows = json.loads(results.read_text())["figures"]["estimates"]
    measured = {
        key: tuple(
            round(row[key], 1)
            for shift in SHIFTS
            for row in rows
            if (row["change"], row["reference"]) == (shift, 1500)
        )
        for key in ESTIMATES
    }
    assert measured == ERRORS
