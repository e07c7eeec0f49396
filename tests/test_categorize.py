"""Categorize: units, the store first, parts, a closed account, and a killed job that gives the same bytes."""

import functools
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from catalogues import (
    HTML,
    Drawn,
    documents,
    draw_products,
    drawn_image,
    encoded,
    manifest_rows,
    photo,
    write_bson,
    write_manifest,
)
from conftest import make_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from photos_alone import categorize_photos
from test_categorizer import seeing
from test_extract import Colours, Running
from test_ingest import in_a_loop
from test_once import Held

from features.engines.backbones import BACKBONE, BackboneDescription
from features.errors import Busy, ShelfmarkError, Stopped
from features.images.normalise import describe, normalise
from features.images.refusal import Limits, Refused
from features.records import image_of, read_pieces
from features.storage.paths import sizes
from features.storage.store import Store
from features.views import FLIP, View, parse_view
from models.decisions.bundle import open_bundle
from models.decisions.cascade import Cascade
from pipeline.categorize import categorize as categorize_module
from pipeline.categorize import decide, extract_new, keep_records, look_again, read_units, sort_rows
from pipeline.categorize.categorize import categorize
from pipeline.categorize.digest_index import DigestIndex, build_index
from pipeline.cli import main
from pipeline.extract import fill_store as shards_module
from pipeline.job.config import Config
from pipeline.monitor import batch_statistics

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
CONFIG = Config.model_validate(
    {
        "ingest": {"unit_images": 40, "unit_bytes": 30_000, "max_rejected": 0.4, "placeholder_products": 3},
        "extract": {"batch": 16, "shard_images": 50},
    }
)


class Saved(Colours):
    """Colours, as a backbone that can be packed."""

    def save(self, folder: Path) -> None:
        BackboneDescription(self.name, self.image_size, self.weights).write(folder / BACKBONE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, quiet_tensorflow: None) -> Held:
    path = tmp_path_factory.mktemp("bundle") / "week"
    artifact = make_bundle(path, Saved(), threshold=0.25, scale=0.01)
    return Held(open_bundle(path).categorizer, path, artifact.digest)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with a backbone of mean colours, and many small parts."""
    for module in (read_units, keep_records):
        monkeypatch.setattr(module, "run_units", in_a_loop)
    monkeypatch.setattr(shards_module, "choose_engine", lambda backbone, batch, *_: Running(backbone, batch))
    monkeypatch.setattr(sort_rows, "PART_ROWS", 40)
    monkeypatch.setattr(sort_rows, "PIECE_ROWS", 60)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The images decoded so far."""
    seen: list[bytes] = []

    def counting(data: bytes, limits: Limits) -> Any:
        seen.append(data)
        return normalise(data, limits)

    monkeypatch.setattr(extract_new, "normalise", counting)
    return seen


CASCADE = ("whole", "48-max", "40-bottom-right-flip")
# 60 products with one to three photos; one that four share, one given twice, refused ones, one without any
PRODUCTS = draw_products({"1": 60})
for shared in (5, 20, 33, 50):
    PRODUCTS[shared] = replace(PRODUCTS[shared], pictures=(photo(9_000), *PRODUCTS[shared].pictures))
PRODUCTS[7] = replace(PRODUCTS[7], pictures=(photo(71), photo(71), photo(72)))
PRODUCTS[9] = replace(PRODUCTS[9], pictures=(HTML,))
PRODUCTS[11] = replace(PRODUCTS[11], pictures=(photo(1)[:300], photo(112)))
PRODUCTS[40] = replace(PRODUCTS[40], pictures=(None,))
UNREADABLE = ["40", "9"]
GOOD = [
    picture for product in PRODUCTS for picture in product.pictures
    if picture not in (None, HTML, photo(1)[:300])
]  # fmt: skip


def shuffled(folder: Path, products: list[Drawn] = PRODUCTS) -> str:
    """A manifest whose rows stand in any order, so that products are spread over the units."""
    folder.mkdir(exist_ok=True)
    rows = manifest_rows(folder, products)
    order = np.random.default_rng(0).permutation(len(rows))
    return str(write_manifest(folder / "shop.csv", [rows[at] for at in order]))


def together(folder: Path, products: list[Drawn] = PRODUCTS) -> str:
    return str(write_bson(folder / "shop.bson", documents(products)))


@dataclass
class Batch:
    """Categorizes in a folder."""

    folder: Path
    bundle: Held

    def __call__(
        self, source: str, name: str = "d.parquet", config: Config = CONFIG, **more: Any
    ) -> pd.DataFrame:
        output = str(self.folder / name)
        self.counts = categorize([source], self.bundle, self.folder / "W" / "store", output, config, **more)
        return pd.read_parquet(output) if name.endswith(".parquet") else pd.DataFrame()

    def with_one_view(self, source: str) -> pd.DataFrame:
        """The same products, decided from the whole photos."""
        categorizer = seeing(self.bundle.categorizer, ("whole",))
        return Batch(self.folder, replace(self.bundle, categorizer=categorizer))(source, "one.parquet")

    @property
    def store(self) -> Store:
        return Store(self.folder / "W" / "store" / self.bundle.fingerprint)

    def rejects(self, name: str = "d") -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.rejects.parquet")


def looking_again(bundle: Held, limit: float) -> Held:
    """The bundle with two more views, for products of which the first is less certain than the limit."""
    categorizer = seeing(bundle.categorizer, CASCADE)
    rules = replace(categorizer.rules, cascade=Cascade(limit, 0.5))
    return replace(bundle, categorizer=replace(categorizer, rules=rules))


@pytest.fixture
def batch(tmp_path: Path, bundle: Held) -> Batch:
    return Batch(tmp_path, bundle)


def alone(products: list[Drawn], bundle: Held) -> pd.DataFrame:
    """What the categorizer decides about each product by itself."""
    networks = {view.network for view in bundle.categorizer.views}
    engines, tables = {network: Running(Colours().for_view(network), 16) for network in networks}, []
    for product in products:
        photos = [picture for picture in product.pictures if picture]
        tables.append(categorize_photos(bundle.categorizer, engines, product.id, photos, Limits())[0])
    return pd.concat(tables).sort_values("product_id", ignore_index=True)


@pytest.mark.parametrize("source", [shuffled, together])
def test_every_product_gets_the_decision_that_it_gets_alone(
    batch: Batch, bundle: Held, source: Callable[[Path], str]
) -> None:
    found = batch(source(batch.folder))
    few = [PRODUCTS[at] for at in (3, 5, 7, 9, 11, 40, 50)]
    these = found[found["product_id"].isin([one.id for one in few])].reset_index(drop=True)
    columns = ["product_id", "status", "category", "node", "node_path", "release", "confidence"]
    pd.testing.assert_frame_equal(
        these[columns].fillna(""), alone(few, bundle)[columns].fillna(""), check_dtype=False, rtol=1e-6
    )
    assert sorted(found["product_id"][found["status"] == "unreadable"]) == UNREADABLE
    assert len(set(found["status"])) > 1 and batch.counts == found["status"].value_counts().to_dict()
    assert len(sizes(batch.folder / "W" / "store")) > 4, "several shards"
    left = [name for name in sizes(batch.folder / "W") if "categorize" in name and ".lock" not in name]
    assert [name.rpartition("/")[2] for name in left] == ["images.parquet"]


@pytest.mark.parametrize("averaged", [False, True])
def test_several_views_decide_in_a_batch_as_alone_and_a_photo_is_decoded_once_for_all(
    batch: Batch, bundle: Held, decoded: list[bytes], averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, shared = ("40-bottom-right", "whole", "48-max", "flip"), set[tuple[str, ...]]()
    batch.bundle = replace(bundle, categorizer=seeing(bundle.categorizer, views, averaged))
    source, readable = together(batch.folder), extract_new.extract_readable

    def seen(engine: Any, pieces: Any, most: int, its: list[View]) -> list[np.ndarray]:
        shared.add(tuple(view.name for view in its))
        return readable(engine, pieces, most, its)

    monkeypatch.setattr(extract_new, "extract_readable", seen)
    found = batch(source)
    assert shared == {("40-bottom-right", "whole", "flip")}, "one network computes them together"
    assert len(decoded) == len({picture for product in PRODUCTS for picture in product.pictures if picture})
    few = [PRODUCTS[at] for at in (3, 5, 7, 11, 50)]
    these = found[found["product_id"].isin([one.id for one in few])].reset_index(drop=True)
    columns = ["product_id", "status", "category", "node", "confidence"]
    pd.testing.assert_frame_equal(
        these[columns].fillna(""), alone(few, batch.bundle)[columns].fillna(""), check_dtype=False, rtol=1e-6
    )
    assert not np.allclose(found["confidence"], batch.with_one_view(source)["confidence"])
    shards = [batch.store.view(parse_view(name)).shards() for name in views]
    assert len(shards[0]) > 1 and shards == [shards[0]] * len(views)
    decoded.clear()
    batch.store.view(FLIP).path.joinpath(f"{shards[0][0]}.npy").unlink()  # a lost shard is made again
    pd.testing.assert_frame_equal(batch(source, "again.parquet"), found)
    assert batch.store.view(FLIP).shards() == shards[0] and 0 < len(set(decoded) & set(GOOD)) <= 50


def stored(batch: Batch, view: str) -> set[bytes]:
    """The digests that a view of the store has."""
    return {
        digest.tobytes()
        for _, digests, _ in batch.store.view(parse_view(view)).each_shard()
        for digest in digests
    }


@pytest.mark.parametrize("source", [shuffled, pytest.param(together, marks=pytest.mark.slow)])
def test_a_cascade_decides_as_alone_and_looks_again_at_uncertain_products_only(
    batch: Batch, bundle: Held, decoded: list[bytes], source: Callable[[Path], str]
) -> None:
    first = seeing(bundle.categorizer, CASCADE[:1])
    certain = Batch(batch.folder, replace(bundle, categorizer=first))(source(batch.folder), "first.parquet")
    limit = float(certain["top_probabilities"].str[0].median())  # the temperature is 1
    shutil.rmtree(batch.folder / "W")
    batch.bundle = looking_again(bundle, limit)
    found = batch(source(batch.folder))
    few = [PRODUCTS[at] for at in (3, 5, 7, 9, 11, 40, 50)]
    these = found[found["product_id"].isin([one.id for one in few])].reset_index(drop=True)
    columns = ["product_id", "status", "category", "node", "views", "confidence"]
    pd.testing.assert_frame_equal(
        these[columns].fillna(""), alone(few, batch.bundle)[columns].fillna(""), check_dtype=False, rtol=1e-6
    )
    again = found["views"] == ",".join(CASCADE)
    readable = ~found["product_id"].isin(UNREADABLE)
    assert (again | (found["views"] == "whole")).equals(readable) and found["views"].isna().equals(~readable)
    assert 0.3 < again.mean() < 0.7
    wanted = {
        hashlib.sha256(picture).digest() for product in PRODUCTS
        if again[found["product_id"] == product.id].all() for picture in product.pictures if picture in GOOD
    }  # fmt: skip
    assert stored(batch, "48-max") == stored(batch, "40-bottom-right-flip") == wanted
    assert stored(batch, "whole") == {hashlib.sha256(picture).digest() for picture in GOOD}
    decoded.clear()
    pd.testing.assert_frame_equal(batch(source(batch.folder), "later.parquet"), found)
    assert not set(decoded) & set(GOOD), "the next week computes nothing of them"
    batch.bundle = looking_again(bundle, 1.0)  # another limit: known photos get their other views
    assert set(batch(source(batch.folder), "all.parquet")["views"].dropna()) == {",".join(CASCADE)}
    assert stored(batch, "48-max") == stored(batch, "whole")
    shard = batch.store.view(parse_view("48-max")).shards()[0]
    batch.store.view(parse_view("48-max")).path.joinpath(f"{shard}.npy").unlink()  # one that is lost, too
    batch(source(batch.folder), "lost.parquet")
    assert stored(batch, "48-max") == stored(batch, "whole")


def test_where_the_first_view_is_always_certain_no_other_is_computed(batch: Batch, bundle: Held) -> None:
    batch.bundle = looking_again(bundle, 0.0)
    source = together(batch.folder, PRODUCTS[:20])
    found = batch(source).drop(columns="views")
    assert not stored(batch, "48-max") and not stored(batch, "40-bottom-right-flip")
    pd.testing.assert_frame_equal(found, batch.with_one_view(source).drop(columns="views"))


def test_a_cascade_that_was_stopped_in_its_second_look_goes_on_to_the_same_decisions(
    batch: Batch, bundle: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.bundle = looking_again(bundle, 1.0)
    source, original = together(batch.folder), look_again.extract_new

    def stopped(shards: list[str], *arguments: Any) -> Any:
        assert len(shards) > 1
        original(shards[:1], *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(look_again, "extract_new", stopped)
    with pytest.raises(KeyboardInterrupt):
        batch(source)
    half = stored(batch, "48-max")
    monkeypatch.setattr(look_again, "extract_new", original)
    found = batch(source)
    assert 0 < len(half) < len(stored(batch, "48-max"))
    digests = [digests for _, digests, _ in batch.store.view(parse_view("48-max")).each_shard()]
    assert len(np.concatenate(digests)) == len(stored(batch, "whole")), "no photo twice"
    again = Batch(batch.folder / "other", batch.bundle)
    again.folder.mkdir()
    pd.testing.assert_frame_equal(again(source), found)


def before_second_look(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Does something between the two looks of the next cascade."""
    original = look_again.plan_new

    def plan_new(*arguments: Any) -> list[str]:
        monkeypatch.setattr(look_again, "plan_new", original)
        do()
        return original(*arguments)

    monkeypatch.setattr(look_again, "plan_new", plan_new)


def spoil(files: list[Path]) -> None:
    """Of three files one becomes another photo, one a folder, and one is removed."""
    for number, file in enumerate(files):
        file.unlink()
        if number % 3 == 0:
            file.write_bytes(photo(4711))
        if number % 3 == 1:
            file.mkdir()


def test_photos_that_are_gone_before_the_second_look_are_rejects_and_the_others_decide(
    batch: Batch, bundle: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    products = [replace(one, pictures=(*one.pictures, one.pictures[-1])) for one in PRODUCTS]
    source, undisturbed = shuffled(batch.folder, products), Batch(batch.folder / "undisturbed", bundle)
    undisturbed.folder.mkdir()
    certain = undisturbed.with_one_view(source)["top_probabilities"].str[0]
    batch.bundle = undisturbed.bundle = looking_again(bundle, float(certain.median()))
    before = undisturbed(source)
    uncertain = before["product_id"][before["views"] == ",".join(CASCADE)].tolist()
    assert 20 < len(uncertain) < 40
    gone = {one.pictures[-1] for one in products if one.id in uncertain}  # each is there twice
    files = [file for file in sorted((batch.folder / "photos").iterdir()) if file.read_bytes() in gone]
    before_second_look(monkeypatch, lambda: spoil(files))
    found = batch(source)
    changed = batch.rejects().query("reason == 'changed'")
    assert sorted(changed["source"]) == [f"photos/{file.name}" for file in files]
    assert set(changed["detail"]) == {"gone, or not the same, when it was read again"}
    assert f"cascade: {len(files)} photos have changed or gone before the second look" in caplog.text
    left = [
        replace(one, pictures=tuple(picture for picture in one.pictures if picture not in gone))
        for one in products if one.id in uncertain
    ]  # fmt: skip
    assert any(not one.pictures for one in left) and any(one.pictures for one in left)
    expected, again = alone(left, batch.bundle), found["product_id"].isin(uncertain)
    columns = ["product_id", "status", "category", "node", "views", "confidence"]
    pd.testing.assert_frame_equal(
        found.loc[again, columns].fillna("").reset_index(drop=True), expected[columns].fillna(""),
        check_dtype=False, rtol=1e-6,
    )  # fmt: skip
    pd.testing.assert_frame_equal(found[~again], before[~again])


def test_where_too_many_photos_are_gone_before_the_second_look_the_job_stops_and_goes_on_with_them(
    batch: Batch, bundle: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.bundle = looking_again(bundle, 1.0)
    source, photos = shuffled(batch.folder), batch.folder / "photos"
    before_second_look(monkeypatch, lambda: photos.rename(batch.folder / "away"))
    with pytest.raises(
        Stopped, match=r"images rejected \(changed .* when it was read again; expected at most 40%"
    ):
        batch(source)
    assert not (batch.folder / "d.parquet").exists()
    (batch.folder / "away").rename(photos)
    found = batch(source)
    assert set(found["views"].dropna()) == {",".join(CASCADE)}
    assert "changed" not in set(batch.rejects()["reason"])


def test_the_account_closes_where_a_photo_comes_back_after_its_product_was_decided_without_it(
    batch: Batch, bundle: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.bundle = looking_again(bundle, 1.0)
    source, original = shuffled(batch.folder), decide.write_whole
    file = batch.folder / "photos" / "0-0.jpg"  # of a product of the first part
    before_second_look(monkeypatch, lambda: file.rename(batch.folder / "away"))

    def killed(*arguments: Any) -> None:
        if list(batch.folder.glob("W/categorize/*/work/_parts/part-*.parquet")):
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(decide, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        batch(source)
    monkeypatch.setattr(decide, "write_whole", original)
    (batch.folder / "away").rename(file)
    found = batch(source).set_index("product_id")
    assert found["status"]["0"] == "unreadable" and "photos/0-0.jpg" in set(batch.rejects()["source"])


def test_a_known_image_is_not_decoded_and_a_new_one_once(batch: Batch, decoded: list[bytes]) -> None:
    source = shuffled(batch.folder / "shop")
    first = batch(source)
    distinct = {picture for product in PRODUCTS for picture in product.pictures if picture}
    assert sorted(decoded) == sorted(distinct)
    before = batch.store.shards()
    decoded.clear()
    pd.testing.assert_frame_equal(batch(source, "again.parquet"), first)
    assert sorted(decoded) == sorted([HTML, photo(1)[:300]]), "what is refused is not in the store"
    assert batch.store.shards() == before


def test_parts_and_pieces_of_any_size_give_the_same_bytes(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shuffled(batch.folder / "shop")
    batch(source)
    for part, piece in ((5, 7), (1000, 1000)):
        monkeypatch.setattr(sort_rows, "PART_ROWS", part)
        monkeypatch.setattr(sort_rows, "PIECE_ROWS", piece)
        pd.testing.assert_frame_equal(batch(source, "e.parquet"), pd.read_parquet(batch.folder / "d.parquet"))
        same = ["product_id", "image_index"]
        pd.testing.assert_frame_equal(
            batch.rejects("e").sort_values(same, ignore_index=True),
            batch.rejects().sort_values(same, ignore_index=True),
        )


def test_the_account_closes_and_rejects_name_images_by_product_and_index(
    batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shelfmark")
    batch(together(batch.folder))
    rejects = batch.rejects().sort_values("product_id")
    assert rejects[["product_id", "image_index", "reason"]].to_numpy().tolist() == [
        ["11", 0, "truncated"], ["40", 0, "missing"], ["9", 0, "not_an_image"],
    ]  # fmt: skip
    assert set(rejects["source"]) == {"shop.bson"}
    images = sum(len(product.pictures) for product in PRODUCTS)
    assert f"products 60, {'accepted' if 'accepted' in batch.counts else 'review'}" in caplog.text
    assert f"images {images}, repeated images 1, rejected images 3" in caplog.text
    good = [replace(one, pictures=(photo(int(one.id)),)) for one in PRODUCTS[:5]]
    batch(together(batch.folder, good), "good.parquet")
    assert len(batch.rejects("good")) == 0, "the table of the rejects is there, too, when it is empty"


def test_a_flood_of_rejects_stops_before_anything_is_decided(batch: Batch) -> None:
    products = [replace(one, pictures=(HTML,)) for one in PRODUCTS[:40]] + PRODUCTS[41:60]
    with pytest.raises(
        Stopped, match=r"images rejected \(not_an_image 40.*rejects.parquet lists them"
    ) as stop:
        batch(together(batch.folder, products))
    listed = Path(str(stop.value).partition("40%; ")[2].partition(" lists")[0])
    assert len(pd.read_parquet(listed)) == 40
    assert sorted(file.name for file in batch.folder.iterdir()) == ["W", "shop.bson"]


# Killed


class Kill(BaseException):
    """The end of a process, as far as files can see."""


KILLED = [
    (read_units, "read_unit", 2, True), (extract_new, "write_table", 0, False),
    (decide, "write_whole", 2, False), (categorize_module, "remove", 0, False),
]  # fmt: skip
MORE = [
    (extract_new, "make_shard", 1, True), (sort_rows, "_write_piece", 1, True),
    (decide, "write_whole", 2, True), (categorize_module, "join_rejects", 0, True),
]  # fmt: skip


@pytest.mark.parametrize(
    "module, name, calls, after", [*KILLED, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)]
)
def test_a_killed_job_goes_on_and_gives_the_same_bytes(
    batch: Batch, tmp_path: Path, module: Any, name: str, calls: int, after: bool, decoded: list[bytes],
    with_reference: None,
) -> None:  # fmt: skip
    source = shuffled(tmp_path / "shop")
    undisturbed = Batch(tmp_path / "undisturbed", batch.bundle)
    undisturbed(source)
    images = len(decoded)
    decoded.clear()
    count, real = 0, getattr(module, name)

    @functools.wraps(real)
    def killed(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls and not after:
            raise Kill
        result = real(*arguments, **more)
        if count > calls:
            raise Kill
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(Kill):
            batch(source)
    batch(source)
    for file in ("d.parquet", "d.rejects.parquet", "d.statistics.json"):
        assert (batch.folder / file).read_bytes() == (undisturbed.folder / file).read_bytes()
    assert batch.store.shards() == undisturbed.store.shards()
    assert len(decoded) <= images + 50, "at most one shard is extracted twice"
    assert not [path for path in batch.folder.iterdir() if path.name.startswith("d.parquet.")]


def test_shards_that_are_gone_meanwhile_are_extracted_again(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shuffled(batch.folder / "shop")
    wanted = batch(source)
    real = categorize_module.sort_rows
    monkeypatch.setattr(categorize_module, "sort_rows", lambda *_: (_ for _ in ()).throw(Kill))
    with pytest.raises(Kill):
        batch(source, "e.parquet")
    monkeypatch.setattr(categorize_module, "sort_rows", real)
    for file in batch.store.path.glob("*.*"):
        file.unlink()
    pd.testing.assert_frame_equal(batch(source, "e.parquet"), wanted)


def test_a_second_job_with_the_same_output_is_busy(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real, seen = together(batch.folder), categorize_module.plan_new, []

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(categorize_module, "plan_new", real)
        with pytest.raises(Busy):
            batch(source)
        seen.append(len(batch(source, "other.parquet")))
        return real(*arguments)

    monkeypatch.setattr(categorize_module, "plan_new", meanwhile)
    assert [len(batch(source))] == seen == [60]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("--", "--runner=FnApiRunner", "--direct_running_mode=in_memory")], ids=["here", "beam"]
)
def test_the_command_decides_the_same_in_processes_and_on_beam(
    workspace: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # real units, and the release's own backbone
    source = shuffled(tmp_path / "shop")
    settings = ["ingest.unit_images=20", "ingest.max_rejected=0.4", "extract.shard_images=30"]
    command = ["categorize", source, "--workspace", str(workspace)]
    for setting in settings:
        command += ["--set", setting]
    main([*command, "--output", str(tmp_path / "d.parquet"), *options])
    main([*command, "--output", str(tmp_path / "e.parquet"), "--keep-records", str(tmp_path / "r"), *options])
    found = pd.read_parquet(tmp_path / "d.parquet")
    pd.testing.assert_frame_equal(found, pd.read_parquet(tmp_path / "e.parquet"))
    assert sorted(found["product_id"][found["status"] == "unreadable"]) == UNREADABLE
    assert len(pd.read_parquet(tmp_path / "r" / "images.parquet")) == len(GOOD)
    if options:  # another store, so that Beam's workers extract, too
        shutil.copytree(workspace / "releases", tmp_path / "V" / "releases", symlinks=True)
        command[3] = str(tmp_path / "V")
        main([*command, "--output", str(tmp_path / "f.parquet")])
        pd.testing.assert_frame_equal(found, pd.read_parquet(tmp_path / "f.parquet"))
        assert sorted(sizes(workspace / "store")) == sorted(sizes(tmp_path / "V" / "store"))


@pytest.mark.slow
@pytest.mark.timeout(600)  # four times TensorFlow's start
def test_a_process_that_is_killed_again_and_again_gives_the_same_bytes(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    source = shuffled(tmp_path / "shop", draw_products({"1": 400}))
    shutil.copytree(workspace / "releases", tmp_path / "V" / "releases", symlinks=True)

    def command(folder: Path, *more: str) -> list[str]:
        given = ["--workspace", str(folder), "--output", str(tmp_path / f"{folder.name}.parquet"), *more]
        for setting in ("ingest.unit_images=50", "extract.shard_images=40", "extract.engine=tensorflow"):
            given += ["--set", setting]
        return ["categorize", source, *given]

    for what, number in (("_new/*.parquet", signal.SIGKILL), ("_sorted/*.arrow", signal.SIGTERM)):
        job = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *command(workspace)])
        while job.poll() is None and not list(workspace.glob(f"categorize/*/work/{what}")):
            time.sleep(0.002)
        job.send_signal(number)
        assert job.wait(60) in (-number, 128 + number, 0)
    main(command(workspace))
    main(command(tmp_path / "V"))
    for suffix in (".parquet", ".rejects.parquet"):
        assert (tmp_path / f"W{suffix}").read_bytes() == (tmp_path / f"V{suffix}").read_bytes()
    assert sorted(sizes(workspace / "store")) == sorted(sizes(tmp_path / "V" / "store"))


# The statistics


@pytest.fixture
def with_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle counts photos, as one with a reference does."""
    centroids = np.eye(12, dtype=np.float16)[:5]
    counting = batch_statistics.PartImages(np.array([0.1, 0.3, 0.5]), centroids)
    monkeypatch.setattr(categorize_module.PartImages, "of", classmethod(lambda cls, bundle: counting))


@pytest.mark.usefixtures("with_reference")
def test_statistics_count_products_whatever_the_parts_and_whatever_is_known(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shuffled(batch.folder / "shop")
    batch(source)
    first = (batch.folder / "d.statistics.json").read_bytes()
    monkeypatch.setattr(sort_rows, "PART_ROWS", 1000)
    batch(source)
    assert (batch.folder / "d.statistics.json").read_bytes() == first
    found = json.loads(first)
    assert (found["products"], found["unreadable"]) == (60, 2)
    assert sum(found["distance"]) == sum(found["images"]) == 58
    assert found["placeholder"][0] == sum(one.pictures[0] == photo(9_000) for one in first_pictures(source))
    assert found["kind"] == {"jpeg": sum(found["placeholder"])}
    assert found["size"] == [sum(found["placeholder"]), *[0] * 12], "all are 40 px"


def first_pictures(source: str) -> list[Drawn]:
    """The products with their pictures in the order of the source, refused ones in place."""
    rows = pd.read_csv(source, dtype=str)
    order = {one.id: [] for one in PRODUCTS}  # type: dict[str, list[bytes | None]]
    pictures = {
        f"photos/{one.id}-{n}.jpg": picture for one in PRODUCTS for n, picture in enumerate(one.pictures)
    }
    for row in rows.itertuples():
        order[row.product_id].append(pictures[row.image])
    return [Drawn(one.id, "", tuple(order[one.id])) for one in PRODUCTS]


# Only new


def test_only_new_leaves_out_what_this_release_decided_before(batch: Batch, decoded: list[bytes]) -> None:
    whole = batch(together(batch.folder, PRODUCTS))
    assert batch(together(batch.folder, PRODUCTS[:30]), "first.parquet")["product_id"].nunique() == 30
    source = shuffled(batch.folder / "shop")
    decoded.clear()
    found = batch(source, "new.parquet", only_new=str(batch.folder / "first.parquet"))
    wanted = [one.id for one in PRODUCTS[30:]] + ["9"]
    assert sorted(found["product_id"]) == sorted(wanted), "an unreadable one is tried again"
    pd.testing.assert_frame_equal(
        found, whole[whole["product_id"].isin(wanted)].reset_index(drop=True), check_exact=False, rtol=1e-6
    )
    assert photo(1)[:300] not in decoded, "photos of products that are left out are not decoded"
    other = pd.read_parquet(batch.folder / "first.parquet").assign(release="another")
    other.to_parquet(batch.folder / "other.parquet")
    assert len(batch(source, "all.parquet", only_new=str(batch.folder / "other.parquet"))) == 60


def test_only_new_of_the_output_itself_is_refused(batch: Batch) -> None:
    source = together(batch.folder)
    batch(source)
    with pytest.raises(ShelfmarkError, match="would lose what it holds"):
        batch(source, only_new=str(batch.folder / "d.parquet"))


def test_a_table_takes_only_new_decisions_from_the_first_week_on(
    batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sqlalchemy")
    import sqlite3

    caplog.set_level("INFO", "shelfmark")
    table = f"sqlite:///{batch.folder / 'shop.db'}#decisions"
    store, more = batch.folder / "W" / "store", {"only_new": table}
    first = categorize([together(batch.folder, PRODUCTS[:30])], batch.bundle, store, table, CONFIG, **more)
    assert sum(first.values()) == 30
    assert f"only new: {table} does not exist yet: all products are new" in caplog.text
    counts = categorize([shuffled(batch.folder / "shop")], batch.bundle, store, table, CONFIG, **more)
    assert sum(counts.values()) == 31
    with sqlite3.connect(batch.folder / "shop.db") as database:
        rows = database.execute("select product_id, status from decisions order by product_id").fetchall()
    wanted = batch(shuffled(batch.folder / "shop"))
    assert rows == list(zip(wanted["product_id"], wanted["status"], strict=True))


@pytest.mark.parametrize(
    ("earlier", "message"),
    [
        ("other.db#decisions", "no such file; expected decisions of"),
        ("shop.db#choices", "no such table; expected"),
    ],
)
def test_a_missing_table_of_only_new_that_is_not_the_output_is_refused(
    batch: Batch, earlier: str, message: str
) -> None:
    pytest.importorskip("sqlalchemy")
    source, store = together(batch.folder, PRODUCTS[:3]), batch.folder / "W" / "store"
    table = f"sqlite:///{batch.folder / 'shop.db'}#decisions"
    categorize([source], batch.bundle, store, table, CONFIG)
    with pytest.raises(ShelfmarkError, match=message):
        categorize(
            [source], batch.bundle, store, table, CONFIG, only_new=f"sqlite:///{batch.folder / earlier}"
        )


# Records


@pytest.mark.parametrize("known", [False, True])
def test_kept_records_read_back(batch: Batch, known: bool) -> None:
    source, records = shuffled(batch.folder / "shop"), batch.folder / "records"
    wanted = batch(source) if known else None
    found = batch(source, "e.parquet", records=records)
    assert wanted is None or wanted.equals(found)
    rows = pd.read_parquet(records / "images.parquet")
    jpegs = [
        image_of(piece.data[start : start + length])
        for piece in read_pieces(records, rows)
        for start, length in zip(piece.starts.tolist(), piece.lengths.tolist(), strict=True)
    ]
    pictures = {
        (one.id, n): picture
        for one in first_pictures(source) for n, picture in enumerate(one.pictures)
        if picture not in (None, HTML, photo(1)[:300])
    }  # fmt: skip
    keys = list(zip(rows["product_id"], rows["image_index"], strict=True))
    assert dict(zip(keys, jpegs, strict=True)) == pictures
    assert [hashlib.sha256(jpeg).digest() for jpeg in jpegs] == rows["image_digest"].tolist()
    before = sizes(records)
    batch(source, "f.parquet", records=records)
    assert sizes(records) == before


def test_a_directory_of_other_things_is_not_overwritten_by_records(batch: Batch) -> None:
    (batch.folder / "mine").mkdir()
    with pytest.raises(ShelfmarkError, match="holds no photos of categorize"):
        batch(together(batch.folder), records=batch.folder / "mine")


def test_pictures_within_a_table_are_copied_only_when_they_are_new(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    rows = [(one.id, picture) for one in PRODUCTS for picture in one.pictures]
    table = pa.table(
        {"product_id": [row[0] for row in rows], "image": pa.array([row[1] for row in rows], pa.binary())}
    )
    pq.write_table(table, batch.folder / "shop.parquet", row_group_size=20)
    found, copies = [], []
    real = categorize_module.plan_new

    def and_then(units: list[Path], *more: Any) -> Any:
        copies.append(sum(file.stat().st_size for file in units[0].parent.glob("*.pictures")))
        return real(units, *more)

    monkeypatch.setattr(categorize_module, "plan_new", and_then)
    for name in ("a.parquet", "b.parquet"):
        found.append(batch(str(batch.folder / "shop.parquet"), name))
    pd.testing.assert_frame_equal(*found)
    assert copies[0] > 10 * copies[1] > 0, "what is refused is not known"


# The index and the store


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=200), st.lists(st.integers(0, 80), max_size=50), st.booleans())
def test_an_index_finds_what_a_dict_finds(added: list[int], wanted: list[int], alike: bool) -> None:
    import tempfile

    def digest(number: int) -> bytes:
        whole = hashlib.sha256(str(number).encode()).digest()
        return b"8 bytes." + whole[8:] if alike else whole  # all agree in the first 64 bits

    def array(numbers: list[int]) -> np.ndarray:
        return np.frombuffer(b"".join(map(digest, numbers)), np.uint8).reshape(-1, 32)

    def rows() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for start in range(0, len(added), 30):
            its = added[start : start + 30]
            yield array(its), {"at": np.arange(start, start + len(its))}

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.categorize.digest_index.RUN", 45)
        index = build_index(Path(folder), "x", rows(), {"at": np.int64})
        first = {number: added.index(number) for number in set(added)}
        assert len(index) == len(first) or alike
        at = index.find(array(wanted))
        places = np.where(at >= 0, index.take("at", np.maximum(at, 0)) if len(index) else -1, -1)
        assert places.tolist() == [first.get(number, -1) for number in wanted]
        assert len(DigestIndex(Path(folder), "x")) == len(index)


def test_a_changed_byte_in_the_store_stops_the_batch(batch: Batch) -> None:
    source = together(batch.folder)
    batch(source)
    file = sorted(batch.store.path.glob("*.npy"))[0]
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ShelfmarkError, match=r"1 of .* bottlenecks are not what was written there"):
        batch(source, "e.parquet")
    assert not (batch.folder / "e.parquet").exists()


# What is said of an image without decoding it


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(40, 30), (1500, 700)])
def test_an_image_is_described_as_it_is_decoded(kind: str, size: tuple[int, int]) -> None:
    for picture in (drawn_image(3, *size, (40, 40)), drawn_image(0, *size, (1, 1))):
        data = encoded(picture, kind)
        found, wanted = describe(data), normalise(data)
        assert (found.width, found.height, found.flat) == (wanted.width, wanted.height, wanted.flat)


def test_narrower_limits_refuse_a_known_image() -> None:
    with pytest.raises(Refused, match="the limit is 1000"):
        describe(encoded(drawn_image(3, 1500, 700, (90, 90)), "JPEG"), Limits(max_pixels=1000))
