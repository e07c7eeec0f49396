"""The history of a release: every number of every batch, and all audits.

    WORKSPACE/monitor/<release>/history.jsonl   a line for each file of decisions or of audits, in order

A file that was monitored before replaces its own line: a command repeated changes nothing. Decisions are
known by their digest, audits by their products: a sample that is filled in further is counted once.
"""

import json
from typing import Any

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, write_whole

HISTORY = "history.jsonl"
Entry = dict[str, Any]
BATCH, AUDITS = "batch", "audits"


def read_history(file: AnyPath) -> list[Entry]:
    """The entries, oldest first; none where there is no file.

    Raises:
        ShelfmarkError: a line is not an entry.
    """
    if not file.is_file():
        return []
    entries = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries.append(entry | {"kind": entry["kind"], "digest": entry["digest"]})
        except (ValueError, KeyError, TypeError) as error:
            raise ShelfmarkError(
                f"{file}: line {number} cannot be read; expected a line of `shelfmark monitor`; remove it"
            ) from error
    return entries


def with_entry(entries: list[Entry], entry: Entry) -> list[Entry]:
    """The entries with one more, or with its own replaced, at its old place and with its old date."""
    for at, old in enumerate(entries):
        if (old["kind"], old["digest"]) == (entry["kind"], entry["digest"]):
            return [*entries[:at], entry | {"date": old["date"]}, *entries[at + 1 :]]
    return [*entries, entry]


def write_history(file: AnyPath, entries: list[Entry]) -> None:
    """Writes all entries; the file is there whole or as it was."""
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_whole(file, "".join(lines).encode())
