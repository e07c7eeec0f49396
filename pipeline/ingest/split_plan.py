"""The plan of an ingest, on arrays alone: the index → products with their parts → the shard of every image.

Products   one a product, sorted by id: category, split, readable images, seller, weight
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ShelfmarkError, Stopped
from features.product import (
    DROPPED,
    NONE,
    PAPER,
    PARTS,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    SplitShares,
    split_products,
)
from models.decisions.validation_split import in_fit
from pipeline.ingest.index import Coded, Index, most_common

RUN_BYTES = 2**20  # neighbouring images stay together; a source's order is not random: runs are dealt out
PRODUCTS = pa.schema(
    [
        ("product_id", pa.string()),
        ("category", pa.string()),
        ("split", pa.string()),
        ("images", pa.int32()),
        ("seller", pa.string()),
    ]
)
WEIGHT = pa.field("weight", pa.float64())  # one more column, where a source gives weights


@dataclass(frozen=True)
class Products:
    """p products, sorted by id."""

    product_id: pa.Array  # (p,) large_string
    category: Coded
    split: np.ndarray  # (p,) int8, position in SPLITS
    images: np.ndarray  # (p,) int32, readable ones
    seller: Coded
    in_two_categories: int  # products whose rows name several
    weight: np.ndarray | None = None  # (p,) float64, nan where not given; None: no source gives any
    corrected: np.ndarray | None = None  # (p,) bool, the label is a correction; None: there are none

    @property
    def schema(self) -> pa.Schema:
        """That of products.parquet."""
        return PRODUCTS if self.weight is None else PRODUCTS.append(WEIGHT)

    def table(self, start: int, stop: int) -> pa.Table:
        """Rows of products.parquet."""
        here = slice(start, stop)
        columns = [
            self.product_id[here].cast(pa.string()),
            self.category.only(here).texts(),
            pa.array(SPLITS).take(pa.array(self.split[here])),
            pa.array(self.images[here]),
            self.seller.only(here).texts(),
        ]
        if self.weight is not None:
            columns.append(pa.array(self.weight[here], from_pandas=True))  # null for nan
        return pa.table(columns, schema=self.schema)


def plan_products(
    index: Index,
    known: pa.Table | None,
    min_products: int,
    shares: SplitShares = PAPER,
    sellers_apart: float = 0.0,
) -> Products:
    """The products, each with its part of the split.

    Args:
        index: of all rows.
        known: product_id and split of the release in service.
        min_products: smallest category that is trained on, unless its parts are given.
        shares: of val and test, in the same way.
        sellers_apart: share of the sellers whose new products are all test, as if the source said so.

    A product whose rows disagree has the most common category (the first in the alphabet among equals), and
    the largest weight.
    """
    images = np.bincount(index.product[index.good], minlength=len(index.product_id)).astype(np.int32)
    products = len(index.product_id)
    category, mixed = most_common(index.product, index.category, products)
    given = most_common(index.product, index.split, products)[0]
    seller = most_common(index.product, index.seller, products)[0]
    trainable = (images > 0) & (category > 0)
    free = trainable & (given == 0)
    parts = np.array([SPLITS.index(text or NONE) for text in index.split.values], np.int8)
    split = np.where(trainable, parts[given], SPLITS.index(NONE)).astype(np.int8)
    before = _known_parts(index.product_id, known)
    if sellers_apart:  # out of their categories' counts, this week and, as known ones, in all later weeks
        apart = in_fit(np.array(index.seller.values, dtype=object), sellers_apart)
        held_out = free & (seller > 0) & apart[seller] & np.isin(before, (-1, TEST))
        split[held_out], free[held_out] = TEST, False
    split[free] = split_products(index.order_key[free], category[free], before[free], min_products, shares)
    coded = [
        Coded(texts.values, code) for texts, code in ((index.category, category), (index.seller, seller))
    ]
    return Products(index.product_id, coded[0], split, images, coded[1], mixed, index.weight)


def _known_parts(product_id: pa.Array, known: pa.Table | None) -> np.ndarray:
    """(p,) int8: the parts of the products that a release knows, as positions in SPLITS; -1 of the others."""
    if known is None:
        return np.full(len(product_id), -1, np.int8)
    part = pc.index_in(known["split"].combine_chunks(), value_set=pa.array(SPLITS))
    row = pc.index_in(product_id, value_set=known["product_id"].combine_chunks().cast(pa.large_string()))
    known_part: np.ndarray = part.take(row).fill_null(-1).to_numpy().astype(np.int8)
    return known_part


def require_known(product_id: pa.Array, known: pa.Table, least: float) -> None:
    """Stops when the catalogue holds hardly any product of the release in service: the ids have changed.

    Args:
        product_id: (p,) large_string, of the catalogue.
        known: product_id and split of the release.
        least: share of the smaller of both that is expected in both.

    Raises:
        Stopped: fewer are.
    """
    found = pc.sum(pc.is_in(known["product_id"].cast(pa.large_string()), value_set=product_id)).as_py() or 0
    smaller = min(len(known), len(product_id))
    if found < least * smaller:
        raise Stopped(
            f"{found:,} of the {len(known):,} products of the release in service are among the "
            f"{len(product_id):,} of the sources, for example {product_id[0].as_py()!r}; expected at least "
            f"{least:.0%} of {smaller:,}, else products of test would be trained on; check the column of "
            "ids, or give --set ingest.min_known=0"
        )


def require_trainable(products: Products, min_products: int) -> None:
    """Stops when there is nothing to train on.

    Raises:
        ShelfmarkError: no category is large enough, or nothing has a category, or nothing that has one is
            readable.
    """
    categorized = products.category.code > 0
    if not categorized.any():
        raise ShelfmarkError(
            f"no product to train on: none of {len(products.split):,} has a category; expected some; give "
            "category, category_id or, of photos in folders, the folder above those of the categories"
        )
    if not products.images[categorized].any():
        raise ShelfmarkError(
            f"no product to train on: none of {np.count_nonzero(categorized):,} with a category has a "
            "readable image; expected photos; records.partial/rejects.parquet lists the reasons; correct the "
            "source"
        )
    learnt = learnt_categories(products)
    dropped = np.count_nonzero(products.split == SPLITS.index(DROPPED))
    if not learnt and dropped:
        raise ShelfmarkError(
            f"no product to train on: {len(products.split):,} products, "
            f"{np.count_nonzero(categorized):,} with a category, in categories of under "
            f"{min_products}; expected larger categories; add products or lower ingest.min_products"
        )
    if not learnt:
        held_out = np.count_nonzero(np.isin(products.split, (VAL, TEST)))
        raise ShelfmarkError(
            f"no product to train on: all {held_out:,} are val or test, as the source or the release in "
            "service says; expected some in train; correct the split"
        )
    if len(learnt) == 1:
        raise ShelfmarkError(
            f"one category, {min(learnt)!r}, is all there is to train on; expected at least two, as with one "
            "every prediction is correct; check the column category, or the folder"
        )


def learnt_categories(products: Products) -> set[str]:
    """Categories with training products."""
    return _categories(products, products.split == TRAIN)


def unlearnt_categories(products: Products) -> set[str]:
    """Categories without training products: too small, or in val and test alone by given or kept parts."""
    return _categories(products, products.split != SPLITS.index(NONE)) - learnt_categories(products)


def _categories(products: Products, chosen: np.ndarray) -> set[str]:
    return {products.category.values[code] for code in np.unique(products.category.code[chosen]).tolist()}


def assign_shards(index: Index, products: Products, seed: int, shard_bytes: int) -> tuple[np.ndarray, int]:
    """The number of every row's shard: runs of about RUN_BYTES, shuffled by seed and dealt out.

    Only readable images of products in train, val or test are taken. A number stands for one shard of every
    part.

    Returns:
        (n,) int32, -1 where the row is not taken; and how many shards each part has.
    """
    taken = index.good
    taken[taken] = products.split[index.product[taken]] < len(PARTS)
    shard = np.full(len(index.product), -1, np.int32)
    if not taken.any():
        return shard, 0
    end = np.cumsum(index.length[taken], dtype=np.int64)
    count = min(-(-int(end[-1]) // shard_bytes), len(end))
    end //= min(RUN_BYTES, shard_bytes)
    run = np.cumsum(np.diff(end, prepend=end[:1]) > 0)  # without those that no image ends in
    shard_of_run = np.random.default_rng(seed).permutation(int(run[-1]) + 1) % count
    shard[taken] = shard_of_run.astype(np.int32)[run]
    return shard, count
