"""Pixels without TensorFlow are those that batch reads with TensorFlow, bit for bit."""

import io
import subprocess
import sys

import conftest
import numpy as np
import pytest
from PIL import Image, ImageFile

from features.engines.decoded import decoded
from features.images.normalise import normalise

GROCERY = conftest.SHARED / "data" / "grocery"

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """Noise over blotches: neighbouring pixels differ, so that another order of rounding shows."""
    image = np.asarray(Image.open(io.BytesIO(conftest._photo(3, width, height, mode)))).astype(int)
    noise = np.random.default_rng(width * 1000 + height).integers(-60, 60, image.shape)
    buffer = io.BytesIO()
    Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def assert_as_in_batch(jpegs: list[bytes], size: int) -> None:
    found = np.stack([pixels for one in jpegs for pixels in decoded(one, [size])])
    assert (found.shape, found.dtype) == ((len(jpegs), size, size, 3), np.uint8)
    np.testing.assert_array_equal(found, conftest.pixels_of(jpegs, size))


SIZES = [
    (180, 180),
    (181, 97),
    (299, 299),
    (299, 64),
    (33, 299),
    (500, 375),
    (640, 481),
    (1, 1),
    (1, 77),
    (90, 1),
]


@pytest.mark.parametrize("size", [32, 224, 299])
def test_photos_of_all_sizes_are_enlarged_and_reduced_as_in_batch(size: int) -> None:
    assert_as_in_batch([jpeg(*each) for each in [*SIZES, (1400, 903)]], size)


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_sampling_of_colours_is_decoded_as_in_batch(
    monkeypatch: pytest.MonkeyPatch, sampling: str, progressive: bool
) -> None:
    monkeypatch.setattr(
        ImageFile, "MAXBLOCK", 2**22
    )  # noise needs more than Pillow reserves for a progressive one
    options = {"subsampling": sampling, "progressive": progressive}
    jpegs = [jpeg(*size, quality=quality, **options) for size in SIZES for quality in (35, 90)]
    assert_as_in_batch(jpegs, 224)


def test_grey_photos_are_decoded_as_in_batch() -> None:
    assert_as_in_batch([jpeg(*size, mode="L") for size in SIZES], 224)


@pytest.mark.skipif(not GROCERY.is_dir(), reason="needs ../shared/data/grocery")
def test_photos_of_groceries_are_decoded_as_in_batch() -> None:
    files = sorted(GROCERY.rglob("*.jpg"))[::40]
    jpegs = [found for file in files if isinstance(found := normalise(file.read_bytes()).jpeg, bytes)]
    assert len(jpegs) > 50
    assert_as_in_batch(jpegs, 299)


def test_several_sizes_are_those_of_each_alone() -> None:
    photo, sizes = jpeg(181, 97), [64, 181, 32, 300]
    for size, pixels in zip(sizes, decoded(photo, sizes), strict=True):
        np.testing.assert_array_equal(pixels, decoded(photo, [size])[0])


@pytest.mark.parametrize("broken", [b"", b"text", b"\xff\xd8\xff\xe0 cut", jpeg(90, 90)[:-300]])
def test_what_cannot_be_decoded_is_an_error(broken: bytes) -> None:
    with pytest.raises(ValueError):
        decoded(broken, [32])


def test_decoding_needs_no_tensorflow() -> None:
    script = "import sys, features.engines.decoded; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
