"""Clean: what no kept run needs goes, whatever a run or a job needs stays."""

import datetime
import json
import os
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_releases import draw_bundle
from object_store import object_store
from test_store import digests, rows_of

from features.errors import ShelfmarkError
from features.storage.artifact import begin, find_artifact, partial_of, seal
from features.storage.paths import any_path, copy_tree, sizes, write_whole
from features.storage.store import Store
from features.views import FLIP
from pipeline.cli import main
from pipeline.job.config import Config, RetentionSettings
from pipeline.job.lock import only_job
from pipeline.job.release_log import switch
from pipeline.job.run import Run
from pipeline.job.summaries import BottlenecksSummary
from pipeline.release.clean import clean, clean_after
from pipeline.release.switch import link_bundle, roll_back

FINGERPRINT = "colours-8"


def age(workspace, days=3.0, only=""):
    """Makes the files of the workspace so old."""
    then = time.time() - days * 86_400
    for folder, _, names in os.walk(workspace):
        for name in names:
            if only in f"{folder}/{name}":
                os.utime(Path(folder, name), (then, then), follow_symlinks=False)


def add_shard(workspace, letters, fingerprint=FINGERPRINT, flip=False):
    store = Store(workspace / "store" / fingerprint)
    store = store.view(FLIP) if flip else store
    return store.append(digests(*letters), rows_of(letters), "drawn")


def add_run(workspace, name, shards, flip=(), fingerprint=FINGERPRINT, images="", based_on=None, days=3.0):
    """A run with finished bottlenecks in these shards; with images it has records, and no bottlenecks."""
    path = workspace / "runs" / name
    kind = "records" if images else "bottlenecks"
    work = begin(partial_of(path / kind), {})
    if images:
        held = pa.table({"image_digest": [digest.tobytes().hex() for digest in digests(*images)]})
        pq.write_table(held, work / "images.parquet")
    else:
        columns = {"shard": shards} | ({"flip_shard": flip} if flip else {})
        pq.write_table(pa.table(columns), work / "index.parquet")
    summary = BottlenecksSummary(
        images=len(shards),
        fingerprint=fingerprint,
        backbone="colours",
        weights="none",
        engines={},
        views=2 if flip else 1,
    )
    seal(path / kind, kind=kind, version=1, made_from={}, summary=summary.to_dict())
    write_whole(path / "config.json", json.dumps({"based_on": based_on}).encode())
    age(path, days)


def shards(workspace, fingerprint=FINGERPRINT):
    return Store(workspace / "store" / fingerprint).shards()


def cleaned(workspace, keep=None, older=1.0, dry_run=False, **more):
    """What went."""
    settings = RetentionSettings(runs=keep, store_days=older, **more)
    return [one.what for one in clean(workspace, settings, dry_run=dry_run)]


def put_into_service(workspace, release):
    write_whole(workspace / "releases" / release / "manifest.json", b"{}")
    (workspace / "releases" / "current").unlink(missing_ok=True)
    (workspace / "releases" / "current").symlink_to(release)


# Shards


def test_shards_that_no_run_refers_to_go_and_all_others_stay(tmp_path):
    used, too, lost = (add_shard(tmp_path, letters) for letters in ("abc", "de", "fg"))
    other = add_shard(tmp_path, "h", "other-9")
    mirrored, stray = (add_shard(tmp_path, letters, flip=True) for letters in ("abc", "de"))
    add_run(tmp_path, "one", [used, used], flip=[mirrored, mirrored])
    add_run(tmp_path, "two", [too])
    age(tmp_path)
    before = sizes(tmp_path)
    found = clean(tmp_path, RetentionSettings())
    assert [one.what for one in found] == [
        "store/colours-8: 1 of 3 shards",
        "store/colours-8/flip: 1 of 2 shards",
        "store/other-9: 1 of 1 shards",
    ]
    gone = {"store/colours-8/" + lost, "store/colours-8/flip/" + stray, "store/other-9/" + other}
    wanted = {f"{name}{suffix}" for name in gone for suffix in (".npy", ".parquet")}
    assert before.keys() - sizes(tmp_path).keys() == wanted
    assert sum(one.size for one in found) == sum(before[name] for name in wanted)
    assert shards(tmp_path) == sorted([used, too])
    assert not (tmp_path / "store" / "other-9").exists(), "no empty directory stays"
    assert cleaned(tmp_path) == []


def test_young_shards_stay_for_a_job_may_be_about_to_refer_to_them(tmp_path):
    add_run(tmp_path, "one", [])
    young = add_shard(tmp_path, "abc")
    assert cleaned(tmp_path) == [] and shards(tmp_path) == [young]
    age(tmp_path, days=20)
    assert cleaned(tmp_path, older=30) == [] and shards(tmp_path) == [young], "of categorize, for a month"
    assert cleaned(tmp_path, older=10) == ["store/colours-8: 1 of 1 shards"]


def test_a_run_whose_extraction_was_killed_keeps_the_shards_of_its_images(tmp_path):
    done, strange = add_shard(tmp_path, "abc"), add_shard(tmp_path, "xyz")
    add_run(tmp_path, "one", [], images="cdefg")
    age(tmp_path)
    assert cleaned(tmp_path) == ["store/colours-8: 1 of 2 shards"]
    assert shards(tmp_path) == [done] != [strange]


def test_half_a_shard_goes(tmp_path):
    add_run(tmp_path, "one", [])
    (tmp_path / "store" / FINGERPRINT / f"{add_shard(tmp_path, 'abc')}.parquet").unlink()
    age(tmp_path)
    assert cleaned(tmp_path) == ["store/colours-8: 1 of 1 shards"]
    assert not (tmp_path / "store" / FINGERPRINT).exists()


# Leftovers


def test_leftovers_of_jobs_that_do_not_run_go_when_they_are_old(tmp_path):
    add_run(tmp_path, "one", [])
    names = [
        "runs/one/head.partial/made_from.json", "runs/one/head.partial/_plan/piece", "runs/one/a.tmp",
        "releases/two.partial/head.json", "store/colours-8/1234.npy.tmp", "d.parquet.partial/look",
        "d.parquet.fetched/any/1.bin", "runs/one/records.fetched/any/1.bin",
    ]  # fmt: skip
    before = sizes(tmp_path).keys()
    for name in names:
        write_whole(tmp_path / name, b"left")
    assert cleaned(tmp_path) == []
    for only in ("partial", "fetched", "tmp"):
        age(tmp_path, only=only)
    write_whole(tmp_path / "runs" / "one" / "head.partial" / "young", b"")
    gone = [
        "d.parquet.fetched", "d.parquet.partial", "releases/two.partial", "runs/one/a.tmp",
        "runs/one/records.fetched", "store/colours-8/1234.npy.tmp",
    ]  # fmt: skip
    assert cleaned(tmp_path) == gone
    (tmp_path / "runs" / "one" / "head.partial" / "young").unlink()
    assert cleaned(tmp_path) == ["runs/one/head.partial"]
    assert not [name for name in names if (tmp_path / name).exists()]
    assert sizes(tmp_path).keys() == before | {"runs/one/.lock"}, "nor a lock of its own"


def test_what_a_running_job_works_on_stays(tmp_path):
    shard = add_shard(tmp_path, "abc")
    add_run(tmp_path, "one", [shard])
    add_run(tmp_path, "two", [])
    for name in (
        "runs/one/head.partial/a",
        "runs/one/b.tmp",
        "d.parquet.partial/look",
        "d.parquet.fetched/1",
    ):
        write_whole(tmp_path / name, b"at work")
    age(tmp_path)
    before = sizes(tmp_path)
    with only_job(tmp_path / "runs" / "one"), only_job(tmp_path / "d.parquet.lock"):
        assert cleaned(tmp_path, keep=1) == []
    after = sizes(tmp_path)
    assert {name: after[name] for name in before if "two" not in name} == {
        name: size for name, size in before.items() if "two" not in name
    }


# Runs


def test_only_the_newest_runs_stay_and_the_store_follows(tmp_path):
    names = ["2026-W01", "2026-W02", "trial", "2026-W03"]
    of_run = {name: add_shard(tmp_path, letters) for name, letters in zip(names, "abcd", strict=True)}
    for days, name in zip((9, 7, 2, 5), names, strict=True):
        add_run(tmp_path, name, [of_run[name]], days=days)
    age(tmp_path / "store")
    assert cleaned(tmp_path) == []
    assert cleaned(tmp_path, keep=2)[:2] == ["runs/2026-W01", "runs/2026-W02"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["2026-W03", "trial"]
    assert shards(tmp_path) == sorted([of_run["2026-W03"], of_run["trial"]])


def test_the_runs_of_the_release_in_service_and_of_the_one_before_stay(tmp_path):
    for days, name in enumerate(["new", "served", "before", "old", "serve"], start=2):
        add_run(tmp_path, name, [], based_on="before" if name == "served" else None, days=days)
    put_into_service(tmp_path, "served.2")
    assert cleaned(tmp_path, keep=1) == ["runs/old", "runs/serve"]


# All of it


def test_a_dry_run_lists_and_removes_nothing(tmp_path, capsys):
    shard = add_shard(tmp_path, "abc")
    add_run(tmp_path, "one", [], days=9)
    add_run(tmp_path, "two", [shard], days=3)
    add_shard(tmp_path, "d")
    age(tmp_path / "store")
    before = sizes(tmp_path).keys()
    main(["clean", "--workspace", str(tmp_path), "--keep", "1", "--dry-run"])
    said = capsys.readouterr().out
    assert "runs/one: 0.0 MB\nstore/colours-8: 1 of 2 shards: 0.0 MB\n" in said
    assert said.endswith("would be removed; nothing was\n")
    assert sizes(tmp_path).keys() - {"runs/one/.lock", "runs/two/.lock"} == before


def test_what_is_no_workspace_is_refused(tmp_path):
    (tmp_path / "photo.tmp").write_bytes(b"")
    with pytest.raises(ShelfmarkError, match="has no runs; expected a workspace"):
        clean(tmp_path, RetentionSettings(runs=1, store_days=0))


def test_on_an_object_store_it_removes_the_same(tmp_path):
    used, lost = (add_shard(tmp_path / "W", letters) for letters in ("abc", "d"))
    add_run(tmp_path / "W", "one", [used])
    with object_store() as bucket:
        there = any_path(bucket) / "W"
        copy_tree(tmp_path / "W", there)
        write_whole(there / "runs" / "one" / "head" / "made_from.json", b"{}")
        write_whole(there / "releases" / "half" / "head.json", b"{}")
        write_whole(there / "releases" / "whole" / "manifest.json", b"{}")
        before = sizes(there)
        assert cleaned(there) == [], "all of it is young"
        assert cleaned(there, older=0, dry_run=True) == cleaned(there, older=0)
        gone = {f"store/colours-8/{lost}{suffix}" for suffix in (".npy", ".parquet")}
        gone |= {"runs/one/head/made_from.json", "releases/half/head.json"}
        assert before.keys() - sizes(there).keys() == gone


# Retention


def release(workspace, name, days):
    """A release that was put into service so many days ago, with the run it came from."""
    add_run(workspace, name, [], days=days)
    draw_bundle(workspace / "runs" / name / "bundle")
    bundle = find_artifact(workspace / "runs" / name / "bundle")
    link_bundle(bundle, name, workspace / "releases")
    switch(workspace / "releases", name, "release", "better", run=name)
    log = workspace / "releases" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1]["when"] = datetime.datetime.fromtimestamp(time.time() - days * 86_400, datetime.UTC).isoformat()
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    age(workspace / "runs" / name, days)


@pytest.fixture(scope="module")
def _five(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("five") / "W"
    for number, days in enumerate((28, 21, 14, 7, 0), start=1):
        release(workspace, f"W{number}", days)
    return workspace


@pytest.fixture
def five(_five, tmp_path):
    """Five releases, each a week after the one before; W5 is in service, since today."""
    subprocess.run(["cp", "-a", _five, tmp_path / "W"], check=True)  # it keeps times and links
    return tmp_path / "W"


def there(workspace, folder="releases"):
    names = sorted(path.name for path in (workspace / folder).iterdir())
    return [name for name in names if name.startswith("W")]


def test_without_retention_all_runs_and_releases_stay(five):
    assert cleaned(five) == [] and there(five) == there(five, "runs") == ["W1", "W2", "W3", "W4", "W5"]


@pytest.mark.parametrize(
    ("settings", "releases", "runs"),
    [
        ({"releases": 3}, "W3 W4 W5", "W1 W2 W3 W4 W5"),
        ({"releases": 1}, "W4 W5", "W1 W2 W3 W4 W5"),  # the predecessor stays
        ({"releases_days": 10}, "W3 W4 W5", "W1 W2 W3 W4 W5"),  # W3 was replaced 7 days ago
        ({"releases": 1, "releases_days": 17}, "W2 W3 W4 W5", "W1 W2 W3 W4 W5"),
        ({"keep": 1}, "W1 W2 W3 W4 W5", "W4 W5"),
        ({"runs_days": 15}, "W1 W2 W3 W4 W5", "W3 W4 W5"),
        ({"keep": 1, "runs_days": 22, "releases": 2}, "W4 W5", "W2 W3 W4 W5"),
    ],
)
def test_runs_and_releases_go_by_number_and_age(five, settings, releases, runs):
    cleaned(five, **settings)
    assert (there(five), there(five, "runs")) == (releases.split(), runs.split())


def test_the_releases_that_a_rollback_can_lead_to_and_that_runs_are_based_on_stay(five):
    roll_back(five, "W3", None, None)
    add_run(five, "W6", [], based_on="W1", days=0)
    cleaned(five, keep=1, releases=1)
    # in service, its predecessor, the one that was rolled back, the one that W6 is based on
    assert there(five) == ["W1", "W2", "W3", "W5"]
    assert there(five, "runs") == ["W2", "W3", "W6"]
    assert roll_back(five, None, None, None).to == "W2"


def test_while_a_release_is_switched_all_of_them_stay(five, caplog):
    with only_job(five / "releases"):
        assert cleaned(five, releases=1) == []
    assert "releases are being switched; all of them stay this time" in caplog.text
    assert cleaned(five, releases=1) == ["releases/W3", "releases/W2", "releases/W1"]


def test_a_file_with_two_names_is_free_when_the_last_one_goes(five):
    """A bundle is in its run and in the release, but on the disk once."""
    size = sum(file.stat().st_size for file in (five / "runs" / "W1" / "bundle").iterdir())
    bundles = {}
    for names in (("runs",), ("releases",), ("runs", "releases")):
        removals = clean(five, RetentionSettings(**dict.fromkeys(names, 1)), dry_run=True)
        bundles[names] = [one.size for one in removals if "W1" in one.what]
    rest = sum(file.stat().st_size for file in (five / "runs" / "W1").rglob("*") if file.is_file()) - size
    assert bundles == {("runs",): [rest], ("releases",): [0], ("runs", "releases"): [0, rest + size]}
    before = subprocess.run(["du", "-sb", five], capture_output=True, text=True, check=True).stdout
    removed = clean(five, RetentionSettings(runs=1, releases=1))
    after = subprocess.run(["du", "-sb", five], capture_output=True, text=True, check=True).stdout
    folders = 3 * 4 * 4096 + 3 * 4096  # du counts them, too
    freed = int(before.split()[0]) - int(after.split()[0])
    assert 0 <= freed - sum(one.size for one in removed) <= folders


def test_decisions_in_the_workspace_go_by_number_and_age_with_all_that_belongs_to_them(tmp_path):
    add_run(tmp_path, "one", [])
    outputs = {
        "W1": ["W1.parquet", "W1.rejects.parquet", "W1.statistics.json"],
        "W2": ["W2.csv.gz", "W2.statistics.json"],
        "W3": ["W3/part-00000.parquet", "W3/manifest.json", "W3.rejects.parquet"],
        "W4": ["W4.jsonl"],
    }
    for days, names in zip((28, 21, 14, 7), outputs.values(), strict=True):
        for name in names:
            write_whole(tmp_path / "decisions" / name, b"x")
            age(tmp_path / "decisions", days, only=name)
    for name in ("README.txt", "W9.parquet.partial/part"):
        write_whole(tmp_path / "decisions" / name, b"x")
    assert cleaned(tmp_path) == []
    assert cleaned(tmp_path, decisions=3, decisions_days=10) == ["decisions/W1"]
    assert cleaned(tmp_path, decisions_days=20) == ["decisions/W2"]
    assert cleaned(tmp_path, decisions=1) == ["decisions/W3"]
    assert sizes(tmp_path / "decisions").keys() == {"README.txt", "W4.jsonl", "W9.parquet.partial/part"}


def test_empty_locks_old_logs_and_working_files_of_categorize_go(tmp_path):
    add_run(tmp_path, "one", [])
    for run in ("refused", "running"):
        write_whole(tmp_path / "runs" / run / ".lock", b"")
    for name in (
        "d.csv.lock/.lock",
        "categorize/0123/.lock",
        "categorize/4567/.lock",
        "categorize/89ab/.lock",
    ):
        write_whole(tmp_path / name, b"")
    for name in ("categorize/0123/made_from.json", "categorize/4567/unit", "logs/a.log", "logs/b.log"):
        write_whole(tmp_path / name, b"x")
    age(tmp_path / "categorize" / "0123")
    age(tmp_path / "logs", 40, only="a.log")
    write_whole(tmp_path / "categorize" / "cdef" / "unit", b"x")
    age(tmp_path / "categorize" / "cdef")
    before = sizes(tmp_path)
    with only_job(tmp_path / "runs" / "running"), only_job(tmp_path / "categorize" / "cdef"):
        listed = cleaned(tmp_path, dry_run=True)
        assert sizes(tmp_path).keys() - {"categorize/cdef/.lock", "runs/one/.lock"} == before.keys()
        assert cleaned(tmp_path) == listed == [
            "runs/refused", "logs: 1 of 2", "categorize/0123", "categorize/89ab", "d.csv.lock",
        ]  # fmt: skip
    assert not any((tmp_path / name).exists() for name in ("runs/refused", "categorize/0123", "d.csv.lock"))
    assert (tmp_path / "categorize" / "4567" / "unit").exists(), "it is young"
    assert (tmp_path / "categorize" / "cdef" / "unit").exists(), "a job is at work there"


def test_retrain_cleans_at_its_end_where_the_settings_say_so(five, caplog):
    caplog.set_level("INFO", "shelfmark")
    for asked in (False, True):
        config = Config.model_validate({"retention": {"clean": asked, "runs": 1, "releases": 1}})
        with only_job(five / "runs" / "W1"):  # of the run itself, which stays
            removals = clean_after(Run(five, "W1", config, None))
        assert bool(removals) == asked
    assert there(five, "runs") == ["W1", "W4", "W5"] and there(five) == ["W4", "W5"]
    assert "clean: releases/W3, releases/W2, releases/W1, runs/W2, runs/W3 removed" in caplog.text
    broken = five / "runs" / "W5" / "config.json"
    broken.write_text("{")
    assert clean_after(Run(five, "W1", config, None)) == []
    assert "clean: " in caplog.text and "not the settings of a run" in caplog.text


def test_options_go_over_settings(five, capsys):
    (five / "weekly.toml").write_text("[retention]\nruns = 1\nreleases = 3\n")
    arguments = ["clean", "--workspace", str(five), "--config", str(five / "weekly.toml"), "--dry-run"]
    main([*arguments])
    assert "runs/W3" in capsys.readouterr().out
    main([*arguments, "--keep", "4", "--set", "retention.releases=4"])
    printed = capsys.readouterr().out
    assert "runs/W1" in printed and "runs/W2" not in printed
    assert "releases/W1" in printed and "releases/W2" not in printed
