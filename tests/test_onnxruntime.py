"""A network as a file of ONNX decides as it does in Keras: engines, bundles, batch and HTTP."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pandas as pd
import pytest
from catalogues import draw_products, manifest_rows, write_manifest
from fastapi.testclient import TestClient
from photos_alone import categorize_photos
from service import serving
from test_engines import BF16, LIMIT, needs, without

from features.engines.backbones import (
    BACKBONE_ONNX,
    Backbone,
    KerasBackbone,
    OnnxBackbone,
    load_backbone,
    read_backbone,
)
from features.engines.choose import choose_engine
from features.engines.engine import extract
from features.engines.onnx_input import EncoderOptions
from features.engines.openvino import Int8Calibration
from features.errors import ShelfmarkError
from features.images.refusal import LIMITS
from features.records import pieces_of
from features.views import WHOLE
from models.decisions.bundle import open_bundle
from pipeline.cli import main

pytest.importorskip("onnxruntime")
tf2onnx = pytest.importorskip("tf2onnx")
pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE, COUNT = 32, 11
SCALED = EncoderOptions(scaling="-1..1")


def export(backbone: KerasBackbone, file: Path) -> Path:
    """Writes the network, without its preprocessing: scaled photos → bottlenecks."""
    import tensorflow as tf

    spec = tf.TensorSpec((None, backbone.image_size, backbone.image_size, 3), tf.float32, name="photos")
    network = tf.function(lambda photos: backbone.network(photos, training=False), input_signature=[spec])
    tf2onnx.convert.from_function(network, [spec], opset=17, output_path=str(file))
    return file


@pytest.fixture(scope="module")
def in_keras(drawn_weights: Path) -> Backbone:
    return load_backbone("mobilenet", str(drawn_weights), SIZE)


@pytest.fixture(scope="module")
def file(in_keras: KerasBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(in_keras, tmp_path_factory.mktemp("encoder") / "own.onnx")


@pytest.fixture(scope="module")
def in_onnx(file: Path) -> Backbone:
    return load_backbone(str(file), "imagenet", encoder=SCALED)


@pytest.fixture(scope="module")
def jpegs(photo: conftest.Photo) -> list[bytes]:
    return [photo(seed, 40 + seed, 60) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def reference(in_keras: Backbone, jpegs: list[bytes]) -> np.ndarray:
    return in_keras.bottlenecks(conftest.pixels_of(jpegs, SIZE))


def run(backbone: Backbone, jpegs: list[bytes], engine: str, precision: str, batch: int = 8) -> np.ndarray:
    runs = choose_engine(backbone, batch, engine, precision)
    return extract(runs, pieces_of(jpegs, "drawn"), len(jpegs), dtype=np.float32)[0]


def errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(n,) length of the difference as a share of the expected length, before rounding to float16."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("onnxruntime", "fp32"), pytest.param("openvino", "fp32", marks=needs("openvino")), BF16],
)
def test_bottlenecks_are_those_of_the_same_network_in_keras(
    in_onnx: Backbone, jpegs: list[bytes], reference: np.ndarray, engine: str, precision: str
) -> None:
    found = run(in_onnx, jpegs, engine, precision)
    assert errors(found, reference).max() < LIMIT[precision]
    assert errors(np.roll(found, 1, axis=0), reference).min() > 3 * LIMIT[precision]
    np.testing.assert_array_equal(run(in_onnx, jpegs[-1:], engine, precision), found[-1:])


def test_without_an_engine_the_backbone_gives_the_same(
    in_onnx: Backbone, jpegs: list[bytes], reference: np.ndarray
) -> None:
    found = in_onnx.bottlenecks(conftest.pixels_of(jpegs, SIZE))
    assert errors(found, reference).max() < LIMIT["fp32"]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs("openvino"))])
def test_an_encoder_of_one_photo_at_a_time_gives_all_of_them_in_order(
    file: Path, tmp_path: Path, jpegs: list[bytes], reference: np.ndarray, engine: str, batch: int
) -> None:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(file)
    end = model.graph.output[0].name
    model.graph.initializer.append(helper.make_tensor("fixed", TensorProto.INT64, [2], [1, 1024]))
    model.graph.node.append(helper.make_node("Reshape", [end, "fixed"], ["reshaped"]))
    model.graph.output[0].name = "reshaped"
    onnx.save(model, tmp_path / "one.onnx")
    backbone = load_backbone(str(tmp_path / "one.onnx"), "imagenet", encoder=SCALED)
    assert errors(run(backbone, jpegs, engine, "fp32", batch), reference).max() < LIMIT["fp32"]


@needs("openvino")
@needs("nncf")
def test_int8_is_fitted_to_the_catalogue(
    in_onnx: Backbone, jpegs: list[bytes], reference: np.ndarray, tmp_path: Path
) -> None:
    calibration = Int8Calibration(tmp_path, lambda most: iter(pieces_of(jpegs[:most], "drawn")))
    engine = choose_engine(in_onnx, 8, "openvino", "int8", calibration)
    [found] = extract(engine, pieces_of(jpegs, "drawn"), COUNT, dtype=np.float32)
    assert (engine.name, (tmp_path / "int8.xml").is_file()) == ("openvino int8", True)
    assert errors(found, reference).mean() < 0.2 < errors(np.roll(found, 1, axis=0), reference).mean()


# Which engine


def test_auto_takes_openvino_else_onnx_runtime_else_names_the_extras(
    in_onnx: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shelfmark")
    if needs("openvino").args[0] is False:
        assert choose_engine(in_onnx, 8).name.startswith("openvino ")
    without(monkeypatch, "openvino")
    assert choose_engine(in_onnx, 8).name == "onnxruntime fp32"
    assert "an ONNX file and no OpenVINO; `pip install 'shelfmark[openvino]'` is quicker" in caplog.text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ShelfmarkError, match=r"neither openvino nor onnxruntime .* 'shelfmark\[onnx\]'"):
        choose_engine(in_onnx, 8)


@pytest.mark.parametrize(
    ("engine", "precision", "text"),
    [
        ("tensorflow", "auto", "does not run backbone own.onnx; expected openvino or onnxruntime"),
        ("jax", "auto", "does not run backbone own.onnx; expected openvino or onnxruntime"),
        ("onnxruntime", "bf16", "does not compute in it on CPUs"),
        ("onnxruntime", "int8", "onnxruntime does not support it; expected OpenVINO"),
    ],
)
def test_engines_that_cannot_run_the_file_say_so(
    in_onnx: Backbone, engine: str, precision: str, text: str
) -> None:
    with pytest.raises(ShelfmarkError, match=text):
        choose_engine(in_onnx, 8, engine, precision)


def test_onnx_runtime_runs_files_alone(in_keras: Backbone) -> None:
    with pytest.raises(ShelfmarkError, match="does not run backbone mobilenet; expected openvino, tens"):
        choose_engine(in_keras, 8, "onnxruntime")


# As a backbone


def test_a_bundle_holds_the_network_itself(in_onnx: OnnxBackbone, file: Path, tmp_path: Path) -> None:
    assert (in_onnx.name, in_onnx.weights, in_onnx.image_size, in_onnx.width) == (
        "own.onnx", "own.onnx", SIZE, 1024,
    )  # fmt: skip
    assert in_onnx.fingerprint.startswith("own.onnx-32-")
    in_onnx.save(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["backbone.json", "backbone.onnx"]
    assert str(file.parent) not in (tmp_path / "backbone.json").read_text()
    assert read_backbone(tmp_path, in_onnx.fingerprint) == in_onnx
    damaged = bytearray((tmp_path / BACKBONE_ONNX).read_bytes())
    damaged[-100] ^= 1
    (tmp_path / BACKBONE_ONNX).write_bytes(damaged)
    with pytest.raises(ShelfmarkError, match="its backbone has fingerprint own"):
        read_backbone(tmp_path, in_onnx.fingerprint)


def test_fingerprints_depend_on_the_file_and_the_settings_and_not_on_the_folder(
    in_onnx: Backbone, file: Path, tmp_path: Path
) -> None:
    copied = shutil.copy(file, tmp_path)
    assert load_backbone(str(copied), "imagenet", encoder=SCALED).fingerprint == in_onnx.fingerprint
    other = load_backbone(str(copied), "imagenet", encoder=EncoderOptions(scaling="0..1"))
    assert other.fingerprint != in_onnx.fingerprint


@pytest.mark.parametrize("weights", ["random", "other.weights.h5"])
def test_weights_for_a_file_that_has_them_are_refused(file: Path, weights: str) -> None:
    with pytest.raises(ShelfmarkError, match=r"own.onnx: has its own weights, and cannot .* --weights"):
        load_backbone(str(file), weights, encoder=SCALED)


def test_commands_check_the_file_before_they_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    command = ["retrain", str(tmp_path / "photos"), "--workspace", str(tmp_path / "W")]
    with pytest.raises(SystemExit) as raised:
        main([*command, "--backbone", str(tmp_path / "no.onnx")])
    assert raised.value.code == 1
    assert capsys.readouterr().err.endswith(
        "no.onnx: no such file; expected a network in ONNX format; correct --backbone\n"
    )


# Decisions


@pytest.fixture(scope="module")
def releases(
    in_keras: Backbone, in_onnx: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same head over either backbone, in a workspace of its own."""
    import keras

    found = {}
    for name, backbone in (("keras", in_keras), ("onnx", in_onnx)):
        path = tmp_path_factory.mktemp(name) / "W" / "releases"
        keras.utils.set_random_seed(5)
        conftest.make_bundle(path / "first", backbone, threshold=0.445, hidden=(16, 8), scale=500.0)
        (path / "current").symlink_to("first")
        found[name] = path.parent
    return found


@pytest.fixture(scope="module")
def clients(releases: dict[str, Path]) -> Iterator[dict[str, TestClient]]:
    bundles = {name: open_bundle(path / "releases" / "first") for name, path in releases.items()}
    with (
        serving(bundles["keras"]) as in_keras,
        serving(bundles["onnx"]) as in_onnx,
    ):
        yield {"keras": in_keras, "onnx": in_onnx}


def test_decisions_are_the_same_in_batch_and_over_http(
    clients: dict[str, TestClient], releases: dict[str, Path], jpegs: list[bytes]
) -> None:
    bundle = open_bundle(releases["onnx"] / "releases" / "first")
    engine = choose_engine(bundle.backbone(), 16)
    decisions: list[dict[str, Any]] = []
    for number, jpeg in enumerate(jpegs):
        answers = {
            name: client.post(
                "/v1/categorize", files=[("images", ("photo", jpeg))], data={"product_id": str(number)}
            ).json()
            for name, client in clients.items()
        }
        table, _ = categorize_photos(bundle.categorizer, {WHOLE: engine}, str(number), [jpeg], LIMITS)
        assert answers["onnx"]["category"] == table["category"][0]
        assert answers["onnx"]["confidence"] == pytest.approx(table["confidence"][0], abs=1e-6)
        assert answers["onnx"]["confidence"] == pytest.approx(answers["keras"]["confidence"], abs=2e-2)
        same = ("category", "status", "node")
        assert [answers["onnx"][key] for key in same] == [answers["keras"][key] for key in same]
        decisions.append(answers["onnx"])
    assert len({one["category"] for one in decisions}) > 1
    assert {one["status"] for one in decisions} == {"accepted", "review"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "options", [(), ("--", "--runner=FnApiRunner", "--direct_running_mode=in_memory")], ids=["here", "beam"]
)
def test_a_batch_decides_the_same_in_processes_and_on_beam(
    releases: dict[str, Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    rows = manifest_rows(tmp_path, draw_products({"1": 60}))
    source = str(write_manifest(tmp_path / "shop.csv", rows))
    found = {}
    for name, workspace in releases.items():
        shutil.copytree(workspace, tmp_path / name, symlinks=True)
        command = ["categorize", source, "--workspace", str(tmp_path / name), "--output"]
        output = tmp_path / f"{name}.parquet"
        main([*command, str(output), "--set", "extract.shard_images=30", *options])
        found[name] = pd.read_parquet(output)
    assert len(found["onnx"]) == 60
    for column in ("product_id", "category", "status"):
        pd.testing.assert_series_equal(found["onnx"][column], found["keras"][column])
    np.testing.assert_allclose(found["onnx"]["confidence"], found["keras"]["confidence"], atol=2e-2)


# Real weights


WEIGHTS = conftest.SHARED / "weights" / "mobilenet_imagenet_block12.weights.h5"
GROCERY = conftest.SHARED / "data" / "grocery" / "val"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file() or not GROCERY.is_dir(), reason="no weights or photos in ../shared")
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("onnxruntime", "fp32"), pytest.param("openvino", "fp32", marks=needs("openvino")), BF16],
)
def test_real_photos_have_the_bottlenecks_that_they_have_in_keras(
    tmp_path: Path, engine: str, precision: str
) -> None:
    backbone = load_backbone("mobilenet", str(WEIGHTS), 224)
    assert isinstance(backbone, KerasBackbone)
    photos = [file.read_bytes() for file in sorted(GROCERY.rglob("*.jpg"))[::20]]
    expected = run(backbone, photos, "tensorflow", "fp32", 16)
    own = load_backbone(str(export(backbone, tmp_path / "mobilenet.onnx")), "imagenet", encoder=SCALED)
    assert errors(run(own, photos, engine, precision, 16), expected).max() < LIMIT[precision]
