"""Ingest of any catalogue: a closed account, an exact split, the order of no matter, readable records."""

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
from catalogues import HTML, Drawn, documents, photo, write_bson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ingest import in_a_loop
from tf_records import dataset

from features.errors import ShelfmarkError
from features.product import wanted_counts
from pipeline.ingest import check_images as check_module
from pipeline.ingest import ingest as ingest_module
from pipeline.job.config import IngestSettings

MIN_PRODUCTS = 3
SMALL = IngestSettings(min_products=MIN_PRODUCTS, max_rejected=1.0, unit_bytes=4000, placeholder_products=4)
CUT = photo(3)[:400]
pictures = st.sampled_from([*map(photo, range(12)), photo(20, "PNG"), photo(21, "GIF"), CUT, HTML, b"", None])
products = st.lists(
    st.builds(
        Drawn,
        id=st.integers(0, 10**6).map(str),
        category=st.sampled_from(["1", "1", "1", "2", "2", "3", ""]),
        pictures=st.lists(pictures, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda product: product.id,
)


@pytest.fixture
def made(monkeypatch):
    """Ingests products in two BSON files, without Beam; None when there is nothing to learn."""
    for module in (check_module, ingest_module):
        monkeypatch.setattr(module, "run_units", in_a_loop)

    def make(folder, drawn, cut):
        folder = Path(folder)
        files = [
            write_bson(folder / name, documents(its))
            for name, its in (("a.bson", drawn[:cut]), ("b.bson", drawn[cut:]))
            if its
        ]
        try:
            return ingest_module.make_records([str(file) for file in files], folder / "records", SMALL)
        except ShelfmarkError as error:
            assert "to train on" in str(error)
            return None

    return make


def tables(records):
    return [pd.read_parquet(records.file(f"{name}.parquet")) for name in ("images", "products", "rejects")]


def readable(picture):
    return picture not in (None, b"", HTML, CUT)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=products, data=st.data())
def test_any_catalogue_becomes_records_that_keep_every_promise(made, quiet_tensorflow, drawn, data):
    import tensorflow as tf

    order = data.draw(st.permutations(drawn))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        records = made(first, drawn, len(drawn) // 2)
        again = made(second, order, len(drawn) // 3)
        assert (records is None) == (again is None)
        if records is None:
            return
        images, planned, rejects = tables(records)
        check_account(drawn, images, planned, rejects)
        check_split(drawn, planned)
        for batch in dataset(sorted(records.path.glob("*.tfrecord")), batch=8):
            for part, product, image in zip(batch["split"], batch["product_id"], batch["image"], strict=True):
                assert tf.io.decode_jpeg(image, channels=3).shape == (40, 40, 3)
                assert (
                    part.numpy().decode()
                    == dict(zip(planned["product_id"], planned["split"], strict=True))[
                        product.numpy().decode()
                    ]
                )
        check_duplicates(drawn, pd.read_parquet(records.file("duplicates.parquet")))
        others = tables(again)
        pd.testing.assert_frame_equal(planned, others[1])
        keys = ["product_id", "image_index"]
        for table, other, columns in (
            (images, others[0], ["image_digest", "split", "placeholder"]),
            (rejects, others[2], ["reason"]),
        ):
            mine, its = (t[keys + columns].sort_values(keys, ignore_index=True) for t in (table, other))
            pd.testing.assert_frame_equal(mine, its)


def check_account(drawn, images, planned, rejects):
    """Every image that came in is in exactly one of: records, rejects, products none or dropped."""
    recorded = Counter(zip(images["product_id"], images["image_index"], strict=True))
    rejected = Counter(zip(rejects["product_id"], rejects["image_index"], strict=True))
    split = dict(zip(planned["product_id"], planned["split"], strict=True))
    assert sorted(split) == sorted(product.id for product in drawn)
    for product in drawn:
        for place, picture in enumerate(product.pictures):
            key = (product.id, place)
            aside = readable(picture) and split[product.id] in ("none", "dropped")
            assert recorded[key] + rejected[key] + aside == 1
            assert rejected[key] == (not readable(picture))
    counted = dict(zip(planned["product_id"], planned["images"], strict=True))
    assert counted == {product.id: sum(map(readable, product.pictures)) for product in drawn}


def check_split(drawn, planned):
    """Exact in every category, by the paper's rule, and in all small ones together."""
    members = defaultdict(int)
    for product in drawn:
        members[product.category] += any(map(readable, product.pictures))
    sides = planned[planned["images"] > 0].fillna("").groupby(["category", "split"]).size().to_dict()
    small = [category for category, size in members.items() if category and size < MIN_PRODUCTS]
    for category in members.keys() - small:
        counts = wanted_counts(members[category], MIN_PRODUCTS)
        wanted = dict(zip(("train", "val", "test", "dropped"), (*counts, 0), strict=True))
        wanted = wanted if category else {"none": members[category]}
        assert {part: sides.get((category, part), 0) for part in wanted} == wanted
    learnt = [wanted_counts(members[name], MIN_PRODUCTS) for name in members.keys() - small if name]
    rest, size = sum(members[category] for category in small), sum(map(sum, learnt))
    counts = wanted_counts(rest, 1)
    if size:
        val, test = (int(rest * sum(its[part] for its in learnt) / size + 0.5) for part in (1, 2))
        counts = (rest - val - test, val, test)
    for part, count in zip(("dropped", "val", "test", "train"), (*counts, 0), strict=True):
        assert sum(sides.get((category, part), 0) for category in small) == count


def check_duplicates(drawn, duplicates):
    """Every readable picture of several products, with them."""
    holders = defaultdict(set)
    for product in drawn:
        for picture in filter(readable, product.pictures):
            holders[picture].add(product.id)
    wanted = sorted(sorted(ids) for ids in holders.values() if len(ids) > 1)
    assert sorted(list(ids) for ids in duplicates["products"]) == wanted
    assert (duplicates["placeholder"] == (duplicates["products"].str.len() >= 4)).all()
