"""Decisions into every kind of output: rows a second, and peak memory.

    .venv/bin/python benchmarks/decisions_output.py [--products 1000000] [--only sqlite,postgresql]

    new     parts of 32,768 drawn decisions are written one after the other, and finished
    again   another job writes decisions about the same products over them
    read    all columns are read back, piece by piece

Each is a process of its own; the seconds of drawing are not counted. The PostgreSQL server is that of the
tests, started for the measurement on the same computer, with its default settings. Writes
results/decisions_output.json.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import MB, conditions, run, table

from pipeline.job.decisions_file import SCHEMA, read_decisions
from pipeline.job.decisions_output import decisions_source, open_output

RESULTS = Path(__file__).parent / "results" / "decisions_output.json"
PART = 2**15  # products
CATEGORIES = 5000
OUTPUTS = ("parquet", "folder", "csv", "csv.gz", "jsonl", "sqlite", "postgresql")


def main() -> None:
    """Measures every output, prints a table, writes the results."""
    options = _options()
    if options.subject:
        SUBJECTS[options.subject](options)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for output in options.only.split(","):
            if output == "postgresql":
                from tests.postgresql_server import Server

                with Server.started() as server:
                    results[output] = _measured(options, server.new_database(), folder)
            else:
                target = {"sqlite": f"sqlite:///{folder}/d.db", "folder": f"{folder}/d/"}
                results[output] = _measured(options, target.get(output, f"{folder}/d.{output}"), folder)
            print(output, results[output], flush=True)
    rows = [
        [name, *(f"{one[step]:,}" for step in ("new", "again", "read")), f"{one['peak_mb']:,} MB"]
        for name, one in results.items()
    ]
    print(table(["output", "new, rows/s", "again, rows/s", "read, rows/s", "peak memory"], rows))
    found = conditions("pyarrow", "sqlalchemy", "psycopg") | {
        "products": options.products,
        "load average": round(os.getloadavg()[2]),  # of 15 minutes: what else the computer did
        "rows/s": results,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _measured(options: argparse.Namespace, target: str, folder: str) -> dict[str, int]:
    """Rows a second of each step, and the largest peak memory (of our process) in MB."""
    figures, peak = {}, 0
    for step in ("new", "again", "read"):
        command = [sys.executable, __file__, f"--products={options.products}", f"--scratch={folder}"]
        done = run(
            [
                *command,
                f"--subject={'read' if step == 'read' else 'write'}",
                f"--target={target}",
                f"--job={step}",
            ]
        )
        figures[step] = round(options.products / json.loads(done.output.splitlines()[-1]))
        peak = max(peak, done.peak)
    return figures | {"peak_mb": round(peak / MB)}


def write(options: argparse.Namespace) -> None:
    """Prints the seconds that writing takes, without those of drawing."""
    output = open_output(options.target, options.job, Path(options.scratch) / f"work-{options.job}")
    seconds, parts = 0.0, 0
    for parts, decisions in enumerate(drawn(options.products, options.job), 1):
        began = time.monotonic()
        output.write(parts - 1, decisions)
        seconds += time.monotonic() - began
    began = time.monotonic()
    output.finish(parts)
    print(seconds + time.monotonic() - began)


def read(options: argparse.Namespace) -> None:
    """Prints the seconds that reading takes."""
    began = time.monotonic()
    rows = sum(len(piece) for piece in read_decisions(decisions_source(options.target), SCHEMA.names))
    print(time.monotonic() - began)
    if rows != options.products:
        raise SystemExit(f"{rows} rows were read back; expected {options.products}")


def drawn(products: int, release: str) -> Iterator[pa.Table]:
    """Decisions as of a catalogue in 5,000 categories of three levels, a part at a time."""
    random = np.random.default_rng(18)
    names = [str(1_000_000_000 + number) for number in range(CATEGORIES)]
    paths = [
        f"Department {n // 500} / Aisle number {n // 20} / Category of products {n}"
        for n in range(CATEGORIES)
    ]
    for start in range(0, products, PART):
        ids = [f"{number:012d}" for number in range(start, min(start + PART, products))]
        top = random.integers(0, CATEGORIES, (len(ids), 5))
        confidence = random.random(len(ids))
        category, path = [names[n] for n in top[:, 0]], [paths[n] for n in top[:, 0]]
        accepted = confidence > 0.4
        yield pa.table(
            [
                ids, category, path, confidence,
                np.where(accepted, "accepted", "review").tolist(),
                [name if one else None for name, one in zip(category, accepted, strict=True)],
                [name if one else None for name, one in zip(path, accepted, strict=True)],
                pa.array([3 if one else None for one in accepted], pa.int32()),
                [[names[n] for n in row] for row in top],
                random.dirichlet(np.ones(5), len(ids)).tolist(),
                [release] * len(ids),
            ],
            schema=SCHEMA,
        )  # fmt: skip


SUBJECTS = {"write": write, "read": read}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--products", type=int, default=1_000_000, help="rows")
    parser.add_argument("--only", default=",".join(OUTPUTS), help="which outputs")
    parser.add_argument("--scratch", type=Path, help="a directory with room for 1 GB")
    for name in ("subject", "target", "job"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
