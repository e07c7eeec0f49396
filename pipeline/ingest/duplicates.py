"""Duplicates: images that several products share, and placeholder pictures.

    duplicates.parquet   image_digest, products (list of ids), categories (list), placeholder,
                         and, where there are corrections, corrected (ids of the products with such a label)

One image in several categories is a contradiction: at most one of its labels is correct.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.ingest.index import Index
from pipeline.ingest.split_plan import Products

DUPLICATES = pa.schema(
    [
        ("image_digest", pa.string()),
        ("products", pa.list_(pa.string())),
        ("categories", pa.list_(pa.string())),
        ("placeholder", pa.bool_()),
    ]
)
CORRECTED = pa.field("corrected", pa.list_(pa.string()))  # one more column, where labels were corrected

LOOKED_UP = 2**20  # keys at a time


@dataclass(frozen=True)
class SharedImages:
    """g images that several products share, and their m products."""

    row: np.ndarray  # (g,) a row of the index that holds the image
    bounds: np.ndarray  # (g + 1,) where each image's products begin
    product: np.ndarray  # (m,) position among the products, ascending within an image


def find_shared(index: Index, placeholder_products: int) -> tuple[SharedImages, np.ndarray]:
    """The readable images that several products share, and the placeholders.

    Returns:
        The shared images; and (n,) bool: the rows whose picture is flat, or that at least
        `placeholder_products` products share.

    Images are compared by 64 bits of their sha256: that two of 20 million agree by chance is 1 in 90,000.
    """
    rows = _repeated_rows(index)
    key = index.digest_key[rows]
    order = np.lexsort((index.product[rows], key))
    rows, product = rows[order], index.product[rows[order]]
    image = np.cumsum(_begins(key[order])) - 1
    one_each = _begins(image) | _begins(product)
    several = np.bincount(image[one_each], minlength=1) > 1
    kept = several[image]
    rows, product, one_each = rows[kept], product[kept], one_each[kept]
    image = (np.cumsum(several) - 1)[image[kept]]
    bounds = np.append(np.flatnonzero(_begins(image[one_each])), one_each.sum())
    placeholder = index.flat & index.good
    placeholder[rows[np.diff(bounds)[image] >= placeholder_products]] = True
    return SharedImages(rows[_begins(image)], bounds, product[one_each]), placeholder


def _repeated_rows(index: Index) -> np.ndarray:
    """The readable rows whose image is in several rows, ascending.

    Sorts the keys alone, then looks them up a million at a time: sorting the rows by them takes four times
    the memory, for the third of them that is needed.
    """
    keys = np.sort(index.digest_key[index.good])
    repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys
    pieces = [np.empty(0, np.int64)]
    for start in range(0, len(index.digest_key) if len(repeated) else 0, LOOKED_UP):
        key = index.digest_key[start : start + LOOKED_UP]
        position = np.minimum(np.searchsorted(repeated, key), len(repeated) - 1)
        found = (repeated[position] == key) & index.good[start : start + LOOKED_UP]
        pieces.append(start + np.flatnonzero(found))
    return np.concatenate(pieces)


def _begins(values: np.ndarray) -> np.ndarray:
    """(n,) bool: differs from the one before."""
    return np.append(np.ones(min(1, len(values)), bool), values[1:] != values[:-1])


class SharedDigests:
    """Collects the whole digests of shared images while the checked rows are read again."""

    def __init__(self, shared: SharedImages) -> None:
        self._order = np.argsort(shared.row)
        self._row = shared.row[self._order]
        self._digest = np.empty((len(shared.row), 32), np.uint8)

    def see(self, start: int, image_digest: pa.ChunkedArray) -> None:
        """Takes the digests, 32 bytes each, of the rows from `start` on."""
        here = slice(*np.searchsorted(self._row, [start, start + len(image_digest)]))
        chosen = image_digest.take(pa.array(self._row[here] - start)).to_pylist()
        if chosen:
            self._digest[self._order[here]] = np.frombuffer(b"".join(chosen), np.uint8).reshape(-1, 32)

    def texts(self, images: slice) -> list[str]:
        """Sha256 hex of some of the shared images."""
        return [digest.tobytes().hex() for digest in self._digest[images]]


def duplicates_schema(products: Products) -> pa.Schema:
    """That of duplicates.parquet."""
    return DUPLICATES if products.corrected is None else DUPLICATES.append(CORRECTED)


def duplicates_table(
    shared: SharedImages, digests: SharedDigests, placeholder: np.ndarray, products: Products, images: slice
) -> pa.Table:
    """Rows of duplicates.parquet, which is sorted by digest.

    Args:
        shared: of the index.
        digests: of all shared images.
        placeholder: (n,) bool, of the index.
        products: all of them.
        images: the range of shared images to write.
    """
    bounds = shared.bounds[images.start : images.stop + 1]
    product = shared.product[bounds[0] : bounds[-1]]
    bounds = bounds - bounds[0]
    category_bounds, category = _categories(bounds, product, products)
    columns = [
        pa.array(digests.texts(images), pa.string()),
        _lists(bounds, products.product_id.take(pa.array(product)).cast(pa.string())),
        _lists(category_bounds, category),
        pa.array(placeholder[shared.row[images]]),
    ]
    if products.corrected is not None:
        chosen = products.corrected[product]
        counts = np.append(0, np.cumsum(chosen))
        ids = products.product_id.take(pa.array(product[chosen])).cast(pa.string())
        columns.append(_lists(counts[bounds], ids))
    return pa.table(columns, schema=duplicates_schema(products))


def _lists(bounds: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), values)


def _categories(bounds: np.ndarray, product: np.ndarray, products: Products) -> tuple[np.ndarray, pa.Array]:
    """Bounds and names of each image's categories, in the order of the alphabet."""
    names = sorted(products.category.values)  # "" comes first and is none
    position = {name: number for number, name in enumerate(names)}
    rank = np.array([position[name] for name in products.category.values])
    code = rank[products.category.code[product]]
    image = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    image, code = np.divmod(np.unique((image * len(names) + code)[code > 0]), len(names))
    return np.searchsorted(image, np.arange(len(bounds))), pa.array(names, pa.string()).take(pa.array(code))


def contradictions(shared: SharedImages, products: Products) -> int:
    """How many shared images are in products of several categories."""
    if not len(shared.row):
        return 0
    code = products.category.code[shared.product]
    highest = np.maximum.reduceat(code, shared.bounds[:-1])
    lowest = np.minimum.reduceat(np.where(code > 0, code, np.iinfo(np.int32).max), shared.bounds[:-1])
    return int((lowest < highest).sum())
