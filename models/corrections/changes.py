"""What one transaction changes: corrections with their bottlenecks, vectors and accounts.

Each begins by locking the sellers' accounts (SQLite: the file is locked).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sql

from models.corrections import vectors
from models.corrections.accounts import known_accounts, locked_accounts, save
from models.corrections.correction import Added, Correction
from models.corrections.tables import BOTTLENECKS, IN_USE, NAME, ROWS, SELLERS

if TYPE_CHECKING:
    from models.decisions.adapted import Encoded

UNDONE, REPLACED = "undone", "replaced"


def of_different_products(
    rows: "Sequence[tuple[Correction, Encoded | None]]", most: int
) -> "Iterator[Sequence[tuple[Correction, Encoded | None]]]":
    """Yields pieces of at most `most` rows, in each of which no product of a seller is twice."""
    start, seen = 0, set[tuple[str, str]]()
    for at, (correction, _) in enumerate(rows):
        key = correction.seller, correction.product_id
        if at - start == most or key in seen:
            yield rows[start:at]
            start, seen = at, set()
        seen.add(key)
    if start < len(rows):
        yield rows[start:]


def add(rows: "Sequence[tuple[Correction, Encoded | None]]", connection: sql.Connection) -> list[Added]:
    """Adds corrections of different products."""
    accounts = locked_accounts(connection, {one.seller for one, _ in rows})
    there = _there(connection, rows)
    known = [there.get((one.seller, one.product_id)) for one, _ in rows]
    fresh = [at for at, old in enumerate(known) if old is None or old.category != rows[at][0].category]
    _end(connection, [(old.id, old.seller) for at in fresh if (old := known[at])], REPLACED)
    ids = [old.id if old else 0 for old in known]
    if fresh:
        table = [_columns_of(*rows[at]) for at in fresh]
        for at, (number,) in zip(fresh, connection.execute(_INSERT, table).all(), strict=True):
            ids[at] = number
    same = [at for at in range(len(rows)) if at not in fresh]
    unseen = _without_vector(connection, rows, ids, same)
    bare = [at for at in same if _lacks_bottlenecks(known[at], rows[at][0], at in unseen)]
    for at in bare:
        connection.execute(sql.delete(BOTTLENECKS).where(BOTTLENECKS.c.id == ids[at]))
        _set(connection, ids[at], rows[at], ("images", "fingerprint", "bottleneck_rows"))
    unjudged = [at for at in unseen if (old := known[at]) and old.base is None]
    for at in unjudged:
        _set(connection, ids[at], rows[at], ("base", "evidence"))
    _put_bottlenecks(connection, [(ids[at], rows[at][0].bottlenecks) for at in sorted([*fresh, *bare])])
    vectors.put(
        connection,
        [
            (ids[at], one.seller, one.category, encoded)
            for at in sorted([*fresh, *unseen])
            for one, encoded in [rows[at]]
            if encoded
        ],
    )
    for at in fresh:
        correction, encoded = rows[at]
        accounts[correction.seller].take(encoded, replaces=known[at] is not None)
    for at in unjudged:  # evidence counts once, whichever heads see the correction later
        accounts[rows[at][0].seller].take_evidence(rows[at][1])
    save(connection, [accounts[name] for name in {rows[at][0].seller for at in [*fresh, *bare, *unseen]}])
    return [
        Added(number, "same" if at not in fresh else "replaced" if known[at] else "new")
        for at, number in enumerate(ids)
    ]


def _without_vector(
    connection: sql.Connection,
    rows: "Sequence[tuple[Correction, Encoded | None]]",
    ids: Sequence[int],
    same: Sequence[int],
) -> list[int]:
    """Which of the corrections that are there have no vector of the head that sees them now."""
    sellers = defaultdict(set)
    for at in same:
        one, encoded = rows[at]
        if encoded:
            sellers[encoded.head].add(one.seller)
    there = {head: vectors.ids_with_vectors(connection, names, head) for head, names in sellers.items()}
    return [at for at in same if (encoded := rows[at][1]) and ids[at] not in there[encoded.head]]


def _lacks_bottlenecks(old: Any, new: Correction, is_unseen: bool) -> bool:
    """Whether a correction that is there has no bottlenecks, or those of a backbone that the head has not."""
    if new.bottlenecks is None:
        return False
    return not old.bottleneck_rows or (is_unseen and old.fingerprint != new.fingerprint)


def _set(
    connection: sql.Connection, number: int, row: "tuple[Correction, Encoded | None]", names: Sequence[str]
) -> None:
    columns = _columns_of(*row)
    connection.execute(
        sql.update(ROWS).where(ROWS.c.id == number).values({name: columns[name] for name in names})
    )


def _there(
    connection: sql.Connection, rows: "Sequence[tuple[Correction, Encoded | None]]"
) -> dict[tuple[str, str], Any]:
    """Seller and product → the correction in use."""
    products = defaultdict(list)
    for correction, _ in rows:
        products[correction.seller].append(correction.product_id)
    there = {}
    for seller, some in products.items():
        for row in connection.execute(_THERE, {"name": seller, "products": some}):
            there[row.seller, row.product_id] = row
    return there


_THERE = sql.select(
    *(
        ROWS.c[name]
        for name in ("id", "seller", "product_id", "category", "bottleneck_rows", "fingerprint", "base")
    )
).where(ROWS.c.seller == NAME, ROWS.c.product_id.in_(sql.bindparam("products", expanding=True)), IN_USE)
_INSERT = sql.insert(ROWS).returning(ROWS.c.id, sort_by_parameter_order=True)


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


def _put_bottlenecks(connection: sql.Connection, rows: Iterable[tuple[int, np.ndarray | None]]) -> None:
    table = [
        {"id": number, "width": some.shape[1], "numbers": some.astype("<f2").tobytes()}
        for number, some in rows
        if some is not None
    ]
    if table:
        connection.execute(_INSERT_BOTTLENECKS, table)


_INSERT_BOTTLENECKS = sql.insert(BOTTLENECKS)


def undo(ids: list[int], connection: sql.Connection) -> int:
    """Ends the corrections with these ids; returns how many of them were in use."""
    in_use = sql.select(ROWS.c.id, ROWS.c.seller).where(ROWS.c.id.in_(ids), IN_USE)
    accounts = known_accounts(connection, {row.seller for row in connection.execute(in_use)})
    ending = [(row.id, row.seller) for row in connection.execute(in_use) if row.seller in accounts]
    _end(connection, ending, UNDONE)
    for _, seller in ending:
        accounts[seller].corrections -= 1
    save(connection, [accounts[name] for name in {seller for _, seller in ending}])
    return len(ending)


def _end(connection: sql.Connection, ending: Sequence[tuple[int, str]], because: str) -> None:
    """Ends corrections, (id, seller), and forgets their numbers."""
    if not ending:
        return
    ended = sql.update(ROWS).where(ROWS.c.id.in_([number for number, _ in ending]))
    connection.execute(ended.values(ended=datetime.now(UTC), because=because, bottleneck_rows=0))
    _forget(connection, ending)


def _forget(connection: sql.Connection, ending: Sequence[tuple[int, str]]) -> None:
    """Deletes bottlenecks and vectors of corrections, (id, seller)."""
    ids = [number for number, _ in ending]
    connection.execute(sql.delete(BOTTLENECKS).where(BOTTLENECKS.c.id.in_(ids)))
    vectors.forget(connection, ending)


def delete_some(seller: str, most: int, connection: sql.Connection) -> int:
    """Deletes at most `most` corrections of a seller, with the last one his account; returns how many."""
    known = known_accounts(connection, [seller])
    some = sql.select(ROWS.c.id).where(ROWS.c.seller == seller).order_by(ROWS.c.id).limit(most)
    ids = connection.execute(some).scalars().all()
    if ids:
        _forget(connection, [(number, seller) for number in ids])
        counted = sql.select(sql.func.count()).where(ROWS.c.id.in_(ids), IN_USE)
        in_use = connection.execute(counted).scalar_one()
        connection.execute(sql.delete(ROWS).where(ROWS.c.id.in_(ids)))
        save(connection, [replace(one, corrections=one.corrections - in_use) for one in known.values()])
    else:
        connection.execute(sql.delete(SELLERS).where(SELLERS.c.seller == seller))
    return len(ids)


def put_vectors(rows: "list[tuple[int, Encoded]]", connection: sql.Connection) -> None:
    """Puts vectors of corrections in, by their ids; those that have ended are left out."""
    ids = [number for number, _ in rows]
    query = sql.select(ROWS.c.id, ROWS.c.seller, ROWS.c.category).where(ROWS.c.id.in_(ids), IN_USE)
    accounts = known_accounts(connection, {row.seller for row in connection.execute(query)})
    there = {row.id: row for row in connection.execute(query) if row.seller in accounts}
    put = [
        (number, row.seller, row.category, encoded) for number, encoded in rows if (row := there.get(number))
    ]
    vectors.put(connection, put)
    save(connection, [accounts[name] for name in {seller for _, seller, _, _ in put}])
