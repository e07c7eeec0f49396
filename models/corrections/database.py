"""Connections and transactions: SQLite in one file, or PostgreSQL, by SQLAlchemy.

A change is durable before it returns (SQLite: WAL with synchronous=FULL; PostgreSQL: synchronous_commit).
What would take longer is done as several transactions, with a pause between, in which others get the lock.
"""

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql

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
from features.storage.paths import AnyPath, absolute
from models.corrections import sqlite_file
from models.corrections.tables import BOTTLENECKS, ROWS, SELLERS, TABLES, VECTORS, VERSION, VERSIONS

FILE = "corrections.sqlite"
AT_ONCE = 32  # corrections in a transaction
REST = 0.003  # s between transactions of one change
PAUSES = (0.05, 1.0, 3.0)  # s before a transaction is tried again that a lost connection has ended

T = TypeVar("T")
log = logging.getLogger("shelfmark")


def corrections_url(workspace: AnyPath, database: str) -> str:
    """Returns the URL of a workspace's corrections: `database`, or else its file corrections.sqlite.

    Raises:
        ShelfmarkError: a workspace that is no local directory, and no database.
    """
    if database:
        return database
    if not isinstance(workspace, Path):
        raise ShelfmarkError(
            f"{workspace}: corrections cannot be kept in an object store; expected a database for them; "
            "set sellers.database to postgresql://USER@HOST/DATABASE"
        )
    file = str(absolute(workspace / FILE))
    return sql.URL.create("sqlite", database=file).render_as_string(hide_password=False)


@cache
def warn_of_unused_file(workspace: AnyPath, url: str) -> None:
    """Warns, once in a process, of a workspace's file of corrections that is not the database in use.

    Args:
        workspace: that the corrections are of.
        url: of the database in use.
    """
    file = workspace / FILE
    if not (isinstance(file, Path) and file.is_file()):
        return
    used = re.sub("^sqlite:///", "", url)
    if used != url and os.path.realpath(used) == os.path.realpath(file):
        return
    log.warning(
        "%s is not used; expected corrections in one place, and they are in %s; move the file away, or name "
        "no database in sellers.database, SHELFMARK_CORRECTIONS or --corrections", file, hide_password(url),
    )  # fmt: skip


class Database:
    """The database of corrections; many threads and processes may use it at once."""

    def __init__(self, url: sql.URL, shown: str) -> None:
        """Connects to nothing yet; `open` does."""
        self.shown = shown
        self._file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        self._identity: tuple[int, int] | None = None  # of the file that was opened
        self._checkpoints = sqlite_file.Checkpoints(self._file) if self._file else None
        if self._file:
            self._writes, self._reads = sqlite_file.engines(url)
            return
        options = {name: value for name, value in PSYCOPG_OPTIONS.items() if name not in url.query}
        kept: dict[str, Any] = {"connect_args": options, "pool_pre_ping": True, "hide_parameters": True}
        self._writes = sql.create_engine(url, max_overflow=-1, **kept)
        # a history is read by several statements, which must see the same state
        self._reads = sql.create_engine(
            url, pool_size=20, max_overflow=-1, isolation_level="REPEATABLE READ", **kept
        )

    @classmethod
    def open(cls, url: str) -> "Database":
        """Opens `sqlite:///FILE` or `postgresql://…`; makes the tables where they are missing.

        Raises:
            ShelfmarkError: it cannot be reached or read, is another program's, or of a newer shelfmark.
        """
        shown, (scheme, _, rest) = hide_password(url), url.partition(":")
        dialect = DIALECTS.get(scheme.lower())
        if dialect is None or (dialect == "sqlite" and not re.match("///(?!:memory:).", rest)):
            raise ShelfmarkError(
                f"{shown}: no database for corrections; expected sqlite:///FILE or "
                "postgresql://USER@HOST/DATABASE; correct sellers.database or SHELFMARK_CORRECTIONS"
            )
        try:
            opened = cls(sql.make_url(f"{dialect}:{rest}"), shown)
        except ModuleNotFoundError as error:
            raise ShelfmarkError(
                f"{shown}: {error.name} is not installed; expected it for PostgreSQL; "
                "pip install 'shelfmark[databases]'"
            ) from error
        except (sql.exc.ArgumentError, ValueError) as error:
            raise ShelfmarkError(
                f"{shown}: not the URL of a database; expected "
                "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters of the password as %40; "
                "correct it"
            ) from error
        try:
            opened._prepare()
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Ends its connections; the last one of a SQLite file leaves no WAL."""
        if self._checkpoints:
            self._checkpoints.close()
        self._reads.dispose()
        self._writes.dispose()

    def _prepare(self) -> None:
        """Makes the tables, or checks their version."""
        with self.reading() as connection:
            version = self._version(connection)
        if version is None:
            if self._file:
                with self._errors():
                    sqlite_file.begin_file(self._file)
            self.change(self._make_tables)
        if self._file:
            self._identity = sqlite_file.identity_of(self._file)

    def _version(self, connection: sql.Connection) -> int | None:
        """The version of the tables that are there; None: there are none."""
        there = set(sql.inspect(connection).get_table_names())
        if VERSIONS.name not in there:
            if there and self._file:
                raise ShelfmarkError(
                    f"{self.shown}: a database of something else; expected corrections, or no file yet; "
                    "give another file"
                )
            return None
        version: int = connection.execute(sql.select(sql.func.max(VERSIONS.c.version))).scalar_one()
        if version > VERSION:
            raise ShelfmarkError(
                f"{self.shown}: corrections of a newer shelfmark (tables {version}); expected {VERSION} at "
                "most; use the newer shelfmark"
            )
        return version

    def _make_tables(self, connection: sql.Connection) -> None:
        if self._file is None:  # two that make them at once would be an error of one of them
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('shelfmark corrections'))")
        if self._version(connection) is not None:
            return
        TABLES.create_all(connection)
        if self._file is None:  # float16 cannot be compressed
            for table in (VECTORS, BOTTLENECKS):
                connection.exec_driver_sql(
                    f"ALTER TABLE {table.name} ALTER COLUMN numbers SET STORAGE EXTERNAL"
                )
        connection.execute(sql.insert(VERSIONS), {"version": VERSION})

    def _require_same_file(self) -> None:
        """Raises a ShelfmarkError where the path leads to another file, or to none.

        What is open would go on in the old one, which nobody finds any more.
        """
        if self._file and self._identity and self._identity != sqlite_file.identity_of(self._file):
            raise ShelfmarkError(
                f"{self.shown}: is not the file that was opened; expected it to stay while services and "
                "commands run; restart the service, or run the command again"
            )

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """Yields a connection whose statements all see the same state.

        Raises:
            ShelfmarkError: the database cannot be read.
        """
        self._require_same_file()
        with self._errors(), self._reads.begin() as connection:
            yield connection

    def change(self, work: Callable[[sql.Connection], T]) -> T:
        """Returns the result of a transaction that is durable now.

        One that a lost connection ends is tried again.

        Raises:
            ShelfmarkError: the database cannot be written.
        """
        self._require_same_file()
        with self._errors():
            for pause in (*PAUSES, None):
                try:
                    with self._writes.begin() as connection:
                        if self._file is None:  # whatever the server's default is
                            connection.exec_driver_sql("SET LOCAL synchronous_commit TO ON")
                        result = work(connection)
                    break
                except Exception as error:
                    if pause is None or self._file or not is_of_database(error) or not may_pass(error):
                        raise
                    time.sleep(pause)
            if self._checkpoints:
                self._checkpoints.wanted()
            return result

    def change_in_pieces(
        self, rows: list[Any], work: Callable[[list[Any], sql.Connection], T]
    ) -> Iterator[T]:
        """Yields the results of transactions with AT_ONCE rows each."""
        for start in range(0, len(rows), AT_ONCE):
            if start:
                time.sleep(REST)
            yield self.change(partial(work, rows[start : start + AT_ONCE]))

    def change_until_done(self, work: Callable[[sql.Connection], int]) -> int:
        """Repeats a change until it returns 0; returns the sum."""
        total = 0
        while count := self.change(work):
            total += count
            time.sleep(REST)
        return total

    def erase(self) -> None:
        """Overwrites what was deleted where the transactions have left copies.

        Raises:
            ShelfmarkError: others read or write without a pause, so that copies are left.
        """
        self._require_same_file()
        if self._file:
            with self._errors(), closing(sqlite3.connect(self._file, isolation_level=None)) as connection:
                sqlite_file.erase(connection)
        else:
            with self._errors(), self._writes.connect() as connection:
                outside = connection.execution_options(isolation_level="AUTOCOMMIT")
                names = ", ".join(table.name for table in (ROWS, SELLERS, VECTORS, BOTTLENECKS))
                outside.exec_driver_sql(f"VACUUM {names}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the database become one line, without statements and values."""
        try:
            yield
        except Exception as error:
            if not is_of_database(error):
                raise
            raise ShelfmarkError(f"{self.shown}: {line_of(error)}; {_advice_of(error)}") from error


def _advice_of(error: BaseException) -> str:
    """What was expected, and what to do next."""
    state, said = state_of(error), line_of(error).lower()
    for states, words, advice in _ADVICE:
        if any(state.startswith(one) for one in states) or any(word in said for word in words):
            return advice
    return "expected a database that answers; check that it runs, its host, port and name, then try again"


# of an error of PostgreSQL, how its SQLSTATE begins; of every error, words in it; what to do
_ADVICE = (
    (("28",), ("password", "pg_hba.conf"),
     "expected a user that may connect; check user and password (SHELFMARK_CORRECTIONS, PGPASSWORD or "
     "~/.pgpass keep it out of files)"),
    (("42501",), ("permission denied", "readonly"),
     "expected the rights to read, write and make tables; grant them, or use another user"),
    (("53100",), ("is full", "no space"), "expected free space for corrections; make some, then try again"),
    ((), ("is locked",),
     f"expected the lock within {sqlite_file.WAIT:g} s; end what holds it, then try again"),
    ((), (sqlite_file.BUSY,),
     "expected a pause, in which what was deleted is overwritten; stop what uses it, then run the same "
     "command again"),
    ((), ("unable to open database file",),
     "expected a file in a directory that is there; check path and permissions"),
    ((), ("not a database", "malformed", "disk image"),
     "expected corrections as they were written; stop the services and commands that use it, then put a copy "
     "of the file back, or move it away to begin anew"),
)  # fmt: skip
