"""Finished directories: a directory is finished when its `manifest.json` is there, and that is written last.

    records/
      train-00000-of-00008.tfrecord …
      manifest.json    {"kind", "version", "made_from", "summary", "files": {name: {"size", "sha256"}}}

Work happens in `<name>.partial`; `seal` writes the manifest and renames. On an object store, which cannot
rename, it happens where the artifact will stand, and the manifest alone is the mark. Nothing in a manifest
depends on the time, the directory or the computer, so the same work has the same digest.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from typing_extensions import TypedDict  # of Python 3.11 pydantic takes no other

from features.errors import ShelfmarkError
from features.storage.paths import MARK, AnyPath, local, remove, sizes, write_whole

INPUTS = "made_from.json"  # in a working directory: what the work in progress is made from
KNOWN_DIGESTS = "_digests.json"  # there, too: the FileEntry of files that were digested while written


class FileEntry(TypedDict):
    """What a manifest says of a file."""

    size: int  # bytes
    sha256: str  # hex


@dataclass(frozen=True, kw_only=True)
class ArtifactManifest:
    """What manifest.json holds, in this order."""

    kind: str
    version: int
    made_from: Mapping[str, str]  # name of an input → its digest; sorted by name
    summary: Mapping[str, Any]  # typed by the stage that writes it, see pipeline/job/summaries.py
    files: Mapping[str, FileEntry]

    def to_json(self) -> bytes:
        """Returns the bytes of manifest.json, whose sha256 is the artifact's digest."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()


@dataclass(frozen=True, kw_only=True)
class Artifact(ArtifactManifest):
    """A finished directory and what its manifest says."""

    path: AnyPath
    digest: str  # sha256 of the manifest, which holds the sha256 of every file

    def file(self, name: str) -> Path:
        """Returns the local path of a file; ShelfmarkError when the manifest does not list it."""
        if name not in self.files:
            raise ShelfmarkError(
                f"{self.path}: no file {name!r} in its manifest; expected it among the results; "
                "remove the directory and run again"
            )
        return local(self.path / name)

    def folder(self) -> Path:
        """Returns a local directory: the artifact's own, or a copy of the remote one."""
        return local(self.path)


def digest_of(value: object) -> str:
    """Returns the sha256 (hex) of a JSON-able value, independent of the order of keys.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: AnyPath) -> str:
    """Returns the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()


def damaged_file(artifact: Artifact, folder: Path) -> str | None:
    """Returns the first file that has not the digest that the manifest gives; None where all have it.

    Args:
        artifact: with the manifest.
        folder: of its files on the disk.
    """
    for name, entry in artifact.files.items():
        if file_digest(folder / name) != entry["sha256"]:
            return name
    return None


def find_artifact(path: AnyPath) -> Artifact | None:
    """Returns the finished artifact at `path`; None without one, or when a file is missing or resized."""
    try:
        text = (path / MARK).read_bytes()
        artifact = Artifact(path=path, digest=hashlib.sha256(text).hexdigest(), **json.loads(text))
        found = sizes(path)
        whole = all(found.get(name) == entry["size"] for name, entry in artifact.files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None  # from ValueError on: not a manifest of ours
    return artifact if whole else None


def open_artifact(path: AnyPath, kind: str) -> Artifact:
    """Returns the finished artifact at `path`.

    Raises:
        ShelfmarkError: nothing finished is there, or it is of another kind.
    """
    artifact = find_artifact(path)
    if artifact is None:
        raise ShelfmarkError(
            f"{path}: no finished {kind} here; expected a manifest.json and its files; "
            "run the stage that writes it"
        )
    if artifact.kind != kind:
        raise ShelfmarkError(
            f"{path}: holds {artifact.kind!r}; expected {kind!r}; give the directory of the {kind}"
        )
    return artifact


def partial_of(path: AnyPath) -> AnyPath:
    """Returns the working directory for `path`."""
    return path.with_name(path.name + ".partial") if isinstance(path, Path) else path


def begin(partial: AnyPath, made_from: Mapping[str, str]) -> AnyPath:
    """Opens a working directory: kept when it was made from the same inputs, else emptied."""
    text = json.dumps(dict(made_from), sort_keys=True)
    inputs = partial / INPUTS
    if not inputs.is_file() or inputs.read_text() != text:
        remove(partial)
        partial.mkdir(parents=True)
        write_whole(inputs, text.encode())
    return partial


def seal(
    path: AnyPath, *, kind: str, version: int, made_from: Mapping[str, str], summary: Mapping[str, Any]
) -> Artifact:
    """Finishes the work in `partial_of(path)`: removes working files, writes the manifest, renames it.

    Files that end in `.tmp`, and files and directories whose name begins with `_`, are working files. What
    stood at `path` before is removed.
    """
    partial = partial_of(path)
    there = sizes(partial)
    files = _results(partial, there)  # before anything is removed: it takes minutes, a killed job goes on
    manifest = ArtifactManifest(
        kind=kind,
        version=version,
        made_from=dict(sorted(made_from.items())),
        summary=dict(summary),
        files=files,
    )
    for name in there.keys() - files.keys():
        (partial / name).unlink(missing_ok=True)
    for folder in partial.glob("_*"):  # empty now; an object store has none
        remove(folder)
    write_whole(partial / MARK, manifest.to_json())
    if isinstance(path, Path):
        remove(path)  # a directory cannot be renamed over a full one
        os.rename(cast(Path, partial), path)
    return open_artifact(path, kind)


def _results(partial: AnyPath, there: dict[str, int]) -> dict[str, FileEntry]:
    """Returns size and sha256 of every file that stays, by its name below `partial`."""
    known: dict[str, FileEntry] = {}
    if KNOWN_DIGESTS in there:
        known = json.loads((partial / KNOWN_DIGESTS).read_bytes())
    return {
        name: known.get(name) or {"size": size, "sha256": file_digest(partial / name)}
        for name, size in there.items()
        if not name.endswith(".tmp") and not name.startswith("_") and name != INPUTS
    }
