"""The JSON bodies of the HTTP service, one definition for the service and its OpenAPI page.

    POST   /v1/categorize         200 Decision           400, 413, 422, 503 Problem
    POST   /v1/corrections        201 CorrectionMade     400, 409, 413, 422, 503 Problem
    GET    /v1/corrections        200 CorrectionPage     409, 422, 503 Problem
    DELETE /v1/corrections/{id}   200 CorrectionUndone   404, 409, 422, 503 Problem
    GET    /healthz               200 Health

Missing numbers are null, whatever NumPy and pandas call them.
"""

from datetime import datetime
from typing import Literal

import pandas as pd
from pandas.api.types import is_scalar
from pydantic import BaseModel, ConfigDict


class _Body(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Decision(_Body):
    """The decision about one product: the columns of the batch job's decisions."""

    product_id: str | None
    """As given in the request."""
    category: str | None
    """The most likely one; null when no photo is readable."""
    category_path: str | None
    """Its names from coarse to fine, joined by ` / `; null as the category is."""
    confidence: float
    """Calibrated probability that the category is correct, 0 to 1."""
    status: Literal["accepted", "parent", "review", "unreadable"]
    """`accepted`: the category is certain enough; `parent`: only a node above it is; a person decides about
    the rest."""
    node: str | None
    """What was decided: the category, or a node above it; null in review and when unreadable."""
    node_path: str | None
    """Its names from coarse to fine, joined by ` / `; null as the node is."""
    node_level: int | None
    """The node's level, 1 = coarsest; null as the node is."""
    top_categories: list[str]
    """Up to five, most likely first; none when no photo is readable."""
    top_probabilities: list[float]
    """Their probabilities."""
    release: str | None
    """Name of the release that decided."""
    adapted: bool = False
    """Whether the seller's corrections made the decision; this and what follows only where the request names
    a seller."""
    base_category: str | None = None
    """The category without corrections; null where none of the seller's are in use."""
    corrections: int = 0
    """How many of the seller's are in use."""


class CorrectionMade(_Body):
    """A correction that is kept, and counts from the seller's next decision on."""

    id: int
    """Of the correction; to undo it."""
    state: Literal["new", "same", "replaced"]
    """`same`: it was there already; `replaced`: the seller had said another category of the product."""
    product_id: str
    """Of the product."""
    seller: str
    """Whose decisions change."""
    category: str
    """The id of the category."""
    vector: Literal["photos", "recent", "store"] | None
    """From where the service knows what the product looks like: the photos sent along, a decision of late, or
    the store of the workspace; null where it does not."""
    reason: str | None
    """Why the correction changes no decision of this release, and is kept as a label of the next training
    alone; null where it does."""


class CorrectionRow(_Body):
    """A correction in a list."""

    id: int
    """Of the correction."""
    product_id: str
    """Of the product."""
    category: str
    """The id of the category."""
    base_category: str | None
    """What the head said when it was made; null where it did not know what the product looks like."""
    who: str | None
    """Who said so."""
    when: datetime
    """When it was made, UTC."""
    comment: str | None
    """As given."""
    release: str | None
    """In service when it was made."""
    ended: datetime | None
    """Since when it is not in use, UTC; null when it is in use."""
    because: str | None
    """Why it has ended: `undone`, `replaced`."""


class CorrectionPage(_Body):
    """Some of a seller's corrections, the newest first."""

    seller: str
    """His name."""
    in_use: int
    """How many of all his corrections are in use."""
    flagged: str | None
    """Why they look wrong: decisions that they make wait for a person."""
    set_aside: str | None
    """Why a person took all of them out of use."""
    corrections: list[CorrectionRow]
    """Of this page."""
    next: int | None
    """For the parameter `after` of the next page; null on the last one."""


class CorrectionUndone(_Body):
    """A correction that is not in use any more."""

    id: int
    """Of the correction."""
    state: Literal["undone"]
    """What became of it."""


class Health(_Body):
    """What is in service."""

    status: Literal["ok"]
    """The bundle is loaded and serves requests."""
    release: str
    """Name of its directory under releases/."""
    bundle: str
    """Its digest."""
    backbone: str
    """Fingerprint of its backbone."""
    threshold: float | None
    """Confidence from which it decides alone; null when none is certified."""


class Problem(_Body):
    """Why a request is refused."""

    detail: str
    """What happened; what was expected; what to do next."""


def decision_of(decisions: pd.DataFrame, product_id: str | None) -> Decision:
    """Returns the only row of a table of decisions.

    Args:
        decisions: one row, with the columns COLUMNS of models.decisions.categorizer, and where the request
            names a seller ADAPTED_COLUMNS of models.decisions.adapted.
        product_id: as given in the request.
    """
    row = {name: column.iloc[0] for name, column in decisions.items()}
    values = {name: None if is_scalar(value) and pd.isna(value) else value for name, value in row.items()}
    return Decision.model_validate(values | {"product_id": product_id})
