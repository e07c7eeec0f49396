"""What a comparison comes to: the best row, how sure it is, what releases it; table, CSV and page.

FIT chooses the best row, as it chooses all else. CERT, on which a released head's threshold is certified,
only measures: a row chosen on it would be certified on what has chosen it.
"""

import csv
import io
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest

from features.storage.artifact import Artifact
from features.storage.paths import Place
from pipeline.compare.classifiers import PAPER, ROWS, TUNED, config_of
from pipeline.job.config import Config
from pipeline.report.report import environment

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    *("row", "features", "classifier", "fine_tuned", "learnt_products", "train_precision"),
    *("val_precision", "val_products", "acceptance_rate_at_target", "target_precision"),
    *("fit_precision", "fit_products", "fit_acceptance_rate_at_target"),
    *("parameters", "seconds", "paper_train", "paper_val", "settings"),
)


def merit(row: dict[str, Any]) -> tuple[float, float]:
    """What rows are sorted by, of FIT."""
    return row["fit_acceptance_rate_at_target"], row["fit_precision"]


def best_of(rows: Sequence[dict[str, Any]], target: float) -> tuple[str, dict[str, Any] | None]:
    """Which row to use, by FIT's largest acceptance rate, then precision, in words; and the best head.

    The words tell CERT's figures. Where FIT has no products nothing is chosen.
    """
    if not rows[0]["fit_products"]:
        return "None is best: no validation products choose; raise calibration.fit_share", None

    def told(row: dict[str, Any]) -> str:
        rate, right = row["acceptance_rate_at_target"], row["val_precision"]
        tuned = " on fine-tuned bottlenecks" if row["fine_tuned"] else ""
        return f"{row['classifier']}{tuned}, {rate:.1%} accepted at {target:.0%}, {right:.1%} right"

    best = max(rows, key=merit)
    head = max((row for row in rows if row["settings"]), key=merit, default=None)
    words = f"Best: {told(best)}"
    if alike := [row["row"] for row in rows if row is not best and not _beats(best, row)]:
        words += f". By chance alone as good could be: {', '.join(alike)}"
    if best is not head:
        words += ". A baseline, which shelfmark does not release"
        words += f". Best head: {told(head)}" if head else ""
    return words, head


def _beats(best: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row accepts more of FIT than another, or is more precise, by more than chance explains.

    The 95 % interval of a difference of shares lies above 0 (Newcombe, Statistics in Medicine 1998, method
    10). For independent samples: rows on the same products differ by less by chance, so it is never too sure.
    """
    of_best, of_row = best["fit_products"], row["fit_products"]
    for one, other in zip(merit(best), merit(row), strict=True):
        below, above = one - wilson(one, of_best)[0], wilson(other, of_row)[1] - other
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
    head: dict[str, Any],
    records: Artifact,
    config: Config,
    workspace: Place,
    run: str,
    tuned: Artifact | None,
) -> str:
    """The command that releases a row's head, if it is better than the one in service.

    The run's other settings stand in it, because `retrain` begins with the defaults. SOURCE… and FILE are
    those of ingest, which no artifact tells. A run with a backbone/ of its own takes that, so that a head on
    frozen bottlenecks goes into another run.
    """
    if tuned and not head["fine_tuned"]:
        run += "-frozen"
    row = next(row for row in ROWS if row.name == head["row"].removesuffix(TUNED))
    sets = [
        text for text in config_of(row, config).sets() if not text.startswith(("head.kind", "head.hidden"))
    ]
    taxonomy = "" if records.made_from["taxonomy"] == "none" else "--taxonomy FILE "
    told = "".join(f" --set {shlex.quote(text)}" for text in sets)
    where = f"--workspace {shlex.quote(str(workspace))} --run {run}"
    return f"shelfmark retrain SOURCE… {taxonomy}{where} {head['settings']}{told}"


def chance(comparison: dict[str, Any]) -> float:
    """How far off the best validation precision may be: as far as the farther end of its 95 % interval."""
    right = max(row["val_precision"] for row in comparison["rows"])
    low, high = wilson(right, comparison["val_products"])
    return float(max(right - low, high - right))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The file, a line for each row."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def caption(comparison: dict[str, Any]) -> str:
    """What the figures were measured on."""
    drawn = " drawn" if comparison["drawn"] else ""
    return (
        f"{comparison['categories']:,}{drawn} categories. Validation precision and acceptance rate are those "
        f"of {comparison['val_products']:,} validation products that chose nothing (CERT): by chance a "
        f"precision is off by up to {chance(comparison):.1%}, 19 times of 20. The best row has the largest "
        f"acceptance rate on {comparison['fit_products']:,} others (FIT). Heads by recipe "
        f"'{comparison['recipe']}'. Seconds: of training, on bottlenecks that are there; of HOG with the "
        "reading of the photos."
    )


def table(comparison: dict[str, Any]) -> "Table":
    """For a terminal."""
    from rich.table import Table

    told = Table(caption=caption(comparison), caption_justify="left")
    for name in ("features", "classifier", "tuned"):
        told.add_column(name)
    accepted = f"accepted\nat {comparison['target']:.0%}"
    for name in ("train", "val", accepted, "on\nFIT", "parameters", "seconds", "paper\ntrain / val"):
        told.add_column(name, justify="right")
    for row in comparison["rows"]:
        paper = f"{row['paper_train']:.3f} / {row['paper_val']:.3f}" if row["paper_train"] else ""
        told.add_row(
            *(row["features"], row["classifier"], "yes" if row["fine_tuned"] else "no"),
            *(
                f"{row[name]:.3f}"
                for name in (
                    *("train_precision", "val_precision"),
                    *("acceptance_rate_at_target", "fit_acceptance_rate_at_target"),
                )
            ),
            *(f"{row['parameters']:,}", f"{row['seconds']:.1f}", paper),
        )
    return told


def render(comparison: dict[str, Any], run: str) -> str:
    """The page as HTML."""
    published = [
        (row.features, row.classifier, bool(end), *PAPER[row.name + end])
        for row in ROWS for end in ("", TUNED) if row.name + end in PAPER
    ]  # fmt: skip
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(comparison=comparison, run=run, caption=caption(comparison), published=published)
    )
