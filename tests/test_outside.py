"""Nothing is written into what is read."""

import os
from pathlib import Path
from typing import Any

import pytest
from catalogues import photo, write_files, write_manifest

from features.errors import ShelfmarkError
from features.storage.paths import any_path
from pipeline.categorize.categorize import categorize
from pipeline.job.config import Config
from pipeline.sources.outside import require_outside
from pipeline.sources.source import open_source, open_sources

INSIDE = "inside the source .*, where its files would be taken for products; expected a path outside of all"
ITSELF = "is the source itself; expected a path outside of all sources; give another one"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder of photos, a manifest, and links to both."""
    write_files(tmp_path, {"new/a.jpg": photo(1), "new/deep/b.jpg": photo(2), "c.jpg": photo(3)})
    write_manifest(tmp_path / "list.csv", [{"product_id": "c", "image": "c.jpg"}])
    (tmp_path / "link").symlink_to("new/deep")
    (tmp_path / "list.parquet").symlink_to("list.csv")
    return tmp_path


def check(shop: Path, what: str, *sources: str) -> None:
    require_outside(shop / what, open_sources([str(shop / source) for source in sources]))


@pytest.mark.parametrize(
    "what",
    ["new", "new/d.parquet", "new/not/there/d.csv", "new/../new/d.csv", "link/d.csv", "link/../d.csv"],
)
def test_a_place_inside_a_source_folder_is_refused(shop: Path, what: str) -> None:
    with pytest.raises(ShelfmarkError, match=INSIDE if what != "new" else ITSELF):
        check(shop, what, "list.csv", "new")


@pytest.mark.parametrize("what", ["list.csv", "list.parquet", "new/../list.csv"])
def test_a_source_itself_is_refused(shop: Path, what: str) -> None:
    with pytest.raises(ShelfmarkError, match=ITSELF):
        check(shop, what, "new", "list.csv")


@pytest.mark.parametrize("what", ["d.parquet", "new.csv", "newer/d.csv", "new/../d.csv", "list.csv.gz", "."])
def test_a_place_beside_the_sources_is_fine(shop: Path, what: str) -> None:
    check(shop, what, "new", "list.csv")


def test_a_relative_place_is_seen_from_where_the_job_stands(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop / "new")
    with pytest.raises(ShelfmarkError, match=INSIDE):
        require_outside(Path("d.csv"), [open_source("..//new")])
    require_outside(Path("../d.csv"), [open_source(".")])


class Held:
    """A source that stands somewhere else."""

    def __init__(self, path: str) -> None:
        self.path = any_path(path)


@pytest.mark.parametrize(
    ("what", "source", "refused"),
    [
        ("s3://shop/new/d.csv", "s3://shop/new", INSIDE),
        ("s3://shop/new.csv", "s3://shop/new.csv", ITSELF),
        ("s3://shop/new/", "s3://shop/new", ITSELF),
        ("s3://shop/newer/d.csv", "s3://shop/new", None),
        ("s3://shop/new/d.csv", "s3://other/new", None),
        ("/s3:/shop/new/d.csv", "s3://shop/new", None),
        ("s3://shop/new/d.csv", "/s3:/shop/new", None),
    ],
)
def test_remote_places_are_compared_by_their_texts(what: str, source: str, refused: str | None) -> None:
    sources: Any = [Held(source)]
    if refused is None:
        require_outside(any_path(what), sources)
        return
    with pytest.raises(ShelfmarkError, match=refused):
        require_outside(any_path(what), sources)


@pytest.mark.parametrize(
    ("source", "output", "workspace"),
    [
        ("new", "new/d.parquet", "W"),
        ("new", "link/d.jsonl", "W"),
        ("new", "d.parquet", "new/W"),
        ("new", "d.parquet", "new"),
        ("list.csv", "list.csv", "W"),
    ],
)
def test_categorize_refuses_to_write_into_its_sources_before_any_work(
    shop: Path, source: str, output: str, workspace: str
) -> None:
    before = sorted(os.walk(shop))
    bundle: Any = None  # it is not even looked at
    with pytest.raises(ShelfmarkError, match=r"expected a path outside of all sources; give another one"):
        categorize([str(shop / source)], bundle, shop / workspace / "store", str(shop / output), Config())
    assert sorted(os.walk(shop)) == before
