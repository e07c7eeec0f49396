"""The pieces that the networks share, with the padding and pooling of torchvision.

A layer with weights has the name of torchvision's module, `layer1.0.conv1`, so that its files are read by
name. A layer without weights has the name of what it gives, `layer1` or `fc7`, for people.

    x, maps     (n, h, w, c) float32, channels last
    size        of a kernel or window: one number, or height and width
"""

from typing import TypeAlias

import keras
import numpy as np
from keras import layers, ops

Tensor: TypeAlias = keras.KerasTensor
Size: TypeAlias = int | tuple[int, int]


def convolution(
    x: Tensor,
    filters: int,
    size: Size,
    name: str,
    stride: int = 1,
    padding: Size = 0,
    groups: int = 1,
    bias: bool = False,
) -> Tensor:
    """Returns a convolution of maps that are padded by zeros on both sides.

    Keras' "same" is this only at stride 1: at stride 2 and an even size it pads the end alone.
    """
    height, width = _pair(size)
    same = stride == 1 and _pair(padding) == (height // 2, width // 2)
    if padding and not same:
        x = layers.ZeroPadding2D(padding, name=f"{name}.padding")(x)
    kind = layers.Conv2D if groups == 1 else GroupedConvolution
    return kind(
        filters,
        size,
        stride,
        "same" if same else "valid",
        groups=groups,
        use_bias=bias,
        kernel_initializer="he_normal",  # with Keras' default, VGG-19 does not begin to train
        name=name,
    )(x)


class GroupedConvolution(layers.Conv2D):  # type: ignore[misc]  # Keras has no types
    """A convolution in groups that trains quickly on CPUs, too: there as a product of windows.

    Forward and backward, 20 images at 64 px, the four widths of ResNeXt-50: TensorFlow's own 3.8, 1.9, 0.9
    and 0.4 s of processor time, the product 0.27, 0.13, 0.05 and 0.03 s. Forward alone, OpenVINO's own is two
    to seven times as fast as the product.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns (n, h, w, filters)."""
        if not training:
            return super().call(inputs)
        (rows, columns), (step, _) = self.kernel_size, self.strides
        if self.padding == "same":
            around = (rows // 2, rows // 2), (columns // 2, columns // 2)
            inputs = ops.pad(inputs, ((0, 0), *around, (0, 0)))
        high = (inputs.shape[1] - rows) // step * step + 1  # from the first window's start to the last's
        wide = (inputs.shape[2] - columns) // step * step + 1
        windows = [
            inputs[:, row : row + high : step, column : column + wide : step]
            for row in range(rows)
            for column in range(columns)
        ]
        in_groups = [
            ops.reshape(part, (-1, *part.shape[1:3], self.groups, part.shape[3] // self.groups))
            for part in windows
        ]
        kernel = ops.reshape(self.kernel, (-1, self.groups, self.filters // self.groups))
        product = ops.einsum("nhwgc,cgf->nhwgf", ops.concatenate(in_groups, axis=-1), kernel)
        return ops.reshape(product, (-1, *product.shape[1:3], self.filters))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def norm(x: Tensor, name: str, epsilon: float = 1e-5) -> Tensor:
    """Returns x after batch normalization; the momentum is torchvision's 0.1, which Keras counts as 0.9."""
    return layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)(x)


def relu(x: Tensor, name: str) -> Tensor:
    """Returns the positive part of x."""
    return layers.ReLU(name=name)(x)


def max_pool(x: Tensor, size: int, stride: int, name: str, padding: int = 0) -> Tensor:
    """Returns maxima of windows; x has no negative values, so that zeros around it change none."""
    if padding:
        x = layers.ZeroPadding2D(padding, name=f"{name}.padding")(x)
    return layers.MaxPooling2D(size, stride, name=name)(x)


def ceil_max_pool(x: Tensor, size: int, stride: int, name: str) -> Tensor:
    """Returns maxima of windows, of which the last may hang over the end (torchvision's ceil_mode)."""
    padding = "valid" if (x.shape[1] - size) % stride == 0 else "same"
    return layers.MaxPooling2D(size, stride, padding, name=name)(x)


def average_pool(x: Tensor, name: str) -> Tensor:
    """Returns means of 3×3 windows at stride 1, in which the zeros around the map count."""
    return layers.AveragePooling2D(3, 1, name=name)(layers.ZeroPadding2D(1, name=f"{name}.padding")(x))


def dropout(x: Tensor, share: float, name: str) -> Tensor:
    """Returns x, of which training sets a share to zero."""
    return layers.Dropout(share, name=name)(x)


def flattened(maps: Tensor, cells: int, share: float = 0) -> Tensor:
    """Returns (n, cells · cells · c): the maps, averaged to cells × cells if they have another size."""
    _, height, width, _ = maps.shape
    if (height, width) != (cells, cells):  # Keras' adaptive pooling fails on maps of one cell
        maps = ops.einsum("ah,nhwc->nawc", _shares(height, cells), maps)
        maps = ops.einsum("bw,nawc->nabc", _shares(width, cells), maps)
    if share:
        maps = dropout(maps, share, "dropout")
    return layers.Flatten(name="flatten")(maps)


def _shares(size: int, cells: int) -> np.ndarray:
    """(cells, size) float32: how much of its mean each cell takes from each position; cells may overlap.

    >>> _shares(3, 2).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    shares = np.zeros((cells, size), np.float32)
    for cell, row in enumerate(shares):
        first, end = cell * size // cells, -(-(cell + 1) * size // cells)
        row[first:end] = 1 / (end - first)
    return shares


def dense(x: Tensor, width: int, name: str, output: str) -> Tensor:
    """Returns (n, width): a dense layer and its ReLU, which has the name of the output."""
    return relu(layers.Dense(width, name=name)(x), output)


def logits(x: Tensor, classes: int, name: str) -> Tensor:
    """Returns (n, classes), before softmax."""
    return layers.Dense(classes, name=name)(x)


def pooled(maps: Tensor) -> Tensor:
    """Returns (n, c), the means of the maps."""
    return layers.GlobalAveragePooling2D(name="pool")(maps)
