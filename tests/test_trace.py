"""The trace: what a bundle was made from."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from drawn_releases import draw_bundle

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, begin, digest_of, file_digest, partial_of, seal
from pipeline.job.config import Config
from pipeline.release.listing import list_releases, table_rows
from pipeline.release.trace import TRACE, Trace, installed_packages, read_trace, trace_of, write_trace

SUMMARIES: dict[str, dict[str, object]] = {
    "records": {
        "products": 400, "images": 900, "records": {"train": 500, "val": 200, "test": 200}, "rejects": {},
        "uncategorized_products": 0, "uncategorized_images": 0, "dropped_products": 0, "dropped_images": 0,
        "dropped_categories": 0, "unreadable_products": 0, "images_of_several_products": 0,
        "images_in_several_categories": 0, "placeholder_images": 0,
    },
    "bottlenecks": {
        "images": 900, "fingerprint": "f", "backbone": "mobilenet", "weights": "drawn", "engines": {}
    },
    "head": {"images": 500, "left_out": 0, "categories": 35, "epochs": 8},
    "thresholds": {
        "aggregation": "mean", "certified": True, "threshold": 0.8125, "certified_products": 130,
        "acceptance_rate": 0.7, "reason": None,
    },
    "evaluation": {
        "graded_on": "test", "independent": True, "products": 80, "precision": 0.8, "accepted": 60,
        "accepted_precision": 0.95,
    },
}  # fmt: skip


def stages(folder: Path) -> list[Artifact]:
    """The five stages that a trace names, finished and empty."""
    made = []
    for kind, summary in SUMMARIES.items():
        begin(partial_of(folder / kind), {})
        made.append(
            seal(folder / kind, kind=kind, version=1, made_from={"input": f"of {kind}"}, summary=summary)
        )
    return made


def test_it_names_settings_code_packages_and_data_and_neither_path_nor_date(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "backbone": {"weights": str(tmp_path / "net.weights.h5"), "name": str(tmp_path / "own.onnx@a")},
            "calibration": {"precision": 0.95},
        }
    )
    made = stages(tmp_path)
    trace = trace_of(config, *made)
    assert trace.settings["calibration"]["precision"] == trace.target == 0.95
    assert trace.settings["backbone"]["weights"] == "net.weights.h5"
    assert trace.settings["backbone"]["name"] == "own.onnx@a"
    assert "batch" not in trace.settings["extract"], "what changes no result is no part of it"
    assert trace.digests == {one.kind: one.digest for one in made}
    assert trace.made_from["records"] == {"input": "of records"}
    assert trace.code_version == importlib.metadata.version("shelfmark") == trace.packages["shelfmark"]
    assert trace.packages_digest == digest_of(trace.packages)
    assert trace.requirements_lock == file_digest(Path(__file__).parents[1] / "requirements.lock")
    assert str(tmp_path) not in trace.model_dump_json()
    assert trace == trace_of(config, *stages(tmp_path / "again")), "the same work has the same trace"


def test_packages_are_those_that_shelfmark_needs_directly_or_not() -> None:
    packages = installed_packages()
    assert packages["tensorflow"] == importlib.metadata.version("tensorflow")
    assert "ml-dtypes" in packages, "which tensorflow needs"
    assert "pytest" not in packages and "ruff" not in packages
    assert list(packages) == sorted(packages)


def release_with_trace(releases: Path, name: str) -> Trace:
    """A drawn release that has a trace."""
    trace = trace_of(Config(), *stages(releases.parent / name))
    bundle = draw_bundle(releases / name)
    work = begin(partial_of(releases / name), {})
    write_trace(trace, work)
    seal(bundle.path, kind="bundle", version=3, made_from={}, summary=dict(bundle.summary))
    return trace


def test_it_is_read_back_and_listed(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    trace = release_with_trace(releases, "2026-W47")
    (releases / "current").symlink_to("2026-W47")
    (listed,) = list_releases(releases)
    assert (listed.promise, listed.certainty, listed.threshold) == (0.9, 0.9, 0.8125)
    assert (listed.measured_on, listed.products, listed.acceptance, listed.precision) == (
        "test",
        80,
        0.75,
        0.95,
    )
    assert (listed.categories, listed.backbone, listed.state) == (35, "drawn", "whole")
    assert table_rows([listed])[0][2:9] == ("now", "90.0%", "0.812", "75.0%", "95.0%", "35", "drawn")
    file = releases / "2026-W47" / TRACE
    assert Trace.model_validate_json(file.read_bytes()) == trace


def test_a_trace_that_cannot_be_read_is_one_line_and_the_list_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    releases = tmp_path / "releases"
    for name in ("2026-W46", "2026-W47"):
        release_with_trace(releases, name)
    file = releases / "2026-W47" / TRACE
    size = file.stat().st_size
    file.write_bytes(b"{" + b" " * (size - 1))
    bundle = Artifact(
        **json.loads((releases / "2026-W47" / "manifest.json").read_text()), path=file.parent, digest=""
    )
    with pytest.raises(ShelfmarkError, match=r"trace.json: cannot be read \(.*\); expected what the release"):
        read_trace(bundle)
    assert [(one.name, one.promise) for one in list_releases(releases)] == [
        ("2026-W47", None),
        ("2026-W46", 0.9),
    ]
    assert "trace.json: cannot be read" in caplog.text
