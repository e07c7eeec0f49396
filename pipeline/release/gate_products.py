"""The products of the gate: test products of both weeks, and what two bundles decide about them.

    runs/<run>/gate/  products.parquet  manifest.json
    runs/<run>/speed.json    seconds of each head for a product, measured when gate/ was made

    products.parquet    product_id, category, path, department: the true ones; week: both, new, gone;
                        group: the same for products that share a photo; weight, where the sources have any;
                        before_ and after_ confidence, correct, accepted, level, node_correct: what the
                        release in service and the candidate decide, see models/decisions/gate.py

this week's records          ─► measured products ─┬─► both, new ─┐
records of the release's run ─► measured products ─┴─► gone       ├─► left out: those that one was trained on
splits.parquet of the release, products.parquet of the run ───────┘

Where the records of the release's run are gone, its bundle's measured.parquet and the store take their place.

A product in both weeks has this week's photos and category. So a catalogue that has lost half of its
categories loses: the release in service still knows those that are gone. Where the tree has changed,
categories of before count as what they are now, in labels and in what the release in service decides, which
accepts nothing into one that was split, or removed by a mapping. A product of such a category has no true
category any more and is left out.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, find_artifact, open_artifact
from features.storage.paths import local, write_whole
from features.storage.store import Digests, digest_array, digests_of, hex_of
from models.decisions.bundle import Bundle
from models.decisions.categorizer import ACCEPTED, PARENT
from models.decisions.gate import Decided
from models.decisions.predictions import product_bounds
from models.decisions.releases import SPLITS, runs_named
from models.decisions.validation_split import duplicate_groups, first_of_product
from models.taxonomy import read_taxonomy
from pipeline.job.catalogue import TrueCategories, categories_of, divide
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import EvaluationSummary, GateSummary, RecordsSummary
from pipeline.job.tree import changes_since, is_explained, mapping_of
from pipeline.release.in_service import part_of
from pipeline.train.evaluated import Evaluated, evaluate_part

VERSION = 1
TRAIN, VAL, TEST = "train", "val", "test"  # parts of the split
BOTH, NEW, GONE = "both", "new", "gone"
GONE_RECORDS = "the records of its run are gone"
MEASURED = "measured.parquet"  # of a bundle
PRODUCTS, SPEED = "products.parquet", "speed.json"
COLUMNS = ("confidence", "correct", "accepted", "level", "node_correct")
TIMED = 2000  # products that the speed is measured on


def gate_products(run: Run, candidate: Bundle, current: Bundle, in_service: Artifact) -> Artifact:
    """Decides about the test products of both weeks with both bundles.

    Args:
        run: of the candidate.
        candidate: the run's bundle.
        current: the release in service.
        in_service: what it decides about this week's measured products, of `evaluate_in_service`.
    """
    records, evaluation = run.records(), run.artifact("evaluation", "evaluate")
    release = open_artifact(run.releases / current.path.name, "bundle")
    share, on = run.config.calibration.fit_share, EvaluationSummary.of(evaluation).graded_on
    old = _records_of(run, release)
    tree = _Tree.between(release, records)

    def make(work: Path) -> Mapping[str, object]:
        week, known = _this_week(records, evaluation, in_service, share, tree), _splits_of(current)
        before = _before(release, old, share)
        both = _with_gone(week, before, run, candidate, current, tree)
        if before is None:  # what its measured products were, by their part alone
            measured_before = known[known["split"] == (TEST if on == "test" else VAL)]["product_id"]
        else:
            measured_before = pd.Series(before.images.product_id).drop_duplicates()
        rows, images = both.products, both.images
        if "weight" in rows:
            rows["weight"] = rows["weight"].fillna(0.0)
        products = rows.sort_values("product_id", ignore_index=True)
        ids = products["product_id"]
        lost_ids = measured_before[~measured_before.isin(ids)]
        products["week"] = np.where(ids.isin(measured_before), products["week"], NEW)
        trained = _trained_on(records, known, products, on)
        photo = _photo_trained_on(images, ids, records, old)
        products["group"] = _groups(images, ids)
        kept = products[~trained & ~photo]
        pq.write_table(pa.Table.from_pandas(kept, preserve_index=False), work / PRODUCTS)
        weeks = kept["week"].value_counts()
        _write_speed(run, candidate, current, week.images, records)
        return GateSummary(
            release=current.path.name,
            measured_on=on,
            products=len(kept),
            **{name: int(weeks.get(name, 0)) for name in (BOTH, NEW, GONE)},
            unmeasured=len(lost_ids) if both.missing else 0,
            unlabelled=both.unlabelled,
            trained_on=int(trained.sum()),
            photo_trained_on=int((photo & ~trained).sum()),
            missing=both.missing,
        ).to_dict()

    made_from = {
        "records": records.digest,
        "records_before": old.digest if old else "",
        "evaluation": evaluation.digest,
        "in_service": in_service.digest,
        "candidate": candidate.digest,
        "release": current.digest,
        "fit_share": share,
    }

    def usable(artifact: Artifact) -> bool:  # what could not be read may be there again
        return GateSummary.of(artifact).missing is None

    return stage(
        run.path / "gate", kind="gate", version=VERSION, made_from=made_from, make=make, usable=usable
    )


def read_products(gate: Artifact) -> pd.DataFrame:
    """The table of the products."""
    return pd.read_parquet(gate.file(PRODUCTS))


def decided(products: pd.DataFrame, side: str) -> Decided:
    """What a side, "before" or "after", decides about the products."""
    return Decided(*(products[f"{side}_{name}"].to_numpy() for name in COLUMNS))


def write_measured(records: Artifact, share: float, work: Path) -> None:
    """Writes measured.parquet of a bundle: product_id, category and image_digest of the measured images.

    By it a later week compares on them while the store has their bottlenecks, also when the records have
    been replaced, as those of a run that is repeated every day of its week are.
    """
    images = _measured_images(records, share)
    category = categories_of(records).reindex(images.product_id).to_numpy()
    columns = {
        "product_id": pa.array(images.product_id, pa.string()),
        "category": pa.array(category, pa.string()),
        "image_digest": digest_array(images.digest),
    }
    pq.write_table(pa.table(columns), work / MEASURED)


@dataclass(frozen=True)
class _Before:
    """The measured products of the release in service."""

    images: "_Images"
    true: TrueCategories
    records: Artifact | None  # None: they are gone


def _before(release: Artifact, old: Artifact | None, share: float) -> _Before | None:
    """By the records of the release's run, or by what its bundle says; None where neither is there."""
    if old:
        return _Before(_measured_images(old, share), TrueCategories.of(old), old)
    if MEASURED not in release.files:
        return None
    table = pq.read_table(release.file(MEASURED))
    ids = table["product_id"].to_numpy().astype(object)
    images = _Images(ids, digests_of(table["image_digest"]), np.full(len(ids), -1))
    category = pd.Series(table["category"].to_numpy(), index=ids)
    tree = read_taxonomy(release.file("taxonomy.csv"))
    return _Before(images, TrueCategories(category[~category.index.duplicated()], (tree,)), None)


def _records_of(run: Run, release: Artifact) -> Artifact | None:
    """The records that a release was made from, where they are still there."""
    name, wanted, own = release.path.name, release.made_from.get("records"), run.records()
    if own.digest == wanted:
        return own
    for folder in runs_named(name):
        found = find_artifact(run.workspace / "runs" / folder / "records")
        if found and found.digest == wanted:
            return found
    return None


@dataclass(frozen=True)
class _Tree:
    """What became of the categories of the release in service."""

    now: Mapping[str, str]  # of the changed ones, where they became one: today's
    unknown: frozenset[str]  # of which nobody knows what they are now

    @classmethod
    def between(cls, release: Artifact, records: Artifact) -> "_Tree":
        step, changes = mapping_of(records), changes_since(release, records).changes
        now = {one.category: one.target for one in changes if one.target not in (None, one.category)}
        lost = {one.category for one in changes if one.target is None and is_explained(one, step)}
        return cls({old: str(new) for old, new in now.items()}, frozenset(lost))

    def carried(self, category: pd.Series) -> pd.Series:
        """Categories of before as they are called now."""
        return category.map(lambda name: self.now.get(name, name), na_action="ignore")


# This week's products


@dataclass(frozen=True)
class _Images:
    """n images of products, those of a product together, each once in its product."""

    product_id: np.ndarray  # (n,) str
    digest: np.ndarray  # (n, 32) uint8
    record: np.ndarray  # (n,) int, row in images.parquet

    def only(self, chosen: np.ndarray) -> "_Images":
        return _Images(self.product_id[chosen], self.digest[chosen], self.record[chosen])

    def and_also(self, other: "_Images") -> "_Images":
        """These and those of other records; `record` then means nothing."""
        return _Images(
            np.concatenate([self.product_id, other.product_id]),
            np.concatenate([self.digest, other.digest]),
            np.concatenate([self.record, other.record]),
        )


@dataclass(frozen=True)
class _Week:
    products: pd.DataFrame  # as products.parquet, without `group`
    images: _Images


def _measured_images(records: Artifact, share: float) -> _Images:
    """The images that measure, as `measured_part` has them: of test; where there are none, of CERT."""
    part = TEST if RecordsSummary.of(records).records[TEST] else VAL
    file = records.file("images.parquet")
    table = pq.read_table(file, columns=["product_id", "image_index", "split"], read_dictionary=["split"])
    record = np.flatnonzero(pc.equal(table["split"], part).to_numpy(zero_copy_only=False))
    table = table.take(pa.array(record))
    digest = digests_of(
        pq.read_table(file, columns=["image_digest"], filters=[("split", "==", part)])["image_digest"]
    )
    keys = [("product_id", "ascending"), ("image_index", "ascending")]
    order = pc.sort_indices(table, sort_keys=keys).to_numpy()
    product_id = table["product_id"].to_numpy()[order].astype(object)
    images = _Images(product_id, digest[order], record[order])
    images = images.only(first_of_product(pd.factorize(product_id)[0], images.digest))
    if part == VAL:
        images = images.only(divide(images.product_id, hex_of(images.digest), share).cert)
    return images


def _this_week(
    records: Artifact, evaluation: Artifact, in_service: Artifact, share: float, tree: _Tree
) -> _Week:
    """The measured products of the run, with what was decided about them."""
    names = ["product_id", "true_category", "true_path", "weight"]
    truth = pd.read_parquet(evaluation.file("measured.parquet"), columns=names)
    true = TrueCategories.of(records)
    products = _described(truth["product_id"].to_numpy(), true).assign(week=BOTH)
    for side, artifact in (("before", in_service), ("after", evaluation)):
        products = products.join(_decisions(artifact, side), on="product_id")
    products = _as_now(products, tree)
    images = _measured_images(records, share)
    if not np.array_equal(np.unique(images.product_id), products["product_id"].sort_values()):
        raise ShelfmarkError(
            f"{evaluation.path}: about other products than {records.path} has; expected the same ones; "
            "run `shelfmark evaluate` first"
        )
    return _Week(products, images)


def _described(product_id: np.ndarray, true: TrueCategories) -> pd.DataFrame:
    """product_id, category, path, department, and weight where there is one."""
    category = true.category.reindex(product_id).to_numpy()
    department = np.array(category, dtype=object)
    for tree in true.trees:
        index = tree.index(category)
        department[index >= 0] = tree.names[index[index >= 0], 0]
    products = pd.DataFrame(
        {
            "product_id": product_id,
            "category": category,
            "path": true.paths(product_id),
            "department": department,
        }
    )
    weight = true.weights(product_id)
    return products if weight is None else products.assign(weight=weight)


def _decisions(artifact: Artifact, side: str) -> pd.DataFrame:
    """COLUMNS by product_id, of evaluation/ or in_service/; their names begin with the side."""
    names = ["product_id", "category", "confidence", "status", "node_level"]
    rows = pd.read_parquet(artifact.file("decisions.parquet"), columns=names).set_index("product_id")
    measured = pd.read_parquet(
        artifact.file("measured.parquet"), columns=["product_id", "correct", "node_correct"]
    ).set_index("product_id")
    found = {
        "confidence": rows["confidence"],
        "correct": measured["correct"],
        "accepted": rows["status"] == ACCEPTED,
        "level": rows["node_level"].where(rows["status"] == PARENT).fillna(0).astype("int64"),
        "node_correct": measured["node_correct"].fillna(False).astype(bool),
    }
    decided = pd.DataFrame({f"{side}_{name}": found[name] for name in COLUMNS})
    return decided.assign(**{f"{side}_category": rows["category"]})


def _as_now(products: pd.DataFrame, tree: _Tree) -> pd.DataFrame:
    """What the release in service decides, carried over to the tree of now.

    It is correct, too, where its category is called the true one now. Where its category was split, or
    removed by a mapping, a person decides, as after `shelfmark taxonomy migrate`.
    """
    unknown = products["before_category"].isin(tree.unknown)
    products["before_accepted"] &= ~unknown
    products.loc[unknown, "before_confidence"] = 0.0
    if tree.now:
        correct = tree.carried(products["before_category"]) == products["category"]
        products["before_correct"] |= correct
        products["before_node_correct"] |= correct & products["before_accepted"]
    return products.drop(columns=["before_category", "after_category"])


# Those that are gone


@dataclass(frozen=True)
class _BothWeeks:
    """The products of both weeks."""

    products: pd.DataFrame  # as products.parquet, without `group`
    images: _Images
    unlabelled: int  # gone products left out: they have no true category any more
    missing: str | None  # why the products that are gone are not there


def _with_gone(
    week: _Week, before: _Before | None, run: Run, candidate: Bundle, current: Bundle, tree: _Tree
) -> _BothWeeks:
    """This week's products, and those that are gone since the week before, with the decisions about them."""
    if before is None:
        return _BothWeeks(week.products, week.images, 0, GONE_RECORDS)
    records, unlabelled = run.records(), 0
    there = pd.Series(before.images.product_id).isin(week.products["product_id"])
    gone = before.images.only(~there.to_numpy())
    try:
        gone, unlabelled = _with_category(gone, records, before, tree)
        lost = _gone(run, records, before, gone, candidate, current, tree)
    except ShelfmarkError as error:
        log.warning("gate: products of %s are left out: %s", current.path.name, error)
        missing = "the records of its run cannot be read" if before.records else GONE_RECORDS
        return _BothWeeks(week.products, week.images, unlabelled, missing)
    return _BothWeeks(pd.concat([week.products, lost]), week.images.and_also(gone), unlabelled, None)


def _with_category(images: _Images, records: Artifact, before: _Before, tree: _Tree) -> tuple[_Images, int]:
    """The images of products whose true category is known, and how many products have none any more."""
    ids = pd.Series(pd.unique(images.product_id))
    there = categories_of(records).reindex(ids).notna().to_numpy()
    unknown = before.true.category.reindex(ids).isin(tree.unknown).to_numpy() & ~there
    return images.only(~pd.Series(images.product_id).isin(ids[unknown]).to_numpy()), int(unknown.sum())


def _gone(
    run: Run,
    records: Artifact,
    before: _Before,
    gone: _Images,
    candidate: Bundle,
    current: Bundle,
    tree: _Tree,
) -> pd.DataFrame:
    """The measured products of the release's week that this week does not measure."""
    true = _true_before(records, before.true, gone.product_id, tree)
    products = _described(pd.unique(gone.product_id), true).assign(week=GONE)
    if not len(products):
        return products
    digests = Digests(gone.digest)
    for side, bundle in (("before", current), ("after", candidate)):
        part = part_of(bundle, gone.product_id, digests, gone.record, before.records, run)
        found = evaluate_part(bundle.categorizer, part, true, set())
        category = bundle.categorizer.predictor.taxonomy.categories[found.predictions.top[:, 0]]
        products = products.assign(**_columns(found, side), **{f"{side}_category": category})
    return _as_now(products, tree)


def _columns(evaluated: Evaluated, side: str) -> dict[str, np.ndarray]:
    found = {
        "confidence": evaluated.confidence,
        "correct": evaluated.correct,
        "accepted": evaluated.accepted,
        "level": np.where(evaluated.accepted, 0, evaluated.stop).astype(np.int64),
        "node_correct": evaluated.node_correct,
    }
    return {f"{side}_{name}": found[name] for name in COLUMNS}


def _true_before(
    records: Artifact, before: TrueCategories, product_id: np.ndarray, tree: _Tree
) -> TrueCategories:
    """The categories of products of earlier records: this week's where they still have one."""
    now, ids = TrueCategories.of(records), pd.unique(product_id)
    category = now.category.reindex(ids).fillna(tree.carried(before.category.reindex(ids)))
    known = np.concatenate([one.categories for one in now.trees])
    others = [one.only(~np.isin(one.categories, known)) for one in before.trees]
    trees = (*now.trees, *(one for one in others if len(one.categories)))
    return TrueCategories(category, trees, before.weight)


# Speed


def _write_speed(run: Run, candidate: Bundle, current: Bundle, images: _Images, records: Artifact) -> None:
    """Writes speed.json: it differs from run to run, so it is part of no artifact, and decides nothing."""
    some = images.only(pd.Series(images.product_id).isin(pd.unique(images.product_id)[:TIMED]).to_numpy())
    if len(some.product_id):
        after, before = (_seconds(bundle, some, records, run) for bundle in (candidate, current))
        values = {"seconds_per_product": after, "before": before, "ratio": after / before}
        write_whole(run.path / SPEED, json.dumps(values, indent=1).encode())


def _seconds(bundle: Bundle, images: _Images, records: Artifact, run: Run) -> float:
    """Seconds of the head and all after it, for a product whose bottlenecks are in memory; the best of 3."""
    part = part_of(bundle, images.product_id, Digests(images.digest), images.record, records, run)
    rows, bounds, taken = part.rows[slice(None)], product_bounds(part.product_id), []
    for _ in range(3):
        started = time.perf_counter()
        bundle.categorizer.level_confidences(bundle.categorizer.predict_all(rows, bounds))
        taken.append(time.perf_counter() - started)
    return min(taken) / (len(bounds) - 1)


# Which count


def _splits_of(bundle: Bundle) -> pd.DataFrame:
    """product_id and split of the products that a bundle was made from."""
    return pd.read_parquet(local(bundle.path / SPLITS))


def _trained_on(records: Artifact, known: pd.DataFrame, products: pd.DataFrame, on: str) -> np.ndarray:
    """(n,) bool: in training or validation of the candidate or of the release in service.

    The measured products themselves are in validation where there is no test part.
    """
    ids = products["product_id"]
    before = [TRAIN, VAL] if on == "test" else [TRAIN]
    there = known["split"].isin(before)
    trained = (ids.isin(known["product_id"][there]) & (products["week"] != GONE)).to_numpy()
    file, gone = records.file("products.parquet"), pa.array(ids[products["week"] == GONE], pa.string())
    if len(gone):
        table = pq.read_table(file, columns=["product_id", "split"])
        now = table.filter(pc.is_in(table["product_id"], value_set=gone)).to_pandas()
        used = now["product_id"][now["split"].isin([TRAIN, VAL])]
        trained = trained | ids.isin(used).to_numpy()
    return trained


def _photo_trained_on(images: _Images, ids: pd.Series, records: Artifact, old: Artifact | None) -> np.ndarray:
    """(n,) bool: one of the two alone was trained on a photo of the product.

    Where the records of the release in service are gone, it is not known.
    """
    if old is None or old.digest == records.digest:
        return np.zeros(len(ids), bool)
    digests = Digests(images.digest)
    seen = [pd.Series(_in_training(digests, one)).groupby(images.product_id).any() for one in (records, old)]
    differs: np.ndarray = (seen[0] != seen[1]).reindex(ids).to_numpy()
    return differs


def _in_training(digests: Digests, records: Artifact) -> np.ndarray:
    """(n,) bool: which images are in the training part of the records."""
    table = pq.read_table(
        records.file("images.parquet"), columns=["image_digest"], filters=[("split", "==", TRAIN)]
    )
    found = np.zeros(len(digests), bool)
    found[digests.matches(digests_of(table["image_digest"]))[0]] = True
    return found


def _groups(images: _Images, ids: pd.Series) -> np.ndarray:
    """(n,) str, the group of each product: the same for those that share a photo."""
    group = pd.Series(duplicate_groups(images.product_id, hex_of(images.digest)))
    by_product: np.ndarray = group.groupby(images.product_id).first().reindex(ids).to_numpy()
    return by_product
