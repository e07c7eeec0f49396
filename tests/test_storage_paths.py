"""One sentence, three doors: a disk, an S3 server in its own process, a filesystem that only Beam knows."""

import errno
import io
import os
import pickle
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import client, object_store

from features.errors import ShelfmarkError, one_line
from features.storage import object_stores as objects
from features.storage import paths as files
from features.storage.paths import (
    AnyPath,
    Remote,
    any_path,
    copy_tree,
    local,
    read_range,
    remove,
    sizes,
    use_beam_options,
    write_whole,
    writing,
)

ODD_NAMES = [
    "two words",
    "half#whole",
    "a%2Cb",
    "a*b",
    "a?b",
    "a[xy]b",
    "a+b&c=d;e@f",
    '"quoted" <it\'s>',
    "Äpfel – 苹果",
    "trailing.",
    "back\\slash",
    "~{a,b}$(c)|!^`",
]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with object_store() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def memory() -> Iterator[dict[str, tuple[bytes, float]]]:
    """Lets Beam know a store in memory, mem://, that takes names for patterns where Google's does."""
    from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

    objects: dict[str, tuple[bytes, float]] = {}

    class NotFound(Exception):
        code = 404

    class Written(io.BytesIO):
        def __init__(self, path: str):
            super().__init__()
            self.path = path

        def close(self) -> None:
            if not self.closed:
                objects[self.path] = (self.getvalue(), time.time())
            super().close()

    class MemorySystem(FileSystem):
        @classmethod
        def scheme(cls) -> str:
            return "mem"

        def has_dirs(self) -> bool:
            return False

        def _list(self, dir_or_prefix: str) -> Iterator[Any]:
            if dir_or_prefix.startswith("mem://nowhere"):
                raise BeamIOError("List operation failed", {dir_or_prefix: NotFound(dir_or_prefix)})
            for path in sorted(objects):
                if path.startswith(dir_or_prefix):
                    yield self.metadata(path)

        def metadata(self, path: str) -> Any:
            if path not in objects:
                raise BeamIOError("Metadata operation failed", {path: NotFound(path)})
            data, when = objects[path]
            return FileMetadata(path, len(data), when)

        def exists(self, path: str) -> bool:
            return path in objects

        def open(self, path: str, mime_type: str = "", compression_type: str = "auto") -> io.BytesIO:
            assert compression_type == "uncompressed"
            self.metadata(path)
            return io.BytesIO(objects[path][0])

        def create(self, path: str, mime_type: str = "", compression_type: str = "auto") -> io.BytesIO:
            assert compression_type == "uncompressed"
            return Written(path)

        def delete(self, paths: list[str]) -> None:
            for path in paths:
                for found in self.match([path])[0].metadata_list:
                    del objects[found.path]

        copy = rename = mkdirs = join = split = size = last_updated = None  # not needed

    yield objects  # not returned: Beam finds only the classes that somebody holds


DOORS = ["local", "s3", "mem"]


@pytest.fixture
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], AnyPath]:
    """Makes an empty place behind one of the doors."""

    def make(name: str) -> AnyPath:
        if name == "s3":
            return any_path(request.getfixturevalue("s3")) / uuid4().hex
        if name == "mem":
            request.getfixturevalue("memory")
            return any_path("mem://bucket") / uuid4().hex
        return tmp_path / uuid4().hex

    return make


@pytest.fixture(params=DOORS)
def folder(request: pytest.FixtureRequest, door: Callable[[str], AnyPath]) -> AnyPath:
    return door(request.param)


def fill(folder: AnyPath, *names: str) -> None:
    """Files whose bytes are their names."""
    for name in names:
        write_whole(folder / name, name.encode())


# what is there


def test_what_is_written_is_read_back(folder: AnyPath) -> None:
    file = folder / "run/head.json"
    before = time.time()
    write_whole(file, "one – two".encode())
    write_whole(file, "drei – vier".encode())
    assert file.read_bytes() == read_range(file) == "drei – vier".encode()
    assert file.read_text() == "drei – vier"
    assert (file.stat().st_size, file.exists(), file.is_file(), file.is_dir()) == (13, True, True, False)
    assert abs(file.stat().st_mtime_ns / 1e9 - before) < 60
    assert ((folder / "run").exists(), (folder / "run").is_file(), (folder / "run").is_dir()) == (
        True,
        False,
        True,
    )
    assert sizes(folder) == {"run/head.json": 13}
    assert sizes(file) == {}


def test_ranges_are_bytes_of_the_file(folder: AnyPath) -> None:
    write_whole(folder / "digits", b"0123456789")
    write_whole(folder / "empty", b"")
    ranges = [(0, -1), (0, 3), (4, 3), (8, 9), (10, 1), (99, -1), (7, -1), (3, 0)]
    assert [read_range(folder / "digits", *wanted) for wanted in ranges] == [
        *(b"0123456789", b"012", b"456", b"89", b"", b"", b"789", b""),
    ]
    assert [read_range(folder / "empty", *wanted) for wanted in [(0, -1), (0, 5), (5, 1)]] == [b""] * 3
    with (folder / "empty").open("rb") as opened:
        assert opened.read() == opened.read(5) == b""


def test_an_open_file_is_read_as_one_in_memory_is(folder: AnyPath) -> None:
    draw = random.Random(1)
    data = draw.randbytes(700_000)
    write_whole(folder / "shard", data)
    with (folder / "shard").open("rb") as opened, io.BytesIO(data) as expected:
        for _ in range(200):
            jump = draw.choice([None, (draw.randrange(800_000), 0), (-draw.randrange(700_000), 2), (100, 1)])
            if jump:
                assert opened.seek(*jump) == expected.seek(*jump)
            length = draw.choice([1, 100, 8192, 70_000, 300_000])
            assert opened.read(length) == expected.read(length)
            assert opened.tell() == expected.tell()
        opened.seek(0)
        assert opened.read() == data


def test_a_table_is_read_from_an_open_file(folder: AnyPath) -> None:
    table = pa.table({"product_id": [f"p{n}" for n in range(1000)], "images": range(1000)})
    with writing(folder / "products.parquet") as working:
        pq.write_table(table, working, row_group_size=100)
    with (folder / "products.parquet").open("rb") as opened:
        assert pq.read_table(opened, columns=["images"]).equals(table.select(["images"]))


def test_a_name_that_begins_alike_is_another_place(folder: AnyPath) -> None:
    fill(folder, "run/a", "run2/a", "run.partial/a", "ru")
    assert sizes(folder / "run") == {"a": 5}
    assert not (folder / "r").exists() and not (folder / "run/").is_file()
    remove(folder / "run")
    assert list(sizes(folder)) == ["ru", "run.partial/a", "run2/a"]


def test_odd_names_are_names(folder: AnyPath) -> None:
    # each of the others fits one of the names, were it a pattern
    others = ["aXb", "axb", "a,b", "half", "a/b", "aXXb"]
    expected = [*others, *(f"{name}/{below}" for name in ODD_NAMES for below in (name, "aXb", "axb"))]
    fill(folder, *expected)
    assert sizes(folder) == {name: len(name.encode()) for name in sorted(expected)}
    for name in ODD_NAMES:
        file = folder / name / name
        assert (file.name, file.parent, str(file.relative_to(folder))) == (
            name,
            folder / name,
            f"{name}/{name}",
        )
        assert file.read_text() == local(file).read_text() == f"{name}/{name}"
        assert file in list((folder / name).glob("*"))
        file.unlink()
        assert not file.exists()
        assert list(sizes(folder / name)) == ["aXb", "axb"]
        remove(folder / name)
        assert not (folder / name).is_dir()
    assert list(sizes(folder)) == sorted(others)


def test_globs_find_files_by_the_last_part_of_their_names(folder: AnyPath) -> None:
    fill(folder, "b.npy", "a.npy", "a.parquet", ".hidden.npy", "deep/c.npy", "deep/er/a.npy", "A.NPY")
    found = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*.npy"))
    assert found == [".hidden.npy", "a.npy", "b.npy"]
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("[ac].npy"))
    assert found == ["a.npy", "deep/c.npy", "deep/er/a.npy"]
    assert list((folder / "nowhere").glob("*")) == list((folder / "nowhere").rglob("*")) == []


def test_where_nothing_is_nothing_is_found_and_nothing_happens(folder: AnyPath) -> None:
    nothing = folder / "nothing"
    assert (nothing.exists(), nothing.is_file(), nothing.is_dir(), sizes(nothing)) == (
        False,
        False,
        False,
        {},
    )
    remove(nothing)
    nothing.unlink(missing_ok=True)
    copy_tree(nothing, folder / "copy")
    assert sizes(folder) == {}


@pytest.mark.parametrize(
    "ask",
    [
        lambda file: file.stat(),
        lambda file: file.read_bytes(),
        lambda file: file.unlink(),
        lambda file: file.open("rb"),
        lambda file: read_range(file, 3, 2),
    ],
    ids=["stat", "read_bytes", "unlink", "open", "read_range"],
)
def test_the_error_of_a_missing_file_names_it(folder: AnyPath, ask: Callable[[AnyPath], Any]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ask(folder / "none.bin")
    assert one_line(caught.value).startswith(f"{folder}/none.bin: No such file or directory; ")


def test_a_listing_of_25_files_in_pages_of_ten_is_whole(
    folder: AnyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAGE", 10)
    names = [f"shard-{number:05d}" for number in range(25)]
    fill(folder, *names)
    assert list(sizes(folder)) == names
    remove(folder)
    assert sizes(folder) == {}


@pytest.mark.slow
def test_a_listing_of_2500_objects_is_whole(s3: str) -> None:
    names = [f"shard-{number:05d}" for number in range(2500)]
    put = client().put_object
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: put(Bucket="shelf", Key=f"many/{name}", Body=b"x"), names))
    assert sizes(any_path(s3) / "many") == dict.fromkeys(names, 1)
    remove(any_path(s3) / "many")
    assert sizes(any_path(s3) / "many") == {}


# what is written


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("mistake", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_writing_that_breaks_off_changes_nothing(
    folder: AnyPath, before: bytes | None, mistake: BaseException
) -> None:
    file = folder / "run/head.npy"
    if before:
        write_whole(file, before)
    with pytest.raises(type(mistake)) as caught, writing(file) as working:
        working.write_bytes(b"half")
        raise mistake
    assert not working.exists()
    assert sizes(folder) == ({"run/head.npy": 3} if before else {})
    assert not before or file.read_bytes() == before
    if isinstance(caught.value, OSError):
        assert one_line(caught.value).startswith(f"{file}: No space left on device; ")
        caught.value.filename = None


def test_a_big_file_is_written_and_fetched_in_parts(folder: AnyPath) -> None:
    data = random.Random(2).randbytes(20 * 1024 * 1024)  # boto3 sends from 8 MiB on in parts
    write_whole(folder / "weights.h5", data)
    assert local(folder / "weights.h5").read_bytes() == data
    assert read_range(folder / "weights.h5", 9 * 1024 * 1024, 100) == data[9 * 1024 * 1024 :][:100]


def test_a_tree_is_removed_beginning_with_its_marks(folder: AnyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    delete = files._delete

    def cut_short(below: Any, texts: tuple[str, ...] = ()) -> None:
        if not texts or "manifest" not in texts[0]:
            raise OSError(errno.EIO, "cut short")
        delete(below, list(texts))

    fill(folder, "a", "manifest.json", "z/manifest.json", "z/b")
    monkeypatch.setattr(files.shutil, "rmtree", cut_short)
    monkeypatch.setattr(files, "_delete", cut_short)
    with pytest.raises(OSError, match="cut short"):
        remove(folder)
    assert list(sizes(folder)) == ["a", "z/b"]
    monkeypatch.undo()
    remove(folder)
    assert sizes(folder) == {} and not folder.exists()


@pytest.mark.parametrize("target", DOORS)
@pytest.mark.parametrize("source", DOORS)
def test_a_tree_is_copied_from_door_to_door_marks_last(
    door: Callable[[str], AnyPath], source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = door(source), door(target)
    fill(here, "manifest.json", "b", "n/manifest.json", "z/a b#c")
    order = []
    real = files.writing
    monkeypatch.setattr(files, "writing", lambda file: order.append(file) or real(file))
    copy_tree(here, there)
    assert {name: (there / name).read_text() for name in sizes(there)} == {name: name for name in sizes(here)}
    assert [str(file.relative_to(there)) for file in order] == [
        "b",
        "z/a b#c",
        "manifest.json",
        "n/manifest.json",
    ]


@pytest.mark.parametrize("name", ["a/../../out", "../out", "/out"])
def test_a_name_that_leads_out_is_not_copied(
    memory: dict[str, tuple[bytes, float]], tmp_path: Path, name: str
) -> None:
    source = any_path(f"mem://bucket/{uuid4().hex}")
    memory[f"{source}/{name}"] = (b"x", 0.0)
    with pytest.raises(ShelfmarkError, match=r"leads out of .*; rename it"):
        copy_tree(source, tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_consoles_make_are_no_files(s3: str) -> None:
    folder = any_path(s3) / "console"
    client().put_object(Bucket="shelf", Key="console/")
    client().put_object(Bucket="shelf", Key="console/empty/")
    assert (sizes(folder), folder.is_dir(), folder.is_file()) == ({}, True, False)
    remove(folder)
    assert not folder.exists()


# copies


def test_a_local_file_is_its_own_copy(tmp_path: Path) -> None:
    assert local(tmp_path / "a") == tmp_path / "a"


def test_a_remote_file_is_fetched_once_until_it_is_written_anew(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = any_path(s3) / "copies" / "weights.h5"
    write_whole(file, b"one")
    fetches = []
    fetch = objects._S3.fetch
    monkeypatch.setattr(
        objects._S3, "fetch", lambda *arguments: fetches.append(arguments) or fetch(*arguments)
    )
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: local(file), range(32)))
    assert (len(copies), len(fetches)) == (1, 1)
    (copy,) = copies
    assert (copy.name, copy.read_bytes()) == ("weights.h5", b"one")
    write_whole(file, b"two")
    assert local(file).read_bytes() == b"two"
    assert copy.read_bytes() == b"one"  # whoever opened it by its name still has it
    remove(file.parent)
    with pytest.raises(FileNotFoundError):
        local(file)


def test_copies_go_with_the_process(s3: str) -> None:
    write_whole(any_path(s3) / "gone" / "a", b"a")
    ran = in_process("from features.storage.paths import *; print(local(Remote('s3://shelf/gone/a')))")
    assert not Path(ran.stdout.strip()).parents[1].exists()
    assert ran.stdout.strip().endswith("/a")


def in_process(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    root = Path(files.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


# many at once, and how much is requested


def test_eight_threads_use_it_at_once(folder: AnyPath) -> None:
    if isinstance(folder, Remote):
        objects._stores.clear()  # they make the client at once, too

    def work(number: int) -> None:
        mine = folder / f"worker {number}"
        data = bytes([number]) * 300_000
        for turn in range(3):
            write_whole(mine / f"{turn}.npy", data + bytes([turn]))
        assert sizes(mine) == {f"{turn}.npy": 300_001 for turn in range(3)}
        assert read_range(mine / "1.npy", 299_999, 9) == bytes([number, 1])
        with (mine / "2.npy").open("rb") as opened:
            opened.seek(-2, os.SEEK_END)
            assert opened.read() == bytes([number, 2])
        assert local(mine / "0.npy").read_bytes() == data + b"\0"
        copy_tree(mine, folder / f"copy {number}")
        remove(mine)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(sizes(folder)) == 24
    assert all(name.startswith("copy") for name in sizes(folder))


def test_a_small_read_asks_little_and_adjoining_reads_ask_seldom(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 24 * 1024 * 1024
    file = any_path(s3) / "requested" / "shard.tfrecord"
    write_whole(file, bytes(size))
    requested: list[int] = []
    read = objects._S3.read

    def count(store: Any, text: str, offset: int, length: int) -> bytes:
        data = read(store, text, offset, length)
        requested.append(len(data))
        return data

    monkeypatch.setattr(objects._S3, "read", count)
    with file.open("rb") as opened:
        for start in (5_000_000, 1_000_000, 20_000_000):
            opened.seek(start)
            opened.read(8192)
        assert requested == [64 * 1024] * 3
        requested.clear()
        opened.seek(0)
        while opened.read(8192):
            pass
    assert sum(requested) == size
    assert len(requested) < 12
    requested.clear()
    read_range(file, 77, 8192)
    assert requested == [8192]


def test_a_response_that_breaks_off_is_requested_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import IncompleteReadError

    file = any_path(s3) / "broken" / "a"
    write_whole(file, b"whole")
    store = objects._s3()
    real, falls = store.client.get_object, iter([True, True, False, True, True, True])

    class Broken:
        def read(self) -> bytes:
            raise IncompleteReadError(actual_bytes=2, expected_bytes=5)

    monkeypatch.setattr(
        store.client, "get_object", lambda **wanted: {"Body": Broken()} if next(falls) else real(**wanted)
    )
    assert read_range(file) == b"whole"
    with pytest.raises(OSError, match="2 read, but total bytes expected is 5"):
        read_range(file)


# places


def test_a_remote_place_has_the_manners_of_a_path() -> None:
    remote, path = Remote("s3://bucket/run/head.weights.h5"), PurePosixPath("bucket/run/head.weights.h5")
    assert (remote.name, remote.stem, remote.suffix) == (path.name, path.stem, path.suffix)
    assert str(remote.parent) == "s3://bucket/run" and remote.parent.parent == Remote("s3://bucket")
    assert Remote("s3://bucket").parent == Remote("s3://bucket/") == Remote("s3://bucket")
    assert Remote("s3://bucket").name == ""
    assert str(remote.with_name("a")) == "s3://bucket/run/a"
    assert str(remote.with_suffix(".json")) == "s3://bucket/run/head.weights.json"
    assert remote.relative_to(Remote("s3://bucket")) == PurePosixPath("run/head.weights.h5")
    assert remote.relative_to(remote) == PurePosixPath()
    assert remote == Remote("s3://bucket") / "run/head.weights.h5"
    assert remote == Remote("s3://bucket") / PurePosixPath("run") / "head.weights.h5"
    assert sorted([remote, remote.parent]) == [remote.parent, remote]
    assert len({remote, pickle.loads(pickle.dumps(remote))}) == 1
    remote.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match="is not below"):
        remote.relative_to(Remote("s3://bucket/ru"))
    with pytest.raises(ValueError, match="expected 'rb'; write with `writing`"):
        remote.open("wb")


def test_a_text_is_a_path_unless_it_names_a_store() -> None:
    texts = ["shop.bson", "/data/a:b", "file:///data/a%2Cb", "FILE://localhost/Caf%E9", "C:/shop"]
    assert [any_path(text) for text in texts] == [
        Path("shop.bson"),
        Path("/data/a:b"),
        Path("/data/a,b"),
        Path("/Caf\udce9"),
        Path("C:/shop"),
    ]
    assert any_path("gs://bucket/a/") == any_path("GS://bucket/a") == Remote("gs://bucket/a")


@pytest.mark.parametrize("name", [b"a b%2C#?.jpg", "Café.jpg".encode(), b"Caf\xe9.jpg", b"a+b;c=d&e"])
def test_a_file_url_of_any_name_is_read_as_pathlib_writes_it(tmp_path: Path, name: bytes) -> None:
    file = tmp_path / os.fsdecode(name)
    file.write_bytes(b"here")
    assert any_path(file.as_uri()) == file and read_range(any_path(file.as_uri())) == b"here"


@pytest.mark.parametrize("text", ["s3:/x", "S3:/x", "gs:/bucket/a"])
def test_a_place_with_one_slash_is_refused(text: str) -> None:
    with pytest.raises(ShelfmarkError, match="one slash; expected two"):
        any_path(text)


@pytest.mark.parametrize("text", ["file://", "file://other/a"])
def test_a_file_url_names_a_file_of_this_machine(text: str) -> None:
    with pytest.raises(ShelfmarkError, match="no file of this machine; expected file:///path"):
        any_path(text)


@pytest.mark.parametrize("text", ["s3://", "s3:///a", "://bucket", "https://"])
def test_a_place_without_a_bucket_is_refused(text: str) -> None:
    with pytest.raises(
        ShelfmarkError, match="names no bucket; expected scheme://bucket/name; correct the name"
    ):
        any_path(text)


def test_neither_beam_nor_boto3_is_imported_before_a_store_is_used() -> None:
    ran = in_process(
        "import sys; from features.storage.paths import *\n"
        "sizes(any_path('.')); any_path('s3://bucket/a') / 'b'\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('apache_beam', 'boto3', 'botocore')])"
    )
    assert ran.stdout == "[]\n"


# what cannot be


def says(text: str, *parts: str) -> None:
    """Every way to use the place ends in the same line, soon."""
    for ask in ASKS:
        start = time.monotonic()
        with pytest.raises(ShelfmarkError) as caught:
            ask(Remote(text))
        line = one_line(caught.value)
        assert line.startswith(f"{text}: ") and "\n" not in line and len(line) < 450
        assert all(part in line for part in parts), line
        assert time.monotonic() - start < 30


ASKS: list[Callable[[Remote], Any]] = [
    Remote.exists,
    Remote.is_file,
    Remote.is_dir,
    Remote.unlink,
    sizes,
    remove,
    read_range,
    local,
    lambda file: write_whole(file, b"x"),
    lambda file: file.open("rb"),
]


def test_a_missing_bucket_is_an_error_that_names_it(s3: str) -> None:
    says("s3://nowhere/run", "no such bucket", "create it or correct the name")


@pytest.mark.parametrize("ask", [Remote.exists, Remote.is_dir, sizes, remove])
def test_a_listing_that_beam_does_not_get_means_no_bucket(memory: Any, ask: Callable[[Remote], Any]) -> None:
    with pytest.raises(ShelfmarkError, match="mem://nowhere/run: no such bucket"):
        ask(Remote("mem://nowhere/run"))


def test_a_name_that_no_bucket_can_have_is_refused(s3: str) -> None:
    says("s3://no bucket/run", "Invalid bucket name", "correct the name")


def test_an_unknown_scheme_is_refused() -> None:
    says("foo://bucket/run", "foo:// is not supported", "expected s3:// or gs://")


def test_a_missing_extra_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.io.filesystem import FileSystem

    monkeypatch.setattr(FileSystem, "get_all_subclasses", list)  # as where none of Google's packages is
    says("gs://bucket/run", "gs:// needs a package", "apache-beam[gcp]; install it")


def test_missing_boto3_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    objects._stores.clear()
    says("s3://bucket/run", "s3:// needs a package", "apache-beam[aws]; install it")


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def test_missing_credentials_are_an_error_that_says_what_to_set(no_credentials: None) -> None:
    says("s3://bucket/run", "Unable to locate credentials", "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")


def test_a_store_that_does_not_answer_is_an_error_within_seconds(
    no_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    says("s3://bucket/run", "no answer (Could not connect", "AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")  # and without asking for haste
    monkeypatch.setattr(sys.modules[__name__], "ASKS", [sizes])
    says("s3://bucket/run", "no answer (Could not connect")


@pytest.mark.parametrize(
    "code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "403"]
)
def test_a_refusal_is_an_error_that_says_what_to_set(
    s3: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "not you"}}, "GetObject")

    monkeypatch.setattr(objects._s3().client, "get_object", refuse)
    with pytest.raises(ShelfmarkError, match=r"s3://shelf/a: refused \(.*; set AWS_ACCESS_KEY_ID"):
        read_range(any_path(s3) / "a")


def test_any_other_fault_of_a_store_names_the_file(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    def fail(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "SlowDown", "Message": "too\nmuch"}}, "GetObject")

    monkeypatch.setattr(objects._s3().client, "get_object", fail)
    with pytest.raises(OSError) as caught:
        read_range(any_path(s3) / "a")
    assert not isinstance(caught.value, FileNotFoundError)
    assert one_line(caught.value).startswith("s3://shelf/a: ClientError: An error occurred (SlowDown)")


def test_objects_that_a_store_does_not_remove_are_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(any_path(s3) / "kept", "a")
    refusal = {"Errors": [{"Key": "kept/a", "Code": "AccessDenied", "Message": "locked"}]}
    monkeypatch.setattr(objects._s3().client, "delete_objects", lambda **_: refusal)
    with pytest.raises(ShelfmarkError, match=r"s3://shelf/kept: refused \(.*locked"):
        remove(any_path(s3) / "kept")


@pytest.fixture
def options(s3: str) -> tuple[str, ...]:
    """The surroundings that point to the server, as Beam's options."""
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "access_key_id"}
    names |= {"AWS_SECRET_ACCESS_KEY": "secret_access_key", "AWS_DEFAULT_REGION": "region_name"}
    return tuple(f"--s3_{name}={os.environ[variable]}" for variable, name in names.items())


def test_beams_options_hold_here_too(
    s3: str, options: tuple[str, ...], no_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_settings", {})
    with pytest.raises(ShelfmarkError):
        sizes(any_path(s3))
    use_beam_options(options)
    write_whole(any_path(s3) / "options" / "a", b"x")
    assert sizes(any_path(s3) / "options") == {"a": 1}


def test_the_servers_process_ends_with_its_block() -> None:
    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt), object_store() as bucket:
        address = os.environ["AWS_ENDPOINT_URL"]
        write_whole(any_path(bucket) / "a", b"x")
        raise KeyboardInterrupt
    assert dict(os.environ) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5)
