"""Sources: where products come from, told by name, cut into units that a worker reads on its own.

    *.bson            Cdiscount: {_id, category_id, imgs: [{picture}]}; no category_id = uncategorized
    a folder          each file is a product with one image; the category is the path below the root
    *.csv, *.parquet  a manifest: product_id, image, category, optionally level1…levelN, split, seller

Each on a disk or, as in s3://bucket/catalogue.bson, on an object store. A unit of a BSON file is a range of
bytes; a unit of the others is a row group of a listing. Nothing here grows with the catalogue.
"""

import errno
import hashlib
import itertools
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import google_crc32c
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.files import Place, Remote, local, place, read_range, stats, writing
from features.objects import UnknownScheme
from features.product import PARTS, Paths

LISTING = ("product_id", "image", "category", "split", "seller")
BSON_MAX = 256 * 2**20  # bytes; a longer document is a sign that the walk is lost
LISTED = 50_000  # files of a folder in memory at a time
SPAN_BYTES = 2**20  # read at once, where images stand closer together than
GAP_BYTES = 2**14


@dataclass(frozen=True)
class Unit:
    """A piece of a source for one worker: bytes `start` to `stop` of a BSON, or a row group of a listing."""

    file: str
    start: int
    stop: int
    root: str = ""  # of a listing: what its image paths are relative to


class SourceImage(NamedTuple):
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
    path: Place

    def told(self) -> str:
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
        return _Folder(path)
    if path.suffix == ".bson":
        return _Bson(path)
    if path.suffix in (".csv", ".parquet"):
        return _Manifest(path)
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
    if sum(isinstance(source, _Folder) for source in sources) > 1:
        raise ShelfmarkError(
            f"{', '.join(texts)}: several folders, in which equal file names would be one product; "
            "expected one folder; put them under one, or write a manifest"
        )
    return sources


def read_unit(unit: Unit) -> Iterator[SourceImage]:
    """The images of a unit in the source's order; a product without any comes once, as `no_image`."""
    return _read_bson(unit) if unit.file.endswith(".bson") else _read_listing(unit)


def read_images(
    file: list[str], offset: list[int], length: list[int], checksum: list[int]
) -> Iterator[bytes]:
    """Bytes of images that were looked at before; neighbours by one read, which halves the time.

    Args:
        file: paths or URLs.
        offset: of the images in them, bytes.
        length: bytes.
        checksum: their crc32c then.

    Raises:
        ShelfmarkError: they are not the same any more.
    """
    first = 0
    while first < len(file):
        last, start, end = first, offset[first], offset[first] + length[first]
        while (
            last + 1 < len(file)
            and file[last + 1] == file[first]
            and 0 <= offset[last + 1] - end <= GAP_BYTES
            and end - start < SPAN_BYTES
        ):
            last += 1
            end = offset[last] + length[last]
        data = read_range(place(file[first]), start, end - start)
        for image in range(first, last + 1):
            piece = data[offset[image] - start : offset[image] - start + length[image]]
            if google_crc32c.value(piece) != checksum[image]:
                raise _changed(file[image])
            yield piece
        first = last + 1


def _changed(file: str) -> ShelfmarkError:
    return ShelfmarkError(f"{file}: changed while it was read; expected a source at rest; run again")


def _digest(stats: Iterable[tuple[str, int, int]]) -> str:
    """Sha256 (hex) of names, sizes and times; -1 for what is missing: when it appears, that is a change."""
    digest = hashlib.sha256()
    for name, size, time in stats:
        digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _stat(path: Place, name: str) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # no path has a NUL in it
        return name, -1, -1
    return name, found.st_size, found.st_mtime_ns


# BSON


@dataclass
class _Bson:
    path: Place
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name

    def told(self) -> str:
        return _digest([_stat(self.path, self.name)])

    def paths(self) -> Paths:
        return Paths()

    def units(self, work: Place, unit_bytes: int, unit_images: int) -> list[Unit]:
        units, start, end = [], 0, 0
        for end in _document_ends(self.path):
            if end - start >= unit_bytes:
                units.append(Unit(str(self.path), start, end))
                start = end
        if start < end:
            units.append(Unit(str(self.path), start, end))
        if not units:
            raise ShelfmarkError(f"{self.path}: empty; expected BSON documents; fetch the file again")
        return units


def _document_ends(path: Place) -> Iterator[int]:
    """Ends of the documents, walked by their length prefixes alone."""
    with path.open("rb") as file:
        position, size = 0, path.stat().st_size
        while position < size:
            file.seek(position)
            prefix = file.read(4)
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

    with place(unit.file).open("rb") as file:
        for position, raw in _documents(file, unit):
            try:
                yield from _images_of(bson.decode(raw), raw, unit.file, position)
            except (BSONError, KeyError, TypeError, ValueError) as error:
                detail = f"document at byte {position}: {type(error).__name__}: {error}"[:200]
                yield SourceImage("", file=unit.file, offset=position, reason="bad_document", detail=detail)


def _documents(file: BinaryIO, unit: Unit) -> Iterator[tuple[int, bytes]]:
    """The documents of a unit and where they stand."""
    position = unit.start
    file.seek(position)
    while position < unit.stop:
        prefix = file.read(4)
        length = int.from_bytes(prefix, "little")
        raw = prefix + file.read(length - 4) if 5 <= length <= BSON_MAX else b""
        if len(raw) != length:
            raise _changed(unit.file)
        yield position, raw
        position += length


def _images_of(document: dict[str, Any], raw: bytes, file: str, position: int) -> list[SourceImage]:
    names = ("_id", "category_id", "split", "seller")
    product_id, category, split, seller = (_cell(document.get(name)) for name in names)
    if not product_id or split not in ("", *PARTS):
        raise ValueError(f"_id {product_id!r}, split {split!r}")
    product = (product_id, category, split, seller, file)
    images, cursor = [], 0
    for entry in document.get("imgs") or []:
        picture = entry.get("picture") if isinstance(entry, dict) else None
        if not isinstance(picture, bytes):
            images.append(SourceImage(*product, reason="missing", detail="no picture in the document"))
            continue
        # The decoder does not tell where a value stands; equal pictures are found one after the other.
        # Looking for the whole picture takes 10 µs, for its beginning 1 µs.
        cursor = raw.index(picture[:64], cursor)
        if not raw.startswith(picture, cursor):
            cursor = raw.index(picture, cursor)
        images.append(SourceImage(*product, position + cursor, len(picture), picture))
        cursor += len(picture)
    return images or [SourceImage(*product, reason="no_image")]


# Folders and manifests: a listing of files


@dataclass
class _Folder:
    path: Place
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        if not any(True for _ in self._files()):
            raise ShelfmarkError(
                f"{self.path}: an empty folder; expected photos in folders that name their categories; "
                "check the path"
            )

    def _files(self) -> Iterator[str]:
        """Names below the folder, with slashes, in order; hidden ones left out."""
        if isinstance(self.path, Remote):
            names = iter(stats(self.path))
            yield from (name for name in names if not re.search(r"(^|/)\.", name))
            return
        yield from _walk(str(self.path), "", ())

    def told(self) -> str:
        if isinstance(self.path, Remote):
            return _digest((name, it.st_size, it.st_mtime_ns) for name, it in stats(self.path).items())
        return _digest(_stat(self.path / name, name) for name in self._files())

    def paths(self) -> Paths:
        categories = (name.rpartition("/")[0] for name in self._files())
        return Paths((category, tuple(category.split("/"))) for category in categories if category)

    def units(self, work: Place, unit_bytes: int, unit_images: int) -> list[Unit]:
        return _write_listing(work, self._rows(), str(self.path), unit_images)

    def _rows(self) -> Iterator[pa.Table]:
        # a name that is not UTF-8 stands in no table: escaped, it becomes a reject of its own, `missing`
        texts = (name.encode(errors="backslashreplace").decode() for name in self._files())
        while names := list(itertools.islice(texts, LISTED)):
            category = [name.rpartition("/")[0] for name in names]
            yield _listing({"product_id": names, "image": names, "category": category})


def _walk(folder: str, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """Names of the files in a folder and, after them, of those further down; links are followed."""
    real = os.path.realpath(folder)
    if real in above:
        raise ShelfmarkError(f"{folder}: a link to a folder above it; expected a tree; remove the link")
    entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda e: e.name)
    folders = [entry for entry in entries if entry.is_dir()]
    yield from (below + entry.name for entry in entries if not entry.is_dir())
    for entry in folders:
        yield from _walk(entry.path, f"{below}{entry.name}/", (*above, real))


@dataclass
class _Manifest:
    path: Place
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        columns = next(self._tables(), pa.table({})).column_names
        if not columns:
            raise ShelfmarkError(f"{self.path}: no rows; expected product_id, image, …; mend the file")
        lacking = [name for name in ("product_id", "image") if name not in columns]
        if lacking:
            raise ShelfmarkError(
                f"{self.path}: no column {' and no column '.join(lacking)}; found: {', '.join(columns)}; "
                "expected product_id, image and, to learn from, category, between commas; mend the header"
            )

    def _tables(self) -> Iterator[pa.Table]:
        """The manifest in pieces, every cell a text without blanks around it, "" where empty."""
        kind, file = self.path.suffix, local(self.path)
        try:
            for batch in _csv_batches(file) if kind == ".csv" else pq.ParquetFile(file).iter_batches():
                names = batch.schema.names
                if len(set(names)) < len(names):
                    twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
                    raise ShelfmarkError(
                        f"{self.path}: two columns {twice}; expected each once; mend the header"
                    )
                # not by pandas: it makes 5.0 of an integer 5 where another cell of the column is empty
                cells = {name: list(map(_cell, column)) for name, column in batch.to_pydict().items()}
                yield pa.table(cells, schema=pa.schema([(name, pa.string()) for name in cells]))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            utf8 = " in UTF-8" if kind == ".csv" else ""
            raise ShelfmarkError(
                f"{self.path}: cannot be read: {reason}; expected a {kind} table{utf8}; mend the file"
            ) from error

    def told(self) -> str:
        return _digest(itertools.chain([_stat(self.path, self.name)], self._stats()))

    def _stats(self) -> Iterator[tuple[str, int, int]]:
        """Of its images on a disk; those on an object store are told by the manifest: a stat is a request."""
        if isinstance(self.path, Path):
            for table in self._tables():
                images = (image for image in table["image"].to_pylist() if image and "://" not in image)
                yield from (_stat(self.path.parent / image, image) for image in images)

    def paths(self) -> Paths:
        paths = Paths()
        for table in self._tables():
            if "category" not in table.column_names:
                return paths
            levels = sorted(
                (c for c in table.column_names if re.fullmatch(r"level\d+", c)), key=lambda c: int(c[5:])
            )
            for category, *names in zip(
                *(table[name].to_pylist() for name in ("category", *levels)), strict=True
            ):
                if category:
                    paths[(category, tuple(name for name in names if name))] += 1
        return paths

    def units(self, work: Place, unit_bytes: int, unit_images: int) -> list[Unit]:
        return _write_listing(work, self._rows(), str(self.path.parent), unit_images)

    def _rows(self) -> Iterator[pa.Table]:
        for table in self._tables():
            rows = _listing({name: table[name] for name in LISTING if name in table.column_names})
            wrong = sorted(set(rows["split"].to_pylist()) - {"", *PARTS})
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
    if isinstance(value, float) and value.is_integer():  # pandas makes 5.0 of an id where one is empty
        value = int(value)
    return "" if value is None or value != value else str(value).strip()


def _listing(columns: dict[str, Any]) -> pa.Table:
    """The columns of a listing, "" where they are not told."""
    nothing = [""] * len(next(iter(columns.values())))
    cells = {name: columns.get(name, nothing) for name in LISTING}
    return pa.table(cells, schema=pa.schema([(name, pa.string()) for name in LISTING]))


def _write_listing(work: Place, tables: Iterator[pa.Table], root: str, unit_images: int) -> list[Unit]:
    file = work / f"listing-{sum(1 for _ in work.glob('listing-*.parquet'))}.parquet"
    schema = pa.schema([(name, pa.string()) for name in LISTING])
    groups = 0
    with writing(file) as working, pq.ParquetWriter(working, schema) as writer:
        for table in tables:
            for start in range(0, len(table), unit_images):
                writer.write_table(table.slice(start, unit_images))
                groups += 1
    return [Unit(str(file), group, group + 1, root) for group in range(groups)]


def _read_listing(unit: Unit) -> Iterator[SourceImage]:
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
