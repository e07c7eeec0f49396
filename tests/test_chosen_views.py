"""Which views a run has: those of the settings, else those of a quality."""

import logging
from dataclasses import replace
from typing import Any, cast

import pytest

from features.engines.backbones import Backbone
from features.errors import ShelfmarkError
from features.views import View
from models.heads.architectures import HeadShape
from pipeline.extract.chosen_views import AN_HOUR, choose_views, require_views
from pipeline.job.config import ExtractSettings
from pipeline.job.load_config import load_config


class Network:
    """A backbone of 224 px that can have every view."""

    image_size, fingerprint = 224, "network-224"

    def require_view(self, view: View) -> None:
        view.require_size(self.image_size)


class FixedNetwork(Network):
    """One that takes photos of its own size alone."""

    def require_view(self, view: View) -> None:
        if view.input(self.image_size) != self.image_size:
            raise ShelfmarkError(f"view {view.name}: takes 224 px alone; expected them; correct it")


def chosen(images: int = 1000, before: HeadShape | None = None, network: Any = None, **values: Any) -> Any:
    """Names of the views, and of those asked."""
    settings = ExtractSettings(**values)
    found = choose_views(settings, cast(Backbone, network or Network()), images, before)
    return [view.name for view in found.views], [view.name for view in found.asked]


BEST = ["whole", "flip", "352-center", "352-center-flip"]
ASKED = ["whole", "352-center"]


@pytest.mark.parametrize(
    ("values", "views"),
    [
        ({}, ["whole"]),
        ({"flip": True}, ["whole", "flip"]),
        ({"quality": "best", "flip": False}, ASKED),
        ({"quality": "best", "flip": True}, BEST),
        ({"views": ("256-center", "whole")}, ["256-center", "whole"]),
        ({"views": ("256-center", "whole"), "quality": "best"}, ["256-center", "whole"]),
        ({"views": ("256-center", "whole"), "quality": "auto"}, ["256-center", "whole"]),
        ({"views": ("whole", "flip", "352-center"), "flip": True}, BEST),
        ({"views": ("256", "max"), "flip": True}, ["256", "256-flip", "max", "max-flip"]),
    ],
)
def test_a_quality_fills_what_the_settings_leave_open(values: dict[str, Any], views: list[str]) -> None:
    assert chosen(**values) == (views, views)


def test_the_mirrored_views_that_best_adds_are_trained_on_and_not_asked() -> None:
    assert chosen(quality="best") == (BEST, ASKED)


def test_the_views_asked_are_some_of_those_extracted() -> None:
    assert chosen(quality="best", asked=("352-center", "whole")) == (BEST, ["352-center", "whole"])
    with pytest.raises(
        ShelfmarkError, match=r"extract.asked: 288: not among the views; expected some of whole"
    ):
        chosen(quality="best", asked=("flip", "288"))


def test_auto_takes_best_as_long_as_it_costs_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shelfmark")
    most = AN_HOUR // len(BEST)
    assert chosen(most, quality="auto")[0] == BEST
    assert chosen(most + 1, quality="auto")[0] == ["whole"]
    first, second = (record.message for record in caplog.records)
    assert first.startswith(
        "views: whole, flip, 352-center, 352-center-flip (best): all views of 25,000 photos cost as much"
    )
    assert second.startswith("views: whole (fast): ") and second.endswith("100,004 whole ones; limit 100,000")


def test_auto_keeps_to_the_views_of_the_release_of_the_same_backbone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "shelfmark")
    before = HeadShape(4, 3, (2, 2), 0.5, 1.0, "network-224", views=("whole", "288"))
    assert chosen(10**9, before, quality="auto") == (["whole", "288"], ["whole", "288"])
    assert caplog.messages == ["views: whole, 288, as the release in service: its images are in the store"]
    assert chosen(10**9, replace(before, fingerprint="another-224"), quality="auto")[0] == ["whole"]
    assert chosen(10**9, before, quality="auto", views=("flip",))[0] == ["flip"]


def test_auto_trains_on_what_the_release_was_trained_on_and_predicts_from_the_same() -> None:
    before = HeadShape(4, 3, (2, 2), 0.5, 1.0, "network-224", views=("whole",), trained=tuple(BEST))
    assert chosen(10**9, before, quality="auto") == (BEST, ["whole"])
    assert chosen(10**9, before, quality="auto", asked=("352-center",)) == (BEST, ["352-center"])
    assert chosen(10**9, before, quality="auto", flip=True) == (BEST, ["whole"])
    assert chosen(10**9, before, quality="auto", flip=False) == (["whole"], ["whole"])
    older = replace(before, trained=())
    assert chosen(1000, older, quality="auto", flip=False) == (["whole"], ["whole"])


def test_before_photos_are_counted_auto_is_refused_where_none_of_its_choices_can_be_had() -> None:
    def require(before: HeadShape | None = None, **values: Any) -> None:
        require_views(ExtractSettings(quality="auto", **values), cast(Backbone, Network()), before)

    require(cascade=0.3, asked=("whole", "352-center"))  # those of best
    with pytest.raises(
        ShelfmarkError, match=r"extract.asked: 288: not among the views; expected some of whole, f"
    ):
        require(asked=("288",))
    before = HeadShape(4, 3, (2, 2), 0.5, 1.0, "network-224", views=("whole", "288"))
    require(before, asked=("288",))
    with pytest.raises(
        ShelfmarkError, match=r"352-center: not among the views; expected some of whole, 288;"
    ):
        require(before, asked=("352-center",))


def test_every_backbone_can_have_the_views_of_best() -> None:
    assert chosen(network=FixedNetwork(), quality="best")[0] == BEST
    with pytest.raises(ShelfmarkError, match="takes 224 px alone"):
        chosen(network=FixedNetwork(), views=("256",))


def test_a_cascade_needs_a_first_view_and_others_after_it() -> None:
    assert chosen(quality="best", cascade=0.3) == (BEST, ASKED)
    with pytest.raises(ShelfmarkError, match=r"made from one view, whole; expected two or more, .* set"):
        chosen(cascade=0.3)
    with pytest.raises(ShelfmarkError, match=r"made from one view, flip; expected two or more"):
        chosen(quality="best", asked=("flip",), cascade=0.3)
    with pytest.raises(ShelfmarkError, match=r"the views are averaged.*; expected views that are apart; set"):
        chosen(quality="best", combine="averaged", cascade=0.3)


@pytest.mark.parametrize("share", ["1", "-0.1", "some"])
def test_a_cascade_that_is_no_share_is_refused(share: str) -> None:
    with pytest.raises(ShelfmarkError, match=r"extract\.cascade"):
        load_config(sets=(f"extract.cascade={share}",))


@pytest.mark.parametrize("name", ["extract.views", "extract.asked"])
def test_a_name_that_is_no_view_is_refused_with_the_setting(name: str) -> None:
    with pytest.raises(ShelfmarkError, match=rf"(?s){name}.*no view 'middle'; expected names such as whole"):
        load_config(sets=(f'{name}=["whole","middle"]',))


@pytest.mark.parametrize("name", ["extract.views", "extract.asked"])
@pytest.mark.parametrize("given", ["whole", "[whole,256]", '"256"'])
def test_views_that_are_no_list_are_refused_with_how_to_write_one(name: str, given: str) -> None:
    with pytest.raises(ShelfmarkError) as refused:
        load_config(sets=(f"{name}={given}",))
    text = given.strip('"')
    assert str(refused.value).startswith(
        f'--set {name}={given}: {name} = {text!r}: expected a list of views, as in --set \'{name}=["whole"'
    )


@pytest.mark.parametrize("name", ["extract.views", "extract.asked"])
def test_a_view_that_is_named_twice_is_refused(name: str) -> None:
    text = f'{name}=["whole","256","whole"]'
    with pytest.raises(ShelfmarkError) as refused:
        load_config(sets=(text,))
    assert str(refused.value) == (
        f"--set {text}: {name}: whole is there more than once; expected each view once; correct the setting"
    )


def test_views_of_the_settings_are_taken_before_those_of_a_quality_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "shelfmark")
    assert chosen(quality="best", views=("whole",), flip=False)[0] == ["whole"]
    assert caplog.messages == ["views: whole, as extract.views says; not those of quality best"]
