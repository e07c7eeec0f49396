"""Photos of products, as thumbnails: found in the source that they were categorized from."""

import io
import tempfile
from pathlib import Path

from PIL import Image

from features.images.normalise import normalise
from features.images.refusal import Limits, Refused
from pipeline.ingest.check_images import fetching_of, image_limits
from pipeline.job.config import IngestSettings
from pipeline.job.progress import log
from pipeline.sources.listing import only_products
from pipeline.sources.source import open_sources, read_segment
from pipeline.sources.tables import csv_options

SIDE = 200  # pixels at most
QUALITY = 75  # of WebP: about 6 kB


def thumbnails(sources: list[str], product_ids: list[str], settings: IngestSettings) -> dict[str, bytes]:
    """WebP thumbnails by product_id, each of the product's first readable photo.

    Of folders and tables only the photos of these products are read; a BSON file is read until all are found.

    Args:
        sources: paths or URLs, as for `categorize`.
        product_ids: wanted; those without a photo in the sources are left out.
        settings: the section [ingest].
    """
    wanted, limits = set(product_ids), image_limits(settings)
    found: dict[str, bytes] = {}
    opened = open_sources(sources, csv_options(settings), may_be_empty=True)
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as scratch:
        fetching = fetching_of(settings, Path(scratch) / "fetched")
        for source in opened:
            for whole in source.segments(Path(scratch), settings.unit_bytes, settings.unit_images):
                for segment in only_products(whole, wanted, Path(scratch) / "wanted"):
                    for image in read_segment(segment, fetching):
                        if image.product_id not in wanted or image.reason:
                            continue
                        photo = _thumbnail(image.data, limits)
                        if photo is not None:
                            found[image.product_id] = photo
                            wanted.remove(image.product_id)
                if not wanted:
                    return found
    log.warning("audit: no photo of %s of %s products", f"{len(wanted):,}", f"{len(wanted | found.keys()):,}")
    return found


def _thumbnail(data: bytes, limits: Limits) -> bytes | None:
    """A small WebP; None where the photo is refused."""
    try:
        small = Image.open(io.BytesIO(normalise(data, limits).jpeg)).convert("RGB")
    except Refused:
        return None
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()
