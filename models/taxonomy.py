"""The category tree: each category is a leaf and has a node at every level, from coarse to fine.

    taxonomy.csv   category, level1 … levelN   names of the nodes; all the names down to a node identify it
                   depth                       only where a leaf has the name of its parent
    *.txt          # Google_Product_Taxonomy_Version: 2021-09-21
                   166 - Apparel & Accessories          as Google publishes its tree, and Shopify (with " : ")
                   1604 - Apparel & Accessories > Clothing

The finest level is the category itself. A leaf of a shallower branch is its own node at the deeper levels.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from features.delimited import header_name, rows_of, sniff
from features.errors import ShelfmarkError
from features.product import CategoryPaths, level_columns, tidy_name
from features.spellings import log_merged
from features.storage.paths import AnyPath

if TYPE_CHECKING:
    from scipy import sparse

log = logging.getLogger("shelfmark")

LISTING = re.compile(r"\ufeff?#.*taxonomy", re.IGNORECASE)  # the first line of a tree as text
LISTED = re.compile(r"(\S+)\s+[-:]\s+(\S.*)")  # an id and its names


@dataclass(frozen=True)
class Taxonomy:
    """A tree of C categories and N levels."""

    categories: np.ndarray  # (C,) str, sorted: the index of a category is its position here
    names: np.ndarray  # (C, N) str, names of the nodes from coarse to fine
    known_depth: np.ndarray | None = None  # (C,) int32; None: derived from the names, see `guessed_depth`

    @property
    def levels(self) -> int:
        """Number of levels, N."""
        return int(self.names.shape[1])

    @cached_property
    def nodes(self) -> np.ndarray:
        """(N, C) int32: node of each category, numbered within each level; at the finest, the category."""
        coarse = [pd.DataFrame(self.paths(level)).groupby(list(range(level + 1))).ngroup()
                  for level in range(1, self.levels)]  # fmt: skip
        return np.array([*coarse, np.arange(len(self.categories))], dtype=np.int32)

    def paths(self, level: int) -> np.ndarray:
        """(C, level + 1) object: the names down to a level (1 = coarsest), and how many of them the tree has.

        The last number distinguishes a shallow leaf repeated at level 2, Food, from a node of the same names,
        Food / Food.
        """
        real = np.minimum(self.depth, level).astype(object)
        return np.column_stack([self.names[:, :level], real])

    @cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """For each level the parent of each of its nodes, a node of the level above; 0 at the coarsest level.

        This is what a head needs of the tree: 5,805 numbers for Cdiscount's 5,270 categories, not 15,810.
        """
        above = np.zeros_like(self.nodes[0])
        parents = []
        for node in self.nodes:
            _, first = np.unique(node, return_index=True)
            parents.append(tuple(above[first].tolist()))
            above = node
        return tuple(parents)

    @cached_property
    def depth(self) -> np.ndarray:
        """(C,) int32, nodes from the root's child down to the category, 1 to N; fewer for a shallow leaf."""
        return guessed_depth(self.names) if self.known_depth is None else self.known_depth

    @cached_property
    def sums(self) -> "list[sparse.csr_array]":
        """For each level a (C, nodes) matrix that sums leaf probabilities up to the nodes."""
        from scipy import sparse  # the import takes a third of a second, and ingest does not need it

        count = len(self.categories)
        ones, rows = np.ones(count, np.float32), np.arange(count)
        return [
            sparse.csr_array((ones, (rows, node)), shape=(count, int(node.max()) + 1)) for node in self.nodes
        ]

    @cached_property
    def _by_tidy_name(self) -> dict[str, int]:
        indices: dict[str, int] = {}
        for index, name in enumerate(self.categories):
            indices.setdefault(tidy_name(name), index)
        return indices

    def index(self, categories: np.ndarray) -> np.ndarray:
        """(n,) int64 index of each category, compared by `tidy_name`; -1 for one that is not in the tree."""
        codes, distinct = pd.factorize(pd.Index(categories, dtype=object), use_na_sentinel=True)
        found = [self._by_tidy_name.get(tidy_name(name), -1) for name in distinct]
        return np.array([*found, -1], np.int64)[codes]  # a missing category has code -1, the last

    def nodes_of(self, categories: np.ndarray, tree: "Taxonomy") -> np.ndarray:
        """(n, N) int32: this tree's nodes above categories of another tree, or of this one; -1 where none is.

        A category that this tree lacks has no node at the finest level, where each node is a category. Above
        it has those whose names, all of them from the root, lead to it in its own tree.

        Args:
            categories: (n,) str.
            tree: of the categories; those that are not in it have no nodes.
        """
        own, other = self.index(categories), tree.index(categories)
        nodes = np.where(own >= 0, self.nodes[:, own], np.int32(-1))
        foreign = np.flatnonzero((own < 0) & (other >= 0))
        for level in range(1, min(self.levels - 1, tree.levels) + 1 if len(foreign) else 0):
            known = dict(
                zip(map(tuple, self.paths(level).tolist()), self.nodes[level - 1].tolist(), strict=True)
            )
            above = np.array([known.get(tuple(path), -1) for path in tree.paths(level).tolist()], np.int32)
            nodes[level - 1, foreign] = above[other[foreign]]
        return nodes.T

    def trimmed(self) -> "Taxonomy":
        """The tree without the levels that are deeper than every leaf."""
        return Taxonomy(self.categories, self.names[:, : self.depth.max()], self.depth)

    def label(self, index: int, level: int | None = None) -> str:
        """A category for people, or its ancestor at a level: its names from coarse to fine, between " / "."""
        return " / ".join(self.names[index, : level or self.depth[index]])

    def only(self, chosen: np.ndarray) -> "Taxonomy":
        """The tree of the chosen categories: (m,) int indices in ascending order, or (C,) bool."""
        return Taxonomy(self.categories[chosen], self.names[chosen], self.depth[chosen])


def guessed_depth(names: np.ndarray) -> np.ndarray:
    """(C,) int32 depth of leaves whose names, (C, N), are repeated at the levels below them.

    A leaf is at least as deep as a node that it shares with another. The guess is too low for some leaves
    with the name of their parent: for such trees `Taxonomy.known_depth` is given.

    >>> guessed_depth(np.array([["Gift", "Gift", "Gift"], ["Food", "Fruit", "Pear"]])).tolist()
    [1, 3]
    >>> guessed_depth(np.array([["Food", "Food", "Food"], ["Food", "Food", "Pear"]])).tolist()
    [2, 3]
    """
    differs = names != names[:, -1:]
    depth = np.array([np.flatnonzero(row).max(initial=-1) + 2 for row in differs], np.int32)
    for level in range(2, names.shape[1]):
        shared = pd.DataFrame(names[:, :level]).duplicated(keep=False).to_numpy()
        depth[shared] = np.maximum(depth[shared], level)
    return depth


def build_taxonomy(paths: CategoryPaths, kept: set[str]) -> tuple[Taxonomy, int]:
    """The tree of the kept categories.

    Args:
        paths: (category, its names from coarse to fine) → how often it has this path.
        kept: categories to keep; one without a path is a leaf directly under the root.

    Returns:
        The tree, and how many categories had several paths (the most common one is taken, among equals the
        first in alphabetical order). Where no two categories have the same path, the finest name of a path
        is its category; else the category is one more level.
    """
    counts: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for (category, names), times in paths.items():
        if category in kept and names:
            counts[category][names] += times
    best = {
        category: min(times, key=lambda names: (-times[names], names)) for category, times in counts.items()
    }
    categories = sorted(kept)
    chosen = [best.get(category, (category,)) for category in categories]
    if len(set(chosen)) < len(chosen):
        chosen = [(*names, category) for names, category in zip(chosen, categories, strict=True)]
    depth = max(len(names) for names in chosen)
    full = [names + (names[-1],) * (depth - len(names)) for names in chosen]
    table = np.array(full, dtype=object).reshape(len(full), depth)
    depths = np.array([len(names) for names in chosen], np.int32)
    tree = Taxonomy(np.array(categories, dtype=object), table, depths)
    return tree, sum(len(times) > 1 for times in counts.values())


def homonyms(paths: CategoryPaths) -> dict[tuple[str, tuple[str, ...]], str]:
    """New names, as `Home / Other`, for categories of the same name under different parents.

    Args:
        paths: see `build_taxonomy`.

    Returns:
        (category, path) → its names joined by " / ", for the categories whose name is the last one of their
        paths. A category named by an id is a single one even where its paths differ.
    """
    by_category: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for category, names in paths:
        if names and names[-1] == category:
            by_category[category].append(names)
    return {
        (category, names): " / ".join(names)
        for category, several in by_category.items()
        if len(several) > 1
        for names in several
    }


def require_taxonomy(file: AnyPath | None) -> None:
    """Raises a ShelfmarkError when a taxonomy is given and there is no such file."""
    if file and not file.is_file():
        raise ShelfmarkError(
            f"{file}: no such file; expected a CSV of category_id, category_level1, …; check --taxonomy"
        )


def read_paths(file: Path) -> CategoryPaths:
    """Reads the paths of a taxonomy file, a table or a text as Google's.

    Raises:
        ShelfmarkError: the file cannot be read, lacks the columns, or has one category under two parents.
    """
    if is_listing(file):
        paths = CategoryPaths((name, names) for _, name, names in listed(file))
    else:
        paths = _paths_of_table(file)
    _require_one_parent(paths, file)
    return paths


def is_listing(file: Path) -> bool:
    """Whether a file is a tree as text, as Google's; false for one that is not there."""
    try:
        with open(file, "rb") as opened:
            first = opened.readline(1000)
    except OSError:
        return False
    return bool(LISTING.match(first.decode(errors="replace")))


def listed(file: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yields number of the line, id and names, from coarse to fine, of each category of a tree as text.

    Raises:
        ShelfmarkError: a line is no category, or the file is not UTF-8.
    """
    try:
        with open(file, encoding="utf-8-sig") as text:
            for number, line in enumerate(text, start=1):
                if not line.strip() or line.startswith("#"):
                    continue
                found = LISTED.fullmatch(line.strip())
                if not found:
                    raise ShelfmarkError(
                        f"{file}, line {number}: {line.strip()[:60]!r}; expected an id and names, as in "
                        "'166 - Apparel & Accessories'; give the file with ids"
                    )
                yield number, tidy_name(found[1]), tuple(map(tidy_name, found[2].split(">")))
    except UnicodeDecodeError as error:
        raise ShelfmarkError(
            f"{file}: not UTF-8 at byte {error.start}; expected a tree as text; save the file as UTF-8"
        ) from error


def _paths_of_table(file: Path) -> CategoryPaths:
    """Reads the paths of a table of `category_id` (or `category`) and levels, see `level_columns`."""
    columns, rows = _cells(file)
    category = next((name for name in ("category_id", "category") if name in columns), None)
    levels = level_columns(columns)
    if category is None or not levels:
        raise ShelfmarkError(
            f"{file}: columns {', '.join(columns)}; expected category_id, category_level1, …; correct them"
        )
    if passed := [name for name in columns if "level" in name and name not in levels]:
        log.info(
            "%s: columns %s are not used; expected the levels as category_level1, …",
            file.name, ", ".join(passed),
        )  # fmt: skip
    positions = [columns.index(name) for name in (category, *levels)]
    depth = columns.index("depth") if "depth" in columns else None
    numbers = {str(level + 1) for level in range(len(levels))}
    spellings: Counter[str] = Counter()
    paths = CategoryPaths()
    for row in rows:
        row += [""] * (len(columns) - len(row))
        name, *path = (tidy_name(row[position]) for position in positions)
        spellings.update(row[position] for position in positions)
        if depth is not None and row[depth].strip() in numbers:  # as `write_taxonomy` writes it
            path = path[: int(row[depth])]
        paths[(name, tuple(filter(None, path)))] += 1
    log_merged(file.name, spellings)
    return paths


def _cells(file: Path) -> tuple[list[str], list[list[str]]]:
    """Reads a delimited table: its header, as `header_name` returns it, and its rows."""
    expected = "expected a CSV of category_id, category_level1, …; correct the file"
    try:
        rows = list(rows_of(file, sniff(file, frozenset({"category_id", "category_level1"}), None, None)))
    except (OSError, EOFError) as error:
        raise ShelfmarkError(f"{file}: cannot be read: {error}; {expected}") from error
    problem = next((row.problem for row in rows if row.problem), "" if rows else "it is empty")
    if problem:
        raise ShelfmarkError(f"{file}: cannot be read: {problem}; {expected}")
    return list(map(header_name, rows[0].cells)), [row.cells for row in rows[1:]]


def _require_one_parent(paths: CategoryPaths, file: Path) -> None:
    several = sorted(homonyms(paths))
    if several:
        category = several[0][0]
        where = " and at ".join(" / ".join(names) for name, names in several if name == category)
        raise ShelfmarkError(
            f"{file}: category {category!r} is at {where}; expected one parent, because products name only "
            "their category; give each category its own id"
        )


def write_taxonomy(tree: Taxonomy, file: Path) -> None:
    """Writes taxonomy.csv, with a column `depth` where it does not follow from the names."""
    table = pd.DataFrame(tree.names, columns=[f"level{level + 1}" for level in range(tree.levels)])
    table.insert(0, "category", tree.categories)
    if not np.array_equal(tree.depth, guessed_depth(tree.names)):
        table["depth"] = tree.depth
    table.to_csv(file, index=False)


def read_taxonomy(file: Path) -> Taxonomy:
    """Reads taxonomy.csv."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    levels = level_columns(table.columns)
    depth = table["depth"].to_numpy(dtype=np.int32) if "depth" in table else None
    return Taxonomy(table["category"].to_numpy(dtype=object), table[levels].to_numpy(dtype=object), depth)
