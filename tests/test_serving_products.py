"""Several products in a request; queue, time limits, clients that leave, figures. The room: test_room.py."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import pytest
from catalogues import HTML, photo
from conftest import make_bundle
from fastapi.testclient import TestClient
from service import client_of, images, problem, scope_of_a_form, several, state_of
from test_categorize import Saved
from test_extract import engines_by_hand

from models.decisions.bundle import Bundle, open_bundle
from serving import form as form_module
from serving.form import MEMORY
from serving.metrics import Metrics
from serving.room import Answer, Closed, Full
from serving.state import ServiceState

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "week"
    make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    return open_bundle(path)


@pytest.fixture(scope="module")
def state(bundle: Bundle) -> Iterator[ServiceState]:
    """A service with a backbone of mean colours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "engines", lambda self, batches, store: engines_by_hand(Saved(), batches))
        yield state_of(bundle)


@pytest.fixture(scope="module")
def client(state: ServiceState) -> TestClient:
    return client_of(state)


def one(client: TestClient, *photos: bytes, **texts: str) -> dict[str, Any]:
    response = client.post("/v1/categorize", files=images(*photos), data=texts)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


# Several products


def test_several_products_get_the_decisions_of_each_alone_in_the_order_of_their_numbers(
    client: TestClient,
) -> None:
    products = [[photo(number), photo(number + 50)] for number in range(11)]
    files = several(products)
    response = client.post(
        "/v1/categorize", files=files[::-1], data={"product_id.3": "mug", "product_id.10": "lamp"}
    )
    body = response.json()
    assert response.status_code == 200 and list(body) == ["decisions", "release"]
    assert body["release"] == "week"
    ids = {3: "mug", 10: "lamp"}
    # the photos of a product come in the reverse order, too
    alone = [
        one(client, *photos[::-1], **({"product_id": ids[number]} if number in ids else {}))
        for number, photos in enumerate(products)
    ]
    assert body["decisions"] == alone


def test_a_single_product_with_a_number_is_a_list_of_one(client: TestClient) -> None:
    body = client.post("/v1/categorize", files=several([[photo(1)]])).json()
    assert body == {"decisions": [one(client, photo(1))], "release": "week"}


def test_each_product_says_which_of_its_photos_were_refused_and_why(client: TestClient) -> None:
    response = client.post("/v1/categorize", files=several([[photo(1), HTML], [b""], [photo(2)]]))
    assert "X-Shelfmark-Refused" not in response.headers
    refused = [[sent["refused"] for sent in row["photos"]] for row in response.json()["decisions"]]
    assert refused == [[None, "not_an_image"], ["empty"], [None]]
    statuses = [row["status"] == "unreadable" for row in response.json()["decisions"]]
    assert statuses == [False, True, False]
    details = [sent["detail"] for row in response.json()["decisions"] for sent in row["photos"]]
    assert [bool(detail) for detail in details] == [False, True, True, False]


def test_sixty_four_products_are_taken_and_one_more_is_not(client: TestClient) -> None:
    products = [[photo(number % 8)] for number in range(65)]
    assert len(client.post("/v1/categorize", files=several(products[:64])).json()["decisions"]) == 64
    response = client.post("/v1/categorize", files=several(products))
    assert problem(response, 413) == (
        "'images.64': a product beyond number 63; expected at most 64 products in one request; "
        "send the others in another one"
    )


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        (["images.0", "images.2"], 422, "product 1 of 3 is missing; expected products with numbers 0, 1, 2"),
        (["images.1"], 422, "product 0 of 2 is missing; "),
        (["images.0", "product_id.1"], 422, "no photo in the field images.1; "),
        (["product_id.0"], 422, "no photo in the field images.0; "),
        (["images.0", "images"], 422, "'images' beside fields with number; expected images for one"),
        (["product_id", "images.0"], 422, "'images.0' beside fields without number; "),
        (["images."], 422, "'images.': no number after the point; "),
        (["images.00"], 422, "'images.00': no number"),
        (["images.+1"], 422, "'images.+1': no number"),
        (["images.x"], 422, "'images.x': no number"),
        (["images.٣"], 422, "'images.٣': no number"),
        (["seller.1.2", "images.0"], 422, "'seller.1.2': no number"),
        (["images.0", "images." + "9" * 500], 413, "'images.999"),
        (["images.0"] * 17, 413, "more than 16 photos of a product; expected 16 at most; "),
    ],
)
def test_wrong_numbers_of_products_are_named(
    client: TestClient, fields: list[str], status: int, message: str
) -> None:
    parts = [(name, ("photo", photo(1)) if name.startswith("images") else (None, b"text")) for name in fields]
    assert problem(client.post("/v1/categorize", files=parts), status).startswith(message)


def test_other_fields_are_skipped_whatever_their_numbers(client: TestClient) -> None:
    files: list[Any] = [*images(photo(1)), ("comment.x", (None, b"nice")), ("", (None, b""))]
    response = client.post("/v1/categorize", files=files)
    assert response.json() == one(client, photo(1))


# Forms


def test_a_form_of_very_many_parts_is_refused(client: TestClient) -> None:
    part = b'--edge\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    response = client.post("/v1/categorize", content=part * 2_049 + b"--edge--", headers=headers)
    assert problem(response, 413).startswith("more than 2,048 parts; ")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br, gzip"])
def test_a_compressed_body_is_refused_before_it_is_read(client: TestClient, coding: str) -> None:
    response = client.post("/v1/categorize", files=images(photo(1)), headers={"Content-Encoding": coding})
    assert problem(response, 415).startswith(f"Content-Encoding: '{coding}'; expected a body as it is; ")
    assert response.headers["Accept-Encoding"] == "identity"


def test_photos_go_to_the_disk_when_others_have_used_the_memory(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one(client, photo(1), photo(2))
    assert MEMORY.used == 0
    seen: list[tuple[int, list[bool]]] = []
    close = form_module.Form.close

    def closing(self: form_module.Form) -> None:
        seen.append((MEMORY.used, [sent.on_disk for row in self.products for sent in row.photos]))
        close(self)

    monkeypatch.setattr(form_module.Form, "close", closing)
    monkeypatch.setattr(form_module, "ALL_IN_MEMORY", len(photo(1)) + 10)
    assert one(client, photo(1), photo(2)) == expected
    assert seen == [(len(photo(1)), [False, True])]
    assert MEMORY.used == 0


def test_all_photos_of_a_request_that_go_to_the_disk_are_in_one_file(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [[photo(1), photo(2)], [photo(3)], [photo(0), HTML]]
    expected = client.post("/v1/categorize", files=several(photos)).json()
    files: list[Any] = []

    def opening(**given: Any) -> Any:
        files.append(TemporaryFile(**given))  # noqa: SIM115
        return files[-1]

    monkeypatch.setattr(form_module, "TemporaryFile", opening)
    monkeypatch.setattr(form_module, "IN_MEMORY", 100)
    found = client.post("/v1/categorize", files=several(photos)).json()
    assert [one["photos"] for one in found["decisions"]] == [one["photos"] for one in expected["decisions"]]
    assert [one["category"] for one in found["decisions"]] == [
        one["category"] for one in expected["decisions"]
    ]
    [file] = files
    assert file.closed


def test_a_photo_on_the_disk_is_read_as_a_file_until_the_request_ends() -> None:
    spool = form_module.Spool()
    first, second = form_module.Photo(spool), form_module.Photo(spool)
    for one, data in ((first, b"a" * 2**20 + b"bc"), (second, b"d" * 2**20 + b"ef")):
        for start in range(0, len(data), 300_000):
            one.write(data[start : start + 300_000])
    for one, end in ((first, b"bc"), (second, b"ef")):
        assert one.file.seek(0, 2) == one.size == 2**20 + 2
        assert one.file.seek(2**20) == 2**20 and one.file.read(9) == end and one.file.read(1) == b""
    spool.close()
    first.file.seek(0)
    with pytest.raises(ValueError, match="closed file"):
        first.file.read(1)


# The queue and the time


class Stub:
    """A room whose answers the test gives, or never."""

    pending, full = 7, None

    def __init__(self, real: Any) -> None:
        self.served = real.served
        self.futures: list[Future[list[Answer]]] = []
        self.timeouts: list[float] = []
        self.submitted = threading.Event()
        self.error: Exception | None = None

    def submit(self, products: Any, timeout_s: float, served: Any = None) -> "Future[list[Answer]]":
        if self.error:
            raise self.error
        self.futures.append(Future())
        self.timeouts.append(timeout_s)
        self.submitted.set()
        return self.futures[-1]


@pytest.fixture
def stub(state: ServiceState) -> Stub:
    return Stub(state.room)


@pytest.fixture
def stubbed(stub: Stub, state: ServiceState) -> TestClient:
    room: Any = stub
    return client_of(ServiceState(room, state.corrections, ready=True), timeout_s=20)


def test_a_full_queue_is_429_with_the_seconds_to_wait(stubbed: TestClient, stub: Stub) -> None:
    stub.error = Full(2.1)
    response = stubbed.post("/v1/categorize", files=images(photo(1)))
    assert problem(response, 429).startswith("too many photos wait; expected fewer at a time; ")
    assert response.headers["Retry-After"] == "3"


def test_a_full_queue_is_said_before_the_body_is_read(stubbed: TestClient, stub: Stub) -> None:
    stub.full = Full(0.1)  # type: ignore[assignment]
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = scope_of_a_form()
    asyncio.run(stubbed.app(scope, receive, send))
    assert sent[0]["status"] == 429
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"


def test_a_room_that_is_closed_is_503(stubbed: TestClient, stub: Stub) -> None:
    stub.error = Closed("the service is ending; expected one that takes requests; send it again later")
    response = stubbed.post("/v1/categorize", files=images(photo(1)))
    assert problem(response, 503).startswith("the service is ending; ")
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize(("header", "seconds"), [(None, 20), ("0.5", 0.5), ("20", 20), ("1e-3", 0.001)])
def test_a_request_waits_as_long_as_it_says_and_is_then_given_up(
    stubbed: TestClient, stub: Stub, header: str | None, seconds: float
) -> None:
    headers = {"X-Request-Timeout": header} if header else {}
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(stubbed.post, "/v1/categorize", files=images(photo(1)), headers=headers)
        assert stub.submitted.wait(30)
        if seconds >= 20:
            stub.futures[0].set_exception(TimeoutError())  # as the room does, which knows the limit
        response = work.result(60)
    assert stub.timeouts == [seconds]
    text = problem(response, 504)
    assert text.startswith(f"no decision within {seconds:g} s; expected the service to have time for it; ")
    assert seconds >= 20 or stub.futures[0].cancelled()
    assert "Retry-After" in response.headers


@pytest.mark.parametrize(
    "header", ["0", "0.0009", "-1", "20.1", "nan", "inf", "soon", "1_0", "", "٣", "1 s", "0x1"]
)
def test_a_wrong_time_limit_is_refused(stubbed: TestClient, stub: Stub, header: str) -> None:
    headers = {"X-Request-Timeout": header.encode()}
    response = stubbed.post("/v1/categorize", files=images(photo(1)), headers=headers)
    text = problem(response, 422)
    assert text.startswith("X-Request-Timeout: ") and "expected seconds, 0.001 to 20; " in text
    assert not stub.futures


def test_what_a_client_that_has_left_waited_for_is_cancelled(stubbed: TestClient, stub: Stub) -> None:
    body = b'--edge\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    messages: list[Any] = [
        {"type": "http.request", "body": body + photo(1) + b"\r\n--edge--", "more_body": False},
        {"type": "http.disconnect"},
    ]
    scope = scope_of_a_form()
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(stubbed.app(scope, receive, send))
    assert stub.futures[0].cancelled()
    assert sent[0]["status"] == 499  # which nobody gets
    assert MEMORY.used == 0


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(
    stubbed: TestClient, stub: Stub
) -> None:
    body = b'--edge\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + photo(1)
    messages: list[Any] = [
        {"type": "http.request", "body": body, "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = scope_of_a_form()

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    asyncio.run(stubbed.app(scope, receive, send))
    assert not stub.futures and not messages
    assert MEMORY.used == 0


# Before it is ready, and at its end


@pytest.mark.parametrize(
    ("state", "happened"),
    [
        (ServiceState(), "the release is being loaded"),
        (ServiceState(draining=True), "the service is ending"),
        (ServiceState(ready=True, draining=True), "the service is ending"),
    ],
    ids=["loading", "ended while loading", "draining"],
)
def test_requests_are_refused_before_the_service_is_ready_and_at_its_end(
    state: ServiceState, happened: str
) -> None:
    client = client_of(state)
    for response in (
        client.post("/v1/categorize", files=images(photo(1))), client.get("/v1/release"),
        client.get("/v1/taxonomy"), client.get("/v1/corrections?seller=ann"), client.get("/readyz"),
        client.delete("/v1/corrections/1"), client.post("/v1/corrections", json={}),
    ):  # fmt: skip
        assert problem(response, 503).startswith(f"{happened}; expected a ready service; ")
        assert int(response.headers["Retry-After"]) > 0
    assert client.get("/healthz").json() == {
        "status": "ok", "release": None, "bundle": None, "backbone": None, "threshold": None,
    }  # fmt: skip
    assert client.get("/metrics").status_code == client.get("/docs").status_code == 200


def test_readiness_names_the_release_and_the_newer_one_that_was_refused(state: ServiceState) -> None:
    ready = ServiceState(state.room, state.corrections, ready=True)
    client = client_of(ready)
    assert client.get("/readyz").json() == {"status": "ready", "release": "week", "refused_release": None}
    ready.refused_release = ("later", "thresholds.json: damaged; expected its digest; release again")
    assert client.get("/readyz").json()["refused_release"] == {
        "release": "later",
        "reason": "thresholds.json: damaged; expected its digest; release again",
    }
    head = client.head("/readyz")
    assert (head.status_code, head.content) == (200, b"")


# What is in service


def test_the_release_says_what_it_promises(client: TestClient, bundle: Bundle) -> None:
    assert client.get("/v1/release").json() == {
        "release": "week", "bundle": bundle.digest, "backbone": bundle.fingerprint, "image_size": 8,
        "views": ["whole"], "averaged": False, "cascade": None,
        "engine": "by hand", "threshold": 0.25, "target_precision": 0.9, "delta": 0.1,
        "caveats": ["the weights of its backbone are random: its decisions are a demonstration"],
        "levels": [{"level": 1, "threshold": None}], "categories": 6, "aggregation": "mean",
        "sellers_method": None,
    }  # fmt: skip


def test_the_tree_has_the_names_of_all_levels_and_is_sent_once(client: TestClient) -> None:
    response = client.get("/v1/taxonomy")
    body = response.json()
    assert (body["release"], body["levels"]) == ("week", 2)
    assert body["categories"][0] == {"category": "apple", "names": ["food", "apple"]}
    assert [row["category"] for row in body["categories"]] == [
        "apple", "leek", "milk", "oats", "pear", "soap",
    ]  # fmt: skip
    tag = response.headers["ETag"]
    for header in (tag, f'"other", W/{tag}', "*"):
        again = client.get("/v1/taxonomy", headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert client.get("/v1/taxonomy", headers={"If-None-Match": '"other"'}).status_code == 200


def test_what_is_described_follows_a_switch(bundle: Bundle, state: ServiceState) -> None:
    room: Any = Stub(state.room)
    client = client_of(ServiceState(room, state.corrections, ready=True))
    first = client.get("/healthz").json()
    room.served = replace(
        room.served, bundle=replace(bundle, path=bundle.path.with_name("later"), digest="x")
    )
    later = client.get("/healthz").json()
    assert (first["release"], later["release"], later["bundle"]) == ("week", "later", "x")
    assert client.get("/v1/release").json()["release"] == client.get("/v1/taxonomy").json()["release"]
    assert client.get("/readyz").json()["release"] == "later"


# Metrics


def figures(metrics: Metrics) -> dict[str, float]:
    """Every figure by its name and labels."""
    lines = metrics.text().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}


def test_metrics_count_requests_products_and_say_what_is_in_service(
    state: ServiceState, bundle: Bundle
) -> None:
    own = ServiceState(state.room, state.corrections, ready=True)
    metrics = Metrics(own)
    client = client_of(own, metrics)
    files = several([[photo(1)], [HTML]])
    statuses = [row["status"] for row in client.post("/v1/categorize", files=files).json()["decisions"]]
    client.get("/healthz")
    client.get("/v1/categorize")
    own.refused_release = ("later", "damaged")
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = figures(metrics)
    requests = 'shelfmark_requests_total{{method="{}",route="{}",status="{}"}}'
    assert found[requests.format("POST", "/v1/categorize", 200)] == 1
    assert found[requests.format("GET", "/v1/categorize", 405)] == 1
    assert found[requests.format("GET", "/healthz", 200)] == 1
    for status in statuses:
        assert found[f'shelfmark_products_total{{status="{status}"}}'] == statuses.count(status)
    assert found['shelfmark_request_seconds_count{route="/v1/categorize"}'] == 2
    assert found["shelfmark_ready"] == 1 and found["shelfmark_in_flight_requests"] == 0
    assert found['shelfmark_refused_release{release="later"}'] == 1
    info = next(name for name in found if name.startswith("shelfmark_release_info"))
    assert all(text in info for text in ('release="week"', bundle.digest, bundle.fingerprint, "by hand"))


def test_what_nobody_serves_counts_under_one_label(state: ServiceState) -> None:
    metrics = Metrics(state)
    client = client_of(state, metrics)
    for number in range(20):
        assert client.get(f"/v{number}/x").status_code == 404
        assert client.request(f"VERB{number}", "/v1/corrections/x/y").status_code in (404, 405)
        client.get(f"/v1/corrections/{number}")
    names = [name for name in figures(metrics) if name.startswith("shelfmark_requests_total")]
    assert sorted(names) == [
        'shelfmark_requests_total{method="GET",route="/v1/corrections/{number}",status="405"}',
        'shelfmark_requests_total{method="GET",route="other",status="404"}',
        'shelfmark_requests_total{method="other",route="/v1/corrections/{number}",status="404"}',
    ]


def test_the_room_measures_its_work(state: ServiceState) -> None:
    metrics = Metrics(state)
    metrics.decoded(0.02)
    metrics.refused("truncated")
    metrics.batch(4, 0.1)
    metrics.head(3, 0.004)
    metrics.queued(5)
    metrics.ended_connection(408)
    found = figures(metrics)
    assert found["shelfmark_decode_seconds_sum"] == 0.02
    assert found['shelfmark_refused_photos_total{reason="truncated"}'] == 1
    sizes = [found[f'shelfmark_batch_photos_bucket{{le="{size}.0"}}'] for size in (1, 2, 4, 8)]
    assert sizes == [0, 0, 1, 1]
    assert found["shelfmark_backbone_seconds_count"] == found["shelfmark_head_seconds_count"] == 1
    assert found['shelfmark_ended_connections_total{status="408"}'] == 1


# Errors


def test_errors_of_the_framework_are_problem_documents_too(client: TestClient) -> None:
    nothing = problem(client.get("/v2/x'y"), 404)
    assert nothing.startswith('"/v2/x\'y": nothing is there; expected one of the paths that /docs lists; ')
    wrong = client.put("/v1/corrections")
    assert problem(wrong, 405) == "'/v1/corrections': no PUT; expected GET, POST; use another method"
    assert wrong.headers["Allow"] == "GET, POST"
    assert problem(client.get("/v1/corrections"), 422).startswith("seller: Field required; ")
    assert client.get("/v1/corrections/7").headers["Allow"] == "DELETE"


def test_a_failure_of_ours_is_a_problem_document_without_its_reason(stubbed: TestClient, stub: Stub) -> None:
    stub.error = ValueError("/secret/path")
    response = stubbed.post("/v1/categorize", files=images(photo(1)))
    assert "secret" not in problem(response, 500)


def test_titles_are_those_of_http_semantics(client: TestClient) -> None:
    titles = [
        client.post("/v1/categorize", files=images(*[photo(1)] * 17)).json()["title"],
        client.post("/v1/categorize", files={"x": b""}).json()["title"],
        client.post("/v1/categorize").json()["title"],
    ]
    assert titles == ["Content Too Large", "Unprocessable Content", "Unsupported Media Type"]


def test_documents_and_pages_need_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "http://" not in page and "https://" not in page
    for path in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/static-offline-docs/{path}" in page
        assert client.get(f"/static-offline-docs/{path}").status_code == 200
    assert json.loads(client.get("/openapi.json").text)["openapi"].startswith("3.1")
