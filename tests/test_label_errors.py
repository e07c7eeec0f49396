"""Labels in doubt: drawn catalogues with known wrong labels, and formulas on the whole matrix."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.decisions import label_errors
from models.decisions.confidence import product_probabilities
from models.decisions.label_errors import (
    LabelEvidence,
    confident_categories,
    doubts,
    estimate_noise,
    label_evidence,
)
from models.decisions.predictions import predict
from models.decisions.validation_split import folds_of
from models.heads.architectures import HeadShape
from models.heads.training import Examples, Recipe, held_out_heads
from models.taxonomy import Taxonomy

CATEGORIES, WIDTH, PRODUCTS = 40, 24, 4000


def evidence_of(probability: np.ndarray, given: np.ndarray) -> LabelEvidence:
    """From the whole (n, C) matrix."""
    top = np.argsort(-probability, axis=1, kind="stable")[:, :5].astype(np.int32)
    own = probability[np.arange(len(given)), given]
    return LabelEvidence(given, own, top, np.take_along_axis(probability, top, axis=1))


def drawn(share: float, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bottlenecks, labels, and which of these are wrong: half of them fall onto a category nearby."""
    world, rng = np.random.default_rng(1), np.random.default_rng(seed)
    parent = np.arange(CATEGORIES) // 4
    centre = world.normal(size=(CATEGORIES // 4, WIDTH))[parent] + 0.8 * world.normal(
        size=(CATEGORIES, WIDTH)
    )
    truth = rng.choice(CATEGORIES, PRODUCTS, p=(w := 1 / (np.arange(CATEGORIES) + 5.0)) / w.sum())
    wrong = rng.random(PRODUCTS) < share
    far = (truth + rng.integers(1, CATEGORIES, PRODUCTS)) % CATEGORIES
    near = 4 * (truth // 4) + (truth + rng.integers(1, 4, PRODUCTS)) % 4
    label = np.where(wrong, np.where(rng.random(PRODUCTS) < 0.5, near, far), truth)
    return (centre[truth] + spread * rng.normal(size=(PRODUCTS, WIDTH))).astype(np.float16), label, wrong


def out_of_fold(bottlenecks: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(n, C) probabilities by heads that were not trained on the product."""
    shape = HeadShape(WIDTH, CATEGORIES, (64, 64), 0.0, 1.0, "", standardized=True)
    how = Recipe(batch=64, learning_rate=0.05, decay=0, epochs=8, patience=8, seed=0, momentum=0.9, mixup=1.0)
    fold = folds_of(np.array([f"group {row}" for row in range(len(label))], dtype=object), 2)
    found = np.zeros((len(label), CATEGORIES))
    for head, held_out in held_out_heads(shape, Examples(bottlenecks, label), fold, how):
        logits = head.logits(bottlenecks[held_out])
        found[held_out] = product_probabilities(logits, np.ones(len(logits), int), 1.0)
    return found


@pytest.fixture(scope="module")
def tenth(quiet_tensorflow: None) -> SimpleNamespace:
    """A catalogue in which one label in ten is wrong."""
    bottlenecks, label, wrong = drawn(0.1)
    probability = out_of_fold(bottlenecks, label)
    return SimpleNamespace(label=label, wrong=wrong, probability=probability)


# Ranking


def precision_at(score: np.ndarray, wrong: np.ndarray, share: float) -> float:
    """Of the products with the lowest scores, the share of really wrong labels."""
    return float(wrong[np.argsort(score, kind="stable")[: round(share * len(wrong))]].mean())


def test_of_the_first_suspects_four_in_five_are_wrong_and_as_many_as_in_cleanlabs_order(tenth: Any) -> None:
    """cleanlab.rank: self_confidence is p(given), normalized_margin p(given) - the largest other p."""
    label, probability, wrong = tenth.label, tenth.probability, tenth.wrong
    own = probability[np.arange(len(label)), label]
    others = np.where(np.arange(CATEGORIES) == label[:, None], -1, probability)
    evidence = evidence_of(probability, label)
    ours = np.where(evidence.disagrees, evidence.probability, 1)
    assert precision_at(ours, wrong, 0.05) >= 0.8
    for share in (0.02, 0.05):
        assert precision_at(ours, wrong, share) >= precision_at(own, wrong, share)
        assert precision_at(ours, wrong, share) >= precision_at(own - others.max(axis=1), wrong, share)


def test_the_proposals_are_correct_at_least_as_often_as_their_confidence_says(tenth: Any) -> None:
    evidence = evidence_of(tenth.probability, tenth.label)
    truth = drawn(0.0)[1]  # the same products with their true categories
    assert (truth[~tenth.wrong] == tenth.label[~tenth.wrong]).all()
    _, confidence = doubts(evidence, estimate_noise(evidence).share)
    for low in (0.3, 0.5, 0.7, 0.9):
        some = confidence >= low
        assert some.sum() > 20
        assert (evidence.top[some, 0] == truth[some]).mean() >= confidence[some].mean() - 0.03


def test_without_wrong_labels_hardly_any_is_suspected(quiet_tensorflow: None) -> None:
    bottlenecks, label, _ = drawn(0.0)
    evidence = evidence_of(out_of_fold(bottlenecks, label), label)
    share = estimate_noise(evidence).share
    assert share < 0.01
    assert (doubts(evidence, share)[1] >= 0.3).mean() < 0.005


def test_doubts_have_the_estimated_share_as_their_mean_and_the_order_of_the_labels_probability() -> None:
    rng = np.random.default_rng(0)
    evidence = evidence_of(rng.dirichlet(np.full(8, 0.3), 500), rng.integers(0, 8, 500))
    wrong, confidence = doubts(evidence, 0.2)
    assert label_errors._wrong(evidence.probability, 0.2).mean() == pytest.approx(0.2, abs=1e-6)
    some = evidence.disagrees
    assert (np.diff(wrong[some][np.argsort(evidence.probability[some])]) <= 0).all()
    assert not wrong[~some].any() and not confidence[~some].any()
    assert ((confidence <= wrong) & (wrong <= 1)).all()
    assert not np.any(doubts(evidence, 0.0))


# Noise


def test_the_share_of_wrong_labels_is_found(tenth: Any) -> None:
    found = estimate_noise(evidence_of(tenth.probability, tenth.label))
    assert found.most_confident == pytest.approx(tenth.wrong.mean(), abs=0.03)
    assert found.confident_joint > tenth.wrong.mean() - 0.02
    assert found.share == min(found.most_confident, found.confident_joint)


@pytest.mark.parametrize("seed", range(5))
def test_the_confident_joint_is_that_of_the_whole_matrix(seed: int) -> None:
    """Northcutt et al. 2021, equations 1 and 2, with loops; of five categories all are kept."""
    rng = np.random.default_rng(seed)
    given = np.append(np.arange(4), rng.integers(0, 4, 300))  # a fifth category has no product
    probability = rng.dirichlet(np.full(5, 0.4), len(given))
    mean = [probability[given == c, c].mean() if (given == c).any() else np.inf for c in range(5)]
    expected, joint = [], np.zeros((5, 5))
    for row, label in zip(probability, given.tolist(), strict=True):
        reached = [(row[c], c) for c in range(5) if row[c] >= mean[c]]
        expected.append(max(reached)[1] if reached else -1)
        if reached:
            joint[label, max(reached)[1]] += 1
    evidence = evidence_of(probability, given)
    assert confident_categories(evidence).tolist() == expected
    size = np.bincount(given, minlength=5)[:, None]
    calibrated = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1)
    off = (calibrated * size)[:4].sum() - np.trace(calibrated * size)
    assert estimate_noise(evidence).confident_joint == pytest.approx(off / len(given))


def test_noise_can_be_counted_among_some_products_and_of_none() -> None:
    rng = np.random.default_rng(3)
    given = rng.integers(0, 4, 400)
    probability = rng.dirichlet(np.full(4, 0.4), 400)
    evidence = evidence_of(probability, given)
    sure = confident_categories(evidence)
    agreeing = sure == given
    assert estimate_noise(evidence, agreeing).confident_joint == 0
    nobody = np.zeros(400, bool)
    assert estimate_noise(evidence, nobody) == estimate_noise(evidence)
    nothing = evidence_of(np.zeros((0, 5)), np.zeros(0, int))
    assert estimate_noise(nothing).share == 0
    assert [len(numbers) for numbers in doubts(nothing, 0.0)] == [0, 0]


# Evidence


class Echo:
    """A head whose logits are its bottlenecks."""

    def outputs(self, bottlenecks: np.ndarray) -> list[np.ndarray]:
        return [bottlenecks[:, :2], bottlenecks]


@pytest.mark.parametrize(("aggregation", "piece"), [("mean", 4), ("max", 4), ("mean", 8192)])
def test_evidence_is_that_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, aggregation: str, piece: int
) -> None:
    monkeypatch.setattr(label_errors, "PIECE", piece)
    names = np.array([f"c{number:02}" for number in range(12)], dtype=object)
    tree = Taxonomy(names, np.stack([np.repeat(["a", "b"], 6), names], axis=1))
    rng = np.random.default_rng(2)
    images = rng.integers(1, 4, 60)
    bounds = np.append(0, np.cumsum(images))
    logits = rng.normal(0, 2, (images.sum(), 12)).astype(np.float32)
    given = rng.integers(0, 12, 60)
    predictions = predict(Echo(), logits, bounds, tree, 1.3, aggregation)  # type: ignore[arg-type]
    predictor: Any = SimpleNamespace(head=Echo(), set_head=None)
    found = label_evidence(predictor, logits, bounds, given, predictions, 1.3, aggregation)
    whole = product_probabilities(logits, images, 1.3, aggregation)
    np.testing.assert_allclose(found.probability, whole[np.arange(60), given], rtol=1e-5)
    assert (found.top == predictions.top).all()
    assert not (found.top == given[:, None]).any(axis=1).all(), "some labels are none of the five"


def test_folds_are_of_groups_and_two_of_them_are_halves(tmp_path: Path) -> None:
    from models.decisions.validation_split import in_fit

    names = np.array([f"group {number // 2}" for number in range(2000)], dtype=object)
    assert (folds_of(names, 2) == 0).tolist() == in_fit(names, 0.5).tolist()
    five = folds_of(names, 5)
    assert (five[::2] == five[1::2]).all()
    assert np.bincount(five).min() > 300 and len(np.bincount(five)) == 5
