"""Every error is a problem document (RFC 9457), made in this file alone.

    {"type": "about:blank", "title": "Content Too Large", "status": 413,
     "detail": "17 photos; expected 16 at most; leave some out",
     "what_happened": "17 photos", "expected": "16 at most", "next_step": "leave some out"}

What a handler raises, and what the framework raises for unknown paths, methods and parameters, ends here.
Refused photos are no errors: the answer names them, see `set_header`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as FrameworkException
from starlette.routing import Match, Route

from features.errors import ShelfmarkError, one_line
from features.images.refusal import Refused
from serving.schemas import Problem

log = logging.getLogger("shelfmark")

MEDIA_TYPE = "application/problem+json"
GONE = 499  # the client has closed the connection; nobody gets it, but metrics count it, as those of nginx do
TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # of RFC 9110; older Pythons have others
SECONDS = 5  # after which a client may try again where nothing better is known
STORE = "the store of corrections"

REFUSED = "X-Shelfmark-Refused"
HEADER: dict[str, Any] = {  # for OpenAPI
    REFUSED: {
        "description": "Photos that could not be used, numbered from 0, and why: `1:truncated, "
        "2:not_an_image`. Absent when there are none, and where several products are sent.",
        "schema": {"type": "string"},
    }
}


def parts_of(detail: str) -> tuple[str, str, str]:
    """Returns the three parts of a message.

    >>> parts_of("17 photos; expected 16 at most; leave some out")
    ('17 photos', '16 at most', 'leave some out')
    >>> parts_of("is locked")
    ('is locked', '', '')
    """
    happened, _, rest = detail.partition("; expected ")
    expected, _, next_step = rest.partition("; ")
    return happened, expected, next_step


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the response of an error.

    Args:
        status: of HTTP.
        detail: what happened; expected what; what to do next.
        headers: beside the type of content.
    """
    happened, expected, next_step = parts_of(detail)
    title = TITLES.get(status) or (HTTPStatus(status).phrase if status != GONE else "Client Closed Request")
    problem = Problem(
        title=title, status=status, detail=detail,
        what_happened=happened, expected=expected, next_step=next_step,
    )  # fmt: skip
    return Response(problem.model_dump_json(), status, headers, MEDIA_TYPE)


def retry_after(seconds: float) -> dict[str, str]:
    """Returns the header that says when a client may try again, in whole seconds.

    >>> retry_after(0.2)
    {'Retry-After': '1'}
    """
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def without_places(error: ShelfmarkError, places: Mapping[str, str]) -> str:
    """Returns the text of an error without where things are; the log says that.

    Args:
        error: of a database or a disk.
        places: path or URL → how the text names it.
    """
    text = one_line(error)
    log.error("%s", text)
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def unavailable(error: ShelfmarkError, places: Mapping[str, str]) -> HTTPException:
    """Returns the response 503; arguments as of `without_places`."""
    return HTTPException(503, without_places(error, places), retry_after(SECONDS))


def set_header(response: Response, refusals: Sequence[Refused | None]) -> None:
    """Names the refused photos of a product in the response."""
    refused = [f"{index}:{refusal.reason}" for index, refusal in enumerate(refusals) if refusal]
    if refused:
        response.headers[REFUSED] = ", ".join(refused)


def log_refused(product_id: str | None, refusals: Sequence[Refused | None]) -> None:
    """Names the refused photos of a product in the log."""
    for index, refusal in enumerate(refusals):
        if refusal:
            log.info("product %r, photo %d refused: %s", product_id, index, refusal)


# Handlers


def add_handlers(app: FastAPI) -> None:
    """Makes a problem document of everything that is raised while an app responds."""
    app.add_exception_handler(FrameworkException, _from_exception)
    app.add_exception_handler(RequestValidationError, _from_parameters)
    app.add_exception_handler(Exception, _from_failure)


async def _from_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, FrameworkException)
    detail, headers = str(error.detail), dict(error.headers or {})
    path = repr(request.url.path[:100])
    if isinstance(error, HTTPException) and "; " in detail:  # ours
        return problem_response(error.status_code, detail, headers)
    if error.status_code == 404:
        detail = f"{path}: nothing is there; expected one of the paths that /docs lists; correct the path"
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        detail = f"{path}: no {request.method[:20]}; expected {headers['Allow']}; use another method"
    else:
        detail = f"{detail}; expected a request as /docs describes; correct it"
    return problem_response(error.status_code, detail, headers)


def _methods(request: Request) -> list[str]:
    """Those of all routes with the path of a request; the framework names the first route's alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    return sorted(
        {
            method
            for route in routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in route.methods or ()
        }
    )


async def _from_parameters(request: Request, error: Exception) -> Response:
    """Says in one line which parameter of a request is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    detail = f"{first['loc'][-1]}: {first['msg']}; expected the parameters that /docs lists; correct it"
    return problem_response(422, detail)


async def _from_failure(request: Request, error: Exception) -> Response:
    """An error of ours: the server writes its traceback into the log."""
    return problem_response(
        500, "the service has failed; expected an answer; its log says why: please report it"
    )
