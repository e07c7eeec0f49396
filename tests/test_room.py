"""Room: what is free on disks and in memory, and what becomes of work that needs more."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from features.errors import ShelfmarkError
from features.storage.paths import Remote
from pipeline.job import room
from pipeline.job.room import free_disk, free_memory, require_disk, warn_of_disk, warn_of_memory

GB = 10**9


def test_free_is_what_the_system_says_also_for_a_directory_to_come(tmp_path):
    there = shutil.disk_usage(tmp_path).free
    assert abs(free_disk(tmp_path / "not" / "yet") - there) < 10**8
    assert free_disk(Remote("s3://bucket/shop")) is None


def test_a_disk_that_says_nothing_refuses_nothing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, 0))
    assert free_disk(tmp_path) is None
    require_disk("extract", tmp_path, 10**18)


def test_work_that_cannot_fit_is_refused_in_one_line(tmp_path):
    with pytest.raises(ShelfmarkError) as error:
        require_disk("extract", tmp_path / "store", 10**18)
    assert str(error.value).startswith("extract: ")
    assert f"free for {tmp_path / 'store'}; expected at least 1,000,000,000.0 GB" in str(error.value)
    assert "\n" not in str(error.value)
    require_disk("extract", tmp_path, 1)


def test_work_that_may_not_fit_is_a_warning(tmp_path, caplog):
    warn_of_disk("ingest", tmp_path, 1)
    assert not caplog.messages
    warn_of_disk("ingest", tmp_path, 10**18)
    assert "ingest: may write up to 1,000,000,000.0 GB" in caplog.text


def test_memory_that_does_not_suffice_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(room, "free_memory", lambda: GB)
    monkeypatch.setattr(room, "resident", lambda: GB // 2)
    warn_of_memory("train", 3 * GB // 2, "lower train.memory_gb")
    assert not caplog.messages
    warn_of_memory("train", 2 * GB, "lower train.memory_gb")
    assert "train: needs about 2.0 GB of memory, and 1.5 GB are free" in caplog.text
    assert caplog.text.strip().endswith("lower train.memory_gb")


# Memory as containers limit it


def drawn(root: Path, groups: str, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000 kB\n", "proc/self/cgroup": groups} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: str, used: int, cache: int) -> dict[str, str]:
    """A group of version 2."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": str(used),
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cache}\n",
    }


def test_without_groups_the_computer_counts(tmp_path):
    assert free_memory(drawn(tmp_path, "", {})) == 8000 * 1024
    assert free_memory(drawn(tmp_path, "0::/\n", group("sys/fs/cgroup", "max\n", 1, 0))) == 8000 * 1024


def test_a_container_of_version_2_has_its_limit_at_the_top(tmp_path):
    files = group("sys/fs/cgroup", "1000000\n", 400_000, 50_000)
    assert free_memory(drawn(tmp_path, "0::/\n", files)) == 650_000
    assert free_memory(drawn(tmp_path, "0::/not/in/here\n", files)) == 650_000


def test_the_tightest_group_above_counts(tmp_path):
    files = group("sys/fs/cgroup/a", "900000", 800_000, 0) | group("sys/fs/cgroup/a/b", "5000000", 1000, 0)
    assert free_memory(drawn(tmp_path, "0::/a/b\n", files)) == 100_000


def test_version_1_is_read_too(tmp_path):
    folder = "sys/fs/cgroup/memory/docker/x"
    files = {
        f"{folder}/memory.limit_in_bytes": "1000000",
        f"{folder}/memory.usage_in_bytes": "400000",
        f"{folder}/memory.stat": "cache 7\ntotal_inactive_file 50000\n",
    }
    groups = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n"
    assert free_memory(drawn(tmp_path, groups, files)) == 650_000
    unlimited = files | {f"{folder}/memory.limit_in_bytes": "9223372036854771712"}
    assert free_memory(drawn(tmp_path, groups, unlimited)) == 8000 * 1024


def test_more_used_than_allowed_is_nothing_free(tmp_path):
    files = group("sys/fs/cgroup", "1000", 5000, 0)
    assert free_memory(drawn(tmp_path, "0::/\n", files)) == 0


def test_nothing_known_is_no_number(tmp_path):
    assert free_memory(tmp_path) is None


def test_this_computer_has_some():
    assert free_memory() > 10**7
