"""Two runs side by side, on one page: figures, curves, targets, categories, the products of both, settings.

ReportData of a run, of the other ── render_two ─► index.html
"""

from typing import Any

import pandas as pd

from pipeline.job.config import Config
from pipeline.report import tables
from pipeline.report.changes import Changes, compare
from pipeline.report.data import ReportData
from pipeline.report.figures import (
    BLUE,
    ORANGE,
    Plot,
    acceptance_plot,
    measured_curve,
    thresholds_to_keep,
)
from pipeline.report.language import Words, language_of
from pipeline.report.page import embedded, environment, p_text
from pipeline.report.table import Column, Table


def render_two(one: ReportData, other: ReportData) -> str:
    """The page of two runs as HTML, in the language of the first one's settings."""
    config = Config.model_validate(one.settings)
    words = Words(language_of(config.report.language))
    changes = compare(other.products, one.products, one.department | other.department)
    shown = tables.Shown(one, words, config, None, {})
    found = [_figures_table(one, other, words), _ladder_table(one, other, words)]
    if changes:
        sides = (other.run, one.run)
        found.append(tables.changes_table(shown, changes, sides))
        found.append(tables.changed_departments_table(shown, changes, sides))
    found += [_categories_table(one, other, words), _settings_table(one, other, words)]
    plot = _curves(one, other, words)
    content = {
        "run": f"{one.run}-{other.run}",
        "texts": words.script,
        "marks": words.marks,
        "statuses": {key: words(key) for table in found for key in table.statuses()},
        "tables": {table.name: table.script() for table in found},
        "plots": {"curves": plot.script()} if plot else {},
    }
    return _page(one, other, words, changes, {table.name: table for table in found}, plot, content)


def _page(
    one: ReportData,
    other: ReportData,
    words: Words,
    changes: Changes | None,
    found: dict[str, Table],
    plot: Plot | None,
    content: dict[str, Any],
) -> str:
    page = environment(words).get_template("two_runs.html.j2")
    return page.render(
        one=one,
        other=other,
        words=words,
        changes=changes,
        p_value=p_text(changes, words) if changes else "",
        part=words(f"part.{one.metrics.graded_on}.small"),
        tables=found,
        plot_of_both=plot,
        **embedded(content),
    )


def _both(
    words: Words, key: str, kind: str, one: ReportData, other: ReportData, **values: object
) -> list[Column]:
    """A column for each run."""
    title = words(f"col.{key}", **values)
    return [Column(words("two.in", column=title, run=data.run), kind) for data in (other, one)]


def _figures_table(one: ReportData, other: ReportData, words: Words) -> Table:
    """The most important figures of both."""
    before, after = list(_figures(other, words)), list(_figures(one, words))
    rows = [[name, first, second] for (name, first), (_, second) in zip(before, after, strict=True)]
    columns = [Column(words("col.figure"), "text"), Column(other.run, "figure"), Column(one.run, "figure")]
    return Table("figures", words("two.figures"), columns, rows)


def _figures(data: ReportData, words: Words) -> list[tuple[str, str]]:
    """Names and values, as text since their units differ."""
    certificate, measured = data.rules.certificate, data.measured
    rate = tables.share(measured.accepted, measured.products) if measured else None
    part = words(f"part.{data.metrics.graded_on}.small")
    return [
        (words("certificate.target"), words.target(certificate.target)),
        (words("two.certified"), words("no" if certificate.threshold is None else "yes")),
        (words("col.acceptance"), words.percent(rate)),
        (words("changes.precision"), words.percent(measured.accepted_precision if measured else None)),
        (words("changes.everything"), words.percent(measured.precision if measured else None)),
        (words("two.measured", part=part), words.count(measured.products if measured else 0)),
        (words("two.learnt"), words.count(len(data.categories))),
    ]


def _ladder_table(one: ReportData, other: ReportData, words: Words) -> Table:
    """The targets of both: what each would accept."""
    sides = [{certificate.target: certificate for certificate in data.rules.ladder} for data in (other, one)]
    rows = []
    for target in sorted(set(sides[0]) | set(sides[1])):
        found = [side.get(target) for side in sides]
        certified = [one is not None and one.threshold is not None for one in found]
        states = [f"ladder.{'certified' if yes else 'not'}" for yes in certified]
        rates = [
            one.acceptance_rate if one and yes else None for one, yes in zip(found, certified, strict=True)
        ]
        rows.append([target, *states, *rates])
    columns = [
        Column(words("col.target"), "target"), *_both(words, "state", "status", one, other),
        *_both(words, "cert_acceptance", "percent", one, other),
    ]  # fmt: skip
    return Table("targets", words("ladder.title"), columns, rows)


def _categories_table(one: ReportData, other: ReportData, words: Words) -> Table:
    """The categories of both, the largest difference of the estimates first."""
    both = pd.merge(
        _of_categories(other), _of_categories(one), how="outer", on="category", suffixes=("_before", "_after")
    )
    both["name"] = both["name_after"].fillna(both["name_before"])
    both["difference"] = both["estimate_after"] - both["estimate_before"]
    both = both.assign(size=both["difference"].abs()).sort_values(
        ["size", "name", "category"], ascending=[False, True, True], na_position="first"
    )
    names = [
        "name",
        *(f"{name}_{side}" for name in ("found", "estimate", "accepted") for side in ("before", "after")),
    ]
    columns = [
        Column(words("col.category"), "name"), *_both(words, "found", "percent", one, other),
        *_both(words, "estimate", "percent", one, other), *_both(words, "accepted", "count", one, other),
        Column(words("col.difference"), "points"), Column(words("col.category_id"), "code"),
    ]  # fmt: skip
    rows = [
        [None if pd.isna(value) else round(value, 6) if isinstance(value, float) else value for value in row]
        for row in both[[*names, "difference", "category"]].itertuples(index=False, name=None)
    ]
    return Table("categories", words("two.categories"), columns, rows, tree=0)


def _of_categories(data: ReportData) -> pd.DataFrame:
    table = data.categories
    found = table["right"] / table["products"].where(table["products"] > 0)
    return table[["category", "name", "estimate", "accepted"]].assign(found=found)


def _settings_table(one: ReportData, other: ReportData, words: Words) -> Table:
    """The settings that differ."""
    sides = [
        dict(tables.used_settings(data, Config.model_validate(data.settings), words))
        | {"backbone": data.metrics.backbone, "weights": data.metrics.weights}
        for data in (other, one)
    ]
    rows = [
        [name, sides[0].get(name), sides[1].get(name)]
        for name in dict.fromkeys((*sides[0], *sides[1]))
        if sides[0].get(name) != sides[1].get(name)
    ]
    columns = [Column(words("col.setting"), "code"), Column(other.run, "code"), Column(one.run, "code")]
    return Table("settings", words("two.settings"), columns, rows)


def _curves(one: ReportData, other: ReportData, words: Words) -> Plot | None:
    """Both curves of precision against acceptance rate, with the points in use."""
    if not (one.measured and other.measured):
        return None
    plots = [
        acceptance_plot(data, measured_curve(data, thresholds_to_keep(data)), words) for data in (other, one)
    ]
    names = (words("acceptance.category"), words("acceptance.in_use"))
    traces = []
    for data, plot, colour, dash in zip((other, one), plots, (ORANGE, BLUE), ("dash", "solid"), strict=True):
        for trace in plot.data:
            if trace["name"] in names and trace.get("fill") is None:
                name = f"{data.run}: {trace['name']}"
                line = {"color": colour, "width": 3, "dash": dash}
                marker = {"color": colour, "size": 12, "symbol": "diamond" if data is other else "circle"}
                hover = trace["hovertemplate"].replace(f"<extra>{trace['name']}", f"<extra>{name}")
                traces.append(trace | {"name": name, "line": line, "marker": marker, "hovertemplate": hover})
    alt = " ".join(f"{data.run}: {plot.alt}" for data, plot in zip((other, one), plots, strict=True))
    return Plot(traces, plots[1].layout, alt)
