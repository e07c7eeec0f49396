"""A small drawn shop with bottlenecks, which the tests of comparisons work on, and its commands."""

from pathlib import Path

from pipeline.cli import main
from pipeline.demo.drawn_catalogue import draw_catalogue

SETTINGS = """
ingest = {min_products = 5}
head = {hidden = [16, 16], aggregation = "mean"}
train = {epochs = 2, batch = 64, precision = "float32"}
"""
BACKBONE = 'backbone = {{name = "mobilenet", weights = "{weights}", image_size = 32}}\n'


def shelfmark(command: str, folder: Path, *more: str, source: tuple[str, ...] = ()) -> int:
    """The exit status of a command on the run `week`."""
    try:
        main([command, *source, "--workspace", str(folder / "W"), "--run", "week", *more])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def extracted_shop(folder: Path, weights: Path) -> Path:
    """Fills a folder with a run up to its bottlenecks, and returns it."""
    drawn = draw_catalogue(folder, products=220)
    (folder / "weekly.toml").write_text(SETTINGS + BACKBONE.format(weights=weights))
    source = (str(drawn.catalogue), "--taxonomy", str(folder / "category_names.csv"))
    assert shelfmark("ingest", folder, "--config", str(folder / "weekly.toml"), source=source) == 0
    assert shelfmark("extract", folder) == 0
    return folder
