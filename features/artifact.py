"""Finished directories: a directory is finished when its `manifest.json` is there, and that is written last.

    records/
      train-00000-of-00008.tfrecord …
      manifest.json    {"kind", "version", "made_from", "summary", "files": {name: {"size", "sha256"}}}

Work happens in `<name>.partial`; `seal` writes the manifest and renames. Nothing in a manifest depends on the
time, the place or the machine, so the same work has the same digest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ShelfmarkError

MANIFEST = "manifest.json"
INPUTS = "made_from.json"  # in a .partial directory: what the work in progress is made from


@dataclass(frozen=True)
class Artifact:
    """A finished directory and what its manifest says."""

    path: Path
    kind: str
    version: int
    made_from: Mapping[str, str]
    summary: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    digest: str  # sha256 of the manifest, which holds the sha256 of every file

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files; ShelfmarkError when the manifest has no such file."""
        if name not in self.files:
            raise ShelfmarkError(
                f"{self.path}: no file {name!r} in its manifest; remove the directory and run again"
            )
        return self.path / name


def digest_of(value: Any) -> str:
    """Sha256 (hex) of a JSON-able value, independent of the order of keys.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_artifact(path: Path) -> Artifact | None:
    """The finished artifact at `path`; None where there is none, or a file has gone or changed its size."""
    try:
        text = (path / MANIFEST).read_bytes()
        artifact = Artifact(path=path, digest=hashlib.sha256(text).hexdigest(), **json.loads(text))
        whole = all((path / name).stat().st_size == told["size"] for name, told in artifact.files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None  # from ValueError on: the manifest is somebody else's
    return artifact if whole else None


def open_artifact(path: Path, kind: str) -> Artifact:
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


def partial_of(path: Path) -> Path:
    """The directory in which the work for `path` goes on."""
    return path.with_name(path.name + ".partial")


def begin(path: Path, made_from: Mapping[str, str]) -> Path:
    """The working directory for `path`: one made from the same inputs goes on, another one is emptied."""
    partial = partial_of(path)
    told = json.dumps(dict(made_from), sort_keys=True)
    inputs = partial / INPUTS
    if not inputs.is_file() or inputs.read_text() != told:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_whole(inputs, told.encode())
    return partial


def seal(
    path: Path, *, kind: str, version: int, made_from: Mapping[str, str], summary: Mapping[str, Any]
) -> Artifact:
    """Finishes the work in `<path>.partial`: removes what is no result, writes the manifest, renames it.

    Files that end in `.tmp` and directories whose name begins with `_` are working files. What stood at
    `path` before is removed.
    """
    partial = partial_of(path)
    working = {entry.name for entry in partial.iterdir() if entry.is_dir() and entry.name.startswith("_")}
    files = _results(partial, working)  # before anything is removed: it takes minutes, a killed job goes on
    manifest = {
        "kind": kind,
        "version": version,
        "made_from": dict(made_from),
        "summary": dict(summary),
        "files": files,
    }
    for folder in working:
        shutil.rmtree(partial / folder)
    for leftover in [partial / INPUTS, *partial.rglob("*.tmp")]:
        leftover.unlink()
    write_whole(partial / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    if path.exists():
        # a directory cannot be renamed over a full one; its manifest goes first: a crash leaves no half one
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    os.rename(partial, path)
    return open_artifact(path, kind)


def _results(partial: Path, working: set[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file that stays, by its name below `partial`."""
    found = sorted(file.relative_to(partial) for file in partial.rglob("*") if file.is_file())
    kept = [
        name
        for name in found
        if name.suffix != ".tmp" and name != Path(INPUTS) and name.parts[0] not in working
    ]
    return {
        str(name): {"size": (partial / name).stat().st_size, "sha256": file_digest(partial / name)}
        for name in kept
    }


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is either there with all its bytes or not there at all."""
    working = path.with_name(path.name + ".tmp")
    try:
        with open(working, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(working, path)
    except BaseException as error:
        working.unlink(missing_ok=True)  # a full disk is not helped by half a file
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not tell of which file
        raise
