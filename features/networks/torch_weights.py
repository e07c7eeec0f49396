"""Loads torchvision's files of weights into the networks of the family.

torch                                                 Keras
NAME.weight  (out, in, h, w) of a convolution         NAME/kernel  (h, w, in, out)
NAME.weight  (out, in) of a dense layer               NAME/kernel  (in, out)
NAME.weight  (out, c · h · w), the first after maps   NAME/kernel  (h · w · c, out)
NAME.bias                                             NAME/bias
NAME.weight, .bias, .running_mean, .running_var       NAME/gamma, beta, moving_mean, moving_variance
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.errors import ShelfmarkError
from features.networks.family import NETWORKS
from features.networks.torch_files import read_state_dict

if TYPE_CHECKING:
    import keras

NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
AUXILIARY = re.compile(r"aux[12]\.|AuxLogits\.|.*\.num_batches_tracked$")  # for training only
TOP = re.compile(r"(fc|classifier(\.\d)?|stage4\.2)\.(weight|bias)$")
# torchvision's DenseNets of 2017: norm.1 for norm1
OLDER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def load_torch_weights(model: "keras.Model", file: Path, key: str) -> None:
    """Sets all weights of a network from a file of PyTorch, or none.

    Args:
        model: of `build_network`, whole or without top; cut an inner layer off afterwards.
        file: `.pth` or `.safetensors`: a state_dict with torchvision's names. Auxiliary classifiers in it are
            left out, and the top, where the model has none.
        key: of NETWORKS, for messages.

    Raises:
        ShelfmarkError: the file is damaged, holds code, or belongs to another network or other classes.
    """
    arrays = {OLDER.sub(r"\1\2", name): array for name, array in read_state_dict(file).items()}
    wanted = {
        f"{layer.name}.{NAMES[variable.name]}": (layer, variable)
        for layer in model.layers
        for variable in layer.weights
        if variable.name in NAMES
    }
    network = NETWORKS[key].name
    missing = [name for name in wanted if name not in arrays]
    spare = [name for name in arrays if name not in wanted and not AUXILIARY.match(name)]
    if not any(map(TOP.match, wanted)):
        spare = [name for name in spare if not TOP.match(name)]
    if missing or spare:
        difference = f"it lacks {missing[0]!r}" if missing else f"it has {spare[0]!r}, too"
        raise ShelfmarkError(
            f"weights {file}: not those of {network}: {difference}; expected a state_dict with torchvision's "
            "names; give this network's file, or name its network by --backbone"
        )
    values = {}
    for name, (layer, variable) in wanted.items():
        value = _as_keras(arrays[name], layer, variable)
        if value is None:
            shapes = f"{arrays[name].shape}, which does not fit {tuple(variable.shape)} of {network}"
            raise ShelfmarkError(
                f"weights {file}: {name!r} has shape {shapes}; expected this network with as many classes; "
                "give its own file"
            )
        values[name] = value
    for name, (_, variable) in wanted.items():
        variable.assign(values[name])


def _as_keras(array: np.ndarray, layer: Any, variable: Any) -> np.ndarray | None:
    """Returns a view with Keras' order of axes; None if the shape does not fit."""
    shape = tuple(variable.shape)
    if variable.name == "kernel" and array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif variable.name == "kernel" and array.ndim == 2:
        source = layer.input._keras_history.operation
        if type(source).__name__ == "Flatten" and array.shape == shape[::-1]:
            height, width, channels = source.input.shape[1:]
            array = array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(shape)
        else:
            array = array.T
    return array if array.shape == shape else None
