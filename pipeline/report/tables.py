"""The tables of the report: counts and shares of a run as rows, in the order of the page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.engines.backbone_names import parse_name, without_folder
from features.views import parse_view
from models.decisions.boosting import Boosting
from models.decisions.categorizer import DecisionRules
from models.decisions.thresholds import Certificate
from pipeline.job.config import Config
from pipeline.job.summaries import RecordsSummary
from pipeline.report.changes import Changes
from pipeline.report.data import SELLER, BySeller, Products, ReportData, worst_first
from pipeline.report.figures import Curve, corrections_title
from pipeline.report.language import Words
from pipeline.report.photos import Choice
from pipeline.report.table import Column, Table
from pipeline.train.figures import PartFigures

MOST_WRONG = 200  # rows of the wrong products, and of those that changed
MOST_SUSPECTS = 1000
MOST_SELLERS = 8  # of the best, and of the worst
SUSPECT_SHARES = ("label_wrong", "confidence")  # columns, and keys of their titles
CURVE_STEPS = 10  # of a category's small curve
PARTS = ("train", "val", "cert", "test")
STATUSES = ("automatic", "with care", "always review", "too few")


@dataclass(frozen=True, eq=False)
class Shown:
    """What all tables of a page are made with."""

    data: ReportData
    words: Words
    config: Config
    curve: Curve | None  # None where nothing was measured
    photo: Mapping[str, int]  # number of a photo, by product_id or image digest

    @property
    def part(self) -> str:
        """The measured part, for use in a sentence."""
        return self.words(f"part.{self.data.metrics.graded_on}.small")

    def column(self, key: str, kind: str, **values: object) -> Column:
        """A column by the key of its title."""
        title = self.words(f"col.{key}", **values)
        return Column(title[:1].upper() + title[1:], kind)


def share(part: float, whole: float) -> float | None:
    """Part / whole; None where `whole` is 0."""
    return float(part / whole) if whole else None


def _shares(part: pd.Series, whole: pd.Series) -> list[float | None]:
    """Part / whole of each row."""
    return [share(*pair) for pair in zip(part.tolist(), whole.tolist(), strict=True)]


# Promises


def promises(rules: DecisionRules) -> list[tuple[Certificate, bool]]:
    """The certificates of the ladder and the one in use, which says True, by ascending target.

    The one in use shares its certainty with the levels above, so it may be stricter than the ladder's own of
    the same target. Where both are the same, it is there once.
    """
    used = rules.certificate
    others = [
        (one, False) for one in rules.ladder if (one.target, one.threshold) != (used.target, used.threshold)
    ]
    return sorted([*others, (used, True)], key=lambda pair: (pair[0].target, pair[1]))


def products_needed(certificate: Certificate, words: Words) -> str:
    """How many more products may certify a threshold: about, or at least; "" where more will not help."""
    if certificate.more_products_needed is None:
        return ""
    return words(
        "at_least" if certificate.at_best else "about", count=words.count(certificate.more_products_needed)
    )


def ladder_table(shown: Shown) -> Table:
    """The targets: what each would accept, or what it lacks."""
    words = shown.words
    rows: list[list[Any]] = []
    marked = []
    for one, in_use in promises(shown.data.rules):
        certified = one.threshold is not None
        state = "ladder.not" if not certified else "ladder.in_use" if in_use else "ladder.certified"
        rate, precision = _measured_at(shown.curve, one.threshold)
        marked += [len(rows)] if in_use else []
        rows.append(
            [
                one.target, state, one.threshold, one.acceptance_rate if certified else None, rate, precision,
                one.precision_lower, products_needed(one, words) or None,
            ]
        )  # fmt: skip
    columns = [
        shown.column("target", "target"),
        shown.column("state", "status"),
        shown.column("threshold", "number"),
        shown.column("cert_acceptance", "percent"),
        shown.column("measured_acceptance", "percent", part=shown.part),
        shown.column("measured_precision", "percent"),
        shown.column("precision_lower", "percent"),
        shown.column("more", "figure"),
    ]
    return Table("targets", words("ladder.title"), columns, rows, marked=frozenset(marked))


def _measured_at(curve: Curve | None, threshold: float | None) -> tuple[float | None, float | None]:
    """Acceptance rate and precision of the measured part at a threshold; None for what is not there."""
    if curve is None or threshold is None:
        return None, None
    at = curve.at(threshold)
    return (float(curve.rate[at]), float(curve.precision[at])) if at >= 0 else (0.0, None)


def cost_table(shown: Shown, weekly: int) -> Table:
    """What each certified target saves a week."""
    words, settings = shown.words, shown.config.report
    rows: list[list[Any]] = []
    marked = []
    for one, in_use in promises(shown.data.rules):
        rate, precision = _measured_at(shown.curve, one.threshold)
        if rate is None:
            continue
        accepted = rate * weekly
        hours = accepted * settings.minutes_per_product / 60
        wrong = None if precision is None else accepted * (1 - precision)
        marked += [len(rows)] if in_use else []
        rows.append([one.target, accepted, wrong, weekly - accepted, hours, hours * settings.wage])
    columns = [
        shown.column("target", "target"),
        shown.column("weekly_accepted", "count"),
        shown.column("weekly_wrong", "count"),
        shown.column("weekly_people", "count"),
        shown.column("hours", "tenth"),
        shown.column("money", "count", currency=settings.currency),
    ]
    if not settings.wage:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table("cost", words("cost.title"), columns, rows, marked=frozenset(marked))


def level_title(words: Words, level: str, levels: int) -> str:
    """Level 1 (coarsest), and so on to the category itself."""
    number = int(level.removeprefix("level"))
    kind = "category" if number == levels else "coarsest" if number == 1 else "name"
    return words(f"levels.{kind}", level=number)


def levels_table(shown: Shown, measured: PartFigures) -> Table:
    """What is decided at each level, and how often the level would be correct by itself."""
    words, rules, own = shown.words, shown.data.rules, measured.hierarchy.own_outputs
    certificates = {level: rule.certificate for level, rule in rules.levels.items()}
    levels = sorted(measured.levels, key=lambda level: int(level.removeprefix("level")))
    certificates[levels[-1]] = rules.certificate
    rows = []
    for level in levels:
        decided, certificate, shares = (
            measured.decided.get(level),
            certificates.get(level),
            measured.levels[level],
        )
        row: list[Any] = [
            level_title(words, level, len(levels)),
            decided.products if decided else 0,
            decided.precision if decided else None,
            certificate.target if certificate and certificate.threshold is not None else None,
            shares.top1,
            shares.top5,
        ]
        row += [measured.hierarchy.summed[level].top1] if own else []
        rows.append([*row, measured.hierarchy.consistency[level]])
    columns = [
        shown.column("level", "text"),
        shown.column("decided", "count"),
        shown.column("decided_precision", "percent"),
        shown.column("level_promise", "target"),
        shown.column("top1", "percent"),
        shown.column("top5", "percent"),
        *([shown.column("summed1", "percent")] if own else []),
        shown.column("agrees", "percent"),
    ]
    return Table("levels", words("levels.title"), columns, rows)


def departments_table(shown: Shown) -> Table:
    """The branches of level 1 at the threshold in use."""
    rows = [
        [
            one.name,
            one.products,
            one.accepted,
            share(one.accepted, one.products),
            one.errors,
            one.precision,
            one.p_value,
            f"departments.{'certified' if one.certified else 'not'}",
        ]
        for one in shown.data.rules.departments
    ]
    columns = [
        shown.column("department", "name"),
        shown.column("count", "count"),
        shown.column("accepted", "count"),
        shown.column("acceptance", "percent"),
        shown.column("errors", "count"),
        shown.column("precision", "percent"),
        shown.column("p", "p"),
        shown.column("state", "status"),
    ]
    return Table("departments", shown.words("departments.title"), columns, rows)


# Sellers


def seller_tables(shown: Shown, by_seller: BySeller) -> list[Table]:
    """Gain by number of corrections, decisions without a person, and the best and the worst sellers."""
    return [
        _gains_table(shown, by_seller),
        _seller_decisions_table(shown, by_seller),
        _sellers_table(shown, by_seller),
    ]


def _gains_table(shown: Shown, by_seller: BySeller) -> Table:
    rows = [
        [
            corrections_title(shown.words, one["corrections"]),
            *(one[name] for name in ("sellers", "base", "adapted", "gain")),
            [one["lower"], one["upper"]],
        ]
        for one in by_seller.gains.to_dict("records")
    ]  # fmt: skip
    columns = [
        shown.column("corrections", "text"),
        shown.column("sellers_reached", "count"),
        shown.column("base_correct", "percent"),
        shown.column("adapted_correct", "percent"),
        shown.column("gain", "points"),
        shown.column("difference_interval", "points_interval"),
    ]
    return Table("seller_gains", shown.words("sellers.gains.title"), columns, rows)


def _seller_decisions_table(shown: Shown, by_seller: BySeller) -> Table:
    figures = by_seller.figures
    rows = [
        [
            shown.words(title), one.rate, one.precision,
            None if one.precision is None else [one.lower, one.upper],
        ]
        for title, one in (
            ("sellers.accepted_base", figures.accepted_base), ("sellers.accepted", figures.accepted),
            ("sellers.accepted_adapted", figures.accepted_adapted),
        )
        if one
    ]  # fmt: skip
    columns = [
        shown.column("decided_by", "text"),
        shown.column("acceptance", "percent"),
        shown.column("accepted_correct", "percent"),
        shown.column("interval", "interval"),
    ]
    return Table("seller_decisions", shown.words("sellers.decisions.title"), columns, rows)


def _sellers_table(shown: Shown, by_seller: BySeller) -> Table:
    """The best sellers, then the worst; all where they are few."""
    ordered = by_seller.sellers.sort_values(["gain", "tests", "seller"], ascending=[False, False, True])
    if len(ordered) > 2 * MOST_SELLERS:
        ordered = pd.concat([ordered.head(MOST_SELLERS), ordered.tail(MOST_SELLERS)])
    rows = [
        [
            seller, products, tests, base / tests, correct / tests, gain,
            "sellers.gains" if gain > 0 else "sellers.loses" if gain < 0 else "sellers.equal",
        ]
        for seller, products, tests, base, correct, gain in ordered[list(SELLER)].itertuples(index=False)
    ]  # fmt: skip
    columns = [
        shown.column("seller", "name"),
        shown.column("count", "count"),
        shown.column("judged", "count"),
        shown.column("base_correct", "percent"),
        shown.column("adapted_correct", "percent"),
        shown.column("gain", "points"),
        shown.column("state", "status"),
    ]
    return Table("sellers", shown.words("sellers.table.title"), columns, rows)


# Categories


def categories_table(shown: Shown) -> Table:
    """All categories, most errors first, then most products."""
    table = worst_first(shown.data.categories)
    curves = category_curves(shown.data.products, table["category"])
    values: list[Sequence[Any]] = [
        table["name"].tolist(),
        [f"status.{status}" for status in table["status"]],
        *(table[name].tolist() for name in ("train_products", "products", "errors")),
        _shares(table["right"], table["products"]),
        table["predicted"].tolist(),
        _shares(table["predicted_right"], table["predicted"]),
        [round(one, 4) for one in table["estimate"].tolist()],
        [[round(low, 4), round(high, 4)] for low, high in table[["lower", "upper"]].itertuples(index=False)],
        table["accepted"].tolist(),
        _shares(table["accepted_right"], table["accepted"]),
        curves,
        table["category"].tolist(),
    ]
    columns = [
        shown.column("category", "name"),
        shown.column("status", "status"),
        shown.column("train_products", "count"),
        shown.column("products", "count", part=shown.part),
        shown.column("errors", "count"),
        shown.column("found", "percent"),
        shown.column("predicted", "count"),
        shown.column("predicted_correct", "percent"),
        shown.column("estimate", "percent"),
        shown.column("interval", "interval"),
        shown.column("accepted", "count"),
        shown.column("accepted_correct", "percent"),
        shown.column("curve", "curve"),
        shown.column("category_id", "code"),
    ]
    return Table(
        "categories",
        shown.words("categories.title"),
        columns,
        _rows(values),
        sort=(4, True),
        tree=0,
        filter=1,
        details=True,
    )


def _rows(columns: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows of columns, with shares cut to six digits: 5,270 categories stay below a megabyte."""
    return [
        [round(value, 6) if isinstance(value, float) else value for value in row]
        for row in zip(*columns, strict=True)
    ]


def category_curves(products: Products, categories: pd.Series) -> list[list[int] | None]:
    """Precision in per cent of what is predicted as each category: of the most confident tenth, … of all.

    None where nothing is predicted as the category.
    """
    order = np.lexsort((-products.confidence, products.predicted.code))
    code, correct = products.predicted.code[order], products.correct[order]
    first = np.searchsorted(code, np.arange(len(products.predicted.values) + 1))
    cumulative = np.concatenate([[0], np.cumsum(correct)])
    curves = {}
    for index, category in enumerate(products.predicted.values):
        begin, predicted = first[index], first[index + 1] - first[index]
        taken = -(-predicted * np.arange(1, CURVE_STEPS + 1) // CURVE_STEPS)
        correct_share = (cumulative[begin + taken] - cumulative[begin]) / np.maximum(taken, 1)
        curves[str(category)] = np.rint(100 * correct_share).astype(int).tolist() if predicted else None
    return [curves.get(str(category)) for category in categories]


def concentration(categories: pd.DataFrame, most: float = 0.8) -> tuple[int, int]:
    """The fewest categories that have `most` of the errors, and how many categories have products."""
    errors = (categories["products"] - categories["right"]).sort_values(ascending=False).to_numpy()
    few = int(np.searchsorted(np.cumsum(errors), most * errors.sum())) + 1 if errors.sum() else 0
    return few, int((categories["products"] > 0).sum())


def confusions_table(shown: Shown, choice: Choice) -> Table:
    """The most frequent confusions, with a photo of each side."""
    ids = shown.data.products.ids
    rows = []
    names = ["category", "category_name", "predicted", "predicted_name", "products"]
    for true, true_name, other, other_name, products in shown.data.confusions[names].itertuples(
        index=False, name=None
    ):
        confused, typical = choice.confusions.get((true, other), (None, None))
        photos = [
            None if row is None else shown.photo.get(ids(np.array([row]))[0]) for row in (confused, typical)
        ]
        rows.append([photos[0], true_name, photos[1], other_name, products])
    columns = [
        shown.column("photo_confused", "photo"),
        shown.column("true", "name"),
        shown.column("photo_typical", "photo"),
        shown.column("predicted_category", "name"),
        shown.column("count", "count"),
    ]
    return Table("confusions", shown.words("confusions.title"), columns, rows, shown=10, sort=(4, True))


def wrong_rows(products: Products) -> np.ndarray:
    """Rows of the wrong products, the most confident first, at most MOST_WRONG."""
    rows = np.flatnonzero(~products.correct)
    if len(rows) > MOST_WRONG:
        least = -np.partition(-products.confidence[rows], MOST_WRONG)[MOST_WRONG]
        rows = rows[products.confidence[rows] >= least]
    ordered: np.ndarray = rows[np.argsort(-products.confidence[rows], kind="stable")][:MOST_WRONG]
    return ordered


def wrong_table(shown: Shown, rows: np.ndarray) -> Table:
    """The wrong decisions with the highest confidence."""
    products = shown.data.products
    ids = products.ids(rows)
    values = [
        [shown.photo.get(name) for name in ids],
        ids,
        products.true_path.texts(rows),
        products.predicted_path.texts(rows),
        products.confidence[rows].tolist(),
        products.accepted[rows].tolist(),
    ]
    columns = [
        shown.column("photo", "photo"), shown.column("product", "code"), shown.column("true", "name"),
        shown.column("predicted_category", "name"), shown.column("confidence", "percent"),
        shown.column("was_accepted", "flag"),
    ]  # fmt: skip
    return Table("wrong", shown.words("wrong.title"), columns, _rows(values), shown=10, sort=(4, True))


def suspects_table(shown: Shown, suspects: pd.DataFrame) -> Table:
    """Labels in doubt, the most suspicious first."""
    words, table = shown.words, suspects.head(MOST_SUSPECTS)
    shares = [name for name in SUSPECT_SHARES if name in table]
    values: list[Sequence[Any]] = [
        [shown.photo.get(digest) for digest in table["image_digest"]],
        table["product_id"].tolist(),
        table["category_path"].tolist(),
        table["proposed_path"].tolist(),
        *([None if np.isnan(one) else one for one in table[name].tolist()] for name in shares),
        [", ".join(words(f"reason.{one}") for one in reason.split(", ")) for reason in table["reason"]],
        [words(f"part.{part}.small") for part in table["part"]],
    ]
    columns = [
        shown.column("photo", "photo"),
        shown.column("product", "code"),
        shown.column("given", "name"),
        shown.column("proposed", "name"),
        *(shown.column(key, "percent") for key in shares),
        shown.column("reason", "text"),
        shown.column("part", "text"),
    ]
    return Table("suspects", words("suspects.title"), columns, _rows(values), shown=10)


def unlearnt_table(shown: Shown) -> Table:
    """Categories that were not learnt, those with most accepted products first."""
    table = shown.data.unlearnt.sort_values(["accepted", "measured", "name"], ascending=[False, False, True])
    values = [
        table[name].tolist()
        for name in ("name", "products", "measured", "accepted", "parent_right", "category")
    ]
    columns = [
        shown.column("category", "name"),
        shown.column("catalogue", "count"),
        shown.column("measured", "count", part=shown.part),
        shown.column("taken", "count"),
        shown.column("parent_correct", "count"),
        shown.column("category_id", "code"),
    ]
    return Table(
        "unlearnt", shown.words("unlearnt.title"), columns, _rows(values), shown=10, sort=(3, True), tree=0
    )


# Changes


def tree_table(shown: Shown, tree: pd.DataFrame) -> Table:
    """The categories that are not what they were in the release in service."""
    words = shown.words
    kinds = {
        "rename": "tree.rename", "move": "tree.move", "merge": "tree.merge", "split": "tree.split",
        "delete": "tree.delete", "dead": "tree.dead", "cyclic": "tree.cyclic", "add": "tree.add",
    }  # fmt: skip
    values = [
        tree["category"].tolist(),
        [kinds[kind] for kind in tree["kind"]],
        [None if pd.isna(targets) else targets for targets in tree["targets"]],
        tree["products_before"].tolist(),
        tree["products_now"].tolist(),
        [withheld == "yes" for withheld in tree["withheld"]],
    ]
    columns = [
        shown.column("category_id", "code"),
        shown.column("change", "status"),
        shown.column("new_category", "code"),
        shown.column("products_before", "count"),
        shown.column("products_now", "count"),
        shown.column("waits", "flag"),
    ]
    return Table("tree", words("tree.title"), columns, _rows(values), shown=25, filter=1)


def _sides(shown: Shown, sides: tuple[str, str] | None) -> list[Column]:
    """Columns of shares before and now, or of two runs by their names."""
    titles = sides or (shown.words("col.before"), shown.words("col.after"))
    return [Column(title, "percent") for title in titles]


def changes_table(shown: Shown, changes: Changes, sides: tuple[str, str] | None = None) -> Table:
    """Acceptance and precision before and now; `sides` are the names of two runs instead."""
    figures = {
        "acceptance": changes.acceptance,
        "precision": changes.precision,
        "everything": changes.everything,
    }
    rows = [
        [shown.words(f"changes.{name}"), one.before, one.after, one.value, [one.lower, one.upper]]
        for name, one in figures.items()
        if one
    ]
    columns = [
        shown.column("figure", "text"), *_sides(shown, sides),
        shown.column("difference", "points"), shown.column("difference_interval", "points_interval"),
    ]  # fmt: skip
    return Table("changes", shown.words("changes.title"), columns, rows)


def changed_departments_table(shown: Shown, changes: Changes, sides: tuple[str, str] | None = None) -> Table:
    """How each department changed, and whether that can be chance; `sides` as of `changes_table`."""
    rows = [
        [
            one.name,
            one.products,
            one.share.before,
            one.share.after,
            one.share.value,
            [one.share.lower, one.share.upper],
            one.gained,
            one.lost,
            one.p_value,
            "changes.is_real" if one.real else "changes.may_be_chance",
        ]
        for one in changes.departments
    ]
    columns = [
        shown.column("department", "name"), shown.column("count", "count"), *_sides(shown, sides),
        shown.column("difference", "points"),
        shown.column("difference_interval", "points_interval"), shown.column("gained", "count"),
        shown.column("lost", "count"), shown.column("p", "p"), shown.column("verdict", "status"),
    ]  # fmt: skip
    return Table("changed_departments", shown.words("changes.departments"), columns, rows)


def changed_products_table(
    shown: Shown, name: str, changes: Changes, rows: np.ndarray, before: Products
) -> Table:
    """Products that became correct, or became wrong, the most confident first."""
    rows, after = rows[:MOST_WRONG], shown.data.products
    ids, there = after.ids(rows), changes.row_before[rows]
    values = [
        [shown.photo.get(one) for one in ids],
        ids,
        after.true_path.texts(rows),
        before.predicted_path.texts(there),
        after.predicted_path.texts(rows),
        after.confidence[rows].tolist(),
    ]
    columns = [
        shown.column("photo", "photo"),
        shown.column("product", "code"),
        shown.column("true", "name"),
        shown.column("before_category", "name"),
        shown.column("after_category", "name"),
        shown.column("confidence", "percent"),
    ]
    return Table(name, shown.words(f"changes.{name}"), columns, _rows(values), shown=5, sort=(5, True))


# Parts, account, confidence, settings


def parts_table(shown: Shown) -> Table:
    """The figures of each part; the measured one in several ways."""
    words, metrics = shown.words, shown.data.metrics
    rows: list[list[Any]] = []
    for name in PARTS:
        figures, title = getattr(metrics, name), words(f"part.{name}")
        if figures is None:
            rows.append([f"{title}. {words('part.absent')}", 0, None, None, None, None])
            continue
        rows.append(
            [
                f"{title}. {words(f'part.{name}.meaning')}",
                figures.products,
                figures.precision,
                share(figures.accepted, figures.products),
                figures.accepted_precision,
                figures.acceptance_rate_at_target,
            ]
        )
        if name == metrics.graded_on:
            rows += _other_measures(shown, figures, title)
    columns = [
        shown.column("part_name", "text"),
        shown.column("part_products", "count"),
        shown.column("everything", "percent"),
        shown.column("part_accepted", "percent"),
        shown.column("part_accepted_correct", "percent"),
        shown.column("could", "percent", target=words.target(shown.data.rules.certificate.target)),
    ]
    return Table("parts", words("parts.title"), columns, rows)


def _other_measures(shown: Shown, figures: PartFigures, title: str) -> Iterator[list[Any]]:
    """The measured part without images that were trained on, without unlearnt categories, and weighted."""
    others = {
        "unseen": figures.unseen,
        "learnt": figures.learnt,
        "weighted": figures.weighted,
    }
    for key, one in others.items():
        if one:
            name = shown.words(f"part.{key}", part=title)
            yield [name, one.products, one.precision, None, None, one.acceptance_rate_at_target]


def account_table(shown: Shown) -> Table:
    """Where every image went; the counts add up to all images that came in."""
    words, records = shown.words, shown.data.records
    rows = [[*row, share(row[2], records.images)] for row in _account(records, words)]
    total = sum(row[2] for row in rows)
    rows.append([words("account.sum"), "", total, share(total, records.images)])
    columns = [
        shown.column("images", "text"), shown.column("why", "text"), shown.column("number", "count"),
        shown.column("share", "percent"),
    ]  # fmt: skip
    return Table("account", words("account.title"), columns, rows, marked=frozenset([len(rows) - 1]))


def _account(records: RecordsSummary, words: Words) -> Iterator[list[Any]]:
    for part in ("train", "val", "test"):
        name = words("account.records", part=words(f"part.{part}.small"))
        yield [name[0].upper() + name[1:], words("account.records.reason"), records.records[part]]
    yield [
        words("account.uncategorized"),
        words("account.uncategorized.reason"),
        records.uncategorized_images,
    ]
    yield [words("account.small"), words("account.small.reason"), records.dropped_images]
    for reason, images in records.rejects.items():
        key = f"reject.{reason}"
        why = words(key) if words.has(key) else f"{words('reject.other')} {reason}"
        yield [words("account.rejected"), why, images]


def coefficients_table(shown: Shown) -> Table:
    """The terms of the logistic model, the largest coefficient first."""
    words, model = shown.words, shown.data.rules.confidence
    rows = _evidence(words, model.coefficient)
    rows.append([words("evidence.intercept"), "intercept", model.intercept])
    columns = [
        shown.column("evidence", "text"),
        shown.column("name", "code"),
        shown.column("coefficient", "signed"),
    ]
    return Table("coefficients", words("confidence.title"), columns, rows)


def importances_table(shown: Shown, boosting: Boosting) -> Table:
    """The terms of the boosted trees, the most important first."""
    columns = [
        shown.column("evidence", "text"),
        shown.column("name", "code"),
        shown.column("importance", "percent"),
    ]
    rows = _evidence(shown.words, boosting.importance)
    return Table("importances", shown.words("confidence.importances"), columns, rows)


def _evidence(words: Words, values: Mapping[str, float]) -> list[list[Any]]:
    """Meaning, name and value of each term, the largest first; a term without a text has no meaning here."""
    ordered = sorted(values.items(), key=lambda item: (-abs(item[1]), item[0]))
    keys = [f"evidence.{name}" for name, _ in ordered]
    meanings = [words(key) if words.has(key) else "" for key in keys]
    return [[meaning, name, value] for meaning, (name, value) in zip(meanings, ordered, strict=True)]


def settings_table(shown: Shown) -> Table:
    """Every setting with the value that was used."""
    metrics = shown.data.metrics
    rows = [["backbone", metrics.backbone], ["weights", metrics.weights]]
    rows += [list(pair) for pair in used_settings(shown.data, shown.config, shown.words)]
    columns = [shown.column("setting", "code"), shown.column("value", "code")]
    return Table("settings", shown.words("settings.title"), columns, rows)


def used_settings(data: ReportData, config: Config, words: Words) -> Iterator[tuple[str, str]]:
    """section.name and the value that was used as text, in the order of the settings."""
    values: dict[str, Any] = config.model_dump()
    values["train"] |= config.training()
    if config.train.warm_start:
        values["train"]["warm_epochs"] = config.train.warm_epochs or -(-values["train"]["epochs"] // 4)
    values["report"]["language"] = words.language
    values["head"] |= {"loss": config.loss(), "aggregation": data.rules.aggregation}
    backbone, size = parse_name(config.backbone.name), config.backbone.image_size
    own = words("settings.detected") if backbone.path else backbone.image_size(None)
    values["backbone"] |= {"name": without_folder(config.backbone.name), "image_size": size or own}
    views = data.head.trained_views
    mirrored = any(parse_view(name).flip for name in views)
    values["extract"] |= {"views": views, "flip": mirrored, "asked": data.head.views}
    for name in ("csv_delimiter", "csv_encoding"):
        values["ingest"][name] = values["ingest"][name] or words("settings.detected")
    if config.head.kind != "flat":
        values["head"]["level_weights"] = config.head.level_weights or (1,)
    if config.head.kind == "taxonnet":
        values["head"]["selector"] = config.head.selector or config.head.hidden[1]
    for section, own in values.items():
        if isinstance(own, Mapping):
            yield from ((f"{section}.{name}", _setting_text(value, words)) for name, value in own.items())
        else:
            yield section, _setting_text(own, words)


def _setting_text(value: object, words: Words) -> str:
    """A setting's value as text.

    >>> words = Words("fr")
    >>> _setting_text([1024, 1024], words), _setting_text(1 / 3, words), _setting_text("/data/w.h5", words)
    ('1024, 1024', '0.333333', 'w.h5')
    >>> _setting_text(None, words), _setting_text(True, words)
    ('non utilisé', 'true')
    """
    if value is None:
        return words("settings.unused")
    if isinstance(value, list | tuple):
        return ", ".join(_setting_text(one, words) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name  # the folder differs from machine to machine
    return str(value)
