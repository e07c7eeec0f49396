"""The JSON bodies of the HTTP service, one definition for the service and its OpenAPI page.

    POST /v1/categorize   200 Decision   400, 413, 422 Problem
    GET  /healthz         200 Health

Missing numbers are null, whatever NumPy and pandas call them.
"""

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
    """Why there is no decision."""

    detail: str
    """What happened; what was expected; what to do next."""


def decision_of(decisions: pd.DataFrame, product_id: str | None) -> Decision:
    """Returns the only row of a table of decisions.

    Args:
        decisions: one row, with the columns of models.decisions.categorizer.COLUMNS.
        product_id: as given in the request.
    """
    row = {name: column.iloc[0] for name, column in decisions.items()}
    values = {name: None if is_scalar(value) and pd.isna(value) else value for name, value in row.items()}
    return Decision.model_validate(values | {"product_id": product_id})
