"""Catalogues as shops have them, through the command line: each is read as its owner means it, or counted."""

import gzip
import io
import json
import os
import shutil
import unicodedata
from collections import Counter

import bson
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import HTML, photo, write_bson, write_files, write_manifest
from PIL import Image
from test_cli import error_line, run
from test_images import EIGHT, bmp, encoded, p3
from tf_records import dataset

from features.storage.artifact import open_artifact
from pipeline.ingest import ingest as ingest_module
from pipeline.job.catalogue import weights_of


@pytest.fixture
def ingest(tmp_path):
    """Ingests sources; the records, with the account checked."""

    def make(*sources, status=0, **settings):
        sets = [option for name, value in settings.items() for option in ("--set", f"ingest.{name}={value}")]
        texts = [str(source) for source in sources]
        assert run("ingest", *texts, "--workspace", str(tmp_path / "W"), "--run", "r", *sets) == status
        if status:
            return None
        return Records(tmp_path / "W" / "runs" / "r" / "records")

    return make


class Records:
    """What ingest made."""

    def __init__(self, path):
        self.path = path
        self.summary = open_artifact(path, "records").summary
        self.images, self.products, self.rejects = (
            pd.read_parquet(path / f"{name}.parquet") for name in ("images", "products", "rejects")
        )
        self.taxonomy = pd.read_csv(path / "taxonomy.csv", dtype=str, keep_default_na=False)
        in_records = len(self.images)
        others = self.summary["uncategorized_images"] + self.summary["dropped_images"]
        assert self.summary["images"] == in_records + len(self.rejects) + others, "the account closes"
        assert dict(Counter(self.rejects["reason"])) == self.summary["rejects"]

    @property
    def categories(self):
        return dict(Counter(self.products["category"].dropna()))

    @property
    def reasons(self):
        return dict(Counter(self.rejects["reason"]))


def rows(count=44, start=0, **more):
    """Rows of a manifest: two categories, photos `ph/<n>.jpg`."""
    return [
        {"product_id": f"p{n}", "image": f"ph/{n}.jpg", "category": "AB"[n % 2], **more}
        for n in range(start, start + count)
    ]


def photos(folder, count=44):
    return write_files(folder, {f"ph/{n}.jpg": photo(n) for n in range(count)})


def csv_text(rows, delimiter=","):
    lines = [delimiter.join(rows[0])] + [delimiter.join(map(str, row.values())) for row in rows]
    return "\n".join(lines) + "\n"


# ---- delimited text


def test_rows_that_cannot_be_used_are_counted_with_their_lines(tmp_path, ingest):
    photos(tmp_path)
    text = csv_text(rows()) + "q1,ph/1.jpg\n\n,ph/2.jpg,A\n q2,ph/3.jpg,A,more\n,,\n"
    (tmp_path / "shop.csv").write_text(text)
    records = ingest(tmp_path / "shop.csv")
    assert len(records.images) == 44 and records.reasons == {"bad_row": 3}
    assert records.rejects["detail"].tolist() == [
        "line 46: 2 cells; expected 3",
        "no product_id, image 'ph/2.jpg'",
        "line 49: 4 cells; expected 3",
    ]
    assert set(records.rejects["source"]) == {"shop.csv"}


def test_too_many_bad_rows_stop_the_run(tmp_path, ingest, capsys):
    photos(tmp_path)
    (tmp_path / "shop.csv").write_text(csv_text(rows()) + "q,ph/1.jpg\n" * 9)
    ingest(tmp_path / "shop.csv", status=4)
    assert "9 of 53 images rejected (bad_row 9)" in error_line(capsys)


@pytest.mark.parametrize("command", ["ingest", "categorize"])
def test_an_unclosed_quote_swallows_no_product(tmp_path, ingest, workspace, command):
    photos(tmp_path, 100)
    lines = csv_text(rows(100, title="TV")).splitlines()
    lines[61] = '60,ph/60.jpg,A,"Slim TV'
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    if command == "ingest":
        records = ingest(tmp_path / "shop.csv", min_known=0)
        assert (len(records.images), records.reasons) == (99, {"bad_row": 1})
        assert "line 62: a quote that opens here is not closed" in records.rejects["detail"].tolist()
    else:
        assert len(decisions(tmp_path, workspace, "shop.csv")) == 99


def test_a_french_spreadsheet_is_read(tmp_path, ingest, caplog):
    photos(tmp_path)
    shop = [
        {" Product_ID ": f"{n}", "Image": f"ph/{n}.jpg", "CATEGORY": ("Café", "Thé")[n % 2], "Prix": "1,5"}
        for n in range(44)
    ]
    (tmp_path / "shop.CSV").write_bytes(csv_text(shop, ";").replace("\n", "\r\n").encode("cp1252"))
    records = ingest(tmp_path / "shop.CSV")
    assert records.categories == {"Café": 22, "Thé": 22}
    assert "shop.CSV: read as semicolon-separated cp1252" in caplog.text


@pytest.mark.parametrize("name", ["shop.tsv", "shop.csv.gz", "shop.TSV.GZ"])
def test_tables_with_tabs_and_packed_ones_are_read(tmp_path, ingest, name):
    photos(tmp_path)
    data = csv_text(rows(), "\t" if "tsv" in name.lower() else ",").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert ingest(tmp_path / name).categories == {"A": 22, "B": 22}


def test_a_packed_table_that_is_cut_is_refused_in_words(tmp_path, ingest, capsys):
    (tmp_path / "shop.csv.gz").write_bytes(gzip.compress(csv_text(rows()).encode())[:-30])
    ingest(tmp_path / "shop.csv.gz", status=1)
    assert "shop.csv.gz" in error_line(capsys)


def test_the_delimiter_and_the_encoding_can_be_given(tmp_path, ingest):
    photos(tmp_path)
    (tmp_path / "shop.csv").write_bytes(csv_text(rows(seller="Café"), ":").encode("mac-roman"))
    records = ingest(tmp_path / "shop.csv", csv_delimiter="':'", csv_encoding="mac-roman")
    assert set(records.products["seller"]) == {"Café"}


def test_ids_that_a_program_made_fractions_are_whole_numbers(tmp_path, ingest, caplog):
    photos(tmp_path)
    shop = [row | {"product_id": f"{1000 + n}.0" if n != 7 else ""} for n, row in enumerate(rows())]
    (tmp_path / "shop.csv").write_text(csv_text(shop))
    records = ingest(tmp_path / "shop.csv")
    assert records.products["product_id"].tolist() == sorted(str(1000 + n) for n in range(44) if n != 7)
    assert "every product_id ends in .0; they are read as whole numbers" in caplog.text


def test_a_catalogue_that_hardly_knows_the_release_in_service_stops(tmp_path, workspace, capsys, ingest):
    known = pd.DataFrame({"product_id": [f"{n}" for n in range(44)], "split": "train"})
    release = workspace / "releases" / "first"
    known.to_parquet(release / "splits.parquet")
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["files"]["splits.parquet"]["size"] = (release / "splits.parquet").stat().st_size
    (release / "manifest.json").write_text(json.dumps(manifest))
    photos(tmp_path)
    write_manifest(tmp_path / "shop.csv", rows())
    ingest(tmp_path / "shop.csv", status=4)
    assert "0 of the 44 products of the release in service are among the 44" in error_line(capsys)
    assert ingest(tmp_path / "shop.csv", min_known=0).categories == {"A": 22, "B": 22}


def test_splits_are_named_in_many_ways(tmp_path, ingest):
    photos(tmp_path)
    names = ["Training", "TRAIN", "valid", "dev", "Validation", "testing", "eval", "test"]
    write_manifest(tmp_path / "shop.csv", [row | {"split": names[n % 8]} for n, row in enumerate(rows())])
    parts = ["train", "train", "val", "val", "val", "test", "test", "test"]
    products = ingest(tmp_path / "shop.csv").products.set_index("product_id")["split"]
    assert products.to_dict() == {f"p{n}": parts[n % 8] for n in range(44)}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_weights_are_kept_where_a_source_has_them(tmp_path, ingest, caplog, ending):
    photos(tmp_path)
    cells = {"p0": "12.5", "p1": "", "p2": "0", "p3": "7", "p4": " 3e2 "}
    bad = {"p5": "many", "p6": "-1", "p7": "inf", "p8": "nan", "p9": "1_000", "p10": "1,5"}
    shop = [row | {"weight": (cells | bad).get(row["product_id"], "1")} for row in rows()]
    shop.append(shop[0] | {"image": "ph/1.jpg", "weight": "40"})  # the same product, more views
    shop.append(shop[3] | {"image": "ph/2.jpg", "weight": ""})
    if ending == "csv":
        (tmp_path / "shop.csv").write_text(csv_text(shop, ";"))
    else:
        pq.write_table(pa.Table.from_pylist(shop), tmp_path / "shop.parquet")
    records = ingest(tmp_path / f"shop.{ending}")
    expected = {f"p{n}": 1.0 for n in range(44)} | {"p0": 40.0, "p2": 0.0, "p3": 7.0, "p4": 300.0}
    missing = {"p1", *bad}
    found = weights_of(open_artifact(records.path, "records"))
    assert found.to_dict() == {
        product: weight for product, weight in expected.items() if product not in missing
    }
    column = records.products.set_index("product_id")["weight"]
    assert set(column.index[column.isna()]) == missing
    assert records.reasons == {}
    assert "6 weights are no numbers from 0 on, for example 'many'" in caplog.text


def test_numbers_as_weights_are_read_from_parquet_and_beside_a_source_without(tmp_path, ingest):
    photos(tmp_path)
    weighted = [row | {"weight": n / 4 if n % 3 else None} for n, row in enumerate(rows(30))]
    pq.write_table(pa.Table.from_pylist(weighted), tmp_path / "shop.parquet")
    write_manifest(tmp_path / "other.csv", rows(14, 30))
    records = ingest(tmp_path / "other.csv", tmp_path / "shop.parquet")
    found = weights_of(open_artifact(records.path, "records"))
    assert found.to_dict() == {f"p{n}": n / 4 for n in range(30) if n % 3}


def test_without_weights_products_have_no_such_column(tmp_path, ingest):
    photos(tmp_path)
    write_manifest(tmp_path / "shop.csv", [row | {"weight": " "} for row in rows()])
    records = ingest(tmp_path / "shop.csv")
    assert list(records.products) == ["product_id", "category", "split", "images", "seller"]
    assert weights_of(open_artifact(records.path, "records")) is None


def test_a_huge_cell_that_nobody_needs_does_no_harm(tmp_path, ingest):
    photos(tmp_path)
    shop = rows(title="x")
    shop[3]["title"] = "y" * 3_000_000
    write_manifest(tmp_path / "shop.csv", shop)
    assert len(ingest(tmp_path / "shop.csv").images) == 44


# ---- names


def test_names_that_look_alike_are_one_category(tmp_path, ingest, caplog):
    photos(tmp_path)
    names = ["Café", "Cafe\u0301", "Shoes", " Shoes ", "Home\rLinen", "Home  Linen", "shoes"]
    write_manifest(
        tmp_path / "shop.csv", [row | {"category": names[n % 7]} for n, row in enumerate(rows(42))]
    )
    records = ingest(tmp_path / "shop.csv", min_products=1)
    assert records.categories == {"Café": 12, "Shoes": 12, "Home Linen": 12, "shoes": 6}
    assert "'Cafe\\u0301' (6) and 'Caf\\xe9' (6)" in caplog.text
    assert (
        "1 names differ by upper and lower case alone and stay different: 'Shoes' and 'shoes'" in caplog.text
    )
    assert sorted(records.taxonomy["category"]) == ["Café", "Home Linen", "Shoes", "shoes"]


def test_a_folder_of_a_mac_beside_a_table_of_windows_is_one_catalogue(tmp_path, ingest, caplog):
    files = {f"{name}/{n}.jpg": photo(n) for n in range(12) for name in [("Cafe\u0301", "Thé ")[n % 2]]}
    write_files(tmp_path / "folder", files)
    write_files(tmp_path, {f"ph/{n}.jpg": photo(n) for n in range(20, 30)})
    shop = [
        {"product_id": n, "image": f"ph/{n}.jpg", "category": ("Café", "Thé")[n % 2]} for n in range(20, 30)
    ]
    write_manifest(tmp_path / "shop.csv", shop)
    records = ingest(tmp_path / "folder", tmp_path / "shop.csv", min_products=1)
    assert records.categories == {"Café": 11, "Thé": 11}


def test_files_whose_accents_are_written_otherwise_than_in_the_table_are_found(tmp_path, ingest):
    write_files(tmp_path, {unicodedata.normalize("NFD", f"ph/Café {n}.jpg"): photo(n) for n in range(44)})
    write_manifest(
        tmp_path / "shop.csv", [row | {"image": f"ph/Café {n}.jpg"} for n, row in enumerate(rows())]
    )
    assert ingest(tmp_path / "shop.csv").reasons == {}


def test_folders_whose_names_are_not_utf8_are_read(tmp_path, ingest, caplog):
    root = os.fsencode(tmp_path) + b"/sho\xe9"  # the root itself, too
    for n in range(44):
        folder = root + (b"/Caf\xe9" if n % 2 else b"/Th\x81")
        os.makedirs(folder, exist_ok=True)
        with open(folder + b"/%d.jpg" % n, "wb") as file:
            file.write(photo(n))
    records = ingest(os.fsdecode(root))
    assert records.categories == {"Café": 22, "Th\\x81": 22} and records.reasons == {}
    assert records.products["product_id"].str.startswith("Café/").sum() == 22
    assert caplog.text.count("the names of 44 files are not UTF-8") == 1


def test_a_leaf_called_as_its_parent_keeps_its_depth(tmp_path, ingest):
    write_files(
        tmp_path / "photos", {f"{'Food' if n % 2 else 'Food/Food'}/{n}.jpg": photo(n) for n in range(44)}
    )
    records = ingest(tmp_path / "photos")
    assert records.taxonomy.to_numpy().tolist() == [
        ["Food", "Food", "Food", "1"],
        ["Food/Food", "Food", "Food", "2"],
    ]


def test_categories_of_one_name_are_kept_apart_by_their_paths(tmp_path, ingest, caplog):
    photos(tmp_path)
    shop = [
        row | {"category": "Other", "Level_2": "Other", "level1": ("Home", "Food")[n % 2]}
        for n, row in enumerate(rows())
    ]
    write_manifest(tmp_path / "shop.csv", shop)
    records = ingest(tmp_path / "shop.csv")
    assert records.categories == {"Home / Other": 22, "Food / Other": 22}
    assert records.taxonomy.to_numpy().tolist() == [
        ["Food / Other", "Food", "Other"],
        ["Home / Other", "Home", "Other"],
    ]


def test_categories_of_one_name_that_nothing_distinguishes_are_named(tmp_path, ingest, capsys):
    photos(tmp_path)
    shop = [
        row
        | {"category": "Other", "level1": ("Home", "Food", "")[n % 3], "level2": "Other" if n % 3 < 2 else ""}
        for n, row in enumerate(rows())
    ]
    write_manifest(tmp_path / "shop.csv", shop)
    ingest(tmp_path / "shop.csv", status=1)
    assert "category 'Other' has several parents, and a product in it does not say which" in error_line(
        capsys
    )


def test_one_category_alone_is_a_mistake(tmp_path, ingest, capsys):
    photos(tmp_path)
    write_manifest(tmp_path / "shop.csv", [row | {"category": "A"} for row in rows()])
    ingest(tmp_path / "shop.csv", status=1)
    assert "one category, 'A', is all there is to train on; expected at least two" in error_line(capsys)


# ---- folders


def test_what_operating_systems_leave_behind_is_passed_over_and_counted(tmp_path, ingest, caplog):
    left = [
        "Thumbs.db",
        "desktop.ini",
        "__MACOSX/._1.jpg",
        "A/Icon\r",
        "A/@eaDir/1.jpg",
        "A/.DS_Store",
        "B/._2.jpg",
    ]
    files = {f"{'AB'[n % 2]}/{n}.jpg": photo(n) for n in range(44)}
    write_files(
        tmp_path / "shop", files | dict.fromkeys(left, b"no photo") | {"A/list.txt": b"no photo either"}
    )
    records = ingest(tmp_path / "shop")
    assert records.summary["ignored"] == 7 and "ignored 7" in caplog.text
    assert records.categories == {"A": 23, "B": 22}  # list.txt is a product without a readable image
    assert records.reasons == {"not_an_image": 1}


def test_folders_named_after_the_parts_are_the_split(tmp_path, ingest, caplog):
    parts = {"Train": 30, "val": 6, "TEST": 8}
    files = {
        f"{part}/{'AB'[n % 2]}/{n}.jpg": photo(hash(part) % 1000 + n)
        for part, m in parts.items()
        for n in range(m)
    }
    records = ingest(write_files(tmp_path / "shop", files | {"LICENSE": b"free"}))
    assert records.categories == {"A": 22, "B": 22} and records.reasons == {"not_an_image": 1}
    assert dict(Counter(records.products["split"])) == {"train": 30, "val": 6, "test": 8, "none": 1}
    assert "the folders TEST, Train, val are the parts of the split" in caplog.text


@pytest.mark.parametrize("how", ["inside", "by a link", "by dots"])
def test_a_job_does_not_write_into_its_own_source(tmp_path, workspace, capsys, how):
    shop = write_files(tmp_path / "shop", {f"{'AB'[n % 2]}/{n}.jpg": photo(n) for n in range(44)})
    (tmp_path / "link").symlink_to(shop)
    place = {"inside": shop, "by a link": tmp_path / "link", "by dots": tmp_path / "W" / ".." / "shop"}[how]
    assert run("ingest", str(shop), "--workspace", str(place / "W")) == 1
    assert "inside the source" in error_line(capsys)
    output = ["--output", str(place / "decisions.parquet")]
    assert run("categorize", str(shop), "--workspace", str(workspace), *output) == 1
    assert "decisions.parquet: inside the source" in error_line(capsys)
    assert not list(shop.glob("*.p*"))


# ---- cells


def test_a_malformed_image_cell_is_a_reject_with_its_product(tmp_path, ingest):
    photos(tmp_path)
    cells = ["https://", "s3://", "://", "FILE:///nothing/x", "s3:/bucket/x", "a\0b", "x" * 5000]
    shop = rows(100)
    shop = [row | {"image": f"ph/{n % 44}.jpg"} for n, row in enumerate(shop)]
    shop += [{"product_id": f"bad{n}", "image": cell, "category": "A"} for n, cell in enumerate(cells)]
    shop += [{"product_id": "later", "image": "", "category": "A"}]
    pq.write_table(pa.Table.from_pylist(shop), tmp_path / "shop.parquet")
    records = ingest(tmp_path / "shop.parquet")
    assert records.rejects["product_id"].tolist() == [f"bad{n}" for n in range(7)]
    assert records.reasons == {"missing": 7}
    later = records.products.set_index("product_id").loc["later"]
    assert (later["split"], later["images"]) == ("none", 0)


def test_file_urls_are_read_as_python_writes_them(tmp_path, ingest):
    write_files(tmp_path / "a b%é", {f"{n}.jpg": photo(n) for n in range(44)})
    shop = []
    for n, row in enumerate(rows()):
        url = (tmp_path / "a b%é" / f"{n}.jpg").as_uri()
        shop.append(row | {"image": url.replace("file://", "file://localhost") if n % 3 else url})
    write_manifest(tmp_path / "shop.csv", shop)
    assert ingest(tmp_path / "shop.csv").reasons == {}


def test_columns_that_nobody_needs_are_not_converted(tmp_path, ingest):
    photos(tmp_path)
    table = pa.Table.from_pylist(rows())
    late = pa.array([575_000_000_000_000] * 44, pa.timestamp("ms"))  # the year 20191
    zone = pa.array([0] * 44, pa.timestamp("ms", tz="Nowhere/Atlantis"))
    long = pa.array([2**62] * 44, pa.duration("s"))
    for name, column in {
        "late": late,
        "zone": zone,
        "long": long,
        "thumbnail": pa.array([HTML] * 44),
    }.items():
        table = table.append_column(name, column)
    pq.write_table(table, tmp_path / "shop.parquet")
    assert len(ingest(tmp_path / "shop.parquet").images) == 44


def test_fields_of_a_bson_that_nobody_needs_lose_no_product(tmp_path, ingest):
    late = bson.datetime_ms.DatetimeMS(400_000_000_000_000)
    shop = [
        {
            "_id": n,
            "category_id": n % 2,
            "imgs": [{"picture": photo(n), "at": late}],
            "made": late,
            "title": "abc",
        }
        for n in range(44)
    ]
    file = write_bson(tmp_path / "shop.bson", shop)
    data = file.read_bytes().replace(b"abc", b"a\xc3(", 22)  # a letter cut in half, in every other
    file.write_bytes(data)
    records = ingest(file)
    assert records.categories == {"0": 22, "1": 22} and records.reasons == {}


# ---- pictures within a table


def pictures_table(numbers, struct, label="label"):
    data = [photo(n) for n in numbers]
    column = (
        [{"bytes": picture, "path": f"{n}.jpg"} for n, picture in zip(numbers, data, strict=True)]
        if struct
        else data
    )
    names = {"label": {"names": ["Plate", "Mug"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": column, label: pa.array([n % 2 for n in numbers], pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_within_parquet_are_read_with_the_names_of_their_labels(tmp_path, ingest, struct):
    pq.write_table(pictures_table(range(44), struct), tmp_path / "shop.parquet", row_group_size=10)
    records = ingest(tmp_path / "shop.parquet", unit_images=15)
    assert records.categories == {"Plate": 22, "Mug": 22} and records.reasons == {}
    assert set(records.products["product_id"]) == {f"shop/{n}" for n in range(44)}
    assert len(set(records.images["image_digest"])) == 44


def test_a_folder_of_shards_is_one_source_and_their_names_are_its_parts(tmp_path, ingest, caplog):
    (tmp_path / "shop" / "data").mkdir(parents=True)
    (tmp_path / "shop" / "README.md").write_text("a data set")
    for part, numbers in {"train": range(30), "validation": range(30, 36), "test": range(36, 44)}.items():
        pq.write_table(
            pictures_table(numbers, True), tmp_path / "shop" / "data" / f"{part}-00000-of-00001.parquet"
        )
    records = ingest(tmp_path / "shop")
    assert dict(Counter(records.products["split"])) == {"train": 30, "val": 6, "test": 8}
    assert records.categories == {"Plate": 22, "Mug": 22}
    assert "the names of its files are the parts of the split" in caplog.text


def test_a_bad_picture_within_parquet_is_a_reject_and_one_that_lacks_is_no_image(tmp_path, ingest):
    shop = [
        {"product_id": f"p{n}", "category": "AB"[n % 2], "image": {"bytes": photo(n), "path": f"{n}.jpg"}}
        for n in range(44)
    ]
    shop += [{"product_id": "bad", "category": "A", "image": {"bytes": HTML, "path": "bad.jpg"}}]
    shop += [{"product_id": "none", "category": "A", "image": {"bytes": None, "path": None}}]
    write_files(tmp_path, {"beside.jpg": photo(99)})
    shop += [{"product_id": "beside", "category": "A", "image": {"bytes": None, "path": "beside.jpg"}}]
    pq.write_table(pa.Table.from_pylist(shop), tmp_path / "shop.parquet")
    records = ingest(tmp_path / "shop.parquet")
    assert records.rejects[["product_id", "source", "reason"]].to_numpy().tolist() == [
        ["bad", "bad.jpg", "not_an_image"]
    ]
    assert records.products.set_index("product_id")["images"][["none", "beside"]].tolist() == [0, 1]


# ---- while the job runs


@pytest.mark.parametrize("what", ["vanish", "change"])
def test_a_photo_that_vanishes_or_changes_meanwhile_is_a_counted_reject(
    tmp_path, ingest, monkeypatch, what, caplog
):
    shop = write_files(tmp_path / "shop", {f"{'AB'[n % 2]}/{n}.jpg": photo(n) for n in range(50)})
    real = ingest_module.write_plan

    def and_then(*arguments):
        kept = real(*arguments)
        for n in (3, 4):
            file = shop / "AB"[n % 2] / f"{n}.jpg"
            if file.exists():
                file.unlink() if what == "vanish" else file.write_bytes(photo(100))
        return kept

    monkeypatch.setattr(ingest_module, "write_plan", and_then)
    records = ingest(shop)
    assert records.reasons == {"changed": 2} and len(records.images) == 48
    assert "2 images changed meanwhile and are now rejects" in caplog.text


def decisions(tmp_path, workspace, source, name="decisions.parquet", status=0):
    command = [
        "categorize",
        str(tmp_path / source),
        "--workspace",
        str(workspace),
        "--output",
        str(tmp_path / name),
    ]
    assert run(*command) == status
    return pd.read_parquet(tmp_path / name) if name.endswith("parquet") else tmp_path / name


def test_a_photo_that_vanishes_while_products_are_categorized_is_counted_too(
    tmp_path, workspace, monkeypatch
):
    from pipeline.categorize import categorize

    shop = write_files(tmp_path / "shop", {f"{n}.jpg": photo(n) for n in range(20)})
    real = categorize.extract_new

    def and_then(*arguments):
        (shop / "3.jpg").unlink(missing_ok=True)
        return real(*arguments)

    monkeypatch.setattr(categorize, "extract_new", and_then)
    status = decisions(tmp_path, workspace, "shop").set_index("product_id")["status"]
    assert len(status) == 20 and status[status == "unreadable"].index.tolist() == ["3.jpg"]
    assert pd.read_parquet(tmp_path / "decisions.rejects.parquet")["reason"].tolist() == ["changed"]


# ---- decisions


@pytest.mark.parametrize("kind", ["folder", "csv", "bson"])
def test_a_source_with_nothing_new_gives_an_empty_table(tmp_path, workspace, kind):
    source = {"folder": "new", "csv": "new.csv", "bson": "new.bson"}[kind]
    if kind == "folder":
        (tmp_path / source).mkdir()
    else:
        (tmp_path / source).write_text("product_id,image\n" if kind == "csv" else "")
    table = decisions(tmp_path, workspace, source)
    assert len(table) == 0 and list(table.columns)[:3] == ["product_id", "category", "category_path"]


def test_decisions_are_the_same_in_every_format(tmp_path, workspace):
    write_files(tmp_path / "shop", {f"{n}.jpg": photo(n) for n in range(12)} | {"no.jpg": HTML})
    wanted = decisions(tmp_path, workspace, "shop", "d.parquet")
    assert wanted["category_path"].dropna().str.contains(" / ").all()
    lines = decisions(tmp_path, workspace, "shop", "d.jsonl").read_text().splitlines()
    found = pd.DataFrame([json.loads(line) for line in lines])
    assert json.loads(found.to_json()) == json.loads(wanted.to_json())
    for name in ("d.csv", "d.csv.gz"):
        table = pd.read_csv(decisions(tmp_path, workspace, "shop", name), keep_default_na=False)
        assert list(table.columns) == list(wanted.columns)
        assert [json.loads(cell) for cell in table["top_probabilities"]] == [
            list(p) for p in wanted["top_probabilities"]
        ]
        assert table["node"].tolist() == wanted["node"].fillna("").tolist()
    assert (tmp_path / "d.rejects.parquet").is_file()


def test_another_ending_is_refused_before_any_work(tmp_path, workspace, capsys):
    write_files(tmp_path / "shop", {"1.jpg": photo(1)})
    command = [
        "categorize",
        str(tmp_path / "shop"),
        "--workspace",
        str(workspace),
        "--output",
        str(tmp_path / "d.xlsx"),
    ]
    assert run(*command) == 1
    assert ".parquet, .csv, .csv.gz" in error_line(capsys)


# ---- a copied workspace


def test_a_release_that_a_copy_made_a_directory_of_is_known(tmp_path, workspace, capsys):
    copied = shutil.copytree(workspace, tmp_path / "copied")  # links become what they point to
    assert (copied / "releases" / "current").is_dir() and not (copied / "releases" / "current").is_symlink()
    write_files(tmp_path / "shop", {"1.jpg": photo(1)})
    assert len(decisions(tmp_path, copied, "shop")) == 1
    from models.decisions.releases import in_service, put_into_service

    put_into_service(copied / "releases", "first")
    assert (copied / "releases" / "current").is_symlink() and in_service(copied / "releases") == "first"


def test_a_copied_release_that_is_none_beside_it_is_refused_before_any_work(
    tmp_path, workspace, ingest, capsys
):
    copied = tmp_path / "copied"
    shutil.copytree(workspace, copied)
    shutil.rmtree(copied / "releases" / "first")
    photos(tmp_path)
    write_manifest(tmp_path / "shop.csv", rows())
    assert run("ingest", str(tmp_path / "shop.csv"), "--workspace", str(copied)) == 1
    assert "a directory, but not a copy of a release beside it; expected a link" in error_line(capsys)
    assert not list(copied.glob("runs/*/records*"))


def test_a_hostile_gif_is_a_counted_reject(tmp_path, ingest):
    from test_hostile_images import gif_of_one_dot

    files = {f"{'AB'[n % 2]}/{n}.jpg": photo(n) for n in range(44)}
    records = ingest(write_files(tmp_path / "shop", files | {"A/bomb.gif": gif_of_one_dot(65_535, 65_535)}))
    assert records.reasons == {"too_large": 1}


def test_pictures_that_few_programs_write_are_read_and_all_are_srgb(tmp_path, ingest):
    picture = Image.new("RGB", (64, 48), (230, 60, 40))
    odd = {
        "p3.jpg": encoded(picture, "JPEG", icc_profile=p3()),
        "big.tif": encoded(picture, "TIFF", big_tiff=True),
        "runs.bmp": bmp(EIGHT, 8),
        "no end.jpg": photo(99)[:-2],
        "cut.jpg": photo(98)[:-60],
    }
    files = {f"{'AB'[n % 2]}/{n}.jpg": photo(n) for n in range(44)}
    records = ingest(
        write_files(tmp_path / "shop", files | {f"A/{name}": data for name, data in odd.items()})
    )
    assert records.rejects[["product_id", "reason"]].to_numpy().tolist() == [["A/cut.jpg", "truncated"]]
    jpegs = {
        product.decode(): jpeg
        for batch in dataset(sorted(records.path.glob("*.tfrecord")), batch=8)
        for product, jpeg in zip(batch["product_id"].numpy(), batch["image"].numpy(), strict=True)
    }
    colour = np.asarray(Image.open(io.BytesIO(jpegs["A/p3.jpg"])), float).mean(axis=(0, 1))
    assert (
        np.abs(colour - (251, 31, 15)).max() < 4
    )  # as a PNG with that profile; 230, 60, 40 are its own numbers
