"""The clients of docs/clients, in Python and with curl: against a service, and answers that it seldom has."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from catalogues import HTML, photo
from test_serving_products import bundle, state  # noqa: F401  # fixtures

from serving.app import create_app
from serving.metrics import Metrics
from serving.state import ServiceState

CLIENTS = Path(__file__).parents[1] / "docs" / "clients"
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def client() -> Iterator[ModuleType]:
    sys.path.insert(0, str(CLIENTS))
    try:
        import client as found
    finally:
        sys.path.pop(0)
    yield found
    del sys.modules["client"]


@pytest.fixture(scope="module")
def address(state: ServiceState) -> Iterator[str]:  # noqa: F811
    """Of a service on a port of this computer."""
    config = uvicorn.Config(
        create_app(state, Metrics(state)), port=0, log_config=None, loop="asyncio", http="h11"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield "http://{}:{}".format(*server.servers[0].sockets[0].getsockname()[:2])
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three photos, and a file that is none."""
    files = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(photo(number) if number < 3 else HTML)
    return files


@pytest.fixture
def waits(client: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the client, which take no time, but count as if they did."""
    slept: list[float] = []
    start = client.time.monotonic
    monkeypatch.setattr(client.time, "sleep", slept.append)
    monkeypatch.setattr(client.time, "monotonic", lambda: start() + sum(slept))
    monkeypatch.setattr(client.random, "uniform", lambda low, high: 1.0)
    return slept


def behind(answer: Answer) -> httpx.Client:
    return httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))


def answers(*found: Any) -> tuple[Answer, list[httpx.Request]]:
    """Says one after the other: a response, or an error that is raised; and the requests that came."""
    left, requests = list(found), []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now

    return answer, requests


def decisions(count: int) -> httpx.Response:
    return httpx.Response(200, json={"decisions": [{"status": "accepted"}] * count, "release": "first"})


def test_the_python_client_decides_about_more_products_than_a_request_may_have(client, address, photos):
    products = [client.Product(f"p{number}", photos[: 1 + number % 3]) for number in range(70)]
    with httpx.Client(base_url=address) as http:
        found = client.categorize(http, [*products, client.Product("none", photos[3:])])
    assert [decision["product_id"] for decision in found] == [*(f"p{number}" for number in range(70)), "none"]
    assert [len(decision["photos"]) for decision in found[:6]] == [1, 2, 3, 1, 2, 3]
    assert (found[70]["status"], found[70]["photos"][0]["refused"]) == ("unreadable", "not_an_image")
    assert {decision["release"] for decision in found} == {"week"}
    assert found[0] == {**found[3], "product_id": "p0"}  # the same photo


def test_the_command_prints_a_decision_a_line_or_one_line_of_an_error(address, photos):
    call = [sys.executable, str(CLIENTS / "client.py"), address]
    done = subprocess.run(
        [*call, f"mug={photos[0]},{photos[1]}", f"lamp={photos[2]}"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(decision["product_id"], len(decision["photos"])) for decision in found] == [
        ("mug", 2),
        ("lamp", 1),
    ]
    done = subprocess.run(
        [*call, f"mug={photos[0].parent}/none.jpg"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "given", [[], ["http://x"], ["http://x", "mug"], ["http://x", "mug=a", "=b"]], ids=str
)
def test_wrong_arguments_are_answered_with_the_usage(given):
    for command in ([sys.executable, CLIENTS / "client.py"], ["sh", CLIENTS / "curl.sh"]):
        arguments = given[:2] if command[0] == "sh" else given
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1


def test_curl_asks_for_one_product_for_two_and_for_the_release(address, photos):
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    call = ["sh", str(CLIENTS / "curl.sh"), address, str(photos[0]), str(photos[1])]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stderr) == (0, "")
    one, two, release, ready = map(json.loads, done.stdout.splitlines())
    assert (one["product_id"], len(one["photos"])) == ("mug-1", 2)
    assert [decision["product_id"] for decision in two["decisions"]] == ["mug-1", "mug-2"]
    assert release["release"] == ready["release"] == "week"


def test_a_full_service_is_asked_again_after_the_time_that_it_says(client, photos, waits):
    full = httpx.Response(429, headers={"Retry-After": "3"}, json={"detail": "full"})
    answer, requests = answers(full, httpx.Response(503), httpx.ConnectError("gone"), decisions(1))
    found = client.categorize(behind(answer), [client.Product("p", photos[:1])], deadline_s=25)
    assert found == [{"status": "accepted"}]
    assert waits == [3, 0.5, 1.0]  # the service's own wait; else twice the one before
    left = [float(request.headers["X-Request-Timeout"]) for request in requests]
    assert left == sorted(left, reverse=True) and left[0] <= 25 and left[-1] <= 25 - sum(waits)
    assert {
        request.content for request in requests if b"images.0" in request.content
    }  # the photos go each time


def test_nothing_is_asked_when_the_time_is_over(client, photos, waits):
    answer, requests = answers(httpx.Response(503, headers={"Retry-After": "40"}))
    with pytest.raises(TimeoutError, match="no decision within the time; expected"):
        client.categorize(behind(answer), [client.Product("p", photos[:1])], deadline_s=60)
    assert len(requests) == 2
    assert sum(waits) == pytest.approx(60, abs=5)


def test_what_the_service_refuses_is_said_in_its_words_and_not_repeated(client, photos, waits):
    problem = httpx.Response(413, json={"detail": "more than 16 photos; expected 16; leave some out"})
    for response, words in [
        (problem, "413: more than 16 photos; expected 16; leave some out"),
        (httpx.Response(502, text="<html>Bad Gateway"), "502: <html>Bad Gateway"),
    ]:
        answer, requests = answers(response)
        with pytest.raises(client.Refused, match=words):
            client.categorize(behind(answer), [client.Product("p", photos[:1])])
        assert (len(requests), waits) == (1, [])


def test_products_of_many_bytes_go_in_several_requests(client, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "MAX_BYTES", 1000)
    file = tmp_path / "a.jpg"
    file.write_bytes(bytes(400))
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sizes.append(request.read().count(b'name="product_id.'))
        return decisions(sizes[-1])

    products = [client.Product(str(number), [file]) for number in range(5)]
    assert len(client.categorize(behind(answer), products)) == 5
    assert sizes == [2, 2, 1]


def test_the_token_of_the_environment_is_sent(client, photos, monkeypatch, capsys):
    answer, requests = answers(decisions(1))
    made = httpx.Client
    monkeypatch.setattr(
        client.httpx, "Client", lambda **options: made(transport=httpx.MockTransport(answer), **options)
    )
    monkeypatch.setenv("SHELFMARK_TOKEN", "secret")
    assert client.main(["http://service", f"mug={photos[0]}"]) == 0
    assert requests[0].headers["Authorization"] == "Bearer secret"
    assert json.loads(capsys.readouterr().out) == {"status": "accepted"}
