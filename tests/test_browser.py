"""The report in headless Chromium: what it shows, how it moves, whether everybody can use it.

Needed: Playwright and axe-core (extra `browser`), and a Chromium on the PATH; `make test-browser`.
"""

import csv
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import draw_run, write_maps
from test_report import most_wrong, use

from pipeline.report.data import load
from pipeline.report.language import Words
from pipeline.report.report import write_report
from pipeline.report.texts import TEXTS
from pipeline.report.two_runs import render_two

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FOCUSABLE = "a[href], button, input, select, summary, [tabindex='0']"
WIDE, NARROW = {"width": 1400, "height": 1000}, {"width": 400, "height": 800}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium here; on Debian and Ubuntu: apt install chromium"
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = draw_run(tmp_path_factory.mktemp("drawn") / "run")
    write_maps(drawn, most_wrong(drawn, 12))
    return drawn


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report in both languages, of many categories, and of two runs."""
    out = tmp_path_factory.mktemp("pages")
    for language in ("en", "fr"):
        use(run, language=language)
        write_report(load(run), run / "records", out / language)
    many = draw_run(out / "many-run", categories=5270, products=40_000, unlearnt=200)
    use(many, language="en")
    write_report(load(many), many / "records", out / "many")
    use(run, language="fr")
    (out / "two").mkdir()
    (out / "two/index.html").write_text(render_two(load(run), load(many)), encoding="utf-8")
    use(run, language="en")
    return {name: out / name / "index.html" for name in ("en", "fr", "many", "two")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium has no sandbox for root
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


class Watched:
    """An open page, what it requested from a network, and its errors."""

    def __init__(self, browser: Any, file: Path, size: dict[str, int], **options: Any) -> None:
        self.context = browser.new_context(viewport=size, offline=True, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def draw_all(self) -> None:
        """Scrolls past every plot and waits until all are drawn."""
        plots = self.page.locator("[data-plot]")
        for index in range(plots.count()):
            plots.nth(index).scroll_into_view_if_needed()
        self.page.wait_for_function(
            "[...document.querySelectorAll('[data-plot]')].every(one => one.dataset.drawn === 'done')"
        )


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    opened: list[Watched] = []

    def open_one(name: str, size: dict[str, int] = WIDE, **options: Any) -> Watched:
        opened.append(Watched(browser, pages[name], size, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.context.close()


# Opening


@pytest.mark.parametrize("name", ["en", "fr", "many", "two"])
def test_page_needs_no_network_and_has_no_errors(open_page: Any, name: str) -> None:
    watched = open_page(name)
    watched.draw_all()
    assert watched.errors == []
    assert {url.split(":")[0] for url in watched.requests} <= {"file", "data", "blob"}
    drawn = watched.page.locator("[data-plot] svg.main-svg").count()
    assert drawn >= watched.page.locator("[data-plot]").count() > 0


def test_page_of_5270_categories_opens_in_less_than_two_seconds(open_page: Any) -> None:
    loads = []
    for _ in range(3):  # the quickest: other work on this computer is not the page's
        timing = open_page("many").page.evaluate(
            "(one => one.loadEventEnd - one.startTime)(performance.getEntriesByType('navigation')[0])"
        )
        loads.append(timing)
    assert 0 < min(loads) < 2000


def test_without_scripts_headline_and_short_tables_show(open_page: Any) -> None:
    page = open_page("en", java_script_enabled=False).page
    assert "of all products can be categorized automatically" in page.locator("h1").inner_text()
    assert page.locator("[data-table=targets] tbody tr").count() == 6
    assert "This browser runs no scripts" in page.locator("body").inner_text()
    assert not page.locator(".chooser").is_visible()


# Maps


@pytest.mark.parametrize("name", ["en", "fr"])
def test_the_box_changes_photos_to_maps_and_back(open_page: Any, name: str) -> None:
    watched = open_page(name)
    page, words = watched.page, Words(name)
    boxes = page.get_by_label(words("maps.toggle"))
    assert boxes.count() == 2 and boxes.first.is_visible()  # in the categories, and beside the wrong products
    picture = page.locator("[data-table=wrong] img.photo").first
    product = page.evaluate("page.photo_ids[Object.keys(page.maps)[0]]")
    before = picture.get_attribute("src")
    assert picture.get_attribute("alt") == words("js.photo", product=product)
    boxes.last.check()
    assert boxes.first.is_checked()
    assert picture.get_attribute("src") == page.evaluate(
        "'data:image/webp;base64,' + Object.values(page.maps)[0]"
    )
    assert picture.get_attribute("alt") == words("js.photo_map", product=product)
    assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 128
    boxes.first.uncheck()
    assert picture.get_attribute("src") == before and not boxes.last.is_checked()
    assert watched.errors == []


def test_without_scripts_no_box_is_offered(open_page: Any) -> None:
    page = open_page("en", java_script_enabled=False).page
    assert page.locator(".maps").count() == 2 and not page.locator(".maps").first.is_visible()


# The slider


def shown(page: Any, name: str) -> str:
    text: str = page.locator(f".chooser [data-value={name}]").inner_text()
    return text


def move_to(page: Any, at: int) -> None:
    slider = page.locator(".chooser input[type=range]")
    slider.evaluate("(one, at) => { one.value = at; one.dispatchEvent(new Event('input')); }", at)


@pytest.mark.parametrize("name", ["en", "fr"])
def test_slider_shows_what_numpy_says_of_the_threshold(open_page: Any, run: Path, name: str) -> None:
    decided = pd.read_parquet(run / "evaluation/decisions.parquet")["confidence"].to_numpy()
    correct = pd.read_parquet(run / "evaluation/measured.parquet")["correct"].to_numpy()
    page, words = open_page(name).page, Words(name)
    curve = page.evaluate("page.chooser")
    for at in np.linspace(0, len(curve["threshold"]) - 1, 9).astype(int).tolist():
        move_to(page, at)
        accepted = decided >= curve["threshold"][at] - 1e-7
        rate, precision = accepted.mean(), correct[accepted].mean()
        assert shown(page, "rate") == words.percent(rate)
        assert shown(page, "precision") == words.percent(precision)
        assert shown(page, "threshold") == words.number(decided[accepted].min())
        assert shown(page, "products") == words.count(round(500 * rate, 6))
        assert shown(page, "hours") == words.decimal(round(500 * rate / 60, 6), 1)


def test_fields_change_what_a_week_saves(open_page: Any) -> None:
    page = open_page("en").page
    rate = page.evaluate("page.chooser.rate[page.chooser.start]")
    page.get_by_label("Products a week").fill("60000")
    page.get_by_label("Minutes a product").fill("2.5")
    page.get_by_label("Wage an hour, in €").fill("30")
    hours = 60000 * rate * 2.5 / 60
    assert shown(page, "hours") == Words("en").decimal(hours, 1)
    assert shown(page, "money") == f"{Words('en').count(hours * 30)} €"


def test_only_certified_points_are_called_certified(open_page: Any) -> None:
    page = open_page("en").page
    certified = dict(page.evaluate("page.chooser.certified"))
    assert sorted(certified.values()) == [0.8, 0.85, 0.9, 0.93, 0.95, 0.97]
    verdict = page.locator(".verdict")
    assert verdict.inner_text().endswith("This threshold is in use.")
    for at in range(max(certified) + 2):
        move_to(page, at)
        promise = f"● Certified: at least {Words('en').target(certified.get(at, 0))} of"
        assert verdict.inner_text().startswith(
            promise if at in certified else "◇ Measured only, not certified"
        )
    page.get_by_role("button", name="95%", exact=True).click()
    assert "at least 95% of what is accepted here is correct, with 90% certainty" in verdict.inner_text()


# Tables


def column(page: Any, table: str, index: int) -> list[str]:
    cells: list[str] = page.locator(f"[data-table={table}] tbody tr").evaluate_all(
        "(rows, index) => rows.map(row => row.cells[index].innerText.replace('▸ ', ''))", index
    )
    return cells


def test_table_sorts_by_each_column_and_what_is_missing_comes_last(open_page: Any, run: Path) -> None:
    page = open_page("en").page
    table, block = (
        pd.read_parquet(run / "evaluation/categories.parquet"),
        page.locator("[data-table=categories]"),
    )
    block.get_by_role("button", name="Show all").click()
    block.get_by_role("button", name="Training products").click()
    expected = [Words("en").count(one) for one in sorted(table["train_products"], reverse=True)]
    assert column(page, "categories", 2) == expected
    block.get_by_role("button", name="Training products").click()
    assert column(page, "categories", 2) == expected[::-1]
    assert block.locator("th[aria-sort=ascending]").inner_text().startswith("Training products")
    block.get_by_role("button", name="Correct, of the accepted").click()
    shares = (table["accepted_right"] / table["accepted"].where(table["accepted"] > 0)).sort_values(
        ascending=False
    )
    assert column(page, "categories", 11) == [
        Words("en").percent(None if pd.isna(one) else one) for one in shares
    ]
    block.get_by_role("button", name="Category", exact=True).click()
    names = column(page, "categories", 0)
    assert names == page.evaluate("names => [...names].sort((a, b) => a.localeCompare(b, 'en'))", names)


def test_table_filters_by_words_branch_and_status(open_page: Any, run: Path) -> None:
    page = open_page("en").page
    table, block = (
        pd.read_parquet(run / "evaluation/categories.parquet"),
        page.locator("[data-table=categories]"),
    )
    rows = block.locator("tbody tr")
    block.get_by_label("Find").fill("VÉLO")
    assert rows.count() == table["name"].str.contains("vélo").sum() > 0
    block.get_by_label("Find").fill("")
    block.get_by_label("Branch, level 1").select_option("Épicerie")
    assert rows.count() == table["name"].str.startswith("Épicerie / ").sum()
    block.get_by_label("Branch, level 2").select_option("Épicerie 1")
    inside = table["name"].str.startswith("Épicerie / Épicerie 1 / ")
    assert rows.count() == inside.sum() > 0
    assert (
        block.locator("[role=status]").inner_text()
        == f"{inside.sum()} of {inside.sum()} rows that fit, 35 in all"
    )
    block.get_by_label("Branch, level 1").select_option("")
    block.get_by_label("Status").select_option("status.with care")
    assert rows.count() == (table["status"] == "with care").sum() > 0


def test_rows_of_a_long_table_come_by_the_hundred_and_the_thousand(open_page: Any) -> None:
    block = open_page("many").page.locator("[data-table=categories]")
    assert block.locator("[role=status]").inner_text() == "25 of 5,270 rows"
    block.get_by_role("button", name="Show 100 more").click()
    block.get_by_role("button", name="Show 1,000 more").click()
    assert block.locator("tbody tr").count() == 1125
    block.get_by_label("Find").fill("casque 1003")
    assert block.locator("tbody tr").count() == 1


def test_a_row_opens_with_curve_and_photos(open_page: Any) -> None:
    page = open_page("en").page
    button = page.locator("[data-table=categories] tbody button.open").first
    button.focus()
    page.keyboard.press("Enter")
    details = page.locator("[data-table=categories] tr.details")
    assert button.get_attribute("aria-expanded") == "true"
    assert details.locator("svg").count() == 1
    sizes = details.locator("img").evaluate_all(
        "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth)))"
    )
    assert 10 <= len(sizes) <= 15 and set(sizes) == {128}
    page.keyboard.press("Enter")
    assert details.count() == 0


@pytest.mark.parametrize(("name", "separator", "mark"), [("en", ",", "."), ("fr", ";", ",")])
def test_csv_has_all_rows_as_the_languages_spreadsheet_reads_them(
    open_page: Any, run: Path, tmp_path: Path, name: str, separator: str, mark: str
) -> None:
    page = open_page(name, accept_downloads=True).page
    with page.expect_download() as download:
        page.locator("[data-table=categories] button.csv").click()
    assert download.value.suggested_filename == "2026-W47-categories.csv"
    download.value.save_as(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter=separator))
    table = pd.read_parquet(run / "evaluation/categories.parquet").set_index("category")
    found = {row[-1]: row for row in rows[1:]}
    assert len(rows) == 36 and set(found) == set(table.index)
    for category, row in found.items():
        expected = table.loc[category]
        assert (row[0], int(row[2])) == (expected["name"], expected["train_products"])
        assert float(row[8].replace(mark, ".")) == pytest.approx(expected["estimate"], abs=1e-4)
        assert float(row[9].replace(mark, ".")) == pytest.approx(expected["lower"], abs=1e-4)


# For everybody


def test_keyboard_reaches_everything(open_page: Any) -> None:
    page = open_page("en").page
    wanted = page.evaluate(
        "selector => { let n = 0; for (const one of document.querySelectorAll(selector))"
        " if (one.checkVisibility()) one.dataset.wanted = n++; return n; }", FOCUSABLE,
    )  # fmt: skip
    reached = set()
    for _ in range(wanted + 50):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.dataset.wanted ?? null")
        reached |= {name} - {None}
    assert len(reached) == wanted > 100


def test_slider_moves_by_arrow_keys_and_says_where_it_is(open_page: Any) -> None:
    page = open_page("en").page
    slider = page.locator(".chooser input[type=range]")
    before = int(slider.input_value())
    slider.press("ArrowRight")
    assert int(slider.input_value()) == before + 1
    assert re.fullmatch(r"[\d.]+% accepted, [\d.]+% of them correct", slider.get_attribute("aria-valuetext"))


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["en", "fr", "two"])
def test_axe_finds_nothing_serious(open_page: Any, name: str, size: dict[str, int]) -> None:
    watched = open_page(name, size)
    watched.draw_all()
    found = axe.Axe().run(watched.page).response["violations"]
    assert [
        (one["id"], one["nodes"][0]["html"][:120])
        for one in found
        if one["impact"] in ("serious", "critical")
    ] == []


def words_of(texts: list[str]) -> set[str]:
    return {
        word for text in texts for word in re.findall(r"[a-zà-ÿœ]{3,}", re.sub(r"\{\w+\}", "", text).lower())
    }


@pytest.mark.parametrize("name", ["fr", "two"])
def test_no_english_is_left_on_the_french_page(open_page: Any, name: str) -> None:
    watched = open_page(name)
    watched.draw_all()
    page = watched.page
    for details in page.locator("button.open").all()[:2]:
        details.click()
    page.evaluate("document.querySelectorAll('[translate=no]').forEach(one => one.remove())")
    labels = page.locator("[aria-label], [aria-valuetext], [alt]").evaluate_all(
        "all => all.map(one => [one.ariaLabel, one.ariaValueText, one.alt].join(' '))"
    )
    visible = " ".join([page.locator("body").inner_text(), *labels])
    english, french = (words_of([pair[at] for pair in TEXTS.values()]) for at in (0, 1))
    assert len(words_of([visible])) > 100 and "produits" in visible
    assert words_of([visible]) & (english - french) == set()


@pytest.mark.parametrize("name", ["en", "fr", "two"])
def test_on_a_phone_nothing_sticks_out_and_hidden_columns_are_announced(open_page: Any, name: str) -> None:
    page = open_page(name, NARROW).page
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    announced = page.locator("[data-table]").evaluate_all(
        "all => all.filter(one => one.querySelector('.wide')).map(one => "
        "[one.querySelector('.wide').scrollWidth > one.querySelector('.wide').clientWidth + 1, "
        "!one.querySelector('.hint').hidden])"
    )
    assert all(sticks_out == hint for sticks_out, hint in announced)
    assert [True, True] in announced


def test_on_paper_every_row_is_there(open_page: Any) -> None:
    page = open_page("en").page
    rows = page.locator("[data-table=categories] tbody tr")
    assert rows.count() == 25
    page.emulate_media(media="print")
    page.wait_for_function("document.querySelectorAll('[data-table=categories] tbody tr').length === 35")
    assert not page.locator("[data-table=categories] input").is_visible()
    assert len(page.pdf()) > 100_000
    page.emulate_media(media="screen")
    page.wait_for_function("document.querySelectorAll('[data-table=categories] tbody tr').length === 25")
