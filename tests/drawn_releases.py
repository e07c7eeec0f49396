"""Releases without TensorFlow: bundles that hold their parts of the split and a few bytes."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.storage.artifact import Artifact, begin, partial_of, seal
from models.decisions.releases import SPLITS, in_service
from pipeline.job.release_log import switch

NO_SPLITS: Mapping[str, str] = {}


def draw_bundle(path: Path, splits: Mapping[str, str] = NO_SPLITS) -> Artifact:
    """A finished bundle at a path; its files are those of its name."""
    work = begin(partial_of(path), {})
    table = pa.table({"product_id": list(splits), "split": list(splits.values())})
    pq.write_table(
        table.cast(pa.schema([("product_id", pa.string()), ("split", pa.string())])), work / SPLITS
    )
    (work / "head.json").write_text(f"{path.parent.name} {path.name}")
    return seal(path, kind="bundle", version=3, made_from={}, summary={"backbone": "drawn"})


def draw_releases(workspace: Path, *names: str) -> Path:
    """releases/ in which one after the other was put into service; the last one is."""
    releases = workspace / "releases"
    for name in names:
        draw_bundle(releases / name)
        switch(releases, name, "release", "better", who="the test", run=name)
    assert in_service(releases) == names[-1]
    return releases
