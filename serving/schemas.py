"""The JSON bodies of the HTTP service, one definition for the service and its OpenAPI page.

    POST   /v1/categorize         200 Decision, or Decisions of several products
    POST   /v1/corrections        201 CorrectionMade
    GET    /v1/corrections        200 CorrectionPage
    DELETE /v1/corrections/{id}   200 CorrectionUndone
    GET    /v1/release            200 Release
    GET    /v1/taxonomy           200 Tree
    GET    /healthz               200 Health
    GET    /readyz                200 Readiness
           every error            Problem

What has no value is null.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from features.images.refusal import Refused


class _Body(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class SentPhoto(_Body):
    """What became of a photo that was sent."""

    index: int
    """Its number among the photos of the product, from 0."""
    refused: str | None
    """Why it could not be used: `empty`, `not_an_image`, `format_not_allowed`, `too_large`, `truncated`,
    `undecodable`; null where it was used."""
    detail: str | None
    """The same in words; null where it was used."""


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
    views: str | None
    """The views of its photos that decided, joined by commas: all of the release, or with a cascade the first
    alone where that was certain; null when no photo is readable."""
    release: str | None
    """Name of the release that decided."""
    photos: list[SentPhoto] = []
    """What became of each photo, in the order in which they were sent."""
    adapted: bool = False
    """Whether the seller's corrections made the decision; this and what follows only where the request names
    a seller."""
    base_category: str | None = None
    """The category without corrections; null where none of the seller's are in use."""
    corrections: int = 0
    """How many of the seller's are in use."""


class Decisions(_Body):
    """The decisions about several products."""

    decisions: list[Decision]
    """In the order of the products' numbers."""
    release: str
    """Name of the release that decided about all of them."""


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
    vector: Literal["photos", "recent", "store", "kept"] | None
    """From where the service knows what the product looks like: the photos sent along, a decision of late,
    the store of the workspace, or the same correction as it was made before; null where it does not."""
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
    """The process lives, and what is in service; null until the release is loaded."""

    status: Literal["ok"]
    """It responds."""
    release: str | None
    """Name of its directory under releases/."""
    bundle: str | None
    """Its digest."""
    backbone: str | None
    """Fingerprint of its backbone."""
    threshold: float | None
    """Confidence from which it decides alone; null when none is certified."""


class RefusedRelease(_Body):
    """What `releases/current` names, where that could not be used."""

    release: str | None
    """Its name; null after `shelfmark withdraw`: nothing is to be in service."""
    reason: str
    """Why: what happened; what was expected; what to do next."""


class Readiness(_Body):
    """The service is loaded and warm, and takes requests."""

    status: Literal["ready"]
    """Otherwise the response is a problem with the status 503."""
    release: str
    """In service."""
    refused_release: RefusedRelease | None
    """The release that `releases/current` names, where it cannot be used; the one before stays."""


class Level(_Body):
    """A level of the tree above the categories."""

    level: int
    """1 = coarsest."""
    threshold: float | None
    """Confidence from which products stop there; null where none is certified."""


class Cascade(_Body):
    """Which products are looked at in all views."""

    limit: float
    """Where the first view gives its most likely category at least this probability, it decides alone."""
    share: float
    """Of the validation products that the limit was chosen on, those that all views decide about."""


class Release(_Body):
    """What is in service, and what it promises."""

    release: str
    """Name of its directory under releases/."""
    bundle: str
    """Its digest."""
    backbone: str
    """Fingerprint of its backbone."""
    image_size: int
    """Height and width of a photo for the backbone, in pixels."""
    engine: str
    """What runs the backbone, and its precision."""
    views: list[str]
    """Of each photo: `whole`, `flip` (mirrored), at another size (`256`), a crop (`256-center`), with the
    maximum of the last map (`max`)."""
    averaged: bool
    """Whether the views of a photo are averaged before the head; else the head predicts from each."""
    cascade: Cascade | None
    """Null where all views decide about every product."""
    threshold: float | None
    """Confidence from which a category is decided automatically; null when none is certified."""
    target_precision: float
    """Promised share of correct ones among the automatic decisions, at every level."""
    delta: float
    """Probability that the promise fails."""
    caveats: list[str]
    """Warnings for everybody who uses the decisions."""
    levels: list[Level]
    """The levels above the categories, from coarse to fine."""
    categories: int
    """How many there are."""
    aggregation: str
    """How the photos of a product are put together."""
    sellers_method: str | None
    """How sellers' corrections change decisions; null where they do not."""


class Category(_Body):
    """A category of the tree."""

    category: str
    """Its id."""
    names: list[str]
    """From coarse to fine; the last one is its own."""


class Tree(_Body):
    """The categories of the release in service."""

    release: str
    """Whose they are."""
    levels: int
    """Of the deepest category."""
    categories: list[Category]
    """All of them, by id."""


class Problem(_Body):
    """Why a request is refused (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    """The status says all that a program needs."""
    title: str
    """The status in words."""
    status: int
    """As in the response."""
    detail: str
    """What happened; what was expected; what to do next."""
    what_happened: str
    """The first part."""
    expected: str
    """The second part; empty where a database gave the message."""
    next_step: str
    """The third part; empty as the second."""


def photos_of(refusals: Sequence[Refused | None]) -> list[SentPhoto]:
    """Returns what became of the photos of a product, in their order."""
    return [
        SentPhoto.model_construct(
            index=index, refused=one.reason if one else None, detail=one.detail if one else None
        )
        for index, one in enumerate(refusals)
    ]
