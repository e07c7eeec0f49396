"""The format onnx: pixels in, decisions with names out; for ONNX Runtime.

    pixels (n, size, size, 3) uint8, of each size    images_per_product (p,) int32 ──► model.onnx ──► OUTPUTS

tf2onnx converts a network of Keras together with the decision. A backbone that is an ONNX file stays as it
is: the decision is converted alone and put behind it. tf2onnx makes inputs of constants that are texts, so
names are added at the end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from features.engines.backbones import KerasBackbone, OnnxBackbone
from features.engines.engine import require_package
from features.engines.onnx_encoder import INPUT, OUTPUT
from features.engines.onnx_file import first_line, opset_of
from features.errors import ShelfmarkError
from features.storage.paths import write_whole
from features.views import WHOLE
from pipeline.export.graph import COUNTS, TEXTS, ExportedGraph, decoded_inputs

if TYPE_CHECKING:
    import onnx

MODEL = "model.onnx"
VIEWS = "views"
IR_VERSION = 10  # of the files' format: that of ONNX 1.16, of 2024
OPSET = 18  # the newest version of the operators that tf2onnx writes
PACKAGES = ("tensorflow", "tf2onnx", "onnx")


def inputs(graph: ExportedGraph) -> dict[str, str]:
    """Returns the inputs of the written files, and what they are."""
    return graph.pixel_inputs


def write(graph: ExportedGraph, folder: Path) -> None:
    """Writes model.onnx.

    Raises:
        ShelfmarkError: a package is missing, or an operation of the backbone cannot be written.
    """
    model = in_numbers(graph)
    import onnx

    for name in TEXTS:
        _name(model.graph, name, graph.texts[name])
    bundle = graph.bundle
    properties = {"release": str(bundle.categorizer.release), "digest": bundle.digest}
    onnx.helper.set_model_props(model, properties | {"caveats": "; ".join(bundle.caveats)})
    onnx.checker.check_model(model)
    write_whole(folder / MODEL, model.SerializeToString())


def _name(network: "onnx.GraphProto", output: str, texts: list[str]) -> None:
    """Makes an output of numbers one of texts, which are a constant of the network."""
    from onnx import TensorProto, helper, numpy_helper

    value = next(one for one in network.output if one.name == output)
    number, table = f"{output}/number", f"{output}/texts"
    for node in network.node:
        node.output[:] = [number if name == output else name for name in node.output]
        node.input[:] = [number if name == output else name for name in node.input]
    network.initializer.append(numpy_helper.from_array(np.array(texts, object), table))
    network.node.append(helper.make_node("Gather", [table, number], [output], axis=0))
    value.type.tensor_type.elem_type = TensorProto.STRING


def in_numbers(graph: ExportedGraph) -> "onnx.ModelProto":
    """Returns the network that gives OUTPUTS in numbers.

    Raises:
        ShelfmarkError: as of `write`.
    """
    require_package("tf2onnx", "onnx", "onnx")
    backbone = graph.backbone
    if isinstance(backbone, KerasBackbone):
        model = _converted(graph, graph.from_pixels, graph.signature(), OPSET)
    else:
        assert isinstance(backbone, OnnxBackbone)
        model = _behind(graph, backbone)
    for values, first in (
        (model.graph.input[:-1], "n"),
        (model.graph.input[-1:], "p"),
        (model.graph.output, "p"),
    ):
        for value in values:
            value.type.tensor_type.shape.dim[0].dim_param = first
    return model


def _converted(
    graph: ExportedGraph, function: Callable[..., object], signature: list[tf.TensorSpec], opset: int
) -> "onnx.ModelProto":
    """A function of TensorFlow in ONNX."""
    import tf2onnx

    traced = tf.function(function, input_signature=signature, autograph=False)
    try:
        model, storage = tf2onnx.convert.from_function(traced, signature, opset=opset)
    except Exception as error:  # tf2onnx has no class of its own
        raise _refused(graph, first_line(error)) from error
    if storage or len(model.graph.input) != len(signature):
        raise _refused(graph, "it has over 2 GB of weights" if storage else "a constant became an input")
    converted: onnx.ModelProto = model
    return converted


def _refused(graph: ExportedGraph, reason: str) -> ShelfmarkError:
    return ShelfmarkError(
        f"backbone {graph.backbone.name}: cannot be written as ONNX ({reason}); expected a network of "
        "operations that tf2onnx knows, of less than 2 GB; give --format saved_model"
    )


def _behind(graph: ExportedGraph, backbone: OnnxBackbone) -> "onnx.ModelProto":
    """A backbone that is an ONNX file, with the decision behind it, and cutting and mirroring before it."""
    import onnx

    encoder = onnx.load_from_string(backbone.onnx)
    if encoder.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise ShelfmarkError(
            f"backbone {backbone.name}: takes one photo at a time; expected one for any number of photos; "
            "export the encoder with a free first dimension, and train again"
        )
    opset, (*pixels, counts) = min(OPSET, opset_of(encoder)), graph.signature()
    bottlenecks = tf.TensorSpec((None, backbone.width), tf.float32, name=OUTPUT)
    decision = _converted(graph, graph.from_bottlenecks, [bottlenecks, counts], opset)
    if graph.views != (WHOLE,):
        numbers = range(len(graph.views))
        views = _converted(graph, lambda *pixels: {VIEWS: graph.images(pixels, numbers)}, pixels, opset)
        for node in encoder.graph.node:
            node.input[:] = [VIEWS if name == INPUT else name for name in node.input]
        encoder.graph.input[0].name = VIEWS
        encoder = _joined(views, encoder, VIEWS)
    return _joined(encoder, decision, OUTPUT)


def _joined(first: "onnx.ModelProto", second: "onnx.ModelProto", name: str) -> "onnx.ModelProto":
    """Two networks as one; the output of the first has the name of an input of the second."""
    import onnx

    opset = max(opset_of(first), opset_of(second))
    first, second = (
        one if opset_of(one) == opset else onnx.version_converter.convert_version(one, opset)
        for one in (first, second)
    )
    for one in (first, second):
        del one.opset_import[:]
        one.opset_import.append(onnx.helper.make_opsetid("", opset))
        one.ir_version = IR_VERSION
    return onnx.compose.merge_models(first, second, io_map=[(name, name)])


class Runner:
    """Runs the written file."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
        self._sizes = {one.name: one.shape[1] for one in self._session.get_inputs() if one.name != COUNTS}

    def decide(self, jpegs: Sequence[bytes], counts: np.ndarray) -> dict[str, np.ndarray]:
        """OUTPUTS, with names: of (p,) products, from all their JPEGs and how many each has."""
        pixels = decoded_inputs(jpegs, self._sizes)
        found = self._session.run(None, pixels | {COUNTS: counts.astype(np.int32)})
        return dict(zip([output.name for output in self._session.get_outputs()], found, strict=True))
