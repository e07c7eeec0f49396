"""The plots of the report, as SVG that scales with the page: the same bytes for the same run."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline.report.data import ReportData
from pipeline.report.text import PARTS, best_epoch, level_names, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


MOST_CURVE_POINTS = 1000  # of a plot some 600 px wide
# Okabe and Ito's hues, darker for text: colour-blind readers tell them apart. Markers and dashes do too.
BLUE, ORANGE, GREEN, INK, GREY = "#0063a0", "#b34700", "#00714f", "#1f2933", "#57626d"


@dataclass(frozen=True)
class Plot:
    """A picture, and the same in words for those who do not see it."""

    svg: Markup
    alt: str


def acceptance_plot(data: ReportData) -> Plot:
    """Precision against acceptance rate (S1, figure 5), with the three points that matter."""
    target, points = data.thresholds["target"], _points(data)
    some = np.unique(np.linspace(0, len(data.curve) - 1, MOST_CURVE_POINTS).astype(int))
    columns = ["acceptance_rate", "precision", "precision_lower"]
    rate, precision, lower = data.curve.iloc[some][columns].to_numpy().T

    figure, axes = _figure(5.7, 4.3)
    axes.fill_between(rate, lower, precision, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(rate, precision, color=BLUE, linewidth=2)
    axes.axhline(target, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    near: dict[str, Any] = {"textcoords": "offset points"}
    axes.annotate(f"promised\n{percent(target)}", (1, target), (9, 0), va="center", **near)
    for point in points:
        if point.foot:
            axes.vlines(point.acceptance_rate, 0, point.precision, color=point.marker["color"])
        axes.plot(point.acceptance_rate, point.precision, clip_on=False, zorder=5, **point.marker)
        axes.annotate(point.label, **point.place, **near, weight="bold", color=point.marker["color"])
    settled = precision[rate >= 0.02]  # the precision of the first few products jumps between 0 and 1
    lowest = min([target, *settled, *(point.precision for point in points)])
    bottom = max(0.0, float(np.floor(10 * lowest - 0.8)) / 10)
    axes.set(xlim=(0, 1), ylim=(bottom, 1), yticks=np.arange(bottom, 1.01, 0.1 if bottom < 0.75 else 0.05))
    axes.set(xlabel="acceptance rate: share of all products", ylabel="precision: right share of the accepted")
    _in_percent(axes.xaxis)
    _in_percent(axes.yaxis)
    told = (f"{point.label}, {percent(point.precision)} of the accepted right" for point in points)
    return Plot(_svg(figure, "acceptance"), f"Curve of precision against acceptance rate. {'; '.join(told)}.")


@dataclass(frozen=True)
class _Point:
    """A marked point of the acceptance plot."""

    label: str
    acceptance_rate: float
    precision: float
    marker: Mapping[str, Any]
    place: Mapping[str, Any]  # of the label
    foot: bool = False  # whether a line goes down to the axis, where the label stands clear of the curve


def _points(data: ReportData) -> list[_Point]:
    """Everything accepted, what was measured, what is certified; later ones are drawn over earlier ones."""
    graded = data.graded
    assert graded is not None
    square = {"marker": "s", "markersize": 9, "color": GREY}
    place: dict[str, Any] = {"xy": (1, graded["precision"]), "xytext": (-6, -9), "ha": "right", "va": "top"}
    measured = graded["acceptance_rate_at_target"]
    label = "everything accepted" if measured < 1 else "measured: everything accepted"
    points = [_Point(label, 1.0, graded["precision"], square, place)]
    if 0 < measured < 1:
        at = float(np.interp(measured, data.curve["acceptance_rate"], data.curve["precision"]))
        diamond = {"marker": "D", "markersize": 9, "color": ORANGE, "mfc": "white", "markeredgewidth": 2}
        side = "left" if measured < 0.6 else "right"
        place = {"xy": (measured, at), "xytext": (4, 10), "ha": side, "va": "bottom"}
        points.append(_Point(f"measured, not used: {percent(measured)}", measured, at, diamond, place))
    if graded["accepted"]:
        rate = graded["accepted"] / graded["products"]
        circle = {"marker": "o", "markersize": 10, "color": GREEN, "markeredgecolor": "white"}
        side, away = ("left", 5) if rate < 0.6 else ("right", -5)
        place = {"xy": (rate, 0), "xycoords": ("data", "axes fraction"), "xytext": (away, 6), "ha": side}
        label = f"certified, in use: {percent(rate)}"
        points.append(_Point(label, rate, graded["accepted_precision"], circle, place, foot=True))
    return points


def levels_plot(metrics: Mapping[str, Any]) -> Plot:
    """Top-1 and top-5 share of each part at each level, with a line between them."""
    names = level_names(metrics[metrics["graded_on"]]["levels"])
    parts = [part for part in PARTS if metrics[part]]
    figure, axes = _figure(5.7, 0.6 + 0.23 * len(names) * (len(parts) + 1.5))
    ticks, told, y = {}, [], 0.0
    for level, title in names.items():
        axes.annotate(
            title, (0, y), (4, 0), textcoords="offset points", va="center", weight="bold", color=INK
        )
        for part in parts:
            y += 1
            top1, top5 = (metrics[part]["levels"][level][top] for top in ("top1", "top5"))
            axes.plot([top1, top5], [y, y], color=BLUE, alpha=0.35, linewidth=4, solid_capstyle="butt")
            for at, face in ((top5, "white"), (top1, BLUE)):
                axes.plot(at, y, "o", color=BLUE, markerfacecolor=face, markersize=8, clip_on=False, zorder=3)
            ticks[y] = PARTS[part][0].lower()
            told.append(f"{title}, {ticks[y]}: {percent(top1)} and {percent(top5)}")
        y += 1.5
    axes.set(xlim=(0, 1), ylim=(y - 0.8, -0.8))
    axes.set_yticks(list(ticks), labels=list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    _in_percent(axes.xaxis)
    alt = f"Right at the first guess, and among five guesses. {'; '.join(told)}."
    return Plot(_svg(figure, "levels"), alt)


def learning_plots(history: pd.DataFrame) -> list[Plot]:
    """Accuracy and loss against the epoch, the kept one marked."""
    titles = {"accuracy": "accuracy: right share of the images", "loss": "loss: lower is better"}
    return [_learning_plot(history, what, title) for what, title in titles.items()]


def _learning_plot(history: pd.DataFrame, what: str, title: str) -> Plot:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(4.8, 3.4)
    epochs, told = np.arange(1, len(history) + 1), []
    lines = ((what, "training", ORANGE, (0, (5, 2))), (f"val_{what}", "validation", BLUE, "-"))
    for column, label, colour, dash in lines:
        if column in history:
            axes.plot(epochs, history[column], color=colour, linestyle=dash, linewidth=2, label=label)
            told.append(f"{label} {history[column].iloc[-1]:.3f}")
    best = best_epoch(history)
    if best:
        axes.axvline(best["epoch"], color=GREY, linewidth=1, linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if what == "accuracy":
        _in_percent(axes.yaxis)
    axes.legend(frameon=False)
    alt = f"{what.capitalize()} over {len(history)} epochs; at the end: {', '.join(told)}."
    return Plot(_svg(figure, what), alt)


@contextmanager
def plain_style() -> Iterator[None]:
    """Matplotlib as it comes, whatever this machine's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty plot of so many inches; the page scales it."""
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
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the date would change the bytes
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    box = re.search(r'viewBox="[^"]*"', buffer.getvalue())
    body = re.search(r"</defs>(.*)</svg>", buffer.getvalue(), re.DOTALL)
    assert box and body
    plain = re.sub(r'<g id="[^"]*">', "<g>", body[1])  # alike in every figure; nothing refers to them
    return Markup(f'<svg {box[0]} aria-hidden="true" focusable="false">{plain}</svg>')
