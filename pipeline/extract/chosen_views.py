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
    quality, why = settings.quality, ""
    if quality == "auto":
        if kept := _kept(settings, backbone, before):
            log.info("views: %s, as the release in service: its images are in the store", _listed(kept.views))
            return kept
        size = images * cost(_of_quality("best", backbone)[0], backbone.image_size)
        quality = "best" if size <= AN_HOUR else "fast"
        why = f"all views of {images:,} photos cost as much as {size:,.0f} whole ones; limit {AN_HOUR:,}"
    chosen = _chosen(settings, quality, backbone)
    if settings.views and settings.quality != "fast":
        log.info("views: %s, as extract.views says; not those of quality %s", _listed(chosen.views), quality)
    if why:
        log.info("views: %s (%s): %s", _listed(chosen.views), quality, why)
    return chosen


def require_views(settings: ExtractSettings, backbone: Backbone, before: HeadShape | None) -> None:
    """Checks the views of a run before its images are counted; arguments as of `choose_views`.

    What `auto` takes may depend on their number: it is refused where neither best nor fast can be had.

    Raises:
        ShelfmarkError: as `choose_views`.
    """
    if settings.quality != "auto":
        _chosen(settings, settings.quality, backbone)
    elif not _kept(settings, backbone, before):
        try:
            _chosen(settings, "fast", backbone)
        except ShelfmarkError:
            _chosen(settings, "best", backbone)


def _kept(settings: ExtractSettings, backbone: Backbone, before: HeadShape | None) -> ChosenViews | None:
    """The views of the release in service, if `auto` keeps to them; raises as `choose_views`.

    A head says from which views it predicts. Where they are those of one quality, it was trained on all of
    that quality.
    """
    is_open = settings.views is None and settings.flip is None
    if before is None or before.fingerprint != backbone.fingerprint or not is_open:
        return None
    predicts = tuple(map(parse_view, before.views))
    alike = [name for name in QUALITIES if predicts == (_asked(settings) or _of_quality(name, backbone)[1])]
    if len(alike) == 1:
        return _chosen(settings, alike[0], backbone)
    return None if alike else _with_asked(settings, predicts, predicts)


def _chosen(settings: ExtractSettings, quality: str, backbone: Backbone) -> ChosenViews:
    """The views of the settings, which a quality fills; raises as `choose_views`."""
    mirrored = settings.flip if settings.flip is not None else QUALITIES[quality][1]
    views = tuple(map(parse_view, settings.views or ())) or _of_quality(quality, backbone)[1]
    every = _mirrored(views) if mirrored else views
    for view in every:
        backbone.require_view(view)
    return _with_asked(settings, every, every if settings.flip else views)


def _of_quality(name: str, backbone: Backbone) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """The views of a quality that are trained on, and of these those that predictions are made from."""
    scales, flip = QUALITIES[name]
    middles = [View(round(backbone.image_size * scale), "center") for scale in scales]
    views = (WHOLE, *middles)
    return _mirrored(views) if flip else views, views


def _mirrored(views: Sequence[View]) -> tuple[View, ...]:
    """The views, each followed by its mirrored one; each once."""
    return tuple(dict.fromkeys(one for view in views for one in (view, view.mirrored())))


def _asked(settings: ExtractSettings) -> tuple[View, ...]:
    return tuple(map(parse_view, settings.asked))


def _with_asked(
    settings: ExtractSettings, views: tuple[View, ...], predicts: tuple[View, ...]
) -> ChosenViews:
    """The views, of which extract.asked names those that predictions are made from; else `predicts`."""
    asked = _asked(settings) or predicts
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
            "the first of which decides alone where it is certain; set --quality best or extract.views, or "
            "extract.cascade = 0"
        )
    if averaged:
        raise ShelfmarkError(
            "extract.cascade: the views are averaged, and the head knows no first view; expected views that "
            "are apart; set extract.combine = apart, or extract.cascade = 0"
        )


def _listed(views: Sequence[View]) -> str:
    return ", ".join(view.name for view in views)
