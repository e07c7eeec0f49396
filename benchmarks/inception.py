"""Inception v3 with real weights at 299 px: do the engines agree, and what do its middle and its end give?

    .venv/bin/python benchmarks/inception.py [--data ../shared]

Photos: the Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV 2019) as
`<data>/data/grocery/manifest.csv`, and `<data>/weights/inception_v3.weights.h5`: up to `mixed5` ImageNet's
own network, after it trained further for another task, so the accuracy of its end is not that of ImageNet's
weights. `engines`: as in engines_agree.py, on the validation photos; `error` is the length of the
difference from TensorFlow's fp32 bottleneck as a share of its length, of the worst photo and of the median
one. `ends`: a linear SVM (standardised, C = 0.01) on the training photos, measured on the 296 validation
photos, by the layer at which the network ends (all ends in one pass); rates are of decoding, resizing and
the network that ends there together, on the validation photos. An engine or precision that this processor
lacks is named and left out. Without the photos nothing is measured, and a line says so. Writes
results/inception.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from engines_agree import accuracy, bottlenecks
from grocery import add_data, find_grocery
from measure import conditions, table, verdict

RESULTS = Path(__file__).parent / "results" / "inception.json"
PACKAGES = ("tensorflow", "keras", "openvino", "nncf", "numpy", "scikit-learn")
SIZE = 299  # px
ENGINES = (
    ("tensorflow", "fp32"),
    ("openvino", "fp32"),
    ("tensorflow", "bf16"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
ENDS = ("mixed2", "mixed3", "mixed4", "mixed5", "mixed8", "mixed10")  # the last is the network's own
LIMITS = {"fp32": 1e-4, "bf16": 2e-2}  # error of the worst photo


def main() -> None:
    """Runs every engine and every end in a process of its own, prints two tables, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--subject", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    found, weights = find_grocery(options.data), options.data / "weights" / "inception_v3.weights.h5"
    if found is None or not weights.is_file():
        print(f"{weights}: needed, with the photos; nothing measured (see --data)")
        return
    if options.subject:
        name, engine, precision, part, out = options.subject
        bottlenecks(found[0], Path(out), engine, precision, (name, weights, SIZE), val=part == "val")
        return
    results = {"engines": engines(options.data), "ends": ends(options.data, found[0])}
    results["verdicts"] = verdicts(results["engines"])
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def extracted(data: Path, *subject: str) -> tuple[np.ndarray, float] | str:
    """(n, d) bottlenecks and seconds; where the engine cannot run here, why."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.npz")
        call = [sys.executable, __file__, "--data", str(data), "--subject", *subject, str(out)]
        done = subprocess.run(call, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        with np.load(out) as arrays:
            return arrays["bottlenecks"], float(arrays["seconds"])


def engines(data: Path) -> list[dict[str, Any]]:
    """Each engine beside TensorFlow's fp32, on the validation photos."""
    figures: list[dict[str, Any]] = []
    exact = np.empty(0)
    for engine, precision in ENGINES:
        found = extracted(data, "inception_v3", engine, precision, "val")
        if isinstance(found, str):
            print(f"{engine} {precision}: left out: {found}", flush=True)
            continue
        rows, seconds = found
        exact = exact if len(exact) else rows
        error = np.linalg.norm(rows - exact, axis=1) / np.linalg.norm(exact, axis=1)
        figures.append({
            "engine": f"{engine} {precision}", "images_per_second": round(len(rows) / seconds, 1),
            "worst_error": float(error.max()), "median_error": float(np.median(error)),
        })  # fmt: skip
    shown = [[f"{value:.1e}" if "error" in name else value for name, value in one.items()] for one in figures]
    print(table(["engine", "images/s", "worst error", "median error"], shown), flush=True)
    return figures


def ends(data: Path, manifest: Path) -> list[dict[str, Any]]:
    """What an SVM makes of each end, in fp32: all ends of one pass over the photos, rates of each alone."""
    import pandas as pd

    rows = pd.read_csv(manifest)
    train = (rows["split"] == "train").to_numpy()
    side_by_side = extracted(data, f"inception_v3@{'+'.join(ENDS)}", "auto", "fp32", "all")
    assert not isinstance(side_by_side, str), side_by_side
    stored = side_by_side[0].astype(np.float16).astype(np.float32)
    figures, start = [], 0
    for end in ENDS:
        alone = extracted(data, f"inception_v3@{end}", "auto", "fp32", "val")
        assert not isinstance(alone, str), alone
        found, seconds = alone
        own = stored[:, start : start + found.shape[1]]
        start += found.shape[1]
        figures.append({
            "end": end, "numbers": found.shape[1], "images_per_second": round(len(found) / seconds, 1),
            **_svm(own, rows, train),
        })  # fmt: skip
    both = ENDS.index("mixed4"), ENDS.index("mixed5")
    starts = np.cumsum([0, *(figure["numbers"] for figure in figures)])
    joined = np.concatenate([stored[:, starts[at] : starts[at + 1]] for at in both], axis=1)
    figures.append({"end": "mixed4+mixed5", "numbers": joined.shape[1], **_svm(joined, rows, train)})
    header = ["end", "numbers", "images_per_second", "svm", "svm_level2"]
    print(table(header, [[figure.get(name, "") for name in header] for figure in figures]), flush=True)
    return figures


def _svm(stored: np.ndarray, rows: Any, train: np.ndarray) -> dict[str, float]:
    """Accuracy in per cent, of the category and of level 2."""
    of = {"svm": rows["category"].to_numpy(), "svm_level2": rows["level2"].to_numpy()}
    return {
        name: accuracy(stored[train], stored[~train], labels[train], labels[~train])
        for name, labels in of.items()
    }


def verdicts(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The engines' errors against their limits; each is printed."""
    limits = {one["engine"]: LIMITS.get(one["engine"].split()[1]) for one in figures[1:]}
    return [
        verdict(f"{one['engine']}, error / {limit:g}", one["worst_error"] / limit, 1.0, "")
        for one in figures[1:]
        if (limit := limits[one["engine"]]) is not None
    ]


if __name__ == "__main__":
    main()
