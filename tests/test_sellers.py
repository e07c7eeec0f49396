"""Learning from a seller's corrections: formulas equal slow, plain ones; nothing reaches another seller."""

import pickle
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sellers.interface import SellerMethod, SellerModel
from models.sellers.paper import NEIGHBOURS, PaperMethod, PaperSeller
from models.sellers.styles import MOST, Styles, count_styles, fit_styles
from models.sellers.votes import MOST as KEPT
from models.sellers.votes import Stream, Votes, VotesMethod, VotesSeller, fit_votes

CATEGORIES, WIDTH = 5, 3


# Styles


def groups(rng: np.random.Generator, count: int, each: int) -> np.ndarray:
    """(count · each, 2): groups around points of a circle of radius 10, deviation 0.1."""
    angles = 2 * np.pi * np.arange(count) / count
    centres = 10 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.repeat(centres, each, axis=0) + rng.normal(0, 0.1, (count * each, 2))


def test_k_is_the_papers_rounded_down() -> None:
    assert [count_styles(n) for n in (0, 1, 3999, 5999, 6000, 28_999, 29_000, 10**7)] == [
        5, 5, 5, 6, 7, 29, 30, 30,
    ]  # fmt: skip


def test_styles_are_the_centres_of_groups() -> None:
    rows = groups(np.random.default_rng(0), 5, 40).astype(np.float16)
    styles = fit_styles(lambda category: rows, 1, 2, seed=0)
    found = {tuple(centre) for centre in np.round(styles.centroids.astype(float), 1).tolist()}
    expected = np.round(rows.astype(float).reshape(5, 40, 2).mean(1), 1)
    assert found == {tuple(centre) for centre in expected.tolist()}


def test_small_and_empty_categories_have_their_vectors_and_nothing() -> None:
    rows = [np.array([[1.0, 2], [1, 2], [3, 4]]), np.empty((0, 2)), groups(np.random.default_rng(0), 5, 9)]
    styles = fit_styles(lambda category: rows[category], 3, 2, seed=0)
    assert styles.bounds.tolist() == [0, 2, 2, 7]
    assert styles.centroids[:2].tolist() == [[1, 2], [3, 4]]
    assert styles.nearest(1, np.zeros(2)) is None


def test_many_equal_vectors_give_fewer_styles_without_a_warning() -> None:
    rows = np.repeat([[0.0, 1], [5, 5]], 10, axis=0)
    assert fit_styles(lambda category: rows, 1, 2, seed=0).centroids.tolist() == [[0, 1], [5, 5]]


def test_styles_of_a_category_depend_on_the_seed_and_not_on_other_categories() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(200, 4)) for _ in range(3)]
    first = fit_styles(lambda category: rows[category], 3, 4, seed=0)
    again = fit_styles(lambda category: rows[category], 3, 4, seed=0)
    assert np.array_equal(first.centroids, again.centroids)
    other = fit_styles(lambda category: rows[category] if category else rows[2][:9], 3, 4, seed=0)
    assert np.array_equal(first.centroids[5:], other.centroids[5:])
    assert not np.array_equal(
        first.centroids, fit_styles(lambda category: rows[category], 3, 4, seed=1).centroids
    )


class Counted:
    """Rows that remember how many were read at once."""

    def __init__(self, n: int) -> None:
        self.n, self.read = n, []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        numbers = np.arange(self.n)[chosen]
        self.read.append(len(numbers))
        return np.stack([numbers % 30, numbers % 7], axis=1).astype(np.float16)


def test_a_large_category_is_drawn_from_once() -> None:
    rows = Counted(MOST + 10)
    styles = fit_styles(lambda category: rows, 1, 2, seed=0)
    assert rows.read == [MOST]
    assert len(styles.centroids) == 30


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_nearest_style_is_the_one_that_trying_all_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bounds = np.concatenate([[0], np.cumsum(rng.integers(0, 4, 4))])
    styles = Styles(rng.normal(size=(bounds[-1], 3)).astype(np.float32), bounds)
    vector = rng.normal(size=3)
    for category in range(4):
        numbers = range(bounds[category], bounds[category + 1])
        expected = min(numbers, key=lambda s: np.linalg.norm(styles.centroids[s] - vector), default=None)
        assert styles.nearest(category, vector) == expected


def test_bounds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="bounds from 0 to 2 for 3 styles"):
        Styles(np.zeros((3, 2), np.float32), np.array([0, 2]))


# The paper, by a plain program straight from its formulas


class Reference:
    """All that was seen, in lists; everything is counted again at each prediction."""

    def __init__(self, styles: Styles) -> None:
        self.styles = styles
        self.examples: list[tuple[int, int, np.ndarray]] = []  # predicted, true, nearest style
        self.said: list[tuple[int, int, bool]] = []  # candidate, category, correct

    def history(self, predicted: int, true: int) -> np.ndarray:
        return np.mean([s for p, t, s in self.examples if (p, t) == (predicted, true)], axis=0)

    def candidates(self, x: np.ndarray, logits: np.ndarray) -> list[int]:
        base = next(c for c in range(len(logits)) if logits[c] == max(logits))
        seen = [true for predicted, true, _ in self.examples if predicted == base]
        if not seen:
            return [base]
        distance = {true: ((self.history(base, true) - x) ** 2).sum() for true in seen}
        places = sorted(seen, key=lambda true: (distance[true], true))
        result = [base]
        for k in NEIGHBOURS:
            votes = Counter(places[:k])
            most = max(votes.values())
            result.append(next(true for true in places if votes[true] == most))
        return result

    def mean(self, candidate: int, category: int) -> float:
        trials = [correct for a, c, correct in self.said if (a, c) == (candidate, category)]
        return (sum(trials) + 1) / (len(trials) + 2)

    def predict(self, x: np.ndarray, logits: np.ndarray) -> tuple[int, float]:
        said = self.candidates(x, logits)
        means = [self.mean(a, c) for a, c in enumerate(said)]
        best = means.index(max(means))
        return said[best], means[best]

    def learn(self, x: np.ndarray, logits: np.ndarray, true: int) -> None:
        self.said += [(a, c, c == true) for a, c in enumerate(self.candidates(x, logits))]
        first, end = self.styles.bounds[true : true + 2]
        styles = self.styles.centroids[first:end].astype(float)
        style = min(styles, key=lambda s: ((s - x) ** 2).sum()) if len(styles) else x.astype(np.float32)
        self.examples.append((base_of(logits), true, style))


def base_of(logits: np.ndarray) -> int:
    return int(np.argmax(logits))


def teach(seller: SellerModel, product: tuple[np.ndarray, np.ndarray, int]) -> None:
    vector, logits, true = product
    seller.learn(vector, base_of(logits), true)


def some_styles(rng: np.random.Generator) -> Styles:
    """Category 3 has none; two of category 4 are those of category 0, so that distances tie."""
    counts = [2, 3, 1, 0, 2]
    bounds = np.concatenate([[0], np.cumsum(counts)])
    centroids = rng.normal(size=(bounds[-1], WIDTH)).astype(np.float32)
    centroids[bounds[4] :] = centroids[:2]
    return Styles(centroids, bounds)


def stream(rng: np.random.Generator, length: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Products near the corner of their true category; the base says two categories most, often wrong."""
    true = rng.integers(0, CATEGORIES, length)
    logits = np.round(rng.normal(size=(length, CATEGORIES)), 1)
    logits[:, :2] += 1
    corners = rng.normal(size=(CATEGORIES, WIDTH))
    vectors = (corners[true] + rng.normal(0, 0.5, (length, WIDTH))).astype(np.float32)
    return list(zip(vectors, logits, true.tolist(), strict=True))


@given(st.integers(0, 10**6), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_the_papers_method_equals_the_plain_program(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    styles = some_styles(rng)
    ours, plain = PaperSeller(styles), Reference(styles)
    for number, (vector, logits, true) in enumerate(stream(rng, length)):
        choice = ours.predict(vector, logits)
        assert ours.candidates(vector, base_of(logits)) == plain.candidates(vector, logits)
        assert (choice.category, choice.share) == plain.predict(vector, logits)
        assert (choice.base, choice.corrections) == (base_of(logits), number)
        ours.learn(vector, base_of(logits), true)
        plain.learn(vector, logits, true)


def test_votes_come_from_products_and_ties_go_to_the_nearer() -> None:
    """Predicted 0 once and 1: at 1. Predicted 0 four times and 2: at 2. The product is at 0."""
    styles = Styles(np.array([[0.0], [1], [2]], np.float32), np.array([0, 1, 2, 3]))
    seller = PaperSeller(styles)
    logits = np.array([1.0, 0, 0])
    for true in (1, 2, 2, 2, 2):
        seller.learn(np.array([0.0]), base_of(logits), true)
    #                                                        base k=2 (a tie) 4, 6, 8, 10
    assert seller.candidates(np.array([0.0]), base_of(logits)) == [0, 1, 2, 2, 2, 2]


def test_a_seller_without_corrections_has_the_base_category_at_one_half() -> None:
    seller = PaperSeller(some_styles(np.random.default_rng(0)))
    choice = seller.predict(np.zeros(WIDTH), np.array([0.0, 3, 3, 0, 0]))
    assert (choice.category, choice.share, choice.adapted, choice.corrections) == (1, 0.5, False, 0)


def test_one_correction_changes_the_next_prediction_only_after_the_alternatives_have_been_correct() -> None:
    """The first counts against the base; then an unknown alternative, at one half, is better than a third."""
    seller = PaperSeller(some_styles(np.random.default_rng(0)))
    vector, logits = np.zeros(WIDTH), np.array([9.0, 0, 0, 0, 0])
    seller.learn(vector, base_of(logits), 2)
    choice = seller.predict(vector, logits)
    assert (choice.category, choice.share, choice.adapted) == (2, 0.5, True)
    assert seller.share(0, 0) == 1 / 3


@pytest.mark.parametrize("seed", range(5))
def test_the_history_does_not_depend_on_the_order_of_corrections(seed: int) -> None:
    rng = np.random.default_rng(seed)
    styles = some_styles(rng)
    products = [one for one in stream(rng, 60) if one[2] != 3]
    one, other = PaperSeller(styles), PaperSeller(styles)
    for product in products:
        teach(one, product)
    for index in rng.permutation(len(products)):
        teach(other, products[index])
    assert one._history == other._history
    assert all(one.share(0, c) == other.share(0, c) for c in range(CATEGORIES))
    for vector, logits, _ in stream(rng, 20):
        assert one.candidates(vector, base_of(logits)) == other.candidates(vector, base_of(logits))


def test_the_shares_of_alternatives_depend_on_the_order() -> None:
    """A kNN is judged by what it knew: after A, B it had A's label for B; after B, A it had B's for A."""
    styles = Styles(np.array([[0.0], [1], [2]], np.float32), np.array([0, 1, 2, 3]))
    logits = np.array([1.0, 0, 0])
    products = [(np.array([1.0]), logits, 1), (np.array([2.0]), logits, 2)]
    sellers = []
    for order in (products, products[::-1]):
        seller = PaperSeller(styles)
        for product in order:
            teach(seller, product)
        sellers.append(seller)
    assert [seller.share(1, 1) for seller in sellers] == [1 / 3, 1 / 2]


# The better method


def plain_votes(
    seen: list[tuple[np.ndarray, int]], x: np.ndarray, logits: np.ndarray, votes: Votes
) -> list[float]:
    """P(c) of every category, straight from the formula."""
    near = [0.0] * len(logits)
    for key, true in seen:
        cosine = (x @ key) / (np.linalg.norm(x) * np.linalg.norm(key))
        near[true] += np.exp(-votes.sharpness * (1 - cosine))
    products = [
        np.exp(z / votes.temperature) * (1 + votes.weight * sum_) ** votes.power
        for z, sum_ in zip(logits, near, strict=True)
    ]
    return [product / sum(products) for product in products]


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_votes_equal_the_plain_formula(seed: int, length: int) -> None:
    """Up to the rounding of the kept vectors to 11 bits."""
    rng = np.random.default_rng(seed)
    votes = Votes(*rng.uniform((0.5, 0.3, 1, 1), (2, 2, 10, 50)))
    seller = VotesSeller(votes)
    seen: list[tuple[np.ndarray, int]] = []
    for vector, logits, true in stream(rng, length):
        shares = plain_votes(seen, vector.astype(float), logits, votes)
        choice = seller.predict(vector, logits)
        assert choice.share == pytest.approx(max(shares), abs=0.02)
        assert shares[choice.category] == pytest.approx(max(shares), abs=0.02)
        assert choice.base == base_of(logits)
        seller.learn(vector, base_of(logits), true)
        seen.append((vector.astype(float), true))


def test_far_corrections_change_nothing_and_equal_ones_do() -> None:
    seller = VotesSeller(Votes(power=1.0, sharpness=50.0, weight=5.0))
    logits = np.log([0.6, 0.3, 0.1])
    for _ in range(3):
        seller.learn(np.array([0.0, 1.0]), base_of(logits), 1)
    far = seller.predict(np.array([1.0, 0.0]), logits)
    assert (far.category, far.adapted) == (0, False)
    assert far.share == pytest.approx(0.6)
    near = seller.predict(np.array([0.0, 2.0]), logits)
    assert (near.category, near.base, near.corrections) == (1, 0, 3)
    assert near.share == pytest.approx(0.3 * 16 / (0.3 * 16 + 0.7))


def test_one_correction_is_not_enough_where_the_base_is_certain() -> None:
    """By the defaults one equal product is worth a factor of 101^0.8 = 40, three of them 96."""
    seller = VotesSeller(Votes())
    certain, doubtful = np.log([0.985, 0.015]), np.log([0.9, 0.1])
    same = np.array([1.0, 0.0])
    seller.learn(same, 0, 1)
    assert not seller.predict(same, certain).adapted
    assert seller.predict(same, doubtful).adapted
    seller.learn(same, 0, 1)
    seller.learn(same, 0, 1)
    assert seller.predict(same, certain).adapted


@pytest.mark.parametrize("seed", range(3))
def test_the_votes_do_not_depend_on_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    products = stream(rng, 50)
    one, other = VotesSeller(Votes()), VotesSeller(Votes())
    for product in products:
        teach(one, product)
    for index in rng.permutation(50):
        teach(other, products[index])
    for vector, logits, _ in stream(rng, 20):
        first, second = one.predict(vector, logits), other.predict(vector, logits)
        assert first.share == pytest.approx(second.share)


def test_the_oldest_corrections_are_dropped() -> None:
    seller = VotesSeller(Votes())
    logits = np.zeros(2)
    for number in range(KEPT + 3):
        seller.learn(np.array([1.0, number]), 0, number % 2)
    assert seller.predict(np.array([1.0, 0.0]), logits).corrections == KEPT + 3
    assert len(seller._true[: seller._kept]) == KEPT
    assert seller._true[0] == 1  # number 3 is the oldest
    assert seller._keys[0] == pytest.approx(np.array([1, 3]) / np.sqrt(10), abs=1e-3)


def drawn_streams(rng: np.random.Generator, sellers: int, own: bool) -> list[Stream]:
    """Sellers who use, for half of the corners, another category than the base says; a tenth is wrong."""
    corners = 3 * rng.normal(size=(12, 6))
    streams = []
    for _ in range(sellers):
        uses = np.where(rng.random(12) < 0.5, rng.permutation(12), np.arange(12)) if own else np.arange(12)
        corner = rng.integers(0, 12, 120)
        vectors = corners[corner] + rng.normal(0, 0.3, (120, 6))
        logits = 4.0 * np.eye(12)[corner] + rng.normal(0, 0.3, (120, 12))
        true = np.where(rng.random(120) < 0.9, uses[corner], rng.integers(0, 12, 120))
        streams.append(Stream(vectors, logits, true if own else rng.permutation(corner)))
    return streams


def test_the_fit_trusts_corrections_where_sellers_differ_and_not_where_they_are_noise() -> None:
    """By the odds that one equal product changes."""
    rng = np.random.default_rng(0)
    own = fit_votes(drawn_streams(rng, 5, own=True))
    noise = fit_votes(drawn_streams(rng, 5, own=False))
    factors = [(1 + votes.weight) ** votes.power for votes in (own, noise)]
    assert factors[0] > 10 > 2 > factors[1]
    assert noise.temperature > 2  # the base is wrong there, and says so less surely


def test_the_more_corrections_are_wrong_the_less_one_counts() -> None:
    streams = drawn_streams(np.random.default_rng(2), 5, own=True)
    factors = [(1 + votes.weight) ** votes.power for votes in (fit_votes(streams, w) for w in (0, 0.3))]
    assert factors[0] > factors[1]


def test_the_fit_finds_no_worse_place_than_its_neighbours() -> None:
    """The likelihood by the plain formula, one product after the other."""
    streams = drawn_streams(np.random.default_rng(1), 2, own=True)

    def loss(votes: Votes) -> float:
        losses = []
        for one in streams:
            seen: list[tuple[np.ndarray, int]] = []
            of_seller = []
            for vector, logits, true in zip(one.vectors, one.logits, one.true, strict=True):
                of_seller.append(-np.log(plain_votes(seen, vector, logits, votes)[true]))
                seen.append((vector, true))
            losses.append(np.mean(of_seller))
        return float(np.mean(losses))

    found = fit_votes(streams, wrong=0)
    least = loss(found)
    for factor in (0.7, 1.4):
        for name in vars(found):
            values = {key: getattr(found, key) * (factor if key == name else 1) for key in vars(found)}
            assert loss(Votes(**values)) > least - 1e-3


def test_a_fit_without_products_is_refused() -> None:
    with pytest.raises(ValueError, match="no products of sellers"):
        fit_votes([])


# What every method keeps

METHODS: dict[str, Callable[[Styles], SellerMethod]] = {
    "paper": PaperMethod,
    "votes": lambda styles: VotesMethod(Votes()),
}


def empty(method: str, styles: Styles) -> SellerModel:
    return METHODS[method](styles).seller(np.zeros((0, WIDTH)), np.zeros(0, int), np.zeros(0, int))


@pytest.mark.parametrize("method", METHODS)
def test_a_seller_made_from_his_products_is_as_if_they_had_come_one_by_one(method: str) -> None:
    rng = np.random.default_rng(3)
    styles = some_styles(rng)
    products = stream(rng, 60)
    vectors, logits, true = (np.array(column) for column in zip(*products, strict=True))
    whole = METHODS[method](styles).seller(vectors[:30], logits[:30].argmax(1), true[:30])
    straight = empty(method, styles)
    for product in products[:30]:
        teach(straight, product)
    for product in products[30:]:
        teach(whole, product)
        teach(straight, product)
    for vector, scores, _ in stream(rng, 30):
        assert whole.predict(vector, scores) == straight.predict(vector, scores)


@pytest.mark.parametrize("method", METHODS)
def test_a_seller_without_products_says_what_the_base_classifier_says(method: str) -> None:
    seller = empty(method, some_styles(np.random.default_rng(0)))
    choice = seller.predict(np.zeros(WIDTH), np.array([0.0, 0, 5, 0, 0]))
    assert (choice.category, choice.corrections) == (2, 0)


@pytest.mark.parametrize("method", METHODS)
def test_no_seller_changes_another(method: str) -> None:
    rng = np.random.default_rng(0)
    styles = some_styles(rng)
    one, other = empty(method, styles), empty(method, styles)
    products = stream(rng, 20)
    for product in products[:10]:
        teach(one, product)
    before = [one.predict(vector, logits) for vector, logits, _ in products]
    for vector, logits, true in products:
        other.learn(vector, base_of(logits), (true + 1) % CATEGORIES)
    assert [one.predict(vector, logits) for vector, logits, _ in products] == before


@pytest.mark.parametrize("method", METHODS)
def test_predicting_changes_nothing(method: str) -> None:
    rng = np.random.default_rng(0)
    seller = empty(method, some_styles(rng))
    products = stream(rng, 20)
    for product in products:
        teach(seller, product)
    before = pickle.dumps(seller)
    for vector, logits, _ in products:
        seller.predict(vector, logits)
    assert pickle.dumps(seller) == before
