"""Categorizers of every kind over given bottlenecks: drawn heads, fitted confidences, some thresholds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from conftest import drawn_backbone, pixels_of

from features.engines.backbones import Backbone, KerasBackbone, load_backbone
from features.storage.artifact import Artifact, begin, digest_of, file_digest, partial_of, seal
from features.views import combined, parse_view
from models.decisions import confidence
from models.decisions.bundle import HEAD_FILES, THRESHOLDS
from models.decisions.cascade import certainty, fit_cascade, rows_that_decide
from models.decisions.categorizer import Categorizer, DecisionRules, LevelRule, Predictor
from models.decisions.confidence import fit_confidence
from models.decisions.releases import SPLITS
from models.decisions.thresholds import Certificate
from models.heads.architectures import FLAT, SET, SET_FILES, STANDARD, Head, HeadShape, build_head
from models.taxonomy import Taxonomy, read_taxonomy, write_taxonomy

PATHS = {  # category → its names; hat is a shallow leaf
    "apple": "food fruit apple", "beer": "food drink beer", "coat": "wear warm coat", "fig": "food fruit fig",
    "hat": "wear hat hat", "juice": "food drink juice", "pear": "food fruit pear", "scarf": "wear warm scarf",
    "soap": "home bath soap", "sponge": "home bath sponge",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a drawn categorizer is like."""

    head: str = FLAT
    aggregation: str = "mean"
    confidence: str = "logistic"  # or boosting, probability
    hierarchical: bool = False
    standardized: bool = False
    views: tuple[str, ...] = ("whole",)
    averaged: bool = False
    cascade: bool = False  # half of the products are looked at again

    @property
    def rows_of_image(self) -> int:
        """Rows that the head reads of each image."""
        return 1 if self.averaged else len(self.views)


MIRRORED = ("whole", "flip")

KINDS = {
    "flat": Kind(),
    "hierarchical, geometric mean": Kind(aggregation="geometric", hierarchical=True),
    "separate, maximum, p1": Kind("separate", "max", "probability"),
    "multitask, trees": Kind("multitask", confidence="boosting"),
    "taxonnet": Kind("taxonnet"),
    "set, mirrored": Kind(aggregation=SET, views=MIRRORED),
    "standardized, mirrored": Kind(standardized=True, views=MIRRORED),
    "averaged": Kind(views=("whole", "48", "48-center-flip"), averaged=True),
    "cascade, mirrored": Kind(views=MIRRORED, cascade=True),
    "cascade, hierarchical, geometric mean": Kind(
        aggregation="geometric", hierarchical=True, views=("whole", "48", "flip"), cascade=True
    ),
    "cascade, set": Kind(aggregation=SET, views=MIRRORED, cascade=True),
}


def drawn_tree() -> Taxonomy:
    """Ten categories in three levels."""
    names = np.array([path.split() for path in PATHS.values()], object)
    return Taxonomy(np.array(list(PATHS), object), names, np.array([2 if c == "hat" else 3 for c in PATHS]))


def draw_categorizer(
    kind: Kind, rows: np.ndarray, bounds: np.ndarray, fingerprint: str = "drawn", release: str = "drawn"
) -> Categorizer:
    """A categorizer for bottlenecks like these: (n, d) of products, (p + 1,) bounds; p is 40 at least."""
    tree, rng = drawn_tree(), np.random.default_rng(3)
    scale = float(1 / np.sqrt(np.mean(rows.astype(np.float64) ** 2)))
    shape = HeadShape(
        rows.shape[1], len(tree.categories), (24, 16), 0.5, scale, fingerprint,
        kind=kind.head, parents=tree.parents, selector=8, standardized=kind.standardized,
        hierarchical=kind.hierarchical, views=kind.views, averaged=kind.averaged,
    )  # fmt: skip
    head = _head(shape, rows)
    one = replace(shape, kind=SET, images=3, parents=(), hierarchical=False)
    set_head = _head(one, rows) if kind.aggregation == SET else None
    sizes = rng.integers(20, 90, len(tree.categories)).astype(np.int32)
    predictor = Predictor(head, tree, sizes, "drawn", "drawn", set_head)
    cascade = None
    if kind.cascade:
        certain = certainty(head, rows[:: len(kind.views)], bounds // len(kind.views))
        cascade = fit_cascade(certain, 0.5)
        chosen, bounds = rows_that_decide(bounds, certain < cascade.limit, len(kind.views))
        rows = rows[chosen]
    predictions = predictor.predict(rows, bounds, 0.8, kind.aggregation)
    often = np.bincount(predictions.top[:, 0]).argsort()
    wanted = "boosting" if kind.confidence == "boosting" else "logistic"
    found = []
    for level in range(1, tree.levels + 1):
        evidence = predictor.evidence(predictions, level)
        correct = rng.random(len(evidence.p1)) < 0.2 + 0.7 * evidence.p1
        few = 10 if kind.confidence == "probability" else len(correct)
        with mock.patch.object(confidence, "LEAST_BOOSTED", 30):
            model = fit_confidence(evidence.only(slice(few)), correct[:few], wanted)
        sure = np.unique(model.confidence(evidence))
        middle = int(len(sure) * (0.7 if level > 1 else 0.4))  # some stop at each level, some at none
        threshold = float(sure[middle - 1 : middle + 1].mean())
        found.append(LevelRule(model, Certificate(0.9, 0.1, 1000, 60, threshold=threshold)))
    rules = DecisionRules(
        model="drawn", labels="drawn", temperature=0.8, confidence=found[-1].confidence,
        certificate=found[-1].certificate, target=0.9, delta=0.1, fit={"products": 60},
        aggregation=kind.aggregation, cascade=cascade, levels={"level1": found[0], "level2": found[1]},
        withheld=(str(tree.categories[often[-2]]),),
    )  # fmt: skip
    return Categorizer(predictor, rules, release)


def _head(shape: HeadShape, rows: np.ndarray) -> Head:
    """A head whose logits are a few apart; `standard` has the statistics of the rows."""
    import keras

    keras.utils.set_random_seed(5)
    model, rng = build_head(shape), np.random.default_rng(5)
    for layer in model.layers:
        if layer.name == STANDARD:
            scaled = rows.astype(np.float32) * shape.scale
            layer.set_weights([scaled.mean(axis=0), scaled.var(axis=0)])
        elif isinstance(layer, keras.layers.Dense):
            kernel, bias = layer.get_weights()
            layer.set_weights([2 * kernel, rng.normal(0, 0.3, bias.shape)])
    return Head(shape, Head.of(shape, model).weights)  # like one from a file: `model` is not built yet


def draw_lenet(folder: Path, size: int) -> KerasBackbone:
    """LeNet-5 with drawn weights: quick to convert, and other numbers for other photos."""
    file = folder / "drawn.weights.h5"
    drawn_backbone(1, size, "lenet5").save_weights(file)
    found = load_backbone("lenet5", str(file), size)
    assert isinstance(found, KerasBackbone)
    return found


def rows_of(backbone: Backbone, jpegs: list[bytes], views: Sequence[str], averaged: bool) -> np.ndarray:
    """(rows, d) float16 of photos, a row for each view, or of their mean; without an engine."""
    size, found = backbone.image_size, []
    for view in map(parse_view, views):
        pixels = view.of_pixels(pixels_of(jpegs, view.resized(size)), size)
        found.append(backbone.for_view(view).bottlenecks(pixels).astype(np.float16))
    return combined(found, averaged)


def write_bundle(path: Path, backbone: Backbone, categorizer: Categorizer) -> Artifact:
    """A finished bundle of a drawn categorizer."""
    work = begin(partial_of(path), {"drawn": "here"})
    predictor = categorizer.predictor
    predictor.head.save(work)
    if predictor.set_head is not None:
        predictor.set_head.save(work)
    write_taxonomy(predictor.taxonomy, work / "taxonomy.csv")
    assert read_taxonomy(work / "taxonomy.csv").depth.tolist() == predictor.taxonomy.depth.tolist()
    np.save(work / "sizes.npy", predictor.sizes)
    names = [*HEAD_FILES, *(name for name in SET_FILES if (work / name).exists())]
    rules = replace(
        categorizer.rules,
        model=digest_of({name: file_digest(work / name) for name in names}),
        labels=file_digest(work / "taxonomy.csv"),
    )
    (work / THRESHOLDS).write_text(json.dumps(rules.to_dict()))
    backbone.save(work)
    pd.DataFrame({"product_id": ["p"], "split": ["train"]}).to_parquet(work / SPLITS, index=False)
    summary = {"independent": True, "weights": "random", "fingerprint": backbone.fingerprint}
    return seal(path, kind="bundle", version=1, made_from={"drawn": "here"}, summary=summary)
