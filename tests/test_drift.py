"""Drift, on arrays: the mix by EM, limits, estimates, alarms, the e-process; on streams with known truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from streams import Measured, Release, Stream, drawn_release

from models.decisions.drift.batch import (
    Batch,
    Change,
    Effect,
    compare,
    effect_of,
    estimate,
    histogram_counts,
    is_alarm,
    limits_of,
)
from models.decisions.drift.distances import centroids_of, distances
from models.decisions.drift.eprocess import ALARM, Audited, evidence_of
from models.decisions.drift.label_shift import condition_of, mix_by_em, posterior_of
from models.decisions.drift.limits import Watched, limit_of, moved_along, moved_mean, moved_share
from models.decisions.drift.reference import OTHERS, Histogram, Reference, make_reference
from pipeline.job.config import MonitorSettings

SETTINGS = MonitorSettings()


@pytest.fixture(scope="module")
def release() -> Release:
    return drawn_release(0, test=1_500)


def judged(release: Release, measured: Measured) -> tuple[list[Change], Effect, bool]:
    reference, batch = release.reference, release.batch(measured)
    limits = limits_of(reference, batch, SETTINGS.false_alarms, SETTINGS.batches_per_year)
    changes = compare(reference, batch, limits)
    effect = effect_of(reference, batch, estimate(reference, batch))
    alarm = is_alarm(changes, effect, precision=SETTINGS.precision, acceptance=SETTINGS.acceptance)
    return changes, effect, alarm


# Label shift


def test_the_mix_is_that_of_quapy():
    oracle = json.loads((Path(__file__).parent / "data" / "emq.json").read_text())
    mix = mix_by_em(np.array(oracle["posterior"]), np.array(oracle["prior"]))
    assert np.abs(mix - oracle["mix"]).max() < 1e-6


@pytest.mark.slow
def test_the_mix_is_that_of_quapy_on_other_draws():
    EMQ = pytest.importorskip("quapy.method.aggregative").EMQ
    rng = np.random.default_rng(1)
    for classes in (2, 5, 20):
        prior = rng.dirichlet(np.full(classes, 5.0))
        posterior = rng.dirichlet(np.full(classes, 0.3), 300)
        expected, _ = EMQ.EM(prior, posterior, epsilon=1e-10)
        assert np.abs(mix_by_em(posterior, prior) - expected).max() < 1e-6


def test_rows_with_weights_are_as_many_rows():
    rng = np.random.default_rng(0)
    posterior, prior, times = (
        rng.dirichlet(np.ones(3), 5),
        np.array([0.2, 0.3, 0.5]),
        np.array([1, 4, 2, 7, 3]),
    )
    once = mix_by_em(posterior, prior, times)
    assert np.allclose(once, mix_by_em(np.repeat(posterior, times, axis=0), prior))


def test_a_known_mix_is_found_from_cells_alone():
    rng = np.random.default_rng(2)
    cell_of = np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.05, 0.15, 0.8]])  # P(cell | class), by class
    confusion = np.stack([rng.multinomial(2_000, row) for row in cell_of], axis=1)
    batch = 50_000 * (np.array([0.7, 0.1, 0.2]) @ cell_of)
    mix = mix_by_em(posterior_of(confusion), np.full(3, 1 / 3), batch)
    assert np.abs(mix - [0.7, 0.1, 0.2]).max() < 0.03


def test_equal_classes_cannot_be_told_apart_however_few_products_there_are():
    rng = np.random.default_rng(3)
    conditions = [
        condition_of(np.stack([rng.multinomial(count, [0.5, 0.3, 0.2]) for _ in range(2)], axis=1))
        for count in (20, 200, 2_000)
        for _ in range(20)
    ]
    assert np.mean(np.array(conditions) > 10) > 0.9
    assert condition_of(np.array([[95, 3], [5, 97]])) < 1.5


@pytest.mark.parametrize("weight, prior", [([0, 0], [0.5, 0.5]), ([1, 1], [1.0, 0.0])])
def test_no_products_and_classes_without_a_prior_are_errors(weight, prior):
    with pytest.raises(ValueError, match="at least one product"):
        mix_by_em(np.full((2, 2), 0.5), np.array(prior), np.array(weight))


def test_branches_that_are_the_same_are_refused():
    release = drawn_release(2, test=1_500, twins=1.0, target=0.6)
    measured = release.measured(np.random.default_rng(0), 2_000, Stream())
    found = estimate(release.reference, release.batch(measured))
    assert found.label_shift is None
    assert "cannot be distinguished" in (found.refused or "")
    assert found.lowest == found.difference is not None


# Limits


def test_differences_are_shares_of_products():
    before, after = np.array([50, 30, 20]), np.array([2, 3, 5])
    assert moved_share(before, after) == pytest.approx(0.3)
    assert moved_along(before, after) == pytest.approx(0.3)
    assert moved_mean(np.array([1.0, 2.0, 3.0]), before, after) == pytest.approx(0.6)
    assert moved_share(np.stack([before, after]), np.stack([after, after])).tolist() == pytest.approx(
        [0.3, 0]
    )


def test_a_limit_is_that_of_the_binomial_distribution():
    from scipy.stats import binom

    watched, products, level = Watched("share", np.array([80_000, 20_000]), moved_share), 400, 1e-5
    limit = limit_of(watched, products, 0.01, level) - limit_of(
        watched, 10**9, 0.01, level
    )  # the batch's part
    reach = np.arange(products)
    beyond = binom.cdf(0.2 * products - reach - 1, products, 0.2) + binom.sf(
        0.2 * products + reach, products, 0.2
    )
    exact = reach[beyond <= level][0] / products
    assert exact <= limit + 0.002 and limit < 1.15 * exact


def test_a_limit_falls_with_the_size_of_the_batch_to_what_chance_did_to_the_reference():
    watched = Watched("share", np.array([240, 60]), moved_share)
    limits = [limit_of(watched, products, 1e-3, 1e-5) for products in (100, 1_000, 10_000, 10**7)]
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == pytest.approx(3.29 * np.sqrt(0.2 * 0.8 / 300), rel=0.12)


def test_one_unreadable_product_where_there_was_none_is_no_change():
    watched = Watched("unreadable", np.array([0, 1_000]), moved_share)
    assert moved_share(watched.reference, np.array([1, 199])) < limit_of(watched, 200, 1e-3, 1e-5)


# A release and its batches


def test_a_reference_is_what_it_was_after_writing_and_reading(release):
    text = json.dumps(release.reference.to_dict())
    again = Reference.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.precision == release.reference.precision


def test_what_is_no_reference_is_a_value_error():
    with pytest.raises(ValueError):
        Reference.from_dict({"target": 0.9})


def test_the_reference_counts_what_was_measured():
    predicted, truth = np.array([0, 0, 1, 1, 2, 2] * 40), np.array([0, 1, 1, 1, 2, -1] * 40)
    confidence = np.array([0.9, 0.2, 0.8, 0.7, 0.6, 0.95] * 40)
    labels = np.array([["A", "A", "B"], ["A / a", "A / b", "B / c"]], dtype=object)
    reference = make_reference(
        Measured(predicted, truth, confidence), labels, np.array(["a", "b", "c"], object),
        np.array([100, 100, 100]), target=0.8, threshold=0.65, unreadable=(3, 300),
    )  # fmt: skip
    assert (reference.products, reference.accepted) == (240, 160)
    assert reference.precision == pytest.approx(0.75)  # of 0.9, 0.8, 0.7 and 0.95 the last is wrong
    assert reference.mean_confidence == pytest.approx((0.9 + 0.8 + 0.7 + 0.95) / 4)
    assert (reference.level, reference.branches) == (2, ("A / a", "A / b", "B / c", OTHERS))
    assert reference.confusion[:, :, :3].sum(axis=1).tolist() == [
        [40, 40, 0],
        [0, 80, 0],
        [0, 0, 80],
        [0, 0, 0],
    ]
    assert reference.categories.counts.tolist() == [80, 80, 80, 0]
    assert reference.branch_of(labels).tolist() == [0, 1, 2]


def test_where_nothing_is_accepted_nothing_is_estimated_and_nothing_alarms(release):
    measured = release.measured(np.random.default_rng(0), 500, Stream())
    shop = release.shop
    reference = make_reference(measured, shop.labels, shop.categories, shop.sizes, target=0.9, threshold=None)
    none = Release(shop, release.model, reference)
    changes, effect, alarm = judged(none, none.measured(np.random.default_rng(1), 500, Stream(blur=3)))
    assert reference.precision is None and effect.precision == 0 and effect.acceptance == 0
    assert any(change.significant for change in changes) and not alarm


def test_parts_counted_together_are_the_whole(release):
    measured = release.measured(np.random.default_rng(0), 500, Stream())
    parts = [
        release.batch(Measured(measured.predicted[some], measured.truth[some], measured.confidence[some]))
        for some in (slice(0, 200), slice(200, 500))
    ]
    whole, together = release.batch(measured), Batch.together(parts, {})
    assert np.array_equal(whole.cells, together.cells)
    assert np.array_equal(whole.categories, together.categories)
    assert whole.confidence_sum == pytest.approx(together.confidence_sum)
    assert whole.above_atc == together.above_atc


def test_without_change_the_estimates_are_near_the_truth(release):
    measured = release.measured(np.random.default_rng(1), 4_000, Stream())
    found, truth = estimate(release.reference, release.batch(measured)), release.accepted_precision(measured)
    for value in (found.mean_confidence, found.difference, found.label_shift, found.above_threshold):
        assert value == pytest.approx(truth, abs=0.05)


def test_on_the_measured_products_themselves_the_estimates_are_the_measured_precision():
    release = drawn_release(3, test=2_000)
    reference = release.reference
    accepted = slice(reference.first_accepted, None)
    itself = Batch(
        unreadable=0,
        cells=reference.cells,
        confidence_sum=float(reference.confidence_sum[accepted].sum()),
        above_atc=int(reference.right[:, accepted].sum()),
        categories=reference.categories.counts,
        images={},
    )
    found = estimate(reference, itself)
    assert found.difference == pytest.approx(reference.precision)
    assert found.label_shift == pytest.approx(reference.precision, abs=0.005)
    assert found.above_threshold == pytest.approx(reference.precision)


def test_a_mix_that_halves_the_precision_is_alarmed_in_its_first_batch(release):
    weak = Stream(mix=release.shop.frequency * (release.shop.strength < 1.2))
    for products in (100, 1_000):
        measured = release.measured(np.random.default_rng(products), products, weak)
        changes, effect, alarm = judged(release, measured)
        assert release.accepted_precision(measured) < 0.5
        assert alarm and effect.precision < -0.1
        assert {"confidence", "categories"} <= {change.name for change in changes if change.significant}


def test_unchanged_batches_give_no_alarm(release):
    rng = np.random.default_rng(4)
    assert [judged(release, release.measured(rng, 300, Stream()))[2] for _ in range(3)] == [False] * 3


def test_an_alarm_needs_both_significance_and_an_effect():
    beyond, within = (Change("acceptance", 0.5, 0.6, 0.1, limit) for limit in (0.05, 0.2))
    small, large = Effect(0.50, 0.52, 0.9, 0.89), Effect(0.50, 0.52, 0.9, 0.87)
    other = Effect(0.50, 0.43, None, None)
    alarm = {"precision": 0.02, "acceptance": 0.05}
    assert not is_alarm([within], large, **alarm)
    assert not is_alarm([beyond], small, **alarm)
    assert is_alarm([within, beyond], large, **alarm)
    assert is_alarm([beyond], other, **alarm)
    assert not is_alarm([beyond], Effect(0.5, 0.5, 0.9, 0.99), **alarm)  # better is no alarm


def test_the_branches_that_moved_most_are_named_with_their_direction(release):
    grown = release.shop.labels[0][0]
    mix = release.shop.frequency * np.where(release.shop.labels[0] == grown, 30.0, 1.0)
    changes, _, _ = judged(release, release.measured(np.random.default_rng(5), 1_000, Stream(mix=mix)))
    moved = next(change for change in changes if change.name == "branches").moved
    assert moved[0][0] == grown and moved[0][1] > 0.1
    assert all(share < 0 for _, share in moved[1:])


def test_a_name_that_the_reference_lacks_is_counted_with_the_others():
    kinds = Histogram(np.array([9, 1, 0]), names=("jpeg", "png", OTHERS))
    counts = histogram_counts(kinds, np.array(["avif", "jpeg", "webp"]), np.array([3, 5, 2]))
    assert counts.tolist() == [5, 0, 5]


# Distances


def test_photos_of_another_kind_are_farther_from_the_centroids():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 32))
    train = np.repeat(centres, 100, axis=0) + 0.3 * rng.normal(size=(500, 32))
    centroids = centroids_of(train.astype(np.float16))
    like, other = centres + 0.3 * rng.normal(size=(5, 32)), rng.normal(size=(5, 32))
    near, far = (distances(rows.astype(np.float16), np.arange(5), centroids) for rows in (like, other))
    assert near.max() < 0.2 < far.min()
    assert distances(like, np.array([3]), centroids) == pytest.approx(near[3:4], abs=1e-3)


def test_a_row_of_zeros_and_no_row_at_all_have_distances():
    centroids = centroids_of(np.eye(4, dtype=np.float16))
    assert distances(np.zeros((1, 4), np.float16), np.array([0]), centroids).tolist() == [1.0]
    assert distances(np.zeros((0, 4), np.float16), np.empty(0, int), centroids).tolist() == []


# Audits


def test_the_evidence_is_the_mean_of_the_bets():
    bets = (0.25, 0.5, 1, 2, 5)
    by_hand = np.mean([(1 + bet * 0.9) ** 30 * (1 - bet * 0.1) ** 70 for bet in bets])
    assert evidence_of([Audited(100, 30)], 0.9)[0] == pytest.approx(by_hand)


def test_good_weeks_do_not_hide_a_later_drop():
    good = [Audited(400, 20)] * 50
    assert evidence_of(good, 0.9)[-1] == 1.0
    assert evidence_of([*good, Audited(400, 80)], 0.9)[-1] > ALARM
    assert evidence_of([Audited(10**6, 10**6)], 0.9)[0] > ALARM  # no overflow


def test_bets_are_scaled_to_the_promise():
    for target in (0.5, 0.8, 0.99):
        values = evidence_of([Audited(100, 100)], target)
        assert values[0] > ALARM
        assert evidence_of([Audited(100, 0)], target) == [1.0]


# The promises (make test-statistics)


@pytest.mark.statistics
@pytest.mark.timeout(1200)
def test_twenty_years_without_change_give_at_most_one_alarm():
    for seed, products, size in ((0, 300, 200), (2, 1_500, 100), (3, 1_500, 1_000)):
        release, rng = drawn_release(seed, test=products), np.random.default_rng([seed, 7])
        pool = release.measured(rng, 100_000, Stream())
        reference, limits, alarms = release.reference, {}, 0
        for _ in range(20 * 52):
            some = rng.integers(0, len(pool.truth), size)
            batch = release.batch(Measured(pool.predicted[some], pool.truth[some], pool.confidence[some]))
            limits = limits or limits_of(reference, batch, SETTINGS.false_alarms, SETTINGS.batches_per_year)
            effect = effect_of(reference, batch, estimate(reference, batch))
            changes = compare(reference, batch, limits)
            alarms += is_alarm(changes, effect, precision=SETTINGS.precision, acceptance=SETTINGS.acceptance)
        assert alarms <= 1


@pytest.mark.statistics
@pytest.mark.timeout(1200)
def test_a_halved_precision_is_alarmed_at_once_in_every_shop():
    for seed in range(10):
        release = drawn_release(seed, test=1_500)
        weak = Stream(mix=release.shop.frequency * (release.shop.strength < 1.2))
        measured = release.measured(np.random.default_rng([seed, 8]), 200, weak)
        assert release.accepted_precision(measured) < 0.55
        assert judged(release, measured)[2]


@pytest.mark.statistics
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("audited, median", [(100, {0.87: 16, 0.80: 2}), (400, {0.87: 5, 0.80: 1})])
def test_audits_give_few_false_alarms_and_see_a_drop_in_time(audited, median):
    rng = np.random.default_rng(audited)

    def first(precision: float, weeks: int, runs: int) -> np.ndarray:
        errors = rng.binomial(audited, 1 - precision, size=(runs, weeks))
        evidence = [evidence_of([Audited(audited, int(one)) for one in row], 0.9) for row in errors]
        over = np.array(evidence) >= ALARM
        return np.where(over.any(axis=1), over.argmax(axis=1) + 1, np.inf)

    assert np.isfinite(first(0.90, 52, 20_000)).mean() <= 0.005
    for precision, weeks in median.items():
        assert np.median(first(precision, 60, 2_000)) == pytest.approx(weeks, abs=1)
