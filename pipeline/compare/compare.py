"""Compare: classifiers of every kind on the run's catalogue, as in table 4 of Li et al. (hal-01830894).

    comparison/  rows/<row>.json   what one row gave, written when it is done: a killed job continues there
                 comparison.csv    the requested rows; columns results.COLUMNS
                 comparison.json   the same, and what was measured on what
                 index.html        the same, for people, with the paper's table; and backbones.py's

It is no artifact, because seconds differ each time. A row's file has the digest of what it was made from;
the row is made again when that changes.

Training fits. FIT chooses the epoch, C, how a product's images are aggregated, the temperature, the
confidence model and the best row. CERT, which chose nothing, gives validation precision and acceptance rate.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from features.engines.backbones import TUNED as FINE_TUNED
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import read_pieces
from features.storage.artifact import Artifact, digest_of
from features.storage.paths import AnyPath, write_whole
from features.storage.store import Shard, Store, StoredRows
from models.heads.architectures import FLAT
from models.heads.baselines import SIDE, choose_svm, hog_vectors, require_hog, trained_svms
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.compare.classifiers import (
    HOG,
    PAPER,
    VARIANTS,
    ClassifierSpec,
    Variant,
    config_of,
    settings_of,
    wanted_aggregation,
)
from pipeline.compare.data import (
    ComparisonData,
    ComparisonInputs,
    count_products,
    draw_products,
    open_data,
    stored,
)
from pipeline.compare.measuring import Trained, measure, train_head
from pipeline.compare.results import Comparison, RowResult
from pipeline.compare.summary import best_of, release_command, write_page
from pipeline.job.catalogue import Part
from pipeline.job.config import Config
from pipeline.job.progress import Progress, log
from pipeline.job.run import Run
from pipeline.job.summaries import BackboneSummary, BottlenecksSummary

VERSION = 4


def compare(run: Run, categories: int | None = None, only: Sequence[str] = ()) -> Comparison:
    """Compares classifiers on the run's bottlenecks; arguments and errors as for `compare_classifiers`."""
    records = run.records()
    bottlenecks = run.artifact("bottlenecks", "extract", records=records)
    out = run.path / "comparison"
    inputs = ComparisonInputs(
        records, bottlenecks, run.own_backbone(), run.store, out, run.config, categories
    )
    return compare_classifiers(inputs, only)


def compare_classifiers(inputs: ComparisonInputs, only: Sequence[str] = ()) -> Comparison:
    """Trains and measures the rows that are missing, and writes the comparison.

    Args:
        inputs: what it is made from, and where it goes.
        only: names of rows; empty: all.

    Raises:
        ShelfmarkError: an unknown row, no products to measure on, or scikit-image is missing.
    """
    taxonomy = read_taxonomy(inputs.records.file("taxonomy.csv"))
    backbones = _backbones(inputs)
    variants = _wanted(only, taxonomy, backbones)
    if any(variant.spec.features == HOG for variant in variants):
        require_hog()
    data = open_data(inputs)
    by_backbone, lacking = _data_by_backbone(data, inputs)
    notes = [*_left_out(only, taxonomy, backbones), *lacking]
    rows = [
        _row(variant, by_backbone[variant.fine_tuned], inputs)
        for variant in variants
        if variant.fine_tuned in by_backbone
    ]
    if not rows:
        raise ShelfmarkError(f"no row is left to compare: {'; '.join(notes)}; give other names to --only")
    comparison = _comparison(rows, notes, data, inputs)
    write_whole(inputs.out / "comparison.json", comparison.to_json())
    write_whole(inputs.out / "comparison.csv", comparison.to_csv())
    write_page(inputs.out, inputs.records.digest)
    return comparison


def _comparison(
    rows: list[RowResult], notes: list[str], data: ComparisonData, inputs: ComparisonInputs
) -> Comparison:
    config, run = inputs.config, inputs.out.parent.name
    best, head = best_of(rows, config.calibration.precision)
    command = ""
    if head:
        command = release_command(head, inputs.records, config, inputs.store.parent, run, inputs.tuned)
    return Comparison(
        rows=rows,
        notes=notes,
        categories=len(data.taxonomy.categories),
        drawn=inputs.categories is not None,
        val_products=count_products(data.cert),
        fit_products=count_products(data.fit),
        target=config.calibration.precision,
        recipe=config.head.recipe,
        best=best,
        commands=command,
        best_row=max(rows, key=lambda row: row.merit).row if count_products(data.fit) else None,
        records=inputs.records.digest,
    )


# What is compared


def _backbones(inputs: ComparisonInputs) -> set[bool]:
    """Whether there are bottlenecks of a fine-tuned backbone (True), of a frozen one (False), or of both."""
    return (
        {False, True}
        if inputs.tuned
        else {BottlenecksSummary.of(inputs.bottlenecks).weights.startswith(FINE_TUNED)}
    )


def _wanted(only: Sequence[str], taxonomy: Taxonomy, backbones: set[bool]) -> list[Variant]:
    """The requested rows, as far as this catalogue and these backbones allow them."""
    names = [variant.name for variant in VARIANTS]
    for name in only:
        if name not in names:
            raise ShelfmarkError(
                f"--only {name}: no such row; expected one of {', '.join(names)}; correct the name"
            )

    def possible(variant: Variant) -> bool:
        level_head = variant.spec.architecture not in ("", FLAT)
        has_features = variant.spec.features == HOG or variant.fine_tuned in backbones
        return has_features and not (level_head and taxonomy.levels == 1)

    return [variant for variant in VARIANTS if (not only or variant.name in only) and possible(variant)]


def _left_out(only: Sequence[str], taxonomy: Taxonomy, backbones: set[bool]) -> list[str]:
    """Notes on the rows that this catalogue and these backbones do not allow."""
    notes = []
    tuned = {variant.name for variant in VARIANTS if variant.fine_tuned}
    if True not in backbones and (not only or tuned.intersection(only)):
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
    return notes


def _data_by_backbone(
    data: ComparisonData, inputs: ComparisonInputs
) -> tuple[dict[bool, ComparisonData], list[str]]:
    """The same products by whether the backbone is fine-tuned, where the store has all their images.

    Returns:
        The data, and notes on what the store lacks.
    """
    tuned = inputs.tuned
    if tuned is None:  # there is one backbone; HOG, whose row counts as frozen, uses none
        return {False: data, True: data}, []
    found, notes = {}, []
    fingerprints = {False: tuned.made_from["fingerprint"], True: BackboneSummary.of(tuned).fingerprint}
    for fine_tuned, fingerprint in fingerprints.items():
        store = Store(inputs.store / fingerprint)
        parts = [stored(part, store) for part in (data.train, data.fit, data.cert)]
        train, fit, cert = parts
        if train is not None and fit is not None and cert is not None:
            found[fine_tuned] = replace(data, fingerprint=fingerprint, train=train, fit=fit, cert=cert)
        else:
            what, where = ("fine-tuned", "") if fine_tuned else ("frozen", " in a run without backbone/")
            notes.append(
                f"Rows on {what} bottlenecks are left out: the store lacks images of the {what} backbone; "
                f"`shelfmark extract`{where} makes them"
            )
    return found, notes


# A row


def _row(variant: Variant, data: ComparisonData, inputs: ComparisonInputs) -> RowResult:
    """The row's result: read from its file, or measured now."""
    made_from = _digest_of_inputs(variant, data, inputs)
    file = inputs.out / "rows" / f"{variant.name}.json"
    if found := _finished(file, made_from):
        log.info("comparison: %s: unchanged", variant.name)
        return found
    log.info("comparison: %s", variant.name)
    result = _train_and_measure(variant, data, inputs)
    write_whole(file, result.to_json(made_from))
    return result


def _digest_of_inputs(variant: Variant, data: ComparisonData, inputs: ComparisonInputs) -> str:
    """Digest of all that the row depends on."""
    spec, config = variant.spec, inputs.config
    calibration = config.calibration
    return digest_of(
        {
            "version": VERSION,
            "records": inputs.records.digest,
            "fingerprint": "" if spec.features == HOG else data.fingerprint,
            "head": config_of(spec, config).of_the_head()
            if spec.architecture
            else [config.seed, config.train.placeholders],
            "baseline": None if spec.architecture else config.compare.model_dump() | {"solver": "newton"},
            "calibration": [calibration.fit_share, calibration.precision, wanted_aggregation(config)],
            "categories": inputs.categories,
        }
    )


def _finished(file: AnyPath, made_from: str) -> RowResult | None:
    """The row's result from its file; None where the file is missing, damaged or made from something else."""
    try:
        return RowResult.from_json(file.read_text(), made_from)
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("comparison: %s: damaged, measured again", file)
        return None


def _train_and_measure(variant: Variant, data: ComparisonData, inputs: ComparisonInputs) -> RowResult:
    spec, config = variant.spec, inputs.config
    own = config_of(spec, config)
    started = time.monotonic()
    data = _data_for(spec, data, inputs)
    trained = _train(spec, data, own)
    seconds = time.monotonic() - started
    paper_train, paper_val = PAPER.get(variant.name, (None, None))
    return RowResult(
        row=variant.name,
        features=spec.features,
        classifier=spec.classifier,
        fine_tuned=variant.fine_tuned,
        learnt_products=count_products(data.train),
        **asdict(measure(trained.classifier, data, config).measures),
        target_precision=config.calibration.precision,
        parameters=trained.parameters,
        seconds=round(seconds, 1),
        paper_train=paper_train,
        paper_val=paper_val,
        settings=settings_of(spec, own),
        chosen=trained.chosen,
    )


def _data_for(spec: ClassifierSpec, data: ComparisonData, inputs: ComparisonInputs) -> ComparisonData:
    """What a row is trained and measured on: baselines on a drawn share, HOG on its own features."""
    settings = inputs.config.compare
    rng = np.random.default_rng(inputs.config.seed)
    if spec.features == HOG:
        data = data.only(settings.hog_products, rng)
        train, fit, cert = (_hog(part, inputs.records) for part in (data.train, data.fit, data.cert))
        return replace(data, train=train, fit=fit, cert=cert)
    return (
        data
        if spec.architecture
        else replace(data, train=draw_products(data.train, settings.svm_products, rng))
    )


def _hog(part: Part, records: Artifact) -> Part:
    """The part with HOG vectors instead of bottlenecks."""
    columns = ["image_digest", "file", "offset", "length"]
    images = pd.read_parquet(records.file("images.parquet"), columns=columns).drop_duplicates("image_digest")
    rows = images.set_index("image_digest").loc[part.image_digest]
    order = np.lexsort([rows["offset"], rows["file"]])  # as they stand on the disk
    pixels = read_pixels(read_pieces(records.path, rows.iloc[order]), SIDE, batch=32)
    with Progress("HOG", len(rows)) as progress:
        vectors = hog_vectors(pixels, len(rows), progress.to)
    return replace(part, rows=StoredRows([Shard(vectors)], np.zeros(len(rows), np.int32), np.argsort(order)))


def _train(spec: ClassifierSpec, data: ComparisonData, config: Config) -> Trained:
    return train_head(data, config) if spec.architecture else _train_svm(data)


def _train_svm(data: ComparisonData) -> Trained:
    truth, fit_truth = data.truth(data.train), data.truth(data.fit)
    with Progress("SVMs", trained_svms(truth, fit_truth)) as progress:
        svm, penalty = choose_svm(
            data.train.rows[:], truth, data.fit.rows, fit_truth, len(data.taxonomy.categories), progress.to
        )
    return Trained(svm, svm.parameters, {"C": penalty})
