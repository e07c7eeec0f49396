"""What follows from a comparison: the best row, how certain that is, what releases it; table and page.

FIT chooses the best row, as it chooses all else. CERT, on which a released head's threshold is certified,
only measures: a row chosen on CERT would be certified on the products that chose it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binomtest

from features.storage.artifact import Artifact
from features.storage.paths import AnyPath, write_whole
from pipeline.compare import backbones_summary
from pipeline.compare.classifiers import CLASSIFIERS, PAPER, TUNED, VARIANTS, config_of
from pipeline.compare.results import BackboneComparison, Comparison, RowResult
from pipeline.job.config import Config
from pipeline.report.language import Words
from pipeline.report.page import environment

T = TypeVar("T")

if TYPE_CHECKING:
    from rich.table import Table


def best_of(rows: Sequence[RowResult], target: float) -> tuple[str, RowResult | None]:
    """The sentence that says which row to use, and the best head.

    Best is the largest acceptance rate on FIT, then the largest precision there; the sentence gives CERT's
    figures. Where FIT has no products nothing is chosen.
    """
    if not rows[0].fit_products:
        return "None is best: no validation products choose; raise calibration.fit_share", None
    best = max(rows, key=lambda row: row.merit)
    head = max((row for row in rows if row.settings), key=lambda row: row.merit, default=None)
    words = f"Best: {_in_words(best, target)}"
    if equals := [row.row for row in rows if row is not best and not _beats(best, row)]:
        words += f". By chance alone as good could be: {', '.join(equals)}"
    if best is not head:
        words += ". A baseline, which shelfmark does not release"
        words += f". Best head: {_in_words(head, target)}" if head else ""
    return words, head


def _in_words(row: RowResult, target: float) -> str:
    """A row's figures on CERT. The sentences of `best_of` are values of comparison.json."""
    tuned = " on fine-tuned bottlenecks" if row.fine_tuned else ""
    accepted = f"{row.acceptance_rate_at_target:.1%} accepted at {target:.0%}"
    return f"{row.classifier}{tuned}, {accepted}, {row.val_precision:.1%} right"


def _beats(best: RowResult, row: RowResult) -> bool:
    """Whether `best` accepts more of FIT than `row`, or is more precise, by more than chance explains.

    The 95 % interval of a difference of shares lies above 0 (Newcombe, Statistics in Medicine 1998, method
    10). The formula is for independent samples. Rows on the same products differ less by chance, so the
    answer is on the safe side.
    """
    for one, other in zip(best.merit, row.merit, strict=True):
        below, above = one - wilson(one, best.fit_products)[0], wilson(other, row.fit_products)[1] - other
        if one - other > np.hypot(below, above):
            return True
    return False


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` products (Wilson 1927); of 7 of 7 it is no single point.

    >>> [round(end, 3) for end in wilson(1.0, 7)]
    [0.646, 1.0]
    """
    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def release_command(
    head: RowResult,
    records: Artifact,
    config: Config,
    workspace: AnyPath,
    run: str,
    tuned: Artifact | None,
) -> str:
    """The command that releases a row's head, if it is better than the one in service.

    The command repeats the run's other settings, because `retrain` begins with the defaults. A run with a
    backbone/ of its own uses that, so a head on frozen bottlenecks goes into another run.
    """
    spec = next(spec for spec in CLASSIFIERS if spec.name == head.row.removesuffix(TUNED))
    own = ("head.kind", "head.hidden")  # in `head.settings`
    run += "-frozen" * bool(tuned and not head.fine_tuned)
    config = config_of(spec, config)
    return backbones_summary.retrain_line(head.settings, own, config, records, workspace, run)


def chance(comparison: Comparison) -> float:
    """How far off the best validation precision may be: to the farther end of its 95 % interval."""
    precision = max(row.val_precision for row in comparison.rows)
    low, high = wilson(precision, comparison.val_products)
    return float(max(precision - low, high - precision))


def caption(comparison: Comparison) -> str:
    """What the figures were measured on."""
    drawn = " drawn" if comparison.drawn else ""
    return (
        f"{comparison.categories:,}{drawn} categories. Validation precision and acceptance rate are measured "
        f"on {comparison.val_products:,} validation products that chose nothing (CERT): in 19 of 20 cases, "
        f"chance changes a precision by at most {chance(comparison):.1%}. The best row has the largest "
        f"acceptance rate on {comparison.fit_products:,} other validation products (FIT). Heads are trained "
        f"by recipe '{comparison.recipe}'. Seconds are those of training on bottlenecks that are already "
        "there; with HOG they include reading the photos."
    )


def table(comparison: Comparison) -> "Table":
    """The comparison for a terminal."""
    from rich.table import Table

    shown = Table(caption=caption(comparison), caption_justify="left")
    for name in ("features", "classifier", "tuned"):
        shown.add_column(name)
    accepted = f"accepted\nat {comparison.target:.0%}"
    for name in ("train", "val", accepted, "on\nFIT", "parameters", "seconds", "paper\ntrain / val"):
        shown.add_column(name, justify="right")
    for row in comparison.rows:
        shares = (
            *(row.train_precision, row.val_precision),
            *(row.acceptance_rate_at_target, row.fit_acceptance_rate_at_target),
        )
        shown.add_row(
            *(row.features, row.classifier, "yes" if row.fine_tuned else "no"),
            *(f"{share:.3f}" for share in shares),
            *(f"{row.parameters:,}", f"{row.seconds:.1f}"),
            f"{row.paper_train:.3f} / {row.paper_val:.3f}" if row.paper_train else "",
        )
    return shown


def write_page(out: AnyPath, records: str) -> None:
    """Writes index.html from the comparisons of classifiers and of backbones that the directory holds.

    Args:
        out: the comparison's directory.
        records: digest of the records; a comparison that was measured on others is not shown.
    """
    classifiers, backbones = (
        _read(out / "comparison.json", Comparison),
        _read(out / "backbones.json", BackboneComparison),
    )
    page = render(
        classifiers if classifiers and classifiers.records == records else None,
        out.parent.name,
        backbones if backbones and backbones.records == records else None,
    )
    write_whole(out / "index.html", page.encode())


def _read(file: AnyPath, kind: type[T]) -> T | None:
    """What a file holds; None where it is missing, or of a version with other keys."""
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def render(comparison: Comparison | None, run: str, backbones: BackboneComparison | None = None) -> str:
    """The page as HTML, with what there is."""
    published = [
        (variant.spec.features, variant.spec.classifier, variant.fine_tuned, *PAPER[variant.name])
        for variant in sorted(VARIANTS, key=lambda variant: CLASSIFIERS.index(variant.spec))
        if variant.name in PAPER
    ]
    return (
        environment(Words("en"))
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            run=run,
            caption=caption(comparison) if comparison else "",
            published=published,
            backbones=backbones,
            backbones_caption=backbones_summary.caption(backbones) if backbones else "",
            plot=backbones_summary.plot_of(backbones) if backbones else None,
        )
    )
