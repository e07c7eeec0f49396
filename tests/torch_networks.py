"""What torchvision's networks give with drawn weights.

It runs with any Python that has torchvision; the tests import it for its draws alone.

    python tests/torch_networks.py                  writes data/torch: numbers.json, small files of torch.save
    python tests/torch_networks.py NETWORK FOLDER   writes weights.pth, older.pth (the format before 2020) and
                                                    outputs.npz, at the published image size

numbers.json holds for each network, at a small odd size and at the published one, the logits and means of the
last map of two images: the first 20 of each.
"""

import hashlib
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "torch"
SIZES = {  # of network in torchvision: a small image size, the published one
    "lenet5": (33, 32), "alexnet": (127, 224), "vgg19": (65, 224), "googlenet": (107, 224),
    "inception_v3": (107, 299), "resnet18": (65, 224), "resnet34": (65, 224), "resnet50": (65, 224),
    "resnet101": (65, 224), "resnet152": (65, 224), "resnext50_32x4d": (65, 224),
    "wide_resnet50_2": (65, 224),
    "densenet121": (65, 224), "densenet169": (65, 224), "densenet201": (65, 224),
}  # fmt: skip
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOT_OURS = ("aux1.", "aux2.", "AuxLogits.")  # for training only


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of weights, by its name and shape alone: variances positive, signals of about equal size."""
    if name.endswith("num_batches_tracked"):
        return np.array(0, np.int64)
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
    if name.endswith("running_var"):
        return uniform + np.float32(0.5)
    if name.endswith("weight") and len(shape) == 1:
        return uniform / 2 + np.float32(0.75)
    scale = np.sqrt(6 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (2 * uniform - 1) * np.float32(scale)


def images(size: int) -> np.ndarray:
    """(2, size, size, 3) uint8: coarse blotches."""
    rng = np.random.default_rng(size)
    coarse = rng.integers(0, 256, (2, 8, 8, 3))
    return np.kron(coarse, np.ones((1, size // 8 + 1, size // 8 + 1, 1), int))[:, :size, :size].astype(
        np.uint8
    )


def digest_of(shapes: dict[str, tuple[int, ...]]) -> str:
    """Of names and shapes: those of the network, without what is for training only."""
    lines = [
        f"{name} {shape}"
        for name, shape in sorted(shapes.items())
        if not name.startswith(NOT_OURS) and not name.endswith("num_batches_tracked")
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_pth(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes float32 arrays as torch.save does since 2020, without torch."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    program = b"\x80\x02ccollections\nOrderedDict\n)R("
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // 4 for stride in np.array(array, np.float32, order="C").strides)
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu")
        storage += b"J" + struct.pack("<i", array.size) + b"tQ"
        empty = b"ccollections\nOrderedDict\n)R"
        tensor = b"(" + storage + b"K\x00" + numbers(array.shape) + numbers(strides) + b"\x89" + empty + b"t"
        program += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"R"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program + b"u.")
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array, np.float32).tobytes())
        archive.writestr("archive/version", "3\n")


# With torchvision only


def torch_network(name: str):
    """A network of torchvision with drawn weights; LeNet-5 is not in it, its layers are."""
    import torch
    import torchvision

    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "init_weights": False}  # as with its published weights
    build = _lenet5 if name == "lenet5" else getattr(torchvision.models, name)
    network = build(**options)
    state = {
        key: torch.from_numpy(drawn(key, tuple(value.shape))) for key, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.eval()


def _lenet5():
    from torch import nn

    class LeNet5(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pool = nn.MaxPool2d(2)
            self.features = nn.Sequential(
                nn.Conv2d(3, 6, 5), nn.ReLU(), pool, nn.Conv2d(6, 16, 5), nn.ReLU(), pool
            )
            self.avgpool = nn.AdaptiveAvgPool2d(5)
            hidden = (nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
            self.classifier = nn.Sequential(*hidden, nn.Linear(84, 1000))

        def forward(self, x):
            return self.classifier(self.avgpool(self.features(x)).flatten(1))

    return LeNet5()


def outputs(network, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2, 1000) and means of the last map (2, d), float32."""
    import torch

    kept = []
    if hasattr(network, "avgpool"):
        network.avgpool.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    else:  # DenseNet, which pools by a function
        network.features.register_forward_hook(lambda module, inputs, output: kept.append(torch.relu(output)))
    scaled = (images(size) / 255 - np.array(MEAN)) / np.array(DEVIATION)
    with torch.no_grad():
        logits = network(torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32)))
    return logits.numpy(), kept[-1].mean((2, 3)).numpy()


def numbers(name: str) -> dict:
    """The entry of numbers.json."""
    network = torch_network(name)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    entry = {"names": digest_of(shapes)}
    for size in SIZES[name]:
        logits, pooled = outputs(network, size)
        entry[str(size)] = {
            part: [[float(f"{value:.7g}") for value in row[:20]] for row in array]
            for part, array in (("logits", logits), ("pooled", pooled))
        }
    return entry


def write_small_files() -> None:
    """A small state_dict in both formats, parameters as files of 2017 have them, a module, a checkpoint."""
    import torch

    weight = torch.from_numpy(drawn("conv1.weight", (4, 3, 3, 3)))
    state = {
        "conv1.weight": weight,
        "turned": weight.permute(2, 3, 1, 0),
        "part": weight[1:3, 2],
        "half": weight.half(),
        "bfloat16": weight.bfloat16(),
        "double": weight.double(),
        "bn1.num_batches_tracked": torch.tensor(7),
    }
    torch.save(state, DATA / "state.pth")
    torch.save(state, DATA / "state-older.pth", _use_new_zipfile_serialization=False)
    parameters = {"conv1.weight": torch.nn.Parameter(weight)}
    torch.save(parameters, DATA / "parameters-older.pth", _use_new_zipfile_serialization=False)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    torch.save(module, DATA / "module.pth")
    torch.save({"model": state, "epoch": 3}, DATA / "checkpoint.pth")


def main(arguments: list[str]) -> None:
    """As the file's first lines say."""
    import torch

    torch.set_num_threads(1)
    if not arguments:
        DATA.mkdir(exist_ok=True)
        write_small_files()
        entries = {name: numbers(name) for name in SIZES}
        (DATA / "numbers.json").write_text(json.dumps(entries).replace("}, ", "},\n") + "\n")
        return
    name, folder = arguments[0], Path(arguments[1])
    network = torch_network(name)
    torch.save(network.state_dict(), folder / "weights.pth")
    torch.save(network.state_dict(), folder / "older.pth", _use_new_zipfile_serialization=False)
    logits, pooled = outputs(network, SIZES[name][1])
    np.savez(folder / "outputs.npz", logits=logits, pooled=pooled)


if __name__ == "__main__":
    main(sys.argv[1:])
