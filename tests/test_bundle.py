"""A bundle is opened when it is complete and its parts belong together, else refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest

from features.engines.backbones import Backbone
from features.errors import ShelfmarkError
from features.storage.artifact import file_digest, seal
from models.decisions.bundle import HEAD_FILES, THRESHOLDS, load_predictor, open_bundle, read_rules
from models.decisions.releases import SPLITS
from models.heads.architectures import load_head

SUMMARY = {"independent": False, "weights": "imagenet"}


def changed(bundle: Path, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    """A copy of the bundle, changed and finished again."""
    work = tmp_path / "changed.partial"
    shutil.copytree(bundle, work)
    (work / "manifest.json").unlink()
    (work / "made_from.json").write_text("{}")
    change(work)
    return seal(tmp_path / "changed", kind="bundle", version=1, made_from={}, summary=SUMMARY).path


def test_opened_bundle_holds_all_that_categorizing_needs(
    bundle_path: Path, mobilenet: Backbone, photo: conftest.Photo
) -> None:
    bundle = open_bundle(bundle_path)
    assert bundle.fingerprint == mobilenet.fingerprint
    assert bundle.categorizer.predictor.taxonomy.categories.tolist() == list(conftest.TREE)
    assert bundle.categorizer.predictor.sizes.tolist() == [20, 21, 22, 23, 24, 25]
    assert bundle.categorizer.rules.certificate.threshold == 0.5
    assert bundle.caveats == ("the weights of its backbone are random: its decisions are a demonstration",)
    assert pd.read_parquet(bundle.path / SPLITS).to_dict("list") == {"product_id": ["p"], "split": ["train"]}
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(bundle.backbone().bottlenecks(pixels), mobilenet.bottlenecks(pixels))


def test_bundle_may_be_copied_and_keeps_its_digest(bundle_path: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_path, tmp_path / "W47")
    assert open_bundle(tmp_path / "W47").digest == open_bundle(bundle_path).digest


def test_unfinished_bundle_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match="no finished bundle here"):
        open_bundle(tmp_path / "nothing")
    shutil.copytree(bundle_path, tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    with pytest.raises(ShelfmarkError, match="no finished bundle here"):
        open_bundle(tmp_path / "half")


def test_bundle_that_lost_a_file_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_path, tmp_path / "torn")
    (tmp_path / "torn" / "backbone.weights.h5").unlink()
    with pytest.raises(ShelfmarkError, match="no finished bundle here"):
        open_bundle(tmp_path / "torn")


def test_another_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head.partial").mkdir()
    (tmp_path / "head.partial" / "made_from.json").write_text("{}")
    seal(tmp_path / "head", kind="head", version=1, made_from={}, summary={})
    with pytest.raises(ShelfmarkError, match="holds 'head'; expected 'bundle'"):
        open_bundle(tmp_path / "head")


def retold(work: Path) -> None:
    values = json.loads((work / "thresholds.json").read_text())
    (work / "thresholds.json").write_text(json.dumps(values | {"model": "0" * 64}))


@pytest.mark.parametrize(
    "change",
    [
        retold,
        lambda work: np.save(work / "sizes.npy", np.arange(6, dtype=np.int32)),
        lambda work: (work / "taxonomy.csv").write_text(
            (work / "taxonomy.csv").read_text().replace("food", "Food")
        ),
        lambda work: (work / "head.json").write_text((work / "head.json").read_text().replace("0.5", "0.25")),
    ],
    ids=["thresholds", "sizes", "taxonomy", "head"],
)
def test_thresholds_of_another_head_are_refused(
    bundle_path: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    with pytest.raises(ShelfmarkError, match=r"thresholds of another head; .* run calibrate again"):
        open_bundle(changed(bundle_path, tmp_path, change))


def test_backbone_that_is_not_the_heads_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    def other_size(work: Path) -> None:
        values = json.loads((work / "backbone.json").read_text())
        (work / "backbone.json").write_text(json.dumps(values | {"image_size": 64}))

    bundle = open_bundle(changed(bundle_path, tmp_path, other_size))
    with pytest.raises(
        ShelfmarkError, match=r"its backbone has fingerprint mobilenet-64-\w+; expected mobilenet-32-"
    ):
        bundle.backbone()


def test_rules_are_read_back_from_their_file(bundle_path: Path) -> None:
    rules = read_rules(bundle_path / "thresholds.json")
    assert type(rules).from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    values = json.loads((bundle_path / "thresholds.json").read_text())
    assert (values["target"], values["delta"], values["fit"]) == (0.9, 0.1, {"products": 0})


def test_digest_of_the_head_depends_on_all_files_that_predictions_depend_on(
    bundle_path: Path, tmp_path: Path
) -> None:
    predictor = load_predictor(bundle_path)
    assert predictor.labels == file_digest(bundle_path / "taxonomy.csv")
    for name in HEAD_FILES:
        shutil.copyfile(bundle_path / name, tmp_path / name)
    assert load_predictor(tmp_path).model == predictor.model
    np.save(tmp_path / "sizes.npy", np.arange(6, dtype=np.int32))
    assert load_predictor(tmp_path).model != predictor.model


def test_bundle_whose_run_had_no_test_part_says_that_precision_was_not_measured(
    bundle_path, tmp_path
) -> None:
    shutil.copytree(bundle_path, tmp_path / "copy")
    values = (
        (tmp_path / "copy" / "manifest.json")
        .read_text()
        .replace('"independent": true', '"independent": false')
    )
    (tmp_path / "copy" / "manifest.json").write_text(values)
    assert "not independently measured" in open_bundle(tmp_path / "copy").caveats[0]


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"model": 1}'])
def test_a_damaged_structure_or_rules_file_is_named_with_what_to_remove(tmp_path: Path, text: str) -> None:
    for name in ("head.json", "thresholds.json"):
        (tmp_path / name).write_text(text)
    refusal = rf"cannot be read \(.*; remove {tmp_path.name}/ and run again"
    with pytest.raises(ShelfmarkError, match=f"head.json: {refusal}"):
        load_head(tmp_path)
    with pytest.raises(ShelfmarkError, match=f"{THRESHOLDS}: {refusal}"):
        read_rules(tmp_path / THRESHOLDS)
