"""The HTTP service: the photos of one product in, its decision out.

    POST /v1/categorize   multipart: images (1 to 16 photos), product_id (optional)
      └─ 64 MiB at most ─► one worker thread: normalise ─► backbone ─► head ─► confidence ─► Decision
    GET /healthz          responds meanwhile

The decision is that of the batch job: both come from models/decisions/. What is loaded at the start stays
in service until the process ends.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.engines.choose import choose_engine
from features.images.refusal import LIMITS, Refused
from models.decisions.bundle import Bundle
from models.decisions.categorizer import categorize_photos
from serving.form import MAX_PHOTOS, read_form
from serving.schemas import Decision, Health, Problem, decision_of

MAX_BYTES = 64 << 20  # of a request's body
BATCH = 4  # photos a step of the backbone: products have one to four, so most cost one step
REFUSED = "X-Shelfmark-Refused"

FORM: dict[str, object] = {  # for OpenAPI
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": MAX_PHOTOS,
            "description": f"Photos of one product, 1 to {MAX_PHOTOS}; the same one twice counts once.",
        },
        "product_id": {"type": "string", "description": "Returned in the decision."},
    },
}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REFUSED: {
                "description": "Photos that could not be used, numbered from 0, and why: `1:truncated, "
                "2:not_an_image`. Absent when there are none.",
                "schema": {"type": "string"},
            }
        }
    },
    400: {"model": Problem, "description": "Damaged multipart/form-data"},
    413: {"model": Problem, "description": "Too many photos or bytes"},
    422: {"model": Problem, "description": "No photos"},
}

Decide = Callable[[str | None, Sequence[BinaryIO]], tuple[Decision, list[Refused | None]]]

log = logging.getLogger("shelfmark")


def create_app(bundle: Bundle) -> FastAPI:
    """Returns the service of one bundle, with its backbone loaded and warm.

    Raises:
        ShelfmarkError: the backbone does not belong to the bundle.
    """
    decide, health = _load(bundle), _health(bundle)
    worker = ThreadPoolExecutor(1, "categorize")
    app = FastAPI(title="shelfmark", version="1")
    app.add_middleware(_BodyLimit)

    @app.post("/v1/categorize", responses=RESPONSES, openapi_extra=BODY)
    async def categorize(request: Request, response: Response) -> Decision:
        """Decides about one product from its readable photos."""
        form = await read_form(request)
        product_id = form.product_id
        try:
            work = partial(decide, product_id, form.photos)
            decision, refusals = await asyncio.get_running_loop().run_in_executor(worker, work)
        finally:
            form.close()
        refused = [(index, refusal) for index, refusal in enumerate(refusals) if refusal]
        for index, refusal in refused:
            log.info("product %r, photo %d refused: %s", product_id, index, refusal)
        if refused:
            response.headers[REFUSED] = ", ".join(f"{index}:{refusal.reason}" for index, refusal in refused)
        return decision

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """What is in service."""
        return health

    return app


def _load(bundle: Bundle) -> Decide:
    """Returns what decides about one product (id, files of its photos), after a try with a black photo."""
    engine = choose_engine(bundle.backbone(), BATCH)

    def decide(product_id: str | None, files: Sequence[BinaryIO]) -> tuple[Decision, list[Refused | None]]:
        photos = [file.read() for file in files]  # here: waiting products keep large photos on disk
        table, refusals = categorize_photos(bundle.categorizer, engine, product_id or "", photos, LIMITS)
        return decision_of(table, product_id), refusals

    decide(None, [BytesIO(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))])
    return decide


def _health(bundle: Bundle) -> Health:
    """Returns the response of /healthz, which stays the same."""
    return Health(
        status="ok",
        release=bundle.path.name,
        bundle=bundle.digest,
        backbone=bundle.fingerprint,
        threshold=bundle.categorizer.rules.certificate.threshold,
    )


class _BodyLimit:
    """Responds 413 to a body over MAX_BYTES: before reading it where Content-Length says so, else meanwhile.

    FastAPI's own max_body_size does the same, but its message is only "Content Too Large".
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if length.isdecimal() and int(length) > MAX_BYTES:
                raise _too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise _too_large()
            return message

        await self.app(scope, limited, send)


def _too_large() -> HTTPException:
    detail = f"more than {MAX_BYTES >> 20} MiB; expected less in one request; send fewer or smaller photos"
    return HTTPException(413, detail)
