"""The engine OpenVINO, for CPUs, in fp32, bf16 or int8."""

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.engines.backbones import Backbone, OnnxBackbone, require_keras
from features.engines.engine import images_of_a_request, require_package, round_into
from features.engines.onnx_encoder import INPUT
from features.engines.onnx_file import first_line
from features.engines.openvino_graphs import ready_for_bfloat16, transpose_late
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import Piece
from features.storage.paths import AnyPath, write_whole

if TYPE_CHECKING:
    import openvino

CALIBRATION = 300  # images whose ranges int8 is calibrated to, as NNCF advises

log = logging.getLogger("shelfmark")

# OpenVINO's converter and NNCF report each use to Intel, from a fork of this process, whose memory then
# counts twice; not where this package cannot be imported. The other switches are a file in the user's home,
# CI=true, which other programs read, and NNCF_CI=1, which stops NNCF alone.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Int8Calibration:
    """What int8 is calibrated with, once for a fingerprint: later weeks run the same network."""

    kept: AnyPath  # directory of the quantised network, int8.xml and int8.bin
    pieces: Callable[[int], Iterator[Piece]]  # this many images of the catalogue, or all where it has fewer


class OpenVino:
    """The backbone on a CPU; a batch is split into requests, of which several run at once."""

    def __init__(self, network: "openvino.Model", backbone: Backbone, batch: int, precision: str) -> None:
        import openvino

        self.name = f"openvino {precision}"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._request = network.input(0).shape[0]
        _require_bottlenecks(network, (self._request, self.width))
        several = batch > self._request
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT" if several else "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        compiled = openvino.Core().compile_model(network, "CPU", hints)
        # twice as many as run at once: a core that has finished finds the next one waiting
        jobs = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._queue = openvino.AsyncInferQueue(compiled, jobs)
        self._queue.set_callback(self._write)

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        failed: list[Exception] = []
        try:
            for number, pixels in enumerate(batches):
                for start in range(0, self.batch, self._request):
                    out = rows[number * self.batch + start :][: self._request]
                    self._queue.start_async([pixels[start : start + self._request]], (out, failed))
        finally:
            self._queue.wait_all()
        if failed:
            raise failed[0]

    @staticmethod
    def _write(request: "openvino.InferRequest", state: tuple[np.ndarray, list[Exception]]) -> None:
        """Called in OpenVINO's threads: two exceptions raised here would end the process (SIGABRT)."""
        out, failed = state
        try:
            round_into(out, request.get_output_tensor().data)
        except Exception as error:
            failed.append(error)


def _require_bottlenecks(network: "openvino.Model", shape: tuple[int, int]) -> None:
    """Raises a ShelfmarkError when a network has other outputs than bottlenecks of this shape."""
    found = [str(output.partial_shape) for output in network.outputs]
    if found != ["[{},{}]".format(*shape)]:
        raise ShelfmarkError(
            f"engine openvino: the network's outputs have the shapes {', '.join(found)}; expected one of "
            f"{shape}; give --engine tensorflow"
        )


def _request(backbone: Backbone, batch: int) -> int:
    """Returns the images in a request: batches are whole requests; some encoders take one image at a time."""
    one = False
    if isinstance(backbone, OnnxBackbone):
        import openvino

        one = openvino.Core().read_model(backbone.onnx).input(0).partial_shape[0].is_static
    return images_of_a_request(batch, one)


def load_openvino(
    backbone: Backbone, batch: int, precision: str, calibration: Int8Calibration | None
) -> OpenVino:
    """Converts the backbone, or opens its quantised network.

    Raises:
        ShelfmarkError: a package is missing, or int8 has no images to calibrate with.
    """
    require_package("openvino", "openvino")
    import openvino

    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        precision = "bf16" if "BF16" in can else "fp32"
    if precision == "bf16" and "BF16" not in can:
        raise ShelfmarkError(
            "precision bf16: this processor has neither avx512_bf16 nor amx_bf16; expected one of them; "
            "give extract.precision=fp32"
        )
    if precision == "int8":
        network = _quantised(backbone, batch, calibration)
    else:
        network = to_openvino(backbone, _request(backbone, batch))
    if precision == "bf16":
        ready_for_bfloat16(network)
    return OpenVino(network, backbone, batch, precision)


def to_openvino(backbone: Backbone, request: int) -> "openvino.Model":
    """Returns the network, preprocessing included, for uint8 images of a fixed shape."""
    network = as_converted(backbone, request)
    transpose_late(network)
    return network


def as_converted(backbone: Backbone, request: int) -> "openvino.Model":
    """Returns the network as OpenVINO's converter gives it.

    Its output is selected by name: what TensorFlow keeps for the gradients of swish (IdentityN) would become
    outputs, too, 49 of EfficientNet B0.
    """
    import openvino

    shape = (request, backbone.image_size, backbone.image_size, 3)
    if isinstance(backbone, OnnxBackbone):
        return _read_onnx(backbone, shape)

    import tensorflow as tf

    model = require_keras(backbone, "with engine openvino").model

    def network(pixels: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(pixels, tf.float32), training=False)

    function = tf.function(network, input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)
    traced = function.get_concrete_function()
    return openvino.convert_model(traced, output=[tensor.name for tensor in traced.outputs])


def _read_onnx(backbone: OnnxBackbone, shape: tuple[int, int, int, int]) -> "openvino.Model":
    """Returns an encoder from an ONNX file for images of a fixed shape."""
    import openvino

    try:
        pixels = (INPUT, openvino.PartialShape(shape))
        return openvino.convert_model(io.BytesIO(backbone.onnx), input=[pixels])
    except Exception as error:  # OpenVINO's own, and RuntimeError: an operator that it lacks, for instance
        raise ShelfmarkError(
            f"engine openvino: cannot read backbone {backbone.name} ({first_line(error)}); expected "
            "operators that OpenVINO has; give --engine onnxruntime"
        ) from error


def _quantised(backbone: Backbone, batch: int, calibration: Int8Calibration | None) -> "openvino.Model":
    """Returns the network with int8 convolutions: the saved one, else one calibrated now, and saved."""
    import openvino

    if calibration is None:
        raise ShelfmarkError(
            "precision int8: no images to calibrate with; expected an extraction from records; "
            "give another extract.precision"
        )
    described, weights = calibration.kept / "int8.xml", calibration.kept / "int8.bin"
    if not described.is_file():
        require_package("nncf", "openvino")
        pixels = list(read_pixels(calibration.pieces(CALIBRATION), backbone.image_size, batch=1))
        quantised = _calibrated(to_openvino(backbone, request=1), pixels)
        with tempfile.TemporaryDirectory() as folder:
            openvino.serialize(quantised, Path(folder, described.name), Path(folder, weights.name))
            for file in (weights, described):  # the one that marks it complete is written last
                write_whole(file, Path(folder, file.name).read_bytes())
    network = openvino.Core().read_model(described.read_bytes(), openvino.Tensor(_bytes(weights)))
    try:
        network.reshape([_request(backbone, batch), backbone.image_size, backbone.image_size, 3])
    except RuntimeError as error:  # EfficientNet's squeeze-and-excitation has the batch in its constants
        raise ShelfmarkError(
            f"precision int8: OpenVINO cannot batch {backbone.name} once it is quantised; expected a network "
            "that takes batches of any size; give extract.precision=auto"
        ) from error
    return network


def _bytes(file: AnyPath) -> np.ndarray:
    return np.frombuffer(file.read_bytes(), np.uint8)


def _calibrated(network: "openvino.Model", pixels: list[np.ndarray]) -> "openvino.Model":
    """Quantises a network (NNCF, post-training) with the ranges that these images give."""
    import nncf

    log.info("engine: int8 is calibrated with %d images, once", len(pixels))
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars, where our commands print results
        return nncf.quantize(network, nncf.Dataset(pixels), subset_size=len(pixels))
