"""The commands about corrections: adapt, which learns a file of them, and the group corrections."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from features.errors import ShelfmarkError
from features.printable import escaped
from features.storage.paths import AnyPath
from pipeline.cli_options import OF_VIEWS, PATH, Commands

if TYPE_CHECKING:
    from models.corrections.correction import SellerAccount
    from models.corrections.store import Corrections
    from pipeline.job.config import SellersSettings

USES = ("ingest", "extract", "sellers")  # sections of settings that adapt uses
LEAVES = (  # settings in them that are about training, and those that the bundle has decided
    *("ingest.min_products", "ingest.min_known", "ingest.max_rejected", "ingest.placeholder_products"),
    *("ingest.val_share", "ingest.test_share", "ingest.least_test"),
    *(*OF_VIEWS, "extract.shard_images"),
    *("sellers.method", "sellers.vectors", "sellers.labels"),
)
COLUMNS = ("seller", "corrections", "ended", "without vector", "last (UTC)", "")
NUMBERS = ("corrections", "ended", "without vector")

_workspace = click.option(
    "--workspace", type=PATH, required=True, help="Directory with the release in service."
)
_config = click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings.")
_sets = click.option(
    "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="One setting, over --config."
)
_seller = click.option("--seller", required=True, metavar="SELLER", help="Name, as in the corrections.")


def _of_a_workspace(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command about the corrections of a workspace."""
    for option in (_sets, _config, _workspace):
        command = option(command)
    return command


@click.command()
@click.argument("corrections", type=PATH, metavar="FILE")
@_workspace
@click.option(
    "--photos",
    multiple=True,
    metavar="SOURCE",
    help="Where photos of the products are, as for categorize; repeatable. Without, those that runs and "
    "batches know.",
)
@click.option(
    "--rejects",
    type=PATH,
    metavar="FILE.csv",
    help="For rows and photos that cannot be used; default: beside FILE.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorflow", "openvino", "onnxruntime", "jax"]),
    help="What runs the backbone, where photos are new; default: auto, the fastest one installed.",
)
@_config
@_sets
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def adapt(
    corrections: AnyPath,
    workspace: AnyPath,
    photos: tuple[str, ...],
    rejects: AnyPath | None,
    engine: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Learns corrections, seller by seller.

    FILE is a .csv, .tsv or .parquet with product_id, seller, category, and optionally who, when, comment and
    image: a path relative to the file. A category is an id or a path of the release's tree. The next decision
    about a product of the seller takes the corrections into account; nothing is trained. The next retrain
    takes them as labels, of those products that its catalogue holds as this seller's. The same command again
    doubles nothing.

    \b
    Example:
      shelfmark adapt corrections.csv --workspace shop
    """
    from features.engines.choose import use_engine
    from models.decisions.releases import require_in_service
    from pipeline.adapt.given import check_given
    from pipeline.arguments import check_workspace, check_writable
    from pipeline.job.command_log import command_log, log_of_job
    from pipeline.job.corrected import open_corrections, sellers_in_service
    from pipeline.job.load_config import load_config
    from pipeline.sources.tables import csv_options

    check_workspace(workspace)
    require_in_service(workspace)
    config = load_config(
        file, sets, {"extract.engine": engine}, {"sellers": sellers_in_service(workspace)}, USES, LEAVES
    )
    check_given(corrections, csv_options(config.ingest))
    check_writable(rejects or corrections.parent)
    with command_log(log_of_job(workspace, "adapt")):
        use_engine(config.extract.engine)  # TensorFlow starts when a photo is new
        from pipeline.adapt.adapt import adapt
        from pipeline.release.in_service import require_release

        bundle, store = require_release(workspace), open_corrections(workspace, config.sellers)
        try:
            found = adapt(corrections, workspace, bundle, store, config, photos, rejects)
        finally:
            store.close()
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    counts = f"new {found.new:,}, same {found.same:,}, replaced {found.replaced:,}"
    print(f"{corrections}: {counts}, rejected {found.rejected:,}{_reasons(found.reasons)}")
    if found.rejects is not None:
        print(f"rejected    {found.rejects}")
    if found.photos_refused:
        print(f"photos      {found.photos_refused:,} refused")
    if found.without_vector:
        number = sum(found.without_vector.values())
        print(f"labels only {number:,} corrections without a vector{_reasons(found.without_vector)}")
    for seller, why in found.flagged.items():
        print(f"flagged     {escaped(seller)}: {escaped(why)}")


def _reasons(counts: dict[str, int]) -> str:
    """Counts by reason, in parentheses."""
    named = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts.items())
    return f" ({named})" if named else ""


@click.group(cls=Commands)
def corrections() -> None:
    """Lists and changes what sellers have corrected.

    \b
    Example:
      shelfmark corrections list --workspace shop
    """


@corrections.command("list")
@_of_a_workspace
@click.option("--seller", metavar="SELLER", help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def list_sellers(
    workspace: AnyPath, file: Path | None, sets: tuple[str, ...], seller: str | None, as_json: bool
) -> None:
    """Lists the sellers, how much they have corrected, and whose corrections look wrong.

    \b
    Example:
      shelfmark corrections list --workspace shop
    """
    import json
    from dataclasses import asdict

    with _opened(workspace, file, sets, seller) as store:
        accounts = [one for one in store.sellers() if seller is None or one.seller == seller] if store else []
    if as_json:
        print(json.dumps([asdict(one) for one in accounts], ensure_ascii=False, indent=1, default=str))
        return
    if not accounts:
        print(f"{workspace}: nobody has made corrections yet")
        return
    rows = [COLUMNS, *map(_row, accounts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        cells = [
            cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            for name, cell, width in zip(COLUMNS, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _row(account: "SellerAccount") -> tuple[str, ...]:
    notes = [
        f"{name}: {why}"
        for name, why in (("set aside", account.set_aside), ("flagged", account.flagged))
        if why
    ]
    return (
        escaped(account.seller),
        *(f"{number:,}" for number in (account.corrections, account.ended, account.without_vector)),
        "" if account.last is None else f"{account.last:%Y-%m-%d %H:%M}",
        escaped("; ".join(notes)),
    )


@corrections.command()
@click.argument("target", type=PATH, metavar="FILE")
@_of_a_workspace
@click.option("--seller", metavar="SELLER", help="Only this one.")
def export(
    target: AnyPath, workspace: AnyPath, file: Path | None, sets: tuple[str, ...], seller: str | None
) -> None:
    """Writes all corrections, ended ones too, to a .csv, .jsonl or .parquet.

    Texts are as they were given: a spreadsheet may take one that begins with =, +, - or @ for a formula.

    \b
    Example:
      shelfmark corrections export corrections.csv --workspace shop
    """
    from pipeline.adapt.export import export_corrections

    with _opened(workspace, file, sets, seller, is_needed=True) as store:
        assert store is not None
        print(f"{target}: {export_corrections(store, target, seller):,} corrections")


@corrections.command()
@click.argument("ids", type=click.IntRange(min=1, max=2**63 - 1), nargs=-1, required=True, metavar="ID...")
@_of_a_workspace
def undo(ids: tuple[int, ...], workspace: AnyPath, file: Path | None, sets: tuple[str, ...]) -> None:
    """Undoes corrections by their ids, which export shows.

    The seller's next decisions are those without them.

    \b
    Example:
      shelfmark corrections undo 17 --workspace shop
    """
    with _opened(workspace, file, sets, is_needed=True) as store:
        assert store is not None
        undone = store.undo(list(ids))
    if not undone:
        raise ShelfmarkError(
            f"{', '.join(map(str, ids))}: not in use, none of them; expected ids of corrections that are; "
            "`shelfmark corrections export` lists them"
        )
    others = len(set(ids)) - undone
    print(f"{undone:,} undone" + (f"; {others:,} were not in use" if others else ""))


@corrections.command()
@_of_a_workspace
@_seller
@click.option("--yes", is_flag=True, help="Needed, because nothing brings them back.")
def delete(workspace: AnyPath, file: Path | None, sets: tuple[str, ...], seller: str, yes: bool) -> None:
    """Deletes everything that a seller has corrected, with vectors and bottlenecks.

    Records of earlier runs keep the labels that they were made from, until `clean` removes the runs. Where
    the command could not overwrite what it had deleted, because others used the database without a pause, the
    same command again does so.

    \b
    Example:
      shelfmark corrections delete --workspace shop --seller 4711 --yes
    """
    with _opened(workspace, file, sets, is_needed=True) as store:
        assert store is not None
        known = [one.seller for one in store.sellers()]
        if not yes:
            _require_seller(seller, known)
            raise ShelfmarkError(
                f"--seller {seller}: nothing is deleted; expected --yes, because nothing brings corrections "
                "back; `shelfmark corrections set-aside` takes them out of use instead"
            )
        if deleted := store.delete_seller(seller):
            print(f"{escaped(seller)}: {deleted:,} corrections deleted")
        else:
            name = escaped(seller)
            print(f"{name}: had no corrections, and nothing is left of {name}{_near(seller, known)}")


@corrections.command("set-aside")
@_of_a_workspace
@_seller
@click.option("--why", required=True, metavar="TEXT", help="The reason, for whoever asks later.")
def set_aside(workspace: AnyPath, file: Path | None, sets: tuple[str, ...], seller: str, why: str) -> None:
    """Takes a seller's corrections out of use.

    His next decisions are those of the base, and his corrections are no labels, until they are restored.

    \b
    Example:
      shelfmark corrections set-aside --workspace shop --seller 4711 --why "bulk edit by mistake"
    """
    if not why.strip():
        raise click.UsageError("--why is empty; expected the reason")
    with _opened(workspace, file, sets, seller, is_needed=True) as store:
        assert store is not None
        before = _account(store, seller).set_aside
        store.set_aside(seller, why)
    print(escaped(f"{seller}: set aside" + (f"; the reason before was: {before}" if before else "")))


@corrections.command()
@_of_a_workspace
@_seller
def restore(workspace: AnyPath, file: Path | None, sets: tuple[str, ...], seller: str) -> None:
    """Puts a seller's corrections in use again, and clears a flag.

    \b
    Example:
      shelfmark corrections restore --workspace shop --seller 4711
    """
    with _opened(workspace, file, sets, seller, is_needed=True) as store:
        assert store is not None
        account = _account(store, seller)
        if not (account.set_aside or account.flagged):
            print(f"{escaped(seller)}: in use already; neither set aside nor flagged, so nothing is changed")
            return
        store.restore(seller)
    print(f"{escaped(seller)}: in use")


def _settings(workspace: AnyPath, file: Path | None, sets: tuple[str, ...]) -> "SellersSettings":
    """The section [sellers]: that of the release in service, under what is given."""
    from pipeline.job.corrected import sellers_in_service
    from pipeline.job.load_config import load_config

    unused = ("sellers.method", "sellers.vectors", "sellers.labels")
    base: dict[str, object] = {"sellers": sellers_in_service(workspace)}
    return load_config(file, sets, base=base, used=("sellers",), unused=unused).sellers


@contextmanager
def _opened(
    workspace: AnyPath,
    file: Path | None,
    sets: tuple[str, ...],
    seller: str | None = None,
    is_needed: bool = False,
) -> "Iterator[Corrections | None]":
    """The corrections of a workspace; None where nobody has made any, and they are not needed.

    Raises:
        ShelfmarkError: they are needed, or the seller has made none.
    """
    from pipeline.arguments import check_workspace
    from pipeline.job.corrected import find_corrections

    check_workspace(workspace)
    store = find_corrections(workspace, _settings(workspace, file, sets))
    if store is None:
        if is_needed or seller is not None:
            raise ShelfmarkError(
                f"{workspace}: nobody has made corrections yet; expected some; run `shelfmark adapt` first"
            )
        yield None
        return
    try:
        if seller is not None:
            _require_seller(seller, [one.seller for one in store.sellers()])
        yield store
    finally:
        store.close()


def _account(store: "Corrections", seller: str) -> "SellerAccount":
    """What the list says of a seller who has made corrections."""
    return next(one for one in store.sellers() if one.seller == seller)


def _require_seller(seller: str, known: list[str]) -> None:
    if seller not in known:
        hint = _near(seller, known) or "; `shelfmark corrections list` lists them"
        raise ShelfmarkError(
            f"--seller {seller}: has made no corrections; expected one of {len(known):,} sellers who "
            f"have{hint}"
        )


def _near(seller: str, known: list[str]) -> str:
    """The seller who may be meant, as the end of a sentence; "" for none."""
    import difflib

    near = difflib.get_close_matches(seller, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
