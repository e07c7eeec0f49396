"""How a frozen backbone runs: TensorFlow, OpenVINO on CPUs, JAX on GPUs; pixels in, bottlenecks out.

    pixels (batch, size, size, 3) uint8 ─► engine ─► (batch, d) float16

An engine is not part of the fingerprint: before rounding to float16, fp32 engines agree to 1e-4 of a
bottleneck's length (measured: 2e-6), bf16 to 2e-2, so a model that was trained on one engine's bottlenecks
decides on another's. Which one ran is kept with each shard of the store.

Inception v3 at 299 px on two cores with AMX, images a second: TensorFlow fp32 22, OpenVINO fp32 28, bf16 160,
int8 270.
"""

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from features.engines.backbones import Backbone
from features.engines.openvino_graphs import ready_for_bfloat16, transpose_late
from features.engines.pixels import read_pixels
from features.errors import ShelfmarkError
from features.records import Piece
from features.storage.paths import Place, write_whole

if TYPE_CHECKING:
    import keras
    import openvino

# Images in a request to OpenVINO: 8 give 163 images a second, 1 gives 131, 32 give 145 in twice the memory.
REQUEST = 8
CALIBRATION = 300  # images whose ranges int8 is fitted to, as NNCF advises

log = logging.getLogger("shelfmark")

# OpenVINO's converter and NNCF report each use to their makers, from a fork of this process, which for that
# moment holds its memory twice. Without this package they do not; NNCF_CI=1 would stop NNCF alone.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


class Engine(Protocol):
    """Runs one backbone on batches of one size, so that an image has the same bottleneck in any company."""

    name: str  # what it is, kept with each shard: "openvino bf16"
    batch: int  # images
    size: int  # px, height and width
    width: int  # d, numbers in a bottleneck

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """Writes bottlenecks.

        Args:
            batches: (batch, size, size, 3) uint8 each.
            rows: (n · batch, d) float16, filled from the top; float32: not rounded.
        """
        ...


@dataclass(frozen=True)
class Int8Calibration:
    """What int8 is fitted to, once for a fingerprint: later weeks run the same network."""

    kept: Place  # directory of the quantised network, int8.xml and int8.bin
    pieces: Callable[[int], Iterator[Piece]]  # so many images of the catalogue, or all where it has fewer


def extract(
    engine: Engine, pieces: Iterable[Piece], count: int, flip: bool = False, dtype: type = np.float16
) -> np.ndarray:
    """Bottlenecks of images, in order.

    Args:
        engine: of a backbone.
        pieces: of strict JPEGs.
        count: how many images they hold.
        flip: of the images mirrored, left to right: a second view.
        dtype: float16, as they are stored, or float32, as they are computed.

    Returns:
        (count, d) of that type.
    """
    rows: np.ndarray = np.empty((-(-count // engine.batch) * engine.batch, engine.width), dtype)
    engine.fill(read_pixels(_counted(pieces, count), engine.size, engine.batch, flip), rows)
    return rows[:count]


def _counted(pieces: Iterable[Piece], count: int) -> Iterator[Piece]:
    seen = 0
    for piece in pieces:
        seen += len(piece.starts)
        if seen > count:
            break
        yield piece
    if seen != count:
        raise ValueError(f"expected {count} images, found {seen}")


# The choice


def use_engine(engine: str) -> None:
    """Sets Keras' backend for an engine; before Keras is imported, which reads it once.

    Raises:
        ShelfmarkError: JAX is asked for and not installed.
    """
    if engine == "jax":
        _require("jax", engine)
        os.environ["KERAS_BACKEND"] = "jax"


def choose_engine(
    backbone: Backbone,
    batch: int,
    engine: str = "auto",
    precision: str = "auto",
    calibration: Int8Calibration | None = None,
) -> Engine:
    """The engine that was asked for, or the fastest that is here; a line in the log says which and why.

    Args:
        backbone: frozen.
        batch: images; the shape is fixed.
        engine: auto, tensorflow, openvino or jax.
        precision: fp32, bf16, int8 or auto: bf16 where the hardware computes in it, else fp32.
        calibration: for int8.

    Raises:
        ShelfmarkError: it was asked for and cannot run here.
    """
    name, why = (engine, "as asked for") if engine != "auto" else _best()
    if precision == "int8" and name != "openvino":
        raise ShelfmarkError(
            f"precision int8: {name} has none; expected OpenVINO; give --engine openvino, or another "
            "extract.precision"
        )
    _require_backend("jax" if name == "jax" else "tensorflow", name)
    made: Engine
    if name == "openvino":
        made = _openvino(backbone, batch, precision, calibration)
    elif name == "jax":
        made = Jax(backbone, batch, precision)
    else:
        made = TensorFlow(backbone, batch, precision)
    log.info("engine: %s: %s", made.name, why)
    return made


def _best() -> tuple[str, str]:
    """The engine for this machine, and why."""
    import keras

    if keras.backend.backend() == "jax":
        return "jax", "Keras runs on JAX"
    if _gpu():
        return "tensorflow", "TensorFlow sees a GPU"
    if importlib.util.find_spec("openvino"):
        return "openvino", "no GPU, and OpenVINO is installed"
    return "tensorflow", "no GPU and no OpenVINO; `pip install 'shelfmark[openvino]'` is quicker on CPUs"


def _gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _require(package: str, engine: str, extra: str | None = None) -> None:
    if importlib.util.find_spec(package) is None:
        raise ShelfmarkError(
            f"engine {engine}: {package} is not installed; expected it beside shelfmark; "
            f"pip install 'shelfmark[{extra or package}]'"
        )


def _require_backend(wanted: str, engine: str) -> None:
    import keras

    if wanted == "jax":
        _require("jax", engine)
    if keras.backend.backend() != wanted:
        raise ShelfmarkError(
            f"engine {engine}: Keras runs on {keras.backend.backend()}; expected {wanted}, chosen before "
            f"Keras is imported; set KERAS_BACKEND={wanted} and start again"
        )


def _round_into(place: np.ndarray, bottlenecks: np.ndarray) -> None:
    """Float32 to float16; what is too large becomes infinite, which no shard takes, instead of a warning."""
    with np.errstate(over="ignore"):
        place[:] = bottlenecks


# Keras' own


class TensorFlow:
    """The backbone as Keras runs it."""

    def __init__(self, backbone: Backbone, batch: int, precision: str) -> None:
        precision = precision if precision != "auto" else "bf16" if _gpu() else "fp32"
        self.name = f"tensorflow {precision}"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._model = in_precision(backbone.model, precision)

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        for number, pixels in enumerate(batches):
            place = rows[number * self.batch : (number + 1) * self.batch]
            _round_into(place, self._model.predict_on_batch(pixels))


class Jax:
    """The backbone compiled by JAX; a batch is computed while the one before comes back."""

    def __init__(self, backbone: Backbone, batch: int, precision: str) -> None:
        import jax

        if importlib.util.find_spec("tensorflow"):
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")  # it decodes on the CPU, and would take the GPU's memory
        on_gpu = jax.default_backend() == "gpu"
        precision = precision if precision != "auto" else "bf16" if on_gpu else "fp32"
        self.name = f"jax {precision}"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._step = jitted(in_precision(backbone.model, precision))

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        ahead: list[tuple[int, Any]] = []
        for number, pixels in enumerate(batches):
            ahead.append((number * self.batch, self._step(pixels)))
            if len(ahead) > 1:
                self._write(rows, *ahead.pop(0))
        for at, bottlenecks in ahead:
            self._write(rows, at, bottlenecks)

    def _write(self, rows: np.ndarray, at: int, bottlenecks: Any) -> None:
        _round_into(rows[at : at + self.batch], np.asarray(bottlenecks))


def jitted(model: "keras.Model") -> Callable[[np.ndarray], Any]:
    """A Keras model on JAX, compiled: (n, size, size, 3) uint8 → (n, d) float32, not waited for."""
    import jax

    variables = [
        [variable.value for variable in kind]
        for kind in (model.trainable_variables, model.non_trainable_variables)
    ]

    def step(variables: Any, pixels: Any) -> Any:
        bottlenecks, _ = model.stateless_call(*variables, pixels.astype("float32"), training=False)
        return bottlenecks

    compiled = jax.jit(step)
    return lambda pixels: compiled(variables, pixels)


def in_precision(model: "keras.Model", precision: str) -> "keras.Model":
    """The model itself for fp32; for bf16 one that multiplies in bfloat16, and pools in float32.

    In a network with depthwise convolutions the other convolutions alone, nearly all of its multiplications,
    use bfloat16 (see openvino_graphs.py). MobileNet's worst of 2,936 grocery photos is then off by 1.1 % of
    its bottleneck's length instead of 4.6 %, and on two cores with AMX it is 1.4 times as fast.
    """
    import keras

    if precision == "fp32":
        return model

    exact: Any = (keras.layers.InputLayer, keras.layers.GlobalAveragePooling2D)
    depthwise = any(isinstance(layer, keras.layers.DepthwiseConv2D) for layer in model._flatten_layers())
    lower = keras.layers.Conv2D if depthwise else keras.layers.Layer

    def lowered(layer: Any) -> Any:
        told = layer.get_config()
        if isinstance(layer, lower) and not isinstance(layer, exact):
            told["dtype"] = "mixed_bfloat16"
        return type(layer).from_config(told)

    clone = keras.models.clone_model(model, clone_function=lowered, recursive=True)
    clone.set_weights(model.get_weights())
    return clone


# OpenVINO


class OpenVino:
    """The backbone on a CPU; batches go out as requests, of which as many run at once as is quickest."""

    def __init__(self, network: "openvino.Model", backbone: Backbone, batch: int, precision: str) -> None:
        import openvino

        self.name = f"openvino {precision}"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._request = _request(batch)
        _require_bottlenecks(network, (self._request, self.width))
        several = batch > self._request
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT" if several else "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        compiled = openvino.Core().compile_model(network, "CPU", hints)
        # twice as many as compute: a core that has finished finds the next one waiting
        jobs = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._queue = openvino.AsyncInferQueue(compiled, jobs)
        self._queue.set_callback(self._write)

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        failed: list[Exception] = []
        try:
            for number, pixels in enumerate(batches):
                for start in range(0, self.batch, self._request):
                    place = rows[number * self.batch + start :][: self._request]
                    self._queue.start_async([pixels[start : start + self._request]], (place, failed))
        finally:
            self._queue.wait_all()
        if failed:
            raise failed[0]

    @staticmethod
    def _write(request: Any, told: tuple[np.ndarray, list[Exception]]) -> None:
        """Called by OpenVINO's threads: two exceptions that leave it end the process (SIGABRT)."""
        place, failed = told
        try:
            _round_into(place, request.get_output_tensor().data)
        except Exception as error:
            failed.append(error)


def _require_bottlenecks(network: "openvino.Model", shape: tuple[int, int]) -> None:
    """Raises a ShelfmarkError when a network gives anything but bottlenecks of this shape."""
    found = [str(output.partial_shape) for output in network.outputs]
    if found != ["[{},{}]".format(*shape)]:
        raise ShelfmarkError(
            f"engine openvino: the network's outputs have the shapes {', '.join(found)}; expected one of "
            f"{shape}; give --engine tensorflow"
        )


def _request(batch: int) -> int:
    """Images in a request: batches are whole requests."""
    return REQUEST if batch % REQUEST == 0 else batch


def _openvino(
    backbone: Backbone, batch: int, precision: str, calibration: Int8Calibration | None
) -> OpenVino:
    """Converts the backbone, or opens its quantised network.

    Raises:
        ShelfmarkError: a package is missing, or int8 has nothing to be fitted to.
    """
    _require("openvino", "openvino")
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
        network = to_openvino(backbone, _request(batch))
    if precision == "bf16":
        ready_for_bfloat16(network)
    return OpenVino(network, backbone, batch, precision)


def to_openvino(backbone: Backbone, request: int) -> "openvino.Model":
    """The network, preprocessing included, for uint8 images of a fixed shape."""
    network = as_converted(backbone, request)
    transpose_late(network)
    return network


def as_converted(backbone: Backbone, request: int) -> "openvino.Model":
    """The network as OpenVINO's converter gives it.

    Its output is asked for by name: what TensorFlow keeps for the gradients of swish (IdentityN) would become
    outputs, too, 49 of EfficientNet B0.
    """
    import openvino
    import tensorflow as tf

    shape = (request, backbone.image_size, backbone.image_size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)
    def network(pixels: tf.Tensor) -> tf.Tensor:
        return backbone.model(tf.cast(pixels, tf.float32), training=False)

    traced = network.get_concrete_function()
    return openvino.convert_model(traced, output=[tensor.name for tensor in traced.outputs])


def _quantised(backbone: Backbone, batch: int, calibration: Int8Calibration | None) -> "openvino.Model":
    """The network with int8 convolutions: the kept one, else fitted to images of the catalogue, and kept."""
    import openvino

    if calibration is None:
        raise ShelfmarkError(
            "precision int8: no images to fit it to; expected an extraction from records; "
            "give another extract.precision"
        )
    described, weights = calibration.kept / "int8.xml", calibration.kept / "int8.bin"
    if not described.is_file():
        _require("nncf", "openvino")
        pixels = list(read_pixels(calibration.pieces(CALIBRATION), backbone.image_size, batch=1))
        fitted = _fitted(to_openvino(backbone, request=1), pixels)
        with tempfile.TemporaryDirectory() as folder:
            openvino.serialize(fitted, Path(folder, described.name), Path(folder, weights.name))
            for file in (weights, described):  # the one that is looked for is written last
                write_whole(file, Path(folder, file.name).read_bytes())
    network = openvino.Core().read_model(described.read_bytes(), openvino.Tensor(_bytes(weights)))
    try:
        network.reshape([_request(batch), backbone.image_size, backbone.image_size, 3])
    except RuntimeError as error:  # EfficientNet's squeeze-and-excitation has the batch in its constants
        raise ShelfmarkError(
            f"precision int8: OpenVINO cannot batch {backbone.name} once it is fitted; expected a network "
            "that takes batches of any size; give extract.precision=auto"
        ) from error
    return network


def _bytes(file: Place) -> np.ndarray:
    return np.frombuffer(file.read_bytes(), np.uint8)


def _fitted(network: "openvino.Model", pixels: list[np.ndarray]) -> "openvino.Model":
    """Post-training quantisation (NNCF) to the ranges that these images give."""
    import nncf

    log.info("engine: int8 is fitted to %d images, once", len(pixels))
    nncf.set_log_level(logging.ERROR)
    with _quiet():
        return nncf.quantize(network, nncf.Dataset(pixels), subset_size=len(pixels))


def _quiet() -> Any:
    """NNCF draws progress bars on stdout, where our commands print their results."""
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO())
