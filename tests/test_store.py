"""The store gives back what was put in, and has only what is whole."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ShelfmarkError
from features.storage.store import Digests, Locations, Store, StoredRows, joined
from features.views import FLIP, WHOLE, View, combined

WIDTH = 6


def digests(*names: str) -> np.ndarray:
    """(n, 32) uint8."""
    data = b"".join(hashlib.sha256(name.encode()).digest() for name in names)
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


def find(store: Store, *names: str) -> Locations:
    return store.find(Digests(digests(*names)))


def rows_at(store: Store, locations: Locations) -> StoredRows:
    return store.rows(locations.names, locations.shard, locations.row)


def rows_of(names: str | list[str]) -> np.ndarray:
    """One drawn bottleneck for each name, always the same."""
    drawn = [np.random.default_rng(list(name.encode())).normal(size=WIDTH) for name in names]
    return np.array(drawn, np.float16).reshape(-1, WIDTH)


def filled(path: Path, *shards: str) -> Store:
    """A store with a shard for each text, with an image for each of its letters."""
    store = Store(path)
    for names in shards:
        store.append(digests(*names), rows_of(names), engine="tensorflow float32")
    return store


def test_what_was_appended_is_found_and_read_in_any_order(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc", "de")
    for expected in ("abcde", "edcba", "cadcc", "e", ""):
        locations = find(store, *expected)
        read = rows_at(store, locations)
        assert len(read) == len(expected)
        if expected:
            np.testing.assert_array_equal(read[slice(None)], rows_of(expected))


def test_another_job_finds_it_too(tmp_path: Path) -> None:
    filled(tmp_path, "abc")
    locations = find(Store(tmp_path), "b")
    np.testing.assert_array_equal(rows_at(Store(tmp_path), locations)[np.array([0])], rows_of("b"))


def test_image_that_the_store_lacks_has_row_minus_one(tmp_path: Path) -> None:
    locations = find(filled(tmp_path, "abc"), "x", "c", "y")
    assert locations.row.tolist() == [-1, 2, -1]
    assert locations.shard.tolist() == [-1, 0, -1]
    assert locations.row.dtype == np.int32


def test_empty_store_lacks_everything(tmp_path: Path) -> None:
    store = Store(tmp_path / "not" / "there")
    assert store.shards() == []
    assert find(store, "a", "b").row.tolist() == [-1, -1]
    assert find(store).row.tolist() == []
    assert len(rows_at(store, find(store)).load()) == 0


def test_image_in_two_shards_is_found_once(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc", "cd")
    locations = find(store, "c", "c")
    assert len(locations.row) == 2
    assert (locations.shard[0], locations.row[0]) == (locations.shard[1], locations.row[1])
    np.testing.assert_array_equal(rows_at(store, locations)[slice(None)], rows_of("cc"))


def test_same_images_give_the_same_shard_again(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc", "abc")
    assert len(store.shards()) == 1
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".npy", ".parquet"]
    assert filled(tmp_path / "elsewhere", "abc").shards() == store.shards()
    assert filled(tmp_path / "other order", "acb").shards() != store.shards()


def test_shard_of_a_killed_job_is_not_there(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc", "de")
    (shard,) = set(store.shards()) - set(filled(tmp_path / "one", "abc").shards())
    (tmp_path / f"{shard}.parquet").unlink()  # what is written last
    (tmp_path / f"{shard}.4711.tmp").write_bytes(b"torn")
    assert shard not in store.shards()
    assert find(store, "d", "a").row.tolist() == [-1, 0]
    assert find(filled(tmp_path, "de"), "d").row.tolist() == [0]


def test_files_are_plain_npy_and_parquet(tmp_path: Path) -> None:
    (shard,) = filled(tmp_path, "abc").shards()
    array = np.load(tmp_path / f"{shard}.npy")
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array, rows_of("abc"))
    table = pq.read_table(tmp_path / f"{shard}.parquet")
    expected = [hashlib.sha256(name.encode()).digest() for name in "abc"]
    assert table.column("image_digest").to_pylist() == expected
    assert table.schema.metadata[b"engine"] == b"tensorflow float32"


def test_shard_that_has_gone_says_to_extract_again(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc")
    locations = find(store, "a")
    (tmp_path / f"{store.shards()[0]}.npy").unlink()
    with pytest.raises(ShelfmarkError, match=r"\.npy: cannot be read .* run extract again"):
        rows_at(store, locations)


@pytest.mark.parametrize("kept", [0, 60, 140])
def test_torn_shard_says_to_extract_again(tmp_path: Path, kept: int) -> None:
    store = filled(tmp_path, "abc")
    file = tmp_path / f"{store.shards()[0]}.npy"
    file.write_bytes(file.read_bytes()[:kept])
    locations = find(store, "a")
    with pytest.raises(ShelfmarkError, match="run extract again"):
        rows_at(store, locations)


def test_place_of_an_image_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc")
    locations = find(store, "x")
    with pytest.raises(ShelfmarkError, match="run extract again"):
        rows_at(store, locations)


def test_float32_and_wrong_counts_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=r"float16, found .* float32"):
        store.append(digests("a"), rows_of("a").astype(np.float32), engine="")
    with pytest.raises(ValueError, match=r"expected \(2, d\) float16, found \(1, 6\)"):
        store.append(digests("a", "b"), rows_of("a"), engine="")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_taken_by_numbers_slices_and_choices(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc", "de")
    locations = find(store, *"abcde")
    rows = rows_at(store, locations)
    np.testing.assert_array_equal(rows[np.array([4, 0, 0])], rows_of("eaa"))
    np.testing.assert_array_equal(rows[slice(1, 5, 2)], rows_of("bd"))
    chosen = rows.only(np.array([True, False, False, True, True]))
    assert len(chosen) == 3
    np.testing.assert_array_equal(chosen[slice(None)], rows_of("ade"))
    np.testing.assert_array_equal(chosen.only(np.array([2]))[slice(None)], rows_of("e"))


def test_rows_are_loaded_where_they_fit_and_stay_on_disk_where_not(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc", "de")
    locations = find(store, *"abcde")
    rows = rows_at(store, locations)
    size = 5 * WIDTH * 2  # bytes
    loaded = rows.load(size)
    assert isinstance(loaded, np.ndarray)
    np.testing.assert_array_equal(loaded, rows_of("abcde"))
    assert rows.load(size - 1) is rows


# Digests


def test_digests_are_found_whatever_the_order_the_doubles_and_the_strangers() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (500, 32), np.uint8)
    digests = np.concatenate([known[rng.integers(0, 500, 700)], rng.integers(0, 256, (300, 32), np.uint8)])
    digests = digests[rng.permutation(1000)]
    row_of = {digest.tobytes(): row for row, digest in enumerate(known)}
    number, row = Digests(digests).matches(known)
    found = dict(zip(number.tolist(), row.tolist(), strict=True))
    expected = {n: row_of[digest.tobytes()] for n, digest in enumerate(digests) if digest.tobytes() in row_of}
    assert found == expected and len(number) == len(expected)
    seen: set[bytes] = set()
    first = [not (digest.tobytes() in seen or seen.add(digest.tobytes())) for digest in digests]
    assert Digests(digests).first.tolist() == first


def test_digests_that_share_their_first_64_bits_are_distinguished() -> None:
    one, two, three = np.zeros((3, 32), np.uint8)
    two[8], three[31] = 1, 1
    digests = Digests(np.array([two, one, two, three, one, two]))
    assert digests.first.tolist() == [True, True, False, True, False, False]
    number, row = digests.matches(np.array([three, one]))
    assert sorted(zip(number.tolist(), row.tolist(), strict=True)) == [(1, 1), (3, 0), (4, 1)]


# Views


def test_each_view_has_a_store_of_its_own_below_that_of_the_whole_photos(tmp_path: Path) -> None:
    main = Store(tmp_path / "colours-8")
    crop = main.view(View(256, "center"))
    assert (main.of, crop.of, Store(crop.path).of) == (WHOLE, View(256, "center"), View(256, "center"))
    assert crop.path == tmp_path / "colours-8" / "256-center" and crop.owner == "colours-8/256-center"
    assert (crop.view(WHOLE).path, crop.view(FLIP).path) == (main.path, main.path / "flip")
    crop.append(digests("a"), rows_of("b"), engine="")
    assert find(crop, "a").row.tolist() == [0] and find(main, "a").row.tolist() == [-1]


@pytest.mark.parametrize("views", [1, 2, 3])
def test_views_are_joined_row_beside_row_or_averaged(tmp_path: Path, views: int) -> None:
    stores = [filled(tmp_path / name, *shards) for name, shards in zip("xyz", VIEW_SHARDS, strict=True)]
    texts = ("abcda", "ebcdb", "aecda")[:views]  # of five images, found in each view
    rows = [rows_at(store, find(store, *text)) for store, text in zip(stores, texts, strict=False)]
    apart, averaged = (joined(rows, one) for one in (False, True))
    expected = np.stack([rows_of(text) for text in texts], axis=1)
    np.testing.assert_array_equal(apart[:], expected.reshape(-1, WIDTH))
    np.testing.assert_array_equal(averaged[:], combined([rows_of(text) for text in texts], averaged=True))
    np.testing.assert_allclose(averaged[:], expected.astype(np.float64).mean(axis=1), atol=2e-3)
    assert (len(apart), len(averaged)) == (5 * views, 5)
    some = np.array([True, False, True, True, False])
    np.testing.assert_array_equal(averaged.only(some)[:], averaged[:][some])
    np.testing.assert_array_equal(apart[np.array([4, 1, 0])], apart[:][[4, 1, 0]])


VIEW_SHARDS = (("abc", "de"), ("abcde",), ("a", "bcd", "e"))


# What never mixes, and what may


def test_a_shard_of_another_store_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "colours-8", "abc")
    for other in (tmp_path / "colours-9", tmp_path / "colours-8" / "flip"):
        other.mkdir()
        for file in (tmp_path / "colours-8").glob("*.*"):
            shutil.copy(file, other)
        expected = f"bottlenecks of colours-8; expected those of {other.relative_to(tmp_path)}; move"
        with pytest.raises(ShelfmarkError, match=expected):
            find(Store(other), "a")


def test_a_parquet_file_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc")
    (file,) = tmp_path.glob("*.parquet")
    for write in (
        lambda: pq.write_table(pa.table({"image_digest": ["ab"]}), file),
        lambda: file.write_bytes(b"torn"),
    ):
        write()
        with pytest.raises(ShelfmarkError, match=r"not a shard of bottlenecks .* run extract again"):
            find(store, "a")


def test_engines_may_mix_and_are_counted(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc")
    store.append(digests(*"de"), rows_of("de"), engine="openvino bfloat16")
    assert find(store, *"abcdd").by_engine() == {"openvino bfloat16": 2, "tensorflow float32": 3}
    assert find(store, "e", "x").by_engine() == {"openvino bfloat16": 1}


@pytest.mark.parametrize("width", [WIDTH, 8])  # 8: checksums of whole 64 bits
def test_a_flipped_byte_is_noticed_wherever_it_is_and_the_other_rows_are_read(
    tmp_path: Path, width: int
) -> None:
    store = Store(tmp_path / str(width))
    rows = np.random.default_rng(3).normal(size=(3, width)).astype(np.float16)
    file = store.path / f"{store.append(digests(*'abc'), rows, engine='e')}.npy"
    whole = file.read_bytes()
    data = len(whole) - rows.nbytes
    for place in range(data + 2 * width, data + 4 * width):  # of row b
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        damaged = Store(store.path)
        np.testing.assert_array_equal(rows_at(damaged, find(damaged, "a", "c"))[slice(None)], rows[[0, 2]])
        with pytest.raises(
            ShelfmarkError, match=r"\.npy: 1 of 3 bottlenecks are not what was .* remove the file"
        ):
            rows_at(damaged, find(damaged, *"abc"))[slice(None)]


def test_shards_of_earlier_versions_have_no_checksums_and_are_read_all_the_same(tmp_path: Path) -> None:
    store = filled(tmp_path, "abc")
    file = tmp_path / f"{store.shards()[0]}.parquet"
    pq.write_table(pq.read_table(file).select(["image_digest"]), file)
    np.testing.assert_array_equal(rows_at(store, find(store, "cb"[0], "b"))[slice(None)], rows_of("cb"))
