"""The JSON schemas in docs/schemas are those of today's definitions, and a run's files follow them."""

import json
import sys
import tarfile
from pathlib import Path

import pytest
from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "scripts"))
import schemas

FILES = {  # of the run in tests/data
    "config": "W/runs/week/config.json",
    "head": "W/runs/week/head/head.json",
    "manifest": "W/runs/week/records/manifest.json",
    "metrics": "W/runs/week/evaluation/metrics.json",
    "thresholds": "W/runs/week/thresholds/thresholds.json",
}
REPLACED = {"head": {"flip"}}  # fields of older files that newer ones say otherwise


@pytest.mark.parametrize("name", schemas.DEFINITIONS)
def test_schema_is_that_of_the_definition(name: str) -> None:
    committed = (schemas.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert committed == schemas.schema_of(name), "run `make docs` and commit docs/schemas"


def test_there_is_no_schema_without_a_definition() -> None:
    assert {file.stem for file in schemas.FOLDER.glob("*.json")} == set(schemas.DEFINITIONS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_an_older_run_follows_the_schema(name: str) -> None:
    with tarfile.open(Path(__file__).parent / "data" / "run-of-0.1.0.tar.xz") as archive:
        member = archive.extractfile(FILES[name])
        assert member is not None
        text = member.read()
    schema = json.loads(schemas.schema_of(name))
    values = json.loads(text)
    known = set(schema["properties"]) | REPLACED.get(name, set())
    assert set(schema.get("required", [])) <= set(values) <= known
    TypeAdapter(schemas.DEFINITIONS[name]).validate_json(text)
