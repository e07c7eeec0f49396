"""Which bundle is in service, in workspaces that were copied by different tools."""

import os
import shutil
from pathlib import Path

import pytest
from object_store import object_store

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, any_path, copy_tree, read_range, sizes, write_whole
from models.decisions import releases as releases_module
from models.decisions.releases import in_service, put_into_service
from pipeline.cli import main
from pipeline.job.config import Config
from pipeline.job.run import begin_run


def draw(workspace: AnyPath, *names: str) -> AnyPath:
    """A workspace whose releases hold one file each beside their manifest."""
    for name in names:
        write_whole(workspace / "releases" / name / "head.json", name.encode())
        write_whole(workspace / "releases" / name / "manifest.json", f'{{"of": "{name}"}}'.encode())
    return workspace / "releases"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """releases/ of a workspace after `cp -rL`: the first of two is in service, as a directory."""
    releases = draw(tmp_path / "W", "2026-W46", "2026-W47")
    assert isinstance(releases, Path) and in_service(releases) is None
    put_into_service(releases, "2026-W46")
    assert os.readlink(releases / "current") == "2026-W46"
    shutil.copytree(tmp_path / "W", tmp_path / "copy", symlinks=False)
    assert not (tmp_path / "copy" / "releases" / "current").is_symlink()
    return tmp_path / "copy" / "releases"


def test_a_copied_directory_is_recognized_by_its_manifest_and_replaced_by_a_link(copied: Path) -> None:
    assert in_service(copied) == "2026-W46"
    assert begin_run(copied.parent, "next", Config()).based_on == "2026-W46"
    put_into_service(copied, "2026-W47")
    assert os.readlink(copied / "current") == "2026-W47" == in_service(copied)
    assert sorted(os.listdir(copied)) == ["2026-W46", "2026-W47", "current"]


@pytest.mark.parametrize("step", range(8))
def test_a_switch_that_is_interrupted_at_any_step_leaves_one_of_the_two_in_service(
    copied: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Every call that changes the disk may be the last one."""
    left = [step]

    def dying(do):
        def instead(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return do(*arguments, **options)

        return instead

    with monkeypatch.context() as patch:
        for owner, name in [(os, "rename"), (os, "replace"), (os, "symlink"), (releases_module, "remove")]:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            put_into_service(copied, "2026-W47")
        except KeyboardInterrupt:
            assert in_service(copied) in ("2026-W46", "2026-W47")
    assert in_service(copied) in ("2026-W46", "2026-W47")
    put_into_service(copied, "2026-W47")
    assert in_service(copied) == "2026-W47" and "current.old" not in os.listdir(copied)


def exit_status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("lost", ["head.json", "manifest.json"])
def test_a_directory_that_is_not_a_copy_of_a_release_is_refused_before_any_work(
    copied: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    if lost == "manifest.json":
        (copied / "current" / lost).unlink()
    else:  # of a release that was removed
        shutil.rmtree(copied / "2026-W46")
    photos = copied.parent / "photos" / "A"
    photos.mkdir(parents=True)
    (photos / "1.jpg").write_bytes(b"")
    assert exit_status("retrain", str(photos.parent), "--workspace", str(copied.parent), "--run", "r") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: {copied / 'current'}: a directory, but not a copy of a release beside it; "
    )
    assert [name for name in sizes(copied.parent) if name.startswith("runs/")] == []


def test_a_file_with_a_name_as_on_object_stores_counts_on_a_disk(copied: Path) -> None:
    shutil.rmtree(copied / "current")
    (copied / "current").write_text("2026-W47\n")
    assert in_service(copied) == "2026-W47"
    put_into_service(copied, "2026-W46")
    assert os.readlink(copied / "current") == "2026-W46"


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", b"../W/releases/2026-W46", b"<html>\nmoved\n"])
def test_a_file_without_a_name_is_refused(copied: Path, held: bytes) -> None:
    shutil.rmtree(copied / "current")
    (copied / "current").write_bytes(held)
    with pytest.raises(
        ShelfmarkError, match="does not hold the name of a release; expected one like 2026-W47"
    ):
        in_service(copied)


def test_a_workspace_that_was_copied_to_an_object_store_keeps_its_release(copied: Path) -> None:
    """As by `aws s3 sync`, which follows the link."""
    with object_store() as bucket:
        there = any_path(bucket) / "copy" / "releases"
        copy_tree(copied, there)
        assert in_service(there) == "2026-W46"
        put_into_service(there, "2026-W47")
        assert read_range(there / "current") == b"2026-W47" and in_service(there) == "2026-W47"
        assert not [name for name in sizes(there) if name.startswith("current/")]
        write_whole(any_path(bucket) / "other" / "releases" / "current" / "head.json", b"x")
        with pytest.raises(ShelfmarkError, match="not a copy of a release beside it"):
            in_service(any_path(bucket) / "other" / "releases")


@pytest.mark.parametrize("name", ["current", "current.old", "current.tmp"])
def test_a_run_cannot_have_the_name_of_the_link_to_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert exit_status("report", "--workspace", str(tmp_path), "--run", name) == 1
    assert f"error: --run {name}: not a name for a run" in capsys.readouterr().err
