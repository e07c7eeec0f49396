"""Errors as users see them: one exception, one `error:` line, one exit status."""

import logging
import os
import sys
import traceback

import click


class ShelfmarkError(Exception):
    """An error that the user can fix: what happened, what was expected, what to do next, in one line."""

    status = 1  # of the process that ends with it


class Stopped(ShelfmarkError):
    """A guard has stopped the run: the work is in order, what came in may not be."""

    status = 4


class Busy(ShelfmarkError):
    """Another job is at work there; the same command succeeds later (EX_TEMPFAIL of sysexits.h)."""

    status = 75


def run_command(command: click.Command, name: str, arguments: list[str], obj: object = None) -> None:
    """Runs a command and leaves with its exit status: 0 done, 2 wrong usage, else one `error:` line.

    Args:
        command: of click.
        name: the program's.
        arguments: after the program's name; `--debug` among them shows the traceback of an error.
        obj: for the command's context.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Arrow's own allocator keeps what is freed: ingest's peak was 556 MB with it, 460 with the system's
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("shelfmark").setLevel(logging.INFO)
    try:
        command.main(args=arguments, prog_name=name, standalone_mode=False, obj=obj)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        print("error: interrupted; the same command continues the work", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, ShelfmarkError) else 1)


def one_line(error: Exception) -> str:
    """Returns what an error says to a user, in one line.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: No such file or directory; expected to read and write there; check path, permissions, free space'
    """
    if isinstance(error, ShelfmarkError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message = error.strerror or " ".join(str(error).split())[:300]
        return f"{where}{message}; expected to read and write there; check path, permissions, free space"
    message = " ".join(str(error).split())[:300]
    advice = "this is a fault of shelfmark or its set-up; run again with --debug and report it"
    return f"{type(error).__name__}: {message}; {advice}"
