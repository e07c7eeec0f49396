"""A SQLite file that many processes write: its locks, its WAL, and how it is moved into the file."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sql

PAGE = 16_384  # bytes of SQLite: 8,192 would be half empty with bottlenecks of 2,048 numbers
LARGEST_WAL = 2_000  # pages, 32 MB
WAIT = 60.0  # s for a lock, at most
TRY = 0.001  # s between attempts to get the lock
BUSY = "others read or write all the time"
GATHER = 0.5  # s between checkpoints of the WAL


def identity_of(file: Path) -> tuple[int, int] | None:
    """Returns what tells a file from another one at the same path; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def begin_file(file: Path) -> None:
    """Makes a new file one with a WAL; that stays so."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:

        def switch() -> None:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA journal_mode = WAL")

        patiently(switch)


def engines(url: sql.URL) -> tuple[sql.Engine, sql.Engine]:
    """Returns the engines of who writes and who reads."""
    # SQLite has one writer; threads get the connection in the order in which they come
    writes = sql.create_engine(
        url, pool_size=1, max_overflow=0, pool_timeout=WAIT, connect_args={"timeout": 0}, hide_parameters=True
    )
    reads = sql.create_engine(
        url, pool_size=20, max_overflow=-1, connect_args={"timeout": WAIT}, hide_parameters=True
    )
    for engine, begin in ((writes, _begin_writing), (reads, _begin_reading)):
        sql.event.listen(engine, "connect", _set_up)
        sql.event.listen(engine, "begin", begin)
    return writes, reads


def _set_up(connection: Any, _: Any) -> None:
    """A new connection: durable, and without what was deleted; transactions are begun below."""
    connection.isolation_level = None
    for setting in ("synchronous = FULL", "secure_delete = ON", "wal_autocheckpoint = 0"):
        connection.execute(f"PRAGMA {setting}")


def _begin_writing(connection: sql.Connection) -> None:
    driver: Any = connection.connection.driver_connection
    patiently(lambda: driver.execute("BEGIN IMMEDIATE"))


def _begin_reading(connection: sql.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def erase(connection: sqlite3.Connection) -> None:
    """Writes the whole file anew, without what was deleted, and leaves nothing in the WAL."""
    patiently(lambda: connection.execute("VACUUM"))
    patiently(lambda: _empty_wal(connection))


def _empty_wal(connection: sqlite3.Connection) -> None:
    """Moves all that is in the WAL into the file, and cuts the WAL to nothing."""
    (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        error = sqlite3.OperationalError(BUSY)
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


def patiently(work: Callable[[], object]) -> None:
    """Does what needs the lock of the file as soon as it is free.

    SQLite itself would wait in steps of up to 0.1 s, and one who writes again and again gets in before it.
    """
    until = time.monotonic() + WAIT
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(TRY)


class Checkpoints:
    """Moves what the WAL holds into the file, in a thread of its own: a writer would wait for it.

    A passive checkpoint holds up neither readers nor writers.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wanted, self._closed = threading.Event(), threading.Event()

    def wanted(self) -> None:
        """Something was written."""
        self._wanted.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closed.is_set():
                    self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        # a little patience: so long it may hold up writers, while it waits for readers
        with closing(sqlite3.connect(self._file, timeout=0.02, isolation_level=None)) as connection:
            while not self._closed.wait(GATHER):
                self._wanted.wait()
                self._wanted.clear()
                # one that fails has moved nothing, and lost nothing: the next one does it
                with suppress(sqlite3.OperationalError):
                    self._move(connection)

    @staticmethod
    def _move(connection: sqlite3.Connection) -> None:
        """A checkpoint; where the WAL has become long, it begins anew.

        It does so by itself when nothing is left in it, which may never be while somebody adds thousands. So
        it is nearly emptied first, and then writers are held up for the rest alone.
        """
        before = 0
        for _ in range(10):
            _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages < LARGEST_WAL:
                return
            if moved == pages and pages - before < LARGEST_WAL // 20:
                break
            before = pages
        connection.execute("PRAGMA wal_checkpoint(RESTART)")

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._wanted.set()
        with self._lock:
            if self._thread:
                self._thread.join()
