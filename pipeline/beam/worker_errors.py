"""Errors of Beam's workers: as text, because most runners hand back nothing else, and made again from it.

The text stands somewhere in the runner's own message, within tracebacks of several languages. A file with the
error would be plainer, and missing where the disk is full.
"""

import json
from typing import Any

from features.errors import ShelfmarkError

MARK = "error in a worker: "  # JSON follows


def as_text(error: Exception) -> RuntimeError:
    """An error whose message says what `error` was.

    >>> str(as_text(OSError(28, "No space left on device", "shard")))
    'error in a worker: ["OSError", 28, "No space left on device", "shard"]'
    """
    words: list[Any]
    if isinstance(error, ShelfmarkError):
        words = ["ShelfmarkError", str(error)]
    elif isinstance(error, OSError) and error.strerror:
        words = ["OSError", error.errno, error.strerror, error.filename and str(error.filename)]
    else:
        words = ["RuntimeError", f"{type(error).__name__}: {error}"]
    return RuntimeError(MARK + json.dumps(words))


def from_text(error: Exception) -> Exception:
    """The error that `as_text` has put into a runner's message; the runner's own where there is none."""
    _, found, text = str(error).partition(MARK)
    if not found:
        return error
    name, *words = json.JSONDecoder().raw_decode(text)[0]
    kinds = {kind.__name__: kind for kind in (ShelfmarkError, OSError, RuntimeError)}
    return kinds[name](*words)
