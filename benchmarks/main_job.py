"""The main job on real photos: seconds a stage, and validation accuracy beside a linear SVM.

    .venv/bin/python benchmarks/main_job.py [--data ../shared] [--seeds 3]

Photos: the Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV 2019) as
`<data>/data/grocery/manifest.csv`, with an ImageNet-trained MobileNet in `<data>/weights`. The SVM, the peer,
is trained on the same bottlenecks. Without the photos nothing is measured, and a line says so.
Writes benchmarks/results/main_job.json.
"""

import argparse
import json
import logging
import os
import platform
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from grocery import add_data, find_grocery

RESULTS = Path(__file__).parent / "results" / "main_job.json"
LINE = re.compile(r"(\w+): .* in (\d+\.\d) s$")


def main() -> None:
    """Runs every seed in a workspace of its own, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found = find_grocery(options.data)
    if found is None:
        return
    manifest, weights = found
    runs = [measure(manifest, weights, seed) for seed in range(options.seeds)]
    stages = list(runs[0]["seconds"])
    print("seed " + " ".join(f"{stage:>12}" for stage in [*stages, "all", "leaf acc.", "SVM"]))
    for run in runs:
        numbers = [
            *(run["seconds"][stage] for stage in stages),
            run["total_seconds"],
            run["accuracy"],
            run["svm_accuracy"],
        ]
        print(f"{run['seed']:>4} " + " ".join(f"{number:>12.3f}" for number in numbers))
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "mean_accuracy": statistics.mean(run["accuracy"] for run in runs),
        "mean_svm_accuracy": statistics.mean(run["svm_accuracy"] for run in runs),
        "median_total_seconds": statistics.median(run["total_seconds"] for run in runs),
        "runs": runs,
    }
    print(f"mean accuracy {results['mean_accuracy']:.3f}, linear SVM {results['mean_svm_accuracy']:.3f}")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measure(manifest: Path, weights: Path, seed: int) -> dict[str, Any]:
    """One undisturbed run."""
    from features.engines.backbones import start_tensorflow

    start_tensorflow()
    from pipeline.job.load_config import load_config
    from pipeline.job.lock import only_job
    from pipeline.job.run import begin_run
    from pipeline.retrain import retrain

    seconds: dict[str, float] = {}
    handler = logging.Handler()
    handler.emit = lambda record: seconds.update(
        {m[1]: float(m[2]) for m in [LINE.match(record.getMessage())] if m}
    )
    logger = logging.getLogger("shelfmark")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    names = {"name": "mobilenet", "weights": str(weights), "image_size": 224}
    config = load_config(
        options={"seed": seed} | {f"backbone.{name}": value for name, value in names.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with only_job(Path(folder) / "runs" / "bench"):
            run = begin_run(Path(folder), "bench", config)
            retrain(run, [str(manifest)])
        total = time.monotonic() - began
        metrics = json.loads((run.path / "evaluation" / "metrics.json").read_text())
        svm = svm_accuracy(run)
    logger.removeHandler(handler)
    return {
        "seed": seed, "seconds": seconds, "total_seconds": total,
        "accuracy": metrics["val"]["precision"], "levels": metrics["val"]["levels"], "svm_accuracy": svm,
    }  # fmt: skip


def svm_accuracy(run: Any) -> float:
    """Validation accuracy of a standardised linear SVM (C = 0.01) on the run's bottlenecks."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    from pipeline.job.catalogue import categories_of, open_part

    category = categories_of(run.artifact("records", "ingest"))
    bottlenecks = run.artifact("bottlenecks", "extract")
    parts = [open_part(bottlenecks, run.store, split) for split in ("train", "val")]
    (x, y), (x_val, y_val) = (
        (part.rows[slice(None)].astype(np.float32), category.reindex(part.product_id).to_numpy())
        for part in parts
    )
    svm = make_pipeline(StandardScaler(), LinearSVC(C=0.01)).fit(x, y)
    return float((svm.predict(x_val) == y_val).mean())


if __name__ == "__main__":
    main()
