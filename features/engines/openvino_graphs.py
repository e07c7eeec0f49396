"""Networks as OpenVINO's converter gives them, changed to run quicker and, in bfloat16, more exactly.

**Late transposition.** Keras holds images as (n, height, width, 3), OpenVINO's convolutions are described
as (n, 3, height, width) and computed in the order that Keras has. The converter transposes the pixels first
and scales them then, which moves them in memory three times; in the other order not once. Inception v3
at 299 px on one core: 0.3 instead of 2.1 ms an image, of 20; the bottlenecks are the same, bit for bit.

**Networks of depthwise convolutions in bfloat16**, which keeps 8 bits. A channel of those has nine weights
only and inputs that are all positive, and MobileNet's first ones detect edges: on a white wall they sum to
a large number that their bias then cancels. So the rounding error is large beside what is left. MobileNet's
bottlenecks of 2,936 grocery photos, distance to those in float32 as a share of their length, of the worst:

    as OpenVINO rounds by itself                                           0.038
    weights of each channel rounded to keep their sum, biases in float32   0.024
    and inputs of the first depthwise convolution -3 to 3, not 0 to 6      0.013

Inception v3, which has none: 0.004 as it is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino

CONVOLUTIONS = ("Convolution", "GroupConvolution")
DEPTHWISE = "GroupConvolution"
BY_ELEMENT = ("Add", "Multiply", "Subtract")


def transpose_late(network: "openvino.Model") -> None:
    """Moves a transposition of the pixels behind their scaling; no change where it does not come first."""
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
        operation = getattr(opset13, following.get_type_name().lower())
        pixels, last = operation(pixels, before).output(0), following
    readers = last.output(0).get_target_inputs()
    late = opset13.transpose(pixels, opset13.constant(order))
    for reader in readers:
        reader.replace_source_output(late.output(0))


def _only_consumer(output: "openvino.Output") -> "openvino.Node | None":
    """Returns the only operation that reads an output; None where there are several."""
    readers = list(output.get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def ready_for_bfloat16(network: "openvino.Model") -> None:
    """Changes how a network with depthwise convolutions rounds; no change without them."""
    operations = network.get_ordered_ops()
    depthwise = [one for one in operations if one.get_type_name() == DEPTHWISE]
    if not depthwise:
        return
    for one in operations:
        if one.get_type_name() in CONVOLUTIONS:
            _replace(one, 1, _rounded)
    centre(depthwise[0])
    for one in network.get_ordered_ops():
        if one.get_type_name() == "Add":
            _add_in_float32(one)


def centre(depthwise: "openvino.Node") -> None:
    """Shifts a convolution's inputs by half of their range, [0, 6] to [-3, 3], and adds the difference.

    bfloat16 is off by up to 2⁻⁶ at 5, by up to 2⁻⁷ at 2. Except for rounding the result is the same: with
    weights w and inputs x, Σ w·x = Σ w·(x - 3) + 3·Σ w, and the padding around the image is -3, not 0.
    A convolution without such a range (ReLU6) before it stays as it is.
    """
    from openvino import opset13

    clamp, readers = depthwise.input_value(0).get_node(), depthwise.output(0).get_target_inputs()
    if not _is_relu6(clamp):
        return
    half = np.float32(clamp.get_attributes()["max"] / 2)
    weights, how = depthwise.input_value(1).get_node().get_data(), depthwise.get_attributes()
    lower = opset13.subtract(clamp.input_value(0), opset13.constant(half))
    centred = opset13.clamp(lower, -float(half), float(half))
    padding = [[0, 0, *how[side]] for side in ("pads_begin", "pads_end")]
    padded = opset13.pad(centred, *padding, "constant", opset13.constant(-half))
    convolved = opset13.group_convolution(
        padded, depthwise.input_value(1), how["strides"], [0, 0], [0, 0], how["dilations"]
    )
    difference = opset13.constant(half * weights.sum(axis=(2, 3, 4)).reshape(1, -1, 1, 1))
    result = opset13.add(convolved, difference)
    for reader in readers:
        reader.replace_source_output(result.output(0))


def _is_relu6(operation: "openvino.Node") -> bool:
    """Whether it clamps from 0 to a limit, and one operation alone reads it."""
    return (
        operation.get_type_name() == "Clamp"
        and operation.get_attributes()["min"] == 0
        and _only_consumer(operation.output(0)) is not None
    )


def sum_keeping(weights: np.ndarray) -> np.ndarray:
    """Rounds weights to bfloat16, the largest first, and adds each rounding error to the next weight.

    Args:
        weights: (channels, n) float32.

    Returns:
        (channels, n) float32 that bfloat16 represents; sums change by the rounding of the last weight alone.
    """
    order = np.argsort(-np.abs(weights), axis=1)
    rounded = np.empty_like(weights)
    left = np.zeros((len(weights), 1), np.float32)
    for index in order.T[:, :, None]:
        exact = np.take_along_axis(weights, index, 1) + left
        nearest = to_bfloat16(exact)
        np.put_along_axis(rounded, index, nearest, 1)
        left = exact - nearest
    return rounded


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Returns the nearest numbers that bfloat16 represents, as float32; ties go to the even one."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _rounded(weights: np.ndarray) -> np.ndarray:
    return sum_keeping(weights.reshape(len(weights), -1)).reshape(weights.shape)


def _replace(operation: "openvino.Node", number: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes the constant that is this input of an operation."""
    from openvino import opset13

    constant = operation.input_value(number).get_node()
    operation.input(number).replace_source_output(opset13.constant(change(constant.get_data())).output(0))


def _add_in_float32(addition: "openvino.Node") -> None:
    """Prevents OpenVINO from fusing a bias into a convolution, where it would be rounded.

    A clamp between the two that changes no number does that: the addition then runs on the convolution's
    sums, which are float32.
    """
    from openvino import opset13

    for number in (0, 1):
        before = addition.input_value(number)
        if before.get_node().get_type_name() in CONVOLUTIONS:
            largest = float(np.finfo(np.float32).max)
            addition.input(number).replace_source_output(opset13.clamp(before, -largest, largest).output(0))
