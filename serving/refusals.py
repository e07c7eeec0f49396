"""The header that names photos that could not be used, and the response where a store cannot be used."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException, Response

from features.errors import ShelfmarkError, one_line
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


STORE = "the store of corrections"


def unavailable(error: ShelfmarkError, places: Mapping[str, str]) -> HTTPException:
    """Returns the response 503, which does not say where things are; the log does.

    Args:
        error: of a database or a disk.
        places: path or URL → how the response names it.
    """
    text = one_line(error)
    log.error("%s", text)
    for place, name in places.items():
        text = text.replace(place, name)
    return HTTPException(503, text)
