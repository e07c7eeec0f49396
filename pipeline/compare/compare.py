"""Compare: every kind of classifier on the run's catalogue, as in table 4 of Li et al. (hal-01830894).

    comparison/  rows/<row>.json   what one row gave, written when it is done: a killed job goes on there
                 comparison.csv    the rows asked for; columns comparison.COLUMNS
                 comparison.json   the same, and what was measured on what
                 index.html        the same, for people; the paper's table below

It is no artifact: it tells seconds, which differ from time to time. A row says what it was made from, and is
made again when that has changed.

Training fits, FIT chooses (epoch, C, how a product's images become one, temperature, confidence, best row),
and the validation precision and the acceptance rate are measured on CERT, which has chosen nothing.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from features.engines.backbones import TUNED as FINE_TUNED
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import read_pieces
from features.storage.artifact import Artifact, digest_of
from features.storage.paths import Place, write_whole
from features.storage.store import Digests, Store, StoredRows
from models.decisions.categorizer import Predictor
from models.decisions.confidence import fit_confidence
from models.decisions.metrics import acceptance_curve, acceptance_rate_at, precision
from models.decisions.predictions import Predictions, product_bounds
from models.heads.architectures import FLAT, Head
from models.heads.baselines import SIDE, LinearSvm, choose_svm, hog_vectors, require_hog
from models.heads.training import Examples, fit_head
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.compare.classifiers import HOG, PAPER, ROWS, TUNED, Row, config_of, settings_of, wish
from pipeline.compare.summary import as_csv, best_of, merit, release_command, render
from pipeline.job.catalogue import Part, categories_of, divide, open_part, sizes_of, untrainable
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.train.calibrate import choose_aggregation
from pipeline.train.from_settings import labels_of, loss_of, recipe_of, shape_of

VERSION = 4
GRADED = 50_000  # training products at most on which the training precision is measured


@dataclass(frozen=True, eq=False)
class Shop:
    """The products of a comparison, as one backbone sees them."""

    taxonomy: Taxonomy
    category: pd.Series  # by product_id
    fingerprint: str
    learnt: Part
    fit: Part
    cert: Part

    def only(self, most: int, rng: np.random.Generator) -> "Shop":
        """With at most so many products in each part, drawn."""
        return replace(
            self, learnt=draw(self.learnt, most, rng), fit=draw(self.fit, most, rng),
            cert=draw(self.cert, most, rng),
        )  # fmt: skip

    def truth(self, part: Part) -> np.ndarray:
        """(images,) int, category of each image of a part."""
        return self.taxonomy.index(self.category.reindex(part.product_id).to_numpy())


def compare(run: Run, categories: int | None = None, only: Sequence[str] = ()) -> dict[str, Any]:
    """Compares classifiers on the run's bottlenecks; arguments and errors as for `compare_classifiers`."""
    records = run.records()
    bottlenecks = run.artifact("bottlenecks", "extract", records=records)
    out = run.path / "comparison"
    return compare_classifiers(
        records, bottlenecks, run.own_backbone(), run.store, out, run.config, categories, only
    )


def compare_classifiers(
    records: Artifact,
    bottlenecks: Artifact,
    tuned: Artifact | None,
    store: Place,
    out: Place,
    config: Config,
    categories: int | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains and evaluates what is not there yet, and writes the comparison.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        tuned: the fine-tuned backbone of the run, if there is one.
        store: directory of all stores.
        out: the comparison's directory.
        config: all settings; [head] of the level heads, and what all of them share.
        categories: a random draw of so many, from the seed; None: all.
        only: names of rows; none: all.

    Returns:
        What comparison.json holds.

    Raises:
        ShelfmarkError: a row that nobody knows, nothing to measure on, or scikit-image is missing.
    """
    taxonomy = read_taxonomy(records.file("taxonomy.csv"))
    notes: list[str] = []
    wanted = list(_wanted(only, taxonomy, _backbones(bottlenecks, tuned), notes))
    if any(row.features == HOG for row, _ in wanted):
        require_hog()
    whole = _open_shop(records, bottlenecks, store, config, categories)
    told, shops = [], _views(whole, bottlenecks, tuned, store, notes)
    for row, fine_tuned in wanted:
        if fine_tuned in shops:
            told.append(_row(row, fine_tuned, shops[fine_tuned], records, out, config, categories))
    if not told:
        raise ShelfmarkError(f"no row is left to compare: {'; '.join(notes)}; give other names to --only")
    best, head = best_of(told, config.calibration.precision)
    commands = release_command(head, records, config, store.parent, out.parent.name, tuned) if head else ""
    comparison = {
        "rows": told,
        "notes": notes,
        "categories": len(whole.taxonomy.categories),
        "drawn": categories is not None,
        "val_products": _count(whole.cert),
        "fit_products": _count(whole.fit),
        "target": config.calibration.precision,
        "recipe": config.head.recipe,
        "best": best,
        "commands": commands,
        "best_row": max(told, key=merit)["row"] if _count(whole.fit) else None,
    }
    write_whole(out / "comparison.json", json.dumps(comparison, indent=1).encode())
    write_whole(out / "comparison.csv", as_csv(told).encode())
    write_whole(out / "index.html", render(comparison, out.parent.name).encode())
    return comparison


# What is compared


def _backbones(bottlenecks: Artifact, tuned: Artifact | None) -> set[bool]:
    """Whether there are bottlenecks of a fine-tuned backbone, of one that is not, or of both."""
    return {False, True} if tuned else {bottlenecks.summary["weights"].startswith(FINE_TUNED)}


def _wanted(
    only: Sequence[str], taxonomy: Taxonomy, backbones: set[bool], notes: list[str]
) -> Iterator[tuple[Row, bool]]:
    names = [row.name + end for row in ROWS for end in ("", TUNED) if row.features != HOG or not end]
    for name in only:
        if name not in names:
            raise ShelfmarkError(f"--only {name}: no such row; expected some of {', '.join(names)}; mend it")
    if True not in backbones and (not only or any(name.endswith(TUNED) for name in only)):
        notes.append(
            "Rows on fine-tuned bottlenecks are left out: the run has no backbone/; `shelfmark finetune` "
            "and then `shelfmark extract` make what they need"
        )
    if False not in backbones:
        notes.append(
            "Rows on frozen bottlenecks are left out: the run's backbone is the fine-tuned one of the release"
        )
    if taxonomy.levels == 1:
        notes.append("The level heads are left out: the tree has one level, where they are the flat head")
    for fine_tuned in (False, True):
        for row in ROWS:
            named = not only or row.name + TUNED * fine_tuned in only
            levels = row.kind not in ("", FLAT)
            can = not fine_tuned if row.features == HOG else fine_tuned in backbones
            if named and can and not (levels and taxonomy.levels == 1):
                yield row, fine_tuned


def _open_shop(
    records: Artifact, bottlenecks: Artifact, store: Place, config: Config, categories: int | None
) -> Shop:
    taxonomy, category = read_taxonomy(records.file("taxonomy.csv")), categories_of(records)
    learnt, val = (open_part(bottlenecks, store, split).first_view() for split in ("train", "val"))
    learnt = learnt.without(untrainable(records, config))
    if categories is not None:
        taxonomy = _draw_categories(taxonomy, categories, config.seed)
        category = category[category.isin(taxonomy.categories)]
        learnt, val = (part.only(np.isin(part.product_id, category.index)) for part in (learnt, val))
    division = divide(val.product_id, val.image_digest, config.calibration.fit_share)
    fit, cert = val.only(division.fit), val.only(division.cert)
    shop = Shop(taxonomy, category, bottlenecks.summary["fingerprint"], learnt, fit, cert)
    if len(taxonomy.categories) < 2:
        raise ShelfmarkError(
            f"{records.path}: {len(taxonomy.categories)} category; expected two at least to tell apart; "
            "ingest a larger catalogue"
        )
    for part, purpose in ((shop.learnt, "learn from"), (shop.cert, "measure on")):
        if not len(part.product_id):
            raise ShelfmarkError(
                f"{records.path}: no products to {purpose}; expected some in train, and in the part of val "
                "that certifies; ingest a larger catalogue"
            )
    return shop


def _draw_categories(taxonomy: Taxonomy, count: int, seed: int) -> Taxonomy:
    everything = len(taxonomy.categories)
    if count > everything:
        raise ShelfmarkError(
            f"--categories {count}: the catalogue has {everything}; expected at most so many; mend it"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(everything, count, replace=False))
    return taxonomy.only(chosen)


def _views(
    shop: Shop, bottlenecks: Artifact, tuned: Artifact | None, store: Place, notes: list[str]
) -> dict[bool, Shop]:
    """The same products by whether the backbone is fine-tuned, where the store has all their images."""
    if tuned is None:  # there is one backbone; HOG, always a row that is not fine-tuned, asks none
        return {False: shop, True: shop}
    shops = {}
    fingerprints = {False: tuned.made_from["fingerprint"], True: tuned.summary["fingerprint"]}
    for fine_tuned, fingerprint in fingerprints.items():
        seen = [_seen(part, Store(store / fingerprint)) for part in (shop.learnt, shop.fit, shop.cert)]
        parts = [part for part in seen if part is not None]
        if len(parts) == len(seen):
            learnt, fit, cert = parts
            shops[fine_tuned] = replace(shop, fingerprint=fingerprint, learnt=learnt, fit=fit, cert=cert)
        else:
            what, where = ("fine-tuned", "") if fine_tuned else ("frozen", " in a run without backbone/")
            notes.append(
                f"Rows on {what} bottlenecks are left out: the store lacks images of the {what} backbone; "
                f"`shelfmark extract`{where} makes them"
            )
    return shops


def _seen(part: Part, shelf: Store) -> Part | None:
    places = shelf.find(Digests(part.digest))
    if (places.row < 0).any():
        return None
    return replace(part, rows=shelf.rows(places.names, places.shard, places.row))


# A row


def _row(
    row: Row,
    fine_tuned: bool,
    shop: Shop,
    records: Artifact,
    out: Place,
    config: Config,
    categories: int | None,
) -> dict[str, Any]:
    """What the row gave: as it was written, or measured now."""
    name = row.name + TUNED * fine_tuned
    own = config_of(row, config)
    made_from = digest_of(
        {
            "version": VERSION,
            "records": records.digest,
            "fingerprint": "" if row.features == HOG else shop.fingerprint,
            "head": own.of_the_head() if row.kind else [config.seed, config.train.placeholders],
            "baseline": None if row.kind else config.compare.model_dump(),
            "calibration": [config.calibration.fit_share, config.calibration.precision, wish(config)],
            "categories": categories,
        }
    )
    file = out / "rows" / f"{name}.json"
    if told := _made(file, made_from):
        log.info("comparison: %s: unchanged", name)
        return told
    log.info("comparison: %s", name)
    started = time.monotonic()
    shop = _shop_of(row, shop, records, config)
    speaker, parameters, chosen = _learn(row, shop, own)
    seconds = time.monotonic() - started
    paper = PAPER.get(name, (None, None))
    told = {
        "row": name,
        "features": row.features,
        "classifier": row.classifier,
        "fine_tuned": fine_tuned,
        "learnt_products": _count(shop.learnt),
        **measure(speaker, shop, config),
        "target_precision": config.calibration.precision,
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "paper_train": paper[0],
        "paper_val": paper[1],
        "settings": settings_of(row, own),
        "chosen": chosen,
    }
    write_whole(file, json.dumps(told | {"made_from": made_from}, indent=1).encode())
    return told


def _made(file: Place, made_from: str) -> dict[str, Any] | None:
    """The row as it was written, if it is whole and made from the same."""
    try:
        told: dict[str, Any] = json.loads(file.read_text())
        return told if told.pop("made_from") == made_from else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("comparison: %s: damaged, measured again", file)
        return None


def _shop_of(row: Row, shop: Shop, records: Artifact, config: Config) -> Shop:
    """What a row learns from and is measured on: baselines a drawn share of it, HOG its own features."""
    rng, settings = np.random.default_rng(config.seed), config.compare
    if row.features == HOG:
        shop = shop.only(settings.hog_products, rng)
        learnt, fit, cert = (_hog(part, records) for part in (shop.learnt, shop.fit, shop.cert))
        return replace(shop, learnt=learnt, fit=fit, cert=cert)
    return shop if row.kind else replace(shop, learnt=draw(shop.learnt, settings.svm_products, rng))


def _hog(part: Part, records: Artifact) -> Part:
    """The part with its HOG vectors for bottlenecks."""
    columns = ["image_digest", "file", "offset", "length"]
    images = pd.read_parquet(records.file("images.parquet"), columns=columns).drop_duplicates("image_digest")
    rows = images.set_index("image_digest").loc[part.image_digest]
    order = np.lexsort([rows["offset"], rows["file"]])  # as they stand on the disk
    pixels = read_pixels(read_pieces(records.path, rows.iloc[order]), SIDE, batch=32)
    vectors = hog_vectors(pixels, len(rows))
    return replace(part, rows=StoredRows([vectors], np.zeros(len(rows), np.int32), np.argsort(order)))


def draw(part: Part, most: int, rng: np.random.Generator) -> Part:
    """At most so many products of a part, with all their images."""
    bounds = product_bounds(part.product_id)
    count = len(bounds) - 1
    if count <= most:
        return part
    chosen = np.zeros(count, bool)
    chosen[rng.choice(count, most, replace=False)] = True
    return part.only(np.repeat(chosen, np.diff(bounds)))


def _learn(row: Row, shop: Shop, config: Config) -> tuple[Head | LinearSvm, int, dict[str, Any]]:
    """The trained classifier, its parameters, and what FIT chose."""
    if not row.kind:
        svm, penalty = choose_svm(
            shop.learnt.rows[:], shop.truth(shop.learnt), shop.fit.rows, shop.truth(shop.fit),
            len(shop.taxonomy.categories), config.seed,
        )  # fmt: skip
        return svm, svm.parameters, {"C": penalty}
    shape = shape_of(shop.learnt, shop.taxonomy, shop.fingerprint, config)
    labels = labels_of(shop.category, shop.taxonomy, shape)
    learnt, fit = (Examples(part.rows, labels(part.product_id)) for part in (shop.learnt, shop.fit))
    loss = loss_of(shop.taxonomy, config)
    head, history = fit_head(shape, learnt, fit if len(fit.labels) else None, recipe_of(config), loss)
    return head, head.model.count_params(), {"epochs": len(history["loss"])}


def measure(speaker: Any, shop: Shop, config: Config) -> dict[str, Any]:
    """Precision on training products, and with the acceptance rate at the promised precision on CERT and FIT.

    Confidence is made as `shelfmark calibrate` makes it: for a baseline, too, from decision values in the
    place of logits.
    """
    sizes = sizes_of(shop.learnt, shop.category, shop.taxonomy)
    asked = Predictor(speaker, shop.taxonomy, sizes, model="", labels="")
    bounds, truth = _products(shop, shop.fit)
    aggregation, temperature = choose_aggregation(asked, shop.fit.rows, bounds, truth, wish(config))

    def answers(part: Part) -> tuple[Predictions, np.ndarray]:
        bounds, truth = _products(shop, part)
        told = asked.predict(part.rows, bounds, temperature, aggregation)
        return told, told.top[:, 0] == truth

    sample = draw(shop.learnt, GRADED, np.random.default_rng(config.seed))
    (_, learnt), (of_fit, fit), (of_cert, cert) = (answers(part) for part in (sample, shop.fit, shop.cert))
    model = fit_confidence(of_fit.evidence(asked.sizes), fit)

    def accepted(answers: Predictions, right: np.ndarray) -> float:
        curve = acceptance_curve(model.confidence(answers.evidence(asked.sizes)), right)
        return acceptance_rate_at(curve, config.calibration.precision)[0]

    return {
        "train_precision": precision(learnt),
        "val_precision": precision(cert),
        "val_products": len(cert),
        "acceptance_rate_at_target": accepted(of_cert, cert),
        "fit_precision": precision(fit) if len(fit) else 0.0,
        "fit_products": len(fit),
        "fit_acceptance_rate_at_target": accepted(of_fit, fit) if len(fit) else 0.0,
    }


def _products(shop: Shop, part: Part) -> tuple[np.ndarray, np.ndarray]:
    bounds = product_bounds(part.product_id)
    return bounds, shop.truth(part)[bounds[:-1]]


def _count(part: Part) -> int:
    return len(product_bounds(part.product_id)) - 1
