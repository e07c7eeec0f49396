"""One release in service: its bundle opened and checked, its backbone compiled for each batch size, all warm.

bundle ─► engine of 1, 2, 4, 8 photos ─► each runs once ─► head decides about as many products ─► Served
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from features.engines.engine import Engine
from features.storage.paths import AnyPath
from models.decisions.bundle import Bundle, open_bundle
from serving.decider import Decider, ReadProduct, SeenProduct

if TYPE_CHECKING:
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second

SHAPES = (1, 2, 4, 8)  # photos in a batch, each with an engine of its own: no photo is computed for nothing
TIMED = 2  # runs of the largest batch from which the rate is measured


@dataclass(frozen=True)
class Served:
    """One release, opened, checked and warm."""

    bundle: Bundle
    engines: Mapping[int, Engine]  # by batch size
    decider: Decider
    rate: float  # photos a second that the backbone alone computes, measured while warming

    @property
    def name(self) -> str:
        """Of the release."""
        return self.bundle.path.name

    @property
    def size(self) -> int:
        """Pixels a side that the backbone takes."""
        return next(iter(self.engines.values())).size

    @property
    def views(self) -> int:
        """How many views of a photo the backbone computes."""
        return len(self.bundle.categorizer.views)

    @classmethod
    def open(
        cls,
        path: AnyPath,
        corrections: "Corrections | None",
        like: "Served | None" = None,
        store: AnyPath | None = None,
    ) -> "Served":
        """Opens a bundle and makes it warm.

        Args:
            path: of the bundle.
            corrections: of sellers; None: decisions are the base's.
            like: its engines are used again where the backbone is the same.
            store: WORKSPACE/store, where the converted network is kept; None: it is not kept.

        Raises:
            ShelfmarkError: the bundle cannot be read, or its parts do not belong together.
        """
        return cls.of(open_bundle(path), corrections, like, store)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        corrections: "Corrections | None",
        like: "Served | None" = None,
        store: AnyPath | None = None,
    ) -> "Served":
        """As `open`, of a bundle that is open."""
        engines: Mapping[int, Engine]
        if like is not None and like.bundle.fingerprint == bundle.fingerprint:
            engines, rate = like.engines, like.rate
        else:
            engines = bundle.engines(SHAPES, store)
            rate = _warm(engines)
        decider = Decider(bundle, corrections)
        _try(bundle, decider)
        return cls(bundle, engines, decider, rate)


def _warm(engines: Mapping[int, Engine]) -> float:
    """Runs every engine once, and the largest again; returns its photos a second."""
    for engine in engines.values():
        compute(engine, np.zeros((engine.batch, engine.size, engine.size, 3), np.uint8))
    largest = engines[max(engines)]
    pixels = np.zeros((largest.batch, largest.size, largest.size, 3), np.uint8)
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        compute(largest, pixels)
        seconds.append(time.perf_counter() - began)
    return largest.batch / min(seconds)


def _try(bundle: Bundle, decider: Decider) -> None:
    """Decides about one product, and about as many as a batch may have, whose bottlenecks are zeros."""
    shape = bundle.categorizer.predictor.head.shape
    seen = SeenProduct(("0" * 64,), np.zeros((shape.rows_of_image, shape.width), np.float16))
    for count in (1, max(SHAPES)):
        decider.decide([ReadProduct(None, None, seen)] * count)


def compute(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """Returns bottlenecks: (batch, size, size, 3) uint8 → (batch, d) float16."""
    rows: np.ndarray = np.empty((engine.batch, engine.width), np.float16)
    engine.fill([pixels], rows)
    return rows
