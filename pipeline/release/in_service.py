"""In service: the release that decides now, and what it decides about this week's measured products.

    runs/<run>/in_service/  decisions.parquet  measured.parquet  manifest.json    as in evaluation/

So a new bundle is compared with it product by product: by `judge`, and by the report.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from features.errors import ShelfmarkError
from features.records import Piece
from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from features.storage.store import Digests, Store
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.releases import found_in_service, require_in_service
from pipeline.extract.fill_store import RecordReader, rows_of
from pipeline.extract.index import read_digests
from pipeline.job.catalogue import Part, TrueCategories, measured_part, part_of_views
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, InServiceSummary
from pipeline.train.evaluated import evaluate_part
from pipeline.train.tables import write_decided

VERSION = 2


def current_release(releases: AnyPath) -> Bundle | None:
    """The bundle in service, or None before the first release; ShelfmarkError when it is gone or damaged."""
    name = found_in_service(releases)
    return None if name is None else open_bundle(releases / name)


def require_release(workspace: AnyPath) -> Bundle:
    """The bundle in service; ShelfmarkError before the first release."""
    return open_bundle(workspace / "releases" / require_in_service(workspace))


def evaluate_in_service(run: Run, current: Bundle) -> Artifact:
    """What the release in service decides about this week's measured products, with its own backbone."""
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    share = run.config.calibration.fit_share

    def make(work: Path) -> Mapping[str, object]:
        part = measured_part(records, bottlenecks, run.store, share)
        own = _with_own_backbone(part, current, records, bottlenecks, run)
        true = TrueCategories.of(records)
        evaluated = evaluate_part(current.categorizer, own, true, set())
        write_decided(evaluated, current.categorizer, true, work)
        return InServiceSummary(release=current.path.name, products=len(evaluated.product_id)).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "release": current.digest,
        "fit_share": share,
    }
    return stage(run.path / "in_service", kind="in_service", version=VERSION, made_from=made_from, make=make)


def _with_own_backbone(
    part: Part, bundle: Bundle, records: Artifact, bottlenecks: Artifact, run: Run
) -> Part:
    """The part's images with the bottlenecks of the bundle's backbone, in the views that its head takes."""
    extracted, shape = BottlenecksSummary.of(bottlenecks), bundle.categorizer.predictor.head.shape
    own = (extracted.fingerprint, extracted.predicted_from, extracted.averaged)
    if own == (bundle.fingerprint, bundle.categorizer.views, shape.averaged):
        return part
    part = part.first_view()
    digests = Digests(part.digest)
    record = np.empty(len(digests), np.int64)
    number, row = digests.matches(read_digests(records.file("images.parquet")))
    record[number] = row
    return part_of(bundle, part.product_id, digests, record, records, run)


def part_of(
    bundle: Bundle,
    product_id: np.ndarray,
    digests: Digests,
    record: np.ndarray,
    records: Artifact | None,
    run: Run,
) -> Part:
    """Images with the bottlenecks of the bundle's backbone, in the views that its head takes.

    Args:
        bundle: whose backbone is loaded where the store lacks an image.
        product_id: (n,) str, of each image; the images of a product stand together.
        digests: of the n images.
        record: (n,) int, their rows in images.parquet.
        records: that hold them; None: the store must.
        run: whose store and settings are used.

    Raises:
        ShelfmarkError: the store lacks an image, and the records do not have it either.
    """
    reader, categorizer = RecordReader(records) if records else None, bundle.categorizer

    def read(chosen: np.ndarray) -> Iterator[Piece]:
        if reader is None:
            raise ShelfmarkError(
                f"{run.store / bundle.fingerprint}: lacks {len(chosen):,} images whose records are gone; "
                "expected their bottlenecks; put the records back"
            )
        return reader(record[chosen])

    bottleneck_store = Store(run.store / bundle.fingerprint)
    averaged = categorizer.predictor.head.shape.averaged
    rows = rows_of(
        bottleneck_store, categorizer.views, averaged, digests, read, bundle.backbone, run.config.extract
    )
    return part_of_views(product_id, digests.values, rows)
