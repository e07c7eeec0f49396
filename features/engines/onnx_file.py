"""A file of ONNX: read and checked without running anything of it, then cut at the tensors that are wanted.

FILE.onnx  (its weights beside it, too) ─► read ─► check ─► cut ─► without texts, producer, metadata
"""

import difflib
import importlib.util
import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 2**31 - 2**20  # what one message of ONNX can hold, less what is added to it
OLDEST_OPSET = 7  # since then operators broadcast as NumPy does
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # of operators that an engine may have
POOLED = (
    "image_embeds",
    "pooler_output",
)  # outputs of Hugging Face's encoders that hold a vector for an image

log = logging.getLogger("shelfmark")


def require_onnx(name: Path | str) -> None:
    """Raises a ShelfmarkError, which names the command, where a package for ONNX files is not installed."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ShelfmarkError(
                f"{name}: {package} is not installed; expected in the same environment; "
                "pip install 'shelfmark[onnx]'"
            )


def read_onnx(file: Path) -> "onnx.ModelProto":
    """Reads a whole network, its functions written out.

    Raises:
        ShelfmarkError: it is not there, no ONNX, damaged, too large, or has operators that no engine has.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.inliner import inline_local_functions

    expected = "expected a network in ONNX format"
    if not file.is_file():
        raise ShelfmarkError(f"{file}: no such file; {expected}; correct --backbone")
    _require_small(file, file.stat().st_size)
    try:
        model = onnx.load_model_from_string(file.read_bytes())
    except DecodeError as error:
        raise ShelfmarkError(f"{file}: not an ONNX file, or damaged; {expected}; export it again") from error
    if not (model.ir_version and model.graph.node and model.opset_import):
        raise ShelfmarkError(f"{file}: not an ONNX file, or empty; {expected}; export it again")
    _require_operators(file, model)
    _load_external(file, model.graph)
    try:
        if model.functions:
            model = inline_local_functions(model)
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, InferenceError, RuntimeError: they share no class
        raise ShelfmarkError(
            f"{file}: not a valid ONNX network ({first_line(error)}); {expected}; export it again"
        ) from error
    return model


def first_line(error: Exception) -> str:
    """Returns what the first line of a library's error says, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _load_external(file: Path, graph: "onnx.GraphProto") -> None:
    """Reads the weights that are in other files, in the directory of the file."""
    import onnx

    external = [one for one in _tensors(graph) if one.data_location == onnx.TensorProto.EXTERNAL]
    entries = (entry for one in external for entry in one.external_data)
    try:
        beside = {file.parent / entry.value for entry in entries if entry.key == "location"}
        _require_small(file, file.stat().st_size + sum(other.stat().st_size for other in beside))
        for one in external:
            onnx.external_data_helper.load_external_data_for_tensor(one, str(file.parent))
            one.ClearField("data_location")  # it is the default now; the bytes shall be those of one file
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ShelfmarkError(
            f"{file}: its weights in other files cannot be read ({first_line(error)}); expected them beside "
            "it, as they were exported; put them there"
        ) from error


def _require_small(file: Path, size: int) -> None:
    if size > MOST_BYTES:
        raise ShelfmarkError(
            f"{file}: {size / 2**30:.1f} GB with its weights; expected less than 2 GB, the most that one "
            "message of ONNX holds; export it in float16, or take a smaller network"
        )


def _require_operators(file: Path, model: "onnx.ModelProto") -> None:
    """Raises a ShelfmarkError for operators that no engine has."""
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise ShelfmarkError(
            f"{file}: written for version {opset} of ONNX's operators; expected {OLDEST_OPSET} or newer; "
            "export it again"
        )
    own = {(one.domain, one.name) for one in model.functions}
    inner = [node for function in model.functions for node in function.node]
    for node in _nodes([*model.graph.node, *inner]):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise ShelfmarkError(
                f"{file}: its operator {node.domain}.{node.op_type} is none of ONNX's; expected operators "
                "that OpenVINO or ONNX Runtime has; export it without custom operators"
            )


def opset_of(model: "onnx.ModelProto") -> int:
    """Returns the version of ONNX's operators that a network is written for; 0 where it has none."""
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


def _nodes(nodes: "Iterable[onnx.NodeProto]") -> "Iterator[onnx.NodeProto]":
    """Yields nodes, and those of the graphs in their attributes (If, Loop)."""
    for node in nodes:
        yield node
        for graph in _inner_graphs(node):
            yield from _nodes(graph.node)


def _inner_graphs(node: "onnx.NodeProto") -> "list[onnx.GraphProto]":
    attributes = ([one.g] if one.HasField("g") else one.graphs for one in node.attribute)
    return [graph for graphs in attributes for graph in graphs]


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """Yields a graph and those within it."""
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from _graphs(inner)


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Yields all tensors of weights, those in attributes included."""
    for one in _graphs(graph):
        yield from one.initializer
        for node in one.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else attribute.tensors


# The outputs, and what computes them


def ends_of(file: Path, graph: "onnx.GraphProto", layers: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of the tensors that layers name; without layers that of the output that is meant.

    Raises:
        ShelfmarkError: there is no such tensor, or there are several outputs.
    """
    return tuple(_end(file, graph, layer) for layer in layers) or (_only_end(file, graph),)


def _only_end(file: Path, graph: "onnx.GraphProto") -> str:
    names = [str(one.name) for one in graph.output]
    if len(names) == 1:
        return names[0]
    for name in POOLED:
        if name in names:
            others = ", ".join(other for other in names if other != name)
            log.info("backbone: %s ends at its output %s; the others are %s", file.name, name, others)
            return name
    raise ShelfmarkError(
        f"{file}: has {len(names)} outputs, {listed(names)}; expected the name of one; give --backbone "
        f"{file.name}@{names[0]}, for instance"
    )


def _end(file: Path, graph: "onnx.GraphProto", layer: str) -> str:
    """Returns the tensor of this name, or the first one that the node of this name computes."""
    values = [name for node in graph.node for name in node.output if name]
    nodes = {node.name: node.output[0] for node in graph.node if node.name}
    if layer in values:
        return layer
    if layer in nodes:
        return str(nodes[layer])
    near = difflib.get_close_matches(layer, [*values, *nodes], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ShelfmarkError(
        f"{file}: computes no tensor {layer!r}{hint}; expected the name of one of its tensors or nodes, for "
        f"instance of its outputs {listed([one.name for one in graph.output])}; correct what follows the @"
    )


def listed(names: Collection[str], most: int = 5) -> str:
    """Returns names in one text, the first ones of many."""
    return ", ".join([*list(names)[:most], "…"] if len(names) > most else names)


def cut(graph: "onnx.GraphProto", ends: tuple[str, ...]) -> None:
    """Leaves in a graph what computes these tensors, and the inputs that this reads; no outputs."""
    needed, nodes = set(ends), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_read_by(node))
    weights = [one for one in graph.initializer if one.name in needed]
    sparse = [one for one in graph.sparse_initializer if one.values.name in needed]
    constant = {one.name for one in weights} | {one.values.name for one in sparse}
    # before version 4 of the format weights were inputs, too
    inputs = [one for one in graph.input if one.name in needed - constant]
    replace_all(graph.node, nodes[::-1])
    replace_all(graph.initializer, weights)
    replace_all(graph.sparse_initializer, sparse)
    replace_all(graph.input, inputs)
    del graph.output[:]


def replace_all(field: Any, messages: Iterable[Any]) -> None:
    """Puts these messages in place of those of a repeated field; they may be among them."""
    copies = [type(one).FromString(one.SerializeToString()) for one in messages]
    del field[:]
    field.extend(copies)


def _read_by(node: "onnx.NodeProto") -> set[str]:
    """Returns the tensors that a node reads; its inner graphs read tensors from outside, too."""
    names = {name for name in node.input if name}
    for graph in _inner_graphs(node):
        own = {one.name for one in [*graph.input, *graph.initializer]}
        own |= {name for one in graph.node for name in one.output}
        read = {name for one in graph.node for name in _read_by(one)} | {one.name for one in graph.output}
        names |= read - own
    return names


def bare(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Returns a network without what computes nothing, such as texts; its weights sorted by name."""
    import onnx

    found = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    found.opset_import.extend(sorted(model.opset_import, key=lambda one: one.domain))
    found.graph.CopyFrom(model.graph)
    found.graph.name = "encoder"
    for graph in _graphs(found.graph):
        del graph.value_info[:], graph.quantization_annotation[:]
        for one in [graph, *graph.node, *graph.input, *graph.output, *_tensors(graph)]:
            for field in ("doc_string", "metadata_props"):
                if field in one.DESCRIPTOR.fields_by_name:
                    one.ClearField(field)
        for node in graph.node:
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
    replace_all(found.graph.initializer, sorted(found.graph.initializer, key=lambda one: one.name))
    return found
