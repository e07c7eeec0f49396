"""Frozen backbones: a network without its output layer, pooled; pixels in, bottlenecks out.

The fingerprint is a hash of architecture, weights, preprocessing and image size: bottlenecks with the same
fingerprint can be mixed, others never.

    backbone.json          {"name", "image_size", "weights"}, in a bundle/ or backbone/ directory; of KerasHub
                           also {"structure"}, the configuration of the network; of an ONNX file {"width"}
    backbone.weights.h5    of the network that ends where the name says
    backbone.onnx          instead of these: an encoder in the form of onnx_encoder.py
"""

import hashlib
import json
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.engines.backbone_names import BackboneName, parse_name, require_no_weights
from features.engines.keras_hub import hub_network, read_hub_network, structure_of
from features.engines.keras_networks import build_network, load_weights, preprocessing, read_network
from features.engines.onnx_encoder import bottlenecks_of, normalise_onnx, open_session
from features.engines.onnx_input import EncoderOptions
from features.engines.pixels import RESIZE
from features.errors import ShelfmarkError
from features.images.refusal import Limits
from features.output import log_is_open
from features.storage.paths import AnyPath, local, write_whole
from features.views import View

if TYPE_CHECKING:
    import keras

BACKBONE, BACKBONE_WEIGHTS, BACKBONE_ONNX = "backbone.json", "backbone.weights.h5", "backbone.onnx"
AS_IT_IS = "expected mirrored photos and crops alone, such as flip and 512-center"
TUNED = "fine-tuned "  # in backbone.json before the name of the weights that a backbone was tuned from


@dataclass(frozen=True)
class BackboneDescription:
    """What backbone.json holds, in this order."""

    name: str  # as Backbone.name
    image_size: int  # px
    weights: str  # as Backbone.weights
    structure: dict[str, Any] | None = None  # of a network of KerasHub, as Keras describes it
    width: int | None = None  # d of an encoder from an ONNX file

    @staticmethod
    def read(file: Path) -> "BackboneDescription":
        """Reads backbone.json."""
        content = json.loads(file.read_text())
        names = ("name", "image_size", "weights")
        more = {name: content.get(name) for name in ("structure", "width")}
        return BackboneDescription(*(content[name] for name in names), **more)

    def write(self, file: Path) -> None:
        """Writes backbone.json."""
        content = {name: value for name, value in asdict(self).items() if value is not None}
        write_whole(file, json.dumps(content, indent=1).encode())


@dataclass(frozen=True)
class Backbone(ABC):
    """A frozen network that turns images into bottlenecks."""

    name: str  # network and ends, as BackboneName writes them
    weights: str  # "imagenet", "random", or the file's name: for people; the fingerprint identifies them
    image_size: int  # px, height and width
    width: int  # d, numbers in a bottleneck
    fingerprint: str  # name-size-hash; names the directory in the store

    def description(self) -> BackboneDescription:
        """Returns what backbone.json says of it."""
        return BackboneDescription(self.name, self.image_size, self.weights)

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes of its weights on the disk, about."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes backbone.json and the weights into a directory, for `read_backbone`."""

    @abstractmethod
    def bottlenecks(self, pixels: np.ndarray) -> np.ndarray:
        """Computes bottlenecks: (n, size, size, 3) uint8 → (n, d) float32."""

    @abstractmethod
    def for_view(self, view: View) -> "Backbone":
        """Returns the backbone that computes a view: itself for mirrored images and crops.

        For photos of another size, and for the maximum, it is a network with the same weights; its
        bottlenecks belong to the view's directory in the store of this backbone, not to one of its own.

        Raises:
            ShelfmarkError: this backbone, or a backbone of this size, cannot have the view.
        """

    def require_view(self, view: View) -> None:
        """Checks what can be known of a view without its network; raises as `for_view`."""
        view.require_size(self.image_size)
        if not self._computes(view) and (reason := self._only_itself(view)):
            raise ShelfmarkError(f"view {view.name}: backbone {self.name} {reason}; correct extract.views")

    def _computes(self, view: View) -> bool:
        """Whether it computes the view as it is."""
        return view.network == View()

    @abstractmethod
    def _only_itself(self, view: View) -> str:
        """Why no other network of it computes the view, and what was expected; "" where one does."""


@dataclass(frozen=True)
class KerasBackbone(Backbone):
    """A network of Keras: of keras.applications, or a preset of KerasHub, which scales its pixels itself."""

    network: "keras.Model"  # (n, size, size, 3) scaled; of KerasHub 0..255 → (n, d) float32
    model: "keras.Model"  # (n, size, size, 3) 0..255 → (n, d) float32, preprocessing inside

    def description(self) -> BackboneDescription:
        """See Backbone."""
        structure = structure_of(self.network) if self.network is self.model else None
        return replace(super().description(), structure=structure)

    @property
    def stored_bytes(self) -> int:
        """See Backbone; float32."""
        return int(self.network.count_params()) * 4

    def save(self, folder: Path) -> None:
        """See Backbone."""
        self.description().write(folder / BACKBONE)
        self.save_weights(folder / BACKBONE_WEIGHTS)

    def save_weights(self, file: Path) -> None:
        """Writes the weights (`.weights.h5`), for `load_backbone(weights=file)`."""
        save_weights(self.network, file)

    def bottlenecks(self, pixels: np.ndarray) -> np.ndarray:
        """See Backbone."""
        return np.asarray(self.model.predict_on_batch(pixels), dtype=np.float32)

    def maps(self) -> "keras.Model":
        """Returns (n, size, size, 3) 0..255 → (n, h, w, d) float32, the map whose mean is the bottleneck.

        Raises:
            ShelfmarkError: the bottleneck is no mean of one map.
        """
        import keras

        pooling = self.network.layers[-1]
        if not _is_mean_of_a_map(self.network):
            raise ShelfmarkError(
                f"backbone {self.name}: its bottleneck is not the mean of one map; expected a network that "
                "ends in a single pooled map; name one layer after the @"
            )
        maps = keras.Model(self.network.input, pooling.input)
        if self.network is self.model:
            return maps
        return with_preprocessing(maps, self.name, self.image_size)

    def _only_itself(self, view: View) -> str:
        """See Backbone."""
        if parse_name(self.name).is_hub:
            return f"is a preset of KerasHub, which is used as it is; {AS_IT_IS}"
        if view.pooling == "max" and not _is_mean_of_a_map(self.network):
            return "does not end in the mean of one map; expected views without max"
        return ""

    def for_view(self, view: View) -> Backbone:
        """See Backbone. Another network is built anew: its paddings depend on its size."""
        self.require_view(view)
        if self._computes(view):
            return self
        import keras

        size = view.input(self.image_size)
        network = self.network if size == self.image_size else self._at(size, view)
        if view.pooling == "max":
            largest = keras.layers.GlobalMaxPooling2D(name="largest")(network.layers[-1].input)
            network = keras.Model(network.input, largest, name=network.name)
        return keras_backbone(network, parse_name(self.name), self.weights, size)

    def _at(self, size: int, view: View) -> "keras.Model":
        """The network with its weights for photos of another size."""
        reason = f"has other layers than at {self.image_size} px"
        try:
            network = build_network(parse_name(self.name), "random", size)
            if [type(layer) for layer in network.layers] == [type(layer) for layer in self.network.layers]:
                network.set_weights(self.network.get_weights())
                return network
        except ShelfmarkError as error:
            reason = f"cannot be built ({str(error.__cause__ or error).splitlines()[0]})"
        raise ShelfmarkError(
            f"view {view.name}: {self.name} at {size} px {reason}; expected a network that takes photos of "
            "this size, too; correct extract.views"
        )


@dataclass(frozen=True)
class OnnxBackbone(Backbone):
    """An encoder from an ONNX file."""

    onnx: bytes  # `pixels` (n, size, size, 3) uint8 → `bottlenecks` (n, d) float32, see onnx_encoder.py

    def description(self) -> BackboneDescription:
        """See Backbone."""
        return replace(super().description(), width=self.width)

    @property
    def stored_bytes(self) -> int:
        """See Backbone."""
        return len(self.onnx)

    def save(self, folder: Path) -> None:
        """See Backbone."""
        self.description().write(folder / BACKBONE)
        write_whole(folder / BACKBONE_ONNX, self.onnx)

    def bottlenecks(self, pixels: np.ndarray) -> np.ndarray:
        """See Backbone."""
        return bottlenecks_of(open_session(self.onnx), pixels)

    def for_view(self, view: View) -> Backbone:
        """See Backbone; itself, for it has no other network."""
        self.require_view(view)
        return self

    def _only_itself(self, view: View) -> str:
        """See Backbone."""
        return f"is an ONNX file, whose size and pooling are fixed; {AS_IT_IS}"


def _is_mean_of_a_map(network: "keras.Model") -> bool:
    import keras

    return isinstance(network.layers[-1], keras.layers.GlobalAveragePooling2D)


def require_keras(backbone: Backbone, purpose: str) -> KerasBackbone:
    """Returns the backbone, a network of Keras.

    Raises:
        ShelfmarkError: it is another one; the message says what it is needed for.
    """
    if not isinstance(backbone, KerasBackbone):
        raise ShelfmarkError(
            f"backbone {backbone.name}: cannot be used {purpose}; expected a network of Keras; "
            "give another --backbone"
        )
    return backbone


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

    Its messages go to the log file; where there is none, those of its start go nowhere. Convolutions are
    oneDNN's also on processors for which TensorFlow leaves it off (those with AVX2 alone): a step of
    fine-tuning MobileNet takes 64 ms of a core for a photo there instead of 80 to 97.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read when TensorFlow is imported
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


def load_backbone(
    name: str,
    weights: str,
    image_size: int | None = None,
    seed: int = 0,
    encoder: EncoderOptions = EncoderOptions(),  # noqa: B008 - it is frozen
) -> Backbone:
    """Builds a backbone.

    Args:
        name: as `parse_name` reads it: inception_v3, mobilenet, EfficientNetV2B0, inception_v3@mixed5, a
            FILE.onnx, hub:DIRECTORY.
        weights: `imagenet` (Keras downloads them), `random`, or a `.weights.h5` file (network without top);
            imagenet for a file or preset, which has its own.
        image_size: px; None: the network's own.
        seed: of random weights.
        encoder: what a FILE.onnx does not say itself.

    Raises:
        ShelfmarkError: unknown name, or a file, preset or weights that cannot be had or do not fit.
    """
    parsed = parse_name(name)
    if parsed.is_onnx:
        require_no_weights(parsed, weights)
        normalised = normalise_onnx(Path(parsed.path), parsed.layers, image_size, encoder)
        return onnx_backbone(normalised.onnx, parsed, normalised.image_size, normalised.width)

    import keras

    if parsed.is_hub:
        require_no_weights(parsed, weights)
        network, size = hub_network(Path(parsed.path), image_size)
        return keras_backbone(network, parsed, Path(parsed.path).absolute().name, size)
    size = parsed.image_size(image_size)
    keras.utils.set_random_seed(seed)
    return keras_backbone(build_network(parsed, weights, size), parsed, Path(weights).name, size)


def read_backbone(folder: AnyPath, fingerprint: str) -> Backbone:
    """Reads what `Backbone.save` wrote: the backbone of a bundle/ or backbone/ directory.

    Raises:
        ShelfmarkError: it is not the one of this fingerprint.
    """
    description = BackboneDescription.read(local(folder / BACKBONE))
    name, size = parse_name(description.name), description.image_size
    backbone: Backbone
    if description.width:
        onnx = (folder / BACKBONE_ONNX).read_bytes()
        backbone = onnx_backbone(onnx, name, size, description.width)
    elif description.structure:
        network = read_hub_network(description.structure)
        load_weights(network, local(folder / BACKBONE_WEIGHTS), name, size)
        backbone = keras_backbone(network, name, description.weights, size)
    else:
        network = read_network(name, local(folder / BACKBONE_WEIGHTS), size)
        backbone = keras_backbone(network, name, description.weights, size)
    if backbone.fingerprint != fingerprint:
        raise ShelfmarkError(
            f"{folder}: its backbone has fingerprint {backbone.fingerprint}; expected "
            f"{fingerprint}; run extract and train again with this version"
        )
    return backbone


def onnx_backbone(onnx: bytes, name: BackboneName, size: int, width: int) -> OnnxBackbone:
    """Returns the backbone of an encoder in the form of onnx_encoder.py.

    Args:
        onnx: the encoder.
        name: of the backbone.
        size: px.
        width: of its bottlenecks.
    """
    return OnnxBackbone(
        name=str(name),
        weights=name.network,
        image_size=size,
        width=width,
        fingerprint=_fingerprint(name, size, hashlib.sha256(onnx).hexdigest()),
        onnx=onnx,
    )


def keras_backbone(network: "keras.Model", name: BackboneName, weights: str, size: int) -> KerasBackbone:
    """Returns the backbone of a network that ends where the name says; its layers become frozen.

    Args:
        network: (n, size, size, 3) scaled → (n, d).
        name: of the backbone.
        weights: what they are called.
        size: px.
    """
    network.trainable = False
    return KerasBackbone(
        name=str(name),
        weights=weights,
        image_size=size,
        width=network.output_shape[-1],
        fingerprint=_fingerprint(name, size, _weights_digest(network)),
        network=network,
        model=network if name.is_hub else with_preprocessing(network, str(name), size),
    )


def _fingerprint(name: BackboneName, size: int, weights: str) -> str:
    identity = {
        "network": str(name),
        "size": size,
        "resize": RESIZE,
        "photos": Limits().max_side,
        "weights": weights,
    }
    digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:12]
    return f"{name.slug}-{size}-{digest}"


def with_preprocessing(network: "keras.Model", name: str, size: int | None) -> "keras.Model":
    """Returns the network for (n, size, size, 3) pixels 0..255, scaled as the backbone of this name does.

    A size of None: photos of any size, if the network takes them.
    """
    import keras

    pixels = keras.Input((size, size, 3), dtype="float32", name="pixels")
    return keras.Model(pixels, network(preprocessing(parse_name(name).network)(pixels), training=False))


def _weights_digest(network: "keras.Model") -> str:
    digest = hashlib.sha256()
    for array in network.get_weights():
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
