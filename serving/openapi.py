"""What OpenAPI says of the service beside the bodies of schemas.py: forms, examples, headers, errors.

The examples are requests and responses that tests send and receive.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from serving.form import MAX_PHOTOS, MAX_PRODUCTS
from serving.problems import HEADER, MEDIA_TYPE
from serving.schemas import Decision, Decisions, Health, Problem, Readiness, Release, Tree

ABOUT = (
    "Decides about products from their photos. Errors are problem documents (RFC 9457); their `detail` says "
    "what happened, what was expected, and what to do next."
)

# what features/printable.py calls a control character
CONTROLS = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069"
ONE_LINE = f"^[^{CONTROLS}]*$"
NOT_EMPTY = rf"^[^{CONTROLS}]*[^\s{CONTROLS}][^{CONTROLS}]*$"
SHORTEST = 0.001  # s, of X-Request-Timeout
LONGEST = 1_000  # bytes of a text; JSON Schema counts characters

_PHOTOS = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "minItems": 1,
    "maxItems": MAX_PHOTOS,
    "description": f"Photos of one product, 1 to {MAX_PHOTOS}; the same one twice counts once.",
}
_ID = {
    "type": "string",
    "maxLength": LONGEST,
    "pattern": ONE_LINE,
    "description": "Returned in the decision.",
}
_SELLER = {
    "type": "string",
    "maxLength": LONGEST,
    "pattern": ONE_LINE,
    "description": "Whose corrections count. The decision then has `adapted`, `base_category` and "
    "`corrections`.",
}
# Of one product: in a schema of both forms, each would allow the other one's fields, as all unknown ones.
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": _PHOTOS, "product_id": _ID, "seller": _SELLER},
    "description": f"Several products have a number each, 0 to {MAX_PRODUCTS - 1} without gaps: `images.0`, "
    "`product_id.0`, `seller.0`, `images.1`, …",
}
_DECISION: dict[str, Any] = {
    "product_id": "mug-7", "category": "1002", "category_path": "Kitchen / Mugs", "confidence": 0.94,
    "status": "accepted", "node": "1002", "node_path": "Kitchen / Mugs", "node_level": 2,
    "top_categories": ["1002", "1007"], "top_probabilities": [0.91, 0.05], "views": "whole",
    "release": "2026-W47",
    "photos": [
        {"index": 0, "refused": None, "detail": None},
        {"index": 1, "refused": "truncated", "detail": "the file ends early"},
    ],
}  # fmt: skip
DECISION_EXAMPLES: dict[str, Any] = {
    "one": {"summary": "One product", "value": _DECISION},
    "several": {"summary": "Several", "value": {"decisions": [_DECISION], "release": "2026-W47"}},
}
CORRECTION_EXAMPLE = {
    "product_id": "mug-7",
    "seller": "ann",
    "category": "Kitchen / Mugs",
    "comment": "a mug",
}


def problems(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Responses for OpenAPI: `_404="…"` describes a Problem with the status 404."""
    return {
        int(name.strip("_")): {"model": Problem, "description": text} for name, text in descriptions.items()
    }


TIMEOUT_HEADER: dict[str, Any] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds for the decision, or for reading the photos of a correction, counted from the "
    "end of the request; at most the service's own limit, 30 by default.",
    "schema": {"type": "number", "minimum": SHORTEST, "maximum": 30},
}
CATEGORIZE: dict[str, Any] = {
    "summary": "Decide about products from their photos",
    "tags": ["decisions"],
    "responses": {
        200: {
            "model": Decision | Decisions,
            "headers": HEADER,
        },
        **problems(
            _400="Damaged multipart/form-data",
            _413="Too many products, photos or bytes",
            _415="No multipart/form-data, or a compressed body",
            _422="No photos, wrong numbers of products, a text with control characters, or a wrong "
            "X-Request-Timeout",
            _429="The queue of photos is full; Retry-After says when to try again",
            _503="Not ready, or ending; with a seller also: the store of corrections does not answer",
            _504="No decision within the time limit",
        ),
    },
    "openapi_extra": {
        "parameters": [TIMEOUT_HEADER],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": FORM}},
        },
    },
}
_NOT_READY = problems(_503="The release is being loaded, or the service is ending")
RELEASE: dict[str, Any] = {
    "summary": "The release in service",
    "tags": ["release"],
    "responses": {200: {"model": Release}, **_NOT_READY},
}
TAXONOMY: dict[str, Any] = {
    "summary": "Its tree of categories",
    "tags": ["release"],
    "responses": {
        200: {"model": Tree, "headers": {"ETag": {"schema": {"type": "string"}}}},
        304: {"description": "If-None-Match names the tree as it is"},
        **_NOT_READY,
    },
}
HEALTH: dict[str, Any] = {
    "summary": "Whether the process runs",
    "tags": ["state"],
    "responses": {200: {"model": Health}},
}
READINESS: dict[str, Any] = {
    "summary": "Whether requests are taken",
    "tags": ["state"],
    "responses": {200: {"model": Readiness}, **_NOT_READY},
}
METRICS: dict[str, Any] = {
    "summary": "Figures for Prometheus",
    "tags": ["state"],
    "responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    "response_class": PlainTextResponse,
}


def finish(app: FastAPI, with_tokens: bool) -> None:
    """Gives an app an OpenAPI document in which errors have their own type of content.

    Args:
        app: with all its routes.
        with_tokens: requests need a token.
    """
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = framework()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _finish_operation(operation, with_tokens and path not in ("/healthz", "/readyz"))
            decided = document["paths"]["/v1/categorize"]["post"]["responses"]["200"]
            decided["content"]["application/json"]["examples"] = DECISION_EXAMPLES  # FastAPI leaves nulls out
            if with_tokens:
                schemes = {"token": {"type": "http", "scheme": "bearer"}}
                document["components"]["securitySchemes"] = schemes
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _finish_operation(operation: dict[str, Any], with_token: bool) -> None:
    responses: dict[str, Any] = operation["responses"]
    if with_token:
        operation["security"] = [{"token": []}]
        responses["401"] = {"description": "No token, or one that is not known", "content": _problem()}
    for status, response in responses.items():
        if status >= "400":
            response["content"] = _problem()


def _problem() -> Mapping[str, Any]:
    return {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
