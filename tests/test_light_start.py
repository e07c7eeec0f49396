"""Commands about photos that the store knows start neither TensorFlow nor what only training needs."""

import json
import subprocess
import sys
from pathlib import Path

import conftest
from click.testing import CliRunner

from pipeline.cli import shelfmark

HEAVY = ("tensorflow", "keras", "apache_beam", "sklearn", "scipy.stats", "fastapi", "sqlalchemy")

RUN = """
import json, sys
from pipeline.cli import shelfmark

shelfmark(sys.argv[2:], standalone_mode=False)
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""


def test_products_whose_photos_are_known_are_categorized_without_tensorflow(
    photo: conftest.Photo, workspace: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos" / "food"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(photo(number))

    def command(output: str) -> list[str]:
        return [
            *("categorize", str(tmp_path / "photos"), "--workspace", str(workspace)),
            *("--output", str(tmp_path / output)),
        ]

    first = CliRunner().invoke(shelfmark, command("first.csv"))
    assert first.exit_code == 0, first.output
    told = subprocess.check_output(
        [sys.executable, "-c", RUN, json.dumps(HEAVY), *command("second.csv")], text=True
    )
    assert json.loads(told.splitlines()[-1]) == []
    assert (tmp_path / "second.csv").read_bytes() == (tmp_path / "first.csv").read_bytes()
