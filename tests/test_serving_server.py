"""The server: limits of connections, and an end that loses nothing; with a small app of its own."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from features.errors import ShelfmarkError
from serving.connection import ConnectionLimits
from serving.server import AcceptErrors, Server, within_files
from serving.state import ServiceState

QUICK = ConnectionLimits(headers_s=0.3, body_s=1.0, silent_s=0.3, answer_s=0.3, idle_s=0.3, connections=6)
GET = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10
PATIENCE = 30.0  # s, for what takes a fraction of it


class App:
    """Responds like the service: 503 while draining, and later what is sent to /slow."""

    def __init__(self, state: ServiceState) -> None:
        self.state, self.go_on = state, asyncio.Event()
        self.begun, self.gone = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.loop = asyncio.get_running_loop()
        status, body = (503, b"draining") if self.state.draining else (200, b"done")
        if status == 200:
            more = scope["path"] == "/body"
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone.set()
                    return
                more = message["more_body"]
            if scope["path"] == "/slow":
                self.begun.set()
                await self.go_on.wait()
            if scope["path"] == "/large":
                body = bytes(20_000_000)
            if scope["path"] == "/early":
                status = 413
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A server in a thread, and its address."""

    def __init__(self, limits: ConnectionLimits, drain_s: float, uds: Path | None = None) -> None:
        self.state, self.refused = ServiceState(), list[int]()
        self.app = App(self.state)
        self.server = Server(self.app, self.state, limits, drain_s, self.refused.append)
        if uds:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(uds))
        else:
            listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection that has sent something."""
        client = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        client.settimeout(PATIENCE)
        client.connect(self.address)
        client.sendall(data)
        return client

    def signal(self) -> None:
        """As SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def end(self) -> None:
        """Waits for the end."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def go_on(self) -> None:
        """Lets /slow respond."""
        self.app.loop.call_soon_threadsafe(self.app.go_on.set)


@contextmanager
def running(
    limits: ConnectionLimits = QUICK, drain_s: float = PATIENCE, uds: Path | None = None
) -> Iterator[Running]:
    one = Running(limits, drain_s, uds)
    try:
        yield one
    finally:
        one.server.should_exit = True
        if one.app.begun.is_set() and one.thread.is_alive():
            one.go_on()
        one.end()


def read(client: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is an error."""
    found = b""
    while piece := client.recv(65536):
        found += piece
    return found


def first(client: socket.socket) -> bytes:
    """The first answer, whose body is `done`."""
    found = b""
    while not found.endswith(b"done"):
        found += client.recv(65536)
    return found


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


def closes(answer: bytes) -> bool:
    return b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()


# Limits


@pytest.mark.parametrize("piece", [b"GET /quick HTT", b"GET /quick HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_headers_that_do_not_end_are_answered_408(piece: bytes) -> None:
    with running() as one:
        answer = read(one.connect(piece))
    assert (status_of(answer), closes(answer), one.refused) == (408, True, [408])
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["detail"].startswith("its headers did not come within 0.3 s; expected")


def test_headers_that_come_byte_by_byte_are_answered_408() -> None:
    with running() as one:
        client = one.connect()
        with pytest.raises((BrokenPipeError, ConnectionResetError, StopIteration)):
            for _ in range(600):  # far longer than the limit
                client.sendall(b"a")
                time.sleep(0.05)
                client.setblocking(False)
                try:
                    if client.recv(3, socket.MSG_PEEK):
                        raise StopIteration
                except BlockingIOError:
                    pass
                client.setblocking(True)
        client.settimeout(PATIENCE)
        assert status_of(read(client)) == 408


def test_a_second_request_whose_headers_do_not_end_is_answered_408() -> None:
    with running() as one:
        answers = read(one.connect(GET + b"GET /quick HT"))
    first, _, second = answers.partition(b"done")
    assert (status_of(first), closes(first)) == (200, False)
    assert second == b"" or status_of(second) == 408  # pipelined, it may count as idle


def test_a_connection_that_says_nothing_is_closed_without_an_answer() -> None:
    with running() as one:
        assert read(one.connect()) == b""
        assert read(one.connect(GET)).endswith(b"done")  # closed when it was idle for long
    assert one.refused == []


def test_a_body_that_stops_is_answered_408_and_the_application_learns_of_it() -> None:
    with running() as one:
        answer = read(one.connect(HALF))
        assert one.app.gone.wait(PATIENCE)
    assert (status_of(answer), closes(answer), one.refused) == (408, True, [408])
    assert b"more of its body did not come within 0.3 s" in answer


def test_a_body_that_goes_on_for_ever_is_answered_408() -> None:
    limits = ConnectionLimits(body_s=0.5, silent_s=PATIENCE)
    with running(limits) as one:
        client = one.connect(b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not one.refused:
            client.sendall(b"1\r\nx\r\n")
            time.sleep(0.01)
        answer = read(client)
    assert status_of(answer) == 408
    assert b"its body did not come within 0.5 s" in answer


def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    with running() as one:
        client = one.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        while not one.server.server_state.connections:
            time.sleep(0.01)
        while one.server.server_state.connections:
            time.sleep(0.02)
        with pytest.raises(ConnectionResetError):
            read(client)


def test_an_answer_before_the_end_of_a_body_arrives_and_the_rest_is_dropped() -> None:
    """A socket that is closed with unread bytes would reset the connection, and the answer be lost."""
    with running(ConnectionLimits(silent_s=0.3)) as one:
        for last in (b"", b"Connection: close\r\n"):
            head = b"POST /early HTTP/1.1\r\nHost: x\r\n" + last + b"Content-Length: 8000000\r\n\r\n"
            client = one.connect(head)
            client.sendall(bytes(4_000_000))
            time.sleep(0.05)
            client.sendall(bytes(3_000_000))
            assert status_of(read(client)) == 413


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=["nonsense", "no host", "long path", "long header", "gzip", "bad chunk", "two lengths", "TLS"],
)
def test_what_is_no_request_is_answered_with_a_problem(request_: bytes, status: int) -> None:
    with running() as one:
        answer = read(one.connect(request_))
        assert read(one.connect(GET)).endswith(b"done")
    assert (status_of(answer), closes(answer), one.refused) == (status, True, [status])
    assert b"application/problem+json" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status


def test_more_connections_than_allowed_are_answered_503() -> None:
    with running(ConnectionLimits(connections=2)) as one:
        idle = [one.connect() for _ in range(2)]
        while len(one.server.server_state.connections) < 2:
            time.sleep(0.01)
        answer = read(one.connect(GET))
        assert (status_of(answer), closes(answer)) == (503, True)
        assert b"retry-after: 1" in answer
        idle.pop().close()
        while len(one.server.server_state.connections) > 1:
            time.sleep(0.01)
        assert read(one.connect(GET.replace(b"Host", b"Connection: close\r\nHost"))).endswith(b"done")


@pytest.mark.parametrize(("files", "connections"), [(1_024, 254), (16_384, 4_096), (65_536, 4_096)], ids=str)
def test_connections_are_limited_by_open_files(files: int, connections: int) -> None:
    assert within_files(ConnectionLimits(), files, cores=2).connections == connections
    assert within_files(QUICK, files, cores=2) == QUICK


def test_a_limit_of_too_few_open_files_is_an_error() -> None:
    with pytest.raises(ShelfmarkError, match="at most 256 files may be open at a time; expected 308 or more"):
        within_files(ConnectionLimits(), 256, cores=2)


CROWD = """
import logging, resource, sys, threading
from test_serving_server import App, ConnectionLimits, Server, ServiceState, socket

logging.basicConfig(level=logging.INFO)
resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
state = ServiceState()
server = Server(App(state), state, ConnectionLimits(headers_s=60.0))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), server.handle_exit(15, None)), daemon=True).start()
server.run([listener])
"""


def test_connections_beyond_the_limit_of_open_files_are_answered_503_and_nothing_fails() -> None:
    command = [sys.executable, "-c", CROWD]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process, ExitStack() as clients:  # fmt: skip
        assert process.stdout and process.stdin and process.stderr
        address = "127.0.0.1", int(process.stdout.readline())
        crowd = [clients.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(600)]
        for client in crowd:
            with suppress(OSError):  # it was reset
                client.sendall(b"G")
        answers = Counter(answer_or_reset(client) for client in crowd[100:])
        process.stdin.close()
        log = process.stderr.read()
        assert process.wait(PATIENCE) == 0
    assert set(answers) == {0, 503}
    assert answers[503] >= 20
    assert "at most 500 files may be open at a time: 80 connections are the most; expected 4,096" in log
    assert "Traceback" not in log and "cannot be accepted" not in log


def answer_or_reset(client: socket.socket) -> int:
    """The status of an answer; 0: there is none."""
    try:
        answer = read(client)
    except ConnectionResetError:
        return 0
    return status_of(answer) if answer else 0


def test_errors_of_accepting_are_one_line_a_minute_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop, errors = asyncio.new_event_loop(), AcceptErrors()
    try:
        for _ in range(5):
            error = OSError(24, "Too many open files")
            errors(loop, {"message": "socket.accept() out of system resource", "exception": error})
        [record] = caplog.records
        assert "connections cannot be accepted ([Errno 24] Too many open files); " in record.getMessage()
        assert record.exc_info is None
        errors(loop, {"message": "another", "exception": ValueError("of ours")})
        assert caplog.records[1].exc_info
    finally:
        loop.close()


@pytest.mark.parametrize(
    "target",
    ["http://x/quick", "HTTPS://user@[::1]:80/quick?a=/b", "http://x", "http://x?a", "/quick?http://x/no"],
)
def test_a_target_with_a_host_is_the_path_of_it(target: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    with running() as one:
        assert first(one.connect(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    [line] = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    path = "/quick" if "/quick" in target else "/"
    assert line.endswith(f'"GET {path} HTTP/1.1" 200')


# The log of requests


@pytest.mark.parametrize("place", ["address", "socket file"])
def test_the_log_has_requests_without_their_queries_and_no_probes(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    with running(uds=tmp_path / "s" if place == "socket file" else None) as one:
        for path in ("/healthz", "/readyz", "/metrics?x=1", "/v1/corrections?seller=s3cret"):
            assert first(one.connect(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    [line] = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    client = "unix" if place == "socket file" else r"127\.0\.0\.1:\d+"
    assert re.fullmatch(client + ' - "GET /v1/corrections HTTP/1.1" 200', line)


# The end


def test_an_accepted_request_is_finished_and_a_new_one_is_answered_503() -> None:
    with running(ConnectionLimits()) as one:
        idle = one.connect(GET)
        assert first(idle).endswith(b"done")
        accepted = one.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.app.begun.wait(PATIENCE)
        one.signal()
        assert read(idle) == b""  # closed
        late = read(one.connect(GET))
        assert (status_of(late), closes(late)) == (503, True)
        one.go_on()
        answer = read(accepted)
        assert (status_of(answer), closes(answer)) == (200, True)
        assert answer.endswith(b"done")
        one.end()
    assert one.server.lost == 0
    with pytest.raises(ConnectionRefusedError):
        one.connect()


def test_a_body_that_was_half_sent_when_the_end_began_is_finished() -> None:
    with running(ConnectionLimits()) as one:
        client = one.connect(HALF)
        while not one.server.server_state.tasks:
            time.sleep(0.01)
        time.sleep(0.1)  # the app has seen that the service is not draining
        one.signal()
        client.sendall(b"x" * 990)
        assert status_of(read(client)) == 200
        one.end()


def test_bytes_that_are_in_sockets_when_the_end_begins_are_answered() -> None:
    """Of connections that wait to be accepted, and of idle ones."""
    with running(ConnectionLimits()) as one:
        idle = [one.connect(GET) for _ in range(20)]
        assert all(first(client).endswith(b"done") for client in idle)
        accepted = one.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.app.begun.wait(PATIENCE)
        held, busy = threading.Event(), threading.Event()
        one.app.loop.call_soon_threadsafe(lambda: (held.set(), busy.wait(PATIENCE)))
        assert held.wait(PATIENCE)
        one.signal()  # while the server looks at nothing
        for client in idle:
            client.sendall(GET)
        new = [one.connect(GET) for _ in range(20)]
        busy.set()
        assert [status_of(read(client)) for client in [*idle, *new]] == [503] * 40
        one.go_on()
        assert status_of(read(accepted)) == 200
        one.end()


@pytest.mark.parametrize("_", range(3))
def test_clients_that_go_on_while_the_service_ends_have_an_answer_or_are_refused(_: int) -> None:
    """None is reset: not when the end begins, and not when the address is closed."""
    found: list[int | str] = []

    def go_on(one: Running) -> None:
        while True:
            try:
                client = one.connect(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            except ConnectionRefusedError:
                return
            try:
                found.append(status_of(read(client)))
            except (OSError, IndexError) as error:
                found.append(repr(error))

    with running(ConnectionLimits()) as one:
        clients = [threading.Thread(target=go_on, args=(one,)) for _ in range(16)]
        for client in clients:
            client.start()
        time.sleep(0.3)
        one.signal()
        for client in clients:
            client.join(PATIENCE)
        one.end()
    assert set(found) == {200, 503}, Counter(found)


def test_what_is_not_finished_within_the_limit_is_counted() -> None:
    with running(ConnectionLimits(), drain_s=0.3) as one:
        client = one.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.app.begun.wait(PATIENCE)
        one.signal()
        one.end()
        with pytest.raises(ConnectionResetError):
            read(client)
            raise ConnectionResetError  # closed without an answer is as good
    assert one.server.lost == 1
