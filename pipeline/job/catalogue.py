"""The catalogue as training and measuring see it: images with their bottlenecks, categories, FIT and CERT.

    records/      products.parquet, images.parquet ─► categories_of, untrainable
                  taxonomy.csv, unlearnt.csv ─► learnt_categories_of, TrueCategories
    bottlenecks/  index.parquet ─► open_part ─► Part, the images of train, val or test
    Part of val ─► divide ─► FIT, which selects, and CERT, which certifies and nothing else

All stages that train, calibrate, evaluate or compare get their images here, so all of them divide alike.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from features.storage.store import Store, StoredRows, digests_of, hex_of, joined
from models.decisions.validation_split import duplicate_groups, first_of_product, in_fit
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.job.config import Config
from pipeline.job.summaries import BottlenecksSummary, RecordsSummary, column_of


@dataclass(frozen=True)
class Part:
    """The images of one part of the catalogue, products together, each once in its product.

    With several views each image is there as often, its views one after the other. To all that comes after, a
    product has as many more images: predictions of its views are aggregated as if they were separate images.
    Where views are averaged, each image is there once.
    """

    product_id: np.ndarray  # (n,) str; the images of a product share one object
    digest: np.ndarray  # (n, 32) uint8
    rows: StoredRows  # (n, d) bottlenecks
    views: int = 1  # rows of each image: n = views · images

    @property
    def image_digest(self) -> np.ndarray:
        """(n,) str, sha256 hex: 120 bytes an image, made at each call."""
        return hex_of(self.digest)

    def only(self, chosen: np.ndarray) -> "Part":
        """The chosen rows, (n,) bool or row numbers."""
        return Part(self.product_id[chosen], self.digest[chosen], self.rows.only(chosen), self.views)

    def without(self, image_digests: np.ndarray) -> "Part":
        """The images but those with one of these digests, (m,) str."""
        return self.only(~np.isin(self.image_digest, image_digests)) if len(image_digests) else self

    def first_view(self) -> "Part":
        """The images, each once: its first row."""
        first = np.arange(len(self.product_id)) % self.views == 0
        return replace(self.only(first), views=1)


def open_part(
    bottlenecks: Artifact, store: AnyPath, split: str, views: Literal["asked", "all", "first"] = "asked"
) -> Part:
    """The images of a split ("train", "val", "test") with their bottlenecks.

    An image that a product has twice is there once: twice the same photo is no further evidence.

    Args:
        bottlenecks: of extract.
        store: directory of all stores.
        split: of the images.
        views: those that predictions are made from; all that were extracted, for training; or their first.
    """
    summary = BottlenecksSummary.of(bottlenecks)
    every = {"asked": summary.predicted_from, "all": summary.extracted, "first": summary.extracted[:1]}
    chosen = every[views]
    shards = [column_of(view, "shard") for view in chosen]
    index = pq.read_table(
        bottlenecks.file("index.parquet"), filters=[("split", "==", split)],
        columns=["image_digest", "product_id", *shards, *(column_of(view, "row") for view in chosen)],
        read_dictionary=["product_id", *shards],
    )  # fmt: skip
    product_id, product = _coded(index["product_id"])
    digests = digests_of(index["image_digest"])
    first = first_of_product(product, digests)
    if not first.all():
        product, digests = product[first], digests[first]
    ids = np.array(product_id.to_pylist(), dtype=object)[product]
    main = Store(store / summary.fingerprint)
    rows = joined([_rows(index, main.view(view)).only(first) for view in chosen], summary.averaged)
    return part_of_views(ids, digests, rows)


def part_of_views(product_id: np.ndarray, digests: np.ndarray, rows: StoredRows) -> Part:
    """The part of n images with k rows each: product_id (n,) str, digests (n, 32), rows (n · k, d)."""
    views = len(rows) // len(digests) if len(digests) else 1
    return Part(product_id.repeat(views), digests.repeat(views, axis=0), rows, views)


def _rows(index: pa.Table, view: Store) -> StoredRows:
    shards, shard = _coded(index[column_of(view.of, "shard")])
    return view.rows(shards.to_pylist(), shard, index[column_of(view.of, "row")].to_numpy())


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The different values of a dictionary column, and (n,) int32 each row's position among them."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no chunk at all
        return pa.array([], pa.string()), np.empty(0, np.int32)
    return whole.dictionary, whole.indices.to_numpy()


# Categories


UNLEARNT = "unlearnt.csv"  # of the records: as taxonomy.csv, the categories without training products


def categories_of(records: Artifact) -> pd.Series:
    """Category by product_id, of the products that have one."""
    products = pd.read_parquet(records.file("products.parquet"), columns=["product_id", "category"]).dropna()
    return products.set_index("product_id")["category"]


def learnt_categories_of(records: Artifact) -> tuple[Taxonomy, pd.Series]:
    """The tree of the categories that a head learns; the category by product_id, of their products alone."""
    taxonomy, category = read_taxonomy(records.file("taxonomy.csv")), categories_of(records)
    return taxonomy, category[taxonomy.index(category.to_numpy()) >= 0]


@dataclass(frozen=True)
class TrueCategories:
    """The true categories of the products, with their places in the tree, learnt or not."""

    category: pd.Series  # by product_id
    trees: tuple[Taxonomy, ...]  # of the learnt categories, and of the others
    weight: pd.Series | None = None  # by product_id, where the sources have weights

    @classmethod
    def of(cls, records: Artifact) -> "TrueCategories":
        """Those of the records."""
        names = ["taxonomy.csv", *([UNLEARNT] if UNLEARNT in records.files else [])]
        trees = tuple(read_taxonomy(records.file(name)) for name in names)
        return cls(categories_of(records), trees, weights_of(records))

    def weights(self, product_id: np.ndarray) -> np.ndarray | None:
        """(n,) float, weights of products, 0 without one; None where the sources have none."""
        if self.weight is None:
            return None
        weights: np.ndarray = self.weight.reindex(product_id).fillna(0.0).to_numpy()
        return weights

    def nodes(self, product_id: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
        """(n, N) int32: the nodes of the products' categories in a head's tree; -1 where it has none.

        Args:
            product_id: (n,) str.
            taxonomy: of a head, which may have been trained on another catalogue.
        """
        category = self.category.reindex(product_id).to_numpy()
        nodes: np.ndarray = np.max([taxonomy.nodes_of(category, tree) for tree in self.trees], axis=0)
        return nodes

    def paths(self, product_id: np.ndarray) -> np.ndarray:
        """(n,) object, each product's category for people: its names from coarse to fine."""
        codes, distinct = pd.factorize(self.category.reindex(product_id))
        return np.array([*self.labels(np.asarray(distinct, dtype=object)), None], dtype=object)[codes]

    def labels(self, categories: np.ndarray) -> np.ndarray:
        """(m,) object, categories for people; one without a place in the tree is its own name."""
        labels = np.array(categories, dtype=object)
        for tree in self.trees:
            index = tree.index(categories)
            labels[index >= 0] = [tree.label(at) for at in index[index >= 0].tolist()]
        return labels


def weights_of(records: Artifact) -> pd.Series | None:
    """Weight (float, from 0 on) by product_id, of the products that have one; None where no source gives any.

    In weighted figures a product without a weight does not count.
    """
    file = records.file("products.parquet")
    if "weight" not in pq.read_schema(file).names:
        return None
    products = pd.read_parquet(file, columns=["product_id", "weight"]).dropna()
    return products.set_index("product_id")["weight"]


def sizes_of(trained: Part, category: pd.Series, taxonomy: Taxonomy) -> np.ndarray:
    """(C,) int32, training products of each category; `category` by product_id."""
    index = taxonomy.index(category.reindex(np.unique(trained.product_id)).to_numpy())
    return np.bincount(index, minlength=len(taxonomy.categories)).astype(np.int32)


def untrainable(records: Artifact, config: Config) -> np.ndarray:
    """(m,) str, digests of the images that training leaves out: placeholders, unless train.placeholders."""
    if config.train.placeholders:
        return np.empty(0, object)
    file = records.file("images.parquet")
    images = pd.read_parquet(file, columns=["image_digest"], filters=[("placeholder", "==", True)])
    return images["image_digest"].to_numpy(dtype=object)


# FIT and CERT


@dataclass(frozen=True)
class Division:
    """The images of validation, divided into FIT and CERT."""

    group: np.ndarray  # (n,) the duplicate group of each image's product
    fit: np.ndarray  # (n,) bool, the image is in FIT

    @property
    def cert(self) -> np.ndarray:
        """(n,) bool, the image is in CERT."""
        return ~self.fit


def divide(product_id: np.ndarray, image_digest: np.ndarray, fit_share: float) -> Division:
    """Divides images by the hash of their products' duplicate groups; a group is on one side as a whole.

    Args:
        product_id: (n,) str.
        image_digest: (n,) str, sha256 hex.
        fit_share: of the groups, 0 to 1; `calibration.fit_share` for FIT and CERT.
    """
    group = duplicate_groups(product_id, image_digest)
    return Division(group, in_fit(group, fit_share))


def measured_part(records: Artifact, bottlenecks: Artifact, store: AnyPath, fit_share: float) -> Part:
    """The images that measure: those of test; where there are none, those of CERT.

    No product of test was ever trained on: the split is sticky.
    """
    if RecordsSummary.of(records).records["test"]:
        return open_part(bottlenecks, store, "test")
    val = open_part(bottlenecks, store, "val")
    return val.only(divide(val.product_id, val.image_digest, fit_share).cert)
