"""The check: the categorizer and the written files decide about the same photos.

    SOURCE ──► 500 photos of products, always the same ──► normalise ──┬─► categorizer, fp32 ─► decisions
                                                                      └─► written files ─────► decisions

Both get the JPEGs of `normalise`, a repeated photo once: what differs is the computation alone.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from features.engines.backbones import Backbone
from features.engines.choose import engines_of_views
from features.engines.engine import REQUEST
from features.errors import ShelfmarkError
from features.images.normalise import normalise
from features.images.refusal import Refused
from features.product import order_key
from features.views import cost
from models.decisions.cascade import certainty
from models.decisions.categorizer import Categorizer
from models.decisions.confidence import DECIMALS, product_ranges
from pipeline.ingest.check_images import fetching_of, image_limits, segments_of
from pipeline.job.config import IngestSettings
from pipeline.sources.image import SourceImage
from pipeline.sources.source import open_sources, read_segment

PHOTOS = 500  # of the source, about
SEGMENTS = 8  # of the source that are read, at most, evenly over it: of a large catalogue not all
CALL = 32  # photos in a call of the written files, about; fewer where their views have more pixels
# How far two fp32 engines may move a confidence: their bottlenecks agree to 1e-6, but where that changes the
# rounding to float16, a number of the bottleneck moves by 5e-4 of itself. Measured: docs/export.md.
PRECISION = 1e-3


class Runner(Protocol):
    """Runs written files, as a client would."""

    def decide(self, jpegs: list[bytes], counts: np.ndarray) -> dict[str, np.ndarray]:
        """OUTPUTS, with names: of (p,) products, from all their JPEGs and how many each has."""
        ...


@dataclass(frozen=True)
class Photos:
    """The photos of a few products."""

    counts: np.ndarray  # (p,) int, photos of each product
    jpegs: list[bytes]  # of `normalise`, product after product
    kept: int  # photos whose own bytes these are
    refused: int  # photos that are none of these


@dataclass(frozen=True)
class CheckResult:
    """How the written files' decisions differ from those of the categorizer."""

    products: int
    photos: int
    kept: int  # photos that `normalise` leaves as they are
    refused: int  # photos, which are not compared
    differ: int  # products of another status or node
    beyond: int  # of them, those that are not within PRECISION of a threshold or of a second category
    confidence: float  # greatest difference
    statuses: dict[str, int] = field(default_factory=dict)  # products, by the categorizer

    def to_dict(self) -> dict[str, object]:
        """For the manifest."""
        return asdict(self)

    def to_sentence(self) -> str:
        """For people."""
        counts = ", ".join(f"{name} {count:,}" for name, count in self.statuses.items())
        refused = f" ({self.refused:,} more cannot be used)" if self.refused else ""
        return (
            f"{self.photos:,} photos{refused} of {self.products:,} products ({counts}): {self.differ:,} "
            f"decisions differ, {self.beyond:,} of them beyond the precision of the engines; greatest "
            f"difference of confidence {self.confidence:.1e}"
        )


def photos_of(source: str) -> Photos:
    """Reads about PHOTOS photos of whole products of a source: those with the lowest `order_key`.

    Raises:
        ShelfmarkError: it cannot be read, or none of its photos can be used.
    """
    settings, refused, kept = IngestSettings(), 0, 0
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as scratch:
        work = Path(scratch)
        fetching = fetching_of(settings, work / "fetched")
        segments = segments_of(open_sources([source]), settings, work, fetching)
        chosen = _chosen(
            image
            for segment in segments[:: -(-len(segments) // SEGMENTS)]
            for image in read_segment(segment, fetching)
        )
    counts: list[int] = []
    jpegs: list[bytes] = []
    for images in chosen:
        before = len(jpegs)
        for image in {hashlib.sha256(one.data).digest(): one for one in images}.values():
            try:
                normalised = normalise(image.data, image_limits(settings))
            except Refused:
                refused += 1
                continue
            kept += normalised.kept
            jpegs.append(normalised.jpeg)
        if len(jpegs) > before:
            counts.append(len(jpegs) - before)
    if not jpegs:
        raise ShelfmarkError(
            f"{source}: no photo of {refused:,} can be used; expected some to check the export with; give "
            "another --check"
        )
    return Photos(np.array(counts, np.int32), jpegs, kept, refused)


def _chosen(images: Iterator[SourceImage]) -> list[list[SourceImage]]:
    """Images of whole products: those of the lowest keys that have PHOTOS together."""
    products: dict[tuple[int, str], list[SourceImage]] = {}
    photos, too_high = 0, (2**64, "")
    for image in images:
        key = (order_key(image.product_id), image.product_id)
        if key >= too_high:
            continue
        products.setdefault(key, []).append(image)
        photos += 1
        while photos - len(products[last := max(products)]) >= PHOTOS:
            photos -= len(products.pop(last))
            too_high = last
    return [products[key] for key in sorted(products)]


def check(categorizer: Categorizer, backbone: Backbone, runner: Runner, photos: Photos) -> CheckResult:
    """Compares the decisions about the photos.

    Args:
        categorizer: of the bundle.
        backbone: its own; it is run in fp32, as the written files are.
        runner: of the written files.
        photos: of `photos_of`.
    """
    bounds = np.concatenate([[0], np.cumsum(photos.counts)])
    engines = engines_of_views(backbone, categorizer.views, REQUEST, precision="fp32")
    rows = categorizer.bottlenecks(engines, photos.jpegs, "photos of the check")
    predictions = categorizer.predict_all(rows, bounds * categorizer.rows_of_image)
    confidences = categorizer.level_confidences(predictions)
    expected = categorizer.decide(np.arange(len(photos.counts)).astype(str), predictions)
    call = max(1, int(CALL / cost(categorizer.views, backbone.image_size)))
    parts = [
        runner.decide(photos.jpegs[bounds[start] : bounds[stop]], photos.counts[start:stop])
        for start, stop in product_ranges(bounds, call)
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    differs = (found["status"] != expected["status"].to_numpy()) | (
        found["node"] != expected["node"].fillna("").to_numpy()
    )
    near = (np.abs(confidences - categorizer.thresholds) <= PRECISION).any(axis=1)
    if cascade := categorizer.rules.cascade:
        certain = certainty(categorizer.predictor.head, rows[:: categorizer.rows_of_image], bounds)
        near |= np.abs(certain - cascade.limit) <= PRECISION
    near |= predictions.level_mass[:, -1] - predictions.level_rival[:, -1] <= PRECISION
    away = np.abs(found["confidence"].astype(np.float64) - confidences[:, -1])
    return CheckResult(
        products=len(photos.counts),
        photos=len(photos.jpegs),
        kept=photos.kept,
        refused=photos.refused,
        differ=int(differs.sum()),
        beyond=int((differs & ~near).sum()),
        confidence=round(float(away.max()), DECIMALS),
        statuses={str(name): int(count) for name, count in expected["status"].value_counts().items()},
    )
