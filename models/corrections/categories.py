"""The categories that a correction may name: those of a release's tree, as people write them.

    1002                        an id, with or without Shopify's prefix
    HOME / LIGHT / LAMPS        the names from coarse to fine, between " / ", " > " or "/"

Blanks, and accents written in another way, make no difference; among paths, capitals do not, either.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from features.product import tidy_name
from models.taxonomy import Taxonomy, read_taxonomy
from models.taxonomy_changes import key

TREES = ("taxonomy.csv", "unlearnt.csv")  # in a bundle: the categories of its head, and the others
BETWEEN = (" / ", " > ", "/", ">")  # names of a path
NEAREST = 200  # unknown categories that the nearest known one is searched for; each takes milliseconds


class KnownCategories:
    """The categories of some trees, found by id or by path."""

    def __init__(self, trees: Sequence[Taxonomy]) -> None:
        self._by_id: dict[str, str] = {}
        self._by_path: dict[str, str] = {}
        self._labels: list[str] = []
        self._searched: dict[str, str | None] = {}
        for tree in trees:
            for index, category in enumerate(tree.categories.tolist()):
                if key(category) in self._by_id:
                    continue
                self._by_id[key(category)] = category
                label = tree.label(index)
                names = [tidy_name(name) for name in tree.names[index, : tree.depth[index]]]
                for between in BETWEEN:
                    self._by_path.setdefault(_folded(between.join(names)), category)
                self._labels += [category] if label == category else [category, label]

    @classmethod
    def of_bundle(cls, folder: Path) -> "KnownCategories":
        """Returns those of the release in a bundle/, also the ones that its head has not learnt."""
        return cls([read_taxonomy(folder / name) for name in TREES if (folder / name).is_file()])

    def find(self, text: str) -> str | None:
        """Returns the category that a text names; None for none. An id comes before a path."""
        return self._by_id.get(key(text)) or self._by_path.get(_folded(text))

    def nearest(self, text: str) -> str | None:
        """Returns the known id or path that a text is most like; None where none is near."""
        if text not in self._searched and len(self._searched) < NEAREST:
            found = difflib.get_close_matches(text, self._labels, n=1, cutoff=0.5)
            self._searched[text] = found[0] if found else None
        return self._searched.get(text)


def _folded(path: str) -> str:
    return tidy_name(path).casefold()
