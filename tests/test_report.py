"""The report page as it is written; in a browser: test_browser.py."""

import io
import json
import re
import shutil
import string
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_runs import HOSTILE, draw_run, write_maps

from features.errors import ShelfmarkError
from models.decisions.boosting import Boosting, Tree
from models.decisions.confidence import ConfidenceModel
from models.decisions.thresholds import Certificate
from pipeline.job.config import Config
from pipeline.job.run import Run
from pipeline.report import page, photos, tables
from pipeline.report.changes import compare
from pipeline.report.data import load
from pipeline.report.language import Words
from pipeline.report.page import build, render
from pipeline.report.report import compare_runs, write_report
from pipeline.report.texts import TEXTS
from pipeline.report.two_runs import render_two

PIPELINE = Path(page.__file__).parent
SAME_IN_BOTH = {  # words that English and French share
    "part.val", "part.cert", "part.test", "part.val.small", "part.cert.small", "part.test.small",
    "cumulative.precision", "col.photo", "col.estimate", "col.interval", "col.confidence", "col.images",
    "col.coefficient", "col.corrections",
    "col.gain", "sellers.gain", "col.importance", "col.verdict", "two.in", "reliability.x",
    "col.photo_typical",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(drawn: Path, tmp_path: Path) -> Path:
    """A copy of a drawn run, in English, for one test to change."""
    copy = tmp_path / "run"
    shutil.copytree(drawn, copy)
    use(copy, language="en")
    return copy


def use(run: Path, **settings: Any) -> None:
    """Changes settings of the section [report]."""
    file = run / "config.json"
    values = json.loads(file.read_text())
    values["settings"]["report"] = values["settings"].get("report", {}) | settings
    file.write_text(json.dumps(values))


def change(run: Path, name: str, **values: Any) -> None:
    file = run / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_test(run: Path, **values: Any) -> None:
    """Changes figures of the test part."""
    file = run / "evaluation/metrics.json"
    metrics = json.loads(file.read_text())
    metrics["test"] |= values
    file.write_text(json.dumps(metrics))


def uncertify(run: Path, needed: int | None, at_best: bool = False) -> None:
    nothing = Certificate(
        0.9, 0.1, 100, 120, more_products_needed=needed, at_best=at_best, reason="it does not show"
    )
    change(run, "thresholds/thresholds.json", certificate=nothing.to_dict())
    change_test(run, threshold=None, accepted=0, accepted_precision=None)


class Page(HTMLParser):
    """The page without scripts: texts, tags with their attributes, and the data of the script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        found = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)
        assert found
        self.data: dict[str, Any] = json.loads(found[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """With ordinary single spaces."""
        return " ".join(" ".join(self.texts).split())

    def table(self, name: str) -> pd.DataFrame:
        """A table as the script gets it."""
        table = self.data["tables"][name]
        return pd.DataFrame(table["rows"], columns=[column["title"] for column in table["columns"]])


def html_of(run: Path) -> str:
    return render(build(load(run), run / "records"))


def read(run: Path) -> Page:
    return Page(html_of(run))


# What it says


def test_headline_has_the_certified_share_of_all_test_products_and_speaks_of_the_unlearnt(run: Path) -> None:
    metrics = json.loads((run / "evaluation/metrics.json").read_text())["test"]
    text = read(run).text
    rate = f"{100 * metrics['accepted'] / metrics['products']:.1f}%"
    assert f"{rate} of all products can be categorized automatically, with at least 90% of them" in text
    unlearnt = metrics["products"] - metrics["learnt"]["products"]
    assert unlearnt > 0
    assert (
        f"new products like the 2,000 test products. {unlearnt} of these are of categories that were not"
        in text
    )
    assert "Demonstration" not in text and "below the promise" not in text and "independently" not in text


def test_products_that_stop_at_a_parent_are_in_the_headline_and_the_levels(run: Path) -> None:
    page = read(run)
    assert (
        "Of 100 further products the branch of the tree was decided, with 94.0% of these branches correct."
        in (page.text)
    )
    levels = page.table("levels").set_index("Level")
    assert levels.loc["Level 1 (coarsest)", "Products that stop here"] == 100
    assert levels.loc["Level 1 (coarsest)", "Promised"] == 0.85
    assert levels.loc["Level 2 (category)", "Promised"] == 0.9


def test_uncertified_run_accepts_nothing_and_says_what_is_missing(run: Path) -> None:
    uncertify(run, needed=1412)
    text = read(run).text
    assert "Nothing can be categorized automatically" in text
    assert "about 1,412 more certification products are needed, as a catalogue of about" in text
    assert "could be accepted with 90% correct, as measured: not promised, not used" in text
    uncertify(run, needed=20, at_best=True)
    assert "at least 20 more certification products are needed, as a catalogue of about" in read(run).text
    uncertify(run, needed=None)
    assert "more products alone will not change that." in read(run).text
    nothing = Certificate(0.9, 0.1, 100, 120, reason="it does not show").to_dict()
    change(run, "thresholds/thresholds.json", ladder=[nothing])
    assert "No promise is certified, so nothing is decided automatically" in read(run).text


def test_random_weights_are_a_demonstration(run: Path) -> None:
    change(run, "evaluation/metrics.json", weights="random")
    assert "Demonstration only: the backbone’s weights are random." in read(run).text


def test_without_test_products_precision_is_not_independently_measured(run: Path) -> None:
    change(run, "evaluation/metrics.json", test=None, graded_on="cert", independent=False)
    text = read(run).text
    assert "Precision was not independently measured." in text
    assert "Test. There are no such products." in text
    assert "80.5% of all products can be categorized" in text  # 966 of cert's 1200


def test_run_without_any_measured_product_still_has_a_page(run: Path) -> None:
    uncertify(run, needed=None)
    change(
        run, "evaluation/metrics.json", test=None, cert=None, val=None, graded_on="cert", independent=False
    )
    for folder in ("evaluation", "in_service"):
        for name in ("decisions", "measured"):
            file = run / folder / f"{name}.parquet"
            pq.write_table(pq.read_table(file).slice(0, 0), file)
    confusions = run / "evaluation/confusions.parquet"
    pd.read_parquet(confusions).iloc[:0].to_parquet(confusions)
    history = pd.read_csv(run / "head/history.csv")
    history[["epoch", "loss", "accuracy"]].to_csv(run / "head/history.csv", index=False)
    page = read(run)
    assert "Precision was not measured." in page.text
    assert "The last one was kept" in page.text
    assert page.data["chooser"] is None and "acceptance" not in page.data["plots"]


def test_measured_precision_below_the_promise_is_pointed_out(run: Path) -> None:
    change_test(run, accepted_precision=0.887)
    assert "Measured precision is below the promise: 88.7% instead of 90%." in read(run).text


def test_targets_are_a_ladder_with_the_price_in_acceptance(run: Path) -> None:
    page = read(run)
    targets = page.table("targets")
    assert targets["Promise"].tolist() == [0.8, 0.85, 0.9, 0.93, 0.95, 0.97]
    assert (
        targets["State"].tolist() == ["ladder.certified"] * 2 + ["ladder.in_use"] + ["ladder.certified"] * 3
    )
    rates = targets["Accepted, test"].tolist()
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1] > 0
    assert "Looking at many of them costs nothing" in page.text
    values = json.loads((run / "thresholds/thresholds.json").read_text())
    values["ladder"][-1] = Certificate(0.97, 0.1, 100, 120, more_products_needed=77, reason="no").to_dict()
    change(run, "thresholds/thresholds.json", ladder=values["ladder"])
    last = read(run).table("targets").iloc[-1]
    assert last["State"] == "ladder.not" and last["More certification products needed"] == "about 77"


def test_the_certificate_in_use_has_a_row_of_its_own_where_it_is_stricter(run: Path) -> None:
    values = json.loads((run / "thresholds/thresholds.json").read_text())
    values["certificate"]["threshold"] += 0.01
    change(run, "thresholds/thresholds.json", certificate=values["certificate"])
    targets = read(run).table("targets")
    both = targets[targets["Promise"] == 0.9]
    assert both["State"].tolist() == ["ladder.certified", "ladder.in_use"]
    assert both["Threshold"].iloc[0] < both["Threshold"].iloc[1]


def test_hours_saved_follow_from_the_settings(run: Path) -> None:
    use(run, minutes_per_product=6.0, wage=30.0, currency="CHF")
    page = read(run)
    cost = page.table("cost")
    row = cost[cost["Promise"] == 0.9].iloc[0]
    assert row["Automatic a week"] + row["For people a week"] == 500  # products without category
    assert row["Hours saved a week"] == pytest.approx(row["Automatic a week"] * 6 / 60)
    assert row["Saved a week, CHF"] == pytest.approx(row["Hours saved a week"] * 30)
    use(run, wage=0.0)
    assert "Saved a week, CHF" not in read(run).table("cost")


def test_page_has_parts_products_with_new_photos_learnt_ones_and_weights(run: Path) -> None:
    parts = read(run).table("parts")
    assert [name.split(".")[0].split(":")[0] for name in parts["Part"]] == [
        *("Training", "Validation", "Certification", "Test", "Test", "Test")
    ]
    change_test(run, weighted={"products": 2000, "precision": 0.7, "acceptance_rate_at_target": 0.5})
    last = read(run).table("parts").iloc[-1]
    assert last["Part"] == "Test: each product counted by its weight in the source"
    assert last["Correct, everything accepted"] == 0.7


def test_every_image_is_accounted_for(run: Path) -> None:
    page = read(run)
    assert "34,567 images of 21,500 products came in." in page.text
    account = page.table("account")
    assert account["Number"].iloc[:-1].sum() == account["Number"].iloc[-1] == 34567
    assert "Images that several products share: 1,500; 60 of these are in several categories" in page.text


def test_training_under_mixup_is_explained_and_training_accuracy_waits_for_a_click(run: Path) -> None:
    page = read(run)
    assert "Epoch 40 was kept: it has the largest accuracy on validation images" in page.text
    assert "The training line zigzags, because training used mixup" in page.text
    validation, training = page.data["plots"]["accuracy"]["data"]
    assert (validation["name"], training["name"]) == ("validation", "training")
    assert training["visible"] == "legendonly" and "visible" not in validation
    values = json.loads((run / "config.json").read_text())
    values["settings"]["train"] = {"mixup": 0.0}
    (run / "config.json").write_text(json.dumps(values))
    assert "zigzags" not in read(run).text


def test_confidence_shows_its_coefficients_the_weightiest_first(run: Path) -> None:
    page = read(run)
    assert page.table("coefficients")["Name"].tolist() == ["logit_p1", "entropy", "intercept"]
    assert re.search(r"logit_p1 \+1\.31 .*entropy −0\.412 .*intercept \+0\.7", page.text)
    plain = ConfidenceModel("probability", 12, "12 products in FIT")
    change(run, "thresholds/thresholds.json", confidence=plain.to_dict())
    assert "The 12 products of FIT were too few to fit a model." in read(run).text


def test_boosting_shows_the_importances_of_its_evidence(run: Path) -> None:
    tree = Tree((0, -1, -1), (0.5, 0, 0), (1, 0, 0), (2, 0, 0), (0, -1.0, 1.0))
    boosting = Boosting(("logit_p1", "logistic"), 0.1, (tree,), {"logit_p1": 0.125, "logistic": 0.875})
    model = ConfidenceModel("boosting", 6000, coefficient={"logit_p1": 1.31}, boosting=boosting)
    change(run, "thresholds/thresholds.json", confidence=model.to_dict())
    page = read(run)
    assert re.search(r"what the logistic model says logistic 87\.5% .*logit_p1 12\.5%", page.text)
    assert page.table("coefficients")["Name"].tolist() == ["logit_p1", "intercept"]


def test_boosting_on_too_few_products_says_so(run: Path) -> None:
    model = ConfidenceModel("logistic", 600, "600 products in FIT", coefficient={"logit_p1": 1.31})
    change(run, "thresholds/thresholds.json", confidence=model.to_dict())
    assert "The 600 products of FIT were too few for boosting." in read(run).text


def test_settings_show_the_values_used_and_no_paths_of_this_computer(run: Path) -> None:
    html = html_of(run)
    settings = Page(html).table("settings").set_index("Setting")["Value"]
    assert settings["head.hidden"] == "512, 512"
    assert (
        settings["head.loss"] == "summed"
        and settings["train.mixup"] == "1"
        and settings["train.epochs"] == "150"
    )
    assert settings["backbone.image_size"] == "299" and settings["head.aggregation"] == "mean"
    assert settings["backbone.weights"] == "w.h5" and "/data" not in html and str(run) not in html
    assert "None" not in settings.to_list() and "null" not in settings.to_list()


def test_the_views_that_decide_are_named_and_with_a_cascade_when_the_first_does(run: Path) -> None:
    text = read(run).text
    assert "Predictions are made from these views of each photo: whole" in text
    assert "The first one decides" not in text and "The head reads their mean." not in text
    change(run, "head/head.json", views=["whole", "352-center"])
    change(run, "thresholds/thresholds.json", cascade={"limit": 0.6125, "share": 0.3984})
    page = read(run)
    assert "these views of each photo: whole, 352-center" in page.text
    assert (
        "it gives a probability of 0.6125 or more. All of them decide about the others: 39.8% of" in page.text
    )
    settings = page.table("settings").set_index("Setting")["Value"]
    assert settings["extract.views"] == settings["extract.asked"] == "whole, 352-center"
    use(run, language="fr")
    assert "probabilité de 0,6125 ou plus" in read(run).text
    change(run, "head/head.json", averaged=True)
    assert "352-center Le modèle lit leur moyenne." in read(run).text


# Categories, confusions, suspects, changes


def test_category_with_most_errors_comes_first_and_hostile_names_stay_text(run: Path) -> None:
    html = html_of(run)
    page = Page(html)
    categories = page.table("categories")
    expected = pd.read_parquet(run / "evaluation/categories.parquet")
    wrong = (expected["products"] - expected["right"]).sort_values(ascending=False)
    assert categories["Wrong"].tolist() == wrong.tolist()
    assert len(categories) == 35
    assert HOSTILE not in html and categories["Category"].str.contains(HOSTILE, regex=False).sum() == 1
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        *("application/json", "text/plain", None)
    ]


def test_small_curve_of_a_category_is_its_precision_by_confidence(run: Path) -> None:
    data = load(run)
    curve = read(run).table("categories").set_index("Category id")["Curve"]["c3"]
    decided = pd.read_parquet(run / "evaluation/decisions.parquet")
    measured = pd.read_parquet(run / "evaluation/measured.parquet")
    here = measured["correct"][decided["category"] == "c3"].to_numpy()
    ordered = here[np.argsort(-decided["confidence"][decided["category"] == "c3"].to_numpy(), kind="stable")]
    shares = [ordered[: int(np.ceil(len(ordered) * step / 10))].mean() for step in range(1, 11)]
    assert curve == [round(100 * share) for share in shares]
    assert tables.category_curves(data.products, pd.Series(["unknown"])) == [None]


def test_wrong_products_come_the_most_confident_first(run: Path) -> None:
    wrong = read(run).table("wrong")
    measured = pd.read_parquet(run / "evaluation/measured.parquet")
    confidence = pd.read_parquet(run / "evaluation/decisions.parquet")["confidence"][~measured["correct"]]
    assert wrong["Confidence"].tolist() == confidence.sort_values(ascending=False).head(200).tolist()


def test_a_sentence_says_that_there_is_no_confusion(run: Path) -> None:
    file = run / "evaluation/confusions.parquet"
    pd.read_parquet(file).iloc[:0].to_parquet(file)
    assert "No test product was put into a wrong category." in read(run).text


def test_unlearnt_categories_are_listed_with_what_became_of_them(run: Path) -> None:
    page = read(run)
    assert page.table("unlearnt")["Category id"].sort_values().tolist() == ["c35", "c36", "c37", "c38", "c39"]
    measured = pd.read_parquet(run / "evaluation/unlearnt.parquet")["measured"].sum()
    assert f"of their {measured} test products were accepted into another category" in page.text


def test_suspects_are_shown_and_without_them_the_command_that_finds_them(run: Path) -> None:
    page = read(run)
    suspects = page.table("suspects")
    assert len(suspects) == 60 and suspects["Photo"].notna().sum() == 40
    assert suspects["Label wrong, probability"].isna().tolist() == [False] * 59 + [True]
    assert "the prediction, an identical image elsewhere" in suspects["Reason"].tolist()
    assert "6.2% of all labels are wrong. If so" in page.text and "is above that" not in page.text
    change(run, "suspects/manifest.json", summary={"noise": 0.12})
    assert "The promised 90% is above that" in read(run).text
    shutil.rmtree(run / "suspects")
    assert "shelfmark audit suspects" in read(run).text


def test_changes_are_those_of_the_products_that_both_decided_about(run: Path) -> None:
    before, after = (
        pd.read_parquet(run / name / "measured.parquet") for name in ("in_service", "evaluation")
    )
    gained = int((~before["correct"] & after["correct"]).sum())
    lost = int((before["correct"] & ~after["correct"]).sum())
    page = read(run)
    assert (
        f"Products that became correct: {gained}; that became wrong: {lost} (McNemar’s exact test: p"
        in page.text
    )
    assert "release 2026-W46, both on the same 2,000 test products" in page.text
    assert "Categories of these products that are learnt now and were not before: 2." in page.text
    everything = page.table("changes").iloc[2]
    assert everything["Before"] == before["correct"].mean() and everything["Now"] == after["correct"].mean()
    departments = page.table("changed_departments")
    assert departments["Became correct"].sum() == gained and departments["Products"].sum() == 2000
    assert set(page.table("became_correct")["Product"]) <= set(after["product_id"][after["correct"]])


def test_changes_find_the_products_in_another_order_and_leave_out_the_others(run: Path) -> None:
    same = compare(load(run).in_service, load(run).products, load(run).department)  # type: ignore[arg-type]
    for name in ("decisions", "measured"):
        file = run / "in_service" / f"{name}.parquet"
        table = pq.read_table(file)
        table = table.take(pa.array(np.arange(len(table))[::-1]))
        pq.write_table(pa.concat_tables([table.slice(0, 1500), _renamed(table.slice(1500))]), file)
    fewer = compare(load(run).in_service, load(run).products, load(run).department)  # type: ignore[arg-type]
    assert same and fewer and (same.products, fewer.products) == (2000, 1500)
    assert set(fewer.became_correct) < set(same.became_correct)


def _renamed(table: pa.Table) -> pa.Table:
    ids = pa.array([f"other {number}" for number in range(len(table))])
    return table.set_column(table.column_names.index("product_id"), "product_id", ids)


def test_the_verdict_is_shown_as_it_is_written(run: Path) -> None:
    assert "Verdict:" not in read(run).text
    (run / "verdict.json").write_text(json.dumps({"sentence": "better than release <b>: it accepts more"}))
    assert "Verdict: better than release <b>: it accepts more." in read(run).text


def test_before_the_first_release_nothing_has_changed(run: Path) -> None:
    shutil.rmtree(run / "in_service")
    assert "No release was in service when this run began" in read(run).text


# Photos


def test_photos_are_small_webp_pictures_of_the_products_they_stand_for(run: Path) -> None:
    data = read(run).data
    assert 200 < len(data["photos"]) == len(data["photo_ids"]) <= 300
    confused = data["tables"]["wrong"]["rows"][0]
    assert data["photo_ids"][confused[0]] in (confused[1], f"{int(confused[1][1:]):064x}")
    product = data["photo_ids"].index(confused[1])
    import base64

    with Image.open(io.BytesIO(base64.b64decode(data["photos"][product]))) as photo:
        assert photo.format == "WEBP" and photo.size == (128, 96)
        measured = pd.read_parquet(run / "evaluation/measured.parquet").set_index("product_id")
        category = int(measured["true_category"][confused[1]][1:])
        drawn = photo.convert("RGB").getpixel((64, 40))
    expected = (37 * category % 200, 91 * category % 200, 53 * category % 200)
    assert isinstance(drawn, tuple) and np.abs(np.subtract(drawn, expected)).max() < 40


def test_photos_of_a_category_are_of_products_predicted_as_it(run: Path) -> None:
    data = read(run).data
    decided = pd.read_parquet(run / "evaluation/decisions.parquet").set_index("product_id")
    correct = pd.read_parquet(run / "evaluation/measured.parquet").set_index("product_id")["correct"]
    assert len(data["details"]) == 10
    for category, kinds in data["details"].items():
        ids = {kind: [data["photo_ids"][number] for number in own] for kind, own in kinds.items()}
        assert all((decided["category"][own] == category).all() for own in ids.values() if own)
        assert correct[ids["correct"]].all() and not correct[ids["wrong"]].any()
        assert all(len(own) <= 5 for own in ids.values())


def most_wrong(run: Path, count: int) -> list[str]:
    """Products of the run's wrong decisions, the most confident first."""
    measured = pd.read_parquet(run / "evaluation/measured.parquet")
    confidence = pd.read_parquet(run / "evaluation/decisions.parquet")["confidence"]
    wrong = measured.loc[~measured["correct"], "product_id"]
    return wrong[confidence[wrong.index].sort_values(ascending=False, kind="stable").index][:count].tolist()


def test_photos_have_the_maps_of_their_products(run: Path) -> None:
    first, second = most_wrong(run, 2)
    write_maps(run, [first, second, "no such product"])
    data = read(run).data
    assert [data["photo_ids"][int(number)] for number in data["maps"]] == [first, second]
    with (
        Image.open(io.BytesIO(b64decode(data["maps"][str(data["photo_ids"].index(first))]))) as drawn,
        Image.open(io.BytesIO(b64decode(data["photos"][data["photo_ids"].index(first)]))) as photo,
    ):
        assert drawn.format == "WEBP" and drawn.size == photo.size == (128, 96)
        light = np.asarray(drawn.convert("L")).astype(int)
    assert light[:32, 100:].mean() > light[:, :40].mean() + 40
    assert read(run).text.count("In 2 photos of wrong and doubtful products: what is light speaks for") == 2


def test_a_page_without_maps_offers_none(run: Path) -> None:
    page = read(run)
    assert page.data["maps"] == {} and "Show where the network looked" not in page.text


def test_maps_of_another_version_are_named(run: Path) -> None:
    write_maps(run, ["p1"])
    file = run / "maps/maps.parquet"
    pd.read_parquet(file).drop(columns="heat").to_parquet(file)
    with pytest.raises(ShelfmarkError, match=r"maps\.parquet: not usable \(no column heat\)"):
        load(run)
    write_wrong = pd.DataFrame({"product_id": ["p1"], "rows": [4], "heat": [[1, 2, 3]]})
    write_wrong.to_parquet(file)
    with pytest.raises(ShelfmarkError, match=r"maps\.parquet: not usable .*run `shelfmark evaluate` again"):
        load(run)


def test_wrong_products_and_doubtful_ones_take_turns_for_maps() -> None:
    details = {"a": {"correct": [], "wrong": [1], "doubtful": [7, 1]}, "b": {"doubtful": [8]}}
    choice = photos.Choice(wrong=[1, 2, 3, 4, 5], categories=details)
    assert choice.mapped(30) == [1, 2, 7, 3, 4, 5, 8]
    assert choice.mapped(3) == [1, 2, 7]


def test_number_of_photos_is_a_setting(run: Path) -> None:
    use(run, thumbnails=30)
    assert 10 < len(read(run).data["photos"]) <= 30
    use(run, thumbnails=0)
    assert read(run).data["photos"] == []


def test_photos_stop_at_the_largest_size_of_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MOST_BYTES", 50_000)
    found = read(run).data["photos"]
    assert 10 < len(found) < 200 and sum(map(len, found)) <= 50_000


def test_records_without_images_are_named(run: Path) -> None:
    (run / "records/images.parquet").unlink()
    with pytest.raises(ShelfmarkError, match=r"images\.parquet: missing; .*run `shelfmark ingest` first"):
        html_of(run)


# Languages


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_what_changed_in_the_tree_is_a_table_in_both_languages(run: Path) -> None:
    (run / "tree").mkdir()
    (run / "tree" / "changes.csv").write_text(
        "category,kind,targets,reason,products_before,products_now,withheld\n"
        f"0017,rename,NA,,120,130,no\n{HOSTILE},split,a | b,a person has to choose,80,0,no\n"
        "<b>new</b>,add,,,0,12,yes\n"
    )
    found = load(run).tree
    assert found is not None
    shown = build(load(run), run / "records").tables["tree"]
    assert [list(row) for row in shown.rows] == [
        ["0017", "tree.rename", "NA", 120, 130, False],
        [HOSTILE, "tree.split", "a | b", 80, 0, False],
        ["<b>new</b>", "tree.add", None, 0, 12, True],
    ]
    assert "What changed in the tree" in read(run).text
    use(run, language="fr")
    assert "Ce qui a changé dans l’arborescence" in read(run).text
    (run / "tree" / "changes.csv").write_text(
        "category,kind,targets,reason,products_before,products_now,withheld\n"
    )
    assert "L’arborescence est la même" in read(run).text


# Sellers


def test_what_corrections_bring_is_a_sentence_a_plot_and_tables(run: Path) -> None:
    sellers = pd.read_parquet(run / "by_seller/sellers.parquet")
    page = read(run)
    tests = sellers["tests"].sum()
    base, most = (f"{100 * sellers[name].sum() / tests:.1f}%" for name in ("base", "correct_all"))
    assert f"{most} of the categories are correct instead of {base}" in page.text
    assert "measured with 40 sellers. None of them had a product in training" in page.text
    assert "The corrections of 1 of these sellers looked wrong" in page.text
    assert "Not shown: 25 of the 65 sellers" in page.text
    gains = page.table("seller_gains")
    assert gains["Corrections"].tolist() == ["0", "5", "15", "50", "all"]
    assert page.data["plots"]["seller_gains"]["data"][0]["y"] == pytest.approx(
        (100 * gains["Gain, points"]).round(3).tolist(), abs=0.002
    )
    assert page.table("seller_decisions")["Decisions"].tolist()[0] == "Without corrections"
    best = page.table("sellers")
    expected = sellers.sort_values("gain")["gain"]
    assert best["Gain, points"].tolist() == [*expected[:-9:-1], *expected[7::-1]]
    assert set(best["State"]) == {"sellers.gains", "sellers.loses"}


def test_sellers_whose_other_products_were_in_training_are_named_as_such(run: Path) -> None:
    change(run, "by_seller/by_seller.json", apart=False, apart_enough=3, certified=False)
    text = read(run).text
    assert "Other products of these sellers were in training: of the 40 sellers" in text
    assert "No threshold for decisions that corrections made is certified for 90%" in text


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("no sellers", "none of the measured products has a seller. Give the column seller"),
        ("few products", "1 of the 7 sellers have at least 10 measured products"),
        (None, "Not measured in this run. This command measures it: shelfmark evaluate --by seller"),
        ("off", "the setting sellers.method is none"),
    ],
)
def test_the_page_says_why_sellers_were_not_measured(run: Path, reason: str | None, sentence: str) -> None:
    if reason in (None, "off"):
        shutil.rmtree(run / "by_seller")
    else:
        nothing = {"sellers": 0, "products": 0, "tests": 0, "sellers_there": 7, "enough": 1}
        change(run, "by_seller/by_seller.json", reason=reason, base=None, **nothing)
        for name in ("gains", "sellers"):
            file = run / f"by_seller/{name}.parquet"
            pd.read_parquet(file).iloc[:0].to_parquet(file)
    if reason == "off":
        file = run / "config.json"
        values = json.loads(file.read_text())
        values["settings"]["sellers"] = {"method": "none"}
        file.write_text(json.dumps(values))
    page = read(run)
    assert sentence in page.text
    assert "seller_gains" not in page.data["plots"] and "sellers" not in page.data["tables"]


def test_no_text_is_forgotten_in_french() -> None:
    for key, (english, french) in TEXTS.items():
        assert english.strip() and french.strip(), key
        assert places(english) == places(french), key
        assert english != french or key in SAME_IN_BOTH, key


def test_every_text_is_used_and_every_key_exists() -> None:
    files = [*PIPELINE.glob("*.py"), *(PIPELINE / "templates").iterdir()]
    code = "\n".join(file.read_text() for file in files if file.name != "texts.py")
    built = ("part.", "js.", "col.", "reject.", "evidence.", "status.", "levels.", "changes.", "departments.")
    built += ("training.", "ladder.", "reason.")  # keys that the code puts together
    unused = [key for key in TEXTS if not re.search(f"[\"']{re.escape(key)}[\"']", code)]
    assert [key for key in unused if not key.startswith(built)] == []
    columns = re.findall(r'(?:column\(|_both\(\s*words,)\s*"(\w+)"|words\("col\.(\w+)"', code)
    titles = {one or other for one, other in columns} | set(tables.SUSPECT_SHARES)
    assert {f"col.{title}" for title in titles} == {key for key in TEXTS if key.startswith("col.")}
    script = (PIPELINE / "templates/report.js").read_text()
    found = re.findall(r'texts(?:\.(\w+)|\[[`"]([\w.]+)(?:\$.*?)?[`"]\])', script)
    used = {one or other for one, other in found} | {
        f"photos.{kind}" for kind in ("correct", "wrong", "doubtful")
    }
    assert {f"js.{key}" for key in used - {"photos."}} == {key for key in TEXTS if key.startswith("js.")}


def test_numbers_are_written_as_the_language_writes_them(run: Path) -> None:
    english, french = Words("en"), Words("fr")
    assert (english.percent(0.0625), french.percent(0.0625)) == ("6.3%", "6,3\u202f%")
    assert (english.count(21500), french.count(21500)) == ("21,500", "21\u202f500")
    assert (english.target(0.925), french.number(0.1234)) == ("92.5%", "0,1234")
    use(run, language="fr")
    text = read(run).text
    assert "34 567 images de 21 500 produits sont entrées" in text
    assert re.search(r"\d,\d %", text) and not re.search(r"\d\.\d%", text)


def test_language_is_that_of_the_locale_unless_it_is_set(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    use(run, language="auto")
    assert '<html lang="en">' in html_of(run)
    monkeypatch.setenv("LANG", "fr_FR.UTF-8")
    assert '<html lang="fr">' in html_of(run)
    use(run, language="en")
    assert '<html lang="en">' in html_of(run)


# The file


def test_page_refers_to_nothing_outside_itself(run: Path) -> None:
    html = html_of(run)
    for tag, attributes in Page(html).tags:
        assert tag not in ("img", "iframe", "object")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert "@import" not in html and "url(" not in html


def test_plots_are_described_in_words_and_ids_are_unique(run: Path) -> None:
    tags = read(run).tags
    alts = [attributes["aria-label"] for _, attributes in tags if attributes.get("role") == "img"]
    assert len(alts) == 6 and "accepted, " in str(alts[0])
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, other)
    for where, out in ((run, "one"), (other, "two")):
        write_report(load(where), where / "records", tmp_path / out, xlsx=True)
    for name in ("index.html", "report.xlsx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_excel_file_has_a_sheet_for_each_table_with_numbers_as_numbers(run: Path, tmp_path: Path) -> None:
    import zipfile

    shown = build(load(run), run / "records")
    write_report(load(run), run / "records", tmp_path, xlsx=True)
    with zipfile.ZipFile(tmp_path / "report.xlsx") as book:
        workbook = book.read("xl/workbook.xml").decode()
        sheets = re.findall(r'<sheet name="([^"]+)"', workbook)
        assert sheets == [name[:31] for name in shown.tables]
        sheet = book.read(f"xl/worksheets/sheet{1 + sheets.index('targets')}.xml").decode()
        names = book.read("xl/sharedStrings.xml").decode()
    assert re.search(r'<c r="A2"[^>]*><v>0\.8</v></c>', sheet)
    assert "<f>" not in sheet and HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in names


def test_two_runs_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    other = draw_run(tmp_path / "other", categories=30, seed=3, in_service=False)
    (other / "config.json").write_text((other / "config.json").read_text().replace("2026-W47", "2026-W48"))
    page = Page(render_two(load(run), load(other)))
    assert "Two runs side by side: 2026-W47 and 2026-W48" in page.text
    figures = page.table("figures").set_index("Figure")
    assert figures.loc["Categories learnt"].tolist() == ["30", "35"]
    categories = page.table("categories")
    assert len(categories) == 35 and categories["Estimate, 2026-W48"].isna().sum() == 5
    assert "The 2,000 products that both runs measured" in page.text
    assert page.table("changes").columns[1:3].tolist() == ["2026-W48", "2026-W47"]
    assert [trace["name"] for trace in page.data["plots"]["curves"]["data"]] == [
        *("2026-W48: category", "2026-W48: certified, in use"),
        *("2026-W47: category", "2026-W47: certified, in use"),
    ]


@pytest.mark.parametrize("other", ["nope", "run"])
def test_a_run_is_compared_with_another_one_of_the_workspace_only(run: Path, other: str) -> None:
    here = run.parent / "runs" / "run"
    shutil.copytree(run, here)
    with pytest.raises(ShelfmarkError, match=f"--compare {other}: not another run of .*; give such a name"):
        compare_runs(Run(run.parent, "run", Config(), None), other)


# Unusable input


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("evaluation/metrics.json", "shelfmark evaluate"),
        ("evaluation/curve.parquet", "shelfmark evaluate"),
        ("evaluation/categories.parquet", "shelfmark evaluate"),
        ("evaluation/measured.parquet", "shelfmark evaluate"),
        ("evaluation/unlearnt.parquet", "shelfmark evaluate"),
        ("in_service/decisions.parquet", "shelfmark retrain"),
        ("thresholds/thresholds.json", "shelfmark calibrate"),
        ("head/history.csv", "shelfmark train"),
        ("head/head.json", "shelfmark train"),
        ("records/manifest.json", "shelfmark ingest"),
        ("config.json", "shelfmark ingest"),
    ],
)
@pytest.mark.parametrize(
    ("spoil", "state"),
    [
        (Path.unlink, "missing"),
        (lambda file: file.write_bytes(b"{}"), "not usable"),
        (lambda file: file.write_bytes(b""), "not usable"),
    ],
    ids=["missing", "of another version", "empty"],
)
def test_unusable_input_is_named_with_the_stage_that_makes_it(
    run: Path, name: str, command: str, spoil: Callable[[Path], None], state: str
) -> None:
    spoil(run / name)
    with pytest.raises(ShelfmarkError) as caught:
        load(run)
    message = str(caught.value)
    assert f"{name}: {state}" in message and f"run `{command}`" in message and "\n" not in message
    again = f"remove {run / Path(name).parts[0]} and run `{command}` again"
    assert (again in message) == (state != "missing"), "what has its size is opened, not made again"


def test_measured_products_that_are_not_those_decided_about_are_refused(run: Path) -> None:
    file = run / "evaluation/measured.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(ShelfmarkError, match=r"measured\.parquet: not usable \(other products than in"):
        load(run)
