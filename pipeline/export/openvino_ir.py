"""The format openvino: pixels in, decisions in numbers out; names are in names.json.

    pixels (n, size, size, 3) uint8, of each size    images_per_product (p,) int32
      ──► model.xml, model.bin ──► OUTPUTS

OpenVINO has no constants that are texts. It computes the decision in float32.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from features.engines.backbones import KerasBackbone
from features.engines.onnx_file import first_line
from features.engines.openvino_graphs import transpose_late
from features.errors import ShelfmarkError
from pipeline.export.graph import COUNTS, NAMES, OUTPUTS, ExportedGraph, decoded_inputs
from pipeline.export.onnx_graph import in_numbers

if TYPE_CHECKING:
    import openvino

MODEL = "model.xml"
PACKAGES = ("tensorflow", "openvino")
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # else processors with AMX decide in bfloat16


def inputs(graph: ExportedGraph) -> dict[str, str]:
    """Returns the inputs of the written files, and what they are."""
    return graph.pixel_inputs


def write(graph: ExportedGraph, folder: Path) -> None:
    """Writes model.xml and model.bin.

    Raises:
        ShelfmarkError: a package is missing, or an operation of the backbone cannot be written.
    """
    import openvino

    try:
        network = _converted(graph)
    except (RuntimeError, openvino.frontend.OpConversionFailure) as error:
        raise ShelfmarkError(
            f"backbone {graph.backbone.name}: cannot be written for OpenVINO ({first_line(error)}); expected "
            "operations that OpenVINO has; give --format saved_model or onnx"
        ) from error
    for name, value in (("release", graph.bundle.categorizer.release), ("digest", graph.bundle.digest)):
        network.set_rt_info(str(value), ["shelfmark", name])
    openvino.save_model(network, folder / MODEL, compress_to_fp16=False)


def _converted(graph: ExportedGraph) -> "openvino.Model":
    """The network, with inputs and outputs of the names that they have in the graph."""
    import openvino

    if not isinstance(graph.backbone, KerasBackbone):
        return openvino.convert_model(io.BytesIO(in_numbers(graph).SerializeToString()))
    function = tf.function(graph.from_pixels, input_signature=graph.signature(), autograph=False)
    traced = function.get_concrete_function()
    network = openvino.convert_model(traced, output=[tensor.name for tensor in traced.outputs])
    transpose_late(network)
    return network


class Runner:
    """Runs the written files."""

    def __init__(self, folder: Path) -> None:
        import openvino

        self._network = openvino.Core().compile_model(folder / MODEL, "CPU", EXACT)
        self._sizes = {
            name: self._network.input(name).partial_shape[1].get_length()
            for one in self._network.inputs
            if (name := one.any_name) != COUNTS
        }
        self._names = json.loads((folder / NAMES).read_bytes())

    def decide(self, jpegs: Sequence[bytes], counts: np.ndarray) -> dict[str, np.ndarray]:
        """OUTPUTS, with names: of (p,) products, from all their JPEGs and how many each has."""
        pixels = decoded_inputs(jpegs, self._sizes)
        values = self._network(pixels | {COUNTS: counts.astype(np.int32)})
        found = {name: values[name] for name in OUTPUTS}
        return found | {
            "top_categories": self._named("categories", "category", found["top_categories"]),
            "status": np.array(self._names["statuses"], object)[found["status"]],
            "node": self._named("nodes", "node", found["node"]),
        }

    def _named(self, table: str, column: str, numbers: np.ndarray) -> np.ndarray:
        """Texts instead of numbers."""
        texts = np.array([row[column] for row in self._names[table]], object)
        named: np.ndarray = texts[numbers]
        return named
