"""The plots of the report as plotly figures: traces and layout, which the page's script draws.

Axes are in per cent, so that numbers get the language's per cent sign. Lines differ in dashes and markers,
not only in colour. Each figure is described in words for those who do not see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.decisions.categories import restrict
from models.decisions.thresholds import lower_bound
from pipeline.report.data import Products, ReportData
from pipeline.report.language import Words

CURVE_POINTS = 1000  # of a plot some 600 px wide
LEVEL_POINTS = 300
BINS = 20
# Okabe and Ito's hues, for colour-blind readers; darker, for text
BLUE, ORANGE, GREEN, PURPLE, INK, GREY = "#0063a0", "#b34700", "#00714f", "#7a3b69", "#1f2933", "#57626d"
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Plot:
    """A plotly figure, and its content in words."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    alt: str

    def script(self) -> dict[str, Any]:
        """What the page's script gets."""
        return {"data": self.data, "layout": self.layout}


# The curve


@dataclass(frozen=True, eq=False)
class Curve:
    """The measured curve, thinned, from few accepted products to all."""

    threshold: np.ndarray  # (m,) float
    rate: np.ndarray  # acceptance rate, 0 to 1
    precision: np.ndarray
    lower: np.ndarray  # of the precision, at the certificate's certainty
    upper: np.ndarray

    def at(self, threshold: float) -> int:
        """The point that accepts what `threshold` accepts: the last one that is not below it; -1 for none."""
        return int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1


def measured_curve(data: ReportData, keep: Sequence[float]) -> Curve:
    """The measured curve with about CURVE_POINTS points, among them those of the thresholds to keep."""
    columns = ["threshold", "acceptance_rate", "precision", "precision_lower"]
    threshold, rate, precision, lower = data.curve[columns].to_numpy(float).T
    some = np.linspace(0, len(threshold) - 1, min(len(threshold), CURVE_POINTS)).astype(int)
    kept = np.searchsorted(-threshold, -np.array(keep, float), side="right") - 1
    chosen = np.unique(np.concatenate([some, kept[kept >= 0]]).astype(int))
    products = data.measured.products if data.measured else 0
    accepted = np.rint(rate[chosen] * products).astype(int)
    correct = np.rint(precision[chosen] * accepted).astype(int)
    upper = 1 - lower_bound(accepted, correct, data.rules.delta)
    return Curve(threshold[chosen], rate[chosen], precision[chosen], lower[chosen], upper)


def thresholds_to_keep(data: ReportData) -> list[float]:
    """The certified thresholds."""
    certificates = (*data.rules.ladder, data.rules.certificate)
    return [one.threshold for one in certificates if one.threshold is not None]


# Acceptance


def acceptance_plot(data: ReportData, curve: Curve, words: Words) -> Plot:
    """Precision against acceptance rate of every level (S1, figure 5), with the certified points."""
    target = data.rules.certificate.target
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    name = words("acceptance.category")
    traces = [
        _line(curve.rate, curve.upper, words("acceptance.band"), words, **band),
        _line(
            curve.rate, curve.lower, words("acceptance.band"), words,
            **band | {"fill": "tonexty", "fillcolor": "rgba(0,99,160,.16)", "showlegend": True},
        ),
        *_coarser(data, words),
        _line(curve.rate, curve.precision, name, words, line={"color": BLUE, "width": 3}),
        *_certified(data, curve, words),
    ]  # fmt: skip
    settled = curve.precision[
        curve.rate >= 0.02
    ]  # the precision of the first few products jumps between 0 and 1
    lowest = min([target, *settled.tolist()])
    layout = _layout(words, "acceptance.x", "acceptance.y") | {
        "shapes": [_rule(y=target)],
        "annotations": [_note(words("acceptance.promised", target=words.target(target)), y=target)],
    }
    layout["xaxis"] |= {"range": [0, 102]}
    layout["yaxis"] |= {"range": [100 * max(0, lowest - 0.06), 101]}
    points = [int(np.argmin(np.abs(curve.rate - rate))) for rate in (0.25, 0.5, 0.75, 1.0)]
    described = (
        words(
            "acceptance.at", rate=words.percent(curve.rate[at]), precision=words.percent(curve.precision[at])
        )
        for at in dict.fromkeys(points)
    )
    return Plot(traces, layout, words("acceptance.alt", rates="; ".join(described)))


def _coarser(data: ReportData, words: Words) -> list[dict[str, Any]]:
    """The curves of the levels above the category."""
    levels = sorted(data.level_curves["level"].unique().tolist())
    traces = []
    for index, level in enumerate(levels[:-1]):
        table = data.level_curves[data.level_curves["level"] == level]
        some = table.iloc[np.unique(np.linspace(0, len(table) - 1, LEVEL_POINTS).astype(int))]
        name = words("acceptance.level", level=level)
        line = {"color": (GREY, PURPLE)[index % 2], "width": 1.8, "dash": DASHES[index % len(DASHES)]}
        traces.append(_line(some["acceptance_rate"], some["precision"], name, words, line=line))
    return traces


def _certified(data: ReportData, curve: Curve, words: Words) -> list[dict[str, Any]]:
    """The certified points: the one in use filled, those of other targets open."""
    used = data.rules.certificate.threshold
    others = [one for one in data.rules.ladder if one.threshold not in (None, used)]
    at = [curve.at(one.threshold) for one in others if one.threshold is not None]
    at = [point for point in at if point >= 0]
    traces = []
    if at:
        marker = {"symbol": "circle-open", "size": 10, "color": GREEN, "line": {"width": 2}}
        traces.append(
            _line(
                curve.rate[at],
                curve.precision[at],
                words("acceptance.certified"),
                words,
                mode="markers",
                marker=marker,
            )
        )
    if used is not None and curve.at(used) >= 0:
        marker = {"symbol": "circle", "size": 12, "color": GREEN, "line": {"width": 1.5, "color": "#fff"}}
        here = [curve.at(used)]
        traces.append(
            _line(
                curve.rate[here],
                curve.precision[here],
                words("acceptance.in_use"),
                words,
                mode="markers",
                marker=marker,
            )
        )
    return traces


# Categories


def cumulative_plot(data: ReportData, words: Words) -> Plot | None:
    """Cumulative precision and acceptance over categories, the most precise on FIT first (S1, figure 7)."""
    best = restrict(
        data.categories["fit_predicted"].to_numpy(), data.categories["fit_right"].to_numpy()
    ).order
    ordered = data.categories.iloc[best]
    ordered = ordered[ordered["predicted"] > 0]
    if not len(ordered):
        return None
    products = int(data.categories["predicted"].sum())
    predicted = ordered["predicted"].cumsum().to_numpy()
    rate, precision = predicted / products, ordered["predicted_right"].cumsum().to_numpy() / predicted
    some = np.unique(np.linspace(0, len(ordered) - 1, CURVE_POINTS).astype(int))
    x = some + 1
    traces = [
        _line(
            x / 100, precision[some], words("cumulative.precision"), words, line={"color": BLUE, "width": 3}
        ),
        _line(
            x / 100,
            rate[some],
            words("cumulative.acceptance"),
            words,
            line={"color": ORANGE, "width": 2.5, "dash": "dash"},
        ),
    ]
    for trace in traces:
        trace["hovertemplate"] = f"%{{x}}: %{{y:.1f}}{words.marks['percent']}<extra>{trace['name']}</extra>"
    layout = _layout(words, "cumulative.x", "cumulative.y")
    layout["xaxis"] = _axis(words("cumulative.x")) | {"range": [0, len(ordered) * 1.02]}
    layout["yaxis"] |= {"range": [0, 102]}
    if data.rules.restriction:
        at = int(ordered["kept"].sum())
        note = words("cumulative.kept", share=words.target(data.rules.restriction.share))
        layout |= {"shapes": [_rule(x=at)], "annotations": [_note(note, x=at)]}
    half = (len(ordered) - 1) // 2
    alt = words(
        "cumulative.alt", categories=words.count(len(ordered)), precision=words.percent(precision[-1]),
        half=words.percent(precision[half]), rate=words.percent(rate[half]),
    )  # fmt: skip
    return Plot(traces, layout, alt)


# Reliability


def reliability_plot(products: Products, words: Words) -> Plot | None:
    """Correct share against confidence in BINS bins of equal width, with Wilson's intervals."""
    if not len(products):
        return None
    index = np.minimum((products.confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    there = count > 0
    correct = np.bincount(index, products.correct, BINS)[there] / count[there]
    confidence = np.bincount(index, products.confidence, BINS)[there] / count[there]
    centre, half = wilson(correct, count[there])
    bars = {
        "type": "bar",
        "x": (100 * (np.arange(BINS) + 0.5) / BINS).round(2).tolist(),
        "y": count.tolist(),
        "yaxis": "y2",
        "marker": {"color": "#c9d3dc"},
        "name": words("reliability.products"),
        "width": 96 / BINS,
        "hovertemplate": "%{y}<extra>" + words("reliability.products") + "</extra>",
    }
    measured = _line(confidence, correct, words("reliability.measured"), words, mode="lines+markers")
    measured |= {"line": {"color": BLUE, "width": 2}, "marker": {"size": 7, "color": BLUE}}
    measured["error_y"] = {
        "type": "data", "symmetric": False, "color": BLUE, "thickness": 1.2, "width": 3,
        "array": _percent(centre + half - correct), "arrayminus": _percent(correct - centre + half),
    }  # fmt: skip
    diagonal = _line([0, 1], [0, 1], words("reliability.diagonal"), words, hoverinfo="skip")
    diagonal |= {"line": {"color": INK, "width": 1, "dash": "dash"}}
    layout = _layout(words, "reliability.x", "reliability.y")
    layout["xaxis"] |= {"range": [0, 100]}
    layout["yaxis"] |= {"range": [0, 101]}
    layout["yaxis2"] = {
        "overlaying": "y",
        "side": "right",
        "showgrid": False,
        "range": [0, 4 * int(count.max())],
        "visible": False,
    }
    layout["yaxis"] |= {"overlaying": "y2"}
    del layout["yaxis2"]["overlaying"]
    error = float(np.average(np.abs(correct - confidence), weights=count[there]))
    alt = words("reliability.alt", error=words.decimal(100 * error, 1))
    return Plot([bars, diagonal, measured], layout, alt)


def wilson(share: np.ndarray, count: np.ndarray, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width of Wilson's interval (1927) of shares of `count` products.

    >>> centre, half = wilson(np.array([0.5]), np.array([10]))
    >>> (centre - half).round(4), (centre + half).round(4)
    (array([0.2366]), array([0.7634]))
    """
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale
    return centre, half


# Sellers


def corrections_title(words: Words, corrections: Any) -> str:
    """A number of corrections, or all of a seller's."""
    return words("sellers.all") if pd.isna(corrections) else words.count(corrections)


def seller_gains_plot(gains: pd.DataFrame, words: Words) -> Plot | None:
    """Gain in points after numbers of corrections, with intervals; None where nothing was measured."""
    if not len(gains) or gains["gain"].isna().any():
        return None
    titles = [corrections_title(words, corrections) for corrections in gains["corrections"]]
    gain, lower, upper = (gains[name].to_numpy(float) for name in ("gain", "lower", "upper"))
    name = words("sellers.gain")
    trace = {
        "type": "scatter", "mode": "lines+markers", "x": titles, "y": _percent(gain), "name": name,
        "line": {"color": BLUE, "width": 2}, "marker": {"size": 8, "color": BLUE},
        "error_y": {
            "type": "data", "symmetric": False, "color": BLUE, "thickness": 1.4, "width": 5,
            "array": _percent(upper - gain), "arrayminus": _percent(gain - lower),
        },
        "hovertemplate": f"%{{x}}: %{{y:+.1f}}<extra>{name}</extra>",
    }  # fmt: skip
    layout = _layout(words, "sellers.x", "sellers.y") | {"shapes": [_rule(y=0)], "showlegend": False}
    layout["xaxis"] = _axis(words("sellers.x")) | {"type": "category"}
    layout["yaxis"] = _axis(words("sellers.y"))
    shown = (f"{title}: {words.points(one)}" for title, one in zip(titles, gain, strict=True))
    return Plot([trace], layout, words("sellers.alt", gains="; ".join(shown)))


# Training


def learning_plot(history: pd.DataFrame, what: str, kept: int | None, words: Words) -> Plot:
    """Accuracy or loss against the epoch; validation is seen at first, training after a click."""
    epochs = np.arange(1, len(history) + 1)
    percent, traces, last = what == "accuracy", [], []
    validation = f"val_{what}" in history
    lines = ((f"val_{what}", "part.val.small", BLUE, "solid"), (what, "part.train.small", ORANGE, "dash"))
    for column, key, colour, dash in lines:
        if column in history:
            values = history[column].to_numpy(float)
            trace = _line(epochs, values, words(key), words, line={"color": colour, "width": 2, "dash": dash})
            number = words.percent(values[-1]) if percent else words.number(values[-1])
            last.append(f"{words(key)} {number}")
            mark = words.marks["percent"] if percent else ""
            trace |= {"x": epochs.tolist(), "y": _percent(values) if percent else values.round(4).tolist()}
            trace["hovertemplate"] = f"%{{x}}: %{{y:.4~g}}{mark}<extra>{words(key)}</extra>"
            if column == what and validation:
                trace["visible"] = "legendonly"
            traces.append(trace)
    layout = _layout(words, "training.epoch", f"training.{what}")
    layout["xaxis"] = _axis(words("training.epoch"))
    if not percent:
        layout["yaxis"] = _axis(words(f"training.{what}"))
    if kept:
        layout |= {"shapes": [_rule(x=kept)], "annotations": [_note(words("training.kept"), x=kept)]}
    title = words(f"training.{what}")
    alt = words("training.alt", what=title, epochs=words.count(len(history)), last=", ".join(last))
    return Plot(traces, layout, alt)


# plotly


def _percent(values: Any) -> list[float]:
    rounded: list[float] = (100 * np.asarray(values, float)).round(3).tolist()
    return rounded


def _line(x: Any, y: Any, name: str, words: Words, **changes: Any) -> dict[str, Any]:
    """A line of shares against shares."""
    mark = words.marks["percent"]
    trace = {
        "type": "scatter", "mode": "lines", "x": _percent(x), "y": _percent(y), "name": name,
        "hovertemplate": f"%{{x:.1f}}{mark}: %{{y:.1f}}{mark}<extra>{name}</extra>",
    }  # fmt: skip
    if changes.get("hoverinfo"):
        del trace["hovertemplate"]
    return trace | changes


def _axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": "#e3e7eb",
        "zeroline": False,
        "linecolor": "#98a2ad",
        "automargin": True,
        "fixedrange": True,
    }


def _layout(words: Words, x: str, y: str) -> dict[str, Any]:
    """Axes of shares; `x` and `y` are keys of their titles."""
    marks = words.marks
    return {
        "xaxis": _axis(words(x)) | {"ticksuffix": marks["percent"]},
        "yaxis": _axis(words(y)) | {"ticksuffix": marks["percent"]},
        "separators": marks["decimal"] + marks["thousands"],
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "legend": {"orientation": "h", "y": -0.22, "x": 0, "xanchor": "left", "yanchor": "top"},
        "font": {"family": "inherit", "size": 13, "color": INK},
        "hovermode": "closest",
        "dragmode": False,
    }


def _rule(x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """A dashed line across the plot at a share y, or at x."""
    line = {"color": INK, "width": 1, "dash": "dash"}
    if y is not None:
        return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100 * y, "y1": 100 * y, "line": line}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line}


def _note(text: str, x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """What a rule means, at its end."""
    plain = {
        "text": text,
        "showarrow": False,
        "font": {"size": 12, "color": INK},
        "bgcolor": "rgba(255,255,255,.8)",
    }
    if y is not None:
        return plain | {"xref": "paper", "x": 0, "xanchor": "left", "y": 100 * y, "yanchor": "bottom"}
    return plain | {"yref": "paper", "y": 0.02, "yanchor": "bottom", "x": x, "xanchor": "right", "xshift": -4}
