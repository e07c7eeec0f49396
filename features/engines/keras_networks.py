"""Networks of Keras, cut at their ends: scaled pixels in, bottlenecks out.

    image (n, size, size, 3) ─► layers … mixed4 ─► pooled ─┐
                                          mixed5 ─► pooled ─┴► side by side (n, d)

Layers after the last end are not part of the network, so that no engine computes them. Those of the network
get names that do not depend on how many networks were built before: a file of weights holds them. Networks
are those of keras.applications and of features/networks.
"""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from features.engines.backbone_names import OF_TORCH, BackboneName, require_weights
from features.errors import ShelfmarkError
from features.networks import family
from features.networks.family import NETWORKS
from features.networks.torch_weights import load_torch_weights

if TYPE_CHECKING:
    import keras

JOINED = "joined"  # the layer that puts several ends side by side; its numbers stay float32, as pooled ones


def known_backbones() -> dict[str, Callable[..., "keras.Model"]]:
    """Returns every network of keras.applications by its lower-case name without underscores."""
    from keras import applications

    functions = inspect.getmembers(applications, inspect.isfunction)
    return {name.lower(): function for name, function in functions}


def build_network(name: BackboneName, weights: str, size: int) -> "keras.Model":
    """Builds a network without its output layer, ending where its name says.

    Args:
        name: network and ends.
        weights: `imagenet` (Keras downloads them), `random` (from Keras' seed), a file of the whole network
            without top, or of the one that ends here; for torchvision's networks also torchvision's file.
        size: px.

    Raises:
        ShelfmarkError: no such layer, or weights that cannot be had or do not fit.
    """
    require_weights(weights, name.network)
    try:
        return _ending(name, weights, size)
    except WeightsDoNotFit as error:
        if not name.layers or weights in ("imagenet", "random"):
            raise
        network = _ending(name, "random", size)
        try:
            network.load_weights(weights)
        except (OSError, ValueError):
            raise error from None
        return network


def read_network(name: BackboneName, file: Path, size: int) -> "keras.Model":
    """Builds the network whose weights `save_weights` wrote.

    Raises:
        ShelfmarkError: they do not fit.
    """
    network = _ending(name, "random", size)
    load_weights(network, file, name, size)
    return network


def _ending(name: BackboneName, weights: str, size: int) -> "keras.Model":
    """The network that ends where its name says; `weights` are those of the whole one."""
    return named(cut(_whole(name, weights, size), name), name)


def load_weights(network: "keras.Model", file: Path, name: BackboneName, size: int) -> None:
    """Loads weights that `save_weights` wrote.

    Raises:
        ShelfmarkError: they do not fit.
    """
    try:
        network.load_weights(file)
    except (OSError, ValueError) as error:
        raise WeightsDoNotFit(str(file), name, size, error) from error


class WeightsDoNotFit(ShelfmarkError):
    """A file of weights of another network."""

    def __init__(self, weights: str, name: BackboneName, size: int, error: Exception) -> None:
        super().__init__(
            f"weights {weights}: do not fit {name} at {size} px ({_first_line(error)}); "
            "give this network's own"
        )


def preprocessing(network: str) -> "Callable[[keras.KerasTensor], keras.KerasTensor]":
    """Returns what scales pixels 0..255 for a network, as its weights were trained."""
    if network in NETWORKS:
        return functools.partial(family.preprocess, network)
    module = importlib.import_module(
        "keras.applications." + known_backbones()[network].__module__.rpartition(".")[2]
    )
    scale: Callable[[keras.KerasTensor], keras.KerasTensor] = module.preprocess_input
    return scale


def cut(network: "keras.Model", name: BackboneName) -> "keras.Model":
    """Returns the network up to the layers of its name, each pooled, side by side.

    Raises:
        ShelfmarkError: no such layer.
    """
    import keras

    if not name.layers:
        return network
    ends = [_pooled(_layer(network, layer, name).output) for layer in name.layers]
    joined = keras.layers.Concatenate(name=JOINED)(ends) if len(ends) > 1 else ends[0]
    return keras.Model(network.input, joined)


def _layer(network: "keras.Model", layer: str, name: BackboneName) -> "keras.Layer":
    names = [one.name for one in network.layers]
    if layer not in names:
        some = ", ".join(_suggested(layer, names))
        raise ShelfmarkError(
            f"backbone {name}: {name.network} has no layer {layer!r}; expected one of its {len(names)}, "
            f"for instance {some}; correct what follows the @"
        )
    return network.get_layer(layer)


def _suggested(layer: str, names: list[str]) -> list[str]:
    """Up to six names of layers: near ones, else some from the end."""
    import difflib

    near = difflib.get_close_matches(layer, names, n=6, cutoff=0.5)
    return near if len(near) > 1 else names[-6:]


def _pooled(output: "keras.KerasTensor") -> "keras.KerasTensor":
    """(n, h, w, d) or (n, tokens, d) → (n, d), the mean; (n, d) as it is."""
    import keras

    pooling = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D}
    return pooling[len(output.shape)]()(output) if len(output.shape) > 2 else output


def named(network: "keras.Model", name: BackboneName) -> "keras.Model":
    """Gives network and layers names that depend on nothing but the network."""
    network.name = name.slug
    for number, layer in enumerate(network.layers):
        if layer.name != JOINED:
            layer.name = f"layer_{number}"
    return network


def _whole(name: BackboneName, weights: str, size: int) -> "keras.Model":
    if name.network in NETWORKS:
        return _of_the_family(name, weights, size)
    build, source = known_backbones()[name.network], {"random": None}.get(weights, weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of every layer that does not fit, before it raises
            return build(include_top=False, pooling="avg", input_shape=(size, size, 3), weights=source)
    except Exception as error:  # Keras raises bare Exceptions for downloads, ValueError and h5py's for files
        if source == "imagenet" and not isinstance(error, ValueError):  # ValueError: the image size, for one
            raise ShelfmarkError(
                f"ImageNet weights of {name.network} cannot be downloaded ({_first_line(error)}); expected a "
                "network or a cached copy; give --weights FILE.weights.h5 (the network without its top, from "
                "keras.applications, from a computer that has them), or --weights random to try the pipeline "
                "with meaningless features"
            ) from error
        raise WeightsDoNotFit(weights, name, size, error) from error


def _of_the_family(name: BackboneName, weights: str, size: int) -> "keras.Model":
    """A network of features/networks; with its top where the name has one of the layers after the maps."""
    network = family.build_network(name.network, size, top=False)
    if not {layer.name for layer in network.layers}.issuperset(name.layers):
        network = family.build_network(name.network, size)
    if weights.endswith(OF_TORCH):
        load_torch_weights(network, Path(weights), name.network)
    elif weights != "random":
        load_weights(network, Path(weights), name, size)
    return network


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
