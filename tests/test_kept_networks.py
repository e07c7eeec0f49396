"""OpenVINO's network is converted once, and then opened without TensorFlow and Keras."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest

from features.engines import openvino as engine_module
from features.engines.backbones import Backbone, load_backbone
from features.engines.choose import choose_engine
from features.engines.engine import Engine
from features.engines.kept_networks import keep, read_kept
from features.engines.openvino import load_openvinos, to_openvino
from features.engines.openvino_graphs import ready_for_bfloat16
from features.storage.store import Store
from features.views import WHOLE, View
from models.decisions.bundle import open_bundle

pytest.importorskip("openvino")
pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


@pytest.fixture(scope="module")
def backbone(drawn_weights: Path) -> Backbone:
    return load_backbone("mobilenet", str(drawn_weights), 32)


@pytest.fixture(scope="module")
def pristine(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the kept network."""
    folder = tmp_path_factory.mktemp("kept") / backbone.fingerprint
    engines(backbone, folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; converting takes its network, which is quicker than to convert."""
    monkeypatch.setattr(engine_module, "to_openvino", lambda *_: read_kept(pristine, "fp32"))
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def pixels(count: int = 8, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def run(engine: Engine) -> np.ndarray:
    """(8, d) float32, not rounded."""
    rows = np.empty((8, engine.width), np.float32)
    engine.fill(list(pixels().reshape(-1, engine.batch, 32, 32, 3)), rows)
    return rows


def kept_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def never() -> Backbone:
    raise AssertionError("the backbone is loaded; expected the kept network")


def engines(backbone: Backbone, folder: Path, kept: bool = False) -> dict[int, Engine]:
    load = never if kept else lambda: backbone
    return dict(load_openvinos(load, backbone.width, [1, 2, 8], "fp32", folder))


def test_kept_network_computes_what_the_converted_one_does_in_batches_of_every_size(
    backbone: Backbone, tmp_path: Path
) -> None:
    folder = tmp_path / backbone.fingerprint
    first, again = engines(backbone, folder), engines(backbone, folder, kept=True)
    assert [name.endswith("-fp32-1.zip") for name in kept_in(folder)] == [True]
    expected = run(choose_engine(backbone, 8, "openvino", "fp32"))
    assert np.abs(expected).max() > 0
    for batch in (1, 2, 8):
        np.testing.assert_array_equal(run(again[batch]), run(first[batch]))
        np.testing.assert_allclose(run(again[batch]), expected, rtol=1e-4, atol=1e-5)
        assert (again[batch].batch, again[batch].size, again[batch].name) == (batch, 32, "openvino fp32")


def test_next_weeks_extraction_opens_the_kept_network(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / backbone.fingerprint
    first = run(choose_engine(backbone, 8, "openvino", "fp32", kept=folder))
    monkeypatch.setattr(engine_module, "to_openvino", lambda *_: pytest.fail("converted a second time"))
    np.testing.assert_array_equal(run(choose_engine(backbone, 8, "openvino", "fp32", kept=folder)), first)


def test_networks_of_several_views_are_kept_beside_each_other(backbone: Backbone, tmp_path: Path) -> None:
    main, views = Store(tmp_path / backbone.fingerprint), [View(), View(48), View(pooling="max")]
    for view in views:
        engines(backbone.for_view(view), main.view(view).path)
    assert sorted(str(file.parent.relative_to(main.path)) for file in main.path.rglob("*.zip")) == [
        ".", "48", "max",
    ]  # fmt: skip
    for view in views:
        kept, photos = engines(backbone, main.view(view).path, kept=True)[8], pixels(8, view.input(32))
        found = np.empty((8, kept.width), np.float32)
        kept.fill([photos], found)
        np.testing.assert_allclose(found, backbone.for_view(view).bottlenecks(photos), rtol=1e-4, atol=1e-5)
    shutil.copytree(main.view(View(48)).path, tmp_path / "other" / "48")
    assert read_kept(tmp_path / "other" / "48", "fp32") is None, "of another backbone"


@pytest.mark.parametrize("damage", ["cut", "changed", "another backbone's", "text", "empty"])
def test_damaged_file_is_made_anew_with_a_line_in_the_log(
    backbone: Backbone, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = run(engines(backbone, folder, kept=True)[8])
    file = folder / kept_in(folder)[0]
    whole = file.read_bytes()
    middle = len(whole) // 2
    broken = {
        "cut": whole[:middle],
        "changed": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "another backbone's": whole.replace(backbone.fingerprint.encode(), b"x" * len(backbone.fingerprint)),
        "text": b"no network",
        "empty": b"",
    }[damage]
    file.write_bytes(broken)
    with caplog.at_level(logging.WARNING, "shelfmark"):
        np.testing.assert_array_equal(run(engines(backbone, folder)[8]), expected)
    assert "the network is converted again" in caplog.text
    np.testing.assert_array_equal(run(engines(backbone, folder, kept=True)[8]), expected)


def test_network_of_another_width_is_made_anew(
    backbone: Backbone, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file whose checksums are correct, of a network without its last layer."""
    from openvino import Model

    expected = run(engines(backbone, folder, kept=True)[8])
    network = read_kept(folder, "fp32")
    assert network is not None
    before = network.get_result().input_value(0).get_node().input_value(0)
    keep(Model([before], network.get_parameters(), "cut"), folder, "fp32")
    with caplog.at_level(logging.WARNING, "shelfmark"):
        np.testing.assert_array_equal(run(engines(backbone, folder)[8]), expected)
    assert "the kept network does not fit" in caplog.text


def test_file_of_another_version_of_openvino_goes(backbone: Backbone, folder: Path) -> None:
    (folder / kept_in(folder)[0]).unlink()
    for name in ("openvino-2020.1-fp32-1.zip", "openvino-2020.1-bf16-1.zip", "int8.xml"):
        (folder / name).touch()
    engines(backbone, folder)
    assert "openvino-2020.1-fp32-1.zip" not in kept_in(folder)
    assert {"openvino-2020.1-bf16-1.zip", "int8.xml"} < set(kept_in(folder))


def test_directory_that_cannot_be_written_is_a_line_in_the_log(
    backbone: Backbone, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "shelfmark"):
        found = engines(backbone, tmp_path / "file" / backbone.fingerprint)
    assert run(found[8]).any()
    assert "cannot be kept" in caplog.text


def test_network_for_any_batch_is_the_same_in_the_form_for_bfloat16(backbone: Backbone) -> None:
    import openvino

    networks = [to_openvino(backbone, 8), to_openvino(backbone, None)]
    networks[1].reshape([8, 32, 32, 3])
    found = []
    for network in networks:
        ready_for_bfloat16(network)
        compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found.append(compiled([pixels()])[0])
    np.testing.assert_array_equal(found[0], found[1])


DECIDES = """
import json, sys
from pathlib import Path
import numpy as np
from features.views import WHOLE
from models.decisions.bundle import open_bundle

bundle = open_bundle(Path(sys.argv[1]))
engines = bundle.engines({WHOLE: [1, 2]}, Path(sys.argv[2]))[WHOLE]
rows = np.empty((2, engines[2].width), np.float16)
engines[2].fill([np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)], rows)
predictions = bundle.categorizer.predict(rows, np.array([0, 1, 2]))
decisions = bundle.categorizer.decide(np.array(["a", "b"], dtype=object), predictions)
heavy = [name for name in ("tensorflow", "keras", "apache_beam", "fastapi", "sklearn") if name in sys.modules]
print(json.dumps([heavy, decisions["category"].tolist(), decisions["confidence"].tolist()]))
"""


def test_bundle_and_its_engines_are_opened_and_decide_without_tensorflow(
    backbone: Backbone, tmp_path: Path
) -> None:
    path = conftest.make_bundle(tmp_path / "bundle", backbone, 0.5).path
    bundle, store = open_bundle(path), tmp_path / "store"
    rows = np.empty((2, backbone.width), np.float16)
    bundle.engines({WHOLE: [1, 2]}, store)[WHOLE][2].fill([pixels(2)], rows)
    predictions = bundle.categorizer.predict(rows, np.array([0, 1, 2]))
    expected = bundle.categorizer.decide(np.array(["a", "b"], dtype=object), predictions)
    command = [sys.executable, "-c", DECIDES, str(path), str(store)]
    heavy, categories, confidences = json.loads(subprocess.check_output(command, text=True))
    assert heavy == []
    assert (categories, confidences) == (expected["category"].tolist(), expected["confidence"].tolist())
