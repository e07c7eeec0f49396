"""Which engine runs a frozen backbone here: the requested one, or the fastest."""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from features.engines.backbones import (
    Backbone,
    BackboneDescription,
    KerasBackbone,
    OnnxBackbone,
)
from features.engines.engine import Engine, require_package
from features.engines.jax import Jax
from features.engines.onnxruntime import OnnxRuntime
from features.engines.openvino import Int8Calibration, load_openvino, load_openvinos
from features.engines.tensorflow import TensorFlow, has_gpu, may_have_gpu
from features.errors import ShelfmarkError
from features.storage.paths import AnyPath
from features.views import View

log = logging.getLogger("shelfmark")


def use_engine(engine: str) -> None:
    """Sets Keras' backend for an engine; before Keras is imported, which reads it once.

    Raises:
        ShelfmarkError: JAX is requested and not installed.
    """
    if engine == "jax":
        require_package("jax", engine)
        os.environ["KERAS_BACKEND"] = "jax"


def choose_engine(
    backbone: Backbone,
    batch: int,
    engine: str = "auto",
    precision: str = "auto",
    calibration: Int8Calibration | None = None,
    kept: AnyPath | None = None,
) -> Engine:
    """Returns the requested engine, or the fastest available one; a line in the log says which and why.

    Args:
        backbone: frozen.
        batch: images; the shape is fixed.
        engine: auto, tensorflow, openvino, onnxruntime (FILE.onnx alone) or jax (not FILE.onnx).
        precision: fp32, bf16, int8 or auto: bf16 where the hardware computes in it, else fp32.
        calibration: for int8.
        kept: directory where OpenVINO's network is kept, see kept_networks.py; None: it is not kept.

    Raises:
        ShelfmarkError: it was requested and cannot run here.
    """
    name, why = (engine, "as requested") if engine != "auto" else _fastest(backbone)
    if precision == "int8" and name != "openvino":
        raise ShelfmarkError(
            f"precision int8: {name} does not support it; expected OpenVINO; give --engine openvino, "
            "or another extract.precision"
        )
    chosen: Engine
    if isinstance(backbone, KerasBackbone):
        _require_backend("jax" if name == "jax" else "tensorflow", name)
    if name == "openvino":
        chosen = load_openvino(backbone, batch, precision, calibration, kept)
    elif name == "onnxruntime" and isinstance(backbone, OnnxBackbone):
        chosen = OnnxRuntime(backbone, batch, precision)
    elif name == "jax" and isinstance(backbone, KerasBackbone):
        chosen = Jax(backbone, batch, precision)
    elif name == "tensorflow" and isinstance(backbone, KerasBackbone):
        chosen = TensorFlow(backbone, batch, precision)
    else:
        expected = "openvino, tensorflow or jax" if name == "onnxruntime" else "openvino or onnxruntime"
        raise ShelfmarkError(
            f"engine {name}: does not run backbone {backbone.name}; expected {expected}; correct --engine, "
            "or leave it out"
        )
    log.info("engine: %s: %s", chosen.name, why)
    return chosen


def engines_of_views(
    backbone: Backbone, views: Iterable[View], batch: int, precision: str = "auto"
) -> dict[View, Engine]:
    """Returns the fastest engine of each network that these views need, by `View.network`.

    Args:
        backbone: frozen.
        views: of the photos.
        batch: images.
        precision: as for `choose_engine`.

    Raises:
        ShelfmarkError: a view that the backbone cannot have, or see `choose_engine`.
    """
    networks = dict.fromkeys(view.network for view in views)
    return {
        network: choose_engine(backbone.for_view(network), batch, precision=precision) for network in networks
    }


def engines_for(
    load: Callable[[], Backbone],
    description: BackboneDescription,
    width: int,
    batches: Sequence[int],
    kept: AnyPath | None,
) -> dict[int, Engine]:
    """Returns the fastest engine for each of several sizes of batches.

    Where OpenVINO is the fastest and has its network kept, neither TensorFlow nor Keras is imported.

    Args:
        load: loads the backbone.
        description: of the backbone.
        width: of its bottlenecks.
        batches: sizes, images.
        kept: as for `choose_engine`.

    Raises:
        ShelfmarkError: no engine can run it here.
    """
    from_onnx, installed = description.width is not None, importlib.util.find_spec("openvino")
    if kept is None or from_onnx or not installed or _keras_backend() != "tensorflow" or may_have_gpu():
        backbone = load()
        return {batch: choose_engine(backbone, batch) for batch in batches}
    engines = load_openvinos(load, width, batches, "auto", kept)
    log.info("engine: %s: no GPU, and OpenVINO is installed", next(iter(engines.values())).name)
    return dict(engines)


def _keras_backend() -> str:
    """The backend that Keras has, or will have once it is imported."""
    if "keras" in sys.modules:
        import keras

        return str(keras.backend.backend())
    if chosen := os.environ.get("KERAS_BACKEND"):
        return chosen
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        return str(json.loads((home / "keras.json").read_text()).get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


def _fastest(backbone: Backbone) -> tuple[str, str]:
    """Returns the fastest engine for a backbone on this computer, and why."""
    if isinstance(backbone, OnnxBackbone):
        return _fastest_for_onnx(backbone)
    import keras

    if keras.backend.backend() == "jax":
        return "jax", "Keras runs on JAX"
    if has_gpu():
        return "tensorflow", "TensorFlow sees a GPU"
    if importlib.util.find_spec("openvino"):
        return "openvino", "no GPU, and OpenVINO is installed"
    return "tensorflow", "no GPU and no OpenVINO; `pip install 'shelfmark[openvino]'` is quicker on CPUs"


def _fastest_for_onnx(backbone: OnnxBackbone) -> tuple[str, str]:
    if importlib.util.find_spec("openvino"):
        return "openvino", "an ONNX file, and OpenVINO is installed"
    if importlib.util.find_spec("onnxruntime"):
        return "onnxruntime", "an ONNX file and no OpenVINO; `pip install 'shelfmark[openvino]'` is quicker"
    raise ShelfmarkError(
        f"backbone {backbone.name}: neither openvino nor onnxruntime is installed; expected one of them to "
        "run an ONNX file; pip install 'shelfmark[openvino]' or 'shelfmark[onnx]'"
    )


def _require_backend(backend: str, engine: str) -> None:
    """Raises a ShelfmarkError unless Keras runs on this backend."""
    import keras

    if backend == "jax":
        require_package("jax", engine)
    if keras.backend.backend() != backend:
        raise ShelfmarkError(
            f"engine {engine}: Keras runs on {keras.backend.backend()}; expected {backend}, chosen before "
            f"Keras is imported; set KERAS_BACKEND={backend} and start again"
        )
