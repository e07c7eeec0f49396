"""The names of backbones, checked without importing Keras, which takes seconds.

    NETWORK[@LAYER[+LAYER…]]      inception_v3   MobileNet   inception_v3@mixed5   inception_v3@mixed4+mixed8
    FILE.onnx[@TENSOR[+TENSOR…]]  clip/vision.onnx   vision.onnx@image_embeds
    hub:DIRECTORY                 hub:presets/siglip_base

NETWORK is a name of keras.applications or of features/networks, in snake or camel case; FILE.onnx an encoder
in ONNX's format; DIRECTORY a preset of KerasHub. Without layers a backbone ends where its network does, in a
globally pooled map; with them it ends at these layers, pooled and side by side, and nothing after them is
computed.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from features.engines.keras_hub import require_hub, require_preset
from features.engines.onnx_file import require_onnx
from features.errors import ShelfmarkError
from features.networks.family import NETWORKS
from features.storage.paths import any_path

ONNX, HUB = ".onnx", "hub:"
OF_TORCH = (".pth", ".safetensors")  # torchvision's files of weights, for features/networks
FORMATS = (b"\x89HDF\r\n\x1a\n", b"PK\x03\x04")  # how HDF5 and Keras' archives begin
IMAGE_SIZES = {  # px, what the weights were trained at; 224 for the rest
    "inceptionv3": 299, "xception": 299, "inceptionresnetv2": 299, "nasnetlarge": 331,
    "efficientnetb1": 240, "efficientnetb2": 260, "efficientnetb3": 300, "efficientnetb4": 380,
    "efficientnetb5": 456, "efficientnetb6": 528, "efficientnetb7": 600,
    "efficientnetv2b1": 240, "efficientnetv2b2": 260, "efficientnetv2b3": 300,
    "efficientnetv2s": 384, "efficientnetv2m": 480, "efficientnetv2l": 480,
}  # fmt: skip


@dataclass(frozen=True)
class BackboneName:
    """A network, and the layers at which it ends."""

    network: str  # lower case without underscores; "vision.onnx", "hub:siglip_base": without the folder
    layers: tuple[str, ...] = ()  # names of Keras layers or ONNX tensors; none: the network's own end
    path: str = field(default="", compare=False)  # of the ONNX file or the preset

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file."""
        return self.network.endswith(ONNX)

    @property
    def is_hub(self) -> bool:
        """Whether it is a preset of KerasHub."""
        return self.network.startswith(HUB)

    def __str__(self) -> str:
        return self.network + "@" * bool(self.layers) + "+".join(self.layers)

    @property
    def slug(self) -> str:
        """The name as part of a directory's name and of a TensorFlow scope."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", str(self))

    def image_size(self, given: int | None) -> int:
        """px: the given size, else the network's own; not of a file, which says its own."""
        own = NETWORKS[self.network].image_size if self.network in NETWORKS else 224
        return given or IMAGE_SIZES.get(self.network, own)

    def with_folder(self, folder: Path) -> str:
        """The name of a file or preset with its whole path, where the path is relative to a folder.

        >>> parse_name("own/vision.onnx@a+b").with_folder(Path("/encoders"))
        '/encoders/own/vision.onnx@a+b'
        """
        return f"{HUB * self.is_hub}{folder / self.path}" + "@" * bool(self.layers) + "+".join(self.layers)


def parse_name(text: str) -> BackboneName:
    """Reads the name of a backbone.

    >>> parse_name("Inception_V3@mixed4+mixed5")
    BackboneName(network='inceptionv3', layers=('mixed4', 'mixed5'), path='')

    >>> str(parse_name("own/vision.onnx@image_embeds")), str(parse_name("hub:own/siglip_base"))
    ('vision.onnx@image_embeds', 'hub:siglip_base')

    Raises:
        ShelfmarkError: no such network, or no layer after the @; files are not looked for.
    """
    if text.startswith(HUB):
        path = text.removeprefix(HUB)
        return BackboneName(HUB + Path(path).absolute().name, path=path)
    file, onnx, ends = text.partition(f"{ONNX}@")
    if onnx or text.endswith(ONNX):
        network, at = (file + ONNX, "@") if onnx else (text, "")
    else:
        network, at, ends = text.partition("@")
    layers = tuple(ends.split("+")) if at else ()
    if not all(layers):
        raise ShelfmarkError(
            f"backbone {text!r}: a layer without a name; expected NETWORK@LAYER or NETWORK@LAYER+LAYER; "
            "correct --backbone"
        )
    if network.endswith(ONNX):
        return BackboneName(Path(network).name, layers, network)
    return BackboneName(require_known(network), layers)


def is_file_name(text: str) -> bool:
    """Whether a name is of an ONNX file or of a preset in a directory."""
    return text.startswith(HUB) or text.endswith(ONNX) or f"{ONNX}@" in text


def without_folder(text: str) -> str:
    """Returns a name that does not say where the file or preset is; others as they are."""
    return str(parse_name(text)) if is_file_name(text) else text


def backbone_names() -> list[str]:
    """Returns the names of all networks; those of keras.applications are read from the text of Keras."""
    spec = importlib.util.find_spec("keras")
    assert spec and spec.submodule_search_locations
    text = Path(spec.submodule_search_locations[0], "applications", "__init__.py").read_text()
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    functions = [node for node in imports if (node.module or "").startswith("keras.src.applications.")]
    return sorted([*NETWORKS, *(alias.name.lower() for node in functions for alias in node.names)])


def require_known(network: str, known: Collection[str] | None = None) -> str:
    """Returns the key of a network in `known`: lower case without underscores.

    Raises:
        ShelfmarkError: it is not there.
    """
    known = backbone_names() if known is None else known
    key = network.lower().replace("_", "")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" (did you mean {_written(near[0])}?)" if near else ""
        written = ", ".join(map(_written, sorted(known)))
        raise ShelfmarkError(
            f"backbone {network!r} is unknown{hint}; expected one of {written}; correct --backbone"
        )
    return key


def _written(key: str) -> str:
    """A network's name as the pages write it."""
    return NETWORKS[key].name if key in NETWORKS else key


def require_backbone(name: str, weights: str) -> None:
    """Checks what can be known of a backbone without Keras and without reading the network.

    Raises:
        ShelfmarkError: no such network, file, preset or weights, or a package is missing.
    """
    parsed = parse_name(name)
    if not is_file_name(name):
        require_weights(weights, parsed.network)
        return
    if parsed.is_onnx and not Path(parsed.path).is_file():
        missing = "a directory" if Path(parsed.path).is_dir() else "no such file"
        raise ShelfmarkError(
            f"{parsed.path}: {missing}; expected a network in ONNX format; correct --backbone"
        )
    if parsed.is_onnx:
        require_onnx(parsed.path)
    else:
        require_preset(Path(parsed.path))
        require_hub(name)
    require_no_weights(parsed, weights)


def require_no_weights(name: BackboneName, weights: str) -> None:
    """Raises a ShelfmarkError where weights are given for a file or preset, which has its own."""
    if weights not in ("imagenet", Path(name.path).absolute().name):
        raise ShelfmarkError(
            f"backbone {name}: has its own weights, and cannot take {weights}; expected none for a file or "
            "preset; leave out --weights"
        )


def require_weights(weights: str, network: str) -> None:
    """Checks what can be known of the setting without Keras: imagenet, random, or a file of weights.

    Args:
        weights: the setting.
        network: as BackboneName.network.

    Raises:
        ShelfmarkError: no such file, or one that this network cannot have.
    """
    own = network in NETWORKS  # features/networks
    if weights == "imagenet" and own:
        raise ShelfmarkError(
            f"ImageNet weights of {network} are not published for Keras; expected a file; give --weights "
            "FILE.pth (torchvision's) or FILE.weights.h5, or --weights random to train it from scratch"
        )
    if weights in ("imagenet", "random"):
        return
    formats = "a .weights.h5, .pth or .safetensors file" if own else "imagenet, random or a .weights.h5 file"
    expected = f"expected {formats}; correct --weights"
    file = any_path(weights)
    if not file.is_file():
        raise ShelfmarkError(f"weights {weights}: no such file; {expected}")
    if file.suffix in OF_TORCH and not own:
        raise ShelfmarkError(
            f"weights {weights}: PyTorch's, for torchvision's networks; expected {formats} of {network}; "
            f"give those, or one of {', '.join(map(_written, NETWORKS))} by --backbone"
        )
    if isinstance(file, Path) and file.suffix not in OF_TORCH:
        with file.open("rb") as opened:
            if not opened.read(8).startswith(FORMATS):
                raise ShelfmarkError(f"weights {weights}: not a file of weights; {expected}")
