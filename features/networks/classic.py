"""LeNet-5, the network for handwriting, AlexNet, network in network, VGG-19: layers one after the other.

Outputs have the names of the papers: conv1, …, fc7. Inputs and outputs are those of layers.py; a network ends
with its last map, and its top makes (n, classes) logits of that.
"""

from keras import layers

from features.networks.layers import (
    Tensor,
    ceil_max_pool,
    convolution,
    dense,
    dropout,
    flattened,
    logits,
    max_pool,
    norm,
    relu,
)


def lenet5(x: Tensor) -> Tensor:
    """Returns 5×5 maps of 16 at 32 px (LeCun et al., 1998; with ReLU and maxima as in EE-559)."""
    x = relu(convolution(x, 6, 5, "features.0", bias=True), "conv1")
    x = max_pool(x, 2, 2, "pool1")
    x = relu(convolution(x, 16, 5, "features.3", bias=True), "conv2")
    return max_pool(x, 2, 2, "pool2")


def lenet5_top(maps: Tensor, classes: int) -> Tensor:
    """Two hidden layers."""
    x = dense(flattened(maps, 5), 120, "classifier.0", "fc3")
    x = dense(x, 84, "classifier.2", "fc4")
    return logits(x, classes, "classifier.4")


def handwriting(x: Tensor) -> Tensor:
    """Returns 4×4 maps of 128 at 28 px (Čugurović, Nikolić, Novaković: three blocks of two convolutions).

    Each convolution is followed by batch normalization and ReLU. The widths are ours (32, 64, 128: the paper
    has "over 350,000" parameters, this 422,686 for its 62 characters). Pooling pads to the same size, rounded
    up, so that 28 px become 14, 7 and 4.
    """
    for block, width in enumerate((32, 64, 128), start=1):
        for number in (1, 2):
            x = convolution(x, width, 3, f"block{block}.conv{number}", padding=1)
            x = relu(norm(x, f"block{block}.norm{number}"), f"conv{block}_{number}")
        x = ceil_max_pool(x, 2, 2, f"pool{block}")
    return x


def handwriting_top(maps: Tensor, classes: int) -> Tensor:
    """A dense block with dropout; `fc4` is the vector of the writers' histories.

    Batch normalization is in the dense block, too: without it, four epochs on 2,232 drawn pictures of 62
    characters gave 8 % in training (dropout 0.5 of 64 numbers), with it 65 %.
    """
    x = layers.Dense(64, use_bias=False, name="classifier.0")(flattened(maps, 4))
    x = relu(norm(x, "classifier.norm"), "fc4")
    return logits(dropout(x, 0.5, "dropout4"), classes, "classifier.1")


def alexnet(x: Tensor) -> Tensor:
    """Returns 6×6 maps of 256 at 224 px (Krizhevsky 2014, as in torchvision: one column, no LRN)."""
    x = relu(convolution(x, 64, 11, "features.0", stride=4, padding=2, bias=True), "conv1")
    x = max_pool(x, 3, 2, "pool1")
    x = relu(convolution(x, 192, 5, "features.3", padding=2, bias=True), "conv2")
    x = max_pool(x, 3, 2, "pool2")
    x = relu(convolution(x, 384, 3, "features.6", padding=1, bias=True), "conv3")
    x = relu(convolution(x, 256, 3, "features.8", padding=1, bias=True), "conv4")
    x = relu(convolution(x, 256, 3, "features.10", padding=1, bias=True), "conv5")
    return max_pool(x, 3, 2, "pool5")


def alexnet_top(maps: Tensor, classes: int) -> Tensor:
    """Two hidden layers over 6×6 cells."""
    x = dense(flattened(maps, 6, 0.5), 4096, "classifier.1", "fc6")
    x = dense(dropout(x, 0.5, "dropout6"), 4096, "classifier.4", "fc7")
    return logits(x, classes, "classifier.6")


def nin(x: Tensor) -> Tensor:
    """Returns 6×6 maps of 1,024 at 224 px (Lin, Chen, Yan 2013; widths of its ImageNet model).

    After each convolution two of 1×1: a small network that slides over the map.
    """
    stages = ((96, 11, 4, 0), (256, 5, 1, 2), (384, 3, 1, 1), (1024, 3, 1, 1))
    for number, (width, size, stride, padding) in enumerate(stages, start=1):
        if number > 1:
            x = ceil_max_pool(x, 3, 2, f"pool{number - 1}")
        x = relu(convolution(x, width, size, f"stage{number}.0", stride, padding, bias=True), f"conv{number}")
        x = relu(convolution(x, width, 1, f"stage{number}.1", bias=True), f"cccp{2 * number - 1}")
        if number < len(stages):  # the last one is of the classes
            x = relu(convolution(x, width, 1, f"stage{number}.2", bias=True), f"cccp{2 * number}")
    return x


def nin_top(maps: Tensor, classes: int) -> Tensor:
    """A map for each class; its mean is the class's logit."""
    x = convolution(dropout(maps, 0.5, "dropout"), classes, 1, "stage4.2", bias=True)
    return layers.GlobalAveragePooling2D(name="classes")(relu(x, "cccp8"))


def vgg19(x: Tensor) -> Tensor:
    """Returns 7×7 maps of 512 at 224 px (Simonyan, Zisserman 2014)."""
    position = 0  # in torchvision's list of convolutions, ReLUs and poolings
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), start=1):
        for number in range(1, count + 1):
            x = convolution(x, width, 3, f"features.{position}", padding=1, bias=True)
            x = relu(x, f"conv{stage}_{number}")
            position += 2
        x = max_pool(x, 2, 2, f"pool{stage}")
        position += 1
    return x


def vgg19_top(maps: Tensor, classes: int) -> Tensor:
    """Two hidden layers over 7×7 cells."""
    x = dense(flattened(maps, 7), 4096, "classifier.0", "fc6")
    x = dense(dropout(x, 0.5, "dropout6"), 4096, "classifier.3", "fc7")
    return logits(dropout(x, 0.5, "dropout7"), classes, "classifier.6")
