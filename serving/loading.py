"""Opens the release in service while the server already responds: in a thread, with its outcome in the state.

decode processes start ─┐
bundle ─► engines, warm ┴─► Room ─► corrections ─► state.ready ─► ReleaseWatcher
   └─► error: the server ends, and with it the command

The thread has a lower priority than the one that responds, and so have the threads and processes that it
starts, which decode and compute. Where all cores are busy, half of the refusals for a full queue then come
within 2 ms instead of 6.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from features.memory import keep_objects
from features.printable import escaped
from features.storage.paths import AnyPath
from serving.metrics import Metrics
from serving.state import ServiceState

if TYPE_CHECKING:
    from models.corrections.store import Corrections
    from models.decisions.bundle import Bundle
    from serving.watcher import ReleaseWatcher

NICENESS = 5  # of all but the thread that responds; at 10, overload leaves too little to those who compute

log = logging.getLogger("shelfmark")


class Loading:
    """The release of one service, from its opening to its end."""

    def __init__(
        self,
        workspace: AnyPath,
        release: str,
        database: str | None,
        state: ServiceState,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        """Opens nothing yet.

        Args:
            workspace: with the release.
            release: its name.
            database: of corrections; None: that of the release's settings, else a file in the workspace.
            state: gets what was opened.
            metrics: are called with what the room does.
            timeout_s: of requests.
        """
        self._workspace, self._release, self._database = workspace, release, database
        self._state, self._metrics, self._timeout_s = state, metrics, timeout_s
        self.corrections: Corrections | None = None
        self._watcher: ReleaseWatcher | None = None
        self.error: BaseException | None = None  # why it could not be opened

    def start(self, at: str, failed: Callable[[], None]) -> None:
        """Begins.

        Args:
            at: where the service is, for the log.
            failed: is called, in the thread, after an error.
        """
        threading.Thread(target=self._run, args=(at, failed), name="loading", daemon=True).start()

    def close(self) -> None:
        """Ends what was opened."""
        if self._watcher:
            self._watcher.stop()
        if self._state.corrections:
            self._state.corrections.close()
        if self._state.room:
            self._state.room.close()
        if self.corrections:
            self.corrections.close()

    def _run(self, at: str, failed: Callable[[], None]) -> None:
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), usual + NICENESS)
        try:
            self._open(at)
        except BaseException as error:
            self.error = error
            failed()

    def _open(self, at: str) -> None:
        from models.decisions.bundle import open_bundle
        from serving.corrections import CorrectionService
        from serving.room import Room, RoomLimits
        from serving.served import Served
        from serving.watcher import ReleaseWatcher

        limits = RoomLimits(seconds=self._timeout_s)
        processes = limits.started()  # while the release is opened
        try:
            bundle = open_bundle(self._workspace / "releases" / self._release)
            self.corrections = self._open_store(bundle)
            served = Served.of(bundle, self.corrections, store=self._workspace / "store")
        except BaseException:
            for process in processes:
                process.close()
            raise
        state, room = self._state, Room(served, limits, self._metrics, processes)
        state.corrections = CorrectionService(room, self.corrections, self._workspace, self._timeout_s)
        self._watcher = ReleaseWatcher(
            self._workspace, room, state, self.corrections, switched=state.corrections.switched
        )
        keep_objects()
        state.room, state.ready = room, True
        self._watcher.start()
        for caveat in bundle.caveats:
            log.warning("%s: %s", escaped(self._release), caveat)
        log.info("%s is served at %s", escaped(self._release), at)

    def _open_store(self, bundle: "Bundle") -> "Corrections | None":
        from models.decisions.releases import settings_of_run
        from serving.corrections import open_store

        database = self._database or settings_of_run(self._workspace, self._release, "sellers").get(
            "database"
        )
        store = open_store(self._workspace, str(database or "") or None, bundle.adapter is not None)
        if bundle.adapter and store is None:
            log.warning(
                "%s: sellers' corrections do not count; expected a workspace on a disk that may be "
                "written to, or a database; give --corrections", self._release,
            )  # fmt: skip
        return store
