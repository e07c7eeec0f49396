"""A directory is finished or not there, whatever fails on the way, and the same work has the same digest."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import features.storage.artifact as artifact
from features.errors import ShelfmarkError
from features.storage.artifact import (
    Artifact,
    begin,
    digest_of,
    find_artifact,
    open_artifact,
    partial_of,
    seal,
    write_whole,
)

FILES = {"train-0.tfrecord": b"four", "part/b.bin": b"seven!!"}
SOURCE = {"source": "1", "settings": "2"}


def fill(path: Path, made_from: Mapping[str, str] = SOURCE) -> Path:
    work = begin(partial_of(path), made_from)
    for name, data in FILES.items():
        (work / name).parent.mkdir(exist_ok=True)
        write_whole(work / name, data)
    return work


def finish(path: Path, made_from: Mapping[str, str] = SOURCE) -> Artifact:
    return seal(path, kind="records", version=1, made_from=made_from, summary={"products": 2})


def make(path: Path, made_from: Mapping[str, str] = SOURCE) -> Artifact:
    fill(path, made_from)
    return finish(path, made_from)


def test_manifest_names_every_file_with_size_and_sha256_and_holds_no_dates(tmp_path: Path) -> None:
    make(tmp_path / "records")
    assert json.loads((tmp_path / "records" / "manifest.json").read_bytes()) == {
        "kind": "records",
        "version": 1,
        "made_from": {"source": "1", "settings": "2"},
        "summary": {"products": 2},
        "files": {
            "part/b.bin": {"size": 7, "sha256": hashlib.sha256(b"seven!!").hexdigest()},
            "train-0.tfrecord": {"size": 4, "sha256": hashlib.sha256(b"four").hexdigest()},
        },
    }


def test_opened_artifact_says_what_its_manifest_says(tmp_path: Path) -> None:
    made = make(tmp_path / "records")
    found = open_artifact(tmp_path / "records", "records")
    assert found == made
    assert (found.kind, found.version, found.made_from, found.summary) == (
        "records",
        1,
        SOURCE,
        {"products": 2},
    )
    assert found.digest == hashlib.sha256((found.path / "manifest.json").read_bytes()).hexdigest()
    assert found.file("part/b.bin").read_bytes() == b"seven!!"
    with pytest.raises(ShelfmarkError, match=r"no file 'c\.bin' in its manifest"):
        found.file("c.bin")


def test_manifest_is_written_last_and_then_the_directory_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "records")
    done, replace, rename = [], os.replace, os.rename

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        done.append((new.name, sorted(str(file.relative_to(new.parent)) for file in new.parent.rglob("*.*"))))

    def renamed(old: Path, new: Path) -> None:
        rename(old, new)
        done.append((old.name, new.name))

    monkeypatch.setattr(artifact.os, "replace", replaced)  # the one `os` that all modules share
    monkeypatch.setattr(artifact.os, "rename", renamed)
    finish(tmp_path / "records")
    assert done == [
        ("manifest.json", ["manifest.json", "part/b.bin", "train-0.tfrecord"]),
        ("records.partial", "records"),
    ]


def test_half_written_directory_is_not_finished(tmp_path: Path) -> None:
    fill(tmp_path / "records")
    assert find_artifact(tmp_path / "records") is None
    with pytest.raises(ShelfmarkError, match="no finished records here"):
        open_artifact(tmp_path / "records", "records")


@pytest.mark.parametrize("before", [False, True], ids=["nothing before", "an older one before"])
@pytest.mark.parametrize(
    "broken",
    [
        "artifact.write_whole",
        "paths.os.replace",
        "artifact.os.rename",
        "artifact.remove",
        "artifact.file_digest",
    ],
)
def test_whatever_call_of_seal_fails_nothing_half_is_found_and_the_next_run_makes_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, before: bool
) -> None:
    whole = make(tmp_path / "elsewhere").digest
    old = make(tmp_path / "records", {"source": "older"}) if before else None
    (fill(tmp_path / "records") / "_look").mkdir()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"features.storage.{broken}", fail)
        with pytest.raises(OSError, match="No space"):
            finish(tmp_path / "records")
    assert find_artifact(tmp_path / "records") in (None, old)
    assert make(tmp_path / "records").digest == whole


def test_job_killed_while_the_results_are_read_keeps_all_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = fill(tmp_path / "records")
    (work / "_look").mkdir()
    (work / "_look" / "unit-0").write_bytes(b"hours of work")

    def killed(_: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "file_digest", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path / "records")
    assert (
        begin(partial_of(tmp_path / "records"), SOURCE) / "_look" / "unit-0"
    ).read_bytes() == b"hours of work"


@pytest.mark.parametrize("data", [b"fou", b"four.", b"", None], ids=["shorter", "longer", "empty", "gone"])
def test_file_that_changed_its_size_or_has_gone_unfinishes_the_artifact(
    tmp_path: Path, data: bytes | None
) -> None:
    file = make(tmp_path / "records").file("train-0.tfrecord")
    file.unlink() if data is None else file.write_bytes(data)
    assert find_artifact(tmp_path / "records") is None


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"files": []}', '{"files": {}, "kind": "records"}'])
def test_directory_with_a_manifest_of_another_make_is_not_finished(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert find_artifact(tmp_path) is None


def test_neither_is_a_file_nor_a_place_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert find_artifact(tmp_path / "file") is None
    assert find_artifact(tmp_path / "nothing" / "here") is None


def test_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "records")
    with pytest.raises(ShelfmarkError, match="holds 'records'; expected 'head'"):
        open_artifact(tmp_path / "records", "head")


def test_same_work_has_the_same_digest_in_two_places_and_in_any_order(tmp_path: Path) -> None:
    one = make(tmp_path / "one" / "records")
    for name in reversed(FILES):
        work = begin(partial_of(tmp_path / "two" / "other-name"), dict(reversed(SOURCE.items())))
        (work / name).parent.mkdir(exist_ok=True)
        write_whole(work / name, FILES[name])
    other = finish(tmp_path / "two" / "other-name", dict(reversed(SOURCE.items())))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    [{"kind": "head"}, {"version": 2}, {"made_from": {"source": "3"}}, {"summary": {"products": 3}}],
    ids=lambda change: next(iter(change)),
)
def test_other_work_has_another_digest(tmp_path: Path, change: dict[str, Any]) -> None:
    same: dict[str, Any] = {"kind": "records", "version": 1, "made_from": SOURCE, "summary": {"products": 2}}
    fill(tmp_path / "other")
    assert seal(tmp_path / "other", **same | change).digest != make(tmp_path / "records").digest


def test_one_changed_byte_gives_another_digest(tmp_path: Path) -> None:
    (fill(tmp_path / "other") / "train-0.tfrecord").write_bytes(b"fouR")
    assert finish(tmp_path / "other").digest != make(tmp_path / "records").digest


def test_work_from_other_inputs_is_emptied(tmp_path: Path) -> None:
    fill(tmp_path / "records")
    work = begin(partial_of(tmp_path / "records"), {"source": "3"})
    assert [file.name for file in work.iterdir()] == ["made_from.json"]


def test_work_from_the_same_inputs_goes_on(tmp_path: Path) -> None:
    work = fill(tmp_path / "records")
    assert (
        begin(partial_of(tmp_path / "records"), dict(reversed(SOURCE.items())))
        == work
        == partial_of(tmp_path / "records")
    )
    assert (work / "part/b.bin").read_bytes() == b"seven!!"


def test_work_whose_inputs_are_unknown_is_emptied(tmp_path: Path) -> None:
    (fill(tmp_path / "records") / "made_from.json").unlink()
    assert not (begin(partial_of(tmp_path / "records"), SOURCE) / "train-0.tfrecord").exists()


def test_working_files_are_never_counted_and_removed(tmp_path: Path) -> None:
    work = fill(tmp_path / "records")
    (work / "_look").mkdir()
    for name in ("torn.tmp", "part/torn.npy.tmp", "_look/unit-0"):
        (work / name).write_bytes(b"torn")
    made = finish(tmp_path / "records")
    assert sorted(made.files) == sorted(FILES)
    left = sorted(str(file.relative_to(made.path)) for file in made.path.rglob("*"))
    assert left == ["manifest.json", "part", "part/b.bin", "train-0.tfrecord"]
    assert made.digest == make(tmp_path / "clean").digest


def test_sealing_over_an_existing_artifact_leaves_only_the_new_one(tmp_path: Path) -> None:
    work = begin(partial_of(tmp_path / "records"), {"source": "older"})
    write_whole(work / "old.bin", b"old")
    finish(tmp_path / "records", {"source": "older"})
    new = make(tmp_path / "records")
    assert find_artifact(tmp_path / "records") == new
    assert sorted(new.files) == sorted(FILES)
    assert not (new.path / "old.bin").exists()
    assert not partial_of(new.path).exists()


def test_artifact_may_be_copied(tmp_path: Path) -> None:
    made = make(tmp_path / "records")
    shutil.copytree(made.path, tmp_path / "copy")
    assert open_artifact(tmp_path / "copy", "records").digest == made.digest


def test_digest_of_a_value_does_not_depend_on_the_order_of_keys_but_on_every_value() -> None:
    assert digest_of({"a": [1, {"b": 2, "c": 3}], "d": 4}) == digest_of({"d": 4, "a": [1, {"c": 3, "b": 2}]})
    assert digest_of({"a": [1, 2]}) != digest_of({"a": [2, 1]})
    assert digest_of({"é": None}) == hashlib.sha256(b'{"\\u00e9": null}').hexdigest()
