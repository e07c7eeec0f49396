"""Products, their images, and the part (train, val, test) a product falls into.

The split is by product and exact per category (Li et al., APIA 2018, hal-01830894), and sticky: a product
that the release in service knows keeps its part, whatever its category is now.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

PARTS = ("train", "val", "test")
NONE, DROPPED = "none", "dropped"  # split of products without category, and in a category too small


@dataclass(frozen=True)
class ProductImage:
    """One readable image of a product, as it stands in a record."""

    product_id: str
    image_index: int  # position among the product's images, from 0
    category: str
    split: str
    seller: str  # "" when unknown
    image_digest: str  # sha256 (hex) of the source's bytes
    jpeg: bytes  # strictly decodable, RGB or grey, upright


def wanted_counts(products: int, min_products: int = 20) -> tuple[int, int, int]:
    """Products of a category wanted in train, val and test; zeros below `min_products`.

    Source: S1 (hal-01830894): under 100 products 10 go to test and a tenth to validation, else a tenth each;
    tenths are rounded half up, at least one; at least one trains.

    >>> wanted_counts(19), wanted_counts(20), wanted_counts(99), wanted_counts(105)
    ((0, 0, 0), (8, 2, 10), (79, 10, 10), (83, 11, 11))
    """
    if products < min_products:
        return 0, 0, 0
    tenth = max(1, (products + 5) // 10) if products > 1 else 0
    test = tenth if products >= 100 else min(10, products - tenth - 1)
    return products - tenth - test, tenth, test


def order_key(product_id: str) -> int:
    """A fixed pseudo-random 63-bit place for a product, the same on every machine and in every week."""
    return int.from_bytes(hashlib.blake2b(product_id.encode(), digest_size=8).digest()) >> 1


def split_products(
    product_id: np.ndarray, category: np.ndarray, known: np.ndarray, min_products: int = 20
) -> np.ndarray:
    """Part of every product: one of PARTS, or DROPPED where its category has under `min_products` products.

    Args:
        product_id: (n,) str, distinct.
        category: (n,) str.
        known: (n,) str, the part in the release in service; "" where it does not know the product.
        min_products: smallest category that is learnt.

    Returns:
        (n,) str. Wanted counts are filled by the known products first; the places left in test, then in val,
        go to new products in the order of `order_key`; the rest trains. The order of rows changes nothing.
    """
    keys = [order_key(product) for product in product_id]
    table = pd.DataFrame({"category": category, "key": keys, "known": known})
    size = table.groupby("category")["key"].transform("size").to_numpy()
    counts = {n: wanted_counts(n, min_products) for n in np.unique(size).tolist()}
    wanted = np.array([counts[n] for n in size.tolist()]).reshape(-1, 3)

    fresh = (table["known"] == "").to_numpy()
    taken = [(table["known"] == part).groupby(table["category"]).transform("sum") for part in PARTS]
    left_val, left_test = (np.maximum(wanted[:, i] - taken[i].to_numpy(), 0) for i in (1, 2))
    # ids break the ties of the hash
    ordered = table.assign(id=product_id, fresh=fresh).sort_values(["category", "key", "id"])
    place = ordered.groupby("category")["fresh"].cumsum().sort_index().to_numpy()

    split = np.where(place <= left_test + left_val, "val", "train").astype(object)
    split[place <= left_test] = "test"
    split[~fresh] = np.asarray(known, dtype=object)[~fresh]
    split[size < min_products] = DROPPED
    return split
