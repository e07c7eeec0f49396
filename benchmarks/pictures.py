"""Pictures within Parquet beside the same ones in a BSON: images a second and peak memory of ingest.

    .venv/bin/python benchmarks/pictures.py [--gb 0.5] [--repeats 3] [--scratch DIR]

The Parquet file is as Hugging Face writes it: struct {bytes, path}, labels with their names in the
metadata, 100 rows a row group; and once with all rows in one row group. The commands take turns. Writes
results/pictures.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import bson
import pyarrow as pa
import pyarrow.parquet as pq
from ingest import draw, draw_pictures
from measure import MB, MeasuredCommand, conditions, median, run, table, verdict

RESULTS = Path(__file__).parent / "results" / "pictures.json"
PACKAGES = ("apache-beam", "simplejpeg", "pymongo", "pyarrow")
ROW_GROUP = 100
SPEED, MEMORY = 0.8, 600  # of the BSON's images a second; MB


def main() -> None:
    """Draws the files, runs the commands in turns, prints a table and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        results = compare(Path(folder), options.gb, options.repeats)
    RESULTS.write_text(json.dumps(conditions(*PACKAGES) | results, indent=1) + "\n")


def compare(folder: Path, size: float, repeats: int) -> dict[str, Any]:
    """Figures of every file, and their ratios to the BSON's."""
    source = folder / "shop.bson"
    counts = draw(source, size * 1e9, draw_pictures(2500, seed=0), seed=1)
    files = {"BSON": source}
    for name, rows in (("Parquet, 100 rows a group", ROW_GROUP), ("Parquet, one group", 10**9)):
        files[name] = folder / f"{rows}.parquet"
        to_parquet(source, files[name], rows)
    runs: dict[str, list[MeasuredCommand]] = {name: [] for name in files}
    for number in range(repeats):
        for name, file in files.items():
            runs[name].append(run(_command(file, folder / f"W-{number}-{file.stem}")))
    rates = {name: counts["images"] / median(one.seconds for one in found) for name, found in runs.items()}
    peaks = {name: max(one.peak for one in found) / MB for name, found in runs.items()}
    rows = [
        (name, f"{rates[name]:,.0f}", f"{rates[name] / rates['BSON']:.2f}", f"{peaks[name]:,.0f}")
        for name in files
    ]
    print(table(("file", "images/s", "of the BSON's", "peak MB"), rows))
    name = "Parquet, 100 rows a group"
    verdicts = [
        verdict("speed, of the BSON's", rates[name] / rates["BSON"], SPEED, "", at_least=True),
        verdict("peak memory", peaks[name], MEMORY, " MB"),
    ]
    seconds = {name: [round(one.seconds, 2) for one in found] for name, found in runs.items()}
    return {
        "files": counts,
        "seconds": seconds,
        "images_per_second": rates,
        "peak_mb": peaks,
        "verdicts": verdicts,
    }


def to_parquet(source: Path, file: Path, row_group: int) -> None:
    """Writes the same products, with a row for each image."""
    ids, images, categories = [], [], []
    with open(source, "rb") as stream:
        for document in bson.decode_file_iter(stream):
            for index, image in enumerate(document["imgs"]):
                ids.append(str(document["_id"]))
                images.append({"bytes": image["picture"], "path": f"{document['_id']}-{index}.jpg"})
                categories.append(str(document["category_id"]))
    names = sorted(set(categories))
    code = {name: number for number, name in enumerate(names)}
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    columns = {"product_id": ids, "image": images, "label": [code[name] for name in categories]}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file, row_group_size=row_group)


def _command(source: Path, workspace: Path) -> list[str]:
    program = Path(sys.executable).with_name("shelfmark")
    command = [str(program), "ingest", str(source), "--workspace", str(workspace)]
    return [*command, "--set", "ingest.min_products=1"]


if __name__ == "__main__":
    main()
