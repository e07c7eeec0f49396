"""The server: uvicorn, which ends without losing what it has accepted, and keeps connections within limits.

    SIGTERM, SIGINT ─► draining: /readyz 503, new requests 503 with Retry-After and Connection: close
                    ─► requests that came before are finished, within a limit ─► the address is closed
                    ─► requests that came meanwhile have their 503 ─► the end

The address stays open while requests are finished: whoever is behind a balancer reads from /readyz that this
service goes, and a request that was already under way gets an answer instead of a reset. A second signal ends
everything at once.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.flow_control import CLOSE_HEADER

from features.process import end_at_once
from serving.connection import Connection, ConnectionLimits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from serving.state import ServiceState

CHECK_S = 0.25  # between two looks at the connections' limits
MOST_FILES = 65_536  # open at a time
PASS_S = 0.1  # what is in a socket when draining begins is read within this time
LAST_S = 1.0  # for answers to what came while draining, after the address is closed

DEFAULT_LIMITS = ConnectionLimits()

log = logging.getLogger("shelfmark")


class Server(uvicorn.Server):
    """The service of one app, until a signal."""

    def __init__(
        self,
        app: "ASGIApp",
        state: "ServiceState",
        limits: ConnectionLimits = DEFAULT_LIMITS,
        drain_s: float = 30.0,
        refused: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Listens nowhere yet.

        Args:
            app: responds.
            state: that /readyz and /metrics show, and that knows the room.
            limits: of connections.
            drain_s: for the end of accepted requests after a signal.
            refused: called with the status of each answer that is not the app's.
        """
        protocol: Any = partial(Connection, limits=limits, refused=refused)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=limits.idle_s,  # type: ignore[arg-type]  # seconds for call_later
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._state, self._drain_s = state, drain_s
        self.received: int | None = None  # signal
        self.lost = 0  # accepted requests that were not finished within the limit

    # Connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections, and to look at their limits."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # usually 1,024 files, sockets among them
        if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
            most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        await super().startup(sockets)
        self._checks = asyncio.create_task(self._check_connections())

    async def _check_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_S)
            for connection in self._connections():
                connection.check(loop.time())

    def _connections(self) -> list[Connection]:
        return [one for one in self.server_state.connections if isinstance(one, Connection)]

    # The end

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals from the command, which would end within seconds (features/process.py)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wakeup = signal.set_wakeup_fd(-1)
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN  # as in the background of a shell
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain at the first signal; ends the process at the second."""
        if self.received:
            end_at_once(128 + sig, "ended by a second signal, before all requests were finished")
        self.received = sig
        self._state.draining = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finishes what was accepted, and answers what came meanwhile; see above."""
        self._state.draining = True
        began = time.monotonic()
        accepted = set(self.server_state.tasks)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE_HEADER]
        for connection in self._connections():
            connection.finish()
        await asyncio.sleep(PASS_S)
        for connection in self._connections():
            if connection.idle:
                connection.shutdown()
        await self._finish(accepted, began + self._drain_s)
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        await self._let_close(time.monotonic() + LAST_S)
        await super().shutdown([])
        self._checks.cancel()
        log.info(
            "%s: %d accepted requests were finished in %.1f s",
            signal.Signals(self.received).name if self.received else "stopped",
            len(accepted) - self.lost, time.monotonic() - began,
        )  # fmt: skip

    async def _finish(self, accepted: "set[asyncio.Task[None]]", deadline: float) -> None:
        """Waits until accepted requests have their answers and the room is empty, or the time is over."""
        if accepted:
            _, unfinished = await asyncio.wait(accepted, timeout=deadline - time.monotonic())
            self.lost = len(unfinished)
        if self._state.room:
            await asyncio.to_thread(self._state.room.drain, max(deadline - time.monotonic(), 0))

    async def _let_close(self, deadline: float) -> None:
        while self.server_state.connections and time.monotonic() < deadline:
            for connection in self._connections():
                if connection.idle and connection.silent_for(PASS_S):
                    connection.shutdown()
            await asyncio.sleep(0.02)
        for connection in self._connections():
            connection.abort()
