"""The store of corrections: SQLite in one file, or PostgreSQL, by SQLAlchemy.

    corrections                               corrections_sellers
      id           rises, never given twice     seller, key
      seller ┐     one in use for each pair     revision    rises with every change
      product_id ┘                              corrections how many are in use
      category                                  suspicion   the sum of evidence, suspicion.py
      who, made, comment, release               flagged     why they look wrong
      images       JSON list of digests         set_aside   why a person took them out of use
      fingerprint, bottleneck_rows              restored    the last id when a person restored him
      base, evidence   as its first head saw it
      ended, because   undone or replaced     corrections_bottlenecks
                                                id, key
    corrections_vectors                         width, numbers   float16
      head, seller, first   key
      size         corrections in this piece  corrections_version
      ids          int64                        version
      names        JSON [[base, …], [true, …]]
      numbers      float16 (size, v)

Vectors and bottlenecks are of corrections in use alone. A piece holds up to PIECE vectors of one seller and
one head, with ids from `first` on, in order. So a history of 800 corrections is read as 25 rows that lie side
by side, which takes a quarter of the time of 800 rows. Bottlenecks lie apart: no list and no history reads
them.

A change of a seller's corrections begins by locking his row of corrections_sellers (SQLite: the file), and
all changes are transactions that are durable before they return (SQLite: WAL with synchronous=FULL;
PostgreSQL: synchronous_commit). What would take longer is done as several of them, with a pause between, in
which others get the lock. As there is one correction in use for each seller and product, a client that lost
the reply repeats its request, and nothing is there twice.
"""

import hashlib
import json
import re
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import sqlalchemy as sql
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

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
from models.decisions.suspicion import LIMIT, add_evidence

if TYPE_CHECKING:  # its imports take a second, and lists need none of it
    from models.decisions.adapted import Encoded

FILE = "corrections.sqlite"
VERSION = 1  # of the tables; a newer one is refused
MOST = 4_000  # corrections of a seller that a history has, the newest ones
PIECE = 32  # vectors in a row
ROWS = 32  # corrections in a transaction
PAGE = 16_384  # bytes of SQLite: 8,192 would be half empty with bottlenecks of 2,048 numbers
LARGEST_WAL = 2_000  # pages, 32 MB
READ_ROWS = 1000  # at once, of lists
WAIT = 60.0  # s for a lock, at most
TRY, REST = 0.001, 0.003  # s between attempts to get the lock of SQLite; between transactions of one change
GATHER = 0.5  # s between checkpoints of the WAL
PAUSES = (0.05, 1.0, 3.0)  # s before a transaction is tried again that a lost connection has ended
LONGEST, LONGEST_COMMENT = 1_000, 10_000  # bytes of a text; PostgreSQL's indices take 2,700
UNDONE, REPLACED = "undone", "replaced"

T = TypeVar("T")
State = Literal["new", "same", "replaced"]


@dataclass(frozen=True)
class Correction:
    """A person's statement: this product of this seller has this category."""

    seller: str
    product_id: str
    category: str
    who: str | None = None
    when: datetime | None = None  # without a zone it is UTC; None: now
    comment: str | None = None
    release: str | None = None  # in service when it was made
    images: tuple[str, ...] = ()  # sha256 (hex) of the source bytes, as in the store of bottlenecks
    fingerprint: str | None = None  # of the backbone that computed the bottlenecks
    bottlenecks: np.ndarray | None = None  # (rows, d) float16, all views of the images; None: not to be had


class Added(NamedTuple):
    """What became of a correction that was added."""

    id: int
    state: State  # same: it was there already; replaced: the product had another category


@dataclass(frozen=True)
class History:
    """What a seller has in use, as one head sees it: n corrections with vectors, the oldest first."""

    revision: int  # 0: a seller without corrections
    ids: np.ndarray  # (n,) int64, rising
    base: list[str]  # n categories that the head had given
    true: list[str]  # n categories of the corrections
    vectors: np.ndarray  # (n, v) float16
    corrections: int  # in use, with vectors or not
    missing: int  # of these, without a vector of this head
    flagged: str | None  # why they look wrong
    set_aside: str | None  # why a person took them out of use


@dataclass(frozen=True)
class SellerAccount:
    """A line of the list of sellers."""

    seller: str
    corrections: int  # in use
    ended: int  # undone or replaced
    without_vector: int  # in use, without bottlenecks: no head can see them
    last: datetime | None  # when the newest one was made, UTC
    flagged: str | None
    set_aside: str | None
    restored: int = 0  # the last id when a person put him in use again; what came before was checked then


@dataclass(frozen=True)
class SellerPage:
    """Some of a seller's corrections, ended ones too, the newest first."""

    corrections: int  # in use, on all pages
    flagged: str | None
    set_aside: str | None
    rows: list[dict[str, object]]  # as `Corrections.export` yields them


class Missing(NamedTuple):
    """A correction that a head has no vector of yet."""

    id: int
    seller: str
    category: str
    bottlenecks: np.ndarray  # (rows, d) float16


# Tables


class _Utc(sql.TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps it without the zone."""

    impl = sql.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sql.Dialect) -> datetime | None:
        """Returns what the database gets."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sql.Dialect) -> datetime | None:
        """Returns what Python gets."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_TABLES = sql.MetaData()
_ID = sql.BigInteger().with_variant(sql.Integer(), "sqlite")
_VERSION = sql.Table("corrections_version", _TABLES, sql.Column("version", sql.Integer, primary_key=True))
_ROWS = sql.Table(
    "corrections",
    _TABLES,
    sql.Column("id", _ID, sql.Identity(always=True), primary_key=True),
    sql.Column("seller", sql.Text, nullable=False),
    sql.Column("product_id", sql.Text, nullable=False),
    sql.Column("category", sql.Text, nullable=False),
    sql.Column("who", sql.Text),
    sql.Column("made", _Utc, nullable=False),
    sql.Column("comment", sql.Text),
    sql.Column("release", sql.Text),
    sql.Column("images", sql.Text, nullable=False),
    sql.Column("fingerprint", sql.Text),
    sql.Column("bottleneck_rows", sql.Integer, nullable=False),
    sql.Column("base", sql.Text),
    sql.Column("evidence", sql.Double),
    sql.Column("ended", _Utc),
    sql.Column("because", sql.Text),
    sqlite_autoincrement=True,  # an id that was deleted is not given again
)
sql.Index("corrections_of_seller", _ROWS.c.seller)
sql.Index(
    "corrections_in_use",
    _ROWS.c.seller,
    _ROWS.c.product_id,
    unique=True,
    sqlite_where=_ROWS.c.ended.is_(None),
    postgresql_where=_ROWS.c.ended.is_(None),
)
_SELLERS = sql.Table(
    "corrections_sellers",
    _TABLES,
    sql.Column("seller", sql.Text, primary_key=True),
    sql.Column("revision", sql.BigInteger, nullable=False),
    sql.Column("corrections", sql.Integer, nullable=False),
    sql.Column("suspicion", sql.Double, nullable=False),
    sql.Column("flagged", sql.Text),
    sql.Column("set_aside", sql.Text),
    sql.Column("restored", _ID, nullable=False),
    sqlite_with_rowid=False,
)
_VECTORS = sql.Table(
    "corrections_vectors",
    _TABLES,
    sql.Column("head", sql.Text, primary_key=True),
    sql.Column("seller", sql.Text, primary_key=True),
    sql.Column("first", _ID, primary_key=True, autoincrement=False),
    sql.Column("size", sql.Integer, nullable=False),
    sql.Column("ids", sql.LargeBinary, nullable=False),
    sql.Column("names", sql.Text, nullable=False),
    sql.Column("numbers", sql.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
sql.Index("corrections_vector_counts", _VECTORS.c.head, _VECTORS.c.seller, _VECTORS.c.size)
_BOTTLENECKS = sql.Table(
    "corrections_bottlenecks",
    _TABLES,
    sql.Column("id", _ID, primary_key=True, autoincrement=False),
    sql.Column("width", sql.Integer, nullable=False),
    sql.Column("numbers", sql.LargeBinary, nullable=False),
)
_IN_USE = _ROWS.c.ended.is_(None)
_EXPORTED = [column for column in _ROWS.c if column.name != "bottleneck_rows"]


def _exported(row: Any) -> dict[str, object]:
    """A row of _EXPORTED as it is exported."""
    values = dict(row._mapping)
    return values | {"when": values.pop("made"), "images": json.loads(values["images"])}


# Statements are made once: making one takes longer than running it

_NAME = sql.bindparam("name", type_=sql.Text)
_REVISION = sql.select(_SELLERS.c.revision).where(_SELLERS.c.seller == _NAME)
_ACCOUNT = sql.select(_SELLERS).where(_SELLERS.c.seller == _NAME)
_MOST_PIECES = MOST // PIECE + 2
_OF_HEAD = (_VECTORS.c.head == sql.bindparam("head", type_=sql.Text)) & (_VECTORS.c.seller == _NAME)
_PIECES = (
    sql.select(_VECTORS.c.first, _VECTORS.c.size, _VECTORS.c.ids, _VECTORS.c.names, _VECTORS.c.numbers)
    .where(_OF_HEAD, _VECTORS.c.first <= sql.bindparam("last", type_=_ID))
    .order_by(_VECTORS.c.first.desc())
    .limit(_MOST_PIECES)
)
_SIZE = sql.select(sql.func.sum(_VECTORS.c.size)).where(_OF_HEAD)
_NO_IDS, _NO_VECTORS = np.empty(0, "<i8"), np.empty((0, 0), "<f2")


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


class Corrections:
    """The corrections of a workspace; many threads and processes may use them at once."""

    def __init__(self, url: sql.URL, shown: str) -> None:
        """Connects to nothing yet; `open` does."""
        self._shown = shown
        self._file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        if self._file is None:
            options = {name: value for name, value in PSYCOPG_OPTIONS.items() if name not in url.query}
            kept: dict[str, Any] = {"connect_args": options, "pool_pre_ping": True, "hide_parameters": True}
            self._writes = sql.create_engine(url, max_overflow=-1, **kept)
            # a history is read by several statements, which must see the same state
            self._reads = sql.create_engine(
                url, pool_size=20, max_overflow=-1, isolation_level="REPEATABLE READ", **kept
            )
        else:
            # SQLite has one writer; threads get the connection in the order in which they come
            self._writes = sql.create_engine(
                url, pool_size=1, max_overflow=0, pool_timeout=WAIT, connect_args={"timeout": 0},
                hide_parameters=True,
            )  # fmt: skip
            self._reads = sql.create_engine(
                url, pool_size=20, max_overflow=-1, connect_args={"timeout": WAIT}, hide_parameters=True
            )
            for engine, begin in ((self._writes, _begin_writing), (self._reads, _begin_reading)):
                sql.event.listen(engine, "connect", _set_up)
                sql.event.listen(engine, "begin", begin)
        self._checkpoints = _Checkpoints(self._file) if self._file else None

    @classmethod
    def open(cls, url: str) -> "Corrections":
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
        with self._errors(), self._reads.begin() as connection:
            version = self._version(connection)
        if version is None:
            with self._errors():
                if self._file:
                    _begin_file(self._file)
                self._change(self._make_tables)

    def _version(self, connection: sql.Connection) -> int | None:
        """The version of the tables that are there; None: there are none."""
        there = set(sql.inspect(connection).get_table_names())
        if _VERSION.name not in there:
            if there and self._file:
                raise ShelfmarkError(
                    f"{self._shown}: a database of something else; expected corrections, or no file yet; "
                    "give another file"
                )
            return None
        version: int = connection.execute(sql.select(sql.func.max(_VERSION.c.version))).scalar_one()
        if version > VERSION:
            raise ShelfmarkError(
                f"{self._shown}: corrections of a newer shelfmark (tables {version}); expected {VERSION} at "
                "most; use the newer shelfmark"
            )
        return version

    def _make_tables(self, connection: sql.Connection) -> None:
        if self._file is None:  # two that make them at once would be an error of one of them
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('shelfmark corrections'))")
        if self._version(connection) is not None:
            return
        _TABLES.create_all(connection)
        if self._file is None:  # float16 cannot be compressed
            for table in (_VECTORS, _BOTTLENECKS):
                connection.exec_driver_sql(
                    f"ALTER TABLE {table.name} ALTER COLUMN numbers SET STORAGE EXTERNAL"
                )
        connection.execute(sql.insert(_VERSION), {"version": VERSION})

    # Adding

    def add(self, rows: "Sequence[tuple[Correction, Encoded | None]]") -> list[Added]:
        """Adds corrections in this order; when it returns, they are durable.

        ROWS of them at a time are a transaction: there as a whole, or not at all. After an error or a kill,
        the same call again adds what is missing. One that is there already is the same; it takes vector and
        bottlenecks where it had none.

        Args:
            rows: what the head that is in service sees of each; None where its vector cannot be had.

        Raises:
            ShelfmarkError: a text is empty, too long, or holds a character that databases do not take, and
                nothing is added; or the database cannot be written.
        """
        for correction, _ in rows:
            require_texts(correction)
        added: list[Added] = []
        for piece in _transactions(rows):
            if added:
                time.sleep(REST)
            added += self._change(partial(self._add, rows=piece))
        return added

    def _add(
        self, connection: sql.Connection, rows: "Sequence[tuple[Correction, Encoded | None]]"
    ) -> list[Added]:
        """Adds rows of different products."""
        accounts = self._locked(connection, {one.seller for one, _ in rows})
        there = _there(connection, rows)
        known = [there.get((one.seller, one.product_id)) for one, _ in rows]
        fresh = [at for at, old in enumerate(known) if old is None or old.category != rows[at][0].category]
        replaced = [(old.id, old.seller) for at in fresh if (old := known[at])]
        _end(connection, replaced, REPLACED)
        ids = [old.id if old else 0 for old in known]
        if fresh:
            table = [_columns_of(*rows[at]) for at in fresh]
            for at, (number,) in zip(fresh, connection.execute(_INSERT, table).all(), strict=True):
                ids[at] = number
        bare = [at for at, old in enumerate(known) if old and not old.bottleneck_rows and at not in fresh]
        filled = [at for at in bare if rows[at][0].bottlenecks is not None]
        for at in filled:
            kept = _columns_of(*rows[at])
            names = ("images", "fingerprint", "bottleneck_rows", "base", "evidence")
            connection.execute(
                sql.update(_ROWS).where(_ROWS.c.id == ids[at]).values({name: kept[name] for name in names})
            )
        changed = sorted([*fresh, *filled])
        _put_bottlenecks(connection, [(ids[at], rows[at][0].bottlenecks) for at in changed])
        vectors = defaultdict(list)
        for at in changed:
            correction, encoded = rows[at]
            if encoded is not None:
                vectors[encoded.head, correction.seller].append(
                    _Vector.of(ids[at], encoded, correction.category)
                )
        for (head, seller), some in vectors.items():
            _merge(connection, head, seller, some)
        for at in fresh:
            correction, encoded = rows[at]
            accounts[correction.seller].take(encoded, replaces=known[at] is not None)
        for at in filled:
            accounts[rows[at][0].seller].take_evidence(rows[at][1])
        _save(connection, [accounts[name] for name in {rows[at][0].seller for at in changed}])
        return [
            Added(number, "same" if at not in fresh else "replaced" if known[at] else "new")
            for at, number in enumerate(ids)
        ]

    def _locked(self, connection: sql.Connection, sellers: Collection[str]) -> dict[str, "_Account"]:
        """Accounts, made where they are missing, that nobody else changes until the transaction ends."""
        # everybody locks in the same order
        wanted = sorted(sellers)
        if self._file:
            found = self._known(connection, wanted)
            return {name: found.get(name) or _Account(name, **_NO_ACCOUNT) for name in wanted}
        while True:
            connection.execute(_OPEN_ACCOUNTS, [{"seller": name, **_NO_ACCOUNT} for name in wanted])
            found = self._known(connection, wanted)
            if len(found) == len(wanted):  # else one was deleted in between
                return found

    def _known(self, connection: sql.Connection, sellers: Collection[str]) -> dict[str, "_Account"]:
        """Accounts that are there, locked."""
        found = connection.execute(_KNOWN, {"names": sorted(sellers)})
        return {row.seller: _Account(**row._mapping) for row in found}

    # Changing

    def undo(self, ids: Sequence[int]) -> int:
        """Ends the corrections with these ids; returns how many of them were in use."""
        wanted = sorted(set(map(int, ids)))
        return sum(self._pieces(wanted, self._undo))

    def _undo(self, ids: list[int], connection: sql.Connection) -> int:
        in_use = sql.select(_ROWS.c.id, _ROWS.c.seller).where(_ROWS.c.id.in_(ids), _IN_USE)
        accounts = self._known(connection, {row.seller for row in connection.execute(in_use)})
        ending = [(row.id, row.seller) for row in connection.execute(in_use) if row.seller in accounts]
        _end(connection, ending, UNDONE)
        for _, seller in ending:
            accounts[seller].corrections -= 1
        _save(connection, [accounts[name] for name in {seller for _, seller in ending}])
        return len(ending)

    def set_aside(self, seller: str, why: str) -> None:
        """Takes a seller's corrections out of use, until `restore`.

        Raises:
            ShelfmarkError: a seller without corrections.
        """
        self._update(seller, lambda account: replace(account, set_aside=why))

    def restore(self, seller: str) -> None:
        """Puts a seller's corrections in use again; a flag is removed, and the sum of evidence begins at 0.

        What he has corrected so far is no reason for another flag.

        Raises:
            ShelfmarkError: a seller without corrections.
        """
        last = sql.select(sql.func.max(_ROWS.c.id)).where(_ROWS.c.seller == seller)
        with self._errors(), self._reads.begin() as connection:
            restored = connection.execute(last).scalar() or 0
        self._update(
            seller,
            lambda account: replace(account, set_aside=None, flagged=None, suspicion=0.0, restored=restored),
        )

    def flag(self, seller: str, why: str) -> None:
        """Marks a seller whose corrections look wrong.

        Raises:
            ShelfmarkError: a seller without corrections.
        """
        self._update(seller, lambda account: replace(account, flagged=why))

    def _update(self, seller: str, change: Callable[["_Account"], "_Account"]) -> None:
        def work(connection: sql.Connection) -> None:
            known = self._known(connection, [seller])
            if not known:
                raise ShelfmarkError(
                    f"{self._shown}: no corrections of seller {seller!r}; expected one who has made some; "
                    "`shelfmark corrections list` shows them"
                )
            _save(connection, [change(known[seller])])

        self._change(work)

    def delete_seller(self, seller: str) -> int:
        """Deletes everything of a seller; returns how many corrections there were, ended ones too.

        In SQLite no copy of them is left, in the WAL neither: the whole file is written anew, and meanwhile
        others can read, but not write. In PostgreSQL they are free space after VACUUM, until something else
        comes there.

        Raises:
            ShelfmarkError: others read or write without a pause, so that copies are left.
        """
        deleted = 0
        while count := self._change(lambda connection: self._delete(connection, seller)):
            deleted += count
            time.sleep(REST)
        self._erase()
        return deleted

    def _delete(self, connection: sql.Connection, seller: str) -> int:
        """Deletes some corrections; with the last one, the account."""
        known = self._known(connection, [seller])
        some = sql.select(_ROWS.c.id).where(_ROWS.c.seller == seller).order_by(_ROWS.c.id).limit(4 * ROWS)
        ids = connection.execute(some).scalars().all()
        if ids:
            _forget(connection, [(number, seller) for number in ids])
            gone = sql.delete(_ROWS).where(_ROWS.c.id.in_(ids))
            in_use = connection.execute(
                sql.select(sql.func.count()).where(_ROWS.c.id.in_(ids), _IN_USE)
            ).scalar_one()
            connection.execute(gone)
            for account in known.values():
                _save(connection, [replace(account, corrections=account.corrections - in_use)])
        else:
            connection.execute(sql.delete(_SELLERS).where(_SELLERS.c.seller == seller))
        return len(ids)

    def _erase(self) -> None:
        """Overwrites what was deleted where the transactions have left copies."""
        if self._file:
            with self._errors(), closing(sqlite3.connect(self._file, isolation_level=None)) as connection:
                _patiently(lambda: connection.execute("VACUUM"))
                _patiently(lambda: _empty_wal(connection))
        else:
            with self._errors(), self._writes.connect() as connection:
                outside = connection.execution_options(isolation_level="AUTOCOMMIT")
                names = ", ".join(table.name for table in (_ROWS, _SELLERS, _VECTORS, _BOTTLENECKS))
                outside.exec_driver_sql(f"VACUUM {names}")

    # Reading

    def revision(self, seller: str) -> int:
        """Returns a number that rises with every change of what a seller has in use; 0: no corrections.

        A seller who was deleted and comes back has higher numbers than before.
        """
        with self._errors(), self._reads.begin() as connection:
            return connection.execute(_REVISION, {"name": seller}).scalar() or 0

    def in_use(self) -> bool:
        """Returns whether any seller has corrections in use that are not set aside."""
        some = sql.select(_SELLERS.c.seller).where(_SELLERS.c.corrections > 0, _SELLERS.c.set_aside.is_(None))
        with self._errors(), self._reads.begin() as connection:
            return connection.execute(some.limit(1)).first() is not None

    def history(self, seller: str, head: str) -> History:
        """Returns what a seller has in use: of those with a vector of this head, the newest MOST."""
        pieces: list[Any] = []
        with self._errors(), self._reads.begin() as connection:
            account = connection.execute(_ACCOUNT, {"name": seller}).first()
            if account is None:
                return History(0, _NO_IDS, [], [], _NO_VECTORS, 0, 0, None, None)
            last, count = 2**62, 0
            while count < MOST:
                some = connection.execute(_PIECES, {"head": head, "name": seller, "last": last}).all()
                pieces += some
                count += sum(piece.size for piece in some)
                if len(some) < _MOST_PIECES:
                    break
                last = some[-1].first - 1
            size = (
                connection.execute(_SIZE, {"head": head, "name": seller}).scalar() if count >= MOST else count
            )
        pieces.reverse()
        ids = np.frombuffer(b"".join([piece.ids for piece in pieces]), "<i8")[-MOST:]
        numbers = np.frombuffer(b"".join([piece.numbers for piece in pieces]), "<f2")
        vectors = numbers.reshape(count, -1)[-MOST:] if count else _NO_VECTORS
        base: list[str] = []
        true: list[str] = []
        for piece in pieces:
            some_base, some_true = json.loads(piece.names)
            base += some_base
            true += some_true
        return History(
            account.revision, ids, base[-MOST:], true[-MOST:], vectors, account.corrections,
            account.corrections - (size or 0), account.flagged, account.set_aside,
        )  # fmt: skip

    def export(self, seller: str | None = None) -> Iterator[dict[str, object]]:
        """Yields all corrections, ended ones too, in the order of their ids, without vectors and bottlenecks.

        Args:
            seller: of him alone.
        """
        last = 0
        while True:
            query = sql.select(*_EXPORTED).where(_ROWS.c.id > last).order_by(_ROWS.c.id).limit(READ_ROWS)
            if seller is not None:
                query = query.where(_ROWS.c.seller == seller)
            with self._errors(), self._reads.begin() as connection:
                found = connection.execute(query).all()
            yield from map(_exported, found)
            if len(found) < READ_ROWS:
                return
            last = found[-1].id

    def page(self, seller: str, limit: int, before: int | None = None) -> SellerPage:
        """Returns the newest corrections of a seller, at most `limit` of them.

        Args:
            seller: one who is unknown has none.
            limit: number of corrections.
            before: an id; only those with lower ones.
        """
        query = (
            sql.select(*_EXPORTED).where(_ROWS.c.seller == seller).order_by(_ROWS.c.id.desc()).limit(limit)
        )
        if before is not None:
            query = query.where(_ROWS.c.id < before)
        with self._errors(), self._reads.begin() as connection:
            account = connection.execute(_ACCOUNT, {"name": seller}).first()
            found = connection.execute(query).all()
        if account is None:
            return SellerPage(0, None, None, [])
        return SellerPage(
            account.corrections, account.flagged, account.set_aside, list(map(_exported, found))
        )

    def sellers(self) -> list[SellerAccount]:
        """Returns all sellers, by name."""
        one = sql.literal(1)
        counts = sql.select(
            _ROWS.c.seller,
            sql.func.count(sql.case((_IN_USE, one))).label("corrections"),
            sql.func.count(sql.case((~_IN_USE, one))).label("ended"),
            sql.func.count(sql.case((_IN_USE & (_ROWS.c.bottleneck_rows == 0), one))).label("without_vector"),
            sql.func.max(_ROWS.c.made).label("last"),
        ).group_by(_ROWS.c.seller)
        with self._errors(), self._reads.begin() as connection:
            notes = {row.seller: row for row in connection.execute(sql.select(_SELLERS))}
            found = connection.execute(counts).all()
        accounts = [
            SellerAccount(
                **row._mapping,
                **{name: getattr(notes[row.seller], name) for name in ("flagged", "set_aside", "restored")},
            )
            for row in found
        ]
        return sorted(accounts, key=lambda account: account.seller)

    def labels(self) -> pd.DataFrame:
        """Returns the newest correction in use of each product, none of flagged or set aside sellers.

        Columns product_id, category, seller, when (UTC), who, id; sorted by product_id. Of two sellers who
        say something about the same product, the later moment counts, then the higher id.
        """
        columns = [_ROWS.c[name] for name in ("product_id", "category", "seller", "made", "who", "id")]
        query = (
            sql.select(*columns)
            .join(_SELLERS, _SELLERS.c.seller == _ROWS.c.seller)
            .where(_IN_USE, _SELLERS.c.flagged.is_(None), _SELLERS.c.set_aside.is_(None))
        )
        with self._errors(), self._reads.begin() as connection:
            rows = connection.execute(query).all()
        names = ("product_id", "category", "seller", "when", "who", "id")
        values = zip(*rows, strict=True) if rows else ((),) * len(names)
        table = pd.DataFrame(
            {name: pd.Series(list(some), dtype=object) for name, some in zip(names, values, strict=True)}
        )
        table = table.astype({"id": "int64"}).assign(when=pd.to_datetime(table["when"], utc=True))
        newest = table.sort_values(["product_id", "when", "id"]).drop_duplicates("product_id", keep="last")
        return newest.reset_index(drop=True)

    def labels_digest(self) -> str:
        """Returns a digest (64 hex digits) of `labels()`."""
        digest = hashlib.sha256()
        if self.in_use():
            for row in self.labels().to_dict("records"):
                digest.update(json.dumps([*row.values()], default=str).encode() + b"\n")
        return digest.hexdigest()

    # Vectors

    def missing(
        self, head: str, fingerprint: str, sellers: Collection[str] | None = None
    ) -> Iterator[list[Missing]]:
        """Yields, piece by piece, corrections in use with bottlenecks and without a vector of this head.

        Args:
            head: digest of the head's files.
            fingerprint: of its backbone; bottlenecks of another one are left out.
            sellers: of these alone; None: of all.
        """
        with self._errors(), self._reads.begin() as connection:
            accounts = sql.select(_SELLERS.c.seller, _SELLERS.c.corrections).where(_SELLERS.c.corrections > 0)
            in_use = {
                row.seller: row.corrections
                for row in connection.execute(accounts)
                if sellers is None or row.seller in sellers
            }
            sizes = (
                sql.select(_VECTORS.c.seller, sql.func.sum(_VECTORS.c.size))
                .where(_VECTORS.c.head == head)
                .group_by(_VECTORS.c.seller)
            )
            there = {seller: int(size) for seller, size in connection.execute(sizes)}
        for seller in sorted(name for name, count in in_use.items() if there.get(name, 0) < count):
            wanted = self._without_vectors(head, seller, fingerprint)
            for start in range(0, len(wanted), 4 * ROWS):
                query = (
                    sql.select(_ROWS.c.id, _ROWS.c.category, _BOTTLENECKS.c.width, _BOTTLENECKS.c.numbers)
                    .join(_BOTTLENECKS, _BOTTLENECKS.c.id == _ROWS.c.id)
                    .where(_ROWS.c.id.in_(wanted[start : start + 4 * ROWS]), _IN_USE)
                    .order_by(_ROWS.c.id)
                )
                with self._errors(), self._reads.begin() as connection:
                    found = connection.execute(query).all()
                if found:
                    yield [
                        Missing(row.id, seller, row.category,
                                np.frombuffer(row.numbers, "<f2").reshape(-1, row.width))
                        for row in found
                    ]  # fmt: skip

    def _without_vectors(self, head: str, seller: str, fingerprint: str) -> list[int]:
        """Ids of a seller's corrections in use that have such bottlenecks and no vector of the head."""
        of_the_backbone = sql.select(_ROWS.c.id).where(
            _ROWS.c.seller == seller, _IN_USE, _ROWS.c.fingerprint == fingerprint, _ROWS.c.bottleneck_rows > 0
        )
        pieces = sql.select(_VECTORS.c.ids).where(_VECTORS.c.head == head, _VECTORS.c.seller == seller)
        with self._errors(), self._reads.begin() as connection:
            wanted = set(connection.execute(of_the_backbone).scalars())
            for ids in connection.execute(pieces).scalars():
                wanted -= set(np.frombuffer(ids, "<i8").tolist())
        return sorted(wanted)

    def put_vectors(self, rows: "Sequence[tuple[int, Encoded]]") -> None:
        """Puts vectors of corrections in; those that have ended meanwhile are left out.

        Args:
            rows: ids, and how a head sees them.
        """
        for _ in self._pieces(list(rows), self._put_vectors):
            pass

    def _put_vectors(self, rows: "list[tuple[int, Encoded]]", connection: sql.Connection) -> None:
        ids = [number for number, _ in rows]
        query = sql.select(_ROWS.c.id, _ROWS.c.seller, _ROWS.c.category).where(_ROWS.c.id.in_(ids), _IN_USE)
        accounts = self._known(connection, {row.seller for row in connection.execute(query)})
        there = {row.id: row for row in connection.execute(query) if row.seller in accounts}
        vectors = defaultdict(list)
        for number, encoded in rows:
            if row := there.get(number):
                vectors[encoded.head, row.seller].append(_Vector.of(number, encoded, row.category))
        for (head, seller), some in vectors.items():
            _merge(connection, head, seller, some)
        _save(connection, [accounts[name] for name in {seller for _, seller in vectors}])

    def forget_vectors(self, keep: Collection[str]) -> int:
        """Deletes the vectors of all heads but these; returns how many."""
        with self._errors(), self._reads.begin() as connection:
            old = [head for head in _heads(connection) if head not in keep]

        deleted = 0
        for head in old:
            while count := self._change(partial(_delete_some_of, head)):
                deleted += count
                time.sleep(REST)
        return deleted

    # Transactions

    def _pieces(self, rows: list[Any], work: Callable[[list[Any], sql.Connection], T]) -> Iterator[T]:
        """Yields the results of transactions with ROWS rows each."""
        for start in range(0, len(rows), ROWS):
            if start:
                time.sleep(REST)
            yield self._change(partial(work, rows[start : start + ROWS]))

    def _change(self, work: Callable[[sql.Connection], T]) -> T:
        """The result of a transaction that is durable now; one that a lost connection ends is tried again."""
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

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the database become one line, without statements and values."""
        try:
            yield
        except Exception as error:
            if not is_of_database(error):
                raise
            raise ShelfmarkError(f"{self._shown}: {line_of(error)}; {_advice_of(error)}") from error


# Accounts


@dataclass
class _Account:
    """A row of corrections_sellers in a transaction that has locked it."""

    seller: str
    revision: int
    corrections: int
    suspicion: float
    flagged: str | None
    set_aside: str | None
    restored: int

    def take(self, encoded: "Encoded | None", *, replaces: bool) -> None:
        """Counts a new correction, and its evidence."""
        self.corrections += not replaces
        self.take_evidence(encoded)

    def take_evidence(self, encoded: "Encoded | None") -> None:
        """Adds the evidence that the corrections are wrong; flags the seller where it is enough."""
        if encoded is None:
            return
        self.suspicion = add_evidence(self.suspicion, encoded.evidence)
        if self.suspicion >= LIMIT and self.flagged is None:
            self.flagged = (
                f"they contradict the categorizer as wrong ones do: evidence {self.suspicion:.1f} of "
                f"{LIMIT:.1f} after {self.corrections} corrections"
            )


_NO_ACCOUNT: dict[str, Any] = {
    "revision": 0, "corrections": 0, "suspicion": 0.0, "flagged": None, "set_aside": None,
    "restored": 0,
}  # fmt: skip


def _save(connection: sql.Connection, accounts: Iterable[_Account]) -> None:
    """Writes accounts with their next revisions.

    A revision begins with the clock, so that a seller who is deleted and comes back has other ones.
    """
    now = time.time_ns() // 1000
    rows = []
    for account in accounts:
        account.revision = max(account.revision + 1, now)
        rows.append(account.__dict__)
    if rows:
        connection.execute(_SAVE[connection.dialect.name], rows)


_KNOWN = (
    sql.select(_SELLERS)
    .where(_SELLERS.c.seller.in_(sql.bindparam("names", expanding=True)))
    .order_by(_SELLERS.c.seller)
    .with_for_update()
)
_OPEN_ACCOUNTS = postgresql_insert(_SELLERS).on_conflict_do_nothing()


def _upsert(insert: Any) -> Any:
    statement = insert(_SELLERS)
    values = {name: statement.excluded[name] for column in _SELLERS.c if (name := column.name) != "seller"}
    return statement.on_conflict_do_update(index_elements=["seller"], set_=values)


_SAVE = {"sqlite": _upsert(sqlite_insert), "postgresql": _upsert(postgresql_insert)}


# Corrections


def _transactions(
    rows: "Sequence[tuple[Correction, Encoded | None]]",
) -> "Iterator[Sequence[tuple[Correction, Encoded | None]]]":
    """Pieces of at most ROWS rows, in each of which no product of a seller is twice."""
    start, seen = 0, set[tuple[str, str]]()
    for at, (correction, _) in enumerate(rows):
        key = correction.seller, correction.product_id
        if at - start == ROWS or key in seen:
            yield rows[start:at]
            start, seen = at, set()
        seen.add(key)
    if start < len(rows):
        yield rows[start:]


def _there(
    connection: sql.Connection, rows: "Sequence[tuple[Correction, Encoded | None]]"
) -> dict[tuple[str, str], Any]:
    """Seller and product → id, category, bottleneck_rows of the correction in use."""
    products = defaultdict(list)
    for correction, _ in rows:
        products[correction.seller].append(correction.product_id)
    there = {}
    for seller, some in products.items():
        for row in connection.execute(_THERE, {"name": seller, "products": some}):
            there[row.seller, row.product_id] = row
    return there


_THERE = sql.select(
    *(_ROWS.c[name] for name in ("id", "seller", "product_id", "category", "bottleneck_rows"))
).where(_ROWS.c.seller == _NAME, _ROWS.c.product_id.in_(sql.bindparam("products", expanding=True)), _IN_USE)
_INSERT = sql.insert(_ROWS).returning(_ROWS.c.id, sort_by_parameter_order=True)


def _columns_of(correction: Correction, encoded: "Encoded | None") -> dict[str, object]:
    """A row of the table, without its id."""
    when = correction.when or datetime.now(UTC)
    rows = correction.bottlenecks
    return {
        "seller": correction.seller,
        "product_id": correction.product_id,
        "category": correction.category,
        "who": correction.who,
        "made": when if when.tzinfo else when.replace(tzinfo=UTC),
        "comment": correction.comment,
        "release": correction.release,
        "images": json.dumps(correction.images),
        "fingerprint": correction.fingerprint,
        "bottleneck_rows": 0 if rows is None else len(rows),
        "base": encoded and encoded.base,
        "evidence": encoded and encoded.evidence,
    }


def _end(connection: sql.Connection, ending: Sequence[tuple[int, str]], because: str) -> None:
    """Ends corrections, (id, seller), and forgets their numbers."""
    if not ending:
        return
    ids = [number for number, _ in ending]
    ended = sql.update(_ROWS).where(_ROWS.c.id.in_(ids))
    connection.execute(ended.values(ended=datetime.now(UTC), because=because, bottleneck_rows=0))
    _forget(connection, ending)


def _forget(connection: sql.Connection, ending: Sequence[tuple[int, str]]) -> None:
    """Deletes bottlenecks and vectors of corrections, (id, seller)."""
    ids = [number for number, _ in ending]
    connection.execute(sql.delete(_BOTTLENECKS).where(_BOTTLENECKS.c.id.in_(ids)))
    sellers = defaultdict(set)
    for number, seller in ending:
        sellers[seller].add(number)
    heads = _heads(connection)
    for seller, some in sellers.items():
        for head in heads:
            for piece in _pieces_between(connection, head, seller, min(some), max(some)):
                kept = [vector for vector in _unpacked(piece) if vector.id not in some]
                if len(kept) < piece.size:
                    _delete_pieces(connection, head, seller, [piece.first])
                    _insert_pieces(connection, head, seller, [(piece.first, kept)] if kept else [])


def _put_bottlenecks(connection: sql.Connection, rows: Iterable[tuple[int, np.ndarray | None]]) -> None:
    table = [
        {"id": number, "width": some.shape[1], "numbers": some.astype("<f2").tobytes()}
        for number, some in rows
        if some is not None
    ]
    if table:
        connection.execute(_INSERT_BOTTLENECKS, table)


_INSERT_BOTTLENECKS = sql.insert(_BOTTLENECKS)


# Vectors in pieces


class _Vector(NamedTuple):
    """A correction as a head sees it, as it is stored."""

    id: int
    base: str
    true: str
    numbers: bytes  # (v,) float16

    @classmethod
    def of(cls, number: int, encoded: "Encoded", true: str) -> "_Vector":
        return cls(number, encoded.base, true, np.asarray(encoded.vector).astype("<f2").tobytes())


def _merge(connection: sql.Connection, head: str, seller: str, vectors: list[_Vector]) -> None:
    """Puts a seller's vectors into his pieces, in the order of ids; one that is there already is replaced."""
    new = {vector.id: vector for vector in vectors}
    old = _pieces_between(connection, head, seller, min(new), max(new))
    before = {piece.first: list(_unpacked(piece)) for piece in old}
    all_of_them = {vector.id: vector for some in before.values() for vector in some} | new
    rows = [all_of_them[number] for number in sorted(all_of_them)]
    pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]
    after = {piece[0].id: piece for piece in pieces}
    _delete_pieces(connection, head, seller, [first for first in before if before[first] != after.get(first)])
    _insert_pieces(
        connection,
        head,
        seller,
        [(first, some) for first, some in after.items() if some != before.get(first)],
    )


def _pieces_between(connection: sql.Connection, head: str, seller: str, low: int, high: int) -> list[Any]:
    """The pieces whose range of ids meets low to high, in order."""
    bind = {"head": head, "name": seller}
    first = connection.execute(_FIRST_AT_MOST, bind | {"low": low}).scalar()
    return list(connection.execute(_BETWEEN, bind | {"low": low if first is None else first, "high": high}))


def _unpacked(piece: Any) -> Iterator[_Vector]:
    base, true = json.loads(piece.names)
    width = len(piece.numbers) // piece.size
    for at, number in enumerate(np.frombuffer(piece.ids, "<i8").tolist()):
        yield _Vector(number, base[at], true[at], piece.numbers[at * width : (at + 1) * width])


def _delete_pieces(connection: sql.Connection, head: str, seller: str, firsts: Sequence[int]) -> None:
    if firsts:
        connection.execute(_DELETE_PIECES, {"head": head, "name": seller, "firsts": list(firsts)})


def _insert_pieces(
    connection: sql.Connection, head: str, seller: str, pieces: Sequence[tuple[int, Sequence[_Vector]]]
) -> None:
    table = [
        {
            "head": head,
            "seller": seller,
            "first": first,
            "size": len(vectors),
            "ids": np.array([vector.id for vector in vectors], "<i8").tobytes(),
            "names": json.dumps([[one.base for one in vectors], [one.true for one in vectors]]),
            "numbers": b"".join(one.numbers for one in vectors),
        }
        for first, vectors in pieces
    ]
    if table:
        connection.execute(_INSERT_PIECES, table)


_INSERT_PIECES = sql.insert(_VECTORS)
_DELETE_PIECES = sql.delete(_VECTORS).where(
    _OF_HEAD, _VECTORS.c.first.in_(sql.bindparam("firsts", expanding=True))
)
_FIRST_AT_MOST = sql.select(sql.func.max(_VECTORS.c.first)).where(
    _OF_HEAD, _VECTORS.c.first <= sql.bindparam("low", type_=_ID)
)
_BETWEEN = (
    sql.select(_VECTORS)
    .where(
        _OF_HEAD,
        _VECTORS.c.first >= sql.bindparam("low", type_=_ID),
        _VECTORS.c.first <= sql.bindparam("high", type_=_ID),
    )
    .order_by(_VECTORS.c.first)
)


def _delete_some_of(head: str, connection: sql.Connection) -> int:
    """Deletes some pieces of a head; returns how many vectors they held."""
    columns = (_VECTORS.c.seller, _VECTORS.c.first, _VECTORS.c.size)
    found = connection.execute(sql.select(*columns).where(_VECTORS.c.head == head).limit(ROWS)).all()
    for row in found:
        _delete_pieces(connection, head, row.seller, [row.first])
    return sum(row.size for row in found)


def _heads(connection: sql.Connection) -> list[str]:
    """The heads that have vectors, found one after the other by the key: each is one step."""
    heads: list[str] = []
    after = ""
    while head := connection.execute(_NEXT_HEAD, {"after": after}).scalar():
        heads.append(head)
        after = head
    return heads


_NEXT_HEAD = sql.select(sql.func.min(_VECTORS.c.head)).where(
    _VECTORS.c.head > sql.bindparam("after", type_=sql.Text)
)


# SQLite


def _begin_file(file: Path) -> None:
    """Makes a new file one with a WAL; that stays so."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:

        def switch() -> None:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA journal_mode = WAL")

        _patiently(switch)


def _set_up(connection: Any, _: Any) -> None:
    """A new connection: durable, and without what was deleted; transactions are begun below."""
    connection.isolation_level = None
    for setting in ("synchronous = FULL", "secure_delete = ON", "wal_autocheckpoint = 0"):
        connection.execute(f"PRAGMA {setting}")


def _begin_writing(connection: sql.Connection) -> None:
    driver: Any = connection.connection.driver_connection
    _patiently(lambda: driver.execute("BEGIN IMMEDIATE"))


def _begin_reading(connection: sql.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _empty_wal(connection: sqlite3.Connection) -> None:
    """Moves all that is in the WAL into the file, and cuts the WAL to nothing."""
    (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        error = sqlite3.OperationalError("others read or write all the time")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


def _patiently(work: Callable[[], object]) -> None:
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


class _Checkpoints:
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


# Errors


def require_texts(correction: Correction) -> None:
    """Raises a ShelfmarkError for texts that a database does not take."""
    for name in ("seller", "product_id", "category", "who", "comment", "release", "fingerprint"):
        text = getattr(correction, name)
        if text is None:
            continue
        longest = LONGEST_COMMENT if name == "comment" else LONGEST
        size = len(text.encode(errors="surrogatepass"))
        needed = name in ("seller", "product_id", "category")
        if size > longest or (needed and not text) or "\0" in text or _SURROGATE.search(text):
            problem = (
                f"{size:,} bytes"
                if size > longest
                else "empty"
                if not text
                else "with characters that are none"
            )
            raise ShelfmarkError(
                f"correction of product {correction.product_id[:100]!r}: its {name} is {problem}; expected a "
                f"text of {'1' if needed else '0'} to {longest:,} bytes in UTF-8; correct it"
            )


_SURROGATE = re.compile("[\ud800-\udfff]")


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
    ((), ("is locked",), f"expected the lock within {WAIT:g} s; end what holds it, then try again"),
    ((), ("unable to open database file",),
     "expected a file in a directory that is there; check path and permissions"),
    ((), ("not a database", "malformed", "disk image"),
     "expected corrections as they were written; put a copy of the file back, or move it away to begin anew"),
)  # fmt: skip
