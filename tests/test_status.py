"""Status and runs: on workspaces as they are, and as they should not be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from object_store import object_store

from features.storage.paths import any_path, copy_tree, write_whole
from pipeline.cli import main
from pipeline.job.lock import at_work, only_job
from pipeline.status import runs_of, status_of

DAY = 86_400
MONDAY = 1_795_399_200  # s since 1970: 2026-11-23 02:00 UTC


def write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))


def add_run(workspace: Path, name: str, week: int, account: dict | None, verdict: dict | None = None) -> Path:
    """A run of `week` weeks after MONDAY; without an account, its manifests alone."""
    run, began = workspace / "runs" / name, MONDAY + 7 * DAY * week
    write(run / "config.json", {"run": name})
    write(run / "records" / "manifest.json", {"summary": {"products": 400, "images": 582}})
    summary = {"products": 200, "accepted": 150, "accepted_precision": 0.92}
    write(run / "evaluation" / "manifest.json", {"summary": summary})
    os.utime(run / "config.json", (began, began))
    if verdict is not None:
        write(run / "verdict.json", verdict)
        os.utime(run / "verdict.json", (began + 600, began + 600))
    if account is not None:
        ended = f"2026-{'11-30' if week else '11-23'}T02:10:00+00:00"
        known = {
            "run": name, "outcome": "released", "exit_status": 0, "sentence": "better by 3 points",
            "started": ended, "ended": ended, "seconds": 600.0, "command": [], "records": {"products": 400},
            "evaluation": summary,
        }  # fmt: skip
        write(run / "run.json", known | account)
        os.utime(run / "run.json", (began + 600, began + 600))
    return run


def add_release(workspace: Path, name: str, log: bool = True) -> None:
    """A release in service, switched to at 02:10 on that Monday."""
    release = workspace / "releases" / name
    manifest = {"kind": "bundle", "version": 4, "made_from": {}, "summary": {}, "files": {}}
    write(release / "manifest.json", manifest)
    write(release / "thresholds.json", {"target": 0.9, "certificate": {"threshold": 0.73}})
    current = workspace / "releases" / "current"
    current.unlink(missing_ok=True)
    current.symlink_to(name)
    os.utime(current, (MONDAY, MONDAY), follow_symlinks=False)
    if log:
        entry = {"action": "release", "from": None, "to": name, "who": "me@host"}
        entries = [
            entry | {"when": "2026-11-16T02:10:00+00:00", "to": "other", "why": "older"},
            entry | {"when": "2026-11-23T02:10:00+00:00", "why": "better by 3 points"},
        ]
        text = "\n".join(json.dumps(one) for one in entries)
        write(workspace / "releases" / "log.jsonl", f'{text}\n{{"when": "2026-11-2')  # cut off


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "W"
    add_run(path, "2026-W48", 0, {})
    add_run(path, "2026-W49", 1, {"outcome": "kept", "exit_status": 3, "sentence": "worse by 1 point"})
    add_release(path, "2026-W48")
    write(path / "store" / "net" / "a.npy", "x" * 5000)
    write(path / "monitor" / "2026-W48" / "index.html", "x" * 100)
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


# Status


def test_what_is_in_service_since_when_and_why(workspace):
    service = status_of(workspace).service
    assert (service.release, service.since) == ("2026-W48", "2026-11-23T02:10:00+00:00")
    assert (service.who, service.why) == ("me@host", "better by 3 points")
    assert (service.target, service.certified, service.problem) == (0.9, True, None)


def test_without_a_log_the_link_says_since_when(workspace):
    (workspace / "releases" / "log.jsonl").unlink()
    service = status_of(workspace).service
    assert service.since == "2026-11-23T02:00:00+00:00"
    assert service.why == "made without shelfmark, or before there was a log"


def test_the_last_runs_are_the_newest_first(workspace):
    for week in range(2, 8):
        add_run(workspace, f"2027-W0{week}", week, {"outcome": "unchanged"})
    names = [run.run for run in status_of(workspace).runs]
    assert names == ["2027-W07", "2027-W06", "2027-W05", "2027-W04", "2027-W03"]


def test_the_size_is_that_of_each_part(workspace):
    size = status_of(workspace).size
    assert size["store"] == 5000 and size["monitor"] == 100
    files = [Path(folder, name) for folder, _, names in os.walk(workspace) for name in names]
    assert sum(size.values()) == sum(file.lstat().st_size for file in files)


def test_a_file_with_two_names_takes_its_room_once(workspace):
    before = status_of(workspace).size
    os.link(workspace / "store" / "net" / "a.npy", workspace / "releases" / "2026-W48" / "a.npy")
    assert sum(status_of(workspace).size.values()) == sum(before.values())


def test_what_clean_would_free_is_what_clean_says(workspace, capsys):
    leftover = workspace / "runs" / "2026-W49" / "head.partial" / "weights"
    write(leftover, "x" * 2_000_000)
    os.utime(leftover, (MONDAY, MONDAY))
    estimate = status_of(workspace).clean
    assert (estimate.bytes, estimate.removals) == (2_000_000, ["runs/2026-W49/head.partial"])
    assert "2.0 MB would be removed" in printed(capsys, "clean", "--workspace", workspace, "--dry-run")
    assert leftover.exists()


def test_status_is_printed_in_few_lines(workspace, capsys):
    lines = printed(capsys, "status", "--workspace", workspace).splitlines()
    assert lines[0].startswith("in service  2026-W48 since 2026-11-23 02:10 UTC")
    assert lines[0].endswith("; precision 0.9 certified; better by 3 points")
    assert lines[1] == (
        "last runs   2026-W49  2026-11-30 02:10  kept, accepts 75.0%, precision 92.0%: worse by 1 point"
    )
    assert lines[3].startswith(
        "size        0.0 MB: store 0.0 MB, runs 0.0 MB, releases 0.0 MB, monitor 0.0 MB; "
    )
    assert lines[4] == "clean       would free 0.0 MB"


def test_json_has_the_same_and_follows_its_schema(workspace, capsys):
    schemas = Path(__file__).parents[1] / "docs" / "schemas"
    found = json.loads(printed(capsys, "status", "--workspace", workspace, "--json"))
    assert found == json.loads(status_of(workspace).model_dump_json()) | {"free": found["free"]}
    jsonschema.validate(found, json.loads((schemas / "status.json").read_text()))
    rows = json.loads(printed(capsys, "runs", "--workspace", workspace, "--json"))
    assert rows == found["runs"]


# Runs


def test_runs_are_a_table(workspace, capsys):
    lines = printed(capsys, "runs", "--workspace", workspace).splitlines()
    assert [line.split() for line in lines] == [
        ["run", "when", "(UTC)", "outcome", "products", "acceptance", "precision", "seconds"],
        ["2026-W49", "2026-11-30", "02:10", "kept", "400", "75.0%", "92.0%", "600"],
        ["2026-W48", "2026-11-23", "02:10", "released", "400", "75.0%", "92.0%", "600", "*"],
    ]
    assert len(printed(capsys, "runs", "--workspace", workspace, "--last", "1").splitlines()) == 2


def test_a_release_of_a_run_that_was_released_twice_is_in_service(workspace):
    add_release(workspace, "2026-W48.2")
    assert [run.in_service for run in runs_of(workspace)] == [False, True]


@pytest.mark.parametrize(
    ("verdict", "outcome", "sentence"),
    [
        ({"better": True, "reason": "more accepted"}, "released", "more accepted"),
        ({"better": False, "reason": "fewer"}, "kept", "fewer"),
        ({"release": True, "sentence": "first"}, "released", "first"),
        ({"release": "?"}, "unfinished", ""),
        (None, "unfinished", ""),
    ],
)
def test_a_run_of_an_earlier_version_is_told_by_its_verdict(workspace, verdict, outcome, sentence):
    add_run(workspace, "2027-W01", 2, None, verdict)
    run = runs_of(workspace)[0]
    assert (run.run, run.outcome, run.sentence) == ("2027-W01", outcome, sentence)
    assert (run.products, run.acceptance, run.precision, run.seconds) == (400, 0.75, 0.92, None)


def test_a_run_killed_after_its_verdict_of_before_is_unfinished(workspace):
    run = add_run(workspace, "2027-W01", 2, None, {"release": True, "sentence": "first"})
    later = MONDAY + 30 * DAY
    os.utime(run / "config.json", (later, later))
    assert runs_of(workspace)[0].outcome == "unfinished"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"run": 1}', "\0"])
def test_a_damaged_account_spoils_its_own_line_only(workspace, text, capsys):
    (workspace / "runs" / "2026-W49" / "run.json").write_text(text)
    found = {run.run: run.outcome for run in runs_of(workspace)}
    assert found == {"2026-W48": "released", "2026-W49": "damaged"}
    assert "not the account of a run" in printed(capsys, "status", "--workspace", workspace)


@pytest.mark.parametrize("text", ["", "[]", '{"summary": []}', '{"summary": {"products": "many"}}'])
def test_damaged_manifests_are_no_figures(workspace, text):
    run = add_run(workspace, "2027-W01", 2, None)
    for kind in ("records", "evaluation"):
        (run / kind / "manifest.json").write_text(text)
    assert (runs_of(workspace)[0].products, runs_of(workspace)[0].acceptance) == (None, None)


def test_a_run_at_work_is_running_and_is_not_disturbed(workspace):
    run = workspace / "runs" / "2026-W49"
    before = sorted(workspace.rglob("*"))
    with only_job(run):
        assert [one.outcome for one in runs_of(workspace)] == ["running", "released"]
        assert status_of(workspace).runs[0].outcome == "running"
    assert [one.outcome for one in runs_of(workspace)] == ["kept", "released"]
    with only_job(run):  # not held by anything that status left
        pass
    status_of(workspace)
    assert sorted(set(workspace.rglob("*")) - set(before)) in ([], [run / ".lock"])


def test_a_lock_that_nobody_holds_is_no_job(tmp_path):
    assert not at_work(tmp_path)
    (tmp_path / ".lock").touch()
    assert not at_work(tmp_path)
    with only_job(tmp_path):
        assert at_work(tmp_path)
    assert not at_work(tmp_path)


# Odd workspaces


def test_a_workspace_without_a_release(workspace, capsys):
    shutil.rmtree(workspace / "releases")
    assert "in service  nothing yet" in printed(capsys, "status", "--workspace", workspace)
    assert not any(run.in_service for run in runs_of(workspace))


def test_a_lost_release_is_named(workspace, capsys):
    shutil.rmtree(workspace / "releases" / "2026-W48")
    line = printed(capsys, "status", "--workspace", workspace).splitlines()[0]
    assert "releases/2026-W48 is gone or damaged; put it back" in line


def test_a_current_that_is_no_release_is_named(workspace, capsys):
    current = workspace / "releases" / "current"
    current.unlink()
    current.mkdir()
    assert "not a copy of a release beside it" in printed(capsys, "status", "--workspace", workspace)
    assert len(runs_of(workspace)) == 2


def test_a_release_without_runs_is_a_workspace(workspace, capsys):
    shutil.rmtree(workspace / "runs")
    assert "in service  2026-W48" in printed(capsys, "status", "--workspace", workspace)


@pytest.mark.parametrize("command", ["status", "runs"])
@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_what_is_no_workspace_is_one_line(tmp_path, command, name, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main([command, "--workspace", str(tmp_path / name)])
    assert stop.value.code == 1
    assert f"error: {tmp_path / name}: has no runs; expected a workspace" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_remote_workspace_says_the_same(workspace):
    with object_store() as bucket:
        there = any_path(bucket) / "W"
        (workspace / "releases" / "current").unlink()
        copy_tree(workspace, there)
        write_whole(there / "releases" / "current", b"2026-W48")
        here, found = runs_of(workspace), runs_of(there)
        assert {run.run: run.outcome for run in found} == {run.run: run.outcome for run in here}
        status = status_of(there)
        assert (status.service.release, status.service.since) == ("2026-W48", "2026-11-23T02:10:00+00:00")
        assert status.free is None and status.size["store"] == 5000 and status.clean is not None


def test_neither_imports_what_takes_seconds(workspace):
    code = (
        "import sys, pipeline.cli as c\n"
        "for name in ('status', 'runs'):\n"
        "    c.shelfmark.main([name, '--workspace', sys.argv[1]], standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    call = [sys.executable, "-c", code, str(workspace)]
    loaded = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
    assert {"tensorflow", "keras", "apache_beam", "scipy", "sklearn", "pandas"} & set(loaded) == set()
