"""What is listed within a transaction: corrections, sellers, labels, and what a head has no vectors of."""

import json
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sql

from models.corrections.correction import Missing, SellerAccount, SellerPage
from models.corrections.tables import ACCOUNT, BOTTLENECKS, IN_USE, ROWS, SELLERS, VECTORS
from models.corrections.vectors import ids_with_vectors

_EXPORTED = [column for column in ROWS.c if column.name != "bottleneck_rows"]


def exported(
    connection: sql.Connection, seller: str | None, limit: int, after: int = 0
) -> list[tuple[int, dict[str, object]]]:
    """Returns ids and columns of corrections, ended ones too, in the order of their ids.

    Args:
        connection: of a transaction.
        seller: of him alone; None: of all.
        limit: number of corrections.
        after: only those with higher ids.
    """
    query = sql.select(*_EXPORTED).where(ROWS.c.id > after).order_by(ROWS.c.id).limit(limit)
    if seller is not None:
        query = query.where(ROWS.c.seller == seller)
    return [(row.id, _columns(row)) for row in connection.execute(query)]


def page(connection: sql.Connection, seller: str, limit: int, before: int | None) -> SellerPage:
    """Returns the newest corrections of a seller; see `Corrections.page`."""
    query = sql.select(*_EXPORTED).where(ROWS.c.seller == seller).order_by(ROWS.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(ROWS.c.id < before)
    account = connection.execute(ACCOUNT, {"name": seller}).first()
    if account is None:
        return SellerPage(0, None, None, [])
    found = list(map(_columns, connection.execute(query)))
    return SellerPage(account.corrections, account.flagged, account.set_aside, found)


def _columns(row: Any) -> dict[str, object]:
    """A row of _EXPORTED as it is exported."""
    values = dict(row._mapping)
    return values | {"when": values.pop("made"), "images": json.loads(values["images"])}


def sellers(connection: sql.Connection) -> list[SellerAccount]:
    """Returns all sellers, by name."""
    one = sql.literal(1)
    counts = sql.select(
        ROWS.c.seller,
        sql.func.count(sql.case((IN_USE, one))).label("corrections"),
        sql.func.count(sql.case((~IN_USE, one))).label("ended"),
        sql.func.count(sql.case((IN_USE & (ROWS.c.bottleneck_rows == 0), one))).label("without_vector"),
        sql.func.max(ROWS.c.made).label("last"),
    ).group_by(ROWS.c.seller)
    notes = {row.seller: row for row in connection.execute(sql.select(SELLERS))}
    accounts = [
        SellerAccount(
            **row._mapping,
            **{name: getattr(notes[row.seller], name) for name in ("flagged", "set_aside", "restored")},
        )
        for row in connection.execute(counts)
    ]
    return sorted(accounts, key=lambda account: account.seller)


def in_use(connection: sql.Connection) -> bool:
    """Returns whether any seller has corrections in use that are not set aside."""
    some = sql.select(SELLERS.c.seller).where(SELLERS.c.corrections > 0, SELLERS.c.set_aside.is_(None))
    return connection.execute(some.limit(1)).first() is not None


def labels(connection: sql.Connection) -> pd.DataFrame:
    """Returns the corrections in use that may be labels; see `Corrections.labels`."""
    columns = [ROWS.c[name] for name in ("product_id", "category", "seller", "made", "who", "id")]
    query = (
        sql.select(*columns)
        .join(SELLERS, SELLERS.c.seller == ROWS.c.seller)
        .where(IN_USE, SELLERS.c.flagged.is_(None), SELLERS.c.set_aside.is_(None))
    )
    rows = connection.execute(query).all()
    names = ("product_id", "category", "seller", "when", "who", "id")
    values = zip(*rows, strict=True) if rows else ((),) * len(names)
    table = pd.DataFrame(
        {name: pd.Series(list(some), dtype=object) for name, some in zip(names, values, strict=True)}
    )
    table = table.astype({"id": "int64"}).assign(when=pd.to_datetime(table["when"], utc=True))
    return table.sort_values(["product_id", "when", "id"]).reset_index(drop=True)


# What a head has no vectors of


def incomplete_sellers(
    connection: sql.Connection, head: str, wanted: Collection[str] | None = None
) -> list[str]:
    """Returns the sellers, by name, who have more corrections in use than vectors of this head.

    Args:
        connection: of a transaction.
        head: digest of the head's files.
        wanted: these alone; None: all.
    """
    accounts = sql.select(SELLERS.c.seller, SELLERS.c.corrections).where(SELLERS.c.corrections > 0)
    sizes = (
        sql.select(VECTORS.c.seller, sql.func.sum(VECTORS.c.size))
        .where(VECTORS.c.head == head)
        .group_by(VECTORS.c.seller)
    )
    there = {seller: int(size) for seller, size in connection.execute(sizes)}
    return sorted(
        seller
        for seller, count in connection.execute(accounts)
        if there.get(seller, 0) < count and (wanted is None or seller in wanted)
    )


def without_vectors(
    connection: sql.Connection, sellers: Collection[str], head: str, fingerprint: str
) -> dict[str, list[int]]:
    """Returns ids of corrections in use with bottlenecks of this backbone and no such vector, by seller.

    Args:
        connection: of a transaction.
        sellers: a few hundred at most; those who lack none are left out.
        head: digest of the head's files.
        fingerprint: of its backbone.
    """
    of_the_backbone = (
        sql.select(ROWS.c.seller, ROWS.c.id)
        .where(ROWS.c.seller.in_(list(sellers)), IN_USE)
        .where(ROWS.c.fingerprint == fingerprint, ROWS.c.bottleneck_rows > 0)
        .order_by(ROWS.c.seller, ROWS.c.id)
    )
    there = ids_with_vectors(connection, sellers, head)
    lacking = defaultdict[str, list[int]](list)
    for seller, number in connection.execute(of_the_backbone):
        if number not in there:
            lacking[seller].append(number)
    return lacking


def with_bottlenecks(connection: sql.Connection, ids: Collection[int]) -> list[Missing]:
    """Returns corrections that are still in use, with their bottlenecks."""
    query = (
        sql.select(ROWS.c.id, ROWS.c.seller, ROWS.c.category, BOTTLENECKS.c.width, BOTTLENECKS.c.numbers)
        .join(BOTTLENECKS, BOTTLENECKS.c.id == ROWS.c.id)
        .where(ROWS.c.id.in_(ids), IN_USE)
        .order_by(ROWS.c.id)
    )
    return [
        Missing(row.id, row.seller, row.category, np.frombuffer(row.numbers, "<f2").reshape(-1, row.width))
        for row in connection.execute(query)
    ]
