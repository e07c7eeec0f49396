"""The log of releases: which bundle was in service when, who put it there, and why.

    releases/log.jsonl     a JSON object a line, in the order of the switches; lines are only added
    releases/switch.json   the line of a switch at work

A switch takes three steps: its line is written into switch.json; releases/current is switched; the line is
added to log.jsonl, and switch.json removed. So the log never says what has not happened. A process that dies
in between leaves switch.json: `history` counts its line as the last one if releases/current is what the line
says, and the next switch adds it; else it is dropped, because that switch was not made. A switch without
shelfmark, such as a link set by hand, is found by the next one, and added with the action "found". Lines
count in their order, not by their time, because clocks may go back.
"""

import getpass
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, read_range, write_whole
from models.decisions.releases import (
    CURRENT,
    in_service,
    put_into_service,
    release_digest,
    release_names,
    take_out_of_service,
)
from pipeline.job.progress import log
from pipeline.job.times import utc

LOG, AT_WORK = "log.jsonl", "switch.json"
Action = Literal["release", "rollback", "switch", "withdraw", "found"]


class Switch(BaseModel):
    """A line of the log: from then on another release, or none, was in service."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True)

    when: str  # ISO 8601, UTC
    who: str | None  # user@host, or what --who gave; null when found
    action: Action  # release: of a run's bundle; switch: of a release that was there
    before: str | None = Field(
        validation_alias=AliasChoices("from", "before"), serialization_alias="from"
    )  # name of the release; null: nothing was in service
    to: str | None  # null: nothing is in service
    why: str
    run: str | None = None  # that made the bundle, where it was released now
    digest: str | None = None  # of the bundle's manifest

    def to_sentence(self) -> str:
        """What was done, in a sentence for people."""
        return f"{self.to or 'nothing'} is in service now, {self.before or 'nothing'} was before: {self.why}"

    def to_line(self) -> bytes:
        """The line, with its end."""
        return (json.dumps(self.model_dump(), ensure_ascii=False) + "\n").encode()


def history(releases: AnyPath) -> list[Switch]:
    """Every switch so far, in their order; also the last one, where it is not in the log yet."""
    written = _written(releases)
    return written + _unwritten(releases, written)


def switch(
    releases: AnyPath,
    to: str | None,
    action: Action,
    why: str,
    *,
    who: str | None = None,
    run: str | None = None,
) -> Switch:
    """Puts a release into service, or takes the one there out of it, and adds the line to the log.

    Args:
        releases: their directory, of which the caller holds the lock.
        to: name of a release that is there; None: nothing is in service.
        action: see `Switch`.
        why: a sentence.
        who: None: user@host.
        run: that made the bundle, where it is released now.
    """
    written = _written(releases)
    for left in _unwritten(releases, written):
        _add(releases / LOG, left)
        written.append(left)
    made = Switch(
        when=utc(), who=who or user_at_host(), action=action, before=written[-1].to if written else None,
        to=to, why=why, run=run, digest=release_digest(releases, to),
    )  # fmt: skip
    write_whole(releases / AT_WORK, made.to_line())
    if to is None:
        take_out_of_service(releases)
    else:
        put_into_service(releases, to)
    _to_disk(releases)
    _add(releases / LOG, made)
    (releases / AT_WORK).unlink(missing_ok=True)
    return made


def taken_out(switches: Sequence[Switch], digest: str) -> Switch | None:
    """The switch by which a person took this bundle out of service, where it was not put back since.

    Args:
        switches: all of them, in their order.
        digest: of the bundle.
    """
    after: Switch | None = None
    for one in reversed(switches):
        if one.digest == digest:
            return after if after and after.action != "release" else None
        after = one
    return None


def predecessor(switches: Sequence[Switch]) -> str | None:
    """The release that served before the one in service was put there; None where there was none.

    After a rollback that is the one before the release that serves now, not the one that was rolled back.
    """
    before = predecessors(switches)
    return before[0] if before else None


def predecessors(switches: Sequence[Switch]) -> list[str]:
    """The releases that a rollback after a rollback leads to, the next one first."""
    stack: list[str | None] = []
    for one in switches:
        if one.action == "rollback" and one.to in stack:
            del stack[stack.index(one.to) + 1 :]
        else:
            stack = [*(name for name in stack if name not in (one.to, None)), one.to]
    return [name for name in reversed(stack[:-1]) if name is not None]


def newest_first(releases: AnyPath, switches: Sequence[Switch]) -> list[str]:
    """The releases that are there, whole or not: the last one put into service first.

    Those that the log does not name, of versions without a log, are last, in the reverse order of their
    names.
    """
    last = {one.to: position for position, one in enumerate(switches)}
    there = sorted(release_names(releases), reverse=True)
    return sorted(there, key=lambda name: -last.get(name, -1))


def user_at_host() -> str:
    """Who runs this process.

    In a container without a name for its user this is the user's number.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _written(releases: AnyPath) -> list[Switch]:
    """The lines of log.jsonl; one that cannot be read is left out, with a warning."""
    file = releases / LOG
    lines = read_range(file).splitlines(keepends=True) if file.is_file() else []
    switches = []
    for number, line in enumerate(lines, start=1):
        try:
            switches.append(Switch.model_validate_json(line))
        except ValidationError:
            if line.endswith(b"\n"):  # else a process died as it wrote: the line is in switch.json
                log.warning("%s: line %d cannot be read; it is left out", file, number)
    return switches


def _unwritten(releases: AnyPath, written: list[Switch]) -> list[Switch]:
    """What the log lacks: a switch whose process died, and one that was made without shelfmark."""
    try:
        now = in_service(releases)
    except ShelfmarkError:
        return []  # releases/current says nothing: the log counts, until a switch replaces it
    missing = []
    at_work = _at_work(releases)
    last = written[-1] if written else None
    if at_work and at_work != last and at_work.to == now:
        missing = [at_work]
        last = at_work
    if now != (last.to if last else None):
        missing.append(_found(releases, last.to if last else None, now))
    return missing


def _at_work(releases: AnyPath) -> Switch | None:
    """The switch in switch.json."""
    try:
        return Switch.model_validate_json(read_range(releases / AT_WORK))
    except (FileNotFoundError, ValidationError):
        return None


def _found(releases: AnyPath, before: str | None, now: str | None) -> Switch:
    """A switch that the log lacks, with the time of releases/current."""
    current = releases / CURRENT
    when = utc()
    if now is not None and (not isinstance(current, Path) or os.path.lexists(current)):
        stat = os.lstat(current) if isinstance(current, Path) else None
        seconds = stat.st_mtime if stat else current.stat().st_mtime_ns / 1e9 if current.is_file() else None
        if seconds is not None:
            when = utc(seconds)
    return Switch(
        when=when, who=None, action="found", before=before, to=now,
        why="made without shelfmark, or before there was a log", digest=release_digest(releases, now),
    )  # fmt: skip


def _add(file: AnyPath, line: Switch) -> None:
    """Adds a line; on the disk at the end of the file, on an object store with the whole file."""
    before = read_range(file) if file.is_file() else b""
    whole = before.rfind(b"\n") + 1  # bytes
    unended = before[whole:]  # a process died as it wrote this line, or an editor left its end out
    added = b"\n" + line.to_line() if unended and _is_line(unended) else line.to_line()
    kept = before if added.startswith(b"\n") else before[:whole]
    if not isinstance(file, Path):
        return write_whole(file, kept + added)
    with open(file, "ab") as log_file:
        log_file.truncate(len(kept))
        log_file.write(added)
        log_file.flush()
        os.fsync(log_file.fileno())
    _to_disk(file.parent)


def _is_line(text: bytes) -> bool:
    try:
        return bool(Switch.model_validate_json(text))
    except ValidationError:
        return False


def _to_disk(folder: AnyPath) -> None:
    """Makes the names in a directory outlive a loss of power."""
    if isinstance(folder, Path):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
