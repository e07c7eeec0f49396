"""Backbones give keras.applications' own numbers, and their fingerprint identifies them."""

import importlib
from pathlib import Path

import conftest
import keras
import numpy as np
import pytest

from features.engines.backbones import IMAGE_SIZES, Backbone, known_backbones, load_backbone
from features.errors import ShelfmarkError
from features.storage.artifact import file_digest

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the largest number, and far closer than two photos are to each other."""
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-5
    if len(expected) > 1:
        assert (
            np.abs(expected - np.roll(expected, 1, axis=0)).max(axis=1).min()
            > 100 * np.abs(found - expected).max()
        )


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_inception_v3_gives_the_numbers_of_keras_applications(photo: conftest.Photo, count: int) -> None:
    backbone = load_backbone("inception_v3", "random", seed=3)
    assert (backbone.image_size, backbone.width) == (299, 2048)
    own = backbone.model.get_layer("inceptionv3")
    spread_statistics(own)

    original = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    original.set_weights(own.get_weights())
    for start in range(0, count, 8):
        pixels = conftest.pixels_of([photo(seed, 320, 240) for seed in range(start, start + 8)], 299)
        scaled = keras.applications.inception_v3.preprocess_input(pixels.astype(np.float32))
        assert_same(backbone.bottlenecks(pixels), np.asarray(original(scaled, training=False)))


def spread_statistics(network: keras.Model) -> None:
    """Keeps the signal through 94 fresh layers: without, all photos give nearly the same numbers."""
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.get_weights()[0].shape  # of beta, mean and variance
            layer.set_weights(
                [rng.normal(0, 0.1, size), rng.normal(0, 0.01, size), rng.uniform(0.05, 0.2, size)]
            )


@pytest.mark.parametrize("name", ["mobilenet", "vgg16", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_each_network_gets_its_own_preprocessing(photo: conftest.Photo, name: str) -> None:
    """Scaled to -1..1; to BGR without its mean; to ImageNet's statistics."""
    backbone = load_backbone(name, "random", 32)
    pixels = conftest.pixels_of([photo(1), photo(2)], 32)
    module = getattr(keras.applications, name.removesuffix("121"))
    scaled = module.preprocess_input(pixels.astype(np.float32))
    assert_same(
        backbone.bottlenecks(pixels), np.asarray(backbone.model.get_layer(name)(scaled, training=False))
    )


def test_every_known_backbone_comes_with_a_preprocessing_and_a_known_size() -> None:
    networks = known_backbones()
    assert len(networks) == len({name for name in dir(keras.applications) if name[0].isupper()})
    assert set(networks) > set(IMAGE_SIZES)
    for name, function in networks.items():
        module = importlib.import_module("keras.applications." + function.__module__.rpartition(".")[2])
        assert callable(module.preprocess_input), name


def test_backbone_is_frozen(mobilenet: Backbone) -> None:
    assert mobilenet.model.trainable_weights == []


def test_image_alone_has_the_bottleneck_that_it_has_in_a_batch(
    photo: conftest.Photo, mobilenet: Backbone
) -> None:
    pixels = conftest.pixels_of([photo(seed) for seed in range(8)], 32)
    together = mobilenet.bottlenecks(pixels)
    alone = np.concatenate([mobilenet.bottlenecks(pixels[row : row + 1]) for row in range(8)])
    assert together.dtype == np.float32
    assert_same(alone, together)


# Fingerprint


def test_same_network_has_the_same_fingerprint_in_snake_and_in_camel_case(mobilenet: Backbone) -> None:
    again = load_backbone("MobileNet", "random", 32)
    assert again.name == mobilenet.name
    assert again.fingerprint == mobilenet.fingerprint


def test_fingerprint_changes_with_weights_size_and_network(mobilenet: Backbone) -> None:
    others = [
        load_backbone("mobilenet", "random", 32, seed=1),
        load_backbone("mobilenet", "random", 64),
        load_backbone("mobilenet_v2", "random", 32),
    ]
    assert len({mobilenet.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert mobilenet.fingerprint.startswith("mobilenet-32-")


def test_one_changed_weight_changes_the_fingerprint(mobilenet: Backbone, tmp_path: Path) -> None:
    other = load_backbone("mobilenet", "random", 32)
    network = other.model.get_layer("mobilenet")
    weights = network.get_weights()
    weights[0].flat[0] = np.nextafter(weights[0].flat[0], np.float32(1))
    network.set_weights(weights)
    other.save_weights(tmp_path / "changed.weights.h5")
    changed = load_backbone("mobilenet", str(tmp_path / "changed.weights.h5"), 32)
    assert changed.fingerprint != mobilenet.fingerprint


def test_saved_weights_give_the_same_backbone_whatever_file_they_are_in(
    photo: conftest.Photo, mobilenet: Backbone, tmp_path: Path
) -> None:
    mobilenet.save_weights(tmp_path / "some name.weights.h5")
    mobilenet.model.get_layer("mobilenet").save(tmp_path / "archive.keras")
    pixels = conftest.pixels_of([photo(1), photo(2)], 32)
    for file in ("some name.weights.h5", "archive.keras"):
        loaded = load_backbone("mobilenet", str(tmp_path / file), 32, seed=5)
        assert loaded.fingerprint == mobilenet.fingerprint
        assert loaded.weights == file
        np.testing.assert_array_equal(loaded.bottlenecks(pixels), mobilenet.bottlenecks(pixels))


@pytest.mark.slow
def test_weights_are_saved_in_the_same_bytes_however_many_networks_came_before(tmp_path: Path) -> None:
    for name in ("one", "two"):
        load_backbone("inception_v3", "random", 75).save_weights(tmp_path / f"{name}.weights.h5")
    assert file_digest(tmp_path / "one.weights.h5") == file_digest(tmp_path / "two.weights.h5")


# Weights that cannot be had


def test_unknown_backbone_is_refused_with_the_known_ones() -> None:
    message = r"'inception_v5' is unknown \(did you mean inceptionv3\?\); expected one of .*--backbone"
    with pytest.raises(ShelfmarkError, match=message):
        load_backbone("inception_v5", "random")


def test_missing_weights_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match="no such file; expected imagenet, random or"):
        load_backbone("mobilenet", str(tmp_path / "none.weights.h5"), 32)


@pytest.mark.parametrize("name", ["notes.txt", "notes.weights.h5"])
def test_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not weights")
    with pytest.raises(
        ShelfmarkError, match="not a file of weights; expected imagenet, random or"
    ) as refused:
        load_backbone("mobilenet", str(tmp_path / name), 32)
    assert "\n" not in str(refused.value)


def test_weights_of_another_network_are_refused_in_one_line(
    mobilenet: Backbone, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    mobilenet.save_weights(tmp_path / "mobilenet.weights.h5")
    with pytest.raises(
        ShelfmarkError, match=r"do not fit mobilenet_v2 at 32 px .* give this network"
    ) as refused:
        load_backbone("mobilenet_v2", str(tmp_path / "mobilenet.weights.h5"), 32)
    assert "\n" not in str(refused.value)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_image_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ShelfmarkError, match=r"do not fit inception_v3 at 32 px .*at least 75x75"):
        load_backbone("inception_v3", "random", 32)


def test_imagenet_weights_that_cannot_be_downloaded_name_both_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise Exception("URL fetch failure on https://host/mobilenet.h5: None -- [Errno -2] Name not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(ShelfmarkError, match="ImageNet weights of mobilenet cannot be downloaded") as refused:
        load_backbone("mobilenet", "imagenet")
    assert "URL fetch failure" in str(refused.value)
    assert "--weights FILE.weights.h5" in str(refused.value)
    assert "--weights random" in str(refused.value)
