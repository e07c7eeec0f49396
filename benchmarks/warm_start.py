"""Warm start: does last week's head save time this week, and does it harm?

    .venv/bin/python benchmarks/warm_start.py

Bottlenecks are drawn: every node of a tree of three levels has a direction, a category is the sum of those on
its path, a product lies around it; one label in ten is wrong. Every week 5 % of the products are new, and of
100 categories four are added, four removed, and four moved under another parent. A head starts fresh each
week; another one from its own head of the week before. Both are measured on products that no head was trained
on, with correct labels. Seconds are those of the processor. Results: benchmarks/results/warm_start.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from measure import conditions, table

from features.engines.backbones import start_tensorflow
from models.heads.architectures import FLAT, MULTITASK, Head, HeadShape
from models.heads.training import Examples, fit_head
from models.heads.warm_start import warm_start
from models.taxonomy import Taxonomy
from pipeline.job.load_config import load_config
from pipeline.train.from_settings import head_precision, loss_of, recipe_of

WEEKS, CATEGORIES, PRODUCTS, WIDTH = 4, 100, 6_000, 128
CHANGED = 4  # categories added, removed and moved every week
NEW, WRONG, NOISE = 0.05, 0.1, 3.0
RESULT = Path(__file__).parent / "results" / "warm_start.json"
# Name → settings over the default recipe's, and whether last week's head starts it.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "fresh, 40 epochs": ({"epochs": 40}, False),
    "fresh, 10 epochs": ({"epochs": 10}, False),
    "warm, 40 epochs": ({"epochs": 40}, True),
    "warm, 10 epochs": ({"epochs": 10}, True),
    "warm, 10 epochs, rate / 5": ({"epochs": 10, "learning_rate": 0.01}, True),
    "warm, 3 epochs, rate / 5": ({"epochs": 3, "learning_rate": 0.01}, True),
}


@dataclass(frozen=True)
class DrawnWeek:
    """The catalogue of one week."""

    taxonomy: Taxonomy
    train: Examples  # labels (n,) int, one in ten wrong
    fit: Examples  # one in ten wrong, too
    test: Examples  # all correct


class World:
    """Directions of nodes by their names; they stay from week to week, wherever a category is moved."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.directions: dict[str, np.ndarray] = {}
        self.parents = dict(self._new() for _ in range(CATEGORIES))  # family of each category
        self.products = [self._product() for _ in range(PRODUCTS)]

    def _new(self) -> tuple[str, int]:
        name, family = f"c{len(self.directions):04d}", int(self.rng.integers(20))
        self.directions[name] = self._direction(f"f{family}") + self.rng.normal(0, 1, WIDTH)
        return name, family

    def _direction(self, node: str) -> np.ndarray:
        seed = int.from_bytes(node.encode(), "big") % 2**31
        return np.random.default_rng(seed).normal(0, 1, WIDTH)

    def _product(self) -> tuple[str, str, np.ndarray, str]:
        """True category, category of the label, bottleneck, part."""
        names = list(self.parents)
        category = names[min(int(self.rng.exponential(len(names) / 3)), len(names) - 1)]
        label = names[self.rng.integers(len(names))] if self.rng.random() < WRONG else category
        at = self.directions[category] + self.rng.normal(0, NOISE, WIDTH)
        part = str(self.rng.choice(["train", "fit", "test"], p=[0.8, 0.1, 0.1]))
        return category, label, np.maximum(at, 0).astype(np.float16), part

    def week(self) -> DrawnWeek:
        """This week's catalogue."""
        categories = np.array(sorted(self.parents), dtype=object)
        families = [self.parents[name] for name in categories]
        names = np.array(
            [
                [f"d{family % 5}", f"f{family}", name]
                for family, name in zip(families, categories, strict=True)
            ],
            dtype=object,
        )
        taxonomy = Taxonomy(categories, names)

        def examples(part: str, label: int) -> Examples:
            chosen = [product for product in self.products if product[3] == part]
            return Examples(
                np.stack([product[2] for product in chosen]),
                taxonomy.index(np.array([product[label] for product in chosen], dtype=object)),
            )

        return DrawnWeek(taxonomy, examples("train", 1), examples("fit", 1), examples("test", 0))

    def pass_on(self) -> None:
        """Changes categories and products as a week does."""
        for name in self.rng.choice(list(self.parents), CHANGED, replace=False):
            del self.parents[str(name)]
        for name in self.rng.choice(list(self.parents), CHANGED, replace=False):
            self.parents[str(name)] = int(self.rng.integers(20))
        for _ in range(CHANGED):
            name, family = self._new()
            self.parents[name] = family
        stay = [p for p in self.products if p[0] in self.parents and p[1] in self.parents]
        self.rng.shuffle(stay)  # type: ignore[arg-type]
        stay = stay[: round(PRODUCTS * (1 - NEW))]
        self.products = stay + [self._product() for _ in range(PRODUCTS - len(stay))]


def main() -> None:
    """Trains every variant of both architectures, prints tables, writes the results."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    start_tensorflow()
    results = {kind: measure(kind) for kind in (FLAT, MULTITASK)}
    RESULT.write_text(
        json.dumps({"conditions": conditions("keras", "tensorflow"), "kinds": results}, indent=1)
    )
    for kind, rows in results.items():
        print(f"\n{kind}, mean of {WEEKS - 1} weeks after the first\n")
        print(
            table(
                ["", "epochs to fresh's FIT precision", "seconds to it", "weeks reached", "seconds", "test"],
                [
                    [
                        row["variant"], row["epochs_to_target"], row["seconds_to_target"], row["reached"],
                        row["seconds"], f"{row['test']:.4f}",
                    ]
                    for row in rows
                ],
            )
        )  # fmt: skip


def measure(kind: str) -> list[dict[str, Any]]:
    """A row for each variant."""
    weeks = weeks_of(World(0))
    heads: dict[str, Head] = {}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number, week in enumerate(weeks):
        target = 0.0
        for name, (settings, warm) in VARIANTS.items():
            if number == 0 and name != next(iter(VARIANTS)):
                heads[name] = heads[next(iter(VARIANTS))]  # all begin with the same head
                continue
            before = (heads[name], weeks[number - 1].taxonomy) if warm and number else None
            head, history, seconds = train(kind, week, settings, number, before)
            heads[name] = head
            reached = history["val_accuracy"]
            if name == next(iter(VARIANTS)):
                target = max(reached)
            if number:
                test = np.mean(head.logits(week.test.bottlenecks[:]).argmax(axis=1) == week.test.labels)
                first = next((epoch for epoch, share in enumerate(reached, 1) if share >= target), None)
                epoch = seconds / len(reached)
                rows[name].append(
                    {"seconds": seconds, "test": float(test), "first": first, "epoch": epoch}  # type: ignore[dict-item]
                )
            print(kind, number, name, f"{max(reached):.4f} of FIT, {seconds:.1f} s", flush=True)
    return [summary(name, weeks) for name, weeks in rows.items()]


def weeks_of(world: World) -> list[DrawnWeek]:
    weeks = [world.week()]
    for _ in range(WEEKS - 1):
        world.pass_on()
        weeks.append(world.week())
    return weeks


def train(
    kind: str, week: DrawnWeek, settings: dict[str, Any], seed: int, before: tuple[Head, Taxonomy] | None
) -> tuple[Head, dict[str, list[float]], float]:
    taxonomy = week.taxonomy
    config = load_config(sets=(f"head.kind={kind}",))
    parents = () if kind == FLAT else taxonomy.parents
    switches = {name: config.training()[name] for name in ("standardized", "second_dropout")}
    hidden, dropout = config.head.hidden, config.head.dropout
    shape = HeadShape(
        WIDTH, len(taxonomy.categories), hidden, dropout, 0.5, "drawn", kind=kind, parents=parents, **switches
    )
    recipe = replace(recipe_of(config, head_precision(config, shape)), seed=seed, patience=1000, **settings)

    def of_levels(examples: Examples) -> Examples:
        return examples if kind == FLAT else replace(examples, labels=taxonomy.nodes.T[examples.labels])

    start: Callable[[keras.Model], Any] | None = None
    if before:
        start = lambda model: warm_start(model, shape, taxonomy, *before)  # noqa: E731
    started = time.process_time()
    loss = loss_of(taxonomy, config)
    head, history = fit_head(shape, of_levels(week.train), of_levels(week.fit), recipe, loss, start=start)
    return head, history, time.process_time() - started


def summary(name: str, weeks: list[dict[str, float]]) -> dict[str, Any]:
    reached = [week for week in weeks if week["first"]]

    def mean(values: list[float]) -> float | None:
        return round(float(np.mean(values)), 2) if values else None

    return {
        "variant": name,
        "epochs_to_target": mean([week["first"] for week in reached]),
        "seconds_to_target": mean([week["first"] * week["epoch"] for week in reached]),
        "reached": f"{len(reached)} of {len(weeks)}",
        "seconds": mean([week["seconds"] for week in weeks]),
        "test": float(np.mean([week["test"] for week in weeks])),
    }


if __name__ == "__main__":
    main()
