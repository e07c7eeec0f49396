"""Where `categorize` puts decisions, part by part: a killed job goes on, and nothing is lost or doubled.

    decisions.csv                            one file, in one of the formats of decisions_file.py
    decisions/                               a folder of parts
      part-00000.parquet …                     in the order of the products
      _manifest.json                           {"kind": "decisions", "version", "job", "rows",
                                                "files": {name: {"size", "sha256"}}}
    postgresql+psycopg://host/shop#table     a table of a database, see decisions_table.py

Of a file and a folder, the parts are kept in a working directory until all of them are there:

    WORK/_parts/   made_from.json {"job": …}   part-00000.parquet …

`finish` then joins them into NAME.partial and renames it: what stood there before is there until then. The
table gets each part at once, in a transaction.

Readers of folders of Parquet (pandas, pyarrow, DuckDB, Spark) leave names that begin with _ out.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.artifact import FileEntry, begin, file_digest, partial_of
from features.storage.databases import is_database
from features.storage.paths import AnyPath, any_path, sizes, write_whole, writing
from pipeline.job.decisions_file import (
    FOLDER_MARK,
    SCHEMA,
    StoredDecisions,
    file_writer,
    require_format,
)
from pipeline.job.decisions_table import DecisionsTable

FOLDER_KIND, FOLDER_VERSION = "decisions", 1
PARTS = "_parts"  # in the working directory
UNFINISHED = "_unfinished"  # in a folder that is being put together


class DecisionsOutput(Protocol):
    """Where decisions go. A part is written whole or not at all; writing it again replaces it."""

    def written(self) -> frozenset[int]:
        """Returns the parts that are written already, also by an earlier process of the same job."""
        ...

    def write(self, part: int, decisions: pa.Table) -> None:
        """Writes a part.

        Args:
            part: 0, 1, 2, …
            decisions: with the columns of the output's schema; any number of rows. No product is in two
                parts, and a part that is written again has the same products.
        """
        ...

    def finish(self, parts: int) -> None:
        """Makes the whole visible; may be repeated.

        Args:
            parts: how many there are; all of 0 … parts - 1 are written.
        """
        ...


def open_output(target: str, job: str, work: AnyPath, schema: pa.Schema = SCHEMA) -> DecisionsOutput:
    """Opens the place that decisions go to.

    Args:
        target: a file, a folder (it ends in / or is a folder of decisions already) or the URL of a table.
        job: digest of all that the decisions depend on, and of how they are divided into parts. Parts that
            were written under another one count as not written.
        work: directory for what must be kept between two processes of a job; the caller removes it after
            `finish`.
        schema: of the decisions: SCHEMA, or WITH_ADAPTED.

    Raises:
        ShelfmarkError: as `require_output`.
    """
    require_output(target, schema)
    if is_database(target):
        return DecisionsTable.of(target).writer(job, schema)
    if _is_folder(target):
        return FolderOutput(any_path(target), job, work, schema)
    return FileOutput(any_path(target), job, work, schema)


def require_output(target: str, schema: pa.Schema = SCHEMA) -> None:
    """Checks a target before any work: the name, what stands there, and whether the database takes decisions.

    Args:
        target: as of `open_output`.
        schema: likewise.

    Raises:
        ShelfmarkError: the suffix is no format, a folder holds something else, or the database cannot be
            reached, gives no rights or has a table with other columns.
    """
    if is_database(target):
        DecisionsTable.of(target).require_writable(schema)
    elif _is_folder(target):
        for folder in {any_path(target), partial_of(any_path(target))}:
            _require_own(folder)
    else:
        require_format(any_path(target))


def decisions_source(text: str) -> AnyPath | StoredDecisions:
    """Returns what a text names: a table of a database, or the path of a file or folder."""
    return DecisionsTable.of(text) if is_database(text) else any_path(text)


def is_new_table(decisions: str, output: str) -> bool:
    """Whether earlier decisions are the table that the new ones go to, and there is no such table yet."""
    if not (is_database(decisions) and is_database(output)):
        return False
    table = DecisionsTable.of(output)
    return DecisionsTable.of(decisions) == table and not table.exists()


def _is_folder(target: str) -> bool:
    """Whether a folder of parts is meant: by a slash at the end, or because one is there."""
    return target.endswith("/") or _is_own(any_path(target))


def _is_own(folder: AnyPath) -> bool:
    """Whether a folder of ours is there, finished or not."""
    return (folder / FOLDER_MARK).is_file() or (folder / UNFINISHED).is_file()


def _require_own(folder: AnyPath) -> None:
    """Raises a ShelfmarkError where something else than decisions of ours is at the folder's path."""
    if folder.is_file():
        raise ShelfmarkError(f"{folder}: a file; expected the name of a folder; give another --output")
    ours = _is_own(folder)
    for name in sizes(folder):
        if not ours or not (_part_number(name) or name in (FOLDER_MARK, UNFINISHED)):
            raise ShelfmarkError(
                f"{folder}: holds {name}, which is not of a folder of decisions; expected a new folder, an "
                "empty one, or one that `shelfmark categorize` has written; give another --output"
            )


class _Parts:
    """The parts of a job, in the working directory."""

    def __init__(self, job: str, work: AnyPath, schema: pa.Schema):
        self.folder, self._schema = begin(work / PARTS, {"job": job}), schema

    def written(self) -> frozenset[int]:
        numbers = (_part_number(name) for name in sizes(self.folder))
        return frozenset(int(number) for number in numbers if number)

    def write(self, part: int, decisions: pa.Table) -> None:
        with writing(self.folder / _part_name(part)) as working:
            rows = decisions.select(self._schema.names).cast(self._schema)
            pq.write_table(
                rows, working, write_page_checksum=True
            )  # the disk may change them until they are joined

    def files(self, parts: int) -> list[AnyPath]:
        """Returns the files of parts 0 … parts - 1."""
        if missing := sorted(set(range(parts)) - self.written()):
            raise ShelfmarkError(
                f"{self.folder}: part {missing[0]} is missing; expected parts 0 to {parts - 1}; run the same "
                "command again"
            )
        return [self.folder / _part_name(part) for part in range(parts)]


class FileOutput:
    """One file; its parts are kept in the working directory and joined at the end."""

    def __init__(self, file: AnyPath, job: str, work: AnyPath, schema: pa.Schema):
        self._file, self._parts, self._schema = file, _Parts(job, work, schema), schema

    def written(self) -> frozenset[int]:
        """Returns the parts in the working directory."""
        return self._parts.written()

    def write(self, part: int, decisions: pa.Table) -> None:
        """Writes a part into the working directory."""
        self._parts.write(part, decisions)

    def finish(self, parts: int) -> None:
        """Joins the parts, one in memory at a time; a killed job and one that was not give the same bytes."""
        files = self._parts.files(parts)
        with (
            writing(self._file, ".partial") as working,
            file_writer(self._file, working, self._schema) as write,
        ):
            for file in files:
                for table in _read_part(file):
                    write(table)


class FolderOutput:
    """A folder of Parquet files; it is put together beside the old one, and then takes its place."""

    def __init__(self, folder: AnyPath, job: str, work: AnyPath, schema: pa.Schema):
        self._folder, self._job, self._schema = folder, job, schema
        self._parts = _Parts(job, work, schema)

    def written(self) -> frozenset[int]:
        """Returns the parts in the working directory."""
        return self._parts.written()

    def write(self, part: int, decisions: pa.Table) -> None:
        """Writes a part into the working directory."""
        self._parts.write(part, decisions)

    def finish(self, parts: int) -> None:
        """Puts the parts and then the manifest into FOLDER.partial, and renames it.

        On an object store, which cannot rename, they are put where they will stand: the old manifest is
        removed first, the new one is written last.
        """
        files = self._parts.files(parts)
        folder, rows = partial_of(self._folder), 0
        _clear(folder)
        write_whole(folder / UNFINISHED, b"")
        for file in files:
            with writing(folder / file.name) as working, pq.ParquetWriter(working, self._schema) as writer:
                for table in _read_part(file):
                    writer.write_table(table)
                    rows += len(table)
        found = sizes(folder)
        entries = {
            file.name: FileEntry(size=found[file.name], sha256=file_digest(folder / file.name))
            for file in files
        }
        manifest = {
            "kind": FOLDER_KIND, "version": FOLDER_VERSION, "job": self._job, "rows": rows, "files": entries,
        }  # fmt: skip
        write_whole(folder / FOLDER_MARK, json.dumps(manifest, indent=1).encode())
        (folder / UNFINISHED).unlink()
        if isinstance(self._folder, Path) and isinstance(folder, Path):
            if self._folder.is_dir():  # a directory cannot be renamed over a full one
                _clear(self._folder)
                self._folder.rmdir()
            folder.rename(self._folder)


def _clear(folder: AnyPath) -> None:
    """Removes what is in a folder of ours, its manifest first and the mark that it is ours last."""
    names = [name for name in sizes(folder) if name not in (FOLDER_MARK, UNFINISHED)]
    if names or (folder / FOLDER_MARK).is_file():
        write_whole(folder / UNFINISHED, b"")
        (folder / FOLDER_MARK).unlink(missing_ok=True)
        for name in names:
            (folder / name).unlink()
    (folder / UNFINISHED).unlink(missing_ok=True)


def _read_part(file: AnyPath) -> Iterator[pa.Table]:
    """Yields the decisions of a part, by the row groups in which they were written."""
    try:
        with file.open("rb") as opened:
            reader = pq.ParquetFile(opened, page_checksum_verification=True)
            for group in range(reader.num_row_groups):
                yield reader.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        file.unlink(missing_ok=True)
        raise ShelfmarkError(
            f"{file}: damaged ({' '.join(str(error).split())[:200]}); expected the part as it was written; "
            "it is removed, so run the same command again"
        ) from error


def _part_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _part_number(name: str) -> str | None:
    """The digits of a part's name; None for another name."""
    found = re.fullmatch(r"part-(\d{5,})\.parquet", name)
    return found[1] if found else None
