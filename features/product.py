"""Products, their images, and the part (train, val, test) a product falls into.

The split is by product and exact per category (Li et al., APIA 2018, hal-01830894), and sticky: a product
that the release in service knows keeps its part, whatever its category is now.
"""

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

PARTS = ("train", "val", "test")
# split of products without a category, and of those that would train a category that is too small
NONE, DROPPED = "none", "dropped"
SPLITS = (*PARTS, NONE, DROPPED)
TRAIN, VAL, TEST = range(3)
# (category, its names from coarse to fine) → how many products say so
CategoryPaths = Counter[tuple[str, tuple[str, ...]]]

# Names of the parts of a split in other data sets, in lower case.
PART_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "val" for name in ("val", "valid", "validation", "dev")},
    **{name: "test" for name in ("test", "testing", "eval")},
}
LEVEL = re.compile(r"(?:category_)?level_?0*([1-9]\d*)", re.IGNORECASE)


def part_named(name: str) -> str | None:
    """Returns the part that a source calls `name`, in any case; "" for a blank name, None for an unknown one.

    >>> part_named("Training"), part_named("dev"), part_named(" "), part_named("holdout")
    ('train', 'val', '', None)
    """
    name = name.strip().lower()
    return PART_NAMES.get(name) if name else ""


@functools.lru_cache(2**16)
def tidy_name(name: str) -> str:
    """Returns the name of a category or level as it is compared: Unicode NFC, no extra blanks.

    >>> tidy_name(" Cafe\u0301  au\u00a0lait ") == "Caf\u00e9 au lait"
    True
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def level_columns(columns: Iterable[str]) -> list[str]:
    """Returns the columns of the levels of the tree, from coarse to fine: `level1`, `category_level_2`, ….

    >>> level_columns(["Category_Level_2", "level10", "level_count", "category_level1"])
    ['category_level1', 'Category_Level_2', 'level10']
    """
    number = {name: int(found[1]) for name in columns if (found := LEVEL.fullmatch(name.strip()))}
    return sorted(number, key=lambda name: number[name])


@dataclass(frozen=True)
class ProductImage:
    """One readable image of a product, as a record holds it."""

    product_id: str
    image_index: int  # position among the product's images, from 0
    category: str
    split: str
    seller: str  # "" when unknown
    image_digest: str  # sha256 (hex) of the source's bytes
    jpeg: bytes  # strictly decodable, RGB or grey, upright


@dataclass(frozen=True)
class SplitShares:
    """How the products of a category are divided; the defaults are those of S1 (hal-01830894)."""

    val: float = 0.1
    test: float = 0.1  # together under 1
    least_test: int = 10  # products of a category in test, at least, as long as one is left to train


PAPER = SplitShares()


def wanted_counts(products: int, min_products: int = 20, shares: SplitShares = PAPER) -> tuple[int, int, int]:
    """Returns how many products of a category go to train, val and test; zeros below `min_products`.

    Source: S1 (hal-01830894): a tenth goes to validation and a tenth to test, but 10 products to test at
    least. Shares are rounded half up, val is at least one; at least one product trains.

    >>> wanted_counts(19), wanted_counts(20), wanted_counts(99), wanted_counts(105)
    ((0, 0, 0), (8, 2, 10), (79, 10, 10), (83, 11, 11))
    >>> wanted_counts(20, shares=SplitShares(val=0.2, test=0.1, least_test=2))
    (14, 4, 2)
    """
    if products < min_products:
        return 0, 0, 0
    val = min(max(1, _rounded(shares.val, products)), products - 1)
    test = min(max(shares.least_test, _rounded(shares.test, products)), products - val - 1)
    return products - val - test, val, test


def _like_the_others(products: int, others: list[int], shares: SplitShares) -> tuple[int, int, int]:
    """Counts of the three parts, in the shares of other products; as wanted where there are none.

    >>> _like_the_others(20, [80, 10, 30], PAPER)  # 1.67 and 5 are rounded half up
    (13, 2, 5)
    """
    if not sum(others):
        return wanted_counts(products, 1, shares)
    val, test = (int(Fraction(products * part, sum(others)) + Fraction(1, 2)) for part in others[1:])
    return products - val - test, val, test


def _rounded(share: float, products: int) -> int:
    """The share of so many products, rounded half up, by decimal arithmetic.

    >>> _rounded(0.35, 90)  # 31.5; in floats it is under it
    32
    """
    return int(Fraction(str(share)) * products + Fraction(1, 2))


def order_key(product_id: str) -> int:
    """Returns a fixed pseudo-random number of a product, 63 bits: the same everywhere and in every week."""
    return int.from_bytes(hashlib.blake2b(product_id.encode(), digest_size=8).digest()) >> 1


def split_products(
    key: np.ndarray,
    category: np.ndarray,
    known: np.ndarray,
    min_products: int = 20,
    shares: SplitShares = PAPER,
) -> np.ndarray:
    """Returns the part of every product: train, val, test, or dropped.

    Of the products of categories under `min_products`, all together, the same shares go to val and test as
    of the others; the rest may not train, and is dropped. Those in val and test count as what a head cannot
    know: a promise about all products has to count them, as many as there are.

    Args:
        key: (n,) int64, `order_key` of the products, which are sorted by their ids (ids break ties).
        category: (n,) int, from 0.
        known: (n,) int, the part in the release in service, as an index into SPLITS; -1 where it does not
            know the product.
        min_products: size of the smallest category to train on.
        shares: of val and test.

    Returns:
        (n,) int8, indices into SPLITS. Known products count first towards the wanted counts; new products, in
        the order of their keys, fill what is left in test, then in val; the rest trains.
    """
    small = np.bincount(category) < min_products
    together = np.where(small[category], len(small), category)  # all small categories as one more
    size = np.bincount(together, minlength=len(small) + 1).tolist()
    wanted = np.array([wanted_counts(n, min_products, shares) for n in size[:-1]] + [(0, 0, 0)])
    wanted[-1] = _like_the_others(size[-1], wanted.sum(axis=0).tolist(), shares)
    taken = np.stack(
        [np.bincount(together[known == part], minlength=len(size)) for part in range(len(PARTS))], axis=1
    )
    left = np.maximum(wanted - taken, 0)

    fresh = np.flatnonzero(known < 0)
    fresh = fresh[np.lexsort((key[fresh], together[fresh]))]
    own = together[fresh]
    rank = np.arange(len(fresh)) - np.searchsorted(own, own)  # in its category, from 0
    test, val = left[own, TEST], left[own, VAL]
    split = known.astype(np.int8)
    split[fresh] = np.select([rank < test, rank < test + val], [TEST, VAL], TRAIN)
    split[small[category] & (split == TRAIN)] = SPLITS.index(DROPPED)
    return split
