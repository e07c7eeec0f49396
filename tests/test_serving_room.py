"""The engine room: who comes first, what is refused, what nobody waits for, and decisions as in batch."""

import hashlib
import io
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import psutil
import pytest
from conftest import Photo, make_bundle
from corrected import adapter_of, learn, store_of
from test_categorize import Saved
from test_extract import engines_by_hand

from features.engines.backbones import load_backbone
from features.errors import ShelfmarkError
from features.images.normalise import normalise
from features.images.refusal import Refused
from features.views import WHOLE, View, parse_view
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.cascade import Cascade
from serving.decider import Decider, ReadProduct, SeenProduct, StoreUnavailable
from serving.decoding import DecodedPhoto, DecodeLimits, DecodeProcess
from serving.extractor import SHAPES, Extractor, Network
from serving.fair_queue import FairQueue
from serving.room import AHEAD, Answer, Closed, Full, Product, Room, RoomLimits, Unwatched
from serving.schemas import Decision
from serving.served import Served

LONG = 60.0  # s, on a computer that has much else to do
BAD = b"no photo"


# Stand-ins: a photo is a number in bytes, its pixels have that number everywhere, and so has its bottleneck


class Held:
    """Something that can be held up, and says what has come to it."""

    def __init__(self) -> None:
        self.go, self.came, self.seen = threading.Event(), threading.Event(), list[Any]()
        self.go.set()

    def pass_by(self, what: Any) -> None:
        self.seen.append(what)
        self.came.set()
        assert self.go.wait(LONG)


@dataclass
class Counting:
    """An engine whose bottlenecks are the numbers of the photos; `at` is added, so that releases differ."""

    batch: int
    held: Held
    at: int = 0
    name: str = "by hand"
    size: int = 2
    width: int = 3
    fails: bool = False

    def fill(self, batches: Sequence[np.ndarray], rows: np.ndarray) -> None:
        [pixels] = batches
        self.held.pass_by((self.at, pixels[:, 0, 0, 0].tolist()))
        if self.fails:
            raise RuntimeError("out of order")
        assert len(pixels) == self.batch
        rows[:] = pixels.reshape(self.batch, -1)[:, :1] + self.at


@dataclass(eq=False)
class Naming:
    """A decider whose decisions name the bottlenecks."""

    release: str
    products: list[int] = field(default_factory=list)  # decided about together

    def looks_again(self, products: Sequence[SeenProduct]) -> list[bool]:
        """At products whose first photo is odd."""
        return [bool(product.bottlenecks[0, 0] % 2) for product in products]

    def decide(self, products: Sequence[ReadProduct]) -> list[Decision]:
        self.products.append(len(products))
        return [self._decision(product) for product in products]

    def _decision(self, product: ReadProduct) -> Decision:
        seen = product.seen.bottlenecks[:, 0].astype(int).tolist() if product.seen else []
        values = dict.fromkeys(("category_path", "node", "node_path", "node_level"))
        return Decision.model_validate(
            values | {
                "product_id": product.product_id, "category": None, "confidence": 0.5, "status": "review",
                "top_categories": [str(number) for number in seen], "top_probabilities": [],
                "views": "whole", "release": self.release,
            }
        )  # fmt: skip


class InThread:
    """A decode process that is none."""

    def __init__(self, held: Held) -> None:
        self.held, self.closed = held, False

    def wait_ready(self) -> None:
        pass

    def decode(self, photo: BinaryIO, sizes: Sequence[int]) -> DecodedPhoto:
        data = photo.read()
        self.held.pass_by(data)
        digest = hashlib.sha256(data).digest()
        if data == BAD:
            return DecodedPhoto(digest, None, Refused("not_an_image", "drawn"))
        pixels = {size: np.arange(size * size * 3).reshape(size, size, 3) % 2 * 100 for size in sizes}
        drawn = {size: (values + int(data) + size - 2).astype(np.uint8) for size, values in pixels.items()}
        return DecodedPhoto(digest, drawn, None)

    def kill(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def served_of(
    engine: Held,
    name: str = "week",
    at: int = 0,
    views: Sequence[str] = ("whole",),
    rate: float = 100.0,
    cascade: Cascade | None = None,
) -> Served:
    """A release for photos of 2 px; `rate` is that of each of its networks."""
    asked, networks = tuple(map(parse_view, views)), dict[View, Network]()
    for view in (one.network for one in asked):
        engines = {shape: Counting(shape, engine, at, size=view.input(2)) for shape in SHAPES}
        networks.setdefault(view, Network(cast(Any, engines), rate))
    bundle = SimpleNamespace(path=Path(name), fingerprint=str(at))
    extractor = Extractor(asked, is_averaged=False, size=2, networks=networks)
    return Served(cast(Bundle, bundle), extractor, cast(Decider, Naming(name)), cascade)


@dataclass
class Place:
    """A room with stand-ins, and what happens in it."""

    decoding: Held
    engine: Held
    room: Room
    process: InThread

    def submit(self, *products: Sequence[int], timeout_s: float = LONG) -> "Future[list[Answer]]":
        return self.room.submit([product(*photos) for photos in products], timeout_s)

    def batches(self) -> list[list[int]]:
        return [numbers for _, numbers in self.engine.seen]


def product(*photos: int | bytes, **given: Any) -> Product:
    data = [photo if isinstance(photo, bytes) else str(photo).encode() for photo in photos]
    return Product(
        given.pop("product_id", None), given.pop("seller", None), list(map(io.BytesIO, data)), **given
    )


def place_of(limits: RoomLimits | None = None, **served: Any) -> Place:
    decoding, engine = Held(), Held()
    process = InThread(decoding)
    room = Room(served_of(engine, **served), limits or RoomLimits(), processes=[cast(DecodeProcess, process)])
    return Place(decoding, engine, room, process)


@pytest.fixture
def place() -> Iterator[Place]:
    made = place_of()
    yield made
    made.decoding.go.set()
    made.engine.go.set()
    made.room.close()


def seen(answers: list[Answer]) -> list[list[int]]:
    """The bottlenecks that each product's decision was made from."""
    return [[int(name) for name in answer.decision.top_categories] for answer in answers if answer.decision]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# The cascade


@pytest.fixture
def cascade() -> Iterator[Place]:
    made = place_of(views=("whole", "32", "34-max"), cascade=Cascade(0.5, 0.25))
    yield made
    made.decoding.go.set()
    made.engine.go.set()
    made.room.close()


def test_of_a_cascade_uncertain_products_alone_are_computed_in_the_other_views(cascade: Place) -> None:
    request = [product(1, 3, 1, BAD), product(2, 5), product(BAD), product()]
    answers = cascade.room.submit(request, LONG).result(LONG)
    assert seen(answers) == [
        [1, 31, 33, 3, 33, 35],
        [2, 5],
        [],
        [],
    ]  # a photo's views: its number, + 30, + 32
    numbers = [number for batch in cascade.batches() for number in batch]
    assert sorted(numbers) == sorted([1, 3, 2, 5, 31, 33, 33, 35])
    assert len(cascade.decoding.seen) == 7, "each photo is decoded once"
    room = cascade.room
    assert (room.pending, room._charged, room._decoded, room._decoding, dict(room._ready)) == (0, 0, 0, 0, {})


def test_a_photo_counts_among_those_that_wait_until_its_product_needs_no_other_view(cascade: Place) -> None:
    first, others = cascade.room.served.looks
    assert cascade.room.served.rate == pytest.approx(1 / (1 / first.rate + 0.25 / others.rate))
    cascade.engine.go.clear()
    future = cascade.submit([1, 3])
    wait_for(lambda: bool(cascade.engine.seen))
    assert cascade.room.pending == 2
    assert future.cancel()
    assert cascade.room.pending == 0
    cascade.engine.go.set()
    assert seen(cascade.submit([2]).result(LONG)) == [[2]]
    assert not any(number > 3 for batch in cascade.batches() for number in batch), "no other view"
    assert (cascade.room.pending, cascade.room._charged, cascade.room._decoded) == (0, 0, 0)


def test_many_requests_of_a_cascade_share_batches_in_both_looks(cascade: Place) -> None:
    futures = [cascade.submit([number, number + 1]) for number in range(20)]
    for number, future in enumerate(futures):
        first = [number, number + 1]
        every = [number, number + 30, number + 32, number + 1, number + 31, number + 33]
        assert seen(future.result(LONG)) == [every if number % 2 else first]
    assert cascade.room.pending == cascade.room._decoded == 0


# Answers


def test_every_product_of_a_request_has_its_answer_in_their_order(place: Place) -> None:
    answers = place.submit([1, 2], [3], [4, 5, 6]).result(LONG)
    assert seen(answers) == [[1, 2], [3], [4, 5, 6]]
    assert {answer.release for answer in answers} == {"week"}


def test_a_photo_given_twice_counts_once_and_refusals_stand_at_their_photos(place: Place) -> None:
    [answer] = place.room.submit([product(7, BAD, 7, 8, BAD)], LONG).result(LONG)
    assert seen([answer]) == [[7, 8]]
    reasons = [refused and refused.reason for refused in answer.refusals]
    assert reasons == [None, "not_an_image", None, None, "not_an_image"]
    assert answer.seen
    assert answer.seen.digests == tuple(hashlib.sha256(data).hexdigest() for data in (b"7", b"8"))
    assert sum(map(len, place.batches())) == 2


def test_a_product_without_a_readable_photo_or_without_any_is_decided_about(place: Place) -> None:
    answers = place.room.submit([product(BAD), product()], LONG).result(LONG)
    assert seen(answers) == [[], []] and [answer.seen for answer in answers] == [None, None]
    assert place.room.submit([], LONG).result(LONG) == []


def test_a_mirrored_view_has_its_own_row_beside_that_of_the_photo() -> None:
    place = place_of(views=["whole", "flip"])
    try:
        [answer] = place.submit([1, 2]).result(LONG)
        assert answer.seen
        # the two pixels of a row begin with 1 and 101; mirrored, with 101 and 1
        assert answer.seen.bottlenecks[:, 0].tolist() == [1, 101, 2, 102]
        assert sum(map(len, place.batches())) == 4
    finally:
        place.room.close()


def test_views_of_several_sizes_are_rows_of_a_photo_that_is_decoded_once() -> None:
    place = place_of(views=["32-flip", "whole", "flip", "32"])
    try:
        [first, second] = place.submit([1, 2], [3]).result(LONG)
        assert first.seen and second.seen
        # at 32 px, a photo's pixels are 30 more than at 2 px
        assert first.seen.bottlenecks[:, 0].tolist() == [131, 1, 101, 31, 132, 2, 102, 32]
        assert second.seen.bottlenecks[:, 0].tolist() == [133, 3, 103, 33]
        assert sorted(place.decoding.seen) == [b"1", b"2", b"3"] and place.room.pending == 0
    finally:
        place.room.close()


def test_a_product_that_is_only_looked_at_has_bottlenecks_and_no_decision(place: Place) -> None:
    [answer] = place.room.submit([product(3, decide=False)], LONG).result(LONG)
    assert answer.decision is None and answer.seen
    assert answer.seen.bottlenecks.tolist() == [[3.0] * 3]


# Who comes first


def test_a_request_of_64_products_does_not_hold_up_a_single_one(place: Place) -> None:
    place.engine.go.clear()
    large = place.submit(*([number] for number in range(64)))
    assert place.engine.came.wait(LONG)
    small = place.submit([200])
    place.engine.go.set()
    assert seen(small.result(LONG)) == [[200]]
    large.result(LONG)
    before = [number for batch in place.batches() for number in batch].index(200)
    assert before <= max(SHAPES) + AHEAD + 1  # at work, decoded already, and one of the large request in turn


def test_photos_of_requests_are_taken_in_turn() -> None:
    queue = FairQueue[int]()
    for request, photo in [("a", 1), ("a", 2), ("a", 3), ("b", 11), ("b", 12), ("c", 21)]:
        queue.put(request, photo)
    assert [queue.take() for _ in range(2)] == [1, 11]
    assert queue.forget("b") == 1 and queue.forget("nobody") == 0
    assert [queue.take() for _ in range(len(queue))] == [21, 2, 3]
    with pytest.raises(IndexError):
        queue.take()


@pytest.mark.parametrize(("views", "places"), [(["whole"], 1), (["whole", "flip"], 2), (["whole", "32"], 1)])
def test_decoding_is_ahead_by_two_batches_at_most(views: list[str], places: int) -> None:
    place = place_of(views=views)
    try:
        place.engine.go.clear()
        future = place.submit(*([number] for number in range(100)))
        wait_for(lambda: len(place.decoding.seen) >= AHEAD // places)
        time.sleep(0.05)
        assert len(place.decoding.seen) <= (AHEAD + max(SHAPES)) // places  # these are at work
        place.engine.go.set()
        assert [first for [first, *_] in seen(future.result(LONG))] == list(range(100))
    finally:
        place.engine.go.set()
        place.room.close()


def test_a_batch_is_one_of_the_sizes_and_of_what_has_arrived(place: Place) -> None:
    place.engine.go.clear()
    first = place.submit([0])
    assert place.engine.came.wait(LONG)
    more = [place.submit([number]) for number in range(1, 12)]
    wait_for(lambda: len(place.decoding.seen) == 12)
    wait_for(lambda: place.room._decoded == 11)
    place.engine.go.set()
    for future in (first, *more):
        future.result(LONG)
    assert [len(batch) for batch in place.batches()] == [1, 8, 2, 1]


# Bounds


def test_too_many_photos_are_refused_at_once_with_the_seconds_until_there_is_room() -> None:
    place = place_of(RoomLimits(photos=12))
    try:
        place.decoding.go.clear()
        taken = [place.submit([first, first + 1]) for first in range(0, 10, 2)]
        with pytest.raises(Full) as full:
            place.submit([10], [11], [12])
        one_too_many = pytest.approx(0.1)  # s, at 100 a second; at least 0.1
        assert full.value.retry_after == one_too_many
        assert place.room.full is None
        taken.append(place.submit([10, 11]))
        assert place.room.pending == 12 and place.room.full
        place.decoding.go.set()
        assert [seen(one.result(LONG)) for one in taken] == [[[n, n + 1]] for n in range(0, 12, 2)]
        assert place.room.pending == 0 and place.room.full is None
    finally:
        place.room.close()


def test_large_requests_and_small_ones_are_taken_beside_each_other_until_the_bound_is_reached() -> None:
    """A request counts as at most a quarter of what may wait."""
    place = place_of(RoomLimits(photos=4))
    try:
        place.decoding.go.clear()
        large = [place.submit(list(range(16))) for _ in range(2)]
        small = [place.submit([99]), place.submit([98])]
        with pytest.raises(Full):
            place.submit([97])
        place.decoding.go.set()
        assert [seen(one.result(LONG)) for one in large] == [[list(range(16))]] * 2
        assert [seen(one.result(LONG)) for one in small] == [[[99]], [[98]]]
        assert place.room.full is None and place.room.pending == 0
        assert seen(place.submit([97]).result(LONG)) == [[97]]
    finally:
        place.room.close()


@pytest.mark.parametrize(
    ("views", "rate", "photos"),
    [
        (["whole"], 0.1, AHEAD),
        (["whole"], 20.0, 80),
        (["whole"], 1000.0, 1024),
        (["whole", "flip"], 0.1, AHEAD // 2),
        (["whole", "flip"], 20.0, 40),
        (["whole", "flip", "32", "32-flip"], 100.0, 100),
    ],
)
def test_as_many_photos_wait_as_four_seconds_compute(views: list[str], rate: float, photos: int) -> None:
    place = place_of(RoomLimits(seconds=30))
    try:
        place.room.take_over(served_of(place.engine, "next", views=views, rate=rate))
        assert place.room.most_photos == photos
    finally:
        place.room.close()


# What nobody waits for


def test_nothing_of_a_cancelled_request_is_decoded_or_computed_any_more(place: Place) -> None:
    place.decoding.go.clear()
    future = place.submit(*([number] for number in range(64)))
    assert place.decoding.came.wait(LONG)
    assert future.cancel()
    assert place.room.pending == 0
    place.decoding.go.set()
    assert seen(place.submit([99]).result(LONG)) == [[99]]
    assert place.decoding.seen == [b"0", b"99"] and place.batches() == [[99]]


def test_decoded_photos_of_a_cancelled_request_are_not_computed(place: Place) -> None:
    place.engine.go.clear()
    blocking = place.submit([0])
    assert place.engine.came.wait(LONG)
    future = place.submit([1, 2, 3])
    wait_for(lambda: place.room._decoded == 3)
    assert future.cancel()
    place.engine.go.set()
    blocking.result(LONG)
    assert seen(place.submit([99]).result(LONG)) == [[99]]
    assert place.batches() == [[0], [99]]


def test_a_request_whose_time_is_over_raises_and_nothing_more_is_done_for_it(place: Place) -> None:
    place.decoding.go.clear()
    late = place.submit([1, 2, 3], timeout_s=0.05)
    other = place.submit([7])
    with pytest.raises(TimeoutError, match="the time limit of the request is over"):
        late.result(LONG)
    assert not other.done()
    place.decoding.go.set()
    assert seen(other.result(LONG)) == [[7]]
    assert place.decoding.seen == [b"1", b"7"] and place.batches() == [[7]]


def test_an_earlier_deadline_counts_although_a_later_one_came_first(place: Place) -> None:
    place.decoding.go.clear()
    patient = place.submit([1], timeout_s=LONG)
    with pytest.raises(TimeoutError):
        place.submit([2], timeout_s=0.05).result(LONG)
    assert not patient.done()


# Failures


def test_an_engine_that_fails_fails_the_requests_of_its_batch_and_no_other(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    engine = cast(Counting, place.room.served.extractor.networks[WHOLE].engines[1])
    engine.fails = True
    with pytest.raises(RuntimeError, match="out of order"):
        place.submit([1]).result(LONG)
    engine.fails = False
    assert seen(place.submit([2]).result(LONG)) == [[2]]
    assert "the backbone has failed" in caplog.text and place.room.pending == 0


def test_a_photo_that_is_closed_fails_its_request_and_no_other(place: Place) -> None:
    place.decoding.go.clear()
    blocking = place.submit([0])
    gone = product(1)
    future = place.room.submit([gone], LONG)
    cast(io.BytesIO, gone.photos[0]).close()
    place.decoding.go.set()
    with pytest.raises(ValueError, match="closed"):
        future.result(LONG)
    assert seen(blocking.result(LONG) + place.submit([2]).result(LONG)) == [[0], [2]]


# Releases


def test_requests_keep_the_release_that_they_came_with_and_no_batch_mixes_two(place: Place) -> None:
    place.engine.go.clear()
    before = [place.submit([number]) for number in range(6)]
    wait_for(lambda: place.room._decoded + len(place.engine.seen) >= 6 or len(place.decoding.seen) == 6)
    place.room.take_over(served_of(place.engine, "next", at=50))
    after = [place.submit([number]) for number in range(10, 16)]
    wait_for(lambda: len(place.decoding.seen) == 12)
    place.engine.go.set()
    for number, future in enumerate(before):
        [answer] = future.result(LONG)
        assert (answer.release, seen([answer])) == ("week", [[number]])
    for number, future in enumerate(after, 10):
        [answer] = future.result(LONG)
        assert (answer.release, seen([answer])) == ("next", [[number + 50]])
    assert all(
        (min(numbers) >= 10) == (at == 50) == (max(numbers) >= 10) for at, numbers in place.engine.seen
    )


def test_an_old_release_is_freed_once_its_requests_are_done(place: Place) -> None:
    assert seen(place.submit([1], [2]).result(LONG)) == [[1], [2]]
    old = weakref.ref(place.room.served)
    place.room.take_over(served_of(place.engine, "next"))
    wait_for(lambda: old() is None)


def test_a_request_may_name_its_release(place: Place) -> None:
    other = served_of(place.engine, "other", at=20)
    [answer] = place.room.submit([product(1)], LONG, other).result(LONG)
    assert (answer.release, seen([answer])) == ("other", [[21]])


# The end


def test_draining_finishes_what_is_accepted_and_takes_no_more(place: Place) -> None:
    place.decoding.go.clear()
    future = place.submit([1])
    assert not place.room.drain(0.01)
    with pytest.raises(Closed):
        place.submit([2])
    place.decoding.go.set()
    assert place.room.drain(LONG)
    assert seen(future.result(0)) == [[1]]


def test_closing_ends_threads_and_processes_and_whoever_still_waits(photo: Photo) -> None:
    before = set(threading.enumerate())
    held = Held()
    room = Room(served_of(held), RoomLimits(processes=2, decode=DecodeLimits(seconds=LONG)))
    processes = [psutil.Process(process.pid) for process in room._processes]
    held.go.clear()
    future = room.submit([Product(None, None, [io.BytesIO(photo(1))])], LONG)
    assert held.came.wait(LONG)
    threading.Timer(0.1, held.go.set).start()
    room.close()
    with pytest.raises(Closed):
        future.result(0)
    assert not {
        thread for thread in set(threading.enumerate()) - before if not isinstance(thread, threading.Timer)
    }
    assert not any(process.is_running() for process in processes)


def test_what_happens_is_watched() -> None:
    happened = list[tuple[Any, ...]]()

    class Watching(Unwatched):
        def decoded(self, seconds: float) -> None:
            happened.append(("decoded",))

        def refused(self, reason: str) -> None:
            happened.append(("refused", reason))

        def batch(self, size: int, seconds: float) -> None:
            happened.append(("batch", size))

        def head(self, products: int, seconds: float) -> None:
            happened.append(("head", products))

        def queued(self, photos: int) -> None:
            happened.append(("queued", photos))

    held = Held()
    process = cast(DecodeProcess, InThread(Held()))
    room = Room(served_of(held), RoomLimits(wait_ms=LONG * 1000), Watching(), [process])
    room.submit([product(1, BAD)], LONG).result(LONG)
    room.close()
    queued = [("queued", photos) for photos in (2, 1, 0, 0)]
    others = [("decoded",), ("decoded",), ("refused", "not_an_image"), ("batch", 1), ("head", 1)]
    assert sorted(happened) == sorted([*others, *queued])


# With a bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Bundle:
    import keras

    keras.utils.set_random_seed(5)
    path = tmp_path_factory.mktemp("bundle") / "week"
    make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    return open_bundle(path)


def assert_decided_as_in_batch(served: Served, photos: list[bytes]) -> None:
    """Compares products of one photo each, together and one by one, with what the batch job computes."""
    categorizer, engine = served.bundle.categorizer, served.extractor.networks[WHOLE].engines[max(SHAPES)]
    jpegs, names = [normalise(data).jpeg for data in photos], np.arange(len(photos)).astype(str)
    bottlenecks = categorizer.bottlenecks({WHOLE: engine}, jpegs, "drawn")
    table = categorizer.decide(names, categorizer.predict(bottlenecks, np.arange(len(photos) + 1)))
    sizes = list[int]()

    class Watching(Unwatched):
        def batch(self, size: int, seconds: float) -> None:
            sizes.append(size)

    limits = RoomLimits(wait_ms=1000 * LONG, processes=2, decode=DecodeLimits(seconds=LONG))
    room = Room(served, limits, Watching())
    products = [Product(name, None, [io.BytesIO(data)]) for name, data in zip(names, photos, strict=True)]
    try:
        together = room.submit(products, 4 * LONG).result()
        alone = [room.submit([product], LONG).result()[0] for product in products]
    finally:
        room.close()
    for answers in (together, alone):
        decisions = [answer.decision for answer in answers if answer.decision]
        for column in ("product_id", "category", "category_path", "status", "node", "release"):
            assert [getattr(one, column) for one in decisions] == [value or None for value in table[column]]
        assert [one.confidence for one in decisions] == pytest.approx(table["confidence"], abs=1e-3)
    assert {1, max(SHAPES)} <= set(sizes) <= set(SHAPES)
    assert table["confidence"].nunique() > 10


def test_decisions_are_those_of_batch(bundle: Bundle, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "engines", lambda self, batches, store: engines_by_hand(Saved(), batches))
    photos = [photo(seed, 60 + seed, 50) for seed in range(23)]
    assert_decided_as_in_batch(Served.of(bundle, None), photos)


@pytest.mark.slow
def test_decisions_of_a_network_are_those_of_batch_at_every_batch_size(
    tmp_path: Path, drawn_weights: Path, photo: Photo
) -> None:
    backbone = load_backbone("mobilenet", str(drawn_weights), 32)
    make_bundle(tmp_path / "week", backbone, threshold=0.3, scale=500.0)
    served = Served.of(open_bundle(tmp_path / "week"), None)
    assert_decided_as_in_batch(served, [photo(seed) for seed in range(23)])


def test_engines_are_used_again_where_the_backbone_is_the_same(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "engines", lambda self, batches, store: engines_by_hand(Saved(), batches))
    first = Served.of(bundle, None)
    engines = first.extractor.networks[WHOLE].engines
    assert sorted(engines) == sorted(SHAPES) and first.extractor.rate > 0 and first.name == "week"
    assert [engine.batch for engine in engines.values()] == list(engines)
    assert Served.of(bundle, None, like=first).extractor is first.extractor
    other = Served.of(replace(bundle, fingerprint="another"), None, like=first)
    assert other.extractor.networks[WHOLE] is not first.extractor.networks[WHOLE]


# Sellers


@pytest.fixture(scope="module")
def adapted(bundle: Bundle) -> Bundle:
    return replace(bundle, adapter=adapter_of(bundle.categorizer))


def drawn_product(seed: int, product_id: str | None = None, seller: str | None = None) -> ReadProduct:
    rows = np.random.default_rng(seed).uniform(0, 255, (2, 12)).astype(np.float16)
    return ReadProduct(product_id, seller, SeenProduct(("0" * 64, "1" * 64), rows))


def test_products_of_sellers_and_of_nobody_are_decided_about_together(
    adapted: Bundle, tmp_path: Path
) -> None:
    assert adapted.adapter
    corrections = store_of(tmp_path / "W")
    try:
        [base] = Decider(adapted, None).decide([drawn_product(1)])
        assert isinstance(base, Decision)
        claimed = "oats" if base.category != "oats" else "pear"
        first = drawn_product(1, "a", "ann")
        assert first.seen
        learn(corrections, adapted.adapter, "ann", {"mug": (claimed, first.seen.bottlenecks)})
        decider = Decider(adapted, corrections)
        products = [first, drawn_product(1, "b", "bob"), ReadProduct("c", "ann", None), drawn_product(2, "d")]
        together = decider.decide(products)
        [[ann], [bob], [nothing], [nobody]] = alone = [decider.decide([product]) for product in products]
        assert together == [found for [found] in alone]
        assert isinstance(ann, Decision) and isinstance(bob, Decision)
        assert isinstance(nothing, Decision) and isinstance(nobody, Decision)
        assert (ann.category, ann.adapted, ann.corrections) == (claimed, True, 1)
        assert (bob.adapted, bob.corrections, bob.base_category) == (False, 0, None)
        assert bob.category == ann.base_category == base.category
        assert (nothing.status, nothing.corrections) == ("unreadable", 0)
        assert "adapted" not in nobody.model_fields_set and "adapted" in bob.model_fields_set
        assert decider.recent.get("a") is first.seen and decider.recent.get("c") is None
    finally:
        corrections.close()


def test_a_store_that_does_not_answer_is_an_error_of_its_sellers_alone(
    adapted: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrections = store_of(tmp_path / "W")
    try:
        decider = Decider(adapted, corrections)
        shown = corrections.shown

        def broken(*_: object) -> None:
            raise ShelfmarkError(f"{shown}: is locked; expected to read it; try again")

        monkeypatch.setattr(corrections, "revision", broken)
        monkeypatch.setattr(corrections, "history", broken)
        decided, failed = decider.decide([drawn_product(1, "a"), drawn_product(2, "b", "ann")])
        assert isinstance(decided, Decision) and decided.product_id == "a"
        assert isinstance(failed, StoreUnavailable)
        assert str(failed) == "the store of corrections: is locked; expected to read it; try again"
        [alone] = decider.decide([drawn_product(2, "b", "ann")])
        assert isinstance(alone, StoreUnavailable)
        assert decider.decide([]) == []
    finally:
        corrections.close()


def test_a_slow_store_holds_up_no_product_without_seller(place: Place) -> None:
    store = Held()
    store.go.clear()
    decider = cast(Any, place.room.served.decider)
    decide = decider.decide

    def slowly(products: Sequence[ReadProduct]) -> list[Decision]:
        if any(product.seller for product in products):
            store.pass_by(products)
        found: list[Decision] = decide(products)
        return found

    decider.decide = slowly
    with_seller = place.room.submit([product(1, seller="ann")], LONG)
    assert store.came.wait(LONG)
    assert seen(place.submit([2]).result(LONG)) == [[2]]
    assert not with_seller.done()
    store.go.set()
    assert seen(with_seller.result(LONG)) == [[1]]
