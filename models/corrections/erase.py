"""Overwrites what SQLite has left of deleted rows: in the WAL, and between the rows of its pages.

    python models/corrections/erase.py FILE SECONDS

    page of a b-tree   header │ where each cell begins │ unused │ cells
                                                         ▲ zeros from here on

`PRAGMA secure_delete` overwrites cells that are deleted. It leaves copies of cells that moved to another page
when theirs was divided: these are in the unused part until something else comes there. So every page's unused
part is overwritten here, as the file format describes it (https://sqlite.org/fileformat2.html#b_tree_pages).

This is a program of its own, because a process that closes a file loses all its locks of it, those of SQLite,
too. It holds the lock of writers for SLICE at a time, while the WAL is empty: then the file is all that there
is. Each time it writes a row anew; so the others drop the pages that they remember, and write none back.
"""

import os
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

SLICE = 0.01  # s that writers wait
PATIENCE = 0.02  # s that writers wait while a checkpoint waits for readers
PAUSE = 0.005  # s, in which others get the lock
HEADERS = {2: 12, 5: 12, 10: 8, 13: 8}  # kind of a page of a b-tree → bytes of its header
TOUCH = "UPDATE corrections_version SET version = version"


def erase(file: Path, seconds: float) -> None:
    """Overwrites all unused parts, and leaves the WAL empty.

    Args:
        file: of SQLite, with a WAL, without auto_vacuum.
        seconds: to wait for a moment without readers and writers, each time.

    Raises:
        TimeoutError: there was none.
        sqlite3.Error: the file is damaged.
    """
    with closing(sqlite3.connect(file, timeout=PATIENCE, isolation_level=None)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        raw, page, pages = os.open(file, os.O_RDWR), 0, 1
        while page < pages:
            _lock_with_empty_wal(connection, file, seconds)
            until = time.monotonic() + SLICE
            pages = os.fstat(raw).st_size // size
            while page < pages and time.monotonic() < until:
                _clean(raw, page * size, size, 100 if page == 0 else 0)
                page += 1
            os.fsync(raw)
            connection.execute(TOUCH)
            connection.execute("COMMIT")
            time.sleep(PAUSE)
        _empty_wal(connection, file, seconds)


def _lock_with_empty_wal(connection: sqlite3.Connection, file: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        _empty_wal(connection, file, seconds)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
            if os.stat(f"{file}-wal").st_size == 0:
                return
            connection.execute("ROLLBACK")
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(PAUSE / 5)


def _empty_wal(connection: sqlite3.Connection, file: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        with suppress(sqlite3.OperationalError):
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(PAUSE / 5)


def _clean(raw: int, start: int, size: int, header: int) -> None:
    """Overwrites the unused part of a page.

    Args:
        raw: the file.
        start: of the page, in bytes.
        size: of the page, in bytes.
        header: bytes before the page's own header: 100 in the first page.
    """
    head = os.pread(raw, 8, start + header)
    # pages of other kinds begin with the number of a page below 2^24, or are empty
    if len(head) < 8 or head[0] not in HEADERS:
        return
    first = header + HEADERS[head[0]] + 2 * int.from_bytes(head[3:5])
    last = int.from_bytes(head[5:7]) or 65_536
    if first < last <= size:
        unused = os.pread(raw, last - first, start + first)
        if unused.strip(b"\0"):
            os.pwrite(raw, bytes(len(unused)), start + first)


if __name__ == "__main__":
    try:
        erase(Path(sys.argv[1]), float(sys.argv[2]))
    except TimeoutError:
        sys.exit("others read or write all the time")
    except (sqlite3.Error, OSError) as error:
        sys.exit(str(error))
