"""Decisions in a table of a database, SQLite or PostgreSQL, by SQLAlchemy.

    sqlite:///shop.db#decisions                      the table `decisions` of the file shop.db
    postgresql+psycopg://user@host/shop#web.choices  the table `choices` of the schema `web`
    postgresql://host/shop                           without #: the table `decisions`

    decisions                                  decisions_parts
      product_id         text, primary key       job   text, digest   ┐ primary key
      category           text                    part  integer        ┘
      …                  columns of SCHEMA; of WITH_ADAPTED since a batch had sellers with corrections
      top_categories     text[];             in SQLite a JSON text: ["apple","pear"]
      top_probabilities  double precision[]; in SQLite a JSON text

A row of a product that is there already is replaced; all other rows, and columns that are not ours, stay. A
table that lacks `views`, which earlier versions did not write, gets it, and the columns of ADAPTED from the
first batch that has them, null in older rows; a later batch without such sellers writes false, null and 0
there, so that no older adapted decision stays.
Each part is one transaction, which also puts its mark into decisions_parts. So after a kill a part is there
with its mark, or neither is. `finish` removes the marks of the job. A part of one job removes the marks of
all other jobs, because it may have replaced their rows: a killed job that goes on later writes all its parts
again.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ShelfmarkError
from features.storage.databases import (
    DIALECTS,
    PSYCOPG_OPTIONS,
    hide_password,
    is_of_database,
    line_of,
    may_pass,
    state_of,
)
from pipeline.job.decisions_file import ADAPTED, JSON_ROWS, READ_ROWS, SCHEMA, WITH_ADAPTED, json_text
from pipeline.job.progress import log

if TYPE_CHECKING:
    import sqlalchemy as sql

DEFAULT_TABLE = "decisions"
VIEWS = "views"  # a column that earlier versions did not write
MEANT = {VIEWS: "the views that decided"} | dict.fromkeys(ADAPTED.names, "decisions by sellers' corrections")
MARKS = "_parts"  # what the name of the table of marks ends with
LONGEST_NAME = 63  # bytes, PostgreSQL's identifiers
SECONDS_FOR_A_LOCK = 60  # how long a writer waits for another one, SQLite
PAUSE = 3.0  # s before a transaction that a lost connection has ended is tried again, once

T = TypeVar("T")


@dataclass(frozen=True)
class DecisionsTable:
    """A table of decisions; its text hides the password."""

    url: str = field(repr=False)  # with SQLAlchemy's name of dialect and driver, without #table
    table: str
    schema: str | None
    shown: str = field(compare=False)  # url#table, the password hidden

    @classmethod
    def of(cls, text: str) -> "DecisionsTable":
        """Reads `url#table`; nothing is opened.

        Raises:
            ShelfmarkError: it is neither SQLite nor PostgreSQL, or is not written as one of their URLs.
        """
        shown = hide_password(text)
        url, _, name = text.partition("#") if text.count("#") < 2 else text.rpartition("#")
        scheme, colon, rest = url.partition(":")
        dialect = DIALECTS.get(scheme.lower())
        if dialect is None:
            raise ShelfmarkError(
                f"{shown}: {scheme} is not supported; expected sqlite:///FILE#TABLE or "
                "postgresql+psycopg://USER@HOST/DATABASE#TABLE; give one of them, or a file"
            )
        schema, dot, table = name.rpartition(".")
        table = table or DEFAULT_TABLE
        advice = "expected sqlite:///FILE#TABLE" if dialect == "sqlite" else (
            "expected postgresql+psycopg://USER@HOST/DATABASE#TABLE or …#SCHEMA.TABLE")  # fmt: skip
        if dialect == "sqlite" and (dot or not re.match(r"///.", rest) or rest.startswith("///:memory:")):
            raise ShelfmarkError(
                f"{shown}: {'schemas are of PostgreSQL' if dot else 'names no file'}; {advice}; correct it"
            )
        if dot and not schema:
            raise ShelfmarkError(f"{shown}: the name of the schema is empty; {advice}; correct it")
        if len((table + MARKS).encode()) > LONGEST_NAME:
            raise ShelfmarkError(
                f"{shown}: the name of the table is too long; expected {LONGEST_NAME - len(MARKS)} bytes at "
                "most; give a shorter one"
            )
        return cls(dialect + colon + rest, table, schema or None, shown)

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """`schema.table`."""
        return f"{self.schema}.{self.table}" if self.schema else self.table

    # Reading

    def exists(self) -> bool:
        """Whether the table is there.

        Raises:
            ShelfmarkError: the database cannot be reached or read.
        """
        import sqlalchemy as sql

        with self._errors(), self._opened(writes=True) as engine:
            file = _file_of(engine.url)
            if file is not None and not file.exists():  # SQLite would make it
                return False
            with engine.connect() as connection:
                return sql.inspect(connection).has_table(self.table, schema=self.schema)

    def read(self, columns: Sequence[str]) -> Generator[pa.Table]:
        """Yields the columns piece by piece, lists of SQLite as JSON texts; rows come in no order.

        Raises:
            ShelfmarkError: the database cannot be reached or read, has no such table, or has other columns.
        """
        import sqlalchemy as sql

        with self._errors(), self._opened(writes=False) as engine:
            with engine.connect() as connection:
                there = self._columns_there(connection)
            yield pa.schema(
                [(name, pa.string()) for name in there]
            ).empty_table()  # for the check of the columns
            kinds = {name: WITH_ADAPTED.field(name).type for name in columns if name in there}
            if engine.dialect.name == "sqlite":
                kinds = {name: _of_sqlite(kind) for name, kind in kinds.items()}
            statement: Any = sql.select(*map(sql.column, kinds)).select_from(
                sql.table(self.table, schema=self.schema)
            )
            streaming = {"stream_results": True, "max_row_buffer": READ_ROWS}
            with engine.connect().execution_options(**streaming) as connection:
                for rows in connection.execute(statement).partitions(READ_ROWS):
                    values = zip(*rows, strict=True)
                    yield pa.table({name: pa.array(next(values), kind) for name, kind in kinds.items()})

    def digest(self) -> str:
        """Returns a digest (64 hex digits) of the rows, in whatever order the database gives them.

        It is the sum of their sha256; a view may have some of the columns only.
        """
        total = 0
        with closing(self.read([])) as names:
            there = next(names).column_names
        for piece in self.read([name for name in WITH_ADAPTED.names if name in there]):
            for row in piece.to_pylist():
                total += int.from_bytes(hashlib.sha256(json_text(row).encode()).digest())
        return f"{total % 2**256:064x}"

    # Writing

    def require_writable(self, schema: pa.Schema = SCHEMA) -> None:
        """Tries everything that a job will do, with no rows, and undoes it.

        Args:
            schema: of the decisions, SCHEMA or WITH_ADAPTED.

        Raises:
            ShelfmarkError: the database cannot be reached, gives no rights, or has a table with other
                columns.
        """
        with self._errors(), self._opened(writes=True) as engine:
            file = _file_of(engine.url)
            if file is not None and not file.exists():  # SQLite would make it
                if not os.access(file.parent, os.W_OK):
                    raise ShelfmarkError(
                        f"{self}: cannot be made in {file.parent}; expected a directory that is there and "
                        "may be written to; check the path"
                    )
                return
            with engine.connect() as connection, connection.begin() as transaction:
                tables = self._prepare(connection, schema)
                _write_part(connection, *tables, "", 0, schema.empty_table())
                transaction.rollback()

    def writer(self, job: str, schema: pa.Schema = SCHEMA) -> "TableOutput":
        """Opens the table for a job's parts; makes it where it is missing.

        Raises:
            ShelfmarkError: as `require_writable`.
        """
        return TableOutput(self, job, schema)

    def _prepare(self, connection: "sql.Connection", schema: pa.Schema) -> tuple["sql.Table", "sql.Table"]:
        """The table of decisions and that of marks: made where they are missing, else checked.

        The table of decisions has the columns that are written: those of WITH_ADAPTED also where they are in
        the database already.
        """
        import sqlalchemy as sql

        postgresql = connection.dialect.name == "postgresql"
        if postgresql:  # two that are made at once would be an error of one of them
            lock = sql.text("SELECT pg_advisory_xact_lock(hashtext(:name))")
            connection.execute(lock, {"name": f"shelfmark {self.name}"})
            if self.schema and self.schema not in sql.inspect(connection).get_schema_names():
                connection.execute(sql.schema.CreateSchema(self.schema))
        inspector = sql.inspect(connection)
        is_there = inspector.has_table(self.table, schema=self.schema)
        if is_there and self._has_adapted(inspector, postgresql):
            schema = WITH_ADAPTED
        metadata = sql.MetaData(schema=self.schema)
        columns = [
            sql.Column(one.name, _type_of(one.type, postgresql), primary_key=one.name == "product_id")
            for one in schema
        ]
        decisions = sql.Table(self.table, metadata, *columns)
        job = sql.Column("job", sql.Text, primary_key=True)
        part = sql.Column("part", sql.Integer, primary_key=True, autoincrement=False)
        marks = sql.Table(self.table + MARKS, metadata, job, part)
        if is_there:
            self._add_later(connection, inspector, decisions)
            inspector = sql.inspect(connection)
            self._require_columns(inspector, decisions, connection.dialect)
            self._require_key(inspector, connection.dialect.identifier_preparer.format_table(decisions))
        metadata.create_all(connection)
        return decisions, marks

    def _has_adapted(self, inspector: "sql.Inspector", postgresql: bool) -> bool:
        """Whether the table has the columns of ADAPTED, in types that take their values."""
        there = {one["name"]: one["type"] for one in inspector.get_columns(self.table, schema=self.schema)}
        return all(
            one.name in there and _takes(there[one.name], _type_of(one.type, postgresql)) for one in ADAPTED
        )

    def _add_later(
        self, connection: "sql.Connection", inspector: "sql.Inspector", wanted: "sql.Table"
    ) -> None:
        """Adds those of VIEWS and ADAPTED that are wanted and lacking; null in the rows that are there.

        Raises:
            ShelfmarkError: the database does not add them.
        """
        there = {one["name"] for one in inspector.get_columns(self.table, schema=self.schema)}
        for name in (VIEWS, *ADAPTED.names):
            if name in there or name not in wanted.columns:
                continue
            statement = _add_column(wanted, name, connection.dialect)
            try:
                connection.exec_driver_sql(statement)
            except Exception as error:
                if not is_of_database(error) or may_pass(error):
                    raise
                raise ShelfmarkError(
                    f"{self}: the column {name}, of {MEANT[name]}, cannot be added "
                    f"({line_of(error)}); expected the table's owner, or a table that has it; run "
                    f"{statement} as its owner, or name another table"
                ) from error

    def _require_columns(
        self, inspector: "sql.Inspector", wanted: "sql.Table", dialect: "sql.Dialect"
    ) -> None:
        """Raises a ShelfmarkError where the columns that are there cannot take decisions."""
        there = {one["name"]: one for one in inspector.get_columns(self.table, schema=self.schema)}
        for column in wanted.columns:
            kind = column.type.compile(dialect)
            if column.name not in there:
                raise ShelfmarkError(
                    f"{self}: the table has no column {column.name}; expected it as {kind}; "
                    f"add it ({_add_column(wanted, column.name, dialect)}), or name another table"
                )
            found = there[column.name]["type"]
            if not _takes(found, column.type):
                raise ShelfmarkError(
                    f"{self}: column {column.name} is {found.compile(dialect)}; expected {kind}; change it, "
                    "or name another table"
                )
        for name in there.keys() - wanted.columns.keys():
            one = there[name]
            filled = one["nullable"] or one.get("computed") or one.get("identity")
            if not filled and one.get("default") is None:
                raise ShelfmarkError(
                    f"{self}: column {name}, which is not of shelfmark, is NOT NULL and has no default; "
                    "expected a default or NULL for new rows; change it, or name another table"
                )

    def _require_key(self, inspector: "sql.Inspector", table: str) -> None:
        """Raises a ShelfmarkError where the table might hold a product twice."""
        keys: list[list[str | None]]
        keys = [list(inspector.get_pk_constraint(self.table, self.schema)["constrained_columns"])]
        for constraint in inspector.get_unique_constraints(self.table, self.schema):
            keys.append(list(constraint["column_names"]))
        for index in inspector.get_indexes(self.table, self.schema):
            of_some_rows = any(name.endswith("_where") for name in index.get("dialect_options", {}))
            if index["unique"] and not of_some_rows:
                keys.append(list(index["column_names"]))
        if ["product_id"] not in keys:
            raise ShelfmarkError(
                f"{self}: product_id is neither the primary key nor unique by itself; expected one row "
                f"a product; make it so (CREATE UNIQUE INDEX one_row_a_product ON {table} (product_id)), "
                "or name another table"
            )

    def _columns_there(self, connection: "sql.Connection") -> list[str]:
        import sqlalchemy as sql

        try:
            there = [one["name"] for one in sql.inspect(connection).get_columns(self.table, self.schema)]
        except sql.exc.NoSuchTableError:
            raise ShelfmarkError(
                f"{self}: no such table; expected decisions of `shelfmark categorize`; correct what stands "
                "after #"
            ) from None
        if set(ADAPTED.names) <= set(there):
            return there
        return [name for name in there if name not in ADAPTED.names]  # columns of the user

    # The database

    @contextmanager
    def _opened(self, *, writes: bool) -> Iterator["sql.Engine"]:
        engine = self._engine(writes=writes)
        try:
            yield engine
        finally:
            engine.dispose()

    def _engine(self, *, writes: bool) -> "sql.Engine":
        """SQLAlchemy's way to the database; nothing is connected yet."""
        try:
            import sqlalchemy as sql

            url = sql.make_url(self.url)
            file = _file_of(url)
            if not writes and file is not None and not file.is_file():  # SQLite would make it
                raise ShelfmarkError(
                    f"{self}: no such file; expected decisions of `shelfmark categorize`; check the path"
                )
            options = {"timeout": SECONDS_FOR_A_LOCK} if file else PSYCOPG_OPTIONS
            options = {name: value for name, value in options.items() if name not in url.query}
            engine = sql.create_engine(url, connect_args=options, hide_parameters=True)
        except ModuleNotFoundError as error:
            raise ShelfmarkError(
                f"{self}: {error.name} is not installed; expected it for tables of databases; "
                "pip install 'shelfmark[databases]'"
            ) from error
        except (sql.exc.ArgumentError, ValueError) as error:
            raise ShelfmarkError(
                f"{self}: not the URL of a database; expected "
                "DIALECT://USER:PASSWORD@HOST:PORT/DATABASE#TABLE, special characters of the password as "
                "%40; correct it"
            ) from error
        if engine.dialect.name == "sqlite":
            # Python begins a transaction at its first change; after a read, it cannot wait for a writer then
            @sql.event.listens_for(engine, "connect")
            def _leave_transactions_to_us(connection: Any, _: Any) -> None:
                connection.isolation_level = None

            @sql.event.listens_for(engine, "begin")
            def _begin(connection: "sql.Connection") -> None:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the database become one line, without statements and values."""
        try:
            yield
        except Exception as error:
            if not is_of_database(error):
                raise
            raise ShelfmarkError(f"{self}: {line_of(error)}; {_advice_of(error)}") from error


class TableOutput:
    """A job's writer into a table; a DecisionsOutput."""

    def __init__(self, table: DecisionsTable, job: str, schema: pa.Schema):
        import sqlalchemy as sql

        self._table, self._job = table, job
        with table._errors():
            self._engine = table._engine(writes=True)
            with self._engine.begin() as connection:
                self._decisions, self._marks = table._prepare(connection, schema)
                found = connection.execute(sql.select(self._marks.c.part).where(self._marks.c.job == job))
                self._written = {int(part) for (part,) in found}

    def written(self) -> frozenset[int]:
        """Returns the parts that this process has written, and those that were marked when it began."""
        return frozenset(self._written)

    def write(self, part: int, decisions: pa.Table) -> None:
        """Writes a part and its mark in one transaction; a lost connection is tried again once."""

        def write() -> None:
            with self._engine.begin() as connection:
                _write_part(connection, self._decisions, self._marks, self._job, part, decisions)

        self._tried_again(write)
        self._written.add(part)

    def finish(self, parts: int) -> None:
        """Removes the marks of the job: its rows are all there."""
        import sqlalchemy as sql

        if missing := sorted(set(range(parts)) - self._written):
            raise ShelfmarkError(
                f"{self._table}: part {missing[0]} is missing; expected parts 0 to {parts - 1}; run the same "
                "command again"
            )

        def forget() -> None:
            with self._engine.begin() as connection:
                connection.execute(sql.delete(self._marks).where(self._marks.c.job == self._job))

        self._tried_again(forget)
        self._engine.dispose()

    def _tried_again(self, work: Callable[[], T]) -> T:
        """The result of a transaction, which is tried again once where that may help."""
        with self._table._errors():
            try:
                return work()
            except Exception as error:
                if not may_pass(error):
                    raise
                log.warning("decisions: %s: %s; tried again in %g s", self._table, line_of(error), PAUSE)
            self._engine.dispose()
            time.sleep(PAUSE)
            return work()


def _file_of(url: "sql.URL") -> Path | None:
    """The file of SQLite."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


# A part


def _write_part(
    connection: "sql.Connection",
    decisions: "sql.Table",
    marks: "sql.Table",
    job: str,
    part: int,
    rows: pa.Table,
) -> None:
    """Writes rows and their mark in the transaction of the connection."""
    import sqlalchemy as sql

    # first, and by every writer in this order: rows that two of them write are not locked crosswise
    connection.execute(sql.delete(marks).where(marks.c.job != job))
    rows = _completed(rows, decisions.columns.keys())
    if connection.dialect.name == "postgresql":
        _copy(connection, decisions, rows)
    else:
        _insert(connection, decisions, rows)
    there = sql.select(sql.func.count()).where(marks.c.job == job, marks.c.part == part)
    if not connection.execute(there).scalar():
        connection.execute(sql.insert(marks).values(job=job, part=part))


def _completed(rows: pa.Table, names: list[str]) -> pa.Table:
    """Decisions with these columns; those of ADAPTED that are missing say that no seller had corrections."""
    for name, value in zip(ADAPTED.names, (False, None, 0), strict=True):
        if name in names and name not in rows.column_names:
            column = pa.repeat(pa.scalar(value, ADAPTED.field(name).type), len(rows))
            rows = rows.append_column(name, column)
    return rows.select(names).cast(pa.schema([WITH_ADAPTED.field(name) for name in names]))


def _copy(connection: "sql.Connection", decisions: "sql.Table", rows: pa.Table) -> None:
    """Sends the rows by COPY into a table of this transaction, and from there into the one of decisions."""
    quote = connection.dialect.identifier_preparer
    target, names = quote.format_table(decisions), [quote.quote(name) for name in rows.column_names]
    columns = ", ".join(names)
    updates = ", ".join(f"{name} = EXCLUDED.{name}" for name in names if name != "product_id")
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE shelfmark_part ON COMMIT DROP AS SELECT {columns} FROM {target} WITH NO DATA"
    )
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY shelfmark_part ({columns}) FROM STDIN") as copy:
        for batch in rows.to_batches(READ_ROWS):
            copy.write(_copy_text(batch))
    connection.exec_driver_sql(
        f"INSERT INTO {target} ({columns}) SELECT {columns} FROM shelfmark_part "
        'ORDER BY product_id COLLATE "C" '  # two writers lock the rows that both write in the same order
        f"ON CONFLICT (product_id) DO UPDATE SET {updates}"
    )


def _copy_text(rows: pa.RecordBatch) -> str:
    r"""The rows in COPY's text format: cells between tabs, \N for null.

    Made a column at a time: psycopg, which makes them a value at a time, takes ten times the processor time.

    >>> _copy_text(pa.record_batch({"a": ["x\ty", None], "b": [['1"', "2"], []], "c": [0.5, None]}))
    'x\\ty\t{"1\\\\"","2"}\t0.5\n\\N\t{}\t\\N\n'
    """
    cells = [
        _array_text(one) if pa.types.is_list(one.type) else one.cast(pa.string()) for one in rows.columns
    ]
    for character, escaped in (("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r")):
        cells = [pc.replace_substring(one, character, escaped) for one in cells]
    lines = pc.binary_join_element_wise(*cells, "\t", null_handling="replace", null_replacement=r"\N")
    return "".join(f"{line}\n" for line in lines.to_pylist())


def _array_text(lists: pa.ListArray) -> pa.StringArray:
    """Lists as PostgreSQL writes arrays: {"apple","pear"}, {0.5,0.25}."""
    values = lists.flatten()
    if pa.types.is_string(values.type):
        for character in ("\\", '"'):
            values = pc.replace_substring(values, character, "\\" + character)
        values = pc.binary_join_element_wise('"', values, '"', "")
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    values = pc.fill_null(values.cast(pa.string()), "NULL")
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, values), ",")
    texts = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(pc.is_valid(lists), texts, pa.scalar(None, pa.string()))


def _insert(connection: "sql.Connection", decisions: "sql.Table", rows: pa.Table) -> None:
    """Inserts the rows one by one, which in SQLite is no detour."""
    quote = connection.dialect.identifier_preparer
    names = [quote.quote(name) for name in rows.column_names]
    updates = ", ".join(f"{name} = excluded.{name}" for name in names if name != "product_id")
    statement = (
        f"INSERT INTO {quote.format_table(decisions)} ({', '.join(names)}) "
        f"VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT (product_id) DO UPDATE SET {updates}"
    )
    driver: Any = connection.connection.driver_connection
    for batch in rows.to_batches(JSON_ROWS):
        columns = [
            [None if value is None else json_text(value) for value in column.to_pylist()]
            if pa.types.is_list(column.type)
            else column.to_pylist()
            for column in batch.columns
        ]
        driver.executemany(statement, zip(*columns, strict=True))


# Types


def _add_column(table: "sql.Table", name: str, dialect: "sql.Dialect") -> str:
    """The statement that adds a column of the table."""
    quote, kind = dialect.identifier_preparer, table.columns[name].type.compile(dialect)
    return f"ALTER TABLE {quote.format_table(table)} ADD COLUMN {quote.quote(name)} {kind}"


def _of_sqlite(kind: pa.DataType) -> pa.DataType:
    """The type in which SQLite gives the values of a column back."""
    if pa.types.is_list(kind):
        return pa.string()
    return pa.int8() if pa.types.is_boolean(kind) else kind


def _type_of(kind: pa.DataType, postgresql: bool) -> Any:
    """SQLAlchemy's type of a column of WITH_ADAPTED."""
    import sqlalchemy as sql
    from sqlalchemy.dialects.postgresql import ARRAY

    if pa.types.is_list(kind):
        return ARRAY(_type_of(kind.value_type, postgresql)) if postgresql else sql.Text()
    kinds = {
        pa.string(): sql.Text, pa.float64(): sql.Double, pa.int32(): sql.Integer, pa.bool_(): sql.Boolean,
    }  # fmt: skip
    return kinds[kind]()


def _takes(found: Any, wanted: Any) -> bool:
    """Whether a column of one type holds all values of another one."""
    import sqlalchemy as sql

    if isinstance(wanted, sql.ARRAY):
        return isinstance(found, sql.ARRAY) and _takes(found.item_type, wanted.item_type)
    if isinstance(wanted, sql.Double):
        return (isinstance(found, sql.Float) and not isinstance(found, sql.REAL | sql.Numeric)) or isinstance(
            found, sql.Double
        )
    if isinstance(wanted, sql.Boolean):
        return isinstance(found, sql.Boolean)
    return isinstance(found, sql.String if isinstance(wanted, sql.Text) else sql.Integer)


# Errors


def _advice_of(error: BaseException) -> str:
    """What was expected, and what to do next."""
    state, said = state_of(error), line_of(error).lower()
    for states, words, advice in ADVICE:
        if any(state.startswith(one) for one in states) or any(word in said for word in words):
            return advice
    return GOES_ON.format("a database that answers; check that it runs, its host, port, name, and the table")


GOES_ON = "expected {}, then run the same command, which goes on"
# of an error of PostgreSQL, how its SQLSTATE begins; of every error, words in it; what to do
ADVICE = (
    (("28",), ("password", "pg_hba.conf"),
     "expected a user that may connect; check user and password (PGPASSWORD or ~/.pgpass keep it out of the "
     "command)"),
    (("42501",), ("permission denied", "readonly"),
     "expected the rights SELECT, INSERT, UPDATE and DELETE, and CREATE for a new table; grant them, or use "
     "another user"),
    (("53100",), ("is full", "no space"), GOES_ON.format("free space for the decisions; make some")),
    (("55P03",), ("is locked",),
     GOES_ON.format(f"the lock within {SECONDS_FOR_A_LOCK} s; end what holds it")),
    ((), ("unable to open database file",),
     "expected a file in a directory that is there; check path and permissions"),
    ((), ("not a database", "malformed"), "expected a database of SQLite; give another file"),
    (("22", "23"), ("datatype mismatch", "constraint failed"),
     "expected values that the table can hold; change its columns or the product, or write to a file"),
)  # fmt: skip
