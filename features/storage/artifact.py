"""Finished directories: a directory is finished when its `manifest.json` is there, and that is written last.

    records/
      train-00000-of-00008.tfrecord …
      manifest.json    {"kind", "version", "made_from", "summary", "files": {name: {"size", "sha256"}}}

Work happens in `<name>.partial`; `seal` writes the manifest and renames. On an object store, which cannot
rename, it happens where the artifact will stand, and the manifest alone is the mark. Nothing in a manifest
depends on the time, the place or the machine, so the same work has the same digest.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from features.errors import ShelfmarkError
from features.storage.paths import MARK, Place, local, remove, sizes, write_whole

INPUTS = "made_from.json"  # in a working directory: what the work in progress is made from
KNOWN_DIGESTS = "_digests.json"  # there, too: size and sha256 of files that were told while they were written


@dataclass(frozen=True)
class Artifact:
    """A finished directory and what its manifest says."""

    path: Place
    kind: str
    version: int
    made_from: Mapping[str, str]
    summary: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    digest: str  # sha256 of the manifest, which holds the sha256 of every file

    def file(self, name: str) -> Path:
        """One of the artifact's files, on the disk; ShelfmarkError when the manifest has no such file."""
        if name not in self.files:
            raise ShelfmarkError(
                f"{self.path}: no file {name!r} in its manifest; remove the directory and run again"
            )
        return local(self.path / name)

    def folder(self) -> Path:
        """Its directory on the disk: its own, or a copy of the remote one."""
        return local(self.path)


def digest_of(value: Any) -> str:
    """Sha256 (hex) of a JSON-able value, independent of the order of keys.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Place) -> str:
    """Sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()


def find_artifact(path: Place) -> Artifact | None:
    """The finished artifact at `path`; None where there is none, or a file has gone or changed its size."""
    try:
        text = (path / MARK).read_bytes()
        artifact = Artifact(path=path, digest=hashlib.sha256(text).hexdigest(), **json.loads(text))
        found = sizes(path)
        whole = all(found.get(name) == told["size"] for name, told in artifact.files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None  # from ValueError on: the manifest is somebody else's
    return artifact if whole else None


def open_artifact(path: Place, kind: str) -> Artifact:
    """The finished artifact at `path`.

    Raises:
        ShelfmarkError: nothing finished is there, or it is of another kind.
    """
    artifact = find_artifact(path)
    if artifact is None:
        raise ShelfmarkError(
            f"{path}: no finished {kind} here; expected a manifest.json and its files; "
            "run the stage that makes it"
        )
    if artifact.kind != kind:
        raise ShelfmarkError(
            f"{path}: holds {artifact.kind!r}; expected {kind!r}; give the directory of the {kind}"
        )
    return artifact


def partial_of(path: Place) -> Place:
    """The directory in which the work for `path` goes on."""
    return path.with_name(path.name + ".partial") if isinstance(path, Path) else path


def begin(partial: Place, made_from: Mapping[str, str]) -> Place:
    """Opens a working directory: one made from the same inputs goes on, another one is emptied."""
    told = json.dumps(dict(made_from), sort_keys=True)
    inputs = partial / INPUTS
    if not inputs.is_file() or inputs.read_text() != told:
        remove(partial)
        partial.mkdir(parents=True)
        write_whole(inputs, told.encode())
    return partial


def seal(
    path: Place, *, kind: str, version: int, made_from: Mapping[str, str], summary: Mapping[str, Any]
) -> Artifact:
    """Finishes the work in `partial_of(path)`: removes what is no result, writes the manifest, renames it.

    Files that end in `.tmp`, and files and directories whose name begins with `_`, are working files. What
    stood at `path` before is removed.
    """
    partial = partial_of(path)
    there = sizes(partial)
    files = _results(partial, there)  # before anything is removed: it takes minutes, a killed job goes on
    manifest = {
        "kind": kind,
        "version": version,
        "made_from": dict(sorted(made_from.items())),
        "summary": dict(summary),
        "files": files,
    }
    for name in there.keys() - files.keys():
        (partial / name).unlink(missing_ok=True)
    for folder in partial.glob("_*"):  # empty now; an object store has none
        remove(folder)
    write_whole(partial / MARK, json.dumps(manifest, indent=1).encode())
    if isinstance(path, Path):
        remove(path)  # a directory cannot be renamed over a full one
        os.rename(cast(Path, partial), path)
    return open_artifact(path, kind)


def _results(partial: Place, there: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file that stays, by its name below `partial`."""
    told = json.loads((partial / KNOWN_DIGESTS).read_bytes()) if KNOWN_DIGESTS in there else {}
    return {
        name: told.get(name) or {"size": size, "sha256": file_digest(partial / name)}
        for name, size in there.items()
        if not name.endswith(".tmp") and not name.startswith("_") and name != INPUTS
    }
