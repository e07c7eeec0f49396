"""Mapping files as teams and Shopify write them; `taxonomy check`, `diff` and `migrate` on files."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from features.errors import ShelfmarkError
from features.storage.paths import writing
from models.decisions.categorizer import decisions_table
from models.mappings import read_mappings
from models.taxonomy_changes import Step
from pipeline.cli import main
from pipeline.job.decisions_file import SCHEMA, WITH_ADAPTED, file_writer, read_decisions, write_decisions
from pipeline.taxonomy.check import check

SHOPIFY = """\
---
input_taxonomy: shopify/2025-12
output_taxonomy: shopify/2026-02-unstable
rules:
- input:
    product_category_id: el-7-15-1-14
  output:
    product_category_id:
    - hb-1-31-1
- input:
    product_category_id: gid://shopify/TaxonomyCategory/hg-11
  output:
    product_category_id: [fb-2, fb-3]

# Categories without mapping in target taxonomy
unmapped_product_category_ids:
  - ae-2-2-4-1-5  # Shotguns
"""
NEXT = """\
input_taxonomy: shopify/2026-02
output_taxonomy: shopify/2026-08
rules:
- input: {product_category_id: hb-1-31-1}
  output: {product_category_id: [hb-9]}
"""


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def shopify_json(
    *rules: tuple[str, list[str]], before: str = "shopify/2025-12", after: str = "shopify/2026-02"
) -> str:
    full = "gid://shopify/TaxonomyCategory/"

    def category(name: str) -> dict[str, str]:
        return {"id": full + name, "full_name": f"All > {name.upper()}"}

    made = [{"input": {"category": category(old)}, "output": {"category": [category(one) for one in new]}}
            for old, new in rules]  # fmt: skip
    return json.dumps({"mappings": [{"input_taxonomy": before, "output_taxonomy": after, "rules": made}]})


FULL = "gid://shopify/TaxonomyCategory/"
OUTPUT = "  output:\n    product_category_id:\n    - hb-1-31-1\n"
TWO = shopify_json(("a", ["b"]), ("c", ["d"]))


def test_our_csv_has_a_row_for_each_target(tmp_path: Path) -> None:
    file = written(
        tmp_path / "m.csv",
        "from,to,kind\napple,fruit,merge\npear,fruit,\nsoap,bar,\nsoap,flakes,split\nball,,delete\n,lamp,add\nvase,urn,split\n",
    )
    found = read_mappings([file])
    assert found.rules == {
        "apple": ("fruit",), "pear": ("fruit",), "soap": ("bar", "flakes"), "ball": (), "vase": ("urn",),
    }  # fmt: skip
    assert found.splits == {"vase"}, "called a split, with one of its parts named"


def test_redirects_of_a_csv_are_followed_and_rings_are_listed(tmp_path: Path) -> None:
    found = read_mappings([written(tmp_path / "m.csv", "to;from\nb;a\nc;b\ny;x\nx;y\n")])
    assert found.rules == {"a": ("c",), "b": ("c",)}
    assert found.rings == {"x": "x → y → x", "y": "y → x → y"}


def test_shopifys_yaml_and_its_ids_with_and_without_prefix(tmp_path: Path) -> None:
    found = read_mappings([written(tmp_path / "to_shopify.yml", SHOPIFY)])
    assert found.rules == {"el-7-15-1-14": ("hb-1-31-1",), "hg-11": ("fb-2", "fb-3"), "ae-2-2-4-1-5": ()}
    assert (found.before, found.after) == ("shopify/2025-12", "shopify/2026-02-unstable")


def test_shopifys_json_with_names(tmp_path: Path) -> None:
    file = written(
        tmp_path / "m.json", shopify_json(("el-7", ["hb-1"]), ("hg-11", ["fb-2", "fb-3"]), ("x", []))
    )
    found = read_mappings([file])
    assert found.rules == {"el-7": ("hb-1",), "hg-11": ("fb-2", "fb-3"), "x": ()}
    assert found.labels["hb-1"] == "All > HB-1"


def test_files_are_composed_in_the_order_of_versions_whatever_the_order_given(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one.yml", SHOPIFY), written(tmp_path / "two.yaml", NEXT)
    three = written(
        tmp_path / "three.json",
        shopify_json(("hb-9", ["zz"]), before="shopify/2026-08", after="shopify/2027-01"),
    )
    found = [read_mappings(files) for files in ([one, two, three], [three, one, two], [two, three, one])]
    assert {tuple(step.rules["el-7-15-1-14"]) for step in found} == {("zz",)}
    assert {(step.before, step.after) for step in found} == {("shopify/2025-12", "shopify/2027-01")}


def test_ids_of_yaml_stay_what_is_written(tmp_path: Path) -> None:
    ids = ["1e5", "no", "0x10", "2026-01-01", "1_000", "~1", "null-1", "0123"]
    rules = "".join(
        f"- input: {{product_category_id: {one}}}\n  output: {{product_category_id: [{one}-new]}}\n"
        for one in ids
    )
    text = f"input_taxonomy: s/1\noutput_taxonomy: s/2\nrules:\n{rules}"
    assert list(read_mappings([written(tmp_path / "m.yml", text)]).rules) == ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "from,onto\na,b\n", r"m\.csv: columns from, onto; expected from,to\[,kind\]"),
        ("m.csv", "", r"m\.csv: empty, or not a table"),
        ("m.csv", "from,to\na,b\n,c\n", r"m\.csv, line 3: no category in the column from"),
        ("m.csv", "from,to,kind\na,b,delete\n", r"line 2: kind delete, but to is 'b'; expected an empty to"),
        ("m.csv", "from,to,kind\na,b,renamed\n", r"line 2: kind 'renamed'; expected unchanged, rename, move"),
        ("m.csv", "from,to,kind\na,,merge\n", r"line 2: kind merge, but to is empty"),
        ("m.csv", 'from,to\na,"b\n', r"line 2: a quote that opens here is not closed"),
        ("m.txt", "a b", r"m\.txt: its suffix is no format; expected a mapping: CSV"),
        ("m.yml", "rules: [a\n", r"m\.yml, line 2: no YAML"),
        ("m.yml", "a: &x [*x]\n", r"m\.yml, line 1: no input_taxonomy|no YAML"),
        ("m.yml", SHOPIFY.replace("input_taxonomy: shopify/2025-12", ""), r"no input_taxonomy; expected in"),
        ("m.yml", SHOPIFY.replace(OUTPUT, ""), r"line 5: a rule without output"),
        ("m.yml", SHOPIFY.replace("- hb-1-31-1", "- {a: b}"), r"line 9: not the id of a category"),
        ("m.yml", SHOPIFY.replace("rules:", "rule:").partition("# Cat")[0], r"no rules"),
        ("m.yml", SHOPIFY + "rules: []\n", r"rules is there twice"),
        ("m.yml", SHOPIFY.replace(FULL + "hg-11", "el-7-15-1-14"), r"line 10: el-7-15-1-14 has a rule at l"),
        ("m.json", "{", r"m\.json, line 1: no JSON"),
        ("m.json", "[]", r"m\.json, at its top: no list of mappings"),
        ("m.json", shopify_json(("a", ["b"])).replace("output_taxonomy", "out"), r"ings\[0\]: no output_"),
        ("m.json", TWO.replace(FULL + "c", ""), r"s\[0\]\.rules\[1\]\.input: a category without an id"),
        ("m.json", TWO.replace('"output":', '"out":'), r"mappings\[0\]\.rules\[0\]\.output: missing"),
    ],
)  # fmt: skip
def test_bad_files_are_one_clear_line_with_the_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(ShelfmarkError, match=message) as raised:
        read_mappings([written(tmp_path / name, text)])
    assert "\n" not in str(raised.value) and str(raised.value).count(";") >= 2


def test_a_missing_file_and_one_of_other_letters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match=r"none\.yml: No such file"):
        read_mappings([tmp_path / "none.yml"])
    with pytest.raises(ShelfmarkError, match=r"none\.csv: No such file"):
        read_mappings([tmp_path / "none.csv"])
    (tmp_path / "latin.json").write_bytes(b'{"mappings": "\xe9"}')
    with pytest.raises(ShelfmarkError, match="not UTF-8 at byte 14"):
        read_mappings([tmp_path / "latin.json"])


def test_ten_thousand_rules_are_read_in_seconds(tmp_path: Path) -> None:
    rules = "".join(
        f"- input:\n    product_category_id: a-{number}\n"
        f"  output:\n    product_category_id:\n    - b-{number}\n"
        for number in range(10_000)
    )
    yaml = written(tmp_path / "m.yml", f"input_taxonomy: s/1\noutput_taxonomy: s/2\nrules:\n{rules}")
    chain = written(tmp_path / "m.csv", "from,to\n" + "".join(f"c{n},c{n + 1}\n" for n in range(10_000)))
    started = time.process_time()
    found = read_mappings([yaml, chain])
    assert len(found.rules) == 20_000 and found.rules["c0"] == ("c10000",)
    assert time.process_time() - started < 20, "far above what it takes: 2 s"


# check


def test_check_finds_every_fault_of_a_tree(tmp_path: Path) -> None:
    file = written(
        tmp_path / "tree.csv",
        "category_id,category_level1,category_level2\n"
        "1,Food,Apple\n2,Food,apple\n3,Food,\n4,,Leek\n1,Home,Soap\n5,Home, Vase\n5,Home,Vase\n"
        "6,Food,Apple\n,X,Y\n7,,\n",
    )
    shown, faults = check(file, most_levels=1)
    assert shown == ["10 categories: 1 of depth 0, 2 of depth 1, 7 of depth 2"]
    for fault in (
        "line 5: 4: an empty level above 'Leek'",
        "line 10: no category",
        "line 11: 7: no name at any level",
        "line 7: ' Vase': blanks too many, or accents in another form",
        "line 2: 1: depth 2; at most 1",
        "line 6: 1: several places: Food / Apple and Home / Soap",
        "line 8: 5: there already at line 7",
        "Food / Apple: is the place of 2 categories: 1 (line 2), 6 (line 9)",
        "names that differ in upper and lower case alone: 'Food / Apple' and 'Food / apple'",
    ):
        assert fault in faults, fault


def test_check_of_a_good_tree_or_mapping_finds_nothing(tmp_path: Path) -> None:
    tree = written(tmp_path / "tree.csv", "category,level1,level2\na,Food,Apple\nb,Food,Pear\nc,Gift,\n")
    assert check(tree) == (["3 categories: 1 of depth 1, 2 of depth 2"], [])
    google = written(tmp_path / "g.txt", "# Google_Product_Taxonomy_Version: 1\n1 - A\n2 - A > B\n")
    assert check(google) == (["2 categories: 1 of depth 1, 1 of depth 2"], [])
    assert check(written(tmp_path / "m.yml", SHOPIFY)) == (
        ["3 rules, from shopify/2025-12 to shopify/2026-02-unstable"], [],
    )  # fmt: skip


def test_check_finds_the_cycles_and_doubles_of_a_mapping(tmp_path: Path) -> None:
    file = written(tmp_path / "m.csv", "from,to\na,b\nb,a\nc,d\nc,d\nC,e\ne,\ne,f\n")
    faults = check(file)[1]
    assert faults == [
        "line 5: c: the same rule as at line 4",
        "line 8: e: has another rule at line 7",
        "line 2: a: a cycle: a → b → a",
        "line 3: b: a cycle: b → a → b",
        "categories that differ in upper and lower case alone: 'C' and 'c'",
    ]


def shelfmark(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
        raise SystemExit(0)
    return int(str(left.value.code or 0))


def test_check_ends_with_1_when_there_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shelfmark("taxonomy", "check", written(tmp_path / "m.csv", "from,to\na,b\n")) == 0
    assert capsys.readouterr().out == "1 rules\n"
    for text in ("", " \n"):
        assert shelfmark("taxonomy", "check", written(tmp_path / "e.csv", text)) == 1
        assert "e.csv: empty; expected a header" in capsys.readouterr().err
    assert shelfmark("taxonomy", "check", written(tmp_path / "n.csv", "from,to\na,b\nb,a\n")) == 1
    said = capsys.readouterr()
    assert "a cycle: a → b → a" in said.out and "n.csv: 2 faults; expected none" in said.err


def test_diff_of_two_files_with_a_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(
        tmp_path / "a.csv", "category_id,level1,level2\n1,Food,Apple\n2,Food,Pear\n3,Home,Soap\n"
    )
    after = written(
        tmp_path / "b.txt",
        "# Google_Product_Taxonomy_Version: 2\n1 - Food > Apples\n4 - Home > Bar\n5 - Home > Lamp\n",
    )
    mapping = written(tmp_path / "m.csv", "from,to\n3,4\n")
    assert shelfmark("taxonomy", "diff", before, after, "--mapping", mapping) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rename  1 → 1   (Apple is now Apples)",
        "rename  3 → 4   (Soap is now Bar)",
        "delete  2   (not in the new tree)",
        "add     5",
        "rename 2, delete 1, add 1",
    ]


# migrate


def decision(
    product: str, category: str | None, path: str | None, status: str, **node: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "product_id": product, "category": category, "category_path": path, "confidence": 0.9,
        "status": status, "node": None, "node_path": None, "node_level": None,
        "top_categories": [category] if category else [], "top_probabilities": [0.8] if category else [],
        "views": "whole" if category else None, "release": "w1",
    }  # fmt: skip
    if status == "accepted":
        row |= {"node": category, "node_path": path, "node_level": len(str(path).split(" / "))}
    return row | node


ROWS = [
    decision("1", "apple", "Food / Apple", "accepted"),
    decision("2", "soap", "Home / Soap", "accepted"),
    decision("3", "ball", "Toys / Ball", "accepted"),
    decision("4", "vase", "Home / Vase", "accepted"),
    decision("5", "apple", "Food / Apple", "review"),
    decision("6", None, None, "unreadable"),
    decision("7", "leek", "Food / Leek", "parent", node="Food", node_path="Food", node_level=1),
    decision("8", "ball", "Toys / Ball", "parent", node="Toys", node_path="Toys", node_level=1),
    decision("9", "kite", "Games / Kite", "accepted"),
]
RULES = "from,to\napple,fruit\nsoap,bar\nsoap,flakes\nball,\nkite,nowhere\n"
AFTER = """category,level1,level2
fruit,Groceries,Fruit
leek,Groceries,Leek
bar,Home,Bar
flakes,Home,Flakes
vase,Home,Vase
"""
BEFORE = """category,level1,level2
apple,Food,Apple
leek,Food,Leek
soap,Home,Soap
vase,Home,Vase
ball,Toys,Ball
kite,Games,Kite
"""


def rows_of(file: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(read_decisions(file, SCHEMA.names)).to_pylist()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".jsonl"])
def test_migrate_moves_what_has_one_target_and_keeps_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    given, out = tmp_path / f"d{suffix}", tmp_path / f"out{suffix}"
    write_decisions([decisions_table(**{name: [row[name] for row in ROWS] for name in SCHEMA.names})], given)
    files = [
        written(tmp_path / name, text)
        for name, text in (("m.csv", RULES), ("b.csv", BEFORE), ("a.csv", AFTER))
    ]
    command = ["taxonomy", "migrate", given, "--mapping", files[0], "--before", files[1], "--after", files[2]]
    assert shelfmark(*command, "--output", out) == 0
    found = {row["product_id"]: row for row in rows_of(out)}
    assert list(found) == [row["product_id"] for row in ROWS]
    assert found["1"] == ROWS[0] | {
        "category": "fruit", "category_path": "Groceries / Fruit", "node": "fruit",
        "node_path": "Groceries / Fruit", "node_level": 2,
    }  # fmt: skip
    review = {"status": "review", "node": None, "node_path": None, "node_level": None}
    for place in (1, 2, 8):
        assert found[ROWS[place]["product_id"]] == ROWS[place] | review
    assert found["4"] == ROWS[3] and found["6"] == ROWS[5]
    assert found["5"] == ROWS[4] | {"category": "fruit", "category_path": "Groceries / Fruit"}
    assert found["7"]["node_path"] == "Groceries" and found["7"]["status"] == "parent"
    assert found["8"] == ROWS[7] | review
    ledger = pd.read_csv(tmp_path / "out.migrated.csv", dtype=str, keep_default_na=False)
    assert ledger[["product_id", "status", "from", "to", "kind"]].values.tolist() == [
        ["1", "accepted", "apple", "fruit", "rename"],
        ["2", "review", "soap", "bar | flakes", "split"],
        ["3", "review", "ball", "", "delete"],
        ["5", "review", "apple", "fruit", "rename"],
        ["7", "parent", "Food", "Groceries", "node renamed"],
        ["8", "review", "Toys", "", "node gone"],
        ["9", "review", "kite", "", "dead"],
    ]
    assert (
        "unchanged 2, rename 2, split 1, delete 1, node renamed 1, node gone 1, dead 1"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_migrate_keeps_what_corrections_did(tmp_path: Path, suffix: str) -> None:
    given, out = tmp_path / f"d{suffix}", tmp_path / f"out{suffix}"
    rows = [row | {"adapted": row["product_id"] == "1", "base_category": "soap", "corrections": 3}
            for row in ROWS]  # fmt: skip
    with writing(given) as working, file_writer(given, working, WITH_ADAPTED) as write:
        write(pa.Table.from_pylist(rows, WITH_ADAPTED))
    mapping = written(tmp_path / "m.csv", RULES)
    assert shelfmark("taxonomy", "migrate", given, "--mapping", mapping, "--output", out) == 0
    found = pa.concat_tables(read_decisions(out, WITH_ADAPTED.names)).to_pylist()
    assert found[0]["category"] == "fruit"
    names = ("adapted", "base_category", "corrections")
    assert [tuple(row[name] for name in names) for row in found[:2]] == [
        (True, "soap", 3),
        (False, "soap", 3),
    ]


def test_migrate_without_trees_trusts_the_mapping(tmp_path: Path) -> None:
    given, out = tmp_path / "d.parquet", tmp_path / "out.parquet"
    write_decisions([decisions_table(**{name: [row[name] for row in ROWS] for name in SCHEMA.names})], given)
    mapping = written(tmp_path / "m.json", shopify_json(("apple", ["fruit"]), ("ball", ["sphere"])))
    assert shelfmark("taxonomy", "migrate", given, "--mapping", mapping, "--output", out) == 0
    found = {row["product_id"]: row for row in rows_of(out)}
    assert (found["1"]["category_path"], found["1"]["node_level"]) == ("All / FRUIT", 2)
    assert found["7"] == ROWS[6], "leek stays below Food"
    assert found["8"]["status"] == "review", "nothing is left below Toys"


def test_migrate_refuses_to_write_over_what_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, mapping = tmp_path / "d.csv", written(tmp_path / "m.csv", RULES)
    file.write_text("x")
    assert shelfmark("taxonomy", "migrate", file, "--mapping", mapping, "--output", file) == 1
    assert "is what is read" in capsys.readouterr().err
    assert shelfmark("taxonomy", "migrate", file, "--output", tmp_path / "o.csv") == 2


def test_nothing_given_says_nothing() -> None:
    assert read_mappings([]) == Step()
