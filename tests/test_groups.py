"""Duplicate groups are the connected ones, and each is on one side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.groups import duplicate_groups, in_fit


def grown(pairs: list[tuple[str, str]]) -> list[str]:
    """The group of each (product, image) by growing sets until nothing changes."""
    group = {image: image for _, image in pairs}
    for _ in pairs:
        for product, _ in pairs:
            mine = [image for other, image in pairs if other == product]
            smallest = min(group[image] for image in mine)
            group |= {image: smallest for image in mine}
    return [group[image] for _, image in pairs]


def groups_of(pairs: list[tuple[str, str]]) -> list[str]:
    columns = (np.array([pair[column] for pair in pairs], dtype=object) for column in (0, 1))
    return duplicate_groups(*columns).tolist()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqrstuvw"), st.sampled_from("abcdefghij")), max_size=14))
def test_groups_agree_with_growing_them_by_hand(pairs: list[tuple[str, str]]) -> None:
    assert groups_of(pairs) == grown(pairs)


def test_products_that_share_no_image_but_a_chain_of_others_are_one_group() -> None:
    chain = [("p", "d"), ("p", "c"), ("q", "c"), ("q", "b"), ("r", "b"), ("r", "a"), ("s", "e")]
    assert groups_of(chain) == ["a"] * 6 + ["e"]


def test_product_with_the_same_image_twice_is_no_trouble() -> None:
    assert groups_of([("p", "b"), ("p", "b"), ("p", "a")]) == ["a", "a", "a"]


def test_product_and_image_of_the_same_name_are_different_things() -> None:
    assert groups_of([("a", "b"), ("b", "c")]) == ["b", "c"]


def test_name_of_a_group_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    product = rng.integers(0, 300, 500).astype(str).astype(object)
    image = rng.integers(0, 600, 500).astype(str).astype(object)
    order = rng.permutation(500)
    straight = duplicate_groups(product, image)
    assert duplicate_groups(product[order], image[order]).tolist() == straight[order].tolist()


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.8, 1.0])
def test_a_share_of_the_groups_selects(share: float) -> None:
    names = np.array([f"group {number}" for number in range(3000)], dtype=object)
    assert in_fit(names, share).mean() == pytest.approx(share, abs=0.03)


def test_group_is_on_one_side_and_stays_there_whatever_else_comes() -> None:
    names = np.array([f"group {number}" for number in range(100)], dtype=object)
    chosen = in_fit(names, 1 / 3)
    assert in_fit(np.repeat(names, 2)[50:], 1 / 3).tolist() == np.repeat(chosen, 2)[50:].tolist()
    assert in_fit(np.array([], dtype=object), 1 / 3).tolist() == []
