"""The category tree: each category is a leaf and has a node at every level, from coarse to fine.

    taxonomy.csv   category, level1 … levelN   names of the nodes; a node is told by all the names down to it

The finest level is the category itself. A leaf of a shallower branch stands for itself at the deeper levels.
"""

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from features.errors import ShelfmarkError
from features.product import Paths

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class Taxonomy:
    """A tree of C categories and N levels."""

    categories: np.ndarray  # (C,) str, sorted: the index of a category is its place here
    names: np.ndarray  # (C, N) str, names of the nodes from coarse to fine

    @property
    def levels(self) -> int:
        """Number of levels, N."""
        return self.names.shape[1]

    @cached_property
    def nodes(self) -> np.ndarray:
        """(N, C) int32: node of each category, numbered within each level; at the finest, the category."""
        paths = pd.DataFrame(self.names)
        coarse = [paths.groupby(list(range(level))).ngroup() for level in range(1, self.levels)]
        return np.array([*coarse, np.arange(len(self.categories))], dtype=np.int32)

    @cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """For each level the parent of each of its nodes, a node of the level above; the root's children: 0.

        What a head needs of the tree: 5,805 numbers for Cdiscount's 5,270 categories, not 15,810.
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
        differs = self.names != self.names[:, -1:]
        return np.array([np.flatnonzero(row).max(initial=-1) + 2 for row in differs], np.int32)

    @cached_property
    def sums(self) -> "list[sparse.csr_array]":
        """For each level a (C, nodes) matrix that sums leaf probabilities up to the nodes."""
        from scipy import sparse  # a third of a second, which ingest does without

        count = len(self.categories)
        ones, rows = np.ones(count, np.float32), np.arange(count)
        return [
            sparse.csr_array((ones, (rows, node)), shape=(count, int(node.max()) + 1)) for node in self.nodes
        ]

    def index(self, categories: np.ndarray) -> np.ndarray:
        """(n,) int64 index of each category; -1 for one that is not in the tree."""
        return pd.Index(self.categories).get_indexer(pd.Index(categories, dtype=object))

    def label(self, index: int) -> str:
        """A category as a person reads it: its names from coarse to fine, each once."""
        return " / ".join(name for name, _ in itertools.groupby(self.names[index]))


def build_taxonomy(paths: Paths, kept: set[str]) -> tuple[Taxonomy, int]:
    """The tree of the kept categories.

    Args:
        paths: (category, its names from coarse to fine) → how often it was told so.
        kept: categories to keep; one without a path is a leaf right under the root.

    Returns:
        The tree, and how many categories were told at several places (the most common one is taken, the first
        in the alphabet among equals). Where the paths name the categories one to one, the finest name is the
        category; else the category is one level more.
    """
    told: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for (category, names), times in paths.items():
        if category in kept and names:
            told[category][names] += times
    best = {
        category: min(places, key=lambda names: (-places[names], names)) for category, places in told.items()
    }
    categories = sorted(kept)
    chosen = [best.get(category, (category,)) for category in categories]
    if len(set(chosen)) < len(chosen):
        chosen = [(*names, category) for names, category in zip(chosen, categories, strict=True)]
    depth = max(len(names) for names in chosen)
    full = [names + (names[-1],) * (depth - len(names)) for names in chosen]
    table = np.array(full, dtype=object).reshape(len(full), depth)
    tree = Taxonomy(np.array(categories, dtype=object), table)
    return tree, sum(len(places) > 1 for places in told.values())


def homonyms(paths: Paths) -> dict[tuple[str, tuple[str, ...]], str]:
    """New names of categories that stand under several parents: (category, path) → its names joined by " / "."""
    places = defaultdict(list)
    for category, names in paths:
        if names and names[-1] == category:
            places[category].append(names)
    return {(c, p): " / ".join(p) for c, ps in places.items() if len(ps) > 1 for p in ps}


def read_paths(file: Path) -> Paths:
    """Paths from a taxonomy file: `category_id` (or `category`), then level columns from coarse to fine.

    Raises:
        ShelfmarkError: the file cannot be read or lacks the columns.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ShelfmarkError(
            f"{file}: cannot be read: {error}; expected a CSV of category_id, category_level1, …"
        ) from error
    category = next((name for name in ("category_id", "category") if name in table), None)
    levels = [name for name in table if "level" in str(name)]
    if category is None or not levels:
        found = ", ".join(map(str, table.columns))
        raise ShelfmarkError(
            f"{file}: columns {found}; expected category_id, category_level1, …; mend the file"
        )
    rows = table[[category, *levels]].itertuples(index=False)
    return Counter((row[0].strip(), tuple(name.strip() for name in row[1:] if name.strip())) for row in rows)


def write_taxonomy(tree: Taxonomy, file: Path) -> None:
    """Writes taxonomy.csv."""
    table = pd.DataFrame(tree.names, columns=[f"level{level + 1}" for level in range(tree.levels)])
    table.insert(0, "category", tree.categories)
    table.to_csv(file, index=False)


def read_taxonomy(file: Path) -> Taxonomy:
    """Reads taxonomy.csv."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    names = table.drop(columns="category").to_numpy(dtype=object)
    return Taxonomy(table["category"].to_numpy(dtype=object), names)
