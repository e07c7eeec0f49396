"""Where a network looked: what each location of a photo says for a category.

    photo ─► backbone ─► last map (h, w, d) ─► convolutional head ─► logits (h, w, C)
"""

import numpy as np

from features.engines.backbones import Backbone, require_keras
from models.heads.architectures import Head
from models.heads.convolutional import convolutional_head

BATCH = 8  # photos


class ClassMaps:
    """The categories' scores at each location of photos, by a backbone and a head over its bottlenecks."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """Takes a backbone whose bottleneck is the mean of one map.

        Raises:
            ShelfmarkError: it is another one.
        """
        self._maps = require_keras(backbone, "to show where it looked").maps()
        self._head = convolutional_head(head)
        self._flip = head.shape.flip

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
        return chosen - logits.mean(axis=-1)

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pixels), BATCH):
            maps = self._maps(pixels[start : start + BATCH].astype(np.float32), training=False)
            levels = self._head(maps, training=False)
            parts.append(np.asarray(levels[-1] if isinstance(levels, list) else levels))
        return np.concatenate(parts)
