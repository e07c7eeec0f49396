"""`shelfmark compare` on a small drawn catalogue: rows against the pipeline's own figures, kills, page."""

import csv
import itertools
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from compared_shop import extracted_shop, shelfmark
from scipy.stats import binomtest

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, begin, open_artifact, partial_of, seal
from models.heads.architectures import HeadShape, build_head
from models.taxonomy import read_taxonomy
from pipeline.compare import compare as module
from pipeline.compare import measuring
from pipeline.compare.classifiers import CLASSIFIERS, PAPER, config_of
from pipeline.compare.compare import compare_classifiers
from pipeline.compare.data import ComparisonInputs
from pipeline.compare.results import COLUMNS, Comparison, RowResult
from pipeline.compare.summary import best_of, chance, release_command, render, table
from pipeline.job.config import Config
from pipeline.job.load_config import load_config
from pipeline.job.summaries import BackboneSummary


@pytest.fixture(scope="module")
def shop(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its bottlenecks."""
    return extracted_shop(tmp_path_factory.mktemp("shop"), drawn_weights)


def run_of(shop: Path) -> Path:
    return shop / "W" / "runs" / "week"


def compare_here(shop: Path, out: Path, only: tuple[str, ...], *sets: str, **changes: Any) -> Comparison:
    """Without the command line, into a directory of the test's own."""
    config = load_config(shop / "weekly.toml", sets)
    records, bottlenecks = (open_artifact(run_of(shop) / kind, kind) for kind in ("records", "bottlenecks"))
    inputs = ComparisonInputs(records, bottlenecks, None, shop / "W" / "store", out, config)
    return compare_classifiers(replace(inputs, **changes), only)


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_rows_stand_in_the_table_the_csv_the_json_and_the_page(shop: Path, capsys) -> None:
    only = ("svm", "2nn-512", "multitask")
    assert shelfmark("compare", shop, *(text for name in only for text in ("--only", name))) == 0
    printed = capsys.readouterr().out
    out = run_of(shop) / "comparison"
    rows = read_csv(out / "comparison.csv")
    assert tuple(rows[0]) == COLUMNS
    assert tuple(row["row"] for row in rows) == only
    assert json.loads((out / "comparison.json").read_text())["best"] in printed
    for row in rows:
        assert 0 <= float(row["val_precision"]) <= 1
        assert row["classifier"] in printed
        assert row["classifier"] in (out / "index.html").read_text()
    assert (rows[1]["paper_train"], rows[1]["paper_val"]) == ("0.544", "0.551")
    assert rows[2]["settings"] == "--set head.kind=multitask --set 'head.hidden=[16,16]'"


@pytest.mark.slow
def test_parameters_are_those_of_keras(shop: Path, tmp_path: Path) -> None:
    rows = compare_here(shop, tmp_path, ("svm", "2nn-512", "separate", "taxonnet")).rows
    taxonomy = read_taxonomy(run_of(shop) / "records" / "taxonomy.csv")
    categories = len(taxonomy.categories)
    assert rows[0].parameters == categories * 1025
    for row, kind, hidden in zip(
        rows[1:], ("flat", "separate", "taxonnet"), ((256, 256), (16, 16), (16, 16)), strict=True
    ):
        tree = {"parents": taxonomy.parents} if kind != "flat" else {}
        selector = 16 if kind == "taxonnet" else 0
        shape = HeadShape(
            1024, categories, hidden, 0.5, 1.0, "", kind=kind, selector=selector, standardized=True, **tree
        )
        assert row.parameters == build_head(shape).count_params()


@pytest.mark.slow
def test_precision_and_acceptance_are_those_that_evaluate_measures_on_cert(
    shop: Path, tmp_path: Path
) -> None:
    row = compare_here(shop, tmp_path, ("2nn-512",)).rows[0]
    for command in ("train", "calibrate", "evaluate"):
        assert shelfmark(command, shop, "--set", "head.hidden=[256,256]") == 0
    metrics = json.loads((run_of(shop) / "evaluation" / "metrics.json").read_text())
    assert row.val_products == metrics["cert"]["products"]
    assert row.val_precision == metrics["cert"]["precision"]
    assert row.acceptance_rate_at_target == metrics["cert"]["acceptance_rate_at_target"]
    assert row.train_precision == metrics["train"]["precision"]


def test_hog_reads_a_drawn_share_of_the_photos_and_measures_on_at_most_so_many_products(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage", reason="the extra 'compare' is not installed")
    monkeypatch.setattr(measuring, "MOST_TRAIN_PRODUCTS", 10)
    row = compare_here(shop, tmp_path, ("hog-svm",), "compare.hog_products=20").rows[0]
    assert row.learnt_products == 20
    assert row.features == "HOG"
    assert row.parameters % 1765 == 0


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the classifiers that are trained, in their order."""
    names: list[str] = []
    train = module._train
    monkeypatch.setattr(
        module, "_train", lambda spec, *rest: (names.append(spec.name), train(spec, *rest))[1]
    )
    return names


def test_a_killed_comparison_goes_on_at_the_next_row(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    only, train = ("svm", "multitask"), module._train

    def killed(spec: Any, *rest: Any) -> Any:
        if spec.name == "multitask":
            raise KeyboardInterrupt
        return train(spec, *rest)

    with monkeypatch.context() as kill:
        kill.setattr(module, "_train", killed)
        with pytest.raises(KeyboardInterrupt):
            compare_here(shop, tmp_path, only)
    assert trained == ["svm"]
    first = (tmp_path / "rows" / "svm.json").read_bytes()
    rows = compare_here(shop, tmp_path, only).rows
    assert trained == ["svm", "multitask"]
    assert [row.row for row in rows] == list(only)
    assert (tmp_path / "rows" / "svm.json").read_bytes() == first


@pytest.mark.parametrize("damage", [b"{", b"[]"])
def test_a_damaged_row_is_warned_of_and_measured_again(
    shop: Path, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    row = tmp_path / "rows" / "svm.json"
    row.parent.mkdir()
    row.write_bytes(damage)
    result = compare_here(shop, tmp_path, ("svm",)).rows[0]
    assert json.loads(row.read_text())["val_precision"] == result.val_precision
    assert "damaged, measured again" in caplog.text


def test_a_changed_setting_remakes_the_rows_that_depend_on_it(
    shop: Path, tmp_path: Path, trained: list[str]
) -> None:
    only = ("svm", "multitask")
    compare_here(shop, tmp_path, only)
    compare_here(shop, tmp_path, only, "head.hidden=[8,8]")
    compare_here(shop, tmp_path, only, "head.hidden=[8,8]", "compare.svm_products=50")
    assert trained == [*only, "multitask", "svm"]


def test_a_draw_of_categories_has_their_products_alone(shop: Path, tmp_path: Path) -> None:
    whole = compare_here(shop, tmp_path, ("svm",))
    drawn = compare_here(shop, tmp_path, ("svm",), categories=4)
    assert drawn.categories == 4
    assert drawn.rows[0].parameters == 4 * 1025
    assert 0 < drawn.rows[0].learnt_products < whole.rows[0].learnt_products
    assert drawn.val_products < whole.val_products
    with pytest.raises(ShelfmarkError, match="--categories 1000: the catalogue has "):
        compare_here(shop, tmp_path, ("svm",), categories=1000)


def test_an_unknown_row_is_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match=r"--only forest: no such row; expected one of hog-svm, svm, "):
        compare_here(shop, tmp_path, ("forest",))
    with pytest.raises(ShelfmarkError, match=r"no row is left to compare: .*shelfmark finetune"):
        compare_here(shop, tmp_path, ("svm-tuned",))


def test_rows_on_the_tuned_backbone_of_a_release_are_marked_as_such(shop: Path, tmp_path: Path) -> None:
    run = shop / "W" / "runs" / "week"
    found = open_artifact(run / "bottlenecks", "bottlenecks")
    released = replace(found, summary=found.summary | {"weights": "fine-tuned imagenet"})
    comparison = compare_here(shop, tmp_path, ("svm", "svm-tuned"), bottlenecks=released)
    assert [(row.row, row.fine_tuned) for row in comparison.rows] == [("svm-tuned", True)]
    assert comparison.notes == [
        "Rows on frozen bottlenecks are left out: the run's backbone is the fine-tuned one of the release"
    ]


@pytest.mark.slow
def test_rows_on_fine_tuned_bottlenecks_stand_beside_the_frozen_ones(shop: Path, tmp_path: Path) -> None:
    """Any second backbone will do: here the same one at another size."""
    frozen = open_artifact(run_of(shop) / "bottlenecks", "bottlenecks").summary["fingerprint"]
    plain = compare_here(shop, tmp_path / "plain", ("svm",))
    assert shelfmark("extract", shop, "--image-size", "40") == 0
    try:
        here = open_artifact(run_of(shop) / "bottlenecks", "bottlenecks").summary["fingerprint"]
        tuned = seal_backbone(tmp_path / "backbone", frozen, here)
        both = compare_here(shop, tmp_path, ("svm", "svm-tuned"), tuned=tuned)
        lost = seal_backbone(tmp_path / "lost", frozen, "nowhere")
        alone = compare_here(shop, tmp_path, ("svm", "svm-tuned"), tuned=lost)
    finally:
        assert shelfmark("extract", shop, "--image-size", "32") == 0
    assert [(row.row, row.fine_tuned) for row in both.rows] == [("svm", False), ("svm-tuned", True)]
    assert both.rows[0].val_precision == plain.rows[0].val_precision
    assert both.notes == []
    assert [row.row for row in alone.rows] == ["svm"]
    assert "Rows on fine-tuned bottlenecks are left out: the store lacks images" in alone.notes[0]


def seal_backbone(path: Path, frozen: str, fingerprint: str) -> Artifact:
    begin(partial_of(path), {})
    summary = BackboneSummary(
        fingerprint=fingerprint, backbone="mobilenet", weights="fine-tuned drawn", layers=1, frozen=0,
        products=1, images=1, epochs=1,
    )  # fmt: skip
    made_from = {"fingerprint": frozen}
    return seal(path, kind="backbone", version=1, made_from=made_from, summary=summary.to_dict())


# What follows from it

ROW = RowResult(
    row="2nn-512", features="bottlenecks", classifier="2NN-512", fine_tuned=False, learnt_products=16000,
    train_precision=0.7, val_precision=0.6, val_products=900, acceptance_rate_at_target=0.5,
    fit_precision=0.7, fit_products=450, fit_acceptance_rate_at_target=0.6, target_precision=0.9,
    parameters=1234567, seconds=12.3, paper_train=None, paper_val=None, settings="--set head.kind=flat",
    chosen={"epochs": 7},
)  # fmt: skip


def row(name: str = "2nn-512", **changes: Any) -> RowResult:
    return replace(ROW, row=name, classifier=name.upper(), **changes)


def comparison(**changes: Any) -> Comparison:
    plain = Comparison(
        rows=[row("svm", settings=""), row()], notes=["Left out: see `shelfmark finetune`"],
        categories=1000, drawn=True, val_products=900, fit_products=450, target=0.9, recipe="default",
        best="Best: <b>", commands="shelfmark train", best_row="2nn-512",
    )  # fmt: skip
    return replace(plain, **changes)


def test_a_rows_file_keeps_its_keys_and_their_order_and_is_read_back() -> None:
    """As earlier releases wrote it: else all rows of existing runs would be trained again."""
    text = ROW.to_json("abc").decode()
    assert (
        text
        == """{
 "row": "2nn-512",
 "features": "bottlenecks",
 "classifier": "2NN-512",
 "fine_tuned": false,
 "learnt_products": 16000,
 "train_precision": 0.7,
 "val_precision": 0.6,
 "val_products": 900,
 "acceptance_rate_at_target": 0.5,
 "fit_precision": 0.7,
 "fit_products": 450,
 "fit_acceptance_rate_at_target": 0.6,
 "target_precision": 0.9,
 "parameters": 1234567,
 "seconds": 12.3,
 "paper_train": null,
 "paper_val": null,
 "settings": "--set head.kind=flat",
 "chosen": {
  "epochs": 7
 },
 "made_from": "abc"
}"""
    )
    assert RowResult.from_json(text, "abc") == ROW
    assert RowResult.from_json(text, "another") is None


def test_best_row_accepts_most_of_fit_then_is_most_precise_there_and_is_given_with_certs_figures() -> None:
    rows = [row("a", fit_precision=0.9), row("b", fit_acceptance_rate_at_target=0.8), row("c")]
    assert best_of(rows, 0.9)[0] == "Best: B, 50.0% accepted at 90%, 60.0% right"
    assert best_of([rows[2], rows[0]], 0.9)[0].startswith("Best: A,")


def test_cert_chooses_no_row() -> None:
    rows = [row("a"), row("b", acceptance_rate_at_target=1.0, val_precision=1.0, fit_precision=0.6)]
    assert best_of(rows, 0.9)[0].startswith("Best: A,")
    nobody = [replace(one, fit_products=0) for one in rows]
    assert best_of(nobody, 0.9) == (
        "None is best: no validation products choose; raise calibration.fit_share", None
    )  # fmt: skip


def test_a_baseline_that_is_best_is_named_with_the_best_head() -> None:
    rows = [
        row("svm", settings="", acceptance_rate_at_target=0.8, fit_acceptance_rate_at_target=0.8),
        row("b", fine_tuned=True),
    ]
    words, head = best_of(rows, 0.9)
    assert words == (
        "Best: SVM, 80.0% accepted at 90%, 60.0% right. A baseline, which shelfmark does not release. "
        "Best head: B on fine-tuned bottlenecks, 50.0% accepted at 90%, 60.0% right"
    )
    assert head == rows[1]
    assert best_of(rows[:1], 0.9)[1] is None


def test_rows_that_may_be_behind_by_chance_alone_are_named_with_the_best() -> None:
    few = [row(name, fit_products=7, fit_precision=share, fit_acceptance_rate_at_target=share)
           for name, share in (("a", 1.0), ("b", 6 / 7), ("c", 1 / 7))]  # fmt: skip
    assert best_of(few, 0.9)[0].endswith("60.0% right. By chance alone as good could be: b")
    many = [replace(one, fit_products=7000) for one in few]
    assert best_of(many, 0.9)[0].endswith("60.0% right")


@pytest.mark.parametrize(("correct", "of"), [(7, 7), (0, 7), (540, 900)])
def test_chance_is_the_farther_end_of_wilsons_interval(correct: int, of: int) -> None:
    interval = binomtest(correct, of).proportion_ci(0.95, "wilson")
    share = correct / of
    measured = comparison(rows=[row(val_precision=share)], val_products=of)
    expected = max(share - interval.low, interval.high - share)
    assert chance(measured) == pytest.approx(expected)
    assert expected > 0


def test_command_of_the_best_head_names_workspace_run_and_what_is_not_default(
    shop: Path, drawn_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "week" / "comparison"
    command = compare_here(shop, out, ("svm", "2nn-512"), "extract.engine=openvino").commands
    W = shlex.quote(str(shop / "W"))
    assert command == (
        f"shelfmark retrain SOURCE… --taxonomy FILE --workspace {W} --run week "
        "--set head.kind=flat --set 'head.hidden=[256,256]' --set ingest.min_products=5 "
        f"--set backbone.name=mobilenet --set backbone.weights={drawn_weights} --set backbone.image_size=32 "
        "--set head.aggregation=mean "
        "--set train.batch=64 --set train.epochs=2 --set train.precision=float32"
    )
    words = shlex.split(command)
    sets = tuple(value for option, value in itertools.pairwise(words) if option == "--set")
    assert load_config(sets=sets).of_the_head() == config_of_row(shop, "2nn-512").of_the_head()


def config_of_row(shop: Path, name: str) -> Config:
    spec = next(spec for spec in CLASSIFIERS if spec.name == name)
    return config_of(spec, load_config(shop / "weekly.toml"))


def test_a_head_on_frozen_bottlenecks_goes_into_a_run_without_a_tuned_backbone(shop: Path) -> None:
    records, some = (open_artifact(run_of(shop) / kind, kind) for kind in ("records", "bottlenecks"))
    for head, run in ((row(), "week-frozen"), (row("2nn-512-tuned", fine_tuned=True), "week")):
        command = release_command(head, records, load_config(), shop / "W", "week", tuned=some)
        assert command.endswith(f" --run {run} --set head.kind=flat")
        assert "finetune" not in command


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
        self.inside = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows:
            self.rows[-1][-1] += data.strip()


def test_page_has_the_rows_and_the_papers_table() -> None:
    page = render(comparison(), "week")
    rows = Cells(page).rows
    assert rows[2] == [
        *("bottlenecks", "2NN-512", "no", "70.0%", "60.0%", "50.0%"),
        "60.0%",
        *("16,000", "1,234,567", "12.3"),
    ]  # fmt: skip
    published = [cells for cells in rows if cells[:3] == ["HOG", "linear SVM", "no"]]
    assert published == [["HOG", "linear SVM", "no", "26.6%", "10.0%"]]
    assert sum(len(cells) == 5 for cells in rows) == 1 + len(PAPER)
    assert "<b>" not in page
    assert "see <code>shelfmark finetune</code>." in page
    assert "1,000 drawn categories" in page
    assert "hal-01830894" in page


def test_terminal_table_has_a_line_for_each_row() -> None:
    assert table(comparison()).row_count == 2


def test_rows_have_the_papers_sizes_and_names() -> None:
    """2NN-2048 is two hidden layers of 1,024 (S1)."""
    for one in CLASSIFIERS:
        if one.classifier.startswith("2NN-") and one.hidden:
            assert sum(one.hidden) == int(one.classifier[4:])
    assert {name.removesuffix("-tuned") for name in PAPER} <= {one.name for one in CLASSIFIERS}
