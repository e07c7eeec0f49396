"""Ingest: every image is somewhere, the split is exact and sticky, the same work has the same digest."""

import hashlib
import io
import logging
import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from catalogues import (
    HTML,
    Drawn,
    documents,
    draw_products,
    manifest_rows,
    photo,
    write_bson,
    write_files,
    write_manifest,
)
from PIL import Image
from tf_records import dataset

from features.errors import ShelfmarkError
from features.records import unframe
from features.storage.artifact import open_artifact, partial_of
from pipeline.beam.run_units import unit_file
from pipeline.ingest import check_images as check_module
from pipeline.ingest import ingest as ingest_module
from pipeline.ingest.ingest import make_records
from pipeline.job.config import IngestSettings

IN_MEMORY = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
LEARNT = ("train", "val", "test")
SMALL_UNITS = IngestSettings(unit_bytes=16_000, unit_images=25)
MUGS, PLATES, LAMPS, ROBOTS = "1000", "1001", "1002", "1003"
# Counts are of products; four mugs and a lamp become unreadable.
COUNTS = {MUGS: 60, PLATES: 40, LAMPS: 25, ROBOTS: 19, "": 12}
SPLITS = {
    MUGS: {"train": 40, "val": 6, "test": 10, "none": 4},
    PLATES: {"train": 26, "val": 4, "test": 10},
    LAMPS: {"train": 12, "val": 2, "test": 10, "none": 1},
    ROBOTS: {"val": 2, "test": 5, "dropped": 12},  # too few to be learnt: shares as of the others
    "": {"none": 12},
}


def with_ills(products):
    """Spoils the catalogue: what no reader takes, what is to be transcoded, what is there twice."""
    pictures = [list(product.pictures) for product in products]
    cut = photo(1)[: len(photo(1)) // 2]
    pictures[0] = [cut, b""]
    pictures[1] = [HTML]
    pictures[2] = [None, cut]
    pictures[3] = []
    pictures[4] = [photo(40), cut, photo(42)]
    pictures[60] = [photo(600, "PNG"), photo(601)]
    pictures[61] = [photo(610), photo(610), photo(50)]
    pictures[62] = [photo(50)]
    pictures[100] = [HTML, None]
    pictures[126] = [photo(1260), cut]
    pictures[145] = [cut]
    pictures[146] = [photo(50), photo(1460, "PNG")]
    return [Drawn(p.id, p.category, tuple(its)) for p, its in zip(products, pictures, strict=True)]


PRODUCTS = with_ills(draw_products(COUNTS))
READABLE = {number: 0 for number in (0, 1, 2, 3, 100, 145)} | {4: 2, 126: 1}  # the rest: all


def in_a_loop(what, units, do, folder, beam):
    """What `run_units` does, without Beam."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, unit in enumerate(units):
        if not unit_file(folder, number).is_file():
            do(unit, unit_file(folder, number))


@pytest.fixture
def loop(monkeypatch):
    """Ingest without Beam, for what does not depend on it."""
    for module in (check_module, ingest_module):
        monkeypatch.setattr(module, "run_units", in_a_loop)

    def run(source, out, settings=SMALL_UNITS, **options):
        sources = [str(path) for path in source] if isinstance(source, list) else [str(source)]
        return make_records(sources, out, settings, **options)

    return run


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return write_bson(tmp_path_factory.mktemp("source") / "catalogue.bson", documents(PRODUCTS))


@pytest.fixture(scope="module")
def taxonomy(catalogue):
    """In the columns of Cdiscount's category_names.csv."""
    file = catalogue.with_name("category_names.csv")
    file.write_text(
        "category_id,category_level1,category_level2,category_level3\n"
        '1000,HOME,"KITCHEN, TABLE",MUGS\n1001,HOME,"KITCHEN, TABLE",PLATES\n'
        "1002,HOME,LIGHT,LAMPS\n1003,TOYS,ROBOTS,ROBOTS\n1999,TOYS,DOLLS,DOLLS\n"
    )
    return file


@pytest.fixture(scope="module")
def records(catalogue, taxonomy, tmp_path_factory):
    """The catalogue's records, made as it runs without options for Beam."""
    out = tmp_path_factory.mktemp("run") / "records"
    return make_records([str(catalogue)], out, SMALL_UNITS, taxonomy=taxonomy)


def splits(artifact):
    products = pd.read_parquet(artifact.file("products.parquet"))
    return dict(zip(products["product_id"], products["split"], strict=True))


# The closed account


def test_every_image_is_in_records_or_rejects_or_of_a_product_that_is_not_learnt(records):
    images = pd.read_parquet(records.file("images.parquet"))
    rejects = pd.read_parquet(records.file("rejects.parquet"))
    products = pd.read_parquet(records.file("products.parquet")).set_index("product_id")
    recorded = Counter(zip(images["product_id"], images["image_index"], strict=True))
    rejected = Counter(zip(rejects["product_id"], rejects["image_index"], strict=True))
    cut = ("truncated", "undecodable")
    for number, product in enumerate(PRODUCTS):
        split, readable = products.loc[product.id, ["split", "images"]]
        assert readable == READABLE.get(number, len(product.pictures)), product.id
        for place, picture in enumerate(product.pictures):
            key = (product.id, place)
            bad = picture in (None, b"", HTML) or not picture.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))
            assert (recorded[key], rejected[key]) == (0 if bad else split in LEARNT, bad), key
    assert sum(recorded.values()) + sum(rejected.values()) + sum(
        products.loc[products["split"].isin(["none", "dropped"]), "images"]
    ) == sum(len(product.pictures) for product in PRODUCTS)
    assert set(rejects["reason"]) == {"missing", "empty", "not_an_image", "truncated"}
    assert rejects.loc[rejects["product_id"] == "4", "reason"].isin(cut).all()


def test_the_summary_counts_every_image(records):
    summary = records.summary
    readable = [READABLE.get(n, len(p.pictures)) for n, p in enumerate(PRODUCTS)]
    of = Counter()
    for images, product in zip(readable, PRODUCTS, strict=True):
        of[product.category] += images
    assert summary["products"] == 156 and summary["images"] == sum(len(p.pictures) for p in PRODUCTS)
    robots = [
        (splits(records)[product.id], images)
        for images, product in zip(readable, PRODUCTS, strict=True)
        if product.category == ROBOTS
    ]
    unlearnt = sum(images for split, images in robots if split in LEARNT)
    assert sum(summary["records"].values()) == of[MUGS] + of[PLATES] + of[LAMPS] + unlearnt
    assert summary["rejects"] == {"empty": 1, "missing": 2, "not_an_image": 2, "truncated": 5}
    assert (summary["uncategorized_products"], summary["uncategorized_images"]) == (12, of[""])
    assert (summary["dropped_products"], summary["dropped_images"]) == (12, of[ROBOTS] - unlearnt)
    assert (summary["unlearnt_products"], summary["unlearnt_images"]) == (7, unlearnt)
    assert (summary["dropped_categories"], summary["unreadable_products"]) == (1, 6)
    assert (summary["products_in_two_categories"], summary["categories_in_two_places"]) == (0, 0)
    taken = sum(summary["records"].values()) + sum(summary["rejects"].values())
    assert taken + summary["uncategorized_images"] + summary["dropped_images"] == summary["images"]


def test_rejects_tell_product_place_source_and_reason(records, catalogue):
    rejects = pd.read_parquet(records.file("rejects.parquet"))
    assert list(rejects.columns) == ["product_id", "image_index", "source", "reason", "detail"]
    assert set(rejects["source"]) == {catalogue.name} and (rejects["detail"] != "").all()
    found = [tuple(row) for row in rejects[["product_id", "image_index", "reason"]].itertuples(index=False)]
    assert found[:3] == [("0", 0, "truncated"), ("0", 1, "empty"), ("1", 0, "not_an_image")]
    assert found[3:5] == [("2", 0, "missing"), ("2", 1, "truncated")]


# Split


def test_the_split_is_exact_in_every_category(records):
    products = pd.read_parquet(records.file("products.parquet"))
    assert list(products.columns) == ["product_id", "category", "split", "images", "seller"]
    assert products["seller"].isna().all()
    found = products.assign(category=products["category"].fillna("")).groupby(["category", "split"]).size()
    assert {key: found[key].to_dict() for key in COUNTS} == SPLITS


def test_all_images_of_a_product_are_on_its_side(records):
    images = pd.read_parquet(records.file("images.parquet"))
    side = splits(records)
    assert all(
        side[product] == split for product, split in zip(images["product_id"], images["split"], strict=True)
    )
    parts = images["file"].str.split("-").str[0]
    assert (parts == images["split"]).all()
    assert all((records.path / name).is_file() for name in images["file"])


# Records


@pytest.fixture(scope="module")
def read_back(records, quiet_tensorflow):
    """Every record as TensorFlow reads it."""
    files = sorted(records.path.glob("*.tfrecord"))
    assert len(files) > 9 and {file.name.split("-")[0] for file in files} == set(LEARNT)
    rows = []
    for batch in dataset(files, batch=64):
        columns = {name: column.numpy() for name, column in batch.items()}
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows


def test_tensorflow_reads_every_record_and_decodes_every_image(records, read_back):
    import tensorflow as tf

    assert len(read_back) == sum(records.summary["records"].values())
    by_id = {product.id: product for product in PRODUCTS}
    for row in read_back:
        product = by_id[row["product_id"].decode()]
        picture = product.pictures[row["image_index"]]
        assert row["category"].decode() == product.category and row["seller"] == b""
        assert row["split"].decode() == splits(records)[product.id]
        assert row["image_digest"].decode() == hashlib.sha256(picture).hexdigest()
        assert tf.io.decode_jpeg(row["image"], channels=3).shape == (40, 40, 3)


def test_a_good_jpeg_keeps_its_bytes_and_a_png_becomes_a_jpeg_that_looks_the_same(read_back):
    by_id = {product.id: product for product in PRODUCTS}
    transcoded = 0
    for row in read_back:
        picture = by_id[row["product_id"].decode()].pictures[row["image_index"]]
        if picture.startswith(b"\xff\xd8"):
            assert row["image"] == picture
            continue
        transcoded += 1
        found, wanted = (
            np.asarray(Image.open(io.BytesIO(data)), dtype=float) for data in (row["image"], picture)
        )
        assert np.abs(found - wanted).mean() < 5
    assert transcoded == 1


def test_the_index_of_images_points_at_the_records(records, read_back):
    import tensorflow as tf

    images = pd.read_parquet(records.file("images.parquet"))
    shards = {name: (records.path / name).read_bytes() for name in set(images["file"])}
    jpegs = {(row["product_id"].decode(), row["image_index"]): row["image"] for row in read_back}
    for row in images.itertuples(index=False):
        framed = shards[row.file][row.offset : row.offset + row.length]
        assert int.from_bytes(framed[:8], "little") == row.length - 16
        feature = tf.train.Example.FromString(unframe(framed)).features.feature
        assert feature["product_id"].bytes_list.value[0].decode() == row.product_id
        assert feature["image_index"].int64_list.value[0] == row.image_index
        assert feature["image_digest"].bytes_list.value[0].decode() == row.image_digest
        assert feature["image"].bytes_list.value[0] == jpegs[row.product_id, row.image_index]
    covered = images.groupby("file")["length"].sum()
    assert {name: len(data) for name, data in shards.items()} == covered.to_dict()


def test_records_are_shuffled(records):
    images = pd.read_parquet(records.file("images.parquet"))
    train = images.loc[images["split"] == "train", "product_id"].astype(int).to_numpy()
    # few runs are dealt out here: the order of a sorted catalogue would give 1
    assert abs(np.corrcoef(np.arange(len(train)), train)[0, 1]) < 0.9


def test_cdiscounts_taxonomy_gives_the_learnt_categories_their_places(records):
    tree = pd.read_csv(records.file("taxonomy.csv"), dtype=str)
    assert tree.to_dict("split")["data"] == [
        [MUGS, "HOME", "KITCHEN, TABLE", "MUGS"],
        [PLATES, "HOME", "KITCHEN, TABLE", "PLATES"],
        [LAMPS, "HOME", "LIGHT", "LAMPS"],
    ]


# The same work


def test_a_plain_loop_in_another_workspace_gives_the_same_digest_as_beam(
    records, catalogue, taxonomy, tmp_path, loop
):
    assert loop(catalogue, tmp_path / "records", taxonomy=taxonomy).digest == records.digest


def test_beam_in_memory_gives_the_same_digest_as_in_threads(records, catalogue, taxonomy, tmp_path):
    again = make_records(
        [str(catalogue)], tmp_path / "records", SMALL_UNITS, taxonomy=taxonomy, beam=IN_MEMORY
    )
    assert again.digest == records.digest


def test_running_again_opens_what_is_there(records, catalogue, taxonomy, caplog, monkeypatch):
    monkeypatch.setattr(check_module, "run_units", None)
    caplog.set_level(logging.INFO, logger="shelfmark")
    before = {file: file.stat().st_mtime_ns for file in records.path.iterdir()}
    assert make_records([str(catalogue)], records.path, SMALL_UNITS, taxonomy=taxonomy) == records
    message = caplog.records[-1].getMessage()
    assert message.startswith("records: unchanged (products 156, images 310, records (")
    assert {file: file.stat().st_mtime_ns for file in records.path.iterdir()} == before


@pytest.fixture
def small(tmp_path):
    """A catalogue of two categories that is quickly ingested."""
    return write_bson(tmp_path / "small.bson", documents(draw_products({MUGS: 24, PLATES: 21})))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": IngestSettings(min_products=21)},
        {"settings": IngestSettings(max_rejected=0.5)},
        {"seed": 1},
        {"taxonomy": True},
        {"known": True},
        {"touched": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_records_are_remade_when_what_they_are_made_from_has_changed(small, tmp_path, loop, taxonomy, change):
    first = loop(small, tmp_path / "records", IngestSettings())
    known = tmp_path / "splits.parquet"
    pd.DataFrame({"product_id": ["0"], "split": ["test"]}).to_parquet(known)
    change = change | {"taxonomy": taxonomy if "taxonomy" in change else None}
    change = change | {"known": known if "known" in change else None}
    if change.pop("touched", False):
        os.utime(small, ns=(1, 1))
    second = loop(small, tmp_path / "records", **({"settings": IngestSettings()} | change))
    assert second.digest != first.digest
    assert open_artifact(tmp_path / "records", "records") == second


def test_the_seed_changes_the_order_of_the_records_and_nothing_else(small, tmp_path, loop):
    first, second = (loop(small, tmp_path / f"{seed}", seed=seed) for seed in (0, 1))
    tables = [pd.read_parquet(artifact.file("images.parquet")) for artifact in (first, second)]
    assert splits(first) == splits(second)
    assert not tables[0]["product_id"].equals(tables[1]["product_id"])
    keys = ["product_id", "image_index", "image_digest", "split"]
    ordered = [table.sort_values(keys)[keys].reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(*ordered)


def test_the_split_is_the_same_whatever_the_order_of_the_documents(records, taxonomy, tmp_path, loop):
    mixed = [PRODUCTS[place] for place in np.random.default_rng(5).permutation(len(PRODUCTS))]
    shuffled = write_bson(tmp_path / "shuffled.bson", documents(mixed))
    assert splits(loop(shuffled, tmp_path / "records", taxonomy=taxonomy)) == splits(records)


def test_the_split_is_the_same_whatever_the_order_of_the_files(records, taxonomy, tmp_path, loop):
    halves = [write_bson(tmp_path / f"{n}.bson", documents(PRODUCTS[n::2])) for n in (0, 1)]
    for order in (halves, halves[::-1]):
        made = loop(order, tmp_path / "records", taxonomy=taxonomy)
        assert splits(made) == splits(records)
        assert {**made.summary, "records": records.summary["records"]} == records.summary


def test_a_manifest_in_any_order_gives_the_same_split_as_bson(records, taxonomy, tmp_path, loop):
    rows = manifest_rows(tmp_path, [product for product in PRODUCTS if product.pictures])
    mixed = [rows[place] for place in np.random.default_rng(6).permutation(len(rows))]
    wanted = {product: split for product, split in splits(records).items() if product != "3"}
    for name, its in (("a.csv", rows), ("b.csv", mixed), ("c.parquet", mixed)):
        made = loop(write_manifest(tmp_path / name, its), tmp_path / name[0], taxonomy=taxonomy)
        assert splits(made) == wanted, "all but the product without images, which a manifest cannot have"
        assert made.summary["rejects"] == records.summary["rejects"]


def test_a_category_without_training_products_is_reported(tmp_path, loop, caplog):
    rows = manifest_rows(tmp_path, draw_products({"1": 30, "2": 5, "3": 25}))
    given = [row | {"split": "test" if row["category"] == "2" else "train"} for row in rows]
    with caplog.at_level(logging.INFO, "shelfmark"):
        made = loop(write_manifest(tmp_path / "shop.csv", given), tmp_path / "records")
    assert made.summary["dropped_categories"] == 1
    assert "1 categories without training products, too small or held out" in caplog.text
    assert pd.read_csv(made.file("taxonomy.csv"), dtype=str)["category"].tolist() == ["1", "3"]
    assert pd.read_csv(made.file("unlearnt.csv"), dtype=str)["category"].tolist() == ["2"]


def test_two_sources_of_different_kinds_are_one_catalogue(tmp_path, loop):
    first, second = draw_products({"1": 30}), draw_products({"1": 10, "2": 20}, first=30)
    rows = manifest_rows(tmp_path / "shop", second)
    sources = [
        write_bson(tmp_path / "a.bson", documents(first)),
        write_manifest(tmp_path / "shop" / "b.csv", rows),
    ]
    made = loop(sources, tmp_path / "records")
    assert Counter(splits(made).values()) == {"train": 34, "val": 6, "test": 20}
    whole = write_bson(tmp_path / "c.bson", documents(first + second))
    assert splits(loop(whole, tmp_path / "whole")) == splits(made)


def test_a_folder_becomes_records_with_the_tree_of_its_directories(tmp_path, loop):
    kinds = ("Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Milk", "Fruit/Kiwi")
    names = {f"{kind}/{n}.jpg": photo(100 * place + n) for place, kind in enumerate(kinds) for n in range(20)}
    made = loop(write_files(tmp_path / "shop", names | {"loose.jpg": photo(7)}), tmp_path / "records")
    assert made.summary["records"] == {"train": 32, "val": 8, "test": 40}
    assert splits(made)["loose.jpg"] == "none"
    tree = pd.read_csv(made.file("taxonomy.csv"), dtype=str)
    assert tree.to_dict("split")["data"] == [
        ["Fruit/Apple/Fuji", "Fruit", "Apple", "Fuji"],
        ["Fruit/Apple/Gala", "Fruit", "Apple", "Gala"],
        ["Fruit/Kiwi", "Fruit", "Kiwi", "Kiwi"],
        ["Milk", "Milk", "Milk", "Milk"],
    ]


def test_a_manifests_own_split_and_levels_are_kept(tmp_path, loop):
    rows = manifest_rows(tmp_path, draw_products({"Mugs": 6, "Plates": 3}))
    part = {"0": "test", "1": "val", "6": "test"}
    rows = [
        row | {"split": part.get(row["product_id"], "train"), "level1": "Kitchen", "seller": "Smith"}
        for row in rows
    ]
    made = loop(write_manifest(tmp_path / "a.csv", rows), tmp_path / "records", IngestSettings())
    assert {product: split for product, split in splits(made).items() if split != "train"} == part
    assert set(pd.read_parquet(made.file("products.parquet"))["seller"]) == {"Smith"}
    tree = pd.read_csv(made.file("taxonomy.csv"))
    assert tree.to_dict("split")["data"] == [["Mugs", "Kitchen", "Mugs"], ["Plates", "Kitchen", "Plates"]]


# Interruptions


def stop_after(monkeypatch, module, name, finished):
    """Makes a step of ingest fail once so many of its units are finished."""
    real = getattr(module, name)

    def flaky(unit, done, **options):
        if len(list(done.parent.glob("unit-*.parquet"))) >= finished:
            raise OSError(28, "No space left on device", str(done))
        real(unit, done, **options)

    monkeypatch.setattr(module, name, flaky)


@pytest.mark.parametrize(
    ("module", "step", "folder"),
    [(check_module, "check_unit", "_look"), (ingest_module, "write_shards", "_images")],
    ids=["check", "write"],
)
def test_an_interrupted_ingest_goes_on_at_the_last_finished_unit(
    records, catalogue, taxonomy, tmp_path, monkeypatch, module, step, folder
):
    out = tmp_path / "records"
    with monkeypatch.context() as patch:
        stop_after(patch, module, step, finished=3)
        with pytest.raises(OSError, match="No space left on device"):
            make_records([str(catalogue)], out, SMALL_UNITS, taxonomy=taxonomy, beam=IN_MEMORY)
    assert not out.exists()
    work = partial_of(out)
    finished = {file: file.stat().st_mtime_ns for file in (work / folder).glob("unit-*.parquet")}
    assert len(finished) == 3
    (work / folder / "unit-00004.parquet.tmp").write_bytes(b"half")
    (work / "train-00004-of-00009.tfrecord.tmp").write_bytes(b"half")

    at_the_end = {}

    def check_on(what, units, do, folder, beam):
        in_a_loop(what, units, do, folder, beam)
        at_the_end.update({file: file.stat().st_mtime_ns for file in finished if file.parent == folder})

    monkeypatch.setattr(check_module, "run_units", check_on)
    monkeypatch.setattr(ingest_module, "run_units", check_on)
    resumed = make_records([str(catalogue)], out, SMALL_UNITS, taxonomy=taxonomy)
    assert resumed.digest == records.digest
    assert at_the_end == finished, "finished units are not done again"
    assert not work.exists()


def test_a_source_that_changes_while_it_is_read_is_reported(small, tmp_path, loop, monkeypatch):
    real = ingest_module._write_records

    def change_it(*args):
        data = bytearray(small.read_bytes())
        data[len(data) // 2] ^= 1
        small.write_bytes(data)
        real(*args)

    monkeypatch.setattr(ingest_module, "_write_records", change_it)
    with pytest.raises(
        ShelfmarkError,
        match=r"small.bson: changed while it was read; expected a file that no program writes to",
    ):
        loop(small, tmp_path / "records")
    assert not (tmp_path / "records").exists()


# Week after week


def test_no_product_changes_sides_when_new_ones_come(records, taxonomy, tmp_path, loop):
    before = {product: split for product, split in splits(records).items() if split in LEARNT}
    known = tmp_path / "splits.parquet"
    pd.DataFrame(before.items(), columns=["product_id", "split"]).to_parquet(known)
    moved = [Drawn(p.id, LAMPS, p.pictures) if p.id in ("10", "11") else p for p in PRODUCTS]
    new = draw_products({MUGS: 12, PLATES: 3, ROBOTS: 1}, first=1000)
    week_two = write_bson(tmp_path / "two.bson", documents([*new, *moved[::-1]]))
    made = loop(week_two, tmp_path / "records", taxonomy=taxonomy, known=known)
    after = splits(made)
    assert {product: after[product] for product in before} == before
    assert {after[product.id] for product in new} <= set(LEARNT)
    category = pd.read_parquet(made.file("products.parquet")).set_index("product_id")["category"]
    assert category["10"] == LAMPS
    count = {key: Counter(after[product] for product in after if category[product] == key) for key in COUNTS}
    assert count[MUGS] == {"train": 49, "val": 7, "test": 10, "none": 4}
    assert count[PLATES] == {"train": 29, "val": 4, "test": 10}
    assert count[ROBOTS] == {"train": 8, "val": 2, "test": 10}, "now large enough to be learnt"


# What is refused


def test_categories_that_the_taxonomy_lacks_are_counted_rejects(catalogue, taxonomy, tmp_path, loop):
    short = tmp_path / "short.csv"
    short.write_text("".join(line for line in taxonomy.open() if not line.startswith(LAMPS)))
    made = loop(catalogue, tmp_path / "records", IngestSettings(max_rejected=0.5), taxonomy=short)
    rejects = pd.read_parquet(made.file("rejects.parquet"))
    unknown = rejects[rejects["reason"] == "unknown_category"]
    lamps = [p for p in PRODUCTS if p.category == LAMPS]
    readable = sum(READABLE.get(int(p.id), len(p.pictures)) for p in lamps)
    assert len(unknown) == made.summary["rejects"]["unknown_category"] == readable
    assert set(unknown["detail"]) == {f"category {LAMPS} is not in the taxonomy"}
    assert {splits(made)[product.id] for product in lamps} == {"none"}
    summary = made.summary
    taken = sum(summary["records"].values()) + sum(summary["rejects"].values())
    assert taken + summary["uncategorized_images"] + summary["dropped_images"] == summary["images"]


def test_a_flood_of_rejects_stops_ingest_before_anything_is_written(catalogue, tmp_path, loop):
    with pytest.raises(ShelfmarkError) as caught:
        loop(catalogue, tmp_path / "records", IngestSettings(max_rejected=0.03))
    images = sum(len(product.pictures) for product in PRODUCTS)
    listed = partial_of(tmp_path / "records") / "rejects.parquet"
    assert str(caught.value) == (
        f"10 of {images} images rejected (truncated 5, not_an_image 2, missing 2), for example "
        "catalogue.bson: OSError: Truncated File Read; expected at most 3%; "
        f"{listed} lists them: correct the source, or raise ingest.max_rejected"
    )
    assert len(pd.read_parquet(listed)) == 10 and not (tmp_path / "records").exists()


def test_a_workspace_within_its_source_is_refused(tmp_path, loop):
    write_files(tmp_path / "shop", {"Mugs/1.jpg": photo(1)})
    for out in ("W/records", "Mugs/records"):
        with pytest.raises(ShelfmarkError, match=r"inside the source .*; expected a path outside"):
            loop(tmp_path / "shop", tmp_path / "shop" / out)


def test_units_of_a_byte_become_no_more_than_there_are_images(small, tmp_path, loop):
    made = loop(small, tmp_path / "records", IngestSettings(unit_bytes=1))
    shards = {name for name in made.files if name.endswith(".tfrecord")}
    assert len(shards) == 3 * sum(made.summary["records"].values())


def test_a_wrong_taxonomy_is_reported_before_any_image_is_read(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_module, "check_images", None)
    with pytest.raises(ShelfmarkError, match="no such file; expected a CSV of category_id"):
        make_records([str(small)], tmp_path / "records", IngestSettings(), taxonomy=tmp_path / "gone.csv")
    (tmp_path / "wrong.csv").write_text("id,name\n1,a\n")
    with pytest.raises(ShelfmarkError, match=r"wrong.csv: columns id, name; expected category_id"):
        make_records([str(small)], tmp_path / "records", IngestSettings(), taxonomy=tmp_path / "wrong.csv")


def test_a_catalogue_with_nothing_to_train_on_is_reported(tmp_path, loop):
    source = write_bson(tmp_path / "a.bson", documents(draw_products({MUGS: 19, "": 5})))
    with pytest.raises(ShelfmarkError, match="24 products, 19 with a category, in categories of under 20"):
        loop(source, tmp_path / "records")
    with pytest.raises(ShelfmarkError, match="truncated: the document at byte"):
        source.write_bytes(source.read_bytes()[:-5])
        loop(source, tmp_path / "records")
    assert not (tmp_path / "records").exists()
