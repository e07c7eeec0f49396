"""A request and its answers: taken or not, for how long it waits, and when nobody waits any more.

the queue is full ──► 429, before the body is read where possible
X-Request-Timeout, else the service's limit ─► seconds ─► answers
                                                      ├─► 504: the time is over
                                                      └─► the client has closed the connection
                                                              └─► the future is cancelled: not computed
"""

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request

from serving.form import left
from serving.openapi import SHORTEST
from serving.problems import SECONDS, retry_after

if TYPE_CHECKING:
    from serving.room import Answer, Product, Room
    from serving.served import Served

TIMEOUT = 30.0  # s, for a decision


def timeout_of(request: Request, longest: float) -> float:
    """Returns the seconds that a request has for its decisions.

    Raises:
        HTTPException: 422, its header is no number, or too large.
    """
    text = request.headers.get("x-request-timeout")
    if text is None:
        return longest
    seconds = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,19})?(e-?[0-9]{1,2})?", text) else 0.0
    if not SHORTEST <= seconds <= longest:
        raise HTTPException(
            422,
            f"X-Request-Timeout: {text[:50]!r}; expected seconds, {SHORTEST:g} to {longest:g}; "
            "correct it, or leave it out",
        )
    return seconds


def require_place(room: "Room") -> None:
    """Raises an HTTPException 429 where no photo can be taken now, whatever a request brings."""
    if full := room.full:
        raise _too_busy(full.retry_after)


async def answers_of(
    room: "Room",
    products: "Sequence[Product]",
    request: Request,
    timeout_s: float,
    served: "Served | None" = None,
) -> "list[Answer]":
    """Returns the answers about products; when the client leaves or the time is over, nobody computes them.

    Args:
        room: that answers.
        products: of the request, whose body has been read.
        request: is watched for its end.
        timeout_s: from now on.
        served: release that answers; None: the one in service.

    Raises:
        HTTPException: 429 where the queue is full, 503 where the service ends, 504 after so many seconds;
            `left` where the client has closed the connection.
    """
    from serving.room import Closed, Full  # late: the app responds before what these need is loaded

    try:
        waiting = asyncio.wrap_future(room.submit(products, timeout_s, served))
        return await _first(waiting, request, timeout_s)
    except Full as full:
        raise _too_busy(full.retry_after) from full
    except Closed as closed:
        raise HTTPException(503, str(closed), retry_after(SECONDS)) from closed
    except TimeoutError as error:
        raise HTTPException(
            504,
            f"no decision within {timeout_s:g} s; expected the service to have time for it; try again later, "
            "with fewer products, or with a longer X-Request-Timeout",
            retry_after(SECONDS),
        ) from error


async def _first(
    waiting: "asyncio.Future[list[Answer]]", request: Request, timeout_s: float
) -> "list[Answer]":
    leaving = asyncio.ensure_future(request.receive())  # after a body, nothing comes but the end
    try:
        await asyncio.wait((waiting, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if leaving.done():
            raise left()
        raise TimeoutError
    finally:
        leaving.cancel()
        waiting.cancel()  # and with it the future of the room


def _too_busy(seconds: float) -> HTTPException:
    return HTTPException(
        429,
        "too many photos wait; expected fewer at a time; send the request again after Retry-After",
        retry_after(seconds),
    )
