"""The engine ONNX Runtime, for encoders from ONNX files, on CPUs, in fp32."""

from collections.abc import Iterable

import numpy as np

from features.engines.backbones import OnnxBackbone
from features.engines.engine import images_of_a_request, require_package, round_into
from features.engines.onnx_encoder import INPUT, open_session
from features.errors import ShelfmarkError


class OnnxRuntime:
    """The backbone on all cores of a CPU; a batch is split into requests, one after the other."""

    def __init__(self, backbone: OnnxBackbone, batch: int, precision: str) -> None:
        require_package("onnxruntime", "onnxruntime", "onnx")
        if precision == "bf16":
            raise ShelfmarkError(
                "precision bf16: ONNX Runtime does not compute in it on CPUs; expected fp32; give --engine "
                "openvino, or extract.precision=fp32"
            )
        self.name = "onnxruntime fp32"
        self.batch, self.size, self.width = batch, backbone.image_size, backbone.width
        self._session = open_session(backbone.onnx)
        self._request = images_of_a_request(batch, one=self._session.get_inputs()[0].shape[0] == 1)

    def fill(self, batches: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """See Engine."""
        for number, pixels in enumerate(batches):
            for start in range(0, self.batch, self._request):
                found = self._session.run(None, {INPUT: pixels[start : start + self._request]})[0]
                round_into(rows[number * self.batch + start :][: self._request], found)
