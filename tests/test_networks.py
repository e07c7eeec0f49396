"""The family of networks gives torchvision's numbers, from its files, and executes nothing of them."""

import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import conftest
import keras
import numpy as np
import pytest
import tensorflow
import torch_networks
from safetensors.numpy import save_file
from torch_networks import DATA, SIZES, digest_of, drawn, images, write_pth

from features.errors import ShelfmarkError
from features.networks.family import NETWORKS, build_network, names, preprocess
from features.networks.googlenet import local_response_norm
from features.networks.layers import convolution
from features.networks.torch_files import MAGIC, VERSION, NotAStateDict, Storage, Tensor, read_state_dict
from features.networks.torch_weights import NAMES, load_torch_weights

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")

PARAMETERS = {  # trainable, of 1,000 classes, as torchvision publishes them; without auxiliary classifiers
    "alexnet": 61_100_840, "torchvision_vgg19": 143_667_240, "googlenet": 6_624_904, "resnet18": 11_689_512,
    "resnet34": 21_797_672, "torchvision_resnet50": 25_557_032, "torchvision_resnet101": 44_549_160,
    "torchvision_resnet152": 60_192_808, "resnext50_32x4d": 25_028_904, "wide_resnet50_2": 68_883_240,
    "torchvision_densenet121": 7_978_856, "torchvision_densenet169": 14_149_480,
    "torchvision_densenet201": 20_013_928, "torchvision_inception_v3": 23_834_568,
    "handwriting": 483_656,  # 422,686 with 62 classes; the paper has over 350,000
    "nin": 7_595_176,  # of its ImageNet model, in Caffe's collection
}  # fmt: skip
TORCHVISIONS = [name for name in names() if name.removeprefix("torchvision_") in SIZES]
QUICK = ("lenet5", "resnet18", "resnext50_32x4d", "googlenet")
NUMBERS = json.loads((DATA / "numbers.json").read_text())


def in_torchvision(name: str) -> str:
    return name.removeprefix("torchvision_")


def slow_but(quick: tuple[str, ...], every: list[str]) -> list:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in every]


def key_of(name: str) -> str:
    return name.replace("_", "")


def torch_shapes(model: keras.Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a file of torch has, from the Keras model: an inverse of load_torch_weights."""
    shapes = {}
    for layer in model.layers:
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if variable.name == "kernel":
                shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            shapes[f"{layer.name}.{NAMES[variable.name]}"] = shape
    return shapes


def drawn_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    return {name: drawn(name, shape) for name, shape in torch_shapes(model).items()}


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest, as a share of the largest number; two images differ by a thousand times as much."""
    error = np.abs(found - expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e3 * error
    return error / np.abs(expected).max()


# Outputs and counts


@pytest.mark.timeout(900)  # VGG-19 and ResNet-152 on a busy computer
@pytest.mark.parametrize("published_size", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", slow_but(QUICK, TORCHVISIONS))
def test_logits_are_torchvisions(name: str, published_size: bool, tmp_path: Path) -> None:
    """At an odd size and at the published one; the weights go through a .pth."""
    expected = NUMBERS[in_torchvision(name)]
    size = SIZES[in_torchvision(name)][published_size]
    network = build_network(key_of(name), size)
    assert trainable(network) == PARAMETERS.get(name, trainable(network))
    assert digest_of(torch_shapes(network)) == expected["names"]
    write_pth(tmp_path / "weights.pth", drawn_arrays(network))
    load_torch_weights(network, tmp_path / "weights.pth", key_of(name))
    logits = answers(network, name, size)
    assert logits.shape == (2, 1000)
    assert difference(logits[:, :20], np.array(expected[str(size)]["logits"])) < 1e-4


@pytest.mark.parametrize("name", slow_but(("lenet5", "resnet18"), TORCHVISIONS))
def test_bottlenecks_are_the_means_of_torchvisions_last_map(name: str, tmp_path: Path) -> None:
    """From a file that has a top, auxiliary classifiers and counters of batches, too."""
    size = SIZES[in_torchvision(name)][0]
    network = build_network(key_of(name), size, top=False)
    others = {
        "aux1.fc1.weight": (5, 4),
        "AuxLogits.fc.weight": (5, 4),
        "bn1.num_batches_tracked": (),
        "classifier.6.bias" if name in ("alexnet", "torchvision_vgg19") else "fc.bias": (1000,),
    }
    arrays = drawn_arrays(network) | {other: drawn(other, shape) for other, shape in others.items()}
    write_pth(tmp_path / "weights.pth", arrays)
    load_torch_weights(network, tmp_path / "weights.pth", key_of(name))
    expected = np.array(NUMBERS[in_torchvision(name)][str(size)]["pooled"])
    pooled = answers(network, name, size)
    assert network.layers[-1].name == "pool"
    assert difference(pooled[:, :20], expected) < 1e-4


def answers(network: keras.Model, name: str, size: int) -> np.ndarray:
    scaled = preprocess(key_of(name), images(size).astype(np.float32))
    return np.asarray(network(scaled, training=False))


def torchvisions_python() -> str | None:
    """A Python that has torchvision: this one, or that of the variable TORCHVISION_PYTHON."""
    python = os.environ.get("TORCHVISION_PYTHON", sys.executable)
    has = subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False)
    return python if has.returncode == 0 else None


@pytest.mark.timeout(900)  # VGG-19 and ResNet-152 on a busy computer
@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_torchvision_itself_gives_the_same(name: str, tmp_path: Path) -> None:
    """All its logits at the published size, from its own files in both formats."""
    if not (python := torchvisions_python()):
        pytest.skip("no torchvision here; install the extra torch, or name a Python by TORCHVISION_PYTHON")
    script = Path(torch_networks.__file__)
    subprocess.run([python, script, in_torchvision(name), tmp_path], check=True)
    expected = np.load(tmp_path / "outputs.npz")
    size = SIZES[in_torchvision(name)][1]
    network = build_network(key_of(name), size)
    for file in ("weights.pth", "older.pth"):
        load_torch_weights(network, tmp_path / file, key_of(name))
        error = difference(answers(network, name, size), expected["logits"])
        print(f"{name}, {file}: {error:.1e}")
        assert error < 1e-4
        network.set_weights([np.zeros_like(value) for value in network.get_weights()])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in TORCHVISIONS])
def test_networks_outside_torchvision_have_their_counts(name: str) -> None:
    assert trainable(build_network(key_of(name), 224)) == PARAMETERS[name]


def test_lenet5_has_its_published_count_and_two_more_channels() -> None:
    """61,706 parameters for one grey channel; 6 kernels of 5×5 more for each further one."""
    assert trainable(build_network("lenet5", 32, classes=10)) == 61_706 + 2 * 6 * 25


def test_the_herbariums_blocks_have_the_sizes_of_its_table() -> None:
    """In units of 1,024 weights, without biases; they are GoogLeNet's, and 4c is 7 % more by its widths.

    The 2.7 of the first convolution cannot be: 7 · 7 · 3 · 64 is 9.2.
    """
    table = {
        "conv1": 9.2, "conv": 112, "inception3a": 159, "inception3b": 380, "inception4a": 364,
        "inception4b": 437, "inception4c": 463, "inception4d": 580, "inception4e": 840,
        "inception5a": 1072, "inception5b": 1388,
    }  # fmt: skip
    network = build_network("herbariumgooglenet", 224)
    found = dict.fromkeys(table, 0.0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            block = layer.name.partition(".")[0]
            found["conv" if block in ("conv2", "conv3") else block] += layer.kernel.numpy().size / 1024
    for block, size in table.items():
        assert found[block] == pytest.approx(size, rel=0.08), block
    maps = {"inception3a": (28, 256), "inception4e": (14, 832), "inception5b": (7, 1024)}
    for name, (side, channels) in maps.items():
        assert network.get_layer(name).output.shape == (None, side, side, channels)


def test_local_response_normalization_is_its_formula() -> None:
    x = np.random.default_rng(0).normal(0, 40, (2, 3, 3, 7)).astype(np.float32)
    pixels = keras.Input((3, 3, 7))
    found = keras.Model(pixels, local_response_norm(pixels)).predict_on_batch(x)
    for channel in range(7):
        sums = (x[..., max(0, channel - 2) : channel + 3] ** 2).sum(-1)
        expected = x[..., channel] / (1 + 1e-4 / 5 * sums) ** 0.75
        np.testing.assert_allclose(found[..., channel], expected, rtol=1e-5)


def test_a_grouped_convolution_is_the_same_in_training() -> None:
    """There it is a product of windows; at stride 2, and at stride 1, with its gradient."""
    for stride in (1, 2):
        maps = keras.Input((9, 9, 64))
        network = keras.Model(maps, convolution(maps, 96, 3, "grouped", stride, 1, groups=32))
        layer = network.get_layer("grouped")
        plain = keras.layers.Conv2D(96, 3, stride, layer.padding, groups=32, use_bias=False)
        plain.build(layer.input.shape)
        plain.set_weights(layer.get_weights())
        x = np.random.default_rng(0).normal(0, 1, (2, *layer.input.shape[1:])).astype(np.float32)
        gradients = []
        for each in (layer, plain):
            with tensorflow.GradientTape() as tape:
                sums = tensorflow.reduce_sum(each(x, **{"training": True} if each is layer else {}) ** 2)
            gradients.append(tape.gradient(sums, each.trainable_variables[0]))
        np.testing.assert_allclose(layer(x, training=True), plain(x), atol=1e-5)
        np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


# Training, names


@pytest.mark.timeout(900)  # VGG-19 and ResNet-152 on a busy computer
@pytest.mark.parametrize("name", slow_but(("lenet5",), names()))
def test_every_network_trains_for_an_epoch(name: str, photo: conftest.Photo) -> None:
    """On 200 drawn photos: every trainable array changes, and stays finite."""
    size = {"alexnet": 64, "nin": 64, "torchvision_inception_v3": 96}.get(name, 32)
    keras.utils.set_random_seed(1)
    network = build_network(key_of(name), size, classes=4)
    before = [variable.numpy().copy() for variable in network.trainable_variables]
    pixels = conftest.pixels_of([photo(seed) for seed in range(200)], size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
    history = network.fit(
        preprocess(key_of(name), pixels.astype(np.float32)), np.arange(200) % 4, batch_size=50, verbose=0
    )
    assert np.isfinite(history.history["loss"]).all()
    for old, variable in zip(before, network.trainable_variables, strict=True):
        assert np.isfinite(variable.numpy()).all() and (variable.numpy() != old).any(), variable.path


@pytest.mark.parametrize("name", slow_but(("lenet5", "resnet18"), names()))
def test_every_layer_has_the_same_name_in_each_process(name: str) -> None:
    """Keras numbers names that nobody gave: a second network would have others."""
    size = NETWORKS[key_of(name)].image_size
    first, second = ([layer.name for layer in build_network(key_of(name), size).layers] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)


def test_layers_have_plain_names() -> None:
    network = build_network("alexnet", 63)
    for layer, width in {"conv1": 64, "pool5": 256, "fc6": 4096, "fc7": 4096}.items():
        assert network.get_layer(layer).output.shape[-1] == width
    network = build_network("resnet18", 32, top=False)
    for layer, width in {"layer1": 64, "layer3.0": 256, "layer3": 256, "pool": 512}.items():
        assert network.get_layer(layer).output.shape[-1] == width


def test_names_are_known_without_keras() -> None:
    code = (
        "import sys; from features.networks.family import names; print(len(names()), 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(NETWORKS)), "False"]
    assert not {key for key in NETWORKS if hasattr(keras.applications, key)}


def test_the_network_for_handwriting_has_the_papers_size() -> None:
    """Three blocks of two convolutions, maps of 28, 14, 7 and 4 px, a dense block with dropout."""
    network = build_network("handwriting", 28, classes=62)
    assert trainable(network) == 422_686 > 350_000
    assert [network.get_layer(f"pool{block}").output.shape[1:] for block in (1, 2, 3)] == [
        (14, 14, 32), (7, 7, 64), (4, 4, 128),
    ]  # fmt: skip
    kinds = [type(layer).__name__ for layer in network.layers]
    counts = [
        kinds.count(kind) for kind in ("Conv2D", "BatchNormalization", "MaxPooling2D", "Dense", "Dropout")
    ]
    assert counts == [6, 7, 3, 2, 1]
    assert network.get_layer("fc4").output.shape[-1] == 64


def test_too_small_an_image_is_one_line() -> None:
    with pytest.raises(ShelfmarkError, match="alexnet at 20 px: one of its maps would be empty; expected"):
        build_network("alexnet", 20)


def test_the_page_has_the_counts_of_the_networks() -> None:
    page = (Path(__file__).parents[1] / "docs" / "networks.md").read_text()
    for name, count in PARAMETERS.items():
        assert re.search(rf"^\| `{name}` \|.* {count:,} \|", page, re.MULTILINE), name


# Files


def written(folder: Path, form: str, arrays: dict[str, np.ndarray]) -> Path:
    file = folder / f"weights.{form}"
    if form == "safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)
    else:
        write_pth(file, arrays)
    return file


@pytest.mark.parametrize("file", ["state.pth", "state-older.pth"])
def test_files_of_torch_save_hold_what_was_saved(file: str) -> None:
    """Written by PyTorch 1.13: shared, turned and partial tensors, five dtypes."""
    weight = drawn("conv1.weight", (4, 3, 3, 3))
    state = read_state_dict(DATA / file)
    assert list(state) == [
        "conv1.weight",
        "turned",
        "part",
        "half",
        "bfloat16",
        "double",
        "bn1.num_batches_tracked",
    ]
    np.testing.assert_array_equal(state["conv1.weight"], weight)
    np.testing.assert_array_equal(state["turned"], weight.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(state["part"], weight[1:3, 2])
    np.testing.assert_array_equal(state["half"], weight.astype(np.float16))
    np.testing.assert_allclose(state["bfloat16"], weight, rtol=2**-8)
    np.testing.assert_array_equal(state["double"], weight.astype(np.float64))
    assert state["bn1.num_batches_tracked"] == 7


def test_parameters_of_2017_are_arrays() -> None:
    state = read_state_dict(DATA / "parameters-older.pth")
    np.testing.assert_array_equal(state["conv1.weight"], drawn("conv1.weight", (4, 3, 3, 3)))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_both_kinds_of_files_load_and_the_first_dense_layer_reads_cells_in_keras_order(
    form: str, tmp_path: Path
) -> None:
    """The published numbers of LeNet-5, whose dense layer comes after maps."""
    network = build_network("lenet5", 32)
    load_torch_weights(network, written(tmp_path, form, drawn_arrays(network)), "lenet5")
    expected = np.array(NUMBERS["lenet5"]["32"]["logits"])
    assert difference(answers(network, "lenet5", 32)[:, :20], expected) < 1e-4


def test_names_of_the_older_densenets_are_read(tmp_path: Path) -> None:
    """denselayer1.norm.1.weight for denselayer1.norm1.weight; the numbers are torchvision's."""
    network = build_network("torchvisiondensenet121", 65)
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): array
        for name, array in drawn_arrays(network).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    load_torch_weights(network, written(tmp_path, "pth", older), "torchvisiondensenet121")
    expected = np.array(NUMBERS["densenet121"]["65"]["logits"])
    assert difference(answers(network, "torchvision_densenet121", 65)[:, :20], expected) < 1e-4


def refused(file: Path) -> str:
    """The line of the error; the file loads into nothing."""
    network = build_network("lenet5", 32)
    before = network.get_weights()
    with pytest.raises(ShelfmarkError) as raised:
        load_torch_weights(network, file, "lenet5")
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    line = str(raised.value)
    assert "\n" not in line and line.startswith(f"weights {file}: ") and "expected" in line
    return line


def test_weights_of_another_network_or_other_classes_are_one_line(tmp_path: Path) -> None:
    arrays = drawn_arrays(build_network("lenet5", 32))
    lacking = {name: array for name, array in arrays.items() if name != "features.3.bias"}
    assert "it lacks 'features.3.bias'" in refused(written(tmp_path, "pth", lacking))
    more = arrays | {"layer1.0.conv1.weight": np.ones((1, 1, 1, 1), np.float32)}
    assert "it has 'layer1.0.conv1.weight', too" in refused(written(tmp_path, "pth", more))
    other = arrays | {
        "classifier.4.weight": drawn("a.weight", (10, 84)),
        "classifier.4.bias": drawn("b", (10,)),
    }
    line = refused(written(tmp_path, "safetensors", other))
    assert "'classifier.4.weight' has shape (10, 84), which does not fit (84, 1000) of lenet5" in line


def test_a_deeper_network_of_the_same_kind_is_another_network(tmp_path: Path) -> None:
    arrays = drawn_arrays(build_network("resnet18", 32, top=False))
    deeper = arrays | {"layer1.2.conv1.weight": drawn("a.weight", (64, 64, 3, 3))}
    network = build_network("resnet18", 32, top=False)
    with pytest.raises(ShelfmarkError, match=r"not those of resnet18: it has 'layer1\.2\.conv1\.weight'"):
        load_torch_weights(network, written(tmp_path, "pth", deeper), "resnet18")


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    attribute = b"\x80\x04\x8c\x0bcollections\x8c\x1aOrderedDict.fromkeys.__self__\x93."
    changed = b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x08\x00\x00\x00__call__K\x01sdb."
    return {
        "code": pickle.dumps(Code(mark)),
        "code within a dict": pickle.dumps(OrderedDict(a=Code(mark)), protocol=2),
        "code, protocol 4": pickle.dumps({"a": Code(mark)}, protocol=4),
        "an attribute of what is allowed": attribute,
        "a changed callable": changed,
        "builtins.eval": b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        "torch.load within": b"ctorch.serialization\nload\n.",
        "no pickle": b"no pickle at all",
        "nothing": b"",
        "a list": pickle.dumps([1, 2]),
        "numbers": pickle.dumps({"a": 1}),
    }


def test_a_pickle_that_names_two_billion_memos_takes_no_memory_for_them(tmp_path: Path) -> None:
    file, before = tmp_path / "weights.pth", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # LONG_BINPUT
    with pytest.raises(ShelfmarkError, match="not a file of weights"):
        read_state_dict(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**20  # KiB


@pytest.mark.parametrize("kind", hostile_pickles(Path("x")))
@pytest.mark.parametrize("form", ["zip", "older", "alone"])
def test_a_file_with_code_is_refused_and_nothing_is_executed(kind: str, form: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "weights.pth"
    program = hostile_pickles(mark)[kind]
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", program)
    else:
        first = (MAGIC, VERSION, {})
        start = b"" if form == "alone" else b"".join(pickle.dumps(part, protocol=2) for part in first)
        file.write_bytes(start + program)
    line = refused(file)
    assert "nothing of it was executed" in line
    assert not mark.exists()
    if kind.startswith("code") and form != "alone":
        assert "posix.mkdir, which would have to be executed" in line


def test_files_that_are_no_state_dict_are_one_line(tmp_path: Path) -> None:
    line = refused(DATA / "module.pth")
    assert "torch.nn.modules.container.Sequential, which would have to be executed" in line
    assert "more or other than a dict of tensors" in refused(DATA / "checkpoint.pth")
    (tmp_path / "a.safetensors").write_bytes(b"\x08" + bytes(7) + b"no json.")
    assert "damaged or of another kind" in refused(tmp_path / "a.safetensors")
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "compressed" in refused(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["state.pth", "state-older.pth"])
def test_a_truncated_file_is_one_line(name: str, tmp_path: Path) -> None:
    whole = (DATA / name).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ShelfmarkError, match="not a file of weights"):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((2, 3), (3, 2)), ((7,), (1,)), ((3, 3), (0, 1)), ((2,), (-1,)), ((0,), (1,)), ((1,), (1,))],
)
def test_a_tensor_stays_within_its_values(shape: tuple[int, ...], steps: tuple[int, ...]) -> None:
    """Six values; the last case is one that begins after them."""
    storage = Storage("FloatStorage", 6, np.zeros(6, np.float32))
    offset = 6 if shape == (1,) else 0
    with pytest.raises(NotAStateDict, match="a tensor that"):
        Tensor(storage, offset, shape, steps).array()
