"""Decisions in every format: the same rows come back, whole or not at all."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from object_store import object_store

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, any_path, read_range
from models.decisions.categorizer import COLUMNS, decisions_table, unreadable
from pipeline.job import decisions_file
from pipeline.job.decisions_file import (
    SCHEMA,
    read_decisions,
    rejects_beside,
    require_format,
    write_decisions,
)

FORMATS = ["d.parquet", "d.csv", "d.csv.gz", "d.jsonl"]
IDS = ["a", 'with "quotes"', "a, comma", "two\r\nlines", "old\rline", "=1+1", "№ 7 ☕", "\u2028", " "]


def accepted(product_id: list[str]) -> pd.DataFrame:
    """Rows with something in every column."""
    count = len(product_id)
    return decisions_table(
        product_id=product_id,
        category=["milk"] * count,
        category_path=["food / fresh / milk"] * count,
        confidence=np.linspace(0.1, 0.987654, count),
        status=["accepted"] * count,
        node=["milk"] * count,
        node_path=["food / fresh / milk"] * count,
        node_level=[3] * count,
        top_categories=[["milk", 'crème "brûlée"']] * count,
        top_probabilities=[[0.75, 1e-06]] * count,
        views=["whole,flip"] * count,
        release=["2026-W47"] * count,
    )


PIECES = [accepted(IDS), unreadable(["nothing"]), accepted(["last"])]
WANTED = [
    {name: value if isinstance(value, list) or not pd.isna(value) else None for name, value in row.items()}
    for row in pd.concat(PIECES).to_dict("records")
]


def rows_of(file: AnyPath) -> list[dict[str, Any]]:
    """The rows of a file, read without the code that has written it."""
    data, name = read_range(file), file.name.lower()
    if name.endswith(".parquet"):
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
        return rows
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.split("\n") if line]
    table = csv.DictReader(io.StringIO(text, newline=""))
    return [{name: value_of(name, cell) for name, cell in row.items()} for row in table]


def value_of(name: str, cell: str) -> Any:
    if name.startswith("top_"):
        return json.loads(cell)
    kind = {"confidence": float, "node_level": int}.get(name, str)
    return None if cell == "" else kind(cell)


def test_columns_are_those_of_the_categorizer() -> None:
    assert tuple(SCHEMA.names) == COLUMNS


@pytest.mark.parametrize("name", [*FORMATS, "D.CSV.GZ", "d.Parquet", "d.csv.jsonl"])
def test_every_format_gives_the_rows_back(tmp_path: Path, name: str) -> None:
    write_decisions(iter(PIECES), tmp_path / name)
    assert rows_of(tmp_path / name) == WANTED
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_no_decisions_are_a_file_without_rows(tmp_path: Path, name: str) -> None:
    write_decisions([], tmp_path / name)
    assert rows_of(tmp_path / name) == []
    if "csv" in name:
        text = (tmp_path / name).read_bytes()
        text = gzip.decompress(text) if name.endswith("gz") else text
        assert text.decode() == ",".join(f'"{column}"' for column in COLUMNS) + "\n"


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_decisions_have_the_same_bytes(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        write_decisions(PIECES, tmp_path / folder / name)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    if name.endswith("gz"):
        assert (tmp_path / "one" / name).read_bytes()[4:8] == bytes(4), "no time in it"


def test_csv_and_jsonl_look_as_described(tmp_path: Path) -> None:
    pieces = [accepted(["№ 7"]).assign(confidence=0.9), unreadable(["b"])]
    for name in ("d.csv", "d.jsonl"):
        write_decisions(pieces, tmp_path / name)
    assert (tmp_path / "d.csv").read_text(encoding="utf-8").split("\n")[1:] == [
        '"№ 7","milk","food / fresh / milk",0.9,"accepted","milk","food / fresh / milk",3,'
        '"[""milk"",""crème \\""brûlée\\""""]","[0.75,1e-06]","whole,flip","2026-W47"',
        '"b",,,0,"unreadable",,,,"[]","[]",,',
        "",
    ]
    assert (tmp_path / "d.jsonl").read_text(encoding="utf-8").split("\n") == [
        '{"product_id":"№ 7","category":"milk","category_path":"food / fresh / milk","confidence":0.9,'
        '"status":"accepted","node":"milk","node_path":"food / fresh / milk","node_level":3,'
        '"top_categories":["milk","crème \\"brûlée\\""],"top_probabilities":[0.75,1e-06],'
        '"views":"whole,flip","release":"2026-W47"}',
        '{"product_id":"b","category":null,"category_path":null,"confidence":0.0,"status":"unreadable",'
        '"node":null,"node_path":null,"node_level":null,"top_categories":[],"top_probabilities":[],'
        '"views":null,"release":null}',
        "",
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_there_stays_when_the_writing_fails(tmp_path: Path, name: str) -> None:
    def failing() -> Iterator[pd.DataFrame]:
        yield PIECES[0]
        raise ShelfmarkError("no more")

    (tmp_path / name).write_bytes(b"of last week")
    with pytest.raises(ShelfmarkError, match="no more"):
        write_decisions(failing(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"of last week"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_decisions_go_onto_an_object_store_in_every_format() -> None:
    with object_store() as bucket:
        for name in FORMATS:
            file = any_path(bucket) / "answers" / name
            write_decisions(PIECES, file)
            assert rows_of(file) == WANTED
            assert str(rejects_beside(file)) == f"{bucket}/answers/d.rejects.parquet"


@pytest.mark.parametrize("name", ["d.xlsx", "d.json", "d.gz", "d.parquet.gz", "d", ".parquet", ".csv.gz"])
def test_a_name_without_a_format_is_refused(tmp_path: Path, name: str) -> None:
    message = r"its suffix is no format; expected \.parquet, \.csv, \.csv\.gz or \.jsonl; give"
    with pytest.raises(ShelfmarkError, match=message):
        require_format(tmp_path / name)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ShelfmarkError, match=r"d\.csv: a directory; expected the name of a file; give"):
        require_format(tmp_path / "d.csv")


@pytest.mark.parametrize("name", [*FORMATS, "d.CSV.gz"])
def test_rejects_stand_beside_as_parquet(tmp_path: Path, name: str) -> None:
    assert rejects_beside(tmp_path / name) == tmp_path / "d.rejects.parquet"


# Reading


def read(file: AnyPath, columns: list[str] = SCHEMA.names) -> list[dict[str, Any]]:
    return [row for piece in read_decisions(file, columns) for row in piece.to_pylist()]


@pytest.mark.parametrize("name", [*FORMATS, "D.CSV.GZ"])
def test_every_format_is_read_back_in_pieces(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(decisions_file, "READ_ROWS", 4)
    write_decisions(iter(PIECES), tmp_path / name)
    assert read(tmp_path / name) == WANTED
    few = ["status", "product_id"]
    assert read(tmp_path / name, few) == [{column: row[column] for column in few} for row in WANTED]
    if "csv" not in name.lower():
        assert max(len(piece) for piece in read_decisions(tmp_path / name, few)) == 4


@pytest.mark.parametrize("name", FORMATS)
def test_no_decisions_are_read_as_none(tmp_path: Path, name: str) -> None:
    write_decisions([], tmp_path / name)
    assert read(tmp_path / name) == []


def test_decisions_are_read_from_an_object_store() -> None:
    with object_store() as bucket:
        for name in FORMATS:
            file = any_path(f"{bucket}/{name}")
            write_decisions(iter(PIECES), file)
            assert read(file) == WANTED


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_no_decisions_is_refused_with_its_columns(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    table = pd.DataFrame({"product_id": ["a"], "status": ["accepted"]})
    if name.endswith("parquet"):
        table.to_parquet(file)
    elif name.endswith("jsonl"):
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_csv(file, index=False)
    assert read(file, ["product_id", "status"]) == [{"product_id": "a", "status": "accepted"}]
    with pytest.raises(ShelfmarkError, match="no column confidence; found: product_id, status; expected"):
        read(file, ["product_id", "confidence"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_one_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write_decisions(iter(PIECES), file)
    data = file.read_bytes()
    file.write_bytes(
        data[: len(data) // 2] if "csv" not in name or name.endswith("gz") else data + b'"x","y"\n'
    )
    with pytest.raises(ShelfmarkError, match=r"cannot be read .* expected decisions"):
        read(file)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"[1]\n"),
        ("a.csv", b""),
        ("a.csv", b"product_id,confidence\n1,much\n"),
        ("a.csv.gz", b"plain"),
        ("a.csv.gz", gzip.compress(b"product_id,confidence\n1,2\n" * 100, mtime=0)[:-9]),
        ("a.jsonl", b'{"product_id": "\xff"}\n'),
    ],
)
def test_what_no_format_is_is_one_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ShelfmarkError, match=r"cannot be read .* expected decisions") as error:
        read(tmp_path / name, ["product_id", "confidence"])
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match=r"none\.csv: no such file; expected decisions"):
        read(tmp_path / "none.csv")


def test_a_column_that_an_older_file_lacks_is_null(tmp_path: Path) -> None:
    pd.DataFrame({"product_id": ["a", "b"]}).to_csv(tmp_path / "d.csv", index=False)
    assert [row["release"] for row in read(tmp_path / "d.csv", ["product_id", "release"])] == [None, None]
