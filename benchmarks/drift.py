"""Drift: how wrong are estimates of the precision without labels, and what raises an alarm?

    .venv/bin/python benchmarks/drift.py [--shops 12]

On drawn shops (tests/streams.py: 200 categories under 20 branches, 5 % wrong labels, 3 % of the products in
categories that were not learnt), each with a release certified at 0.85 and a reference of 300, 1,500 or 6,000
measured products:

1. batches of 2,000 products after a change: each estimate of the accepted precision, and the truth
2. pairs of branches that are more and more alike: when a mix can no longer be distinguished
3. 20 years of weekly batches without change: alarms; and the first batch whose mix halves the precision
4. audits: false alarms in a year at exactly the promised precision, and weeks until a drop is seen

Prints tables, writes benchmarks/results/drift.json.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from measure import conditions, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from streams import Release, Stream, drawn_release

from models.decisions.drift.batch import (
    Batch,
    compare,
    effect_of,
    estimate,
    is_alarm,
    limits_of,
)
from models.decisions.drift.eprocess import ALARM, Audited, evidence_of
from models.decisions.drift.limits import moved_share
from models.decisions.drift.reference import MAX_CONDITION
from pipeline.job.config import MonitorSettings

RESULTS = Path(__file__).parent / "results" / "drift.json"
ESTIMATES = ("mean_confidence", "difference", "label_shift", "above_threshold")
REFERENCES = (300, 1_500, 6_000)
BATCH, YEARS, WEEKS = 2_000, 20, 52
SETTINGS = MonitorSettings()


def main() -> None:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shops", type=int, default=12)
    shops = parser.parse_args().shops
    figures = {
        "estimates": estimates(shops),
        "alike": alike(min(shops, 8)),
        "years": years(),
        "audits": audits(),
    }
    for rows in figures.values():
        print(table(list(rows[0]), [[_text(value) for value in row.values()] for row in rows]), end="\n\n")
    rounded = {name: [_rounded(row) for row in rows] for name, rows in figures.items()}
    result = {"conditions": conditions("numpy", "scipy") | {"shops": shops}, "figures": rounded}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def _text(value: object) -> str:
    return "–" if value is None else f"{value:,.3f}" if isinstance(value, float) else str(value)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


# 1. Estimates


def changes(release: Release, rng: np.random.Generator) -> dict[str, Stream]:
    """The streams that a release may meet."""
    frequency, parent = release.shop.frequency, release.shop.parent
    return {
        "no change": Stream(),
        "other mix of branches": Stream(mix=frequency * np.exp(1.2 * rng.normal(size=20))[parent]),
        "other mix of categories": Stream(mix=rng.permutation(frequency)),
        "blurred photos": Stream(blur=1.5),
        "new seller": Stream(unlearnt=0.3),
    }


def halved(release: Release) -> Stream:
    """A mix of the categories that are hardest to tell: about half of the accepted are wrong."""
    return Stream(mix=release.shop.frequency * (release.shop.strength < 1.2))


def estimates(shops: int) -> list[dict[str, Any]]:
    """Mean absolute error of each estimate, in points, by reference and change."""
    rows = []
    for products in REFERENCES:
        errors: dict[str, list[list[float | None]]] = {}
        truths: dict[str, list[float]] = {}
        for seed in range(shops):
            release, rng = drawn_release(seed, test=products), np.random.default_rng([seed, 3])
            if release.reference.threshold is None:
                continue
            for name, stream in changes(release, rng).items():
                measured = release.measured(rng, BATCH, stream)
                found = estimate(release.reference, release.batch(measured))
                truth = release.accepted_precision(measured)
                values = [getattr(found, key) for key in ESTIMATES] + [found.lowest]
                errors.setdefault(name, []).append(
                    [None if value is None else 100 * abs(value - truth) for value in values]
                )
                truths.setdefault(name, []).append(100 * truth)
        for name, values in errors.items():
            columns = zip((*ESTIMATES, "lowest"), zip(*values, strict=True), strict=True)
            rows.append(
                {"reference": products, "change": name, "precision": float(np.mean(truths[name]))}
                | {key: _mean(column) for key, column in columns}
            )
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


# 2. Branches that are alike


def alike(shops: int) -> list[dict[str, Any]]:
    """How far the estimated mix is from the true one, with and without the rule of the condition number."""
    from dataclasses import replace

    from models.decisions.drift import batch as module

    rows = []
    for products in REFERENCES[1:]:
        for twins in (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
            conditions_, off, errors = [], [], []
            for seed in range(shops):
                release = drawn_release(seed, test=products, twins=twins, target=0.6)
                reference, rng = release.reference, np.random.default_rng([seed, 4])
                conditions_.append(reference.condition)
                stream = changes(release, rng)["other mix of branches"]
                measured = release.measured(rng, BATCH, stream)
                module.MAX_CONDITION = float("inf")  # measured without the rule
                found = estimate(reference, release.batch(measured))
                module.MAX_CONDITION = MAX_CONDITION
                taken = replace(
                    measured, truth=np.where(measured.truth >= 0, measured.truth, measured.predicted)
                )
                true = np.bincount(
                    reference.branch_of(release.shop.labels)[taken.truth], minlength=len(reference.branches)
                )
                off.append(100 * float(moved_share(true, np.array(found.mix))))
                errors.append(100 * abs(found.label_shift - release.accepted_precision(measured)))
            finite = [value for value in conditions_ if np.isfinite(value)]
            rows.append(
                {
                    "reference": products,
                    "alike": twins,
                    "condition, median": float(np.median(conditions_)) if len(finite) > shops // 2 else None,
                    "refused": float(np.mean(np.array(conditions_) > MAX_CONDITION)),
                    "mix wrong by": float(np.mean(off)),
                    "precision wrong by": float(np.mean(errors)),
                }
            )
    return rows


# 3. Years


def years() -> list[dict[str, Any]]:
    """Alarms in 20 years of weekly batches without change, and of one batch that halves the precision."""
    rows = []
    for products, batch in ((300, 200), (1_500, 100), (1_500, 1_000), (6_000, 5_000)):
        for seed in range(4):
            rows.append(
                {"reference": products, "batch": batch, "shop": seed} | year_of(seed, products, batch)
            )
    return rows


def year_of(seed: int, products: int, batch: int) -> dict[str, Any]:
    """The alarms of one release."""
    release, rng = drawn_release(seed, test=products), np.random.default_rng([seed, 5])
    pool = release.measured(rng, 200_000, Stream())
    beyond = alarms = 0
    limits: dict[str, float] = {}
    for _ in range(YEARS * WEEKS):
        chosen = rng.integers(0, 200_000, batch)
        one = release.batch(type(pool)(pool.predicted[chosen], pool.truth[chosen], pool.confidence[chosen]))
        limits = limits or limits_of(release.reference, one, SETTINGS.false_alarms, SETTINGS.batches_per_year)
        significant, alarm = _judge(release, one, limits)
        beyond, alarms = beyond + significant, alarms + alarm
    measured = release.measured(rng, batch, halved(release))
    _, first = _judge(release, release.batch(measured), limits)
    return {
        "weeks beyond a limit": beyond,
        "alarms": alarms,
        "halved: precision": release.accepted_precision(measured),
        "halved: estimate": estimate(release.reference, release.batch(measured)).lowest,
        "halved: alarm": first,
    }


def _judge(release: Release, batch: Batch, limits: dict[str, float]) -> tuple[bool, bool]:
    found = compare(release.reference, batch, limits)
    effect = effect_of(release.reference, batch, estimate(release.reference, batch))
    alarm = is_alarm(found, effect, precision=SETTINGS.precision, acceptance=SETTINGS.acceptance)
    return any(change.significant for change in found), alarm


# 4. Audits


def audits(runs: int = 2_000) -> list[dict[str, Any]]:
    """False alarms of a year, and the median of weeks until a drop is seen."""
    rng = np.random.default_rng(6)
    rows = []
    for audited in (100, 400):
        weeks = {precision: _first_alarm(rng, audited, precision, 60, runs) for precision in (0.87, 0.80)}
        year = _first_alarm(rng, audited, 0.90, WEEKS, 5 * runs)
        rows.append(
            {
                "audits a week": audited,
                "false alarms a year": float(np.isfinite(year).mean()),
                "weeks to see 0.87": float(np.median(weeks[0.87])),
                "weeks to see 0.80": float(np.median(weeks[0.80])),
            }
        )
    return rows


def _first_alarm(
    rng: np.random.Generator, audited: int, precision: float, weeks: int, runs: int
) -> np.ndarray:
    """(runs,) float, the week of the first alarm; infinite where there is none."""
    errors = rng.binomial(audited, 1 - precision, size=(runs, weeks))
    first = np.full(runs, np.inf)
    for run, row in enumerate(errors):
        evidence = evidence_of([Audited(audited, int(one)) for one in row], 0.9)
        over = np.flatnonzero(np.array(evidence) >= ALARM)
        first[run] = over[0] + 1 if len(over) else np.inf
    return first


if __name__ == "__main__":
    main()
