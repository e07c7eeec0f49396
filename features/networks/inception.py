"""Inception v3 (Szegedy et al. 2015) as in torchvision.

Keras' own of this name has no gammas in its batch normalization, and its average pooling does not count the
zeros around the map, so that the files of one do not fit the other.
"""

from keras import layers

from features.networks.layers import (
    Size,
    Tensor,
    average_pool,
    convolution,
    dropout,
    logits,
    max_pool,
    norm,
    pooled,
    relu,
)


def inception_v3(x: Tensor) -> Tensor:
    """Returns 8×8 maps of 2,048 at 299 px."""
    x = _conv(x, 32, 3, "Conv2d_1a_3x3", stride=2)
    x = _conv(x, 32, 3, "Conv2d_2a_3x3")
    x = _conv(x, 64, 3, "Conv2d_2b_3x3", padding=1)
    x = max_pool(x, 3, 2, "maxpool1")
    x = _conv(x, 80, 1, "Conv2d_3b_1x1")
    x = _conv(x, 192, 3, "Conv2d_4a_3x3")
    x = max_pool(x, 3, 2, "maxpool2")
    for name, after_pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _small(x, name, after_pool)
    x = _first_reduction(x, "Mixed_6a")
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _long(x, name, width)
    x = _second_reduction(x, "Mixed_7a")
    return _wide(_wide(x, "Mixed_7b"), "Mixed_7c")


def inception_v3_top(maps: Tensor, classes: int) -> Tensor:
    """The mean of each map, then one layer."""
    return logits(dropout(pooled(maps), 0.5, "dropout"), classes, "fc")


def _conv(x: Tensor, filters: int, size: Size, name: str, stride: int = 1, padding: Size = 0) -> Tensor:
    x = convolution(x, filters, size, f"{name}.conv", stride, padding)
    return relu(norm(x, f"{name}.bn", epsilon=1e-3), name)


def _small(x: Tensor, name: str, after_pool: int) -> Tensor:
    """Branches of 1×1, 5×5, two 3×3, and a pooling (figure 5 of the paper)."""
    five = _conv(x, 48, 1, f"{name}.branch5x5_1")
    three = _conv(x, 64, 1, f"{name}.branch3x3dbl_1")
    three = _conv(three, 96, 3, f"{name}.branch3x3dbl_2", padding=1)
    branches = [
        _conv(x, 64, 1, f"{name}.branch1x1"),
        _conv(five, 64, 5, f"{name}.branch5x5_2", padding=2),
        _conv(three, 96, 3, f"{name}.branch3x3dbl_3", padding=1),
        _conv(average_pool(x, f"{name}.pool"), after_pool, 1, f"{name}.branch_pool"),
    ]
    return layers.Concatenate(name=name)(branches)


def _first_reduction(x: Tensor, name: str) -> Tensor:
    three = _conv(x, 64, 1, f"{name}.branch3x3dbl_1")
    three = _conv(three, 96, 3, f"{name}.branch3x3dbl_2", padding=1)
    branches = [
        _conv(x, 384, 3, f"{name}.branch3x3", stride=2),
        _conv(three, 96, 3, f"{name}.branch3x3dbl_3", stride=2),
        max_pool(x, 3, 2, f"{name}.pool"),
    ]
    return layers.Concatenate(name=name)(branches)


def _long(x: Tensor, name: str, width: int) -> Tensor:
    """Branches whose 7×7 are factored into 1×7 and 7×1 (figure 6)."""
    row: tuple[Size, Size] = (1, 7), (0, 3)  # kernel, padding
    column: tuple[Size, Size] = (7, 1), (3, 0)
    once = _conv(x, width, 1, f"{name}.branch7x7_1")
    for number, (filters, (size, padding)) in enumerate(((width, row), (192, column)), start=2):
        once = _conv(once, filters, size, f"{name}.branch7x7_{number}", padding=padding)
    twice = _conv(x, width, 1, f"{name}.branch7x7dbl_1")
    steps = ((width, column), (width, row), (width, column), (192, row))
    for number, (filters, (size, padding)) in enumerate(steps, start=2):
        twice = _conv(twice, filters, size, f"{name}.branch7x7dbl_{number}", padding=padding)
    pool = _conv(average_pool(x, f"{name}.pool"), 192, 1, f"{name}.branch_pool")
    return layers.Concatenate(name=name)([_conv(x, 192, 1, f"{name}.branch1x1"), once, twice, pool])


def _second_reduction(x: Tensor, name: str) -> Tensor:
    three = _conv(x, 192, 1, f"{name}.branch3x3_1")
    seven = _conv(x, 192, 1, f"{name}.branch7x7x3_1")
    seven = _conv(seven, 192, (1, 7), f"{name}.branch7x7x3_2", padding=(0, 3))
    seven = _conv(seven, 192, (7, 1), f"{name}.branch7x7x3_3", padding=(3, 0))
    branches = [
        _conv(three, 320, 3, f"{name}.branch3x3_2", stride=2),
        _conv(seven, 192, 3, f"{name}.branch7x7x3_4", stride=2),
        max_pool(x, 3, 2, f"{name}.pool"),
    ]
    return layers.Concatenate(name=name)(branches)


def _wide(x: Tensor, name: str) -> Tensor:
    """Branches that end in 1×3 and 3×1 side by side (figure 7)."""

    def both(x: Tensor, names: tuple[str, str]) -> list[Tensor]:
        row, column = (f"{name}.{branch}" for branch in names)
        return [_conv(x, 384, (1, 3), row, padding=(0, 1)), _conv(x, 384, (3, 1), column, padding=(1, 0))]

    three = _conv(x, 384, 1, f"{name}.branch3x3_1")
    twice = _conv(_conv(x, 448, 1, f"{name}.branch3x3dbl_1"), 384, 3, f"{name}.branch3x3dbl_2", padding=1)
    branches = [
        _conv(x, 320, 1, f"{name}.branch1x1"),
        *both(three, ("branch3x3_2a", "branch3x3_2b")),
        *both(twice, ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        _conv(average_pool(x, f"{name}.pool"), 192, 1, f"{name}.branch_pool"),
    ]
    return layers.Concatenate(name=name)(branches)
