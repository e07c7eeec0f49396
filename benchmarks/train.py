"""Training at full width: images a second beside scikit-learn and beside the machine's own matrix products.

    .venv/bin/python benchmarks/train.py [--images 50000] [--rounds 3] [--stored 2000000]
    [KERAS_BACKEND=jax] .venv/bin/python benchmarks/train.py --measure gpu [--held 16000000]

2048-1024-1024-5270, batch 256, drawn bottlenecks.

    floor    NumPy's products of one step alone: forward, by weights and by inputs (not by those of the first
             layer), as often as a step needs them, in float32, on the machine's cores
    peer     scikit-learn's MLPClassifier, SGD, by partial_fit on 20 batches; it computes in the type it is
             given, and makes float64 of float16
    ours     fit_head, an epoch: the seconds of two epochs less those of one, so that the start does not count

The parts take turns, and of each the median of the rounds counts. What train.precision = auto gives depends
on the processor: the aim is 3 times scikit-learn with amx_bf16, 2.2 times with avx512_bf16 alone, 1.5 times
with neither, where it is float32.

The memory is the largest resident size of a process that trains one epoch from a store of `--stored`
bottlenecks on disk, one in 25 of them FIT, with its checkpoint.

On a GPU: seconds of an epoch of `--held` bottlenecks in its memory, by recipe and batch; 16 M are 66 GB,
and as much of the machine's memory on their way. A million of them are drawn, and repeated.

Writes benchmarks/results/train.json, of a GPU only where there is one.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np

RESULTS = Path(__file__).parent / "results" / "train.json"
SIZES, BATCH = (2048, 1024, 1024, 5270), 256
SHARD = 4096  # bottlenecks, as extract writes them


def main() -> None:
    """Measures every part in a process of its own, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stored", type=int, default=2_000_000)
    parser.add_argument(
        "--measure", nargs="+", default=["speed", "memory"], choices=["speed", "memory", "gpu"]
    )
    parser.add_argument("--held", type=int, default=16_000_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--part", help="measure only this one, and print its figures as JSON")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    if options.part:
        name, *argument = options.part.split(":")
        print(json.dumps(PARTS[name](options, *argument)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if {"speed", "memory"} & set(options.measure):
        results["conditions"] = measure.conditions("tensorflow", "keras", "numpy", "scikit-learn")
    if "speed" in options.measure:
        results["speed"] = measured_speed(options)
    if "memory" in options.measure:
        results["memory"] = measured_memory(options)
    if "gpu" in options.measure:
        results["gpu"] = measured_gpu(options)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measured_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of every part."""
    figures = [{part: _measured(part, options)[0] for part in SPEEDS} for _ in range(options.rounds)]
    speeds = {part: measure.median(of[part]["images_per_second"] for of in figures) for part in SPEEDS}
    chosen = sorted({of["ours:default:auto"]["precision"] for of in figures})
    processor = next((name for name in AIMS if name in processor_features()), "")
    print(f"auto: {', '.join(chosen)}; processor: {processor or 'without bfloat16'}")
    rows = [
        (part, f"{speed:,.0f}", f"{speed / speeds['floor']:.2f}", f"{speed / speeds['peer:float32']:.2f}")
        for part, speed in speeds.items()
    ]
    print(measure.table(["", "images/s", "of the floor", "times the peer in float32"], rows))
    ours, same_type = speeds["ours:default:auto"], speeds["ours:paper:float32"]
    verdicts = [
        measure.verdict(
            "default, of the peer in float32",
            ours / speeds["peer:float32"],
            AIMS.get(processor, 1.5),
            "x",
            at_least=True,
        ),
        measure.verdict("default, of the floor", ours / speeds["floor"], 0.6, "", at_least=True),
        measure.verdict(
            "paper in float32, of the floor", same_type / speeds["floor"], 0.6, "", at_least=True
        ),
    ]
    rounded = {part: round(speed) for part, speed in speeds.items()}
    return {
        "images": options.images,
        "rounds": options.rounds,
        "processor": processor or "without bfloat16",
        "auto": chosen,
        "images_per_second": rounded,
        "verdicts": verdicts,
    }


def processor_features() -> set[str]:
    """The names that Linux gives them; none elsewhere."""
    file = Path("/proc/cpuinfo")
    return set(file.read_text().split()) if file.is_file() else set()


def measured_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of an epoch from the disk."""
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), options.stored)
        figures, run = _measured("stored", options, "--store", folder)
    verdict = measure.verdict(f"memory, {options.stored:,} stored", run.peak / 1e9, 3, " GB")
    return {"images": options.stored, "peak_gb": round(run.peak / 1e9, 2), **figures, "verdicts": [verdict]}


def measured_gpu(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an epoch by recipe and batch; the paper's, on a K80, are 10,000 for 20 million (S1)."""
    device, _ = _measured("device", options)  # elsewhere: asking JAX takes the memory
    if not device["gpu"]:
        raise SystemExit("No GPU that Keras can compute on: nothing to measure.")
    images = ("--held", str(options.held))
    seconds = {
        f"{recipe}, batch {batch}": _measured(f"held:{recipe}:{batch}", options, *images)[0]["seconds"]
        for recipe in ("paper", "default")
        for batch in options.batches
    }
    rows = [(what, f"{took:,.1f}", f"{options.held / took:,.0f}") for what, took in seconds.items()]
    print(measure.table([device["device"], "seconds an epoch", "images/s"], rows))
    conditions = measure.conditions("keras", "numpy")
    return {"conditions": conditions, "device": device["device"], "images": options.held, "seconds": seconds}


def _measured(
    part: str, options: argparse.Namespace, *more: str
) -> tuple[dict[str, Any], measure.MeasuredCommand]:
    command = [sys.executable, __file__, "--part", part, "--images", str(options.images), *more]
    run = measure.run(command)
    return json.loads(run.output.splitlines()[-1]), run


def draw(images: int, width: int = SIZES[0]) -> tuple[np.ndarray, np.ndarray]:
    """(n, width) float16 bottlenecks, of a normal distribution, and (n,) categories independent of them."""
    rng = np.random.default_rng(0)
    rows = np.empty((images, width), np.float16)
    for start in range(0, images, SHARD):
        rows[start : start + SHARD] = rng.standard_normal((min(SHARD, images - start), width), np.float32)
    return rows, rng.integers(0, SIZES[-1], images)


def floor(options: argparse.Namespace) -> dict[str, Any]:
    """The products of a step, 60 times."""
    rng = np.random.default_rng(0)
    layers = list(itertools.pairwise(SIZES))
    values = [rng.standard_normal((BATCH, size), np.float32) for size in SIZES]
    weights = [rng.standard_normal(layer, np.float32) for layer in layers]
    gradients = [np.empty(layer, np.float32) for layer in layers]
    outputs = [np.empty((BATCH, size), np.float32) for size in SIZES]

    def step() -> None:
        for number, weight in enumerate(weights):
            np.matmul(values[number], weight, out=outputs[number + 1])
        for number in reversed(range(len(weights))):
            np.matmul(values[number].T, values[number + 1], out=gradients[number])
            if number:
                np.matmul(values[number + 1], weights[number].T, out=outputs[number])

    return {"images_per_second": _per_second(step, 60)}


def peer(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """scikit-learn on 20 batches."""
    from sklearn.neural_network import MLPClassifier

    rows, categories = draw(20 * BATCH)
    rows = rows.astype(dtype)
    network = MLPClassifier(
        SIZES[1:-1], solver="sgd", batch_size=BATCH, learning_rate_init=0.1, momentum=0, alpha=0
    )
    network.partial_fit(rows[:BATCH], categories[:BATCH], classes=np.arange(SIZES[-1]))
    return {"images_per_second": 20 * _per_second(lambda: network.partial_fit(rows, categories), 1)}


def _per_second(step: Any, times: int) -> float:
    """Images a second, a batch a step."""
    if times > 1:
        step()  # the first one wakes the threads
    began = time.perf_counter()
    for _ in range(times):
        step()
    return BATCH * times / (time.perf_counter() - began)


def ours(options: argparse.Namespace, recipe: str, precision: str) -> dict[str, Any]:
    """Images a second of a second epoch."""
    rows, categories = draw(options.images)
    trained = [_train(rows, categories, recipe, precision, epochs) for epochs in (1, 2)]
    seconds, used = zip(*trained, strict=True)
    return {"images_per_second": options.images / (seconds[1] - seconds[0]), "precision": used[0]}


def stored(options: argparse.Namespace) -> dict[str, Any]:
    """One epoch from the disk."""
    from features.storage.store import Store

    rows = every_row(Store(options.store))
    categories = np.random.default_rng(0).integers(0, SIZES[-1], len(rows))
    fit = np.arange(len(rows)) % 25 == 0
    with tempfile.TemporaryDirectory() as work:
        seconds, _ = _train(rows, categories, "default", "auto", 1, fit, Path(work))
    return {"seconds": round(seconds)}


def device_in_use(options: argparse.Namespace) -> dict[str, Any]:
    """What Keras computes on."""
    from gpu import device

    name, gpu = device()
    return {"device": name, "gpu": gpu}


class Repeated:
    """Any number of bottlenecks, repeated from a million drawn ones."""

    def __init__(self, images: int) -> None:
        self.images, self.drawn = images, draw(min(images, 1_000_000))[0]

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.drawn[rows % len(self.drawn)]


def held(options: argparse.Namespace, recipe: str, batch: str) -> dict[str, Any]:
    """Seconds of a second epoch, of bottlenecks that stay on the device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # JAX takes three quarters by itself
    categories = np.random.default_rng(0).integers(0, SIZES[-1], options.held)
    sets = (f"train.batch={batch}", f"train.memory_gb={2 * options.held * SIZES[0] / 1e9 + 1}")
    seconds = [
        _train(Repeated(options.held), categories, recipe, "auto", epochs, sets=sets)[0] for epochs in (1, 2)
    ]
    return {"seconds": seconds[1] - seconds[0]}


def _train(
    rows: Any,
    categories: np.ndarray,
    recipe: str,
    precision: str,
    epochs: int,
    fit: np.ndarray | None = None,
    work: Path | None = None,
    sets: tuple[str, ...] = (),
) -> tuple[float, str]:
    """Seconds, without the trial of the precision, and the precision."""
    import keras

    from features.engines.backbones import start_tensorflow

    if keras.backend.backend() == "tensorflow":
        start_tensorflow()
    from models.heads.architectures import HeadShape
    from models.heads.training import Examples, fit_head
    from pipeline.job.load_config import load_config
    from pipeline.train.from_settings import head_precision, loss_of, recipe_of

    config = load_config(
        sets=(f"head.recipe={recipe}", f"train.precision={precision}", f"train.epochs={epochs}", *sets)
    )
    switches = {name: config.training()[name] for name in ("standardized", "second_dropout")}
    shape = HeadShape(SIZES[0], SIZES[-1], SIZES[1:-1], 0.5, 1.0, "", **switches)
    used = head_precision(config, shape)
    began = time.perf_counter()
    every, selecting = Examples(rows, categories), None
    if fit is not None:
        every, selecting = every.only(~fit), every.only(fit)
    fit_head(shape, every, selecting, recipe_of(config, used), loss_of(tree(), config), work)
    return time.perf_counter() - began, used


def tree() -> Any:
    """The taxonomy of 5,270 categories, under about as many nodes as Cdiscount's."""
    from models.taxonomy import Taxonomy

    numbers, count = range(SIZES[-1]), SIZES[-1]
    paths = [[f"{n * 49 // count:02d}", f"{n * 486 // count:03d}", f"{n:04d}"] for n in numbers]
    return Taxonomy(np.array([path[-1] for path in paths], dtype=object), np.array(paths, dtype=object))


def write_store(path: Path, images: int) -> None:
    """Writes a store of `images` bottlenecks; each shard has the same drawn rows in another order."""
    from features.storage.store import Store

    rows, _ = draw(SHARD)
    store, rng = Store(path), np.random.default_rng(1)
    for start in range(0, images, SHARD):
        digests = rng.integers(0, 256, (min(SHARD, images - start), 32), np.uint8)
        store.append(digests, rows[rng.permutation(SHARD)[: len(digests)]], "drawn")


def every_row(store: Any) -> Any:
    """All the bottlenecks of a store, shard after shard."""
    sizes = {name: len(store._array(name)) for name in store.shards()}
    row = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes.values()])
    return store.rows(list(sizes), np.repeat(np.arange(len(sizes)), list(sizes.values())), row)


PARTS = {"floor": floor, "peer": peer, "ours": ours, "stored": stored, "held": held, "device": device_in_use}
SPEEDS = (
    *("floor", "peer:float32", "peer:float64"),
    *("ours:paper:float32", "ours:paper:auto", "ours:default:float32", "ours:default:auto"),
)
AIMS = {"amx_bf16": 3.0, "avx512_bf16": 2.2}  # times the peer, by the best feature that the processor has

if __name__ == "__main__":
    main()
