"""Trees kept as plain numbers decide as scikit-learn's do."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from models.decisions.boosting import LEAVES, TREES, Boosting, Tree, fit_boosting

Terms = dict[str, np.ndarray]


def drawn(products: int, seed: int = 0) -> tuple[Terms, np.ndarray]:
    """Two terms that matter, one of them rounded, one that matters with another, one of chance."""
    rng = np.random.default_rng(seed)
    terms = {name: rng.normal(size=products) for name in ("first", "second", "third", "chance")}
    terms["second"] = terms["second"].round(1)
    log_odds = 2 * terms["first"] + terms["second"] * terms["third"]
    return terms, rng.random(products) < expit(log_odds)


def scikit_learn(terms: Terms, correct: np.ndarray) -> HistGradientBoostingClassifier:
    model = HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, early_stopping=False, random_state=0
    )
    return model.fit(np.stack(list(terms.values()), axis=1), correct)


def walk(model: Boosting, row: dict[str, float]) -> float:
    """Log odds of one row, from node to node."""
    found = model.baseline
    for tree in model.trees:
        node = 0
        while tree.feature[node] >= 0:
            value = row[model.terms[tree.feature[node]]]
            node = tree.left[node] if value <= tree.threshold[node] else tree.right[node]
        found += tree.value[node]
    return found


@pytest.mark.parametrize("products", [50, 1000, 20_000])
def test_log_odds_are_those_of_scikit_learn(products: int) -> None:
    fitted, correct = drawn(products)
    model, theirs = fit_boosting(fitted, correct), scikit_learn(fitted, correct)
    for terms in (fitted, drawn(5000, seed=1)[0]):
        expected = theirs.decision_function(np.stack(list(terms.values()), axis=1))
        np.testing.assert_allclose(model.log_odds(terms), expected, rtol=0, atol=1e-12)


def test_rows_at_a_threshold_and_beyond_all_values_are_where_the_comparison_sends_them() -> None:
    model = fit_boosting(*drawn(2000))
    at = sorted(
        {t for tree in model.trees for t, f in zip(tree.threshold, tree.feature, strict=True) if f == 0}
    )
    first = np.array([-np.inf, *at, *np.nextafter(at, np.inf), np.inf])
    terms = {name: np.zeros(len(first)) for name in model.terms} | {"first": first}
    by_hand = [walk(model, {"second": 0, "third": 0, "chance": 0, "first": value}) for value in first]
    np.testing.assert_allclose(model.log_odds(terms), by_hand, rtol=0, atol=1e-12)


def test_trees_are_read_back_from_json() -> None:
    terms, correct = drawn(2000)
    model, adapter = fit_boosting(terms, correct), TypeAdapter(Boosting)
    expected = model.log_odds(terms)
    again = adapter.validate_python(json.loads(json.dumps(adapter.dump_python(model, mode="json"))))
    assert again == model
    np.testing.assert_array_equal(again.log_odds(terms), expected)


def test_the_number_of_threads_does_not_change_the_trees() -> None:
    terms, correct = drawn(20_000)
    with threadpool_limits(1):
        alone = fit_boosting(terms, correct)
    with threadpool_limits(2):
        assert fit_boosting(terms, correct) == alone


def test_importances_are_shares_and_chance_has_the_least() -> None:
    importance = fit_boosting(*drawn(5000)).importance
    assert sum(importance.values()) == pytest.approx(1, abs=1e-5)
    assert min(importance, key=importance.__getitem__) == "chance"
    assert max(importance, key=importance.__getitem__) == "first"


def test_trees_without_any_split_give_the_baseline() -> None:
    terms = {"constant": np.ones(100)}
    model = fit_boosting(terms, np.arange(100) < 80)
    assert model.importance == {"constant": 0}
    np.testing.assert_allclose(expit(model.log_odds(terms)), 0.8, atol=1e-6)


def test_a_damaged_tree_is_refused() -> None:
    tree = Tree((0, -1, -1), (0.5, 0, 0), (1, 0, 0), (2, 0, 0), (0, -1.0, 1.0))
    with pytest.raises(ValueError, match="one number for each node"):
        replace(tree, value=(0, -1.0))
    with pytest.raises(ValueError, match="expected a tree of 1 to 15 leaves"):
        replace(tree, right=(1, 0, 0))
    with pytest.raises(ValueError, match="each parent before"):
        Tree((0, 0, -1, -1, -1), (0.5,) * 5, (2, 1, 0, 0, 0), (3, 4, 0, 0, 0), (0.0,) * 5)
    with pytest.raises(ValueError, match="1 of 1 terms"):
        Boosting(("first",), 0.0, (replace(tree, feature=(1, -1, -1)),), {})
