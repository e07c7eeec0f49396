"""The engine OpenVINO, for CPUs, in fp32, bf16 or int8."""

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.engines.backbones import Backbone, KerasBackbone, OnnxBackbone, require_keras
from features.engines.engine import images_of_a_request, require_package, round_into
from features.engines.kept_networks import keep, read_kept
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

    def __init__(self, network: "openvino.Model", width: int, batch: int, precision: str) -> None:
        """Compiles a network for requests of a fixed size, whose bottlenecks have `width` numbers."""
        import openvino

        self.name = f"openvino {precision}"
        self._request, self.size = network.input(0).shape[:2]
        self.batch, self.width = batch, width
        _require_bottlenecks(network, (self._request, width))
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
    backbone: Backbone,
    batch: int,
    precision: str,
    calibration: Int8Calibration | None,
    kept: AnyPath | None = None,
) -> OpenVino:
    """Converts the backbone, or opens its kept or its quantised network.

    Raises:
        ShelfmarkError: a package is missing, or int8 has no images to calibrate with.
    """
    precision = precision_here(precision)
    if precision == "int8":
        return OpenVino(_quantised(backbone, batch, calibration), backbone.width, batch, precision)
    if kept is not None and isinstance(backbone, KerasBackbone):
        return load_openvinos(lambda: backbone, backbone.width, [batch], precision, kept)[batch]
    network = _rounding_for(to_openvino(backbone, _request(backbone, batch)), precision)
    return OpenVino(network, backbone.width, batch, precision)


def load_openvinos(
    load: Callable[[], Backbone], width: int, batches: Sequence[int], precision: str, kept: AnyPath
) -> dict[int, OpenVino]:
    """Opens the kept network for several sizes of batches, or converts the backbone and keeps its network.

    Args:
        load: loads the backbone; called when its network is not kept.
        width: of its bottlenecks.
        batches: sizes, images.
        precision: fp32, bf16 or auto.
        kept: directory of its bottlenecks, where its network is kept.

    Returns:
        An engine for each size.

    Raises:
        ShelfmarkError: a package is missing, or the backbone cannot be loaded.
    """
    precision = precision_here(precision)
    network = read_kept(kept, precision)
    if network is not None:
        with contextlib.suppress(RuntimeError, ShelfmarkError):  # of another width, for instance
            return _for_batches(network, width, batches, precision)
        log.warning("engine: %s: the kept network does not fit; it is converted again", kept)
    backbone = load()
    network = _rounding_for(to_openvino(backbone, None), precision)
    try:
        engines = _for_batches(network, width, batches, precision)
    except (RuntimeError, ShelfmarkError):  # its operations know the number of images
        networks = {batch: to_openvino(backbone, _request(backbone, batch)) for batch in batches}
        return {
            batch: OpenVino(_rounding_for(one, precision), width, batch, precision)
            for batch, one in networks.items()
        }
    keep(network, kept, precision)
    return engines


def _for_batches(
    network: "openvino.Model", width: int, batches: Sequence[int], precision: str
) -> dict[int, OpenVino]:
    """Engines of a network that takes any number of images."""
    engines = {}
    for batch in batches:
        own = network.clone()
        own.reshape([images_of_a_request(batch, one=False), *own.input(0).partial_shape[1:]])
        engines[batch] = OpenVino(own, width, batch, precision)
    return engines


def precision_here(precision: str) -> str:
    """Returns the precision in which this processor is to compute: `auto` is bf16 where it can, else fp32.

    Raises:
        ShelfmarkError: OpenVINO is missing, or the processor cannot compute in this precision.
    """
    require_package("openvino", "openvino")
    import openvino

    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        return "bf16" if "BF16" in can else "fp32"
    if precision == "bf16" and "BF16" not in can:
        raise ShelfmarkError(
            "precision bf16: this processor has neither avx512_bf16 nor amx_bf16; expected one of them; "
            "give extract.precision=fp32"
        )
    return precision


def _rounding_for(network: "openvino.Model", precision: str) -> "openvino.Model":
    """Returns the network, changed where bf16 rounds better so."""
    if precision == "bf16":
        ready_for_bfloat16(network)
    return network


def to_openvino(backbone: Backbone, request: int | None) -> "openvino.Model":
    """Returns the network, preprocessing included, for `request` uint8 images, or for any number of them."""
    network = as_converted(backbone, request)
    transpose_late(network)
    return network


def as_converted(backbone: Backbone, request: int | None) -> "openvino.Model":
    """Returns the network as OpenVINO's converter gives it.

    Its output is selected by name: what TensorFlow keeps for the gradients of swish (IdentityN) would become
    outputs, too, 49 of EfficientNet B0.
    """
    import openvino

    size = backbone.image_size
    if isinstance(backbone, OnnxBackbone):
        return _read_onnx(backbone, (-1 if request is None else request, size, size, 3))

    import tensorflow as tf

    model = require_keras(backbone, "with engine openvino").model

    def network(pixels: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(pixels, tf.float32), training=False)

    pixels = tf.TensorSpec((request, size, size, 3), tf.uint8)
    function = tf.function(network, input_signature=[pixels], autograph=False)
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
