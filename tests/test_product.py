"""The split: the paper's counts in every category, the same in any order of rows; nobody changes sides."""

import hashlib
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.product import DROPPED, PARTS, SPLITS, SplitShares, order_key, split_products, wanted_counts


def paper(products: int) -> dict[str, int]:
    """S1's rule in decimal arithmetic, from 20 products on: ten to test under 100, else 80 / 10 / 10."""
    tenth = int((Decimal(products) / 10).quantize(Decimal(1), ROUND_HALF_UP))
    test = 10 if products < 100 else tenth
    return {"train": products - tenth - test, "val": tenth, "test": test}


def without_training(products: int, others: Counter) -> dict[str, int]:
    """The rule for all products of small categories together: the shares of the other categories."""
    val, test = (
        int((Decimal(products * others[part]) / others.total()).quantize(Decimal(1), ROUND_HALF_UP))
        for part in ("val", "test")
    )
    return {DROPPED: products - val - test, "val": val, "test": test}


def draw_catalogue(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and categories of 300 categories with 1 to 400 products, the edges of the rule among them."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate(
        [[1, 19, 20, 24, 25, 94, 95, 99, 100, 104, 105, 114, 115], rng.integers(1, 400, 287)]
    )
    category = np.repeat([f"c{number}" for number in range(len(sizes))], sizes)
    return np.array([f"p{number}" for number in range(len(category))], dtype=object), category


def counts(category: np.ndarray, split: np.ndarray) -> dict[str, dict[str, int]]:
    """Products of each category by part."""
    return {name: dict(Counter(split[category == name].tolist())) for name in np.unique(category).tolist()}


def nobody(product_id: np.ndarray) -> np.ndarray:
    return np.full(len(product_id), "", dtype=object)


def split_by_name(
    product_id: np.ndarray, category: np.ndarray, known: np.ndarray, min_products: int = 20
) -> np.ndarray:
    """The split of products in any order, by names: what the plan does around `split_products`."""
    order = np.argsort(product_id, kind="stable")
    keys = np.array([order_key(product) for product in product_id[order]], dtype=np.int64)
    codes = np.unique(category[order], return_inverse=True)[1].astype(np.int32)
    parts = np.array([SPLITS.index(part) if part else -1 for part in known[order]], dtype=np.int8)
    split = np.empty(len(order), dtype=object)
    split[order] = np.array(SPLITS, dtype=object)[split_products(keys, codes, parts, min_products)]
    return split


@pytest.mark.parametrize(
    ("products", "counts_wanted"),
    [
        (19, (0, 0, 0)),
        (20, (8, 2, 10)),
        (24, (12, 2, 10)),
        (25, (12, 3, 10)),
        (99, (79, 10, 10)),
        (100, (80, 10, 10)),
        (104, (84, 10, 10)),
        (105, (83, 11, 11)),
        (1000, (800, 100, 100)),
    ],
)
def test_wanted_counts_are_the_papers(products: int, counts_wanted: tuple[int, int, int]) -> None:
    assert wanted_counts(products) == counts_wanted


def test_wanted_counts_agree_with_decimal_arithmetic_for_every_size() -> None:
    for products in range(20, 3000):
        assert wanted_counts(products) == tuple(paper(products)[part] for part in PARTS)


def test_shares_of_the_split_hold_in_every_category_and_leave_one_to_train() -> None:
    shares = SplitShares(val=0.15, test=0.35, least_test=3)
    assert wanted_counts(18, 1, shares) == (9, 3, 6)  # 2.7 and 6.3
    assert wanted_counts(4, 1, shares) == (1, 1, 2)
    assert wanted_counts(30, 1, SplitShares(0.1, 0.05, 0)) == (25, 3, 2)  # 1.5 is rounded up
    for share in (shares, SplitShares(0.05, 0.01, 0), SplitShares(0.49, 0.5, 40)):
        for products in range(1, 400):
            train, val, test = wanted_counts(products, 1, share)
            assert train + val + test == products and train >= 1 and min(val, test) >= 0
            assert val >= (products > 1)


def test_split_follows_its_shares() -> None:
    key = np.array([order_key(f"p{n:04}") for n in range(300)])
    category = np.repeat([0, 1, 2], [200, 90, 10])
    split = split_products(key, category, np.full(300, -1), 20, SplitShares(0.2, 0.3, 5))
    counts = [np.bincount(split[category == one], minlength=5).tolist() for one in range(3)]
    assert counts == [[100, 40, 60, 0, 0], [45, 18, 27, 0, 0], [0, 2, 3, 0, 5]]


def test_smaller_categories_may_be_learnt_and_always_have_a_product_to_train_on() -> None:
    small = [wanted_counts(products, min_products=1) for products in range(1, 20)]
    assert small[:4] == [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2)]
    assert [sum(counts_wanted) for counts_wanted in small] == list(range(1, 20))
    assert min(train for train, _, _ in small) == 1
    assert min(min(counts_wanted) for counts_wanted in small) == 0


def test_every_category_of_a_catalogue_is_split_by_the_papers_rule() -> None:
    product_id, category = draw_catalogue(1)
    split = split_by_name(product_id, category, nobody(product_id))
    counted = counts(category, split)
    assert len(counted) == 300
    small, large = Counter(), Counter()
    for name, parts in counted.items():
        products = int(np.sum(category == name))
        if products < 20:
            small.update(parts)
        else:
            assert parts == paper(products), name
            large.update(parts)
    assert small == without_training(small.total(), large) and small.total() > 100


def test_order_of_rows_changes_nothing() -> None:
    product_id, category = draw_catalogue(2)
    split = split_by_name(product_id, category, nobody(product_id))
    order = np.random.default_rng(3).permutation(len(product_id))
    again = split_by_name(product_id[order], category[order], nobody(product_id))
    assert again.tolist() == split[order].tolist()


def test_with_a_tenth_more_products_no_old_one_moves_and_the_counts_are_exact_again() -> None:
    product_id, category = draw_catalogue(4)
    before = split_by_name(product_id, category, nobody(product_id))
    rng = np.random.default_rng(5)
    fresh = len(product_id) // 10
    names = np.concatenate([category, rng.choice([*np.unique(category), "new1", "new2"], fresh)])
    ids = np.concatenate([product_id, [f"new{number}" for number in range(fresh)]])
    large = np.isin(category, [name for name, count in Counter(category.tolist()).items() if count >= 20])
    known = np.concatenate([np.where(large, before, ""), nobody(ids[-fresh:])])

    order = rng.permutation(len(ids))
    after = split_by_name(ids[order], names[order], known[order])[np.argsort(order)]
    stayed = known != ""
    assert after[stayed].tolist() == known[stayed].tolist()
    for name, parts in counts(names, after).items():
        if (products := int(np.sum(names == name))) >= 20:
            assert parts == paper(products), name


def test_products_of_small_categories_keep_their_side_when_their_category_is_learnt() -> None:
    ids = np.array([f"p{number}" for number in range(60)], dtype=object)
    category = np.repeat(["large", "small"], [41, 19])
    before = split_by_name(ids, category, nobody(ids))
    assert counts(category, before)["large"] == {"train": 27, "val": 4, "test": 10}
    assert counts(category, before)["small"] == {"val": 2, "test": 5, DROPPED: 12}  # as 4 and 10 of 41
    known = np.where(before == DROPPED, "", before)
    grown = split_by_name(np.append(ids, "new"), np.append(category, "small"), np.append(known, ""))
    assert (grown[:-1][before != DROPPED] == before[before != DROPPED]).all()
    assert counts(np.append(category, "small"), grown)["small"] == {"train": 8, "val": 2, "test": 10}


def test_known_product_keeps_its_part_in_another_category_and_takes_a_place_there() -> None:
    ids = np.array([f"p{number}" for number in range(40)], dtype=object)
    known = nobody(ids)
    known[:3], known[3:15] = "val", "test"
    split = split_by_name(ids, np.full(40, "other"), known)
    assert split[:15].tolist() == ["val"] * 3 + ["test"] * 12
    # counts_wanted 26 / 4 / 10: test is over-full, val has room for one
    assert Counter(split[15:].tolist()) == {"val": 1, "train": 24}


def test_new_products_take_the_places_in_the_order_of_the_hash() -> None:
    ids = np.array([f"p{number}" for number in range(30)], dtype=object)
    split = split_by_name(ids, np.full(30, "one"), nobody(ids))
    ordered = split[np.argsort([order_key(product) for product in ids])]
    assert ordered.tolist() == ["test"] * 10 + ["val"] * 3 + ["train"] * 17


def test_known_product_is_dropped_with_its_category() -> None:
    ids = np.array([f"p{number}" for number in range(19)], dtype=object)
    assert set(split_by_name(ids, np.full(19, "small"), np.full(19, "train"))) == {DROPPED}


def test_smallest_category_is_a_setting() -> None:
    ids = np.array([f"p{number}" for number in range(3)], dtype=object)
    split = split_by_name(ids, np.array(["one", "two", "two"]), nobody(ids), min_products=2)
    assert split[0] == "val", "a half of the others is in val"
    assert sorted(split[1:]) == ["train", "val"]


def test_catalogue_without_products_is_split_into_nothing() -> None:
    nothing = np.array([], dtype=object)
    assert split_by_name(nothing, nothing, nothing).tolist() == []


def test_order_key_is_a_hash_that_never_changes() -> None:
    assert order_key("product 1") == 0xA1B526ADE2BFC209 // 2  # printf 'product 1' | b2sum -l 64
    shoe = hashlib.blake2b("chaussure-é-鞋".encode(), digest_size=8).hexdigest()
    assert order_key("chaussure-é-鞋") == int(shoe, 16) // 2


def test_order_keys_are_spread_evenly() -> None:
    share = np.array([order_key(str(number)) for number in range(10_000)]) / 2**63
    assert 0 <= share.min() < share.max() < 1
    np.testing.assert_allclose(np.histogram(share, bins=10, range=(0, 1))[0], 1000, atol=150)


def places_by_hand(ids: list[str], category: list[str], known: list[str], smallest: int) -> list[str]:
    """The split by lists and loops: test, then val, then train, in the order of the hash."""
    split = [DROPPED] * len(ids)
    small = {name for name in category if category.count(name) < smallest}
    together = ["small" if name in small else name for name in category]
    large = Counter()
    for name in sorted(set(together), key=lambda name: name == "small"):
        rows = [row for row in range(len(ids)) if together[row] == name]
        least = smallest if name != "small" else 1
        wanted = dict(zip(PARTS, wanted_counts(len(rows), least), strict=True))
        large.update(wanted if name != "small" else {})
        if name == "small" and large:
            wanted = without_training(len(rows), large)
        free = wanted | {"train": len(rows)}
        for row in rows:
            if known[row]:
                split[row] = known[row]
                free[known[row]] -= 1
        for row in sorted(rows, key=lambda row: order_key(ids[row])):
            if not known[row]:
                split[row] = next(part for part in ("test", "val", "train") if free[part] > 0)
                free[split[row]] -= 1
        if name == "small":
            for row in rows:
                split[row] = DROPPED if split[row] == "train" else split[row]
    return split


products = st.lists(
    st.tuples(st.text(max_size=8), st.sampled_from("abc"), st.sampled_from(["", "", *PARTS])),
    max_size=80,
    unique_by=lambda product: product[0],
)


@settings(max_examples=100, deadline=None)
@given(products, st.integers(1, 6))
def test_split_agrees_with_giving_places_one_by_one(rows: list[tuple[str, str, str]], smallest: int) -> None:
    ids, category, known = ([row[column] for row in rows] for column in range(3))
    columns = [np.array(column, dtype=object) for column in (ids, category, known)]
    assert split_by_name(*columns, smallest).tolist() == places_by_hand(ids, category, known, smallest)
