"""What follows from a comparison of backbones: the best one, the command that uses it, table and plot."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from pipeline.compare.results import BackboneComparison, BackboneResult, Interval
from pipeline.job.config import Config

if TYPE_CHECKING:
    from rich.table import Table


def best_backbone(rows: Sequence[BackboneResult]) -> tuple[BackboneResult | None, str]:
    """The best backbone, and the sentence that says so.

    Best is the largest acceptance rate on FIT, then the largest precision there; the sentence gives CERT's
    figures, which chose nothing. None where FIT has no products.
    """
    if not rows[0].fit_products:
        return None, "None is best: no validation products choose; raise calibration.fit_share"
    best = max(rows, key=lambda row: row.merit)
    words = (
        f"Best backbone: {best.label}, {best.acceptance_rate_at_target:.1%} accepted at "
        f"{best.target_precision:.0%}, {best.val_precision:.1%} correct"
    )
    if best.own:
        return best, f"{words}. It is the run's own"
    difference = best.acceptance_difference
    if difference is None:  # the run's own could not be measured
        return best, words
    words += f". Against the run's own: {in_points(difference)} accepted"
    if difference.lower <= 0 <= difference.upper:
        words += ". This may be chance"
    return best, words


def in_points(interval: Interval) -> str:
    """A difference of shares in percentage points, with its interval.

    >>> in_points(Interval(0.031, -0.01, 0.072))
    '+3.1 points (95 % interval −1.0 to +7.2)'
    """
    value, lower, upper = (
        f"{100 * end:+.1f}".replace("-", "−") for end in (interval.value, interval.lower, interval.upper)
    )
    return f"{value} points (95 % interval {lower} to {upper})"


def retrain_command(
    best: BackboneResult,
    records: Artifact,
    config: Config,
    workspace: AnyPath,
    run: str,
    tuned: Artifact | None,
) -> str:
    """The command that trains a release on this backbone, and releases it if it is better.

    A run with a backbone/ of its own uses that, so the command names another run.
    """
    name, equals, weights = best.given.partition("=")
    own = ("backbone.name", "backbone.weights")
    network = f"--backbone {shlex.quote(name)}" + f" --weights {shlex.quote(weights)}" * bool(equals)
    return retrain_line(network, own, config, records, workspace, run + "-frozen" * bool(tuned))


def retrain_line(
    chosen: str, own: tuple[str, ...], config: Config, records: Artifact, workspace: AnyPath, run: str
) -> str:
    """The `retrain` with the options `chosen`, and all settings that differ from the defaults but its own.

    SOURCE… and FILE are placeholders: no artifact records what was given to ingest.
    """
    options = "".join(f" --set {shlex.quote(text)}" for text in config.sets() if not text.startswith(own))
    taxonomy = "" if records.made_from["taxonomy"] == "none" else "--taxonomy FILE "
    target = f"--workspace {shlex.quote(str(workspace))} --run {run}"
    return f"shelfmark retrain SOURCE… {taxonomy}{target} {chosen}{options}"


def caption(comparison: BackboneComparison) -> str:
    """What the figures were measured on."""
    drawn = " drawn" if comparison.drawn else ""
    engines = ", ".join(sorted({row.engine for row in comparison.rows}))
    images = max(row.measured_images for row in comparison.rows)
    return (
        f"{comparison.categories:,}{drawn} categories. A head with the run's settings is trained on the "
        "bottlenecks of each backbone. Accuracy and acceptance rate are measured on "
        f"{comparison.val_products:,} validation products that chose nothing (CERT); intervals are of 95 %, "
        "and those of differences are paired: the same products, predicted by both. The best backbone has "
        "the largest acceptance rate on "
        f"{comparison.fit_products:,} other validation products (FIT). Images/s: {images:,} photos read, "
        f"decoded and extracted on this computer by {engines}. Memory: the most that a process held which "
        "loads the network and extracts, libraries included. Store: bottlenecks of a million images on disk."
    )


def tables(comparison: BackboneComparison) -> "tuple[Table, Table]":
    """The comparison for a terminal: what the backbones predict, and what they take."""
    from rich.table import Table

    predict = Table(title="What they predict", title_justify="left")
    take = Table(
        title="What they take", title_justify="left", caption=caption(comparison), caption_justify="left"
    )
    levels = list(comparison.rows[0].levels)
    shares = (*levels, f"accepted\nat {comparison.target:.0%}", "against the run's\nown, points", "on FIT")
    costs = ("images/s", "memory,\nGB", "store,\nGB/million", "px", "numbers", "parameters")
    for shown, names in ((predict, shares), (take, costs)):
        shown.add_column("backbone\nweights", no_wrap=True)
        for name in names:
            shown.add_column(name, justify="right")
    for row in comparison.rows:
        name = f"{_shortened(row.backbone)}\n{_shortened(row.weights + ', the run’s own' * row.own)}"
        predict.add_row(
            name,
            *(f"{row.levels[level]:.3f}" for level in levels),
            f"{row.acceptance_rate_at_target:.3f}",
            short_points(row.acceptance_difference),
            f"{row.fit_acceptance_rate_at_target:.3f}",
        )
        take.add_row(
            name,
            f"{row.images_per_second:.1f}",
            f"{row.peak_memory / 1e9:.2f}",
            f"{row.store_bytes_per_million / 1e9:.2f}",
            *(f"{row.image_size}", f"{row.width:,}", f"{row.parameters:,}"),
        )
    return predict, take


def _shortened(text: str) -> str:
    """A name in the 40 letters that a table of 120 columns has for it: its beginning and its end."""
    return text if len(text) <= 40 else f"{text[:15]}…{text[-24:]}"


def short_points(interval: Interval | None) -> str:
    """A difference in points, then the ends of its interval below it; "" for none."""
    if interval is None:
        return ""
    value, lower, upper = (
        f"{100 * end:+.1f}".replace("-", "−") for end in (interval.value, interval.lower, interval.upper)
    )
    return f"{value}\n{lower} … {upper}"


# The plot

WIDTH, HEIGHT = 760, 380  # px
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 48  # px around the axes
LINE = 16  # px, height of a label
LETTER = 7.2  # px, width of a letter of a label


@dataclass(frozen=True)
class Dot:
    """A backbone in the plot; all in px."""

    x: float
    y: float
    lower: float  # of the interval of its acceptance rate
    upper: float
    label: str
    label_x: float
    label_y: float
    anchor: str  # "start" or "end", where the label begins
    best: bool
    own: bool


@dataclass(frozen=True)
class Plot:
    """Acceptance rate against speed, as the page draws it."""

    dots: Sequence[Dot]
    x_ticks: Sequence[tuple[float, str]]  # px, text
    y_ticks: Sequence[tuple[float, str]]
    described: str  # for those who do not see it
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def plot_of(comparison: BackboneComparison) -> Plot:
    """The plot: images a second to the right, on a logarithmic axis; acceptance rate upwards."""
    speeds = [max(row.images_per_second, 0.1) for row in comparison.rows]
    low, high = min(speeds) / 1.6, max(speeds) * 1.6
    tops = [_ends(row)[1] for row in comparison.rows]
    most = min(1.0, math.ceil(max(0.1, *tops) * 10 + 0.5) / 10)

    def x(speed: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(speed / low) / math.log(high / low)

    def y(rate: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate / most)

    centres = [
        (x(speed), y(row.acceptance_rate_at_target))
        for row, speed in zip(comparison.rows, speeds, strict=True)
    ]
    dots: list[Dot] = []
    for row, speed in sorted(zip(comparison.rows, speeds, strict=True), key=lambda pair: pair[0].merit[::-1]):
        at, up = x(speed), y(row.acceptance_rate_at_target)
        lower, upper = _ends(row)
        end = at > (LEFT + WIDTH - RIGHT) / 2
        label_x = at - 10 if end else at + 10
        label_y = _free(dots, centres, row.backbone, label_x, up + 4, end)
        dots.append(
            Dot(
                at, up, y(lower), y(upper), row.backbone, label_x, label_y, "end" if end else "start",
                row.fingerprint == comparison.best_row, row.own,
            )
        )  # fmt: skip
    described = "; ".join(
        f"{row.label}: {row.images_per_second:.0f} images a second, "
        f"{row.acceptance_rate_at_target:.1%} accepted"
        for row in comparison.rows
    )
    marks = [factor * 10.0**power for power in range(-1, 6) for factor in (1, 2, 5)]
    return Plot(
        dots,
        [(x(mark), f"{mark:g}") for mark in marks if low <= mark <= high],
        [(y(tick / 10), f"{tick * 10} %") for tick in range(round(most * 10) + 1)],
        described,
    )


def _ends(row: BackboneResult) -> tuple[float, float]:
    interval, rate = row.acceptance_interval, row.acceptance_rate_at_target
    return (interval.lower, interval.upper) if interval else (rate, rate)


def _free(
    dots: Sequence[Dot], centres: Sequence[tuple[float, float]], label: str, x: float, y: float, end: bool
) -> float:
    """The height nearest to y at which a label covers no label of `dots`, and no dot at a centre."""
    width = len(label) * LETTER
    left = x - width if end else x
    taken = [
        (
            dot.label_x - len(dot.label) * LETTER if dot.anchor == "end" else dot.label_x,
            len(dot.label) * LETTER,
            dot.label_y,
        )
        for dot in dots
    ] + [(centre - 6, 12, height + 4) for centre, height in centres]
    for offset in sorted(range(-10 * LINE, 10 * LINE, 4), key=abs):
        here = y + offset
        if TOP + 8 <= here <= HEIGHT - BOTTOM - 4 and all(
            abs(here - other) >= LINE or left > begin + size or begin > left + width
            for begin, size, other in taken
        ):
            return here
    return y
