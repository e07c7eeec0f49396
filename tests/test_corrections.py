"""The store of corrections and histories in memory; on PostgreSQL with `make test-databases`."""

import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql
from postgresql_server import Server

from features.errors import ShelfmarkError
from features.storage.paths import any_path
from models.corrections import sqlite_file, vectors
from models.corrections.correction import Added, Correction, History
from models.corrections.database import corrections_url
from models.corrections.histories import EACH, LEAST, Histories
from models.corrections.store import Corrections
from models.corrections.tables import BOTTLENECKS, SELLERS, VECTORS
from models.decisions.adapted import Adapter, Encoded, SellerState
from models.sellers.interface import Choice
from models.sellers.paper import PaperMethod
from models.sellers.styles import Styles
from models.sellers.votes import Votes, VotesMethod
from models.taxonomy import Taxonomy

HEAD, OTHER_HEAD, FINGERPRINT = "a" * 64, "b" * 64, "f" * 64
MONDAY = datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.databases)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/corrections.sqlite"
    server: Server = request.getfixturevalue("server")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[Corrections]:
    with closing(Corrections.open(url)) as opened:
        yield opened


def seen(number: float = 0.0, base: str = "pear", head: str = HEAD, evidence: float = 0.0) -> Encoded:
    """What a head sees of a product; its vector shows which one."""
    return Encoded(head, base, np.array([number, -number, 0.5], np.float16), evidence)


def row(
    seller: str, product: str, category: str = "apple", encoded: Encoded | None = None, **more: Any
) -> tuple[Correction, Encoded | None]:
    return Correction(seller, product, category, **more), encoded or seen()


def kept(number: float) -> dict[str, Any]:
    """Bottlenecks of two images."""
    return {"bottlenecks": np.full((2, 4), number, np.float16), "fingerprint": FINGERPRINT}


def said(history: History) -> list[tuple[float, str, str]]:
    """First number of the vector, base, true: of each correction of a history."""
    numbers = history.vectors[:, 0].tolist() if len(history.ids) else []
    return list(zip(numbers, history.base, history.true, strict=True))


# Adding and reading


def test_a_history_is_what_was_added_in_its_order(store: Corrections) -> None:
    added = store.add([row("ann", "p1", "apple", seen(1)), row("bob", "p1", "pear", seen(2, "fig")),
                       row("ann", "p2", "fig", seen(3, "kiwi"))])  # fmt: skip
    assert [one.state for one in added] == ["new"] * 3
    history = store.history("ann", HEAD)
    assert said(history) == [(1, "pear", "apple"), (3, "kiwi", "fig")]
    assert history.ids.tolist() == [added[0].id, added[2].id]
    assert history.vectors.dtype == np.float16 and history.vectors[1].tolist() == [3, -3, 0.5]
    assert (history.corrections, history.missing, history.flagged, history.set_aside) == (2, 0, None, None)
    assert said(store.history("bob", HEAD)) == [(2, "fig", "pear")]
    assert store.history("ann", OTHER_HEAD).missing == 2
    assert store.history("nobody", HEAD).revision == store.revision("nobody") == 0


def test_what_is_repeated_is_there_once_and_another_category_replaces(store: Corrections) -> None:
    (first,) = store.add([row("ann", "p", "apple", seen(1))])
    again, other, back = store.add(
        [
            row("ann", "p", "apple", seen(1)),
            row("ann", "p", "fig", seen(2)),
            row("ann", "p", "apple", seen(3)),
        ]
    )
    assert again == Added(first.id, "same")
    assert (other.state, back.state) == ("replaced", "replaced")
    assert said(store.history("ann", HEAD)) == [(3, "pear", "apple")]
    ended = [(one["id"], one["because"], one["ended"] is not None) for one in store.export("ann")]
    assert ended == [(first.id, "replaced", True), (other.id, "replaced", True), (back.id, None, False)]


def test_what_was_added_without_photos_takes_them_when_it_is_repeated(store: Corrections) -> None:
    (first,) = store.add([(Correction("ann", "p", "apple"), None)])
    assert store.history("ann", HEAD).missing == 1
    assert store.sellers()[0].without_vector == 1
    assert store.add([row("ann", "p", "apple", seen(4), **kept(1))]) == [Added(first.id, "same")]
    assert said(store.history("ann", HEAD)) == [(4, "pear", "apple")]
    assert store.sellers()[0].without_vector == 0


def test_what_another_head_saw_gets_the_vector_of_the_head_that_sees_it_again(store: Corrections) -> None:
    (first,) = store.add([row("ann", "p", "apple", seen(1, evidence=2.0), **kept(1))])
    later = row("ann", "p", "apple", seen(2, "fig", OTHER_HEAD, 3.0), **kept(1))
    before = store.revision("ann")
    assert store.add([later]) == [Added(first.id, "same")]
    assert store.revision("ann") > before
    assert said(store.history("ann", HEAD)) == [(1, "pear", "apple")]
    assert said(store.history("ann", OTHER_HEAD)) == [(2, "fig", "apple")]
    (exported,) = store.export("ann")
    assert (exported["base"], exported["evidence"], exported["fingerprint"]) == ("pear", 2.0, FINGERPRINT)
    with store._database.reading() as connection:  # evidence counts once
        assert connection.execute(sql.select(SELLERS.c.suspicion)).scalar() == 2.0
    before = store.revision("ann")
    assert store.add([later]) == [Added(first.id, "same")] and store.revision("ann") == before
    other = {"bottlenecks": np.ones((3, 6), np.float16), "fingerprint": "e" * 64}
    store.add([row("ann", "p", "apple", seen(4, "kiwi", "c" * 64), **other)])  # a head on another backbone
    assert said(store.history("ann", "c" * 64)) == [(4, "kiwi", "apple")]
    assert list(store.missing("d" * 64, FINGERPRINT)) == []
    ((again,),) = store.missing("d" * 64, "e" * 64)
    assert again.bottlenecks.shape == (3, 6)


def test_undone_corrections_are_in_use_no_more(store: Corrections) -> None:
    ids = [one.id for one in store.add([row("ann", f"p{n}", "apple", seen(n)) for n in range(3)])]
    assert store.undo([ids[1], ids[1], 10**9]) == 1
    assert store.undo([ids[1]]) == 0
    assert [number for number, _, _ in said(store.history("ann", HEAD))] == [0, 2]
    (account,) = store.sellers()
    assert (account.corrections, account.ended) == (2, 1)
    assert store.add([row("ann", "p1", "apple", seen(9))])[0].state == "new"


def test_all_columns_come_back(store: Corrections) -> None:
    store.add(
        [
            row(
                "Ann & søn ’%_",
                "p'1\"",
                "Früchte / Äpfel",
                seen(1, "pear", evidence=0.25),
                who="Bo",
                when=MONDAY,
                comment="see\nphoto",
                release="2026-W47",
                images=("00" * 32, "11" * 32),
                **kept(1),
            )
        ]
    )
    (one,) = store.export()
    assert one == {
        "id": 1, "seller": "Ann & søn ’%_", "product_id": "p'1\"", "category": "Früchte / Äpfel", "who": "Bo",
        "when": MONDAY, "comment": "see\nphoto", "release": "2026-W47", "images": ["00" * 32, "11" * 32],
        "fingerprint": FINGERPRINT, "base": "pear", "evidence": 0.25, "ended": None, "because": None,
    }  # fmt: skip
    zone = datetime.fromisoformat("2026-11-23T09:00:00+01:00")
    store.add([row("bob", "p", when=zone), row("bob", "q", when=MONDAY.replace(tzinfo=None))])
    assert [one["when"] for one in store.export("bob")] == [MONDAY, MONDAY]


def test_any_order_of_changes_leaves_what_a_plain_list_says(store: Corrections) -> None:
    """Against a dictionary: sellers with several pieces of vectors, of two heads, in any order."""
    chance, number = random.Random(20), 0
    plain: dict[tuple[str, str], tuple[int, str, dict[str, float]]] = {}  # → id, category, head → number
    for _ in range(40):
        what = chance.random()
        if what < 0.5:
            rows = []
            for _ in range(chance.randrange(1, 60)):
                number += 1
                seller, product = chance.choice("ab"), f"p{chance.randrange(150)}"
                rows.append(
                    row(seller, product, chance.choice(["apple", "fig"]), seen(number % 1000), **kept(1))
                )
            for (one, encoded), result in zip(rows, store.add(rows), strict=True):
                before = plain.get((one.seller, one.product_id))
                assert result.state == (
                    "new" if not before else "same" if before[1] == one.category else "replaced"
                )
                if result.state != "same":
                    assert encoded
                    vectors = {HEAD: float(encoded.vector[0])}
                    plain[one.seller, one.product_id] = result.id, one.category, vectors
        elif what < 0.75 and plain:
            gone = chance.sample(sorted(plain), min(len(plain), chance.randrange(1, 50)))
            assert store.undo([plain.pop(key)[0] for key in gone]) == len(gone)
        elif plain:
            some = chance.sample(sorted(plain), min(len(plain), 40))
            put = [(plain[key][0], seen(plain[key][0] % 1000, head=OTHER_HEAD)) for key in some]
            chance.shuffle(put)
            store.put_vectors(put)
            for key in some:
                plain[key][2][OTHER_HEAD] = plain[key][0] % 1000
        for seller in "ab":
            own = sorted(value for (name, _), value in plain.items() if name == seller)
            for head in (HEAD, OTHER_HEAD):
                history = store.history(seller, head)
                wanted = [(id_, category, of[head]) for id_, category, of in own if head in of]
                found = (
                    zip(history.ids.tolist(), history.true, history.vectors[:, 0].tolist(), strict=True)
                    if wanted
                    else []
                )
                assert list(found) == wanted
                assert (history.corrections, history.missing) == (len(own), len(own) - len(wanted))


def test_a_history_has_the_newest_corrections(store: Corrections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MOST", 70)
    store.add([row("ann", f"p{n}", "apple", seen(n)) for n in range(200)])
    history = store.history("ann", HEAD)
    assert [number for number, _, _ in said(history)] == list(range(130, 200))
    assert (history.corrections, history.missing) == (200, 0)


def test_revisions_rise_with_every_change_of_a_seller_and_with_no_other(store: Corrections) -> None:
    store.add([row("ann", "p"), row("bob", "p")])
    bob, revisions = store.revision("bob"), [store.revision("ann")]

    def changed() -> None:
        revisions.append(store.revision("ann"))

    (added,) = store.add([row("ann", "q", "fig")])
    changed()
    store.put_vectors([(added.id, seen(1, head=OTHER_HEAD))])
    changed()
    store.undo([added.id])
    changed()
    store.set_aside("ann", "test")
    changed()
    store.restore("ann")
    changed()
    store.flag("ann", "test")
    changed()
    store.delete_seller("ann")
    assert store.revision("ann") == 0
    store.add([row("ann", "p")])
    changed()
    assert revisions == sorted(set(revisions))
    store.add([row("ann", "p")])  # the same
    assert store.revision("ann") == revisions[-1]
    assert store.revision("bob") == bob


# Sellers


def test_evidence_flags_a_seller_and_restore_begins_anew(store: Corrections) -> None:
    store.add([row("ann", f"p{n}", encoded=seen(evidence=3.0)) for n in range(3)])
    store.add([row("bob", "p", encoded=seen(evidence=3.0))])
    assert store.history("ann", HEAD).flagged is None
    store.add([row("ann", "p0")] * 5)  # the same says nothing new
    assert store.history("ann", HEAD).flagged is None
    store.add([row("ann", "p3", encoded=seen(evidence=3.0))])
    flagged = store.history("ann", HEAD).flagged
    assert flagged and "evidence 12.0 of 11.5 after 4 corrections" in flagged
    store.restore("ann")
    assert store.history("ann", HEAD).flagged is None
    store.add([row("ann", "p4", encoded=seen(evidence=3.0))])
    assert store.history("ann", HEAD).flagged is None
    assert store.history("bob", HEAD).flagged is None


def test_sellers_are_set_aside_with_a_reason_and_restored(store: Corrections) -> None:
    store.add([row("ann", "p"), row("bob", "p")])
    assert store.in_use()
    store.set_aside("ann", "joked")
    store.flag("bob", "odd")
    assert [(one.seller, one.flagged, one.set_aside) for one in store.sellers()] == [
        ("ann", None, "joked"), ("bob", "odd", None)
    ]  # fmt: skip
    store.set_aside("bob", "too")
    assert not store.in_use()
    store.restore("ann")
    assert store.in_use() and store.history("ann", HEAD).set_aside is None
    for change in (store.restore, lambda name: store.flag(name, ""), lambda name: store.set_aside(name, "")):
        with pytest.raises(ShelfmarkError, match="no corrections of seller 'cid'; expected"):
            change("cid")


def test_labels_are_the_corrections_of_sellers_in_use_and_the_newest_is_the_last(store: Corrections) -> None:
    assert store.labels().columns.tolist() == ["product_id", "category", "seller", "when", "who", "id"]
    nothing = store.labels_digest()
    assert len(store.labels()) == 0
    later = MONDAY + timedelta(hours=1)
    store.add([row("ann", "p2", "apple", when=later), row("bob", "p2", "fig", when=MONDAY),
               row("ann", "p10", "kiwi", when=MONDAY, who="Bo"), row("cid", "p10", "fig", when=later),
               row("dan", "p1", "fig", when=later), row("ann", "p3", "fig"),
               row("bob", "é", "fig")])  # fmt: skip
    store.set_aside("cid", "test")
    store.flag("dan", "test")
    store.undo([one["id"] for one in store.export("ann") if one["product_id"] == "p3"])  # type: ignore[misc]
    labels = store.labels()
    assert labels[["product_id", "category", "seller", "who"]].values.tolist() == [
        ["p10", "kiwi", "ann", "Bo"], ["p2", "fig", "bob", None], ["p2", "apple", "ann", None],
        ["é", "fig", "bob", None],
    ]  # fmt: skip
    assert labels["when"][2] == later
    digest = store.labels_digest()
    assert digest != nothing
    store.restore("dan")
    assert store.labels_digest() != digest
    store.flag("dan", "test")
    assert store.labels_digest() == digest


# Heads


def test_a_new_head_gets_what_it_lacks_and_old_vectors_go(store: Corrections) -> None:
    rows = [row("ann", f"p{n}", "apple", seen(n), **kept(n)) for n in range(200)]
    other = {"bottlenecks": np.ones((1, 4), np.float16), "fingerprint": "another"}
    rows += [
        row("ann", "foreign", "fig", seen(1), **other),
        row("ann", "bare", "fig"),
        row("bob", "p", **kept(7)),
    ]
    ids = [one.id for one in store.add(rows)]
    assert list(store.missing(HEAD, FINGERPRINT)) == []
    store.undo(ids[:1])
    found = [one for piece in store.missing(OTHER_HEAD, FINGERPRINT) for one in piece]
    assert [one.id for one in found] == ids[1:200] + ids[-1:]
    assert found[4].bottlenecks.tolist() == np.full((2, 4), 5).tolist()
    assert (found[4].seller, found[4].category, found[4].bottlenecks.dtype) == ("ann", "apple", np.float16)
    store.put_vectors([(one.id, seen(one.bottlenecks[0, 0], head=OTHER_HEAD)) for one in found[:50]])
    store.put_vectors([(ids[0], seen(0, head=OTHER_HEAD))])  # it was undone
    assert len(store.history("ann", OTHER_HEAD).ids) == 50
    rest = [one for piece in store.missing(OTHER_HEAD, FINGERPRINT) for one in piece]
    assert [one.id for one in rest] == [one.id for one in found[50:]]
    store.put_vectors([(one.id, seen(one.bottlenecks[0, 0], head=OTHER_HEAD)) for one in rest])
    history = store.history("ann", OTHER_HEAD)
    assert [number for number, _, _ in said(history)] == list(range(1, 200))
    assert (history.corrections, history.missing) == (201, 2)
    assert store.forget_vectors([OTHER_HEAD]) == 202
    assert len(store.history("ann", HEAD).ids) == 0
    assert len(store.history("ann", OTHER_HEAD).ids) == 199


# Deleting


def test_a_deleted_seller_leaves_nothing(store: Corrections) -> None:
    store.add([row("ann", f"p{n}", "apple", seen(n), **kept(n)) for n in range(300)])
    store.add([row("bob", f"p{n}", "fig", seen(n), **kept(n)) for n in range(3)])
    store.undo([1, 2])
    assert store.delete_seller("ann") == 300
    assert store.delete_seller("ann") == 0
    assert [one["seller"] for one in store.export()] == ["bob"] * 3
    assert [one.seller for one in store.sellers()] == ["bob"]
    assert len(store.history("ann", HEAD).ids) == 0 and len(store.history("bob", HEAD).ids) == 3
    with store._database.reading() as connection:
        counts = [
            connection.execute(sql.select(sql.func.count()).select_from(table)).scalar_one()
            for table in (VECTORS, BOTTLENECKS, SELLERS)
        ]
    assert counts == [1, 3, 1]


def test_no_byte_of_a_deleted_seller_is_in_the_files(tmp_path: Path) -> None:
    """Others came before, between and after, so that pages were divided; one of them reads."""
    file, chance = tmp_path / "corrections.sqlite", random.Random(3)
    with closing(Corrections.open(f"sqlite:///{file}")) as store:
        rows = []
        for n in range(1500):
            seller = chance.choice(["secret seller", "ann", "bob", "cid"])
            mark = f"{seller} {chance.randrange(10**9)}"
            vector = np.frombuffer(
                (b"secret vector!!!" if seller[0] == "s" else b"vector of others") * 4, np.float16
            )
            rows.append((
                Correction(seller, f"{mark} product {n}", f"{mark} category", who=f"{mark} who",
                           comment=f"{mark} comment" * 9, images=(f"{mark} image",),
                           bottlenecks=np.tile(vector, (3, 2)), fingerprint=FINGERPRINT),
                Encoded(HEAD, f"{mark} base", vector, 0.0),
            ))  # fmt: skip
        for start in range(0, len(rows), 100):
            added = store.add(rows[start : start + 100])
            store.undo([one.id for one in added if chance.random() < 0.1])
        with store._database.reading() as reader:  # one who reads while it is deleted, and ends
            reader.execute(sql.text("SELECT count(*) FROM corrections")).scalar()
            threading.Timer(0.3, reader.close).start()
            others = {name: said(store.history(name, HEAD)) for name in ("ann", "bob", "cid")}
            assert b"secret" in everything(file)
            assert store.delete_seller("secret seller") == sum(one.seller[0] == "s" for one, _ in rows)
        assert b"ann" in everything(file)
        assert b"secret" not in everything(file)
        assert {name: said(store.history(name, HEAD)) for name in others} == others
        store.add([row("ann", "new")])
        assert b"secret" not in everything(file)
    assert b"secret" not in everything(file)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def everything(file: Path) -> bytes:
    """The bytes of a SQLite file and its WAL, read by another process: one that closes it loses its locks."""
    command = f"cat '{file}' '{file}-wal' 2> /dev/null || true"
    return subprocess.run(command, shell=True, capture_output=True, check=True).stdout


def test_others_write_while_a_seller_is_deleted_and_lose_nothing(tmp_path: Path) -> None:
    url, acknowledged = f"sqlite:///{tmp_path}/c.sqlite", tmp_path / "acknowledged"
    acknowledged.touch()
    products = [f"p{n}" for n in range(150)]
    # no fork: the child may wait for a lock that a thread has held here
    writer = multiprocessing.get_context("spawn").Process(
        target=add_one_by_one, args=(url, "ann", products, acknowledged)
    )
    writer.start()
    with closing(Corrections.open(url)) as store:
        deleted = 0
        while writer.exitcode is None or deleted == 0:
            store.add([row("bob", f"p{n}", encoded=seen(n), **kept(n)) for n in range(100)])
            assert store.delete_seller("bob") == 100
            deleted += 1
        assert writer.exitcode == 0 and len(acknowledged.read_text().splitlines()) == 150
        history = store.history("ann", HEAD)
        assert [number for number, _, _ in said(history)] == list(range(150))
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Opening


def test_it_is_there_after_it_was_closed(url: str) -> None:
    with closing(Corrections.open(url)) as store:
        store.add([row("ann", "p", "apple", seen(1))])
    with closing(Corrections.open(url)) as store:
        assert said(store.history("ann", HEAD)) == [(1, "pear", "apple")]


def test_many_who_open_a_new_one_at_once_all_succeed(url: str) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_and_add, args=(url, f"seller {n}")) for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    with closing(Corrections.open(url)) as store:
        assert len(store.sellers()) == 6


def open_and_add(url: str, seller: str) -> None:
    with closing(Corrections.open(url)) as store:
        store.add([row(seller, "p")])


def test_tables_of_a_newer_version_are_refused(url: str) -> None:
    with closing(Corrections.open(url)) as store, store._database._writes.begin() as connection:
        connection.execute(sql.text("UPDATE corrections_version SET version = 99"))
    with pytest.raises(
        ShelfmarkError, match=r"corrections of a newer shelfmark \(tables 99\); expected 1 at most; use"
    ):
        Corrections.open(url)


def test_files_that_are_no_corrections_are_one_line(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE shop (id)")
    before = foreign.read_bytes()
    with pytest.raises(
        ShelfmarkError, match=r"foreign.db: a database of something else; expected .*; give another"
    ):
        Corrections.open(f"sqlite:///{foreign}")
    assert foreign.read_bytes() == before
    text = tmp_path / "text.sqlite"
    text.write_text("not a database" * 1000)
    with pytest.raises(
        ShelfmarkError, match=r"text\.sqlite: file is not a database; expected corrections as they were"
    ):
        Corrections.open(f"sqlite:///{text}")
    with pytest.raises(ShelfmarkError, match="unable to open database file; expected a file in a directory"):
        Corrections.open(f"sqlite:///{tmp_path}/missing/corrections.sqlite")


def test_a_damaged_file_is_one_line_when_its_pages_are_read(tmp_path: Path) -> None:
    file = tmp_path / "corrections.sqlite"
    with closing(Corrections.open(f"sqlite:///{file}")) as store:
        store.add([row("ann", f"p{n}", **kept(n)) for n in range(200)])
    whole = bytearray(file.read_bytes())
    whole[sqlite_file.PAGE * 2 :] = b"\xff" * (len(whole) - sqlite_file.PAGE * 2)
    file.write_bytes(whole)
    with (
        pytest.raises(
            ShelfmarkError, match="malformed; expected corrections as they were written; stop the services"
        ),
        closing(Corrections.open(f"sqlite:///{file}")) as store,
    ):
        list(store.export())
        store.history("ann", HEAD)


@pytest.mark.parametrize("change", ["moved", "deleted", "replaced"])
def test_nothing_goes_into_a_file_that_is_not_there_any_more(tmp_path: Path, change: str) -> None:
    file, backup = tmp_path / "corrections.sqlite", tmp_path / "backup.sqlite"
    with closing(Corrections.open(f"sqlite:///{backup}")) as store:
        store.add([row("ann", "p", "fig")])
    with closing(Corrections.open(f"sqlite:///{file}")) as store:
        (first,) = store.add([row("ann", "p", "apple")])
        if change == "deleted":
            file.unlink()
        else:
            file.rename(tmp_path / "away.sqlite")
        if change == "replaced":
            backup.rename(file)
        before = file.read_bytes() if change == "replaced" else None
        for use in (
            lambda: store.add([row("ann", "q", "kiwi")]),
            lambda: store.undo([first.id]),
            lambda: store.delete_seller("ann"),
            lambda: store.history("ann", HEAD),
        ):
            with pytest.raises(
                ShelfmarkError,
                match=r"corrections\.sqlite: is not the file that was opened; expected it to stay while "
                r"services and commands run; restart the service",
            ):
                use()
        assert file.exists() == (change == "replaced") and (not before or file.read_bytes() == before)
    with closing(Corrections.open(f"sqlite:///{file}")) as store:
        assert store.add([row("ann", "q", "kiwi")])[0].state == "new"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mysql://host/shop", "no database for corrections; expected sqlite:///FILE or postgresql"),
        ("sqlite://", "no database for corrections"),
        ("corrections.sqlite", "no database for corrections"),
        ("postgresql://ann:secret@host:port/shop", "not the URL of a database"),
    ],
)
def test_urls_that_are_none_are_one_line_without_the_password(text: str, expected: str) -> None:
    with pytest.raises(ShelfmarkError, match=expected) as error:
        Corrections.open(text)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seller": ""}, "its seller is empty; expected a text of 1 to 1,000 bytes"),
        ({"product_id": "p\0"}, "its product_id holds NUL or half a character"),
        ({"category": "\ud800"}, "its category holds NUL or half a character"),
        ({"seller": "a\nb"}, "its seller holds control characters, such as a new line"),
        ({"comment": "é" * 5001}, "its comment is 10,002 bytes; expected a text of 0 to 10,000 bytes"),
    ],
)
def test_texts_that_no_database_takes_are_refused_and_nothing_is_added(
    changed: dict[str, str], expected: str, tmp_path: Path
) -> None:
    with closing(Corrections.open(f"sqlite:///{tmp_path}/c.sqlite")) as store:
        wrong = Correction(**({"seller": "ann", "product_id": "p", "category": "fig"} | changed))
        with pytest.raises(ShelfmarkError, match=expected):
            store.add([row("ann", "good"), (wrong, None)])
        assert list(store.export()) == []


def test_a_workspace_has_its_file_unless_a_database_is_given(tmp_path: Path) -> None:
    odd = tmp_path / "a b?c#d%20é"
    odd.mkdir()
    with closing(Corrections.open(corrections_url(odd, ""))) as store:
        store.add([row("ann", "p")])
    assert [one.name for one in odd.iterdir()] == ["corrections.sqlite"]
    assert corrections_url(any_path("s3://shop/w"), "postgresql://host/shop") == "postgresql://host/shop"
    with pytest.raises(ShelfmarkError, match="cannot be kept in an object store; expected a database"):
        corrections_url(any_path("s3://shop/w"), "")


# Many at once, and kills


def add_one_by_one(url: str, seller: str, products: list[str], acknowledged: Path) -> None:
    """A client: what is acknowledged is noted, and not sent again."""
    with closing(Corrections.open(url)) as store, open(acknowledged, "a") as notes:
        done = {
            line.split()[0]
            for line in acknowledged.read_text().splitlines(keepends=True)
            if line[-1:] == "\n"
        }
        for number, product in enumerate(products):
            if product not in done:
                (added,) = store.add([row(seller, product, "apple", seen(number), **kept(number))])
                notes.write(f"{product} {added.id}\n")
                notes.flush()


@pytest.mark.parametrize("count", [160, pytest.param(1000, marks=pytest.mark.slow)])
def test_after_kills_every_acknowledged_correction_is_there_once(
    url: str, count: int, tmp_path: Path
) -> None:
    """Four writers, two of them of the same seller, are killed again and again."""
    context, chance = multiprocessing.get_context("fork"), random.Random(20)
    work = [
        (url, ["ann", "ann", "bob", "cid"][writer], [f"{writer}-{n}" for n in range(count // 4)],
         tmp_path / f"acknowledged-{writer}")
        for writer in range(4)
    ]  # fmt: skip
    running = [context.Process(target=add_one_by_one, args=one) for one in work]
    for process in running:
        process.start()
    kills = 0
    while living := [writer for writer in range(4) if running[writer].exitcode is None]:
        time.sleep(0.01 + 0.04 * chance.random())
        if kills < 16:
            victim = chance.choice(living)
            if running[victim].exitcode is None:
                os.kill(running[victim].pid or 0, signal.SIGKILL)
                kills += 1
            running[victim].join()
            if running[victim].exitcode:
                running[victim] = context.Process(target=add_one_by_one, args=work[victim])
                running[victim].start()
    assert [process.exitcode for process in running] == [0] * 4
    assert kills >= 2
    with closing(Corrections.open(url)) as store:
        found = {(one["product_id"], one["id"]) for one in store.export()}
        assert len(found) == len(list(store.export())) == count // 4 * 4
        for _, _, products, file in work:
            acknowledged = {tuple(line.split()) for line in file.read_text().splitlines()}
            assert {product for product, _ in acknowledged} == set(products)
            assert {(product, int(number)) for product, number in acknowledged} <= found
        for seller, wanted in (("ann", count // 2), ("bob", count // 4), ("cid", count // 4)):
            history = store.history(seller, HEAD)
            assert (history.corrections, len(history.ids), history.missing) == (wanted, wanted, 0)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_two_writers_and_readers_lose_nothing_and_see_whole_changes(url: str, store: Corrections) -> None:
    """Each change of a writer is a pair of products: no reader sees one without the other."""
    done, seen_sizes = threading.Event(), set()

    def write(store: Corrections, seller: str) -> None:
        for n in range(30):
            store.add([row(seller, f"{n}-{half}", "fig", seen(n)) for half in "ab"])

    def read() -> None:
        while not done.is_set():
            history = store.history("ann", HEAD)
            assert len(history.ids) % 2 == 0 and len(history.ids) == history.corrections
            seen_sizes.add(history.corrections)

    def reading() -> None:
        try:
            read()
        except BaseException as error:  # a thread's error would be lost
            errors.append(error)

    errors: list[BaseException] = []
    with closing(Corrections.open(url)) as other:
        writers = [threading.Thread(target=write, args=pair) for pair in ((store, "ann"), (other, "bob"))]
        readers = [threading.Thread(target=reading) for _ in range(20)]
        for thread in [*readers, *writers]:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
    assert errors == [] and len(seen_sizes) > 2
    assert [one.corrections for one in store.sellers()] == [60, 60]


def test_one_who_adds_thousands_lets_others_in_between(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/c.sqlite"
    with closing(Corrections.open(url)) as store, closing(Corrections.open(url)) as other:
        bulk = threading.Thread(target=store.add, args=([row("ann", f"p{n}") for n in range(2000)],))
        bulk.start()
        while other.history("ann", HEAD).corrections == 0:
            time.sleep(0.001)
        counts = []
        for n in range(5):
            other.add([row("bob", f"p{n}")])
            counts.append(other.history("ann", HEAD).corrections)
        bulk.join()
        assert max(counts) < 2000, "the one waited for the thousands"
        assert [one.corrections for one in store.sellers()] == [2000, 5]


# Histories in memory


class FakeAdapter:
    """Makes states that say what they were made of."""

    rules = SimpleNamespace(model=HEAD)
    categorizer = SimpleNamespace(
        predictor=SimpleNamespace(head=SimpleNamespace(shape=SimpleNamespace(fingerprint=FINGERPRINT)))
    )

    def __init__(self) -> None:
        self.made: list[list[str]] = []  # true categories of each state that was made of all corrections
        self.more: list[list[str]] = []  # of each that was made of the one before, the newer ones alone
        self.waits: dict[str, threading.Event] = {}

    def encode(self, bottlenecks: np.ndarray, bounds: np.ndarray, claimed: list[str]) -> list[Encoded]:
        means = [bottlenecks[a:b].mean() for a, b in itertools.pairwise(bounds)]
        assert bounds[-1] == len(bottlenecks) and len(means) == len(claimed)
        return [seen(mean, base=f"base of {name}") for mean, name in zip(means, claimed, strict=True)]

    def state(
        self, vectors: np.ndarray, base: list[str], true: list[str], corrections: int, flagged: bool
    ) -> SellerState:
        self.made.append(list(true))
        if true and true[0] in self.waits:
            self.waits[true[0]].wait(30)
        model: Any = list(zip(vectors[:, 0].tolist() if true else [], base, true, strict=True))
        return SellerState(model, corrections, flagged)

    def state_with(
        self,
        before: SellerState,
        vectors: np.ndarray,
        base: list[str],
        true: list[str],
        corrections: int,
        flagged: bool,
    ) -> SellerState:
        self.more.append(list(true))
        model: Any = [*before.model, *zip(vectors[:, 0].tolist() if true else [], base, true, strict=True)]  # type: ignore[misc]
        return SellerState(model, corrections, flagged)


@pytest.fixture
def adapter() -> Any:
    return FakeAdapter()


def test_a_state_follows_every_change_also_of_others(url: str, store: Corrections, adapter: Any) -> None:
    histories = Histories(adapter, store)
    assert histories.state("ann") is None
    with closing(Corrections.open(url)) as other:
        other.add([row("ann", "p", "fig", seen(1))])
        state = histories.state("ann")
        assert state and (state.model, state.corrections, state.flagged) == ([(1, "pear", "fig")], 1, False)
        assert histories.state("ann") is state and len(adapter.made) == 1
        other.add([(Correction("ann", "q", "kiwi"), None), row("bob", "q", "fig", seen(2))])
        assert (grown := histories.state("ann")) and (grown.corrections, len(grown.model)) == (2, 1)  # type: ignore[arg-type]
        other.flag("ann", "test")
        assert (flagged := histories.state("ann")) and flagged.flagged
        other.set_aside("ann", "test")
        assert histories.state("ann") is None and histories.state("ann") is None
        assert histories.state("bob") is not None
        other.restore("ann")
        assert (restored := histories.state("ann")) and not restored.flagged
        other.delete_seller("ann")
        assert histories.state("ann") is None
        other.add([row("ann", "p", "kiwi", seen(3))])
        assert (back := histories.state("ann")) and back.model == [(3, "pear", "kiwi")]
        other.undo([one["id"] for one in other.export("ann")])  # type: ignore[misc]
        assert histories.state("ann") is None


def test_after_additions_the_newer_ones_alone_are_read(
    store: Corrections, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "MOST", 110)
    histories = Histories(adapter, store)

    def steps() -> tuple[int, list[list[str]]]:
        """States made of all corrections, and the newer ones of the others, since the last call."""
        state, history = histories.state("ann"), store.history("ann", HEAD)
        assert (state.model if state else None) == (None if history.set_aside else said(history))
        if state:
            assert (state.corrections, state.flagged) == (history.corrections, history.flagged is not None)
        found = len(adapter.made), adapter.more[:]
        adapter.made.clear()
        adapter.more.clear()
        return found

    added = store.add([row("ann", f"p{n}", "fig", seen(n)) for n in range(50)])
    assert steps() == (1, [])
    store.add([row("ann", f"q{n}", f"new {n}", seen(n)) for n in range(40)])
    assert steps() == (0, [[f"new {n}" for n in range(40)]])
    store.add([row("bob", "p"), (Correction("ann", "bare", "fig"), None)])
    assert steps() == (0, [[]])
    store.flag("ann", "test")
    assert steps() == (0, [[]])
    store.add([row("ann", "r", "kiwi", seen(3))])
    assert steps() == (0, [["kiwi"]])
    store.undo([added[0].id])
    assert steps() == (1, [])
    store.add([row("ann", "p1", "plum", seen(4))])  # replaces
    assert steps() == (1, [])
    (late,) = store.add([(Correction("ann", "late", "fig"), None)])
    store.add([row("ann", "s", "kiwi", seen(5))])
    store.undo([added[2].id])
    store.put_vectors([(late.id, seen(6))])  # as many as before, but not the same
    assert steps() == (1, [])
    store.set_aside("ann", "test")
    assert steps() == (0, [])
    store.restore("ann")
    assert steps() == (1, [])
    store.add([row("ann", f"t{n}", "kiwi", seen(n)) for n in range(19)])
    assert steps() == (0, [["kiwi"] * 19]) and len(store.history("ann", HEAD).ids) == 110
    store.add([row("ann", "u", "kiwi", seen(5))])
    assert steps() == (1, [])
    store.delete_seller("ann")
    assert histories.state("ann") is None


@pytest.mark.parametrize("method", ["votes", "paper"])
def test_a_state_made_of_the_one_before_is_that_of_the_whole_history(method: str, tmp_path: Path) -> None:
    chance = np.random.default_rng(20)
    names = np.array([f"c{n}" for n in range(6)], dtype=object)
    styles = Styles(chance.normal(size=(15, 24)).astype(np.float32), np.array([0, 3, 6, 9, 12, 15, 15]))
    categorizer: Any = SimpleNamespace(
        predictor=SimpleNamespace(model=HEAD, taxonomy=Taxonomy(names, names[:, None]))
    )
    rules: Any = SimpleNamespace(model=HEAD)
    adapter = Adapter(categorizer, rules, VotesMethod(Votes()) if method == "votes" else PaperMethod(styles))
    asked = [(chance.normal(size=24).astype(np.float32), chance.normal(size=6)) for _ in range(30)]

    def choices(state: SellerState | None) -> list[Choice]:
        return [state.model.predict(*one) for one in asked] if state else []

    with closing(Corrections.open(f"sqlite:///{tmp_path}/c.sqlite")) as store:
        histories, added, seen_before = Histories(adapter, store), 0, []
        for count in (3, 1, 1, 40, 1, 7, 90, 1):
            rows = []
            for _ in range(count):
                base, true = (str(name) for name in chance.choice([*names, "unknown"], 2))
                encoded = Encoded(HEAD, base, chance.normal(size=24).astype(np.float16), 0.0)
                rows.append(row("ann", f"p{added}", true, encoded))
                added += 1
            store.add(rows)
            state = histories.state("ann")
            seen_before.append((state, choices(state)))
            assert choices(state) == choices(Histories(adapter, store).state("ann"))
        assert all(choices(state) == before for state, before in seen_before), "an earlier state has changed"
        assert len({tuple(before) for _, before in seen_before}) > 4


def test_a_state_follows_an_older_copy_that_is_restored_in_place(tmp_path: Path, adapter: Any) -> None:
    file, copy = tmp_path / "corrections.sqlite", tmp_path / "copy.sqlite"
    with closing(Corrections.open(f"sqlite:///{file}")) as store:
        store.add([row("ann", "p", "fig", seen(1))])
        histories = Histories(adapter, store)
        with closing(sqlite3.connect(file)) as opened, closing(sqlite3.connect(copy)) as target:
            opened.backup(target)
        store.add([row("ann", "p", "kiwi", seen(2)), row("ann", "q", "apple", seen(3))])
        newest = store.revision("ann")
        assert (state := histories.state("ann")) and len(state.model) == 2  # type: ignore[arg-type]
        with closing(sqlite3.connect(copy)) as source, closing(sqlite3.connect(file)) as opened:
            source.backup(opened)
        assert store.revision("ann") < newest
        assert (state := histories.state("ann")) and state.model == [(1, "pear", "fig")]


def test_memory_is_bounded_and_the_ones_used_last_stay(tmp_path: Path, adapter: Any) -> None:
    with closing(Corrections.open(f"sqlite:///{tmp_path}/c.sqlite")) as store:
        store.add([row(f"s{seller}", f"p{n}", f"s{seller}") for seller in range(6) for n in range(10)])
        size = EACH + 10 * LEAST
        histories = Histories(adapter, store, budget_bytes=3 * size)
        for seller in (0, 1, 2, 0, 3, 0, 4, 0):
            histories.state(f"s{seller}")
        assert [true[0] for true in adapter.made] == ["s0", "s1", "s2", "s3", "s4"]
        assert histories.bytes == 3 * size
        histories.state("s3")
        histories.state("s1")
        assert [true[0] for true in adapter.made[5:]] == ["s1"]
        small = Histories(adapter, store, budget_bytes=size - 1)  # a seller may be larger than that
        assert small.state("s5") is not None and small.bytes == 0


def test_one_seller_holds_up_no_other_and_is_made_once(tmp_path: Path, adapter: Any) -> None:
    with closing(Corrections.open(f"sqlite:///{tmp_path}/c.sqlite")) as store:
        store.add([row("slow", "p", "slow"), row("ann", "p", "fig")])
        histories, found = Histories(adapter, store), []
        adapter.waits["slow"] = threading.Event()
        waiting = [threading.Thread(target=lambda: found.append(histories.state("slow"))) for _ in range(8)]
        for thread in waiting:
            thread.start()
        while ["slow"] not in adapter.made:
            time.sleep(0.001)
        assert histories.state("ann") is not None
        assert found == []
        adapter.waits["slow"].set()
        for thread in waiting:
            thread.join()
        assert len({id(state) for state in found}) == 1 and len(found) == 8
        assert adapter.made.count(["slow"]) == 1


def test_learning_encodes_what_the_backbone_has_seen_and_carrying_the_rest(
    store: Corrections, adapter: Any
) -> None:
    histories = Histories(adapter, store)
    foreign = {"bottlenecks": np.ones((1, 4), np.float16), "fingerprint": "another"}
    added = histories.learn([
        Correction("ann", "p1", "fig", **kept(1)), Correction("ann", "p2", "fig"),
        Correction("ann", "p3", "fig", **foreign), Correction("ann", "p4", "kiwi", **kept(4)),
    ])  # fmt: skip
    assert [one.state for one in added] == ["new"] * 4
    history = store.history("ann", HEAD)
    assert said(history) == [(1, "base of fig", "fig"), (4, "base of kiwi", "kiwi")]
    assert (history.corrections, history.missing) == (4, 2)
    adapter.rules = SimpleNamespace(model=OTHER_HEAD)  # a new release
    adapter.encode = lambda *given: [
        Encoded(OTHER_HEAD, one.base, one.vector * 2, 5.0) for one in FakeAdapter.encode(adapter, *given)
    ]
    assert (carried := Histories(adapter, store)).carry() == 2
    statements: list[str] = []

    def count(*given: Any) -> None:
        statements.append(given[2])

    sql.event.listen(store._database._reads, "before_cursor_execute", count)
    assert carried.carry() == 0
    assert len([one for one in statements if one.startswith("SELECT")]) <= 4
    sql.event.remove(store._database._reads, "before_cursor_execute", count)
    assert said(store.history("ann", OTHER_HEAD)) == [(2, "base of fig", "fig"), (8, "base of kiwi", "kiwi")]
    assert store.history("ann", OTHER_HEAD).flagged is None  # evidence counts once, when it is made
    assert carried.learn([]) == []
