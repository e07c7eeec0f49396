"""Fine-tune: records + a backbone → backbone/, a backbone of the run's own.

    backbone/  backbone.json   {"name", "image_size", "weights"}, as in a bundle
               backbone.weights.h5  history.csv  manifest.json

A share of the training products is drawn. First a head is trained on their frozen bottlenecks, which stay in
the store; then the backbone's later layers and that head are trained together. The head is not kept:
train makes the run's head from the bottlenecks of the tuned backbone, as in any week.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow as pa

from features.engines.backbone_names import parse_name
from features.engines.backbones import (
    TUNED,
    Backbone,
    KerasBackbone,
    keras_backbone,
    require_keras,
)
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.product import order_key
from features.records import read_pieces
from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from features.storage.store import Digests, Store, digests_of
from features.views import WHOLE
from models.heads.architectures import Head
from models.heads.finetune import (
    Augmentation,
    Photos,
    Tuning,
    frozen_count,
    smaller_size,
    tune_backbone,
)
from models.heads.losses import Loss
from models.heads.precision import faster_for_network
from models.heads.training import Examples, Recipe, fit_head
from models.taxonomy import Taxonomy
from pipeline.extract.fill_store import rows_of
from pipeline.job.catalogue import Part, divide, learnt_categories_of, untrainable
from pipeline.job.config import Config, FinetuneSettings
from pipeline.job.progress import Progress
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BackboneSummary
from pipeline.train.from_settings import (
    head_precision,
    labels_of,
    loss_of,
    precision_of,
    recipe_of,
    shape_of,
)

VERSION = 4
BATCH = 128  # photos decoded at a time


def finetune(run: Run) -> Artifact:
    """Tunes the backbone of the settings on the run's products."""
    out = run.path / "backbone"
    base = require_keras(run.untuned_backbone(), "as the start of fine-tuning")
    return finetune_backbone(run.records(), base, run.store, out, run.config)


def finetune_backbone(
    records: Artifact, base: KerasBackbone, store: AnyPath, out: AnyPath, config: Config
) -> Artifact:
    """Tunes a backbone on the products of the records.

    Args:
        records: of ingest.
        base: the backbone of the settings; used up.
        store: directory of all stores.
        out: the artifact's directory.
        config: sections [finetune], [head], [train], [extract], [calibration] and the seed.
    """
    settings = config.finetune
    layers = len(base.network.layers)
    frozen = frozen_count(settings.frozen_share, layers)

    def make(work: Path) -> Mapping[str, object]:
        drawn = _draw(records, base, config)
        head = _train_start_head(drawn, store, work / "_head")
        precision = precision_of(settings.precision, lambda: faster_for_network(base.model), work)
        network, history = _tune(drawn, head, precision, work)
        tuned = keras_backbone(network, parse_name(base.name), TUNED + base.weights, base.image_size)
        tuned.save(work)
        pd.DataFrame(history).rename_axis("epoch").to_csv(work / "history.csv")
        return BackboneSummary(
            fingerprint=tuned.fingerprint,
            backbone=base.name,
            weights=tuned.weights,
            layers=layers,
            frozen=frozen,
            products=int(drawn.train["product_id"].nunique()),
            images=len(drawn.train),
            epochs=len(history["loss"]),
            precision=precision,
        ).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": base.fingerprint,
        "settings": config.of_the_head() | {"finetune": settings.that_matter()},
    }
    return stage(out, kind="backbone", version=VERSION, made_from=made_from, make=make)


@dataclass(frozen=True)
class _Drawn:
    """The drawn images, and what is needed to train on them."""

    records: Artifact
    base: KerasBackbone
    config: Config
    taxonomy: Taxonomy
    category: pd.Series  # by product_id
    train: pd.DataFrame  # rows of images.parquet
    fit: pd.DataFrame  # likewise, of FIT; may be empty
    loss: Loss | None


def _draw(records: Artifact, base: KerasBackbone, config: Config) -> _Drawn:
    taxonomy, category = learnt_categories_of(records)
    train, fit = draw_images(records, category, config)
    return _Drawn(records, base, config, taxonomy, category, train, fit, loss_of(taxonomy, config))


def _train_start_head(drawn: _Drawn, store: AnyPath, work: Path) -> Head:
    """The head that tuning starts with, trained on the frozen bottlenecks of the drawn images."""
    parts = [
        _with_bottlenecks(images, drawn.records, drawn.base, store, drawn.config)
        for images in (drawn.train, drawn.fit)
        if len(images)
    ]
    shape = shape_of(parts[0], drawn.taxonomy, drawn.base.fingerprint, drawn.config)
    labels = labels_of(drawn.category, drawn.taxonomy, shape)
    train, *fit = (Examples(part.rows, labels(part.product_id)) for part in parts)
    recipe = recipe_of(drawn.config, head_precision(drawn.config, shape, work))
    with Progress("finetune: head", recipe.epochs * len(train.labels)) as progress:
        fitted = fit[0] if fit else None
        return fit_head(shape, train, fitted, recipe, drawn.loss, work, progress=progress.to)[0]


def _tune(
    drawn: _Drawn, head: Head, precision: str, work: Path
) -> tuple[keras.Model, dict[str, list[float]]]:
    """The tuned network and its history."""
    settings = drawn.config.finetune
    labels = labels_of(drawn.category, drawn.taxonomy, head.shape)

    memory = int(drawn.config.train.memory_gb * 1e9)

    def photos(images: pd.DataFrame) -> Photos:
        return Photos(_reader(images, drawn.records, drawn.base.image_size, memory), labels(_ids(images)))

    with Progress("finetune", settings.epochs * len(drawn.train)) as progress:
        return tune_backbone(
            drawn.base, head, photos(drawn.train), photos(drawn.fit) if len(drawn.fit) else None,
            steps_of(drawn.config, precision), tuning_of(settings, drawn.base), drawn.loss, work, progress.to,
        )  # fmt: skip


def tuning_of(settings: FinetuneSettings, backbone: KerasBackbone) -> Tuning:
    """What is tuned of a backbone, and on which photos."""
    return Tuning(
        frozen_share=settings.frozen_share,
        augmentation=Augmentation(
            settings.crop, settings.flip, settings.colour, settings.mixup, settings.cutmix
        ),
        size=settings.image_size or smaller_size(backbone),
        average=settings.average,
    )


def steps_of(config: Config, precision: str) -> Recipe:
    """How backbones are tuned here; imbalance as in [train]."""
    settings = config.finetune
    return replace(
        recipe_of(config, precision),
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        decay=settings.decay,
        momentum=settings.momentum,
        weight_decay=0.0,
        label_smoothing=settings.label_smoothing,
        mixup=0.0,
        epochs=settings.epochs,
        patience=settings.patience,
    )


def draw_images(records: Artifact, category: pd.Series, config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images of the drawn training products, and those of the drawn products of FIT.

    Args:
        records: of ingest.
        category: by product_id, of the learnt categories.
        config: sections [finetune], [train] and [calibration].

    Returns:
        Rows of images.parquet, in the order of the records.
    """
    images = pd.read_parquet(records.file("images.parquet"))
    images = images.drop_duplicates(["product_id", "image_digest"])  # each counts once in its product
    train, val = (images[images["split"] == split] for split in ("train", "val"))
    train = train[~train["image_digest"].isin(untrainable(records, config))]
    if not len(train):
        raise ShelfmarkError(
            f"{records.path}: no training images; expected some to tune the backbone on; "
            "give a source with more products"
        )
    digests = val["image_digest"].to_numpy(dtype=object)
    fit = val[
        divide(_ids(val), digests, config.calibration.fit_share).fit & val["product_id"].isin(category.index)
    ]
    share = config.finetune.share
    trained, selecting = (part[part["product_id"].isin(draw(part, category, share))] for part in (train, fit))
    return trained, selecting


def draw(images: pd.DataFrame, category: pd.Series, share: float) -> set[str]:
    """The products of a share of every category, at least one of each: the first by a fixed hash.

    Args:
        images: with their product_id.
        category: by product_id.
        share: 0 to 1; counts are rounded half up.
    """
    products = np.unique(_ids(images).astype(str))
    drawn = pd.DataFrame({
        "product": products,
        "category": category.reindex(products).to_numpy(),
        # another order than the one that splits the products: there, training is what comes last
        "key": [order_key(f"finetune {product}") for product in products],
    })  # fmt: skip
    drawn = drawn.sort_values(["key", "product"])
    size = drawn.groupby("category")["product"].transform("size")
    wanted = np.maximum(np.floor(share * size + 0.5), 1)
    return set(drawn["product"][drawn.groupby("category").cumcount() < wanted])


def _reader(
    images: pd.DataFrame, records: Artifact, size: int, memory: int
) -> Callable[[np.ndarray, int], Iterator[np.ndarray]]:
    """Reads the pixels of these images by their numbers, as `Photos` takes them.

    They are decoded once where they fit into `memory` bytes, else each time.
    """

    def decoded(numbers: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        return read_pixels(read_pieces(records.path, images.iloc[numbers]), size, batch)

    if len(images) * size * size * 3 > memory:
        return decoded
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for number, some in enumerate(decoded(np.arange(len(images)), BATCH)):
        part = pixels[number * BATCH : (number + 1) * BATCH]
        part[:] = some[: len(part)]

    def kept(numbers: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), batch):
            yield pixels[numbers[start : start + batch]]

    return kept


def _with_bottlenecks(
    images: pd.DataFrame, records: Artifact, backbone: Backbone, store: AnyPath, config: Config
) -> Part:
    """The images with the bottlenecks of the untuned backbone."""
    digests = Digests(digests_of(pa.chunked_array([pa.array(images["image_digest"], pa.string())])))
    bottleneck_store = Store(store / backbone.fingerprint)
    rows = rows_of(
        bottleneck_store,
        (WHOLE,),
        False,
        digests,
        lambda rows: read_pieces(records.path, images.iloc[rows]),
        lambda: backbone,
        config.extract,
    )
    return Part(_ids(images), digests.values, rows)


def _ids(images: pd.DataFrame) -> np.ndarray:
    """(images,) str, product_id."""
    return images["product_id"].to_numpy(dtype=object)
