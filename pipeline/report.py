"""The report of a run: one self-contained page, index.html, for the people who answer for the shelves.

    runs/<run>/config.json                  run, code_version, settings
               records/manifest.json        summary: where every image went
               head/history.csv             epoch, loss, accuracy, and of FIT val_loss, val_accuracy
               thresholds/thresholds.json   target, delta, temperature, confidence, certificate
               evaluation/metrics.json      train, val, cert, test; graded_on, independent, weights, backbone
               evaluation/*.parquet         curve, categories, confusions
        └─ load ─► ReportData ─ write_report ─► report/index.html

The page opens without a network: styles, plots (SVG) and the script that sorts tables stand in it. It holds
no date, duration or absolute path, so the same run gives the same bytes.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from features.artifact import Artifact, open_artifact
from features.errors import ShelfmarkError
from pipeline.stage import stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST_CATEGORIES = 2000  # rows in the page: 1 MB; sorting 5,000 takes a phone seconds
MOST_CURVE_POINTS = 1000  # of a plot some 600 px wide
PARTS = {
    "train": ("Training", "The head learnt from these. Its figures are too good to be true."),
    "val": ("Validation", "Held back from learning. One share chose the settings, the other certified."),
    "cert": ("Certification", "The share of validation that set the threshold, and did nothing else."),
    "test": ("Test", "Took no part in anything. This is what to expect of new products."),
}
REASONS = {
    "missing": "the file is not there",
    "empty": "the file is empty",
    "not_an_image": "the file is no image",
    "format_not_allowed": "this image format is not accepted",
    "too_large": "larger than the limit",
    "truncated": "the file ends too early",
    "undecodable": "the file is damaged",
}
EVIDENCE = {  # terms of models/confidence.py
    "logit_p1": "probability of the most likely category",
    "log_p1_over_p2": "its lead over the second category",
    "entropy": "spread of the probability over all categories",
    "logit_parent_mass": "probability of the whole branch around the category",
    "log_category_size": "training products of the category",
    "log_images": "photos of the product",
}
COLUMNS = {
    "evaluation/curve.parquet": ("threshold", "acceptance_rate", "precision", "precision_lower"),
    "evaluation/categories.parquet": (
        *("category", "name", "train_products", "products", "right"),
        *("predicted", "predicted_right", "accepted", "accepted_right"),
    ),
    "evaluation/confusions.parquet": ("category", "category_name", "predicted", "predicted_name", "products"),
    "head/history.csv": ("epoch", "loss", "accuracy"),  # and val_loss, val_accuracy where FIT has products
}
STAGES = {"evaluation": "evaluate", "thresholds": "calibrate", "head": "train"}

# Okabe and Ito's hues, darker for text: colour-blind readers tell them apart. Markers and dashes do too.
BLUE, ORANGE, GREEN, INK, GREY = "#0063a0", "#b34700", "#00714f", "#1f2933", "#57626d"


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the report tells about a run; the columns of the tables are in COLUMNS."""

    run: str
    code_version: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    thresholds: Mapping[str, Any]
    summary: Mapping[str, Any]  # of the records
    history: pd.DataFrame  # one row an epoch
    curve: pd.DataFrame  # of the graded part, by descending threshold
    categories: pd.DataFrame  # counts on the graded part
    confusions: pd.DataFrame  # the worst first

    @property
    def graded(self) -> Mapping[str, Any] | None:
        """The figures of the part that grades: test, else cert; None where neither has products."""
        graded: Mapping[str, Any] | None = self.metrics[self.metrics["graded_on"]]
        return graded


@dataclass(frozen=True)
class Plot:
    """A picture, and the same in words for those who do not see it."""

    svg: Markup
    alt: str


VERSION = 1


def report(run: Path) -> Artifact:
    """Writes the report of a run's directory.

    Raises:
        ShelfmarkError: a stage before has not run; it is named.
    """
    data = load(run)
    made_from: dict[str, Any] = {
        name: open_artifact(run / name, name).digest for name in (*STAGES, "records")
    }
    made_from["shown"] = [data.run, data.code_version, data.settings]

    def make(work: Path) -> Mapping[str, Any]:
        write_report(data, work)
        return {"page": "index.html"}

    return stage(run / "report", kind="report", version=VERSION, made_from=made_from, make=make)


# Reading a run


def load(run: Path) -> ReportData:
    """Reads what the report needs of a run's directory.

    Raises:
        ShelfmarkError: a file is missing, damaged or of another version; the stage that makes it is named.
    """
    told = ("graded_on", "independent", "weights", "backbone", *PARTS)
    metrics = _read_json(run, "evaluation/metrics.json", told)
    curve, categories, confusions, history = (_read_table(run, name) for name in COLUMNS)
    told = ("target", "delta", "temperature", "confidence", "certificate")
    thresholds = _read_json(run, "thresholds/thresholds.json", told)
    records = _read_json(run, "records/manifest.json", ("summary",))
    config = _read_json(run, "config.json", ("run", "code_version", "settings"))
    return ReportData(
        run=config["run"],
        code_version=config["code_version"],
        settings=config["settings"],
        metrics=metrics,
        thresholds=thresholds,
        summary=records["summary"],
        history=history,
        curve=curve,
        categories=categories,
        confusions=confusions,
    )


def _read_json(run: Path, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((run / name).read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error
    missing = [key for key in keys if key not in values]
    if missing:
        raise _unusable(run, name, f"no {', '.join(missing)} in it")
    return values


def _read_table(run: Path, name: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(run / name) if name.endswith(".csv") else pd.read_parquet(run / name)
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error
    missing = [column for column in COLUMNS[name] if column not in table]
    if missing:
        raise _unusable(run, name, f"no column {', '.join(missing)}")
    return table


def _unusable(run: Path, name: str, why: Exception | str) -> ShelfmarkError:
    told = "missing" if isinstance(why, FileNotFoundError) else f"not usable ({str(why).splitlines()[0]})"
    command = STAGES.get(Path(name).parts[0], "ingest")
    expected = "expected what the report tells of"
    return ShelfmarkError(f"{run / name}: {told}; {expected}; run `shelfmark {command}` first")


# Writing the page


def write_report(data: ReportData, out: Path) -> None:
    """Writes `out`/index.html; the same data give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(render(data), encoding="utf-8", newline="\n")


def render(data: ReportData) -> str:
    """The page as HTML. Names from the catalogue are escaped: they may hold anything."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "count": count, "signed": signed}
    with _plain_style():
        plots = {
            "acceptance_plot": acceptance_plot(data) if data.graded else None,
            "levels_plot": levels_plot(data.metrics) if data.graded else None,
            "learning_plots": learning_plots(data.history),
        }
    return templates.get_template("report.html.j2").render(
        data=data,
        graded=data.graded,
        graded_name=PARTS[data.metrics["graded_on"]][0].lower(),
        certificate=data.thresholds["certificate"],
        headline=headline(data),
        below_promise=data.graded is not None and _below_promise(data.graded),
        parts=[(*PARTS[name], data.metrics[name]) for name in PARTS],
        levels=_level_names(data.graded["levels"]) if data.graded else {},
        account=account(data.summary),
        categories=category_rows(data.categories),
        concentration=concentration(data.categories),
        confusions=data.confusions.to_dict("records"),
        coefficients=_coefficients(data.thresholds["confidence"]),
        settings=list(_flat(data.settings)),
        best=_best_epoch(data.history),
        **plots,
        share=share,
    )


# Numbers and sentences


def percent(value: float | None) -> str:
    """A share as per cent with one decimal; a dash where there is none.

    >>> percent(0.5149), percent(0.0001), percent(None)
    ('51.5\\u202f%', '<0.1\\u202f%', '–')
    """
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.1\u202f%"
    if 0.9995 <= value < 1:
        return ">99.9\u202f%"  # never 100 % when something was wrong
    return f"{100 * value:.1f}\u202f%"


def count(value: int) -> str:
    """A whole number with narrow no-break spaces.

    >>> count(1234567)
    '1\\u202f234\\u202f567'
    """
    return f"{value:,}".replace(",", "\u202f")


def signed(value: float) -> str:
    """A number with its sign and three digits.

    >>> signed(-1.2345)
    '−1.23'
    """
    return f"{value:+.3g}".replace("-", "−")


def share(part: int, whole: int) -> float | None:
    """Part / whole; None of nothing."""
    return part / whole if whole else None


def headline(data: ReportData) -> str:
    """One sentence: what share can be shelved automatically at the promised precision, certified or not."""
    certificate, target = data.thresholds["certificate"], percent(data.thresholds["target"])
    if certificate["threshold"] is not None:
        of = data.graded or certificate
        rate = percent(share(of["accepted"], of["products"]))
        what = "of the products can be shelved automatically at the promised precision"
        return f"{rate} {what} of {target}: certified."
    needed = certificate["more_products_needed"]
    then = (
        "more products alone will not change that"
        if needed is None
        else f"about {count(needed)} more certification products are needed"
    )
    why = f"because a precision of {target} is not certifiable"
    return f"Nothing can be shelved automatically, {why}: {then}."


def _below_promise(graded: Mapping[str, Any]) -> bool:
    measured = graded["accepted_precision"]
    return measured is not None and round(measured, 3) < graded["target_precision"]  # as it is printed


def account(summary: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Where every image went: what, why, images. They add up to all images that came in."""
    rows = [
        (f"{PARTS[part][0]} records", "Readable, of a product with a category.", summary["records"][part])
        for part in ("train", "val", "test")
    ]
    rows += [
        (
            "Without category",
            "Readable. These products wait for a decision.",
            summary["uncategorized_images"],
        ),
        ("Small categories", "Readable, but too few products to learn from.", summary["dropped_images"]),
    ]
    for reason, images in summary["rejects"].items():
        told = REASONS.get(reason, reason.replace("_", " "))
        rows.append(("Rejected", f"{told[0].upper()}{told[1:]}.", images))
    return rows


def concentration(categories: pd.DataFrame, most: float = 0.8) -> tuple[int, int]:
    """The fewest categories that hold `most` of the errors, and how many categories were graded."""
    errors = (categories["products"] - categories["right"]).sort_values(ascending=False).to_numpy()
    few = int(np.searchsorted(np.cumsum(errors), most * errors.sum())) + 1 if errors.sum() else 0
    return few, int((categories["products"] > 0).sum())


def category_rows(categories: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows of the page, most errors first, then most products; at most MOST_CATEGORIES."""
    ordered = categories.assign(errors=categories["products"] - categories["right"]).sort_values(
        ["errors", "products", "name", "category"], ascending=[False, False, True, True]
    )
    return ordered.head(MOST_CATEGORIES).to_dict("records")


def _level_names(levels: Mapping[str, Any]) -> dict[str, str]:
    """level1 → Level 1 (coarsest), and so on to the category itself."""
    ordered = sorted(levels, key=lambda level: int(level.removeprefix("level")))
    names = {level: f"Level {level.removeprefix('level')}" for level in ordered}
    if len(names) > 1:
        names[ordered[0]] += " (coarsest)"
    names[ordered[-1]] += " (category)"
    return names


def _coefficients(confidence: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Term, meaning and value, the weightiest first."""
    ordered = sorted(confidence["coefficient"].items(), key=lambda item: (-abs(item[1]), item[0]))
    return [(name, EVIDENCE.get(name, ""), value) for name, value in ordered]


def _best_epoch(history: pd.DataFrame) -> dict[str, Any] | None:
    """The epoch that was kept, counted from 1, and its accuracy; None where nothing selected."""
    if "val_accuracy" not in history or not len(history):
        return None
    place = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True], kind="stable").index[0]
    return {"epoch": int(place) + 1, "accuracy": float(history["val_accuracy"][place])}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """section.name and value as text, in the order of the settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _told(value)


def _told(value: Any) -> str:
    """A setting's value as text.

    >>> _told([1024, 1024]), _told(1 / 3), _told(None), _told("/data/tuned.weights.h5")
    ('1024, 1024', '0.333333', '–', 'tuned.weights.h5')
    """
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(_told(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name  # where it lies is this machine's affair
    return str(value)


# Plots


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
    names = _level_names(metrics[metrics["graded_on"]]["levels"])
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
    best = _best_epoch(history)
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
def _plain_style() -> Iterator[None]:
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
