"""An image counts once in its product; duplicate groups are connected, and each is in FIT or in CERT."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decisions import validation_split as groups
from models.decisions.validation_split import duplicate_groups, first_of_product, in_fit

# digests that begin alike, some of which are alike
ALIKE = [bytes(32), bytes(31) + b"a", b"a" + bytes(31), bytes(8) + b"a" * 24, bytes(16) + b"b" * 16]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(ALIKE), min_size=1, max_size=6), max_size=8),
    st.sampled_from([1, 3, 2**20]),
)
def test_first_of_product_agrees_with_comparing_one_image_after_the_other(
    products: list[list[bytes]], piece: int
) -> None:
    expected = [
        digest not in digests[:position] for digests in products for position, digest in enumerate(digests)
    ]
    codes = np.random.default_rng(0).permutation(len(products))  # in no order, as a dictionary's are
    product = np.repeat(codes, [len(digests) for digests in products]).astype(np.int32)
    digest = np.frombuffer(b"".join(map(b"".join, products)), np.uint8).reshape(-1, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "PIECE", piece)
        assert first_of_product(product, digest).tolist() == expected


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


def test_product_with_the_same_image_twice_is_one_group() -> None:
    assert groups_of([("p", "b"), ("p", "b"), ("p", "a")]) == ["a", "a", "a"]


def test_product_and_image_of_the_same_name_are_not_connected() -> None:
    assert groups_of([("a", "b"), ("b", "c")]) == ["b", "c"]


def test_name_of_a_group_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    product = rng.integers(0, 300, 500).astype(str).astype(object)
    image = rng.integers(0, 600, 500).astype(str).astype(object)
    order = rng.permutation(500)
    straight = duplicate_groups(product, image)
    assert duplicate_groups(product[order], image[order]).tolist() == straight[order].tolist()


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.8, 1.0])
def test_fit_has_its_share_of_the_groups(share: float) -> None:
    names = np.array([f"group {number}" for number in range(3000)], dtype=object)
    assert in_fit(names, share).mean() == pytest.approx(share, abs=0.03)


def test_group_is_in_fit_or_cert_whatever_other_groups_there_are() -> None:
    names = np.array([f"group {number}" for number in range(100)], dtype=object)
    chosen = in_fit(names, 1 / 3)
    assert in_fit(np.repeat(names, 2)[50:], 1 / 3).tolist() == np.repeat(chosen, 2)[50:].tolist()
    assert in_fit(np.array([], dtype=object), 1 / 3).tolist() == []
