"""Categories that were not in training: is one of their ancestors still predicted?

    .venv/bin/python benchmarks/left_out.py --workspace W --run R [--share 0.1] [--seeds 3]
                                            [--set train.epochs=50]

Takes a run's records and bottlenecks, leaves a drawn share of the categories out of training and validation,
trains heads of several architectures on the rest, and predicts with each for all products of the categories
left out, and for the validation products of those that stayed (which also chose the epoch). The prediction of
a level is its node with the most probability, leaf probabilities summed up the tree; and by the level's own
output, where the head has one. Prints a table, writes benchmarks/results/left_out.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conditions, table

from features.storage.artifact import open_artifact
from models.decisions.predictions import Predictions, predict, product_bounds
from models.heads.training import Examples, fit_head
from models.taxonomy import Taxonomy, read_taxonomy
from pipeline.job.catalogue import Part, categories_of, open_part
from pipeline.job.config import Config
from pipeline.job.load_config import load_config
from pipeline.job.run import saved_settings
from pipeline.train.from_settings import head_precision, labels_of, loss_of, recipe_of, shape_of

RESULTS = Path(__file__).parent / "results" / "left_out.json"
HEADS = {
    "flat": (),
    "flat, soft_tree": ("head.loss=soft_tree",),
    "multitask": ("head.kind=multitask",),
    "taxonnet": ("head.kind=taxonnet",),
}


def main() -> None:
    """Measures every head with every seed, prints means over the seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    options = parser.parse_args()
    measured = []
    for name, sets in HEADS.items():
        settings = saved_settings(options.workspace, options.run)
        config = load_config(sets=(*options.sets, *sets), base=settings)
        for seed in range(options.seeds):
            found = measure(options.workspace, options.run, config, options.share, seed)
            measured.append(found.assign(head=name))
    mean = pd.concat(measured).groupby(["head", "output", "level"], sort=False).mean().reset_index()
    rows = [
        [
            row.head,
            f"{row.level}, {row.output}",
            f"{row.left_out:.0f}",
            _percent(row.found),
            _percent(row.known),
        ]
        for row in mean.itertuples()
    ]
    print(table(["head", "level", "products left out", "found", "found of categories that stayed"], rows))
    figures = json.loads(mean.round(4).to_json(orient="records"))
    how = {"seeds": options.seeds, "share": options.share, "sets": options.sets}
    result = {"conditions": conditions("tensorflow", "keras") | how, "figures": figures}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def measure(workspace: Path, run: str, config: Config, share: float, seed: int) -> pd.DataFrame:
    """One draw of categories: for each level and output `left_out` products, `found` of them, and `known`."""
    path = workspace / "runs" / run
    records, bottlenecks = (open_artifact(path / kind, kind) for kind in ("records", "bottlenecks"))
    full, category = read_taxonomy(records.file("taxonomy.csv")), categories_of(records)
    out = np.random.default_rng(seed).random(len(full.categories)) < share
    kept = full.only(~out)
    parts = {split: open_part(bottlenecks, workspace / "store", split) for split in ("train", "val", "test")}

    def stays(part: Part) -> np.ndarray:
        return ~out[full.index(category.reindex(part.product_id).to_numpy())]

    train, val = (parts[split].only(stays(parts[split])) for split in ("train", "val"))
    shape = shape_of(train, kept, bottlenecks.summary["fingerprint"], config)
    labels = labels_of(category, kept, shape)
    examples = [Examples(part.rows.load(), labels(part.product_id)) for part in (train, val)]
    recipe = replace(recipe_of(config, head_precision(config, shape)), seed=seed)
    loss = loss_of(kept, config)
    head, _ = fit_head(shape, *examples, recipe, loss)

    def predict_part(part: Part) -> tuple[np.ndarray, Predictions]:
        bounds = product_bounds(part.product_id)
        truth = full.index(category.reindex(part.product_id[bounds[:-1]]).to_numpy())
        return truth, predict(head, part.rows, bounds, kept, temperature=1.0)

    surviving = surviving_nodes(full, kept)
    left_out = [predict_part(part.only(~stays(part))) for part in parts.values()]
    known = predict_part(val)
    rows = []
    for output in ("level_top", "own_top"):
        if getattr(known[1], output).shape[1] == 0:
            continue
        truth = np.concatenate([truth for truth, _ in left_out])
        first = np.concatenate([getattr(predictions, output)[:, :, 0] for _, predictions in left_out])
        found = found_ancestors(truth, first, surviving).rename(columns={"products": "left_out"})
        found["known"] = found_ancestors(known[0], getattr(known[1], output)[:, :, 0], surviving)["found"]
        rows.append(found.assign(output={"level_top": "summed", "own_top": "own output"}[output]))
    return pd.concat(rows)


def surviving_nodes(full: Taxonomy, kept: Taxonomy) -> np.ndarray:
    """(N, C of full) int32: the node of `kept` above each category of `full`, matched by names; -1: none.

    For categories left out of training, which `kept` lacks: the nodes that a head can still predict for them.
    """
    found = np.full(full.nodes.shape, -1, np.int32)
    for level in range(min(full.levels, kept.levels)):
        number = {
            tuple(path): int(node)
            for path, node in zip(kept.paths(level + 1), kept.nodes[level], strict=True)
        }
        found[level] = [number.get(tuple(path), -1) for path in full.paths(level + 1)]
    return found


def found_ancestors(truth: np.ndarray, level_first: np.ndarray, surviving: np.ndarray) -> pd.DataFrame:
    """How often an ancestor is still found for products whose categories were left out of training.

    Args:
        truth: (n,) int, categories of the full tree.
        level_first: (n, N) int, predicted node of each level of the kept tree.
        surviving: (N, C) of `surviving_nodes`.

    Returns:
        A row for each level: `level`, `products` (whose ancestor there still exists), `found` (share of them
        for which it is predicted; NaN without products).
    """
    node = surviving[:, truth]
    possible = node >= 0
    found = possible & (node == level_first.T)
    products = possible.sum(axis=1)
    with np.errstate(invalid="ignore"):
        share = found.sum(axis=1) / products
    return pd.DataFrame({"level": np.arange(1, len(node) + 1), "products": products, "found": share})


if __name__ == "__main__":
    main()
