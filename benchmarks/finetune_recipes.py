"""Recipes of fine-tuning on real photos: what each gives on photos of other shops, and what it takes.

    .venv/bin/python benchmarks/finetune_recipes.py [--data ../shared] [--seeds 1]
        [--recipe "NAME: finetune.epochs=8 finetune.cutmix=1"]… [--precision float32] [--workspace DIR]

Photos: those of benchmarks/shops.py, with an ImageNet-trained MobileNet in `<data>/weights`. Each recipe is
tuned on half A and asked about half B, and about the 296 validation photos.

`along`: the head that is tuned together with the backbone; `own`: one that is trained as usual on the tuned
bottlenecks of half A, which is what a run does: of the whole photos and of their middles. Each is asked about
the whole photo, and about `both` views. Nothing selects an epoch. With --workspace decoded photos are kept,
and rows of earlier commands stay in the table. Writes benchmarks/results/finetune_recipes.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from grocery import add_data, find_grocery
from shops import GroceryPhotos, accuracies, cached, halves, softmax, trained_head

from features.views import WHOLE, View, parse_view

RESULTS = Path(__file__).parent / "results" / "finetune_recipes.json"
SIZE = 224  # px, of the backbone
VIEWS = (WHOLE, parse_view("352-center"))  # from which quality best predicts
BATCH = 128


def main() -> None:
    """Measures, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--recipe", dest="recipes", action="append", metavar="NAME: SETTING=VALUE …")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--epochs", type=int, default=60, help="of a head on one view; of two: half as many")
    parser.add_argument(
        "--between",
        type=float,
        nargs="*",
        default=[],
        help="also ask weights that are so much of the tuned ones, the rest of the untuned (WiSE-FT)",
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--halves", type=int, choices=(1, 2), default=1, help="2: tuned on B, too")
    parser.add_argument("--workspace", type=Path, help="kept; default: a scratch directory")
    options = parser.parse_args()
    found = find_grocery(options.data)
    if found is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = try_all(*found, options, options.workspace or Path(scratch))
    print_table(rows)
    results = {"image_size": SIZE, "precision": options.precision, "epochs": options.epochs, "rows": rows}
    RESULTS.write_text(
        json.dumps(results | {"conditions": measure.conditions("tensorflow", "keras")}, indent=1)
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the mean over seeds and halves of each recipe."""
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    figures = [name for name in rows[-1] if "/" in name]
    shown = []
    for name in names:
        its = [row for row in rows if row["recipe"] == name]
        means = [
            100 * float(np.mean([row[figure] for row in its if figure in row] or [np.nan]))
            for figure in figures
        ]
        seconds, cpu = (float(np.mean([row[unit] for row in its])) for unit in ("seconds", "cpu_seconds"))
        shown.append(
            [name, str(len(its)), *(f"{mean:.1f}" for mean in means), f"{seconds:.0f}", f"{cpu:.0f}"]
        )
    print(measure.table(["recipe", "runs", *figures, "s", "CPU s"], shown))


def try_all(
    manifest: Path, weights: Path, options: argparse.Namespace, workspace: Path
) -> list[dict[str, Any]]:
    """A row for each recipe, half and seed."""
    from features.engines.backbones import load_backbone, start_tensorflow

    start_tensorflow()
    kept = workspace / "rows.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    photos = GroceryPhotos(manifest, workspace)
    base = load_backbone("mobilenet", str(weights), SIZE)
    frozen = cached(workspace / "frozen.npy", lambda: bottlenecks(base.model, photos, WHOLE))
    half = halves(frozen[photos.train], photos.category[photos.train])
    for text in options.recipes or ["default:"]:
        name, _, sets = text.partition(":")
        for seed in range(options.seeds):
            for tuned in range(options.halves):
                base = load_backbone("mobilenet", str(weights), SIZE)
                row = try_recipe(base, photos, frozen, half == tuned, sets.split(), seed, options)
                rows.append(
                    {"recipe": name, "settings": sets.strip(), "half": "AB"[tuned], "seed": seed} | row
                )
                kept.write_text(json.dumps(rows, indent=1))
                print(rows[-1], flush=True)
    return rows


def try_recipe(
    base: Any, photos: GroceryPhotos, frozen: np.ndarray, tuned: np.ndarray, sets: list[str], seed: int,
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Tunes on a half and asks about the rest."""
    from models.heads.architectures import Head
    from models.heads.finetune import Photos, tune_backbone
    from pipeline.job.load_config import load_config
    from pipeline.train.finetune import steps_of, tuning_of
    from pipeline.train.from_settings import loss_of

    config = load_config(None, (f"seed={seed}", *sets))
    taxonomy, labels = photos.taxonomy, photos.labels
    own = np.flatnonzero(photos.train)[tuned]
    shops = {"B": np.flatnonzero(photos.train)[~tuned], "val": np.flatnonzero(~photos.train)}

    def head_on(views: list[np.ndarray]) -> Head:
        rows, its = np.concatenate([view[own] for view in views]), np.tile(labels[own], len(views))
        return trained_head(
            rows, its, taxonomy, config, base.fingerprint, epochs=options.epochs // len(views)
        )

    start = head_on([frozen])
    pixels = photos.of(SIZE)

    def read(numbers: np.ndarray, batch: int) -> Any:
        for first in range(0, len(numbers), batch):
            yield pixels[own[numbers[first : first + batch]]]

    before = [model.get_weights() for model in (base.model, start.model)]
    began, cpu = time.monotonic(), time.process_time()
    tune_backbone(
        base, start, Photos(read, labels[own]), None, steps_of(config, options.precision),
        tuning_of(config.finetune, base), loss_of(taxonomy, config),
    )  # fmt: skip
    row = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    after = [model.get_weights() for model in (base.model, start.model)]
    for share in (1.0, *options.between):
        for model, old, new in zip((base.model, start.model), before, after, strict=True):
            model.set_weights(
                [share * one + (1 - share) * other for one, other in zip(new, old, strict=True)]
            )
        seen = [bottlenecks(base.model, photos, view) for view in VIEWS]
        heads = {"along": Head.of(start.shape, start.model)}
        if share == 1:
            heads["own"] = head_on(seen)
        for kind, head in heads.items():
            found = [softmax(head.logits(view)) for view in seen]
            for asked, probabilities in {"whole": found[0], "both": sum(found)}.items():
                title = f"{kind} {asked}" + (f" {share}" if share < 1 else "")
                row |= {
                    f"{title} {name}/{level}": right
                    for name, some in shops.items()
                    for level, right in accuracies(probabilities[some], labels[some], taxonomy).items()
                }
    return row


def bottlenecks(trunk: Any, photos: GroceryPhotos, view: View) -> np.ndarray:
    """Of all photos in a view, (n, d) float32."""
    pixels = photos.of(view.resized(SIZE))
    parts = [
        view.of_pixels(pixels[start : start + BATCH], SIZE).astype(np.float32)
        for start in range(0, len(pixels), BATCH)
    ]
    return np.concatenate([np.asarray(trunk.predict_on_batch(part)) for part in parts])


if __name__ == "__main__":
    main()
