"""The grocery photos as photos of two shops: for benchmarks of what holds in a shop that training never saw.

The Grocery Store Dataset has 296 validation photos, which are few. So the 2,640 training photos are divided
into halves that are as unlike as two shops:

    the photos of each category ─► k-means of their frozen bottlenecks, k = 2 ─► half A │ half B
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from models.heads.architectures import Head
    from models.taxonomy import Taxonomy
    from pipeline.job.config import Config

BATCH = 128  # photos decoded at a time


def accuracies(logits: np.ndarray, labels: np.ndarray, taxonomy: "Taxonomy") -> dict[str, float]:
    """Share of the photos whose category, and whose node of the second level, is the right one."""
    predicted = logits.argmax(axis=1)
    level2 = taxonomy.nodes[1]
    return {
        "leaf": float(np.mean(predicted == labels)),
        "level2": float(np.mean(level2[predicted] == level2[labels])),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """(n, C) scores → probabilities of each row."""
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability: np.ndarray = power / power.sum(axis=1, keepdims=True)
    return probability


def halves(frozen: np.ndarray, category: np.ndarray) -> np.ndarray:
    """(n,) int, 0 or 1: the half of each training photo; of about equal size."""
    from sklearn.cluster import KMeans

    half, counts = np.zeros(len(frozen), int), np.zeros(2, int)
    unit = frozen / np.linalg.norm(frozen, axis=1, keepdims=True)
    for name in np.unique(category):
        its = np.flatnonzero(category == name)
        cluster = KMeans(2, n_init=10, random_state=0).fit_predict(unit[its])
        if np.bincount(cluster, minlength=2).argmax() == counts.argmax():
            cluster = 1 - cluster  # the larger cluster to the smaller half
        half[its], counts = cluster, counts + np.bincount(cluster, minlength=2)
    return half


def trained_head(
    rows: np.ndarray, labels: np.ndarray, taxonomy: "Taxonomy", config: "Config", fingerprint: str,
    **recipe: int,
) -> "Head":  # fmt: skip
    """A head by the settings, trained on all rows (n, d); `recipe`: other values of its recipe."""
    from models.heads.architectures import HeadShape
    from models.heads.training import Examples, fit_head
    from pipeline.train.from_settings import loss_of, recipe_of

    settings = config.head
    shape = HeadShape(
        rows.shape[1], len(taxonomy.categories), settings.hidden, settings.dropout,
        1 / float(np.sqrt(np.mean(rows.astype(np.float64) ** 2))), fingerprint, standardized=True,
        second_dropout=config.training()["second_dropout"],
    )  # fmt: skip
    examples = Examples(rows.astype(np.float16), labels)
    steps = replace(recipe_of(config, "float32"), **recipe)
    return fit_head(shape, examples, None, steps, loss_of(taxonomy, config))[0]


def cached(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of this .npy file, made where there is none."""
    if not file.is_file():
        np.save(file, make())
    return np.load(file, mmap_mode="r")


class GroceryPhotos:
    """All photos with a category that is learnt, decoded once for each size."""

    def __init__(self, manifest: Path, workspace: Path) -> None:
        """Makes the records in `workspace`."""
        from pipeline.ingest.ingest import make_records
        from pipeline.job.catalogue import learnt_categories_of
        from pipeline.job.load_config import load_config

        workspace.mkdir(parents=True, exist_ok=True)
        config = load_config()
        self.workspace = workspace
        self.records = make_records([str(manifest)], workspace / "records", config.ingest, seed=config.seed)
        self.taxonomy, category = learnt_categories_of(self.records)
        images = pd.read_parquet(self.records.file("images.parquet"))
        images = images.drop_duplicates(["product_id", "image_digest"])
        self.images = images[images["product_id"].isin(category.index)]
        self.train = (self.images["split"] == "train").to_numpy()
        self.category = category.reindex(self.images["product_id"]).to_numpy()
        self.labels = self.taxonomy.index(self.category)

    def of(self, size: int) -> np.ndarray:
        """(n, size, size, 3) uint8."""
        from features.engines.pixels import read_pixels
        from features.records import read_pieces

        def decode() -> np.ndarray:
            parts = list(read_pixels(read_pieces(self.records.path, self.images), size, BATCH))
            return np.concatenate(parts)[: len(self.images)]

        return cached(self.workspace / f"pixels-{size}.npy", decode)
