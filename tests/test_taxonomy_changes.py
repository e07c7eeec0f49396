"""What becomes of each category: kinds, chains, and trees from files, compared with slow plain reckoning."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import conftest
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ShelfmarkError
from models.taxonomy import read_paths
from models.taxonomy_changes import (
    FOR_PEOPLE,
    KINDS,
    ONE_TARGET,
    Change,
    Step,
    TreeChanges,
    compose,
    followed,
    gaps,
    in_order,
    places_in,
    rings_of,
    tree_changes,
)

CDISCOUNT = conftest.SHARED / "data" / "cdiscount" / "category_names.csv"
GOOGLE = """\
# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
166 - Apparel & Accessories
1604 - Apparel & Accessories > Clothing
"""


def places(**paths: str) -> dict[str, tuple[str, ...]]:
    """Categories at places like leek="Food/Leek"."""
    return {category: tuple(path.split("/")) for category, path in paths.items()}


def rules(**targets: str) -> Step:
    """A step of rules like a="b c"."""
    return Step(rules={old: tuple(new.split()) for old, new in targets.items()})


def kinds(found: TreeChanges) -> dict[str, str]:
    """Kind and targets of each category, as "merge c"."""
    return {one.category: " ".join((one.kind, *one.targets)) for one in found.changes}


OLD = places(c1="Food/Apple", c2="Food/Pear", c3="Food/Leek", c4="Home/Soap", c5="Home/Vase", c6="Toys/Ball")


def test_ids_and_paths_alone_give_rename_move_delete_and_add() -> None:
    new = places(c1="Food/Apples", c2="Food/Pear", c3="Garden/Leek", c5="Home/Vase", c9="Home/Lamp")
    assert kinds(tree_changes(OLD, new)) == {
        "c1": "rename c1", "c2": "unchanged c2", "c3": "move c3", "c4": "delete", "c5": "unchanged c5",
        "c6": "delete", "c9": "add",
    }  # fmt: skip


def test_a_mapping_gives_merge_split_dead_and_cyclic() -> None:
    new = places(c2="Food/Pear", c7="Food/Fruit", c8="Home/Bar", c9="Home/Flakes", c5="Home/Vase")
    step = Step(
        rules={"c1": ("c7",), "c3": ("c7",), "c4": ("c8", "c9"), "c6": ("gone",)}, rings={"c5": "c5 → x → c5"}
    )
    found = tree_changes(OLD, new, step)
    assert kinds(found) == {
        "c1": "merge c7", "c2": "unchanged c2", "c3": "merge c7", "c4": "split c8 c9", "c5": "cyclic",
        "c6": "dead",
    }  # fmt: skip
    assert {one.category: one.reason for one in found.changes if one.kind in ("dead", "cyclic")} == {
        "c5": "the mapping leads back: c5 → x → c5",
        "c6": "the mapping leads to gone not in the new tree",
    }
    assert found.sources == {"c2": ("c2",), "c7": ("c1", "c3")}
    assert found.split_sources == {"c8": ("c4",), "c9": ("c4",)}


def test_a_category_merged_into_one_that_stays_leaves_that_one_as_it_is() -> None:
    new = places(c1="Food/Apple", c3="Food/Leek")
    old = places(c1="Food/Apple", c2="Food/Pear", c3="Food/Leek")
    assert kinds(tree_changes(old, new, rules(c2="c1"))) == {
        "c1": "unchanged c1",
        "c2": "merge c1",
        "c3": "unchanged c3",
    }


def test_a_split_of_which_one_part_is_dead_is_still_a_split() -> None:
    """That all of its products belong to the part that is left would be a guess."""
    found = tree_changes(places(a="A"), places(b="B"), rules(a="b gone"))
    assert found.changes == (Change("a", "split", ("b",), "gone not in the new tree"),)
    assert found.changes[0].target is None


def test_a_renamed_department_renames_its_categories_and_moves_none() -> None:
    new = places(c1="Groceries/Apple", c2="Groceries/Pear", c3="Home/Leek", c4="Home/Soap", c5="Home/Vase")
    old = {name: OLD[name] for name in ("c1", "c2", "c3", "c4", "c5")}
    assert kinds(tree_changes(old, new))["c1"] == "move c1", "one of Food went elsewhere"
    old["c3"] = ("Home", "Leek")
    found = tree_changes(old, new)
    assert kinds(found)["c1"] == kinds(found)["c2"].replace("2", "1") == "rename c1"
    assert found.changes[0].reason == "the node above has another name: from Food to Groceries"


def test_an_id_that_changed_is_found_by_exactly_its_path() -> None:
    assert kinds(tree_changes(places(old="Food/Apple"), places(new="Food/Apple"))) == {"old": "rename new"}
    two = places(one="Food/Apple", two="Food/Apple")
    assert kinds(tree_changes(places(old="Food/Apple"), two)) == {"old": "delete", "one": "add", "two": "add"}


def test_a_category_that_became_a_node_is_split_and_a_node_that_became_a_category_merges() -> None:
    fruit, parts = places(f="Food/Fruit"), places(a="Food/Fruit/Apple", p="Food/Fruit/Pear")
    assert kinds(tree_changes(fruit, parts)) == {"f": "split a p"}
    assert kinds(tree_changes(parts, fruit)) == {"a": "merge f", "p": "merge f"}


def test_a_level_that_only_repeats_the_category_changes_nothing() -> None:
    assert not tree_changes({"17": ("Food", "Fruit")}, {"17": ("Food", "Fruit", "17")}).changed


def test_ids_are_compared_without_shopifys_prefix_and_keep_the_spelling_of_the_new_tree() -> None:
    full = "gid://shopify/TaxonomyCategory/"
    new = {f"{full}hb-1": ("Health", "Scale"), f"{full}aa": ("Apparel",)}
    found = tree_changes(
        {"el-7": ("Electronics", "Scale"), "aa": ("Apparel",)}, new, rules(**{"el-7": "hb-1"})
    )
    assert kinds(found) == {"aa": f"unchanged {full}aa", "el-7": f"move {full}hb-1"}


def test_new_categories_parts_of_splits_and_those_of_waiting_ones_are_unproven() -> None:
    new = places(a="A", b="B", c="C", d="D", m="M", fresh="F")
    old = places(a="A", s="S", w="W", x="X", y="Y")
    found = tree_changes(old, new, rules(s="b c", w="d", x="m", y="m"))
    assert found.unproven() == ("b", "c", "fresh")
    assert found.unproven(withheld=("w", "x")) == ("b", "c", "d", "fresh"), "y of m had its evidence"
    assert found.unproven(withheld=("x", "y")) == ("b", "c", "fresh", "m")


def test_without_a_new_tree_all_that_the_mapping_names_is_there() -> None:
    found = tree_changes({"a": (), "b": ()}, None, rules(a="z"))
    assert kinds(found) == {"a": "rename z", "b": "unchanged b"}


# Chains


def test_chains_are_composed_over_files_and_followed_within_a_list_of_redirects() -> None:
    chain = compose([rules(a="b", x="y"), rules(b="c"), rules(c="d e")])
    assert chain.rules == {"a": ("d", "e"), "x": ("y",), "b": ("d", "e"), "c": ("d", "e")}
    long = {f"n{number}": (f"n{number + 1}",) for number in range(10_000)}
    assert followed(long)[0]["n0"] == ("n10000",)


def test_a_deleted_part_of_a_split_leaves_it_a_split() -> None:
    found = compose([rules(a="b c"), Step(rules={"b": ()})])
    assert found.rules["a"] == ("c",) and "a" in found.splits
    assert kinds(tree_changes(places(a="A"), places(c="C"), found)) == {"a": "split c"}


def test_a_split_that_comes_together_again_is_none() -> None:
    found = compose([rules(a="b c"), rules(b="d", c="d")])
    assert found.rules["a"] == ("d",) and not found.splits


NAMES = st.sampled_from("abcdefgh")
RULES = st.dictionaries(NAMES, st.lists(NAMES, max_size=3, unique=True).map(tuple), max_size=8)


def reached(start: str, rules_of: Mapping[str, tuple[str, ...]]) -> tuple[set[str], bool]:
    """By walking along every way: where redirects end, and whether one leads into a ring."""
    ends, ring = set(), False
    ways = [[start]]
    while ways:
        way = ways.pop()
        here = way[-1]
        targets = rules_of.get(here)
        if targets is None:
            ends.add(here)
            continue
        for new in targets:
            if new == here:
                ends.add(new)
            elif new in way:
                ring = True
            else:
                ways.append([*way, new])
    return ends, ring


@given(RULES)
@settings(max_examples=300, deadline=None)
def test_redirects_end_where_walking_every_way_ends(rules_of: dict[str, tuple[str, ...]]) -> None:
    ends, splits, rings = followed(rules_of)
    assert set(ends) | set(rings) == set(rules_of) and not set(ends) & set(rings)
    for old in rules_of:
        expected, ring = reached(old, rules_of)
        assert (old in rings) == ring
        if not ring:
            assert set(ends[old]) == expected
            assert len(set(ends[old])) == len(ends[old])
    assert splits <= {old for old, new in ends.items() if new}


@given(RULES)
@settings(max_examples=200, deadline=None)
def test_a_ring_is_what_leads_back_to_itself_over_others(rules_of: dict[str, tuple[str, ...]]) -> None:
    without_self = {old: tuple(one for one in new if one != old) for old, new in rules_of.items()}

    def after(names: set[str]) -> set[str]:
        return {new for old in names for new in without_self.get(old, ())}

    for old in rules_of:
        seen: set[str] = set()
        border = after({old})
        while border - seen:
            seen |= border
            border = after(border)
        assert (old in rings_of(rules_of)) == (old in seen)
    for old, ring in rings_of(rules_of).items():
        way = ring.split(" → ")
        assert way[0] == way[-1] == old
        for one, two in itertools.pairwise(way):
            assert "…" in (one, two) or two in rules_of[one]


def as_step(rules_of: dict[str, tuple[str, ...]]) -> Step:
    ends, splits, rings = followed(rules_of)
    return Step(rules=ends, splits=frozenset(splits), rings=rings)


def said(step: Step) -> tuple[object, ...]:
    return {old: set(new) for old, new in step.rules.items()}, step.splits, set(step.rings)


@given(st.lists(RULES.map(as_step), min_size=3, max_size=3))
@settings(max_examples=500, deadline=None)
def test_files_composed_one_by_one_or_together_say_the_same(steps: list[Step]) -> None:
    one, two, three = steps
    together = compose(steps)
    assert said(together) == said(compose([compose([one, two]), three]))
    assert said(together) == said(compose([one, compose([two, three])]))


@given(st.lists(RULES.map(as_step), min_size=1, max_size=3), NAMES)
@settings(max_examples=300, deadline=None)
def test_a_chain_ends_where_its_files_one_after_the_other_end(steps: list[Step], start: str) -> None:
    chain, here, ring = compose(steps), {start}, False
    for step in steps:
        ring |= bool(here & set(step.rings))
        here = {new for old in here for new in step.rules.get(old, (old,))}
    assert (start in chain.rings) == ring
    if not ring:
        assert set(chain.rules.get(start, (start,))) == here


TREES = st.dictionaries(
    NAMES, st.lists(st.sampled_from("XYZ"), min_size=1, max_size=3).map(tuple), max_size=8
)


@given(TREES, TREES, RULES.map(as_step))
@settings(max_examples=500, deadline=None)
def test_every_old_category_has_exactly_one_kind_and_no_target_outside_the_new_tree(
    old: dict[str, tuple[str, ...]], new: dict[str, tuple[str, ...]], step: Step
) -> None:
    found = tree_changes(old, new, step)
    of_old = [change for change in found.changes if change.kind != "add"]
    assert sorted(change.category for change in of_old) == sorted(old)
    for change in found.changes:
        assert change.kind in KINDS and set(change.targets) <= set(new)
        assert (change.target is None) == (change.kind not in ONE_TARGET)
        if change.kind in ("delete", "dead", "cyclic", "add"):
            assert not change.targets
        if change.kind in FOR_PEOPLE:
            assert change.reason
    added = {change.category for change in found.changes if change.kind == "add"}
    assert added.isdisjoint(old) and added <= set(found.unproven())
    assert sum(found.counts().values()) == len(found.changes)


# Versions


def step(before: str, after: str) -> Step:
    return Step(name=f"{before}.yml", rules={}, before=before, after=after)


def test_files_are_taken_in_the_order_of_their_versions() -> None:
    one, two, three = (
        step("shopify/2024-07", "shopify/2024-10"),
        step("shopify/2024-10", "shopify/2025-03-rc1"),
        step("shopify/2025-03", "shopify/2025-09-unstable"),
    )
    own = Step(name="own.csv", rules={"a": ("b",)})
    assert in_order([three, one, own, two]) == [one, two, own, three]
    assert gaps([one, two, three]) == []
    assert gaps([one, three]) == [("shopify/2024-10", "shopify/2025-03")]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (step("shopify/2024-07", "shopify/2025-03"), "both begin at shopify/2024-07"),
        (step("google/2025-01", "google/2025-03"), "begins at google/2025-01"),
    ],
)
def test_files_that_do_not_follow_each_other_are_refused(second: Step, message: str) -> None:
    with pytest.raises(ShelfmarkError, match=message):
        in_order([step("shopify/2024-07", "shopify/2024-10"), second])


# Files


def test_googles_text_is_a_tree(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy-with-ids.en-US.txt"
    file.write_text(GOOGLE)
    assert places_in(read_paths(file)) == {
        "1": ("Animals & Pet Supplies",),
        "166": ("Apparel & Accessories",),
        "1604": ("Apparel & Accessories", "Clothing"),
    }


def test_googles_text_without_ids_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy.en-US.txt"
    file.write_text("# Google_Product_Taxonomy_Version: 2021-09-21\nAnimals > Live\n")
    with pytest.raises(ShelfmarkError, match=r"line 2: 'Animals > Live'; expected an id and names"):
        read_paths(file)


@pytest.mark.skipif(not CDISCOUNT.exists(), reason="no Cdiscount tree here")
def test_cdiscounts_tree_with_drawn_changes() -> None:
    """5,270 categories: one renamed, one moved, two merged, one split, one gone, one added."""
    old = places_in(read_paths(CDISCOUNT))
    first, second, third, fourth, fifth, sixth, seventh = sorted(old)[:7]
    new = dict(old)
    new[first] = (*old[first][:-1], "ANOTHER NAME")
    new[second] = ("ELSEWHERE", *old[second][1:])
    for gone in (third, fourth, fifth, sixth):
        del new[gone]
    new |= {
        "merged": ("M", "M", "M"),
        "part1": ("P", "P", "1"),
        "part2": ("P", "P", "2"),
        "new": ("N", "N", "N"),
    }
    found = tree_changes(old, new, rules(**{third: "merged", fourth: "merged", fifth: "part1 part2"}))
    counts = {kind: count for kind, count in found.counts().items() if count}
    assert counts == {
        "unchanged": 5264,
        "rename": 1,
        "move": 1,
        "merge": 2,
        "split": 1,
        "delete": 1,
        "add": 1,
    }
    assert kinds(found)[seventh] == f"unchanged {seventh}"
