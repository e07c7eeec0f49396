"""A listing: the rows of a folder or a manifest as Parquet; each row group is a segment.

    listing-0.parquet   product_id, image (a path or a URL), category, split, seller; "" where not given
                        problem: why the row cannot be used; then image names the manifest
                        weight: null where not given

The images are files, or are in the same rows of a Parquet file (`Segment.pictures`).
"""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.object_stores import UnknownScheme
from features.storage.paths import AnyPath, any_path, read_range, writing
from pipeline.sources.image import MISSING, Segment, SourceImage, path_text
from pipeline.sources.url_cache import Fetched
from pipeline.sources.urls import Fetching, fetch_urls, is_url

TEXTS = ("product_id", "image", "category", "split", "seller", "problem")
LISTING = pa.schema([*((name, pa.string()) for name in TEXTS), ("weight", pa.float64())])
LEFT_OUT = "left_out"  # the reason of an image that was not to be read
Chosen = Callable[[list[str], list[str]], frozenset[str]]  # ids of products, sellers → the chosen ids
PICTURES = 64  # read at a time from a Parquet file
READ_BUFFER = 2**20  # bytes of a column at a time: without it, a whole row group's pictures are in memory


def listing(columns: Mapping[str, list[str]], weight: list[float | None] | None = None) -> pa.Table:
    """A table with the columns of LISTING; "" in those that are not given."""
    count = len(next(iter(columns.values())))
    nothing = [""] * count
    cells = {name: columns.get(name, nothing) for name in TEXTS}
    return pa.table({**cells, "weight": pa.array(weight or [None] * count, pa.float64())}, schema=LISTING)


def write_listing(
    work: AnyPath, tables: Iterator[pa.Table], root: AnyPath, segment_images: int
) -> list[Segment]:
    """Writes tables of LISTING into `work`, `segment_images` rows a row group; returns a segment for each."""
    file = work / f"listing-{sum(1 for _ in work.glob('listing-*.parquet'))}.parquet"
    groups = 0
    with writing(file) as working, pq.ParquetWriter(working, LISTING) as writer:
        for table in tables:
            for start in range(0, len(table), segment_images):
                writer.write_table(table.slice(start, segment_images))
                groups += 1
    return [Segment(path_text(file), group, group + 1, path_text(root)) for group in range(groups)]


def only_products(segment: Segment, wanted: set[str], work: Path) -> Iterator[Segment]:
    """The segment; of a listing of files and web addresses only the rows of the wanted products.

    Args:
        segment: of a source.
        wanted: product_id.
        work: directory, made if need be.
    """
    if segment.file.lower().endswith(".bson") or segment.pictures:
        yield segment
        return
    with any_path(segment.file).open("rb") as file:
        rows = pq.ParquetFile(file).read_row_group(segment.start)
    rows = rows.filter(pc.is_in(rows["product_id"], pa.array(sorted(wanted), pa.string())))
    if len(rows):
        work.mkdir(exist_ok=True)
        yield from write_listing(work, iter([rows]), any_path(segment.root), len(rows))


def read_listing(
    segment: Segment, fetching: Fetching | None = None, left_out: Chosen | None = None
) -> Iterator[SourceImage]:
    """The images of a segment, with their bytes; those at web addresses are fetched as `fetching` says.

    Of products that `left_out` chooses, no image is read or fetched: its reason is `left_out`.
    """
    with any_path(segment.file).open("rb") as file:
        rows = pq.ParquetFile(file).read_row_group(segment.start).to_pylist()
    left = frozenset[str]()
    if left_out:
        left = left_out([row["product_id"] for row in rows], [row["seller"] for row in rows])
    pictures = _pictures(segment) if segment.pictures else iter([None] * len(rows))
    fetched = _fetched([row for row in rows if row["product_id"] not in left], segment, fetching)
    for row, picture in zip(rows, pictures, strict=True):
        image, problem, product_id = row.pop("image"), row.pop("problem"), row.pop("product_id")
        if problem:
            yield SourceImage("", file=image, reason="bad_row", detail=problem)
        elif product_id in left:
            yield SourceImage(product_id, seller=row["seller"], reason=LEFT_OUT)
        elif picture is not None:
            yield SourceImage(product_id, **row, file=image or segment.pictures, offset=-1, data=picture)
        elif fetching and is_url(image):
            yield _from_url(SourceImage(product_id, **row), next(fetched))
        elif not image:
            yield SourceImage(product_id, **row, reason="no_image")
        else:
            yield _from_file(SourceImage(product_id, **row), image, segment.root)


def _fetched(rows: list[dict[str, str]], segment: Segment, fetching: Fetching | None) -> Iterator[Fetched]:
    """The photos of the rows whose images are web addresses, in their order."""
    urls = [row["image"] for row in rows if is_url(row["image"]) and not row["problem"]]
    if not fetching or not urls:
        return iter(())
    return fetch_urls(urls, fetching, f"{any_path(segment.file).stem}-{segment.start}")


def _from_url(image: SourceImage, fetched: Fetched) -> SourceImage:
    if fetched.reason:
        return image._replace(file=fetched.url, reason=fetched.reason, detail=fetched.detail)
    return image._replace(file=fetched.file, offset=fetched.offset, data=fetched.data, origin=fetched.url)


def _pictures(segment: Segment) -> Iterator[bytes | None]:
    """The images in a segment's row groups of a Parquet file, in their order; None where a row holds none."""
    with any_path(segment.pictures).open("rb") as opened:
        file = pq.ParquetFile(opened, buffer_size=READ_BUFFER, pre_buffer=False)
        name = str(picture_column(file.schema_arrow))
        in_struct = pa.types.is_struct(file.schema_arrow.field(name).type)
        columns = [f"{name}.bytes" if in_struct else name]
        for batch in file.iter_batches(PICTURES, row_groups=list(range(*segment.groups)), columns=columns):
            column = batch.column(0)
            for data in (column.field("bytes") if in_struct else column).to_pylist():
                yield data or None


def picture_column(schema: pa.Schema) -> str | None:
    """The column `image`, in any case, where it holds pictures: bytes, or a struct with `bytes`."""
    for field in schema:
        if field.name.strip().lower() == "image" and _holds_bytes(field.type):
            return str(field.name)
    return None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in binary)


def _from_file(image: SourceImage, cell: str, root: str) -> SourceImage:
    """The image with its file and its bytes, or the reason why it is missing."""
    try:
        path = image_path(cell, any_path(root))
        if isinstance(path, Path):
            path = existing(path)
            if stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                return _missing(image, path_text(path), "not a file")  # reading a pipe would wait for ever
        return image._replace(file=path_text(path), data=read_range(path))
    except OSError as error:
        if error.errno not in MISSING:
            raise
        return _missing(image, path_text(path), error.strerror or str(error)[:200])
    except (ValueError, UnknownScheme, BadLocation) as error:  # no path has a NUL in it
        return _missing(image, cell, str(error)[:200])


def _missing(image: SourceImage, file: str, detail: str) -> SourceImage:
    return image._replace(file=file, reason="missing", detail=detail)


class BadLocation(Exception):
    """An image cell that names no file."""


def image_path(image: str, root: AnyPath) -> AnyPath:
    """The path of a cell's image: a URL, or a path relative to `root`.

    Raises:
        BadLocation: the cell begins like a URL but is none.
    """
    if "://" not in image:
        return root / image
    try:
        return any_path(image)
    except ShelfmarkError as error:
        raise BadLocation(str(error)) from error


def existing(path: Path) -> Path:
    """The path, or that of an existing file with the accents written the other way (Macs decompose them)."""
    try:
        if str(path).isascii() or path.exists():
            return path
        others = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
        return next((other for other in others if other.exists()), path)
    except (OSError, ValueError):  # reading it will give the reason
        return path
