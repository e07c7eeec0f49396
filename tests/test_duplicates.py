"""Duplicates: every image of several products is found, with its products and its contradictory labels."""

import hashlib
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from test_split_plan import index_of

from pipeline.ingest.duplicates import (
    SharedDigests,
    contradictions,
    duplicates_table,
    find_shared,
)
from pipeline.ingest.split_plan import plan_products


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def drawn_rows(seed, images=600):
    """Images of which some stand in several products, several times in one, or are unreadable."""
    rng = np.random.default_rng(seed)
    return [
        {
            "product_id": f"p{product}",
            "category": ["", "mugs", "plates", "lamps"][product % 4],
            "digest": digest(rng.integers(40) if rng.random() < 0.5 else 1000 + row),
            "reason": "truncated" if rng.random() < 0.1 else "",
            "flat": bool(rng.random() < 0.02),
        }
        for row, product in enumerate(rng.integers(0, 200, images))
    ]


def found(rows, placeholder_products=100, piece=70):
    """duplicates.parquet as dicts, the checked rows being read again in pieces."""
    index = index_of(rows)
    products = plan_products(index, None, 1)
    shared, placeholder = find_shared(index, placeholder_products)
    digests = SharedDigests(shared)
    whole = pa.array([bytes.fromhex(row["digest"]) for row in rows], pa.binary(32))
    for start in range(0, len(rows), piece):
        digests.see(start, pa.chunked_array([whole[start : start + piece]]))
    count = len(shared.row)
    pieces = [slice(start, min(start + 11, count)) for start in range(0, count, 11)]
    rows = [
        row
        for images in pieces
        for row in duplicates_table(shared, digests, placeholder, products, images).to_pylist()
    ]
    return rows, contradictions(shared, products), placeholder


def in_plain_python(rows):
    """Digest → products, of the images in several products."""
    products = defaultdict(set)
    for row in rows:
        if not row["reason"]:
            products[row["digest"]].add(row["product_id"])
    return {key: sorted(its) for key, its in products.items() if len(its) > 1}


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_agree_with_those_found_image_by_image(seed):
    rows = drawn_rows(seed)
    table, contradictory, _ = found(rows)
    wanted = in_plain_python(rows)
    assert {row["image_digest"]: row["products"] for row in table} == wanted and len(wanted) > 20
    assert [row["image_digest"] for row in table] == sorted(wanted)
    category = {row["product_id"]: row["category"] for row in rows}
    for row in table:
        assert row["categories"] == sorted({category[product] for product in row["products"]} - {""})
    assert contradictory == sum(len(row["categories"]) > 1 for row in table) > 5


def test_an_image_several_times_in_one_product_is_no_duplicate():
    rows = [{"product_id": "a", "category": "mugs", "digest": digest(1), "reason": ""}] * 3
    assert found(rows)[0] == []


def test_without_images_there_are_no_duplicates():
    assert found([{"product_id": "a", "digest": digest(1), "reason": "truncated"}])[:2] == ([], 0)


def test_an_image_of_very_many_products_and_a_flat_one_are_placeholders():
    rows = [
        {"product_id": f"p{n}", "category": "mugs", "digest": digest(n // 5), "reason": ""} for n in range(20)
    ]
    rows += [
        {"product_id": f"q{n}", "category": "mugs", "digest": digest("shown often"), "reason": ""}
        for n in range(6)
    ]
    rows += [{"product_id": "r", "category": "mugs", "digest": digest("grey"), "reason": "", "flat": True}]
    rows += [
        {"product_id": "r", "category": "mugs", "digest": digest("cut"), "reason": "truncated", "flat": True}
    ]
    table, _, placeholder = found(rows, placeholder_products=6)
    assert np.flatnonzero(placeholder).tolist() == [20, 21, 22, 23, 24, 25, 26]
    assert {row["image_digest"] for row in table if row["placeholder"]} == {digest("shown often")}
