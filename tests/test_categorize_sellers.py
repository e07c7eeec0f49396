"""Categorize with sellers' corrections: kept once, columns in every format, what is decided again."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from catalogues import HTML, Drawn, documents, draw_products, manifest_rows, photo, write_bson, write_manifest
from conftest import make_bundle
from corrected import adapter_of, learn, store_of
from test_categorize import CONFIG, Kill, Saved
from test_extract import Running
from test_ingest import in_a_loop
from test_once import Held

from features.errors import ShelfmarkError
from features.storage.store import Digests, Store
from models.corrections.correction import Correction
from models.corrections.known_photos import known_photos
from models.corrections.store import Corrections
from models.decisions.adapted import ADAPTED_COLUMNS
from models.decisions.bundle import open_bundle
from models.decisions.categorizer import COLUMNS
from pipeline.categorize import decide, keep_images, read_units, sellers, sort_rows
from pipeline.categorize.categorize import categorize
from pipeline.extract import fill_store as shards_module
from pipeline.job.config import RetentionSettings
from pipeline.job.decisions_file import WITH_ADAPTED, read_decisions
from pipeline.job.decisions_output import decisions_source
from pipeline.job.decisions_table import DecisionsTable
from pipeline.release.clean import clean

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
PRODUCTS = draw_products({"": 24})
PRODUCTS[7] = replace(PRODUCTS[7], pictures=(HTML,))
NAMES = ["ann", "bob", ""]


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with a backbone of mean colours, and many small parts."""
    monkeypatch.setattr(read_units, "run_units", in_a_loop)
    monkeypatch.setattr(shards_module, "choose_engine", lambda backbone, batch, *_: Running(backbone, batch))
    monkeypatch.setattr(sort_rows, "PART_ROWS", 10)
    monkeypatch.setattr(sort_rows, "PIECE_ROWS", 25)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Held:
    """A bundle without adapter."""
    path = tmp_path_factory.mktemp("bundle") / "week"
    artifact = make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    return Held(open_bundle(path).categorizer, path, artifact.digest)


def seller_of(product: Drawn) -> str:
    return NAMES[int(product.id) % len(NAMES)]


@dataclass
class Shop:
    """A workspace, its corrections, and a source of 24 products of ann, bob and nobody."""

    folder: Path
    bundle: Held
    corrections: Corrections
    source: str

    @property
    def workspace(self) -> Path:
        return self.folder / "W"

    def batch(self, name: str = "d.parquet", source: str | None = None, **more: Any) -> pd.DataFrame:
        """Categorizes; the decisions by product."""
        output = name if "://" in name else f"{self.folder}/{name}"
        bundle = more.pop("bundle", self.bundle)
        store = self.workspace / "store"
        self.counts = categorize([source or self.source], bundle, store, output, CONFIG, **more)
        found = pd.concat(
            table.to_pandas() for table in read_decisions(decisions_source(output), WITH_ADAPTED.names)
        )
        return found.sort_values("product_id").set_index("product_id", drop=False)

    def correct(self, seller: str, categories: dict[str, str]) -> list[int]:
        """Makes corrections of products that the store knows."""
        store = Store(self.workspace / "store" / self.bundle.fingerprint)
        photos = known_photos(self.workspace, None, set(categories))
        rows = {}
        for product, category in categories.items():
            found = store.find(Digests(np.frombuffer(b"".join(photos[product]), np.uint8).reshape(-1, 32)))
            rows[product] = category, store.rows(found.names, found.shard, found.row)[:]
        assert self.bundle.adapter
        return learn(self.corrections, self.bundle.adapter, seller, rows)

    def correct_ann(self, decisions: pd.DataFrame) -> list[int]:
        """Says of five products of ann that they are something else."""
        five = [one.id for one in PRODUCTS if seller_of(one) == "ann" and one.id != "7"][:5]
        wrong = {one: "milk" if decisions.loc[one, "category"] != "milk" else "oats" for one in five}
        return self.correct("ann", wrong)

    def photos(self) -> pd.DataFrame:
        [file] = self.workspace.glob("categorize/*/images.parquet")
        return pd.read_parquet(file)


def manifest(folder: Path, products: list[Drawn], sellers: dict[str, list[str]] | None = None) -> str:
    """A manifest; `sellers` of a product's rows, where they are not all `seller_of`."""
    rows = manifest_rows(folder, products)
    left = {one.id: list((sellers or {}).get(one.id, [])) for one in products}
    names = {one.id: seller_of(one) for one in products}
    for row in rows:
        its = left[row["product_id"]]
        row["seller"] = its.pop(0) if its else names[row["product_id"]]
    order = np.random.default_rng(0).permutation(len(rows))
    return str(write_manifest(folder / "shop.csv", [rows[at] for at in order]))


@pytest.fixture
def shop(tmp_path: Path, plain: Held) -> Iterator[Shop]:
    bundle = replace(plain, adapter=adapter_of(plain.categorizer))
    source = manifest(tmp_path / "shop", PRODUCTS)
    opened = Shop(tmp_path, bundle, store_of(tmp_path / "W"), source)
    yield opened
    opened.corrections.close()


def test_without_corrections_in_use_nothing_depends_on_sellers(shop: Shop, plain: Held) -> None:
    nameless = manifest(shop.folder / "nameless", PRODUCTS, {one.id: [""] * 9 for one in PRODUCTS})
    decisions = shop.batch(bundle=plain, source=nameless)
    wanted = (shop.folder / "d.parquet").read_bytes()
    assert list(pd.read_parquet(shop.folder / "d.parquet")) == list(COLUMNS)
    shop.batch("unused.parquet")
    shop.correct_ann(decisions)
    shop.batch("no-adapter.parquet", bundle=plain)
    shop.corrections.set_aside("ann", "test")
    shop.batch("set-aside.parquet")
    for name in ("unused", "no-adapter", "set-aside"):
        assert (shop.folder / f"{name}.parquet").read_bytes() == wanted, name


def test_products_of_a_corrected_seller_alone_are_adapted_and_counted(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    before = shop.batch()
    shop.correct_ann(before)
    caplog.set_level("INFO", "shelfmark")
    after = shop.batch("e.parquet")
    ann = np.array([NAMES[int(one) % 3] == "ann" for one in after.index])
    pd.testing.assert_frame_equal(after.loc[~ann, list(COLUMNS)], before.loc[~ann, list(COLUMNS)])
    assert (after["corrections"] == np.where(ann & (after["status"] != "unreadable"), 5, 0)).all()
    assert after.loc["7", list(ADAPTED_COLUMNS)].fillna("").tolist() == [False, "", 0], "unreadable"
    assert f"adapted {after['adapted'].sum()}\n" in caplog.text and after["adapted"].sum() > 0
    assert "sellers: 5 corrections of 1 sellers are in use" in caplog.text
    assert sum(shop.counts.values()) == 24


def test_sellers_that_do_not_fit_into_memory_together_decide_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.batch()
    shop.correct_ann(before)
    shop.correct("bob", {"1": "soap", "4": "soap"})
    together = shop.batch("e.parquet")
    monkeypatch.setattr(sellers, "AT_ONCE", 1)
    pd.testing.assert_frame_equal(shop.batch("f.parquet"), together)
    assert set(together["corrections"]) == {0, 2, 5}


def test_a_product_whose_rows_disagree_has_the_most_common_seller(shop: Shop) -> None:
    before = shop.batch()
    shop.correct_ann(before)
    three, two = "2", "4"  # with three and two photos
    given = {
        three: ["bob", "ann", "ann"],
        two: ["bob", "ann"],
        "5": ["zoe", "bob", "ann"],
        "8": ["", "", "ann"],
    }
    found = shop.batch("e.parquet", source=manifest(shop.folder / "mixed", PRODUCTS, given))
    assert [found.loc[one, "corrections"] for one in given] == [5, 5, 5, 5], (
        "the first in the alphabet; given"
    )
    other = {three: ["bob", "bob", "ann"], two: ["zoe", "bob"]}
    found = shop.batch("f.parquet", source=manifest(shop.folder / "other", PRODUCTS, other))
    assert [found.loc[one, "corrections"] for one in other] == [0, 0]


def test_sellers_come_from_a_bson_too(shop: Shop) -> None:
    before = shop.batch()
    shop.correct_ann(before)
    rows = [row | {"seller": seller_of(one)} for row, one in zip(documents(PRODUCTS), PRODUCTS, strict=True)]
    found = shop.batch("e.parquet", source=str(write_bson(shop.folder / "shop.bson", rows)))
    pd.testing.assert_frame_equal(found, shop.batch("f.parquet"))


# Kept until the end


@pytest.mark.parametrize("change", ["more", "undone", "deleted"])
def test_a_killed_job_goes_on_with_the_corrections_that_it_began_to_decide_with(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    made = shop.correct_ann(shop.batch())
    shop.correct("bob", {"1": "soap"})
    undisturbed = shop.batch("e.parquet")
    wanted, real = (shop.folder / "e.parquet").read_bytes(), decide.write_whole

    def killed(file: Path, data: bytes) -> None:
        if file.name == "part-00001.json":
            raise Kill
        real(file, data)

    monkeypatch.setattr(decide, "write_whole", killed)
    with pytest.raises(Kill):
        shop.batch("f.parquet")
    monkeypatch.setattr(decide, "write_whole", real)
    if change == "more":
        shop.correct("bob", {"4": "soap", "10": "milk"})
    elif change == "undone":
        shop.corrections.undo(made)
    else:
        shop.corrections.delete_seller("ann")
    shop.batch("f.parquet")
    assert (shop.folder / "f.parquet").read_bytes() == wanted
    assert not shop.batch("g.parquet").equals(undisturbed), "the next run has the others"
    assert not list(shop.workspace.glob("categorize/*/work")), "nothing that was kept stays"


def test_corrections_without_a_vector_of_the_head_are_named(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.correct_ann(shop.batch())
    shop.corrections.add([(Correction("bob", "1", "milk"), None)])
    caplog.set_level("INFO", "shelfmark")
    found = shop.batch("e.parquet")
    assert "sellers: 1 of 6 corrections have no vector of this release; expected one of each" in caplog.text
    assert list(found.loc["1", list(ADAPTED_COLUMNS)]) == [False, found.loc["1", "category"], 1]


def test_corrections_that_another_release_saw_are_encoded_before_deciding(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.correct_ann(shop.batch())
    wanted = shop.batch("wanted.parquet")
    assert wanted["adapted"].any()
    assert shop.bundle.adapter
    shop.corrections.forget_vectors([])  # as a release with another head has learnt them
    caplog.set_level("INFO", "shelfmark")
    assert shop.batch("e.parquet").equals(wanted)
    assert "sellers: 5 corrections encoded that had no vector of this release" in caplog.text
    caplog.clear()
    assert shop.batch("f.parquet").equals(wanted) and "encoded that had no vector" not in caplog.text


def test_a_store_that_cannot_be_written_leaves_corrections_without_a_vector(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.correct_ann(shop.batch())
    shop.corrections.forget_vectors([])

    def refuses(*_: object) -> None:
        raise ShelfmarkError("db: permission denied; expected the rights; grant them")

    monkeypatch.setattr(Corrections, "put_vectors", refuses)
    found = shop.batch("e.parquet")
    assert "corrections without a vector stay without: db: permission denied" in caplog.text
    assert not found["adapted"].any() and found["corrections"].max() == 5


# Formats


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.jsonl", "e/", "sqlite"])
def test_every_format_has_the_columns_and_gives_them_back(shop: Shop, name: str) -> None:
    shop.correct_ann(shop.batch())
    wanted = shop.batch("e.parquet")
    assert list(pd.read_parquet(shop.folder / "e.parquet")) == [*COLUMNS, *ADAPTED_COLUMNS]
    found = shop.batch(f"sqlite:///{shop.folder / 'shop.db'}#decisions" if name == "sqlite" else name)
    pd.testing.assert_frame_equal(found, wanted)
    if name == "e/":
        schemas = [pq.read_schema(file) for file in sorted((shop.folder / "e").glob("part-*.parquet"))]
        assert len(schemas) > 1 and all(one.equals(WITH_ADAPTED) for one in schemas)
    if name == "e.jsonl":
        rows = [json.loads(line) for line in (shop.folder / name).read_text().splitlines()]
        assert {type(row["adapted"]) for row in rows} == {bool}


def test_a_table_gets_the_columns_and_no_older_adapted_decision_stays(shop: Shop) -> None:
    file = shop.folder / "shop.db"
    table = f"sqlite:///{file}#decisions"
    made = shop.correct_ann(shop.batch(table))

    def columns() -> list[str]:
        with sqlite3.connect(file) as database:
            return [row[1] for row in database.execute("pragma table_info(decisions)")]

    assert columns() == list(COLUMNS)
    source = manifest(shop.folder / "some", [one for one in PRODUCTS if one.id != "3"])
    adapted = shop.batch(table, source=source)
    assert columns() == [*COLUMNS, *ADAPTED_COLUMNS]
    assert adapted["adapted"].fillna(False).any() and pd.isna(adapted.loc["3", "adapted"])
    digest = DecisionsTable.of(table).digest()
    shop.corrections.undo(made)
    plain = shop.batch(table, source=source).drop(index="3")
    assert set(plain["adapted"]) == {False} and plain["base_category"].isna().all()
    assert set(plain["corrections"]) == {0}
    assert DecisionsTable.of(table).digest() != digest


def test_columns_of_the_users_own_with_these_names_stay_until_they_are_needed(shop: Shop) -> None:
    file = shop.folder / "shop.db"
    table = f"sqlite:///{file}#decisions"
    shop.batch(table)
    with sqlite3.connect(file) as database:
        database.execute("alter table decisions add column corrections text")
        database.execute("update decisions set corrections = 'mine'")
    before = shop.batch(table, only_new=table)
    assert shop.counts == {"unreadable": 1} and before["corrections"].isna().all()
    with sqlite3.connect(file) as database:
        assert {row[0] for row in database.execute("select corrections from decisions")} == {"mine"}
    shop.correct_ann(before)
    with pytest.raises(ShelfmarkError, match="corrections is TEXT; expected INTEGER; change it, or"):
        shop.batch(table)


# Only new


def test_products_of_corrected_sellers_are_always_decided_again(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="shelfmark")
    before = shop.batch()
    earlier = str(shop.folder / "d.parquet")
    assert list(shop.batch("e.parquet", only_new=earlier).index) == ["7"]
    made = shop.correct_ann(before)
    ann = sorted(one.id for one in PRODUCTS if seller_of(one) == "ann")
    again = shop.batch("f.parquet", only_new=earlier)
    assert "before; all of 1 sellers with corrections in use are decided again" in caplog.text
    assert list(again.index) == sorted([*ann, "7"])
    everything = shop.batch("g.parquet")
    pd.testing.assert_frame_equal(again, everything.loc[again.index])
    shop.corrections.undo(made)
    again = shop.batch("h.parquet", only_new=str(shop.folder / "g.parquet"))
    assert f"{len(ann):,} more with corrections, which are decided again" in caplog.text
    assert list(again.index) == sorted([*ann, "7"]), "their decisions stand on corrections that are gone"
    assert not again["adapted"].any()


def test_a_product_with_a_row_that_is_left_out_is_left_out_whole(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows name two sellers in two segments: those of one of them are not read."""
    before = shop.batch()
    shop.correct_ann(before)
    rows = manifest_rows(shop.folder / "apart", PRODUCTS)
    for at, row in enumerate(rows):
        row["seller"] = "ann" if at % 2 else "bob"
    source = str(write_manifest(shop.folder / "apart" / "shop.csv", rows))
    config = CONFIG.model_copy(update={"ingest": CONFIG.ingest.model_copy(update={"unit_images": 1})})
    monkeypatch.setattr("test_categorize_sellers.CONFIG", config)
    found = shop.batch("e.parquet", source=source, only_new=str(shop.folder / "d.parquet"))
    several = {one.id for one in PRODUCTS if len(one.pictures) > 1}
    assert "7" in found.index and not several & set(found.index)
    assert {one for one in found.index if one != "7"} == {
        row["product_id"] for row in rows if row["seller"] == "ann" and row["product_id"] not in several
    } - {"7"}


# The photos of each product


def test_the_photos_of_every_product_are_kept_and_found(shop: Shop) -> None:
    products = list(PRODUCTS)
    products[4] = replace(products[4], pictures=(products[4].pictures[0],) * 2)
    shop.batch(source=manifest(shop.folder / "other", products))
    kept = shop.photos()
    assert kept["product_id"].is_monotonic_increasing
    rows = {one.id: len({picture for picture in one.pictures if picture != HTML}) for one in products}
    assert kept["product_id"].value_counts().to_dict() == {one: count for one, count in rows.items() if count}
    store = Store(shop.workspace / "store" / shop.bundle.fingerprint)
    known = known_photos(shop.workspace, None, {"4", "5", "7"})
    assert {one: len(its) for one, its in known.items()} == {"4": 1, "5": 3}
    digests = Digests(np.frombuffer(b"".join(known["5"]), np.uint8).reshape(-1, 32))
    assert (store.find(digests).row >= 0).all()


def test_a_file_keeps_the_photos_of_its_batch_and_a_table_those_of_all(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep_images, "ROWS", 7)
    whole = Shop(shop.folder / "whole", shop.bundle, shop.corrections, shop.source)
    whole.folder.mkdir()
    whole.batch()
    half = manifest(shop.folder / "half", PRODUCTS[5:18])
    for name in ("d.parquet", f"sqlite:///{shop.folder / 'shop.db'}#d"):
        one = Shop(shop.folder / f"W{len(name)}", shop.bundle, shop.corrections, shop.source)
        one.folder.mkdir()
        one.batch(name)
        first = one.photos()
        assert as_pairs(first) == as_pairs(whole.photos())
        one.batch(name, source=half)
        kept = one.photos()
        if "://" in name:
            assert as_pairs(kept) == as_pairs(first)
        else:
            assert set(kept["product_id"]) == {product.id for product in PRODUCTS[5:18]} - {"7"}


def as_pairs(photos: pd.DataFrame) -> list[tuple[str, bytes]]:
    return sorted(zip(photos["product_id"], photos["image_digest"], strict=True))


def test_photos_of_a_table_are_those_of_the_newest_batch(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_images, "ROWS", 5)
    table = f"sqlite:///{shop.folder / 'shop.db'}#d"
    shop.batch(table)
    before = shop.photos().groupby("product_id")["image_digest"].agg(list).to_dict()
    other = [replace(one, pictures=(photo(5_000 + at),)) for at, one in enumerate(PRODUCTS[8:])]
    more = [Drawn("0a", "", PRODUCTS[3].pictures), Drawn("zz", "", PRODUCTS[2].pictures)]
    monkeypatch.setattr("test_categorize_sellers.NAMES", [""])
    monkeypatch.setattr("test_categorize_sellers.seller_of", lambda product: "")
    shop.batch(table, source=manifest(shop.folder / "other", [*other, *more]))
    found = shop.photos()
    assert found["product_id"].tolist() == sorted(found["product_id"])
    after = found.groupby("product_id")["image_digest"].agg(list).to_dict()
    assert set(after) == set(before) | {"0a", "zz"}
    changed = {one.id for one in other}
    assert all(after[one] == before[one] for one in before if one not in changed)
    assert all(len(after[one]) == 1 for one in changed)
    assert sorted(after["zz"]) == sorted(before["2"]) and after["0a"] == before["3"]


def test_clean_keeps_photos_as_long_as_bottlenecks_that_no_run_refers_to(shop: Shop) -> None:
    shop.batch()
    (shop.workspace / "runs" / "week").mkdir(parents=True)
    (shop.workspace / "runs" / "week" / "config.json").write_text("{}")
    settings = RetentionSettings(store_days=2)
    clean(shop.workspace, settings)
    assert len(shop.photos()) == len(known_rows(shop))
    old = time.time() - 3 * 86_400
    for file in shop.workspace.glob("*/*/*"):
        os.utime(file, (old, old))
    removed = {one.what.partition(":")[0] for one in clean(shop.workspace, settings)}
    assert not list(shop.workspace.glob("categorize/*/images.parquet"))
    assert not list(shop.workspace.glob("store/*/*.npy")) and f"store/{shop.bundle.fingerprint}" in removed


def known_rows(shop: Shop) -> list[bytes]:
    found = known_photos(shop.workspace, None, {one.id for one in PRODUCTS})
    return [digest for its in found.values() for digest in its]
