"""Switching the release of a running service, and ending it under load; on bundles with drawn weights."""

import gc
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import conftest
import httpx
import keras
import pytest
from fastapi.testclient import TestClient
from photos_alone import categorize_photos
from test_serving import TREE, photo

from features.engines.backbones import load_backbone, start_tensorflow
from features.errors import ShelfmarkError
from features.images.refusal import LIMITS
from features.storage.artifact import file_digest
from features.views import WHOLE
from models.decisions.bundle import VERSION, Bundle, open_bundle
from models.decisions.releases import put_into_service, take_out_of_service
from serving import watcher as watching
from serving.app import create_app
from serving.metrics import Metrics
from serving.room import Product, Room, RoomLimits
from serving.served import Served
from serving.state import ServiceState
from serving.watcher import ReleaseWatcher

ROOT = Path(__file__).parents[1]
PHOTOS = [photo(number) for number in range(4)]
Answers = dict[str, list[dict[str, Any]]]  # release → the decision about each of PHOTOS


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases a, b and c with one backbone and heads of their own, and d with another backbone."""
    start_tensorflow()
    path = tmp_path_factory.mktemp("shop")
    backbones = []
    for number in range(2):
        weights = path / f"{number}.weights.h5"
        conftest.drawn_backbone(number).save_weights(weights)
        backbones.append(load_backbone("mobilenet", str(weights), 32))
    for name, seed in {"a": 5, "b": 6, "c": 7, "d": 8}.items():
        backbone = backbones[name == "d"]
        keras.utils.set_random_seed(seed)
        conftest.make_bundle(path / "releases" / name, backbone, 0.7, tree=TREE, hidden=(16, 8), scale=500.0)
    (path / "releases" / "current").symlink_to("a")
    return path


@pytest.fixture(scope="module")
def answers(workspace: Path, first: Served) -> Answers:
    """What each release decides, without the service."""
    found: Answers = {}
    for name in "abc":
        bundle = open_bundle(workspace / "releases" / name)
        tables = [
            categorize_photos(
                bundle.categorizer, {WHOLE: first.extractor.networks[WHOLE].engines[1]}, "p", [one], LIMITS
            )[0]
            for one in PHOTOS
        ]
        found[name] = [json.loads(table.to_json(orient="records"))[0] for table in tables]
    assert all(len({found[name][at]["confidence"] for name in found}) == 3 for at in range(len(PHOTOS)))
    return found


@pytest.fixture(scope="module")
def first(workspace: Path) -> Served:
    return Served.of(open_bundle(workspace / "releases" / "a"), None)


class Service:
    """The app over a room, and a watcher that looks when it is called."""

    def __init__(self, workspace: Path, first: Served) -> None:
        self.releases = workspace / "releases"
        put_into_service(self.releases, "a")
        self.state = ServiceState()
        self.room = Room(first, RoomLimits(processes=1))
        self.state.room, self.state.ready = self.room, True
        self.watcher = ReleaseWatcher(workspace, self.room, self.state, None)
        self.client = TestClient(create_app(self.state, Metrics(self.state)))

    def move_to(self, name: str) -> None:
        """Moves releases/current, and looks."""
        put_into_service(self.releases, name)
        self.watcher.look()

    def decide(self, at: int) -> dict[str, Any]:
        """The decision about one of PHOTOS."""
        response = self.client.post(
            "/v1/categorize", files=[("images", PHOTOS[at])], data={"product_id": "p"}
        )
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        assert found.pop("photos") == [{"index": 0, "refused": None, "detail": None}]
        return found

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz."""
        found: dict[str, Any] = self.client.get("/readyz").json()
        return found

    def figures(self) -> str:
        """The body of /metrics."""
        return self.client.get("/metrics").text


@pytest.fixture
def service(workspace: Path, first: Served) -> Iterator[Service]:
    one = Service(workspace, first)
    try:
        yield one
    finally:
        one.room.close()


@pytest.fixture
def spare(workspace: Path) -> Iterator[Path]:
    """A copy of release b, that a test may damage."""
    path = workspace / "releases" / "spare"
    shutil.copytree(workspace / "releases" / "b", path)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def close_to(expected: dict[str, Any]) -> dict[str, Any]:
    """A decision whose numbers may differ as those of another batch size do."""
    numbers = {key: pytest.approx(expected[key], abs=1e-3) for key in ("confidence", "top_probabilities")}
    return expected | numbers


# Releases that can be used


def test_every_answer_during_switches_is_the_decision_of_the_release_that_it_names(
    service: Service, answers: Answers
) -> None:
    ended = threading.Event()

    def ask(at: int) -> list[dict[str, Any]]:
        found = []
        while not ended.is_set():
            found.append(service.decide(at))
        return found

    with ThreadPoolExecutor(len(PHOTOS)) as threads:
        asked = [threads.submit(ask, at) for at in range(len(PHOTOS))]
        try:
            for name in "bcabca":
                service.move_to(name)
                assert service.decide(0)["release"] == name
        finally:
            ended.set()
    found = [(at, decision) for at, one in enumerate(asked) for decision in one.result()]
    assert {decision["release"] for _, decision in found} == set("abc")
    for at, decision in found:
        assert decision == close_to(answers[decision["release"]][at])


def test_a_request_that_has_begun_keeps_its_release(service: Service) -> None:
    futures = [service.room.submit([Product("p", None, [BytesIO(one)])], 60) for one in PHOTOS]
    service.move_to("b")
    assert [future.result(60)[0].release for future in futures] == ["a"] * len(PHOTOS)


@pytest.mark.slow  # an engine for each batch size
def test_a_release_with_another_backbone_is_served_with_it(service: Service, first: Served) -> None:
    service.move_to("d")
    assert service.decide(0)["release"] == "d"
    assert service.room.served.extractor is not first.extractor


def test_a_release_with_the_same_backbone_uses_its_engines(service: Service, first: Served) -> None:
    service.move_to("b")
    assert service.room.served.extractor is first.extractor
    assert 'release="b"' in service.figures()


def test_nothing_keeps_a_release_that_is_not_in_service_any_more(service: Service) -> None:
    service.move_to("b")
    old = weakref.ref(service.room.served)
    service.decide(0)
    service.move_to("c")
    service.decide(0)
    gc.collect()
    assert old() is None


def test_a_release_is_served_when_its_directory_is_gone(
    service: Service, spare: Path, answers: Answers
) -> None:
    service.move_to("spare")
    service.move_to("b")
    service.move_to("spare")
    put_into_service(service.releases, "missing")
    service.watcher.look()
    shutil.rmtree(spare)
    assert service.decide(1) == close_to(answers["b"][1]) | {"release": "spare"}
    assert service.client.get("/v1/release").json()["release"] == "spare"
    assert service.client.get("/v1/taxonomy").status_code == 200
    assert service.client.get("/healthz").json()["release"] == "spare"


def test_a_release_that_is_made_anew_under_its_name_is_served(service: Service, spare: Path) -> None:
    service.move_to("spare")
    before = service.room.served.bundle.digest
    shutil.rmtree(spare)
    shutil.copytree(service.releases / "c", spare)
    service.watcher.look()
    assert service.room.served.name == "spare"
    assert service.room.served.bundle.digest != before


def test_a_move_while_a_release_is_opened_counts(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_slowly(bundle: Bundle, *given: Any) -> Served:
        served = Served.of(bundle, *given)
        opened.append(served.name)
        if served.name == "b":
            put_into_service(service.releases, "c")
        return served

    monkeypatch.setattr(watching, "Served", type("Slow", (), {"of": staticmethod(open_slowly)}))
    taken = []
    monkeypatch.setattr(service.room, "take_over", lambda served: taken.append(served.name))
    service.move_to("b")
    assert (opened, taken) == (["b", "c"], ["c"])


# Releases that cannot


def edit_manifest(bundle: Path, **changes: Any) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=1))


def cut(bundle: Path) -> None:
    (bundle / "head.weights.h5").write_bytes(b"short")


def flip(bundle: Path) -> None:
    data = bytearray((bundle / "head.weights.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "head.weights.h5").write_bytes(data)


def make_newer(bundle: Path) -> None:
    edit_manifest(bundle, version=VERSION + 1)


def change_backbone(bundle: Path) -> None:
    """The backbone of another release, with the right digests."""
    shutil.copy(bundle.parent / "d" / "backbone.weights.h5", bundle)
    _rewrite_digests(bundle)


def break_structure(bundle: Path) -> None:
    (bundle / "head.json").write_text("[]")
    _rewrite_digests(bundle)


def _rewrite_digests(bundle: Path) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    for name in files:
        files[name] = {"size": (bundle / name).stat().st_size, "sha256": file_digest(bundle / name)}
    edit_manifest(bundle, files=files)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, "missing; expected the bundle of release spare"),
        (cut, "damaged; expected the bundle of release spare"),
        (flip, "head.weights.h5: damaged; expected the digest that the manifest gives"),
        (make_newer, f"a bundle of version {VERSION + 1}, of a newer shelfmark; expected version {VERSION}"),
        (change_backbone, "its backbone has fingerprint mobilenet-32-"),
        (break_structure, "head.json: cannot be read"),
    ],
)
def test_a_bad_release_is_refused_once_and_the_old_one_stays(
    service: Service, spare: Path, damage: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shelfmark")
    damage(spare)
    for _ in range(3):
        service.move_to("spare")
    [line] = [one.getMessage() for one in caplog.records if "is refused" in one.getMessage()]
    assert line.startswith("release spare is refused, a stays in service: ")
    assert reason in line
    refused = service.readiness()["refused_release"]
    assert refused["release"] == "spare"
    assert reason in refused["reason"]
    assert str(service.releases.parent) not in refused["reason"]
    assert 'shelfmark_refused_release{release="spare"} 1' in service.figures()
    assert service.decide(0)["release"] == "a"
    service.move_to("a")
    assert service.readiness() == {"status": "ready", "release": "a", "refused_release": None}
    assert "shelfmark_refused_release{" not in service.figures()


def test_a_third_release_follows_a_bad_one(service: Service, spare: Path) -> None:
    cut(spare)
    service.move_to("spare")
    service.move_to("b")
    assert service.readiness() == {"status": "ready", "release": "b", "refused_release": None}


def test_a_release_whose_files_come_late_is_served_then(service: Service, spare: Path) -> None:
    """As when a tool copies the link before the files."""
    whole = (spare / "taxonomy.csv").read_bytes()
    (spare / "taxonomy.csv").unlink()
    service.move_to("spare")
    assert service.readiness()["refused_release"]["release"] == "spare"
    (spare / "taxonomy.csv").write_bytes(whole)
    service.watcher.look()
    assert service.readiness() == {"status": "ready", "release": "spare", "refused_release": None}


def test_a_release_that_could_not_be_opened_for_a_while_is_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> Served:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(watching, "Served", type("Failing", (), {"of": staticmethod(fail)}))
        service.move_to("b")
        assert "MemoryError" in service.readiness()["refused_release"]["reason"]
    service.watcher.look()
    assert service.readiness()["release"] == "a"
    monkeypatch.setattr(watching, "RETRY_S", 0)
    service.watcher.look()
    assert service.readiness() == {"status": "ready", "release": "b", "refused_release": None}


def test_the_old_release_stays_when_nothing_is_in_service_and_nothing_was_refused(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    take_out_of_service(service.releases)
    for _ in range(3):
        service.watcher.look()
    refused = service.readiness()["refused_release"]
    assert refused["release"] is None
    assert refused["reason"].startswith("releases/current is not there; expected it to name a release; ")
    [line] = caplog.messages
    assert line.startswith("nothing is in service any more; the service goes on with a: releases/current is")
    assert "shelfmark_refused_release{" not in service.figures()
    assert service.decide(0)["release"] == "a"


def test_a_release_in_service_whose_directory_goes_is_said_to_be_in_memory(
    service: Service, spare: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.move_to("spare")
    shutil.rmtree(spare)
    for _ in range(3):
        service.watcher.look()
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.startswith(
        "the files of spare, which is in service, cannot be used any more; the service goes"
    )
    assert "spare: missing; expected the bundle of release spare; " in line
    assert service.decide(0)["release"] == "spare"
    assert 'shelfmark_refused_release{release="spare"} 1' in service.figures()


def test_a_refused_release_is_tried_again_when_a_file_of_the_same_size_comes(
    service: Service, spare: Path
) -> None:
    weights = spare / "head.weights.h5"
    whole = weights.read_bytes()
    flip(spare)
    service.move_to("spare")
    assert service.readiness()["refused_release"]["release"] == "spare"
    weights.write_bytes(whole)
    service.watcher.look()
    assert service.readiness() == {"status": "ready", "release": "spare", "refused_release": None}


def test_a_name_of_several_lines_is_one_line_of_the_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.move_to("week\n2026-11-29T07:03:37Z a lie")
    service.move_to("a")
    assert caplog.messages
    assert not [line for line in caplog.messages if "\n" in line]
    assert "release week\\n2026-11-29T07:03:37Z a lie is refused, a stays in service: " in caplog.messages[0]


def test_a_release_of_a_newer_version_is_not_opened(spare: Path) -> None:
    make_newer(spare)
    with pytest.raises(ShelfmarkError, match="install the shelfmark that made it"):
        open_bundle(spare)


# The command


@pytest.mark.slow  # a process with TensorFlow
def test_a_switch_and_sigterm_under_load_lose_nothing_that_was_accepted(workspace: Path) -> None:
    put_into_service(workspace / "releases", "a")
    command = [sys.executable, "-m", "serving", "--workspace", str(workspace), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(200, process.kill)
        limit.start()
        try:
            lines: list[str] = []
            assert process.stderr is not None
            address = None
            while address is None:
                lines.append(process.stderr.readline())
                assert lines[-1], "".join(lines)
                address = found[1] if (found := re.search(r"is served at (http://\S+)", lines[-1])) else None
            reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
            reader.start()
            outcomes: Counter[str] = Counter()
            with ThreadPoolExecutor(4) as threads:
                asked = [threads.submit(_ask_until_refused, address, outcomes) for _ in range(4)]
                while outcomes["a"] < 10 and process.poll() is None:
                    time.sleep(0.01)
                put_into_service(workspace / "releases", "b")
                while outcomes["b"] < 10 and process.poll() is None:
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                for one in asked:
                    one.result(60)
            assert process.wait(60) == 143
            reader.join()
        finally:
            limit.cancel()
            process.kill()
    assert outcomes["lost"] == 0
    text = "".join(lines)
    assert "error:" not in text and "Traceback" not in text
    assert re.search(r"Z SIGTERM: \d accepted requests were finished in \d+\.\d s\n", lines[-1]), text[-500:]


def _ask_until_refused(address: str, outcomes: "Counter[str]") -> None:
    """Sends requests, each on a connection of its own, until the service takes no more."""
    while True:
        try:
            with httpx.Client(base_url=address, timeout=60) as client:
                response = client.post("/v1/categorize", files=[("images", PHOTOS[0])])
        except httpx.ConnectError:
            return
        except httpx.TransportError:
            outcomes["lost"] += 1
            return
        if response.status_code == 503:
            outcomes["503"] += 1
            time.sleep(0.01)
        else:
            outcomes[response.json()["release"]] += 1
