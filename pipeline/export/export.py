"""Export: the categorizer of a release for servers without our code.

    OUTPUT/   saved_model.pb  variables/  fingerprint.pb    --format saved_model, see saved_model.py
              model.onnx                                    --format onnx, see onnx_graph.py
              model.xml  model.bin                          --format openvino, see openvino_ir.py
              names.json                                    categories, statuses and nodes, see graph.py
              manifest.json                                 release, caveats, inputs, outputs, versions, check

It is written whole or not at all. What is not in it: docs/export.md.
"""

import importlib
import importlib.metadata
import tempfile
from pathlib import Path
from types import ModuleType

from features.errors import ShelfmarkError
from features.output import others_output
from features.storage.artifact import Artifact, begin, open_artifact, partial_of, seal
from features.storage.paths import AnyPath, copy_tree, remove
from models.decisions.bundle import open_bundle
from pipeline.export.check import PRECISION, CheckResult, check, photos_of
from pipeline.export.graph import OUTPUTS, ExportedGraph
from pipeline.job.progress import log
from pipeline.job.summaries import ExportSummary

KIND, VERSION = "export", 1
MODULES = {"saved_model": "saved_model", "onnx": "onnx_graph", "openvino": "openvino_ir"}
LEFT_OUT = (  # of what `categorize` and the service do
    "photos are neither checked nor brought into shape: give strict JPEGs (or their pixels), RGB, upright",
    "a photo that is given twice counts twice",
    "sellers' corrections change nothing",
)


def export(path: AnyPath, kind: str, output: AnyPath, source: str | None = None) -> Artifact:
    """Writes a release as files of another format.

    Args:
        path: of the bundle.
        kind: a key of MODULES.
        output: directory, which is new or empty.
        source: of photos to check the files with; None: they are not checked.

    Raises:
        ShelfmarkError: the bundle cannot be written in this format, or the written files decide otherwise
            than the categorizer; then nothing is left at `output`.
    """
    _require_tensorflow()
    photos = None if source is None else photos_of(source)
    bundle = open_bundle(path)
    graph = ExportedGraph(bundle, bundle.backbone())
    module = importlib.import_module(f"pipeline.export.{MODULES[kind]}")
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as scratch:
        place = output if isinstance(output, Path) else Path(scratch) / output.name
        work = place.with_name(partial_of(place).name)
        remove(work)  # of an export that was killed
        made_from = {"bundle": bundle.digest, "format": kind}
        try:
            begin(work, made_from)
            _write(graph, module, work)
            log.info("export: release %s is written as %s", bundle.categorizer.release, kind)
            result = None
            if photos is not None:
                with others_output():
                    result = check(bundle.categorizer, graph.backbone, module.Runner(work), photos)
                _require_equal(result)
            summary = _summary(graph, kind, module, result).to_dict()
            made = seal(place, kind=KIND, version=VERSION, made_from=made_from, summary=summary)
        finally:
            remove(work)
        if place is not output:
            copy_tree(place, output)
    log.info("export: %s: %s files", output, len(made.files))
    return open_artifact(output, KIND)


def _require_tensorflow() -> None:
    """Raises a ShelfmarkError unless Keras runs on TensorFlow."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ShelfmarkError(
            f"export: Keras runs on {keras.backend.backend()}; expected tensorflow, whose graphs are "
            "exported; leave out KERAS_BACKEND"
        )


def _write(graph: ExportedGraph, module: ModuleType, work: Path) -> None:
    """Fills the working directory."""
    with others_output():
        graph.write_names(work)
        module.write(graph, work)


def _require_equal(result: CheckResult) -> None:
    """Logs what the check found; raises a ShelfmarkError when decisions differ beyond PRECISION."""
    log.info("export: checked: %s", result.to_sentence())
    if result.beyond:
        raise ShelfmarkError(
            f"export: {result.beyond:,} of {result.products:,} products are decided otherwise than by the "
            f"categorizer, and are further than {PRECISION} from a threshold; expected equal decisions; "
            "nothing was written; please report this"
        )


def _summary(
    graph: ExportedGraph, kind: str, module: ModuleType, result: CheckResult | None
) -> ExportSummary:
    """What manifest.json says of the export."""
    bundle, backbone = graph.bundle, graph.backbone
    rules = bundle.categorizer.rules
    return ExportSummary(
        format=kind,
        release=str(bundle.categorizer.release),
        target_precision=rules.target,
        caveats=list(bundle.caveats),
        backbone=backbone.name,
        weights=backbone.weights,
        image_size=backbone.image_size,
        views=[view.name for view in graph.views],
        inputs=module.inputs(graph),
        outputs=OUTPUTS,
        left_out=list(LEFT_OUT),
        versions={name: importlib.metadata.version(name) for name in ("shelfmark", *module.PACKAGES)},
        check=None if result is None else result.to_dict(),
    )
