"""Baselines against scikit-learn and scikit-image on the same arrays."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import pieces_of
from models.heads import linear_svm
from models.heads.baselines import (
    PENALTIES,
    SIDE,
    choose_svm,
    fit_svms,
    hog_vectors,
    require_hog,
    trained_svms,
)
from models.heads.linear_svm import solve_svms


def draw(seed: int, images: int, noise: float = 1.0, categories: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 1, (categories, 12)) * np.arange(1, 13)
    labels = rng.integers(0, categories, images)
    rows = centres[labels] + rng.normal(0, noise, (images, 12)) * np.arange(1, 13)
    return rows.astype(np.float16), labels


@pytest.mark.parametrize("categories", [2, 4])
def test_decision_values_are_those_of_scikit_learn(categories: int) -> None:
    rows, labels = draw(1, 200, categories=categories)
    new, _ = draw(2, 50, categories=categories)
    ours = fit_svms(rows, labels, categories, (0.1,))[0]
    theirs = make_pipeline(StandardScaler(), LinearSVC(C=0.1, random_state=0)).fit(
        rows.astype(np.float64), labels
    )
    values = theirs.decision_function(new.astype(np.float64))
    if categories == 2:
        values = np.stack([-values, values], axis=1)
    np.testing.assert_allclose(ours.logits(new), values, atol=2e-3)
    assert ours.parameters == categories * 13


@pytest.mark.parametrize("numbers", [20, 300])
def test_predictions_of_every_penalty_are_those_of_scikit_learn(numbers: int) -> None:
    """With fewer and with more numbers than rows, many categories, and numbers that depend on each other."""
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.arange(30), rng.integers(0, 30, 210)])
    mixed = rng.normal(0, 1, (numbers, numbers)) * np.geomspace(1, 0.01, numbers)
    centres, new_labels = rng.normal(0, 1, (30, numbers)), rng.integers(0, 30, 500)
    rows, new = ((centres[of] + rng.normal(0, 1, (len(of), numbers))) @ mixed for of in (labels, new_labels))
    rows, new = (array.astype(np.float16) for array in (rows, new))
    scale = StandardScaler().fit(rows.astype(np.float64))
    for svm, penalty in zip(fit_svms(rows, labels, 30, PENALTIES), PENALTIES, strict=True):
        theirs = LinearSVC(C=penalty, random_state=0, tol=1e-8, max_iter=100_000)
        theirs.fit(scale.transform(rows.astype(np.float64)), labels)
        expected = theirs.predict(scale.transform(new.astype(np.float64)))
        np.testing.assert_array_equal(svm.logits(new).argmax(axis=1), expected)
        np.testing.assert_allclose(svm.kernel, theirs.coef_.T, atol=1e-4)


def test_categories_solved_apart_or_together_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = draw(1, 200)
    together, done = solve_svms(rows, labels, PENALTIES), []
    monkeypatch.setattr(linear_svm, "NUMBERS", 1)
    for one, other in zip(together, solve_svms(rows, labels, PENALTIES, done.append), strict=True):
        np.testing.assert_allclose(one, other, atol=2 * linear_svm.TOLERANCE)
    assert done == sorted(done)
    assert set(done) == set(range(13))


def test_the_gradient_is_zero_at_the_solution() -> None:
    rows, labels = draw(1, 200)
    data = np.hstack([rows, np.ones((200, 1))])
    for weights, penalty in zip(solve_svms(rows, labels, PENALTIES), PENALTIES, strict=True):
        y = np.where(labels[:, None] == np.arange(4), 1, -1)
        gradient = weights - 2 * penalty * data.T @ (y * np.maximum(0, 1 - y * (data @ weights)))
        assert np.linalg.norm(gradient, axis=0).max() < 1.1 * linear_svm.TOLERANCE


def test_rows_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        solve_svms(np.full((4, 2), np.inf), np.array([0, 1, 0, 1]), (0.1,))


def test_penalty_is_the_best_one_on_fit() -> None:
    rows, labels = draw(1, 60, noise=2.0)
    fit, fit_labels = draw(2, 300, noise=2.0)
    svm, penalty = choose_svm(rows, labels, fit, fit_labels, 4)
    correct = [
        np.mean(each.logits(fit).argmax(axis=1) == fit_labels)
        for each in fit_svms(rows, labels, 4, PENALTIES)
    ]
    assert penalty == PENALTIES[int(np.argmax(correct))]
    assert np.mean(svm.logits(fit).argmax(axis=1) == fit_labels) == max(correct)


def test_without_fit_the_penalty_is_the_middle_one() -> None:
    rows, labels = draw(1, 60)
    assert choose_svm(rows, labels, rows[:0], labels[:0], 4)[1] == 0.01


def test_progress_counts_the_svms_of_all_penalties() -> None:
    rows, labels = draw(1, 60)
    for fit in (0, 60):
        done: list[int] = []
        choose_svm(rows, labels, rows[:fit], labels[:fit], 4, done.append)
        assert done[-1] == trained_svms(labels, labels[:fit]) == (12 if fit else 4)


def test_a_category_without_training_images_is_never_predicted() -> None:
    rows, labels = draw(1, 120)
    svm = fit_svms(rows, labels * 2, 8)[0]  # 1, 3, 5, 7 have none
    values = svm.logits(rows)
    assert values.shape == (120, 8)
    assert set(values.argmax(axis=1)) <= {0, 2, 4, 6}


def test_a_number_that_never_changes_does_no_harm() -> None:
    rows, labels = draw(1, 60)
    rows[:, 3] = 7
    assert np.isfinite(fit_svms(rows, labels, 4)[0].logits(rows)).all()


def test_one_category_is_refused() -> None:
    with pytest.raises(ShelfmarkError, match=r"one category; .* raise compare.svm_products"):
        fit_svms(np.ones((10, 3), np.float16), np.zeros(10, int), 4)


def test_hog_is_that_of_scikit_image() -> None:
    feature = pytest.importorskip("skimage.feature", reason="the extra 'compare' is not installed")
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    expected = feature.hog(grey, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2))
    vectors = hog_vectors([np.stack([grey] * 3, axis=-1)[None]], 1)
    assert (vectors.shape, vectors.dtype) == ((1, 1764), np.float16)
    np.testing.assert_allclose(vectors[0], expected, atol=1e-3)


def test_hog_takes_colour_and_any_size_and_leaves_out_what_fills_the_last_batch(photo) -> None:
    pytest.importorskip("skimage.feature", reason="the extra 'compare' is not installed")
    jpegs = [photo(1, 300, 70), photo(2, 20, 500), photo(3, mode="L")]
    vectors = hog_vectors(read_pixels(pieces_of(jpegs, "test"), SIDE, batch=2), 3)
    assert vectors.shape == (3, 1764)
    assert np.isfinite(vectors).all() and (vectors > 0).any(axis=1).all()
    assert hog_vectors([], 0).shape == (0, 1764)


def test_missing_scikit_image_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.feature", None)
    with pytest.raises(ShelfmarkError, match=r"pip install 'shelfmark\[compare\]'"):
        require_hog()
