"""Corrections as labels: they come before the sources' categories, are counted, and none changes nothing."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import Drawn, draw_products, manifest_rows, photo, write_manifest
from test_ingest import in_a_loop
from tf_records import dataset

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, begin, partial_of
from models.corrections.correction import Correction
from models.corrections.database import warn_of_unused_file
from models.corrections.store import Corrections
from pipeline.adapt.flags import contradicted_sellers, flag_sellers
from pipeline.ingest import check_images as check_module
from pipeline.ingest import ingest as ingest_module
from pipeline.ingest.corrected_labels import LABELS, labels_of_run
from pipeline.ingest.ingest import ingest, make_records
from pipeline.ingest.override import CORRECTED
from pipeline.job.account import was_interrupted
from pipeline.job.config import Config, IngestSettings, SellersSettings
from pipeline.job.corrected import database_of, has_corrections, open_corrections, sellers_in_service
from pipeline.job.load_config import load_config
from pipeline.job.run import Run
from pipeline.job.summaries import RecordsSummary
from serving.corrections import open_store

SETTINGS = IngestSettings(min_products=5, least_test=2)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
COUNTS = {"mug": 20, "cup": 15, "lamp": 12, "": 4}  # products 0 to 19, 20 to 34, 35 to 46, 47 to 50


@pytest.fixture(autouse=True)
def loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest without Beam."""
    for module in (check_module, ingest_module):
        monkeypatch.setattr(module, "run_units", in_a_loop)


def catalogue(folder: Path, products: list[Drawn] | None = None, **sellers: str) -> str:
    """A manifest; `sellers` are seller → ids of products between blanks."""
    rows = manifest_rows(folder, products or draw_products(COUNTS))
    of = {number: seller for seller, numbers in sellers.items() for number in numbers.split()}
    return str(
        write_manifest(folder / "shop.csv", [row | {"seller": of.get(row["product_id"], "")} for row in rows])
    )


def labels(folder: Path, said: dict[str, str], seller: str = "ann") -> Path:
    """corrections.parquet of a run: product_id → category."""
    rows = [
        {"product_id": product, "category": category, "seller": seller, "when": NOON, "id": number}
        for number, (product, category) in enumerate(sorted(said.items()), start=1)
    ]
    pq.write_table(pa.Table.from_pylist(rows, LABELS), folder / "corrections.parquet")
    return folder / "corrections.parquet"


def made(folder: Path, said: dict[str, str], name: str = "records", **more: Any) -> Artifact:
    source = folder / "shop.csv" if (folder / "shop.csv").exists() else catalogue(folder)
    given = {"corrections": labels(folder, said)} if said else {}
    return make_records([str(source)], folder / name, SETTINGS, **given, **more)


def categories(records: Artifact) -> dict[str, str]:
    table = pd.read_parquet(records.file("products.parquet"))
    return dict(zip(table["product_id"], table["category"].fillna(""), strict=True))


# Records


def test_a_correction_comes_before_the_category_of_the_source(tmp_path: Path) -> None:
    records = made(tmp_path, {"0": "cup", "20": "cup", "47": " lamp", "gone": "cup", "1": "kettle"})
    before = {product.id: product.category for product in draw_products(COUNTS)}
    assert categories(records) == before | {"0": "cup", "47": "lamp"}
    summary = RecordsSummary.of(records)
    assert summary.corrected == {"changed": 1, "confirmed": 1, "new": 1}
    assert summary.corrections_left_out == {"not_in_the_sources": 1, "unknown_category": 1}
    assert summary.uncategorized_products == 3
    table = pq.read_table(records.file("corrected.parquet"))
    assert table.schema.equals(CORRECTED)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("0", "mug", "cup", "ann", NOON, 1),
        ("20", "cup", "cup", "ann", NOON, 3),
        ("47", None, "lamp", "ann", NOON, 4),
    ]


def test_a_correction_of_another_sellers_product_is_no_label(tmp_path: Path, caplog: Any) -> None:
    source = catalogue(tmp_path, ann="0 1 2", bob="3")
    rows = [
        ("0", "cup", "bob"),  # of ann
        ("1", "cup", "ann"), ("1", "lamp", "eve"),  # what another one says later takes nothing away
        ("3", "lamp", "bob"), ("3", "cup", "Bob"),
        ("20", "mug", "ann"), ("20", "lamp", "bob"),  # without a seller: the newest
        ("gone", "cup", "bob"),
    ]  # fmt: skip
    columns = {"product_id": 0, "category": 1, "seller": 2}
    table = [
        {name: row[at] for name, at in columns.items()} | {"when": NOON, "id": number}
        for number, row in enumerate(rows, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(table, LABELS), tmp_path / "corrections.parquet")
    with caplog.at_level("INFO", logger="shelfmark"):
        records = make_records(
            [source], tmp_path / "records", SETTINGS, corrections=tmp_path / "corrections.parquet"
        )
    before = {product.id: product.category for product in draw_products(COUNTS)}
    assert categories(records) == before | {"1": "cup", "3": "lamp", "20": "lamp"}
    summary = RecordsSummary.of(records)
    assert summary.corrected == {"changed": 3}
    assert summary.corrections_left_out == {
        "not_in_the_sources": 1, "of_another_seller": 3, "older_than_another": 1,
    }  # fmt: skip
    assert pq.read_table(records.file("corrected.parquet"))["id"].to_pylist() == [2, 7, 4]
    assert "of another seller 3" in caplog.text


def test_the_records_themselves_hold_the_corrected_category(tmp_path: Path) -> None:
    records = made(tmp_path, {str(number): "cup" for number in range(10)})
    found = {
        product.decode(): category.decode()
        for batch in dataset(sorted(records.path.glob("*.tfrecord")), 8)
        for product, category in zip(batch["product_id"].numpy(), batch["category"].numpy(), strict=True)
    }
    assert {found[number] for number in map(str, range(10)) if number in found} == {"cup"}
    assert {found[number] for number in map(str, range(10, 20)) if number in found} == {"mug"}
    assert len(found.keys() & set(map(str, range(10)))) >= 5


def test_without_corrections_records_are_those_of_a_version_that_knew_none(tmp_path: Path) -> None:
    one = made(tmp_path, {})
    assert sorted(one.made_from) == ["known", "mapping", "settings", "sources", "stage", "taxonomy"]
    assert "corrected.parquet" not in one.files
    assert not {"corrected", "corrections_left_out"} & one.summary.keys()
    assert pq.read_schema(one.file("duplicates.parquet")).names == [
        "image_digest", "products", "categories", "placeholder",
    ]  # fmt: skip
    workspace = tmp_path / "W"
    run = Run(workspace, "week", Config(ingest=SETTINGS), None)
    assert ingest(run, [str(tmp_path / "shop.csv")]).digest == one.digest
    assert not (run.path / "corrections.parquet").exists()
    assert not (workspace / "corrections.sqlite").exists()


def test_corrections_remake_the_records_and_the_same_ones_do_not(tmp_path: Path) -> None:
    one, two = (made(tmp_path, {"0": "cup"}, name) for name in ("one", "two"))
    assert one.digest == two.digest
    assert made(tmp_path, {"0": "lamp"}, "one").digest != one.digest
    assert made(tmp_path, {"0": "cup"}, "one").digest == one.digest


def test_a_product_keeps_its_part_of_the_split(tmp_path: Path) -> None:
    before = pd.read_parquet(made(tmp_path, {}).file("products.parquet")).set_index("product_id")["split"]
    known = before[before.isin(["train", "val", "test"])].rename("split").reset_index()
    known.to_parquet(tmp_path / "known.parquet", index=False)
    said = {str(number): "cup" for number in range(12)}
    after = made(tmp_path, said, "after", known=tmp_path / "known.parquet")
    split = pd.read_parquet(after.file("products.parquet")).set_index("product_id")["split"]
    assert split[known["product_id"]].tolist() == known["split"].tolist()


def test_a_mapping_carries_corrections_over_as_it_does_labels(tmp_path: Path) -> None:
    (tmp_path / "renamed.csv").write_text("from,to\ncup,beaker\nlamp,lamp\nlamp,light\n")
    records = made(
        tmp_path, {"0": "cup", "1": "beaker", "2": "lamp", "3": "mug"}, mappings=[tmp_path / "renamed.csv"]
    )
    found = categories(records)
    assert [found[number] for number in ("0", "1", "2", "3")] == ["beaker", "beaker", "mug", "mug"]
    assert RecordsSummary.of(records).corrections_left_out == {"category_gone": 1}


def test_a_corrected_product_of_a_category_that_the_tree_lacks_is_learnt(tmp_path: Path) -> None:
    catalogue(tmp_path, draw_products({"mug": 20, "cup": 15, "kettle": 2}))
    tree = tmp_path / "tree.csv"
    tree.write_text("category_id,category_level1,category_level2\nmug,HOME,MUGS\ncup,HOME,CUPS\n")
    records = made(tmp_path, {"35": "cup"}, taxonomy=tree)
    rejects = pd.read_parquet(records.file("rejects.parquet"))
    assert set(rejects["product_id"]) == {"36"} and set(rejects["reason"]) == {"unknown_category"}
    products = pd.read_parquet(records.file("products.parquet")).set_index("product_id")
    assert products.loc["35", ["category", "images"]].tolist() == ["cup", 3]
    assert RecordsSummary.of(records).rejects == {"unknown_category": len(rejects)}
    assert (
        sum(RecordsSummary.of(records).records.values()) + len(rejects) == RecordsSummary.of(records).images
    )


def test_duplicates_name_the_products_whose_label_is_a_correction(tmp_path: Path) -> None:
    products = draw_products({"mug": 20, "cup": 15})
    shared = [
        Drawn(one.id, one.category, (photo(9_000),)) for one in (products[0], products[1], products[20])
    ]
    catalogue(tmp_path, [shared[0], shared[1], *products[2:20], shared[2], *products[21:]])
    table = pq.read_table(made(tmp_path, {"1": "cup", "5": "cup"}).file("duplicates.parquet")).to_pylist()
    (row,) = table
    assert (row["products"], row["categories"], row["corrected"]) == (
        ["0", "1", "20"],
        ["cup", "mug"],
        ["1"],
    )


# The labels of a run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "W", "week", Config(ingest=SETTINGS), None)


def say(run: Run, product: str, category: str, seller: str = "ann") -> None:
    run.workspace.mkdir(exist_ok=True)
    store = open_corrections(run.workspace, run.config.sellers)
    store.add([(Correction(seller, product, category, when=NOON), None)])
    store.close()


def test_a_run_takes_the_corrections_that_are_in_use(run: Run) -> None:
    assert labels_of_run(run) is None
    say(run, "7", "cup")
    say(run, "3", "mug")
    file = labels_of_run(run)
    assert file == run.path / "corrections.parquet"
    rows = pq.read_table(file).to_pylist()
    assert [(row["product_id"], row["category"], row["seller"], row["when"]) for row in rows] == [
        ("3", "mug", "ann", NOON),
        ("7", "cup", "ann", NOON),
    ]
    store = open_corrections(run.workspace, run.config.sellers)
    store.set_aside("ann", "test")
    assert labels_of_run(run) is None and not file.exists()
    store.close()


def test_the_setting_takes_none(run: Run) -> None:
    say(run, "7", "cup")
    off = Config(ingest=SETTINGS, sellers={"labels": False})
    assert labels_of_run(Run(run.workspace, "week", off, None)) is None


def test_interrupted_records_keep_the_corrections_that_they_were_begun_with(run: Run, tmp_path: Path) -> None:
    say(run, "7", "cup")
    begun = {"corrections": "of that moment"}
    file = labels_of_run(run)
    begin(partial_of(run.path / "records"), begun)
    say(run, "8", "cup")
    assert labels_of_run(run) == file and len(pq.read_table(file)) == 1
    begin(partial_of(run.path / "records"), {"corrections": "none", "stage": "1"})
    assert len(pq.read_table(labels_of_run(run))) == 1
    begin(partial_of(run.path / "records"), {"stage": "1"})  # begun when there were none
    assert labels_of_run(run) is None


def test_an_interrupted_retrain_keeps_the_records_and_a_finished_one_takes_new_corrections(
    run: Run, tmp_path: Path
) -> None:
    source = catalogue(tmp_path)
    say(run, "0", "cup")
    first = ingest(run, [source], goes_on=was_interrupted(run.path))
    say(run, "1", "cup")
    assert ingest(run, [source], goes_on=was_interrupted(run.path)).digest == first.digest
    account = {"run": "week", "outcome": "kept", "exit_status": 3, "sentence": "", "started": "", "ended": ""}
    (run.path / "run.json").write_text(json.dumps(account | {"seconds": 1, "command": []}))
    second = ingest(run, [source], goes_on=was_interrupted(run.path))
    assert RecordsSummary.of(first).corrected == {"changed": 1}
    assert RecordsSummary.of(second).corrected == {"changed": 2}
    say(run, "2", "cup")
    assert RecordsSummary.of(ingest(run, [source])).corrected == {"changed": 3}  # `shelfmark ingest`


# Sellers whose corrections are contradicted by identical pictures


def with_twins(folder: Path, wrong: int, honest: int = 0, votes: int = 1) -> Artifact:
    """Records where ann has corrected mugs to cups; bob sells the same pictures as mugs, of `honest` as cups.

    Args:
        folder: of the catalogue.
        wrong: corrected products with a twin in another category.
        honest: corrected products with a twin in the same category.
        votes: twins of each.
    """
    products = draw_products({"mug": 20, "cup": 15})
    twins = [
        Drawn(f"twin{number}.{vote}", "mug" if number < wrong else "cup", products[number].pictures)
        for number in range(wrong + honest)
        for vote in range(votes)
    ]
    catalogue(
        folder, [*products, *twins], ann=" ".join(map(str, range(10))), bob=" ".join(one.id for one in twins)
    )
    return made(folder, {str(number): "cup" for number in range(wrong + honest)})


def test_three_contradicted_corrections_flag_a_seller(tmp_path: Path) -> None:
    (why,) = contradicted_sellers(with_twins(tmp_path, 3)).items()
    assert why[0] == "ann" and why[1].startswith("3 of his 3 corrected products with an identical picture")
    assert "for example 0: cup by him, mug there" in why[1]


@pytest.mark.parametrize(("wrong", "honest"), [(2, 0), (3, 3), (4, 5), (0, 6)])
def test_fewer_than_three_or_no_majority_flags_nobody(tmp_path: Path, wrong: int, honest: int) -> None:
    assert contradicted_sellers(with_twins(tmp_path, wrong, honest)) == {}


def test_a_majority_of_the_corrections_with_a_twin_is_needed(tmp_path: Path) -> None:
    assert list(contradicted_sellers(with_twins(tmp_path, 4, 3))) == ["ann"]


def test_his_own_other_products_prove_nothing(tmp_path: Path) -> None:
    products = draw_products({"mug": 20, "cup": 15})
    twins = [Drawn(f"twin{number}", "mug", products[number].pictures) for number in range(4)]
    catalogue(tmp_path, [*products, *twins], ann=" ".join(one.id for one in [*products[:4], *twins]))
    assert contradicted_sellers(made(tmp_path, {str(number): "cup" for number in range(4)})) == {}


def test_where_other_sellers_disagree_as_often_nobody_is_wrong(tmp_path: Path) -> None:
    products = draw_products({"mug": 20, "cup": 15, "lamp": 12})
    twins = [
        Drawn(f"{category}{number}", category, products[number].pictures)
        for number in range(4)
        for category in ("mug", "lamp")
    ]
    catalogue(tmp_path, [*products, *twins], ann="0 1 2 3", bob=" ".join(one.id for one in twins))
    assert contradicted_sellers(made(tmp_path, {str(number): "cup" for number in range(4)})) == {}


def test_a_contradicted_seller_is_flagged_once_with_the_command_to_set_him_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = with_twins(tmp_path, 3)
    store = Corrections.open(f"sqlite:///{tmp_path / 'corrections.sqlite'}")
    store.add([(Correction("ann", str(number), "cup"), None) for number in range(3)])
    assert list(flag_sellers(records, store, None)) == ["ann"]
    assert "shelfmark corrections set-aside --seller ann --why" in caplog.text
    assert store.sellers()[0].flagged is not None and store.labels().empty
    assert flag_sellers(records, store, None) == {}
    store.restore("ann")
    assert flag_sellers(records, store, None) == {}  # a person has checked them
    assert contradicted_sellers(records, {"ann": 3}) == {} != contradicted_sellers(records, {"ann": 0})
    store.close()


# Where corrections are


def test_the_environment_comes_before_the_settings_and_may_hold_a_password(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = SellersSettings(database="postgresql://ann@db/shop")
    assert database_of(named) == "postgresql://ann@db/shop"
    assert not has_corrections(run.workspace, SellersSettings()) and has_corrections(run.workspace, named)
    other = tmp_path / "other.sqlite"
    monkeypatch.setenv("SHELFMARK_CORRECTIONS", f"sqlite:///{other}")
    say(run, "7", "cup")
    assert other.is_file() and not (run.workspace / "corrections.sqlite").exists()
    assert pq.read_table(labels_of_run(run))["product_id"].to_pylist() == ["7"]
    monkeypatch.setenv("SHELFMARK_CORRECTIONS", "postgresql://ann:secret@db/shop")
    assert database_of(named) == "postgresql://ann:secret@db/shop"


def test_a_file_of_corrections_beside_a_database_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(url: str) -> str:
        caplog.clear()
        for _ in range(2):
            monkeypatch.setenv("SHELFMARK_CORRECTIONS", url)
            open_corrections(tmp_path, SellersSettings()).close()
            open_store(tmp_path, url or None, has_adapter=True).close()  # type: ignore[union-attr]
        return caplog.text

    other = f"sqlite:///{tmp_path}/other.sqlite"
    assert opened(other) == ""
    assert opened("") == opened(f"sqlite:///{tmp_path}/corrections.sqlite") == ""
    warn_of_unused_file.cache_clear()  # as in another process
    said = opened(other)
    file = tmp_path / "corrections.sqlite"
    assert said.count("is not used") == 1 and f"{file} is not used; expected corrections in one place" in said
    assert f"they are in {other}; move the file away" in said


@pytest.mark.parametrize(
    "url", ["postgresql://ann:secret@db/shop", "postgresql://db/shop?user=ann&password=secret"]
)
def test_no_setting_may_hold_a_password(url: str) -> None:
    with pytest.raises(ShelfmarkError, match=r"it holds a password, and config\.json would keep it") as error:
        load_config(sets=(f"sellers.database={url}",))
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    assert load_config(sets=("sellers.database=postgresql://ann@db:5432/shop",)).sellers.labels
    with pytest.raises(ShelfmarkError, match="expected postgresql://USER@HOST/NAME"):
        load_config(sets=("sellers.database=mysql://ann@db/shop",))


def test_commands_of_no_run_use_the_database_of_the_release_in_service(tmp_path: Path) -> None:
    assert sellers_in_service(tmp_path) == {}
    (tmp_path / "releases" / "week.2").mkdir(parents=True)
    (tmp_path / "releases" / "current").symlink_to("week.2")
    (tmp_path / "runs" / "week").mkdir(parents=True)
    saved = Config(sellers={"database": "postgresql://ann@db/shop"}).model_dump(mode="json")
    (tmp_path / "runs" / "week" / "config.json").write_text(json.dumps({"run": "week", "settings": saved}))
    assert sellers_in_service(tmp_path)["database"] == "postgresql://ann@db/shop"
    (tmp_path / "runs" / "week" / "config.json").write_text("[]")
    assert sellers_in_service(tmp_path) == {}
