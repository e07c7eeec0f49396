"""Backbones give keras.applications' own numbers, and their fingerprint identifies them."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import conftest
import keras
import numpy as np
import pytest

from features.engines.backbone_names import IMAGE_SIZES
from features.engines.backbones import Backbone, KerasBackbone, load_backbone, read_backbone
from features.engines.keras_networks import known_backbones
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import pieces_of
from features.storage.artifact import file_digest
from features.views import parse_view

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


# Ends at inner layers


@pytest.fixture
def pixels(photo: conftest.Photo) -> np.ndarray:
    return conftest.pixels_of([photo(1), photo(2)], 32)


@pytest.fixture(scope="module")
def whole() -> KerasBackbone:
    return conftest.drawn_backbone(4)


Ending = Callable[[str], KerasBackbone]


@pytest.fixture(scope="module")
def ending_at(whole: KerasBackbone, tmp_path_factory: pytest.TempPathFactory) -> Ending:
    """The same network, ending at these layers, from a file of the whole one's weights."""
    file = tmp_path_factory.mktemp("whole") / "whole.weights.h5"
    whole.save_weights(file)

    @functools.cache
    def load(layers: str) -> KerasBackbone:
        ending = load_backbone(f"mobilenet@{layers}", str(file), 32)
        assert isinstance(ending, KerasBackbone)
        return ending

    return load


def mean_after(layer: str, backbone: KerasBackbone, pixels: np.ndarray) -> np.ndarray:
    """The layer's map in Keras' own network with the same weights, averaged over its cells."""
    own = keras.applications.MobileNet(
        include_top=False, pooling="avg", weights=None, input_shape=(32, 32, 3)
    )
    own.set_weights(backbone.network.get_weights())
    scaled = keras.applications.mobilenet.preprocess_input(pixels.astype(np.float32))
    found = keras.Model(own.input, own.get_layer(layer).output)(scaled, training=False)
    return np.asarray(found).mean(axis=(1, 2))


def test_backbone_that_ends_at_a_layer_gives_the_mean_of_its_map(
    whole: KerasBackbone, ending_at: Ending, pixels: np.ndarray
) -> None:
    ending = ending_at("conv_pw_6_relu")
    assert (ending.name, ending.width) == ("mobilenet@conv_pw_6_relu", 512)
    assert ending.fingerprint.startswith("mobilenet-conv_pw_6_relu-32-")
    assert_same(ending.bottlenecks(pixels), mean_after("conv_pw_6_relu", whole, pixels))


def test_several_ends_stand_side_by_side(whole: KerasBackbone, ending_at: Ending, pixels: np.ndarray) -> None:
    ending = ending_at("conv_pw_6_relu+conv_pw_3_relu")
    assert ending.width == 512 + 128
    expected = [mean_after(layer, whole, pixels) for layer in ("conv_pw_6_relu", "conv_pw_3_relu")]
    assert_same(ending.bottlenecks(pixels), np.concatenate(expected, axis=1))


def test_nothing_after_the_end_is_part_of_the_network(whole: KerasBackbone, ending_at: Ending) -> None:
    ending = ending_at("conv_pw_6_relu")
    convolutions = [layer for layer in ending.network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 1 + 6  # the first one, and one of each of six pairs
    assert ending.network.count_params() < whole.network.count_params() / 4
    assert ending.stored_bytes == ending.network.count_params() * 4


def test_backbone_that_ends_at_a_layer_is_saved_and_read_with_its_fingerprint(
    ending_at: Ending, pixels: np.ndarray, tmp_path: Path
) -> None:
    ending = ending_at("conv_pw_6_relu+conv_pw_3_relu")
    (tmp_path / "saved").mkdir()
    ending.save(tmp_path / "saved")
    again = read_backbone(tmp_path / "saved", ending.fingerprint)
    np.testing.assert_array_equal(again.bottlenecks(pixels), ending.bottlenecks(pixels))
    by_file = load_backbone(ending.name, str(tmp_path / "saved" / "backbone.weights.h5"), 32)
    assert by_file.fingerprint == ending.fingerprint
    with pytest.raises(ShelfmarkError, match=f"has fingerprint {ending.fingerprint}; expected other"):
        read_backbone(tmp_path / "saved", "other")


def test_every_end_has_a_fingerprint_of_its_own(whole: KerasBackbone, ending_at: Ending) -> None:
    ends = ["conv_pw_6_relu", "conv_pw_6", "conv_pw_3_relu+conv_pw_6_relu", "conv_pw_6_relu+conv_pw_3_relu"]
    assert len({ending_at(end).fingerprint for end in ends} | {whole.fingerprint}) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mobilenet@conv_pw_66_relu",
            r"mobilenet has no layer 'conv_pw_66_relu'; .* instance conv_pw_6_relu",
        ),
        ("mobilenet@", "a layer without a name; expected NETWORK@LAYER"),
        ("mobilenet@conv_pw_6_relu+", "a layer without a name; expected NETWORK@LAYER"),
        ("mobilenet_v5@conv_pw_6_relu", "'mobilenet_v5' is unknown"),
    ],
)
def test_ends_that_are_not_there_are_refused(name: str, message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message):
        load_backbone(name, "random", 32)


def test_map_before_the_pooling_has_the_bottleneck_as_its_mean(photo: conftest.Photo) -> None:
    backbone = conftest.drawn_backbone(4, size=96)
    pixels = conftest.pixels_of([photo(1), photo(2)], 96)
    maps = np.asarray(backbone.maps().predict_on_batch(pixels))
    assert maps.shape == (2, 3, 3, 1024)
    assert_same(maps.mean(axis=(1, 2)), backbone.bottlenecks(pixels))


def test_network_with_two_ends_has_no_single_map() -> None:
    two = load_backbone("mobilenet@conv_pw_6_relu+conv_pw_3_relu", "random", 32)
    assert isinstance(two, KerasBackbone)
    with pytest.raises(ShelfmarkError, match=r"not the mean of one map; .* name one layer after the @"):
        two.maps()


# Networks of features/networks


@pytest.mark.parametrize(("name", "width"), [("alexnet", 256), ("lenet5@fc4", 84), ("resnet18@layer3", 256)])
def test_networks_of_the_family_are_backbones_whole_and_at_any_layer(
    photo: conftest.Photo, tmp_path: Path, name: str, width: int
) -> None:
    backbone = load_backbone(name, "random", 64)
    assert backbone.width == width
    pixels = conftest.pixels_of([photo(1), photo(2)], 64)
    backbone.save(tmp_path)
    again = read_backbone(tmp_path, backbone.fingerprint)
    np.testing.assert_array_equal(again.bottlenecks(pixels), backbone.bottlenecks(pixels))
    by_file = load_backbone(name, str(tmp_path / "backbone.weights.h5"), 64, seed=9)
    assert by_file.fingerprint == backbone.fingerprint


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet18", "imagenet", r"not published for Keras; .* give --weights FILE.pth \(torchvision's\)"),
        ("mobilenet", "resnet18.pth", r"PyTorch's, for torchvision's networks; .* of mobilenet"),
        ("resnet18", "none.pth", r"no such file; expected a .weights.h5, .pth or .safetensors file"),
        ("resnet18", "resnet18.pth", r"not a file of weights: .*nothing of it was executed"),
    ],
)
def test_weights_that_a_network_of_the_family_cannot_have_are_refused(
    tmp_path: Path, name: str, weights: str, message: str
) -> None:
    (tmp_path / "resnet18.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ShelfmarkError, match=message) as refused:
        load_backbone(name, weights if weights == "imagenet" else str(tmp_path / weights), 64)
    assert "\n" not in str(refused.value)


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
        ShelfmarkError, match=r"do not fit mobilenetv2 at 32 px .* give this network"
    ) as refused:
        load_backbone("mobilenet_v2", str(tmp_path / "mobilenet.weights.h5"), 32)
    assert "\n" not in str(refused.value)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_image_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ShelfmarkError, match=r"do not fit inceptionv3 at 32 px .*at least 75x75"):
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


# Views


VIEWS = ("whole", "flip", "48", "48-flip", "48-center", "48-bottom-right-flip", "max", "40-max-flip")


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_what_keras_computes_of_the_pixels_cut_and_mirrored_here(
    photo: conftest.Photo, mobilenet: Backbone, name: str
) -> None:
    size = int(name[:2]) if name[0].isdigit() else 32
    pixels = conftest.pixels_of([photo(1), photo(2)], size)
    if "center" in name:
        pixels = pixels[:, 8:40, 8:40]
    if "bottom-right" in name:
        pixels = pixels[:, 16:, 16:]
    if "flip" in name:
        pixels = pixels[:, :, ::-1]
    side = pixels.shape[1]
    network = keras.applications.MobileNet(
        include_top=False,
        pooling="max" if "max" in name else "avg",
        weights=None,
        input_shape=(side, side, 3),
    )
    network.set_weights(mobilenet.model.get_layer("mobilenet").get_weights())
    scaled = keras.applications.mobilenet.preprocess_input(pixels.astype(np.float32))
    expected = np.asarray(network(scaled, training=False))

    view = parse_view(name)
    jpegs = pieces_of([photo(1), photo(2)], "drawn")
    found = next(read_pixels(jpegs, view.input(32), 2, [view]))
    assert_same(mobilenet.for_view(view).bottlenecks(found), expected)


def test_views_of_one_network_share_it_and_keep_the_backbone_as_it_is(mobilenet: Backbone) -> None:
    before = mobilenet.fingerprint
    assert all(
        mobilenet.for_view(parse_view(name)) is mobilenet for name in ("whole", "flip", "48-center-flip")
    )
    other = mobilenet.for_view(parse_view("48"))
    assert (other.image_size, other.width, mobilenet.fingerprint) == (48, mobilenet.width, before)
    assert load_backbone("mobilenet", "random", 32).fingerprint == before


@pytest.mark.parametrize(
    ("backbone", "view", "message"),
    [
        (
            "mobilenet@conv_pw_1+conv_pw_2",
            "max",
            r"backbone mobilenet@conv_pw_1\+conv_pw_2 does not end in the mean of one map; .* without max; c",
        ),
        ("mobilenet", "32-flip", r"view 32-flip: 32 px is the .* own size; .*; write flip in extract.views"),
        ("mobilenet", "32-center", r"expected a photo of more than 32 px; correct extract.views"),
    ],
)
def test_a_view_that_a_backbone_cannot_have_is_refused(backbone: str, view: str, message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message):
        load_backbone(backbone, "random", 32).for_view(parse_view(view))


def test_a_view_too_small_for_the_network_is_refused_with_the_reason() -> None:
    expected = r"view 64: inceptionv3@mixed0 at 64 px cannot be built \(Input size must be .*; correct"
    with pytest.raises(ShelfmarkError, match=expected):
        load_backbone("inception_v3@mixed0", "random", 96).for_view(parse_view("64"))


def test_several_ends_at_another_size_are_pooled_each_as_at_their_own(photo: conftest.Photo) -> None:
    small, large = (load_backbone("mobilenet@conv_pw_1+conv_pw_2", "random", size) for size in (32, 48))
    pixels = conftest.pixels_of([photo(1), photo(2)], 48)
    assert_same(small.for_view(parse_view("48")).bottlenecks(pixels), large.bottlenecks(pixels))
