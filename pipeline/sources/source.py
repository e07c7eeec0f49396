"""Sources: where products come from, known by their names, cut into segments that a worker reads on its own.

    *.bson                          Cdiscount: {_id, category_id, imgs: [{picture}]}
    a folder of photos              each file is a product with one image; the category is the path below
    *.csv *.tsv *.csv.gz *.tsv.gz   a manifest: product_id, image, category, level1…, split, seller, weight
    *.parquet                       the same, or with the pictures inside; also a folder of them

Each on a disk or on an object store (s3://bucket/catalogue.bson). Memory does not grow with the catalogue.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from features.delimited import SUFFIXES, is_delimited
from features.errors import ShelfmarkError
from features.product import CategoryPaths
from features.storage.paths import AnyPath, any_path
from pipeline.sources.bson_file import BsonFile, read_bson
from pipeline.sources.folder import Folder, shards_in
from pipeline.sources.image import Segment, SourceImage
from pipeline.sources.listing import Chosen, read_listing
from pipeline.sources.manifest import Manifest
from pipeline.sources.names import AS_NAMED, Renamed
from pipeline.sources.tables import DETECTED, CsvOptions
from pipeline.sources.urls import Fetching

KINDS = f"a .bson, a folder of photos, a {', '.join(SUFFIXES)} or a .parquet"


class Source(Protocol):
    """What the stages need of a source."""

    name: str
    path: AnyPath

    def digest(self) -> str:
        """Digest (sha256 hex) of the names, sizes (bytes) and modification times (ns) of its files."""
        ...

    def paths(self) -> CategoryPaths:
        """The categories' paths in the tree, as far as the source knows them; names are tidied."""
        ...

    def ignored(self) -> int:
        """How many files are passed over because operating systems left them behind."""
        ...

    def segments(
        self, work: AnyPath, segment_bytes: int, segment_images: int, renamed: Renamed = AS_NAMED
    ) -> list[Segment]:
        """Its segments; listings are written into `work`, with categories as `renamed` says."""
        ...


def open_source(text: str, options: CsvOptions = DETECTED, may_be_empty: bool = False) -> Source:
    """Opens the source of that name.

    Args:
        text: a path or URL.
        options: of delimited text.
        may_be_empty: an empty source is no error.

    Raises:
        ShelfmarkError: it is not there, is empty, or is none of the kinds.
    """
    path = any_path(text)
    if not text or not path.exists():
        raise ShelfmarkError(f"{text or 'SOURCE'}: no such file or folder; expected {KINDS}; check the path")
    if isinstance(path, Path):
        path = path.absolute()  # an interrupted job may go on from another directory
    if path.is_dir():
        shards = shards_in(path)
        if shards:
            return Manifest(path, may_be_empty=may_be_empty, shards=shards)
        return Folder(path, may_be_empty)
    if path.suffix.lower() == ".bson":
        return BsonFile(path, may_be_empty)
    if is_delimited(path.name) or path.suffix.lower() == ".parquet":
        return Manifest(path, options, may_be_empty)
    raise ShelfmarkError(f"{text}: not a source; expected {KINDS} manifest")


def open_sources(
    texts: list[str], options: CsvOptions = DETECTED, may_be_empty: bool = False
) -> list[Source]:
    """Opens the sources of these names.

    Raises:
        ShelfmarkError: one cannot be opened, or products of two sources would have one id.
    """
    sources = [open_source(text, options, may_be_empty) for text in texts]
    same = {source.path.resolve() if isinstance(source.path, Path) else source.path for source in sources}
    if len(same) < len(sources):
        raise ShelfmarkError(
            f"{', '.join(texts)}: a source is given twice; expected each once; correct the command"
        )
    if sum(isinstance(source, Folder) for source in sources) > 1:
        raise ShelfmarkError(
            f"{', '.join(texts)}: several folders, in which equal file names would be one product; "
            "expected one folder; put them under one, or write a manifest"
        )
    unnamed = [source for source in sources if isinstance(source, Manifest) and source.names_products]
    if len({source.name for source in unnamed}) < len(unnamed):
        raise ShelfmarkError(
            f"{', '.join(texts)}: tables of one name without product_id, whose rows would be one product; "
            "expected different names; put them into one folder, or rename one"
        )
    return sources


def read_segment(
    segment: Segment, fetching: Fetching | None = None, left_out: Chosen | None = None
) -> Iterator[SourceImage]:
    """The images of a segment in the source's order; a product without any comes once, as `no_image`.

    Args:
        segment: of a source.
        fetching: how photos are fetched from web addresses.
        left_out: products whose images a listing need not read; a BSON has them read already.
    """
    if segment.file.lower().endswith(".bson"):
        return read_bson(segment)
    return read_listing(segment, fetching, left_out)
