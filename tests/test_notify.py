"""Notify: the POST of run.json to real servers on this computer, well-behaved and not."""

import base64
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.job import notify as module
from pipeline.job.config import Config, NotifySettings
from pipeline.job.load_config import load_config
from pipeline.job.notify import notify

ACCOUNT = b'{"run": "2026-W48"}'


@dataclass
class Server:
    """Answers POSTs with these statuses, the last one from then on; keeps what came."""

    statuses: list[int] = field(default_factory=lambda: [200])
    seconds: float = 0.0  # before an answer
    location: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.do_GET()

        def do_GET(self) -> None:
            state.methods.append(self.command)
            state.headers.append(dict(self.headers))
            time.sleep(state.seconds)
            try:
                self.send_response(state.statuses.pop(0) if len(state.statuses) > 1 else state.statuses[0])
                if state.location:
                    self.send_header("Location", state.location)
                self.end_headers()
            except OSError:
                pass  # nobody waits any more

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/T0/secret-path?token=word"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))


def text(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(caplog.messages)


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shelfmark")


def test_the_account_arrives_as_json(server, caplog):
    assert notify(NotifySettings(url=server.url), ACCOUNT)
    assert server.bodies == [ACCOUNT] and server.methods == ["POST"]
    assert server.headers[0]["Content-Type"] == "application/json"
    assert len(caplog.messages) == 1 and text(caplog).endswith("has the account")


def test_a_server_at_fault_is_tried_again(server, caplog):
    server.statuses = [500, 200]
    assert notify(NotifySettings(url=server.url), ACCOUNT)
    assert server.bodies == [ACCOUNT, ACCOUNT]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (429, 3), (404, 1), (403, 1)])
def test_what_a_later_try_cannot_change_is_tried_once(server, caplog, status, tries):
    server.statuses = [status]
    assert not notify(NotifySettings(url=server.url), ACCOUNT)
    assert len(server.bodies) == tries
    assert f"status {status}" in text(caplog)


def test_a_dead_server_is_a_warning(server, caplog, unused_port):
    url = f"http://127.0.0.1:{unused_port}/hook/secret-path"
    assert not notify(NotifySettings(url=url), ACCOUNT)
    assert "cannot be reached (ConnectionRefusedError)" in text(caplog)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, caplog, status):
    server.statuses, server.location = [status], f"{server.url}/elsewhere"
    assert not notify(NotifySettings(url=server.url), ACCOUNT)
    assert server.methods == ["POST"], "followed, a POST becomes a GET without the account"
    assert f"redirect ({status}); set the address that it leads to" in text(caplog)


def test_a_slow_server_is_waited_for_as_long_as_the_settings_say(server, caplog):
    server.seconds, began = 1.0, time.monotonic()
    assert not notify(NotifySettings(url=server.url, timeout=0.1), ACCOUNT)
    assert time.monotonic() - began < 1
    assert len(server.bodies) == 3 and "no answer within 0.1 s" in text(caplog)


def test_the_whole_sending_has_a_limit(server, caplog):
    server.seconds, began = 1.0, time.monotonic()
    assert not notify(NotifySettings(url=server.url), ACCOUNT, limit=0.2)
    assert time.monotonic() - began < 0.9
    assert "no answer within 0.2 s" in text(caplog)


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_the_log_names_the_server_and_none_of_the_secrets(server, caplog, status):
    server.statuses, server.location = [status], server.url
    url = server.url.replace("http://", "http://user:p%40ss@")
    notify(NotifySettings(url=url), ACCOUNT)
    assert "http://127.0.0.1:" in text(caplog)
    assert not any(secret in text(caplog) for secret in ("secret-path", "word", "user", "p%40ss", "p@ss"))
    assert server.headers[0]["Authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"


def test_what_is_no_web_server_is_a_warning(caplog, port_of_noise):
    assert not notify(NotifySettings(url=f"http://127.0.0.1:{port_of_noise}/"), ACCOUNT)
    assert "does not answer as a web server" in text(caplog)


@pytest.mark.parametrize("url", ["hooks.example/x", "ftp://hooks.example", "https://", "file:///etc/passwd"])
def test_only_web_addresses_are_taken(url):
    with pytest.raises(Exception, match="not a web address"):
        load_config(sets=(f"notify.url={url}",))


def test_the_address_is_kept_in_no_file():
    config = Config(notify={"url": "https://hooks.example/secret"})
    assert "hooks.example" not in config.model_dump_json()


@pytest.fixture
def unused_port() -> int:
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    http.server_close()
    return http.server_port


@pytest.fixture
def port_of_noise() -> Iterator[int]:
    """A port where somebody speaks another protocol."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"\x00\x01SSH-2.0\r\n\r\n")

        threading.Thread(target=speak, daemon=True).start()
        yield listening.getsockname()[1]
