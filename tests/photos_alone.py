"""What a categorizer decides about a product from its photos alone: what batch and service must decide."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from features.engines.engine import Engine
from features.images.normalise import normalise
from features.images.refusal import Limits, Refused
from features.views import View
from models.decisions.categorizer import Categorizer, unreadable


def categorize_photos(
    categorizer: Categorizer,
    engines: Mapping[View, Engine],
    product_id: str,
    photos: Sequence[bytes],
    limits: Limits,
) -> tuple[pd.DataFrame, list[Refused | None]]:
    """The decision about one product, one row, and for each photo why it was refused, or None.

    Args:
        categorizer: decides.
        engines: run its backbone, by `View.network`.
        product_id: of the decision.
        photos: contents of their files; one that is given twice counts once.
        limits: of image sizes.
    """
    jpegs: list[bytes] = []
    refusal: dict[bytes, Refused | None] = {}
    digests = [hashlib.sha256(photo).digest() for photo in photos]
    for digest, photo in dict(zip(digests, photos, strict=True)).items():
        refusal[digest] = None
        try:
            jpegs.append(normalise(photo, limits).jpeg)
        except Refused as refused:
            refusal[digest] = refused
    refusals = [refusal[digest] for digest in digests]
    if not jpegs:
        return unreadable([product_id], categorizer.release), refusals
    rows = categorizer.bottlenecks(engines, jpegs, f"product {product_id}")
    predictions = categorizer.predict_all(rows, np.array([0, len(rows)]))
    return categorizer.decide(np.array([product_id], dtype=object), predictions), refusals
