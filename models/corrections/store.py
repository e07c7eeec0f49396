"""The store of corrections: SQLite in one file (WAL), or PostgreSQL, by SQLAlchemy.

Skeleton: signatures and what they promise.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from features.storage.paths import AnyPath

if TYPE_CHECKING:
    from models.decisions.adapted import Encoded


@dataclass(frozen=True)
class Correction:
    """A person's statement: this product of this seller has this category."""

    seller: str
    product_id: str
    category: str
    who: str | None = None
    when: datetime | None = None  # UTC; None: now
    comment: str | None = None
    release: str | None = None  # in service when it was made
    images: tuple[str, ...] = ()  # sha256 (hex) of the source bytes, as in the store of bottlenecks
    fingerprint: str | None = None  # of the backbone that computed the bottlenecks
    bottlenecks: np.ndarray | None = None  # (rows, d) float16, all views of the images; None: not to be had


class Added(NamedTuple):
    """What became of a correction that was added."""

    id: int
    state: Literal["new", "same", "replaced"]  # same: it was there already; replaced: another category was


@dataclass(frozen=True)
class History:
    """What a seller has in use, as one head sees it: n corrections with vectors, the oldest first."""

    revision: int  # 0: a seller without corrections
    ids: np.ndarray  # (n,) int64
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
    without_vector: int  # in use, without bottlenecks and without vectors
    last: datetime | None  # when the newest one was made
    flagged: str | None
    set_aside: str | None


class Missing(NamedTuple):
    """A correction that a head has no vector of yet."""

    id: int
    seller: str
    category: str
    bottlenecks: np.ndarray  # (rows, d) float16


class Corrections:
    """The corrections of a workspace; of use to many threads at once."""

    @classmethod
    def open(cls, url: str) -> "Corrections":
        """Opens `sqlite:///FILE` or `postgresql://…`; makes the tables where they are missing.

        Raises:
            ShelfmarkError: it cannot be opened, is damaged, or is of a newer version.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Ends its connections."""
        raise NotImplementedError

    def add(self, rows: "Sequence[tuple[Correction, Encoded | None]]") -> list[Added]:
        """Adds corrections, in this order; when it returns, they are durable.

        Thousands go in as short transactions; each is there as a whole or not at all.
        """
        raise NotImplementedError

    def undo(self, ids: Sequence[int]) -> int:
        """Ends the corrections with these ids; returns how many were in use."""
        raise NotImplementedError

    def set_aside(self, seller: str, why: str) -> None:
        """Takes all corrections of a seller out of use, until `restore`."""
        raise NotImplementedError

    def restore(self, seller: str) -> None:
        """Puts a seller's corrections in use again, and clears a flag."""
        raise NotImplementedError

    def flag(self, seller: str, why: str) -> None:
        """Marks a seller whose corrections look wrong."""
        raise NotImplementedError

    def delete_seller(self, seller: str) -> int:
        """Deletes everything of a seller; returns how many corrections there were, ended ones too."""
        raise NotImplementedError

    def revision(self, seller: str) -> int:
        """Returns a number that rises with every change of what a seller has in use; 0: unknown."""
        raise NotImplementedError

    def history(self, seller: str, head: str) -> History:
        """Returns what a seller has in use, the newest MOST of those with a vector of this head."""
        raise NotImplementedError

    def export(self, seller: str | None = None) -> Iterator[dict[str, object]]:
        """Yields all corrections, ended ones too, in order, without vectors and bottlenecks."""
        raise NotImplementedError

    def sellers(self) -> list[SellerAccount]:
        """Returns all sellers, by name."""
        raise NotImplementedError

    def labels(self) -> pd.DataFrame:
        """Returns the newest correction in use of each product, none of flagged or set aside sellers.

        Columns product_id, category, seller, when, who, id; sorted by product_id.
        """
        raise NotImplementedError

    def labels_digest(self) -> str:
        """Returns a digest of `labels()`."""
        raise NotImplementedError

    def missing(self, head: str, fingerprint: str, after: int = 0) -> Iterator[list[Missing]]:
        """Yields, piece by piece, corrections in use with bottlenecks of the backbone, without a vector."""
        raise NotImplementedError

    def put_vectors(self, rows: "Sequence[tuple[int, Encoded]]") -> None:
        """Puts vectors of corrections in; those that have ended meanwhile are left out."""
        raise NotImplementedError

    def forget_vectors(self, keep: Collection[str]) -> int:
        """Deletes the vectors of all heads but these; returns how many."""
        raise NotImplementedError


def corrections_url(workspace: AnyPath, database: str) -> str:
    """Returns the URL of a workspace's corrections: `database`, or its file corrections.sqlite.

    Raises:
        ShelfmarkError: a workspace that is no local directory, without a database.
    """
    raise NotImplementedError
