"""The same network as Keras' and as a FILE.onnx: images a second, MobileNet at 224 px.

    .venv/bin/python benchmarks/encoders.py [--images 64] [--rounds 9]

    keras, openvino        `--backbone mobilenet`, as OpenVINO's converter makes it from Keras
    onnx, openvino         `--backbone mobilenet.onnx`, exported by tf2onnx, in OpenVINO
    onnx, onnxruntime      the same file in ONNX Runtime, fp32

Pixels are in memory. The engines are in one process and take turns, so that a busy computer is as busy for
each; also counted is the processor time of an image. Random weights, drawn so that no output is zero. Needs
the extras onnx, openvino and bench. Writes results/encoders.json.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import conditions, median, table, verdict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
PACKAGES = ("tensorflow", "keras", "openvino", "onnx", "onnxruntime", "tf2onnx", "numpy")
SIZE, BATCH = 224, 32
ENGINES = (("keras", "openvino"), ("onnx", "openvino"), ("onnx", "onnxruntime"))


def main() -> None:
    """Runs the engines in turns, prints a table and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="in a turn; a multiple of 32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    results = compare(options.images, options.rounds)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def compare(images: int, rounds: int) -> dict[str, Any]:
    """Returns what the results file holds."""
    from features.engines.choose import choose_engine

    backbones = _backbones()
    engines = {
        f"{network}, {engine}": choose_engine(backbones[network], BATCH, engine)
        for network, engine in ENGINES
    }
    pixels = np.random.default_rng(0).integers(0, 256, (images, SIZE, SIZE, 3), np.uint8)
    batches = [pixels[first : first + BATCH] for first in range(0, images, BATCH)]
    rates: dict[str, list[float]] = {name: [] for name in engines}
    processor: dict[str, list[float]] = {name: [] for name in engines}
    found = {}
    for number in range(rounds + 1):  # the first one warms up
        for name, engine in engines.items():
            rows: np.ndarray = np.empty((images, engine.width), np.float32)
            began, used = time.monotonic(), time.process_time()
            engine.fill(batches, rows)
            if number:
                rates[name].append(images / (time.monotonic() - began))
                processor[name].append(1000 * (time.process_time() - used) / images)
            found[name] = rows
    reference = found["keras, openvino"]
    figures = [
        {
            "subject": name,
            "engine": engines[name].name,
            "images_per_second": round(median(rates[name]), 1),
            "rates": [round(rate, 1) for rate in rates[name]],
            "processor_ms": round(median(processor[name]), 2),
            "furthest": float(f"{_furthest(found[name], reference):.1e}"),
        }
        for name in engines
    ]
    header = ["subject", "engine", "images/s", "processor ms", "furthest from keras"]
    print(table(header, [[str(row[key]) for key in ("subject", "engine", "images_per_second", "processor_ms",
                                                    "furthest")] for row in figures]))  # fmt: skip
    keras, onnx, runtime = figures
    return {
        "images": images,
        "rounds": rounds,
        "figures": figures,
        "verdicts": [
            verdict(
                "images/s in OpenVINO, onnx / keras",
                onnx["images_per_second"] / keras["images_per_second"],
                0.95,
                " ×",
                at_least=True,
            ),
            verdict(
                "processor time in OpenVINO, onnx / keras",
                onnx["processor_ms"] / keras["processor_ms"],
                1.05,
                " ×",
            ),
            verdict(
                "processor time, onnx in ONNX Runtime / in OpenVINO",
                runtime["processor_ms"] / onnx["processor_ms"],
                2,
                " ×",
            ),
        ],
    }


def _backbones() -> dict[str, Any]:
    """The network in Keras, and as a file."""
    sys.path.append(str(ROOT / "tests"))
    import tensorflow as tf
    import tf2onnx
    from conftest import drawn_backbone

    from features.engines.backbones import load_backbone, start_tensorflow
    from features.engines.onnx_input import EncoderOptions

    start_tensorflow()
    keras = drawn_backbone(0, SIZE)
    spec = tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="photos")
    network = tf.function(lambda photos: keras.network(photos, training=False), input_signature=[spec])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mobilenet.onnx")
        tf2onnx.convert.from_function(network, [spec], opset=17, output_path=str(file))
        onnx = load_backbone(str(file), "imagenet", encoder=EncoderOptions(scaling="-1..1"))
    return {"keras": keras, "onnx": onnx}


def _furthest(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of a bottleneck as a share of its length."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


if __name__ == "__main__":
    main()
