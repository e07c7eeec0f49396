"""A card of the GPU at hand: Inception v3 in bf16, its share of the chip's peak, and the week it makes.

    .venv/bin/python benchmarks/gpu.py [--batches 32 64 128 256 512] [--seconds 5] [--price PER_HOUR]
    KERAS_BACKEND=jax .venv/bin/python benchmarks/gpu.py

    engine   images a second of features/engines/, pixels in memory: TensorFlow, or JAX without it
    peak     what the chip can multiply: by its data sheet where that is known, and by a large product of
             matrices here
    decode   JPEGs of 180 px a second, over cores: what has to keep up
    week     hours for 20 million images, and for the 1 % of them that are new in a usual week

Writes results/gpu.json where the device is a GPU; on a CPU it only shows that it works.
"""

import argparse
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ingest import draw_pictures
from measure import conditions, table

if importlib.util.find_spec("tensorflow") is None:
    os.environ.setdefault("KERAS_BACKEND", "jax")

RESULTS = Path(__file__).parent / "results" / "gpu.json"
IMAGES = 20_000_000  # of the catalogue
NEW = 0.01  # of them, in a usual week
# TFLOP/s in bf16 without sparsity, from NVIDIA's data sheets; the first name that the device's contains
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}


def main() -> None:
    """Measures, prints the card, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--seconds", type=float, default=5.0, help="of every measurement")
    parser.add_argument("--image-size", type=int, default=299)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--matrix", type=int, default=8192, help="rows of the product that measures the peak")
    parser.add_argument("--price", type=float, help="of an hour of this machine, in any currency")
    options = parser.parse_args()
    name, gpu = device()
    results = {"device": name, "precision": options.precision, "image_size": options.image_size}
    results |= {"engine": throughput(options), "decode": decode_rates(options.seconds)}
    results["peak_tflops"] = {"data_sheet": _data_sheet(name), "matrix_product": measured_peak(options)}
    card(results, options.price)
    if gpu:
        RESULTS.write_text(json.dumps(conditions("keras", "numpy", "simplejpeg") | results, indent=1) + "\n")


def device() -> tuple[str, bool]:
    """The name of what Keras computes on, and whether it is a GPU."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind, jax.default_backend() == "gpu"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    return details.get("device_name", "cpu"), bool(gpus)


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second by batch, and the multiplications and additions of an image."""
    import keras

    from features.engines.backbones import load_backbone
    from features.engines.choose import choose_engine

    backbone, rates, described = load_backbone("inception_v3", "random", options.image_size), {}, ""
    for batch in options.batches:
        engine = choose_engine(backbone, batch, keras.backend.backend(), options.precision)
        described = engine.name
        shape = (batch, backbone.image_size, backbone.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        rows = np.empty((1_000_000 // batch * batch, backbone.width), np.float16)
        engine.fill([pixels, pixels], rows)  # compiles
        seen: list[int] = []
        began = time.monotonic()
        engine.fill(_until(began + options.seconds, pixels, seen), rows)
        rates[batch] = sum(seen) / (time.monotonic() - began)
        print(f"batch {batch}: {rates[batch]:,.1f} images/s", flush=True)
    return {"engine": described, "images_per_second": rates, "gflop_an_image": flop(backbone.model) / 1e9}


def _until(end: float, pixels: np.ndarray, seen: list[int]) -> Iterator[np.ndarray]:
    while time.monotonic() < end or not seen:
        seen.append(len(pixels))
        yield pixels


def flop(model: Any) -> int:
    """Multiplications and additions of the convolutions for one image; all else is under a hundredth."""
    import keras

    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += flop(layer)
        elif isinstance(layer, keras.layers.Conv2D):
            total += 2 * int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
    return total


def measured_peak(options: argparse.Namespace) -> float:
    """TFLOP/s of a product of two square matrices."""
    from keras import ops

    side, count = options.matrix, 0
    draw = np.random.default_rng(0).normal(0, 1 / np.sqrt(side), (side, side)).astype(np.float32)
    matrix = ops.cast(ops.convert_to_tensor(draw), {"bf16": "bfloat16", "fp32": "float32"}[options.precision])
    ops.convert_to_numpy(ops.matmul(matrix, matrix)[0, 0])
    began = time.monotonic()
    while time.monotonic() < began + options.seconds:
        product = matrix
        for _ in range(10):  # one after the other, and waited for together
            product = ops.matmul(product, matrix)
        ops.convert_to_numpy(product[0, 0])
        count += 10
    return 2 * side**3 * count / (time.monotonic() - began) / 1e12


def _data_sheet(name: str) -> int | None:
    return next((peak for chip, peak in PEAKS.items() if chip in name), None)


def decode_rates(seconds: float) -> dict[int, float]:
    """JPEGs a second by cores: 1, 2, 4, … and all."""
    import simplejpeg

    jpegs = draw_pictures(100, seed=0)
    cores = os.cpu_count() or 1

    def decode(until: float) -> int:
        for count in itertools.count():
            if time.monotonic() >= until:
                return count
            simplejpeg.decode_jpeg(jpegs[count % len(jpegs)])
        raise AssertionError

    rates = {}
    for threads in sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)}):
        with ThreadPoolExecutor(threads) as pool:
            rates[threads] = sum(pool.map(decode, [time.monotonic() + seconds] * threads)) / seconds
    return rates


def card(results: dict[str, Any], price: float | None) -> None:
    """Prints what was measured, and the hours and costs that follow."""
    engine, decode, peaks = results["engine"], results["decode"], results["peak_tflops"]
    rates, work = engine["images_per_second"], engine["gflop_an_image"] / 1e3
    print(f"\n{results['device']}: Inception v3 at {results['image_size']} px, {engine['engine']}")
    print(f"{work * 1e3:.1f} GFLOP an image; a product of matrices: {peaks['matrix_product']:,.1f} TFLOP/s")
    header = ["batch", "images/s", "TFLOP/s", "of the product", "of the data sheet"]
    rows = []
    for batch, rate in rates.items():
        sheet = f"{rate * work / peaks['data_sheet']:.0%}" if peaks["data_sheet"] else "unknown"
        rows.append(
            [
                batch,
                f"{rate:,.0f}",
                f"{rate * work:,.2f}",
                f"{rate * work / peaks['matrix_product']:.0%}",
                sheet,
            ]
        )
    print(table(header, rows))
    best, alone = max(rates.values()), decode[1]
    print(table(["cores", "JPEGs/s"], [[cores, f"{rate:,.0f}"] for cores, rate in decode.items()]))
    print(f"cores that decode as fast as the backbone runs: {best / alone:.1f}")
    for what, images in (("all images", IMAGES), ("the new ones of a week", int(IMAGES * NEW))):
        hours = images / min(best, max(decode.values())) / 3600
        cost = f", {hours * price:,.2f} at {price:g} an hour" if price is not None else ""
        print(f"{what}, {images:,}: {hours:,.2f} hours{cost}")


if __name__ == "__main__":
    main()
