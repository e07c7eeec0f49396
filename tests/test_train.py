"""What a head learns for each image, by its kind."""

import numpy as np
import pandas as pd
import pytest
from trees import uneven_tree

from features.errors import ShelfmarkError
from models.head import HeadShape
from pipeline.config import Head
from pipeline.train import labels_of, loss_of

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


def test_settings_without_weights_or_tree_loss_leave_the_cross_entropy() -> None:
    assert loss_of(TREE, Head()) is None
    assert loss_of(TREE, Head(kind="multitask")) is None
    assert loss_of(TREE, Head(loss="hierarchical")) is None  # the tree is in the head
    assert loss_of(TREE, Head(loss="soft_tree")) is not None
    assert loss_of(TREE, Head(kind="taxonnet", level_weights=(1, 1, 2))) is not None


def test_weights_of_another_number_of_levels_are_refused() -> None:
    with pytest.raises(
        ShelfmarkError, match=r"head.level_weights: 2 numbers; expected 3, one for each level"
    ):
        loss_of(TREE, Head(kind="taxonnet", level_weights=(1, 1)))
