"""The HTTP service: the photos of one product in, its decision out.

    POST /v1/categorize   multipart: images (1 to 16 photos), product_id (optional)
      └─ 64 MiB at most ─► one worker thread: normalise ─► backbone ─► head ─► confidence ─► Decision
    GET /healthz          answers meanwhile

The decision is that of the batch job: both come from models/categorizer.py. What is loaded at the start stays
in service until the process ends.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Annotated, Any, BinaryIO

import numpy as np
import simplejpeg
from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.engines import choose_engine
from features.images import LIMITS, Refused
from models.bundle import Bundle
from models.categorizer import categorize_photos
from serving.wire import Decision, Health, Problem, decision_of

MOST_PHOTOS = 16  # of one product
MOST_BYTES = 64 << 20  # of a request's body
BATCH = 4  # photos a step of the backbone: products have one to four, so most cost one step
REFUSED = "X-Shelfmark-Refused"
EXPECTED = (
    "expected multipart/form-data with the photos of one product as files in the field images; "
    "send it as curl -F images=@front.jpg -F images=@back.jpg does"
)

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REFUSED: {
                "description": "Photos that could not be used, counted from 0, and why: `1:truncated, "
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
    """The service of one bundle, with its backbone loaded and warm.

    Raises:
        ShelfmarkError: the backbone does not belong to the bundle.
    """
    decide, health = _load(bundle), _health(bundle)
    worker = ThreadPoolExecutor(1, "categorize")
    app = FastAPI(title="shelfmark", version="1")
    app.add_middleware(_BodyLimit)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(StarletteHTTPException, _explain_form)

    @app.post("/v1/categorize", responses=RESPONSES)
    async def categorize(
        response: Response,
        images: Annotated[list[UploadFile], File(description="Photos of one product, 1 to 16.")],
        product_id: Annotated[str | None, Form(description="Told back in the decision.")] = None,
    ) -> Decision:
        """Decides about one product from those of its photos that are readable."""
        if len(images) > MOST_PHOTOS:
            told = f"{len(images)} photos; expected {MOST_PHOTOS} at most; leave some out"
            raise HTTPException(413, told)
        work = partial(decide, product_id, [image.file for image in images])
        decision, refusals = await asyncio.get_running_loop().run_in_executor(worker, work)
        refused = [(index, refusal) for index, refusal in enumerate(refusals) if refusal]
        for index, refusal in refused:
            log.info("product %r, photo %d refused: %s", product_id, index, refusal)
        if refused:
            response.headers[REFUSED] = ", ".join(f"{index}:{refusal.reason}" for index, refusal in refused)
        return decision

    @app.get("/healthz")
    async def healthz() -> Health:
        """What is in service."""
        return health

    return app


def _load(bundle: Bundle) -> Decide:
    """What decides about one product (id, files of its photos), tried out with a black photo."""
    engine = choose_engine(bundle.backbone(), BATCH)

    def decide(product_id: str | None, files: Sequence[BinaryIO]) -> tuple[Decision, list[Refused | None]]:
        photos = [file.read() for file in files]  # here: products that wait have their large photos on disk
        told = product_id or ""
        table, refusals = categorize_photos(bundle.categorizer, engine, told, photos, LIMITS)
        return decision_of(table, product_id), refusals

    decide(None, [BytesIO(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))])
    return decide


def _health(bundle: Bundle) -> Health:
    return Health(
        status="ok",
        release=bundle.path.name,
        bundle=bundle.digest,
        backbone=bundle.fingerprint,
        threshold=bundle.categorizer.rules.certificate.threshold,
    )


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """422 with one line instead of FastAPI's list of objects."""
    assert isinstance(error, RequestValidationError)
    told = ", ".join(f"{found['loc'][1]}: {_told(found)}" for found in error.errors())
    return JSONResponse({"detail": f"{told}; {EXPECTED}"}, 422)


def _told(found: Mapping[str, Any]) -> str:
    """What is wrong with a field; of a text for a file FastAPI tells its own classes."""
    return "a text, not a file" if found["type"] == "value_error" else str(found["msg"])


async def _explain_form(request: Request, error: Exception) -> Response:
    """400 of a form that cannot be read, with what was expected; every other refusal as it is."""
    assert isinstance(error, StarletteHTTPException)
    if error.status_code == 400:
        error = StarletteHTTPException(400, f"{error.detail.rstrip('.')}; {EXPECTED}", error.headers)
    return await http_exception_handler(request, error)


class _BodyLimit:
    """Answers 413 to a body over MOST_BYTES: before reading it where Content-Length tells, else meanwhile.

    FastAPI's own max_body_size does as much, but says no more than "Content Too Large".
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
            if length.isdecimal() and int(length) > MOST_BYTES:
                raise _too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > MOST_BYTES:
                raise _too_large()
            return message

        await self.app(scope, limited, send)


def _too_large() -> HTTPException:
    told = f"more than {MOST_BYTES >> 20} MiB; expected less in one request; send fewer or smaller photos"
    return HTTPException(413, told)
