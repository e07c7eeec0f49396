"""`shelfmark export`: the written files decide as the categorizer does, without our code."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Photo, drawn_backbone, pixels_of
from drawn_categorizers import KINDS, Kind, draw_categorizer, write_bundle

from features.engines.backbones import KerasBackbone, load_backbone
from features.errors import ShelfmarkError
from models.decisions.categorizer import Categorizer

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SIZE, PRODUCTS = 32, 60
FORMATS = {"saved_model": "tensorflow", "onnx": "tf2onnx", "openvino": "openvino"}  # and what they need


@pytest.fixture(scope="module")
def backbone(quiet_tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> KerasBackbone:
    """LeNet-5 with other numbers for other photos; quick to convert."""
    file = tmp_path_factory.mktemp("weights") / "drawn.weights.h5"
    drawn_backbone(1, SIZE, "lenet5").save_weights(file)
    found = load_backbone("lenet5", str(file), SIZE)
    assert isinstance(found, KerasBackbone)
    return found


@pytest.fixture(scope="module")
def jpegs(photo: Photo) -> list[bytes]:
    """Photos of PRODUCTS products, of one to three each."""
    return [photo(seed, 40 + seed % 7, 44) for seed in range(int(counts_of_products().sum()))]


def counts_of_products() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4, PRODUCTS)


def drawn_bundle(folder: Path, backbone: KerasBackbone, jpegs: list[bytes], kind: Kind) -> Path:
    """A bundle whose confidences are fitted on the photos; released in a workspace."""
    pixels, counts = pixels_of(jpegs, SIZE), counts_of_products()
    views = [backbone.bottlenecks(one) for one in ([pixels, pixels[:, :, ::-1]] if kind.flip else [pixels])]
    rows = np.stack(views, axis=1).reshape(-1, backbone.width).astype(np.float16)
    bounds = np.concatenate([[0], np.cumsum(counts * len(views))])
    categorizer = draw_categorizer(kind, rows, bounds, backbone.fingerprint)
    path = folder / "W" / "releases" / "first"
    write_bundle(path, backbone, categorizer)
    (path.parent / "current").symlink_to("first")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_head_is_written_in_every_format(
    name: str, backbone: KerasBackbone, jpegs: list[bytes], tmp_path: Path
) -> None:
    from models.decisions.bundle import open_bundle
    from pipeline.export.check import Photos, check
    from pipeline.export.export import MODULES
    from pipeline.export.graph import ExportedGraph

    bundle = open_bundle(drawn_bundle(tmp_path, backbone, jpegs, KINDS[name]))
    graph = ExportedGraph(bundle, backbone)
    photos = Photos(counts_of_products(), jpegs, kept=len(jpegs), refused=0)
    for kind, module in MODULES.items():
        (folder := tmp_path / kind).mkdir()
        graph.write_names(folder)
        written = importlib.import_module(f"pipeline.export.{module}")
        written.write(graph, folder)
        result = check(bundle.categorizer, backbone, written.Runner(folder), photos)
        print(name, kind, result)
        assert result.differ == result.beyond == 0 and result.confidence < 1e-3, kind
        assert min(result.statuses.values()) >= 3 and len(result.statuses) == 3
