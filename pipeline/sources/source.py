"""Sources: where products come from, told by name, cut into units that a worker reads on its own.

    *.bson            Cdiscount: {_id, category_id, imgs: [{picture}]}; no category_id = uncategorized
    a folder          each file is a product with one image; the category is the path below the root
    *.csv, *.parquet  a manifest: product_id, image, category, optionally level1…levelN, split, seller

Each on a disk or on an object store (s3://bucket/catalogue.bson). Nothing here grows with the catalogue.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from features.errors import ShelfmarkError
from features.files import Place, place
from features.product import Paths
from pipeline.sources.bson_file import BsonFile, read_bson
from pipeline.sources.folder import Folder
from pipeline.sources.image import SourceImage, Unit
from pipeline.sources.listing import read_listing
from pipeline.sources.manifest import Manifest


class Source(Protocol):
    """What the stages need of a source."""

    name: str
    path: Place

    def digest(self) -> str:
        """Digest (sha256 hex) of the names, sizes (bytes) and modification times (ns) of its files."""
        ...

    def units(self, work: Place, unit_bytes: int, unit_images: int) -> list[Unit]:
        """Its units; listings are written into `work`."""
        ...

    def paths(self) -> Paths:
        """The categories' places in the tree, as far as the source knows them."""
        ...


def open_source(text: str) -> Source:
    """The source of that name.

    Raises:
        ShelfmarkError: it is not there, is empty, or is none of the three kinds.
    """
    path = place(text)
    if not text or not path.exists():
        raise ShelfmarkError(
            f"{text or 'SOURCE'}: no such file or folder; expected a .bson, a folder of photos, a .csv or a "
            ".parquet; check the path"
        )
    if isinstance(path, Path):
        path = path.absolute()  # an interrupted job may go on from another directory
    if path.is_dir():
        return Folder(path)
    if path.suffix == ".bson":
        return BsonFile(path)
    if path.suffix in (".csv", ".parquet"):
        return Manifest(path)
    raise ShelfmarkError(
        f"{text}: not a source; expected a .bson, a folder of photos, a .csv or a .parquet manifest"
    )


def open_sources(texts: list[str]) -> list[Source]:
    """The sources of these names.

    Raises:
        ShelfmarkError: one cannot be opened, or products of two would be taken for one.
    """
    sources = [open_source(text) for text in texts]
    same = {source.path.resolve() if isinstance(source.path, Path) else source.path for source in sources}
    if len(same) < len(sources):
        raise ShelfmarkError(
            f"{', '.join(texts)}: a source is given twice; expected each once; mend the command"
        )
    if sum(isinstance(source, Folder) for source in sources) > 1:
        raise ShelfmarkError(
            f"{', '.join(texts)}: several folders, in which equal file names would be one product; "
            "expected one folder; put them under one, or write a manifest"
        )
    return sources


def read_unit(unit: Unit) -> Iterator[SourceImage]:
    """The images of a unit in the source's order; a product without any comes once, as `no_image`."""
    return read_bson(unit) if unit.file.endswith(".bson") else read_listing(unit)
