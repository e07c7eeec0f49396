"""What a comparison is made from: the products of the run, with the bottlenecks of one backbone."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from features.storage.store import Digests, Store
from models.decisions.predictions import product_bounds
from models.taxonomy import Taxonomy
from pipeline.job.catalogue import Part, divide, learnt_categories_of, open_part, untrainable
from pipeline.job.config import Config
from pipeline.job.summaries import BottlenecksSummary


@dataclass(frozen=True)
class ComparisonInputs:
    """What a comparison is made from, and where it goes."""

    records: Artifact
    bottlenecks: Artifact  # of which the first view is compared
    tuned: Artifact | None  # the fine-tuned backbone of the run, if there is one
    store: AnyPath  # directory of all stores
    out: AnyPath  # the comparison's directory
    config: Config  # all settings; [head] of the level heads, and what all heads share
    categories: int | None = None  # a random draw of so many, from the seed; None: all


@dataclass(frozen=True, eq=False)
class ComparisonData:
    """The products of a comparison, with the bottlenecks of one backbone."""

    taxonomy: Taxonomy
    category: pd.Series  # by product_id
    fingerprint: str
    train: Part
    fit: Part
    cert: Part

    def only(self, most: int, rng: np.random.Generator) -> "ComparisonData":
        """A random draw of at most `most` products of each part."""
        train, fit, cert = (draw_products(part, most, rng) for part in (self.train, self.fit, self.cert))
        return replace(self, train=train, fit=fit, cert=cert)

    def truth(self, part: Part) -> np.ndarray:
        """(images,) int, category of each image of a part."""
        return self.taxonomy.index(self.category.reindex(part.product_id).to_numpy())

    def products(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Of a part's n products: (n + 1,) bounds of their images; (n,) int, category."""
        bounds = product_bounds(part.product_id)
        return bounds, self.truth(part)[bounds[:-1]]


def open_data(inputs: ComparisonInputs) -> ComparisonData:
    """The products of the run, or of the drawn categories, with the run's bottlenecks.

    Raises:
        ShelfmarkError: too few categories or products.
    """
    records, config = inputs.records, inputs.config
    taxonomy, category = learnt_categories_of(records)
    train, val = (open_part(inputs.bottlenecks, inputs.store, name, "first") for name in ("train", "val"))
    train = train.without(untrainable(records, config))
    if inputs.categories is not None:
        taxonomy = _draw_categories(taxonomy, inputs.categories, config.seed)
        category = category[category.isin(taxonomy.categories)]
    division = divide(val.product_id, val.image_digest, config.calibration.fit_share)
    fingerprint = BottlenecksSummary.of(inputs.bottlenecks).fingerprint
    train, fit, cert = (
        part.only(np.isin(part.product_id, category.index))
        for part in (train, val.only(division.fit), val.only(division.cert))
    )
    data = ComparisonData(taxonomy, category, fingerprint, train, fit, cert)
    _require_enough(data, records)
    return data


def _draw_categories(taxonomy: Taxonomy, count: int, seed: int) -> Taxonomy:
    available = len(taxonomy.categories)
    if count > available:
        raise ShelfmarkError(
            f"--categories {count}: the catalogue has {available}; expected at most that; "
            "give a smaller number"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(available, count, replace=False))
    return taxonomy.only(chosen)


def _require_enough(data: ComparisonData, records: Artifact) -> None:
    if len(data.taxonomy.categories) < 2:
        raise ShelfmarkError(
            f"{records.path}: {len(data.taxonomy.categories)} category; expected at least two; "
            "ingest a larger catalogue"
        )
    for part, purpose in ((data.train, "train on"), (data.cert, "measure on")):
        if not len(part.product_id):
            raise ShelfmarkError(
                f"{records.path}: no products to {purpose}; expected some in train, and in the part of val "
                "that certifies; ingest a larger catalogue"
            )


def stored(part: Part, store: Store) -> Part | None:
    """The part with this store's bottlenecks; None where it lacks some."""
    found = store.find(Digests(part.digest))
    if (found.row < 0).any():
        return None
    return replace(part, rows=store.rows(found.names, found.shard, found.row))


def draw_products(part: Part, most: int, rng: np.random.Generator) -> Part:
    """A random draw of at most `most` products of a part, with all their images."""
    bounds = product_bounds(part.product_id)
    count = len(bounds) - 1
    if count <= most:
        return part
    chosen = np.zeros(count, bool)
    chosen[rng.choice(count, most, replace=False)] = True
    return part.only(np.repeat(chosen, np.diff(bounds)))


def count_products(part: Part) -> int:
    """Number of products."""
    return len(product_bounds(part.product_id)) - 1
