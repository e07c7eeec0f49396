"""An encoder from an ONNX file, brought into one form: photos in as we hold them, bottlenecks out.

    pixels ─► scaling, layout ─► the network up to its ends ─► pooled, side by side ─► bottlenecks
    (n, size, size, 3) uint8                                   (mean, first or none)   (n, d) float32

All of it is in the new network, so that all engines compute the same. Its bytes depend on the file and the
settings alone; the fingerprint is made from them. The network is run on two images of noise, together and
alone: a bottleneck may not depend on the rest of its batch.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.engines.onnx_file import (
    bare,
    cut,
    ends_of,
    first_line,
    opset_of,
    read_onnx,
    replace_all,
    require_onnx,
)
from features.engines.onnx_input import (
    EncoderOptions,
    ImageInput,
    Preprocessing,
    image_input,
    photo_side,
    scaling_of,
)
from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

INPUT, OUTPUT = "pixels", "bottlenecks"
PREFIX = "network/"  # before every name of the file, so that none is one of ours
REDUCTIONS_TAKE_AXES = 18  # since this version of the operators ReduceMean has its axes as an input

log = logging.getLogger("shelfmark")


@dataclass(frozen=True)
class NormalisedOnnx:
    """An encoder: `pixels` (n, size, size, 3) uint8 → `bottlenecks` (n, d) float32."""

    onnx: bytes  # n is any number, or 1 where the network takes one photo at a time
    image_size: int  # px, height and width
    width: int  # d


def normalise_onnx(
    file: Path, layers: tuple[str, ...], image_size: int | None, options: EncoderOptions
) -> NormalisedOnnx:
    """Reads an encoder.

    Args:
        file: ONNX, its external data beside it.
        layers: names of outputs, inner tensors or nodes; several are put side by side; none: the file's only
            output, or one of `onnx_file.POOLED`.
        image_size: px; None: as the file says.
        options: of the settings.

    Raises:
        ShelfmarkError: it is not there, damaged or no encoder of photos, or the settings have to say more.
    """
    require_onnx(file)
    import onnx

    model = read_onnx(file)
    metadata = {one.key.lower(): one.value.lower() for one in model.metadata_props}
    ends = ends_of(file, model.graph, layers)
    cut(model.graph, ends)
    image = image_input(file, model.graph, options.layout)
    config = Preprocessing.read(file)
    size = photo_side(file, image, image_size, config.size)
    scaling = scaling_of(file, image, options.scaling, metadata, config)

    model = onnx.compose.add_prefix(bare(model), PREFIX)
    ends = tuple(PREFIX + end for end in ends)
    _put_front(model.graph, image, size, scaling, metadata.get("image.bitmappixelformat") == "bgr8")
    _put_pooling(file, model, ends, _shapes(file, model, ends, size), options.pooling)
    return _tested(file, model, image, size)


# Before the network, and behind it


def _put_front(
    graph: "onnx.GraphProto", image: ImageInput, size: int, scaling: tuple[float, ...], is_bgr: bool
) -> None:
    """Puts our pixels before the network: scaled in float32, then moved into its layout."""
    import onnx

    nodes: list[onnx.NodeProto] = []

    def then(operator: str, *inputs: str, **attributes: Any) -> None:
        before = nodes[-1].output[0] if nodes else INPUT
        output = f"{INPUT}/{len(nodes)}"
        nodes.append(onnx.helper.make_node(operator, [before, *inputs], [output], **attributes))

    if is_bgr:
        then("Gather", _constant(graph, "pixels/bgr", np.array([2, 1, 0])), axis=3)
    if image.type != onnx.TensorProto.UINT8:
        then("Cast", to=onnx.TensorProto.FLOAT)
        mean, deviation = np.array(scaling).reshape(2, 3) * 255
        if mean.any():  # first: where it is 127.5 nothing is rounded
            then("Sub", _constant(graph, "pixels/mean", mean.astype(np.float32)))
        if (deviation != 1).any():
            then("Mul", _constant(graph, "pixels/scale", (1 / deviation).astype(np.float32)))
    if image.layout == "nchw":
        then("Transpose", perm=(0, 3, 1, 2))  # behind the scaling, see openvino_graphs.py
    if image.type == onnx.TensorProto.FLOAT16:
        then("Cast", to=image.type)
    then("Identity")
    nodes[-1].output[0] = PREFIX + image.name
    replace_all(graph.node, [*nodes, *graph.node])
    pixels = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["n", size, size, 3])
    replace_all(graph.input, [pixels])


def _constant(graph: "onnx.GraphProto", name: str, values: np.ndarray) -> str:
    import onnx

    graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return name


def _shapes(file: Path, model: "onnx.ModelProto", ends: tuple[str, ...], size: int) -> list[tuple[int, ...]]:
    """Returns the shapes of these tensors for one photo: the network is run on one."""
    import onnx

    names = list(dict.fromkeys(ends))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = _opened(file, probe.SerializeToString())
    found = dict(zip(names, _run(file, session, _noise(size)[:1]), strict=True))
    for name, values in found.items():
        if values.dtype not in (np.float32, np.float16):
            raise ShelfmarkError(
                f"{file}: its tensor {name.removeprefix(PREFIX)} holds {values.dtype}; expected float32 or "
                "float16; name another one"
            )
    return [found[name].shape for name in ends]


def _put_pooling(
    file: Path, model: "onnx.ModelProto", ends: tuple[str, ...], shapes: list[tuple[int, ...]], pooling: str
) -> None:
    """Puts behind the network what makes a vector of each end, and puts these side by side."""
    import onnx

    graph, pooled = model.graph, []
    for number, (end, shape) in enumerate(zip(ends, shapes, strict=True)):
        exact, vector = f"end{number}", f"end{number}/vector"
        graph.node.append(onnx.helper.make_node("Cast", [end], [exact], to=onnx.TensorProto.FLOAT))
        axes = _pooled_axes(file, end.removeprefix(PREFIX), shape, pooling)
        if not axes:
            vector = exact
        elif len(shape) == 3 and pooling == "first":
            first = _constant(graph, f"{vector}/first", np.array(0))
            graph.node.append(onnx.helper.make_node("Gather", [exact, first], [vector], axis=1))
        elif opset_of(model) < REDUCTIONS_TAKE_AXES:
            mean = onnx.helper.make_node("ReduceMean", [exact], [vector], axes=axes, keepdims=0)
            graph.node.append(mean)
        else:
            over = _constant(graph, f"{vector}/axes", np.array(axes))
            graph.node.append(onnx.helper.make_node("ReduceMean", [exact, over], [vector], keepdims=0))
        pooled.append(vector)
    graph.node.append(onnx.helper.make_node("Concat", pooled, [OUTPUT], axis=1))
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["n", None]))


def _pooled_axes(file: Path, end: str, shape: tuple[int, ...], pooling: str) -> list[int]:
    """Returns the axes over which a tensor of this shape is pooled; none of a vector.

    Raises:
        ShelfmarkError: the shape is of no vector, tokens or square map, or tokens without a way to pool them.
    """
    if len(shape) == 2:
        return []
    found = f"{file}: its tensor {end} has the shape (n, {', '.join(map(str, shape[1:]))})"
    if len(shape) == 3:
        if pooling == "auto":
            raise ShelfmarkError(
                f"{found}, the tokens of a photo; expected to know how they become one vector; set "
                "backbone.pooling to mean, or to first where the first token stands for the whole photo"
            )
        return [1]
    if len(shape) == 4 and (shape[1] == shape[2]) != (shape[2] == shape[3]):
        return [1, 2] if shape[1] == shape[2] else [2, 3]
    raise ShelfmarkError(
        f"{found}; expected a vector, tokens (n, tokens, d), or a square map whose side is not d; name "
        "another tensor after the @"
    )


# Running it


def open_session(onnx: bytes) -> "onnxruntime.InferenceSession":
    """Returns a normalised network, ready to run in ONNX Runtime on all cores."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = os.cpu_count() or 1
    # its threads would keep the cores busy while they wait, and photos are decoded on the same cores
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])


def bottlenecks_of(session: "onnxruntime.InferenceSession", pixels: np.ndarray) -> np.ndarray:
    """Computes bottlenecks: (n, size, size, 3) uint8 → (n, d) float32."""
    one_by_one = session.get_inputs()[0].shape[0] == 1
    parts = np.split(pixels, len(pixels)) if one_by_one and len(pixels) > 1 else [pixels]
    return np.concatenate([session.run(None, {INPUT: part})[0] for part in parts])


def _opened(file: Path, onnx: bytes) -> "onnxruntime.InferenceSession":
    try:
        return open_session(onnx)
    except Exception as error:  # ONNX Runtime has a class for each status, without one above them
        raise ShelfmarkError(
            f"{file}: ONNX Runtime cannot open it ({first_line(error)}); expected operators and versions "
            "that it has; export it again, for an older version of the operators"
        ) from error


def _run(file: Path, session: "onnxruntime.InferenceSession", pixels: np.ndarray) -> list[np.ndarray]:
    try:
        found: list[np.ndarray] = session.run(None, {INPUT: pixels})
    except Exception as error:
        raise ShelfmarkError(
            f"{file}: cannot be run on photos of {pixels.shape[1]} px ({first_line(error)}); expected an "
            "encoder of photos; correct --image-size, or export it again"
        ) from error
    return found


def _noise(size: int) -> np.ndarray:
    """Returns two images: (2, size, size, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)


def _tested(file: Path, model: "onnx.ModelProto", image: ImageInput, size: int) -> NormalisedOnnx:
    """Runs two images together and alone; a network with one image in its constants then takes one at a time.

    Raises:
        ShelfmarkError: an image's numbers are not the same each time, or depend on the other image.
    """
    session, images = _opened(file, model.SerializeToString()), _noise(size)
    alone = np.concatenate([_run(file, session, one[None])[0] for one in images])
    try:
        together = _run(file, session, images)[0]
    except ShelfmarkError:
        together = np.empty((0, 0), np.float32)
    repeated = _run(file, session, images[:1])[0]
    depends = image.batch is None and len(together) and not _are_close(together, alone)
    if depends or not _are_close(repeated, alone[:1]):
        raise ShelfmarkError(
            f"{file}: gives a photo other numbers each time, or beside another photo; expected a network "
            "that does not train; export it in evaluation mode"
        )
    takes_any = _are_close(together, alone)
    for value, shape in ((model.graph.input[0], [size, size, 3]), (model.graph.output[0], alone.shape[1:])):
        dimensions = value.type.tensor_type.shape.dim
        for dimension, length in zip(dimensions[1:], shape, strict=True):
            dimension.dim_value = length
        if not takes_any:
            dimensions[0].dim_value = 1
    if not takes_any:
        log.info("backbone: %s takes one photo at a time; exported for any number it is quicker", file.name)
    return NormalisedOnnx(model.SerializeToString(deterministic=True), size, alone.shape[1])


def _are_close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether these bottlenecks are equal but for rounding."""
    if found.shape != expected.shape:
        return False
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    return np.allclose(found, expected, rtol=0, atol=1e-2 * largest, equal_nan=True)
