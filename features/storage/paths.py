"""Paths of sources and workspaces, on a disk (`Path`) or on an object store (`Remote`).

    /data/shop           Path
    s3://bucket/shop     Remote   by boto3, set up by Beam's options (--s3_endpoint_url …) or AWS_… variables
    gs://bucket/shop     Remote   by Beam's filesystems, as every other scheme they know

An object store has neither directories nor rename. A file appears whole or not at all; a directory is what
stands below a name; a finished one is known by its `manifest.json`, which is written last and removed first.
"""

import atexit
import difflib
import errno
import fnmatch
import functools
import io
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

from features.errors import ShelfmarkError
from features.storage.object_stores import (
    LONGEST_READ,
    Stat,
    bucket_and_name,
    no_bucket,
    object_store,
    settings_of,
    store_errors,
    use_s3_settings,
)

MARK = "manifest.json"  # features/storage/artifact.py
FIRST_READ = 64 * 1024  # bytes: a product's photo, a Parquet footer


@dataclass(frozen=True, order=True)
class Remote:
    """A path on an object store, `scheme://bucket/name`, with the methods of a Path.

    Raises:
        ShelfmarkError: no bucket in the text; later, by every method that sends a request: the store does not
            answer, refuses, has no such bucket, or its scheme is not supported.
    """

    text: str

    def __post_init__(self) -> None:
        scheme, _, rest = self.text.partition("://")
        if not scheme or not rest.strip("/") or rest.startswith("/"):
            raise ShelfmarkError(
                f"{self.text}: names no bucket; expected scheme://bucket/name; correct the name"
            )
        object.__setattr__(self, "text", self.text.rstrip("/"))

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str | PurePath) -> "Remote":
        return Remote(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """The last part; empty for a bucket."""
        return bucket_and_name(self.text)[1].rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """`.parquet` of `a.parquet`."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Remote":
        """The path above; a bucket's is the bucket itself."""
        return Remote(self.text.rpartition("/")[0]) if self.name else self

    def with_name(self, name: str) -> "Remote":
        """The path of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "Remote":
        """The path beside this one whose name ends in another suffix."""
        return self.with_name(self.stem + suffix)

    def relative_to(self, other: "Remote") -> PurePosixPath:
        """What leads from `other` to here; ValueError when this is not below it."""
        if self == other:
            return PurePosixPath()
        if not self.text.startswith(f"{other.text}/"):
            raise ValueError(f"{self.text!r} is not below {other.text!r}")
        return PurePosixPath(self.text[len(other.text) + 1 :])

    def exists(self) -> bool:
        """Whether a file is here, or something below."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether a file is here: one request."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether something stands below: one request."""
        return bool(_listing(self, limit=1))

    def stat(self) -> Stat:
        """Size and time of the file; FileNotFoundError where there is none."""
        if not self.name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.text)
        with store_errors(self.text):
            return object_store(self.text).stat(self.text)

    def read_bytes(self) -> bytes:
        """The whole file."""
        return read_range(self)

    def read_text(self) -> str:
        """The whole file, as UTF-8."""
        return read_range(self).decode()

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file; FileNotFoundError where there is none, unless `missing_ok`."""
        if not missing_ok:
            self.stat()
        _delete(self, [self.text])

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing: there are no directories to make."""

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file for reading, seekable; FileNotFoundError where there is none."""
        if mode != "rb":
            raise ValueError(f"{self.text}: opened with {mode!r}; expected 'rb'; write with `writing`")
        return cast(BinaryIO, io.BufferedReader(_Reader(self), FIRST_READ))

    def glob(self, pattern: str) -> "list[Remote]":
        """Files directly here whose name fits, sorted. Costs a listing of everything below."""
        names = [name for name in sizes(self) if "/" not in name]
        return sorted(self / name for name in names if fnmatch.fnmatchcase(name, pattern))

    def rglob(self, pattern: str) -> "list[Remote]":
        """Files anywhere below whose name, the last part, fits, sorted."""
        names = [name for name in sizes(self) if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)]
        return sorted(self / name for name in names)


AnyPath = Path | Remote


def any_path(text: str) -> AnyPath:
    """`scheme://bucket/…` is remote, everything else a path; a scheme may be written in any case.

    A `file://` URL is read as `Path.as_uri` writes it: %E9 is the byte E9, in whatever encoding the disk has.

    >>> str(any_path("file:///data/a%20b")), str(any_path("File://localhost/data")), str(any_path("S3://bucket/shop/"))
    ('/data/a b', '/data', 's3://bucket/shop')

    Raises:
        ShelfmarkError: it begins like a URL and is none, or names a file of another machine.
    """
    if re.match(r"(?i)(s3|gs):/(?!/)", text):
        raise ShelfmarkError(f"{text}: one slash; expected two, as in s3://bucket/shop; correct the name")
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*|", scheme):
        return Path(text)
    if scheme.lower() != "file":
        return Remote(f"{scheme.lower()}://{rest}")
    machine, slash, path = rest.partition("/")
    if machine.lower() not in ("", "localhost") or not path:
        raise ShelfmarkError(f"{text}: no file of this machine; expected file:///path; correct the name")
    return Path(os.fsdecode(unquote_to_bytes(slash + path)))


def stats(folder: Remote) -> dict[str, Stat]:
    """Size and time of every file anywhere below, by its name relative to the folder, sorted: one listing."""
    start = len(folder.text) + 1
    # consoles of object stores make empty objects named "folder/"
    return dict(sorted((text[start:], stat) for text, stat in _listing(folder) if not text.endswith("/")))


def absolute(path: AnyPath) -> AnyPath:
    """The same path for a process with another working directory."""
    return path.absolute() if isinstance(path, Path) else path


def sizes(folder: AnyPath) -> dict[str, int]:
    """Bytes of every file anywhere below, by its name relative to the folder, sorted; {} where nothing is."""
    if isinstance(folder, Path):
        files = [file for file in folder.rglob("*") if file.is_file()]
        return dict(sorted((file.relative_to(folder).as_posix(), file.stat().st_size) for file in files))
    return {name: stat.st_size for name, stat in stats(folder).items()}


def remove(folder: AnyPath) -> None:
    """Removes the whole tree, manifests first: a removal cut short leaves nothing that looks finished."""
    if isinstance(folder, Path):
        for mark in folder.rglob(MARK):
            mark.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        return
    found = [text for text, _ in _listing(folder)]
    marks = [text for text in found if text.endswith(f"/{MARK}")]
    _delete(folder, marks)
    _delete(folder, [text for text in found if not text.endswith(f"/{MARK}")])


def read_range(file: AnyPath, offset: int = 0, length: int = -1) -> bytes:
    """`length` bytes from `offset` on, fewer where the file ends; -1 means all of them."""
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            opened.seek(offset)
            return opened.read(length)
    with store_errors(file.text):
        return object_store(file.text).read(file.text, offset, length) if length else b""


@contextmanager
def writing(file: AnyPath, ending: str = ".tmp") -> Iterator[Path]:
    """A working file on the disk that stands at `file`, whole, when the block ends without an error.

    After an error what stood at `file` is still there, and the working file, `file` + `ending`, is gone.
    """
    try:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
            working = file.with_name(file.name + ending)
            try:
                yield working
                with open(working, "rb") as written:
                    os.fsync(written.fileno())
                os.replace(working, file)
            finally:
                working.unlink(missing_ok=True)  # a full disk is not helped by half a file
        else:
            with tempfile.TemporaryDirectory(prefix="shelfmark-") as folder:
                working = Path(folder) / (file.name + ".tmp")
                yield working
                with store_errors(file.text):
                    object_store(file.text).upload(working, file.text)
            _fetched.pop(file, None)
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)  # a failed write does not name its file
        raise


def write_whole(file: AnyPath, data: bytes) -> None:
    """Writes a file so that it is either there with all its bytes or not there at all."""
    with writing(file) as working:
        working.write_bytes(data)


_fetched: dict[Remote, Path] = {}
_fetching: dict[Remote, threading.Lock] = {}


def local(file: AnyPath) -> Path:
    """The file itself, or a copy of the remote one; of a directory, with all that stands below.

    The copy is fetched once, again after this process has written the file anew, and goes with the process.
    """
    if isinstance(file, Path):
        return file
    with _fetching.setdefault(file, threading.Lock()):
        if file not in _fetched:
            working = Path(tempfile.mkdtemp(dir=_copies())) / file.name
            if file.is_dir():
                copy_tree(file, working)
            else:
                _fetch(file, working)
            _fetched[file] = working
        return _fetched[file]


def copy_tree(source: AnyPath, target: AnyPath) -> None:
    """Copies every file below `source`, those named manifest.json last.

    Raises:
        ShelfmarkError: a name would lead out of `target`.
    """
    names = sizes(source)
    for name in sorted(names, key=lambda name: (PurePosixPath(name).name == MARK, name)):
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ShelfmarkError(f"{source}/{name}: leads out of {target}; expected a name below; rename it")
        with writing(target / name) as working:
            _fetch(source / name, working)


# errors of a file system that has no hard links, or none to there
NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def link_tree(source: AnyPath, target: AnyPath) -> None:
    """Makes every file below `source` stand below `target`, too, those named manifest.json last.

    Both are then the same file on the disk (hard links); where there are no links, as on an object store, a
    copy is made. `target` is new. No file of a finished directory is ever changed in place.

    Raises:
        ShelfmarkError: a name would lead out of `target`.
    """
    if isinstance(source, Path) and isinstance(target, Path):
        try:
            for name in sorted(sizes(source), key=lambda name: (PurePosixPath(name).name == MARK, name)):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(source / name, target / name)
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
    copy_tree(source, target)


# Beam's options that say how object stores are reached, and those that need nothing of Beam but their text
STORE_OPTIONS = ("--s3_", "--azure_", "--blob_", "--hdfs_", "--gcs_", "--gcp_", "--project", "--no_auth")
S3_OPTIONS = ("--s3_",)


def all_begin(options: tuple[str, ...], beginnings: tuple[str, ...]) -> bool:
    """Whether all of Beam's options begin so; a value may stand on its own, after its option.

    >>> all_begin(("--s3_region_name=eu", "--s3_endpoint_url", "http://127.0.0.1:9000"), S3_OPTIONS)
    True
    >>> all_begin(("--runner=FlinkRunner",), S3_OPTIONS), all_begin(("http://127.0.0.1:9000",), S3_OPTIONS)
    (False, False)
    """
    names = [option for option in options if option.startswith("-")]
    return options[:1] == tuple(names[:1]) and all(name.startswith(beginnings) for name in names)


def use_beam_options(options: tuple[str, ...]) -> None:
    """Makes Beam's options (`--s3_endpoint_url=…`) hold for the paths of this process, too.

    Raises:
        ShelfmarkError: Beam refuses them, or does not know one about object stores.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            parsed = PipelineOptions(list(options))
            known = parsed.get_all_options()  # else each kind is parsed when it is first looked at
    except SystemExit as stop:  # of the parser, which prints its usage
        reason = complaint.getvalue().strip().rpartition("error: ")[2]
        raise ShelfmarkError(
            f"Beam refused {' '.join(options)} ({reason}); expected Beam's options after --; correct them"
        ) from stop
    for name in (option.partition("=")[0] for option in options if option.startswith(STORE_OPTIONS)):
        # Beam passes over what it does not know, and would go to Amazon's store instead of one's own
        if not any(f"--{other}".startswith(name) for other in known):
            near = difflib.get_close_matches(name, [f"--{other}" for other in known], n=1)
            hint = f"did you mean {near[0]}?" if near else "correct it"
            raise ShelfmarkError(f"{name}: unknown to Beam; expected one of its options after --; {hint}")
    FileSystems.set_options(parsed)
    use_s3_settings(settings_of(parsed))


class _Reader(io.RawIOBase):
    """A remote file read in ranges: short ones after a jump, twice as long as the last where reads adjoin."""

    def __init__(self, file: Remote):
        self._file = file
        self._size = file.stat().st_size
        self._position = 0
        self._window, self._start = b"", 0  # bytes at hand, and where in the file they begin
        self._ahead = FIRST_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        )
        if self._position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self._file.text)
        return self._position

    def readinto(self, target: Any) -> int:
        into = memoryview(target).cast("B")
        end = self._start + len(self._window)
        if self._position >= self._size:
            return 0
        if not self._start <= self._position < end:
            self._ahead = min(2 * self._ahead, LONGEST_READ) if self._position == end else FIRST_READ
            self._window = read_range(self._file, self._position, max(len(into), self._ahead))
            self._start = self._position
        piece = memoryview(self._window)[self._position - self._start :][: len(into)]
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _listing(folder: Remote, limit: int | None = None) -> list[tuple[str, Stat]]:
    """The texts of the objects below, and their sizes and times; not more than `limit` where it is given."""
    try:
        with store_errors(folder.text):
            return object_store(folder.text).listing(folder.text, limit)
    except FileNotFoundError as error:  # where no object is, a listing is empty
        raise no_bucket(folder.text) from error


def _delete(below: Remote, texts: list[str]) -> None:
    """Removes objects, and forgets their copies."""
    if texts:
        with store_errors(below.text):
            object_store(below.text).delete(texts)
    for text in texts:
        _fetched.pop(Remote(text), None)


def _fetch(file: AnyPath, working: Path) -> None:
    """Copies a file to the disk."""
    if isinstance(file, Path):
        shutil.copyfile(file, working)
        return
    with store_errors(file.text):
        object_store(file.text).fetch(file.text, working)


@functools.cache
def _copies() -> str:
    """The directory of the copies, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="shelfmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
