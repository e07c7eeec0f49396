"""Encoders of KerasHub, from presets that its own classes save here, small and with random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest

from features.engines.backbones import KerasBackbone, load_backbone, read_backbone
from features.engines.choose import choose_engine
from features.engines.engine import extract
from features.engines.tensorflow import in_precision
from features.errors import ShelfmarkError
from features.records import pieces_of

keras_hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE, WIDTH = 32, 16
SCALE, OFFSET = [0.01, 0.02, 0.03], [-1.0, -2.0, -3.0]  # of red, green, blue
PIXELS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
TRANSFORMER = {"num_layers": 2, "num_heads": 2, "hidden_dim": WIDTH}
TOWER = {**TRANSFORMER, "patch_size": 8, "intermediate_dim": 32, "image_shape": (SIZE, SIZE, 3)}
TEXTS = {**TRANSFORMER, "vocabulary_size": 50, "embedding_dim": WIDTH, "intermediate_dim": 32,
         "max_sequence_length": 8}  # fmt: skip


def clip() -> Any:
    photos, texts = keras_hub.models.CLIPVisionEncoder(**TOWER), keras_hub.models.CLIPTextEncoder(**TEXTS)
    return keras_hub.models.CLIPBackbone(vision_encoder=photos, text_encoder=texts, projection_dim=8)


def siglip() -> Any:
    photos, texts = keras_hub.models.SigLIPVisionEncoder(**TOWER), keras_hub.models.SigLIPTextEncoder(**TEXTS)
    return keras_hub.models.SigLIPBackbone(vision_encoder=photos, text_encoder=texts)


def vit(**changed: Any) -> Any:
    shape = {"image_shape": (SIZE, SIZE, 3), "patch_size": 8, "mlp_dim": 32}
    return keras_hub.models.ViTBackbone(**TRANSFORMER, **shape, **changed)


def dinov2() -> Any:
    return keras_hub.models.DINOV2Backbone(**TOWER, position_embedding_shape=(SIZE, SIZE, 3))


def resnet() -> Any:
    return keras_hub.models.ResNetBackbone([64], [3], [64, WIDTH], [1, 1], [1, 2], "basic_block")


def first(tokens: np.ndarray) -> np.ndarray:
    return tokens[:, 0]


# what makes a preset, its converter, and what its bottlenecks are of what KerasHub itself computes of a photo
PRESETS: dict[str, tuple[Callable[[], Any], str, Callable[[Any, np.ndarray], np.ndarray]]] = {
    "clip": (clip, "CLIP", lambda backbone, scaled: first(backbone.vision_encoder(scaled))),
    "siglip": (siglip, "SigLIP", lambda backbone, scaled: backbone.get_vision_embeddings(scaled)),
    "vit": (vit, "ViT", lambda backbone, scaled: first(backbone(scaled))),
    "vit_without_token": (
        lambda: vit(use_class_token=False), "ViT", lambda backbone, scaled: backbone(scaled).numpy().mean(1),
    ),
    "dinov2": (dinov2, "DINOV2", lambda backbone, scaled: first(backbone(scaled))),
    "resnet": (resnet, "ResNet", lambda backbone, scaled: backbone(scaled).numpy().mean((1, 2))),
}  # fmt: skip


Saved = Callable[[Path, str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Puts a preset into a folder, and returns its directory and its backbone; each is made once."""
    import keras

    folder, made = tmp_path_factory.mktemp("presets"), {}

    def save(into: Path, kind: str) -> tuple[Path, Any]:
        if kind not in made:
            keras.utils.set_random_seed(0)
            make, family, _ = PRESETS[kind]
            made[kind] = make()
            made[kind].save_to_preset(str(folder / kind))
            converter = getattr(keras_hub.layers, f"{family}ImageConverter")
            scaled = converter(image_size=(SIZE, SIZE), scale=SCALE, offset=OFFSET)
            scaled.save_to_preset(str(folder / kind))
        shutil.copytree(folder / kind, into / kind)
        return into / kind, made[kind]

    return save


@pytest.mark.parametrize("kind", PRESETS)
def test_bottlenecks_are_what_keras_hub_computes_and_a_bundle_needs_no_preset(
    saved: Saved, tmp_path: Path, kind: str
) -> None:
    directory, own = saved(tmp_path, kind)
    backbone = load_backbone(f"hub:{directory}", "imagenet")
    assert isinstance(backbone, KerasBackbone)
    assert (backbone.name, backbone.weights, backbone.image_size, backbone.width) == (
        f"hub:{kind}", kind, SIZE, WIDTH,
    )  # fmt: skip
    scaled = (PIXELS * np.array(SCALE) + OFFSET).astype(np.float32)
    expected = np.asarray(PRESETS[kind][2](own, scaled))
    found = backbone.bottlenecks(PIXELS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - expected[:1])[1:].max() > 1e-2

    (tmp_path / "bundle").mkdir()
    backbone.save(tmp_path / "bundle")
    shutil.rmtree(directory)
    opened = read_backbone(tmp_path / "bundle", backbone.fingerprint)
    np.testing.assert_array_equal(opened.bottlenecks(PIXELS), found)
    assert str(tmp_path) not in (tmp_path / "bundle" / "backbone.json").read_text()


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_engines_agree(saved: Saved, tmp_path: Path, photo: conftest.Photo, kind: str) -> None:
    backbone = load_backbone(f"hub:{saved(tmp_path, kind)[0]}", "imagenet")
    assert isinstance(backbone, KerasBackbone)
    jpegs = [photo(seed) for seed in range(5)]
    expected = backbone.bottlenecks(conftest.pixels_of(jpegs, SIZE))
    [found] = extract(
        choose_engine(backbone, 8, "auto", "fp32"), pieces_of(jpegs, "drawn"), 5, dtype=np.float32
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    lower = np.asarray(in_precision(backbone.model, "bf16").predict_on_batch(conftest.pixels_of(jpegs, SIZE)))
    away = np.linalg.norm(lower - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0 < away.max() < 3e-2


def test_another_size_is_taken_where_the_network_can(saved: Saved, tmp_path: Path) -> None:
    for kind, size in (("dinov2", 48), ("resnet", 64)):
        assert load_backbone(f"hub:{saved(tmp_path, kind)[0]}", "imagenet", size).image_size == size
    for kind, text in (("clip", f"photos of {SIZE} px alone"), ("vit", "cannot be read at 48 px")):
        with pytest.raises(ShelfmarkError, match=rf"{text}.*leave out --image-size"):
            load_backbone(f"hub:{saved(tmp_path, kind)[0]}", "imagenet", 48)


def test_a_map_is_there_where_the_mean_of_one_is_the_bottleneck(saved: Saved, tmp_path: Path) -> None:
    backbone = load_backbone(f"hub:{saved(tmp_path, 'resnet')[0]}", "imagenet")
    assert isinstance(backbone, KerasBackbone)
    maps = np.asarray(backbone.maps()(PIXELS.astype(np.float32)))
    np.testing.assert_allclose(maps.mean((1, 2)), backbone.bottlenecks(PIXELS), rtol=1e-4, atol=1e-5)


# Refusals


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def without_converter(directory: Path) -> None:
    (directory / "image_converter.json").unlink()


def without_weights(directory: Path) -> None:
    (directory / "model.weights.h5").unlink()


def damaged(directory: Path) -> None:
    (directory / "model.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))


def with_code(directory: Path) -> None:
    """A network with a function of somebody else's in it."""
    config = json.loads((directory / "config.json").read_text())
    config["config"]["name"] = {
        "module": "os",
        "class_name": "system",
        "config": "true",
        "registered_name": "system",
    }
    (directory / "config.json").write_text(json.dumps(config))


def of_functions(directory: Path) -> None:
    """A network of Keras' own, which may hold functions."""
    config = {"module": "keras", "class_name": "Functional", "config": {}, "registered_name": "Functional"}
    (directory / "config.json").write_text(json.dumps(config))


def of_hugging_face(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "vit"}')


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (shutil.rmtree, "no such directory; expected a directory with a preset of KerasHub"),
        (without_config, "has no config.json"),
        (without_converter, "has no image_converter.json; .*nothing else says how photos are scaled"),
        (without_weights, "cannot be read"),
        (damaged, "cannot be read"),
        (with_code, "cannot be read"),
        (of_functions, "holds a Functional; expected a directory with a preset"),
        (of_hugging_face, "its config.json is not KerasHub's"),
    ],
)
def test_what_is_no_preset_is_refused_in_one_line(
    saved: Saved, tmp_path: Path, change: Callable[[Path], None], text: str
) -> None:
    directory, _ = saved(tmp_path, "vit")
    change(directory)
    with pytest.raises(ShelfmarkError, match=text) as raised:
        load_backbone(f"hub:{directory}", "imagenet")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_preset_of_texts_is_refused(saved: Saved, tmp_path: Path) -> None:
    texts = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16
    )
    directory, _ = saved(tmp_path, "vit")
    texts.save_to_preset(str(directory))
    with pytest.raises(ShelfmarkError, match=r"^hub:.*; expected "):
        load_backbone(f"hub:{directory}", "imagenet")


def test_weights_for_a_preset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match="has its own weights, and cannot take random"):
        load_backbone(f"hub:{tmp_path}", "random")


def test_a_missing_package_names_the_extra(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = saved(tmp_path, "vit")
    backbone = load_backbone(f"hub:{directory}", "imagenet")
    (tmp_path / "bundle").mkdir()
    backbone.save(tmp_path / "bundle")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ShelfmarkError, match=r"keras_hub is not installed.*shelfmark\[hub\]"):
        load_backbone(f"hub:{directory}", "imagenet")
    with pytest.raises(ShelfmarkError, match=r"keras_hub is not installed.*shelfmark\[hub\]"):
        read_backbone(tmp_path / "bundle", backbone.fingerprint)
