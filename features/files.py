"""Places: where sources and workspaces stand, on a disk (`Path`) or on an object store (`Remote`).

    /data/shop           Path
    s3://bucket/shop     Remote   by boto3, set up by Beam's options (--s3_endpoint_url …) or AWS_… variables
    gs://bucket/shop     Remote   by Beam's filesystems, as every other scheme they know

An object store has neither directories nor rename. A file appears whole or not at all; a directory is what
stands below a name; a finished one is told by the `manifest.json` written last and removed first.
"""

import atexit
import errno
import fnmatch
import functools
import glob
import io
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from features.errors import ShelfmarkError

MARK = "manifest.json"  # features/artifact.py
FIRST_READ = 64 * 1024  # bytes: a product's photo, a Parquet footer
PAGE = 1000  # objects: no more are listed or removed by one request
LONGEST_READ = 8 * 1024 * 1024  # bytes: from here on a longer request brings nothing


class UnknownScheme(ShelfmarkError):
    """A place of a kind that nobody here knows, as http://."""


@dataclass(frozen=True)
class Stat:
    """What `stat` tells of a remote file, under the names that `Path.stat` has for it."""

    st_size: int  # bytes
    st_mtime_ns: int


@dataclass(frozen=True, order=True)
class Remote:
    """A place on an object store, `scheme://bucket/name`, with the manners of a Path.

    Raises:
        ShelfmarkError: no bucket in the text; later, by every method that asks the store: it cannot be
            reached, refuses, has no such bucket, or its scheme is not known here.
    """

    text: str

    def __post_init__(self) -> None:
        scheme, _, rest = self.text.partition("://")
        if not scheme or not rest.strip("/") or rest.startswith("/"):
            raise ShelfmarkError(
                f"{self.text}: names no bucket; expected scheme://bucket/name; mend the name"
            )
        object.__setattr__(self, "text", self.text.rstrip("/"))

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str | PurePath) -> "Remote":
        return Remote(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """The last part; empty for a bucket."""
        return _parts(self.text)[1].rpartition("/")[2]

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
        """The place above; a bucket's is the bucket itself."""
        return Remote(self.text.rpartition("/")[0]) if self.name else self

    def with_name(self, name: str) -> "Remote":
        """The place of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "Remote":
        """The place beside this one whose name ends in another suffix."""
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

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def stat(self) -> Stat:
        """Size and time of the file; FileNotFoundError where there is none."""
        if not self.name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.text)
        with _errors_told(self.text):
            return _store(self.text).stat(self.text)

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


Place = Path | Remote


def place(text: str) -> Place:
    """`scheme://bucket/…` is remote, everything else a path.

    >>> str(place("file:///data/shop")), str(place("s3://bucket/shop/"))
    ('/data/shop', 's3://bucket/shop')
    """
    if re.match(r"(s3|gs):/(?!/)", text):
        raise ShelfmarkError(f"{text}: one slash; expected two, as in s3://bucket/shop; mend the name")
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))  # as it is: Beam does not decode %2C either
    return Remote(text) if "://" in text else Path(text)


def stats(folder: Remote) -> dict[str, Stat]:
    """Size and time of every file anywhere below, by its name relative to the folder, sorted: one listing."""
    start = len(folder.text) + 1
    # consoles of object stores make empty objects named "folder/"
    return dict(sorted((text[start:], stat) for text, stat in _listing(folder) if not text.endswith("/")))


def sizes(folder: Place) -> dict[str, int]:
    """Bytes of every file anywhere below, by its name relative to the folder, sorted; {} where nothing is."""
    if isinstance(folder, Path):
        files = [file for file in folder.rglob("*") if file.is_file()]
        return dict(sorted((file.relative_to(folder).as_posix(), file.stat().st_size) for file in files))
    return {name: stat.st_size for name, stat in stats(folder).items()}


def remove(folder: Place) -> None:
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


def read_range(file: Place, offset: int = 0, length: int = -1) -> bytes:
    """`length` bytes from `offset` on, fewer where the file ends; -1 means all of them."""
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            opened.seek(offset)
            return opened.read(length)
    with _errors_told(file.text):
        return _store(file.text).read(file.text, offset, length) if length else b""


@contextmanager
def writing(file: Place) -> Iterator[Path]:
    """A working file on the disk that stands at `file`, whole, when the block ends without an error.

    After an error what stood at `file` is still there, and the working file is gone.
    """
    try:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
            working = file.with_name(file.name + ".tmp")
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
                with _errors_told(file.text):
                    _store(file.text).upload(working, file.text)
            _fetched.pop(file, None)
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)  # a failed write does not tell of which file
        raise


def write_whole(file: Place, data: bytes) -> None:
    """Writes a file so that it is either there with all its bytes or not there at all."""
    with writing(file) as working:
        working.write_bytes(data)


_fetched: dict[Remote, Path] = {}
_fetching: dict[Remote, threading.Lock] = {}


def local(file: Place) -> Path:
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


def copy_tree(source: Place, target: Place) -> None:
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


def use_beam_options(options: tuple[str, ...]) -> None:
    """Lets Beam's options (`--s3_endpoint_url=…`) hold for the places of this process, too."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(options)))


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


class _Store(Protocol):
    """What an object store does, by the full texts of its objects; errors are the library's own."""

    def listing(self, folder: str, limit: int | None) -> list[tuple[str, Stat]]: ...

    def stat(self, text: str) -> Stat: ...

    def read(self, text: str, offset: int, length: int) -> bytes: ...

    def fetch(self, text: str, working: Path) -> None: ...

    def upload(self, working: Path, text: str) -> None: ...

    def delete(self, texts: list[str]) -> None: ...


class _S3:
    """S3 by one boto3 client for all threads.

    Beam's own S3 filesystem makes a client for every call (60 to 120 ms of computing), asks for a range
    without an end and reads 16 MiB of it, and where nobody answers or nobody has credentials it tries for
    ten minutes.
    """

    def __init__(self, options: Any):
        import boto3
        from botocore.config import Config

        # a minute of connecting, botocore's own, five times over, is too long for a mistyped address;
        # AWS_MAX_ATTEMPTS still says how often
        patience = Config(connect_timeout=5, max_pool_connections=64, retries={"mode": "standard"})
        self.options = options  # held: the store is kept under its id
        self.client = boto3.session.Session().client("s3", config=patience, **_s3_settings(options))
        self.buckets: set[str] = set()  # known to be there

    def listing(self, folder: str, limit: int | None) -> list[tuple[str, Stat]]:
        bucket, key = _parts(folder)
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket,
            Prefix=f"{key}/" if key else "",
            PaginationConfig={"MaxItems": limit, "PageSize": min(limit or PAGE, PAGE)},
        )
        found = [told for page in pages for told in page.get("Contents", ())]
        return [(f"s3://{bucket}/{told['Key']}", _s3_stat(told["Size"], told)) for told in found]

    def stat(self, text: str) -> Stat:
        bucket, key = _parts(text)
        with self._bucket_seen(bucket):
            told = self.client.head_object(Bucket=bucket, Key=key)
        return _s3_stat(told["ContentLength"], told)

    @contextmanager
    def _bucket_seen(self, bucket: str) -> Iterator[None]:
        """A HEAD's answer does not tell what is missing, object, bucket or leave; a listing's does."""
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError:
            if bucket not in self.buckets:
                self.client.list_objects_v2(Bucket=bucket, MaxKeys=1)
                self.buckets.add(bucket)
            raise

    def read(self, text: str, offset: int, length: int, tries: int = 3) -> bytes:
        from botocore import exceptions as told

        bucket, key = _parts(text)
        last = offset + length - 1 if length > 0 else ""
        wanted = {"Range": f"bytes={offset}-{last}"} if offset or length > 0 else {}
        try:
            return cast(bytes, self.client.get_object(Bucket=bucket, Key=key, **wanted)["Body"].read())
        except told.ClientError as error:
            if error.response["Error"]["Code"] == "InvalidRange":
                return b""  # from the end on
            raise
        except (told.IncompleteReadError, told.ReadTimeoutError, told.ResponseStreamingError):
            if tries == 1:
                raise
            # botocore tries again until an answer begins, not when it breaks off
            return self.read(text, offset, length, tries - 1)

    def fetch(self, text: str, working: Path) -> None:
        bucket, key = _parts(text)
        with self._bucket_seen(bucket), open(working, "wb") as file:
            self.client.download_fileobj(bucket, key, file)

    def upload(self, working: Path, text: str) -> None:
        bucket, key = _parts(text)
        with open(working, "rb") as file:
            self.client.upload_fileobj(file, bucket, key)  # in parts; given up, they are thrown away

    def delete(self, texts: list[str]) -> None:
        from botocore.exceptions import ClientError

        for start in range(0, len(texts), PAGE):
            keys = [_parts(text) for text in texts[start : start + PAGE]]
            wanted: Any = {"Objects": [{"Key": key} for _, key in keys], "Quiet": True}
            answer = self.client.delete_objects(Bucket=keys[0][0], Delete=wanted)
            for refused in answer.get("Errors", ()):
                raise ClientError({"Error": refused}, "DeleteObjects")


class _Beam:
    """Any other store that Beam's filesystems know."""

    def __init__(self) -> None:
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        self.systems = FileSystems
        self.plain = {"compression_type": CompressionTypes.UNCOMPRESSED}

    def listing(self, folder: str, limit: int | None) -> list[tuple[str, Stat]]:
        # lists the prefix up to the first of *?[ and compares the rest
        (found,) = self.systems.match([glob.escape(folder) + "/**"], [limit])
        return [(told.path, _beam_stat(told)) for told in found.metadata_list]

    def stat(self, text: str) -> Stat:
        told = self.systems.get_filesystem(text).metadata(text)
        return _beam_stat(told)

    def read(self, text: str, offset: int, length: int) -> bytes:
        with self.systems.open(text, **self.plain) as file:
            file.seek(offset)
            return file.read(length)

    def fetch(self, text: str, working: Path) -> None:
        with self.systems.open(text, **self.plain) as remote, open(working, "wb") as file:
            shutil.copyfileobj(remote, file, LONGEST_READ)

    def upload(self, working: Path, text: str) -> None:
        with open(working, "rb") as file, self.systems.create(text, **self.plain) as remote:
            shutil.copyfileobj(file, remote, LONGEST_READ)

    def delete(self, texts: list[str]) -> None:
        self.systems.delete([glob.escape(text) for text in texts])  # gs:// takes them for patterns


def _s3_stat(size: int, told: dict[str, Any]) -> Stat:
    return Stat(size, int(told["LastModified"].timestamp() * 1e9))


def _beam_stat(told: Any) -> Stat:
    return Stat(told.size_in_bytes, int(told.last_updated_in_seconds * 1e9))


def _store(text: str) -> _Store:
    """The store that a text leads to."""
    return _s3() if text.startswith("s3://") else _Beam()


_stores: dict[tuple[Any, ...], _S3] = {}
_making = threading.Lock()


def _s3() -> _S3:
    """One for a process and its settings: sockets do not outlive a fork, and Beam's options may change."""
    beam = sys.modules.get("apache_beam.io.filesystems")  # without it no options, and no need to wait for it
    options = beam.FileSystems._pipeline_options if beam else None
    settings = [item for item in os.environ.items() if item[0].startswith("AWS_")]
    key = (os.getpid(), id(options), *settings)
    with _making:
        if key not in _stores:
            _stores[key] = _S3(options)
        return _stores[key]


def _s3_settings(options: Any) -> dict[str, Any]:
    """Beam's options for S3 as boto3 names them."""
    if options is None:
        return {}
    from apache_beam.options.pipeline_options import S3Options

    told = options.view_as(S3Options)
    return {
        "aws_access_key_id": told.s3_access_key_id,
        "aws_secret_access_key": told.s3_secret_access_key,
        "aws_session_token": told.s3_session_token,
        "endpoint_url": told.s3_endpoint_url,
        "region_name": told.s3_region_name,
        "api_version": told.s3_api_version,
        "verify": told.s3_verify,
        "use_ssl": not told.s3_disable_ssl,
    }


def _parts(text: str) -> tuple[str, str]:
    """Bucket and name of an object.

    >>> _parts("s3://bucket/a/b")
    ('bucket', 'a/b')
    """
    bucket, _, key = text.partition("://")[2].partition("/")
    return bucket, key


def _listing(folder: Remote, limit: int | None = None) -> list[tuple[str, Stat]]:
    """The texts of the objects below, and their sizes and times; not more than `limit` where it is given."""
    try:
        with _errors_told(folder.text):
            return _store(folder.text).listing(folder.text, limit)
    except FileNotFoundError as error:  # where no object is, a listing is empty
        raise _no_bucket(folder.text) from error


def _delete(below: Remote, texts: list[str]) -> None:
    """Removes objects, and forgets their copies."""
    if texts:
        with _errors_told(below.text):
            _store(below.text).delete(texts)
    for text in texts:
        _fetched.pop(Remote(text), None)


def _fetch(file: Place, working: Path) -> None:
    """Copies a file to the disk."""
    if isinstance(file, Path):
        shutil.copyfile(file, working)
        return
    with _errors_told(file.text):
        _store(file.text).fetch(file.text, working)


@functools.cache
def _copies() -> str:
    """The directory of the copies, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="shelfmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


WAYS_IN = {  # the package that a scheme needs, and how to be let in
    "s3": (
        "apache-beam[aws]",
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is not Amazon's, AWS_ENDPOINT_URL",
    ),
    "gs": ("apache-beam[gcp]", "set GOOGLE_APPLICATION_CREDENTIALS"),
}
# codes and classes of botocore, requests, Python and Google; none of them is imported to be asked
MISSING = {"404", "NoSuchKey", "FileNotFoundError"}
REFUSALS = {
    *("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"),
}
SILENCES = {"HTTPClientError", "ConnectionError", "TransportError", "RetryError"}


@contextmanager
def _errors_told(text: str) -> Iterator[None]:
    """Turns a store's errors into FileNotFoundError, ShelfmarkError (the user can mend it) or OSError."""
    try:
        yield
    except Exception as error:
        told = _told(text, _innermost(error))
        raise told from (None if told is error else error)


def _innermost(error: Exception) -> Exception:
    """Beam hides an object's error in the details of its own."""
    details = getattr(error, "exception_details", None) or {}
    hidden = next((found for found in details.values() if isinstance(found, Exception)), None)
    return error if hidden is None else _innermost(hidden)


def _kinds(error: Exception) -> set[str]:
    """The code that the store gave, and the names of the error's classes."""
    answer = getattr(error, "response", None)  # botocore's
    code = answer["Error"]["Code"] if isinstance(answer, dict) else getattr(error, "code", "")
    return {str(code), *(kind.__name__ for kind in type(error).__mro__)}


def _no_bucket(text: str) -> ShelfmarkError:
    return ShelfmarkError(f"{text}: no such bucket; expected one that is there; make it or mend the name")


def _told(text: str, error: Exception) -> Exception:
    """The error that a user meets."""
    kinds = _kinds(error)
    reason = " ".join(str(error).split())[:200]
    scheme = text.partition("://")[0]
    package, entry = WAYS_IN.get(scheme, ("", "mend the name"))
    if isinstance(error, ModuleNotFoundError) or "Unable to get filesystem" in reason:
        if not package:
            return UnknownScheme(
                f"{text}: {scheme}:// is not known here; expected s3:// or gs://; mend the name"
            )
        return ShelfmarkError(
            f"{text}: {scheme}:// is not known here; expected its package; install {package}"
        )
    if "NoSuchBucket" in kinds:
        return _no_bucket(text)
    if kinds & MISSING:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    if kinds & REFUSALS:
        return ShelfmarkError(f"{text}: refused ({reason}); expected leave to read and write; {entry}")
    if kinds & SILENCES:
        return ShelfmarkError(
            f"{text}: no answer ({reason}); expected a store there; mend the network or {entry}"
        )
    if "ParamValidationError" in kinds:
        return ShelfmarkError(f"{text}: cannot be ({reason}); expected scheme://bucket/name; mend the name")
    if isinstance(error, ShelfmarkError | OSError) and not hasattr(error, "exception_details"):
        return error
    return OSError(errno.EIO, f"{type(error).__name__}: {reason}", text)
