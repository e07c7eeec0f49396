"""Extract: each image once, whatever was there before, and an index that points at the right bottlenecks."""

import errno
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from catalogues import Drawn, documents, draw_products, photo, write_bson
from test_ingest import in_a_loop

from features.engines.backbones import load_backbone
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import pieces_of
from features.storage.artifact import open_artifact
from features.storage.paths import MARK, copy_tree
from features.storage.store import Digests, Store
from features.views import FLIP, parse_view
from pipeline.extract import fill_store as shards_module
from pipeline.extract.extract import extract_records
from pipeline.extract.fill_store import fill_store
from pipeline.ingest import ingest as ingest_module
from pipeline.ingest.ingest import make_records
from pipeline.job.catalogue import open_part
from pipeline.job.config import Config, ExtractSettings, IngestSettings
from pipeline.job.run import Run
from pipeline.job.stage import stage

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
SETTINGS = ExtractSettings(batch=16, shard_images=30)


@dataclass
class Colours:
    """A backbone that returns the mean colours of the quarters of an image, and counts its batches."""

    name: str = "colours"
    weights: str = "none"
    image_size: int = 8
    width: int = 12
    fingerprint: str = "colours-8"
    batches: list[int] = field(default_factory=list)
    fail_at: int = -1
    fails: Iterable[Exception] = ()
    scale: float = 1.0
    pooling: str = "mean"

    def require_view(self, view):
        view.require_size(self.image_size)

    def for_view(self, view):
        self.require_view(view)
        return replace(self, image_size=view.input(self.image_size), pooling=view.pooling)

    def bottlenecks(self, pixels):
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        for error in self.fails:
            raise error
        self.batches.append(len(pixels))
        half = self.image_size // 2
        quarters = pixels.reshape(len(pixels), 2, half, 2, half, 3).astype(np.float32)
        pooled = getattr(quarters, self.pooling)(axis=(2, 4))
        return self.scale * pooled.reshape(len(pixels), 12)


@dataclass
class Running:
    """An engine for Colours."""

    backbone: Colours
    batch: int
    name: str = "by hand"
    width: int = 12

    @property
    def size(self):
        return self.backbone.image_size

    def fill(self, batches, rows):
        for number, pixels in enumerate(batches):
            rows[number * self.batch : (number + 1) * self.batch] = self.backbone.bottlenecks(pixels)


def engines_by_hand(backbone, batches):
    """Engines for Colours by network and size of batches, as Bundle.engines gives them."""
    return {view: {size: Running(backbone, size) for size in sizes} for view, sizes in batches.items()}


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.setattr(shards_module, "choose_engine", lambda backbone, batch, *_: Running(backbone, batch))


@pytest.fixture
def extracted(monkeypatch):
    """Images extracted so far, shard by shard of each view."""
    counts = []
    real = shards_module.extract

    def counting(engine, pieces, count, views):
        counts.extend([count] * len(views))
        return real(engine, pieces, count, views)

    monkeypatch.setattr(shards_module, "extract", counting)
    return counts


# 60 products with one to three photos each; two photos stand at several products
PRODUCTS = draw_products({"1": 30, "2": 30})
PRODUCTS[7] = Drawn("7", "1", (photo(40), photo(40), photo(71)))
PRODUCTS[8] = Drawn("8", "1", (photo(81), photo(40)))
PRODUCTS[45] = Drawn("45", "2", (photo(81),))
PRODUCTS[46] = Drawn("46", "2", (photo(460, "PNG"), photo(461)))
DIFFERENT = len({picture for product in PRODUCTS for picture in product.pictures})


def records_of(products, folder):
    """Records in several shards, made without Beam."""
    folder.mkdir(parents=True, exist_ok=True)
    source = write_bson(folder / "catalogue.bson", documents(products))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "run_units", in_a_loop)
        return make_records([str(source)], folder / "records", IngestSettings(unit_bytes=40_000))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(PRODUCTS, tmp_path_factory.mktemp("week-one"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def index_of(artifact):
    return pd.read_parquet(artifact.file("index.parquet"))


def rows_of(artifact, store):
    """product_id, image_index → bottleneck."""
    index = index_of(artifact)
    rows = [
        tuple(np.load(store / "colours-8" / f"{shard}.npy")[row])
        for shard, row in zip(index["shard"], index["row"], strict=True)
    ]
    return dict(zip(zip(index["product_id"], index["image_index"], strict=True), rows, strict=True))


def test_every_image_has_the_bottleneck_that_it_has_alone(records, tmp_path):
    made = extract_records(records, Colours(), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    rows = rows_of(made, tmp_path / "store")
    pictures = {(p.id, place): picture for p in PRODUCTS for place, picture in enumerate(p.pictures)}
    pictures["46", 0] = photo(460)  # drawn as a PNG
    pieces = pieces_of(pictures.values(), "drawn")
    alone = [Colours().bottlenecks(pixels)[0] for pixels in read_pixels(pieces, 8, batch=1)]
    wanted = {key: tuple(row.astype(np.float16)) for key, row in zip(pictures, alone, strict=True)}
    png, other = np.array(rows.pop(("46", 0))), np.array(rows["46", 1])
    jpeg = np.array(wanted.pop(("46", 0)))
    assert rows == wanted
    assert np.abs(png - jpeg).max() < 6 < np.abs(other - jpeg).max(), "transcoded at 95, drawn at 75"


def test_an_identical_image_is_extracted_once(records, tmp_path, extracted):
    made = extract_records(records, Colours(), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    assert sum(extracted) == DIFFERENT and extracted[:-1] == [30] * (len(extracted) - 1)
    index = index_of(made)
    twins = index[index["image_digest"] == hashlib.sha256(photo(40)).digest()]
    assert list(zip(twins["product_id"], twins["image_index"], strict=True)) == [
        ("4", 0),
        ("7", 0),
        ("7", 1),
        ("8", 1),
    ]
    assert len(twins[["shard", "row"]].drop_duplicates()) == 1


def test_the_index_has_every_record_sorted_by_product(records, tmp_path):
    made = extract_records(records, Colours(), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    index = index_of(made)
    assert list(index.columns) == ["image_digest", "product_id", "image_index", "split", "shard", "row"]
    keys = list(zip(index["product_id"], index["image_index"], strict=True))
    assert keys == sorted((p.id, place) for p in PRODUCTS for place in range(len(p.pictures)))
    split = pd.read_parquet(records.file("products.parquet")).set_index("product_id")["split"]
    assert (index["split"].to_numpy() == index["product_id"].map(split).to_numpy()).all()
    values = {"images": len(index), "fingerprint": "colours-8", "backbone": "colours", "weights": "none"}
    values |= {"views": 1, "engines": {"by hand": len(index)}}
    values |= {"view_names": ["whole"], "asked": ["whole"], "averaged": False, "view_engines": {}}
    assert made.summary == values


def test_a_part_has_the_images_of_its_split_with_their_bottlenecks(records, tmp_path):
    made = extract_records(records, Colours(), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    rows, index, images = rows_of(made, tmp_path / "store"), index_of(made), 0
    for split in ("train", "val", "test"):
        part = open_part(made, tmp_path / "store", split)
        its = index[index["split"] == split].drop_duplicates(["product_id", "image_digest"])
        assert list(part.product_id) == list(its["product_id"])
        assert list(part.image_digest) == [digest.hex() for digest in its["image_digest"]]
        wanted = [rows[key] for key in zip(its["product_id"], its["image_index"], strict=True)]
        assert list(map(tuple, part.rows[:])) == wanted
        images += len(part.rows)
        chosen = part.product_id == part.product_id[0]
        only = part.only(chosen)
        assert set(only.product_id) == {part.product_id[0]} and len(only.rows) == chosen.sum() == len(
            only.image_digest
        )
        assert (only.rows[:] == part.rows[:][chosen]).all()
    assert images == len(index) - 1, "product 7 has one photo twice"
    assert len(open_part(made, tmp_path / "store", "nowhere").rows) == 0


# Again


def test_running_again_opens_what_is_there(records, tmp_path, extracted, caplog):
    common = (tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    first = extract_records(records, Colours(), *common)
    extracted.clear()
    caplog.set_level(logging.INFO, logger="shelfmark")
    assert extract_records(records, Colours(), *common) == first and extracted == []
    assert caplog.records[-1].getMessage().startswith("bottlenecks: unchanged (")


def test_another_run_of_the_same_records_extracts_nothing(records, tmp_path, extracted):
    first = extract_records(records, Colours(), tmp_path / "store", tmp_path / "one", SETTINGS)
    extracted.clear()
    second = extract_records(records, Colours(), tmp_path / "store", tmp_path / "two", SETTINGS)
    assert extracted == [] and second.digest == first.digest


def test_another_backbone_extracts_all_into_a_store_of_its_own(records, tmp_path, extracted):
    common = (tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    first = extract_records(records, Colours(), *common)
    before = contents(tmp_path / "store" / "colours-8")
    extracted.clear()
    second = extract_records(records, Colours(fingerprint="colours-9"), *common)
    assert sum(extracted) == DIFFERENT and second.digest != first.digest
    assert contents(tmp_path / "store" / "colours-8") == before


def test_settings_for_speed_do_not_make_it_again(records, tmp_path, extracted):
    common = (records, Colours(), tmp_path / "store", tmp_path / "bottlenecks")
    first = extract_records(*common, SETTINGS)
    extracted.clear()
    assert extract_records(*common, ExtractSettings(batch=7, shard_images=11)) == first and extracted == []


def test_week_two_extracts_only_what_is_new(records, tmp_path, extracted):
    store = tmp_path / "store"
    first = extract_records(records, Colours(), store, tmp_path / "one", SETTINGS)
    before = contents(store / "colours-8")
    extracted.clear()
    new = [Drawn("900", "1", (photo(9000), photo(40))), Drawn("901", "2", (photo(9010),))]
    week_two = records_of([*new, *PRODUCTS[5:]], tmp_path / "week-two")
    second = extract_records(week_two, Colours(), store, tmp_path / "two", SETTINGS)
    assert extracted == [2]
    after = contents(store / "colours-8")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    one, two = rows_of(first, store), rows_of(second, store)
    assert {key: two[key] for key in one.keys() & two.keys()} == {
        key: one[key] for key in one.keys() & two.keys()
    }
    assert two["900", 1] == one["4", 0]


# Losses and interruptions


@pytest.mark.parametrize("lost", [(".npy", ".parquet"), (".parquet",), (".npy",)], ids="+".join)
def test_a_lost_shard_is_made_again_and_no_other(records, tmp_path, extracted, lost):
    common = (tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    first = extract_records(records, Colours(), *common)
    rows = rows_of(first, tmp_path / "store")
    shelf = tmp_path / "store" / "colours-8"
    shard = Store(shelf).shards()[1]
    images = len(np.load(shelf / f"{shard}.npy"))
    for suffix in lost:
        (shelf / f"{shard}{suffix}").unlink()
    extracted.clear()
    second = extract_records(records, Colours(), *common)
    assert extracted == [images]
    assert rows_of(second, tmp_path / "store") == rows


def test_a_store_that_is_lost_is_made_again_as_it_was(records, tmp_path, extracted):
    common = (tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    first = extract_records(records, Colours(), *common)
    before = contents(tmp_path / "store" / "colours-8")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert extract_records(records, Colours(), *common).digest == first.digest
    assert contents(tmp_path / "store" / "colours-8") == before


def test_an_interrupted_extract_goes_on_at_the_last_finished_shard(records, tmp_path, extracted):
    undisturbed = extract_records(records, Colours(), tmp_path / "one", tmp_path / "a", SETTINGS)
    extracted.clear()
    with pytest.raises(KeyboardInterrupt):  # two batches a shard: in the second shard
        extract_records(records, Colours(fail_at=3), tmp_path / "two", tmp_path / "b", SETTINGS)
    assert len(Store(tmp_path / "two" / "colours-8").shards()) == 1 and not (tmp_path / "b").exists()
    extracted.clear()
    resumed = extract_records(records, Colours(), tmp_path / "two", tmp_path / "b", SETTINGS)
    assert sum(extracted) == DIFFERENT - 30
    assert resumed.digest == undisturbed.digest
    assert contents(tmp_path / "two" / "colours-8") == contents(tmp_path / "one" / "colours-8")


def test_a_damaged_record_is_reported(tmp_path):
    its = records_of(PRODUCTS, tmp_path)
    shard = max(its.path.glob("*.tfrecord"), key=lambda file: file.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShelfmarkError, match="a record does not match its checksum"):
        extract_records(its, Colours(), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)


class OfAShard:
    """Raises an error while one certain image is extracted, so many times."""

    def __init__(self, error, times):
        self.error, self.times, self.reads = error, times, 0

    def __iter__(self):
        self.reads += 1
        if self.reads in self.times:
            yield self.error


def test_a_shard_that_fails_once_is_tried_again(records, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="shelfmark")
    undisturbed = extract_records(records, Colours(), tmp_path / "one", tmp_path / "a", SETTINGS)
    backbone = Colours(fails=OfAShard(RuntimeError("out of memory"), times=[3]))
    made = extract_records(records, backbone, tmp_path / "two", tmp_path / "b", SETTINGS)
    assert made.digest == undisturbed.digest
    assert contents(tmp_path / "two" / "colours-8") == contents(tmp_path / "one" / "colours-8")
    assert "extract: a shard failed (RuntimeError: out of memory); trying it again" in caplog.messages


def test_a_shard_that_fails_twice_is_reported_when_the_others_are_done(records, tmp_path, extracted):
    whole = extract_records(records, Colours(), tmp_path / "one", tmp_path / "a", SETTINGS)
    made = Store(tmp_path / "one" / "colours-8").shards()
    backbone = Colours(fails=OfAShard(RuntimeError("out of memory"), times=[3, 4]))
    with pytest.raises(
        ShelfmarkError, match=r"failed twice \(RuntimeError: out of memory\); expected"
    ) as message:
        extract_records(records, backbone, tmp_path / "two", tmp_path / "b", SETTINGS)
    there = Store(tmp_path / "two" / "colours-8").shards()
    (missing,) = set(made) - set(there)
    assert f"colours-8: shard {missing} failed twice" in str(message.value) and len(made) > 2
    extracted.clear()
    resumed = extract_records(records, Colours(), tmp_path / "two", tmp_path / "b", SETTINGS)
    assert extracted == [30] and resumed.digest == whole.digest
    assert contents(tmp_path / "two" / "colours-8") == contents(tmp_path / "one" / "colours-8")


def test_a_full_disk_stops_at_once(records, tmp_path, extracted):
    backbone = Colours(fails=[OSError(errno.ENOSPC, "No space left on device", "here")])
    with pytest.raises(OSError, match="No space left"):
        extract_records(records, backbone, tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    assert len(extracted) == 1


def test_when_shard_after_shard_fails_the_rest_is_not_tried(records, tmp_path, extracted):
    backbone = Colours(fails=[RuntimeError("no")])
    small = ExtractSettings(batch=2, shard_images=2)
    with pytest.raises(ShelfmarkError, match=r"\(RuntimeError: no\); 9 others failed, too"):
        extract_records(records, backbone, tmp_path / "store", tmp_path / "bottlenecks", small)
    assert len(extracted) == 20


def test_a_lost_image_is_a_fault_and_no_row_of_zeros(tmp_path):
    store = Store(tmp_path / "colours-8")
    digests = Digests(np.arange(96, dtype=np.uint8).reshape(3, 32))
    with pytest.raises(ShelfmarkError, match="ValueError: expected 3 images, found 2"):
        fill_store([store], digests, lambda rows: pieces_of([photo(1), photo(2)], "test"), Colours, SETTINGS)
    assert store.shards() == []


# Bottlenecks that nothing can be learnt from


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            np.nan,
            r"^weights none: 30 of 30 bottlenecks are infinite or no numbers; .* 65,504.*other --weights$",
        ),
        (
            0.0,
            r"^the bottlenecks are all zero; expected bottlenecks that differ between images; give other ",
        ),
    ],
)
def test_useless_bottlenecks_end_the_extraction_at_its_first_shard(
    records, tmp_path, extracted, scale, message
):
    with pytest.raises(ShelfmarkError, match=message):
        extract_records(records, Colours(scale=scale), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)
    assert extracted == [30] and Store(tmp_path / "store" / "colours-8").shards() == []


def test_one_number_that_float16_cannot_hold_is_enough(records, tmp_path, extracted, monkeypatch):
    def overflowing(*arguments):
        [rows] = extract(*arguments)
        rows[3, 5] = np.inf
        return [rows]

    extract = shards_module.extract
    monkeypatch.setattr(shards_module, "extract", overflowing)
    with pytest.raises(ShelfmarkError, match="1 of 30 bottlenecks are infinite"):
        extract_records(records, Colours(), tmp_path / "store", tmp_path / "bottlenecks", SETTINGS)


def test_an_image_of_nothing_but_zeros_may_follow_others(records, tmp_path):
    common = (tmp_path / "store", tmp_path / "bottlenecks")
    extract_records(records, Colours(), *common, SETTINGS)
    shelf = tmp_path / "store" / "colours-8"
    lost = Store(shelf).shards()[0]
    (shelf / f"{lost}.parquet").unlink()
    made = extract_records(records, Colours(scale=0.0), *common, SETTINGS)
    assert not np.load(shelf / f"{lost}.npy").any()
    assert made.summary["images"] == len(index_of(made))


# A second view


def test_the_mirrored_images_stand_beside_the_first_view(records, tmp_path, extracted):
    both = SETTINGS.model_copy(update={"flip": True})
    store = tmp_path / "store"
    one = extract_records(records, Colours(), store, tmp_path / "one", SETTINGS)
    part = open_part(one, store, "train")
    assert part.views == 1
    extracted.clear()
    two = extract_records(records, Colours(), store, tmp_path / "two", both)
    assert sum(extracted) == DIFFERENT, "the first view is there"
    assert two.summary["view_engines"] == {"flip": two.summary["engines"]}
    assert (two.summary["view_names"], two.summary["asked"]) == (["whole", "flip"], ["whole", "flip"])
    assert list(index_of(two).columns)[-4:] == ["shard", "row", "flip_shard", "flip_row"]
    both_views = open_part(two, store, "train")
    np.testing.assert_array_equal(both_views.first_view().rows[:], part.rows[:])
    np.testing.assert_array_equal(both_views.product_id, part.product_id.repeat(2))
    quarters = both_views.rows[:].reshape(-1, 2, 2, 2, 3)
    np.testing.assert_array_equal(quarters[:, 1], quarters[:, 0, :, ::-1])
    remade = extract_records(records, Colours(), store, tmp_path / "one", both)
    assert remade.digest == two.digest != one.digest and len(extracted) == -(-DIFFERENT // 30)


def test_a_lost_shard_of_the_second_view_is_made_again(records, tmp_path, extracted):
    both = SETTINGS.model_copy(update={"flip": True})
    common = (tmp_path / "store", tmp_path / "bottlenecks", both)
    first = extract_records(records, Colours(), *common)
    mirrored = Store(tmp_path / "store" / "colours-8").view(FLIP)
    (mirrored.path / f"{mirrored.shards()[0]}.npy").unlink()
    extracted.clear()
    assert extract_records(records, Colours(), *common).digest == first.digest and len(extracted) == 1


# Views


VIEWS = ("whole", "40", "40-bottom-right", "max")


def reading(views=VIEWS, **values):
    return SETTINGS.model_copy(update={"views": views, **values})


def by_hand_of(records, names):
    """(n · views, 12): what Colours returns of the photos of the training products, resized and cut here."""
    images = pd.read_parquet(records.file("images.parquet"))
    chosen = images[images["split"] == "train"].sort_values(["product_id", "image_index"])
    chosen = chosen.drop_duplicates(["product_id", "image_digest"])
    rows = []
    for _, image in chosen.iterrows():
        data = (records.path / image["file"]).read_bytes()[image["offset"] :][: image["length"]]
        example = tf.train.Example.FromString(data[12:-4])
        jpeg = example.features.feature["image"].bytes_list.value[0]
        for name in names:
            first, *others = name.split("-")
            size = int(first) if first.isdigit() else 8
            pixels = tf.image.resize(tf.io.decode_jpeg(jpeg, 3, dct_method="INTEGER_ACCURATE"), (size, size))
            pixels = np.round(pixels.numpy())
            pixels = pixels[32:, 32:] if "bottom" in others else pixels
            pixels = pixels[:, ::-1] if "flip" in name else pixels
            half = len(pixels) // 2
            quarters = pixels.reshape(2, half, 2, half, 3).astype(np.float32)
            rows.append((quarters.max if "max" in name else quarters.mean)(axis=(1, 3)).ravel())
    return np.array(rows, np.float16)


@pytest.mark.parametrize("mirrored", [False, True])
def test_each_view_is_what_the_backbone_makes_of_photos_resized_cut_and_mirrored_here(
    records, tmp_path, mirrored
):
    names = [each for name in VIEWS for each in ((name, other(name)) if mirrored else (name,))]
    made = extract_records(records, Colours(), tmp_path / "store", tmp_path / "one", reading(flip=mirrored))
    part = open_part(made, tmp_path / "store", "train")
    assert (made.summary["view_names"], part.views) == (names, len(names))
    np.testing.assert_allclose(part.rows[:], by_hand_of(records, names), rtol=2e-3, atol=0.2)
    shelf = Store(tmp_path / "store" / "colours-8")
    assert sorted(path.name for path in shelf.path.iterdir() if path.is_dir()) == sorted(names[1:])
    assert {len(shelf.view(view).shards()) for view in map(parse_view, names)} == {-(-DIFFERENT // 30)}


def other(name):
    """The name of the mirrored view."""
    return "flip" if name == "whole" else f"{name}-flip"


def test_a_second_run_extracts_new_images_and_new_views_alone(records, tmp_path, extracted):
    store = tmp_path / "store"
    first = extract_records(records, Colours(), store, tmp_path / "one", reading())
    assert sum(extracted) == len(VIEWS) * DIFFERENT
    extracted.clear()
    again = extract_records(records, Colours(), store, tmp_path / "two", reading())
    assert extracted == [] and again.digest == first.digest
    extract_records(records, Colours(), store, tmp_path / "three", reading((*VIEWS, "flip")))
    assert sum(extracted) == DIFFERENT, "one view more"
    extracted.clear()
    photos = (photo(900), photo(901))
    more = records_of([*PRODUCTS, Drawn("900", "1", photos)], tmp_path / "more")
    extract_records(more, Colours(), store, tmp_path / "four", reading())
    assert extracted == [2] * len(VIEWS), "two photos more"


# Views of one network, and one of a network of its own
SHARED = ("whole", "40-bottom-right", "max", "flip", "40-center-flip")


@pytest.fixture
def read_for(monkeypatch):
    """Which views photos were read for so far, decoded once for them, and how many photos."""
    seen = []
    real = shards_module.extract

    def seeing(engine, pieces, count, views):
        seen.append((tuple(view.name for view in views), count))
        return real(engine, pieces, count, views)

    monkeypatch.setattr(shards_module, "extract", seeing)
    return seen


def images_by_views(read_for):
    found = {}
    for views, count in read_for:
        found[views] = found.get(views, 0) + count
    return found


def files_of(store):
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_views_of_one_network_are_read_together_and_stored_as_one_view_at_a_time(
    records, tmp_path, read_for, monkeypatch
):
    for number in range(len(SHARED)):
        settings = reading(SHARED[: number + 1])
        extract_records(records, Colours(), tmp_path / "alone", tmp_path / "one", settings)
    assert images_by_views(read_for) == {(name,): DIFFERENT for name in SHARED}
    read_for.clear()
    counted = []
    monkeypatch.setattr(shards_module, "count_new_images", counted.append)
    made = extract_records(records, Colours(), tmp_path / "both", tmp_path / "two", reading(SHARED))
    assert images_by_views(read_for) == {
        ("whole", "40-bottom-right", "flip", "40-center-flip"): DIFFERENT,
        ("max",): DIFFERENT,
    }
    assert files_of(tmp_path / "both") == files_of(tmp_path / "alone")
    assert sum(counted) == DIFFERENT, "a photo counts once"
    assert made.summary["view_names"] == list(SHARED)


def test_interrupted_in_several_views_it_goes_on_with_the_same_shards(
    records, tmp_path, read_for, monkeypatch
):
    together = ("whole", "40-bottom-right", "flip", "40-center-flip")
    undisturbed = extract_records(records, Colours(), tmp_path / "one", tmp_path / "a", reading(SHARED))
    appended, real = [], Store.append

    def interrupted(store, *arguments, **values):
        if len(appended) == 6:  # two views of the second shard are there
            raise KeyboardInterrupt
        appended.append(store.of.name)
        return real(store, *arguments, **values)

    monkeypatch.setattr(Store, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_records(records, Colours(), tmp_path / "two", tmp_path / "b", reading(SHARED))
    monkeypatch.setattr(Store, "append", real)
    read_for.clear()
    resumed = extract_records(records, Colours(), tmp_path / "two", tmp_path / "b", reading(SHARED))
    assert images_by_views(read_for) == {
        together[2:]: 30, together: DIFFERENT - 60, ("max",): DIFFERENT
    }  # fmt: skip
    assert resumed.digest == undisturbed.digest
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_views_that_lack_other_images_are_read_for_these_alone(records, tmp_path, read_for):
    store = tmp_path / "store"
    extract_records(records, Colours(), store, tmp_path / "one", reading(("whole", "flip")))
    more = records_of([*PRODUCTS, Drawn("900", "1", (photo(900), photo(901)))], tmp_path / "more")
    read_for.clear()
    extract_records(more, Colours(), store, tmp_path / "two", reading(SHARED[:4]))
    assert images_by_views(read_for) == {
        ("whole", "flip"): 2, ("40-bottom-right",): DIFFERENT + 2, ("max",): DIFFERENT + 2
    }  # fmt: skip


def test_all_views_are_trained_on_and_those_asked_are_predicted_from(records, tmp_path):
    store = tmp_path / "store"
    made = extract_records(records, Colours(), store, tmp_path / "one", reading(asked=("40", "whole")))
    training, asked = (open_part(made, store, "train", views) for views in ("all", "asked"))
    assert (training.views, asked.views) == (4, 2)
    rows = training.rows[:].reshape(-1, 4, 12)
    np.testing.assert_array_equal(asked.rows[:].reshape(-1, 2, 12), rows[:, [1, 0]])
    np.testing.assert_array_equal(open_part(made, store, "train", "first").rows[:], rows[:, 0])


def test_averaged_views_are_one_row_of_each_image(records, tmp_path):
    store = tmp_path / "store"
    apart = open_part(extract_records(records, Colours(), store, tmp_path / "one", reading()), store, "train")
    made = extract_records(records, Colours(), store, tmp_path / "two", reading(combine="averaged"))
    part = open_part(made, store, "train")
    mean = apart.rows[:].reshape(-1, 4, 12).astype(np.float64).mean(axis=1)
    assert (part.views, made.summary["averaged"]) == (1, True)
    np.testing.assert_allclose(part.rows[:], mean, rtol=2**-11)
    np.testing.assert_array_equal(part.rows[np.array([3, 1])], part.rows[:][[3, 1]])
    np.testing.assert_array_equal(part.rows.only(np.array([3, 1]))[:], part.rows[:][[3, 1]])
    np.testing.assert_array_equal(part.rows.load(), part.rows[:])
    assert part.product_id.tolist() == apart.product_id[::4].tolist()


def test_a_store_and_an_index_of_an_earlier_version_are_read_as_they_were(records, tmp_path, extracted):
    store, out = tmp_path / "store", tmp_path / "one"
    made = extract_records(records, Colours(), store, out, SETTINGS.model_copy(update={"flip": True}))
    rows = open_part(made, store, "train").rows[:]
    manifest = json.loads((out / MARK).read_text())
    summary = manifest["summary"]
    for name in ("view_names", "asked", "averaged", "view_engines"):
        del summary[name]
    summary["flip_engines"] = summary["engines"]
    (out / MARK).write_text(json.dumps(manifest))
    old = open_artifact(out, "bottlenecks")
    np.testing.assert_array_equal(open_part(old, store, "train").rows[:], rows)
    extracted.clear()
    extract_records(records, Colours(), store, tmp_path / "two", reading(("whole", "flip")))
    assert extracted == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (reading(("40-center", "7")), "view .7.: unknown; expected"),
        (reading(("39-middle",)), "unknown; expected whole"),
        (reading(asked=("flip",)), "extract.asked: flip: not among the views; expected some of whole, 40, "),
    ],
)
def test_views_that_cannot_be_had_are_refused_before_anything_is_extracted(
    records, tmp_path, settings, message
):
    with pytest.raises(ShelfmarkError, match=message):
        extract_records(records, Colours(), tmp_path / "store", tmp_path / "one", settings)
    assert not (tmp_path / "store").exists()


# What never mixes, and what may


def test_engines_that_mix_are_reported(records, tmp_path, caplog):
    store = tmp_path / "store"
    first = extract_records(records, Colours(), store, tmp_path / "one", SETTINGS)
    shard, count = next(iter(index_of(first).groupby("shard").size().items()))
    file = store / "colours-8" / f"{shard}.parquet"
    table = pq.read_table(file)
    pq.write_table(
        table.replace_schema_metadata(table.schema.metadata | {b"engine": b"openvino bfloat16"}), file
    )
    caplog.set_level(logging.INFO, logger="shelfmark")
    second = extract_records(records, Colours(), store, tmp_path / "two", SETTINGS)
    images = len(index_of(first))
    assert second.summary["engines"] == {"openvino bfloat16": count, "by hand": images - count}
    message = f"engines (by hand {images - count}, openvino bfloat16 {count})"
    assert message in caplog.messages[-1]


def test_another_preprocessing_has_another_fingerprint(monkeypatch):
    """Another weights file and another size: tests/test_backbones.py."""
    before = load_backbone("mobilenet", "random", 32).fingerprint
    assert load_backbone("mobilenet", "random", 32).fingerprint == before
    monkeypatch.setattr("features.engines.backbones.RESIZE", "bicubic")
    assert load_backbone("mobilenet", "random", 32).fingerprint != before


def test_a_head_of_another_backbone_is_refused(records, tmp_path):
    run = Run(tmp_path, "week", Config(), None)
    copy_tree(records.path, run.path / "records")
    bottlenecks = extract_records(records, Colours(), run.store, run.path / "bottlenecks", SETTINGS)
    made_from = {"records": records.digest, "fingerprint": "colours-9"}
    stage(run.path / "head", kind="head", version=1, made_from=made_from, make=lambda work: {})
    with pytest.raises(ShelfmarkError, match=r"head: trained on .* of colours-9; expected colours-8, "):
        run.head(run.records(), bottlenecks)
