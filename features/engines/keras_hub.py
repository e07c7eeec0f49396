"""Encoders of KerasHub, from a preset in a local directory: pixels in, bottlenecks out.

    pixels (n, size, size, 3) 0..255 ─► scaled as the ImageConverter says ─► the part for photos ─► (n, d)

Of a preset for photos and texts (CLIP, SigLIP) the part for photos is taken, without the projection into the
space that both share: for classifiers the paper of CLIP takes its features there, too (Radford et al. 2021,
section 3.2). What is pooled how:

    a vector (n, d)                                         as it is: SigLIP pools by attention
    tokens (n, t, d) with a class token: see CLASS_TOKEN    the class token
    other tokens (n, t, d)                                  their mean
    a map (n, h, w, d)                                      its mean

The configuration of the whole network goes into backbone.json: a bundle opens without the directory.
"""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import keras

CONFIG, CONVERTER = "config.json", "image_converter.json"
CLASS_TOKEN = {  # classes whose first token stands for the whole photo
    "CLIPVisionEncoder", "MetaCLIP2VisionEncoder", "ViTBackbone", "DeiTBackbone", "DINOV2Backbone",
    "DINOV3Backbone",
}  # fmt: skip


def require_hub(name: str) -> None:
    """Raises a ShelfmarkError, which names the command, where KerasHub is not installed."""
    if importlib.util.find_spec("keras_hub") is None:
        raise ShelfmarkError(
            f"{name}: keras_hub is not installed; expected in the same environment; "
            "pip install 'shelfmark[hub]'"
        )


def require_preset(directory: Path) -> None:
    """Checks what can be known of a preset without KerasHub, which takes seconds to import.

    Raises:
        ShelfmarkError: it is no directory of a preset, or nothing in it says how photos are scaled.
    """
    expected = "expected a directory with a preset of KerasHub, as save_to_preset writes it"
    if not directory.is_dir():
        raise ShelfmarkError(f"hub:{directory}: no such directory; {expected}; correct --backbone")
    for file, next_step in (
        (CONFIG, "correct --backbone"),
        (CONVERTER, "save the preset's ImageConverter there: nothing else says how photos are scaled"),
    ):
        try:
            registered = json.loads((directory / file).read_bytes())["registered_name"]
        except OSError as error:
            raise ShelfmarkError(f"hub:{directory}: has no {file}; {expected}; {next_step}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ShelfmarkError(
                f"hub:{directory}: its {file} is not KerasHub's; {expected}; save it again"
            ) from error
        if not str(registered).startswith("keras_hub>"):
            raise ShelfmarkError(
                f"hub:{directory}: holds a {registered}; {expected}; give an encoder of photos of KerasHub"
            )


def hub_network(directory: Path, image_size: int | None) -> tuple["keras.Model", int]:
    """Reads an encoder from a preset.

    Args:
        directory: of the preset.
        image_size: px; None: the preset's.

    Returns:
        (n, size, size, 3) 0..255 float32 → (n, d) float32; size in pixels.

    Raises:
        ShelfmarkError: it is no preset, cannot be read, or is no encoder of photos of this size.
    """
    require_preset(directory)
    require_hub(f"hub:{directory}")
    import keras
    import keras_hub

    name = f"hub:{directory}"
    converter = _read(name, keras_hub.layers.ImageConverter, directory)
    encoder = _photo_encoder(name, _read(name, keras_hub.models.Backbone, directory))
    own = _shape(encoder)[0]
    if image_size and own not in (None, image_size):
        encoder = _photo_encoder(
            name, _read(name, keras_hub.models.Backbone, directory, image_shape=(image_size, image_size, 3))
        )
        if _shape(encoder)[0] not in (None, image_size):
            raise ShelfmarkError(
                f"{name}: takes photos of {own} px alone; expected this size; leave out --image-size"
            )
    size = image_size or own or (converter.image_size or [None])[0]
    if size is None:
        raise ShelfmarkError(
            f"{name}: takes photos of any size; expected the size that it was trained at; give --image-size, "
            "224 for instance"
        )
    pixels = keras.Input((size, size, 3), dtype="float32", name="pixels")
    scaled = _scaling(converter)(pixels)
    key = next(iter(encoder.input)) if isinstance(encoder.input, dict) else None
    output = encoder({key: scaled} if key else scaled)
    network = keras.Model(pixels, _pooled(encoder, output), name="encoder")
    return network, size


def read_hub_network(structure: dict[str, Any]) -> "keras.Model":
    """Builds the network that `structure_of` describes, with random weights.

    Raises:
        ShelfmarkError: KerasHub is not installed, or its version has not this network.
    """
    require_hub("this backbone")
    import keras
    import keras_hub  # noqa: F401 - its classes are then known to Keras

    try:
        network: keras.Model = keras.saving.deserialize_keras_object(structure)
    except Exception as error:  # TypeError, ValueError, KeyError: whatever its classes raise
        raise ShelfmarkError(
            f"the backbone's network cannot be built ({_first_line(error)}); expected the version of "
            "KerasHub that wrote it; install this version"
        ) from error
    return network


def structure_of(network: "keras.Model") -> dict[str, Any]:
    """Returns what backbone.json holds of a network of KerasHub."""
    import keras

    structure: dict[str, Any] = keras.saving.serialize_keras_object(network)
    structure.pop("compile_config", None)
    return structure


def _read(name: str, kind: Any, directory: Path, **changed: Any) -> Any:
    """Reads one part of a preset."""
    try:
        return kind.from_preset(str(directory.absolute()), **changed)
    except Exception as error:  # TypeError, ValueError, OSError: whatever KerasHub, Keras and HDF5 raise
        size = f" at {changed['image_shape'][0]} px" if changed else ""
        raise ShelfmarkError(
            f"{name}: cannot be read{size} ({_first_line(error)}); expected a whole preset of an encoder of "
            f"photos; {'leave out --image-size' if changed else 'save it again'}"
        ) from error


def _photo_encoder(name: str, backbone: Any) -> Any:
    """Returns the part of a backbone that takes photos alone."""
    encoder = getattr(backbone, "vision_encoder", None) or backbone
    inputs, shape = _inputs(encoder), _shape(encoder)
    if len(inputs) != 1 or len(shape) != 3 or shape[-1] != 3 or isinstance(encoder.output, dict | list):
        raise ShelfmarkError(
            f"{name}: a {type(backbone).__name__} takes {', '.join(inputs)}; expected an encoder that makes "
            "one vector or map of a photo in colours; give another preset"
        )
    return encoder


def _inputs(encoder: Any) -> "dict[str, keras.KerasTensor]":
    if isinstance(encoder.input, dict):
        return dict(encoder.input)
    return {tensor.name: tensor for tensor in encoder.inputs}


def _shape(encoder: Any) -> tuple[int | None, ...]:
    """Height, width and colours of the photos; None: any."""
    return tuple(next(iter(_inputs(encoder).values())).shape[1:])


def _scaling(converter: Any) -> "keras.layers.Rescaling":
    import keras

    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.layers.Rescaling(scale, offset, name="scaled")


def _pooled(encoder: Any, output: "keras.KerasTensor") -> "keras.KerasTensor":
    """One vector of each photo."""
    import keras

    if len(output.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="pooled")(output)
    if len(output.shape) == 2:
        return output
    if type(encoder).__name__ in CLASS_TOKEN and getattr(encoder, "use_class_token", True):
        first = keras.layers.Cropping1D((0, output.shape[1] - 1), name="class_token")(output)
        return keras.layers.Flatten(name="pooled")(first)
    return keras.layers.GlobalAveragePooling1D(name="pooled")(output)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
