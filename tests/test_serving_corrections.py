"""Corrections over HTTP: made, listed, undone; from where a product is known; what is refused, and how."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import HTML, photo
from conftest import make_bundle
from corrected import adapter_of, rules_of, store_of
from fastapi.testclient import TestClient
from service import SharedRoom, client_of, images, problem, serving, state_of
from test_categorize import Saved
from test_extract import engines_by_hand

from features.engines.backbones import load_backbone
from features.errors import ShelfmarkError
from features.storage.artifact import begin, partial_of, seal
from features.storage.store import Store, digest_array
from models.corrections.correction import Correction
from models.corrections.store import Corrections
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.categorizer import COLUMNS
from serving import corrections as service_module
from serving.corrections import open_store
from serving.decider import RecentProducts, SeenProduct

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
TEXTS = {"product_id": "mug-7", "seller": "ann", "category": "milk"}


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone of mean colours."""
    monkeypatch.setattr(Bundle, "engines", lambda self, batches, store: engines_by_hand(Saved(), batches))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "week"
    make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    opened = open_bundle(path)
    return replace(opened, adapter=adapter_of(opened.categorizer))


@pytest.fixture
def corrections(tmp_path: Path) -> Iterator[Corrections]:
    opened = store_of(tmp_path / "W")
    yield opened
    opened.close()


@pytest.fixture
def client(bundle: Bundle, corrections: Corrections, tmp_path: Path, light: None) -> TestClient:
    return client_of(state_of(bundle, corrections, tmp_path / "W"))


# From where a product is known


def test_photos_sent_along_say_what_the_product_looks_like(
    client: TestClient, corrections: Corrections
) -> None:
    response = client.post("/v1/corrections", data=TEXTS, files=images(photo(1), HTML, photo(1), photo(2)))
    assert response.status_code == 201
    assert response.headers["X-Shelfmark-Refused"] == "1:not_an_image"
    made = response.json()
    assert made == {"id": made["id"], "state": "new", **TEXTS, "vector": "photos", "reason": None}
    [row] = corrections.export("ann")
    assert (row["release"], row["fingerprint"], len(row["images"])) == ("week", "colours-8", 2)  # type: ignore[arg-type]
    assert row["base"] is not None


def test_a_product_that_was_decided_about_of_late_needs_no_photos(
    client: TestClient, corrections: Corrections, bundle: Bundle
) -> None:
    form = {"product_id": "mug-7"}
    assert client.post("/v1/categorize", data=form, files=images(photo(1))).status_code == 200
    assert client.post("/v1/corrections", json=TEXTS).json()["vector"] == "recent"
    sent = client.post("/v1/corrections", data=TEXTS | {"seller": "bob"}, files=images(photo(1)))
    assert sent.json()["vector"] == "photos"
    head = bundle.categorizer.predictor.model
    ann, bob = (corrections.history(name, head).vectors for name in ("ann", "bob"))
    assert ann.shape == (1, 8) and (ann == bob).all()


@pytest.mark.parametrize("known", ["run", "batch"])
def test_a_product_of_a_run_or_a_batch_is_known_from_the_store(
    client: TestClient, corrections: Corrections, tmp_path: Path, known: str
) -> None:
    workspace = tmp_path / "W"
    digests = np.arange(64, dtype=np.uint8).reshape(2, 32)
    rows = np.arange(24, dtype=np.float16).reshape(2, 12)
    Store(workspace / "store" / "colours-8").append(digests, rows, "by hand")
    table = pa.table({"product_id": ["a", "mug-7"], "image_digest": digest_array(digests)})
    if known == "run":
        folder = workspace / "runs" / "week" / "bottlenecks"
        pq.write_table(table, begin(partial_of(folder), {}) / "index.parquet")
        seal(folder, kind="bottlenecks", version=1, made_from={}, summary={})
    else:
        (workspace / "categorize" / "x").mkdir(parents=True)
        pq.write_table(table, workspace / "categorize" / "x" / "images.parquet")
    made = client.post("/v1/corrections", json=TEXTS).json()
    assert (made["vector"], made["reason"]) == ("store", None)
    [row] = corrections.export("ann")
    assert row["images"] == [digests[1].tobytes().hex()]
    for file in (workspace / "store" / "colours-8").glob("*"):
        file.unlink()
    gone = client.post("/v1/corrections", json=TEXTS | {"product_id": "a"}).json()
    assert gone["vector"] is None and "the store has no bottlenecks of the product any more" in gone["reason"]


def test_a_correction_of_an_unknown_product_is_kept_as_a_label_and_says_so(
    client: TestClient, corrections: Corrections
) -> None:
    response = client.post("/v1/corrections", data=TEXTS, files=images(HTML))
    made = response.json()
    assert (response.status_code, made["vector"]) == (201, None)
    assert "no decision of this service, no run and no batch of late knows the product" in made["reason"]
    assert corrections.labels()["product_id"].tolist() == ["mug-7"]
    found = client.post("/v1/categorize", data={"seller": "ann"}, files=images(photo(1))).json()
    assert (found["adapted"], found["corrections"]) == (False, 1)


def test_what_was_decided_of_late_is_forgotten_beyond_a_number_of_bytes() -> None:
    recent = RecentProducts(budget_bytes=100)
    for name in ("a", "b", "c", "a", "d"):
        recent.put(name, SeenProduct((), np.zeros((1, 16), np.float16)))  # 32 bytes
    assert [name for name in "abcd" if recent.get(name)] == ["a", "c", "d"]
    recent.put("large", SeenProduct((), np.zeros((9, 16), np.float16)))
    assert not any(map(recent.get, ("a", "c", "d", "large")))


# State


def test_the_same_again_changes_nothing_and_another_category_replaces(client: TestClient) -> None:
    first, same = (client.post("/v1/corrections", json=TEXTS).json() for _ in range(2))
    other = client.post("/v1/corrections", json=TEXTS | {"category": "oats"}).json()
    assert [one["state"] for one in (first, same, other)] == ["new", "same", "replaced"]
    assert first["id"] == same["id"] < other["id"]


def test_the_same_again_without_photos_says_that_what_was_seen_is_kept(
    client: TestClient, corrections: Corrections, bundle: Bundle
) -> None:
    first = client.post("/v1/corrections", data=TEXTS, files=images(photo(1))).json()
    same = client.post("/v1/corrections", json=TEXTS).json()
    assert same == first | {"state": "same", "vector": "kept", "reason": None}
    assert len(corrections.history("ann", bundle.categorizer.predictor.model).vectors) == 1
    corrections.forget_vectors([])
    again = client.post("/v1/corrections", json=TEXTS).json()
    assert (again["state"], again["vector"]) == ("same", None)
    assert again["reason"].startswith("no photo that can be read was sent along")


def test_corrections_are_listed_page_by_page_the_newest_first(client: TestClient) -> None:
    ids = []
    for number in range(5):
        more = {"product_id": f"mug-{number}", "who": "Ann", "comment": "it is milk"}
        ids.append(client.post("/v1/corrections", json=TEXTS | more).json()["id"])
    client.post("/v1/corrections", json=TEXTS | {"seller": "bob"})
    assert client.delete(f"/v1/corrections/{ids[3]}").json() == {"id": ids[3], "state": "undone"}
    seen, after = list[dict[str, Any]](), dict[str, int]()
    while True:
        page = client.get("/v1/corrections", params={"seller": " ann ", "limit": 2} | after).json()
        assert (page["seller"], page["in_use"], page["flagged"], page["set_aside"]) == ("ann", 4, None, None)
        seen += page["corrections"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert [one["id"] for one in seen] == ids[::-1]
    assert [one["because"] for one in seen] == [None, "undone", None, None, None]
    assert seen[0] | {"when": "", "id": 0} == {
        "id": 0, "product_id": "mug-4", "category": "milk", "base_category": None, "who": "Ann", "when": "",
        "comment": "it is milk", "release": "week", "ended": None, "because": None,
    }  # fmt: skip
    assert client.get("/v1/corrections", params={"seller": "nobody"}).json()["corrections"] == []


def test_an_undone_correction_changes_no_decision_any_more(client: TestClient) -> None:
    def decision() -> dict[str, Any]:
        form = {"seller": "ann"}
        found: dict[str, Any] = client.post("/v1/categorize", data=form, files=images(photo(1))).json()
        return found

    before, ids = decision(), []
    category = "milk" if before["category"] != "milk" else "oats"
    for number in range(3):
        form = TEXTS | {"product_id": str(number), "category": category}
        ids.append(client.post("/v1/corrections", data=form, files=images(photo(1))).json()["id"])
    assert (decision()["category"], decision()["corrections"]) == (category, 3)
    for number in ids:
        client.delete(f"/v1/corrections/{number}")
    assert decision() == before


def test_a_correction_by_another_process_counts_at_once(
    client: TestClient, bundle: Bundle, tmp_path: Path
) -> None:
    other = store_of(tmp_path / "W")
    form = {"seller": "ann"}
    assert client.post("/v1/categorize", data=form, files=images(photo(1))).json()["corrections"] == 0
    other.add([(Correction("ann", "x", "milk"), None)])
    assert client.post("/v1/categorize", data=form, files=images(photo(1))).json()["corrections"] == 1
    other.close()


# The decision


def test_corrections_that_another_release_saw_are_encoded_after_the_start(
    bundle: Bundle, corrections: Corrections, tmp_path: Path, light: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = bundle.categorizer.predictor.model
    with serving(bundle, corrections, tmp_path / "W") as client:
        for number in range(3):
            sent = TEXTS | {"product_id": f"p{number}"}
            assert client.post("/v1/corrections", data=sent, files=images(photo(number))).status_code == 201
    wanted = corrections.history("ann", head).vectors.tolist()
    assert len(wanted) == 3
    corrections.forget_vectors([])  # as a release with another head has learnt them
    assert corrections.history("ann", head).missing == 3
    goes_on, real, threads = threading.Event(), Corrections.put_vectors, list[str]()

    def slow(self: Corrections, rows: Any) -> None:
        threads.append(threading.current_thread().name)
        goes_on.wait(30)
        real(self, rows)

    monkeypatch.setattr(Corrections, "put_vectors", slow)
    with serving(bundle, corrections, tmp_path / "W") as client:  # it has begun, and waits for nothing
        form = {"seller": "ann"}
        found = client.post("/v1/categorize", data=form, files=images(photo(0))).json()
        assert (found["adapted"], found["corrections"]) == (False, 3)
        goes_on.set()
        until = time.monotonic() + 30
        while corrections.history("ann", head).missing and time.monotonic() < until:
            time.sleep(0.01)
        assert corrections.history("ann", head).vectors.tolist() == wanted
        found = client.post("/v1/categorize", data=form, files=images(photo(0))).json()
        assert (found["category"], found["adapted"]) == ("milk", True)
    assert threads == ["encoding"]
    assert not [one for one in threading.enumerate() if one.name == "encoding"]


def test_only_a_request_with_a_seller_gets_the_three_fields(client: TestClient, bundle: Bundle) -> None:
    plain = client_of(state_of(replace(bundle, adapter=None)))
    requests: list[dict[str, str]] = [{}, {"product_id": "x"}, {"seller": ""}, {"seller": "  "}]
    for form in requests:
        texts = {
            one.post("/v1/categorize", data=form, files=images(photo(1))).text for one in (client, plain)
        }
        assert len(texts) == 1 and list(json.loads(texts.pop())) == [*COLUMNS, "photos"]
    for one in (client, plain):
        for data in (photo(1), HTML):
            found = one.post("/v1/categorize", data={"seller": "ann"}, files=images(data)).json()
            assert list(found)[len(COLUMNS) + 1 :] == ["adapted", "base_category", "corrections"]
            assert list(found.values())[len(COLUMNS) + 1 :] == [False, None, 0]


# Refused


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"category": "mlik"}, 422, "category 'mlik': not of release week; .*; did you mean 'milk'?"),
        ({"category": "€§$%"}, 422, "not of release week; .*; GET /v1/taxonomy lists them"),
        ({"category": ""}, 422, "category: empty; expected JSON or multipart/form-data with the texts"),
        ({"seller": " "}, 422, "seller: empty; "),
        ({"product_id": None}, 422, "product_id: missing; "),
        ({"product_id": 7}, 422, "product_id: 7, not a text; "),
        ({"who": ["a"]}, 422, 'who: \\["a"\\], not a text; '),
        ({"sellar": "ann"}, 422, "'sellar': no field of a correction; "),
        ({"seller": "a\0b"}, 422, "seller: holds NUL or half a character; "),
        ({"seller": "a\x1b[31mb"}, 422, "seller: holds control characters, such as a new line; "),
        ({"product_id": "a\nb"}, 422, "product_id: holds control characters"),
        ({"comment": "\ud800"}, 422, "comment: holds NUL or half a character"),
        ({"seller": "é" * 501}, 413, "seller: more than 1,000 bytes; expected less; give a shorter one"),
        ({"comment": "x" * 10_001}, 413, "comment: more than 10,000 bytes; "),
        ({"comment": "x" * 2**17}, 413, "JSON of more than 128 KiB; "),
    ],
)
def test_a_wrong_field_is_named(
    client: TestClient, corrections: Corrections, fields: dict[str, Any], status: int, message: str
) -> None:
    data = json.dumps(TEXTS | fields).encode()
    response = client.post("/v1/corrections", content=data, headers={"Content-Type": "application/json"})
    assert re.search(message, problem(response, status)), response.text
    assert not list(corrections.export())


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({}, 415, "neither JSON nor a form; "),
        ({"data": TEXTS}, 415, "neither JSON nor a form; "),  # application/x-www-form-urlencoded
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "damaged JSON: "),
        ({"content": b"\xff", "headers": {"Content-Type": "application/json"}}, 400, "damaged JSON: "),
        ({"content": b"[" * 60_000, "headers": {"Content-Type": "application/json"}}, 400, "damaged JSON: "),
        ({"json": ["a"]}, 422, "JSON that is no object; "),
        ({"data": TEXTS | {"seller": "x" * 1001}, "files": images(b"x")}, 413, "seller: more than 1,000"),
        ({"data": TEXTS | {"sellar": "x"}, "files": images(b"x")}, 422, "'sellar': no field of this form; "),
        ({"data": {"seller": "ann"}, "files": images(b"x")}, 422, "product_id: missing; "),
        (
            {"data": TEXTS, "files": images(*[photo(1)] * 17)},
            413,
            "more than 16 photos of a product; expected 16",
        ),
        ({"files": [("seller", ("ann.txt", b"ann"))]}, 422, "seller: a file, not a text; "),
    ],
)
def test_a_body_that_is_none_is_refused(
    client: TestClient, request_: dict[str, Any], status: int, message: str
) -> None:
    assert problem(client.post("/v1/corrections", **request_), status).startswith(message)


def test_texts_of_a_decision_have_limits_too(client: TestClient) -> None:
    for name, text, status in (
        ("seller", "x" * 1001, 413), ("seller", "a\0", 422), ("product_id", "a\0", 422),
        ("product_id", "a\x1b[31mb", 422), ("product_id", "a\n", 422),
    ):  # fmt: skip
        response = client.post("/v1/categorize", data={name: text}, files=images(photo(1)))
        assert problem(response, status).startswith(f"{name}: ")


def test_a_correction_may_ask_for_less_time(client: TestClient, corrections: Corrections) -> None:
    for text in ("0", "soon", "31"):
        response = client.post("/v1/corrections", json=TEXTS, headers={"X-Request-Timeout": text})
        assert problem(response, 422).startswith(
            f"X-Request-Timeout: '{text}'; expected seconds, 0.001 to 30"
        )
    given: list[float] = []
    submit = SharedRoom.submit

    def noting(self: Any, products: Any, timeout_s: float, served: Any = None) -> Any:
        given.append(timeout_s)
        return submit(self, products, timeout_s, served)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedRoom, "submit", noting)
        for headers in ({"X-Request-Timeout": "20.5"}, {}):
            client.post("/v1/corrections", data=TEXTS, files=images(photo(1)), headers=headers)
    assert given == [20.5, 30.0]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "?seller=", 422, "seller: empty; expected ?seller=NAME; "),
        ("GET", "", 422, "seller: Field required; "),
        ("GET", "?seller=ann&limit=0", 422, "limit: Input should be greater"),
        ("GET", "?seller=ann&limit=many", 422, "limit: Input should be a valid integer"),
        ("GET", "?seller=ann&after=99999999999999999999", 422, "after: Input should be less"),
        ("DELETE", "/7", 404, "correction 7: not in use; "),
        ("DELETE", "/seven", 422, "number: Input should be a valid integer"),
    ],
)
def test_wrong_parameters_are_one_line(
    client: TestClient, method: str, path: str, status: int, message: str
) -> None:
    assert problem(client.request(method, f"/v1/corrections{path}"), status).startswith(message)


def test_without_a_store_or_an_adapter_nothing_is_made(
    bundle: Bundle, corrections: Corrections, tmp_path: Path
) -> None:
    for one in (bundle, replace(bundle, adapter=None)):
        client = client_of(state_of(one))
        for response in (
            client.post("/v1/corrections", json=TEXTS), client.delete("/v1/corrections/1"),
            client.get("/v1/corrections?seller=ann"),
        ):  # fmt: skip
            assert problem(response, 409).startswith(
                "this service keeps no corrections; expected a workspace"
            )
    client = client_of(state_of(replace(bundle, adapter=None), corrections, tmp_path))
    assert "does not learn from corrections; expected" in problem(
        client.post("/v1/corrections", json=TEXTS), 409
    )
    assert client.get("/v1/corrections?seller=ann").json()["in_use"] == 0


def test_a_store_that_does_not_answer_is_503_and_only_the_log_says_where_it_is(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Corrections, *_: Any) -> Any:
        raise ShelfmarkError(f"{self.shown}: is locked; expected the lock; try again")

    for name in ("add", "undo", "page", "revision", "history"):
        monkeypatch.setattr(Corrections, name, fails)
    for response in (
        client.post("/v1/corrections", json=TEXTS), client.delete("/v1/corrections/1"),
        client.get("/v1/corrections?seller=ann"),
        client.post("/v1/categorize", data={"seller": "ann"}, files=images(photo(1))),
    ):  # fmt: skip
        assert problem(response, 503) == "the store of corrections: is locked; expected the lock; try again"
    assert caplog.text.count(f"{tmp_path}/W/corrections.sqlite: is locked") == 4

    def no_store(*_: Any) -> Any:
        raise ShelfmarkError(f"{tmp_path}/W/store/x: damaged; expected shards; remove it")

    monkeypatch.setattr("serving.stored.stored_product", no_store)
    response = client.post("/v1/corrections", json=TEXTS | {"product_id": "another"})
    assert problem(response, 503) == "the workspace/store/x: damaged; expected shards; remove it"
    assert client.post("/v1/categorize", files=images(photo(1))).status_code == 200


def test_a_file_that_was_moved_away_is_503_and_takes_nothing(client: TestClient, tmp_path: Path) -> None:
    assert client.post("/v1/corrections", json=TEXTS).status_code == 201
    (tmp_path / "W" / "corrections.sqlite").rename(tmp_path / "away.sqlite")
    text = problem(client.post("/v1/corrections", json=TEXTS | {"product_id": "b"}), 503)
    assert text.startswith("the store of corrections: is not the file that was opened; expected it to stay")
    assert str(tmp_path) not in text


def test_decisions_do_not_wait_for_a_slow_store(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on, add = threading.Event(), threading.Event(), Corrections.add

    def slowly(*arguments: Any) -> Any:
        started.set()
        assert go_on.wait(30)
        return add(*arguments)

    monkeypatch.setattr(Corrections, "add", slowly)
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(client.post, "/v1/corrections", json=TEXTS)
        assert started.wait(30)
        assert client.post("/v1/categorize", data={"seller": "ann"}, files=images(photo(1))).is_success
        assert client.get("/v1/corrections?seller=ann").is_success and not work.done()
        go_on.set()
        assert work.result(30).status_code == 201


def test_openapi_describes_corrections(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    post = schema["paths"]["/v1/corrections"]["post"]
    for kind in ("application/json", "multipart/form-data"):
        body = post["requestBody"]["content"][kind]["schema"]
        assert body["required"] == ["product_id", "seller", "category"]
        assert all("description" in one for one in body["properties"].values())
    assert set(post["responses"]) == {"201", "400", "409", "413", "415", "422", "429", "503", "504"}
    get = schema["paths"]["/v1/corrections"]["get"]
    assert {one["name"] for one in get["parameters"]} == {"seller", "limit", "after"}
    assert set(get["responses"]) == {"200", "409", "413", "422", "503"}
    delete = schema["paths"]["/v1/corrections/{number}"]["delete"]
    assert set(delete["responses"]) == {"200", "404", "409", "422", "503"}
    for name in ("CorrectionMade", "CorrectionPage", "CorrectionRow", "CorrectionUndone"):
        fields = schema["components"]["schemas"][name]["properties"]
        assert all("description" in one for one in fields.values()), name
    for path in (post, get, delete):
        for response in path["responses"].values():
            assert "HTTPValidationError" not in json.dumps(response)


# The store of a service


def test_a_file_is_made_only_where_corrections_can_count(tmp_path: Path) -> None:
    assert open_store(tmp_path, None, has_adapter=False) is None
    assert not list(tmp_path.iterdir())
    made = open_store(tmp_path, None, has_adapter=True)
    assert made is not None
    made.close()
    assert (tmp_path / "corrections.sqlite").is_file()
    again = open_store(tmp_path, None, has_adapter=False)
    assert again is not None
    again.close()
    other = open_store(tmp_path, f"sqlite:///{tmp_path / 'other.sqlite'}", has_adapter=False)
    assert other is not None
    other.close()
    assert (tmp_path / "other.sqlite").is_file()
    with pytest.raises(ShelfmarkError, match=r"mysql://host: no database for corrections; expected"):
        open_store(tmp_path, "mysql://host", has_adapter=True)


def test_a_workspace_that_cannot_be_written_has_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module.os, "access", lambda *_: False)
    assert open_store(tmp_path, None, has_adapter=True) is None


def test_the_command_learns_and_keeps_what_it_has_acknowledged(drawn_weights: Path, tmp_path: Path) -> None:
    releases = tmp_path / "W" / "releases"
    backbone = load_backbone("mobilenet", str(drawn_weights), 32)
    make_bundle(releases / "first", backbone, threshold=0.3, sellers=rules_of)
    (releases / "current").symlink_to("first")
    url = f"sqlite:///{tmp_path / 'shop.sqlite'}"
    command = [sys.executable, "-m", "serving", "--workspace", str(tmp_path / "W"), "--port", "0"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "SHELFMARK_CORRECTIONS": url},
    ) as process:  # fmt: skip
        limit = threading.Timer(120, process.kill)
        limit.start()
        assert process.stderr is not None
        try:
            line_of = re.compile(r".* first is served at (http://127\.0\.0\.1:\d+)\n")
            address = next(found[1] for line in process.stderr if (found := line_of.fullmatch(line)))
            with httpx.Client(base_url=address, timeout=60) as client:
                form = {"product_id": "mug-7", "seller": "ann"}
                first = client.post("/v1/categorize", data=form, files=images(photo(1))).json()
                category = "milk" if first["category"] != "milk" else "oats"
                made = client.post("/v1/corrections", json=form | {"category": category}).json()
                again = client.post("/v1/categorize", data=form, files=images(photo(1))).json()
        finally:
            limit.cancel()
            process.send_signal(signal.SIGKILL)
    assert (made["state"], made["vector"]) == ("new", "recent")
    assert (first["corrections"], again["corrections"], again["base_category"]) == (0, 1, first["category"])
    kept = Corrections.open(url)
    assert [(row["id"], row["category"]) for row in kept.export("ann")] == [(made["id"], category)]
    kept.close()
    assert not (tmp_path / "W" / "corrections.sqlite").exists()
