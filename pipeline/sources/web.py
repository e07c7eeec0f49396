"""The HTTP client: many requests at a time in a thread of their own; retries, waits, redirects, limits.

aiohttp, because it keeps connections, lets us check what a name resolves to before it connects, and is fast.
The client sends no cookies and no credentials but those in a URL, uses no proxy, and reads no settings from
the environment.
"""

import asyncio
import contextlib
import importlib.metadata
import queue
import random
import re
import threading
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from pipeline.sources.addresses import Allowed, NotAllowed, checked_resolver, checked_sockets

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from yarl import URL

REDIRECTS = 5
MOVED = {301, 302, 303, 307, 308}
GONE = {404, 410}
TRANSIENT = {408, 425, 429}  # and from 500 on
PIECE = 2**16  # bytes read at a time
HELD_BYTES = 2**28  # read and not yet taken: above it, no request begins
LONGEST_CONNECT = 10.0  # s
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # s, before a second try and at most
PATIENCE = 300.0  # s that a photo may wait because its server demands it
RFC_3986 = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*")


class Failed(Exception):
    """There is no photo, and trying again would not help.

    Attributes:
        reason: missing, unreachable or too_large.
        detail: for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class _Later(Exception):
    """No photo this time; `wait` (s) is what the server demands, None where it says nothing."""

    def __init__(self, detail: str, server: str = "", wait: float | None = None) -> None:
        super().__init__(detail)
        self.detail, self.server, self.wait = detail, server, wait


class Client:
    """A thread with an event loop and one session of connections, while its `with` block lasts.

    It gets lists of URLs and returns photos by a queue: a future for each photo took as long as the request.
    """

    def __init__(
        self, *, allowed: Allowed, concurrency: int, timeout: float, retries: int, max_bytes: int
    ) -> None:
        self._allowed: Allowed = allowed
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._max_bytes = max_bytes
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._quiet: dict[str, float] = {}  # server → the loop's time until which it gets no requests
        self._done: queue.SimpleQueue[tuple[str, bytes | Exception]] = queue.SimpleQueue()
        self._read = self._taken = 0  # bytes, counted by the thread and by its caller
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> "Client":
        return self

    def begin(self, urls: list[str]) -> None:
        """Begins to fetch photos."""
        if self._thread is None:  # where all photos are in the cache, nothing is started
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        self._loop.call_soon_threadsafe(self._begin, urls)

    def arrived(self) -> bool:
        """Whether `next` returns at once."""
        return not self._done.empty()

    def next(self) -> tuple[str, "bytes | Failed"]:
        """Waits for the next photo to arrive; returns its URL, and the photo or why there is none."""
        url, result = self._done.get()
        if isinstance(result, bytes):
            full = self._read - self._taken >= HELD_BYTES
            self._taken += len(result)
            if full:
                self._loop.call_soon_threadsafe(self._room.set)
        elif not isinstance(result, Failed):
            raise result
        return url, result

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        import aiohttp

        self._slots = asyncio.Semaphore(self._concurrency)
        self._room = asyncio.Event()
        connect = min(LONGEST_CONNECT, self._timeout)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # _slots does that
                resolver=checked_resolver(self._allowed),
                socket_factory=checked_sockets(self._allowed),
                ttl_dns_cache=60,
            ),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=connect),
            headers={
                "User-Agent": f"shelfmark/{importlib.metadata.version('shelfmark')}",
                "Accept-Encoding": "identity",  # otherwise a small response might unpack to a large one
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    # One photo

    def _begin(self, urls: list[str]) -> None:
        for url in urls:
            task = self._loop.create_task(self._finish(url))
            self._tasks.add(task)  # the loop alone would not keep a reference
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, url: str) -> None:
        try:
            self._done.put((url, await self._fetch(url)))
        except Exception as error:
            self._done.put((url, error))

    async def _fetch(self, text: str) -> bytes:
        """The photo, after as many tries as it needs and is allowed."""
        try:
            url = _parsed(text)
        except (ValueError, UnicodeError) as error:
            raise Failed("missing", f"no web address: {error}") from error
        tries, waited = 0, 0.0
        while True:
            await self._turn(_server(url))
            try:
                return await self._follow(url)
            except _Later as later:
                if later.wait is None:
                    tries += 1
                    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
                else:  # the server says when, so the try has not failed; it may say "now" again and again
                    wait = max(FIRST_WAIT, later.wait)
                    waited += wait
                    self._be_quiet(later.server, wait)
                if tries > self._retries or waited > PATIENCE:
                    raise Failed("unreachable", later.detail) from later
            finally:
                self._slots.release()
            await asyncio.sleep(wait)

    def _be_quiet(self, server: str, wait: float) -> None:
        self._quiet[server] = max(self._quiet.get(server, 0.0), self._loop.time() + min(wait, PATIENCE))

    def _left_of_quiet(self, server: str) -> float:
        """Seconds until the server may get a request; 0 or less: now."""
        return self._quiet.get(server, 0.0) - self._loop.time()

    async def _turn(self, server: str) -> None:
        """Takes one of the slots; none is held while waiting for anything else."""
        while True:
            await self._slots.acquire()
            if (wait := self._left_of_quiet(server)) > 0:
                self._slots.release()
                await asyncio.sleep(wait)
            elif self._read - self._taken >= HELD_BYTES:
                self._slots.release()
                self._room.clear()
                await self._room.wait()
            else:
                return

    async def _follow(self, url: "URL") -> bytes:
        """The photo by one request and those that its redirects lead to."""
        import aiohttp

        try:
            for _ in range(REDIRECTS + 1):
                if url.scheme not in ("http", "https") or not url.host:
                    raise Failed("missing", "expected http:// or https:// and a server")
                if (wait := self._left_of_quiet(_server(url))) > 0:  # of another server, by a redirect
                    raise _Later(f"{_server(url)} wants no requests", _server(url), wait)
                async with self._session.get(url, allow_redirects=False) as response:
                    if response.status not in MOVED or "Location" not in response.headers:
                        return await self._body(response)
                    url = url.join(_parsed(response.headers["Location"]))
            raise Failed("unreachable", f"over {REDIRECTS} redirects")
        except NotAllowed as refused:
            raise Failed("missing", str(refused)) from refused
        except aiohttp.InvalidURL as error:
            raise Failed("missing", f"no web address: {error}") from error
        except TimeoutError as error:
            raise _Later(f"no whole answer in {self._timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Later(_in_words(error)) from error
        except (ValueError, UnicodeError) as error:
            raise Failed("missing", f"no web address: {error}") from error

    async def _body(self, response: "ClientResponse") -> bytes:
        """The bytes of a response that is a photo; its Content-Length is not trusted."""
        status, server = response.status, _server(response.url)
        if status in GONE:
            raise Failed("missing", f"status {status}")
        if status in TRANSIENT or status >= 500:
            raise _Later(f"status {status}", server, _wait_named(response.headers.get("Retry-After", "")))
        if status != 200:
            raise Failed("unreachable", f"status {status}")
        body = bytearray()
        try:
            async for piece in response.content.iter_chunked(PIECE):
                body += piece
                self._read += len(piece)
                if len(body) > self._max_bytes:
                    raise Failed("too_large", f"over {self._max_bytes} bytes")
        except BaseException:
            self._read -= len(body)
            self._room.set()
            raise
        return bytes(body)


def _parsed(text: str) -> "URL":
    """The URL; one that follows RFC 3986 is sent as it is: a signature may depend on it."""
    from yarl import URL

    return URL(text, encoded=RFC_3986.fullmatch(text) is not None)


def _server(url: "URL") -> str:
    return f"{url.host}:{url.port}"


def _wait_named(retry_after: str) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date; None where it is neither.

    >>> _wait_named("7"), _wait_named("Wed, 21 Oct 2015 07:28:00 GMT"), _wait_named("soon")
    (7.0, 0.0, None)
    """
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r" ssl:\S+", "", text)[:200]
