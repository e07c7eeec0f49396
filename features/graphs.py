"""Networks as OpenVINO's converter gives them, changed to run quicker and, in bfloat16, more exactly.

**Late transposition.** Keras holds images as (n, height, width, 3), OpenVINO's convolutions are described
as (n, 3, height, width) and computed in the order that Keras has. The converter transposes the pixels first
and scales them then, which moves them about in memory three times; the other way round not once. Inception v3
at 299 px on one core: 0.3 instead of 2.1 ms an image, of 20; the bottlenecks are the same, bit for bit.

**Depthwise convolutions in bfloat16**, which keeps 8 bits. A channel has nine weights only, and whatever
their rounding adds to their sum moves the whole channel, as its inputs are all positive. MobileNet's
bottlenecks of the grocery photos, distance to those in float32 as a share of their length, worst of 60:

    as OpenVINO rounds by itself                           0.031
    weights of each channel rounded to keep their sum      0.023
    and biases added in float32                            0.017

The first costs no time, the second 12 % of the images a second. Inception v3, which has none: 0.004 as it is.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import openvino

CONVOLUTIONS = ("Convolution", "GroupConvolution")
DEPTHWISE = "GroupConvolution"
BY_ELEMENT = ("Add", "Multiply", "Subtract")


def transpose_late(network: "openvino.Model") -> None:
    """Moves a transposition of the pixels behind their scaling; nothing where it does not come first."""
    from openvino import opset13

    converted = _only_consumer(network.input(0))
    transposition = _only_consumer(converted.output(0)) if converted else None
    if not transposition or transposition.get_type_name() != "Transpose":
        return
    order = transposition.input_value(1).get_node().get_data()
    pixels, last = transposition.input_value(0), transposition
    while (following := _only_consumer(last.output(0))) and following.get_type_name() in BY_ELEMENT:
        numbers = following.input_value(1).get_node()
        if numbers.get_type_name() != "Constant" or len(numbers.get_output_shape(0)) != len(order):
            break
        before = opset13.constant(numbers.get_data().transpose(np.argsort(order)))
        make = getattr(opset13, following.get_type_name().lower())
        pixels, last = make(pixels, before).output(0), following
    readers = last.output(0).get_target_inputs()
    late = opset13.transpose(pixels, opset13.constant(order))
    for reader in readers:
        reader.replace_source_output(late.output(0))


def _only_consumer(output: Any) -> Any:
    """The operation that alone reads an output, or None."""
    readers = list(output.get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def ready_for_bfloat16(network: "openvino.Model") -> None:
    """Changes the depthwise weights of a network, and how it adds its biases; nothing where it has none."""
    operations = network.get_ordered_ops()
    depthwise = [one for one in operations if one.get_type_name() == DEPTHWISE]
    for convolution in depthwise:
        _replace(convolution, 1, _rounded)
    if depthwise:
        for one in operations:
            if one.get_type_name() == "Add":
                _add_in_float32(one)


def sum_keeping(weights: np.ndarray) -> np.ndarray:
    """Weights rounded to bfloat16, the largest first, each after what rounding the ones before has left.

    Args:
        weights: (channels, n) float32.

    Returns:
        (channels, n) float32 that bfloat16 holds; the sums stay, but for the rounding of the last.
    """
    order = np.argsort(-np.abs(weights), axis=1)
    rounded = np.empty_like(weights)
    left = np.zeros((len(weights), 1), np.float32)
    for place in order.T[:, :, None]:
        wanted = np.take_along_axis(weights, place, 1) + left
        found = to_bfloat16(wanted)
        np.put_along_axis(rounded, place, found, 1)
        left = wanted - found
    return rounded


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The nearest numbers that bfloat16 holds, as float32; of two, the even one."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _rounded(weights: np.ndarray) -> np.ndarray:
    return sum_keeping(weights.reshape(len(weights), -1)).reshape(weights.shape)


def _replace(operation: Any, number: int, change: Any) -> None:
    """Changes the constant that an operation takes as this input."""
    from openvino import opset13

    constant = operation.input_value(number).get_node()
    operation.input(number).replace_source_output(opset13.constant(change(constant.get_data())).output(0))


def _add_in_float32(addition: Any) -> None:
    """Keeps OpenVINO from making a bias part of a convolution, where it is rounded.

    A clamp between the two that lets all numbers through does it: the addition is then done on the
    convolution's sums, which are float32.
    """
    from openvino import opset13

    for number in (0, 1):
        before = addition.input_value(number)
        if before.get_node().get_type_name() in CONVOLUTIONS:
            largest = float(np.finfo(np.float32).max)
            addition.input(number).replace_source_output(opset13.clamp(before, -largest, largest).output(0))
