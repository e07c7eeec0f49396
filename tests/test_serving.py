"""The HTTP service and its command, on a bundle with drawn weights."""

import asyncio
import io
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import conftest
import httpx
import keras
import numpy as np
import pytest
from fastapi.testclient import TestClient
from photos_alone import categorize_photos
from PIL import Image
from service import client_of, images, problem, scope_of_a_form, serving, state_of

from features.engines.backbones import load_backbone, start_tensorflow
from features.engines.choose import choose_engine
from features.engines.engine import Engine, extract
from features.images.normalise import normalise
from features.images.refusal import LIMITS
from features.records import pieces_of
from features.views import WHOLE
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.categorizer import COLUMNS, LevelRule
from models.decisions.confidence import ConfidenceModel
from models.decisions.thresholds import Certificate
from serving import app as app_module
from serving.__main__ import main
from serving.extractor import SHAPES

ROOT = Path(__file__).parents[1]
THRESHOLD = 0.7
TREE = {
    "apple": "fruit",
    "banana": "fruit",
    "bread": "bakery",
    "lemon": "fruit",
    "roll": "bakery",
    "soap": "bath",
}
SURE, UNSURE = 1, 5  # photos whose confidence is above THRESHOLD, and below
Server = tuple[subprocess.Popen[str], str]  # the running command and its address


def photo(number: int, format: str = "JPEG", side: int = 10) -> bytes:
    """A file of 4 × 4 squares in drawn colours, `side` pixels each."""
    colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours.repeat(side, 0).repeat(side, 1)).save(file, format)
    return file.getvalue()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start_tensorflow()
    path = tmp_path_factory.mktemp("shop")
    weights = path / "drawn.weights.h5"
    conftest.drawn_backbone(seed=0).save_weights(weights)
    backbone = load_backbone("mobilenet", str(weights), 32)
    keras.utils.set_random_seed(5)
    release = path / "releases" / "2026-W47"
    conftest.make_bundle(release, backbone, THRESHOLD, tree=TREE, hidden=(16, 8), scale=500.0)
    (path / "releases" / "current").symlink_to("2026-W47")
    return path


@pytest.fixture(scope="module")
def bundle(workspace: Path) -> Bundle:
    return open_bundle((workspace / "releases" / "current").resolve())


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return choose_engine(bundle.backbone(), max(SHAPES))


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[TestClient]:
    with serving(bundle) as client:
        yield client


def send(client: TestClient | httpx.Client, photos: list[bytes], **fields: str) -> httpx.Response:
    return client.post("/v1/categorize", files=images(*photos), data=fields)


def decided(bundle: Bundle, engine: Engine, product_id: str, photos: list[bytes]) -> dict[str, Any]:
    """The decision without HTTP, its nulls as pandas writes them; and what became of each photo."""
    table, refusals = categorize_photos(bundle.categorizer, {WHOLE: engine}, product_id, photos, LIMITS)
    sent = [
        {"index": index, "refused": one and one.reason, "detail": one and one.detail}
        for index, one in enumerate(refusals)
    ]
    return json.loads(table.to_json(orient="records"))[0] | {"photos": sent}


def used(count: int) -> list[dict[str, Any]]:
    """What became of so many photos that were all used."""
    return [{"index": index, "refused": None, "detail": None} for index in range(count)]


def without_photos(response: httpx.Response) -> dict[str, Any]:
    """A decision alone."""
    return {name: value for name, value in response.json().items() if name != "photos"}


# The decision


@pytest.mark.parametrize(
    ("numbers", "status"),
    [([SURE], "accepted"), ([UNSURE], "review"), ([SURE, 2, 3], None), (list(range(6)), None)],
)
def test_decision_is_the_one_made_without_http(
    client: TestClient, bundle: Bundle, engine: Engine, numbers: list[int], status: str | None
) -> None:
    photos = [photo(number) for number in numbers]
    response = send(client, photos, product_id="mug-7")
    assert response.status_code == 200
    assert response.json() == decided(bundle, engine, "mug-7", photos)
    assert status in (None, response.json()["status"])


def test_a_node_above_the_category_is_decided_over_http_as_without_it(bundle: Bundle, engine: Engine) -> None:
    """The photo that goes to review otherwise: its department is promised from probability 0 on."""
    rules = bundle.categorizer.rules
    rule = LevelRule(rules.confidence, replace(rules.certificate, threshold=0.0))
    categorizer = replace(bundle.categorizer, rules=replace(rules, levels={"level1": rule}))
    with_parents = replace(bundle, categorizer=categorizer)
    with serving(with_parents) as client:
        response = send(client, [photo(UNSURE)], product_id="mug-7").json()
    assert response == decided(with_parents, engine, "mug-7", [photo(UNSURE)])
    assert (response["status"], response["node_level"]) == ("parent", 1)
    assert response["node"] == response["category_path"].split(" / ")[0]


def test_decision_is_the_one_made_from_bottlenecks(
    client: TestClient, bundle: Bundle, engine: Engine
) -> None:
    photos = [photo(SURE), photo(8, "PNG"), photo(9, "BMP", side=200)]  # the last, 1.9 MB, waits on disk
    jpegs = [normalise(data).jpeg for data in photos]
    [bottlenecks] = extract(engine, pieces_of(jpegs, "drawn"), len(jpegs))
    categorizer = bundle.categorizer
    table = categorizer.decide(np.array(["x"], object), categorizer.predict(bottlenecks, np.array([0, 3])))
    assert (
        without_photos(send(client, photos, product_id="x")) == json.loads(table.to_json(orient="records"))[0]
    )


def test_accepted_decision_names_its_node(client: TestClient) -> None:
    response = send(client, [photo(SURE)], product_id="mug-7").json()
    assert list(response) == [*COLUMNS, "photos"]
    assert response["product_id"] == "mug-7"
    assert response["node"] == response["category"] == response["top_categories"][0]
    assert (
        response["node_path"] == response["category_path"] == f"{TREE[response['node']]} / {response['node']}"
    )
    assert response["node_level"] == 2
    assert (
        response["confidence"] == pytest.approx(response["top_probabilities"][0])
        and response["confidence"] >= 0.7
    )
    assert len(response["top_categories"]) == len(response["top_probabilities"]) == 5


def test_decision_for_review_has_no_node(client: TestClient) -> None:
    response = send(client, [photo(UNSURE)]).json()
    assert response["status"] == "review"
    assert response["node"] is response["node_path"] is response["node_level"] is None
    assert response["category_path"] == f"{TREE[response['category']]} / {response['category']}"


@pytest.mark.parametrize("fields", [{}, {"product_id": ""}])
def test_product_id_is_null_when_none_is_given(client: TestClient, fields: dict[str, str]) -> None:
    assert send(client, [photo(0)], **fields).json()["product_id"] is None


def test_product_id_comes_back_as_it_is(client: TestClient) -> None:
    assert send(client, [photo(0)], product_id="Tasse № 7 ☕").json()["product_id"] == "Tasse № 7 ☕"


def test_names_and_types_of_files_do_not_matter(client: TestClient) -> None:
    files = [("images", ("list.txt", photo(3, "PNG"), "text/plain"))]
    response = client.post("/v1/categorize", files=files)
    assert response.json() == send(client, [photo(3, "PNG")]).json()


def test_products_sent_at_once_get_their_own_decisions(client: TestClient) -> None:
    alone = [send(client, [photo(number)], product_id=str(number)).json() for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        together = threads.map(lambda n: send(client, [photo(n)], product_id=str(n)).json(), range(6))
        assert list(together) == alone


def test_without_threshold_everything_is_for_review(bundle: Bundle) -> None:
    rules = bundle.categorizer.rules
    rules = replace(rules, certificate=Certificate(0.9, 0.1, 1000, 20, reason="too few products"))
    uncertified = replace(bundle, categorizer=replace(bundle.categorizer, rules=rules))
    with serving(uncertified) as client:
        assert client.get("/healthz").json()["threshold"] is None
        assert send(client, [photo(SURE)]).json()["status"] == "review"


def test_one_photo_sent_again_and_again_has_the_confidence_of_one(bundle: Bundle) -> None:
    with serving(counting(bundle, most_images=3)) as client:
        responses = [without_photos(send(client, [photo(SURE)] * times)) for times in (1, 2, 4, 16)]
        assert responses == [responses[0]] * 4
        assert responses[0]["confidence"] == 0.5
        assert send(client, [photo(0), photo(1), photo(0)]).json()["confidence"] == round(2 / 3, 6)
        sixteen = send(client, [photo(number) for number in range(16)]).json()["confidence"]
        assert sixteen == 0.75


def counting(bundle: Bundle, most_images: int) -> Bundle:
    """A bundle whose confidence is n / (1 + n), where n is the number of images that count."""
    names = ["logit_p1", "log_p1_over_p2", "entropy", "logit_parent_mass", "log_category_size", "log_images"]
    zeros = dict.fromkeys(names, 0.0)
    ones = dict.fromkeys(names, 1.0)
    model = ConfidenceModel(
        "logistic", 100, None, 0.0, zeros | {"log_images": 1.0}, zeros, ones,
        least_images=1, most_images=most_images,
    )  # fmt: skip
    rules = replace(bundle.categorizer.rules, confidence=model)
    return replace(bundle, categorizer=replace(bundle.categorizer, rules=rules))


def test_a_photo_sent_twice_is_refused_at_both_places_or_at_none(client: TestClient) -> None:
    response = send(client, [b"text", photo(SURE), b"text", photo(SURE)])
    assert response.headers["X-Shelfmark-Refused"] == "0:not_an_image, 2:not_an_image"
    assert without_photos(response) == without_photos(send(client, [photo(SURE)]))
    assert [one["refused"] for one in response.json()["photos"]] == ["not_an_image", None] * 2


# Bad photos


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"a list of things to buy", "not_an_image"), (photo(0)[:700], "truncated")],
)
def test_product_without_readable_photo_is_unreadable(
    client: TestClient, bundle: Bundle, engine: Engine, data: bytes, reason: str
) -> None:
    response = send(client, [data], product_id="p")
    assert response.status_code == 200
    assert response.headers["X-Shelfmark-Refused"] == f"0:{reason}"
    assert response.json() == decided(bundle, engine, "p", [data])
    nothing = dict.fromkeys(("category", "category_path", "node", "node_path", "node_level"))
    assert without_photos(response) == {
        "product_id": "p", "confidence": 0.0, "status": "unreadable", **nothing,
        "top_categories": [], "top_probabilities": [], "views": None, "release": "2026-W47",
    }  # fmt: skip


def test_readable_photos_decide_and_the_others_are_named(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "shelfmark"):
        response = send(client, [photo(SURE), photo(2)[:700], b"text"], product_id="p 7")
    assert response.headers["X-Shelfmark-Refused"] == "1:truncated, 2:not_an_image"
    good = send(client, [photo(SURE)], product_id="p 7")
    assert without_photos(response) == without_photos(good)
    assert "X-Shelfmark-Refused" not in good.headers
    refused = [message for message in caplog.messages if "refused" in message]
    assert [message.partition(": ")[0] for message in refused] == [
        "product 'p 7', photo 1 refused", "product 'p 7', photo 2 refused"
    ]  # fmt: skip


# Bad requests


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({}, 415),
        ({"data": {"product_id": "p"}}, 415),
        ({"json": {"images": ["photo.jpg"]}}, 415),
        ({"content": photo(0), "headers": {"Content-Type": "image/jpeg"}}, 415),
        ({"files": {"image": photo(0)}}, 422),
        ({"files": {"product_id": photo(0), "images": photo(0)}}, 422),
        ({"data": {"images": "photo.jpg"}}, 415),
    ],
    ids=["nothing", "no images", "JSON", "bare photo", "wrong field", "file as id", "name, not file"],
)
def test_request_without_photos_says_what_was_expected(
    client: TestClient, request_: dict[str, Any], status: int
) -> None:
    response = client.post("/v1/categorize", **request_)
    assert "files in the field images; send it as curl -F images=@" in problem(response, status)
    assert response.headers.get("Accept") == ("multipart/form-data" if status == 415 else None)


def form(*names: str, data: bytes = b"") -> dict[str, Any]:
    """A multipart request as browsers write it, of files in the field images."""
    head = '--edge\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\n\r\n'
    body = b"".join(head.format(name).encode() + data + b"\r\n" for name in names) + b"--edge--\r\n"
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=edge"}}


def test_browser_form_without_a_choice_has_no_photo(client: TestClient) -> None:
    response = client.post("/v1/categorize", **form(""))
    assert response.status_code == 422
    assert response.json()["detail"].startswith("no photo in the field images; expected multipart/form-data")


def test_damaged_form_is_refused(client: TestClient) -> None:
    whole = form("a", data=photo(0))["content"]
    response = client.post("/v1/categorize", content=whole, headers={"Content-Type": "multipart/form-data"})
    assert response.status_code == 400
    assert response.json()["detail"].startswith("no boundary in Content-Type; expected multipart/")
    cut = client.post("/v1/categorize", **form("a", data=photo(0)) | {"content": whole[:-100]})
    assert cut.status_code == 400
    assert cut.json()["detail"].startswith("the form ends before its last boundary; expected multipart/")
    for edge in ("", "e" * 300):
        odd = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        assert client.post("/v1/categorize", content=whole, headers=odd).status_code == 400
    damaged = whole.replace(b"Content-Disposition:", b"Content Disposition")
    response = client.post("/v1/categorize", **form("a") | {"content": damaged})
    assert response.status_code == 400
    assert re.match("damaged form: .*files in the field images; send it as curl", response.json()["detail"])


def test_a_text_for_a_photo_is_refused_as_such(client: TestClient) -> None:
    response = client.post("/v1/categorize", files={"images": (None, "hello")})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("images: a text, not a file; expected multipart/form-data")


NAMELESS = b'--edge\r\nContent-Disposition: form-data; name="images"\r\n\r\n'


def test_a_photo_needs_no_file_name_whatever_its_size(server: Server) -> None:
    large = photo(9, "BMP", side=400)
    assert len(large) > 7_000_000
    with httpx.Client(base_url=server[1], timeout=60) as client:
        for data in (photo(SURE), large):
            request = form("") | {"content": NAMELESS + data + b"\r\n--edge--"}
            response = client.post("/v1/categorize", **request)
            assert response.status_code == 200
            assert response.json() == send(client, [data]).json()
            assert response.json()["status"] != "unreadable"


def test_what_stands_before_the_first_boundary_and_after_the_last_is_skipped(server: Server) -> None:
    body = form("a", data=photo(SURE))["content"]
    before = b"This is a message with several parts.\r\n--edg\r\n --edge " + bytes(200_000) + b"\r\n"
    with httpx.Client(base_url=server[1], timeout=60) as client:
        expected = send(client, [photo(SURE)]).json()
        for content in (
            before + body,
            b"\r\n" + body,
            body + b"and this after it --edge",
            before + body + before,
        ):
            response = client.post("/v1/categorize", **form("") | {"content": content})
            assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_form_that_comes_in_small_pieces_is_the_same(client: TestClient, size: int) -> None:
    data = photo(SURE)
    body = b"before\r\n--ed\r\n" + form("a", data=data)["content"]
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    response = client.post("/v1/categorize", **form("") | {"content": pieces})
    assert response.json() == send(client, [data]).json()


def test_a_text_that_is_too_long_for_a_product_id_is_refused(client: TestClient) -> None:
    response = send(client, [photo(0)], product_id="x" * 1_001)
    assert problem(response, 413).startswith("product_id: more than 1,000 bytes; expected less")


def test_sixteen_photos_are_taken_and_seventeen_are_not(client: TestClient) -> None:
    assert send(client, [photo(0)] * 16).status_code == 200
    response = send(client, [photo(0)] * 17)
    assert problem(response, 413) == "more than 16 photos of a product; expected 16 at most; leave some out"


TOO_LARGE = "more than {} MiB; expected less in one request; send fewer or smaller photos"


def test_large_body_is_refused_by_its_declared_length(client: TestClient) -> None:
    request = form("a", data=photo(0))
    limit = 64 * 1024 * 1024
    declared = request["headers"] | {"Content-Length": str(limit)}
    assert client.post("/v1/categorize", content=request["content"], headers=declared).status_code == 200
    declared["Content-Length"] = str(limit + 1)
    response = client.post("/v1/categorize", content=request["content"], headers=declared)
    assert problem(response, 413) == TOO_LARGE.format(64)


def test_large_body_is_refused_while_it_comes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_BYTES", 1 << 20)
    head = form("a")["content"].partition(b"--edge--")[0]
    taken: list[bytes] = []
    response: list[Any] = []

    async def receive() -> dict[str, Any]:
        taken.append(bytes(1 << 16) if taken else head)
        return {"type": "http.request", "body": taken[-1], "more_body": True}  # for ever

    async def send(message: Any) -> None:
        response.append(message)

    scope = scope_of_a_form()
    asyncio.run(client_of(state_of(bundle)).app(scope, receive, send))
    assert response[0]["status"] == 413
    assert json.loads(response[1]["body"])["detail"] == TOO_LARGE.format(1)
    assert len(taken) == 17


# Health, description


def test_health_can_be_seen_without_a_body(server: Server) -> None:
    with httpx.Client(base_url=server[1], timeout=60) as client:
        response, whole = client.head("/healthz"), client.get("/healthz")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(whole.content))


def test_health_shows_what_is_in_service(client: TestClient, bundle: Bundle) -> None:
    assert client.get("/healthz").json() == {
        "status": "ok", "release": "2026-W47", "bundle": bundle.digest,
        "backbone": bundle.fingerprint, "threshold": THRESHOLD,
    }  # fmt: skip


# The command


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    """Exit status and standard error of a command that ends by itself."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, capsys.readouterr().err


def test_command_without_release_says_to_retrain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, message = stopped(capsys, "--workspace", str(tmp_path), "--port", "0")
    assert status == 1
    assert re.fullmatch(r"error: .*: nothing is in service; .* run `shelfmark retrain` first\n", message)


def test_command_with_half_a_bundle_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "releases" / "half").mkdir(parents=True)
    (tmp_path / "releases" / "current").symlink_to("half")
    status, message = stopped(capsys, "--workspace", str(tmp_path), "--port", "0")
    assert status == 1
    assert re.fullmatch(
        r"error: .*releases/half: missing; expected the bundle of release half; .*\n", message
    )


def test_command_ends_where_the_release_cannot_be_opened(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found after the service has begun to respond."""
    shutil.copytree(workspace / "releases", tmp_path / "releases", symlinks=True)
    thresholds = tmp_path / "releases" / "2026-W47" / "thresholds.json"
    thresholds.write_text(thresholds.read_text().replace("0.9", "0.8", 1))
    status, message = stopped(capsys, "--workspace", str(tmp_path), "--port", "0")
    assert status == 1
    assert re.search(r"\nerror: .*thresholds.json: damaged; expected the digest that .*\n$", message)


def test_command_says_that_the_port_is_taken(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, message = stopped(capsys, "--workspace", str(workspace), "--port", port)
    assert status == 1
    assert message == (
        f"error: 127.0.0.1:{port}: Address already in use; expected a free address of this computer; "
        "give another --host or --port\n"
    )


def test_command_says_that_another_server_took_the_port_while_it_loaded(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        monkeypatch.setattr(app_module, "create_app", lambda *_: other.listen())
        status, message = stopped(capsys, "--workspace", str(workspace), "--port", port)
    assert status == 1
    assert message == (
        f"error: 127.0.0.1:{port}: Address already in use; expected a free address of this computer; "
        "give another --host or --port\n"
    )


def test_command_says_that_the_host_is_another(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, message = stopped(capsys, "--workspace", str(workspace), "--host", "192.0.2.1")  # RFC 5737
    assert status == 1
    assert re.fullmatch(r"error: 192.0.2.1:8000: .*; give another --host or --port\n", message)


@pytest.mark.parametrize("arguments", ["", "--workspace w --port 70000", "--workspace w extra"])
def test_wrong_usage_has_status_two(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    status, message = stopped(capsys, *arguments.split())
    assert status == 2
    assert message.startswith("Usage: shelfmark-serve")


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, serving.__main__; print(*(name.partition('.')[0] for name in sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"tensorflow", "keras", "numpy", "pandas", "fastapi", "uvicorn"} & set(process.stdout.split())


@pytest.fixture(scope="module")
def server(workspace: Path) -> Iterator[Server]:
    """The running command and its address."""
    command = [sys.executable, "-m", "serving", "--workspace", str(workspace), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(120, process.kill)
        limit.start()
        assert process.stderr is not None
        line_of = re.compile(r"\S+Z 2026-W47 is served at (http://127\.0\.0\.1:\d+)\n")
        try:
            address = next(found[1] for line in process.stderr if (found := line_of.fullmatch(line)))
            limit.cancel()
            yield process, address
        finally:
            limit.cancel()
            process.kill()


def test_server_decides_refuses_and_stops(server: Server, bundle: Bundle, engine: Engine) -> None:
    process, address = server
    photos = [photo(SURE), photo(2)]
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/healthz").json()["bundle"] == bundle.digest
        assert send(client, photos, product_id="p").json() == decided(bundle, engine, "p", photos)
        large = send(client, [bytes(65 << 20)])
        assert problem(large, 413) == TOO_LARGE.format(64)
        assert client.get("/healthz").json()["status"] == "ok"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert '"POST /v1/categorize HTTP/1.1" 413' in errors
    assert "Traceback" not in errors
