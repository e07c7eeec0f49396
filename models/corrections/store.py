"""The store of corrections: SQLite in one file, or PostgreSQL.

    correction.py ◄── tables.py ◄── accounts.py, vectors.py ◄── changes.py, lists.py ◄── store.py
                          ▲                                                                  │
    sqlite_file.py ◄── database.py ◄─────────────────────────────────────────────────────────┘

As there is one correction in use for each seller and product, a client that lost the reply repeats its
request, and nothing is there twice.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import sqlalchemy as sql

from features.errors import ShelfmarkError
from models.corrections import changes, database, lists, vectors
from models.corrections.accounts import Account, known_accounts, save
from models.corrections.correction import (
    Added,
    Correction,
    History,
    Missing,
    SellerAccount,
    SellerPage,
    require_texts,
)
from models.corrections.database import Database
from models.corrections.tables import NAME, ROWS, SELLERS

if TYPE_CHECKING:  # its imports take a second, and lists need none of it
    from models.decisions.adapted import Encoded

READ_ROWS = 1000  # at once, of lists
SELLERS_AT_ONCE = 500  # whose missing vectors are found together


class Corrections:
    """The corrections of a workspace; many threads and processes may use them at once."""

    def __init__(self, opened: Database) -> None:
        """Takes a database with the tables; `open` makes it."""
        self._database = opened

    @classmethod
    def open(cls, url: str) -> "Corrections":
        """Opens `sqlite:///FILE` or `postgresql://…`; makes the tables where they are missing.

        Raises:
            ShelfmarkError: it cannot be reached or read, is another program's, or of a newer shelfmark.
        """
        return cls(Database.open(url))

    @property
    def shown(self) -> str:
        """The database's URL as errors show it, without a password."""
        return self._database.shown

    def close(self) -> None:
        """Ends its connections; the last one of a SQLite file leaves no WAL."""
        self._database.close()

    # Adding

    def add(self, rows: "Sequence[tuple[Correction, Encoded | None]]") -> list[Added]:
        """Adds corrections in this order; when it returns, they are durable.

        Some of them at a time are a transaction: there as a whole, or not at all. After an error or a kill,
        the same call again adds what is missing. One that is there already is the same; it takes bottlenecks
        where it had none, and the vector where this head had none.

        Args:
            rows: what the head that is in service sees of each; None where its vector cannot be had.

        Raises:
            ShelfmarkError: a text is empty, too long, or holds a character that databases do not take, and
                nothing is added; or the database cannot be written.
        """
        for correction, _ in rows:
            require_texts(correction)
        added: list[Added] = []
        for piece in changes.of_different_products(rows, database.AT_ONCE):
            if added:
                time.sleep(database.REST)
            added += self._database.change(partial(changes.add, piece))
        return added

    def put_vectors(self, rows: "Sequence[tuple[int, Encoded]]") -> None:
        """Puts vectors of corrections in; those that have ended meanwhile are left out.

        Args:
            rows: ids, and how a head sees them.
        """
        for _ in self._database.change_in_pieces(list(rows), changes.put_vectors):
            pass

    # Changing

    def undo(self, ids: Sequence[int]) -> int:
        """Ends the corrections with these ids; returns how many of them were in use."""
        wanted = sorted(set(map(int, ids)))
        return sum(self._database.change_in_pieces(wanted, changes.undo))

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
        last = sql.select(sql.func.max(ROWS.c.id)).where(ROWS.c.seller == seller)
        with self._database.reading() as connection:
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

    def _update(self, seller: str, change: Callable[[Account], Account]) -> None:
        def work(connection: sql.Connection) -> None:
            known = known_accounts(connection, [seller])
            if not known:
                raise ShelfmarkError(
                    f"{self._database.shown}: no corrections of seller {seller!r}; expected one who has made "
                    "some; `shelfmark corrections list` shows them"
                )
            save(connection, [change(known[seller])])

        self._database.change(work)

    def delete_seller(self, seller: str) -> int:
        """Deletes everything of a seller; returns how many corrections there were, ended ones too.

        In SQLite no copy of them is left, in the WAL neither: the whole file is written anew, and meanwhile
        others can read, but not write. In PostgreSQL they are free space after VACUUM, until something else
        comes there.

        Raises:
            ShelfmarkError: others read or write without a pause, so that copies are left.
        """
        some = partial(changes.delete_some, seller, 4 * database.AT_ONCE)
        deleted = self._database.change_until_done(some)
        self._database.erase()
        return deleted

    def forget_vectors(self, keep: Collection[str]) -> int:
        """Deletes the vectors of all heads but these; returns how many."""
        with self._database.reading() as connection:
            old = [head for head in vectors.heads_of(connection) if head not in keep]
        return sum(
            self._database.change_until_done(partial(vectors.forget_some_of, head, database.AT_ONCE))
            for head in old
        )

    # Reading

    def revision(self, seller: str) -> int:
        """Returns a number that rises with every change of what a seller has in use; 0: no corrections.

        A seller who was deleted and comes back has higher numbers than before.
        """
        with self._database.reading() as connection:
            return connection.execute(_REVISION, {"name": seller}).scalar() or 0

    def in_use(self) -> bool:
        """Returns whether any seller has corrections in use that are not set aside."""
        with self._database.reading() as connection:
            return lists.in_use(connection)

    def has_vector(self, number: int, seller: str, head: str) -> bool:
        """Returns whether a correction of a seller, by its id, has a vector of this head."""
        with self._database.reading() as connection:
            return number in vectors.ids_with_vectors(connection, [seller], head)

    def history(self, seller: str, head: str) -> History:
        """Returns what a seller has in use: of those with a vector of this head, the newest MOST."""
        with self._database.reading() as connection:
            return vectors.history_of(connection, seller, head)

    def newer(self, seller: str, head: str, ids: np.ndarray) -> History | None:
        """Returns as a history what a seller has added, vectors and all; None: more than that has changed.

        Args:
            seller: one whose history was read before.
            head: of that history.
            ids: those of that history, int64, rising; the seller may have MOST of them, the newer ones too.
        """
        with self._database.reading() as connection:
            return vectors.newer_than(connection, seller, head, ids)

    def export(self, seller: str | None = None) -> Iterator[dict[str, object]]:
        """Yields all corrections, ended ones too, in the order of their ids, without vectors and bottlenecks.

        Args:
            seller: of him alone.
        """
        last = 0
        while True:
            with self._database.reading() as connection:
                found = lists.exported(connection, seller, READ_ROWS, last)
            yield from (columns for _, columns in found)
            if len(found) < READ_ROWS:
                return
            last, _ = found[-1]

    def page(self, seller: str, limit: int, before: int | None = None) -> SellerPage:
        """Returns the newest corrections of a seller, at most `limit` of them.

        Args:
            seller: one who is unknown has none.
            limit: number of corrections.
            before: an id; only those with lower ones.
        """
        with self._database.reading() as connection:
            return lists.page(connection, seller, limit, before)

    def sellers(self) -> list[SellerAccount]:
        """Returns all sellers, by name."""
        with self._database.reading() as connection:
            return lists.sellers(connection)

    def labels(self) -> pd.DataFrame:
        """Returns what each seller says of each product, without flagged and set aside sellers.

        Columns product_id, category, seller, when (UTC), who, id; sorted by product_id. Where several sellers
        say something about the same product, the latest moment comes last, then the highest id. Whose product
        it is, the sources say.
        """
        with self._database.reading() as connection:
            return lists.labels(connection)

    def labels_digest(self) -> str:
        """Returns a digest (64 hex digits) of `labels()`."""
        digest = hashlib.sha256()
        if self.in_use():
            for row in self.labels().to_dict("records"):
                digest.update(json.dumps([*row.values()], default=str).encode() + b"\n")
        return digest.hexdigest()

    def missing(
        self, head: str, fingerprint: str, sellers: Collection[str] | None = None
    ) -> Iterator[list[Missing]]:
        """Yields, piece by piece, corrections in use with bottlenecks and without a vector of this head.

        Args:
            head: digest of the head's files.
            fingerprint: of its backbone; bottlenecks of another one are left out.
            sellers: of these alone; None: of all.
        """
        with self._database.reading() as connection:
            incomplete = lists.incomplete_sellers(connection, head, sellers)
        size = 4 * database.AT_ONCE
        for begin in range(0, len(incomplete), SELLERS_AT_ONCE):
            some = incomplete[begin : begin + SELLERS_AT_ONCE]
            with self._database.reading() as connection:
                wanted = lists.without_vectors(connection, some, head, fingerprint)
            for ids in wanted.values():
                for start in range(0, len(ids), size):
                    with self._database.reading() as connection:
                        found = lists.with_bottlenecks(connection, ids[start : start + size])
                    if found:
                        yield found


_REVISION = sql.select(SELLERS.c.revision).where(SELLERS.c.seller == NAME)
