"""All views of photos, computed at once: a photo in each size in, a row of bottlenecks for each view out.

    photos, in each size ─┬─ views of one network: cut, mirrored ─► its engines of 8, 4, 2, 1 images ─┐
                          └─ views of another input size or pooling ─► the engines of that network ───┤
                                                               (photos, views, d) float16, or averaged ┘

A network is compiled for each size of batches, so no image is computed for nothing, and once for all views
that have its input size and pooling.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.engines.engine import Engine
from features.storage.paths import AnyPath
from features.views import View, by_network, combined, cost, sizes_of
from models.decisions.bundle import Bundle

SHAPES = (1, 2, 4, 8)  # images in a batch, each with an engine of its own
LARGEST = max(SHAPES)
MOST_PIXELS = 16  # of a batch, in whole photos at the backbone's own size: so much memory a batch may take
TIMED = 2  # runs of a batch from which its rate is measured
PAIR = 2
GAIN = 1.1  # of the rate, from which on larger batches than pairs are worth the wait of their first photo


@dataclass(frozen=True, eq=False)
class Network:
    """A network that was run once with each size of batches."""

    engines: Mapping[int, Engine]  # by batch size
    rate: float  # images a second that it computes alone
    worth: int = LARGEST  # images in a batch, at most, while several photos wait

    @classmethod
    def warm(cls, engines: Mapping[int, Engine]) -> "Network":
        """Runs every engine once, and pairs and the largest batch again, to measure their rates.

        On two cores without AMX they are alike. A photo then waits for a pair, not for a batch of eight: at
        half load of MobileNet half of the answers come within 21 ms instead of 33, 99 % within 60 instead of
        94.
        """
        pixels = {shape: np.zeros((shape, one.size, one.size, 3), np.uint8) for shape, one in engines.items()}
        network, largest = cls(engines, rate=0.0), max(engines)
        for shape in engines:
            network.compute(pixels[shape], _unwatched)
        rates = {}
        for shape in {min(PAIR, largest), largest}:
            seconds = []
            for _ in range(TIMED):
                began = time.perf_counter()
                network.compute(pixels[shape], _unwatched)
                seconds.append(time.perf_counter() - began)
            rates[shape] = shape / min(seconds)
        worth = min(shape for shape, rate in rates.items() if rate * GAIN >= rates[largest])
        return cls(engines, rates[worth], worth)

    def compute(self, pixels: np.ndarray, watch: Callable[[int, float], None]) -> np.ndarray:
        """Returns bottlenecks: (n, size, size, 3) uint8 → (n, d) float16; the largest batches come first.

        Args:
            pixels: of images.
            watch: is called with the size and the seconds of each batch.
        """
        rows: np.ndarray = np.empty((len(pixels), self.engines[1].width), np.float16)
        start = 0
        while start < len(pixels):
            shape = max(shape for shape in self.engines if shape <= len(pixels) - start)
            batch, began = slice(start, start + shape), time.monotonic()
            self.engines[shape].fill([pixels[batch]], rows[batch])
            watch(shape, time.monotonic() - began)
            start += shape
        return rows


@dataclass(frozen=True, eq=False)
class Extractor:
    """Computes the views that a head asks for."""

    views: tuple[View, ...]
    is_averaged: bool  # the views of a photo are one row
    size: int  # px, the backbone's own
    networks: Mapping[View, Network]  # by View.network

    @classmethod
    def open(cls, bundle: Bundle, store: AnyPath | None, like: "Extractor | None" = None) -> "Extractor":
        """Opens the networks of a bundle's views and makes them warm.

        Args:
            bundle: whose backbone and head it is.
            store: WORKSPACE/store, where converted networks are kept; None: they are not kept.
            like: of the same backbone: its networks are used again, and where the views are the same, it is
                returned.

        Raises:
            ShelfmarkError: no engine can run a network here, or the backbone cannot have such a view.
        """
        views, is_averaged = bundle.categorizer.views, bundle.categorizer.predictor.head.shape.averaged
        if like and (like.views, like.is_averaged) == (views, is_averaged):
            return like
        size, known = bundle.described.image_size, like.networks if like else {}
        for view in views:
            view.require_size(size)
        batches = {
            network: [shape for shape in SHAPES if shape == 1 or shape * cost([network], size) <= MOST_PIXELS]
            for network in by_network(views)
            if network not in known
        }
        opened = bundle.engines(batches, store)
        warm = {network: Network.warm(engines) for network, engines in opened.items()}
        networks = {network: warm.get(network) or known[network] for network in by_network(views)}
        return cls(views, is_averaged, size, networks)

    @cached_property
    def looks(self) -> tuple["Extractor", "Extractor"]:
        """What a cascade computes: the first view, then the others of products it is not certain about."""
        first, others = (
            Extractor(some, False, self.size, {one: self.networks[one] for one in by_network(some)})
            for some in (self.views[:1], self.views[1:])
        )
        return first, others

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The px to which a photo is resized, each once."""
        return sizes_of(self.views, self.size)

    @property
    def engine(self) -> str:
        """Name of the engine that computes."""
        return next(iter(self.networks.values())).engines[1].name

    @cached_property
    def rate(self) -> float:
        """Photos a second that the backbone alone computes, all views of them."""
        return 1 / sum(1 / self.networks[view.network].rate for view in self.views)

    @cached_property
    def places(self) -> int:
        """How many of the LARGEST places of a batch a photo takes: 1, 2, 4 or 8.

        By the network that computes the fewest views, so that its batches are filled, too.
        """
        fewest = min(len(numbers) for numbers in self._numbers.values())
        return max(shape for shape in SHAPES if shape <= fewest)

    def count(self, ready: int) -> int:
        """Returns how many photos the next batch takes, one of SHAPES, of so many that are ready.

        Pairs where larger batches compute no more a second, unless as many wait as the largest batch takes:
        then each batch's own costs count.
        """
        largest = LARGEST // self.places
        return max(
            shape for shape in SHAPES if shape <= (largest if ready >= largest else min(ready, self.worth))
        )

    @cached_property
    def worth(self) -> int:
        """For how many photos a batch is worth waiting."""
        return max(max(network.worth for network in self.networks.values()) // self.places, 1)

    @cached_property
    def _numbers(self) -> dict[View, list[int]]:
        """By network, which of the views it computes."""
        return by_network(self.views)

    def bottlenecks(
        self, photos: Sequence[Mapping[int, np.ndarray]], watch: Callable[[int, float], None]
    ) -> np.ndarray:
        """Returns the rows of k photos: (k, views, d) float16; (k, 1, d) where the views are averaged.

        Args:
            photos: by size in px, for all `sizes`: (size, size, 3) uint8.
            watch: is called with the size and the seconds of each batch.
        """
        rows = dict[int, np.ndarray]()  # by the number of the view
        for network, numbers in self._numbers.items():
            found = self.networks[network].compute(self._pixels(photos, numbers), watch)
            for place, number in enumerate(numbers):
                rows[number] = found[place :: len(numbers)]
        every = combined([rows[number] for number in range(len(self.views))], self.is_averaged)
        return every.reshape(len(photos), -1, every.shape[1])

    def _pixels(self, photos: Sequence[Mapping[int, np.ndarray]], numbers: Sequence[int]) -> np.ndarray:
        """The images that a network reads, photo after photo: (k · views, input, input, 3) uint8."""
        views = [self.views[number] for number in numbers]
        side = views[0].input(self.size)
        pixels = np.empty((len(photos), len(views), side, side, 3), np.uint8)
        for photo, images in zip(photos, pixels, strict=True):
            for view, image in zip(views, images, strict=True):
                image[:] = view.of_pixels(photo[view.resized(self.size)][None], self.size)[0]
        return pixels.reshape(-1, side, side, 3)


def _unwatched(size: int, seconds: float) -> None:
    """Nobody watches."""
