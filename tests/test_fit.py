"""Training: the paper's schedule, every image once an epoch, the best epoch kept, one head from one seed."""

import hashlib
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from models.fit import Examples, Recipe, fit_head, inverse_time_decay
from models.head import Head, HeadShape, load_head

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SHAPE = HeadShape(width=6, categories=3, hidden=(16, 8), dropout=0.2, scale=1.0, fingerprint="")


def recipe(**changes: float) -> Recipe:
    told = {"batch": 16, "learning_rate": 0.1, "decay": 7e-5, "epochs": 3, "patience": 100, "seed": 1}
    return Recipe(**told | changes)  # type: ignore[arg-type]


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


def test_training_obeys_the_schedule() -> None:
    """At the decay as it is printed, 7·10⁵, the rate is gone after one step: more epochs change nothing."""
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


def test_separable_images_are_learnt() -> None:
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
    """Bottlenecks that remember which rows were asked for."""

    def __init__(self, bottlenecks: np.ndarray) -> None:
        self.bottlenecks, self.asked = bottlenecks, list[list[int]]()

    def __len__(self) -> int:
        return len(self.bottlenecks)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(rows.tolist())
        return self.bottlenecks[rows]


def test_every_image_is_visited_once_an_epoch_in_an_order_of_its_own() -> None:
    plain = draw(1, 50)
    watched = Watched(plain.bottlenecks[np.arange(50)])
    fit_head(SHAPE, Examples(watched, plain.labels), None, recipe(epochs=3, batch=16))
    batches = watched.asked[-12:]  # before them Keras takes a look or two
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 3
    epochs = [list(itertools.chain(*batches[start : start + 4])) for start in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
