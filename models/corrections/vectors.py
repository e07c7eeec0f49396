"""Vectors of corrections, in pieces of one seller and one head: added, deleted and read within a transaction.

A piece that loses or gains vectors is written anew; the others stay.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sqlalchemy as sql

from models.corrections.correction import History
from models.corrections.tables import ACCOUNT, ID, NAME, SELLERS, VECTORS
from models.sellers.votes import MOST

if TYPE_CHECKING:
    from models.decisions.adapted import Encoded

PIECE = 32  # vectors in a row


class Vector(NamedTuple):
    """A correction as a head sees it, as it is stored."""

    id: int
    base: str
    true: str
    numbers: bytes  # (v,) float16

    @classmethod
    def of(cls, number: int, encoded: "Encoded", true: str) -> "Vector":
        """Returns what is stored of an encoded correction."""
        return cls(number, encoded.base, true, np.asarray(encoded.vector).astype("<f2").tobytes())


# Reading


def history_of(connection: sql.Connection, seller: str, head: str) -> History:
    """Returns what a seller has in use: of those with a vector of this head, the newest MOST."""
    pieces: list[Any] = []
    last, count = 2**62, 0
    while count < MOST:
        some = connection.execute(_PIECES, {"head": head, "name": seller, "last": last}).all()
        if not some:
            return History(0, _NO_IDS, [], [], _NO_VECTORS, 0, 0, None, None)
        account = some[0]
        there = [piece for piece in some if piece.size]
        pieces += there
        count += sum(piece.size for piece in there)
        if len(there) < _MOST_PIECES:
            break
        last = some[-1].first - 1
    size = connection.execute(_SIZE, {"head": head, "name": seller}).scalar() if count >= MOST else count
    pieces.reverse()
    return _history(account, pieces, MOST, size or 0)


def newer_than(connection: sql.Connection, seller: str, head: str, ids: np.ndarray) -> History | None:
    """Returns what was added after the corrections `ids`; None: something else has changed, too.

    Nothing else has where the head's vectors are still those of `ids`, and others with higher ids: an id is
    never given twice, what it stands for never changes, and to undo a correction deletes its vector.
    """
    account = connection.execute(ACCOUNT, {"name": seller}).first()
    bind = {"head": head, "name": seller}
    found = [np.frombuffer(some, "<i8") for some in connection.execute(_IDS, bind).scalars()]
    now = np.concatenate([_NO_IDS, *found])
    more = len(now) - len(ids)
    if account is None or len(now) > MOST or more < 0 or not np.array_equal(now[: len(ids)], ids):
        return None
    pieces: list[Any] = []
    if more:
        last = np.cumsum([len(some) for some in found])  # of each piece
        first = found[int(np.searchsorted(last, len(ids), side="right"))][0]
        pieces += connection.execute(_BETWEEN, bind | {"low": int(first), "high": int(now[-1])})
    return _history(account, pieces, more, len(now))


def _history(account: Any, pieces: Sequence[Any], most: int, size: int) -> History:
    """The newest `most` vectors of pieces, and the account; `size` vectors are there in all."""
    ids = np.frombuffer(b"".join([piece.ids for piece in pieces]), "<i8")
    numbers = np.frombuffer(b"".join([piece.numbers for piece in pieces]), "<f2")
    vectors = numbers.reshape(len(ids), -1) if pieces else _NO_VECTORS
    base: list[str] = []
    true: list[str] = []
    for piece in pieces:
        some_base, some_true = json.loads(piece.names)
        base += some_base
        true += some_true
    start = max(len(ids) - most, 0)
    return History(
        account.revision, ids[start:], base[start:], true[start:], vectors[start:], account.corrections,
        account.corrections - size, account.flagged, account.set_aside,
    )  # fmt: skip


_OF_HEAD = (VECTORS.c.head == sql.bindparam("head", type_=sql.Text)) & (VECTORS.c.seller == NAME)
_MOST_PIECES = MOST // PIECE + 2
# the account beside each piece, and once where there is none: two statements would take longer
_PIECES = (
    sql.select(
        *(SELLERS.c[name] for name in ("revision", "corrections", "flagged", "set_aside")),
        *(VECTORS.c[name] for name in ("first", "size", "ids", "names", "numbers")),
    )
    .select_from(SELLERS)
    .outerjoin(VECTORS, _OF_HEAD & (VECTORS.c.first <= sql.bindparam("last", type_=ID)))
    .where(SELLERS.c.seller == NAME)
    .order_by(VECTORS.c.first.desc())
    .limit(_MOST_PIECES)
)
_SIZE = sql.select(sql.func.sum(VECTORS.c.size)).where(_OF_HEAD)
_NO_IDS, _NO_VECTORS = np.empty(0, "<i8"), np.empty((0, 0), "<f2")


def ids_with_vectors(connection: sql.Connection, sellers: Collection[str], head: str) -> set[int]:
    """Returns the ids of some sellers' corrections that this head has vectors of."""
    pieces = connection.execute(_IDS_OF_SOME, {"head": head, "names": list(sellers)}).scalars()
    return {number for ids in pieces for number in np.frombuffer(ids, "<i8").tolist()}


_IDS_OF_SOME = sql.select(VECTORS.c.ids).where(
    VECTORS.c.head == sql.bindparam("head", type_=sql.Text),
    VECTORS.c.seller.in_(sql.bindparam("names", expanding=True)),
)
_IDS = sql.select(VECTORS.c.ids).where(_OF_HEAD).order_by(VECTORS.c.first)


def heads_of(connection: sql.Connection) -> list[str]:
    """Returns the heads that have vectors, found one after the other by the key: each is one step."""
    heads: list[str] = []
    after = ""
    while head := connection.execute(_NEXT_HEAD, {"after": after}).scalar():
        heads.append(head)
        after = head
    return heads


_NEXT_HEAD = sql.select(sql.func.min(VECTORS.c.head)).where(
    VECTORS.c.head > sql.bindparam("after", type_=sql.Text)
)

# Changing


def put(connection: sql.Connection, rows: "Sequence[tuple[int, str, str, Encoded]]") -> None:
    """Puts vectors into the pieces of their sellers and heads, in the order of ids.

    One that is there already is replaced.

    Args:
        connection: of a transaction that has locked the sellers.
        rows: id, seller, category, and how a head sees the correction.
    """
    vectors = defaultdict(list)
    for number, seller, category, encoded in rows:
        vectors[encoded.head, seller].append(Vector.of(number, encoded, category))
    for (head, seller), some in vectors.items():
        _merge(connection, head, seller, some)


def _merge(connection: sql.Connection, head: str, seller: str, vectors: list[Vector]) -> None:
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


def forget(connection: sql.Connection, ending: Sequence[tuple[int, str]]) -> None:
    """Deletes the vectors of corrections, (id, seller), of all heads."""
    sellers = defaultdict(set)
    for number, seller in ending:
        sellers[seller].add(number)
    heads = heads_of(connection)
    for seller, some in sellers.items():
        for head in heads:
            for piece in _pieces_between(connection, head, seller, min(some), max(some)):
                kept = [vector for vector in _unpacked(piece) if vector.id not in some]
                if len(kept) < piece.size:
                    _delete_pieces(connection, head, seller, [piece.first])
                    _insert_pieces(connection, head, seller, [(piece.first, kept)] if kept else [])


def forget_some_of(head: str, most: int, connection: sql.Connection) -> int:
    """Deletes at most `most` pieces of a head; returns how many vectors they held."""
    columns = (VECTORS.c.seller, VECTORS.c.first, VECTORS.c.size)
    found = connection.execute(sql.select(*columns).where(VECTORS.c.head == head).limit(most)).all()
    for row in found:
        _delete_pieces(connection, head, row.seller, [row.first])
    return sum(row.size for row in found)


# Pieces


def _pieces_between(connection: sql.Connection, head: str, seller: str, low: int, high: int) -> list[Any]:
    """The pieces whose range of ids meets low to high, in order."""
    bind = {"head": head, "name": seller}
    first = connection.execute(_FIRST_AT_MOST, bind | {"low": low}).scalar()
    return list(connection.execute(_BETWEEN, bind | {"low": low if first is None else first, "high": high}))


def _unpacked(piece: Any) -> Iterator[Vector]:
    base, true = json.loads(piece.names)
    width = len(piece.numbers) // piece.size
    for at, number in enumerate(np.frombuffer(piece.ids, "<i8").tolist()):
        yield Vector(number, base[at], true[at], piece.numbers[at * width : (at + 1) * width])


def _delete_pieces(connection: sql.Connection, head: str, seller: str, firsts: Sequence[int]) -> None:
    if firsts:
        connection.execute(_DELETE, {"head": head, "name": seller, "firsts": list(firsts)})


def _insert_pieces(
    connection: sql.Connection, head: str, seller: str, pieces: Sequence[tuple[int, Sequence[Vector]]]
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
        connection.execute(_INSERT, table)


_INSERT = sql.insert(VECTORS)
_DELETE = sql.delete(VECTORS).where(_OF_HEAD, VECTORS.c.first.in_(sql.bindparam("firsts", expanding=True)))
_FIRST_AT_MOST = sql.select(sql.func.max(VECTORS.c.first)).where(
    _OF_HEAD, VECTORS.c.first <= sql.bindparam("low", type_=ID)
)
_BETWEEN = (
    sql.select(VECTORS)
    .where(
        _OF_HEAD,
        VECTORS.c.first >= sql.bindparam("low", type_=ID),
        VECTORS.c.first <= sql.bindparam("high", type_=ID),
    )
    .order_by(VECTORS.c.first)
)
