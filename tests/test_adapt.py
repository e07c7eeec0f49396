"""Files of corrections: what is read, where vectors come from, what is learnt, what people do about it."""

import contextlib
import copy
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import HTML, encoded, photo, write_manifest
from conftest import TREE, make_bundle
from PIL import Image
from test_categorize import Saved
from test_categorizer import seeing
from test_extract import Colours, Running

from features.errors import ShelfmarkError
from features.storage.store import Digests, Store
from features.views import FLIP
from models.corrections import hindsight as hindsight_module
from models.corrections.categories import KnownCategories
from models.corrections.correction import Correction, Missing
from models.corrections.hindsight import Hindsight, hindsight_of, worse_sellers
from models.corrections.histories import Histories
from models.corrections.store import Corrections
from models.decisions.adapted import SELLERS_FILE, AdaptedConfidence, Adapter, SellerRules, load_adapter
from models.decisions.bundle import open_bundle
from models.decisions.cascade import Cascade
from models.decisions.categorizer import Categorizer
from models.decisions.suspicion import EDGES, RANKS, Suspicion
from models.decisions.thresholds import Certificate
from models.sellers.votes import Votes
from models.taxonomy import Taxonomy
from pipeline.adapt import adapt as adapt_module
from pipeline.adapt.adapt import AdaptSummary, adapt
from pipeline.adapt.given import GivenCorrections, read_corrections
from pipeline.cli import main
from pipeline.extract import fill_store as shards_module
from pipeline.job.config import Config
from pipeline.sources.tables import DETECTED
from serving.decider import SeenProduct
from serving.stored import stored_product

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
CONFIG = Config.model_validate({"extract": {"batch": 8}})
NAMES = list(TREE)  # categories of the bundle, in the alphabet


def write_rules(folder: Path) -> None:
    """Puts sellers.json beside a head: votes that change a category where the seller's products are alike."""
    categorizer = open_bundle(folder).categorizer
    rules = SellerRules(
        model=categorizer.predictor.model,
        method="votes",
        vectors="bottlenecks",
        votes=Votes(1.0, 1.0, 200.0, 100.0),
        base_threshold=0.99,
        confidence=AdaptedConfidence("share", 0, "drawn"),
        certificate=Certificate(target=0.9, delta=0.1, grid=1000, products=0, threshold=None),
        suspicion=Suspicion(EDGES, ((0.0,) * len(RANKS),) * (len(EDGES) + 1), 0, 0),  # says nothing
        sellers={},
    )
    (folder / SELLERS_FILE).write_text(json.dumps(rules.to_dict()))


@dataclass(frozen=True)
class Released:
    """What adapt needs of a bundle; counts how often its backbone was loaded."""

    path: Path
    categorizer: Categorizer
    adapter: Adapter | None
    fingerprint: str = "colours-8"
    loaded: list[Colours] = field(default_factory=list)

    def backbone(self) -> Colours:
        self.loaded.append(Colours())
        return self.loaded[-1]


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Path:
    path: Path = tmp_path_factory.mktemp("adapted") / "week"
    make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    write_rules(path)
    return path


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone of mean colours."""
    monkeypatch.setattr(shards_module, "choose_engine", lambda backbone, batch, *_: Running(backbone, batch))


@dataclass
class Workplace:
    """A workspace with a store of corrections, and a folder for files."""

    folder: Path
    bundle: Released
    corrections: Corrections

    def __call__(self, rows: list[dict[str, Any]], name: str = "said.csv", **more: Any) -> AdaptSummary:
        file = write_manifest(self.folder / name, rows)
        return adapt(file, self.folder / "W", self.bundle, self.corrections, CONFIG, **more)

    @property
    def store(self) -> Store:
        return Store(self.folder / "W" / "store" / "colours-8")

    def in_use(self) -> list[dict[str, Any]]:
        return [row for row in self.corrections.export() if row["ended"] is None]

    def stored(self, *photos: bytes) -> list[str]:
        """Puts photos into the store, as a run does; returns their digests, hex."""
        digests = [hashlib.sha256(data).digest() for data in photos]
        values = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        numbers = np.random.default_rng(len(photos)).normal(size=(len(photos), 12)).astype(np.float16)
        self.store.append(values, numbers, "by hand")
        return [digest.hex() for digest in digests]

    def index(self, run: str, photos: dict[str, list[str]]) -> None:
        """bottlenecks/ of a run: product_id → digests, hex."""
        rows = [(product, bytes.fromhex(one)) for product, its in sorted(photos.items()) for one in its]
        folder = self.folder / "W" / "runs" / run / "bottlenecks"
        folder.mkdir(parents=True)
        columns = [pa.array([row[0] for row in rows]), pa.array([row[1] for row in rows], pa.binary(32))]
        pq.write_table(
            pa.table(columns, names=["product_id", "image_digest"]),
            folder / "index.parquet",
            row_group_size=2,
        )
        (folder / "manifest.json").write_text("{}")


@pytest.fixture
def place(bundle_folder: Path, light: None, tmp_path: Path) -> Iterator[Workplace]:
    (tmp_path / "W").mkdir()
    categorizer = open_bundle(bundle_folder).categorizer
    store = Corrections.open(f"sqlite:///{tmp_path / 'W' / 'corrections.sqlite'}")
    yield Workplace(
        tmp_path, Released(bundle_folder, categorizer, load_adapter(bundle_folder, categorizer)), store
    )
    store.close()


def said(product: str, category: str = NAMES[1], seller: str = "ann", **more: Any) -> dict[str, Any]:
    return {"product_id": product, "seller": seller, "category": category, **more}


def counts(found: AdaptSummary) -> tuple[int, int, int, int]:
    return found.new, found.same, found.replaced, found.rejected


# Categories as people write them


@pytest.fixture(scope="module")
def known() -> KnownCategories:
    names = np.array(
        [["HOME", "LIGHT", "LAMPS"], ["HOME", "Caf\u00e9", "Caf\u00e9"], ["TOYS", "R/C", "Cars"]], object
    )
    trees = [
        Taxonomy(np.array(["1002", "1003", "gid://shopify/TaxonomyCategory/aa-1"], object), names),
        Taxonomy(np.array(["9", "1002"], object), np.array([["OLD", "THINGS"], ["NO", "MORE"]], object)),
    ]
    return KnownCategories(trees)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("1002", "1002"),
        (" 1002 ", "1002"),
        ("HOME / LIGHT / LAMPS", "1002"),
        ("home > light > lamps", "1002"),
        ("HOME/LIGHT/LAMPS", "1002"),
        ("HOME / Cafe\u0301", "1003"),
        ("aa-1", "gid://shopify/TaxonomyCategory/aa-1"),
        ("gid://shopify/TaxonomyCategory/aa-1", "gid://shopify/TaxonomyCategory/aa-1"),
        ("TOYS / R/C / Cars", "gid://shopify/TaxonomyCategory/aa-1"),
        ("old/things", "9"),
        ("no/more", None),  # the first tree knows 1002 at another place
        ("LAMPS", None),
        ("", None),
    ],
)
def test_a_category_is_found_by_id_or_path(known: KnownCategories, text: str, category: str | None) -> None:
    assert known.find(text) == category


def test_an_unknown_category_has_a_nearest_one(known: KnownCategories) -> None:
    assert known.nearest("HOME / LIGHT / LAMP") == "HOME / LIGHT / LAMPS"
    assert known.nearest("???") is None


# The file


def read(file: Path, known: KnownCategories) -> GivenCorrections:
    return read_corrections(file, DETECTED, known)


def test_every_row_is_a_correction_a_repetition_or_a_reject(tmp_path: Path, known: KnownCategories) -> None:
    file = tmp_path / "said.csv"
    file.write_text(
        "product_id,seller,category,who,when,comment\n"
        "1,ann,1002,eve,2026-11-28T10:00:00+02:00,\n"
        "2,ann,HOME / Café,,2026-11-28 09:30,why not\n"
        "3,ann,HOME / LIGHT / LAMP,,,\n"
        ",ann,1002,,,\n"
        "4,,1002,,,\n"
        "5,ann,,,,\n"
        "6,ann,1002,,yesterday,\n"
        "7,ann,1002\n"
        "1,ann,1002,,,\n"
        "1,bob,1003,,,\n"
    )
    found = read(file, known)
    assert [(one.row, one.product_id, one.seller, one.category) for one in found.corrections] == [
        (2, "2", "ann", "1003"),
        (9, "1", "ann", "1002"),
        (10, "1", "bob", "1003"),
    ]
    assert found.corrections[0].when == datetime(2026, 11, 28, 9, 30, tzinfo=UTC)
    assert found.corrections[0].comment == "why not"
    assert [(one.row, one.reason) for one in found.rejects] == [
        (3, "unknown_category"), (4, "no_product_id"), (5, "no_seller"), (6, "no_category"),
        (7, "bad_time"), (8, "bad_row"),
    ]  # fmt: skip
    assert found.rejects[0].detail.endswith("the nearest one is HOME / LIGHT / LAMPS")
    assert (found.rows, found.repeated, found.has_images) == (10, 1, False)
    assert len(found.corrections) + found.repeated + len(found.rejects) == found.rows


@pytest.mark.parametrize(
    ("when", "is_taken"),
    [
        ("1970-01-01T00:00:00Z", True),
        ("1969-12-31T23:59:59Z", False),
        ("0001-01-01T00:00:00+14:00", False),
        ("9999-12-31T23:59:59-14:00", False),
        ((datetime.now(UTC) + timedelta(hours=23)).isoformat(), True),
        ((datetime.now(UTC) + timedelta(hours=30)).isoformat(), False),
    ],
    ids=[
        "the first",
        "before",
        "year 1",
        "year 9999",
        "within a day",
        "after a day",
    ],  # the same in all workers
)
def test_a_time_is_from_1970_until_now(
    tmp_path: Path, known: KnownCategories, when: str, is_taken: bool
) -> None:
    file = tmp_path / "said.csv"
    file.write_text(f"product_id,seller,category,when\n1,ann,1002,{when}\n2,ann,1002,\n")
    found = read(file, known)
    assert [one.product_id for one in found.corrections] == (["1", "2"] if is_taken else ["2"])
    assert [one.reason for one in found.rejects] == ([] if is_taken else ["bad_time"])


@pytest.mark.parametrize("column", ["product_id", "seller", "who"])
def test_names_with_control_characters_are_rejects(
    tmp_path: Path, known: KnownCategories, column: str
) -> None:
    row = {"product_id": "1", "seller": "ann", "category": "1002", "who": "eve", "comment": "two\nlines"}
    file = write_manifest(tmp_path / "said.csv", [row, row | {"product_id": "2", column: "a\x1b[31m\nb"}])
    found = read(file, known)
    assert [(one.product_id, one.comment) for one in found.corrections] == [("1", "two\nlines")]
    assert [(one.row, one.reason) for one in found.rejects] == [(2, "bad_text")]
    assert f"its {column} holds control characters" in found.rejects[0].detail


def test_of_rows_that_contradict_each_other_the_last_or_latest_counts(
    tmp_path: Path, known: KnownCategories
) -> None:
    file = tmp_path / "said.csv"
    file.write_text("product_id,seller,category\n1,ann,1002\n1,ann,1003\n1,ann,1002\n2,ann,1003\n")
    found = read(file, known)
    assert [(one.row, one.category) for one in found.corrections] == [(3, "1002"), (4, "1003")]
    assert [(one.row, one.reason, one.detail) for one in found.rejects] == [
        (2, "corrected_again", "row 3 says 1002")
    ]
    file.write_text(
        "product_id,seller,category,when\n1,ann,1002,2026-11-28T12:00+02:00\n1,ann,1003,2026-11-28T09:00Z\n"
    )
    assert [one.category for one in read(file, known).corrections] == ["1002"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_files_of_spreadsheets_are_read(
    tmp_path: Path, known: KnownCategories, encoding: str, delimiter: str
) -> None:
    file = tmp_path / "said.csv"
    rows = ["Product ID,SELLER,Category", "17.0,Zoë,HOME / Café", "18.0,Zoë,1002"]
    file.write_bytes("\r\n".join(row.replace(",", delimiter) for row in rows).encode(encoding))
    found = read(file, known)
    assert [(one.product_id, one.seller, one.category) for one in found.corrections] == [
        ("17", "Zoë", "1003"), ("18", "Zoë", "1002"),
    ]  # fmt: skip


def test_parquet_is_read_with_numbers_and_times(tmp_path: Path, known: KnownCategories) -> None:
    noon = datetime(2026, 11, 28, 12, tzinfo=UTC)
    for zone in ("UTC", "Europe/Paris", None):
        moment = noon if zone else noon.replace(tzinfo=None)
        table = pa.table(
            {
                "product_id": [17, 18],
                "seller": [4711, 4711],
                "category": [1002, 1003],
                "when": pa.array([moment, None], pa.timestamp("us", zone)),
            }
        )
        pq.write_table(table, tmp_path / "said.parquet")
        found = read(tmp_path / "said.parquet", known).corrections
        assert [(one.product_id, one.seller, one.category, one.when) for one in found] == [
            ("17", "4711", "1002", noon),
            ("18", "4711", "1003", None),
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("said.csv", "product,seller,category\n1,a,2\n", "no column product_id; found: product, seller"),
        ("said.csv", "", "no column product_id and no column seller and no column category; found: none"),
        ("said.csv", "product_id,seller,category,seller\n1,a,2,a\n", "two columns seller"),
        ("said.xlsx", "x", "its suffix is no format"),
        ("said.parquet", "x", "cannot be read"),
    ],
)
def test_a_file_that_is_none_of_corrections_is_refused_in_a_line(
    tmp_path: Path, known: KnownCategories, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ShelfmarkError, match=message) as error:
        read(tmp_path / name, known)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path, known: KnownCategories) -> None:
    with pytest.raises(ShelfmarkError, match="no such file"):
        read(tmp_path / "gone.csv", known)


# Vectors


def test_the_photos_of_a_run_give_the_vector_and_nothing_is_loaded(place: Workplace) -> None:
    one, two, three = place.stored(photo(1), photo(2), photo(3))
    place.index("2026-W47", {"a": [one, two], "b": [three], "c": ["ff" * 32], "z": [one]})
    found = place([said("a"), said("b"), said("c"), said("d")])
    assert counts(found) == (4, 0, 0, 0)
    assert found.without_vector == {"no_photo_known": 1, "not_in_the_store": 1}
    assert place.bundle.loaded == [] and found.photos_extracted == 0
    rows = {row["product_id"]: row for row in place.in_use()}
    assert rows["a"]["images"] == [one, two] and rows["d"]["images"] == []
    assert rows["a"]["base"] in NAMES and rows["a"]["release"] == "week"
    assert place.corrections.history("ann", place.bundle.adapter.rules.model).missing == 2
    assert sorted(place.corrections.labels()["product_id"]) == ["a", "b", "c", "d"]


def test_the_vector_is_the_one_that_a_decision_would_use(place: Workplace) -> None:
    one, two = place.stored(photo(1), photo(2))
    place.index("2026-W47", {"a": [two, one]})
    place([said("a")])
    history = place.corrections.history("ann", place.bundle.adapter.rules.model)
    locations = place.store.find(Digests(np.array([list(bytes.fromhex(x)) for x in (two, one)], np.uint8)))
    rows = place.store.rows(locations.names, locations.shard, locations.row)[:]
    wanted = rows.astype(float).mean(axis=0).astype(np.float16)
    assert history.vectors[0].tolist() == wanted.tolist()  # the rules say bottlenecks


def test_the_released_run_comes_before_newer_ones_and_batches_come_last(place: Workplace) -> None:
    released, newer, older, batch = place.stored(photo(1), photo(2), photo(3), photo(4))
    place.index("week", {"a": [released]})
    place.index("old", {"a": [older], "b": [older]})
    time.sleep(0.02)
    place.index("new", {"a": [newer], "b": [newer], "c": [newer]})
    folder = place.folder / "W" / "categorize" / "0123"
    folder.mkdir(parents=True)
    pd.DataFrame({"product_id": ["c", "d"], "image_digest": [batch, batch]}).to_parquet(
        folder / "images.parquet", index=False
    )
    place([said(product) for product in "abcd"])
    assert [row["images"] for row in place.in_use()] == [[released], [newer], [newer], [batch]]


def test_photos_that_are_sent_along_are_extracted_where_the_store_lacks_them(place: Workplace) -> None:
    place.stored(photo(1))
    for number in range(3):
        (place.folder / f"{number}.jpg").write_bytes(photo(number))
    rows = [
        said("a", image="1.jpg"), said("b", image="0.jpg"), said("b", image="2.jpg"), said("c", image=""),
        said("d", image="gone.jpg"),
    ]  # fmt: skip
    found = place(rows)
    assert counts(found) == (4, 1, 0, 0)  # the second photo of b is no second correction
    assert len(place.bundle.loaded) == 1 and found.photos_extracted == 2
    assert found.without_vector == {"no_photo_known": 1, "photos_refused": 1}
    assert [len(row["images"]) for row in place.in_use()] == [1, 2, 0, 0]
    again = place(rows)
    assert counts(again) == (0, 5, 0, 0)
    assert len(place.bundle.loaded) == 1 and again.photos_extracted == 0


def test_photos_of_a_source_that_the_store_knows_load_no_backbone(place: Workplace) -> None:
    place.stored(photo(1))
    (place.folder / "photos").mkdir()
    (place.folder / "photos" / "a.jpg").write_bytes(photo(1))
    (place.folder / "photos" / "other.jpg").write_bytes(photo(7))
    found = place([said("a.jpg")], photos=[str(place.folder / "photos")])
    assert counts(found) == (1, 0, 0, 0) and found.without_vector == {}
    assert place.bundle.loaded == []


def test_refused_photos_leave_a_label_and_say_so(place: Workplace) -> None:
    (place.folder / "a.jpg").write_bytes(HTML)
    (place.folder / "b.jpg").write_bytes(photo(1)[:300])
    (place.folder / "c.jpg").write_bytes(photo(1))
    rows = [said("a", image="a.jpg"), said("b", image="b.jpg"), said("b", image="c.jpg")]
    found = place(rows)
    assert found.without_vector == {"photos_refused": 1} and found.photos_refused == 2
    assert [len(row["images"]) for row in place.in_use()] == [0, 1]
    rejects = pd.read_csv(place.folder / "said.rejects.csv", dtype=str)
    assert found.rejects == str(place.folder / "said.rejects.csv")
    assert rejects["row"].isna().all() and rejects["product_id"].tolist() == ["a", "b"]
    assert rejects["reason"].tolist() == ["photo_not_an_image", "photo_truncated"]
    assert [Path(detail.partition(": ")[0]).name for detail in rejects["detail"]] == ["a.jpg", "b.jpg"]
    place.index("week", {"a": place.stored(photo(5))})  # what a run knows is used instead
    assert place([said("a", NAMES[2], image="a.jpg")]).without_vector == {}


def test_mirrored_views_are_extracted_and_kept_too(place: Workplace, tmp_path: Path) -> None:
    categorizer = place.bundle.categorizer
    head = copy.copy(categorizer.predictor.head)
    head.shape = replace(head.shape, views=("whole", "flip"))
    flipping = replace(categorizer, predictor=replace(categorizer.predictor, head=head))
    adapter = Adapter(flipping, place.bundle.adapter.rules, place.bundle.adapter.method)
    place.bundle = replace(place.bundle, categorizer=flipping, adapter=adapter)
    (place.folder / "a.jpg").write_bytes(photo(1))
    found = place([said("a", image="a.jpg")])
    assert found.without_vector == {} and found.photos_extracted == 1
    (batch,) = place.corrections.missing("another head", "colours-8")
    assert batch[0].bottlenecks.shape == (2, 12)
    plain, mirrored = (
        view.rows(*(lambda at: (at.names, at.shard, at.row))(view.find(_digests(photo(1)))))[:]
        for view in (place.store, place.store.view(FLIP))
    )
    assert batch[0].bottlenecks.tolist() == [*plain.tolist(), *mirrored.tolist()]


@pytest.mark.parametrize(("limit", "views"), [(0.0, 1), (1.1, 2)], ids=["certain", "looked at again"])
def test_of_a_cascade_the_rows_that_decide_are_learnt_in_a_file_as_by_the_service(
    place: Workplace, limit: float, views: int
) -> None:
    categorizer = seeing(place.bundle.categorizer, ("whole", "flip"))
    rules = replace(categorizer.rules, cascade=Cascade(limit, 0.5))
    cascade = replace(categorizer, rules=rules)
    adapter = Adapter(cascade, place.bundle.adapter.rules, place.bundle.adapter.method)
    place.bundle = replace(place.bundle, categorizer=cascade, adapter=adapter)
    known = place.stored(photo(5))  # in the first view alone, where this decided
    place.index("week", {"b": known})
    (place.folder / "a.jpg").write_bytes(photo(1))
    assert place([said("a", image="a.jpg"), said("b")]).without_vector == {}
    (batch,) = place.corrections.missing("another head", "colours-8")
    assert [len(one.bottlenecks) for one in batch] == [views, 1]
    found = stored_product(place.folder / "W", place.bundle, "b")
    if views == 1:
        assert isinstance(found, SeenProduct) and found.bottlenecks.tolist() == batch[1].bottlenecks.tolist()
    else:
        assert isinstance(found, str) and "the store has no bottlenecks of the product any more" in found


def _digests(*photos: bytes) -> Digests:
    return Digests(np.array([list(hashlib.sha256(data).digest()) for data in photos], np.uint8))


# Learning


def test_the_next_decision_of_the_seller_changes_and_no_others(place: Workplace) -> None:
    data = photo(1)
    place.index("week", {"a": place.stored(data)})
    rows = place.store.rows(*(lambda at: (at.names, at.shard, at.row))(place.store.find(_digests(data))))[:]
    histories, ids, bounds = (
        Histories(place.bundle.adapter, place.corrections), np.array(["x"], object), np.array([0, 1])
    )  # fmt: skip

    def decided(seller: str) -> tuple[str, bool, int]:
        table = place.bundle.adapter.decide(ids, rows, bounds, [histories.state(seller)])
        return table["category"][0], bool(table["adapted"][0]), int(table["corrections"][0])

    base = decided("ann")[0]
    other = next(name for name in NAMES if name != base)
    assert place([said("a", other)]).new == 1
    assert decided("ann") == (other, True, 1)
    assert decided("bob") == (base, False, 0)
    place.corrections.undo([place.in_use()[0]["id"]])
    assert decided("ann") == (base, False, 0)


def test_corrections_that_another_release_saw_are_encoded_when_adapt_begins(place: Workplace) -> None:
    assert place.bundle.adapter
    place.index("week", {"a": place.stored(photo(1)), "b": place.stored(photo(2), photo(3))})
    place([said("a"), said("b", seller="bob")])
    head = place.bundle.adapter.rules.model
    wanted = [place.corrections.history(name, head).vectors.tolist() for name in ("ann", "bob")]
    place.corrections.forget_vectors([])  # as a release with another head has learnt them
    assert [place.corrections.history(name, head).missing for name in ("ann", "bob")] == [1, 1]
    assert counts(place([said("other")])) == (1, 0, 0, 0)
    assert [place.corrections.history(name, head).vectors.tolist() for name in ("ann", "bob")] == wanted


def test_another_category_replaces_and_the_account_closes(place: Workplace) -> None:
    rows = [said(str(number), NAMES[number % 3], f"seller {number % 2}") for number in range(9)]
    assert counts(place(rows)) == (9, 0, 0, 0)
    rows[0]["category"], rows[1]["category"] = NAMES[4], "unheard of"
    found = place(rows)
    assert counts(found) == (0, 7, 1, 1)
    assert found.rejects == str(place.folder / "said.rejects.csv")
    rejects = pd.read_csv(place.folder / "said.rejects.csv", dtype=str)
    assert rejects[["row", "product_id", "reason"]].values.tolist() == [["2", "1", "unknown_category"]]
    rows[1]["category"] = NAMES[1]
    assert counts(place(rows)) == (0, 9, 0, 0)
    assert not (place.folder / "said.rejects.csv").exists()


def test_a_file_that_is_given_again_takes_nothing_back_that_was_said_since(place: Workplace) -> None:
    monday = [said("a", when="2026-11-23"), said("b", when="2026-11-23"), said("c", when="")]
    assert counts(place(monday)) == (3, 0, 0, 0)
    tuesday = datetime(2026, 11, 24, tzinfo=UTC)
    place.corrections.add([(Correction("ann", "a", NAMES[3], when=tuesday), None)])
    found = place(monday)
    assert counts(found) == (0, 2, 0, 1) and found.reasons == {"older": 1}
    assert {row["product_id"]: row["category"] for row in place.in_use()} == {
        "a": NAMES[3], "b": NAMES[1], "c": NAMES[1],
    }  # fmt: skip
    assert counts(place([said("a", when="2026-11-25")])) == (0, 0, 1, 0)


def test_a_file_that_is_given_again_takes_nothing_back_that_was_undone_since(place: Workplace) -> None:
    monday = [said("a", when="2026-11-23"), said("b", when="2026-11-23"), said("c", when="")]
    place([said("a", NAMES[3], when="2026-11-20")])  # the seller changed his mind on Monday
    assert counts(place(monday)) == (2, 0, 1, 0)
    place.corrections.undo([row["id"] for row in place.in_use()])
    found = place(monday)
    assert counts(found) == (1, 0, 0, 2) and found.reasons == {"older": 2}
    rejects = pd.read_csv(place.folder / "said.rejects.csv", dtype=str)
    assert all("this was undone on " in detail for detail in rejects["detail"])
    assert [row["product_id"] for row in place.in_use()] == ["c"]  # without a time it is said now
    with pytest.raises(ShelfmarkError, match="none of 1 rows can be used \\(older 1\\)"):
        place([said("a", NAMES[3], when="2026-11-20")])  # Monday's replaced it
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M}"
    assert counts(place([said("a", when=tomorrow), said("b", NAMES[3], when="2026-11-24")])) == (2, 0, 0, 0)


def test_a_text_that_no_database_takes_is_a_reject(place: Workplace) -> None:
    found = place([said("a", comment="x" * 10_001), said("b" * 1_001, comment=""), said("c", comment="fine")])
    assert counts(found) == (1, 0, 0, 2) and found.reasons == {"bad_text": 2}


def test_a_file_without_a_usable_row_is_an_error_that_names_the_reasons(place: Workplace) -> None:
    with pytest.raises(ShelfmarkError, match=r"none of 2 rows can be used \(unknown_category 2\)"):
        place([said("1", "x"), said("2", "y")])
    assert (place.folder / "said.rejects.csv").exists() and place.in_use() == []
    with pytest.raises(ShelfmarkError) as error:
        place([said("1", when="soon")])
    assert str(error.value).count("expected") == 1 and "says what is wrong with each" in str(error.value)


def test_a_file_of_a_header_alone_learns_nothing(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="shelfmark")
    (place.folder / "said.csv").write_text("product_id,seller,category\n")
    found = adapt(place.folder / "said.csv", place.folder / "W", place.bundle, place.corrections, CONFIG)
    assert (found.rows, *counts(found)) == (0, 0, 0, 0, 0)
    assert "corrections: release week" in caplog.text and " 0" not in caplog.text


def test_a_release_without_sellers_keeps_labels_and_bottlenecks(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    place.index("week", {"a": place.stored(photo(1))})
    place.bundle = Released(place.bundle.path, place.bundle.categorizer, None)
    assert counts(place([said("a")])) == (1, 0, 0, 0)
    assert "was made without sellers" in caplog.text
    assert [len(batch) for batch in place.corrections.missing("any", "colours-8")] == [1]


def test_pieces_read_a_part_of_the_bottlenecks_at_a_time(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = place.stored(*(photo(number) for number in range(23)))
    place.index("week", {str(number): [one] for number, one in enumerate(digests)})
    sizes: list[int] = []
    learn = Histories.learn

    def watched(self: Histories, some: Any) -> Any:
        sizes.append(sum(len(one.bottlenecks) for one in some if one.bottlenecks is not None))
        return learn(self, some)

    monkeypatch.setattr(Histories, "learn", watched)
    monkeypatch.setattr(adapt_module, "PIECE", 5)
    monkeypatch.setattr(adapt_module, "IMAGES", 2)
    assert place([said(str(number)) for number in range(23)]).new == 23
    assert sizes == [5, 5, 5, 5, 3]
    matrix = np.concatenate(
        [one.bottlenecks for batch in place.corrections.missing("", "colours-8") for one in batch]
    )
    locations = place.store.find(Digests(np.array([list(bytes.fromhex(one)) for one in digests], np.uint8)))
    assert matrix.tolist() == place.store.rows(locations.names, locations.shard, locations.row)[:].tolist()


def test_a_command_that_was_interrupted_goes_on_and_doubles_nothing(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, calls = Histories.learn, []

    def interrupted(self: Histories, some: Any) -> Any:
        calls.append(len(some))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(self, some)

    monkeypatch.setattr(adapt_module, "PIECE", 4)
    monkeypatch.setattr(Histories, "learn", interrupted)
    rows = [said(str(number)) for number in range(11)]
    with pytest.raises(KeyboardInterrupt):
        place(rows)
    assert counts(place(rows)) == (3, 8, 0, 0)
    assert len(list(place.corrections.export())) == 11


# Sellers whose corrections hurt their own decisions


def stream(adapter: Adapter, changes: list[tuple[int, int]]) -> list[Missing]:
    """Corrections with bottlenecks; each (place, category) is near one of a few places."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 12))
    return [
        Missing(
            number, "ann", NAMES[category],
            (centres[at] + rng.normal(0, 0.001, 12)).astype(np.float16)[None],
        )
        for number, (at, category) in enumerate(changes)
    ]  # fmt: skip


def base_of(adapter: Adapter, rows: list[Missing]) -> list[int]:
    found = adapter.encode(
        np.concatenate([row.bottlenecks for row in rows]), np.arange(len(rows) + 1), ["x"] * len(rows)
    )
    return [NAMES.index(one.base) for one in found]


def test_hindsight_compares_with_what_was_learnt_before_alone(place: Workplace) -> None:
    adapter = place.bundle.adapter
    places = [0, 1, 0, 1, 0]
    base = base_of(adapter, stream(adapter, [(at, 0) for at in places]))
    wrong = [(one + 1) % len(NAMES) for one in base]
    # place 0 is corrected, then helped twice; place 1 is corrected, then the base was right after all
    said_here = [wrong[0], wrong[1], wrong[2], base[3], wrong[4]]
    found = hindsight_of(adapter, stream(adapter, list(zip(places, said_here, strict=True))))
    assert (found.helped, found.hurt) == (2, 1)
    assert hindsight_of(adapter, []) == Hindsight(0, 0)


def test_hindsight_agrees_with_a_slow_reading_of_decisions(place: Workplace) -> None:
    adapter, rng = place.bundle.adapter, np.random.default_rng(5)
    rows = stream(adapter, [(int(rng.integers(6)), int(rng.integers(len(NAMES)))) for _ in range(90)])
    helped = hurt = 0
    vectors = np.concatenate([row.bottlenecks for row in rows])
    base = [NAMES[one] for one in base_of(adapter, rows)]
    for number in range(1, len(rows)):
        state = adapter.state(
            vectors[:number], base[:number], [row.category for row in rows[:number]], number, False
        )
        table = adapter.decide(np.array(["x"], object), rows[number].bottlenecks, np.array([0, 1]), [state])
        adapted = table["category"][0]
        helped += adapted != base[number] and adapted == rows[number].category
        hurt += adapted != base[number] and base[number] == rows[number].category
    assert hindsight_of(adapter, rows) == Hindsight(helped, hurt)
    assert helped and hurt


def test_a_seller_who_hurts_himself_is_flagged_by_adapt(place: Workplace) -> None:
    """Half of his corrections are wrong, in one place after the other; the honest seller is not flagged."""
    adapter = place.bundle.adapter
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(15, 12)).astype(np.float16)
    base = [NAMES.index(one.base) for one in adapter.encode(centres, np.arange(16), ["x"] * 15)]
    photos = [photo(1_000 + number) for number in range(30)]
    values = np.array([list(hashlib.sha256(data).digest()) for data in photos], np.uint8)
    place.store.append(values, np.repeat(centres, 2, axis=0), "by hand")
    place.index("week", {str(number): [values[number].tobytes().hex()] for number in range(30)})
    rows = []
    for number in range(30):
        at, second = divmod(number, 2)
        wrong = NAMES[(base[at] + 1) % len(NAMES)]
        rows.append(said(str(number), NAMES[base[at]] if second else wrong, "wavering"))
        rows.append(said(str(number), wrong, "steady"))
    found = place(rows)
    suspicious = {seller: why for seller, why in found.flagged.items() if "changed" in why}
    assert list(suspicious) == ["wavering"]
    assert place(rows).flagged == found.flagged, "a command that goes on names who was flagged before it"
    assert place([said("other", seller="quiet")]).flagged == {}
    assert suspicious["wavering"].startswith(
        "his earlier corrections changed 15 later categories, 15 of them"
    )
    assert worse_sellers(adapter, place.corrections, place.corrections.sellers()) == {}  # flagged already
    place.corrections.restore("wavering")
    assert worse_sellers(adapter, place.corrections, place.corrections.sellers()) == {}  # checked by a person
    unchecked = [replace(one, restored=0) for one in place.corrections.sellers()]
    assert list(worse_sellers(adapter, place.corrections, unchecked)) == ["wavering"]


def test_bottlenecks_of_sellers_who_cannot_be_worse_are_not_read(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.index("week", {"a": place.stored(photo(1))})
    place([said("a")])
    monkeypatch.setattr(hindsight_module, "hindsight_of", None)
    assert worse_sellers(place.bundle.adapter, place.corrections, place.corrections.sellers()) == {}


# Commands


SETTINGS = """
[ingest]
min_products = 5
least_test = 4
[backbone]
name = "mobilenet"
weights = "{weights}"
image_size = 32
[head]
hidden = [16, 16]
[train]
epochs = 10
batch = 16
[suspects]
folds = 0
"""
KINDS = {"mug": (200, 60, 60), "cup": (60, 60, 200), "lamp": (60, 200, 60)}


def coloured(kind: str, seed: int) -> bytes:
    """A photo in the colour of its category."""
    noise = np.random.default_rng(seed).integers(-50, 50, (4, 4, 3))
    pixels = np.clip(np.array(KINDS[kind]) + noise, 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC), "JPEG")


def run_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status of a command in this process, and what it printed: its results, or its error."""
    try:
        main([str(one) for one in arguments])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out if status == 0 else printed.err


@pytest.fixture(scope="module")
def shop(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of 12 sellers, and a workspace with the release of its first week."""
    folder: Path = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    rows = []
    for number in range(180):
        kind = list(KINDS)[number % 3]
        (folder / "photos" / f"{number}.jpg").write_bytes(coloured(kind, number))
        category = kind if number < 171 else ""
        rows.append(
            {"product_id": f"p{number}", "image": f"photos/{number}.jpg", "category": category,
             "seller": f"s{number // 3 % 12}"}
        )  # fmt: skip
    write_manifest(folder / "shop.csv", rows)
    (folder / "weekly.toml").write_text(SETTINGS.format(weights=drawn_weights))
    with pytest.raises(SystemExit) as stop:
        main(retrain(folder, folder / "W", "one"))
    assert stop.value.code == 0
    return folder


def retrain(folder: Path, workspace: Path, run: str, *more: str) -> list[str]:
    options = ["--workspace", str(workspace), "--config", str(folder / "weekly.toml"), "--run", run]
    return ["retrain", str(folder / "shop.csv"), *options, *more]


@pytest.fixture
def workspace(shop: Path, tmp_path: Path) -> Path:
    """A copy of the shop's workspace."""
    shutil.copytree(shop / "W", tmp_path / "W", symlinks=True)
    return tmp_path / "W"


def test_corrections_of_a_file_are_learnt_listed_exported_and_labels_of_the_next_run(
    shop: Path, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"product_id": f"p{number}", "seller": f"s{number // 3 % 12}", "category": "lamp", "who": "eve"}
        for number in (0, 3, 171, 174)
    ]
    rows += [{"product_id": "p1", "seller": "s0", "category": "lmap", "who": ""}]
    rows += [{"product_id": "elsewhere", "seller": "s0", "category": "mug", "who": ""}]
    file = write_manifest(tmp_path / "said.csv", rows)
    status, printed = run_here(capsys, "adapt", file, "--workspace", workspace)
    assert status == 0
    assert printed.splitlines()[:3] == [
        f"{file}: new 5, same 0, replaced 0, rejected 1 (unknown category 1)",
        f"rejected    {tmp_path / 'said.rejects.csv'}",
        "labels only 3 corrections without a vector (no photo known 3)",  # 171 and 174 are in no run
    ]
    status, printed = run_here(
        capsys, "adapt", file, "--workspace", workspace, "--photos", shop / "shop.csv", "--json"
    )
    assert status == 0 and json.loads(printed)["same"] == 5

    status, printed = run_here(capsys, "corrections", "list", "--workspace", workspace)
    lines = printed.splitlines()
    assert lines[0].split() == ["seller", "corrections", "ended", "without", "vector", "last", "(UTC)"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["s0", "2", "0", "1"],
        ["s1", "1", "0", "0"],
        ["s10", "1", "0", "0"],  # of the photos that were sent along
        ["s9", "1", "0", "0"],
    ]  # fmt: skip
    status, printed = run_here(capsys, "status", "--workspace", workspace)
    assert "corrections 5 of 4 sellers, the last " in printed

    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        status, printed = run_here(
            capsys, "corrections", "export", tmp_path / f"all.{ending}", "--workspace", workspace
        )
        assert printed == f"{tmp_path / f'all.{ending}'}: 5 corrections\n"
        table = read(tmp_path / f"all.{ending}")
        assert table["product_id"].tolist() == ["p0", "p3", "p171", "p174", "elsewhere"]
        assert table["who"].fillna("").tolist() == ["eve"] * 4 + [""]
    status, _ = run_here(
        capsys, "corrections", "export", tmp_path / "s0.jsonl", "--workspace", workspace, "--seller", "s0"
    )
    (first, second) = map(json.loads, (tmp_path / "s0.jsonl").read_text().splitlines())
    assert (first["product_id"], second["product_id"], first["release"]) == ("p0", "elsewhere", "one")

    with pytest.raises(SystemExit) as stop:
        main(retrain(shop, workspace, "two"))
    assert stop.value.code in (0, 3)
    records = workspace / "runs" / "two" / "records"
    corrected = pd.read_parquet(records / "corrected.parquet")
    assert corrected[["product_id", "to", "seller"]].values.tolist() == [
        ["p0", "lamp", "s0"], ["p171", "lamp", "s9"], ["p174", "lamp", "s10"], ["p3", "lamp", "s1"],
    ]  # fmt: skip
    products = pd.read_parquet(records / "products.parquet").set_index("product_id")
    assert products.loc[["p0", "p171", "p2", "p1"], "category"].tolist() == ["lamp", "lamp", "lamp", "cup"]
    account = json.loads((workspace / "runs" / "two" / "run.json").read_text())
    assert account["records"]["corrected"] == {"changed": 2, "new": 2}
    assert account["records"]["corrections_left_out"] == {"not_in_the_sources": 1}
    assert "corrected" in pq.read_schema(workspace / "runs" / "two" / "suspects" / "suspects.parquet").names
    log = (workspace / "runs" / "two" / "run.log").read_text()
    assert "4 labels are corrections (changed 2, new 2)" in log
    assert f"encoded for release {account['release_now']}" in log
    store = Corrections.open(f"sqlite:///{workspace / 'corrections.sqlite'}")
    rules = json.loads((workspace / "releases" / account["release_now"] / SELLERS_FILE).read_text())
    assert [store.history(seller, rules["model"]).missing for seller in ("s0", "s1", "s9")] == [1, 0, 0]
    store.close()


def test_products_of_a_batch_are_found_by_their_ids_and_decided_anew(
    shop: Path, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def categorized(name: str) -> pd.DataFrame:
        arguments = ["categorize", shop / "shop.csv", "--workspace", workspace, "--output", tmp_path / name]
        assert run_here(capsys, *arguments)[0] == 0
        return pd.read_parquet(tmp_path / name).set_index("product_id")

    before = categorized("before.parquet")
    assert "adapted" not in before
    other = next(kind for kind in KINDS if kind != before.loc["p171", "category"])
    file = write_manifest(tmp_path / "said.csv", [said("p171", other, "s9")])
    status, printed = run_here(capsys, "adapt", file, "--workspace", workspace, "--json")
    found = json.loads(printed)
    assert (status, found["new"], found["without_vector"], found["photos_extracted"]) == (0, 1, {}, 0)
    after = categorized("after.parquet")
    sellers = pd.read_csv(shop / "shop.csv").set_index("product_id")["seller"].reindex(after.index)
    assert set(after.loc[after["corrections"] > 0].index) == set(sellers.index[sellers == "s9"])
    assert after.loc["p171", "base_category"] == before.loc["p171", "category"]
    others = sellers != "s9"
    assert after.loc[others, list(before)].equals(before[others.to_numpy()])


def test_the_commands_about_sellers(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def corrections(*arguments: str) -> tuple[int, str]:
        return run_here(capsys, "corrections", *arguments, "--workspace", workspace)

    assert corrections("list") == (0, f"{workspace}: nobody has made corrections yet\n")
    assert not (workspace / "corrections.sqlite").exists()
    (workspace / "corrections.sqlite").mkdir()
    status, printed = corrections("list")
    assert status == 1 and "corrections.sqlite" in printed and printed.count("\n") == 1
    (workspace / "corrections.sqlite").rmdir()
    status, printed = corrections("undo", "1")
    assert status == 1 and "nobody has made corrections yet" in printed
    file = write_manifest(tmp_path / "said.csv", [said("p0", "lamp", "s0"), said("p3", "lamp", "s1")])
    assert run_here(capsys, "adapt", file, "--workspace", workspace)[0] == 0
    assert corrections("set-aside", "--seller", "s0", "--why", "a test") == (0, "s0: set aside\n")
    assert "set aside: a test" in corrections("list", "--seller", "s0")[1]
    assert corrections("set-aside", "--seller", "s0", "--why", "a\n\x1b[31mtest") == (
        0, "s0: set aside; the reason before was: a test\n",
    )  # fmt: skip
    assert "set aside: a\\n\\x1b[31mtest\n" in corrections("list", "--seller", "s0")[1]
    assert corrections("set-aside", "--seller", "s0", "--why", "a test")[0] == 0
    (account,) = json.loads(corrections("list", "--seller", "s0", "--json")[1])
    assert (account["corrections"], account["set_aside"], account["flagged"]) == (1, "a test", None)
    assert "set aside 1: s0" in run_here(capsys, "status", "--workspace", workspace)[1]
    assert corrections("restore", "--seller", "s0") == (0, "s0: in use\n")
    assert corrections("restore", "--seller", "s0")[1].startswith("s0: in use already; neither set aside")
    status, printed = corrections("undo", "9" * 23)
    assert status == 2 and "is not in the range" in printed
    status, printed = corrections("restore", "--seller", "s11")
    assert status == 1 and "--seller s11: has made no corrections; expected one of 2 sellers" in printed
    assert corrections("undo", "1") == (0, "1 undone\n")
    status, printed = corrections("undo", "1", "99")
    assert status == 1 and "1, 99: not in use, none of them" in printed
    status, printed = corrections("delete", "--seller", "s1")
    assert status == 1 and "expected --yes" in printed
    assert corrections("delete", "--seller", "s1", "--yes") == (0, "s1: 1 corrections deleted\n")
    assert corrections("list")[1].count("\n") == 2
    status, printed = corrections("export", str(tmp_path / "all.xlsx"))
    assert status == 1 and "expected .csv, .jsonl, .parquet" in printed


def test_a_seller_whose_deletion_could_not_overwrite_is_erased_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "corrections.sqlite"
    with contextlib.closing(Corrections.open(f"sqlite:///{file}")) as store:
        store.add([(Correction("4711", f"secret-{n}", "mug"), None) for n in range(50)])
        store.add([(Correction("4712", "other", "mug"), None)])
    arguments = ("corrections", "delete", "--workspace", tmp_path, "--seller", "4711")
    files = [file, tmp_path / "corrections.sqlite-wal"]

    def left() -> bool:
        return any(b"secret" in one.read_bytes() for one in files if one.exists())

    with contextlib.closing(sqlite3.connect(file)) as reader, monkeypatch.context() as patch:
        patch.setattr("models.corrections.sqlite_file.WAIT", 0.05)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM corrections").fetchone()
        status, printed = run_here(capsys, *arguments, "--yes")
        assert status == 1 and "others read or write all the time; expected a pause, in which" in printed
        assert left()
        status, printed = run_here(capsys, *arguments, "--yes")
        assert status == 1 and left()
    status, printed = run_here(capsys, *arguments)
    assert status == 1 and "--seller 4711: has made no corrections; expected one of 1 sellers" in printed
    assert run_here(capsys, *arguments, "--yes") == (
        0, "4711: had no corrections, and nothing is left of 4711; did you mean '4712'?\n",
    )  # fmt: skip
    assert not left()


def test_what_is_wrong_is_said_before_tensorflow_starts(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.engines.backbones.start_tensorflow", None)
    status, printed = run_here(capsys, "adapt", tmp_path / "gone.csv", "--workspace", workspace)
    assert status == 1 and "gone.csv: no such file" in printed
    (tmp_path / "said.csv").write_text("product,seller,category\n")
    status, printed = run_here(capsys, "adapt", tmp_path / "said.csv", "--workspace", workspace)
    assert status == 1 and "no column product_id" in printed
    status, printed = run_here(
        capsys, "adapt", tmp_path / "said.csv", "--workspace", workspace, "--set", "sellers.labels=false"
    )
    assert status == 1 and "this command does not use it" in printed


def test_going_back_to_a_release_encodes_corrections_for_it(
    shop: Path, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_arguments = retrain(shop, workspace, "two", "--force", "--seed", "3")
    with pytest.raises(SystemExit) as stop:
        main(main_arguments)
    assert stop.value.code == 0
    file = write_manifest(tmp_path / "said.csv", [said("p0", "lamp", "s0")])
    assert run_here(capsys, "adapt", file, "--workspace", workspace)[0] == 0
    heads = [
        json.loads((workspace / "releases" / name / SELLERS_FILE).read_text())["model"]
        for name in ("one", "two")
    ]
    store = Corrections.open(f"sqlite:///{workspace / 'corrections.sqlite'}")
    assert [store.history("s0", head).missing for head in heads] == [1, 0]
    assert run_here(capsys, "rollback", "--workspace", workspace, "--why", "test")[0] == 0
    assert [store.history("s0", head).missing for head in heads] == [0, 0]
    store.close()


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(shop: Path, workspace: Path, tmp_path: Path) -> None:
    rows = [said(f"p{number}", "lamp", f"s{number % 5}") for number in range(171)]
    rows += [said(f"unseen{number}", "mug", f"s{number % 5}") for number in range(3_000)]
    file = write_manifest(tmp_path / "said.csv", rows)
    command = [sys.executable, "-m", "pipeline.cli", "adapt", str(file), "--workspace", str(workspace)]
    file_of_corrections = workspace / "corrections.sqlite"

    def there() -> int:
        if not file_of_corrections.is_file():
            return 0
        with contextlib.closing(sqlite3.connect(file_of_corrections)) as opened:
            try:
                return int(opened.execute("SELECT count(*) FROM corrections").fetchone()[0])
            except sqlite3.OperationalError:  # the tables are being made
                return 0

    for enough in (1, 700, 2_000):
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while there() < enough and job.poll() is None:
            time.sleep(0.01)
        assert job.poll() is None
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert enough <= there() < len(rows)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["new"] + found["same"] == len(rows) == found["rows"]
    store = Corrections.open(f"sqlite:///{workspace / 'corrections.sqlite'}")
    assert len(list(store.export())) == len(rows)
    store.close()
