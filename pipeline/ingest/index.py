"""The index: what the plan keeps of every checked row, in 30 bytes a row.

Index      n rows (an image each, or a product without any) and p products
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.product import tidy_name

NO_IMAGE = "no_image"  # the reason of a row that stands for a product without any image
TEXTS = ("category", "split", "seller", "reason")
ROW = {  # of the index; there are few parts and reasons
    **dict.fromkeys(("product", "category", "seller", "length"), np.int32),
    **dict.fromkeys(("split", "reason"), np.uint8),
    **{"digest_key": np.uint64, "flat": np.bool_},
}
# of CHECKED, for the index
COLUMNS = ["product_id", "order_key", *TEXTS, "length", "image_digest", "flat", "weight"]


@dataclass(frozen=True)
class Coded:
    """Texts as positions in a list of the distinct ones, of which the first is ""."""

    values: list[str]
    code: np.ndarray  # (n,) int32 or uint8

    def only(self, chosen: np.ndarray | slice) -> "Coded":
        """The chosen rows."""
        return Coded(self.values, self.code[chosen])

    def texts(self) -> pa.Array:
        """The texts, null for ""."""
        code = pa.array(self.code.astype(np.int32), mask=self.code == 0)
        return pa.DictionaryArray.from_arrays(code, pa.array(self.values, pa.string())).cast(pa.string())


@dataclass(frozen=True)
class Index:
    """What the plan keeps of every row, in the sources' order."""

    product_id: pa.Array  # (p,) large_string, sorted
    order_key: np.ndarray  # (p,) int64
    product: np.ndarray  # (n,) int32, position in product_id; -1 where the source gives no id
    category: Coded
    split: Coded
    seller: Coded
    reason: Coded  # "" of a readable image
    length: np.ndarray  # (n,) int32, bytes
    digest_key: np.ndarray  # (n,) uint64, the first 8 bytes of the image's digest
    flat: np.ndarray  # (n,) bool
    image_index: np.ndarray  # (n,) int32, which of its product's rows a row is
    weight: (
        np.ndarray | None
    )  # (p,) float64, the largest of its rows, nan where none has one; None: no weights

    @property
    def good(self) -> np.ndarray:
        """(n,) bool: a readable image."""
        good: np.ndarray = self.reason.code == 0
        return good

    def reasons(self) -> dict[str, int]:
        """Rejected images by reason, the most common first."""
        counts = np.bincount(self.reason.code, minlength=len(self.reason.values)).tolist()
        by_count = sorted(zip(self.reason.values, counts, strict=True), key=lambda pair: -pair[1])
        return {reason: count for reason, count in by_count if reason not in ("", NO_IMAGE) and count}

    def images(self) -> int:
        """How many images the sources hold."""
        values = self.reason.values
        return len(self.product) - (
            int(np.sum(self.reason.code == values.index(NO_IMAGE))) if NO_IMAGE in values else 0
        )


def tidied(names: Coded) -> Coded:
    """The names with those merged that `tidy_name` makes equal; "" for those of blanks alone.

    >>> tidied(Coded(["", "Shoes ", "Hats", "Shoes"], np.array([0, 1, 2, 3, 1])))
    Coded(values=['', 'Shoes', 'Hats'], code=array([0, 1, 2, 1, 1], dtype=int32))
    """
    codes = {"": 0}
    code = np.array([codes.setdefault(tidy_name(name), len(codes)) for name in names.values], np.int32)
    return Coded(list(codes), code[names.code])


def most_common(product: np.ndarray, texts: Coded, products: int) -> tuple[np.ndarray, int]:
    """(p,) int32: code of the most common text of each product's rows; how many products' rows disagree.

    >>> most_common(np.array([0, 0, 1, 1, -1]), Coded(["", "b", "a"], np.array([1, 2, 0, 1, 2])), 3)
    (array([2, 1, 0], dtype=int32), 1)

    Args:
        product: (n,) int, from 0; -1: the row belongs to none.
        texts: of n rows; "" counts as not given. The first in the alphabet counts among equals.
        products: p, number of products.
    """
    given = (texts.code > 0) & (product >= 0)
    product, code = product[given][::-1], texts.code[given][::-1]
    chosen = np.zeros(products, np.int32)
    chosen[product] = code  # the first row's, because it is assigned last
    mixed = np.unique(product[code != chosen[product]])
    if len(mixed):
        rows = np.isin(product, mixed)
        pairs = np.stack([product[rows], code[rows]])
        (product, code), count = np.unique(pairs, axis=1, return_counts=True)
        rank = np.unique(np.array(texts.values, dtype=object)[code], return_inverse=True)[1]
        best = np.lexsort((-rank, count, product))  # the last of a product's: most rows, then the first text
        chosen[product[best]] = code[best]
    return chosen, len(mixed)


def build_index(tables: Iterable[pa.Table], rows: int) -> Index:
    """The index of checked rows; one of the tables at a time is in memory.

    Args:
        tables: of checked rows, with the columns COLUMNS.
        rows: of all of them.
    """
    codes: dict[str, dict[str, int]] = {name: {"": 0} for name in TEXTS}
    # allocated at once: arrays concatenated from a thousand pieces took 0.5 GB more
    row: dict[str, np.ndarray] = {name: np.empty(rows, dtype) for name, dtype in ROW.items()}
    ids, keys, start, first = [], [], 0, 0
    weights: list[tuple[int, np.ndarray]] = []
    for table in tables:
        here = slice(start, start + len(table))
        start += len(table)
        product = table["product_id"].combine_chunks().dictionary_encode()
        row["product"][here] = code = product.indices.to_numpy() + np.int32(first)
        key = np.empty(len(product.dictionary), np.int64)
        key[code - first] = table["order_key"].to_numpy()
        if table["weight"].null_count < len(table):
            weights.append((first, _largest(table["weight"].to_numpy(), code - first, len(key))))
        first += len(key)
        ids.append(product.dictionary.cast(pa.large_string()))
        keys.append(key)
        for name in TEXTS:
            row[name][here] = _codes(table[name], codes[name])
        for name in ("length", "flat"):
            row[name][here] = table[name].to_numpy()
        row["digest_key"][here] = _first_bytes(table["image_digest"])
    product_id, order_key, position = _sorted_ids(ids, keys)
    row["product"] = position[row["product"]]
    text = {name: Coded(list(codes[name]), row[name]) for name in TEXTS}
    return Index(
        product_id, order_key, row["product"],
        category=text["category"], split=text["split"], seller=text["seller"], reason=text["reason"],
        length=row["length"], digest_key=row["digest_key"], flat=row["flat"],
        image_index=image_indices(row["product"]), weight=_weights(weights, position, len(product_id)),
    )  # fmt: skip


def _largest(weight: np.ndarray, product: np.ndarray, products: int) -> np.ndarray:
    """(products,) float64: the largest weight of each product's rows; nan where none is given.

    Args:
        weight: (n,) float64, nan where not given.
        product: (n,) int, from 0; -1: the row belongs to none.
        products: number of products.
    """
    largest = np.full(products, np.nan)
    np.fmax.at(largest, product[product >= 0], weight[product >= 0])
    return largest


def _weights(weights: list[tuple[int, np.ndarray]], position: np.ndarray, products: int) -> np.ndarray | None:
    """(products,) float64 from those of the tables, each with the number of ids before it; None for none."""
    if not weights:
        return None
    weight = np.concatenate([local for _, local in weights])
    product = np.concatenate([position[first : first + len(local)] for first, local in weights])
    return _largest(weight, product, products)


def _codes(column: pa.ChunkedArray, codes: dict[str, int]) -> np.ndarray:
    """(n,) int32: the codes of the texts; new texts are added to `codes`."""
    local = column.combine_chunks().dictionary_encode()
    known = [codes.setdefault(text, len(codes)) for text in local.dictionary.to_pylist()]
    code: np.ndarray = np.array(known, np.int32)[local.indices.to_numpy()]
    return code


def _first_bytes(digests: pa.ChunkedArray) -> np.ndarray:
    """(n,) uint64: the first 8 bytes, so that they sort as the digests do."""
    whole = digests.combine_chunks()
    width = whole.type.byte_width // 8
    return np.frombuffer(whole.buffers()[1], ">u8")[::width][whole.offset :][: len(whole)]


def _sorted_ids(ids: list[pa.Array], keys: list[np.ndarray]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Distinct ids, sorted; their keys; and for every given id its position among them, -1 for "".

    Sorted, not hashed: as quick, and Arrow's hash table of 8 M ids takes 0.5 GB. Empties the lists.
    """
    every = pa.chunked_array(ids, pa.large_string()).combine_chunks()
    key = np.concatenate([np.empty(0, np.int64), *keys])
    ids.clear()
    keys.clear()
    order = pc.sort_indices(every).to_numpy()
    every = every.take(pa.array(order))
    order = order.astype(np.int32)
    new = np.ones(len(order), bool)
    new[1:] = pc.not_equal(every[1:], every[:-1]).to_numpy(zero_copy_only=False)
    blank = len(every) > 0 and every[0].as_py() == ""
    position = np.empty(len(order), np.int32)
    position[order] = np.cumsum(new, dtype=np.int32) - 1 - int(blank)
    first = np.flatnonzero(new)[int(blank) :]
    return every.take(pa.array(first)) if len(first) < len(every) else every, key[order[first]], position


def image_indices(product: np.ndarray) -> np.ndarray:
    """(n,) int32: which of its product's rows a row is, from 0.

    >>> image_indices(np.array([7, 7, 3, 7])).tolist()
    [0, 1, 0, 2]
    """
    order = np.argsort(product, kind="stable").astype(np.int32)
    ordered = product[order]
    position = np.arange(len(product), dtype=np.int32)
    first = position.copy()
    first[1:][ordered[1:] == ordered[:-1]] = 0
    index = np.empty(len(product), np.int32)
    index[order] = position - np.maximum.accumulate(first)
    return index
