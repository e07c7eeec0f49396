"""Decisions by sellers' corrections through both doors: the batch job and HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from catalogues import HTML, Drawn, draw_products, manifest_rows, write_manifest
from conftest import make_bundle
from corrected import Method, adapter_of, store_of
from service import client_of, state_of
from test_categorize import CONFIG, Saved
from test_extract import Running, engines_by_hand
from test_ingest import in_a_loop

from models.corrections.correction import Correction
from models.corrections.store import Corrections
from models.decisions.adapted import ADAPTED_COLUMNS, Adapter
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.categorizer import COLUMNS
from pipeline.categorize import read_units, sort_rows
from pipeline.categorize.categorize import categorize
from pipeline.extract import fill_store as shards_module

pytestmark = pytest.mark.usefixtures("quiet_tensorflow", "light")
PRODUCTS = [replace(one, pictures=one.pictures or (HTML,)) for one in draw_products({"": 24})]
PRODUCTS[7] = replace(PRODUCTS[7], pictures=(HTML,))
SELLERS = ["ann", "bob", ""]


class Loaded(Saved):
    """Colours, as a backbone that is read from a bundle."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "week"
    make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    return open_bundle(path)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with a backbone of mean colours, and many small parts."""
    monkeypatch.setattr(read_units, "run_units", in_a_loop)
    monkeypatch.setattr(shards_module, "choose_engine", lambda backbone, batch, *_: Running(backbone, batch))
    monkeypatch.setattr(Bundle, "backbone", lambda self: Loaded())
    monkeypatch.setattr(Bundle, "engines", lambda self, batches, store: engines_by_hand(Loaded(), batches))
    monkeypatch.setattr(sort_rows, "PART_ROWS", 10)


def seller_of(product: Drawn) -> str:
    return SELLERS[int(product.id) % len(SELLERS)]


class Doors:
    """A workspace with corrections, and both doors to its decisions."""

    def __init__(self, folder: Path, bundle: Bundle, adapter: Adapter | None) -> None:
        self.folder, self.workspace = folder, folder / "W"
        self.bundle = replace(bundle, adapter=adapter)
        rows = manifest_rows(folder / "shop", PRODUCTS)
        sellers = {one.id: seller_of(one) for one in PRODUCTS}
        rows = [row | {"seller": sellers[row["product_id"]]} for row in rows]
        self.source = str(write_manifest(folder / "shop" / "shop.csv", rows))
        self.corrections: Corrections = store_of(self.workspace)
        self.client = client_of(state_of(self.bundle, self.corrections, self.workspace))

    def batch(self, name: str = "d.parquet", **more: Any) -> pd.DataFrame:
        output = self.folder / name
        categorize([self.source], self.bundle, self.workspace / "store", str(output), CONFIG, **more)
        return pd.read_parquet(output).set_index("product_id", drop=False)

    def http(self, product: Drawn, **fields: str) -> dict[str, Any]:
        files = [("images", ("photo", picture)) for picture in product.pictures]
        fields = {"product_id": product.id} | fields
        response = self.client.post("/v1/categorize", files=files, data=fields)
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        return found

    def correct(self, product: Drawn, category: str, **fields: str) -> dict[str, Any]:
        """Makes a correction with the product's photos."""
        files = [("images", ("photo", picture)) for picture in product.pictures]
        fields = {"product_id": product.id, "seller": "ann", "category": category} | fields
        response = self.client.post("/v1/corrections", files=files, data=fields)
        assert response.status_code == 201, response.text
        found: dict[str, Any] = response.json()
        return found

    def of_ann(self) -> list[Drawn]:
        return [one for one in PRODUCTS if seller_of(one) == "ann"]


@pytest.fixture(params=["votes", "paper"])
def doors(request: pytest.FixtureRequest, tmp_path: Path, bundle: Bundle) -> Iterator[Doors]:
    method: Method = request.param
    opened = Doors(tmp_path, bundle, adapter_of(bundle.categorizer, method))
    yield opened
    opened.corrections.close()


def columns_of(row: pd.Series, names: tuple[str, ...]) -> list[Any]:
    """A row's values, as JSON has them."""
    values = [row[name] for name in names]
    plain = [list(one) if isinstance(one, np.ndarray) else one for one in values]
    return [None if not isinstance(one, list) and pd.isna(one) else one for one in plain]


def same_decision(row: pd.Series, response: dict[str, Any]) -> None:
    for name, value in zip(
        (*COLUMNS, *ADAPTED_COLUMNS), columns_of(row, (*COLUMNS, *ADAPTED_COLUMNS)), strict=True
    ):
        expected = pytest.approx(value, abs=2e-6) if name in ("confidence", "top_probabilities") else value
        assert response[name] == expected, name


def other_category(row: pd.Series) -> str:
    """A category that is not the product's."""
    return "milk" if row["category"] != "milk" else "oats"


def test_both_doors_give_the_same_adapted_decisions_and_other_sellers_keep_theirs(doors: Doors) -> None:
    before = doors.batch()
    assert list(before.columns) == list(COLUMNS)
    for product in doors.of_ann()[:5]:
        assert doors.correct(product, other_category(before.loc[product.id]))["state"] == "new"
    after = doors.batch("e.parquet")
    assert list(after.columns) == [*COLUMNS, *ADAPTED_COLUMNS]
    mine = np.array([seller_of(one) == "ann" for one in sorted(PRODUCTS, key=lambda one: one.id)])
    assert after["adapted"].any() and not after["adapted"][~mine].any()
    assert set(after["corrections"][mine & (after["status"] != "unreadable")]) == {5}
    readable = mine & (after["status"] != "unreadable")
    assert (after["base_category"][readable] == before["category"][readable]).all()
    assert after["base_category"][~readable].isna().all() and not after["corrections"][~readable].any()
    pd.testing.assert_frame_equal(after.loc[~mine, list(COLUMNS)], before[~mine])
    for product in PRODUCTS:
        fields = {"seller": seller_of(product)} if seller_of(product) else {}
        response = doors.http(product, **fields)
        if fields:
            same_decision(after.loc[product.id], response)
        else:
            assert list(response) == [*COLUMNS, "photos"]


def test_a_correction_changes_the_next_decision_of_its_seller_at_once(doors: Doors) -> None:
    product = doors.of_ann()[0]
    base = doors.http(product, seller="ann")
    assert (base["adapted"], base["base_category"], base["corrections"]) == (False, None, 0)
    category = "milk" if base["category"] != "milk" else "oats"
    for number in range(4):
        doors.correct(replace(product, id=f"like {number}"), category)
    found = doors.http(product, seller="ann")
    assert (found["category"], found["adapted"], found["corrections"]) == (category, True, 4)
    assert found["base_category"] == base["category"]
    plain = {name: value for name, value in base.items() if name not in ADAPTED_COLUMNS}
    others = doors.http(product, seller="bob")
    assert (
        doors.http(product)
        == plain
        == {name: value for name, value in others.items() if name not in ADAPTED_COLUMNS}
    )


@pytest.mark.parametrize("how", ["set aside", "deleted", "undone", "flagged"])
def test_corrections_out_of_use_count_no_more_and_those_that_look_wrong_wait_for_a_person(
    tmp_path: Path, bundle: Bundle, how: str
) -> None:
    doors = Doors(tmp_path, bundle, adapter_of(bundle.categorizer))
    before = doors.batch()
    made = [doors.correct(one, other_category(before.loc[one.id]))["id"] for one in doors.of_ann()[:5]]
    doors.corrections.add([(Correction("bob", "nothing", "milk"), None)])  # somebody's stay in use
    adapted = doors.batch("adapted.parquet")
    chosen = adapted.index[adapted["adapted"] & (adapted["status"] == "accepted")]
    assert len(chosen)
    if how == "flagged":
        doors.corrections.flag("ann", "test")
    elif how == "set aside":
        doors.corrections.set_aside("ann", "test")
    elif how == "deleted":
        doors.corrections.delete_seller("ann")
    else:
        assert doors.corrections.undo(made) == 5
    after = doors.batch("after.parquet")
    by_id = {one.id: one for one in PRODUCTS}
    for name in chosen:
        same_decision(after.loc[name], doors.http(by_id[name], seller="ann"))
    if how == "flagged":
        changed = adapted.loc[chosen, "category"] != before.loc[chosen, "category"]
        assert (after.loc[chosen, "status"][changed] == "review").all() and changed.any()
        assert (after.loc[chosen, "category"][changed] == adapted.loc[chosen, "category"][changed]).all()
        doors.corrections.restore("ann")
        pd.testing.assert_frame_equal(doors.batch("restored.parquet"), adapted)
    else:
        pd.testing.assert_frame_equal(after.loc[chosen, list(COLUMNS)], before.loc[chosen])
        assert not after["adapted"].any()
