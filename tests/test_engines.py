"""Engines agree with Keras on every image, alone and in company, and say what they are."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import conftest
import numpy as np
import pytest

from features.engines.backbones import Backbone, load_backbone
from features.engines.choose import choose_engine, use_engine
from features.engines.engine import Engine, extract
from features.engines.openvino import CALIBRATION, Int8Calibration, OpenVino, to_openvino
from features.engines.tensorflow import in_precision
from features.errors import ShelfmarkError
from features.records import Piece, pieces_of
from features.views import FLIP, WHOLE, View

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")

LIMIT = {"fp32": 1e-4, "bf16": 2e-2}  # of the length of an image's bottleneck
SIZE, COUNT = 64, 21


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def can_bf16() -> bool:
    if importlib.util.find_spec("openvino") is None:
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


BF16 = pytest.param(
    "openvino", "bf16", marks=pytest.mark.skipif(not can_bf16(), reason="this processor has no bf16")
)
FP32 = pytest.param("openvino", "fp32", marks=needs("openvino"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return conftest.drawn_backbone(0, SIZE)


@pytest.fixture(scope="module")
def jpegs(photo: conftest.Photo) -> list[bytes]:
    return [photo(seed, 40 + seed, 60) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def made(backbone: Backbone) -> Callable[..., Engine]:
    """Engines by name, precision and batch, each made once: OpenVINO converts for a second."""
    known: dict[tuple[str, str, int], Engine] = {}

    def make(name: str, precision: str, batch: int = 8) -> Engine:
        key = name, precision, batch
        if key not in known:
            known[key] = choose_engine(backbone, batch, name, precision)
        return known[key]

    return make


@pytest.fixture(scope="module")
def reference(backbone: Backbone, jpegs: list[bytes]) -> np.ndarray:
    """What Keras gives, in fp32."""
    return backbone.bottlenecks(conftest.pixels_of(jpegs, SIZE))


def run(engine: Engine, jpegs: list[bytes], view: View = WHOLE) -> np.ndarray:
    return extract(engine, pieces_of(jpegs, "drawn"), len(jpegs), [view])[0]


def errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(n,) length of the difference as a share of the expected length."""
    assert found.dtype == np.float16 and found.shape == expected.shape
    difference = np.linalg.norm(found.astype(np.float32) - expected.astype(np.float32), axis=1)
    return difference / np.linalg.norm(expected.astype(np.float32), axis=1)


@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "bf16"), FP32, BF16])
def test_engines_agree_with_keras_image_by_image(
    made: Callable[..., Engine], jpegs: list[bytes], reference: np.ndarray, name: str, precision: str
) -> None:
    found = run(made(name, precision), jpegs)
    stored = reference.astype(np.float16)  # all engines' numbers are rounded so
    assert errors(found, stored).max() < LIMIT[precision]
    others = errors(np.roll(found, 1, axis=0), stored)
    assert others.min() > 3 * LIMIT[precision], "the images are further apart than that"


@pytest.mark.parametrize(
    ("name", "others"),
    [("mobilenet", "float32"), pytest.param("inception_v3", "bfloat16", marks=pytest.mark.slow)],
)
def test_networks_with_depthwise_convolutions_take_bfloat16_for_the_other_ones_alone(
    name: str, others: str
) -> None:
    import keras

    layers = list(in_precision(load_backbone(name, "random", 75).model, "bf16")._flatten_layers())
    dtypes = {
        kind: {layer.compute_dtype for layer in layers if isinstance(layer, kind)}
        for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.DepthwiseConv2D)
    }
    assert dtypes == {
        keras.layers.Conv2D: {"bfloat16"},
        keras.layers.BatchNormalization: {others},
        keras.layers.DepthwiseConv2D: {"float32"} if name == "mobilenet" else set(),
    }


def test_ends_side_by_side_stay_float32_as_each_of_them(quiet_tensorflow: None) -> None:
    two = load_backbone("vgg16@block1_pool+block2_pool", "random", 32)
    lowered = in_precision(two.model, "bf16")
    assert lowered.get_layer(two.network.name).get_layer("joined").compute_dtype == "float32"
    assert lowered.output.dtype == "float32"


def test_tensorflow_gives_the_bits_of_keras(
    made: Callable[..., Engine], backbone: Backbone, jpegs: list[bytes]
) -> None:
    pixels = conftest.pixels_of([*jpegs, *[jpegs[0]] * (24 - COUNT)], SIZE)
    pixels[COUNT:] = 0  # as the last batch is filled up
    batches = [backbone.bottlenecks(pixels[start : start + 8]) for start in range(0, 24, 8)]
    found = run(made("tensorflow", "fp32"), jpegs)
    np.testing.assert_array_equal(found, np.concatenate(batches)[:COUNT].astype(np.float16))


@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "fp32"), FP32, BF16])
def test_image_alone_has_the_bottleneck_that_it_has_in_company(
    made: Callable[..., Engine], jpegs: list[bytes], name: str, precision: str
) -> None:
    engine = made(name, precision)
    together = run(engine, jpegs)
    alone = np.concatenate([run(engine, [jpeg]) for jpeg in jpegs])
    # on some processors (AMD) TensorFlow's sums depend on the position in the batch: one float16 is fine
    nearly = {"rtol": 2**-10, "atol": 2**-24} if name == "tensorflow" else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(alone, together, **nearly)
    np.testing.assert_allclose(run(engine, jpegs[::-1])[::-1], together, **nearly)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "fp32"), FP32, BF16])
def test_image_alone_has_the_bottleneck_of_a_batch_of_256(
    made: Callable[..., Engine], jpegs: list[bytes], name: str, precision: str
) -> None:
    many = run(made(name, precision, 256), (jpegs * 13)[:256])[:COUNT]
    alone = np.concatenate([run(made(name, precision, 1), [jpeg]) for jpeg in jpegs])
    assert errors(alone, many).max() < LIMIT[precision]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "fp32"), FP32])
def test_any_batch_gives_all_images_in_order(
    made: Callable[..., Engine],
    jpegs: list[bytes],
    reference: np.ndarray,
    name: str,
    precision: str,
    batch: int,
) -> None:
    found = run(made(name, precision, batch), jpegs)
    assert errors(found, reference.astype(np.float16)).max() < LIMIT["fp32"]


def test_second_view_is_the_first_of_the_mirrored_pixels(
    made: Callable[..., Engine], backbone: Backbone, jpegs: list[bytes]
) -> None:
    mirrored = backbone.bottlenecks(conftest.pixels_of(jpegs, SIZE)[:, :, ::-1].copy())
    assert errors(run(made("tensorflow", "fp32"), jpegs, FLIP), mirrored.astype(np.float16)).max() < 1e-4


@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "fp32"), FP32])
def test_what_float16_cannot_hold_becomes_infinite_without_a_warning(
    backbone: Backbone, jpegs: list[bytes], name: str, precision: str
) -> None:
    import keras

    model = keras.Model(backbone.model.input, keras.layers.Rescaling(1e9)(backbone.model.output))
    found = run(choose_engine(replace(backbone, model=model), 8, name, precision), jpegs)
    assert np.isinf(found).any(axis=1).all()


@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "fp32"), FP32, BF16])
def test_views_extracted_together_are_the_same_bit_by_bit_as_one_at_a_time(
    made: Callable[..., Engine], jpegs: list[bytes], name: str, precision: str
) -> None:
    engine, views = made(name, precision), [WHOLE, FLIP, View(100, "center"), View(100, "center", True)]
    together = extract(engine, pieces_of(jpegs, "drawn"), COUNT, views)
    for view, found in zip(views, together, strict=True):
        np.testing.assert_array_equal(found, run(engine, jpegs, view))
    assert not np.array_equal(together[0], together[1])


def test_nothing_to_extract_gives_no_rows(made: Callable[..., Engine]) -> None:
    assert run(made("tensorflow", "fp32"), []).shape == (0, 1024)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_pieces_of_more_or_fewer_images_than_announced_are_refused(
    made: Callable[..., Engine], jpegs: list[bytes], count: int
) -> None:
    with pytest.raises(ValueError, match=f"expected {count} images, found 2"):
        extract(made("tensorflow", "fp32"), pieces_of(jpegs[:2], "drawn"), count)


@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "fp32"), FP32])
def test_engine_goes_on_after_a_source_that_failed(
    made: Callable[..., Engine], jpegs: list[bytes], name: str, precision: str
) -> None:
    def damaged() -> Iterator[Piece]:
        yield from pieces_of(jpegs[:10], "drawn")
        raise ShelfmarkError("a record does not match its checksum")

    engine = made(name, precision)
    expected = run(engine, jpegs)
    with pytest.raises(ShelfmarkError, match=r"^a record does not match its checksum$"):
        extract(engine, damaged(), COUNT)
    np.testing.assert_array_equal(run(engine, jpegs), expected)


# OpenVINO


@pytest.mark.slow
@needs("openvino")
def test_network_of_swish_agrees_with_keras(jpegs: list[bytes]) -> None:
    backbone = conftest.drawn_backbone(0, 32, "efficientnet_b0")
    found = run(choose_engine(backbone, 8, "openvino", "fp32"), jpegs)
    expected = backbone.bottlenecks(conftest.pixels_of(jpegs, 32)).astype(np.float16)
    assert errors(found, expected).max() < 1e-3  # its numbers are below 1e-4, where float16 has few digits
    assert errors(np.roll(found, 1, axis=0), expected).min() > 0.1


@needs("openvino")
def test_network_of_two_outputs_is_refused(mobilenet: Backbone) -> None:
    network = to_openvino(mobilenet, request=8)
    network.add_outputs(network.get_result().input_value(0).get_node().input_value(0))
    with pytest.raises(ShelfmarkError, match=r"shapes \[8,1024\], .*; expected one of \(8, 1024\);"):
        OpenVino(network, mobilenet.width, 8, "fp32")


@needs("openvino")
def test_bottlenecks_that_cannot_be_written_are_an_error_and_not_the_end_of_the_process(
    made: Callable[..., Engine], jpegs: list[bytes]
) -> None:
    engine, rows = made("openvino", "fp32"), np.empty((160, 1024), np.float16)
    expected = run(engine, jpegs)
    rows.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        engine.fill([np.zeros((8, SIZE, SIZE, 3), np.uint8)] * 20, rows)
    np.testing.assert_array_equal(run(engine, jpegs), expected)


# int8


@needs("openvino")
@needs("nncf")
def test_int8_is_fitted_once_to_the_catalogue_and_kept(
    backbone: Backbone,
    jpegs: list[bytes],
    reference: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    requested: list[int] = []

    def pieces(most: int) -> Iterator[Piece]:
        requested.append(most)
        return pieces_of(jpegs, "drawn")

    kept = Int8Calibration(tmp_path, pieces)
    first = run(choose_engine(backbone, 8, "openvino", "int8", kept), jpegs)
    again = choose_engine(backbone, 8, "openvino", "int8", kept)
    assert again.name == "openvino int8"
    np.testing.assert_array_equal(run(again, jpegs), first)
    assert requested == [CALIBRATION]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["int8.bin", "int8.xml"]
    assert 1e-4 < errors(first, reference.astype(np.float16)).max() < 0.2
    assert capsys.readouterr().out == "", "no progress bars among a command's results"


@pytest.mark.slow
@needs("openvino")
@needs("nncf")
def test_int8_of_a_network_that_takes_no_batches_is_refused(jpegs: list[bytes], tmp_path: Path) -> None:
    backbone = conftest.drawn_backbone(0, 32, "efficientnet_b0")
    kept = Int8Calibration(tmp_path, lambda most: pieces_of(jpegs, "drawn"))
    with pytest.raises(ShelfmarkError, match="cannot batch efficientnetb0 once it is fitted"):
        choose_engine(backbone, 8, "openvino", "int8", kept)


@needs("openvino")
def test_int8_without_images_to_fit_it_to_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ShelfmarkError, match="no images to calibrate with"):
        choose_engine(backbone, 8, "openvino", "int8")


@pytest.mark.parametrize("name", ["tensorflow", "auto"])
def test_int8_is_openvinos_alone(backbone: Backbone, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, True)
    with pytest.raises(ShelfmarkError, match=r"tensorflow does not support it; .* give --engine openvino"):
        choose_engine(backbone, 8, name, "int8")


# The choice


def chosen(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """What auto takes, and the line about it."""
    caplog.set_level(logging.INFO, logger="shelfmark")
    name = choose_engine(backbone, 8).name
    return name, caplog.records[-1].getMessage()


@needs("openvino")
def test_auto_takes_openvino_where_there_is_no_gpu(
    mobilenet: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpu(monkeypatch, False)
    name, line = chosen(mobilenet, caplog)
    assert name == f"openvino {'bf16' if can_bf16() else 'fp32'}"
    assert line == f"engine: {name}: no GPU, and OpenVINO is installed"


def test_auto_takes_tensorflow_in_bf16_on_a_gpu(
    mobilenet: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpu(monkeypatch, True)
    assert chosen(mobilenet, caplog) == ("tensorflow bf16", "engine: tensorflow bf16: TensorFlow sees a GPU")


def test_auto_takes_tensorflow_where_nothing_else_is(
    mobilenet: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpu(monkeypatch, False)
    without(monkeypatch, "openvino")
    name, line = chosen(mobilenet, caplog)
    assert name == "tensorflow fp32"
    assert "no GPU and no OpenVINO; `pip install 'shelfmark[openvino]'`" in line


def with_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """As if TensorFlow saw a GPU, or none."""
    for module in ("choose", "tensorflow"):
        monkeypatch.setattr(f"features.engines.{module}.has_gpu", lambda: there)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if it were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest)
    )


@pytest.mark.parametrize("package", ["openvino", "jax"])
def test_engine_that_is_not_installed_names_the_command_that_installs_it(
    mobilenet: Backbone, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    without(monkeypatch, package)
    with pytest.raises(ShelfmarkError, match=rf"not installed.*pip install 'shelfmark\[{package}\]'"):
        choose_engine(mobilenet, 8, package)


def test_missing_jax_is_reported_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "jax")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(ShelfmarkError, match=r"pip install 'shelfmark\[jax\]'"):
        use_engine("jax")
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


@needs("jax")
def test_jax_under_another_backend_of_keras_is_refused(mobilenet: Backbone) -> None:
    with pytest.raises(
        ShelfmarkError, match=r"Keras runs on tensorflow; expected jax.*set KERAS_BACKEND=jax"
    ):
        choose_engine(mobilenet, 8, "jax")


@needs("openvino")
def test_bf16_is_refused_where_the_processor_lacks_it(
    mobilenet: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openvino.Core.get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(ShelfmarkError, match=r"neither avx512_bf16 nor amx_bf16.*extract.precision=fp32"):
        choose_engine(mobilenet, 8, "openvino", "bf16")


# JAX, which Keras must have been started with


ON_JAX = """
import sys
import numpy as np
from features.engines.backbones import load_backbone, start_tensorflow
from features.engines.choose import choose_engine, use_engine
from features.engines.engine import extract
use_engine("jax")
start_tensorflow()
import keras
from features.errors import ShelfmarkError
from features.records import pieces_of
folder, size = sys.argv[1], int(sys.argv[2])
backbone = load_backbone("mobilenet", folder + "/drawn.weights.h5", size)
jpegs = np.load(folder + "/jpegs.npy", allow_pickle=True).tolist()
print(keras.backend.backend(), backbone.fingerprint)
for precision in ("auto", "bf16"):
    engine = choose_engine(backbone, 8, "auto" if precision == "auto" else "jax", precision)
    [found] = extract(engine, pieces_of(jpegs, "drawn"), len(jpegs))
    [alone] = extract(engine, pieces_of(jpegs[-1:], "drawn"), 1)
    print(engine.name, np.array_equal(alone[0], found[-1]))
    np.save(folder + "/" + engine.name.replace(" ", "-") + ".npy", found)
for other in ("tensorflow", "openvino"):
    try:
        choose_engine(backbone, 8, other)
    except ShelfmarkError as error:
        print(error)
"""


@needs("jax")
def test_jax_agrees_with_tensorflow(
    backbone: Backbone, jpegs: list[bytes], reference: np.ndarray, tmp_path: Path
) -> None:
    backbone.save_weights(tmp_path / "drawn.weights.h5")
    saved = load_backbone("mobilenet", str(tmp_path / "drawn.weights.h5"), SIZE)
    np.save(tmp_path / "jpegs.npy", np.array(jpegs, object), allow_pickle=True)
    call = [sys.executable, "-c", ON_JAX, str(tmp_path), str(SIZE)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        call, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[:3] == [
        f"jax {saved.fingerprint}", "jax fp32 True", "jax bf16 True",
    ]  # fmt: skip
    assert done.stdout.count("Keras runs on jax; expected tensorflow") == 2
    for precision, limit in LIMIT.items():
        found = np.load(tmp_path / f"jax-{precision}.npy")
        assert errors(found, reference.astype(np.float16)).max() < limit


# Real weights


WEIGHTS = conftest.SHARED / "weights" / "mobilenet_imagenet_block12.weights.h5"
GROCERY = conftest.SHARED / "data" / "grocery" / "val"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file() or not GROCERY.is_dir(), reason="no weights or photos in ../shared")
@pytest.mark.parametrize(("name", "precision"), [("tensorflow", "bf16"), FP32, BF16])
def test_engines_agree_on_photos_with_imagenet_weights(name: str, precision: str) -> None:
    backbone = load_backbone("mobilenet", str(WEIGHTS), 224)
    photos = [file.read_bytes() for file in sorted(GROCERY.rglob("*.jpg"))[::20]]
    keras = run(choose_engine(backbone, 16, "tensorflow", "fp32"), photos)
    assert errors(run(choose_engine(backbone, 16, name, precision), photos), keras).max() < LIMIT[precision]
