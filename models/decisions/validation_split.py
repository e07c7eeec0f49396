"""Duplicates, and the division of validation: FIT selects, CERT certifies.

A photo that a product has twice is no further evidence: each photo counts once in its product.

Products that share an image, directly or through others, form a group. Near-identical products are no
independent evidence: a promise that counts them one by one is broken two to three times as often as allowed
(9 % of calibrations become 21-30 % with clusters of five). So a group is in FIT or in CERT as a whole, and
one product of it certifies.
"""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from features.product import order_key

PIECE = 2**20  # images sorted at a time, and the remaining ones of the last product


def first_of_product(product: np.ndarray, digest: np.ndarray) -> np.ndarray:
    """(n,) bool: which images are the first ones with their digest in their product.

    Args:
        product: (n,) int, the product of each image; the images of a product stand together.
        digest: (n, 32) uint8.

    >>> digest = np.repeat(np.array([[7], [7], [8], [7], [7]], np.uint8), 32, axis=1)
    >>> first_of_product(np.array([0, 0, 0, 0, 1]), digest).tolist()
    [True, False, True, False, True]
    """
    words = np.ascontiguousarray(digest).view(np.uint64)
    first = np.ones(len(product), bool)
    ends = np.append(np.flatnonzero(product[1:] != product[:-1]) + 1, [len(product)])
    start = 0
    while start < len(product):  # piece by piece: 20 million images at once would take 1 GB
        end = int(np.searchsorted(ends, start + PIECE))
        stop = int(ends[min(end, len(ends) - 1)])
        first[start:stop] = _first(product[start:stop], words[start:stop])
        start = stop
    return first


def _first(product: np.ndarray, words: np.ndarray) -> np.ndarray:
    """As `first_of_product`, of images whose digests are (n, 4) uint64 words."""
    order = np.lexsort([words[:, 0], product])  # stable: of equal ones the first stays first
    twin = _equals_previous(product[order], words[order, :1])
    twin[:-1] |= twin[1:]  # and the one before
    some = np.sort(order[twin])  # few; a second sort separates digests that differ after the first word
    order = some[np.lexsort([*words[some].T, product[some]])]
    first = np.ones(len(product), bool)
    first[order[_equals_previous(product[order], words[order])]] = False
    return first


def _equals_previous(product: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(n,) bool, whether a row has the product and the words, (n, k), of the row before."""
    same = np.zeros(len(product), bool)
    same[1:] = (product[1:] == product[:-1]) & (words[1:] == words[:-1]).all(axis=1)
    return same


def duplicate_groups(product_id: np.ndarray, image_digest: np.ndarray) -> np.ndarray:
    """(images,) str: the group of each image's product, named by the group's smallest image digest.

    Args:
        product_id: (images,) str.
        image_digest: (images,) str.

    >>> duplicate_groups(np.array(["p", "q", "q", "r"]), np.array(["a", "a", "b", "c"])).tolist()
    ['a', 'a', 'a', 'c']
    """
    if not len(product_id):
        return np.array([], dtype=object)
    product, products = pd.factorize(product_id)
    image, images = pd.factorize(image_digest, sort=True)
    size = len(products) + len(images)
    edges = coo_array((np.ones(len(product), bool), (product, len(products) + image)), shape=(size, size))
    components, component = connected_components(edges, directed=False)
    smallest = np.full(components, len(images))
    np.minimum.at(smallest, component[product], image)  # of sorted names: a hundredth of the time of theirs
    names: np.ndarray = np.asarray(images, dtype=object)[smallest[component[product]]]
    return names


def in_fit(group: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: which groups are in FIT; the others are in CERT.

    Args:
        group: (n,) str, of `duplicate_groups`.
        share: of FIT, 0 to 1; a fixed hash of the group's name decides.
    """
    return np.array([order_key(name) < share * 2**63 for name in group], dtype=bool)


def folds_of(group: np.ndarray, folds: int) -> np.ndarray:
    """(n,) int64: the fold of each group, 0 to `folds` - 1, by the same hash; two folds are FIT's halves.

    Args:
        group: (n,) str, of `duplicate_groups`.
        folds: how many, at least 1.
    """
    return np.array([order_key(name) * folds >> 63 for name in group], dtype=np.int64)
