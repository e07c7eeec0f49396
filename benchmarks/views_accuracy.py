"""What views give in accuracy and cost in time, on photos of other shops; and what a cascade of them keeps.

    .venv/bin/python benchmarks/views_accuracy.py [--data ../shared] [--backbone mobilenet=WEIGHTS.h5]
        [--train "whole,flip: whole whole,flip"]… [--seeds 1] [--epochs 75] [--workspace DIR]

Photos: those of benchmarks/shops.py. A head is trained on half A and asked about half B, and one on all of
train is asked about the 296 validation photos. To save time heads have half the epochs of the default:

    views of a photo ─► bottlenecks, each once in the workspace ─► head on all views before the colon
    ─► asked with each of the lists after it; by default with all views

"cost" is the processor time of the views asked, in units of the whole photo's. "share" is of a cascade, which
asks the first view, and all that are asked for the photos about which it is least certain: the smallest one
that keeps 0.8 of what they gain over the first, on half B. With --workspace bottlenecks and rows of
earlier commands are kept. Writes benchmarks/results/views_accuracy.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from grocery import add_data, find_grocery
from shops import GroceryPhotos, accuracies, cached, halves, softmax, trained_head

RESULTS = Path(__file__).parent / "results" / "views_accuracy.json"
SETS = (
    "whole",
    "whole,flip",
    *(
        "whole,flip,{0},{0}-flip: whole whole,{0} whole,flip,{0},{0}-flip".format(f"{size}-center")
        for size in (288, 352, 448)
    ),
)
BATCH = 32
KEPT = 0.8  # of the gain, by a cascade


def main() -> None:
    """Measures, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--backbone", metavar="NAME=WEIGHTS", help="default: MobileNet at 224 px")
    parser.add_argument("--image-size", type=int, default=224, help="of the backbone, px")
    parser.add_argument("--train", dest="sets", action="append", metavar="VIEWS: ASKED ASKED …")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=75, help="of each head")
    parser.add_argument("--workspace", type=Path, help="kept; default: a scratch directory")
    options = parser.parse_args()
    found = find_grocery(options.data)
    if found is None:
        return
    manifest, weights = found
    name, _, given = (options.backbone or f"mobilenet={weights}").partition("=")
    with tempfile.TemporaryDirectory() as scratch:
        workspace = options.workspace or Path(scratch)
        rows = _Trial(manifest, name, given, workspace, options).rows(options.sets or SETS)
    print(measure.table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]))
    results = {"seeds": options.seeds, "epochs": options.epochs, "rows": rows}
    RESULTS.write_text(
        json.dumps(results | {"conditions": measure.conditions("tensorflow", "keras")}, indent=1) + "\n"
    )


class _Trial:
    """One backbone, the photos, and their bottlenecks by view."""

    def __init__(
        self, manifest: Path, name: str, weights: str, workspace: Path, options: argparse.Namespace
    ) -> None:
        from features.engines.backbones import load_backbone, start_tensorflow
        from pipeline.job.load_config import load_config

        start_tensorflow()
        self.options, self.workspace, self.config = options, workspace, load_config()
        self.photos = GroceryPhotos(manifest, workspace)
        self.base = load_backbone(name, weights, options.image_size)
        train = np.flatnonzero(self.photos.train)
        half = halves(self.of("whole")[train].astype(np.float32), self.photos.category[train])
        self.trials = {  # training photos, photos asked about
            "half B": (train[half == 0], train[half == 1]),
            "val": (train, np.flatnonzero(~self.photos.train)),
        }

    def rows(self, sets: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each set of views, after those of earlier commands."""
        kept = self.workspace / "rows.json"
        rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
        for text in sets:
            views, _, asked = text.partition(":")
            rows += self.rows_of(views.split(","), [one.split(",") for one in asked.split() or [views]])
            kept.write_text(json.dumps(rows, indent=1))
            print(rows[-1], flush=True)
        return rows

    def rows_of(self, views: Sequence[str], asked: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """A row for each list of views that is asked, of the same heads."""
        found = {
            name: [
                (self.probabilities(views, train, test, seed), self.photos.labels[test])
                for seed in range(self.options.seeds)
            ]
            for name, (train, test) in self.trials.items()
        }
        return [self.row(views, some, found) for some in asked]

    def row(
        self, views: Sequence[str], asked: Sequence[str],
        found: dict[str, list[tuple[dict[str, np.ndarray], np.ndarray]]],
    ) -> dict[str, Any]:  # fmt: skip
        """Accuracies in percent, leaf and level 2, with the cost."""
        percents = {}
        for name, trials in found.items():
            right = [
                list(accuracies(_mean(of_view, asked), labels, self.photos.taxonomy).values())
                for of_view, labels in trials
            ]
            percents[name] = [round(100 * float(one), 1) for one in np.mean(right, axis=0)]
        one, every = (
            np.concatenate([_mean(of_view, some) for of_view, _ in found["half B"]])
            for some in (asked[:1], asked)
        )
        share = smallest_share(one, every, np.concatenate([labels for _, labels in found["half B"]]))
        costs = [self.seconds(view) / self.seconds("whole") for view in asked]
        return {
            "backbone": self.base.fingerprint,
            "trained on": ",".join(views),
            "asked": ",".join(asked),
            **percents,
            "cost": round(sum(costs), 2),
            "share": round(share, 2),
            "cost with it": round(costs[0] + share * sum(costs[1:]), 2),
        }

    def probabilities(
        self, views: Sequence[str], train: np.ndarray, test: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """View → (n, C), of the photos asked about."""
        rows = np.concatenate([self.of(view)[train] for view in views])
        labels = np.tile(self.photos.labels[train], len(views))
        head = trained_head(
            rows, labels, self.photos.taxonomy, self.config, self.base.fingerprint,
            seed=seed, epochs=self.options.epochs,
        )  # fmt: skip
        return {view: softmax(head.logits(self.of(view)[test])) for view in views}

    def of(self, view: str) -> np.ndarray:
        """(n, d) float16, the bottlenecks of all photos."""
        from features.engines.choose import engines_of_views
        from features.engines.engine import extract
        from features.records import read_pieces
        from features.views import parse_view

        folder = self.workspace / self.base.fingerprint
        folder.mkdir(exist_ok=True)

        def make() -> np.ndarray:
            its = parse_view(view)
            engine = engines_of_views(self.base, [its], BATCH)[its.network]
            pieces = lambda rows: read_pieces(self.photos.records.path, rows)  # noqa: E731
            images = self.photos.images
            extract(engine, pieces(images[: 2 * BATCH]), 2 * BATCH, [its])  # has run before it is timed
            began = time.process_time()
            [rows] = extract(engine, pieces(images), len(images), [its])
            (folder / f"{view}.json").write_text(json.dumps(time.process_time() - began))
            return rows

        return cached(folder / f"{view}.npy", make)

    def seconds(self, view: str) -> float:
        """Processor seconds that its extraction took."""
        return float(json.loads((self.workspace / self.base.fingerprint / f"{view}.json").read_text()))


def smallest_share(one: np.ndarray, every: np.ndarray, labels: np.ndarray) -> float:
    """The smallest share of the photos, the least certain first, that keeps KEPT of the gain; 1 without one.

    Args:
        one: (n, C) probabilities of the first view.
        every: (n, C) of all views.
        labels: (n,) int.
    """
    gains = (every.argmax(axis=1) == labels) * 1.0 - (one.argmax(axis=1) == labels)
    kept = np.cumsum(gains[np.argsort(one.max(axis=1), kind="stable")])
    if kept[-1] <= 0:
        return 1.0
    return float(np.argmax(kept >= KEPT * kept[-1]) + 1) / len(labels)


def _mean(of_view: dict[str, np.ndarray], asked: Sequence[str]) -> np.ndarray:
    """(n, C), the mean of the views asked."""
    mean: np.ndarray = np.mean([of_view[view] for view in asked], axis=0)
    return mean


if __name__ == "__main__":
    main()
