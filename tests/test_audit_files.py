"""Audits: samples that are drawn, files that people fill in, and what these prove."""

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from catalogues import documents, draw_products, manifest_rows, photo, write_bson, write_files, write_manifest
from PIL import Image

from features.errors import ShelfmarkError
from models.decisions.categorizer import decisions_table, unreadable
from pipeline.audit.draw import draw, sample_of
from pipeline.audit.judge import judge, plan
from pipeline.audit.photos import thumbnails
from pipeline.cli import main
from pipeline.job.audits_file import COLUMNS, read_audits
from pipeline.job.config import IngestSettings
from pipeline.job.decisions_file import write_decisions
from pipeline.job.decisions_output import open_output

FORMATS = ["d.parquet", "d.csv", "d.csv.gz", "d.jsonl"]


def decided(ids: list[str], status: str = "accepted") -> pd.DataFrame:
    count = len(ids)
    return decisions_table(
        product_id=ids, category=["crème"] * count, category_path=["food / crème"] * count,
        confidence=np.linspace(0.5, 0.99, count), status=[status] * count,
        node=["food" if status == "parent" else "crème"] * count,
        node_path=["food" if status == "parent" else "food / crème"] * count,
        node_level=[1 if status == "parent" else 2] * count, top_categories=[["crème"]] * count,
        top_probabilities=[[0.9]] * count, views=["whole"] * count, release=["2026-W47"] * count,
    )  # fmt: skip


def batch(file: Path, accepted: int = 300, parents: int = 20, shuffled: int | None = None) -> Path:
    """A batch: accepted products p0, p1, …, some parents, some unreadable."""
    ids = [f"p{number}" for number in range(accepted)]
    if shuffled is not None:
        ids = np.random.default_rng(shuffled).permutation(ids).tolist()
    pieces = [decided(ids), decided([f"q{number}" for number in range(parents)], "parent"), unreadable(["u"])]
    write_decisions([piece for piece in pieces if len(piece)], file)
    return file


def ids_of(file: Path, products: int, **how: Any) -> list[str]:
    ids: list[str] = sample_of(file, products, **how).decisions["product_id"].to_pylist()
    return ids


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


def fill(file: Path, answers: list[str], name: str = "filled.csv", **how: Any) -> Path:
    """The file with its column `correct` filled in, as pandas or a spreadsheet writes it."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table["correct"] = answers
    table.to_csv(file.with_name(name), index=False, **how)
    return file.with_name(name)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    draw(batch(tmp_path / "d.parquet"), 50, tmp_path / "sample.csv")
    return tmp_path / "sample.csv"


# Draw


def test_a_folder_and_a_table_give_the_sample_of_the_file(tmp_path: Path) -> None:
    decisions = pq.read_table(batch(tmp_path / "d.parquet"))
    wanted = ids_of(tmp_path / "d.parquet", 40)
    for target in (f"{tmp_path}/folder/", f"sqlite:///{tmp_path}/d.db"):
        output = open_output(target, "job", tmp_path / "work")
        output.write(0, decisions)
        output.finish(1)
        sample = tmp_path / "sample.csv"
        assert status_of("audit", "draw", target, "--products", "40", "--output", str(sample)) == 0
        assert pd.read_csv(sample, dtype=str)["product_id"].tolist() == wanted
        sample.unlink()


def test_a_sample_is_the_same_from_every_format_and_order(tmp_path: Path) -> None:
    samples = [ids_of(batch(tmp_path / name, shuffled=seed), 40) for seed, name in enumerate(FORMATS)]
    assert samples[0] == samples[1] == samples[2] == samples[3]
    assert len(set(samples[0])) == 40


def test_a_larger_sample_begins_with_the_smaller_one_and_another_seed_draws_others(tmp_path: Path) -> None:
    file = batch(tmp_path / "d.parquet")
    assert ids_of(file, 100)[:40] == ids_of(file, 40)
    assert len(set(ids_of(file, 40)) & set(ids_of(file, 40, seed=1))) < 20


def test_every_product_is_drawn_equally_often(tmp_path: Path) -> None:
    file = batch(tmp_path / "d.parquet", accepted=30)
    counts = Counter(name for seed in range(600) for name in ids_of(file, 10, seed=seed))
    assert len(counts) == 30
    # 600 draws with probability 1/3: 200 ± 11.5; the largest of 30 deviations is under 4 of these
    assert max(abs(count - 200) for count in counts.values()) < 46


def test_only_decisions_of_the_status_are_drawn_from_and_all_where_there_are_fewer(tmp_path: Path) -> None:
    file = batch(tmp_path / "d.csv")
    sample = sample_of(file, 1000)
    assert (len(sample.decisions), sample.drawn_from) == (300, 300)
    parents = sample_of(file, 5, status="parent")
    assert (len(parents.decisions), parents.drawn_from) == (5, 20)
    assert set(parents.decisions["node_path"].to_pylist()) == {"food"}


def test_the_file_has_a_row_for_each_drawn_decision_and_room_for_answers(drawn: Path) -> None:
    assert drawn.read_bytes().startswith(b"\xef\xbb\xbf")  # else a spreadsheet shows crÃ¨me
    table = pd.read_csv(drawn, dtype=str, keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 50
    assert set(table["node_path"]) == {"food / crème"}
    assert set(table["correct"] + table["true_category"]) == {""}
    assert set(table["drawn_from"]) == {"300"}
    assert set(table["release"]) == {"2026-W47"}


def test_what_people_have_filled_in_is_never_written_over(drawn: Path, tmp_path: Path) -> None:
    before = drawn.read_bytes()
    with pytest.raises(ShelfmarkError, match="already there, and perhaps filled in; expected a new file"):
        draw(tmp_path / "d.parquet", 50, drawn)
    assert drawn.read_bytes() == before


def test_a_file_without_such_decisions_and_a_wrong_name_are_refused(tmp_path: Path) -> None:
    file = batch(tmp_path / "d.parquet", parents=0)
    with pytest.raises(ShelfmarkError, match="no decision with status parent"):
        sample_of(file, 5, status="parent")
    with pytest.raises(ShelfmarkError, match=r"expected a name that ends in \.csv"):
        draw(file, 5, tmp_path / "sample.xlsx")


# Photos


def shop(folder: Path, kind: str) -> str:
    """Ten products, p-ids 0 to 9, one to three photos each."""
    products = draw_products({"1": 10})
    if kind == "bson":
        return str(write_bson(folder / "shop.bson", documents(products)))
    if kind == "folder":
        files = {f"{product.id}.jpg": product.pictures[0] for product in products}
        return str(write_files(folder / "shop", files))  # type: ignore[arg-type]
    rows = manifest_rows(folder, products)
    if kind == "pictures":
        rows = [row | {"image": (folder / row["image"]).read_bytes()} for row in rows]
        return str(write_manifest(folder / "shop.parquet", rows))
    return str(write_manifest(folder / "shop.csv", rows))


@pytest.mark.parametrize("kind", ["bson", "folder", "csv", "pictures"])
def test_photos_are_found_in_every_kind_of_source(tmp_path: Path, kind: str) -> None:
    wanted = [f"{number}.jpg" if kind == "folder" else str(number) for number in (3, 7)]
    found = thumbnails([shop(tmp_path, kind)], [*wanted, "unknown"], IngestSettings())
    assert sorted(found) == sorted(wanted)
    for name, number in zip(wanted, (3, 7), strict=True):
        small = np.asarray(Image.open(io.BytesIO(found[name])).convert("RGB"), float)
        whole = np.asarray(Image.open(io.BytesIO(photo(10 * number))).convert("RGB"), float)
        assert np.abs(small - whole).mean() < 12, "WebP of the product's first photo"


def test_of_a_table_only_the_photos_of_drawn_products_are_read(tmp_path: Path, monkeypatch: Any) -> None:
    from pipeline.sources import listing

    source, read = shop(tmp_path, "csv"), []
    whole = listing.read_range
    monkeypatch.setattr(listing, "read_range", lambda path: read.append(path.name) or whole(path))
    thumbnails([source], ["4"], IngestSettings())
    assert read == ["4-0.jpg", "4-1.jpg"]


def test_a_photo_that_cannot_be_read_gives_its_place_to_the_next_one(tmp_path: Path) -> None:
    files = {"a.jpg": b"no photo", "b.jpg": photo(1)}
    write_files(tmp_path, files)
    rows = [{"product_id": "1", "image": name} for name in ("gone.jpg", "a.jpg", "b.jpg")]
    found = thumbnails([str(write_manifest(tmp_path / "m.csv", rows))], ["1"], IngestSettings())
    assert list(found) == ["1"]


def test_the_page_has_photos_names_and_buttons_and_fetches_nothing(tmp_path: Path) -> None:
    ids = [str(number) for number in range(10)] + ['<b>&"odd']
    write_decisions([decided(ids)], tmp_path / "d.parquet")
    source = shop(tmp_path, "csv")
    draw(tmp_path / "d.parquet", 11, tmp_path / "s.csv", page=tmp_path / "s.html", photos=[source])
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(pictures) == 10
    assert all(Image.open(io.BytesIO(base64.b64decode(one))).format == "WEBP" for one in pictures)
    assert page.count("no photo") == 1
    assert page.count('type="radio"') == 22
    assert '<b>&"odd' not in page
    assert 'data-product="&lt;b&gt;&amp;&#34;odd"' in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert json.loads(re.search(r"link.download = (.*);", page)[1]) == "s-checked.csv"  # type: ignore[index]


# Files that people fill in


def test_yes_and_no_are_read_in_every_spelling_and_blanks_are_counted(drawn: Path) -> None:
    words = ["yes", "Y", "1", "TRUE", "oui", "Vrai ", "no", "N", "0", "false", "NON", "faux"]
    filled = fill(drawn, [*words, *[""] * 38])
    found = read_audits(filled)
    assert (len(found.answers), found.wrong, found.unchecked, found.drawn_from) == (12, 6, 38, 300)
    assert found.problems == []


@pytest.mark.parametrize(
    "how",
    [{"sep": ";", "encoding": "cp1252"}, {"sep": "\t", "encoding": "utf-16"}, {"encoding": "utf-8-sig"}],
)
def test_what_spreadsheets_save_is_read(drawn: Path, how: dict[str, str]) -> None:
    found = read_audits(fill(drawn, ["oui"] * 45 + ["non"] * 5, **how))
    assert (len(found.answers), found.wrong, found.drawn_from) == (50, 5, 300)


def test_odd_rows_are_counted_with_their_lines_and_the_others_are_used(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text(
        "product_id,correct,drawn_from\na,yes,90\nb,maybe,90\n,yes,90\nc,no,90\nc,yes,90\nd,yes,90\nd,yes,90\n"
        'e\n"f,yes,90\n'
    )
    found = read_audits(file)
    assert found.answers == {"a": True, "d": True}
    assert found.unchecked == 1  # e: a short row
    assert {problem.line: problem.text for problem in found.problems} == {
        3: "correct is 'maybe'; expected yes, no or nothing",
        4: "no product_id",
        5: "c is here both as correct and as wrong; expected one answer",
        6: "c is here both as correct and as wrong; expected one answer",
        8: "d is here again; counted once",
        10: "line 10: a quote that opens here is not closed",
    }


@pytest.mark.parametrize("cells", [("90", "91"), ("many", "many")])
def test_a_population_that_is_no_number_is_unknown(tmp_path: Path, cells: tuple[str, str]) -> None:
    file = tmp_path / "f.csv"
    file.write_text("".join(["product_id,correct,drawn_from\n", f"a,yes,{cells[0]}\n", f"b,no,{cells[1]}\n"]))
    found = read_audits(file)
    assert found.drawn_from is None
    assert "taken as unknown" in found.problems[0].text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column correct and no column product_id"),
        ("product_id,category\na,b\n", "no column correct"),
        (
            "product_id,correct\na,\n",
            "no decision is checked (1 rows without an answer, 0 that cannot be used)",
        ),
        ("product_id,correct\na,perhaps\n", "line 2: correct is 'perhaps'"),
        ("product_id,correct,drawn_from\na,yes,1\nb,yes,1\n", "2 checked decisions, drawn from 1"),
    ],
)
def test_a_file_that_proves_nothing_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(ShelfmarkError, match=re.escape(message)):
        judge(tmp_path / "f.csv", 0.9, 0.9)


# Verdicts


def test_the_exit_status_says_the_verdict(drawn: Path, tmp_path: Path, capsys: Any) -> None:
    for name, wrong, target, status, words in (
        ("proven", 1, "0.9", 0, "PROVEN: the precision is at least 90%, with certainty 90%"),
        (
            "open",
            4,
            "0.9",
            3,
            "NOT PROVEN: the precision may be at least 90%, or below; a new sample of about",
        ),
        ("none", 5, "0.9", 3, "the checked ones are not better than 90%: more would hardly prove it"),
        ("broken", 15, "0.9", 4, "BROKEN: the precision is below 90%, with certainty 90%"),
    ):
        filled = fill(drawn, ["no"] * wrong + ["yes"] * (50 - wrong), f"{name}.csv")
        assert status_of("audit", "judge", str(filled), "--target", target) == status
        output = capsys.readouterr().out
        assert words in output
        assert f"checked     50 decisions, {wrong} wrong" in output
        assert "stream      300 decisions, of which 17% were checked" in output


def test_bounds_in_words_are_rounded_away_from_the_estimate(drawn: Path) -> None:
    audit, lines = judge(fill(drawn, ["no"] * 4 + ["yes"] * 46), 0.9, 0.9)
    low = float(re.search(r"at least ([\d.]+)%", lines[2])[1])  # type: ignore[index]
    assert low / 100 <= audit.at_least < low / 100 + 0.001
    high = float(re.search(r"to ([\d.]+)%", lines[2])[1])  # type: ignore[index]
    assert high / 100 - 0.001 < audit.interval.upper <= high / 100


def test_what_was_not_used_is_said(drawn: Path) -> None:
    answers = ["yes"] * 30 + ["?"] * 7 + [""] * 13
    _, lines = judge(fill(drawn, answers), 0.9, 0.9)
    text = "\n".join(lines)
    assert "not checked 13 rows without an answer" in text
    assert "not used    7 rows; where nobody was sure the answer has to be no" in text
    assert "  line 32: correct is '?'; expected yes, no or nothing" in text
    assert "  and 2 more" in text


def test_a_file_of_unknown_origin_is_taken_as_of_an_unlimited_stream(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("product_id,correct\n" + "".join(f"p{n},yes\n" for n in range(22)))
    audit, lines = judge(tmp_path / "f.csv", 0.9, 0.9)
    assert (audit.verdict, audit.stream) == ("proven", None)
    assert any("size unknown" in line for line in lines)


# Plan


def test_the_plan_is_a_table_of_the_reference_numbers(capsys: Any) -> None:
    assert status_of("audit", "plan") == 0
    output = capsys.readouterr().out
    found = re.findall(r"really +([\d.]+)% +([\d,]+)", output)
    assert found == [
        ("91", "3,905"),
        ("92", "932"),
        ("93", "390"),
        ("94", "210"),
        ("95", "128"),
        ("97", "65"),
    ]


def test_the_plan_of_expected_precisions(capsys: Any) -> None:
    assert status_of("audit", "plan", "--expected", "0.99", "--expected", "1", "--target", "0.95") == 0
    assert re.findall(r"really +([\d.]+)% +([\d,]+)", capsys.readouterr().out)[1] == ("100", "45")
    with pytest.raises(ShelfmarkError, match=r"--expected 0\.9: not above the target 0.9"):
        plan(0.9, 0.9, 0.8, [0.9])


def test_draw_by_the_command_line(tmp_path: Path, capsys: Any) -> None:
    file = batch(tmp_path / "d.csv.gz")
    sample, page = tmp_path / "s.csv", tmp_path / "s.html"
    arguments = ["audit", "draw", str(file), "--products", "20", "--output", str(sample)]
    assert status_of(*arguments, "--photos", "x") == 2, "photos without a page"
    assert status_of(*arguments, "--page", str(page)) == 0
    assert capsys.readouterr().out == f"{sample}: 20 of 300 accepted decisions\n"
    assert page.read_text(encoding="utf-8").count("no photo") == 20
