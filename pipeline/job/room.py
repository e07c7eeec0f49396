"""Room: whether disk and memory suffice for the work ahead, said before it, not hours later.

A stage is refused only for what it certainly writes: images that are copied as they are, bottlenecks, copies
of files. What it may write beyond that, and memory, are warnings: memory is estimated from what the
benchmarks measured, and swap may help.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, Remote, absolute
from pipeline.job.memory import resident
from pipeline.job.progress import log

# Peak bytes of all processes, of docs/benchmarks.md: ingest 443 to 460 MB; extraction with Inception v3
# 1,427 MB; training on 2,000,000 images 2.28 GB, of which 0.5 GB are two windows of bottlenecks
INGEST, EXTRACT, TRAIN = 450_000_000, 1_400_000_000, 900_000_000
# Bytes of each further view of extraction, Inception v3 on two cores: batches of pixels, at most four of a
# view, and the bottlenecks of a shard, which are there twice while they are taken apart
EXTRACT_VIEW = 60_000_000
TRAIN_IMAGE = 400  # bytes of an image beside its bottleneck: ids, digests, order
UNLIMITED = 2**60  # bytes: cgroups of version 1 say so with a number above


def require_disk(what: str, folder: AnyPath, certain: int) -> None:
    """Refuses work that certainly needs more than what is free.

    Args:
        what: the stage.
        folder: where it writes; it need not be there.
        certain: bytes that it will write, at least.

    Raises:
        ShelfmarkError: less is free.
    """
    free = free_disk(folder)
    if free is not None and certain > free:
        raise ShelfmarkError(
            f"{what}: {in_words(free)} free for {folder}; expected at least {in_words(certain)}, which it "
            "writes; free some with `shelfmark clean`, or use a larger disk"
        )


def warn_of_disk(what: str, folder: AnyPath, possible: int) -> None:
    """Warns of work that may need more than what is free; `possible` is in bytes."""
    free = free_disk(folder)
    if free is not None and possible > free:
        log.warning(
            "%s: may write up to %s for %s, where %s are free: it ends there if they do not suffice",
            what, in_words(possible), folder, in_words(free),
        )  # fmt: skip


def warn_of_memory(what: str, needed: int, advice: str) -> None:
    """Warns of work that probably needs more memory than there is.

    Args:
        what: the stage.
        needed: bytes of all its processes together, with what they hold already.
        advice: what to do.
    """
    free = free_memory()
    if free is not None and needed - resident() > free:
        log.warning(
            "%s: needs about %s of memory, and %s are free: it may be slow, or be killed; %s",
            what, in_words(needed), in_words(free + resident()), advice,
        )  # fmt: skip


def free_disk(folder: AnyPath) -> int | None:
    """Bytes that this user may write where `folder` is, or will be; None on object stores."""
    if isinstance(folder, Remote):
        return None
    whole = absolute(folder)
    assert isinstance(whole, Path)
    for place in (whole, *whole.parents):
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free if usage.total else None  # some network disks say 0 of 0
    return None


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that processes can still get: of the computer, and within the limits of its groups (cgroups).

    Args:
        root: above proc and sys, for tests.
    """
    found = [free for free in (_of_computer(root), *_of_groups(root)) if free is not None]
    return max(0, min(found)) if found else None


def _of_computer(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_groups(root: Path) -> Iterator[int | None]:
    """What each group leaves that this process is in, and those above it.

    In a container the group's own path may not be there: its limits are then at the top.
    """
    mounted = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names = ("memory.max", "memory.current", "inactive_file")
            top = mounted
            if "memory" in controllers.split(","):  # version 1
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                top = mounted / "memory"
            elif controllers:
                continue
            group = top / path.strip("/")
            while group != top:
                yield _left(group, *names)
                group = group.parent
            yield _left(top, *names)


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    """What a group's limit leaves; pages of files that nobody used lately are given back when needed."""
    with contextlib.suppress(OSError, ValueError):
        text = (group / limit).read_text().strip()
        if text == "max" or int(text) >= UNLIMITED:
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(text) - int((group / used).read_text()) + int(statistics.get(cache, 0))
    return None


def in_words(size: int) -> str:
    """Bytes in words.

    >>> in_words(999_999), in_words(12_345_678), in_words(7_654_000_000)
    ('1.0 MB', '12.3 MB', '7.7 GB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
