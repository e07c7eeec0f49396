"""Views have one name each, and cut and mirror pixels as this file does by itself."""

import numpy as np
import pytest
import tensorflow as tf

from features.errors import ShelfmarkError
from features.views import CROPS, FLIP, WHOLE, View, cost, find_view, parse_view

NAMES = {
    "whole": WHOLE,
    "flip": FLIP,
    "max": View(pooling="max"),
    "max-flip": View(flip=True, pooling="max"),
    "256": View(256),
    "256-flip": View(256, flip=True),
    "256-max": View(256, pooling="max"),
    "256-max-flip": View(256, flip=True, pooling="max"),
    "256-center": View(256, "center"),
    "256-center-flip": View(256, "center", flip=True),
    "256-bottom-right-max-flip": View(256, "bottom-right", True, "max"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_view_has_one_name_and_is_read_by_it(name: str) -> None:
    assert (parse_view(name), NAMES[name].name) == (NAMES[name], name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "-", "Whole", "whole-flip", "flip-flip", "31", "1025", "0256", "256-", "256-middle", "center"),
        *("-256", "256-flip-max", "flip-256", "min", "mobilenet-224-0123456789ab", "٢٥٦"),
    ],
)
def test_what_is_no_name_is_refused_with_an_example_of_one(name: str) -> None:
    assert find_view(name) is None
    with pytest.raises(ShelfmarkError, match=r"such as 256-center-flip; correct extract.views"):
        parse_view(name)


def test_a_mirrored_view_is_the_same_view_with_flip_behind_its_name() -> None:
    assert [view.mirrored().name for view in (WHOLE, FLIP, View(256, "center"))] == [
        "flip", "flip", "256-center-flip",
    ]  # fmt: skip


# The photo is 3 px wide and high, the backbone's own size is 2: what is left, pixel by pixel.
LEFT = {
    "center": [[0, 1], [3, 4]],
    "top-left": [[0, 1], [3, 4]],
    "top-right": [[1, 2], [4, 5]],
    "bottom-left": [[3, 4], [6, 7]],
    "bottom-right": [[4, 5], [7, 8]],
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["array", "tensor"])
def test_a_crop_is_a_square_of_the_backbones_own_size(crop: str, as_tensor: bool) -> None:
    photo = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(3, axis=3)
    pixels = tf.constant(photo) if as_tensor else photo
    plain, mirrored = View(3, crop), View(3, crop, flip=True)
    assert np.asarray(plain.of_pixels(pixels, 2))[0, :, :, 0].tolist() == LEFT[crop]
    assert np.asarray(mirrored.of_pixels(pixels, 2))[0, :, :, 0].tolist() == [row[::-1] for row in LEFT[crop]]


def test_the_five_crops_of_an_even_rest_are_the_corners_and_the_middle() -> None:
    photo = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    first = [int(View(4, crop).of_pixels(photo, 2)[0, 0, 0, 0]) for crop in CROPS]
    assert dict(zip(CROPS, first, strict=True)) == {
        "center": 5, "top-left": 0, "top-right": 2, "bottom-left": 8, "bottom-right": 10,
    }  # fmt: skip


def test_sizes_of_a_view_follow_the_backbones_own_size() -> None:
    for view, resized, read in ((WHOLE, 224, 224), (View(256), 256, 256), (View(256, "center"), 256, 224)):
        assert (view.resized(224), view.input(224)) == (resized, read)


def test_views_share_a_network_where_size_and_pooling_are_the_same() -> None:
    names = ["whole", "flip", "256-center-flip", "256", "256-flip", "max", "256-max-flip", "256-center-max"]
    assert [parse_view(name).network.name for name in names] == [
        "whole", "whole", "whole", "256", "256", "max", "256-max", "max",
    ]  # fmt: skip


def test_what_views_cost_is_told_in_whole_photos() -> None:
    assert cost([WHOLE], 224) == 1
    assert cost([WHOLE, FLIP, View(256, "center")], 224) == 3
    assert cost([View(256), View(160)], 224) == pytest.approx((256**2 + 160**2) / 224**2)


@pytest.mark.parametrize("size", [200, 224])
def test_a_crop_out_of_too_small_a_photo_is_refused(size: int) -> None:
    with pytest.raises(ShelfmarkError, match=f"out of {size} px; expected a photo of more than 224 px; "):
        View(size, "center").require_size(224)


def test_a_second_name_for_the_same_view_is_refused() -> None:
    with pytest.raises(ShelfmarkError, match=r"view 224-flip: 224 px is the .* own size; .*; write flip in"):
        View(224, flip=True).require_size(224)
    View(225, "center").require_size(224)
