"""Training: the paper's schedule, every image once an epoch, the best epoch kept, one head a seed."""

import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax

from features.errors import ShelfmarkError
from features.storage.store import Digests, Store
from models.heads import checkpoints as epochs
from models.heads import training as fit
from models.heads.architectures import Head, HeadShape, build_head, load_head
from models.heads.training import Examples, Recipe, fit_head, inverse_time_decay
from models.heads.training_steps import DECAY_STEPS, aligned, as_tensor, sgd

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SHAPE = HeadShape(width=6, categories=3, hidden=(16, 8), dropout=0.2, scale=1.0, fingerprint="")


def recipe(**changes: Any) -> Recipe:
    settings = {"batch": 16, "learning_rate": 0.1, "decay": 7e-5, "epochs": 3, "patience": 100, "seed": 1}
    return Recipe(**settings | changes)


def draw(seed: int, images: int, noise: float = 0.3, wrong: float = 0.0) -> Examples:
    """Three clouds of bottlenecks, a share of them under a wrong label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    centres = np.random.default_rng(0).normal(0, 1, (3, SHAPE.width))
    bottlenecks = (centres[labels] + rng.normal(0, noise, (images, SHAPE.width))).astype(np.float16)
    return Examples(bottlenecks, np.where(rng.random(images) < wrong, rng.integers(0, 3, images), labels))


def accuracy_and_loss(head: Head, examples: Examples) -> tuple[float, float]:
    """By NumPy, from the logits."""
    logits = head.logits(examples.bottlenecks[np.arange(len(examples.labels))]).astype(np.float64)
    true = np.take_along_axis(logits, examples.labels[:, None], axis=1)[:, 0]
    loss = np.log(np.exp(logits).sum(axis=1)) - true
    return float(np.mean(logits.argmax(axis=1) == examples.labels)), float(loss.mean())


def saved(head: Head, folder: Path) -> str:
    folder.mkdir()
    head.save(folder)
    return hashlib.sha256((folder / "head.weights.h5").read_bytes()).hexdigest()


def test_rate_at_a_step_is_that_of_the_paper() -> None:
    rate = inverse_time_decay(0.1, 7e-5)
    for step in (0, 1, 1000, 14_286, 10**6):
        assert float(rate(step)) == pytest.approx(0.1 / (1 + step * 7e-5), rel=1e-6)


def test_cosine_falls_from_the_rate_to_0_over_all_steps() -> None:
    rate = fit.optimizer_of(recipe(schedule="cosine", batch=16, epochs=10), images=100)._learning_rate
    for step in (0, 7, 35, 60):  # six batches an epoch; four images wait
        assert float(rate(step)) == pytest.approx(0.1 * (1 + np.cos(np.pi * step / 60)) / 2, abs=1e-8)


def test_steps_with_momentum_are_those_of_keras() -> None:
    weights = [np.random.default_rng(n).normal(size=(4, 3)).astype(np.float32) for n in range(4)]
    found, wanted = keras.Variable(weights[0]), keras.Variable(weights[0])
    ours, theirs = sgd(inverse_time_decay(0.1, 0.5), 0.9), keras.optimizers.SGD(
        inverse_time_decay(0.1, 0.5), momentum=0.9
    )  # fmt: skip
    for gradient in weights[1:]:
        ours.apply([ops.convert_to_tensor(gradient)], [found])
        theirs.apply([ops.convert_to_tensor(gradient)], [wanted])
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-6)


def test_weights_decay_in_one_step_of_sixteen_as_much_as_in_sixteen_of_keras() -> None:
    weights, gradient = np.random.default_rng(0).normal(0, (1, 0.02), (4, 3, 2)).astype(np.float32).T
    found, wanted = keras.Variable(weights), keras.Variable(weights)
    ours, theirs = sgd(0.05, 0.9, 0.02), keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.02)
    for step in range(32):
        ours.apply([ops.convert_to_tensor(gradient)], [found])
        theirs.apply([ops.convert_to_tensor(gradient)], [wanted])
        gap = np.abs(np.asarray(found) - np.asarray(wanted)).max()
        assert gap < (5e-3 if (step + 1) % DECAY_STEPS == 0 else 0.05), step
    assert np.abs(np.asarray(wanted)).sum() < 0.97 * np.abs(weights).sum()  # the decay is no trifle


def test_an_epoch_at_a_rate_shrinks_the_weights_by_the_rate_times_the_decay() -> None:
    optimizer = fit.optimizer_of(recipe(momentum=0.9, weight_decay=0.5, decay=0.0), images=64 * 16)
    weights, still = keras.Variable(np.ones((2, 2), np.float32)), ops.zeros((2, 2))
    for _ in range(64):  # batches of 16: an epoch
        optimizer.apply([still], [weights])
    np.testing.assert_allclose(np.asarray(weights), np.exp(-0.1 * 0.5), rtol=1e-5)


def test_a_large_decay_leaves_little_and_changes_no_sign() -> None:
    optimizer = fit.optimizer_of(recipe(momentum=0.9, weight_decay=2.0, decay=0.0), images=16)
    weights, still = keras.Variable(np.ones((2, 2), np.float32)), ops.zeros((2, 2))
    for _ in range(32):  # an epoch each
        optimizer.apply([still], [weights])
    np.testing.assert_allclose(np.asarray(weights), np.exp(-32 * 0.1 * 2.0), rtol=1e-4)


def test_training_obeys_the_schedule() -> None:
    """At the decay as it is printed, 7·10⁵, the rate is almost 0 after one step: more change nothing."""
    one_step, many = (
        fit_head(SHAPE, draw(1, 32), None, recipe(batch=32, epochs=epochs, decay=7e5))[0]
        for epochs in (1, 20)
    )
    for name in ("hidden1", "hidden2", "logits"):
        for once, often in zip(
            one_step.model.get_layer(name).get_weights(),
            many.model.get_layer(name).get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(often, once, atol=1e-5)


def test_separable_images_are_classified_correctly() -> None:
    head, history = fit_head(SHAPE, draw(1, 240), draw(2, 90), recipe(epochs=15))
    accuracy, _ = accuracy_and_loss(head, draw(3, 300))
    assert accuracy > 0.95
    assert history["loss"][-1] < history["loss"][0] / 3


def test_best_epoch_by_fit_accuracy_then_loss_is_kept_and_patience_ends_the_training() -> None:
    train, fit = draw(1, 48, noise=1.2, wrong=0.5), draw(2, 40, noise=1.2, wrong=0.5)
    head, history = fit_head(SHAPE, train, fit, recipe(epochs=60, patience=6, learning_rate=0.3))
    scores = [(a, -loss) for a, loss in zip(history["val_accuracy"], history["val_loss"], strict=True)]
    best = scores.index(max(scores))
    assert len(scores) == best + 1 + 6 < 60
    accuracy, loss = accuracy_and_loss(head, fit)
    assert accuracy == pytest.approx(scores[best][0], abs=1e-6)
    assert loss == pytest.approx(-scores[best][1], rel=1e-4)
    assert loss != pytest.approx(history["val_loss"][-1], rel=1e-3)


def test_last_epoch_is_kept_without_fit() -> None:
    head, history = fit_head(SHAPE, draw(1, 48), None, recipe(epochs=4))
    assert set(history) == {"accuracy", "loss"}
    assert len(history["loss"]) == 4
    longer, _ = fit_head(SHAPE, draw(1, 48), None, recipe(epochs=5))
    assert accuracy_and_loss(longer, draw(2, 90))[1] != accuracy_and_loss(head, draw(2, 90))[1]


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    digests, histories = [], []
    for number, seed in enumerate([1, 1, 2]):
        head, history = fit_head(SHAPE, draw(1, 48), draw(2, 30), recipe(seed=seed))
        digests.append(saved(head, tmp_path / str(number)))
        histories.append(history)
        if number == 0:
            time.sleep(1.1)  # a date in the file would show
    assert digests[0] == digests[1] != digests[2]
    assert histories[0] == histories[1] != histories[2]


def test_trained_head_is_read_back(tmp_path: Path) -> None:
    head, _ = fit_head(SHAPE, draw(1, 48), None, recipe(epochs=1))
    saved(head, tmp_path / "head")
    rows = draw(2, 20).bottlenecks[np.arange(20)]
    np.testing.assert_array_equal(load_head(tmp_path / "head").logits(rows), head.logits(rows))


class Watched:
    """Bottlenecks that remember which rows were read."""

    def __init__(self, bottlenecks: np.ndarray) -> None:
        self.bottlenecks, self.read = bottlenecks, list[list[int]]()

    def __len__(self) -> int:
        return len(self.bottlenecks)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.read.append(rows.tolist())
        return self.bottlenecks[rows]


def window_by_window(examples: Examples, images: int) -> dict[str, int]:
    """The setting of memory that gives windows of so many images."""
    return {"memory": images * examples.bottlenecks[np.arange(1)].nbytes}


def test_bottlenecks_that_fit_memory_are_read_once() -> None:
    plain = draw(1, 50)
    watched = Watched(plain.bottlenecks[np.arange(50)])
    fit_head(SHAPE, Examples(watched, plain.labels), None, recipe())
    assert [rows for rows in watched.read if len(rows) > 1] == [list(range(50))]


def test_more_is_read_window_by_window_every_image_once_an_epoch_in_another_order() -> None:
    plain = draw(1, 1000)
    watched = Watched(plain.bottlenecks[np.arange(1000)])
    fit_head(SHAPE, Examples(watched, plain.labels), None, recipe(**window_by_window(plain, 400)))
    windows = [rows for rows in watched.read if len(rows) > 1]
    assert [len(rows) for rows in windows] == [400, 400, 192] * 3
    epochs = [list(itertools.chain(*windows[start : start + 3])) for start in (0, 3, 6)]
    assert all(len(set(epoch)) == 992 for epoch in epochs)  # those that fill no batch of 16 wait
    assert set(itertools.chain(*epochs)) == set(range(1000))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(max(epoch[:400]) - min(epoch[:400]) > 500 for epoch in epochs), (
        "a window is from one part of the rows"
    )


def test_images_sorted_by_category_are_shuffled_well_enough_to_train_on() -> None:
    drawn = draw(1, 3000, noise=0.5)
    by_category = np.argsort(drawn.labels, kind="stable")
    ordered = Examples(drawn.bottlenecks[by_category], drawn.labels[by_category])
    accuracies = [
        accuracy_and_loss(fit_head(SHAPE, ordered, None, recipe(**memory))[0], draw(2, 2000, noise=0.5))[0]
        for memory in ({}, window_by_window(ordered, 1024))
    ]
    assert accuracies[0] > 0.85
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.02)


@pytest.mark.parametrize("count", [1, 1000])
def test_rows_in_memory_become_a_tensor_without_a_copy(count: int) -> None:
    rows = aligned(count, 5, np.dtype(np.float16))
    rows[:] = np.arange(5 * count).reshape(count, 5)
    tensor = as_tensor(rows)
    assert rows.ctypes.data % 64 == 0
    rows[0, 0] = 7
    np.testing.assert_array_equal(np.asarray(tensor), rows)
    del rows
    assert float(tensor[0, 0]) == 7  # the tensor keeps the memory


def test_rows_of_a_store_train_the_same_head_as_rows_in_memory(tmp_path: Path) -> None:
    drawn = draw(1, 600)
    digests = np.random.default_rng(0).integers(0, 256, (600, 32), np.uint8)
    store = Store(tmp_path)
    for start in range(0, 600, 200):
        store.append(digests[start : start + 200], drawn.bottlenecks[np.arange(start, start + 200)], "drawn")
    places = store.find(Digests(digests))
    stored = Examples(store.rows(places.names, places.shard, places.row), drawn.labels)
    wanted, _ = fit_head(SHAPE, drawn, None, recipe(**window_by_window(drawn, 256)))
    found, _ = fit_head(SHAPE, stored, None, recipe(**window_by_window(drawn, 256)))
    assert_same(found, wanted)


def assert_same(one: Head, other: Head) -> None:
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


EVERYTHING = {
    "epochs": 5, "momentum": 0.9, "schedule": "cosine", "learning_rate": 0.02, "mixup": 0.3,
    "label_smoothing": 0.1, "imbalance": "balanced", "weight_decay": 0.5,
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("windows", [False, True])
def test_a_training_killed_after_any_epoch_continues_to_the_same_head(
    windows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, select = draw(1, 300, noise=1.0), draw(2, 60, noise=1.0)
    training = recipe(**EVERYTHING | (window_by_window(train, 128) if windows else {}))
    wanted, history = fit_head(SHAPE, train, select, training)
    write = epochs.Epochs._write

    def write_and_die(self: epochs.Epochs, file: Path) -> None:
        write(self, file)
        if self.done in (1, 4):
            raise Killed

    monkeypatch.setattr(epochs.Epochs, "_write", write_and_die)
    monkeypatch.setattr(epochs, "REST", 0)
    for _ in range(2):
        with pytest.raises(Killed):
            fit_head(SHAPE, train, select, training, work=tmp_path)
    found, same_history = fit_head(SHAPE, train, select, training, work=tmp_path)
    assert_same(found, wanted)
    assert same_history == history
    assert [file.name for file in tmp_path.iterdir()] == ["_checkpoint.npz"]


def test_checkpoints_take_at_most_a_tenth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, epochs_written, write = [0.0], [], epochs.Epochs._write

    def slow(self: epochs.Epochs, file: Path) -> None:
        write(self, file)
        epochs_written.append(self.done)
        now[0] += 2.0  # seconds a checkpoint

    monkeypatch.setattr(epochs.Epochs, "_write", slow)
    monkeypatch.setattr(epochs.time, "monotonic", lambda: now[0])
    end_epoch = epochs.Epochs.end_epoch

    def passing(self: epochs.Epochs, *given: Any) -> None:
        now[0] += 5.0  # seconds an epoch
        end_epoch(self, *given)

    monkeypatch.setattr(epochs.Epochs, "end_epoch", passing)
    fit_head(SHAPE, draw(1, 48), None, recipe(epochs=11), work=tmp_path)
    assert epochs_written == [1, 5, 9, 11]  # 20 seconds rest after each, and the last epoch in any case


@pytest.mark.parametrize("left", [0, 10, 0.5], ids=["nothing", "a few bytes", "half"])
def test_a_damaged_checkpoint_is_reported_and_training_begins_again(
    left: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, _ = fit_head(SHAPE, draw(1, 48), None, recipe(), work=tmp_path)
    file = tmp_path / "_checkpoint.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    found, history = fit_head(SHAPE, draw(1, 48), None, recipe(), work=tmp_path)
    assert_same(found, wanted)
    assert len(history["loss"]) == 3
    assert "training begins anew" in caplog.text


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    head, _ = fit_head(SHAPE, draw(1, 48), draw(2, 30), recipe(), work=tmp_path)
    watched = Watched(draw(1, 48).bottlenecks[np.arange(48)])
    again, history = fit_head(
        SHAPE, Examples(watched, draw(1, 48).labels), draw(2, 30), recipe(), work=tmp_path
    )
    assert_same(again, head)
    assert len(history["loss"]) == 3


def objective(labels: np.ndarray, loss: Any = None, **changes: Any) -> Any:
    model = build_head(SHAPE)
    return fit.objective_of(recipe(**changes), labels, model, loss)


LABELS = np.array([0] * 6 + [1] * 3 + [2], np.int32)  # ten images
LOGITS = np.random.default_rng(0).normal(0, 2, (10, 3)).astype(np.float32)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -(targets * log_softmax(logits.astype(np.float64), axis=1)).sum(axis=1)


def test_losses_are_those_of_the_formulas() -> None:
    one_hot = np.eye(3)[LABELS]
    share = np.array([0.6, 0.3, 0.1])
    wanted = {
        "plain": ({}, cross_entropy(LOGITS, one_hot)),
        "smoothing": ({"label_smoothing": 0.3}, cross_entropy(LOGITS, 0.7 * one_hot + 0.1)),
        "weights": (
            {"imbalance": "class_weights"},
            cross_entropy(LOGITS, one_hot) * (10 / 3 / np.array([6, 3, 1]))[LABELS],
        ),
        "adjusted": (
            {"imbalance": "logit_adjustment", "adjustment": 1.5},
            cross_entropy(LOGITS + 1.5 * np.log(share), one_hot),
        ),
    }
    for name, (changes, losses) in wanted.items():
        found = np.asarray(objective(LABELS, **changes)([LOGITS], LABELS))
        np.testing.assert_allclose(found, losses, rtol=1e-5, err_msg=name)


def test_class_weights_have_mean_one_over_the_images() -> None:
    ones = lambda outputs, *_: 0 * outputs[0][:, 0] + 1  # noqa: E731
    weights = np.asarray(objective(LABELS, ones, imbalance="class_weights")([LOGITS], LABELS))
    assert weights.mean() == pytest.approx(1)
    assert weights[[0, 6, 9]] == pytest.approx([10 / 18, 10 / 9, 10 / 3])


def test_standardized_heads_take_numbers_of_any_scale_and_offset() -> None:
    drawn, select = draw(1, 600), draw(3, 300)
    scale, offset = np.array([1, 30, 0.01, 1, 1, 5], np.float32), np.array([0, 900, 0, 3, 0, -50], np.float32)

    def moved(examples: Examples) -> Examples:
        return Examples((examples.bottlenecks[:] * scale + offset).astype(np.float16), examples.labels)

    shape = dataclasses.replace(SHAPE, scale=0.003, standardized=True)
    head, _ = fit_head(shape, moved(drawn), None, recipe(epochs=10))
    assert accuracy_and_loss(head, moved(select))[0] > 0.95
    mean, variance = head.model.get_layer("standard").get_weights()
    rows = moved(drawn).bottlenecks[:].astype(np.float64) * 0.003
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-3, atol=1e-9)


def test_balanced_sampling_draws_every_category_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [8000, 1900, 100])
    order = fit.order_of(np.random.default_rng(0), labels, recipe(imbalance="balanced"))
    assert len(order) == 10_000
    np.testing.assert_allclose(np.bincount(labels[order]) / 10_000, 1 / 3, atol=0.02)


def test_every_level_is_trained_and_the_finest_selects() -> None:
    drawn, select = draw(1, 400), draw(2, 100)
    parents = ((0, 0), (0, 0, 1))  # categories 0 and 1 lie under the same parent
    shape = dataclasses.replace(SHAPE, kind="multitask", parents=parents)

    def with_levels(examples: Examples) -> Examples:
        levels = np.stack([examples.labels == 2, examples.labels], axis=1).astype(np.int32)
        return Examples(examples.bottlenecks, levels)

    head, history = fit_head(shape, with_levels(drawn), with_levels(select), recipe(epochs=10))
    for logits, truth in zip(head.outputs(select.bottlenecks[:]), with_levels(select).labels.T, strict=True):
        assert (logits.argmax(axis=1) == truth).mean() > 0.95
    correct = head.logits(select.bottlenecks[:]).argmax(axis=1) == select.labels
    assert max(history["val_accuracy"]) == correct.mean()


def test_a_loss_of_the_callers_own_is_minimised() -> None:
    """A loss that is least for category 0, whatever the label."""
    head, _ = fit_head(
        SHAPE, draw(1, 96), None, recipe(), loss=lambda outputs, *_: -ops.log_softmax(outputs[0])[:, 0]
    )
    assert (head.logits(draw(2, 50).bottlenecks[:]).argmax(axis=1) == 0).all()


def test_wrong_labels_are_suspected() -> None:
    clean, noisy = draw(1, 600), draw(1, 600)
    wrong = np.random.default_rng(5).random(600) < 0.1
    noisy = Examples(clean.bottlenecks, (clean.labels + wrong) % 3)
    fold = np.arange(600) % 2 == 0
    found = fit.suspects(SHAPE, noisy, fold, recipe(epochs=10), share=wrong.mean())
    assert found.sum() == wrong.sum()
    assert wrong[found].mean() > 0.9


def test_images_of_a_category_that_one_half_lacks_are_not_suspected() -> None:
    clean, fold = draw(1, 300), np.arange(300) % 2 == 0
    labels = np.where((clean.labels == 2) & ~fold, 0, clean.labels)  # 2 is in one half only
    found = fit.suspects(SHAPE, Examples(clean.bottlenecks, labels), fold, recipe(epochs=10), share=0.1)
    assert found.sum() == 30
    assert not found[labels == 2].any()


def test_all_views_of_an_image_are_suspected_together() -> None:
    clean = draw(1, 300)
    labels = np.where(np.arange(300) < 20, (clean.labels + 1) % 3, clean.labels)
    noise = np.random.default_rng(2).normal(0, 0.1, clean.bottlenecks[:].shape)
    views = np.stack([clean.bottlenecks[:], clean.bottlenecks[:] + noise], axis=1).reshape(600, -1)
    examples = Examples(views.astype(np.float16), labels.repeat(2))
    fold = (np.arange(300) % 2 == 0).repeat(2)
    found = fit.suspects(SHAPE, examples, fold, recipe(epochs=10), share=20 / 300, views=2)
    assert found.sum() == 40
    assert (found[::2] == found[1::2]).all()
    assert found[::2][:20].mean() >= 0.9


def test_one_image_more_than_a_batch_does_no_harm() -> None:
    """Alone in a batch it would spoil the statistics of the batch normalization, and weigh as much as 64."""
    shape = dataclasses.replace(SHAPE, standardized=True)
    how = recipe(batch=64, epochs=60, momentum=0.9, schedule="cosine", learning_rate=0.05)
    correct = [
        accuracy_and_loss(fit_head(shape, draw(1, images, noise=0.6), None, how)[0], draw(3, 2000, noise=0.6))
        for images in (64, 65)
    ]
    assert correct[1][0] > correct[0][0] - 0.02


@pytest.mark.parametrize("select", [None, 60])
def test_a_training_that_diverges_is_reported_and_not_kept(select: int | None) -> None:
    fitting = draw(3, select) if select else None
    with pytest.raises(ShelfmarkError, match=r"the loss of epoch 1 is (nan|inf): .* lower learning_rate"):
        fit_head(SHAPE, draw(1, 96), fitting, recipe(learning_rate=1e30))


def test_in_bfloat16_the_head_is_still_of_float32_and_equally_accurate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, build = [], fit.build_head
    monkeypatch.setattr(fit, "build_head", lambda shape: built.append(build(shape)) or built[-1])
    head, _ = fit_head(SHAPE, draw(1, 600), None, recipe(epochs=10, bfloat16=True))
    assert [model.get_layer("hidden1").compute_dtype for model in built] == ["bfloat16", "float32"]
    assert {weight.dtype for weight in head.model.get_weights()} == {np.dtype(np.float32)}
    assert head.model.get_layer("hidden1").compute_dtype == "float32"
    assert accuracy_and_loss(head, draw(3, 300))[0] > 0.95


@pytest.mark.slow  # JAX compiles for half a minute
def test_with_jax_a_head_is_trained_continued_and_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="the backend is not installed")
    script = """
import sys, pathlib, keras
import test_training as t
train, select = t.draw(1, 256), t.draw(2, 64)
training = t.recipe(**t.EVERYTHING | t.window_by_window(train, 128) | {"epochs": 3})
wanted, history = t.fit_head(t.SHAPE, train, select, training)
work = pathlib.Path(sys.argv[1])
write = t.epochs.Epochs._write
def write_and_die(self, file):
    write(self, file)
    if self.done == 1: raise t.Killed
t.epochs.Epochs._write, t.epochs.REST = write_and_die, 0
try: t.fit_head(t.SHAPE, train, select, training, work=work)
except t.Killed: pass
found, _ = t.fit_head(t.SHAPE, train, select, training, work=work)
t.assert_same(found, wanted)
assert keras.backend.backend() == "jax" and t.accuracy_and_loss(found, t.draw(3, 300))[0] > 0.9
"""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": f"{here}:{here.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# Which epoch is kept


class Counted:
    """A model whose weights are the number of the epoch."""

    variables: tuple[()] = ()

    def __init__(self) -> None:
        self.epoch = 0

    def get_weights(self) -> int:
        return self.epoch


@pytest.mark.parametrize(
    ("annealed", "images", "kept"),
    [
        (False, 100, 1),  # the best
        (True, 100, 3),  # 0.80 ± 0.04: epochs 1 and 3 are as good, 4 is not
        (True, 10_000, 1),  # 0.80 ± 0.004
    ],
)
def test_with_a_falling_rate_the_latest_epoch_within_a_standard_error_of_the_best_is_kept(
    annealed: bool, images: int, kept: int
) -> None:
    model = Counted()
    kept_epochs = epochs.Epochs(model, Counted(), None, annealed)
    for epoch, accuracy in enumerate((0.6, 0.8, 0.7, 0.77, 0.75)):
        model.epoch = epoch
        correct = np.arange(images) < accuracy * images
        kept_epochs.end_epoch([np.ones(3)], np.stack([np.ones(images), correct]))
    assert kept_epochs.best == kept
    assert kept_epochs.waited == 3
