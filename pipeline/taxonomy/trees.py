"""Opening a tree: of a taxonomy file, a run, a release or a workspace."""

from pathlib import Path

from features.delimited import header_name
from features.errors import ShelfmarkError
from features.product import level_columns
from features.storage.artifact import find_artifact
from features.storage.paths import AnyPath, local
from models.decisions.releases import in_service
from models.taxonomy import Taxonomy, build_taxonomy, is_listing, read_paths, read_taxonomy
from models.taxonomy_changes import Places, places_in, places_of
from pipeline.job.tree import WHOLE, places_with_products

EXPECTED = "expected a taxonomy (CSV, or a text as Google's), a run, a release or a workspace"


def open_tree(path: AnyPath) -> Places:
    """The place of each category of a tree.

    Args:
        path: of a CSV of category_id, category_level1, …, of a text as Google's, or the directory of a run,
            of a release or of a workspace, whose release in service is then taken.

    Raises:
        ShelfmarkError: it is none of these, or cannot be read.
    """
    if path.is_file():
        return _of_file(local(path))
    if not path.is_dir():
        raise ShelfmarkError(f"{path}: no such file or directory; {EXPECTED}; check the path")
    if (path / "releases").is_dir() and (name := in_service(path / "releases")):
        path = path / "releases" / name
    elif (path / "records").is_dir():
        path = path / "records"
    found = find_artifact(path)
    if found is None or "taxonomy.csv" not in found.files:
        raise ShelfmarkError(f"{path}: nothing finished with a tree is there; {EXPECTED}; check the path")
    if found.kind != "records":
        return places_of(read_taxonomy(found.file("taxonomy.csv")))
    if WHOLE in found.files:
        return places_of(read_taxonomy(found.file(WHOLE)))
    return places_with_products(found)


def _of_file(file: Path) -> Places:
    if not is_listing(file) and (own := _our_own(file)):
        return places_of(own)
    return places_in(read_paths(file))


def _our_own(file: Path) -> Taxonomy | None:
    """The tree of a taxonomy.csv of records or of a bundle, whose shallow leaves are repeated below."""
    with open(file, encoding="utf-8-sig", errors="replace") as text:
        columns = list(map(header_name, text.readline().rstrip("\r\n").split(",")))
    if columns[0] != "category" or level_columns(columns) != [
        name for name in columns[1:] if name != "depth"
    ]:
        return None
    paths = read_paths(file)
    levels = len(columns) - 1 - ("depth" in columns)
    if "depth" not in columns and any(len(names) < levels for _, names in paths):
        return None  # a team's, with empty cells
    return read_taxonomy(file) if len(paths) == len({name for name, _ in paths}) else build_taxonomy(
        paths, {name for name, _ in paths}
    )[0]  # fmt: skip
