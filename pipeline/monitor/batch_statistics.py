"""What `shelfmark categorize` keeps of a batch's photos for `shelfmark monitor`, beside the decisions.

    NAME.statistics.json   {"bundle": digest, "products": n, "unreadable": n, and the keys of
                           image_statistics.json, and "distance": [...]}

`distance` counts the readable products by how far their first photo is from those of training.
"""

import json
from typing import Any

import numpy as np

from features.errors import ShelfmarkError
from features.storage.artifact import find_artifact
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import Bundle
from models.decisions.drift.batch import histogram_counts
from models.decisions.drift.distances import distances
from models.decisions.drift.reference import Histogram
from models.rows import Rows
from pipeline.ingest.check_images import CheckedImages
from pipeline.ingest.duplicates import find_shared
from pipeline.ingest.image_statistics import image_statistics
from pipeline.ingest.index import Index
from pipeline.job.decisions_file import REJECTS, rejects_beside
from pipeline.monitor.reference_files import CENTROIDS, REFERENCE, ReleaseReference, read_reference

STATISTICS = ".statistics.json"  # what the name of the file beside the decisions ends with


def statistics_beside(decisions: AnyPath) -> AnyPath:
    """The file of the statistics: `a.statistics.json` beside `a.csv.gz`."""
    return decisions.with_name(rejects_beside(decisions).name[: -len(REJECTS)] + STATISTICS)


def write_statistics(
    decisions: AnyPath,
    bundle: Bundle,
    checked: CheckedImages,
    index: Index,
    rows: Rows,
    first: np.ndarray,
    placeholder_products: int,
) -> None:
    """Writes the statistics of a batch; removes older ones where the bundle has no reference.

    Args:
        decisions: where the decisions are written.
        bundle: that decides.
        checked: the batch's images.
        index: of them.
        rows: bottlenecks of the readable images.
        first: (p,) int, the row of the first image of each readable product.
        placeholder_products: as the setting of ingest.
    """
    file, artifact = statistics_beside(decisions), find_artifact(bundle.path)
    if artifact is None or REFERENCE not in artifact.files:
        file.unlink(missing_ok=True)
        return
    reference = read_reference(artifact.file(REFERENCE), artifact)
    far = distances(rows, first, np.load(artifact.file(CENTROIDS)))
    edges = reference.images["distance"].edges
    placeholder = find_shared(index, placeholder_products)[1]
    statistics = {
        "bundle": bundle.digest,
        "products": len(index.product_id),
        "unreadable": len(index.product_id) - len(first),
        **image_statistics(checked, index, placeholder, categorized=False),
        "distance": Histogram.of(far, np.empty(0) if edges is None else edges).counts.tolist(),
    }
    write_whole(file, json.dumps(statistics).encode())


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
