"""A week in which the tree changes: labels are carried over, and everything that follows from it."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pandas as pd
import pytest
from catalogues import Drawn, draw_products, manifest_rows, write_manifest
from test_retrain import run_here

from features.storage.artifact import open_artifact
from models.decisions.bundle import open_bundle, read_rules
from models.decisions.categorizer import Categorizer
from models.taxonomy_changes import Step
from pipeline.ingest.ingest import make_records
from pipeline.ingest.relabel import relabelling
from pipeline.job.config import Config, IngestSettings
from pipeline.job.run import Run
from pipeline.job.summaries import RecordsSummary, TreeSummary
from pipeline.job.tree import changes_since_release, mapping_bytes, mapping_of, unproven
from pipeline.release.tree import moved_categories, tree_changes
from pipeline.train.calibrate import withheld_categories

SETTINGS = """
[ingest]
min_products = 10
min_known = 0
[backbone]
name = "mobilenet"
weights = "{weights}"
image_size = 32
[head]
hidden = [32, 32]
[train]
epochs = 8
batch = 16
warm_start = true
[calibration]
precision = 0.5
"""
COUNTS = {"apple": 40, "leek": 40, "soap": 40, "vase": 30}
PARENTS = {"apple": "food", "leek": "food", "soap": "home", "vase": "home", "fruit": "food", "bar": "home",
           "flakes": "home", "kite": "toys", "urn": "home"}  # fmt: skip
MAPPING = "from,to,kind\napple,fruit,\nleek,fruit,\nsoap,bar,\nsoap,flakes,\nvase,urn,rename\n"


def with_levels(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"level1": PARENTS.get(row["category"], ""), "level2": row["category"]} for row in rows]


def manifest(folder: Path, products: list[Drawn]) -> Path:
    return write_manifest(folder / "shop.csv", with_levels(manifest_rows(folder, products)))


def small(folder: Path, products: list[Drawn], **more: Any) -> Any:
    settings = IngestSettings(min_products=5, least_test=2)
    source = folder / "shop.csv"
    if not source.exists():
        manifest(folder, products)
    return make_records([str(source)], folder / "records", settings, **more)


def mapping(folder: Path, text: str = MAPPING) -> Path:
    file = folder / "renamed.csv"
    file.write_text(text)
    return file


# Ingest


def test_labels_of_the_old_tree_are_carried_over_and_counted(tmp_path: Path) -> None:
    products = draw_products({"apple": 12, "leek": 10, "soap": 9, "bar": 11, "vase": 8, "": 3})
    records = small(tmp_path, products, mappings=[mapping(tmp_path)])
    table = pd.read_parquet(records.file("products.parquet"))
    counts = table["category"].fillna("").value_counts().to_dict()
    assert counts == {"fruit": 22, "bar": 11, "urn": 8, "": 12}
    assert set(table.loc[table["category"].isna(), "split"]) == {"none"}
    summary = RecordsSummary.of(records)
    assert (summary.relabelled, summary.unlabelled) == ({"merge": 22, "rename": 8}, {"split": 9})
    assert summary.uncategorized_products == 12
    moved = pd.read_parquet(records.file("relabelled.parquet"))
    drawn = {product.id: product.category for product in products}
    assert dict(zip(moved["product_id"], moved["from"], strict=True)) == {
        name: category for name, category in drawn.items() if category in ("apple", "leek", "soap", "vase")
    }
    assert set(moved.loc[moved["to"].isna(), "from"]) == {"soap"}
    tree = pd.read_csv(records.file("taxonomy.csv"))
    assert tree.values.tolist() == [
        ["bar", "home", "bar"],
        ["fruit", "food", "fruit"],
        ["urn", "home", "urn"],
    ]
    assert mapping_of(records).rules["soap"] == ("bar", "flakes")


def test_the_order_of_mapping_files_with_versions_and_a_second_run_change_nothing(tmp_path: Path) -> None:
    names = [("one", "s/1", "s/2", "apple", "pear"), ("two", "s/2", "s/3", "pear", "fruit")]
    files = []
    for name, before, after, old, new in names:
        files.append(tmp_path / f"{name}.yml")
        files[-1].write_text(
            f"input_taxonomy: {before}\noutput_taxonomy: {after}\nrules:\n"
            f"- input: {{product_category_id: {old}}}\n  output: {{product_category_id: [{new}]}}\n"
        )
    products = draw_products({"apple": 12, "soap": 9})
    one, two = (small(tmp_path, products, mappings=order) for order in (files, files[::-1]))
    assert one.digest == two.digest
    assert set(pd.read_parquet(one.file("products.parquet"))["category"]) == {"fruit", "soap"}
    assert small(tmp_path, products).digest != one.digest


def test_with_a_taxonomy_dead_targets_and_deleted_categories_leave_products_without_category(
    tmp_path: Path,
) -> None:
    """And a category that neither tree nor mapping knows is rejected, as it is without a mapping."""
    products = draw_products({"apple": 12, "soap": 9, "vase": 8, "leek": 7, "kite": 2})
    tree = tmp_path / "tree.csv"
    tree.write_text(
        "category_id,category_level1,category_level2\nfruit,food,fruit\nleek,food,leek\nlamp,home,lamp\n"
    )
    file = mapping(tmp_path, "from,to\napple,fruit\nsoap,nowhere\nvase,\n")
    records = make_records(
        [str(manifest(tmp_path, products))], tmp_path / "records",
        IngestSettings(min_products=5, least_test=2, max_rejected=0.5), taxonomy=tree, mappings=[file],
    )  # fmt: skip
    summary = RecordsSummary.of(records)
    assert summary.relabelled == {"rename": 12} and summary.unlabelled == {"dead": 9, "delete": 8}
    images = sum(len(product.pictures) for product in products if product.category == "kite")
    assert summary.rejects == {"unknown_category": images}
    assert pd.read_csv(records.file("tree.csv"))["category"].tolist() == ["fruit", "lamp", "leek"]


def test_ids_with_shopifys_prefix_find_the_bare_ones_of_the_taxonomy(tmp_path: Path) -> None:
    full = "gid://shopify/TaxonomyCategory/"
    products = draw_products({f"{full}aa-1": 12, "el-7": 9})
    tree = tmp_path / "tree.txt"
    tree.write_text(
        "# Shopify Product Taxonomy - Categories: 2026-02\n"
        "aa-1 : Apparel > Clothing\nhb-1 : Health > Scales\n"
    )
    records = make_records(
        [str(write_manifest(tmp_path / "shop.csv", manifest_rows(tmp_path, products)))], tmp_path / "records",
        IngestSettings(min_products=5, least_test=2), taxonomy=tree,
        mappings=[mapping(tmp_path, f"from,to\n{full}el-7,hb-1\n")],
    )  # fmt: skip
    assert pd.read_parquet(records.file("products.parquet"))["category"].value_counts().to_dict() == {
        "aa-1": 12, "hb-1": 9,
    }  # fmt: skip


def test_a_folders_categories_are_paths_and_stay_paths() -> None:
    given = {("Fruit/Apple", ("Fruit", "Apple")): 3, ("Home/Soap", ("Home", "Soap")): 2}
    step = Step(rules={"Fruit/Apple": ("Food/Fruit/Apple",)})
    found = relabelling(step, given, None).paths(given)  # type: ignore[arg-type]
    assert dict(found) == {
        ("Food/Fruit/Apple", ("Food", "Fruit", "Apple")): 3,
        ("Home/Soap", ("Home", "Soap")): 2,
    }


def test_what_a_mapping_says_is_read_back_from_the_records_as_it_was(tmp_path: Path) -> None:
    step = Step("", {"a": ("b",), "c": ()}, frozenset("a"), {"x": "x → y → x"}, "s/1", "s/2", {"b": "A > B"})
    (tmp_path / "mapping.json").write_bytes(mapping_bytes(step))

    class Records:
        files = ("mapping.json",)

        def file(self, name: str) -> Path:
            return tmp_path / name

    assert mapping_of(Records()) == step  # type: ignore[arg-type]


# The stage


def test_before_the_first_release_nothing_has_changed_and_nothing_waits(tmp_path: Path) -> None:
    run = Run(tmp_path / "W", "w1", Config(), None)
    small(tmp_path, draw_products({"apple": 12, "leek": 10})).path.rename(tmp_path / "moved")
    run.path.mkdir(parents=True)
    (tmp_path / "moved").rename(run.path / "records")
    tree = tree_changes(run)
    assert not TreeSummary.of(tree).changed and TreeSummary.of(tree).release is None
    assert unproven(run, run.records()) == () and moved_categories(run) == frozenset()


@pytest.fixture
def run(workspace: Path, tmp_path: Path) -> Run:
    """A run based on release `first`, whose six categories are conftest.TREE."""
    run = Run(workspace, "w2", Config(), "first")
    names = sorted(conftest.TREE)
    rules = [(0, "merged"), (1, "merged"), (2, "part1"), (2, "part2")]
    kept = {name: 12 for name in names[2:]}
    PARENTS.update(conftest.TREE | {"merged": conftest.TREE[names[0]]})
    records = small(
        tmp_path, draw_products({names[0]: 12, names[1]: 9, **kept, "kite": 10}),
        mappings=[mapping(tmp_path, "from,to\n" + "".join(f"{names[at]},{new}\n" for at, new in rules))],
    )  # fmt: skip
    run.path.mkdir(parents=True)
    records.path.rename(run.path / "records")
    return run


def test_changes_against_the_release_are_a_table_and_counts(run: Run) -> None:
    names = sorted(conftest.TREE)
    tree = tree_changes(run)
    summary = TreeSummary.of(tree)
    assert summary == TreeSummary(
        release="first", unchanged=3, renamed=0, moved=0, merged=2, split=1, deleted=0, dead=0, cyclic=0,
        added=1, unproven=1, changed=True,
    )  # fmt: skip
    assert summary.changed
    rows = pd.read_csv(tree.file("changes.csv"), keep_default_na=False)
    assert rows[["category", "kind", "targets", "products_now", "withheld"]].values.tolist() == [
        [names[0], "merge", "merged", 21, "no"],
        [names[1], "merge", "merged", 21, "no"],
        [names[2], "split", "part1 | part2", 0, "no"],
        ["kite", "add", "", 10, "yes"],
    ]
    assert rows["products_before"].tolist() == [20, 21, 22, 0]
    assert moved_categories(run) == frozenset(names[:3])
    assert unproven(run, run.records()) == ("kite",)
    assert tree_changes(run).digest == tree.digest


# Thresholds


def test_a_category_is_withheld_until_training_and_fit_have_enough_products_of_it(bundle_path: Path) -> None:
    predictor = open_bundle(bundle_path).categorizer.predictor
    names, truth = predictor.taxonomy.categories, np.array([0, 0, 1, -1])
    assert predictor.sizes.tolist() == [20, 21, 22, 23, 24, 25]

    def withheld(least: int, waiting: tuple[str, ...]) -> list[int]:
        return np.flatnonzero(withheld_categories(predictor, truth, waiting, least)).tolist()

    assert withheld(22, tuple(names)) == [], "20 trained on, and 2 of FIT, are 22"
    assert withheld(23, tuple(names)) == [0, 1, 2]
    assert withheld(23, (names[1], "unknown")) == [1]
    assert withheld(0, tuple(names)) == [] and withheld(1000, ()) == []


def test_products_of_a_withheld_category_go_to_a_person(bundle_path: Path) -> None:
    """Their confidence is 0, so that no threshold accepts them, and other products are decided as before."""
    open_categorizer = open_bundle(bundle_path).categorizer
    width = open_categorizer.predictor.head.shape.width
    rows = np.random.default_rng(0).normal(0, 3, (200, width)).astype(np.float16)
    ids = np.array([str(number) for number in range(200)], dtype=object)
    predictions = open_categorizer.predict(rows, np.arange(201))
    before = open_categorizer.decide(ids, predictions)
    name = before.loc[before["status"] == "accepted", "category"].value_counts().index[0]
    held = Categorizer(open_categorizer.predictor, replace(open_categorizer.rules, withheld=(name,)))
    after = held.decide(ids, predictions)
    mine = (before["category"] == name).to_numpy()
    assert set(before.loc[mine, "status"]) >= {"accepted"}
    assert set(after.loc[mine, "status"]) == {"review"} and set(after.loc[mine, "confidence"]) == {0.0}
    same = [column for column in before.columns if column != "release"]
    pd.testing.assert_frame_equal(before.loc[~mine, same], after.loc[~mine, same])


# Two weeks


@pytest.fixture(scope="module")
def weeks(drawn_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Week 1 learns COUNTS; week 2 has a mapping, products of the parts of a split, and a new category."""
    folder = tmp_path_factory.mktemp("weeks")
    (folder / "weekly.toml").write_text(SETTINGS.format(weights=drawn_weights))
    first = draw_products(COUNTS)
    more = draw_products({"bar": 20, "flakes": 70, "kite": 20}, first=1000)
    for name, products, extra in (
        ("w1", first, []),
        ("w2", first + more, ["--mapping", str(mapping(folder))]),
    ):
        status, log = run_here(
            "retrain", str(manifest(folder / name, products)), "--workspace", str(folder / "W"),
            "--config", str(folder / "weekly.toml"), "--run", name, "--accept-feed", *extra,
        )  # fmt: skip
        assert status in (0, 3), log
        (folder / f"{name}.log").write_text(log)
    return folder


def test_a_week_with_a_mapping_says_what_changed_and_withholds_what_is_new(weeks: Path) -> None:
    run = weeks / "W" / "runs" / "w2"
    account = json.loads((run / "run.json").read_text())
    expected = {"release": "w1", "merged": 2, "split": 1, "renamed": 1, "added": 1, "unproven": 3}
    assert account["tree"] | expected == account["tree"]
    assert account["records"]["relabelled"] == {"merge": 80, "rename": 30}
    assert account["records"]["unlabelled"] == {"split": 40}
    rules = read_rules(run / "thresholds" / "thresholds.json")
    assert rules.withheld == ("bar", "kite"), "flakes has 70 products, which are evidence enough"
    assert account["thresholds"]["withheld_categories"] == 2
    decided = pd.read_parquet(run / "evaluation" / "decisions.parquet")
    assert "accepted" not in set(decided.loc[decided["category"].isin(rules.withheld), "status"])
    assert "head: starts from w1: 4 categories kept, 1 added, 0 removed" in (weeks / "w2.log").read_text()


def test_the_first_release_withholds_nothing(weeks: Path) -> None:
    assert read_rules(weeks / "W" / "runs" / "w1" / "thresholds" / "thresholds.json").withheld == ()
    assert not TreeSummary.of(open_artifact(weeks / "W" / "runs" / "w1" / "tree", "tree")).changed


def test_a_category_that_waits_in_a_release_waits_on_and_one_that_had_its_evidence_does_not(
    weeks: Path,
) -> None:
    """Week 3 on the release of week 2, with the same catalogue: flakes is not new any more."""
    workspace = weeks / "W"
    shutil.copytree(workspace / "runs" / "w2" / "bundle", workspace / "releases" / "like-w2")
    shutil.copytree(workspace / "runs" / "w2" / "records", workspace / "runs" / "w3" / "records")
    run = Run(workspace, "w3", Config(), "like-w2")
    assert unproven(run, run.records()) == ("bar", "kite")
    assert not TreeSummary.of(tree_changes(run)).changed


def test_products_keep_their_part_under_their_new_label(weeks: Path) -> None:
    one, two = (
        pd.read_parquet(weeks / "W" / "runs" / name / "records" / "products.parquet").set_index("product_id")
        for name in ("w1", "w2")
    )
    both = one.join(two.add_suffix("_now")).dropna(subset=["category_now"])
    assert len(both) == 110 and (both["split"] == both["split_now"]).all()


def test_dry_run_prints_the_ledger_and_does_nothing_else(
    weeks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["retrain", str(weeks / "w2" / "shop.csv"), "--workspace", str(weeks / "W"), "--run", "w9"]
    status, _ = run_here(*command, "--mapping", str(weeks / "renamed.csv"), "--dry-run")
    said = capsys.readouterr().out
    assert status == 0 and not (weeks / "W" / "runs" / "w9").exists()
    assert said.splitlines()[-1].startswith(("rename 1, merge 2, split 1", "unchanged"))
    assert run_here(*command, "--dry-run")[0] == 2


def test_changes_of_a_run_can_be_compared_as_trees(weeks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = weeks / "W" / "runs"
    assert (
        run_here(
            "taxonomy", "diff", str(runs / "w1"), str(runs / "w2"), "--mapping", str(weeks / "renamed.csv")
        )[0]
        == 0
    )
    assert capsys.readouterr().out.splitlines() == [
        "rename  vase → urn",
        "merge   apple → fruit",
        "merge   leek → fruit",
        "split   soap → bar, flakes   (a person has to choose)",
        "add     kite",
        "rename 1, merge 2, split 1, add 1",
    ]
    assert run_here("taxonomy", "diff", str(weeks / "W"), str(weeks / "W"))[0] == 0
    assert capsys.readouterr().out.startswith("unchanged ")


def test_changes_since_the_release_are_the_same_for_every_stage(weeks: Path) -> None:
    run = Run(weeks / "W", "w2", Config(), "w1")
    found = changes_since_release(run, run.records())
    assert found is not None and found.sources["fruit"] == ("apple", "leek")
