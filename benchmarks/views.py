"""What several views of a photo cost in extraction, beside the whole photo alone: MobileNet at 224 px.

    .venv/bin/python benchmarks/views.py [--images 4096] [--repeats 5] [--scratch DIR]

Each subject extracts the same photos of 180 px from TFRecord shards into a store of its own, by the engine
that auto takes; views of one network together, as pipeline/extract does. Subjects take turns; every engine
has run before. "cost" is the pixels that the network reads, in units of one whole photo; "share" is the
seconds divided by those of one view and by the cost: 1.1 at most. Random weights: they cost the same. Writes
results/views.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from extract import SHARD, write_records
from measure import conditions, median, table, verdict

from features.views import CROPS, View, cost, parse_view

if TYPE_CHECKING:
    import pandas as pd

    from features.engines.engine import Engine

RESULTS = Path(__file__).parent / "results" / "views.json"
PACKAGES = ("tensorflow", "keras", "openvino", "numpy")
NETWORK, SIDE, BATCH = "mobilenet", 224, 32
MOST = 1.1  # of the sum of the views' pixels
SETS = {
    "one view": ("whole",),
    "mirrored, too": ("whole", "flip"),
    "two sizes": ("whole", "256"),
    "quality best": ("whole", "flip", "352-center", "352-center-flip"),
    "five crops": tuple(f"256-{crop}" for crop in CROPS),
    "six sizes": ("128", "160", "192", "whole", "256", "288"),
    "mean and maximum": ("whole", "max"),
}


def main() -> None:
    """Writes the records, extracts in turns, prints a table and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=SHARD)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="a directory with room for 40 kB an image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        results = measure(Path(folder), options.images, options.repeats)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def measure(folder: Path, images: int, repeats: int) -> dict[str, Any]:
    """Seconds of each set, in turns; the table and the verdicts."""
    import pandas as pd

    from features.engines.backbones import load_backbone, start_tensorflow
    from features.engines.choose import engines_of_views

    start_tensorflow()
    write_records(folder, images)
    rows = pd.read_parquet(folder / "images.parquet")
    every = [parse_view(name) for names in SETS.values() for name in names]
    engines = engines_of_views(load_backbone(NETWORK, "random", SIDE), every, BATCH)
    for name in SETS:
        extract_set(folder, rows[: 4 * BATCH], SETS[name], engines, folder / f"warm {name}")
    seconds: dict[str, list[float]] = {name: [] for name in SETS}
    for turn in range(repeats):
        for name, names in SETS.items():
            seconds[name].append(extract_set(folder, rows, names, engines, folder / f"{turn} {name}"))
    return summarize(seconds, images, next(iter(engines.values())).name)


def extract_set(
    records: Path, rows: "pd.DataFrame", names: Sequence[str], engines: "dict[View, Engine]", store: Path
) -> float:
    """Extracts the views of the photos into a new store, as pipeline/extract does; returns the seconds."""
    from features.engines.engine import extract
    from features.records import read_pieces
    from features.storage.store import Store
    from pipeline.extract.fill_store import stores_by_network

    began = time.perf_counter()
    for stores in stores_by_network([Store(store).view(parse_view(name)) for name in names]):
        engine, views = engines[stores[0].of.network], [one.of for one in stores]
        for first in range(0, len(rows), SHARD):
            its = rows[first : first + SHARD]
            digests = np.frombuffer(bytes.fromhex("".join(its["image_digest"])), np.uint8).reshape(-1, 32)
            found = extract(engine, read_pieces(records, its), len(its), views)
            for one, bottlenecks in zip(stores, found, strict=True):
                one.append(digests, bottlenecks, engine=engine.name)
    return time.perf_counter() - began


def summarize(seconds: dict[str, list[float]], images: int, engine: str) -> dict[str, Any]:
    """Prints the table and the verdicts; returns what the results hold."""
    one, figures = seconds["one view"], {}
    for name, names in SETS.items():
        pixels = cost([parse_view(view) for view in names], SIDE)
        times = [own / alone for own, alone in zip(seconds[name], one, strict=True)]  # of the same turn
        figures[name] = {
            "views": list(names),
            "images_per_second": round(images / median(seconds[name]), 1),
            "cost": round(pixels, 2),
            "times": round(median(times), 2),
            "share": round(median(times) / pixels, 3),
        }
    header = ("views", "images/s", "cost", "times as long", "share")
    cells = [
        (f"{name}: {', '.join(one['views'])}", *(one[key] for key in list(one)[1:]))
        for name, one in figures.items()
    ]
    print(f"\n{NETWORK} at {SIDE} px, {engine}, {images:,} photos of 180 px\n\n{table(header, cells)}\n")
    verdicts = [
        verdict(f"{name}, of the sum of its pixels", one["share"], MOST, "")
        for name, one in figures.items()
        if len(one["views"]) > 1
    ]
    return {"engine": engine, "images": images, "sets": figures, "verdicts": verdicts}


if __name__ == "__main__":
    main()
