"""GoogLeNet (Szegedy et al. 2014): torchvision's, and that of the herbarium (Carranza-Rojas et al. 2018).

Both have nine inception blocks: four branches side by side, whose maps are put one after the other. They are
built without the auxiliary classifiers, which are for training only.
"""

from collections.abc import Callable
from typing import TypeAlias

from keras import initializers, layers, ops

from features.networks.layers import (
    Tensor,
    ceil_max_pool,
    convolution,
    dropout,
    logits,
    norm,
    pooled,
    relu,
)

Convolution: TypeAlias = Callable[..., Tensor]  # (x, filters, size, name, stride=1), with its activation

WIDTHS = {  # of 1×1; 3×3 and before it; 5×5 and before it; after the pooling
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(x: Tensor) -> Tensor:
    """Returns 7×7 maps of 1,024 at 224 px.

    Torchvision's has batch normalization, kernels of 3×3 where the paper has 5×5 (its issue 906), and windows
    of 2×2 in the last pooling.
    """
    return _trunk(x, _normalised, lambda x, number: x, large=3, last_pool=2)


def googlenet_top(maps: Tensor, classes: int) -> Tensor:
    """The mean of each map, then one layer."""
    return logits(dropout(pooled(maps), 0.2, "dropout"), classes, "fc")


def herbarium_googlenet(x: Tensor) -> Tensor:
    """Returns 7×7 maps of 1,024 at 224 px: PReLU, and batch normalization after each pooling.

    The first two are followed by local response normalization. Kernels and windows are the paper's.
    """

    def after_pool(x: Tensor, number: int) -> Tensor:
        x = norm(x, f"bn{number}")
        return local_response_norm(x) if number <= 2 else x

    return _trunk(x, _parametric, after_pool, large=5, last_pool=3)


def herbarium_googlenet_top(maps: Tensor, classes: int) -> Tensor:
    """The mean of each map, batch normalization, one layer."""
    return logits(norm(pooled(maps), "bn5"), classes, "fc")


def _trunk(
    x: Tensor,
    conv: Convolution,
    after_pool: Callable[[Tensor, int], Tensor],
    large: int,
    last_pool: int,
) -> Tensor:
    x = conv(x, 64, 7, "conv1", stride=2)
    x = after_pool(ceil_max_pool(x, 3, 2, "maxpool1"), 1)
    x = conv(conv(x, 64, 1, "conv2"), 192, 3, "conv3")
    x = after_pool(ceil_max_pool(x, 3, 2, "maxpool2"), 2)
    for name, widths in WIDTHS.items():
        x = _inception(x, name, widths, conv, large)
        if name == "inception3b":
            x = after_pool(ceil_max_pool(x, 3, 2, "maxpool3"), 3)
        if name == "inception4e":
            x = after_pool(ceil_max_pool(x, last_pool, 2, "maxpool4"), 4)
    return x


def _inception(x: Tensor, name: str, widths: tuple[int, ...], conv: Convolution, large: int) -> Tensor:
    one, before_three, three, before_five, five, after_pool = widths
    pool = layers.MaxPooling2D(3, 1, "same", name=f"{name}.branch4.0")(x)
    branches = [
        conv(x, one, 1, f"{name}.branch1"),
        conv(conv(x, before_three, 1, f"{name}.branch2.0"), three, 3, f"{name}.branch2.1"),
        conv(conv(x, before_five, 1, f"{name}.branch3.0"), five, large, f"{name}.branch3.1"),
        conv(pool, after_pool, 1, f"{name}.branch4.1"),
    ]
    return layers.Concatenate(name=name)(branches)


def _normalised(x: Tensor, filters: int, size: int, name: str, stride: int = 1) -> Tensor:
    x = convolution(x, filters, size, f"{name}.conv", stride, size // 2)
    return relu(norm(x, f"{name}.bn", epsilon=1e-3), name)


def _parametric(x: Tensor, filters: int, size: int, name: str, stride: int = 1) -> Tensor:
    x = convolution(x, filters, size, f"{name}.conv", stride, size // 2, bias=True)
    return layers.PReLU(initializers.Constant(0.25), shared_axes=(1, 2), name=name)(x)  # He et al. 2015


def local_response_norm(x: Tensor) -> Tensor:
    """Returns x / (1 + 10⁻⁴ · mean of x² over five neighbouring channels)^0.75 (Krizhevsky et al. 2012).

    Channels become an axis of an image; the mean counts the zeros before the first and after the last.
    """
    _, height, width, channels = x.shape
    squares = ops.reshape(ops.square(x), (-1, height * width, channels, 1))
    means = ops.average_pool(ops.pad(squares, ((0, 0), (0, 0), (2, 2), (0, 0))), (1, 5), 1)
    return x * ops.power(1 + 1e-4 * ops.reshape(means, (-1, height, width, channels)), -0.75)
