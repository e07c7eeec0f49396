"""A listing: the rows of a folder or a manifest as Parquet, of which a unit is a row group.

listing-0.parquet   product_id, image (a path or a URL), category, split, seller; "" where not given
"""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.files import Place, place, read_range, writing
from features.objects import UnknownScheme
from pipeline.sources.image import SourceImage, Unit

LISTING = ("product_id", "image", "category", "split", "seller")


def cell_text(value: Any) -> str:
    """A cell as text without blanks around it; "" where it is empty."""
    if isinstance(value, float) and value.is_integer():  # pandas makes 5.0 of an id where one is empty
        value = int(value)
    return "" if value is None or value != value else str(value).strip()


def listing(columns: dict[str, Any]) -> pa.Table:
    """The columns of a listing, "" where they are not told."""
    nothing = [""] * len(next(iter(columns.values())))
    cells = {name: columns.get(name, nothing) for name in LISTING}
    return pa.table(cells, schema=pa.schema([(name, pa.string()) for name in LISTING]))


def write_listing(work: Place, tables: Iterator[pa.Table], root: str, unit_images: int) -> list[Unit]:
    """Writes tables of LISTING into `work`, `unit_images` rows a row group; a unit each."""
    file = work / f"listing-{sum(1 for _ in work.glob('listing-*.parquet'))}.parquet"
    schema = pa.schema([(name, pa.string()) for name in LISTING])
    groups = 0
    with writing(file) as working, pq.ParquetWriter(working, schema) as writer:
        for table in tables:
            for start in range(0, len(table), unit_images):
                writer.write_table(table.slice(start, unit_images))
                groups += 1
    return [Unit(str(file), group, group + 1, root) for group in range(groups)]


def read_listing(unit: Unit) -> Iterator[SourceImage]:
    """The images of a unit, with their bytes."""
    with place(unit.file).open("rb") as listing:
        rows = pq.ParquetFile(listing).read_row_group(unit.start).to_pylist()
    for row in rows:
        image = row.pop("image")
        product_id = row.pop("product_id")
        file = image if "://" in image or not image else str(place(unit.root) / image)
        if not product_id:
            yield SourceImage("", **row, file=file, reason="bad_row", detail="no product_id")
            continue
        data, reason = _fetch(file)
        if reason:
            yield SourceImage(product_id, **row, file=file, reason="missing", detail=reason)
        else:
            yield SourceImage(product_id, **row, file=file, data=data)


# What is not there is a reject; a store that does not answer, a disk that fails or a file that may not be
# read is an error: a reject would stay when the cause is mended.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def _fetch(file: str) -> tuple[bytes, str]:
    """The bytes of an image, or why it is missing."""
    if not file:
        return b"", "no path in the manifest"
    try:
        if "://" not in file and stat.S_IFMT(os.stat(file).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return b"", "not a file"  # reading a pipe would wait for ever
        return read_range(place(file)), ""
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return b"", error.strerror or str(error)[:200]
    except ValueError as error:  # no path has a NUL in it
        return b"", str(error)[:200]
    except UnknownScheme as error:
        return b"", str(error)[:200]
