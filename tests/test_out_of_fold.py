"""Out-of-fold confidences: each from a model that does not know the product's own outcome."""

import generators as draw
import numpy as np
import pytest

from models.decisions.confidence import ConfidenceModel, Evidence, fit_confidence
from models.decisions.out_of_fold import folds, out_of_fold


@pytest.fixture(scope="module")
def products() -> tuple[Evidence, np.ndarray, np.ndarray]:
    evidence, correct = draw.shop_products(np.random.default_rng(1), draw.SHOPS["shop"], 200)
    group = np.array([f"group{row // 2}" for row in range(200)], dtype=object)
    return evidence, correct, group


def test_own_outcome_changes_nothing(products: tuple[Evidence, np.ndarray, np.ndarray]) -> None:
    evidence, correct, group = products
    model = fit_confidence(evidence, correct)
    before = out_of_fold(evidence, correct, group, model)
    own = folds(group) == folds(group)[17]
    other = np.where(own, ~correct, correct)  # those of the whole fold, near-duplicates included
    after = out_of_fold(evidence, other, group, model)
    np.testing.assert_array_equal(after[own], before[own])
    assert (after[~own] != before[~own]).any()


def test_the_fitted_model_is_surer_of_its_own_products(
    products: tuple[Evidence, np.ndarray, np.ndarray],
) -> None:
    evidence, correct, group = products
    model = fit_confidence(evidence, correct)
    confidences = model.confidence(evidence), out_of_fold(evidence, correct, group, model)
    fitted, left_out = (np.mean((confidence - correct) ** 2) for confidence in confidences)
    assert fitted < left_out < 0.25


def test_row_order_changes_nothing(products: tuple[Evidence, np.ndarray, np.ndarray]) -> None:
    evidence, correct, group = products
    model, order = fit_confidence(evidence, correct), np.random.default_rng(2).permutation(200)
    again = out_of_fold(evidence.only(order), correct[order], group[order], model)
    np.testing.assert_array_equal(again, out_of_fold(evidence, correct, group, model)[order])


def test_a_group_is_in_one_fold_and_all_folds_are_used(
    products: tuple[Evidence, np.ndarray, np.ndarray],
) -> None:
    fold = folds(products[2])
    np.testing.assert_array_equal(fold[::2], fold[1::2])
    assert set(fold.tolist()) == {0, 1, 2, 3, 4}
    many = folds(np.arange(50_000))
    assert set(many.tolist()) == {0, 1}


@pytest.mark.parametrize("count", [20, 33])
def test_too_few_products_have_the_confidence_of_the_model(
    products: tuple[Evidence, np.ndarray, np.ndarray], count: int
) -> None:
    """20 fit no model at all; 33 fit one, but four fifths of them do not, and p1 is on another scale."""
    chosen = slice(0, count)
    evidence, correct, group = products[0].only(chosen), products[1][chosen], products[2][chosen]
    model = fit_confidence(evidence, correct)
    assert model.kind == ("probability" if count < 30 else "logistic")
    np.testing.assert_array_equal(out_of_fold(evidence, correct, group, model), model.confidence(evidence))


def test_model_is_fitted_as_wanted(products: tuple[Evidence, np.ndarray, np.ndarray]) -> None:
    evidence, correct, group = products
    kinds = []

    def fit(of: Evidence, outcome: np.ndarray, kind: str) -> ConfidenceModel:
        kinds.append(kind)
        return fit_confidence(of, outcome)

    out_of_fold(evidence, correct, group, fit_confidence(evidence, correct), "boosting", fit)  # type: ignore[arg-type]
    assert kinds == ["boosting"] * 5
