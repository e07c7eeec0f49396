"""What the store takes and gives: corrections, histories, lines of lists."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np

from features.errors import ShelfmarkError
from features.printable import CONTROL

ONE_LINE = ("seller", "product_id", "who")  # texts without control characters
LONGEST, LONGEST_COMMENT = 1_000, 10_000  # bytes of a text; PostgreSQL's indices take 2,700

State = Literal["new", "same", "replaced"]


@dataclass(frozen=True)
class Correction:
    """A person's statement: this product of this seller has this category."""

    seller: str
    product_id: str
    category: str
    who: str | None = None
    when: datetime | None = None  # without a zone it is UTC; None: now
    comment: str | None = None
    release: str | None = None  # in service when it was made
    images: tuple[str, ...] = ()  # sha256 (hex) of the source bytes, as in the store of bottlenecks
    fingerprint: str | None = None  # of the backbone that computed the bottlenecks
    bottlenecks: np.ndarray | None = None  # (rows, d) float16, all views of the images; None: not to be had


class Added(NamedTuple):
    """What became of a correction that was added."""

    id: int
    state: State  # same: it was there already; replaced: the product had another category


@dataclass(frozen=True)
class History:
    """What a seller has in use, as one head sees it: n corrections with vectors, the oldest first."""

    revision: int  # 0: a seller without corrections
    ids: np.ndarray  # (n,) int64, rising
    base: list[str]  # n categories that the head had given
    true: list[str]  # n categories of the corrections
    vectors: np.ndarray  # (n, v) float16
    corrections: int  # in use, with vectors or not
    missing: int  # of these, without a vector of this head
    flagged: str | None  # why they look wrong
    set_aside: str | None  # why a person took them out of use


@dataclass(frozen=True)
class SellerAccount:
    """A line of the list of sellers."""

    seller: str
    corrections: int  # in use
    ended: int  # undone or replaced
    without_vector: int  # in use, without bottlenecks: no head can see them
    last: datetime | None  # when the newest one was made, UTC
    flagged: str | None
    set_aside: str | None
    restored: int = 0  # the last id when a person put him in use again; what came before was checked then


@dataclass(frozen=True)
class SellerPage:
    """Some of a seller's corrections, ended ones too, the newest first."""

    corrections: int  # in use, on all pages
    flagged: str | None
    set_aside: str | None
    rows: list[dict[str, object]]  # as `Corrections.export` yields them


class Missing(NamedTuple):
    """A correction that a head has no vector of yet."""

    id: int
    seller: str
    category: str
    bottlenecks: np.ndarray  # (rows, d) float16


def require_texts(correction: Correction) -> None:
    """Raises a ShelfmarkError for texts that a database does not take, and names of more than a line."""
    for name in ("seller", "product_id", "category", "who", "comment", "release", "fingerprint"):
        text = getattr(correction, name)
        if text is None:
            continue
        longest = LONGEST_COMMENT if name == "comment" else LONGEST
        size = len(text.encode(errors="surrogatepass"))
        needed = name in ("seller", "product_id", "category")
        if size > longest or (needed and not text) or "\0" in text or _SURROGATE.search(text):
            problem = (
                f"is {size:,} bytes"
                if size > longest
                else "is empty"
                if not text
                else "holds NUL or half a character"
            )
            raise ShelfmarkError(
                f"correction of product {correction.product_id[:100]!r}: its {name} {problem}; expected a "
                f"text of {'1' if needed else '0'} to {longest:,} bytes in UTF-8; correct it"
            )
    for name in ONE_LINE:
        if CONTROL.search(getattr(correction, name) or ""):
            raise ShelfmarkError(
                f"correction of product {correction.product_id[:100]!r}: its {name} holds control "
                "characters, such as a new line; expected a text without; correct it"
            )


_SURROGATE = re.compile("[\ud800-\udfff]")
