"""What `shelfmark categorize` keeps of a batch's photos for `shelfmark monitor`, beside the decisions.

    NAME.statistics.json   {"bundle": digest, "products": n, "unreadable": n, and the keys of
                           image_statistics.json, and "distance": [...]}

`distance` counts the readable products by how far their first photo is from those of training.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ShelfmarkError
from features.storage.artifact import find_artifact
from features.storage.paths import AnyPath
from models.decisions.bundle import Bundle
from models.decisions.drift.batch import histogram_counts
from models.decisions.drift.distances import distances
from models.decisions.drift.reference import Histogram
from models.rows import Rows
from pipeline.ingest.image_statistics import IMAGES, SIDES
from pipeline.job.decisions_file import REJECTS, rejects_beside
from pipeline.monitor.reference_files import CENTROIDS, REFERENCE, ReleaseReference, read_reference

STATISTICS = ".statistics.json"  # what the name of the file beside the decisions ends with


def statistics_beside(decisions: AnyPath) -> AnyPath:
    """The file of the statistics: `a.statistics.json` beside `a.csv.gz`."""
    return decisions.with_name(rejects_beside(decisions).name[: -len(REJECTS)] + STATISTICS)


@dataclass(frozen=True)
class BatchStatistics:
    """Counts of the photos of a batch, or of a part of it."""

    images: np.ndarray  # (5,) int, products by their readable images
    size: np.ndarray  # (13,) int, products by the side of their first photo
    kind: Mapping[str, int]  # products by the format of their first photo
    placeholder: np.ndarray  # (2,) int, products whose first photo is a placeholder, and the others
    distance: np.ndarray  # (k,) int, readable products by how far their first photo is

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Mapping) else value.tolist()
            for name, value in self.__dict__.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BatchStatistics":
        """Reads what `to_dict` returned."""
        images, size, placeholder, distance = (
            np.array(values[name], np.int64) for name in ("images", "size", "placeholder", "distance")
        )
        return cls(images, size, values["kind"], placeholder, distance)

    @classmethod
    def together(cls, parts: "Sequence[BatchStatistics]") -> "BatchStatistics":
        """The sums of parts, of which there is one at least."""
        kinds = Counter[str]()
        for part in parts:
            kinds.update(part.kind)
        images, size, placeholder, distance = (
            np.sum([getattr(part, name) for part in parts], axis=0)
            for name in ("images", "size", "placeholder", "distance")
        )
        return cls(images, size, kinds, placeholder, distance)


class PartImages:
    """Counts the photos of parts of a batch, in the bins of a release's reference."""

    def __init__(self, edges: np.ndarray, centroids: np.ndarray) -> None:
        """Takes the edges of the bins of distances, and the centroids of the training photos."""
        self._edges, self._centroids = edges, centroids

    @classmethod
    def of(cls, bundle: Bundle) -> "PartImages | None":
        """That of a bundle; None where it has no reference."""
        artifact = find_artifact(bundle.path)
        if artifact is None or REFERENCE not in artifact.files:
            return None
        edges = read_reference(artifact.file(REFERENCE), artifact).images["distance"].edges
        return cls(np.empty(0) if edges is None else edges, np.load(artifact.file(CENTROIDS)))

    def nothing(self) -> BatchStatistics:
        """The counts of no product."""
        none = np.empty(0, bool)
        rows = pa.table(
            {
                "width": pa.array([], pa.int32()),
                "height": pa.array([], pa.int32()),
                "kind": pa.array([], pa.string()),
            }
        )
        number = np.empty(0, np.int64)
        return self.count(rows, number, number, none, none, np.empty((0, self._centroids.shape[1])), number)

    def count(
        self,
        rows: pa.Table,
        product: np.ndarray,
        image_index: np.ndarray,
        good: np.ndarray,
        placeholder: np.ndarray,
        bottlenecks: Rows,
        first: np.ndarray,
    ) -> BatchStatistics:
        """Counts the photos of a part, which holds whole products.

        Args:
            rows: width, height and kind of n images.
            product: (n,) int, of each, from 0; -1: the source gives no id.
            image_index: (n,) int, which of its product's images each is.
            good: (n,) bool, readable.
            placeholder: (n,) bool, readable images that many products share; plain colours are found here.
            bottlenecks: of readable images.
            first: (p,) int, row among the bottlenecks of the first image of each readable product.
        """
        images = np.bincount(product[good], minlength=1)
        chosen = good & (image_index == 0)
        side = np.sqrt(rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()).astype(np.int32)
        kinds = pc.value_counts(rows["kind"].filter(pa.array(chosen))).to_pylist()
        if "flat" in rows.column_names:
            placeholder = placeholder | (rows["flat"].to_numpy() & good)
        hidden = int((placeholder & chosen).sum())
        far = distances(bottlenecks, first, self._centroids)
        return BatchStatistics(
            images=_in_bins(images[images > 0], IMAGES),
            size=_in_bins(side[chosen], SIDES),
            kind={pair["values"]: pair["counts"] for pair in kinds},
            placeholder=np.array([hidden, int(chosen.sum()) - hidden]),
            distance=Histogram.of(far, self._edges).counts,
        )


def _in_bins(values: np.ndarray, edges: tuple[int, ...]) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def statistics_json(bundle: Bundle, products: int, unreadable: int, statistics: BatchStatistics) -> bytes:
    """What the file of the statistics of a batch holds.

    Args:
        bundle: that decided.
        products: decided about.
        unreadable: of them.
        statistics: of the whole batch.
    """
    whole = {"bundle": bundle.digest, "products": products, "unreadable": unreadable}
    return json.dumps(whole | statistics.to_dict()).encode()


def read_statistics(
    decisions: AnyPath, release: ReleaseReference, products: int, unreadable: int
) -> dict[str, np.ndarray]:
    """Counts by name, in the bins of the release's reference; empty without the file.

    Raises:
        ShelfmarkError: the file is damaged, or of other decisions.
    """
    file = statistics_beside(decisions)
    if not file.is_file():
        return {}
    advice = f"categorize again, or remove {file.name} to monitor without the photos' statistics"
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        belongs = (found["bundle"], found["products"], found["unreadable"]) == (
            release.digest, products, unreadable,
        )  # fmt: skip
        counts = {
            name: _counts(histogram, found[name]) for name, histogram in release.reference.images.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ShelfmarkError(f"{file}: cannot be read; expected what categorize wrote; {advice}") from error
    if not belongs:
        raise ShelfmarkError(
            f"{file}: of other decisions; expected {products:,} products, {unreadable:,} of them unreadable, "
            f"decided by {release.name}; {advice}"
        )
    return counts


def _counts(histogram: Histogram, found: Any) -> np.ndarray:
    """The counts of a name; ValueError where they do not fit its bins."""
    if isinstance(found, dict):
        names = np.array(list(found), dtype=object)
        counts = histogram_counts(histogram, names, np.array(list(found.values()), np.int64))
    else:
        counts = np.array(found, np.int64)
    if counts.shape != histogram.counts.shape or (counts < 0).any():
        raise ValueError(f"{len(counts)} bins; expected {len(histogram.counts)}")
    return counts
