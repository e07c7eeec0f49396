"""Duplicates: images that several products share, and pictures that are no photo of anything.

    duplicates.parquet   image_digest, products (list of ids), categories (list), placeholder

One image in several categories is a contradiction: at most one of its labels is right.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.plan import Index, Products

DUPLICATES = pa.schema(
    [
        ("image_digest", pa.string()),
        ("products", pa.list_(pa.string())),
        ("categories", pa.list_(pa.string())),
        ("placeholder", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Shared:
    """g images that stand in several products, and their m products."""

    row: np.ndarray  # (g,) a row of the index that holds the image
    bounds: np.ndarray  # (g + 1,) where each image's products begin
    product: np.ndarray  # (m,) ascending within an image
    rows: np.ndarray  # (r,) all rows that hold one of them
    image: np.ndarray  # (r,) which one

    @property
    def products(self) -> np.ndarray:
        """(g,) how many products an image stands in."""
        return np.diff(self.bounds)


def find_shared(index: Index) -> Shared:
    """The readable images of several products.

    Images are told apart by 64 bits of their sha256: for two of 20 million to agree by chance is 1 in 90,000.
    """
    rows = np.flatnonzero(index.good)
    rows = rows[np.argsort(index.digest_key[rows], kind="stable")]
    key = index.digest_key[rows]
    begins = _begins(key)
    repeated = ~(begins & np.append(begins, True)[1:])
    rows, key = rows[repeated], key[repeated]
    image = np.cumsum(_begins(key)) - 1
    order = np.lexsort((index.product[rows], image))  # image ascends already
    rows, product = rows[order], index.product[rows[order]]
    one_each = _begins(image) | _begins(product)
    several = np.bincount(image[one_each], minlength=1) > 1
    kept = several[image]
    rows, product, one_each = rows[kept], product[kept], one_each[kept]
    image = (np.cumsum(several) - 1)[image[kept]]
    bounds = np.append(np.flatnonzero(_begins(image[one_each])), one_each.sum())
    return Shared(rows[_begins(image)], bounds, product[one_each], rows, image)


def _begins(values: np.ndarray) -> np.ndarray:
    """(n,) bool: differs from the one before."""
    return np.append(np.ones(min(1, len(values)), bool), values[1:] != values[:-1])


def find_placeholders(index: Index, shared: Shared, placeholder_products: int) -> np.ndarray:
    """(n,) bool: the picture is flat, or stands in at least `placeholder_products` products."""
    placeholder = index.flat & index.good
    placeholder[shared.rows[shared.products[shared.image] >= placeholder_products]] = True
    return placeholder


class SharedDigests:
    """Collects the whole digests of shared images while the look is read again."""

    def __init__(self, shared: Shared) -> None:
        self._order = np.argsort(shared.row)
        self._row = shared.row[self._order]
        self._digest = np.empty((len(shared.row), 32), np.uint8)

    def see(self, start: int, image_digest: pa.ChunkedArray) -> None:
        """The digests, 32 bytes each, of the rows from `start` on."""
        here = slice(*np.searchsorted(self._row, [start, start + len(image_digest)]))
        chosen = image_digest.take(pa.array(self._row[here] - start)).to_pylist()
        if chosen:
            self._digest[self._order[here]] = np.frombuffer(b"".join(chosen), np.uint8).reshape(-1, 32)

    def texts(self) -> list[str]:
        """(g,) sha256 hex of the shared images."""
        return [digest.tobytes().hex() for digest in self._digest]


def duplicates_table(
    shared: Shared, image_digest: list[str], placeholder: np.ndarray, products: Products
) -> pa.Table:
    """duplicates.parquet, sorted by digest.

    Args:
        shared: of the index.
        image_digest: (g,) sha256 hex.
        placeholder: (n,) bool, of the index.
        products: all of them.
    """
    ids = products.product_id.take(pa.array(shared.product)).cast(pa.string())
    bounds, category = _categories(shared, products)
    columns = [
        pa.array(image_digest, pa.string()),
        pa.ListArray.from_arrays(pa.array(shared.bounds, pa.int32()), ids),
        pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), category),
        pa.array(placeholder[shared.row]),
    ]
    return pa.table(columns, schema=DUPLICATES)


def contradictions(shared: Shared, products: Products) -> int:
    """How many shared images stand in products of several categories."""
    return int((np.diff(_categories(shared, products)[0]) > 1).sum())


def _categories(shared: Shared, products: Products) -> tuple[np.ndarray, pa.Array]:
    """Bounds and names of each image's categories, in the order of the alphabet."""
    names = sorted(products.category.values)  # "" comes first and is none
    place = {name: number for number, name in enumerate(names)}
    rank = np.array([place[name] for name in products.category.values])
    code = rank[products.category.code[shared.product]]
    image = np.repeat(np.arange(len(shared.row)), shared.products)
    image, code = np.divmod(np.unique((image * len(names) + code)[code > 0]), len(names))
    bounds = np.searchsorted(image, np.arange(len(shared.row) + 1))
    return bounds, pa.array(names, pa.string()).take(pa.array(code))
