"""What precision and image size cost in accuracy: bottlenecks of real photos, by engine and by size.

    .venv/bin/python benchmarks/engines_agree.py [--data ../shared]

Photos: the Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV 2019) as
`<data>/data/grocery/manifest.csv`, with an ImageNet-trained MobileNet in `<data>/weights`. A linear SVM
(standardised, C = 0.01) is trained on the training photos and measured on the validation photos. There are
296 of these, so a point is three photos. `crossed`: trained on TensorFlow's fp32 bottlenecks, measured on the
engine's, as when a model is trained with one engine and serves with another. `error` is the length of the
difference from TensorFlow's fp32 as a share of the bottleneck's length, of the worst photo, before rounding;
`stored`: after both are rounded to float16, whose neighbours are 1e-3 apart. Rates are of decoding, resizing
and the backbone together. JAX, which is for GPUs and slow on processors, computes the validation photos
alone. Without the photos nothing is measured, and a line says so. Writes results/engines_agree.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from grocery import add_data, find_grocery
from measure import conditions, table, verdict

RESULTS = Path(__file__).parent / "results" / "engines_agree.json"
PACKAGES = ("tensorflow", "keras", "openvino", "nncf", "jax", "numpy", "scikit-learn")
REFERENCE = ("tensorflow", "fp32", 224)
ENGINES = (
    REFERENCE, ("jax", "fp32", 224), ("openvino", "fp32", 224),
    ("tensorflow", "bf16", 224), ("jax", "bf16", 224), ("openvino", "bf16", 224), ("openvino", "int8", 224),
)  # fmt: skip
SIZES = (96, 128, 160, 180, 224)  # px
CALIBRATE_ON = 9  # every ninth training photo: 294
LIMITS = {"fp32": (1e-4, 1.0), "bf16": (2e-2, 1.0), "int8": (None, 2.0)}  # error; points of accuracy


def main() -> None:
    """Runs every engine and size in a process of its own, prints two tables, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--subject", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    found = find_grocery(options.data)
    if found is None:
        return
    manifest, weights = found
    if options.subject:
        engine, precision, size, out = options.subject
        bottlenecks(manifest, Path(out), engine, precision, ("mobilenet", weights, int(size)))
        return
    results = compare(options.data, manifest)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def bottlenecks(
    manifest: Path, out: Path, engine: str, precision: str, network: tuple[str, Path, int], val: bool = False
) -> None:
    """Writes (n, d) float32 bottlenecks of the manifest's photos, and the seconds they took.

    Args:
        manifest: of the photos.
        out: the .npz file.
        engine: as in extract.engine.
        precision: as in extract.precision.
        network: name, weights, px.
        val: the validation photos alone.
    """
    import time

    from features.engines.choose import choose_engine, use_engine
    from features.engines.engine import extract
    from features.engines.openvino import Int8Calibration

    use_engine(engine)
    from features.engines.backbones import load_backbone, start_tensorflow

    start_tensorflow()
    import pandas as pd

    from features.images.normalise import normalise
    from features.images.refusal import LIMITS
    from features.records import pieces_of

    def photos_of(rows: Any) -> list[bytes]:
        return [normalise((manifest.parent / name).read_bytes(), LIMITS).jpeg for name in rows["image"]]

    rows = pd.read_csv(manifest)
    train = photos_of(rows[rows["split"] == "train"][::CALIBRATE_ON]) if precision == "int8" else []
    photos = photos_of(rows[rows["split"] != "train"] if val else _photos_for(rows, engine))
    with tempfile.TemporaryDirectory() as folder:
        calibration = Int8Calibration(Path(folder), lambda most: pieces_of(train[:most], "training photos"))
        name, weights, size = network
        backbone = load_backbone(name, str(weights), size)
        made = choose_engine(backbone, 32, engine, precision, calibration)
        extract(made, pieces_of(photos[:64], "photos"), 64)
        began = time.monotonic()
        [found] = extract(made, pieces_of(photos, "photos"), len(photos), dtype=np.float32)
        np.savez(out, bottlenecks=found, seconds=time.monotonic() - began)


def _photos_for(rows: Any, engine: str) -> Any:
    """The photos of the manifest that an engine computes."""
    return rows[rows["split"] != "train"] if engine == "jax" else rows


def compare(data: Path, manifest: Path) -> dict[str, Any]:
    """Both tables; returns what the results file holds."""
    import pandas as pd

    rows = pd.read_csv(manifest)
    found = {}
    for subject in dict.fromkeys([*ENGINES, *(("auto", "auto", size) for size in SIZES)]):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.npz")
            call = [sys.executable, __file__, "--data", str(data), "--subject", *map(str, subject), str(out)]
            subprocess.run(call, check=True)
            with np.load(out) as arrays:
                found[subject] = arrays["bottlenecks"], float(arrays["seconds"])
        bottlenecks, seconds = found[subject]
        print(f"{' '.join(map(str, subject))}: {len(bottlenecks) / seconds:,.0f} images/s", flush=True)
    figures = [_figure(subject, found, rows) for subject in found]
    header = ["engine", "px", "images/s", "SVM", "SVM, crossed", "error", "stored"]
    print(table(header, map(_row, figures)))
    return {"photos": len(rows), "figures": figures, "verdicts": _verdicts(figures)}


def _figure(subject: tuple[str, str, int], found: dict[Any, Any], rows: Any) -> dict[str, Any]:
    engine, precision, size = subject
    (exact, seconds), exact_reference = found[subject], found[REFERENCE][0]
    own, reference = _stored(exact), _stored(exact_reference)
    rate = round(len(own) / seconds, 1)
    figure = {"engine": f"{engine} {precision}", "image_size": size, "images_per_second": rate}
    train, computed = (rows["split"] == "train").to_numpy(), rows.index.isin(_photos_for(rows, engine).index)
    category, val = rows["category"].to_numpy(), own[~train[computed]]
    if train[computed].any():
        figure["svm"] = accuracy(own[train], val, category[train], category[~train])
    if size == REFERENCE[2]:
        figure["crossed"] = accuracy(reference[train], val, category[train], category[~train])
        figure["error"] = _worst(exact, exact_reference[computed])
        figure["stored"] = _worst(own, reference[computed])
    return figure


def _stored(bottlenecks: np.ndarray) -> np.ndarray:
    """As the store keeps them."""
    return bottlenecks.astype(np.float16).astype(np.float32)


def _worst(bottlenecks: np.ndarray, reference: np.ndarray) -> float:
    """Length of the difference as a share of the reference's, of the worst photo."""
    lengths = np.linalg.norm(bottlenecks - reference, axis=1) / np.linalg.norm(reference, axis=1)
    return float(lengths.max())


def accuracy(train: np.ndarray, val: np.ndarray, category: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy in per cent of a linear SVM trained on (n, d) bottlenecks and measured on (m, d).

    Args:
        train: (n, d) bottlenecks.
        val: (m, d) bottlenecks.
        category: (n,) str.
        truth: (m,) str.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    svm = make_pipeline(StandardScaler(), LinearSVC(C=0.01, random_state=0))
    svm.fit(train, category)
    return round(100 * float((svm.predict(val) == truth).mean()), 2)


def _row(figure: dict[str, Any]) -> list[str]:
    crossed = ["", "", ""]
    if "error" in figure:
        crossed = [f"{figure['crossed']:.1f} %", *(f"{figure[name]:.1e}" for name in ("error", "stored"))]
    size, rate = str(figure["image_size"]), f"{figure['images_per_second']:,.0f}"
    svm = f"{figure['svm']:.1f} %" if "svm" in figure else ""
    return [figure["engine"], size, rate, svm, *crossed]


def _verdicts(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures against their targets; each is printed."""
    base, verdicts = figures[0]["svm"], []
    for figure in figures[1 : len(ENGINES)]:
        most, points = LIMITS[figure["engine"].split()[1]]
        if most is not None:
            verdicts.append(verdict(f"{figure['engine']}, error / {most:g}", figure["error"] / most, 1.0, ""))
        for name in ("svm", "crossed"):
            if name not in figure:
                continue
            what = f"{figure['engine']}, {name}, points from tensorflow fp32"
            verdicts.append(verdict(what, abs(figure[name] - base), points, ""))
    return verdicts


if __name__ == "__main__":
    main()
