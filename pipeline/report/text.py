"""The words and numbers of the report, as text and rows for the page."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.decisions.confidence import ConfidenceModel
from models.decisions.thresholds import Certificate
from pipeline.job.summaries import RecordsSummary
from pipeline.report.data import ReportData
from pipeline.train.figures import Metrics, PartFigures

MOST_CATEGORIES = 2000  # rows in the page: 1 MB; sorting 5,000 takes a phone seconds
PARTS = {
    "train": ("Training", "The head was trained on these, so the figures are too optimistic."),
    "val": ("Validation", "Held back from training. One share chose the settings, the other certified."),
    "cert": ("Certification", "The share of validation that set the threshold, used for nothing else."),
    "test": ("Test", "Used for these figures alone. This is what to expect of new products."),
}
REASONS = {
    "missing": "the file is not there",
    "empty": "the file is empty",
    "not_an_image": "the file is not an image",
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
    "max_logit_pnorm": "how far the category stands out from all others",
    "log_category_size": "training products of the category",
    "log_images": "photos of the product",
    "logistic": "what the logistic model says",
    "category_effect": "how often decisions for the category were correct",
}


# Numbers


def percent(value: float | None) -> str:
    """A share in per cent with one decimal; a dash for None.

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
    """Part / whole; None where `whole` is 0."""
    return part / whole if whole else None


# What was certified and measured


def headline(data: ReportData) -> str:
    """One sentence: which share can be categorized automatically at the promised precision, if any."""
    certificate = data.rules.certificate
    target = percent(certificate.target)
    if certificate.threshold is not None:
        figures = data.measured or certificate
        rate = percent(share(figures.accepted, figures.products))
        can = "of the products can be categorized automatically at the promised precision"
        return f"{rate} {can} of {target}: certified."
    needed = products_needed(certificate)
    then = (
        f"{needed} more certification products are needed"
        if needed
        else "more products alone will not change that"
    )
    why = f"because a precision of {target} is not certifiable"
    return f"Nothing can be categorized automatically, {why}: {then}."


def products_needed(certificate: Certificate) -> str:
    """How many more products may certify a threshold: about, or at least; "" where more will not help."""
    if certificate.more_products_needed is None:
        return ""
    return f"{'at least' if certificate.at_best else 'about'} {count(certificate.more_products_needed)}"


def below_promise(measured: PartFigures) -> bool:
    """Whether the precision of the accepted products, as printed, is below the promise."""
    precision = measured.accepted_precision
    return precision is not None and round(precision, 3) < measured.target_precision


@dataclass(frozen=True)
class NamedPart:
    """A part of the catalogue with its figures."""

    name: str  # as in metrics.json
    title: str
    meaning: str
    figures: PartFigures | None  # None where it has no products


def named_parts(metrics: Metrics) -> list[NamedPart]:
    """All parts, in the order of PARTS."""
    figures = {"train": metrics.train, "val": metrics.val, "cert": metrics.cert, "test": metrics.test}
    return [NamedPart(name, *PARTS[name], figures[name]) for name in PARTS]


def level_names(levels: Iterable[str]) -> dict[str, str]:
    """level1 → Level 1 (coarsest), and so on to the category itself."""
    ordered = sorted(levels, key=lambda level: int(level.removeprefix("level")))
    names = {level: f"Level {level.removeprefix('level')}" for level in ordered}
    if len(names) > 1:
        names[ordered[0]] += " (coarsest)"
    names[ordered[-1]] += " (category)"
    return names


# Categories


@dataclass(frozen=True)
class CategoryRow:
    """A category's counts of products, on the measured part but for the training products."""

    category: str
    name: str
    train_products: int
    products: int
    correct: int  # of the products, predicted as the category
    predicted: int
    predicted_correct: int
    accepted: int
    accepted_correct: int

    @property
    def errors(self) -> int:
        """Products that were put into another category."""
        return self.products - self.correct


@dataclass(frozen=True)
class ConfusionRow:
    """Products of a category that were put into another one."""

    category_name: str
    predicted_name: str
    products: int


def category_rows(categories: pd.DataFrame) -> list[CategoryRow]:
    """The rows of the page, most errors first, then most products; at most MOST_CATEGORIES."""
    ordered = categories.assign(errors=categories["products"] - categories["right"]).sort_values(
        ["errors", "products", "name", "category"], ascending=[False, False, True, True]
    )
    return [
        CategoryRow(
            category=row["category"],
            name=row["name"],
            train_products=row["train_products"],
            products=row["products"],
            correct=row["right"],
            predicted=row["predicted"],
            predicted_correct=row["predicted_right"],
            accepted=row["accepted"],
            accepted_correct=row["accepted_right"],
        )
        for row in ordered.head(MOST_CATEGORIES).to_dict("records")
    ]


def confusion_rows(confusions: pd.DataFrame) -> list[ConfusionRow]:
    """The rows of the page, in the order of the file."""
    columns = ["category_name", "predicted_name", "products"]
    return [ConfusionRow(*row) for row in confusions[columns].itertuples(index=False, name=None)]


def concentration(categories: pd.DataFrame, most: float = 0.8) -> tuple[int, int]:
    """The fewest categories that have `most` of the errors, and how many categories have products."""
    errors = (categories["products"] - categories["right"]).sort_values(ascending=False).to_numpy()
    few = int(np.searchsorted(np.cumsum(errors), most * errors.sum())) + 1 if errors.sum() else 0
    return few, int((categories["products"] > 0).sum())


# Images, training, confidence, settings


@dataclass(frozen=True)
class ImageCount:
    """How many images went to one destination."""

    destination: str
    reason: str
    images: int


def account(records: RecordsSummary) -> list[ImageCount]:
    """Where every image went; the counts add up to all images that came in."""
    rows = [
        ImageCount(
            f"{PARTS[part][0]} records", "Readable, of a product with a category.", records.records[part]
        )
        for part in ("train", "val", "test")
    ]
    rows += [
        ImageCount(
            "Without category", "Readable. These products wait for a decision.", records.uncategorized_images
        ),
        ImageCount(
            "Small categories", "Readable, but with too few products to train on.", records.dropped_images
        ),
    ]
    for name, images in records.rejects.items():
        reason = REASONS.get(name, name.replace("_", " "))
        rows.append(ImageCount("Rejected", f"{reason[0].upper()}{reason[1:]}.", images))
    return rows


@dataclass(frozen=True)
class BestEpoch:
    """The epoch that was kept."""

    epoch: int  # from 1
    accuracy: float  # on FIT


def best_epoch(history: pd.DataFrame) -> BestEpoch | None:
    """The epoch that was kept; None where FIT has no products to choose by."""
    if "val_accuracy" not in history or not len(history):
        return None
    ordered = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True], kind="stable")
    best = int(ordered.index[0])
    return BestEpoch(best + 1, float(history["val_accuracy"][best]))


def coefficients(confidence: ConfidenceModel) -> list[tuple[str, str, float]]:
    """Name, meaning and coefficient of each term, the largest coefficient first."""
    ordered = sorted(confidence.coefficient.items(), key=lambda item: (-abs(item[1]), item[0]))
    return [(name, EVIDENCE.get(name, ""), value) for name, value in ordered]


def importances(confidence: ConfidenceModel) -> list[tuple[str, str, float]]:
    """Name, meaning and importance (0 to 1) of each term of the trees, the largest first."""
    importance = confidence.boosting.importance if confidence.boosting else {}
    ordered = sorted(importance.items(), key=lambda item: (-item[1], item[0]))
    return [(name, EVIDENCE.get(name, ""), value) for name, value in ordered]


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """section.name and value as text, in the order of the settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _setting_text(value)


def _setting_text(value: object) -> str:
    """A setting's value as text.

    >>> _setting_text([1024, 1024]), _setting_text(1 / 3), _setting_text(None), _setting_text("/data/w.h5")
    ('1024, 1024', '0.333333', '–', 'w.h5')
    """
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(_setting_text(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name  # the folder differs from machine to machine
    return str(value)
