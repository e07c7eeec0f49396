"""The HTTP service: the photos of one product in, its decision out; and the corrections of sellers.

    POST /v1/categorize   multipart: images (1 to 16 photos), product_id and seller (optional)
      └─ 64 MiB at most ─► one worker thread (decider.py) ─► Decision
    /v1/corrections       see corrections.py
    GET /healthz          responds meanwhile

The decision is that of the batch job: both come from models/decisions/. What is loaded at the start stays
in service until the process ends; corrections count from the next decision on.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.storage.paths import AnyPath
from models.decisions.bundle import Bundle
from serving.corrections import LONGEST, CorrectionService, add_routes, text_of
from serving.form import MAX_PHOTOS, Fields, read_form
from serving.refusals import HEADER, set_header, unavailable
from serving.room import Product, Room, RoomLimits
from serving.schemas import Decision, Health, Problem
from serving.served import Served

if TYPE_CHECKING:
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second

MAX_BYTES = 64 << 20  # of a request's body
TIME_LIMIT = 30.0  # s
MAX_ID = 2**20  # bytes of the product_id
EXPECTED = (
    "expected multipart/form-data with the photos of one product as files in the field images; "
    "send it as curl -F images=@front.jpg -F images=@back.jpg does"
)
FIELDS = Fields({"product_id": MAX_ID, "seller": LONGEST["seller"]}, EXPECTED)

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
        "seller": {
            "type": "string",
            "description": "Whose corrections count. The decision then has `adapted`, `base_category` and "
            "`corrections`.",
        },
    },
}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADER},
    400: {"model": Problem, "description": "Damaged multipart/form-data"},
    413: {"model": Problem, "description": "Too many photos or bytes"},
    422: {"model": Problem, "description": "No photos"},
    503: {"model": Problem, "description": "With a seller: the store of corrections does not answer"},
}


def create_app(
    bundle: Bundle, corrections: "Corrections | None" = None, workspace: AnyPath | None = None
) -> FastAPI:
    """Returns the service of one bundle, with its backbone loaded and warm.

    Args:
        bundle: in service.
        corrections: of sellers; None: decisions are the base's, and corrections are refused.
        workspace: whose runs and batches know products that corrections are about; None: none does.

    Raises:
        ShelfmarkError: the backbone does not belong to the bundle.
    """
    room, health = Room(Served.of(bundle, corrections), RoomLimits()), _health(bundle)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            with service.encoding_missing():
                yield
        finally:
            room.close()

    app = FastAPI(title="shelfmark", version="1", lifespan=lifespan)
    app.add_middleware(_BodyLimit)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)

    # exclude_unset: without a seller, the fields about corrections are not in the response
    @app.post("/v1/categorize", responses=RESPONSES, openapi_extra=BODY, response_model_exclude_unset=True)
    async def categorize(request: Request, response: Response) -> Decision:
        """Decides about one product from its readable photos."""
        form = await read_form(request, FIELDS)
        try:
            product_id = form.texts.get("product_id") or None
            seller = text_of("seller", form.texts.get("seller", ""), EXPECTED) or None
            future = room.submit([Product(product_id, seller, form.photos)], TIME_LIMIT)
            [answer] = await asyncio.wrap_future(future)
        finally:
            form.close()
        if answer.error:
            raise unavailable(answer.error, {})
        assert answer.decision is not None
        set_header(response, product_id, answer.refusals)
        return answer.decision

    service = CorrectionService(bundle, room, corrections, workspace)
    add_routes(app, service)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """What is in service."""
        return health

    return app


async def _refuse_parameters(request: Request, error: Exception) -> JSONResponse:
    """Says in one line which parameter of a request is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    detail = f"{first['loc'][-1]}: {first['msg']}; expected the parameters that /docs lists; correct it"
    return JSONResponse({"detail": detail}, 422)


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
