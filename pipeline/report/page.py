"""The report's page: tables, plots and photos of a run, put into one HTML file that opens without a network.

    ReportData ── choose, thumbnails ─► photos ┐
               ── tables ─► Table ─────────────┼── render ─► index.html
               ── figures ─► Plot ─────────────┘             styles, plotly.js (packed) and data as JSON in it

The page has no date, duration or absolute path, so the same run gives the same bytes.
"""

import base64
import functools
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from features.storage.paths import AnyPath
from models.decisions.categories import CERTAINTY
from models.decisions.thresholds import in_catalogue_products
from pipeline.job.config import Config
from pipeline.report import tables
from pipeline.report.changes import Changes, compare
from pipeline.report.data import ReportData
from pipeline.report.figures import (
    Curve,
    Plot,
    acceptance_plot,
    cumulative_plot,
    learning_plot,
    measured_curve,
    reliability_plot,
    seller_gains_plot,
    thresholds_to_keep,
)
from pipeline.report.language import Words, language_of
from pipeline.report.photos import Choice, choose, map_overlays, thumbnails
from pipeline.report.table import Table, cell_text
from pipeline.report.tables import Shown
from pipeline.train.figures import PartFigures

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLE_WEEK = 1000  # products a week where the source has none without category


def environment(words: Words) -> Environment:
    """The templates of our pages. Names from the catalogue are escaped, since they may contain HTML."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        **{"percent": words.percent, "count": words.count, "signed": words.signed, "number": words.number},
        **{"target": words.target, "cell": lambda value, kind: cell_text(words, kind, value)},
    }
    templates.globals |= {"t": words}
    return templates


# What the page shows


@dataclass(frozen=True, eq=False)
class Report:
    """A run with all that the page and the Excel file show of it."""

    data: ReportData
    words: Words
    config: Config
    curve: Curve | None  # None where nothing was measured
    choice: Choice
    photos: dict[str, bytes]  # WebP, by product_id or image digest
    maps: dict[str, bytes]  # WebP of some of them under a map of where the network looked
    changes: Changes | None
    tables: dict[str, Table]
    plots: dict[str, Plot]

    @property
    def weekly(self) -> int:
        """Products that come in a week, as far as the source says."""
        return weekly_products(self.data)


def weekly_products(data: ReportData) -> int:
    """The products of the source without category, else EXAMPLE_WEEK."""
    return data.records.uncategorized_products or EXAMPLE_WEEK


def build(data: ReportData, records: AnyPath) -> Report:
    """Makes everything that the report shows.

    Args:
        data: of `load`.
        records: directory of the run's records, where the photos are.

    Raises:
        ShelfmarkError: a photo cannot be read.
    """
    config = Config.model_validate(data.settings)
    words = Words(language_of(config.report.language))
    curve = measured_curve(data, thresholds_to_keep(data)) if data.measured else None
    changes = compare(data.in_service, data.products, data.department) if data.in_service else None
    wrong = tables.wrong_rows(data.products)
    changed = [changes.became_correct, changes.became_wrong] if changes else []
    choice = choose(data, config.report.thumbnails, wrong, changed)
    thumbs = thumbnails(records, data.products.ids(np.array(choice.rows(), int)), choice.suspects)
    shown = Shown(data, words, config, curve, {name: number for number, name in enumerate(thumbs)})
    return Report(
        data, words, config, curve, choice, thumbs, map_overlays(thumbs, data.maps), changes,
        {table.name: table for table in _tables(shown, choice, wrong, changes)},
        _plots(data, curve, words),
    )  # fmt: skip


def _tables(shown: Shown, choice: Choice, wrong: np.ndarray, changes: Changes | None) -> list[Table]:
    """All tables in the order of the page."""
    data, found = shown.data, [tables.ladder_table(shown)]
    if data.measured:
        found += [tables.levels_table(shown, data.measured), tables.categories_table(shown)]
    if len(data.confusions):
        found += [tables.confusions_table(shown, choice), tables.wrong_table(shown, wrong)]
    if data.suspects is not None:
        found.append(tables.suspects_table(shown, data.suspects))
    if data.rules.departments:
        found.append(tables.departments_table(shown))
    if data.measured:
        found.append(tables.cost_table(shown, weekly_products(data)))
    if data.by_seller and data.by_seller.figures.sellers:
        found += tables.seller_tables(shown, data.by_seller)
    found.append(tables.account_table(shown))
    if len(data.unlearnt):
        found.append(tables.unlearnt_table(shown))
    if data.tree is not None and len(data.tree):
        found.append(tables.tree_table(shown, data.tree))
    if changes and data.in_service:
        found += [tables.changes_table(shown, changes), tables.changed_departments_table(shown, changes)]
        for name in ("became_correct", "became_wrong"):
            rows = getattr(changes, name)
            found.append(tables.changed_products_table(shown, name, changes, rows, data.in_service))
    found.append(tables.parts_table(shown))
    if data.rules.confidence.coefficient:
        found.append(tables.coefficients_table(shown))
    if data.rules.confidence.boosting:
        found.append(tables.importances_table(shown, data.rules.confidence.boosting))
    return [*found, tables.settings_table(shown)]


def _plots(data: ReportData, curve: Curve | None, words: Words) -> dict[str, Plot]:
    kept = best_epoch(data.history)
    plots = {
        "acceptance": acceptance_plot(data, curve, words) if curve else None,
        "cumulative": cumulative_plot(data, words) if curve else None,
        "reliability": reliability_plot(data.products, words),
        "seller_gains": seller_gains_plot(data.by_seller.gains, words) if data.by_seller else None,
        **{
            name: learning_plot(data.history, name, kept.epoch if kept else None, words)
            for name in ("accuracy", "loss")
        },
    }
    return {name: plot for name, plot in plots.items() if plot}


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


# Sentences


def headline(data: ReportData, words: Words) -> str:
    """One sentence: which share can be categorized automatically at the promised precision, if any."""
    certificate = data.rules.certificate
    target = words.target(certificate.target)
    if certificate.threshold is not None:
        figures = data.measured or certificate
        rate = words.percent(tables.share(figures.accepted, figures.products))
        return words("headline.certified", rate=rate, target=target)
    needed = tables.products_needed(certificate, words)
    catalogue = catalogue_products(data)
    then = (
        words("headline.more", products=needed, catalogue=words("about", count=words.count(catalogue)))
        if catalogue
        else words("headline.never")
    )
    return words("headline.nothing", target=target, then=then)


def catalogue_products(data: ReportData) -> int | None:
    """About how many more products of the catalogue are needed; None where more will not help."""
    certificate, records = data.rules.certificate, data.records
    if certificate.more_products_needed is None:
        return None
    categorized = records.products - records.uncategorized_products
    return in_catalogue_products(certificate.more_products_needed, certificate.products, categorized)


def below_promise(measured: PartFigures | None) -> bool:
    """Whether the precision of the accepted products, as printed, is below the promise."""
    precision = measured.accepted_precision if measured else None
    return precision is not None and measured is not None and round(precision, 3) < measured.target_precision


def stopped_at_parents(measured: PartFigures | None) -> tuple[int, float | None]:
    """How many products got a branch and no category, and which share of these branches is correct."""
    if measured is None:
        return 0, None
    levels = sorted(measured.decided, key=lambda level: int(level.removeprefix("level")))[:-1]
    coarser = [measured.decided[level] for level in levels]
    products = sum(one.products for one in coarser)
    return products, tables.share(sum(one.products * (one.precision or 0) for one in coarser), products)


def p_text(changes: Changes, words: Words) -> str:
    """The p-value behind the letter p: "= 0.0123" or "< 0.0001"."""
    value = changes.p_value
    return f"< {words.decimal(0.0001, 4)}" if value < 0.0001 else f"= {words.decimal(value, 4)}"


# The page


def render(report: Report) -> str:
    """The page as HTML."""
    data, words, measured = report.data, report.words, report.data.measured
    certificate, changes = data.rules.certificate, report.changes
    page = environment(words).get_template("report.html.j2")
    return page.render(
        report=report,
        data=data,
        words=words,
        measured=measured,
        part=words(f"part.{data.metrics.graded_on}.small"),
        certificate=certificate,
        certainty=words.target(round(1 - data.rules.delta, 6)),
        headline=headline(data, words),
        products_needed=tables.products_needed(certificate, words),
        below_promise=below_promise(measured),
        parents=stopped_at_parents(measured),
        weekly=report.weekly,
        interval_certainty=words.target(CERTAINTY),
        concentration=tables.concentration(data.categories),
        statuses=data.categories["status"].value_counts(),
        changes=changes,
        p_value=p_text(changes, words) if changes else "",
        best=best_epoch(data.history),
        mixup=float(report.config.training()["mixup"]) > 0,
        share=tables.share,
        most_wrong=tables.MOST_WRONG,
        most_suspects=tables.MOST_SUSPECTS,
        sellers=data.by_seller.figures if data.by_seller else None,
        adapts=report.config.sellers.method != "none",
        **embedded(script_data(report)),
    )


def embedded(content: Mapping[str, Any]) -> dict[str, Markup]:
    """What is embedded for the browser: the page's script, its data, and plotly.js, packed."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return {
        "script": Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        "script_data": Markup(text.replace("<", "\\u003c")),  # no </script> in a name ends the element
        "plotly": Markup(packed_plotly()),
    }


@functools.cache
def packed_plotly() -> str:
    """plotly.js, gzip in base64, which the page's script unpacks: 4.8 MB become 1.9.

    The package has the full library alone. Its smaller editions are npm packages, which `make setup` does not
    install; unpacked, the full one starts in a third of a second.
    """
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(plotly, 9, mtime=0)).decode()


def script_data(report: Report) -> dict[str, Any]:
    """The data of the page's script."""
    return {
        "run": report.data.run,
        "texts": report.words.script,
        "marks": report.words.marks,
        "statuses": {key: report.words(key) for table in report.tables.values() for key in table.statuses()},
        "tables": {name: table.script() for name, table in report.tables.items()},
        "plots": {name: plot.script() for name, plot in report.plots.items()},
        "chooser": chooser_data(report),
        "photos": [base64.b64encode(photo).decode() for photo in report.photos.values()],
        "photo_ids": list(report.photos),
        "maps": {
            number: base64.b64encode(report.maps[name]).decode()
            for number, name in enumerate(report.photos)
            if name in report.maps
        },
        "details": _details(report),
        "thumbnails": report.config.report.thumbnails,
    }  # fmt: skip


def chooser_data(report: Report) -> dict[str, Any] | None:
    """The measured curve for the slider, and which of its points are certified for which target."""
    curve, data = report.curve, report.data
    if curve is None or data.measured is None:
        return None
    certified: dict[int, float] = {}
    threshold = curve.threshold.copy()
    # of several targets at one point the one in use, else the highest
    for one, _ in sorted(tables.promises(data.rules), key=lambda pair: pair[1]):
        if one.threshold is not None and (at := curve.at(one.threshold)) >= 0:
            certified[at], threshold[at] = one.target, one.threshold
    used = data.rules.certificate.threshold
    at_target = int(np.argmin(np.abs(curve.rate - data.measured.acceptance_rate_at_target)))
    in_use = -1 if used is None else curve.at(used)
    settings = report.config.report
    return {
        **{name: getattr(curve, name).round(7).tolist() for name in ("rate", "precision", "lower", "upper")},
        "threshold": threshold.round(7).tolist(),
        "certified": [[at, certified[at]] for at in sorted(certified)],
        "certainty": round(1 - data.rules.delta, 6),
        "in_use": in_use,
        "start": in_use if in_use >= 0 else at_target,
        "currency": settings.currency,
    }


def _details(report: Report) -> dict[str, dict[str, list[int]]]:
    """Numbers of the photos of each category that has some, by kind."""
    numbers = {name: number for number, name in enumerate(report.photos)}
    found = {}
    for category, kinds in report.choice.categories.items():
        ids = {kind: report.data.products.ids(np.array(rows, int)) for kind, rows in kinds.items()}
        found[category] = {
            kind: [numbers[name] for name in own if name in numbers] for kind, own in ids.items()
        }
    return found
