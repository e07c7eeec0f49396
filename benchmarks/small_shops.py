"""What small shops lose between the best threshold and the certified one, and what helps.

    .venv/bin/python benchmarks/small_shops.py [--catalogues 24] [--repetitions 4]

The catalogues are those of tests/generators.py: 200 categories of Zipf frequency in 20 parents ("shop",
"noisy labels", "few strong"), and G1 of the paper's curve. Of each catalogue 20,000 products are its population. The
validation products are drawn from it with replacement, so that the precision of every threshold is known
exactly: a promise is broken where it is under 0.9. All variants see the same products in the same catalogues.
The promise of the categories alone is measured, precision 0.9, delta 0.1. Writes
benchmarks/results/small_shops.json.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
from scipy.special import rel_entr
from scipy.stats import binom

from models.decisions.confidence import ConfidenceModel, Evidence, fit_confidence
from models.decisions.out_of_fold import out_of_fold
from models.decisions.thresholds import (
    Outcomes,
    certify,
    chain_starts,
    counts_at,
    most_errors,
    p_values,
    threshold_grid,
    walk,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import generators as draw

RESULTS = Path(__file__).parent / "results" / "small_shops.json"
SIZES = {
    "shop": (200, 300, 500, 1500, 3000, 6000),
    "noisy labels": (300, 1500),
    "few strong": (300, 1500),
    "g1": (300, 1500),
}
POPULATION, ALPHA, DELTA = 20_000, 0.1, 0.1


@dataclass(frozen=True)
class Variant:
    """A way to a threshold; as shipped where `start` is "certify"."""

    share: float = 0.25  # of FIT
    model: str = "logistic"  # "without effects", "p1"
    out_of_fold: bool = True
    start: str = "certify"  # "evidence", "power", "known"
    exponent: float = 0.25  # of the acceptance, beside the power
    slack: float = 0.0  # the lowest threshold whose evidence is so many nats under the largest, at most
    backups: tuple[int, ...] = ()  # per cent of FIT, always there
    backup_share: float = 0.05
    passed_on: bool = False  # a chain that meets the start of another has both levels from there (Wiens 2003)
    grid: int = 1000


OLD = {"start": "evidence", "backups": (5, 10, 20, 40)}
VARIANTS = {
    "before": Variant(1 / 3, out_of_fold=False, **OLD),  # type: ignore[arg-type]
    "before, FIT a quarter": Variant(out_of_fold=False, **OLD),  # type: ignore[arg-type]
    "before, FIT a fifth": Variant(0.2, out_of_fold=False, **OLD),  # type: ignore[arg-type]
    "before, out of fold": Variant(1 / 3, **OLD),  # type: ignore[arg-type]
    "evidence, out of fold, one chain": Variant(start="evidence"),
    "evidence less 1, out of fold, one chain": Variant(start="evidence", slack=1.0),
    "now": Variant(),
    "now, FIT a fifth": Variant(0.2),
    "now, FIT a third": Variant(1 / 3),
    "now, fitted confidences": Variant(out_of_fold=False),
    "now, no effects of categories": Variant(model="without effects"),
    "now, p1 alone": Variant(model="p1"),
    "now, grid of 50": Variant(grid=50),
    "power, one chain": Variant(start="power"),
    "power alone, one chain": Variant(start="power", exponent=0.0),
    "power x sqrt(acceptance), one chain": Variant(start="power", exponent=0.5),
    "power x acceptance, one chain": Variant(start="power", exponent=1.0),
    "power, four backups": Variant(start="power", backups=(5, 10, 20, 40)),
    "power, four backups, passed on": Variant(start="power", backups=(5, 10, 20, 40), passed_on=True),
    "power, a third of delta at 40 %": Variant(start="power", backups=(40,), backup_share=1 / 3),
    "start known": Variant(start="known"),
}


def main() -> None:
    """Measures every variant on every catalogue and size, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalogues", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=4, help="of each catalogue and size")
    options = parser.parse_args()
    results: dict[str, dict[str, list[list[float]]]] = {}
    for name, sizes in SIZES.items():
        for number in range(options.catalogues):
            population = population_of(name, number)
            for products in sizes:
                rows = results.setdefault(f"{name}, {products}", {})
                for repetition in range(options.repetitions):
                    rng = np.random.default_rng([number, products, repetition])
                    for variant, figures in calibrated(population, products, rng):
                        rows.setdefault(variant, []).append(figures)
            print(name, number + 1, "of", options.catalogues, "catalogues", flush=True)
    figures = [row for where, variants in results.items() for row in compared(where, variants)]
    print(measure.table(list(figures[0]), [tuple(row.values()) for row in figures]))
    acceptance, broken = (by_variant(results, column) for column in (0, 1))
    print(measure.table(list(acceptance[0]), [tuple(row.values()) for row in acceptance]))
    document = {
        "conditions": measure.conditions("numpy", "scipy", "scikit-learn") | vars(options),
        "figures": figures,
        "acceptance": acceptance,
        "broken": broken,
        "verdicts": verdicts(figures, options),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


@dataclass(frozen=True)
class Population:
    """All products of a catalogue."""

    evidence: Evidence
    correct: np.ndarray  # (n,) bool


def population_of(name: str, number: int) -> Population:
    """The products of the catalogue with that number."""
    rng = np.random.default_rng([number, *name.encode()])
    if name == "g1":
        return Population(*draw.g1_evidence(rng, POPULATION))
    return Population(*draw.shop_products(rng, draw.SHOPS[name], POPULATION))


def calibrated(
    population: Population, products: int, rng: np.random.Generator
) -> Iterator[tuple[str, list[float]]]:
    """Of each variant: acceptance rate, whether it breaks its promise, is empty, the best acceptance rate."""
    rows = rng.integers(0, POPULATION, products)
    side, group = rng.random(products), np.array([f"{key:x}" for key in rng.integers(0, 2**62, products)])
    fitted: dict[tuple[float, str], Fitted] = {}
    for name, variant in VARIANTS.items():
        key = variant.share, variant.model
        if key not in fitted:
            fitted[key] = Fitted(population, rows, side < variant.share, group, variant.model)
        yield name, fitted[key].figures(variant)


class Fitted:
    """A confidence model, and what it says about FIT, CERT and the population."""

    def __init__(
        self, population: Population, rows: np.ndarray, fit: np.ndarray, group: np.ndarray, kind: str
    ) -> None:
        self.rows, self.in_fit, self.group = rows, fit, group
        evidence, self.correct = population.evidence.only(rows[fit]), population.correct[rows]
        model = fitted_model(kind, evidence, self.correct[fit])
        self.confidence = model.confidence(population.evidence)
        self.left_out = out_of_fold(
            evidence, self.correct[fit], group[fit], model, fit=lambda e, z, _: fitted_model(kind, e, z)
        )
        order = np.argsort(-self.confidence, kind="stable")
        self.descending = self.confidence[order]
        self.precision = np.cumsum(population.correct[order]) / np.arange(1, POPULATION + 1)
        last = np.append(self.descending[1:] != self.descending[:-1], True)  # of those with one confidence
        reached = np.flatnonzero(last & (self.precision >= 1 - ALPHA))
        self.best = (reached[-1] + 1) / POPULATION if len(reached) else 0.0

    def figures(self, variant: Variant) -> list[float]:
        """Acceptance rate, whether the promise is broken, whether nothing is accepted, best rate."""
        threshold = self.threshold(variant)
        if threshold is None:
            return [0.0, 0.0, 1.0, self.best]
        accepted = self.accepted(np.array([threshold]))[0]
        broken = accepted > 0 and self.precision[accepted - 1] < 1 - ALPHA
        return [accepted / POPULATION, float(broken), 0.0, self.best]

    def accepted(self, thresholds: np.ndarray) -> np.ndarray:
        """(G,) int, products of the population from each threshold on."""
        return POPULATION - np.searchsorted(self.descending[::-1], thresholds)

    def threshold(self, variant: Variant) -> float | None:
        """The certified threshold."""
        confidence = self.confidence[self.rows]
        fit = self.left_out if variant.out_of_fold else confidence[self.in_fit]
        fit_correct, in_cert = self.correct[self.in_fit], ~self.in_fit
        if variant.start == "certify":
            sides = (
                Outcomes(self.group[side], self.group[side], values, self.correct[side])
                for side, values in ((self.in_fit, fit), (in_cert, confidence[in_cert]))
            )
            return certify(*sides, target=1 - ALPHA, delta=DELTA, grid=variant.grid).threshold
        thresholds = threshold_grid(fit, variant.grid)
        counts, products = counts_at(thresholds, fit, fit_correct), len(fit)
        levels = np.zeros(len(thresholds))
        for share in variant.backups:
            levels[int(np.argmax(100 * counts[0] >= share * products))] += DELTA * variant.backup_share
        rest = DELTA * (1 - len(variant.backups) * variant.backup_share)
        start = self.start(variant, thresholds, counts, products, rest)
        if start is not None:
            levels[start] += rest
        p = p_values(*counts_at(thresholds, confidence[in_cert], self.correct[in_cert]), ALPHA)
        end = passed_on(p, levels) if variant.passed_on else (walk(p, levels) or (0, None))[1]
        return None if end is None else float(thresholds[end])

    def start(
        self,
        variant: Variant,
        thresholds: np.ndarray,
        counts: tuple[np.ndarray, np.ndarray],
        products: int,
        level: float,
    ) -> int | None:
        """Where the main chain starts."""
        (accepted, errors), ratio = counts, (len(self.rows) - products) / products
        able = (errors < ALPHA * accepted) & (accepted >= 5)
        if variant.start == "known":
            of_all = self.accepted(thresholds)
            share, rate = of_all / POPULATION, 1 - self.precision[np.maximum(of_all, 1) - 1]
            expected = np.round(share * ratio * products)
            power = binom.cdf(most_errors(expected, level, ALPHA), expected, rate)
            return int(np.argmax(power * share**variant.exponent))
        if not able.any():
            return None
        if variant.start == "power":
            starts = chain_starts(
                accepted, errors, products, ratio, ALPHA, level, backups=(), exponent=variant.exponent
            )
            return starts["main"]
        rate = errors / accepted
        evidence = accepted * (rel_entr(rate, ALPHA) + rel_entr(1 - rate, 1 - ALPHA))
        evidence[~able] = -1
        if variant.slack == 0:
            return int(np.argmax(evidence))
        return int(np.flatnonzero(evidence >= max(evidence.max() - variant.slack, 0))[-1])


def fitted_model(kind: str, evidence: Evidence, correct: np.ndarray) -> ConfidenceModel:
    """The confidence model of a variant."""
    if kind == "p1":
        return ConfidenceModel("probability", len(correct), "p1 alone is wanted")
    model = fit_confidence(evidence, correct)
    return replace(model, effect={}) if kind == "without effects" else model


def passed_on(p: np.ndarray, levels: np.ndarray) -> int | None:
    """The end of the chain that gets furthest, where chains that meet add their levels."""
    active, end = 0.0, None
    for index, (value, level) in enumerate(zip(p.tolist(), levels.tolist(), strict=True)):
        active += level
        if value <= active:
            end = index
        else:
            active = 0.0
    return end


def compared(where: str, variants: dict[str, list[list[float]]]) -> Iterator[dict[str, Any]]:
    """Rows of "before" and "now": means, and the paired difference with its standard error."""
    before = np.array(variants["before"])[:, 0]
    for name in ("before", "now"):
        rate, broken, empty, best = np.array(variants[name]).T
        difference = rate - before
        yield {
            "catalogues": where.rpartition(", ")[0],
            "validation products": int(where.rpartition(", ")[2]),
            "variant": name,
            "acceptance": round(float(rate.mean()), 3),
            "best": round(float(best.mean()), 3),
            "more than before": round(float(difference.mean()), 3),
            "standard error": round(float(difference.std(ddof=1) / len(rate) ** 0.5), 3),
            "broken": round(float(broken.mean()), 3),
            "empty": round(float(empty.mean()), 3),
        }


def by_variant(results: dict[str, dict[str, list[list[float]]]], column: int) -> list[dict[str, Any]]:
    """A row for each variant: the mean of a figure in every place."""
    return [
        {"variant": name}
        | {
            where: round(float(np.mean([figures[column] for figures in variants[name]])), 3)
            for where, variants in results.items()
        }
        for name in VARIANTS
    ]


def verdicts(figures: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The aims of "now"."""
    now = {(row["catalogues"], row["validation products"]): row for row in figures if row["variant"] == "now"}
    shop = {size: row for (name, size), row in now.items() if name == "shop"}
    runs = options.catalogues * options.repetitions
    allowed = DELTA + 3 * (DELTA * (1 - DELTA) / runs) ** 0.5
    most = max(row["broken"] for row in now.values())
    lost = 100 * (shop[6000]["best"] - shop[6000]["acceptance"])
    return [
        measure.verdict("acceptance of 300 products", shop[300]["acceptance"], 0.5, "", at_least=True),
        measure.verdict("acceptance of 1,500 products", shop[1500]["acceptance"], 0.8, "", at_least=True),
        measure.verdict("points under the best threshold, 6,000 products", lost, 1.0, ""),
        measure.verdict("most promises broken, any catalogues and size", most, round(allowed, 3), ""),
    ]


if __name__ == "__main__":
    main()
