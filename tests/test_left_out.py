"""The measures of benchmarks/left_out.py on trees written by hand."""

import sys
from pathlib import Path

import numpy as np
from trees import UNEVEN, tree_of, uneven_tree

from models.taxonomy import Taxonomy

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from left_out import found_ancestors, surviving_nodes


def index(tree: Taxonomy, *categories: str) -> np.ndarray:
    return tree.index(np.array(categories, dtype=object))


def test_left_out_category_survives_where_others_share_its_ancestors() -> None:
    full = uneven_tree()
    kept = tree_of({name: path for name, path in UNEVEN.items() if name not in ("pear", "oats", "gift")})
    found = surviving_nodes(full, kept)
    for category, path in UNEVEN.items():
        for level in range(3):
            node = found[level, index(full, category)[0]]
            others = {other for other in kept.categories if kept.nodes[level, index(kept, other)[0]] == node}
            names = "/".join(full.names[index(full, category)[0], : level + 1])
            expected = {
                other
                for other in kept.categories
                if names == "/".join(kept.names[index(kept, other)[0], : level + 1])
            }
            assert others == expected, (category, path, level)
    assert (found[:, index(full, "pear")[0]] >= 0).tolist() == [True, True, False]
    assert (found[:, index(full, "oats")[0]] >= 0).tolist() == [True, False, False]
    assert (found[:, index(full, "gift")[0]] >= 0).tolist() == [False, False, False]


def test_ancestors_of_left_out_categories_are_counted_where_there_are_any() -> None:
    full = uneven_tree()
    kept = tree_of({name: path for name, path in UNEVEN.items() if name not in ("pear", "oats")})
    truth = index(full, "pear", "pear", "oats")
    predicted = index(kept, "apple", "milk", "soap")  # correct at 1 and 2; at 1; at 1
    table = found_ancestors(truth, kept.nodes.T[predicted], surviving_nodes(full, kept))
    assert table["level"].tolist() == [1, 2, 3]
    assert table["products"].tolist() == [3, 2, 0]
    assert table["found"].tolist()[:2] == [1.0, 0.5]
    assert np.isnan(table["found"].tolist()[2])
