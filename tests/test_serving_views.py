"""Whatever views a head asks for, HTTP decides as the batch job does."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Photo
from drawn_categorizers import Kind, draw_categorizer, draw_lenet, rows_of, write_bundle
from fastapi.testclient import TestClient
from service import client_of, images, serving, several, state_of
from test_retrain import run_here

from features.engines.backbones import KerasBackbone
from features.images.normalise import normalise
from models.decisions.bundle import open_bundle
from serving.served import Served

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE, PRODUCTS = 32, 48
KINDS = {
    "two sizes, a crop and the maximum": Kind(views=("whole", "48", "48-top-left", "max-flip")),
    "averaged": Kind(views=("whole", "48-center-flip", "48", "flip"), averaged=True),
    "cascade": Kind(views=("whole", "48", "48-top-left"), cascade=True),
    "the largest first": Kind(views=("48", "48-flip", "40", "whole")),
    "neither the whole photo nor the backbone's size": Kind(views=("48-max-flip", "40")),
}
QUICK = ("two sizes, a crop and the maximum", "averaged", "cascade")


@pytest.fixture(scope="module")
def backbone(quiet_tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> KerasBackbone:
    """LeNet-5 with other numbers for other photos."""
    return draw_lenet(tmp_path_factory.mktemp("weights"), SIZE)


@pytest.fixture(scope="module")
def products(photo: Photo) -> list[list[bytes]]:
    """The photos of each product, one or two."""
    return [
        [photo(100 * number + place, 40 + number % 7, 44) for place in range(1 + number % 2)]
        for number in range(PRODUCTS)
    ]


Released = Callable[[str], Path]


@pytest.fixture(scope="module")
def released(
    backbone: KerasBackbone, products: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> Released:
    """The bundle of a kind, in service in a workspace of its own; each is made once."""
    done: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in done:
            kind = replace(KINDS[name], confidence="probability")
            path = tmp_path_factory.mktemp("W") / "releases" / "first"
            rows = rows_of(
                backbone, [one for photos in products for one in photos], kind.views, kind.averaged
            )
            bounds = np.cumsum([0, *(len(photos) * kind.rows_of_image for photos in products)])
            write_bundle(path, backbone, draw_categorizer(kind, rows, bounds, backbone.fingerprint))
            (path.parent / "current").symlink_to("first")
            done[name] = path
        return done[name]

    return made


def decided_in_batch(served: Served, products: list[list[bytes]]) -> list[dict[str, Any]]:
    networks = served.extractor.networks
    engines = {view: network.engines[max(network.engines)] for view, network in networks.items()}
    categorizer = served.bundle.categorizer
    jpegs = [normalise(one).jpeg for photos in products for one in photos]
    bounds = np.cumsum([0, *(len(photos) * categorizer.rows_of_image for photos in products)])
    predictions = categorizer.predict_all(categorizer.bottlenecks(engines, jpegs, "drawn"), bounds)
    table = categorizer.decide(np.arange(len(products)).astype(str), predictions)
    found: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return found


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same decisions; confidences as far as batches of other sizes change them."""
    for column in ("product_id", "category", "status", "node", "node_path", "node_level", "views"):
        assert [one[column] for one in found] == [one[column] for one in expected], column
    confidences = [one["confidence"] for one in expected]
    assert [one["confidence"] for one in found] == pytest.approx(confidences, abs=1e-3)
    assert {one["status"] for one in expected} == {"accepted", "parent", "review"}
    assert len(set(confidences)) > 12  # others are over 0.9999


def together(client: TestClient, products: list[list[bytes]]) -> list[dict[str, Any]]:
    """The decisions about products in one request."""
    names = {f"product_id.{number}": str(number) for number in range(len(products))}
    response = client.post("/v1/categorize", files=several(products), data=names)
    assert response.status_code == 200, response.text
    decisions: list[dict[str, Any]] = response.json()["decisions"]
    return decisions


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_decisions_over_http_are_those_of_batch(
    name: str, released: Released, products: list[list[bytes]]
) -> None:
    path = released(name)
    state = state_of(open_bundle(path), workspace=path.parents[1])
    assert state.room and state.corrections
    served = state.room.served
    expected = decided_in_batch(served, products)
    with client_of(state) as client:
        assert_alike(together(client, products), expected)
        for number in (0, 1, 2):  # alone: batches of other sizes
            form = {"product_id": str(number)}
            alone = client.post("/v1/categorize", files=images(*products[number]), data=form).json()
            assert alone["status"] == expected[number]["status"]
            assert alone["confidence"] == pytest.approx(expected[number]["confidence"], abs=1e-3)
        release = client.get("/v1/release").json()
    state.corrections.close()
    assert release["views"] == list(KINDS[name].views) and release["averaged"] is KINDS[name].averaged
    rule = served.bundle.categorizer.rules.cascade
    assert (rule is not None) == KINDS[name].cascade
    assert release["cascade"] == (asdict(rule) if rule else None)
    assert release["image_size"] == SIZE


def test_the_rows_of_views_differ_so_that_a_wrong_one_would_change_decisions(
    backbone: KerasBackbone, products: list[list[bytes]]
) -> None:
    views = ("whole", "48", "48-top-left", "max-flip", "flip")
    rows = rows_of(backbone, [photos[0] for photos in products], views, averaged=False)
    of_each = rows.astype(np.float32).reshape(PRODUCTS, len(views), -1)
    length = np.linalg.norm(of_each, axis=2).mean()
    for one, other in itertools.combinations(range(len(views)), 2):
        apart = np.linalg.norm(of_each[:, one] - of_each[:, other], axis=1).mean()
        assert apart > 0.02 * length, (views[one], views[other])


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_decisions_over_http_are_those_of_the_batch_job(
    name: str, released: Released, products: list[list[bytes]], tmp_path: Path
) -> None:
    workspace = released(name).parents[1]
    rows = [(str(number), data) for number, photos in enumerate(products) for data in photos]
    for at, (_, data) in enumerate(rows):
        (tmp_path / f"{at}.jpg").write_bytes(data)
    table = {"product_id": [one for one, _ in rows], "image": [f"{at}.jpg" for at in range(len(rows))]}
    pd.DataFrame(table).to_csv(tmp_path / "shop.csv", index=False)
    output = tmp_path / "decisions.jsonl"
    options = ["--workspace", str(workspace), "--output", str(output)]
    status, log = run_here("categorize", str(tmp_path / "shop.csv"), *options)
    assert status == 0, log
    expected = {one["product_id"]: one for one in map(json.loads, output.read_text().splitlines())}
    with serving(open_bundle(released(name))) as client:
        assert_alike(together(client, products), [expected[str(number)] for number in range(PRODUCTS)])
