"""What a command is called with, checked before anything heavy is imported: in about a second.

TensorFlow and Beam take seconds to import, and a stage may begin hours after the first one. What can be known
to be wrong is refused here, in the words of the stage that would refuse it.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from features.errors import ShelfmarkError
from features.storage.paths import MARK, AnyPath, Remote, any_path
from pipeline.job.config import BackboneSettings, Config
from pipeline.job.progress import log

BEGIN = ("ingest", "retrain")  # commands that make a run; the others need what was made before
NEEDED = {  # finished artifacts of the run, in the order in which the command opens them
    "finetune": ("records",),
    "extract": ("records",),
    "train": ("records", "bottlenecks"),
    "calibrate": ("records", "bottlenecks", "head"),
    "evaluate": ("records", "bottlenecks", "head", "thresholds"),
    "suspects": ("records", "bottlenecks", "head"),
    "compare": ("records", "bottlenecks"),
}
EXPORT_NEEDS = {  # packages, by format
    "saved_model": (),
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
    "openvino": ("openvino",),
}
MADE_BY = {"records": "ingest", "bottlenecks": "extract", "head": "train", "thresholds": "calibrate"}


def check_run(
    workspace: AnyPath,
    name: str,
    command: str,
    config: Config,
    sources: Sequence[str] = (),
    taxonomy: AnyPath | None = None,
    mappings: Sequence[AnyPath] = (),
    tune: bool = False,
) -> None:
    """Checks a command that works on a run.

    Args:
        workspace: of the run.
        name: of the run.
        command: its name.
        config: its settings.
        sources: as for ingest.
        taxonomy: likewise.
        mappings: likewise.
        tune: whether the backbone is fine-tuned.

    Raises:
        ShelfmarkError: something is missing or of another kind.
    """
    run = workspace / "runs" / name
    check_workspace(workspace, is_made=command in BEGIN)
    for kind in NEEDED.get(command, ()):
        if not (run / kind / MARK).is_file():
            raise ShelfmarkError(
                f"{run / kind}: missing; expected the run's finished {kind}; "
                f"run `shelfmark {MADE_BY[kind]}` first"
            )
    if command in ("finetune", "extract", "retrain"):
        check_backbone(config.backbone)
    if tune or command == "finetune":
        _check_tunable(config.backbone)
    if sources:
        _check_sources(sources, run / "records", taxonomy, config)
    if mappings:
        from features.storage.paths import local
        from models.mappings import read_mappings

        with _silent():
            read_mappings([local(file) for file in mappings])


def check_categorize(
    workspace: AnyPath,
    sources: Sequence[str],
    output: str,
    config: Config,
    only_new: str | None = None,
    records: AnyPath | None = None,
) -> None:
    """Checks the arguments of categorize; errors as for `check_run`."""
    from features.storage.databases import is_database
    from models.decisions.releases import require_in_service
    from pipeline.categorize.targets import require_targets
    from pipeline.job.decisions_output import decisions_source
    from pipeline.sources.source import open_sources
    from pipeline.sources.tables import csv_options

    check_workspace(workspace)
    require_in_service(workspace)
    opened = open_sources(list(sources), csv_options(config.ingest), may_be_empty=True)
    require_targets(opened, workspace, output, only_new, records)
    for path in [] if is_database(output) else [any_path(output)]:
        check_writable(path)
    earlier = None if only_new is None else decisions_source(only_new)
    if isinstance(earlier, Path | Remote) and not earlier.exists():
        raise ShelfmarkError(
            f"{earlier}: no such file; expected decisions of `shelfmark categorize`; check --only-new"
        )


def check_export(workspace: AnyPath, kind: str, output: AnyPath, source: str | None) -> None:
    """Checks the arguments of export; errors as for `check_run`."""
    import importlib.util

    from features.storage.paths import sizes
    from pipeline.sources.source import open_sources

    check_workspace(workspace)
    check_writable(output)
    for package in EXPORT_NEEDS[kind]:
        if importlib.util.find_spec(package) is None:
            raise ShelfmarkError(
                f"--format {kind}: {package} is not installed; expected in the same environment; "
                f"pip install 'shelfmark[{kind}]'"
            )
    if output.exists() and (not output.is_dir() or sizes(output)):
        what = "not empty" if output.is_dir() else "not a directory"
        raise ShelfmarkError(
            f"{output}: {what}; expected a new or empty directory; give another --output, or remove it"
        )
    if source is not None:
        open_sources([source])


def check_workspace(workspace: AnyPath, is_made: bool = False) -> None:
    """Checks that a workspace is a directory, and is there unless the command makes it."""
    if not isinstance(workspace, Path):
        return
    if workspace.exists() and not workspace.is_dir():
        raise ShelfmarkError(f"{workspace}: not a directory; expected a workspace; check --workspace")
    if not workspace.exists() and not is_made:
        raise ShelfmarkError(
            f"{workspace}: no such directory; expected the workspace of a run; check --workspace"
        )
    check_writable(workspace / "runs")


def check_writable(path: AnyPath) -> None:
    """Checks that a file or directory can be made where it is to be."""
    if not isinstance(path, Path):
        return
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if above != path and not above.is_dir():
        raise ShelfmarkError(f"{above}: not a directory; expected one for {path}; give another path")
    if not os.access(above, os.W_OK):
        raise ShelfmarkError(f"{above}: not writable; expected to write {path}; check permissions")


def check_backbone(settings: BackboneSettings) -> None:
    """Checks the network's name, and the files of it and of its weights."""
    from features.engines.backbone_names import require_backbone

    require_backbone(settings.name, settings.weights)


def _check_tunable(settings: BackboneSettings) -> None:
    """Checks that the network is one that can be fine-tuned."""
    from features.engines.backbone_names import is_file_name

    if is_file_name(settings.name):
        raise ShelfmarkError(
            f"backbone {settings.name}: ONNX files and presets of KerasHub are not fine-tuned; expected a "
            "network of keras.applications or of docs/networks.md; give another --backbone, or leave out "
            "fine-tuning"
        )


def _check_sources(
    sources: Sequence[str], records: AnyPath, taxonomy: AnyPath | None, config: Config
) -> None:
    """Opens the sources as ingest does, which reads the first bytes of each, and reads the tree."""
    from features.storage.paths import local
    from models.taxonomy import read_paths, require_taxonomy
    from pipeline.sources.outside import require_outside
    from pipeline.sources.source import open_sources
    from pipeline.sources.tables import csv_options

    opened = open_sources(list(sources), csv_options(config.ingest))
    require_outside(records, opened)
    require_taxonomy(taxonomy)
    if taxonomy:
        with _silent():
            read_paths(local(taxonomy))


@contextmanager
def _silent() -> Iterator[None]:
    """Passes over log lines: ingest will write them."""
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(logging.INFO)
