"""Reads the arrays of a PyTorch `.pth` or a `.safetensors` file, without PyTorch, and executes nothing of it.

    .pth of today    a zip: NAME/data.pkl (a pickle: a dict of tensors) and NAME/data/KEY (an array's bytes)
    .pth until 2020  five pickles (a magic number, a version, the sizes of integers, the dict, the keys), then
                     for each key the number of its values (int64) and the values

A pickle is a small program, and Python's unpickler would import and call what it names. Here it can name only
what ALLOWED holds (`find_class`, the way that Python's documentation gives): everything else is refused
before it is imported. The callables are objects of ours without attributes, and storages are plain strings,
so that a pickle can also change nothing.

No library does this: ptloader reads zips alone; tinygrad's reader says that its list is not for security;
fickling judges pickles and reads no tensors; torch.load(weights_only=True) needs PyTorch, gigabytes on Linux.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from features.errors import ShelfmarkError

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
VERSION = 1001  # the second
STORAGES = {  # torch's names, and their values; bfloat16 is the upper half of a float32
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


class NotAStateDict(Exception):
    """The file holds something else; the message says what, in half a sentence."""


@dataclass
class Storage:
    """The values of one or more tensors; in the older format they come after the tensors."""

    kind: str  # of STORAGES
    count: int
    values: np.ndarray | None = field(default=None)  # (count,)


@dataclass(frozen=True)
class Tensor:
    """What a pickle says of a tensor: a part of a storage, with numbers of values as steps."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Returns its values; those of bfloat16 as float32."""
        values = self.storage.values
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.steps, strict=True))
        sound = len(self.shape) == 0 or min(self.shape) > 0
        inside = self.offset >= 0 and all(step >= 0 for step in self.steps)
        if values is None or not (sound and inside) or last >= len(values):
            raise NotAStateDict("a tensor that reaches beyond its values")
        if int(np.prod(self.shape)) > len(values):
            raise NotAStateDict("a tensor that repeats values")
        width = values.itemsize
        strides = tuple(step * width for step in self.steps)
        part = np.ndarray(self.shape, values.dtype, values, self.offset * width, strides)
        if self.storage.kind == "BFloat16Storage":
            return (part.astype(np.uint32) << 16).view(np.float32)
        return part


class _Rebuild:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""

    __slots__ = ()

    def __call__(self, storage: Storage, offset: int, size: Any, stride: Any, *gradient: Any) -> Tensor:
        return Tensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


class _RebuildParameter:
    """torch._utils._rebuild_parameter: a tensor that training may change."""

    __slots__ = ()

    def __call__(self, tensor: Tensor, *gradient: Any) -> Tensor:
        return tensor


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Rebuild(),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
} | {("torch", name): name for name in STORAGES}


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C makes room for as many memos as a pickle says (LONG_BINPUT)."""

    def __init__(self, file: Any, storages: dict[str, Storage]) -> None:
        super().__init__(file, encoding="utf-8")  # of text that Python 2 wrote
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle may name."""
        if (module, name) not in ALLOWED:
            raise NotAStateDict(f"{module}.{name}, which would have to be executed")
        return ALLOWED[module, name]

    def persistent_load(self, identity: Any) -> Storage:
        """Returns the storage that is named: ("storage", kind, key, device, count, part of another)."""
        tag, kind, key, _, count, *part = identity
        if tag != "storage" or kind not in STORAGES or any(part):
            raise NotAStateDict(f"an object of the kind {tag!r}")
        return self.storages.setdefault(str(key), Storage(kind, int(count)))


def read_state_dict(file: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by their names, `layer1.0.conv1.weight`, in their own dtypes.

    Args:
        file: a state_dict of PyTorch (`torch.save(model.state_dict(), file)`), or a .safetensors file.

    Raises:
        ShelfmarkError: it is damaged, or holds anything but named arrays: a pickled module, code.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(file))
        with file.open("rb") as opened:
            _require_kind(opened.read(2), zipfile.is_zipfile(opened))
            found = _read_zip(opened) if zipfile.is_zipfile(opened) else _read_sequence(opened)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise NotAStateDict("more or other than a dict of tensors")
        return {str(name): tensor.array() for name, tensor in found.items()}
    except NotAStateDict as error:
        found_text = str(error)
    except OSError:
        raise
    except Exception as error:  # a pickle or a zip of anything can raise anything
        found_text = f"damaged or of another kind ({' '.join(str(error).split()) or type(error).__name__})"
    raise ShelfmarkError(
        f"weights {file}: not a file of weights: {found_text[:200]}; nothing of it was executed; expected a "
        "state_dict; write it by torch.save(model.state_dict(), FILE) or as .safetensors"
    )


def _require_kind(begins: bytes, is_zip: bool) -> None:
    if begins == b"PK" and not is_zip:
        raise NotAStateDict("a zip that is cut off")
    if not is_zip and begins[:1] != b"\x80":  # a pickle, as torch.save begins it
        raise NotAStateDict("neither a zip nor a pickle of torch.save")


def _read_zip(opened: BinaryIO) -> Any:
    opened.seek(0)
    with zipfile.ZipFile(opened) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise NotAStateDict("compressed, as torch.save writes no file")  # would fill the memory
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise NotAStateDict("a zip without data.pkl, as torch.save writes it")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise NotAStateDict("written on a computer with the other order of bytes")
        storages: dict[str, Storage] = {}
        with archive.open(pickles[0]) as text:
            found = _Unpickler(text, storages).load()
        for key, storage in storages.items():
            storage.values = _values(storage, archive.read(f"{folder}data/{key}"))
    return found


def _read_sequence(opened: BinaryIO) -> Any:
    opened.seek(0)
    storages: dict[str, Storage] = {}
    magic, version, _ = (_Unpickler(opened, storages).load() for _ in range(3))
    if magic != MAGIC or version != VERSION:
        raise NotAStateDict("a pickle that torch.save did not write")
    found = _Unpickler(opened, storages).load()
    for key in _Unpickler(opened, storages).load():
        storage = storages[str(key)]
        (count,) = struct.unpack("<q", opened.read(8))
        if count != storage.count:
            raise NotAStateDict("damaged: the sizes of its arrays do not agree")
        storage.values = _values(storage, opened.read(count * np.dtype(STORAGES[storage.kind]).itemsize))
    return found


def _values(storage: Storage, content: bytes) -> np.ndarray:
    values = np.frombuffer(content, STORAGES[storage.kind])
    if len(values) != storage.count:
        raise NotAStateDict("damaged: an array is shorter than its description")
    return values
