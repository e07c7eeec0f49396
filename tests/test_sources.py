"""Sources: every product comes out once, its bytes are where it says; bad input is an error or counted."""

import errno
import os
import struct
from pathlib import Path

import bson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bson.binary import Binary
from catalogues import HTML, photo, write_bson, write_files, write_manifest

from features.errors import ShelfmarkError
from features.storage.paths import any_path, read_range
from pipeline.sources import folder, listing
from pipeline.sources.source import open_source, read_segment

RED, GREEN, BLUE = photo(1), photo(2), photo(3)


@pytest.fixture
def read(tmp_path):
    """Reads a source whole, unit by unit."""

    def images(path, unit_bytes=10**6, unit_images=10**6):
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        units = open_source(str(path)).segments(work, unit_bytes, unit_images)
        return [image for unit in units for image in read_segment(unit)]

    return images


def refusal(path, *, when_read=None):
    with pytest.raises(ShelfmarkError) as caught:
        when_read(path) if when_read else open_source(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_source_that_is_not_there_or_of_no_known_kind_is_refused(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nothing.csv")
    (tmp_path / "table.xlsx").write_bytes(b"x")
    assert "not a source; expected a .bson, a folder of photos" in refusal(tmp_path / "table.xlsx")


# BSON


def test_bson_is_read_with_its_categories_and_without(tmp_path, read):
    file = write_bson(
        tmp_path / "a.bson",
        [
            {"_id": 7, "category_id": 1000010653, "imgs": [{"picture": RED}, {"picture": GREEN}]},
            {"_id": "a-8", "category_id": "Mugs", "seller": "Smith", "imgs": [{"picture": BLUE}]},
            {"_id": 9, "imgs": [{"picture": RED}]},
            {"_id": 10, "category_id": None, "split": "val", "imgs": [{"picture": Binary(GREEN, 128)}]},
        ],
    )
    found = [(i.product_id, i.category, i.seller, i.split, bytes(i.data), i.reason) for i in read(file)]
    assert found == [
        ("7", "1000010653", "", "", RED, ""),
        ("7", "1000010653", "", "", GREEN, ""),
        ("a-8", "Mugs", "Smith", "", BLUE, ""),
        ("9", "", "", "", RED, ""),
        ("10", "", "", "val", GREEN, ""),
    ]


@pytest.mark.parametrize("images", [{}, {"imgs": []}, {"imgs": None}])
def test_bson_product_without_images_comes_once(tmp_path, read, images):
    (image,) = read(write_bson(tmp_path / "a.bson", [{"_id": 7, "category_id": 5, **images}]))
    assert (image.product_id, image.category, image.reason, image.data) == ("7", "5", "no_image", b"")


def test_bson_images_without_picture_are_missing_and_the_others_are_read(tmp_path, read):
    entries = [{"picture": RED}, {}, {"picture": None}, {"picture": "text"}, 5, {"picture": GREEN}]
    images = read(write_bson(tmp_path / "a.bson", [{"_id": 7, "imgs": entries}]))
    assert [image.reason for image in images] == ["", "missing", "missing", "missing", "missing", ""]
    assert (images[0].data, images[5].data) == (RED, GREEN)


def test_bson_offsets_point_at_the_pictures_bytes(tmp_path, read):
    pictures = [RED, GREEN, RED, b"", RED, b"imgs", GREEN[:50], GREEN, HTML]
    documents = [{"_id": n, "imgs": [{"picture": picture} for picture in pictures]} for n in range(3)]
    file = write_bson(tmp_path / "a.bson", documents)
    images = read(file)
    assert [image.data for image in images] == pictures * 3
    assert [read_range(any_path(i.file), i.offset, len(i.data)) for i in images] == pictures * 3
    jpegs = [image.offset for image in images if image.data in (RED, GREEN)]
    assert len(set(jpegs)) == len(jpegs), "equal pictures of a document are not mixed up"


def test_bson_pictures_that_begin_alike_or_are_a_byte_long_are_found(tmp_path, read):
    pictures = [RED, RED[:64], RED[:80] + b"other", b"\0", b"\x02", RED[:64] + b"x", RED]
    file = write_bson(tmp_path / "a.bson", [{"_id": 1, "imgs": [{"picture": p} for p in pictures]}])
    images = read(file)
    assert [read_range(any_path(i.file), i.offset, len(i.data)) for i in images] == pictures


@pytest.mark.parametrize("unit_bytes", [1, 1000, 3000, 10**6])
def test_bson_units_end_with_documents_and_cover_all_of_them_once(tmp_path, unit_bytes):
    documents = [{"_id": n, "imgs": [{"picture": photo(n % 7)}] * (n % 4)} for n in range(40)]
    file = write_bson(tmp_path / "a.bson", documents)
    units = open_source(str(file)).segments(tmp_path, unit_bytes, 1)
    assert [unit.start for unit in units] == [0, *(unit.stop for unit in units[:-1])]
    assert units[-1].stop == file.stat().st_size
    assert all(unit.stop - unit.start >= unit_bytes for unit in units[:-1])
    ids = [int(image.product_id) for unit in units for image in read_segment(unit)]
    assert ids == [n for n in range(40) for _ in range(max(1, n % 4))]
    if unit_bytes == 1:
        assert len(units) == 40


BAD_DOCUMENTS = {
    "damaged inside": b"\x14\0\0\0\x77garbage garbage" + b"\0",
    "without _id": bson.encode({"imgs": [{"picture": RED}]}),
    "_id empty": bson.encode({"_id": "", "imgs": [{"picture": RED}]}),
    "_id null": bson.encode({"_id": None, "imgs": [{"picture": RED}]}),
    "imgs no list": bson.encode({"_id": 5, "imgs": 3}),
    "unknown split": bson.encode({"_id": 5, "split": "holdout", "imgs": [{"picture": RED}]}),
    "not UTF-8": bson.encode({"_id": 5, "seller": "abc"}).replace(b"abc", b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("bad", BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
def test_a_bad_document_in_the_middle_is_one_reject_and_the_others_are_read(tmp_path, read, bad):
    before, after = (bson.encode({"_id": n, "imgs": [{"picture": RED}]}) for n in (1, 2))
    bad = struct.pack("<i", len(bad)) + bad[4:]
    (tmp_path / "a.bson").write_bytes(before + bad + after)
    one, reject, two = read(tmp_path / "a.bson")
    assert (one.product_id, one.data, two.product_id, two.data) == ("1", RED, "2", RED)
    assert (reject.product_id, reject.reason, reject.data) == ("", "bad_document", b"")
    assert reject.detail.startswith(f"document at byte {len(before)}: ")


def test_a_bson_file_that_is_cut_off_is_reported_with_the_byte(tmp_path, read):
    whole = write_bson(tmp_path / "a.bson", [{"_id": n, "imgs": [{"picture": RED}]} for n in range(3)])
    data = whole.read_bytes()
    third = 2 * (len(data) // 3)
    whole.write_bytes(data[:-1])
    message = refusal(whole, when_read=read)
    length = len(data) - third
    assert (
        f"truncated: the document at byte {third} needs {length} bytes, but {length - 1} are left" in message
    )
    whole.write_bytes(data[: third + 2])
    assert f"truncated: the document at byte {third}" in refusal(whole, when_read=read)


@pytest.mark.parametrize("data", [HTML, b"\0" * 100, struct.pack("<i", -5) * 9])
def test_a_file_that_is_no_bson_is_reported(tmp_path, read, data):
    (tmp_path / "a.bson").write_bytes(data)
    assert "no BSON document at byte 0" in refusal(tmp_path / "a.bson", when_read=read)


def test_an_empty_bson_file_is_reported(tmp_path, read):
    (tmp_path / "a.bson").write_bytes(b"")
    assert "empty; expected BSON documents" in refusal(tmp_path / "a.bson", when_read=read)


# Folders


def test_a_folder_names_categories_by_path_at_any_depth(tmp_path, read):
    files = {
        "loose.jpg": RED,
        "Milk/1.jpg": GREEN,
        "Fruit/Apple/2.jpg": BLUE,
        "Fruit/Apple/Granny Smith/3.jpg": RED,
        "a/b/c/d/4.jpg": GREEN,
    }
    images = read(write_files(tmp_path / "shop", files))
    assert {i.product_id: (i.category, i.data) for i in images} == {
        "loose.jpg": ("", RED),
        "Milk/1.jpg": ("Milk", GREEN),
        "Fruit/Apple/2.jpg": ("Fruit/Apple", BLUE),
        "Fruit/Apple/Granny Smith/3.jpg": ("Fruit/Apple/Granny Smith", RED),
        "a/b/c/d/4.jpg": ("a/b/c/d", GREEN),
    }
    assert open_source(str(tmp_path / "shop")).paths() == {
        ("Milk", ("Milk",)): 1,
        ("Fruit/Apple", ("Fruit", "Apple")): 1,
        ("Fruit/Apple/Granny Smith", ("Fruit", "Apple", "Granny Smith")): 1,
        ("a/b/c/d", ("a", "b", "c", "d")): 1,
    }


def test_a_folder_leaves_hidden_files_and_folders_out(tmp_path, read):
    files = {"A/1.jpg": RED, "A/.DS_Store": HTML, ".git/A/2.jpg": RED, "A/.thumbs/3.jpg": RED, ".4.jpg": RED}
    assert [image.product_id for image in read(write_files(tmp_path / "shop", files))] == ["A/1.jpg"]


ODD_NAMES = [
    "a b.jpg",
    "#1.jpg",
    "50%2C5.jpg",
    "Äpfel – äöü.jpg",
    "日本.jpg",
    "a:b?c=d&e.jpg",
    "'\"\\.jpg",
    " .jpg",
]


def test_a_folder_takes_odd_names(tmp_path, read):
    files = {f"Café #1, 50%/{name}": photo(n) for n, name in enumerate(ODD_NAMES)}
    images = read(write_files(tmp_path / "my shop #2", files))
    assert {image.product_id: image.data for image in images} == files
    assert {image.category for image in images} == {"Café #1, 50%"}


def test_a_name_that_is_not_utf8_is_read_and_shown_as_windows_writes_it(tmp_path, read):
    folder = write_files(tmp_path / "shop", {"A/1.jpg": RED})
    os.makedirs(os.fsencode(folder) + b"/caf\xe9")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9/2.jpg")).write_bytes(GREEN)
    first, second = read(folder)
    assert (first.product_id, first.data) == ("A/1.jpg", RED)
    assert (second.product_id, second.category, second.data) == ("café/2.jpg", "café", GREEN)


def test_links_in_a_folder_are_followed_but_not_in_a_circle(tmp_path, read):
    write_files(tmp_path, {"apples/1.jpg": RED, "shop/Pear/2.jpg": GREEN})
    (tmp_path / "shop" / "Apple").symlink_to(tmp_path / "apples")
    (tmp_path / "shop" / "3.jpg").symlink_to(tmp_path / "apples" / "1.jpg")
    (tmp_path / "shop" / "gone.jpg").symlink_to(tmp_path / "nothing")
    values = {image.product_id: image.data or image.reason for image in read(tmp_path / "shop")}
    assert values == {"3.jpg": RED, "Apple/1.jpg": RED, "Pear/2.jpg": GREEN, "gone.jpg": "missing"}
    (tmp_path / "shop" / "Pear" / "up").symlink_to(tmp_path / "shop")
    assert "a link to a folder above it" in refusal(tmp_path / "shop", when_read=read)


def test_a_pipe_in_a_folder_is_missing_and_not_waited_for(tmp_path, read):
    write_files(tmp_path / "shop", {"A/1.jpg": RED})
    os.mkfifo(tmp_path / "shop" / "A" / "2.jpg")
    assert [(image.reason, image.detail) for image in read(tmp_path / "shop")] == [
        ("", ""),
        ("missing", "not a file"),
    ]


def test_what_may_not_be_read_or_does_not_answer_is_an_error_and_no_reject(manifest, read, monkeypatch):
    def refuse(file, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(listing, "read_range", refuse)
    with pytest.raises(PermissionError):
        read(manifest([{"product_id": "1", "image": "r.jpg"}]))
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ShelfmarkError, match="no answer"):
        read(manifest([{"product_id": "1", "image": "s3://shop/r.jpg"}]))


def test_an_empty_folder_is_reported(tmp_path):
    write_files(tmp_path / "shop", {"A/.hidden": b"x"})
    assert "an empty folder" in refusal(tmp_path / "shop")


@pytest.mark.parametrize("unit_images", [1, 3, 7, 100])
def test_units_of_a_listing_cover_all_files_once(tmp_path, unit_images, monkeypatch):
    write_files(tmp_path / "shop", {f"A/{n}.jpg": photo(n) for n in range(10)})
    monkeypatch.setattr(folder, "LISTED", unit_images * 2)  # what is in memory at a time
    units = open_source(str(tmp_path / "shop")).segments(tmp_path, 1, unit_images)
    images = [[image.product_id for image in read_segment(unit)] for unit in units]
    assert [len(ids) for ids in images] == [min(unit_images, 10 - n) for n in range(0, 10, unit_images)]
    assert sorted(id for ids in images for id in ids) == sorted(f"A/{n}.jpg" for n in range(10))


# Manifests


@pytest.fixture(params=["csv", "parquet"])
def manifest(request, tmp_path):
    """Writes a manifest of either kind, beside three photos."""
    write_files(tmp_path / "shop", {"r.jpg": RED, "g #1,é.jpg": GREEN, "sub dir/b.jpg": BLUE})

    def write(rows):
        return write_manifest(tmp_path / "shop" / f"products.{request.param}", rows)

    return write


def test_a_manifest_is_read_with_several_rows_of_a_product(manifest, read):
    rows = [
        {"product_id": "p1", "image": "r.jpg", "category": "Mugs", "seller": "Smith", "split": "test"},
        {"product_id": "p1", "image": "g #1,é.jpg", "category": "Mugs", "seller": "Smith", "split": "test"},
        {"product_id": "p2", "image": "sub dir/b.jpg", "category": "", "seller": None, "split": None},
    ]
    found = [(i.product_id, i.data, i.category, i.seller, i.split, i.reason) for i in read(manifest(rows))]
    assert found == [
        ("p1", RED, "Mugs", "Smith", "test", ""),
        ("p1", GREEN, "Mugs", "Smith", "test", ""),
        ("p2", BLUE, "", "", "", ""),
    ]


def test_a_manifest_needs_no_more_than_product_and_image(manifest, read):
    (image,) = read(manifest([{"image": "r.jpg", "product_id": "p1"}]))
    assert (image.product_id, image.category, image.split, image.seller) == ("p1", "", "", "")


def test_a_manifests_levels_go_from_coarse_to_fine_in_the_order_of_their_numbers(manifest):
    rows = [
        {"product_id": n, "image": "r.jpg", "category": c, "level10": "d", "level2": b, "level1": a}
        for n, (c, a, b) in enumerate(
            [("Mugs", "Home", "Kitchen"), ("Tea", "Food", ""), ("", "Home", "Kitchen")]
        )
    ]
    assert open_source(str(manifest(rows))).paths() == {
        ("Mugs", ("Home", "Kitchen", "d")): 1,
        ("Tea", ("Food", "d")): 1,
    }


def test_a_manifest_without_levels_or_categories_has_no_paths(manifest):
    row = {"product_id": "1", "image": "r.jpg"}
    assert open_source(str(manifest([row]))).paths() == {}
    assert open_source(str(manifest([row | {"category": "Mugs"}] * 2))).paths() == {("Mugs", ()): 2}


ODD_IDS = [
    "007",
    "1e5",
    "NA",
    "nan",
    "NULL",
    "None",
    "2024-01-31",
    "12:30:00",
    "true",
    "1.0",
    "0x1F",
    "-",
    "1,5",
    '"',
]


def test_a_manifests_texts_stay_as_they_are(manifest, read):
    rows = [{"product_id": odd, "image": "r.jpg", "category": odd} for odd in ODD_IDS]
    images = read(manifest(rows))
    assert [image.product_id for image in images] == ODD_IDS
    assert [image.category for image in images] == ODD_IDS


def test_numbers_in_a_parquet_manifest_stay_whole_where_other_cells_are_empty(tmp_path, read):
    write_files(tmp_path, {"r.jpg": RED})
    table = {
        "product_id": pa.array([2**60 + 1, 2], pa.int64()),
        "image": pa.array(["r.jpg", "r.jpg"]).dictionary_encode(),
        "category": pa.array([1000010653, None], pa.int64()),
        "seller": pa.array(["Smith", None]).dictionary_encode(),
    }
    pq.write_table(pa.table(table), tmp_path / "products.parquet")
    found = [(i.product_id, i.category, i.seller) for i in read(tmp_path / "products.parquet")]
    assert found == [(str(2**60 + 1), "1000010653", "Smith"), ("2", "", "")]


def test_whole_numbers_that_became_floats_are_whole_again(tmp_path, read):
    table = {"product_id": [1.0, 2.0], "image": ["r.jpg", "r.jpg"], "category": [1000010653.0, float("nan")]}
    write_files(tmp_path, {"r.jpg": RED})
    pq.write_table(pa.table(table), tmp_path / "products.parquet")
    assert [(i.product_id, i.category) for i in read(tmp_path / "products.parquet")] == [
        ("1", "1000010653"),
        ("2", ""),
    ]


def test_a_manifest_with_a_column_twice_is_reported(tmp_path):
    (tmp_path / "a.csv").write_text("product_id,image,category,category\n1,r.jpg,A,B\n")
    assert "two columns category; expected each once" in refusal(tmp_path / "a.csv")


def test_blanks_around_a_cell_are_left_out_and_blank_cells_are_empty(manifest, read):
    rows = [
        {"product_id": " p1 ", "image": " r.jpg", "category": "  Mugs \t"},
        {"product_id": "p2", "image": "  ", "category": "   "},
        {"product_id": "  ", "image": "r.jpg", "category": "Mugs"},
    ]
    first, no_image, no_product = read(manifest(rows))
    assert (first.product_id, first.category.strip(), first.data) == ("p1", "Mugs", RED)
    assert (no_image.product_id, no_image.category.strip(), no_image.reason) == ("p2", "", "no_image")
    assert (no_product.product_id, no_product.reason) == ("", "bad_row")
    assert no_product.detail == "no product_id, image 'r.jpg'"


def test_an_image_that_cannot_be_had_is_missing_and_the_others_are_read(manifest, read, tmp_path):
    images = [
        "gone.jpg",
        "sub dir",
        "r.jpg",
        "unknown://host/a.jpg",
        str(tmp_path / "shop" / "sub dir" / "b.jpg"),
    ]
    values = read(manifest([{"product_id": str(n), "image": image} for n, image in enumerate(images)]))
    assert [image.reason for image in values] == ["missing", "missing", "", "missing", ""]
    assert [values[2].data, values[4].data] == [RED, BLUE]
    assert [values[0].detail, values[1].detail] == ["No such file or directory", "Is a directory"]
    assert values[0].file == str(tmp_path / "shop" / "gone.jpg")


def test_a_path_that_no_file_can_have_is_missing(tmp_path, read):
    write_manifest(tmp_path / "products.parquet", [{"product_id": "1", "image": "a\0b.jpg"}])
    (image,) = read(tmp_path / "products.parquet")
    assert image.reason == "missing"
    assert len(open_source(str(tmp_path / "products.parquet")).digest()) == 64


def test_a_manifest_without_its_columns_is_reported_with_those_found(manifest):
    message = refusal(manifest([{"id": "1", "image": "r.jpg", "category": "Mugs"}]))
    assert "no column product_id; found: id, image, category; expected product_id, image and" in message
    assert "no column product_id and no column image; found: id;" in refusal(manifest([{"id": "1"}]))


def test_a_manifest_without_rows_is_reported(tmp_path):
    (tmp_path / "a.csv").write_text("product_id,image\n")
    assert "no rows" in refusal(tmp_path / "a.csv")
    nothing = pa.array([], pa.string())
    pq.write_table(pa.table({"product_id": nothing, "image": nothing}), tmp_path / "a.parquet")
    assert "no rows" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(("name", "why"), [("a.csv", "no rows"), ("a.parquet", "cannot be read")])
def test_an_empty_manifest_is_refused(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"")
    assert why in refusal(tmp_path / name)


def test_an_unknown_split_is_reported(manifest, read):
    rows = [{"product_id": "1", "image": "r.jpg", "split": "holdout"}]
    assert "split 'holdout'; expected train, val, test or nothing" in refusal(manifest(rows), when_read=read)


def test_a_csv_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(tmp_path, read):
    write_files(tmp_path, {"r.jpg": RED})
    (tmp_path / "a.csv").write_bytes("\ufeffproduct_id,image\r\np1,r.jpg\r\n".encode())
    (image,) = read(tmp_path / "a.csv")
    assert (image.product_id, image.data) == ("p1", RED)


def test_a_csv_cell_may_hold_line_breaks_wherever_a_block_of_the_file_ends(tmp_path):
    # readers go block by block; a row here is 40 bytes, so that some block ends within a cell
    rows = [f'{n:07d},r.jpg,"Mugs\nand cups, for tea"\n' for n in range(30_000)]
    (tmp_path / "a.csv").write_text("product_id,image,category\n" + "".join(rows))
    paths = open_source(str(tmp_path / "a.csv")).paths()
    assert paths == {("Mugs and cups, for tea", ()): 30_000}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("p1,r.jpg", "line 3: 2 cells; expected 3"),
        ("p1,r.jpg,Mugs,more", "line 3: 4 cells; expected 3"),
        ('p1,"r.jpg,Mugs', "line 3: a quote that opens here is not closed"),
        ('p1,r.jpg,"Slim TV', "line 3: a quote that opens here is not closed"),
    ],
)
def test_a_csv_row_that_cannot_be_used_is_one_reject_and_the_others_are_read(tmp_path, read, row, why):
    lines = ["product_id,image,category", "p0,r.jpg,Mugs", row, "", "p2,r.jpg,Mugs", " ,, "]
    write_files(tmp_path, {"r.jpg": RED, "a.csv": "\n".join(lines).encode()})
    first, bad, last = read(tmp_path / "a.csv")
    assert (first.product_id, last.product_id, last.data) == ("p0", "p2", RED)
    assert (bad.product_id, bad.reason, bad.detail) == ("", "bad_row", why)


@pytest.mark.parametrize("later", ['p2,r.jpg,"Nice"', 'p2,r.jpg,"', 'p2,"r.jpg",Mugs'])
def test_a_quote_that_another_row_seems_to_close_swallows_no_row(tmp_path, read, later):
    lines = ["product_id,image,category", 'p0,r.jpg,"Slim TV', "p1,r.jpg,Mugs", later, "p3,r.jpg,Mugs"]
    write_files(tmp_path, {"r.jpg": RED, "a.csv": "\n".join(lines).encode()})
    images = read(tmp_path / "a.csv")
    swallowed = later.endswith(',"')  # a cell over three lines, as well formed as any
    assert [image.product_id for image in images] == (["p0", "p3"] if swallowed else ["", "p1", "p2", "p3"])


def test_a_trailing_delimiter_in_the_header_does_no_harm(tmp_path, read):
    text = "product_id,image,,\np0,r.jpg,,\np1,r.jpg\np2,r.jpg,,,,\np3,r.jpg,,x\n"
    write_files(tmp_path, {"r.jpg": RED, "a.csv": text.encode()})
    assert [image.product_id for image in read(tmp_path / "a.csv")] == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "bar")]
)
def test_delimiter_and_encoding_of_a_table_are_found_out(tmp_path, read, encoding, delimiter, name, caplog):
    lines = [["product_id", "image", "category"], ["p1", "r.jpg", "Café, thé; lait | eau"]]
    text = "\r\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
    write_files(tmp_path, {"r.jpg": RED, "a.csv": text.encode(encoding)})
    with caplog.at_level("INFO", "shelfmark"):
        (image,) = read(tmp_path / "a.csv")
    assert (image.product_id, image.category, image.data) == ("p1", "Café, thé; lait | eau", RED)
    assert f"a.csv: read as {name}-separated {encoding}" in caplog.text


def test_a_wrong_guess_is_named_where_a_column_is_lacking_or_a_letter_cannot_be_read(tmp_path, read):
    (tmp_path / "a.csv").write_bytes(b"id:image\n1:r.jpg\n")
    assert "read as comma-separated utf-8 (ingest.csv_delimiter and" in refusal(tmp_path / "a.csv")
    rows = b"p1,r.jpg,Mugs\n" * 80_000  # over a megabyte
    (tmp_path / "a.csv").write_bytes(
        b"product_id,image,category\n" + rows + "p2,r.jpg,Café\n".encode("cp1252")
    )
    assert "not utf-8" in refusal(tmp_path / "a.csv", when_read=read)
    assert "give ingest.csv_encoding" in refusal(tmp_path / "a.csv", when_read=read)


def test_a_damaged_parquet_manifest_is_reported(tmp_path, read):
    file = write_manifest(
        tmp_path / "a.parquet", [{"product_id": f"p{n}", "image": "r.jpg"} for n in range(99)]
    )
    data = file.read_bytes()
    for bad in (HTML, data[:-9], data[:40] + b"\xff" * 60 + data[100:]):
        file.write_bytes(bad)
        assert "cannot be read" in refusal(file, when_read=read)


# What a source is recognized by


def _bson(folder):
    return write_bson(folder / "a.bson", [{"_id": 1, "imgs": [{"picture": RED}]}]), folder / "a.bson"


def _folder(folder):
    return write_files(folder / "shop", {"A/1.jpg": RED}), folder / "shop" / "A" / "1.jpg"


def _manifest(folder):
    write_files(folder, {"1.jpg": RED})
    return write_manifest(folder / "a.csv", [{"product_id": "1", "image": "1.jpg"}]), folder / "1.jpg"


@pytest.mark.parametrize("draw", [_bson, _folder, _manifest])
def test_a_source_has_another_digest_when_a_file_of_it_changes(tmp_path, draw):
    source, file = draw(tmp_path)
    first = open_source(str(source)).digest()
    assert open_source(str(source)).digest() == first
    time = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(time, time))
    second = open_source(str(source)).digest()
    with open(file, "ab") as out:
        out.write(b"\0")
    os.utime(file, ns=(time, time))
    third = open_source(str(source)).digest()
    assert first != second != third != first


def test_a_manifest_has_another_digest_when_a_missing_photo_of_it_appears(tmp_path):
    source, file = _manifest(tmp_path)
    file.unlink()
    without = open_source(str(source)).digest()
    write_files(tmp_path, {"1.jpg": RED})
    assert open_source(str(source)).digest() != without


def test_where_a_folder_lies_does_not_change_its_digest(tmp_path):
    here, file = _folder(tmp_path / "here")
    there, copy = _folder(tmp_path / "there")
    os.utime(copy, ns=(file.stat().st_mtime_ns,) * 2)
    assert open_source(str(here)).digest() == open_source(str(there)).digest()
