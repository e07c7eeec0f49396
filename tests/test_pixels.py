"""Pixels are what Pillow decodes, resized plainly bilinear, in order, in batches of one size."""

import io
from collections.abc import Iterator, Sequence

import conftest
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from features.engines import pixels
from features.engines.pixels import decode_jpegs, read_pixels
from features.errors import ShelfmarkError
from features.product import ProductImage
from features.records import Piece, frame, pieces_of, serialise
from features.views import FLIP, WHOLE, View

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")


def decoded(jpeg: bytes) -> np.ndarray:
    """Pixels as Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Pixel centres at halves, no antialiasing, one pixel at a time."""
    out = np.empty((size, size, 3))
    height, width, _ = image.shape
    for row in range(size):
        for column in range(size):
            y = np.clip((row + 0.5) * height / size - 0.5, 0, height - 1)
            x = np.clip((column + 0.5) * width / size - 0.5, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            out[row, column] = upper * (1 - y + top) + lower * (y - top)
    return np.round(out)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photo_of_the_required_size_is_decoded_as_pillow_decodes_it(photo: conftest.Photo, mode: str) -> None:
    jpeg = photo(1, 32, 32, mode)
    np.testing.assert_allclose(
        conftest.pixels_of([jpeg], 32)[0].astype(int), decoded(jpeg).astype(int), atol=1
    )


@pytest.mark.parametrize(("width", "height"), [(20, 50), (97, 31), (32, 200)])
def test_photo_is_squashed_bilinearly_without_antialiasing(
    photo: conftest.Photo, width: int, height: int
) -> None:
    jpeg = photo(2, width, height)
    found = conftest.pixels_of([jpeg], 32)[0].astype(int)
    np.testing.assert_allclose(found, bilinear(decoded(jpeg), 32), atol=2)
    tensor = tf.image.resize(decoded(jpeg), (32, 32), method="bilinear", antialias=False)
    np.testing.assert_allclose(found, tensor, atol=2)


def test_batches_keep_the_order_and_the_last_is_filled_up_with_black(photo: conftest.Photo) -> None:
    jpegs = [photo(seed, 40 + seed % 3) for seed in range(10)]
    batches = list(read_pixels(pieces_of(jpegs, "drawn"), 16, 4))
    assert [(batch.shape, batch.dtype) for batch in batches] == [((4, 16, 16, 3), np.uint8)] * 3
    np.testing.assert_array_equal(np.concatenate(batches)[:10], conftest.pixels_of(jpegs, 16))
    assert not batches[2][2:].any()
    assert list(read_pixels([], 16, 4)) == []


def test_batches_run_over_the_bounds_of_pieces(photo: conftest.Photo) -> None:
    jpegs = [photo(seed) for seed in range(7)]
    pieces = [piece for part in (jpegs[:1], jpegs[1:3], jpegs[3:]) for piece in pieces_of(part, "drawn")]
    found = np.concatenate(list(read_pixels(pieces, 16, 4)))[:7]
    np.testing.assert_array_equal(found, conftest.pixels_of(jpegs, 16))


def test_records_give_the_pixels_of_their_images(photo: conftest.Photo) -> None:
    jpegs = [photo(seed) for seed in range(5)]
    frames = [frame(serialise(ProductImage("é", 0, "c", "train", "", "d", jpeg))) for jpeg in jpegs]
    lengths = np.array([len(framed) for framed in frames])
    starts = np.cumsum(lengths) - lengths
    piece = Piece(b"".join(frames), starts + 12, lengths - 16, "drawn", examples=True)
    found = np.concatenate(list(read_pixels([piece], 16, 4)))[:5]
    np.testing.assert_array_equal(found, conftest.pixels_of(jpegs, 16))


def test_flipped_pixels_are_mirrored_left_to_right(photo: conftest.Photo) -> None:
    jpegs = [photo(seed) for seed in range(3)]
    found = np.concatenate(list(read_pixels(pieces_of(jpegs, "drawn"), 16, 4, [FLIP])))[:3]
    np.testing.assert_array_equal(found, conftest.pixels_of(jpegs, 16)[:, :, ::-1])


def test_each_photo_is_decoded_once_and_its_batches_come_in_each_view_in_turn(
    photo: conftest.Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpegs = [photo(seed, 40) for seed in range(6)]
    views = [FLIP, View(20, "top-right"), WHOLE, View(20, "top-right", flip=True)]
    alone = [list(read_pixels(pieces_of(jpegs, "drawn"), 16, 4, [view])) for view in views]
    sizes: list[list[int]] = []

    def decode(jpegs: tf.Tensor, its: Sequence[int]) -> list[tf.Tensor]:
        sizes.append(list(its))
        return decode_jpegs(jpegs, its)

    monkeypatch.setattr(pixels, "decode_jpegs", decode)
    found = list(read_pixels(pieces_of(jpegs, "drawn"), 16, 4, views))
    assert sizes == [[16, 20]], "decoded in one place of the graph, resized to each size once"
    assert len(found) == 2 * len(views)
    for number, batches in enumerate(alone):
        np.testing.assert_array_equal(found[number :: len(views)], batches)


def test_a_view_of_another_size_than_the_networks_is_refused(photo: conftest.Photo) -> None:
    with pytest.raises(ValueError, match="expected a network for view 20, found one of 16 px"):
        next(read_pixels(pieces_of([photo(1)], "drawn"), 16, 4, [WHOLE, View(20)]))


def test_error_of_the_source_of_photos_comes_through_as_it_is(photo: conftest.Photo) -> None:
    def damaged() -> Iterator[Piece]:
        yield from pieces_of([photo(1)], "drawn")
        raise ShelfmarkError("a record does not match its checksum")

    with pytest.raises(ShelfmarkError, match=r"^a record does not match its checksum$"):
        list(read_pixels(damaged(), 16, 1))


@pytest.mark.parametrize("broken", [b"", b"text", b"\xff\xd8\xff\xe0 cut"])
def test_image_that_cannot_be_decoded_names_where_it_was_read(photo: conftest.Photo, broken: bytes) -> None:
    """Ingest has decoded every image, so this is a fault of the records, not of a photo."""
    parts = {"a": [photo(1), photo(2)], "b": [photo(3), broken], "c": [photo(4), photo(5)]}
    pieces = [piece for source, jpegs in parts.items() for piece in pieces_of(jpegs, source)]
    with pytest.raises(ShelfmarkError, match=r"^b: an image cannot be decoded; expected .* run again$"):
        list(read_pixels(pieces, 16, 2))
