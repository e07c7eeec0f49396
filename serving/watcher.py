"""The watcher: when releases/current moves, the new release is opened beside the old one and takes over.

    releases/current ──► moved? ──► opened, checked and warm, in a thread of its own
                                      ├─ cannot be used ──► refused: log, /readyz, /metrics; the old one stays
                                      ├─ nothing, after `withdraw` ──► log, /readyz; the old one stays
                                      ├─ moved on meanwhile ──► dropped, the next one is opened
                                      └─ takes over between two batches ──► the old one's memory is given back

Requests in flight keep the release that they began with. What is in service is in memory: its directory may
be removed. A refused release is tried again when its files change, and every minute; the log says it once.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from features.errors import ShelfmarkError, one_line
from features.memory import give_back, keep_objects
from features.printable import escaped
from features.storage.artifact import find_artifact
from features.storage.paths import AnyPath, stats
from models.decisions.bundle import open_bundle
from models.decisions.releases import in_service, require_whole
from serving.served import Served

if TYPE_CHECKING:
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second
    from serving.room import Room
    from serving.state import ServiceState

POLL_S = 1.0  # between two looks at releases/current on a disk: two small files
REMOTE_POLL_S = 15.0  # on an object store: some requests
RETRY_S = 60.0  # after which a refused release is tried again
FREED_S = 120.0  # within which requests in flight end, and with them the use of a former release

NOTHING = (
    "releases/current is not there; expected it to name a release; put one into service by "
    "`shelfmark release` or `shelfmark rollback`, or end the service"
)

T = TypeVar("T")

log = logging.getLogger("shelfmark")


@dataclass(frozen=True)
class _Seen:
    """What releases/current leads to."""

    name: str | None  # None: nothing is to be in service
    digest: str | None  # of the bundle; None where files are missing or resized
    problem: str | None = None  # why it cannot be read
    files: tuple[tuple[str, object], ...] = ()  # of what is not in service: name, and what a change changes


class ReleaseWatcher:
    """Keeps the release that is in service the one that releases/current names."""

    def __init__(
        self,
        workspace: AnyPath,
        room: "Room",
        state: "ServiceState",
        corrections: "Corrections | None",
        poll_s: float | None = None,
        switched: Callable[[Served], None] = lambda _: None,
    ) -> None:
        """Looks at nothing yet.

        Args:
            workspace: with releases/.
            room: whose release it is.
            state: that says which release was refused.
            corrections: of sellers, for the releases to come.
            poll_s: between two looks; None: POLL_S on a disk, REMOTE_POLL_S on an object store.
            switched: called with a release that has taken over.
        """
        self._releases, self._room, self._state = workspace / "releases", room, state
        self._corrections, self._switched = corrections, switched
        self._poll_s = poll_s or (POLL_S if isinstance(workspace, Path) else REMOTE_POLL_S)
        self._backbone = _backbone_files(self._releases / room.served.name)
        self._old: list[tuple[weakref.ref[Served], float]] = []  # former releases, and since when
        self._refused: _Seen | None = None
        self._tried = 0.0  # when the refused one was tried
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="releases", daemon=True)

    def start(self) -> None:
        """Begins to look, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a release that is being opened does not take over any more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.look()
                self.tidy()
            except Exception:
                log.exception("releases: the watcher has failed; expected to go on; it looks again")

    def look(self) -> None:
        """Looks at releases/current once, and switches where it has moved."""
        while not self._stopped.is_set():
            seen = self._see()
            if self._is_settled(seen):
                return
            began = time.monotonic()
            opened = self._open_or_refuse(seen)
            now = self._see()
            if (now.name, now.digest) != (seen.name, seen.digest):
                continue  # it moved on meanwhile
            if opened and not self._stopped.is_set():
                self._take_over(opened, time.monotonic() - began)
            return

    def tidy(self) -> None:
        """Gives memory back to the system when nothing uses a former release any more."""
        for old, since in [*self._old]:
            if old() is None or time.monotonic() - since > FREED_S:
                self._old.remove((old, since))
                keep_objects()
                give_back()

    def _is_settled(self, seen: _Seen) -> bool:
        """Whether nothing is to be done: it is in service, or was refused a short while ago."""
        served = self._room.served
        if (seen.name, seen.digest) == (served.name, served.bundle.digest):
            if self._state.refused_release:
                log.info("%s stays in service, as releases/current says", escaped(served.name))
            self._state.refused_release = self._refused = None
            return True
        return seen == self._refused and time.monotonic() - self._tried < RETRY_S

    def _see(self) -> _Seen:
        """Returns what is to be in service, from a few small files."""
        try:
            name = in_service(self._releases)
        except (ShelfmarkError, OSError) as error:
            return _Seen("current", None, one_line(error))
        if name is None:
            return _Seen(None, None, NOTHING)
        path = self._releases / name
        try:
            digest = require_whole(self._releases, name).digest
        except (ShelfmarkError, OSError) as error:
            return _Seen(name, None, one_line(error), _versions(path))
        served = self._room.served
        is_served = (name, digest) == (served.name, served.bundle.digest)
        return _Seen(name, digest, files=() if is_served else _versions(path))

    # The new one

    def _open_or_refuse(self, seen: _Seen) -> Served | None:
        """Opens a release; None where it cannot be used."""
        if seen.problem:
            self._refuse(seen, seen.problem)
            return None
        try:
            return self._opened(self._releases / str(seen.name), self._room.served)
        except Exception as error:
            log.debug("%s", seen.name, exc_info=error)
            self._refuse(seen, _reason(error))
            return None

    def _refuse(self, seen: _Seen, reason: str) -> None:
        """Stays with the release in service; says so where it has not been said."""
        if self._see() != seen:
            return
        shown = escaped(reason.replace(str(self._releases.parent), "the workspace"))
        refused = seen.name and escaped(seen.name), shown
        if self._state.refused_release != refused:
            self._say(*refused, escaped(reason))
        self._state.refused_release = refused
        self._refused, self._tried = seen, time.monotonic()

    def _say(self, name: str | None, _: str, reason: str) -> None:
        served = escaped(self._room.served.name)
        if name is None:
            log.warning("nothing is in service any more; the service goes on with %s: %s", served, reason)
        elif name == served:
            log.error(
                "the files of %s, which is in service, cannot be used any more; the service goes on with "
                "what it has in memory, and could not start again: %s", served, reason,
            )  # fmt: skip
        else:
            log.error("release %s is refused, %s stays in service: %s", name, served, reason)

    def _opened(self, path: AnyPath, before: Served) -> Served:
        """Opens a release in a thread of its own; the same backbone's engines are used again."""
        same = bool(self._backbone) and _backbone_files(path) == self._backbone
        store = self._releases.parent / "store"
        like = before if same else None
        return _in_thread(lambda: Served.of(open_bundle(path), self._corrections, like, store))

    def _take_over(self, served: Served, seconds: float) -> None:
        """Puts an opened release into service."""
        before, name = escaped(self._room.served.name), escaped(served.name)
        self._old.append((weakref.ref(self._room.served), time.monotonic()))
        self._room.take_over(served)
        self._backbone = _backbone_files(self._releases / served.name)
        self._switched(served)
        self._state.refused_release = self._refused = None
        log.info("%s is in service in place of %s, opened in %.1f s", name, before, seconds)
        for caveat in served.bundle.caveats:
            log.warning("%s: %s", name, caveat)


def _in_thread(work: Callable[[], T]) -> T:
    """Does some work in a thread of its own; returns or raises as it."""
    result: list[T | BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, name="opens a release", daemon=True)
    thread.start()
    thread.join()
    [found] = result
    if isinstance(found, BaseException):
        raise found
    return found


def _versions(path: AnyPath) -> tuple[tuple[str, object], ...]:
    """The files of a release: name, and size and times, which other contents of the same size have others."""
    if not isinstance(path, Path):
        with suppress(ShelfmarkError, OSError):
            return tuple(stats(path).items())
        return ()
    found = []
    for file in sorted(path.rglob("*")):
        with suppress(OSError):  # it has gone meanwhile
            state = file.stat()
            found.append((file.name, (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)))
    return tuple(found)


def _backbone_files(path: AnyPath) -> dict[str, str]:
    """The sha256 of the files of a bundle's backbone, by the manifest; none where it is gone."""
    bundle = find_artifact(path)
    files = bundle.files.items() if bundle else ()
    return {name: entry["sha256"] for name, entry in files if name.startswith("backbone.")}


def _reason(error: Exception) -> str:
    """Why a release cannot be used, in three parts."""
    if isinstance(error, ShelfmarkError | OSError):
        return one_line(error)
    message = " ".join(str(error).split())[:300]
    return (
        f"cannot be opened ({type(error).__name__}: {message}); expected a bundle that this shelfmark reads; "
        "put another release into service, or start the service again with --debug and report it"
    )
