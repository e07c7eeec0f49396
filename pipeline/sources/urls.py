"""Photos by URL: fetched once, many at a time, into a cache that both passes and a job's next run read.

    <records>.fetched/<unit>/<chunk>.bin       the bytes of photos, one after the other
                             <chunk>.parquet   their URLs, offsets and lengths; written last

A unit's worker fetches in a thread of its own while the photos before are checked. What a killed job had
written is not fetched again; while photos could not be reached, the cache stays for the next run.
"""

import asyncio
import contextlib
import importlib.metadata
import ipaddress
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from features.files import Place, place, read_range, write_whole, writing
from pipeline.sources.image import path_text

if TYPE_CHECKING:
    import aiohttp

Allowed = Literal["public", "any"]

REDIRECTS = 5
PIECE = 2**16  # bytes read at a time
CHUNK_IMAGES, CHUNK_BYTES = 64, 2**24  # of a file of the cache: no more is lost when a job is killed
WINDOW = 4  # photos ahead of the one at hand, times the concurrency
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # s, before a second try and at most
PATIENCE = 300.0  # s that a photo may wait because its server says so
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
GONE = {404, 410}
INDEX = pa.schema([("url", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 within IPv6, RFC 6052


@dataclass(frozen=True)
class Fetching:
    """How photos are fetched."""

    cache: str  # directory
    allowed: Allowed = "public"  # addresses; "any": of the machine itself and of private networks, too
    concurrency: int = 32  # requests at a time in a worker
    timeout: float = 30.0  # s for one request with its answer
    retries: int = 4  # tries after the first
    max_bytes: int = 64 << 20  # of a photo


@dataclass(frozen=True)
class Fetched:
    """A photo, or why there is none."""

    url: str
    data: bytes = b""
    file: str = ""  # of the cache
    offset: int = 0
    reason: str = ""  # missing, unreachable, too_large
    detail: str = ""


class _Failed(Exception):
    """No photo; `args` are reason and detail."""


class _Later(Exception):
    """No photo this time; `args` are the detail and, where the server names it, the wait in seconds."""


def is_url(image: str) -> bool:
    """Whether an image's cell is a web address."""
    return re.match(r"(?i)https?://", image) is not None


def fetch_urls(urls: Sequence[str], fetching: Fetching, unit: str) -> Iterator[Fetched]:
    """The photos at these addresses, in their order; one that stands there twice is fetched once.

    Args:
        urls: web addresses.
        fetching: how.
        unit: name of the unit's files in the cache.
    """
    cache = _Cache(place(fetching.cache) / unit)
    failed: dict[str, Fetched] = {}
    waiting: deque[tuple[str, Future[bytes] | None]] = deque()
    asked: set[str] = set()
    with _Client(fetching) as client:

        def next_one() -> Fetched:
            url, future = waiting.popleft()
            if future is None:
                return failed.get(url) or cache.read(url)
            try:
                return cache.add(url, future.result())
            except _Failed as error:
                failed[url] = Fetched(url, reason=error.args[0], detail=error.args[1])
                return failed[url]

        try:
            for url in urls:
                new = url not in asked and url not in cache
                asked.add(url)
                waiting.append((url, client.submit(url) if new else None))
                if len(waiting) > WINDOW * fetching.concurrency:
                    yield next_one()
            while waiting:
                yield next_one()
        finally:
            cache.flush()


class _Cache:
    """The fetched bytes of one unit."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._where: dict[str, tuple[Place, int, int]] = {}
        for index in folder.glob("*.parquet"):
            with index.open("rb") as file:
                rows = pq.read_table(file).to_pylist()
            self._where |= {
                row["url"]: (index.with_suffix(".bin"), row["offset"], row["length"]) for row in rows
            }
        self._begin()

    def _begin(self) -> None:
        # a name of its own: two workers may be at the same unit, where a runner takes one for dead
        self._file = self._folder / f"{uuid.uuid4().hex}.bin"
        self._bytes = bytearray()
        self._rows: list[dict[str, Any]] = []

    def __contains__(self, url: str) -> bool:
        return url in self._where

    def add(self, url: str, data: bytes) -> Fetched:
        """Keeps a photo."""
        offset = len(self._bytes)
        self._bytes += data
        self._rows.append({"url": url, "offset": offset, "length": len(data)})
        self._where[url] = self._file, offset, len(data)
        fetched = Fetched(url, data, path_text(self._file), offset)
        if len(self._rows) >= CHUNK_IMAGES or len(self._bytes) >= CHUNK_BYTES:
            self.flush()
        return fetched

    def read(self, url: str) -> Fetched:
        """A photo that was fetched before."""
        file, offset, length = self._where[url]
        held = file == self._file
        data = bytes(self._bytes[offset : offset + length]) if held else read_range(file, offset, length)
        return Fetched(url, data, path_text(file), offset)

    def flush(self) -> None:
        """Writes what is not written yet."""
        if self._rows:
            write_whole(self._file, bytes(self._bytes))
            with writing(self._file.with_suffix(".parquet")) as working:
                pq.write_table(pa.Table.from_pylist(self._rows, INDEX), working)
            self._begin()


# Requests


class _Client:
    """A thread with an event loop and one HTTP session, from `__enter__` to `__exit__`."""

    def __init__(self, fetching: Fetching) -> None:
        self._fetching = fetching
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._quiet: dict[str, float] = {}  # server → the loop's time until which it wants no requests

    def __enter__(self) -> "_Client":
        return self

    def submit(self, url: str) -> "Future[bytes]":
        """Begins to fetch; the result is the photo, or _Failed."""
        if self._thread is None:  # nothing is started for a unit that the cache has
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        import aiohttp

        fetching = self._fetching
        self._slots = asyncio.Semaphore(fetching.concurrency)
        resolver = _resolver(fetching.allowed)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=resolver, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=fetching.timeout, sock_connect=min(10.0, fetching.timeout)),
            headers={
                "User-Agent": f"shelfmark/{importlib.metadata.version('shelfmark')}",
                "Accept-Encoding": "identity",  # else a small answer might be a large one packed
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _fetch(self, url: str) -> bytes:
        """The photo, after as many tries as it takes and is allowed."""
        tries, waited = 0, 0.0
        while True:
            try:
                return await self._try(url)
            except _Later as later:
                detail, wait = later.args
                named = wait is not None
                if not named:
                    tries += 1
                    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
                waited += wait if named else 0.0
                if tries > self._fetching.retries or waited > PATIENCE:
                    raise _Failed("unreachable", detail) from later
                if named:
                    server = urlsplit(url).netloc
                    self._quiet[server] = max(self._quiet.get(server, 0.0), self._loop.time() + wait)
                else:
                    await asyncio.sleep(wait)

    async def _try(self, url: str) -> bytes:
        """One request, its redirects followed."""
        import aiohttp

        async with self._slots:
            try:
                for _ in range(REDIRECTS + 1):
                    await self._wait_for(urlsplit(url).netloc)
                    self._check(url)
                    async with self._session.get(url, allow_redirects=False) as answer:
                        if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                            url = urljoin(url, answer.headers["Location"])
                            continue
                        return await self._body(answer)
                raise _Failed("unreachable", f"over {REDIRECTS} redirects")
            except aiohttp.InvalidURL as error:
                raise _Failed("missing", f"no web address: {error}") from error
            except TimeoutError as error:
                raise _Later(f"no whole answer in {self._fetching.timeout:g} s", None) from error
            except aiohttp.ClientError as error:
                if isinstance(error.__cause__, _Failed):
                    raise error.__cause__ from error
                raise _Later(_in_words(error), None) from error
            except (ValueError, UnicodeError) as error:
                raise _Failed("missing", f"no web address: {error}") from error

    async def _wait_for(self, server: str) -> None:
        while (wait := self._quiet.get(server, 0.0) - self._loop.time()) > 0:
            await asyncio.sleep(wait)

    def _check(self, url: str) -> None:
        """Raises _Failed where the address may not be asked for; names are checked when they are resolved."""
        parts = urlsplit(url)
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            raise _Failed("missing", "expected http:// or https:// and a server")
        with contextlib.suppress(ValueError):
            _require_allowed(ipaddress.ip_address(parts.hostname.split("%")[0]), self._fetching.allowed)

    async def _body(self, answer: "aiohttp.ClientResponse") -> bytes:
        if answer.status in GONE:
            raise _Failed("missing", f"status {answer.status}")
        if answer.status in TRANSIENT:
            raise _Later(f"status {answer.status}", _wait_named(answer.headers.get("Retry-After", "")))
        if answer.status != 200:
            raise _Failed("unreachable", f"status {answer.status}")
        body = bytearray()
        async for piece in answer.content.iter_chunked(PIECE):
            body += piece
            if len(body) > self._fetching.max_bytes:
                raise _Failed("too_large", f"over {self._fetching.max_bytes} bytes")
        return bytes(body)


def _wait_named(retry_after: str) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date; None where it is neither.

    >>> _wait_named("7"), _wait_named("soon")
    (7.0, None)
    """
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r" ssl:\S+", "", text)[:200]


# Addresses


def _require_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address, allowed: Allowed) -> None:
    """Raises _Failed about an address of this machine or of a private network, unless any is allowed."""
    if allowed == "public" and not is_public(address):
        raise _Failed(
            "missing", f"{address} is no public address; ingest.urls=any allows those of your own network"
        )


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the public internet, also where it holds an IPv4 one.

    >>> [is_public(ipaddress.ip_address(text)) for text in ("93.184.216.34", "127.0.0.1", "::ffff:10.0.0.1")]
    [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address in TRANSLATED:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _resolver(allowed: Allowed) -> Any:
    """Resolves names; raises _Failed where one leads to an address that is not allowed.

    The connection goes to the addresses that were checked, so a name that changes meanwhile gains nothing.
    """
    from aiohttp.resolver import ThreadedResolver

    class Checked(ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            found = await super().resolve(host, port, family)
            for entry in found:
                _require_allowed(ipaddress.ip_address(entry["host"].split("%")[0]), allowed)
            return found

    return Checked()
