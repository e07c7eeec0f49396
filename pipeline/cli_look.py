"""The command that shows what the network says about single photos, and where it looked."""

from typing import TYPE_CHECKING

import click

from features.storage.paths import AnyPath
from pipeline.cli_options import PATH, start_tensorflow

if TYPE_CHECKING:
    from pipeline.look.results import PhotoResult


@click.command()
@click.argument("photos", nargs=-1, required=True, type=PATH, metavar="PHOTO...")
@click.option("--workspace", type=PATH, required=True, help="Directory with the release in service.")
@click.option(
    "--release", metavar="NAME", help="A release, or a run whose bundle was kept out; default: in service."
)
@click.option(
    "--top", type=click.IntRange(min=1), default=15, show_default=True, help="Categories of each photo."
)
@click.option("--output", type=PATH, help="For the pictures; default: WORKSPACE/look/RELEASE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def look(
    photos: tuple[AnyPath, ...],
    workspace: AnyPath,
    release: str | None,
    top: int,
    output: AnyPath | None,
    as_json: bool,
) -> None:
    """Shows the best categories of photos, and where the network looked.

    Each photo is decided about by itself, as `categorize` would. Its picture shows the photo beside a map of
    what speaks for the best category. A photo that cannot be used is listed with the reason.

    \b
    Example:
      shelfmark look photo.jpg --workspace shop --top 15
    """
    from pipeline.arguments import check_workspace, check_writable
    from pipeline.job.command_log import command_log, log_of_job
    from pipeline.look.find import find_bundle, name_of

    check_workspace(workspace)
    bundle = find_bundle(workspace, release)
    output = output or workspace / "look" / name_of(bundle)
    check_writable(output)
    with command_log(log_of_job(workspace, "look")):
        start_tensorflow()
        from pipeline.look.look import look

        found = look(bundle, photos, top, output)
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    for one in found.photos:
        _print(one)
    if found.note is not None:
        print(found.note)


def _print(one: "PhotoResult") -> None:
    """A photo: the decision, the best categories, the picture."""
    if one.refused is not None:
        print(f"{one.photo}: refused: {one.refused}\n")
        return
    decision = "" if one.decision is None else f": {one.decision}"
    print(f"{one.photo}: {one.status}{decision} (confidence {one.confidence:.1%})")
    for number, scored in enumerate(one.best, start=1):
        print(f"{number:4}  {scored.probability:6.1%}  {scored.path}")
    print(f"      {one.picture}\n")
