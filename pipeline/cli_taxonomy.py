"""The commands of `shelfmark taxonomy`: trees and their changes; and the options of mapping files."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, local
from pipeline.cli_options import DECISIONS, PATH, Commands

if TYPE_CHECKING:
    from pipeline.job.decisions_file import StoredDecisions

_mapping = click.option(
    "--mapping", "mappings", type=PATH, multiple=True, metavar="FILE",
    help="What became of categories: CSV of from,to[,kind], or Shopify's YAML or JSON; repeatable.",
)  # fmt: skip


def mapping_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--mapping`, and a `--dry-run` that prints the ledger and opens no run, to a command."""

    @_mapping
    @click.option("--dry-run", is_flag=True, help="Print what --mapping does to each category, and stop.")
    @functools.wraps(command)
    def wrapped(dry_run: bool, **given: Any) -> None:
        if not dry_run:
            command(**given)
            return
        if not given["mappings"]:
            raise click.UsageError("--dry-run shows what a mapping does; expected --mapping, too")
        from models.decisions.releases import in_service
        from pipeline.taxonomy.ledger import compare, lines_of, read_steps
        from pipeline.taxonomy.trees import open_tree

        workspace, taxonomy = given["workspace"], given["taxonomy"]
        before = open_tree(workspace) if in_service(workspace / "releases") else {}
        after = open_tree(taxonomy) if taxonomy else None
        print("\n".join(lines_of(compare(before, after, read_steps(given["mappings"])))))

    return wrapped


@click.group(cls=Commands)
def taxonomy() -> None:
    """Checks and compares trees of categories.

    check finds what is wrong with a tree or a mapping. diff says what changed between two trees. migrate
    carries decisions over to the new one.

    \b
    Example:
      shelfmark taxonomy check category_names.csv
    """


@taxonomy.command()
@click.argument("file", type=PATH)
@click.option(
    "--levels",
    type=click.IntRange(min=1),
    metavar="N",
    help="A category that is deeper is a fault; default: none.",
)
def check(file: AnyPath, levels: int | None) -> None:
    """Finds what is wrong with a tree or a mapping.

    FILE is a taxonomy (CSV of category_id, category_level1, …; or a text as Google's) or a mapping. Faults
    are: categories that are there twice, have two places or share one; empty names; blanks; names that differ
    in upper and lower case alone; and cycles of a mapping. With a fault the exit status is 1.

    \b
    Example:
      shelfmark taxonomy check category_names.csv
    """
    from pipeline.taxonomy.check import check

    shown, faults = check(local(file), levels)
    print("\n".join([*shown, *faults]))
    if faults:
        raise ShelfmarkError(
            f"{file}: {len(faults):,} faults; expected none; correct the file, or use it as it is where they "
            "are meant"
        )


@taxonomy.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@_mapping
def diff(before: AnyPath, after: AnyPath, mappings: tuple[AnyPath, ...]) -> None:
    """Says what changed between two trees.

    BEFORE and AFTER are each a taxonomy (CSV, or a text as Google's), or the directory of a run, of a release
    or of a workspace. Categories are found by --mapping, by their ids, then by their paths.

    \b
    Example:
      shelfmark taxonomy diff shop category_names.csv --mapping renamed.csv
    """
    from pipeline.taxonomy.ledger import compare, lines_of, read_steps
    from pipeline.taxonomy.trees import open_tree

    print("\n".join(lines_of(compare(open_tree(before), open_tree(after), read_steps(mappings)))))


@taxonomy.command()
@click.argument("decisions", type=DECISIONS)
@_mapping
@click.option("--before", type=PATH, metavar="TREE", help="The tree that was decided in; as for diff.")
@click.option("--after", type=PATH, metavar="TREE", help="The new tree; as for diff.")
@click.option("--output", required=True, help="For all decisions: a file, FOLDER/ or the URL of a table.")
@click.option("--ledger", type=PATH, metavar="FILE.csv", help="What was changed; default: beside the output.")
def migrate(
    decisions: "AnyPath | StoredDecisions",
    mappings: tuple[AnyPath, ...],
    before: AnyPath | None,
    after: AnyPath | None,
    output: str,
    ledger: AnyPath | None,
) -> None:
    """Carries decisions over to the new tree.

    DECISIONS are those of categorize: a file, a folder or a table. Every product stays. A category with one
    target becomes it; decisions about categories that were split, or of which nothing is left, go to a
    person. The ledger, NAME.migrated.csv beside the output, says what was changed and why.

    \b
    Example:
      shelfmark taxonomy migrate decisions.parquet --mapping renamed.csv --output migrated.parquet
    """
    if not mappings and after is None:
        raise click.UsageError("nothing says what changed; expected --mapping or --after")
    from pipeline.taxonomy.ledger import read_steps
    from pipeline.taxonomy.migrate import ledger_beside, migrate
    from pipeline.taxonomy.trees import open_tree

    ledger = ledger or ledger_beside(output)
    if ledger is None:
        raise click.UsageError("beside a table no ledger can be; expected --ledger FILE.csv")
    trees = [open_tree(tree) if tree else None for tree in (before, after)]
    counts = migrate(decisions, output, ledger, read_steps(mappings), *trees)
    print(f"{output}: " + ", ".join(f"{kind} {count:,}" for kind, count in counts.items()))
    print(ledger)
