"""Whatever views a head asks for, HTTP decides as the batch job does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Photo, drawn_backbone
from drawn_categorizers import Kind, draw_categorizer, rows_of, write_bundle
from fastapi.testclient import TestClient
from service import images, serving, several
from test_retrain import run_here

from features.engines.backbones import KerasBackbone, load_backbone
from features.engines.choose import engines_of_views
from features.images.refusal import LIMITS
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.categorizer import categorize_photos
from serving.extractor import LARGEST

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE, PRODUCTS = 32, 48
KINDS = {
    "two sizes": Kind(confidence="probability", views=("whole", "48", "48-flip")),
    "a crop and the maximum": Kind(
        confidence="probability", views=("whole", "48-center", "max", "48-top-left-max-flip")
    ),
    "averaged": Kind(
        confidence="probability", views=("whole", "flip", "40", "40-flip", "48-center"), averaged=True
    ),
    "neither the whole photo nor the backbone's size": Kind(
        confidence="probability", views=("48-max-flip", "40")
    ),
}


@pytest.fixture(scope="module")
def backbone(quiet_tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> KerasBackbone:
    """LeNet-5 with other numbers for other photos."""
    file = tmp_path_factory.mktemp("weights") / "drawn.weights.h5"
    drawn_backbone(1, SIZE, "lenet5").save_weights(file)
    found = load_backbone("lenet5", str(file), SIZE)
    assert isinstance(found, KerasBackbone)
    return found


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
            kind, path = KINDS[name], tmp_path_factory.mktemp("W") / "releases" / "first"
            rows = rows_of(
                backbone, [one for photos in products for one in photos], kind.views, kind.averaged
            )
            bounds = np.cumsum([0, *(len(photos) * kind.rows_of_image for photos in products)])
            write_bundle(path, backbone, draw_categorizer(kind, rows, bounds, backbone.fingerprint))
            (path.parent / "current").symlink_to("first")
            done[name] = path
        return done[name]

    return made


def decided_in_batch(bundle: Bundle, products: list[list[bytes]]) -> list[dict[str, Any]]:
    engines = engines_of_views(bundle.backbone(), bundle.categorizer.views, LARGEST)
    tables = [
        categorize_photos(bundle.categorizer, engines, str(number), photos, LIMITS)[0]
        for number, photos in enumerate(products)
    ]
    return [json.loads(table.to_json(orient="records"))[0] for table in tables]


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same decisions; confidences as far as batches of other sizes change them."""
    for column in ("product_id", "category", "status", "node", "node_path", "node_level"):
        assert [one[column] for one in found] == [one[column] for one in expected], column
    confidences = [one["confidence"] for one in expected]
    assert [one["confidence"] for one in found] == pytest.approx(confidences, abs=1e-3)
    assert {one["status"] for one in expected} == {"accepted", "parent", "review"}
    assert len(set(confidences)) > PRODUCTS / 2


def together(client: TestClient, products: list[list[bytes]]) -> list[dict[str, Any]]:
    """The decisions about products in one request."""
    names = {f"product_id.{number}": str(number) for number in range(len(products))}
    response = client.post("/v1/categorize", files=several(products), data=names)
    assert response.status_code == 200, response.text
    decisions: list[dict[str, Any]] = response.json()["decisions"]
    return decisions


@pytest.mark.parametrize("name", KINDS)
def test_decisions_over_http_are_those_of_batch(
    name: str, released: Released, products: list[list[bytes]]
) -> None:
    bundle = open_bundle(released(name))
    expected = decided_in_batch(bundle, products)
    with serving(bundle) as client:
        assert_alike(together(client, products), expected)
        for number in (0, 1, 2):  # alone: batches of other sizes
            form = {"product_id": str(number)}
            [alone] = [client.post("/v1/categorize", files=images(*products[number]), data=form).json()]
            assert alone["status"] == expected[number]["status"]
            assert alone["confidence"] == pytest.approx(expected[number]["confidence"], abs=1e-3)
        release = client.get("/v1/release").json()
    assert release["views"] == list(KINDS[name].views) and release["averaged"] is KINDS[name].averaged
    assert release["image_size"] == SIZE


def test_views_change_decisions(released: Released, products: list[list[bytes]]) -> None:
    """Else the tests of this file would prove nothing: other views of the same photos decide otherwise."""
    bundle = open_bundle(released("two sizes"))
    engines = engines_of_views(bundle.backbone(), bundle.categorizer.views, LARGEST)
    jpegs = [photos[0] for photos in products]
    rows = bundle.categorizer.bottlenecks(engines, jpegs, "drawn").reshape(len(jpegs), 3, -1)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(rows[:, one].astype(float) - rows[:, other]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a crop and the maximum", "averaged"])
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
