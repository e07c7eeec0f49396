"""The log of releases: it says what happened, whatever process died in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawn_releases import draw_bundle, draw_releases
from object_store import object_store

from features.storage.artifact import find_artifact
from features.storage.paths import any_path, copy_tree, read_range
from models.decisions.releases import in_service, put_into_service, release_names
from pipeline.job import release_log
from pipeline.job.release_log import (
    LOG,
    Switch,
    history,
    newest_first,
    predecessor,
    predecessors,
    switch,
    taken_out,
)


def lines(releases: Path) -> list[tuple[str | None, str | None]]:
    """(from, to) of each line of log.jsonl."""
    texts = (releases / LOG).read_text().splitlines()
    return [(line["from"], line["to"]) for line in map(json.loads, texts)]


def test_a_line_says_who_when_why_from_where_to_where(tmp_path: Path) -> None:
    releases = draw_releases(tmp_path, "2026-W46")
    bundle = draw_bundle(releases / "2026-W47")
    switch(releases, "2026-W47", "release", "accepts 71 % (before 69 %)", run="2026-W47")
    line = json.loads((releases / LOG).read_text().splitlines()[-1])
    assert list(line) == ["when", "who", "action", "from", "to", "why", "run", "digest"]
    assert line["when"].endswith("+00:00") and "@" in line["who"]
    assert line | {"when": "", "who": ""} == {
        "when": "", "who": "", "action": "release", "from": "2026-W46", "to": "2026-W47",
        "why": "accepts 71 % (before 69 %)", "run": "2026-W47", "digest": bundle.digest,
    }  # fmt: skip
    assert in_service(releases) == "2026-W47"
    assert sorted(os.listdir(releases)) == ["2026-W46", "2026-W47", "current", LOG]


def test_nothing_is_in_service_after_a_withdrawal_until_the_next_release(tmp_path: Path) -> None:
    releases = draw_releases(tmp_path, "a", "b")
    switch(releases, None, "withdraw", "not certified")
    assert in_service(releases) is None and predecessors(history(releases)) == ["b", "a"]
    switch(releases, "a", "switch", "by hand")
    assert lines(releases) == [(None, "a"), ("a", "b"), ("b", None), (None, "a")]


STEPS = ["write_whole", "put_into_service", "_to_disk", "_add", "unlink"]


def test_a_bundle_that_a_person_took_out_is_known_until_it_is_put_back(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    digests = {name: draw_bundle(releases / name).digest for name in ("a", "b", "c")}

    def out(name: str) -> str | None:
        found = taken_out(history(releases), digests[name])
        return found.action if found else None

    for name in ("a", "b"):
        switch(releases, name, "release", "better")
    assert out("a") is None and out("b") is None and out("c") is None
    switch(releases, "a", "rollback", "confuses boots")
    assert out("a") is None and out("b") == "rollback"
    switch(releases, "c", "release", "better")
    assert out("b") == "rollback" and out("a") is None
    switch(releases, "b", "switch", "by hand")
    assert out("b") is None and out("c") == "switch"
    switch(releases, None, "withdraw", "labels mixed up")
    assert out("b") == "withdraw"


def die_before(step: str, patch: pytest.MonkeyPatch) -> None:
    """Lets the next switch die before a step."""

    def dies(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    unlink = Path.unlink
    if step == "unlink":  # of switch.json, the last step
        patch.setattr(
            Path,
            "unlink",
            lambda path, **options: dies() if path.name == "switch.json" else unlink(path, **options),
        )
    else:
        patch.setattr(release_log, step, dies)


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_switch_that_dies_before_any_step_is_completed_or_dropped_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, torn: bool
) -> None:
    releases = draw_releases(tmp_path, "a", "b")
    draw_bundle(releases / "c")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_before(step, patch)
        switch(releases, "c", "release", "better")
    if torn and step == "_add":  # it died as it wrote the line
        with open(releases / LOG, "ab") as log:
            log.write((releases / "switch.json").read_bytes()[:40])
    made = step in ("_to_disk", "_add", "unlink")
    assert in_service(releases) == ("c" if made else "b") == history(releases)[-1].to
    switch(releases, "a", "rollback", "back")
    expected = [(None, "a"), ("a", "b"), *([("b", "c"), ("c", "a")] if made else [("b", "a")])]
    assert lines(releases) == expected == [(one.before, one.to) for one in history(releases)]
    assert [one.why for one in history(releases)][2:] == (["better"] if made else []) + ["back"]
    assert "switch.json" not in os.listdir(releases)


def test_a_link_set_by_hand_is_found(tmp_path: Path) -> None:
    releases = draw_releases(tmp_path, "a", "b")
    put_into_service(releases, "a")
    found = history(releases)[-1]
    assert (found.action, found.before, found.to, found.who) == ("found", "b", "a", None)
    assert lines(releases) == [(None, "a"), ("a", "b")], "reading writes nothing"
    switch(releases, "b", "switch", "by hand")
    assert lines(releases) == [(None, "a"), ("a", "b"), ("b", "a"), ("a", "b")]


def test_a_workspace_of_a_version_without_a_log_begins_one_with_what_it_finds(tmp_path: Path) -> None:
    for name in ("2026-W45", "2026-W46", "2026-W47"):
        draw_bundle(tmp_path / "releases" / name)
    put_into_service(tmp_path / "releases", "2026-W46")
    switches = history(tmp_path / "releases")
    assert [(one.action, one.to) for one in switches] == [("found", "2026-W46")]
    assert predecessor(switches) is None
    assert newest_first(tmp_path / "releases", switches) == ["2026-W46", "2026-W47", "2026-W45"]


def test_lines_that_cannot_be_read_are_left_out_with_a_warning_and_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    releases = draw_releases(tmp_path, "a", "b")
    text = (releases / LOG).read_bytes()
    (releases / LOG).write_bytes(b"not a line\n" + text.removesuffix(b"\n"))  # an editor's, without its end
    assert [one.to for one in history(releases)] == ["a", "b"]
    assert "line 1 cannot be read; it is left out" in caplog.text
    switch(releases, "a", "rollback", "back")
    assert (releases / LOG).read_bytes().startswith(b"not a line\n" + text)
    assert [one.to for one in history(releases)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ("release a, release b, release c", ["b", "a"]),
        ("release a, release b, release c, rollback b", ["a"]),
        ("release a, release b, release c, rollback b, rollback a", []),
        ("release a, release b, release c, rollback b, switch c", ["b", "a"]),
        ("release a, release b, release c, rollback b, release d", ["b", "a"]),
        ("release a, release b, switch a", ["b"]),
        ("release a, release b, withdraw -", ["b", "a"]),
        ("release a, release b, withdraw -, rollback b", ["a"]),
        ("release a, release b, rollback a, rollback b", ["a"]),
    ],
)
def test_the_predecessor_is_what_served_before_the_release_in_service_was_put_there(
    actions: str, expected: list[str]
) -> None:
    switches, before = [], None
    for number, (action, to) in enumerate(text.split() for text in actions.split(", ")):
        to = None if to == "-" else to
        when = f"2026-11-{28 - number}T02:00:00+00:00"  # a clock that goes back changes nothing
        values = {"when": when, "who": "x", "action": action, "from": before, "to": to, "why": ""}
        switches.append(Switch.model_validate(values))
        before = to
    assert predecessors(switches) == expected
    assert predecessor(switches) == (expected or [None])[0]


SWITCHING = """
import itertools, sys
from pathlib import Path
from features.storage.artifact import open_artifact
from pipeline.job.release_log import switch
from pipeline.release.switch import link_bundle, releases_locked
workspace = Path(sys.argv[1])
releases, bundle = workspace / "releases", open_artifact(workspace / "runs" / "r" / "bundle", "bundle")
for number in itertools.count(int(sys.argv[2])):
    with releases_locked(releases):
        new = link_bundle(bundle, f"{'cd'[number % 2]}{number}", releases).name
        switch(releases, new if number % 3 else "a", "switch", str(number))
    print("ready", flush=True)
"""


def test_killed_at_random_moments_it_leaves_one_whole_release_in_service_and_a_whole_log(
    tmp_path: Path,
) -> None:
    releases = draw_releases(tmp_path, "a", "b")
    draw_bundle(tmp_path / "runs" / "r" / "bundle")
    moments = random.Random(18)
    for kill in range(8):
        command = [sys.executable, "-c", SWITCHING, str(tmp_path), str(kill * 100_000)]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert job.stdout and job.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.0, 0.1))
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        job.stdout.close()
        name = in_service(releases)
        assert name and find_artifact(releases / name), "current is whole"
        assert all(find_artifact(releases / name) for name in release_names(releases))
        switches = history(releases)
        assert switches[-1].to == name
        assert [one.before for one in switches[1:]] == [one.to for one in switches[:-1]]
        assert "found" not in {one.action for one in switches}, "nothing was switched without its line"
    assert len(switches) >= 10, "each job switched before it was killed"


def test_on_an_object_store_the_log_is_the_same(tmp_path: Path) -> None:
    draw_releases(tmp_path / "W", "a", "b")
    with object_store() as bucket:
        releases = any_path(bucket) / "W" / "releases"
        copy_tree(
            tmp_path / "W" / "releases", releases
        )  # without links, as `aws s3 sync --no-follow-symlinks`
        put_into_service(releases, "b")
        switch(releases, "a", "rollback", "back")
        switch(releases, None, "withdraw", "out")
        assert in_service(releases) is None
        put_into_service(releases, "b")
        switches = [(one.action, one.before, one.to) for one in history(releases)]
        assert switches == [
            ("release", None, "a"), ("release", "a", "b"), ("rollback", "b", "a"), ("withdraw", "a", None),
            ("found", None, "b"),
        ]  # fmt: skip
        assert read_range(releases / LOG).count(b"\n") == 4
