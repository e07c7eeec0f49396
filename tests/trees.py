"""Small trees that several tests share."""

from collections import Counter

from models.taxonomy import Taxonomy, build_taxonomy

UNEVEN = {  # three levels; leek ends at the second, gift at the first
    "apple": "food/fruit/apple",
    "gift": "gift",
    "leek": "food/leek",
    "milk": "food/dairy/milk",
    "oats": "home/box/oats",
    "pear": "food/fruit/pear",
    "soap": "home/bath/soap",
    "sponge": "home/bath/sponge",
}


def tree_of(paths: dict[str, str]) -> Taxonomy:
    """A tree from texts like {"leek": "food/leek"}."""
    values = Counter({(category, tuple(path.split("/"))): 1 for category, path in paths.items()})
    return build_taxonomy(values, set(paths))[0]


def uneven_tree() -> Taxonomy:
    """Eight categories under 3, 6 and 8 nodes."""
    return tree_of(UNEVEN)
