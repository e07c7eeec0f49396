"""What runs a frozen backbone: pixels in, bottlenecks out.

    pixels (batch, size, size, 3) uint8 ─► engine ─► (batch, d) float16

An engine is not part of the fingerprint: before rounding to float16, fp32 engines agree to 1e-4 of a
bottleneck's length (measured: 2e-6), bf16 to 2e-2, so a model that was trained on one engine's bottlenecks
decides on another's. Each shard of the store names the engine that computed it.

Inception v3 at 299 px on two cores with AMX, images a second: TensorFlow fp32 22, OpenVINO fp32 28, bf16 160,
int8 270.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import Piece
from features.views import WHOLE, View

# Images in a request, at most: with OpenVINO and AMX 8 give 163 images a second, 1 gives 131, 32 give 145 in
# twice the memory; without AMX all are alike.
REQUEST = 8
# Requests of a batch, so that a core that is disturbed holds no other up. A batch of 8 as four requests of 2
# instead of one of 8: the service then reaches 0.84 instead of 0.77 of the engine's rate on two cores.
REQUESTS = 4


class Engine(Protocol):
    """Runs one backbone on batches of one size, so that no bottleneck depends on the rest of its batch."""

    name: str  # with its precision, kept with each shard: "openvino bf16"
    batch: int  # images
    size: int  # px, height and width
    width: int  # d, numbers in a bottleneck

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """Writes bottlenecks.

        Args:
            batches: (batch, size, size, 3) uint8 each.
            rows: (n · batch, d) float16, filled from the top; float32: not rounded.
        """
        ...


def extract(
    engine: Engine,
    pieces: Iterable[Piece],
    count: int,
    views: Sequence[View] = (WHOLE,),
    dtype: type = np.float16,
) -> list[np.ndarray]:
    """Computes the bottlenecks of images, in order; each image is decoded once for all views.

    Args:
        engine: of the backbone for these views, see `Backbone.for_view`.
        pieces: of strict JPEGs.
        count: how many images they hold.
        views: of the images, of one `View.network`.
        dtype: float16, as they are stored, or float32, as they are computed.

    Returns:
        Of each view (count, d) of that type.
    """
    return _filled(engine, _counted(pieces, count), count, views, dtype)


def extract_readable(
    engine: Engine, pieces: Iterable[Piece], most: int, views: Sequence[View] = (WHOLE,)
) -> list[np.ndarray]:
    """Computes the bottlenecks of images of which some may turn out unreadable, in order.

    Args:
        engine: of the backbone for these views.
        pieces: of strict JPEGs.
        most: how many images they hold at most.
        views: of the images, of one `View.network`.

    Returns:
        Of each view (n, d) float16, of the n images that there are.
    """
    counts: list[int] = []

    def counted() -> Iterator[Piece]:
        for piece in pieces:
            counts.append(len(piece.starts))
            yield piece

    found = _filled(engine, counted(), most, views, np.float16)
    return [rows[: sum(counts)] for rows in found]


def _filled(
    engine: Engine, pieces: Iterable[Piece], most: int, views: Sequence[View], dtype: type
) -> list[np.ndarray]:
    """Returns of each view (most, d), filled from the top; the engine's batches are of each view in turn."""
    batches = -(-most // engine.batch)
    rows: np.ndarray = np.empty((batches * len(views) * engine.batch, engine.width), dtype)
    engine.fill(read_pixels(pieces, engine.size, engine.batch, views), rows)
    in_turn = rows.reshape(batches, len(views), engine.batch, engine.width)
    return [in_turn[:, number].reshape(-1, engine.width)[:most] for number in range(len(views))]


def _counted(pieces: Iterable[Piece], count: int) -> Iterator[Piece]:
    seen = 0
    for piece in pieces:
        seen += len(piece.starts)
        if seen > count:
            break
        yield piece
    if seen != count:
        raise ValueError(f"expected {count} images, found {seen}")


def require_package(package: str, engine: str, extra: str | None = None) -> None:
    """Raises a ShelfmarkError, which names the command, where an engine's package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ShelfmarkError(
            f"engine {engine}: {package} is not installed; expected in the same environment; "
            f"pip install 'shelfmark[{extra or package}]'"
        )


def images_of_a_request(batch: int, one: bool) -> int:
    """Returns the images in a request of an engine that cuts batches: batches are whole requests.

    Args:
        batch: images.
        one: the network takes one image at a time.
    """
    request = 1 if one else min(REQUEST, max(2, batch // REQUESTS))
    return request if batch % request == 0 else batch


def round_into(rows: np.ndarray, bottlenecks: np.ndarray) -> None:
    """Rounds float32 to float16, without a warning: too large becomes infinite, which no shard accepts."""
    with np.errstate(over="ignore"):
        rows[:] = bottlenecks
