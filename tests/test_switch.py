"""Releases by hand: into service, back, and forward again; in moved, copied and damaged workspaces."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from drawn_releases import draw_bundle, draw_releases

from features.errors import Busy
from features.storage.artifact import Artifact, find_artifact
from models.decisions.releases import in_service, put_into_service
from pipeline.cli import main
from pipeline.job.config import Config
from pipeline.job.lock import only_job
from pipeline.job.release_log import history
from pipeline.job.run import Run
from pipeline.release import switch as switch_module


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status of `shelfmark`, and all that it printed."""
    status = 0
    try:
        main([*arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out + printed.err


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """2026-W45 to 2026-W47 were released, and the bundle of the run 2026-W48 was kept out."""
    draw_releases(tmp_path / "W", "2026-W45", "2026-W46", "2026-W47")
    draw_bundle(tmp_path / "W" / "runs" / "2026-W48" / "bundle")
    return tmp_path / "W"


def test_back_and_forward_again(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    releases, at = workspace / "releases", ("--workspace", str(workspace))
    expected = [
        (("rollback", "--why", "W47 confuses boots"), "2026-W46", "2026-W47", "W47 confuses boots"),
        (("rollback",), "2026-W45", "2026-W46", "rolled back by hand"),
        (("release", "2026-W47"), "2026-W47", "2026-W45", "put into service by hand"),
        (("rollback", "2026-W46", "--who", "Ada"), "2026-W46", "2026-W47", "rolled back by hand"),
    ]
    for command, now, before, why in expected:
        line = f"{now} is in service now, {before} was before: {why}\n"
        assert run(capsys, *command, *at) == (0, line)
        assert os.readlink(releases / "current") == now
    assert [one.action for one in history(releases)] == [
        *("release", "release", "release", "rollback", "rollback", "switch", "rollback")
    ]
    assert history(releases)[-1].who == "Ada"
    assert run(capsys, "release", "2026-W46", *at) == (0, "2026-W46 is in service already\n")
    assert len(history(releases)) == 7


def test_the_bundle_of_a_run_that_was_kept_out_needs_a_reason(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("release", "2026-W48", "--workspace", str(workspace))
    status, printed = run(capsys, *arguments)
    assert (
        status == 1
        and "error: 2026-W48: a run whose bundle is no whole release; expected a reason" in printed
    )
    assert not (workspace / "releases" / "2026-W48").exists()
    assert run(capsys, *arguments, "--why", "new categories")[0] == 0
    last = history(workspace / "releases")[-1]
    assert (last.action, last.to, last.run) == ("release", "2026-W48", "2026-W48")
    assert last.why == "forced by hand: new categories"
    linked, kept = workspace / "releases" / "2026-W48", workspace / "runs" / "2026-W48" / "bundle"
    assert (linked / "head.json").samefile(kept / "head.json")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("release", "2026-W44"), "those that are there (2026-W47, 2026-W46, 2026-W45); did you mean "),
        (("release", "../runs/2026-W48/bundle"), "no such release"),
        (("rollback", "2026-W48"), "2026-W48: no such release"),
        (("release", "current"), "current: no such release"),
    ],
)  # fmt: skip
def test_what_is_no_release_is_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], error: str
) -> None:
    status, printed = run(capsys, *command, "--workspace", str(workspace))
    assert status == 1 and error in printed
    assert in_service(workspace / "releases") == "2026-W47"


def test_the_first_release_has_no_predecessor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_releases(tmp_path, "a")
    status, printed = run(capsys, "rollback", "--workspace", str(tmp_path))
    assert status == 1 and "no whole release served before the one in service" in printed and "(a)" in printed


def test_what_is_no_workspace_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("rollback",), ("release", "a")):
        status, printed = run(capsys, *command, "--workspace", str(tmp_path / "wrong"))
        assert status == 1 and "has no releases and no runs; expected a workspace" in printed
    assert not (tmp_path / "wrong").exists()


# Lost and damaged


def test_the_release_in_service_is_lost_and_a_rollback_helps(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that needs it says so in one line."""
    releases, at = workspace / "releases", ("--workspace", str(workspace))
    shutil.rmtree(releases / "2026-W47")
    (workspace / "photos" / "A").mkdir(parents=True)
    (workspace / "photos" / "A" / "1.jpg").write_bytes(b"")
    (workspace / "d.csv").write_text("product_id,status,release\n1,review,2026-W47\n")
    photos = str(workspace / "photos")
    commands = [
        ("categorize", photos, *at, "--output", str(workspace.parent / "d.parquet")),
        ("monitor", *at, "--decisions", str(workspace / "d.csv")),
        ("ingest", photos, *at, "--run", "2026-W49"),
    ]
    for command in commands:
        status, printed = run(capsys, *command)
        lines = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert status == 1 and len(lines) == 1
        assert (
            f"error: {releases / '2026-W47'}: missing; expected the bundle of release 2026-W47; " in lines[0]
        )
        assert "`shelfmark rollback`" in lines[0]
    listed = run(capsys, "releases", *at)[1]
    assert "2026-W46" in listed and "missing" in listed
    assert run(capsys, "release", "2026-W47", *at)[0] == 1
    assert run(capsys, "rollback", *at)[0] == 0
    assert in_service(releases) == "2026-W46"


@pytest.mark.parametrize(("lost", "name"), [("all of it", "a"), ("a file", "a.2")])
def test_the_only_release_is_lost_and_is_linked_again_from_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str, name: str
) -> None:
    releases, at = tmp_path / "releases", ("--workspace", str(tmp_path))
    bundle = draw_bundle(tmp_path / "runs" / "a" / "bundle")
    assert run(capsys, "release", "a", *at, "--why", "the first one")[0] == 0
    assert (releases / "a").is_dir()
    shutil.rmtree(releases / "a") if lost == "all of it" else (releases / "a" / "head.json").unlink()
    status, printed = run(capsys, "rollback", *at)
    assert status == 1 and "or a run by `shelfmark release RUN --why …`" in printed
    assert run(capsys, "release", "a", *at, "--why", "it was lost")[0] == 0
    found = find_artifact(releases / name)
    assert found and found.digest == bundle.digest and in_service(releases) == name


@pytest.mark.parametrize("damage", ["gone", "shorter", "other bytes"])
def test_a_damaged_release_is_not_put_into_service_and_a_rollback_passes_over_a_lost_one(
    workspace: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    releases, at = workspace / "releases", ("--workspace", str(workspace))
    file = releases / "2026-W46" / "head.json"
    size = file.stat().st_size
    file.unlink()
    if damage != "gone":
        file.write_bytes(b"x" * (size if damage == "other bytes" else 3))
    for command in (("release", "2026-W46"), ("rollback", "2026-W46")):
        status, printed = run(capsys, *command, *at)
        assert status == 1 and "2026-W46" in printed and ": damaged; expected" in printed
        assert in_service(releases) == "2026-W47"
    if damage != "other bytes":  # found before by its size
        status, printed = run(capsys, "rollback", *at)
        assert status == 0 and in_service(releases) == "2026-W45"


def test_a_rollback_replaces_what_is_no_link_to_a_release(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = workspace / "releases"
    (releases / "current").unlink()
    (releases / "current").mkdir()
    (releases / "current" / "strange").write_text("")
    assert run(capsys, "rollback", "--workspace", str(workspace))[0] == 0
    assert os.readlink(releases / "current") == "2026-W46"
    assert (history(releases)[-1].before, history(releases)[-1].to) == ("2026-W47", "2026-W46")


# Stored once, and moved


def test_a_bundle_is_stored_once_and_a_workspace_can_be_copied_and_moved(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = ("release", "2026-W48", "--why", "new categories", "--workspace", str(workspace))
    assert run(capsys, *release)[0] == 0
    copied, moved = workspace.parent / "copied", workspace.parent / "elsewhere" / "moved"
    subprocess.run(["cp", "-a", workspace, copied], check=True)
    moved.parent.mkdir()
    subprocess.run(["mv", workspace, moved], check=True)
    for there in (copied, moved):
        pair = [
            there / "releases" / "2026-W48" / "head.json",
            there / "runs" / "2026-W48" / "bundle" / "head.json",
        ]
        assert pair[0].samefile(pair[1]) and pair[0].stat().st_nlink == 2
        assert in_service(there / "releases") == "2026-W48"
        assert run(capsys, "rollback", "--workspace", str(there))[0] == 0
        assert (there / "releases" / "current").resolve() == there / "releases" / "2026-W47"
        assert [one.action for one in history(there / "releases")][-2:] == ["release", "rollback"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP])
def test_where_there_are_no_links_the_bundle_is_copied(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    release = ("release", "2026-W48", "--why", "new categories", "--workspace", str(workspace))
    assert run(capsys, *release)[0] == 0
    copied, kept = (
        workspace / where / "head.json" for where in ("releases/2026-W48", "runs/2026-W48/bundle")
    )
    assert copied.read_bytes() == kept.read_bytes() and not copied.samefile(kept)


def test_a_full_disk_is_no_reason_to_copy(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*names: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    bundle = find_artifact(workspace / "runs" / "2026-W48" / "bundle")
    assert bundle
    with pytest.raises(OSError, match="No space left"):
        switch_module.link_bundle(bundle, "2026-W48", workspace / "releases")
    assert find_artifact(workspace / "releases" / "2026-W48") is None
    assert in_service(workspace / "releases") == "2026-W47"


# Two at once


def test_a_switch_waits_for_the_one_at_work_and_gives_up_in_one_line(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_module, "WAIT", 0.1)
    with only_job(workspace / "releases"):
        status, printed = run(capsys, "rollback", "--workspace", str(workspace))
    assert status == 75 and "another command has been switching releases" in printed
    monkeypatch.setattr(switch_module, "WAIT", 20.0)
    with only_job(workspace / "releases"):
        waiting = threading.Thread(target=switch_module.roll_back, args=(workspace, None, None, None))
        waiting.start()
        time.sleep(0.2)
        assert in_service(workspace / "releases") == "2026-W47"
    waiting.join()
    assert in_service(workspace / "releases") == "2026-W46"


@dataclass(frozen=True)
class Drawn:
    """What `release` reads of a verdict."""

    candidate: str
    current: str | None
    current_name: str | None
    release: bool = True
    sentence: str = "better"


def released(workspace: Path, name: str, verdict: Drawn, bundle: Artifact) -> object:
    from pipeline.release.release import release

    return release(Run(workspace, name, Config(), None), bundle, verdict)  # type: ignore[arg-type]


def test_of_two_runs_that_release_at_once_the_second_has_to_be_judged_again(workspace: Path) -> None:
    releases, results = workspace / "releases", dict[str, object]()
    current = find_artifact(releases / "2026-W47")
    assert current
    bundles = {name: draw_bundle(workspace / "runs" / name / "bundle") for name in ("one", "two")}
    start = threading.Barrier(2)

    def job(name: str) -> None:
        verdict = Drawn(bundles[name].digest, current.digest, "2026-W47")
        start.wait()
        try:
            results[name] = released(workspace, name, verdict, bundles[name])
        except Busy as error:
            results[name] = str(error)

    jobs = [threading.Thread(target=job, args=(name,)) for name in bundles]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    first = in_service(releases)
    second = ({"one", "two"} - {first}).pop()
    assert results == {
        first: releases / str(first),
        second: f"release: {first} is in service now, and the verdict of run {second} is about 2026-W47; "
        "expected no other switch meanwhile; run the same command again",
    }
    assert [one.to for one in history(releases)][-2:] == ["2026-W47", first]


def test_a_release_is_taken_out_of_service_and_put_back(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    releases, place = workspace / "releases", ("--workspace", str(workspace))
    status, printed = run(capsys, "withdraw", *place)
    assert status == 2 and "--why" in printed
    status, printed = run(capsys, "withdraw", *place, "--why", "labels mixed up", "--who", "ada")
    assert status == 0 and "2026-W47" in printed and in_service(releases) is None
    last = history(releases)[-1]
    assert (last.action, last.who, last.before, last.to, last.why) == (
        *("withdraw", "ada", "2026-W47", None, "labels mixed up"),
    )
    status, printed = run(capsys, "categorize", str(workspace), *place, "--output", "d.csv")
    assert status == 1 and "nothing is in service" in printed
    assert run(capsys, "withdraw", *place, "--why", "again") == (0, "nothing is in service\n")
    assert history(releases)[-1] == last
    assert run(capsys, "rollback", *place)[0] == 0 and in_service(releases) == "2026-W47"


# Lists


def test_the_releases_are_listed_with_their_times_in_service(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--workspace", str(workspace))
    run(capsys, "rollback", *at)
    shutil.rmtree(workspace / "releases" / "2026-W45")
    status, printed = run(capsys, "releases", *at)
    lines = [line.split() for line in printed.splitlines()]
    assert status == 0 and lines[0][:5] == ["release", "in", "service", "since", "until"]
    assert [line[0] for line in lines[2:4]] == ["2026-W46", "2026-W47"]
    assert lines[2][3] == "now" and lines[2][-2:] == ["0.0", "MB"]
    assert "1 more are in releases/log.jsonl, and are no longer there" in printed
    listed = json.loads(run(capsys, "releases", "--json", *at)[1])
    assert [(one["name"], one["state"], one["in_service"], len(one["periods"])) for one in listed] == [
        ("2026-W46", "whole", True, 2), ("2026-W47", "whole", False, 1), ("2026-W45", "missing", False, 1),
    ]  # fmt: skip
    assert listed[0]["periods"][1]["until"] is None and listed[0]["run"] == "2026-W46"
    put_into_service(workspace / "releases", "2026-W47")  # by hand
    assert json.loads(run(capsys, "releases", "--json", *at)[1])[0]["name"] == "2026-W47"


def test_a_workspace_without_releases_lists_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "releases", "--workspace", str(tmp_path)) == (
        0,
        f"{tmp_path}: nothing has been released yet\n",
    )


@pytest.mark.parametrize("command", [("releases",), ("release", "2026-W46"), ("rollback",)])
def test_the_commands_import_nothing_slow(workspace: Path, command: tuple[str, ...]) -> None:
    code = (
        "import sys, pipeline.cli as c\n"
        f"c.main([*{command!r}, '--workspace', {str(workspace)!r}])\n"
        "print(*sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    slow = {"tensorflow", "keras", "apache_beam", "pandas", "sklearn", "scipy", "pyarrow", "numpy"}
    assert slow & set(printed.split()) == set()
