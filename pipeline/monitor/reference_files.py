"""The files of a bundle that `shelfmark monitor` needs, written by `pack`.

reference.json   histograms of the measured products: models/decisions/drift/reference.py
centroids.npy    (k, d) float16, of the training photos: models/decisions/drift/distances.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, file_digest
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import THRESHOLDS, read_rules
from models.decisions.drift.distances import centroids_of, distances
from models.decisions.drift.reference import OTHERS, Histogram, Measured, Reference, make_reference
from models.decisions.predictions import product_bounds
from models.decisions.releases import require_whole
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.ingest.image_statistics import IMAGE_STATISTICS, IMAGES, SIDES, ImageStatistics
from pipeline.job.catalogue import categories_of, measured_part, open_part
from pipeline.job.summaries import RecordsSummary

REFERENCE, CENTROIDS = "reference.json", "centroids.npy"
DISTANCE_BINS = 20


def write_reference(
    records: Artifact,
    bottlenecks: Artifact,
    evaluation: Artifact,
    store: AnyPath,
    fit_share: float,
    work: Path,
) -> None:
    """Writes both files into the working directory of a bundle.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        evaluation: of this head and these thresholds.
        store: directory of all stores.
        fit_share: calibration.fit_share, for the division of validation.
        work: with head and thresholds.
    """
    taxonomy, certificate = read_taxonomy(work / "taxonomy.csv"), read_rules(work / THRESHOLDS).certificate
    decided = pd.read_parquet(
        evaluation.file("decisions.parquet"), columns=["product_id", "category", "confidence"]
    )
    product_id = decided["product_id"].to_numpy(dtype=object)
    measured = Measured(
        predicted=taxonomy.index(decided["category"].to_numpy()),
        truth=taxonomy.index(categories_of(records).reindex(product_id).to_numpy()),
        confidence=decided["confidence"].to_numpy(),
    )
    centroids = centroids_of(open_part(bottlenecks, store, "train").first_view().rows)
    np.save(work / CENTROIDS, centroids)
    part = measured_part(records, bottlenecks, store, fit_share).first_view()
    far = distances(part.rows, product_bounds(part.product_id)[:-1], centroids)
    summary = RecordsSummary.of(records)
    reference = make_reference(
        measured, labels_of(taxonomy), taxonomy.categories, np.load(work / "sizes.npy"),
        target=certificate.target, threshold=certificate.threshold,
        unreadable=(summary.unreadable_products, summary.products),
        images=_image_histograms(records) | {"distance": _in_even_bins(far)},
    )  # fmt: skip
    write_whole(work / REFERENCE, json.dumps(reference.to_dict()).encode())


def labels_of(taxonomy: Taxonomy) -> np.ndarray:
    """(N, C) str: for each level the names down to each category's node, joined by " / "."""
    return np.array(
        [
            [taxonomy.label(index, level) for index in range(len(taxonomy.categories))]
            for level in range(1, taxonomy.levels + 1)
        ],
        dtype=object,
    )


def _image_histograms(records: Artifact) -> dict[str, Histogram]:
    """Those of the catalogue's photos; none where an earlier version of ingest kept none."""
    if IMAGE_STATISTICS not in records.files:
        return {}
    statistics: ImageStatistics = json.loads(records.file(IMAGE_STATISTICS).read_bytes())
    kinds = statistics["kind"]
    return {
        "images": Histogram(np.array(statistics["images"]), edges=np.array(IMAGES)),
        "size": Histogram(np.array(statistics["size"]), edges=np.array(SIDES)),
        "kind": Histogram(np.array([*kinds.values(), 0]), names=(*kinds, OTHERS)),
        "placeholder": Histogram(np.array(statistics["placeholder"]), names=("placeholder", "photo")),
    }


def _in_even_bins(values: np.ndarray) -> Histogram:
    """A histogram of about equally many values in each bin."""
    shares = np.arange(1, DISTANCE_BINS) / DISTANCE_BINS
    return Histogram.of(values, np.unique(np.quantile(values, shares)) if len(values) else np.empty(0))


# Reading


@dataclass(frozen=True, eq=False)
class ReleaseReference:
    """What is read of a release."""

    name: str
    digest: str
    reference: Reference
    taxonomy: Taxonomy


def read_release(releases: AnyPath, name: str) -> ReleaseReference:
    """Reads the reference of a release.

    Raises:
        ShelfmarkError: the release is gone, damaged, or of a version that kept no reference.
    """
    bundle = require_whole(releases, name)
    if REFERENCE not in bundle.files:
        raise ShelfmarkError(
            f"{releases / name}: has no {REFERENCE}, because an earlier version packed it; expected the "
            "histograms of its measured products; run `shelfmark retrain` to release a new bundle"
        )
    return ReleaseReference(
        name,
        bundle.digest,
        read_reference(bundle.file(REFERENCE), bundle),
        read_taxonomy(bundle.file("taxonomy.csv")),
    )


def read_reference(file: Path, bundle: Artifact) -> Reference:
    """Reads reference.json of a bundle.

    Raises:
        ShelfmarkError: it is not what `pack` wrote.
    """
    if file_digest(file) != bundle.files[REFERENCE]["sha256"]:
        raise ShelfmarkError(
            f"{file}: damaged; expected the digest that the manifest gives; put another release into "
            "service, or train again"
        )
    try:
        return Reference.from_dict(json.loads(file.read_bytes()))
    except ValueError as error:
        raise ShelfmarkError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); expected a reference of this version; "
            "run `shelfmark retrain` to release a new bundle"
        ) from error
