"""A photo server on this machine that is slow, lies, cuts off, redirects and limits, by the path.

/photo/7.jpg       photo 7               /slow/7.jpg       the same, half a second later
/gone  /moved/3    404; a redirect to /moved/2 … /photo/0.jpg      /round  to itself
/busy/N/7.jpg      429 for the first N requests, with Retry-After: 1; /broken/N/7.jpg  500 likewise
/now/7.jpg         429 for ever, with Retry-After: 0
/cut/7.jpg         half of the bytes that it names; /short/7.jpg  all bytes, half of them named
/endless           bytes without end, none named; /drip  ten, one every 0.2 s
/to?url            a redirect to any address
"""

import contextlib
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from catalogues import photo


class WebServer(ThreadingHTTPServer):
    """Counts the requests for each path."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.counts: Counter[str] = Counter()
        self.paths: list[str] = []  # requested, in this order
        self.ended: list[float] = []  # monotonic time of each answer, s
        self.connections = 0
        self.down = False  # everything is 503
        self.delay = delay  # s before an answer
        self.most = self.now = 0  # requests at a time
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def finish_request(self, request, client_address):
        self.connections += 1
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        """Clients that leave are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self):
        server = self.server
        with server.lock:
            server.counts[self.path] += 1
            server.paths.append(self.path)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            time.sleep(server.delay)
            self._answer(server.counts[self.path])
        finally:
            with server.lock:
                server.now -= 1
                server.ended.append(time.monotonic())

    def _answer(self, times):
        kind, _, rest = self.path[1:].partition("/")
        if self.server.down:
            return self._send(503)
        if kind.startswith("to?"):
            return self._send(302, Location=unquote(kind[3:] + "/" + rest))
        if kind == "moved":
            return self._send(301, Location=f"/moved/{int(rest) - 1}" if int(rest) > 1 else "/photo/0.jpg")
        if kind == "round":
            return self._send(302, Location="/round")
        if kind in ("busy", "broken") and times <= int(rest.partition("/")[0]):
            return self._send(429, **{"Retry-After": "1"}) if kind == "busy" else self._send(500)
        if kind == "now":
            return self._send(429, **{"Retry-After": "0"})
        if kind in ("gone", "deleted"):
            return self._send(404 if kind == "gone" else 410)
        if kind == "secret":
            return self._send(403)
        if kind in ("endless", "drip"):
            return self._stream(kind == "drip")
        if kind == "slow":
            time.sleep(0.5)
        if kind == "page":
            return self._send(200, b"<html>no photo</html>")
        data = photo(int(rest.rpartition("/")[2].partition(".")[0]))
        if kind == "cut":
            self._send(200, data[: len(data) // 2], length=len(data))
            self.close_connection = True
            return None
        return self._send(200, data, length=len(data) // 2 if kind == "short" else len(data))

    def _send(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, drip):
        self.send_response(200)
        if drip:
            self.send_header("Content-Length", "10")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:  # until the client has left
            self.wfile.write(b"x" if drip else bytes(2**16))
            time.sleep(0.2 if drip else 0.0)

    def log_message(self, *args):
        """Says nothing."""


@contextlib.contextmanager
def serving(delay: float = 0.0):
    """A server while the block lasts."""
    server = WebServer(delay)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
