"""The engine room: products' photos in, decisions out, for many requests at once.

    submit ─► photos wait, a bounded number of them (else Full, at once)
                │  one photo of each request in turn, while fewer than two batches are decoded and wait
                ▼
    decode threads, a process each (decoding.py) ─► pixels in each size, or a refusal
                │  one photo of each request in turn
                ▼
    backbone thread: what has arrived, the largest batch that it fills, of the same views (extractor.py)
                │     ─► bottlenecks of all views;  with a cascade of the first view, and the pixels stay
                │  products whose photos are all there          ▲
                ▼                                               │ of a cascade, where that is not certain:
    head threads, ──────────────────────────────────────────────┘ the photos again, for the other views
                   many products at once: those with sellers, whose store may be slow, in one of their own
                ▼
    the request's Future

A request keeps the release that was in service when it came. Nothing of a request whose Future is cancelled,
or whose time is over, is decoded or computed any more.
"""

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import BinaryIO, Protocol

import numpy as np

from features.errors import ShelfmarkError
from features.images.refusal import Refused
from serving.decider import Decider, ReadProduct, SeenProduct, StoreUnavailable
from serving.decoding import DecodedPhoto, DecodeLimits, DecodeProcess, PhotoGone
from serving.extractor import LARGEST, Extractor
from serving.fair_queue import FairQueue
from serving.schemas import Decision
from serving.served import Served

AHEAD = 2 * LARGEST  # places in batches, of photos that are decoded and wait, or are being decoded
MOST_PHOTOS = 1024  # that wait, by default
LARGE_SHARE = 4  # a request counts as at most this part, 1/4, of what may wait: others are taken beside it
LONGEST_WAIT = 4.0  # s of the engine's work that wait, by default: after too many requests it is free as soon
MOST_PROCESSES = 8  # that decode, by default
LEAST_RETRY = 0.1  # s

log = logging.getLogger("shelfmark")


# What goes in and out


@dataclass(frozen=True)
class Product:
    """A product to decide about, or (without `decide`) only to look at."""

    product_id: str | None  # returned in the decision
    seller: str | None  # whose corrections count; None: nobody's
    photos: Sequence[BinaryIO]  # seekable; they stay open until the request's Future is done
    decide: bool = True


@dataclass(frozen=True)
class Answer:
    """What came of a product."""

    decision: Decision | None  # None where only `seen` was wanted, and with an error
    seen: SeenProduct | None  # None: no photo is readable
    refusals: list[Refused | None]  # of each photo why it was refused, or None
    release: str  # that decided
    error: StoreUnavailable | None = None  # the seller's corrections cannot be read


class Full(Exception):
    """Too many photos wait."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many photos wait; there will be room in about {retry_after:.1f} s")
        self.retry_after = retry_after  # s


class Closed(Exception):
    """The room takes no more requests, or has ended before a request was done."""


@dataclass(frozen=True)
class RoomLimits:
    """How much waits and how it is decoded."""

    photos: int | None = None  # that wait; None: what is computed in LONGEST_WAIT, or half of `seconds`
    seconds: float = 30.0  # usual time limit of a request
    wait_ms: float = 2.0  # for photos that are being decoded, to fill a batch
    processes: int | None = None  # that decode; None: one for each core, 2 to MOST_PROCESSES
    decode: DecodeLimits = field(default_factory=DecodeLimits)

    def started(self) -> list[DecodeProcess]:
        """Begins to start the decode processes; they can start while the release is opened."""
        cores = len(os.sched_getaffinity(0))
        count = self.processes or max(2, min(cores, MOST_PROCESSES))
        return [DecodeProcess(self.decode) for _ in range(count)]


class Watch(Protocol):
    """Called with what happens, from the room's threads; quick, and never raises."""

    def decoded(self, seconds: float) -> None:
        """A photo was decoded or refused."""

    def refused(self, reason: str) -> None:
        """A photo was refused; one of REASONS."""

    def batch(self, size: int, seconds: float) -> None:
        """The backbone has computed a batch of so many images: views of photos."""

    def head(self, products: int, seconds: float) -> None:
        """So many products were decided about together."""

    def queued(self, photos: int) -> None:
        """So many photos are now accepted and not yet computed or refused."""


class Unwatched:
    """Nobody watches."""

    def decoded(self, seconds: float) -> None:
        """See Watch."""

    def refused(self, reason: str) -> None:
        """See Watch."""

    def batch(self, size: int, seconds: float) -> None:
        """See Watch."""

    def head(self, products: int, seconds: float) -> None:
        """See Watch."""

    def queued(self, photos: int) -> None:
        """See Watch."""


# A request while it is worked on


@dataclass(eq=False)
class _Request:
    served: Served
    future: "Future[list[Answer]]"
    photos_left: int  # not yet computed or refused
    charged: int  # of them that count in what may wait
    products_left: int  # not yet decided about
    answers: list[Answer | None]
    has_ended: bool = False  # nobody waits for it any more


@dataclass(eq=False)
class _Work:
    """A product of a request."""

    request: _Request
    number: int  # within the request
    given: Product
    photos_left: int
    digests: list[bytes | None]  # of each photo
    refusals: list[Refused | None]
    bottlenecks: dict[bytes, np.ndarray | None] = field(default_factory=dict)  # digest → (rows, d) float16
    look: int = 0  # which of Served.looks computes its photos
    held: "list[_Photo]" = field(default_factory=list)  # of a cascade: computed in the first view

    def read(self) -> ReadProduct:
        """The product once all of its photos are computed or refused; a photo given twice counts once."""
        used = {digest: self.bottlenecks.get(digest) for digest in self.digests if digest}
        rows = {digest: own for digest, own in used.items() if own is not None}
        seen = SeenProduct(tuple(map(bytes.hex, rows)), np.concatenate(list(rows.values()))) if rows else None
        return ReadProduct(self.given.product_id, self.given.seller, seen)


@dataclass(eq=False)
class _Photo:
    work: _Work
    number: int  # within the product
    pixels: Mapping[int, np.ndarray] = field(default_factory=dict)  # by size in px: (size, size, 3) uint8
    digest: bytes = b""

    @property
    def extractor(self) -> Extractor:
        """That computes it."""
        return self.work.request.served.looks[self.work.look]


class _Rate:
    """Photos a second that leave the room while others wait, over a second or more at a time."""

    def __init__(self, start: float) -> None:
        self.value = start
        self._since = 0.0
        self._left = 0

    def begin(self) -> None:
        """None waited until now."""
        self._since, self._left = time.monotonic(), 0

    def leave(self) -> None:
        """A photo has left, and others wait."""
        self._left += 1
        if (elapsed := time.monotonic() - self._since) >= 1:
            self.value += 0.5 * (self._left / elapsed - self.value)
            self.begin()


class Room:
    """Decides about the products of many requests, with the release in service."""

    def __init__(
        self,
        served: Served,
        limits: RoomLimits = RoomLimits(),
        watch: Watch = Unwatched(),  # noqa: B008 (it holds nothing)
        processes: Sequence[DecodeProcess] | None = None,
    ) -> None:
        """Starts the threads, and waits until the decode processes are ready.

        Args:
            served: in service.
            limits: of what waits and of decoding.
            watch: is called with what happens.
            processes: that have been started (RoomLimits.started); None: they are started here.

        Raises:
            ShelfmarkError: no process starts.
        """
        self._served, self._limits, self._watch = served, limits, watch
        self._lock = threading.Lock()  # of all that follows
        self._decodable = threading.Condition(self._lock)
        self._computable = threading.Condition(self._lock)
        self._timed = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)
        self._accepts, self._closed = True, False
        self._live: dict[Future[list[Answer]], _Request] = {}
        self._deadlines: list[tuple[float, int, weakref.ref[Future[list[Answer]]]]] = []  # a heap
        self._numbers = itertools.count()
        self._pending = self._charged = 0  # photos
        self._waiting = FairQueue[_Photo]()
        self._ready: OrderedDict[Extractor, FairQueue[_Photo]] = OrderedDict()  # none of them is empty
        self._decoded = self._decoding = 0  # places in batches: of _ready, and of what is being decoded
        self._rate = _Rate(served.rate)
        self._heads: tuple[SimpleQueue[_Work | None], ...] = (SimpleQueue(), SimpleQueue())
        self._processes = list(processes) if processes is not None else limits.started()
        try:
            for process in self._processes:
                process.wait_ready()
        except ShelfmarkError:
            for process in self._processes:
                process.close()
            raise
        targets: list[tuple[str, Callable[..., None], tuple[object, ...]]] = [
            *(("decode", self._decode_all, (process,)) for process in self._processes),
            ("backbone", self._compute_all, ()),
            ("head", self._decide_all, (self._heads[0],)),
            ("sellers", self._decide_all, (self._heads[1],)),
            ("deadlines", self._end_late, ()),
        ]
        self._threads = [
            threading.Thread(target=target, args=arguments, name=name, daemon=True)
            for name, target, arguments in targets
        ]
        for thread in self._threads:
            thread.start()

    @property
    def served(self) -> Served:
        """What new requests get."""
        return self._served

    @property
    def pending(self) -> int:
        """Photos that are accepted and not yet computed or refused."""
        return self._pending

    @property
    def most_photos(self) -> int:
        """How many photos may be pending: as given, or what is computed in a few seconds."""
        if self._limits.photos is not None:
            return self._limits.photos
        seconds = min(LONGEST_WAIT, self._limits.seconds / 2)
        ahead = AHEAD // self._served.looks[0].places
        return max(ahead, min(MOST_PHOTOS, int(self._rate.value * seconds)))

    def take_over(self, served: Served) -> None:
        """Puts another release into service: new requests get it, those here keep theirs."""
        with self._lock:
            self._served = served
            self._rate.value = served.rate

    @property
    def full(self) -> Full | None:
        """Why not even a single photo would be taken now; None where one would be."""
        excess = self._charged + 1 - self.most_photos
        return self._full(excess) if excess > 0 else None

    def submit(
        self, products: Sequence[Product], timeout_s: float, served: Served | None = None
    ) -> "Future[list[Answer]]":
        """Takes a request; its Future gives an answer for each product, in their order.

        Cancel it, and nothing more is done for it. A large request counts as a part of what may wait, so it
        is taken beside others, and others beside it. Safe in threads, and quick.

        Args:
            products: of the request; their photos stay open until the Future is done.
            timeout_s: after so many seconds the Future raises a TimeoutError.
            served: that decides; None: what is in service.

        Raises:
            Full: too many photos wait. Closed: the room takes no more requests.
        """
        count = sum(len(product.photos) for product in products)
        future: Future[list[Answer]] = Future()
        with self._lock:
            if not self._accepts:
                raise Closed("the service is ending; expected one that takes requests; send it again later")
            most = self.most_photos
            charged = min(count, max(1, most // LARGE_SHARE))
            excess = self._charged + charged - most
            if excess > 0:
                raise self._full(excess)
            request = _Request(
                served or self._served, future, count, charged, len(products), [None] * len(products)
            )
            self._live[future] = request
            if not self._waiting:
                self._rate.begin()
            self._pending += count
            self._charged += charged
            for number, product in enumerate(products):
                self._enter(request, number, product)
            deadline = (time.monotonic() + timeout_s, next(self._numbers), weakref.ref(future))
            heapq.heappush(self._deadlines, deadline)
            if self._deadlines[0] is deadline:
                self._timed.notify()
            self._decodable.notify(count)
            self._watch.queued(self._pending)
        future.add_done_callback(self._leave)
        if not products:
            self._finish(request)
        return future

    def drain(self, limit_s: float) -> bool:
        """Takes no more requests; returns whether all that were here are done within so many seconds."""
        with self._lock:
            self._accepts = False
            return self._emptied.wait_for(lambda: not self._live, limit_s)

    def close(self) -> None:
        """Ends the threads and the processes; requests that are not done get a Closed."""
        with self._lock:
            self._accepts, self._closed = False, True
            live = list(self._live.values())
            for condition in (self._decodable, self._computable, self._timed):
                condition.notify_all()
        for request in live:
            self._fail(request, Closed("the service has ended; expected to be done before; send it again"))
        for process in self._processes:
            process.kill()
        for queue in self._heads:
            queue.put(None)
        for thread in self._threads:
            thread.join()

    # Requests

    def _full(self, photos: int) -> Full:
        """The refusal where so many photos have to be done first."""
        return Full(max(LEAST_RETRY, photos / max(self._rate.value, 1e-3)))

    def _enter(self, request: _Request, number: int, product: Product) -> None:
        count = len(product.photos)
        work = _Work(request, number, product, count, [None] * count, [None] * count)
        for index in range(count):
            self._waiting.put(request, _Photo(work, index))
        if not count:
            self._to_head(work)

    def _to_head(self, work: _Work) -> None:
        self._heads[1 if work.given.seller and work.given.decide else 0].put(work)

    def _leave(self, future: "Future[list[Answer]]") -> None:
        """Forgets a request whose Future is done: with a result, an error, or cancelled."""
        with self._lock:
            request = self._live.pop(future)
            request.has_ended = True
            self._waiting.forget(request)
            for extractor in request.served.looks:
                if queue := self._ready.get(extractor):
                    self._decoded -= queue.forget(request) * extractor.places
                    if not queue:
                        del self._ready[extractor]
            self._pending -= request.photos_left
            self._charged -= request.charged
            request.photos_left = request.charged = 0
            self._decodable.notify_all()
            if not self._live:
                self._emptied.notify_all()
            self._watch.queued(self._pending)

    def _finish(self, request: _Request) -> None:
        """Gives a request its answers."""
        if self._claim(request):
            request.future.set_result([answer for answer in request.answers if answer is not None])

    def _fail(self, request: _Request, error: Exception) -> None:
        if self._claim(request):
            request.future.set_exception(error)

    def _claim(self, request: _Request) -> bool:
        """Whether the caller may end a request: nobody has ended or cancelled it."""
        with self._lock:
            if request.has_ended:
                return False
            request.has_ended = True
        return request.future.set_running_or_notify_cancel()

    def _end_late(self) -> None:
        """The thread of the deadlines."""
        while True:
            with self._lock:
                if self._closed:
                    return
                wait = self._deadlines[0][0] - time.monotonic() if self._deadlines else None
                if wait is None or wait > 0:
                    self._timed.wait(wait)
                    continue
                future = heapq.heappop(self._deadlines)[2]()
                request = self._live.get(future) if future else None
            if request:
                self._fail(request, TimeoutError("the time limit of the request is over"))
            del future, request

    # Decoding

    def _decode_all(self, process: DecodeProcess) -> None:
        """The thread of a decode process."""
        while photo := self._next_photo():
            found = None
            try:
                found = self._decode(process, photo)
            except Exception as error:  # of this request alone; the thread goes on
                if not isinstance(error, PhotoGone | ShelfmarkError):
                    log.exception("decoding has failed")
                self._fail(photo.work.request, error)
            with self._lock:
                self._decoding -= photo.extractor.places
                if found and not photo.work.request.has_ended:
                    self._sort(photo, found)
                self._decodable.notify()
                self._computable.notify()
            del photo, found
        process.close()

    def _next_photo(self) -> _Photo | None:
        with self._lock:
            while not (self._waiting and self._decoded + self._decoding < AHEAD) and not self._closed:
                self._decodable.wait()
            if self._closed:
                return None
            photo = self._waiting.take()
            self._decoding += photo.extractor.places
            return photo

    def _decode(self, process: DecodeProcess, photo: _Photo) -> DecodedPhoto:
        work = photo.work
        process.wait_ready()
        began = time.monotonic()
        found = process.decode(work.given.photos[photo.number], work.request.served.extractor.sizes)
        self._watch.decoded(time.monotonic() - began)
        if found.refused:
            self._watch.refused(found.refused.reason)
        return found

    def _sort(self, photo: _Photo, found: DecodedPhoto) -> None:
        """Puts a decoded photo where it goes: to the backbone, unless it is refused or there already."""
        work = photo.work
        work.digests[photo.number], work.refusals[photo.number] = found.digest, found.refused
        if found.pixels is None or found.digest is None or found.digest in work.bottlenecks:
            self._photo_done(work)
            return
        work.bottlenecks[found.digest] = None
        photo.digest, photo.pixels = found.digest, found.pixels
        self._make_ready([photo])

    def _make_ready(self, photos: "list[_Photo]") -> None:
        """Puts photos of one product where the backbone takes them."""
        extractor = photos[0].extractor
        queue = self._ready.setdefault(extractor, FairQueue[_Photo]())
        for photo in photos:
            queue.put(photo.work.request, photo)
        self._decoded += len(photos) * extractor.places

    def _photo_done(self, work: _Work, held: bool = False) -> None:
        """A photo is refused or computed; `held`: in the first view of a cascade, and more may come."""
        if not held:
            self._count_out(work.request)
        work.photos_left -= 1
        if not work.photos_left:
            self._to_head(work)

    def _count_out(self, request: _Request) -> None:
        """A photo does not wait any more."""
        self._pending -= 1
        if self._waiting:
            self._rate.leave()
        self._watch.queued(self._pending)
        request.photos_left -= 1
        if request.photos_left < request.charged:
            request.charged -= 1
            self._charged -= 1

    # The backbone

    def _compute_all(self) -> None:
        """The thread of the backbone."""
        while photos := self._next_batch():
            try:
                self._compute(photos)
            except Exception as error:  # of these requests alone; the thread goes on
                log.exception("the backbone has failed")
                for request in {photo.work.request for photo in photos}:
                    self._fail(request, error)
            del photos

    def _next_batch(self) -> list[_Photo]:
        """Waits for photos; returns as many as one of SHAPES, of the same views; none: the room closes."""
        with self._lock:
            until = None
            while not self._closed:
                more = self._decoding or self._waiting
                if self._ready:
                    extractor, queue = next(iter(self._ready.items()))
                    if len(queue) >= extractor.worth or not more:
                        break
                    now = time.monotonic()
                    until = until or now + self._limits.wait_ms / 1000
                    if now >= until:
                        break
                    self._computable.wait(until - now)
                else:
                    until = None
                    self._computable.wait()
            if self._closed:
                return []
            count = extractor.count(len(queue))
            photos = [queue.take() for _ in range(count)]
            self._decoded -= count * extractor.places
            if queue:
                self._ready.move_to_end(extractor)
            else:
                del self._ready[extractor]
            self._decodable.notify(count)
            return photos

    def _compute(self, photos: list[_Photo]) -> None:
        """Computes photos of the same views."""
        found = photos[0].extractor.bottlenecks([photo.pixels for photo in photos], self._watch.batch)
        with self._lock:
            for photo, rows in zip(photos, found, strict=True):
                work = photo.work
                before = work.bottlenecks[photo.digest]
                work.bottlenecks[photo.digest] = rows if before is None else np.concatenate([before, rows])
                held = work.look + 1 < len(work.request.served.looks) and not work.request.has_ended
                if held:
                    work.held.append(photo)
                else:
                    photo.pixels = {}
                if not work.request.has_ended:
                    self._photo_done(work, held)

    # The head

    def _decide_all(self, queue: "SimpleQueue[_Work | None]") -> None:
        """The thread of a head."""
        while products := _arrived(queue):
            self._decide_arrived([work for work in products if not work.request.has_ended])
            del products

    def _decide_arrived(self, products: list[_Work]) -> None:
        """Decides about products, those of one release together."""
        by_decider: dict[Decider, list[_Work]] = {}
        for work in products:
            by_decider.setdefault(work.request.served.decider, []).append(work)
        for decider, own in by_decider.items():
            try:
                self._decide(decider, self._certain(decider, own))
            except Exception as error:  # of these requests alone; the thread goes on
                log.exception("the head has failed")
                for request in {work.request for work in own}:
                    self._fail(request, error)

    def _certain(self, decider: Decider, products: list[_Work]) -> list[_Work]:
        """The products that are decided about now; the photos of the others go to the backbone again."""
        looked = [work for work in products if work.held]
        seen = [read.seen for read in (work.read() for work in looked) if read.seen]
        again = set[_Work]()
        for work, looks in zip(looked, decider.looks_again(seen) if seen else [], strict=True):
            with self._lock:
                photos, work.held = work.held, []
                if looks and not work.request.has_ended:
                    again.add(work)
                    work.look, work.photos_left = work.look + 1, len(photos)
                    self._make_ready(photos)
                    self._computable.notify()
                    continue
                for photo in photos:
                    photo.pixels = {}
                    if not work.request.has_ended:
                        self._count_out(work.request)
        return [work for work in products if work not in again]

    def _decide(self, decider: Decider, products: list[_Work]) -> None:
        began = time.monotonic()
        read = [work.read() for work in products]
        wanted = [own for own, work in zip(read, products, strict=True) if work.given.decide]
        decisions = iter(decider.decide(wanted))
        for work, own in zip(products, read, strict=True):
            decision = next(decisions) if work.given.decide else None
            error = decision if isinstance(decision, StoreUnavailable) else None
            answer = Answer(
                None if isinstance(decision, StoreUnavailable) else decision,
                own.seen, work.refusals, work.request.served.name, error,
            )  # fmt: skip
            self._answered(work, answer)
        if wanted:
            self._watch.head(len(wanted), time.monotonic() - began)

    def _answered(self, work: _Work, answer: Answer) -> None:
        with self._lock:
            work.request.answers[work.number] = answer
            work.request.products_left -= 1
            is_done = not work.request.products_left
        if is_done:
            self._finish(work.request)


def _arrived(queue: "SimpleQueue[_Work | None]") -> list[_Work]:
    """Waits for products, and returns all that have arrived; none: the room closes."""
    products = list[_Work]()
    work = queue.get()
    while work is not None:
        products.append(work)
        try:
            work = queue.get_nowait()
        except Empty:
            return products
    if products:
        queue.put(None)  # for the next time
    return products
