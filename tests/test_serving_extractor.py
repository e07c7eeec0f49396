"""All views of photos at once: rows in the views' order, each network once, batches that are filled."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from features.engines.engine import Engine
from features.views import CROPS, WHOLE, View, parse_view
from models.decisions.bundle import Bundle
from serving.extractor import LARGEST, SHAPES, Extractor, Network

SIZE = 4  # px, of the backbone


@dataclass
class Reading:
    """An engine whose bottlenecks are the first pixel of an image, its last one or the maximum, its size."""

    batch: int
    view: View = WHOLE
    batches: list[int] = field(default_factory=list)
    width: int = 3

    @property
    def name(self) -> str:
        return f"by hand, {self.view.name}"

    @property
    def size(self) -> int:
        return self.view.input(SIZE)

    def fill(self, batches: Sequence[np.ndarray], rows: np.ndarray) -> None:
        [pixels] = batches
        assert pixels.shape == (self.batch, self.size, self.size, 3)
        self.batches.append(self.batch)
        rows[:, 0], rows[:, 1], rows[:, 2] = pixels[:, 0, 0, 0], pixels[:, 0, -1, 0], self.size
        if self.view.pooling == "max":
            rows[:, 1] = pixels.max(axis=(1, 2, 3))


def engines_of(shapes: Sequence[int], view: View) -> dict[int, Engine]:
    return {shape: cast(Engine, Reading(shape, view)) for shape in shapes}


def extractor_of(*names: str, averaged: bool = False, rate: float = 100.0) -> Extractor:
    views = tuple(map(parse_view, names))
    networks = {
        view.network: Network(engines_of(SHAPES, view.network), rate)
        for view in {view.network: view for view in views}.values()
    }
    return Extractor(views, averaged, SIZE, networks)


def drawn(extractor: Extractor, number: int) -> dict[int, np.ndarray]:
    """A photo in each size: its pixels are its number, and one more in each column to the right."""
    return {
        size: np.broadcast_to(number + np.arange(size)[:, None], (size, size, 3)).astype(np.uint8)
        for size in extractor.sizes
    }


def computed(extractor: Extractor, count: int) -> tuple[np.ndarray, list[int]]:
    """The rows of so many photos, 10, 20 and so on, and the sizes of the batches."""
    batches: list[int] = []
    photos = [drawn(extractor, 10 * number) for number in range(1, count + 1)]
    return extractor.bottlenecks(photos, lambda size, _: batches.append(size)), batches


def test_the_rows_of_a_photo_are_in_the_order_of_the_views_whatever_network_computes_them() -> None:
    rows, batches = computed(extractor_of("32", "whole", "max", "32-flip", "flip", "32-center"), 2)
    assert rows.dtype == np.float16
    assert rows[0].tolist() == [
        [10, 41, 32],  # the whole photo at 32 px
        [10, 13, 4],  # at the backbone's own size
        [10, 13, 4],  # the maximum of it
        [41, 10, 32],  # mirrored
        [13, 10, 4],
        [24, 27, 4],  # 4 px of 32, from (32 - 4) / 2 on
    ]
    assert rows[1].tolist() == [[first + 10, last + 10, side] for first, last, side in rows[0].tolist()]
    assert batches == [4, 4, 2, 2]  # two at 32 px, three at the own size, one with the maximum, of two photos


def test_averaged_views_are_one_row() -> None:
    rows, _ = computed(extractor_of("whole", "32", averaged=True), 3)
    assert rows.shape == (3, 1, 3) and rows.dtype == np.float16
    assert rows[:, 0].tolist() == [[10, 27, 18], [20, 37, 18], [30, 47, 18]]


@pytest.mark.parametrize(
    ("names", "count", "batches"),
    [
        (["whole"], 1, [1]),
        (["whole"], 7, [4, 2, 1]),
        (["whole", "flip"], 4, [8]),
        (["whole", "flip", "32-center"], 1, [2, 1]),
        (["whole", "flip", "32-center"], 4, [8, 4]),
        (["whole", "32"], 8, [8, 8]),
        (["whole", "32", "32-flip", "32-max"], 8, [8, 8, 8, 8]),
    ],
)
def test_batches_are_filled_by_all_views_of_a_network(
    names: list[str], count: int, batches: list[int]
) -> None:
    assert computed(extractor_of(*names), count)[1] == batches


@pytest.mark.parametrize(
    ("names", "places", "sizes"),
    [
        (["whole"], 1, (4,)),
        (["32"], 1, (32,)),
        (["whole", "flip"], 2, (4,)),
        (["whole", "flip", "32-center"], 2, (4, 32)),
        (["whole", "flip", "32", "32-flip", "64"], 1, (4, 32, 64)),
        ([f"32{crop}{flip}" for crop in ("", "-center", "-top-left") for flip in ("", "-flip")], 2, (32,)),
        ([f"{size}-{crop}" for size in (32, 33) for crop in CROPS], 8, (32, 33)),
    ],
)
def test_a_photo_takes_places_in_a_batch_and_is_resized_once_for_each_size(
    names: list[str], places: int, sizes: tuple[int, ...]
) -> None:
    extractor = extractor_of(*names)
    assert (extractor.places, extractor.sizes) == (places, sizes)
    count = LARGEST // places
    assert LARGEST in computed(extractor, count)[1]


def test_the_rate_is_that_of_photos_with_all_their_views() -> None:
    networks = {parse_view(name): Network({}, rate) for name, rate in (("whole", 100.0), ("32", 20.0))}
    views = tuple(map(parse_view, ("whole", "flip", "32")))
    assert Extractor(views, False, SIZE, networks).rate == pytest.approx(1 / (0.01 + 0.01 + 0.05))


# Opened with a bundle


def bundle_of(opened: list[tuple[str, Sequence[int]]], *names: str, averaged: bool = False) -> Bundle:
    """A bundle that notes which networks it opens."""

    def engines(batches: Mapping[View, Sequence[int]], store: Path | None) -> dict[View, dict[int, Engine]]:
        opened.extend((view.name, shapes) for view, shapes in batches.items())
        return {view: engines_of(shapes, view) for view, shapes in batches.items()}

    head = SimpleNamespace(shape=SimpleNamespace(averaged=averaged))
    categorizer = SimpleNamespace(views=tuple(map(parse_view, names)), predictor=SimpleNamespace(head=head))
    described = SimpleNamespace(image_size=SIZE)
    return cast(Any, SimpleNamespace(categorizer=categorizer, described=described, engines=engines))


def test_each_network_is_opened_once_and_run_with_every_size_of_batches() -> None:
    opened: list[tuple[str, Sequence[int]]] = []
    extractor = Extractor.open(bundle_of(opened, "whole", "flip", "32-center", "max-flip"), None)
    assert opened == [("whole", [1, 2, 4, 8]), ("max", [1, 2, 4, 8])]
    for network in extractor.networks.values():
        assert network.rate > 0
        batches = [cast(Reading, one).batches for one in network.engines.values()]
        assert batches == [[1], [2] * 3, [4], [8] * 3]
    assert extractor.engine == "by hand, whole"


def test_networks_of_large_photos_have_small_batches_so_that_a_batch_takes_no_more_memory() -> None:
    opened: list[tuple[str, Sequence[int]]] = []
    Extractor.open(bundle_of(opened, "whole", "32"), None)
    assert opened == [("whole", [1, 2, 4, 8]), ("32", [1])]  # 64 times the pixels


def test_networks_that_are_open_are_used_again_and_only_others_are_opened() -> None:
    opened: list[tuple[str, Sequence[int]]] = []
    first = Extractor.open(bundle_of(opened, "whole", "flip"), None)
    assert Extractor.open(bundle_of(opened, "whole", "flip"), None, first) is first
    other = Extractor.open(bundle_of(opened, "whole", "max"), None, first)
    assert other.networks[WHOLE] is first.networks[WHOLE]
    averaged = Extractor.open(bundle_of(opened, "whole", "flip", averaged=True), None, first)
    assert averaged is not first and averaged.networks == first.networks
    assert [name for name, _ in opened] == ["whole", "max"]


@pytest.mark.parametrize(("of_a_batch", "of_an_image", "most"), [(0.0, 0.01, 2), (0.05, 0.001, 4)])
def test_batches_are_larger_than_pairs_only_where_that_computes_more_photos_a_second(
    of_a_batch: float, of_an_image: float, most: int
) -> None:
    @dataclass
    class Slow(Reading):
        def fill(self, batches: Sequence[np.ndarray], rows: np.ndarray) -> None:
            time.sleep(of_a_batch + of_an_image * self.batch)
            super().fill(batches, rows)

    network = Network.warm({shape: cast(Engine, Slow(shape)) for shape in SHAPES})
    views = (WHOLE, View(flip=True))
    one, two = (Extractor(some, False, SIZE, {WHOLE: network}) for some in (views[:1], views))
    assert [one.count(ready) for ready in (1, 2, 7, 8, 20)] == [1, 2, most, 8, 8]
    assert [two.count(ready) for ready in (1, 2, 3, 4, 9)] == [1, 2 * (most > 2) or 1, most // 2, 4, 4]
