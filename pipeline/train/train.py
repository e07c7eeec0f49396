"""Train: bottlenecks of the training products → head/.

    head/  head.json  head.weights.h5  taxonomy.csv  history.csv  manifest.json
           sizes.npy   (C,) int32, training products of each category
           set.json  set.weights.h5   the set head, where head.aggregation may take it

FIT, a quarter of the validation products by hash of their duplicate group, selects; CERT is not read here.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from models.decisions.predictions import product_bounds
from models.decisions.validation_split import duplicate_groups, folds_of
from models.heads.architectures import SET, Head, HeadShape, ProductRows, load_head
from models.heads.training import WINDOW, Examples, Recipe, fit_head, held_out_heads, suspects
from models.heads.warm_start import misfit, warm_start
from models.taxonomy import Taxonomy, read_taxonomy
from models.taxonomy_changes import TreeChanges
from pipeline.job.catalogue import Part, divide, learnt_categories_of, open_part, sizes_of, untrainable
from pipeline.job.config import Config
from pipeline.job.progress import Progress, log
from pipeline.job.room import TRAIN, TRAIN_IMAGE, warn_of_memory
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, HeadSummary
from pipeline.job.tree import changes_since_release
from pipeline.train.from_settings import head_precision, labels_of, loss_of, recipe_of, shape_of

VERSION = 8
MOST_TOGETHER = 8  # images of a product that a set head reads; Cdiscount's products have four at most


def train(run: Run) -> Artifact:
    """Trains the run's head on its bottlenecks."""
    records, out = run.records(), run.path / "head"
    bottlenecks = run.bottlenecks(records)
    before = run.bundle_before()
    changes = changes_since_release(run, records) if before else None
    return train_head(records, bottlenecks, run.store, out, run.config, before, changes)


def train_head(
    records: Artifact,
    bottlenecks: Artifact,
    store: AnyPath,
    out: AnyPath,
    config: Config,
    before: Artifact | None = None,
    changes: TreeChanges | None = None,
) -> Artifact:
    """Trains a head; an interrupted training continues at its last checkpoint.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        store: directory of all stores.
        out: the artifact's directory.
        config: sections [head], [train], [calibration] and the seed.
        before: the bundle that the run is based on; with train.warm_start its head starts this one.
        changes: of the tree since then.
    """
    if config.train.warm_start and before is None:
        log.warning("head: starts fresh: the run is based on no release")
    before = before if config.train.warm_start else None

    def make(work: Path) -> Mapping[str, object]:
        opened = _open_training(records, bottlenecks, store, config)
        precision = head_precision(config, opened.shape, work)
        recipe = recipe_of(config, precision)
        _warn_of_memory(opened.trained, recipe.memory)
        training, examples = _without_suspects(opened, recipe, config, work)
        start = start_of(before, training.shape, training.taxonomy, changes) if before else None
        head, history = _fit(training, examples, start, recipe, config, work)
        head.save(work)
        if _may_be_together(training.trained, config.head.aggregation):
            _fit_set_head(training, recipe, work / "_set").save(work)
        shutil.copyfile(records.file("taxonomy.csv"), work / "taxonomy.csv")
        pd.DataFrame(history).rename_axis("epoch").to_csv(work / "history.csv")
        np.save(work / "sizes.npy", sizes_of(training.trained, training.category, training.taxonomy))
        return HeadSummary(
            images=training.images,
            left_out=opened.images - training.images,
            categories=training.shape.categories,
            epochs=len(history["loss"]),
            precision=precision,
        ).to_dict()

    extracted = BottlenecksSummary.of(bottlenecks)
    made_from = {
        "records": records.digest,
        "fingerprint": extracted.fingerprint,
        "views": extracted.seen,
        "settings": config.of_the_head(),
        "start": before.digest if before else "fresh",
    }
    return stage(out, kind="head", version=VERSION, made_from=made_from, make=make)


def _warn_of_memory(trained: Part, most: int) -> None:
    """Warns where the bottlenecks that stay in memory, `most` bytes or less, probably do not fit into it."""
    images, whole = len(trained.product_id), len(trained.product_id) * trained.rows[:1].nbytes
    held = whole if whole <= most else 2 * min(WINDOW, most)
    warn_of_memory(
        "train", TRAIN + TRAIN_IMAGE * images + held, "end other programs, or lower train.memory_gb"
    )


@dataclass(frozen=True)
class _Training:
    """What a head is trained on, and selected by."""

    taxonomy: Taxonomy
    category: pd.Series  # by product_id
    shape: HeadShape
    trained: Part  # images trained on
    fit: Part  # FIT

    @property
    def images(self) -> int:
        """Images trained on, each counted once, whatever views it has."""
        return len(self.trained.product_id) // self.trained.views

    def examples(self, part: Part) -> Examples:
        """The images of a part with their labels."""
        return Examples(part.rows, labels_of(self.category, self.taxonomy, self.shape)(part.product_id))


def _open_training(records: Artifact, bottlenecks: Artifact, store: AnyPath, config: Config) -> _Training:
    taxonomy, category = learnt_categories_of(records)
    trained, val = (open_part(bottlenecks, store, split, "all") for split in ("train", "val"))
    trained = trained.without(untrainable(records, config))
    division = divide(val.product_id, val.image_digest, config.calibration.fit_share)
    extracted = BottlenecksSummary.of(bottlenecks)
    shape = replace(
        shape_of(trained, taxonomy, extracted.fingerprint, config),
        views=tuple(view.name for view in extracted.predicted_from),
        trained=tuple(view.name for view in extracted.extracted),
        averaged=extracted.averaged,
    )
    fit = val.only(division.fit & np.isin(val.product_id, category.index))
    return _Training(taxonomy, category, shape, trained, fit)


def _without_suspects(
    training: _Training, recipe: Recipe, config: Config, work: Path
) -> tuple[_Training, Examples]:
    """What is trained on; with train.leave_out_suspects without the images of probably wrong labels."""
    trained, examples = training.trained, training.examples(training.trained)
    share = config.train.leave_out_suspects
    if not share:
        return training, examples
    fold = divide(trained.product_id, trained.image_digest, 0.5).fit
    loss, views = loss_of(training.taxonomy, config), trained.views
    with Progress("train on a half", recipe.epochs * len(examples.labels) // 2) as progress:
        suspect = suspects(
            training.shape, examples, fold, recipe, share, loss, work, views, progress=progress.to
        )
    return replace(training, trained=trained.only(~suspect)), examples.only(~suspect)


def held_out_parts(
    records: Artifact, bottlenecks: Artifact, store: AnyPath, config: Config, work: Path
) -> Iterator[tuple[Part, Head]]:
    """Yields the training images fold by fold, each with a head that was not trained on its fold.

    Products that share an image are in one fold. Images of a category that the other folds lack are left out.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        store: directory of all stores.
        config: suspects.folds, and what `train_head` takes.
        work: directory of the checkpoints.
    """
    training = _open_training(records, bottlenecks, store, config)
    trained = training.trained
    group = duplicate_groups(trained.product_id, trained.image_digest)
    fold = folds_of(group, config.suspects.folds)
    loss = loss_of(training.taxonomy, config)
    recipe = recipe_of(config, head_precision(config, training.shape, work))
    with Progress("train without a fold", recipe.epochs * len(trained.product_id)) as progress:
        heads = held_out_heads(
            training.shape, training.examples(trained), fold, recipe, loss, work, progress=progress.to
        )
        for head, held_out in heads:
            yield trained.only(held_out), head


def _fit(
    training: _Training,
    examples: Examples,
    start: Callable[[keras.Model], None] | None,
    recipe: Recipe,
    config: Config,
    work: Path,
) -> tuple[Head, dict[str, list[float]]]:
    """The head and its history; a warm start takes `train.warm_epochs`, or a quarter of the epochs."""
    selecting = training.examples(training.fit) if len(training.fit.product_id) else None
    if start:
        recipe = replace(recipe, epochs=config.train.warm_epochs or -(-recipe.epochs // 4))
    loss = loss_of(training.taxonomy, config)
    with Progress("train", recipe.epochs * len(examples.labels)) as progress:
        return fit_head(training.shape, examples, selecting, recipe, loss, work, start, progress.to)


def start_of(
    before: Artifact, shape: HeadShape, taxonomy: Taxonomy, changes: TreeChanges | None = None
) -> Callable[[keras.Model], None] | None:
    """What puts a bundle's head into a fresh model; None, with a log line, where that head does not fit."""
    old = load_head(before.folder())
    if why := misfit(shape, old.shape):
        log.warning("head: starts fresh, not from %s: %s", before.path.name, why)
        return None

    def start(model: keras.Model) -> None:
        old_taxonomy, sizes = read_taxonomy(before.file("taxonomy.csv")), np.load(before.file("sizes.npy"))
        carried = warm_start(model, shape, taxonomy, old, old_taxonomy, changes, sizes)
        log.info(
            "head: starts from %s: %s categories kept, %s added, %s removed",
            before.path.name, f"{carried.kept:,}", f"{carried.added:,}", f"{carried.removed:,}",
        )  # fmt: skip

    return start


def _may_be_together(trained: Part, aggregation: str) -> bool:
    """Whether a set head may be chosen: only where products have several images, unless it is required."""
    several = len(np.unique(trained.product_id)) < len(trained.product_id)
    return aggregation == SET or (aggregation == "auto" and several)


def _fit_set_head(training: _Training, recipe: Recipe, work: Path) -> Head:
    """A head that reads the images of a product together; it is trained after the head of the images."""
    images = min(int(np.diff(product_bounds(training.trained.product_id)).max()), MOST_TOGETHER)
    together = replace(training.shape, kind=SET, images=images, parents=(), selector=0, hierarchical=False)

    def examples(part: Part) -> Examples:
        bounds = product_bounds(part.product_id)
        category = training.category.reindex(part.product_id[bounds[:-1]]).to_numpy()
        rows = ProductRows(part.rows.load(recipe.memory), bounds, images)
        return Examples(rows, training.taxonomy.index(category))

    selecting = examples(training.fit) if len(training.fit.product_id) else None
    trained = examples(training.trained)
    with Progress("train: together", recipe.epochs * len(trained.labels)) as progress:
        return fit_head(together, trained, selecting, recipe, work=work, progress=progress.to)[0]
