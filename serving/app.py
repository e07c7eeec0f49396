"""The HTTP service: the photos of products in, decisions out; what is in service; corrections of sellers.

    request ─► Entrance: counted; token; ready; coding and size of the body
      POST /v1/categorize    form.py ─► Room.submit ─► Future ─► Decision, or Decisions
      /v1/corrections        corrections.py
      GET  /v1/release, /v1/taxonomy        described.py
      GET  /healthz (lives), /readyz (takes requests), /metrics, /docs

The decision is that of the batch job: both come from models/decisions/. The app responds before a release is
loaded: with 503 where it needs one.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import openapi
from serving.access import Access
from serving.corrections import LONGEST, add_routes, require_printable, text_of
from serving.described import Descriptions
from serving.form import Fields, Form, read_form
from serving.metrics import MEDIA_TYPE as METRICS_TYPE
from serving.metrics import Metrics
from serving.problems import (
    GONE,
    SECONDS,
    add_handlers,
    log_refused,
    problem_response,
    retry_after,
    set_header,
)
from serving.schemas import Decision, Decisions, Readiness, RefusedRelease, photos_of
from serving.state import ServiceState
from serving.waiting import TIMEOUT, answers_of, require_place, timeout_of

if TYPE_CHECKING:
    from serving.room import Answer, Product, Room

MAX_BYTES = 64 << 20  # of a request's body
EXPECTED = (
    "expected multipart/form-data with the photos of one product as files in the field images; "
    "send it as curl -F images=@front.jpg -F images=@back.jpg does"
)
FIELDS = Fields({"product_id": LONGEST["product_id"], "seller": LONGEST["seller"]}, EXPECTED, several=True)
JSON = "application/json"
EVERYBODY = Access()


def create_app(
    state: ServiceState, metrics: Metrics, access: Access = EVERYBODY, timeout_s: float = TIMEOUT
) -> FastAPI:
    """Returns the service; it takes requests as soon as the state is ready.

    Args:
        state: of the service.
        metrics: that count its requests.
        access: who may use it.
        timeout_s: for a decision; a request may ask for less.
    """
    described = Descriptions()
    app = FastAPIOffline(title="shelfmark", version="1", redoc_url=None, description=openapi.ABOUT)
    app.add_middleware(Entrance, state=state, metrics=metrics, access=access)
    add_handlers(app)

    @app.post("/v1/categorize", **openapi.CATEGORIZE)
    async def categorize(request: Request) -> Response:
        """Decides about products from their readable photos.

        One product has the fields `images`, `product_id` and `seller`:

            curl -F images=@front.jpg -F images=@back.jpg -F product_id=mug-7 http://127.0.0.1:8000/v1/categorize

        Several have them with numbers; all of them are decided by one release, or none:

            curl -F images.0=@front.jpg -F product_id.0=mug-7 -F images.1=@lamp.jpg http://127.0.0.1:8000/v1/categorize
        """
        room, limit = room_of(state), timeout_of(request, timeout_s)
        require_place(room)  # before the body is read
        form = await read_form(request, FIELDS)
        try:
            products = products_of(form)
            answers = await answers_of(room, products, request, limit)
        finally:
            form.close()
        return response_of(form.numbered, products, answers, metrics)

    add_routes(app, state)

    @app.get("/v1/release", **openapi.RELEASE)
    async def release() -> Response:
        """What is in service, and what it promises."""
        return Response(described.release(room_of(state).served), media_type=JSON)

    @app.get("/v1/taxonomy", **openapi.TAXONOMY)
    async def taxonomy(request: Request) -> Response:
        """The categories that decisions name, with the names of all levels.

        The answer has an ETag: with it in If-None-Match, an unchanged tree is not sent again.
        """
        body, tag = await run_in_threadpool(described.tree, room_of(state).served)
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if _matches(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=JSON, headers=headers)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", **openapi.HEALTH)
    async def healthz() -> Response:
        """The process lives; it says so before the release is loaded, too."""
        return Response(described.health(state.room.served if state.room else None), media_type=JSON)

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", **openapi.READINESS)
    async def readyz() -> Response:
        """The release is loaded and warm, and requests are taken."""
        if refusal := not_ready(state):
            return refusal
        refused = state.refused_release
        body = Readiness(
            status="ready",
            release=room_of(state).served.name,
            refused_release=RefusedRelease(release=refused[0], reason=refused[1]) if refused else None,
        )
        return Response(body.model_dump_json(), media_type=JSON)

    @app.get("/metrics", **openapi.METRICS)
    async def figures() -> Response:
        """Figures of the service, for Prometheus."""
        return Response(await run_in_threadpool(metrics.text), media_type=METRICS_TYPE)

    openapi.finish(app, with_tokens=access.tokens is not None)
    return app


def room_of(state: ServiceState) -> "Room":
    """Returns the room; Entrance lets nobody in before there is one."""
    assert state.room is not None
    return state.room


# A request about products


def products_of(form: Form) -> "list[Product]":
    """Returns the products of a form.

    Raises:
        HTTPException: 422, a product_id or a seller is no text that lines and databases take.
    """
    from serving.room import Product

    for sent in form.products:
        require_printable("product_id", sent.texts.get("product_id", ""), EXPECTED)
    return [
        Product(
            sent.texts.get("product_id") or None,
            text_of("seller", sent.texts.get("seller", ""), EXPECTED) or None,
            sent.files,
        )
        for sent in form.products
    ]


def response_of(
    numbered: bool, products: "Sequence[Product]", answers: "Sequence[Answer]", metrics: Metrics
) -> Response:
    """Returns the response: of one product its decision, of several with numbers all of them.

    Raises:
        HTTPException: 503, a seller's corrections cannot be read.
    """
    decisions = [_decision(one) for one in answers]
    for product, one, decision in zip(products, answers, decisions, strict=True):
        metrics.product(decision.status)
        log_refused(product.product_id, one.refusals)
    if numbered:
        body = Decisions(decisions=decisions, release=answers[0].release)
        return Response(body.model_dump_json(exclude_unset=True), media_type=JSON)
    response = Response(decisions[0].model_dump_json(exclude_unset=True), media_type=JSON)
    set_header(response, answers[0].refusals)
    return response


def _decision(answer: "Answer") -> Decision:
    if answer.decision is None:
        raise HTTPException(503, str(answer.error), retry_after(SECONDS))
    answer.decision.photos = photos_of(answer.refusals)
    return answer.decision


def _matches(header: str, tag: str) -> bool:
    """Whether If-None-Match names a tag."""
    return header.strip() == "*" or tag in [one.strip().removeprefix("W/") for one in header.split(",")]


# Every request


def not_ready(state: ServiceState) -> Response | None:
    """Returns the response while no requests are taken; None when they are."""
    if state.draining:
        happened, next_step = "the service is ending", "send the request again, it may reach another one"
    elif not state.ready:
        happened, next_step = "the release is being loaded", "send the request again in a few seconds"
    else:
        return None
    return problem_response(503, f"{happened}; expected a ready service; {next_step}", retry_after(SECONDS))


class Entrance:
    """What every request passes, in plain ASGI: a middleware of the framework would take 0.2 ms.

    A body over MAX_BYTES is refused before it is read where Content-Length says so, else while it comes.
    """

    def __init__(self, app: ASGIApp, state: ServiceState, metrics: Metrics, access: Access) -> None:
        self._app, self._state, self._metrics, self._access = app, state, metrics, access
        self._open = {"/healthz", "/readyz"} | ({"/metrics"} if access.metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it, and counts it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, received = time.perf_counter(), GONE, 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise HTTPException(413, _too_large())
            return message

        self._state.in_flight += 1
        try:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            await (refusal(scope, receive, counted) if refusal else self._app(scope, limited, counted))
        except BaseException:
            status = 500
            raise
        finally:
            self._state.in_flight -= 1
            seconds = time.perf_counter() - began
            self._metrics.request(scope["path"], scope["method"], status, seconds)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        """The response of a request that goes no further."""
        tokens = self._access.tokens
        if (
            tokens
            and path not in self._open
            and not tokens.allow(authorization := headers.get("authorization"))
        ):
            challenge = 'Bearer realm="shelfmark"' + (', error="invalid_token"' if authorization else "")
            happened = "a token that is not known" if authorization else "no token"
            detail = f"{happened}; expected Authorization: Bearer TOKEN; ask the operator for a token"
            return problem_response(401, detail, {"WWW-Authenticate": challenge})
        if path.startswith("/v1/") and (refusal := not_ready(self._state)):
            return refusal
        coding = headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            detail = (
                f"Content-Encoding: {coding[:50]!r}; expected a body as it is; send it without compression"
            )
            return problem_response(415, detail, {"Accept-Encoding": "identity"})
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BYTES:
            return problem_response(413, _too_large())
        return None


def _too_large() -> str:
    return f"more than {MAX_BYTES >> 20} MiB; expected less in one request; send fewer or smaller photos"
