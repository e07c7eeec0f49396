"""One HTTP connection: uvicorn's, within limits of time and size, and closed so that no answer is lost.

    opened ─► headers ─► body ─► the application ─► answer ─► idle ─► headers …
              10 s       120 s;                     30 s      5 s
              64 KiB     10 s without a byte        without the client taking a byte

Over a limit, the client gets 408 where it has begun a request, and the connection ends. Between two requests
it is closed without a word, as HTTP allows (RFC 9112, section 9.5). What a connection holds in memory is
bounded: 64 KiB of headers, 64 KiB of a body that the application has not taken, and as much of an answer.

An answer can come before the client has sent all of its request. A socket that is closed with unread bytes in
it resets the connection, and the client may lose the answer (RFC 9112, section 9.6). So the socket is first
closed for writing, and what still comes is read and dropped for a while.
"""

import asyncio
import logging
import re
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from serving.problems import problem_response, retry_after

MANY = "{} connections are open; expected fewer; use each for several requests, or try again in a second"
LATE = "{} did not come within {:g} s; expected a request without pauses; send it again"
UNREADABLE = "the request cannot be read ({}); expected one of HTTP/1.1, headers within {} KiB; correct it"
PROBES = frozenset(("/healthz", "/readyz", "/metrics"))  # every few seconds, by machines
ABSOLUTE = re.compile(rb"(?i:https?)://[^/?#]*")
LINGER_S = 5.0  # in which what a client still sends is read and dropped


@dataclass(frozen=True)
class ConnectionLimits:
    """What a client may take, on one connection and all together."""

    headers_s: float = 10.0  # from the first byte of a request to the end of its headers
    body_s: float = 120.0  # from there to its last byte
    silent_s: float = 10.0  # without a byte, while the application waits for the body
    answer_s: float = 30.0  # without the client taking a byte of its answer
    idle_s: float = 5.0  # between two requests
    header_bytes: int = 64 << 10
    connections: int = 4_096  # at the same time, more than requests may wait; one more is answered 503.
    # Refused ones stay for seconds: when they are as many, the next one is reset


class Connection(H11Protocol):
    """A connection of uvicorn, in pure Python (h11), which `check` keeps within its limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        refused: Callable[[int], None],
    ) -> None:
        """As uvicorn makes it.

        Args:
            config: of the server.
            server_state: with all its connections.
            app_state: of the lifespan.
            _loop: that it runs in.
            limits: of time and size.
            refused: called with the status of each answer that is not the application's.
        """
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _Http(h11.SERVER, limits.header_bytes)
        self.access_logger = cast(logging.Logger, _AccessLog(self.access_logger))
        self._limits, self._refused = limits, refused
        self._stage: Any = h11.IDLE  # of the request, as h11 counts
        self._since = self._heard = 0.0  # when the stage and when the last bytes came
        self._begun = False  # whether bytes of a request that is in the stage IDLE have come
        self._unsent, self._unsent_since = 0, 0.0  # bytes of an answer that the client does not take
        self._ending: float | None = None  # when an ended connection is cut, whatever still comes

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a new connection, or answers 503 where there are too many."""
        self._socket = transport
        super().connection_made(cast(asyncio.Transport, _Transport(transport, self)))
        self._since = self._heard = self._unsent_since = self.loop.time()
        if len(self.connections) > 2 * self._limits.connections:  # ended ones that clients do not close
            transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._answer(503, MANY.format(self._limits.connections), retry_after(1))

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a request; those after the end of the connection are dropped."""
        self._heard = self.loop.time()
        if self._ending is not None:
            return
        if self.conn.their_state is h11.IDLE and not self._begun:
            self._begun, self._since = True, self._heard
        super().data_received(data)
        self._see_stage()

    def on_response_complete(self) -> None:
        """Goes on to the next request."""
        super().on_response_complete()
        self._see_stage()

    def _see_stage(self) -> None:
        if self.conn.their_state is not self._stage:
            self._stage, self._since = self.conn.their_state, self.loop.time()
            self._begun = False

    # Limits

    def check(self, now: float) -> None:
        """Ends the connection where it is over a limit.

        Args:
            now: the loop's time, s.
        """
        limits = self._limits
        if self._ending is not None:
            if now > self._ending:
                self.abort()
            return
        unsent = self._socket.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        if unsent and now - self._unsent_since > limits.answer_s:
            self.abort()  # nothing more can be said
        elif self._stage is h11.IDLE and (self._begun or self.cycle is None):
            if now - self._since > limits.headers_s:
                self._time_out("its headers", limits.headers_s)
        elif self._stage is h11.SEND_BODY:
            if now - self._since > limits.body_s:
                self._time_out("its body", limits.body_s)
            elif now - self._heard > limits.silent_s and not self.flow.read_paused:
                self._time_out("more of its body", limits.silent_s)

    def _time_out(self, what: str, seconds: float) -> None:
        """Ends a connection that was waited for too long."""
        if self._stage is h11.IDLE and not self._begun:
            self.end()
            return
        self._answer(408, LATE.format(what, seconds))

    def send_400_response(self, msg: str) -> None:
        """Answers 400, 431 or 501, as h11 says of the error that uvicorn has just caught."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._answer(status, UNREADABLE.format(error or msg, self._limits.header_bytes >> 10))

    # The end

    def _answer(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Answers in place of the application, where no answer has begun, and ends the connection."""
        self._refused(status)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application learns that nobody waits
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.DONE, h11.MUST_CLOSE):  # this request has been answered
            self._end_writing()
            return
        problem = problem_response(status, detail, headers)
        fields = [*self.server_state.default_headers, *problem.raw_headers, CLOSE_HEADER]
        reason = HTTPStatus(status).phrase.encode()
        try:
            head = self.conn.send(h11.Response(status_code=status, headers=fields, reason=reason))
        except h11.LocalProtocolError:  # in the middle of another answer
            self._socket.abort()
            return
        assert head is not None
        self.transport.write(head + problem.body)  # beside h11, which takes no body in an answer to HEAD
        self._end_writing()

    @property
    def ended(self) -> bool:
        """Whether no answer can be given any more."""
        return self._ending is not None

    @property
    def idle(self) -> bool:
        """Whether it is between two requests, or before the first."""
        busy = self.cycle is not None and not self.cycle.response_complete
        return not busy and not self._begun and self._stage is h11.IDLE

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing has come for so long."""
        return self.loop.time() - self._heard > seconds

    def abort(self) -> None:
        """Resets the connection, whatever is under way; the system drops what the client has not taken."""
        if found := self._socket.get_extra_info("socket"):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.abort()

    def finish(self) -> None:
        """Makes the answer that is under way the last one."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            if CLOSE_HEADER not in self.cycle.default_headers:
                self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def shutdown(self) -> None:
        """Ends the connection where it is idle, else after the answer."""
        if self.idle:
            self.end()
        else:
            self.finish()

    def end(self) -> None:
        """Closes the socket: where the client may be sending, for writing, and whole when the client has."""
        if self.idle:
            self._socket.close()
        else:
            self._end_writing()

    def _end_writing(self) -> None:
        if self.ended or self._socket.is_closing():
            return
        self._ending = self.loop.time() + LINGER_S
        self._socket.write_eof()
        self._socket.resume_reading()


class _Http(h11.Connection):
    """HTTP as h11 reads it; a request may name a whole URL, as one to a proxy does (RFC 9112, 3.2.2)."""

    def next_event(self) -> Any:
        """Returns the next event; a request has a path as its target."""
        event: Any = super().next_event()
        if not isinstance(event, h11.Request) or not (found := ABSOLUTE.match(event.target)):
            return event
        rest = event.target[found.end() :]
        return h11.Request(
            method=event.method,
            headers=event.headers.raw_items(),
            target=rest if rest.startswith(b"/") else b"/" + rest,
            http_version=event.http_version,
        )


class _Transport:
    """The socket as uvicorn sees it: `close` is the connection's, and nothing is written afterwards."""

    def __init__(self, socket: asyncio.Transport, connection: Connection) -> None:
        self._socket, self._connection = socket, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def write(self, data: bytes | None) -> None:
        """Writes, unless the connection has ended."""
        if data and not self.is_closing():
            self._socket.write(data)

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._connection.ended or self._socket.is_closing()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.end()


class _AccessLog:
    """The log of requests as uvicorn writes it: without probes and queries, which may hold secrets."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def info(self, line: str, client: str, method: str, path: str, version: str, status: int) -> None:
        """Takes what uvicorn says of a request; the client of a socket file has no address."""
        path, _, _ = path.partition("?")
        level = logging.DEBUG if path in PROBES else logging.INFO
        self._log.log(level, line, client or "unix", method, path, version, status)
