"""Suspicion: the evidence of a correction, and when a seller is flagged."""

import numpy as np
import pytest
from drawn_sellers import Drawn, evidence_of, flagged_at, suspicion_of

from models.decisions.seller_rules import SellerProducts
from models.decisions.suspicion import (
    EDGES,
    ERRORS,
    LIMIT,
    WEIGHT,
    Suspicion,
    add_evidence,
    fit_suspicion,
    rank_masses,
    rank_shares,
    ranks,
)

# categories → width of their centres, so that the base is correct for six to nine products in ten
WORLDS = {3: 4, 10: 5, 20: 6, 100: 8, 1000: 10}


def test_evidence_is_the_formula() -> None:
    confidence = np.array([0.95, 0.95, 0.3, 0.3, 0.1, 0.97])
    rank = np.array([1, 2, 1, 7, 3, 0])  # the last one's category is not known to the head
    masses = np.array([[0.04, 0.01, 0, 0, 0]] * 2 + [[0.3, 0.2, 0.1, 0.05, 0.05]] * 3 + [[1, 0, 0, 0, 0]])
    table = fit_suspicion(confidence, rank, masses, 11)
    bins = [6, 6, 1, 1, 0]  # a bin holds its lower edge
    for b in range(8):
        for r in range(5):
            q = (bins.count(b) + 1 / 8) / 6 * (0.6 if r == 4 else 0.1)
            expected = sum(
                (1 - confidence[i]) * masses[i, r] / masses[i].sum() for i in range(5) if bins[i] == b
            )
            prior = expected / sum(1 - confidence[i] for i in range(5))
            count = {(6, 0): 1, (1, 4): 1, (0, 1): 1}.get((b, r), 0)
            h = (1 - ERRORS) * (count + WEIGHT * prior) / (3 + WEIGHT) + ERRORS * q
            assert table.table[b][r] == pytest.approx(np.log(q / h), abs=1e-6)
    assert (table.products, table.wrong, table.edges) == (5, 3, EDGES)


def test_evidence_is_nothing_for_what_confirms_the_base_and_for_unknown_categories() -> None:
    table = Suspicion((0.5,), ((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)), 0, 0)
    found = table.evidence(np.array([0.4, 0.4, 0.5, 0.4, 0.6, 0.6]), np.array([0, 1, 2, 3, 6, 900]))
    assert found.tolist() == [0, 0, 6, 2, 10, 10]
    assert table.evidence(np.empty(0), np.empty(0, int)).tolist() == []


@pytest.mark.parametrize("categories", [1, 2, 3, 4, 5, 6, 7, 1000])
def test_shares_of_ranks_are_those_of_drawn_ones(categories: int) -> None:
    drawn = np.array([min(rank, 6) for rank in range(2, categories + 1)])
    expected = [np.mean(drawn == rank) if len(drawn) else 0 for rank in range(2, 7)]
    np.testing.assert_allclose(rank_shares(categories), expected)


def test_without_products_of_fit_a_correction_says_nothing() -> None:
    table = fit_suspicion(np.empty(0), np.empty(0, int), np.empty((0, 5)), 9)
    assert np.abs(table.table).max() < 1e-9


@pytest.mark.parametrize("categories", [2, 3, 40])
def test_evidence_of_certain_products_is_a_number(categories: int) -> None:
    table = fit_suspicion(np.ones(9), np.ones(9, int), np.zeros((9, 5)), categories)
    assert np.isfinite(table.table).all()
    assert np.max(table.table) <= np.log(1 / ERRORS) + 1e-6


def test_ties_go_to_the_first_category() -> None:
    logs = np.log([[0.2, 0.3, 0.3, 0.2]])
    assert [int(ranks(logs, np.array([category]))[0]) for category in range(4)] == [3, 1, 2, 4]


def test_masses_are_those_of_the_ranks() -> None:
    rng = np.random.default_rng(1)
    probability = rng.dirichlet(np.ones(9), 20)
    falling = -np.sort(-probability, axis=1)
    expected = np.column_stack([falling[:, 1:5], falling[:, 5:].sum(axis=1)])
    np.testing.assert_allclose(rank_masses(np.log(probability)), expected)
    assert rank_masses(np.log([[0.7, 0.3]])).round(9).tolist() == [[0.3, 0, 0, 0, 0]]


def test_the_sum_starts_again_at_nothing() -> None:
    assert flagged_at(np.array([-9.0, LIMIT / 2, LIMIT / 2])) == 3
    assert flagged_at(np.array([LIMIT / 2, -0.1, LIMIT / 2])) is None
    assert add_evidence(1.0, -3.0) == 0.0


def test_a_drawn_correction_is_no_evidence_on_average_and_the_odds_of_honest_ones_fall() -> None:
    drawn, rng = Drawn.of(20, width=6), np.random.default_rng(2)
    sellers = [drawn.seller(f"s{number}", rng, 20) for number in range(100)]
    table = suspicion_of(sellers, 20)
    odds = np.concatenate([np.exp(evidence_of(one, table))[one.base != one.true] for one in sellers])
    assert odds.mean() <= 1.05, "their mean is 1 at most, so that Ville's inequality holds"
    assert np.log(odds).mean() < -0.1


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[Drawn, Suspicion, np.random.Generator]:
    drawn, rng = Drawn.of(request.param, width=WORLDS[request.param]), np.random.default_rng(request.param)
    return drawn, suspicion_of([drawn.seller(f"s{n}", rng, 20) for n in range(50)], request.param), rng


@pytest.mark.parametrize("kind", ["random", "swap"])
def test_a_poisoned_seller_is_flagged_within_fifty_corrections(
    world: tuple[Drawn, Suspicion, np.random.Generator], kind: str
) -> None:
    drawn, table, rng = world
    poisoned = [drawn.poisoned(drawn.seller("poisoned", rng, 50), kind, rng) for _ in range(60)]
    missed = [one for one in poisoned if flagged_at(evidence_of(one, table)) is None]
    assert len(missed) <= 1


def test_honest_sellers_with_their_own_habits_are_seldom_flagged(
    world: tuple[Drawn, Suspicion, np.random.Generator],
) -> None:
    drawn, table, rng = world
    honest = [drawn.seller("honest", rng, 150) for _ in range(200)]
    flagged = [one for one in honest if flagged_at(corrected(one, table)) is not None]
    assert len(flagged) <= 2


def corrected(products: SellerProducts, table: Suspicion) -> np.ndarray:
    """The evidence of the products that the base gets wrong: who corrects those alone is flagged soonest."""
    return evidence_of(products, table)[products.base != products.true]


@pytest.mark.parametrize("products", [1, 20])
def test_a_good_base_with_few_products_in_fit_flags_a_poisoned_seller_too(products: int) -> None:
    drawn, rng = Drawn.of(10, width=12, habit=0.3), np.random.default_rng(4)
    table = suspicion_of([drawn.seller("s", rng, products)], 10)
    assert table.wrong == 0
    for kind in ("random", "swap"):
        for _ in range(30):
            poisoned = drawn.poisoned(drawn.seller("poisoned", rng, 50), kind, rng)
            assert flagged_at(evidence_of(poisoned, table)) is not None
