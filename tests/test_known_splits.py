"""Known splits: a product keeps its part, whatever was released, rolled back or removed meanwhile."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_releases import draw_bundle

from features.storage.artifact import begin, find_artifact, partial_of, seal
from features.storage.paths import remove
from models.decisions.releases import SPLITS, in_service
from pipeline.job.config import Config
from pipeline.job.known_splits import KNOWN, write_splits
from pipeline.job.release_log import switch
from pipeline.job.run import Run, begin_run
from pipeline.release.switch import link_bundle, put_release, roll_back


def parts(file: Path | None) -> dict[str, str]:
    """product_id → split; each product once."""
    table = pq.read_table(file) if file else pa.table({"product_id": [], "split": []})
    assert len(set(table["product_id"].to_pylist())) == len(table)
    return dict(zip(table["product_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def week(workspace: Path, name: str, new: dict[str, str], gone: str = "", release: bool = True) -> Run:
    """A run as ingest and pack leave it: the products known keep their part, but those that are gone."""
    run = begin_run(workspace, name, Config())
    known = run.known_splits()
    products = {key: part for key, part in parts(known).items() if key not in gone.split()}
    products = new | products
    table = pa.table({"product_id": list(products), "split": list(products.values())})
    work = begin(partial_of(run.path / "records"), {})
    pq.write_table(table, work / "products.parquet")
    records = seal(run.path / "records", kind="records", version=1, made_from={}, summary={})
    draw_bundle(run.path / "bundle")
    remove(run.path / "bundle")
    work = begin(partial_of(run.path / "bundle"), {})
    write_splits(records, run.known_splits(), work / SPLITS)
    bundle = seal(run.path / "bundle", kind="bundle", version=3, made_from={}, summary={})
    if release:
        link_bundle(bundle, name, run.releases)
        switch(run.releases, name, "release", "better", run=name)
    return run


def known(workspace: Path, name: str) -> dict[str, str]:
    """What the next run knows."""
    return parts(begin_run(workspace, name, Config()).known_splits())


def test_the_first_run_knows_nothing_also_after_its_own_release(tmp_path: Path) -> None:
    run = week(tmp_path, "1", {"a": "train", "x": "dropped", "y": "none"})
    assert run.known_splits() is None
    assert begin_run(tmp_path, "1", Config()).known_splits() is None, "else its records were made again"
    assert known(tmp_path, "2") == {"a": "train"}


def test_products_of_a_week_that_was_rolled_back_keep_their_part(tmp_path: Path) -> None:
    week(tmp_path, "1", {"a": "train"})
    week(tmp_path, "2", {"b": "test"})
    roll_back(tmp_path, None, None, None)
    run = begin_run(tmp_path, "3", Config())
    assert run.based_on == "1" == in_service(tmp_path / "releases")
    assert parts(run.known_splits()) == {"a": "train", "b": "test"}
    week(tmp_path, "3", {"b": "train", "c": "val"})  # ingest gives b no other part
    put_release(tmp_path, "2", None, None)  # forward again
    assert known(tmp_path, "4") == {"a": "train", "b": "test", "c": "val"}


def test_products_that_come_back_keep_their_part_also_when_their_release_was_removed(tmp_path: Path) -> None:
    week(tmp_path, "1", {"a": "train", "winter": "test"})
    week(tmp_path, "2", {"b": "val"}, gone="winter")
    week(tmp_path, "3", {"c": "val"}, gone="winter")
    for name in ("1", "2"):
        remove(tmp_path / "releases" / name)
        remove(tmp_path / "runs" / name)
    assert known(tmp_path, "4") == {"a": "train", "winter": "test", "b": "val", "c": "val"}


def test_products_keep_their_part_when_nothing_is_in_service(tmp_path: Path) -> None:
    week(tmp_path, "1", {"a": "test"})
    switch(tmp_path / "releases", None, "withdraw", "not certified")
    run = begin_run(tmp_path, "2", Config())
    assert run.based_on is None and parts(run.known_splits()) == {"a": "test"}


def test_where_two_releases_disagree_the_one_that_the_run_is_based_on_counts(tmp_path: Path) -> None:
    """The bundle of a run that was kept out, whose parts no later run knew, is forced into service."""
    week(tmp_path, "1", {"a": "train"})
    week(tmp_path, "2", {"b": "test"}, release=False)
    week(tmp_path, "3", {"b": "train", "c": "val"})
    assert known(tmp_path, "4") == {"a": "train", "b": "train", "c": "val"}
    put_release(tmp_path, "2", "a test", None)
    assert known(tmp_path, "5") == {"a": "train", "b": "test", "c": "val"}
    roll_back(tmp_path, None, None, None)
    assert known(tmp_path, "6") == {"a": "train", "b": "train", "c": "val"}


def test_a_release_is_read_only_where_no_other_one_has_all_its_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in "1234":
        week(tmp_path, number, {f"p{number}": "train"})
    roll_back(tmp_path, "2", None, None)
    read = []
    table = pq.read_table

    def reads(file: Path, **options: object) -> pa.Table:
        read.append(Path(file).parent.name)
        return table(file, **options)

    monkeypatch.setattr(pq, "read_table", reads)
    file = begin_run(tmp_path, "5", Config()).known_splits()
    assert read == ["2", "4"], "the one that the run is based on, then the newest; these know the others"
    covers = json.loads(pq.read_schema(file).metadata[b"covers"])
    there = (find_artifact(tmp_path / "releases" / name) for name in "1234")
    assert sorted(covers) == sorted(release.digest for release in there if release)
    assert parts(file) == {f"p{number}": "train" for number in "1234"}


def test_what_a_run_knows_stays_while_others_are_released_or_removed(tmp_path: Path) -> None:
    week(tmp_path, "1", {"a": "train"})
    run = week(tmp_path, "2", {"b": "test"}, release=False)
    before = (run.path / KNOWN).read_bytes()
    week(tmp_path, "3", {"c": "val"})
    remove(tmp_path / "releases" / "1")
    assert begin_run(tmp_path, "2", Config()).known_splits() == run.path / KNOWN
    assert (run.path / KNOWN).read_bytes() == before


def test_a_refused_ingest_leaves_nothing_that_the_next_one_takes_for_known(tmp_path: Path) -> None:
    week(tmp_path, "1", {"a": "train"})
    assert known(tmp_path, "2") == {"a": "train"}  # and then ingest fails
    week(tmp_path, "3", {"b": "test"})
    assert known(tmp_path, "2") == {"a": "train", "b": "test"}


def test_releases_of_earlier_versions_are_all_read(tmp_path: Path) -> None:
    draw_bundle(tmp_path / "releases" / "2026-W45", {"a": "train", "b": "val"})
    draw_bundle(tmp_path / "releases" / "2026-W46", {"a": "train", "c": "test"})
    (tmp_path / "releases" / "current").symlink_to("2026-W46")
    assert known(tmp_path, "2026-W47") == {"a": "train", "c": "test", "b": "val"}


def test_a_damaged_release_is_a_warning_and_the_one_that_the_run_is_based_on_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    week(tmp_path, "1", {"a": "train"})
    week(tmp_path, "2", {"b": "test"})
    (tmp_path / "releases" / "2" / SPLITS).unlink()
    with pytest.raises(
        Exception, match=r"2: damaged; expected the bundle of release 2; put its files back, or"
    ):
        known(tmp_path, "3")
    roll_back(tmp_path, None, None, None)
    assert known(tmp_path, "4") == {"a": "train"}
    assert "2 is damaged; products that only it knows may get another part" in caplog.text
