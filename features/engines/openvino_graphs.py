"""Networks as OpenVINO's converter gives them, changed to run quicker and, in bfloat16, more exactly.

**Late transposition.** Keras holds images as (n, height, width, 3), OpenVINO's convolutions are described
as (n, 3, height, width) and computed in the order that Keras has. The converter transposes the pixels first
and scales them then, which moves them about in memory three times; the other way round not once. Inception v3
at 299 px on one core: 0.3 instead of 2.1 ms an image, of 20; the bottlenecks are the same, bit for bit.

**Networks of depthwise convolutions in bfloat16**, which keeps 8 bits. A channel of those has nine weights
only and inputs that are all positive, and MobileNet's first ones look for edges: from a white wall they take
what their bias then takes away again. So what is lost in rounding stands out in what is left. MobileNet's
bottlenecks of 2,936 grocery photos, distance to those in float32 as a share of their length, of the worst:

    as OpenVINO rounds by itself                                           0.038
    weights of each channel rounded to keep their sum, biases in float32   0.024
    and the first depthwise convolution told -3 to 3 instead of 0 to 6     0.013

Inception v3, which has none: 0.004 as it is.
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
    """Changes how a network with depthwise convolutions rounds; nothing where it has none."""
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


def centre(depthwise: Any) -> None:
    """Tells a convolution its inputs less half of their range, [0, 6] as [-3, 3], and adds what that takes.

    bfloat16 is off by up to 2⁻⁶ at 5, by up to 2⁻⁷ at 2. But for the rounding the numbers are the same: with
    weights w and inputs x, Σ w·x = Σ w·(x - 3) + 3·Σ w, and beyond the borders of the image stands -3, not 0.
    Nothing happens to a convolution without such a range (ReLU6) before it.
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
    taken = opset13.constant(half * weights.sum(axis=(2, 3, 4)).reshape(1, -1, 1, 1))
    given = opset13.add(convolved, taken)
    for reader in readers:
        reader.replace_source_output(given.output(0))


def _is_relu6(operation: Any) -> bool:
    """Whether its one reader is told numbers from 0 to a limit."""
    return (
        operation.get_type_name() == "Clamp"
        and operation.get_attributes()["min"] == 0
        and _only_consumer(operation.output(0)) is not None
    )


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
