"""DenseNet (Huang et al. 2016): in a dense block each layer reads the maps of all layers before it.

Keras' own have another epsilon (1.001·10⁻⁵ instead of 10⁻⁵), which shows where a variance is small.
"""

from keras import layers

from features.networks.layers import Tensor, convolution, logits, max_pool, norm, pooled, relu

GROWTH = 32  # maps that each layer adds


def densenet(x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Returns the maps of the last dense block, 7×7 at 224 px.

    Args:
        x: (n, h, w, 3).
        blocks: the number of layers in each dense block.
    """
    x = convolution(x, 64, 7, "features.conv0", stride=2, padding=3)
    x = max_pool(relu(norm(x, "features.norm0"), "relu0"), 3, 2, "pool0", padding=1)
    for number, count in enumerate(blocks, start=1):
        for layer in range(1, count + 1):
            name = f"features.denseblock{number}.denselayer{layer}"
            added = relu(norm(x, f"{name}.norm1"), f"{name}.relu1")
            added = convolution(added, 4 * GROWTH, 1, f"{name}.conv1")
            added = relu(norm(added, f"{name}.norm2"), f"{name}.relu2")
            added = convolution(added, GROWTH, 3, f"{name}.conv2", padding=1)
            whole = f"denseblock{number}" if layer == count else f"denseblock{number}.{layer}"
            x = layers.Concatenate(name=whole)([x, added])
        if number < len(blocks):
            name = f"features.transition{number}"
            x = relu(norm(x, f"{name}.norm"), f"{name}.relu")
            x = convolution(x, x.shape[-1] // 2, 1, f"{name}.conv")
            x = layers.AveragePooling2D(2, 2, name=f"transition{number}")(x)
    return relu(norm(x, "features.norm5"), "norm5")


def densenet_top(maps: Tensor, classes: int) -> Tensor:
    """The mean of each map, then one layer."""
    return logits(pooled(maps), classes, "classifier")
