"""The decision as a graph of TensorFlow decides as the categorizer does, with every kind of head."""

import numpy as np
import pytest
from drawn_categorizers import KINDS, PATHS, draw_categorizer, drawn_tree

from features.views import combined
from models.decisions.boosting import Boosting, fit_boosting
from models.decisions.categorizer import ACCEPTED, PARENT, REVIEW

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
WIDTH = 12
PRODUCTS = 240  # fewer than 256: the splits of their trees are between their terms, with more at one of them


def drawn_rows(images: np.ndarray, seed: int) -> np.ndarray:
    """(n, d) float16 bottlenecks; products differ more than the images of one do."""
    rng = np.random.default_rng(seed)
    products = rng.normal(size=(len(images), WIDTH)).repeat(images, axis=0)
    return (products + rng.normal(0, 0.5, products.shape)).astype(np.float16)


QUICK = (
    *("hierarchical, geometric mean", "multitask, trees", "set, mirrored", "averaged"),
    "cascade, hierarchical, geometric mean",
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_statuses_nodes_and_confidences_are_those_of_the_categorizer(name: str) -> None:
    import tensorflow as tf

    from models.decisions.decision_graph import STATUSES, DecisionNames, decide

    kind = KINDS[name]
    images = np.random.default_rng(1).integers(1, 5, PRODUCTS)
    every = drawn_rows(images * len(kind.views), 2)  # of all views
    rows = combined([every[place :: len(kind.views)] for place in range(len(kind.views))], kind.averaged)
    bounds = np.concatenate([[0], np.cumsum(images * kind.rows_of_image)])
    categorizer = draw_categorizer(kind, rows, bounds)
    predictions = categorizer.predict_all(rows, bounds)
    expected = categorizer.decide(np.arange(PRODUCTS).astype(str), predictions)
    all_views = expected["views"] == ",".join(kind.views)
    assert all_views.sum() == PRODUCTS // 2 if kind.cascade else all_views.all()
    names = DecisionNames.of(categorizer.predictor.taxonomy)
    graph = tf.function(lambda rows, images: decide(categorizer, names, rows, images))  # as a converter does
    found = graph(tf.constant(every.astype(np.float32)), tf.constant(images, tf.int32))
    found = {column: value.numpy() for column, value in found.items()}

    np.testing.assert_allclose(found["confidence"], expected["confidence"], rtol=0, atol=2e-6)
    assert np.mean(found["top_categories"] == predictions.top) > 0.999  # but for equal ones
    # the graph has the head in float32, the categorizer in float64: a logit of 116 differs by 2.3e-5
    np.testing.assert_allclose(found["top_probabilities"], predictions.top_probability, rtol=0, atol=5e-6)
    row = found["decision"]
    assert [STATUSES[number] for number in names.status[row]] == expected["status"].tolist()
    assert names.node[row].tolist() == expected["node"].fillna("").tolist()
    assert names.node_path[row].tolist() == expected["node_path"].fillna("").tolist()
    assert names.node_level[row].tolist() == expected["node_level"].fillna(0).tolist()
    counts = expected["status"].value_counts()
    assert min(counts[ACCEPTED], counts[PARENT], counts[REVIEW]) > 10, counts
    (withheld,) = categorizer.rules.withheld
    assert (expected["confidence"] == 0).sum() == (expected["category"] == withheld).sum() > 0


def test_every_decision_that_there_can_be_has_a_row() -> None:
    from models.decisions.decision_graph import STATUSES, DecisionNames

    tree = drawn_tree()
    names = DecisionNames.of(tree)
    rows = set(zip([STATUSES[one] for one in names.status], names.node_path, names.node_level, strict=True))
    assert (REVIEW, "", 0) in rows and (PARENT, "food", 1) in rows and (PARENT, "food / fruit", 2) in rows
    assert (ACCEPTED, "food / fruit / pear", 3) in rows and (ACCEPTED, "wear / hat", 2) in rows
    # review, three departments, five nodes of level 2 and the shallow leaf's, ten categories
    assert len(names.status) == 1 + 3 + 5 + len(PATHS) and names.row.shape == (4, 10)


def test_trees_as_matrices_give_their_log_odds() -> None:
    import tensorflow as tf

    from models.decisions.decision_graph import _boosted

    rng = np.random.default_rng(0)
    terms = {name: rng.normal(size=2000) for name in ("first", "second", "third")}
    terms["second"] = terms["second"].round(1)  # many rows are exactly at a threshold's neighbours
    model = fit_boosting(terms, rng.random(2000) < 1 / (1 + np.exp(-terms["first"] * terms["third"])))
    found = _boosted(model, {name: tf.constant(values) for name, values in terms.items()}).numpy()
    np.testing.assert_allclose(found, model.log_odds(terms), rtol=0, atol=1e-12)
    assert len(np.unique(found)) > 100


def test_a_tree_without_a_comparison_is_a_constant() -> None:
    import tensorflow as tf

    from models.decisions.boosting import Tree
    from models.decisions.decision_graph import _boosted

    leaf = Tree((-1,), (0.0,), (0,), (0,), (0.25,))
    found = _boosted(Boosting(("a",), -1.0, (leaf,), {"a": 0.0}), {"a": tf.zeros(2, tf.float64)})
    assert found.numpy().tolist() == [-0.75, -0.75]
