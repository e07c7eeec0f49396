"""The stages styles and sellers, and what the bundle holds of them, on a small run by the command line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import bson
import numpy as np
import pandas as pd
import pytest

from features.errors import ShelfmarkError
from features.storage.artifact import open_artifact
from features.storage.paths import remove
from models.decisions.adapted import (
    SELLERS_FILE,
    STYLES,
    STYLES_FILES,
    SellerRules,
    product_vectors,
    read_styles,
)
from models.decisions.bundle import THRESHOLDS, Bundle, load_predictor, open_bundle, read_rules
from models.decisions.categorizer import Categorizer
from models.decisions.predictions import product_bounds
from models.sellers.styles import fit_styles
from pipeline.cli import main
from pipeline.demo.drawn_catalogue import draw_catalogue
from pipeline.job.catalogue import learnt_categories_of, open_part
from pipeline.job.config import Config
from pipeline.job.run import Run, begin_run
from pipeline.job.summaries import SellersSummary, StylesSummary
from pipeline.release.release import pack
from pipeline.train.sellers import seller_rules, styles

SETTINGS = """
[ingest]
min_products = 8
val_share = 0.4
least_test = 2
[backbone]
name = "mobilenet"
weights = "{weights}"
image_size = 32
[extract]
shard_images = 100
[head]
hidden = [16, 16]
[train]
epochs = 4
batch = 32
"""


def shelfmark(*arguments: str | Path) -> int:
    """Exit status of a command, run in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def shop(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a drawn catalogue of ten sellers, its settings, and a workspace W with a calibrated head."""
    folder = tmp_path_factory.mktemp("sellers")
    drawn = draw_catalogue(folder, products=400)
    with open(drawn.catalogue, "rb") as file:
        products = list(bson.decode_file_iter(file))
    for product in products:
        if product["_id"] % 11:  # one in eleven has none
            product["seller"] = f"seller {product['_id'] % 11}"
    drawn.catalogue.write_bytes(b"".join(map(bson.encode, products)))
    (folder / "settings.toml").write_text(SETTINGS.format(weights=drawn_weights))
    common = ("--workspace", folder / "W", "--run", "week", "--config", folder / "settings.toml")
    assert shelfmark("ingest", drawn.catalogue, "--taxonomy", folder / "category_names.csv", *common) == 0
    for command in ("extract", "train", "calibrate"):
        assert shelfmark(command, *common) == 0
    return folder


@pytest.fixture
def run(shop: Path, tmp_path: Path) -> Iterator[Run]:
    """The run, in a workspace of the test's own."""
    shutil.copytree(shop / "W", tmp_path / "W")
    yield opened(tmp_path / "W")


def opened(workspace: Path, **sellers: object) -> Run:
    settings = json.loads((workspace / "runs" / "week" / "config.json").read_text())["settings"]
    settings["sellers"] |= sellers
    return begin_run(workspace, "week", Config(**settings))


def rules_of(run: Run) -> SellerRules:
    found = run.sellers()
    assert found
    return SellerRules.from_dict(json.loads(found.file(SELLERS_FILE).read_text()))


def test_calibrate_fits_rules_on_sellers_apart(run: Run) -> None:
    rules = rules_of(run)
    assert rules.model == open_thresholds(run)["model"]
    assert rules.method == "votes"
    assert rules.sellers["fit_sellers"] + rules.sellers["cert_sellers"] == 10
    assert rules.certificate.products <= rules.sellers["cert_sellers"], "one decision of each seller counts"
    assert rules.certificate.threshold is None
    assert "one decision of each seller" in str(rules.certificate.reason)
    assert (
        SellersSummary.of(open_artifact(run.path / "sellers", "sellers")).reason == rules.certificate.reason
    )


def open_thresholds(run: Run) -> dict[str, object]:
    values: dict[str, object] = json.loads((run.path / "thresholds" / "thresholds.json").read_text())
    return values


def test_the_stage_is_made_again_for_what_matters_alone(run: Run) -> None:
    before = run.sellers()
    assert before
    rules = before.file(SELLERS_FILE).read_bytes()
    again = seller_rules(run)
    assert again
    assert again.digest == before.digest
    other = seller_rules(opened(run.workspace, vectors="bottlenecks"))
    assert other
    assert other.digest != before.digest
    assert rules_of(run).vectors == "bottlenecks"
    back = seller_rules(opened(run.workspace, vectors="hidden"))
    assert back
    assert back.digest == before.digest
    assert back.file(SELLERS_FILE).read_bytes() == rules, "the same work has the same result"


def test_without_sellers_nothing_is_accepted_and_the_reason_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.sellers.sellers_of", lambda records: pd.Series(dtype=object))
    remove(run.path / "sellers")
    assert seller_rules(run)
    rules = rules_of(run)
    assert rules.certificate.threshold is None
    assert rules.certificate.reason == "no validation product has a seller"
    assert rules.sellers == {"fit_sellers": 0, "cert_sellers": 0, "fit_products": 0, "cert_products": 0}
    assert rules.suspicion.products > 0, "evidence comes from all products of FIT"


def test_method_none_has_neither_stage_nor_rules(run: Run) -> None:
    none = opened(run.workspace, method="none")
    assert (styles(none), seller_rules(none), none.styles(), none.sellers()) == (None,) * 4


def test_method_paper_has_styles_of_every_category(run: Run) -> None:
    paper = opened(run.workspace, method="paper")
    with pytest.raises(
        ShelfmarkError, match=r"runs/week/styles: missing; .* run `shelfmark calibrate` first"
    ):
        seller_rules(paper)
    made = styles(paper)
    assert made
    found, summary = read_styles(made.folder()), StylesSummary.of(made)
    assert summary.styles == len(found.centroids)
    assert summary.categories == found.categories
    assert summary.without_styles == 0
    assert found.centroids.shape[1] == 16, "the last hidden layer"
    sizes = np.load(run.path / "head" / "sizes.npy")
    assert np.diff(found.bounds).tolist() == np.minimum(sizes, 5).tolist(), "five, or each product is one"
    fitted = seller_rules(paper)
    assert fitted
    assert rules_of(paper).method == "paper"


def test_the_bundle_holds_the_rules_and_its_adapter_opens(run: Run) -> None:
    common = ("--workspace", run.workspace, "--run", "week")
    assert shelfmark("evaluate", *common) == 0
    bundle = packed(run)
    assert bundle.adapter
    assert bundle.adapter.rules == rules_of(run)
    trace = json.loads((bundle.path / "trace.json").read_text())
    assert trace["sellers"]["cert_sellers"] == bundle.adapter.rules.sellers["cert_sellers"]
    assert trace["styles"] is None
    assert trace["digests"]["sellers"] == open_artifact(run.path / "sellers", "sellers").digest
    assert trace["settings"]["sellers"]["method"] == "votes"

    assert shelfmark("calibrate", *common, "--set", "sellers.method=paper") == 0
    bundle = packed(opened(run.workspace, method="paper"))
    assert bundle.adapter
    assert bundle.adapter.rules.method == "paper"
    assert all((bundle.path / f"{STYLES}{name}").is_file() for name in STYLES_FILES)

    bundle = packed(opened(run.workspace, method="none"))
    assert bundle.adapter is None
    assert not (bundle.path / SELLERS_FILE).exists()


def packed(run: Run) -> Bundle:
    pack(run)
    return open_bundle(run.path / "bundle")


def test_styles_are_found_in_the_means_of_the_products_of_each_category(run: Run) -> None:
    paper = opened(run.workspace, method="paper")
    made = styles(paper)
    assert made
    found, records = read_styles(made.folder()), run.records()
    bottlenecks = run.bottlenecks(records)
    categorizer = Categorizer(
        load_predictor(run.path / "head"), read_rules(run.path / "thresholds" / THRESHOLDS)
    )
    trained = open_part(bottlenecks, run.store, "train")
    bounds = product_bounds(trained.product_id)
    vectors = product_vectors(categorizer, "hidden", trained.rows[:], bounds)
    _, category = learnt_categories_of(records)
    codes = categorizer.predictor.taxonomy.index(category.reindex(trained.product_id[bounds[:-1]]).to_numpy())
    expected = fit_styles(lambda code: vectors[codes == code], found.categories, 16, paper.config.seed)
    np.testing.assert_array_equal(found.bounds, expected.bounds)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
