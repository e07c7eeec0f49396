"""Fine-tuning: what is frozen stays bit for bit, the rest learns, and the run goes on with what was tuned."""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from catalogues import draw_products, photo
from conftest import make_bundle
from test_extract import records_of
from test_retrain import run_here
from trees import uneven_tree

from features.engines.backbones import BACKBONE_WEIGHTS, KerasBackbone, load_backbone, save_weights
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import pieces_of
from features.storage.artifact import Artifact, open_artifact
from features.storage.paths import copy_tree, remove
from models.decisions.bundle import open_bundle
from models.heads import checkpoints as epochs
from models.heads.architectures import Head, HeadShape, build_head
from models.heads.finetune import (
    Augmentation,
    MovingAverage,
    Photos,
    Tuning,
    augment,
    freeze,
    frozen_count,
    mix,
    on_top,
    trunk_of,
    tune_backbone,
)
from models.heads.training import Recipe, inverse_time_decay, optimizer_of
from pipeline.demo.drawn_catalogue import draw_catalogue
from pipeline.job.config import Config
from pipeline.job.load_config import load_config
from pipeline.job.run import Run, begin_run
from pipeline.train.finetune import draw, finetune_backbone

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE = 16  # px
LEVELS = ["separate", "multitask", "taxonnet"]
TREE = uneven_tree()


def tiny() -> KerasBackbone:
    """A backbone of 11 layers: three times convolution, batch normalization and ReLU, pooled to 8 numbers."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 3))
    for _ in range(3):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", kernel_initializer="he_normal")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="tiny")
    network.trainable = False
    pixels = keras.Input((SIZE, SIZE, 3), dtype="float32")
    model = keras.Model(pixels, network(pixels / 127.5 - 1.0, training=False))
    return KerasBackbone("mobilenet", "random", SIZE, 8, "tiny-16", network, model)  # scaled like one


def network_of(backbone: KerasBackbone) -> keras.Model:
    return backbone.network


def weights_of(network: keras.Model) -> list[list[np.ndarray]]:
    """Every layer's."""
    return [layer.get_weights() for layer in network.layers]


def shape(kind: str = "flat") -> HeadShape:
    parents = TREE.parents if kind != "flat" else ()
    return HeadShape(8, 8, (16, 16), 0.2, 1.0, "tiny-16", kind=kind, parents=parents, selector=4)


def head(kind: str = "flat") -> Head:
    keras.utils.set_random_seed(1)
    return Head.of(shape(kind), build_head(shape(kind)))


def photos(seed: int, count: int, kind: str = "flat", size: int = SIZE) -> Photos:
    """Photos whose category, one of eight, is the brightness of each colour: dark or bright."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, 8, count)
    bright = (category[:, None] >> np.arange(3) & 1)[:, None, None, :]
    pixels = (60 + 100 * bright + rng.normal(0, 30, (count, size, size, 3))).clip(0, 255).astype(np.uint8)

    def read(numbers: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), batch):
            yield pixels[numbers[start : start + batch]]

    return Photos(read, category if kind == "flat" else TREE.nodes.T[category])


def recipe(**changes: float) -> Recipe:
    values = {"batch": 16, "learning_rate": 0.05, "decay": 1e-4, "epochs": 2, "patience": 100, "seed": 1}
    return Recipe(**values | changes)  # type: ignore[arg-type]


AUGMENTATION = Augmentation(area=0.6, flip=True, colour=0.1)
MIXED = Augmentation(area=0.6, flip=True, colour=0.1, mixup=0.2, cutmix=1.0)


def tune(
    kind: str = "flat", share: float = 0.4, work: Path | None = None, average: float = 0.0,
    size: int = SIZE, augmentation: Augmentation = AUGMENTATION, **changes: float,
):  # fmt: skip
    """The backbone before and after, layer by layer, and the history."""
    before = weights_of(network_of(tiny()))
    tuning = Tuning(share, augmentation, size, average)
    network, history = tune_backbone(
        tiny(), head(kind), photos(1, 80, kind, size + 4), photos(2, 24, kind), recipe(**changes), tuning,
        work=work,
    )  # fmt: skip
    return before, weights_of(network), network, history


@pytest.fixture(scope="module")
def tuned_once() -> list[list[np.ndarray]]:
    """The weights after one epoch, layer by layer."""
    return tune(epochs=1)[1]


# What is frozen, and what learns


@pytest.mark.parametrize(
    ("share", "layers", "count"),
    [(0.4, 312, 124), (0.0, 312, 0), (0.29, 100, 29), (0.999, 10, 9), (0.4, 11, 4), (0.57, 100, 57)],
)
def test_frozen_layers_are_the_whole_part_of_the_share(share: float, layers: int, count: int) -> None:
    assert frozen_count(share, layers) == count


@pytest.mark.parametrize(
    ("share", "changes"),
    [
        (0.0, {"average": 0.9}),
        (0.4, {"bfloat16": True}),
        (0.4, {"bfloat16": True, "size": 12, "augmentation": MIXED}),
        (0.8, {"average": 0.9, "size": 12, "schedule": "cosine", "momentum": 0.9}),
    ],
)
def test_exactly_the_first_layers_stay_bit_for_bit_and_every_later_trainable_weight_moves(
    share: float, changes: dict[str, Any]
) -> None:
    before, after, network, _ = tune(share=share, **changes)
    frozen = math.floor(share * 11)
    assert len(before) == 11
    assert [layer.trainable for layer in network.layers] == [number >= frozen for number in range(11)]
    for old, new in zip(before[:frozen], after[:frozen], strict=True):
        for one, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(one, other)
    moved = 0
    for layer, old in zip(network.layers[frozen:], before[frozen:], strict=True):
        trainable = {id(variable) for variable in layer.trainable_variables}
        for variable, one in zip(layer.weights, old, strict=True):
            assert not np.array_equal(one, variable.numpy()), variable.path  # moving statistics, too
            moved += id(variable) in trainable
    assert moved == {0.0: 12, 0.4: 8, 0.8: 2}[share]


@pytest.mark.parametrize(("share", "alone"), [(0.85, True), (0.7, False)])
def test_only_tuned_batch_normalizations_take_the_statistics_of_the_batch(share: float, alone: bool) -> None:
    """The last of three is layer 8 of 11: frozen, an image's output in training depends on no other image."""
    backbone = tiny()
    freeze(network_of(backbone), share)
    top = Head.of(shape(), keras.Sequential([keras.Input((8,)), keras.layers.Identity()]))
    model = on_top(top, backbone.model)
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.float32)
    together = model(pixels, training=True).numpy()
    each = np.concatenate([model(pixels[n : n + 1], training=True).numpy() for n in range(8)])
    assert np.allclose(together, each, atol=1e-5) == alone


@pytest.mark.parametrize("kind", LEVELS)
def test_gradients_of_every_levels_loss_reach_the_trunk_and_only_its_tuned_layers(kind: str) -> None:
    import tensorflow as tf

    backbone, top = tiny(), head(kind)
    network = network_of(backbone)
    frozen = freeze(network, 0.4)
    model = on_top(top, backbone.model)
    train = photos(1, 16, kind)
    pixels = next(train.read(np.arange(16), 16))
    for level, nodes in enumerate(TREE.nodes):
        with tf.GradientTape() as tape:
            logits = model(pixels, training=True)[level]
            loss = tf.reduce_mean(
                keras.ops.sparse_categorical_crossentropy(train.labels[:, level], logits, from_logits=True)
            )
        assert logits.shape[1] == nodes.max() + 1
        gradients = tape.gradient(loss, network.trainable_variables)
        assert len(gradients) == 8
        assert min(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients) > 0
    assert not any(layer.trainable_variables for layer in network.layers[:frozen])


@pytest.mark.parametrize("kind", ["flat", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LEVELS)])
def test_tuning_learns_under_any_kind_of_head(kind: str) -> None:
    _, _, _, history = tune(kind, epochs=4)
    assert history["loss"][-1] < history["loss"][0] * 0.9


@pytest.mark.slow
def test_only_another_seed_gives_another_backbone(tuned_once: list[list[np.ndarray]]) -> None:
    (_, same, _, _), (_, other, _, _) = (tune(epochs=1, seed=seed) for seed in (1, 2))
    for layer, again in zip(tuned_once, same, strict=True):
        for weight, copy in zip(layer, again, strict=True):
            np.testing.assert_array_equal(weight, copy)
    assert not np.array_equal(tuned_once[-4][0], other[-4][0])


def test_rate_at_a_step_of_the_inverse_time_schedule_is_that_of_the_paper() -> None:
    settings = load_config(sets=("finetune.schedule=inverse_time", "finetune.learning_rate=0.05")).finetune
    assert (settings.decay, settings.share) == (1e-4, 0.05)
    rate = inverse_time_decay(settings.learning_rate, settings.decay)
    for step in (0, 1, 10_000, 10**6):
        assert float(rate(step)) == pytest.approx(0.05 / (1 + step * 1e-4), rel=1e-6)


def test_tuning_obeys_the_schedule() -> None:
    """One step an epoch: at a decay of 10⁸ the second step is 10⁸ times smaller."""
    (_, once, _, _), (_, twice, _, _), (_, undamped, _, _) = (
        tune(epochs=epochs, decay=decay, batch=80) for epochs, decay in [(1, 1e8), (2, 1e8), (2, 0)]
    )  # fmt: skip
    np.testing.assert_allclose(once[-4][0], twice[-4][0], atol=1e-6)
    assert np.abs(once[-4][0] - undamped[-4][0]).max() > 1e-4


def test_a_cosine_ends_at_a_rate_of_nothing() -> None:
    """One step an epoch, three epochs: the rates are 1, 3/4 and 1/4 of the first."""
    rate = optimizer_of(recipe(epochs=3, batch=80, schedule="cosine", learning_rate=0.08), 80)._learning_rate
    np.testing.assert_allclose([float(rate(step)) for step in range(4)], [0.08, 0.06, 0.02, 0], atol=1e-7)


class Killed(Exception):
    pass


def test_a_tuning_killed_after_any_epoch_goes_on_to_the_same_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 3, "momentum": 0.9, "average": 0.8, "schedule": "cosine"}
    settings |= {"size": 12, "augmentation": MIXED}
    _, wanted, _, history = tune("multitask", **settings)
    write = epochs.Epochs._write

    def write_and_die(self: epochs.Epochs, file: Path) -> None:
        write(self, file)
        if self.done < 3:
            raise Killed

    monkeypatch.setattr(epochs.Epochs, "_write", write_and_die)
    monkeypatch.setattr(epochs, "REST", 0)
    for _ in range(2):
        with pytest.raises(Killed):
            tune("multitask", work=tmp_path, **settings)
    _, found, _, same = tune("multitask", work=tmp_path, **settings)
    assert same == history
    for layer, again in zip(wanted, found, strict=True):
        for weight, copy in zip(layer, again, strict=True):
            np.testing.assert_array_equal(weight, copy)


# The moving average


def test_average_follows_the_weights_and_changes_places_with_them() -> None:
    model = network_of(tiny())
    average, start = MovingAverage(model, 0.75), model.get_weights()
    for _ in range(2):
        model.set_weights([weight + 4 for weight in model.get_weights()])
        average.follow()
    average.swap()
    for first, averaged, own in zip(start, model.get_weights(), average.others, strict=True):
        # + 4, + 8: a quarter of 4, then three quarters of that 1 and a quarter of 8
        np.testing.assert_allclose(averaged, first + 0.75 * 1 + 0.25 * 8, rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(own.numpy(), first + 4 + 4)


def test_what_is_kept_with_an_average_is_the_average_of_all_steps(
    tuned_once: list[list[np.ndarray]],
) -> None:
    """At a momentum of nearly 1 the average stays where it began, though the weights learn as before."""
    before, after, _, _ = tune(average=1 - 1e-9, epochs=1)
    assert furthest(before, after) < 1e-6
    assert furthest(before, tuned_once) > 1e-2


def furthest(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> float:
    """The largest difference of two networks' weights."""
    pairs = zip(chain(*one), chain(*other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


# Augmentation


def test_without_augmentation_photos_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(augment(pixels, np.random.default_rng(0), Augmentation()), pixels)


def test_half_of_the_photos_are_mirrored_left_to_right() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
    changed = augment(pixels, np.random.default_rng(0), Augmentation(flip=True))
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(changed, pixels, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(changed, pixels, strict=True)])
    assert (mirrored ^ same).all()
    assert 160 < mirrored.sum() < 240


def test_a_crop_keeps_at_least_its_share_of_the_photo() -> None:
    """Photos that are their own coordinates show what was kept of them."""
    place = np.linspace(0, 250, 51)
    grid = np.stack([*np.meshgrid(place, place, indexing="ij"), np.zeros((51, 51))], axis=-1)
    pixels = np.repeat(grid[None].astype(np.uint8), 300, axis=0)
    changed = augment(pixels, np.random.default_rng(0), Augmentation(area=0.5)).astype(float)
    tall, wide = (np.ptp(changed[..., axis], axis=(1, 2)) / 250 for axis in (0, 1))
    assert (tall * wide > 0.42).all()  # a stretched crop that would leave the photo is cut
    assert (tall * wide).min() < 0.6
    assert (tall * wide).max() > 0.9


def test_colours_are_off_by_no_more_than_their_share() -> None:
    grey = np.full((300, 4, 4, 3), 100, np.uint8)
    changed = augment(grey, np.random.default_rng(0), Augmentation(colour=0.2))[:, 0, 0]
    assert changed.min() in (80, 81)
    assert changed.max() in (119, 120)
    assert (changed.std(axis=1) > 0).mean() > 0.9  # the colours differ


def test_a_photo_is_augmented_to_the_size_it_is_tuned_on() -> None:
    halves = np.zeros((2, 32, 32, 3), np.uint8)
    halves[:, :, 16:] = 200
    smaller = augment(halves, np.random.default_rng(0), Augmentation(), 8)
    assert smaller.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(smaller[:, :, :4], 0)
    np.testing.assert_array_equal(smaller[:, :, 4:], 200)


def grey(*values: int) -> np.ndarray:
    """A photo of 20 px in each of these greys."""
    return np.stack([np.full((20, 20, 3), value, np.uint8) for value in values])


def test_mixup_blends_opposite_photos_by_their_weight() -> None:
    mixed, labels, weight = mix(
        grey(0, 100, 200), np.arange(3), np.random.default_rng(0), Augmentation(mixup=1.0)
    )
    wanted = weight * [0, 100, 200] + (1 - weight) * [200, 100, 0]
    np.testing.assert_array_equal(mixed, grey(*np.rint(wanted).astype(int)))
    np.testing.assert_array_equal(labels, [0, 1, 2])
    assert 0 < weight < 1


def test_cutmix_pastes_a_box_and_its_weight_is_the_share_of_pixels_that_stay() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(200):
        mixed, _, weight = mix(grey(0, 200), np.arange(2), rng, Augmentation(cutmix=1.0))
        pasted = mixed[0, :, :, 0] == 200
        np.testing.assert_array_equal(mixed[1, :, :, 0] == 0, pasted)
        tall, wide = pasted.any(axis=1).sum(), pasted.any(axis=0).sum()
        assert pasted.sum() == tall * wide, "it is one box"
        assert weight[0] == pytest.approx(1 - pasted.mean())
        shares.append(float(weight[0]))
    assert min(shares) < 0.2
    assert max(shares) > 0.95


def test_with_mixup_and_cutmix_about_half_of_the_batches_have_either() -> None:
    rng = np.random.default_rng(0)
    how = Augmentation(mixup=1.0, cutmix=1.0)
    cut = [set(np.unique(mix(grey(0, 200), np.arange(2), rng, how)[0])) <= {0, 200} for _ in range(200)]
    assert 70 < sum(cut) < 130


def test_without_either_nothing_is_mixed() -> None:
    pixels, labels = grey(0, 200), np.arange(2)
    mixed, same, weight = mix(pixels, labels, np.random.default_rng(0), Augmentation())
    assert mixed is pixels
    assert same is labels
    assert weight.tolist() == [1.0]


# The size of the photos


def test_a_network_tuned_at_another_size_is_that_network_at_that_size() -> None:
    backbone = load_backbone("mobilenet", "random", 64)
    other = load_backbone("mobilenet", "random", 32)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(trunk_of(backbone, 32)(pixels).numpy(), other.model(pixels).numpy())
    assert trunk_of(backbone, 64) is backbone.model


def test_a_network_of_one_size_alone_is_not_tuned_at_another() -> None:
    backbone = tiny()
    inputs = keras.Input((SIZE, SIZE, 3))
    flat = keras.Model(inputs, keras.layers.Dense(8)(keras.layers.Flatten()(inputs)))
    fixed = replace(backbone, network=flat, model=keras.Model(inputs, flat(inputs)))
    with pytest.raises(ShelfmarkError, match=r"image_size = 12: .* takes photos of 16 px alone; .* leave"):
        trunk_of(fixed, 12)


# The draw


def test_the_draw_takes_its_share_of_every_category_and_at_least_one() -> None:
    category = pd.Series({f"p{n}": "big" if n < 200 else "small" if n < 203 else "one" for n in range(204)})
    images = pd.DataFrame({"product_id": np.repeat(category.index, 2)})
    drawn = category[sorted(draw(images, category, 0.05))].value_counts()
    assert drawn.to_dict() == {"big": 10, "small": 1, "one": 1}
    assert draw(images, category, 0.05) == draw(images.sample(frac=1, random_state=0), category, 0.05)
    assert draw(images, category, 0.05) < draw(images, category, 0.2)
    assert draw(images, category, 1.0) == set(category.index)


# As a stage of a run


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Path:
    """Random weights of MobileNet whose bottlenecks do not vanish: its batch normalizations know photos."""
    backbone = load_backbone("mobilenet", "random", 32)
    network = network_of(backbone)
    network.trainable = True
    for layer in network.layers:
        layer.momentum = 0.0
    jpegs = [photo(seed) for seed in range(64)]
    network(next(read_pixels(pieces_of(jpegs, "drawn"), 32, batch=64)) / np.float32(127.5) - 1, training=True)
    file = tmp_path_factory.mktemp("weights") / "lively.weights.h5"
    save_weights(network, file)
    return file


SETTINGS = (
    "ingest.min_products=8", "finetune.share=0.25", "finetune.epochs=1", "finetune.batch=8",
    "finetune.learning_rate=0.01", "head.hidden=[16, 16]", "train.epochs=3",
)  # fmt: skip


def opened(workspace: Path, lively: Path, *more: str) -> Run:
    options = {"backbone.weights": str(lively), "backbone.name": "mobilenet", "backbone.image_size": 32}
    return begin_run(workspace, "week", load_config(None, (*SETTINGS, *more), options))


@pytest.fixture(scope="module")
def shop(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A drawn catalogue with a workspace whose run has a backbone of its own; the arguments that began it."""
    folder = tmp_path_factory.mktemp("shop")
    draw_catalogue(folder, products=200)
    source = (str(folder / "catalogue.bson"), "--taxonomy", str(folder / "category_names.csv"))
    backbone = ("--backbone", "mobilenet", "--weights", str(lively), "--image-size", "32")
    sets = (text for setting in SETTINGS for text in ("--set", setting))
    began = (*source, "--run", "week", *backbone, *sets)
    workspace = ("--workspace", str(folder / "W"))
    assert run_here("ingest", *began, *workspace)[0] == 0
    assert run_here("extract", "--run", "week", *workspace)[0] == 0
    status, log = run_here("finetune", "--run", "week", *workspace)
    assert status == 0
    assert "backbone: fingerprint mobilenet-32-" in log
    return folder, began


@pytest.fixture
def run(shop: tuple[Path, tuple[str, ...]], lively: Path, tmp_path: Path) -> Run:
    """That run, in a workspace that may be changed."""
    copy_tree(shop[0] / "W", tmp_path / "W")
    return opened(tmp_path / "W", lively)


def own_backbone(run: Run) -> Artifact:
    return open_artifact(run.path / "backbone", "backbone")


def test_the_stage_gives_a_backbone_with_a_fingerprint_of_its_own(run: Run) -> None:
    base, made = run.untuned_backbone(), own_backbone(run)
    assert set(made.files) == {"backbone.json", BACKBONE_WEIGHTS, "history.csv"}
    assert made.summary["frozen"] == math.floor(0.4 * made.summary["layers"])
    tuned = load_backbone("mobilenet", str(made.file(BACKBONE_WEIGHTS)), 32)
    assert tuned.fingerprint == made.summary["fingerprint"] != base.fingerprint
    before = network_of(run.untuned_backbone()).layers
    moved = [
        not all(map(np.array_equal, one.get_weights(), other.get_weights()))
        for one, other in zip(before, network_of(tuned).layers, strict=True)
    ]
    assert not any(moved[: made.summary["frozen"]])
    assert all(
        change
        for change, layer in zip(moved, before, strict=True)
        if layer.weights and before.index(layer) >= made.summary["frozen"]
    )


@pytest.mark.slow
def test_photos_that_do_not_fit_into_memory_are_decoded_again_and_give_the_same_backbone(run: Run) -> None:
    config = load_config(None, ("train.memory_gb=1e-9",), base=run.config.model_dump(mode="json"))
    records = open_artifact(run.path / "records", "records")
    again = finetune_backbone(records, run.untuned_backbone(), run.store, run.path / "again", config)
    assert again.summary["fingerprint"] == own_backbone(run).summary["fingerprint"]


@pytest.mark.slow
def test_the_same_tuning_gives_the_same_backbone(run: Run) -> None:
    records = open_artifact(run.path / "records", "records")
    again = finetune_backbone(records, run.untuned_backbone(), run.store, run.path / "again", run.config)
    assert again.digest == own_backbone(run).digest


def test_a_run_reads_its_own_backbone_and_later_weeks_that_of_the_release(
    run: Run, lively: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned, workspace = run.backbone, run.path.parents[1]
    assert tuned.fingerprint == own_backbone(run).summary["fingerprint"]
    assert tuned.weights == f"fine-tuned {lively.name}"

    make_bundle(workspace / "releases" / "before", tuned, threshold=0.5)
    (workspace / "releases" / "current").symlink_to("before")
    later = begin_run(workspace, "later", run.config)
    with caplog.at_level(logging.INFO, "shelfmark"):
        assert later.backbone.fingerprint == tuned.fingerprint
    assert "backbone: the fine-tuned one of release before" in caplog.text
    assert later.untuned_backbone().fingerprint == run.untuned_backbone().fingerprint

    other = begin_run(workspace, "other", larger(run))
    assert other.backbone.image_size == 40, "the release's was tuned from another one"


def test_a_release_whose_backbone_was_not_tuned_leaves_the_one_of_the_settings(
    mobilenet: KerasBackbone, lively: Path, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "releases" / "before", mobilenet, threshold=0.5)
    (tmp_path / "releases" / "current").symlink_to("before")
    run = opened(tmp_path, lively)
    assert run.backbone.fingerprint == run.untuned_backbone().fingerprint != mobilenet.fingerprint


def larger(run: Run) -> Config:
    """The run's settings with larger images."""
    return load_config(None, ("backbone.image_size=40",), base=run.config.model_dump(mode="json"))


def test_own_backbone_of_other_records_or_settings_is_refused(run: Run, tmp_path: Path) -> None:
    refused = r"tuned from another backbone; expected mobilenet .* run `shelfmark finetune`"
    with pytest.raises(ShelfmarkError, match=refused):
        _ = begin_run(run.path.parents[1], "week", larger(run)).backbone
    again = records_of(draw_products({"1": 24, "2": 25}), tmp_path / "again")
    remove(run.path / "records")
    copy_tree(again.path, run.path / "records")
    with pytest.raises(ShelfmarkError, match=r"made from other records; .* run `shelfmark finetune` first"):
        _ = run.backbone


@pytest.mark.parametrize("damage", ["lost", "longer"])
def test_a_damaged_backbone_is_refused_and_not_replaced_by_the_untuned_one(run: Run, damage: str) -> None:
    file = run.path / "backbone" / "backbone.weights.h5"
    file.write_bytes(file.read_bytes() + b"x") if damage == "longer" else file.unlink()
    with pytest.raises(ShelfmarkError, match=r"backbone: damaged; .* run `shelfmark finetune` first"):
        _ = run.backbone
    with pytest.raises(ShelfmarkError, match="backbone: damaged"):
        run.own_backbone()


def test_a_tuning_that_leaves_nothing_to_tune_is_refused() -> None:
    with pytest.raises(ShelfmarkError, match=r"finetune.frozen_share = 0.99: the first .* lower it"):
        tune(share=0.99)  # the last layer is a pooling or an activation


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("frozen_share=1", "less than 1"),
        ("frozen_share=-0.1", "greater than or equal to 0"),
        ("share=0", "greater than 0"),
        ("share=1.5", "less than or equal to 1"),
        ("batch=0", "greater than or equal to 1"),
        ("learning_rate=0", "greater than 0"),
        ("image_size=0", "greater than or equal to 1"),
        ("schedule=linear", "'inverse_time' or 'cosine'"),
        ("mixup=-1", "greater than or equal to 0"),
        ("cutmix=-1", "greater than or equal to 0"),
        ("crop=0", "greater than 0"),
        ("precision=half", "'auto', 'float32' or 'bfloat16'"),
        ("frozen=0.5", "Did you mean 'frozen_share'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message) as refused:
        load_config(sets=(f"finetune.{setting}",))
    assert "\n" not in str(refused.value)


def test_extract_and_train_run_unchanged_after_finetune_through_the_command_line(
    shop: tuple[Path, tuple[str, ...]], lively: Path, tmp_path: Path
) -> None:
    copy_tree(shop[0] / "W", tmp_path / "W")
    workspace = ("--workspace", str(tmp_path / "W"))
    more = ("--run", "week", *workspace)
    path = tmp_path / "W" / "runs" / "week"
    own = open_artifact(path / "backbone", "backbone").summary["fingerprint"]
    status, _ = run_here("train", *more)
    assert status == 1, "the bottlenecks are still those of the untuned backbone"
    assert run_here("extract", *more)[0] == run_here("train", *more)[0] == 0
    assert open_artifact(path / "bottlenecks", "bottlenecks").summary["fingerprint"] == own
    assert json.loads((path / "head" / "head.json").read_text())["fingerprint"] == own
    status, log = run_here("retrain", *shop[1], *workspace, "--finetune")
    assert status == 0
    kinds = {line.partition(":")[0] for line in log.splitlines() if ": unchanged" in line}
    assert {"records", "backbone", "bottlenecks", "head"} <= kinds
    bundle = open_bundle(path / "bundle")
    assert bundle.backbone().fingerprint == own
    assert bundle.backbone().weights == f"fine-tuned {lively.name}"
