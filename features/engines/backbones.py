"""Frozen backbones: any network of keras.applications, without its output layer, globally average-pooled.

The fingerprint is a hash of architecture, weights, preprocessing and image size: bottlenecks with the same
fingerprint can be mixed, others never.

    backbone.json   {"name", "image_size", "weights"}, in a bundle/ or backbone/ directory
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.engines.pixels import RESIZE
from features.errors import ShelfmarkError
from features.images.refusal import Limits
from features.output import log_is_open
from features.storage.paths import any_path, write_whole

if TYPE_CHECKING:
    import keras

BACKBONE, BACKBONE_WEIGHTS = "backbone.json", "backbone.weights.h5"
FORMATS = (b"\x89HDF\r\n\x1a\n", b"PK\x03\x04")  # how HDF5 and Keras' archives begin
TUNED = "fine-tuned "  # in backbone.json before the name of the weights that a backbone was tuned from
IMAGE_SIZES = {  # px, what the weights were trained at; 224 for the rest
    "inceptionv3": 299, "xception": 299, "inceptionresnetv2": 299, "nasnetlarge": 331,
    "efficientnetb1": 240, "efficientnetb2": 260, "efficientnetb3": 300, "efficientnetb4": 380,
    "efficientnetb5": 456, "efficientnetb6": 528, "efficientnetb7": 600,
    "efficientnetv2b1": 240, "efficientnetv2b2": 260, "efficientnetv2b3": 300,
    "efficientnetv2s": 384, "efficientnetv2m": 480, "efficientnetv2l": 480,
}  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns images into bottlenecks."""

    name: str  # as in keras.applications, in lower case without underscores
    weights: str  # "imagenet", "random", or the file's name: for people; the fingerprint identifies them
    image_size: int  # px, height and width
    width: int  # d, numbers in a bottleneck
    fingerprint: str  # name-size-hash; names the directory in the store
    model: "keras.Model"  # (n, size, size, 3) 0..255 → (n, d) float32, preprocessing inside

    def description(self) -> "BackboneDescription":
        """Returns what backbone.json says of it."""
        return BackboneDescription(self.name, self.image_size, self.weights)

    def bottlenecks(self, pixels: np.ndarray) -> np.ndarray:
        """Computes bottlenecks: (n, size, size, 3) uint8 → (n, d) float32."""
        return np.asarray(self.model.predict_on_batch(pixels), dtype=np.float32)

    def save_weights(self, file: Path) -> None:
        """Writes the weights (`.weights.h5`), for `load_backbone(weights=file)`."""
        save_weights(self.model.get_layer(self.name), file)


@dataclass(frozen=True)
class BackboneDescription:
    """What backbone.json holds, in this order."""

    name: str  # as Backbone.name
    image_size: int  # px
    weights: str  # as Backbone.weights

    @staticmethod
    def read(file: Path) -> "BackboneDescription":
        """Reads backbone.json."""
        content = json.loads(file.read_text())
        return BackboneDescription(content["name"], content["image_size"], content["weights"])

    def write(self, file: Path) -> None:
        """Writes backbone.json."""
        write_whole(file, json.dumps(asdict(self), indent=1).encode())


def save_weights(model: "keras.Model", file: Path) -> None:
    """Writes a model's weights, whole or not at all.

    In a scratch directory first: a disk that fills up under an open HDF5 file ends the process in a segfault.
    """
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, file.name)
        model.save_weights(written)
        write_whole(file, written.read_bytes())


def start_tensorflow() -> None:
    """Imports TensorFlow, and sets its operations to be deterministic.

    Its messages go to the log file; where there is none, those of its start go nowhere.
    """
    if "tensorflow" in sys.modules or log_is_open():
        import tensorflow as tf
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)  # some lines are written before any log level is read
        try:
            import tensorflow as tf
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nothing)
    import keras

    keras.config.disable_interactive_logging()  # progress bars of downloads, where our commands print results
    tf.config.experimental.enable_op_determinism()


def backbone_names() -> list[str]:
    """Returns the names of `known_backbones`, read from the text of Keras: importing it takes seconds."""
    spec = importlib.util.find_spec("keras")
    assert spec and spec.submodule_search_locations
    text = Path(spec.submodule_search_locations[0], "applications", "__init__.py").read_text()
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    functions = [node for node in imports if (node.module or "").startswith("keras.src.applications.")]
    return sorted(alias.name.lower() for node in functions for alias in node.names)


def require_known(name: str, known: Collection[str]) -> str:
    """Returns the key of a network in `known`: lower case without underscores.

    Raises:
        ShelfmarkError: it is not there.
    """
    key = name.lower().replace("_", "")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ShelfmarkError(
            f"backbone {name!r} is unknown{hint}; expected one of {', '.join(sorted(known))}; "
            "correct --backbone"
        )
    return key


def require_weights(weights: str) -> None:
    """Checks what can be known of the setting without Keras: imagenet, random, or a file of weights.

    Raises:
        ShelfmarkError: no such file, or one in another format.
    """
    if weights in ("imagenet", "random"):
        return
    expected = "expected imagenet, random or a .weights.h5 file; correct --weights"
    file = any_path(weights)
    if not file.is_file():
        raise ShelfmarkError(f"weights {weights}: no such file; {expected}")
    if isinstance(file, Path):
        with file.open("rb") as opened:
            if not opened.read(8).startswith(FORMATS):
                raise ShelfmarkError(f"weights {weights}: not a file of weights; {expected}")


def known_backbones() -> dict[str, Callable[..., "keras.Model"]]:
    """Returns every network of keras.applications by its lower-case name without underscores."""
    from keras import applications

    functions = inspect.getmembers(applications, inspect.isfunction)
    return {name.lower(): function for name, function in functions}


def load_backbone(name: str, weights: str, image_size: int | None = None, seed: int = 0) -> Backbone:
    """Builds a backbone.

    Args:
        name: as in keras.applications, in snake or camel case: inception_v3, mobilenet, EfficientNetV2B0.
        weights: `imagenet` (Keras downloads them), `random`, or a `.weights.h5` file (network without top).
        image_size: px; None: the network's own.
        seed: of random weights.

    Raises:
        ShelfmarkError: unknown name, or weights that cannot be had or do not fit.
    """
    import keras

    networks = known_backbones()
    key = require_known(name, networks)
    size = image_size or IMAGE_SIZES.get(key, 224)
    keras.utils.set_random_seed(seed)
    network = _build(networks[key], name, weights, size)
    network.trainable = False
    module = importlib.import_module("keras.applications." + networks[key].__module__.rpartition(".")[2])
    identity = {
        "network": key,
        "size": size,
        "resize": RESIZE,
        "photos": Limits().max_side,
        "weights": _weights_digest(network),
    }
    digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:12]
    return Backbone(
        name=key,
        weights=Path(weights).name,
        image_size=size,
        width=network.output_shape[-1],
        fingerprint=f"{key}-{size}-{digest}",
        model=_with_preprocessing(network, module, key, size),
    )


def _build(network: Callable[..., "keras.Model"], name: str, weights: str, size: int) -> "keras.Model":
    source: str | None = {"random": None, "imagenet": "imagenet"}.get(weights, weights)
    require_weights(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of every layer that does not fit, before it raises
            return network(include_top=False, pooling="avg", input_shape=(size, size, 3), weights=source)
    except Exception as error:  # Keras raises bare Exceptions for downloads, ValueError and h5py's for files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if source == "imagenet" and not isinstance(error, ValueError):  # ValueError: the image size, for one
            raise ShelfmarkError(
                f"ImageNet weights of {name} cannot be downloaded ({reason}); expected a network or a "
                "cached copy; give --weights FILE.weights.h5 (the network without its top, from "
                "keras.applications, from a computer that has them), or --weights random to try the pipeline "
                "with meaningless features"
            ) from error
        raise ShelfmarkError(
            f"weights {weights}: do not fit {name} at {size} px ({reason}); give this network's own"
        ) from error


def _with_preprocessing(
    network: "keras.Model", module: types.ModuleType, name: str, size: int
) -> "keras.Model":
    import keras

    pixels = keras.Input((size, size, 3), dtype="float32", name="pixels")
    network.name = name
    # Keras numbers names over the whole process, and a weights file holds them
    for number, layer in enumerate(network.layers):
        layer.name = f"layer_{number}"
    return keras.Model(pixels, network(module.preprocess_input(pixels), training=False))


def _weights_digest(network: "keras.Model") -> str:
    digest = hashlib.sha256()
    for array in network.get_weights():
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_backbone(structure: Path, weights: Path, fingerprint: str) -> Backbone:
    """Reads the backbone of a bundle/ or backbone/ directory.

    Raises:
        ShelfmarkError: it is not the one of this fingerprint.
    """
    description = BackboneDescription.read(structure)
    backbone = load_backbone(description.name, str(weights), description.image_size)
    if backbone.fingerprint != fingerprint:
        raise ShelfmarkError(
            f"{structure.parent}: its backbone has fingerprint {backbone.fingerprint}; expected "
            f"{fingerprint}; run extract and train again with this version"
        )
    return replace(backbone, weights=description.weights)
