"""Finds the real photos for benchmarks: the Grocery Store Dataset, and an ImageNet-trained MobileNet."""

import argparse
from pathlib import Path


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the option --data: the directory that holds data/grocery and weights."""
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared")


def find_grocery(data: Path) -> tuple[Path, Path] | None:
    """The manifest and the weights; None, with a line on the terminal, where one of them is missing."""
    manifest = data / "data" / "grocery" / "manifest.csv"
    weights = next(iter((data / "weights").glob("mobilenet*.weights.h5")), None)
    if not manifest.is_file() or weights is None:
        print(f"{data}: no grocery photos or weights there; nothing measured (see --data)")
        return None
    return manifest, weights
