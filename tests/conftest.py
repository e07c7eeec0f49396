"""What several tests share: drawn photos, a small backbone, a small bundle.

TensorFlow takes ten seconds to import: it is started, quiet and deterministic, for the first test that needs
it.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from catalogues import drawn_image, encoded
from postgresql_server import Server

from features.engines.backbones import Backbone, KerasBackbone, load_backbone, start_tensorflow
from features.engines.pixels import read_pixels
from features.records import pieces_of
from features.storage.artifact import Artifact, begin, digest_of, file_digest, partial_of, seal

os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # for the test files that import Keras as they are collected

SHARED = Path(__file__).parents[1].parent / "shared"  # data beside the checkout, where there is any
Photo = Callable[..., bytes]
TREE = dict.fromkeys(("apple", "leek", "milk", "oats", "pear"), "food") | {"soap": "home"}  # by category


def pytest_configure(config: pytest.Config) -> None:
    """Keeps hundreds of Keras' own warnings out of the summary."""
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning:keras")


def _photo(seed: int, width: int = 48, height: int = 40, mode: str = "RGB") -> bytes:
    """A JPEG of coloured blotches, another one for each seed."""
    return encoded(drawn_image(seed, width, height, (6, 7), mode), "JPEG", quality=90)


def pixels_of(jpegs: list[bytes], size: int) -> np.ndarray:
    """(n, size, size, 3) uint8."""
    return np.concatenate(list(read_pixels(pieces_of(jpegs, "drawn"), size, 8)))[: len(jpegs)]


@pytest.fixture(scope="session")
def photo() -> Photo:
    """Draws a JPEG from a seed, of a width, a height and a mode (RGB or L)."""
    return _photo


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server of our own."""
    with Server.started() as found:
        yield found


@pytest.fixture(autouse=True)
def _levels_of_logging(caplog: pytest.LogCaptureFixture) -> None:
    """As Python starts: packages change them, and then a test that reads warnings of ours would see none."""
    ours, root = logging.getLogger("shelfmark"), logging.getLogger()
    ours.disabled, ours.propagate = False, True
    ours.setLevel(logging.NOTSET)
    root.setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
    caplog.handler.setLevel(logging.NOTSET)
    caplog.handler.filters.clear()
    if caplog.handler not in root.handlers:
        root.addHandler(caplog.handler)


@pytest.fixture(scope="session")
def quiet_tensorflow() -> None:
    start_tensorflow()


@pytest.fixture(scope="session")
def mobilenet(quiet_tensorflow: None) -> Backbone:
    """A small backbone: 32 px, 1,024 numbers, random weights."""
    return load_backbone("mobilenet", "random", 32)


def drawn_backbone(seed: int, size: int = 32, name: str = "mobilenet") -> KerasBackbone:
    """A network with different outputs for different photos: with Keras' random weights MobileNet's are 0."""
    backbone = load_backbone(name, "random", size, seed)
    assert isinstance(backbone, KerasBackbone)
    network, rng = backbone.network, np.random.default_rng(seed)
    weights = network.get_weights()
    for at, kernel in enumerate(weights):
        if kernel.ndim == 4:  # He et al. 2015; depthwise kernels have one output for each input
            inputs = kernel[..., 0].size if kernel.shape[-1] > 1 else kernel[..., 0, 0].size
            weights[at] = rng.normal(0, np.sqrt(2 / inputs), kernel.shape)
    network.set_weights(weights)
    return backbone


@pytest.fixture(scope="session")
def bundle_path(mobilenet: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle over `mobilenet`: six categories, confidence = p1, threshold 0.5; only to be read."""
    path = tmp_path_factory.mktemp("workspace") / "bundle"
    make_bundle(path, mobilenet, threshold=0.5)
    return path


@pytest.fixture(scope="session")
def drawn_weights(quiet_tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of MobileNet with different outputs for different photos; quicker to load than Inception v3."""
    file = tmp_path_factory.mktemp("weights") / "drawn.weights.h5"
    drawn_backbone(1).save_weights(file)
    return file


@pytest.fixture(scope="session")
def _released(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "W" / "releases" / "first"
    make_bundle(path, load_backbone("mobilenet", str(drawn_weights), 32), threshold=0.3)
    return path


@pytest.fixture
def workspace(_released: Path, tmp_path: Path) -> Path:
    """A workspace in which the release `first` is in service; its backbone distinguishes photos."""
    releases = tmp_path / "W" / "releases"
    shutil.copytree(_released, releases / "first")
    (releases / "current").symlink_to("first")
    return tmp_path / "W"


def make_bundle(
    path: Path,
    backbone: Backbone,
    threshold: float | None,
    tree: dict[str, str] = TREE,
    hidden: tuple[int, int] = (8, 8),
    scale: float = 1.0,
    sellers: Callable[[str], Any] | None = None,
) -> Artifact:
    """Puts a bundle together without the pipeline; `tree` is category → its parent, in the alphabet.

    `sellers` gives the rules of adapted decisions from the digest of the head.
    """
    from models.decisions.adapted import SELLERS_FILE
    from models.decisions.bundle import HEAD_FILES, THRESHOLDS
    from models.decisions.categorizer import DecisionRules
    from models.decisions.confidence import ConfidenceModel
    from models.decisions.releases import SPLITS
    from models.decisions.thresholds import Certificate
    from models.heads.architectures import Head, HeadShape, build_head

    work = begin(partial_of(path), {"drawn": "here"})
    shape = HeadShape(backbone.width, len(tree), hidden, 0.5, scale, backbone.fingerprint)
    Head.of(shape, build_head(shape)).save(work)
    levels = pd.DataFrame({"category": list(tree), "level1": list(tree.values()), "level2": list(tree)})
    levels.to_csv(work / "taxonomy.csv", index=False)
    np.save(work / "sizes.npy", np.arange(20, 20 + len(tree), dtype=np.int32))
    rules = DecisionRules(
        model=digest_of({name: file_digest(work / name) for name in HEAD_FILES}),
        labels=file_digest(work / "taxonomy.csv"),
        temperature=1.0,
        confidence=ConfidenceModel("probability", 0, "drawn"),
        certificate=Certificate(target=0.9, delta=0.1, grid=1000, products=0, threshold=threshold),
        target=0.9,
        delta=0.1,
        fit={"products": 0},
    )
    (work / THRESHOLDS).write_text(json.dumps(rules.to_dict()))
    if sellers:
        (work / SELLERS_FILE).write_text(json.dumps(sellers(rules.model).to_dict()))
    backbone.save(work)
    pd.DataFrame({"product_id": ["p"], "split": ["train"]}).to_parquet(work / SPLITS, index=False)
    return seal(
        path,
        kind="bundle",
        version=1,
        made_from={"drawn": "here"},
        summary={"independent": True, "weights": "random", "fingerprint": backbone.fingerprint},
    )
