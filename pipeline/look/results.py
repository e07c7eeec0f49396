"""What `shelfmark look --json` prints. Nothing here imports TensorFlow."""

from pydantic import BaseModel, ConfigDict


class ScoredCategory(BaseModel):
    """A category of a photo."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    category: str
    path: str
    """Its names from coarse to fine."""
    probability: float
    """By the head, with the calibrated temperature."""


class PhotoResult(BaseModel):
    """What the bundle says about a photo."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    photo: str
    refused: str | None
    """Why the photo cannot be used: the reason and its detail."""
    status: str
    """As in decisions: accepted, parent, review, unreadable."""
    confidence: float
    """Calibrated, that the first category is correct."""
    decision: str | None
    """Path of what was decided; null where a person decides."""
    best: tuple[ScoredCategory, ...] = ()
    """The most likely first."""
    picture: str | None = None
    """Path of the picture."""


class LookResult(BaseModel):
    """What `look` found."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    release: str
    """Or the run, where --release names one that was kept out."""
    note: str | None
    """Why there are no maps."""
    photos: tuple[PhotoResult, ...]
    """In the order of the arguments."""
