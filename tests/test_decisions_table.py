"""Decisions in a table of a database: SQLite in the quick tests, PostgreSQL with `make test-databases`."""

import contextlib
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from postgresql_server import Server
from test_decisions import WANTED, accepted
from test_decisions_output import PARTS, read
from test_decisions_output import write_all as write_parts

from features.errors import ShelfmarkError
from features.storage.databases import hide_password, is_database
from pipeline.cli import main
from pipeline.job import decisions_table
from pipeline.job.decisions_file import ADAPTED, SCHEMA, WITH_ADAPTED, decisions_digest
from pipeline.job.decisions_output import decisions_source, open_output, require_output

sql = pytest.importorskip("sqlalchemy")

KILLS = 20


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.databases)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    server: Server = request.getfixturevalue("server")
    return server.new_database()


def engine_of(url: str) -> Any:
    """SQLAlchemy's own way, for comparison with ours."""
    return sql.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def execute(url: str, *statements: str) -> list[Any]:
    """Runs statements in one transaction; the rows of the last one."""
    engine = engine_of(url)
    try:
        with engine.begin() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def rows_there(url: str, table: str = "decisions") -> list[dict[str, Any]]:
    """The rows as a user of the database sees them, by product."""
    found = [dict(zip(SCHEMA.names, row, strict=True)) for row in execute(url, f"SELECT * FROM {table}")]
    for row in found:
        for name in ("top_categories", "top_probabilities"):
            row[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
    return sorted(found, key=lambda row: str(row["product_id"]))


def by_product(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["product_id"]))


def write_all(target: str, parts: list[pa.Table] = PARTS, job: str = "job") -> None:
    write_parts(open_output(target, job, Path("unused")), parts)


def decided(ids: list[str], **changed: Any) -> pa.Table:
    return pa.Table.from_pandas(accepted(ids).assign(**changed), SCHEMA, preserve_index=False)


# Rows


def test_rows_are_those_of_the_decisions_and_come_back(url: str) -> None:
    write_all(f"{url}#decisions")
    assert rows_there(url) == by_product(WANTED)
    assert by_product(read(f"{url}#decisions")) == by_product(WANTED)
    few = ["status", "product_id"]
    assert by_product(read(f"{url}#decisions", few)) == by_product(
        [{name: row[name] for name in few} for row in WANTED]
    )


def test_the_table_is_decisions_unless_it_is_named(url: str) -> None:
    write_all(url)
    write_all(f"{url}#Weekly choice%s")
    assert (
        rows_there(url)
        == rows_there(url, '"Weekly choice%%s"' if "postgresql" in url else '"Weekly choice%s"')
        != []
    )


def test_rows_of_this_job_replace_older_ones_and_the_others_stay(url: str) -> None:
    write_all(url, [decided(["a", "b"], release="2026-W47"), decided(["c"], release="2026-W47")])
    write_all(url, [decided(["b", "d"], release="2026-W48", status="review")], job="next")
    found = [(row["product_id"], row["status"], row["release"]) for row in rows_there(url)]
    assert found == [
        ("a", "accepted", "2026-W47"), ("b", "review", "2026-W48"),
        ("c", "accepted", "2026-W47"), ("d", "review", "2026-W48"),
    ]  # fmt: skip


def test_no_decisions_are_a_table_without_rows(url: str) -> None:
    write_all(url, [])
    assert rows_there(url) == read(url) == []


def test_columns_of_the_user_stay(url: str) -> None:
    write_all(url)
    execute(
        url, "ALTER TABLE decisions ADD COLUMN checked_by TEXT", "UPDATE decisions SET checked_by = 'Ann'"
    )
    write_all(url, [decided(["a", "new"])], job="next")
    found = dict(execute(url, "SELECT product_id, checked_by FROM decisions"))
    assert found["a"] == "Ann" and found["new"] is None


def test_the_digest_depends_on_rows_and_not_on_their_order(url: str) -> None:
    write_all(f"{url}#one")
    write_all(f"{url}#two", PARTS[::-1])
    write_all(f"{url}#three", [*PARTS[:2], decided(["last"], status="review")])
    one, two, three = (
        decisions_digest(decisions_source(f"{url}#{name}")) for name in ("one", "two", "three")
    )
    assert one == two != three
    assert len(one) == 64
    execute(
        url,
        "CREATE VIEW few AS SELECT product_id, status FROM three",
        "CREATE VIEW all_ids AS SELECT product_id FROM three",
    )
    assert decisions_digest(decisions_source(f"{url}#few")) != decisions_digest(
        decisions_source(f"{url}#all_ids")
    )


# Jobs that are killed, and several of them


def test_parts_that_are_written_are_known_to_the_same_job_alone(url: str) -> None:
    output = open_output(url, "job", Path("unused"))
    for number in (2, 0):
        output.write(number, PARTS[number])
    assert open_output(url, "job", Path("unused")).written() == {0, 2}
    assert open_output(url, "other", Path("unused")).written() == frozenset()
    write_all(url)
    assert rows_there(url) == by_product(WANTED)
    assert execute(url, "SELECT * FROM decisions_parts") == [], "a finished job leaves no marks"


def test_rows_that_another_job_may_have_replaced_are_written_again(url: str) -> None:
    """The release is switched back: the job of the old one goes on, over the rows of the new one."""
    killed = open_output(url, "old", Path("unused"))
    killed.write(0, decided(["a", "b"], release="2026-W47"))
    write_all(url, [decided(["a", "b"], release="2026-W48")], job="new")
    write_all(url, [decided(["a", "b"], release="2026-W47")], job="old")
    assert {row["release"] for row in rows_there(url)} == {"2026-W47"}


def test_a_missing_part_is_one_error(url: str) -> None:
    output = open_output(url, "job", Path("unused"))
    output.write(0, PARTS[0])
    with pytest.raises(
        ShelfmarkError, match="part 1 is missing; expected parts 0 to 1; run the same command"
    ):
        output.finish(2)


def many(part: int, release: str = "2026-W48", prefix: str = "p") -> pa.Table:
    """500 products of a part."""
    return decided([f"{prefix}{part:02d}-{number:03d}" for number in range(500)], release=release)


def write_many(target: str, job: str, prefix: str = "p", parts: int = 8) -> None:
    write_all(target, [many(part, job, prefix) for part in range(parts)], job)


def wait_for_rows(process: Any) -> None:
    process.join(120)
    assert process.exitcode == 0


def test_every_row_is_there_once_after_kills_at_random_moments(url: str) -> None:
    context, chance = multiprocessing.get_context("fork"), random.Random(18)
    whole = [many(part, "job") for part in range(8)]
    started = time.monotonic()
    write_all(f"{url}#undisturbed", whole)
    seconds = time.monotonic() - started
    killed = 0
    for _ in range(KILLS):
        writer = context.Process(target=write_many, args=(url, "job"))
        writer.start()
        writer.join(chance.random() * seconds * 0.6)
        if writer.exitcode is None:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            killed += 1
        writer.join()
        with contextlib.suppress(sql.exc.DBAPIError):  # killed before it made the tables
            parts = execute(url, "SELECT part FROM decisions_parts")
            rows = execute(url, "SELECT product_id FROM decisions")
            assert len(set(parts)) == len(parts) and len(set(rows)) == len(rows)
            assert len(rows) >= 500 * len(parts), "a mark without its rows"
    assert killed >= KILLS // 2
    write_many(url, "job")
    assert rows_there(url) == rows_there(url, "undisturbed")
    assert len(rows_there(url)) == 4000


def test_two_writers_of_one_table_lose_nothing(url: str) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(url, job, job)) for job in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        wait_for_rows(writer)
    assert len(rows_there(url)) == 3 * 8 * 500
    assert {(row["product_id"][0], row["release"]) for row in rows_there(url)} == {
        (job, job) for job in "abc"
    }


def test_two_writers_of_the_same_products_both_end(url: str) -> None:
    """Each part is one writer's: rows of a transaction are not mixed."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(url, job)) for job in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        wait_for_rows(writer)
    found = rows_there(url)
    assert len(found) == 4000
    assert all(
        len({row["release"] for row in found[start : start + 500]}) == 1 for start in range(0, 4000, 500)
    )


# Tables that are there


def test_a_table_with_other_columns_is_refused_with_what_to_change(url: str) -> None:
    execute(url, "CREATE TABLE t (product_id TEXT PRIMARY KEY, category TEXT)")
    with pytest.raises(ShelfmarkError) as error:
        require_output(f"{url}#t")
    assert str(error.value).endswith(
        "#t: the table has no column category_path; expected it as TEXT; add it "
        "(ALTER TABLE t ADD COLUMN category_path TEXT), or name another table"
    )
    write_all(f"{url}#u")
    execute(url, "ALTER TABLE u DROP COLUMN confidence", "ALTER TABLE u ADD COLUMN confidence INTEGER")
    with pytest.raises(ShelfmarkError, match=r"#u: column confidence is INTEGER; expected DOUBLE"):
        open_output(f"{url}#u", "job", Path("unused"))
    columns = ", ".join(f"{name} {kind}" for name, kind in execute_types(url))
    execute(url, f"CREATE TABLE v ({columns})")
    with pytest.raises(
        ShelfmarkError, match="product_id is neither the primary key nor unique by itself; expected one"
    ):
        require_output(f"{url}#v")
    execute(url, f"CREATE TABLE w ({columns}, shop TEXT NOT NULL, PRIMARY KEY (product_id))")
    with pytest.raises(
        ShelfmarkError, match="column shop, which is not of shelfmark, is NOT NULL and has no default"
    ):
        require_output(f"{url}#w")


def execute_types(url: str) -> list[tuple[str, str]]:
    """Names and types of the columns of decisions, in the words of the database."""
    write_all(f"{url}#model", [])
    engine = engine_of(url)
    try:
        return [
            (one["name"], one["type"].compile(engine.dialect))
            for one in sql.inspect(engine).get_columns("model")
        ]
    finally:
        engine.dispose()


ADAPTED_ROWS: dict[str, tuple[bool, str | None, int]] = {
    "a": (True, 'pe"ar', 3), "b": (False, "apple", 3), "c": (False, None, 0)
}  # fmt: skip


def adapted(rows: dict[str, tuple[bool, str | None, int]]) -> pa.Table:
    """Decisions with the columns of corrections."""
    table = decided(list(rows))
    for name, values in zip(ADAPTED.names, zip(*rows.values(), strict=True), strict=True):
        table = table.append_column(ADAPTED.field(name), pa.array(values, ADAPTED.field(name).type))
    return table


def columns_of_corrections(url: str) -> dict[str, tuple[Any, ...]]:
    """product_id → adapted, base_category, corrections, as a user of the database sees them."""
    found = execute(url, "SELECT product_id, adapted, base_category, corrections FROM decisions")
    return {row[0]: tuple(row[1:]) for row in found}


def test_columns_of_corrections_are_written_and_come_back(url: str) -> None:
    write_parts(open_output(url, "job", Path("unused"), WITH_ADAPTED), [adapted(ADAPTED_ROWS)])
    assert columns_of_corrections(url) == ADAPTED_ROWS
    rows = read(url, ["product_id", *ADAPTED.names])
    assert {row.pop("product_id"): tuple(row.values()) for row in rows} == ADAPTED_ROWS


def test_an_older_table_gets_the_columns_and_rows_without_corrections_reset_them(url: str) -> None:
    write_all(url, [decided(["a", "b", "old"])])
    digest = decisions_digest(decisions_source(url))
    require_output(url, WITH_ADAPTED)
    assert len(execute(url, "SELECT * FROM decisions")[0]) == len(SCHEMA), "a check adds nothing"
    write_parts(open_output(url, "next", Path("unused"), WITH_ADAPTED), [adapted(ADAPTED_ROWS)])
    assert columns_of_corrections(url) == ADAPTED_ROWS | {"old": (None, None, None)}
    assert decisions_digest(decisions_source(url)) != digest
    write_all(url, [decided(["a"])], job="later")
    assert columns_of_corrections(url)["a"] == (False, None, 0)
    assert columns_of_corrections(url)["b"] == ADAPTED_ROWS["b"]


def test_columns_of_the_user_with_such_names_are_left_alone_until_they_are_needed(url: str) -> None:
    write_all(url, [decided(["a"])])
    execute(
        url, "ALTER TABLE decisions ADD COLUMN corrections TEXT", "UPDATE decisions SET corrections = 'x'"
    )
    write_all(url, [decided(["a"])], job="next")
    assert execute(url, "SELECT corrections FROM decisions") == [("x",)]
    assert read(url, ["product_id", "corrections"]) == [{"product_id": "a", "corrections": None}]
    with pytest.raises(
        ShelfmarkError, match="column corrections is TEXT; expected INTEGER; change it, or name"
    ):
        require_output(url, WITH_ADAPTED)


def test_a_table_of_the_user_with_a_unique_index_is_used(url: str) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in execute_types(url))
    execute(url, f"CREATE TABLE mine (id INTEGER, {columns})", "CREATE UNIQUE INDEX one ON mine (product_id)")
    write_all(f"{url}#mine")
    assert len(execute(url, "SELECT product_id FROM mine")) == len(WANTED)


def test_a_check_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    require_output(f"{url}#decisions")
    assert not (tmp_path / "shop.db").exists()
    with pytest.raises(ShelfmarkError, match="no such"):
        read(f"{url}#decisions")


def test_a_table_that_is_missing_cannot_be_read(url: str) -> None:
    write_all(url)
    with pytest.raises(ShelfmarkError, match="#other: no such table; expected decisions of `shelfmark"):
        read(f"{url}#other")
    execute(url, "CREATE TABLE t (product_id TEXT PRIMARY KEY)", "INSERT INTO t VALUES ('a')")
    assert read(f"{url}#t", ["product_id", "release"]) == [{"product_id": "a", "release": None}]
    with pytest.raises(ShelfmarkError, match="#t: no column status; found: product_id; expected decisions"):
        read(f"{url}#t", ["product_id", "status"])


def test_a_view_is_read(url: str) -> None:
    write_all(url, [decided(["a"], release="2026-W47"), decided(["b"], release="2026-W48")])
    execute(url, "CREATE VIEW w48 AS SELECT * FROM decisions WHERE release = '2026-W48'")
    assert [row["product_id"] for row in read(f"{url}#w48")] == ["b"]
    with pytest.raises(ShelfmarkError, match="#w48: product_id is neither the primary key nor unique"):
        require_output(f"{url}#w48")


# Documentation

PAGE = (Path(__file__).parents[1] / "docs" / "decisions.md").read_text()


def test_the_statements_of_the_documentation_run(url: str) -> None:
    write_all(url, [decided(["a", "b"]), decided(["c"], release="2026-W48")])
    counts, view = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    found = execute(url, counts.replace(";", ""))
    assert [row[:3] for row in found] == [("2026-W47", "accepted", 2), ("2026-W48", "accepted", 1)]
    execute(url, view)
    assert [row["product_id"] for row in read(f"{url}#decisions_2026_w48")] == ["c"]


def test_the_python_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = open_output("decisions/", "job", tmp_path / "work")
    output.write(0, decided(["a"]))
    output.write(1, decided(["b"], status="review"))
    output.finish(2)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["decisions"]["product_id"].tolist() == ["a", "b"]
    assert names["accepted"]["product_id"].to_pylist() == ["a"]


def test_decisions_of_a_table_are_carried_over_to_a_new_tree(url: str, tmp_path: Path) -> None:
    write_all(url, [decided(["a", "b"])])
    (tmp_path / "m.csv").write_text("from,to\nmilk,fresh milk\n")
    output = str(tmp_path / "new.parquet")
    main(["taxonomy", "migrate", url, "--mapping", str(tmp_path / "m.csv"), "--output", output])
    assert {row["category"] for row in read(output)} == {"fresh milk"}


# Names


def test_urls_of_databases_are_not_taken_for_object_stores() -> None:
    for text in ("sqlite:///a.db", "postgresql://h/d#t", "POSTGRESQL+psycopg://h", "mysql+pymysql://h/d"):
        assert is_database(text)
    for text in (
        "s3://bucket/sqlite.parquet",
        "sqlite.parquet",
        "gs://postgresql/a.csv",
        "a/postgresql:/b.csv",
        "hdfs://h/d",
    ):
        assert not is_database(text)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mysql://ann:secret@h/d#t", r"mysql://ann:\*\*\*@h/d#t: mysql is not supported; expected sqlite:"),
        ("postgresql+psycopg2://ann:secret@h/d", r"ann:\*\*\*@h/d: postgresql\+psycopg2 is not supported"),
        ("sqlite:///a.db#web.t", "schemas are of PostgreSQL; expected sqlite:///FILE#TABLE"),
        ("sqlite://#t", "names no file; expected sqlite:///FILE#TABLE"),
        ("sqlite:///:memory:#t", "names no file; expected sqlite:///FILE#TABLE"),
        ("postgresql://h/d#.t", "the name of the schema is empty"),
        ("postgresql://h/d#" + "t" * 58, "the name of the table is too long; expected 57 bytes at most"),
        ("postgresql://ann:secret@h:port/d#t", r"ann:\*\*\*@h:port/d#t: not the URL of a database; expected"),
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_its_password(target: str, message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message) as error:
        require_output(target)
    assert "secret" not in str(error.value)


def test_passwords_are_hidden() -> None:
    table = decisions_source("postgresql://ann:s3cret@h/d?password=s3cret&sslmode=require#web.t")
    assert str(table) == "postgresql://ann:***@h/d?password=***&sslmode=require#web.t"
    assert "s3cret" not in repr(table)
    assert table.name == "web.t"
    assert hide_password("s3://bucket/a:b@c") == "s3://bucket/a:b@c"


# What goes wrong: SQLite


def test_sqlite_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ShelfmarkError, match=r"none/a\.db#t: cannot be made in .*none; expected a directory that is there"
    ):
        require_output(f"sqlite:///{tmp_path}/none/a.db#t")
    (tmp_path / "a.csv").write_text("product_id,category\n" * 100)
    with pytest.raises(ShelfmarkError, match="file is not a database; expected a database of SQLite; give"):
        require_output(f"sqlite:///{tmp_path}/a.csv#t")
    with pytest.raises(ShelfmarkError, match=r"none\.db#t: no such file; expected decisions"):
        read(f"sqlite:///{tmp_path}/none.db#t")
    assert not (tmp_path / "none.db").exists()


def test_sqlite_that_is_full_is_one_line_and_goes_on(tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/a.db#t"
    output = open_output(target, "job", Path("unused"))
    output.write(0, many(0))

    @sql.event.listens_for(output._engine, "begin")  # type: ignore[attr-defined]
    def _limit(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    with pytest.raises(ShelfmarkError, match=r"is full; expected free space .*which goes on"):
        output.write(1, many(1))
    assert open_output(target, "job", Path("unused")).written() == {0}
    write_all(target, [many(0), many(1)])
    assert len(read(target)) == 1000


def test_sqlite_that_stays_locked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions_table, "SECONDS_FOR_A_LOCK", 0.2)
    target = f"sqlite:///{tmp_path}/a.db#t"
    output = open_output(target, "job", Path("unused"))
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            ShelfmarkError, match=r"database is locked; expected the lock within .* which goes on"
        ):
            output.write(0, PARTS[0])
        other.execute("ROLLBACK")
    output.write(0, PARTS[0])


def test_without_psycopg_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pipeline.job.decisions_output import require_output\n"
        "require_output('postgresql://host/shop')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "psycopg is not installed; expected it for tables of databases; pip install 'shelfmark[databases]'"
        in done.stderr
    )


# What goes wrong: PostgreSQL


@pytest.mark.databases
def test_a_schema_is_made_and_its_table_is_its_own(server: Server) -> None:
    url = server.new_database()
    write_all(f"{url}#web.choices")
    assert rows_there(url, "web.choices") == by_product(WANTED)
    assert by_product(read(f"{url}#web.choices")) == by_product(WANTED)
    assert execute(url, "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == [
        (0,)
    ]


@pytest.mark.databases
def test_lists_are_arrays_in_postgresql(server: Server) -> None:
    url = server.new_database()
    write_all(url)
    found = execute(
        url, "SELECT top_categories[1], top_probabilities[2] FROM decisions WHERE product_id = 'last'"
    )
    assert found == [("milk", 1e-06)]


@pytest.mark.databases
def test_what_postgresql_refuses_is_one_line_without_the_password(server: Server) -> None:
    url = server.new_database()
    execute(url, "CREATE ROLE reader LOGIN PASSWORD 's3cret'")
    write_all(f"{url}#t")
    wrong = url.replace("postgres:postgres@", "reader:wr0ng@")
    reader = url.replace("postgres:postgres@", "reader:s3cret@")
    gone = url.rpartition("/")[0] + "/nothing"
    closed = "postgresql://reader:s3cret@127.0.0.1:9/shop"
    for target, message in [
        (wrong, r"password authentication failed for user .reader.; expected a user that may connect; check"),
        (f"{reader}#t", r"permission denied for table t.*; expected the rights SELECT, INSERT, UPDATE"),
        (f"{reader}#new.t", r"permission denied for database .*; expected the rights"),
        (gone, r"database .nothing. does not exist; expected a database that answers; check"),
        (closed, r"onnection refused.*; expected a database that answers; check that it runs"),
    ]:
        with pytest.raises(ShelfmarkError, match=message) as error:
            require_output(target)
        assert "\n" not in str(error.value)
        for word in ("s3cret", "wr0ng"):
            assert word not in str(error.value)
    execute(url, "GRANT SELECT ON t TO reader")
    assert len(read(f"{reader}#t")) == len(WANTED)


@pytest.mark.databases
def test_a_user_who_may_not_add_columns_reads_the_statement(server: Server) -> None:
    url = server.new_database()
    execute(url, "CREATE ROLE writer LOGIN PASSWORD 's3cret'")
    write_all(url)
    for table in ("decisions", "decisions_parts"):
        execute(url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO writer")
    writer = url.replace("postgres:postgres@", "writer:s3cret@")
    require_output(writer)
    with pytest.raises(ShelfmarkError) as error:
        require_output(writer, WITH_ADAPTED)
    assert re.search(
        r"the column adapted, for decisions by sellers' corrections, cannot be added \(must be owner of "
        r"table decisions\); expected the table's owner, or a table that has it; run ALTER TABLE decisions "
        r"ADD COLUMN adapted BOOLEAN as its owner, or name another table",
        str(error.value),
    )


@pytest.mark.databases
def test_a_value_that_postgresql_cannot_hold_is_one_line(server: Server) -> None:
    output = open_output(server.new_database(), "job", Path("unused"))
    with pytest.raises(ShelfmarkError, match=r"0x00.*; expected values that the table can hold"):
        output.write(0, decided(["a\0b"]))
    output.write(0, decided(["ab"]))


@pytest.mark.databases
def test_a_connection_that_is_lost_is_tried_again_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decisions_table, "PAUSE", 0.1)
    url = server.new_database()
    output = open_output(url, "job", Path("unused"))
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shelfmark'"
    copy = decisions_table._copy
    times = [0]

    def disturbed(*args: Any) -> None:
        copy(*args)
        if times[0] > 0:  # in the middle of the transaction
            times[0] -= 1
            execute(url, ends)

    monkeypatch.setattr(decisions_table, "_copy", disturbed)
    with caplog.at_level(logging.WARNING, "shelfmark"):
        times[0] = 1
        output.write(0, PARTS[0])
        execute(url, ends)  # between two transactions
        output.write(1, PARTS[1])
    assert caplog.text.count("tried again in 0.1 s") == 2
    times[0] = 2
    with pytest.raises(ShelfmarkError, match=r"expected a database that answers; .* which goes on"):
        output.write(2, PARTS[2])
    write_all(url)
    assert rows_there(url) == by_product(WANTED)


@pytest.mark.databases
def test_a_server_that_is_killed_and_started_again_has_every_row_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions_table, "PAUSE", 1.0)
    url = server.new_database()
    output = open_output(url, "job", Path("unused"))
    output.write(0, many(0))
    server.kill()
    with pytest.raises(ShelfmarkError, match="expected a database that answers"):
        output.write(1, many(1))
    server.start()
    assert open_output(url, "job", Path("unused")).written() == {0}
    write_all(url, [many(0), many(1)])
    assert len(read(url)) == 1000
