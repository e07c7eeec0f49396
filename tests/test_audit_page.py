"""The page of an audit in headless Chromium: its answers become a file that `judge` reads."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogues import draw_products, manifest_rows, write_manifest
from test_audit_files import decided

from pipeline.audit.draw import draw
from pipeline.job.audits_file import read_audits
from pipeline.job.decisions_file import write_decisions

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ODD = 'a "quoted", id; été <b>'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium here; on Debian and Ubuntu: apt install chromium"
    ),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page of twelve decisions: week.html."""
    folder = tmp_path_factory.mktemp("audit")
    products = draw_products({"1": 11})
    source = write_manifest(folder / "shop.csv", manifest_rows(folder, products))
    write_decisions([decided([*(product.id for product in products), ODD])], folder / "d.parquet")
    draw(folder / "d.parquet", 12, folder / "week.csv", page=folder / "week.html", photos=[str(source)])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium has no sandbox for root
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, drawn: Path) -> Iterator[Any]:
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000}, offline=True, accept_downloads=True
    )
    opened = context.new_page()
    noted: list[str] = []
    opened.on("console", lambda message: noted.append(message.text))
    opened.on("pageerror", lambda error: noted.append(str(error)))
    opened.on(
        "request", lambda request: noted.append(request.url) if request.url.startswith("http") else None
    )
    opened.goto((drawn / "week.html").as_uri())
    yield opened
    assert noted == []
    context.close()


def test_answers_by_keyboard_become_a_file_that_is_judged(page: Any, tmp_path: Path) -> None:
    ids = page.locator("li").evaluate_all("rows => rows.map(row => row.dataset.product)")
    assert ODD in ids
    for number in range(10):
        row = page.locator("li").nth(number)
        row.locator("input").first.focus()
        page.keyboard.press("Space" if number < 8 else "ArrowRight")  # yes, or on to no
    assert page.locator("#count").text_content() == "10 answered"
    page.locator("#save").focus()
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "week-checked.csv"
    download.value.save_as(tmp_path / "checked.csv")
    found = read_audits(tmp_path / "checked.csv")
    assert found.answers == {name: number < 8 for number, name in enumerate(ids[:10])}
    assert (found.unchecked, found.drawn_from, found.problems) == (2, 12, [])


def test_every_photo_is_shown(page: Any) -> None:
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 11
    assert min(widths) > 0


@pytest.mark.parametrize("width", [1400, 400])
def test_everybody_can_use_it(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
