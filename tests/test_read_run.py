"""A run as pandas frames and photos: columns as documented, errors that name the next command."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import photo, write_files, write_manifest
from object_store import object_store
from PIL import Image

from features.errors import ShelfmarkError
from features.storage.paths import any_path, copy_tree
from pipeline.ingest.ingest import make_records
from pipeline.job.config import IngestSettings
from pipeline.job.decisions_file import SCHEMA
from pipeline.read_run import TABLES, read_run
from pipeline.train.tables import LADDER, UNLEARNT_TABLE

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook" / "read_run.ipynb"
SHARES = {"level1": {"top1": 0.8, "top5": 0.9}}
PART: dict[str, Any] = {
    **{"products": 60, "precision": 0.75, "acceptance_rate_at_target": 0.5, "target_precision": 0.9},
    **{"threshold": 0.8, "accepted": 30, "accepted_precision": 0.93, "levels": SHARES, "unseen": None},
    "hierarchy": {
        **{"own_outputs": False, "precision": 0.7, "recall": 0.7, "f1": 0.7},
        **{"summed": SHARES, "consistency": {"level1": 1.0}},
    },
    "learnt": {"products": 50, "precision": 0.9, "acceptance_rate_at_target": 0.6},
    "review": 20,
}


def rows_of(file: str, columns: dict[str, str], rows: int) -> pa.Table:
    """A table with these columns; the value of each tells its file, column and row."""
    return pa.table({column: [f"{file}.{column}.{row}" for row in range(rows)] for column in columns})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with records of 24 products, and the tables of all stages."""
    folder = tmp_path_factory.mktemp("week")
    run = folder / "W" / "runs" / "week"
    photos = {f"ph/{number}.jpg": photo(number) for number in range(25)}
    write_files(folder / "shop", photos)
    rows = [
        {"product_id": str(n), "image": f"ph/{n}.jpg", "category": "ab"[n % 2], "split": "train"}
        for n in range(24)
    ]
    rows.append(rows[7] | {"image": "ph/24.jpg"})
    write_manifest(folder / "shop" / "shop.csv", rows)
    make_records([str(folder / "shop" / "shop.csv")], run / "records", IngestSettings(min_products=2))
    for table in TABLES.values():
        (run / table.stage).mkdir(exist_ok=True)
        (run / table.stage / "manifest.json").write_text("{}")
        for file, columns in table.files.items():
            pq.write_table(rows_of(file, columns, 3), run / table.stage / f"{file}.parquet")
    (run / "config.json").write_text(json.dumps({"run": "week", "settings": {}}))
    metrics = {"train": PART, "val": None, "cert": PART | {"products": 40}, "test": PART}
    metrics |= {"graded_on": "test", "independent": True, "backbone": "mobilenet", "weights": "random"}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy_tree(finished, tmp_path / "week")
    return tmp_path / "week"


def test_every_table_has_the_documented_columns_in_their_order(finished: Path) -> None:
    run = read_run(finished)
    for name, table in TABLES.items():
        described = run.describe(name)
        assert list(getattr(run, name)) == list(described.index)
        assert (described["meaning"].str.len() > 5).all()
        for file, columns in table.files.items():
            for column in columns:
                assert getattr(run, name)[column].tolist() == [f"{file}.{column}.{row}" for row in range(3)]


def test_documented_columns_are_those_that_the_stages_write() -> None:
    assert list(TABLES["decisions"].files["decisions"]) == SCHEMA.names
    assert list(TABLES["ladder"].files["ladder"]) == LADDER.names
    assert list(TABLES["unlearnt"].files["unlearnt"]) == UNLEARNT_TABLE.names


def test_only_the_wanted_columns_are_read_and_from_both_files(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []
    plain = pq.read_table

    def noted(*args: Any, **kwargs: Any) -> pa.Table:
        read.append(kwargs["columns"])
        return plain(*args, **kwargs)

    monkeypatch.setattr("pipeline.read_run.pq.read_table", noted)
    frame = read_run(finished).table("decisions", ["correct", "status"])
    assert list(frame) == ["correct", "status"]
    assert read == [["status"], ["correct"]]


def test_a_table_is_read_when_it_is_first_used_and_kept(run: Path) -> None:
    opened = read_run(str(run))
    first = opened.curve
    (run / "evaluation" / "curve.parquet").unlink()
    assert opened.curve is first
    with pytest.raises(ShelfmarkError, match=r"curve\.parquet: missing; .* run `shelfmark evaluate` again"):
        read_run(run).curve  # noqa: B018


def test_evaluation_has_a_row_for_each_part_and_figures_within_figures(finished: Path) -> None:
    found = read_run(finished).evaluation
    assert found.index.tolist() == ["train", "cert", "test"]
    assert found.loc["cert", "products"] == 40
    assert found.loc["test", "learnt.precision"] == 0.9
    assert found.loc["test", "levels.level1.top5"] == 0.9
    assert not any(column.startswith("unseen") for column in found)


def test_a_figure_that_no_part_has_is_a_missing_value(run: Path) -> None:
    file = run / "evaluation" / "metrics.json"
    nothing = {"threshold": None, "accepted": 0, "accepted_precision": None}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"train": None, "cert": None, "test": PART | nothing})
    )
    found = read_run(run).evaluation
    assert found.index.tolist() == ["test"]
    assert found[["threshold", "accepted_precision"]].isna().all(axis=None)


def test_photos_are_those_of_the_product_in_their_order(finished: Path) -> None:
    run, shop = read_run(finished), finished.parents[2] / "shop" / "ph"
    photos = run.photos("7")
    assert len(photos) == 2
    for image, name in zip(photos, ("7.jpg", "24.jpg"), strict=True):
        with Image.open(shop / name) as source:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(source))
    assert run.photo("7") == photos[0]
    rows = run.images(["3", "7", "none"])
    assert rows["product_id"].tolist() == ["3", "7", "7"]
    assert rows["image_index"].tolist() == [0, 0, 1]
    assert rows["image_digest"][1] == hashlib.sha256((shop / "7.jpg").read_bytes()).hexdigest()
    with pytest.raises(ShelfmarkError, match=r"product none: not in .*records"):
        run.photo("none")


def test_what_is_no_run_is_named_with_those_that_are_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match=r"no config\.json; .*; check the path"):
        read_run(tmp_path / "nowhere")
    workspace = tmp_path / "W"
    copy_tree(run, workspace / "runs" / "2026-W47")
    with pytest.raises(ShelfmarkError, match="give one of its runs: 2026-W47"):
        read_run(workspace)


def test_a_stage_that_has_not_run_is_named_with_its_command(run: Path) -> None:
    opened = read_run(run)
    (run / "suspects" / "manifest.json").unlink()
    (run / "evaluation" / "manifest.json").unlink()
    with pytest.raises(ShelfmarkError, match=r"suspects: missing; .* run `shelfmark audit suspects` first"):
        opened.suspects  # noqa: B018
    for name in ("evaluation", "curve"):
        with pytest.raises(ShelfmarkError, match=r"evaluation: missing; .* run `shelfmark evaluate` first"):
            getattr(opened, name)


def test_files_of_another_version_and_unknown_names_are_refused(run: Path) -> None:
    evaluation = run / "evaluation"
    pq.write_table(pa.table({"threshold": [0.5]}), evaluation / "curve.parquet")
    (evaluation / "ladder.parquet").write_bytes(b"PAR1")
    (evaluation / "metrics.json").write_text("{}")
    opened = read_run(run)
    with pytest.raises(ShelfmarkError, match="no column acceptance_rate, precision, precision_lower; "):
        opened.curve  # noqa: B018
    with pytest.raises(ShelfmarkError, match=r"ladder\.parquet: damaged"):
        opened.ladder  # noqa: B018
    with pytest.raises(ShelfmarkError, match=r"metrics\.json: not usable"):
        opened.evaluation  # noqa: B018
    with pytest.raises(ShelfmarkError, match="no column right_of_way; expected some of threshold"):
        opened.table("curve", ["right_of_way"])
    with pytest.raises(ShelfmarkError, match="no table; expected one of curve, "):
        opened.table("curves")


def test_a_run_on_an_object_store_is_read_alike(finished: Path) -> None:
    here = read_run(finished)
    with object_store() as bucket:
        copy_tree(finished, any_path(f"{bucket}/W/runs/week"))
        there = read_run(f"{bucket}/W/runs/week")
        pd.testing.assert_frame_equal(there.evaluation, here.evaluation)
        pd.testing.assert_frame_equal(there.decisions, here.decisions)
        assert there.photo("7").tobytes() == here.photo("7").tobytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_of_the_documentation_runs_on_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a smaller demo. Its tables are those that every stage writes, so their columns are checked, too."""
    import nbformat

    from pipeline.demo import demo

    monkeypatch.syspath_prepend(str(NOTEBOOK.parents[1] / "scripts"))
    executed = importlib.import_module("execute_notebook").executed
    draw = demo.draw_catalogue
    monkeypatch.setattr(demo, "draw_catalogue", lambda folder: draw(folder, products=800))
    monkeypatch.setattr(demo, "IMAGE_SIZE", 75)
    monkeypatch.setattr(demo, "SHORT", demo.SHORT | {"epochs": 5})
    demo.demo(tmp_path / "demo-workspace")
    found = executed(nbformat.read(NOTEBOOK, 4), tmp_path)
    assert not [out for cell in found.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert [cell.source for cell in found.cells] == [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells]
    (path,) = (tmp_path / "demo-workspace" / "runs").iterdir()
    for table in TABLES.values():
        for file, columns in table.files.items():
            if table.stage == "evaluation":
                before = ["product_id"] if file == "measured" else []  # as in decisions, with the same rows
                assert pq.read_schema(path / table.stage / f"{file}.parquet").names == [*before, *columns]


def test_the_notebook_was_executed_and_names_no_machine() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert NOTEBOOK.stat().st_size < 500_000
