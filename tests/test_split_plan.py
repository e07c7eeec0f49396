"""The plan of an ingest, against one made product by product in plain Python."""

import itertools
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ShelfmarkError
from features.product import order_key
from pipeline.ingest.index import NO_IMAGE, build_index, image_indices
from pipeline.ingest.rejects import REJECTS, refuse_flood
from pipeline.ingest.split_plan import (
    assign_shards,
    learnt_categories,
    plan_products,
    require_trainable,
    unlearnt_categories,
)

TEXTS = ("product_id", "category", "split", "seller", "reason")
UNITS = 4  # tables of checked rows


def tables(rows):
    """Checked rows, file by file, from dicts of what matters."""
    columns = {name: pa.array([row.get(name, "") for row in rows], pa.string()) for name in TEXTS}
    columns |= {
        "order_key": pa.array([order_key(row["product_id"]) for row in rows], pa.int64()),
        "length": pa.array([row.get("length", 1000) for row in rows], pa.int32()),
        "image_digest": pa.array(
            [bytes.fromhex(row.get("digest", "00" * 32)) for row in rows], pa.binary(32)
        ),
        "flat": pa.array([row.get("flat", False) for row in rows], pa.bool_()),
        "weight": pa.array([row.get("weight") for row in rows], pa.float64()),
    }
    whole = pa.table(columns)
    bounds = np.linspace(0, len(rows), UNITS + 1).astype(int)
    return [whole.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]


def index_of(rows):
    return build_index(tables(rows), len(rows))


def planned(rows, known=None, min_products=20):
    """The products as a frame, "" for null."""
    values = pa.table({"product_id": list(known), "split": list(known.values())}) if known else None
    products = plan_products(index_of(rows), values, min_products)
    frame = products.table(0, len(products.split)).to_pandas()
    return frame.assign(**{name: frame[name].fillna("") for name in ("category", "seller")})


def drawn_rows(seed, images=900, products=400):
    """Rows with every ill: products in two categories, unreadable, with a given split, without category."""
    rng = np.random.default_rng(seed)
    categories = ["", "big", "big", "big", "mid", "mid", "small", "tiny"]
    rows = []
    for product in rng.integers(0, products, images):
        category = categories[product % 8] if rng.random() < 0.95 else categories[rng.integers(8)]
        rows.append(
            {
                "product_id": f"p{product}" if rng.random() < 0.99 else "",
                "category": category,
                "split": "val" if product % 50 == 0 else "test" if product % 50 == 1 else "",
                "seller": ["", "Smith", "Jones"][rng.integers(3)],
                "reason": rng.choice(["", "", "", "", "truncated", "missing", NO_IMAGE]),
            }
        )
        rows[-1]["reason"] = rows[-1]["reason"] if rows[-1]["product_id"] else "bad_document"
    return rows


def most_common(values):
    """The most common text but "", the first in the alphabet among equals."""
    counts = Counter(value for value in values if value)
    return min(counts, key=lambda value: (-counts[value], value)) if counts else ""


def wanted(size):
    """Products wanted in val and test (S1)."""
    tenth = max(1, int((Decimal(size) / 10).quantize(Decimal(1), ROUND_HALF_UP)))
    test = tenth if size >= 100 else min(10, size - tenth - 1)
    return {"val": tenth, "test": test}


def plan_in_plain_python(rows, known, min_products):
    """product_id → (category, split, images, seller)."""
    products = {}
    for row in rows:
        if row["product_id"]:
            products.setdefault(row["product_id"], []).append(row)
    planned, free = {}, {}
    for product, its in products.items():
        category, given, seller = (
            most_common(row[name] for row in its) for name in ("category", "split", "seller")
        )
        images = sum(row["reason"] == "" for row in its)
        planned[product] = [category, given if images and category else "none", images, seller]
        if images and category and not given:
            free.setdefault(category, []).append(product)
    small = [members for members in free.values() if len(members) < min_products]
    large = [members for members in free.values() if len(members) >= min_products]
    others = [(len(its), wanted(len(its))) for its in large]
    for members, rest in [*((its, "train") for its in large), ([*itertools.chain(*small)], "dropped")]:
        places = wanted(len(members))
        if rest == "dropped" and others:
            size = sum(count for count, _ in others)
            places = {
                part: int(Decimal(len(members) * sum(its[part] for _, its in others)) / size + Decimal("0.5"))
                for part in ("val", "test")
            }
        for product in members:
            planned[product][1] = known.get(product, "").replace("train", rest)
        new = sorted((p for p in members if p not in known), key=lambda p: (order_key(p), p))
        for part in ("test", "val"):
            left = max(0, places[part] - sum(known.get(p) == part for p in members))
            for product in new[:left]:
                planned[product][1] = part
            new = new[left:]
        for product in new:
            planned[product][1] = rest
    return {product: tuple(values) for product, values in planned.items()}


@pytest.mark.parametrize("seed", range(6))
def test_plan_agrees_with_one_made_product_by_product(seed):
    rows = drawn_rows(seed)
    rng = np.random.default_rng(seed)
    ids = sorted({row["product_id"] for row in rows} - {""})
    known = {
        p: str(rng.choice(["train", "train", "val", "test"])) for p in ids if seed % 2 and rng.random() < 0.6
    }
    products = planned(rows, known, min_products=60)
    found = {row[0]: row[1:] for row in products.itertuples(index=False)}
    assert found == plan_in_plain_python(rows, known, 60)
    assert list(products["product_id"]) == sorted(found)
    assert set(products["split"]) == {"train", "val", "test", "none", "dropped"}


def test_plan_is_the_same_whatever_the_order_of_the_rows():
    rows = drawn_rows(1)
    mixed = [rows[place] for place in np.random.default_rng(3).permutation(len(rows))]
    pd.testing.assert_frame_equal(planned(rows), planned(mixed))


def test_a_products_weight_is_the_largest_of_its_rows():
    """In rows of several tables, some of which have no weights, and rows without product."""
    rows = drawn_rows(4)
    rng = np.random.default_rng(4)
    for row in rows[300:]:
        if rng.random() < 0.3:
            row["weight"] = float(rng.integers(0, 50))
    frame = planned(rows).set_index("product_id")
    largest = {product: np.nan for product in frame.index}
    for row in rows:
        if row["product_id"] and "weight" in row:
            largest[row["product_id"]] = np.fmax(largest[row["product_id"]], row["weight"])
    assert min(frame["weight"].notna().sum(), frame["weight"].isna().sum()) > 100
    pd.testing.assert_series_equal(frame["weight"], pd.Series(largest), check_names=False)
    assert plan_products(index_of(rows), None, 20).table(0, 1).schema.names[-1] == "weight"


def test_without_weights_there_is_no_column_for_them():
    assert list(planned(drawn_rows(5))) == ["product_id", "category", "split", "images", "seller"]


def test_the_index_gives_every_row_by_its_numbers():
    rows = drawn_rows(2, images=300)
    index = index_of(rows)
    ids = index.product_id.to_pylist()
    assert ids == sorted({row["product_id"] for row in rows} - {""})
    assert [ids[code] if code >= 0 else "" for code in index.product] == [row["product_id"] for row in rows]
    for name in ("category", "split", "seller", "reason"):
        coded = getattr(index, name)
        assert [coded.values[code] for code in coded.code] == [row[name] for row in rows]
    assert [order_key(product) for product in ids] == index.order_key.tolist()
    assert index.images() == sum(row["reason"] != NO_IMAGE for row in rows)


def test_given_splits_are_respected_and_never_dropped():
    rows = [
        {"product_id": f"g{n}", "category": "small", "split": ("train", "val", "test")[n % 3]}
        for n in range(6)
    ]
    rows += [{"product_id": f"f{n}", "category": "small"} for n in range(19)]
    products = planned(rows, {"g0": "test"}).set_index("product_id")["split"]
    assert [products[f"g{n}"] for n in range(6)] == ["train", "val", "test"] * 2
    assert Counter(products[f"f{n}"] for n in range(19)) == {"val": 2, "test": 10, "dropped": 7}


def sold_rows(products=3_000, sellers=100):
    """Products of three categories and many sellers; every tenth has no seller."""
    return [
        {"product_id": f"p{n}", "category": "abc"[n % 3], "seller": f"s{n % sellers}" if n % 10 else ""}
        for n in range(products)
    ]


def parts_with_sellers_apart(rows, known=None, share=0.2):
    """The products as a frame with product_id as its index."""
    values = pa.table({"product_id": list(known), "split": list(known.values())}) if known else None
    products = plan_products(index_of(rows), values, 20, sellers_apart=share)
    return products.table(0, len(products.split)).to_pandas().set_index("product_id")


def test_sellers_apart_are_in_test_alone_and_the_others_are_divided_as_without_them():
    rows = sold_rows()
    frame = parts_with_sellers_apart(rows)
    parts_of = frame.groupby("seller")["split"].agg(set)
    apart = set(parts_of[parts_of == {"test"}].index)
    assert (
        10 <= len(apart) <= 30
    )  # of 100; the seller of a few products by chance in test is not there: 27 each
    others = [row for row in rows if row["seller"] not in apart]
    without = planned(others).set_index("product_id")["split"]
    pd.testing.assert_series_equal(frame.loc[without.index, "split"], without)
    assert frame.loc[frame["seller"].isna(), "split"].value_counts()["train"] > 200


def test_sellers_apart_keep_their_products_in_test_and_known_ones_in_their_part():
    """The second week: new products of all sellers; and p2 of a seller apart, known in train from before."""
    rows = sold_rows()
    first = parts_with_sellers_apart(rows)
    apart = [name for name, parts in first.groupby("seller")["split"] if set(parts) == {"test"}]
    moved = first.index[first["seller"] == apart[0]][0]
    known = first["split"].to_dict() | {moved: "train"}
    again = parts_with_sellers_apart(sold_rows(4_000), known)
    assert (again.loc[first.index, "split"] == pd.Series(known)).all()
    fresh = again.drop(first.index)
    assert set(fresh.loc[fresh["seller"].isin(apart), "split"]) == {"test"}
    others = again[~again["seller"].isin(apart)]
    counts = others.groupby("category")["split"].value_counts().unstack()
    sizes = others.groupby("category").size() + (again.loc[moved, "category"] == np.array(["a", "b", "c"]))
    assert counts["test"].tolist() == [wanted(size)["test"] for size in sizes]


def test_a_product_without_a_readable_image_is_none_and_does_not_count_for_its_category():
    rows = [{"product_id": f"p{n}", "category": "mugs"} for n in range(19)]
    rows += [{"product_id": "broken", "category": "mugs", "reason": "truncated"}] * 2
    rows += [{"product_id": "bare", "category": "mugs", "split": "test", "reason": NO_IMAGE}]
    products = planned(rows).set_index("product_id")
    assert tuple(products.loc["broken", ["split", "images"]]) == ("none", 0)
    assert tuple(products.loc["bare", ["split", "images"]]) == ("none", 0)
    assert products["split"].value_counts().to_dict() == {"none": 2, "val": 2, "test": 10, "dropped": 7}


def test_a_product_in_two_categories_has_the_one_given_most_often():
    rows = [
        {"product_id": "most", "category": "b"}, {"product_id": "most", "category": "b"},
        {"product_id": "most", "category": "a"},
        {"product_id": "tie", "category": "b"}, {"product_id": "tie", "category": "a"},
        {"product_id": "once", "category": ""}, {"product_id": "once", "category": "c"},
    ]  # fmt: skip
    products = planned(rows, min_products=1).set_index("product_id")["category"]
    assert products.to_dict() == {"most": "b", "tie": "a", "once": "c"}
    assert plan_products(index_of(rows), None, 1).in_two_categories == 2


def test_categories_without_training_products_are_reported():
    rows = [{"product_id": f"{name}{part}", "category": name, "split": part}
            for name, parts in (("a", ("train", "val")), ("c", ("val", "test")), ("b", ("test",)))
            for part in parts]  # fmt: skip
    products = plan_products(index_of(rows), None, 1)
    assert (learnt_categories(products), unlearnt_categories(products)) == ({"a"}, {"b", "c"})
    assert unlearnt_categories(plan_products(index_of(rows[:2]), None, 1)) == set()


def test_without_categories_there_are_products_but_nothing_to_learn():
    products = plan_products(index_of([{"product_id": f"p{n}"} for n in range(3)]), None, 20)
    assert products.table(0, 3)["split"].to_pylist() == ["none"] * 3
    with pytest.raises(ShelfmarkError, match="no product to train on: none of 3 has a category"):
        require_trainable(products, 20)


def test_products_that_are_all_unreadable_are_reported_as_such():
    rows = [{"product_id": f"p{n}", "category": "a" * (n % 2), "reason": "truncated"} for n in range(38)]
    rows += [{"product_id": "readable"}]
    with pytest.raises(ShelfmarkError, match="none of 19 with a category has a readable image; expected"):
        require_trainable(plan_products(index_of(rows), None, 20), 20)


def test_products_that_are_all_of_other_parts_than_training_are_reported():
    rows = [{"product_id": f"p{n}", "category": "ab"[n % 2], "split": "val"} for n in range(50)]
    with pytest.raises(ShelfmarkError, match="no product to train on: all 50 are val or test, as the source"):
        require_trainable(plan_products(index_of(rows), None, 2), 2)


def test_categories_that_are_all_too_small_are_reported_with_the_numbers():
    rows = [{"product_id": f"p{n}", "category": "ab"[n % 2]} for n in range(38)]
    with pytest.raises(ShelfmarkError) as caught:
        require_trainable(plan_products(index_of(rows), None, 20), 20)
    assert str(caught.value) == (
        "no product to train on: 38 products, 38 with a category, in categories of under 20; "
        "expected larger categories; add products or lower ingest.min_products"
    )


def rejected(*reasons, good=0):
    rows = [{"product_id": str(n), "reason": reason} for n, reason in enumerate(reasons)]
    return index_of(rows + [{"product_id": "good"}] * good)


@pytest.fixture
def rejects(tmp_path):
    """A rejects.parquet with an image of each of two reasons."""
    rows = [
        {"source": f"{reason}.jpg", "reason": reason, "detail": f"is {reason}"}
        for reason in ("empty", "missing")
    ]
    pq.write_table(pa.Table.from_pylist(rows, REJECTS), tmp_path / "rejects.parquet")
    return tmp_path / "rejects.parquet"


def test_a_flood_of_rejects_names_the_three_most_common_reasons_an_example_and_where_all_are(rejects):
    reasons = ["empty", *["truncated"] * 3, *["missing"] * 4, *["too_large"] * 2]
    with pytest.raises(ShelfmarkError) as caught:
        refuse_flood(rejected(*reasons, good=1990), 0.004, rejects)
    assert str(caught.value) == (
        "10 of 2,000 images rejected (missing 4, truncated 3, too_large 2), for example missing.jpg: is "
        f"missing; expected at most 0%; {rejects} lists them: correct the source, or raise "
        "ingest.max_rejected"
    )


def test_rejects_are_a_flood_only_above_the_limit_and_products_without_images_are_none(rejects):
    refuse_flood(rejected("empty", good=9), 0.1, rejects)
    refuse_flood(rejected("empty", *[NO_IMAGE] * 50, good=9), 0.1, rejects)
    refuse_flood(rejected(*[NO_IMAGE] * 5), 0.0, rejects)
    refuse_flood(rejected("empty"), 1.0, rejects)
    with pytest.raises(ShelfmarkError, match="1 of 9 images rejected"):
        refuse_flood(rejected("empty", good=8), 0.1, rejects)


# Output units


def drawn_index(seed=0, images=900, length=None):
    lengths = np.random.default_rng(seed).integers(2000, 9000, images)
    rows = [
        row | {"length": length or int(at)} for row, at in zip(drawn_rows(seed, images), lengths, strict=True)
    ]
    index = index_of(rows)
    return index, plan_products(index, None, 30)


def learnt_rows(index, products):
    """Rows that records are to hold, in plain Python."""
    splits = products.table(0, len(products.split))["split"].to_pylist()
    reasons = index.reason.values
    return [
        row for row, (product, reason) in enumerate(zip(index.product, index.reason.code, strict=True))
        if not reasons[reason] and splits[product] in ("train", "val", "test")
    ]  # fmt: skip


@pytest.mark.parametrize("unit_bytes", [1, 5_000, 100_000, 10**6, 10**8])
def test_units_take_every_learnable_image_exactly_once(unit_bytes):
    index, products = drawn_index()
    unit, count = assign_shards(index, products, 0, unit_bytes)
    learnt = learnt_rows(index, products)
    assert np.flatnonzero(unit >= 0).tolist() == learnt
    assert set(unit[learnt]) <= set(range(count))
    assert count == min(-(-int(index.length[learnt].sum()) // unit_bytes), len(learnt))


def test_units_are_of_about_equal_size():
    index, products = drawn_index(images=9000)
    unit, count = assign_shards(index, products, 0, 100_000)
    sizes = [index.length[unit == number].sum() for number in range(count)]
    assert max(sizes) < 1.2 * 100_000 and min(sizes[1:]) > 0.8 * 100_000


def test_units_are_runs_of_a_megabyte_from_all_over_the_source():
    index, products = drawn_index(images=9000, length=20_000)
    unit, _ = assign_shards(index, products, 0, 30 * 2**20)
    learnt = learnt_rows(index, products)
    place = np.flatnonzero(unit[learnt] == 0)
    runs = np.split(place, np.flatnonzero(np.diff(place) > 1) + 1)
    assert len(runs) > 10 and np.mean([len(run) for run in runs]) >= 52, "1 MiB of 20 kB images"
    assert place.min() < 0.1 * len(learnt) and place.max() > 0.9 * len(learnt)


def test_units_depend_on_the_seed_and_on_nothing_else():
    index, products = drawn_index()
    first = assign_shards(index, products, 0, 100_000)[0]
    np.random.seed(7)
    assert np.array_equal(first, assign_shards(index, products, 0, 100_000)[0])
    assert not np.array_equal(first, assign_shards(index, products, 1, 100_000)[0])


def test_without_learnable_images_there_are_no_units():
    index = index_of([{"product_id": "p"}])
    unit, count = assign_shards(index, plan_products(index, None, 20), 0, 1000)
    assert (unit.tolist(), count) == ([-1], 0)


def test_images_are_counted_by_product_in_the_sources_order():
    rows = drawn_rows(5)
    seen = Counter()
    wanted = []
    for row in rows:
        wanted.append(seen[row["product_id"]])
        seen[row["product_id"]] += 1
    assert image_indices(index_of(rows).product).tolist() == wanted
