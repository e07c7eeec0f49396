"""The command line. Each command's docstring is its help and ends with an example that a test runs.

Exit status: 0 done, 1 failed with one `error:` line, 2 wrong usage, 3 alarm of `monitor`. Stages are imported
inside the commands: TensorFlow and Beam take seconds, `--help` must not.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.process import run_command
from features.storage.paths import S3_OPTIONS, STORE_OPTIONS, AnyPath, all_begin, use_beam_options
from pipeline.cli_audit import audit
from pipeline.cli_corrections import adapt, corrections
from pipeline.cli_export import export
from pipeline.cli_look import look
from pipeline.cli_options import DECISIONS, OF_VIEWS, PATH, Commands, stage_command, start_tensorflow
from pipeline.cli_releases import release, releases, rollback, withdraw
from pipeline.cli_status import runs, status
from pipeline.cli_taxonomy import mapping_options, taxonomy

if TYPE_CHECKING:
    from pipeline.compare.candidates import Candidate
    from pipeline.job.decisions_file import StoredDecisions
    from pipeline.job.run import Run

WITH_BEAM = ("ingest", "extract", "retrain", "categorize")  # commands that run on Beam
ALARM = 3  # exit status
CATEGORIZE_USES = ("ingest", "extract", "sellers")  # sections of settings
CATEGORIZE_LEAVES = (  # settings in them that are about training, and one that the bundle has decided
    *("ingest.min_products", "ingest.min_known"),
    *("ingest.val_share", "ingest.test_share", "ingest.least_test"),
    *OF_VIEWS,
    *("sellers.method", "sellers.vectors", "sellers.labels"),
)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its status; arguments after -- are Beam's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    run_command(shelfmark, "shelfmark", arguments[:cut], obj=tuple(arguments[cut + 1 :]))


_sources = click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
_engine = click.option(
    "--engine",
    type=click.Choice(["auto", "tensorflow", "openvino", "onnxruntime", "jax"]),
    help="What runs the backbone; default: auto, the fastest one installed.",
)
_quality = click.option(
    "--quality",
    type=click.Choice(["fast", "best", "auto"]),
    help="How often each photo is looked at; default: fast, once.",
)
_taxonomy = click.option(
    "--taxonomy", type=PATH, help="CSV of category_id, category_level1, …, or a text as Google's."
)


class _Commands(Commands):
    """Applies Beam's options to object stores."""

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(context, args)
        beam = context.obj or ()
        if beam and name == "demo":
            raise click.UsageError("'demo' takes no Beam options; expected nothing after --", context)
        if beam and name not in WITH_BEAM and not all_begin(beam, STORE_OPTIONS):
            raise click.UsageError(
                f"'{name}' runs nothing on Beam; expected after -- only options of object stores, such as "
                "--s3_endpoint_url=…", context,
            )  # fmt: skip
        if beam:
            use_beam_options(beam)  # before a source or a workspace is opened
        return name, command, rest


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="shelfmark")
def shelfmark() -> None:
    """Puts the products of a large catalogue into the right category from their photos."""


@shelfmark.command()
@_sources
@_taxonomy
@mapping_options
@stage_command
def ingest(
    run: "Run", sources: tuple[str, ...], taxonomy: AnyPath | None, mappings: tuple[AnyPath, ...]
) -> None:
    """Converts a catalogue to TFRecords.

    Every image is checked, and every product goes to train, val or test. SOURCE is a .bson file (Cdiscount),
    a folder of photos, or a .csv or .parquet manifest. Options after -- are Beam's.

    \b
    Example:
      shelfmark ingest catalogue.bson --taxonomy category_names.csv --workspace shop --config weekly.toml
    """
    from pipeline.ingest.ingest import ingest

    ingest(run, list(sources), taxonomy, _beam(), mappings)


@shelfmark.command()
@stage_command
def finetune(run: "Run") -> None:
    """Fine-tunes the backbone on the run's products.

    Its later layers are trained; extract and train then use it. It takes far longer than all the rest, so it
    is done only by this command or with retrain --finetune: later weeks keep the backbone of the release.

    \b
    Example:
      shelfmark finetune --workspace shop --set finetune.epochs=5
    """
    from pipeline.train.finetune import finetune

    finetune(run)


@shelfmark.command()
@_engine
@_quality
@stage_command
def extract(run: "Run") -> None:
    """Runs the backbone over the new images.

    Images whose bottlenecks are in the store already cost nothing. With options after --, which are Beam's,
    Beam's workers extract; without, this process.

    \b
    Example:
      shelfmark extract --workspace shop --engine auto
    """
    from pipeline.extract.extract import extract

    extract(run, _beam())


@shelfmark.command()
@stage_command
def train(run: "Run") -> None:
    """Trains the head on the bottlenecks.

    \b
    Example:
      shelfmark train --workspace shop --set train.epochs=40
    """
    from pipeline.train.train import train

    train(run)


@shelfmark.command()
@stage_command
def calibrate(run: "Run") -> None:
    """Certifies the confidence thresholds.

    From the threshold on the promised precision holds; below it a person decides. Decisions that a seller's
    corrections have changed get a threshold of their own.

    \b
    Example:
      shelfmark calibrate --workspace shop --set calibration.precision=0.85
    """
    from pipeline.train.calibrate import calibrate
    from pipeline.train.sellers import seller_rules, styles

    calibrate(run)
    styles(run)
    seller_rules(run)


@shelfmark.command()
@click.option(
    "--by",
    type=click.Choice(["seller"]),
    help="Measure what each seller's own corrections would bring.",
)
@stage_command
def evaluate(run: "Run", by: str | None) -> None:
    """Measures precision on held-out products.

    For the report it also makes maps of where the network looked in some photos, see report.maps.

    With --by seller nine tenths of each seller's held-out products are corrected and the tenth is judged, ten
    times: precision before and after corrections, sellers that gain and that lose.

    \b
    Example:
      shelfmark evaluate --workspace shop
    """
    if by == "seller":
        from pipeline.train.by_seller import by_seller, lines_of

        for line in lines_of(by_seller(run)):
            print(line)
        return
    from pipeline.look.maps import maps
    from pipeline.train.evaluate import evaluate

    evaluate(run)
    maps(run)


@shelfmark.command()
@click.option("--compare", "other", metavar="RUN", help="Also a page with this run of the workspace beside.")
@click.option("--xlsx", is_flag=True, help="Also the tables as report.xlsx, for Excel.")
@stage_command
def report(run: "Run", other: str | None, xlsx: bool) -> None:
    """Writes the report, a page for a browser.

    It shows what another threshold would do, categories, confusions with photos, labels in doubt and what
    changed since the release in service. It is in English or French, see report.language.

    \b
    Example:
      shelfmark report --workspace shop --xlsx
    """
    from pipeline.report.report import PAGE, WORKBOOK, compare_runs, report

    written = report(run, xlsx)
    print(written.path / PAGE)
    if xlsx:
        print(written.path / WORKBOOK)
    if other is not None:
        print(compare_runs(run, other).path / PAGE)


def _candidates(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> "tuple[Candidate, ...] | None":
    """The value of --backbones; checked before a run is opened."""
    from pipeline.compare.candidates import parse_candidates

    if value is not None and context.params.get("only"):
        raise click.UsageError("--only names classifiers, --backbones compares backbones; give one of them")
    return None if value is None else parse_candidates(value)


@shelfmark.command()
@click.option(
    "--categories",
    type=click.IntRange(min=2),
    metavar="N",
    help="A random sample of N categories; default: all.",
)
@click.option(
    "--only", multiple=True, metavar="ROW", help="Only this row, such as svm or 2nn-2048; repeatable."
)
@click.option(
    "--backbones",
    callback=_candidates,
    metavar="NAME[=WEIGHTS],…",
    help="Compare these backbones instead, with the run's own; NAME as for --backbone.",
)
@stage_command
def compare(
    run: "Run", categories: int | None, only: tuple[str, ...], backbones: "tuple[Candidate, ...] | None"
) -> None:
    """Compares classifiers, or backbones, on the run's data.

    Each is trained on the run's bottlenecks; the last lines say which one to use. Rows: hog-svm, svm,
    2nn-512, 2nn-2048, 2nn-4096, separate, multitask, taxonnet; those on bottlenecks of a fine-tuned backbone
    end in -tuned. Killed, it continues at the next row.

    With --backbones mobilenet,inception_v3@mixed5=FILE, images that the store lacks are extracted by each
    backbone, and the run's head is trained on each: accuracy, acceptance rate, speed, memory. Weights are
    imagenet unless given.

    \b
    Example:
      shelfmark compare --workspace shop --only svm --only 2nn-512
    """
    from rich.console import Console

    from pipeline.compare import backbones_summary, summary
    from pipeline.compare.backbones import compare_backbones
    from pipeline.compare.compare import compare

    if backbones is None:
        comparison = compare(run, categories, only)
        shown, last = [summary.table(comparison)], (comparison.best, comparison.commands)
        notes = comparison.notes
    else:
        compared = compare_backbones(run, backbones, categories)
        shown, last = [*backbones_summary.tables(compared)], (compared.best, compared.command)
        notes = compared.notes
    Console(width=None if sys.stdout.isatty() else 120).print(*shown)  # in a file nothing is folded
    for line in filter(None, (*notes, *last)):
        print(line)
    print(run.path / "comparison" / "index.html")


@shelfmark.command()
@_sources
@_taxonomy
@mapping_options
@_engine
@_quality
@click.option("--finetune", "tune", is_flag=True, help="Tune the backbone first, on this week's products.")
@click.option(
    "--accept-feed", is_flag=True, help="Go on where the catalogue is unlike that of the release in service."
)
@click.option("--force", is_flag=True, help="Release the bundle, whatever the comparison says.")
@stage_command
def retrain(
    run: "Run",
    sources: tuple[str, ...],
    taxonomy: AnyPath | None,
    mappings: tuple[AnyPath, ...],
    tune: bool,
    accept_feed: bool,
    force: bool,
) -> None:
    """Runs all stages and releases if better.

    The new bundle is released if it is better than the one in service. Run again, it repeats nothing; with
    other settings it remakes what depends on them; killed, it continues. Options after -- are Beam's.

    \b
    Example:
      shelfmark retrain catalogue.bson --taxonomy category_names.csv --workspace shop --config weekly.toml
    """
    from pipeline.retrain import retrain

    account = retrain(
        run, list(sources), taxonomy, _beam(), tune, accept_feed=accept_feed, force=force, mappings=mappings
    )
    sys.exit(account.exit_status)


@shelfmark.command()
@_sources
@click.option(
    "--workspace",
    type=PATH,
    required=True,
    help="Directory with the release in service.",
)
@click.option(
    "--output",
    required=True,
    metavar="TARGET",
    help="For the decisions: FILE.parquet, .csv, .csv.gz or .jsonl; FOLDER/ for parts; or a table, as in "
    "sqlite:///FILE#TABLE.",
)
@click.option(
    "--only-new",
    metavar="DECISIONS",
    help="Leave out products that the release in service has decided about there, by their ids: not whether "
    "their photos are the same. Unreadable ones, and those of sellers with corrections, are decided again.",
)
@click.option(
    "--keep-records", "records", type=PATH, metavar="DIR", help="Keep the photos as TFRecords in DIR."
)
@_engine
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option(
    "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="One setting, over --config."
)
def categorize(
    sources: tuple[str, ...],
    workspace: AnyPath,
    output: str,
    only_new: str | None,
    records: AnyPath | None,
    engine: str | None,
    file: Path | None,
    sets: tuple[str, ...],
) -> None:
    """Categorizes every product of a source.

    The bundle in service decides. Each product gets one row: accepted, parent, review or unreadable. A
    category given in the source is ignored. Photos that the store knows are not decoded again. Corrections of
    a product's seller count. Options after -- are Beam's.

    \b
    Example:
      shelfmark categorize catalogue.bson --workspace shop --output decisions.parquet
    """
    from features.engines.choose import use_engine
    from pipeline.arguments import check_categorize
    from pipeline.job.command_log import command_log, log_of_job
    from pipeline.job.corrected import sellers_in_service
    from pipeline.job.decisions_output import decisions_source
    from pipeline.job.load_config import load_config

    base: dict[str, object] = {"sellers": sellers_in_service(workspace)}
    config = load_config(file, sets, {"extract.engine": engine}, base, CATEGORIZE_USES, CATEGORIZE_LEAVES)
    check_categorize(workspace, sources, output, config, only_new, records)
    with command_log(log_of_job(workspace, "categorize")):
        use_engine(config.extract.engine)  # TensorFlow starts when a photo is new
        from pipeline.categorize.categorize import categorize
        from pipeline.release.in_service import require_release

        counts = categorize(
            list(sources), require_release(workspace), workspace / "store", output, config, _beam(),
            only_new=only_new, records=records,
        )  # fmt: skip
    told = ", ".join(f"{status} {count:,}" for status, count in counts.items()) or "0 products"
    print(f"{decisions_source(output)}: {told}")


shelfmark.add_command(adapt)
shelfmark.add_command(corrections)
shelfmark.add_command(look)
shelfmark.add_command(export)
shelfmark.add_command(audit)
shelfmark.add_command(taxonomy)


@shelfmark.command()
@click.option("--workspace", type=PATH, required=True, help="Directory with the release that decided.")
@click.option(
    "--decisions",
    type=DECISIONS,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Of a batch: a file, a folder or the URL of a table; repeatable.",
)
@click.option(
    "--audits", type=PATH, multiple=True, metavar="FILE.csv", help="Checked decisions of them; repeatable."
)
@click.option("--output", type=PATH, help="For page and JSON; default: WORKSPACE/monitor/RELEASE.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option(
    "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="One setting, over --config."
)
def monitor(
    workspace: AnyPath,
    decisions: "tuple[AnyPath | StoredDecisions, ...]",
    audits: tuple[AnyPath, ...],
    output: AnyPath | None,
    file: Path | None,
    sets: tuple[str, ...],
) -> None:
    """Compares new decisions with the release.

    Each file is a batch that `categorize` decided about. Are its products still like those that the release
    was measured on, and are the accepted ones still as precise? An alarm ends with exit status 3.

    \b
    Example:
      shelfmark monitor --workspace shop --decisions decisions.parquet
    """
    from pipeline.job.load_config import load_config
    from pipeline.monitor.monitor import alarm_line, monitor

    settings = load_config(file, sets, used=("monitor",)).monitor
    found, folder = monitor(workspace, list(decisions), list(audits), output, settings)
    print(alarm_line(found))
    print(folder / "index.html")
    if found.alarm:
        sys.exit(ALARM)


for _command in (status, runs, releases, release, rollback, withdraw):
    shelfmark.add_command(_command)


@shelfmark.command()
@click.option("--workspace", type=PATH, required=True, help="Directory of all runs, releases and the store.")
@click.option(
    "--keep", type=click.IntRange(min=1), help="As retention.runs: only the N most recent runs stay."
)
@click.option(
    "--older",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="As retention.store_days: younger shards and working files stay.",
)
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option(
    "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="One setting, over --config."
)
@click.option("--dry-run", is_flag=True, help="List what would be removed; remove nothing.")
def clean(
    workspace: AnyPath,
    keep: int | None,
    older: float | None,
    file: Path | None,
    sets: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Removes what no run needs.

    That is: shards of the store that no run refers to, working files of interrupted jobs, and what is older
    than the section [retention] says. The release in service and the one before, with their runs, always
    stay, and so does what a run is based on.

    \b
    Example:
      shelfmark clean --workspace shop --keep 4 --dry-run
    """
    from pipeline.job.load_config import load_config
    from pipeline.release.clean import clean

    settings = load_config(file, sets, {"retention.runs": keep, "retention.store_days": older}).retention
    removals = clean(workspace, settings, dry_run=dry_run)
    for one in removals:
        print(f"{one.what}: {one.size / 1e6:,.1f} MB")
    size = sum(one.size for one in removals)
    print(f"{workspace}: {size / 1e6:,.1f} MB {'would be removed; nothing was' if dry_run else 'removed'}")


@shelfmark.command()
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    default=Path("demo-workspace"),
    help="Default: demo-workspace.",
)
def demo(workspace: Path) -> None:
    """Runs everything on a drawn catalogue.

    It draws photos of a small shop, retrains, categorizes, and prints the figures and where the report is.

    \b
    Example:
      shelfmark demo --workspace demo
    """
    from pipeline.job.command_log import command_log, log_of_job

    with command_log(log_of_job(workspace, "demo")):
        start_tensorflow()
        from pipeline.demo.demo import demo

        demo(workspace)


def _beam() -> tuple[str, ...]:
    """The options after --, when some are for Beam itself; those for S3 alone do not need Beam."""
    options: tuple[str, ...] = click.get_current_context().obj or ()
    return () if all_begin(options, S3_OPTIONS) else options


if __name__ == "__main__":
    main()
