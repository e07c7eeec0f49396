"""Judge: whether the run's bundle is better than the one in service, on the same products of this week."""

from dataclasses import dataclass

import pandas as pd

from features.storage.artifact import Artifact
from models.decisions.bundle import open_bundle
from models.decisions.metrics import acceptance_curve, acceptance_rate_at, precision
from pipeline.job.run import Run
from pipeline.job.summaries import EvaluationSummary
from pipeline.release.in_service import current_release, evaluate_in_service


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle goes into service, and why."""

    outcome: str  # first, same, better or worse
    release: bool
    sentence: str
    candidate: str  # digest
    current: str | None  # digest
    judged_on: str  # test, or cert where there is no test part


def judge(run: Run, candidate: Artifact) -> Verdict:
    """Compares the run's bundle with the one in service on this week's measured products.

    A certified one is better than one that is not; then the one of which more could be accepted at the
    candidate's promised precision, as measured there; then the more precise.
    """
    evaluation, current = run.artifact("evaluation", "evaluate"), current_release(run.releases)
    on = EvaluationSummary.of(evaluation).graded_on
    if current is None:
        return Verdict("first", True, "nothing is in service yet", candidate.digest, None, on)
    if current.digest == candidate.digest:
        return Verdict("same", False, "it is already in service", candidate.digest, current.digest, on)
    before = evaluate_in_service(run, current)
    rules = open_bundle(candidate.path).categorizer.rules, current.categorizer.rules
    target = rules[0].target
    merits = [
        (one.certificate.threshold is not None, *_measured(artifact, target))
        for one, artifact in zip(rules, (evaluation, before), strict=True)
    ]
    new, old = (
        f"{'' if certified else 'not '}certified, {rate:.1%} acceptable at {target:.0%}, {correct:.1%} right"
        for certified, rate, correct in merits
    )
    sentence = f"{new}; in service: {old}; measured on {on}"
    better = merits[0] > merits[1]
    return Verdict("better" if better else "worse", better, sentence, candidate.digest, current.digest, on)


def _measured(artifact: Artifact, target: float) -> tuple[float, float]:
    """Share of the measured products that could be accepted at a precision; precision of all of them."""
    confidence, correct = (
        pd.read_parquet(artifact.file(f"{file}.parquet"), columns=[column])[column].to_numpy()
        for file, column in (("decisions", "confidence"), ("measured", "correct"))
    )
    if not len(correct):
        return 0.0, 0.0
    return acceptance_rate_at(acceptance_curve(confidence, correct), target)[0], precision(correct)
