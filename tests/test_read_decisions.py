"""Reading decisions: every format that is written is read back, a table at a time."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.errors import ShelfmarkError
from models.decisions.categorizer import decisions_table, unreadable
from pipeline.job import read_decisions
from pipeline.job.decisions_file import SCHEMA, WRITERS, write_decisions
from pipeline.job.read_decisions import decision_tables

COLUMNS = ["product_id", "confidence", "status", "node_level"]


def drawn(products: int = 10) -> pd.DataFrame:
    """Decisions, some unreadable; ids and names that a CSV has to quote."""
    names = [f'7"{number},\nx' if number % 3 else f"={number}" for number in range(products)]
    decided = decisions_table(
        product_id=names, category=["null"] * products, category_path=["a / null"] * products,
        confidence=np.linspace(0, 1, products), status=["accepted"] * products, node=["null"] * products,
        node_path=["a / null"] * products, node_level=[2] * products, top_categories=[["null"]] * products,
        top_probabilities=[[0.5]] * products, release=["week"] * products,
    )  # fmt: skip
    return pd.concat([decided, unreadable(["", "none"], "week")], ignore_index=True)


@pytest.mark.parametrize("ending", WRITERS)
def test_what_is_written_is_read(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(read_decisions, "ROWS", 4)
    file, decisions = tmp_path / f"d{ending}", drawn()
    write_decisions([decisions], file)
    tables = list(decision_tables(file, [*COLUMNS, "category"], ["release"]))
    whole = pa.concat_tables(tables)
    expected = pa.Table.from_pandas(decisions, SCHEMA, preserve_index=False)
    assert whole.equals(expected.select([*COLUMNS, "category", "release"]).replace_schema_metadata())
    assert whole["category"].null_count == 2  # the category called null is one


@pytest.mark.parametrize("ending", WRITERS)
def test_no_product_is_no_row(tmp_path, ending):
    write_decisions([drawn(0).iloc[:0]], tmp_path / f"d{ending}")
    assert sum(map(len, decision_tables(tmp_path / f"d{ending}", COLUMNS))) == 0


@pytest.mark.parametrize("ending", WRITERS)
def test_a_column_that_an_older_file_lacks_is_null(tmp_path, ending):
    frame = drawn().drop(columns="release")
    file = tmp_path / f"d{ending}"
    if ending == ".parquet":
        frame[COLUMNS].to_parquet(file)
    elif ending == ".jsonl":
        frame[COLUMNS].to_json(file, orient="records", lines=True)
    else:
        frame[COLUMNS].to_csv(file, index=False)
    tables = list(decision_tables(file, COLUMNS, ["release"]))
    assert sum(map(len, tables)) == 12
    assert all(table["release"].null_count == len(table) for table in tables)
    with pytest.raises(ShelfmarkError, match="lacks the columns category, release"):
        list(decision_tables(file, [*COLUMNS, "category", "release"]))


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"x")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "a.jsonl").write_text("{")
    (tmp_path / "b.jsonl").write_text("[1]\n")
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "a.csv.gz").write_bytes(b"plain")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"product_id,confidence\n1,2\n" * 100)[:-9])
    (tmp_path / "b.csv").write_text("product_id,confidence\n1,much\n")
    for name in ("none.csv", *(file.name for file in tmp_path.iterdir())):
        with pytest.raises(ShelfmarkError) as error:
            list(decision_tables(tmp_path / name, ["product_id", "confidence"]))
        assert "\n" not in str(error.value) and "expected" in str(error.value), name
