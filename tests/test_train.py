"""What a head learns for each image, by its kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from trees import uneven_tree

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, open_artifact
from features.storage.store import Shard, StoredRows
from models.heads.architectures import HeadShape, build_head, load_head
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.job.catalogue import Part
from pipeline.job.config import Config, HeadSettings
from pipeline.train.from_settings import labels_of, loss_of, shape_of
from pipeline.train.train import start_of

TREE = uneven_tree()
CATEGORY = pd.Series({"p1": "leek", "p2": "soap", "p3": "gift"})
PRODUCTS = np.array(["p2", "p1", "p2", "p3"], dtype=object)


def shape(kind: str) -> HeadShape:
    return HeadShape(4, 8, (3, 3), 0.0, 1.0, "", kind=kind, parents=TREE.parents)


def test_flat_head_learns_categories() -> None:
    labels = labels_of(CATEGORY, TREE, shape("flat"))(PRODUCTS)
    assert TREE.categories[labels].tolist() == ["soap", "leek", "soap", "gift"]


@pytest.mark.parametrize("kind", ["separate", "multitask", "taxonnet"])
def test_head_of_levels_learns_the_node_of_every_level(kind: str) -> None:
    labels = labels_of(CATEGORY, TREE, shape(kind))(PRODUCTS)
    assert (labels.shape, labels.dtype) == ((4, 3), np.int32)
    assert TREE.categories[labels[:, -1]].tolist() == ["soap", "leek", "soap", "gift"]
    for level in range(3):
        assert labels[:, level].tolist() == TREE.nodes[level][labels[:, -1]].tolist()


def chosen(**head: Any) -> Any:
    return loss_of(TREE, Config(head=HeadSettings(**head)))


def test_the_default_loss_is_that_of_the_recipe_and_for_level_heads_the_cross_entropy() -> None:
    assert chosen() is not None  # summed
    assert chosen(recipe="paper") is None
    assert chosen(loss="cross_entropy") is None
    assert chosen(kind="multitask") is None
    assert chosen(loss="hierarchical") is None  # the tree is in the head
    assert chosen(loss="soft_tree") is not None
    assert chosen(kind="taxonnet", level_weights=(1, 1, 2)) is not None
    flat = Taxonomy(TREE.categories, TREE.categories[:, None])
    assert loss_of(flat, Config()) is None, "a tree of one level has no sums"


def test_weights_of_another_number_of_levels_are_refused() -> None:
    with pytest.raises(
        ShelfmarkError, match=r"head.level_weights: 2 numbers; expected 3, one for each level"
    ):
        chosen(kind="taxonnet", level_weights=(1, 1))


def test_training_images_whose_bottlenecks_are_zeros_alone_are_refused() -> None:
    rows = StoredRows(
        [Shard(np.zeros((4, 3), np.float16))], np.zeros(4, np.int32), np.arange(4, dtype=np.int32)
    )
    learnt = Part(PRODUCTS, np.zeros((4, 32), np.uint8), rows)
    with pytest.raises(
        ShelfmarkError, match=r"all zero; .*random ones are for networks such as inception_v3"
    ):
        shape_of(learnt, TREE, "", Config())


# Warm start


@pytest.fixture
def bundle_head(bundle_path: Path) -> tuple[Artifact, HeadShape, Taxonomy]:
    """A bundle in service, and a shape and a tree that fit it."""
    before = open_artifact(bundle_path, "bundle")
    return before, load_head(before.folder()).shape, read_taxonomy(before.file("taxonomy.csv"))


def test_head_of_the_bundle_before_stands_in_the_fresh_model(bundle_head: Any) -> None:
    before, shape, taxonomy = bundle_head
    model = build_head(shape)
    start = start_of(before, shape, taxonomy)
    assert start
    start(model)
    for was, now in zip(load_head(before.folder()).model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-6)


def test_a_head_that_does_not_fit_is_reported_and_left(bundle_head: Any, caplog: Any) -> None:
    before, shape, taxonomy = bundle_head
    assert start_of(before, replace(shape, fingerprint="other"), taxonomy) is None
    assert "head: starts fresh, not from bundle: the backbone's fingerprint is other" in caplog.text
