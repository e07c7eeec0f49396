"""Duplicate groups: products that share an image, directly or through others, and their part in FIT or CERT.

Near-identical products say nothing new: a promise that counts them one by one is broken two to three times as
often as allowed (9 % of calibrations become 21-30 % with clusters of five), so one product a group certifies.
"""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from features.product import order_key


def duplicate_groups(product_id: np.ndarray, image_digest: np.ndarray) -> np.ndarray:
    """The group of each image's product, named after the group's smallest image digest.

    Args:
        product_id: (images,) str.
        image_digest: (images,) str.

    Returns:
        (images,) str.

    >>> duplicate_groups(np.array(["p", "q", "q", "r"]), np.array(["a", "a", "b", "c"])).tolist()
    ['a', 'a', 'a', 'c']
    """
    if not len(product_id):
        return np.array([], dtype=object)
    product, products = pd.factorize(product_id)
    image, images = pd.factorize(image_digest)
    size = len(products) + len(images)
    edges = coo_array((np.ones(len(product), bool), (product, len(products) + image)), shape=(size, size))
    component = connected_components(edges, directed=False)[1][product]
    return pd.Series(image_digest, dtype=object).groupby(component).transform("min").to_numpy(dtype=object)


def in_fit(group: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: which groups select (FIT); the others certify (CERT)."""
    return np.array([order_key(name) < share * 2**63 for name in group], dtype=bool)
