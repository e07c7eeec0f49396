"""The network that OpenVINO's converter made of a backbone, kept beside its bottlenecks: converted once.

    store/<fingerprint>/openvino-<version>-<precision>-<FORM>.zip    stored, not compressed
        fingerprint     of the backbone, whose hash includes its weights; and the view, in another's directory
        network.xml     for batches of any size: its reader sets the size
        network.bin

Opening it needs no TensorFlow and no Keras. The file is written whole or not at all, so two processes may
write it at once; every member has a checksum, and a file that is damaged is made anew.
"""

import io
import logging
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.storage.paths import AnyPath, write_whole
from features.storage.store import Store

if TYPE_CHECKING:
    import openvino

FORM = 1  # to be raised whenever openvino_graphs.py, or how pixels are cast, changes the network
FINGERPRINT, DESCRIBED, WEIGHTS = "fingerprint", "network.xml", "network.bin"

log = logging.getLogger("shelfmark")


def read_kept(folder: AnyPath, precision: str) -> "openvino.Model | None":
    """Reads the kept network for batches of any size; None where there is none, or a damaged one.

    Args:
        folder: of the bottlenecks of the view `View.network`; its name says of which fingerprint and view.
        precision: fp32 or bf16.
    """
    import openvino

    file = folder / _name(precision)
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as kept:
            if kept.read(FINGERPRINT).decode() != Store(folder).owner:
                raise ValueError("it is of another backbone")
            described, weights = kept.read(DESCRIBED), np.frombuffer(kept.read(WEIGHTS), np.uint8)
        return openvino.Core().read_model(described, openvino.Tensor(weights))
    except FileNotFoundError:
        return None
    except Exception as error:  # BadZipFile, KeyError, RuntimeError of OpenVINO, OSError, …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("engine: %s: cannot be read (%s); the network is converted again", file, reason)
        return None


def keep(network: "openvino.Model", folder: AnyPath, precision: str) -> None:
    """Writes a network for batches of any size; a directory that cannot be written is a line in the log.

    Files of other versions of OpenVINO in the same precision go.

    Args:
        network: in the form in which it is compiled.
        folder: of the bottlenecks of the view `View.network`; its name says of which fingerprint and view.
        precision: fp32 or bf16.
    """
    import openvino

    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as kept:
        openvino.serialize(network, Path(scratch, DESCRIBED), Path(scratch, WEIGHTS))
        kept.writestr(FINGERPRINT, Store(folder).owner)
        for name in (DESCRIBED, WEIGHTS):
            kept.write(Path(scratch, name), name)
    file = folder / _name(precision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, content.getvalue())
        for other in folder.glob(f"openvino-*-{precision}-*.zip"):
            if other.name != file.name:
                other.unlink(missing_ok=True)
    except OSError as error:
        log.warning("engine: %s: cannot be kept (%s); every start converts the network", file, error)


def _name(precision: str) -> str:
    import openvino

    version = openvino.__version__.replace("/", "_")
    return f"openvino-{version}-{precision}-{FORM}.zip"
