"""What sellers' corrections bring, measured with a method whose result is known without measuring."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from catalogues import encoded, write_manifest
from compared_shop import shelfmark
from PIL import Image

from features.errors import ShelfmarkError
from models.decisions.adapted import Encoded, SellerState
from models.decisions.suspicion import LIMIT
from models.decisions.thresholds import Certificate
from models.sellers.resamples import stratified_split
from pipeline.train import by_seller
from pipeline.train.by_seller import MeasuredSeller, adapt_seller, choose_sellers, gains_of, interval
from pipeline.train.figures import SellersFigures

NAMES = np.array(["mug", "cup", "bowl"], dtype=object)


@dataclass
class Renaming:
    """What a seller of `Fake` has learnt: base category → true category, from one correction on."""

    said: dict[str, str]


class Fake:
    """Says the category that a product's bottleneck names, or what the seller said of one like it.

    A changed category is accepted, another one needs a person, unless it is a cup.
    """

    def __init__(self, evidence: float = 0.0) -> None:
        self.evidence = evidence
        self.categorizer = SimpleNamespace(rules=SimpleNamespace(cascade=None))
        self.rules = SimpleNamespace(
            method="votes", certificate=Certificate(0.9, 0.1, 100, 100, threshold=0.8)
        )

    def encode(self, bottlenecks: np.ndarray, bounds: np.ndarray, claimed: Sequence[str]) -> list[Encoded]:
        rows = bottlenecks[bounds[:-1]]
        return [Encoded("head", NAMES[int(row[0])], row, self.evidence) for row in rows]

    def state(
        self, vectors: np.ndarray, base: Sequence[str], true: Sequence[str], corrections: int, flagged: bool
    ) -> SellerState:
        assert len(vectors) == len(base) == len(true) == corrections
        said = {} if flagged else dict(zip(base, true, strict=True))
        return SellerState(Renaming(said), corrections, flagged)  # type: ignore[arg-type]

    def decide(
        self,
        product_id: np.ndarray,
        bottlenecks: np.ndarray,
        bounds: np.ndarray,
        sellers: Sequence[SellerState | None],
        again: np.ndarray | None = None,
    ) -> pd.DataFrame:
        base = NAMES[bottlenecks[bounds[:-1]][:, 0].astype(int)]
        said: list[dict[str, str]] = [getattr(one and one.model, "said", {}) for one in sellers]
        category = np.array([own.get(name, name) for own, name in zip(said, base, strict=True)], object)
        accepted = (category != base) | (category == "cup")
        return pd.DataFrame(
            {
                "product_id": product_id,
                "category": category,
                "status": np.where(accepted, "accepted", "review"),
                "adapted": category != base,
            }
        )


def products_of(seller: str, base: list[int], true: list[str], images: int = 2) -> MeasuredSeller:
    """Products of `images` rows; the first number of a row is the base category."""
    bounds = np.arange(len(base) + 1) * images
    ids = np.array([f"{seller}-{number}" for number in range(len(base))], object)
    bottlenecks = np.repeat(np.array(base, np.float16), images)[:, None]
    return MeasuredSeller(seller, ids, bottlenecks, bounds, np.array(true, object), np.ones(len(base), bool))


def row_of(fake: Fake, one: MeasuredSeller) -> dict[str, Any]:
    return adapt_seller(fake, one)  # type: ignore[arg-type]


def test_a_seller_who_calls_all_mugs_cups_is_understood_after_a_few_corrections() -> None:
    """Of 100 products the base calls 50 mugs and 50 cups; all are cups: 10 judged, ten times."""
    row = row_of(Fake(), products_of("s", [0, 1] * 50, ["cup"] * 100))
    assert row["tests"] == 100
    base = row["base"]
    assert 30 <= base <= 70 and row["correct_0"] == base
    assert base < row["correct_5"] <= 100  # five corrections without a mug: 3 %
    assert row["correct_15"] == row["correct_50"] == row["correct_all"] == row["oracle"] == 100
    assert row["gain"] == (100 - base) / 100
    assert row["changed"] == row["adapted"] == row["adapted_correct"] == 100 - base
    assert (row["base_accepted"], row["base_accepted_correct"]) == (base, base)
    assert (row["accepted"], row["accepted_correct"]) == (100, 100)
    assert row["flagged"] == 0


def test_a_seller_who_says_anything_of_mugs_loses_and_the_oracle_does_not() -> None:
    """Nine of ten are mugs, as the base says; one of ten is a bowl, and the last one said counts for all."""
    row = row_of(Fake(), products_of("s", [0] * 100, (["mug"] * 9 + ["bowl"]) * 10))
    assert (row["tests"], row["base"]) == (100, 90)
    assert row["correct_all"] < 90 and row["gain"] < 0
    assert row["oracle"] >= row["base"]


def test_flagged_sellers_change_nothing() -> None:
    row = row_of(Fake(evidence=LIMIT / 10), products_of("s", [0, 1] * 50, ["cup"] * 100))
    assert row["flagged"] == 10
    assert row["correct_5"] > row["base"]  # not flagged before the tenth correction
    assert row["correct_15"] == row["correct_all"] == row["base"]


def test_a_product_is_judged_with_all_of_its_images_and_only_its_own() -> None:
    one = products_of("s", [0, 1, 2], ["mug", "cup", "bowl"], images=1)
    bottlenecks, bounds = np.array([[0], [1], [1], [1], [2]], np.float16), np.array([0, 1, 4, 5])
    mixed = MeasuredSeller("s", one.product_id, bottlenecks, bounds, one.true, one.again)
    rows, bounds = mixed.taken(np.array([1, 0, 1]))
    assert rows[:, 0].tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert bounds.tolist() == [0, 3, 4, 7]


def test_the_split_is_a_tenth_of_each_category_on_average() -> None:
    category = np.repeat(["a", "b", "c"], [100, 12, 3])
    judged = []
    for seed in range(300):
        corrected, test = stratified_split(category, np.random.default_rng(seed))
        assert sorted([*corrected, *test]) == list(range(115))
        judged.append([(category[test] == name).sum() for name in "abc"])
    assert np.mean(judged, axis=0) == pytest.approx([10, 1.2, 0.3], abs=0.1)
    assert {one[0] for one in judged} == {10}  # a tenth of 100 is 10


# Which sellers


def catalogue(sellers: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seller, id and duplicate group of products; each product is alone in its group."""
    seller = np.repeat(np.array(list(sellers), object), list(sellers.values()))
    ids = np.array([f"p{number}" for number in range(len(seller))], object)
    return seller, ids, ids.copy()


def test_ten_sellers_apart_from_training_are_enough_to_leave_out_all_others() -> None:
    seller, ids, group = catalogue({f"apart{number}": 10 for number in range(10)} | {"trained": 500})
    chosen = choose_sellers(seller, ids, group, {"trained"})
    assert chosen.apart and sorted(chosen.products) == sorted(f"apart{number}" for number in range(10))
    fewer = choose_sellers(seller[10:], ids[10:], group[10:], {"trained"})
    assert not fewer.apart and len(fewer.products) == 10 and "trained" in fewer.products
    assert (fewer.there, fewer.enough, fewer.apart_enough) == (10, 10, 9)


def test_sellers_and_their_products_are_limited_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_seller, "SELLERS", 5)
    monkeypatch.setattr(by_seller, "PRODUCTS", 12)
    seller, ids, group = catalogue({f"s{number}": 30 for number in range(20)})
    chosen = choose_sellers(seller, ids, group, set())
    assert [len(rows) for rows in chosen.products.values()] == [12] * 5
    order = np.random.default_rng(0).permutation(len(ids))
    again = choose_sellers(seller[order], ids[order], group[order], set())
    for name, rows in chosen.products.items():
        assert set(ids[rows]) == set(ids[order][again.products[name]])


def test_products_that_share_a_photo_count_once_and_products_without_seller_not_at_all() -> None:
    seller, ids, group = catalogue({"alike": 40, "own": 40})
    group[:38] = "same"
    seller[78:] = None
    chosen = choose_sellers(seller, ids, group, set())
    assert (chosen.there, chosen.enough, chosen.products, chosen.reason) == (2, 1, {}, "few products")
    nobody = choose_sellers(np.full(80, None, object), ids, group, set())
    assert (nobody.there, nobody.reason) == (0, "no sellers")


# Intervals


def test_the_interval_is_that_of_sellers_not_of_products() -> None:
    """40 sellers of 100 products with gains of 2 % to 18 %: the deviation of their mean is 4.7 / √40."""
    gain = np.linspace(2, 18, 40)
    mean, lower, upper = interval(gain, np.full(40, 100))
    assert mean == pytest.approx(0.1)
    half = 1.96 * gain.std() / 100 / np.sqrt(40)
    assert (lower, upper) == (pytest.approx(0.1 - half, abs=0.001), pytest.approx(0.1 + half, abs=0.001))
    assert interval(np.zeros(3), np.zeros(3)) == (None, None, None)


def test_gains_name_how_many_sellers_made_so_many_corrections() -> None:
    rows = [
        row_of(Fake(), products_of(f"s{count}", [0, 1] * (count // 2), ["cup"] * count))
        for count in (10, 20, 100)
    ]
    gains = gains_of(pd.DataFrame(rows))
    assert gains["corrections"].tolist() == [0, 5, 15, 50, pd.NA]
    assert gains["sellers"].tolist() == [3, 3, 2, 1, 3]
    assert gains["gain"].iloc[0] == 0
    assert gains["gain"].is_monotonic_increasing
    assert (gains["adapted"] - gains["base"]).tolist() == pytest.approx(gains["gain"].tolist())


# The files


def test_the_artifact_says_who_was_measured_and_what_was_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sellers of 20 products: one calls mugs cups, for the other the base is correct."""
    base, true = [0] * 20 + [1] * 20, ["cup"] * 40
    part = SimpleNamespace(
        product_id=np.repeat(np.array([f"p{number:02}" for number in range(42)], object), 2),
        image_digest=np.array([f"{number:064x}" for number in range(84)], object),
        rows=np.repeat(np.array([*base, 2, 2], np.float16), 2)[:, None],
    )
    ids = [f"p{number:02}" for number in range(42)]
    seller = ["renamer"] * 20 + ["plain"] * 20 + [None, None]
    table = pd.DataFrame({"product_id": ids, "category": [*true, "bowl", "bowl"], "split": "test"})
    file = tmp_path / "products.parquet"
    table.assign(seller=seller).to_parquet(file)
    summary = {"products": 42, "images": 84, "records": {"train": 0, "val": 0, "test": 84}, "rejects": {}}
    summary |= dict.fromkeys(
        (
            *("uncategorized_products", "uncategorized_images", "dropped_products", "dropped_images"),
            *("dropped_categories", "unreadable_products", "images_of_several_products"),
            *("images_in_several_categories", "placeholder_images"),
        ),
        0,
    )
    records: Any = SimpleNamespace(file=lambda name: file, summary=summary, path=tmp_path)
    trees = SimpleNamespace(category=table.set_index("product_id")["category"])
    monkeypatch.setattr(by_seller.TrueCategories, "of", lambda records: trees)
    figures = by_seller.write_by_seller(Fake(), part, records, tmp_path)  # type: ignore[arg-type]
    assert (figures.measured_on, figures.apart, figures.sellers_there, figures.sellers) == (
        "test",
        False,
        2,
        2,
    )
    assert (figures.better, figures.same, figures.worse, figures.reason) == (1, 1, 0, None)
    assert figures.base is not None and 0.3 < figures.base < 0.7
    assert figures.adapted == figures.oracle == 1.0
    assert figures.accepted_adapted is not None and figures.accepted_adapted.precision == 1.0
    sellers = pd.read_parquet(tmp_path / "sellers.parquet").set_index("seller")
    assert sellers.loc["renamer", "gain"] == 1.0 and sellers.loc["plain", "gain"] == 0.0
    assert SellersFigures.model_validate_json((tmp_path / "by_seller.json").read_bytes()) == figures
    assert len(pd.read_parquet(tmp_path / "gains.parquet")) == 5


# From photos to the report

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 50)}


def plain_photo(colour: tuple[int, int, int], rng: np.random.Generator) -> bytes:
    """A JPEG of nearly one colour."""
    shape = (40, 40, 3)
    pixels = np.array(colour) + rng.normal(0, 25, 3) + rng.normal(0, 12, shape)
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "JPEG")


def shop_with_sellers(folder: Path) -> Path:
    """A manifest: 12 sellers in test, 24 in validation, of both every other one calls green things blue.

    Three sellers in training call all colours by their names. Each product has one photo.
    """
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    rows: list[dict[str, Any]] = []
    parts = [*(["test"] * 12), *(["val"] * 24), *(["train"] * 3)]
    for number, part in enumerate(parts):
        for product in range({"test": 18, "val": 12, "train": 60}[part]):
            shown = sorted(COLOURS)[product % 3]
            name = f"s{number}-{product}"
            (folder / "photos" / f"{name}.jpg").write_bytes(plain_photo(COLOURS[shown], rng))
            odd = part != "train" and number % 2 == 0
            category = "blue" if odd and shown == "green" else shown
            rows.append(
                {"product_id": name, "image": f"photos/{name}.jpg", "category": category, "split": part}
                | {"seller": f"seller {number}"}
            )
    return write_manifest(folder / "shop.csv", rows)


SETTINGS = """
head = {{hidden = [16, 16]}}
train = {{epochs = 30, batch = 32, precision = "float32"}}
calibration = {{precision = 0.7}}
backbone = {{name = "mobilenet", weights = "{weights}", image_size = 32}}
"""


@pytest.mark.parametrize("method", ["votes", pytest.param("paper", marks=pytest.mark.slow)])
def test_sellers_with_a_word_of_their_own_gain_and_the_report_shows_it(
    method: str, drawn_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = shop_with_sellers(tmp_path)
    (tmp_path / "weekly.toml").write_text(SETTINGS.format(weights=drawn_weights))
    more = ("--config", str(tmp_path / "weekly.toml"), "--set", f"sellers.method={method}")
    assert shelfmark("ingest", tmp_path, *more, source=(str(manifest),)) == 0
    for command in ("extract", "train", "calibrate", "evaluate"):
        assert shelfmark(command, tmp_path) == 0, command
    capsys.readouterr()
    assert shelfmark("evaluate", tmp_path, "--by", "seller") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 sellers, 216 products of test; none had products in training"
    run = tmp_path / "W/runs/week"
    figures = SellersFigures.model_validate_json((run / "by_seller/by_seller.json").read_bytes())
    assert figures.method == method and figures.apart and figures.reason is None
    assert figures.adapted is not None and figures.base is not None and figures.oracle is not None
    sellers = pd.read_parquet(run / "by_seller/sellers.parquet").set_index("seller")
    odd = [f"seller {number}" for number in range(0, 12, 2)]
    assert (sellers.loc[odd, "gain"] > 0).all() and sellers.drop(index=odd)["gain"].min() > -0.1
    assert figures.base < 0.9 < figures.adapted <= figures.oracle
    assert shelfmark("report", tmp_path, "--set", "report.language=en") == 0
    page = (run / "report/index.html").read_text()
    assert "measured with 12 sellers." in page and "None of them had a product in training" in page


def test_without_a_method_there_is_nothing_to_evaluate() -> None:
    run: Any = SimpleNamespace(config=SimpleNamespace(sellers=SimpleNamespace(method="none")))
    with pytest.raises(
        ShelfmarkError, match=r"sellers\.method is none, so .* run `shelfmark calibrate --set"
    ):
        by_seller.by_seller(run)
