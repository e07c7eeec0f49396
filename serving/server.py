"""The server: uvicorn, which ends without losing what it has accepted, and keeps connections within limits.

    SIGTERM, SIGINT ─► draining: /readyz 503, new requests 503 with Retry-After and Connection: close
                    ─► requests that came before are finished, within a limit
                    ─► connections that the system still holds are accepted ─► the address is closed
                    ─► requests that came meanwhile have their 503 ─► the end

The address stays open while requests are finished: whoever is behind a balancer reads from /readyz that this
service goes, and a request that was already under way gets an answer instead of a reset. A second signal ends
everything at once.

A connection is an open file, a request with large photos has another one, and so has a connection that was
refused, for some seconds. The system limits open files: the limit of connections is a third of what the
service itself leaves of them.
"""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.flow_control import CLOSE_HEADER

from features.errors import ShelfmarkError
from features.process import end_at_once
from serving.connection import Connection, ConnectionLimits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from serving.state import ServiceState

CHECK_S = 0.25  # between two looks at the connections' limits
MOST_FILES = 65_536  # open at a time
OWN_FILES = 128  # of the service itself, beside two for each core: of decode processes, databases, a release
ACCEPTED_AT_ONCE = 32  # connections; asyncio has up to four times as many before the first one is refused
WAITING = 2_048  # connections that the system holds until they are accepted
FEWEST = 16  # connections that a service can do with
ERROR_S = 60.0  # between two lines in the log that no connection can be accepted
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

        Raises:
            ShelfmarkError: the system lets this process have too few open files.
        """
        limits = within_files(limits, open_files())
        protocol: Any = partial(Connection, limits=limits, refused=refused)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            backlog=ACCEPTED_AT_ONCE,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=limits.idle_s,  # type: ignore[arg-type]  # seconds for call_later
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._protocol: Callable[[], Connection] = partial(protocol, config, self.server_state, {})
        self._state, self._drain_s = state, drain_s
        self.received: int | None = None  # signal
        self.lost = 0  # accepted requests that were not finished within the limit

    # Connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections, and to look at their limits."""
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(WAITING)
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
            if connection.idle and connection.silent_for(PASS_S):  # a new one has its first bytes to come
                connection.shutdown()
        await self._finish(accepted, began + self._drain_s)
        await self._close_address(sockets or [])
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

    async def _close_address(self, listeners: list[socket.socket]) -> None:
        """Takes the connections that the system still holds, which closing would reset, and closes."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            loop.remove_reader(listener)
        await asyncio.sleep(0)  # what asyncio has accepted needs the server open for its first step
        held = [connection for listener in listeners for connection in held_by(listener)]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        for connection in held:
            await loop.connect_accepted_socket(self._protocol, connection)

    async def _let_close(self, deadline: float) -> None:
        while self.server_state.connections and time.monotonic() < deadline:
            for connection in self._connections():
                if connection.idle and connection.silent_for(PASS_S):
                    connection.shutdown()
            await asyncio.sleep(0.02)
        for connection in self._connections():
            connection.abort()


def held_by(listener: socket.socket) -> Iterator[socket.socket]:
    """Yields the connections that nobody has accepted yet.

    Args:
        listener: that does not block.
    """
    with contextlib.suppress(OSError):  # there are no more, or too many files are open
        while True:
            yield listener.accept()[0]


# Open files


def open_files() -> int:
    """Raises the limit of open files as far as this process may; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # usually 1,024 files, sockets among them
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return MOST_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def within_files(limits: ConnectionLimits, files: int, cores: int | None = None) -> ConnectionLimits:
    """Returns limits with as many connections as open files allow.

    Args:
        limits: of connections.
        files: that may be open at a time.
        cores: of the machine; None: of this one.

    Raises:
        ShelfmarkError: they are too few for a service.
    """
    own = OWN_FILES + 2 * (cores or os.cpu_count() or 1) + 4 * ACCEPTED_AT_ONCE
    connections = (files - own) // 3  # each with a socket, a file of photos, and a refused one beside it
    if connections < FEWEST:
        raise ShelfmarkError(
            f"at most {files:,} files may be open at a time; expected {own + 3 * FEWEST:,} or more; raise "
            "the limit: `ulimit -n`, LimitNOFILE= of systemd, ulimits of Docker"
        )
    if connections < limits.connections:
        log.warning(
            "at most %s files may be open at a time: %s connections are the most; expected %s; "
            "raise the limit: `ulimit -n`, LimitNOFILE= of systemd, ulimits of Docker",
            f"{files:,}", f"{connections:,}", f"{limits.connections:,}",
        )  # fmt: skip
    return replace(limits, connections=min(connections, limits.connections))


class AcceptErrors:
    """Says in a line, once a minute, that connections cannot be accepted: asyncio tries again by itself."""

    def __init__(self) -> None:
        self._said = -ERROR_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Takes an error that asyncio has nowhere to send; others than these are logged as it does."""
        if "socket.accept()" not in context["message"]:
            loop.default_exception_handler(context)
        elif loop.time() - self._said >= ERROR_S:
            self._said = loop.time()
            log.error(
                "connections cannot be accepted (%s); expected fewer open files; raise their limit",
                context.get("exception"),
            )
