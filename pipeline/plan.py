"""The plan of an ingest, on tables alone: rows of a look → products with their parts → output units.

rows      one an image: product_id, category, split, seller, file, offset, length, image_digest, kept, reason,
          detail
products  one a product: product_id, category, split, images (readable ones), seller
"""

from collections import Counter

import numpy as np
import pandas as pd

from features.errors import ShelfmarkError
from features.product import DROPPED, NONE, PARTS, split_products

RUN_BYTES = (
    2**20
)  # neighbouring images that stay together; a source's order is not random: runs are dealt out
NO_IMAGE = "no_image"  # the reason of a row that stands for a product without any image


def refuse_unknown_categories(rows: pd.DataFrame, known: set[str]) -> None:
    """Marks the images of products whose category the taxonomy does not know (in place)."""
    unknown = (rows["reason"] == "") & (rows["category"] != "") & ~rows["category"].isin(known)
    rows.loc[unknown, "reason"] = "unknown_category"
    rows.loc[unknown, "detail"] = "category " + rows.loc[unknown, "category"] + " is not in the taxonomy"


def refuse_flood(rows: pd.DataFrame, max_rejected: float) -> None:
    """Stops when more than `max_rejected` of the images are rejected.

    Raises:
        ShelfmarkError: with the three most common reasons and an example.
    """
    images = rows[rows["reason"] != NO_IMAGE]
    rejected = images[images["reason"] != ""]
    if len(rejected) <= max_rejected * len(images):
        return
    reasons = Counter(rejected["reason"]).most_common(3)
    example = rejected[rejected["reason"] == reasons[0][0]].iloc[0]
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
    raise ShelfmarkError(
        f"{len(rejected):,} of {len(images):,} images rejected ({told}), for example {example['file']}: "
        f"{example['detail']}; expected at most {max_rejected:.0%}; mend the source or raise "
        "ingest.max_rejected"
    )


def plan_products(rows: pd.DataFrame, known: pd.Series, min_products: int) -> pd.DataFrame:
    """Products, sorted by id, with the part each falls into.

    Args:
        rows: of the look.
        known: part by product_id, of the release in service.
        min_products: smallest category that is learnt, unless its parts are given.

    A product whose rows disagree has the most common category (the first in the alphabet among equals).
    """
    told = rows[rows["product_id"] != ""]
    products = pd.DataFrame(
        {"images": (told["reason"] == "").groupby(told["product_id"]).sum().astype(np.int32)}
    )
    for name in ("category", "split", "seller"):
        products[name] = _most_common(told, name).reindex(products.index, fill_value="")
    products = products.reset_index().sort_values("product_id", ignore_index=True)
    learnable = (products["images"] > 0) & (products["category"] != "")
    free = (learnable & (products["split"] == "")).to_numpy()
    part = np.where(learnable, products["split"], NONE).astype(object)
    ids = products["product_id"][free]
    part[free] = split_products(
        ids.to_numpy(),
        products["category"][free].to_numpy(),
        known.reindex(ids).fillna("").to_numpy(dtype=object),
        min_products,
    )
    products["split"] = part
    return products[["product_id", "category", "split", "images", "seller"]]


def _most_common(rows: pd.DataFrame, name: str) -> pd.Series:
    """The most common text of a column for each product; products without any have no row."""
    counts = rows[rows[name] != ""].groupby(["product_id", name]).size().rename("rows").reset_index()
    best = counts.sort_values(["product_id", "rows", name], ascending=[True, False, True])
    return best.drop_duplicates("product_id").set_index("product_id")[name]


def conflicts(rows: pd.DataFrame) -> int:
    """Products whose rows name several categories."""
    return int((rows[rows["category"] != ""].groupby("product_id")["category"].nunique() > 1).sum())


def plan_units(rows: pd.DataFrame, products: pd.DataFrame, seed: int, unit_bytes: int) -> list[np.ndarray]:
    """Rows (positions) of each output unit: runs of about RUN_BYTES, shuffled by seed and dealt out.

    Only readable images of products in train, val or test are taken. Inside a unit the rows stay in the
    source's order, so that they are read forwards.
    """
    part = products.set_index("product_id")["split"]
    wanted = (rows["reason"] == "") & rows["product_id"].map(part).isin(PARTS)
    taken = np.flatnonzero(wanted.to_numpy())
    length = rows["length"].to_numpy()[taken]
    run = np.cumsum(length) // min(RUN_BYTES, unit_bytes)
    count = max(1, -(-int(length.sum()) // unit_bytes)) if len(taken) else 0
    order = np.random.default_rng(seed).permutation(int(run[-1]) + 1 if len(taken) else 0)
    unit = order[run] % count if count else run
    return [taken[unit == number] for number in range(count)]


def require_learnable(products: pd.DataFrame, min_products: int) -> None:
    """Stops when no product can be learnt from.

    Raises:
        ShelfmarkError: no category is large enough, or nothing has a category.
    """
    if not (products["split"] == "train").any():
        categorized = int((products["category"] != "").sum())
        raise ShelfmarkError(
            f"no product to train on: {len(products):,} products, {categorized:,} with a category, "
            f"{int((products['split'] == DROPPED).sum()):,} of them in categories of under {min_products}; "
            "expected larger categories; add products or lower ingest.min_products"
        )
