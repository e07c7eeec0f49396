"""`shelfmark compare --backbones` on a small drawn catalogue: against a row, kills, refusals, page."""

import csv
import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_shop import extracted_shop, shelfmark

from features.errors import ShelfmarkError
from features.storage.artifact import open_artifact
from pipeline.compare import backbones as module
from pipeline.compare import extraction
from pipeline.compare.backbones_summary import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    LINE,
    RIGHT,
    TOP,
    WIDTH,
    best_backbone,
    plot_of,
    retrain_command,
    tables,
)
from pipeline.compare.candidates import Candidate, parse_candidates
from pipeline.compare.extraction import Extraction, ExtractionResult, extract_and_measure
from pipeline.compare.results import BackboneComparison, BackboneResult, Interval
from pipeline.compare.summary import render, write_page
from pipeline.job.load_config import load_config

INNER = "mobilenet@conv_pw_6_relu"


@pytest.fixture(scope="module")
def shop(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its bottlenecks."""
    return extracted_shop(tmp_path_factory.mktemp("shop"), drawn_weights)


def results_of(shop: Path) -> Path:
    return shop / "W" / "runs" / "week" / "comparison"


def read(shop: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results_of(shop) / "backbones.json").read_text())
    return content


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that are extracted, in their order: here, not in a process of their own."""
    names: list[str] = []

    def here(work: Extraction) -> ExtractionResult:
        names.append(work.candidate.name if work.candidate else "own")
        return extract_and_measure(work)

    monkeypatch.setattr(module, "extract_apart", here)
    return names


def test_backbones_stand_in_the_table_the_csv_the_json_and_the_page_and_again_computes_nothing(
    shop: Path, drawn_weights: Path, capsys: Any, extracted: list[str]
) -> None:
    options = ("--backbones", f"{INNER}={drawn_weights}")
    assert shelfmark("compare", shop, *options) == 0
    printed = capsys.readouterr().out
    comparison, page = read(shop), (results_of(shop) / "index.html").read_text()
    assert {row["backbone"]: (row["own"], row["width"]) for row in comparison["rows"]} == {
        "mobilenet": (True, 1024),
        INNER: (False, 512),
    }
    with open(results_of(shop) / "backbones.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["backbone"] for row in rows] == [row["backbone"] for row in comparison["rows"]]
    for row, cells in zip(comparison["rows"], rows, strict=True):
        assert row["backbone"] in printed
        assert row["backbone"] in page
        assert row["image_size"] == 32
        assert row["images_per_second"] > 0
        assert row["store_bytes_per_million"] == (2 * row["width"] + 40) * 1_000_000
        assert cells["level2"] == str(row["levels"]["level2"])
    whole, inner = sorted(comparison["rows"], key=lambda row: not row["own"])
    assert inner["parameters"] < whole["parameters"] == 3_228_864
    assert whole["precision_difference"] is None
    difference = inner["precision_difference"]
    assert difference["value"] == pytest.approx(inner["val_precision"] - whole["val_precision"])
    assert difference["lower"] <= difference["value"] <= difference["upper"]
    assert comparison["best"] in printed

    assert extracted == ["own", INNER]
    before = (results_of(shop) / "backbones.json").read_bytes()
    assert shelfmark("compare", shop, *options) == 0
    assert (results_of(shop) / "backbones.json").read_bytes() == before
    assert extracted == ["own", INNER]


def test_figures_are_those_of_a_row_with_the_same_head(
    shop: Path, drawn_weights: Path, extracted: list[str]
) -> None:
    sets = ("--set", "head.hidden=[256,256]")
    assert shelfmark("compare", shop, "--backbones", f"{INNER}={drawn_weights}", *sets) == 0
    assert shelfmark("compare", shop, "--only", "2nn-512", *sets) == 0
    own = next(row for row in read(shop)["rows"] if row["own"])
    row = json.loads((results_of(shop) / "comparison.json").read_text())["rows"][0]
    same = ("train_precision", "val_precision", "val_products", "acceptance_rate_at_target", "fit_precision")
    assert {name: own[name] for name in same} == {name: row[name] for name in same}
    assert own["levels"]["level3"] == own["val_precision"]
    page = (results_of(shop) / "index.html").read_text()
    assert INNER in page
    assert "2NN-512" in page


def test_a_killed_comparison_goes_on_at_the_next_backbone(
    shop: Path, drawn_weights: Path, monkeypatch: pytest.MonkeyPatch, extracted: list[str]
) -> None:
    sets = ("--set", "head.hidden=[20,20]")
    wanted = f"{INNER}={drawn_weights},mobilenet@conv_pw_3_relu={drawn_weights}"
    here: Callable[[Extraction], ExtractionResult] = vars(module)["extract_apart"]

    def killed(work: Extraction) -> ExtractionResult:
        if work.candidate and "pw_3" in work.candidate.name:
            raise KeyboardInterrupt
        return here(work)

    with monkeypatch.context() as kill:
        kill.setattr(module, "extract_apart", killed)
        assert shelfmark("compare", shop, "--backbones", wanted, *sets) != 0
    assert extracted == ["own", INNER]
    kept = {file: file.read_bytes() for file in (results_of(shop) / "backbones").glob("*.json")}
    assert shelfmark("compare", shop, "--backbones", wanted, *sets) == 0
    assert extracted == ["own", INNER, "mobilenet@conv_pw_3_relu"]
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert len(read(shop)["rows"]) == 3


def test_a_backbone_that_fails_is_a_note_and_the_others_are_compared(
    shop: Path, drawn_weights: Path, capsys: Any, extracted: list[str]
) -> None:
    """With random weights this network gives zeros alone, which no store accepts."""
    wanted = f"{INNER}=random,mobilenet@conv_pw_3_relu={drawn_weights}"
    assert shelfmark("compare", shop, "--backbones", wanted) == 0
    printed = capsys.readouterr().out
    assert sorted(row["own"] for row in read(shop)["rows"]) == [False, True]
    note = read(shop)["notes"][0]
    assert note.startswith(f"{INNER}=random is left out: ")
    assert "all zero" in note
    assert note in printed


def test_a_list_of_which_no_backbone_could_be_measured_is_an_error(
    shop: Path, capsys: Any, extracted: list[str]
) -> None:
    assert shelfmark("compare", shop, "--backbones", f"{INNER}=random") == 1
    assert "no backbone of the list could be compared: " in capsys.readouterr().err


def test_a_layer_that_is_not_there_ends_the_command_before_any_extraction(
    shop: Path, drawn_weights: Path, capsys: Any, extracted: list[str]
) -> None:
    wanted = f"{INNER}={drawn_weights},mobilenet@no_such_layer={drawn_weights}"
    before = len(extracted)
    assert shelfmark("compare", shop, "--backbones", wanted, "--set", "seed=9") == 1
    assert f"--backbones mobilenet@no_such_layer={drawn_weights}: " in capsys.readouterr().err
    assert len(extracted) == before


def test_a_process_of_its_own_extracts_and_measures(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = open_artifact(shop / "W/runs/week/bottlenecks", "bottlenecks").summary
    caplog.set_level("INFO", logger="shelfmark")
    ballast = np.ones(2**26)  # 0.5 GB of this process do not count
    result = extraction.extract_apart(Extraction(run_of(shop), None, str(summary["fingerprint"])))
    assert (result.name, result.width, result.fingerprint) == ("mobilenet", 1024, summary["fingerprint"])
    assert result.images_per_second > 0
    assert 0.2e9 < result.peak_memory < 5e9
    assert "engine: " in caplog.text
    assert ballast.all()


def test_a_killed_process_is_an_error_of_its_backbone(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ShelfmarkError, match=r"killed, .*lack of memory .*exit status -9"):
        extraction.extract_apart(Extraction(run_of(shop), None, ""))


def run_of(shop: Path) -> Any:
    from pipeline.job.run import Run

    return Run(shop / "W", "week", load_config(shop / "weekly.toml"), None)


def test_nothing_to_compare_is_an_error(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Extraction) -> ExtractionResult:
        raise ShelfmarkError("no weights")

    monkeypatch.setattr(module, "extract_apart", fails)
    run = replace(run_of(shop), config=load_config(shop / "weekly.toml", ("seed=5",)))
    with pytest.raises(
        ShelfmarkError, match=r"no backbone of the list could be compared: the run's own .*no weights"
    ):
        module.compare_backbones(run, [])


# What it is called with


def test_names_and_weights_are_read(drawn_weights: Path) -> None:
    assert parse_candidates(f"MobileNet, inception_v3@mixed5={drawn_weights}") == (
        Candidate("MobileNet", "mobilenet", "imagenet"),
        Candidate("inception_v3@mixed5", "inceptionv3@mixed5", str(drawn_weights)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mobilenet,mobilnet", r"--backbones mobilnet: .*did you mean mobilenet"),
        ("mobilenet=nowhere.weights.h5", r"nowhere.weights.h5: no such file"),
        ("mobilenet,", r"'nothing' between commas; expected NAME or NAME=WEIGHTS"),
        ("mobilenet=", r"'mobilenet=' between commas"),
        ("mobilenet,MobileNet", "MobileNet is there twice"),
        ("inception_v3@", "a layer without a name"),
    ],
)
def test_wrong_lists_are_refused(text: str, message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message):
        parse_candidates(text)


def test_a_list_is_refused_before_anything_is_extracted(
    shop: Path, extracted: list[str], capsys: Any
) -> None:
    assert shelfmark("compare", shop, "--backbones", "mobilenet=random,mobilnet") == 1
    assert "did you mean mobilenet" in capsys.readouterr().err
    assert shelfmark("compare", shop, "--only", "svm", "--backbones", "mobilenet") == 2
    assert extracted == []


def test_the_weights_content_counts_not_their_name(tmp_path: Path) -> None:
    file = tmp_path / "w.weights.h5"
    candidate = Candidate("mobilenet", "mobilenet", str(file))
    file.write_bytes(b"one")
    config, other = load_config(), load_config(sets=("seed=1",))
    one = candidate.identity(config)
    assert candidate.identity(other) == one
    file.write_bytes(b"two")
    assert candidate.identity(config) != one
    random = Candidate("mobilenet", "mobilenet", "random")
    assert random.identity(config) != random.identity(other)


# What follows from it

ROW = BackboneResult(
    backbone="mobilenet", weights="imagenet", own=False, given="mobilenet=imagenet", fingerprint="m",
    image_size=224, width=1024, parameters=3_228_864, learnt_products=1000, epochs=9, train_precision=0.9,
    val_precision=0.6, val_products=200, levels={"level1": 0.8, "level2": 0.6},
    acceptance_rate_at_target=0.4, target_precision=0.9, fit_precision=0.6, fit_products=70,
    fit_acceptance_rate_at_target=0.4, engine="openvino fp32", images_per_second=100.0, measured_images=256,
    peak_memory=900_000_000, store_bytes_per_million=2_088_000_000,
)  # fmt: skip
OWN = replace(ROW, own=True, backbone="resnet50", fingerprint="o", given="")


def test_best_backbone_accepts_most_of_fit_and_what_may_be_chance_is_called_so() -> None:
    better = replace(
        ROW,
        fit_acceptance_rate_at_target=0.5,
        acceptance_rate_at_target=0.431,
        acceptance_difference=Interval(0.031, -0.01, 0.072),
    )
    assert best_backbone([OWN, better]) == (
        better,
        "Best backbone: mobilenet (imagenet), 43.1% accepted at 90%, 60.0% correct. Against the run's own: "
        "+3.1 points (95 % interval −1.0 to +7.2) accepted. This may be chance",
    )
    sure = replace(better, acceptance_difference=Interval(0.031, 0.01, 0.052))
    assert best_backbone([OWN, sure])[1].endswith("(95 % interval +1.0 to +5.2) accepted")
    on_cert_alone = replace(ROW, acceptance_rate_at_target=1.0, fit_acceptance_rate_at_target=0.1)
    assert best_backbone([OWN, on_cert_alone])[1].endswith("60.0% correct. It is the run's own")
    assert best_backbone([replace(OWN, fit_products=0)])[0] is None


def test_the_command_uses_the_backbone_and_keeps_the_runs_other_settings(shop: Path) -> None:
    records = open_artifact(shop / "W/runs/week/records", "records")
    best = replace(ROW, given="inception_v3@mixed5=/a b/w.weights.h5")
    config = load_config(shop / "weekly.toml")
    command = retrain_command(best, records, config, shop / "W", "week", None)
    words = shlex.split(command)
    assert words[:4] == ["shelfmark", "retrain", "SOURCE…", "--taxonomy"]
    assert words[words.index("--backbone") + 1] == "inception_v3@mixed5"
    assert words[words.index("--weights") + 1] == "/a b/w.weights.h5"
    sets = tuple(value for option, value in itertools.pairwise(words) if option == "--set")
    assert load_config(sets=sets).of_the_head() == config.of_the_head()
    assert load_config(sets=sets).backbone.image_size == 32
    other = retrain_command(best, records, config, shop / "W", "week", tuned=records)
    assert "--run week-frozen " in other


def comparison(*rows: BackboneResult) -> BackboneComparison:
    return BackboneComparison(
        rows=rows, notes=["b <b> is left out: see `shelfmark extract`"], categories=81, drawn=False,
        val_products=200, fit_products=70, target=0.9, best="Best backbone: <b>", command="shelfmark retrain",
        best_row="m", records="r",
    )  # fmt: skip


def test_labels_of_the_plot_cover_no_other_and_all_is_inside() -> None:
    rng = np.random.default_rng(0)
    drawn = zip(rng.uniform(20, 90, 8), rng.uniform(0.4, 0.5, 8), strict=True)
    rows = [
        replace(
            ROW, backbone=f"network{number}", fingerprint=str(number), own=number == 3,
            images_per_second=float(speed), acceptance_rate_at_target=float(rate),
            acceptance_interval=Interval(float(rate), float(rate) - 0.1, float(rate) + 0.1),
        )
        for number, (speed, rate) in enumerate(drawn)
    ]  # fmt: skip
    plot = plot_of(comparison(*rows))
    boxes = []
    for dot in plot.dots:
        assert LEFT <= dot.x <= WIDTH - RIGHT
        assert TOP <= dot.upper <= dot.y <= dot.lower <= HEIGHT - BOTTOM
        size = len(dot.label) * LETTER
        boxes.append((dot.label_x - size if dot.anchor == "end" else dot.label_x, dot.label_y, size))
    for x, y, size in boxes:
        assert not any(x - 6 < dot.x < x + size + 6 and abs(y - 4 - dot.y) < 6 for dot in plot.dots)
    for (x, y, size), (other_x, other_y, other_size) in itertools.combinations(boxes, 2):
        assert abs(y - other_y) >= LINE or x + size <= other_x or other_x + other_size <= x
    assert [dot.label for dot in plot.dots if dot.own] == ["network3"]


def test_to_the_right_is_faster_and_above_is_better() -> None:
    fast = replace(ROW, images_per_second=200.0)
    good = replace(OWN, acceptance_rate_at_target=0.6)
    dots = {dot.label: dot for dot in plot_of(comparison(fast, good)).dots}
    assert dots["mobilenet"].x > dots["resnet50"].x
    assert dots["mobilenet"].y > dots["resnet50"].y  # px from the top


class Cells(HTMLParser):
    """Text of the rows of the tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside = False
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data.strip()


def test_page_has_the_backbones_and_escapes_names() -> None:
    row = replace(
        ROW,
        precision_difference=Interval(0.05, 0.01, 0.09),
        acceptance_difference=Interval(-0.02, -0.05, 0.01),
    )
    page = render(None, "week", comparison(row, OWN))
    rows = Cells(page).rows
    predict, take = rows[:3], rows[3:]
    assert predict[1] == [
        *("mobilenetimagenet", "80.0%", "60.0%", "+5.0+1.0 to +9.0"),
        *("40.0%", "−2.0−5.0 to +1.0", "40.0%"),
    ]  # fmt: skip
    assert take[1] == ["mobilenetimagenet", "100.0", "0.90", "2.09", "224", "1,024", "3,228,864"]
    assert predict[2][0] == take[2][0] == "resnet50imagenet, the run’s own"
    assert "<b>" not in page
    assert "hal-01830894" not in page
    assert page.count("<circle") == 2


def test_terminal_tables_have_a_line_for_each_backbone() -> None:
    assert [shown.row_count for shown in tables(comparison(ROW, OWN))] == [2, 2]


def test_a_comparison_on_other_records_is_not_on_the_page(tmp_path: Path) -> None:
    out = tmp_path / "week" / "comparison"
    out.mkdir(parents=True)
    (out / "backbones.json").write_bytes(comparison(ROW, OWN).to_json())
    (out / "comparison.json").write_text("{}")  # of another version
    write_page(out, "r")
    assert "resnet50" in (out / "index.html").read_text()
    write_page(out, "other records")
    assert "resnet50" not in (out / "index.html").read_text()
