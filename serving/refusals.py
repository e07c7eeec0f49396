"""The header that names photos that could not be used."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import Response

from features.images.refusal import Refused

REFUSED = "X-Shelfmark-Refused"
HEADER: dict[str, Any] = {  # for OpenAPI
    REFUSED: {
        "description": "Photos that could not be used, numbered from 0, and why: `1:truncated, "
        "2:not_an_image`. Absent when there are none.",
        "schema": {"type": "string"},
    }
}

log = logging.getLogger("shelfmark")


def set_header(response: Response, product_id: str | None, refusals: Sequence[Refused | None]) -> None:
    """Names the refused photos of a product in the response and in the log."""
    refused = [(index, refusal) for index, refusal in enumerate(refusals) if refusal]
    for index, refusal in refused:
        log.info("product %r, photo %d refused: %s", product_id, index, refusal)
    if refused:
        response.headers[REFUSED] = ", ".join(f"{index}:{refusal.reason}" for index, refusal in refused)
