"""Encoders from ONNX files: the file's own numbers from our pixels, or one line that says why not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.engines.onnx_encoder import NormalisedOnnx, bottlenecks_of, normalise_onnx, open_session
from features.engines.onnx_input import SCALINGS, EncoderOptions
from features.errors import ShelfmarkError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after its absence is known

SIDE, NEWEST = 16, 24  # px; the newest version of the operators that both packages have
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
KERNELS = RNG.normal(0, 0.3, (5, 3, 3, 3)).astype(np.float32)
SCALED = EncoderOptions(scaling="-1..1")
TYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.uint8: TensorProto.UINT8}
RANKS = {"map": 4, "last": 4, "tokens": 3}
Node = Any


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Node:
    return helper.make_node(operator, inputs, outputs, name=f"node_{outputs[0]}", **attributes)


def small_encoder(
    file: Path,
    shape: Sequence[Any] = ("n", 3, SIDE, SIDE),
    dtype: type = np.float32,
    opset: int = 17,
    head: Sequence[Node] = (),
    outputs: Sequence[str] = ("vector",),
    inputs: Sequence[Any] = (),
    **metadata: str,
) -> Path:
    """Writes photos → `map` (n, 5, 8, 8) → `vector` (n, 5); `head` computes more."""
    exact = dtype if dtype != np.uint8 else np.float32
    nodes, current = [], "photos"
    if dtype == np.uint8:
        nodes.append(node("Cast", [current], ["cast"], to=TYPES[np.float32]))
        current = "cast"
    if shape[-1] == 3:
        nodes.append(node("Transpose", [current], ["moved"], perm=(0, 3, 1, 2)))
        current = "moved"
    nodes += [
        node("Conv", [current, "kernels"], ["convolved"], strides=(2, 2), pads=(1, 1, 1, 1)),
        node("Relu", ["convolved"], ["map"]),
        node("GlobalAveragePool", ["map"], ["pooled"]),
        node("Flatten", ["pooled"], ["vector"]),
        *head,
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("photos", TYPES[dtype], shape), *inputs],
        [helper.make_tensor_value_info(name, TYPES[exact], [None] * RANKS.get(name, 2)) for name in outputs],
        [numpy_helper.from_array(KERNELS.astype(exact), "kernels")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, file)
    return file


def own_outputs(file: Path, pixels: np.ndarray, output: str = "vector") -> np.ndarray:
    """What the file computes of pixels that are scaled already."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([output], {session.get_inputs()[0].name: pixels})[0]
    return found


def by_hand(scaling: Sequence[float] = SCALINGS["-1..1"], pixels: np.ndarray = PIXELS) -> np.ndarray:
    """(n, 3, side, side) float32."""
    mean, deviation = np.array(scaling[:3]), np.array(scaling[3:])
    return ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)


def bottlenecks(encoder: NormalisedOnnx, pixels: np.ndarray = PIXELS) -> np.ndarray:
    found = bottlenecks_of(open_session(encoder.onnx), pixels)
    assert found.dtype == np.float32 and found.shape == (len(pixels), encoder.width)
    return found


def nodes_of(encoder: NormalisedOnnx) -> list[str]:
    return [one.op_type for one in onnx.load_from_string(encoder.onnx).graph.node]


def batch_of(encoder: NormalisedOnnx) -> int:
    """Photos at a time; 0: any number."""
    model = onnx.load_from_string(encoder.onnx)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_value == dimension
    return int(dimension)


# Inputs


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 18, NEWEST])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [("n", 3, SIDE, SIDE), ("n", SIDE, SIDE, 3), (1, 3, SIDE, SIDE)])
def test_bottlenecks_are_what_the_file_computes_of_the_scaled_pixels(
    tmp_path: Path, shape: Sequence[Any], dtype: type, opset: int
) -> None:
    file = small_encoder(tmp_path / "a.onnx", shape, dtype, opset)
    encoder = normalise_onnx(file, (), None, SCALED)
    assert (encoder.image_size, encoder.width, batch_of(encoder)) == (SIDE, 5, 0)
    scaled = by_hand().transpose(0, 2, 3, 1) if shape[-1] == 3 else by_hand()
    expected = np.concatenate([own_outputs(file, one[None].astype(dtype)) for one in scaled])
    np.testing.assert_allclose(bottlenecks(encoder), expected, rtol=2e-3 if dtype == np.float16 else 2e-6)


@pytest.mark.parametrize("shape", [("n", 3, SIDE, SIDE), ("n", SIDE, SIDE, 3)])
def test_an_encoder_of_bytes_gets_bytes(tmp_path: Path, shape: Sequence[Any]) -> None:
    file = small_encoder(tmp_path / "a.onnx", shape, np.uint8)
    encoder = normalise_onnx(file, (), None, EncoderOptions())
    pixels = PIXELS if shape[-1] == 3 else PIXELS.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(bottlenecks(encoder), own_outputs(file, pixels), rtol=2e-6)


def test_the_layout_that_a_file_leaves_open_comes_from_the_settings(tmp_path: Path) -> None:
    file = small_encoder(tmp_path / "a.onnx", ("n", "colours", "height", "width"))
    with pytest.raises(ShelfmarkError, match=r"axis holds the colours; expected 3.*backbone.layout to nchw"):
        normalise_onnx(file, (), SIDE, SCALED)
    encoder = normalise_onnx(file, (), SIDE, EncoderOptions(layout="nchw", scaling="-1..1"))
    np.testing.assert_allclose(bottlenecks(encoder), own_outputs(file, by_hand()), rtol=2e-6)


@pytest.mark.parametrize("scaling", [*SCALINGS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)])
def test_colours_are_scaled_as_the_setting_says(tmp_path: Path, scaling: Any) -> None:
    file = small_encoder(tmp_path / "a.onnx")
    encoder = normalise_onnx(file, (), None, EncoderOptions(scaling=scaling))
    values = SCALINGS[scaling] if isinstance(scaling, str) else scaling
    np.testing.assert_allclose(bottlenecks(encoder), own_outputs(file, by_hand(values)), rtol=1e-5)


@pytest.mark.parametrize(
    ("declared", "scaling"),
    [("NominalRange_0_255", "0..255"), ("Normalized_0_1", "0..1"), ("normalized_1_1", "-1..1")],
)
def test_colours_are_scaled_as_the_files_metadata_say(tmp_path: Path, declared: str, scaling: str) -> None:
    file = small_encoder(tmp_path / "a.onnx", **{"Image.NominalPixelRange": declared})
    encoder = normalise_onnx(file, (), None, EncoderOptions())
    np.testing.assert_allclose(bottlenecks(encoder), own_outputs(file, by_hand(SCALINGS[scaling])), rtol=1e-5)


def test_an_encoder_of_blue_green_red_gets_them_in_this_order(tmp_path: Path) -> None:
    file = small_encoder(tmp_path / "a.onnx", **{"Image.BitmapPixelFormat": "Bgr8"})
    expected = own_outputs(file, by_hand(pixels=PIXELS[..., ::-1]))
    np.testing.assert_allclose(bottlenecks(normalise_onnx(file, (), None, SCALED)), expected, rtol=2e-6)


CLIP = {
    "crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": 20}, "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "image_mean": SCALINGS["clip"][:3], "image_std": SCALINGS["clip"][3:],
}  # fmt: skip


@pytest.mark.parametrize("folder", ["", "onnx"])
def test_size_and_scaling_come_from_hugging_faces_configuration(tmp_path: Path, folder: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
    (tmp_path / folder).mkdir(exist_ok=True)
    file = small_encoder(tmp_path / folder / "a.onnx", ("n", 3, "height", "width"))
    encoder = normalise_onnx(file, (), None, EncoderOptions())
    assert encoder.image_size == SIDE
    np.testing.assert_allclose(bottlenecks(encoder), own_outputs(file, by_hand(SCALINGS["clip"])), rtol=1e-5)
    assert normalise_onnx(file, (), 24, EncoderOptions()).image_size == 24  # the settings count first
    forced = normalise_onnx(file, (), None, SCALED)
    np.testing.assert_allclose(bottlenecks(forced), own_outputs(file, by_hand()), rtol=2e-6)


# Outputs


TOKENS = [
    node("Reshape", ["map", "to_tokens"], ["flat"]),
    node("Transpose", ["flat"], ["tokens"], perm=(0, 2, 1)),
    node("Transpose", ["map"], ["last"], perm=(0, 2, 3, 1)),
    node("Identity", ["vector"], ["image_embeds"]),
]  # fmt: skip


def many_outputs(file: Path, outputs: Sequence[str], **options: Any) -> Path:
    shape = helper.make_tensor("value", TensorProto.INT64, [3], [0, 5, -1])
    head = [node("Constant", [], ["to_tokens"], value=shape), *TOKENS]
    return small_encoder(file, head=head, outputs=outputs, **options)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize(
    ("layers", "pooling", "own", "pool"),
    [
        (("map",), "auto", "map", lambda one: one.mean((2, 3))),
        (("last",), "auto", "last", lambda one: one.mean((1, 2))),
        (("tokens",), "mean", "tokens", lambda one: one.mean(1)),
        (("tokens",), "first", "tokens", lambda one: one[:, 0]),
        (("node_tokens",), "first", "tokens", lambda one: one[:, 0]),
        (("tokens", "map"), "first", "tokens", lambda one: np.concatenate([one[:, 0], one.mean(1)], 1)),
    ],
)
def test_the_end_may_be_any_tensor_and_is_pooled(
    tmp_path: Path,
    layers: tuple[str, ...],
    pooling: Any,
    own: str,
    pool: Callable[[np.ndarray], np.ndarray],
    opset: int,
) -> None:
    file = many_outputs(tmp_path / "a.onnx", ["map", "last", "tokens"], opset=opset)
    encoder = normalise_onnx(file, layers, None, EncoderOptions(scaling="-1..1", pooling=pooling))
    np.testing.assert_allclose(bottlenecks(encoder), pool(own_outputs(file, by_hand(), own)), rtol=1e-5)


def test_what_is_behind_the_end_is_not_in_the_network(tmp_path: Path) -> None:
    wide = numpy_helper.from_array(np.zeros((5, 10_000), np.float32), "wide")
    head = [node("Constant", [], ["wide"], value=wide), node("MatMul", ["vector", "wide"], ["classes"])]
    file = small_encoder(tmp_path / "a.onnx", head=head, outputs=["classes"])
    whole, inner = (normalise_onnx(file, layers, None, SCALED) for layers in ((), ("vector",)))
    assert (whole.width, inner.width) == (10_000, 5)
    assert "MatMul" in nodes_of(whole) and "MatMul" not in nodes_of(inner)
    assert len(inner.onnx) < 5_000 < len(whole.onnx)


def test_the_pooled_one_of_several_outputs_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = many_outputs(tmp_path / "a.onnx", ["tokens", "image_embeds"])
    caplog.set_level("INFO", "shelfmark")
    encoder = normalise_onnx(file, (), None, SCALED)
    assert caplog.messages == ["backbone: a.onnx ends at its output image_embeds; the others are tokens"]
    expected = own_outputs(file, by_hand(), "image_embeds")
    np.testing.assert_allclose(bottlenecks(encoder), expected, rtol=2e-6)


def test_of_clip_only_what_encodes_photos_is_taken(tmp_path: Path) -> None:
    texts = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", 77])
    head = [
        node("Cast", ["input_ids"], ["text"], to=TensorProto.FLOAT),
        node("ReduceMean", ["text"], ["text_embeds"], axes=[1]),
        node("MatMul", ["vector", "text_embeds"], ["logits"]),
        node("Identity", ["vector"], ["image_embeds"]),
    ]
    file = small_encoder(tmp_path / "a.onnx", head=head, outputs=["logits", "image_embeds"], inputs=[texts])
    vectors = bottlenecks(normalise_onnx(file, (), None, SCALED))
    np.testing.assert_array_equal(vectors, bottlenecks(normalise_onnx(file, ("image_embeds",), None, SCALED)))
    with pytest.raises(ShelfmarkError, match=r"needs 2 inputs, photos float32 .*, input_ids int64 \(n, 77\)"):
        normalise_onnx(file, ("logits",), None, SCALED)


# Batches


def fixed_batch(file: Path) -> Path:
    """One photo at a time, as some exporters write it: the batch is in the constants of the graph."""
    to_vector = node("Reshape", ["pooled", "shape"], ["fixed"])
    shape = node("Constant", [], ["shape"], value=helper.make_tensor("v", TensorProto.INT64, [2], [1, -1]))
    return small_encoder(file, (1, 3, SIDE, SIDE), head=[shape, to_vector], outputs=["fixed"])


def test_a_batch_of_one_in_the_graph_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = fixed_batch(tmp_path / "a.onnx")
    caplog.set_level("INFO", "shelfmark")
    encoder = normalise_onnx(file, (), None, SCALED)
    assert batch_of(encoder) == 1
    assert "a.onnx takes one photo at a time" in caplog.text
    expected = np.concatenate([own_outputs(file, one[None], "fixed") for one in by_hand()])
    np.testing.assert_allclose(bottlenecks(encoder), expected, rtol=2e-6)


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    head = [
        node("ReduceMean", ["vector"], ["batch_mean"], axes=[0], keepdims=1),
        node("Sub", ["vector", "batch_mean"], ["centred"]),
    ]
    file = small_encoder(tmp_path / "a.onnx", head=head, outputs=["centred"])
    with pytest.raises(ShelfmarkError, match=r"beside another photo; .* export it in evaluation mode"):
        normalise_onnx(file, (), None, SCALED)


def test_a_network_with_chance_in_it_is_refused(tmp_path: Path) -> None:
    head = [
        node("RandomUniformLike", ["vector"], ["noise"]),
        node("Mul", ["vector", "noise"], ["dropped"]),
    ]
    file = small_encoder(tmp_path / "a.onnx", head=head, outputs=["dropped"])
    with pytest.raises(ShelfmarkError, match="gives a photo other numbers each time"):
        normalise_onnx(file, (), None, SCALED)


# Bytes


def test_the_same_network_has_the_same_bytes_whatever_is_written_around_it(tmp_path: Path) -> None:
    file = many_outputs(tmp_path / "a.onnx", ["image_embeds"])
    model = onnx.load(file)
    model.producer_name, model.doc_string, model.graph.doc_string = "other", "text", "text"
    model.graph.name = "other"
    helper.set_model_props(model, {"author": "somebody"})
    for one in model.graph.node:
        one.doc_string = "/home/somebody/model.py, line 1"
        entry = one.metadata_props.add()
        entry.key, entry.value = "stack_trace", "/home/somebody/model.py"
    model.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.ones(3), "unused"))
    model = onnx.shape_inference.infer_shapes(model)
    (tmp_path / "other").mkdir()
    onnx.save(model, tmp_path / "other" / "b.onnx")
    found = [
        normalise_onnx(one, (), None, SCALED).onnx for one in (file, tmp_path / "other" / "b.onnx", file)
    ]
    assert found[0] == found[1] == found[2]
    assert b"somebody" not in found[1]


def test_other_scaling_size_or_end_gives_other_bytes(tmp_path: Path) -> None:
    file = many_outputs(tmp_path / "a.onnx", ["image_embeds"], shape=("n", 3, "h", "w"))
    first = EncoderOptions(scaling="-1..1", pooling="first")
    variants = [
        ((), 16, SCALED), ((), 24, SCALED), ((), 16, EncoderOptions(scaling="clip")), (("map",), 16, SCALED),
        (("tokens",), 16, first), (("tokens",), 16, EncoderOptions(scaling="-1..1", pooling="mean")),
    ]  # fmt: skip
    assert len({normalise_onnx(file, *variant).onnx for variant in variants}) == len(variants)


def test_weights_in_another_file_give_the_same_bytes(tmp_path: Path) -> None:
    whole = small_encoder(tmp_path / "whole.onnx")
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(whole), apart, save_as_external_data=True, location="apart.data", size_threshold=0)
    assert (tmp_path / "apart.data").stat().st_size >= KERNELS.nbytes
    encoder = normalise_onnx(apart, (), None, SCALED)
    assert encoder == normalise_onnx(whole, (), None, SCALED)
    (tmp_path / "apart.data").unlink()
    with pytest.raises(ShelfmarkError, match=r"weights in other files cannot be read .* beside it"):
        normalise_onnx(apart, (), None, SCALED)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/passwd"])
def test_weights_outside_the_directory_are_not_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(KERNELS.tobytes())
    model = onnx.load(small_encoder(folder / "a.onnx"))
    kernels = model.graph.initializer[0]
    kernels.ClearField("raw_data")
    kernels.data_location = TensorProto.EXTERNAL
    entry = kernels.external_data.add()
    entry.key, entry.value = "location", location
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ShelfmarkError, match="weights in other files cannot be read") as raised:
        normalise_onnx(folder / "a.onnx", (), None, SCALED)
    assert_one_line(raised.value)


def test_functions_of_a_file_are_written_out(tmp_path: Path) -> None:
    double = helper.make_function(
        "own", "Double", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = onnx.load(small_encoder(tmp_path / "a.onnx"))
    plain = bottlenecks(normalise_onnx(tmp_path / "a.onnx", (), None, SCALED))
    model.functions.append(double)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Double", ["vector"], ["doubled"], domain="own"))
    model.graph.output[0].name = "doubled"
    onnx.save(model, tmp_path / "b.onnx")
    encoder = normalise_onnx(tmp_path / "b.onnx", (), None, SCALED)
    np.testing.assert_allclose(bottlenecks(encoder), 2 * plain, rtol=1e-6)
    assert "Double" not in nodes_of(encoder)


# Refusals


def assert_one_line(error: ShelfmarkError) -> None:
    text = str(error)
    assert "\n" not in text and "; expected " in text and len(text) < 700


def custom(file: Path) -> Path:
    model = onnx.load(small_encoder(file))
    model.opset_import.append(helper.make_opsetid("acme.vision", 1))
    model.graph.node.append(helper.make_node("Warp", ["vector"], ["warped"], domain="acme.vision"))
    model.graph.output[0].name = "warped"
    file.write_bytes(model.SerializeToString())
    return file


def text_model(file: Path) -> Path:
    graph = helper.make_graph(
        [node("Cast", ["input_ids"], ["vector"], to=TensorProto.FLOAT)],
        "text",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", 77])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 77])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), file)
    return file


def other_type(file: Path) -> Path:
    head = [node("ArgMax", ["vector"], ["class"], axis=1)]
    small_encoder(file, head=head, outputs=["class"])
    model = onnx.load(file)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, file)
    return file


def written(content: bytes) -> Callable[[Path], Path]:
    def write(file: Path) -> Path:
        file.write_bytes(content)
        return file

    return write


def cut_off(file: Path) -> Path:
    whole = small_encoder(file).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    return file


def broken_reference(file: Path) -> Path:
    model = onnx.load(small_encoder(file))
    model.graph.node[1].input[0] = "nowhere"
    file.write_bytes(model.SerializeToString())
    return file


def too_large(file: Path) -> Path:
    with file.open("wb") as opened:
        opened.truncate(3 * 2**30)
    return file


def second_input(file: Path) -> Path:
    head = [node("Add", ["vector", "mask"], ["sum"])]
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 5])
    return small_encoder(file, head=head, outputs=["sum"], inputs=[mask])


def configured(content: str) -> Callable[[Path], Path]:
    def write(file: Path) -> Path:
        (file.parent / "preprocessor_config.json").write_text(content)
        return small_encoder(file)

    return write


PLAIN = EncoderOptions()
REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], int | None, EncoderOptions, str]] = {
    "missing": (lambda file: file, (), None, SCALED, "no such file"),
    "folder": (lambda file: file.parent, (), None, SCALED, "no such file"),
    "empty": (written(b""), (), None, SCALED, "not an ONNX file, or empty"),
    "text": (written(b"# a file of settings\n"), (), None, SCALED, "not an ONNX file"),
    "weights of Keras": (written(b"\x89HDF\r\n\x1a\n" + bytes(100)), (), None, SCALED, "not an ONNX file"),
    "pickle": (written(b"\x80\x04\x95\x1d\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."), (), None, SCALED,
               "not an ONNX file"),
    "half of it": (cut_off, (), None, SCALED, "not an ONNX file, or damaged"),
    "too large": (too_large, (), None, SCALED, r"3.0 GB .* less than 2 GB"),
    "no such input": (broken_reference, (), None, SCALED, "not a valid ONNX network"),
    "custom operator": (custom, (), None, SCALED, r"operator acme.vision.Warp is none of ONNX's"),
    "old": (lambda file: small_encoder(file, opset=6), (), None, SCALED, "version 6 of ONNX's operators"),
    "of texts": (text_model, (), None, SCALED, r"its input is input_ids int64 \(n, 77\)"),
    "two inputs": (second_input, (), None, SCALED, r"needs 2 inputs, photos .*, mask float32 \(n, 5\)"),
    "grey": (lambda file: small_encoder(file, ("n", 1, SIDE, SIDE)), (), None,
             EncoderOptions(layout="nchw"), "has 1 colours in the layout nchw"),
    "not square": (lambda file: small_encoder(file, ("n", 3, 16, 24)), (), None, SCALED, "is not square"),
    "no layout": (lambda file: small_encoder(file, ("n", 3, 3, 3)), (), None, SCALED, "backbone.layout"),
    "any size": (lambda file: small_encoder(file, ("n", 3, "h", "w")), (), None, SCALED,
                 "photos of any size; .* give --image-size"),
    "other size": (small_encoder, (), 32, SCALED, f"photos of {SIDE} px alone; .*leave out --image-size"),
    "no scaling": (small_encoder, (), None, PLAIN,
                   r"nothing says how .* 0\.\.255, 0\.\.1, -1\.\.1, imagenet, clip, or to mean and dev"),
    "scaled bytes": (lambda file: small_encoder(file, dtype=np.uint8), (), None, SCALED,
                     "leave out backbone.scaling"),
    "odd configuration": (configured('{"do_flip_channel_order": true}'), (), None, PLAIN,
                          "says by do_flip_channel_order, which is not supported"),
    "broken configuration": (configured("{"), (), None, PLAIN, r"preprocessor_config.json: cannot be read"),
    "three sizes": (configured('{"size": [1, 2, 3]}'), (), None, PLAIN, r"a size of \[1, 2, 3\]"),
    "several outputs": (lambda file: many_outputs(file, ["map", "tokens"]), (), None, SCALED,
                        "has 2 outputs, map, tokens; .* --backbone a.onnx@map"),
    "no such tensor": (small_encoder, ("vektor",), None, SCALED,
                       r"no tensor 'vektor' \(did you mean vector\?\)"),
    "its input": (small_encoder, ("photos",), None, SCALED, "no tensor 'photos'"),
    "tokens": (lambda file: many_outputs(file, ["tokens"]), (), None, SCALED,
               r"tensor tokens has the shape \(n, 64, 5\), the tokens .* backbone.pooling to mean, or to"),
    "a class": (other_type, (), None, SCALED, "tensor class holds int64; expected float32 or float16"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_encoder_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    write, layers, size, options, text = REFUSED[kind]
    file = write(tmp_path / "a.onnx")
    with pytest.raises(ShelfmarkError, match=text) as raised:
        normalise_onnx(file, layers, size, options)
    assert_one_line(raised.value)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(ShelfmarkError, match=rf"{package} is not installed.*shelfmark\[onnx\]"):
        normalise_onnx(tmp_path / "a.onnx", (), None, SCALED)
