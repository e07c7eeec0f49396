"""What tests of the service share: a bundle in service, in this process, behind its HTTP surface.

One room, whose decode processes take a while to start, serves all tests of a process.
"""

import atexit
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient

from models.corrections.store import Corrections
from models.decisions.bundle import Bundle
from serving.app import create_app
from serving.corrections import CorrectionService
from serving.metrics import Metrics
from serving.room import Answer, Full, Product, Room, RoomLimits
from serving.served import Served
from serving.state import ServiceState

_STARTED: list[Room] = []
_SERVED: list[Served] = []


class SharedRoom:
    """The room of this process, as if one release alone were in it."""

    def __init__(self, served: Served) -> None:
        if not _STARTED:
            _STARTED.append(Room(served, RoomLimits(processes=2)))
            atexit.register(_STARTED[0].close)
        self.served, self._room = served, _STARTED[0]

    @property
    def full(self) -> Full | None:
        return self._room.full

    @property
    def pending(self) -> int:
        return self._room.pending

    def submit(
        self, products: Sequence[Product], timeout_s: float, served: Served | None = None
    ) -> "Future[list[Answer]]":
        return self._room.submit(products, timeout_s, served or self.served)

    def take_over(self, served: Served) -> None:
        self.served = served


def state_of(
    bundle: Bundle, corrections: Corrections | None = None, workspace: Path | None = None
) -> ServiceState:
    """A ready service."""
    before = _SERVED[-1] if _SERVED else None  # whose engines are used again
    served = Served.of(bundle, corrections, before, workspace / "store" if workspace else None)
    _SERVED[:] = [served]
    room: Any = SharedRoom(served)
    return ServiceState(room, CorrectionService(room, corrections, workspace), ready=True)


def client_of(state: ServiceState, metrics: Metrics | None = None, **access: Any) -> TestClient:
    """A client of a service; errors of the service are responses."""
    app = create_app(state, metrics or Metrics(state), **access)
    return TestClient(app, raise_server_exceptions=False)


@contextmanager
def serving(
    bundle: Bundle, corrections: Corrections | None = None, workspace: Path | None = None
) -> Iterator[TestClient]:
    """A client of a bundle in service; what the service does beside requests ends with it."""
    state = state_of(bundle, corrections, workspace)
    try:
        with client_of(state) as client:
            yield client
    finally:
        assert state.corrections
        state.corrections.close()


def images(*photos: bytes, field: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    """Photos as files of a form."""
    return [(field, ("photo", data)) for data in photos]


def several(products: Sequence[Sequence[bytes]]) -> list[tuple[str, tuple[str, bytes]]]:
    """The photos of several products as files of a form."""
    return [
        one for number, photos in enumerate(products) for one in images(*photos, field=f"images.{number}")
    ]


def scope_of_a_form() -> dict[str, Any]:
    """The ASGI scope of a form about products, whose parts are divided by `edge`."""
    return {
        "type": "http", "method": "POST", "path": "/v1/categorize", "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=edge")],
    }  # fmt: skip


def problem(response: httpx.Response, status: int) -> str:
    """What a problem document says: what happened; what was expected; what to do next."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "what_happened", "expected", "next_step"}
    assert (body["type"], body["status"]) == ("about:blank", status)
    text: str = body["detail"]
    assert "\n" not in text and all((body["what_happened"], body["expected"], body["next_step"])), text
    assert text == f"{body['what_happened']}; expected {body['expected']}; {body['next_step']}"
    return text
