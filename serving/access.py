"""Who may use the service: bearer tokens (RFC 6750), of which a file holds the digests.

    # tokens.txt
    9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  shop      sha256 of a token, and a name
    60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752            the name may be left out

A changed file counts within a second. Where the changed file is wrong, the tokens before stay in use, and the
log says so. No token and no line of the file is in any message: a line may be a token by mistake.
"""

import hashlib
import hmac
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from features.errors import ShelfmarkError, one_line

log = logging.getLogger("shelfmark")

DIGEST = re.compile(r"[0-9a-fA-F]{64}")
EVERY = 1.0  # s between looks at the file
EXPECTED = (
    "expected the sha256 of a token as 64 hex digits, then a name if you like; docs/serving.md makes one"
)


@dataclass(frozen=True)
class Access:
    """Who may use the service."""

    tokens: "Tokens | None" = None  # None: everybody
    metrics: bool = True  # /metrics needs no token


class Tokens:
    """The tokens of a file."""

    def __init__(self, file: Path) -> None:
        """Reads the file.

        Raises:
            ShelfmarkError: it cannot be read, has no token, or a line that is no digest.
        """
        self._file = file
        self._version, self._looked = _version(file), time.monotonic()
        self._digests = read_tokens(file)

    def allow(self, authorization: str | None) -> bool:
        """Says whether a request with this header Authorization comes with one of the tokens."""
        scheme, _, token = (authorization or "").partition(" ")
        self._read_again()
        digest, found = hashlib.sha256(token.strip(" ").encode("latin-1")).digest(), False
        for known in self._digests:  # all of them: the time says nothing about which one it was
            found |= hmac.compare_digest(digest, known)
        return found and scheme.lower() == "bearer"

    def _read_again(self) -> None:
        now = time.monotonic()
        if now - self._looked < EVERY:
            return
        self._looked = now
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = read_tokens(self._file)
        except ShelfmarkError as error:
            log.error("%s; until then the tokens of before are in use", one_line(error))
        else:
            log.info("%s: read again, %d tokens", self._file, len(self._digests))


def _version(file: Path) -> tuple[int, ...]:
    """What another content changes; empty where the file is not there."""
    try:
        state = os.stat(file)
    except OSError:
        return ()
    return state.st_mtime_ns, state.st_size, state.st_ino


def read_tokens(file: Path) -> list[bytes]:
    """Returns the digests of a file of tokens, 32 bytes each.

    Raises:
        ShelfmarkError: it cannot be read, has no token, or a line that is no digest.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ShelfmarkError(f"{file}: not UTF-8; {EXPECTED}") from error
    except OSError as error:
        raise ShelfmarkError(
            f"{file}: {error.strerror}; expected a file of tokens that may be read; give another --tokens"
        ) from error
    digests = []
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        if not DIGEST.fullmatch(words[0]):
            raise ShelfmarkError(f"{file}, line {number}: no digest; {EXPECTED}")
        digests.append(bytes.fromhex(words[0]))
    if not digests:
        raise ShelfmarkError(f"{file}: no token; {EXPECTED}")
    return digests
