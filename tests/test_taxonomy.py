"""The tree follows from the paths, and is read back from its file unchanged."""

from collections import Counter
from pathlib import Path

import conftest
import numpy as np
import pytest

from features.errors import ShelfmarkError
from models.heads.hierarchy import HierarchicalScores, hierarchical_scores
from models.taxonomy import (
    CategoryPaths,
    Taxonomy,
    build_taxonomy,
    guessed_depth,
    homonyms,
    read_paths,
    read_taxonomy,
    write_taxonomy,
)

CDISCOUNT = conftest.SHARED / "data" / "cdiscount" / "category_names.csv"


def paths_of(**paths: str) -> CategoryPaths:
    """Paths from texts like leek="Food/Vegetables"."""
    return Counter({(category, tuple(path.split("/"))): 1 for category, path in paths.items()})


def tree_of(**paths: str) -> Taxonomy:
    return build_taxonomy(paths_of(**paths), set(paths))[0]


def names_of(tree: Taxonomy) -> dict[str, str]:
    """Each category's path as a text."""
    return {category: "/".join(names) for category, names in zip(tree.categories, tree.names, strict=True)}


def test_categories_are_sorted_and_have_their_names() -> None:
    tree = tree_of(soap="Home/Bath", leek="Food/Vegetable", pear="Food/Fruit")
    assert tree.levels == 2
    assert names_of(tree) == {"leek": "Food/Vegetable", "pear": "Food/Fruit", "soap": "Home/Bath"}
    assert tree.nodes.tolist() == [[0, 0, 1], [0, 1, 2]]


def test_shallow_leaf_is_its_own_node_at_the_deeper_levels() -> None:
    tree = tree_of(gift="Gift", leek="Food/Vegetable", pear="Food/Fruit/Pear")
    assert names_of(tree) == {
        "gift": "Gift/Gift/Gift",
        "leek": "Food/Vegetable/Vegetable",
        "pear": "Food/Fruit/Pear",
    }
    assert tree.nodes.tolist() == [[1, 0, 0], [2, 1, 0], [0, 1, 2]]
    assert [tree.label(index) for index in range(3)] == ["Gift", "Food / Vegetable", "Food / Fruit / Pear"]


def test_parents_are_the_nodes_of_the_level_above_and_depth_counts_a_shallow_leaf_once() -> None:
    tree = tree_of(gift="Gift", leek="Food/Vegetable", pear="Food/Fruit/Pear", soap="Home/Bath/Soap")
    assert tree.nodes.tolist() == [[1, 0, 0, 2], [2, 1, 0, 3], [0, 1, 2, 3]]
    assert tree.parents == ((0, 0, 0), (0, 0, 1, 2), (2, 1, 0, 3))
    for level in (1, 2):
        above = np.array(tree.parents[level])[tree.nodes[level]]
        assert above.tolist() == tree.nodes[level - 1].tolist()
    assert tree.depth.tolist() == [1, 2, 3, 3]
    assert tree_of(a="a", b="b").depth.tolist() == [1, 1]


def test_where_paths_name_categories_one_to_one_the_finest_name_is_the_category() -> None:
    assert tree_of(a="Food/Pear", b="Food/Leek").levels == 2


def test_where_they_do_not_the_category_is_one_level_more() -> None:
    tree = tree_of(a="Food/Pear", b="Food/Pear", c="Food/Leek")
    assert names_of(tree) == {"a": "Food/Pear/a", "b": "Food/Pear/b", "c": "Food/Leek/c"}
    assert tree.nodes.tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 2]]


def test_same_name_under_two_parents_is_two_nodes() -> None:
    tree = tree_of(a="Food/Other/Nut", b="Home/Other/Nut", c="Home/Other/Bolt")
    assert tree.nodes.tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 2]]


def test_category_without_a_path_is_a_leaf_under_the_root() -> None:
    tree, conflicts = build_taxonomy(paths_of(leek="Food/Leek"), {"leek", "mystery"})
    assert names_of(tree) == {"leek": "Food/Leek", "mystery": "mystery/mystery"}
    assert conflicts == 0


def test_categories_that_are_not_kept_do_not_change_the_tree() -> None:
    tree, conflicts = build_taxonomy(paths_of(leek="Food/Leek", soap="Home/Bath/Soap/Hard"), {"leek"})
    assert names_of(tree) == {"leek": "Food/Leek"}
    assert conflicts == 0


def test_category_with_several_paths_has_the_most_common_then_the_first() -> None:
    paths: CategoryPaths = Counter(
        {
            ("leek", ("Food", "Fruit")): 2,
            ("leek", ("Food", "Vegetable")): 5,
            ("soap", ("Home", "Bath")): 3,
            ("soap", ("Body", "Bath")): 3,
            ("pear", ("Food", "Pear")): 1,
            ("pear", ()): 9,
        }
    )
    tree, conflicts = build_taxonomy(paths, {"leek", "soap", "pear"})
    assert names_of(tree) == {"leek": "Food/Vegetable", "soap": "Body/Bath", "pear": "Food/Pear"}
    assert conflicts == 2


def test_level_sums_add_up_the_leaves_of_each_node() -> None:
    tree = tree_of(a="Food/Pear", b="Food/Leek", c="Home/Soap")
    leaves = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(leaves @ tree.sums[0], [[0.7, 0.3], [0.2, 0.8]])
    np.testing.assert_allclose(leaves @ tree.sums[1], leaves)


def test_tree_of_one_level_is_its_categories() -> None:
    tree = tree_of(a="a", b="b")
    assert tree.levels == 1
    assert tree.nodes.tolist() == [[0, 1]]
    np.testing.assert_allclose(np.eye(2) @ tree.sums[0], np.eye(2))


def test_index_of_what_is_not_in_the_tree_is_minus_one() -> None:
    tree = tree_of(a="Food/a", b="Food/b", c="Food/c")
    wanted = np.array(["c", "x", "a", None, float("nan"), "b"], dtype=object)
    assert tree.index(wanted).tolist() == [2, -1, 0, -1, -1, 1]
    assert tree.index(np.array([], dtype=object)).tolist() == []


AWKWARD = [
    "NA",
    "null",
    "None",
    "",
    "nan",
    "1e5",
    "007",
    "a,b",
    'say "hi"',
    "two\nlines",
    " padded ",
    "Noix de coco é鞋",
]


def test_awkward_names_are_read_back_unchanged(tmp_path: Path) -> None:
    paths = Counter({(name or "empty", ("Top, left", name or "empty")): 1 for name in AWKWARD})
    tree, _ = build_taxonomy(paths, {category for category, _ in paths})
    write_taxonomy(tree, tmp_path / "taxonomy.csv")
    again = read_taxonomy(tmp_path / "taxonomy.csv")
    assert again.categories.tolist() == tree.categories.tolist()
    assert again.names.tolist() == tree.names.tolist()
    np.testing.assert_array_equal(again.nodes, tree.nodes)
    assert again.index(tree.categories).tolist() == list(range(len(AWKWARD)))


def test_file_has_a_column_for_the_category_and_for_each_level(tmp_path: Path) -> None:
    write_taxonomy(tree_of(gift="Gift", pear="Food/Fruit"), tmp_path / "taxonomy.csv")
    assert (
        tmp_path / "taxonomy.csv"
    ).read_text() == "category,level1,level2\ngift,Gift,Gift\npear,Food,Fruit\n"


def test_paths_are_read_in_the_form_of_cdiscount(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    text = (
        'category_id,category_level1,category_level2\n1,"FOOD, DRINK",NA\n2,HOME,\n3, HOME , BATH \n4,HOME\n'
    )
    for encoding in ("utf-8", "utf-8-sig"):
        file.write_text(text, encoding=encoding)
        assert read_paths(file) == Counter(
            {
                ("1", ("FOOD, DRINK", "NA")): 1,
                ("2", ("HOME",)): 1,
                ("3", ("HOME", "BATH")): 1,
                ("4", ("HOME",)): 1,
            }
        )


def test_written_taxonomy_can_be_read_as_a_taxonomy_file(tmp_path: Path) -> None:
    tree = tree_of(gift="Gift", pear="Food/Fruit")
    write_taxonomy(tree, tmp_path / "taxonomy.csv")
    again, _ = build_taxonomy(read_paths(tmp_path / "taxonomy.csv"), {"gift", "pear"})
    assert names_of(again) == names_of(tree)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"category_id,name\n1,a\n", "columns category_id, name; expected category_id, category_level1"),
        (b"category_level1\nFOOD\n", "columns category_level1; expected category_id"),
        (b"", "cannot be read"),
        (b'category_id,level1\n1,"open\n', "cannot be read: line 2: a quote that opens here is not closed"),
        (
            b"category,level1,level2\nOther,Home,Other\nOther,Food,Other\n",
            "category 'Other' is at Food / Other and at Home / Other; expected one parent",
        ),
        (None, "cannot be read"),
    ],
)
def test_file_that_is_not_a_taxonomy_is_refused(tmp_path: Path, data: bytes | None, why: str) -> None:
    file = tmp_path / "names.csv"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ShelfmarkError, match=why):
        read_paths(file)


def test_levels_are_read_by_their_numbers_and_columns_of_similar_names_are_reported(tmp_path, caplog):
    file = tmp_path / "names.csv"
    file.write_text("category_level10;Category_Level_2;level_count;Category_ID;category_level1\nc;b;9;7;a\n")
    with caplog.at_level("INFO", "shelfmark"):
        assert read_paths(file) == {("7", ("a", "b", "c")): 1}
    assert "names.csv: columns level_count are not used" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_names_are_compared_without_invisible_differences(tmp_path, caplog, encoding):
    decomposed = "Cafe\u0301" if encoding != "cp1252" else "Café "
    rows = f"category_id\tlevel1\tlevel2\n1\tCafé\tThé  vert\n2\t{decomposed}\tThé vert\n"
    (tmp_path / "names.tsv").write_bytes(rows.encode(encoding))
    with caplog.at_level("INFO", "shelfmark"):
        paths = read_paths(tmp_path / "names.tsv")
    assert paths == {("1", ("Café", "Thé vert")): 1, ("2", ("Café", "Thé vert")): 1}
    assert "names.tsv: 2 names have several spellings" in caplog.text


def test_names_of_one_category_in_several_spellings_are_logged_with_their_counts(tmp_path, caplog):
    file = tmp_path / "names.csv"
    file.write_text("category,level1\nShoes,Wear\nShoes ,Wear\nHats,Wear\nShoes,Wear\n")
    with caplog.at_level("INFO", "shelfmark"):
        assert read_paths(file) == {("Shoes", ("Wear",)): 3, ("Hats", ("Wear",)): 1}
    assert "each is one name: 'Shoes' (2) and 'Shoes ' (1)" in caplog.text


def test_a_column_of_depths_shortens_paths_only_where_it_numbers_a_level(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("category,level1,level2,depth\na,A,A,1\nb,B,B,2\nc,C,D,0\nd,D,E,35.5 cm\n")
    assert set(read_paths(file)) == {("a", ("A",)), ("b", ("B", "B")), ("c", ("C", "D")), ("d", ("D", "E"))}


def test_a_release_with_names_that_are_not_tidy_has_this_weeks_categories():
    old = Taxonomy(np.array(["Cafe\u0301", "Shoes "], object), np.array([["Cafe\u0301"], ["Shoes "]], object))
    assert old.index(np.array(["Café", "Shoes", "shoes", None], object)).tolist() == [0, 1, -1, -1]


def test_a_leaf_with_the_name_of_its_parent_is_as_deep_as_its_path(tmp_path: Path) -> None:
    tree = tree_of(candle="Home/Candle/Candle", lamp="Home/Candle/Lamp", gift="Gift")
    assert tree.depth.tolist() == [3, 1, 3]
    assert [tree.label(index) for index in range(3)] == [
        "Home / Candle / Candle",
        "Gift",
        "Home / Candle / Lamp",
    ]
    write_taxonomy(tree, tmp_path / "taxonomy.csv")
    assert (tmp_path / "taxonomy.csv").read_text().splitlines()[:2] == [
        "category,level1,level2,level3,depth",
        "candle,Home,Candle,Candle,3",
    ]
    again = read_taxonomy(tmp_path / "taxonomy.csv")
    assert (again.levels, again.depth.tolist()) == (3, [3, 1, 3])
    assert read_paths(tmp_path / "taxonomy.csv")[("gift", ("Gift",))] == 1


def test_photos_beside_a_folder_of_the_same_name_are_another_category_than_those_in_it(
    tmp_path: Path,
) -> None:
    tree = tree_of(**{"Food": "Food", "Food/Food": "Food/Food", "Food/Food/Pear": "Food/Food/Pear"})
    assert tree.depth.tolist() == [1, 2, 3]
    # the leaf Food is its own node at level 2, beside the folder Food / Food
    assert tree.nodes.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    write_taxonomy(tree, tmp_path / "taxonomy.csv")
    np.testing.assert_array_equal(read_taxonomy(tmp_path / "taxonomy.csv").nodes, tree.nodes)
    everything = np.arange(3)
    assert hierarchical_scores(everything, everything, tree) == HierarchicalScores(1.0, 1.0, 1.0)
    scores = hierarchical_scores(
        np.array([0, 1]), np.array([1, 2]), tree
    )  # 1 of 2 nodes, 2 of 3, of 3 true ones
    assert (scores.precision, scores.recall) == (3 / 5, 3 / 3)


def test_an_old_file_without_depths_keeps_the_nodes_that_its_head_was_trained_for(tmp_path: Path) -> None:
    (tmp_path / "taxonomy.csv").write_text(
        "category,level1,level2,level3\ncandle,Candle,Candle,Candle\nlamp,Candle,Candle,Lamp\nsoap,Bath,Soap,Soap\n"
    )
    tree = read_taxonomy(tmp_path / "taxonomy.csv")
    assert tree.nodes.tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 2]], "candle and lamp share Candle / Candle"
    assert tree.depth.tolist() == [2, 3, 2]
    scores = hierarchical_scores(np.array([1, 0, 2]), np.array([0, 0, 2]), tree)
    assert (scores.precision, scores.recall) == (1.0, 6 / 7)  # was 2.0 where candle counted as one deep


def test_photos_in_a_folder_and_in_one_below_it_need_no_depths_in_the_file(tmp_path: Path) -> None:
    tree = tree_of(**{"Food": "Food", "Food/Pear": "Food/Pear"})
    write_taxonomy(tree, tmp_path / "taxonomy.csv")
    assert (tmp_path / "taxonomy.csv").read_text().splitlines()[0] == "category,level1,level2"
    assert read_taxonomy(tmp_path / "taxonomy.csv").depth.tolist() == tree.depth.tolist() == [1, 2]


def test_categories_of_one_name_under_several_parents_are_named_by_their_paths():
    others = {("Other", ("Home", "Other")): 3, ("Other", ("Food", "Other")): 2}
    numbered = {("7", ("Home", "Other")): 1, ("7", ("Food", "Other")): 1}
    paths = Counter(others | numbered | {("Pear", ("Food", "Pear")): 1})
    assert homonyms(paths) == {
        ("Other", ("Home", "Other")): "Home / Other",
        ("Other", ("Food", "Other")): "Food / Other",
    }


@pytest.mark.skipif(not CDISCOUNT.is_file(), reason="needs ../shared/data/cdiscount/category_names.csv")
def test_tree_of_cdiscount_has_5270_categories_in_three_levels(tmp_path: Path) -> None:
    paths = read_paths(CDISCOUNT)
    tree, conflicts = build_taxonomy(paths, {category for category, _ in paths})
    assert (len(tree.categories), tree.levels, conflicts) == (5270, 3, 0)
    # 483 names at level 2, three of them under two parents
    assert [sums.shape for sums in tree.sums] == [(5270, 49), (5270, 486), (5270, 5270)]
    assert tree.label(int(tree.index(np.array(["1000012764"]))[0])) == (
        "AMENAGEMENT URBAIN - VOIRIE / AMENAGEMENT URBAIN / ABRI FUMEUR"
    )
    # 18 leaves are called as their parents
    assert (tree.names[:, 2] == tree.names[:, 1]).sum() == 18 and (guessed_depth(tree.names) < 3).sum() == 18
    assert tree.depth.tolist() == [3] * 5270
    same = hierarchical_scores(np.arange(5270), np.arange(5270), tree)
    assert same == HierarchicalScores(1.0, 1.0, 1.0)
    pipes = np.flatnonzero((tree.names[:, :2] == ["ARTICLES POUR FUMEUR", "PIPE"]).all(axis=1))
    leaf = [index for index in pipes if tree.names[index, 2] == "PIPE"]
    assert len(pipes) == 5 and len(leaf) == 1
    for written in (tree, Taxonomy(tree.categories, tree.names)):  # as kept, and as an old file has it
        near = hierarchical_scores(pipes, np.repeat(leaf, 5), written)  # one is correct, four share two nodes
        shared = 4 * 2 + written.depth[leaf[0]]
        assert (near.precision, near.recall) == (
            shared / (5 * written.depth[leaf[0]]),
            shared / written.depth[pipes].sum(),
        )
        assert max(near.precision, near.recall) <= 1
    write_taxonomy(tree, tmp_path / "taxonomy.csv")
    again = read_taxonomy(tmp_path / "taxonomy.csv")
    assert again.names.tolist() == tree.names.tolist() and again.depth.tolist() == tree.depth.tolist()
