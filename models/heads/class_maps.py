"""Where a network looked: what each location of a photo says for a category.

photo ─► backbone ─► last map (h, w, d) ─► convolutional head ─► logits (h, w, C)
"""

from collections.abc import Sequence

import numpy as np

from features.engines.backbones import Backbone, require_keras
from features.engines.pixels import read_pixels
from features.records import pieces_of
from features.views import parse_view
from models.heads.architectures import Head
from models.heads.convolutional import convolutional_head

BATCH = 8  # photos


def heat_of(evidence: np.ndarray) -> np.ndarray:
    """(h, w) float 0..1: the evidence as a share of its largest value; 0 where it is against the category.

    >>> heat_of(np.array([[-1.0, 0.0], [1.0, 2.0]])).tolist()
    [[0.0, 0.0], [0.5, 1.0]]
    """
    positive = np.maximum(evidence.astype(np.float64), 0)
    heat: np.ndarray = positive / (positive.max() or 1.0)
    return heat


class ClassMaps:
    """The categories' scores at each location of photos, by a backbone and a head over its bottlenecks.

    Of a head's views the whole photo is shown, at the backbone's own size.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """Takes a backbone whose bottleneck is the mean of one map.

        Raises:
            ShelfmarkError: it is another one.
        """
        self._size = backbone.image_size
        self._maps = require_keras(backbone, "to show where it looked").maps()
        self._head = convolutional_head(head)
        self._flip = any(parse_view(name).flip for name in head.shape.views)

    def heats(self, jpegs: Sequence[bytes], category: np.ndarray) -> list[np.ndarray]:
        """(h, w) float64 0..1 of each photo: what each location says for a category, see `heat_of`.

        Args:
            jpegs: n strict ones, as `normalise` gives them.
            category: (n,) int, of each photo.
        """
        heats: list[np.ndarray] = []
        for pixels in read_pixels(pieces_of(jpegs, "photo"), self._size, BATCH):
            chosen = category[len(heats) : len(heats) + BATCH]
            heats += [heat_of(one) for one in self.evidence(pixels[: len(chosen)], chosen)]
        return heats

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(n, size, size, 3) uint8 → (n, h, w, C) float32; of a head that reads mirrored images, the mean."""
        found = self._logits(pixels)
        if self._flip:
            found = (found + self._logits(pixels[:, :, ::-1])[:, :, ::-1]) / 2
        return found

    def evidence(self, pixels: np.ndarray, category: np.ndarray) -> np.ndarray:
        """(n, h, w) float32, what each location says for a category.

        Args:
            pixels: (n, size, size, 3) uint8.
            category: (n,) int, of each photo.
        """
        logits = self.logits(pixels)
        chosen = np.take_along_axis(logits, category[:, None, None, None], axis=-1)[..., 0]
        evidence: np.ndarray = chosen - logits.mean(axis=-1)
        return evidence

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pixels), BATCH):
            maps = self._maps(pixels[start : start + BATCH].astype(np.float32), training=False)
            levels = self._head(maps, training=False)
            parts.append(np.asarray(levels[-1] if isinstance(levels, list) else levels))
        return np.concatenate(parts)
