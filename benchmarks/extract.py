"""Extraction beside the backbone alone: images a second and peak memory, Inception v3 at 299 px.

    .venv/bin/python benchmarks/extract.py [--images 8192] [--repeats 3] [--scratch DIR]

    shelfmark    from TFRecord shards of 180 px photos to shards of a Store; the engine that auto takes
    keras        (a) keras.Model.predict, TensorFlow in fp32, pixels in memory
    openvino     (b) OpenVINO's own throughput on the network as it converts it, pixels in memory; its best
                 setting
    onnxruntime  (c) ONNX Runtime in fp32 on Keras' own ONNX export, pixels in memory; its best setting

Random weights: they cost the same. Every subject is a process of its own and they take turns. Rates do not
include what happens once (imports, the network's conversion and compilation, one batch to warm up): that is
"start-up". Needs the extras openvino and bench. Writes results/extract.json.
"""

import argparse
import functools
import json
import operator
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import MB, MeasuredCommand, conditions, median, run, table, verdict

from pipeline.job.config import ExtractSettings

RESULTS = Path(__file__).parent / "results" / "extract.json"
PACKAGES = ("tensorflow", "keras", "openvino", "onnxruntime", "tf2onnx", "numpy", "simplejpeg")
PEERS = ("keras", "openvino", "onnxruntime")
SHARD = ExtractSettings().shard_images  # images in a shard of the store, and in one of records
FEW = 320  # images for the slow subjects
SIDE = 299  # px


def main() -> None:
    """Writes the records, runs the subjects in turns, prints a table and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2 * SHARD)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="a directory with room for 20 kB an image")
    parser.add_argument("--subject", choices=["shelfmark", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        results = SUBJECT[options.subject](*options.arguments)
        print(json.dumps(results))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        results = compare(Path(folder), options.images, options.repeats)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def write_records(folder: Path, images: int) -> None:
    """TFRecord shards and images.parquet, as ingest would leave them."""
    import pandas as pd
    from ingest import draw_pictures

    from features.product import ProductImage
    from features.records import frame, serialise

    pictures = draw_pictures(500, seed=0)
    rows = []
    for first in range(0, images, SHARD):
        name, offset = f"train-{first // SHARD:05}.tfrecord", 0
        with open(folder / name, "wb") as shard:
            for number in range(first, min(first + SHARD, images)):
                digest = f"{number:064x}"
                jpeg = pictures[number % len(pictures)]
                framed = frame(serialise(ProductImage(str(number), 0, "c", "train", "", digest, jpeg)))
                rows.append((digest, name, offset, shard.write(framed)))
                offset += len(framed)
    pd.DataFrame(rows, columns=["image_digest", "file", "offset", "length"]).to_parquet(
        folder / "images.parquet"
    )


# The subjects: each returns {"images", "seconds", "start_up", ...}


def shelfmark(records: str, out: str, images: str) -> dict[str, Any]:
    """What pipeline/extract/extract.py does for what the store lacks."""
    began = time.monotonic()
    import pandas as pd

    from features.engines.backbones import load_backbone, start_tensorflow

    start_tensorflow()
    from features.engines.choose import choose_engine
    from features.engines.engine import extract
    from features.records import read_pieces
    from features.storage.store import Store

    rows = pd.read_parquet(Path(records, "images.parquet"))[: int(images)]
    store = Store(Path(out))
    engine = choose_engine(load_backbone("inception_v3", "random"), batch=32)
    extract(engine, read_pieces(Path(records), rows[: engine.batch]), engine.batch)
    ready = time.monotonic()
    for first in range(0, len(rows), SHARD):
        its = rows[first : first + SHARD]
        [bottlenecks] = extract(engine, read_pieces(Path(records), its), len(its))
        digests = np.frombuffer(bytes.fromhex("".join(its["image_digest"])), np.uint8).reshape(-1, 32)
        store.append(digests, bottlenecks, engine=engine.name)
    return _timed(len(rows), began, ready) | {"setting": engine.name}


def keras_predict() -> dict[str, Any]:
    """`predict` on an array."""
    began = time.monotonic()
    pixels, model = _pixels(FEW), _backbone().model
    model.predict(pixels[:32], batch_size=32, verbose=0)
    ready = time.monotonic()
    model.predict(pixels, batch_size=32, verbose=0)
    return _timed(FEW, began, ready) | {"setting": "fp32, batch 32"}


def openvino_alone() -> dict[str, Any]:
    """Requests back to back, with every setting that may be the best."""
    began = time.monotonic()
    import openvino

    from features.engines.openvino import as_converted

    backbone, pixels, core = _backbone(), _pixels(FEW), openvino.Core()
    can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = "bf16" if "BF16" in can else "f32"
    ready, found = time.monotonic(), []
    network = as_converted(backbone, 1)
    for batch in (4, 8, 16, 32):
        for hint in ("THROUGHPUT", "LATENCY"):
            network.reshape([batch, SIDE, SIDE, 3])
            hints = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": precision}
            queue = openvino.AsyncInferQueue(core.compile_model(network, "CPU", hints))
            measure = functools.partial(_seconds, functools.partial(_start, queue), queue.wait_all)
            again = functools.partial(measure, np.concatenate([pixels] * 4), batch)
            found.append((measure(pixels, batch), f"{precision}, batch {batch}, {hint.lower()}", again))
    _, setting, again = min(found, key=operator.itemgetter(0))
    seconds = again()  # the quickest of eight was also quick by chance
    return {"images": 4 * FEW, "seconds": seconds, "start_up": ready - began, "setting": setting}


def _start(queue: Any, pixels: np.ndarray) -> None:
    queue.start_async([pixels])


def onnxruntime_alone() -> dict[str, Any]:
    """Keras' export, run with as many threads as there are cores."""
    began = time.monotonic()
    import onnxruntime

    backbone, pixels = _backbone(), _pixels(FEW).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "network.onnx"))
        backbone.model(pixels[:1])  # Keras exports what has been called
        backbone.model.export(file, format="onnx", verbose=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    name, ready, found = session.get_inputs()[0].name, time.monotonic(), []
    for batch in (8, 32):
        seconds = _seconds(lambda part: session.run(None, {name: part}), lambda: None, pixels, batch)
        found.append((seconds, f"fp32, batch {batch}"))
    return _best(found, began, ready)


SUBJECT: dict[str, Callable[..., dict[str, Any]]] = {
    "shelfmark": shelfmark, "keras": keras_predict, "openvino": openvino_alone,
    "onnxruntime": onnxruntime_alone,
}  # fmt: skip


def _backbone() -> Any:
    from features.engines.backbones import load_backbone, start_tensorflow

    start_tensorflow()
    return load_backbone("inception_v3", "random")


def _pixels(images: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)


def _seconds(
    start: Callable[[np.ndarray], Any], finish: Callable[[], Any], pixels: np.ndarray, batch: int
) -> float:
    """Seconds for all pixels, after a pass over some to warm up."""
    for images in (pixels[: 2 * batch], pixels):
        began = time.monotonic()
        for first in range(0, len(images), batch):
            start(images[first : first + batch])
        finish()
    return time.monotonic() - began


def _timed(images: int, began: float, ready: float) -> dict[str, Any]:
    return {"images": images, "seconds": time.monotonic() - ready, "start_up": ready - began}


def _best(found: list[tuple[float, str]], began: float, ready: float) -> dict[str, Any]:
    seconds, setting = min(found)
    return {"images": FEW, "seconds": seconds, "start_up": ready - began, "setting": setting}


# The comparison


def compare(folder: Path, images: int, repeats: int) -> dict[str, Any]:
    """Runs everything; returns what the results file holds."""
    write_records(folder, images)
    subjects, done = ("shelfmark", *PEERS), {}
    for repeat in range(repeats):
        for turn in range(len(subjects)):
            subject = subjects[(repeat + turn) % len(subjects)]
            done.setdefault(subject, []).append(_run(subject, folder, f"{subject}-{repeat}", images))
    done["shelfmark, a quarter"] = [_run("shelfmark", folder, "quarter", images // 4)]
    figures = [_figure(subject, runs) for subject, runs in done.items()]
    header = ["subject", "setting", "images/s", "of all runs", "start-up s", "peak MB"]
    print(
        table(
            header,
            [
                [
                    row["subject"], row["setting"], f"{row['images_per_second']:.1f}",
                    " ".join(f"{rate:.0f}" for rate in row["rates"]), f"{row['start_up']:.1f}",
                    f"{row['peak_mb']:,.0f}",
                ]
                for row in figures
            ],
        )
    )  # fmt: skip
    return {"images": images, "figures": figures, "verdicts": _verdicts(figures)}


def _run(subject: str, folder: Path, name: str, images: int) -> tuple[MeasuredCommand, dict[str, Any]]:
    arguments = [str(folder), str(folder / name), str(images)] if subject == "shelfmark" else []
    finished = run([sys.executable, __file__, "--subject", subject, *arguments])
    measured = json.loads(finished.output.splitlines()[-1])
    rate = measured["images"] / measured["seconds"]
    print(f"{subject}: {rate:.1f} images/s, {measured['setting']}, {finished.peak / MB:.0f} MB", flush=True)
    return finished, measured


def _figure(subject: str, runs: list[tuple[MeasuredCommand, dict[str, Any]]]) -> dict[str, Any]:
    rates = [measured["images"] / measured["seconds"] for _, measured in runs]
    return {
        "subject": subject,
        "setting": runs[0][1]["setting"],
        "images_per_second": round(median(rates), 1),
        "rates": [round(rate, 1) for rate in rates],
        "start_up": round(median(measured["start_up"] for _, measured in runs), 1),
        "peak_mb": round(max(finished.peak for finished, _ in runs) / MB),
    }


def _verdicts(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures against their targets; each is printed."""
    found = {row["subject"]: row for row in figures}
    ours, quarter = found["shelfmark"], found["shelfmark, a quarter"]
    return [
        *(
            verdict(
                f"images/s, shelfmark / {peer}",
                ours["images_per_second"] / found[peer]["images_per_second"],
                target,
                " ×",
                at_least=True,
            )
            for peer, target in (("keras", 2.0), ("openvino", 0.9), ("onnxruntime", 1.0))
        ),
        verdict("peak memory of shelfmark", ours["peak_mb"], 2000, " MB"),
        verdict("peak memory, all images / a quarter", ours["peak_mb"] / quarter["peak_mb"], 1.1, " ×"),
    ]


if __name__ == "__main__":
    main()
