"""The commands of `shelfmark audit`: labels in doubt, and decisions that people check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.storage.paths import AnyPath
from pipeline.cli_options import DECISIONS, PATH, Commands, stage_command

if TYPE_CHECKING:
    from pipeline.job.decisions_file import StoredDecisions
    from pipeline.job.run import Run

VERDICTS = {"proven": 0, "not proven": 3, "broken": 4}  # exit status of judge

_share = click.FloatRange(min=0, max=1, min_open=True, max_open=True)
_target = click.option("--target", type=_share, default=0.9, help="Precision promised; default: 0.9.")
_certainty = click.option("--certainty", type=_share, default=0.9, help="Of the verdict; default: 0.9.")


@click.group(cls=Commands)
def audit() -> None:
    """Checks labels and decisions.

    suspects lists labels that are probably wrong. plan, draw and judge are for people who check decisions:
    how many to check, which ones, and what they prove.

    \b
    Example:
      shelfmark audit plan
    """


@audit.command()
@stage_command
def suspects(run: "Run") -> None:
    """Lists labels that are probably wrong.

    They are in suspects/suspects.parquet of the run, and in its report. Validation and test products are
    examined by the run's head; with suspects.folds the training products, too, by heads that are trained for
    it.

    \b
    Example:
      shelfmark audit suspects --workspace shop --set suspects.folds=2
    """
    from pipeline.audit.suspects import suspects

    print(suspects(run).path / "suspects.parquet")


@audit.command()
@click.option(
    "--expected",
    type=click.FloatRange(min=0, max=1, min_open=True),
    multiple=True,
    metavar="PRECISION",
    help="Precision that you expect; repeatable; default: some above the target.",
)
@_target
@_certainty
@click.option(
    "--power", type=_share, default=0.8, help="Chance that the expected precision is proven; default: 0.8."
)
def plan(expected: tuple[float, ...], target: float, certainty: float, power: float) -> None:
    """Says how many decisions to check.

    \b
    Example:
      shelfmark audit plan --expected 0.95 --target 0.9
    """
    from pipeline.audit.judge import plan

    print("\n".join(plan(target, certainty, power, list(expected))))


@audit.command()
@click.argument("decisions", type=DECISIONS)
@click.option("--products", type=click.IntRange(min=1), required=True, metavar="N", help="How many to draw.")
@click.option("--output", type=PATH, required=True, help="FILE.csv to be filled in.")
@click.option("--seed", type=int, default=0, help="Another one draws other products; default: 0.")
@click.option(
    "--status",
    type=click.Choice(["accepted", "parent"]),
    default="accepted",
    help="Decisions to draw from; default: accepted.",
)
@click.option("--page", type=PATH, metavar="PAGE.html", help="Also a page with photos and buttons.")
@click.option(
    "--photos",
    multiple=True,
    metavar="SOURCE",
    help="Where the page's photos are; as for categorize; repeatable.",
)
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option(
    "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="One setting, over --config."
)
def draw(
    decisions: "AnyPath | StoredDecisions",
    file: Path | None,
    sets: tuple[str, ...],
    photos: tuple[str, ...],
    **given: Any,
) -> None:
    """Draws decisions for people to check.

    DECISIONS is what categorize wrote: a file, a folder or the URL of a table. The drawn ones are a simple
    random sample of its accepted decisions.
    Fill in the column correct (yes or no), or use the page, which saves such a file.

    \b
    Example:
      shelfmark audit draw decisions.parquet --products 128 --output checked.csv
    """
    from pipeline.audit.draw import draw
    from pipeline.job.load_config import load_config

    if photos and not given["page"]:
        raise click.UsageError("--photos is for a page; expected --page, too")
    sample = draw(
        decisions, photos=list(photos), settings=load_config(file, sets, used=("ingest",)).ingest, **given
    )
    print(
        f"{given['output']}: {len(sample.decisions):,} of {sample.drawn_from:,} {given['status']} decisions"
    )


@audit.command()
@click.argument("file", type=PATH)
@_target
@_certainty
def judge(file: AnyPath, target: float, certainty: float) -> None:
    """Says what checked decisions prove.

    FILE is the file of draw, filled in. Exit status: 0 the promise is proven, 3 it is not proven, 4 it is
    broken.

    \b
    Example:
      shelfmark audit judge checked.csv --target 0.9
    """
    from pipeline.audit.judge import judge

    found, lines = judge(file, target, certainty)
    print("\n".join(lines))
    sys.exit(VERDICTS[found.verdict])
