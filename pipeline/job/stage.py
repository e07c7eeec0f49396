"""How a stage runs: a finished artifact is opened, another one is made; one log line says which."""

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from features.output import others_output
from features.storage.artifact import (
    Artifact,
    begin,
    digest_of,
    find_artifact,
    open_artifact,
    partial_of,
    seal,
)
from features.storage.paths import AnyPath, copy_tree, remove
from pipeline.job.account import stage_account
from pipeline.job.progress import log


def stage(
    path: AnyPath,
    *,
    kind: str,
    version: int,
    made_from: Mapping[str, object],
    make: Callable[[Path], Mapping[str, object]],
    usable: Callable[[Artifact], bool] = lambda artifact: True,
    shared: bool = False,
    noted: Callable[[], Mapping[str, object]] = dict,
) -> Artifact:
    """The finished artifact at `path`: opened when made from the same inputs, else made by `make`.

    Args:
        path: where the finished artifact is.
        kind: what it holds.
        version: the stage's own number; a higher one remakes.
        made_from: digests (str) of inputs, and JSON-able settings that matter.
        make: fills the working directory, where an interrupted run may have left finished shards; returns the
            summary.
        usable: false when a finished artifact refers to something that is gone.
        shared: workers on other machines fill the working directory, so that on an object store it is there;
            else `make` gets a directory on the disk, whose files are copied when they are finished.
        noted: figures for the log line alone, as they depend on what was there before.
    """
    inputs = {
        name: value if isinstance(value, str) else digest_of(value) for name, value in made_from.items()
    }
    inputs["stage"] = f"{kind} {version}"
    with stage_account(path) as result:
        found = find_artifact(path)
        if found and found.kind == kind and found.made_from == inputs and usable(found):
            log.info("%s: unchanged (%s)", kind, counts_of(found.summary))
            result.summary = found.summary
            return found
        started = time.monotonic()
        with others_output():
            made = _made(path, inputs, make, shared, functools.partial(seal, kind=kind, version=version))
        counts = counts_of({**noted(), **made.summary})
        log.info("%s: %s in %.1f s", kind, counts, time.monotonic() - started)
        result.made, result.summary = True, made.summary
        return made


def _made(
    path: AnyPath,
    inputs: Mapping[str, str],
    make: Callable[[Path], Mapping[str, object]],
    shared: bool,
    finish: Callable[..., Artifact],
) -> Artifact:
    """The artifact, made and sealed by `finish`; other arguments as of `stage`."""
    if isinstance(path, Path) or shared:
        work = cast(Path, begin(partial_of(path), inputs))  # shared: `make` takes remote ones, too
        return finish(path, made_from=inputs, summary=make(work))
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as scratch:
        here = Path(scratch) / path.name
        made = finish(here, made_from=inputs, summary=make(cast(Path, begin(partial_of(here), inputs))))
        remove(path)
        copy_tree(here, path)
    return open_artifact(path, made.kind)


def counts_of(summary: Mapping[str, object]) -> str:
    """The summary in one line; counts of nothing are left out.

    >>> counts_of({"products": 12000, "dropped": 0, "rejects": {"missing": 2}, "note": None})
    'products 12,000, rejects (missing 2)'
    """
    parts = []
    for name, value in summary.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            parts.append(f"{label} ({counts_of(value)})" if value else f"{label} 0")
        elif isinstance(value, float):
            parts.append(f"{label} {value:.4g}")
        elif isinstance(value, int) and not isinstance(value, bool):
            parts += [f"{label} {value:,}"] if value else []
        elif value is not None:
            parts.append(f"{label} {value}")
    return ", ".join(parts) or "nothing"
