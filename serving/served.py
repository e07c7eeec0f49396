"""One release in service: its bundle opened and checked, the networks of its views compiled, all warm.

bundle ─► engines of 1, 2, 4, 8 images ─► each runs once ─► head decides about as many products ─► Served
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from features.storage.paths import AnyPath
from models.decisions.bundle import Bundle
from models.decisions.cascade import Cascade
from serving.decider import Decider, ReadProduct, SeenProduct
from serving.extractor import LARGEST, Extractor

if TYPE_CHECKING:
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second


@dataclass(frozen=True)
class Served:
    """One release, opened, checked and warm."""

    bundle: Bundle
    extractor: Extractor  # of the views that its head asks for
    decider: Decider
    cascade: Cascade | None = None  # of the bundle; None: all views decide about every product

    @cached_property
    def looks(self) -> tuple[Extractor, ...]:
        """What computes a photo: all views at once; of a cascade the first, then, if need be, the others."""
        return self.extractor.looks if self.cascade else (self.extractor,)

    @property
    def rate(self) -> float:
        """Photos a second that the backbone alone computes, of products as FIT's with a cascade."""
        if not self.cascade:
            return self.extractor.rate
        first, others = self.looks
        return 1 / (1 / first.rate + self.cascade.share / others.rate)

    @property
    def name(self) -> str:
        """Of the release."""
        return self.bundle.path.name

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        corrections: "Corrections | None",
        like: "Served | None" = None,
        store: AnyPath | None = None,
    ) -> "Served":
        """Makes an open bundle warm.

        Args:
            bundle: of the release.
            corrections: of sellers; None: decisions are the base's.
            like: its networks are used again where the backbone is the same.
            store: WORKSPACE/store, where converted networks are kept; None: they are not kept.

        Raises:
            ShelfmarkError: no engine can run the backbone here, or its parts do not belong together.
        """
        same = like is not None and like.bundle.fingerprint == bundle.fingerprint
        extractor = Extractor.open(bundle, store, like.extractor if like and same else None)
        decider = Decider(bundle, corrections)
        _try(bundle, decider)
        return cls(bundle, extractor, decider, bundle.categorizer.rules.cascade)


def _try(bundle: Bundle, decider: Decider) -> None:
    """Decides about one product, and about as many as a batch may have, whose bottlenecks are zeros."""
    shape = bundle.categorizer.predictor.head.shape
    seen = SeenProduct(("0" * 64,), np.zeros((shape.rows_of_image, shape.width), np.float16))
    for count in (1, LARGEST):
        decider.decide([ReadProduct(None, None, seen)] * count)
