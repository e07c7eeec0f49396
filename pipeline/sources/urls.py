"""Photos by URL: fetched once, many at a time, into a cache for both passes and for the next run of the job.

    <records>.fetched/<public or any>/<segment>/   see pipeline/sources/url_cache.py

A worker fetches in a thread of its own (pipeline/sources/web.py) while the photos before are checked.
What a killed job has written is not fetched again; if photos could not be reached, the cache stays for the
next run. Photos from any address are kept apart: a run that allows only public ones does not read them.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from features.images.refusal import LIMITS
from features.storage.paths import any_path
from pipeline.sources.addresses import Allowed
from pipeline.sources.url_cache import Cache, Fetched
from pipeline.sources.web import HELD_BYTES, Client, Failed

WINDOW = 4  # photos ahead of the one at hand, times the concurrency
BATCHES = 8  # URLs are handed to the client in batches of concurrency / BATCHES


@dataclass(frozen=True)
class Fetching:
    """How photos are fetched."""

    cache: str  # directory
    allowed: Allowed = "public"  # addresses; "any": also of this computer and of private networks
    concurrency: int = 32  # requests at a time in a worker
    timeout: float = 30.0  # s for one request with its response
    retries: int = 4  # tries after the first
    max_bytes: int = LIMITS.max_bytes  # of a photo


def is_url(image: str) -> bool:
    """Whether an image's cell is a web address.

    >>> is_url("HTTPS://shop.example/1.jpg"), is_url("s3://bucket/1.jpg"), is_url("http/1.jpg")
    (True, False, False)
    """
    return re.match(r"(?i)https?://", image) is not None


def fetch_urls(urls: Sequence[str], fetching: Fetching, segment: str) -> Iterator[Fetched]:
    """The photos at these addresses, in their order; an address that occurs twice is fetched once.

    Args:
        urls: web addresses.
        fetching: how.
        segment: name of the segment's folder in the cache.
    """
    cache = Cache(any_path(fetching.cache) / fetching.allowed / segment)
    client = Client(
        allowed=fetching.allowed, concurrency=fetching.concurrency, timeout=fetching.timeout,
        retries=fetching.retries, max_bytes=fetching.max_bytes,
    )  # fmt: skip
    waiting: deque[str] = deque()
    with client:
        ahead = _Ahead(client, cache, batch=max(1, fetching.concurrency // BATCHES))
        try:
            for url in urls:
                ahead.request(url)
                waiting.append(url)
                if len(waiting) > WINDOW * fetching.concurrency:
                    yield ahead.get(waiting.popleft())
            while waiting:
                yield ahead.get(waiting.popleft())
        finally:
            ahead.keep_arrived()
            cache.close()


class _Ahead:
    """Fetches photos before their turn comes; each is put into the cache as soon as it arrives."""

    def __init__(self, client: Client, cache: Cache, batch: int) -> None:
        self._client, self._cache, self._batch = client, cache, batch
        self._requested: set[str] = set()
        self._new: list[str] = []  # requested, not begun
        self._failed: dict[str, Fetched] = {}
        self._held: dict[str, Fetched] = {}  # so that they need not be read from the cache
        self._held_bytes = 0

    def request(self, url: str) -> None:
        """Requests a photo unless it is in the cache or requested already."""
        if url not in self._requested and url not in self._cache:
            self._requested.add(url)
            self._new.append(url)
            if len(self._new) >= self._batch:
                self._begin()

    def _begin(self) -> None:
        if self._new:
            self._client.begin(self._new)
            self._new = []

    def get(self, url: str) -> Fetched:
        """A photo whose turn has come; waits for it."""
        self.keep_arrived()
        while url not in self._failed and url not in self._cache:
            self._begin()
            self._keep()
        if url in self._failed:
            return self._failed[url]
        held = self._held.pop(url, None)
        if held is None:
            return self._cache.read(url)
        self._held_bytes -= len(held.data)
        return held

    def keep_arrived(self) -> None:
        """Puts what has arrived into the cache, without waiting."""
        while self._client.arrived():
            self._keep()

    def _keep(self) -> None:
        url, photo = self._client.next()
        if isinstance(photo, Failed):
            self._failed[url] = Fetched(url, reason=photo.reason, detail=photo.detail)
            return
        fetched = self._cache.add(url, photo)
        if self._held_bytes + len(photo) <= HELD_BYTES:
            self._held[url] = fetched
            self._held_bytes += len(photo)
