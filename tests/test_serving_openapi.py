"""What the service says of itself is true: OpenAPI and its examples, docs/serving.md, and schemathesis."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from catalogues import photo
from conftest import make_bundle
from corrected import adapter_of, store_of
from fastapi.testclient import TestClient
from service import client_of, images, state_of
from test_categorize import Saved
from test_extract import engines_by_hand

from models.decisions.adapted import ADAPTED_COLUMNS
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.categorizer import COLUMNS
from serving.form import MAX_PHOTOS
from serving.openapi import CORRECTION_EXAMPLE
from serving.schemas import Decision, Decisions, Problem
from serving.state import ServiceState

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Iterator[ServiceState]:
    """A service with a backbone of mean colours, and corrections."""
    path = tmp_path_factory.mktemp("bundle")
    tree = {"Mugs": "Kitchen", "Plates": "Kitchen", "Lamps": "Light"}
    make_bundle(path / "week", Saved(), threshold=0.25, scale=0.01, tree=tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "engines", lambda self, batches, store: engines_by_hand(Saved(), batches))
        bundle = open_bundle(path / "week")
        store = store_of(path / "W")
        state = state_of(replace(bundle, adapter=adapter_of(bundle.categorizer)), store, path / "W")
        yield state
        assert state.corrections
        state.corrections.close()
        store.close()


@pytest.fixture(scope="module")
def client(state: ServiceState) -> TestClient:
    return client_of(state)


@pytest.fixture(scope="module")
def address(state: ServiceState) -> Iterator[str]:
    """The service behind a server of its own."""
    app = client_of(state).app
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, loop="asyncio", http="h11"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the examples name."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    for number, name in enumerate(("front", "back", "lamp")):
        (tmp_path / f"{name}.jpg").write_bytes(photo(number))
    (tmp_path / "token.txt").write_text("secret\n")
    return tmp_path


# OpenAPI


def test_the_document_describes_decisions_and_every_error(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert tuple(Decision.model_fields) == (*COLUMNS, "photos", *ADAPTED_COLUMNS)
    for name, schema in document["components"]["schemas"].items():
        fields = schema.get("properties", {})
        assert all("description" in field or "$ref" in field for field in fields.values()), name
    assert set(document["paths"]) == {
        "/v1/categorize", "/v1/corrections", "/v1/corrections/{number}", "/v1/release", "/v1/taxonomy",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    categorize = document["paths"]["/v1/categorize"]["post"]
    assert set(categorize["responses"]) == {"200", "400", "413", "415", "422", "429", "503", "504"}
    problems = {
        status: response
        for operations in document["paths"].values()
        for operation in operations.values()
        for status, response in operation["responses"].items()
        if status >= "400"
    }
    for response in problems.values():
        assert list(response["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in json.dumps(document)
    form = categorize["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"images", "product_id", "seller"}
    assert form["properties"]["images"]["maxItems"] == MAX_PHOTOS


def test_the_examples_of_the_document_are_sent_and_received(
    client: TestClient, address: str, folder: Path
) -> None:
    """Its commands with curl, each as it stands there, at this service; and what it says they return."""
    categorize = client.get("/openapi.json").json()["paths"]["/v1/categorize"]["post"]
    commands = re.findall(r"curl .*", categorize["description"])
    examples = categorize["responses"]["200"]["content"]["application/json"]["examples"]
    one, several = (run_curl(command, address, folder) for command in commands)
    assert list(one) == list(examples["one"]["value"])
    assert list(several) == list(examples["several"]["value"])
    assert list(several["decisions"][0]) == list(one)
    for model, example in ((Decision, examples["one"]), (Decisions, examples["several"])):
        value = model.model_validate(example["value"], strict=True).model_dump(exclude_unset=True)
        assert value == example["value"]


def run_curl(command: str, address: str, folder: Path) -> Any:
    """The JSON that a command of a document prints, at another address."""
    command = command.replace("http://127.0.0.1:8000", address).replace("curl ", "curl -sS --fail-with-body ")
    made = subprocess.run(["sh", "-ec", command], cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return json.loads(made.stdout)


def test_the_example_of_a_correction_is_sent(client: TestClient) -> None:
    as_json = client.post("/v1/corrections", json=CORRECTION_EXAMPLE)
    as_form = client.post("/v1/corrections", data=CORRECTION_EXAMPLE, files=images(photo(1)))
    assert (as_json.status_code, as_form.status_code) == (201, 201)


# docs/serving.md


def test_the_page_names_every_figure(client: TestClient) -> None:
    text = client.get("/metrics").text
    names = set(re.findall(r"^# TYPE (shelfmark_\w+) ", text, re.MULTILINE))
    assert "_created" not in text
    named = set(re.findall(r"`(shelfmark_\w+)`", PAGE))
    assert names == named


def test_the_problem_on_the_page_is_one(client: TestClient) -> None:
    block = next(
        block for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) if '"status": 413' in block
    )
    response = client.post("/v1/categorize", files=images(*[photo(1)] * 17))
    assert response.json() == json.loads(block) == Problem.model_validate_json(block).model_dump()


def test_the_examples_of_the_page_work(address: str, folder: Path) -> None:
    """Its commands with curl, and its program in Python, each as it stands there, at this service."""
    shell = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "curl" in block]
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found = [run_curl(block, address, folder) for block in shell]
    assert [one.get("product_id") for one in found] == ["mug-7", None, None]
    assert [one["product_id"] for one in found[1]["decisions"]] == ["mug-7", "lamp-2"]
    (folder / "client.py").write_text(program.replace("http://127.0.0.1:8000", address))
    call = [sys.executable, "client.py"]
    made = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True)
    rows = [line.split() for line in made.stdout.splitlines()]
    decided = [(one["product_id"], one["status"]) for one in found[1]["decisions"]]
    assert [(row[0], row[1]) for row in rows] == decided


# schemathesis


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_schemathesis_finds_nothing(address: str, tmp_path: Path) -> None:
    """Requests that the document allows and requests that it does not, with every check."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file", str(ROOT / "tests" / "schemathesis.toml"), "run", f"{address}/openapi.json",
        "--checks", "all", "--max-examples", os.environ.get("SHELFMARK_EXAMPLES", "50"),
        "--seed", "7", "--generation-deterministic", "--no-color",
    ]  # fmt: skip
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-8_000:] + made.stderr[-2_000:]
