"""Corrections over HTTP: one is made, listed or undone; the seller's next decision knows it.

    POST /v1/corrections ─► fields ─► what the product looks like: photos sent along,
                                      else a decision of late, else the store of the workspace
                         ─► worker: as the head sees it ─► the store of corrections ─► 201
    GET  /v1/corrections?seller=      the newest first, page by page
    DELETE /v1/corrections/{id}       is undone

Whatever waits for a database or a disk does so in a thread; what decides waits for neither of them here. A
request uses one release from its beginning to its end, whatever is put into service meanwhile.
"""

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import fastapi
from fastapi import FastAPI, HTTPException, Query, Request, Response
from python_multipart.multipart import parse_options_header

from features.errors import ShelfmarkError, one_line
from features.printable import CONTROL
from features.storage.paths import AnyPath
from models.corrections.categories import KnownCategories
from serving.form import MAX_PHOTOS, Fields, Form, Sent, read_form, too_long
from serving.openapi import CORRECTION_EXAMPLE, NOT_EMPTY, ONE_LINE, TIMEOUT_HEADER, problems
from serving.problems import HEADER, STORE, log, log_refused, set_header, unavailable
from serving.schemas import CorrectionMade, CorrectionPage, CorrectionRow, CorrectionUndone
from serving.state import ServiceState
from serving.waiting import TIMEOUT, answers_of, timeout_of

if TYPE_CHECKING:
    from models.corrections.histories import Histories
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second
    from models.decisions.adapted import Encoded
    from serving.decider import SeenProduct
    from serving.room import Room
    from serving.served import Served

NEEDED, OPTIONAL = ("product_id", "seller", "category"), ("who", "comment")
LONGEST = dict.fromkeys((*NEEDED, "who"), 1_000) | {"comment": 10_000}  # bytes, as the store takes them
MAX_JSON = 2**17  # bytes
THREADS = 4  # that wait for databases and disks
PAGE, LARGEST_PAGE = 100, 1_000  # corrections
LARGEST_ID = 2**63 - 1
NOT_SEEN = "no photo that can be read was sent along, and this service has not seen the product of late"
NOT_LEARNT = "the release has not learnt the category; the next one may"
EXPECTED = (
    "expected JSON or multipart/form-data with the texts product_id, seller and category, and if you like "
    "who, comment and, in a form, photos as files in the field images; send it as curl -F product_id=mug-7 "
    "-F seller=ann -F category=mugs does"
)
FIELDS = Fields(LONGEST, EXPECTED, needs_photos=False, no_others=True)

T = TypeVar("T")


# OpenAPI

_TEXTS: dict[str, Any] = {
    "product_id": "Of the corrected product.",
    "seller": "Whose decisions change.",
    "category": "What the product is: the id of a category of the release, or its path.",
    "who": "Who says so.",
    "comment": "Why.",
}
_PATTERNS = dict.fromkeys(NEEDED, NOT_EMPTY) | {"who": ONE_LINE, "comment": r"^[^\u0000]*$"}
_PROPERTIES: dict[str, Any] = {
    name: {
        "type": "string",
        "description": text,
        "maxLength": LONGEST[name],
        "pattern": _PATTERNS[name],
    }
    for name, text in _TEXTS.items()
}
_IN_JSON = {
    name: field | ({} if name in NEEDED else {"type": ["string", "null"]})
    for name, field in _PROPERTIES.items()
}
_IMAGES: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "maxItems": MAX_PHOTOS,
    "description": "Photos of the product, where the service may not know it.",
}


def _schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": list(NEEDED), "properties": dict(properties)}
    return {"schema": schema | {"additionalProperties": False}, "example": CORRECTION_EXAMPLE}


BODY = {
    "parameters": [TIMEOUT_HEADER],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": _schema(_IN_JSON),
            "multipart/form-data": _schema(_PROPERTIES | {"images": _IMAGES}),
        },
    },
}
_KEPT = {"_409": "No store of corrections", "_503": "Not ready, or the store of corrections does not answer"}
MADE = problems(
    _400="Damaged form or JSON", _413="Too long a text, too many photos or bytes",
    _409="No store of corrections, or a release without adapter",
    _415="Neither JSON nor a form, or a compressed body",
    _422="A field is missing, empty or not known; a category that the release does not have; a wrong "
    "X-Request-Timeout",
    _429="The queue of photos is full; Retry-After says when to try again",
    _503=_KEPT["_503"], _504="The photos were not read within the time limit",
) | {201: {"headers": HEADER}}  # fmt: skip
SELLER: dict[str, Any] = {"maxLength": LONGEST["seller"], "pattern": NOT_EMPTY}
LISTED = problems(_413="Too long a name", _422="No seller, or another wrong parameter", **_KEPT)
UNDONE = problems(_404="No such correction in use", _422="No number", **_KEPT)
TAGS: list[str | Enum] = ["corrections"]


# The store


def open_store(workspace: AnyPath, url: str | None, has_adapter: bool) -> "Corrections | None":
    """Opens the store of corrections of a service; None where there is none.

    Args:
        workspace: of the release.
        url: of a database; None: the file in the workspace.
        has_adapter: whether the release decides with corrections; else no file is made.

    Raises:
        ShelfmarkError: it cannot be opened.
    """
    if url is None and not isinstance(workspace, Path):
        return None
    from models.corrections.database import FILE, corrections_url, warn_of_unused_file
    from models.corrections.store import Corrections

    if url is None:
        file = Path(str(workspace)) / FILE
        if not file.exists() and not (has_adapter and os.access(file.parent, os.W_OK)):
            return None
    else:
        warn_of_unused_file(workspace, url)
    return Corrections.open(corrections_url(workspace, url or ""))


# A request


@dataclass(frozen=True)
class NewCorrection:
    """The texts of a request, without blanks around them."""

    product_id: str
    seller: str
    category: str
    who: str | None
    comment: str | None

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "NewCorrection":
        """Checks the fields of a request.

        Raises:
            HTTPException: 422 or 413, one is missing, empty, too long, no text or not known.
        """
        for name in values:
            if name not in LONGEST:
                raise HTTPException(422, f"{name[:100]!r}: no field of a correction; {EXPECTED}")
        texts = {name: text_of(name, value) for name, value in values.items() if value is not None}
        for name in NEEDED:
            if not texts.get(name):
                state = "empty" if name in texts else "missing"
                raise HTTPException(422, f"{name}: {state}; {EXPECTED}")
        return cls(*(texts[name] for name in NEEDED), *(texts.get(name) or None for name in OPTIONAL))


def text_of(name: str, value: object, expected: str = EXPECTED) -> str:
    """Returns a field without the blanks around it.

    Raises:
        HTTPException: 422 where it is no text that a database takes, 413 where it is too long.
    """
    if not isinstance(value, str):
        raise HTTPException(422, f"{name}: {json.dumps(value)[:100]}, not a text; {expected}")
    text = value.strip()
    require_printable(name, text, expected)
    if len(text.encode()) > LONGEST[name]:
        raise too_long(name, LONGEST[name])
    return text


def require_printable(name: str, text: str, expected: str) -> None:
    """Raises an HTTPException 422 where a field holds characters that databases or lines do not take."""
    if re.search("[\0\ud800-\udfff]", text):
        raise HTTPException(422, f"{name}: holds NUL or half a character; {expected}")
    if name != "comment" and CONTROL.search(text):
        raise HTTPException(422, f"{name}: holds control characters, such as a new line; {expected}")


async def read_correction(request: Request) -> tuple[NewCorrection, Form]:
    """Reads the body of a request: its texts, and a form, to be closed, with its photos.

    Raises:
        HTTPException: 400 where it is damaged, 413 with too much in it, 422 where fields are wrong.
    """
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind == b"application/json":
        return NewCorrection.of(await _read_json(request)), Form([Sent()])
    if kind != b"multipart/form-data":
        accepted = {"Accept": "application/json, multipart/form-data"}
        raise HTTPException(415, f"neither JSON nor a form; {EXPECTED}", accepted)
    form = await read_form(request, FIELDS)
    try:
        return NewCorrection.of(form.products[0].texts), form
    except BaseException:
        form.close()
        raise


async def _read_json(request: Request) -> Mapping[str, object]:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_JSON:
            raise HTTPException(
                413, f"JSON of more than {MAX_JSON >> 10} KiB; expected less; shorten the texts"
            )
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"damaged JSON: {str(error)[:200]}; {EXPECTED}") from error
    if not isinstance(values, dict):
        raise HTTPException(422, f"JSON that is no object; {EXPECTED}")
    return values


# The routes


class _Stopped(Exception):
    """Another release is in service, or the service ends."""


class CorrectionService:
    """Makes, lists and undoes corrections."""

    def __init__(
        self,
        room: "Room",
        corrections: "Corrections | None",
        workspace: AnyPath | None,
        timeout_s: float = TIMEOUT,
    ) -> None:
        """Begins to encode corrections that lack the vector of the release in service.

        Args:
            room: reads photos, and knows the release in service.
            corrections: the store; None: every request is refused.
            workspace: whose runs and batches know products; None: none does.
            timeout_s: for reading the photos of a correction; a request may ask for less.
        """
        self._room, self._timeout_s = room, timeout_s
        self._corrections, self._workspace = corrections, workspace
        self._categories = _categories(room.served)
        self._places = {corrections.shown: STORE} if corrections else {}
        if workspace is not None:
            self._places[str(workspace)] = "the workspace"
        self._threads = ThreadPoolExecutor(THREADS, "corrections")
        self._stopped = threading.Event()
        self._encoding: threading.Thread | None = None
        self.switched(room.served)

    def switched(self, served: "Served") -> None:
        """Knows another release's categories; encodes, in a thread, corrections that were made before it.

        Args:
            served: in service from now on.
        """
        self._categories = _categories(served)
        self._stopped.set()
        histories = served.decider.histories
        if histories is None:
            return
        self._stopped = threading.Event()
        self._encoding = threading.Thread(
            target=_encode_missing, args=(histories, self._stopped), name="encoding", daemon=True
        )
        self._encoding.start()

    def close(self) -> None:
        """Ends the encoding."""
        self._stopped.set()
        if self._encoding:
            self._encoding.join()
        self._threads.shutdown(wait=False)

    async def make(self, request: Request, response: Response) -> CorrectionMade:
        """Makes a correction."""
        corrections, served = self._require_store(), self._room.served
        bundle, limit = served.bundle, timeout_of(request, self._timeout_s)
        if bundle.adapter is None:
            raise HTTPException(
                409,
                f"release {served.name} does not learn from corrections; expected one of a run "
                "with sellers.method votes or paper; train one, or give the correction to `shelfmark adapt`, "
                "which keeps it as a label",
            )
        new, form = await read_correction(request)
        try:
            category = await self._in_thread(partial(self._known_category, served, new.category))
            seen, source, reason = await self._see(served, new.product_id, form, request, response, limit)
        finally:
            form.close()
        encoded = await self._in_thread(partial(served.decider.encode, seen, category)) if seen else None
        from models.corrections.correction import Correction

        correction = Correction(
            seller=new.seller,
            product_id=new.product_id,
            category=category,
            who=new.who,
            comment=new.comment,
            release=bundle.categorizer.release,
            images=seen.digests if seen else (),
            fingerprint=bundle.fingerprint if seen else None,
            bottlenecks=seen.bottlenecks if seen else None,
        )
        [added] = await self._in_thread(partial(corrections.add, [(correction, encoded)]))
        if added.state == "same" and not seen:
            kept = partial(corrections.has_vector, added.id, new.seller, bundle.categorizer.predictor.model)
            source, reason = ("kept", None) if await self._in_thread(kept) else (source, reason)
        learnt = category in bundle.categorizer.predictor.taxonomy.categories
        return CorrectionMade(
            id=added.id, state=added.state, product_id=new.product_id, seller=new.seller, category=category,
            vector=source, reason=reason or (None if learnt else NOT_LEARNT),
        )  # fmt: skip

    async def _see(
        self,
        served: "Served",
        product_id: str,
        form: Form,
        request: Request,
        response: Response,
        limit: float,
    ) -> tuple["SeenProduct | None", Any, str | None]:
        """What a product looks like, where that is from, and why it is not known."""
        from serving.room import Product

        if files := form.products[0].files:
            product = Product(product_id, None, files, decide=False)
            [answer] = await answers_of(self._room, [product], request, limit, served)
            log_refused(product_id, answer.refusals)
            set_header(response, answer.refusals)
            if answer.seen:
                return answer.seen, "photos", None
        if seen := served.decider.recent.get(product_id):
            return seen, "recent", None
        if self._workspace is None:
            return None, None, NOT_SEEN
        from serving.stored import stored_product

        found = await self._in_thread(partial(stored_product, self._workspace, served.bundle, product_id))
        return (None, None, found) if isinstance(found, str) else (found, "store", None)

    def _known_category(self, served: "Served", text: str) -> str:
        """The category of a release that a text names."""
        digest, categories = self._categories
        if digest != served.bundle.digest:  # the release was switched while the request came
            _, categories = _categories(served)
        category = categories.find(text)
        if category is None:
            near = categories.nearest(text)
            hint = f"did you mean {near!r}?" if near else "GET /v1/taxonomy lists them"
            raise HTTPException(
                422,
                f"category {text[:100]!r}: not of release {served.name}; expected the id or the "
                f"path of one of its categories; {hint}",
            )
        return category

    async def page(self, seller: str, limit: int, after: int | None) -> CorrectionPage:
        """Some corrections of a seller, the newest first."""
        corrections = self._require_store()
        expected = "expected ?seller=NAME; give it"
        name = text_of("seller", seller, expected)
        if not name:
            raise HTTPException(422, f"seller: empty; {expected}")
        found = await self._in_thread(partial(corrections.page, name, limit, after))
        rows = [CorrectionRow.model_validate(row | {"base_category": row["base"]}) for row in found.rows]
        return CorrectionPage(
            seller=name, in_use=found.corrections, flagged=found.flagged, set_aside=found.set_aside,
            corrections=rows, next=rows[-1].id if len(rows) == limit else None,
        )  # fmt: skip

    async def undo(self, number: int) -> CorrectionUndone:
        """Undoes a correction."""
        corrections = self._require_store()
        if not await self._in_thread(partial(corrections.undo, [number])):
            raise HTTPException(
                404,
                f"correction {number}: not in use; expected the id of one that is; "
                "GET /v1/corrections?seller=NAME lists them",
            )
        return CorrectionUndone(id=number, state="undone")

    def _require_store(self) -> "Corrections":
        if self._corrections is None:
            raise HTTPException(
                409,
                "this service keeps no corrections; expected a workspace that it may write to, or a "
                "database; start shelfmark-serve with --corrections postgresql://USER@HOST/DATABASE",
            )
        return self._corrections

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The result of work with databases and disks; 503 where these do not answer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except ShelfmarkError as error:
            raise unavailable(error, self._places) from error


def _categories(served: "Served") -> tuple[str, KnownCategories]:
    """The digest of a release's bundle, and its categories."""
    return served.bundle.digest, KnownCategories.of_bundle(served.bundle.path)


def _encode_missing(histories: "Histories", stopped: threading.Event) -> None:
    def encode(*given: Any) -> "list[Encoded]":
        if stopped.is_set():
            raise _Stopped
        return histories.adapter.encode(*given)

    try:
        count = histories.carry(encode=encode)
    except _Stopped:
        return
    except ShelfmarkError as error:
        log.warning("corrections without a vector stay without: %s", one_line(error))
        return
    if count:
        log.info("%d corrections made under another release are encoded for this one", count)


def add_routes(app: FastAPI, state: ServiceState) -> None:
    """Puts /v1/corrections into an app; the state has the service as soon as it is ready."""

    def service() -> CorrectionService:
        assert state.corrections is not None
        return state.corrections

    @app.post(
        "/v1/corrections", status_code=201, responses=MADE, openapi_extra=BODY,
        summary="Make a correction", tags=TAGS,
    )  # fmt: skip
    async def make_correction(request: Request, response: Response) -> CorrectionMade:
        """Makes a correction: this product of this seller has this category.

        The seller's next decision knows it. The same again changes nothing; another category replaces the
        first one.
        """
        return await service().make(request, response)

    @app.get("/v1/corrections", responses=LISTED, summary="A seller's corrections", tags=TAGS)
    async def corrections_of_seller(
        seller: Annotated[str, Query(description="His name.", json_schema_extra=SELLER)],
        limit: Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="Of a page.")] = PAGE,
        after: Annotated[
            int | None, Query(ge=1, le=LARGEST_ID, description="`next` of the page before.")
        ] = None,
    ) -> CorrectionPage:
        """Lists a seller's corrections, undone and replaced ones too, the newest first."""
        return await service().page(seller, limit, after)

    @app.delete("/v1/corrections/{number}", responses=UNDONE, summary="Undo a correction", tags=TAGS)
    async def undo_correction(
        number: Annotated[int, fastapi.Path(ge=1, le=LARGEST_ID, description="The correction's id.")],
    ) -> CorrectionUndone:
        """Undoes a correction: the seller's next decision does not know it any more."""
        return await service().undo(number)
