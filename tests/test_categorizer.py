"""Decisions: accepted from the threshold on, and one row for every product."""

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import conftest
import numpy as np
import pandas as pd
import pytest
from photos_alone import categorize_photos
from PIL import Image

from features.engines.backbones import Backbone
from features.engines.choose import choose_engine
from features.engines.engine import Engine, extract
from features.errors import ShelfmarkError
from features.images.refusal import Limits
from features.records import pieces_of
from features.views import WHOLE
from models.decisions.bundle import open_bundle
from models.decisions.categorizer import (
    COLUMNS,
    Categorizer,
    LevelRule,
    unreadable,
)
from models.decisions.confidence import ConfidenceModel
from models.heads.architectures import Head


class Echo:
    """A head whose logits are its bottlenecks."""

    shape = SimpleNamespace(views=("whole",))

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        return [bottlenecks.astype(np.float32)]


@pytest.fixture
def bundled(bundle_path: Path) -> Categorizer:
    return open_bundle(bundle_path).categorizer


@pytest.fixture(scope="module")
def engine(mobilenet: Backbone) -> Engine:
    return choose_engine(mobilenet, batch=2, engine="tensorflow")


@pytest.fixture
def echo(bundled: Categorizer) -> Categorizer:
    """Confidence is the largest probability; what goes in are logits of the six categories."""
    return dataclasses.replace(bundled, predictor=dataclasses.replace(bundled.predictor, head=Echo()))


def with_threshold(categorizer: Categorizer, threshold: float | None) -> Categorizer:
    certificate = dataclasses.replace(categorizer.rules.certificate, threshold=threshold)
    return dataclasses.replace(
        categorizer, rules=dataclasses.replace(categorizer.rules, certificate=certificate)
    )


def with_parents(categorizer: Categorizer, threshold: float) -> Categorizer:
    """Nodes above the categories are decided, too, from this probability on."""
    confidence = ConfidenceModel("probability", 0, "drawn")
    certificate = dataclasses.replace(categorizer.rules.certificate, threshold=threshold)
    levels = {"level1": LevelRule(confidence, certificate)}
    return dataclasses.replace(categorizer, rules=dataclasses.replace(categorizer.rules, levels=levels))


def logits_of(*probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float64)).astype(np.float32)


def decide(categorizer: Categorizer, logits: np.ndarray, bounds: list[int] | None = None) -> pd.DataFrame:
    edges = np.arange(len(logits) + 1) if bounds is None else np.array(bounds)
    product_id = np.array([f"p{number}" for number in range(len(edges) - 1)], dtype=object)
    return categorizer.decide(product_id, categorizer.predict(logits, edges))


def test_decision_has_the_category_and_its_level(echo: Categorizer) -> None:
    table = decide(echo, logits_of([0.05, 0.05, 0.6, 0.2, 0.06, 0.04], [0.3, 0.1, 0.2, 0.1, 0.1, 0.2]))
    assert tuple(table.columns) == COLUMNS
    accepted, review = table.astype(object).where(table.notna(), None).to_dict("records")
    assert accepted == {
        "product_id": "p0",
        "category": "milk",
        "category_path": "food / milk",
        "confidence": pytest.approx(0.6, abs=1e-6),
        "status": "accepted",
        "node": "milk",
        "node_path": "food / milk",
        "node_level": 2,
        "top_categories": ["milk", "oats", "pear", "apple", "leek"],
        "top_probabilities": pytest.approx([0.6, 0.2, 0.06, 0.05, 0.05], abs=1e-6),
        "views": "whole",
        "release": "bundle",
    }
    assert (review["status"], review["category_path"]) == ("review", "food / apple")
    assert review["node"] is review["node_path"] is review["node_level"] is None


def test_a_product_below_the_threshold_of_its_category_may_get_its_parent(echo: Categorizer) -> None:
    """Milk at 0.4 is not accepted, food at 0.9 is; of soap, the home has no more than soap itself."""
    table = decide(with_parents(echo, 0.8), logits_of([0.2, 0.1, 0.4, 0.1, 0.1, 0.1], [0.1] * 5 + [0.45]))
    parent, review = table.astype(object).where(table.notna(), None).to_dict("records")
    names = ("category", "status", "node", "node_path", "node_level")
    assert [parent[name] for name in names] == ["milk", "parent", "food", "food", 1]
    assert parent["confidence"] == pytest.approx(0.4, abs=1e-6)
    assert [review[name] for name in names] == ["soap", "review", None, None, None]


def test_types_are_the_documented_ones(echo: Categorizer) -> None:
    tables = [
        decide(echo, logits_of([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])),
        decide(echo, np.zeros((0, 6))),
        unreadable(["p"]),
    ]
    for table in tables:
        assert tuple(table.columns) == COLUMNS
        assert table["confidence"].dtype == "float64"
        assert table["node_level"].dtype == "Int32"
        assert table["category"].dtype == object


def test_accepted_are_exactly_those_from_the_threshold_on(echo: Categorizer) -> None:
    logits = np.random.default_rng(1).normal(0, 1.5, (200, 6)).astype(np.float32)
    confidence = decide(echo, logits)["confidence"]
    threshold = float(np.sort(confidence)[120])  # the confidence of one of them
    table = decide(with_threshold(echo, threshold), logits)
    assert table["status"].tolist() == np.where(confidence >= threshold, "accepted", "review").tolist()
    assert (table["status"] == "accepted").sum() == 80
    assert table["node"].notna().tolist() == (table["status"] == "accepted").tolist()


def test_without_a_certificate_everything_goes_to_review(echo: Categorizer) -> None:
    table = decide(with_threshold(echo, None), logits_of([1 - 5e-9, *[1e-9] * 5]))
    assert table["confidence"].tolist() == [1.0]
    assert table["status"].tolist() == ["review"]
    assert table["node"].isna().all()
    assert table["node_level"].isna().all()


def test_product_is_decided_by_the_mean_of_its_photos(echo: Categorizer) -> None:
    table = decide(
        echo, logits_of([0.9, 0.02, 0.02, 0.02, 0.02, 0.02], [0.2, 0.7, 0.025, 0.025, 0.025, 0.025]), [0, 2]
    )
    assert table["category"].tolist() == ["apple"]
    assert table["confidence"].tolist() == pytest.approx([0.55], abs=1e-6)
    assert table["top_probabilities"].tolist() == [
        pytest.approx([0.55, 0.36, 0.0225, 0.0225, 0.0225], abs=1e-6)
    ]


def test_calibrated_temperature_is_used(echo: Categorizer) -> None:
    hot = dataclasses.replace(echo, rules=dataclasses.replace(echo.rules, temperature=2.0))
    logits = logits_of([0.64, 0.16, 0.05, 0.05, 0.05, 0.05])
    roots = np.sqrt([0.64, 0.16, 0.05, 0.05, 0.05, 0.05])
    assert decide(hot, logits)["confidence"].tolist() == pytest.approx([0.8 / roots.sum()], abs=2e-6)


def test_confidence_is_that_of_the_model_not_the_probability(echo: Categorizer) -> None:
    """Log odds of 1 on log(1 + training products of the category), nothing else."""
    zeros = dict.fromkeys(
        ["logit_p1", "log_p1_over_p2", "entropy", "logit_parent_mass", "log_category_size", "log_images"], 0.0
    )
    model = ConfidenceModel(
        "logistic",
        100,
        coefficient=zeros | {"log_category_size": 1.0},
        mean=zeros,
        scale=dict.fromkeys(zeros, 1.0),
    )
    sized = dataclasses.replace(echo, rules=dataclasses.replace(echo.rules, confidence=model))
    table = decide(sized, np.eye(6, dtype=np.float32)[[0, 5]])
    assert table["confidence"].tolist() == pytest.approx([21 / 22, 26 / 27], abs=1e-6)


def test_thresholds_of_another_head_or_tree_are_refused(bundled: Categorizer) -> None:
    for column in ("model", "labels"):
        with pytest.raises(ShelfmarkError, match="thresholds of another head"):
            Categorizer(bundled.predictor, dataclasses.replace(bundled.rules, **{column: "0" * 64}))


def test_unreadable_products_have_a_row_each_and_no_category() -> None:
    table = unreadable(["a", "b"])
    assert table["product_id"].tolist() == ["a", "b"]
    assert table["status"].tolist() == ["unreadable", "unreadable"]
    assert table["confidence"].tolist() == [0.0, 0.0]
    nothing = ["category", "category_path", "node", "node_path", "node_level", "views"]
    assert table[nothing].isna().all(axis=None)
    assert table["top_categories"].tolist() == table["top_probabilities"].tolist() == [[], []]
    assert len(unreadable([])) == 0


def test_decisions_about_photos_are_those_about_their_bottlenecks(
    bundled: Categorizer, mobilenet: Backbone, engine: Engine, photo: conftest.Photo
) -> None:
    photos = [photo(seed) for seed in range(3)]
    table, refusals = categorize_photos(bundled, {WHOLE: engine}, "shoe-é", photos, Limits())
    assert refusals == [None, None, None]
    other = choose_engine(mobilenet, batch=4, engine="tensorflow")
    [bottlenecks] = extract(other, pieces_of(photos, "drawn"), 3)
    expected = bundled.decide(
        np.array(["shoe-é"], dtype=object), bundled.predict(bottlenecks, np.array([0, 3]))
    )
    pd.testing.assert_frame_equal(table, expected, rtol=1e-4)


# Views


class Corner:
    """An engine whose bottleneck is the colour of the upper left corner."""

    name, batch, size, width = "corner", 2, 8, 3

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        for number, pixels in enumerate(batches):
            rows[2 * number : 2 * number + 2] = pixels[:, 0, 0, :]


def seeing(categorizer: Categorizer, views: tuple[str, ...], averaged: bool = False) -> Categorizer:
    """The categorizer with a head that predicts from these views."""
    head = categorizer.predictor.head
    shape = dataclasses.replace(head.shape, views=views, averaged=averaged)
    predictor = dataclasses.replace(categorizer.predictor, head=Head(shape, head.weights))
    return dataclasses.replace(categorizer, predictor=predictor)


A, B, C, D = ([grey] * 3 for grey in (200, 50, 100, 150))  # the halves of two photos


@pytest.mark.parametrize(
    ("views", "averaged", "rows"),
    [
        (("whole",), False, [A, C]),
        (("whole", "flip"), False, [A, B, C, D]),
        (("flip", "40-top-right", "40-top-left"), False, [B, B, A, D, D, C]),
        (("whole", "40-top-right-flip"), False, [A, B, C, D]),
        (("whole", "flip"), True, [[125] * 3, [125] * 3]),
        (("whole", "whole", "flip"), True, [[150] * 3, [350 / 3] * 3]),
    ],
)
def test_a_head_predicts_from_the_views_of_each_photo_or_from_their_mean(
    bundled: Categorizer,
    views: tuple[str, ...],
    averaged: bool,
    rows: list[list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[np.ndarray, list[int]]] = []

    def predict(self: Categorizer, bottlenecks: np.ndarray, bounds: np.ndarray) -> object:
        calls.append((bottlenecks, bounds.tolist()))
        return original(self, np.zeros((len(bottlenecks), bundled.predictor.head.shape.width)), bounds)

    original = Categorizer.predict
    monkeypatch.setattr(Categorizer, "predict", predict)
    categorizer = seeing(bundled, views, averaged)
    photos = [two_halves((200, 200, 200), (50, 50, 50)), two_halves((100, 100, 100), (150, 150, 150))]
    table, refused = categorize_photos(categorizer, {WHOLE: Corner()}, "a", photos, Limits())
    ((bottlenecks, bounds),) = calls
    np.testing.assert_allclose(bottlenecks, rows, atol=5)  # JPEG
    assert bounds == [0, len(rows)]
    assert (len(table), refused) == (1, [None, None])


def two_halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> bytes:
    """A PNG of 64 px."""
    image = Image.new("RGB", (64, 64), left)
    image.paste(right, (32, 0, 64, 64))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
