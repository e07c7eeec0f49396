"""The plan of an ingest of Cdiscount's size: seconds and peak memory for 8 M products, 14 M images.

    .venv/bin/python benchmarks/plan.py [--units 900] [--scratch DIR]

Draws the tables that checking the images would leave, without any image: 900 units of about 15,600 rows,
5,270 categories of which a fifth holds four fifths of the products, three images in ten exact duplicates, one
in a hundred rejected. Then a process of its own plans. Writes results/plan.json.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import MB, conditions, run, table, verdict

RESULTS = Path(__file__).parent / "results" / "plan.json"
UNITS = 900
PRODUCTS = 8889  # in a unit of work
IMAGES = (0.5, 0.3, 0.15, 0.05)  # shares of products with 1 to 4 images: 1.75 on average
CATEGORIES = 5270
DUPLICATES = 0.3  # share of images that are exactly another one
REJECTED = 0.01  # share of images
BYTES = (4000, 12600)  # of an image
TARGETS = {"seconds": 30, "peak_mb": 1500}


def main() -> None:
    """Draws the tables, plans in a fresh process, prints seconds by step and verdicts, writes the results."""
    options = _options()
    if options.subject:
        print(json.dumps(plan_all(Path(options.subject))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        began = time.monotonic()
        rows = sum(draw_unit(Path(folder), number) for number in range(options.units))
        drawn = {"units": options.units, "products": options.units * PRODUCTS, "rows": rows}
        print(f"drawn in {time.monotonic() - began:.0f} s: {drawn}", flush=True)
        done = run([sys.executable, __file__, "--subject", folder])
    results = json.loads(done.output)
    steps = [(name, *step.values()) for name, step in results["steps"].items()]
    print(table(["step", "seconds", "CPU s", "peak MB so far"], steps))
    peak = round(done.peak / MB, 1)
    results |= {"drawn": drawn, "process_seconds": round(done.seconds, 2), "peak_mb": peak}
    results["verdicts"] = [
        verdict("the plan: index, products, layout", sum(s[1] for s in steps[:3]), TARGETS["seconds"], " s"),
        verdict("peak memory, its tables and pieces written, too", peak, TARGETS["peak_mb"], " MB"),
    ]
    RESULTS.write_text(json.dumps(conditions("numpy", "pandas", "pyarrow") | results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=UNITS)
    parser.add_argument("--scratch", type=Path, help="a directory with room for 1 GB")
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    return parser.parse_args()


# What the check would leave


def draw_unit(folder: Path, number: int) -> int:
    """Writes one unit's table; returns its rows."""
    from features.product import order_key
    from pipeline.beam.run_units import unit_file
    from pipeline.ingest.check_images import CHECKED

    random = np.random.default_rng([0, number])
    count = random.choice(4, PRODUCTS, p=IMAGES) + 1
    first = 1 + number * PRODUCTS
    ids = [str(product) for product in range(first, first + PRODUCTS)]
    keys = np.fromiter(map(order_key, ids), np.int64, PRODUCTS)
    product = pa.array(np.repeat(np.arange(PRODUCTS), count))
    rows = len(product)
    length = random.integers(*BYTES, rows)
    rejected = random.random(rows) < REJECTED
    columns = {
        "product_id": pa.array(ids).take(product),
        "category": pa.array(_categories(random)).cast(pa.string()).take(product),
        "split": pa.repeat("", rows),
        "seller": pa.repeat("", rows),
        "file": pa.repeat("/data/cdiscount/train.bson", rows),
        "order_key": pa.array(keys).take(product),
        "offset": np.cumsum(length + 60) - length + number * 2**26,
        "length": length,
        "checksum": length,
        "image_digest": _digests(random, number, rows),
        "kept": ~rejected,
        "flat": np.zeros(rows, np.bool_),
        "reason": pa.array(["", "truncated"]).take(pa.array(rejected.astype(int))),
        "detail": pa.array(["", "image file is truncated"]).take(pa.array(rejected.astype(int))),
        "weight": pa.nulls(rows),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in CHECKED]
    pq.write_table(pa.table(arrays, schema=CHECKED), unit_file(folder, number))
    return rows


def _categories(random: np.random.Generator) -> np.ndarray:
    """(PRODUCTS,) int64: 80 % of the products in 20 % of the categories."""
    few = CATEGORIES // 5
    common = random.integers(few, size=PRODUCTS)
    rare = random.integers(few, CATEGORIES, PRODUCTS)
    return 1_000_000_000 + np.where(random.random(PRODUCTS) < 0.8, common, rare)


def _digests(random: np.random.Generator, number: int, rows: int) -> pa.Array:
    """(rows,) binary(32): of each row its own, or that of an image in this unit or an earlier one."""
    own = number * 2**16 + np.arange(rows, dtype=np.uint64)
    unit = random.integers(number + 1, size=rows, dtype=np.uint64)
    earlier = unit * 2**16 + random.integers(PRODUCTS, size=rows, dtype=np.uint64)
    key = np.where(random.random(rows) < DUPLICATES, earlier, own)
    words = (key[:, None] * 4 + np.arange(1, 5, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(31)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(words.tobytes())])


# The subject


def plan_all(folder: Path) -> dict[str, Any]:
    """Plans the units in `folder`; returns seconds and peak memory by step, and counts."""
    from features.product import SPLITS
    from pipeline.ingest.check_images import CheckedImages
    from pipeline.ingest.layout import lay_out, write_plan
    from pipeline.ingest.rejects import refuse_flood
    from pipeline.ingest.split_plan import plan_products, require_trainable
    from pipeline.job.config import IngestSettings

    settings = IngestSettings()
    steps: dict[str, dict[str, float]] = {}
    checked = CheckedImages(sorted(folder.glob("unit-*.parquet")), [])
    with _step("index", steps):
        index = checked.index()
    with _step("products", steps):
        refuse_flood(index, settings.max_rejected, folder / "none")
        products = plan_products(index, None, settings.min_products)
        require_trainable(products, settings.min_products)
    with _step("layout", steps):
        layout = lay_out(index, products, settings, seed=0)
        del index  # as ingest does
    with _step("write", steps):
        write_plan(checked, products, layout, folder)
    split = np.bincount(products.split, minlength=len(SPLITS)).tolist()
    counts = {"taken": int((layout.shard >= 0).sum()), "units": layout.shards}
    return {"steps": steps, "counts": counts | {"products": dict(zip(SPLITS, split, strict=True))}}


@contextmanager
def _step(name: str, steps: dict[str, dict[str, float]]) -> Iterator[None]:
    """Seconds of a step, on the wall and of the processor, and the process's peak memory up to its end."""
    began, cpu = time.monotonic(), time.process_time()
    yield
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    spent = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak / MB}
    steps[name] = {what: round(value, 2) for what, value in spent.items()}


if __name__ == "__main__":
    main()
