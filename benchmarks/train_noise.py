"""What [train] does against imbalance and wrong labels, on drawn bottlenecks whose truth is known.

    .venv/bin/python benchmarks/train_noise.py [--seeds 3]

100 categories, 80 % of 20,000 images in 20 of them, 50 images in each of the other 80. A category is a
centre of 64 numbers, an image its centre plus noise: the best possible classifier, which knows the centres
and the shares, is correct on 86 %. A tenth of the labels is wrong: half of those any other category, half the
nearest. Hidden layers are those of the settings: the second dropout harms two of 256, and helps two of 1,024.
Measured on 20,000 images drawn in the same way, with their true labels: the share of correct images, the mean
over categories of their correct share, and the same over the 80 small ones. Writes
benchmarks/results/train_noise.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import numpy as np

from features.engines.backbones import start_tensorflow

RESULTS = Path(__file__).parent / "results" / "train_noise.json"
CATEGORIES, LARGE, IMAGES, WIDTH = 100, 20, 20_000, 64
SETTINGS: dict[str, tuple[str, dict[str, Any], float]] = {  # recipe, changes, share left out
    "paper": ("paper", {}, 0.0),
    "default": ("default", {}, 0.0),
    "default with one dropout": ("default", {}, 0.0),
    "default without mixup": ("default", {"mixup": 0.0}, 0.0),
    "label_smoothing 0.1 for mixup": ("default", {"mixup": 0.0, "label_smoothing": 0.1}, 0.0),
    "label_smoothing 0.1 and mixup": ("default", {"label_smoothing": 0.1}, 0.0),
    "class_weights": ("default", {"imbalance": "class_weights"}, 0.0),
    "logit_adjustment": ("default", {"imbalance": "logit_adjustment"}, 0.0),
    "logit_adjustment, tau 0.5": ("default", {"imbalance": "logit_adjustment", "adjustment": 0.5}, 0.0),
    "balanced": ("default", {"imbalance": "balanced"}, 0.0),
    "leave_out_suspects 0.05": ("default", {}, 0.05),
    "leave_out_suspects 0.1": ("default", {}, 0.1),
    "leave_out_suspects 0.2": ("default", {}, 0.2),
    "true labels": ("default", {}, 0.0),
}


def main() -> None:
    """Trains every setting with every seed, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    start_tensorflow()
    results: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        runs = [measured(name, *setting, options.epochs, seed) for seed in range(options.seeds)]
        results[name] = {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]}
        print(name, results[name], flush=True)
    header = ["", *next(iter(results.values()))]
    print(measure.table(header, [(name, *figures.values()) for name, figures in results.items()]))
    conditions = measure.conditions("tensorflow", "keras", "numpy") | {
        "seeds": options.seeds,
        "epochs": options.epochs,
    }
    RESULTS.write_text(json.dumps({"conditions": conditions, "settings": results}, indent=1) + "\n")


def measured(
    name: str, recipe_name: str, changes: dict[str, Any], share: float, epochs: int, seed: int
) -> dict[str, float]:
    """Figures of one training, against the truth."""
    from models.heads.architectures import HeadShape
    from models.heads.training import Examples, fit_head, suspects
    from pipeline.job.load_config import load_config
    from pipeline.train.from_settings import head_precision, recipe_of

    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 0.45, (CATEGORIES, WIDTH))
    shares = np.repeat([0.8 / LARGE, 0.2 / (CATEGORIES - LARGE)], [LARGE, CATEGORIES - LARGE])
    truth, rows = drawn(rng, centres, shares)
    labels = truth if name == "true labels" else mislabelled(rng, truth, centres)
    config = load_config(sets=(f"head.recipe={recipe_name}",))
    shape = HeadShape(
        WIDTH,
        CATEGORIES,
        config.head.hidden,
        config.head.dropout,
        1.0,
        "",
        standardized=config.training()["standardized"],
        second_dropout=0.0 if name == "default with one dropout" else config.training()["second_dropout"],
    )
    recipe = replace(
        recipe_of(config, head_precision(config, shape)), seed=seed, **{"epochs": epochs} | changes
    )
    examples, found = Examples(rows, labels), 0.0
    if share:
        suspect = suspects(shape, examples, rng.random(IMAGES) < 0.5, recipe, share)
        found = (truth != labels)[suspect].sum() / (truth != labels).sum()
        examples = examples.only(~suspect)
    head, _ = fit_head(shape, examples, None, recipe)
    test, test_rows = drawn(rng, centres, shares)
    correct = head.logits(test_rows).argmax(axis=1) == test
    by_category = np.bincount(test, correct, CATEGORIES) / np.bincount(test, minlength=CATEGORIES)
    density = test_rows.astype(np.float64) @ centres.T - (centres**2).sum(axis=1) / 2 + np.log(shares)
    return {
        "right": float(correct.mean()),
        "mean of categories": float(by_category.mean()),
        "small categories": float(by_category[LARGE:].mean()),
        "wrong labels found": float(found),
        "best possible": float((density.argmax(axis=1) == test).mean()),
    }


def drawn(rng: np.random.Generator, centres: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) categories, (n, WIDTH) float16 bottlenecks."""
    truth = rng.choice(CATEGORIES, IMAGES, p=shares)
    return truth, (centres[truth] + rng.normal(0, 1, (IMAGES, WIDTH))).astype(np.float16)


def mislabelled(rng: np.random.Generator, truth: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) labels, a tenth of them wrong."""
    distance = ((centres[:, None] - centres[None]) ** 2).sum(axis=2) + np.diag(np.full(CATEGORIES, np.inf))
    other = np.where(
        rng.random(IMAGES) < 0.5,
        distance.argmin(axis=1)[truth],
        (truth + rng.integers(1, CATEGORIES, IMAGES)) % CATEGORIES,
    )
    return np.where(rng.random(IMAGES) < 0.1, other, truth)


if __name__ == "__main__":
    main()
