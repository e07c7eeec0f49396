"""From settings to what training takes: the recipe, the shape of the head, its labels and its loss."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from features.errors import ShelfmarkError
from features.storage.paths import write_whole
from models.heads.architectures import FLAT, TAXONNET, HeadShape
from models.heads.losses import Loss, soft_tree, summed_levels, weighted_levels
from models.heads.precision import BFLOAT16, faster_for_head
from models.heads.training import Recipe
from models.taxonomy import Taxonomy
from pipeline.extract.fill_store import ALL_ZERO
from pipeline.job.catalogue import Part
from pipeline.job.config import Config
from pipeline.job.progress import log

PRECISION = "_precision"  # in the working directory; "_": not part of the artifact


def recipe_of(config: Config, precision: str) -> Recipe:
    """How heads are trained by the settings, in "float32" or "bfloat16"."""
    settings = config.training()
    memory = settings.pop("memory_gb")
    elsewhere = (
        *("precision", "placeholders", "leave_out_suspects", "warm_start", "warm_epochs"),
        *("standardized", "second_dropout"),
    )
    for name in elsewhere:  # not of the steps
        settings.pop(name, None)
    return Recipe(**settings, seed=config.seed, bfloat16=precision == BFLOAT16, memory=int(memory * 1e9))


def head_precision(config: Config, shape: HeadShape, work: Path | None = None) -> str:
    """The precision in which a head of this shape is trained; other arguments as of `precision_of`."""
    faster = partial(faster_for_head, shape, config.training()["batch"])
    return precision_of(config.train.precision, faster, work)


def precision_of(setting: str, faster: Callable[[], str], work: Path | None = None) -> str:
    """What a setting of precision means, "float32" or "bfloat16".

    Args:
        setting: one of these, or "auto".
        faster: says what "auto" is on this computer.
        work: working directory of the stage, where a file keeps what "auto" is. So a training that was
            killed continues in the precision in which it began, whatever another trial would show.
    """
    if setting != "auto":
        return setting
    file = work / PRECISION if work else None
    if file and file.is_file():
        log.info("the precision is that in which the work began: %s", began := file.read_text())
        return began
    chosen = faster()
    if file:
        write_whole(file, chosen.encode())
    return chosen


def shape_of(trained: Part, taxonomy: Taxonomy, fingerprint: str, config: Config) -> HeadShape:
    """The shape of a head by its settings, for these training images, their tree and backbone."""
    settings = config.head
    hierarchical = settings.loss == "hierarchical"
    return HeadShape(
        width=trained.rows[slice(0, 1)].shape[1],
        categories=len(taxonomy.categories),
        hidden=settings.hidden,
        dropout=settings.dropout,
        scale=_scale(trained),
        fingerprint=fingerprint,
        kind=settings.kind,
        parents=taxonomy.parents if settings.kind != FLAT or hierarchical else (),
        selector=(settings.selector or settings.hidden[1]) if settings.kind == TAXONNET else 0,
        hierarchical=hierarchical,
        standardized=config.training()["standardized"],
        second_dropout=config.training()["second_dropout"],
    )


def labels_of(
    category: pd.Series, taxonomy: Taxonomy, shape: HeadShape
) -> Callable[[np.ndarray], np.ndarray]:
    """The labels of a head of this shape, from the images' product_id: the category, or all nodes.

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
                "of the tree from coarse to fine; correct the setting"
            )
        return weighted_levels(weights)
    if name == "soft_tree":
        return soft_tree(taxonomy, config.head.soft_beta)
    return summed_levels(taxonomy) if name == "summed" and taxonomy.levels > 1 else None


def _scale(trained: Part) -> float:
    """1 / RMS of the training bottlenecks, from at most 20,000 of them."""
    some = trained.rows[slice(0, None, max(1, -(-len(trained.rows) // 20_000)))]
    rms = np.sqrt(np.mean(np.square(some, dtype=np.float64)))
    if rms == 0:  # extract refuses a store whose first shard is so, not a later one
        raise ShelfmarkError(ALL_ZERO)
    return float(f"{1 / rms:.6g}")
