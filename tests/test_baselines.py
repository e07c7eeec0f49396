"""Baselines against scikit-learn and scikit-image on the same arrays."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import pieces_of
from models.heads.baselines import PENALTIES, SIDE, choose_svm, fit_svm, hog_vectors, require_hog


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
    ours = fit_svm(rows, labels, categories, seed=0, penalty=0.1)
    theirs = make_pipeline(StandardScaler(), LinearSVC(C=0.1, random_state=0)).fit(
        rows.astype(np.float64), labels
    )
    values = theirs.decision_function(new.astype(np.float64))
    if categories == 2:
        values = np.stack([-values, values], axis=1)
    np.testing.assert_allclose(ours.logits(new), values, atol=2e-3)
    assert ours.parameters == categories * 13


def test_penalty_is_the_best_one_on_fit() -> None:
    rows, labels = draw(1, 60, noise=2.0)
    fit, fit_labels = draw(2, 300, noise=2.0)
    svm, penalty = choose_svm(rows, labels, fit, fit_labels, 4, seed=0)
    correct = [
        np.mean(fit_svm(rows, labels, 4, 0, each).logits(fit).argmax(axis=1) == fit_labels)
        for each in PENALTIES
    ]
    assert penalty == PENALTIES[int(np.argmax(correct))]
    assert np.mean(svm.logits(fit).argmax(axis=1) == fit_labels) == max(correct)


def test_without_fit_the_penalty_is_the_middle_one() -> None:
    rows, labels = draw(1, 60)
    assert choose_svm(rows, labels, rows[:0], labels[:0], 4, seed=0)[1] == 0.01


def test_a_category_without_training_images_is_never_predicted() -> None:
    rows, labels = draw(1, 120)
    svm = fit_svm(rows, labels * 2, 8, seed=0)  # 1, 3, 5, 7 have none
    values = svm.logits(rows)
    assert values.shape == (120, 8)
    assert set(values.argmax(axis=1)) <= {0, 2, 4, 6}


def test_a_number_that_never_changes_does_no_harm() -> None:
    rows, labels = draw(1, 60)
    rows[:, 3] = 7
    assert np.isfinite(fit_svm(rows, labels, 4, seed=0).logits(rows)).all()


def test_one_category_is_refused() -> None:
    with pytest.raises(ShelfmarkError, match=r"one category; .* raise compare.svm_products"):
        fit_svm(np.ones((10, 3), np.float16), np.zeros(10, int), 4, seed=0)


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
