"""Writes docs/schemas/: JSON schemas of the files that other programs may read, and of the HTTP bodies.

    .venv/bin/python docs/scripts/schemas.py          (part of `make docs`)

Each is made from the definition that writes and reads the file. The schemas are committed;
tests/test_schemas.py compares them with what this script makes.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from features.engines.backbones import BackboneDescription
from features.storage.artifact import ArtifactManifest
from models.decisions.adapted import SellerRules
from models.decisions.categorizer import DecisionRules
from models.heads.architectures import HeadShape
from pipeline.adapt.adapt import AdaptSummary
from pipeline.compare.results import BackboneComparison, Comparison
from pipeline.job.account import RunAccount
from pipeline.job.config import Config
from pipeline.job.release_log import Switch
from pipeline.job.run import SavedRun
from pipeline.look.results import LookResult
from pipeline.release.judge import Verdict
from pipeline.release.trace import Trace
from pipeline.status import RunState, Status
from pipeline.train.figures import Metrics, SellersFigures
from serving.schemas import (
    CorrectionMade,
    CorrectionPage,
    CorrectionUndone,
    Decision,
    Decisions,
    Health,
    Problem,
    Readiness,
    Release,
    Tree,
)

FOLDER = Path(__file__).parents[1] / "schemas"
DEFINITIONS = {
    "backbone": BackboneDescription,  # runs/<run>/backbone/backbone.json, and in a bundle
    "backbones": BackboneComparison,  # runs/<run>/comparison/backbones.json
    "by-seller": SellersFigures,  # runs/<run>/by_seller/by_seller.json
    "comparison": Comparison,  # runs/<run>/comparison/comparison.json
    "config": SavedRun,  # runs/<run>/config.json
    "head": HeadShape,  # runs/<run>/head/head.json, and in a bundle
    "http-correction": CorrectionMade,  # POST /v1/corrections
    "http-corrections": CorrectionPage,  # GET /v1/corrections
    "http-decision": Decision,  # POST /v1/categorize
    "http-decisions": Decisions,  # the same of several products
    "http-health": Health,  # GET /healthz
    "http-ready": Readiness,  # GET /readyz
    "http-release": Release,  # GET /v1/release
    "http-taxonomy": Tree,  # GET /v1/taxonomy
    "http-undone": CorrectionUndone,  # DELETE /v1/corrections/{id}
    "http-problem": Problem,  # what the service says when it refuses a request
    "manifest": ArtifactManifest,  # manifest.json of every finished directory
    "adapt": AdaptSummary,  # `shelfmark adapt --json`
    "look": LookResult,  # `shelfmark look --json`
    "metrics": Metrics,  # runs/<run>/evaluation/metrics.json
    "release-log": Switch,  # a line of releases/log.jsonl
    "run": RunAccount,  # runs/<run>/run.json, and what notify.url gets
    "runs": list[RunState],  # `shelfmark runs --json`
    "sellers": SellerRules,  # runs/<run>/sellers/sellers.json, and in a bundle
    "settings": Config,  # the TOML file of --config, as JSON
    "status": Status,  # `shelfmark status --json`
    "thresholds": DecisionRules,  # runs/<run>/thresholds/thresholds.json, and in a bundle
    "trace": Trace,  # trace.json, in a bundle
    "verdict": Verdict,  # runs/<run>/verdict.json
}
MODES: dict[str, Literal["validation"]] = {"settings": "validation"}  # what people write, and we read


def schema_of(name: str) -> str:
    """The schema of a file as text."""
    schema = TypeAdapter(DEFINITIONS[name]).json_schema(mode=MODES.get(name, "serialization"))
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema, indent=1) + "\n"


def main() -> None:
    """Writes every schema, and removes those of files that are no more."""
    FOLDER.mkdir(exist_ok=True)
    for name in DEFINITIONS:
        (FOLDER / f"{name}.json").write_text(schema_of(name), encoding="utf-8")
    for file in FOLDER.glob("*.json"):
        if file.stem not in DEFINITIONS:
            file.unlink()


if __name__ == "__main__":
    main()
