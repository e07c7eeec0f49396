"""The page of an audit: the drawn decisions with photos, buttons for yes and no, and a CSV of the answers."""

import base64
from pathlib import Path

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from features.storage.paths import AnyPath, write_whole
from pipeline.audit.photos import thumbnails
from pipeline.job.config import IngestSettings

MOST_PHOTOS = 500  # about 3 MB


def write_page(
    decisions: pa.Table,
    drawn_from: int,
    name: str,
    file: AnyPath,
    sources: list[str],
    settings: IngestSettings | None = None,
) -> int:
    """Writes the page, one file that opens without a network; returns how many products have a photo in it.

    Args:
        decisions: drawn, with product_id, node_path and confidence.
        drawn_from: how many they were drawn from.
        name: of the CSV beside it.
        file: to write.
        sources: with the photos of the products, of which the first 500 are shown.
        settings: section [ingest].
    """
    rows = decisions.to_pylist()
    ids = [row["product_id"] for row in rows[:MOST_PHOTOS]]
    photos = thumbnails(sources, ids, settings or IngestSettings()) if sources else {}
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("audit.html.j2").render(
        rows=rows,
        photos={name: base64.b64encode(photo).decode() for name, photo in photos.items()},
        drawn_from=drawn_from,
        saved=f"{name.removesuffix('.csv')}-checked.csv",
    )
    write_whole(file, page.encode())
    return len(photos)
