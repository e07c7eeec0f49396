"""Object stores, for the paths of paths.py: S3 by boto3, all others by Beam's filesystems.

Objects are named by their full texts, `scheme://bucket/name`. `store_errors` turns what goes wrong into
FileNotFoundError, ShelfmarkError (the user can correct it) or OSError. No library is imported before a store
of its kind is used.

pyarrow.fs 25 was tried instead and reads ranges as fast, but it would save some 50 lines and lose this: a
missing bucket reads as a missing file; AWS_ENDPOINT_URL has to be passed on by us; error codes
are in the text of OSErrors alone; a stream that breaks off leaves its first part as a finished object; a
removal leaves an empty object `folder/` behind; only whole folders are removed by less than a request a file.
"""

import errno
import glob
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from features.errors import ShelfmarkError

PAGE = 1000  # objects: no more are listed or removed by one request
LONGEST_READ = 8 * 1024 * 1024  # bytes: from here on a longer request brings nothing
ACCESS = {  # the package that a scheme needs, and how to set credentials
    "s3": (
        "apache-beam[aws]",
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is not Amazon's, AWS_ENDPOINT_URL",
    ),
    "gs": ("apache-beam[gcp]", "set GOOGLE_APPLICATION_CREDENTIALS"),
}
# codes and classes of botocore, requests, Python and Google, by name: so none of them needs importing
MISSING = {"404", "NoSuchKey", "FileNotFoundError"}
REFUSALS = {
    *("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"),
}
SILENCES = {"HTTPClientError", "ConnectionError", "TransportError", "RetryError"}


class UnknownScheme(ShelfmarkError):
    """A path with a scheme that is not supported, as http://."""


@dataclass(frozen=True)
class Stat:
    """Size and time of a remote file, under the names that `Path.stat` has for them."""

    st_size: int  # bytes
    st_mtime_ns: int


class ObjectStore(Protocol):
    """An object store, whose objects are named by their full texts; errors are those of the library."""

    def listing(self, folder: str, limit: int | None) -> list[tuple[str, Stat]]:
        """Objects below a folder, at most `limit` of them, each with its size and time."""

    def stat(self, text: str) -> Stat:
        """Size and time of one object: one request."""

    def read(self, text: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on, fewer where the object ends; -1 means all of them."""

    def fetch(self, text: str, working: Path) -> None:
        """Copies an object to the disk."""

    def upload(self, working: Path, text: str) -> None:
        """Makes an object, whole or not at all, of a file on the disk."""

    def delete(self, texts: list[str]) -> None:
        """Removes objects of one bucket; a missing one is no error."""


class _S3:
    """S3 by one boto3 client for all threads.

    Beam's own S3 filesystem makes a client for every call (60 to 120 ms of computing), requests a range
    without an end and reads 16 MiB of it, and without an answer or credentials it retries for ten minutes.
    """

    def __init__(self, settings: dict[str, Any]):
        import boto3
        from botocore.config import Config

        # a minute of connecting, botocore's own, five times over, is too long for a mistyped address;
        # AWS_MAX_ATTEMPTS still sets the number of attempts
        patience = Config(connect_timeout=5, max_pool_connections=64, retries={"mode": "standard"})
        self.client = boto3.session.Session().client("s3", config=patience, **settings)
        self.buckets: set[str] = set()  # known to be there

    def listing(self, folder: str, limit: int | None) -> list[tuple[str, Stat]]:
        bucket, key = bucket_and_name(folder)
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket,
            Prefix=f"{key}/" if key else "",
            PaginationConfig={"MaxItems": limit, "PageSize": min(limit or PAGE, PAGE)},
        )
        found = [entry for page in pages for entry in page.get("Contents", ())]
        return [(f"s3://{bucket}/{entry['Key']}", _s3_stat(entry["Size"], entry)) for entry in found]

    def stat(self, text: str) -> Stat:
        bucket, key = bucket_and_name(text)
        with self._bucket_seen(bucket):
            head = self.client.head_object(Bucket=bucket, Key=key)
        return _s3_stat(head["ContentLength"], head)

    @contextmanager
    def _bucket_seen(self, bucket: str) -> Iterator[None]:
        """Finds out what is missing, object, bucket or permission: a HEAD does not say, a listing does."""
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError:
            if bucket not in self.buckets:
                self.client.list_objects_v2(Bucket=bucket, MaxKeys=1)
                self.buckets.add(bucket)
            raise

    def read(self, text: str, offset: int, length: int, tries: int = 3) -> bytes:
        from botocore import exceptions

        bucket, key = bucket_and_name(text)
        last = offset + length - 1 if length > 0 else ""
        wanted = {"Range": f"bytes={offset}-{last}"} if offset or length > 0 else {}
        try:
            return cast(bytes, self.client.get_object(Bucket=bucket, Key=key, **wanted)["Body"].read())
        except exceptions.ClientError as error:
            if error.response["Error"]["Code"] == "InvalidRange":
                return b""  # from the end on
            raise
        except (
            exceptions.IncompleteReadError,
            exceptions.ReadTimeoutError,
            exceptions.ResponseStreamingError,
        ):
            if tries == 1:
                raise
            # botocore tries again until a response begins, not when it breaks off
            return self.read(text, offset, length, tries - 1)

    def fetch(self, text: str, working: Path) -> None:
        bucket, key = bucket_and_name(text)
        with self._bucket_seen(bucket), open(working, "wb") as file:
            self.client.download_fileobj(bucket, key, file)

    def upload(self, working: Path, text: str) -> None:
        bucket, key = bucket_and_name(text)
        with open(working, "rb") as file:
            self.client.upload_fileobj(file, bucket, key)  # in parts; given up, they are thrown away

    def delete(self, texts: list[str]) -> None:
        from botocore.exceptions import ClientError

        for start in range(0, len(texts), PAGE):
            keys = [bucket_and_name(text) for text in texts[start : start + PAGE]]
            wanted: Any = {"Objects": [{"Key": key} for _, key in keys], "Quiet": True}
            response = self.client.delete_objects(Bucket=keys[0][0], Delete=wanted)
            for refused in response.get("Errors", ()):
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
        return [(entry.path, _beam_stat(entry)) for entry in found.metadata_list]

    def stat(self, text: str) -> Stat:
        return _beam_stat(self.systems.get_filesystem(text).metadata(text))

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


def _s3_stat(size: int, entry: dict[str, Any]) -> Stat:
    return Stat(size, int(entry["LastModified"].timestamp() * 1e9))


def _beam_stat(entry: Any) -> Stat:
    return Stat(entry.size_in_bytes, int(entry.last_updated_in_seconds * 1e9))


def object_store(text: str) -> ObjectStore:
    """The store of an object."""
    return _s3() if text.startswith("s3://") else _Beam()


_settings: dict[str, Any] = {}


def s3_settings() -> dict[str, Any]:
    """What holds beside the AWS_… variables, under boto3's names; can be pickled for other processes."""
    return _settings


def use_s3_settings(settings: dict[str, Any]) -> None:
    """Makes the `s3_settings` of Beam's options, or of another process, hold in this one."""
    global _settings
    _settings = settings


def settings_of(options: Any) -> dict[str, Any]:
    """Beam's options for S3 under boto3's names."""
    from apache_beam.options.pipeline_options import S3Options

    given = options.view_as(S3Options)
    return {
        "aws_access_key_id": given.s3_access_key_id,
        "aws_secret_access_key": given.s3_secret_access_key,
        "aws_session_token": given.s3_session_token,
        "endpoint_url": given.s3_endpoint_url,
        "region_name": given.s3_region_name,
        "api_version": given.s3_api_version,
        "verify": given.s3_verify,
        "use_ssl": not given.s3_disable_ssl,
    }


_stores: dict[tuple[Any, ...], _S3] = {}
_making = threading.Lock()


def _s3() -> _S3:
    """S3 for this process and its settings: sockets do not outlive a fork, and settings may change."""
    variables = [item for item in os.environ.items() if item[0].startswith("AWS_")]
    key = (os.getpid(), *_settings.items(), *variables)
    with _making:
        if key not in _stores:
            _stores[key] = _S3(_settings)
        return _stores[key]


def bucket_and_name(text: str) -> tuple[str, str]:
    """Bucket and name of an object.

    >>> bucket_and_name("s3://bucket/a/b")
    ('bucket', 'a/b')
    """
    bucket, _, key = text.partition("://")[2].partition("/")
    return bucket, key


@contextmanager
def store_errors(text: str) -> Iterator[None]:
    """Turns a store's errors into FileNotFoundError, ShelfmarkError (the user can correct it) or OSError."""
    try:
        yield
    except Exception as error:
        shown = _shown(text, _innermost(error))
        raise shown from (None if shown is error else error)


def _innermost(error: Exception) -> Exception:
    """The error of one object, which Beam hides in the details of its own."""
    details = getattr(error, "exception_details", None) or {}
    hidden = next((found for found in details.values() if isinstance(found, Exception)), None)
    return error if hidden is None else _innermost(hidden)


def _kinds(error: Exception) -> set[str]:
    """The code that the store gave, and the names of the error's classes."""
    response = getattr(error, "response", None)  # botocore's
    code = response["Error"]["Code"] if isinstance(response, dict) else getattr(error, "code", "")
    return {str(code), *(kind.__name__ for kind in type(error).__mro__)}


def no_bucket(text: str) -> ShelfmarkError:
    """The error of a path whose bucket does not exist."""
    return ShelfmarkError(f"{text}: no such bucket; expected one that exists; create it or correct the name")


def _shown(text: str, error: Exception) -> Exception:
    """The error that a user sees."""
    kinds = _kinds(error)
    reason = " ".join(str(error).split())[:200]
    scheme = text.partition("://")[0]
    package, entry = ACCESS.get(scheme, ("", "correct the name"))
    if isinstance(error, ModuleNotFoundError) or "Unable to get filesystem" in reason:
        if not package:
            return UnknownScheme(
                f"{text}: {scheme}:// is not supported; expected s3:// or gs://; correct the name"
            )
        return ShelfmarkError(
            f"{text}: {scheme}:// needs a package that is not installed; expected {package}; install it"
        )
    if "NoSuchBucket" in kinds:
        return no_bucket(text)
    if kinds & MISSING:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    if kinds & REFUSALS:
        return ShelfmarkError(f"{text}: refused ({reason}); expected permission to read and write; {entry}")
    if kinds & SILENCES:
        return ShelfmarkError(
            f"{text}: no answer ({reason}); expected an object store there; check the network, or {entry}"
        )
    if "InvalidRegionError" in kinds or reason.startswith("Invalid endpoint"):
        return ShelfmarkError(f"{text}: {reason}; expected the store's own address and region; {entry}")
    if "ParamValidationError" in kinds:
        return ShelfmarkError(
            f"{text}: not a valid name ({reason}); expected scheme://bucket/name; correct the name"
        )
    if isinstance(error, ShelfmarkError | OSError) and not hasattr(error, "exception_details"):
        return error
    return OSError(errno.EIO, f"{type(error).__name__}: {reason}", text)
