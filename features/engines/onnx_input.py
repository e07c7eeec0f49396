"""The input of an encoder: which axis holds the colours, how large photos are, how their colours are scaled.

Nothing is guessed: what the file does not say is in `preprocessor_config.json` of Hugging Face beside it, or
in the settings.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from features.engines.onnx_file import first_line, listed
from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import onnx

CONFIG = "preprocessor_config.json"
AXES = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}  # of colours, height and width
SCALINGS: dict[str, tuple[float, ...]] = {  # mean and deviation of red, green, blue, in units of 0 to 1
    "0..255": (0, 0, 0, 1 / 255, 1 / 255, 1 / 255),
    "0..1": (0, 0, 0, 1, 1, 1),
    "-1..1": (0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    "imagenet": (0.485, 0.456, 0.406, 0.229, 0.224, 0.225),
    "clip": (0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711),
}
RANGES = {"nominalrange_0_255": "0..255", "normalized_0_1": "0..1", "normalized_1_1": "-1..1"}  # ONNX's own

Scaling = str | tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class EncoderOptions:
    """What the settings say of FILE.onnx, where the file does not say it itself."""

    layout: Literal["auto", "nchw", "nhwc"] = "auto"  # auto: the axis of 3 holds the colours
    scaling: Scaling | None = None  # a key of SCALINGS, or values as in it; None: as the file says
    pooling: Literal["auto", "mean", "first"] = "auto"  # of outputs (n, tokens, d)


@dataclass(frozen=True)
class ImageInput:
    """The input of photos, as the file declares it."""

    name: str
    type: int  # of onnx.TensorProto: FLOAT, FLOAT16 or UINT8
    layout: str  # a key of AXES
    size: int | None  # px; None: any
    batch: int | None  # None: any


def image_input(file: Path, graph: "onnx.GraphProto", layout: str) -> ImageInput:
    """Finds the one input of photos.

    Raises:
        ShelfmarkError: there is none, there are others, or it does not say which axis is which.
    """
    import onnx

    types = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8)
    described = [f"{one.name} {_described(one)}" for one in graph.input]
    expected = "expected one input of photos, (n, 3, height, width) or (n, height, width, 3), in float32, "
    expected += "float16 or uint8"
    if len(described) != 1:
        found = f"needs {len(described)} inputs, {listed(described)}" if described else "needs no input"
        raise ShelfmarkError(
            f"{file}: {found}; {expected}; export the part that encodes photos, or name its output: "
            f"--backbone {file.name}@NAME"
        )
    tensor = graph.input[0].type.tensor_type
    if len(tensor.shape.dim) != 4 or tensor.elem_type not in types:
        raise ShelfmarkError(f"{file}: its input is {described[0]}; {expected}; give an encoder of photos")
    sides = [one.dim_value if one.dim_value > 0 else None for one in tensor.shape.dim]
    possible = [name for name, axes in AXES.items() if sides[axes[0]] == 3]
    if layout == "auto" and len(possible) != 1:
        raise ShelfmarkError(
            f"{file}: its input {described[0]} does not say which axis holds the colours; expected 3 at the "
            "second axis or at the last; set backbone.layout to nchw or nhwc"
        )
    layout = possible[0] if layout == "auto" else layout
    colours, height, width = (sides[axis] for axis in AXES[layout])
    if colours not in (3, None):
        raise ShelfmarkError(
            f"{file}: its input {described[0]} has {colours} colours in the layout {layout}; expected 3; "
            "correct backbone.layout, or give another encoder"
        )
    if height and width and height != width:
        raise ShelfmarkError(
            f"{file}: its input {described[0]} is not square; expected as many rows as columns; export it "
            "for square photos"
        )
    return ImageInput(graph.input[0].name, tensor.elem_type, layout, height or width, sides[0])


def _described(value: "onnx.ValueInfoProto") -> str:
    """Returns type and shape of a tensor, as in float32 (n, 3, 224, 224)."""
    import onnx

    if not value.type.HasField("tensor_type"):
        return "(no tensor)"
    tensor = value.type.tensor_type
    sides = [str(one.dim_value) if one.dim_value else one.dim_param or "?" for one in tensor.shape.dim]
    name = str(onnx.TensorProto.DataType.Name(tensor.elem_type)).lower()
    return f"{'float32' if name == 'float' else name} ({', '.join(sides)})"


@dataclass(frozen=True)
class Preprocessing:
    """What a preprocessor_config.json of Hugging Face says."""

    file: Path | None = None  # None: there is none
    size: int | None = None  # px
    scaling: tuple[float, ...] | None = None  # as in SCALINGS
    unsupported: str = ""  # the key for which its scaling cannot be taken

    @classmethod
    def read(cls, encoder: Path) -> "Preprocessing":
        """Reads the one beside an encoder, or beside its folder `onnx`, as in Hugging Face's repositories.

        Raises:
            ShelfmarkError: it cannot be read.
        """
        folder = encoder.absolute().parent
        folders = [folder, folder.parent] if folder.name == "onnx" else [folder]
        file = next((one / CONFIG for one in folders if (one / CONFIG).is_file()), None)
        if file is None:
            return cls()
        try:
            content = json.loads(file.read_bytes())
            return cls(file, photo_size(content), *photo_scaling(content))
        except (ValueError, TypeError, AttributeError) as error:
            raise ShelfmarkError(
                f"{file}: cannot be read ({first_line(error)}); expected a file of Hugging Face's; correct "
                "or remove it"
            ) from error


def photo_size(content: dict[str, Any]) -> int | None:
    """Returns the side of the photos that reach the network in pixels; None where they are not square.

    >>> photo_size({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}})
    224
    >>> photo_size({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False})
    256
    """
    is_cropped = content.get("do_center_crop", True) and "crop_size" in content
    size = content["crop_size"] if is_cropped else content.get("size")
    if isinstance(size, dict):
        sides = {size[name] for name in ("height", "width", "shortest_edge") if name in size}
        size = sides.pop() if len(sides) == 1 else None
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"a size of {size!r}")
    return size


def photo_scaling(content: dict[str, Any]) -> tuple[tuple[float, ...] | None, str]:
    """Returns mean and deviation as in SCALINGS, or None and the key for which they cannot be taken.

    >>> photo_scaling({"do_normalize": False})
    ((0.0, 0.0, 0.0, 1.0, 1.0, 1.0), '')
    >>> photo_scaling({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})
    ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), '')
    """
    for name in ("rescale_offset", "do_flip_channel_order"):
        if content.get(name):
            return None, name
    factor = content.get("rescale_factor", 1 / 255) * 255 if content.get("do_rescale", True) else 255
    is_normalised = content.get("do_normalize", True)
    mean = content.get("image_mean") if is_normalised else None
    deviation = content.get("image_std") if is_normalised else None
    values = [*(mean or [0, 0, 0]), *(deviation or [1, 1, 1])]
    if len(values) != 6 or not all(values[3:]):
        raise ValueError(f"image_mean {mean}, image_std {deviation}")
    return tuple(float(value) / factor for value in values), ""


def photo_side(file: Path, image: ImageInput, given: int | None, configured: int | None) -> int:
    """Returns the side of the photos in pixels: of the file, else the given one, else the configured one.

    Raises:
        ShelfmarkError: nothing says it, or the file takes another one than the given.
    """
    if image.size and given not in (None, image.size):
        raise ShelfmarkError(
            f"{file}: takes photos of {image.size} px alone; expected this size; leave out --image-size"
        )
    size = image.size or given or configured
    if size is None:
        raise ShelfmarkError(
            f"{file}: takes photos of any size; expected the size that it was trained at; give --image-size, "
            "224 for instance"
        )
    return size


def scaling_of(
    file: Path, image: ImageInput, given: Scaling | None, metadata: dict[str, str], config: Preprocessing
) -> tuple[float, ...]:
    """Returns mean and deviation of the colours as in SCALINGS.

    Args:
        file: of the encoder.
        image: its input.
        given: by the settings; it counts first.
        metadata: of the file, in lower case: https://onnx.ai/onnx/repo-docs/MetadataProps.html; second.
        config: beside the file; third.

    Raises:
        ShelfmarkError: nothing says it, or it is said of an input of bytes.
    """
    import onnx

    if image.type == onnx.TensorProto.UINT8:
        if given not in (None, "0..255"):
            raise ShelfmarkError(
                f"{file}: takes whole numbers from 0 to 255 and scales them itself; expected no scaling; "
                "leave out backbone.scaling"
            )
        return SCALINGS["0..255"]
    if given is not None:
        return SCALINGS[given] if isinstance(given, str) else given
    if declared := RANGES.get(metadata.get("image.nominalpixelrange", "")):
        return SCALINGS[declared]
    if config.scaling:
        return config.scaling
    nothing = (
        f"{config.file} says by {config.unsupported}, which is not supported,"
        if config.file
        else "nothing says"
    )
    raise ShelfmarkError(
        f"{file}: {nothing} how its photos are scaled; expected a {CONFIG} beside it, or the setting; set "
        f"backbone.scaling to {', '.join(SCALINGS)}, or to mean and deviation of red, green and blue"
    )
