"""The views of a run: those of the settings, or of a quality, which fills what the settings leave open."""

from collections.abc import Sequence
from dataclasses import dataclass

from features.engines.backbones import Backbone
from features.errors import ShelfmarkError
from features.views import WHOLE, View, cost, parse_view
from models.heads.architectures import HeadShape
from pipeline.job.config import ExtractSettings
from pipeline.job.progress import log

# What a quality adds to the whole photo: its middle, cut out of the photo at this size, in units of the
# backbone's own; and each view mirrored, too, to train on. Every backbone can have these views. Chosen by
# measurement: docs/experiments/views.md.
QUALITIES: dict[str, tuple[tuple[float, ...], bool]] = {"fast": ((), False), "best": ((11 / 7,), True)}
# Whole photos that may be extracted for `auto` to take best: Inception v3 extracts 28 a second in float32 on
# two cores, 100,000 in an hour; smaller networks, and processors that compute in bfloat16, take less time.
AN_HOUR = 100_000


@dataclass(frozen=True)
class ChosenViews:
    """The views of each photo of a run."""

    views: tuple[View, ...]  # that are extracted; training takes all of them
    asked: tuple[View, ...]  # of these, those that predictions are made from
    averaged: bool  # an image's views are one row, their mean; else a row each

    def that_matter(self) -> dict[str, object]:
        """What the bottlenecks depend on."""
        views, asked = ([view.name for view in views] for views in (self.views, self.asked))
        return {"views": views, "asked": asked, "averaged": self.averaged}


def choose_views(
    settings: ExtractSettings, backbone: Backbone, images: int, before: HeadShape | None
) -> ChosenViews:
    """Returns the views of a run; a line in the log says which ones `auto` takes, and why.

    Args:
        settings: the section [extract].
        backbone: frozen.
        images: of the records.
        before: of the head in service; None: there is none.

    Raises:
        ShelfmarkError: the backbone cannot have a view, or a view of `asked` is not extracted.
    """
    if settings.views or settings.quality != "auto":
        chosen = _chosen(settings, settings.quality, backbone)
        if settings.views and settings.quality != "fast":
            views = _listed(chosen.views)
            log.info("views: %s, as extract.views says; not those of quality %s", views, settings.quality)
        return chosen
    if kept := _kept(settings, backbone, before):
        log.info("views: %s, as the release in service: its images are in the store", _listed(kept.views))
        return kept
    size = images * cost(_of_quality("best", backbone, None)[0], backbone.image_size)
    quality = "best" if size <= AN_HOUR else "fast"
    chosen = _chosen(settings, quality, backbone)
    log.info(
        "views: %s (%s): all views of %s photos cost as much as %s whole ones; limit %s",
        _listed(chosen.views), quality, f"{images:,}", f"{size:,.0f}", f"{AN_HOUR:,}",
    )  # fmt: skip
    return chosen


def require_views(settings: ExtractSettings, backbone: Backbone, before: HeadShape | None) -> None:
    """Checks the views of a run before its images are counted; arguments as of `choose_views`.

    What `auto` takes may depend on their number: it is refused where neither best nor fast can be had.

    Raises:
        ShelfmarkError: as `choose_views`.
    """
    if settings.views or settings.quality != "auto":
        _chosen(settings, settings.quality, backbone)
    elif not _kept(settings, backbone, before):
        try:
            _chosen(settings, "fast", backbone)
        except ShelfmarkError:
            _chosen(settings, "best", backbone)


def _kept(settings: ExtractSettings, backbone: Backbone, before: HeadShape | None) -> ChosenViews | None:
    """The views of the release in service, if `auto` keeps to them; raises as `choose_views`."""
    if before is None or before.fingerprint != backbone.fingerprint:
        return None
    views, predicts = (tuple(map(parse_view, names)) for names in (before.trained_views, before.views))
    if settings.flip not in (None, any(view.flip for view in views)):
        return None
    return _with_asked(settings, views, predicts)


def _chosen(settings: ExtractSettings, quality: str, backbone: Backbone) -> ChosenViews:
    """The views of the settings, or of a quality; raises as `choose_views`."""
    if settings.views:
        named = tuple(map(parse_view, settings.views))
        views = predicts = _mirrored(named) if settings.flip else named
    else:
        views, predicts = _of_quality(quality, backbone, settings.flip)
    for view in views:
        backbone.require_view(view)
    return _with_asked(settings, views, predicts)


def _of_quality(
    name: str, backbone: Backbone, flip: bool | None
) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """The views of a quality that are trained on, and of these those that predictions are made from."""
    scales, mirrored = QUALITIES[name]
    views = (WHOLE, *(View(round(backbone.image_size * scale), "center") for scale in scales))
    if flip is None:
        return _mirrored(views) if mirrored else views, views
    every = _mirrored(views) if flip else views
    return every, every


def _mirrored(views: Sequence[View]) -> tuple[View, ...]:
    """The views, each followed by its mirrored one; each once."""
    return tuple(dict.fromkeys(one for view in views for one in (view, view.mirrored())))


def _with_asked(
    settings: ExtractSettings, views: tuple[View, ...], predicts: tuple[View, ...]
) -> ChosenViews:
    """The views, of which extract.asked names those that predictions are made from; else `predicts`."""
    asked = tuple(map(parse_view, settings.asked)) or predicts
    if lacking := [view for view in asked if view not in views]:
        raise ShelfmarkError(
            f"extract.asked: {_listed(lacking)}: not among the views; expected some of {_listed(views)}; "
            "correct extract.asked or extract.views"
        )
    chosen = ChosenViews(views, asked, settings.combine == "averaged")
    require_cascade(settings.cascade, asked, chosen.averaged)
    return chosen


def require_cascade(share: float, asked: Sequence[View], averaged: bool) -> None:
    """Checks the setting extract.cascade against the views that predictions are made from.

    Raises:
        ShelfmarkError: there is no view to look again in, or no row of the first view.
    """
    if not share:
        return
    if len(asked) < 2:
        raise ShelfmarkError(
            f"extract.cascade: predictions are made from one view, {_listed(asked)}; expected two or more, "
            "the first of which decides alone where it is certain; set --quality best, name more views in "
            "extract.views or extract.asked, or set extract.cascade = 0"
        )
    if averaged:
        raise ShelfmarkError(
            "extract.cascade: the views are averaged, and the head knows no first view; expected views that "
            "are apart; set extract.combine = apart, or extract.cascade = 0"
        )


def _listed(views: Sequence[View]) -> str:
    return ", ".join(view.name for view in views)
