"""The demo's catalogue: what it holds, by reading it back."""

import collections
import io

import bson
import pandas as pd
import pytest
from PIL import Image

from features.images.normalise import normalise
from features.images.refusal import Refused
from pipeline.demo.drawn_catalogue import DrawnCatalogue, draw_catalogue


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnCatalogue:
    return draw_catalogue(tmp_path_factory.mktemp("drawn"), products=600)


@pytest.fixture(scope="module")
def documents(drawn: DrawnCatalogue) -> list[dict]:
    return bson.decode_all(drawn.catalogue.read_bytes())


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(drawn, tmp_path):
    again = draw_catalogue(tmp_path / "again", products=600)
    other = draw_catalogue(tmp_path / "other", seed=1, products=600)
    assert again.catalogue.read_bytes() == drawn.catalogue.read_bytes()
    assert again.taxonomy.read_bytes() == drawn.taxonomy.read_bytes()
    assert other.catalogue.read_bytes() != drawn.catalogue.read_bytes()


def test_drawn_again_over_itself_the_files_are_left_alone(drawn):
    before = drawn.catalogue.stat().st_mtime_ns, drawn.taxonomy.stat().st_mtime_ns
    draw_catalogue(drawn.catalogue.parent, products=600)
    assert (drawn.catalogue.stat().st_mtime_ns, drawn.taxonomy.stat().st_mtime_ns) == before


def test_the_counts_are_those_of_the_file(drawn, documents):
    uncategorized = {str(document["_id"]) for document in documents if "category_id" not in document}
    assert len(documents) == drawn.products == 600
    assert sum(len(document["imgs"]) for document in documents) == drawn.images
    assert len(uncategorized) == drawn.uncategorized == 48
    assert set(drawn.truth) == uncategorized


def test_every_category_is_a_leaf_of_a_three_level_tree(drawn, documents):
    names = pd.read_csv(drawn.taxonomy, dtype=str)
    used = {str(document["category_id"]) for document in documents if "category_id" in document}
    levels = ["category_level1", "category_level2", "category_level3"]
    assert list(names.columns) == ["category_id", *levels]
    assert not names[levels].duplicated().any()
    assert used | set(drawn.truth.values()) <= set(names["category_id"])


def test_categories_are_uneven_and_products_have_one_to_four_photos(documents):
    sizes = collections.Counter(document.get("category_id") for document in documents)
    del sizes[None]
    assert max(sizes.values()) > 5 * min(sizes.values())
    assert {len(document["imgs"]) for document in documents} == {1, 2, 3, 4}


def test_broken_images_are_refused_and_the_others_read(drawn, documents):
    reasons = collections.Counter()
    for document in documents:
        for image in document["imgs"]:
            try:
                normalise(image["picture"])
            except Refused as refused:
                reasons[refused.reason] += 1
    assert sum(reasons.values()) == drawn.broken
    assert set(reasons) == {"truncated", "not_an_image", "empty"}


def test_photos_are_of_cdiscounts_size_and_of_several_formats(documents):
    formats = collections.Counter()
    for document in documents:
        for image in document["imgs"]:
            try:
                with Image.open(io.BytesIO(image["picture"])) as opened:
                    formats[opened.format] += 1
                    assert opened.size == (180, 180)
            except OSError:
                continue
    assert formats["JPEG"] > 0.9 * sum(formats.values())
    assert formats["PNG"] > 0
