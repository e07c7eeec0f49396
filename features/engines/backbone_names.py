"""The names of backbones, checked without importing Keras, which takes seconds.

    NETWORK[@LAYER[+LAYER…]]      inception_v3   MobileNet   inception_v3@mixed5   inception_v3@mixed4+mixed8

NETWORK is a name of keras.applications, in snake or camel case. Without layers a backbone ends where its
network does, in a globally pooled map; with them it ends at these layers, pooled and side by side, and
nothing after them is computed.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from features.errors import ShelfmarkError
from features.storage.paths import any_path

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

    network: str  # lower case without underscores
    layers: tuple[str, ...] = ()  # names of Keras layers; none: the network's own end

    def __str__(self) -> str:
        return self.network + "@" * bool(self.layers) + "+".join(self.layers)

    @property
    def slug(self) -> str:
        """The name as part of a directory's name and of a TensorFlow scope."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", str(self))

    def image_size(self, given: int | None) -> int:
        """px: the given size, else the network's own."""
        return given or IMAGE_SIZES.get(self.network, 224)


def parse_name(text: str) -> BackboneName:
    """Reads the name of a backbone.

    >>> parse_name("Inception_V3@mixed4+mixed5")
    BackboneName(network='inceptionv3', layers=('mixed4', 'mixed5'))

    Raises:
        ShelfmarkError: no such network, or no layer after the @.
    """
    network, at, ends = text.partition("@")
    layers = tuple(ends.split("+")) if at else ()
    if not all(layers):
        raise ShelfmarkError(
            f"backbone {text!r}: a layer without a name; expected NETWORK@LAYER or NETWORK@LAYER+LAYER; "
            "correct --backbone"
        )
    return BackboneName(require_known(network), layers)


def backbone_names() -> list[str]:
    """Returns the names of all networks, read from the text of Keras."""
    spec = importlib.util.find_spec("keras")
    assert spec and spec.submodule_search_locations
    text = Path(spec.submodule_search_locations[0], "applications", "__init__.py").read_text()
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    functions = [node for node in imports if (node.module or "").startswith("keras.src.applications.")]
    return sorted(alias.name.lower() for node in functions for alias in node.names)


def require_known(network: str, known: Collection[str] | None = None) -> str:
    """Returns the key of a network in `known`: lower case without underscores.

    Raises:
        ShelfmarkError: it is not there.
    """
    known = backbone_names() if known is None else known
    key = network.lower().replace("_", "")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ShelfmarkError(
            f"backbone {network!r} is unknown{hint}; expected one of {', '.join(sorted(known))}; "
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
