"""The words and figures of the report: how a run is told to the people who answer for the shelves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report.data import ReportData

MOST_CATEGORIES = 2000  # rows in the page: 1 MB; sorting 5,000 takes a phone seconds
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
    "bad_document": "the document of the source cannot be read",
    "bad_row": "the row of the source names no product",
    "unknown_category": "its category is not in the taxonomy",
}
EVIDENCE = {  # terms of models/decisions/confidence.py
    "logit_p1": "probability of the most likely category",
    "log_p1_over_p2": "its lead over the second category",
    "entropy": "spread of the probability over all categories",
    "logit_parent_mass": "probability of the whole branch around the category",
    "log_category_size": "training products of the category",
    "log_images": "photos of the product",
}


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
    needed = products_needed(certificate)
    then = (
        f"{needed} more certification products are needed"
        if needed
        else "more products alone will not change that"
    )
    why = f"because a precision of {target} is not certifiable"
    return f"Nothing can be shelved automatically, {why}: {then}."


def products_needed(certificate: Mapping[str, Any]) -> str:
    """How many more products may certify a threshold: about, or at least; "" where more will not help."""
    needed = certificate["more_products_needed"]
    how = "at least" if certificate.get("at_best") else "about"  # thresholds of before say nothing of it
    return "" if needed is None else f"{how} {count(needed)}"


def below_promise(graded: Mapping[str, Any]) -> bool:
    """Whether the accepted of the graded part are less often right than promised, as printed."""
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


def level_names(levels: Mapping[str, Any]) -> dict[str, str]:
    """level1 → Level 1 (coarsest), and so on to the category itself."""
    ordered = sorted(levels, key=lambda level: int(level.removeprefix("level")))
    names = {level: f"Level {level.removeprefix('level')}" for level in ordered}
    if len(names) > 1:
        names[ordered[0]] += " (coarsest)"
    names[ordered[-1]] += " (category)"
    return names


def coefficients(confidence: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Term, meaning and value, the weightiest first."""
    ordered = sorted(confidence["coefficient"].items(), key=lambda item: (-abs(item[1]), item[0]))
    return [(name, EVIDENCE.get(name, ""), value) for name, value in ordered]


def best_epoch(history: pd.DataFrame) -> dict[str, Any] | None:
    """The epoch that was kept, counted from 1, and its accuracy; None where nothing selected."""
    if "val_accuracy" not in history or not len(history):
        return None
    place = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True], kind="stable").index[0]
    return {"epoch": int(place) + 1, "accuracy": float(history["val_accuracy"][place])}


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """section.name and value as text, in the order of the settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
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
