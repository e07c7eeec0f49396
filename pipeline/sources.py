"""Sources: where products come from, told by name, cut into units that a worker reads on its own.

    *.bson            Cdiscount: {_id, category_id, imgs: [{picture}]}; no category_id = uncategorized
    a folder          each file is a product with one image; the category is the path below the root
    *.csv, *.parquet  a manifest: product_id, image, category, optionally level1…levelN, split, seller

A unit of a BSON file is a range of bytes; a unit of the others is a row group of a listing.
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.product import PARTS
from models.taxonomy import Paths

LISTING = ("product_id", "image", "category", "split", "seller")
BSON_MAX = 256 * 2**20  # bytes; a longer document is a sign that the walk is lost


@dataclass(frozen=True)
class Unit:
    """A piece of a source for one worker: bytes `start` to `stop` of a BSON, or a row group of a listing."""

    file: str
    start: int
    stop: int
    root: str = ""  # of a listing: what its image paths are relative to


@dataclass(frozen=True)
class SourceImage:
    """One image as a source gives it, or the reason why it gives none."""

    product_id: str
    category: str = ""  # "" = uncategorized
    split: str = ""  # "" = not given
    seller: str = ""
    file: str = ""
    offset: int = 0
    length: int = -1  # bytes; -1 = the whole file
    data: bytes = b""
    reason: str = ""
    detail: str = ""


class Source(Protocol):
    """What the stages need of a source."""

    name: str
    path: Path

    def told(self) -> list[list[Any]]:
        """Names, sizes (bytes) and modification times (ns) of its files."""
        ...

    def units(self, work: Path, unit_bytes: int, unit_images: int) -> list[Unit]:
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
    path = Path(text)
    if not path.exists():
        raise ShelfmarkError(
            f"{text}: no such file or folder; expected a .bson, a folder of photos, a .csv or a .parquet; "
            "check the path"
        )
    path = path.absolute()  # an interrupted job may go on from another directory
    if path.is_dir():
        return _Folder(path)
    if path.suffix == ".bson":
        return _Bson(path)
    if path.suffix in (".csv", ".parquet"):
        return _Manifest(path)
    raise ShelfmarkError(
        f"{text}: not a source; expected a .bson, a folder of photos, a .csv or a .parquet manifest"
    )


def read_unit(unit: Unit) -> Iterator[SourceImage]:
    """The images of a unit in the source's order; a product without any comes once, as `no_image`."""
    return _read_bson(unit) if unit.file.endswith(".bson") else _read_listing(unit)


def read_bytes(file: str, offset: int = 0, length: int = -1) -> bytes:
    """Bytes of a file; URLs are read through Beam's filesystems."""
    if "://" in file:
        from apache_beam.io.filesystems import FileSystems

        with FileSystems.open(file, compression_type="uncompressed") as remote:
            remote.seek(offset)
            return remote.read() if length < 0 else remote.read(length)
    with open(file, "rb") as local:
        local.seek(offset)
        return local.read(length)


def read_unchanged(file: str, offset: int, length: int, image_digest: str) -> bytes:
    """Bytes of an image that was looked at before.

    Raises:
        ShelfmarkError: they are not the same any more.
    """
    data = read_bytes(file, offset, length)
    if hashlib.sha256(data).hexdigest() != image_digest:
        raise ShelfmarkError(f"{file}: changed while it was read; expected a source at rest; run again")
    return data


def open_sources(texts: list[str]) -> list[Source]:
    """The sources of these names.

    Raises:
        ShelfmarkError: one cannot be opened, or products of two would be taken for one.
    """
    sources = [open_source(text) for text in texts]
    if len({source.path.resolve() for source in sources}) < len(sources):
        raise ShelfmarkError(
            f"{', '.join(texts)}: a source is given twice; expected each once; mend the command"
        )
    if sum(source.path.is_dir() for source in sources) > 1:
        raise ShelfmarkError(
            f"{', '.join(texts)}: several folders, in which equal file names would be one product; "
            "expected one folder; put them under one, or write a manifest"
        )
    return sources


# BSON


@dataclass
class _Bson:
    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name

    def told(self) -> list[list[Any]]:
        return [_stat(self.path, self.name)]

    def paths(self) -> Paths:
        return Paths()

    def units(self, work: Path, unit_bytes: int, unit_images: int) -> list[Unit]:
        units, start = [], 0
        for end in _document_ends(self.path):
            if end - start >= unit_bytes:
                units.append(Unit(str(self.path), start, end))
                start = end
        size = self.path.stat().st_size
        if start < size:
            units.append(Unit(str(self.path), start, size))
        if not units:
            raise ShelfmarkError(f"{self.path}: empty; expected BSON documents; fetch the file again")
        return units


def _document_ends(path: Path) -> Iterator[int]:
    """Ends of the documents, walked by their length prefixes alone (856,000 documents/s measured)."""
    with open(path, "rb") as file:
        position, size = 0, os.fstat(file.fileno()).st_size
        while position < size:
            prefix = os.pread(file.fileno(), 4, position)
            length = struct.unpack("<i", prefix)[0] if len(prefix) == 4 else BSON_MAX
            if not 5 <= length <= BSON_MAX:
                raise ShelfmarkError(
                    f"{path}: no BSON document at byte {position}; the file is damaged; fetch it again"
                )
            if position + length > size:
                raise ShelfmarkError(
                    f"{path}: truncated: the document at byte {position} needs {length} bytes, "
                    f"{size - position} are there; fetch the file again"
                )
            position += length
            yield position


def _read_bson(unit: Unit) -> Iterator[SourceImage]:
    import bson
    from bson.errors import BSONError

    with open(unit.file, "rb") as file:
        position = unit.start
        while position < unit.stop:
            length = struct.unpack("<i", os.pread(file.fileno(), 4, position))[0]
            raw = os.pread(file.fileno(), length, position)
            try:
                yield from _images_of(bson.decode(raw), raw, unit.file, position)
            except (BSONError, KeyError, TypeError, ValueError) as error:
                detail = f"document at byte {position}: {type(error).__name__}: {error}"[:200]
                yield SourceImage("", file=unit.file, offset=position, reason="bad_document", detail=detail)
            position += length


def _images_of(document: dict[str, Any], raw: bytes, file: str, position: int) -> list[SourceImage]:
    product: dict[str, Any] = {
        "product_id": _cell(document["_id"]),
        "category": _cell(document.get("category_id")),
        "split": _cell(document.get("split")),
        "seller": _cell(document.get("seller")),
        "file": file,
    }
    if not product["product_id"] or product["split"] not in ("", *PARTS):
        raise ValueError(f"_id {product['product_id']!r}, split {product['split']!r}")
    images, cursor = [], 0
    for entry in document.get("imgs") or []:
        picture = entry.get("picture") if isinstance(entry, dict) else None
        if not isinstance(picture, bytes):
            images.append(SourceImage(**product, reason="missing", detail="no picture in the document"))
            continue
        # the decoder does not tell where a value stands; equal pictures are found one after the other
        cursor = raw.index(picture, cursor)
        images.append(SourceImage(**product, offset=position + cursor, length=len(picture), data=picture))
        cursor += len(picture)
    return images or [SourceImage(**product, reason="no_image")]


# Folders and manifests: a listing of files


@dataclass
class _Folder:
    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        if not any(True for _ in self._files()):
            raise ShelfmarkError(
                f"{self.path}: an empty folder; expected photos in folders that name their categories; "
                "check the path"
            )

    def _files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))

    def told(self) -> list[list[Any]]:
        return [_stat(file, str(file.relative_to(self.path))) for file in self._files()]

    def paths(self) -> Paths:
        parents = (file.relative_to(self.path).parent for file in self._files())
        return Paths((parent.as_posix(), parent.parts) for parent in parents if parent.parts)

    def units(self, work: Path, unit_bytes: int, unit_images: int) -> list[Unit]:
        return _write_listing(work, self._rows(), str(self.path), unit_images)

    def _rows(self) -> Iterator[pd.DataFrame]:
        # a name that is not UTF-8 stands in no table: escaped, it becomes a reject of its own, `missing`
        texts = (str(file.relative_to(self.path)).encode(errors="backslashreplace") for file in self._files())
        relative = [Path(text.decode()) for text in texts]
        category = [parent.as_posix() if (parent := file.parent).parts else "" for file in relative]
        names = [file.as_posix() for file in relative]
        yield pd.DataFrame(
            {"product_id": names, "image": names, "category": category, "split": "", "seller": ""}
        )


@dataclass
class _Manifest:
    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        columns = next(self._tables(), pd.DataFrame()).columns
        if columns.empty:
            raise ShelfmarkError(f"{self.path}: no rows; expected product_id, image, …; mend the file")
        lacking = [name for name in ("product_id", "image") if name not in columns]
        if lacking:
            raise ShelfmarkError(
                f"{self.path}: no column {' and no column '.join(lacking)}; found: {', '.join(columns)}; "
                "expected product_id, image and, to learn from, category; mend the header"
            )

    def _tables(self) -> Iterator[pd.DataFrame]:
        """The manifest in pieces, every cell a text without blanks around it, "" where empty."""
        kind = self.path.suffix
        try:
            for batch in (
                _csv_batches(self.path) if kind == ".csv" else pq.ParquetFile(self.path).iter_batches()
            ):
                # not to_pandas: it makes 5.0 of an integer 5 where another cell of the column is empty
                cells = {name: list(map(_cell, column)) for name, column in batch.to_pydict().items()}
                yield pd.DataFrame(cells, dtype=object)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            raise ShelfmarkError(
                f"{self.path}: cannot be read: {reason}; expected a {kind} table; mend the file"
            ) from error

    def told(self) -> list[list[Any]]:
        images = pd.unique(pd.concat([table["image"] for table in self._tables()]))
        root = self.path.parent
        return [
            _stat(self.path, self.name),
            *(_stat(root / image, image) for image in images if image and "://" not in image),
        ]

    def paths(self) -> Paths:
        paths = Paths()
        for table in self._tables():
            if "category" not in table:
                return paths
            levels = sorted(
                (c for c in table.columns if re.fullmatch(r"level\d+", c)), key=lambda c: int(c[5:])
            )
            known = table[table["category"] != ""]
            for row in known[["category", *levels]].itertuples(index=False):
                paths[(row[0], tuple(name for name in row[1:] if name))] += 1
        return paths

    def units(self, work: Path, unit_bytes: int, unit_images: int) -> list[Unit]:
        return _write_listing(work, self._rows(), str(self.path.parent), unit_images)

    def _rows(self) -> Iterator[pd.DataFrame]:
        for table in self._tables():
            rows = pd.DataFrame({name: table.get(name, "") for name in LISTING})
            wrong = sorted(set(rows["split"]) - {"", *PARTS})
            if wrong:
                raise ShelfmarkError(
                    f"{self.path}: split {wrong[0]!r}; expected {', '.join(PARTS)} or nothing; mend the file"
                )
            yield rows


def _csv_batches(path: Path) -> Iterable[pa.RecordBatch]:
    """A CSV's batches with every column as text (numbers and dates as ids must not be re-written)."""
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with open(path, "rb") as file:
        header = pa.csv.open_csv(file, parse_options=parse).schema.names
    texts = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in header}, strings_can_be_null=False
    )
    return pa.csv.open_csv(path, parse_options=parse, convert_options=texts)


def _cell(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def _stat(path: Path, name: str) -> list[Any]:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # no path has a NUL in it
        return [name, -1, -1]  # told as missing: when the file appears, the source has changed
    return [name, stat.st_size, stat.st_mtime_ns]


def _write_listing(work: Path, tables: Iterator[pd.DataFrame], root: str, unit_images: int) -> list[Unit]:
    number = len(list(work.glob("listing-*.parquet")))
    file = work / f"listing-{number}.parquet"
    schema = pa.schema([(name, pa.string()) for name in LISTING])
    groups = 0
    with pq.ParquetWriter(file, schema) as writer:
        for table in tables:
            for start in range(0, len(table), unit_images):
                piece = table.iloc[start : start + unit_images]
                writer.write_table(pa.Table.from_pandas(piece, schema, preserve_index=False))
                groups += 1
    return [Unit(str(file), group, group + 1, root) for group in range(groups)]


def _read_listing(unit: Unit) -> Iterator[SourceImage]:
    for row in pq.ParquetFile(unit.file).read_row_group(unit.start).to_pylist():
        image = row.pop("image")
        product_id = row.pop("product_id")
        file = image if "://" in image or not image else str(Path(unit.root, image))
        if not product_id:
            yield SourceImage("", **row, file=file, reason="bad_row", detail="no product_id")
            continue
        try:
            if not image:
                raise FileNotFoundError(2, "no path in the manifest")
            data = read_bytes(file)
            yield SourceImage(product_id, **row, file=file, data=data)
        except (
            OSError,
            ValueError,
        ) as error:  # a URL of an unknown kind, or a NUL in a path, is a ValueError
            detail = getattr(error, "strerror", None) or str(error)[:200]
            yield SourceImage(product_id, **row, file=file, reason="missing", detail=detail)
