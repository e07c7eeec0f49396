"""What several commands have in common: the options of a run, and opening it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from features.errors import ShelfmarkError
from features.process import add_common_options
from features.storage.paths import AnyPath, any_path

if TYPE_CHECKING:
    from pipeline.job.decisions_file import StoredDecisions
    from pipeline.job.run import Run

WITHOUT_TENSORFLOW = ("ingest", "report")
# settings that the head in service has decided
OF_VIEWS = ("extract.quality", "extract.views", "extract.flip", "extract.asked", "extract.combine")
FRESH = ("ingest", "retrain")  # begin with the default settings, not with the run's last ones


class Commands(click.Group):
    """Lists the commands in the order of the work; each has the options that all have."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Lists them in the order in which they were added."""
        return list(self.commands)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Adds a command or a group of them."""
        add_common_options(cmd)
        super().add_command(cmd, name)


class _PathType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A path on the disk or on an object store."""

    name = "path"

    def convert(self, value: Any, param: Any, context: Any) -> AnyPath:
        """Converts the text of the option."""
        if not str(value).strip():
            self.fail("empty; expected a path, such as shop or s3://bucket/shop", param, context)
        return any_path(value) if isinstance(value, str) else cast(AnyPath, value)


PATH = _PathType()


class _DecisionsType(click.ParamType):  # type: ignore[type-arg]
    """Decisions to be read: a path, or the URL of a table."""

    name = "decisions"

    def convert(self, value: Any, param: Any, context: Any) -> "AnyPath | StoredDecisions":
        """Converts the text of the option."""
        from features.storage.databases import is_database
        from pipeline.job.decisions_table import DecisionsTable

        is_table = isinstance(value, str) and is_database(value)
        return DecisionsTable.of(value) if is_table else PATH.convert(value, param, context)


DECISIONS = _DecisionsType()


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every stage."""
    path = click.Path(path_type=Path)
    options = [
        click.option(
            "--workspace", type=PATH, required=True, help="Directory of all runs, releases and the store."
        ),
        click.option("--run", "name", help="Name of the run; default: the ISO week, as in 2026-W47."),
        click.option("--config", "file", type=path, help="TOML file of settings, over the defaults."),
        click.option(
            "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="One setting, over --config."
        ),
        click.option(
            "--backbone", help="Network, or NETWORK@LAYER, as in inception_v3@mixed5; default: inception_v3."
        ),
        click.option("--weights", help="imagenet, random, or a .weights.h5 file; default: imagenet."),
        click.option(
            "--image-size", type=int, help="Side of the images in pixels; default: the network's own."
        ),
        click.option("--seed", type=int, help="Seed of everything random; default: 0."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def _opened_run(
    name: str | None,
    workspace: AnyPath,
    file: Path | None,
    sets: tuple[str, ...],
    given: dict[str, Any],
    command: str,
) -> Iterator["Run"]:
    """The run, locked; a FRESH command's settings go over the defaults, others' over the run's last ones."""
    import datetime

    from pipeline.arguments import check_run
    from pipeline.job.command_log import run_log
    from pipeline.job.load_config import load_config
    from pipeline.job.lock import only_job
    from pipeline.job.run import begin_run, default_name, saved_settings, settings_on_trial

    name = default_name(datetime.date.today()) if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(".partial") or name.split(".")[0] == "current":
        raise ShelfmarkError(
            f"--run {name}: not a name for a run; expected a letter or digit, then letters, digits, '-', '_' "
            "and '.'; give another name"
        )
    options = {
        "backbone.name": given["backbone"], "backbone.weights": given["weights"],
        "backbone.image_size": given["image_size"], "seed": given["seed"], "extract.engine": given["engine"],
        "extract.quality": given["quality"],
    }  # fmt: skip
    base = {} if command in FRESH else saved_settings(workspace, name)
    config = load_config(file, sets, options, base)
    check_run(workspace, name, command, config, given.get("sources", ()), given.get("taxonomy"),
              given.get("mappings", ()), given.get("tune", False))  # fmt: skip
    path = workspace / "runs" / name
    with only_job(path), run_log(path), settings_on_trial(workspace, name):
        run = begin_run(workspace, name, config)
        if command not in WITHOUT_TENSORFLOW:
            start_tensorflow(config.extract.engine)
        yield run


def stage_command(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command of a function whose first argument is the run that the common options name."""

    @run_options
    def command(
        workspace: AnyPath, name: str | None, file: Path | None, sets: tuple[str, ...], **given: Any
    ) -> None:
        settings = {option: given.pop(option) for option in ("backbone", "weights", "image_size", "seed")}
        settings |= {option: given.pop(option, None) for option in ("engine", "quality")}  # of some commands
        with _opened_run(name, workspace, file, sets, settings | given, function.__name__) as run:
            function(run, **given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def start_tensorflow(engine: str = "auto") -> None:
    """Sets Keras' backend for the engine, then starts TensorFlow, which imports Keras."""
    from features.engines.backbones import start_tensorflow
    from features.engines.choose import use_engine

    use_engine(engine)
    start_tensorflow()
