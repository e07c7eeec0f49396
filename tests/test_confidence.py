"""Temperature, evidence and the confidence model, on synthetic catalogues and small samples."""

import json
from dataclasses import fields, replace
from functools import cache

import generators as draw
import numpy as np
import pytest
import replica
from scipy.special import expit, softmax
from scipy.stats import gmean
from sklearn.metrics import log_loss

from models.decisions.confidence import (
    AGGREGATIONS,
    LEAST_BOOSTED,
    ConfidenceModel,
    Evidence,
    accuracy_and_log_loss,
    category_effects,
    fit_confidence,
    fit_temperature,
    product_probabilities,
)
from models.decisions.metrics import acceptance_curve, acceptance_rate_at


@cache
def drawn(seed: int, products: int) -> tuple[Evidence, np.ndarray]:
    """Evidence of synthetic products and whether each is correct, at the temperature of another sample."""
    other = draw.catalogue(np.random.default_rng(0), 500)
    temperature = fit_temperature(other.logits, other.images, other.truth)
    some = draw.catalogue(np.random.default_rng(seed), products)
    probabilities = product_probabilities(some.logits, some.images, temperature)
    evidence = draw.evidence_of(probabilities, some.images, some.parent, some.category_size)
    return evidence, evidence.category == some.truth


def loss_by_hand(logits: np.ndarray, images: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    of_products = np.split(softmax(logits.astype(float) / temperature, axis=1), np.cumsum(images)[:-1])
    with np.errstate(divide="ignore"):  # far from the best temperature some probabilities are 0
        return float(np.mean([-np.log(p[:, t].mean()) for p, t in zip(of_products, truth, strict=True)]))


def test_temperature_is_recovered() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6000, 10)) * 6
    truth = np.array([rng.choice(10, p=p) for p in softmax(logits / 2.5, axis=1)])
    images = np.ones(6000, dtype=int)
    assert fit_temperature(logits, images, truth) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(3 * logits, images, truth) == pytest.approx(3 * 2.5, rel=0.05)


def test_temperature_is_the_best_of_many_for_products_of_several_images() -> None:
    some = draw.catalogue(np.random.default_rng(2), 300)
    found = fit_temperature(some.logits, some.images, some.truth)
    tried = np.geomspace(0.05, 20, 120)
    losses = [loss_by_hand(some.logits, some.images, some.truth, t) for t in tried]
    assert found == pytest.approx(tried[np.argmin(losses)], rel=0.05)
    assert loss_by_hand(some.logits, some.images, some.truth, found) <= min(losses) + 1e-6
    assert found > 2  # the drawn head is too sure of itself


def test_temperature_of_a_head_that_is_always_correct_or_always_wrong_stays_within_bounds() -> None:
    logits, images = np.eye(4, dtype=np.float32), np.ones(4, dtype=int)
    assert 1 <= fit_temperature(logits, images, np.arange(4)) < 1.01
    assert 19 < fit_temperature(logits, images, np.arange(4)[::-1]) <= 20


def timid(wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """(200, 3) logits of a head, and (200,) truth: so many are wrong, those with the smallest margins."""
    lead = np.linspace(0.5, 5, 200)
    return np.outer(lead, [1, 0, 0]), np.where(np.arange(200) < wrong, 1, 0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("wrong", [0, 1, 4])
def test_a_head_that_is_nearly_always_correct_keeps_the_order_of_its_confidences(
    wrong: int, aggregation: str
) -> None:
    logits, truth = timid(wrong)
    images = np.ones(200, dtype=int)
    temperature = fit_temperature(logits, images, truth, aggregation)
    assert 1 <= temperature < 1.01
    p1 = product_probabilities(logits, images, temperature, aggregation).max(axis=1)
    assert len(set(p1.round(6).tolist())) == 200
    assert p1.max() < 1


def test_five_errors_are_enough_to_find_a_head_underconfident() -> None:
    logits, truth = timid(wrong=5)
    images = np.ones(200, dtype=int)
    found = fit_temperature(logits, images, truth)
    assert 0.05 < found < 1
    losses = [loss_by_hand(logits, images, truth, tried) for tried in np.geomspace(0.05, 20, 120)]
    assert loss_by_hand(logits, images, truth, found) <= min(losses) + 1e-6


def test_temperature_refuses_counts_that_do_not_fit() -> None:
    logits = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="2 images counted; expected 3"):
        fit_temperature(logits, np.array([2]), np.array([0]))
    with pytest.raises(ValueError, match="1 or more of each product"):
        product_probabilities(logits, np.array([3, 0]), 1.0)
    with pytest.raises(ValueError, match="at least one product"):
        fit_temperature(logits[:0], np.array([], dtype=int), np.array([], dtype=int))


def test_product_probabilities_are_the_mean_over_its_images() -> None:
    some = draw.catalogue(np.random.default_rng(3), 50)
    found = product_probabilities(some.logits, some.images, 1.7)
    of_images = np.split(softmax(some.logits.astype(float) / 1.7, axis=1), np.cumsum(some.images)[:-1])
    np.testing.assert_allclose(found, [p.mean(axis=0) for p in of_images], rtol=1e-12)
    first = some.images[0]
    np.testing.assert_array_equal(product_probabilities(some.logits[:first], some.images[:1], 1.7), found[:1])
    assert product_probabilities(some.logits[:0], some.images[:0], 1.7).shape == (0, 200)


BY_HAND = {  # one product's image probabilities → its own
    "mean": lambda p: p.mean(axis=0),
    "geometric": lambda p: gmean(p, axis=0) / gmean(p, axis=0).sum(),
    "max": lambda p: p.max(axis=0) / p.max(axis=0).sum(),
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_agrees_with_each_product_on_its_own(aggregation: str) -> None:
    some = draw.catalogue(np.random.default_rng(3), 50)
    found = product_probabilities(some.logits, some.images, 1.7, aggregation)
    of_images = np.split(softmax(some.logits.astype(float) / 1.7, axis=1), np.cumsum(some.images)[:-1])
    np.testing.assert_allclose(found, [BY_HAND[aggregation](p) for p in of_images], rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_all_aggregations_leave_a_product_of_one_image_as_it_is() -> None:
    some = draw.catalogue(np.random.default_rng(4), 20)
    ones = np.ones(len(some.logits), int)
    for aggregation in AGGREGATIONS:
        np.testing.assert_allclose(
            product_probabilities(some.logits, ones, 0.8, aggregation),
            softmax(some.logits.astype(float) / 0.8, axis=1),
            rtol=1e-9,
        )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_temperature_is_the_best_of_many_for_every_aggregation(aggregation: str) -> None:
    some = draw.catalogue(np.random.default_rng(2), 100)
    truth = np.where(np.arange(100) % 10, some.truth, 0)  # some labels without any evidence
    found = fit_temperature(some.logits, some.images, truth, aggregation)

    def loss(temperature: float) -> float:
        of_images = np.split(
            softmax(some.logits.astype(float) / temperature, axis=1), np.cumsum(some.images)[:-1]
        )
        products = np.array([BY_HAND[aggregation](p) for p in of_images])
        return float(-np.log(products[np.arange(100), truth]).mean())

    assert loss(found) <= min(loss(tried) for tried in np.geomspace(1, 12, 30)) + 1e-5
    accuracy, log_loss = accuracy_and_log_loss(some.logits, some.images, truth, found, aggregation)
    assert log_loss == pytest.approx(loss(found), rel=1e-6)
    chosen = product_probabilities(some.logits, some.images, found, aggregation).argmax(axis=1)
    assert accuracy == np.mean(chosen == truth)


def test_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected mean, geometric, max"):
        product_probabilities(np.zeros((1, 2)), np.ones(1, int), 1.0, "median")


def test_evidence_refuses_numbers_that_are_not_finite_and_unequal_lengths() -> None:
    evidence, _ = drawn(4, 60)
    columns = {column.name: getattr(evidence, column.name) for column in fields(evidence)}
    with pytest.raises(ValueError, match="not finite"):
        Evidence(**(columns | {"p2": np.full(60, np.nan)}))
    with pytest.raises(ValueError, match="one length"):
        Evidence(**(columns | {"images": np.ones(59)}))
    with pytest.raises(ValueError, match="has no image"):
        Evidence(**(columns | {"images": np.zeros(60)}))


def test_confidence_is_calibrated_and_ranks_better_than_p1() -> None:
    model = fit_confidence(*drawn(5, 4000))
    evidence, correct = drawn(6, 8000)
    confidence = model.confidence(evidence)
    assert model.kind == "logistic"
    assert log_loss(correct, confidence) < log_loss(correct, evidence.p1) - 0.05
    assert confidence.mean() == pytest.approx(correct.mean(), abs=0.02)
    middle = (confidence > 0.6) & (confidence < 0.8)
    assert confidence[middle].mean() == pytest.approx(correct[middle].mean(), abs=0.05)
    ours, _ = acceptance_rate_at(acceptance_curve(confidence, correct), 0.9)
    plain, _ = acceptance_rate_at(acceptance_curve(evidence.p1, correct), 0.9)
    assert ours > plain + 0.02


@pytest.mark.parametrize("products", [60, 100, 200])
def test_small_fits_do_not_overfit(products: int) -> None:
    evidence, correct = drawn(6, 8000)
    many, outcome = drawn(5, 4000)
    for start in range(0, 4000, 400):
        chosen = slice(start, start + products)
        model = fit_confidence(many.only(chosen), outcome[chosen])
        assert model.kind == "logistic"
        confidence = model.confidence(evidence)
        assert log_loss(correct, confidence) < log_loss(correct, evidence.p1)
        assert log_loss(correct, confidence) < log_loss(correct, np.full(8000, correct.mean()))


def test_category_effects_are_the_shrunken_intercepts() -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=300) * 0.8
    category, logit = rng.integers(0, 300, 12_000), rng.normal(size=12_000)
    correct = rng.random(12_000) < expit(logit + truth[category])
    effect, spread = category_effects(category, correct, logit)
    found = np.array([effect[c] for c in range(300)])
    assert spread == pytest.approx(0.8, abs=0.1)
    assert np.corrcoef(found, truth)[0, 1] > 0.85
    assert found.std() < truth.std() < 1
    surplus = np.bincount(category, correct - expit(logit + found[category]))  # zero at the posterior mode:
    np.testing.assert_allclose(surplus, found / spread**2, atol=0.05)


def test_category_effects_stay_small_where_every_outcome_is_certain() -> None:
    category = np.repeat(np.arange(50), 40)
    correct = np.repeat(np.arange(50) % 5 > 0, 40)
    effect, spread = category_effects(category, correct, np.full(2000, 6.0))
    assert spread < 10
    assert max(effect[c] for c in range(0, 50, 5)) < 0 < min(effect[c] for c in range(1, 50, 5))


def test_categories_that_fit_lacks_have_no_effect() -> None:
    evidence, correct = drawn(5, 4000)
    seen = evidence.category < 100
    model = fit_confidence(evidence.only(seen), correct[seen])
    unseen = evidence.only(~seen)
    assert set(model.effect) == set(evidence.category[seen].tolist())
    without = ConfidenceModel.from_dict(model.to_dict() | {"effect": {}})
    np.testing.assert_array_equal(model.confidence(unseen), without.confidence(unseen))


@pytest.mark.parametrize(("correct", "products"), [(29, 29), (100, 100), (0, 100), (4, 100), (96, 100)])
def test_too_few_outcomes_to_fit_a_model_are_reported(correct: int, products: int) -> None:
    evidence = drawn(5, 4000)[0].only(slice(products))
    model = fit_confidence(evidence, np.arange(products) < correct)
    assert model.kind == "probability"
    assert f"{products} products in FIT, {correct} right" in (model.reason or "")
    np.testing.assert_array_equal(model.confidence(evidence), evidence.p1.round(6))


def test_outcomes_must_be_one_for_each_product() -> None:
    with pytest.raises(ValueError, match="3 outcomes for 4000 products"):
        fit_confidence(drawn(5, 4000)[0], np.array([True, False, True]))


def test_row_order_does_not_change_the_model() -> None:
    evidence, correct = drawn(5, 4000)
    model = fit_confidence(evidence, correct)
    order = np.random.default_rng(8).permutation(4000)
    assert fit_confidence(evidence.only(order), correct[order]) == model


def test_one_product_has_the_confidence_it_has_among_many() -> None:
    evidence, correct = drawn(5, 4000)
    model = fit_confidence(evidence, correct)
    together = model.confidence(evidence)
    alone = [model.confidence(evidence.only(slice(i, i + 1)))[0] for i in range(0, 4000, 40)]
    np.testing.assert_array_equal(alone, together[::40])
    assert model.confidence(evidence.only(slice(0))).shape == (0,)
    np.testing.assert_array_equal(together, together.round(6))


def with_images(evidence: Evidence, images: int | np.ndarray) -> Evidence:
    """The same evidence, of so many images of each product."""
    return replace(evidence, images=np.broadcast_to(images, len(evidence.p1)))


def test_more_images_than_in_fit_count_as_its_most_and_fewer_as_its_fewest() -> None:
    evidence, correct = drawn(5, 4000)
    drawn_images = np.random.default_rng(3).integers(2, 4, 4000)
    model = fit_confidence(with_images(evidence, drawn_images), correct)
    assert (model.least_images, model.most_images) == (2, 3)
    assert model.coefficient["log_images"] != 0
    of = {images: model.confidence(with_images(evidence, images)) for images in (1, 2, 3, 4, 16)}
    np.testing.assert_array_equal(of[16], of[3])
    np.testing.assert_array_equal(of[4], of[3])
    np.testing.assert_array_equal(of[1], of[2])
    assert (of[2] != of[3]).any()


def test_a_model_of_an_older_release_counts_all_images() -> None:
    model = fit_confidence(*drawn(5, 4000))
    values = model.to_dict()
    del values["least_images"], values["most_images"]
    old, evidence = ConfidenceModel.from_dict(values), drawn(6, 8000)[0]
    of = [old.confidence(with_images(evidence, images)) for images in (4, 16)]
    assert (of[0] != of[1]).any()
    np.testing.assert_array_equal(old.confidence(evidence), model.confidence(evidence))


def test_model_is_read_back_from_json() -> None:
    evidence, correct = drawn(5, 4000)
    for model in (fit_confidence(evidence, correct), fit_confidence(evidence.only(slice(9)), correct[:9])):
        again = ConfidenceModel.from_dict(json.loads(json.dumps(model.to_dict())))
        assert again == model
        np.testing.assert_array_equal(again.confidence(evidence), model.confidence(evidence))
    assert list(fit_confidence(evidence, correct).coefficient) == [
        "logit_p1",
        "log_p1_over_p2",
        "entropy",
        "logit_parent_mass",
        "max_logit_pnorm",
        "log_category_size",
        "log_images",
    ]


def test_certain_and_flat_products_have_finite_confidences() -> None:
    evidence, correct = drawn(5, 4000)
    model = fit_confidence(evidence, correct)
    edges = Evidence(
        p1=np.array([1.0, 0.0]),
        p2=np.array([0.0, 0.0]),
        entropy=np.array([0.0, 9.0]),
        parent_mass=np.array([1.0, 0.0]),
        max_logit_pnorm=np.array([1.0, 0.0]),
        category=np.array([0, 9999]),
        category_size=np.array([0, 0]),
        images=np.array([1, 400]),
    )
    confidence = model.confidence(edges)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert confidence[0] > confidence[1]


@cache
def boosted() -> ConfidenceModel:
    return fit_confidence(*drawn(9, LEAST_BOOSTED), kind="boosting")


def test_boosting_is_fitted_on_top_of_the_logistic_model() -> None:
    evidence, correct = drawn(9, LEAST_BOOSTED)
    logistic = fit_confidence(evidence, correct)
    assert boosted().kind == "boosting"
    assert boosted().boosting is not None
    assert replace(boosted(), kind="logistic", boosting=None) == logistic
    assert boosted().boosting.terms == (*logistic.coefficient, "category_effect", "logistic")
    others, outcome = drawn(6, 8000)
    confidence = boosted().confidence(others)
    assert log_loss(outcome, confidence) < log_loss(outcome, others.p1) - 0.05
    assert confidence.mean() == pytest.approx(outcome.mean(), abs=0.02)


def test_boosting_is_the_same_for_any_order_of_rows_and_size_of_a_batch() -> None:
    evidence, correct = drawn(9, LEAST_BOOSTED)
    order = np.random.default_rng(8).permutation(LEAST_BOOSTED)
    assert fit_confidence(evidence.only(order), correct[order], kind="boosting") == boosted()
    together = boosted().confidence(evidence)
    alone = [boosted().confidence(evidence.only(slice(i, i + 1)))[0] for i in range(0, LEAST_BOOSTED, 50)]
    np.testing.assert_array_equal(alone, together[::50])
    np.testing.assert_array_equal(together, together.round(6))


def test_boosting_is_read_back_from_json() -> None:
    evidence = drawn(6, 8000)[0]
    before = boosted().confidence(evidence)
    again = ConfidenceModel.from_dict(json.loads(json.dumps(boosted().to_dict())))
    assert again == boosted()
    np.testing.assert_array_equal(again.confidence(evidence), before)


def test_boosting_on_too_few_products_is_logistic_and_says_so() -> None:
    evidence, correct = (column for column in drawn(9, LEAST_BOOSTED))
    few = slice(LEAST_BOOSTED - 1)
    model = fit_confidence(evidence.only(few), correct[few], kind="boosting")
    assert model.reason == f"{LEAST_BOOSTED - 1} products in FIT; boosting expects {LEAST_BOOSTED}"
    assert replace(model, reason=None) == fit_confidence(evidence.only(few), correct[few])
    assert fit_confidence(evidence.only(slice(9)), correct[:9], kind="boosting").kind == "probability"


def test_an_effect_that_trees_are_fitted_on_knows_nothing_of_its_own_product() -> None:
    """Where categories differ by chance alone, in-sample effects would be the most important term."""
    evidence, _ = drawn(9, LEAST_BOOSTED)
    rng = np.random.default_rng(1)
    evidence = replace(evidence, category=rng.integers(0, 1500, LEAST_BOOSTED))
    outcome = rng.random(LEAST_BOOSTED) < evidence.p1
    model = fit_confidence(evidence, outcome, kind="boosting")
    fresh = rng.random(LEAST_BOOSTED) < evidence.p1  # the same products, drawn again
    assert log_loss(fresh, model.confidence(evidence)) < log_loss(fresh, evidence.p1) + 0.02


def test_a_model_of_an_older_release_has_fewer_terms() -> None:
    evidence, correct = drawn(5, 4000)
    values = fit_confidence(evidence, correct).to_dict()
    for name in ("coefficient", "mean", "scale"):
        values[name] = {term: one for term, one in values[name].items() if term != "max_logit_pnorm"}
    del values["boosting"]
    old = ConfidenceModel.from_dict(values)
    others = drawn(6, 8000)[0]
    flat = replace(others, max_logit_pnorm=np.full(8000, 0.5))
    np.testing.assert_array_equal(old.confidence(others), old.confidence(flat))
    assert len(set(old.confidence(others).tolist())) > 1000


def accepted(score: np.ndarray, correct: np.ndarray) -> float:
    """The largest share that can be accepted at precision 0.9."""
    return acceptance_rate_at(acceptance_curve(score, correct), 0.9)[0]


@pytest.mark.parametrize(
    ("products", "logistic", "boosting"),
    [
        (6000, 0.67, 0.68),
        pytest.param(40_000, 0.67, 0.70, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_the_score_accepts_so_many_products_of_a_thousand_categories(
    products: int, logistic: float, boosting: float
) -> None:
    fit, others = replica.draw(1, products), replica.draw(2, products)
    evidence, correct = others.evidence, others.correct
    assert others.wrong.mean() == pytest.approx(0.1, abs=0.01)
    assert others.posterior.mean() == pytest.approx(
        correct.mean(), abs=0.02
    )  # calibrated: it is the true one
    found = {
        kind: accepted(fit_confidence(fit.evidence, fit.correct, kind).confidence(evidence), correct)
        for kind in ("logistic", "boosting")
    }
    most, p1, lead = (
        accepted(s, correct) for s in (others.posterior, evidence.p1, evidence.p1 - evidence.p2)
    )
    assert p1 < 0.6
    assert p1 < lead < found["logistic"] < found["boosting"] < most < 0.8
    assert found["logistic"] >= logistic
    assert found["boosting"] >= boosting
