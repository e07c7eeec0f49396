"""Sellers' accounts: rows of corrections_sellers in a transaction that has locked them."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from models.corrections.tables import SELLERS
from models.decisions.suspicion import LIMIT, add_evidence

if TYPE_CHECKING:
    from models.decisions.adapted import Encoded


@dataclass
class Account:
    """A row of corrections_sellers."""

    seller: str
    revision: int = 0
    corrections: int = 0
    suspicion: float = 0.0
    flagged: str | None = None
    set_aside: str | None = None
    restored: int = 0

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


def known_accounts(connection: sql.Connection, sellers: Collection[str]) -> dict[str, Account]:
    """Returns accounts that are there; nobody else changes them until the transaction ends."""
    # everybody locks in the same order
    found = connection.execute(_KNOWN, {"names": sorted(sellers)})
    return {row.seller: Account(**row._mapping) for row in found}


def locked_accounts(connection: sql.Connection, sellers: Collection[str]) -> dict[str, Account]:
    """Returns accounts, new where they are missing; nobody else changes them until the transaction ends."""
    wanted = sorted(sellers)
    if connection.dialect.name == "sqlite":  # the file is locked
        found = known_accounts(connection, wanted)
        return {name: found.get(name) or Account(name) for name in wanted}
    while True:
        connection.execute(_OPEN, [Account(name).__dict__ for name in wanted])
        found = known_accounts(connection, wanted)
        if len(found) == len(wanted):  # else one was deleted in between
            return found


def save(connection: sql.Connection, accounts: Iterable[Account]) -> None:
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
    sql.select(SELLERS)
    .where(SELLERS.c.seller.in_(sql.bindparam("names", expanding=True)))
    .order_by(SELLERS.c.seller)
    .with_for_update()
)
_OPEN = postgresql_insert(SELLERS).on_conflict_do_nothing()


def _upsert(insert: Any) -> Any:
    statement = insert(SELLERS)
    values = {name: statement.excluded[name] for column in SELLERS.c if (name := column.name) != "seller"}
    return statement.on_conflict_do_update(index_elements=["seller"], set_=values)


_SAVE = {"sqlite": _upsert(sqlite_insert), "postgresql": _upsert(postgresql_insert)}
