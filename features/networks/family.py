"""The family of networks by name: those of the lecture EE-559 7.2 and of two papers.

They are torchvision's networks, with its layers and names, so that its files of weights load into them
(torch_weights.py); LeNet-5, the network for handwriting, network in network and the herbarium's GoogLeNet
are not in torchvision. Names are torchvision's, `torchvision_` first where keras.applications has another
network of the same name.

    image 0..255  →  preprocess  →  layers, up to the last map  →  its mean: a bottleneck
                                                                 →  top: logits of classes
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from features.errors import ShelfmarkError

if TYPE_CHECKING:
    import keras

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green, blue, in 0..1
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """One network of the family."""

    name: str  # as people write it
    layers: str  # module.function of this folder; the function with `_top` makes logits of its maps
    options: Mapping[str, Any] = field(default_factory=dict)  # of that function
    image_size: int = 224  # px, what it was published at
    centred: bool = False  # pixels to -1..1, by torchvision's transform_input; else by ImageNet's statistics


def _bottlenecks(*blocks: int, **options: Any) -> dict[str, Any]:
    return {"blocks": blocks, "bottleneck": True, **options}


def _by_key(*networks: Network) -> dict[str, Network]:
    return {network.name.replace("_", ""): network for network in networks}


NETWORKS: Mapping[str, Network] = _by_key(
    Network("lenet5", "classic.lenet5", image_size=32),
    Network("handwriting", "classic.handwriting", image_size=28),
    Network("alexnet", "classic.alexnet"),
    Network("nin", "classic.nin"),
    Network("torchvision_vgg19", "classic.vgg19"),
    Network("googlenet", "googlenet.googlenet", centred=True),
    Network("herbarium_googlenet", "googlenet.herbarium_googlenet"),
    Network("torchvision_inception_v3", "inception.inception_v3", image_size=299, centred=True),
    Network("resnet18", "residual.resnet", {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    Network("resnet34", "residual.resnet", {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    Network("torchvision_resnet50", "residual.resnet", _bottlenecks(3, 4, 6, 3)),
    Network("torchvision_resnet101", "residual.resnet", _bottlenecks(3, 4, 23, 3)),
    Network("torchvision_resnet152", "residual.resnet", _bottlenecks(3, 8, 36, 3)),
    Network("resnext50_32x4d", "residual.resnet", _bottlenecks(3, 4, 6, 3, width=128, groups=32)),
    Network("wide_resnet50_2", "residual.resnet", _bottlenecks(3, 4, 6, 3, width=128)),
    Network("torchvision_densenet121", "densenet.densenet", {"blocks": (6, 12, 24, 16)}),
    Network("torchvision_densenet169", "densenet.densenet", {"blocks": (6, 12, 32, 32)}),
    Network("torchvision_densenet201", "densenet.densenet", {"blocks": (6, 12, 48, 32)}),
)


def names() -> list[str]:
    """Returns the names of the family, without importing Keras.

    >>> names()[:3]
    ['alexnet', 'googlenet', 'handwriting']
    """
    return sorted(network.name for network in NETWORKS.values())


def preprocess(key: str, pixels: Any) -> Any:
    """Returns the input of a network of the family: pixels as torchvision scales them.

    Args:
        key: of NETWORKS.
        pixels: (n, h, w, 3) float32, 0..255, red first: an array or a Keras tensor.

    >>> import numpy as np
    >>> preprocess("googlenet", np.full((1, 1, 1, 3), 255.0, np.float32)).ravel().tolist()
    [1.0, 1.0, 1.0]
    """
    import numpy as np  # the names of the family are read by commands that need none of it

    if NETWORKS[key].centred:
        return pixels / 127.5 - 1
    mean, deviation = np.array([IMAGENET_MEAN, IMAGENET_DEVIATION], np.float32)
    return pixels * (1 / 255 / deviation) - mean / deviation


def build_network(key: str, image_size: int, classes: int = 1000, top: bool = True) -> "keras.Model":
    """Builds a network of the family with random weights, from Keras' seed.

    Every layer has a name that is the same in each process: `get_layer("fc7").output` is an end for
    `keras.Model(network.input, …)`. Layers after the last map (`fc6`, `fc7` of AlexNet and VGG-19, the
    logits) are there with top only. Without top the last layer is `pool`, and its input is the last map. The
    dense layers of LeNet-5, AlexNet and VGG-19 see 5×5, 6×6 and 7×7 cells, to which maps of another size are
    averaged, as in torchvision. Padding and pooling are torchvision's at every size, odd ones, too.

    Args:
        key: of NETWORKS: the name in lower case, without underscores.
        image_size: px, height and width.
        classes: number of logits.
        top: with the layers after the last map.

    Returns:
        (n, size, size, 3) float32 as `preprocess` gives it → (n, classes) logits without softmax; without top
        (n, d), the means of the last map.

    Raises:
        ShelfmarkError: the image is too small for this network.
    """
    import keras

    from features.networks.layers import pooled

    network = NETWORKS[key]
    module, _, function = network.layers.rpartition(".")
    layers = importlib.import_module(f"features.networks.{module}")
    scaled = keras.Input((image_size, image_size, 3), dtype="float32", name="scaled")
    try:
        maps = getattr(layers, function)(scaled, **network.options)
    except ValueError as error:  # Keras names the layer whose window is larger than its map
        raise ShelfmarkError(
            f"{network.name} at {image_size} px: one of its maps would be empty; expected a larger image, "
            f"{network.image_size} px as published; give --image-size"
        ) from error
    end = getattr(layers, f"{function}_top")(maps, classes) if top else pooled(maps)
    return keras.Model(scaled, end, name=key)
