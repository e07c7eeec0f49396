"""The report page, from run directories written by hand."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features.errors import ShelfmarkError
from models.decisions.confidence import ConfidenceModel
from models.decisions.thresholds import Certificate
from pipeline.report.data import load
from pipeline.report.report import render, write_report
from pipeline.report.text import MOST_CATEGORIES

HOSTILE = "<script>alert(1)</script>"
CERTIFIED = Certificate(
    **{"target": 0.9, "delta": 0.1, "grid": 1000, "products": 1200, "accepted": 600, "errors": 30},
    **{
        "threshold": 0.7312,
        "acceptance_rate": 0.5,
        "precision": 0.95,
        "precision_lower": 0.936,
        "chain": "main",
    },
)


def part(**changes: Any) -> dict[str, Any]:
    figures = {
        "products": 2000,
        "precision": 0.614,
        "acceptance_rate_at_target": 0.515,
        "target_precision": 0.9,
        "threshold": 0.7312,
        "accepted": 966,
        "accepted_precision": 0.9161,
        "levels": {"level1": {"top1": 0.81, "top5": 0.93}, "level2": {"top1": 0.614, "top5": 0.8}},
        "hierarchy": {
            **{"own_outputs": False, "precision": 0.702, "recall": 0.698, "f1": 0.7},
            "summed": {"level1": {"top1": 0.79, "top5": 0.92}, "level2": {"top1": 0.614, "top5": 0.8}},
            "consistency": {"level1": 0.953, "level2": 1.0},
        },
        "unseen": {"products": 1234, "precision": 0.58, "acceptance_rate_at_target": 0.44},
    }
    return figures | changes


def draw_run(run: Path) -> Path:
    """A small certified run with a test part; tests change one file."""
    for name in ("records", "head", "thresholds", "evaluation"):
        (run / name).mkdir(parents=True)
    logistic = ConfidenceModel(
        "logistic", 600, intercept=0.7, coefficient={"entropy": -0.4123, "logit_p1": 1.31}, effect_spread=0.4
    )
    rejects = {"truncated": 3, "not_an_image": 1}
    summary = {
        **{"products": 21500, "images": 34567, "rejects": rejects, "unreadable_products": 2},
        **{"records": {"train": 27000, "val": 3400, "test": 3300}, "uncategorized_images": 823},
        **{
            "uncategorized_products": 500,
            "dropped_images": 40,
            "dropped_products": 30,
            "dropped_categories": 4,
            "images_of_several_products": 1500,
            "images_in_several_categories": 60,
            "placeholder_images": 7,
        },
    }
    jsons: dict[str, Any] = {
        "evaluation/metrics.json": {
            **{"train": part(precision=0.8), "val": part(), "cert": part(products=1200), "test": part()},
            **{"graded_on": "test", "independent": True, "weights": "imagenet", "backbone": "inception_v3"},
        },
        "thresholds/thresholds.json": {
            **{"target": 0.9, "delta": 0.1, "temperature": 1.25, "fit": {"products": 600}},
            **{"model": "of the head", "labels": "of the taxonomy"},
            **{"confidence": logistic.to_dict(), "certificate": CERTIFIED.to_dict()},
        },
        "records/manifest.json": {"kind": "records", "summary": summary},
        "config.json": {
            **{"run": "2026-W47", "code_version": "0.1.0"},
            "settings": {"seed": 0, "head": {"hidden": [1024, 1024]}, "backbone": {"weights": "/data/w.h5"}},
        },
    }
    for name, values in jsons.items():
        (run / name).write_text(json.dumps(values, sort_keys=True))
    tables = {
        "curve": {
            "threshold": [0.99, 0.73, 0.6, 0.01],
            "acceptance_rate": [0.1, 0.483, 0.515, 1.0],
            "precision": [0.99, 0.9161, 0.9, 0.614],
            "precision_lower": [0.97, 0.905, 0.89, 0.6],
        },
        "categories": {
            **{"category": ["a", "b", "c"], "name": ["Épicerie / 日本茶", HOSTILE, 'Tea "green"']},
            **{"train_products": [1000, 10, 0], "products": [900, 1100, 0], "right": [800, 428, 0]},
            **{"predicted": [1200, 800, 0], "predicted_right": [800, 428, 0]},
            **{"accepted": [600, 366, 0], "accepted_right": [590, 295, 0]},
        },
        "confusions": {
            **{"category": ["b", "a"], "category_name": [HOSTILE, "Épicerie / 日本茶"]},
            **{
                "predicted": ["a", "b"],
                "predicted_name": ["Épicerie / 日本茶", HOSTILE],
                "products": [672, 100],
            },
        },
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_parquet(run / "evaluation" / f"{name}.parquet")
    history = {"epoch": [0, 1, 2], "loss": [3.0, 2.0, 1.0], "accuracy": [0.2, 0.5, 0.7]}
    selected = {"val_loss": [2.0, 1.5, 1.6], "val_accuracy": [0.3, 0.55, 0.55]}
    pd.DataFrame(history | selected).to_csv(run / "head" / "history.csv", index=False)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return draw_run(tmp_path / "run")


def change(run: Path, name: str, **values: Any) -> None:
    file = run / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def uncertify(run: Path, needed: int | None, at_best: bool = False) -> None:
    nothing = Certificate(
        0.9, 0.1, 100, 120, more_products_needed=needed, at_best=at_best, reason="it does not show"
    )
    change(run, "thresholds/thresholds.json", certificate=nothing.to_dict())
    change(run, "evaluation/metrics.json", test=part(threshold=None, accepted=0, accepted_precision=None))


class Page(HTMLParser):
    """The page as a reader sees it: texts without styles and scripts; tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

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


def read(run: Path) -> Page:
    return Page(render(load(run)))


def test_headline_has_the_certified_share_of_the_test_products(run: Path) -> None:
    text = read(run).text
    headline = "48.3 % of the products can be categorized automatically at the promised precision of 90.0 %"
    assert f"{headline}: certified." in text
    assert "In use: 48.3 % accepted, 91.6 % of them correct." in text
    assert "51.5 % is the largest share that could be accepted" in text
    assert "independently" not in text and "Demonstration" not in text and "below the promise" not in text


def test_uncertified_run_accepts_nothing_and_says_what_is_missing(run: Path) -> None:
    uncertify(run, needed=1412)
    text = read(run).text
    assert "Nothing can be categorized automatically" in text
    assert "about 1 412 more certification products are needed." in text
    assert "There is none: nothing is accepted." in text
    assert "certified, in use" not in text
    uncertify(run, needed=20, at_best=True)
    assert "at least 20 more certification products are needed." in read(run).text
    uncertify(run, needed=None)
    assert "more products alone will not change that." in read(run).text


def test_where_everything_is_correct_the_promise_is_given_as_the_least(run: Path) -> None:
    change(run, "evaluation/metrics.json", test=part(precision=1.0, acceptance_rate_at_target=1.0))
    text = read(run).text
    assert "Even with everything accepted, at least 90.0 % of these very products are correct." in text
    assert "All accepted, 100.0 % of them correct." in text


def test_random_weights_are_a_demonstration(run: Path) -> None:
    change(run, "evaluation/metrics.json", weights="random")
    assert "Demonstration only: the backbone's weights are random." in read(run).text


def test_without_test_products_precision_is_not_independently_measured(run: Path) -> None:
    change(run, "evaluation/metrics.json", test=None, graded_on="cert", independent=False)
    text = read(run).text
    assert "Precision was not independently measured." in text
    assert "There are no test products." in text
    assert "80.5 % of the products can be categorized" in text  # 966 of cert's 1200


def test_run_without_any_measured_product_still_has_a_page(run: Path) -> None:
    uncertify(run, needed=None)
    change(
        run, "evaluation/metrics.json", test=None, cert=None, val=None, graded_on="cert", independent=False
    )
    history = pd.read_csv(run / "head/history.csv")
    history[["epoch", "loss", "accuracy"]].to_csv(run / "head/history.csv", index=False)
    text = read(run).text
    assert "Precision was not measured." in text
    assert "The last one was kept" in text


def test_measured_precision_below_the_promise_is_pointed_out(run: Path) -> None:
    change(run, "evaluation/metrics.json", test=part(accepted_precision=0.887))
    assert "Measured precision is below the promise: 88.7 % instead of 90.0 %." in read(run).text


def test_page_has_parts_levels_and_products_with_new_photos(run: Path) -> None:
    text = read(run).text
    for words in (
        "Training",
        "Validation",
        "Certification",
        "Test",
        "Level 1 (coarsest)",
        "Level 2 (category)",
    ):
        assert words in text
    assert "Test: products with no photo seen in training 1 234 58.0 %" in text


def test_levels_stand_in_one_table_with_what_agrees_with_the_category(run: Path) -> None:
    text = read(run).text
    part_by_part = " ".join(["81.0 % 93.0 %"] * 4)
    assert f"Level 1 (coarsest) {part_by_part} 95.3 %" in text
    assert "output for the categories alone" in text and "categories summed" not in text
    assert "Of the nodes on the paths to the predicted categories, 70.2 % are correct" in text
    assert "of those on the paths to the true categories, 69.8 % are found" in text


def test_level_heads_outputs_stand_beside_the_sums_of_its_categories(run: Path) -> None:
    levels = part()["hierarchy"] | {"own_outputs": True}
    change(run, "evaluation/metrics.json", test=part(hierarchy=levels))
    text = read(run).text
    assert "Test, categories summed" in text and "The head has an output for every level." in text
    part_by_part = " ".join(["81.0 % 93.0 %"] * 4)
    assert f"Level 1 (coarsest) {part_by_part} 79.0 % 92.0 % 95.3 %" in text


def test_every_image_is_accounted_for(run: Path) -> None:
    text = read(run).text
    assert "34 567 images of 21 500 products came in." in text
    assert "Rejected The file ends too early. 3 <0.1 %" in text
    assert "Without category Readable. These products wait for a decision. 823 2.4 %" in text
    assert "All images 34 567" in text  # the sum of the rows, not a copy
    assert "Images that several products share: 1 500; 60 of these are in several categories" in text
    assert "Plain colours and images of very many products: 7." in text


def test_kept_epoch_is_the_most_accurate_with_the_least_loss(run: Path) -> None:
    assert "Epoch 2 was kept: it has the largest accuracy on validation images, 55.0 %." in read(run).text


def test_confidence_shows_its_coefficients_the_weightiest_first(run: Path) -> None:
    text = read(run).text
    assert "A temperature of 1.250" in text
    assert re.search(r"logit_p1 \+1\.31 .*entropy −0\.412 .*intercept \+0\.7 ", text)


def test_confidence_without_a_model_says_why(run: Path) -> None:
    plain = ConfidenceModel("probability", 12, "12 products in FIT")
    change(run, "thresholds/thresholds.json", confidence=plain.to_dict())
    assert "There were too few products to fit a model: 12 products in FIT." in read(run).text


def test_settings_have_no_paths_of_this_machine(run: Path) -> None:
    html = render(load(run))
    assert "head.hidden 1024, 1024" in Page(html).text
    assert "w.h5" in html and "/data" not in html and str(run) not in html


def test_category_with_most_errors_comes_first_and_hostile_names_stay_text(run: Path) -> None:
    html = render(load(run))
    page = Page(html)
    assert HOSTILE not in html
    assert (
        f"{HOSTILE} b 10 1 100 672 38.9 % 800 53.5 % 366 80.6 % Épicerie / 日本茶 a 1 000 900 100"
        in page.text
    )
    assert 'Tea "green" c 0 0 0 – 0 – 0 –' in page.text
    assert f"{HOSTILE} Épicerie / 日本茶 672" in page.text  # confused with each other
    assert "1 of 2 categories with test products have 80 % of the errors." in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_too_many_categories_are_cut_and_the_page_says_so(run: Path) -> None:
    file = run / "evaluation/categories.parquet"
    row = pd.read_parquet(file).iloc[:1]
    names = [f"name {number}" for number in range(MOST_CATEGORIES + 1)]
    pd.concat([row] * len(names)).assign(category=names, name=names).to_parquet(file)
    page = read(run)
    assert "Only 2 000 of 2 001 categories are shown" in page.text
    assert sum(text in names for text in page.texts) == MOST_CATEGORIES


def test_a_sentence_says_that_there_is_no_confusion(run: Path) -> None:
    file = run / "evaluation/confusions.parquet"
    pd.read_parquet(file).iloc[:0].to_parquet(file)
    assert "No test product was put into a wrong category." in read(run).text


def test_page_refers_to_nothing_outside_itself(run: Path) -> None:
    html = render(load(run))
    assert "http:" not in html and "https:" not in html and "url(" not in html.replace("url(#", "")
    for tag, attributes in Page(html).tags:
        assert tag not in ("link", "img", "iframe")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")


def test_plots_are_described_in_words_and_their_ids_are_unique(run: Path) -> None:
    tags = read(run).tags
    alts = [attributes["aria-label"] for tag, attributes in tags if attributes.get("role") == "img"]
    assert len(alts) == 4
    assert "certified, in use: 48.3\u202f%, 91.6\u202f% of the accepted correct" in str(alts[0])
    assert "Level 2 (category), test: 61.4\u202f% and 80.0\u202f%" in str(alts[1])
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    write_report(load(run), tmp_path / "one")
    write_report(load(draw_run(tmp_path / "other")), tmp_path / "two")
    assert (tmp_path / "one/index.html").read_bytes() == (tmp_path / "two/index.html").read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == ["index.html"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("evaluation/metrics.json", "shelfmark evaluate"),
        ("evaluation/curve.parquet", "shelfmark evaluate"),
        ("evaluation/categories.parquet", "shelfmark evaluate"),
        ("evaluation/confusions.parquet", "shelfmark evaluate"),
        ("thresholds/thresholds.json", "shelfmark calibrate"),
        ("head/history.csv", "shelfmark train"),
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
