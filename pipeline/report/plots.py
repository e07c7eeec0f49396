"""The plots of the report, as SVG that scales with the page: the same bytes for the same run."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline.report.data import ReportData
from pipeline.report.text import best_epoch, level_names, named_parts, percent
from pipeline.train.figures import Metrics, PartFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


MOST_CURVE_POINTS = 1000  # of a plot some 600 px wide
# Okabe and Ito's hues, for colour-blind readers; darker, for text. Markers and dashes differ, too.
BLUE, ORANGE, GREEN, INK, GREY = "#0063a0", "#b34700", "#00714f", "#1f2933", "#57626d"


@dataclass(frozen=True)
class Plot:
    """A picture, and its content in words for those who do not see it."""

    svg: Markup
    alt: str


# Acceptance


def acceptance_plot(data: ReportData, measured: PartFigures) -> Plot:
    """Precision against acceptance rate (S1, figure 5), with the three points that matter."""
    target, points = data.rules.certificate.target, _points(data.curve, measured)
    some = np.unique(np.linspace(0, len(data.curve) - 1, MOST_CURVE_POINTS).astype(int))
    columns = ["acceptance_rate", "precision", "precision_lower"]
    rate, precision, lower = data.curve.iloc[some][columns].to_numpy().T

    figure, axes = _figure(5.7, 4.3)
    axes.fill_between(rate, lower, precision, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(rate, precision, color=BLUE, linewidth=2)
    axes.axhline(target, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    axes.annotate(
        f"promised\n{percent(target)}", (1, target), (9, 0), va="center", textcoords="offset points"
    )
    for point in points:
        _draw_point(axes, point)
    settled = precision[rate >= 0.02]  # the precision of the first few products jumps between 0 and 1
    lowest = min([target, *settled, *(point.precision for point in points)])
    bottom = max(0.0, float(np.floor(10 * lowest - 0.8)) / 10)
    axes.set(xlim=(0, 1), ylim=(bottom, 1), yticks=np.arange(bottom, 1.01, 0.1 if bottom < 0.75 else 0.05))
    axes.set(
        xlabel="acceptance rate: share of all products", ylabel="precision: correct share of the accepted"
    )
    _in_percent(axes.xaxis)
    _in_percent(axes.yaxis)
    described = (f"{point.label}, {percent(point.precision)} of the accepted correct" for point in points)
    return Plot(
        _svg(figure, "acceptance"), f"Curve of precision against acceptance rate. {'; '.join(described)}."
    )


@dataclass(frozen=True)
class _Marker:
    """The sign of a point, as Matplotlib names its shapes and colours."""

    shape: str
    size: float
    colour: str  # of the label, too
    face: str
    edge: str
    edge_width: float = 1.0


@dataclass(frozen=True)
class _LabelPosition:
    """Where the label of a point is."""

    xy: tuple[float, float]
    offset: tuple[float, float]  # in points
    ha: Literal["left", "right"]  # the side of the label that is at `xy`
    va: Literal["top", "bottom", "baseline"] = "baseline"
    xycoords: str | tuple[str, str] = "data"


@dataclass(frozen=True)
class _Point:
    """A marked point of the acceptance plot."""

    label: str
    acceptance_rate: float
    precision: float
    marker: _Marker
    position: _LabelPosition
    foot: bool = False  # whether a line goes down to the axis, where no curve crosses the label


SQUARE = _Marker("s", 9, GREY, face=GREY, edge=GREY)
DIAMOND = _Marker("D", 9, ORANGE, face="white", edge=ORANGE, edge_width=2)
CIRCLE = _Marker("o", 10, GREEN, face=GREEN, edge="white")


def _points(curve: pd.DataFrame, measured: PartFigures) -> list[_Point]:
    """Everything accepted, as measured, as certified; later ones are drawn over earlier ones."""
    rate = measured.acceptance_rate_at_target
    points = [_everything(measured)]
    if 0 < rate < 1:
        precision = float(np.interp(rate, curve["acceptance_rate"], curve["precision"]))
        position = _LabelPosition((rate, precision), (4, 10), "left" if rate < 0.6 else "right", "bottom")
        points.append(_Point(f"measured, not used: {percent(rate)}", rate, precision, DIAMOND, position))
    if measured.accepted and measured.accepted_precision is not None:
        points.append(_certified(measured.accepted / measured.products, measured.accepted_precision))
    return points


def _everything(measured: PartFigures) -> _Point:
    all_reach_target = measured.acceptance_rate_at_target >= 1
    label = "measured: everything accepted" if all_reach_target else "everything accepted"
    position = _LabelPosition((1, measured.precision), (-6, -9), "right", "top")
    return _Point(label, 1.0, measured.precision, SQUARE, position)


def _certified(rate: float, precision: float) -> _Point:
    axis = ("data", "axes fraction")
    left = _LabelPosition((rate, 0), (5, 6), "left", xycoords=axis)
    right = _LabelPosition((rate, 0), (-5, 6), "right", xycoords=axis)
    label = f"certified, in use: {percent(rate)}"
    return _Point(label, rate, precision, CIRCLE, left if rate < 0.6 else right, foot=True)


def _draw_point(axes: "Axes", point: _Point) -> None:
    marker, position = point.marker, point.position
    if point.foot:
        axes.vlines(point.acceptance_rate, 0, point.precision, color=marker.colour)
    axes.plot(
        point.acceptance_rate, point.precision, marker=marker.shape, markersize=marker.size,
        color=marker.colour, markerfacecolor=marker.face, markeredgecolor=marker.edge,
        markeredgewidth=marker.edge_width, clip_on=False, zorder=5,
    )  # fmt: skip
    axes.annotate(
        point.label, position.xy, position.offset, position.xycoords, "offset points",
        ha=position.ha, va=position.va, weight="bold", color=marker.colour,
    )  # fmt: skip


# Levels


def levels_plot(metrics: Metrics, measured: PartFigures) -> Plot:
    """Top-1 and top-5 share of each part at each level, with a line between them."""
    names = level_names(measured.levels)
    parts = [(part.title.lower(), part.figures) for part in named_parts(metrics) if part.figures]
    figure, axes = _figure(5.7, 0.6 + 0.23 * len(names) * (len(parts) + 1.5))
    ticks, described, y = {}, [], 0.0
    for level, title in names.items():
        axes.annotate(
            title, (0, y), (4, 0), textcoords="offset points", va="center", weight="bold", color=INK
        )
        for name, figures in parts:
            y += 1
            shares = figures.levels[level]
            axes.plot(
                [shares.top1, shares.top5], [y, y],
                color=BLUE, alpha=0.35, linewidth=4, solid_capstyle="butt",
            )  # fmt: skip
            for at, face in ((shares.top5, "white"), (shares.top1, BLUE)):
                axes.plot(at, y, "o", color=BLUE, markerfacecolor=face, markersize=8, clip_on=False, zorder=3)
            ticks[y] = name
            described.append(f"{title}, {name}: {percent(shares.top1)} and {percent(shares.top5)}")
        y += 1.5
    axes.set(xlim=(0, 1), ylim=(y - 0.8, -0.8))
    axes.set_yticks(list(ticks), labels=list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    _in_percent(axes.xaxis)
    alt = f"Shares with a correct first category, and with one among the first five. {'; '.join(described)}."
    return Plot(_svg(figure, "levels"), alt)


# Training


def learning_plots(history: pd.DataFrame) -> list[Plot]:
    """Accuracy and loss against the epoch; the epoch that was kept is marked."""
    titles = {"accuracy": "accuracy: correct share of the images", "loss": "loss: lower is better"}
    return [_learning_plot(history, what, title) for what, title in titles.items()]


def _learning_plot(history: pd.DataFrame, what: str, title: str) -> Plot:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(4.8, 3.4)
    epochs, described = np.arange(1, len(history) + 1), []
    lines = ((what, "training", ORANGE, (0, (5, 2))), (f"val_{what}", "validation", BLUE, "-"))
    for column, label, colour, dash in lines:
        if column in history:
            axes.plot(epochs, history[column], color=colour, linestyle=dash, linewidth=2, label=label)
            described.append(f"{label} {history[column].iloc[-1]:.3f}")
    best = best_epoch(history)
    if best:
        axes.axvline(best.epoch, color=GREY, linewidth=1, linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if what == "accuracy":
        _in_percent(axes.yaxis)
    axes.legend(frameon=False)
    alt = f"{what.capitalize()} over {len(history)} epochs; at the end: {', '.join(described)}."
    return Plot(_svg(figure, what), alt)


# Matplotlib


@contextmanager
def plain_style() -> Iterator[None]:
    """Uses Matplotlib's own defaults, whatever matplotlibrc is on this machine."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty plot, sizes in inches; the page scales it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#98a2ad")
    axes.tick_params(colors=GREY, labelsize=10)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    axes.grid(color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _in_percent(axis: "Axis") -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, symbol="\u202f%"))


def _svg(figure: "Figure", name: str) -> Markup:
    """The figure as an <svg> that scales with the page, the same bytes every time."""
    import matplotlib

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the date would change the bytes
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    box = re.search(r'viewBox="[^"]*"', buffer.getvalue())
    body = re.search(r"</defs>(.*)</svg>", buffer.getvalue(), re.DOTALL)
    assert box and body
    plain = re.sub(
        r'<g id="[^"]*">', "<g>", body[1]
    )  # the ids are the same in every figure; nothing refers to them
    return Markup(f'<svg {box[0]} aria-hidden="true" focusable="false">{plain}</svg>')
