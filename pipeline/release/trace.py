"""Trace: what a bundle was made from, so that each of its decisions can be explained years later.

    a decision's column `release` ─► releases/<release>/trace.json   this
                                  └► releases/log.jsonl              when it was in service, and why

It holds no date, no path and no name of a run: the same work gives the same bundle, with the same digest.
"""

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from features.engines.backbone_names import without_folder
from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, digest_of, file_digest
from features.storage.paths import AnyPath, read_range, write_whole
from pipeline.job.config import Config, Section
from pipeline.job.summaries import (
    BottlenecksSummary,
    EvaluationSummary,
    HeadSummary,
    RecordsSummary,
    SellersSummary,
    StylesSummary,
    ThresholdsSummary,
)

TRACE = "trace.json"  # in a bundle
SECTIONS = ("ingest", "backbone", "extract", "finetune", "head", "train", "calibration", "sellers")
ENGINES = ("openvino", "jax")  # packages of the extras that compute bottlenecks, where they are installed


class Trace(BaseModel):
    """trace.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code_version: str
    python: str
    packages: dict[
        str, str
    ]  # name → version: what shelfmark needs, directly or not, when the bundle was packed
    packages_digest: str
    requirements_lock: (
        str | None
    )  # sha256 of requirements.lock; null where shelfmark runs without its checkout
    settings: dict[str, Any]  # those that can change a release, by section; of weights in a file the name
    made_from: dict[str, dict[str, str]]  # stage → digests of its inputs and settings, as in its manifest
    digests: dict[str, str]  # stage → digest of its manifest
    records: RecordsSummary
    bottlenecks: BottlenecksSummary
    head: HeadSummary
    thresholds: ThresholdsSummary
    evaluation: EvaluationSummary
    styles: StylesSummary | None = None  # null where sellers.method has none
    sellers: SellersSummary | None = None  # null with sellers.method = none
    target: float  # precision that is promised
    delta: float  # probability that the promise fails


def trace_of(
    config: Config,
    records: Artifact,
    bottlenecks: Artifact,
    head: Artifact,
    thresholds: Artifact,
    evaluation: Artifact,
    styles: Artifact | None = None,
    sellers: Artifact | None = None,
) -> Trace:
    """The trace of a bundle that is packed now, from these stages of its run."""
    all_stages = (records, bottlenecks, head, thresholds, evaluation, styles, sellers)
    stages = {one.kind: one for one in all_stages if one}
    packages = installed_packages()
    lock = Path(__file__).parents[2] / "requirements.lock"
    return Trace(
        code_version=importlib.metadata.version("shelfmark"),
        python=platform.python_version(),
        packages=packages,
        packages_digest=digest_of(packages),
        requirements_lock=file_digest(lock) if lock.is_file() else None,
        settings=_settings(config),
        made_from={kind: dict(one.made_from) for kind, one in stages.items()},
        digests={kind: one.digest for kind, one in stages.items()},
        records=RecordsSummary.of(records),
        bottlenecks=BottlenecksSummary.of(bottlenecks),
        head=HeadSummary.of(head),
        thresholds=ThresholdsSummary.of(thresholds),
        evaluation=EvaluationSummary.of(evaluation),
        styles=StylesSummary.of(styles) if styles else None,
        sellers=SellersSummary.of(sellers) if sellers else None,
        target=config.calibration.precision,
        delta=config.calibration.delta,
    )


def write_trace(trace: Trace, folder: AnyPath) -> None:
    """Writes trace.json into a directory."""
    write_whole(folder / TRACE, trace.model_dump_json(indent=1).encode())


def read_trace(bundle: Artifact) -> Trace | None:
    """The trace of a bundle; None for one of an earlier version, which has none.

    Raises:
        ShelfmarkError: trace.json is not what `write_trace` writes.
    """
    if TRACE not in bundle.files:
        return None
    try:
        return Trace.model_validate_json(read_range(bundle.path / TRACE))
    except (FileNotFoundError, ValidationError) as error:
        raise ShelfmarkError(
            f"{bundle.path / TRACE}: cannot be read ({str(error).splitlines()[0]}); expected what the "
            "release was made from; put the file back, or roll back to another release"
        ) from error


def installed_packages() -> dict[str, str]:
    """Name → version of the installed packages that shelfmark needs, directly or not, sorted by name."""
    found: dict[str, str] = {}
    waiting = ["shelfmark", *ENGINES]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform, or an engine that is not used
        if name not in found:
            found[name] = package.version
            waiting += [_named(line) for line in package.requires or () if "extra ==" not in line]
    return dict(sorted(found.items()))


def _named(requirement: str) -> str:
    """The package in a requirement.

    >>> _named('numpy>=2,<3; python_version < "3.14"')
    'numpy'
    """
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else ""


def _settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": config.seed}
    for name in SECTIONS:
        section: Section = getattr(config, name)
        fields = type(section).model_fields
        values = section.model_dump(mode="json")
        settings[name] = {key: value for key, value in values.items() if "speed" not in fields[key].metadata}
    settings["backbone"]["weights"] = Path(settings["backbone"]["weights"]).name  # not where the file is
    settings["backbone"]["name"] = without_folder(settings["backbone"]["name"])
    return settings
