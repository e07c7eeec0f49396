"""`shelfmark look`: best categories of a photo, the decision of `categorize`, where the network looked."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Photo, drawn_backbone, make_bundle
from PIL import Image
from test_retrain import SETTINGS, retrain_arguments, run_here

from features.engines.backbones import Backbone, load_backbone
from features.errors import ShelfmarkError
from models.decisions.bundle import open_bundle
from pipeline.cli import main
from pipeline.demo.drawn_catalogue import draw_catalogue
from pipeline.job.heat_map import VIRIDIS, overlay
from pipeline.look import look as looking
from pipeline.look.look import look
from pipeline.look.picture import SIDE, draw_picture
from pipeline.look.results import LookResult, PhotoResult


@pytest.fixture
def photos(photo: Photo, tmp_path: Path) -> list[Path]:
    """Three photos, of different shapes; two have the same name."""
    files = [tmp_path / "a" / "shoe.jpg", tmp_path / "b" / "shoe.jpg", tmp_path / "tall.jpg"]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(photo(number, width=60 if number < 2 else 30, height=50))
    return files


def shown(photos: list[Path], workspace: Path, output: Path, top: int = 15) -> LookResult:
    return look(workspace / "releases" / "first", photos, top, output)


# What it says


def test_the_decision_and_the_probabilities_are_those_of_categorize(
    photos: list[Path], workspace: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "new.csv"
    pd.DataFrame({"product_id": ["0", "1", "2"], "image": [str(one) for one in photos]}).to_csv(manifest)
    out = tmp_path / "decisions.parquet"
    assert run_here("categorize", str(manifest), "--workspace", str(workspace), "--output", str(out))[0] == 0
    decided = pd.read_parquet(out).sort_values("product_id").astype(object)
    decided = decided.where(decided.notna(), None)
    found = shown(photos, workspace, tmp_path / "out")
    assert found.release == "first" and len(set(decided["confidence"])) == 3
    for one, (_, row) in zip(found.photos, decided.iterrows(), strict=True):
        assert (one.status, one.decision) == (row["status"], row["node_path"])
        assert one.confidence == pytest.approx(row["confidence"], abs=1e-6)
        assert [best.category for best in one.best[:5]] == list(row["top_categories"])
        probabilities = [best.probability for best in one.best]
        assert probabilities[:5] == pytest.approx(list(row["top_probabilities"]), abs=1e-6)
        assert len(one.best) == 6 and sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert one.best[0].path.endswith(f" / {one.best[0].category}")


def test_top_says_how_many_categories(photos: list[Path], workspace: Path, tmp_path: Path) -> None:
    found = shown(photos[:1], workspace, tmp_path / "out", top=2)
    assert len(found.photos[0].best) == 2


def test_a_photo_that_cannot_be_used_is_listed_with_its_reason(
    photos: list[Path], workspace: Path, tmp_path: Path
) -> None:
    text, folder = tmp_path / "notes.txt", tmp_path / "folder.jpg"
    text.write_text("not a photo")
    folder.mkdir()
    given = [text, photos[0], tmp_path / "gone.jpg", folder, photos[2]]
    found = shown(given, workspace, tmp_path / "out")
    assert [one.photo for one in found.photos] == [str(one) for one in given]
    reasons = [one.refused and one.refused.split(":")[0] for one in found.photos]
    assert reasons == ["not_an_image", None, "missing", "missing", None]
    assert found.photos[0] == PhotoResult(
        photo=str(text), refused=found.photos[0].refused, status="unreadable", confidence=0, decision=None
    )
    alone = shown(photos[2:], workspace, tmp_path / "alone").photos[0]
    assert found.photos[4].best == alone.best


def test_no_usable_photo_is_an_error(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match=r"gone\.jpg: cannot be used \(missing: .*other 1 can be.*\n?$"):
        shown([tmp_path / "gone.jpg", tmp_path / "too.jpg"], workspace, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The command


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["look", *arguments])
        raise SystemExit(0)
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_the_command_lists_names_and_scores_and_writes_pictures(
    photos: list[Path], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(one) for one in photos]
    status, out, _ = command(*files, "--workspace", str(workspace), "--top", "3", capsys=capsys)
    assert status == 0
    first = out.splitlines()[:5]
    assert first[0].startswith(f"{photos[0]}: ") and "(confidence " in first[0]
    assert [line.split()[0] for line in first[1:4]] == ["1", "2", "3"]
    assert all("food / " in line or "home / " in line for line in first[1:4])
    pictures = sorted((workspace / "look" / "first").iterdir())
    assert [one.name for one in pictures] == ["shoe-2.png", "shoe.png", "tall.png"]
    assert str(pictures[1]) in first[4]


def test_json_has_the_same(
    photos: list[Path], workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("--workspace", str(workspace), "--output", str(out), "--json")
    status, text, _ = command(str(photos[0]), *arguments, capsys=capsys)
    content = json.loads(text)
    found = shown(photos[:1], workspace, out)
    assert status == 0 and content["release"] == "first" and content["note"] is None
    assert content["photos"][0]["picture"] == str(out / "shoe.png")
    assert [one["path"] for one in content["photos"][0]["best"]] == [one.path for one in found.photos[0].best]


def test_another_release_and_a_run_that_was_kept_out_can_be_named(
    photos: list[Path],
    workspace: Path,
    mobilenet: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bundle(workspace / "runs" / "kept-out" / "bundle", mobilenet, threshold=0.5)
    here = ("--workspace", str(workspace), "--json", "--release")
    _, text, _ = command(str(photos[0]), *here, "kept-out", capsys=capsys)
    assert json.loads(text)["release"] == "kept-out"
    status, _, error = command(str(photos[0]), *here, "2020-W01", capsys=capsys)
    assert status == 1
    assert "--release 2020-W01: neither a release nor a run with a bundle; expected one of first," in error


# The picture


def test_the_picture_shows_the_photo_and_the_map_of_its_best_category(
    photos: list[Path], tmp_path: Path, quiet_tensorflow: None
) -> None:
    drawn_backbone(2, 96).save_weights(tmp_path / "drawn.weights.h5")  # maps of three by three cells
    backbone = load_backbone("mobilenet", str(tmp_path / "drawn.weights.h5"), 96)
    make_bundle(tmp_path / "bundle", backbone, threshold=0.3)
    found = look(tmp_path / "bundle", photos, 5, tmp_path / "out")
    assert found.note is None
    with Image.open(tmp_path / "out" / "shoe.png") as wide, Image.open(tmp_path / "out" / "tall.png") as tall:
        assert wide.format == "PNG" and wide.width > 2 * SIDE > tall.width
        beside = np.asarray(wide.convert("RGB"))
    left, right = beside[60:300, 30 : SIDE - 30], beside[60:300, SIDE + 60 : 2 * SIDE]
    assert np.ptp(right.reshape(-1, 3), axis=0).min() > 20  # not one colour
    assert not np.array_equal(left[:, : right.shape[1]], right[:, : left.shape[1]])


def test_the_overlay_is_lightest_where_the_evidence_is() -> None:
    grey = Image.new("RGB", (90, 60), (128, 128, 128))
    drawn = np.asarray(overlay(grey, np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))).astype(int)
    light = drawn.sum(axis=-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert row < 30 and column >= 60
    assert np.abs(drawn[55, 5] - (0.4 * 128 + 0.6 * VIRIDIS[0])).max() <= 2


def test_without_a_map_the_picture_is_the_photo_alone() -> None:
    picture = draw_picture(Image.new("RGB", (100, 50), "red"), None, "Fruit / Apple  62.1%")
    assert picture.width < 2 * SIDE
    assert (np.asarray(picture)[100, SIDE // 2] == (255, 0, 0)).all()


def test_a_long_title_keeps_its_end() -> None:
    short, long = (
        np.asarray(draw_picture(Image.new("RGB", (10, 10)), None, text))[:30]
        for text in ("Apple", "A department with a very long name indeed / and a shelf in it / Apple")
    )
    assert short.shape == long.shape and (long[:, -10:] == 255).all()


def test_a_backbone_without_a_single_map_gives_names_and_a_line(
    photos: list[Path], tmp_path: Path, quiet_tensorflow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = load_backbone("mobilenet@conv_pw_13_relu+conv_pw_12_relu", "random", 32)
    make_bundle(tmp_path / "W" / "releases" / "two-ends", joined, threshold=0.5)
    arguments = ("--workspace", str(tmp_path / "W"), "--release", "two-ends")
    status, out, _ = command(str(photos[0]), *arguments, capsys=capsys)
    assert status == 0
    assert out.splitlines()[-1].startswith("no maps: backbone mobilenet@")
    assert (tmp_path / "W" / "look" / "two-ends" / "shoe.png").is_file()
    assert "food / " in out


# Maps of a run


@pytest.fixture(scope="module")
def run(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `retrain` at 64 px, where maps have four cells."""
    folder = tmp_path_factory.mktemp("shop")
    draw_catalogue(folder, products=250)
    settings = SETTINGS.format(weights=drawn_weights).replace("image_size = 32", "image_size = 64")
    (folder / "weekly.toml").write_text(settings.replace("epochs = 40", "epochs = 5"))
    status, log = run_here(*retrain_arguments(folder, folder / "W"))
    assert status == 0 and "maps: photos" in log
    return folder / "W" / "runs" / "week"


def test_retrain_makes_maps_of_wrong_and_doubtful_products(run: Path) -> None:
    table = pd.read_parquet(run / "maps" / "maps.parquet").set_index("product_id")
    measured = pd.read_parquet(run / "evaluation" / "measured.parquet").set_index("product_id")
    decided = pd.read_parquet(run / "evaluation" / "decisions.parquet").set_index("product_id")
    assert 5 < len(table) <= 30 and set(table.index) <= set(measured.index)
    wrong = measured.index[~measured["correct"]]
    assert decided["confidence"][wrong].idxmax() in table.index
    assert (table["rows"] == 2).all() and all(len(heat) == 4 for heat in table["heat"])
    assert all(heat.max() in (0, 255) for heat in table["heat"])
    assert any(0 < np.min(heat) < 255 or np.min(heat) == 0 for heat in table["heat"])


def test_the_maps_of_a_run_are_those_of_look(run: Path, tmp_path: Path) -> None:
    bundle = open_bundle(run / "bundle")
    from models.heads.class_maps import ClassMaps
    from pipeline.report.photos import first_jpegs

    table = pd.read_parquet(run / "maps" / "maps.parquet").set_index("product_id")
    decided = pd.read_parquet(run / "evaluation" / "decisions.parquet").set_index("product_id")
    jpegs = first_jpegs(run / "records", list(table.index[:4]))
    names = list(bundle.categorizer.predictor.taxonomy.categories)
    categories = np.array([names.index(decided["category"][product]) for product in jpegs])
    found = ClassMaps(bundle.backbone(), bundle.categorizer.head).heats(list(jpegs.values()), categories)
    for product, heat in zip(jpegs, found, strict=True):
        assert np.abs(heat.ravel() * 255 - table["heat"][product]).max() <= 1


def test_the_report_shows_the_maps_of_its_own_evaluation_alone(run: Path) -> None:
    page = (run / "report" / "index.html").read_text()
    assert "Show where the network looked" in page
    arguments = ("--workspace", str(run.parents[1]), "--run", "week")
    assert run_here("report", *arguments)[1].startswith("report: unchanged")
    manifest = run / "maps" / "manifest.json"
    before = manifest.read_text()
    content = json.loads(before)
    content["made_from"]["evaluation"] = "another"
    try:
        manifest.write_text(json.dumps(content))
        assert run_here("report", *arguments)[0] == 0
        assert "Show where the network looked" not in (run / "report" / "index.html").read_text()
    finally:
        manifest.write_text(before)
        run_here("report", *arguments)


def test_evaluate_makes_the_same_maps_and_none_where_none_are_wanted(run: Path) -> None:
    file = run / "maps" / "maps.parquet"
    before = file.read_bytes()
    arguments = ("--workspace", str(run.parents[1]), "--run", "week")
    assert "maps: unchanged" in run_here("evaluate", *arguments)[1]
    (run / "maps" / "manifest.json").unlink()
    file.unlink()
    assert "maps: photos" in run_here("evaluate", *arguments)[1]
    assert file.read_bytes() == before
    assert "maps" not in run_here("evaluate", *arguments, "--set", "report.maps=0")[1]
    run_here("evaluate", *arguments, "--set", "report.maps=30")


def test_a_backbone_that_cannot_be_had_leaves_the_report_without_maps(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise ShelfmarkError("weights are gone; expected a file; give --weights")

    monkeypatch.setattr("pipeline.job.run.load_backbone", lost)
    status, log = run_here("evaluate", "--workspace", str(run.parents[1]), "--run", "week")
    assert status == 0 and "maps: none: weights are gone" in log


def test_file_names_differ() -> None:
    names = looking._file_names([Path(one) for one in ("a/x.jpg", "b/x.png", "c/x-2.jpg", ".hidden")])
    assert names == ["x.png", "x-2.png", "x-2-2.png", ".hidden.png"]


def test_pictures_are_png(photos: list[Path], workspace: Path, tmp_path: Path) -> None:
    found = shown(photos[:1], workspace, tmp_path / "out")
    with Image.open(io.BytesIO(Path(str(found.photos[0].picture)).read_bytes())) as picture:
        assert picture.format == "PNG"
