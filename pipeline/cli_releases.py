"""The commands about releases: which there are, another one into service, back to the one before, none."""

import json
import sys
from dataclasses import asdict

import click

from features.storage.paths import AnyPath
from pipeline.cli_options import PATH, start_tensorflow

_workspace = click.option(
    "--workspace", type=PATH, required=True, help="Directory of all runs, releases and the store."
)
_why = click.option("--why", metavar="TEXT", help="The reason, for releases/log.jsonl.")
_who = click.option("--who", metavar="TEXT", help="Who decides, for the log; default: user@host.")


@click.command()
@_workspace
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every time in service.")
def releases(workspace: AnyPath, as_json: bool) -> None:
    """Lists the releases.

    When each was in service (UTC), what it promised, and what it accepted of its own test products, with
    which precision. The last one put into service comes first.

    \b
    Example:
      shelfmark releases --workspace shop
    """
    from pipeline.release.listing import COLUMNS, list_releases, table_rows

    listed = list_releases(workspace / "releases")
    if as_json:
        print(json.dumps([asdict(one) for one in listed], ensure_ascii=False, indent=1))
        return
    if not listed:
        print(f"{workspace}: nothing has been released yet")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    rows = table_rows(listed)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)  # in a file nothing is folded
    if len(rows) < len(listed):
        print(f"{len(listed) - len(rows):,} more are in releases/log.jsonl, and are no longer there")


@click.command()
@click.argument("name")
@_workspace
@_why
@_who
def release(name: str, workspace: AnyPath, why: str | None, who: str | None) -> None:
    """Puts a release into service.

    NAME is a release that is there, or a run whose bundle was kept out; for the latter --why is needed. It is
    one step, recorded in releases/log.jsonl. Servers serve it within seconds.

    \b
    Example:
      shelfmark release 2026-W47 --workspace shop --why "W48 confuses shoes and boots"
    """
    from pipeline.release.switch import put_release

    made = put_release(workspace, name, why, who)
    print(made.to_sentence() if made else f"{name} is in service already")
    _carry_over(workspace)


@click.command()
@click.argument("name", required=False)
@_workspace
@_why
@_who
def rollback(name: str | None, workspace: AnyPath, why: str | None, who: str | None) -> None:
    """Goes back to an earlier release.

    Without NAME it is the one that served before the one in service, by releases/log.jsonl; again, it is the
    one before that. `shelfmark release NAME` goes forward again.

    \b
    Example:
      shelfmark rollback --workspace shop --why "W48 confuses shoes and boots"
    """
    from pipeline.release.switch import roll_back

    made = roll_back(workspace, name, why, who)
    print(made.to_sentence() if made else f"{name} is in service already")
    _carry_over(workspace)


def _carry_over(workspace: AnyPath) -> None:
    """Encodes corrections for the release that is in service now; where there are none, at once."""
    from pipeline.job.config import SellersSettings
    from pipeline.job.corrected import has_corrections, sellers_in_service

    settings = SellersSettings.model_validate(sellers_in_service(workspace))
    if has_corrections(workspace, settings):
        start_tensorflow()
        from pipeline.adapt.carry import carry_over

        carry_over(workspace, settings)


@click.command()
@_workspace
@click.option("--why", metavar="TEXT", required=True, help="The reason, for releases/log.jsonl.")
@_who
def withdraw(workspace: AnyPath, why: str, who: str | None) -> None:
    """Takes the release in service out of service.

    From then on nothing is decided automatically: `categorize` ends with an error, and servers do at their
    next start. `shelfmark rollback` puts it back; the next `retrain` releases its bundle.

    \b
    Example:
      shelfmark withdraw --workspace shop --why "labels of two departments were mixed up"
    """
    from pipeline.release.switch import withdraw

    made = withdraw(workspace, why, who)
    print(made.to_sentence() if made else "nothing is in service")
