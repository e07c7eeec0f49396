"""Train: bottlenecks of the training products → head/.

    head/  head.json  head.weights.h5  taxonomy.csv  history.csv  manifest.json
           sizes.npy   (C,) int32, training products of each category
           set.json  set.weights.h5   the set head, where head.aggregation may take it

FIT, a third of the validation products by hash of their duplicate group, selects; CERT, the rest, waits.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact
from features.storage.paths import Place
from models.decisions.predictions import product_bounds
from models.decisions.validation_split import duplicate_groups, in_fit
from models.heads.architectures import FLAT, SET, TAXONNET, Head, HeadShape, ProductRows, load_head
from models.heads.losses import Loss, soft_tree, summed_levels, weighted_levels
from models.heads.training import Examples, Recipe, fit_head, suspects
from models.heads.training_steps import multiplies_bfloat16
from models.heads.warm_start import misfit, warm_start
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.extract.extract import Part, open_part, views_of
from pipeline.extract.fill_store import ALL_ZERO
from pipeline.job.config import Config
from pipeline.job.stage import log, stage

VERSION = 7
MOST_TOGETHER = 8  # images of a product that a set head reads; Cdiscount's products have four at most


def train(
    records: Artifact,
    bottlenecks: Artifact,
    store: Place,
    out: Place,
    config: Config,
    before: Artifact | None = None,
) -> Artifact:
    """Trains this run's head.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        store: directory of all stores.
        out: the artifact's directory.
        config: sections [head], [train], [calibration] and the seed.
        before: the bundle that the run is based on; with train.warm_start its head starts this one.
    """
    if config.train.warm_start and before is None:
        log.warning("head: starts fresh: the run is based on no release")
    before = before if config.train.warm_start else None

    def make(work: Path) -> Mapping[str, Any]:
        taxonomy = read_taxonomy(records.file("taxonomy.csv"))
        category = categories_of(records)
        learnt, val = (open_part(bottlenecks, store, split) for split in ("train", "val"))
        if not config.train.placeholders:
            learnt = learnt.only(~np.isin(learnt.image_digest, placeholders_of(records)))
        chosen = in_fit(duplicate_groups(val.product_id, val.image_digest), config.calibration.fit_share)
        shape = shape_of(learnt, taxonomy, bottlenecks.summary["fingerprint"], config)
        recipe = recipe_of(config)
        labels = labels_of(category, taxonomy, shape)
        loss = loss_of(taxonomy, config)
        examples, left_out = Examples(learnt.rows, labels(learnt.product_id)), 0
        if config.train.leave_out_suspects:
            fold = in_fit(duplicate_groups(learnt.product_id, learnt.image_digest), 0.5)
            share = config.train.leave_out_suspects
            suspect = suspects(shape, examples, fold, recipe, share, loss, work, learnt.views)
            learnt, examples = learnt.only(~suspect), examples.only(~suspect)
            left_out = int(suspect.sum()) // learnt.views
        fit = val.only(chosen)
        selecting = Examples(fit.rows, labels(fit.product_id)) if chosen.any() else None
        start = start_of(before, shape, taxonomy) if before else None
        epochs = (config.train.warm_epochs or -(-recipe.epochs // 4)) if start else recipe.epochs
        head, history = fit_head(
            shape, examples, selecting, replace(recipe, epochs=epochs), loss, work, start
        )
        head.save(work)
        if _may_be_together(learnt, config.head.aggregation):
            _fit_set_head(learnt, fit, category, taxonomy, shape, recipe, work / "_set").save(work)
        shutil.copyfile(records.file("taxonomy.csv"), work / "taxonomy.csv")
        pd.DataFrame(history).rename_axis("epoch").to_csv(work / "history.csv")
        np.save(work / "sizes.npy", sizes_of(learnt, category, taxonomy))
        return {
            "images": len(learnt.product_id) // learnt.views,
            "left_out": left_out,
            "categories": shape.categories,
            "epochs": len(history["loss"]),
        }

    made_from = {
        "records": records.digest,
        "fingerprint": bottlenecks.summary["fingerprint"],
        "views": views_of(bottlenecks),
        "settings": config.of_the_head(),
        "start": before.digest if before else "fresh",
    }
    return stage(out, kind="head", version=VERSION, made_from=made_from, make=make)


def recipe_of(config: Config) -> Recipe:
    """How heads are trained on this machine."""
    settings = config.training()
    precision, memory = settings.pop("precision"), settings.pop("memory_gb")
    elsewhere = (
        *("placeholders", "leave_out_suspects", "warm_start", "warm_epochs"),
        *("standardized", "second_dropout"),
    )
    for name in elsewhere:  # not of the steps
        settings.pop(name, None)
    return Recipe(
        **settings,
        seed=config.seed,
        bfloat16=in_bfloat16(precision),
        memory=int(memory * 1e9),
    )


def in_bfloat16(precision: str) -> bool:
    """What "auto", "bfloat16" or "float32" means on this machine."""
    return precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16())


def start_of(before: Artifact, shape: HeadShape, taxonomy: Taxonomy) -> Callable[[keras.Model], None] | None:
    """What puts a bundle's head into a fresh model; None, told in the log, where that head does not fit."""
    old = load_head(before.folder())
    if why := misfit(shape, old.shape):
        log.warning("head: starts fresh, not from %s: %s", before.path.name, why)
        return None

    def start(model: keras.Model) -> None:
        told = warm_start(model, shape, taxonomy, old, read_taxonomy(before.file("taxonomy.csv")))
        log.info(
            "head: starts from %s: %s categories kept, %s added, %s removed",
            before.path.name, f"{told.kept:,}", f"{told.added:,}", f"{told.removed:,}",
        )  # fmt: skip

    return start


def categories_of(records: Artifact) -> pd.Series:
    """Category by product_id, of the products that have one."""
    products = pd.read_parquet(records.file("products.parquet"), columns=["product_id", "category"]).dropna()
    return products.set_index("product_id")["category"]


def placeholders_of(records: Artifact) -> np.ndarray:
    """Digests of the images that are flat or stand in very many products."""
    file = records.file("images.parquet")
    images = pd.read_parquet(file, columns=["image_digest"], filters=[("placeholder", "==", True)])
    return images["image_digest"].to_numpy(dtype=object)


def sizes_of(learnt: Part, category: pd.Series, taxonomy: Taxonomy) -> np.ndarray:
    """(C,) int32, training products of each category; `category` by product_id."""
    index = taxonomy.index(category.reindex(np.unique(learnt.product_id)).to_numpy())
    return np.bincount(index, minlength=len(taxonomy.categories)).astype(np.int32)


def shape_of(learnt: Part, taxonomy: Taxonomy, fingerprint: str, config: Config) -> HeadShape:
    """The shape of a head by its settings, for these training images, their tree and backbone."""
    settings = config.head
    hierarchical = settings.loss == "hierarchical"
    return HeadShape(
        width=learnt.rows[slice(0, 1)].shape[1],
        categories=len(taxonomy.categories),
        hidden=settings.hidden,
        dropout=settings.dropout,
        scale=_scale(learnt),
        fingerprint=fingerprint,
        flip=learnt.views == 2,
        kind=settings.kind,
        parents=taxonomy.parents if settings.kind != FLAT or hierarchical else (),
        selector=(settings.selector or settings.hidden[1]) if settings.kind == TAXONNET else 0,
        hierarchical=hierarchical,
        standardized=config.training()["standardized"],
        second_dropout=config.training()["second_dropout"],
    )


def _may_be_together(learnt: Part, aggregation: str) -> bool:
    """Whether `aggregation` may turn out to be a set head; no product with several images, no need to."""
    several = len(np.unique(learnt.product_id)) < len(learnt.product_id)
    return aggregation == SET or (aggregation == "auto" and several)


def _fit_set_head(
    learnt: Part,
    fit: Part,
    category: pd.Series,
    taxonomy: Taxonomy,
    shape: HeadShape,
    recipe: Recipe,
    work: Path,
) -> Head:
    """A head that reads the images of a product together; it learns after the head of the images."""
    images = min(int(np.diff(product_bounds(learnt.product_id)).max()), MOST_TOGETHER)
    together = replace(shape, kind=SET, images=images, parents=(), selector=0, hierarchical=False)

    def examples(part: Part) -> Examples:
        bounds = product_bounds(part.product_id)
        truth = taxonomy.index(category.reindex(part.product_id[bounds[:-1]]).to_numpy())
        return Examples(ProductRows(part.rows.load(recipe.memory), bounds, images), truth)

    selecting = examples(fit) if len(fit.product_id) else None
    return fit_head(together, examples(learnt), selecting, recipe, work=work)[0]


def labels_of(
    category: pd.Series, taxonomy: Taxonomy, shape: HeadShape
) -> Callable[[np.ndarray], np.ndarray]:
    """What a head of this shape learns for each image, from its product_id: the category, or all nodes.

    Args:
        category: by product_id.
        taxonomy: of the categories.
        shape: of the head.

    Returns:
        (n,) str product_id → (n,) int, or (n, N) int32 for a head of several levels.
    """

    def labels(product_id: np.ndarray) -> np.ndarray:
        index = taxonomy.index(category.reindex(product_id).to_numpy())
        return index if shape.kind == FLAT else taxonomy.nodes.T[index]

    return labels


def loss_of(taxonomy: Taxonomy, config: Config) -> Loss | None:
    """What is minimised; None: cross-entropy, summed over the levels. Hierarchical softmax is in the head."""
    weights, name = config.head.level_weights, config.loss()
    if weights is not None:
        if len(weights) != taxonomy.levels:
            raise ShelfmarkError(
                f"head.level_weights: {len(weights)} numbers; expected {taxonomy.levels}, one for each level "
                "of the tree from coarse to fine; mend the setting"
            )
        return weighted_levels(weights)
    if name == "soft_tree":
        return soft_tree(taxonomy, config.head.soft_beta)
    return summed_levels(taxonomy) if name == "summed" and taxonomy.levels > 1 else None


def _scale(learnt: Part) -> float:
    """1 / RMS of the training bottlenecks, from at most 20,000 of them."""
    some = learnt.rows[slice(0, None, max(1, -(-len(learnt.rows) // 20_000)))]
    rms = np.sqrt(np.mean(np.square(some, dtype=np.float64)))
    if rms == 0:  # extract refuses a store that begins so, not one that goes on so
        raise ShelfmarkError(ALL_ZERO)
    return float(f"{1 / rms:.6g}")
