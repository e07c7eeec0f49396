"""How a product's images are made one is chosen on FIT; the bundle keeps it for batch and HTTP."""

import dataclasses
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest

from features.errors import ShelfmarkError
from models.decisions.bundle import load_predictor, open_bundle
from models.decisions.categorizer import Categorizer, Predictor
from models.heads.architectures import SET_FILES, Head, HeadShape, build_head, set_logits
from pipeline.train.calibrate import choose_aggregation

PRODUCTS = 200


class Echo:
    """A head whose logits are its bottlenecks."""

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        return [bottlenecks]

    def logits(self, bottlenecks: np.ndarray) -> np.ndarray:
        return bottlenecks


@pytest.fixture
def predictor(bundle_path: Path) -> Predictor:
    return dataclasses.replace(load_predictor(bundle_path), head=Echo())  # type: ignore[arg-type]


def with_set_head(predictor: Predictor, images: int) -> Predictor:
    """A set head that knows the first number of a bottleneck for the category."""
    shape = HeadShape(6, 6, (6, 1), 0.0, 1.0, "", kind="set", images=images)
    model = build_head(shape)
    as_it_is = [np.ones(6), np.zeros(6), np.zeros(6), np.full(6, 0.999)]  # of the batch normalization
    model.set_weights([np.eye(6), np.zeros(6), *as_it_is, 20 * np.eye(6), np.zeros(6)])
    return dataclasses.replace(predictor, set_head=Head.of(shape, model))


def sure_of_one_image() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One photo of three shows the product, the other two its box: these lean to a category by chance."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, PRODUCTS)
    logits = rng.normal(0, 0.4, (PRODUCTS, 3, 6))
    logits[np.arange(PRODUCTS), 1:, rng.integers(0, 6, PRODUCTS)] += 2.2
    logits[np.arange(PRODUCTS), 0, truth] += 3.0
    return logits.reshape(-1, 6).astype(np.float32), np.arange(0, 3 * PRODUCTS + 1, 3), truth


def never_ruled_out() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each photo is sure of another wrong category, and only the right one is never ruled out."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 6, PRODUCTS)
    logits = rng.normal(-4, 0.4, (PRODUCTS, 3, 6))
    for image in range(3):
        logits[np.arange(PRODUCTS), image, (truth + 1 + image) % 6] = 1.5
    logits[np.arange(PRODUCTS), :, truth] = 0.5
    return logits.reshape(-1, 6).astype(np.float32), np.arange(0, 3 * PRODUCTS + 1, 3), truth


@pytest.mark.parametrize(
    ("draw", "best"), [(sure_of_one_image, "max"), (never_ruled_out, "geometric")], ids=["max", "geometric"]
)
def test_auto_takes_what_is_most_often_correct_on_fit(predictor: Predictor, draw: Any, best: str) -> None:
    assert choose_aggregation(predictor, *draw(), "auto")[0] == best


def test_a_required_aggregation_is_taken_with_its_own_temperature(predictor: Predictor) -> None:
    values = {
        required: choose_aggregation(predictor, *sure_of_one_image(), required)
        for required in ("mean", "geometric", "max")
    }
    assert [name for name, _ in values.values()] == ["mean", "geometric", "max"]
    assert len({temperature for _, temperature in values.values()}) == 3


def test_products_of_one_image_take_the_mean_which_is_all_the_same(predictor: Predictor) -> None:
    logits, _, truth = sure_of_one_image()
    assert choose_aggregation(predictor, logits[::3], np.arange(PRODUCTS + 1), truth, "auto")[0] == "mean"


def test_without_fit_there_is_nothing_to_choose_by(predictor: Predictor) -> None:
    nothing = np.zeros((0, 6), np.float32), np.zeros(1, int), np.zeros(0, int)
    assert choose_aggregation(predictor, *nothing, "auto") == ("mean", 1.0)
    assert choose_aggregation(predictor, *nothing, "max") == ("max", 1.0)


def test_set_head_is_chosen_where_it_is_better(predictor: Predictor) -> None:
    """One photo has a little more of the truth than of all others, the next one is sure of something else."""
    truth = np.arange(PRODUCTS) % 6
    logits = np.zeros((PRODUCTS, 2, 6), np.float32)
    logits[:, 0] = 5.0
    logits[np.arange(PRODUCTS), 0, truth] = 5.5
    logits[np.arange(PRODUCTS), 1, (truth + 1) % 6] = 3.0
    drawn = logits.reshape(-1, 6), np.arange(0, 2 * PRODUCTS + 1, 2), truth
    assert choose_aggregation(with_set_head(predictor, 2), *drawn, "auto")[0] == "set"
    assert choose_aggregation(with_set_head(predictor, 2), *drawn, "mean")[0] == "mean"


def test_set_head_decides_about_products_and_the_categorizer_asks_it(
    bundle_path: Path, predictor: Predictor
) -> None:
    rules = dataclasses.replace(open_bundle(bundle_path).categorizer.rules, aggregation="set")
    together = with_set_head(predictor, 2)
    logits = np.random.default_rng(3).uniform(0, 1, (7, 6)).astype(np.float32)
    bounds = np.array([0, 1, 3, 6, 7])  # of the third product's three images the first two are read
    answers = Categorizer(together, rules).predict(logits, bounds)
    largest = [logits[0], logits[1:3].max(axis=0), logits[3:5].max(axis=0), logits[6]]
    assert answers.top[:, 0].tolist() == np.argmax(largest, axis=1).tolist()
    assert answers.images.tolist() == [1, 2, 3, 1]
    assert together.set_head is not None
    np.testing.assert_allclose(
        set_logits(together.set_head, logits, bounds), 20 * np.array(largest), rtol=1e-5
    )


def test_rules_of_a_set_head_without_one_are_refused(bundle_path: Path, predictor: Predictor) -> None:
    rules = dataclasses.replace(open_bundle(bundle_path).categorizer.rules, aggregation="set")
    with pytest.raises(ShelfmarkError, match=r"set\.json is missing"):
        Categorizer(predictor, rules)


def test_rules_of_an_older_release_take_the_mean(bundle_path: Path) -> None:
    rules = open_bundle(bundle_path).categorizer.rules
    found = rules.to_dict()
    del found["aggregation"]
    assert type(rules).from_dict(found).aggregation == "mean"


def test_set_head_is_part_of_the_model_that_thresholds_belong_to(bundle_path: Path, tmp_path: Path) -> None:
    plain = load_predictor(bundle_path)
    assert plain.set_head is None
    for file in bundle_path.iterdir():
        if file.suffix in (".json", ".h5", ".npy", ".csv"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    width = plain.head.shape.width
    shape = HeadShape(width, len(conftest.TREE), (4, 1), 0.0, 1.0, "", kind="set", images=2)
    Head.of(shape, build_head(shape)).save(tmp_path)
    assert set(SET_FILES) <= {file.name for file in tmp_path.iterdir()}
    again = load_predictor(tmp_path)
    assert again.set_head is not None and again.set_head.shape == shape
    assert again.model != plain.model
