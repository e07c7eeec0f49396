"""ResNet (He et al. 2015), ResNeXt (Xie et al. 2016) and wide ResNet (Zagoruyko, Komodakis 2016).

    basic block         3×3, 3×3                                 ResNet 18 and 34
    bottleneck block    1×1 to fewer maps, 3×3, 1×1 to four times as many

The stride is in the first or only 3×3, as in torchvision; in the paper it is in the 1×1 before. ResNeXt
divides the 3×3 of a bottleneck block into groups, a wide ResNet makes it wider.
"""

from keras import layers

from features.networks.layers import Tensor, convolution, logits, max_pool, norm, pooled, relu

EXPANSION = 4  # of a bottleneck block


def resnet(x: Tensor, blocks: tuple[int, ...], bottleneck: bool, width: int = 64, groups: int = 1) -> Tensor:
    """Returns the maps of the last of four stages, 7×7 at 224 px.

    Args:
        x: (n, h, w, 3).
        blocks: their number in each stage.
        bottleneck: the kind of the blocks.
        width: of the 3×3 in the first stage; each stage doubles it.
        groups: of that 3×3.
    """
    x = convolution(x, 64, 7, "conv1", stride=2, padding=3)
    x = max_pool(relu(norm(x, "bn1"), "relu"), 3, 2, "maxpool", padding=1)
    for stage, count in enumerate(blocks):
        for number in range(count):
            stride = 2 if stage and not number else 1
            name = f"layer{stage + 1}.{number}"
            block = _bottleneck_block if bottleneck else _basic_block
            residual = block(x, 64 * 2**stage, width * 2**stage, stride, groups, name)
            if residual.shape[1:] != x.shape[1:]:
                x = convolution(x, residual.shape[-1], 1, f"{name}.downsample.0", stride)
                x = norm(x, f"{name}.downsample.1")
            x = layers.Add(name=f"{name}.sum")([residual, x])
            x = relu(x, name if number + 1 < count else f"layer{stage + 1}")
    return x


def resnet_top(maps: Tensor, classes: int) -> Tensor:
    """The mean of each map, then one layer."""
    return logits(pooled(maps), classes, "fc")


def _basic_block(x: Tensor, planes: int, width: int, stride: int, groups: int, name: str) -> Tensor:
    x = convolution(x, planes, 3, f"{name}.conv1", stride, 1)
    x = relu(norm(x, f"{name}.bn1"), f"{name}.relu1")
    return norm(convolution(x, planes, 3, f"{name}.conv2", padding=1), f"{name}.bn2")


def _bottleneck_block(x: Tensor, planes: int, width: int, stride: int, groups: int, name: str) -> Tensor:
    x = relu(norm(convolution(x, width, 1, f"{name}.conv1"), f"{name}.bn1"), f"{name}.relu1")
    x = convolution(x, width, 3, f"{name}.conv2", stride, 1, groups)
    x = relu(norm(x, f"{name}.bn2"), f"{name}.relu2")
    return norm(convolution(x, EXPANSION * planes, 1, f"{name}.conv3"), f"{name}.bn3")
