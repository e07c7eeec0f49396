"""Suspects: products whose given category is probably wrong, and how many such labels there are.

    val, test products ─ the run's head ────────┐
    train products ─ heads of K folds ──────────┼─► suspects/  suspects.parquet  manifest.json
    images shared by products of two categories ┘              the most probably wrong label first

    suspects.parquet   product_id, category, category_path (given), proposed, proposed_path,
                       confidence (that the proposed one is correct), label_wrong (that the given one is not),
                       reason ("prediction", "identical image", "prediction, identical image"),
                       part (train, val, test), image_digest (the photo to show); and, where labels were
                       corrected, corrected (bool: the given one is a correction)

As many labels are listed for their predictions as are estimated to be wrong, the most doubtful ones; for an
identical image all that have no majority of its products.
Training products are examined only with suspects.folds, because their heads take as long as training does.
Products of categories that the head never learnt can only be listed for an identical image.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.product import PARTS
from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer, Predictor
from models.decisions.label_errors import (
    LabelEvidence,
    NoiseEstimate,
    doubts,
    estimate_noise,
    label_evidence,
)
from models.decisions.predictions import TOP, product_bounds
from models.heads.architectures import SET, Head
from pipeline.beam.run_units import write_table
from pipeline.job.catalogue import Part, TrueCategories, open_part
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, SuspectsSummary
from pipeline.train.evaluated import deciding
from pipeline.train.train import held_out_parts

VERSION = 1
SUSPECTS = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "category_path", "proposed", "proposed_path")]
    + [("confidence", pa.float64()), ("label_wrong", pa.float64())]
    + [(name, pa.string()) for name in ("reason", "part", "image_digest")]
)
CORRECTED = pa.field("corrected", pa.bool_())  # one more column, where records hold corrected labels
PREDICTION, IDENTICAL = "prediction", "identical image"
BOTH = f"{PREDICTION}, {IDENTICAL}"
FOUND = ["product_id", "category", "proposed", "confidence", "label_wrong", "label_probability", "reason"]
ROWS = 2**16  # of a table, in memory at a time


def suspects(run: Run) -> Artifact:
    """Lists the labels in doubt of a run."""
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds, out = run.thresholds(head), run.path / "suspects"
    return find_suspects(records, bottlenecks, head, thresholds, run.store, out, run.config)


def find_suspects(
    records: Artifact,
    bottlenecks: Artifact,
    head: Artifact,
    thresholds: Artifact,
    store: AnyPath,
    out: AnyPath,
    config: Config,
) -> Artifact:
    """Lists the labels in doubt, and warns where wrong labels alone make the promised precision unreachable.

    Args:
        records: of ingest.
        bottlenecks: of extract.
        head: of train.
        thresholds: of calibrate.
        store: directory of all stores.
        out: the artifact's directory.
        config: section [suspects]; with folds also what `train_head` takes.
    """

    def make(work: Path) -> Mapping[str, object]:
        categorizer = Categorizer(load_predictor(head.folder()), read_rules(thresholds.file(THRESHOLDS)))
        labels = _Labels(TrueCategories.of(records), categorizer.predictor)
        measured = _measured(bottlenecks, store, categorizer, labels)
        noise = estimate_noise(measured.evidence, measured.accepted)
        found = [_by_prediction(measured, noise, labels)]
        if config.suspects.folds:
            parts = held_out_parts(records, bottlenecks, store, config, work)
            trained = _trained(parts, categorizer, labels)
            found.append(_by_prediction(trained, estimate_noise(trained.evidence), labels))
        predicted, examined = pd.concat(found), sum(map(len, found))
        table = _merged(predicted, _by_image(records, labels))
        table = _described(table, records, labels)
        schema = SUSPECTS
        if "corrected.parquet" in records.files:
            ids = pa.array(table["product_id"], pa.string())
            marked = _rows_of(records.file("corrected.parquet"), ids, ["product_id"])["product_id"]
            table, schema = table.assign(corrected=table["product_id"].isin(marked)), schema.append(CORRECTED)
        write_table(pa.Table.from_pandas(table, schema, preserve_index=False), work / "suspects.parquet")
        target = categorizer.rules.certificate.target
        return SuspectsSummary(
            examined=examined,
            suspects=len(table),
            identical_images=int((table["reason"] != PREDICTION).sum()),
            noise=noise.share,
            noise_of_confident_joint=noise.confident_joint,
            noise_of_most_confident=noise.most_confident,
            target=target,
            target_above_ceiling=target > 1 - noise.share,
        ).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "thresholds": thresholds.digest,
        "settings": config.suspects.that_matter(),
        "training": config.of_the_head() if config.suspects.folds else "none",
    }
    artifact = stage(out, kind="suspects", version=VERSION, made_from=made_from, make=make)
    summary = SuspectsSummary.of(artifact)
    if summary.target_above_ceiling:
        log.warning(
            "suspects: about %.1f%% of the labels are wrong, so that no threshold can reach the promised "
            "%g%% as measured on these labels; correct labels (suspects.parquet lists the most doubtful "
            "ones), or lower calibration.precision",
            100 * summary.noise, 100 * summary.target,
        )  # fmt: skip
    return artifact


@dataclass(frozen=True)
class _Labels:
    """The given categories, as products have them and as the head knows them."""

    true: TrueCategories
    predictor: Predictor

    def of(self, product_id: np.ndarray) -> np.ndarray:
        """(n,) int, indices of the products' categories in the head; -1 where it did not learn it."""
        taxonomy = self.predictor.taxonomy
        given: np.ndarray = taxonomy.index(self.true.category.reindex(product_id).to_numpy())
        return given


@dataclass(frozen=True)
class _Examined:
    """Products whose labels are compared with predictions."""

    product_id: np.ndarray  # (n,) str
    evidence: LabelEvidence
    accepted: np.ndarray  # (n,) bool


def _measured(bottlenecks: Artifact, store: AnyPath, categorizer: Categorizer, labels: _Labels) -> _Examined:
    """The validation and test products, by the run's own head."""
    found = []
    for name in ("val", "test"):
        part, again = deciding(categorizer, _of_learnt(open_part(bottlenecks, store, name), labels))
        bounds = product_bounds(part.product_id)
        product_id = part.product_id[bounds[:-1]]
        predictions, rules = categorizer.predict(part.rows, bounds, again), categorizer.rules
        evidence = label_evidence(
            categorizer.predictor, part.rows, bounds, labels.of(product_id), predictions,
            rules.temperature, rules.aggregation,
        )  # fmt: skip
        threshold = rules.certificate.threshold
        accepted = categorizer.confidence(predictions) >= (np.inf if threshold is None else threshold)
        found.append(_Examined(product_id, evidence, accepted))
    return _together(found)


def _trained(parts: Iterator[tuple[Part, Head]], categorizer: Categorizer, labels: _Labels) -> _Examined:
    """The training products, by heads that were not trained on them; nothing of them is accepted."""
    rules = categorizer.rules
    aggregation = "mean" if rules.aggregation == SET else rules.aggregation
    found = [_Examined(np.empty(0, object), _no_evidence(), np.empty(0, bool))]
    for part, head in parts:
        predictor = Predictor(head, labels.predictor.taxonomy, labels.predictor.sizes, "", "")
        bounds = product_bounds(part.product_id)
        product_id = part.product_id[bounds[:-1]]
        predictions = predictor.predict(part.rows, bounds, rules.temperature, aggregation)
        evidence = label_evidence(
            predictor, part.rows, bounds, labels.of(product_id), predictions, rules.temperature, aggregation
        )
        found.append(_Examined(product_id, evidence, np.zeros(len(product_id), bool)))
    return _together(found)


def _no_evidence() -> LabelEvidence:
    return LabelEvidence(
        np.empty(0, np.int64),
        np.empty(0, np.float32),
        np.empty((0, TOP), np.int32),
        np.empty((0, TOP), np.float32),
    )


def _of_learnt(part: Part, labels: _Labels) -> Part:
    """The images of products whose category the head has learnt."""
    return part.only(labels.of(part.product_id) >= 0)


def _together(found: list[_Examined]) -> _Examined:
    return _Examined(
        np.concatenate([one.product_id for one in found]),
        LabelEvidence.joined([one.evidence for one in found]),
        np.concatenate([one.accepted for one in found]),
    )


# The two reasons


def _by_prediction(examined: _Examined, noise: NoiseEstimate, labels: _Labels) -> pd.DataFrame:
    """Columns FOUND and listed, of all examined products.

    Listed are the most doubtful ones, as many as labels are estimated to be wrong.
    """
    names = labels.predictor.taxonomy.categories
    wrong, confidence = doubts(examined.evidence, noise.share)
    columns = [
        examined.product_id, labels.true.category.reindex(examined.product_id).to_numpy(),
        names[examined.evidence.top[:, 0]], confidence, wrong, examined.evidence.probability, PREDICTION,
    ]  # fmt: skip
    first = np.argsort(examined.evidence.probability, kind="stable")[: round(noise.share * len(wrong))]
    listed = np.zeros(len(wrong), bool)
    listed[first] = True
    table = pd.DataFrame(dict(zip(FOUND, columns, strict=True)))
    return table.assign(listed=listed & examined.evidence.disagrees)


def _by_image(records: Artifact, labels: _Labels) -> pd.DataFrame:
    """Columns FOUND and image_digest of the products that share an image with another category's products.

    At most one of the categories is correct. Left out are products whose category has the majority; of a
    product with several such images the surest one counts. Placeholders prove nothing.
    """
    columns = ["image_digest", "products", "categories", "placeholder"]
    found = [pd.DataFrame({"image_digest": [], "products": []}, dtype=object)]
    with pq.ParquetFile(records.file("duplicates.parquet")) as file:
        for batch in file.iter_batches(ROWS, columns=columns):
            several = pc.greater(pc.list_value_length(batch["categories"]), 1)
            chosen = pa.table(batch).filter(pc.and_not(several, batch["placeholder"]))
            found.append(chosen.select(columns[:2]).to_pandas().explode("products"))
    shared = pd.concat(found, ignore_index=True).rename(columns={"products": "product_id"})
    shared["category"] = labels.true.category.reindex(shared["product_id"]).to_numpy()
    table = outvoted(shared.dropna(subset=["category"]))
    table = table[table["label_wrong"] >= 0.5]
    table = table.sort_values(["confidence", "label_wrong", "image_digest"], ascending=[False, False, True])
    return table.drop_duplicates("product_id")[[*FOUND, "image_digest"]]


def outvoted(shared: pd.DataFrame) -> pd.DataFrame:
    """What the other products with the same image say about each product's category.

    Each product of an image has one vote. The label is wrong with the share of the votes against it; proposed
    is the other category with the most votes, of several the first by name, with its share as confidence.

    Args:
        shared: columns image_digest, product_id, category; images of one category alone are left out.

    Returns:
        Columns FOUND and image_digest.
    """
    votes = shared.groupby(["image_digest", "category"]).size().rename("votes").reset_index()
    votes = votes.sort_values(["image_digest", "votes", "category"], ascending=[True, False, True])
    votes["share"] = votes["votes"] / votes.groupby("image_digest")["votes"].transform("sum")
    pairs = shared.merge(votes.rename(columns={"category": "proposed"}), on="image_digest")
    own = pairs["category"] == pairs["proposed"]
    against = pairs[~own].drop_duplicates(["image_digest", "product_id"])  # the one with the most votes
    of_label = pairs.loc[own, ["image_digest", "product_id", "share"]]
    against = against.merge(of_label, on=["image_digest", "product_id"], suffixes=("", "_of_label"))
    against = against.rename(columns={"share": "confidence"})
    against["label_wrong"] = 1 - against.pop("share_of_label")
    return against.assign(label_probability=np.nan, reason=IDENTICAL)


def _merged(predicted: pd.DataFrame, shared: pd.DataFrame) -> pd.DataFrame:
    """One row of each product in doubt.

    Where a prediction agrees with the label, the label of the other product is the doubtful one. Else the
    image decides how sure it is: the head may have been trained on the same image with the other category.
    """
    agreeing = predicted.loc[predicted["label_wrong"] == 0, "product_id"]
    shared = shared[~shared["product_id"].isin(agreeing)]
    proposed = predicted.set_index("product_id")["proposed"].reindex(shared["product_id"]).to_numpy()
    shared = shared.assign(reason=np.where(proposed == shared["proposed"], BOTH, IDENTICAL))
    alone = predicted["listed"] & ~predicted["product_id"].isin(shared["product_id"])
    return pd.concat([predicted[alone], shared], ignore_index=True)


# The table


def _described(table: pd.DataFrame, records: Artifact, labels: _Labels) -> pd.DataFrame:
    """The columns of SUSPECTS, the most probably wrong label first; of the products in train, val or test."""
    ids = pa.array(table["product_id"], pa.string())
    part = _rows_of(records.file("products.parquet"), ids, ["product_id", "split"])
    part_of = part[part["split"].isin(PARTS)].set_index("product_id")["split"]
    table = table[table["product_id"].isin(part_of.index)]
    photos = _rows_of(records.file("images.parquet"), ids, ["product_id", "image_index", "image_digest"])
    photos = photos.sort_values(["product_id", "image_index"]).drop_duplicates("product_id")
    first = photos.set_index("product_id")["image_digest"].reindex(table["product_id"]).to_numpy()
    table = table.assign(
        category_path=labels.true.labels(table["category"].to_numpy(dtype=object)),
        proposed_path=labels.true.labels(table["proposed"].to_numpy(dtype=object)),
        part=part_of.reindex(table["product_id"]).to_numpy(),
        image_digest=table["image_digest"].where(table["image_digest"].notna(), first),
    )
    order = ["label_wrong", "label_probability", "product_id"]  # many are wrong with the estimate 1
    return table.sort_values(order, ascending=[False, True, True])[list(SUSPECTS.names)]


def _rows_of(file: Path, product_id: pa.Array, columns: list[str]) -> pd.DataFrame:
    """The rows of these products; a row group of the file in memory at a time."""
    with pq.ParquetFile(file) as opened:
        found = [
            pa.table(batch).filter(pc.is_in(batch["product_id"], product_id))
            for batch in opened.iter_batches(ROWS, columns=columns)
        ]
        nothing = opened.schema_arrow.empty_table().select(columns)
    rows: pd.DataFrame = pa.concat_tables([nothing, *found]).to_pandas()
    return rows
