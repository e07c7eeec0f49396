"""Compare backbones: each with the run's default head, on the same products as the rows of compare.py.

    comparison/  backbones/<name>-<digest>.npz    of CERT's products: confidence and correct, both (n,)
                 backbones/<name>-<digest>.json   what one backbone gave, written last: a killed job continues
                 backbones.json, backbones.csv    all of them, and the run's own, with intervals
                 index.html                       the same, for people

Bottlenecks go into the store of the run: what is there is not extracted again, and a run that takes over the
best backbone finds them.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.engines.backbone_names import is_file_name, parse_name
from features.errors import ShelfmarkError
from features.storage.artifact import digest_of
from features.storage.paths import AnyPath, write_whole
from features.storage.store import Store
from models.decisions.paired import difference_of_shares, resampled_acceptance_rates
from pipeline.compare.backbones_summary import best_backbone, retrain_command
from pipeline.compare.candidates import Candidate
from pipeline.compare.classifiers import wanted_aggregation
from pipeline.compare.data import ComparisonData, ComparisonInputs, count_products, open_data, stored
from pipeline.compare.extraction import Extraction, ExtractionResult, extract_apart, whole
from pipeline.compare.measuring import measure, train_head
from pipeline.compare.results import BackboneComparison, BackboneResult, Interval
from pipeline.compare.summary import write_page
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.summaries import BottlenecksSummary

VERSION = 1
DIGEST_BYTES = 40  # of an image in the store beside its bottleneck: digest and checksum
MILLION = 1_000_000


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """Of CERT's n products: what intervals are computed from."""

    confidence: np.ndarray  # (n,) float64
    correct: np.ndarray  # (n,) bool


@dataclass(frozen=True, eq=False)
class _Entry:
    """A backbone to be compared, and its files."""

    candidate: Candidate | None  # None: the run's own
    label: str  # for people
    made_from: str  # digest of all that its result depends on
    file: AnyPath  # .json; .npz beside it


def compare_backbones(
    run: Run, candidates: Sequence[Candidate], categories: int | None = None
) -> BackboneComparison:
    """Extracts, trains and measures what is missing of each backbone, and writes the comparison.

    Args:
        run: with records and bottlenecks.
        candidates: backbones beside the run's own.
        categories: a random draw of so many; None: all.

    Raises:
        ShelfmarkError: no products to measure on, a backbone cannot be loaded, or none of the list could be
            measured.
    """
    records = run.records()
    bottlenecks = run.artifact("bottlenecks", "extract", records=records)
    inputs = ComparisonInputs(
        records, bottlenecks, run.own_backbone(), run.store, run.path / "comparison", run.config, categories
    )
    data = open_data(inputs)
    found: list[tuple[BackboneResult, _Outcomes]] = []
    notes: list[str] = []
    entries = _entries(candidates, data, inputs)
    for entry in entries:
        if entry.candidate is not None and _finished(entry) is None:
            _require_loadable(entry.candidate, run)
    for entry in entries:
        try:
            found.append(_result(entry, data, inputs, run))
        except ShelfmarkError as error:
            notes.append(f"{entry.label} is left out: {error}")
            log.warning("comparison: %s", notes[-1])
    measured = [result for result, _ in found if not result.own]
    if not found or (len(entries) > 1 and not measured):
        raise ShelfmarkError(
            f"no backbone of the list could be compared: {'; '.join(notes)}; expected at least one; "
            "correct --backbones"
        )
    comparison = _comparison(found, notes, data, inputs)
    write_whole(inputs.out / "backbones.json", comparison.to_json())
    write_whole(inputs.out / "backbones.csv", comparison.to_csv())
    write_page(inputs.out, inputs.records.digest)
    return comparison


def _comparison(
    found: list[tuple[BackboneResult, _Outcomes]],
    notes: list[str],
    data: ComparisonData,
    inputs: ComparisonInputs,
) -> BackboneComparison:
    config = inputs.config
    rows = _with_intervals(found, config)
    best, sentence = best_backbone(rows)
    command = ""
    if best and not best.own:
        workspace, run = inputs.store.parent, inputs.out.parent.name
        command = retrain_command(best, inputs.records, config, workspace, run, inputs.tuned)
    return BackboneComparison(
        rows=rows,
        notes=notes,
        categories=len(data.taxonomy.categories),
        drawn=inputs.categories is not None,
        val_products=count_products(data.cert),
        fit_products=count_products(data.fit),
        target=config.calibration.precision,
        best=sentence,
        command=command,
        best_row=best.fingerprint if best else None,
        records=inputs.records.digest,
    )


# What is compared


def _entries(candidates: Sequence[Candidate], data: ComparisonData, inputs: ComparisonInputs) -> list[_Entry]:
    """The run's own backbone, then the candidates that differ from it."""
    own = _Entry(
        None,
        "the run's own backbone",
        _digest_of_inputs({"fingerprint": data.fingerprint}, inputs),
        inputs.out / "backbones" / f"{data.fingerprint}.json",
    )
    entries = [own]
    for candidate in candidates:
        if _is_own(candidate, inputs):
            log.info("comparison: %s: the run's own backbone", candidate.item)
            continue
        identity = candidate.identity(inputs.config)
        file = inputs.out / "backbones" / f"{parse_name(candidate.name).slug}-{digest_of(identity)[:8]}.json"
        entries.append(_Entry(candidate, candidate.item, _digest_of_inputs(identity, inputs), file))
    return entries


def _require_loadable(candidate: Candidate, run: Run) -> None:
    """Loads a backbone, before hours of extraction of others.

    Raises:
        ShelfmarkError: its layers or weights cannot be had, or do not fit.
    """
    try:
        candidate.load(run)
    except ShelfmarkError as error:
        raise ShelfmarkError(f"--backbones {candidate.item}: {error}") from error


def _is_own(candidate: Candidate, inputs: ComparisonInputs) -> bool:
    """Whether the run's bottlenecks are of this backbone, as the settings and the bottlenecks say."""
    summary, settings = BottlenecksSummary.of(inputs.bottlenecks), inputs.config.backbone
    same_network = candidate.given == settings.name or not is_file_name(candidate.given)
    same_name = candidate.name == summary.backbone == str(parse_name(settings.name))
    return same_network and same_name and candidate.weights == settings.weights and not inputs.tuned


def _digest_of_inputs(identity: Mapping[str, object], inputs: ComparisonInputs) -> str:
    config = inputs.config
    calibration, extract = config.calibration, config.extract
    return digest_of(
        {
            "version": VERSION,
            "records": inputs.records.digest,
            "backbone": identity,
            "head": _config_of_head(config).of_the_head(),
            "calibration": [calibration.fit_share, calibration.precision],
            "categories": inputs.categories,
            "extract": [extract.engine, extract.precision, extract.batch],  # on which speed depends
        }
    )


def _config_of_head(config: Config) -> Config:
    """The run's settings; for a set head, which is not compared, those of the head that it is added to."""
    head = config.head.model_copy(update={"aggregation": wanted_aggregation(config)})
    return config.model_copy(update={"head": head})


# A backbone


def _result(
    entry: _Entry, data: ComparisonData, inputs: ComparisonInputs, run: Run
) -> tuple[BackboneResult, _Outcomes]:
    """The backbone's result: read from its files, or measured now."""
    if found := _finished(entry):
        log.info("comparison: %s: unchanged", entry.label)
        return found
    log.info("comparison: %s", entry.label)
    own = entry.candidate is None
    work = Extraction(whole(run), entry.candidate, data.fingerprint if own else None)
    extracted = extract_apart(work)
    log.info(
        "comparison: %s: %.1f images/s by %s", entry.label, extracted.images_per_second, extracted.engine
    )
    result, outcomes = _train_and_measure(entry.candidate, extracted, data, inputs)
    packed = io.BytesIO()
    np.savez(packed, confidence=outcomes.confidence, correct=outcomes.correct)
    write_whole(entry.file.with_suffix(".npz"), packed.getvalue())
    write_whole(entry.file, result.to_json(entry.made_from))
    return result, outcomes


def _finished(entry: _Entry) -> tuple[BackboneResult, _Outcomes] | None:
    """What its files say; None where they are missing, damaged or made from something else."""
    try:
        result = BackboneResult.from_json(entry.file.read_text(), entry.made_from)
        if result is None:
            return None
        with np.load(io.BytesIO(entry.file.with_suffix(".npz").read_bytes())) as arrays:
            return result, _Outcomes(arrays["confidence"], arrays["correct"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError):
        log.warning("comparison: %s: damaged, measured again", entry.file)
        return None


def _train_and_measure(
    candidate: Candidate | None, extracted: ExtractionResult, data: ComparisonData, inputs: ComparisonInputs
) -> tuple[BackboneResult, _Outcomes]:
    config = _config_of_head(inputs.config)
    data = _data_of(extracted.fingerprint, data, inputs)
    trained = train_head(data, config)
    measured = measure(trained.classifier, data, config)
    measures = measured.measures
    result = BackboneResult(
        backbone=extracted.name,
        weights=extracted.weights,
        own=candidate is None,
        given="" if candidate is None else candidate.item,
        fingerprint=extracted.fingerprint,
        image_size=extracted.image_size,
        width=extracted.width,
        parameters=extracted.parameters,
        learnt_products=count_products(data.train),
        epochs=int(trained.chosen["epochs"]),
        train_precision=measures.train_precision,
        val_precision=measures.val_precision,
        val_products=measures.val_products,
        levels=measured.levels,
        acceptance_rate_at_target=measures.acceptance_rate_at_target,
        target_precision=config.calibration.precision,
        fit_precision=measures.fit_precision,
        fit_products=measures.fit_products,
        fit_acceptance_rate_at_target=measures.fit_acceptance_rate_at_target,
        engine=extracted.engine,
        images_per_second=round(extracted.images_per_second, 1),
        measured_images=extracted.measured_images,
        peak_memory=extracted.peak_memory,
        store_bytes_per_million=(extracted.width * np.float16().nbytes + DIGEST_BYTES) * MILLION,
    )
    return result, _Outcomes(measured.confidence.astype(np.float64), measured.correct)


def _data_of(fingerprint: str, data: ComparisonData, inputs: ComparisonInputs) -> ComparisonData:
    """The same products with the bottlenecks of this backbone."""
    store = Store(inputs.store / fingerprint)
    train, fit, cert = (stored(part, store) for part in (data.train, data.fit, data.cert))
    if train is None or fit is None or cert is None:
        raise ShelfmarkError(
            f"{store.path}: lacks images that were just extracted; expected no other job to remove shards; "
            "run the command again"
        )
    return replace(data, fingerprint=fingerprint, train=train, fit=fit, cert=cert)


# Together


def _with_intervals(found: list[tuple[BackboneResult, _Outcomes]], config: Config) -> list[BackboneResult]:
    """The results with their intervals, the best first."""
    rates = resampled_acceptance_rates(
        [(outcomes.confidence, outcomes.correct) for _, outcomes in found], config.calibration.precision
    )
    own = next((at for at, (result, _) in enumerate(found) if result.own), None)
    rows = []
    for at, (result, outcomes) in enumerate(found):
        rate = result.acceptance_rate_at_target
        row = replace(result, acceptance_interval=_interval(rate, rates[:, at]))
        if own is not None and own != at:
            before, of_before = found[own]
            paired = difference_of_shares(of_before.correct, outcomes.correct)
            row = replace(
                row,
                precision_difference=Interval(paired.value, paired.lower, paired.upper),
                acceptance_difference=_interval(
                    rate - before.acceptance_rate_at_target, rates[:, at] - rates[:, own]
                ),
            )
        rows.append(row)
    return sorted(rows, key=lambda row: row.merit, reverse=True)


def _interval(value: float, resampled: np.ndarray) -> Interval:
    """A value with the middle 95 % of its resampled values."""
    lower, upper = np.quantile(resampled, (0.025, 0.975))
    return Interval(value, float(lower), float(upper))
