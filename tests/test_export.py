"""`shelfmark export`: the written files decide as the categorizer does, without our code."""

import importlib.util
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Photo
from drawn_categorizers import KINDS, MIRRORED, Kind, draw_categorizer, draw_lenet, rows_of, write_bundle
from photos_alone import categorize_photos
from test_retrain import run_here

from features.engines.backbone_names import parse_name
from features.engines.backbones import Backbone, KerasBackbone, load_backbone, onnx_backbone
from features.engines.choose import choose_engine, engines_of_views
from features.engines.onnx_input import EncoderOptions
from features.errors import ShelfmarkError
from features.images.refusal import LIMITS
from features.storage.artifact import damaged_file, open_artifact
from features.views import WHOLE, parse_view
from models.decisions.bundle import open_bundle
from models.decisions.categorizer import Categorizer
from models.heads.architectures import SET
from pipeline.arguments import EXPORT_NEEDS

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE, PRODUCTS = 32, 40
FORMATS = ("saved_model", "onnx", "openvino")
MIXED = Kind(
    confidence="boosting", hierarchical=True, standardized=True, views=MIRRORED
)  # of each the harder one
SEVERAL = Kind(
    aggregation=SET, confidence="probability", standardized=True, cascade=True,
    views=("whole", "48", "48-top-left-flip", "max"),
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def backbone(quiet_tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> KerasBackbone:
    """LeNet-5 with other numbers for other photos; quick to convert."""
    return draw_lenet(tmp_path_factory.mktemp("weights"), SIZE)


@pytest.fixture(scope="module")
def jpegs(photo: Photo) -> list[bytes]:
    """Photos of PRODUCTS products, of one or two each."""
    return [photo(seed, 40 + seed % 7, 44) for seed in range(int(counts_of_products().sum()))]


def counts_of_products() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 3, PRODUCTS)


def drawn_bundle(folder: Path, backbone: Backbone, jpegs: list[bytes], kind: Kind) -> Path:
    """A bundle whose confidences are fitted on the photos; released in a workspace."""
    rows = rows_of(backbone, jpegs, kind.views, kind.averaged)
    bounds = np.concatenate([[0], np.cumsum(counts_of_products() * kind.rows_of_image)])
    categorizer = draw_categorizer(kind, rows, bounds, backbone.fingerprint)
    path = folder / "W" / "releases" / "first"
    write_bundle(path, backbone, categorizer)
    (path.parent / "current").symlink_to("first")
    return path


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The error line of `shelfmark export` with these options."""

    def call(*options: str) -> str:
        assert run_here("export", *options)[0] == 1
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def catalogue(jpegs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the products, p00 to p39, beside their photos, 0.jpg, 1.jpg and so on."""
    folder = tmp_path_factory.mktemp("catalogue")
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    ids = [f"p{number:02}" for number in range(PRODUCTS)]
    rows = {"product_id": np.repeat(ids, counts_of_products())}
    rows["image"] = np.array([f"{number}.jpg" for number in range(len(jpegs))])
    pd.DataFrame(rows).to_csv(folder / "products.csv", index=False)
    return folder / "products.csv"


@pytest.fixture(scope="module")
def released(backbone: KerasBackbone, jpegs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the release `first` is in service; of each part it has the harder one."""
    return drawn_bundle(tmp_path_factory.mktemp("exported"), backbone, jpegs, MIXED).parents[1]


@pytest.fixture(scope="module")
def exported(released: Path, catalogue: Path) -> Callable[[str], tuple[Path, str]]:
    """The directory that the command has written in a format, and its log; each is written once."""
    folder = released.parent
    done: dict[str, tuple[Path, str]] = {}

    def written(kind: str) -> tuple[Path, str]:
        for package in EXPORT_NEEDS[kind]:
            pytest.importorskip(package)
        if kind not in done:
            output = folder / kind
            options = ["--workspace", str(released), "--output", str(output), "--check", str(catalogue)]
            status, log = run_here("export", "--format", kind, *options)
            assert status == 0, log
            done[kind] = output, log
        return done[kind]

    return written


# What is written


@pytest.mark.parametrize("kind", FORMATS)
def test_the_check_finds_no_decision_that_differs(kind: str, exported: Callable[[str], Any]) -> None:
    output, log = exported(kind)
    found = open_artifact(output, "export").summary["check"]
    assert found["products"] == PRODUCTS and found["photos"] == counts_of_products().sum() == found["kept"]
    assert found["differ"] == found["beyond"] == found["refused"] == 0
    assert found["confidence"] < 1e-4
    assert set(found["statuses"]) == {"accepted", "parent", "review"}
    assert f"of {PRODUCTS} products" in log and "0 decisions differ" in log


@pytest.mark.parametrize("kind", FORMATS)
def test_the_manifest_says_what_a_program_needs(kind: str, exported: Callable[[str], Any]) -> None:
    output, _ = exported(kind)
    made = open_artifact(output, "export")
    assert damaged_file(made, output) is None and not output.with_name(f"{kind}.partial").exists()
    bundle = open_artifact(output.parent / "W" / "releases" / "first", "bundle")
    assert made.made_from == {"bundle": bundle.digest, "format": kind}
    summary = made.summary
    assert (summary["format"], summary["release"], summary["target_precision"]) == (kind, "first", 0.9)
    assert summary["image_size"] == SIZE and summary["backbone"] == "lenet5"
    assert summary["caveats"] == ["the weights of its backbone are random: its decisions are a demonstration"]
    assert list(summary["inputs"]) == ["images" if kind == "saved_model" else "pixels", "images_per_product"]
    assert {"status", "node", "confidence", "top_categories"} < set(summary["outputs"])
    assert {"shelfmark", "tensorflow", *EXPORT_NEEDS[kind]} - {"onnxruntime"} <= set(summary["versions"])
    names = json.loads((output / "names.json").read_bytes())
    assert names["statuses"] == ["review", "parent", "accepted"]
    assert {"category": "hat", "path": "wear / hat"} in names["categories"]
    assert names["nodes"][0] == {"node": "", "node_path": "", "node_level": 0}
    assert {"node": "fruit", "node_path": "food / fruit", "node_level": 2} in names["nodes"]


# Without our code


def example(text: str) -> str:
    """The one example of the page that has this text in it."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = (block for block in blocks if text in block)
    return str(found)


def without_our_code(code: str, folder: Path) -> str:
    """What a program prints that finds other packages, but none of ours."""
    ours = "('features', 'models', 'pipeline', 'serving')"
    check = f"import importlib.util as u\nassert not any(map(u.find_spec, {ours}))\n"
    paths = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    environment = {"PYTHONPATH": ":".join(paths), "TF_CPP_MIN_LOG_LEVEL": "3", "HOME": str(folder)}
    # -S: without the file in site-packages that makes our checkout importable
    call = [sys.executable, "-S", "-c", check + code]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        pytest.param("saved_model", "tensorflow", marks=pytest.mark.slow),  # TensorFlow takes long to start
        ("onnx", "onnxruntime"),
        ("openvino", "openvino"),
    ],
)
def test_the_example_of_the_page_decides_as_the_categorizer(
    kind: str, package: str, exported: Callable[[str], Any], jpegs: list[bytes], tmp_path: Path
) -> None:
    output, _ = exported(kind)
    (tmp_path / "exported").symlink_to(output)
    products = [jpegs[3:5], jpegs[5:6]]
    (tmp_path / "pixels.py").write_text(example("def pixels_of"))
    for name, content in zip(("front.jpg", "back.jpg", "other.jpg"), jpegs[3:6], strict=True):
        (tmp_path / name).write_bytes(content)
    bundle = open_bundle(output.parent / "W" / "releases" / "first")
    engine = choose_engine(bundle.backbone(), 8, "tensorflow", "fp32")
    expected = [
        categorize_photos(bundle.categorizer, {WHOLE: engine}, "p", one, LIMITS)[0].iloc[0]
        for one in products
    ]
    printed = [line.split() for line in without_our_code(example(f"import {package}"), tmp_path).splitlines()]
    assert [line[0] for line in printed] == [row["status"] for row in expected]
    assert [" ".join(line[1:-1]) for line in printed] == [row["node"] or "" for row in expected]
    confidences = [float(line[-1]) for line in printed]
    assert confidences == pytest.approx([row["confidence"] for row in expected], abs=1e-4)
    assert len(set(confidences)) == 2


# Views


@pytest.fixture(scope="module")
def several(backbone: KerasBackbone, jpegs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose release asks for views of two sizes, a crop and the maximum."""
    return drawn_bundle(tmp_path_factory.mktemp("several"), backbone, jpegs, SEVERAL).parents[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_views_of_several_sizes_are_computed_from_each_photo(
    kind: str, several: Path, catalogue: Path, jpegs: list[bytes], tmp_path: Path
) -> None:
    for package in EXPORT_NEEDS[kind]:
        pytest.importorskip(package)
    options = ["--workspace", str(several), "--output", str(tmp_path / "exported"), "--check", str(catalogue)]
    status, log = run_here("export", "--format", kind, *options)
    assert status == 0 and f"of {PRODUCTS} products" in log and "0 decisions differ" in log, log
    summary = open_artifact(tmp_path / "exported", "export").summary
    assert summary["check"]["confidence"] < 1e-3 and len(summary["check"]["statuses"]) == 3
    assert summary["views"] == list(SEVERAL.views)
    inputs = ["images"] if kind == "saved_model" else ["pixels_32", "pixels_48"]
    assert list(summary["inputs"]) == [*inputs, "images_per_product"]
    if kind == "onnx":
        assert_the_example_of_views_decides(tmp_path, several, jpegs)


def assert_the_example_of_views_decides(folder: Path, workspace: Path, jpegs: list[bytes]) -> None:
    """The example of the page, after what the one before it has begun with, without our code."""
    before = example("import onnxruntime").partition("size = ")[0]
    after = "counts, wanted = np.array([2, 1], np.int32), ['confidence']\n" + example('startswith("pixels")')
    (folder / "pixels.py").write_text(example("def pixels_of"))
    for name, content in zip(("front.jpg", "back.jpg", "other.jpg"), jpegs[3:6], strict=True):
        (folder / name).write_bytes(content)
    bundle = open_bundle(workspace / "releases" / "first")
    engines = engines_of_views(bundle.backbone(), bundle.categorizer.views, 8, "fp32")
    expected = [
        categorize_photos(bundle.categorizer, engines, "p", one, LIMITS)[0]["confidence"].item()
        for one in (jpegs[3:5], jpegs[5:6])
    ]
    printed = json.loads(without_our_code(before + after + "print(found[0].tolist())", folder))
    assert printed == pytest.approx(expected, abs=1e-3)


def test_a_view_that_the_backbone_cannot_have_is_refused(released: Path, tmp_path: Path) -> None:
    from pipeline.export.graph import ExportedGraph

    encoder = onnx_backbone(b"", parse_name(str(tmp_path / "clip.onnx")), SIZE, 8)
    bundle = open_bundle(released / "releases" / "first")
    bundle.categorizer.__dict__["views"] = (parse_view("48-center"), parse_view("48"))
    with pytest.raises(ShelfmarkError, match=r"^view 48: .* is an ONNX file, whose size .*; expected .*; "):
        ExportedGraph(bundle, encoder)


def test_a_saved_model_refuses_counts_that_are_not_those_of_the_photos(
    exported: Callable[[str], Any], jpegs: list[bytes]
) -> None:
    import tensorflow as tf

    from pipeline.export.saved_model import Runner

    runner = Runner(exported("saved_model")[0])
    for counts, message in (([2, 2], "its sum is not the number of images"), ([3, 0], "without an image")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            runner.decide(jpegs[:3], np.array(counts))


# The check


class InProcess:
    """Decides by a categorizer, as written files do."""

    def __init__(self, categorizer: Categorizer) -> None:
        self._categorizer = categorizer

    def decide(self, jpegs: list[bytes], counts: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._categorizer.bottlenecks(None, jpegs, "photos")  # type: ignore[arg-type]
        predictions = self._categorizer.predict(rows, np.concatenate([[0], np.cumsum(counts)]))
        table = self._categorizer.decide(np.arange(len(counts)).astype(str), predictions)
        found = {name: table[name].to_numpy() for name in ("status", "confidence")}
        return found | {"node": table["node"].fillna("").to_numpy()}


def test_only_a_difference_away_from_the_thresholds_is_an_error_of_the_export(
    monkeypatch: pytest.MonkeyPatch, mobilenet: Backbone
) -> None:
    from pipeline.export import check as module

    rows = np.random.default_rng(6).normal(size=(100, 12)).astype(np.float16)
    drawn = draw_categorizer(KINDS["flat"], rows, np.arange(101))
    monkeypatch.setattr(Categorizer, "bottlenecks", lambda *given: rows[[int(jpeg) for jpeg in given[2]]])
    monkeypatch.setattr(module, "engines_of_views", lambda *arguments, **options: None)
    photos = module.Photos(np.ones(100, np.int32), [b"%d" % number for number in range(100)], 100, 0)

    def at(threshold: float) -> Categorizer:
        rules = drawn.rules  # the category alone is decided
        certificate = replace(rules.certificate, threshold=threshold)
        return replace(drawn, rules=replace(rules, certificate=certificate, levels={}))

    values = np.sort(InProcess(drawn).decide(photos.jpegs, photos.counts)["confidence"])[::-1]
    apart = -np.diff(values) > 2 * module.PRECISION
    rank = int(np.flatnonzero(apart[1:] & apart[:-1])[2]) + 1  # a product far from those beside it
    edge = float(values[rank])

    def differences(threshold: float) -> tuple[int, int]:
        categorizer, written = at(edge - module.PRECISION / 2), InProcess(at(threshold))
        result = module.check(categorizer, mobilenet, written, photos)
        assert (result.confidence, result.products) == (0.0, 100)
        return result.differ, result.beyond

    assert differences(edge - module.PRECISION / 4) == (0, 0)
    assert differences(edge + 1e-6) == (1, 0)  # that one is within the engines' precision
    assert differences(1.1) == (rank + 1, rank) and rank > 0


def test_an_export_that_decides_otherwise_is_not_written(
    released: Path, catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    from pipeline.export import export as module
    from pipeline.export import saved_model

    result = module.CheckResult(40, 60, 60, 0, differ=3, beyond=2, confidence=0.2, statuses={"review": 40})
    monkeypatch.setattr(saved_model, "write", lambda graph, folder: (folder / "model").touch())
    monkeypatch.setattr(saved_model, "Runner", lambda folder: None)
    monkeypatch.setattr(module, "check", lambda *arguments: result)
    output = ["--output", str(tmp_path / "out"), "--check", str(catalogue)]
    message = refused("--workspace", str(released), "--format", "saved_model", *output)
    assert "2 of 40 products are decided otherwise than by the categorizer" in message
    assert list(tmp_path.iterdir()) == []


def test_the_check_reads_whole_products_always_the_same_ones_and_each_photo_once(
    catalogue: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.export import check

    monkeypatch.setattr(check, "PHOTOS", 20)
    found, counts = check.photos_of(str(catalogue)), counts_of_products()
    assert 20 <= found.counts.sum() == len(found.jpegs) <= 21 and found.refused == 0
    starts = np.cumsum(counts) - counts
    products = [tuple(jpegs[start : start + count]) for start, count in zip(starts, counts, strict=True)]
    first = np.cumsum(found.counts) - found.counts
    chosen = [tuple(found.jpegs[at : at + n]) for at, n in zip(first, found.counts, strict=True)]
    assert set(chosen) <= set(products) and check.photos_of(str(catalogue)).jpegs == found.jpegs

    table = pd.read_csv(catalogue)
    table["image"] = str(catalogue.parent) + "/" + table["image"]
    again = pd.concat([table.iloc[::-1], table.iloc[:9]]).sort_values("product_id", kind="stable")
    (tmp_path / "bad.jpg").write_bytes(jpegs[0][:300])
    again.loc[again["product_id"] == "p39", "image"] = str(tmp_path / "bad.jpg")
    again.to_csv(tmp_path / "again.csv", index=False)
    monkeypatch.setattr(check, "PHOTOS", 500)
    twice = check.photos_of(str(tmp_path / "again.csv"))
    assert twice.counts.sum() == counts[:-1].sum() and twice.refused == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_head_is_written_in_every_format(
    name: str, backbone: KerasBackbone, jpegs: list[bytes], tmp_path: Path
) -> None:
    from pipeline.export.check import Photos, check
    from pipeline.export.export import MODULES
    from pipeline.export.graph import ExportedGraph

    bundle = open_bundle(drawn_bundle(tmp_path, backbone, jpegs, KINDS[name]))
    graph = ExportedGraph(bundle, backbone)
    photos = Photos(counts_of_products(), jpegs, kept=len(jpegs), refused=0)
    for kind, module in MODULES.items():
        (folder := tmp_path / kind).mkdir()
        graph.write_names(folder)
        written = importlib.import_module(f"pipeline.export.{module}")
        written.write(graph, folder)
        result = check(bundle.categorizer, backbone, written.Runner(folder), photos)
        assert result.differ == result.beyond == 0 and result.confidence < 1e-3, kind
        assert min(result.statuses.values()) >= 3 and len(result.statuses) == 3


# What cannot be written


def test_a_directory_that_is_not_empty_is_left_alone(
    released: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    for output, what in ((tmp_path / "out", "not empty"), (tmp_path / "out" / "mine.txt", "not a directory")):
        log = refused("--workspace", str(released), "--format", "onnx", "--output", str(output))
        assert f"{output}: {what}; expected a new or empty directory; give another --output" in log
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_is_not_there_is_named_before_anything_is_done(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    output = ["--output", str(tmp_path / "out")]
    log = refused("--workspace", str(tmp_path / "none"), "--format", "onnx", *output)
    assert "no such directory; expected the workspace of a run" in log
    to_onnx = ["--workspace", str(released), "--format", "onnx", *output]
    assert "--release second: neither a release nor" in refused(*to_onnx, "--release", "second")
    assert "no such file or folder" in refused(*to_onnx, "--check", str(tmp_path / "none.csv"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name))
    assert "tf2onnx is not installed; expected in the same environment; pip install" in refused(*to_onnx)
    assert not (tmp_path / "out").exists()


def test_keras_on_another_backend_is_refused(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    log = refused("--workspace", str(released), "--format", "onnx", "--output", str(tmp_path / "out"))
    assert "export: Keras runs on jax; expected tensorflow" in log


def test_an_encoder_from_an_onnx_file_is_no_saved_model(released: Path, tmp_path: Path) -> None:
    from pipeline.export import saved_model
    from pipeline.export.graph import ExportedGraph

    encoder = onnx_backbone(b"", parse_name(str(tmp_path / "clip.onnx")), SIZE, 8)
    graph = ExportedGraph(open_bundle(released / "releases" / "first"), encoder)
    with pytest.raises(ShelfmarkError, match=r"because it is an ONNX file; expected .* give --format onnx"):
        saved_model.write(graph, tmp_path)


def test_an_operation_that_a_converter_lacks_is_named(
    backbone: KerasBackbone, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.export import onnx_graph, openvino_ir
    from pipeline.export.graph import ExportedGraph

    graph = ExportedGraph(open_bundle(released / "releases" / "first"), backbone)

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no translation of Fold\nand much more")

    for module, package, function in ((onnx_graph, "tf2onnx.convert", "from_function"),
                                      (openvino_ir, "openvino", "convert_model")):  # fmt: skip
        monkeypatch.setattr(pytest.importorskip(package), function, fail)
        with pytest.raises(ShelfmarkError, match=r"cannot be written .*no translation of Fold\); expected"):
            module.write(graph, tmp_path)
    assert list(tmp_path.glob("model*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("views", [("whole",), ("whole", "flip", "48-center")], ids=["one", "several"])
def test_an_encoder_from_an_onnx_file_decides_in_onnx_and_openvino(
    views: tuple[str, ...],
    backbone: KerasBackbone,
    jpegs: list[bytes],
    catalogue: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    import tensorflow as tf

    tf2onnx = pytest.importorskip("tf2onnx")
    spec = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="photos")]
    network = tf.function(lambda photos: backbone.model(photos, training=False), input_signature=spec)
    tf2onnx.convert.from_function(network, spec, opset=17, output_path=str(tmp_path / "own.onnx"))
    own = load_backbone(str(tmp_path / "own.onnx"), "imagenet", encoder=EncoderOptions(scaling="0..255"))
    drawn_bundle(tmp_path, own, jpegs, replace(MIXED, views=views))
    for kind in ("onnx", "openvino"):
        options = ["--workspace", str(tmp_path / "W"), "--output", str(tmp_path / kind)]
        status, log = run_here("export", "--format", kind, *options, "--check", str(catalogue))
        assert status == 0 and "0 decisions differ" in log, log
    log = refused("--format", "saved_model", *options[:2], "--output", str(tmp_path / "saved_model"))
    assert "because it is an ONNX file" in log and not (tmp_path / "saved_model").exists()
