"""Views: from how near and how a backbone sees a photo.

    photo ─► resized to `size` ─► a square cut out ─► mirrored ─► network ─► last map, pooled: a bottleneck

    whole             the whole photo at the backbone's own size (224 px, for instance)
    flip              the same, mirrored left to right
    256               the whole photo at 256 px
    256-center-flip   of the photo at 256 px the middle, at the backbone's own size; mirrored
    256-max           the whole photo at 256 px; the maximum of the last map, not its mean

A view's name is what settings, directories of the store and columns of the index call it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

CROPS = ("center", "top-left", "top-right", "bottom-left", "bottom-right")
LEAST, MOST = 32, 1024  # px, as backbone.image_size

Pixels = TypeVar("Pixels", "np.ndarray", "tf.Tensor")


@dataclass(frozen=True)
class View:
    """One view of a photo."""

    size: int | None = None  # px, to which the whole photo is resized; None: the backbone's own
    crop: str | None = None  # of CROPS: a square of the backbone's own size, cut out of the resized photo
    flip: bool = False  # mirrored, left to right
    pooling: Literal["mean", "max"] = "mean"  # of the last map

    @property
    def name(self) -> str:
        """Its name.

        >>> View().name, View(flip=True).name, View(256, "top-left", True, "max").name
        ('whole', 'flip', '256-top-left-max-flip')
        """
        size = str(self.size) if self.size else None
        parts = (size, self.crop, "max" * (self.pooling == "max"), "flip" * self.flip)
        return "-".join(part for part in parts if part) or "whole"

    @property
    def network(self) -> "View":
        """The simplest view that the same network computes: the whole photo at that network's size.

        >>> View(256, flip=True).network.name, View(256, "center").network.name
        ('256', 'whole')
        """
        return View(None if self.crop else self.size, pooling=self.pooling)

    def mirrored(self) -> "View":
        """Returns the view, mirrored left to right."""
        return replace(self, flip=True)

    def resized(self, size: int) -> int:
        """Returns the px to which the photo is resized, for a backbone whose own size is `size` px."""
        return self.size or size

    def input(self, size: int) -> int:
        """Returns the px of the network's input, for a backbone whose own size is `size` px.

        >>> [View(256, crop).input(224) for crop in (None, "center")]
        [256, 224]
        """
        return size if self.crop else self.resized(size)

    def of_pixels(self, pixels: Pixels, size: int) -> Pixels:
        """Cuts and mirrors: (n, resized, resized, 3) → (n, input, input, 3).

        The middle of an odd rest is rounded to the top and to the left.

        Args:
            pixels: of photos, resized; an array or a tensor.
            size: px, the backbone's own.
        """
        if self.crop:
            rest = self.resized(size) - size
            down = {"top": 0, "bottom": rest}.get(self.crop.partition("-")[0], rest // 2)
            right = {"left": 0, "right": rest}.get(self.crop.partition("-")[2], rest // 2)
            pixels = pixels[:, down : down + size, right : right + size]
        return _left_to_right(pixels) if self.flip else pixels

    def require_size(self, size: int) -> None:
        """Checks the view for a backbone whose own size is `size` px.

        Raises:
            ShelfmarkError: a crop needs a larger photo, or the view is another one by a second name.
        """
        if self.crop and self.resized(size) <= size:
            raise ShelfmarkError(
                f"view {self.name}: a crop of {size} px, the backbone's own size, out of "
                f"{self.resized(size)} px; expected a photo of more than {size} px; correct extract.views"
            )
        if self.size == size:
            raise ShelfmarkError(
                f"view {self.name}: {size} px is the backbone's own size; expected one name for each view; "
                f"write {replace(self, size=None).name} in extract.views"
            )


def _left_to_right(pixels: Pixels) -> Pixels:
    """Mirrors (n, height, width, 3)."""
    import numpy as np

    if isinstance(pixels, np.ndarray):
        return pixels[:, :, ::-1]
    import tensorflow as tf

    return tf.reverse(pixels, [2])  # a slice of step -1 takes nine times as long


WHOLE = View()
FLIP = View(flip=True)
_NAME = re.compile(rf"(?:-(\d+)(?:-({'|'.join(CROPS)}))?)?(-max)?(-flip)?")


def find_view(name: str) -> View | None:
    """Returns the view of this name; None where it is no name of a view."""
    found = _NAME.fullmatch("" if name == WHOLE.name else f"-{name}")
    if not found:
        return None
    size, crop, largest, mirrored = found.groups()
    if size and not (LEAST <= int(size) <= MOST and size == str(int(size))):
        return None
    return View(int(size) if size else None, crop, bool(mirrored), "max" if largest else "mean")


def parse_view(name: str) -> View:
    """Reads the name of a view.

    >>> parse_view("256-center-flip")
    View(size=256, crop='center', flip=True, pooling='mean')

    Raises:
        ShelfmarkError: it is no name of a view.
    """
    view = find_view(name)
    if view is None:
        raise ShelfmarkError(
            f"view {name!r}: unknown; expected whole, or a size from {LEAST} to {MOST} px, then one of "
            f"{', '.join(CROPS)}, then max, then flip, each of them or not, joined by -, such as "
            "256-center-flip; correct extract.views"
        )
    return view


def combined(bottlenecks: "Sequence[np.ndarray]", averaged: bool) -> "np.ndarray":
    """Returns the rows of n images from k arrays (n, d) float16, one for each view.

    Args:
        bottlenecks: of the views, at least one.
        averaged: the mean of an image's views is its one row; else each view is a row.

    Returns:
        (n, d) float16 if averaged, else (n · k, d): of each image its views, one after the other.

    >>> import numpy as np
    >>> one, other = np.float16([[1, 2]]), np.float16([[3, 6]])
    >>> combined([one, other], True).tolist(), combined([one, other], False).tolist()
    ([[2.0, 4.0]], [[1.0, 2.0], [3.0, 6.0]])
    """
    import numpy as np  # settings are read by commands that need no numbers

    views = np.stack(bottlenecks, axis=1)
    if averaged:
        mean: np.ndarray = views.mean(axis=1, dtype=np.float32).astype(views.dtype)
        return mean
    return views.reshape(-1, views.shape[-1])


def sizes_of(views: Sequence[View], size: int) -> tuple[int, ...]:
    """Returns the px to which a photo is resized for these views, each once; `size`: the backbone's own.

    >>> sizes_of([FLIP, View(256), View(256, "center")], 224)
    (224, 256)
    """
    return tuple(dict.fromkeys(view.resized(size) for view in views))


def by_network(views: Sequence[View]) -> dict[View, list[int]]:
    """Returns by View.network which of the views it computes.

    >>> {network.name: numbers for network, numbers in by_network([FLIP, View(256), WHOLE]).items()}
    {'whole': [0, 2], '256': [1]}
    """
    found: dict[View, list[int]] = {}
    for number, view in enumerate(views):
        found.setdefault(view.network, []).append(number)
    return found


def cost(views: Sequence[View], size: int) -> float:
    """Returns the pixels that the network reads for these views, in units of one whole photo.

    >>> cost([WHOLE, FLIP, View(448)], 224)
    6.0
    """
    return sum(view.input(size) ** 2 for view in views) / size**2
